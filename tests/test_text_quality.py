"""Figures of generated texts equal cases counted by hand, and degenerate texts have some too."""

from collections.abc import Sequence

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from finetune import text_quality
from finetune.text_metrics import words
from finetune.text_quality import beside_sources, distinct, quality, repetition, self_bleu


def test_distinct_counts_different_ngrams_of_all_texts() -> None:
    said = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert distinct(said, 1) == pytest.approx(3 / 7)
    assert distinct(said, 2) == pytest.approx(3 / 5)  # ab ba bc of ab ba ab ab bc
    assert distinct([["a"]], 2) == distinct([], 1) == 0


def test_repetition_is_within_a_text() -> None:
    once = ["a", "b", "c", "d"]
    assert repetition([once, once]) == 0
    assert repetition([[*once, *once], once]) == pytest.approx(1 / 6)  # abcd again, of 5 + 1
    assert repetition([["a"] * 7]) == pytest.approx(3 / 4)
    assert repetition([[], ["a"]]) == 0


def test_self_bleu_is_that_of_sacrebleu_against_the_others() -> None:
    texts = ["the dog runs in the park", "the dog runs in a house", "cats sleep all day"]
    metric = BLEU(effective_order=True)
    expected = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(np.mean(expected))
    assert self_bleu(texts[:1]) == self_bleu([]) == 0
    assert self_bleu(["狗在公园里跑"] * 150) == pytest.approx(100)


def copying(said: Sequence[Sequence[str]], train: Sequence[Sequence[str]]) -> dict[str, float]:
    (found,) = text_quality.copying([said], train)
    return found


def test_copied_runs_are_those_of_one_training_text() -> None:
    train = [["a", "b", "c", "d", "e", "f", "g", "h", "i"], ["j", "k"]]
    found = copying([["x", "a", "b", "c", "d", "e", "f", "g", "h", "j"], ["i", "j", "k"]], train)
    assert found == {"copied_8": pytest.approx(1 / 3), "longest_copied": 8, "mean_longest_copied": 5}
    assert copying([["i", "j"]], train)["longest_copied"] == 1  # i and j stand in two texts
    nothing = {"copied_8": 0, "longest_copied": 0, "mean_longest_copied": 0}
    assert copying([], train) == copying([[]], train) == copying([["a"]], []) == copying([["zz"]], train) == nothing
    assert copying([train[0] * 2], [train[0] * 2])["longest_copied"] == 18


def test_copied_runs_equal_a_naive_search() -> None:
    random = np.random.default_rng(1)
    train = [list(random.choice([*"abcd"], random.integers(0, 40))) for _ in range(20)]
    said = [list(random.choice([*"abcde"], random.integers(0, 20))) for _ in range(20)]
    joined = [f" {' '.join(text)} " for text in train]
    for text in said:
        runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        there = [run for run in runs if any(f" {' '.join(run)} " in one for one in joined)]
        found = copying([text], train)
        assert found["longest_copied"] == max(map(len, there), default=0)
        eights = [run for run in runs if len(run) == 8]
        assert found["copied_8"] == pytest.approx(sum(len(run) == 8 for run in there) / max(1, len(eights)))


def test_every_figure_has_a_definition_and_degenerate_texts_have_figures() -> None:
    for texts in ([], [""], ["word"], ["one two three four five", "狗在公园里跑", "!"]):
        found = quality(texts, train=["word"])
        assert all(np.isfinite(value) for value in found.values())
        defined = {*text_quality.DEFINITIONS, "median_words", "least_words", "most_words"}
        assert found.keys() | beside_sources(texts, texts).keys() == defined
    found = quality(["a b c", "", "a"])
    assert [found[f"{name}_words"] for name in ("mean", "median", "least", "most")] == [pytest.approx(4 / 3), 1, 0, 3]
    assert found["empty"] == pytest.approx(1 / 3)
    assert "copied_8" not in found


def test_texts_of_several_writers_are_looked_up_in_training_texts_that_are_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = ["one two three four five six seven eight nine", "red dog"]
    sides = {"own": ["a two three four", "red cat"], "human": ["one two three four five six seven eight", "dog"]}
    alone = {name: quality(texts, train) for name, texts in sides.items()}
    read: list[str] = []

    def told(text: str) -> list[str]:
        read.append(text)
        return words(text)

    monkeypatch.setattr(text_quality, "words", told)
    assert text_quality.qualities(sides, train) == alone
    assert all(read.count(text) == 1 for text in train)
    assert "copied_8" not in text_quality.qualities(sides)["own"]
    assert text_quality.qualities({}, train) == {}


def test_novelty_and_compression_are_beside_the_own_source() -> None:
    found = beside_sources(["the dog runs fast", "a cat"], ["The dog sleeps.", "dog cat"])
    assert found["novel_1"] == pytest.approx(2 / 5)  # sleeps, dog
    assert found["novel_2"] == pytest.approx(2 / 3)
    assert found["novel_3"] == 1
    assert found["compression"] == pytest.approx(6 / 5)
    assert found["mean_words"] == 2.5
    assert beside_sources(["один два"], ["Один два"])["novel_2"] == 0
    assert beside_sources([""], [""])["compression"] == 0


def test_numbers_and_names_that_the_source_lacks_are_counted() -> None:
    sources = ["Maria pays 1,000 euros at 3:30. She met Tom's boss and they left.", "انتظر ٣ أيام"]
    found = beside_sources(sources, ["She pays Tom 1000 at 4:30. Peter and Maria left. They met.", "3 7"])
    assert found["new_numbers"] == pytest.approx(2 / 4)  # 4:30 and 7
    assert found["new_names"] == pytest.approx(1 / 4)  # Peter; She is never in lower case here, but in the source
    nothing = beside_sources(["a"], ["狗 word"])
    assert nothing["new_numbers"] == nothing["new_names"] == 0
