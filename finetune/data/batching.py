"""Which rows make an update, how they are shared out, and how they become padded tensors."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

Strategy = Literal["group_by_length", "random"]
UPDATES_IN_A_BUCKET = 50  # rows of so many updates are sorted together: little padding, still well mixed


@dataclasses.dataclass(frozen=True)
class Batch:
    """Padded tensors of a micro-batch, the number of items that its summed loss covers, and its example numbers."""

    tensors: dict[str, torch.Tensor]
    items: int
    examples: np.ndarray


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the trainer needs to know of a data set: the tokens of each example, and how to collate some.

    `lengths` is (examples,), or (examples, sides) where source and target are padded apart. `name` says where an
    example comes from, e.g. `train.csv:42`. `groups`, (examples,), are numbers of kinds that never share an update.
    """

    lengths: np.ndarray
    collate: Callable[[np.ndarray], Batch]
    name: Callable[[int], str] = str
    groups: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Order:
    """How an epoch is cut into updates; the order is a function of (seed, epoch) alone."""

    seed: int
    update_size: int
    strategy: Strategy = "group_by_length"
    max_tokens: int | None = None

    def epoch(self, lengths: np.ndarray, epoch: int, groups: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the example numbers of each update of an epoch; each example comes once.

        `lengths` is (examples,) or (examples, sides). An update holds `update_size` examples, or as many as fit into
        `max_tokens` padded tokens, of all sides together, where that is set; all are of one group.
        """
        random = np.random.default_rng([self.seed, epoch])
        shuffled = random.permutation(len(lengths))
        if groups is None:
            updates = self._cut(shuffled, lengths)
        else:
            of_group = [shuffled[groups[shuffled] == group] for group in np.unique(groups)]
            updates = [update for part in of_group for update in self._cut(part, lengths)]
        if groups is None and self.max_tokens is None and self.strategy == "random":
            return updates  # in random order as they are
        return [updates[index] for index in random.permutation(len(updates))]

    def _cut(self, shuffled: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        if self.max_tokens is None and self.strategy == "random":
            return _cut(shuffled, self.update_size)
        bucket = self.update_size * UPDATES_IN_A_BUCKET
        updates: list[np.ndarray] = []
        for part in _cut(shuffled, bucket) if self.strategy == "group_by_length" else [shuffled]:
            if self.strategy == "group_by_length":
                part = part[np.argsort(totals(lengths[part]), kind="stable")]
            if self.max_tokens is None:
                updates.extend(_cut(part, self.update_size))
            else:
                updates.extend(cut_by_tokens(part, lengths, self.max_tokens, self.update_size))
        return updates


def cut_by_tokens(rows: np.ndarray, lengths: np.ndarray, max_tokens: int, max_rows: int) -> list[np.ndarray]:
    """Cut rows, in their order, into batches of at most `max_tokens` padded tokens and `max_rows` rows."""
    batches: list[np.ndarray] = []
    sides = np.atleast_2d(lengths[rows].T).T.tolist()  # (rows, sides)
    start, longest = 0, [0] * len(sides[0]) if sides else []
    for position, length in enumerate(sides):
        longest = [max(pair) for pair in zip(longest, length, strict=True)]
        size = position - start + 1
        if size > 1 and (sum(longest) * size > max_tokens or size > max_rows):
            batches.append(rows[start:position])
            start, longest = position, length
    return [*batches, rows[start:]] if len(rows) else batches


def totals(lengths: np.ndarray) -> np.ndarray:
    """Return the tokens of each example, all sides together, (examples,)."""
    return lengths if lengths.ndim == 1 else lengths.sum(axis=1)


def padded_tokens(lengths: np.ndarray) -> int:
    """Return the tokens of a batch of examples with these lengths once each side is padded to its longest."""
    return len(lengths) * int(np.sum(lengths.max(axis=0)))


def share(update: np.ndarray, lengths: np.ndarray, rank: int, world: int, accumulation: int) -> list[np.ndarray]:
    """Return the micro-batches that one process works on: equal parts of the update, each of similar lengths."""
    longest_first = update[np.argsort(-totals(lengths[update]), kind="stable")]
    mine = longest_first[rank::world]
    return [part for part in np.array_split(mine, accumulation) if len(part)]


def evaluation_batches(lengths: np.ndarray, max_rows: int, max_tokens: int) -> list[np.ndarray]:
    """Cut all examples, longest first, into batches for scoring; the order of rows is restored by their numbers."""
    longest_first = np.argsort(-totals(lengths), kind="stable")
    return cut_by_tokens(longest_first, lengths, max_tokens, max_rows)


def pad(rows: Sequence[np.ndarray | Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    """Stack token rows, padded on the right to the longest of them, rounded up to `multiple`.

    Returns int64, (batch, time).
    """
    longest = -(-max(len(row) for row in rows) // multiple) * multiple
    padded = np.full((len(rows), longest), value, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def pad_and_mask(
    rows: Sequence[np.ndarray | Sequence[int]], value: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack token rows as `pad` does; also return which tokens are real, bool, (batch, time)."""
    padded = pad(rows, value, multiple)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
