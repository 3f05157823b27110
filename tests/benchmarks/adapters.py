"""Compare training all weights, a part of them, and adapters: quality, trained parameters, memory, file size, speed.

python tests/benchmarks/adapters.py umsab|banking77|xsid [--seed 1] [--output FOLDER] [KEY=VALUE ...]
python tests/benchmarks/adapters.py umsab --speed 3      (texts a second of 40 updates, by turns; a quiet machine)

Data: English tweets (umsab) and banking77 with minilm, and xsid with mini-mbert, trained on English and scored in the
other languages too, where it shows what a training forgets; from FINETUNE_BENCHMARK_DATA (default ../shared/data).
Each training is a process of its own, whose peak memory is measured; one that ended is kept, one that was stopped goes
on. Rates are those of `auto`; the head alone has that of a head beside an adapter. KEY=VALUE are settings of all
trainings, e.g. data.train_rows=64 train.max_steps=3 to try the script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_speed import ROOT, ratios

from finetune import adapters, optim
from finetune.commands import comparing

DATA = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data"))
WIDTH = 384  # of both models
SHORT = ("train.max_steps=40", "train.eval_steps=40", "train.load_best_model_at_end=false", "baseline=none")
WEIGHTS = ("model.safetensors", adapters.WEIGHTS)


@dataclass(frozen=True)
class Task:
    """A data set with the recipe and the model that it is for, the score that counts, and its number of labels."""

    recipe: str
    model: str
    metric: str
    labels: int
    files: str
    settings: tuple[str, ...] = ()


TASKS = {
    "umsab": Task("bert_classification", "minilm", "macro_f1", 3, "en.{}.csv"),
    "banking77": Task("bert_classification", "minilm", "accuracy", 77, "{}.csv"),
    "xsid": Task(
        "mbert_crosslingual", "mini-mbert", "accuracy", 16, "{{language}}.{}.csv",
        ("train_languages=[en]", "test_languages=[en,it,de,nl]"),
    ),
}  # fmt: skip


def methods(task: Task) -> dict[str, tuple[str, ...]]:
    """Return what differs between the trainings."""
    rate = adapters.HEAD_TIMES["LORA"] * adapters.rate_of("LORA", optim.auto_learning_rate(WIDTH, task.labels))
    ranks = {f"LoRA, rank {rank}": ("adapter=lora", f"rank={rank}", f"alpha={2 * rank}") for rank in (2, 8, 32)}
    return {
        "all weights": (),
        "head alone": ("frozen_layers=6", f"train.learning_rate={rate:g}"),
        "last two layers": ("frozen_layers=4",),
        **ranks,
    }


def main() -> None:
    """Measure speed, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "adapters")
    parser.add_argument("--speed", type=int, metavar="TURNS", help="measure texts a second alone, in so many turns")
    asked = parser.parse_intermixed_args()
    if asked.speed:
        print_speed(asked.task, asked.speed)
    else:
        make_table(asked)


def make_table(asked: argparse.Namespace) -> None:
    """Train what is missing, then print the table and keep it as JSON."""
    task, folder = TASKS[asked.task], asked.output / asked.task
    rows = []
    for name, settings in methods(task).items():
        run = folder / f"{name.replace(', ', '-').replace(' ', '-')}-seed-{asked.seed}"
        costs = trained(asked.task, (*settings, f"seed={asked.seed}", *asked.settings), run)
        rows.append({"method": name, "run": str(run)} | figures(task, run) | costs)
    for row in rows[1:]:
        row["difference"] = {
            found.get("language", "test"): [found[key] for key in ("difference", "low", "high")]
            for found in comparing.compare([row["run"], rows[0]["run"]])
        }
    (folder / f"seed-{asked.seed}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print_table(task, rows)


def trained(name: str, settings: tuple[str, ...], run: Path) -> dict[str, float]:
    """Train in a process of its own, or find what did; return its peak memory in bytes."""
    kept = run.with_suffix(".json")
    if not (run / "results.json").is_file() or not kept.is_file():
        task, folder = TASKS[name], DATA / name
        files = [f"data.{part}={folder / task.files.format(part)}" for part in ("train", "validation", "test")]
        command = ["train", task.recipe, *files, f"model={task.model}", *task.settings, *settings, f"output_dir={run}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune", *command, "--resume"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone, not of all of them
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{run}: exit code {process.returncode}; run the script again to go on")
        kept.write_text(json.dumps({"peak_memory": usage.ru_maxrss * 1024}), encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def figures(task: Task, run: Path) -> dict[str, Any]:
    """Return scores and sizes of a run."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    languages = results.get("languages") or {"test": results["scores"]["test"]}
    weights = next(run / "model" / name for name in WEIGHTS if (run / "model" / name).is_file())
    return {
        "scores": {language: scores[task.metric] for language, scores in languages.items()},
        "trained": results["diagnostics"]["trained_parameters"],
        "file": weights.stat().st_size,
    }


def print_speed(name: str, turns: int) -> None:
    """Train briefly with each method in turn and print texts a second, and how many times those of all weights."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(turns):
            for number, (method, settings) in enumerate(methods(TASKS[name]).items()):
                run = Path(folder) / f"{turn}-{number}"
                trained(name, (*settings, *SHORT), run)
                results = json.loads((run / "results.json").read_text(encoding="utf-8"))
                rates.setdefault(method, []).append(results["throughput"]["train_examples_per_second"])
    whole = rates["all weights"]
    for method, found in rates.items():
        print(f"{method:<16} {statistics.median(found):5.0f} texts/s   {ratios(found, whole)}")


def print_table(task: Task, rows: list[dict[str, Any]]) -> None:
    """Print a line for each training; behind a score its 95 % interval and the difference to all weights."""
    columns = list(rows[0]["scores"])
    heads = [f"{task.metric} {column}" for column in columns]
    print(" | ".join(["method", *heads, "trained parameters", "peak memory, MB", "file, MB"]))
    for row in rows:
        cells = []
        for column in columns:
            score = row["scores"][column]
            text = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
            if "difference" in row:
                value, low, high = (100 * one for one in row["difference"][column])
                text += f" ({value:+.1f} [{low:+.1f}, {high:+.1f}] points of accuracy)"
            cells.append(text)
        sizes = (f"{row['trained']:,}", f"{row['peak_memory'] / 1e6:,.0f}")
        print(" | ".join([row["method"], *cells, *sizes, f"{row['file'] / 1e6:.1f}"]))


if __name__ == "__main__":
    main()
