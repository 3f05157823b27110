"""Adapters: equal to the base at first, trained alone, saved alone, attached again, merged; with every recipe."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_seq2seq as tiny
import torch
from calling import call, done, private_cache, read_jsonl, sha256, train_toy, write_csv
from conftest import toy_rows
from pretexts import write_mono, write_pairs
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from finetune import adapters, checkpoint, classifier, optim, pretrained
from finetune.adapters import AdapterConfig, Base
from finetune.data.columns import LabelMap
from finetune.errors import Exit, Interrupted, UserError
from finetune.run import Run
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel
from finetune.trainer import TrainConfig, Trainer

NAMES = LabelMap(("a", "b", "c"))
KINDS = ("lora", "dora", "ia3")
INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def adapted(kind: str, **settings: Any) -> AdapterConfig:
    """Return settings of a kind of adapter."""
    return AdapterConfig(adapter=kind, **settings)  # type: ignore[arg-type]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**INPUTS).logits
    return found


def perturb(model: PreTrainedModel) -> None:
    """Change all that is trained, as training does."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_an_adapter_changes_nothing(kind: str, tiny_model: Path) -> None:
    plain = classifier.load(str(tiny_model), NAMES, seed=1)
    other = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    assert torch.equal(logits(plain.model), logits(other.model))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_and_the_head_are_trained_and_nothing_else(kind: str, tiny_model: Path) -> None:
    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    marks = {"lora": ("lora_A", "lora_B"), "dora": ("lora_A", "lora_B", "lora_magnitude_vector"), "ia3": ("ia3_l",)}
    names = learning(parts.model)
    heads = {name for name in names if name.startswith("classifier.modules_to_save.")}
    assert len(heads) == 2
    assert names - heads
    assert all(any(mark in name for mark in marks[kind]) for name in names - heads)
    assert optim.freeze(parts.model, 0) == sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    assert learning(parts.model) == names
    optim.freeze(parts.model, 1)
    assert learning(parts.model) == heads


def test_the_scales_of_ia3_have_no_weight_decay(tiny_model: Path) -> None:
    model = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted("ia3")).model
    groups = optim.parameter_groups(model, 0.1, 0.01)
    worn = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}  # type: ignore[attr-defined]
    assert {name for name, one in model.named_parameters() if id(one) in worn} == {
        "classifier.modules_to_save.default.weight"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_and_head_come_back_from_their_folder(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    before = logits(parts.model)
    perturb(parts.model)
    wanted = logits(parts.model)
    assert not torch.allclose(before, wanted, atol=1e-2)
    parts.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    stored = load_file(tmp_path / adapters.WEIGHTS)
    assert {name for name in stored if "classifier" in name} == {
        "base_model.model.classifier.weight", "base_model.model.classifier.bias"
    }  # fmt: skip
    found = classifier.load_trained(str(tmp_path))
    assert found.labels == NAMES
    assert torch.equal(logits(found.model), wanted)
    assert not learning(found.model)


def test_peft_itself_loads_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification, PeftModel

    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted("lora"))
    perturb(parts.model)
    parts.save(tmp_path)
    with adapters._unheard():
        found = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
        other = PeftModel.from_pretrained(base, tmp_path)
    assert torch.allclose(logits(found), logits(parts.model), atol=1e-6)
    assert torch.allclose(logits(other), logits(parts.model), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_is_plain_and_gives_the_same(kind: str, tiny_model: Path) -> None:
    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    perturb(parts.model)
    wanted, plain = logits(parts.model), classifier.load(str(tiny_model), NAMES, seed=1).model
    adapters.merge(parts.model)
    assert set(parts.model.state_dict()) == set(plain.state_dict())
    assert not adapters.is_adapted(parts.model)
    assert learning(parts.model) == learning(plain)
    assert torch.allclose(logits(parts.model), wanted, atol=1e-5)
    assert adapters.BASE not in parts.model.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "bart", "transformer", "rnn"])
