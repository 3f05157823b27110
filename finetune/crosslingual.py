"""Train on some languages, score all: rows of a matrix, their cells, gaps to the oracle, consistency over languages.

A row of the matrix is a training set, a column a test language, a cell what the model of the row predicts there. How a
row is trained is the recipe's business: `train_rows` gets its function.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import sparse

from finetune import evaluation, significance
from finetune.data.columns import Split
from finetune.data.patterns import Corpus, join
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions
from finetune.run import Run
from finetune.significance import Sample

Cell = list[Predictions]  # one prediction set for each seed
Matrix = Mapping[str, Mapping[str, Cell]]  # row -> column -> cell
AVERAGED = ("accuracy", "macro_f1")


@dataclass(frozen=True)
class Row:
    """One training set: its name in the matrix, its place in the run, what to train on, and the columns it fills.

    A few-shot row of the matrix has a model, and a Row, for each of its columns.
    """

    name: str
    folder: str
    train: Split
    validation: Split
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Which rows there should be beside the training languages together."""

    matrix: Literal["source", "full"] = "source"
    oracle: bool = False
    few_shot: Sequence[int] = ()


@dataclass(frozen=True)
class Plan:
    """The rows to train: first the training languages together, whose model is the run's; and the oracles left out."""

    corpus: Corpus
    source: Row
    others: list[Row]
    left_out: str | None


@dataclass(frozen=True)
class Trained:
    """What the model of a row predicts for validation and for each column, its seconds (train, evaluate) and rates."""

    validation: Predictions
    columns: dict[str, Predictions]
    seconds: dict[str, float]
    throughput: dict[str, float]


# Rows


def plan(corpus: Corpus, wanted: Wanted, seed: int) -> Plan:
    """Say which rows to train: first the training languages together, then what `wanted` adds.

    `full`: each language that has a training file alone, and all of them together. `oracle`: the test languages that
    have one alone. `few_shot`: for each number k the training languages with k rows of one test language.
    Raises UserError: 66 where rows are wanted for which no test language has a training file, 2 for a k beyond one.
    """
    rows = [_row(corpus, corpus.sources)]
    with_file = list(corpus.train)
    if (wanted.oracle or wanted.few_shot) and not set(with_file) & set(corpus.targets):
        setting = "oracle=true" if wanted.oracle else f"few_shot={list(wanted.few_shot)}"
        what = f"{setting}: no test language beside {', '.join(corpus.sources)} has a training file (data.train)"
        raise UserError(Exit.NO_INPUT, what)
    if wanted.matrix == "full":
        rows += [_row(corpus, [language]) for language in with_file]
        rows.append(_row(corpus, with_file))
    elif wanted.oracle:
        rows += [_row(corpus, [language]) for language in corpus.targets if language in with_file]
    for k in wanted.few_shot:
        rows += [_few_shot(corpus, k, language, seed) for language in corpus.targets if language in with_file]
    source, *others = {row.folder: row for row in rows}.values()  # each training set once
    return Plan(corpus, source, others, _left_out(corpus, wanted))


def train_rows(run: Run, rows: Sequence[Row], train: Callable[[Run, Row], Trained]) -> dict[str, Any]:
    """Train each row in a folder of its own inside the run, or keep it where it ended before; return their results.

    `train` starts the run folder that it gets. The checkpoints of a row go when its predictions are there.
    """
    for row in rows:
        folder = run.row_folder(row.folder)
        if run.resume and (folder / "results.json").is_file():
            run.say("row", f"{row.folder}: ended before, kept")
            continue
        run.say("row", f"{row.folder} · {len(row.train):,} rows")
        with run.part(folder) as part:
            _finish(part, row, train(part, row))
    return {row.folder: Run.open(run.row_folder(row.folder)).results() for row in rows}


def stored_cells(run: Run, folders: Iterable[str], labels: Sequence[str]) -> dict[str, dict[str, Predictions]]:
    """Read back what the rows in these folders predicted: row -> column -> predictions."""
    matrix: dict[str, dict[str, Predictions]] = {}
    for name in folders:
        part = Run.open(run.row_folder(name))
        stored = part.results()
        for language in stored["columns"]:
            rows = part.read_predictions(f"test.{language}")
            matrix.setdefault(stored["row"], {})[language] = evaluation.from_rows(rows, labels)
    return matrix


# Cells


def by_language(predictions: Predictions, tests: Mapping[str, Split]) -> dict[str, Predictions]:
    """Cut the predictions of languages that were scored together (`patterns.join`) into those of each."""
    parts = evaluation.cut(predictions, {language: len(split) for language, split in tests.items()})
    return {language: replace(part, ids=tests[language].ids()) for language, part in parts.items()}


