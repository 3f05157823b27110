"""What speaks for a label as a person sees it: marked words and figures in the terminal, a picture, a page, JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.attribution import Attribution, ByFeatures, Judged, Word
from finetune.report import pictures
from finetune.report.blocks import Cell, Facts, Marked, Marks, Section, Table
from finetune.report.explanation import TITLE_WIDTH, WIDTH, clipped, column, wrapped
from finetune.terminal import count, line, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.text import Text

SHOWN_PROBABILITIES = 4
SHOWN_WORDS = 12
DRAWN = 40  # words of a picture
NAME_WIDTH = 26
LEAST_MARKED = 0.2  # of the strongest word
STYLES = {True: "bold #3d9bd9", False: "underline #e07b3a"}  # for, against: on dark and light grounds
GRADIENTS, HIDDEN = "integrated gradients", "falls when hidden"
COLUMNS = ("text", "text_pair")


def attribution_lines(found: Judged, coloured: bool) -> list[str]:
    """Return the text with its words marked, the prediction, and what each word or feature did; 80 columns.

    Without colour a word that speaks for the label is `[+so]`, one against it `[-so]`.
    """
    marks = [marks_of(found, number) for number in range(len(found.row.texts))]
    lines = [line("" if number else "text", _painted(each, coloured)) for number, each in enumerate(marks)]
    ranked = sorted(found.probabilities.items(), key=lambda item: -item[1])[:SHOWN_PROBABILITIES]
    listed = " · ".join(f"{clipped(printable(name), NAME_WIDTH)} {share:.3f}" for name, share in ranked)
    said = f"{' | '.join(found.predicted) or '(none)'}: " if found.multi_label else ""
    lines.append(line("predicted", wrapped(f"{said}{listed}")))
    if isinstance(found, Attribution):
        return [*lines, line("words", "\n".join(_word_table(found))), line("sum", "\n".join(_sum(found)))]
    assert isinstance(found, ByFeatures)
    return [*lines, line("features", "\n".join(_feature_table(found)))]


def attribution_json(found: Judged) -> dict[str, Any]:
    """Return everything as plain values."""
    told: dict[str, Any] = {"text": found.row.text}
    told |= {} if found.row.second is None else {"text_pair": found.row.second}
    told["predicted"] = found.predicted if found.multi_label else found.predicted[0]
    told["probabilities"] = {name: round(share, 6) for name, share in found.probabilities.items()}
    if isinstance(found, Attribution):
        told |= {
            "label": found.label,
            "words": [
                {
                    "word": word.place.text, "column": COLUMNS[word.place.column], "start": word.place.start,
                    "end": word.place.end, "gradients": round(word.gradients, 6),
                    "hidden": None if word.hidden is None else round(word.hidden, 6),
                }
                for word in found.path.words
            ],
            "baseline": {"token": found.baseline, "probability": round(found.path.start, 6)},
            "probability": round(found.path.value, 6),
            "steps": found.steps,
            "gap": found.path.gap,
            "cut": found.cut,
        }  # fmt: skip
    if isinstance(found, ByFeatures):
        features = [
            {"feature": one.name, "value": one.value, "weight": one.weight, "adds": one.added}
            for one in found.decision.features
        ]
        told |= {
            "label": found.decision.label, "decision": found.decision.value, "bias": found.decision.bias,
            "features": features,
        }  # fmt: skip
    return told


def attribution_figure(found: Judged) -> tuple["Figure", str]:
    """Return bars of the words in the order of the text, or of the strongest features, and the same in words."""
    flat = clipped(printable(" ".join(" / ".join(found.row.texts).split())), TITLE_WIDTH)
    if isinstance(found, ByFeatures):
        features = found.decision.features[:DRAWN]
        names, values = [_feature(one.name) for one in features], {"adds": [one.added for one in features]}
        label = f"added to the decision value for {found.decision.label}"
        return pictures.bars(names, values, label, flat), _in_words(label, names, values)
    assert isinstance(found, Attribution)
    chosen = sorted(_strongest(found.path.words)[:DRAWN], key=lambda word: (word.place.column, word.place.start))
    names = [word.place.text for word in chosen]
    both: dict[str, list[float | None]] = {GRADIENTS: [word.gradients for word in chosen]}
    both[HIDDEN] = [None if word.hidden is None else -word.hidden for word in chosen]
    label = f"of the probability of {found.label}"
    return pictures.bars(names, both, label, flat), _in_words(label, names, both)


def attribution_section(number: int, found: Judged) -> Section:
    """Return the part of a page about one text; the first has number 1."""
    marked = [Marked(marks_of(found, place)) for place in range(len(found.row.texts))]
    shares = sorted(found.probabilities.items(), key=lambda item: -item[1])
    facts = Facts([("predicted", " | ".join(found.predicted) or "(none)")] + [
        (f"probability of {name}", f"{share:.3f}") for name, share in shares[:SHOWN_PROBABILITIES]
    ])  # fmt: skip
    if isinstance(found, Attribution):
        rows = [
            [Cell(word.place.text), _signed_cell(word.gradients), _signed_cell(word.hidden)]
            for word in _strongest(found.path.words)
        ]
        caption = f"Of the probability of {found.label}: {'; '.join(_sum(found))}"
        table = Table(caption, ["word", GRADIENTS, "change when hidden"], rows, frozenset({1, 2}), sortable=True)
    else:
        assert isinstance(found, ByFeatures)
        rows = [
            [Cell(_feature(one.name)), *(_signed_cell(value) for value in (one.value, one.weight, one.added))]
            for one in found.decision.features
        ]
        caption = f"Decision value for {found.decision.label}: {_decision(found)}"
        table = Table(caption, ["feature", "tf-idf", "weight", "adds"], rows, frozenset({1, 2, 3}), sortable=True)
    return Section(f"text-{number}", f"Text {number}", [*marked, facts, table])


def marks_of(found: Judged, number: int) -> Marks:
    """Return one of a row's texts in pieces, each word with what it did, -1 to 1; features mark nothing."""
    text = found.row.texts[number]
    if not isinstance(found, Attribution):
        return [(text, 0.0)]
    most = max((abs(word.gradients) for word in found.path.words), default=0.0) or 1.0
    pieces, end = [], 0
    for word in found.path.words:
        if word.place.column == number:
            share = word.gradients / most
            pieces.append((text[end : word.place.start], 0.0))
            pieces.append((text[word.place.start : word.place.end], share if abs(share) >= LEAST_MARKED else 0.0))
            end = word.place.end
    return [piece for piece in (*pieces, (text[end:], 0.0)) if piece[0]]