def test_each_kind_on_each_architecture_comes_back_and_is_merged(
    kind: str, family: str, tiny_gpt2: Path, tmp_path: Path
) -> None:
    inputs = INPUTS if family == "gpt2" else INPUTS | {"decoder_input_ids": INPUTS["input_ids"]}
    auto = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
    if family in {"transformer", "rnn"}:
        torch.manual_seed(1)
        size = {"source_vocab_size": 20, "target_vocab_size": 20, "hidden_size": 16}
        Seq2SeqModel(Seq2SeqConfig(**size, architecture=family)).save_pretrained(tmp_path / "base")
    base = tiny_gpt2 if family == "gpt2" else tiny.bart(tmp_path / "bart") if family == "bart" else tmp_path / "base"
    first, again = (auto.from_pretrained(base).eval() for _ in range(2))
    before = first(**inputs).logits
    adapters.wrap(first, adapted(kind), Base(str(base), "sha256:0", str(base), None), new=())
    assert torch.allclose(first(**inputs).logits, before, atol=1e-5)
    perturb(first)
    wanted = first(**inputs).logits
    assert not torch.allclose(wanted, before, atol=1e-3)
    adapters.save(first, tmp_path)
    adapters.attach(again, tmp_path)
    assert torch.equal(again.eval()(**inputs).logits, wanted)
    adapters.merge(first)
    assert torch.allclose(first(**inputs).logits.softmax(dim=-1), wanted.softmax(dim=-1), atol=1e-5)
    assert set(first.state_dict()) == set(auto.from_pretrained(base).state_dict())


# A run of classification


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    with private_cache(folder):
        return train_toy(folder, tiny_model, "adapter=lora", "rank=4", "alpha=8", "train.num_train_epochs=4")


