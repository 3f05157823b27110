"""The ways into and out of a language model: weights and texts to begin with, the loop's settings, its judge."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune import adapters, hardware, ngrams
from finetune.causal import model as models
from finetune.causal import packing, perplexity, tokenizer
from finetune.causal.corpus import TextDataConfig
from finetune.causal.model import ShapeConfig, Start
from finetune.causal.packing import Completions
from finetune.causal.perplexity import Tally, Texts
from finetune.causal.tokenizer import TextEncoder, VocabularyConfig
from finetune.config import refuse_for_model
from finetune.data.batching import Examples
from finetune.data.columns import Split
from finetune.errors import Exit, UserError, did_you_mean
from finetune.ngrams import NgramModel
from finetune.pretrained import Source
from finetune.trainer import TrainConfig

PRETRAINING_EPOCHS = 1
FINE_TUNING_EPOCHS = 3
MOST_BASELINE_BYTES = 50_000_000  # n-grams need about 40 bytes of memory for each byte of text


def pretraining_loop() -> TrainConfig:
    """Return the loop's settings for pretraining: an update of many tokens, whatever their number of blocks."""
    return TrainConfig(
        per_device_train_batch_size=256, max_tokens_per_batch=4_096, metric_for_best_model="bits_per_byte",
        lr_scheduler_type="cosine", weight_decay=0.1, adam_beta2=0.95,
    )  # fmt: skip


def fine_tuning_loop() -> TrainConfig:
    """Return the loop's settings for a checkpoint: small updates, and the best epoch is kept."""
    return TrainConfig(
        per_device_train_batch_size=32, max_tokens_per_batch=2_048, metric_for_best_model="bits_per_byte"
    )


def resolve(config: TrainConfig, start: Start, epochs: float) -> TrainConfig:
    """Return the settings with every `auto` replaced: rate by width and by what is new, passes, precision.

    Raises UserError (2) where validation has no score of the name train.metric_for_best_model.
    """
    metric = config.metric_for_best_model
    if metric not in perplexity.METRICS:
        what = f"train.metric_for_best_model={metric}: no such score{did_you_mean(metric, perplexity.METRICS)}"
        raise UserError(Exit.USAGE, f"{what} (known: {', '.join(perplexity.METRICS)})")
    rate, passes = config.learning_rate, config.num_train_epochs
    automatic = adapters.auto_learning_rate(models.auto_learning_rate(start.width, start.fresh), start.model)
    return replace(
        config,
        learning_rate=automatic if rate == "auto" else rate,
        num_train_epochs=epochs if passes == "auto" else passes,
        mixed_precision=hardware.choose_precision(config.mixed_precision, config.use_cpu).value,
    )


def check(name: str | None, words: VocabularyConfig, shape: ShapeConfig) -> None:
    """Refuse settings that exclude each other, or that a checkpoint does not read: raises UserError (2)."""
    learns = name is None if words.train is None else words.train
    if name is None and not learns:
        raise UserError(Exit.USAGE, "vocabulary.train=false needs a model whose vocabulary is taken; give model=NAME")
    if name is None:
        return
    if learns:
        what = "vocabulary.train=true is for random weights: the embeddings of a model belong to its own vocabulary"
        raise UserError(Exit.USAGE, f"{what}\nleave out model or vocabulary.train")
    refuse_for_model(f"model={name}", "vocabulary", words, {"train"})
    refuse_for_model(f"model={name}", "network", shape, {"dropout", "save_dtype"})


def begin(
    source: Source | None, words: VocabularyConfig, shape: ShapeConfig, texts: Sequence[str], seed: int, max_length: int
) -> Start:
    """Make the model before its first update, with a tokenizer that is learnt from `texts`, or a checkpoint's own."""
    if source is not None:
        return models.from_checkpoint(source, shape)
    longest = max_length if shape.max_position_embeddings is None else shape.max_position_embeddings
    shape = replace(shape, max_position_embeddings=longest)
    return models.from_random(shape, tokenizer.learn(texts, words, longest), seed)


