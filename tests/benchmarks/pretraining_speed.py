"""Masked language modelling beside transformers.Trainer with its collator: the same model, rows, and precision.

    python tests/benchmarks/pretraining_speed.py --data mono.en.txt [--rows blocks|lines] [--updates 20] [--repeats 3]

Both train in fp32, 4,096 tokens an update as near as may be. The peer gets the same blocks without padding, as its
example script run_mlm.py makes them (`--rows blocks`), or the lines as they are, each batch padded to its longest
(`--rows lines`); it works out the logits of every token, where here only hidden places have logits. The systems
alternate; the ratio is that of real (not padded) tokens a second of processor time, which other programs on the
machine disturb less than the clock on the wall.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import BertForMaskedLM, DataCollatorForLanguageModeling

from finetune import hardware
from finetune.pretraining import corpus, material, model, routes
from finetune.pretraining.corpus import CorpusConfig
from finetune.pretraining.examples import Frame
from finetune.pretraining.masking import MaskingConfig
from finetune.pretraining.model import ShapeConfig
from finetune.pretraining.stores import Encoder
from finetune.pretraining.vocabulary import VocabularyConfig
from finetune.run import Run
from finetune.trainer import TrainConfig, Trainer

TOKENS = 4_096
SHAPE = ShapeConfig(hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="text, a line each; .txt or .txt.gz")
    parser.add_argument("--rows", choices=["blocks", "lines"], default="blocks")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--max-length", type=int, default=128)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    data = CorpusConfig(train=asked.data)
    plan = material.plan("mlm", [], data, None, 1)
    words = VocabularyConfig(vocab_size=asked.vocab_size)
    ours, theirs = [], []
    for _ in range(asked.repeats):
        ours.append(finetune_rate(plan, words, asked.updates, asked.max_length))
        theirs.append(trainer_rate(plan, words, asked))
        print(f"finetune {ours[-1]:,.0f} tokens/s · Trainer {theirs[-1]:,.0f} tokens/s", flush=True)
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    device = hardware.describe(use_cpu=True)
    print(f"ratio {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] · fp32 on {device}")
    peak, need = matmul_rate(), multiplications(asked.vocab_size, asked.max_length)
    share = statistics.median(ours) * need / peak
    print(f"matrix products {need / 1e6:.1f} MFLOP a token · peak {peak / 1e9:.0f} GFLOP/s · share {share:.0%}")
    print(f"load {hardware.load_average():.1f}")
    print(json.dumps({"finetune": ours, "trainer": theirs}))


def finetune_rate(plan: material.Plan, words: VocabularyConfig, updates: int, max_length: int) -> float:
    """Return the tokens a second of processor time of packed blocks."""
    start = routes.begin(plan, None, words, SHAPE, max_length)
    frame = Frame.of(start.tokenizer, max_length, MaskingConfig())
    found = material.read(plan, start.tokenizer, frame, None)
    config = TrainConfig(
        learning_rate=5e-4, num_train_epochs=1, per_device_train_batch_size=256, max_tokens_per_batch=TOKENS,
        mixed_precision="no", use_cpu=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loop = Trainer(start.model, config, Run(Path(folder) / "run", quiet=True), loss=model.loss, seed=1)
        steps = loop.plan(found.train)[: updates + 1]
        loop.model.train()
        loop._update(0, steps[0][1], found.train)
        began = time.process_time()
        for number, (_, update) in enumerate(steps[1:], 1):
            loop._update(number, update, found.train)
        seconds = time.process_time() - began
    return float(sum(int(found.train.lengths[update].sum()) for _, update in steps[1:]) / seconds)


def trainer_rate(plan: material.Plan, words: VocabularyConfig, asked: argparse.Namespace) -> float:
    """Return the tokens a second of processor time of transformers.Trainer on the same text."""
    updates, max_length = asked.updates, asked.max_length
    start = routes.begin(plan, None, words, SHAPE, max_length)
    frame = Frame.of(start.tokenizer, max_length, MaskingConfig())
    lines = [str(values[0]) for _, values in corpus.open_lines(str(plan.data.train), plan.data).rows if values[0]]
    coded = Encoder(start.tokenizer).encode(lines[:20_000])
    if asked.rows == "blocks":
        flat = [token for row in coded for token in row]
        coded = [flat[place : place + frame.room] for place in range(0, len(flat) - frame.room, frame.room)]
    rows = [{"input_ids": frame.around(np.array(row)).tolist()} for row in coded]
    mean = statistics.mean(len(row["input_ids"]) for row in rows)
    size = max(1, round(TOKENS / mean))
    torch.manual_seed(1)
    network = BertForMaskedLM(start.model.network.config)
    network.set_attn_implementation("sdpa")
    chosen = rows[: size * (updates + 1)]
    collate = DataCollatorForLanguageModeling(start.tokenizer, mlm_probability=0.15)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, per_device_train_batch_size=size, num_train_epochs=1, learning_rate=5e-4, save_strategy="no",
            report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(
            network, settings, train_dataset=chosen, data_collator=collate, callbacks=[clock]
        )
        trainer.train()
    return float(sum(len(row["input_ids"]) for row in chosen) * updates / (updates + 1) / clock.seconds)


def multiplications(vocab_size: int, max_length: int) -> float:
    """Return the floating point operations a token of an update: matrix products, forwards and twice that backwards.

    The output layer counts at hidden places alone, 15 % of the tokens.
    """
    wide, inner = SHAPE.hidden_size, SHAPE.intermediate_size
    layer = 4 * wide * wide + 2 * wide * inner + 2 * max_length * wide
    return 6.0 * (SHAPE.num_hidden_layers * layer + 0.15 * (wide * wide + wide * vocab_size))


def matmul_rate(size: int = 2_048, repeats: int = 20) -> float:
    """Return the most floating point operations a second of processor time of square fp32 matrix products."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    rates = []
    for _ in range(repeats):
        began = time.process_time()
        torch.mm(one, other)
        rates.append(2.0 * size**3 / (time.process_time() - began))
    return max(rates)


class Clock(transformers.TrainerCallback):
    """Measures processor time from the end of the first update to the end of the last."""

    def __init__(self) -> None:
        self.began = self.seconds = 0.0

    def on_step_end(self, args: object, state: object, control: object, **others: object) -> None:
        """Start the clock at the first update; note it at each later one."""
        if not self.began:
            self.began = time.process_time()
        self.seconds = time.process_time() - self.began


if __name__ == "__main__":
    main()
