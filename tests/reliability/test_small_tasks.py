"""Sorting, reversing and dates are learnt to the letter, by a network of one thread in about three minutes each."""

import json
from pathlib import Path

import pytest
from calling import done, generated_files

pytestmark = pytest.mark.reliability
ROWS = 20_000
WORDS = (
    "task=transduction", "vocabulary.kind=word", "network.hidden_size=64", "network.intermediate_size=128",
    "network.num_encoder_layers=2", "network.num_decoder_layers=2", "network.dropout=0", "label_smoothing_factor=0",
    "train.lr_scheduler_type=linear", "train.learning_rate=3e-3", "train.num_train_epochs=5",
)  # fmt: skip


@pytest.mark.timeout(1_800)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("task", "settings"),
    [("sort", WORDS), ("reverse", WORDS), ("dates", ("--config", "dates"))],
    ids=["sort", "reverse", "dates"],
)
def test_at_least_98_of_100_rows_never_seen_are_right(task: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    files = generated_files(tmp_path, task, train=ROWS)
    fixed = ("train.mixed_precision=no", "baseline=none")
    done("train", "seq2seq", *files, f"output_dir={tmp_path / 'run'}", *settings, *fixed)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scores"]["test"]["exact_match"]["value"] >= 0.98
