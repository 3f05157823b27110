"""Pictures as SVG: alignment maps, heat maps, curves and intervals, the same bytes for the same figures.

matplotlib is imported by what draws, so that nothing else waits for it; figures are made without pyplot, which would
ask for a screen and keep them.
"""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr, unescape

import numpy as np

from finetune.run import write_atomic
from finetune.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow that fades on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>"
STYLES = ("-", "--", ":", "-.")
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: searchable, in the reader's fonts, which know more scripts than ours
    "svg.hashsalt": "finetune",  # names inside the file come from this instead of from chance
    "text.parse_math": False,  # a price of $5 or $6 is no formula
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
}
POINTS = 72.0  # an inch
CELL = 0.3  # inches
NUMBERED_CELLS = 40  # tokens a side up to which the shares are also written as numbers
LEAST_NUMBERED = 0.095
LEAST_DRAWN = 0.005  # white on white; leaving it out keeps the file small
LONGEST_TOKEN = 24  # characters of a tick's text
LOG_TICKS = 12
MAP_CELL = (0.62, 0.36)  # inches of a cell of a heat map, for a number of three digits
WHITE_ON = 0.72  # of the colour scale: below it black has the stronger contrast
INK = "#111111"  # on the shades of a map, which a dark page does not change
PIXELS = 4 / 3  # a point
ROW = 0.3  # inches of an interval
SMALL = (4.2, 2.8)  # inches of curves that a phone can show
BAR = 0.13  # inches of a bar
MAP = 0.75  # inches of the attention of a head, with what parts it from the next
BETWEEN_MAPS = 0.08  # of a map's side
RASTER = 200  # pixels an inch of a PNG
NARROW = 3.6  # inches of intervals, whose names stand beside them
ADAPTED = {  # what a page in the dark sees otherwise
    "#000000": "currentColor",
    "#e6e6e6": "var(--grid, #e6e6e6)",
    "#0072b2": "var(--first, #0072b2)",
    "#d55e00": "var(--second, #d55e00)",
}
Score = tuple[float, float, float]  # value, and the ends of its interval


