"""Assembles results.json and the prediction files of a run from what its systems predicted."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune import baselines, evaluation, processes, significance
from finetune.baselines import Texts
from finetune.data.check import check
from finetune.data.columns import LabelMap, Split
from finetune.evaluation import Predictions
from finetune.metrics import DEFINITIONS
from finetune.run import Run

if TYPE_CHECKING:  # it needs torch, and this file does not
    from finetune.bertscore import Meter

JUDGED_BY = "accuracy"
SAME_FOR_ALL = ("recipe", "task", "model", "definitions", "baseline", "baselines")  # parts of a result that seeds share
KEPT_OF_FIRST = (
    "system", "labels", "language", "judged_on", "rows", "skipped_rows", "skipped_turns", "findings", "resolution",
    "parameters", "signatures", "oracle_extract",
)  # fmt: skip
OF_CHOSEN = ("errors", "written", "summaries", "bertscore")  # diagnostics of the best seed, not of all


@dataclasses.dataclass(frozen=True)
class System:
    """One trained system: its name in sentences, what it predicts on each split, and the seconds its training took.

    The predictions of a split are Predictions, or TextPredictions of a run that writes texts.
    """

    name: str
    predictions: Mapping[str, Any]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """Everything that a run found out, before it is scored, and what measures texts by their meaning, if any does.

    `mattered` is what the worst errors of a classifier rest on, by id (`scoring.mattered`).
    """

    recipe: str
    model: str
    system: System
    baselines: Sequence[System]
    splits: Mapping[str, Split]
    seconds: Mapping[str, float]
    throughput: Mapping[str, float]
    diagnostics: Mapping[str, Any]
    meter: "Meter | None" = None
    mattered: Mapping[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Judging:
    """How the predictions of one kind of run are read back, scored and compared, and the score that chooses a seed.

    `score` and the first sides of `compare` and `parts` take the predictions of several seeds; of `chooses` more is
    better, unless `lower_is_better`. `parts` adds what is told of each language, beside another system if there is one.
    """

    read: Callable[[list[dict[str, Any]]], Any]
    score: Callable[[Any], dict[str, dict[str, float]]]
    compare: Callable[[Any, Any], dict[str, Any]]
    chooses: str
    lower_is_better: bool = False
    parts: Callable[[Any, Any], dict[str, Any]] = lambda predictions, other: {}


def judge(split: Split, targets: np.ndarray, probabilities: np.ndarray, labels: LabelMap) -> Predictions:
    """Turn probabilities, (rows, labels), into decisions: the most probable label, or each label above one half."""
    if labels.multi_label:
        decided = (probabilities >= 0.5).astype(np.int64)
        gold = targets.astype(np.int64)
    else:
        decided, gold = probabilities.argmax(axis=1), targets
    return Predictions(split.ids(), gold, decided, probabilities, labels.names, labels.multi_label)


def predicted_rows(split: Split, probabilities: np.ndarray, labels: LabelMap) -> list[dict[str, Any]]:
    """Return a line for each unlabelled text: id, text, predicted label (multi-label: list), probabilities."""
    nobody_knows = np.zeros(probabilities.shape if labels.multi_label else len(probabilities), dtype=np.int64)
    rows = evaluation.to_rows(judge(split, nobody_knows, probabilities, labels), split.texts(), split.pairs())
    return [{key: value for key, value in row.items() if key != "gold"} for row in rows]


def run_baselines(
    splits: Mapping[str, Split], targets: Mapping[str, np.ndarray], labels: LabelMap, seed: int
) -> list[System]:
    """Train TF-IDF and the majority class on train and let them predict the other splits; cached by content."""
    others = {name: split for name, split in splits.items() if name != "train"}
    texts = {name: Texts(split.texts(), split.pairs()) for name, split in splits.items()}
    tests = {name: texts[name] for name in others}
    tfidf = processes.by_main(
        lambda: baselines.cached_predictions(
            texts["train"], targets["train"], tests, labels.names, multi_label=labels.multi_label, seed=seed
        )
    )
    constant = baselines.majority(targets["train"], labels.names, multi_label=labels.multi_label)
    of_constant = {name: constant.predict_proba(split.texts()) for name, split in others.items()}
    named = ((tfidf.name, tfidf.probabilities, tfidf.seconds), (constant.name, of_constant, 0.0))
    return [
        System(name, {part: judge(others[part], targets[part], found[part], labels) for part in others}, seconds)
        for name, found, seconds in named
    ]


def conclude(run: Run, found: Conclusion) -> dict[str, Any]:
    """Score a run beside its baselines, write results.json and predictions/, and return the results."""
    results = assemble(run, found)
    run.write_results(results)
    return results


def assemble(run: Run, found: Conclusion) -> dict[str, Any]:
    """Score a run beside its baselines, write predictions/, and return what results.json will hold."""
    judged = judged_split(found.system.predictions)
    predictions = found.system.predictions[judged]
    texts = found.splits[judged].texts()
    diagnosis = evaluation.diagnose(predictions, texts)
    for error in diagnosis["errors"]:
        error |= {"mattered": found.mattered[error["id"]]} if error["id"] in found.mattered else {}
    results: dict[str, Any] = {
        "recipe": found.recipe,
        "task": "multi-label classification" if predictions.multi_label else "classification",
        "model": found.model,
        "scores": {name: evaluation.score(part) for name, part in found.system.predictions.items()},
    }
    diagnostics = told(found.system, found.splits, judged) | {"labels": list(predictions.labels)}
    if run.crew.is_main:
        known = LabelMap(tuple(predictions.labels), predictions.multi_label)
        diagnostics["findings"] = [dataclasses.asdict(finding) for finding in check(dict(found.splits), known)]
    diagnostics["resolution"] = significance.resolution(len(predictions.ids))
    if found.baselines:
        strongest = _strongest(found.baselines)
        other = strongest.predictions[judged]
        disagreement = float((predictions.right != other.right).mean())
        diagnostics["resolution"] = significance.resolution(len(predictions.ids), disagreement or 0.1)
        results |= beside(found.baselines, strongest, evaluation.score)
        results["comparison"] = evaluation.compare(predictions, other, metric=JUDGED_BY)
        write_predictions(run, f"baseline.{judged}", other, found.splits[judged])
    results["diagnostics"] = diagnostics | diagnosis | dict(found.diagnostics)
    results["seconds"] = dict(found.seconds)
    results["throughput"] = dict(found.throughput)
    results["definitions"] = {name: DEFINITIONS[name] for name in results["scores"][judged]}
    for name, part in found.system.predictions.items():
        write_predictions(run, name, part, found.splits[name])
    run.write_predictions("errors", diagnosis["errors"])
    return results


def of_labels(labels: Sequence[str]) -> Judging:
    """Return how the predictions of a classification run with these labels are judged."""
    return Judging(
        read=partial(evaluation.from_rows, labels=labels),
        score=evaluation.score,
        compare=partial(evaluation.compare, metric=JUDGED_BY),
        chooses="macro_f1",
    )


def combine(run: Run, seeds: Mapping[int, Run], judging: Judging) -> dict[str, Any]:
    """Join the runs of several seeds into one result, write results.json, and return it."""
    results = combined(seeds, judging)
    run.write_results(results)
    return results


def combined(seeds: Mapping[int, Run], judging: Judging) -> dict[str, Any]:
    """Return the joint result of several seeds: means, intervals over rows, spread over seeds."""
    each = {seed: part.results() for seed, part in seeds.items()}
    first = next(iter(each.values()))
    of_first, judged = first["diagnostics"], first["diagnostics"]["judged_on"]
    read = {name: [judging.read(part.read_predictions(name)) for part in seeds.values()] for name in first["scores"]}
    results = {key: first[key] for key in SAME_FOR_ALL if key in first}
    results["scores"] = {name: judging.score(parts) for name, parts in read.items()}
    other = None
    if "baseline" in first:
        other = judging.read(next(iter(seeds.values())).read_predictions(f"baseline.{judged}"))
        results["comparison"] = judging.compare(read[judged], other)
    results |= judging.parts(read[judged], other)
    sign = -1 if judging.lower_is_better else 1
    chosen = max(each, key=lambda seed: sign * float(each[seed]["scores"]["validation"][judging.chooses]["value"]))
    results["diagnostics"] = {key: of_first[key] for key in KEPT_OF_FIRST if key in of_first}
    results["diagnostics"] |= {"seeds": list(each), "best_seed_on_validation": chosen}
    of_chosen = each[chosen]["diagnostics"]
    results["diagnostics"] |= {key: of_chosen[key] for key in OF_CHOSEN if key in of_chosen}
    results["seeds"] = {str(n): {"scores": part["scores"], "seconds": part["seconds"]} for n, part in each.items()}
    results["seconds"] = {key: sum(part["seconds"][key] for part in each.values()) for key in first["seconds"]}
    rates = first["throughput"]
    results["throughput"] = {key: float(np.mean([part["throughput"][key] for part in each.values()])) for key in rates}
    return results


def told(system: System, splits: Mapping[str, Split], judged: str) -> dict[str, Any]:
    """Return the diagnostics that every run has: who is judged, on what, and how many rows there were."""
    return {
        "system": system.name,
        "judged_on": judged,
        "rows": {name: len(split) for name, split in splits.items()},
        "skipped_rows": {name: split.skipped for name, split in splits.items()},
    }


def beside(systems: Sequence[System], strongest: System, score: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the baselines with the scores of each split, and the strongest of them."""
    described = [
        {
            "name": system.name,
            "scores": {name: score(part) for name, part in system.predictions.items()},
            "seconds": {"train": system.seconds},
        }
        for system in systems
    ]
    return {"baseline": next(one for one in described if one["name"] == strongest.name), "baselines": described}


def judged_split(predictions: Mapping[str, Any]) -> str:
    """Return the split that the verdict speaks of: test where there is one."""
    return "test" if "test" in predictions else "validation"


def _strongest(baselines: Sequence[System]) -> System:
    """Choose the baseline on validation, so that the test set has no say in what it is compared with."""
    return max(baselines, key=lambda system: float(system.predictions["validation"].right.mean()))


def write_predictions(run: Run, name: str, predictions: Predictions, split: Split) -> None:
    """Write predictions/<name>.jsonl with the texts of the split."""
    run.write_predictions(name, evaluation.to_rows(predictions, split.texts(), split.pairs()))
