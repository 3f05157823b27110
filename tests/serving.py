"""Serves pages of runs: of the last one by the command itself, of the others beside it in the same process.

python serving.py FILE RUN [RUN ...]: writes a line {"url": ...} for each run, in order, and at its end the addresses
outside this machine that anything in the process asked for into FILE.
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

asked: list[str] = []
HERE = {None, "", "localhost", "127.0.0.1", "::1"}


def watched(real: Any, place: int) -> Any:
    """Return a function of sockets that notes and refuses what leads outside; its address is argument `place`."""

    def guarded(*arguments: Any, **settings: Any) -> Any:
        address = arguments[place]
        host = address[0] if isinstance(address, tuple) else address
        if host not in HERE and (place == 0 or isinstance(address, tuple)):  # else a Unix socket's path
            asked.append(str(address))
            raise OSError(f"not here: {address}")
        return real(*arguments, **settings)

    return guarded


def main() -> None:
    """Serve until Ctrl-C."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # as most people have it
        os.environ.pop(name, None)
    socket.getaddrinfo = watched(socket.getaddrinfo, 0)
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, watched(getattr(socket.socket, name), 1))
    from finetune import cli
    from finetune.commands import serving

    note, *others, last = sys.argv[1:]
    for run in others:
        served = serving.playground(run, port=0)
        threading.Thread(target=served.run, daemon=True).start()
        sys.stdout.write(json.dumps({"url": served.url}) + "\n")
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored
    sys.argv = ["finetune", "playground", last, "--port", "0", "--json"]
    try:
        cli.main()
    finally:
        Path(note).write_text(json.dumps(asked))


if __name__ == "__main__":
    main()
