"""The dialogues of data/dialogues: whole, in one split each, with summaries that keep to them."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "data" / "dialogues"
COUNTS = {"train": 103, "validation": 23, "test": 35}
TURN = re.compile(r"(?P<name>[^:\n]{1,25}): \S.*")


def rows_of(split: str) -> list[dict[str, str]]:
    """Return the rows of a split."""
    text = (FOLDER / f"{split}.jsonl").read_bytes().decode("utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def every_row() -> list[dict[str, str]]:
    """Return the rows of all splits."""
    return [row for split in COUNTS for row in rows_of(split)]


def opening(row: dict[str, str]) -> tuple[str, ...]:
    """Return the first three words that are said."""
    return tuple(re.findall(r"[\w']+", row["dialogue"].partition(": ")[2].lower())[:3])


@pytest.mark.parametrize("split", COUNTS)
def test_a_file_is_utf8_with_plain_line_ends_and_the_rows_that_the_card_names(split: str) -> None:
    raw = (FOLDER / f"{split}.jsonl").read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in raw
    assert raw.endswith(b"}\n")
    rows = rows_of(split)
    assert len(rows) == COUNTS[split]
    assert f"| `{split}.jsonl` | {len(rows)} |" in (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in rows:
        assert list(row) == ["id", "topic", "dialogue", "summary"]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values()), row["id"]


def test_ids_and_texts_occur_once_over_all_splits() -> None:
    rows = every_row()
    for column in ("id", "dialogue", "summary"):
        assert len({row[column].casefold() for row in rows}) == len(rows), column


def test_openings_differ() -> None:
    rows = every_row()
    assert len({opening(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("row", every_row(), ids=lambda row: row["id"])
def test_a_dialogue_has_its_turns_and_a_summary_keeps_to_it(row: dict[str, str]) -> None:
    turns = [TURN.fullmatch(line) for line in row["dialogue"].split("\n")]
    names = {turn["name"] for turn in turns if turn}
    assert all(turns)
    assert 4 <= len(turns) <= 12
    assert 2 <= len(names) <= 3
    dialogue, summary = row["dialogue"], row["summary"]
    assert len(summary) < len(dialogue)
    assert 10 <= len(summary.split()) <= 35
    assert any(name.split()[-1] in summary for name in names)
    inside_a_sentence = re.findall(r"(?<=[^.?!] )[A-Z]\w+", summary)
    assert [word for word in inside_a_sentence if word.lower() not in dialogue.lower()] == []
    numbers = re.findall(r"\d+(?:[.:]\d+)?", summary)
    assert [number for number in numbers if number not in dialogue] == []
