"""The recipes from data to run folder, and the commands that use a run."""

import gzip
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from calling import FAST, call, done, private_cache, read_jsonl, sections_of, sha256, toy_files, train_toy, write_csv
from conftest import TOPICS, toy_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune import baselines, classifier, metrics
from finetune.commands import scoring
from finetune.config import configclass, field
from finetune.data.columns import LabelMap
from finetune.errors import Exit, Interrupted, UserError
from finetune.run import Run
from finetune.trainer import TrainConfig, Trainer
from recipes import bert_classification as recipe

METRICS = {"accuracy", "macro_f1", "weighted_f1", "mcc", "ece", "brier", "loss"}
VERDICTS = {"better", "worse", "no difference shown"}
WEIGHTS = "model/model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run of bert_classification; its data stand beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with private_cache(folder):
        return train_toy(folder, tiny_model)


@pytest.fixture(scope="module")
def multi_label_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run whose rows have none, one or two labels."""
    folder = tmp_path_factory.mktemp("multi")
    write_csv(folder / "train.csv", multi_label_rows(40, 0))
    write_csv(folder / "test.csv", multi_label_rows(20, 1))
    files = [f"data.train={folder / 'train.csv'}", f"data.test={folder / 'test.csv'}"]
    with private_cache(folder):
        done(
            "train", "bert_classification", *files, "data.multi_label=true", f"model={tiny_model}",
            f"output_dir={folder / 'run'}", *FAST,
        )  # fmt: skip
    return folder / "run"


def multi_label_rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return rows with two topics each, one topic, or none."""
    random, names, rows = np.random.default_rng(seed), list(TOPICS), []
    for number in range(count):
        chosen = [names[index] for index in np.flatnonzero(random.integers(0, 2, len(names)))]
        words = [str(random.choice(TOPICS[name])) for name in chosen]
        rows.append((f"m{seed}-{number}", " ".join(["please", *words, "now"]), "|".join(chosen)))
    return rows


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """Return a byte-level BPE tokenizer trained on the toy rows, as GPT-2 and RoBERTa have one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text for _, text, _ in toy_rows(60)], trainer)
    return tokenizer


def gpt2_folder(folder: Path, tokenizer: Any) -> Path:
    """Save a tiny GPT-2 without a pad token."""
    fast = transformers.GPT2TokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>",
        model_max_length=64,
    )  # fmt: skip
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(fast), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.bos_token_id = config.eos_token_id = fast.eos_token_id
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def roberta_folder(folder: Path, tokenizer: Any, model_max_length: int) -> Path:
    """Save a tiny RoBERTa; two of its 66 positions belong to padding."""
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<|endoftext|>", model_max_length=model_max_length,
    )  # fmt: skip
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(folder)
    return folder


def results_of(run: Path) -> dict[str, Any]:
    """Return results.json of a run."""
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


def assert_scores(scores: dict[str, Any]) -> None:
    """Check names, ranges and intervals of a block of scores."""
    assert set(scores) == METRICS
    for name, score in scores.items():
        assert math.isfinite(score["value"]), name
        assert name == "loss" or -1 <= score["value"] <= 1, name
        assert name == "ece" or score["low"] <= score["value"] <= score["high"], name


def assert_contract(run: Path) -> None:
    """Check a run folder as the programs that read it would."""
    for name in ("config.yaml", "environment.json", "train.log", "metrics.jsonl", "results.json", "README.md"):
        assert (run / name).is_file(), name
    names = [path.name for path in run.rglob("*")]
    assert not [name for name in names if re.search(r"\.(bin|pt|pth|pkl|pickle|joblib)$", name)]
    results = results_of(run)
    assert {"recipe", "task", "model", "scores", "seconds"} <= results.keys()
    for scores in results["scores"].values():
        assert_scores(scores)
    if "baseline" in results:
        for scores in results["baseline"]["scores"].values():
            assert_scores(scores)
        comparison = results["comparison"]
        assert set(comparison) == {"metric", "difference", "low", "high", "p_value", "verdict"}
        assert comparison["verdict"] in VERDICTS
        assert (comparison["verdict"] == "better") == (comparison["low"] > 0)
        assert (comparison["verdict"] == "worse") == (comparison["high"] < 0)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def assert_predictions(rows: list[dict[str, Any]], labels: set[str]) -> None:
    """Check lines of a predictions file: keys, labels, and probabilities that sum to one."""
    for row in rows:
        assert {"id", "text", "predicted", "probabilities"} <= row.keys()
        assert row["probabilities"].keys() == labels
        if isinstance(row["predicted"], str):
            assert abs(sum(row["probabilities"].values()) - 1) < 1e-6
            assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].__getitem__)


def train_with(model: Path, folder: Path, *settings: object, files: list[str] | None = None) -> Path:
    """Train on toy rows in a folder and return the run, checked against the contract."""
    folder.mkdir(exist_ok=True)
    files = toy_files(folder) if files is None else files
    done(
        "train", "bert_classification", *files, f"model={model}", f"output_dir={folder / 'run'}",
        *FAST, *settings,
    )  # fmt: skip
    assert_contract(folder / "run")
    return folder / "run"


# The run folder


def test_the_page_of_several_labels_a_row_has_classes_and_errors(multi_label_run: Path) -> None:
    names = set(sections_of(multi_label_run))
    assert {"scores", "curves", "confusion", "calibration", "errors", "data", "made"} <= names
    assert "Confusion matrix" not in (multi_label_run / "report.html").read_text(encoding="utf-8")


def test_a_run_folder_has_exactly_the_files_of_the_design(trained: Path) -> None:
    files = {"README.md", "config.yaml", "environment.json", "metrics.jsonl", "results.json", "train.log"}
    files |= {"report.html"}
    assert {path.name for path in trained.iterdir()} == files | {"checkpoints", "model", "predictions"}
    predictions = {path.name for path in (trained / "predictions").iterdir()}
    assert predictions == {"baseline.test.jsonl", "errors.jsonl", "test.jsonl", "validation.jsonl"}
    model = {path.name for path in (trained / "model").iterdir()}
    assert model == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for step in (trained / "checkpoints").iterdir():
        names = {path.name for path in step.iterdir()}
        assert names == {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}


def test_results_hold_the_contract(trained: Path) -> None:
    assert_contract(trained)
    results = results_of(trained)
    assert results["recipe"] == "bert_classification"
    assert set(results["scores"]) == {"validation", "test"}
    assert results["diagnostics"]["judged_on"] == "test"
    assert results["comparison"]["metric"] == "accuracy"
    sides = (results["scores"]["test"], results["baseline"]["scores"]["test"])
    one, other = (side["accuracy"]["value"] for side in sides)
    assert results["comparison"]["difference"] == pytest.approx(one - other)
    assert [part["name"] for part in results["baselines"]][1] == "majority class"
    rows = read_jsonl(trained / "predictions" / "test.jsonl")
    assert [row["id"] for row in rows] == [identity for identity, _, _ in toy_rows(24, 2)]
    assert [row["gold"] for row in rows] == [label for _, _, label in toy_rows(24, 2)]
    assert_predictions(rows, set(TOPICS))
    right = np.mean([row["gold"] == row["predicted"] for row in rows])
    assert results["scores"]["test"]["accuracy"]["value"] == pytest.approx(right)


def test_the_model_learns_toy_rows(tiny_model: Path, tmp_path: Path) -> None:
    files = [f"data.train={write_csv(tmp_path / 'more.csv', toy_rows(180, 3))}", *toy_files(tmp_path)[1:]]
    settings = ["train.num_train_epochs=10", "train.learning_rate=1e-2"]
    run = train_with(tiny_model, tmp_path, *settings, files=files)
    assert results_of(run)["scores"]["test"]["accuracy"]["value"] > 0.8


def test_the_checkpoint_with_the_best_score_is_kept_not_the_worst(tiny_model: Path, tmp_path: Path) -> None:
    # A rate that destroys the model after the first evaluation: the first must be the one that is kept.
    settings = ["train.metric_for_best_model=loss", "train.learning_rate=0.5", "train.lr_scheduler_type=constant"]
    run = train_with(tiny_model, tmp_path, *settings, "train.num_train_epochs=3", "train.max_grad_norm=0")
    losses = [line["validation"]["loss"] for line in read_jsonl(run / "metrics.jsonl") if "validation" in line]
    assert len(set(losses)) == 3
    assert results_of(run)["scores"]["validation"]["loss"]["value"] == pytest.approx(min(losses), rel=1e-5)


def test_one_train_setting_leaves_the_recipes_other_defaults(trained: Path) -> None:
    assert "metric_for_best_model: macro_f1" in (trained / "config.yaml").read_text()


def test_the_model_folder_loads_with_transformers_and_names_its_labels(trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model")
    assert model.config.id2label == dict(enumerate(sorted(TOPICS)))
    classify = transformers.pipeline("text-classification", model=str(trained / "model"), device="cpu", top_k=None)
    row = read_jsonl(trained / "predictions" / "test.jsonl")[0]
    found = {part["label"]: part["score"] for part in classify([row["text"]])[0]}
    assert found == pytest.approx(row["probabilities"], abs=1e-4)


def test_without_validation_and_test_files_rows_are_held_out_and_judged(tiny_model: Path, tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", toy_rows(60))
    outcome = done(
        "train", "bert_classification", f"data.train={train}", f"model={tiny_model}", f"output_dir={tmp_path / 'r'}",
        *FAST,
    )  # fmt: skip
    assert "validation: 10 % of train, stratified, seed 1" in outcome.err
    assert_contract(tmp_path / "r")
    results = results_of(tmp_path / "r")
    assert set(results["scores"]) == {"validation"}
    assert results["diagnostics"]["judged_on"] == "validation"
    assert outcome.out.startswith("validation accuracy")
    assert len(read_jsonl(tmp_path / "r" / "predictions" / "validation.jsonl")) == 6


def test_baseline_none_trains_the_model_alone(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path, "baseline=none")
    assert not {"baseline", "baselines", "comparison"} & results_of(run).keys()
    assert not (run / "predictions" / "baseline.test.jsonl").exists()


def test_dry_run_prints_an_estimate_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    files = toy_files(tmp_path)
    before = sorted(tmp_path.iterdir())
    outcome = done(
        "train", "bert_classification", *files, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST,
        "--dry-run", "--json",
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    assert re.search(
        r"would +train 12 updates of 8 texts .* memory about .*\n.* of training on this machine", outcome.err
    )
    estimate = outcome.json
    assert estimate["updates"] == 12
    assert 0 < estimate["seconds"]["low"] < estimate["seconds"]["high"]


# Kinds of data


@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv.gz"])
def test_the_same_rows_in_another_format_give_the_same_model(
    trained: Path, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    files = []
    for name, (count, seed) in {"train": (48, 0), "validation": (24, 1), "test": (24, 2)}.items():
        path = tmp_path / f"{name}.{kind}"
        rows = [dict(zip(("id", "text", "label"), row, strict=True)) for row in toy_rows(count, seed)]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            separator = "\t" if kind == "tsv" else ","
            lines = [separator.join(values) for values in [("id", "text", "label"), *(row.values() for row in rows)]]
            content = "\n".join(lines).encode() + b"\n"
            path.write_bytes(gzip.compress(content) if kind == "csv.gz" else content)
        files.append(f"data.{name}={path}")
    run = train_with(tiny_model, tmp_path, files=files)
    assert sha256(run / WEIGHTS) == sha256(trained / WEIGHTS)


def test_a_row_may_have_several_labels_or_none(multi_label_run: Path) -> None:
    assert_contract(multi_label_run)
    results = results_of(multi_label_run)
    assert results["task"] == "multi-label classification"
    rows = read_jsonl(multi_label_run / "predictions" / "test.jsonl")
    assert [row["gold"] for row in rows] == [
        sorted(label.split("|")) if label else [] for _, _, label in multi_label_rows(20, 1)
    ]
    for row in rows:
        assert row["predicted"] == [label for label, share in row["probabilities"].items() if share >= 0.5]
    config = json.loads((multi_label_run / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    again = done("evaluate", multi_label_run, "--data", multi_label_run.parent / "test.csv", "--json")
    assert again.json == results["scores"]["test"]
    assert isinstance(done("predict", multi_label_run, "--json", stdin="my card\n").json[0]["predicted"], list)


def test_pairs_of_texts_are_read_predicted_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    random, names, rows = np.random.default_rng(0), list(TOPICS), []
    for number in range(48):
        one, two = random.choice(names, 2) if number % 2 else [random.choice(names)] * 2
        texts = [f"my {random.choice(TOPICS[name])} now" for name in (one, two)]
        rows.append((f"p{number}", *texts, "same" if one == two else "other"))
    header = ("id", "text", "premise", "label")
    files = [f"data.{name}={write_csv(tmp_path / f'{name}.csv', rows, header)}" for name in ("train", "validation")]
    files.append(f"data.test={write_csv(tmp_path / 'test.csv', rows[:20], header)}")
    run = train_with(tiny_model, tmp_path, "data.text_pair_column=premise", files=files)
    stored = read_jsonl(run / "predictions" / "test.jsonl")
    assert [row["text_pair"] for row in stored] == [row[2] for row in rows[:20]]
    again = done("predict", run, "--input", tmp_path / "test.csv", "--json").json
    assert [row["probabilities"] for row in again] == [row["probabilities"] for row in stored]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    with torch.inference_mode():
        inputs = tokenizer(rows[0][1], rows[0][2], return_tensors="pt")  # with the token types of the second text
        wanted = model(**inputs).logits.softmax(-1)[0].tolist()
    assert list(again[0]["probabilities"].values()) == pytest.approx(wanted, abs=2e-6)
    swapped = [(identity, text, "the password now", label) for identity, text, _, label in rows[:20]]
    other = done("predict", run, "--input", write_csv(tmp_path / "swapped.csv", swapped, header), "--json").json
    assert [row["probabilities"] for row in other] != [row["probabilities"] for row in again]


@pytest.mark.parametrize(
    "setting",
    ["class_weights=balanced", "label_smoothing_factor=0.2", "layerwise_lr_decay=0.5", "frozen_layers=1", "seed=2"],
)
def test_a_setting_changes_the_trained_weights(trained: Path, tiny_model: Path, tmp_path: Path, setting: str) -> None:
    rows = [row for number, row in enumerate(toy_rows(48, 0)) if number % 3 or number < 9]  # unequal classes
    files = [f"data.train={write_csv(tmp_path / 'uneven.csv', rows)}", *toy_files(tmp_path)[1:]]
    plain = train_with(tiny_model, tmp_path / "plain", files=files)
    other = train_with(tiny_model, tmp_path / "other", setting, files=files)
    assert sha256(plain / WEIGHTS) != sha256(other / WEIGHTS)


def test_frozen_layers_keep_their_weights(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path, "frozen_layers=1")
    before, after = load_file(tiny_model / "model.safetensors"), load_file(run / WEIGHTS)
    kept = [name for name in before if torch.equal(before[name], after[f"bert.{name}"])]
    moved = sorted(set(before) - set(kept))
    assert moved == ["pooler.dense.bias", "pooler.dense.weight"]
    diagnostics = results_of(run)["diagnostics"]
    head = 32 * 32 + 32 + 32 * 3 + 3
    assert diagnostics["trained_parameters"] == head < diagnostics["parameters"]


def test_class_weights_are_inverse_to_rows_and_one_on_average() -> None:
    targets = np.array([0, 0, 0, 1, 2, 2])
    weights = classifier.class_weights(targets, LabelMap(("a", "b", "c")))
    assert weights.tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    assert float(weights[torch.from_numpy(targets)].mean()) == pytest.approx(1)


def test_texts_above_max_length_are_read_in_windows_whose_probabilities_are_averaged(
    trained: Path, tmp_path: Path
) -> None:
    text = " ".join(text for _, text, _ in toy_rows(9, 5))
    folder = done("predict", trained, "--json", stdin=text + "\n")  # cut: the run has data.on_long=truncate
    run = tmp_path / "windows"
    run.mkdir()
    (run / "model").symlink_to(trained / "model")
    config = (trained / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("on_long: truncate", "on_long: window"))
    found = done("predict", run, "--json", stdin=text + "\n").json[0]["probabilities"]

    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model").eval()
    windows = tokenizer(text, max_length=32, truncation=True, stride=8, return_overflowing_tokens=True)["input_ids"]
    assert len(windows) > 2
    with torch.inference_mode():
        each = [model(torch.tensor([window])).logits.softmax(-1)[0] for window in windows]
    wanted = torch.stack(each).mean(0).tolist()
    assert list(found.values()) == pytest.approx(wanted, abs=1e-5)
    assert found != folder.json[0]["probabilities"]


def test_long_texts_can_be_trained_in_windows(tiny_model: Path, tmp_path: Path) -> None:
    rows = [(identity, " ".join([text] * 4), label) for identity, text, label in toy_rows(24, 0)]
    files = [f"data.train={write_csv(tmp_path / 'long.csv', rows)}", *toy_files(tmp_path)[1:]]
    run = train_with(tiny_model, tmp_path, "data.on_long=window", files=files)
    assert results_of(run)["diagnostics"]["long_rows"][0]["rows"]["train"] >= 12
    assert "read in windows" in (run / "train.log").read_text()


# Other models


def test_gpt2_trains_and_gives_a_text_the_same_result_alone_and_in_a_batch(tmp_path: Path, byte_level: Any) -> None:
    run = train_with(gpt2_folder(tmp_path / "gpt2", byte_level), tmp_path)
    assert_batch_equals_single(run)
    assert results_of(run)["diagnostics"]["system"] == "GPT-2"
    assert json.loads((run / "model" / "config.json").read_text())["pad_token_id"] is not None


def test_roberta_trains_and_gives_a_text_the_same_result_alone_and_in_a_batch(tmp_path: Path, byte_level: Any) -> None:
    run = train_with(roberta_folder(tmp_path / "roberta", byte_level, 64), tmp_path)
    assert_batch_equals_single(run)
    assert results_of(run)["diagnostics"]["system"] == "RoBERTa"


def test_the_positions_that_roberta_keeps_for_padding_are_no_context(tmp_path: Path, byte_level: Any) -> None:
    model = roberta_folder(tmp_path / "roberta", byte_level, 10**30)
    files = toy_files(tmp_path)
    arguments = ["train", "bert_classification", *files, f"model={model}", f"output_dir={tmp_path / 'run'}"]
    outcome = call(*arguments, "max_length=65")
    assert outcome.code == 2
    assert "give max_length=64" in outcome.err


def assert_batch_equals_single(run: Path) -> None:
    texts = ["card", "my parcel is late and the courier has it now", "password locked since today please"]
    together = done("predict", run, "--json", stdin="".join(f"{text}\n" for text in texts)).json
    for text, row in zip(texts, together, strict=True):
        alone = done("predict", run, "--json", stdin=f"{text}\n").json[0]
        assert alone["probabilities"] == pytest.approx(row["probabilities"], abs=2e-6)
    assert len({json.dumps(row["probabilities"]) for row in together}) == len(texts)


# Again, and again


def test_a_runs_config_is_enough_to_repeat_it(trained: Path, tmp_path: Path) -> None:
    done("train", "--config", trained / "config.yaml", f"output_dir={tmp_path / 'again'}")
    assert sha256(tmp_path / "again" / WEIGHTS) == sha256(trained / WEIGHTS)
    first, second = results_of(trained), results_of(tmp_path / "again")
    assert first["scores"] == second["scores"]
    assert first["comparison"] == second["comparison"]


def test_the_seed_and_nothing_else_decides_the_weights(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    same = train_with(tiny_model, tmp_path / "same", "seed=1")
    assert sha256(same / WEIGHTS) == sha256(trained / WEIGHTS)
    other = train_with(tiny_model, tmp_path / "other", "seed=2")
    assert sha256(other / WEIGHTS) != sha256(trained / WEIGHTS)


def test_seeds_are_trained_one_by_one_and_combined(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path, "seeds=[1,2]", "train.learning_rate=1e-2", "train.num_train_epochs=6")
    names = {path.name for path in run.iterdir()}
    files = {"README.md", "config.yaml", "environment.json", "metrics.jsonl", "results.json", "train.log"}
    files |= {"report.html"}
    assert names == files | {"seed-1", "seed-2"}
    parts = [results_of(run / f"seed-{seed}") for seed in (1, 2)]
    results = results_of(run)
    values = [part["scores"]["test"]["accuracy"]["value"] for part in parts]
    combined = results["scores"]["test"]["accuracy"]
    assert combined["value"] == pytest.approx(np.mean(values))
    assert combined["sd"] == pytest.approx(np.std(values, ddof=1))
    assert results["seconds"]["train"] == pytest.approx(sum(part["seconds"]["train"] for part in parts))
    assert set(results["seeds"]) == {"1", "2"}
    best = results["diagnostics"]["best_seed_on_validation"]
    validation = [part["scores"]["validation"]["macro_f1"]["value"] for part in parts]
    assert validation[0] != validation[1]
    assert best == 1 + int(np.argmax(validation))
    assert done("predict", run, "--json", stdin="my card\n").json == (
        done("predict", run / f"seed-{best}", "--json", stdin="my card\n").json
    )
    against = done("compare", run, run / "seed-1", "--json").json[0]
    assert against["difference"] == pytest.approx(np.mean(values) - values[0])


def test_a_seed_that_ended_is_kept_on_resume(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path, "seeds=[1,2]")
    before = results_of(run)
    (run / "results.json").unlink()
    shutil.rmtree(run / "seed-2")
    kept = (run / "seed-1" / "results.json").stat().st_mtime_ns
    train_with(tiny_model, tmp_path, "seeds=[1,2]", "--resume")
    assert (run / "seed-1" / "results.json").stat().st_mtime_ns == kept
    assert results_of(run)["scores"] == before["scores"]


def test_the_baseline_is_fitted_once_until_the_data_change(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    fitted = mock.Mock(wraps=baselines.fit_tfidf)
    with mock.patch.object(baselines, "fit_tfidf", fitted):
        first = train_with(tiny_model, tmp_path / "one")
        second = train_with(tiny_model, tmp_path / "two")
        assert fitted.call_count == 1
        assert results_of(first)["baseline"]["scores"] == results_of(second)["baseline"]["scores"]
        files = toy_files(tmp_path)
        write_csv(tmp_path / "train.csv", toy_rows(45, 0))
        train_with(tiny_model, tmp_path / "three", files=files)
        assert fitted.call_count == 2
        relabelled = [
            (identity, text, "account" if label == "payment" else label) for identity, text, label in toy_rows(45)
        ]
        write_csv(tmp_path / "train.csv", [*relabelled[:-1], (relabelled[-1][0], relabelled[-1][1], "payment")])
        train_with(tiny_model, tmp_path / "four", files=files)
        assert fitted.call_count == 3


# The commands that use a run


def test_evaluate_on_the_runs_own_test_file_repeats_its_scores(trained: Path) -> None:
    found = done("evaluate", trained, "--data", trained.parent / "test.csv", "--json").json
    assert found == results_of(trained)["scores"]["test"]


def test_the_order_of_rows_and_labels_in_a_file_does_not_matter(trained: Path, tmp_path: Path) -> None:
    backwards = write_csv(tmp_path / "backwards.csv", sorted(toy_rows(24, 2), key=lambda row: row[2], reverse=True))
    found = done("evaluate", trained, "--data", backwards, "--json").json
    for name, score in results_of(trained)["scores"]["test"].items():
        assert found[name]["value"] == pytest.approx(score["value"], abs=1e-6)
    one_label = write_csv(tmp_path / "one.csv", [row for row in toy_rows(24, 2) if row[2] == "payment"])
    rows = [row for row in read_jsonl(trained / "predictions" / "test.jsonl") if row["gold"] == "payment"]
    share = np.mean([row["predicted"] == "payment" for row in rows])
    assert done("evaluate", trained, "--data", one_label, "--json").json["accuracy"]["value"] == pytest.approx(share)


def test_evaluate_leaves_out_empty_rows_only_when_asked_to(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "gaps.csv"
    file.write_text((trained.parent / "test.csv").read_text() + "none,,greeting\n")
    refused = call("evaluate", trained, "--data", file)
    assert refused.code == 65
    assert "--on-empty skip" in refused.err
    found = done("evaluate", trained, "--data", file, "--on-empty", "skip")
    assert "1 without text or label left out" in found.out


def test_evaluate_can_leave_out_texts_that_stand_in_train(trained: Path, tmp_path: Path) -> None:
    leaky = write_csv(tmp_path / "leaky.csv", [*toy_rows(5, 0), *toy_rows(24, 2)])
    found = scoring.evaluate(str(trained), str(leaky), drop_leaked=True)
    assert (found["rows"], found["left_out"]) == (24, 5)
    assert found["scores"]["accuracy"] == results_of(trained)["scores"]["test"]["accuracy"]


def test_predict_gives_the_same_from_file_and_stdin_in_order(trained: Path, tmp_path: Path) -> None:
    texts = ["NA", "001", "null", 'my card, "charged"', "été 日本", *(text for _, text, _ in toy_rows(40, 7))]
    unlabelled = write_csv(tmp_path / "new.csv", [(text,) for text in texts], ("text",))
    for name in ("one.jsonl", "two.jsonl"):
        assert done("predict", trained, "--input", unlabelled, "--output", tmp_path / name).out == ""
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    rows = read_jsonl(tmp_path / "one.jsonl")
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows] == [str(number) for number in range(len(texts))]
    assert_predictions(rows, set(TOPICS))
    assert done("predict", trained, "--json", stdin="".join(f"{text}\n" for text in texts)).json == rows


def test_predict_prints_label_probability_and_text(trained: Path) -> None:
    label, probability, text = done("predict", trained, stdin="my card\n").out.rstrip("\n").split("\t")
    assert label in TOPICS
    assert 1 / 3 <= float(probability) <= 1
    assert text == "my card"


def test_a_plain_model_folder_predicts_and_evaluates(trained: Path, tmp_path: Path) -> None:
    rows = [(identity, text, label) for identity, text, label in toy_rows(24, 2)]
    file = write_csv(tmp_path / "other.csv", rows, ("id", "message", "topic"))
    columns = ["--text-column", "message", "--label-column", "topic"]
    found = done("evaluate", trained / "model", "--data", file, *columns, "--json").json
    assert found["accuracy"] == results_of(trained)["scores"]["test"]["accuracy"]
    one = done("predict", trained / "model", "--input", file, "--text-column", "message", "--json").json
    two = done("predict", trained, "--input", file, "--text-column", "message", "--json").json
    assert [row["predicted"] for row in one] == [row["predicted"] for row in two]


def test_the_tfidf_recipe_runs_alone_and_is_compared_with_a_model(trained: Path, tmp_path: Path) -> None:
    files = toy_files(tmp_path)
    done("baseline", *files, f"output_dir={tmp_path / 'tfidf'}")
    run = tmp_path / "tfidf"
    assert_contract(run)
    results = results_of(run)
    assert results["recipe"] == "tfidf_baseline"
    assert results["baseline"]["name"] == "majority class"
    assert done("evaluate", run, "--data", tmp_path / "test.csv", "--json").json == results["scores"]["test"]
    assert_predictions(done("predict", run, "--json", stdin="my card\n").json, set(TOPICS))
    (found,) = done("compare", trained, run, "--json").json
    (swapped,) = done("compare", run, trained, "--json").json
    beside = results_of(trained)["comparison"]
    assert {key: found[key] for key in beside} == pytest.approx(beside)
    assert swapped["difference"] == pytest.approx(-found["difference"])
    assert found["runs"] == [str(trained), str(run)]
    sentence = {
        "better": f"{trained} is better than {run}: ",
        "worse": f"{trained} is worse than {run}: ",
        "no difference shown": f"no difference shown between {trained} and {run}: ",
    }[found["verdict"]]
    shown = done("compare", trained, run).out
    assert sentence in shown
    assert f"{len(found['disagreements'])} texts that only one of them gets right" in shown


def test_two_seeds_of_one_recipe_show_no_difference(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = train_with(tiny_model, tmp_path, "seed=2")
    (found,) = done("compare", trained, other, "--json").json
    assert found["verdict"] == "no difference shown"
    assert f"no difference shown between {trained} and {other}: " in done("compare", trained, other).out


def test_three_runs_are_compared_pair_by_pair_with_wider_intervals(
    trained: Path, tiny_model: Path, tmp_path: Path
) -> None:
    runs = [trained, *(train_with(tiny_model, tmp_path / str(seed), f"seed={seed}") for seed in (2, 3))]
    found = done("compare", *runs, "--json").json
    assert [part["runs"] for part in found] == [
        [str(runs[0]), str(runs[1])], [str(runs[0]), str(runs[2])], [str(runs[1]), str(runs[2])]
    ]  # fmt: skip


def test_a_recipe_is_a_function_in_python_too(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    from finetune.data.columns import DataConfig, from_lines

    train, validation, test = (setting.split("=", 1)[1] for setting in toy_files(tmp_path))
    loop = TrainConfig(
        learning_rate=3e-3, num_train_epochs=2, per_device_train_batch_size=8, mixed_precision="no",
        metric_for_best_model="macro_f1",
    )  # fmt: skip
    config = recipe.Config(
        model=str(tiny_model), data=DataConfig(train=train, validation=validation, test=test), max_length=32, train=loop
    )
    with Run(tmp_path / "run", quiet=True) as run:
        results = recipe.train(config, run)
    assert results["scores"] == results_of(trained)["scores"]
    assert sha256(tmp_path / "run" / WEIGHTS) == sha256(trained / WEIGHTS)
    rows = recipe.predict(config, Run.open(tmp_path / "run"), from_lines("here", ["my card"]))
    assert_predictions(rows, set(TOPICS))


def test_the_scores_are_offered_as_metrics_of_evaluate(trained: Path) -> None:
    rows = read_jsonl(trained / "predictions" / "test.jsonl")
    number = {label: place for place, label in enumerate(sorted(TOPICS))}
    gold = [number[row["gold"]] for row in rows]
    predicted = [number[row["predicted"]] for row in rows]
    scores = results_of(trained)["scores"]["test"]
    for name in ("accuracy", "macro_f1", "mcc"):
        found = metrics.hf_metric(name).compute(predictions=predicted, references=gold)
        assert found == {name: pytest.approx(scores[name]["value"])}
    probabilities = [list(row["probabilities"].values()) for row in rows]
    found = metrics.hf_metric("loss").compute(predictions=probabilities, references=gold)
    assert found == {"loss": pytest.approx(scores["loss"]["value"], abs=1e-5)}


def test_resume_of_a_finished_run_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path)
    before, scores = sha256(run / WEIGHTS), results_of(run)["scores"]
    done("train", "--config", run / "config.yaml", f"output_dir={run}", "--resume")
    assert sha256(run / WEIGHTS) == before
    assert results_of(run)["scores"] == scores


def test_overwrite_replaces_the_run_and_leaves_other_files(tiny_model: Path, tmp_path: Path) -> None:
    run = train_with(tiny_model, tmp_path)
    before = sha256(run / WEIGHTS)
    (run / "notes.txt").write_text("mine")
    train_with(tiny_model, tmp_path, "seed=5", "--overwrite")
    assert sha256(run / WEIGHTS) != before
    assert (run / "notes.txt").read_text() == "mine"


def test_a_group_keeps_its_recipes_defaults_beside_a_given_setting() -> None:
    from finetune.config import load, settings

    @configclass
    class Inner:
        a: int = field(1, "first")
        b: int = field(2, "second")

    @configclass
    class Outer:
        inner: Inner = field(lambda: Inner(a=10), "group")

    config, _ = load(Outer, ["inner.b=3"])
    assert (config.inner.a, config.inner.b) == (10, 3)
    assert {setting.path: setting.default for setting in settings(Outer)} == {"inner.a": 10, "inner.b": 2}


def test_an_unknown_score_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UserError, match=r"did you mean macro_f1.*known: accuracy, macro_f1"):
        classifier.greater_is_better("macro-f1")
    assert not classifier.greater_is_better("loss")
    assert classifier.greater_is_better("accuracy")


def test_a_stop_in_the_first_seed_leaves_what_it_had_for_resume(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_with(tiny_model, tmp_path / "whole", "seeds=[1,2]")

    def stop(trainer: Trainer, *rest: object) -> None:
        trainer.run.updated = True
        raise Interrupted(Exit.INTERRUPTED, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", stop)
        folder = tmp_path / "stopped"
        folder.mkdir()
        arguments = [*toy_files(folder), f"model={tiny_model}", f"output_dir={folder / 'run'}", *FAST, "seeds=[1,2]"]
        assert call("train", "bert_classification", *arguments).code == 130
    assert (folder / "run" / "seed-1" / "config.yaml").is_file()
    done("train", "bert_classification", *arguments, "--resume")
    assert sha256(folder / "run" / "seed-1" / WEIGHTS) == sha256(whole / "seed-1" / WEIGHTS)


def test_several_seeds_hold_out_the_same_rows_and_one_seed_is_enough(tiny_model: Path, tmp_path: Path) -> None:
    files = toy_files(tmp_path)[:1]  # no validation, no test
    common = ["train", "bert_classification", *files, f"model={tiny_model}", *FAST]
    done(*common, f"output_dir={tmp_path / 'two'}", "seeds=[4,2]")
    rows = [read_jsonl(tmp_path / "two" / f"seed-{seed}" / "predictions/validation.jsonl") for seed in (4, 2)]
    assert [row["id"] for row in rows[0]] == [row["id"] for row in rows[1]]
    done(*common, f"output_dir={tmp_path / 'one'}", "seeds=[4]")
    alone = read_jsonl(tmp_path / "one" / "seed-4" / "predictions/validation.jsonl")
    assert [row["id"] for row in alone] == [row["id"] for row in rows[0]]


def test_a_text_cut_in_scoring_is_told_and_the_model_folder_reads_as_the_run_does(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = train_with(tiny_model, tmp_path, "max_length=6")
    long = " ".join(["my card was charged"] * 5)
    outcomes = [done("predict", place, "--json", stdin=f"{long}\nmy card\n") for place in (run, run / "model")]
    assert all("1 text of 2 cut at 6 tokens" in outcome.err for outcome in outcomes)
    assert outcomes[0].json == outcomes[1].json


def test_another_file_may_have_another_encoding_and_separator(trained: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("text,label\nmy café card,payment\n", encoding="utf-8")
    odd = tmp_path / "odd.csv"
    odd.write_text("label;text\npayment;my café card\n", encoding="latin-1")
    options = ["--encoding", "latin-1", "--delimiter", ";"]
    expected = done("predict", trained, "--input", plain, "--json").json
    assert done("predict", trained, "--input", odd, *options, "--json").json == expected
    scores = done("evaluate", trained, "--data", plain, "--json").json
    assert done("evaluate", trained, "--data", odd, *options, "--json").json == scores


def test_weights_that_are_not_numbers_end_as_diverged(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    outcome = call("predict", folder, stdin="my card\n")
    assert outcome.code == 70
    assert "not finite" in outcome.err