@dataclass(frozen=True)
class Reading:
    """How texts are read: tokens of a window, the window's stride, and what stands between prompt and completion."""

    window: int
    stride: int
    data: TextDataConfig

    @classmethod
    def of(cls, max_length: int, stride: int | None, data: TextDataConfig, context: int) -> "Reading":
        """Check lengths against what the model can read; raises UserError (2). No stride: half a window."""
        if max_length > context:
            what = f"max_length={max_length} is more than the {context} tokens that the model can read"
            raise UserError(Exit.USAGE, f"{what}; give {context} at most")
        if stride is not None and stride > max_length:
            raise UserError(Exit.USAGE, f"stride={stride} would leave gaps between windows of max_length={max_length}")
        return cls(max_length, max(1, max_length // 2) if stride is None else stride, data)

    def settings(self) -> dict[str, Any]:
        """Return the settings that a plain model folder is used with."""
        told: dict[str, Any] = {"max_length": self.window, "stride": self.stride}
        if self.data.has_prompts:
            told |= {
                "data.prompt_column": self.data.prompt_column, "data.completion_column": self.data.completion_column,
                "data.separator": self.data.separator,
            }  # fmt: skip
        return told


@dataclass(frozen=True)
class Material:
    """What a run learns from and is judged on."""

    train: Examples
    texts: dict[str, Texts]  # of each split but train
    learnt: list[str]  # what is learnt to be written: documents, or completions
    before: list[str]  # what each of them stands behind: a prompt, or nothing
    figures: dict[str, Any]
    long: dict[str, int] = field(default_factory=dict)  # prompts with completions above the window, of each split
    alone: dict[str, int] = field(default_factory=dict)  # those of them whose completion is so by itself


def texts_of(split: Split, data: TextDataConfig) -> list[str]:
    """Return all texts of a split: documents, or prompts and completions each by itself."""
    return [*split.sources(), *split.targets()] if data.has_prompts else split.texts()


def asked_of(split: Split, data: TextDataConfig) -> list[str]:
    """Return the texts that are gone on from, prompts or beginnings, as they stand in the data."""
    return split.sources() if data.has_prompts else split.texts()


def prompts_of(split: Split, data: TextDataConfig) -> list[str]:
    """Return the same as a model reads them: a prompt is followed by what stands before a completion."""
    return [text + data.between for text in asked_of(split, data)]


def material(splits: Mapping[str, Split], encoder: TextEncoder, reading: Reading) -> Material:
    """Code all splits; train is cut into blocks, or is prompts with completions row by row.

    Raises UserError (65) for a training text that is shorter than one block or, with on_long=error, a row that is long
    in any split.
    """
    train = splits["train"]
    figures: dict[str, Any] = {}
    if reading.data.has_prompts:
        found = completions(train, encoder, reading)
        found = replace(found, rows=[row[: reading.window + 1] for row in found.rows])
        examples = packing.completion_examples(found, encoder.end, train.where)
        predicted = int(sum(map(len, found.rows)) - found.prompt.sum())
        figures |= {"documents": len(found.rows), "tokens": int(sum(map(len, found.rows))), "predicted": predicted}
        train = train.select(found.row.tolist())  # whatever is told of train, and learns from it, has these rows alone
        learnt = train.targets()
    else:
        learnt = train.texts()
        documents = packing.store(learnt, encoder)
        _check_size(train, len(documents.tokens), reading.window)
        examples = packing.blocks(documents, reading.window, encoder.end, train.where)
        figures |= {"documents": len(documents), "tokens": len(documents.tokens), "blocks": len(examples.lengths)}
    figures["bytes"] = sum(len(text.encode()) for text in learnt)
    texts = {name: coded(split, encoder, reading) for name, split in splits.items() if name != "train"}
    made = Material(examples, texts, learnt, _before(train, reading.data), figures)
    if not reading.data.has_prompts:
        return made
    long = {"train": found.long} | {name: one.long for name, one in texts.items()}
    alone = {"train": found.alone} | {name: one.alone for name, one in texts.items()}
    return replace(made, long=long, alone=alone)


def _check_size(train: Split, tokens: int, window: int) -> None:
    if tokens < window:
        what = f"{train.files[0]}: {tokens:,} tokens are fewer than one block of max_length={window}"
        raise UserError(Exit.BAD_DATA, f"{what}\ngive more text, or a max_length of {max(2, tokens // 2)} or less")


def coded(split: Split, encoder: TextEncoder, reading: Reading) -> Texts:
    """Code the texts of a split that are to be predicted; a long completion is read in windows like a document.

    No row is left out: under on_long=skip the prompt of a long one is cut. Raises UserError (65) for one under error.
    """
    if reading.data.has_prompts:
        if reading.data.on_long == "skip":
            reading = replace(reading, data=replace(reading.data, on_long="truncate"))
        found = completions(split, encoder, reading)
        before, counts = _before(split, reading.data), (found.long, found.alone)
        return Texts(split.ids(), split.targets(), found.rows, found.prompt, before, *counts)
    rows = [np.array([encoder.end, *row, encoder.end]) for row in encoder.encode(split.texts())]
    first = np.ones(len(rows), dtype=np.int64)
    return Texts(split.ids(), split.texts(), rows, first, _before(split, reading.data))


def _before(split: Split, data: TextDataConfig) -> list[str]:
    """Return what stands before each text that is predicted: nothing before a document."""
    return prompts_of(split, data) if data.has_prompts else [""] * len(split)


def completions(split: Split, encoder: TextEncoder, reading: Reading) -> Completions:
    """Join prompts and completions; a row predicts at most a window of tokens, else its prompt is cut on the left.

    Raises UserError (65) for a long row under on_long=error, or where skip leaves none; a completion that is itself
    longer than a window keeps its length.
    """
    prompts = encoder.encode(prompts_of(split, reading.data))
    rows, first, kept, long, alone = [], [], [], 0, 0
    for row, (prompt, completion) in enumerate(zip(prompts, encoder.encode(split.targets()), strict=True)):
        size = 1 + len(prompt) + len(completion)  # what is read: all but the last end
        if size > reading.window:
            long += 1
            if reading.data.on_long == "error":
                what = f"{split.where(row)} has {size} tokens, more than max_length={reading.window}"
                raise UserError(Exit.BAD_DATA, f"{what}\ngive data.on_long=truncate or skip, or a longer max_length")
            if reading.data.on_long == "skip":
                continue
            alone += 1 + len(completion) > reading.window
            room = max(0, reading.window - 1 - len(completion))
            prompt = prompt[len(prompt) - room :] if room else []
        rows.append(np.array([encoder.end, *prompt, *completion, encoder.end]))
        first.append(1 + len(prompt))
        kept.append(row)
    if not rows:
        what = f"{split.files[0]}: every row is longer than max_length={reading.window}, and data.on_long=skip"
        advice = "give a larger max_length, as far as the model can read, or data.on_long=truncate"
        raise UserError(Exit.BAD_DATA, f"{what}\n{advice}")
    return Completions(rows, np.array(first, dtype=np.int64), np.array(kept, dtype=np.int64), long, alone)


@dataclass(frozen=True)
class Judge:
    """Scores a model on what was held out."""

    start: Start
    texts: Mapping[str, Texts]
    reading: Reading
    precision: str

    def validate(self) -> dict[str, float]:
        """Return the scores on validation."""
        return perplexity.values(self._tally("validation")[0])

    def final(self) -> tuple[dict[str, Tally], float]:
        """Return the tally of each split, and the seconds of the last one."""
        found = {name: self._tally(name) for name in self.texts}
        return {name: one for name, (one, _) in found.items()}, [*found.values()][-1][1]

    def _tally(self, name: str) -> tuple[Tally, float]:
        return perplexity.tally(self.start, self.texts[name], self.reading.window, self.reading.stride, self.precision)


def affordable(texts: Sequence[str]) -> tuple[Sequence[str], float]:
    """Return the texts, or evenly so many parts of them as may be counted in memory; also the share of all bytes kept.

    No more than MOST_BASELINE_BYTES are kept, however long one text is: texts are cut into `ngrams.parts` first.
    """
    total = sum(map(_bytes, texts))
    if total <= MOST_BASELINE_BYTES:
        return texts, 1.0
    seen = size = 0
    kept = []
    for part in ngrams.parts(texts):
        own = _bytes(part)
        seen += own
        if (size + own) * total <= seen * MOST_BASELINE_BYTES:
            size += own
            kept.append(part)
    return kept, size / total


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def beside(found: Material) -> tuple[str, dict[str, Tally], float]:
    """Fit the cheap system to the texts of train; return its name, its tally of each split and the seconds of fitting.

    Like the model it reads prompts and answers for completions alone. Of a large train it counts evenly as many parts
    as memory allows.
    """
    whole = [prompt + text for prompt, text in zip(found.before, found.learnt, strict=True)]
    learnt, share = affordable(whole)
    began = time.perf_counter()
    system = NgramModel.fit(learnt)
    seconds = time.perf_counter() - began
    tallies = {}
    for name, one in found.texts.items():
        nats = system.bits_each(one.texts, one.before) * np.log(2)
        tallies[name] = Tally(one.ids, one.texts, one.bytes, np.zeros(len(nats)), nats)
    return system.name + (f" (of {100 * share:.3g} % of train)" if share < 1 else ""), tallies, seconds


def score_texts(
    folder: Path, data: Split, max_length: int, stride: int | None, config: TextDataConfig, loop: TrainConfig
) -> Tally:
    """Score a trained model on texts that training never saw, in the precision of its run."""
    start = models.load_trained(folder)
    reading = Reading.of(min(max_length, start.context), stride, config, start.context)
    precision = hardware.choose_precision(loop.mixed_precision, use_cpu=False).value
    texts = coded(data, TextEncoder(start.tokenizer), reading)
    return perplexity.tally(start, texts, reading.window, reading.stride, precision)[0]
