"""Kills, signals, damage and a full disk in the middle of a real run: always the same model in the end."""

import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call
from killing import classifier, encoder_decoder, end_after, start, summaries

from finetune.errors import Exit

pytestmark = pytest.mark.reliability
KILLS = 10
SCRATCH = ("network.hidden_size=16", "network.intermediate_size=32", "network.dropout=0.3", "vocabulary.vocab_size=90")


@pytest.fixture(scope="module")
def straight(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what an uninterrupted run writes."""
    return classifier(tmp_path_factory.mktemp("straight") / "run", tiny_model).finish()


@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_change_nothing(tiny_model: Path, tmp_path: Path, straight: dict[str, Any]) -> None:
    random = np.random.default_rng(2)
    case = classifier(tmp_path / "run", tiny_model)
    for kill in range(KILLS):
        code, errors = end_after(case, float(random.uniform(0.0, 0.12)))
        assert code == -signal.SIGKILL, f"kill {kill}: {errors}"
        assert len(list((case.folder / "checkpoints").glob(".tmp-*"))) <= 1
    assert case.finish() == straight
    assert not list(case.folder.rglob(".tmp-*"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ["transformer", "rnn"])
def test_kills_change_nothing_of_an_encoder_decoder(architecture: str, tmp_path: Path) -> None:
    straight = encoder_decoder(tmp_path / "straight", architecture).finish()
    case = encoder_decoder(tmp_path / "killed", architecture)
    for seconds in np.random.default_rng(3).uniform(0.0, 0.12, 3):
        code, errors = end_after(case, float(seconds))
        assert code == -signal.SIGKILL, errors
    assert case.finish() == straight


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["copy", "bert2gpt"])
def test_kills_change_nothing_of_summaries(family: str, tiny_model: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    made_as = {
        "copy": ("architecture=seq2seq", "copy=true", *SCRATCH),
        "bert2gpt": ("architecture=bert2gpt", f"encoder={tiny_model}", f"decoder={tiny_gpt2}"),
    }[family]
    straight = summaries(tmp_path / "straight", *made_as).finish()
    case = summaries(tmp_path / "killed", *made_as)
    for seconds in np.random.default_rng(5).uniform(0.0, 0.12, 3):
        code, errors = end_after(case, float(seconds))
        assert code == -signal.SIGKILL, errors
    assert case.finish() == straight


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_with_its_code_and_costs_nothing(
    tiny_model: Path, tmp_path: Path, straight: dict[str, Any], number: signal.Signals, code: int
) -> None:
    case = classifier(tmp_path / "run", tiny_model)
    ended, errors = end_after(case, 0.02, number)
    assert ended == code
    last = errors.strip().splitlines()[-1]
    assert last == f"stopped at update {max(case.steps())}; go on with --resume"
    assert "Traceback" not in errors
    assert case.finish() == straight


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_newest_checkpoint_with_a_flipped_bit_is_told_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, straight: dict[str, Any], name: str
) -> None:
    case = classifier(tmp_path / "run", tiny_model)
    # Beyond the sixth update, which ends the first epoch: its checkpoint is the best and stays beside the newest.
    end_after(case, 0.0, signal.SIGTERM, updates=8)
    *_, previous, newest = case.steps()
    damaged = case.folder / "checkpoints" / f"step-{newest:06d}" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    assert case.finish() == straight
    log = (case.folder / "train.log").read_text()
    assert f"step-{newest:06d} is damaged" in log
    assert f"from update {previous}" in log


def test_where_no_checkpoint_is_whole_the_command_ends_with_74_and_touches_none(
    tiny_model: Path, tmp_path: Path
) -> None:
    case = classifier(tmp_path / "run", tiny_model)
    end_after(case, 0.0, signal.SIGTERM)
    for step in case.steps():
        (case.folder / "checkpoints" / f"step-{step:06d}" / "state.json").write_text("{")
    before = sorted(case.folder.rglob("*"))
    outcome = call(*case.arguments)
    assert outcome.code == Exit.IO_FAILED
    assert outcome.err.strip().splitlines()[-1].startswith("error: no checkpoint in ")
    assert sorted(case.folder.rglob("*")) == before


def test_a_disk_that_fills_up_ends_with_74_and_after_making_room_nothing_is_different(
    tiny_model: Path, tmp_path: Path, straight: dict[str, Any]
) -> None:
    case = classifier(tmp_path / "run", tiny_model)
    end_after(case, 0.0, signal.SIGTERM, updates=2)
    kept = max(case.steps())
    process = start(case, {resource.RLIMIT_FSIZE: 20_000})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == Exit.IO_FAILED, errors
    assert "error: disk full while writing to " in errors
    assert "Traceback" not in errors
    assert max(case.steps()) == kept
    assert case.finish() == straight
