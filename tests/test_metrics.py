"""Promises of finetune.metrics."""

import socket
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, matthews_corrcoef
from sklearn.metrics import log_loss as sklearn_log_loss

from finetune import metrics


def _labels(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    gold = random.integers(0, classes, rows)
    return gold, np.where(random.random(rows) < 0.6, gold, random.integers(0, classes, rows))


def _probabilities(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


def _scores(gold: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    scores = metrics.confusion_scores(metrics.confusion(gold, predicted, classes))
    return {name: float(value) for name, value in scores.items()}


def _multi_label_scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    sums = (gold * predicted).sum(axis=0), gold.sum(axis=0), predicted.sum(axis=0)
    exact = (gold == predicted).all(axis=1).sum()
    scores = metrics.multi_label_scores(*sums, exact, len(gold))
    return {name: float(value) for name, value in scores.items()}


def test_every_metric_of_the_contract_has_a_definition() -> None:
    assert set(metrics.DEFINITIONS) == {"accuracy", "macro_f1", "weighted_f1", "mcc", "ece", "brier", "loss"}
    assert {*metrics.COUNT_METRICS, *metrics.PROBABILITY_METRICS} == set(metrics.DEFINITIONS)


def test_f1_of_a_table_worked_by_hand() -> None:
    # gold a a a b b c, predicted a a b b c c: a 2/2, 2/3; b 1/2, 1/2; c 1/2, 1/1
    gold, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    scores = _scores(gold, predicted, 3)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert scores["weighted_f1"] == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert metrics.confusion(gold, predicted, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_single_label_scores_equal_those_of_scikit_learn(classes: int) -> None:
    gold, predicted = _labels(200, classes, seed=classes)
    scores = _scores(gold, predicted, classes)
    assert scores["accuracy"] == pytest.approx((gold == predicted).mean())
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert scores["weighted_f1"] == pytest.approx(f1_score(gold, predicted, average="weighted"))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(gold, predicted))


def test_a_class_in_neither_gold_nor_predictions_does_not_count_in_macro_f1() -> None:
    gold, predicted = np.array([0, 0, 4, 4]), np.array([0, 4, 4, 2])
    scores = _scores(gold, predicted, 9)
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


def test_scores_of_a_constant_prediction_are_finite() -> None:
    scores = _scores(np.array([0, 1, 1]), np.array([1, 1, 1]), 2)
    assert scores["mcc"] == 0.0
    assert scores["macro_f1"] == pytest.approx(0.4)


def test_multi_label_scores_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    gold = (random.random((150, 6)) < 0.3).astype(int)
    predicted = np.where(random.random(gold.shape) < 0.7, gold, 1 - gold)
    gold[:, 5] = predicted[:, 5] = 0  # a label that nobody has: scikit-learn counts it as 0
    scores = _multi_label_scores(gold, predicted)
    assert scores["accuracy"] == pytest.approx((gold == predicted).all(axis=1).mean())
    assert scores["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))
    assert scores["weighted_f1"] == pytest.approx(f1_score(gold, predicted, average="weighted", zero_division=0))
    assert scores["mcc"] == pytest.approx(matthews_corrcoef(gold.ravel(), predicted.ravel()))


def test_many_tables_at_once_score_as_each_alone() -> None:
    tables = np.random.default_rng(1).integers(0, 9, (2, 3, 4, 4))
    together = metrics.confusion_scores(tables)
    for name in metrics.COUNT_METRICS:
        assert together[name].shape == (2, 3)
        assert together[name][1, 2] == pytest.approx(float(metrics.confusion_scores(tables[1, 2])[name]))


def test_scores_do_not_depend_on_the_order_of_rows_or_labels() -> None:
    gold, predicted = _labels(300, 5, seed=8)
    probabilities = _probabilities(300, 5, seed=8)
    order = np.random.default_rng(2).permutation(300)
    number = np.array([3, 0, 4, 1, 2])  # new number of each label
    renumbered = np.empty_like(probabilities)
    renumbered[:, number] = probabilities
    assert _scores(number[gold][order], number[predicted][order], 5) == pytest.approx(_scores(gold, predicted, 5))
    for function in (metrics.brier, metrics.log_loss):
        assert function(number[gold][order], renumbered[order]) == pytest.approx(function(gold, probabilities))


def test_loss_equals_that_of_scikit_learn_also_where_the_gold_label_has_probability_0() -> None:
    gold, probabilities = _labels(100, 4, seed=5)[0], _probabilities(100, 4, seed=5)
    probabilities[3] = np.eye(4)[(gold[3] + 1) % 4]
    expected = sklearn_log_loss(gold, probabilities, labels=range(4))
    assert metrics.log_loss(gold, probabilities) == pytest.approx(expected)


def test_brier_is_half_the_squared_distance_to_the_gold_label() -> None:
    gold, probabilities = _labels(100, 4, seed=6)[0], _probabilities(100, 4, seed=6)
    by_hand = np.square(probabilities - np.eye(4)[gold]).sum(axis=1).mean() / 2
    assert metrics.brier(gold, probabilities) == pytest.approx(by_hand)
    assert metrics.brier(np.array([1]), np.array([[1.0, 0.0]])) == 1.0
    two = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    assert metrics.brier(gold % 2, two) == pytest.approx(brier_score_loss(gold % 2, two[:, 1]))


def test_multi_label_brier_and_loss_are_means_over_labels() -> None:
    gold, probabilities = np.array([[1, 0], [0, 0]]), np.array([[0.8, 0.1], [0.3, 0.5]])
    assert metrics.brier(gold, probabilities) == pytest.approx((0.04 + 0.01 + 0.09 + 0.25) / 4)
    assert metrics.log_loss(gold, probabilities) == pytest.approx(-np.log([0.8, 0.9, 0.7, 0.5]).mean())


def test_ece_of_bins_worked_by_hand() -> None:
    # bin (12/15, 13/15]: .82 right, .86 wrong; bin (6/15, 7/15]: .45 right
    confidence, right = np.array([0.82, 0.86, 0.45]), np.array([True, False, True])
    assert metrics.ece(confidence, right) == pytest.approx((abs(0.82 + 0.86 - 1) + 0.55) / 3)
    bins = metrics.calibration_bins(confidence, right)
    assert [b["rows"] for b in bins] == [1, 2]
    assert bins[1]["confidence"] == pytest.approx(0.84)
    assert bins[1]["accuracy"] == 0.5


def test_confidence_0_and_1_fall_in_the_first_and_last_bin() -> None:
    assert metrics.confidence_bin(np.array([0.0, 1 / 15, 1.0])).tolist() == [0, 0, 14]


def test_calibrated_confidences_have_a_small_ece_and_boastful_ones_a_large_one() -> None:
    random = np.random.default_rng(4)
    confidence = random.uniform(0.5, 1, 20_000)
    right = random.random(20_000) < confidence
    assert metrics.ece(confidence, right) < 0.02
    assert metrics.ece(np.ones(20_000), right) == pytest.approx(0.25, abs=0.02)


def test_per_class_rows_name_their_label() -> None:
    rows = metrics.per_class(np.array([2, 0]), np.array([3, 0]), np.array([2, 1]), ("yes", "no"))
    assert rows[0] == {"label": "yes", "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8, "support": 3}
    assert rows[1] == {"label": "no", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_a_hugging_face_metric_computes_with_the_network_blocked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def blocked(*_: Any, **__: Any) -> None:
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    macro = metrics.hf_metric("macro_f1").compute(predictions=[0, 0, 1, 1, 2, 2], references=[0, 0, 0, 1, 1, 2])
    assert macro == {"macro_f1": pytest.approx((0.8 + 0.5 + 2 / 3) / 3)}
    calibration = metrics.hf_metric("ece").compute(predictions=[[0.25, 0.75], [0.5, 0.5]], references=[1, 0])
    assert calibration == {"ece": pytest.approx((0.25 + 0.5) / 2)}
    batches = metrics.hf_metric("accuracy")
    batches.add_batch(predictions=[0, 1], references=[0, 0])
    batches.add_batch(predictions=[1], references=[1])
    assert batches.compute() == {"accuracy": pytest.approx(2 / 3)}
