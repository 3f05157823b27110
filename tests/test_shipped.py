"""What the project ships is there, small enough, and does what its card says."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel

from finetune import commands, pretrained
from finetune.commands import TrainOptions
from finetune.data.shipped import shipped
from finetune.errors import Exit, UserError
from finetune.pretraining.model import sentence_vectors

DATA = Path(__file__).resolve().parent.parent / "data"
MOST_BYTES = 44_000_000
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


@pytest.mark.parametrize("name", ["mini-mbert"])
def test_a_checkpoint_is_half_precision_on_disk_small_and_has_a_card(name: str) -> None:
    folder = DATA / "checkpoints" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    assert {array.dtype for array in load_file(folder / "model.safetensors").values()} == {np.dtype("float16")}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for told in ("Apache-2.0", "all-MiniLM-L6-v2", "finetune train", "tokens", "## Limits"):
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


def test_the_demo_trains_the_shipped_model_on_english_and_scores_five_languages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = commands.train

    def short(recipe: str, settings: list[str], file: str | None, options: TrainOptions) -> dict[str, Any]:
        return whole(recipe, [*settings, "max_steps=2", "max_length=32"], file, options)

    monkeypatch.setattr(commands, "train", short)
    results = commands.demo(str(tmp_path / "demo"), overwrite=False)
    assert results["diagnostics"]["train_languages"] == ["en"]
    assert list(results["comparisons"]) == list(results["languages"]) == ["en", "it", "de", "es", "fr"]
    assert results["diagnostics"]["rows"]["test"] == 180
    assert (tmp_path / "demo" / "pictures" / "matrix.svg").is_file()
