"""The whole models: the contract, the loss, what training can reach, and the way to disk and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from finetune import cpu
from finetune.errors import Exit, UserError
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel, sequence_loss
from finetune.seq2seq.search import SearchConfig, search_all

PAD, BOS, EOS, FIRST = 0, 2, 3, 4
VOCAB = 20
SHAPES: dict[str, dict[str, Any]] = {
    "transformer": {},
    "transformer post-norm": {"norm": "post", "position": "learned", "activation": "gelu"},
    **{f"rnn {cell}": {"architecture": "rnn", "cell": cell} for cell in ("lstm", "gru", "rnn")},
    **{
        f"rnn {attention}": {"architecture": "rnn", "attention": attention}
        for attention in ("none", "dot", "scaled_dot", "general")
    },
    "rnn one direction": {"architecture": "rnn", "bidirectional": False},
    "rnn input feeding": {"architecture": "rnn", "input_feeding": True},
    "transformer copying": {"copy": True},
    "rnn copying": {"architecture": "rnn", "input_feeding": True, "copy": True},
}
OTHERS: dict[str, dict[str, Any]] = {  # what SHAPES leaves out of cells times attentions
    f"rnn {cell} {attention}": {"architecture": "rnn", "cell": cell, "attention": attention}
    for cell in ("gru", "rnn")
    for attention in ("none", "dot", "scaled_dot", "general")
} | {
    f"rnn {attention} copying": {"architecture": "rnn", "attention": attention, "copy": True}
    for attention in ("additive", "dot", "general")
}
every_shape = pytest.mark.parametrize("name", list(SHAPES))
every_tying = pytest.mark.parametrize("tying", ["none", "target", "all"])


def model(name: str = "transformer", **changes: Any) -> Seq2SeqModel:
    sizes: dict[str, Any] = {
        "source_vocab_size": VOCAB, "target_vocab_size": VOCAB, "hidden_size": 16, "num_encoder_layers": 2,
        "num_decoder_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return Seq2SeqModel(Seq2SeqConfig(**sizes | (SHAPES | OTHERS)[name] | changes))


def padded(sentences: list[list[int]], width: int = 0) -> Tensor:
    width = max(width, *map(len, sentences))
    return torch.tensor([sentence + [PAD] * (width - len(sentence)) for sentence in sentences])


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random sources (to eos) and targets (bos to eos) of 1 to 7 tokens, padded."""
    draw = torch.Generator().manual_seed(seed)

    def sentence(shortest: int = 1) -> list[int]:
        length = int(torch.randint(shortest, 8, (), generator=draw))
        return torch.randint(FIRST, VOCAB, (length,), generator=draw).tolist()

    sources = [[*sentence(shortest=3), EOS] for _ in range(count)]  # long enough that no two are the same
    return padded(sources), padded([[BOS, *sentence(), EOS] for _ in range(count)])


@torch.no_grad()
def stepped(network: Seq2SeqModel, source: Tensor, target: Tensor) -> Tensor:
    memory = network.encode(source, source != PAD)
    state, logits = network.start(memory), []
    for token in target.unbind(dim=1):
        step, state = network.step(token, state, memory)
        logits.append(step)
    return torch.stack(logits, dim=1)


@torch.no_grad()
def greedy(network: Seq2SeqModel, source: Tensor, length: int) -> Tensor:
    memory = network.encode(source, source != PAD)
    state, tokens = network.start(memory), [torch.full((len(source),), BOS)]
    for _ in range(length - 1):
        logits, state = network.step(tokens[-1], state, memory)
        tokens.append(logits.argmax(dim=-1))
    return torch.stack(tokens, dim=1)


# The contract


@every_shape
def test_steps_give_the_logits_of_decode(name: str) -> None:
    network, (source, target) = model(name).double().eval(), pairs(5)
    whole = network(source, (source != PAD).long(), target).logits
    assert whole.shape == (*target.shape, VOCAB)
    assert torch.allclose(stepped(network, source, target), whole, atol=1e-10, rtol=0)


@every_shape
def test_padding_a_batch_changes_nothing(name: str) -> None:
    network, (source, target) = model(name).double().eval(), pairs(5)
    wide = [functional.pad(part, (0, 4), value=PAD) for part in (source, target)]
    narrow, padded = (network(one, one != PAD, two).logits for one, two in ((source, target), wide))
    assert torch.allclose(padded[:, : target.shape[1]], narrow, atol=1e-12, rtol=0)
    garbage = torch.where(source == PAD, 7, source)
    assert torch.equal(network(garbage, source != PAD, target).logits, narrow)


