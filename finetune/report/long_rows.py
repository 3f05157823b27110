"""Rows above the longest length: one record for every recipe, what a page tells of it, and what is advised."""

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.terminal import count

DONE = {"truncate": "cut", "window": "read in windows", "error": "refused", "skip": "left out"}
MANY_CUT = 0.01  # of the rows of a split


def record(
    noun: str, rows: Mapping[str, int], limits: Mapping[str, int], on_long: str, done: Mapping[str, str] = DONE
) -> dict[str, Any]:
    """Return what results.json keeps under long_rows of one kind of thing: {noun, rows, limits, on_long, done}.

    `rows` are how many are too long in each split, `limits` the settings that they are above, in tokens; `done` says
    what is done by each on_long. Rows are skipped in train alone: elsewhere all are scored, cut.
    """
    ways = {name: done["truncate" if on_long == "skip" and name != "train" else on_long] for name in rows}
    return {"noun": noun, "rows": dict(rows), "limits": dict(limits), "on_long": on_long, "done": ways}


def limits_text(one: Mapping[str, Any], times: int = 1, joint: str = " or ") -> str:
    """Return the settings of a record, as they were or `times` as long: `max_length=128`."""
    return joint.join(f"{name}={times * limit}" for name, limit in one["limits"].items())


def findings(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (level, sentence) of all that diagnostics know of long rows."""
    for one in told.get("long_rows", []):
        noun, level = one["noun"], "good" if one["on_long"] == "window" else "warning"
        for name, number in one["rows"].items():
            if number:
                yield level, f"{count(number, f'{name} {noun}')} above {limits_text(one)}: {one['done'][name]}"
        if not any(one["rows"].values()):
            yield "good", f"no {noun} is above {limits_text(one)}"


def advised(told: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (what to do, why, command) where more than a few rows of a split were not read whole."""
    rows = told["rows"]
    for one in told.get("long_rows", []):
        counted = {name: number for name, number in one["rows"].items() if name in rows}
        cut = {name: number for name, number in counted.items() if number > MANY_CUT * rows[name]}
        if cut and one["on_long"] != "window":
            which = ", ".join(f"{number:,} of {rows[name]:,} {name} {one['noun']}s" for name, number in cut.items())
            windows = " or data.on_long=window" if one["noun"] == "text" else ""
            what, why = f"Read long {one['noun']}s whole", f"above {limits_text(one)}: {which}."
            yield what, why, limits_text(one, 2, " ") + windows
