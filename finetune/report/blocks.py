"""What a page is made of: sections of pictures, tables, facts, texts and commands, before they are HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    kind: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Picture:
    """An SVG of our own (`pictures.inline`), with what stands below it."""

    kind: ClassVar[str] = "picture"
    svg: str
    caption: str


@dataclass(frozen=True)
class Image:
    """An SVG file of a run, with what stands below it; as an image it can only be looked at, or told (`alt`)."""

    kind: ClassVar[str] = "image"
    svg: str
    told: str
    alt: str


Marks = Sequence[tuple[str, float]]  # pieces of a text, each with how much it speaks for something: -1 to 1, 0: nothing


@dataclass(frozen=True)
class Marked:
    """A text of which some words speak for something, and others against it."""

    kind: ClassVar[str] = "marked"
    marks: Marks


@dataclass(frozen=True)
class Cell:
    """A cell of a table: `sort` is what its column is sorted by, `share` (0 to 1) how dark, `wrong` in which colour.

    `marks` stand in the place of the text.
    """

    text: str
    sort: float | str | None = None
    share: float | None = None
    wrong: bool = False
    marks: Marks = ()


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; `numbers` are the columns that are set to the right.

    A `dense` one has narrow columns under upright names.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    sortable: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Facts:
    """Names with what they are."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Findings:
    """What the data doctor would say: ("good" or "warning", sentence)."""

    kind: ClassVar[str] = "findings"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """A command, under what it is for."""

    kind: ClassVar[str] = "code"
    told: str
    text: str


@dataclass(frozen=True)
class Example:
    """A text with the texts beside it: ((who, what), ...)."""

    kind: ClassVar[str] = "example"
    name: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that are looked up and not read: closed until they are asked for, open on paper."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Any]
