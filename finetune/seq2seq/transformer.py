"""The Transformer (Vaswani et al. 2017), between embedded tokens and the vectors that the output layer reads."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from finetune.errors import Exit, UserError
from finetune.seq2seq.attention import MultiHead

BLOCK = 8  # positions by which the cache of a decoder grows: a search copies whole blocks at every step
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


@dataclass(frozen=True)
class Settings:
    """The shape of the network."""

    dim: int
    heads: int
    intermediate: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    positions: int  # the longest sequence
    learned_positions: bool
    pre_norm: bool
    activation: str  # a name in ACTIVATIONS


def sinusoids(positions: int, dim: int) -> Tensor:
    """Return the table of sines and cosines, (positions, dim) (Vaswani et al. 2017, section 3.5)."""
    rates = 10_000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()


class Positions(nn.Module):
    """Add a vector for the place of each token: sinusoids, or vectors that start as sinusoids and are learned."""

    def __init__(self, positions: int, dim: int, *, learned: bool) -> None:
        super().__init__()
        self.table: Tensor
        if learned:
            self.table = nn.Parameter(torch.empty(positions, dim))
        else:
            self.register_buffer("table", torch.empty(positions, dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table."""
        init.copy_(self.table, sinusoids(*self.table.shape))

    def forward(self, embedded: Tensor, first: int = 0) -> Tensor:
        """Add the vectors of the places from `first` on: (batch, time, dim) -> the same."""
        end = first + embedded.shape[1]
        if end > len(self.table):
            raise UserError(
                Exit.USAGE,
                f"a sequence of {end} tokens is longer than the {len(self.table)} positions of the model; "
                "shorten it, or train with a larger max_position_embeddings",
            )
        return embedded + self.table[first:end]


class Residual(nn.Module):
    """What is around every sublayer: dropout, the sum with its input, and a norm before (pre) or after all (post).

    Post-norm is the original; pre-norm trains without a long warm-up (Xiong et al. 2020).
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.pre = settings.pre_norm
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, hidden: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Return hidden (batch, time, dim) after the sublayer."""
        if self.pre:
            added: Tensor = hidden + self.dropout(sublayer(self.norm(hidden)))
            return added
        normed: Tensor = self.norm(hidden + self.dropout(sublayer(hidden)))
        return normed


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, at each position alone (section 3.3)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.widen = nn.Linear(settings.dim, settings.intermediate)
        self.narrow = nn.Linear(settings.intermediate, settings.dim)
        self.activation = ACTIVATIONS[settings.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, time, dim) to the same."""
        result: Tensor = self.narrow(self.activation(self.widen(hidden)))
        return result


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.attention = MultiHead(settings.dim, settings.heads)
        self.feed_forward = FeedForward(settings)
        self.around_attention, self.around_feed_forward = Residual(settings), Residual(settings)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, source, dim) to the same; mask (batch, source)."""
        hidden = self.around_attention(hidden, lambda inner: self.attention(inner, mask)[0])
        result: Tensor = self.around_feed_forward(hidden, self.feed_forward)
        return result


