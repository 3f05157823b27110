"""An encoder-decoder at work: made for its vocabularies, trained on pairs, writing texts; saved and loaded whole."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn

from finetune import adapters, cpu, hardware, pretrained, trainer
from finetune.adapters import AdapterConfig
from finetune.config import configclass, field, refuse_for_model
from finetune.data.batching import Batch, Examples, pad
from finetune.data.columns import Split
from finetune.errors import Exit, UserError
from finetune.pretrained import Source
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel, sequence_loss
from finetune.seq2seq.search import MAX_MORE, MAX_PER_SOURCE_TOKEN, SearchConfig, search_all
from finetune.seq2seq.vocabulary import EOS, PAD, Vocabularies, VocabularyConfig, learn
from finetune.text_evaluation import Task
from finetune.trainer import TrainConfig

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Longest = Annotated[int, Field(gt=2)]  # bos, a token, eos
OnLong = Literal["truncate", "error", "skip"]
AUTO_EPOCHS = 10.0
AUTO_WIDTH = 256  # hidden size at which the automatic rates are as below
AUTO_RATES = {"transformer": 1e-3, "rnn": 2e-3}
KEPT = 0.1  # of those rates, where a model goes on: its knowledge is to be kept


@configclass
class NetworkConfig:
    """The shape of the model."""

    architecture: Literal["transformer", "rnn"] = field("transformer", "rnn: recurrent encoder and decoder")
    hidden_size: Positive = field(256, "width of embeddings and layers")
    num_encoder_layers: Positive = field(3, "layers that read the source")
    num_decoder_layers: Positive = field(3, "layers that write the target")
    dropout: Probability = field(0.1, "share of activations dropped in training")
    tie_embeddings: Literal["auto", "none", "target", "all"] = field(
        "auto", "target: decoder input = output; all: the source's too; auto: all where the vocabulary is shared"
    )
    copy: bool = field(False, "tokens may be copied from the source (pointer-generator); needs vocabulary.shared")
    num_attention_heads: Positive = field(4, "transformer: heads of each attention")
    intermediate_size: Positive = field(1024, "transformer: width of the feed-forward layers")
    position: Literal["sinusoidal", "learned"] = field("sinusoidal", "transformer: positions")
    norm: Literal["pre", "post"] = field("pre", "transformer: normalise before or after each sublayer")
    activation: Literal["relu", "gelu"] = field("relu", "transformer: of the feed-forward layers")
    cell: Literal["lstm", "gru", "rnn"] = field("lstm", "rnn: the recurrent cell")
    attention: Literal["none", "additive", "dot", "scaled_dot", "general"] = field(
        "additive", "rnn: how the decoder looks at the source; none: one fixed vector"
    )
    bidirectional: bool = field(True, "rnn: the encoder also reads backwards")
    input_feeding: bool = field(False, "rnn: the context of a step is read by the next")
    scheduled_sampling: Probability = field(0.0, "rnn: share of the inputs that the decoder guesses itself in training")


class Settings(Protocol):
    """What `begin` reads of a recipe's settings."""

    @property
    def model(self) -> str | None:
        """Return the folder of the model that goes on, if any."""

    @property
    def peft(self) -> AdapterConfig:
        """Return what is trained in place of its own weights."""

    @property
    def vocabulary(self) -> VocabularyConfig:
        """Return what the tokens are."""

    @property
    def network(self) -> NetworkConfig:
        """Return the shape."""

    @property
    def max_source_length(self) -> int:
        """Return the tokens of a source."""

    @property
    def max_target_length(self) -> int:
        """Return the tokens of a target."""

    @property
    def seed(self) -> int:
        """Return the seed of first weights."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The longest source and target, in tokens, eos (and bos) included."""

    source: int
    target: int

    @classmethod
    def of(cls, settings: Settings) -> "Lengths":
        """Return the lengths that a recipe is set to."""
        return cls(settings.max_source_length, settings.max_target_length)


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """Token rows of a split: `row` says of which row of the split; targets are missing where there are none."""

    sources: list[np.ndarray]
    targets: list[np.ndarray] | None
    row: np.ndarray  # (pairs,)
    long: int  # rows of the split above the longest source or target


