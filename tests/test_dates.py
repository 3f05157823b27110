"""The small tasks of data/dates: their rows, and that an encoder-decoder learns one of them within seconds."""

import datetime
import json
import re
import time
from pathlib import Path

import pytest
from calling import done, generated_files, read_jsonl

SECONDS = 30.0  # of one thread
SMALL = (
    "task=transduction", "vocabulary.kind=word", "network.hidden_size=64", "network.intermediate_size=128",
    "network.dropout=0", "label_smoothing_factor=0", "train.lr_scheduler_type=linear", "train.eval_steps=1000",
    "train.mixed_precision=no", "train.use_cpu=true", "search.beam_size=1", "baseline=none",
)  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (4_000, ("num_train_epochs=5", "learning_rate=3e-3", "network.num_encoder_layers=2",
                 "network.num_decoder_layers=2")),
        (8_000, ("num_train_epochs=4", "learning_rate=5e-3", "per_device_train_batch_size=32", "architecture=rnn",
                 "cell=lstm", "attention=additive", "network.num_encoder_layers=1", "network.num_decoder_layers=1")),
    ],
    ids=["transformer", "lstm"],
)  # fmt: skip
def test_copying_rows_never_seen_is_learnt_within_half_a_minute(
    tmp_path: Path, rows: int, settings: tuple[str, ...]
) -> None:
    files = generated_files(tmp_path, "copy", "--longest", "6", train=rows)
    began = time.process_time()
    done("train", "seq2seq", *files, f"output_dir={tmp_path / 'run'}", *SMALL, *settings)
    assert time.process_time() - began < SECONDS
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["scores"]["test"]["exact_match"]["value"] >= 0.95


@pytest.mark.parametrize("task", ["copy", "reverse", "sort"])
def test_words_are_copied_reversed_or_sorted(tmp_path: Path, task: str) -> None:
    generated_files(tmp_path, task, train=2_000)
    lengths = set()
    for row in read_jsonl(tmp_path / "train.jsonl"):
        source, target = row["source"].split(" "), row["target"].split(" ")
        lengths.add(len(source))
        assert target == {"copy": source, "reverse": source[::-1], "sort": sorted(source)}[task]
    assert lengths == set(range(3, 15))


def test_dates_are_those_of_the_source_in_iso_8601(tmp_path: Path) -> None:
    generated_files(tmp_path, "dates", train=2_000)
    forms = set()
    for row in read_jsonl(tmp_path / "train.jsonl"):
        day = datetime.date.fromisoformat(row["target"])
        source = row["source"]
        numbers = [int(number) for number in re.findall(r"\d+", source)]
        name = re.search(day.strftime("%b"), source, re.IGNORECASE)
        assert sorted(numbers) == sorted([day.day, day.year] if name else [day.day, day.month, day.year])
        weekday = re.match(r"[A-Z][a-z]+day", source)
        assert weekday is None or weekday[0] == day.strftime("%A")
        forms.add(re.sub("[A-Za-z]+", "w", re.sub("[0-9]+", "9", source)))
    assert len(forms) == 8  # of the nine, `Jan 2 1997` and `JAN 02 1997` differ in their letters alone


def test_rows_are_a_function_of_task_and_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        generated_files(tmp_path / name, "dates", train=50)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    assert len({file.read_bytes() for file in one}) == 3
