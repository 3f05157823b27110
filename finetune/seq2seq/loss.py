"""The output layer and its cross-entropy in one, without storing logits: they are the largest tensors of a model."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = {"cpu": 1 << 22}  # 16 MiB in float32
LOGITS_ELSEWHERE = 1 << 26
FEWEST = 512  # tokens: each piece reads all weights, and 83 of GPT-2's 50,257 x 768 took 3 times as long


def summed_cross_entropy(hidden: Tensor, weight: Tensor, gold: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy of an output layer, summed over tokens.

    hidden (tokens, dim), weight (vocab, dim), gold (tokens,). With label smoothing e the target is 1 - e on the gold
    token and e spread evenly over the vocabulary (Szegedy et al. 2016, section 7). Equal to
    `functional.cross_entropy(hidden @ weight.t(), gold, label_smoothing=e, reduction="sum")`; the logits are made for
    some tokens at a time.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    total: Tensor = _SummedCrossEntropy.apply(hidden, weight, gold, smoothing, wanted)
    return total


def rows_at_once(device: torch.device, vocabulary: int) -> int:
    """Return for how many tokens the logits of a vocabulary are made at a time."""
    return max(FEWEST, LOGITS_AT_ONCE.get(device.type, LOGITS_ELSEWHERE) // vocabulary)


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient is worked out in the forward pass, while the logits are at hand, and scaled in the backward pass."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, gold: Tensor, smoothing: float, wanted: bool) -> Tensor:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        context.like = (hidden.dtype, weight.dtype)
        with torch.autocast(device, enabled=False):
            total, gradients = _partition(hidden.to(kind), weight.to(kind), wanted)
            total += _targets(hidden, weight, gold, smoothing, gradients)
        context.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (part.mul(outer[0]).to(kind) for part, kind in zip(context.saved_tensors, context.like, strict=True))
        return *scaled, None, None, None


def _partition(hidden: Tensor, weight: Tensor, wanted: bool) -> tuple[Tensor, list[Tensor]]:
    """Return log(sum(exp(logits))) summed over tokens, and its gradients for hidden and weight, in float32 at least.

    The gradient for the logits is their softmax, and the largest logit less the logarithm of its softmax is the sum. In
    bf16 that is rounded as the logits are, the softmax worked out in float32.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=hidden.device)
    gradients = [torch.zeros_like(part, dtype=exact) for part in (hidden, weight)] if wanted else []
    rows = rows_at_once(hidden.device, len(weight))
    for start in range(0, len(hidden), rows):
        part = hidden[start : start + rows]
        logits = part @ weight.t()  # (rows, vocab)
        shares = logits.softmax(dim=-1)
        total += (logits.amax(dim=-1).to(exact) - shares.amax(dim=-1).to(exact).log()).sum()
        if wanted:
            gradients[0][start : start + rows] = shares @ weight
            gradients[1] += shares.t() @ part
    return total, gradients


def _targets(hidden: Tensor, weight: Tensor, gold: Tensor, smoothing: float, gradients: list[Tensor]) -> Tensor:
    """Return minus the logits under the target, summed over tokens, and add its gradients.

    Summed over the vocabulary a logit is hidden · (sum of the weights): the even part needs no logits.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    even, hidden = smoothing / len(weight), hidden.to(exact)
    of_gold, of_all, all_hidden = weight[gold].to(exact), weight.sum(dim=0, dtype=exact), hidden.sum(dim=0)
    if gradients:
        gradients[0] -= (1 - smoothing) * of_gold + even * of_all
        gradients[1].index_add_(0, gold, hidden, alpha=smoothing - 1)
        gradients[1] -= even * all_hidden
    return -((1 - smoothing) * (hidden * of_gold).sum() + even * (all_hidden * of_all).sum())
