"""What `finetune explain` prints; where a writer looked as a person sees it: picture, lines in the terminal, JSON."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.explain import Explanation
from finetune.report import pictures
from finetune.run import Run
from finetune.terminal import HEAD_WIDTH, line, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN_TOKENS = 80  # a side; a wider picture is read by no one
TITLE_WIDTH = 60
WIDTH = 80 - HEAD_WIDTH
TOKEN_WIDTH = 22
LOOKED_AT = 3  # source tokens named for each token
LEAST = 0.1  # share of the ones after the first


def say_cut(run: Run, config: Any, found: Explanation) -> None:
    """Tell what was longer than the model takes, by the settings of its recipe."""
    for side in found.cut:
        longest = {"source": config.max_source_length, "target": config.max_target_length}[side]
        run.say("note", f"the {side} is cut at {longest} tokens")


@dataclass(frozen=True)
class Shown:
    """What a command prints: one JSON document, or lines for a person, with colours or without."""

    json: Any
    lines: Callable[[bool], list[str]]


def draw(found: Explanation, path: Path) -> str | None:
    """Write the picture; return what it leaves out of a long pair, None where it shows all."""
    figure, left_out = drawn(found)
    pictures.save(figure, path, in_words(found))
    return left_out and f"{left_out}; --json has all"


def drawn(found: Explanation) -> tuple["Figure", str | None]:
    """Return the picture, and what it leaves out of a long pair, None where it shows all."""
    columns = _most_looked_at(found.weights)
    rows = min(len(found.target_tokens), DRAWN_TOKENS)
    source = [found.source_tokens[column] for column in columns]
    title = clipped(printable(" ".join(found.source.split())), TITLE_WIDTH)
    weights = found.weights[:rows, columns]
    figure = pictures.alignment(source, found.target_tokens[:rows], weights, title)
    left_out = []
    if len(source) < len(found.source_tokens):
        left_out.append(f"the {len(source)} of {len(found.source_tokens)} source tokens that were looked at most")
    if rows < len(found.target_tokens):
        left_out.append(f"the first {rows} of {len(found.target_tokens)} target tokens")
    return figure, f"the picture shows {' and '.join(left_out)}" if left_out else None


def in_words(found: Explanation) -> str:
    """Return what each token looked at most, as far as a picture goes down, for those who cannot see it."""
    names, rows = _told_apart(found.source_tokens), zip(found.target_tokens, found.weights, strict=True)
    return "; ".join(
        f"{token}: {_looked_at(names, weights, WIDTH)}" for token, weights in itertools.islice(rows, DRAWN_TOKENS)
    )


def explanation_lines(found: Explanation, picture: Path) -> list[str]:
    """Return source, text and score, what each token looked at most, and where the picture is; 80 columns."""
    from rich.cells import cell_len

    lines = [line("source", wrapped(found.source)), line("given" if found.given else "written", wrapped(found.text))]
    lines.append(line("", f"score {found.score:.3f} (mean log-probability of a token)"))
    names = _told_apart(found.source_tokens)
    width = min(TOKEN_WIDTH, max(cell_len(token) for token in found.target_tokens))
    table = []
    for token, weights in zip(found.target_tokens, found.weights, strict=True):
        table.append(f"{column(token, width)}  {_looked_at(names, weights, WIDTH - width - 2)}")
    return [*lines, line("looked at", "\n".join(table)), line("picture", str(picture))]


def explanation_json(found: Explanation, picture: Path) -> dict[str, Any]:
    """Return everything as plain values; weights as a list for each target token."""
    return {
        "source": found.source,
        "text": found.text,
        "given": found.given,
        "score": round(found.score, 6),
        "source_tokens": found.source_tokens,
        "target_tokens": found.target_tokens,
        "weights": [[round(float(weight), 6) for weight in row] for row in found.weights],
        "picture": str(picture),
    }


def clipped(text: str, width: int) -> str:
    """Return a text that is no longer than so many characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def column(text: str, width: int) -> str:
    """Return a text in exactly so many columns of a terminal."""
    from rich.cells import cell_len, set_cell_size

    shown = printable(text)
    return set_cell_size(shown if cell_len(shown) <= width else set_cell_size(shown, width - 1) + "…", width)


def wrapped(text: str) -> str:
    """Return a text in lines of the terminal's width behind its head word."""
    from rich.console import Console
    from rich.text import Text

    wrapped = Text(printable(" ".join(text.split()))).wrap(Console(width=WIDTH), WIDTH)
    return "\n".join(part.plain.rstrip() for part in wrapped)


def _most_looked_at(weights: np.ndarray) -> list[int]:
    """Return the columns to draw, in order: all, or the DRAWN_TOKENS with the largest weight of any token."""
    order = np.argsort(-weights.max(axis=0), kind="stable")[:DRAWN_TOKENS]
    return sorted(order.tolist())


def _told_apart(tokens: Sequence[str]) -> list[str]:
    """Return tokens short enough for a line; those that come twice with their place, from 1."""
    counts = Counter(tokens)
    short = [clipped(token, TOKEN_WIDTH) for token in tokens]
    return [
        name if counts[token] == 1 else f"{name} ({place})"
        for place, (name, token) in enumerate(zip(short, tokens, strict=True), 1)
    ]


def _looked_at(names: Sequence[str], weights: np.ndarray, width: int) -> str:
    """Return the source tokens with the largest weights (source,), as far as they matter and fit."""
    from rich.cells import cell_len

    first, *others = np.argsort(-weights, kind="stable")[:LOOKED_AT].tolist()
    text = f"{names[first]} {100 * weights[first]:.0f} %"
    for place in others:
        longer = f"{text}   {names[place]} {100 * weights[place]:.0f} %"
        if weights[place] >= LEAST and cell_len(longer) <= width:
            text = longer
    return text