class DecoderLayer(nn.Module):
    """Self-attention to what is already written, attention to the source, and feed-forward."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.attention = MultiHead(settings.dim, settings.heads)
        self.cross_attention = MultiHead(settings.dim, settings.heads)
        self.feed_forward = FeedForward(settings)
        self.around_attention, self.around_cross = Residual(settings), Residual(settings)
        self.around_feed_forward = Residual(settings)

    def forward(self, hidden: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Map a whole target (batch, target, dim) to the same; source is of `cross_attention.memory`.

        Padding on the right of a target needs no mask: what stands before it does not see it.
        """
        return self.looking(hidden, source, mask, weights=False)[0]

    def looking(self, hidden: Tensor, source: Tensor, mask: Tensor, *, weights: bool) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` does and, where asked for, the weights: (batch, heads, target, source)."""
        hidden = self.around_attention(hidden, lambda inner: self.attention(inner, causal=True)[0])
        return self._after_attention(hidden, source, mask, weights=weights)

    def step(
        self, hidden: Tensor, cache: Tensor, length: int, source: Tensor, mask: Tensor, *, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Map the newest position (rows, 1, dim) to the same; cache (rows, 2, heads, capacity, dim / heads).

        Rows that share a source (hypotheses of one sentence) ask it side by side, as if they were its positions: so are
        the weights, where they are asked for, (batch, heads, rows / batch, source).
        """
        hidden = self.around_attention(hidden, lambda inner: self.attention.step(inner, cache, length))
        grouped = hidden.view(len(source), -1, hidden.shape[-1])  # (batch, rows / batch, dim)
        after, looks = self._after_attention(grouped, source, mask, weights=weights)
        return after.view_as(hidden), looks

    def weights(self, hidden: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """Return what `forward` would give to each source position: (batch, heads, target, source)."""
        hidden = self.around_attention(hidden, lambda inner: self.attention(inner, causal=True)[0])
        asking = self.around_cross.norm(hidden) if self.around_cross.pre else hidden
        weights = self.cross_attention.cross(asking, source, mask, weights=True)[1]
        assert weights is not None
        return weights

    def _after_attention(
        self, hidden: Tensor, source: Tensor, mask: Tensor, *, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        looks: Tensor | None = None

        def ask(inner: Tensor) -> Tensor:
            nonlocal looks
            context, looks = self.cross_attention.cross(inner, source, mask, weights=weights)
            return context

        hidden = self.around_cross(hidden, ask)
        return self.around_feed_forward(hidden, self.feed_forward), looks


@dataclass
class Memory:
    """What the decoder knows of the source; the first axis of every tensor is the batch."""

    layers: tuple[Tensor, ...]  # (batch, source, 2 * dim): keys and values for each decoder layer, computed once
    mask: Tensor  # (batch, source)

    def select(self, rows: Tensor) -> Self:
        """Return the memory of some rows, in their order."""
        return type(self)(tuple(layer.index_select(0, rows) for layer in self.layers), self.mask.index_select(0, rows))


@dataclass
class State:
    """The decoder between two steps: keys and values of what is already written, and how many positions that is.

    A step writes into the cache, so a state is used up by it; `select` copies. The cache grows by blocks: its size is
    linear in the length of the output.
    """

    cache: Tensor  # (rows, layers, 2, heads, capacity, dim / heads)
    length: int = 0

    def select(self, rows: Tensor) -> Self:
        """Return the state of some rows, in their order."""
        return replace(self, cache=self.cache.index_select(0, rows))

    def with_room(self) -> Self:
        """Return the state with room for one more position."""
        if self.length < self.cache.shape[4]:
            return self
        return replace(self, cache=functional.pad(self.cache, (0, 0, 0, BLOCK)))


class Transformer(nn.Module):
    """Encoder and decoder."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.gradient_checkpointing = False  # with the function below what layers of transformers have: set together
        self._gradient_checkpointing_func: Callable[..., Any]
        learned = settings.learned_positions
        self.source_positions = Positions(settings.positions, settings.dim, learned=learned)
        self.target_positions = Positions(settings.positions, settings.dim, learned=learned)
        self.source_dropout, self.target_dropout = nn.Dropout(settings.dropout), nn.Dropout(settings.dropout)
        encoder = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.encoder_layers))
        decoder = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.encoder_layers = cast(Sequence[EncoderLayer], encoder)
        self.decoder_layers = cast(Sequence[DecoderLayer], decoder)
        # With pre-norm nothing has normed the sum of all sublayers yet.
        self.encoder_norm = nn.LayerNorm(settings.dim) if settings.pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(settings.dim) if settings.pre_norm else nn.Identity()

    def encode(self, embedded: Tensor, mask: Tensor) -> Memory:
        """Read a source: embedded (batch, source, dim), mask (batch, source)."""
        hidden = self.source_dropout(self.source_positions(embedded))
        for layer in self.encoder_layers:
            hidden = self._through(layer, hidden, mask)
        hidden = self.encoder_norm(hidden)
        return Memory(tuple(layer.cross_attention.memory(hidden) for layer in self.decoder_layers), mask)

    def start(self, memory: Memory) -> State:
        """Return the state before the first step."""
        rows, heads = len(memory.mask), self.settings.heads
        shape = (rows, len(self.decoder_layers), 2, heads, BLOCK, self.settings.dim // heads)
        return State(memory.layers[0].new_zeros(shape))

    def step(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Read one token (rows, dim) and return what the output layer reads (rows, dim), and the state after it.

        The memory may have fewer rows than the state: then it has one for each block of equally many rows.
        """
        return self._step(embedded, state, memory, weights=False)[::2]

    def step_looking(self, embedded: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """Return what `step` does and, in the middle, what the row gives to the source, as in `decode_looking`."""
        hidden, looks, state = self._step(embedded, state, memory, weights=True)
        assert looks is not None
        return hidden, looks.mean(dim=1).flatten(0, 1), state  # (batch, heads, rows / batch, source) -> (rows, source)

    def decode(self, embedded: Tensor, memory: Memory) -> Tensor:
        """Return what the output layer reads at each place of a given target: (batch, target, dim) -> the same."""
        return self._decode(embedded, memory, weights=False)[0]

    def decode_looking(self, embedded: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return what `decode` does, and what each place gives to the source, (batch, target, source).

        These weights are those of the last layer, averaged over its heads: the last that is known of the source.
        """
        hidden, looks = self._decode(embedded, memory, weights=True)
        assert looks is not None
        return hidden, looks.mean(dim=1)

    def alignment(self, embedded: Tensor, memory: Memory) -> Tensor:
        """Return the weights that each place of a target gives to the source, (batch, target, source).

        They are those of the last layer but one, averaged over its heads: it aligns best (Garg et al. 2019, section 4).
        """
        chosen = max(0, len(self.decoder_layers) - 2)
        hidden = self.target_dropout(self.target_positions(embedded))
        for layer, source in zip(self.decoder_layers[:chosen], memory.layers, strict=False):
            hidden = layer(hidden, source, memory.mask)
        return self.decoder_layers[chosen].weights(hidden, memory.layers[chosen], memory.mask).mean(dim=1)

    def _step(
        self, embedded: Tensor, state: State, memory: Memory, *, weights: bool
    ) -> tuple[Tensor, Tensor | None, State]:
        state, last, looks = state.with_room(), len(self.decoder_layers) - 1, None
        hidden = self.target_dropout(self.target_positions(embedded[:, None], state.length))  # (rows, 1, dim)
        for index, layer in enumerate(self.decoder_layers):
            cache, source = state.cache[:, index], memory.layers[index]
            hidden, looks = layer.step(
                hidden, cache, state.length, source, memory.mask, weights=weights and index == last
            )
        return self.decoder_norm(hidden)[:, 0], looks, replace(state, length=state.length + 1)

    def _decode(self, embedded: Tensor, memory: Memory, *, weights: bool) -> tuple[Tensor, Tensor | None]:
        hidden, last, looks = self.target_dropout(self.target_positions(embedded)), len(self.decoder_layers) - 1, None
        for index, layer in enumerate(self.decoder_layers):
            looking = functools.partial(layer.looking, weights=weights and index == last)
            hidden, looks = self._through(looking, hidden, memory.layers[index], memory.mask)
        return self.decoder_norm(hidden), looks

    def _through(self, layer: Callable[..., Any], *inputs: Tensor) -> Any:
        """Return what a layer makes of its inputs; what is inside may be forgotten until backward."""
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer, *inputs)
        return layer(*inputs)
