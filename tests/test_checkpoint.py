"""Checkpoints: whole or absent after a kill at any step of the writing, and refused where a byte has changed."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune import checkpoint
from finetune.errors import Exit, UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def write(folder: Path, step: int) -> checkpoint.Checkpoint:
    tensors = {"model": {"w": torch.full((3, 2), float(step))}, "optimizer": {"0.step": torch.tensor(float(step))}}
    return checkpoint.save(folder, step, tensors, {"step": step})


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip_a_bit,
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nothing in it": lambda path: path.write_bytes(b""),
    "no file": Path.unlink,
    "other text": lambda path: path.write_text("[1, 2"),
}


def test_what_is_saved_comes_back_exactly(tmp_path: Path) -> None:
    write(tmp_path, 7)
    found, warnings = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, warnings, found.state()) == (7, [], {"step": 7})
    assert torch.equal(found.tensors("model")["w"], torch.full((3, 2), 7.0))
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(FILES)


def test_no_file_can_hold_code(tmp_path: Path) -> None:
    folder = write(tmp_path, 1).folder
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    for path in folder.glob("*.json"):
        json.loads(path.read_text())


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_skipped_with_a_warning_that_names_the_file(
    tmp_path: Path, name: str, kind: str
) -> None:
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    DAMAGE[kind](newest.folder / name)
    found, warnings = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert len(warnings) == 1
    assert "step-000020 is damaged" in warnings[0]
    assert name in warnings[0] or (name == "manifest.json" and kind == "a flipped bit")  # then some hash is wrong
    assert newest.folder.exists()


def test_where_none_is_whole_each_is_named_and_none_is_touched(tmp_path: Path) -> None:
    for step in (10, 20):
        flip_a_bit(write(tmp_path, step).folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.code == Exit.IO_FAILED
    assert "step-000020 is damaged (model.safetensors has changed" in str(caught.value)
    assert "step-000010 is damaged (model.safetensors has changed" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000020"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") == (None, [])
    assert checkpoint.newest(tmp_path) == (None, [])


def test_the_newest_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        write(tmp_path, step)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1_000_000


def test_a_persons_copy_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    shutil.copytree(write(tmp_path, 10).folder, tmp_path / "step-000010.bak")
    found, warnings = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, warnings) == (10, [])
    checkpoint.prune(tmp_path, {10})
    assert (tmp_path / "step-000010.bak").is_dir()


def test_leftovers_of_a_killed_save_are_removed_at_the_next_start(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / ".tmp-step-000020").mkdir()
    (tmp_path / ".tmp-step-000020" / "model.safetensors").write_text("half")
    checkpoint.newest(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    flip_a_bit(write(tmp_path, 10).folder / "model.safetensors")
    write(tmp_path, 10)
    assert checkpoint.verify(tmp_path / "step-000010") is None


def test_pruning_deletes_the_others_only(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, {2, 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004"]


def test_a_failing_save_leaves_the_earlier_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="disk full while writing to") as caught:
        write(tmp_path, 20)
    assert caught.value.code == Exit.IO_FAILED
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]
    assert checkpoint.verify(tmp_path / "step-000010") is None


def test_a_disk_that_fills_up_in_a_save_ends_with_74_and_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 10)
    code = f"""
        import resource, sys, torch
        from pathlib import Path
        from finetune import checkpoint
        from finetune.errors import UserError
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoint.save(Path({str(tmp_path)!r}), 20, {{"model": {{"w": torch.ones(100_000)}}}}, {{}})
        except UserError as error:
            print(error)
            sys.exit(error.code)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == Exit.IO_FAILED, ended.stderr
    assert ended.stdout.startswith("disk full while writing to ")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000010"]


# Every call that touches the disk in save and prune, and which call of it dies (1 = the first).
DEATHS = [
    ("shutil.rmtree", 1), ("pathlib.Path.mkdir", 1), ("finetune.checkpoint.save_file", 1),
    ("finetune.checkpoint.save_file", 2), ("pathlib.Path.write_text", 1), ("pathlib.Path.write_text", 2),
    ("os.fsync", 1), ("os.fsync", 4), ("os.fsync", 5), ("os.fsync", 6), ("pathlib.Path.rename", 1),
    ("pathlib.Path.rename", 2), ("shutil.rmtree", 2), ("os.unlink", 1), ("os.unlink", 3), ("os.rmdir", 1),
]  # fmt: skip
CHILD = """
    import os, pathlib, shutil, sys, torch
    import finetune.checkpoint
    from pathlib import Path

    def die_at(owner, name, turn, after):
        original, calls = getattr(owner, name), []
        def deadly(*arguments, **settings):
            calls.append(1)
            if len(calls) == turn and not after:
                os._exit(137)
            result = original(*arguments, **settings)
            if len(calls) == turn:
                os._exit(137)
            return result
        setattr(owner, name, deadly)

    owners = {"os": os, "shutil": shutil, "pathlib.Path": Path, "finetune.checkpoint": finetune.checkpoint}
    folder, points = Path(sys.argv[1]), sys.argv[2:]
    for number, point in enumerate(points):
        if os.fork() == 0:
            target, turn, after = point.split(":")
            owner, name = target.rsplit(".", 1)
            place = folder / str(number)
            tensors = {"model": {"w": torch.ones(9)}, "optimizer": {"0.step": torch.ones(())}}
            finetune.checkpoint.save(place, 10, tensors, {"step": 10})
            die_at(owners[owner], name, int(turn), after == "after")
            finetune.checkpoint.save(place, 20, tensors, {"step": 20})
            finetune.checkpoint.prune(place, {20})
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_after_a_kill_at_any_step_of_saving_and_pruning_a_whole_checkpoint_is_found(tmp_path: Path) -> None:
    points = [f"{target}:{turn}:{moment}" for target, turn in DEATHS for moment in ("before", "after")]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CHILD), str(tmp_path), *points],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes = dict(zip(points, ended.stdout.split(), strict=True))
    assert {point: code for point, code in codes.items() if code != "137"} == {}  # each point was reached
    steps = set()
    for number in range(len(points)):
        found, warnings = checkpoint.newest(tmp_path / str(number))
        assert found is not None
        assert warnings == []
        assert checkpoint.verify(found.folder) is None
        steps.add(found.step)
        assert not list((tmp_path / str(number)).glob(".tmp-*"))
    assert steps == {10, 20}


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_optimizer_is_packed_and_unpacked_exactly(tmp_path: Path, amsgrad: bool) -> None:
    def trained(steps: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), amsgrad=amsgrad, fused=True)
        go_on(model, optimizer, range(steps))
        return model, optimizer

    def go_on(model: torch.nn.Linear, optimizer: torch.optim.AdamW, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.sin(torch.arange(8.0) + step).view(2, 4)).square().sum().backward()
            optimizer.step()

    straight, _ = trained(6)
    model, optimizer = trained(3)
    tensors, numbers = checkpoint.pack_optimizer(optimizer)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "o.safetensors")
    _, fresh = trained(0)
    loaded = checkpoint.Checkpoint(tmp_path, 3)
    (tmp_path / "optimizer.safetensors").write_bytes((tmp_path / "o.safetensors").read_bytes())
    fresh.param_groups[0]["params"] = [model.weight]
    fresh.param_groups[1]["params"] = [model.bias]
    checkpoint.unpack_optimizer(fresh, loaded.tensors("optimizer"), json.loads(json.dumps(numbers)))
    go_on(model, fresh, range(3, 6))
    assert torch.equal(model.weight, straight.weight)
    assert torch.equal(model.bias, straight.bias)
