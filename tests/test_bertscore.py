"""BERTScore by hand, against a plain computation, and as figures with intervals."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq as tiny
import torch
from transformers import AutoModel, AutoTokenizer

from finetune import bertscore, hardware
from finetune.bertscore import Meter
from finetune.errors import Exit, UserError
from finetune.text_evaluation import TextPredictions

TEXTS = ["my parcel was late", "the card is charged", "who can login", "a"]
REFERENCES = [
    ["the parcel is late again", "late"],
    ["why was my card charged"],
    ["who can login"],
    ["bank and invoice"],
]


@pytest.fixture(scope="module")
def meter(tiny_model: Path) -> Meter:
    found = bertscore.load(str(tiny_model))
    assert found is not None
    return found


def row_scores(meter: Meter, texts: list[str], references: list[list[str]]) -> np.ndarray:
    found: np.ndarray = bertscore.row_scores(meter, [texts], references)[0][0]
    return found


def test_the_similarity_of_some_vectors_by_hand() -> None:
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.8, 0.6]])
    # cosines: 0 1 .8 / .8 .6 .96
    precision, recall = (1 + 0.96) / 2, (0.8 + 1 + 0.96) / 3
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert bertscore.similarity(text, reference) == pytest.approx(expected)
    assert bertscore.similarity(reference, text) == pytest.approx((recall, precision, expected[2]))
    assert bertscore.similarity(text[:0], reference) == (0, 0, 0)
    assert bertscore.similarity(text, -text[:1])[2] == 0  # no harmonic mean of what is not above 0


def plain(model: torch.nn.Module, tokenizer: object, text: str) -> np.ndarray:
    """Return unit vectors of a text alone, without [CLS] and [SEP]."""
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:-1]  # type: ignore[operator]
    return np.asarray(hidden / hidden.norm(dim=1, keepdim=True))


def test_scores_are_those_of_each_pair_alone(tiny_model: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = AutoModel.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)
    expected = []
    for text, several in zip(TEXTS, REFERENCES, strict=True):
        scores = []
        for reference in several:
            cosines = plain(model, tokenizer, text) @ plain(model, tokenizer, reference).T
            precision, recall = cosines.max(axis=1).mean(), cosines.max(axis=0).mean()
            scores.append((precision, recall, 2 * precision * recall / (precision + recall)))
        expected.append(max(scores, key=lambda score: score[2]))
    assert row_scores(meter, TEXTS, REFERENCES) == pytest.approx(np.array(expected), abs=1e-5)
    monkeypatch.setattr(bertscore, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(bertscore, "TOKENS_AT_ONCE", 12)
    assert row_scores(meter, TEXTS, REFERENCES) == pytest.approx(np.array(expected), abs=1e-5)


def test_the_same_text_has_one_and_an_empty_one_nothing(meter: Meter) -> None:
    found = row_scores(meter, ["who can login", "", " "], [["who can login"]] * 3)
    assert found == pytest.approx(np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]]), abs=1e-6)


def test_figures_have_intervals_and_name_their_model(meter: Meter, tiny_model: Path) -> None:
    def predictions(texts: list[str]) -> TextPredictions:
        return TextPredictions([*"abcd"], TEXTS, REFERENCES, texts)

    own, other = predictions(TEXTS), predictions([REFERENCES[0][0], *(several[0] for several in REFERENCES[1:])])
    found = meter.judged(own, ("copy", other))
    rows = row_scores(meter, TEXTS, REFERENCES)
    assert [found["system"][name]["value"] for name in bertscore.FIGURES] == pytest.approx(rows.mean(axis=0))
    for score in found["system"].values():
        assert score["low"] < score["value"] < score["high"]
    assert (found["model"], found["layer"], found["cut"]) == (str(tiny_model), 1, 0)
    assert found["identity"].startswith("sha256:")
    assert found["baseline"]["name"] == "copy"
    assert found["baseline"]["f1"]["value"] == pytest.approx(1)
    difference = found["difference"]
    assert difference["value"] == pytest.approx(rows.mean(axis=0)[2] - 1)
    assert difference["low"] < difference["value"] < difference["high"] < 0
    assert set(meter.judged(own, None)) == set(found) - {"baseline", "difference"}
    long = predictions([*TEXTS[:3], "parcel " * 80])
    assert meter.judged(long, None)["cut"] == 1
    other = predictions(["card " * 80, *TEXTS[1:3], "card " * 80])
    assert meter.judged(long, ("other", other))["cut"] == 2


def test_a_text_of_several_is_read_once(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    vectors = bertscore._vectors

    def told(meter: Meter, texts: Sequence[str]) -> Any:
        read.extend(texts)
        return vectors(meter, texts)

    monkeypatch.setattr(bertscore, "_vectors", told)
    own, other = (TextPredictions([*"abcd"], TEXTS, REFERENCES, texts) for texts in (TEXTS, ["b", *TEXTS[1:]]))
    meter.judged(own, ("other", other))
    assert sorted(read) == sorted({*TEXTS, "b", *(text for several in REFERENCES for text in several)})


def test_a_meter_stays_on_the_device_that_is_asked_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_type", lambda use_cpu: "cpu" if use_cpu else "meta")
    for use_cpu, device in ((True, "cpu"), (False, "meta")):
        meter = bertscore.load(str(tiny_model), use_cpu=use_cpu)
        assert meter is not None
        assert meter.model.device.type == device


def test_no_name_is_no_meter_and_what_cannot_measure_is_refused(
    tmp_path: Path, tiny_gpt2: Path, tiny_model: Path
) -> None:
    assert bertscore.load(None) is None
    shutil.copytree(tiny_model, tmp_path / "decoder")
    stored = json.loads((tmp_path / "decoder" / "config.json").read_text())
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(stored | {"is_decoder": True}))
    for name, code, mentions in (
        (str(tiny_gpt2), Exit.BAD_DATA, r"\(GPT2Model\) is no model that fills gaps.*; give a BERT"),
        (str(tmp_path / "decoder"), Exit.BAD_DATA, r"\(BertModel\) is no model that fills gaps"),
        (str(tiny.bart(tmp_path / "bart")), Exit.BAD_DATA, "is an encoder-decoder; give a BERT"),
        ("./nowhere", Exit.NO_INPUT, "no such folder"),
    ):
        with pytest.raises(UserError, match=mentions) as caught:
            bertscore.load(name)
        assert caught.value.code == code
        assert str(caught.value).startswith("bertscore_model=")
