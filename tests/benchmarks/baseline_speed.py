"""Time the TF-IDF recipe from the command line on banking77 (else on the shipped tickets); print seconds and accuracy.

python tests/benchmarks/baseline_speed.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Train once and print what it took."""
    folder = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / "banking77"
    prefix = f"{folder}/" if folder.is_dir() else f"{ROOT / 'data' / 'tickets'}/en."
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        settings = [f"data.{part}={prefix}{part}.csv" for part in ("train", "validation", "test")]
        began = time.perf_counter()
        command = [sys.executable, "-m", "finetune", "baseline", *settings, f"output_dir={run}"]
        subprocess.run(command, check=True, capture_output=True)
        whole = time.perf_counter() - began
        results = json.loads((run / "results.json").read_text())
    accuracy = results["scores"]["test"]["accuracy"]
    print(f"{prefix}: {whole:.1f} s from command to verdict, {results['seconds']['train']:.1f} s of them fitting")
    print(f"{results['model']}: accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]")


if __name__ == "__main__":
    main()
