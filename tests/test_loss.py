"""The fused output layer and cross-entropy beside PyTorch's, tokens at once or in pieces."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from finetune.seq2seq import loss

TOKENS, DIM, VOCAB = 7, 5, 11
every_smoothing = pytest.mark.parametrize("smoothing", [0.0, 0.1])


def tensors(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return hidden and weight, and gold tokens."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, DIM), (VOCAB, DIM))
    parts = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return parts, torch.randint(VOCAB, (TOKENS,), generator=draw)


@pytest.fixture(params=[1000, 3 * VOCAB, 1], ids=["at once", "in threes", "one by one"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", request.param)
    monkeypatch.setattr(loss, "FEWEST", 1)


@pytest.mark.usefixtures("_pieces")
@every_smoothing
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_pytorchs(smoothing: float, dtype: torch.dtype, tolerance: float) -> None:
    (hidden, weight), gold = tensors(dtype)
    ours = loss.summed_cross_entropy(hidden, weight, gold, smoothing)
    logits = functional.linear(hidden, weight)
    theirs = functional.cross_entropy(logits, gold, label_smoothing=smoothing, reduction="sum")
    assert ours.dtype == dtype
    assert torch.allclose(ours, theirs, atol=tolerance, rtol=0)
    for mine, reference in zip(
        *(torch.autograd.grad(3 * total, [hidden, weight]) for total in (ours, theirs)), strict=True
    ):
        assert mine.dtype == dtype
        assert torch.allclose(mine, reference, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("_pieces")
@every_smoothing
def test_gradients_are_those_of_finite_differences(smoothing: float) -> None:
    parts, gold = tensors(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: loss.summed_cross_entropy(h, w, gold, smoothing), parts)


def test_under_autocast_the_loss_is_float32_and_near_that_of_float32() -> None:
    (hidden, weight), gold = tensors(torch.float32)
    exact = loss.summed_cross_entropy(hidden, weight, gold, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss.summed_cross_entropy(hidden.bfloat16(), weight, gold, 0.1)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=2e-2)
    gradients = [torch.autograd.grad(total, [hidden, weight]) for total in (exact, rounded)]
    for reference, mine in zip(*gradients, strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine, reference, atol=5e-2)


def test_no_tokens_cost_nothing() -> None:
    (hidden, weight), gold = tensors(torch.float64)
    total = loss.summed_cross_entropy(hidden[:0], weight, gold[:0], 0.1)
    assert total.item() == 0
    assert not torch.autograd.grad(total, [weight])[0].any()


def test_without_gradients_none_are_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight), gold = tensors(torch.float64)
    monkeypatch.setattr(Tensor, "index_add_", None)  # the gradient cannot be made without it
    with torch.no_grad():
        assert loss.summed_cross_entropy(hidden, weight, gold, 0.1) > 0


def test_logits_may_be_as_large_as_they_like() -> None:
    (hidden, weight), gold = tensors(torch.float64)
    ours = loss.summed_cross_entropy(1e4 * hidden, weight, gold, 0.0)
    theirs = functional.cross_entropy(1e4 * hidden @ weight.t(), gold, reduction="sum")
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_in_bf16_the_sum_is_not_rounded_to_eight_bits() -> None:
    (hidden, weight), _ = tensors(torch.bfloat16)
    many, gold = hidden.detach().repeat(200, 1), torch.arange(200 * TOKENS) % VOCAB
    ours = loss.summed_cross_entropy(many, weight, gold, 0.1)
    theirs = functional.cross_entropy(many.double() @ weight.double().t(), gold, label_smoothing=0.1, reduction="sum")
    assert torch.allclose(ours.double(), theirs, rtol=1e-3)
