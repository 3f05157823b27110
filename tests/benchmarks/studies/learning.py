"""Small trainings by the recipe: pairs of words, run folders that an interrupted study finds again, scores."""

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from finetune import significance, text_evaluation
from finetune.config import to_tree, to_yaml
from finetune.data.sequences import SequenceDataConfig
from finetune.run import Run
from finetune.seq2seq import encoder_decoder
from finetune.seq2seq.encoder_decoder import Lengths, NetworkConfig
from finetune.seq2seq.search import SearchConfig
from finetune.seq2seq.vocabulary import Vocabularies, VocabularyConfig, learn
from finetune.significance import Interval, Sample
from finetune.text_evaluation import TextPredictions
from recipes import seq2seq

TASK = text_evaluation.task_named("transduction")
WORDS = tuple(f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou")  # 60 of them
BATCH = 64
VALIDATION_ROWS = 200
EVALUATIONS = 5  # in each training


@dataclass(frozen=True)
class Pairs:
    """A task: sequences of `shortest` to `longest` words out of the first `words`, and the same copied or turned round.

    Every training pair is seen once, so nothing can be learnt by heart.
    """

    task: str
    words: int
    shortest: int
    longest: int
    updates: int
    test_rows: int

    def draw(self, rows: int, seed: int) -> list[tuple[str, str]]:
        """Return so many pairs of source and target, all lengths equally often."""
        random_of = random.Random(seed)
        drawn = []
        for _ in range(rows):
            row = random_of.choices(WORDS[: self.words], k=random_of.randint(self.shortest, self.longest))
            drawn.append((" ".join(row), " ".join(changed(self.task, row))))
        return drawn

    def lengths(self) -> Lengths:
        """Return the longest source and target in tokens."""
        return Lengths(self.longest + 1, self.longest + 2)

    def vocabularies(self) -> Vocabularies:
        """Return the words as tokens."""
        text = " ".join(WORDS[: self.words])
        return learn([text], [text], word_level())


def changed(task: str, row: list[str]) -> list[str]:
    """Return the target of a row of words."""
    return {"copy": row, "reverse": row[::-1], "sort": sorted(row)}[task]


def word_level() -> VocabularyConfig:
    """Return a vocabulary whose tokens are the words, shared by source and target."""
    return VocabularyConfig(kind="word", min_frequency=1)


def closest(size: Callable[[int], int], wanted: int, step: int) -> int:
    """Return the multiple of `step` at which a growing size (parameters of a width) comes nearest to the one wanted."""
    high = step
    while size(high) < wanted:
        high *= 2
    low = step
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if size(middle) < wanted else (low, middle)
    return min((low, high), key=lambda value: abs(size(value) - wanted))


def parameters(network: NetworkConfig, vocabularies: Vocabularies, lengths: Lengths) -> int:
    """Return how many parameters a network has."""
    return encoder_decoder.build(network, vocabularies, lengths, 1, TASK).parameters


def write_pairs(pairs: Pairs, folder: Path) -> dict[str, str]:
    """Write the three splits, which are a function of the task alone, and return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": pairs.updates * BATCH, "validation": VALIDATION_ROWS, "test": pairs.test_rows}
    for seed, (name, count) in enumerate(rows.items(), 1):
        lines = [json.dumps({"source": source, "target": target}) for source, target in pairs.draw(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def settings(pairs: Pairs, files: dict[str, str], network: NetworkConfig, seed: int) -> seq2seq.Config:
    """Return the recipe's settings of one small training, which ends with its last weights; no dropout, no smoothing.

    The rate falls in a straight line; its height is the recipe's own, by architecture and width.
    """
    loop = replace(
        encoder_decoder.loop_settings(),
        lr_scheduler_type="linear",
        num_train_epochs=1.0,
        per_device_train_batch_size=BATCH,
        load_best_model_at_end=False,
        eval_steps=max(1, pairs.updates // EVALUATIONS),
        use_cpu=True,
        mixed_precision="no",
        learning_rate=encoder_decoder.auto_learning_rate(network),
        metric_for_best_model="loss",
    )
    return seq2seq.Config(
        task=TASK.name,
        data=SequenceDataConfig(train=files["train"], validation=files["validation"], test=files["test"]),
        vocabulary=word_level(),
        network=network,
        label_smoothing_factor=0.0,
        search=SearchConfig(beam_size=1, max_new_tokens=pairs.longest + 1),
        baseline="none",
        train=loop,
        seed=seed,
    )


def trained(config: seq2seq.Config, folder: Path) -> Run:
    """Train, or return the run that an earlier call with the same settings has finished in this folder."""
    stored = folder / "config.yaml"
    wanted = to_yaml({"recipe": "seq2seq", **to_tree(config)})
    if not ((folder / "results.json").is_file() and stored.read_text(encoding="utf-8") == wanted):
        print(f"training {folder}", file=sys.stderr, flush=True)
        with Run(folder, overwrite=True, quiet=True) as run:
            seq2seq.train(config, run)
    return Run.open(folder)


def opened(names: Sequence[str]) -> dict[str, Run]:
    """Return finished runs by architecture and size, which must differ."""
    runs: dict[str, Run] = {}
    for name in names:
        parts = encoder_decoder.load(Run.open(name).model)
        label = f"{parts.name}, {parts.parameters / 1e6:.2g} M"
        assert label not in runs, f"{name} and {runs[label].folder} are both {label}: give one of them"
        runs[label] = Run.open(name)
    return runs


def predictions(run: Run) -> TextPredictions:
    """Return what a run wrote for its test rows."""
    return text_evaluation.from_rows(run.read_predictions("test"))


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl."""
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def course(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (seconds of training, validation loss) of each evaluation; seconds are written every few updates only."""
    timed = [record for record in records if "seconds" in record]
    steps, seconds = [record["step"] for record in timed], [record["seconds"] for record in timed]
    looks = [record for record in records if "validation" in record]
    return [(float(np.interp(look["step"], steps, seconds)), look["validation"]["loss"]) for look in looks]


def right_tokens(gold: str, predicted: str) -> tuple[int, int]:
    """Return how many words stand where they should, and how many places there are in the longer text."""
    wanted, written = gold.split(), predicted.split()
    return sum(a == b for a, b in zip(wanted, written, strict=False)), max(len(wanted), len(written))


def share_right(found: TextPredictions, edges: Sequence[int]) -> list[Interval]:
    """Return the share of right tokens in each bucket of source length, with its 95 % interval; `edges` are inclusive.

    There is one bucket for each edge and no row beyond the last.
    """
    counts = np.array(
        [right_tokens(gold[0], text) for gold, text in zip(found.references, found.predicted, strict=True)]
    )
    bucket = np.searchsorted(np.asarray(edges), [len(source.split()) for source in found.sources])
    shares = []
    for number in range(len(edges)):
        rows = counts[bucket == number]
        sample = Sample(np.ones(len(rows), dtype=np.int64), sparse.csr_array(rows), _ratio)
        shares.append(significance.bootstrap(sample)[0])
    return shares


def _ratio(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., :1] / sums[..., 1:])
