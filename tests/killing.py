"""Trains tiny models through the command line in a process of its own, and kills that process at a given moment."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calling import ROOT, call, sha256, toy_files
from pretexts import SMALL, write_mono, write_pairs

from finetune import checkpoint

SETTINGS = (
    "baseline=none", "train.learning_rate=3e-3", "train.num_train_epochs=12", "train.save_steps=1",
    "train.logging_steps=2", "train.per_device_train_batch_size=8", "train.mixed_precision=no", "train.use_cpu=true",
)  # fmt: skip
PAIRS = (
    "task=transduction", "data.source_column=text", "data.target_column=label", "vocabulary.kind=word",
    "network.hidden_size=16", "network.intermediate_size=32", "network.dropout=0.3", "search.beam_size=2",
)  # fmt: skip
SECONDS_TO_START = 120.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A training command on toy rows and the folder that it writes."""

    folder: Path
    recipe: tuple[str, ...]
    files: Callable[[Path], list[str]] = toy_files
    settings: tuple[str, ...] = SETTINGS

    @property
    def arguments(self) -> list[str]:
        """Return the command; repeated after a kill it goes on."""
        files = self.files(self.folder.parent)
        return ["train", *self.recipe, *files, f"output_dir={self.folder}", *self.settings, "--resume"]

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, whole or not."""
        return sorted(checkpoint.saved(self.folder / "checkpoints"))

    def finish(self) -> dict[str, Any]:
        """Go on to the end in this process; return what must not depend on any interruption."""
        outcome = call(*self.arguments)
        assert outcome.code == 0, outcome.err
        return self.outcome()

    def outcome(self) -> dict[str, Any]:
        """Return the weights' digest and everything written that no clock measured."""
        clocks = {"items_per_second", "seconds"}
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        metrics = [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]
        return {
            "model": sha256(self.folder / "model" / "model.safetensors"),
            "metrics": metrics,
            "scores": json.loads((self.folder / "results.json").read_text())["scores"],
            "predictions": sha256(self.folder / "predictions" / "test.jsonl"),
            "checkpoints": self.steps(),
        }


def classifier(folder: Path, model: Path) -> Case:
    """Return the training of a classifier."""
    return Case(folder, ("bert_classification", f"model={model}", "max_length=32"))


def encoder_decoder(folder: Path, architecture: str) -> Case:
    """Return the training of a sequence-to-sequence model that writes the label of a text."""
    return Case(folder, ("seq2seq", f"network.architecture={architecture}", *PAIRS))


def summaries(folder: Path, *family: str) -> Case:
    """Return the training of a model of any family that writes the label of a text."""
    columns = ("task=transduction", "data.source_column=text", "data.target_column=label")
    lengths = ("max_source_length=24", "max_target_length=8", "generation.max_new_tokens=8", "generation.num_beams=2")
    return Case(folder, ("summarization", *family, *columns, *lengths))


def pretraining(folder: Path) -> Case:
    """Return the pretraining of a model on text of two languages and their pairs, with updates of both kinds."""

    def files(place: Path) -> list[str]:
        for language in ("en", "it"):
            write_mono(place, language, 40)
        write_pairs(place, "it", 60)
        mono = f"{place}/mono.{{language}}.txt"
        return [f"data.train={mono}", f"data.test={mono}", f"data.parallel={place}/parallel.en-{{language}}.jsonl.gz"]

    recipe = ("bert_pretraining", "train_languages=[en,it]", "objective=mlm+tlm")
    loop = ("train.num_train_epochs=6", "train.save_steps=1", "train.logging_steps=2")
    return Case(folder, recipe, files, (*SMALL, *loop))


def language_model(folder: Path) -> Case:
    """Return the pretraining of a GPT-2 with dropout on packed documents."""

    def files(place: Path) -> list[str]:
        text = write_mono(place, "en", 40)
        return [f"data.train={text}", f"data.test={text}"]

    network = ("network.hidden_size=32", "network.num_hidden_layers=1", "network.num_attention_heads=2")
    loop = ("train.num_train_epochs=6", "train.save_steps=1", "train.logging_steps=2", "train.max_tokens_per_batch=512")
    place = ("baseline=none", "train.mixed_precision=no", "train.use_cpu=true", "max_length=32")
    words = ("vocabulary.vocab_size=280", "generation.max_new_tokens=8")
    return Case(folder, ("gpt2_pretraining",), files, (*network, *loop, *place, *words))


def start(case: Case, limits: Mapping[int, int] | None = None) -> "subprocess.Popen[str]":
    """Start the command as a process of its own, with resource limits where they are given."""

    def limit() -> None:
        for kind, value in (limits or {}).items():
            resource.setrlimit(kind, (value, value))

    return subprocess.Popen(
        [sys.executable, "-m", "finetune", *case.arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limit,
    )  # fmt: skip


def end_after(case: Case, seconds: float, number: signal.Signals = signal.SIGKILL, updates: int = 1) -> tuple[int, str]:
    """Start the command, send a signal so long after its next checkpoints, and return exit code and stderr."""
    before = max(case.steps(), default=0)
    process = start(case)
    try:
        limit = time.monotonic() + SECONDS_TO_START
        while process.poll() is None and max(case.steps(), default=0) < before + updates and time.monotonic() < limit:
            time.sleep(0.002)
        time.sleep(seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS_TO_START)
    finally:
        process.kill()
    return process.returncode, errors
