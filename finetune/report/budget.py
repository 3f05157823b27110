"""Label-budget curves as lines of the terminal and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.report.pictures import Series, curves, save_svg
from finetune.terminal import line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = 8  # columns of a score in the table


def budget_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the curves as a table, a line for each system, and where they cross."""
    rows = [point["rows"] for point in next(iter(found["curves"].values()))]
    wide = 2 + max(len("rows"), *map(len, found["curves"]))
    cells = "".join(f"{number:,}".rjust(NUMBER) for number in rows)
    lines = [line("budget", f"{'rows'.ljust(wide)}{cells}")]
    for name, points in found["curves"].items():
        cells = "".join(f"{point[found['metric']]['value']:.3f}".rjust(NUMBER) for point in points)
        lines.append(line("", f"{name.ljust(wide)}{cells}"))
    lines.append(line("", f"{found['crossing']['sentence']}."))
    return lines


def draw_budget(found: Mapping[str, Any], path: Path) -> None:
    """Write both curves as SVG."""
    figure, told = budget_figure(found)
    save_svg(figure, path, told)


def budget_figure(found: Mapping[str, Any], *, small: bool = False) -> tuple["Figure", str]:
    """Draw both curves over the rows, on a logarithmic axis, with their intervals; return that and it in words.

    `small` is for a page, which says in its own words where the curves cross.
    """
    metric, seeds = found["metric"], len(found["seeds"])
    series = []
    for name, points in found["curves"].items():
        scores = [point[metric] for point in points]
        value, low, high = ([score[key] for score in scores] for key in ("value", "low", "high"))
        series.append(Series(name, [point["rows"] for point in points], value, low, high))
    bands = "mean of " + f"{seeds} seeds" if seeds > 1 else "one seed"
    title = "" if small else f"{found['crossing']['sentence']}"
    x_label = "labelled rows" if small else f"labelled rows ({bands}; bands: 95 % over test rows)"
    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{x:,.0f} rows {y:.3f}" for x, y in zip(line.x, line.y, strict=True))
        for line in series
    )
    return curves(series, title, x_label, metric, "x", small=small), told
