"""Measure what a person waits for: `finetune --help`, `check`, and what comes before the first batch of 10,000 rows.

python tests/benchmarks/startup.py
"""

import csv
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 10_000
REPEATS = 5


def user_seconds(*arguments: str) -> str:
    """Return the user CPU seconds of a command, the median and the spread of some turns."""
    spent = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-m", "finetune", *arguments], check=True, capture_output=True)
        spent.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    spent.sort()
    return f"{spent[REPEATS // 2]:.2f} s user CPU, median of {REPEATS} [{spent[0]:.2f}, {spent[-1]:.2f}]"


def startup_seconds(folder: Path) -> float:
    """Return the seconds from the first line of the recipe to the first batch, imports aside, caches warm."""
    from finetune import pretrained, trainer
    from finetune.run import Run
    from recipes import bert_classification as recipe

    pretrained.quiet()
    began = 0.0

    def stop(*_: object, **__: object) -> None:
        raise StopIteration(time.perf_counter() - began)

    original, trainer.Trainer._update = trainer.Trainer._update, stop  # type: ignore[method-assign]
    data = recipe.DataConfig(train=str(folder / "train.csv"), test=str(folder / "test.csv"))
    config = recipe.Config(model="minilm", data=data)
    try:
        began = time.perf_counter()
        with Run(folder / "run", quiet=True) as run:
            recipe.train(config, run)
    except StopIteration as reached:
        return float(reached.value)
    finally:
        trainer.Trainer._update = original  # type: ignore[method-assign]
    raise RuntimeError("the first batch was never reached")


def main() -> None:
    """Print the figures."""
    print(f"finetune --help   {user_seconds('--help')}")
    words = [f"word{number}" for number in range(2_000)]
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, rows in (("train", ROWS), ("test", ROWS // 10)):
            with (folder / f"{part}.csv").open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["text", "label"])
                for _ in range(rows):
                    label = draw.randrange(4)
                    writer.writerow([" ".join([f"word{label}", *draw.choices(words, k=15)]), f"label{label}"])
        files = [f"data.{part}={folder / part}.csv" for part in ("train", "test")]
        print(f"finetune check, {ROWS:,} rows   {user_seconds('check', *files)}")
        cold = startup_seconds(folder)
        warm = sorted(startup_seconds(folder) for _ in range(3))
    spread = f"[{warm[0]:.1f}, {warm[-1]:.1f}]"
    print(f"before the first batch of {ROWS:,} rows   {warm[1]:.1f} s {spread}, baseline cached; {cold:.1f} s without")


if __name__ == "__main__":
    main()
