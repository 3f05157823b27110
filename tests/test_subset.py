"""A smaller training set is a stratified part of a larger one, and no label is missing from it."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from calling import write_csv

from finetune.data.columns import DataConfig, read_splits
from finetune.data.subset import nested_order, nested_rows, rarest_labels
from finetune.errors import Exit, UserError

SHARES = {"a": 70, "b": 20, "c": 8, "d": 2}
LABELS = [[name] for name, count in SHARES.items() for _ in range(10 * count)]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_rows_of_a_smaller_set_are_in_the_larger_one(seed: int) -> None:
    drawn = [set(nested_rows(LABELS, count, seed).tolist()) for count in (10, 30, 100, 300, 1000)]
    assert [len(rows) for rows in drawn] == [10, 30, 100, 300, 1000]
    assert all(small < large for small, large in itertools.pairwise(drawn))


@pytest.mark.parametrize("count", [4, 10, 37, 100, 500])
def test_each_label_has_its_share_and_at_least_one_row(count: int) -> None:
    found = Counter(LABELS[row][0] for row in nested_rows(LABELS, count, 3))
    for name, share in SHARES.items():
        fair = count * share / 100
        assert max(1, fair - 3) <= found[name] <= max(1, fair + 1)  # the one row of a rare label is taken from others


def test_other_seeds_draw_other_rows_and_the_same_seed_the_same() -> None:
    one, again, other = (nested_rows(LABELS, 100, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert len(np.intersect1d(one, other)) < 50
    assert np.array_equal(np.sort(nested_order(LABELS, 1)), np.arange(1000))


def test_rows_with_several_labels_show_every_label() -> None:
    labels = [["x"], ["x", "y"], [], ["x", "z"], ["x"], ["y", "x"], *([["x"]] * 50)]
    assert rarest_labels(labels)[:6] == ["x", "y", "", "z", "x", "y"]
    for seed in range(5):
        chosen = nested_rows(labels, 3, seed)
        assert {name for row in chosen for name in labels[row]} == {"x", "y", "z"}


@pytest.mark.parametrize("count", [3, 1001])
def test_fewer_rows_than_labels_or_more_than_there_are_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"train_rows={count}: train has 1,000 rows and 4 labels") as caught:
        nested_rows(LABELS, count, 1)
    assert caught.value.code == Exit.USAGE


def test_train_rows_leaves_the_rows_held_out_as_they_are(tmp_path: Path) -> None:
    rows = [(str(number), f"text {number}", "ab"[number % 2]) for number in range(60)]
    train = str(write_csv(tmp_path / "train.csv", rows))
    whole = read_splits(DataConfig(train=train), seed=1)
    part = read_splits(DataConfig(train=train, train_rows=10), seed=1)
    assert part["validation"].ids() == whole["validation"].ids()
    assert set(part["train"].ids()) < set(whole["train"].ids())
    assert Counter(part["train"].labels()) == {"a": 5, "b": 5}
