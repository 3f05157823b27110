"""Several processes: the same updates as one, the same scores, one voice, and one failure that ends all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import updates
from calling import ROOT

from finetune import checkpoint

Metrics = list[dict[str, Any]]


def torchrun(*arguments: object, processes: int = 2) -> "subprocess.CompletedProcess[str]":
    """Run a script or a module in several processes by torch's own launcher."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
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
    """Compare two runs in losses, rates and norms of every update, validation, and the last weights."""
    first, second = metrics(one), metrics(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert {name: a[name] for name in ("step", "epoch")} == {name: b[name] for name in ("step", "epoch")}
        assert a.get("learning_rate") == b.get("learning_rate")
        for name in ("loss", "grad_norm"):
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=1e-9)
        assert a.get("validation", {}) == pytest.approx(b.get("validation", {}), rel=1e-9)
    tensors = [checkpoint.newest(folder / "checkpoints")[0].tensors("model") for folder in (one, other)]  # type: ignore[union-attr]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        np.testing.assert_allclose(tensor.numpy(), tensors[1][name].numpy(), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have made the updates and scores of every recipe's model."""
    folder = tmp_path_factory.mktemp("together")
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
    assert_same_updates(tmp_path / "alone", tmp_path / "accumulated")
    assert_same_updates(tmp_path / "alone", together / kind)


def test_two_processes_score_what_one_does_in_order_and_without_doubles(together: Path) -> None:
    with updates.in_float64():
        alone = json.loads(json.dumps(updates.scores()))
    for rank in (0, 1):
        found = json.loads((together / f"scores-{rank}.json").read_text())
        assert found.pop("said") == 0
        assert found == alone
