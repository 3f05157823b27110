"""The readers keep every text byte for byte, and every fault of a file has a place, a reason and a remedy."""

import codecs
import csv
import gzip
import io
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.columns import DataConfig, Split, read_split, read_splits
from finetune.errors import Exit, UserError
from finetune.hub import Found

ODD_TEXTS = [
    "NA",
    "null",
    "None",
    "nan",
    "001",
    " x ",
    "True",
    "1e5",
    'say "hi", twice',
    "two\r\nlines",
    "\0",
    "‮קרא",
    "a\u2028b",
]


def write(folder: Path, name: str, content: str | bytes) -> str:
    """Write a data file (packed where its name ends in .gz) and return its path."""
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(folder / name)


def read(file: str | list[str], **settings: Any) -> Split:
    return read_split("train", file, DataConfig(**settings))


def refusal(file: str | list[str], code: Exit = Exit.BAD_DATA, **settings: Any) -> str:
    """Read a file that must be refused with `code`; return the message, with the folder left out."""
    with pytest.raises(UserError) as caught:
        read(file, **settings)
    assert caught.value.code == code
    message = str(caught.value)
    assert message.count("\n") < 3
    return message.replace(str(Path(file if isinstance(file, str) else file[0]).parent) + "/", "")


def csv_text(rows: list[list[str]], **format: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, **format).writerows(rows)
    return stream.getvalue()


# What is kept


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "T.TSV.GZ", "t[1].csv"])
def test_odd_texts_in_csv_survive_byte_for_byte(tmp_path: Path, name: str) -> None:
    delimiter = "\t" if "tsv" in name.lower() else ","
    content = csv_text([["text", "label"], *([text, "001"] for text in ODD_TEXTS)], delimiter=delimiter)
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name[-1] in "zZ" else content.encode())
    split = read(str(tmp_path / name))
    assert split.texts() == ODD_TEXTS
    assert set(split.labels()) == {"001"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.jsonl.gz"])
def test_odd_texts_in_json_lines_survive_byte_for_byte(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"label": "NA", "other": [1], "text": text}, ensure_ascii=False) for text in ODD_TEXTS]
    split = read(write(tmp_path, name, "\n\n".join(lines)))
    assert split.texts() == ODD_TEXTS
    assert [split.where(row)[-2:] for row in (0, 1)] == [":1", ":3"]


def test_only_a_line_feed_ends_a_line_of_json(tmp_path: Path) -> None:
    split = read(write(tmp_path, "t.jsonl", '{"text": "a",\r"label": "x"}\r\n{"text": "b", "label": "y"}\r\n'))
    assert (split.texts(), split.where(1)[-2:]) == (["a", "b"], ":2")


def test_odd_texts_in_parquet_survive_byte_for_byte(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ODD_TEXTS, "label": list(range(len(ODD_TEXTS)))}), tmp_path / "t.parquet")
    split = read(str(tmp_path / "t.parquet"))
    assert split.texts() == ODD_TEXTS
    assert split.labels()[:3] == ["0", "1", "2"]
    assert split.where(2).endswith("t.parquet:3")


def test_class_labels_in_parquet_become_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])}
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).data.table
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet")).labels() == ["spam", "ham"]


