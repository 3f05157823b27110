"""Every wrong input is one exit code and one to three lines, and leaves the disk as it was."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import FAST, Outcome, call, done, private_cache, read_jsonl, spawn, toy_files, train_toy, tree, write_csv
from conftest import toy_rows
from safetensors.torch import load_file, save_file

CLOSED = "http://127.0.0.1:9"  # the port of `discard`: nobody listens
Arguments = list[object]


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with good data, a good model, and finished runs; each case spoils one thing."""

    folder: Path
    good_model: Path
    run: Path
    tfidf: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def train(self, *settings: object, model: Path | None = None) -> Arguments:
        """Return a training command on good data; later settings win."""
        return [
            "train", "bert_classification", *toy_files(self.folder), f"model={model or self.good_model}",
            f"output_dir={self.folder / 'new'}", *FAST, *settings,
        ]  # fmt: skip

    def on(self, split: str, name: str, content: str | bytes) -> Arguments:
        """Return a training command with another file as one of its splits."""
        return self.train(f"data.{split}={self.write(name, content)}")

    def model(self) -> Path:
        """Return a copy of the good model, to be spoilt."""
        return Path(shutil.copytree(self.good_model, self.folder / "spoilt"))

    def change_config(self, **values: object) -> Path:
        """Return a copy of the good model with other values in config.json."""
        folder = self.model()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))
        return folder

    def change_run(self, name: str) -> Path:
        """Return a copy of the good run, with its own copy of the data."""
        return Path(shutil.copytree(self.run, self.folder / name))


def missing_file(place: Place) -> Arguments:
    return place.train(f"data.train={place.folder / 'trian.csv'}")


def wrong_column(place: Place) -> Arguments:
    return place.train("data.text_column=txt")


def ragged_row(place: Place) -> Arguments:
    rows = "text,label\nmy card,payment\nHello, world,greeting\nmy parcel,delivery\n"
    return place.on("train", "ragged.csv", rows)


def empty_text(place: Place) -> Arguments:
    rows = [(str(number), "" if number % 2 else "a card", "payment") for number in range(14)]
    return place.train(f"data.train={write_csv(place.folder / 'empty_text.csv', rows)}")


def empty_label(place: Place) -> Arguments:
    rows = [(str(number), "a card", "" if number < 7 else "payment") for number in range(14)]
    return place.train(f"data.train={write_csv(place.folder / 'empty_label.csv', rows)}")


def unseen_label(place: Place) -> Arguments:
    return place.on("test", "unseen.csv", "text,label\nmy card,payment\nmy card,paymnet\n")


def latin_1(place: Place) -> Arguments:
    return place.on("train", "latin.csv", "text,label\na card,payment\ncaf\xe9,account\n".encode("latin-1"))


def one_class(place: Place) -> Arguments:
    return place.on("train", "one.csv", "text,label\na card,payment\nmy card,payment\n")


def empty_file(place: Place) -> Arguments:
    return place.on("train", "nothing.csv", "")


def header_only(place: Place) -> Arguments:
    return place.on("train", "header.csv", "text,label\n")


def no_training_data(place: Place) -> Arguments:
    return ["train", "bert_classification", f"output_dir={place.folder / 'new'}"]


def leaked_rows(place: Place) -> Arguments:
    leaked = write_csv(place.folder / "leaked.csv", toy_rows(24, 0))
    return place.train(f"data.test={leaked}", "data.on_leak=error")


def model_without_tokenizer(place: Place) -> Arguments:
    folder = place.model()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    return place.train(model=folder)


def model_missing(place: Place) -> Arguments:
    return place.train(f"model={place.folder / 'no' / 'model'}")


def folder_without_model(place: Place) -> Arguments:
    (place.folder / "bare").mkdir()
    return place.train(f"model={place.folder / 'bare'}")


def folder_without_weights(place: Place) -> Arguments:
    folder = place.model()
    (folder / "model.safetensors").unlink()
    return place.train(model=folder)


def hub_name(place: Place) -> Arguments:
    return place.train("model=google-bert/bert-base-uncased")


def hub_data(place: Place) -> Arguments:
    return [
        "train", "bert_classification", "data.name=stanfordnlp/imdb", f"model={place.good_model}",
        f"output_dir={place.folder / 'new'}", *FAST,
    ]  # fmt: skip