@dataclasses.dataclass(frozen=True)
class Written:
    """What the model writes for each row: texts, tokens and score per token of the best, and the seconds it took."""

    texts: list[list[str]]  # n-best, best first
    tokens: list[tuple[int, ...]]  # of the best text, without bos and eos
    scores: list[float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """A model with its vocabularies, and the checkpoint that its weights come from, if any."""

    model: Seq2SeqModel
    vocabularies: Vocabularies
    source: Source | None = None

    @property
    def identity(self) -> str | None:
        """Return where the first weights come from, for the record; None for random ones."""
        return None if self.source is None else self.source.identity

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        config = self.model.config
        shape = f"{config.num_encoder_layers}+{config.num_decoder_layers} layers, {config.hidden_size} wide"
        return f"{self.name} · {shape} · {adapters.described(self.model)}"

    @property
    def name(self) -> str:
        """Return the architecture as it is written in sentences: `Transformer`, `LSTM with additive attention`."""
        config = self.model.config
        if config.architecture == "transformer":
            return "Transformer with copying" if config.copy else "Transformer"
        cell = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[config.cell]
        kind = config.attention.replace("_", " ")
        if kind == "none":
            return f"{cell} without attention"
        return f"{cell} with {kind} attention" + (" and copying" if config.copy else "")

    def save(self, folder: Path) -> None:
        """Write weights, config and vocabularies, so that `load` and, after import, the Auto classes read them."""
        pretrained.save_model(self.model, folder)
        self.vocabularies.save(folder)


def begin(settings: Settings, train: Split, task: Task) -> EncoderDecoder:
    """Return what is trained: random weights for vocabularies learnt from train, or a model that goes on, with its own.

    Raises UserError: 2 for settings of a shape or vocabulary that a model has already, else as `load` and `build`.
    """
    source = pretrained.starting_if_any(settings.model, settings.peft)
    lengths = Lengths.of(settings)
    if source is None:
        words = learn(train.sources(), train.targets(), settings.vocabulary)
        return build(settings.network, words, lengths, settings.seed, task)
    given = f"model={source.name}"
    refuse_for_model(given, "network", settings.network, {"scheduled_sampling"})  # of the loop, not of the model
    refuse_for_model(given, "vocabulary", settings.vocabulary)
    parts = load(Path(source.path))
    if parts.model.config.max_position_embeddings < _positions(lengths):
        most = f"{parts.model.config.max_position_embeddings} positions"
        what = f"max_source_length={lengths.source} and max_target_length={lengths.target} need {_positions(lengths)}"
        raise UserError(Exit.USAGE, f"{what} positions, and model={source.name} has {most}; give shorter ones")
    if adapters.is_adapted(parts.model):
        adapters.merge(parts.model)
    _remember(parts.model, task, lengths)
    cpu.prepare(parts.model)
    if settings.peft.adapter != "none":
        torch.manual_seed(settings.seed)
        adapters.wrap(parts.model, settings.peft, pretrained.as_base(source), new=())
    return dataclasses.replace(parts, source=source)


def build(
    network: NetworkConfig, vocabularies: Vocabularies, lengths: Lengths, seed: int, task: Task
) -> EncoderDecoder:
    """Make a model with random weights drawn from `seed`; raises UserError (2) for a shape that cannot be.

    The task and the lengths stand in its config, so that its folder alone is enough to use it.
    """
    tying = network.tie_embeddings
    if network.copy and not vocabularies.shared:
        what = "copy=true needs one vocabulary, in which a token has the same number in source and target"
        raise UserError(Exit.USAGE, f"{what}\ngive vocabulary.shared=true, or copy=false")
    shape = {name: value for name, value in dataclasses.asdict(network).items() if name != "scheduled_sampling"}
    shape["tie_embeddings"] = ("all" if vocabularies.shared else "target") if tying == "auto" else tying
    config = Seq2SeqConfig(
        source_vocab_size=len(vocabularies.source),
        target_vocab_size=len(vocabularies.target),
        max_position_embeddings=_positions(lengths),
        **shape,
    )
    torch.manual_seed(seed)  # the first weights are part of the seed
    model = Seq2SeqModel(config)
    _remember(model, task, lengths)
    cpu.prepare(model)
    return EncoderDecoder(model, vocabularies)


def _positions(lengths: Lengths) -> int:
    """Return the positions that a model needs, with what a search may write."""
    return max(lengths.source, lengths.target, math.ceil(MAX_PER_SOURCE_TOKEN * lengths.source) + MAX_MORE) + 2


def _remember(model: Seq2SeqModel, task: Task, lengths: Lengths) -> None:
    longest = {"max_source_length": lengths.source, "max_target_length": lengths.target}
    pretrained.remember_settings(model, {"task": task.name, "language": task.language} | longest)


def load(folder: Path) -> EncoderDecoder:
    """Load what `EncoderDecoder.save` wrote; raises UserError 66 where nothing is there, 65 where it does not fit."""
    vocabularies = Vocabularies.load(folder)
    adapted = adapters.is_adapter(folder)
    weights = Path(pretrained.base_of(folder).path) if adapted else folder
    how: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    try:
        config = Seq2SeqConfig.from_pretrained(folder)
        # Mismatches are let through to be counted: weights that are missing would silently be random ones.
        model, found = Seq2SeqModel.from_pretrained(
            weights, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **how
        )
    except SafetensorError as error:
        message = f"{folder}: the weights are damaged ({error}); copy the folder again, or train again"
        raise UserError(Exit.BAD_DATA, message) from None
    except (UserError, OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(Exit.BAD_DATA, f"{folder} holds no sequence-to-sequence model: {first[:200]}") from None
    strange = sorted(
        {*found["missing_keys"], *found["unexpected_keys"], *(name for name, *_ in found["mismatched_keys"])}
    )
    if strange:
        what = f"{folder}: config.json and the weights are of different models ({', '.join(strange[:3])})"
        raise UserError(Exit.BAD_DATA, f"{what}\ncopy the folder again, or train again")
    sizes = (model.config.source_vocab_size, model.config.target_vocab_size)
    if (len(vocabularies.source), len(vocabularies.target)) != sizes:
        raise UserError(Exit.BAD_DATA, f"{folder}: vocabulary and model do not belong together; train again")
    if adapted:
        adapters.attach(model, folder)
    return EncoderDecoder(model.to(hardware.device_type(use_cpu=False)).eval(), vocabularies)


def loop_settings() -> TrainConfig:
    """Return the loop's settings for a model with random weights (Vaswani et al. 2017, section 5.3, for the betas)."""
    return TrainConfig(
        per_device_train_batch_size=64,
        lr_scheduler_type="inverse_sqrt",
        adam_beta2=0.98,
        weight_decay=0.0001,
        metric_for_best_model="auto",
    )


def resolve(config: TrainConfig, parts: EncoderDecoder, decides: str) -> TrainConfig:
    """Return the settings with every `auto` replaced: rate by architecture and width, ten epochs, the task's score."""
    rate, epochs, best = config.learning_rate, config.num_train_epochs, config.metric_for_best_model
    share = 1.0 if parts.source is None else KEPT
    usual = adapters.auto_learning_rate(share * auto_learning_rate(parts.model.config), parts.model)
    automatic = 1.0 if config.lr_scheduler_type == "noam" else usual  # of noam a factor
    return dataclasses.replace(
        config,
        learning_rate=automatic if rate == "auto" else rate,
        num_train_epochs=AUTO_EPOCHS if epochs == "auto" else epochs,
        metric_for_best_model=decides if best == "auto" else best,
        mixed_precision=hardware.choose_precision(config.mixed_precision, config.use_cpu).value,
    )


def auto_learning_rate(network: NetworkConfig | Seq2SeqConfig) -> float:
    """Return a peak rate for random weights: by architecture, less for wide models."""
    return float(f"{AUTO_RATES[network.architecture] * math.sqrt(AUTO_WIDTH / network.hidden_size):.1g}")


def encode(
    split: Split, vocabularies: Vocabularies, longest: Lengths, on_long: OnLong, *, with_targets: bool = True
) -> EncodedPairs:
    """Turn the pairs of a split into token numbers; a cut row keeps its eos.

    Raises UserError 65 for a long pair under on_long=error; under skip it is left out, and counted.
    """
    sources = vocabularies.encode_sources(split.sources())
    targets = vocabularies.encode_targets(split.targets()) if with_targets else None
    long = np.array([len(row) > longest.source for row in sources], dtype=bool)
    if targets is not None:
        long |= np.array([len(row) > longest.target for row in targets], dtype=bool)
    if long.any() and on_long == "error":
        row = int(np.flatnonzero(long)[0])
        size = f"{len(sources[row])} source tokens" + (f" and {len(targets[row])} of target" if targets else "")
        limits = f"max_source_length={longest.source}, max_target_length={longest.target}"
        what = f"{split.where(row)} has {size}, more than {limits}"
        raise UserError(Exit.BAD_DATA, f"{what}\ngive data.on_long=truncate or skip, or longer limits")
    kept = np.flatnonzero(~long) if on_long == "skip" else np.arange(len(sources))
    if not len(kept):
        limits = f"max_source_length={longest.source} or max_target_length={longest.target}"
        raise UserError(Exit.BAD_DATA, f"{split.files[0]}: every pair is longer than {limits}; raise them")
    return EncodedPairs(
        [cut(sources[row], longest.source) for row in kept],
        None if targets is None else [cut(targets[row], longest.target) for row in kept],
        kept,
        int(long.sum()),
    )


def encode_splits(
    splits: Mapping[str, Split], vocabularies: Vocabularies, longest: Lengths, on_long: OnLong
) -> dict[str, EncodedPairs]:
    """Encode every split; under skip long pairs are left out of train alone, for those that are scored stay whole."""
    elsewhere: OnLong = "truncate" if on_long == "skip" else on_long
    return {
        name: encode(split, vocabularies, longest, on_long if name == "train" else elsewhere)
        for name, split in splits.items()
    }


def collate(encoded: EncodedPairs, where: Callable[[int], str] = str) -> Examples:
    """Return the pairs of a split for the trainer; an item is a token of the target after bos."""
    assert encoded.targets is not None
    targets = encoded.targets
    lengths = np.array([[len(row) for row in side] for side in (encoded.sources, targets)], dtype=np.int64).T

    def make(chosen: np.ndarray) -> Batch:
        source = pad([encoded.sources[index] for index in chosen], PAD)  # (batch, source)
        target = pad([targets[index] for index in chosen], PAD)  # (batch, target)
        items = sum(len(targets[index]) - 1 for index in chosen)
        return Batch({"source": source, "source_mask": source != PAD, "target": target}, items, chosen)

    return Examples(lengths, make, lambda example: where(int(encoded.row[example])))


def make_loss(smoothing: float, sampling: float) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of the loop: cross-entropy summed over the target's tokens."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
        return sequence_loss(model, **inputs, label_smoothing=smoothing, sampling=sampling)

    return loss


def mean_loss(parts: EncoderDecoder, encoded: EncodedPairs, config: TrainConfig) -> float:
    """Return the cross-entropy of a token of the targets, in nats, without smoothing."""
    return trainer.mean_loss(parts.model, make_loss(0.0, 0.0), collate(encoded), config)


def write(
    parts: EncoderDecoder, sources: Sequence[np.ndarray], search: SearchConfig, config: TrainConfig, seed: int
) -> Written:
    """Decode every source; texts come back in the order of the sources."""
    started = time.perf_counter()
    parts.model.eval()
    device = next(parts.model.parameters()).device
    with hardware.autocast(device, config.mixed_precision):
        found = search_all(parts.model, sources, search, seed=seed, device=device)
    best = [hypothesis.tokens for several in found for hypothesis in several]
    texts = iter(parts.vocabularies.decode_targets(best))
    written = [[next(texts) for _ in several] for several in found]
    first = [several[0] for several in found]
    scores = [hypothesis.log_probability / (len(hypothesis.tokens) + 1) for hypothesis in first]
    return Written(written, [hypothesis.tokens for hypothesis in first], scores, time.perf_counter() - started)


def predicted_rows(split: Split, written: Written) -> list[dict[str, Any]]:
    """Return a line for each source: id, source, predicted text, its score, and the n best where there are several."""
    rows = []
    for identity, source, texts, score in zip(split.ids(), split.sources(), written.texts, written.scores, strict=True):
        row: dict[str, Any] = {"id": identity, "source": source, "predicted": texts[0], "score": round(score, 6)}
        rows.append(row | ({"hypotheses": texts} if len(texts) > 1 else {}))
    return rows


def cut(row: Sequence[int], longest: int) -> np.ndarray:
    """Return at most the `longest` tokens of a row that ends with eos, with eos at the end."""
    kept = list(row) if len(row) <= longest else [*row[: longest - 1], EOS]
    return np.array(kept, dtype=np.int32)