def test_an_edited_file_with_the_same_time_gives_its_new_rows(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    for text in ("old", "new"):
        pq.write_table(pa.table({"text": [text], "label": ["a"]}), file)
        os.utime(file, (1, 1))
        assert read(str(file)).texts() == [text]


def test_json_labels_may_be_text_whole_numbers_or_booleans(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x"}', '{"text": "b", "label": 7}', '{"text": "c", "label": true}']
    assert read(write(tmp_path, "t.jsonl", "\n".join(lines))).labels() == ["x", "7", "true"]


def test_json_label_lists_are_joined_when_multi_label(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n')
    assert read(file, multi_label=True).labels() == ["x|y", ""]
    assert refusal(file).startswith("t.jsonl:1: label is a list; give data.multi_label=true")
    file = write(tmp_path, "u.jsonl", '{"text": "a", "label": ["x|y"]}')
    assert "must be text without |" in refusal(file, multi_label=True)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read(write(tmp_path, "t.csv", codecs.BOM_UTF8 + b"text,label\na,b\n")).texts() == ["a"]
    assert read(write(tmp_path, "t.jsonl", codecs.BOM_UTF8 + b'{"text": "a", "label": "b"}')).texts() == ["a"]


def test_other_encodings_and_delimiters_are_read_when_named(tmp_path: Path) -> None:
    latin = write(tmp_path, "l.csv", "text;label\ncafé, noir;a\n".encode("latin-1"))
    assert read(latin, encoding="latin-1", delimiter=";").texts() == ["café, noir"]
    wide = write(tmp_path, "w.csv", "text\tlabel\n東京\ta\n".encode("utf-16"))
    assert read(wide, encoding="utf-16", delimiter="\\t").texts() == ["東京"]


def test_a_field_of_five_megabytes_is_read_whole(tmp_path: Path) -> None:
    text = "word, " * 850_000
    assert read(write(tmp_path, "t.csv", f'text,label\n"{text}",a\n')).texts() == [text]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_the_line_of_a_row_is_where_it_starts(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, 'text,label\n"one\ntwo",a\n\nthree,b\n"four\r\n\r\nfive",c\nsix,d\n')
    split = read(file)
    assert [split.where(row).rsplit(":", 1)[1] for row in range(4)] == ["2", "5", "6", "9"]


def test_blank_lines_are_empty_texts_in_a_file_of_one_column(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", "text\na\n\nb\n\n\n")
    config = DataConfig(on_empty="skip")
    split = read_split("test", file, config, labelled=False)
    assert (split.texts(), split.skipped) == (["a", "b"], 1)
    assert split.rows["id"][:] == ["0", "2"]


# What is refused


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "text,label\na,b\n")
    message = refusal(str(tmp_path / "trian.csv"), Exit.NO_INPUT)
    assert message == "trian.csv: no such file; did you mean train.csv?"
    assert "there is no folder" in refusal(str(tmp_path / "no" / "train.csv"), Exit.NO_INPUT)


def test_a_folder_is_refused_as_missing_input(tmp_path: Path) -> None:
    (tmp_path / "f.csv").mkdir()
    assert "f.csv is a folder" in refusal(str(tmp_path / "f.csv"), Exit.NO_INPUT)
    assert "is a folder" in refusal(str(tmp_path), Exit.NO_INPUT)


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    assert "p.csv is not a regular file" in refusal(str(tmp_path / "p.csv"), Exit.NO_INPUT)


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "t.xlsx", "x"))
    assert message.startswith("t.xlsx: unknown kind of file .xlsx; known are .csv, .tsv, .jsonl")
    assert "(no extension)" in refusal(write(tmp_path, "t", "x"))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.tsv", "t.parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(write(tmp_path, name, "")) == f"{name} is empty; give a file with rows"


@pytest.mark.parametrize(("name", "content"), [("t.csv", "\n\n"), ("t.jsonl", "\n \n"), ("t.csv", b"\xef\xbb\xbf")])
def test_a_file_of_nothing_but_blank_lines_is_empty(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert refusal(write(tmp_path, name, content)) == f"{name} is empty; give a file with rows"


def test_column_names_without_rows_are_refused(tmp_path: Path) -> None:
    expected = "{} has column names but no rows; give a file with rows"
    assert refusal(write(tmp_path, "t.csv", "text,label\n")) == expected.format("t.csv")
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "t.parquet"
    )
    assert refusal(str(tmp_path / "t.parquet")) == expected.format("t.parquet")


def test_a_wrong_column_is_answered_with_the_nearest_and_the_setting(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv", "text,label\na,b\n")
    assert refusal(file, label_column="labl") == (
        "t.csv:1 has no column labl; did you mean label? (columns: text, label). Give data.label_column=label"
    )
    assert refusal(file, text_column="Text").startswith("t.csv:1 has no column Text; did you mean text?")
    assert "Give data.id_column=NAME" in refusal(file, id_column="key")
    assert "Give data.text_pair_column=text" in refusal(file, text_pair_column="text2")
    line = write(tmp_path, "t.jsonl", '{"text": "a", "lable": "b"}')
    assert refusal(line).startswith("t.jsonl:1 has no column label; did you mean lable? (columns: text, lable)")
    pq.write_table(pa.table({"txt": ["a"], "label": ["b"]}), tmp_path / "t.parquet")
    assert refusal(str(tmp_path / "t.parquet")).startswith("t.parquet has no column text; did you mean txt?")


@pytest.mark.parametrize(("separator", "setting"), [(";", "data.delimiter=';'"), ("\t", "data.delimiter='\\t'")])
def test_another_separator_is_recognised(tmp_path: Path, separator: str, setting: str) -> None:
    message = refusal(write(tmp_path, "t.csv", f"text{separator}label\na, b{separator}c\n"))
    assert message.startswith("t.csv:1 has one column only,")
    assert message.endswith(f"give {setting}")


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "t.csv", "text,label,text\na,b,c\n")).startswith(
        't.csv:1 has the column "text" twice'
    )
    assert "a key is given twice" in refusal(write(tmp_path, "t.jsonl", '{"text": "a", "label": "b", "text": "c"}'))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_row_with_too_many_fields_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, 'text,label\n"a\nb",x\nHello, world, greeting\n')
    assert refusal(file) == (
        f'{name}:4 has 3 fields where the header has 2 (text, label): "Hello, world, greeting". '
        "Quote texts that hold commas."
    )


