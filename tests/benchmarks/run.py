"""Run every benchmark, one after the other, and write what they print to tests/benchmarks/RESULTS.md.

make bench        (about an hour on two quiet cores)
"""

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = (
    "startup.py", "training_speed.py", "evaluation_speed.py", "crosslingual_speed.py",
    "baseline_speed.py", "million_rows.py",
    "seq2seq_studies.py parallelism", "seq2seq_studies.py bottleneck", "seq2seq_studies.py scaling",
)  # fmt: skip


def main() -> int:
    """Run the benchmarks; return 1 where one of them failed."""
    parts = [
        "# Benchmarks",
        f"`make bench` on {datetime.date.today()}: Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} before the first one. Each block is what the script printed.",
    ]
    failed = False
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        script, *arguments = name.split()
        done = subprocess.run([sys.executable, str(HERE / script), *arguments], capture_output=True, text=True)
        text = done.stdout.strip() if done.returncode == 0 else f"failed:\n{done.stderr.strip()[-2000:]}"
        print(text, flush=True)
        parts.append(f"## {name}\n\n```\n{text}\n```")
        failed |= done.returncode != 0
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
