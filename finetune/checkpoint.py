"""Checkpoints that are whole or absent: written aside, hashed, fsynced, renamed; safetensors and JSON, never pickle."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from finetune import processes
from finetune.errors import Exit, UserError
from finetune.run import disk_errors, read_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint on disk."""

    folder: Path
    step: int

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one of its files (`model`, `optimizer`), whole where processes wrote parts of them."""
        if not self._is_parted(name):
            return dict(load_file(self.folder / f"{name}.safetensors"))
        from torch.distributed import checkpoint as parted

        reader = self._reader(name)
        stored = reader.read_metadata().state_dict_metadata
        whole = {key: torch.empty(found.size, dtype=found.properties.dtype) for key, found in stored.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that one process alone reads
            parted.load(whole, storage_reader=reader, no_dist=True)
        return whole

    def shapes(self, name: str) -> dict[str, torch.Size]:
        """Return the shapes of the tensors of one of its files."""
        if self._is_parted(name):
            return {key: found.size for key, found in self._reader(name).read_metadata().state_dict_metadata.items()}
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            names: list[str] = file.keys()
            return {key: torch.Size(file.get_slice(key).get_shape()) for key in names}

    def read_parts(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Fill parted tensors from one of its files, whoever wrote it; every process must call this."""
        from torch.distributed import checkpoint as parted

        parted.load(tensors, storage_reader=self._reader(name))

    def _is_parted(self, name: str) -> bool:
        return (self.folder / name).is_dir()

    def _reader(self, name: str) -> Any:
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        # It reads all files of a folder; names in `model` and `optimizer` differ.
        return HuggingFaceStorageReader(str(self.folder / name if self._is_parted(name) else self.folder))

    def state(self) -> dict[str, Any]:
        """Return the numbers saved beside the tensors."""
        return dict(read_json(self.folder / "state.json"))


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write `step-NNNNNN` below `folder` so that a kill at any moment leaves it whole or absent.

    Raises UserError (exit 74) where the disk is full; earlier checkpoints stay as they were.
    """
    temporary = _begin(folder, step)
    with _whole_or_absent(temporary):
        for name, content in tensors.items():
            save_file({key: value.contiguous() for key, value in content.items()}, temporary / f"{name}.safetensors")
        _seal(temporary, state)
    return Checkpoint(_final(temporary), step)


def save_parts(
    folder: Path, step: int, tensors: Mapping[str, dict[str, torch.Tensor]], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint as `save` does, of parted tensors, each process its parts; every process must call this.

    PyTorch's distributed checkpoint writes them, as safetensors whose headers say where a part belongs.
    """
    from torch.distributed import checkpoint as parted
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.api import CheckpointException

    temporary = processes.by_main(lambda: _begin(folder, step))
    with _whole_or_absent(temporary):
        for name, content in tensors.items():
            writer = HuggingFaceStorageWriter(str(temporary / name), save_distributed=True)
            try:
                parted.save(content, storage_writer=writer)
            except CheckpointException as error:  # of any process; told in all
                raise next(iter(error.failures.values()))[0] from None
        processes.by_main(lambda: _seal(temporary, state))


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


def _begin(folder: Path, step: int) -> Path:
    """Make the folder in which a checkpoint is written before it has its name."""
    temporary = folder / f".tmp-step-{step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    with disk_errors(folder if folder.exists() else folder.parent):
        temporary.mkdir(parents=True)
    return temporary


def _final(temporary: Path) -> Path:
    return temporary.with_name(temporary.name.removeprefix(".tmp-"))


@contextmanager
def _whole_or_absent(temporary: Path) -> Iterator[None]:
    """Take away what was written where the block fails."""
    try:
        with disk_errors(temporary.parent):
            yield
    except (UserError, SafetensorError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write numbers and hashes beside the tensors, wait for the disk, and give the folder its name."""
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"sha256": hashes}, indent=1), encoding="utf-8")
    for path in [*paths, manifest]:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    for place in [*(path for path in folder.iterdir() if path.is_dir()), folder]:
        _sync_folder(place)
    final = _final(folder)
    if final.exists():  # a damaged one of the same step that was skipped on resume
        shutil.rmtree(final)
    folder.rename(final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
