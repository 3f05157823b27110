"""Runs a command of the program inside the test's own process: a new process costs six seconds of imports."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import toy_rows

from finetune import cli

ROOT = Path(cli.__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return the one JSON document on stdout."""
        return json.loads(self.out)


def call(*arguments: object, stdin: str = "") -> Outcome:
    """Run `finetune ARGUMENTS` in this process and return how it ended."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["finetune", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as left:
            return Outcome(int(left.code or 0), out.getvalue(), err.getvalue())


def done(*arguments: object, stdin: str = "") -> Outcome:
    """Run a command that must succeed."""
    outcome = call(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome.err
    return outcome


def spawn(
    *arguments: object, environment: Mapping[str, str | None] | None = None, folder: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `python -m finetune ARGUMENTS` as a process of its own; a variable that is None is taken away."""
    variables: dict[str, str | None] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    variables |= environment or {}
    return subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, arguments)],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


FAST = (
    "max_length=32",
    "train.learning_rate=3e-3",
    "train.num_train_epochs=2",
    "train.per_device_train_batch_size=8",
    "train.mixed_precision=no",
)


def write_csv(path: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = ("id", "text", "label")) -> Path:
    """Write rows under a header and return the path."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def toy_files(folder: Path) -> list[str]:
    """Write train, validation and test rows into a folder and return them as settings."""
    sizes = {"train": (48, 0), "validation": (24, 1), "test": (24, 2)}
    return [
        f"data.{name}={write_csv(folder / f'{name}.csv', toy_rows(rows, seed))}" for name, (rows, seed) in sizes.items()
    ]


def train_toy(folder: Path, model: Path, *settings: object, output: str = "run") -> Path:
    """Train the tiny model on toy rows of a new or known folder and return the run folder."""
    files = toy_files(folder)
    done("train", "bert_classification", *files, f"model={model}", f"output_dir={folder / output}", *FAST, *settings)
    return folder / output


def generated_files(folder: Path, task: str, *options: str, train: int) -> list[str]:
    """Write pairs of a small task by data/dates/generate.py into a folder and return them as settings."""
    sizes = {"train": (train, 1), "validation": (100, 2), "test": (200, 3)}
    for name, (rows, seed) in sizes.items():
        script = ROOT / "data" / "dates" / "generate.py"
        place = ["--output", str(folder / f"{name}.jsonl")]
        argv = [str(script), task, "--rows", str(rows), "--seed", str(seed), *place, *options]
        with mock.patch.object(sys, "argv", argv):
            runpy.run_path(str(script), run_name="__main__")
    return [f"data.{name}={folder / f'{name}.jsonl'}" for name in sizes]


@contextlib.contextmanager
def private_cache(folder: Path) -> Iterator[None]:
    """Keep a fixture of a module, which is made before the test's own surroundings, out of the person's cache."""
    with mock.patch.dict(os.environ, {"FINETUNE_CACHE": str(folder / "cache")}):
        yield


def sections_of(run: Path) -> list[str]:
    """Return the names of the sections of a run's page."""
    return re.findall(r'<section id="([^"]+)">', (run / "report.html").read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """Return every path below a folder with its content's digest."""
    return {
        str(path.relative_to(folder)): sha256(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
