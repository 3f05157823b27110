"""Sources longer than what a model reads: their beginning, their end, both, or windows of whole sentences.

`window` is hierarchical summarise-then-merge, and a strategy of writing alone: each window gets a summary, and what
they give, one after the other, is summarised in turn, until it fits or gets no shorter (`writer.write`). Training reads
the beginning of a long source: no one has said which part of a summary is of which window, and the last step, in which
a model writes the whole summary of a text that it can read, is what it learns.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from finetune.text_metrics import sentences

OnLong = Literal["truncate", "error", "window", "lead_tail", "tail"]
Measure = Callable[[Sequence[str]], list[int]]  # the tokens of each text
Span = tuple[int, int]  # characters


def shorten(row: Sequence[int], room: int, on_long: OnLong) -> list[int]:
    """Return at most `room` tokens of a row: the first ones; under tail the last, under lead_tail half of each."""
    if on_long == "tail":
        return list(row[max(0, len(row) - room) :])
    if len(row) <= room or on_long != "lead_tail":
        return list(row[:room])
    tail = room // 2
    return [*row[: room - tail], *row[len(row) - tail :]]


def windows(text: str, room: int, measure: Measure) -> list[str]:
    """Cut a text into windows of about `room` tokens at most, each of as many whole sentences as fit.

    A sentence that is itself too long is halved at a space until its parts fit. Only white space between windows is
    lost.
    """
    if measure([text])[0] <= room:
        return [text]
    spans = _sentences(text)
    sizes = measure([text[begin:end].rstrip() for begin, end in spans])
    parts = [
        part
        for span, size in zip(spans, sizes, strict=True)
        for part in ([span] if size <= room else _halved(text, span, room, measure))
    ]
    pieces = [text[begin:end] for begin, end in parts]
    found: list[Span] = []
    filled = 0
    # The white space after a sentence counts only where another one follows in the same window.
    sizes, bare = measure(pieces), measure([piece.rstrip() for piece in pieces])
    for (begin, end), size, least in zip(parts, sizes, bare, strict=True):
        if found and filled + least <= room:
            found[-1], filled = (found[-1][0], end), filled + size
        else:
            found.append((begin, end))
            filled = size
    return [window for begin, end in found if (window := text[begin:end].strip())]


def _sentences(text: str) -> list[Span]:
    """Return where the sentences are; the white space after a sentence is counted to it."""
    begins, place = [], 0
    for sentence in sentences(text):
        begins.append(text.index(sentence, place))
        place = begins[-1] + len(sentence)
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def _halved(text: str, span: Span, room: int, measure: Measure) -> list[Span]:
    begin, end = span
    if end - begin < 2 or measure([text[begin:end]])[0] <= room:
        return [span]
    middle = (begin + end) // 2
    spaces = [place for place in range(begin + 1, end) if text[place].isspace()]
    cut = min(spaces, key=lambda place: abs(place - middle)) if spaces else middle
    return [*_halved(text, (begin, cut), room, measure), *_halved(text, (cut, end), room, measure)]
