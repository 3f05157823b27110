"""GPT-2 beside transformers: the training of a small one, and greedy writing with the shape of GPT-2 small.

    python tests/benchmarks/causal_speed.py training --data TEXT [--updates 12] [--repeats 3]
    python tests/benchmarks/causal_speed.py writing [--prompts 64] [--new-tokens 32] [--batch 16] [--repeats 3]

`training`: 6 layers 256 wide, 4,096 tokens an update. transformers.Trainer has its causal collator and the same
blocks without padding, as its example script run_clm.py makes them: its best configuration on a CPU. There a document
sees those before it in its block, here it does not.

`writing`: random weights never end a text, so both write every token. `alike`: prompts of one length. `ragged`: of 8 to
128 tokens, which transformers' generate gets in their order, `--batch` at once, padded on the left; `finetune` sorts
them and chooses how many it takes. The texts must be the same. In bfloat16 transformers' model is one of bfloat16, and
the texts may differ. Beside it stand two limits of a step in fp32: the bytes of weights over the bandwidth that a sum
of as many bytes reaches, and its multiplications over the rate of a large product.

The systems alternate, ratios are of processor time, which other programs disturb less than the clock on the wall.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from pretraining_speed import Clock, matmul_rate
from training_speed import ratios
from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel

from finetune import hardware
from finetune.causal import model, packing, tokenizer
from finetune.causal.model import ShapeConfig
from finetune.causal.tokenizer import TextEncoder, VocabularyConfig
from finetune.cpu import packed, prepare
from finetune.generation import CausalDecoder, GenerationConfig, Pen, write_rows
from finetune.run import Run
from finetune.trainer import TrainConfig, Trainer

TOKENS = 4_096
LINES = 20  # of a document
END = 50_256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True, dest="kind")
    training = kinds.add_parser("training")
    training.add_argument("--data", required=True, type=Path, help="text, a line each; .txt or .txt.gz")
    training.add_argument("--updates", type=int, default=12)
    training.add_argument("--vocab-size", type=int, default=16_000)
    training.add_argument("--max-length", type=int, default=256)
    training.add_argument("--precision", choices=["no", "bf16"], default="no", help="of both")
    writing = kinds.add_parser("writing")
    writing.add_argument("--prompts", type=int, default=64)
    writing.add_argument("--new-tokens", type=int, default=32)
    writing.add_argument("--batch", type=int, default=16, help="prompts that transformers' generate gets at once")
    for kind in (training, writing):
        kind.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    (compare_training if asked.kind == "training" else compare_writing)(asked)
    print(f"on {hardware.describe(use_cpu=True)}, {torch.get_num_threads()} threads, load {hardware.load_average()}")


def alternate(what: str, ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> float:
    """Print the rates of both, alternating, and the ratio with its range; return our median rate."""
    found = [(ours(), theirs()) for _ in range(repeats)]
    sides = list(zip(*found, strict=True))
    rates = [statistics.median(side) for side in sides]
    print(f"{what}: finetune {rates[0]:,.1f} tokens/s · transformers {rates[1]:,.1f} · {ratios(*sides)}", flush=True)
    return float(rates[0])


# Training


def compare_training(asked: argparse.Namespace) -> None:
    """Train the same model on the same tokens with both."""
    opened = gzip.open if asked.data.suffix == ".gz" else open
    with opened(asked.data, "rt", encoding="utf-8") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    texts = ["\n".join(lines[start : start + LINES]) for start in range(0, len(lines), LINES)]
    words = tokenizer.learn(texts, VocabularyConfig(vocab_size=asked.vocab_size), asked.max_length)
    rows = packing.store(texts, TextEncoder(words))
    shape = ShapeConfig(max_position_embeddings=asked.max_length)

    def ours() -> float:
        return finetune_rate(model.from_random(shape, words, 1), rows, asked)

    def theirs() -> float:
        return trainer_rate(model.from_random(shape, words, 1), rows, asked)

    rate = alternate("training", ours, theirs, asked.repeats)
    peak, need = matmul_rate(), multiplications(shape, len(words), asked.max_length)
    print(f"{need / 1e6:.1f} MFLOP a token, peak {peak / 1e9:.0f} GFLOP/s: {rate * need / peak:.0%} of it")


def finetune_rate(start: model.Start, rows: packing.Rows, asked: argparse.Namespace) -> float:
    """Return the tokens a second of processor time of this project's loop."""
    examples = packing.blocks(rows, asked.max_length, start.end)
    config = TrainConfig(
        learning_rate=5e-4, num_train_epochs=1, per_device_train_batch_size=256, max_tokens_per_batch=TOKENS,
        mixed_precision=asked.precision, use_cpu=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        loop = Trainer(start.model, config, Run(Path(folder) / "run", quiet=True), loss=model.loss, seed=1)
        steps = [update for _, update in loop.plan(examples)[: asked.updates + 1]]
        loop.model.train()
        loop._update(0, steps[0], examples)
        began = time.process_time()
        for number, update in enumerate(steps[1:], 1):
            loop._update(number, update, examples)
        seconds = time.process_time() - began
    return float(sum(int(examples.lengths[update].sum()) for update in steps[1:]) / seconds)


def trainer_rate(start: model.Start, rows: packing.Rows, asked: argparse.Namespace) -> float:
    """Return the tokens a second of processor time of transformers.Trainer on the same blocks."""
    size, length = TOKENS // asked.max_length, asked.max_length
    count = size * (asked.updates + 1)
    blocks = [{"input_ids": rows.tokens[place * length : (place + 1) * length].tolist()} for place in range(count)]
    torch.manual_seed(1)
    network = GPT2LMHeadModel(start.model.network.config)
    network.set_attn_implementation("sdpa")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder, per_device_train_batch_size=size, num_train_epochs=1, learning_rate=5e-4, save_strategy="no",
            report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", bf16=asked.precision == "bf16",
        )  # fmt: skip
        collate = DataCollatorForLanguageModeling(start.tokenizer, mlm=False)
        transformers.Trainer(network, settings, train_dataset=blocks, data_collator=collate, callbacks=[clock]).train()
    return float(TOKENS * asked.updates / clock.seconds)


