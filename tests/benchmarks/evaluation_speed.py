"""Score one classifier beside transformers.Trainer, the same weights and rows, alternating; print the ratios.

python tests/benchmarks/evaluation_speed.py [--repeats 5]

Data: the test rows of umsab English from FINETUNE_BENCHMARK_DATA (default ../shared/data), else the shipped tickets.
The peer predicts as it comes and grouped by length, and where the CPU multiplies bf16 with both; tokenizing is left
out. Labels are compared with the peer as it comes: grouped by length, it returns the rows in another order.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from training_speed import PEERS, files

from finetune import classifier, hardware, pretrained, trainer
from finetune.data.columns import DataConfig, LabelMap, read_splits
from finetune.data.encode import encode
from finetune.trainer import TrainConfig

Scorer = Callable[[], tuple[float, np.ndarray]]  # rows/s and the predicted labels


def ours(folder: str, test: Any) -> Scorer:
    """Return finetune as it comes."""
    parts = classifier.load_trained(folder)
    encoded = encode(test, parts.tokenizer, 128, "truncate")
    config = trainer.resolve(TrainConfig(), width=parts.width, rows=len(test), classes=3)

    def run() -> tuple[float, np.ndarray]:
        scored = classifier.predict(parts, encoded, config)
        return len(test) / scored.seconds, scored.probabilities.argmax(axis=1)

    return run


def peer(folder: str, test: Any, settings: dict[str, Any], scratch: str) -> Scorer:
    """Return transformers.Trainer with these settings."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_dict(dict(tokenizer(test.texts(), truncation=True, max_length=128)))
    arguments = transformers.TrainingArguments(
        scratch, per_device_eval_batch_size=64, use_cpu=True, report_to="none", disable_tqdm=True, **settings
    )
    loop = transformers.Trainer(model, arguments, processing_class=tokenizer)

    def run() -> tuple[float, np.ndarray]:
        found = loop.predict(rows)
        return found.metrics["test_samples_per_second"], found.predictions.argmax(axis=1)

    return run


def main() -> None:
    """Alternate the systems and print rows/s and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    pretrained.quiet()
    datasets.disable_progress_bars()
    given = files()
    splits = read_splits(DataConfig(train=given["train"], validation=given["validation"], test=given["test"]), seed=1)
    labels = LabelMap.learn(splits["train"])
    peers = PEERS if hardware.cpu_has_bf16() else {name: PEERS[name] for name in ("trainer default", "trainer grouped")}
    with tempfile.TemporaryDirectory() as folder:
        classifier.load("minilm", labels, 1).save(Path(folder))
        systems = {"finetune": ours(folder, splits["test"])}
        systems |= {name: peer(folder, splits["test"], settings, folder) for name, settings in peers.items()}
        for run in systems.values():
            run()
        found = [{name: run() for name, run in systems.items()} for _ in range(repeats)]
    print(
        f"{hardware.describe(use_cpu=True)}; load {os.getloadavg()[0]:.1f}; {len(splits['test'])} rows, {repeats} times"
    )
    for name in systems:
        rates = sorted(one[name][0] for one in found)
        ratios = sorted(one["finetune"][0] / one[name][0] for one in found)
        middle = len(found) // 2
        ratio = f"{ratios[middle]:.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(f"{name:<22} {rates[middle]:>6.0f} rows/s   finetune is {ratio}")
    same = float(np.mean(found[0]["finetune"][1] == found[0]["trainer default"][1]))
    print(f"the same label as trainer default for {100 * same:.1f} % of the rows")


if __name__ == "__main__":
    main()
