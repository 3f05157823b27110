"""What is asked with a deadline answers, fails, or is left behind."""

import threading

import pytest

from finetune.deadline import answer_within


def test_an_answer_and_an_error_come_back_as_they_are() -> None:
    assert answer_within(10, lambda: None) is None
    assert answer_within(10, lambda: 3) == 3
    with pytest.raises(KeyError, match="x"):
        answer_within(10, lambda: {"y": 1}["x"])


def test_who_takes_too_long_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0.05 seconds"):
        answer_within(0.05, release.wait)
    release.set()