def put_together(cells: Mapping[str, Predictions], split: Split) -> Predictions:
    """Return the predictions of several languages as those of the joined split, `by_language` backwards."""
    parts = list(cells.values())
    return Predictions(
        split.ids(),
        np.concatenate([part.gold for part in parts]),
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        parts[0].labels,
        parts[0].multi_label,
    )


def score_matrix(matrix: Matrix) -> dict[str, dict[str, Any]]:
    """Score every cell: {row: {column: {"accuracy": {"value", "low", "high"}, ...}}}."""
    return {row: {column: evaluation.score(cell) for column, cell in cells.items()} for row, cells in matrix.items()}


def gaps(matrix: Matrix, source: str) -> dict[str, Any]:
    """Compare the oracle of each language, trained on that language alone, with the row `source`.

    Positive: the oracle is better. Each interval stands alone: it measures a gap and decides nothing.
    """
    found = {}
    for language, cell in matrix[source].items():
        if language != source and language in matrix and language in matrix[language]:
            found[language] = evaluation.compare(matrix[language][language], cell)
    return found


def averages(
    cells: Mapping[str, Cell],
    scores: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    parallel: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Average over each group of languages whose cells are all there: {group: {"accuracy": ..., "macro_f1": ...}}.

    `scores` are those of the cells. Accuracy has an interval: the same rows are drawn in all languages of a parallel
    set, and what each set and the other languages add to its width is independent (Zou and Donner 2008, MOVER).
    """
    whole = {name: languages for name, languages in groups.items() if set(languages) <= set(cells)}
    return {name: _average(_some(cells, languages), scores, parallel) for name, languages in whole.items()}


def language_groups(languages: Sequence[str], sources: Sequence[str]) -> dict[str, list[str]]:
    """Return what is averaged: `all`, and `without_training` where that leaves some out and some in."""
    targets = [language for language in languages if language not in sources]
    some = {"without_training": targets} if targets and len(targets) < len(languages) else {}
    return {"all": list(languages), **some}


def parallel_languages(cells: Mapping[str, Cell], numbered: Mapping[str, bool]) -> list[list[str]]:
    """Return the sets of two languages or more whose test sets are the same rows, by id and gold label.

    Row numbers in the place of ids (`numbered`) prove nothing.
    """
    groups: list[list[str]] = []
    for language, cell in cells.items():
        if not numbered[language]:
            group = next((group for group in groups if _same_rows(cells[group[0]][0], cell[0])), None)
            groups.append([language]) if group is None else group.append(language)
    return [group for group in groups if len(group) > 1]


def consistency(cells: Mapping[str, Cell], numbered: Mapping[str, bool], reference: str) -> dict[str, Any]:
    """Return for each language whose rows are those of `reference` the share with the same prediction in both.

    {"it": {"value", "low", "high"}}; several seeds: the mean.
    """
    if reference not in cells:
        return {}
    others = [language for language in cells if language != reference]
    parallel = [one for one in others if parallel_languages(_some(cells, [reference, one]), numbered)]
    return {language: agreement(cells[reference], cells[language]) for language in parallel}


def agreement(reference: Cell, other: Cell) -> dict[str, float]:
    """Return the share of rows, paired by id, with the same prediction in two cells, with its interval."""
    rows = np.mean([_same_prediction(one, two) for one, two in zip(reference, other, strict=True)], axis=0)
    interval = _mean_interval(rows).around(*significance.wilson(float(rows.sum()), len(rows)))
    return interval.told()


def between_languages(cells: Mapping[str, Cell], parallel: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Compare each two languages of a parallel set on their common rows: is the model better in one of them?

    The intervals are widened by Holm's procedure over all the pairs.
    """
    pairs = [pair for together in parallel for pair in itertools.combinations(together, 2)]
    found = evaluation.compare_all({f"{a} {b}": (cells[a], cells[b]) for a, b in pairs})
    return [{"languages": [a, b], **found[f"{a} {b}"]} for a, b in pairs]


def verdicts(cells: Mapping[str, Cell], baseline: Mapping[str, Predictions]) -> dict[str, Any]:
    """Compare a row with a baseline in each language; the intervals are widened by Holm's procedure."""
    return evaluation.compare_all({language: (cell, baseline[language]) for language, cell in cells.items()})


# Inside


def _some(cells: Mapping[str, Cell], languages: Sequence[str]) -> dict[str, Cell]:
    return {language: cells[language] for language in languages}


def _row(corpus: Corpus, languages: Sequence[str]) -> Row:
    name = "+".join(languages)
    train, validation = (corpus.together(kind, languages) for kind in ("train", "validation"))
    return Row(name, name, train, validation, corpus.tests)


def _left_out(corpus: Corpus, wanted: Wanted) -> str | None:
    """Say which oracles there will not be, and how to get them; None where there will be all."""
    without = [language for language in corpus.targets if language not in corpus.train]
    possible = [language for language in corpus.targets if language in corpus.train]
    if possible and wanted.matrix == "source" and not wanted.oracle:
        return f"left out; oracle=true trains it on {', '.join(possible)}, matrix=full every row"
    return f"left out for {', '.join(without)}: no training file (data.train)" if without else None


def _few_shot(corpus: Corpus, k: int, language: str, seed: int) -> Row:
    name, rows = "+".join(corpus.sources), corpus.train[language]
    if k > len(rows):
        raise UserError(Exit.USAGE, f"few_shot={k}: {rows.files[0]} has {len(rows):,} rows to train on; give fewer")
    few = {**{source: corpus.train[source] for source in corpus.sources}, language: rows.select(_first(rows, k, seed))}
    validation = corpus.together("validation", corpus.sources)  # with k labels there is none to spare
    return Row(f"{name}+{k}", f"{name}+{k}.{language}", join("train", few), validation, (language,))


def _first(rows: Split, k: int, seed: int) -> np.ndarray:
    """Choose k rows, label by label in turn; the rows of a smaller k are among those of a larger one."""
    labels = rows.labels()
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    met: dict[str, int] = {}
    turn = []
    for row in shuffled:
        met[labels[row]] = met.get(labels[row], 0) + 1
        turn.append(met[labels[row]])
    return shuffled[np.argsort(turn, kind="stable")][:k]


def _finish(part: Run, row: Row, trained: Trained) -> None:
    for language, predictions in trained.columns.items():
        rows = evaluation.to_rows(predictions, [""] * len(predictions.ids))
        # The texts stand once, in the run's own predictions.
        part.write_predictions(f"test.{language}", ({k: v for k, v in row.items() if k != "text"} for row in rows))
    part.write_results(
        {
            "row": row.name,
            "columns": list(row.columns),
            "rows": {"train": len(row.train), "validation": len(row.validation)},
            "scores": {"validation": evaluation.values(trained.validation)},
            "seconds": trained.seconds,
        }
    )
    part.drop_weights()


def _average(cells: Mapping[str, Cell], scores: Mapping[str, Any], parallel: Sequence[Sequence[str]]) -> dict[str, Any]:
    of_cells = [scores[language] for language in cells]
    found = {name: {"value": float(np.mean([score[name]["value"] for score in of_cells]))} for name in AVERAGED}
    here = [[language for language in together if language in cells] for together in parallel]
    here = [together for together in here if len(together) > 1]  # of one language alone the interval is its cell's
    alone = [scores[language]["accuracy"] for language in cells if not any(language in together for together in here)]
    parts = [(1, score["value"], score["low"], score["high"]) for score in alone]
    for together in here:
        first = cells[together[0]][0].ids
        interval = _mean_interval(np.mean([_right(cells[language], first) for language in together], axis=0))
        parts.append((len(together), interval.value, interval.low, interval.high))
    value = found["accuracy"]["value"]
    below = math.hypot(*(count * (middle - low) for count, middle, low, _ in parts)) / len(cells)
    above = math.hypot(*(count * (high - middle) for count, middle, _, high in parts)) / len(cells)
    found["accuracy"] |= {"low": value - below, "high": value + above}
    return found


def _mean_interval(rows: np.ndarray) -> significance.Interval:
    values = sparse.csr_array(rows[:, None])
    sample = Sample(np.ones(len(rows), dtype=np.int64), values, lambda sums: sums / len(rows))
    return significance.bootstrap(sample)[0]


def _right(cell: Cell, ids: Sequence[str]) -> np.ndarray:
    """Return for each id the share of seeds that are right."""
    return np.asarray(np.mean([one.right[_order(one, ids)] for one in cell], axis=0))


def _same_prediction(one: Predictions, two: Predictions) -> np.ndarray:
    same = one.predicted == two.predicted[_order(two, one.ids)]
    return np.asarray(same.all(axis=1) if one.multi_label else same)


def _same_rows(one: Predictions, two: Predictions) -> bool:
    if set(one.ids) != set(two.ids) or len(one.ids) != len(two.ids):
        return False
    return bool(np.array_equal(one.gold, two.gold[_order(two, one.ids)]))


def _order(predictions: Predictions, ids: Sequence[str]) -> np.ndarray:
    place = {identity: row for row, identity in enumerate(predictions.ids)}
    return np.array([place[identity] for identity in ids])
