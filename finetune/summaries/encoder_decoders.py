"""Pretrained encoder-decoders (BART, T5 and their kin), and those made of an encoder and a decoder (Rothe et al. 2020).

The decoder reads a target behind the model's start token and is asked for each next token and the end.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune import adapters, cpu, generation, hardware, pretrained
from finetune.causal.model import WRITERS, auto_learning_rate
from finetune.causal.packing import IGNORED
from finetune.causal.tokenizer import TextEncoder
from finetune.data.batching import Batch, Examples, pad, pad_and_mask
from finetune.errors import Exit, UserError, did_you_mean
from finetune.generation import GenerationConfig, Pen
from finetune.pretrained import Source
from finetune.run import read_json
from finetune.seq2seq.encoder_decoder import Lengths
from finetune.summaries import writer
from finetune.summaries.writer import Frame, Prefix, Rows, Settings

ANSWERING = ("ForConditionalGeneration", "EncoderDecoderModel", "MTModel")  # ends of the names of their classes
NAMES = {"bart": "BART", "t5": "T5", "mbart": "mBART", "mt5": "mT5", "pegasus": "PEGASUS", "bert": "BERT"}
NAMES |= {"gpt2": "GPT-2"}
T5_RATE = 3e-4  # T5 was trained at high rates; its documentation names 1e-4 and 3e-4 for AdamW
PRETRAINED_EPOCHS = 3.0
OWN_TOKENIZER = "decoder"  # folder of the tokenizer of targets, where there are two


class PairModel(nn.Module):
    """An encoder-decoder of transformers; `forward` returns a loss summed over predicted tokens."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, source: Tensor, source_mask: Tensor, target: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> Tensor:
        """Return the cross-entropy, in nats, of all labels but those that are ignored, summed.

        source (batch, source), its mask with True = a real token, target (batch, target) that is read, labels (batch,
        target) that are predicted. What is padded behind a target is not seen by what stands before it.
        """
        output = self.network(
            input_ids=source, attention_mask=source_mask, decoder_input_ids=target, use_cache=False
        )  # fmt: skip
        wanted = labels != IGNORED
        logits = output.logits[wanted].float()  # (tokens, vocab)
        return functional.cross_entropy(logits, labels[wanted], reduction="sum", label_smoothing=smoothing)


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of sources and targets: one object where they are shared."""

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    @cached_property
    def reader(self) -> TextEncoder:
        """Return what codes sources."""
        return TextEncoder(self.source)

    @cached_property
    def writer(self) -> TextEncoder:
        """Return what codes targets."""
        return self.reader if self.target is self.source else TextEncoder(self.target)


@dataclass(frozen=True)
class EncoderDecoderWriter:
    """A `Writer` on an encoder-decoder of transformers."""

    model: PairModel
    tokenizers: Tokenizers
    checkpoint: Source
    name: str
    prefix: str
    lead: str
    lengths: Lengths
    source: Frame
    target: Frame
    smoothing: float

    @property
    def network(self) -> PreTrainedModel:
        """Return the model of transformers."""
        return self.model.network

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return f"{self.checkpoint.name} · {adapters.described(self.network)}"

    @property
    def identity(self) -> str:
        """Return where the first weights come from."""
        return self.checkpoint.identity

    @property
    def width(self) -> int:
        """Return the width of the embeddings."""
        return int(self.network.get_input_embeddings().weight.shape[1])

    @property
    def learning_rate(self) -> float:
        """Return the rate that `auto` stands for: that of language models of the width; T5 has one of its own."""
        return T5_RATE if self.network.config.model_type in {"t5", "mt5"} else auto_learning_rate(self.width, False)

    @property
    def epochs(self) -> float:
        """Return the passes that `auto` stands for."""
        return PRETRAINED_EPOCHS

    @property
    def pen(self) -> Pen:
        """Return what writes after framed sources."""
        target = self.tokenizers.target
        return Pen(
            self.network, lambda rows: generation.decoder_of(self.network, rows), int(self.target.after[-1]),
            lambda tokens: generation.decoded(target, tokens).lstrip(),
        )  # fmt: skip

    def code_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of sources, without special ones."""
        return self.tokenizers.reader.encode([self.lead + text for text in texts])

    def code_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of targets, without special ones."""
        return self.tokenizers.writer.encode(texts)

    def examples(self, sources: Rows, targets: Rows, where: Callable[[int], str]) -> Examples:
        """Return framed rows for the loop; an item is a token of the target behind its start."""
        reads, writes = ([np.array(row, dtype=np.int32) for row in rows] for rows in (sources, targets))
        lengths = np.array([[len(one), len(other) - 1] for one, other in zip(reads, writes, strict=True)])

        def make(chosen: np.ndarray) -> Batch:
            source, real = pad_and_mask([reads[row] for row in chosen], 0)
            tensors = {
                "source": source,
                "source_mask": real,
                "target": pad([writes[row][:-1] for row in chosen], 0),
                "labels": pad([writes[row][1:] for row in chosen], IGNORED),
            }
            return Batch(tensors, int(lengths[chosen, 1].sum()), chosen)

        return Examples(lengths, make, where)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the smoothed cross-entropy of a batch, summed over its items."""
        return _loss(model, batch, self.smoothing)

    def plain_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of a batch without smoothing, summed over its items."""
        return _loss(model, batch, 0.0)

    def save(self, folder: Path, settings: dict[str, Any], config: GenerationConfig) -> None:
        """Write weights, config and tokenizers; AutoModelForSeq2SeqLM then writes as this run does by default."""
        pretrained.remember_settings(self.network, settings)
        self.network.generation_config = _as_transformers(self.network, int(self.target.after[-1]), config)
        pretrained.save_model(self.network, folder)
        self.tokenizers.source.save_pretrained(folder)
        if self.tokenizers.target is not self.tokenizers.source:
            self.tokenizers.target.save_pretrained(folder / OWN_TOKENIZER)


def begin(settings: Settings) -> EncoderDecoderWriter:
    """Take the checkpoint `model`.

    Raises UserError: 65 where it does not answer sources, 2 for lengths beyond it, and for a language that it does not
    have, or has among others and is not told.
    """
    return _prepared(_load(pretrained.starting(str(settings.model), settings.peft)), settings)


def load(settings: Settings, folder: Path) -> EncoderDecoderWriter:
    """Load what `EncoderDecoderWriter.save` wrote, to write with."""
    found = _prepared(_load(pretrained.locate(str(folder))), settings)
    found.model.eval().to(hardware.device_type(use_cpu=False))
    return found


def begin_joined(settings: Settings) -> EncoderDecoderWriter:
    """Join the checkpoints `encoder` and `decoder`: the attention from one to the other is new, drawn from the seed.

    A text begins with the decoder's begin-of-text token (GPT-2's only special one, which also ends it). Raises
    UserError (65) where a checkpoint cannot read or write.
    """
    with pretrained.called("encoder"):
        one = pretrained.locate(settings.encoder)
        reads = pretrained.load_tokenizer(one)
        _check_class(one, lambda made_as: not made_as.endswith((*WRITERS, *ANSWERING)), "reads no text; give BERT")
        encoder = pretrained.load_model(AutoModel, one, reads)
    with pretrained.called("decoder"):
        other = pretrained.locate(settings.decoder)
        writes = pretrained.load_tokenizer(other)
        _check_class(other, lambda made_as: made_as.endswith(WRITERS), "writes no text; give GPT-2")
        torch.manual_seed(settings.seed)  # the attention to the source is part of the seed
        decoder = pretrained.load_model(AutoModelForCausalLM, other, writes, is_decoder=True, add_cross_attention=True)
        if "encoder_hidden_states" not in inspect.signature(decoder.forward).parameters:
            what = f"model={other.name} ({type(decoder).__name__}) cannot look at a source"
            raise UserError(Exit.BAD_DATA, f"{what}; give GPT-2")
    _freeze_pooler(encoder)
    network = _joined(encoder, decoder, writes)
    name = f"{_known(encoder)} with {_known(decoder)}"
    source = Source(f"{one.name} + {other.name}", "", f"{one.identity} + {other.identity}, seed:{settings.seed}")
    return _prepared(_Loaded(network, Tokenizers(reads, writes), source, name), settings)


@dataclass(frozen=True)
class _Loaded:
    network: PreTrainedModel
    tokenizers: Tokenizers
    checkpoint: Source
    name: str


def _freeze_pooler(encoder: PreTrainedModel) -> None:
    """Leave out of training what BERT makes of [CLS] alone: a decoder does not read it."""
    for name, parameter in encoder.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)


def _joined(encoder: PreTrainedModel, decoder: PreTrainedModel, writes: PreTrainedTokenizerBase) -> PreTrainedModel:
    end = _end(writes)
    begins = end if writes.bos_token_id is None else int(writes.bos_token_id)
    padding = end if writes.pad_token_id is None else int(writes.pad_token_id)
    tokens = {
        "decoder_start_token_id": begins, "bos_token_id": begins, "eos_token_id": end, "pad_token_id": padding
    }  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **tokens)
    network: PreTrainedModel = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    network.generation_config = transformers.GenerationConfig(**tokens)
    return network


def _load(source: Source) -> _Loaded:
    tokenizer = pretrained.load_tokenizer(source)
    own = Path(source.path) / OWN_TOKENIZER
    target = pretrained.load_tokenizer(replace(source, path=str(own))) if own.is_dir() else tokenizer
    _check_class(source, lambda made_as: made_as.endswith(ANSWERING), "answers no source; give BART, T5 or their kin")
    network = pretrained.load_model(AutoModelForSeq2SeqLM, source, tokenizer)
    joined = isinstance(network, EncoderDecoderModel)
    name = f"{_known(network.encoder)} with {_known(network.decoder)}" if joined else _known(network)
    rows = network.get_output_embeddings().weight.shape[0]
    if len(target) > rows:
        what = f"model={source.name}: the tokenizer of targets has {len(target):,} entries, the model {rows:,}"
        raise UserError(Exit.BAD_DATA, f"{what}; they do not belong together")
    if joined:
        _freeze_pooler(network.encoder)
    return _Loaded(network, Tokenizers(tokenizer, target), source, name)


def _prepared(found: _Loaded, settings: Settings) -> EncoderDecoderWriter:
    network, reads, writes = found.network, found.tokenizers.source, found.tokenizers.target
    config = network.config
    ends = (config.encoder, config.decoder) if isinstance(network, EncoderDecoderModel) else (config, config)
    most = [pretrained.context_limit(end, tokenizer) for end, tokenizer in zip(ends, (reads, writes), strict=True)]
    longest = Lengths(
        writer.resolve_length("max_source_length", settings.max_source_length, writer.MOST_SOURCE_TOKENS, most[0]),
        writer.resolve_length("max_target_length", settings.max_target_length, writer.MOST_TARGET_TOKENS, most[1]),
    )
    _speak(network, writes, found.checkpoint, settings.model_language)
    before, after = writer.specials(reads, target=False)
    prefix = writer.prefix_of(settings.source_prefix, config.to_dict().get("task_specific_params"))
    told = Prefix.of(prefix, found.tokenizers.reader.encode)
    first, last = _around_targets(network, writes)
    # Every text begins with these; they are read, the last token that is written is not.
    generation.check_longest(settings.generation, most[1] + 1 - len(generation.first_tokens(network)))
    config.task_specific_params = None  # what the checkpoint was used for: save_pretrained writes what it becomes
    cpu.prepare(network, with_attention=False)
    return EncoderDecoderWriter(
        PairModel(network), found.tokenizers, found.checkpoint, found.name, prefix, told.lead, longest,
        writer.framed("source", longest.source, [*before, *told.tokens], after),
        writer.framed("target", longest.target + 1, first, last),  # the start is not predicted
        settings.label_smoothing_factor,
    )  # fmt: skip


def _speak(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Source, code: str | None) -> None:
    """Set the language of sources and targets, where a tokenizer has codes of languages (mBART and its kin).

    A text then begins with the code: in place of the start token (mBART), or behind it (mBART-50), as in pretraining.
    Raises UserError (2) for a code that the tokenizer does not have, and for none where it has several: what it begins
    with of itself would be English.
    """
    codes: dict[str, int] = vars(tokenizer).get("lang_code_to_id", {})
    if not codes and code is None:
        return
    if code is None:
        what = f"model={source.name} writes in {len(codes)} languages: say in which by model_language=CODE"
        raise UserError(Exit.USAGE, f"{what}\nknown: {', '.join(codes)}")
    if code not in codes:
        what = f"model_language={code}: {source.name} has {'no such language' if codes else 'one language, no codes'}"
        known = f"{did_you_mean(code, codes)}\nknown: {', '.join(codes)}" if codes else "; leave it out"
        raise UserError(Exit.USAGE, what + known)
    tokenizer.src_lang = tokenizer.tgt_lang = code
    before, _ = writer.specials(tokenizer, target=True)
    if codes[code] in before:
        network.generation_config.forced_bos_token_id = codes[code]
    else:
        network.generation_config.decoder_start_token_id = codes[code]


def _around_targets(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return what the decoder is given before a target, the start first, and what ends it.

    Special tokens of the tokenizer stand between (BART's <s>, mBART's language), up to the first end.
    """
    start = generation.first_tokens(network)
    before, after = writer.specials(tokenizer, target=True)
    end = _end(tokenizer)
    before = [*start, *before[len(start) - 1 :]]
    return before, [*after[: after.index(end)], end] if end in after else [end]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        what = f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token"
        raise UserError(Exit.BAD_DATA, f"{what}; set eos_token in its folder")
    return int(end)


