"""Scores of texts equal sacrebleu's and rouge_score's where these are right, and work in every script where not."""

import logging
import socket
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from finetune import metrics, text_metrics

WORDS = [*"abcdefg", "dog", "cat", "runs", "mat", "red", ",", ".", "Mr.", "house", "3.5", "it's"]


def corpus(rows: int, references: int, seed: int, longest: int = 14) -> tuple[list[str], list[list[str]]]:
    """Return texts and references that share words; some texts are empty, some short, some right."""
    random = np.random.default_rng(seed)
    predicted, golds = [], []
    for _ in range(rows):
        words = list(random.choice(WORDS, random.integers(1, longest)))
        several = []
        for _ in range(references):
            kept = [word for word in words if random.random() < 0.8]
            several.append(" ".join([*kept, *random.choice(WORDS, random.integers(1, 4))]))
        golds.append(several)
        predicted.append(" ".join(words) if random.random() < 0.9 else "" if random.random() < 0.5 else several[0])
    return predicted, golds


def streams(golds: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*golds, strict=True)]


METRICS = {"bleu": BLEU, "chrf": CHRF, "ter": TER}


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("name", list(METRICS))
def test_corpus_scores_equal_those_of_sacrebleu(name: str, references: int) -> None:
    predicted, golds = corpus(120, references, seed=references)
    expected = METRICS[name]().corpus_score(predicted, streams(golds)).score
    assert 5 < expected < 95
    assert text_metrics.score(name, predicted, golds) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", list(METRICS))
def test_any_choice_of_rows_scores_as_sacrebleu_scores_those_rows(name: str) -> None:
    predicted, golds = corpus(60, 1, seed=5)
    sums = text_metrics.statistics([name], predicted, golds)[name].sums
    random = np.random.default_rng(1)
    counts = random.multinomial(60, np.full(60, 1 / 60), size=20)  # (replicates, rows)
    counts[0] = 0
    counts[0, predicted.index("")] = 2  # nothing but an empty text
    counts[1] = 0
    counts[1, int(np.argmin([len(text) or 99 for text in predicted]))] = 1  # one short text: orders without n-grams
    found = text_metrics.score_sums(name, counts @ sums)
    for replicate, value in zip(counts, found, strict=True):
        rows = np.repeat(np.arange(60), replicate)
        chosen = METRICS[name]().corpus_score([predicted[i] for i in rows], streams([golds[i] for i in rows]))
        assert value == pytest.approx(chosen.score, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("dog cat", "a red mat on it"),
        ("a b c d e", "a x c y e"),
        ("the the the", "the dog"),
        ("x", "x"),
        ("", "x"),
        ("a dog", " "),
    ],
)
def test_hard_cases_of_bleu_and_ter_equal_sacrebleu(text: str, reference: str) -> None:
    for name in METRICS:
        expected = METRICS[name]().corpus_score([text], [[reference]]).score
        assert text_metrics.score(name, [text], [[reference]]) == pytest.approx(expected, abs=1e-9)


def test_rows_alone_have_the_sentence_chrf_of_sacrebleu() -> None:
    predicted, golds = corpus(30, 2, seed=8)
    alone = text_metrics.score_sums("chrf", text_metrics.statistics(["chrf"], predicted, golds)["chrf"].sums)
    expected = [CHRF().sentence_score(text, several).score for text, several in zip(predicted, golds, strict=True)]
    assert alone.tolist() == pytest.approx(expected, abs=1e-9)


def test_rows_may_have_different_numbers_of_references() -> None:
    golds = [["a dog runs", "the dog is running"], ["a cat"]]
    expected = BLEU().corpus_score(["the dog runs", "a cat"], [["a dog runs", "a cat"], ["the dog is running", None]])
    found = text_metrics.statistics(["bleu"], ["the dog runs", "a cat"], golds)["bleu"]
    assert text_metrics.score_sums("bleu", found.sums.sum(axis=0)) == pytest.approx(expected.score, abs=1e-9)
    assert found.signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_chinese_is_tokenized_as_chinese_with_and_without_its_language() -> None:
    texts = ["我喜欢在公园里看书。", "他每天早上喝一杯茶。"]
    golds = [["我喜欢在公园里看报。"], ["他每天早上喝两杯茶。"]]
    expected = BLEU(tokenize="zh").corpus_score(texts, streams(golds)).score
    assert expected > 50
    for language in (None, "zh", "zh-TW"):
        found = text_metrics.statistics(["bleu"], texts, golds, language=language)["bleu"]
        assert text_metrics.score_sums("bleu", found.sums.sum(axis=0)) == pytest.approx(expected)
        assert "tok:zh" in found.signature
    assert text_metrics.score("ter", texts, golds, "zh") < 20
    assert text_metrics.score("ter", texts, golds, "en") == 100