def output_not_empty(place: Place) -> Arguments:
    (place.folder / "full").mkdir()
    (place.folder / "full" / "mine.txt").write_text("mine")
    return place.train(f"output_dir={place.folder / 'full'}")


def output_is_a_file(place: Place) -> Arguments:
    return place.train(f"output_dir={place.write('file', 'mine')}")


def too_long_for_the_model(place: Place) -> Arguments:
    return place.train("max_length=128")


def long_text_refused(place: Place) -> Arguments:
    return place.train("max_length=8", "data.on_long=error")


def unknown_tokens(place: Place) -> Arguments:
    rows = [(identity, "привет как дела", label) for identity, _, label in toy_rows(24)]
    return place.train(f"data.train={write_csv(place.folder / 'russian.csv', rows)}")


def tokenizer_larger_than_model(place: Place) -> Arguments:
    folder = place.change_config(vocab_size=50)
    tensors = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(tensors | {name: tensors[name][:50].clone()}, folder / "model.safetensors", {"format": "pt"})
    return place.train(model=folder)


def truncated_weights(place: Place) -> Arguments:
    folder = place.model()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return place.train(model=folder)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def pickled_weights(place: Place) -> Arguments:
    folder = place.model()
    (folder / "model.safetensors").unlink()
    torch.save({"pooler.dense.bias": Payload(place.folder / "marker")}, folder / "pytorch_model.bin")
    return place.train(model=folder)


def own_code(place: Place) -> Arguments:
    code = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    folder = place.change_config(model_type="evil", auto_map=code, architectures=["Model"])
    marker = place.folder / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    return place.train(model=folder)


def unknown_architecture(place: Place) -> Arguments:
    return place.train(model=place.change_config(model_type="berd", architectures=["BerdModel"]))


def unknown_score(place: Place) -> Arguments:
    return place.train("train.metric_for_best_model=macro-f1")


def wrong_value(place: Place) -> Arguments:
    return place.train("max_length=many")


def unknown_setting(place: Place) -> Arguments:
    return place.train("learning_rat=1e-3")


def unknown_recipe(place: Place) -> Arguments:
    return ["train", "bert_clasification"]


def no_recipe(place: Place) -> Arguments:
    return ["train", "data.train=x.csv"]


def config_missing(place: Place) -> Arguments:
    return ["train", "--config", place.folder / "no.yaml"]


def no_such_preset(place: Place) -> Arguments:
    return ["train", "--config", "small"]


def config_with_a_fault(place: Place) -> Arguments:
    return ["train", "--config", place.write("bad.yaml", "recipe: bert_classification\nseed: 1\nseed: 2\n")]


def resume_with_another_setting(place: Place) -> Arguments:
    run = place.change_run("again")
    return ["train", "--config", run / "config.yaml", f"output_dir={run}", "--resume", "seed=2", "max_length=30"]


def resume_with_other_data(place: Place) -> Arguments:
    run = place.folder / "again"
    done(*place.train(f"output_dir={run}", "train.max_steps=1"))
    write_csv(place.folder / "train.csv", toy_rows(47, 0))
    return ["train", "--config", run / "config.yaml", f"output_dir={run}", "--resume"]


def compare_other_rows(place: Place) -> Arguments:
    done(
        "baseline",
        *toy_files(place.folder),
        f"data.test={place.folder / 'validation.csv'}",
        f"output_dir={place.folder / 'b'}",
    )
    return ["compare", place.run, place.folder / "b"]


def compare_one(place: Place) -> Arguments:
    return ["compare", place.run]


def compare_same(place: Place) -> Arguments:
    return ["compare", place.run, place.run]


def compare_unfinished(place: Place) -> Arguments:
    run = place.change_run("half")
    (run / "results.json").unlink()
    return ["compare", place.tfidf, run]


def evaluate_nothing(place: Place) -> Arguments:
    (place.folder / "bare").mkdir()
    return ["evaluate", place.folder / "bare", "--data", place.folder / "train.csv"]


def evaluate_absent(place: Place) -> Arguments:
    return ["evaluate", place.folder / "no", "--data", "x.csv"]


def evaluate_without_data(place: Place) -> Arguments:
    return ["evaluate", place.run]


def evaluate_unfinished(place: Place) -> Arguments:
    run = place.change_run("half")
    shutil.rmtree(run / "model")
    return ["evaluate", run, "--data", place.run.parent / "test.csv"]