def test_a_row_with_too_few_fields_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "t.csv", "text,label\na,b\nonly a text\n")) == (
        't.csv:3 has 1 field where the header has 2 (text, label): "only a text". Add what is missing.'
    )
    assert refusal(write(tmp_path, "t.tsv", "text\tlabel\na\tb\tc\n")).endswith("Quote texts that hold tabs.")


def test_an_unclosed_quote_is_refused_with_the_line_where_it_opens(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "t.csv", 'text,label\na,b\n"never closed,c\nd,e\n'))
    assert message.startswith("t.csv:3: a quote in the row that starts here is never closed")
    message = refusal(write(tmp_path, "t.csv", 'text,label\n"a "b" c",d\n'))
    assert message.startswith("t.csv:2: in the row that starts here, text goes on after a closing quote")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl"])
def test_a_byte_that_is_not_utf8_is_named_with_offset_line_and_setting(tmp_path: Path, name: str) -> None:
    head = b"text,label\n" if "csv" in name else b'{"text": "x", "label": "y"}\n'
    long = b"a" * 1_000
    filler = (long + b",d\n" if "csv" in name else head.replace(b"x", long)) * 2_000  # more than one block
    message = refusal(write(tmp_path, name, head + filler + b"caf\xe9,x\n"))
    offset = len(head + filler) + 3
    assert message == (
        f"{name}:2002: byte 0xE9 at offset {offset:,} is not utf-8; "
        "if the file is in another encoding, name it: data.encoding=latin-1"
    )


def test_the_proposed_encoding_fits_the_bytes(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "t.csv", b"text,label\n\x93hi\x94,x\n")).endswith("data.encoding=cp1252")
    assert refusal(write(tmp_path, "t.csv", "text,label\n".encode("utf-16"))).endswith("data.encoding=utf-16")
    message = refusal(write(tmp_path, "t.csv", b"text,label\na,b\ncaf\xc3"))
    assert message.startswith("t.csv:3: byte 0xC3 at offset 18 is not utf-8")


def test_empty_texts_and_labels_are_refused_with_places_and_total(tmp_path: Path) -> None:
    rows = "".join(f"{' ' if line < 8 else 'x'},{'y' if line != 9 else ''}\n" for line in range(2, 12))
    file = write(tmp_path, "t.csv", f"text,label\n{rows}")
    message = refusal(file)
    assert message.startswith("7 rows are empty (6 without text, 1 without label): t.csv:2, ")
    assert "t.csv:6, ..." in message.replace(str(tmp_path) + "/", "")
    assert message.endswith("leave them out: data.on_empty=skip (evaluate: --on-empty skip)")
    split = read(file, on_empty="skip")
    assert (len(split), split.skipped) == (3, 7)
    with pytest.raises(UserError, match=r"Mend them$"):  # rows to predict are never left out
        read_split("input", str(file), DataConfig(), labelled=False)


def test_a_missing_or_null_value_in_json_is_an_empty_one(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", '{"text": "a", "label": "b"}\n{"text": null, "label": "b"}\n{"text": "c"}\n')
    assert refusal(file).startswith("2 rows are empty (1 without text, 1 without label): t.jsonl:2")
    assert read(file, on_empty="skip").skipped == 2


def test_a_file_of_empty_rows_only_is_refused_even_when_they_may_be_skipped(tmp_path: Path) -> None:
    assert "no row is left" in refusal(write(tmp_path, "t.csv", "text,label\n,a\n"), on_empty="skip")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": 5, "label": "b"}', "text must be text, not 5; put it in quotes"),
        ('{"text": ["a"], "label": "b"}', "text must be text, not ['a']"),
        ('{"text": "a", "label": 1.5}', "label must be text, a whole number or true/false, not 1.5; put it in quotes"),
        ('{"text": "a", "label": {}}', "label must be text, a whole number or true/false, not {}"),
        ('{"text": "a", "label": ', "is not a JSON object on one line: Expecting value"),
        ('["a", "b"]', "is not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": "a", "label": ' + "9" * 5_000 + "}", "is not a JSON object on one line"),
    ],
)
def test_a_bad_line_of_json_is_refused_with_its_place(tmp_path: Path, line: str, reason: str) -> None:
    message = refusal(write(tmp_path, "t.jsonl", f'{{"text": "a", "label": "b"}}\n{line}\n'))
    assert message.startswith("t.jsonl:2")
    assert reason in message
    assert len(message) < 300


