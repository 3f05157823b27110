"""Parameter groups, depths, freezing, and what `auto` stands for."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from finetune import optim


@pytest.fixture(scope="module")
def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64, max_position_embeddings=16))


@pytest.fixture(scope="module")
def gpt2() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=2, n_positions=16))


def names(model: nn.Module, groups: list[dict[str, Any]], **wanted: float) -> set[str]:
    numbers = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = [group for group in groups if all(group[key] == pytest.approx(value) for key, value in wanted.items())]
    return {numbers[id(parameter)] for group in chosen for parameter in group["params"]}


@pytest.mark.parametrize(("width", "rate"), [(768, 2e-5), (384, 1e-4), (1024, 1e-5), (128, 3e-4), (32, 3e-4)])
def test_auto_takes_the_papers_rate_at_its_width_and_more_for_narrower_models(width: int, rate: float) -> None:
    assert optim.auto_learning_rate(width, 2) == pytest.approx(rate)


@pytest.mark.parametrize(("width", "rate"), [(768, 4e-5), (384, 2e-4), (32, 3e-4)])
def test_auto_takes_twice_the_rate_for_many_classes(width: int, rate: float) -> None:
    assert optim.auto_learning_rate(width, 50) == pytest.approx(rate)
    assert optim.auto_learning_rate(width, 49) == optim.auto_learning_rate(width, 2)


@pytest.mark.parametrize(
    ("rows", "batch", "classes", "width", "epochs"),
    [
        (100_000, 32, 2, 768, 3),
        (320, 32, 2, 768, 10),
        (100, 32, 2, 768, 25),
        (1_600, 32, 2, 768, 5),
        (1, 32, 2, 768, 100),
        (1_600, 32, 8, 768, 9),
        (9_038, 32, 77, 384, 9),
    ],
)
def test_auto_takes_three_epochs_where_they_make_enough_updates(
    rows: int, batch: int, classes: int, width: int, epochs: int
) -> None:
    assert optim.auto_epochs(rows, batch, classes, width) == epochs


def test_depth_rises_from_embeddings_over_layers_to_the_head(
    bert: BertForSequenceClassification, gpt2: GPT2ForSequenceClassification
) -> None:
    depths = optim.layer_depths(name for name, _ in bert.named_parameters())
    assert depths["bert.embeddings.word_embeddings.weight"] == 0
    assert depths["bert.encoder.layer.0.attention.self.query.weight"] == 1
    assert depths["bert.encoder.layer.2.output.dense.bias"] == 3
    assert depths["bert.pooler.dense.weight"] == depths["classifier.weight"] == 4
    depths = optim.layer_depths(name for name, _ in gpt2.named_parameters())
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.1.mlp.c_fc.weight"] == 2
    assert depths["transformer.ln_f.weight"] == depths["score.weight"] == 3
    named = (
        "model.embed_tokens.weight",
        "model.embed_positions.weight",
        "shared.weight",
        "encoder.layers.0.fc1.weight",
    )
    assert list(optim.layer_depths(named).values()) == [0, 0, 0, 1]


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_freezing_stops_embeddings_and_the_lowest_layers_only(bert: BertForSequenceClassification, layers: int) -> None:
    trained = optim.freeze(bert, layers)
    still = {name for name, parameter in bert.named_parameters() if parameter.requires_grad}
    assert trained == sum(parameter.numel() for parameter in bert.parameters() if parameter.requires_grad)
    assert ("bert.embeddings.word_embeddings.weight" in still) is (layers == 0)
    for layer in range(3):
        assert (f"bert.encoder.layer.{layer}.output.dense.weight" in still) is (layer >= layers)
    assert "classifier.weight" in still
    bert.requires_grad_(True)


def test_biases_and_norms_have_no_weight_decay_and_every_parameter_is_in_one_group(
    bert: BertForSequenceClassification,
) -> None:
    groups = optim.parameter_groups(bert, 0.1, 0.01)
    assert len(groups) == 2
    none = names(bert, groups, weight_decay=0.0)
    assert none == {name for name, _ in bert.named_parameters() if name.endswith("bias") or "LayerNorm" in name}
    everyone = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert len(everyone) == len(set(everyone)) == len(list(bert.parameters()))


def test_frozen_parameters_are_in_no_group(bert: BertForSequenceClassification) -> None:
    optim.freeze(bert, 1)
    groups = optim.parameter_groups(bert, 0.1, 0.01)
    bert.requires_grad_(True)
    assert not any("layer.0." in name or "embeddings" in name for name in names(bert, groups))


def test_each_layer_learns_at_the_rate_of_the_one_above_times_the_decay(bert: BertForSequenceClassification) -> None:
    groups = optim.parameter_groups(bert, 0.1, 0.01, layer_decay=0.5)
    assert "classifier.weight" in names(bert, groups, lr=0.1)
    for layer, rate in ((2, 0.05), (1, 0.025), (0, 0.0125)):
        assert f"bert.encoder.layer.{layer}.output.dense.weight" in names(bert, groups, lr=rate)
    assert "bert.embeddings.word_embeddings.weight" in names(bert, groups, lr=0.1 * 0.5**4)


def test_fused_adamw_makes_the_step_of_the_formula() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    groups: list[dict[str, object]] = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]
    optimizer = optim.adamw(groups, (0.9, 0.99), 1e-8)
    gradient = torch.tensor([[0.3, 0.0]], dtype=torch.float64)
    weight.grad = gradient.clone()
    optimizer.step()
    mean, square = gradient, gradient**2  # after the bias correction of the first step
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (1 - 0.1 * 0.5) - 0.1 * mean / (square.sqrt() + 1e-8)
    assert torch.allclose(weight, expected, atol=1e-15, rtol=0)


def test_noam_is_equation_3_of_vaswani_et_al() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = optim.schedule("noam", optimizer, warmup=4, updates=100, width=16)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2 * 16**-0.5 * min(n**-0.5, n * 4**-1.5) for n in range(1, 10)])
    with pytest.raises(TypeError, match="width"):
        optim.schedule("noam", optimizer, warmup=4, updates=100)
