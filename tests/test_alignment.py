"""Entries of a new vocabulary find the old tokens that they translate."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import sparse

from finetune.pretraining import alignment
from finetune.pretraining.stores import Rows


def rows(values: list[list[int]]) -> Rows:
    """Return rows of token numbers."""
    offsets = np.cumsum([0, *map(len, values)])
    return Rows(np.array([token for row in values for token in row], dtype=np.uint16), offsets)


def language(pairs: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Return sentences of a language in which token n means 19 - n and neighbours change places, and what they mean."""
    draw = np.random.default_rng(seed)
    old = [draw.integers(0, 20, draw.integers(2, 9)).tolist() for _ in range(pairs)]
    new = [[19 - token for token in row] for row in old]
    for row in new:
        row[0], row[1] = row[1], row[0]
    return rows(new), rows(old)


def naive(new: list[list[int]], old: list[list[int]]) -> dict[tuple[int, int], float]:
    """Return the expected counts of Model 1 with a prior for the diagonal, loop by loop."""
    likely: dict[tuple[int, int], float] = defaultdict(lambda: 1.0)
    counts: dict[tuple[int, int], float] = {}
    for _ in range(alignment.ROUNDS):
        counts = defaultdict(float)
        totals: dict[int, float] = defaultdict(float)
        for f, e in zip(new, old, strict=True):
            for j, one in enumerate(f):
                prior = [
                    math.exp(-alignment.DIAGONAL * abs((i + 0.5) / len(e) - (j + 0.5) / len(f))) for i in range(len(e))
                ]
                shares = [likely[one, other] * part for other, part in zip(e, prior, strict=True)]
                for other, share in zip(e, shares, strict=True):
                    counts[one, other] += share / sum(shares)
                    totals[other] += share / sum(shares)
        for key, count in counts.items():
            likely[key] = count / totals[key[1]]
    return counts


def test_entries_find_the_old_tokens_that_they_mean() -> None:
    new, old = language(400)
    found = alignment.expected_counts(new, old, np.arange(400), np.arange(400), (20, 20)).toarray()
    assert found.argmax(axis=1).tolist() == list(range(19, -1, -1))
    assert (found.max(axis=1) / found.sum(axis=1)).min() > 0.8


def test_the_counts_are_those_of_the_loops_in_the_paper() -> None:
    new, old = [[1, 2, 3], [2, 2], [4, 1]], [[5, 6], [6, 7, 5], [5]]
    found = alignment.expected_counts(rows(new), rows(old), np.arange(3), np.arange(3), (5, 8)).toarray()
    for (one, other), count in naive(new, old).items():
        assert found[one, other] == pytest.approx(count, abs=1e-12)
    assert found.sum() == pytest.approx(7)  # one for each new token


def test_pairs_choose_their_source_and_empty_sources_are_passed_over() -> None:
    new, old = rows([[0], [1], [2]]), rows([[3], [], [4]])
    found = alignment.expected_counts(new, old, np.array([2, 1, 0]), np.array([0, 1]), (3, 5)).toarray()
    assert [places.tolist() for places in found.nonzero()] == [[0], [4]]
    assert alignment.expected_counts(new, old, np.array([1, 1, 1]), np.arange(3), (3, 5)).nnz == 0


def test_too_many_links_are_cut_at_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MOST_LINKS", 6)
    new, old = rows([[0, 1], [2], [3]]), rows([[0, 1], [2], [3, 4]])
    found = alignment.expected_counts(new, old, np.arange(3), np.arange(3), (4, 5)).toarray()
    assert found[:3].sum() == pytest.approx(3)
    assert found[3].sum() == 0


def test_a_row_is_the_mean_of_the_old_rows_by_their_counts_over_languages() -> None:
    old = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    first = sparse.csr_matrix(np.array([[3.0, 0, 0], [0, 0, 0], [0, 0, 0.5]]))
    second = sparse.csr_matrix(np.array([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]))
    mixed, seen = alignment.mixed_rows([first, second], old)
    assert mixed[0].tolist() == pytest.approx([0.75, 0.25])
    assert seen.tolist() == [True, False, False]
