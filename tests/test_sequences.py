"""Sources and targets are read as strictly as labelled texts: nothing is lost in silence, and every row has a place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.config import load
from finetune.data.check import leaks
from finetune.data.columns import Split, from_lines
from finetune.data.sequences import SequenceDataConfig, read_split, read_splits
from finetune.errors import Exit, UserError


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(folder / name)


def read(file: str | list[str], **settings: Any) -> Split:
    return read_split("train", file, SequenceDataConfig(**settings))


def refusal(code: Exit, call: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **settings)
    assert caught.value.code == code
    return str(caught.value)


PAIRS = [{"en": f"a dog {number}", "de": f"ein Hund {number}"} for number in range(20)]
ENGLISH_GERMAN: dict[str, Any] = {"source_column": "en", "target_column": "de"}


def test_the_configuration_is_filled_from_key_value_arguments() -> None:
    config, _ = load(SequenceDataConfig, ["source_column=[question, context]", "turns_column=t", "context_turns=5"])
    assert (config.source_column, config.turns_column, config.context_turns) == (["question", "context"], "t", 5)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("context_turns=0", "context_turns cannot be 0"),
        ("source_column=[]", "name one column"),
        ("source_column=[a, a]", "name one column"),
        ("on_long=window", "expected truncate|error|skip"),
        ("skip_turns=[0-9", "skip_turns cannot be '[0-9': no regular expression: unterminated character set"),
        ("validation_share=2", "between 0 and 1"),
        ("text_column=a", "unknown setting text_column"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_what_would(argument: str, reason: str) -> None:
    assert reason in refusal(Exit.USAGE, load, SequenceDataConfig, [argument])


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.csv", "t.tsv", "t.parquet"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(PAIRS), file)
    elif name.startswith("t.jsonl"):
        write(tmp_path, name, PAIRS)
    else:
        tab = "\t" if name.endswith("tsv") else ","
        file.write_text(f"en{tab}de\n" + "".join(f"{row['en']}{tab}{row['de']}\n" for row in PAIRS))
    split = read(str(file), **ENGLISH_GERMAN)
    assert split.sources() == [row["en"] for row in PAIRS]
    assert split.targets() == [row["de"] for row in PAIRS]
    assert split.references() == [[row["de"]] for row in PAIRS]
    assert split.rows["id"][:] == [str(number) for number in range(20)]
    assert split.where(0) == f"{file}:{1 + name.endswith('sv')}"


def test_several_source_columns_are_joined_by_the_separator(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", [{"q": "who?", "c": "a man", "target": "man", "id": "x"}])
    assert read(file, source_column=["q", "c"]).sources() == ["who?\na man"]
    assert read(file, source_column=["c", "q"], separator=" \\t| ").sources() == ["a man \t| who?"]
    assert read(file, source_column=["c", "q"]).rows["id"][:] == ["x"]
    half = write(tmp_path, "half.jsonl", [{"q": "who?", "c": " ", "target": "man"}])
    assert "(1 without source)" in refusal(Exit.BAD_DATA, read, half, source_column=["q", "c"])
    message = refusal(Exit.BAD_DATA, read, file, source_column=["q", "ctx"])
    assert "has no column ctx" in message
    assert "Give data.source_column=" in message


def test_a_list_of_targets_is_several_references_of_which_the_first_is_trained_on(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"source": "a", "target": ["x", "y"]},
        {"source": "b", "target": "z"},
        {"source": "c", "target": ["w"]},
    ]
    split = read(write(tmp_path, "t.jsonl", rows))
    assert split.targets() == ["x", "z", "w"]
    assert split.references() == [["x", "y"], ["z"], ["w"]]
    assert split.select([2, 0]).references() == [["w"], ["x", "y"]]


@pytest.mark.parametrize(
    "answers", [[{"text": "x", "start": 1}, {"text": "y", "start": 2}], {"text": ["x", "y"], "start": [1, 2]}]
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_path_reaches_into_objects_and_lists_of_them(tmp_path: Path, answers: Any, kind: str) -> None:
    rows = [{"source": "a", "answers": answers, "id": "1"}]
    file = str(tmp_path / f"t.{kind}")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write(tmp_path, "t.jsonl", rows)
    assert read(file, target_column="answers.text").references() == [["x", "y"]]
    message = refusal(Exit.BAD_DATA, read, file, target_column="answers.txt")
    assert f"{file}:1: answers.txt: there is no txt; did you mean text? (there: text, start)" in message
    assert "no column answrs; did you mean answers?" in refusal(Exit.BAD_DATA, read, file, target_column="answrs.text")


def test_a_column_whose_name_has_a_dot_is_that_column(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", [{"source": "a", "t.x": "right", "t": {"x": "wrong"}}])
    assert read(file, target_column="t.x").targets() == ["right"]
    assert "is no object" in refusal(Exit.BAD_DATA, read, file, target_column="source.x")


def test_the_column_of_all_references_may_be_in_some_files_only(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", [{"source": f"a{n}", "target": "x"} for n in range(4)])
    test = write(tmp_path, "test.jsonl", [{"source": "b", "target": "x", "all": ["x", "y"]}])
    config = SequenceDataConfig(train=train, validation=train, test=test, references_column="all")
    splits = read_splits(config, seed=1)
    assert splits["test"].references() == [["x", "y"]]
    assert splits["train"].references() == [["x"]] * 4
    config = SequenceDataConfig(train=train, validation=train, test=test, references_column="al")
    assert "no file has the column al" in refusal(Exit.USAGE, read_splits, config, seed=1)


DIALOGUES: list[dict[str, Any]] = [
    {"id": "d1", "turns": ["one", "two", "three", "four"]},
    {"id": "d2", "turns": ["eins", "zwei"]},
]


def test_a_dialogue_becomes_a_row_for_each_next_turn(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", DIALOGUES)
    split = read(file, turns_column="turns", context_turns=2)
    assert split.sources() == ["one", "one\ntwo", "two\nthree", "eins"]
    assert split.targets() == ["two", "three", "four", "zwei"]
    assert split.rows["id"][:] == ["d1:2", "d1:3", "d1:4", "d2:2"]
    assert [split.where(row) for row in range(4)] == [f"{file}:1"] * 3 + [f"{file}:2"]


def test_without_targets_a_dialogue_waits_for_its_next_turn(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", DIALOGUES)
    config = SequenceDataConfig(turns_column="turns", context_turns=2)
    split = read_split("input", file, config, with_targets=False)
    assert split.sources() == ["three\nfour", "eins\nzwei"]
    assert split.rows.column_names == ["id", "source", "file", "line"]
    assert "was read without targets" in refusal(Exit.BAD_DATA, split.targets)


ANNOTATED: list[dict[str, Any]] = [
    {"id": "d1", "turns": ["one", "two", "7\t2 1", "three", "7\t2 1 3"]},
    {"id": "d2", "turns": ["eins", "zwei 7\t2 1"]},  # the pattern matches a part of the turn: it stays
]


def test_turns_that_the_pattern_matches_whole_are_neither_targets_nor_context_and_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", ANNOTATED)
    config = SequenceDataConfig(turns_column="turns", skip_turns=r"\d\t[\d ]+")
    split = read_split("train", file, config)
    assert split.sources() == ["one", "one\ntwo", "eins"]
    assert split.targets() == ["two", "three", "zwei 7\t2 1"]
    assert split.rows["id"][:] == ["d1:2", "d1:3", "d2:2"]
    assert split.skipped_turns == 2
    assert read_split("input", file, config, with_targets=False).sources()[0] == "one\ntwo\nthree"
    plain = read(file, turns_column="turns")
    assert (plain.skipped_turns, len(plain)) == (0, 5)
    assert plain.rows._fingerprint != split.rows._fingerprint


def test_turns_left_out_are_counted_in_train_alone_and_an_empty_dialogue_is_told(tmp_path: Path) -> None:
    rows = [{"turns": [f"a {n}", f"b {n}", "END"]} for n in range(20)]
    file = write(tmp_path, "t.jsonl", rows)
    splits = read_splits(SequenceDataConfig(train=file, turns_column="turns", skip_turns="END"), seed=1)
    assert {name: split.skipped_turns for name, split in splits.items()} == {"train": 20, "validation": 0}
    message = refusal(Exit.BAD_DATA, read, file, turns_column="turns", skip_turns="END|[ab] 3")
    assert f"1 row is empty (1 without source): {file}:4" in message


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["only one"], "1 row is empty (1 without target): FILE:1"),
        ([], "1 row is empty (1 without source): FILE:1"),
        (["a", " ", "c"], "2 rows are empty (1 without target, 1 without source): FILE:1"),
        ("a text", 'FILE:1: turns must be a list of texts, not "a text"'),
        (["a", 3], "FILE:1: turns is a list, and its item 2 is not text but 3"),
    ],
)
def test_a_dialogue_that_gives_no_row_is_told_with_its_place(tmp_path: Path, turns: Any, reason: str) -> None:
    file = write(tmp_path, "t.jsonl", [{"turns": turns}, *DIALOGUES])
    assert reason in refusal(Exit.BAD_DATA, read, file, turns_column="turns").replace(file, "FILE")


def test_skipped_rows_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"source": "a", "target": "x"}, {"source": " ", "target": "y"}]
    rows.append({"source": "b", "target": []})
    file = write(tmp_path, "t.jsonl", [*rows, {"source": "c", "target": ["z", ""]}, {"source": "d", "target": None}])
    message = refusal(Exit.BAD_DATA, read, file)
    assert "4 rows are empty (1 without source, 2 without target, 1 without references)" in message
    split = read(file, on_empty="skip")
    assert (len(split), split.skipped) == (1, 4)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"source": "a", "target": 3}, "target must be text, not 3; put it in quotes"),
        ({"source": ["a"], "target": "b"}, "source must be text"),
        ({"source": "a", "target": [{"text": "b"}]}, "give a list of texts, or the path to one, e.g. answers.text"),
        ({"source": "a\ud800", "target": "b"}, "source holds half a character"),
        ({"source": "a", "target": ["b", "\udfff"]}, "references holds half a character"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_place(tmp_path: Path, row: Any, reason: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"source": "s", "target": "t"}\n' + json.dumps(row) + "\n")
    message = refusal(Exit.BAD_DATA, read, str(file))
    assert reason in message
    assert f"{file}:2" in message


def test_validation_is_drawn_by_seed_and_keeps_repeated_sources_together(tmp_path: Path) -> None:
    rows = [{"en": f"Dog {n // 4}" if n % 2 else f"dog  {n // 4}", "de": f"Hund {n}"} for n in range(400)]
    config = SequenceDataConfig(train=write(tmp_path, "t.jsonl", rows), **ENGLISH_GERMAN)
    splits = read_splits(config, seed=1)
    assert (len(splits["train"]), len(splits["validation"])) == (360, 40)
    assert splits["validation"].held_out == "10 % of train, at random, repeated sources together, seed 1"
    assert not {s.split()[1] for s in splits["train"].sources()} & {
        s.split()[1] for s in splits["validation"].sources()
    }
    again, other = read_splits(config, seed=1), read_splits(config, seed=2)
    assert again["validation"].targets() == splits["validation"].targets()
    assert other["validation"].targets() != splits["validation"].targets()


def test_the_turns_of_a_dialogue_stay_together_when_validation_is_held_out(tmp_path: Path) -> None:
    rows = [{"turns": [f"turn {d} {t}" for t in range(6)]} for d in range(40)]
    config = SequenceDataConfig(train=write(tmp_path, "t.jsonl", rows), turns_column="turns", validation_share=0.2)
    splits = read_splits(config, seed=3)
    lines = {name: set(split.rows["line"][:]) for name, split in splits.items()}
    assert len(lines["validation"]) == 8
    assert not lines["train"] & lines["validation"]


def test_rows_that_were_skipped_are_counted_in_train_alone(tmp_path: Path) -> None:
    rows = [{"source": f"s{n}", "target": "" if n < 3 else "t"} for n in range(40)]
    splits = read_splits(SequenceDataConfig(train=write(tmp_path, "t.jsonl", rows), on_empty="skip"), seed=1)
    assert {name: split.skipped for name, split in splits.items()} == {"train": 3, "validation": 0}


def test_a_train_file_of_one_source_is_too_small_to_hold_out_from(tmp_path: Path) -> None:
    config = SequenceDataConfig(train=write(tmp_path, "t.jsonl", [{"source": "a", "target": "b"}] * 5))
    assert "give data.validation=FILE" in refusal(Exit.BAD_DATA, read_splits, config, seed=1)


def test_test_sources_that_stand_in_train_are_counted(tmp_path: Path) -> None:
    train = read(write(tmp_path, "train.jsonl", PAIRS), **ENGLISH_GERMAN)
    rows = [{"en": "A  dog 3", "de": "etwas anderes"}, {"en": "a cat", "de": "ein Hund 3"}]
    assert leaks(train, [read(write(tmp_path, "test.jsonl", rows), **ENGLISH_GERMAN)])[0].tolist() == [0]


def test_the_fingerprint_follows_how_rows_are_made(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", DIALOGUES)
    two, three = (read(file, turns_column="turns", context_turns=n) for n in (2, 3))
    assert two.rows._fingerprint != three.rows._fingerprint
    assert two.rows._fingerprint == read(file, turns_column="turns", context_turns=2).rows._fingerprint


def test_ids_that_are_asked_for_may_not_repeat(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", [{"source": "a", "target": "b", "key": "k"}] * 2)
    assert f'id "k" stands at {file}:1 and {file}:2' in refusal(Exit.BAD_DATA, read, file, id_column="key")


def test_lines_of_text_become_sources() -> None:
    split = from_lines("-", ["a dog\n", "a cat"], "source")
    assert split.sources() == ["a dog", "a cat"]
    assert split.where(1) == "-:2"


# Languages


QUESTIONS: dict[str, Any] = {"source_column": "q", "target_column": "a"}


def test_a_pattern_is_the_files_of_all_languages_and_their_rows_know_which(tmp_path: Path) -> None:
    for language in ("it", "en"):
        write(tmp_path, f"{language}.test.jsonl", [{"id": "1", "q": f"{language}?", "a": "yes"}])
    train = write(tmp_path, "train.jsonl", [{"id": str(n), "q": f"{n}?", "a": "no"} for n in range(4)])
    config = SequenceDataConfig(train=train, test=str(tmp_path / "{language}.test.jsonl"), **QUESTIONS)
    splits = read_splits(config, seed=1)
    test = splits["test"]
    assert (test.ids(), test.sources(), test.languages()) == (["en:1", "it:1"], ["en?", "it?"], ["en", "it"])
    assert test.select([1]).languages() == ["it"]
    assert splits["train"].languages() is None
    mixed = read([str(tmp_path / "{language}.test.jsonl"), train], **QUESTIONS)
    assert mixed.languages() == ["en", "it", None, None, None, None]
    unseen = read_split("input", str(tmp_path / "{language}.test.jsonl"), config, with_targets=False)
    assert (unseen.ids(), unseen.languages()) == (["en:1", "it:1"], None)
    named = read([str(tmp_path / f"{language}.test.jsonl") for language in ("en", "it")], **QUESTIONS)
    assert named.rows._fingerprint != test.rows._fingerprint
    write(tmp_path, "x-en.jsonl", [{"q": "a?", "a": "b"}])
    two = [read(str(tmp_path / pattern), **QUESTIONS) for pattern in ("x-{language}.jsonl", "{language}-en.jsonl")]
    assert [split.languages() for split in two] == [["en"], ["x"]]
    assert two[0].rows._fingerprint != two[1].rows._fingerprint


def test_a_pattern_that_no_file_fits_is_missing_input(tmp_path: Path) -> None:
    told = refusal(Exit.NO_INPUT, read, str(tmp_path / "{language}.jsonl"), **QUESTIONS)
    assert "{language}.jsonl: no language has such a file" in told


def test_turns_of_a_pattern_know_their_language(tmp_path: Path) -> None:
    for language in ("de", "en"):
        write(tmp_path, f"{language}.jsonl", [{"id": "d", "turns": ["a", "b", "c"]}])
    found = read(str(tmp_path / "{language}.jsonl"), turns_column="turns")
    assert found.languages() == ["de", "de", "en", "en"]
    assert found.ids() == ["de:d:2", "de:d:3", "en:d:2", "en:d:3"]


def test_a_column_tells_the_language_of_each_row_and_may_not_be_empty(tmp_path: Path) -> None:
    rows = [{"q": "a?", "a": "b", "lang": "it"}, {"q": "c?", "a": "d", "lang": "en"}]
    file = write(tmp_path, "t.jsonl", rows)
    assert read(file, language_column="lang", **QUESTIONS).languages() == ["it", "en"]
    assert "did you mean lang?" in refusal(Exit.BAD_DATA, read, file, language_column="lan", **QUESTIONS)
    for blank in ("", None):
        write(tmp_path, "t.jsonl", [*rows, {"q": "e?", "a": "f", "lang": blank}])
        told = refusal(Exit.BAD_DATA, read, file, language_column="lang", **QUESTIONS)
        assert "1 without language" in told
        assert "t.jsonl:3" in told
    dialogue = write(tmp_path, "d.jsonl", [{"turns": ["a", "b"], "lang": "de"}])
    assert read(dialogue, turns_column="turns", language_column="lang").languages() == ["de"]
