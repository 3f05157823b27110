"""How many labels an expensive system needs: both systems at rising budgets of rows, and where the curves cross.

How a system is trained is the caller's business: `measure` gets a function for each.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune import evaluation
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions
from finetune.terminal import count

METRIC = "accuracy"
SCORES = ("accuracy", "macro_f1")
TrainAndScore = Callable[[int, int], Predictions]  # of so many rows and a seed


@dataclass(frozen=True)
class Plan:
    """The budgets to measure, rising, and why others are left out."""

    budgets: tuple[int, ...]
    left_out: dict[int, str]


@dataclass(frozen=True)
class Contender:
    """A system by its name in sentences, and how it is trained on so many rows with a seed, and scored."""

    name: str
    train: TrainAndScore


def plan(budgets: Sequence[int], labels: Sequence[Sequence[str]]) -> Plan:
    """Keep the budgets that the rows of train allow; `labels` are the labels of each row.

    A budget above the rows, or too small for a row of each label, is left out. Raises UserError (2) where none is kept,
    and for a budget that is given twice.
    """
    if len(set(budgets)) < len(budgets):
        raise UserError(Exit.USAGE, f"label_budget={list(budgets)}: a budget is given twice")
    rows, names = len(labels), len({name for names in labels for name in names})
    left_out = {}
    for budget in sorted(budgets):
        if budget > rows:
            left_out[budget] = f"train has {count(rows, 'row')}"
        elif budget < names:
            left_out[budget] = f"train has {count(names, 'label')}, which need a row each"
    kept = tuple(budget for budget in sorted(budgets) if budget not in left_out)
    if not kept:
        what = f"label_budget={list(budgets)}: train has {count(rows, 'row')} and {count(names, 'label')}"
        raise UserError(Exit.USAGE, f"{what}; give budgets from {names:,} to {rows:,}")
    return Plan(kept, left_out)


def measure(planned: Plan, seeds: Sequence[int], expensive: Contender, baseline: Contender) -> dict[str, Any]:
    """Train both systems at each budget with each seed, and return curves, comparisons and the crossing.

    {"metric", "seeds", "left_out", "curves": {name: [{"rows", "accuracy", "macro_f1", "by_seed"}]}, "comparisons":
    [{"rows", ...}], "crossing"}. Scores are means over seeds with intervals over the test rows and the spread "sd" over
    seeds, which draw other rows too. A comparison is positive where the expensive system is better; the intervals of
    all budgets are widened by Holm's method.
    """
    found = {
        system.name: {rows: [system.train(rows, seed) for seed in seeds] for rows in planned.budgets}
        for system in (expensive, baseline)
    }
    pairs = {str(rows): (found[expensive.name][rows], found[baseline.name][rows]) for rows in planned.budgets}
    compared = evaluation.compare_all(pairs, metric=METRIC)
    comparisons = [{"rows": rows, **compared[str(rows)]} for rows in planned.budgets]
    return {
        "metric": METRIC,
        "seeds": list(seeds),
        "left_out": {str(rows): reason for rows, reason in planned.left_out.items()},
        "curves": {
            name: [_point(rows, seeds, parts) for rows, parts in by_rows.items()] for name, by_rows in found.items()
        },
        "comparisons": comparisons,
        "crossing": crossing(comparisons, expensive.name, baseline.name),
    }


def crossing(comparisons: Sequence[Mapping[str, Any]], expensive: str, baseline: str) -> dict[str, Any]:
    """Return from which budget the expensive system is better, and where the curves cross.

    {"better_from", "point", "sentence"}: `better_from` is the smallest budget at which, and at every larger one, the
    verdict is `better`; `point` is where the difference turns positive for good, interpolated between the two budgets
    around it on the logarithm of rows. Either is None where there is none. `comparisons` rise in "rows".
    """
    streak = list(itertools.takewhile(lambda one: one["verdict"] == "better", reversed(comparisons)))
    better_from = streak[-1]["rows"] if streak else None
    point = _turn([(float(one["rows"]), float(one["difference"])) for one in comparisons])
    most = comparisons[-1]["rows"]
    near = "" if point is None else f"; the curves cross near {point:,.0f} rows"
    if better_from == comparisons[0]["rows"]:
        sentence = f"{expensive} is better than {baseline} from the first budget, {count(better_from, 'row')}"
    elif better_from is not None:
        sentence = f"{expensive} overtakes {baseline} from {count(better_from, 'row')}{near}"
    else:
        sentence = f"{expensive} is never shown to be better than {baseline} within {count(most, 'row')}{near}"
    return {"better_from": better_from, "point": point, "sentence": sentence}


def _turn(differences: Sequence[tuple[float, float]]) -> float | None:
    """Return where (rows, difference) rises above 0 to stay there; None where it never does, or is from the first."""
    for (few, before), (many, after) in reversed(list(itertools.pairwise(differences))):
        if after <= 0:
            return None
        if before <= 0:
            share = -before / (after - before)
            return math.exp(math.log(few) + share * (math.log(many) - math.log(few)))
    return None


def _point(rows: int, seeds: Sequence[int], parts: list[Predictions]) -> dict[str, Any]:
    scores = evaluation.score(parts)
    by_seed = {str(seed): float(part.right.mean()) for seed, part in zip(seeds, parts, strict=True)}
    return {"rows": rows, **{name: scores[name] for name in SCORES}, "by_seed": by_seed}