@every_shape
def test_logits_depend_on_no_later_token(name: str) -> None:
    network, (source, target) = model(name).double().eval(), pairs(5)
    changed = target.clone()
    changed[:, 2:] = 9
    before, after = (network(source, source != PAD, tokens).logits for tokens in (target, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


@every_shape
def test_an_alignment_has_a_row_for_each_token_of_the_target(name: str) -> None:
    network, (source, target) = model(name).double().eval(), pairs(5)
    weights = network.alignment(source, source != PAD, target)
    if name == "rnn none":
        assert weights is None
        return
    assert weights is not None
    assert weights.shape == (5, target.shape[1], source.shape[1])
    assert torch.equal(weights != 0, (source != PAD)[:, None].expand_as(weights))


@pytest.mark.parametrize("name", ["rnn lstm", "rnn input feeding", "rnn copying"])
def test_scheduled_sampling_feeds_the_models_own_guesses(name: str) -> None:
    network, (source, target) = model(name).double().eval(), pairs(5)
    memory = network.encode(source, source != PAD)
    own = greedy(network, source, target.shape[1])
    assert not torch.equal(own[:, 1:], target[:, 1:])
    sampled, known = network.decode(target, memory, 1.0).hidden, network.decode(own, memory).hidden
    assert torch.allclose(sampled, known, atol=1e-12, rtol=0)
    torch.manual_seed(0)
    mixed, given = network.decode(target, memory, 0.5).hidden, network.decode(target, memory).hidden
    same = torch.isclose(mixed, given).all(dim=-1)
    assert same[:, 0].all()
    assert same[:, 1:].any()
    assert not same[:, 1:].all()


def test_scheduled_sampling_is_refused_without_a_recurrent_decoder() -> None:
    source, target = pairs(2)
    with pytest.raises(UserError, match="architecture=rnn") as caught:
        sequence_loss(model(), source, source != PAD, target, 0.0, 0.25)
    assert caught.value.code == Exit.USAGE


@pytest.mark.parametrize("beam", [1, 4])
@every_shape
def test_search_writes_the_same_alone_and_in_a_padded_batch_with_the_probability_of_decode(
    name: str, beam: int
) -> None:
    network, (source, _) = model(name).double().eval(), pairs(6)
    sources = [row[row != PAD].tolist() for row in source]
    config = SearchConfig(beam_size=beam, num_return_sequences=beam, max_new_tokens=12)
    together = search_all(network, sources, config, seed=0)
    alone = [search_all(network, [one], config, seed=0)[0] for one in sources]
    assert [[one.tokens for one in found] for found in together] == [[one.tokens for one in found] for found in alone]
    for row, found in zip(source, together, strict=True):
        for hypothesis in found:
            target = torch.tensor([[BOS, *hypothesis.tokens, EOS]])
            known = network(row[None], (row != PAD)[None], target[:, :-1]).logits.log_softmax(dim=-1)
            whole = known.gather(2, target[:, 1:, None]).sum().item()
            assert hypothesis.log_probability == pytest.approx(whole, rel=1e-5)


# The loss


@every_tying
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["transformer", "rnn lstm", "transformer copying", "rnn copying"])
def test_the_loss_is_the_sum_of_pytorchs_over_the_tokens_that_are_no_padding(
    name: str, smoothing: float, tying: str
) -> None:
    network, (source, target) = model(name, tie_embeddings=tying).double(), pairs(5)
    ours = sequence_loss(network, source, source != PAD, target, smoothing)
    logits = network(source, source != PAD, target[:, :-1]).logits
    theirs = functional.cross_entropy(
        logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum"
    )
    assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)
    parameters = dict(network.named_parameters())
    gradients = [torch.autograd.grad(loss, list(parameters.values())) for loss in (ours, theirs)]
    for name, mine, reference in zip(parameters, *gradients, strict=True):
        assert torch.allclose(mine, reference, atol=1e-10, rtol=0), name


def test_labels_below_zero_are_left_out_too() -> None:
    network, (source, target) = model().double(), pairs(5)
    labels = target[:, 1:]
    hidden = torch.where(labels == PAD, -100, labels)
    losses = [network(source, source != PAD, target[:, :-1], labels=given).loss for given in (labels, hidden)]
    assert torch.equal(*losses)


def test_a_loss_is_the_sum_of_the_losses_of_its_rows() -> None:
    network, (source, target) = model("rnn lstm").double(), pairs(5)
    whole = sequence_loss(network, source, source != PAD, target, 0.1)
    rows = [
        sequence_loss(network, one[None], (one != PAD)[None], two[None], 0.1)
        for one, two in zip(source, target, strict=True)
    ]
    assert torch.allclose(whole, torch.stack(rows).sum(), atol=1e-10, rtol=0)


# Training


@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_twenty_random_pairs_are_learnt_by_heart(name: str) -> None:
    network, (source, target) = model(name, hidden_size=48, intermediate_size=96), pairs(20)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
    tokens = int((target[:, 1:] != PAD).sum())
    for _ in range(300):
        loss = sequence_loss(network, source, source != PAD, target, 0.0)
        if loss < 0.5:  # below ln 2 in sum: no token has less than half of the probability with these weights
            break
        optimizer.zero_grad()
        (loss / tokens).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    written = greedy(network.eval(), source, target.shape[1])
    assert torch.equal(torch.where(target == PAD, PAD, written), target)


