"""What a language model writes: some texts after training beside human ones, their figures, what writing took."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np

from finetune import generation, hardware, text_quality
from finetune.causal import perplexity, routes
from finetune.causal.model import Start, load_trained
from finetune.causal.routes import Judge, Reading
from finetune.causal.tokenizer import TextEncoder
from finetune.data.columns import Split
from finetune.generation import GenerationConfig, Written, decoded
from finetune.report.results import judged_split
from finetune.run import Run
from finetune.terminal import count

BEGINNING = 80  # characters of a document that are gone on from, and no more than a quarter of it
TOLD = {"distinct_2": "different pairs", "repetition": "repeated", "copied_8": "copied from train"}
DEFINITIONS = text_quality.DEFINITIONS | {
    "perplexity": "The exponential of the mean negative log-probability of a token, by the model itself, after the "
    "prompt: of its own texts low, and very low where it repeats itself.",
}


@dataclass(frozen=True)
class Sampling:
    """How many texts are written after training, and how."""

    texts: int
    config: GenerationConfig
    seed: int


def go_on(run: Run, config: Any, prompts: Sequence[str], tell: Callable[[str], None] | None = None) -> Written:
    """Go on from prompts with the model of a run, loaded once, as `config` says; `tell` as in `generation.write`."""
    if config.generation.dtype == "bfloat16" and (warning := hardware.choose_precision("bf16", use_cpu=False).warning):
        run.say("warning", warning)
    start = run.loaded(load_trained)
    given, completes = [prompt + config.data.after(prompt) for prompt in prompts], config.data.has_prompts
    written = generation.write(start, given, config.generation, config.seed, tell, completes=completes)
    say_written(run, written, config.generation.max_new_tokens)
    return written


def say_written(run: Run, written: Written, longest: int) -> None:
    """Tell which prompts were cut, how fast texts were written, and what keys and values took."""
    if written.cut:
        room = f"to leave room for {count(longest, 'token')} in what the model reads"
        run.say("note", f"{count(written.cut, 'prompt')} cut on the left, {room}")
    speed = f"{written.tokens_per_second:,.0f} tokens/s · {written.cache_bytes / 1e6:.1f} MB of keys and values"
    run.say("written", f"{count(written.tokens, 'token')} · {speed}")


def try_out(
    run: Run, judge: Judge, splits: Mapping[str, Split], learnt: Sequence[str], asked: Sampling
) -> dict[str, Any]:
    """Go on from the beginnings of texts that training never saw, or from their prompts, beside what people wrote.

    Writes predictions/written.jsonl; returns {"written": {...}} for the record, nothing where no text is asked for. A
    human text is cut at as many tokens as the model may write; neither is said to be better.
    """
    if not asked.texts:
        return {}
    start, split = judge.start, splits[judged_split(splits)]
    longest = asked.config.max_new_tokens
    rows = np.unique(np.linspace(0, len(split) - 1, min(asked.texts, len(split))).round().astype(int)).tolist()
    prompts, human = parted(split.select(rows), judge.reading, start, longest)
    written, own = one_each(start, prompts, asked.config, asked.seed, completes=judge.reading.data.has_prompts)
    sides = {"own": own, "human": human}
    figures = {
        name: found | {"perplexity": _perplexity(judge, prompts, sides[name])}
        for name, found in text_quality.qualities(sides, learnt).items()
    }
    ids = [split.ids()[row] for row in rows]
    run.write_predictions("written", (
        {"id": identity, "prompt": prompt, "written": text, "human": other}
        for identity, prompt, text, other in zip(ids, prompts, own, human, strict=True)
    ))  # fmt: skip
    say_written(run, written, longest)
    for line in figures_lines(figures["own"], figures["human"]):
        run.say("", line)
    cost = {"tokens_per_second": written.tokens_per_second, "cache_bytes": written.cache_bytes}
    return {"written": {"texts": len(own), **figures, **cost, "definitions": definitions(figures["own"])}}


def one_each(
    start: Start, prompts: Sequence[str], config: GenerationConfig, seed: int, *, completes: bool
) -> tuple[Written, list[str]]:
    """Go on from each prompt once; equal prompts get samples of their own, where samples are drawn."""
    alike: dict[int, list[str]] = {}  # by how often they come
    for prompt, times in Counter(prompts).items():
        alike.setdefault(times if config.samples else 1, []).append(prompt)
    left: dict[str, Iterator[str]] = {}
    parts = []
    for copies, group in alike.items():
        wanted = replace(config, num_return_sequences=copies)
        parts.append(generation.write(start, group, wanted, seed, completes=completes))
        left |= {prompt: cycle(texts) for prompt, texts in zip(group, parts[-1].texts, strict=True)}
    return Written.together(parts), [next(left[prompt]) for prompt in prompts]


def parted(split: Split, reading: Reading, start: Start, longest: int) -> tuple[list[str], list[str]]:
    """Return prompts, and what people wrote after them, cut at `longest` tokens."""
    if reading.data.has_prompts:
        prompts, rest = routes.prompts_of(split, reading.data), split.targets()
    else:
        prompts = [_beginning(text) for text in split.texts()]
        rest = [text[len(prompt) :] for text, prompt in zip(split.texts(), prompts, strict=True)]
    coded = TextEncoder(start.tokenizer).encode(rest)
    cut = [
        decoded(start.tokenizer, tokens[:longest]).rstrip("\ufffd") if len(tokens) > longest else text
        for text, tokens in zip(rest, coded, strict=True)
    ]
    return prompts, cut


def figures_of(texts: Sequence[str], train: Sequence[str] | None) -> dict[str, Any]:
    """Return the figures of written texts, and what each is: {"texts", "figures", "definitions"}."""
    found = text_quality.quality(texts, train)
    return {"texts": len(texts), "figures": found, "definitions": definitions(found)}


def definitions(figures: Mapping[str, float]) -> dict[str, str]:
    """Return what the figures are that have a definition of their own."""
    return {name: text for name, text in DEFINITIONS.items() if name in figures}


def figures_lines(own: Mapping[str, float], human: Mapping[str, float] | None = None) -> list[str]:
    """Return figures as lines for a person, those of human texts in brackets."""

    def shown(name: str, digits: int) -> str:
        other = "" if human is None else f" ({human[name]:.{digits}f})"
        return f"{own[name]:.{digits}f}{other}"

    shares = [f"{text} {shown(name, 2)}" for name, text in TOLD.items() if name in own]
    rest = [f"{shown('mean_words', 1)} words a text", f"self-BLEU {shown('self_bleu', 1)}"]
    if "longest_copied" in own:
        rest.append(f"longest run of words from train {shown('longest_copied', 0)}")
    if "perplexity" in own:
        rest.append(f"perplexity {shown('perplexity', 1)}")
    return [" · ".join(shares) + ("" if human is None else " (in brackets: human texts)"), " · ".join(rest)]


def _beginning(text: str) -> str:
    """Return the words that a document begins with; part of a word where it has no spaces."""
    found = text[: min(BEGINNING, len(text) // 4)]
    return found.rpartition(" ")[0] or found


def _perplexity(judge: Judge, prompts: Sequence[str], texts: Sequence[str]) -> float:
    """Return the perplexity of texts after their prompts, without their ends; 0 where there is no token."""
    start, reading = judge.start, judge.reading
    encoder = TextEncoder(start.tokenizer)
    before = [[start.end, *row] for row in encoder.encode(prompts)]
    rows = [np.array([*head, *row]) for head, row in zip(before, encoder.encode(texts), strict=True)]
    first = np.array([len(head) for head in before], dtype=np.int64)
    nats = perplexity.negative_log_probability(start, rows, first, reading.window, reading.stride, judge.precision)
    tokens = sum(map(len, rows)) - int(first.sum())
    return float(np.exp(nats.sum() / tokens)) if tokens else 0.0