def test_a_run_tells_what_it_trains_and_keeps_no_more(run: Path) -> None:
    log = (run / "train.log").read_text()
    assert "LoRA of rank 4 on query, value, a head at 6 times its rate · " in log
    figures = json.loads((run / "results.json").read_text())["diagnostics"]
    trained = figures["trained_parameters"]
    assert trained == 2 * (4 * 32 + 32 * 4) + 3 * 32 + 3  # A and B of two layers, and the head
    assert f"{trained:,} trained" in log
    (last,) = [path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-")][-1:]
    stored = load_file(last / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == trained
    card = (run / "model" / "README.md").read_text()
    assert "library_name: peft" in card


def test_predict_and_evaluate_read_the_adapter(run: Path, tmp_path: Path) -> None:
    told = done("predict", run, "--input", run.parent / "test.csv", "--output", tmp_path / "p.jsonl").err
    assert re.search(rf"^written   {re.escape(str(tmp_path / 'p.jsonl'))} · \d+ rows$", told, re.M)
    before, after = read_jsonl(run / "predictions" / "test.jsonl"), read_jsonl(tmp_path / "p.jsonl")
    assert [row["probabilities"] for row in after] == [row["probabilities"] for row in before]
    scores = done("evaluate", run, "--data", run.parent / "test.csv", "--json").json
    assert scores == json.loads((run / "results.json").read_text())["scores"]["test"]


def test_several_adapters_stand_on_one_base(run: Path, tiny_model: Path) -> None:
    other = train_toy(run.parent, tiny_model, "adapter=ia3", "baseline=none", "seed=2", output="other")
    for folder in (run, other):
        told = json.loads((folder / "model" / adapters.CONFIG).read_text())
        assert told["base_model_name_or_path"] == str(tiny_model)
    rows = [done("predict", folder, "--json", stdin="my parcel is late\n").out for folder in (run, other, run)]
    assert rows[0] == rows[2] != rows[1]


def test_a_dry_run_expects_the_disk_that_an_adapter_takes(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = ["train", "--config", run / "config.yaml", f"output_dir={tmp_path / 'x'}", "--dry-run", "--json"]
    expected = done(*command).json["disk_bytes"]
    taken = sum(tensor.nbytes for path in run.rglob("*.safetensors") for tensor in load_file(path).values())
    assert 0.99 * taken < expected < 2 * taken  # AdamW also counts its steps
    assert expected < (tiny_model / "model.safetensors").stat().st_size  # the base is not saved again


def test_export_merges_and_proves_it(run: Path, tmp_path: Path) -> None:
    out = done("export", run, "--merge", "--output", tmp_path / "merged").out
    assert "24 texts compared" in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(model), logits(classifier.load_trained(str(run / "model")).model), atol=1e-5)
    assert not (tmp_path / "merged" / adapters.CONFIG).exists()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "merged into its base" in card
    (predicted,) = done("predict", tmp_path / "merged", "--json", stdin="my parcel is late\n").json
    (wanted,) = done("predict", run, "--json", stdin="my parcel is late\n").json
    assert predicted["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-3)  # in bf16
    again = train_toy(tmp_path, tmp_path / "merged", "adapter=lora", "train.max_steps=1", "baseline=none")
    assert (again / "model" / adapters.WEIGHTS).is_file()


def test_an_export_that_differs_writes_nothing(run: Path, tmp_path: Path) -> None:
    def spoilt(network: PreTrainedModel) -> None:
        merge(network)
        with torch.no_grad():
            network.classifier.bias[0] += 0.01

    merge = adapters.merge
    with mock.patch.object(adapters, "merge", spoilt):
        outcome = call("export", run, "--merge", "--output", tmp_path / "merged")
    assert outcome.code == Exit.DIVERGED
    assert "the merged model differs from the adapter" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_export_copies_the_model_and_its_card(run: Path, tmp_path: Path) -> None:
    done("export", run, "--output", tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in (run / "model").iterdir()}
    assert sha256(tmp_path / "copy" / adapters.WEIGHTS) == sha256(run / "model" / adapters.WEIGHTS)
    taken = call("export", run, "--output", tmp_path / "copy")
    assert taken.code == Exit.OUTPUT_TAKEN
    done("predict", tmp_path / "copy", stdin="my parcel is late\n")
    for unread in (("--data", "x.csv"), ("--checkpoint", "last", "--private")):
        assert call("export", run, "--output", tmp_path / "new", *unread).code == Exit.USAGE
    nothing = call("export", tmp_path / "copy", "--merge", "--output", tmp_path / "merged")
    assert nothing.code == Exit.USAGE
    assert "--data" in nothing.err


def test_a_resumed_run_with_an_adapter_equals_a_straight_one(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = ("adapter=lora", "rank=4", "adapter_dropout=0.1", "train.save_steps=1", "baseline=none")
    straight = train_toy(tmp_path, tiny_model, *settings, output="straight")

    def stop(loop: Trainer, *args: Any) -> None:
        save(loop)
        if loop.progress.step == 5:
            raise Interrupted(Exit.INTERRUPTED, "stopped")

    save = Trainer._save
    with mock.patch.object(Trainer, "_save", stop), pytest.raises(AssertionError, match="stopped"):
        train_toy(tmp_path, tiny_model, *settings, output="broken")
    found, _ = checkpoint.newest(tmp_path / "broken" / "checkpoints")
    assert found is not None
    assert found.step == 5
    resumed = train_toy(tmp_path, tiny_model, *settings, "--resume", output="broken")
    assert sha256(resumed / "model" / adapters.WEIGHTS) == sha256(straight / "model" / adapters.WEIGHTS)
    assert (resumed / "model" / adapters.CONFIG).read_text() == (straight / "model" / adapters.CONFIG).read_text()


def test_a_run_is_not_resumed_on_another_base(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    settings = ("adapter=lora", "train.max_steps=2", "baseline=none")
    train_toy(tmp_path, base, *settings)
    stored = load_file(base / "model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in stored.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssertionError, match="is not the checkpoint that the run began with"):
        train_toy(tmp_path, base, *settings, "--resume")
    moved = call("predict", tmp_path / "run", stdin="late\n")
    assert moved.code == Exit.BAD_DATA
    assert "whose weights are others now" in moved.err
    shutil.rmtree(base)
    gone = call("predict", tmp_path / "run", stdin="late\n")
    assert gone.code == Exit.NO_INPUT
    assert f"is an adapter on {base}, which cannot be had" in gone.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter": "none", "rank": 4}, "rank=4 is not read with adapter=none"),
        ({"adapter": "ia3", "alpha": 4.0}, "alpha=4.0 is not read with adapter=ia3"),
        ({"adapter": "lora", "target_modules": ["qery"]}, "did you mean query?"),
        ({"adapter": "lora", "target_modules": ["classifier"]}, "target_modules=['classifier']: no layers of bert"),
        ({"adapter": "lora", "target_modules": ["word_embeddings"]}, "no layers of bert that can be adapted"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str, tiny_model: Path) -> None:
    with pytest.raises(UserError) as caught:
        classifier.load(str(tiny_model), NAMES, seed=1, adapter=AdapterConfig(**settings))
    assert caught.value.code == Exit.USAGE
    assert words in str(caught.value)


def test_all_linear_layers_may_be_adapted_but_for_the_head(tiny_model: Path) -> None:
    config = adapted("lora", target_modules=["all-linear"])
    model = classifier.load(str(tiny_model), NAMES, seed=1, adapter=config).model
    adapted_layers = {name.partition(".lora_")[0] for name in learning(model) if ".lora_" in name}
    assert len(adapted_layers) == 7  # six of the layer, and the pooler
    assert "LoRA of rank 8 on 7 layers" in adapters.described(model)


def test_an_output_layer_whose_weight_is_read_directly_is_left_alone(tmp_path: Path) -> None:
    size = {"source_vocab_size": 20, "target_vocab_size": 20, "hidden_size": 16, "tie_embeddings": "none"}
    model = Seq2SeqModel(Seq2SeqConfig(**size))
    adapters.wrap(model, adapted("lora", target_modules=["output"]), Base("x", "sha256:0", "x", None), new=())
    touched = {name.partition(".lora_")[0] for name in learning(model)}
    assert "output" not in touched
    assert len(touched) == 9  # the attentions of three layers that read and three that write
    assert all(name.endswith("attention.output") for name in touched)


def test_a_base_on_the_hub_is_named_by_its_commit() -> None:
    found = pretrained.as_base(pretrained.Source("org/model@main", "/cache/abc", "revision:abc"))
    assert found == Base("org/model@abc", "revision:abc", "org/model", "abc")


def test_a_difference_that_is_nan_is_not_taken_for_none(tiny_model: Path) -> None:
    one, other = (classifier.load(str(tiny_model), NAMES, seed=1).model for _ in range(2))
    assert adapters.largest_difference(one, other, [INPUTS]) == 0.0
    with torch.no_grad():
        other.classifier.bias[0] = float("nan")
    assert math.isnan(adapters.largest_difference(one, other, [INPUTS]))


def test_without_peft_it_says_what_to_install(tiny_model: Path) -> None:
    with mock.patch("importlib.util.find_spec", return_value=None), pytest.raises(UserError) as caught:
        classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted("lora"))
    assert caught.value.code == Exit.NO_INPUT
    assert "finetune-recipes[adapters]" in str(caught.value)


@pytest.mark.parametrize(("kind", "rate"), [("none", 3e-4), ("lora", 1e-3), ("dora", 1e-3), ("ia3", 1e-2)])
def test_an_adapter_learns_at_a_higher_rate(kind: str, rate: float, tiny_model: Path) -> None:
    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    assert classifier.resolve(parts, TrainConfig(), rows=100).learning_rate == pytest.approx(rate)
    assert classifier.resolve(parts, TrainConfig(learning_rate=1e-5), rows=100).learning_rate == 1e-5


@pytest.mark.parametrize(("kind", "times"), [("none", 1), ("lora", 6), ("dora", 6), ("ia3", 1)])
def test_a_head_beside_an_adapter_has_a_rate_of_its_own(
    kind: str, times: float, tiny_model: Path, tmp_path: Path
) -> None:
    parts = classifier.load(str(tiny_model), NAMES, seed=1, adapter=adapted(kind))
    config = TrainConfig(learning_rate=1e-3, mixed_precision="no", use_cpu=True)
    with Run(tmp_path / "run", quiet=True) as run:
        loop = Trainer(parts.model, config, run, loss=lambda model, batch: torch.zeros(()), seed=1)
    rates = {id(one): group["lr"] for group in loop.optimizer.param_groups for one in group["params"]}
    found = {name: rates[id(one)] for name, one in parts.model.named_parameters() if one.requires_grad}
    assert found == {name: pytest.approx(1e-3 * (times if "classifier" in name else 1)) for name in found}
    assert any("classifier" in name for name in found)
    assert any("classifier" not in name for name in found)
    assert ("a head at 6 times its rate" in parts.described) is (times == 6)


def test_an_adapter_is_not_put_on_an_adapter(run: Path) -> None:
    with pytest.raises(UserError, match="merge it: finetune export"):
        classifier.load(str(run / "model"), NAMES, seed=1, adapter=adapted("lora"))
    whole = classifier.load(str(run / "model"), NAMES, seed=1)  # all weights may be trained on from it
    assert not adapters.is_adapted(whole.model)
    assert adapters.BASE not in whole.model.config.to_dict()
    assert len(learning(whole.model)) == len(list(whole.model.parameters()))


@pytest.mark.parametrize("what", ["damaged", "incomplete", "other"])
def test_a_folder_that_is_not_whole_is_refused(what: str, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "model", tmp_path / "model"))
    stored = load_file(folder / adapters.WEIGHTS)
    if what == "damaged":
        (folder / adapters.WEIGHTS).write_bytes((folder / adapters.WEIGHTS).read_bytes()[:100])
    elif what == "incomplete":
        del stored["base_model.model.classifier.bias"]
        save_file(stored, folder / adapters.WEIGHTS)
    else:
        told = json.loads((folder / adapters.CONFIG).read_text())
        (folder / adapters.CONFIG).write_text(json.dumps(told | {"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(UserError) as caught:
        classifier.load_trained(str(folder))
    assert caught.value.code == Exit.BAD_DATA


def test_an_adapter_that_was_trained_on_english_is_scored_in_italian(tiny_model: Path, tmp_path: Path) -> None:
    for name, rows, seed in (("en.train", 24, 0), ("en.validation", 12, 1), ("en.test", 12, 2), ("it.test", 12, 2)):
        write_csv(tmp_path / f"{name}.csv", toy_rows(rows, seed))
    files = [f"data.{part}={tmp_path}/{{language}}.{part}.csv" for part in ("train", "validation", "test")]
    run = trained(
        "mbert_crosslingual", tmp_path, *files, f"model={tiny_model}", "freeze_embeddings=true", "max_length=32"
    )
    figures = json.loads((run / "results.json").read_text())["diagnostics"]
    assert figures["trained_parameters"] == 2 * 2 * 8 * 32 + 3 * 32 + 3
    found = done("crosslingual", run, "--data", f"{tmp_path}/{{language}}.test.csv", "--languages", "it", "--json").json
    assert set(found["languages"]) == {"it"}
    merged(run)


# The other recipes: each trains, writes, and is merged


BRIEF = ("search.beam_size=1", "search.max_new_tokens=6")
LORA = ("adapter=lora", "train.max_steps=2", "train.mixed_precision=no", "train.use_cpu=true")


def trained(recipe: str, folder: Path, *settings: object) -> Path:
    """Train by a recipe with an adapter, and check what every such run has."""
    with private_cache(folder):
        outcome = done("train", recipe, *settings, *LORA, f"output_dir={folder / 'run'}")
    assert "LoRA of rank 8 on " in outcome.err
    names = {path.name for path in (folder / "run" / "model").iterdir()}
    assert {adapters.CONFIG, adapters.WEIGHTS, "config.json", "README.md"} <= names
    assert "model.safetensors" not in names
    return folder / "run"


def merged(run: Path, *options: object) -> Path:
    """Merge the adapter of a run, after it has been changed by much; export itself proves that it is the same."""
    weights = run / "model" / adapters.WEIGHTS
    torch.manual_seed(5)
    stored = load_file(weights)
    save_file({name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in stored.items()}, weights)
    output = run.parent / "merged"
    found = done("export", run, "--merge", "--output", output, *options, "--json").json
    assert found["largest_difference"] <= found["tolerance"]
    assert (output / "model.safetensors").is_file()
    return output


def test_generation_with_an_adapter(tiny_gpt2: Path, tmp_path: Path) -> None:
    text = write_mono(tmp_path, "en", 40)
    files = (f"data.train={text}", f"data.validation={text}", f"data.test={text}", "baseline=none", "samples=0")
    brief = ("max_length=32", "generation.max_new_tokens=8")
    run = trained("gpt2_generation", tmp_path, *files, f"model={tiny_gpt2}", *brief)
    one = done("generate", run, "--prompt", "ba", "--seed", "1", "--max-new-tokens", "5", "--json").json
    assert len(one["texts"]) == 1
    output = merged(run)
    prompt = ("--prompt", "ba", "--temperature", "0", "--max-new-tokens", "5")
    assert done("generate", run, *prompt).out == done("generate", output, *prompt).out
    assert done("evaluate", run, "--data", text, "--json").json["bits_per_byte"]["value"] == pytest.approx(
        done("evaluate", output, "--data", text, "--json").json["bits_per_byte"]["value"], rel=1e-3
    )


def test_pretraining_of_gpt2_goes_on_with_an_adapter_and_not_from_random_weights(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    text = write_mono(tmp_path, "en", 40)
    files: tuple[object, ...] = (
        f"data.train={text}",
        f"data.test={text}",
        "baseline=none",
        "samples=0",
        "max_length=32",
        "generation.max_new_tokens=8",
    )
    merged(trained("gpt2_pretraining", tmp_path, *files, f"model={tiny_gpt2}"))
    refused = call("train", "gpt2_pretraining", *files, "adapter=lora", f"output_dir={tmp_path / 'no'}")
    assert refused.code == Exit.USAGE
    assert "random weights would stay random" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("objective", ["mlm", "distil"])
def test_pretraining_of_bert_goes_on_with_an_adapter(objective: str, tiny_model: Path, tmp_path: Path) -> None:
    for language in ("en", "it"):
        write_mono(tmp_path, language, 40)
    write_pairs(tmp_path, "it", 60)
    mono = f"{tmp_path}/mono.{{language}}.txt"
    files = {
        "mlm": (f"data.train={mono}", f"data.test={mono}"),
        "distil": (f"data.parallel={tmp_path}/parallel.en-{{language}}.jsonl.gz", f"teacher={tiny_model}"),
    }[objective]
    settings = ("train_languages=[en,it]", f"objective={objective}", f"model={tiny_model}", "max_length=32")
    run = trained("bert_pretraining", tmp_path, *files, *settings)
    if objective == "mlm":
        assert done("evaluate", run, "--data", tmp_path / "mono.en.txt", "--json").json["loss"]["value"] > 0
    merged(run, "--data", tmp_path / "mono.en.txt")
    for wrong in ("vocabulary.train=true", "network.trained=embeddings", "network.pooler=identity"):
        place = f"output_dir={tmp_path / 'no'}"
        refused = call("train", "bert_pretraining", *files, *settings, "adapter=lora", wrong, place)
        assert refused.code == Exit.USAGE
        assert "an adapter cannot hold that" in refused.err
    # The adapter becomes part of a model of another class.
    parts = classifier.load(str(run / "model"), NAMES, seed=1)
    base = classifier.load(str(tiny_model), NAMES, seed=1)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert set(parts.model.state_dict()) == set(base.model.state_dict())
    assert not torch.allclose(parts.model.state_dict()[query], base.model.state_dict()[query], atol=1e-3)


@pytest.mark.parametrize("family", ["bart", "t5", "gpt2"])
def test_summaries_with_an_adapter(family: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    model = {"bart": lambda: tiny.bart(tmp_path / "bart"), "t5": lambda: tiny.t5(tmp_path / "t5")}.get(
        family, lambda: tiny_gpt2
    )()
    brief: tuple[str, ...] = ("baseline=none", "generation.max_new_tokens=8", "generation.num_beams=1")
    if family == "gpt2":
        brief = (*brief, "max_source_length=24", "max_target_length=12", "prompt_end=:")
    run = trained("summarization", tmp_path, *tiny.pair_files(tmp_path, 32), f"model={model}", *brief)
    output = merged(run)
    question = ("--input", tmp_path / "test.jsonl", "--source-column", "text", "--json")
    texts = [[row["predicted"] for row in done("predict", one, *question).json] for one in (run, output)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("architecture", ["transformer", "rnn"])
def test_a_model_of_the_project_goes_on_with_an_adapter(architecture: str, tmp_path: Path) -> None:
    shape = (
        f"network.architecture={architecture}", "network.hidden_size=16", "network.intermediate_size=32",
        "vocabulary.kind=word", "vocabulary.min_frequency=1", "vocabulary.shared=false",
    )  # fmt: skip
    files = (*tiny.pair_files(tmp_path, 32), "task=transduction", "baseline=none", *BRIEF)
    loop = ("train.max_steps=2", "train.mixed_precision=no", "train.use_cpu=true")
    done("train", "seq2seq", *files, *shape, *loop, f"output_dir={tmp_path / 'base'}")
    model = tmp_path / "base" / "model"
    run = trained("seq2seq", tmp_path, *files, f"model={model}")
    assert "learning_rate=0.001 (auto)" in (run / "train.log").read_text()
    question = ("--input", tmp_path / "test.jsonl", "--source-column", "text", "--json")
    written = [row["predicted"] for row in done("predict", run, *question).json]
    assert written == [row["predicted"] for row in read_jsonl(run / "predictions" / "test.jsonl")]
    merged(run)
    refused = call("train", "seq2seq", *files, shape[1], f"model={model}", f"output_dir={tmp_path / 'no'}")
    assert refused.code == Exit.USAGE
    assert "is for random weights: model=" in refused.err


def test_a_model_of_the_project_goes_on_without_an_adapter(tmp_path: Path) -> None:
    shape = ("network.hidden_size=16", "network.intermediate_size=32", "vocabulary.kind=word")
    files = (*tiny.pair_files(tmp_path, 32), "task=transduction", "baseline=none", *BRIEF)
    loop = ("train.max_steps=2", "train.mixed_precision=no", "train.use_cpu=true")
    done("train", "seq2seq", *files, *shape, *loop, f"output_dir={tmp_path / 'base'}")
    model = tmp_path / "base" / "model"
    same = ("train.learning_rate=1e-30", f"model={model}", f"output_dir={tmp_path / 'on'}")
    done("train", "seq2seq", *files, *loop, *same)
    one, other = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "on" / "model"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    longer = call("train", "seq2seq", *files, "max_source_length=2000", *same[1:2], f"output_dir={tmp_path / 'no'}")
    assert longer.code == Exit.USAGE
    assert "give shorter ones" in longer.err


@pytest.mark.parametrize("architecture", ["seq2seq", "bert2gpt"])
def test_summaries_from_new_weights_take_no_adapter(architecture: str, tmp_path: Path) -> None:
    files = tiny.pair_files(tmp_path, 32)
    refused = call(
        "train",
        "summarization",
        *files,
        f"architecture={architecture}",
        "adapter=lora",
        f"output_dir={tmp_path / 'no'}",
    )
    assert refused.code == Exit.USAGE
    assert "give model=NAME" in refused.err
