"""What a test set can show: bootstrap intervals, paired comparisons, exact tests, resolution."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy import sparse
from scipy.stats import binomtest, norm

from finetune.errors import Exit, UserError

ALPHA = 0.05
POWER = 0.8
REPLICATES = 2_000
TRIALS = 10_000
FEWEST_REPLICATES = 200
DRAWS = 40_000_000  # cells x replicates; above it the replicates are fewer, see `replicates_for`
CHUNK = 4_000_000  # cells x replicates in memory at a time: 32 MB

Score = Callable[[np.ndarray], np.ndarray]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """The rows of a test set, equal rows in one cell.

    `counts` is (cells,): rows in each cell. `statistics` is sparse (cells, sums): what one row of the cell adds to each
    sum. `score` turns sums (..., sums) into metrics (..., metrics); it must depend on the sums alone.
    """

    counts: np.ndarray
    statistics: sparse.csr_array
    score: Score

    def point(self) -> np.ndarray:
        """Return the metrics of the rows themselves, (metrics,)."""
        sums = self.statistics.T @ self.counts.astype(np.float64)
        return np.asarray(self.score(sums[None, :])[0])


@dataclass(frozen=True)
class Interval:
    """A value and its interval; low <= value <= high."""

    value: float
    low: float
    high: float

    def around(self, low: float, high: float) -> "Interval":
        """Return the interval stretched until it holds `low` and `high` too."""
        return Interval(self.value, min(self.low, low), max(self.high, high))

    def told(self) -> dict[str, float]:
        """Return it as it stands in results.json."""
        return {"value": self.value, "low": self.low, "high": self.high}


def told_scores(
    intervals: Mapping[str, Interval], seeds: Sequence[T], values: Callable[[T], Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return scores with their intervals; of several seeds "sd" is the sample standard deviation of their `values`."""
    scores = {name: interval.told() for name, interval in intervals.items()}
    if len(seeds) > 1:
        alone = [values(one) for one in seeds]
        for name in scores:
            scores[name]["sd"] = float(np.std([one[name] for one in alone], ddof=1))
    return scores


def bootstrap(sample: Sample, *, alpha: float = ALPHA, seed: int = 1) -> list[Interval]:
    """Return the percentile bootstrap interval of each metric of a sample (Efron and Tibshirani 1993, chapter 13).

    Rows are drawn with replacement, as many as there are, 2,000 times; drawing rows is drawing the cells' counts from a
    multinomial, so many equal rows cost no more than one. An interval that misses its value (a biased statistic such as
    ECE) is stretched to it. It cannot show what the rows do not hold: at a perfect score it has no width.
    """
    points = sample.point()
    values = np.concatenate([sample.score(sums) for sums in _resampled_sums(sample, seed)])  # (replicates, metrics)
    low, high = np.quantile(values, [alpha / 2, 1 - alpha / 2], axis=0)
    return [
        Interval(float(point), float(min(below, point)), float(max(above, point)))
        for point, below, above in zip(points, low, high, strict=True)
    ]


def paired_bootstrap(a: Sample, b: Sample, *, alpha: float = ALPHA, seed: int = 1) -> list[Interval]:
    """Return the interval of metric(a) - metric(b) for two systems on the same rows (Koehn 2004, section 4).

    The two samples must have the same cells in the same order: each draw takes the same rows for both.
    """
    if not np.array_equal(a.counts, b.counts):
        raise ValueError("paired samples must share their cells")
    width = a.statistics.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return a.score(sums[:, :width]) - b.score(sums[:, width:])

    together = sparse.csr_array(sparse.hstack([a.statistics, b.statistics]))
    return bootstrap(Sample(a.counts, together, difference), alpha=alpha, seed=seed)


