"""Runs commands one after another in a process whose surroundings the test chose before anything was imported.

Each line on stdin is `{"arguments": [...], "environment": {...}}`, each on stdout what came of it. Sockets reach this
machine alone; who tried more is told in `refused`. The code is as it is; only the waiting between two tries of a
library is shorter, and a download comes in smaller pieces, so that a small file has several, as a large one has.
"""

import contextlib
import importlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from finetune import cli

refused: list[str] = []


def guard(reach: Callable[..., Any], host_of: Callable[..., object]) -> Callable[..., Any]:
    """Return `reach`, for hosts on this machine alone."""

    def guarded(*arguments: Any, **named: Any) -> Any:
        host = host_of(*arguments)
        if host not in {"localhost", "127.0.0.1", "::1", None}:
            refused.append(str(host))
            raise OSError(f"this process may not reach {host}")
        return reach(*arguments, **named)

    return guarded


def close_the_world() -> None:
    """Keep this process on this machine, its waiting short and its downloads in pieces."""

    def host_of(_: socket.socket, address: Any) -> object:
        return address[0] if isinstance(address, tuple) else None  # a Unix socket is a path

    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, guard(getattr(socket.socket, name), host_of))
    socket.getaddrinfo = guard(socket.getaddrinfo, lambda host, *_: host)
    wait = time.sleep
    cli._quiet_environment()  # as every command does first: huggingface_hub reads it when it is imported
    importlib.import_module("huggingface_hub.constants").DOWNLOAD_CHUNK_SIZE = 4096  # type: ignore[attr-defined]
    time.sleep = lambda seconds: wait(min(float(seconds), 0.02))


def run(arguments: list[str]) -> dict[str, Any]:
    """Run one command and tell how it ended."""
    out, err = io.StringIO(), io.StringIO()
    constants: Any = importlib.import_module("huggingface_hub.constants")
    code, began = 0, time.monotonic()
    with (
        mock.patch.object(sys, "argv", ["finetune", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(constants, "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_XET" in os.environ),  # read once otherwise
    ):
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
    seconds = time.monotonic() - began
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds, "refused": refused[:]}


def main() -> None:
    """Answer until stdin ends."""
    answers = sys.stdout
    close_the_world()
    for line in sys.stdin:
        asked = json.loads(line)
        refused.clear()
        with mock.patch.dict(os.environ, asked["environment"]):
            answers.write(json.dumps(run(asked["arguments"])) + "\n")
        answers.flush()
    os._exit(0)  # the libraries take seconds to say goodbye


if __name__ == "__main__":
    main()
