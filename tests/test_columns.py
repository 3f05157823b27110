"""Splits know the place of each row; labels and held-out rows depend on the training data and the seed alone."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.config import load
from finetune.data.columns import DataConfig, LabelMap, Split, natural_key, read_split, read_splits
from finetune.errors import Exit, UserError


def write(folder: Path, name: str, rows: Sequence[tuple[str, ...]], header: str = "text,label") -> str:
    (folder / name).write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return str(folder / name)


def read(file: str | list[str], name: str = "train", **settings: Any) -> Split:
    return read_split(name, file, DataConfig(**settings))


def rows_of(labels: str) -> list[tuple[str, str]]:
    """Make one row for each letter, which is its label."""
    return [(f"text {number}", label) for number, label in enumerate(labels)]


def refusal(code: Exit, call: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    assert caught.value.code == code
    return str(caught.value)


def test_the_configuration_is_filled_from_key_value_arguments() -> None:
    config, _ = load(DataConfig, ["train=[a.csv, b.csv]", "delimiter=;", "multi_label=true", "validation_share=0.2"])
    assert (config.train, config.delimiter, config.multi_label) == (["a.csv", "b.csv"], ";", True)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("validation_share=1", "give a share between 0 and 1"),
        ("max_gigabytes=0", "give a size above 0"),
        ("encoding=utf-9", "not a text encoding"),
        ("encoding=base64", "not a text encoding"),
        ("delimiter=::", "give one character"),
        ("on_long=cut", "expected truncate|error|window"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_what_would(argument: str, reason: str) -> None:
    message = refusal(Exit.USAGE, load, DataConfig, [argument])
    assert argument in message
    assert reason in message


def test_several_files_become_one_split_that_knows_each_rows_place(tmp_path: Path) -> None:
    files = [write(tmp_path, "a.csv", rows_of("xy")), write(tmp_path, "b.csv", rows_of("z"))]
    split = read(files)
    assert [split.where(row) for row in range(3)] == [f"{files[0]}:2", f"{files[0]}:3", f"{files[1]}:2"]
    assert split.rows["id"][:] == ["0", "1", "2"]
    assert split.files == tuple(files)
    assert split.rows.features["file"].dtype == "int16"
    assert split.rows.features["line"].dtype == "int32"
    chosen = split.select([2, 0])
    assert (chosen.labels(), chosen.where(0)) == (["z", "x"], f"{files[1]}:2")


def test_more_rows_than_a_chunk_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.columns.CHUNK_ROWS", 3)
    split = read(write(tmp_path, "t.csv", rows_of("abcabcab")))
    assert "".join(split.labels()) == "abcabcab"
    assert split.rows["id"][:] == [str(row) for row in range(8)]


def test_pairs_and_unlabelled_rows_have_just_the_columns_that_were_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", [("a", "b", "c")], "text,second,label")
    split = read(file, text_pair_column="second")
    assert (split.texts(), split.pairs(), split.labels()) == (["a"], ["b"], ["c"])
    bare = read_split("test", file, DataConfig(), labelled=False)
    assert bare.rows.column_names == ["id", "text", "file", "line"]
    assert bare.pairs() is None
    assert "was read without labels" in refusal(Exit.BAD_DATA, bare.labels)


def test_ids_come_from_an_id_column_or_from_the_row_number(tmp_path: Path) -> None:
    unique = write(tmp_path, "u.csv", [("a", "x", "007"), ("b", "y", "7")], "text,label,id")
    assert read(unique).rows["id"][:] == ["007", "7"]
    twice = write(tmp_path, "t.csv", [("a", "x", "7"), ("b", "y", "8"), ("c", "y", "7")], "text,label,id")
    assert read(twice).rows["id"][:] == ["0", "1", "2"]
    assert refusal(Exit.BAD_DATA, read, twice, id_column="id") == (
        f'id "7" stands at {twice}:2 and {twice}:4 (1 row repeats an id); mend the ids, or leave out data.id_column'
    )
    blank = write(tmp_path, "b.csv", [("a", "x", ""), ("b", "y", "8")], "text,label,id")
    assert read(blank).rows["id"][:] == ["0", "1"]
    assert "1 row is empty (1 without id)" in refusal(Exit.BAD_DATA, read, blank, id_column="id")


def test_train_is_asked_for_by_its_setting(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", rows_of("xy"))
    assert "data.train=FILE" in refusal(Exit.USAGE, read_splits, DataConfig(test=file), seed=1)
    assert list(read_splits(DataConfig(test=file), seed=1, need_train=False)) == ["test"]


def test_splits_that_are_given_are_read_and_nothing_is_held_out(tmp_path: Path) -> None:
    files = {name: write(tmp_path, f"{name}.csv", rows_of("xxyy")) for name in ("train", "validation", "test")}
    config = DataConfig(train=files["train"], validation=files["validation"], test=files["test"])
    splits = read_splits(config, seed=1)
    assert {name: len(split) for name, split in splits.items()} == {"train": 4, "validation": 4, "test": 4}
    assert not splits["validation"].held_out


def test_a_stratified_part_of_train_is_held_out_where_no_validation_is_given(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", rows_of("a" * 60 + "b" * 30 + "c" * 9 + "d"))
    config = DataConfig(train=file, validation_share=0.2)
    splits = read_splits(config, seed=1)
    assert Counter(splits["validation"].labels()) == {"a": 12, "b": 6, "c": 2}
    assert Counter(splits["train"].labels()) == {"a": 48, "b": 24, "c": 7, "d": 1}
    assert splits["validation"].held_out == "20 % of train, stratified, seed 1"
    assert not set(splits["train"].texts()) & set(splits["validation"].texts())
    again, other = read_splits(config, seed=1), read_splits(config, seed=2)
    assert again["validation"].texts() == splits["validation"].texts()
    assert other["validation"].texts() != splits["validation"].texts()


def test_a_label_column_of_texts_is_asked_about(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", rows_of("abcdefgh"))
    with pytest.raises(UserError, match="too few rows of each label to hold some out; give data") as found:
        read_splits(DataConfig(train=file), seed=1)
    asked = "if these are texts, give the labels' column, data.label_column=NAME"
    assert str(found.value).endswith(f'every row has a label of its own, e.g. "a": {asked}')


def test_every_class_keeps_a_row_in_train_however_large_the_share(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", rows_of("aabbccdde"))
    splits = read_splits(DataConfig(train=file, validation_share=0.99), seed=3)
    assert set(splits["train"].labels()) == set("abcde")
    assert len(splits["validation"]) == 4


def test_a_train_file_too_small_to_hold_out_from_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", rows_of("ab"))
    assert "give data.validation=FILE" in refusal(Exit.BAD_DATA, read_splits, DataConfig(train=file), seed=1)


def test_every_label_of_multi_label_rows_keeps_a_row_in_train(tmp_path: Path) -> None:
    labels = ["a|b", "a|c", "a|d", "b|c", "d|c", "e", "", "e|a"] * 2 + ["f|a"]
    file = write(tmp_path, "t.csv", [(f"text {row}", label) for row, label in enumerate(labels)])
    splits = read_splits(DataConfig(train=file, multi_label=True, validation_share=0.5), seed=1)
    assert LabelMap.learn(splits["train"], True).names == ("a", "b", "c", "d", "e", "f")
    assert 5 <= len(splits["validation"]) <= 9


def test_a_label_that_is_never_the_rarest_of_its_rows_keeps_one_too(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", [("one", "z|b"), ("two", "b"), ("three", "z|c"), ("four", "c")])
    config = DataConfig(train=file, multi_label=True, validation_share=0.5)
    for seed in range(30):
        assert LabelMap.learn(read_splits(config, seed=seed)["train"], True).names == ("b", "c", "z")


def test_labels_are_numbered_in_natural_order_whatever_the_order_of_rows(tmp_path: Path) -> None:
    labels = ["10", "2", "-1", "b10", "b9", "B", "1.5", "9" * 5_000]
    rows = [(f"text {label[:5]}", label) for label in labels]
    expected = ("-1", "1.5", "2", "10", "9" * 5_000, "B", "b9", "b10")
    forward, backward = write(tmp_path, "f.csv", rows), write(tmp_path, "b.csv", rows[::-1])
    for file in (forward, backward):
        split = read(file)
        names = LabelMap.learn(split).names
        assert names == expected
        assert [names[number] for number in LabelMap.learn(split).encode(split)] == split.labels()


def test_natural_order_is_total_for_odd_labels() -> None:
    labels = ["", "²", "a1b", "ab", "1a", "01", "1", "٣", "-", "a01", "a1"]
    backward = labels[::-1]
    assert sorted(labels, key=natural_key) == sorted(backward, key=natural_key)


def test_one_label_is_too_few_for_a_classifier(tmp_path: Path) -> None:
    split = read(write(tmp_path, "t.csv", rows_of("aaa")))
    assert 'has one label only, "a"' in refusal(Exit.BAD_DATA, LabelMap.learn, split)


def test_numbers_in_json_and_text_in_csv_are_the_same_label(tmp_path: Path) -> None:
    learned = LabelMap.learn(read(write(tmp_path, "t.csv", rows_of("012"))))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": "a", "label": label}) for label in (2, 0)))
    encoded = learned.encode(read(str(tmp_path / "t.jsonl"), "test"))
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [2, 0]


def test_an_unseen_label_is_refused_with_place_nearest_label_and_total(tmp_path: Path) -> None:
    learned = LabelMap(("billing", "refund"))
    file = write(tmp_path, "t.csv", [("a", "billing"), ("b", "refnd"), ("c", "shipping")])
    assert refusal(Exit.BAD_DATA, learned.encode, read(file, "test")) == (
        f'{file}:3: label "refnd" is not in the training data; did you mean "refund"? (2 such rows); '
        "mend the label or add training rows that have it"
    )


def test_multi_label_rows_become_rows_of_zeros_and_ones(tmp_path: Path) -> None:
    split = read(write(tmp_path, "t.csv", [("a", "y|x"), ("b", ""), ("c", " z | x |")]), multi_label=True)
    learned = LabelMap.learn(split, multi_label=True)
    assert learned == LabelMap(("x", "y", "z"), True)
    encoded = learned.encode(split)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    other = read(write(tmp_path, "u.csv", [("a", "x|w")]), multi_label=True)
    assert 'label "w" is not in the training data' in refusal(Exit.BAD_DATA, learned.encode, other)


def test_reading_takes_a_bounded_multiple_of_the_files_size(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", [("many words of one text " * 5, "label")] * 200_000)
    code = """
import resource, sys
from finetune.data.columns import DataConfig, read_split
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
before = peak()
split = read_split("train", sys.argv[1], DataConfig())
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100  # MB, for a file of 24 MB