@every_shape
def test_bf16_gives_nearly_the_loss_of_float32_and_gradients_for_all(name: str) -> None:
    network, (source, target) = model(name), pairs(5)
    exact = sequence_loss(network, source, source != PAD, target, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sequence_loss(network, source, source != PAD, target, 0.1)
        steps = stepped(network, source, target)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, exact, rtol=0.02)
    assert torch.allclose(steps.float(), network(source, source != PAD, target).logits, atol=0.1)
    rounded.backward()
    unused = {key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()}
    assert unused == set()


@pytest.mark.parametrize("name", ["transformer", "rnn lstm"])
def test_dropout_follows_the_configuration_and_the_cpus_own_masks(name: str) -> None:
    network, (source, target) = model(name, dropout=0.3), pairs(5)
    cpu.prepare(network)
    assert not any(type(module) is nn.Dropout for module in network.modules())
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(sequence_loss(network.train(), source, source != PAD, target, 0.0).item())
    assert losses[0] == losses[1] != losses[2]
    quiet = [sequence_loss(network.eval(), source, source != PAD, target, 0.0).item() for _ in range(2)]
    assert quiet[0] == quiet[1]


def test_new_weights_give_inputs_of_variance_one_and_a_loss_near_that_of_guessing() -> None:
    for name in ("transformer", "rnn lstm"):
        for tying in ("none", "target", "all"):
            network = model(name, tie_embeddings=tying, hidden_size=128, source_vocab_size=500, target_vocab_size=500)
            embedded = network.target_embeddings.weight[1:] * 128**0.5
            assert embedded.std().item() == pytest.approx(1, abs=0.02)
            assert not network.target_embeddings.weight[PAD].any()
            source, target = pairs(50)
            total = sequence_loss(network, source, source != PAD, target, 0.0).item()
            assert total / int((target[:, 1:] != PAD).sum()) == pytest.approx(math.log(500), abs=1.2)


# To disk and back


@every_tying
@every_shape
def test_a_saved_model_comes_back_bit_for_bit(name: str, tying: str, tmp_path: Path) -> None:
    network, (source, target) = model(name, tie_embeddings=tying).eval(), pairs(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    network.save_pretrained(tmp_path)
    again, info = Seq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert list(again.state_dict()) == list(network.state_dict())
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again(source, source != PAD, target).logits, network(source, source != PAD, target).logits)
    assert again.config.to_diff_dict() == network.config.to_diff_dict()


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSeq2SeqLM])
def test_auto_classes_load_a_saved_model(auto: Any, tmp_path: Path) -> None:
    network = model("rnn lstm")
    network.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), Seq2SeqConfig)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is Seq2SeqModel
    assert torch.equal(again.target_embeddings.weight, network.target_embeddings.weight)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())  # no code beside the weights


@pytest.mark.parametrize(("tying", "tables"), [("none", 3), ("target", 2), ("all", 1)])
def test_tied_tables_are_one_parameter(tying: str, tables: int) -> None:
    network = model(tie_embeddings=tying)
    assert sum(parameter.shape == (VOCAB, 16) for parameter in network.parameters()) == tables
    assert len({key for key in network.state_dict() if "embeddings" in key or key == "output.weight"}) == tables


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["transformer", "rnn gru"])
def test_a_model_can_be_loaded_in_another_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    network, (source, target) = model(name), pairs(5)
    network.save_pretrained(tmp_path)
    again = Seq2SeqModel.from_pretrained(tmp_path, dtype=dtype)
    logits = again(source, source != PAD, target).logits
    assert logits.dtype == dtype
    assert torch.allclose(logits.float(), network(source, source != PAD, target).logits, atol=0.1)


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transfromer"}, "did you mean transformer"),
        ({"cell": "lstmm"}, "did you mean lstm"),
        ({"attention": "bahdanau"}, "none, additive, dot, scaled_dot, general"),
        ({"position": "rotary"}, "sinusoidal, learned"),
        ({"norm": "middle"}, "pre, post"),
        ({"activation": "tanh"}, "relu, gelu"),
        ({"tie_embeddings": True}, "none, target, all"),
        ({"copy": "yes"}, "true or false"),
        ({"copy": True, "architecture": "rnn", "attention": "none"}, "one fixed vector"),
        ({"copy": True, "source_vocab_size": 30}, "30 source tokens and 20 target tokens"),
        ({"tie_embeddings": "all", "source_vocab_size": 30}, "30 source tokens and 20 target tokens"),
        ({"hidden_size": 0}, "whole number"),
        ({"num_decoder_layers": 1.5}, "whole number"),
        ({"num_encoder_layers": "two"}, "whole number"),
        ({"hidden_size": 18, "num_attention_heads": 4}, "no multiple"),
        ({"hidden_size": 15, "num_attention_heads": 3}, "must be even"),
        ({"hidden_size": 15, "architecture": "rnn"}, "must be even"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"pad_token_id": 20}, "pad_token_id=20"),
        ({"eos_token_id": -1}, "eos_token_id=-1"),
    ],
)
def test_wrong_values_are_usage_errors_that_say_what_is_right(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model(**changes)
    assert caught.value.code == Exit.USAGE


def test_an_odd_width_is_fine_where_nothing_is_halved() -> None:
    assert model("rnn one direction", hidden_size=15).config.hidden_size == 15
