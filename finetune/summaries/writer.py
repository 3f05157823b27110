"""What the families of models have in common: pairs as token rows for the loop, and texts written after sources."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune import generation, pretrained, trainer
from finetune.adapters import AdapterConfig
from finetune.data.batching import Batch, Examples
from finetune.data.columns import Split
from finetune.errors import Exit, UserError
from finetune.generation import GenerationConfig, Pen, Written
from finetune.seq2seq.encoder_decoder import Lengths, NetworkConfig
from finetune.seq2seq.vocabulary import VocabularyConfig
from finetune.summaries.long_texts import OnLong, shorten, windows
from finetune.trainer import TrainConfig

MOST_SOURCE_TOKENS = 512  # of max_source_length=auto
MOST_TARGET_TOKENS = 128  # of max_target_length=auto
Rows = Sequence[Sequence[int]]


class Settings(Protocol):
    """What the families read of a recipe's settings; each says there what it means."""

    @property
    def architecture(self) -> str:
        """Return auto (that of `model`), seq2seq or bert2gpt."""

    @property
    def model(self) -> str | None:
        """Return the checkpoint."""

    @property
    def peft(self) -> AdapterConfig:
        """Return what is trained in place of the checkpoint's own weights."""

    @property
    def encoder(self) -> str:
        """Return the checkpoint that reads, of bert2gpt."""

    @property
    def decoder(self) -> str:
        """Return the checkpoint that writes, of bert2gpt."""

    @property
    def vocabulary(self) -> VocabularyConfig:
        """Return what the tokens are, of seq2seq."""

    @property
    def network(self) -> NetworkConfig:
        """Return the shape, of seq2seq."""

    @property
    def model_language(self) -> str | None:
        """Return the code of the language, of multilingual encoder-decoders."""

    @property
    def source_prefix(self) -> str:
        """Return the text before each source, or auto."""

    @property
    def prompt_end(self) -> str:
        """Return the text between source and target, of a language model."""

    @property
    def max_source_length(self) -> int | str:
        """Return the tokens of a source, or auto."""

    @property
    def max_target_length(self) -> int | str:
        """Return the tokens of a target, or auto."""

    @property
    def label_smoothing_factor(self) -> float:
        """Return the probability spread over all tokens."""

    @property
    def generation(self) -> GenerationConfig:
        """Return how texts are written."""

    @property
    def task(self) -> str:
        """Return what is scored."""

    @property
    def language(self) -> str | None:
        """Return the language of the targets."""

    @property
    def seed(self) -> int:
        """Return the seed of first weights."""


@dataclass(frozen=True)
class Frame:
    """What stands before and after the tokens of a text, and how many tokens of its own there may be."""

    before: Sequence[int]
    after: Sequence[int]
    room: int

    def around(self, row: Sequence[int]) -> list[int]:
        """Return the row that the model reads."""
        return [*self.before, *row, *self.after]


