"""Scores with intervals, comparisons and diagnoses of predictions; the lines of a predictions file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from finetune import metrics, significance, text_metrics
from finetune.errors import Exit, UserError
from finetune.significance import Sample

ERRORS_SHOWN = 40
SMALL = 1e-3
DIGITS = 6  # of a probability in a predictions file


@dataclass(frozen=True)
class Predictions:
    """What one trained system says about the rows of one file.

    `probabilities` is (rows, labels). Single-label: `gold` and `predicted` are (rows,) label numbers; multi-label: both
    are 0/1 (rows, labels). Raises UserError (exit 65) where shapes disagree or a number is not finite.
    """

    ids: list[str]
    gold: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    labels: tuple[str, ...]
    multi_label: bool = False

    def __post_init__(self) -> None:
        rows, labels = len(self.ids), len(self.labels)
        of_labels = (rows, labels) if self.multi_label else (rows,)
        if not rows:
            raise UserError(Exit.BAD_DATA, "there is no row to score: the file has no rows")
        shapes = (self.gold.shape, self.predicted.shape, self.probabilities.shape)
        if shapes != (of_labels, of_labels, (rows, labels)):
            raise UserError(Exit.BAD_DATA, f"gold, predicted and probabilities have shapes {shapes} for {rows:,} rows")
        highest = 1 if self.multi_label else labels - 1
        if min(self.gold.min(), self.predicted.min()) < 0 or max(self.gold.max(), self.predicted.max()) > highest:
            raise UserError(Exit.BAD_DATA, f"a label number lies outside 0 to {highest}")
        if not np.isfinite(self.probabilities).all():
            row = int(np.argmin(np.isfinite(self.probabilities).all(axis=1)))
            raise UserError(Exit.BAD_DATA, f"row {self.ids[row]}: a probability is not a finite number")

    @property
    def right(self) -> np.ndarray:
        """Return for each row (rows,) whether it is right; multi-label: whether its whole set of labels is."""
        same = self.gold == self.predicted
        return np.asarray(same.all(axis=1) if self.multi_label else same)


def cut(together: Predictions, sizes: Mapping[str, int]) -> dict[str, Predictions]:
    """Cut predictions whose rows are those of one part after the other; `sizes` says how many each part has."""
    if sum(sizes.values()) != len(together.ids):
        raise ValueError(f"{len(together.ids)} predictions for {sum(sizes.values())} rows")
    found, start = {}, 0
    for name, size in sizes.items():
        part = slice(start, start + size)
        start += size
        found[name] = replace(
            together,
            ids=together.ids[part],
            gold=together.gold[part],
            predicted=together.predicted[part],
            probabilities=together.probabilities[part],
        )
    return found


def score(predictions: Predictions | Sequence[Predictions], seed: int = 1) -> dict[str, dict[str, float]]:
    """Score one system, or several seeds of one recipe, with 95 % intervals: {"accuracy": {"value", "low", "high"}}.

    For several seeds the value is the mean over seeds, "sd" their sample standard deviation, and the interval comes
    from drawing the same rows for all of them: it speaks of the rows, "sd" of the seeds. Accuracy's interval is never
    narrower than Wilson's, because a bootstrap has no width at a perfect score.
    """
    seeds = _aligned(_as_list(predictions))
    of_counts = significance.bootstrap(_count_samples([seeds])[0], seed=seed)
    of_probabilities = significance.bootstrap(_probability_sample(seeds), seed=seed)
    names = [*metrics.COUNT_METRICS, *metrics.PROBABILITY_METRICS]
    intervals = dict(zip(names, [*of_counts, *of_probabilities], strict=True))
    rows = len(seeds[0].ids)
    share = intervals["accuracy"].value
    intervals["accuracy"] = intervals["accuracy"].around(*significance.wilson(share * rows, rows))
    return significance.told_scores(intervals, seeds, values)


def values(predictions: Predictions) -> dict[str, float]:
    """Return every metric of one system without intervals."""
    found = [_count_samples([[predictions]])[0].point(), _probability_sample([predictions]).point()]
    return dict(
        zip([*metrics.COUNT_METRICS, *metrics.PROBABILITY_METRICS], np.concatenate(found).tolist(), strict=True)
    )


def compare(
    a: Predictions | Sequence[Predictions],
    b: Predictions | Sequence[Predictions],
    *,
    metric: str = "accuracy",
    comparisons: int = 1,
) -> dict[str, Any]:
    """Compare two systems, or two lists of seeds, on the same rows; positive is better for `a`.

    Returns {"metric", "difference", "low", "high", "p_value", "verdict"}; the interval is at level 0.05 / comparisons.
    The difference is of the means over seeds. `p_value` is the exact McNemar test of accuracy, for several seeds the
    largest over all pairs of seeds. Where that test of one seed against one does not reject at the level, the interval
    of accuracy is stretched to 0: with few rows on which the systems differ a bootstrap is too sure.
    Raises UserError (exit 65) naming the first id that one side lacks.
    """
    of_a, of_b = _paired(_as_list(a), _as_list(b))
    return _compare(of_a, of_b, _p_value(of_a, of_b), comparisons, metric)


def _compare(
    of_a: list[Predictions], of_b: list[Predictions], p_value: float, comparisons: int, metric: str
) -> dict[str, Any]:
    alpha = significance.ALPHA / comparisons
    if metric in metrics.COUNT_METRICS:
        index, samples = metrics.COUNT_METRICS.index(metric), _count_samples([of_a, of_b])
    else:
        index = metrics.PROBABILITY_METRICS.index(metric)
        samples = [_probability_sample(of_a), _probability_sample(of_b)]
    if metric in metrics.LOWER_IS_BETTER:
        samples.reverse()
    interval = significance.paired_bootstrap(_only(samples[0], index), _only(samples[1], index), alpha=alpha)[0]
    if metric == "accuracy" and len(of_a) == len(of_b) == 1 and p_value > alpha:
        interval = interval.around(0.0, 0.0)
    return significance.comparison(metric, interval, p_value)


def compare_all(
    pairs: Mapping[str, tuple[Predictions | Sequence[Predictions], Predictions | Sequence[Predictions]]],
    *,
    metric: str = "accuracy",
) -> dict[str, dict[str, Any]]:
    """Make several comparisons, one for each language for example, with intervals widened by Holm's procedure.

    Returns {name: what `compare` returns}; the chance of any wrong verdict among all of them stays at 5 %.
    """
    paired = {name: _paired(_as_list(a), _as_list(b)) for name, (a, b) in pairs.items()}
    return significance.compare_together(paired, _p_value, partial(_compare, metric=metric))


def diagnose(predictions: Predictions, texts: Sequence[str]) -> dict[str, Any]:
    """Say where a system fails.

    Returns {"per_class": [...], "confusion": {"labels", "matrix"} (gold down), "most_confused": {"labels", "rows"},
    "calibration": [...], "errors": [{"id", "text", "gold", "predicted", "probability"}]}: the up to 40 most confident
    mistakes. "confusion" and "most_confused" are single-label only; "most_confused" is None without a mistake.
    """
    right, gold, predicted = _margins(predictions)
    confidence, decided_right = _decisions(predictions)
    found: dict[str, Any] = {
        "per_class": metrics.per_class(right, gold, predicted, predictions.labels),
        "calibration": metrics.calibration_bins(confidence, decided_right),
        "errors": _confident_errors(predictions, texts),
    }
    if not predictions.multi_label:
        table = metrics.confusion(predictions.gold, predictions.predicted, len(predictions.labels))
        found["confusion"] = {"labels": list(predictions.labels), "matrix": table.tolist()}
        found["most_confused"] = _most_confused(table, predictions.labels)
    return found


def worst_decisions(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the up to 40 surest mistakes: rows, the label that was decided on wrongly, how sure, (n,) each.

    Multi-label: of a row's wrong decisions the surest counts, on a label that was given or left out.
    """
    if predictions.multi_label:
        sure = np.where(predictions.predicted > 0, predictions.probabilities, 1 - predictions.probabilities)
        of_wrong = np.where(predictions.predicted != predictions.gold, sure, 0.0)
        label, confidence = of_wrong.argmax(axis=1), of_wrong.max(axis=1)
    else:
        label, confidence = predictions.predicted, _decisions(predictions)[0]
    wrong = np.flatnonzero(~predictions.right)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:ERRORS_SHOWN]
    return worst, label[worst], confidence[worst]


