"""The stories of data/stories: whole, in one split each, in the form that is read as one document a story."""

import re
import statistics
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "data" / "stories"
COUNTS = {"train": 48, "validation": 8, "test": 8}
SHORTEST, LONGEST = 80, 200  # words
SHARED = 8  # so many words in a row stand in no two stories


def stories_of(split: str) -> list[str]:
    """Return the stories of a split: what blank lines part."""
    return (FOLDER / f"{split}.txt").read_bytes().decode("utf-8").removesuffix("\n").split("\n\n")


def every_story() -> list[str]:
    """Return the stories of all splits."""
    return [story for split in COUNTS for story in stories_of(split)]


def card() -> str:
    """Return the card."""
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    """Return the words as said, without marks."""
    return re.findall(r"[\w']+", text.lower())


@pytest.mark.parametrize("split", COUNTS)
def test_a_file_is_ascii_with_plain_line_ends_and_the_stories_that_the_card_names(split: str) -> None:
    raw = (FOLDER / f"{split}.txt").read_bytes()
    assert re.fullmatch(rb"[\x20-\x7e\n]+", raw)
    assert raw.endswith(b"\n")
    stories = stories_of(split)
    assert len(stories) == COUNTS[split]
    assert f"| `{split}.txt` | {len(stories)} | {sum(len(story.split()) for story in stories)} |" in card()
    for line in raw.decode("ascii").split("\n"):
        assert line == line.strip()
        assert "  " not in line


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 100_000


@pytest.mark.parametrize("split", COUNTS)
def test_a_story_has_a_story_s_length_and_ends_where_a_sentence_ends(split: str) -> None:
    for story in stories_of(split):
        assert SHORTEST <= len(story.split()) <= LONGEST, story
        assert re.search(r"[.?!]\"?$", story), story
        for line in story.split("\n"):
            assert line[:1].isupper() or line[:1] == '"', line
            assert line.count('"') % 2 == 0, line


def test_the_card_tells_their_lengths() -> None:
    lengths = [len(story.split()) for story in every_story()]
    said = f"{min(lengths)} to {max(lengths)} words (median {statistics.median(lengths):g})"
    assert said in card()


def test_no_text_stands_in_two_places() -> None:
    stories = every_story()
    assert len({tuple(words(story)[:3]) for story in stories}) == len(stories)
    runs = []
    for story in stories:
        said = words(story)
        runs.append({tuple(said[start : start + SHARED]) for start in range(len(said) - SHARED + 1)})
    assert [" ".join(run) for one, other in combinations(runs, 2) for run in one & other] == []
