"""Attention: scoring functions of query, keys, values and mask, and the modules that hold their parameters.

Every function returns the context, a mean of the values, and the weights of that mean. Masks are boolean, True = a
key that may be seen; where a query may see none, its weights and its context are 0.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

Attended = tuple[Tensor, Tensor]


def attend(scores: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
    """Turn scores into weights that sum to 1 over the keys that may be seen, and average the values with them.

    scores (batch, target, source), values (batch, source, dim_v), mask (batch, source), (batch, target, source) or
    None -> context (batch, target, dim_v), weights (batch, target, source). A heads axis may follow batch in all.
    """
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        seen = mask[:, None] if mask.ndim < scores.ndim else mask  # (batch, 1 or target, source)
        hidden = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = hidden.softmax(dim=-1).masked_fill(~seen, 0.0)  # the second fill is for queries that see nothing
    return weights @ values, weights


def dot(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
    """Score by the dot product q·k (Luong et al. 2015, section 3.1).

    query (batch, target, dim), keys (batch, source, dim), values (batch, source, dim_v), mask as in `attend`
    -> context (batch, target, dim_v), weights (batch, target, source).
    """
    return attend(query @ keys.transpose(-1, -2), values, mask)


def scaled_dot(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
    """Score by q·k / sqrt(dim), so that the variance of scores does not grow with dim (Vaswani et al. 2017, 3.2.1).

    Shapes as in `dot`.
    """
    return dot(query * query.shape[-1] ** -0.5, keys, values, mask)


def general(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, matrix: Tensor) -> Attended:
    """Score by q·Wk with a learned matrix W (Luong et al. 2015, section 3.1, also called multiplicative).

    query (batch, target, dim), keys (batch, source, dim_k), matrix (dim, dim_k); the rest as in `dot`. W is applied
    to the query, so nothing needs to be computed for the keys.
    """
    return dot(query @ matrix, keys, values, mask)


def additive(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, matrix: Tensor, vector: Tensor
) -> Attended:
    """Score by v·tanh(Wq + Uk) (Bahdanau et al. 2015, section 3.1 and appendix A.1.2).

    query (batch, target, dim), matrix W (hidden, dim), vector v (hidden,); keys (batch, source, hidden) are Uk already,
    because they are the same for every query and are computed once per source; the rest as in `dot`.
    """
    pairs = (query @ matrix.t())[:, :, None] + keys[:, None]  # (batch, target, source, hidden)
    return attend(pairs.tanh() @ vector.to(pairs.dtype), values, mask)


# Modules for the recurrent decoder: `project` once per source, then `forward` for any number of queries


class Attention(Protocol):
    """What the decoder needs of an attention module."""

    def project(self, values: Tensor) -> Tensor:
        """Return the keys of a source: (batch, source, dim) -> (batch, source, dim)."""
        ...

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
        """Return context and weights as the functions do."""
        ...


class Additive(nn.Module):
    """`additive` with its parameters W, U and v."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.keys = nn.Linear(dim, dim)
        self.matrix = nn.Parameter(torch.empty(dim, dim))
        self.vector = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W and v as Xavier initialisation says for a matrix and a row."""
        init.xavier_uniform_(self.matrix)
        bound = (6 / (1 + self.vector.numel())) ** 0.5
        init.uniform_(self.vector, -bound, bound)

    def project(self, values: Tensor) -> Tensor:
        """Return Uk."""
        keys: Tensor = self.keys(values)
        return keys

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
        """Attend; `keys` are from `project`."""
        return additive(query, keys, values, mask, self.matrix, self.vector)


class General(nn.Module):
    """`general` with its matrix."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(dim, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrix (Xavier)."""
        init.xavier_uniform_(self.matrix)

    def project(self, values: Tensor) -> Tensor:
        """Return the values: the matrix belongs to the query."""
        return values

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
        """Attend."""
        return general(query, keys, values, mask, self.matrix)


