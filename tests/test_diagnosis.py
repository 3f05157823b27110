"""What a run tells of its languages: figures as a table, files in another language, correlations, the heat map."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data.columns import Split, from_lines
from finetune.errors import UserError
from finetune.language_diagnosis import FIGURES, LANGID_HINT
from finetune.report import diagnosis
from finetune.run import Run

TESTS = {"en": from_lines("en.csv", ["my parcel was late"]), "it": from_lines("it.csv", ["il pacco", "my card"])}
TRAINING = {"en": from_lines("train.csv", ["my card was charged"])}
Mix = dict[str, dict[str, dict[str, float]]] | None


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def mixes(monkeypatch: pytest.MonkeyPatch, mix: Mix) -> list[Mapping[str, Any]]:
    """Let the identifier of languages answer `mix`; returns what it is asked."""
    asked: list[Mapping[str, Any]] = []

    def answer(splits: Mapping[str, Any]) -> Mix:
        asked.append(splits)
        return mix

    monkeypatch.setattr(diagnosis, "language_mix", answer)
    return asked


def test_a_run_tells_its_figures_and_how_to_have_the_languages_of_the_files(
    run: Run, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixes(monkeypatch, None)
    found = diagnosis.say_languages(run, TESTS, TRAINING, tokenizer, 4)
    assert set(found) == {"figures", "definitions"}
    assert found["definitions"] == FIGURES
    json.dumps(found, allow_nan=False)
    told = capsys.readouterr().err.splitlines()
    assert told[0].split() == ["languages", "en", "it"]
    assert told[1].split() == ["subwords", "a", "word", "1.00", "2.25"]  # i l p a c c o of two words, my card
    assert told[3].split() == ["texts", "cut,", "%", "100.0", "50.0"]
    assert told[-1] == f"note      {LANGID_HINT}"


def test_files_of_train_and_test_are_looked_at_and_wrong_ones_are_warned_of(
    run: Run, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = mixes(monkeypatch, {"it": {"it.csv": {"en": 0.9, "it": 0.1}}})
    found = diagnosis.say_languages(run, TESTS, TRAINING, tokenizer, 128)
    assert {name: len(splits) for name, splits in asked[0].items()} == {"en": 2, "it": 1}
    assert found["language_of_files"] == {"it": {"it.csv": {"en": 0.9, "it": 0.1}}}
    assert "warning   it.csv is given for it, and 90 % of its rows seem to be en" in capsys.readouterr().err


def test_a_language_that_the_vocabulary_does_not_know_stops_the_run(
    run: Run, tokenizer: PreTrainedTokenizerBase
) -> None:
    tests: dict[str, Split] = TESTS | {"ru": from_lines("ru.csv", ["кот и дом"])}
    with pytest.raises(UserError, match="ru 100 %"):
        diagnosis.say_languages(run, tests, TRAINING, tokenizer, 128)


def figures(count: int) -> dict[str, dict[str, Any]]:
    return {
        f"l{n}": dict.fromkeys(FIGURES, 0.5) | {"counted": "words", "rows": 9, "subwords_per_word": 1.0 + n}
        for n in range(count)
    }


def test_many_languages_stand_in_blocks_of_eighty_columns_and_characters_are_named() -> None:
    many = figures(14)
    assert "character" not in "".join(diagnosis.figure_lines(many))
    many["l3"]["counted"] = "characters"
    lines = diagnosis.figure_lines(many)
    assert max(map(len, lines)) <= 70  # 80 with the head
    assert sum(line.count("l13") for line in lines) == 1
    assert lines[-1].startswith("in l3 each character counts as a word")


def test_strong_correlations_are_told_with_a_caution() -> None:
    found = diagnosis.with_gaps({"figures": figures(5)}, {f"l{n}": 0.1 * n for n in range(5)}, "the oracle")
    assert found["correlations"]["spearman_with_gap"] == {"subwords_per_word": pytest.approx(1.0)}
    told = diagnosis.correlation_text(found)
    assert told.startswith("rank correlation with the gap to the oracle: subwords a word +1.0; 5 languages are few")
    few = diagnosis.with_gaps({"figures": figures(2)}, {"l0": 0.1, "l1": 0.2}, "en")
    assert diagnosis.correlation_text(few) == "2 languages have a gap: too few for a correlation"


def test_the_matrix_is_drawn_with_a_cell_for_each_score_that_there_is(tmp_path: Path) -> None:
    matrix = {
        "en": {"en": {"accuracy": {"value": 0.9}}, "it": {"accuracy": {"value": 0.7}}},
        "it": {"it": {"accuracy": {"value": 0.8}}},
    }
    diagnosis.draw_matrix(matrix, "accuracy", tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.findtext("{http://www.w3.org/2000/svg}desc") == "en: en 0.900, it 0.700; it: it 0.800"
