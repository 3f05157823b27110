"""Assembles results.json and the prediction files of a run that writes texts: the sibling of results.py."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune import text_baselines, text_evaluation, text_metrics
from finetune.data.columns import Split
from finetune.report.results import judged_split
from finetune.run import Run
from finetune.text_evaluation import Task, TextPredictions


@dataclasses.dataclass(frozen=True)
class TextSystem:
    """One system: its name in sentences, what it writes for each split, and the seconds that its training took."""

    name: str
    predictions: Mapping[str, TextPredictions]
    seconds: float


@dataclasses.dataclass(frozen=True)
class TextConclusion:
    """Everything that a run found out, before it is scored."""

    recipe: str
    model: str
    task: Task
    system: TextSystem
    baselines: Sequence[TextSystem]
    splits: Mapping[str, Split]
    seconds: Mapping[str, float]
    throughput: Mapping[str, float]
    diagnostics: Mapping[str, Any]


def judge(split: Split, predicted: list[str], confidence: list[float] | None = None) -> TextPredictions:
    """Put what a system wrote beside the references of a split."""
    return TextPredictions(split.ids(), split.sources(), split.references(), predicted, confidence)


def run_baselines(task: Task, splits: Mapping[str, Split]) -> list[TextSystem]:
    """Make the cheap systems of a task from train and let them answer the other splits."""
    return [
        TextSystem(
            found.name, {name: judge(splits[name], texts) for name, texts in found.predicted.items()}, found.seconds
        )
        for found in text_baselines.answer(task.name, splits)
    ]


def conclude(run: Run, found: TextConclusion) -> dict[str, Any]:
    """Score a run beside its baselines, write results.json and predictions/, and return the results."""
    judged = judged_split(found.system.predictions)
    predictions = found.system.predictions[judged]
    results: dict[str, Any] = {
        "recipe": found.recipe,
        "task": found.task.name,
        "model": found.model,
        "scores": _scores(found.system, found.task),
    }
    diagnostics: dict[str, Any] = {"system": found.system.name, "judged_on": judged, "language": found.task.language}
    diagnostics["rows"] = {name: len(split) for name, split in found.splits.items()}
    diagnostics["skipped_rows"] = {name: split.skipped for name, split in found.splits.items()}
    if found.baselines:
        results |= _beside(found, judged)
        strongest = next(one for one in found.baselines if one.name == results["baseline"]["name"])
        run.write_predictions(f"baseline.{judged}", text_evaluation.to_rows(strongest.predictions[judged]))
    diagnosis = text_evaluation.diagnose(predictions, found.task)
    results["diagnostics"] = diagnostics | diagnosis | dict(found.diagnostics)
    results["seconds"], results["throughput"] = dict(found.seconds), dict(found.throughput)
    results["definitions"] = {name: text_metrics.DEFINITIONS[name] for name in found.task.metrics}
    for name, part in found.system.predictions.items():
        run.write_predictions(name, text_evaluation.to_rows(part))
    run.write_predictions("errors", diagnosis["errors"])
    run.write_results(results)
    return results


def combine(run: Run, seeds: Mapping[int, Run]) -> dict[str, Any]:
    """Join the runs of several seeds into one result: means, intervals over rows, spread over seeds."""
    each = {seed: part.results() for seed, part in seeds.items()}
    first = next(iter(each.values()))
    task = text_evaluation.task_named(first["task"], first["diagnostics"]["language"])
    judged = first["diagnostics"]["judged_on"]
    read = {
        name: [text_evaluation.from_rows(part.read_predictions(name)) for part in seeds.values()]
        for name in first["scores"]
    }
    results = {key: first[key] for key in ("recipe", "task", "model")}
    results["scores"] = {name: text_evaluation.score(parts, task) for name, parts in read.items()}
    if "baseline" in first:
        rows = next(iter(seeds.values())).read_predictions(f"baseline.{judged}")
        results |= {"baseline": first["baseline"], "baselines": first["baselines"]}
        results["comparison"] = text_evaluation.compare(read[judged], text_evaluation.from_rows(rows), task)
    sign = -1 if task.decides in text_metrics.LOWER_IS_BETTER else 1
    chosen = max(each, key=lambda seed: sign * float(each[seed]["scores"]["validation"][task.decides]["value"]))
    kept = ("system", "judged_on", "language", "rows", "skipped_rows", "parameters", "signatures")
    results["diagnostics"] = {key: first["diagnostics"][key] for key in kept if key in first["diagnostics"]}
    results["diagnostics"] |= {"seeds": list(each), "best_seed_on_validation": chosen}
    results["diagnostics"]["errors"] = each[chosen]["diagnostics"]["errors"]
    results["seeds"] = {str(n): {"scores": part["scores"], "seconds": part["seconds"]} for n, part in each.items()}
    results["seconds"] = {key: sum(part["seconds"][key] for part in each.values()) for key in first["seconds"]}
    results["throughput"] = {
        key: float(np.mean([part["throughput"][key] for part in each.values()])) for key in first["throughput"]
    }
    results["definitions"] = first["definitions"]
    run.write_results(results)
    return results


def _scores(system: TextSystem, task: Task) -> dict[str, dict[str, dict[str, float]]]:
    return {name: text_evaluation.score(part, task) for name, part in system.predictions.items()}


def _beside(found: TextConclusion, judged: str) -> dict[str, Any]:
    """Choose the baseline on validation, so that the test set has no say in what it is compared with."""
    on_validation = {one.name: one.predictions["validation"] for one in found.baselines}
    name = text_evaluation.strongest(on_validation, found.task)
    strongest = next(one for one in found.baselines if one.name == name)
    described = [
        {"name": one.name, "scores": _scores(one, found.task), "seconds": {"train": one.seconds}}
        for one in found.baselines
    ]
    return {
        "baseline": next(part for part in described if part["name"] == name),
        "baselines": described,
        "comparison": text_evaluation.compare(
            found.system.predictions[judged], strongest.predictions[judged], found.task
        ),
    }
