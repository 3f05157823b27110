"""Checkpoints that are whole or absent: written aside, hashed, fsynced, renamed; safetensors and JSON, never pickle."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.errors import Exit, UserError
from finetune.run import disk_errors, read_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint on disk."""

    folder: Path
    step: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one of its files (`model`, `optimizer`)."""
        return dict(load_file(self.folder / f"{name}.safetensors"))

    def state(self) -> dict[str, Any]:
        """Return the numbers saved beside the tensors."""
        return dict(read_json(self.folder / "state.json"))


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write `step-NNNNNN` below `folder` so that a kill at any moment leaves it whole or absent.

    Raises UserError (exit 74) where the disk is full; earlier checkpoints stay as they were.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(folder if folder.exists() else folder.parent):
            temporary.mkdir(parents=True)
            _fill(temporary, tensors, state)
            if final.exists():  # a damaged one of the same step that was skipped on resume
                shutil.rmtree(final)
            temporary.rename(final)
            _sync_folder(folder)
    except (UserError, SafetensorError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Checkpoint(final, step)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint whose manifest verifies, and a warning for each newer one that does not.

    Raises UserError (exit 74) where there are checkpoints and none of them is whole; nothing is deleted then.
    """
    if not folder.is_dir():
        return None, []
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover)
    warnings: list[str] = []
    for step, path in sorted(saved(folder).items(), reverse=True):
        fault = verify(path)
        if fault is None:
            return Checkpoint(path, step), warnings
        warnings.append(f"{path.name} is damaged ({fault})")
    if warnings:
        raise UserError(Exit.IO_FAILED, f"no checkpoint in {folder} is whole: {'; '.join(warnings)}")
    return None, []


def saved(folder: Path) -> dict[int, Path]:
    """Return the folder of each step that has one, whole or damaged."""
    numbers = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return {int(number): path for path, number in numbers.items() if number.isdecimal()}


def verify(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None where every file has the size and sha256 of its manifest."""
    try:
        manifest = read_json(folder / MANIFEST)
        for name, wanted in manifest["sha256"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256(path) != wanted:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def prune(folder: Path, keep: set[int]) -> None:
    """Delete the checkpoints of other steps than `keep`; called only after a newer one is on disk."""
    for step, path in sorted(saved(folder).items()):
        if step not in keep:
            doomed = path.with_name(f".tmp-{path.name}")  # a kill in mid-delete must not leave half a checkpoint
            path.rename(doomed)
            shutil.rmtree(doomed)


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimizer's state into named tensors and plain numbers."""
    saved = optimizer.state_dict()
    tensors = {f"{index}.{name}": value for index, state in saved["state"].items() for name, value in state.items()}
    return tensors, {"param_groups": saved["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], numbers: Any) -> None:
    """Put back what `pack_optimizer` took apart."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": numbers["param_groups"]})


def _fill(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    for name, content in tensors.items():
        save_file({key: value.contiguous() for key, value in content.items()}, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
