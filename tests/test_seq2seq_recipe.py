"""The recipe seq2seq from data to run folder, and the commands that use such a run."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import call, done, private_cache, read_jsonl, sections_of, sha256, tree
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetune.errors import Exit, Interrupted
from finetune.trainer import Trainer

WORDS = ["red", "blue", "green", "black", "white", "grey"]
TINY = (
    "task=transduction", "vocabulary.kind=word", "vocabulary.min_frequency=1", "network.hidden_size=32",
    "network.num_encoder_layers=1", "network.num_decoder_layers=1", "network.num_attention_heads=2",
    "network.intermediate_size=64", "train.mixed_precision=no", "search.beam_size=2",
)  # fmt: skip
WEIGHTS = "model/model.safetensors"


def write_pairs(path: Path, rows: int, seed: int, *, upper: bool = True) -> Path:
    """Write rows of three to five colours, and the same in capitals."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        source = " ".join(random.choice(WORDS, random.integers(3, 6)))
        lines.append(json.dumps({"source": source, "target": source.upper() if upper else source}))
    path.write_text("\n".join(lines) + "\n")
    return path


def files(folder: Path) -> list[str]:
    sizes = {"train": (500, 0), "validation": (40, 1), "test": (40, 2)}
    return [f"data.{n}={write_pairs(folder / f'{n}.jsonl', rows, seed)}" for n, (rows, seed) in sizes.items()]


