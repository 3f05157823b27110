"""Promises of finetune.text_baselines."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from finetune import text_baselines
from finetune.data.sequences import SequenceDataConfig, read_splits
from finetune.text_baselines import (
    Centroid,
    LeadCharacters,
    LeadSentences,
    LongestSentences,
    Retrieval,
    oracle_extracts,
)

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def texts(rows: int, seed: int, words: int = 8) -> list[str]:
    random = np.random.default_rng(seed)
    vocabulary = ["".join(random.choice(SYLLABLES, 3)) for _ in range(500)]
    return [" ".join(random.choice(vocabulary, words)) for _ in range(rows)]


def test_retrieval_answers_with_the_target_of_the_nearest_training_source() -> None:
    sources = texts(300, seed=1)
    found = Retrieval.fit(sources, [f"target {row}" for row in range(300)])
    damaged = [" ".join(source.split()[1:]).upper() for source in sources[:50]]
    assert found.predict(damaged) == [f"target {row}" for row in range(50)]


def test_cosines_are_those_of_scikit_learns_tf_idf() -> None:
    train = [f"{text} {' '.join(text.split()[:2] * 4)}" for text in texts(60, seed=2, words=12)]
    parts = [
        TfidfVectorizer(sublinear_tf=True, norm=None, **settings).fit_transform(train).toarray()
        for settings in ({"ngram_range": (1, 2)}, {"analyzer": "char_wb", "ngram_range": (3, 4)})
    ]
    plain = np.concatenate(parts, axis=1)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    found = Retrieval.fit(train, train)
    cosines = (found.across.T @ found.across).toarray()
    assert np.abs(cosines - plain @ plain.T).mean() < 5e-4  # hashing lets a few n-grams share a place
    assert found.nearest(train).tolist() == list(range(60))


def test_retrieval_in_blocks_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Retrieval.fit(texts(100, seed=4), texts(100, seed=5))
    whole = found.predict(texts(30, seed=6))
    monkeypatch.setattr(text_baselines, "BLOCK_PAIRS", 700)
    assert found.predict(texts(30, seed=6)) == whole


def test_retrieval_takes_the_first_of_equals_and_answers_what_it_never_saw() -> None:
    found = Retrieval.fit(["red dog", "blue cat", "red dog"], ["first", "second", "third"])
    assert found.predict(["a red dog", "zzz", ""]) == ["first", "first", "first"]


def test_retrieval_reads_scripts_without_spaces() -> None:
    found = Retrieval.fit(["狗在公园里跑", "猫在沙发上睡觉"], ["dog", "cat"])
    assert found.predict(["公园里有狗", "睡觉的猫"]) == ["dog", "cat"]


def test_the_memory_of_retrieval_does_not_grow_with_the_number_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_baselines, "BLOCK_PAIRS", 50_000)
    found = Retrieval.fit(texts(500, seed=7), texts(500, seed=8))
    peaks = []
    for rows in (100, 600):
        asked = texts(rows, seed=9)
        tracemalloc.start()
        found.nearest(asked)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_the_commonest_words_are_left_out_where_there_are_too_many_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["one of them", "of them two", "of them three"]
    whole = Retrieval.fit(sources, ["1", "2", "3"])
    monkeypatch.setattr(text_baselines, "WORK", 8.0)
    found = Retrieval.fit(sources, ["1", "2", "3"])
    assert found.across.nnz < whole.across.nnz
    assert found.predict(["of them of them three", "them"]) == ["3", "1"]
    assert np.isfinite(found.across.data).all()


def test_long_sources_are_compared_by_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_baselines, "CHARACTER_LIMIT", 100)
    found = Retrieval.fit(texts(20, seed=1), texts(20, seed=2))
    assert len(found.counters) == 1
    assert "char" not in found.name
    assert found.predict(texts(20, seed=1)) == texts(20, seed=2)


def test_lead_takes_the_first_sentences() -> None:
    assert LeadSentences(2).predict(["One. Two! Three?", "狗跑。猫睡。鸟飞。", "A\nB\nC"]) == [
        "One. Two!", "狗跑。 猫睡。", "A B",
    ]  # fmt: skip


def test_a_lead_of_characters_keeps_words_whole_where_there_are_spaces() -> None:
    sources = ["one two three", "one  two", "onetwothree", "狗在公园里跑", "seven! or"]
    assert LeadCharacters(7).predict(sources) == ["one two", "one two", "onetwot", "狗在公园里跑", "seven!"]


def test_the_longest_sentences_stay_in_their_order() -> None:
    source = "One two. One two three. One. Four five six."
    assert LongestSentences(2).predict([source, "", "word"]) == ["One two three. Four five six.", "", "word"]
    assert LongestSentences(1).predict([source, "狗跑。猫在睡。"]) == ["One two three.", "猫在睡。"]


def test_the_centroid_takes_what_the_source_speaks_of_and_says_it_once() -> None:
    found = Centroid.fit(["the dog", "the cat", "the sun"], 1)
    assert found.predict(["The sun. Dog meets cat. The dog. The cat."]) == ["Dog meets cat."]
    two = Centroid.fit(["the dog", "the cat", "the sun"], 2)
    assert two.predict(["Dog meets cat. Dog meets cat. The sun is red."]) == ["Dog meets cat. The sun is red."]
    assert two.predict(["", "word", "!. ?"]) == ["", "word", "!. ?"]


def plain_centroid(found: Centroid, source: str) -> str:
    """Return what Centroid says of a source, by adding up vectors of every sentence, one number a word."""
    parts = text_baselines.sentences(source)
    vocabulary = sorted(set(text_baselines.words(source)))
    table = np.array([
        [text_baselines.words(part).count(word) * found.idf.get(word, found.unseen) for word in vocabulary]
        for part in parts
    ])  # fmt: skip
    chosen: list[int] = []

    def cosine(row: int) -> float:
        both = table[[*chosen, row]].sum(axis=0)
        return round(float(both @ table.sum(axis=0) / np.linalg.norm(both)), 12)

    while len(chosen) < min(found.sentences, len(parts)):
        chosen.append(max((row for row in range(len(parts)) if row not in chosen), key=cosine))
    return " ".join(parts[row] for row in sorted(chosen))


def test_the_centroid_is_that_of_whole_vectors_and_reads_a_book_in_little_memory() -> None:
    found = Centroid.fit(texts(50, seed=1), 3)
    some = [". ".join(texts(30, seed=seed, words=seed)) + ". zzz yyy." for seed in range(2, 12)]
    assert found.predict(some) == [plain_centroid(found, source) for source in some]
    book = " ".join(f"Said word{row} of thing{row} and of the dog." for row in range(1_500))  # 3,005 words
    tracemalloc.start()
    found.predict([book])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # a table of sentences by words would have 36 MB


def test_the_oracle_is_no_worse_than_any_sentence_and_reads_several_references() -> None:
    source = "A dog ran. The cat slept. It rained all day long."
    assert oracle_extracts([source], [["a dog ran, the cat slept"]]) == ["A dog ran. The cat slept."]
    assert oracle_extracts([source], [["sun", "rained day"]]) == ["It rained all day long."]
    assert oracle_extracts([source, "", "word"], [["zzz"], ["a"], ["word"]]) == ["", "", "word"]
    assert oracle_extracts(["dog dog dog. dog."], [["dog"]]) == ["dog."]  # a word counts as often as it is wanted


@pytest.fixture
def config(tmp_path: Path) -> SequenceDataConfig:
    rows = [{"source": f"{text}. More of it here. And more.", "target": text[:20]} for text in texts(60, seed=1)]
    rows += [{"source": f"same {row}", "target": "again"} for row in range(3)]
    for name, part in {"train": rows, "validation": rows[:20], "test": rows[20:30]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")}
    return SequenceDataConfig(train=files["train"], validation=files["validation"], test=files["test"])


def test_each_baseline_answers_every_split_but_train(config: SequenceDataConfig) -> None:
    splits = read_splits(config, seed=1)
    answers = {one.name: one for one in text_baselines.answer("summarization", splits)}
    assert [name for name in answers if not name.startswith("target of")] == [
        "most frequent target", "lead-1", "lead-3", "lead of 19 characters", "longest-1", "TF-IDF centroid, 1 sentence",
    ]  # fmt: skip
    for one in answers.values():
        assert {name: len(said) for name, said in one.predicted.items()} == {"validation": 20, "test": 10}
        assert one.seconds >= 0
    assert answers["most frequent target"].predicted["test"] == ["again"] * 10
    retrieval = next(one for name, one in answers.items() if name.startswith("target of the nearest"))
    assert retrieval.predicted["test"] == splits["test"].targets()


@pytest.mark.parametrize("task", ["translation", "dialogue", "question_answering", "transduction"])
def test_extracts_are_for_summaries_only_and_whole_sources_for_the_rest(config: SequenceDataConfig, task: str) -> None:
    splits = read_splits(config, seed=1)
    copy, frequent, retrieval = text_baselines.answer(task, splits)
    assert (copy.name, frequent.name) == ("copy of the source", "most frequent target")
    assert retrieval.name.startswith("target of the nearest")
    assert copy.predicted["test"] == splits["test"].sources()