def multiplications(shape: ShapeConfig, vocab_size: int, max_length: int) -> float:
    """Return the floating point operations a token of an update: matrix products, forwards and twice that backwards."""
    wide = shape.hidden_size
    layer = 12 * wide * wide + 2 * max_length * wide
    return 6.0 * (shape.num_hidden_layers * layer + wide * vocab_size)


# Writing


def compare_writing(asked: argparse.Namespace) -> None:
    """Write the same texts with both."""
    torch.manual_seed(1)
    network = GPT2LMHeadModel(GPT2Config()).eval()
    half = GPT2LMHeadModel(GPT2Config()).eval()
    half.load_state_dict(network.state_dict())
    half = half.to(torch.bfloat16)
    for model_ in (network, half):
        prepare(model_)
    random = np.random.default_rng(1)
    ragged = np.exp(random.uniform(np.log(8), np.log(129), asked.prompts)).astype(int)
    for name, lengths in (("alike", np.full(asked.prompts, 32)), ("ragged", ragged)):
        prompts = [random.integers(0, END, length).tolist() for length in lengths]
        told = (prompts, asked.new_tokens)
        assert ours_written(network, "float32", *told) == theirs_written(network, asked.batch, *told)
        for ours, theirs in (("float32", network), ("bfloat16", half), ("bfloat16", network)):
            given = str(theirs.dtype).removeprefix("torch.")

            def rate(write: Callable[[], object], count: int = len(prompts) * asked.new_tokens) -> float:
                began = time.process_time()
                write()
                return float(count / (time.process_time() - began))

            def one(dtype: str = ours, told: tuple[list[list[int]], int] = told) -> float:
                return rate(lambda: ours_written(network, dtype, *told))

            def other(model_: GPT2LMHeadModel = theirs, told: tuple[list[list[int]], int] = told) -> float:
                return rate(lambda: theirs_written(model_, asked.batch, *told))

            alternate(f"{name}, {ours} beside {given}", one, other, asked.repeats)
    weights = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    products = 2 * (weights / 4 - network.transformer.wpe.weight.numel())
    bandwidth, peak = read_rate(weights), matmul_rate()
    print(
        f"a step in fp32 reads {weights / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s: {1e3 * weights / bandwidth:.0f} "
        f"ms, and multiplies {products / 1e9:.2f} GFLOP a row at {peak / 1e9:.0f} GFLOP/s: "
        f"{1e3 * products / peak:.2f} ms"
    )
    for dtype in ("float32", "bfloat16"):
        for batch in (1, 8, 16, 32, 64):
            with packed(network, getattr(torch, dtype)) if batch > 1 or dtype != "float32" else nullcontext():
                print(f"a step of {batch} rows in {dtype}: {1e3 * step_seconds(network, batch):.0f} ms")


def ours_written(network: GPT2LMHeadModel, dtype: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return the tokens that finetune writes, its end-of-text left in as text."""
    texts: list[list[int]] = []

    def keep(tokens: object) -> str:
        texts.append(list(tokens))  # type: ignore[call-overload]
        return ""

    pen = Pen(network, lambda rows: CausalDecoder(network, rows), -1, keep)  # -1: nothing ends a text
    write_rows(pen, prompts, GenerationConfig(temperature=0, max_new_tokens=count, dtype=dtype), 1)
    return texts


def theirs_written(network: GPT2LMHeadModel, batch: int, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return the tokens that transformers' generate writes, `batch` prompts at once."""
    texts: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        longest = max(map(len, rows))
        tokens = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        written = network.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=count, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        texts += written[:, longest:].tolist()
    return texts


@torch.inference_mode()
def step_seconds(network: GPT2LMHeadModel, batch: int, steps: int = 8) -> float:
    """Return the seconds on the wall of one step that reads a token of each row, after 32 others."""
    decoder = CausalDecoder(network, [[1] * 32] * batch)
    token = decoder.start().argmax(dim=1)
    decoder.step(token)
    began = time.perf_counter()
    for _ in range(steps):
        decoder.step(token)
    return (time.perf_counter() - began) / steps


def read_rate(size: int, repeats: int = 5) -> float:
    """Return the most bytes a second on the wall of adding up so many bytes of numbers."""
    numbers, rates = torch.ones(size // 4), []
    for _ in range(repeats):
        began = time.perf_counter()
        numbers.sum()
        rates.append(size / (time.perf_counter() - began))
    return max(rates)


if __name__ == "__main__":
    main()
