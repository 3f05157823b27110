"""Assembles results.json and the prediction files of a run that writes texts, as results.py does for labels."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from finetune import processes, text_baselines, text_evaluation, text_metrics, text_quality
from finetune.data.columns import Split
from finetune.report import language_model, pretraining
from finetune.report.results import Conclusion, Judging, System, beside, judged_split, of_labels, told
from finetune.run import Run
from finetune.text_evaluation import Task, TextPredictions


def judge(split: Split, predicted: list[str], confidence: list[float] | None = None) -> TextPredictions:
    """Put what a system wrote beside the references of a split."""
    return TextPredictions(
        split.ids(), split.sources(), split.references(), predicted, confidence, split.languages()
    )  # fmt: skip


def run_baselines(task: Task, splits: Mapping[str, Split]) -> list[System]:
    """Make the cheap systems of a task from train and let them answer the other splits."""
    return [
        System(found.name, {name: judge(splits[name], texts) for name, texts in found.predicted.items()}, found.seconds)
        for found in processes.by_main(lambda: text_baselines.answer(task.name, splits))
    ]


def conclude(run: Run, found: Conclusion, task: Task) -> dict[str, Any]:
    """Score a run beside its baselines, write results.json and predictions/, and return the results."""
    judged = judged_split(found.system.predictions)
    predictions = found.system.predictions[judged]
    score = partial(text_evaluation.score, task=task)
    diagnosis = text_evaluation.diagnose(predictions, task)
    results: dict[str, Any] = {
        "recipe": found.recipe,
        "task": task.name,
        "model": found.model,
        "scores": {name: score(part) for name, part in found.system.predictions.items()},
        "diagnostics": told(found.system, found.splits, judged)
        | {"language": task.language}
        | diagnosis
        | dict(found.diagnostics),
        "seconds": dict(found.seconds),
        "throughput": dict(found.throughput),
        "definitions": {name: text_metrics.DEFINITIONS[name] for name in task.metrics},
    }
    if task.name == text_baselines.SUMMARIES:
        results["diagnostics"] |= of_summaries(predictions, found.splits["train"].targets(), task)
    other: tuple[str, TextPredictions] | None = None
    if found.baselines:
        # Chosen on validation, so that the test set has no say in what it is compared with.
        by_name = {one.name: one for one in found.baselines}
        on_validation = {name: one.predictions["validation"] for name, one in by_name.items()}
        strongest = by_name[text_evaluation.strongest(on_validation, task)]
        results |= beside(found.baselines, strongest, score)
        other = strongest.name, strongest.predictions[judged]
        results["comparison"] = text_evaluation.compare(predictions, other[1], task)
        run.write_predictions(f"baseline.{judged}", text_evaluation.to_rows(other[1]))
    results |= text_evaluation.by_language(predictions, None if other is None else other[1], task)
    if found.meter is not None:
        results["diagnostics"]["bertscore"] = found.meter.judged(predictions, other)
    for name, part in found.system.predictions.items():
        run.write_predictions(name, text_evaluation.to_rows(part))
    run.write_predictions("errors", diagnosis["errors"])
    run.write_results(results)
    return results


def of_summaries(found: TextPredictions, learnt: Sequence[str], task: Task) -> dict[str, Any]:
    """Return what summaries are like beside those that people wrote, and how good an extract is that knows these.

    "summaries" has figures of the system's texts (`own`) and of the first references (`human`); "oracle_extract" the
    scores of sentences of the source that are chosen by the references, and how.
    """
    sides = {"own": found.predicted, "human": [several[0] for several in found.references]}
    figures = {
        name: quality | text_quality.beside_sources(found.sources, sides[name])
        for name, quality in text_quality.qualities(sides, learnt).items()
    }
    extracts = text_baselines.oracle_extracts(found.sources, found.references)
    chosen = TextPredictions(found.ids, found.sources, found.references, extracts, languages=found.languages)
    return {
        "summaries": figures | {"definitions": text_quality.DEFINITIONS},
        "oracle_extract": {
            "name": text_baselines.ORACLE,
            "scores": text_evaluation.score(chosen, task),
            "definition": text_baselines.ORACLE_DEFINITION,
        },
    }


def of_texts(task: Task) -> Judging:
    """Return how the predictions of a run that writes texts are judged."""
    return Judging(
        read=text_evaluation.from_rows,
        score=partial(text_evaluation.score, task=task),
        compare=partial(text_evaluation.compare, task=task),
        chooses=task.decides,
        parts=partial(text_evaluation.by_language, task=task),
    )


def task_of(results: Mapping[str, Any]) -> Task | None:
    """Return the task of a run that writes texts, from its results; None of one that labels them."""
    if results["task"] not in text_evaluation.TASKS:
        return None
    return text_evaluation.task_named(results["task"], results["diagnostics"]["language"])


def judging_of(results: Mapping[str, Any]) -> Judging:
    """Return how the predictions of a run are judged, from its results."""
    if results["task"] in pretraining.TASKS.values():
        return pretraining.judging(results["task"])
    if results["task"] == language_model.TASK:
        return language_model.judging()
    task = task_of(results)
    return of_labels(results["diagnostics"]["labels"]) if task is None else of_texts(task)