def evaluate_unseen_label(place: Place) -> Arguments:
    return ["evaluate", place.run, "--data", place.write("x.csv", "text,label\nmy card,refund\n")]


def evaluate_without_label_column(place: Place) -> Arguments:
    return ["evaluate", place.run, "--data", place.write("x.csv", "text,topic\nmy card,payment\n")]


def predict_without_lines(place: Place) -> Arguments:
    return ["predict", place.run]


def predict_absent_file(place: Place) -> Arguments:
    return ["predict", place.run, "--input", place.folder / "no.csv"]


def predict_into_no_folder(place: Place) -> Arguments:
    return [
        "predict",
        place.run,
        "--input",
        place.run.parent / "test.csv",
        "--output",
        place.folder / "no" / "out.jsonl",
    ]


def predict_with_spoilt_baseline(place: Place) -> Arguments:
    run = Path(shutil.copytree(place.tfidf, place.folder / "spoilt"))
    (state,) = (run / "model").glob("*.skops")
    state.write_bytes(state.read_bytes()[:100])
    return ["predict", run, "--input", place.run.parent / "test.csv"]


def check_nothing(place: Place) -> Arguments:
    return ["check"]


def copy_over_a_file(place: Place) -> Arguments:
    return ["recipes", "copy", "tfidf_baseline", place.write("mine.py", "mine")]


def copy_into_no_folder(place: Place) -> Arguments:
    return ["recipes", "copy", "tfidf_baseline", place.folder / "no" / "mine.py"]


def show_unknown(place: Place) -> Arguments:
    return ["recipes", "show", "tfidf"]


def unknown_command(place: Place) -> Arguments:
    return ["trian"]


def unknown_option(place: Place) -> Arguments:
    return ["train", "--overwrit"]


def seed_twice(place: Place) -> Arguments:
    return place.train("seeds=[1,1]")


def seed_below_zero(place: Place) -> Arguments:
    return place.train("seed=-1")


def no_updates(place: Place) -> Arguments:
    return place.train("train.max_steps=0")


def resume_without_folder(place: Place) -> Arguments:
    return [*(a for a in place.train() if not str(a).startswith("output_dir=")), "--resume"]


def resume_as_another_recipe(place: Place) -> Arguments:
    run = Path(shutil.copytree(place.tfidf, place.folder / "again"))
    return [*place.train(f"output_dir={run}"), "--resume"]


def frozen_beyond_the_top(place: Place) -> Arguments:
    return place.train("frozen_layers=2")


def fp16_on_a_cpu(place: Place) -> Arguments:
    return place.train("train.mixed_precision=fp16")


def model_with_a_space(place: Place) -> Arguments:
    return place.train("model=my model")


def hub_name_with_a_dot(place: Place) -> Arguments:
    return place.train("model=BAAI/bge-small-en-v1.5")


def predict_with_no_head(place: Place) -> Arguments:
    return ["predict", place.good_model, "--input", place.run.parent / "test.csv"]


def predict_a_row_without_text(place: Place) -> Arguments:
    run = place.change_run("skipping")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("on_empty: error", "on_empty: skip"))
    return ["predict", run, "--input", place.write("x.csv", "text\nmy card\n\nmy parcel\n")]


def predict_column_that_is_not_there(place: Place) -> Arguments:
    file = place.write("x.csv", "text,other\nmy card,b\n")
    return ["predict", place.run, "--input", file, "--text-pair-column", "second"]


def leaks_of_a_model_folder(place: Place) -> Arguments:
    return ["evaluate", place.run / "model", "--data", place.run.parent / "test.csv", "--drop-leaked"]


def compare_other_texts(place: Place) -> Arguments:
    for name in ("train", "validation", "test"):
        path = place.folder / f"{name}.csv"
        path.write_text(path.read_text().replace(" the ", " il ").replace(" was ", " era "))
    done("baseline", *toy_files_as_they_are(place.folder), f"output_dir={place.folder / 'b'}")
    return ["compare", place.run, place.folder / "b"]


def toy_files_as_they_are(folder: Path) -> list[str]:
    return [f"data.{name}={folder / f'{name}.csv'}" for name in ("train", "validation", "test")]


