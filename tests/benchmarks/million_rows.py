"""Read and check a synthetic CSV of a million rows; print rows a second and peak memory above the imports.

OMP_NUM_THREADS=1 python tests/benchmarks/million_rows.py [ROWS]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from finetune.data.check import check
from finetune.data.columns import DataConfig, LabelMap, read_splits

LABELS = 20
TEST_SHARE = 100
WORDS = 5_000


def peak() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def write(file: Path, rows: int, seed: int) -> None:
    """Write `rows` rows of 8 to 30 words, about 110 characters, of which some lean to the row's label."""
    generator = np.random.default_rng(seed)
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in "aeiou"])
    words = np.array(["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(WORDS)])
    with file.open("w") as stream:
        stream.write("text,label\n")
        for _ in range(rows):
            label = int(generator.integers(LABELS))
            picked = (WORDS * generator.random(generator.integers(8, 31)) ** 2).astype(int)
            picked[:2] = (picked[:2] + 97 * label) % WORDS
            stream.write(f'"{", ".join(words[picked])}",label_{label}\n')


def main() -> None:
    """Generate the data in a temporary folder, read it, check it, and print the figures."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder, "train.csv"), Path(folder, "test.csv")
        write(train, rows, seed=1)
        write(test, max(1, rows // TEST_SHARE), seed=2)
        size = train.stat().st_size / 1e6
        before, start = peak(), time.perf_counter()
        splits = read_splits(DataConfig(train=str(train), test=str(test)), seed=1)
        read, after_read = time.perf_counter() - start, peak()
        start = time.perf_counter()
        findings = check(splits, LabelMap.learn(splits["train"]))
        checked, after_check = time.perf_counter() - start, peak()
    total = sum(len(split) for split in splits.values())
    print(f"rows      {total:,} ({size:.0f} MB of CSV in train); memory after the imports {before:.0f} MB")
    print(f"read      {total / read:,.0f} rows/s ({read:.1f} s); peak {after_read - before:.0f} MB above the imports")
    print(
        f"check     {total / checked:,.0f} rows/s ({checked:.1f} s); peak {after_check - before:.0f} MB above the same"
    )
    for finding in findings:
        print(f"{finding.level:9} {finding.message}" + (f" · {finding.action}" if finding.action else ""))


if __name__ == "__main__":
    main()
