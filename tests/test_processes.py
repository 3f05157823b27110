"""Several processes: the same updates as one, the same scores, one voice, and one failure that ends all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pretexts
import pytest
import tiny_seq2seq as tiny
import torch
import updates
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from calling import ROOT, call, done, spawn, toy_files, write_csv
from conftest import toy_rows
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from finetune import checkpoint, launch, processes
from finetune.errors import Exit

Metrics = list[dict[str, Any]]


def torchrun(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a script or a module in two processes by torch's own launcher."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def metrics(folder: Path) -> Metrics:
    """Return metrics.jsonl without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clocks = {"items_per_second", "seconds"}
    return [{name: value for name, value in json.loads(line).items() if name not in clocks} for line in lines]


def assert_same_updates(one: Path, other: Path) -> None:
    """Compare two runs in losses, rates and norms of every update, validation, and the last and the best weights."""
    first, second = metrics(one), metrics(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert {name: a[name] for name in ("step", "epoch")} == {name: b[name] for name in ("step", "epoch")}
        assert a.get("learning_rate") == b.get("learning_rate")
        for name in ("loss", "grad_norm"):
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=1e-9)
        assert a.get("validation", {}) == pytest.approx(b.get("validation", {}), rel=1e-9)
    last = [checkpoint.newest(folder / "checkpoints")[0] for folder in (one, other)]
    counted = [[found.state()["progress"][name] for name in ("items", "tokens")] for found in last if found is not None]
    assert counted[0] == counted[1]
    assert_same_weights(*(found.tensors("model") for found in last if found is not None))
    assert_same_weights(*(load_file(folder / updates.ENDED) for folder in (one, other)))


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare two models by their tensors."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor.numpy(), other[name].numpy(), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have made the updates and scores of every recipe's model."""
    folder = tmp_path_factory.mktemp("together")
    with updates.in_float64():
        updates.train("classification", folder / "whole", stop_in=4, per_device_train_batch_size=8)
    ended = torchrun(ROOT / "tests" / "updates.py", folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("kind", updates.KINDS)
def test_one_process_accumulation_and_two_processes_make_the_same_updates(
    together: Path, kind: str, tmp_path: Path
) -> None:
    with updates.in_float64():
        updates.train(kind, tmp_path / "alone", per_device_train_batch_size=8)
        updates.train(
            kind, tmp_path / "accumulated", per_device_train_batch_size=2, gradient_accumulation_steps=4
        )  # fmt: skip
        updates.train(kind, tmp_path / "recomputed", per_device_train_batch_size=8, gradient_checkpointing=True)
    for other in (tmp_path / "accumulated", tmp_path / "recomputed", together / kind, together / "sharded" / kind):
        assert_same_updates(tmp_path / "alone", other)
    assert not (together / kind / "checkpoints" / "step-000006" / "model").exists()
    parts = together / "sharded" / kind / "checkpoints" / "step-000006" / "model"
    assert len(list(parts.iterdir())) == 2


def test_a_sharded_run_goes_on_in_any_number_of_processes_and_a_whole_one_in_parts(
    together: Path, tmp_path: Path
) -> None:
    shutil.copytree(together / "stopped", tmp_path / "alone")
    with updates.in_float64():
        updates.train("classification", tmp_path / "alone", resume=True, per_device_train_batch_size=8)
    straight = together / "sharded" / "classification"
    for resumed in (tmp_path / "alone", together / "resumed", together / "whole"):
        assert_same_updates(straight, resumed)
    assert metrics(straight) == metrics(together / "resumed")
    ends = [checkpoint.Checkpoint(run / "checkpoints" / "step-000006", 6) for run in (straight, together / "resumed")]
    for name in ("model", "optimizer"):
        first, second = (end.tensors(name) for end in ends)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_with_fewer_rows_than_micro_batches_the_processes_of_a_sharded_run_still_meet(
    together: Path, tmp_path: Path
) -> None:
    with updates.in_float64():
        updates.train("language_model", tmp_path / "alone", per_device_train_batch_size=14)
    assert_same_updates(tmp_path / "alone", together / "recomputed")


def test_weights_in_parts_are_exported_as_one_file(together: Path, tmp_path: Path) -> None:
    with updates.in_float64():
        updates.train("classification", tmp_path / "alone", stop_in=4, per_device_train_batch_size=8)
        wanted = checkpoint.Checkpoint(tmp_path / "alone" / "checkpoints" / "step-000004", 4).tensors("model")
        language_model = updates.begun("language_model")[0].network
    output = tmp_path / "new" / "model.safetensors"
    exporting = ("export", together / "stopped", "--output", output, "--checkpoint")
    done(*exporting, "last")
    assert_same_weights(load_file(output), wanted)
    assert call(*exporting, "last").code == Exit.OUTPUT_TAKEN
    output.unlink()
    refused = call(*exporting, "5")
    assert refused.code == Exit.NO_INPUT
    assert "--checkpoint 5: no such checkpoint" in refused.err
    assert "(there: 3, 4)" in refused.err
    assert call(*exporting, "last", "--merge").code == Exit.USAGE
    done("export", together / "recomputed", "--output", output, "--checkpoint", 4, "--json")
    assert language_model.load_state_dict(load_file(output), strict=False).missing_keys == ["lm_head.weight"]  # tied


def test_two_processes_score_what_one_does_in_order_and_without_doubles(together: Path) -> None:
    with updates.in_float64():
        alone = json.loads(json.dumps(updates.scores()))
    for rank in (0, 1):
        found = json.loads((together / f"scores-{rank}.json").read_text())
        assert found.pop("said") == 0
        part, whole, parameters = found.pop("held")
        assert whole == 4 * 8 * parameters  # weight, gradient and two moments, in float64
        assert part == pytest.approx(whole / 2, rel=0.02)
        assert found == alone


TINY = ("max_length=32", "train.learning_rate=3e-3", "train.mixed_precision=no", "train.use_cpu=true", "baseline=none")


def still(tiny_model: Path, folder: Path) -> Path:
    """Return a copy of the tiny model without dropout."""
    shutil.copytree(tiny_model, folder)
    stored = json.loads((folder / "config.json").read_text())
    chances = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    (folder / "config.json").write_text(json.dumps(stored | chances))
    return folder


def test_two_processes_end_with_the_run_of_one(tiny_model: Path, tmp_path: Path) -> None:
    model = still(tiny_model, tmp_path / "model")
    asked = ("train", "bert_classification", f"model={model}", *toy_files(tmp_path), *TINY, "train.num_train_epochs=2")
    one, two = (f"output_dir={tmp_path / name}" for name in ("one", "two"))
    done(*asked, "train.per_device_train_batch_size=8", one)
    ended = spawn(*asked, "train.per_device_train_batch_size=4", two, "--processes", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["diagnostics"]["rows"] == {"train": 48, "validation": 24, "test": 24}
    assert ended.stderr.count("data      48 train") == 1
    assert "12 updates of 8 texts" in ended.stderr
    written = {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert written == {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-4)  # in float32, of 12 updates of Adam
        assert a.get("learning_rate") == b.get("learning_rate")
    predicted = [(tmp_path / name / "predictions" / "test.jsonl").read_text().splitlines() for name in ("one", "two")]
    ids = [[json.loads(line)["id"] for line in lines] for lines in predicted]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 24
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2


def accelerated(count: int) -> dict[str, str]:
    """Return what `accelerate launch --cpu --num_processes COUNT -m finetune` gives the one process that it starts."""
    options = ["--cpu", "--num_processes", str(count), "-m", "finetune"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    command, found = prepare_simple_launcher_cmd_env(arguments)
    assert command == [sys.executable, "-m", "finetune"]
    return dict(found)


def test_a_launch_with_fewer_processes_or_other_plans_than_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ("train", "bert_classification", f"output_dir={tmp_path / 'run'}")
    with mock.patch.dict(os.environ, accelerated(1)):
        assert not launch.is_wanted(None, 0)
    with mock.patch.dict(os.environ, accelerated(2)):
        found = call(*asked)
    assert found.code == Exit.USAGE
    assert "accelerate launch was asked for several processes and started one" in found.err
    assert "finetune train ... --processes N" in found.err
    monkeypatch.setenv("WORLD_SIZE", "1")
    found = call(*asked, "--processes", 2)
    assert found.code == Exit.USAGE
    assert "--processes 2, but the launcher started 1" in found.err
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    found = call(*asked)
    assert found.code == Exit.USAGE
    assert "give sharding=fsdp" in found.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "code", "told"),
    [
        ((-signal.SIGTERM, Exit.LOST, Exit.TERMINATED), Exit.TERMINATED, "process 2 lost the others"),
        ((Exit.LOST, Exit.DIVERGED, Exit.TERMINATED), Exit.DIVERGED, "process 1 lost the others"),
        ((Exit.LOST, Exit.TERMINATED, -signal.SIGKILL), Exit.LOST, "process 2 was killed (SIGKILL)"),
        ((-signal.SIGTERM, Exit.LOST), Exit.LOST, "process 1 lost the others"),
    ],
)
def test_of_several_ends_the_one_that_is_the_reason_is_told(
    codes: tuple[int, ...], code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ChildFailedError("", {rank: ProcessFailure(rank, 1, int(one), "") for rank, one in enumerate(codes)})

    def failing(*given: object) -> Any:
        return mock.Mock(side_effect=error)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", failing)
    assert launch._launch_once("name", len(codes), ()) == (code, told)


def test_other_commands_are_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = call("doctor")
    assert found.code == Exit.USAGE
    assert "several processes can only train" in found.err
    monkeypatch.setenv("RANK", "1")
    assert call("doctor").err == ""


def test_a_recipe_without_a_loop_is_refused_in_several_processes(tmp_path: Path) -> None:
    with mock.patch.object(processes, "world", return_value=2):
        found = call("train", "tfidf_baseline", *toy_files(tmp_path), f"output_dir={tmp_path / 'run'}")
    assert found.code == Exit.USAGE
    assert "tfidf_baseline works in one process" in found.err


def test_what_is_started_anew_needs_a_folder_to_go_on_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    found = call("train", "bert_classification")
    assert found.code == Exit.USAGE
    assert "--max-restarts: give output_dir=RUN" in found.err
    found = call("train", "bert_classification", "--max-restarts", 2)
    assert found.code == Exit.USAGE
    assert "--max-restarts 2 is for the launcher that started this" in found.err


def children(of: int) -> dict[str, int]:
    """Return the processes that a launcher has started, rank -> pid."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().decode().split("\0") if parent == of else []
        except OSError:  # it has ended
            continue
        ranks = [value.removeprefix("RANK=") for value in environment if value.startswith("RANK=")]
        found |= dict.fromkeys(ranks, int(folder.name))
    return found


class Launched:
    """A training in several processes that is watched, and disturbed."""

    def __init__(self, folder: Path, *arguments: object, processes: int = 2) -> None:
        self.folder, self.errors = folder, folder.with_suffix(".err")
        command = (*arguments, f"output_dir={folder}", "--processes", processes)
        with self.errors.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune", *map(str, command)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL, stderr=stream,
            )  # fmt: skip

    def send(self, rank: str, number: signal.Signals, after: int) -> None:
        """Send a signal to one of the processes once there is a checkpoint of `after` updates or more."""
        limit = time.monotonic() + 200
        while max(checkpoint.saved(self.folder / "checkpoints"), default=0) < after:
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(children(self.process.pid)[rank], number)

    def end(self) -> tuple[int, str]:
        """Return exit code and stderr."""
        try:
            return self.process.wait(timeout=200), self.errors.read_text()
        finally:
            self.process.kill()


@pytest.mark.reliability
def test_a_killed_process_is_replaced_a_signal_to_one_stops_all_and_one_process_goes_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    model, folder = still(tiny_model, tmp_path / "model"), tmp_path / "run"
    loop = ("train.num_train_epochs=60", "train.save_steps=5", "train.logging_steps=1")
    asked = ("train", "bert_classification", f"model={model}", *toy_files(tmp_path), *TINY, *loop)
    run = Launched(folder, *asked, "train.per_device_train_batch_size=4", "--max-restarts", 1)
    run.send("1", signal.SIGKILL, after=10)
    while "from update" not in run.errors.read_text() and run.process.poll() is None:
        time.sleep(0.1)
    made = max(checkpoint.saved(folder / "checkpoints"))
    run.send("1", signal.SIGTERM, after=made + 1)  # to one that does not write
    code, errors = run.end()
    assert code == Exit.TERMINATED, errors
    assert errors.count("restart   1 of 1: process 1 was killed (SIGKILL)") == 1
    assert errors.count("stopped at update ") == 1
    assert "Traceback" not in errors
    stopped = int(errors.rpartition("stopped at update ")[2].split(";")[0])
    assert max(checkpoint.saved(folder / "checkpoints")) == stopped

    refused = call(*asked, "train.per_device_train_batch_size=4", f"output_dir={folder}", "--resume")
    assert refused.code == Exit.USAGE
    assert "an update of the run is 2 processes x 1 x 4 examples, and would be 1 process x 1 x 4" in refused.err
    done(*asked, "train.per_device_train_batch_size=8", f"output_dir={folder}", "--resume")
    steps = [record["step"] for record in metrics(folder) if "loss" in record]
    assert steps == list(range(1, 361))


@pytest.mark.reliability
def test_a_sharded_run_outlives_kills_and_goes_on_in_fewer_processes(tiny_model: Path, tmp_path: Path) -> None:
    model, folder = still(tiny_model, tmp_path / "model"), tmp_path / "run"
    loop = ("train.num_train_epochs=20", "train.save_steps=5", "train.logging_steps=1", "sharding=fsdp")
    asked = ("train", "bert_classification", f"model={model}", *toy_files(tmp_path), *TINY, *loop)
    run = Launched(folder, *asked, "train.per_device_train_batch_size=4", "--max-restarts", 1, processes=3)
    run.send("1", signal.SIGKILL, after=10)
    while "from update" not in run.errors.read_text() and run.process.poll() is None:
        time.sleep(0.1)
    run.send("2", signal.SIGTERM, after=max(checkpoint.saved(folder / "checkpoints")) + 1)
    code, errors = run.end()
    assert code == Exit.TERMINATED, errors
    assert errors.count("restart   1 of 1: process 1 was killed (SIGKILL)") == 1
    size = "train.per_device_train_batch_size=6"
    ended = spawn(*asked, size, f"output_dir={folder}", "--processes", 2, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert [record["step"] for record in metrics(folder) if "loss" in record] == list(range(1, 81))
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (("data.train=nowhere.csv",), Exit.NO_INPUT, "error: nowhere.csv: no such file"),
        (("train.learning_rate=1e30",), Exit.DIVERGED, "not finite"),
    ],
)
def test_an_error_ends_all_processes_and_is_told_once(
    tiny_model: Path, tmp_path: Path, settings: tuple[str, ...], code: Exit, told: str
) -> None:
    asked = ("train", "bert_classification", f"model={tiny_model}", *toy_files(tmp_path), *TINY, *settings)
    ended = spawn(*asked, f"output_dir={tmp_path / 'run'}", "--processes", 2, "--max-restarts", 2)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.count(told) == 1
    assert ended.stderr.count("error:") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.reliability
def test_torchrun_starts_the_same_program(tiny_model: Path, tmp_path: Path) -> None:
    asked = ("train", "bert_classification", f"model={tiny_model}", *toy_files(tmp_path), *TINY)
    ended = torchrun("-m", "finetune", *asked, f"output_dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("verdict") <= 1
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2


def commands_of_each_recipe(folder: Path, bert: Path, gpt2: Path) -> dict[str, list[str]]:
    """Write data for every recipe and return a command of each that trains on it, by the name of its run."""
    loop = ("train.max_steps=3", "train.learning_rate=1e-3", "train.mixed_precision=no", "train.use_cpu=true")
    brief = (*loop, "train.per_device_train_batch_size=4")
    reading = "max_length=32"
    labels, pairs = toy_files(folder), tiny.pair_files(folder)
    for language in ("en", "it"):
        pretexts.write_mono(folder, language, 40)
        for name, (rows, seed) in {"train": (24, 0), "validation": (12, 1), "test": (11, 2)}.items():
            write_csv(folder / f"{language}.{name}.csv", toy_rows(rows, seed))
    pretexts.write_pairs(folder, "it", 60)
    languages = [f"data.{name}={folder}/{{language}}.{name}.csv" for name in ("train", "validation", "test")]
    parallel = f"data.parallel={folder}/parallel.en-{{language}}.jsonl.gz"
    texts = [f"data.train={folder}/mono.en.txt", f"data.test={folder}/mono.en.txt"]
    short = ("samples=3", "generation.max_new_tokens=4", "max_length=16")
    width = ("network.hidden_size=32", "network.num_hidden_layers=1", "network.num_attention_heads=2")
    asked: dict[str, list[str]] = {
        "classifier": [
            "bert_classification", f"model={bert}", *labels, *brief, reading, "seeds=[1,2]", "label_budget=[12,24]",
        ],
        "languages": [
            "mbert_crosslingual", f"model={bert}", *languages, "train_languages=[en]", "test_languages=[en,it]",
            "oracle=true", *brief, reading,
        ],
        "pairs": [
            "seq2seq", *pairs, "vocabulary.kind=word", *brief, "network.hidden_size=16", "network.intermediate_size=16",
        ],
        "masks": [
            "bert_pretraining", f"data.train={folder}/mono.{{language}}.txt", parallel, "train_languages=[en,it]",
            "objective=mlm+distil", f"teacher={bert}", f"model={bert}", reading, *loop,
        ],
        "letters": ["gpt2_pretraining", *texts, *width, "vocabulary.vocab_size=280", *short, *loop],
        "stories": ["gpt2_generation", f"model={gpt2}", *texts, *short, *brief],
        "summaries": [
            "summarization", f"model={gpt2}", *pairs, f"bertscore_model={bert}", "generation.max_new_tokens=4",
            "max_source_length=40", "max_target_length=7", *brief,
        ],
    }  # fmt: skip
    return {name: ["train", *command, f"output_dir={folder / 'runs' / name}"] for name, command in asked.items()}


@pytest.mark.reliability
@pytest.mark.parametrize("memory", [(), ("sharding=fsdp", "gradient_checkpointing=true")], ids=["whole", "parts"])
def test_every_recipe_trains_in_two_processes_and_one_of_them_speaks_and_writes(
    tiny_model: Path, tiny_gpt2: Path, tmp_path: Path, memory: tuple[str, ...]
) -> None:
    commands = commands_of_each_recipe(tmp_path, tiny_model, tiny_gpt2)
    commands = {name: [*command, *memory] for name, command in commands.items()}
    (tmp_path / "commands.json").write_text(json.dumps(list(commands.values())))
    ended = torchrun(ROOT / "tests" / "each_recipe.py", tmp_path)
    assert ended.returncode == 0, ended.stderr
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in (0, 1))
    for name, one, other in zip(commands, first, second, strict=True):
        assert one["code"] == 0, one["err"] + other["err"]
        assert other == {"code": 0, "out": "", "err": ""}
        assert json.loads((tmp_path / "runs" / name / "results.json").read_text())["scores"]
    assert not list((tmp_path / "runs").rglob(".tmp-*"))
