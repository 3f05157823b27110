"""Assembles results.json and the prediction files of a run from what its systems predicted."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune import baselines, evaluation, significance
from finetune.baselines import Texts
from finetune.data.columns import LabelMap, Split
from finetune.evaluation import Predictions
from finetune.metrics import DEFINITIONS
from finetune.run import Run

JUDGED_BY = "accuracy"


@dataclasses.dataclass(frozen=True)
class System:
    """One trained system: its name in sentences, what it predicts on each split, and the seconds its training took."""

    name: str
    predictions: Mapping[str, Predictions]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """Everything that a classification run found out, before it is scored."""

    recipe: str
    model: str
    system: System
    baselines: Sequence[System]
    splits: Mapping[str, Split]
    seconds: Mapping[str, float]
    throughput: Mapping[str, float]
    diagnostics: Mapping[str, Any]


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
    tfidf = baselines.cached_predictions(
        texts["train"], targets["train"], tests, labels.names, multi_label=labels.multi_label, seed=seed
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
    judged = judged_split(found.system.predictions)
    predictions = found.system.predictions[judged]
    texts = found.splits[judged].texts()
    diagnosis = evaluation.diagnose(predictions, texts)
    results: dict[str, Any] = {
        "recipe": found.recipe,
        "task": "multi-label classification" if predictions.multi_label else "classification",
        "model": found.model,
        "scores": {name: evaluation.score(part) for name, part in found.system.predictions.items()},
    }
    diagnostics: dict[str, Any] = {"system": found.system.name, "labels": list(predictions.labels), "judged_on": judged}
    diagnostics["rows"] = {name: len(split) for name, split in found.splits.items()}
    diagnostics["skipped_rows"] = {name: split.skipped for name, split in found.splits.items()}
    diagnostics["resolution"] = significance.resolution(len(predictions.ids))
    if found.baselines:
        strongest = _strongest(found.baselines)
        disagreement = float((predictions.right != strongest.predictions[judged].right).mean())
        diagnostics["resolution"] = significance.resolution(len(predictions.ids), disagreement or 0.1)
        results |= _beside(found, strongest, judged)
        _write_predictions(run, f"baseline.{judged}", strongest.predictions[judged], found.splits[judged])
    results["diagnostics"] = diagnostics | diagnosis | dict(found.diagnostics)
    results["seconds"] = dict(found.seconds)
    results["throughput"] = dict(found.throughput)
    results["definitions"] = {name: DEFINITIONS[name] for name in results["scores"][judged]}
    for name, part in found.system.predictions.items():
        _write_predictions(run, name, part, found.splits[name])
    run.write_predictions("errors", diagnosis["errors"])
    run.write_results(results)
    return results


def combine(run: Run, seeds: Mapping[int, Run]) -> dict[str, Any]:
    """Join the runs of several seeds into one result: means, intervals over rows, spread over seeds."""
    each = {seed: part.results() for seed, part in seeds.items()}
    first = next(iter(each.values()))
    names = list(first["scores"])
    judged, labels = first["diagnostics"]["judged_on"], first["diagnostics"]["labels"]
    read = {
        name: [evaluation.from_rows(part.read_predictions(name), labels) for part in seeds.values()] for name in names
    }
    results = {key: first[key] for key in ("recipe", "task", "model")}
    results["scores"] = {name: evaluation.score(parts) for name, parts in read.items()}
    if "baseline" in first:
        rows = next(iter(seeds.values())).read_predictions(f"baseline.{judged}")
        baseline = evaluation.from_rows(rows, labels)
        results |= {"baseline": first["baseline"], "baselines": first["baselines"]}
        results["comparison"] = evaluation.compare(read[judged], baseline, metric=JUDGED_BY)
    chosen = max(each, key=lambda seed: each[seed]["scores"].get("validation", {}).get("macro_f1", {}).get("value", 0))
    kept = ("system", "labels", "judged_on", "rows", "resolution", "baseline_seconds", "parameters")
    results["diagnostics"] = {key: first["diagnostics"][key] for key in kept if key in first["diagnostics"]}
    results["diagnostics"] |= {"seeds": list(each), "best_seed_on_validation": chosen}
    results["diagnostics"]["errors"] = each[chosen]["diagnostics"]["errors"]
    results["seeds"] = {
        str(seed): {"scores": part["scores"], "seconds": part["seconds"]} for seed, part in each.items()
    }
    results["seconds"] = {key: sum(part["seconds"][key] for part in each.values()) for key in first["seconds"]}
    results["throughput"] = {
        key: float(np.mean([part["throughput"][key] for part in each.values()])) for key in first["throughput"]
    }
    results["definitions"] = first["definitions"]
    run.write_results(results)
    return results


def judged_split(predictions: Mapping[str, Any]) -> str:
    """Return the split that the verdict speaks of: test where there is one."""
    return "test" if "test" in predictions else "validation"


def _strongest(baselines: Sequence[System]) -> System:
    """Choose the baseline on validation, so that the test set has no say in what it is compared with."""
    return max(baselines, key=lambda system: float(system.predictions["validation"].right.mean()))


def _beside(found: Conclusion, strongest: System, judged: str) -> dict[str, Any]:
    described = [
        {
            "name": system.name,
            "scores": {name: evaluation.score(part) for name, part in system.predictions.items()},
            "seconds": {"train": system.seconds},
        }
        for system in found.baselines
    ]
    comparison = evaluation.compare(found.system.predictions[judged], strongest.predictions[judged], metric=JUDGED_BY)
    chosen = next(part for part in described if part["name"] == strongest.name)
    return {"baseline": chosen, "baselines": described, "comparison": comparison}


def _write_predictions(run: Run, name: str, predictions: Predictions, split: Split) -> None:
    run.write_predictions(name, evaluation.to_rows(predictions, split.texts(), split.pairs()))