@pytest.mark.parametrize(
    ("language", "texts", "expected"),
    [
        (None, ["Ein Hund läuft."], "13a"),
        (None, ["Собака бежит."], "13a"),
        (None, ["犬が公園を走っています。"], "char"),
        (None, ["สุนัขวิ่ง"], "char"),
        (None, ["123"], "13a"),
        ("ja", ["犬"], "char"),
        ("de", ["犬"], "13a"),
    ],
)
def test_the_tokenizer_follows_language_or_script(language: str | None, texts: list[str], expected: str) -> None:
    assert text_metrics.tokenizer_for(language, [texts]) == expected


def test_many_tokenized_looking_texts_bring_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text_metrics.score("bleu", ["a dog ."] * 200, [["a dog ."]] * 200)
    assert not caplog.records


def test_rouge_of_ascii_equals_that_of_rouge_score() -> None:
    predicted, golds = corpus(50, 2, seed=3)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = text_metrics.statistics(text_metrics.ROUGE, predicted, golds)
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = [max(scorer.score(gold, text)[name].fmeasure for gold in several) for text, several in
                    zip(predicted, golds, strict=True)]  # fmt: skip
        assert found[name].sums[:, 0].tolist() == pytest.approx(expected, abs=1e-12)
        assert text_metrics.score_sums(name, found[name].sums.sum(axis=0)) == pytest.approx(100 * np.mean(expected))


def test_rouge_equals_a_case_counted_by_hand() -> None:
    text, gold = "the cat sat on the mat", "the cat lay on a mat today"
    expected = {"rouge1": 8 / 13, "rouge2": 2 / 11, "rougeL": 8 / 13}  # the cat on mat; the cat; the cat on mat
    for name, value in expected.items():
        assert text_metrics.score(name, [text], [[gold]]) == pytest.approx(100 * value)
        assert text_metrics.score(name, [""], [[gold]]) == 0
    assert text_metrics.score("rouge1", ["cat"], [["cat"]]) == pytest.approx(100)
    assert text_metrics.score("rouge2", ["cat"], [["cat"]]) == 0  # one word has no pair


def test_rouge_lsum_matches_sentence_by_sentence() -> None:
    text, gold = "The cat sat down. A dog ran off.", "A dog ran off. The cat sat down."
    scorer = RougeScorer(["rougeLsum"])
    expected = scorer.score(gold.replace(". ", ".\n"), text.replace(". ", ".\n"))["rougeLsum"].fmeasure
    assert text_metrics.score("rougeLsum", [text], [[gold]]) == pytest.approx(100 * expected) == pytest.approx(100)
    assert text_metrics.score("rougeL", [text], [[gold]]) == pytest.approx(50)


