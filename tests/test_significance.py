"""Promises of finetune.significance."""

import math

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import binom

from finetune import significance
from finetune.significance import Sample


def _share(of_rows: np.ndarray) -> Sample:
    """Make a sample of 0/1 rows, in two cells, whose metric is the share of ones."""
    ones = int(of_rows.sum())
    rows = len(of_rows)
    statistics = sparse.csr_array(np.array([[1.0], [0.0]]))
    return Sample(np.array([ones, rows - ones]), statistics, lambda sums: sums / rows)


def _mean(values: np.ndarray) -> Sample:
    statistics = sparse.csr_array(np.asarray(values, dtype=np.float64)[:, None])
    return Sample(np.ones(len(values), dtype=np.int64), statistics, lambda sums: sums / len(values))


def test_intervals_cover_the_truth_in_95_of_100_samples() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        interval = significance.bootstrap(_share(random.random(200) < 0.8))[0]
        covered += interval.low <= 0.8 <= interval.high
    assert 0.915 <= covered / 300 <= 0.98


def test_paired_intervals_cover_the_true_difference() -> None:
    random = np.random.default_rng(8)
    covered = 0
    for _ in range(150):
        hard = random.random(250)
        a, b = (hard < 0.8).astype(float), np.where(random.random(250) < 0.1, 0.0, hard < 0.8)
        interval = significance.paired_bootstrap(_mean(a), _mean(b))[0]
        covered += interval.low <= 0.08 <= interval.high
    assert 0.9 <= covered / 150 <= 0.99


def test_pairing_gives_narrower_intervals_than_two_samples_apart() -> None:
    random = np.random.default_rng(9)
    hard = random.random(500)
    a, b = (hard < 0.8).astype(float), (hard < 0.77).astype(float)
    paired = significance.paired_bootstrap(_mean(a), _mean(b))[0]
    alone = significance.bootstrap(_mean(a))[0]
    apart = math.sqrt(2) * (alone.high - alone.low)  # two independent samples of such rows
    assert paired.high - paired.low < apart / 2


def test_cells_of_equal_rows_and_single_rows_give_the_same_interval() -> None:
    right = np.random.default_rng(1).random(1_000) < 0.9
    cells, rows = significance.bootstrap(_share(right))[0], significance.bootstrap(_mean(right))[0]
    assert cells.value == pytest.approx(rows.value)
    assert cells.low == pytest.approx(rows.low, abs=0.003)
    assert cells.high == pytest.approx(rows.high, abs=0.003)
    exact = binom.ppf([0.025, 0.975], 1_000, right.mean()) / 1_000
    assert [cells.low, cells.high] == pytest.approx(exact, abs=0.003)


def test_an_interval_contains_its_value_even_where_the_statistic_is_biased() -> None:
    values = np.random.default_rng(2).normal(size=50)
    values -= values.mean()  # the absolute mean of the rows is 0; that of every resample lies above
    statistics = sparse.csr_array(values[:, None])
    sample = Sample(np.ones(50, dtype=np.int64), statistics, lambda sums: np.abs(sums) / 50)
    interval = significance.bootstrap(sample)[0]
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(0.0, abs=1e-12)


def test_a_perfect_score_has_its_value_as_interval() -> None:
    interval = significance.bootstrap(_share(np.ones(30, dtype=bool)))[0]
    assert (interval.low, interval.value, interval.high) == (1.0, 1.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    sample = _share(np.random.default_rng(3).random(333) < 0.7)
    assert significance.bootstrap(sample, seed=4) == significance.bootstrap(sample, seed=4)
    assert significance.bootstrap(sample, seed=4) != significance.bootstrap(sample, seed=5)


def test_a_stricter_level_gives_a_wider_interval() -> None:
    sample = _share(np.random.default_rng(3).random(400) < 0.7)
    usual, strict = significance.bootstrap(sample)[0], significance.bootstrap(sample, alpha=0.01)[0]
    assert strict.low < usual.low
    assert strict.high > usual.high


def test_samples_of_different_rows_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="share their cells"):
        significance.paired_bootstrap(_mean(np.ones(3)), _mean(np.ones(4)))


def test_replicates_are_2000_until_there_are_very_many_cells() -> None:
    assert significance.replicates_for(7_600) == 2_000
    assert significance.replicates_for(1_000_000) == 200


