"""Two processes on two cores beside one process with two threads: tokens of training, rows of scoring a second.

python tests/benchmarks/processes.py                (some minutes on two quiet cores)
python tests/benchmarks/processes.py --rows 64 --repeats 1

Both make the same updates of the same toy rows with the same model, alternating: a classifier of the shape of MiniLM,
and a Transformer that writes. The ratio is the median of the repeats with minimum and maximum.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from training_speed import ROOT, ratios

TASKS = ("bert_classification", "seq2seq")
WORDS = [f"word{number}" for number in range(500)]
PLACE = ("baseline=none", "train.use_cpu=true", "train.load_best_model_at_end=false", "train.save_steps=1000000")


def main() -> None:
    """Measure both tasks and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_024, help="training rows; a quarter of them are scored")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6, help="of the classifier")
    asked = parser.parse_args()
    from finetune import hardware

    print(f"{os.cpu_count()} cores, {hardware.cpu_capability()}; load {hardware.load_average():.1f}; {asked.rows} rows")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {"bert_classification": classification(folder, asked), "seq2seq": translation(folder, asked.rows)}
        for task in TASKS:
            runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
            for _ in range(asked.repeats):
                for processes in (1, 2):
                    runs[processes].append(measure(folder, [task, *commands[task]], processes))
            for figure in ("train", "evaluate"):
                one, two = ([run[figure] for run in runs[processes]] for processes in (1, 2))
                middle = f"one {statistics.median(one):8.0f}/s  two {statistics.median(two):8.0f}/s"
                print(f"{task:<20} {figure:<9} {middle}  {ratios(two, one)}")


def measure(folder: Path, command: list[str], processes: int) -> dict[str, float]:
    """Train in so many processes, an update of 32 rows, and return what was done a second."""
    size = f"train.per_device_train_batch_size={32 // processes}"
    arguments = ["train", *command, *PLACE, size, f"output_dir={folder / 'run'}", "--overwrite", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "finetune", *arguments, "--processes", str(processes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(2 // processes)},
        capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(ended.stderr)
    results: dict[str, Any] = json.loads(ended.stdout)
    rates = [rate for name, rate in results["throughput"].items() if name.startswith("train_tokens")]
    return {"train": rates[0], "evaluate": results["diagnostics"]["rows"]["test"] / results["seconds"]["evaluate"]}


def texts(rows: int, seed: int) -> list[str]:
    """Return texts of 10 to 40 words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(10, 41))) for _ in range(rows)]


def classification(folder: Path, asked: argparse.Namespace) -> list[str]:
    """Write labelled texts and a model of the shape of MiniLM with random weights; return them as settings."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    files = []
    for seed, (name, rows) in enumerate({"train": asked.rows, "validation": 32, "test": asked.rows // 4}.items()):
        path = folder / f"{name}.csv"
        lines = [f"{number % 4},{text}" for number, text in enumerate(texts(rows, seed))]
        path.write_text("label,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
        files.append(f"data.{name}={path}")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(entries)}, model_max_length=128)
    tokenizer.save_pretrained(folder / "model")
    shape = BertConfig(
        vocab_size=len(entries), hidden_size=384, num_hidden_layers=asked.layers, num_attention_heads=12,
        intermediate_size=1_536,
    )  # fmt: skip
    BertModel(shape).save_pretrained(folder / "model")
    return [*files, f"model={folder / 'model'}", "train.num_train_epochs=1"]


def translation(folder: Path, rows: int) -> list[str]:
    """Write texts, and the same backwards; return them and a Transformer as settings."""
    files = []
    for seed, (name, count) in enumerate({"train": rows, "validation": 32, "test": rows // 4}.items()):
        path = folder / f"{name}.jsonl"
        pairs = [
            json.dumps({"source": text, "target": " ".join(reversed(text.split()))}) for text in texts(count, seed)
        ]
        path.write_text("\n".join(pairs) + "\n", encoding="utf-8")
        files.append(f"data.{name}={path}")
    return [*files, "task=transduction", "vocabulary.kind=word", "train.num_train_epochs=1", "search.beam_size=1"]


if __name__ == "__main__":
    main()
