"""The project's own encoder-decoders, trained from random weights, on the same terms as pretrained models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune import pretrained
from finetune.data.batching import Batch, Examples, pad
from finetune.data.columns import Split
from finetune.generation import Decoder, GenerationConfig, Pen, check_longest
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.encoder_decoder import EncodedPairs, EncoderDecoder, Lengths
from finetune.seq2seq.model import Seq2SeqModel
from finetune.seq2seq.vocabulary import BOS, EOS, PAD, UNK, decode, learn
from finetune.summaries import writer
from finetune.summaries.writer import Frame, Prefix, Rows, Settings
from finetune.text_evaluation import task_named

NEVER_WRITTEN = [PAD, UNK, BOS]


class OwnDecoder:
    """A model of the project as `generation` asks for it: sources are read once, then it goes token by token."""

    def __init__(self, model: Seq2SeqModel, sources: Rows) -> None:
        self.model = model
        self.before: Sequence[Sequence[int]] = [[BOS]] * len(sources)
        device = next(model.parameters()).device
        source = pad(sources, PAD).to(device)
        self._memory = model.encode(source, source != PAD)
        self._state = model.start(self._memory)

    def start(self) -> Tensor:
        """Return the logits of the first token, (sources, vocab)."""
        device = next(self.model.parameters()).device
        return self.step(torch.full((len(self.before),), BOS, device=device))

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token (rows,) of each row; return logits (rows, vocab)."""
        logits, self._state = self.model.step(tokens, self._state, self._memory)
        lowest = torch.finfo(logits.dtype).min
        return logits.index_fill(1, torch.tensor(NEVER_WRITTEN, device=logits.device), lowest)

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows."""
        self._memory, self._state = self._memory.select(rows), self._state.select(rows)

    def cache_bytes(self) -> int:
        """Return 0: what the states take is not counted."""
        return 0


@dataclass(frozen=True)
class ScratchWriter:
    """A `Writer` on a model of the project with vocabularies of its own."""

    parts: EncoderDecoder
    prefix: str
    lengths: Lengths
    source: Frame
    target: Frame
    smoothing: float
    sampling: float
    seed: int
    learning_rate: float

    @property
    def model(self) -> Seq2SeqModel:
        """Return what is trained."""
        return self.parts.model

    @property
    def name(self) -> str:
        """Return the architecture as it is written in sentences."""
        return self.parts.name

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return self.parts.described

    @property
    def identity(self) -> str:
        """Return where the first weights come from."""
        return f"seed:{self.seed}"

    @property
    def epochs(self) -> float:
        """Return the passes that `auto` stands for."""
        return networks.AUTO_EPOCHS

    @property
    def width(self) -> int:
        """Return the hidden size."""
        return int(self.parts.model.config.hidden_size)

    @property
    def pen(self) -> Pen:
        """Return what writes after framed sources."""
        vocabulary = self.parts.vocabularies.target

        def decoder(rows: Rows) -> Decoder:
            return OwnDecoder(self.parts.model, rows)

        return Pen(self.parts.model, decoder, EOS, lambda tokens: decode(vocabulary, [tokens])[0].lstrip())

    def code_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of sources, without special ones."""
        return [row[:-1] for row in self.parts.vocabularies.encode_sources(texts)]

    def code_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of targets, without special ones."""
        return [row[1:-1] for row in self.parts.vocabularies.encode_targets(texts)]

    def examples(self, sources: Rows, targets: Rows, where: Callable[[int], str]) -> Examples:
        """Return framed rows for the loop; an item is a token of the target after bos."""
        reads, writes = ([np.array(row, dtype=np.int32) for row in rows] for rows in (sources, targets))
        return networks.collate(EncodedPairs(reads, writes, np.arange(len(reads)), 0), where)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the smoothed cross-entropy of a batch, summed over its items."""
        return networks.make_loss(self.smoothing, self.sampling)(model, batch)

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch without smoothing, summed over its items."""
        return networks.make_loss(0.0, 0.0)(model, batch)

    def save(self, folder: Path, settings: dict[str, Any], config: GenerationConfig) -> None:
        """Write weights, config and vocabularies."""
        pretrained.remember_settings(self.parts.model, settings)
        self.parts.save(folder)


def begin(settings: Settings, train: Split) -> ScratchWriter:
    """Learn vocabularies from train and make a model with random weights; raises UserError (2) for a wrong shape."""
    words = learn(train.sources(), train.targets(), settings.vocabulary)
    task = task_named(settings.task, settings.language)
    lengths = _lengths(settings)
    longest = Lengths(lengths.source, max(lengths.target, settings.generation.max_new_tokens) + 1)  # bos
    return _framed(networks.build(settings.network, words, longest, settings.seed, task), settings)


def load(settings: Settings, folder: Path) -> ScratchWriter:
    """Load what `ScratchWriter.save` wrote, to write with."""
    return _framed(networks.load(folder), settings)


def _framed(parts: EncoderDecoder, settings: Settings) -> ScratchWriter:
    lengths = _lengths(settings)
    check_longest(settings.generation, parts.model.config.max_position_embeddings - 2)  # bos and eos
    prefix = writer.prefix_of(settings.source_prefix, None)
    told = Prefix.of(prefix, lambda texts: [row[:-1] for row in parts.vocabularies.encode_sources(texts)])
    return ScratchWriter(
        parts, prefix, lengths, writer.framed("source", lengths.source, told.tokens, [EOS]),
        writer.framed("target", lengths.target + 1, [BOS], [EOS]), settings.label_smoothing_factor,
        settings.network.scheduled_sampling, settings.seed, networks.auto_learning_rate(settings.network),
    )  # fmt: skip


def _lengths(settings: Settings) -> Lengths:
    usual = (writer.MOST_SOURCE_TOKENS, writer.MOST_TARGET_TOKENS)
    asked = (settings.max_source_length, settings.max_target_length)
    source, target = (length if isinstance(length, int) else most for length, most in zip(asked, usual, strict=True))
    return Lengths(source, target)