def seeds_not_numbers(place: Place) -> Arguments:
    return place.train("seeds=[1,two]")


TABLE: list[tuple[Callable[[Place], Arguments], int, list[str]]] = [
    (missing_file, 66, ["trian.csv: no such file; did you mean", "train.csv?"]),
    (wrong_column, 65, ["train.csv:1 has no column txt; did you mean text?", "data.text_column=text"]),
    (ragged_row, 65, ["ragged.csv:3 has 3 fields where the header has 2 (text, label)", "Hello, world,greeting"]),
    (empty_text, 65, ["7 rows are empty (7 without text)", "empty_text.csv:3,", "empty_text.csv:11, ...", "=skip"]),
    (empty_label, 65, ["7 rows are empty (7 without label)", "empty_label.csv:2,", "empty_label.csv:6, ..."]),
    (unseen_label, 65, ["unseen.csv:3: label \"paymnet\" is not in the training data; did you mean \"payment\"?"]),
    (latin_1, 65, ["latin.csv:3: byte 0xE9 at offset 29 is not utf-8", "data.encoding=latin-1"]),
    (one_class, 65, ["one.csv has one label only, \"payment\""]),
    (empty_file, 65, ["nothing.csv is empty"]),
    (header_only, 65, ["header.csv has column names but no rows"]),
    (no_training_data, 2, ["give data.train=FILE"]),
    (leaked_rows, 65, ["24 test texts also in train (100.0 %), e.g.", "leaked.csv:2", "data.on_leak=warn"]),
    (model_without_tokenizer, 65, ["tokenizer files are missing", "save_pretrained the tokenizer"]),
    (model_missing, 66, ["no such folder"]),
    (folder_without_model, 66, ["bare: the folder has no config.json"]),
    (folder_without_weights, 65, ["spoilt", "model.safetensors"]),
    (hub_name, 69, ["HF_HUB_OFFLINE", "model=PATH", "model=mini-mbert"]),
    (hub_data, 69, ["HF_HUB_OFFLINE=1", "data.train=FILE.csv"]),
    (output_not_empty, 73, ["full is not empty", "--resume", "--overwrite"]),
    (output_is_a_file, 73, ["is a file; give another folder"]),
    (too_long_for_the_model, 2, ["max_length=128 is more than the 64 tokens", "max_length=64", "data.on_long=window"]),
    (long_text_refused, 65, ["train.csv:2 has ", "more than max_length=8", "data.on_long=truncate or window"]),
    (unknown_tokens, 65, ["% of the tokens are unknown to the tokenizer"]),
    (tokenizer_larger_than_model, 65, ["entries, the model 50", "do not belong together"]),
    (truncated_weights, 65, ["the weights are damaged", "copy them again"]),
    (pickled_weights, 77, ["refusing a .bin file that contains code", "safetensors"]),
    (own_code, 77, ["refusing it: its files ask to run their own code"]),
    (unknown_architecture, 65, ["cannot be loaded", "berd"]),
    (unknown_score, 2, ["metric_for_best_model=macro-f1", "did you mean macro_f1?", "known: accuracy, macro_f1,"]),
    (wrong_value, 2, ["max_length=many: max_length cannot be", "expected int"]),
    (unknown_setting, 2, ["unknown setting learning_rat; did you mean learning_rate?"]),
    (unknown_recipe, 2, ["no recipe bert_clasification; did you mean bert_classification?"]),
    (no_recipe, 2, ["which recipe?", "bert_pretraining, gpt2_generation, gpt2_pretraining, mbert_crosslingual"]),
    (config_missing, 66, ["no.yaml: no such file"]),
    (no_such_preset, 66, ["--config small: no such file or preset"]),
    (config_with_a_fault, 2, ["bad.yaml:3: seed is given twice"]),
    (resume_with_another_setting, 2, ["max_length: 32 -> 30", "seed: 1 -> 2"]),
    (resume_with_other_data, 2, ["the data has changed since the run began", "train.csv"]),
    (compare_other_rows, 65, ["only one of the two systems has a prediction for id", "the same file"]),
    (compare_one, 2, ["give two runs or more"]),
    (compare_same, 2, ["a run is given twice"]),
    (compare_unfinished, 66, ["half has no results.json", "--resume"]),
    (evaluate_nothing, 66, ["is neither a run nor a model folder"]),
    (evaluate_absent, 66, ["no such folder"]),
    (evaluate_without_data, 2, ["missing option '--data'", "finetune evaluate --help"]),
    (evaluate_unfinished, 66, ["half has no model/", "--resume"]),
    (evaluate_unseen_label, 65, ["x.csv:2: label \"refund\" is not in the training data"]),
    (evaluate_without_label_column, 65, ["x.csv:1 has no column label"]),
    (predict_without_lines, 65, ["stdin:1 is empty"]),
    (predict_absent_file, 66, ["no.csv: no such file"]),
    (predict_into_no_folder, 74, ["there is no folder"]),
    (predict_with_spoilt_baseline, 65, ["damaged", "train the baseline again"]),
    (check_nothing, 2, ["nothing to check; give data.train=FILE"]),
    (copy_over_a_file, 73, ["mine.py exists"]),
    (copy_into_no_folder, 74, ["No such file or directory"]),
    (show_unknown, 2, ["no recipe tfidf", "finetune recipes list"]),
    (unknown_command, 2, ["no such command 'trian'", "train"]),
    (unknown_option, 2, ["no such option: --overwrit", "--overwrite"]),
    (seed_twice, 2, ["seeds=[1, 1]: a seed is given twice"]),
    (seed_below_zero, 2, ["seed=-1: seed cannot be -1"]),
    (no_updates, 2, ["max_steps=0: train.max_steps cannot be 0"]),
    (resume_without_folder, 2, ["--resume: which run? give output_dir=RUN"]),
    (resume_as_another_recipe, 2, ["began with the recipe tfidf_baseline, not bert_classification"]),
    (frozen_beyond_the_top, 2, ["frozen_layers=2: the model has 1 layers; give 1 at most"]),
    (fp16_on_a_cpu, 2, ["mixed_precision=fp16 needs a GPU"]),
    (model_with_a_space, 66, ["model=my model: no such folder"]),
    (hub_name_with_a_dot, 69, ["bge-small-en-v1.5 is not on this machine"]),
    (predict_with_no_head, 65, ["not a classifier; train one"]),
    (predict_a_row_without_text, 65, ["1 row is empty", "x.csv:3"]),
    (predict_column_that_is_not_there, 65, ["x.csv:1 has no column second"]),
    (leaks_of_a_model_folder, 2, ["does not name a training file"]),
    (compare_other_texts, 65, ["have different texts for id", "score both on one file"]),
    (seeds_not_numbers, 2, ["seeds=[1,two]: seeds cannot be", "expected [int] | null"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """Return a finished run of each recipe on the same rows."""
    folder = tmp_path_factory.mktemp("finished")
    with private_cache(folder):
        run = train_toy(folder, tiny_model)
        done("baseline", *toy_files(folder), f"output_dir={folder / 'tfidf'}")
    return run, folder / "tfidf"


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, finished: tuple[Path, Path]) -> Place:
    """Return the place of one case."""
    toy_files(tmp_path)
    return Place(tmp_path, tiny_model, *finished)


def assert_error(outcome: Outcome | subprocess.CompletedProcess[str], code: int, mentions: list[str]) -> str:
    """Check code and form of an error and return its lines."""
    given, err = (outcome.code, outcome.err) if isinstance(outcome, Outcome) else (outcome.returncode, outcome.stderr)
    lines = err.splitlines()
    starts = [number for number, text in enumerate(lines) if text.startswith("error: ")]
    assert len(starts) == 1, err
    message = lines[starts[0] :]
    assert 1 <= len(message) <= 3, err
    assert "Traceback" not in err
    assert given == code, err
    text = "\n".join(message)
    for part in mentions:
        assert part in text, text
    return text


@pytest.mark.parametrize(("spoil", "code", "mentions"), TABLE, ids=[case[0].__name__ for case in TABLE])
def test_a_wrong_input_is_named_with_its_remedy_and_nothing_is_written(
    place: Place, spoil: Callable[[Place], Arguments], code: int, mentions: list[str]
) -> None:
    arguments = spoil(place)
    before, runs = tree(place.folder), tree(place.run.parent)
    outcome = call(*arguments)
    assert_error(outcome, code, mentions)
    assert outcome.out == ""
    assert {name: digest for name, digest in tree(place.folder).items() if not name.endswith("/.lock")} == before
    assert tree(place.run.parent) == runs
    assert not (place.folder / "marker").exists()


def test_a_pickle_with_a_payload_would_have_fired_when_loaded(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "marker"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def seconds_of_imports() -> float:
    """Return how long a process takes that only imports what every command does."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import finetune.commands.training, recipes.bert_classification"], check=True)
    return time.monotonic() - started


@pytest.mark.parametrize("offline", ["1", None])
def test_a_hub_name_without_a_network_is_answered_within_five_seconds(
    place: Place, seconds_of_imports: float, offline: str | None
) -> None:
    surroundings = {"HF_HUB_OFFLINE": offline, "HF_DATASETS_OFFLINE": offline, "HF_ENDPOINT": CLOSED}
    started = time.monotonic()
    outcome = spawn(*hub_name(place), environment=surroundings)
    seconds = time.monotonic() - started - seconds_of_imports
    text = assert_error(outcome, 69, ["is not on this machine and the Hub cannot be reached", "model=PATH"])
    assert ("HF_HUB_OFFLINE" in text) == (offline is not None)
    assert seconds < 5
    assert not (place.folder / "new").exists()


def test_a_folder_that_another_process_holds_is_left_alone(place: Place) -> None:
    folder = place.folder / "held"
    folder.mkdir()
    taking = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    holding = f"{taking}; print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(folder / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        note = {"pid": holder.pid, "host": "here", "since": "2026-01-01T00:00:00+00:00"}
        (folder / ".holder.json").write_text(json.dumps(note))
        before = tree(folder)
        for extra in ([], ["--resume"], ["--overwrite"]):
            outcome = call(*place.train(f"output_dir={folder}"), *extra)
            assert_error(outcome, 73, [f"in use: locked by pid {holder.pid} on here since 2026-01-01"])
            assert tree(folder) == before
        holder.communicate("end\n")
    done(*place.train(f"output_dir={folder}"))


def test_without_a_whole_checkpoint_resume_stops_and_touches_no_result(place: Place) -> None:
    run = place.change_run("again")
    for path in (run / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    before = {name: tree(run / name) for name in ("checkpoints", "model", "predictions")}
    outcome = call("train", "--config", run / "config.yaml", f"output_dir={run}", "--resume")
    assert_error(outcome, 74, ["no checkpoint in", "model.safetensors has changed since it was written"])
    assert {name: tree(run / name) for name in before} == before


@pytest.mark.parametrize("clipping", ["1.0", "0"])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_update_and_rows(place: Place, clipping: str) -> None:
    settings = ["train.learning_rate=1e20", f"train.max_grad_norm={clipping}", "train.warmup_ratio=0"]
    outcome = call(*place.train(*settings))
    assert_error(outcome, 70, ["is not finite", "at update 2 (", "train.csv:", "learning_rate than 1e+20"])
    run = place.folder / "new"
    assert not (run / "model").exists()
    assert not (run / "results.json").exists()
    last = read_jsonl(run / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert len(last["examples"]) == 8
    assert all(Path(where.rpartition(":")[0]).name == "train.csv" for where in last["examples"])


def test_a_checkpoint_in_fp16_is_trained_in_float32(place: Place) -> None:
    folder = place.model()
    tensors = load_file(folder / "model.safetensors")
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    done(*place.train(model=folder))
    stored = load_file(place.folder / "new" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in stored.values())
    losses = [line["loss"] for line in read_jsonl(place.folder / "new" / "metrics.jsonl") if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("<script>alert(1)</script>.csv", "text,label\nmy card,payment\nmy card,\n"),
        ("a b.csv", "text,label\nmy card,payment\nmy card,\n"),
    ],
)
def test_odd_file_names_are_told_as_they_are(place: Place, name: str, content: str) -> None:
    folder = place.folder / "odd"
    folder.mkdir()
    path = folder / name.replace("/", "_")
    path.write_text(content)
    assert_error(call(*place.train(f"data.train={path}")), 65, [f"{path.name}:3"])


def test_a_bug_is_one_line_with_a_place_for_the_traceback(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from finetune.commands import machine

    def broken() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(machine, "doctor", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = assert_error(call("doctor"), 1, ["a bug in finetune: ZeroDivisionError: division by zero"])
    log = Path(text.rsplit(" ", 1)[-1])
    assert "Traceback" in log.read_text()
