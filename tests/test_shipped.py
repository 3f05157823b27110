"""What the project ships is there, small enough, and does what its card says."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import call, done
from safetensors.numpy import load_file
from transformers import AutoModel

from finetune import pretrained
from finetune.commands import training
from finetune.commands.training import TrainOptions
from finetune.data.shipped import CHECKPOINTS, shipped
from finetune.errors import Exit, UserError
from finetune.pretraining.model import sentence_vectors

DATA = Path(__file__).resolve().parent.parent / "data"
MOST_BYTES = {"mini-mbert": 44_000_000, "mini-gpt2": 20_000_000}
CHECKPOINTS_COME_FROM = {"mini-mbert": "all-MiniLM-L6-v2", "mini-gpt2": "mini_gpt2"}
MOST_BYTES_OF_DATA = 72_000_000


def vectors(language: str) -> torch.Tensor:
    """Return the mean vector of each shipped test message of a language, of length one."""
    source = pretrained.locate("mini-mbert")
    tokenizer = pretrained.load_tokenizer(source)
    model = pretrained.load_model(AutoModel, source, tokenizer).eval()
    with (DATA / "tickets" / f"{language}.test.csv").open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return torch.nn.functional.normalize(sentence_vectors(model, inputs["input_ids"], inputs["attention_mask"])[1])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_half_precision_on_disk_small_and_has_a_card(name: str) -> None:
    folder = DATA / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES[name]
    assert {array.dtype for array in load_file(folder / "model.safetensors").values()} == {np.dtype("float16")}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for told in ("Apache-2.0", CHECKPOINTS_COME_FROM[name], "finetune train", "tokens", "## Limits"):
        assert told in card, told
    assert not re.search(r"(^|[ `=])/(work|tmp|home|root)/", card)  # no path of the machine that made it
    assert pretrained.locate(name).identity.startswith("sha256:")


def test_all_shipped_data_together_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MOST_BYTES_OF_DATA


def test_what_is_not_shipped_is_missing_input() -> None:
    with pytest.raises(UserError, match="no-such-thing, which finetune-recipes ships, is not installed") as caught:
        shipped("no-such-thing")
    assert caught.value.code == Exit.NO_INPUT


def test_a_message_in_another_language_lies_near_its_english_one() -> None:
    english = vectors("en")
    for language in ("it", "de", "es", "fr"):
        nearest = (vectors(language) @ english.T).argmax(dim=1)
        found = float((nearest == torch.arange(len(english))).float().mean())
        assert found > 0.6, language  # reworded freely; by chance 1 in 180


def shorten(monkeypatch: pytest.MonkeyPatch, *brief: str) -> None:
    """Let demos train with some more settings than they have."""
    whole = training.train

    def short(recipe: str, settings: list[str], file: str | None, options: TrainOptions) -> dict[str, Any]:
        return whole(recipe, [*settings, "max_steps=2", *brief], file, options)

    monkeypatch.setattr(training, "train", short)


def test_the_demo_trains_the_shipped_model_on_english_and_scores_five_languages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shorten(monkeypatch, "max_length=32")
    results = training.demo(str(tmp_path / "demo"), TrainOptions())
    assert results["diagnostics"]["train_languages"] == ["en"]
    assert list(results["comparisons"]) == list(results["languages"]) == ["en", "it", "de", "es", "fr"]
    assert results["diagnostics"]["rows"]["test"] == 180
    assert (tmp_path / "demo" / "pictures" / "matrix.svg").is_file()
    assert training.examples(str(tmp_path / "demo"), results) == []
    assert training.demo(str(tmp_path / "demo"), TrainOptions(resume=True))["scores"] == results["scores"]


def test_the_demo_of_summaries_says_who_wins_and_shows_three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shorten(monkeypatch, "generation.max_new_tokens=4", "generation.num_beams=1")
    shown = done("demo", "summarization", tmp_path / "run").out
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["diagnostics"]["rows"] == {"train": 103, "validation": 23, "test": 35}
    assert "keep the baseline" in " ".join(shown.split())
    assert re.search(
        r"\nin short  rouge1 of the model [\d.]+ \[.*\]\n +lead-1 .*\n +lead-3 .*: the first lines win", shown
    )
    assert shown.count("\nexample   ") == 3
    assert shown.count("\n          human: ") == shown.count("\n          model: ") == 3
    assert "example" not in done("demo", "summarization", tmp_path / "json", "--json").out.splitlines()[-1]


def test_the_demo_of_stories_goes_on_with_them_beside_ngrams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_gpt2: Path
) -> None:
    def place(name: str) -> Path:  # a stand-in: tiny, with random weights
        return tiny_gpt2 if name == "checkpoints/mini-gpt2" else shipped(name)

    monkeypatch.setattr(pretrained, "shipped", place)
    shorten(monkeypatch, "max_length=32", "generation.max_new_tokens=8")
    monkeypatch.chdir(tmp_path)
    shown = done("demo", "generation").out
    results = json.loads((tmp_path / "runs" / "demo-generation" / "results.json").read_text(encoding="utf-8"))
    assert results["model"].startswith("mini-gpt2")
    assert results["diagnostics"]["rows"] == {"train": 48, "validation": 8, "test": 8}
    assert "bits_per_byte" in shown
    assert "grams, Kneser-Ney" in shown
    assert shown.count("\nexample   ") == 3
    assert shown.count("\n          model: ... ") == shown.count("\n          human: ... ") == 3


def test_a_demo_that_is_not_there_is_told_with_the_nearest_name() -> None:
    for arguments in (("demo", "summarisation"), ("demo", "x", "runs/x")):
        outcome = call(*arguments)
        assert outcome.code == Exit.USAGE, outcome.err
        assert "known are languages, summarization, generation" in outcome.err
    assert "did you mean summarization?" in call("demo", "summarisation").err