class Dot(nn.Module):
    """`dot`, or `scaled_dot`, which have no parameters."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.score = scaled_dot if scaled else dot

    def project(self, values: Tensor) -> Tensor:
        """Return the values, which are their own keys."""
        return values

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Attended:
        """Attend."""
        return self.score(query, keys, values, mask)


def build(name: str, dim: int) -> Additive | General | Dot | None:
    """Return the attention of a name in the configuration; None for "none"."""
    match name:
        case "additive":
            return Additive(dim)
        case "general":
            return General(dim)
        case "dot" | "scaled_dot":
            return Dot(scaled=name == "scaled_dot")
    return None


# Several heads at once, for the Transformer


class MultiHead(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): `scaled_dot` in `heads` subspaces side by side.

    It attends to its own sequence (`forward`), to another one (`memory` once, then `cross`), or to its own past with a
    cache of keys and values (`step`). Contexts are (batch, target, dim); the weights, (batch, heads, target, source),
    come where they are asked for, else a fused kernel does the same without storing them.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.weight = nn.Parameter(torch.empty(3 * dim, dim))  # queries, keys, values: one product for the three
        self.bias = nn.Parameter(torch.empty(3 * dim))
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the three matrices as if each stood alone: the gain undoes what Xavier takes off for 3 * dim rows."""
        init.xavier_uniform_(self.weight, gain=2**0.5)
        init.zeros_(self.bias)

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, *, causal: bool = False, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from hidden (batch, time, dim) to itself; `causal`: no position sees a later one.

        mask (batch, time), or None where every position may be seen.
        """
        query, keys, values = self._split(functional.linear(hidden, self.weight, self.bias), 3)
        return self._attend(query, keys, values, mask, causal=causal, weights=weights)

    def memory(self, source: Tensor) -> Tensor:
        """Return keys and values of a source for `cross`: (batch, source, dim) -> (batch, source, 2 * dim)."""
        return functional.linear(source, self.weight[self.dim :], self.bias[self.dim :])

    def cross(
        self, hidden: Tensor, memory: Tensor, mask: Tensor | None = None, *, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from hidden (batch, target, dim) to a source: `memory` of it, and its mask (batch, source)."""
        (query,) = self._split(functional.linear(hidden, self.weight[: self.dim], self.bias[: self.dim]), 1)
        keys, values = self._split(memory, 2)
        return self._attend(query, keys, values, mask, causal=False, weights=weights)

    def step(self, hidden: Tensor, cache: Tensor, length: int) -> Tensor:
        """Attend from the newest position, hidden (rows, 1, dim), to itself and the `length` positions before it.

        cache (rows, 2, heads, capacity, dim / heads) holds keys and values; those of the newest position are written
        into it.
        """
        query, key, value = self._split(functional.linear(hidden, self.weight, self.bias), 3)
        cache[:, 0, :, length] = key[:, :, 0]
        cache[:, 1, :, length] = value[:, :, 0]
        keys, values = cache[..., : length + 1, :].unbind(dim=1)  # (rows, heads, length + 1, dim / heads)
        return self._attend(query, keys, values, None, causal=False, weights=False)[0]

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return the parts, each (batch, heads, time, dim / heads), without copying."""
        batch, time, _ = projected.shape
        return projected.view(batch, time, parts, self.heads, -1).transpose(1, 3).unbind(dim=2)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, causal: bool, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        seen = None if mask is None else mask[:, None, None]  # (batch, 1, 1, source)
        if causal and (weights or seen is not None):
            past = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
            seen, causal = past if seen is None else seen & past, False
        if weights:
            seen = None if seen is None else seen.expand(len(query), 1, -1, -1)
            context, shown = scaled_dot(query, keys, values, seen)
        else:
            context = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, is_causal=causal)
            shown = None
        merged = context.transpose(1, 2).flatten(2)  # (batch, target, dim)
        return self.output(merged), shown
