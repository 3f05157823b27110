"""What people read in the terminal: numbers and times in words, and lines on stderr."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich costs 0.1 s, which `finetune --help` does not have
    from rich.progress import Progress

HEAD_WIDTH = 10
NO_SHARES = frozenset({"loss", "perplexity", "bits_per_byte"})  # told as they are, not in points; lower is better


def line(head: str, text: str) -> str:
    """Return `text` behind its head word, further lines indented to the same column."""
    return f"{head} ".ljust(HEAD_WIDTH) + text.replace("\n", "\n" + " " * HEAD_WIDTH)


def say(text: str) -> None:
    """Write one line for the person on stderr; stdout is kept for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return seconds as people say them: `14 s`, `3 min 10 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Return a number of bytes with its unit: `91 MB`, `1.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the right form: `1 text`, `14 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def interval(score: Mapping[str, float]) -> str:
    """Return a score as `0.934 [0.925, 0.943]`."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def points(fraction: float) -> str:
    """Return a difference of fractions in points with its sign: `+2.3`."""
    return f"{100 * fraction:+.1f}"


def is_percentage(metric: str) -> bool:
    """Tell whether a metric runs from 0 to 100 (BLEU and its kin) and not from 0 to 1."""
    return metric in {"bleu", "chrf", "ter"} or metric.startswith("rouge")


def shown(metric: str, score: Mapping[str, float]) -> str:
    """Return a score in the digits of its metric: `38.2 [36.9, 39.6]` or `0.934 [0.925, 0.943]`."""
    if not is_percentage(metric):
        return interval(score)
    return f"{score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"


def difference(comparison: Mapping[str, Any]) -> str:
    """Return a comparison's difference with its interval in points of its metric: `+2.3 points of chrf [1.3, 3.4]`."""
    (value, low, high), unit, digits = measured(comparison)
    if comparison["metric"] not in NO_SHARES:
        return f"{value:+.{digits}f} {unit} [{low:.{digits}f}, {high:.{digits}f}]"
    if value < 0:  # positive is better: lower by so much
        return f"{unit} higher by {-value:.{digits}f} [{-high:.{digits}f}, {-low:.{digits}f}]"
    return f"{unit} lower by {value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def measured(comparison: Mapping[str, Any]) -> tuple[tuple[float, float, float], str, int]:
    """Return a comparison's difference with the ends of its interval, their unit (`points of chrf`), and its digits."""
    metric = comparison["metric"]
    scale = 1 if is_percentage(metric) or metric in NO_SHARES else 100
    value, low, high = (scale * float(comparison[key]) for key in ("difference", "low", "high"))
    unit, digits = (metric, 3) if metric in NO_SHARES else (f"points of {metric}", 1)
    return (value, low, high), unit, digits


def is_coloured() -> bool:
    """Tell whether what is printed may have colours: stdout is a terminal, and nobody said NO_COLOR."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return a text with what a terminal or a picture would obey instead of show, written out: `\\x1b`, `\\u200f`."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def p_value(p: float) -> str:
    """Return a p-value as it is written in papers."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def progress(shown: bool = True) -> "Progress":
    """Return a progress bar with rates and time left; it stays silent where not `shown` or stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
