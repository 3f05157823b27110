"""What a run says before its first update: its data, its model, its baselines, and what it will cost."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune import hardware, processes, text_evaluation
from finetune.data.check import leaks
from finetune.data.columns import DataConfig, DataRules, LabelMap, Split
from finetune.data.encode import Encoded
from finetune.data.patterns import is_pattern
from finetune.data.sequences import PairsConfig
from finetune.errors import Exit, UserError
from finetune.evaluation import score
from finetune.report.long_rows import DONE, MANY_CUT, record
from finetune.report.results import System
from finetune.run import Run
from finetune.seq2seq.encoder_decoder import EncodedPairs, Lengths
from finetune.seq2seq.vocabulary import Vocabularies, statistics
from finetune.terminal import count, duration, interval, shown, size
from finetune.text_evaluation import Task
from finetune.trainer import Estimate, Progress, TrainConfig, update_size


def say_data(run: Run, config: DataConfig, splits: Mapping[str, Split], labels: LabelMap) -> dict[str, Any]:
    """Tell rows, labels and leaks; return the leaks for the record. Raises UserError 65 under on_leak=error."""
    rows = " · ".join(f"{len(split):,} {name}" for name, split in splits.items())
    run.say("data", f"{rows} · {count(len(labels.names), 'label')}")
    return _say_splits(run, config, splits)


def _say_splits(run: Run, config: DataRules, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Tell what was held out and left out, and what stands in train and elsewhere; return the leaks."""
    for name, split in splits.items():
        if split.held_out:
            run.say("", f"{name}: {split.held_out}")
        if split.skipped:
            run.say("warning", f"{count(split.skipped, 'row')} of {name} with an empty field left out")
    others = {name: split for name, split in splits.items() if name != "train"}
    return {"leaked_rows": say_leaks(run, config, splits["train"], others)}


def say_leaks(run: Run, config: DataRules, train: Split, others: Mapping[str, Split]) -> dict[str, int]:
    """Tell which rows of other splits stand in train too; return how many by name.

    Raises UserError (65) under on_leak=error.
    """
    found = dict(zip(others, leaks(train, others.values()), strict=True))
    for name, rows in found.items():
        _tell_leak(run, config, others[name], rows)
    return {name: len(rows) for name, rows in found.items()}


def _tell_leak(run: Run, config: DataRules, split: Split, found: np.ndarray) -> None:
    if not len(found):
        return
    share = f"{100 * len(found) / len(split):.1f} %"
    what = f"{count(len(found), f'{split.name} text')} also in train ({share}), e.g. {split.where(found[0])}"
    if config.on_leak == "error" and not split.held_out:
        raise UserError(Exit.BAD_DATA, f"{what}\nremove them, or give data.on_leak=warn")
    checkable = isinstance(config, DataConfig) and not is_pattern(config.train)
    hint = f": finetune check data.train=... data.{split.name}=... says which" if checkable else ""
    run.say("warning", what + hint)


def say_lengths(run: Run, encoded: Mapping[str, Encoded], max_length: int, on_long: str) -> dict[str, Any]:
    """Tell lengths in tokens and how many texts are cut or split; return them for the record."""
    lengths = encoded["train"].full_lengths
    middle, high = (int(np.percentile(lengths, share)) for share in (50, 95))
    long = {name: part.long for name, part in encoded.items()}
    total, rows = sum(long.values()), sum(part.rows for part in encoded.values())
    run.say("", f"{middle} tokens a text (95 %: {high}) · {count(total, 'text')} {DONE[on_long]} at {max_length}")
    if total > MANY_CUT * rows and on_long == "truncate":
        share = 100 * total / rows
        run.say("warning", f"{share:.1f} % of the texts are cut: raise max_length, or give data.on_long=window")
    return {
        "tokens": {"median": middle, "p95": high, "max": int(lengths.max())},
        "long_rows": [record("text", long, {"max_length": max_length}, on_long)],
        "unknown_rate": {name: round(part.unknown_rate, 6) for name, part in encoded.items()},
    }


def say_cut(run: Run, long: int, rows: int, max_length: int, on_long: str) -> None:
    """Tell how many texts of a file that is scored are longer than the model reads."""
    if long:
        run.say("note", f"{count(long, 'text')} of {rows:,} {DONE[on_long]} at {max_length} tokens")


