"""Figures of each language against a table worked out by hand, and files that seem to be in another language."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import write_csv
from transformers import BertTokenizerFast

from finetune import language_diagnosis
from finetune.data.columns import DataConfig, Split, from_lines, read_split
from finetune.errors import Exit, UserError
from finetune.language_diagnosis import (
    FIGURES,
    check_known,
    correlations,
    diagnose,
    language_mix,
    wrong_files,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "hat", "##ter", "##s", "!", ",", "猫", "は"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(VOCABULARY)}, do_lower_case=True)


def split(*lines: str, name: str = "test") -> Split:
    return from_lines(name, lines)


def test_figures_are_those_worked_out_by_hand(tokenizer: BertTokenizerFast) -> None:
    # the cat ! | hat ##ter ##s , the [UNK]: 7 subwords of 5 words, 9 tokens, and [CLS] and [SEP] twice
    test = split("The cat!", "Hatters, the dog")
    found = diagnose({"en": test}, [split("the cat", "the hat")], tokenizer, max_length=7)["en"]
    assert found == {
        "rows": 2,
        "counted": "words",
        "subwords_per_word": pytest.approx(7 / 5),
        "unknown_rate": pytest.approx(1 / 9),
        "cut_share": 0.5,  # 5 and 8 tokens
        "token_overlap": pytest.approx(4 / 7),  # the, cat, hat, the
        "type_overlap": pytest.approx(3 / 6),
        "mean_tokens": 6.5,
    }
    assert set(FIGURES) < set(found)
    json.dumps(found, allow_nan=False)


def test_punctuation_is_no_part_of_a_word(tokenizer: BertTokenizerFast) -> None:
    plain, loud = (diagnose({"x": split(text)}, [], tokenizer, 128)["x"] for text in ("the cat", "the, cat!!!"))
    assert plain["subwords_per_word"] == loud["subwords_per_word"] == 1
    assert loud["mean_tokens"] == plain["mean_tokens"] + 4


def test_characters_are_counted_where_a_script_has_no_spaces(tokenizer: BertTokenizerFast) -> None:
    found = diagnose({"ja": split("猫は", "猫"), "en": split("the cat 猫")}, [], tokenizer, 128)
    assert (found["ja"]["counted"], found["ja"]["subwords_per_word"]) == ("characters", 1)
    assert found["en"]["counted"] == "words"


def test_both_texts_of_a_pair_count(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "p.csv", [("the cat", "hats", "a")], header=("text", "second", "label"))
    pair = read_split("test", str(file), DataConfig(text_pair_column="second"))
    found = diagnose({"en": pair}, [], tokenizer, 128)["en"]
    assert found["mean_tokens"] == len(tokenizer("the cat", "hats")["input_ids"])
    assert found["subwords_per_word"] == pytest.approx(4 / 3)


def test_a_large_split_is_sampled(tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_diagnosis, "SAMPLE_ROWS", 10)
    test = split(*["the cat"] * 50, *["hats"] * 50)
    one, again = (diagnose({"x": test}, [], tokenizer, 128)["x"] for _ in range(2))
    assert one == again
    assert one["rows"] == 10
    assert 1 < one["subwords_per_word"] < 2


def test_a_vocabulary_that_knows_no_word_of_a_language_is_refused_by_name(tokenizer: BertTokenizerFast) -> None:
    figures = diagnose({"en": split("the cat"), "ru": split("кот и дом")}, [], tokenizer, 128)
    with pytest.raises(UserError, match=r"unknown to the model's vocabulary: ru 100 %") as caught:
        check_known(figures)
    assert caught.value.code == Exit.BAD_DATA
    check_known({"en": figures["en"]})


def test_correlations_are_ranks_over_the_languages_with_a_gap() -> None:
    fertility, gaps = [1.1, 1.5, 1.4, 2.5, 9.0], [0.0, 0.12, 0.10, 0.30, 0.31]
    figures = {
        f"l{number}": dict.fromkeys(FIGURES, 0.5) | {"subwords_per_word": value, "type_overlap": -value}
        for number, value in enumerate(fertility)
    }
    of_gaps = {f"l{n}": gap for n, gap in enumerate(gaps)} | {"no figures": 0.0}
    found = correlations(figures | {"no gap": figures["l0"]}, of_gaps)
    assert found["spearman_with_gap"] == {
        "subwords_per_word": pytest.approx(1.0),
        "type_overlap": pytest.approx(-1.0),
    }  # what is the same everywhere has no rank
    assert found["n"] == 5
    assert "5 languages are few" in found["note"]


def test_two_languages_have_no_correlation() -> None:
    figures = {name: {figure: float(len(name)) for figure in FIGURES} for name in ("a", "bb")}
    found = correlations(figures, {"a": 0.1, "bb": 0.2})
    assert found == {
        "spearman_with_gap": {},
        "n": 2,
        "note": "2 languages have a gap: too few for a correlation",
    }
    assert correlations(figures, {"a": 0.1})["note"] == "1 language has a gap: too few for a correlation"


class Identifier:
    """Stands in for py3langid, which is an extra: the first word of a text is its language."""

    labels = ("en", "de", "it", "nn", "no")
    asked = 0

    @classmethod
    def from_model_file(cls, file: str) -> "Identifier":
        assert file == "model"
        return cls()

    def classify(self, text: str) -> tuple[str, float]:
        type(self).asked += 1
        return text.split()[0], 0.9


@pytest.fixture
def identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("py3langid.langid")
    module.LanguageIdentifier, module.MODEL_FILE = Identifier, "model"
    monkeypatch.setattr(Identifier, "asked", 0)
    monkeypatch.setitem(sys.modules, "py3langid", types.ModuleType("py3langid"))
    monkeypatch.setitem(sys.modules, "py3langid.langid", module)


def test_the_mix_is_told_by_file_and_warned_of_by_file(identifier: None, tmp_path: Path) -> None:
    files = {}
    for name, count in (("right", 3), ("wrong", 9)):
        rows = [(f"{'de' if number < count else 'it'} ciao", "a") for number in range(10)]
        files[name] = str(write_csv(tmp_path / f"{name}.csv", rows, header=("text", "label")))
    both = read_split("test", [files["right"], files["wrong"]], DataConfig())
    mix = language_mix({"it-CH": [both], "xx": [both]})
    assert mix == {"it-CH": {files["right"]: {"it": 0.7, "de": 0.3}, files["wrong"]: {"de": 0.9, "it": 0.1}}}
    assert wrong_files(mix) == [f"{files['wrong']} is given for it-CH, and 90 % of its rows seem to be de"]


def test_a_file_of_many_languages_is_given_for_none_of_them() -> None:
    assert wrong_files({"it": {"it.csv": {"de": 0.4, "it": 0.35, "en": 0.25}}}) == []


def test_close_kin_are_no_reason_to_warn(identifier: None) -> None:
    mix = language_mix({"no": [split("nn hei", "nn ja", "nn nei")]})
    assert mix == {"no": {"test": {"nn": 1.0}}}
    assert wrong_files(mix) == []


def test_a_large_file_is_sampled_for_its_language(identifier: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_diagnosis, "LANGID_ROWS", 4)
    mix = language_mix({"en": [split(*["en a"] * 30)]})
    assert mix == {"en": {"test": {"en": 1.0}}}
    assert Identifier.asked == 4


def test_without_the_extra_there_is_no_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert language_mix({"en": [split("the cat")]}) is None


def test_an_array_never_reaches_the_record(tokenizer: BertTokenizerFast) -> None:
    found = diagnose({"en": split("the cat")}, [split("the")], tokenizer, 128)["en"]
    assert not any(isinstance(value, np.generic) for value in found.values())
