"""Whatever a file holds, its rows come back byte for byte or it is refused with its place."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.columns import DataConfig, Split, read_split
from finetune.errors import Exit, UserError

pytestmark = pytest.mark.reliability
often = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
words = st.sampled_from(
    ["NA", "null", "001", " ", "", "a|b", '"', ",", "\n", "\r\n", "\r", "\0", "‮", "\u2028", "\ufeff", "x" * 200_000]
)
texts = st.one_of(words, st.text(st.characters(exclude_categories=["Cs"])), st.lists(words).map("".join))
any_texts = st.one_of(texts, st.text())  # with lone surrogates
PLACED = re.compile(r"t\.(csv|tsv|jsonl):\d+|t\.(csv|tsv|jsonl) (is empty|has column names but no rows|: )")


@often
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=8), quoted=st.booleans(), tabs=st.booleans())
def test_csv_rows_come_back_byte_equal_with_their_lines(
    tmp_path: Path, rows: list[tuple[str, str]], quoted: bool, tabs: bool
) -> None:
    stream = io.StringIO()
    style = csv.excel_tab if tabs else csv.excel
    writer = csv.writer(stream, style, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerow(["text", "label"])
    lines = []
    for row in rows:
        lines.append(1 + len(re.findall("\r\n|\r|\n", stream.getvalue())))
        writer.writerow(row)
    file = tmp_path / ("t.tsv" if tabs else "t.csv")
    file.write_bytes(stream.getvalue().encode())
    check(file, rows, lines)


@often
@given(rows=st.lists(st.tuples(any_texts, any_texts), min_size=1, max_size=8), escaped=st.booleans())
def test_json_lines_come_back_byte_equal_with_their_lines(
    tmp_path: Path, rows: list[tuple[str, str]], escaped: bool
) -> None:
    halves = any(re.search("[\ud800-\udfff]", text) for row in rows for text in row)
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=escaped or halves) for text, label in rows]
    (tmp_path / "t.jsonl").write_bytes("\n".join(lines).encode())
    check(tmp_path / "t.jsonl", rows, list(range(1, len(rows) + 1)))


@often
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from([b"text", b"label", b",", b'"', b"\n", b"\xe9", b"{", b"}", b":"])).map(b"".join),
    ),
    header=st.sampled_from([b"", b"text,label\n", b'{"text": "a", "label": "b"}\n', b"\xef\xbb\xbftext,label\n"]),
    name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]),
)
def test_any_bytes_are_read_or_refused_with_their_place(
    tmp_path: Path, content: bytes, header: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(header + content)
    found = attempt(tmp_path / name)
    if isinstance(found, UserError):
        assert found.code == Exit.BAD_DATA
        assert PLACED.search(str(found)), str(found)
    else:
        assert all(found.texts())


def attempt(file: Path) -> Split | UserError:
    """Read a file; return its rows, or the refusal. Any other exception is a bug and passes through."""
    try:
        return read_split("train", str(file), DataConfig())
    except UserError as error:
        return error


def check(file: Path, rows: list[tuple[str, str]], lines: list[int]) -> None:
    """Assert that reading gives `rows` at `lines`, or refuses the file for a fault that it has, at its line."""
    empty = [line for line, row in zip(lines, rows, strict=True) if any(not text.strip() for text in row)]
    half = [
        line for line, row in zip(lines, rows, strict=True) if any(re.search("[\ud800-\udfff]", text) for text in row)
    ]
    found = attempt(file)
    if isinstance(found, UserError):
        assert found.code == Exit.BAD_DATA
        assert any(f"{file}:{line}" in str(found) for line in empty + half), str(found)
        return
    assert not empty + half
    assert list(zip(found.texts(), found.labels(), strict=True)) == rows
    assert [found.where(row) for row in range(len(found))] == [f"{file}:{line}" for line in lines]
