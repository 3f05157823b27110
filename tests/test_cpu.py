"""The fast paths of the CPU: the same mathematics as PyTorch's, and a model that is saved as if they were not there."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)
from transformers.activations import NewGELUActivation

from finetune import cpu


def loaded(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    return model


def gpt2(dropout: float = 0.1) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    sizes: dict[str, Any] = {"vocab_size": 30, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, **rates, pad_token_id=0, num_labels=3))


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    return {"input_ids": torch.randint(5, 30, (2, 9)) * mask, "attention_mask": mask}


# Dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_the_share_of_kept_elements_is_within_four_sigma(p: float) -> None:
    torch.manual_seed(0)
    count = 1_000_000
    kept = -int(cpu.keep_mask(torch.Size([1000, 1000]), p, torch.int16).sum())
    wanted = 1 - round(p * cpu.RESOLUTION) / cpu.RESOLUTION
    assert abs(kept - wanted * count) <= 4 * math.sqrt(count * wanted * (1 - wanted))
    assert wanted == pytest.approx(1 - p, abs=1 / cpu.RESOLUTION)


def test_neighbours_in_a_mask_are_independent() -> None:
    torch.manual_seed(0)
    mask = cpu.keep_mask(torch.Size([1_000_000]), 0.5, torch.int32).double() + 0.5
    for lag in (1, 2, 3, 4, 8):
        correlation = float((mask[lag:] * mask[:-lag]).mean() / 0.25)
        assert abs(correlation) < 4 / math.sqrt(len(mask))


def test_a_mask_is_a_function_of_torchs_seed() -> None:
    def mask(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return cpu.keep_mask(torch.Size([7, 11]), 0.5, torch.int32)

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    torch.manual_seed(1)
    first, second = (cpu.keep_mask(torch.Size([7, 11]), 0.5, torch.int32) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_keeps_and_scales_and_its_gradient_is_the_same_mask(dtype: torch.dtype) -> None:
    input = (torch.rand(64, 33, generator=torch.Generator().manual_seed(0)) + 1).to(dtype).requires_grad_()
    torch.manual_seed(5)
    output = cpu.dropout(input, 0.25)
    kept = output != 0
    assert 0.70 < float(kept.double().mean()) < 0.80
    assert torch.allclose(output[kept], input[kept] / 0.75, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    output.sum().backward()
    assert input.grad is not None
    assert torch.equal(input.grad != 0, kept)
    assert torch.allclose(input.grad[kept].double(), torch.tensor(1 / 0.75).double(), rtol=1e-2)


def test_gradients_of_dropout_are_those_of_finite_differences() -> None:
    def dropped(input: Tensor) -> Tensor:
        torch.manual_seed(3)
        return cpu.dropout(input, 0.4)

    input = torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(dropped, (input,))


def test_dropout_passes_everything_on_in_evaluation() -> None:
    layer = cpu.FastDropout(0.5)
    input = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    assert layer.eval()(input) is input
    assert not torch.equal(layer.train()(input), input)


# Attention


def attended(dropout: float, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return our attention, PyTorch's, and query, key and value: (batch 2, heads 3, time 7, dim 4) in float64."""
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(3)]
    module = nn.Module().train()
    module.is_causal = causal  # type: ignore[assignment]
    query, key, value = parts
    ours, _ = cpu.attention(module, query, key, value, mask, dropout=dropout)
    one_way = causal and mask is None
    theirs = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=one_way)
    return ours, theirs.transpose(1, 2), parts


def masks() -> dict[str, Tensor | None]:
    keys = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :]
    padding = keys.expand(2, 1, 7, 7)
    return {"none": None, "padding": padding, "padding and causal": padding & torch.ones(7, 7).bool().tril()}


@pytest.mark.parametrize("kind", ["none", "padding", "padding and causal"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # 1e-9 goes through our own arithmetic and drops nothing
def test_attention_without_dropout_is_scaled_dot_product_attention(kind: str, causal: bool, dropout: float) -> None:
    ours, theirs, parts = attended(dropout, masks()[kind], causal)
    assert torch.allclose(ours, theirs, atol=1e-8 if dropout else 1e-14, rtol=0)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = [torch.autograd.grad((result * weights).sum(), parts, retain_graph=True) for result in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        assert torch.allclose(mine, reference, atol=1e-7 if dropout else 1e-13, rtol=0)


def test_an_additive_mask_means_the_same_as_a_boolean_one() -> None:
    mask = masks()["padding"]
    assert mask is not None
    additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    assert torch.equal(attended(1e-9, mask, False)[0], attended(1e-9, additive, False)[0])


def test_dropout_in_attention_falls_on_the_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=draw) for _ in range(2))
    identity = torch.eye(5, dtype=torch.float64).expand(1, 2, 5, 5)  # as values: what comes out are the weights
    torch.manual_seed(8)
    weights, _ = cpu.attention(nn.Module(), query, key, identity, None, dropout=0.5)
    whole = ((query * 4**-0.5) @ key.transpose(-1, -2)).softmax(-1).transpose(1, 2)
    kept = weights != 0
    assert 0.2 < float(kept.double().mean()) < 0.8
    assert torch.allclose(weights[kept], whole[kept] / 0.5)


def test_a_scale_that_is_given_is_used() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=draw) for _ in range(3))
    ours, _ = cpu.attention(nn.Module(), query, key, value, None, dropout=1e-9, scaling=0.1)
    theirs = functional.scaled_dot_product_attention(query, key, value, scale=0.1).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-8)


