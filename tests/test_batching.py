"""Batches: each row once, the order from the seed alone, equal shares, and padding that is not more than asked."""

import itertools

import numpy as np
import pytest
import torch

from finetune.data.batching import (
    UPDATES_IN_A_BUCKET,
    Order,
    Strategy,
    cut_by_tokens,
    evaluation_batches,
    pad,
    pad_and_mask,
    padded_tokens,
    share,
)

STRATEGIES: list[Strategy] = ["group_by_length", "random"]


def lengths_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60, rows)


def padded(batch: np.ndarray, lengths: np.ndarray) -> int:
    return int(lengths[batch].max()) * len(batch)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("max_tokens", [None, 100])
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1_000])
def test_each_row_comes_once_in_an_epoch(strategy: Strategy, max_tokens: int | None, rows: int) -> None:
    updates = Order(1, 8, strategy, max_tokens).epoch(lengths_of(rows), 0)
    assert sorted(row for update in updates for row in update.tolist()) == list(range(rows))
    assert all(0 < len(update) <= 8 for update in updates)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_the_order_is_a_function_of_seed_and_epoch(strategy: Strategy, max_tokens: int | None) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        np.random.seed(epoch * 7)  # the global state has no say
        return [update.tolist() for update in Order(seed, 8, strategy, max_tokens).epoch(lengths_of(100), epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_only_the_last_update_is_smaller() -> None:
    for strategy in STRATEGIES:
        sizes = sorted(len(update) for update in Order(1, 8, strategy).epoch(lengths_of(1_003), 0))
        assert sizes == [3, *[8] * 125]


def test_grouping_by_length_pads_a_fraction_of_what_random_order_pads() -> None:
    lengths = lengths_of(2_000)
    waste = {}
    for strategy in STRATEGIES:
        updates = Order(1, 16, strategy).epoch(lengths, 0)
        waste[strategy] = sum(padded(update, lengths) for update in updates) / lengths.sum() - 1
    assert waste["group_by_length"] < 0.05
    assert waste["random"] > 0.5


def test_grouping_by_length_still_mixes_rows_and_updates() -> None:
    lengths = np.sort(lengths_of(4_000))
    updates = Order(1, 16).epoch(lengths, 0)
    means = np.array([lengths[update].mean() for update in updates])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # short ones do not come first
    assert len(updates) > UPDATES_IN_A_BUCKET
    assert float(np.mean([np.ptp(update) > 100 for update in updates])) > 0.5  # neighbours in the file are parted


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_update_fits_the_token_budget_unless_one_row_is_longer(strategy: Strategy) -> None:
    lengths = lengths_of(500)
    updates = Order(1, 32, strategy, 120).epoch(lengths, 0)
    assert all(padded(update, lengths) <= 120 for update in updates)
    longer = Order(1, 32, strategy, 10).epoch(lengths, 0)
    assert all(padded(update, lengths) <= 10 or len(update) == 1 for update in longer)


def test_cutting_by_tokens_keeps_the_order_and_fills_each_batch() -> None:
    lengths = np.array([3, 3, 3, 5, 5, 1, 9])
    batches = cut_by_tokens(np.arange(7), lengths, 9, 3)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3], [4], [5], [6]]
    assert [batch.tolist() for batch in cut_by_tokens(np.arange(7), lengths, 10, 2)] == [[0, 1], [2, 3], [4, 5], [6]]
    assert cut_by_tokens(np.arange(0), lengths, 9, 3) == []


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13])
def test_an_update_is_shared_out_without_loss_or_double(world: int, accumulation: int, rows: int) -> None:
    lengths = lengths_of(50)
    update = np.random.default_rng(1).permutation(50)[:rows]
    parts = [share(update, lengths, rank, world, accumulation) for rank in range(world)]
    assert sorted(row for mine in parts for part in mine for row in part.tolist()) == sorted(update.tolist())
    sizes = [sum(len(part) for part in mine) for mine in parts]
    assert max(sizes) - min(sizes) <= 1
    for mine in parts:
        assert all(len(part) for part in mine)
        assert len(mine) <= accumulation
        assert max((len(part) for part in mine), default=0) - min((len(part) for part in mine), default=0) <= 1


def test_a_micro_batch_holds_rows_of_similar_length() -> None:
    lengths = np.arange(100)
    parts = share(np.random.default_rng(0).permutation(100), lengths, 0, 1, 4)
    assert [(part.min(), part.max()) for part in parts] == [(75, 99), (50, 74), (25, 49), (0, 24)]


def test_scoring_covers_each_row_once_longest_first_within_both_limits() -> None:
    lengths = lengths_of(203)
    batches = evaluation_batches(lengths, 16, 300)
    rows = np.concatenate(batches)
    assert sorted(rows.tolist()) == list(range(203))
    assert (np.diff(lengths[rows]) <= 0).all()
    assert all(len(batch) <= 16 and padded(batch, lengths) <= 300 for batch in batches)


def test_padding_is_on_the_right_up_to_the_longest_row_or_its_multiple() -> None:
    rows = [np.array([1, 2, 3]), np.array([4], dtype=np.int32)]
    assert torch.equal(pad(rows, 9), torch.tensor([[1, 2, 3], [4, 9, 9]]))
    assert pad(rows, 9, multiple=8).shape == (2, 8)
    assert pad(rows, 9, multiple=3).shape == (2, 3)
    assert pad(rows, 9).dtype == torch.int64
    tokens, real = pad_and_mask([[1, 2, 3], rows[1], [9]], 9, multiple=4)
    assert tokens.tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]]
    assert real.tolist() == [[True] * 3 + [False], [True] + [False] * 3, [True] + [False] * 3]


def test_the_token_budget_counts_both_sides_once_padded() -> None:
    random = np.random.default_rng(3)
    lengths = np.stack([random.integers(1, 30, 500), random.integers(1, 30, 500)], axis=1)
    updates = Order(1, 64, "group_by_length", 400).epoch(lengths, 0)
    sizes = [len(update) * int(lengths[update].max(axis=0).sum()) for update in updates]
    assert sizes == [padded_tokens(lengths[update]) for update in updates]
    assert max(sizes) <= 400
    assert np.mean(sizes) > 250
    assert sorted(np.concatenate(updates)) == list(range(500))
    batches = evaluation_batches(lengths, 64, 400)
    assert lengths[batches[0]].sum(axis=1).max() == lengths.sum(axis=1).max()
    assert sorted(np.concatenate(batches)) == list(range(500))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("max_tokens", [None, 100])
def test_groups_never_share_an_update_and_their_updates_come_mixed(strategy: Strategy, max_tokens: int | None) -> None:
    lengths, groups = lengths_of(500), np.random.default_rng(3).integers(0, 3, 500)
    updates = Order(1, 8, strategy, max_tokens).epoch(lengths, 0, groups)
    assert sorted(row for update in updates for row in update.tolist()) == list(range(500))
    kinds = [set(groups[update].tolist()) for update in updates]
    assert all(len(kind) == 1 for kind in kinds)
    changes = sum(one != two for one, two in itertools.pairwise(kinds))
    assert changes > len(updates) / 3
