"""How far weights and losses of several ways to make the same updates are from those of one process.

python tests/benchmarks/process_equality.py

Each kind of model that the recipes train makes six updates of eight rows, the third and sixth of one, in float64 and
without dropout: 1 process x 8, accumulation 4 x 2, 2 processes x 4, and these with `sharding=fsdp`. Printed are the
largest difference of any weight and the largest relative one of any loss, which tests/test_processes.py bounds.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    """Print a line for each kind of model."""
    from updates import KINDS, in_float64, train

    print("model | accumulation 4 x 2 | 2 processes x 4 | 2 processes x 4, sharding=fsdp")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with in_float64():
            for kind in KINDS:
                train(kind, folder / "alone" / kind, per_device_train_batch_size=8)
                steps: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
                train(kind, folder / "accumulated" / kind, **steps)
            train("classification", folder / "together" / "whole", stop_in=4, per_device_train_batch_size=8)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run(
            [*launcher, str(ROOT / "tests" / "updates.py"), str(folder / "together")], check=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for kind in KINDS:
            others = [folder / "accumulated" / kind, folder / "together" / kind, folder / "together" / "sharded" / kind]
            print(" | ".join([kind, *(apart(folder / "alone" / kind, other) for other in others)]))


def apart(one: Path, other: Path) -> str:
    """Return the largest difference of any weight that two runs end with, and of any loss, as text."""
    from safetensors.torch import load_file
    from test_processes import metrics
    from updates import ENDED

    first, second = (load_file(folder / ENDED) for folder in (one, other))
    weights = max(float((first[name] - second[name]).abs().max()) for name in first)
    losses = [[record["loss"] for record in metrics(folder) if "loss" in record] for folder in (one, other)]
    assert len(losses[0]) == len(losses[1])
    loss = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    return f"{weights:.1e}, {loss:.1e}"


if __name__ == "__main__":
    main()