Grid = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Series:
    """One line of a plot: y at each x, and the interval [low, high] around it where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def save_svg(figure: "Figure", path: Path | str, description: str = "") -> None:
    """Write a figure as SVG on a white ground, which a dark page needs too; its label becomes the file's title.

    `description` is for those who hear the picture instead of seeing it (the SVG's `desc`).
    """
    text = _svg(figure, facecolor="white")
    if description:
        told = f" <desc>{escape(printable(description))}</desc>\n"
        text = re.sub(r"<svg[^>]*>\n(?: <title>[^<]*</title>\n)?", lambda head: head.group() + told, text, count=1)
    write_atomic(Path(path), text.encode())


def save(figure: "Figure", path: Path | str, description: str = "") -> None:
    """Write a figure as what its name ends in: `.png`, else SVG."""
    if Path(path).suffix.lower() != ".png":
        return save_svg(figure, path, description)
    written = io.BytesIO()
    with _drawing():
        title = {"Title": figure.get_label(), "Description": printable(description), "Software": None}
        figure.savefig(written, format="png", dpi=RASTER, bbox_inches="tight", metadata=title, facecolor="white")
    return write_atomic(Path(path), written.getvalue())


def inline(figure: "Figure", description: str) -> str:
    """Return a figure as an `svg` element of a page, without a ground: black is the page's own ink.

    `description` is its alternative text. Names inside it are its own, so that a page may hold several.
    """
    text = _svg(figure, transparent=True)
    width, height = (float(side) for side in re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2])
    text = text[text.index("\n", text.index("<svg")) + 1 :]
    text = re.sub(r" <metadata>.*?</metadata>\n|<style.*?</style>| <title>.*?</title>\n", "", text, flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), text)
    own = "p" + hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    names = {name for pair in used for name in pair if name}
    text = re.sub(r' id="([^"]+)"', lambda one: f' id="{own}{one[1]}"' if one[1] in names else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{own}", text)
    for colour, adapted in ADAPTED.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: {adapted}", text)
    text = text.replace("stroke: #ffffff", "stroke: var(--paper, #ffffff)")  # between the cells of a map
    size = f'viewBox="0 0 {width:g} {height:g}" width="{PIXELS * width:.0f}"'
    told = quoteattr(printable(description))
    return f'<svg role="img" aria-label={told} {size}>\n{text}'


def description(svg: str) -> str:
    """Return what a stored SVG says of itself: its `desc`, else its title, else nothing."""
    found = re.search(r"<desc>([^<]*)</desc>", svg) or re.search(r"<title>([^<]*)</title>", svg)
    return unescape(found[1]).strip() if found else ""


def intervals(
    groups: Mapping[str, Mapping[str, Score]], x_label: str, *, at: float | None = None, digits: int = 3
) -> "Figure":
    """Draw scores with their intervals on one axis: group -> system -> (value, low, high).

    One group has a row for each system, several have a row for each group and a colour for each system. `at` draws a
    line, at no difference for example; `digits` are those of the numbers.
    """
    systems = list(dict.fromkeys(name for of_group in groups.values() for name in of_group))
    alone = len(groups) == 1
    ticks = systems if alone else list(groups)
    height = ROW * (1.4 * len(systems) if alone else sum(max(1.3, 0.55 * len(each) + 0.5) for each in groups.values()))
    with _drawing():
        axes = _axes(NARROW, height, (0, 0, 1, 1), "")
        if at is not None:
            axes.axvline(at, color="0.5", linewidth=1, linestyle=(0, (4, 3)))
        for number, system in enumerate(systems):
            places, found = [], []
            for place, of_group in enumerate(groups.values()):
                if system in of_group:
                    places.append(number if alone else place + _beside(number, len(systems)))
                    found.append(of_group[system])
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            value, low, high = (np.array(column) for column in zip(*found, strict=True))
            errors = np.maximum(0, [value - low, high - value])
            axes.errorbar(value, places, xerr=errors, label=printable(system), capsize=3, ls="", lw=2, ms=6, **look)
            if alone:
                axes.annotate(
                    _told(found[0], digits),
                    (found[0][0], number),
                    (0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        axes.set_yticks(range(len(ticks)), [_short(name) for name in ticks])
        axes.set_ylim(len(ticks) - 0.5, -0.8 if alone else -0.5)
        axes.margins(x=0.16 if alone else 0.05)
        axes.set_xlabel(x_label)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if not alone and len(systems) > 1:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return axes.get_figure(root=True)  # type: ignore[return-value]


def intervals_in_words(groups: Mapping[str, Mapping[str, Score]], digits: int = 3) -> str:
    """Return what `intervals` shows, for those who cannot see it."""
    told = []
    for name, of_group in groups.items():
        cells = ", ".join(f"{system} {_told(score, digits)}" for system, score in of_group.items())
        told.append(f"{name}: {cells}" if name else cells)
    return "; ".join(told)


def alignment(source_tokens: Sequence[str], target_tokens: Sequence[str], weights: Any, title: str) -> "Figure":
    """Draw how much each target token looked at each source token: weights (target, source), source on top."""
    shares = np.asarray(weights, dtype=float)
    if shares.shape != (len(target_tokens), len(source_tokens)):
        raise ValueError(f"weights {shares.shape} for {len(target_tokens)} target and {len(source_tokens)} source")
    with _drawing():
        # The cells fill the figure and everything else lies around it, so a cell's size is exact in any picture.
        axes = _axes(CELL * len(source_tokens), CELL * len(target_tokens), (0, 0, 1, 1), title)
        rows, columns = np.nonzero(shares >= LEAST_DRAWN)
        side = POINTS * CELL - 1  # points; the missing one is the line between two cells
        axes.scatter(columns, rows, s=side**2, c=shares[rows, columns], cmap="Blues", vmin=0, vmax=1, marker="s", lw=0)
        if max(shares.shape) <= NUMBERED_CELLS:
            _write_shares(axes, shares)
        axes.set(xlim=(-0.5, len(source_tokens) - 0.5), ylim=(len(target_tokens) - 0.5, -0.5))
        axes.set_xticks(range(len(source_tokens)), [_short(token) for token in source_tokens], rotation=90)
        axes.set_yticks(range(len(target_tokens)), [_short(token) for token in target_tokens])
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xlabel("% of the attention of each row's token", fontsize=7)
        for spine in axes.spines.values():
            spine.set_color("0.8")
    return axes.get_figure(root=True)  # type: ignore[return-value]


def bars(names: Sequence[str], values: Mapping[str, Sequence[float | None]], x_label: str, title: str) -> "Figure":
    """Draw signed values of each name, from the top, as bars to both sides of 0; a colour for each kind of value."""
    with _drawing():
        axes = _axes(NARROW, BAR * len(names) * len(values) + ROW, (0, 0, 1, 1), title)
        axes.axvline(0, color="0.5", linewidth=1)
        for number, (kind, of_kind) in enumerate(values.items()):
            places = [row + _beside(number, len(values)) for row in range(len(names))]
            widths = [0.0 if value is None else value for value in of_kind]
            axes.barh(places, widths, 0.8 / len(values), label=kind, color=COLOURS[number % len(COLOURS)])
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(printable(x_label))
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if len(values) > 1:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return axes.get_figure(root=True)  # type: ignore[return-value]


def head_maps(weights: np.ndarray, title: str) -> "Figure":
    """Draw the attention of every head, (layers, heads, tokens, tokens), as a table of maps: a row for each layer.

    In a map a row is a token that looks, a column what it looks at.
    """
    from matplotlib.colors import PowerNorm

    layers, heads, size, _ = weights.shape
    step = size + max(1, round(size * BETWEEN_MAPS))
    whole = np.full((layers * step, heads * step), np.nan)
    for layer, head in np.ndindex(layers, heads):
        top, left = layer * step, head * step
        whole[top : top + size, left : left + size] = weights[layer, head]
    with _drawing():
        axes = _axes(MAP * heads, MAP * layers, (0, 0, 1, 1), title)
        axes.imshow(whole, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="none", aspect="equal")
        axes.set_xticks(
            (np.arange(heads) + 0.5) * step - (step - size) / 2 - 0.5, [str(head + 1) for head in range(heads)]
        )
        axes.set_yticks(
            (np.arange(layers) + 0.5) * step - (step - size) / 2 - 0.5, [str(layer + 1) for layer in range(layers)]
        )
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.set(ylabel="layer", xlabel="head; a row of a map looks at its columns, darker is more (square root)")
        axes.spines[:].set_visible(False)
    return axes.get_figure(root=True)  # type: ignore[return-value]


def plane(
    points: np.ndarray, names: Sequence[str], groups: Sequence[int], axis_labels: Sequence[str], title: str
) -> "Figure":
    """Draw points (n, 2) with a colour and a shape for each group; their names stand at both sides, joined by lines."""
    with _drawing():
        rows = (len(names) + 1) // 2
        axes = _axes(NARROW, max(SMALL[1], ROW * rows), (0, 0, 1, 1), title)
        for number in sorted(set(groups)):
            own = points[np.array(groups) == number]
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.scatter(own[:, 0], own[:, 1], label=f"group {number + 1}", s=40, zorder=3, **look)
        by_side = np.argsort(points[:, 0], kind="stable")
        for left, side in ((True, by_side[:rows]), (False, by_side[rows:])):
            heights = np.linspace(0.97, 0.03, len(side)) if len(side) > 1 else [0.5]
            for place, height in zip(side[np.argsort(-points[side, 1], kind="stable")], heights, strict=True):
                arrow = {
                    "arrowstyle": "-",
                    "color": "0.75",
                    "linewidth": 0.7,
                    "shrinkB": 3,
                    "relpos": (1.0 if left else 0.0, 0.5),
                }
                colour = COLOURS[groups[place] % len(COLOURS)]
                axes.annotate(
                    printable(names[place]), points[place], (-0.04 if left else 1.04, height), "data", "axes fraction",
                    arrow, ha="right" if left else "left", va="center", fontsize=8, color=colour,
                )  # fmt: skip
        axes.margins(0.12)
        axes.set(xlabel=axis_labels[0], ylabel="")
        axes.set_title(axis_labels[1], loc="right", fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("0.8")
        if len(set(groups)) > 1:
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(set(groups)))
    return axes.get_figure(root=True)  # type: ignore[return-value]


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Grid, title: str, bar: str = "") -> "Figure":
    """Draw a table of fractions, darker where they are higher, with the number in each cell; None stays empty.

    `values` is (rows, columns); the scale runs from the least to the largest of them, and `bar` says of what. Grey
    print keeps the order of the shades.
    """
    grid = _grid(rows, columns, values)
    least, most = _scale(grid)
    with _drawing():
        width, height = (side * count for side, count in zip(MAP_CELL, reversed(grid.shape), strict=True))
        axes = _axes(width, height, (0, 0, 1, 1), title)
        axes.pcolormesh(grid, cmap="Blues", vmin=least, vmax=most, edgecolors="white", linewidth=1.5)
        axes.set(xlim=(0, grid.shape[1]), ylim=(grid.shape[0], 0))
        for row, column in zip(*np.nonzero(np.isfinite(grid)), strict=True):
            shade = (grid[row, column] - least) / (most - least)
            place: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 8}
            number = f"{grid[row, column]:.3f}"
            axes.text(column + 0.5, row + 0.5, number, color="white" if shade > WHITE_ON else INK, **place)
        axes.set_xticks(np.arange(grid.shape[1]) + 0.5, [_short(name) for name in columns])
        axes.set_yticks(np.arange(grid.shape[0]) + 0.5, [_short(name) for name in rows])
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.set_title(printable(title), loc="left", pad=8)
        if bar:
            axes.set_xlabel(printable(bar), fontsize=7)
    return axes.get_figure(root=True)  # type: ignore[return-value]


def heat_map_in_words(rows: Sequence[str], columns: Sequence[str], values: Grid) -> str:
    """Return what a heat map shows, row by row, for those who cannot see it."""
    grid = _grid(rows, columns, values)
    told = []
    for name, of_row in zip(rows, grid, strict=True):
        cells = [f"{column} {value:.3f}" for column, value in zip(columns, of_row, strict=True) if np.isfinite(value)]
        told.append(f"{name}: {', '.join(cells) or 'nothing'}")
    return "; ".join(told)


def curves_in_words(series: Sequence[Series]) -> str:
    """Return what curves show, for those who cannot see them: where each begins and ends."""
    told = []
    for line in series:
        ends = sorted({0, len(line.x) - 1})
        told.append(f"{line.name}: " + " to ".join(f"{line.y[place]:.3f} at {line.x[place]:,g}" for place in ends))
    return "; ".join(told)


def curves(
    series: Sequence[Series], title: str, x_label: str, y_label: str, logarithmic: str = "", *, small: bool = False
) -> "Figure":
    """Draw lines with their intervals as bands; `logarithmic` names the axes that are: x, y or xy.

    `small` is for a page that phones show.
    """
    from matplotlib.ticker import MaxNLocator

    with _drawing():
        axes = _axes(*SMALL, (0, 0, 1, 1), title) if small else _axes(6.4, 4.0, (0.1, 0.12, 0.85, 0.78), title)
        if "x" in logarithmic:
            axes.set_xscale("log")
            _name_ticks(axes, sorted({float(x) for line in series for x in line.x}))
        elif all(isinstance(x, int) for line in series for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        if "y" in logarithmic:
            axes.set_yscale("log")
        for number, line in enumerate(series):
            look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            axes.plot(line.x, line.y, label=line.name, linestyle=style, markersize=4, **look)  # type: ignore[arg-type]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.15, linewidth=0)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:  # never on the lines
            place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
            if small:
                place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
            axes.legend(frameon=False, **place)
    return axes.get_figure(root=True)  # type: ignore[return-value]


@contextmanager
def _drawing() -> Iterator[None]:
    """Give matplotlib our settings alone, whatever the user's own are, and keep it quiet."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of caches and fonts on stderr
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **SETTINGS}
    settings.pop("backend")  # asked for, it would look for a screen
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A glyph that our font lacks is drawn by the reader's: only its width is guessed.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _axes(width: float, height: float, place: tuple[float, float, float, float], title: str) -> "Axes":
    """Return the one pair of axes of a new figure: inches, and place as left, bottom, width, height in shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), label=printable(title))
    axes = figure.add_axes(place)
    axes.set_title(printable(title), loc="left")
    return axes


def _svg(figure: "Figure", **ground: Any) -> str:
    """Return a figure as a file of SVG; `ground` says what lies behind it, in the words of `savefig`."""
    described: dict[str, Any] = {"Date": None, "Creator": None}
    described |= {"Title": figure.get_label()} if figure.get_label() else {}  # matplotlib takes no None here
    written = io.BytesIO()
    with _drawing():
        figure.savefig(written, format="svg", bbox_inches="tight", metadata=described, **ground)
    return "\n".join(line.rstrip() for line in written.getvalue().decode().splitlines()) + "\n"


def _beside(number: int, systems: int) -> float:
    """Return how far the row of a system lies below the middle of its group's."""
    return 0.5 * (number - (systems - 1) / 2) / max(1, systems - 1) if systems > 1 else 0.0