class Writer(Protocol):
    """A model of any family that learns from pairs of sources and targets, and writes."""

    @property
    def model(self) -> nn.Module:
        """Return what is trained."""

    @property
    def name(self) -> str:
        """Return the family as it is written in sentences: `GPT-2`."""

    @property
    def described(self) -> str:
        """Return name and size in a few words."""

    @property
    def identity(self) -> str:
        """Return where the first weights come from, for the record."""

    @property
    def prefix(self) -> str:
        """Return the text before each source, which is part of its frame."""

    @property
    def learning_rate(self) -> float:
        """Return the rate that `auto` stands for."""

    @property
    def epochs(self) -> float:
        """Return the passes that `auto` stands for."""

    @property
    def width(self) -> int:
        """Return the hidden size."""

    @property
    def lengths(self) -> Lengths:
        """Return the longest source and target, in tokens, with what the family adds."""

    @property
    def source(self) -> Frame:
        """Return what stands around the tokens of a source."""

    @property
    def target(self) -> Frame:
        """Return what stands around the tokens of a target, from what is given to the end."""

    @property
    def pen(self) -> Pen:
        """Return what writes after framed sources."""

    def code_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of sources, without a frame."""

    def code_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of targets, without a frame."""

    def examples(self, sources: Rows, targets: Rows, where: Callable[[int], str]) -> Examples:
        """Return framed rows for the loop; an item is a predicted token, the end included."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the smoothed cross-entropy of a batch, summed over its items."""

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch without smoothing, summed over its items."""

    def save(self, folder: Path, settings: dict[str, Any], config: GenerationConfig) -> None:
        """Write weights, config and tokenizers; `settings` are what a plain folder is used with."""


@dataclass(frozen=True)
class Coded:
    """The pairs of a split, ready for the loop."""

    examples: Examples
    sizes: np.ndarray  # (rows, 2) tokens of source and target as they were, without frames
    long_sources: int
    long_targets: int


def encode(writer: Writer, split: Split, on_long: OnLong) -> Coded:
    """Turn the pairs of a split into framed token rows; what is too long is cut, and counted.

    Under on_long=error raises UserError (65) for the first pair that is too long. Windows are for writing alone (see
    `long_texts`): under on_long=window a source keeps its first tokens here.
    """
    sources, targets = writer.code_sources(split.sources()), writer.code_targets(split.targets())
    sizes = np.array([[len(source), len(target)] for source, target in zip(sources, targets, strict=True)])
    long = sizes > [writer.source.room, writer.target.room]
    if on_long == "error":
        _refuse_long(writer, split, sizes, long)
    framed = [writer.source.around(shorten(row, writer.source.room, on_long)) for row in sources]
    wanted = [writer.target.around(row[: writer.target.room]) for row in targets]
    counts = long.sum(axis=0)
    return Coded(writer.examples(framed, wanted, split.where), sizes, int(counts[0]), int(counts[1]))


def _refuse_long(writer: Writer, split: Split, sizes: np.ndarray, long: np.ndarray) -> None:
    rows = np.flatnonzero(long.any(axis=1))
    if len(rows):
        row = int(rows[0])
        side, place = ("source", 0) if long[row, 0] else ("target", 1)
        most = (writer.lengths.source, writer.lengths.target)[place]
        what = f"{split.where(row)}: the {side} has {sizes[row, place]} tokens, too many for max_{side}_length={most}"
        advice = (
            "give data.on_long=truncate, tail, lead_tail or window"
            if side == "source"
            else "give data.on_long=truncate"
        )
        raise UserError(Exit.BAD_DATA, f"{what}\n{advice}, or a longer max_{side}_length")


def mean_loss(writer: Writer, coded: Coded, config: TrainConfig) -> float:
    """Return the cross-entropy of a predicted token, in nats, without smoothing."""
    return trainer.mean_loss(writer.model, writer.plain_loss, coded.examples, config)


def write(writer: Writer, split: Split, on_long: OnLong, config: GenerationConfig, seed: int) -> Written:
    """Write a text for each source, without spaces around it; `cut` counts the sources that were too long.

    Under on_long=window, hierarchical summarise-then-merge, such a source is cut into windows, each is summarised, and
    the summaries, one after the other, take its place, until it fits or gets no shorter; `left_long` counts those that
    do not fit and are cut after all. Raises UserError (65) for one under on_long=error.
    """
    started = time.perf_counter()
    texts, room = split.sources(), writer.source.room
    coded = writer.code_sources(texts)
    long, left = [row for row, tokens in enumerate(coded) if len(tokens) > room], 0
    if long and on_long == "error":
        sizes = np.array([[len(tokens), 0] for tokens in coded])
        _refuse_long(writer, split, sizes, sizes > [room, 0])
    if long and on_long == "window":
        for row, text in zip(long, _merged(writer, [texts[row] for row in long], config, seed), strict=True):
            coded[row] = writer.code_sources([text])[0]
        left = sum(len(coded[row]) > room for row in long)
    framed = [writer.source.around(shorten(row, room, on_long)) for row in coded]
    written = generation.write_rows(writer.pen, framed, config, seed)
    texts_of = [[text.strip() for text in several] for several in written.texts]
    return replace(written, texts=texts_of, seconds=time.perf_counter() - started, cut=len(long), left_long=left)


def _merged(writer: Writer, texts: Sequence[str], config: GenerationConfig, seed: int) -> list[str]:
    """Return for each text the summaries of its windows, one after the other, again and again until they fit."""
    found, room, single = list(texts), writer.source.room, replace(config, num_return_sequences=1)

    def measure(some: Sequence[str]) -> list[int]:
        return [len(row) for row in writer.code_sources(some)]

    sizes = measure(found)
    going = [row for row, size in enumerate(sizes) if size > room]
    while going:
        parts = {row: windows(found[row], room, measure) for row in going}
        flat = [part for row in going for part in parts[row]]
        framed = [writer.source.around(row[:room]) for row in writer.code_sources(flat)]
        told = iter(generation.write_rows(writer.pen, framed, single, seed).texts)
        shorter = []
        for row in going:
            joined = " ".join(text for _ in parts[row] if (text := next(told)[0].strip()))
            size = measure([joined])[0]
            if 0 < size < sizes[row]:  # else the model adds words, or has none: the source itself is cut
                found[row], sizes[row] = joined, size
                shorter.append(row)
        going = [row for row in shorter if sizes[row] > room]
    return found


def resolve_length(setting: str, asked: int | str, usual: int, most: int) -> int:
    """Return a longest length, `auto` as `usual`, at most `most`; raises UserError (2) for more than the model has."""
    if isinstance(asked, str):
        return min(usual, most)
    if asked > most:
        what = f"{setting}={asked} is more than the {most} tokens that the model has for it"
        raise UserError(Exit.USAGE, f"{what}; give {most} at most")
    return asked


def framed(side: str, longest: int, before: Sequence[int], after: Sequence[int], taken: int = 0) -> Frame:
    """Return the frame of a side that is `longest` tokens long, `taken` of them not in it.

    Raises UserError (2) where it leaves no room.
    """
    room = longest - len(before) - len(after) - taken
    if room < 1:
        around = longest - room
        what = f"max_{side}_length={longest} has no room: {around} tokens stand around each {side}"
        raise UserError(Exit.USAGE, f"{what}; give more than {around}")
    return Frame(list(before), list(after), room)


def specials(tokenizer: PreTrainedTokenizerBase, *, target: bool) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a source or a target."""
    how = {"text_target": "a"} if target else {"text": "a"}
    coded = tokenizer(**how, return_special_tokens_mask=True)
    ids, mask = list(coded["input_ids"]), list(coded["special_tokens_mask"])
    if 0 not in mask:
        return [], []
    return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]


