"""The errors that a person can mend, and the exit code of each kind."""

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
