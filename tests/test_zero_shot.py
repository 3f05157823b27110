"""Centring moves one language and nothing else; self-training believes what is sure, and no test text."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import zero_shot
from calling import write_csv
from conftest import TOPICS, toy_rows
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from finetune import baselines, classifier
from finetune.classifier import Classifier
from finetune.data.columns import DataConfig, LabelMap, Split, from_lines, read_split
from finetune.data.encode import Encoded, encode
from finetune.errors import Exit, UserError
from finetune.trainer import TrainConfig

LABELS = LabelMap(tuple(sorted(TOPICS)))
TEXTS = {"en": ["my parcel was late", "card charged again", "the login"], "it": ["il pacco", "la carta di mia zia"]}
SETTINGS = TrainConfig(learning_rate=1e-3, num_train_epochs=1, mixed_precision="no", use_cpu=True)
PLACES: list[zero_shot.Place] = ["cls", "pooled"]


@pytest.fixture
def parts(tiny_model: Path) -> Classifier:
    """Return the tiny model, whose random weights are too small to tell texts apart, with larger ones on top."""
    found = classifier.load(str(tiny_model), LABELS, seed=1)
    with torch.no_grad():
        for name in ("bert.pooler.dense.weight", "classifier.weight"):
            found.model.get_parameter(name).mul_(20)
    return found


def encoded(parts: Classifier, language: str) -> Encoded:
    return encode(from_lines(language, TEXTS[language]), parts.tokenizer, 32, "truncate")


def log_probabilities(parts: Classifier, language: str) -> np.ndarray:
    return np.asarray(np.log(classifier.predict(parts, encoded(parts, language), SETTINGS).probabilities))


# Centring


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # with eager attention the last layer keeps all tokens
def test_the_mean_vector_is_that_of_texts_read_one_by_one(parts: Classifier, attention: str) -> None:
    parts.model.set_attn_implementation(attention)
    parts.model.eval()
    with torch.no_grad():
        alone = [parts.model.bert(**parts.tokenizer(text, return_tensors="pt")) for text in TEXTS["en"]]
    expected = {
        "cls": torch.stack([one.last_hidden_state[0, 0] for one in alone]).mean(dim=0),
        "pooled": torch.stack([one.pooler_output[0] for one in alone]).mean(dim=0),
    }
    for place in PLACES:
        found = zero_shot.mean_vector(parts, encoded(parts, "en"), SETTINGS, place)
        torch.testing.assert_close(found, expected[place], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_a_language_is_moved_onto_the_training_language_which_stays(parts: Classifier, place: zero_shot.Place) -> None:
    means = {name: zero_shot.mean_vector(parts, encoded(parts, name), SETTINGS, place) for name in TEXTS}
    moved = zero_shot.shifts(means, ["en"])
    assert float(moved["en"].abs().max()) == 0
    assert float(moved["it"].abs().max()) > 1e-3
    with zero_shot.centred(parts, moved["it"], place):
        found = zero_shot.mean_vector(parts, encoded(parts, "it"), SETTINGS, place)
    torch.testing.assert_close(found, means["en"], atol=1e-5, rtol=1e-4)


def test_several_training_languages_are_moved_onto_their_common_mean() -> None:
    means = {"en": torch.tensor([1.0, 0.0]), "de": torch.tensor([3.0, 2.0]), "it": torch.tensor([0.0, 0.0])}
    found = {language: shift.tolist() for language, shift in zero_shot.shifts(means, ["en", "de"]).items()}
    assert found == {"en": [1.0, 1.0], "de": [-1.0, -1.0], "it": [2.0, 1.0]}


def test_behind_the_pooler_centring_adds_the_same_to_each_texts_logits_and_before_it_does_not(
    parts: Classifier,
) -> None:
    shift = torch.linspace(-2, 2, parts.width)
    plain = log_probabilities(parts, "en")
    apart = {}
    for place in PLACES:
        with zero_shot.centred(parts, shift, place):
            change = log_probabilities(parts, "en") - plain
        change -= change[:, :1]  # softmax forgets what all labels have in common
        assert np.abs(change).max() > 1e-3
        apart[place] = float(np.ptp(change, axis=0).max())
    assert apart["pooled"] < 1e-5 < 1e-3 < apart["cls"]


@pytest.mark.parametrize("place", PLACES)
def test_after_the_block_the_model_is_as_it_was_even_after_an_error(parts: Classifier, place: zero_shot.Place) -> None:
    plain = log_probabilities(parts, "it")

    def fail() -> None:
        with zero_shot.centred(parts, torch.ones(parts.width), place):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    zero_shot.mean_vector(parts, encoded(parts, "en"), SETTINGS, place)
    np.testing.assert_array_equal(log_probabilities(parts, "it"), plain)


def test_a_model_without_a_pooler_is_refused_by_name(parts: Classifier) -> None:
    config = DistilBertConfig(vocab_size=50, dim=8, hidden_dim=8, n_layers=1, n_heads=2, num_labels=3)
    other = dataclasses.replace(parts, model=DistilBertForSequenceClassification(config))
    with pytest.raises(UserError, match="centring=cls: DistilBERT has no vector there") as caught:
        zero_shot.mean_vector(other, encoded(parts, "en"), SETTINGS, "cls")
    assert caught.value.code == Exit.USAGE
    assert len(zero_shot.mean_vector(other, encoded(parts, "en"), SETTINGS, "pooled")) == 8


# Self-training


SURE = np.array(
    [
        [0.99, 0.01, 0.00], [0.95, 0.05, 0.00], [0.91, 0.05, 0.04], [0.89, 0.11, 0.00],
        [0.02, 0.98, 0.00], [0.04, 0.92, 0.04], [0.40, 0.30, 0.30], [0.97, 0.01, 0.02],
    ]
)  # fmt: skip


def test_the_surest_rows_are_kept_as_many_of_each_label() -> None:
    assert zero_shot.confident(SURE, 0.9).tolist() == [0, 4, 5, 7]
    assert zero_shot.confident(SURE, 0.97).tolist() == [0, 4]
    assert zero_shot.confident(SURE, 0.995).tolist() == []


def test_a_pseudo_labelled_split_looks_like_one_that_was_read(tmp_path: Path) -> None:
    rows = [(f"i{number}", f"text {number}", "account") for number in range(8)]
    file = str(write_csv(tmp_path / "it.csv", rows))
    read, unlabelled = read_split("it", file, DataConfig()), read_split("it", file, DataConfig(), labelled=False)
    for split in (read, unlabelled):  # labels that stand there are not looked at
        pseudo, told = zero_shot.pseudo_label(split, SURE, LABELS, 0.9)
        assert pseudo is not None
        assert list(pseudo.rows.features.items()) == list(read.rows.features.items())  # or they could not be joined
        assert pseudo.ids() == ["i0", "i4", "i5", "i7"]
        assert pseudo.labels() == ["account", "delivery", "delivery", "account"]
        assert pseudo.where(1) == f"{file}:6"
        assert told == {"texts": 8, "kept": 4, "by_label": {"account": 2, "delivery": 2}, "threshold": 0.9}
    nothing, told = zero_shot.pseudo_label(unlabelled, SURE, LABELS, 0.999)
    assert (nothing, told["kept"]) == (None, 0)


def test_texts_with_several_labels_are_refused() -> None:
    split = from_lines("it", ["a"] * 8)
    with pytest.raises(UserError, match="one label each") as caught:
        zero_shot.pseudo_label(split, SURE, LabelMap(LABELS.names, multi_label=True), 0.9)
    assert caught.value.code == Exit.USAGE


def test_texts_of_the_test_sets_are_left_out_and_counted() -> None:
    unlabelled = from_lines("it", ["Il  pacco", "altro", "la carta", "ancora"])
    tests = [from_lines("test", ["il pacco", "no"]), from_lines("test", ["la carta", "il pacco"])]
    rest, leaked = zero_shot.without_tests(unlabelled, tests)
    assert (rest.texts(), leaked) == (["altro", "ancora"], 2)
    assert zero_shot.without_tests(unlabelled, [])[1] == 0
    with pytest.raises(UserError, match="every unlabelled text stands in test") as caught:
        zero_shot.without_tests(tests[0], tests[:1])
    assert caught.value.code == Exit.BAD_DATA


def toy(folder: Path, name: str, rows: Sequence[tuple[str, str, str]]) -> Split:
    return read_split(name, str(write_csv(folder / f"{name}.csv", rows)), DataConfig())


def test_self_training_learns_words_that_no_labelled_row_has(tmp_path: Path) -> None:
    source = toy(tmp_path, "source", toy_rows(60, seed=1))
    # Each unlabelled text has a known word, and a new one that means the same.
    new = {label: f"nuovo{label}" for label in TOPICS}
    mixed = [(i, f"{text} {new[label]}", label) for i, text, label in toy_rows(300, seed=2)]
    target = [(f"t{i}", word, label) for i, (label, word) in enumerate(new.items())]
    test = toy(tmp_path, "test", target)
    trained: list[list[int]] = []

    def fit(splits: Sequence[Split]) -> zero_shot.Score:
        trained.append([len(split) for split in splits])
        texts = [text for split in splits for text in split.texts()]
        gold = np.concatenate([LABELS.encode(split) for split in splits])
        model = baselines.fit_tfidf(texts, gold, LABELS.names)
        return lambda split: model.predict_proba(split.texts())

    unlabelled = {"it": toy(tmp_path, "unlabelled", [*mixed, target[0]])}
    score, record = zero_shot.self_train(source, unlabelled, [test], fit, LABELS, 0.8)
    kept = record["it"]["kept"]
    assert trained == [[60], [60, kept]]
    assert record["it"]["texts"] == 300
    assert record["it"]["in_test"] == 1
    assert len(set(record["it"]["by_label"].values())) == 1  # as many of each
    right = Counter((score(test).argmax(axis=1) == LABELS.encode(test)).tolist())
    assert right == {True: 3}


def test_a_model_that_is_sure_of_nothing_is_told_so(tmp_path: Path) -> None:
    source = toy(tmp_path, "source", toy_rows(6))
    with pytest.raises(UserError, match=r"sure of no unlabelled text at 0\.9") as caught:
        zero_shot.self_train(
            source, {"it": source}, [], lambda _: lambda split: np.full((len(split), 3), 1 / 3), LABELS, 0.9
        )
    assert caught.value.code == Exit.USAGE
