"""What a cross-lingual run says of its data and its baselines, and its results by language."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune import crosslingual, evaluation
from finetune.classifier import Classifier
from finetune.crosslingual import Cell, Matrix, Plan, Trained
from finetune.data import patterns
from finetune.data.columns import DataConfig, LabelMap, Split, read_splits
from finetune.errors import UserError
from finetune.evaluation import Predictions
from finetune.report import diagnosis, opening, results, scoring
from finetune.report.results import Conclusion, Judging, System, assemble, combined, write_predictions
from finetune.run import Run
from finetune.terminal import count

KEPT_OF_FIRST = ("train_languages", "numbered_ids", "matrix_rows", "oracle", "languages")


@dataclasses.dataclass(frozen=True)
class Cheap:
    """A cheap system that was trained on the training languages: what it predicts, and the seconds that it took."""

    name: str
    validation: Predictions
    languages: dict[str, Predictions]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Beside:
    """The cheap systems of a cross-lingual run, TF-IDF first.

    `own` is TF-IDF trained on each language that has a training file, and scored on it.
    """

    systems: list[Cheap]
    own: dict[str, Predictions]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a cross-lingual run found out: what the model predicts, the results of the other rows, the cheap systems.

    `diagnostics` are what was told before; `began` is the moment of perf_counter at which the run began; `mattered` is
    what the worst errors rest on.
    """

    plan: Plan
    trained: Trained
    others: Mapping[str, Any]
    beside: Beside | None
    diagnostics: Mapping[str, Any]
    began: float
    mattered: Mapping[str, list[dict[str, Any]]]


def say_plan(run: Run, config: DataConfig, plan: Plan) -> dict[str, Any]:
    """Tell rows by language, leaks, the rows of the matrix and the oracles left out; return it for the record."""
    corpus, source = plan.corpus, plan.source
    splits = {"train": source.train, "validation": source.validation, "test": corpus.together("test", corpus.tests)}
    found = opening.say_data(run, config, splits, corpus.labels)
    for language in [language for language in corpus.targets if language in corpus.train]:
        others = {"validation": corpus.validation[language], "test": corpus.test[language]}
        leaked = opening.say_leaks(run, config, corpus.train[language], others)
        found["leaked_rows"] |= {f"{language} {kind}": rows for kind, rows in leaked.items()}
    sizes = " · ".join(f"{language} {len(split):,}" for language, split in corpus.test.items())
    run.say("", f"train {source.name} · test {sizes}")
    if plan.others:
        folders = ", ".join(row.folder for row in (source, *plan.others))
        run.say("matrix", f"{count(1 + len(plan.others), 'model')}: {folders}")
    if plan.left_out is not None:
        run.say("oracle", plan.left_out)
        found["oracle"] = plan.left_out
    return found


