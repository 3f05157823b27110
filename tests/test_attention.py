"""Each attention beside a reference: PyTorch's own, a sum worked out by hand, finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.seq2seq import attention
from finetune.seq2seq.attention import Attended, MultiHead

Function = Callable[..., Attended]
BATCH, TARGET, SOURCE, DIM = 3, 4, 5, 6


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return query, keys and values; values are wider than keys."""
    shapes = ((BATCH, TARGET, DIM), (BATCH, SOURCE, DIM), (BATCH, SOURCE, DIM + 1))
    return [drawn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def parameters(name: str) -> list[Tensor]:
    matrix, vector = drawn(DIM, DIM, seed=7), drawn(DIM, seed=8)
    return {"additive": [matrix, vector], "general": [matrix], "dot": [], "scaled_dot": []}[name]


def padding() -> Tensor:
    return torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, False, False, False, False]])


FUNCTIONS: dict[str, Function] = {
    "additive": attention.additive,
    "dot": attention.dot,
    "general": attention.general,
    "scaled_dot": attention.scaled_dot,
}
MASKS = {"none": None, "padding": padding(), "each query its own": drawn(BATCH, TARGET, SOURCE, seed=9) > -0.3}
every_function = pytest.mark.parametrize("name", list(FUNCTIONS))
every_mask = pytest.mark.parametrize("kind", list(MASKS))


# The functions


@every_mask
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_dot_is_pytorchs_scaled_dot_product_attention(kind: str, dtype: torch.dtype) -> None:
    query, keys, values = inputs(dtype)
    mask = MASKS[kind]
    seen = None if mask is None else mask.expand(BATCH, SOURCE)[:, None] if mask.ndim == 2 else mask
    context, _ = attention.scaled_dot(query, keys, values, mask)
    theirs = functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    assert torch.allclose(context, theirs, atol=1e-6 if dtype == torch.float32 else 1e-14, rtol=0)


@every_mask
def test_dot_and_general_are_pytorchs_with_another_scale_and_another_query(kind: str) -> None:
    query, keys, values = inputs()
    (matrix,) = parameters("general")
    mask = MASKS[kind]
    seen = mask[:, None] if mask is not None and mask.ndim == 2 else mask
    for ours, asked in (
        (attention.dot(query, keys, values, mask), query),
        (attention.general(query, keys, values, mask, matrix), torch.einsum("btd,de->bte", query, matrix)),
    ):
        theirs = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=seen, scale=1.0)
        assert torch.allclose(ours[0], theirs, atol=1e-13, rtol=0)


def test_additive_is_the_sum_of_bahdanau_worked_out_by_hand() -> None:
    query = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    matrix = torch.tensor([[1.0, 0.0], [0.5, -0.5]], dtype=torch.float64)  # Wq = [1, -0.5]
    keys = torch.tensor([[[0.0, 0.5], [-1.0, 1.5]]], dtype=torch.float64)  # Wq + Uk = [1, 0] and [0, 1]
    vector = torch.tensor([2.0, 1.0], dtype=torch.float64)  # scores 2 tanh(1) and tanh(1)
    values = torch.tensor([[[10.0], [20.0]]], dtype=torch.float64)
    context, weights = attention.additive(query, keys, values, None, matrix, vector)
    share = 1 / (1 + math.exp(-math.tanh(1)))
    assert weights[0, 0].tolist() == pytest.approx([share, 1 - share], abs=1e-14)
    assert context.item() == pytest.approx(10 * share + 20 * (1 - share), abs=1e-13)


