"""The errors that a person can mend, and the exit code of each kind."""

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command (BSD's sysexits.h where it has one)."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_DATA = 65
    NO_INPUT = 66
    NO_NETWORK = 69
    DIVERGED = 70
    OUTPUT_TAKEN = 73
    IO_FAILED = 74
    LOST = 75
    UNSAFE = 77
    INTERRUPTED = 130
    TERMINATED = 143


class UserError(Exception):
    """Say what is wrong, where, and what to do, in one to three lines; printed without a traceback."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):
    """Leave the program after a signal, once the work done so far is on disk."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelt most like `name`, or None where none is close."""
    spelt = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(spelt), n=1, cutoff=0.6)
    return spelt[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` where a known name is close, else nothing."""
    close = nearest(name, known)
    return f"; did you mean {close}?" if close else ""