def say_diagnosis(
    run: Run, corpus: patterns.Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    """Tell how the tokenizer reads each test language beside the training languages; return it for the record."""
    training = {language: corpus.train[language] for language in corpus.sources}
    return {"languages": diagnosis.say_languages(run, corpus.test, training, tokenizer, max_length)}


def run_baselines(run: Run, plan: Plan, seed: int) -> Beside:
    """Train TF-IDF and the majority class on the training languages, TF-IDF on each language that has a training file.

    Tells how they score.
    """
    corpus, source, labels = plan.corpus, plan.source, plan.corpus.labels
    tests = {"train": source.train, "validation": source.validation, "test": corpus.together("test", corpus.tests)}
    found = results.run_baselines(tests, {name: labels.encode(split) for name, split in tests.items()}, labels, seed)
    of_languages = [crosslingual.by_language(system.predictions["test"], corpus.test) for system in found]
    systems = [
        Cheap(system.name, system.predictions["validation"], languages, system.seconds)
        for system, languages in zip(found, of_languages, strict=True)
    ]
    own = {}
    for language in [language for language in corpus.tests if language in corpus.train and language != source.name]:
        splits = {"train": corpus.train[language], "test": corpus.test[language]}
        targets = {name: labels.encode(split) for name, split in splits.items()}
        own[language] = results.run_baselines(splits, targets, labels, seed)[0].predictions["test"]
    if own and source.name in corpus.tests:
        own = {source.name: systems[0].languages[source.name], **own}
    opening.say_baselines(run, found)
    told = " · ".join(f"{language} {cell.right.mean():.3f}" for language, cell in systems[0].languages.items())
    run.say("", f"TF-IDF trained on {source.name}, test accuracy: {told}")
    return Beside(systems, own)


def mattered(parts: Classifier, plan: Plan, trained: Trained, config: Any) -> dict[str, list[dict[str, Any]]]:
    """Return what the worst errors on the judged split rest on (`scoring.mattered`), while the model is at hand."""
    splits = _judged_splits(plan)
    last = results.judged_split(splits)
    predictions = _of_splits(plan, splits, trained.validation, trained.columns)[last]
    return scoring.mattered(parts, splits[last], predictions, config)


def conclude(run: Run, found: Found, recipe: str, model: str, system: str) -> dict[str, Any]:
    """Score every language and row, write results.json and predictions/, and return the results.

    `system` is the model's name in sentences.
    """
    corpus, cells, beside = found.plan.corpus, found.trained.columns, found.beside
    collected = assemble(run, _conclusion(found, recipe, model, system))
    tfidf = None if beside is None else beside.systems[0].languages
    for language, split in corpus.test.items():
        write_predictions(run, f"test.{language}", cells[language], split)
        if tfidf is not None:
            write_predictions(run, f"baseline.test.{language}", tfidf[language], split)
    if beside is not None:
        collected["baselines"] = _with_languages(collected["baselines"], beside)
        collected["baseline"] = next(b for b in collected["baselines"] if b["name"] == collected["baseline"]["name"])
    collected["diagnostics"] |= {
        "train_languages": list(corpus.sources),
        "numbered_ids": {language: split.numbered for language, split in corpus.test.items()},
        "matrix_rows": {
            name: {key: row[key] for key in ("row", "rows", "seconds")} for name, row in found.others.items()
        },
    }
    stored = crosslingual.stored_cells(run, found.others, corpus.labels.names)
    matrix = {found.plan.source.name: {language: [one] for language, one in cells.items()}}
    matrix |= {row: {language: [one] for language, one in row_cells.items()} for row, row_cells in stored.items()}
    _by_language(collected, matrix, corpus.sources, tfidf)
    if run.crew.is_main:
        diagnosis.draw_matrix(collected["matrix"], "accuracy", run.picture_file("matrix"))
    collected["seconds"]["total"] = time.perf_counter() - found.began
    run.write_results(collected)
    return collected


def combine(run: Run, seeds: Mapping[int, Run], judging: Judging) -> dict[str, Any]:
    """Join the cross-lingual runs of several seeds, languages and matrix included; write and return the results."""
    parts = list(seeds.values())
    first = parts[0].results()
    before, columns = first["diagnostics"], list(first["languages"])

    def read(part: Run, name: str) -> Predictions:
        return evaluation.from_rows(part.read_predictions(name), before["labels"])

    collected = combined(seeds, judging)
    collected["diagnostics"] |= {key: before[key] for key in KEPT_OF_FIRST if key in before}
    source = next(iter(first["matrix"]))
    cells: dict[str, Cell] = {column: [read(part, f"test.{column}") for part in parts] for column in columns}
    matrix = {source: cells}
    others = [crosslingual.stored_cells(part, before["matrix_rows"], before["labels"]) for part in parts]
    for row, of_first in others[0].items():
        matrix[row] = {column: [of_seed[row][column] for of_seed in others] for column in of_first}
    tfidf = {column: read(parts[0], f"baseline.test.{column}") for column in columns} if "baseline" in first else None
    _by_language(collected, matrix, before["train_languages"], tfidf)
    if run.crew.is_main:
        diagnosis.draw_matrix(collected["matrix"], "accuracy", run.picture_file("matrix"))
    run.write_results(collected)
    return collected


def elsewhere(
    run: Run, tests: Mapping[str, Split], predictions: Predictions, data: DataConfig, seed: int
) -> dict[str, Any]:
    """Score what a finished run predicts in other languages, beside TF-IDF fitted on the run's own training rows.

    `predictions` are of all the languages together (`patterns.join`); `data` and `seed` are the run's. Returns
    {"languages", "comparisons", "diagnostics"}; without the training rows there is no comparison, and the run says why.
    """
    cells = {language: [one] for language, one in crosslingual.by_language(predictions, tests).items()}
    known = run.config_file.is_file()  # else a plain model folder
    before: dict[str, Any] = run.results()["diagnostics"] if known else {"system": run.folder.name}
    sources = before.get("train_languages", [])
    found: dict[str, Any] = {
        "languages": {language: evaluation.score(cell) for language, cell in cells.items()},
        "comparisons": {},
        "diagnostics": {
            "system": before["system"],
            "trained_on": "+".join(sources) or "its training file",
            "rows": {language: len(split) for language, split in tests.items()},
        },
    }
    tfidf = _refitted(run, tests, LabelMap(predictions.labels, predictions.multi_label), data, sources, seed)
    if tfidf is not None:
        found["comparisons"] = crosslingual.verdicts(cells, tfidf)
        found["diagnostics"]["baseline"] = {language: evaluation.score(one) for language, one in tfidf.items()}
    reference = next(iter(sources), "")
    numbered = {language: split.numbered for language, split in tests.items()}
    if reference and reference not in cells and run.predictions_file(f"test.{reference}").is_file():
        rows = run.read_predictions(f"test.{reference}")
        cells[reference] = [evaluation.from_rows(rows, predictions.labels)]
        numbered[reference] = before["numbered_ids"][reference]
    found["diagnostics"] |= {
        "reference": reference,
        "consistency": crosslingual.consistency(cells, numbered, reference),
    }
    return found


def _refitted(
    run: Run, tests: Mapping[str, Split], labels: LabelMap, data: DataConfig, sources: Sequence[str], seed: int
) -> dict[str, Predictions] | None:
    """Fit TF-IDF on the training rows of a run, or take it from the cache; None, and a line, where they are gone."""
    if data.train is None and data.name is None:
        run.say("note", "no TF-IDF beside it: the training file is not known")
        return None
    try:
        if sources:
            train = patterns.read_training(data, sources, seed=seed)
        else:
            train = read_splits(dataclasses.replace(data, test=None), seed=seed)["train"]
    except UserError as error:
        run.say("note", f"no TF-IDF beside it: {error}")
        return None
    before = run.environment()["data_sha256"]
    changed = [file for file, digest in train.sha256.items() if before.get(file) != digest]
    if changed:
        run.say("note", f"no TF-IDF beside it: {', '.join(changed)} changed since the run")
        return None
    splits = {"train": train, "test": patterns.join("test", tests)}
    targets = {name: labels.encode(split) for name, split in splits.items()}
    system = results.run_baselines(splits, targets, labels, seed)[0]
    return crosslingual.by_language(system.predictions["test"], tests)


def _by_language(
    collected: dict[str, Any],
    matrix: Matrix,
    sources: Sequence[str],
    tfidf: Mapping[str, Predictions] | None,
) -> None:
    """Put languages, comparisons, matrix and what follows from them into the results."""
    source, cells = next(iter(matrix.items()))
    groups = crosslingual.language_groups(list(cells), sources)
    numbered = collected["diagnostics"]["numbered_ids"]
    parallel = crosslingual.parallel_languages(cells, numbered)
    reference = next((language for language in sources if language in cells), "")
    collected["matrix"] = crosslingual.score_matrix(matrix)
    collected["languages"] = collected["matrix"][source]
    if tfidf is not None:
        collected["comparisons"] = crosslingual.verdicts(cells, tfidf)
    collected["diagnostics"] |= {
        "parallel_languages": parallel,
        "averages": {
            row: crosslingual.averages(of_row, collected["matrix"][row], groups, parallel)
            for row, of_row in matrix.items()
        },
        "gap_to_oracle": crosslingual.gaps(matrix, source),
        "consistency": crosslingual.consistency(cells, numbered, reference),
        "between_languages": crosslingual.between_languages(cells, parallel),
    }
    _explain_gaps(collected["diagnostics"], collected["languages"], reference)


def _explain_gaps(diagnostics: dict[str, Any], scores: Mapping[str, Any], reference: str) -> None:
    """Put beside the figures of the languages how they go with the gap to the oracle, or else to the reference."""
    gaps, to = {name: gap["difference"] for name, gap in diagnostics["gap_to_oracle"].items()}, "the oracle"
    if not gaps and reference:
        best, to = scores[reference]["accuracy"]["value"], reference
        gaps = {name: best - of["accuracy"]["value"] for name, of in scores.items() if name != reference}
    diagnostics["languages"] = diagnosis.with_gaps(diagnostics["languages"], gaps, to)


def _conclusion(found: Found, recipe: str, model: str, system: str) -> Conclusion:
    """Return what every run has: validation, and as test the training languages among the test languages."""
    trained, splits = found.trained, _judged_splits(found.plan)
    parts = partial(_of_splits, found.plan, splits)
    systems = [] if found.beside is None else found.beside.systems
    return Conclusion(
        recipe=recipe,
        model=model,
        system=System(system, parts(trained.validation, trained.columns), trained.seconds["train"]),
        baselines=[System(cheap.name, parts(cheap.validation, cheap.languages), cheap.seconds) for cheap in systems],
        splits=splits,
        seconds=trained.seconds,
        throughput=trained.throughput,
        diagnostics=found.diagnostics,
        mattered=found.mattered,
    )


def _judged_splits(plan: Plan) -> dict[str, Split]:
    """Return train and validation of a run, and as test its training languages among the test languages."""
    splits = {"train": plan.source.train, "validation": plan.source.validation}
    judged = _judged_languages(plan)
    return splits | ({"test": plan.corpus.together("test", judged)} if judged else {})


def _of_splits(
    plan: Plan, splits: Mapping[str, Split], validation: Predictions, cells: Mapping[str, Predictions]
) -> dict[str, Predictions]:
    """Return the predictions of validation and, where there is one, of the judged test split."""
    if "test" not in splits:
        return {"validation": validation}
    judged = {language: cells[language] for language in _judged_languages(plan)}
    return {"validation": validation, "test": crosslingual.put_together(judged, splits["test"])}


def _judged_languages(plan: Plan) -> list[str]:
    return [language for language in plan.corpus.tests if language in plan.corpus.sources]


def _with_languages(described: Sequence[Mapping[str, Any]], beside: Beside) -> list[dict[str, Any]]:
    """Return the baselines with their scores by language, and TF-IDF trained on each language itself after them."""
    baselines = []
    for one, system in zip(described, beside.systems, strict=True):
        scores = {language: evaluation.score(cell) for language, cell in system.languages.items()}
        baselines.append({**one, "languages": scores})
    own = {language: evaluation.score(part) for language, part in beside.own.items()}
    if own:
        name = f"{described[0]['name']}, trained on each language itself"
        baselines.append({"name": name, "oracle": True, "scores": {}, "languages": own})
    return baselines
