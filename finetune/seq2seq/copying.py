"""Copying from the source: a pointer-generator (See, Liu and Manning 2017, section 2.2) over one shared vocabulary.

A token is written with the probability p_gen of the output layer's distribution, plus 1 - p_gen of what the decoder
looks at: P(w) = p_gen P_vocab(w) + (1 - p_gen) Σ a_i over the places i of the source where w stands. Source and target
share their numbers, so pieces that no target of train had can be written one after the other; the paper's extended
vocabulary, for whole words that have no number, is not needed, and an unknown word stays unknown.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finetune.seq2seq.loss import rows_at_once


@dataclass
class Memory:
    """What a network knows of a source, and the source's tokens."""

    inner: Any  # of the network
    source: Tensor  # (batch, source)

    def select(self, rows: Tensor) -> Self:
        """Return the memory of some rows, in their order."""
        return type(self)(self.inner.select(rows), self.source.index_select(0, rows))


class Pointers(NamedTuple):
    """Where each place of a target looks, and how much it copies from there."""

    gate: Tensor  # (...,) the logit of p_gen
    weights: Tensor  # (..., source): they sum to 1, and are 0 at padding
    source: Tensor  # (..., source) the token at each place of the source

    def at(self, places: Tensor) -> "Pointers":
        """Return those of some places, (places,) in all: a mask of the places before the last axis."""
        return Pointers(self.gate[places], self.weights[places], self.source.expand_as(self.weights)[places])


class Gate(nn.Module):
    """The choice between writing and copying: p_gen = sigmoid(w · [readout; input] + b).

    In the paper it reads context, state and input; the readout, which the output layer reads too, is made of the first
    two in every network here.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.choice = nn.Linear(2 * dim, 1)

    def forward(self, readout: Tensor, embedded: Tensor) -> Tensor:
        """Return the logit of p_gen: readout and embedded (..., dim) -> (...,)."""
        logit: Tensor = self.choice(torch.cat([readout, embedded], dim=-1))
        return logit.squeeze(-1)


def mixture(logits: Tensor, pointers: Pointers) -> Tensor:
    """Return the log-probability of each token, in float32 at least: logits (..., vocab) -> the same shape.

    Everything is added in log space. A token that is not in the source has the smallest normal number for its share of
    the copies: it changes no sum, and leaves every gradient finite.
    """
    with torch.autocast(logits.device.type, enabled=False):
        exact = torch.promote_types(logits.dtype, torch.float32)
        gate, weights = pointers.gate.to(exact)[..., None], pointers.weights.to(exact)
        source = pointers.source.expand_as(weights)
        written = logits.log_softmax(dim=-1, dtype=exact) + functional.logsigmoid(gate)
        copied = torch.zeros_like(written).scatter_add(-1, source, weights)
        copied = copied.clamp(min=torch.finfo(exact).tiny).log() + functional.logsigmoid(-gate)
        return torch.logaddexp(written, copied)


def summed_cross_entropy(hidden: Tensor, weight: Tensor, pointers: Pointers, gold: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy of the mixture, summed over tokens; smoothing as in `loss.summed_cross_entropy`.

    hidden (tokens, dim), weight (vocab, dim), pointers of (tokens,), gold (tokens,). The distributions are made for
    some tokens at a time, and again in the backward pass: they are the largest tensors of a model.
    """
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    rows = rows_at_once(hidden.device, len(weight))
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        few = Pointers(*(tensor[part] for tensor in pointers))
        total = total + checkpoint(
            _piece, hidden[part], weight, few, gold[part], smoothing, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _piece(hidden: Tensor, weight: Tensor, pointers: Pointers, gold: Tensor, smoothing: float) -> Tensor:
    known = mixture(functional.linear(hidden, weight), pointers)  # (tokens, vocab)
    total = (1 - smoothing) * known.gather(1, gold[:, None]).sum()
    if smoothing > 0:
        total = total + smoothing * known.mean(dim=1).sum()
    return -total
