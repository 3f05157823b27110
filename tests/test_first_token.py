"""The shortcut through a BERT classifier's last layer changes no result and no gradient."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from finetune import cpu
from finetune.first_token import read_only_first_token


def classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(shape).double()


def inputs(*, padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 3, 5, 1]) if padded else torch.full((4,), 7)
    return {"input_ids": ids, "attention_mask": (torch.arange(7) < lengths[:, None]).long()}


def outcome(model: BertForSequenceClassification, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(**batch).logits
    logits.pow(2).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("prepared", [True, False])
def test_logits_and_gradients_are_those_of_the_whole_layer(padded: bool, prepared: bool) -> None:
    plain, short = classifier().train(), classifier().train()
    if prepared:
        cpu.prepare(short)
    read_only_first_token(short)
    (logits, gradients), (of_short, gradients_of_short) = (
        outcome(plain, inputs(padded=padded)),
        outcome(short, inputs(padded=padded)),
    )
    torch.testing.assert_close(of_short, logits, rtol=1e-12, atol=1e-12)
    assert set(gradients) == set(gradients_of_short)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_of_short[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def test_the_last_layer_works_on_one_token() -> None:
    model = classifier().eval()
    read_only_first_token(model)
    seen: list[int] = []
    model.bert.encoder.layer[-1].intermediate.register_forward_hook(
        lambda module, given, made: seen.append(given[0].shape[1])
    )
    model(**inputs(padded=True))
    assert seen == [1]
    assert model.bert(**inputs(padded=True)).last_hidden_state.shape == (4, 1, 16)


def test_dropout_of_the_weights_is_drawn_in_training_alone() -> None:
    model = classifier()
    read_only_first_token(model)
    model.bert.encoder.layer[-1].attention.self.dropout.p = 0.5
    with torch.no_grad():
        assert not torch.equal(model.train()(**inputs(padded=True)).logits, model(**inputs(padded=True)).logits)
        assert torch.equal(model.eval()(**inputs(padded=True)).logits, model(**inputs(padded=True)).logits)


def test_attention_that_shows_its_weights_is_whole() -> None:
    model = classifier().eval()
    read_only_first_token(model)
    model.set_attn_implementation("eager")
    shown = model(**inputs(padded=True), output_attentions=True)
    assert [weights.shape for weights in shown.attentions] == [(4, 2, 7, 7)] * 2
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(**inputs(padded=True)).logits, shown.logits)


def test_other_models_are_left_alone() -> None:
    model = BertForMaskedLM(classifier().config).double().eval()
    before = copy.deepcopy(model)(**inputs(padded=True)).logits
    read_only_first_token(model)
    assert torch.equal(model(**inputs(padded=True)).logits, before)
