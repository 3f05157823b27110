"""What is left of a source that is too long."""

from collections.abc import Sequence

import pytest

from finetune.summaries.long_texts import OnLong, shorten, windows

TEXT = "One two three. Four five!\nSix seven eight nine. Ten."


def in_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def in_characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


@pytest.mark.parametrize(
    ("room", "on_long", "kept"),
    [
        (9, "truncate", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (9, "lead_tail", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (4, "truncate", [0, 1, 2, 3]),
        (4, "window", [0, 1, 2, 3]),
        (4, "lead_tail", [0, 1, 7, 8]),
        (5, "lead_tail", [0, 1, 2, 7, 8]),
        (1, "lead_tail", [0]),
        (9, "tail", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (4, "tail", [5, 6, 7, 8]),
    ],
)
def test_a_row_keeps_its_first_tokens_or_its_two_ends(room: int, on_long: OnLong, kept: list[int]) -> None:
    assert shorten(range(9), room, on_long) == kept


def test_windows_are_whole_sentences_as_many_as_fit() -> None:
    assert windows(TEXT, 10, in_words) == [TEXT]
    assert windows(TEXT, 5, in_words) == ["One two three. Four five!", "Six seven eight nine. Ten."]
    assert windows(TEXT, 4, in_words) == ["One two three.", "Four five!", "Six seven eight nine.", "Ten."]


def test_a_sentence_that_is_too_long_is_halved_until_it_fits() -> None:
    assert windows(TEXT, 2, in_words) == ["One two", "three.", "Four five!", "Six seven", "eight nine.", "Ten."]
    found = windows("abcdefghij", 3, in_characters)  # without a space
    assert "".join(found) == "abcdefghij"
    assert max(map(len, found)) <= 3


@pytest.mark.parametrize("room", [1, 7, 12, 30])
def test_windows_lose_nothing_but_white_space(room: int) -> None:
    text = TEXT * 3 + " 一二三。四五六七八九。" + " word" * 20
    found = windows(text, room, in_characters)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert max(map(len, found)) <= room
    assert all(found)