def _right(only_a: int, only_b: int, both: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.array([True] * only_a + [False] * only_b + [True] * both)
    return a, np.array([False] * only_a + [True] * only_b + [True] * both)


def test_mcnemar_equals_binomial_tails_worked_by_hand() -> None:
    # 1 against 7 of 8: 2 (1 + 8) / 2^8; 0 against 5: 2 / 2^5; 4 against 4: 1
    assert significance.mcnemar_exact(*_right(1, 7, 20)) == pytest.approx(18 / 256)
    assert significance.mcnemar_exact(*_right(7, 1, 0)) == pytest.approx(18 / 256)
    assert significance.mcnemar_exact(*_right(0, 5, 3)) == pytest.approx(2 / 32)
    assert significance.mcnemar_exact(*_right(4, 4, 3)) == 1.0
    assert significance.mcnemar_exact(*_right(0, 0, 3)) == 1.0


def test_wilson_gives_a_perfect_score_the_width_that_its_rows_allow() -> None:
    z = 1.959963984540054
    low, high = significance.wilson(10, 10)
    assert low == pytest.approx(10 / (10 + z * z))
    assert high == pytest.approx(1.0)
    assert significance.wilson(40, 50) == pytest.approx((0.6696, 0.8876), abs=1e-4)  # Agresti and Coull's formula


def test_holm_gives_the_smallest_p_value_the_strictest_level() -> None:
    assert significance.holm([0.001, 0.0001, 0.02]) == pytest.approx([0.05 / 2, 0.05 / 3, 0.05])
    assert significance.holm([0.5]) == [0.05]
    assert significance.holm([]) == []


def test_holm_stops_at_the_first_p_value_that_its_level_does_not_reject_on() -> None:
    # 0.03 > 0.05 / 2 stops; 0.04 would pass at 0.05 but is not reached
    assert significance.holm([0.04, 0.001, 0.03]) == pytest.approx([0.05 / 2, 0.05 / 3, 0.05 / 2])


def test_the_verdict_is_read_off_the_interval() -> None:
    assert significance.verdict(0.01, 0.03) == "better"
    assert significance.verdict(-0.03, -0.01) == "worse"
    assert significance.verdict(-0.01, 0.03) == "no difference shown"
    assert significance.verdict(0.0, 0.03) == "no difference shown"


def test_resolution_equals_the_formula_worked_by_hand() -> None:
    difference = significance.resolution(3_080)
    needed = ((1.959964 * math.sqrt(0.1) + 0.841621 * math.sqrt(0.1 - difference**2)) / difference) ** 2
    assert needed == pytest.approx(3_080, rel=1e-4)
    assert difference == pytest.approx(0.0159, abs=2e-4)


def test_resolution_falls_with_rows_and_never_exceeds_1() -> None:
    found = [significance.resolution(rows) for rows in (0, 1, 4, 20, 100, 10_000, 1_000_000)]
    assert found[0] == found[1] == 1.0
    assert found == sorted(found, reverse=True)
    assert significance.resolution(500, disagreement=0.05) < significance.resolution(500, disagreement=0.2)


def test_the_stated_resolution_is_found_in_four_of_five_experiments() -> None:
    random = np.random.default_rng(5)
    rows, disagreement = 2_000, 0.1
    difference = significance.resolution(rows, disagreement)
    shares = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    found = [
        significance.mcnemar_exact(*_right(only_a, only_b, both)) < 0.05
        for only_a, only_b, both in random.multinomial(rows, shares, size=400)
    ]
    assert 0.72 <= np.mean(found) <= 0.87


def test_randomisation_of_few_rows_is_the_exact_sign_test() -> None:
    ones, zeros = np.ones(6), np.zeros(6)
    p_value = significance.approximate_randomisation(_mean(ones), _mean(zeros))
    assert p_value == pytest.approx(2 / 2**6, abs=0.006)


def test_randomisation_rejects_a_true_null_as_often_as_its_level_says() -> None:
    random = np.random.default_rng(2)
    p_values = [
        significance.approximate_randomisation(_mean(random.normal(size=50)), _mean(random.normal(size=50)), trials=400)
        for _ in range(200)
    ]
    assert 0.015 <= np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)


def test_randomisation_of_cells_equals_that_of_rows() -> None:
    random = np.random.default_rng(4)
    a, b = (random.random(400) < 0.6).astype(float), (random.random(400) < 0.52).astype(float)
    rows = significance.approximate_randomisation(_mean(a), _mean(b))
    cells, counts = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    samples = [Sample(counts, sparse.csr_array(cells[:, [side]]), lambda sums: sums / 400) for side in (0, 1)]
    assert significance.approximate_randomisation(*samples) == pytest.approx(rows, abs=0.02)