def test_half_a_character_in_json_is_refused_with_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, "t.jsonl", '{"text": "a", "label": "b"}\n{"text": "x\\ud83d", "label": "b"}\n')
    assert refusal(file).startswith("t.jsonl:2: text holds half a character (\\ud83d, a lone surrogate)")


def test_a_packed_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = write(tmp_path, "t.csv.gz", b"text,label\n" + b"a" * 3_000_000)
    message = refusal(file, max_gigabytes=0.001)
    assert message.startswith("t.csv.gz unpacks to more than 0.001 GB; if that is right, give data.max_gigabytes=")


def test_more_text_than_the_limit_is_refused_in_any_format(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 2_000_000], "label": ["b"]}), tmp_path / "t.parquet")
    assert "hold more than 0.001 GB of text" in refusal(str(tmp_path / "t.parquet"), max_gigabytes=0.001)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:20] + b"xx" + raw[22:], lambda raw: b"plain"]
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, damage: Any) -> None:
    (tmp_path / "t.csv.gz").write_bytes(damage(gzip.compress(b"text,label\na,b\nc,d\n" * 9)))
    assert refusal(str(tmp_path / "t.csv.gz")).startswith("t.csv.gz is not a sound gzip file")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, "t.parquet", b"PAR1" + b"x" * 100)).startswith(
        "t.parquet is not a sound Parquet file"
    )


def test_an_unreadable_text_column_of_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1.5], "label": ["b"]}), tmp_path / "t.parquet")
    assert refusal(str(tmp_path / "t.parquet")) == "t.parquet:1: text must be text, not 1.5; put it in quotes"


def test_messages_stay_short_and_printable_whatever_the_data(tmp_path: Path) -> None:
    row = "\x1b[31m\x9b\u202e" + "x" * 100_000 + ",a,b,c"
    message = refusal(write(tmp_path, "t.csv", f"text,label\n{row}\n"))
    assert len(message) < 250
    assert message.isprintable()


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Make the Hub a closed port of this machine, with an empty cache."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def hub_refusal(**settings: Any) -> tuple[Exit, str]:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_splits(DataConfig(name="nobody/nothing", **settings), seed=1)
    assert time.monotonic() - start < 5
    return caught.value.code, str(caught.value)


def test_a_hub_that_cannot_be_reached_is_told_within_five_seconds(hub: pytest.MonkeyPatch) -> None:
    code, message = hub_refusal()
    assert code == Exit.NO_NETWORK
    assert re.search(r"the Hub cannot be reached \(http://127\.0\.0\.1:\d+: .*refused", message)
    assert message.endswith("give a local file: data.train=FILE.csv")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_offline_mode_is_named_where_it_is_set(hub: pytest.MonkeyPatch) -> None:
    hub.setenv("HF_HUB_OFFLINE", "1")
    code, message = hub_refusal()
    assert code == Exit.NO_NETWORK
    assert "data.name=nobody/nothing is not on this machine" in message
    assert "(HF_HUB_OFFLINE=1)\ngive a local file: data.train=FILE.csv" in message
    code, message = hub_refusal(revision="v2")
    assert code == Exit.NO_NETWORK
    assert "data.name=nobody/nothing is not on this machine" in message


def test_hub_splits_are_read_with_the_names_of_their_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}, features=features)
    monkeypatch.setattr("finetune.hub.ask", lambda _: Found("abc", ("train.csv",)))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=rows, dev=rows))
    monkeypatch.chdir(tmp_path)
    splits = read_splits(DataConfig(name="who/what", config="en", revision="abc"), seed=1)
    assert splits["train"].labels() == ["no", "yes", "no", "yes"]
    assert splits["validation"].where(1) == "who/what/en[validation]:2".replace("validation", "dev")
    assert splits["train"].sha256["who/what/en[train]"].startswith("abc:")


def test_a_hub_name_that_is_a_path_here_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nobody" / "nothing").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_refusal()[0] == Exit.USAGE


# Whatever the content


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=5)
)
def test_any_text_comes_back_from_csv_and_json_lines(tmp_path: Path, texts: list[str]) -> None:
    table = csv_text([["text", "label"], *([text, text] for text in texts)], lineterminator="\r\n")
    lines = "".join(json.dumps({"text": text, "label": text}) + "\n" for text in texts)
    for name, content in (("t.csv", table), ("t.jsonl", lines)):
        split = read(write(tmp_path, name, content))
        assert split.texts() == texts
        assert split.labels() == texts
