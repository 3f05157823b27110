"""The output layer and its cross-entropy in one: the largest tensors of a small model never leave the cache."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = {"cpu": 1 << 20}  # 4 MiB in float32: a core's share of the cache
LOGITS_ELSEWHERE = 1 << 26


def summed_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, gold: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy of a linear output layer, summed over tokens.

    hidden (tokens, dim), weight (vocab, dim), bias (vocab,), gold (tokens,). With label smoothing e the target is
    1 - e on the gold token and e spread evenly over the vocabulary (Szegedy et al. 2016, section 7). Equal to
    `functional.cross_entropy(..., label_smoothing=e, reduction="sum")`; logits and their gradient are made for some
    tokens at a time, and never stored.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad or bias.requires_grad)
    total: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, gold, smoothing, wanted)
    return total


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass, while the logits are at hand, and scaled in the backward pass."""

    @staticmethod
    def forward(
        context: Any, hidden: Tensor, weight: Tensor, bias: Tensor, gold: Tensor, smoothing: float, wanted: bool
    ) -> Tensor:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        context.like = (hidden.dtype, weight.dtype, bias.dtype)
        with torch.autocast(device, enabled=False):
            total, gradients = _forward_and_gradients(hidden.to(kind), weight.to(kind), bias, gold, smoothing, wanted)
        context.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (part.mul(outer[0]).to(kind) for part, kind in zip(context.saved_tensors, context.like, strict=True))
        return *scaled, None, None, None


def _forward_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor, gold: Tensor, smoothing: float, wanted: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and if `wanted` its gradients for hidden, weight and bias, in float32 at least."""
    vocab = len(weight)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=hidden.device)
    gradients = [torch.zeros_like(part, dtype=exact) for part in (hidden, weight, bias)] if wanted else []
    rows = max(1, LOGITS_AT_ONCE.get(hidden.device.type, LOGITS_ELSEWHERE) // vocab)
    for start in range(0, len(hidden), rows):
        part, chosen = hidden[start : start + rows], gold[start : start + rows, None]
        logits = torch.addmm(bias.to(part.dtype), part, weight.t()).to(exact)  # (rows, vocab)
        surprise = logits.log_softmax(dim=-1)
        total -= (1 - smoothing) * surprise.gather(1, chosen).sum()
        if smoothing > 0:
            total -= smoothing / vocab * surprise.sum()
        if wanted:
            # p - target, in place of the log-probabilities
            slope = surprise.exp_().sub_(smoothing / vocab)
            slope.scatter_add_(1, chosen, torch.full_like(chosen, smoothing - 1, dtype=exact))
            gradients[2] += slope.sum(dim=0)
            slope = slope.to(part.dtype)
            gradients[0][start : start + rows] = slope @ weight
            gradients[1] += slope.t() @ part
    return total, gradients