def _told(score: Score, digits: int) -> str:
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*score, d=digits)


def _grid(rows: Sequence[str], columns: Sequence[str], values: Grid) -> np.ndarray:
    """Return values as (rows, columns) with nan for None; raises ValueError where they are of another shape."""
    grid = np.array([[np.nan if value is None else value for value in of_row] for of_row in values], dtype=float)
    if grid.shape != (len(rows), len(columns)):
        raise ValueError(f"values {grid.shape} for {len(rows)} rows and {len(columns)} columns")
    return grid


def _scale(grid: np.ndarray) -> tuple[float, float]:
    """Return the ends of the colour scale; a table of one value, or of none, has a scale too."""
    seen = grid[np.isfinite(grid)]
    least, most = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    return (least, most) if most > least else (least - 1.0, most)


def _write_shares(axes: "Axes", shares: np.ndarray) -> None:
    """Write the larger shares (target, source) into their cells, in percent."""
    for row, column in zip(*np.nonzero(shares >= LEAST_NUMBERED), strict=True):
        share = shares[row, column]
        place: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 7}
        axes.text(column, row, f"{100 * share:.0f}", color="white" if share > 0.55 else "black", **place)


def _name_ticks(axes: "Axes", values: Sequence[float]) -> None:
    """Put plain numbers on a logarithmic x axis: 4 8 16 where these were measured, instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    if len(values) <= LOG_TICKS:
        axes.set_xticks(values)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _short(token: str) -> str:
    token = printable(token)  # XML has no place for control characters
    return token if len(token) <= LONGEST_TOKEN else token[: LONGEST_TOKEN - 1] + "…"