# The whole model


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_prepared_model_has_the_same_parameters_and_the_same_outputs(tiny_model: Path, family: str) -> None:
    original, prepared = (loaded(tiny_model) if family == "bert" else gpt2() for _ in range(2))
    cpu.prepare(prepared)
    assert list(original.state_dict()) == list(prepared.state_dict())
    for mine, reference in zip(prepared.parameters(), original.parameters(), strict=True):
        assert torch.equal(mine, reference)
    with torch.inference_mode():
        ours, theirs = (model.eval().double()(**batch()).logits for model in (prepared, original))
    assert torch.allclose(ours, theirs, rtol=0, atol=0 if family == "bert" else 1e-14)  # GELU in one pass rounds once


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_gradients_without_dropout_are_those_of_the_original(tiny_model: Path, family: str) -> None:
    gradients = []
    for prepare in (False, True):
        model = loaded(tiny_model) if family == "bert" else gpt2(0.0)
        if prepare:
            cpu.prepare(model)
        model.eval().double()(**batch()).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for mine, reference in zip(*gradients, strict=True):
        assert torch.allclose(mine, reference, rtol=0, atol=0 if family == "bert" else 1e-14)


def test_gelu_of_gpt2_is_worked_out_in_one_pass() -> None:
    model = gpt2()
    cpu.prepare(model)
    assert [type(layer.mlp.act) for layer in model.transformer.h] == [nn.GELU, nn.GELU]
    numbers = torch.linspace(-6, 6, 1_001, dtype=torch.float64)
    exact = NewGELUActivation()(numbers)
    assert torch.allclose(model.transformer.h[0].mlp.act(numbers), exact, rtol=0, atol=1e-15)


def test_a_prepared_model_drops_in_training_as_its_seed_says(tiny_model: Path) -> None:
    model = loaded(tiny_model)
    cpu.prepare(model)
    assert sum(isinstance(module, cpu.FastDropout) for module in model.modules()) >= 3
    assert not any(type(module) is nn.Dropout and module.p > 0 for module in model.modules())

    inputs = batch()

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            found: Tensor = model.train()(**inputs).logits
        return found

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def test_a_prepared_model_is_saved_as_if_it_had_not_been(tiny_model: Path, tmp_path: Path) -> None:
    plain, prepared = loaded(tiny_model), loaded(tiny_model)
    cpu.prepare(prepared)
    plain.save_pretrained(tmp_path / "plain")
    prepared.save_pretrained(tmp_path / "prepared")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "prepared" / name).read_bytes()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "prepared")
    assert isinstance(again, BertForSequenceClassification)


def test_a_model_that_was_prepared_and_then_moved_uses_the_dropout_of_its_device() -> None:
    elsewhere = torch.empty(2, 3, 5, 4, device="meta")  # stands for a GPU: no tensor of a CPU can meet it
    assert cpu.FastDropout(0.5).train()(elsewhere).device.type == "meta"
    module = nn.Module()
    context, _ = cpu.attention(module, elsewhere, elsewhere, elsewhere, None, dropout=0.5)
    assert context.device.type == "meta"


# Packed weights

PACKED = [(torch.float32, 1e-5)]
if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # finetune asks before it packs
    PACKED.append((torch.bfloat16, 3e-2))


@pytest.mark.parametrize(("dtype", "tolerance"), PACKED)
@pytest.mark.parametrize("kind", ["Conv1D", "Linear"])
def test_packed_weights_multiply_as_the_weights_do(
    kind: str, dtype: torch.dtype, tolerance: float, tiny_model: Path
) -> None:
    model = (gpt2() if kind == "Conv1D" else loaded(tiny_model)).eval()
    names = [name for name, _ in model.named_parameters()]
    with torch.inference_mode():
        expected = model(**batch()).logits
        with cpu.packed(model, dtype):
            assert [name for name, _ in model.named_parameters()] == names
            assert sum("forward" in vars(module) for module in model.modules()) >= 8
            found = model(**batch()).logits
        after = model(**batch()).logits
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=0, atol=tolerance)
    assert torch.equal(after, expected)


def test_weights_are_as_before_when_a_packed_forward_fails() -> None:
    model = gpt2().eval()
    with pytest.raises(RuntimeError), torch.inference_mode(), cpu.packed(model, torch.float32):
        model.transformer.h[0].attn.c_attn(torch.zeros(3, 7))
    assert not any("forward" in vars(module) for module in model.modules())