def replicates_for(cells: int) -> int:
    """Return how often a sample is redrawn: 2,000 times, down to 200 beyond 20,000 cells (narrow intervals)."""
    return int(np.clip(DRAWS // max(cells, 1), FEWEST_REPLICATES, REPLICATES))


def mcnemar_exact(a_right: np.ndarray, b_right: np.ndarray) -> float:
    """Return the two-sided exact p-value that two systems are right equally often (McNemar 1947, binomial form).

    `a_right` and `b_right` are (rows,) booleans for the same rows; only rows where one of the two is right count.
    """
    only_a = int(np.count_nonzero(a_right & ~b_right))
    only_b = int(np.count_nonzero(b_right & ~a_right))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def approximate_randomisation(a: Sample, b: Sample, *, trials: int = TRIALS, seed: int = 1) -> float:
    """Return the two-sided p-value that which of two systems wrote which text does not matter, for one metric.

    In each trial the two systems swap what they wrote for each row or not, by the toss of a coin; the p-value is the
    share of trials, itself counted as one, whose difference is at least as large as the one seen (Noreen 1989; Riezler
    and Maxwell 2005, section 3.3, who find it the safer test where a bootstrap calls too much significant). The two
    samples must have the same cells, and scores of the same sums; the metric is their first.
    """
    if not np.array_equal(a.counts, b.counts):
        raise ValueError("paired samples must share their cells")
    seen = abs(a.point()[0] - b.point()[0])
    random = np.random.default_rng(seed)
    counts = a.counts.astype(np.float64)
    of_a, of_b = a.statistics.T @ counts, b.statistics.T @ counts  # (sums,)
    swap = sparse.csr_array((b.statistics - a.statistics).T)  # (sums, cells)
    trials = min(trials, 5 * replicates_for(len(counts)))
    beyond, missing = 1, trials
    while missing:
        size = min(missing, max(1, CHUNK // len(counts)))
        swapped = random.binomial(a.counts, 0.5, (size, len(counts))).astype(np.float64)
        moved = (swap @ swapped.T).T  # (size, sums)
        difference = a.score(of_a + moved)[:, 0] - b.score(of_b - moved)[:, 0]
        beyond += int((np.abs(difference) >= seen * (1 - 1e-12)).sum())  # rounding must not break a tie
        missing -= size
    return beyond / (trials + 1)


def check_pairs(first: Sequence[str], other: Sequence[str]) -> None:
    """Check that two systems were scored on the same rows; raises UserError (65) naming the first id that is amiss."""
    for one, two in ((first, other), (other, first)):
        known = set(two)
        missing = next((identity for identity in one if identity not in known), None)
        if missing is not None:
            what = f"only one of the two systems has a prediction for id {missing}"
            raise UserError(Exit.BAD_DATA, f"{what}: score both on the same file")
    twice = next((identity for identity, count in Counter([*first, *other]).items() if count != 2), None)
    if twice is not None:
        raise UserError(Exit.BAD_DATA, f"id {twice} occurs more than once, so rows cannot be paired: give unique ids")


def in_order_of(first: Sequence[str], other: Sequence[str]) -> list[int]:
    """Return where each id of `first` stands in `other`; raises UserError (65) as `check_pairs` does."""
    check_pairs(first, other)
    place = {identity: row for row, identity in enumerate(other)}
    return [place[identity] for identity in first]


def wilson(right: float, rows: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the score interval of a share of `rows` (Wilson 1927); it keeps its width at 0 and 1."""
    z = float(norm.ppf(1 - alpha / 2))
    share = right / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Return for each of k comparisons the two-sided level of its interval (Holm 1979), in the order given.

    The smallest p-value gets alpha / k, the next alpha / (k - 1), ...; from the first one that its level does not
    reject on, all get that level, because Holm's procedure stops there.
    """
    levels = [alpha] * len(p_values)
    stopped = math.inf
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        levels[index] = min(alpha / (len(p_values) - rank), stopped)
        if p_values[index] > levels[index]:
            stopped = levels[index]
    return levels


def comparison(metric: str, interval: Interval, p_value: float) -> dict[str, Any]:
    """Return a comparison as results.json has it: difference, interval, p-value and what they show."""
    return {
        "metric": metric,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p_value": p_value,
        "verdict": verdict(interval.low, interval.high),
    }


def compare_together(
    pairs: Mapping[str, tuple[S, S]], test: Callable[[S, S], float], compare: Callable[[S, S, float, int], T]
) -> dict[str, T]:
    """Make several comparisons whose intervals are widened by Holm's procedure.

    `test` gives a pair's p-value, once; `compare` takes the pair, its p-value and the number of comparisons among which
    its interval must hold.
    """
    p_values = [test(a, b) for a, b in pairs.values()]
    levels = holm(p_values)
    return {
        name: compare(a, b, p_value, round(ALPHA / level))
        for (name, (a, b)), p_value, level in zip(pairs.items(), p_values, levels, strict=True)
    }


def verdict(low: float, high: float) -> str:
    """Say what the interval of a difference shows, positive being better for the first system."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no difference shown"


def resolution(rows: int, disagreement: float = 0.1) -> float:
    """Return the smallest difference in accuracy that a paired test on `rows` rows shows with 80 % power at 95 %.

    `disagreement` is the share of rows where exactly one of the two systems is right. Solves
    rows = (z_0.975 sqrt(d) + z_0.8 sqrt(d - difference²))² / difference² for the difference (McNemar's test, normal
    approximation: Connor 1987, Biometrics 43). A difference cannot exceed the disagreement; where it would,
    the disagreement is taken to be as large. 1.0 where the rows are too few for any.
    """
    z_level, z_power = float(norm.ppf(1 - ALPHA / 2)), float(norm.ppf(POWER))

    def needed(difference: float) -> float:
        d = max(disagreement, difference)
        return ((z_level * math.sqrt(d) + z_power * math.sqrt(d - difference**2)) / difference) ** 2

    if rows < needed(1.0):
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle) <= rows else (middle, high)
    return high


def _resampled_sums(sample: Sample, seed: int) -> Iterator[np.ndarray]:
    cells, rows = len(sample.counts), int(sample.counts.sum())
    random = np.random.default_rng(seed)
    missing = replicates_for(cells)
    transposed = sparse.csr_array(sample.statistics.T)  # (sums, cells)
    while missing:
        size = min(missing, max(1, CHUNK // cells))
        drawn = _draw(random, sample.counts, rows, size)  # (size, cells)
        yield (transposed @ drawn.T).T  # (size, sums)
        missing -= size


def _draw(random: np.random.Generator, counts: np.ndarray, rows: int, size: int) -> np.ndarray:
    if len(counts) * 4 < rows:
        return random.multinomial(rows, counts / rows, size=size).astype(np.float64)
    # Few rows a cell: drawing the rows themselves is several times faster than one binomial for each cell.
    cell_of_row = np.repeat(np.arange(len(counts)), counts)
    drawn = np.empty((size, len(counts)))
    for replicate in drawn:
        replicate[:] = np.bincount(cell_of_row[random.integers(0, rows, rows)], minlength=len(counts))
    return drawn