def say_pairs(run: Run, config: PairsConfig, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Tell rows, turns left out and leaks of sources with targets; return the last two for the record."""
    run.say("data", " · ".join(f"{len(split):,} {name}" for name, split in splits.items()))
    for name, split in splits.items():
        spoken = Counter(split.languages() or [])
        if spoken:
            run.say("", f"{name}: " + " · ".join(f"{code or 'unnamed'} {rows:,}" for code, rows in spoken.items()))
    turns = {name: split.skipped_turns for name, split in splits.items()}
    if sum(turns.values()):
        counts = ", ".join(f"{number:,} of {name}" for name, number in turns.items() if number)
        run.say("", f"turns left out by data.skip_turns: {counts}")
    return _say_splits(run, config, splits) | ({} if config.skip_turns is None else {"skipped_turns": turns})


def say_texts(run: Run, config: DataRules, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Tell documents, or prompts with completions, and leaks; return the leaks for the record."""
    run.say("data", " · ".join(f"{len(split):,} {name}" for name, split in splits.items()))
    return _say_splits(run, config, splits)


def say_vocabularies(
    run: Run,
    words: Vocabularies,
    splits: Mapping[str, Split],
    encoded: Mapping[str, EncodedPairs],
    lengths: Lengths,
    on_long: str,
) -> dict[str, Any]:
    """Tell the vocabularies, what they make of train, and how many pairs are too long; return it for the record."""
    split, pairs = splits["train"], encoded["train"]
    assert pairs.targets is not None
    sides = {"source": (words.source, split.sources(), pairs.sources)}
    sides["target"] = (words.target, split.targets(), pairs.targets)
    found: dict[str, Any] = {"shared": words.shared}
    for side, (tokenizer, texts, rows) in sides.items():
        told = statistics(tokenizer, [texts[row] for row in pairs.row], rows)
        head = "tokens" if side == "source" else ""
        run.say(head, f"{side} {told}")
        found[side] = dataclasses.asdict(told)
    long = {name: part.long for name, part in encoded.items()}
    if sum(long.values()):
        counts = ", ".join(f"{number:,} of {name}" for name, number in long.items() if number)
        run.say("warning", f"pairs above the longest length: {counts} (data.on_long, max_source_length)")
    limits = {"max_source_length": lengths.source, "max_target_length": lengths.target}
    return {"vocabulary": found, "long_rows": [record("pair", long, limits, on_long)]}


def say_text_baselines(run: Run, systems: Sequence[System], task: Task) -> None:
    """Tell how the baselines score on validation, by the metric that decides, and what they cost."""
    for system in systems:
        found = text_evaluation.score(system.predictions["validation"], task)[task.decides]
        cost = f" · {duration(system.seconds)}" if system.seconds > 0.05 else ""
        run.say("baseline", f"{system.name} · validation {task.decides} {shown(task.decides, found)}{cost}")


def say_model(
    run: Run, described: str, config: TrainConfig, requested: TrainConfig, updates: int, noun: str = "text"
) -> None:
    """Tell what is trained, in which arithmetic, and what `auto` stands for."""
    choice = hardware.choose_precision(requested.mixed_precision, config.use_cpu)
    arithmetic = "fp32" if config.mixed_precision == "no" else config.mixed_precision
    parted = ", the model parted among them (fsdp)" if config.sharding == "fsdp" else ""
    several = f"{processes.world()} processes{parted}, each on " if processes.world() > 1 else ""
    device = f"{arithmetic} on {several}{hardware.describe(config.use_cpu)} ({choice.reason})"
    run.say("model", f"{described} · {device}")
    if choice.warning:
        run.say("warning", choice.warning)
    chosen = [
        f"{name}={value:g} (auto)" if asked == "auto" else f"{name}={value:g}"
        for name, value, asked in (
            ("learning_rate", config.learning_rate, requested.learning_rate),
            ("num_train_epochs", config.num_train_epochs, requested.num_train_epochs)
            if config.max_steps < 0
            else ("max_steps", config.max_steps, requested.max_steps),  # which the epochs give way to
        )
        if not isinstance(value, str)
    ]
    run.say("", f"{' · '.join(chosen)} · {count(updates, 'update')} of {_update(config, noun)}")


def say_baselines(run: Run, systems: Sequence[System]) -> None:
    """Tell how the baselines score on validation, and what they cost."""
    for system in systems:
        accuracy = score(system.predictions["validation"])["accuracy"]
        cost = f" · {duration(system.seconds)}" if system.seconds else ""
        run.say("baseline", f"{system.name} · validation accuracy {interval(accuracy)}{cost}")


def say_estimate(run: Run, estimate: Estimate, config: TrainConfig, noun: str = "text") -> dict[str, Any]:
    """Tell what a run would cost, from measured updates, and return it."""
    low, high = 0.85 * estimate.seconds, 1.2 * estimate.seconds
    run.say(
        "would",
        f"train {count(estimate.updates, 'update')} of {_update(config, noun)} "
        f"({estimate.tokens:,} padded tokens) · "
        f"memory about {size(estimate.memory)} of {size(hardware.memory_total())}\n"
        f"{_held(estimate)}"
        f"{duration(low)} to {duration(high)} of training on this machine (3 updates measured) · "
        f"up to {size(estimate.disk)} on disk",
    )
    told = {
        "updates": estimate.updates,
        "tokens": estimate.tokens,
        "seconds": {"low": low, "high": high},
        "memory_bytes": estimate.memory,
        "disk_bytes": estimate.disk,
    }
    return told if estimate.held is None else told | {"sharded_bytes": estimate.held[0]}


def _held(estimate: Estimate) -> str:
    """Say what a process of several holds of a sharded model, beside what passes through it."""
    if estimate.held is None:
        return ""
    part, whole = (size(count) for count in estimate.held)
    return f"a process holds {part} of the {whole} of weights, gradients and moments; to score, all weights too\n"


def say_costs(run: Run, progress: Progress, estimated: float | None, items: str = "texts") -> dict[str, float]:
    """Tell what training took, the estimate of its first updates beside it, and return the figures.

    `items` are what the loss sums over: texts, or tokens of the target.
    """
    unit = "examples" if items == "texts" else items.replace(" ", "_")
    seconds = max(progress.seconds, 1e-9)
    figures = {
        f"train_{unit}_per_second": progress.items / seconds,
        "train_tokens_per_second": progress.tokens / seconds,
    }
    guess = f" (estimated {duration(estimated)} after the first updates)" if estimated is not None else ""
    rates = " · ".join(
        f"{value:,.0f} {unit}" for value, unit in zip(figures.values(), (f"{items}/s", "tokens/s"), strict=True)
    )
    run.say("trained", f"{count(progress.step, 'update')} in {duration(progress.seconds)}{guess} · {rates}")
    return figures if estimated is None else figures | {"estimated_train_seconds": estimated}


def _update(config: TrainConfig, noun: str) -> str:
    """Say how many examples an update has, and how many tokens where those are limited."""
    examples = count(update_size(config), noun)
    if config.max_tokens_per_batch is None:
        return examples
    tokens = config.max_tokens_per_batch * config.gradient_accumulation_steps
    return f"at most {examples} and {count(tokens, 'token')}"
