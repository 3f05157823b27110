"""Recurrent encoder and decoder, with attention or with a fixed context vector.

Sutskever et al. 2014 and Cho et al. 2014 (the encoder's last state is all that the decoder knows of the source),
Bahdanau et al. 2015 (bidirectional encoder), Luong et al. 2015 (the decoder's top state asks; input feeding).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from finetune.seq2seq import attention

CellState = tuple[Tensor, ...]  # the hidden vectors (rows, dim), and for an LSTM its cells (rows, dim)


class Weights(NamedTuple):
    """The parameters of a cell; its gates lie one after the other in the first axis."""

    input: Tensor  # (gates * dim, input)
    hidden: Tensor  # (gates * dim, dim)
    input_bias: Tensor  # (gates * dim,)
    hidden_bias: Tensor


# Cells: input (rows, input) and state before -> state after


def vanilla(input: Tensor, state: CellState, weights: Weights) -> CellState:
    """Return tanh(Wx + Uh + b) (Elman 1990)."""
    (hidden,) = state
    from_input = functional.linear(input, weights.input, weights.input_bias)
    from_hidden = functional.linear(hidden, weights.hidden, weights.hidden_bias)
    return ((from_input + from_hidden).tanh(),)


def lstm(input: Tensor, state: CellState, weights: Weights) -> CellState:
    """Forget, write, and show: long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    i, f, o = σ(Wx + Uh + b), g = tanh(Wx + Uh + b); c' = f·c + i·g; h' = o·tanh(c').
    """
    hidden, cell = state
    from_input = functional.linear(input, weights.input, weights.input_bias)
    from_hidden = functional.linear(hidden, weights.hidden, weights.hidden_bias)
    write, forget, new, show = (from_input + from_hidden).chunk(4, dim=-1)
    cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
    return show.sigmoid() * cell.tanh(), cell


def gru(input: Tensor, state: CellState, weights: Weights) -> CellState:
    """Mix the old state with a new one: gated recurrent unit (Cho et al. 2014, section 2.3).

    r, z = σ(Wx + Uh + b); n = tanh(Wx + b + r·(Uh + b)); h' = (1 - z)·n + z·h. The reset gate acts on the product Uh,
    as in cuDNN; in the paper it acts on h.
    """
    (hidden,) = state
    from_input = functional.linear(input, weights.input, weights.input_bias).chunk(3, dim=-1)
    from_hidden = functional.linear(hidden, weights.hidden, weights.hidden_bias).chunk(3, dim=-1)
    reset = (from_input[0] + from_hidden[0]).sigmoid()
    keep = (from_input[1] + from_hidden[1]).sigmoid()
    new = (from_input[2] + reset * from_hidden[2]).tanh()
    return ((1 - keep) * new + keep * hidden,)


CELLS: dict[str, Callable[[Tensor, CellState, Weights], CellState]] = {"rnn": vanilla, "lstm": lstm, "gru": gru}
KERNELS: dict[str, type[nn.RNN | nn.LSTM | nn.GRU]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Layer(nn.Module):
    """One layer in one direction: the cell for single steps, PyTorch's kernel of the same equations for sequences."""

    def __init__(self, cell: str, input: int, dim: int) -> None:
        super().__init__()
        self.cell = CELLS[cell]
        self.states = 2 if cell == "lstm" else 1
        self.kernel = KERNELS[cell](input, dim, batch_first=True)
        initialise(self.kernel)

    def step(self, input: Tensor, state: CellState) -> CellState:
        """Return the state after one input (rows, input)."""
        return self.cell(input, state, Weights(*self.kernel.all_weights[0]))

    def forward(self, sequence: Tensor, state: CellState | None = None) -> Tensor:
        """Return the hidden vectors of all steps: (batch, time, input) -> (batch, time, dim); no state: zeros."""
        if sequence.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # PyTorch's LSTM in bf16 fails on a CPU that lacks the instructions; and rounding adds up over time.
            with torch.autocast("cpu", enabled=False):
                state = None if state is None else tuple(part.float() for part in state)
                return self._run(sequence.float(), state)
        return self._run(sequence, state)

    def _run(self, sequence: Tensor, state: CellState | None) -> Tensor:
        first = None if state is None else tuple(part[None].contiguous() for part in state)  # (1, batch, dim)
        outputs: Tensor = self.kernel(sequence, first if first is None or self.states == 2 else first[0])[0]
        return outputs


def initialise(kernel: nn.RNNBase) -> None:
    """Draw a kernel's weights: Xavier for the input and orthogonal for the state, gate by gate; biases 0.

    An LSTM starts with a forget bias of 1, so that it remembers before it has learnt to (Jozefowicz et al. 2015).
    """
    weights, dim = Weights(*kernel.all_weights[0]), kernel.hidden_size
    gates = len(weights.input_bias) // dim
    inputs = [init.xavier_uniform_(torch.empty(dim, kernel.input_size)) for _ in range(gates)]
    squares = [init.orthogonal_(torch.empty(dim, dim)) for _ in range(gates)]
    init.copy_(weights.input, torch.cat(inputs))
    init.copy_(weights.hidden, torch.cat(squares))
    bias = torch.zeros(gates * dim)
    if kernel.mode == "LSTM":
        bias[dim : 2 * dim] = 1
    init.copy_(weights.input_bias, bias)
    init.zeros_(weights.hidden_bias)


def _stack(layers: Iterable[Layer]) -> Sequence[Layer]:
    return cast(Sequence[Layer], nn.ModuleList(layers))


# Encoder


class Encoder(nn.Module):
    """Read the source in one direction, or in both with half the width each, so that the outside looks the same."""

    def __init__(self, cell: str, dim: int, layers: int, dropout: float, *, bidirectional: bool) -> None:
        super().__init__()
        width = dim // 2 if bidirectional else dim
        self.forwards = _stack(Layer(cell, dim, width) for _ in range(layers))
        self.backwards = _stack(Layer(cell, dim, width) for _ in range(layers if bidirectional else 0))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(layers))

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the top layer's vectors (batch, source, dim), and of each layer the last state (batch, dim).

        The source is padded on the right: what a position's state has seen lies before it, and the other direction
        reads every sentence from its own end, so padding reaches no state of a token. Vectors at padding are noise.
        """
        lengths = mask.sum(dim=1)  # (batch,)
        mirror = _mirror(lengths, mask.shape[1])
        last = (lengths - 1).clamp(min=0)
        finals = []
        for index, layer in enumerate(self.forwards):
            hidden = self.dropouts[index](hidden)  # on the embeddings, then between layers
            outputs = layer(hidden)
            final = outputs[torch.arange(len(last), device=last.device), last]
            if self.backwards:
                reverse = _reorder(self.backwards[index](_reorder(hidden, mirror)), mirror)
                outputs = torch.cat([outputs, reverse], dim=-1)
                final = torch.cat([final, reverse[:, 0]], dim=-1)
            hidden = outputs
            finals.append(final)
        return hidden, finals


def _mirror(lengths: Tensor, time: int) -> Tensor:
    """Return for each place of a sentence the place that is as far from the other end; padding stays where it is."""
    places = torch.arange(time, device=lengths.device)
    mirrored = lengths[:, None] - 1 - places  # (batch, time)
    return torch.where(mirrored >= 0, mirrored, places)


def _reorder(sequence: Tensor, places: Tensor) -> Tensor:
    """Return sequence (batch, time, dim) with the vectors of `places` (batch, time)."""
    return sequence.gather(1, places[:, :, None].expand_as(sequence))


# Encoder and decoder


@dataclass(frozen=True)
class Settings:
    """The shape of the network."""

    cell: str  # a name in CELLS
    dim: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    attention: str  # a name that attention.build knows, or "none"
    bidirectional: bool
    input_feeding: bool


@dataclass
class Memory:
    """What the decoder knows of the source; the first axis of every tensor is the batch."""

    values: Tensor  # (batch, source, dim)
    keys: Tensor  # (batch, source, dim): what the attention makes of the values, once
    mask: Tensor  # (batch, source)
    summary: Tensor  # (batch, dim): the last state of the top layer
    first: list[CellState]  # of each decoder layer: the state before its first step

    def select(self, rows: Tensor) -> Self:
        """Return the memory of some rows, in their order."""
        first = [tuple(part.index_select(0, rows) for part in state) for state in self.first]
        values, keys, mask = (part.index_select(0, rows) for part in (self.values, self.keys, self.mask))
        return type(self)(values, keys, mask, self.summary.index_select(0, rows), first)


@dataclass
class State:
    """The decoder between two steps; the first axis of every tensor is the row."""

    layers: list[CellState]  # (rows, dim) each
    feed: Tensor  # (rows, dim): the readout of the step before, for input feeding

    def select(self, rows: Tensor) -> Self:
        """Return the state of some rows, in their order."""
        layers = [tuple(part.index_select(0, rows) for part in state) for state in self.layers]
        return type(self)(layers, self.feed.index_select(0, rows))


class Recurrent(nn.Module):
    """Encoder and decoder between embedded tokens and the vectors that the output layer reads."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        cell, dim, dropout = settings.cell, settings.dim, settings.dropout
        self.input_feeding = settings.input_feeding
        self.encoder = Encoder(cell, dim, settings.encoder_layers, dropout, bidirectional=settings.bidirectional)
        self.attention = attention.build(settings.attention, dim)
        inputs = dim * (1 + settings.input_feeding + (self.attention is None))  # token, readout before, summary
        layers = settings.decoder_layers
        self.layers = _stack(Layer(cell, dim if index else inputs, dim) for index in range(layers))
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(layers))
        states = 2 if cell == "lstm" else 1
        self.bridges = nn.ModuleList(nn.Linear(dim, states * dim) for _ in range(layers))
        self.readout = nn.Linear(2 * dim, dim)
        self.output_dropout = nn.Dropout(dropout)

    def encode(self, embedded: Tensor, mask: Tensor) -> Memory:
        """Read a source: embedded (batch, source, dim), mask (batch, source), padded on the right."""
        values, finals = self.encoder(embedded, mask)
        keys = values if self.attention is None else self.attention.project(values)
        first = []
        for index, bridge in enumerate(self.bridges):
            hidden, *cells = bridge(finals[min(index, len(finals) - 1)]).chunk(self.layers[index].states, dim=-1)
            first.append((hidden.tanh(), *cells))
        return Memory(values, keys, mask, finals[-1], first)

    def start(self, memory: Memory) -> State:
        """Return the state before the first step."""
        return State(list(memory.first), torch.zeros_like(memory.summary))

    def step(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Read one token (rows, dim) and return what the output layer reads (rows, dim), and the state after it.

        The memory may have fewer rows than the state: then it has one for each block of equally many rows.
        """
        return self._step(embedded, state, memory)[::2]

    def step_looking(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """Return what `step` does and, in the middle, the weights that the row gives to the source, (rows, source)."""
        result, weights, state = self._step(embedded, state, memory)
        assert weights is not None  # there is an attention
        return result, weights, state

    def decode(self, embedded: Tensor, memory: Memory) -> Tensor:
        """Return what the output layer reads at each place of a given target: (batch, target, dim) -> the same.

        The recurrences run over the whole target at once, unless the readout of each step enters the next.
        """
        return self._decode(embedded, memory)[0]

    def decode_looking(self, embedded: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return what `decode` does, and the weights that each place gives to the source, (batch, target, source)."""
        results, weights = self._decode(embedded, memory)
        assert weights is not None  # there is an attention
        return results, weights

    def alignment(self, embedded: Tensor, memory: Memory) -> Tensor | None:
        """Return the weights that each place of a target gives to the source, (batch, target, source)."""
        return self._decode(embedded, memory)[1]

    def _step(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor | None, State]:
        group = len(embedded) // len(memory.mask)  # hypotheses of one sentence that share its memory
        parts = [self.dropouts[0](embedded)]
        if self.input_feeding:
            parts.append(state.feed)
        if self.attention is None:
            parts.append(memory.summary.repeat_interleave(group, dim=0))
        hidden = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        after = []
        for index, layer in enumerate(self.layers):
            hidden = hidden if index == 0 else self.dropouts[index](hidden)
            after.append(layer.step(hidden, state.layers[index]))
            hidden = after[-1][0]
        top = hidden.view(len(memory.mask), group, -1)
        context, weights = self._context(top, memory)
        result = self._read(top, context).flatten(0, 1)
        return result, None if weights is None else weights.flatten(0, 1), State(after, result)

    def _decode(self, embedded: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        if not self.input_feeding:
            top = self._states(embedded, memory)
            context, weights = self._context(top, memory)
            return self._read(top, context), weights
        state, results, looks = self.start(memory), [], []
        for token in embedded.unbind(dim=1):
            result, weights, state = self._step(token, state, memory)
            results.append(result)
            looks.append(weights)
        seen = [weights for weights in looks if weights is not None]
        return torch.stack(results, dim=1), torch.stack(seen, dim=1) if seen else None

    def _states(self, embedded: Tensor, memory: Memory) -> Tensor:
        """Return the top layer's hidden vectors over a whole target, (batch, target, dim)."""
        hidden = self.dropouts[0](embedded)
        if self.attention is None:
            hidden = torch.cat([hidden, memory.summary[:, None].expand_as(hidden)], dim=-1)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden if index == 0 else self.dropouts[index](hidden), memory.first[index])
        top: Tensor = hidden
        return top

    def _context(self, top: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return what the source says to hidden vectors (batch, target, dim), and the weights."""
        if self.attention is None:
            return memory.summary[:, None].expand_as(top), None
        context, weights = self.attention(top, memory.keys, memory.values, memory.mask)
        return context, weights

    def _read(self, top: Tensor, context: Tensor) -> Tensor:
        """Return tanh(W[h; context]) (Luong et al. 2015, equation 5)."""
        result: Tensor = self.output_dropout(self.readout(torch.cat([top, context], dim=-1)).tanh())
        return result