def _painted(marks: Marks, coloured: bool) -> str:
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for piece, share in marks:
        shown = printable(" ".join(f"|{piece}|".split())[1:-1]) if piece.strip() else " "
        if share and not coloured:
            shown = f"[{'+' if share > 0 else '-'}{shown}]"
        text.append(shown, STYLES[share > 0] if share else "")
    lines = text.wrap(Console(width=WIDTH), WIDTH)
    return "\n".join(_ansi(part) if coloured else part.plain.rstrip() for part in lines)


def _ansi(text: "Text") -> str:
    """Return a text with the codes that colour it, whatever the terminal that rich sees."""
    import io

    from rich.console import Console

    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system="256", width=2 * WIDTH, no_color=False)
    console.print(text, end="", soft_wrap=True)
    return written.getvalue().rstrip()


def _word_table(found: Attribution) -> list[str]:
    head = f"{column(f'for {found.label}', NAME_WIDTH)}{'gradients':>12}{'when hidden':>14}"
    ranked = _strongest(found.path.words)
    rows = [
        f"{column(word.place.text, NAME_WIDTH)}{_signed(word.gradients):>12}{_signed(word.hidden):>14}"
        for word in ranked[:SHOWN_WORDS]
    ]
    rest = ranked[SHOWN_WORDS:]
    if rest:
        total = sum(word.gradients for word in rest)
        rows.append(f"{column(count(len(rest), 'other word'), NAME_WIDTH)}{_signed(total):>12}")
    return [head, *rows]


def _sum(found: Attribution) -> list[str]:
    path = found.path
    total = sum(word.gradients for word in path.words)
    words = f"{_signed(total)} of {path.value:.3f} − {path.start:.3f} (every token as {found.baseline})"
    lines = [words, f"completeness gap {path.gap:+.1e}, {found.steps} steps".replace("-", "−")]
    return [*lines, "the model read only the beginning of the text"] if found.cut else lines


def _feature_table(found: ByFeatures) -> list[str]:
    decision = found.decision
    head = f"{column(f'for {decision.label}', NAME_WIDTH)}{'tf-idf':>10}{'weight':>10}{'adds':>10}"
    rows = [
        f"{column(_feature(one.name), NAME_WIDTH)}{one.value:>10.3f}{_signed(one.weight):>10}{_signed(one.added):>10}"
        for one in decision.features[:SHOWN_WORDS]
    ]
    rest = decision.features[SHOWN_WORDS:]
    if rest:
        total = sum(one.added for one in rest)
        rows.append(f"{column(count(len(rest), 'other feature'), NAME_WIDTH)}{_signed(total):>30}")
    rows.append(f"{column('bias', NAME_WIDTH)}{_signed(decision.bias):>30}")
    return [head, *rows, _decision(found)]


def _decision(found: ByFeatures) -> str:
    return f"their sum, {_signed(found.decision.value)}, is the decision value"


def _feature(name: str) -> str:
    """Return the name of a feature; the spaces at the ends of a word can be seen where it is characters."""
    kind, _, term = name.partition(": ")
    return f"{kind}: {term.replace(' ', '␣')}" if kind.endswith("char") else name


def _strongest(words: Sequence[Word]) -> list[Word]:
    return sorted(words, key=lambda word: -abs(word.gradients))


def _in_words(label: str, names: Sequence[str], values: dict[str, list[Any]]) -> str:
    told = [f"{kind}: {', '.join(f'{name} {_signed(value)}' for name, value in zip(names, of_kind, strict=True))}"
            for kind, of_kind in values.items()]  # fmt: skip
    return f"{label}; {'; '.join(told)}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}".replace("-", "−")


def _signed_cell(value: float | None) -> Cell:
    return Cell(_signed(value), None if value is None else float(np.round(value, 6)))
