"""Unigram pieces (Kudo 2018, section 3.2), learnt by expectation-maximisation over all ways to cut the words.

The trainer of the tokenizers library walks through a hash table with a random order, so two runs give two results.
This one has a fixed order: the same words give the same pieces and scores.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import numpy as np

LONGEST_PIECE = 16
SEEDS_PER_PIECE = 10  # candidates for each piece that is wanted
KEPT_IN_A_ROUND = 0.75
ROUNDS_OF_EM = 2
LEAST_COUNT = 0.5  # a piece that is expected less often is given up


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """Edges of a graph, in an order in which the value of each node can be worked out from those before it."""

    order: np.ndarray  # (edges,) by depth of the head, then head
    tail: np.ndarray
    head: np.ndarray
    layers: np.ndarray  # where in `order` each depth begins, and the end

    @classmethod
    def of(cls, tail: np.ndarray, head: np.ndarray, depth: np.ndarray) -> Self:
        """Sort edges; depth: (nodes,), larger at a head than at its tail."""
        order = np.lexsort((head, depth[head]))
        depths = depth[head[order]]
        layers = np.flatnonzero(np.diff(depths, prepend=-1, append=depths.max(initial=0) + 1))
        return cls(order, tail[order], head[order], layers)

    def run(self, values: np.ndarray, first: np.ndarray, nodes: int, join: np.ufunc) -> np.ndarray:
        """Return for each node the joined sums of `values` (edges,) along the paths from the first nodes to it."""
        reached = np.full(nodes, -np.inf)
        reached[first] = 0
        values = values[self.order]
        for begin, end in zip(self.layers[:-1], self.layers[1:], strict=True):
            head = self.head[begin:end]
            groups = np.flatnonzero(np.diff(head, prepend=-1))
            sums = reached[self.tail[begin:end]] + values[begin:end]
            reached[head[groups]] = join.reduceat(sums, groups)
        return reached


@dataclasses.dataclass(frozen=True)
class _Lattice:
    """All ways to cut some words: a node before each character and at each end, an edge for each piece that fits."""

    start: np.ndarray  # (edges,) nodes
    end: np.ndarray
    piece: np.ndarray  # (edges,) numbers of pieces
    word: np.ndarray  # (edges,) numbers of words
    first: np.ndarray  # (words,) nodes
    last: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str], numbers: Mapping[str, int], *, whole: bool) -> Self:
        """Find every piece in every word; without `whole`, a word is not a piece of itself."""
        matches = itertools.chain.from_iterable(_matches(words, numbers, whole))
        edges = np.fromiter(matches, dtype=np.int64).reshape(-1, 4)
        sizes = np.array([len(word) + 1 for word in words])
        first = np.cumsum(sizes) - sizes
        word = edges[:, 3]
        return cls(first[word] + edges[:, 0], first[word] + edges[:, 1], edges[:, 2], word, first, first + sizes - 1)

    def keep(self, number: np.ndarray) -> Self:
        """Return the lattice of the pieces that remain; number: (pieces,) new numbers, -1 where one is gone."""
        kept = number[self.piece] >= 0
        start, end, word = self.start[kept], self.end[kept], self.word[kept]
        return dataclasses.replace(self, start=start, end=end, piece=number[self.piece[kept]], word=word)

    def forwards(self) -> _Sweep:
        """Return the sweep from the first nodes to the last."""
        return _Sweep.of(self.start, self.end, np.arange(self._nodes) - self._spread(self.first))

    def backwards(self) -> _Sweep:
        """Return the sweep from the last nodes to the first."""
        return _Sweep.of(self.end, self.start, self._spread(self.last) - np.arange(self._nodes))

    def expected(self, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return how often each piece is expected in words that occur `counts` times: (pieces,)."""
        values = scores[self.piece]
        before = self.forwards().run(values, self.first, self._nodes, np.logaddexp)
        after = self.backwards().run(values, self.last, self._nodes, np.logaddexp)
        share = np.exp(before[self.start] + values + after[self.end] - before[self.last][self.word])
        summed: np.ndarray = np.bincount(self.piece, weights=share * counts[self.word], minlength=len(scores))
        return summed

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Return the score of the best way to cut each word: (words,); -inf where there is none."""
        ends: np.ndarray = self.forwards().run(scores[self.piece], self.first, self._nodes, np.maximum)[self.last]
        return ends

    @property
    def _nodes(self) -> int:
        return int(self.last[-1]) + 1

    def _spread(self, of_words: np.ndarray) -> np.ndarray:
        return np.repeat(of_words, self.last - self.first + 1)


def learn_pieces(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Return at most `size` pieces and their log-probabilities, best first; each character is one of them.

    words: how often each word occurs; size: no less than their different characters. A piece is dropped for how little
    the likelihood of all words falls without it: its expected count times what its best cut into other pieces costs.
    """
    order = sorted(words)
    counts = np.array([words[word] for word in order], dtype=np.float64)
    pieces, weights = _seeds(words, size)
    lattice = _Lattice.of(order, {piece: number for number, piece in enumerate(pieces)}, whole=True)
    scores = np.log(weights / weights.sum())
    while True:
        for _ in range(ROUNDS_OF_EM):
            expected = lattice.expected(scores, counts)
            kept = np.array([len(piece) == 1 for piece in pieces]) | (expected >= LEAST_COUNT)
            pieces, expected, lattice = _only(kept, pieces, expected, lattice)
            weights = np.maximum(expected, LEAST_COUNT)  # a character stays, even where pieces take all its places
            scores = np.log(weights / weights.sum())
        if len(pieces) <= size:
            return sorted(zip(pieces, scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
        kept = _worth_keeping(pieces, scores, expected, max(size, int(KEPT_IN_A_ROUND * len(pieces))))
        pieces, scores, lattice = _only(kept, pieces, scores, lattice)


def _seeds(words: Mapping[str, int], size: int) -> tuple[list[str], np.ndarray]:
    """Return all characters and the substrings that cover most text, with how often each occurs."""
    found: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST_PIECE, len(word)) + 1):
                found[word[start:end]] += count
    longer = [piece for piece, count in found.items() if len(piece) > 1 and count > 1]
    longer.sort(key=lambda piece: (-found[piece] * len(piece), piece))
    pieces = [*sorted(piece for piece in found if len(piece) == 1), *longer[: SEEDS_PER_PIECE * size]]
    return pieces, np.array([found[piece] for piece in pieces], dtype=np.float64)


def _worth_keeping(pieces: list[str], scores: np.ndarray, expected: np.ndarray, size: int) -> np.ndarray:
    """Return a mask of the `size` pieces without which the likelihood would fall most, each character among them."""
    others = _Lattice.of(pieces, {piece: number for number, piece in enumerate(pieces)}, whole=False)
    loss = expected * (scores - others.best(scores))
    loss[[len(piece) == 1 for piece in pieces]] = np.inf
    kept = np.zeros(len(pieces), dtype=bool)
    kept[np.lexsort((np.arange(len(pieces)), -loss))[:size]] = True
    return kept


def _only(
    kept: np.ndarray, pieces: list[str], values: np.ndarray, lattice: _Lattice
) -> tuple[list[str], np.ndarray, _Lattice]:
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    return [piece for piece, keep in zip(pieces, kept, strict=True) if keep], values[kept], lattice.keep(number)


def _matches(words: Sequence[str], numbers: Mapping[str, int], whole: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, end, piece, word) of each piece in each word."""
    for index, word in enumerate(words):
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST_PIECE, len(word)) + 1):
                number = numbers.get(word[start:end])
                if number is not None and (whole or end - start < len(word)):
                    yield start, end, number, index
