"""The run folder: one process at a time, nothing lost, nothing of others touched, nothing left by a failed start."""

import errno
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune import run as run_module
from finetune.config import read_yaml
from finetune.errors import Exit, UserError
from finetune.run import Run, disk_errors, environment, write_atomic

ROOT = Path(__file__).resolve().parent.parent
PLACE: dict[str, Any] = {"data_sha256": {"train.csv": "abc"}}
WAYS: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}]


def started(folder: Path, **settings: Any) -> Run:
    run = Run(folder, quiet=True, **settings)
    run.start({"seed": 1}, PLACE)
    return run


@contextmanager
def refused(code: Exit, match: str) -> Iterator[None]:
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert caught.value.code == code


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def child() -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Return a function that runs Python code in a process of its own, killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def hold(child: Callable[[str], "subprocess.Popen[str]"], folder: Path) -> "subprocess.Popen[str]":
    process = child(f"""
        from finetune.run import Run
        run = Run({str(folder)!r}, quiet=True)
        run.start({{"seed": 1}}, {PLACE!r})
        print("held", flush=True)
        input()
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# One process at a time


def test_a_second_run_is_refused_with_the_pid_of_the_first(tmp_path: Path, child: Any) -> None:
    first = hold(child, tmp_path / "run")
    for settings in WAYS:
        with refused(Exit.OUTPUT_TAKEN, f"locked by pid {first.pid} on .* since "):
            Run(tmp_path / "run", **settings)
    assert first.poll() is None


def test_two_runs_that_start_together_do_not_share_a_folder(tmp_path: Path, child: Any) -> None:
    late = Run(tmp_path / "run", quiet=True)
    first = hold(child, tmp_path / "run")
    with refused(Exit.OUTPUT_TAKEN, f"locked by pid {first.pid}"), late:
        late.start({"seed": 2}, PLACE)
    assert read_yaml(tmp_path / "run" / "config.yaml")["seed"][0] == 1  # the loser took nothing away


def test_the_lock_is_free_after_kill_9(tmp_path: Path, child: Any) -> None:
    process = hold(child, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with started(tmp_path / "run", resume=True) as run:
        run.updated = True
        with refused(Exit.OUTPUT_TAKEN, f"locked by pid {os.getpid()}"):
            Run(tmp_path / "run", resume=True)


def test_a_finished_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    with started(tmp_path / "run") as run:
        run.updated = True
    assert tree(tmp_path / "run") == {"config.yaml", "environment.json"}


# Whose folder it is


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with refused(Exit.OUTPUT_TAKEN, "is not empty; give another folder, --resume to go on, or --overwrite"):
        Run(tmp_path)
    assert tree(tmp_path) == {"mine.txt"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for settings in WAYS:
        with refused(Exit.OUTPUT_TAKEN, "is a file"):
            Run(tmp_path / "run", **settings)


def test_overwrite_removes_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    for name in (*run_module.OWN_NAMES, "seed-1", ".tmp-model"):
        path = tmp_path / name
        if "." in name.lstrip("."):
            path.write_text("old")
        else:
            (path / "deep").mkdir(parents=True)
            (path / "deep" / "old").write_text("old")
    outside = tmp_path / "notes"
    outside.mkdir()
    (outside / "keep.txt").write_text("mine")
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "seed-2").symlink_to(outside)
    with started(tmp_path, overwrite=True) as run:
        run.updated = True
    assert tree(tmp_path) == {"config.yaml", "environment.json", "mine.csv", "notes", "notes/keep.txt"}


def test_overwrite_with_resume_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with started(tmp_path, overwrite=True, resume=True) as run:
        run.updated = True
    assert (tmp_path / "metrics.jsonl").exists()


def test_resume_with_other_data_is_refused_by_name(tmp_path: Path) -> None:
    with started(tmp_path / "run") as run:
        run.updated = True
    again = Run(tmp_path / "run", resume=True, quiet=True)
    with refused(Exit.USAGE, "the data has changed since the run began: train.csv"), again:
        again.start({"seed": 1}, {"data_sha256": {"train.csv": "other"}})
    assert (tmp_path / "run" / "config.yaml").exists()


# Failing early leaves nothing, failing late keeps everything


def test_nothing_is_on_disk_before_start(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "run", quiet=True)
    run.say("note", "text")
    run.metric({"step": 1})
    assert tree(tmp_path) == set()


def test_a_run_that_fails_before_its_first_update_takes_its_folders_away(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), started(tmp_path / "a" / "b" / "run") as run:
        run.write_results({"a": 1 / 0})
    assert tree(tmp_path) == set()


def test_a_folder_that_was_there_before_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), started(tmp_path / "a" / "run"):
        raise RuntimeError
    assert tree(tmp_path) == {"a"}


def test_a_resumed_run_that_fails_at_once_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    with started(tmp_path / "run") as run:
        run.updated = True
    before = tree(tmp_path)
    with pytest.raises(RuntimeError), started(tmp_path / "run", resume=True):
        raise RuntimeError
    assert tree(tmp_path) == before


def test_a_run_that_fails_after_its_first_update_is_kept(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.updated = True
    with pytest.raises(ZeroDivisionError), run:
        run.write_results({"a": 1 / 0})
    assert (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / ".lock").exists()


# Writing


def test_what_was_said_before_the_start_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    run.say("early", "one\ntwo")
    run.start({}, PLACE)
    run.say("late", "three")
    written = (tmp_path / "run" / "train.log").read_text()
    assert [line.split()[-1] for line in written.splitlines()] == ["one", "two", "three"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "early     one\n          two\nlate      three\n"


def test_secrets_are_masked_wherever_text_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "aB3" * 11
    monkeypatch.setattr(sys, "argv", ["finetune", "train", f"token={secret}"])
    place = environment(1, "CPU", {})
    run = Run(tmp_path / "run", quiet=True)
    run.say("early", secret)
    run.start({}, place)
    run.say("late", f"x{secret}y")
    run.metric({"step": 1, "note": secret})
    assert place["command"] == "finetune train token=hf_***"
    for path in (tmp_path / "run").iterdir():
        assert secret.encode() not in path.read_bytes()


def test_a_number_that_is_not_finite_is_written_as_text(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.metric({"step": 1, "loss": float("nan"), "deep": [float("inf"), {"x": float("-inf")}], "fine": 0.5})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"step": 1, "loss": "nan", "deep": ["inf", {"x": "-inf"}], "fine": 0.5}


def test_rewinding_drops_later_steps_and_half_lines(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    for step in (1, 2, 3):
        run.metric({"step": step})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "lo')
    run.rewind_metrics(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    run.metric({"step": 3})
    assert path.read_text().endswith('}\n{"step": 3}\n')


def test_rewinding_survives_a_line_that_is_cut_inside_a_character(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.metric({"step": 1})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + '{"step": 2, "name": "ü'.encode()[:-1])
    run.rewind_metrics(1)
    assert path.read_text() == '{"step": 1}\n'


def test_predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    rows = [{"id": "1", "text": "a\u2028b\n\x85c"}, {"id": "2", "text": ""}]
    run.write_predictions("test", rows)
    assert run.read_predictions("test") == rows
    run.predictions_file("test").write_text('{"id": 1}\n{"id"\n')
    with refused(Exit.BAD_DATA, "test.jsonl:2 is not JSON"):
        run.read_predictions("test")
    with refused(Exit.NO_INPUT, "no predictions for other"):
        run.read_predictions("other")


def test_a_failing_save_keeps_the_old_model(tmp_path: Path) -> None:
    run = started(tmp_path / "run")

    def save(text: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            (folder / "weights").write_text(text)

        return write

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    run.save_model(save("old"))
    with refused(Exit.IO_FAILED, "disk full while writing"):
        run.save_model(fail)
    assert (run.model / "weights").read_text() == "old"
    run.save_model(save("new"))
    assert tree(run.model) == {"weights"}
    assert (run.model / "weights").read_text() == "new"


def test_weights_may_be_read_by_those_who_may_read_the_rest(tmp_path: Path) -> None:
    run = started(tmp_path / "run")

    def save(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "decoder").mkdir()
        for place in (folder, folder / "decoder"):
            save_file({"weight": torch.zeros(1)}, place / "model.safetensors")

    run.save_model(save)
    modes = {path.stat().st_mode for path in run.model.rglob("*") if path.is_file()}
    assert modes == {run.config_file.stat().st_mode}
    assert (run.model / "decoder").stat().st_mode == run.folder.stat().st_mode


def test_a_link_stays_and_a_pipe_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_failing_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "results.json"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with refused(Exit.IO_FAILED, "cannot write to .*: Input/output error"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert tree(tmp_path) == {"results.json"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_space_that_is_left(tmp_path: Path, number: int) -> None:
    message = r"disk full while writing to .*: [\d.]+ [MG]B free; make room, then repeat"
    with refused(Exit.IO_FAILED, message), disk_errors(tmp_path):
        raise OSError(number, "x")


def test_errors_that_are_not_the_disks_pass_through(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk_errors(tmp_path):
        raise KeyError("x")


def test_a_disk_that_fills_up_ends_the_run_with_74_and_keeps_what_was_there(tmp_path: Path) -> None:
    code = f"""
        import resource, sys
        from finetune.errors import UserError
        from finetune.run import Run
        run = Run({str(tmp_path / "run")!r}, quiet=True)
        run.start({{"seed": 1}}, {PLACE!r})
        run.write_results({{"a": 1}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            run.write_results({{"a": "x" * 100_000}})
        except UserError as error:
            print(error)
            sys.exit(error.code)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == Exit.IO_FAILED, ended.stderr
    assert ended.stdout.startswith(f"disk full while writing to {tmp_path / 'run'}: ")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"a": 1}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


@pytest.mark.parametrize("name", ["file/run", "file/a/b/run", "x" * 300, "a\0b"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with refused(Exit.IO_FAILED, "give another folder"):
        Run(tmp_path / name)
    assert tree(tmp_path) == {"file"}


def test_a_parent_without_write_permission_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with refused(Exit.IO_FAILED, "cannot be written to; give another folder"):
        Run(tmp_path / "a" / "run")


# Reading


def test_opening_says_what_a_folder_is_not(tmp_path: Path) -> None:
    with refused(Exit.NO_INPUT, "is neither a run nor a model folder"):
        Run.open(tmp_path)
    with refused(Exit.NO_INPUT, "no such folder"):
        Run.open(tmp_path / "absent")


def test_a_run_and_a_model_folder_are_opened_and_an_unfinished_run_has_no_results(tmp_path: Path) -> None:
    with started(tmp_path / "run") as run:
        run.updated = True
    assert Run.open(tmp_path / "run").model == tmp_path / "run" / "model"
    with refused(Exit.NO_INPUT, "the run did not end; repeat its command with --resume"):
        Run.open(tmp_path / "run").results()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert Run.open(tmp_path / "model").model == tmp_path / "model"
    with refused(Exit.NO_INPUT, "model is a model folder, not a run: it has no results"):
        Run.open(tmp_path / "model").results()


def test_the_environment_names_versions_commit_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["finetune", "train", "token=hf_abcdefghijklmnop"])
    place = environment(7, "CPU", {"f": "h"})
    assert set(place["versions"]) >= {"python", "finetune", "torch", "transformers"}
    assert (place["seed"], place["device"], place["data_sha256"]) == (7, "CPU", {"f": "h"})
    assert place["command"] == "finetune train token=hf_***"


def test_the_command_of_a_run_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "seeds=[1,2]", "data.between= a b", "output_dir=runs/it's"]
    monkeypatch.setattr("sys.argv", ["/bin/finetune", *words])
    assert shlex.split(environment(7, "CPU", {})["command"]) == ["finetune", *words]
