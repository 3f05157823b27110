"""Unigram pieces: expected counts against all ways to cut a word, the size, and what is worth a place."""

import itertools
import math

import numpy as np
import pytest

from finetune.seq2seq import unigram
from finetune.seq2seq.unigram import _Lattice, learn_pieces

WORDS = {"▁abab": 3, "▁ba": 5, "▁abc": 2, "cab": 1, "a": 4, "▁aaaaaaa": 2}


def cuts(word: str, numbers: dict[str, int]) -> list[list[int]]:
    """Return every way to cut a word into pieces."""
    found = []
    for count in range(len(word)):
        for places in itertools.combinations(range(1, len(word)), count):
            parts = [word[start:end] for start, end in zip((0, *places), (*places, len(word)), strict=True)]
            if all(part in numbers for part in parts):
                found.append([numbers[part] for part in parts])
    return found


def test_expected_counts_and_best_cuts_are_those_of_all_cuts() -> None:
    pieces = [*"▁abc", "ab", "▁a", "ba", "aba", "aa", "aaa", "▁abab"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(len(pieces))))
    expected, best = np.zeros(len(pieces)), []
    for word, count in WORDS.items():
        ways = cuts(word, numbers)
        weights = [math.exp(scores[way].sum()) for way in ways]
        best.append(math.log(max(weights)))
        for way, weight in zip(ways, weights, strict=True):
            np.add.at(expected, way, count * weight / sum(weights))
    lattice = _Lattice.of(list(WORDS), numbers, whole=True)
    np.testing.assert_allclose(lattice.expected(scores, np.array(list(WORDS.values()))), expected, rtol=1e-12)
    np.testing.assert_allclose(lattice.best(scores), best, rtol=1e-12)


def test_a_word_without_itself_is_cut_into_other_pieces_or_not_at_all() -> None:
    numbers = {"a": 0, "b": 1, "ab": 2}
    lattice = _Lattice.of(["a", "ab"], numbers, whole=False)
    assert lattice.best(np.array([-1.0, -2.0, -0.5])).tolist() == [-math.inf, -3.0]


def test_a_word_of_a_thousand_characters_does_not_underflow() -> None:
    pieces = dict(learn_pieces({"ab" * 600: 1, "b": 1}, 10))
    assert all(math.isfinite(score) for score in pieces.values())


@pytest.mark.parametrize("size", [4, 5, 6, 8, 50])
def test_each_character_has_a_piece_and_the_size_is_kept(size: int) -> None:
    pieces = learn_pieces(WORDS, size)
    assert {"▁", "a", "b", "c"} <= {piece for piece, _ in pieces}
    assert len(pieces) <= size
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)


def test_what_saves_most_wins_the_last_places() -> None:
    words = {"▁a": 50, "▁x": 5, "▁m": 60, "▁o": 7}
    characters = len(set("".join(words)))
    longer = [{piece for piece, _ in learn_pieces(words, characters + more) if len(piece) > 1} for more in (1, 2, 4)]
    assert longer == [{"▁m"}, {"▁m", "▁a"}, set(words)]


@pytest.mark.parametrize("seeds", [1, 10])
def test_the_order_of_the_words_has_no_say(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "SEEDS_PER_PIECE", seeds)
    assert learn_pieces(WORDS, 8) == learn_pieces(dict(reversed(WORDS.items())), 8)


def test_the_scores_are_log_probabilities() -> None:
    for size in (4, 8, 50):
        assert sum(math.exp(score) for _, score in learn_pieces(WORDS, size)) == pytest.approx(1)