def prefix_of(asked: str, known: Mapping[str, Any] | None) -> str:
    """Return the text before each source; `auto` is what a config's task_specific_params say of it.

    That is what a run of this recipe noted, or what T5 has for summaries.
    """
    if asked != "auto":
        return asked
    for group, name in ((pretrained.SETTINGS_KEY, "source_prefix"), ("summarization", "prefix")):
        found = (known or {}).get(group)
        if isinstance(found, Mapping) and name in found:
            return str(found[name])
    return ""


@dataclass(frozen=True)
class Prefix:
    """The tokens of a text that stands before each source, and what a source is coded with in front of it."""

    tokens: list[int]
    lead: str  # the space at the prefix's end, where it is part of the word that follows it

    @classmethod
    def of(cls, text: str, code: Callable[[Sequence[str]], list[list[int]]]) -> "Prefix":
        """Part a prefix from the word after it, as `code` does; T5 puts the space before every text by itself."""
        if not text:
            return cls([], "")
        if not text[-1].isspace():  # a letter behind it could become part of its last token
            return cls(code([text])[0], "")
        whole, bare, spaced = code([f"{text}a", "a", " a"])
        lead = " " if text.endswith(" ") and spaced != bare else ""
        return cls(whole[: len(whole) - len(spaced if lead else bare)], lead)
