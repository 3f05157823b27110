"""Recurrent network against Transformer: updates and decoding steps by length, and seconds to a validation loss."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import hardware, optim
from finetune.data.batching import Batch
from finetune.report.pictures import Series, curves
from finetune.seq2seq import encoder_decoder
from finetune.seq2seq.encoder_decoder import EncoderDecoder, Lengths, NetworkConfig
from finetune.seq2seq.vocabulary import BOS, Vocabularies, VocabularyConfig, learn
from studies import learning, tables

LSTM, TRANSFORMER = "LSTM, additive attention", "Transformer"
BESIDE = "LSTM, scaled dot attention"
FIRST_TOKEN = 4  # after pad, unk, bos and eos


@dataclass(frozen=True)
class Measure:
    """What is measured: all sequences of a batch have the same length, and a batch as many tokens at every length."""

    lengths: Sequence[int]
    width: int
    layers: int
    vocabulary: int
    tokens: int  # of the target in an update, and of the source
    sentences: int  # decoded side by side
    repeats: int


Rates = dict[str, dict[int, list[float]]]  # name of a system -> length -> a rate for each repeat


def measure(asked: Measure, device: str) -> dict[str, Any]:
    """Return {"parameters": {name: number}, "training": rates, "decoding": rates}; the systems alternate."""
    systems = make(asked)
    training: Rates = {name: {length: [] for length in asked.lengths} for name in systems}
    decoding: Rates = {name: {length: [] for length in asked.lengths} for name in systems}
    for parts in systems.values():
        parts.model.to(device)
    optimizers = {name: adamw(parts) for name, parts in systems.items()}
    for length in asked.lengths:
        for repeat in range(-1, asked.repeats):  # the first warms up
            for name, parts in systems.items():
                update = updates_per_second(parts, optimizers[name], batch(asked, length, device))
                steps = steps_per_second(parts, source(asked.sentences, length, asked.vocabulary, device), length)
                if repeat >= 0:
                    training[name][length].append(update * asked.tokens)
                    decoding[name][length].append(steps)
    counts = {name: parts.parameters for name, parts in systems.items()}
    return {"parameters": counts, "training": training, "decoding": decoding}


def make(asked: Measure) -> dict[str, EncoderDecoder]:
    """Return the systems: the same width and depth, and feed-forward layers as wide as makes the sizes equal."""
    words = numbered_words(asked.vocabulary)
    lengths = Lengths(max(asked.lengths) + 1, max(asked.lengths) + 2)
    depth: dict[str, Any] = {"num_encoder_layers": asked.layers, "num_decoder_layers": asked.layers}

    def recurrent(attention: Any) -> NetworkConfig:
        return NetworkConfig(architecture="rnn", hidden_size=asked.width, attention=attention, **depth)

    def transformer(intermediate: int) -> NetworkConfig:
        return NetworkConfig(hidden_size=asked.width, intermediate_size=intermediate, **depth)

    wanted = learning.parameters(recurrent("additive"), words, lengths)
    wide = learning.closest(lambda size: learning.parameters(transformer(size), words, lengths), wanted, step=8)
    networks = {LSTM: recurrent("additive"), BESIDE: recurrent("scaled_dot"), TRANSFORMER: transformer(wide)}
    build = encoder_decoder.build
    return {name: build(network, words, lengths, 1, learning.TASK) for name, network in networks.items()}


def numbered_words(size: int) -> Vocabularies:
    """Return a vocabulary of so many entries: what they say does not matter here."""
    text = " ".join(f"w{number}" for number in range(size - FIRST_TOKEN))
    return learn([text], [text], VocabularyConfig(kind="word", vocab_size=size, min_frequency=1))


def source(rows: int, length: int, vocabulary: int, device: str) -> Tensor:
    """Return random tokens (rows, length)."""
    return torch.randint(FIRST_TOKEN, vocabulary, (rows, length), device=device)


def batch(asked: Measure, length: int, device: str) -> Batch:
    """Return a batch without padding."""
    rows = max(1, asked.tokens // length)
    read = source(rows, length, asked.vocabulary, device)
    written = source(rows, length + 1, asked.vocabulary, device)  # from bos on
    tensors = {"source": read, "source_mask": torch.ones_like(read, dtype=torch.bool), "target": written}
    return Batch(tensors, rows * length, torch.arange(rows).numpy())


def adamw(parts: EncoderDecoder) -> torch.optim.AdamW:
    """Return the recipe's optimizer."""
    return optim.adamw(optim.parameter_groups(parts.model, 1e-4, 1e-4), (0.9, 0.98), 1e-8)


