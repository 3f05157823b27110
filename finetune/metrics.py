"""Scores of classifiers, single-label and multi-label; every number carries its definition.

Those of texts are in `finetune.text_metrics`; `hf_metric` offers both.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from finetune import text_metrics

if TYPE_CHECKING:
    import evaluate

BINS = 15
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)  # the floor of scikit-learn's log_loss

DEFINITIONS: dict[str, str] = {
    "accuracy": "Share of rows whose predicted label (multi-label: whole set of labels) is the gold one.",
    "macro_f1": (
        "Unweighted mean of the F1 of the labels, 0 where a label has no true positive; single-label: over the labels "
        "that occur in gold or predictions, multi-label: over all labels (scikit-learn's average='macro')."
    ),
    "weighted_f1": "Mean of the F1 of the labels, weighted by their gold rows (scikit-learn's average='weighted').",
    "mcc": (
        "Matthews correlation of gold and predicted labels, -1 to 1, generalised to several classes (Gorodkin 2004), "
        "0 where gold or predictions are constant; multi-label: over all yes/no decisions pooled."
    ),
    "ece": (
        "Expected calibration error: mean over rows of the gap between confidence and accuracy in 15 equal-width bins "
        "of the top label's probability (Guo et al. 2017); multi-label: every label's probability is one decision."
    ),
    "brier": (
        "Half the squared distance between the probabilities and the gold label, 0 (perfect) to 1 (sure and wrong); "
        "the half keeps Brier's (1950) 0..2 sum in 0..1; multi-label: mean squared error over labels."
    ),
    "loss": (
        "Mean negative log likelihood of the gold label, in nats, probabilities clipped at 2.2e-16; multi-label: mean "
        "binary cross-entropy over labels."
    ),
}
LOWER_IS_BETTER = frozenset({"ece", "brier", "loss"})
COUNT_METRICS = ("accuracy", "macro_f1", "weighted_f1", "mcc")
PROBABILITY_METRICS = ("ece", "brier", "loss")


def confusion(gold: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the rows of each (gold, predicted) pair.

    `gold` and `predicted` are (rows,) label numbers from 0 to classes - 1; returns (classes, classes), gold down.
    """
    cells = np.asarray(gold, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def confusion_scores(table: np.ndarray) -> dict[str, np.ndarray]:
    """Score confusion counts; many tables at once.

    `table` is (..., classes, classes), gold down; each score is (...). Single-label only.
    """
    table = np.asarray(table)
    right = np.diagonal(table, axis1=-2, axis2=-1)  # (..., classes)
    return margin_scores(right, table.sum(axis=-1), table.sum(axis=-2))


def margin_scores(right: np.ndarray, gold: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Score the margins of single-label confusion tables, which hold all that the four count metrics need.

    Each argument is (..., classes): rows right, rows of gold, rows predicted of each class; each score is (...).
    """
    right, gold, predicted = (np.asarray(counts, dtype=np.float64) for counts in (right, gold, predicted))
    rows, hits = gold.sum(axis=-1), right.sum(axis=-1)  # (...)
    f1 = _ratio(2 * right, gold + predicted)  # (..., classes)
    present = ((gold + predicted) > 0).sum(axis=-1)
    # Gorodkin 2004, in the form of counts (scikit-learn's user guide, 3.4.4.13)
    covariance = hits * rows - (gold * predicted).sum(axis=-1)
    gold_variance = rows * rows - (gold * gold).sum(axis=-1)
    predicted_variance = rows * rows - (predicted * predicted).sum(axis=-1)
    mcc = _ratio(covariance, np.sqrt(gold_variance * predicted_variance))
    return {
        "accuracy": _ratio(hits, rows),
        "macro_f1": _ratio(f1.sum(axis=-1), present),
        "weighted_f1": _ratio((f1 * gold).sum(axis=-1), rows),
        "mcc": mcc,
    }


def multi_label_scores(
    right: np.ndarray, gold: np.ndarray, predicted: np.ndarray, exact: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    """Score multi-label counts; many tables at once.

    `right`, `gold`, `predicted` are (..., labels) counts of true positives, gold and predicted labels; `exact` is
    (...), the rows whose whole set is right; each score is (...).
    """
    right, gold, predicted = (np.asarray(counts, dtype=np.float64) for counts in (right, gold, predicted))
    f1 = _ratio(2 * right, gold + predicted)  # (..., labels)
    hits, yes, said = right.sum(axis=-1), gold.sum(axis=-1), predicted.sum(axis=-1)  # (...)
    decisions = float(rows * right.shape[-1])
    spread = np.sqrt(yes * (decisions - yes) * said * (decisions - said))
    mcc = _ratio(hits * decisions - yes * said, spread)
    return {
        "accuracy": np.asarray(exact, dtype=np.float64) / rows,
        "macro_f1": f1.mean(axis=-1),
        "weighted_f1": _ratio((f1 * gold).sum(axis=-1), yes),
        "mcc": mcc,
    }


def ece(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error of confidences (rows,) whose decisions are `right` (rows,) or not."""
    gaps = np.asarray(probabilities, dtype=np.float64) - np.asarray(right)
    per_bin = np.bincount(confidence_bin(probabilities), weights=gaps, minlength=BINS)
    return float(np.abs(per_bin).sum() / len(gaps))


def confidence_bin(probabilities: np.ndarray) -> np.ndarray:
    """Return the bin 0 to 14 of each probability; bins are open below and closed above, as in Guo et al. 2017."""
    bins = np.ceil(np.asarray(probabilities, dtype=np.float64) * BINS).astype(np.int64) - 1
    return np.clip(bins, 0, BINS - 1)


def calibration_bins(probabilities: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return rows, mean confidence and accuracy of each non-empty bin, for a reliability diagram."""
    bins = confidence_bin(probabilities)
    rows = np.bincount(bins, minlength=BINS)
    confidence = np.bincount(bins, weights=np.asarray(probabilities, dtype=np.float64), minlength=BINS)
    accuracy = np.bincount(bins, weights=np.asarray(right, dtype=np.float64), minlength=BINS)
    return [
        {
            "from": b / BINS,
            "to": (b + 1) / BINS,
            "rows": int(rows[b]),
            "confidence": float(confidence[b] / rows[b]),
            "accuracy": float(accuracy[b] / rows[b]),
        }
        for b in range(BINS)
        if rows[b]
    ]


def brier_rows(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each row's Brier score (rows,); `gold` is (rows,) or, multi-label, 0/1 (rows, labels)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)  # (rows, labels)
    if np.ndim(gold) == 2:
        return np.asarray(np.square(probabilities - gold).mean(axis=1))
    squares = np.square(probabilities).sum(axis=1)
    top = probabilities[np.arange(len(gold)), gold]
    return np.asarray((squares - 2 * top + 1) / 2)  # sum of (p - onehot)² without building the one-hot table


def loss_rows(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return each row's negative log likelihood in nats (rows,); `gold` is (rows,) or, multi-label, (rows, labels)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if np.ndim(gold) == 2:
        of_gold = np.where(np.asarray(gold) > 0, probabilities, 1 - probabilities)  # (rows, labels)
        return np.asarray(-np.log(np.clip(of_gold, SMALLEST_PROBABILITY, 1.0)).mean(axis=1))
    of_gold = probabilities[np.arange(len(gold)), gold]
    return np.asarray(-np.log(np.clip(of_gold, SMALLEST_PROBABILITY, 1.0)))


def brier(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean Brier score, 0 to 1, of probabilities (rows, labels)."""
    return float(brier_rows(gold, probabilities).mean())


def log_loss(gold: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log likelihood, in nats, of probabilities (rows, labels)."""
    return float(loss_rows(gold, probabilities).mean())


def per_class(
    right: np.ndarray, gold: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and support (gold rows) of each label; counts are (labels,) each."""
    right, gold, predicted = (np.asarray(counts, dtype=np.float64) for counts in (right, gold, predicted))
    precision, recall = _ratio(right, predicted), _ratio(right, gold)
    f1 = _ratio(2 * right, gold + predicted)
    return [
        {
            "label": label,
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(gold[i]),
        }
        for i, label in enumerate(labels)
    ]


def hf_metric(name: str, language: str | None = None) -> "evaluate.Metric":
    """Return a metric of this module, or of text_metrics, as an `evaluate.Metric`; it needs no network.

    `compute(predictions=, references=)` returns {name: value}. Of labels it takes label numbers, and for ece, brier and
    loss a list of probabilities a row, single-label; of texts it takes texts, with one reference or a list of them a
    row, and `language` is that of the references. Raises KeyError for a name that neither module defines.
    """
    import datasets
    import evaluate  # 5 s of CPU: only here

    of_texts = name in text_metrics.DEFINITIONS
    description = text_metrics.DEFINITIONS[name] if of_texts else DEFINITIONS[name]
    number, label, text = (datasets.Value(kind) for kind in ("float64", "int64", "string"))
    predictions = text if of_texts else datasets.Sequence(number) if name in PROBABILITY_METRICS else label
    accepted = [datasets.Sequence(text), text] if of_texts else [label]
    features = [datasets.Features({"predictions": predictions, "references": one}) for one in accepted]
    info = evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)

    class Metric(evaluate.Metric):
        def _info(self) -> "evaluate.MetricInfo":
            return info

        def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
            if of_texts:
                several = [[row] if isinstance(row, str) else row for row in references]
                return {name: text_metrics.score(name, predictions, several, language)}
            return {name: _single(name, np.asarray(references), np.asarray(predictions))}

    return Metric(config_name=name, keep_in_memory=True)


def _single(name: str, gold: np.ndarray, predictions: np.ndarray) -> float:
    if name in COUNT_METRICS:
        values, together = np.unique(np.concatenate([gold, predictions]), return_inverse=True)
        table = confusion(together[: len(gold)], together[len(gold) :], len(values))
        return float(confusion_scores(table)[name])
    if name == "ece":
        return ece(predictions.max(axis=1), predictions.argmax(axis=1) == gold)
    return (brier if name == "brier" else log_loss)(gold, predictions)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide, with 0 where the divisor is 0 (scikit-learn's zero_division=0)."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.zeros(shape), where=below > 0))