def train(folder: Path, *settings: object, output: str = "run") -> Path:
    folder.mkdir(exist_ok=True)
    done("train", "seq2seq", *files(folder), f"output_dir={folder / output}", *TINY, *settings)
    return folder / output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Transformer that has learnt to write colours in capitals."""
    folder = tmp_path_factory.mktemp("seq2seq")
    with private_cache(folder):
        settings = ("label_smoothing_factor=0", "network.dropout=0", "per_device_train_batch_size=16")
        return train(folder, "num_train_epochs=30", "learning_rate=5e-3", *settings)


def test_the_run_learns_and_tells_it_beside_the_baselines(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["scores"]["test"]["exact_match"]["value"] >= 0.9
    assert results["task"] == "transduction"
    assert {part["name"] for part in results["baselines"]} >= {"copy of the source", "most frequent target"}
    assert results["comparison"]["metric"] == "exact_match"
    assert results["comparison"]["verdict"] == "better"
    assert results["diagnostics"]["rows"] == {"train": 500, "validation": 40, "test": 40}
    assert results["throughput"]["train_target_tokens_per_second"] > 0
    card = (trained / "README.md").read_text()
    assert "import finetune.seq2seq.model" in card
    assert "exact_match" in card


def test_the_folder_loads_with_auto_classes_without_remote_code(trained: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(trained / "model", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    stored = load_file(trained / WEIGHTS)
    assert {name: sha.tolist() for name, sha in model.state_dict().items()}.keys() >= stored.keys()
    assert tokenizer.decode(tokenizer("red blue")["input_ids"], skip_special_tokens=True).strip() == "red blue"


def test_predict_gives_a_line_a_row_in_order_from_file_and_stdin(trained: Path, tmp_path: Path) -> None:
    sources = ["red blue green", "grey grey black white"]
    file = tmp_path / "new.jsonl"
    file.write_text("".join(json.dumps({"source": source}) + "\n" for source in sources))
    output = tmp_path / "out.jsonl"
    done("predict", trained, "--input", file, "--output", output)
    rows = read_jsonl(output)
    assert [row["source"] for row in rows] == sources
    assert [row["predicted"] for row in rows] == [source.upper() for source in sources]
    assert all(row["score"] <= 0 for row in rows)
    assert done("predict", trained, stdin="\n".join(sources) + "\n").out.splitlines() == [s.upper() for s in sources]
    several = done("predict", trained, "--input", file, "--beam-size", 4, "--n-best", 3, "--json").json
    assert [len(row["hypotheses"]) for row in several] == [3, 3]
    assert [row["hypotheses"][0] for row in several] == [row["predicted"] for row in several]
    shown = done("predict", trained, "--input", file, "--beam-size", 4, "--n-best", 3).out.splitlines()
    assert shown == [f"{n}\t{text}" for row in several for n, text in enumerate(row["hypotheses"], 1)]


def test_evaluate_repeats_the_scores_of_the_run(trained: Path) -> None:
    scores = done("evaluate", trained, "--data", trained.parent / "test.jsonl", "--json").json
    assert scores == json.loads((trained / "results.json").read_text())["scores"]["test"]
    assert "exact_match" in done("evaluate", trained, "--data", trained.parent / "test.jsonl").out


def test_the_models_folder_alone_does_what_the_run_does(trained: Path, tmp_path: Path) -> None:
    source = "red blue green white\n"
    beam = ("--beam-size", 2)
    alone = done("predict", trained / "model", *beam, "--json", stdin=source).json
    assert alone == done("predict", trained, *beam, "--json", stdin=source).json
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in (trained.parent / "test.jsonl").read_text().splitlines()]
    other.write_text("".join(json.dumps({"en": row["source"], "de": row["target"]}) + "\n" for row in rows))
    options = ("--source-column", "en", "--target-column", "de")
    scores = done("evaluate", trained, "--data", other, *options, "--json").json
    assert scores == json.loads((trained / "results.json").read_text())["scores"]["test"]


@pytest.mark.parametrize("network", [["architecture=transformer"], ["architecture=rnn", "copy=true"]], ids=str)
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: list[str]
) -> None:
    settings = (*network, "num_train_epochs=2", "baseline=none", "network.dropout=0.3")
    straight = train(tmp_path / "straight", *settings)
    folder = tmp_path / "stopped"
    folder.mkdir()
    arguments = ["train", "seq2seq", *files(folder), f"output_dir={folder / 'run'}", *TINY, *settings, "save_steps=1"]
    save = Trainer._save

    def once(trainer: Trainer) -> None:
        save(trainer)
        if trainer.progress.step == 3:
            raise Interrupted(Exit.INTERRUPTED, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", once)
        assert call(*arguments).code == 130
    done(*arguments, "--resume")
    assert sha256(folder / "run" / WEIGHTS) == sha256(straight / WEIGHTS)


def test_two_runs_are_compared_by_the_metric_of_the_task(trained: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "short", "num_train_epochs=1", "baseline=none", "architecture=rnn", "attention=none")
    outcome = done("compare", trained, other)
    assert "is better than" in outcome.out
    assert "points of exact_match" in outcome.out
    assert "approximate randomisation" in outcome.out
    found = done("compare", trained, other, "--json").json[0]
    assert found["metric"] == "exact_match"
    assert found["low"] > 0


def test_seeds_are_combined(tmp_path: Path) -> None:
    run = train(tmp_path, "seeds=[1,2]", "num_train_epochs=1", "train.max_steps=2")
    results = json.loads((run / "results.json").read_text())
    assert set(results["seeds"]) == {"1", "2"}
    assert "sd" in results["scores"]["test"]["exact_match"]
    assert done("predict", run, "--json", stdin="red\n").json[0]["source"] == "red"


def test_separate_vocabularies_are_saved_and_read_back(tmp_path: Path) -> None:
    run = train(tmp_path, "vocabulary.shared=false", "train.max_steps=2", "baseline=none")
    assert (run / "model" / "source" / "tokenizer.json").is_file()
    assert done("predict", run, "--json", stdin="red blue\n").json[0]["predicted"] is not None


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    outcome = done("train", "seq2seq", *files(tmp_path), f"output_dir={tmp_path / 'run'}", *TINY, "--dry-run", "--json")
    assert outcome.json["updates"] > 0
    assert " of 64 pairs (" in outcome.err
    assert not (tmp_path / "run").exists()


def test_long_pairs_are_cut_left_out_of_train_or_refused(tmp_path: Path) -> None:
    short = ("max_source_length=5", "max_target_length=5", "train.max_steps=1", "baseline=none")
    run = train(tmp_path, *short, "data.on_long=skip")
    (long,) = json.loads((run / "results.json").read_text())["diagnostics"]["long_rows"]
    assert long["rows"]["train"] > 50
    assert long["limits"] == {"max_source_length": 5, "max_target_length": 5}
    assert (long["done"]["train"], long["done"]["test"]) == ("left out", "cut")
    assert json.loads((run / "results.json").read_text())["diagnostics"]["rows"]["test"] == 40
    cut = done("predict", run, "--json", stdin="red blue green black white grey\n")
    assert "1 text of 1 cut at 5 tokens" in cut.err


def test_a_model_that_copies_is_saved_read_back_and_explained(tmp_path: Path) -> None:
    run = train(tmp_path, "copy=true", "train.max_steps=2", "baseline=none", "data.target_column=source")
    results = json.loads((run / "results.json").read_text())
    assert results["diagnostics"]["system"] == "Transformer with copying"
    assert json.loads((run / "model" / "config.json").read_text())["copy"] is True
    assert any(name.startswith("gate.") for name in load_file(run / WEIGHTS))
    rows = done("predict", run / "model", "--input", tmp_path / "test.jsonl", "--beam-size", 2, "--json").json
    before = read_jsonl(run / "predictions" / "test.jsonl")
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in before]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in before], abs=1e-4)
    found = done("explain", run, "--text", "red blue", "--target", "red", "--json").json
    weights = np.array(found["weights"])
    assert weights.shape == (2, 3)
    assert weights.sum(axis=1) == pytest.approx([1, 1], abs=1e-3)


def spoilt(folder: Path, row: dict[str, Any]) -> str:
    path = folder / "spoilt.jsonl"
    path.write_text(json.dumps({"source": "red", "target": "RED"}) + "\n" + json.dumps(row) + "\n")
    return f"data.train={path}"


@pytest.mark.parametrize(
    ("change", "code", "mentions"),
    [
        (lambda f: [spoilt(f, {"source": "", "target": "RED"})], 65, ["spoilt.jsonl:2", "without source"]),
        (lambda f: [spoilt(f, {"source": "red", "target": " "})], 65, ["spoilt.jsonl:2", "without target"]),
        (lambda f: ["data.source_column=sauce"], 65, ["has no column sauce; did you mean source?"]),
        (lambda f: ["data.on_long=error", "max_source_length=5"], 65,
         ["train.jsonl:", "max_source_length=5", "\ngive data.on_long=truncate or skip"]),
        (lambda f: ["data.on_long=skip", "max_source_length=3", "max_target_length=3"], 65,
         ["train.jsonl: every pair is longer than max_source_length=3 or max_target_length=3; raise them"]),
        (lambda f: ["vocabulary.kind=character", "vocabulary.vocab_size=9"], 2, ["vocab_size"]),
        (lambda f: ["search.beam_size=0"], 2, ["search.beam_size cannot be 0: must be above 0"]),
        (lambda f: ["architecture=transfomer"], 2, ["architecture cannot be 'transfomer'"]),
        (lambda f: ["network.num_attention_heads=5"], 2, ["hidden_size=32", "num_attention_heads=5"]),
        (lambda f: ["task=translating"], 2, ["unknown task translating; did you mean translation?"]),
        (lambda f: ["metric_for_best_model=bleu"], 2, ["transduction has no such score", "exact_match"]),
        (lambda f: ["copy=true", "vocabulary.shared=false"], 2, ["copy=true needs one", "give vocabulary.shared=true"]),
        (lambda f: ["copy=true", "architecture=rnn", "attention=none"], 2, ["copy=true needs a decoder that looks"]),
        (lambda f: ["network.tie_embeddings=all", "vocabulary.shared=false", "data.target_column=source"], 2, None),
    ],
    ids=["source", "target", "column", "long", "all long", "alphabet", "beam", "architecture", "heads", "task",
         "metric", "copy apart", "copy blind", "tying"],
)  # fmt: skip
def test_wrong_input_is_named_and_nothing_is_written(
    tmp_path: Path, change: Any, code: int, mentions: list[str] | None
) -> None:
    if mentions is None:  # tables of equal size would fit: make the vocabularies differ
        write_pairs(tmp_path / "x.jsonl", 20, 5)
        mentions = ["tie_embeddings=all"]
    settings = [*files(tmp_path), f"output_dir={tmp_path / 'run'}", *TINY]
    if code == 2 and "tie_embeddings=all" in mentions:
        settings += ["network.tie_embeddings=all", "vocabulary.shared=false"]
        (tmp_path / "train.jsonl").write_text('{"source": "a b c", "target": "X"}\n' * 3)
    else:
        settings += change(tmp_path)
    outcome = call("train", "seq2seq", *settings)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for mention in mentions:
        assert mention in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"hidden_size": 64}, "config.json and the weights are of different models"),
        ({"architecture": "rnn"}, "config.json and the weights are of different models (network.attention."),
        ({"num_encoder_layers": 2}, "config.json and the weights are of different models"),  # one layer would be random
        ({"num_decoder_layers": 0}, "num_decoder_layers=0"),
        ({"source_vocab_size": 90, "target_vocab_size": 90}, "config.json and the weights are of different models"),
    ],
    ids=str,
)
def test_a_model_folder_whose_config_is_of_another_network_is_refused(
    trained: Path, tmp_path: Path, change: dict[str, Any], mentions: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps(config | change))
    evaluate = ("evaluate", run, "--data", trained.parent / "test.jsonl")
    for outcome in (call("predict", run / "model", stdin="red\n"), call(*evaluate)):
        assert outcome.code == 65, outcome.err
        assert f"error: {run / 'model'}" in outcome.err
        assert mentions in outcome.err
        assert "Traceback" not in outcome.err


def test_damaged_weights_and_foreign_vocabularies_are_refused(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    tokenizer = json.loads((run / "model" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["purple"] = len(tokenizer["model"]["vocab"])
    (run / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    outcome = call("predict", run, stdin="red\n")
    assert (outcome.code, "do not belong together" in outcome.err) == (65, True), outcome.err
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:100])
    outcome = call("predict", run, stdin="red\n")
    assert (outcome.code, "the weights are damaged" in outcome.err) == (65, True), outcome.err


@pytest.mark.parametrize("change", [("transformer", "rnn"), ("hidden_size: 32", "hidden_size: 64")], ids=str)
def test_resume_refuses_settings_and_checkpoints_of_another_network(
    trained: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "results.json").unlink()
    stored = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(stored.replace(*change))
    before = {name: digest for name, digest in tree(run).items() if name.startswith(("model", "checkpoints"))}
    outcome = call("train", "--config", run / "config.yaml", f"output_dir={run}", "--resume")
    assert outcome.code == 2, outcome.err
    assert "the checkpoint is of another model" in outcome.err
    assert "give the settings that the run began with" in outcome.err
    (run / "config.yaml").write_text(stored)
    (tmp_path / "new.yaml").write_text(stored.replace(*change))
    outcome = call("train", "--config", tmp_path / "new.yaml", f"output_dir={run}", "--resume")
    assert outcome.code == 2, outcome.err
    assert "--resume with other settings than the run began with:" in outcome.err
    assert {name: digest for name, digest in tree(run).items() if name in before} == before


def test_the_loss_of_a_batch_is_a_sum_over_target_tokens(trained: Path) -> None:
    from finetune.data.sequences import SequenceDataConfig, read_splits
    from finetune.seq2seq import encoder_decoder as networks

    parts = networks.load(trained / "model")
    folder = trained.parent
    splits = read_splits(
        SequenceDataConfig(train=str(folder / "train.jsonl"), validation=str(folder / "test.jsonl")), seed=1
    )
    encoded = networks.encode(splits["validation"], parts.vocabularies, networks.Lengths(99, 99), "error")
    examples = networks.collate(encoded)
    loss = networks.make_loss(0.1, 0.0)
    with torch.no_grad():
        whole = loss(parts.model, examples.collate(np.arange(8)))
        parted = [loss(parts.model, examples.collate(part)) for part in (np.arange(3), np.arange(3, 8))]
    assert float(whole) == pytest.approx(float(sum(parted)), rel=1e-5)
    batch = examples.collate(np.arange(8))
    assert encoded.targets is not None
    assert batch.items == sum(len(encoded.targets[index]) - 1 for index in range(8))
    assert math.isfinite(float(whole))


def test_the_page_shows_texts_beside_human_ones(trained: Path) -> None:
    assert {"scores", "curves", "texts", "data", "made"} <= set(sections_of(trained))