@pytest.mark.parametrize(
    "text", ["Собака бежит по парку", "狗在公园里跑", "الكلب يركض في الحديقة", "कुत्ता पार्क में दौड़ता है"]
)
def test_identical_texts_of_any_script_have_a_full_score(text: str) -> None:
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert text_metrics.score(name, [text], [[text]]) == pytest.approx(100)
    for name in text_metrics.ANSWERS:
        assert text_metrics.score(name, [text], [[text]]) == 1
    half = text_metrics.score("rouge1", [text], [[text + " " + "x " * len(text_metrics.words(text))]])
    assert half == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 red_dogs!", ["it", "s", "3", "5", "red", "dogs"]),
        ("Größe 42 ÉTÉ", ["grösse", "42", "été"]),
        ("कुत्ता है", ["कुत्ता", "है"]),
        ("他买了iPhone手机", ["他", "买", "了", "iphone", "手", "机"]),
        ("ร้าน", ["ร้", "า", "น"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("", []),
    ],
)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert text_metrics.words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. Doe, e.g. here. He left.", ["Dr. Smith met J. Doe, e.g. here.", "He left."]),
        ("Am 3. Oktober kam er. Es kostet 3.50 Euro.", ["Am 3. Oktober kam er.", "Es kostet 3.50 Euro."]),
        ('He said "go." Then (he left.) Done', ['He said "go."', "Then (he left.)", "Done"]),
        ("狗跑。猫睡！他说：“走。”完", ["狗跑。", "猫睡！", "他说：“走。”", "完"]),
        ("कुत्ता दौड़ता है। बिल्ली सोती है।", ["कुत्ता दौड़ता है।", "बिल्ली सोती है।"]),
        ("هل تذهب؟ نعم.", ["هل تذهب؟", "نعم."]),
        ("A: hello\n\nB: Dr.\nC: bye", ["A: hello", "B: Dr.", "C: bye"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert text_metrics.sentences(text) == expected


@pytest.mark.parametrize(
    ("said", "golds", "exact", "overlap"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),
        ("a tower in Paris", ["Paris", "tower in paris, France"], 0, 6 / 7),
        ("in Paris", ["London"], 0, 0),
        ("the", ["a", "b"], 1, 1),  # nothing is left of either
        ("the", ["b"], 0, 0),
        ("«L’été»", ["été"], 0, 0),  # English: the article is not taken out
        ("paris paris", ["paris"], 0, 2 / 3),
        ("in 1912, of course", ["1912"], 0, 2 / 5),
        ("the 6th of May", ["May 6th", "6th May", "6TH of  may."], 1, 1),  # the best of three
        ("¿París?", ["París"], 1, 1),  # punctuation of any script
        ("東京。", ["東京"], 1, 1),
    ],
)
def test_answers_are_compared_as_in_squad(said: str, golds: list[str], exact: int, overlap: float) -> None:
    assert text_metrics.score("exact_match", [said], [golds]) == exact
    assert text_metrics.score("token_f1", [said], [golds]) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("language", "said", "gold"),
    [("fr", "«L’été»", "été"), ("it", "l'acqua", "Acqua"), ("de", "die Stadt", "Stadt"), ("es", "Los gatos.", "gatos")],
)
def test_articles_are_those_of_the_language(language: str, said: str, gold: str) -> None:
    assert text_metrics.score("exact_match", [said], [[gold]], language) == 1
    assert text_metrics.score("exact_match", [said], [[gold]], f"{language}-XX") == 1
    assert text_metrics.score("exact_match", [said], [[gold]], "fi") == 0


def test_verbatim_answers_are_compared_to_the_letter() -> None:
    texts, golds = ["a b", "A b", "b  a", "a, b"], [["a b"]] * 4
    found = text_metrics.statistics(text_metrics.ANSWERS, texts, golds, verbatim=True)
    assert found["exact_match"].sums[:, 0].tolist() == [1, 0, 0, 0]
    assert found["token_f1"].sums[:, 0].tolist() == [1, 0.5, 1, 0.5]
    assert found["token_f1"].signature == "texts:verbatim"


def test_every_metric_has_a_definition_and_a_score() -> None:
    for name in text_metrics.DEFINITIONS:
        best = 0 if name in text_metrics.LOWER_IS_BETTER else 1 if name in text_metrics.ANSWERS else 100
        assert text_metrics.score(name, ["a red dog runs"], [["a red dog runs"]]) == pytest.approx(best)


def test_a_hugging_face_metric_of_texts_computes_with_the_network_blocked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def blocked(*_: Any, **__: Any) -> None:
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    predicted, golds = corpus(10, 2, seed=4)
    for name in ("chrf", "rouge1", "exact_match"):
        several = metrics.hf_metric(name).compute(predictions=predicted, references=golds)
        assert several == {name: pytest.approx(text_metrics.score(name, predicted, golds))}
    one = metrics.hf_metric("bleu", "zh").compute(predictions=["狗在公园里跑"], references=["狗在公园里跑"])
    assert one == {"bleu": pytest.approx(100)}
    with pytest.raises(KeyError):
        metrics.hf_metric("meteor")
