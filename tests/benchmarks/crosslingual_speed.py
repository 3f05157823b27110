"""Score five languages with one classifier beside five calls of transformers.Trainer.predict; print the ratios.

python tests/benchmarks/crosslingual_speed.py [--repeats 5] [--rows N]

Data: the test rows of sib200 (en, it, de, es, fr) from FINETUNE_BENCHMARK_DATA (default ../shared/data), else the
shipped tickets. The same weights, batch size and rows, the systems alternating, tokenizing included on both sides.
finetune tokenizes the languages together and runs them through the model in one pass sorted by length; the peer
predicts one language after the other, as it comes, grouped by length, and where the CPU multiplies bf16 with both.
Seconds are processor time of all threads, which other programs on the machine change little; --rows takes the first N
rows of each language.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from training_speed import PEERS, ROOT

from finetune import classifier, crosslingual, hardware, pretrained, trainer
from finetune.classifier import Classifier
from finetune.data import patterns
from finetune.data.columns import DataConfig, LabelMap, Split, read_split
from finetune.data.encode import encode
from finetune.report.results import judge
from finetune.trainer import TrainConfig

LANGUAGES = ("en", "it", "de", "es", "fr")
Scorer = Callable[[], dict[str, np.ndarray]]  # the predicted labels of each language


def test_splits(rows: int | None) -> dict[str, Split]:
    """Read the test rows of each language, or the first of them."""
    folder = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / "sib200"
    folder = folder if folder.is_dir() else ROOT / "data" / "tickets"
    whole = {language: read_split("test", str(folder / f"{language}.test.csv"), DataConfig()) for language in LANGUAGES}
    return {language: split.select(range(len(split))[:rows]) for language, split in whole.items()}


def ours(parts: Classifier, tests: dict[str, Split]) -> Scorer:
    """Return finetune as the cross-lingual recipe scores."""
    config = trainer.resolve(TrainConfig(), width=parts.width, rows=1, classes=len(parts.labels.names))

    def run() -> dict[str, np.ndarray]:
        together = patterns.join("test", tests)
        scored = classifier.predict(parts, encode(together, parts.tokenizer, 128, "truncate"), config)
        judged = judge(together, parts.labels.encode(together), scored.probabilities, parts.labels)
        return {name: cell.predicted for name, cell in crosslingual.by_language(judged, tests).items()}

    return run


def peer(folder: str, tests: dict[str, Split], settings: dict[str, Any], scratch: str) -> Scorer:
    """Return transformers.Trainer with these settings, called once for each language."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    arguments = transformers.TrainingArguments(
        scratch, per_device_eval_batch_size=64, use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )
    loop = transformers.Trainer(model, arguments, processing_class=tokenizer)

    def run() -> dict[str, np.ndarray]:
        found = {}
        for language, split in tests.items():
            rows = datasets.Dataset.from_dict(dict(tokenizer(split.texts(), truncation=True, max_length=128)))
            found[language] = loop.predict(rows).predictions.argmax(axis=1)
        return found

    return run


def timed(run: Scorer) -> tuple[float, dict[str, np.ndarray]]:
    """Return the seconds of processor time of a call and what it predicted."""
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def main() -> None:
    """Alternate the systems and print rows/s and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    repeats = given.repeats
    pretrained.quiet()
    datasets.disable_progress_bars()
    tests = test_splits(given.rows)
    rows = sum(len(split) for split in tests.values())
    labels = LabelMap.learn(patterns.join("test", tests))
    peers = PEERS if hardware.cpu_has_bf16() else {name: PEERS[name] for name in ("trainer default", "trainer grouped")}
    with tempfile.TemporaryDirectory() as folder:
        classifier.load("minilm", labels, 1).save(Path(folder))
        systems = {"finetune": ours(classifier.load_trained(folder), tests)}
        systems |= {name: peer(folder, tests, settings, folder) for name, settings in peers.items()}
        for run in systems.values():
            run()
        found = [{name: timed(run) for name, run in systems.items()} for _ in range(repeats)]
    cpu, load = hardware.describe(use_cpu=True), os.getloadavg()[0]
    print(f"{cpu}; load {load:.1f}; {rows:,} rows in {len(tests)} languages, {repeats} times")
    for name in systems:
        rates = sorted(rows / one[name][0] for one in found)
        ratios = sorted(one[name][0] / one["finetune"][0] for one in found)
        ratio = f"{np.median(ratios):.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(f"{name:<22} {np.median(rates):>6.0f} rows/s   finetune is {ratio}")
    mine, theirs = found[0]["finetune"][1], found[0]["trainer default"][1]
    same = np.mean(np.concatenate([mine[language] == theirs[language] for language in tests]))
    print(f"the same label as trainer default for {100 * same:.1f} % of the rows")


if __name__ == "__main__":
    main()