def updates_per_second(parts: EncoderDecoder, optimizer: torch.optim.Optimizer, given: Batch) -> float:
    """Time one update: forward, backward, clipping, AdamW."""
    loss = encoder_decoder.make_loss(0.1, 0.0)
    parts.model.train()

    def update() -> None:
        (loss(parts.model, given) / given.items).backward()
        torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return 1 / seconds(update, given.tensors["source"].device.type)


@torch.inference_mode()
def steps_per_second(parts: EncoderDecoder, read: Tensor, length: int) -> float:
    """Time greedy decoding of `length` tokens for sources (rows, length): a step writes one token of each row."""
    model = parts.model.eval()

    def decode() -> None:
        memory = model.encode(read, torch.ones_like(read, dtype=torch.bool))
        state, token = model.start(memory), torch.full_like(read[:, 0], BOS)
        for _ in range(length):
            logits, state = model.step(token, state, memory)
            token = logits.argmax(dim=1)

    return length / seconds(decode, read.device.type)


def clock_of(device: str) -> Callable[[], float]:
    """Return the clock: of one thread its processor time, which other programs leave alone, else that on the wall."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def seconds(work: Callable[[], None], device: str) -> float:
    """Return how long some work takes."""
    clock = clock_of(device)
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


# What is told


def tell(asked: Measure, folder: Path, use_cpu: bool) -> None:
    """Measure, print the tables and draw the two pictures."""
    device, where = hardware.device_type(use_cpu), tables.machine(use_cpu)
    found = measure(asked, device)
    clock = "processor time" if clock_of(device) is time.process_time else "wall time"
    print(f"{asked}; {clock}; {where}")
    print(", ".join(f"{name}: {count:,} parameters" for name, count in found["parameters"].items()))
    kind = "" if device == "cpu" else f"_{device}"
    drawn = {}
    for what, label in (("training", "target tokens/s"), ("decoding", "steps/s")):
        print(f"\n{what}, {label}, median of {asked.repeats}\n")
        print(speed_table(found[what], asked.lengths))
        title = f"{what.capitalize()}: {hardware.describe(use_cpu)}, {clock}"
        drawn[f"parallelism_{what}{kind}"] = speed_picture(found[what], title, label)
    tables.save(folder, f"parallelism{kind}", {"machine": where, "clock": clock, "asked": vars(asked), **found}, drawn)


def speed_table(rates: Rates, lengths: Sequence[int]) -> str:
    """Return medians by length, and the ratio of the Transformer to the LSTM: median, least and most."""
    rows = [[name, *(f"{statistics.median(of[length]):,.0f}" for length in lengths)] for name, of in rates.items()]
    for name in (LSTM, BESIDE):
        pairs = [sorted(a / b for a, b in zip(rates[TRANSFORMER][at], rates[name][at], strict=True)) for at in lengths]
        cells = [f"{statistics.median(ratio):.2f}x [{ratio[0]:.2f}, {ratio[-1]:.2f}]" for ratio in pairs]
        rows.append([f"{TRANSFORMER} / {name}", *cells])
    return tables.markdown(["length", *map(str, lengths)], rows)


def speed_picture(rates: Rates, title: str, label: str) -> Any:
    """Return rates by length, with the least and the most of the repeats as a band."""
    series = []
    for name, of in rates.items():
        lengths = list(of)
        middle = [statistics.median(of[length]) for length in lengths]
        low, high = [min(of[length]) for length in lengths], [max(of[length]) for length in lengths]
        series.append(Series(name, lengths, middle, low, high))
    return curves(series, title, "tokens of source and of target", label, logarithmic="xy")


# Seconds to a validation loss, of runs that are there already


def tell_runs(names: Sequence[str], folder: Path, losses: Sequence[float]) -> None:
    """Print how long each run trained until it reached some losses, and draw validation loss by seconds."""
    courses = {name: learning.course(learning.read_metrics(run)) for name, run in learning.opened(names).items()}
    wanted = [*losses] or [max(min(loss for _, loss in course) for course in courses.values())]
    rows = []
    for name, course in courses.items():
        best = min(course, key=lambda point: point[1])
        reached = [first_below(course, loss) for loss in wanted]
        cells = ["never" if at is None else f"{at:,.0f} s" for at in reached]
        rows.append([name, f"{best[1]:.3f} after {best[0]:,.0f} s", *cells])
    print(tables.markdown(["run", "lowest validation loss", *(f"{loss:.3f} reached" for loss in wanted)], rows))
    series = [Series(name, *zip(*course, strict=True)) for name, course in courses.items()]
    drawn = curves(series, "Validation loss by seconds of training", "seconds of training", "nats a token")
    figures = {"losses": wanted, "courses": courses}
    tables.save(folder, "parallelism_loss", figures, {"parallelism_loss": drawn})


def first_below(course: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Return the seconds at which a loss was first reached, None where it never was."""
    return next((at for at, value in course if value <= loss), None)
