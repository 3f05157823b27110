"""Runs commands one after another in each of several processes, and writes what each of them said."""

import json
import os
import sys
from pathlib import Path
from unittest import mock

from calling import call

from finetune import processes


def main(folder: Path) -> None:
    """Run the commands of commands.json, and write said-RANK.json."""
    commands = json.loads((folder / "commands.json").read_text())
    with mock.patch.object(processes, "leave"):  # they stay together for the next one
        ended = [call(*command) for command in commands]
    said = [{"code": one.code, "out": one.out, "err": one.err} for one in ended]
    (folder / f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