def by_length(predictions: Predictions, texts: Sequence[str]) -> list[dict[str, float]]:
    """Return the accuracy of buckets of rows by the words of their text: {"from", "to", "rows", "accuracy", low, high}.

    "low" and "high" are Wilson's 95 % interval.
    """
    found: list[dict[str, float]] = []
    for ends, rows in text_metrics.by_length(texts):
        right = int(predictions.right[rows].sum())
        low, high = significance.wilson(right, len(rows))
        found.append({**ends, "accuracy": right / len(rows), "low": low, "high": high})
    return found


def to_rows(predictions: Predictions, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of predictions/test.jsonl: {"id", "text", "text_pair"?, "gold", "predicted", "probabilities"}.

    Probabilities have 6 decimals, small ones 6 digits (a loss is their logarithm); single-label, the largest takes up
    what rounding lost, so that a row still sums to 1.
    """
    exact = predictions.probabilities.astype(np.float64)
    rounded = np.round(exact, DIGITS)
    small = np.flatnonzero(exact < SMALL)
    rounded.flat[small] = [float(f"{value:.{DIGITS}g}") for value in exact.flat[small]]
    if not predictions.multi_label:
        top = (np.arange(len(rounded)), rounded.argmax(axis=1))
        rounded[top] = np.round(rounded[top] + 1 - rounded.sum(axis=1), 2 * DIGITS)
    rows = []
    for i, identity in enumerate(predictions.ids):
        row: dict[str, Any] = {"id": identity, "text": texts[i]}
        if pairs is not None:
            row["text_pair"] = pairs[i]
        row["gold"] = _label_names(predictions, predictions.gold[i])
        row["predicted"] = _label_names(predictions, predictions.predicted[i])
        row["probabilities"] = dict(zip(predictions.labels, rounded[i].tolist(), strict=True))
        rows.append(row)
    return rows


def from_rows(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Predictions:
    """Read back what `to_rows` wrote; lists of labels mean multi-label.

    Raises UserError (exit 65) with the line number where a line lacks a key or has a label outside `labels`.
    """
    numbers = {label: i for i, label in enumerate(labels)}
    multi_label = bool(rows) and isinstance(rows[0].get("predicted"), list)
    gold, predicted, probabilities = [], [], []
    for line, row in enumerate(rows, start=1):
        try:
            gold.append(_label_numbers(row["gold"], numbers, multi_label))
            predicted.append(_label_numbers(row["predicted"], numbers, multi_label))
            probabilities.append([float(row["probabilities"][label]) for label in labels])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(Exit.BAD_DATA, f"predictions line {line}: missing or unknown {error}") from None
    return Predictions(
        ids=[str(row["id"]) for row in rows],
        gold=np.asarray(gold, dtype=np.int64),
        predicted=np.asarray(predicted, dtype=np.int64),
        probabilities=np.asarray(probabilities, dtype=np.float64),
        labels=tuple(labels),
        multi_label=multi_label,
    )


def _as_list(predictions: Predictions | Sequence[Predictions]) -> list[Predictions]:
    return [predictions] if isinstance(predictions, Predictions) else list(predictions)


def _aligned(systems: list[Predictions]) -> list[Predictions]:
    """Bring all prediction sets into the row order of the first and give them the labels of all."""
    labels = tuple(dict.fromkeys(label for system in systems for label in system.labels))
    systems = [system if system.labels == labels else _with_labels(system, labels) for system in systems]
    return [systems[0], *(_in_order_of(systems[0], other) for other in systems[1:])]


def _paired(a: list[Predictions], b: list[Predictions]) -> tuple[list[Predictions], list[Predictions]]:
    together = _aligned([*a, *b])
    return together[: len(a)], together[len(a) :]


def _in_order_of(first: Predictions, other: Predictions) -> Predictions:
    if other.ids != first.ids:
        order = np.array(significance.in_order_of(first.ids, other.ids))
        other = replace(
            other,
            ids=first.ids,
            gold=other.gold[order],
            predicted=other.predicted[order],
            probabilities=other.probabilities[order],
        )
    if not np.array_equal(other.gold, first.gold):
        wrong = int(np.argwhere(other.gold != first.gold)[0][0])
        raise UserError(Exit.BAD_DATA, f"the two systems have different gold labels for id {first.ids[wrong]}")
    return other


def _with_labels(system: Predictions, labels: tuple[str, ...]) -> Predictions:
    """Renumber the labels of a prediction set; labels that it does not know get probability 0."""
    number = np.array([labels.index(label) for label in system.labels])  # (its labels,)
    probabilities = np.zeros((len(system.ids), len(labels)))
    probabilities[:, number] = system.probabilities
    gold, predicted = system.gold, system.predicted
    if system.multi_label:
        wide = np.zeros((2, len(system.ids), len(labels)), dtype=np.int64)
        wide[0][:, number], wide[1][:, number] = gold, predicted
        gold, predicted = wide
    else:
        gold, predicted = number[gold], number[predicted]
    return replace(system, gold=gold, predicted=predicted, probabilities=probabilities, labels=labels)


def _p_value(a: list[Predictions], b: list[Predictions]) -> float:
    return max(significance.mcnemar_exact(one.right, two.right) for one in a for two in b)


def _count_samples(groups: list[list[Predictions]]) -> list[Sample]:
    """Return one sample for each group of seeds, all over the same cells: rows alike in gold and every prediction."""
    first = groups[0][0]
    if first.multi_label:
        return [_label_set_sample(group) for group in groups]
    cell = first.gold
    for system in (system for group in groups for system in group):
        # renumbered after each system, so that the key stays below rows x labels and cannot overflow
        _, cell = np.unique(cell * len(first.labels) + system.predicted, return_inverse=True)
    _, row_of_cell, counts = np.unique(cell, return_index=True, return_counts=True)
    return [_label_sample(group, row_of_cell, counts) for group in groups]


def _label_sample(seeds: list[Predictions], row_of_cell: np.ndarray, counts: np.ndarray) -> Sample:
    """Sums: gold rows of each class, then for each seed predicted rows and right rows of each class."""
    classes = len(seeds[0].labels)
    gold = seeds[0].gold[row_of_cell]  # (cells,)
    blocks = [_one_hot(gold, classes)]
    for one in seeds:
        predicted = one.predicted[row_of_cell]
        hits = _one_hot(gold, classes).multiply((predicted == gold)[:, None])
        blocks += [_one_hot(predicted, classes), hits]

    def count_scores(sums: np.ndarray) -> np.ndarray:
        parts = np.split(sums, len(blocks), axis=1)  # (replicates, classes) each
        of_seeds = [
            metrics.margin_scores(right=parts[i + 1], gold=parts[0], predicted=parts[i])
            for i in range(1, len(parts), 2)
        ]
        return _mean_over_seeds(of_seeds)

    return Sample(counts, sparse.csr_array(sparse.hstack(blocks)), count_scores)


def _label_set_sample(seeds: list[Predictions]) -> Sample:
    """Multi-label sums: gold rows of each label, then for each seed predicted, right, and rows wholly right."""
    rows, labels = seeds[0].gold.shape
    blocks = [seeds[0].gold]
    for one in seeds:
        blocks += [one.predicted, one.predicted * one.gold, one.right[:, None]]

    def count_scores(sums: np.ndarray) -> np.ndarray:
        gold, of_seeds = sums[:, :labels], []
        for start in range(labels, sums.shape[1], 2 * labels + 1):
            predicted, right = sums[:, start : start + labels], sums[:, start + labels : start + 2 * labels]
            exact = sums[:, start + 2 * labels]
            of_seeds.append(metrics.multi_label_scores(right, gold, predicted, exact, rows))
        return _mean_over_seeds(of_seeds)

    statistics = sparse.csr_array(np.concatenate(blocks, axis=1).astype(np.float64))
    return Sample(np.ones(rows, dtype=np.int64), statistics, count_scores)


def _mean_over_seeds(of_seeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return (replicates, metrics) from one dict of (replicates,) scores a seed."""
    of_seed = [np.stack([one[name] for name in metrics.COUNT_METRICS], axis=1) for one in of_seeds]
    return np.asarray(np.mean(of_seed, axis=0))


def _probability_sample(seeds: list[Predictions]) -> Sample:
    """Sums: for each seed the gap of confidence and truth in each bin, then Brier score and loss (means of seeds)."""
    rows = len(seeds[0].ids)
    gaps = [_gaps_by_bin(one) for one in seeds]
    decisions = rows * (len(seeds[0].labels) if seeds[0].multi_label else 1)
    brier = np.mean([metrics.brier_rows(one.gold, one.probabilities) for one in seeds], axis=0)
    loss = np.mean([metrics.loss_rows(one.gold, one.probabilities) for one in seeds], axis=0)

    def probability_scores(sums: np.ndarray) -> np.ndarray:
        ece = np.abs(sums[:, :-2]).sum(axis=1) / (decisions * len(seeds))
        return np.column_stack([ece, sums[:, -2] / rows, sums[:, -1] / rows])

    statistics = sparse.hstack([*gaps, sparse.csr_array(np.column_stack([brier, loss]))])
    return Sample(np.ones(rows, dtype=np.int64), sparse.csr_array(statistics), probability_scores)


def _gaps_by_bin(predictions: Predictions) -> sparse.csr_array:
    """Return (rows, bins): confidence minus truth, in the bin of the confidence; ECE is the sum of absolute columns."""
    rows = len(predictions.ids)
    confidence, right = _decisions(predictions)
    row = np.repeat(np.arange(rows), len(confidence) // rows)
    where = (row, metrics.confidence_bin(confidence))
    return sparse.csr_array(sparse.coo_array((confidence - right, where), shape=(rows, metrics.BINS)))


def _decisions(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and truth of each decision: one a row, or multi-label one for each row and label."""
    if predictions.multi_label:
        return predictions.probabilities.astype(np.float64).ravel(), predictions.gold.ravel() > 0
    confidence = predictions.probabilities[np.arange(len(predictions.ids)), predictions.predicted]
    return confidence.astype(np.float64), predictions.right


def _one_hot(values: np.ndarray, classes: int) -> sparse.csr_array:
    rows = len(values)
    return sparse.csr_array((np.ones(rows), values, np.arange(rows + 1)), shape=(rows, classes))


def _only(sample: Sample, index: int) -> Sample:
    return Sample(sample.counts, sample.statistics, lambda sums: sample.score(sums)[:, [index]])


def _margins(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return right, gold and predicted rows of each label, (labels,) each."""
    gold, predicted = predictions.gold, predictions.predicted
    if predictions.multi_label:
        return (gold * predicted).sum(axis=0), gold.sum(axis=0), predicted.sum(axis=0)
    labels = len(predictions.labels)
    return (
        np.bincount(gold[predictions.right], minlength=labels),
        np.bincount(gold, minlength=labels),
        np.bincount(predicted, minlength=labels),
    )


def _most_confused(table: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any] | None:
    both_ways = np.triu(table + table.T, k=1)
    if not both_ways.any():
        return None
    one, two = divmod(int(both_ways.argmax()), len(labels))
    return {"labels": [labels[one], labels[two]], "rows": int(both_ways[one, two])}


def _confident_errors(predictions: Predictions, texts: Sequence[str]) -> list[dict[str, Any]]:
    worst, _, confidence = worst_decisions(predictions)
    return [
        {
            "id": predictions.ids[i],
            "text": texts[i],
            "gold": _label_names(predictions, predictions.gold[i]),
            "predicted": _label_names(predictions, predictions.predicted[i]),
            "probability": float(sure),
        }
        for i, sure in zip(worst, confidence, strict=True)
    ]


def _label_names(predictions: Predictions, values: np.ndarray) -> str | list[str]:
    if predictions.multi_label:
        return [label for label, on in zip(predictions.labels, values, strict=True) if on]
    return predictions.labels[int(values)]


def _label_numbers(names: str | list[str], numbers: Mapping[str, int], multi_label: bool) -> int | list[int]:
    if not multi_label:
        return numbers[str(names)]
    on = {numbers[name] for name in names}
    return [int(i in on) for i in range(len(numbers))]
