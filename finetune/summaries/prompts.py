"""A language model that goes on from a source and a few words after it: `TL;DR:` (Radford et al. 2019, section 3.6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from finetune import generation, hardware, pretrained
from finetune.causal import model as language_models
from finetune.causal import packing
from finetune.causal.model import DropoutConfig, LanguageModel, Start
from finetune.causal.packing import Completions
from finetune.causal.tokenizer import TextEncoder
from finetune.config import unescaped
from finetune.data.batching import Batch, Examples
from finetune.errors import Exit, UserError
from finetune.generation import CausalDecoder, Decoder, GenerationConfig, Pen
from finetune.seq2seq.encoder_decoder import Lengths
from finetune.summaries import writer
from finetune.summaries.writer import Frame, Prefix, Rows, Settings
from finetune.terminal import count

EPOCHS = 3.0


@dataclass(frozen=True)
class PromptWriter:
    """A `Writer` on a decoder-only model; the loss is of the target alone."""

    start: Start
    prefix: str
    lead: str
    lengths: Lengths
    source: Frame
    target: Frame
    smoothing: float

    @cached_property
    def encoder(self) -> TextEncoder:
        """Return what codes texts."""
        return TextEncoder(self.start.tokenizer)

    @property
    def model(self) -> LanguageModel:
        """Return what is trained."""
        return self.start.model

    @property
    def name(self) -> str:
        """Return the family as it is written in sentences."""
        return self.start.kind

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return self.start.described

    @property
    def identity(self) -> str:
        """Return where the first weights come from."""
        return self.start.identity

    @property
    def learning_rate(self) -> float:
        """Return the rate that `auto` stands for."""
        return language_models.auto_learning_rate(self.width, fresh=False)

    @property
    def epochs(self) -> float:
        """Return the passes that `auto` stands for."""
        return EPOCHS

    @property
    def width(self) -> int:
        """Return the hidden size."""
        return self.start.width

    @property
    def pen(self) -> Pen:
        """Return what writes after framed sources."""
        network, tokenizer = self.start.model.network, self.start.tokenizer

        def decoder(rows: Rows) -> Decoder:
            found = CausalDecoder(network, rows)
            found.before = [row[-1:] for row in rows]  # what may not be repeated is of the text, not of its source
            return found

        return Pen(network, decoder, self.start.end, lambda tokens: generation.decoded(tokenizer, tokens).lstrip())

    def code_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of sources."""
        return self.encoder.encode([self.lead + text for text in texts])

    def code_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of targets, each with a space before it, as words have it inside a text."""
        return self.encoder.encode([f" {text}" for text in texts])

    def examples(self, sources: Rows, targets: Rows, where: Callable[[int], str]) -> Examples:
        """Return framed rows for the loop, each source with its target; an item is a token of the target."""
        rows = [np.array([*one, *other]) for one, other in zip(sources, targets, strict=True)]
        prompt = np.array([len(row) for row in sources], dtype=np.int64)
        found = Completions(rows, prompt, np.arange(len(rows)))
        return packing.completion_examples(found, self.start.end, where)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the smoothed cross-entropy of a batch, summed over its items."""
        return language_models.loss(model, batch, self.smoothing)

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch without smoothing, summed over its items."""
        return language_models.loss(model, batch)

    def save(self, folder: Path, settings: dict[str, Any], config: GenerationConfig) -> None:
        """Write weights, config and tokenizer; AutoModelForCausalLM then searches as this run does by default."""
        generation.write_so(self.start, config)
        self.start.save(folder, DropoutConfig(), settings)


def begin(settings: Settings) -> PromptWriter:
    """Take the checkpoint `model`; raises UserError: 65 where it is no language model, 2 for lengths beyond it."""
    source = pretrained.starting(str(settings.model), settings.peft)
    start = language_models.from_checkpoint(source, DropoutConfig())
    return _framed(start, settings)


def load(settings: Settings, folder: Path) -> PromptWriter:
    """Load what `PromptWriter.save` wrote, to write with."""
    found = _framed(language_models.load_trained(folder), settings)
    found.model.eval().to(hardware.device_type(use_cpu=False))
    return found


def _framed(start: Start, settings: Settings) -> PromptWriter:
    """Share the context out: what is written, or learnt, comes first, and the source has the rest."""
    generation.check_longest(settings.generation, start.context)
    usual = min(writer.MOST_TARGET_TOKENS, start.context // 2)
    target = writer.resolve_length("max_target_length", settings.max_target_length, usual, start.context - 1)
    code = TextEncoder(start.tokenizer).encode
    prefix = writer.prefix_of(settings.source_prefix, None)
    told = Prefix.of(prefix, code)
    (after,) = code([unescaped(settings.prompt_end)])
    before = [start.end, *told.tokens]
    source = _source_length(settings, start.context, target, len(before) + len(after))
    return PromptWriter(
        start, prefix, told.lead, Lengths(source, target), writer.framed("source", source, before, after),
        writer.framed("target", target, [], [start.end]), settings.label_smoothing_factor,
    )  # fmt: skip


def _source_length(settings: Settings, context: int, target: int, around: int) -> int:
    """Return the longest source, its frame of `around` tokens included; raises UserError (2) where there is no room."""
    asked, longest = settings.max_source_length, settings.generation.max_new_tokens
    name, taken = ("max_target_length", target) if target > longest else ("generation.max_new_tokens", longest)
    rest = context + 1 - taken  # the last token is never read
    if rest <= around:
        what = f"{name}={taken} leaves {count(rest, 'token')} for a source, around which {around} stand"
        raise UserError(Exit.USAGE, f"{what}; give {name}={context - around} or less")
    if not isinstance(asked, str) and asked > rest:
        what = f"max_source_length={asked} and {name}={taken} are more than the {context + 1} tokens that both share"
        raise UserError(Exit.USAGE, f"{what}\ngive a max_source_length of {rest} or less, or a smaller {name}")
    return writer.resolve_length("max_source_length", asked, writer.MOST_SOURCE_TOKENS, rest)