@every_mask
@every_function
def test_gradients_of_each_function_are_those_of_finite_differences(name: str, kind: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in (*inputs(), *parameters(name))]

    def function(query: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> Attended:
        return FUNCTIONS[name](query, keys, values, MASKS[kind], *rest)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("kind", ["padding", "each query its own"])
@every_function
def test_what_is_masked_changes_nothing_and_weighs_nothing(name: str, kind: str) -> None:
    query, keys, values = inputs()
    mask = MASKS[kind]
    assert mask is not None
    full = mask[:, None].expand(BATCH, TARGET, SOURCE) if mask.ndim == 2 else mask
    context, weights = FUNCTIONS[name](query, keys, values, mask, *parameters(name))
    assert torch.equal(weights != 0, full)
    assert torch.allclose(weights.sum(-1), full.any(-1).double())
    never = ~full.any(dim=1)  # keys that no query may see
    keys[never], values[never] = 1e3, -1e3
    again, weights_again = FUNCTIONS[name](query, keys, values, mask, *parameters(name))
    assert torch.equal(again, context)
    assert torch.equal(weights_again, weights)


@every_function
def test_a_query_that_may_see_nothing_gets_zeros_and_finite_gradients(name: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in (*inputs(), *parameters(name))]
    mask = padding()
    mask[1] = False
    context, weights = FUNCTIONS[name](*tensors[:3], mask, *tensors[3:])
    assert not context[1].any()
    assert not weights[1].any()
    for gradient in torch.autograd.grad(context.sum(), tensors):
        assert gradient.isfinite().all()


@every_function
def test_a_module_is_its_function_with_keys_projected_once(name: str) -> None:
    torch.manual_seed(0)
    module = attention.build(name, DIM)
    assert module is not None
    module.double()
    query, values = drawn(BATCH, TARGET, DIM), drawn(BATCH, SOURCE, DIM, seed=1)
    stored = dict(module.named_parameters())
    keys = functional.linear(values, stored["keys.weight"], stored["keys.bias"]) if name == "additive" else values
    rest = [parameter for key, parameter in stored.items() if key in {"matrix", "vector"}]
    ours = module(query, module.project(values), values, padding())
    theirs = FUNCTIONS[name](query, keys, values, padding(), *rest)
    assert all(torch.equal(mine, reference) for mine, reference in zip(ours, theirs, strict=True))


def test_no_attention_is_no_module() -> None:
    assert attention.build("none", DIM) is None


# Several heads


def both_multi_heads(dim: int, heads: int, dtype: torch.dtype) -> tuple[MultiHead, nn.MultiheadAttention]:
    """Return ours and PyTorch's with the same weights."""
    torch.manual_seed(0)
    ours, theirs = MultiHead(dim, heads), nn.MultiheadAttention(dim, heads, batch_first=True)
    with torch.no_grad():
        nn.init.normal_(ours.bias)
        nn.init.normal_(ours.output.bias)
        theirs.in_proj_weight.copy_(ours.weight)
        theirs.in_proj_bias.copy_(ours.bias)
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_self_attention_is_pytorchs(dtype: torch.dtype, causal: bool, masked: bool, weights: bool) -> None:
    ours, theirs = both_multi_heads(8, 2, dtype)
    hidden = drawn(BATCH, SOURCE, 8, dtype=dtype)
    mask = padding() if masked else None
    later = ~torch.ones(SOURCE, SOURCE, dtype=torch.bool).tril() if causal else None
    context, shown = ours(hidden, mask, causal=causal, weights=weights)
    reference, reference_weights = theirs(
        hidden, hidden, hidden, key_padding_mask=None if mask is None else ~mask, attn_mask=later,
        average_attn_weights=False,
    )  # fmt: skip
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert torch.allclose(context, reference, atol=tolerance, rtol=0)
    assert (shown is None) is not weights
    if shown is not None:
        assert torch.allclose(shown, reference_weights, atol=tolerance, rtol=0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_attention_is_pytorchs(dtype: torch.dtype, masked: bool) -> None:
    ours, theirs = both_multi_heads(8, 4, dtype)
    hidden, source = drawn(BATCH, TARGET, 8, dtype=dtype), drawn(BATCH, SOURCE, 8, seed=1, dtype=dtype)
    mask = padding() if masked else None
    reference, reference_weights = theirs(
        hidden, source, source, key_padding_mask=None if mask is None else ~mask, average_attn_weights=False
    )
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for weights in (True, False):
        context, shown = ours.cross(hidden, ours.memory(source), mask, weights=weights)
        assert torch.allclose(context, reference, atol=tolerance, rtol=0)
    context, shown = ours.cross(hidden, ours.memory(source), mask, weights=True)
    assert shown is not None
    assert torch.allclose(shown, reference_weights, atol=tolerance, rtol=0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_kernel_gives_the_contexts_and_gradients_of_the_readable_form(causal: bool, masked: bool) -> None:
    ours, _ = both_multi_heads(8, 2, torch.float64)
    mask = padding() if masked else None
    results = []
    for weights in (True, False):
        hidden = drawn(BATCH, SOURCE, 8).requires_grad_()
        context, _ = ours(hidden, mask, causal=causal, weights=weights)
        goal = (context * drawn(*context.shape, seed=3)).sum()
        results.append([context, *torch.autograd.grad(goal, [hidden, *ours.parameters()])])
    for readable, fused in zip(*results, strict=True):
        assert torch.allclose(readable, fused, atol=1e-13, rtol=0)


def test_steps_with_a_cache_are_causal_attention_over_the_whole() -> None:
    ours, _ = both_multi_heads(8, 2, torch.float64)
    hidden = drawn(BATCH, SOURCE, 8)
    cache = torch.full((BATCH, 2, 2, SOURCE + 2, 4), math.nan, dtype=torch.float64)  # what is not written is not read
    with torch.no_grad():
        steps = [ours.step(hidden[:, place : place + 1], cache, place) for place in range(SOURCE)]
        whole, _ = ours(hidden, causal=True)
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [True, False])
def test_heads_that_may_see_nothing_give_no_nan(weights: bool, dtype: torch.dtype) -> None:
    ours, _ = both_multi_heads(8, 2, dtype)
    hidden = drawn(BATCH, SOURCE, 8, dtype=dtype).requires_grad_()
    mask = padding()
    mask[1] = False
    context, _ = ours(hidden, mask, weights=weights)
    assert torch.allclose(context[1], ours.output.bias.expand(SOURCE, 8))
    (gradient,) = torch.autograd.grad(context.sum(), [hidden])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("weights", [True, False])
def test_no_position_sees_a_later_or_a_masked_one(weights: bool) -> None:
    ours, _ = both_multi_heads(8, 2, torch.float64)
    hidden, changed = drawn(1, SOURCE, 8), drawn(1, SOURCE, 8)
    changed[:, 3:] = 50.0
    for causal, mask in ((True, None), (False, torch.tensor([[True] * 3 + [False] * 2]))):
        before = ours(hidden, mask, causal=causal, weights=weights)[0][:, :3]
        after = ours(changed, mask, causal=causal, weights=weights)[0][:, :3]
        assert torch.equal(before, after)
