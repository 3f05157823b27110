"""The Transformer: positions, what may see what, layers beside PyTorch's, steps beside the whole."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.errors import Exit, UserError
from finetune.seq2seq import transformer
from finetune.seq2seq.attention import MultiHead
from finetune.seq2seq.transformer import Positions, Settings, Transformer

BATCH, SOURCE, TARGET, DIM = 3, 6, 5, 8
LENGTHS = [6, 3, 1]
SHAPES: list[dict[str, Any]] = [
    {"pre_norm": pre_norm, "learned_positions": learned, "activation": activation}
    for pre_norm, learned, activation in itertools.product((True, False), (True, False), ("relu", "gelu"))
]
every_shape = pytest.mark.parametrize("changes", SHAPES, ids=lambda changes: " ".join(map(str, changes.values())))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask() -> Tensor:
    return torch.arange(SOURCE) < torch.tensor(LENGTHS)[:, None]


def settings(**changes: Any) -> Settings:
    shape: dict[str, Any] = {
        "dim": DIM, "heads": 2, "intermediate": 12, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0,
        "positions": 100, "learned_positions": False, "pre_norm": True, "activation": "relu",
    }  # fmt: skip
    return Settings(**shape | changes)


def network(**changes: Any) -> Transformer:
    """Return a network in float64 and evaluation mode, with biases and norms that are not 0 and 1."""
    torch.manual_seed(0)
    model = Transformer(settings(**changes)).double().eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            nn.init.normal_(parameter)
    return model


# Positions


def test_sinusoids_are_the_formula_of_the_paper() -> None:
    table = transformer.sinusoids(50, 6)
    assert table.shape == (50, 6)
    for place, pair in itertools.product((0, 1, 7, 49), range(3)):
        angle = place / 10_000 ** (2 * pair / 6)
        assert table[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_learned_positions_start_as_sinusoids_and_are_trained_and_saved_and_fixed_ones_are_not() -> None:
    learned, fixed = Positions(9, 4, learned=True), Positions(9, 4, learned=False)
    assert torch.equal(learned.table, fixed.table)
    assert [name for name, _ in learned.named_parameters()] == ["table"]
    assert list(fixed.parameters()) == []
    assert fixed.state_dict() == {}


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    model = network(positions=4)
    model.encode(drawn(1, 4, DIM), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(UserError, match="5 tokens is longer than the 4 positions") as caught:
        model.encode(drawn(1, 5, DIM), torch.ones(1, 5, dtype=torch.bool))
    assert caught.value.code == Exit.USAGE


# Layers beside PyTorch's


def copy_attention(ours: MultiHead, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(ours.weight)
    theirs.in_proj_bias.copy_(ours.bias)
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def reference_layer(kind: type[nn.TransformerEncoderLayer | nn.TransformerDecoderLayer], shape: Settings) -> Any:
    return kind(
        shape.dim, shape.heads, shape.intermediate, 0.0, shape.activation, batch_first=True, norm_first=shape.pre_norm
    ).double()


@every_shape
def test_the_encoder_is_made_of_pytorchs_layers(changes: dict[str, Any]) -> None:
    model, source = network(**changes), drawn(BATCH, SOURCE, DIM)
    hidden = model.source_positions(source)
    with torch.no_grad():
        for ours in model.encoder_layers:
            theirs = reference_layer(nn.TransformerEncoderLayer, model.settings)
            copy_attention(ours.attention, theirs.self_attn)
            theirs.linear1.load_state_dict(ours.feed_forward.widen.state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward.narrow.state_dict())
            theirs.norm1.load_state_dict(ours.around_attention.norm.state_dict())
            theirs.norm2.load_state_dict(ours.around_feed_forward.norm.state_dict())
            reference = theirs(hidden, src_key_padding_mask=~mask())
            hidden = ours(hidden, mask())
            assert torch.allclose(hidden[mask()], reference[mask()], atol=1e-12, rtol=0)
        memory = model.encode(source, mask())
        keys = model.decoder_layers[0].cross_attention.memory(model.encoder_norm(hidden))
    assert torch.equal(memory.layers[0], keys)


@every_shape
def test_the_decoder_is_made_of_pytorchs_layers(changes: dict[str, Any]) -> None:
    model, source, hidden = network(**changes), drawn(BATCH, SOURCE, DIM), drawn(BATCH, TARGET, DIM, seed=1)
    with torch.no_grad():
        for ours in model.decoder_layers:
            theirs = reference_layer(nn.TransformerDecoderLayer, model.settings)
            copy_attention(ours.attention, theirs.self_attn)
            copy_attention(ours.cross_attention, theirs.multihead_attn)
            theirs.linear1.load_state_dict(ours.feed_forward.widen.state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward.narrow.state_dict())
            for number, residual in enumerate((ours.around_attention, ours.around_cross, ours.around_feed_forward), 1):
                getattr(theirs, f"norm{number}").load_state_dict(residual.norm.state_dict())
            later = ~torch.ones(TARGET, TARGET, dtype=torch.bool).tril()
            reference = theirs(hidden, source, tgt_mask=later, memory_key_padding_mask=~mask())
            hidden = ours(hidden, ours.cross_attention.memory(source), mask())
            assert torch.allclose(hidden, reference, atol=1e-12, rtol=0)


def test_pre_norm_ends_with_a_norm_and_post_norm_does_not_need_one() -> None:
    for pre_norm in (True, False):
        model = Transformer(settings(pre_norm=pre_norm)).double()
        memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
        result = model.decode(drawn(BATCH, TARGET, DIM, seed=1), memory)
        assert torch.allclose(result.mean(dim=-1), torch.zeros(BATCH, TARGET).double(), atol=1e-12)
        assert torch.allclose(result.std(dim=-1, correction=0), torch.ones(BATCH, TARGET).double(), atol=1e-2)


# What may see what


@every_shape
def test_padding_of_the_source_changes_nothing(changes: dict[str, Any]) -> None:
    model = network(**changes)
    source, target = drawn(BATCH, SOURCE, DIM), drawn(BATCH, TARGET, DIM, seed=1)
    before = model.decode(target, model.encode(source, mask()))
    noise = torch.where(mask()[:, :, None], source, 1e3)
    assert torch.equal(model.decode(target, model.encode(noise, mask())), before)
    for row, length in enumerate(LENGTHS):
        alone = model.encode(source[row : row + 1, :length], mask()[row : row + 1, :length])
        assert torch.allclose(model.decode(target[row : row + 1], alone), before[row : row + 1], atol=1e-12, rtol=0)


@every_shape
def test_no_place_of_the_target_sees_a_later_one(changes: dict[str, Any]) -> None:
    model = network(**changes)
    memory, target = model.encode(drawn(BATCH, SOURCE, DIM), mask()), drawn(BATCH, TARGET, DIM, seed=1)
    changed = target.clone()
    changed[:, 3:] = 1e3
    before, after = model.decode(target, memory), model.decode(changed, memory)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(dim=-1).any()
    assert torch.allclose(model.decode(target[:, :3], memory), before[:, :3], atol=1e-13, rtol=0)


@every_shape
def test_every_token_of_the_source_and_the_past_of_the_target_matter(changes: dict[str, Any]) -> None:
    model = network(**changes)
    source, target = drawn(1, SOURCE, DIM).requires_grad_(), drawn(1, TARGET, DIM, seed=1).requires_grad_()
    result = model.decode(target, model.encode(source, torch.ones(1, SOURCE, dtype=torch.bool)))
    goal = (result[0, 2] * drawn(DIM, seed=2)).sum()
    from_source, from_target = torch.autograd.grad(goal, [source, target])
    assert (from_source[0].abs().sum(-1) > 0).all()
    assert (from_target[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, False]


# Steps


@every_shape
def test_steps_with_a_cache_give_what_decode_gives(changes: dict[str, Any]) -> None:
    model, length = network(**changes), 2 * transformer.BLOCK + 3  # the cache grows twice
    memory, target = model.encode(drawn(BATCH, SOURCE, DIM), mask()), drawn(BATCH, length, DIM, seed=1)
    state, results = model.start(memory), []
    with torch.no_grad():
        for token in target.unbind(dim=1):
            result, state = model.step(token, state, memory)
            results.append(result)
    assert torch.allclose(torch.stack(results, dim=1), model.decode(target, memory), atol=1e-11, rtol=0)


@torch.no_grad()
def test_the_cache_is_linear_in_the_length_of_the_output() -> None:
    model = network()
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    state, sizes = model.start(memory), []
    for _ in range(90):
        _, state = model.step(drawn(BATCH, DIM), state, memory)
        sizes.append(state.cache.numel())
    a_position = BATCH * 3 * 2 * DIM  # rows, decoder layers, key and value
    for length, size in enumerate(sizes, 1):
        assert length * a_position <= size < (length + transformer.BLOCK) * a_position


@torch.no_grad()
def test_selected_rows_go_on_as_if_they_had_been_alone() -> None:
    model = network()
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    target, rows = drawn(BATCH, TARGET, DIM, seed=1), torch.tensor([2, 0, 0])
    state, results = model.start(memory), []
    for place, token in enumerate(target.unbind(dim=1)):
        if place == 2:
            state, memory, target = state.select(rows), memory.select(rows), target[rows]
        result, state = model.step(token if place < 2 else target[:, place], state, memory)
        results.append(result[rows] if place < 2 else result)
    assert torch.allclose(torch.stack(results, dim=1), model.decode(target, memory), atol=1e-12, rtol=0)


@torch.no_grad()
def test_hypotheses_may_share_the_memory_of_their_sentence() -> None:
    model = network()
    memory, rows = model.encode(drawn(BATCH, SOURCE, DIM), mask()), torch.arange(BATCH).repeat_interleave(2)
    shared, apart = (model.start(memory).select(rows) for _ in range(2))
    for token in drawn(2 * BATCH, TARGET, DIM, seed=1).unbind(dim=1):
        ours, shared = model.step(token, shared, memory)
        theirs, apart = model.step(token, apart, memory.select(rows))
        assert torch.allclose(ours, theirs, atol=1e-13, rtol=0)


@pytest.mark.parametrize("decoder_layers", [1, 3])
@every_shape
def test_an_alignment_sums_to_one_over_the_real_tokens(changes: dict[str, Any], decoder_layers: int) -> None:
    model = network(**changes, decoder_layers=decoder_layers)
    memory, target = model.encode(drawn(BATCH, SOURCE, DIM), mask()), drawn(BATCH, TARGET, DIM, seed=1)
    weights = model.alignment(target, memory)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(BATCH, TARGET, dtype=torch.float64))
    assert torch.equal(weights != 0, mask()[:, None].expand(BATCH, TARGET, SOURCE))


@every_shape
def test_an_alignment_is_of_the_cross_attention_that_decode_uses(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(**changes)
    memory, target = model.encode(drawn(BATCH, SOURCE, DIM), mask()), drawn(BATCH, TARGET, DIM, seed=1)
    asked: list[Tensor] = []
    inner = model.decoder_layers[1].cross_attention
    cross = inner.cross

    def listening(hidden: Tensor, *rest: Any, **flags: Any) -> Any:
        asked.append(hidden)
        return cross(hidden, *rest, **flags)

    monkeypatch.setattr(inner, "cross", listening)
    model.decode(target, memory)
    model.alignment(target, memory)
    assert torch.equal(asked[0], asked[1])


def test_dropout_falls_on_embeddings_and_after_every_sublayer() -> None:
    model = network(dropout=0.5)
    places = 2 + 2 * 2 + 3 * 3
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.modules()) == places
    inputs = drawn(BATCH, SOURCE, DIM), mask()
    quiet = model.encode(*inputs).layers[0]
    for dropout in [module for module in model.modules() if isinstance(module, nn.Dropout)]:
        dropout.train()
        loud = model.decode(drawn(BATCH, TARGET, DIM), model.encode(*inputs))
        dropout.eval()
        assert not torch.equal(loud, model.decode(drawn(BATCH, TARGET, DIM), model.encode(*inputs)))
    assert torch.equal(quiet, model.encode(*inputs).layers[0])
