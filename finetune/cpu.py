"""What makes a CPU faster without changing the mathematics: memory reuse, dropout masks, GPT-2's GELU, packed weights.

Measured on MiniLM, batches of 32 tweets, two cores with bf16: each part stands with its share in tests/benchmarks.
"""

import contextlib
import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

ATTENTION = "finetune_cpu"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # as wide as numbers of so many bytes
RESOLUTION = 1 << 16  # dropout probabilities are rounded to 16 bits
PACKED_FOR = 16  # rows, of which the order of packed weights depends a little
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h


def prepare(model: PreTrainedModel, *, with_attention: bool = True) -> None:
    """Replace the slow parts of a model that is trained on a CPU; names and shapes of parameters stay as they are.

    Not `with_attention` for models whose attention is told more than a mask: T5's biases of position.
    """
    keep_freed_memory()
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, FastDropout(child.p))
            elif type(child) is NewGELUActivation:  # GPT-2's: nine passes over the widest tensors, where one does
                setattr(module, name, nn.GELU(approximate="tanh"))
    if with_attention and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


@contextlib.contextmanager
def packed(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Multiply by weights that lie in the order of oneDNN's kernels, as numbers of `dtype`, within the block.

    For forwards without gradients that read all weights for a few rows: writing token by token. The copies need the
    memory of the weights again, half of it in bfloat16; all but the products stays in the model's own numbers.
    """
    layers = [one for one in model.modules() if type(one) in (nn.Linear, Conv1D) and one.weight.device.type == "cpu"]
    if not torch.backends.mkldnn.is_available():
        layers = []
    try:
        for layer in layers:
            layer.forward = _packed_forward(layer, dtype)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # what hides the class's own


def _packed_forward(layer: nn.Linear | Conv1D, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight: Tensor = layer.weight.detach()
    bias: Tensor | None = layer.bias
    turned = weight.t() if isinstance(layer, Conv1D) else weight  # (out, in)
    order = torch.ops.mkldnn._reorder_linear_weight(turned.to(dtype).contiguous(), PACKED_FOR)
    added = None if bias is None else bias.detach().to(dtype)

    def forward(input: Tensor) -> Tensor:
        """Return input (..., in) times the weights, (..., out), in the input's own numbers."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(input.to(dtype), order, added, "none", [], "")
        return result.to(input.dtype)

    return forward


def keep_freed_memory() -> None:
    """Let glibc keep freed tensors for the next ones: fresh pages for each activation cost 13 % of a training step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def keep_mask(shape: torch.Size, p: float, kind: torch.dtype) -> Tensor:
    """Draw integers of a `kind` that are 0 with probability p, else all ones in binary, as a function of torch's seed.

    PyTorch draws such masks on one core from a Mersenne twister, 14 % of a training step; 16 bits of SFC64 each are
    fifteen times as fast. And its products with masks of truth values first turn these into numbers: a bitwise `and`
    takes a tenth of that.
    """
    seed = int(torch.randint(1 << 62, ()).item())
    count = math.prod(shape)
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16)[:count])
    kept = torch.empty(count, dtype=kind)
    torch.ge(bits, round(p * RESOLUTION) - RESOLUTION // 2, out=kept)
    return kept.neg_().view(shape)


class FastDropout(nn.Module):
    """Dropout with masks from `keep_mask`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training; pass the input on otherwise."""
        return dropout(input, self.p) if self.training else input


def dropout(input: Tensor, p: float) -> Tensor:
    """Set elements to zero with probability p and scale the others by 1 / (1 - p)."""
    if input.device.type != "cpu":  # the model was prepared for a CPU and then moved
        return functional.dropout(input, p)
    result: Tensor = _Dropout.apply(input, p)
    return result


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, input: Tensor, p: float) -> Tensor:
        kept = keep_mask(input.shape, p, INTEGERS[input.element_size()])
        context.save_for_backward(kept)
        context.scale = 1 / (1 - p)
        return _kept(input, kept, context.scale)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _kept(gradients[0], context.saved_tensors[0], context.scale), None


def _kept(values: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Return scaled values where all bits of `kept` are one, and zeros elsewhere."""
    return (values.view(kept.dtype) & kept).view(values.dtype).mul_(scale)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as transformers' sdpa does, (batch, heads, time, dim), with dropout of the weights from `keep_mask`."""
    if dropout == 0.0 or query.device.type != "cpu":
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **settings
        )
        return result
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ key.transpose(-1, -2)  # (batch, heads, time, time)
    allowed = _allowed(module, scores, attention_mask)
    if allowed is not None:
        # Added and not filled in: a mask of truth values is slow, and this one is as wide as a head.
        unseen = torch.zeros_like(allowed, dtype=scores.dtype).masked_fill_(~allowed, torch.finfo(scores.dtype).min / 2)
        scores = scores + unseen
    context = _Dropout.apply(scores.softmax(dim=-1), dropout).to(value.dtype) @ value
    return context.transpose(1, 2).contiguous(), None


def _allowed(module: nn.Module, scores: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Return which keys a query may see (True = seen); without a mask a decoder still sees no later token."""
    if attention_mask is not None:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    if getattr(module, "is_causal", False):
        return torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return None
