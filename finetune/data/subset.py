"""Which rows a smaller training set has: stratified by label, and nested, so that more rows only ever adds some."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune.errors import Exit, UserError


def nested_order(labels: Sequence[Sequence[str]], seed: int) -> np.ndarray:
    """Return the rows (rows,) in an order whose every beginning is a stratified sample.

    `labels` holds the labels of each row: one, or several for multi-label. Rows are grouped by their rarest label and
    dealt out in proportion, at random within a group; before them come, in the same order, as few rows as show every
    label once.
    """
    random = np.random.default_rng(seed)
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in rarest_labels(labels)], dtype=np.int64)
    shuffled = random.permutation(len(labels))
    size = np.bincount(group, minlength=len(numbers))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    rank = np.empty(len(labels), dtype=np.int64)  # (rows,) place of a row within its group
    rank[by_group] = np.arange(len(labels)) - (np.cumsum(size) - size)[group[by_group]]
    dealt = shuffled[np.argsort(((rank + 0.5) / size[group])[shuffled], kind="stable")]
    first = _first_of_each(labels, dealt)
    return np.concatenate([first, dealt[~np.isin(dealt, first)]])


def nested_rows(labels: Sequence[Sequence[str]], count: int, seed: int) -> np.ndarray:
    """Return `count` rows, sorted; those of a smaller count with the same seed are among them.

    Raises UserError: 2 where `count` is below the number of labels, which each need a row, or above that of the rows.
    """
    names = {name for names in labels for name in names}
    if not len(names) <= count <= len(labels):
        raise UserError(
            Exit.USAGE,
            f"data.train_rows={count}: train has {len(labels):,} rows and {len(names):,} labels\n"
            f"give a number from {len(names):,} to {len(labels):,}",
        )
    return np.sort(nested_order(labels, seed)[:count])


def rarest_labels(labels: Sequence[Sequence[str]]) -> list[str]:
    """Return for each row the one of its labels that fewest rows have, which stratifies best; "" for a row of none."""
    counts = Counter(name for names in labels for name in names)
    return [min(names, key=lambda name: (counts[name], name), default="") for names in labels]


def _first_of_each(labels: Sequence[Sequence[str]], order: np.ndarray) -> np.ndarray:
    """Return the rows, in their order, that show a label for the first time."""
    seen: set[str] = set()
    first = []
    for row in order.tolist():
        if not seen.issuperset(labels[row]):
            seen.update(labels[row])
            first.append(row)
    return np.array(first, dtype=np.int64)
