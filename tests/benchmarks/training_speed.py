"""Train and score MiniLM beside transformers.Trainer, alternating, and print the ratios.

python tests/benchmarks/training_speed.py [--repeats 3] [--epochs 2]

Data: umsab English from the folder in FINETUNE_BENCHMARK_DATA (default ../shared/data), else the shipped tickets.
The peer runs as it comes (fp32), with group-by-length sampling, and, where the CPU multiplies bf16, with both; its best
is the fastest of these. All have the same rows, batch size 32, rate, warm-up and weight decay; a repeat is a seed.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"learning_rate": 1e-4, "weight_decay": 0.01, "per_device_train_batch_size": 32}
PEERS: dict[str, dict[str, Any]] = {
    "trainer default": {},
    "trainer grouped": {"train_sampling_strategy": "group_by_length"},
    "trainer bf16+grouped": {"train_sampling_strategy": "group_by_length", "bf16": True},
}


def files() -> dict[str, str]:
    """Return the data files of the benchmark."""
    folder = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / "umsab"
    folder = folder if folder.is_dir() else ROOT / "data" / "tickets"
    return {name: str(folder / f"en.{name}.csv") for name in ("train", "validation", "test")}


def ours(seed: int, epochs: int) -> dict[str, float]:
    """Train with `finetune train` as it comes and return its figures from results.json."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"data.{name}={file}" for name, file in files().items()]
        settings += [f"{name}={value}" for name, value in SETTINGS.items()]
        settings += ["model=minilm", f"output_dir={run}", f"num_train_epochs={epochs}", f"seed={seed}", "baseline=none"]
        command = [sys.executable, "-m", "finetune", "train", "bert_classification", *settings]
        subprocess.run(command, check=True, capture_output=True)
        results = json.loads((run / "results.json").read_text())
    scores, rows = results["scores"]["test"], results["diagnostics"]["rows"]["test"]
    return {
        "train": results["throughput"]["train_examples_per_second"],
        "evaluate": rows / results["seconds"]["evaluate"],
        "accuracy": scores["accuracy"]["value"],
        "macro_f1": scores["macro_f1"]["value"],
    }


def peer(name: str, seed: int, epochs: int) -> dict[str, float]:
    """Train with transformers.Trainer and return the figures that it reports itself."""
    import datasets
    import transformers
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from finetune.pretrained import locate

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    folder = locate("minilm").path
    rows = {}
    for part, file in files().items():
        with open(file, encoding="utf-8", newline="") as stream:
            rows[part] = list(csv.DictReader(stream))
    labels = sorted({row["label"] for row in rows["train"]})
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(part: str) -> datasets.Dataset:
        coded = tokenizer([row["text"] for row in rows[part]], truncation=True, max_length=128, padding=False)
        targets = [labels.index(row["label"]) for row in rows[part]]
        return datasets.Dataset.from_dict({**coded, "labels": targets})

    transformers.set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output, num_train_epochs=epochs, seed=seed, warmup_steps=0.1, per_device_eval_batch_size=64,
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, **SETTINGS, **PEERS[name],
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=encode("train"), processing_class=tokenizer)
        trained = trainer.train()
        found = trainer.predict(encode("test"))
    predicted = found.predictions.argmax(axis=1)
    return {
        "train": trained.metrics["train_samples_per_second"],
        "evaluate": found.metrics["test_samples_per_second"],
        "accuracy": accuracy_score(found.label_ids, predicted),
        "macro_f1": f1_score(found.label_ids, predicted, average="macro"),
    }


def measure(name: str, seed: int, epochs: int) -> dict[str, float]:
    """Measure one system in a process of its own."""
    if name == "finetune":
        return ours(seed, epochs)
    command = [sys.executable, __file__, "--peer", name, "--seed", str(seed), "--epochs", str(epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> str:
    """Return the ratio of one to another in each turn: median, minimum and maximum."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.2f}x [{min(found):.2f}, {max(found):.2f}]"


def main() -> None:
    """Alternate the systems and print figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--peer", choices=list(PEERS))
    parser.add_argument("--seed", type=int, default=1)
    given: Any = parser.parse_args()
    if given.peer:
        print(json.dumps(peer(given.peer, given.seed, given.epochs)))
        return

    from finetune import hardware

    systems = ["finetune", *PEERS] if hardware.cpu_has_bf16() else ["finetune", "trainer default", "trainer grouped"]
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{hardware.describe(use_cpu=True)}; {load}; {given.epochs} epochs of {Path(files()['train']).name}")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for seed in range(1, given.repeats + 1):
        for name in systems:
            runs[name].append(measure(name, seed, given.epochs))
    head = f"examples/s, median of {given.repeats}"
    print(f"{head:<28}{'train':>8}{'evaluate':>10}{'accuracy':>10}{'macro-F1':>10}")
    for name, found in runs.items():
        middle = {key: sorted(run[key] for run in found)[len(found) // 2] for key in ("train", "evaluate")}
        mean = {key: sum(run[key] for run in found) / len(found) for key in ("accuracy", "macro_f1")}
        speed = f"{middle['train']:>8.0f}{middle['evaluate']:>10.0f}"
        print(f"{name:<28}{speed}{mean['accuracy']:>10.3f}{mean['macro_f1']:>10.3f}")
    for name in systems[1:]:
        train, evaluate = (
            ratios(*([run[key] for run in runs[side]] for side in ("finetune", name))) for key in ("train", "evaluate")
        )
        print(f"finetune / {name:<22} train {train}   evaluate {evaluate}")


if __name__ == "__main__":
    main()