def _as_transformers(network: PreTrainedModel, end: int, config: GenerationConfig) -> transformers.GenerationConfig:
    """Return the settings of writing as transformers' generate reads them."""
    start, *forced = generation.first_tokens(network)
    before = network.generation_config
    padding = network.config.pad_token_id if before.pad_token_id is None else before.pad_token_id
    told: dict[str, Any] = {
        "decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": padding,
        "bos_token_id": before.bos_token_id, "forced_bos_token_id": forced[0] if forced else None,
        "no_repeat_ngram_size": config.no_repeat_ngram_size, "repetition_penalty": config.repetition_penalty,
    }  # fmt: skip
    return transformers.GenerationConfig(**told, **generation.as_transformers(config))


def _check_class(source: Source, fits: Callable[[str], bool], otherwise: str) -> None:
    made_as = pretrained.class_named(read_json(Path(source.path) / "config.json"))
    if not fits(made_as):
        raise UserError(Exit.BAD_DATA, f"model={source.name} ({made_as or 'of no known class'}) {otherwise}")


def _known(network: PreTrainedModel) -> str:
    kind = str(network.config.model_type)
    return NAMES.get(kind, kind)


def _loss(model: nn.Module, batch: Batch, smoothing: float) -> Tensor:
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
    total: Tensor = model(**inputs, smoothing=smoothing)
    return total
