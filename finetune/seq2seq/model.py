"""The project's sequence-to-sequence models as transformers models: configuration, embeddings, output layer, loss.

Importing this module registers them with transformers' Auto classes.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqLMOutput

from finetune.errors import Exit, UserError, did_you_mean
from finetune.seq2seq import copying, rnn, transformer
from finetune.seq2seq.attention import Additive, General, MultiHead
from finetune.seq2seq.copying import Gate, Pointers
from finetune.seq2seq.loss import summed_cross_entropy

CHOICES = {
    "architecture": ("transformer", "rnn"),
    "position": ("sinusoidal", "learned"),
    "norm": ("pre", "post"),
    "activation": ("relu", "gelu"),
    "tie_embeddings": ("none", "target", "all"),
    "cell": ("lstm", "gru", "rnn"),
    "attention": ("none", "additive", "dot", "scaled_dot", "general"),
}
COUNTS = (
    "source_vocab_size", "target_vocab_size", "hidden_size", "num_encoder_layers", "num_decoder_layers",
    "num_attention_heads", "intermediate_size", "max_position_embeddings",
)  # fmt: skip


class Seq2SeqConfig(PreTrainedConfig):
    """The shape of a sequence-to-sequence model.

    Of a Transformer only: num_attention_heads, intermediate_size, max_position_embeddings, position, norm, activation;
    of a recurrent network only: cell, attention, bidirectional, input_feeding. Wrong values raise UserError (2).
    """

    model_type = "finetune_seq2seq"
    attribute_map = {"vocab_size": "target_vocab_size", "num_hidden_layers": "num_decoder_layers"}  # noqa: RUF012

    architecture: str = "transformer"
    source_vocab_size: int = 8000
    target_vocab_size: int = 8000
    hidden_size: int = 256
    num_encoder_layers: int = 3
    num_decoder_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    dropout: float | int = 0.1
    max_position_embeddings: int = 512
    position: str = "sinusoidal"
    norm: str = "pre"
    activation: str = "relu"
    tie_embeddings: str = "target"
    copy: bool = False
    cell: str = "lstm"
    attention: str = "additive"
    bidirectional: bool = True
    input_feeding: bool = False
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 3
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # transformers ties and saves by names; here what is shared is one parameter with one name.
        self.tie_word_embeddings = False
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                guess = did_you_mean(str(value), known)
                raise UserError(Exit.USAGE, f"{name}={value}: choose one of {', '.join(known)}{guess}")
        for name in COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(Exit.USAGE, f"{name}={value}: give a whole number, 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(Exit.USAGE, f"dropout={self.dropout}: give a probability from 0 to below 1")
        for name, vocab in (("pad", "target"), ("bos", "target"), ("eos", "target"), ("pad", "source")):
            token, size = getattr(self, f"{name}_token_id"), getattr(self, f"{vocab}_vocab_size")
            if not isinstance(token, int) or not 0 <= token < size:
                raise UserError(Exit.USAGE, f"{name}_token_id={token}: the {vocab} vocabulary has 0 to {size - 1}")
        if not isinstance(self.copy, bool):
            raise UserError(Exit.USAGE, f"copy={self.copy}: give true or false")
        self._check_together()
        if self.copy:
            self._check_copying()

    def _check_together(self) -> None:
        """Refuse values that exclude each other."""
        width, heads = self.hidden_size, self.num_attention_heads
        if self.tie_embeddings == "all" and self.source_vocab_size != self.target_vocab_size:
            raise UserError(
                Exit.USAGE,
                f"tie_embeddings=all shares one table, but there are {self.source_vocab_size} source tokens and "
                f"{self.target_vocab_size} target tokens; share the vocabulary, or give tie_embeddings=target",
            )
        if self.architecture == "transformer" and width % heads:
            raise UserError(Exit.USAGE, f"hidden_size={width} is no multiple of num_attention_heads={heads}")
        if width % 2 and (self.architecture == "transformer" or self.bidirectional):
            halves = "sines and cosines" if self.architecture == "transformer" else "the encoder's two directions"
            raise UserError(Exit.USAGE, f"hidden_size={width} must be even: {halves} have half each")

    def _check_copying(self) -> None:
        """Refuse to copy where nothing is looked at, or where a token has another number on the other side."""
        if self.architecture == "rnn" and self.attention == "none":
            what = "copy=true needs a decoder that looks at single tokens, and attention=none has one fixed vector"
            raise UserError(Exit.USAGE, f"{what}\ngive another attention, e.g. attention=additive, or copy=false")
        if self.source_vocab_size != self.target_vocab_size:
            what = f"copy=true needs one vocabulary, but there are {self.source_vocab_size} source tokens and"
            raise UserError(
                Exit.USAGE, f"{what} {self.target_vocab_size} target tokens\nshare the vocabulary, or give copy=false"
            )


class Rows(Protocol):
    """A memory or a state: tensors whose first axis is the row."""

    def select(self, rows: Tensor) -> Any:
        """Return the same of some rows, in their order."""
        ...


class Places(NamedTuple):
    """What the output layer reads at some places of a target."""

    hidden: Tensor  # (..., dim)
    pointers: Pointers | None  # of a model that copies


class Seq2SeqModel(PreTrainedModel):
    """An encoder-decoder: token ids in, logits out.

    The contract that search builds on: `encode` once, `start`, then `step` token by token; `decode` does what the
    steps do for a given target all at once. Masks: True = a real token; sequences are padded on the right.
    """

    config_class = Seq2SeqConfig
    main_input_name = "input_ids"

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        dim, tying = config.hidden_size, config.tie_embeddings
        self.target_embeddings = nn.Embedding(config.target_vocab_size, dim, padding_idx=config.pad_token_id)
        if tying != "all":
            self.source_embeddings = nn.Embedding(config.source_vocab_size, dim, padding_idx=config.pad_token_id)
        if tying == "none":
            self.output = nn.Linear(dim, config.target_vocab_size, bias=False)
        self.network: Network = _network(config)
        self.gate = Gate(dim) if config.copy else None
        self.post_init()

    # The contract

    def encode(self, source: Tensor, source_mask: Tensor) -> Rows:
        """Read source (batch, source) with its mask (batch, source)."""
        memory: Rows = self.network.encode(self._embed(source, self._source_table), source_mask)
        return memory if self.gate is None else copying.Memory(memory, source)

    def start(self, memory: Rows) -> Rows:
        """Return the decoder's state before its first step."""
        state: Rows = self.network.start(_inner(memory))
        return state

    def step(self, previous: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        """Read the token before, (rows,), and return logits (rows, vocab) for the next, and the state after it.

        The memory may have fewer rows than the state: one for each block of equally many rows, which then share it.
        A step uses its state up: go on with the one that it returns.
        """
        places, state = self._step(previous, state, memory)
        return self.project(places), state

    def decode(self, target: Tensor, memory: Rows, sampling: float = 0.0) -> Places:
        """Return what `project` reads at each place of a target (batch, target) that starts with bos.

        With `sampling` > 0 (a recurrent network in training) a token is replaced with that probability by the model's
        own best guess: scheduled sampling (Bengio et al. 2015).
        """
        if sampling > 0:
            return self._decode_sampling(target, memory, sampling)
        embedded = self._embed(target, self.target_embeddings)
        if self.gate is None:
            return Places(self.network.decode(embedded, memory), None)
        assert isinstance(memory, copying.Memory)
        hidden, weights = self.network.decode_looking(embedded, memory.inner)
        return Places(hidden, Pointers(self.gate(hidden, embedded), weights, memory.source[:, None]))

    def project(self, places: Places) -> Tensor:
        """Return logits, (..., vocab); of a model that copies they are log-probabilities, which are logits too."""
        logits = functional.linear(places.hidden, self._output_weight)
        return logits if places.pointers is None else copying.mixture(logits, places.pointers)

    def alignment(self, source: Tensor, source_mask: Tensor, target: Tensor) -> Tensor | None:
        """Return how much each place of a target that starts with bos looks at each source token.

        (batch, target, source); place t is where the token after target[t] is chosen. None without attention; of a
        model that copies, where it would copy from.
        """
        memory, embedded = self.encode(source, source_mask), self._embed(target, self.target_embeddings)
        if self.gate is None:
            return self.network.alignment(embedded, memory)
        return self.network.decode_looking(embedded, _inner(memory))[1]

    # As a transformers model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
        sampling: float = 0.0,
    ) -> Seq2SeqLMOutput:
        """Return logits (batch, target, vocab), or with labels (batch, target) the loss alone.

        The loss is the SUM over the labels that are neither padding nor negative: the loop divides by their number.
        Logits are then not kept: the output layer runs at those places only, piece by piece.
        """
        memory = self.encode(input_ids, attention_mask.bool())
        places = self.decode(decoder_input_ids, memory, sampling)
        if labels is None:
            return Seq2SeqLMOutput(logits=self.project(places))
        real = (labels != self.config.pad_token_id) & (labels >= 0)
        hidden, weight, gold = places.hidden[real], self._output_weight, labels[real]
        if places.pointers is None:
            return Seq2SeqLMOutput(loss=summed_cross_entropy(hidden, weight, gold, label_smoothing))
        pointers = places.pointers.at(real)
        return Seq2SeqLMOutput(loss=copying.summed_cross_entropy(hidden, weight, pointers, gold, label_smoothing))

    def get_input_embeddings(self) -> nn.Module:
        """Return the source's table."""
        return self._source_table

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output layer, where it is one of its own; its weight is read, it is not called."""
        return None if self.config.tie_embeddings != "none" else self.output

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the parameters of one module; transformers calls this, and leaves loaded tensors alone."""
        if isinstance(module, nn.Embedding):
            # Times sqrt(dim) in `_embed` this has variance 1, and as an output layer it gives logits of variance 1.
            table = torch.randn(module.weight.shape, device=module.weight.device) * module.embedding_dim**-0.5
            table[module.padding_idx] = 0
            init.copy_(module.weight, table)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            rnn.initialise(module)
        elif isinstance(module, MultiHead | Additive | General | transformer.Positions):
            module.reset_parameters()

    # Parts

    @property
    def _source_table(self) -> nn.Embedding:
        return self.target_embeddings if self.config.tie_embeddings == "all" else self.source_embeddings

    @property
    def _output_weight(self) -> Tensor:
        return self.output.weight if self.config.tie_embeddings == "none" else self.target_embeddings.weight

    def _embed(self, tokens: Tensor, table: nn.Embedding) -> Tensor:
        """Return vectors of variance 1, (..., dim) (Vaswani et al. 2017, section 3.4)."""
        embedded: Tensor = table(tokens) * self.config.hidden_size**0.5
        return embedded

    def _step(self, previous: Tensor, state: Rows, memory: Rows) -> tuple[Places, Rows]:
        """Read the token before, (rows,); return what `project` reads, and the state after it."""
        embedded = self._embed(previous, self.target_embeddings)
        if self.gate is None:
            hidden, state = self.network.step(embedded, state, memory)
            return Places(hidden, None), state
        assert isinstance(memory, copying.Memory)
        hidden, weights, state = self.network.step_looking(embedded, state, memory.inner)
        source = memory.source.repeat_interleave(len(previous) // len(memory.source), dim=0)  # (rows, source)
        return Places(hidden, Pointers(self.gate(hidden, embedded), weights, source)), state

    def _decode_sampling(self, target: Tensor, memory: Rows, probability: float) -> Places:
        if self.config.architecture != "rnn":
            raise UserError(Exit.USAGE, "scheduled sampling needs a recurrent decoder: give architecture=rnn")
        state, found = self.start(memory), []
        previous = target[:, 0]
        for given in [*target[:, 1:].unbind(dim=1), None]:
            places, state = self._step(previous, state, memory)
            found.append(places)
            if given is not None:
                own = torch.rand(len(given), device=given.device) < probability
                previous = torch.where(own, self.project(places).argmax(dim=-1), given)
        hidden = torch.stack([places.hidden for places in found], dim=1)
        several = [places.pointers for places in found if places.pointers is not None]
        stacked = (torch.stack(part, dim=1) for part in zip(*several, strict=True))
        return Places(hidden, Pointers(*stacked) if several else None)


def _inner(memory: Rows) -> Rows:
    """Return the memory of the network."""
    return memory.inner if isinstance(memory, copying.Memory) else memory


class Network(Protocol):
    """What is between embedded tokens and the output layer; Transformer and Recurrent are networks."""

    def encode(self, embedded: Tensor, mask: Tensor) -> Any: ...

    def start(self, memory: Any) -> Any: ...

    def step(self, embedded: Tensor, state: Any, memory: Any) -> tuple[Tensor, Any]: ...

    def decode(self, embedded: Tensor, memory: Any) -> Tensor: ...

    def step_looking(self, embedded: Tensor, state: Any, memory: Any) -> tuple[Tensor, Tensor, Any]: ...

    def decode_looking(self, embedded: Tensor, memory: Any) -> tuple[Tensor, Tensor]: ...

    def alignment(self, embedded: Tensor, memory: Any) -> Tensor | None: ...


def _network(config: Seq2SeqConfig) -> transformer.Transformer | rnn.Recurrent:
    """Return the network that a configuration describes, with new weights."""
    if config.architecture == "rnn":
        return rnn.Recurrent(
            rnn.Settings(
                cell=config.cell,
                dim=config.hidden_size,
                encoder_layers=config.num_encoder_layers,
                decoder_layers=config.num_decoder_layers,
                dropout=config.dropout,
                attention=config.attention,
                bidirectional=config.bidirectional,
                input_feeding=config.input_feeding,
            )
        )
    return transformer.Transformer(
        transformer.Settings(
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            encoder_layers=config.num_encoder_layers,
            decoder_layers=config.num_decoder_layers,
            dropout=config.dropout,
            positions=config.max_position_embeddings,
            learned_positions=config.position == "learned",
            pre_norm=config.norm == "pre",
            activation=config.activation,
        )
    )


def sequence_loss(
    model: nn.Module, source: Tensor, source_mask: Tensor, target: Tensor, label_smoothing: float, sampling: float = 0.0
) -> Tensor:
    """Return the cross-entropy of a batch, summed over the target tokens after bos that are no padding.

    source and source_mask (batch, source), target (batch, target) from bos to eos, padded on the right. The model is a
    Seq2SeqModel or what the trainer has wrapped around one, so everything goes through its `forward`.
    """
    loss: Tensor = model(
        input_ids=source,
        attention_mask=source_mask,
        decoder_input_ids=target[:, :-1],
        labels=target[:, 1:],
        label_smoothing=label_smoothing,
        sampling=sampling,
    ).loss
    return loss


AutoConfig.register(Seq2SeqConfig.model_type, Seq2SeqConfig, exist_ok=True)
AutoModel.register(Seq2SeqConfig, Seq2SeqModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(Seq2SeqConfig, Seq2SeqModel, exist_ok=True)
