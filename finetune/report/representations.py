"""Attention by layer and head, and one word in many contexts, as a person sees them: lines, picture, JSON."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.attention_heads import Heads
from finetune.report import pictures
from finetune.report.explanation import TITLE_WIDTH, WIDTH, clipped, column, wrapped
from finetune.terminal import count, line, printable
from finetune.word_vectors import WordInContexts

SHOWN_HEADS = 3
AROUND = 34  # characters of a context in the picture, the word in their middle
CONTEXT_WIDTH = WIDTH - 20  # columns of a context in the terminal; behind it stands the nearest one


def draw_heads(found: Heads, path: Path) -> None:
    """Write the picture of every head."""
    title = f"{found.model}: {clipped(printable(' '.join(found.text.split())), TITLE_WIDTH)}"
    pictures.save(pictures.head_maps(found.weights, title), path, "; ".join(_habits(found)))


def heads_lines(found: Heads, picture: Path) -> list[str]:
    """Return the size of it all, which heads look most at the next token and the like, and where the picture is."""
    layers, heads, tokens, _ = found.weights.shape
    size = f"{count(layers, 'layer')} x {count(heads, 'head')} of {found.model}"
    size += f" · {tokens} tokens, an even share is {1 / tokens:.2f}"
    lines = [line("attention", size)]
    lines.append(line("tokens", wrapped(" ".join(found.tokens))))
    lines += [line("" if number else "heads", told) for number, told in enumerate(_habits(found))]
    if found.cut:
        lines.append(line("note", "the model read only the beginning of the text"))
    return [*lines, line("picture", str(picture))]


def heads_json(found: Heads, picture: Path) -> dict[str, Any]:
    """Return everything as plain values: weights as layer -> head -> token that looks -> token."""
    return {
        "text": found.text,
        "model": found.model,
        "tokens": found.tokens,
        "weights": np.round(found.weights, 5).tolist(),
        "heads": {name: np.round(of, 5).tolist() for name, of in found.habits().items()},
        "cut": found.cut,
        "picture": str(picture),
    }


def draw_contexts(found: WordInContexts, path: Path) -> None:
    """Write the picture of the contexts on a plane."""
    names = [f"{number} {_around(found, number - 1)}" for number in range(1, len(found.contexts) + 1)]
    shares = " and ".join(f"{100 * share:.0f} %" for share in found.explained)
    axes = f"{shares} of the variance", f"{found.model}, layer {found.layer} of {found.layers}"
    figure = pictures.plane(found.plane, names, found.groups.tolist(), axes, f"“{found.word}” in context")
    pictures.save(figure, path, "; ".join(_nearest(found)))


def contexts_lines(found: WordInContexts, picture: Path) -> list[str]:
    """Return the groups, each context with its nearest one, how near groups are, and where the picture is."""
    size = f"{found.word} in {len(found.contexts)} contexts · {found.model}, layer {found.layer} of {found.layers}"
    lines = [line("word", size)]
    for group in range(found.groups.max() + 1):
        rows = np.flatnonzero(found.groups == group).tolist()
        told = [f"{row + 1:>2} {column(_around(found, row, CONTEXT_WIDTH), CONTEXT_WIDTH)}"
                f" nearest {found.nearest(row) + 1:>2} {found.cosines[row, found.nearest(row)]:.2f}"
                for row in rows]  # fmt: skip
        lines.append(line(f"group {group + 1}", "\n".join(told)))
    return [*lines, line("cosines", "\n".join(_between(found))), line("picture", str(picture))]


def contexts_json(found: WordInContexts, picture: Path) -> dict[str, Any]:
    """Return everything as plain values; places on the plane are those of the picture."""
    return {
        "word": found.word,
        "model": found.model,
        "layer": found.layer,
        "contexts": [
            {
                "text": text, "start": found.spans[row][0], "end": found.spans[row][1],
                "group": int(found.groups[row]) + 1, "nearest": found.nearest(row) + 1,
                "plane": np.round(found.plane[row], 5).tolist(),
            }
            for row, text in enumerate(found.contexts)
        ],
        "cosines": np.round(found.cosines, 5).tolist(),
        "explained_variance": [round(share, 5) for share in found.explained],
        "picture": str(picture),
    }  # fmt: skip


def _habits(found: Heads) -> list[str]:
    """Return for each habit the heads that have it most, and the mean of all."""
    told = []
    for name, shares in found.habits().items():
        order = np.argsort(-shares, axis=None, kind="stable")[:SHOWN_HEADS]
        best = [(*divmod(int(place), shares.shape[1]), float(shares.flat[place])) for place in order]
        listed = ", ".join(f"{layer + 1}.{head + 1} {share:.2f}" for layer, head, share in best)
        told.append(f"{column(printable(name), 9)} layer.head {listed} (mean of all {shares.mean():.2f})")
    return told


def _nearest(found: WordInContexts) -> list[str]:
    return [
        f"{_around(found, row)}: group {found.groups[row] + 1}, nearest: {_around(found, found.nearest(row))}"
        for row in range(len(found.contexts))
    ]


def _between(found: WordInContexts) -> list[str]:
    """Return the mean cosine inside each group and between each two."""
    told = []
    groups = [np.flatnonzero(found.groups == group) for group in range(found.groups.max() + 1)]
    for one, rows in enumerate(groups):
        if len(rows) > 1:
            pairs = found.cosines[np.ix_(rows, rows)][~np.eye(len(rows), dtype=bool)]
            told.append(f"inside group {one + 1}: {pairs.mean():.3f}")
        for two in range(one + 1, len(groups)):
            told.append(f"groups {one + 1} and {two + 1}: {found.cosines[np.ix_(rows, groups[two])].mean():.3f}")
    return told


def _around(found: WordInContexts, row: int, width: int = AROUND) -> str:
    """Return a context on one line, or the words around the word, as many as fit."""
    start, end = found.spans[row]
    before, after = (printable(part).split() for part in (found.contexts[row][:start], found.contexts[row][end:]))
    glued = bool(after) and not found.contexts[row][end].isspace()
    shown = printable(found.contexts[row][start:end]) + (after.pop(0) if glued else "")
    while before or after:
        takes_left = bool(before) and (not after or len(before) >= len(after))
        longer = f"{before[-1]} {shown}" if takes_left else f"{shown} {after[0]}"
        if len(longer) + 2 > width:
            break
        shown = longer
        before, after = (before[:-1], after) if takes_left else (before, after[1:])
    return f"{'…' if before else ''}{shown}{'…' if after else ''}"
