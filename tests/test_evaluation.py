"""Promises of finetune.evaluation."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from finetune import evaluation, metrics, significance
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions

LABELS = ("anger", "joy", "love")


def _system(rows: int = 200, accuracy: float = 0.8, seed: int = 1, labels: tuple[str, ...] = LABELS) -> Predictions:
    random = np.random.default_rng(seed)
    classes = len(labels)
    gold = np.random.default_rng(0).integers(0, classes, rows)
    predicted = np.where(random.random(rows) < accuracy, gold, (gold + random.integers(1, classes, rows)) % classes)
    probabilities = random.uniform(0, 0.4, (rows, classes))
    probabilities[np.arange(rows), predicted] += random.uniform(0.4, 1, rows)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Predictions([f"r{i}" for i in range(rows)], gold, predicted, probabilities, labels)


def _tagger(rows: int = 150, seed: int = 1) -> Predictions:
    random = np.random.default_rng(seed)
    gold = (np.random.default_rng(0).random((rows, 3)) < 0.4).astype(np.int64)
    probabilities = np.clip(gold * 0.6 + random.uniform(0, 0.6, gold.shape), 0, 1)
    ids = [f"r{i}" for i in range(rows)]
    return Predictions(ids, gold, (probabilities > 0.5).astype(np.int64), probabilities, LABELS, multi_label=True)


def _shuffled(system: Predictions, seed: int = 3) -> Predictions:
    order = np.random.default_rng(seed).permutation(len(system.ids))
    return replace(
        system,
        ids=[system.ids[i] for i in order],
        gold=system.gold[order],
        predicted=system.predicted[order],
        probabilities=system.probabilities[order],
    )


def _relabelled(system: Predictions) -> Predictions:
    """Return the same predictions with the labels in another order."""
    order = [2, 0, 1]  # old numbers in their new order
    number = np.argsort(order)
    return replace(
        system,
        labels=tuple(system.labels[i] for i in order),
        gold=number[system.gold],
        predicted=number[system.predicted],
        probabilities=system.probabilities[:, order],
    )


def test_scores_are_the_seven_metrics_each_inside_its_interval() -> None:
    for system in (_system(), _tagger()):
        scores = evaluation.score(system)
        assert set(scores) == set(metrics.DEFINITIONS)
        for interval in scores.values():
            assert set(interval) == {"value", "low", "high"}
            assert interval["low"] <= interval["value"] <= interval["high"]
            assert interval["low"] < interval["high"]


def test_score_values_equal_those_of_scikit_learn() -> None:
    system = _system()
    scores = evaluation.score(system)
    assert scores["accuracy"]["value"] == pytest.approx((system.gold == system.predicted).mean())
    assert scores["macro_f1"]["value"] == pytest.approx(f1_score(system.gold, system.predicted, average="macro"))
    assert scores["loss"]["value"] == pytest.approx(log_loss(system.gold, system.probabilities))
    confidence = system.probabilities.max(axis=1)
    assert scores["ece"]["value"] == pytest.approx(metrics.ece(confidence, system.gold == system.predicted))
    assert scores["brier"]["value"] == pytest.approx(metrics.brier(system.gold, system.probabilities))


def test_multi_label_score_values_equal_those_of_scikit_learn() -> None:
    system = _tagger()
    scores = evaluation.score(system)
    assert scores["accuracy"]["value"] == pytest.approx((system.gold == system.predicted).all(axis=1).mean())
    assert scores["macro_f1"]["value"] == pytest.approx(f1_score(system.gold, system.predicted, average="macro"))
    assert scores["loss"]["value"] == pytest.approx(log_loss(system.gold.ravel(), system.probabilities.ravel()))
    assert scores["ece"]["value"] == pytest.approx(metrics.ece(system.probabilities.ravel(), system.gold.ravel()))


def test_score_values_do_not_depend_on_the_order_of_rows_or_labels() -> None:
    system = _system()
    expected = {name: interval["value"] for name, interval in evaluation.score(system).items()}
    for other in (_shuffled(system), _relabelled(system)):
        found = {name: interval["value"] for name, interval in evaluation.score(other).items()}
        assert found == pytest.approx(expected)


def test_a_perfect_score_keeps_the_uncertainty_of_its_few_rows() -> None:
    scores = evaluation.score(_system(rows=10, accuracy=1.0))
    assert scores["accuracy"]["value"] == scores["accuracy"]["high"] == 1.0
    assert 0.7 < scores["accuracy"]["low"] < 0.75
    assert scores["macro_f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_one_row_can_be_scored() -> None:
    scores = evaluation.score(_system(rows=1, accuracy=1.0))
    assert all(math.isfinite(number) for interval in scores.values() for number in interval.values())


def test_several_seeds_are_scored_by_their_mean_with_its_spread() -> None:
    seeds = [_system(seed=s) for s in (1, 2, 3)]
    together, alone = evaluation.score(seeds), [evaluation.score(one) for one in seeds]
    for name in metrics.DEFINITIONS:
        values = [one[name]["value"] for one in alone]
        assert together[name]["value"] == pytest.approx(np.mean(values))
        assert together[name]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert together[name]["low"] <= together[name]["value"] <= together[name]["high"]


def test_identical_systems_show_no_difference_of_exactly_0() -> None:
    system = _system()
    for metric in metrics.DEFINITIONS:
        assert evaluation.compare(system, system, metric=metric) == {
            "metric": metric,
            "difference": 0.0,
            "low": 0.0,
            "high": 0.0,
            "p_value": 1.0,
            "verdict": "no difference shown",
        }


def test_a_clearly_better_system_is_better_and_the_other_worse_on_every_metric() -> None:
    good, poor = _system(rows=400, accuracy=0.95), _system(rows=400, accuracy=0.6, seed=2)
    for metric in metrics.DEFINITIONS:
        forth, back = evaluation.compare(good, poor, metric=metric), evaluation.compare(poor, good, metric=metric)
        assert forth["difference"] == pytest.approx(-back["difference"])
        assert forth["low"] <= forth["difference"] <= forth["high"]
        if metric != "ece":  # calibration is another matter than accuracy
            assert (forth["verdict"], back["verdict"]) == ("better", "worse")


def test_multi_label_systems_are_compared_on_whole_sets() -> None:
    good, poor = _tagger(seed=1), _tagger(seed=2)
    poor = replace(poor, predicted=1 - poor.predicted)
    found = evaluation.compare(good, poor)
    assert found["difference"] == pytest.approx(good.right.mean() - poor.right.mean())
    assert found["verdict"] == "better"
    assert evaluation.compare(good, poor, metric="macro_f1")["verdict"] == "better"


def test_four_rows_more_are_not_called_better_where_the_exact_test_is_not_sure() -> None:
    poor = _system(rows=100, accuracy=0.8)
    fixed = poor.predicted.copy()
    wrong = np.flatnonzero(~poor.right)[:4]
    fixed[wrong] = poor.gold[wrong]
    found = evaluation.compare(replace(poor, predicted=fixed), poor)
    assert found["p_value"] == pytest.approx(2 / 16)
    assert found["low"] == 0.0
    assert found["verdict"] == "no difference shown"


def test_rows_and_labels_are_paired_by_name_not_by_place() -> None:
    a, b = _system(seed=1), _system(accuracy=0.7, seed=2)
    expected = evaluation.compare(a, b)
    assert evaluation.compare(a, _shuffled(b)) == expected
    assert evaluation.compare(a, _relabelled(b)) == expected
    of_f1 = evaluation.compare(a, b, metric="macro_f1")["difference"]
    assert evaluation.compare(_relabelled(a), _shuffled(b), metric="macro_f1")["difference"] == pytest.approx(of_f1)


def test_systems_with_different_label_sets_can_be_compared() -> None:
    a, wide = _system(), _system(labels=(*LABELS, "fear"), seed=2)
    b = replace(wide, gold=a.gold, predicted=wide.predicted)
    assert evaluation.compare(a, b)["difference"] == pytest.approx(a.right.mean() - b.right.mean())
    assert evaluation.compare(b, a)["difference"] == pytest.approx(b.right.mean() - a.right.mean())


def test_different_rows_are_refused_with_the_first_missing_id() -> None:
    whole, part = _system(rows=6), _system(rows=5)
    for a, b in ((whole, part), (part, whole)):
        with pytest.raises(UserError, match="id r5") as caught:
            evaluation.compare(a, b)
        assert caught.value.code == Exit.BAD_DATA


def test_shuffled_rows_with_a_repeated_id_are_refused() -> None:
    system = _system(rows=6)
    twice = replace(system, ids=["r0", "r0", *system.ids[2:]])
    with pytest.raises(UserError, match="id r0 occurs more than once"):
        evaluation.compare(twice, _shuffled(twice))


def test_different_gold_labels_for_one_id_are_refused() -> None:
    system = _system(rows=6)
    gold = system.gold.copy()
    gold[4] = (gold[4] + 1) % 3
    with pytest.raises(UserError, match="different gold labels for id r4"):
        evaluation.compare(system, replace(system, gold=gold))


def test_seeds_are_compared_by_their_means_with_the_largest_p_value() -> None:
    a, b = [_system(accuracy=0.85, seed=s) for s in (1, 2)], [_system(accuracy=0.75, seed=s) for s in (3, 4)]
    found = evaluation.compare(a, b)
    means = [np.mean([one.right.mean() for one in side]) for side in (a, b)]
    assert found["difference"] == pytest.approx(means[0] - means[1])
    assert found["p_value"] == max(evaluation.compare(one, two)["p_value"] for one in a for two in b)
    single = evaluation.compare(a[0], b[0])
    assert found["high"] - found["low"] < single["high"] - single["low"]


def test_many_comparisons_widen_the_intervals_as_holm_does() -> None:
    base = _system(rows=300, accuracy=0.7, seed=9)
    pairs = {f"l{s}": (_system(rows=300, accuracy=0.7 + 0.05 * s, seed=s), base) for s in (1, 2, 3)}
    together = evaluation.compare_all(pairs)
    by_p_value = sorted(pairs, key=lambda name: together[name]["p_value"])
    assert together[by_p_value[0]] == evaluation.compare(*pairs[by_p_value[0]], comparisons=3)
    alone = evaluation.compare(*pairs[by_p_value[0]])
    strict = together[by_p_value[0]]
    assert strict["low"] < alone["low"]
    assert strict["high"] > alone["high"]


def test_diagnosis_finds_the_confident_mistakes_and_the_confused_pair() -> None:
    gold, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 2, 0])
    probabilities = np.full((6, 3), 0.1)
    probabilities[np.arange(6), predicted] = [0.8, 0.6, 0.9, 0.8, 0.8, 0.7]
    system = Predictions(list("abcdef"), gold, predicted, probabilities, LABELS)
    found = evaluation.diagnose(system, [f"text {i}" for i in "abcdef"])
    assert [error["id"] for error in found["errors"]] == ["c", "f", "b"]
    assert found["errors"][0] == {
        "id": "c",
        "text": "text c",
        "gold": "joy",
        "predicted": "anger",
        "probability": pytest.approx(0.9),
    }
    assert found["most_confused"] == {"labels": ["anger", "joy"], "rows": 2}
    assert found["confusion"] == {"labels": list(LABELS), "matrix": [[1, 1, 0], [1, 1, 0], [1, 0, 1]]}
    assert [row["support"] for row in found["per_class"]] == [2, 2, 2]
    assert sum(b["rows"] for b in found["calibration"]) == 6
    json.dumps(found, allow_nan=False)


def test_diagnosis_of_a_perfect_system_names_no_confused_pair() -> None:
    found = evaluation.diagnose(_system(accuracy=1.0), ["x"] * 200)
    assert found["most_confused"] is None
    assert found["errors"] == []


def test_diagnosis_shows_at_most_forty_mistakes() -> None:
    assert len(evaluation.diagnose(_system(accuracy=0.2), ["x"] * 200)["errors"]) == 40


def test_multi_label_diagnosis_names_sets_and_the_surest_wrong_decision() -> None:
    gold, predicted = np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1, 1, 0], [0, 1, 1]])
    probabilities = np.array([[0.9, 0.7, 0.2], [0.1, 0.8, 0.9]])
    found = evaluation.diagnose(Predictions(["a", "b"], gold, predicted, probabilities, LABELS, True), ["x", "y"])
    expected = {"id": "a", "text": "x", "gold": ["anger"], "predicted": ["anger", "joy"], "probability": 0.7}
    assert found["errors"] == [expected]
    assert "confusion" not in found


@pytest.mark.parametrize("system", [_system(), _tagger()], ids=["single-label", "multi-label"])
def test_prediction_lines_come_back_as_they_were(system: Predictions) -> None:
    texts = [f"text {i}" for i in range(len(system.ids))]
    lines = [json.loads(json.dumps(row, allow_nan=False)) for row in evaluation.to_rows(system, texts, pairs=texts)]
    assert list(lines[0]) == ["id", "text", "text_pair", "gold", "predicted", "probabilities"]
    assert isinstance(lines[0]["predicted"], list) == system.multi_label
    back = evaluation.from_rows(lines, LABELS)
    assert back.ids == system.ids
    assert back.multi_label == system.multi_label
    assert np.array_equal(back.gold, system.gold)
    assert np.array_equal(back.predicted, system.predicted)
    assert np.abs(back.probabilities - system.probabilities).max() < 3e-6


def test_rounded_probabilities_of_many_labels_still_sum_to_1() -> None:
    classes = 5_000
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(classes), 3)
    gold = np.zeros(3, dtype=np.int64)
    labels = tuple(f"l{i}" for i in range(classes))
    system = Predictions(["a", "b", "c"], gold, gold, probabilities, labels)
    for row in evaluation.to_rows(system, ["x", "y", "z"]):
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert "text_pair" not in row


def test_a_prediction_line_with_an_unknown_label_is_refused_by_its_number() -> None:
    lines = evaluation.to_rows(_system(rows=3), ["x", "y", "z"])
    lines[1]["gold"] = "envy"
    with pytest.raises(UserError, match=r"line 2.*envy") as caught:
        evaluation.from_rows(lines, LABELS)
    assert caught.value.code == Exit.BAD_DATA


def test_impossible_predictions_are_refused_when_they_are_made() -> None:
    system = _system(rows=4)
    nan = system.probabilities.copy()
    nan[2, 1] = np.nan
    with pytest.raises(UserError, match="row r2: a probability is not a finite number"):
        replace(system, probabilities=nan)
    with pytest.raises(UserError, match="shapes"):
        replace(system, ids=system.ids[:3])
    with pytest.raises(UserError, match="outside 0 to 2"):
        replace(system, gold=system.gold + 3)
    with pytest.raises(UserError, match="no row to score"):
        evaluation.score(replace(system, ids=[]))


def test_a_predictions_file_keeps_the_loss_of_a_confident_mistake() -> None:
    probabilities = np.array([[1 - 3e-9, 2e-9, 1e-9], [0.2, 0.3, 0.5]])
    system = Predictions(["a", "b"], np.array([1, 2]), np.array([0, 2]), probabilities, LABELS)
    back = evaluation.from_rows(evaluation.to_rows(system, ["x", "y"]), LABELS)
    assert evaluation.values(back)["loss"] == pytest.approx(evaluation.values(system)["loss"], rel=1e-6)
    np.testing.assert_allclose(back.probabilities.sum(axis=1), 1.0, atol=1e-11)


def test_accuracy_by_length_parts_the_rows_by_the_words_of_their_texts() -> None:
    system = _system(rows=100)
    texts = [" ".join(["word"] * (1 + number % 10)) for number in range(100)]
    found = evaluation.by_length(system, texts)
    assert [(one["from"], one["to"], one["rows"]) for one in found] == [(n, n + 1, 20) for n in (1, 3, 5, 7, 9)]
    of_first = [number for number in range(100) if number % 10 < 2]
    assert found[0]["accuracy"] == system.right[of_first].mean()
    assert (found[0]["low"], found[0]["high"]) == significance.wilson(system.right[of_first].sum(), 20)
    assert len(evaluation.by_length(system, ["one"] * 100)) == 1
