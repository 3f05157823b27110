"""Cells beside PyTorch's kernels, the encoder beside packed sequences, the decoder's steps beside the whole."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from finetune.seq2seq import rnn
from finetune.seq2seq.rnn import Encoder, Layer, Recurrent, Settings

CELLS = ["rnn", "lstm", "gru"]
BATCH, SOURCE, TARGET, DIM = 3, 6, 5, 8
LENGTHS = [6, 3, 1]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask() -> Tensor:
    return torch.arange(SOURCE) < torch.tensor(LENGTHS)[:, None]


def network(**changes: Any) -> Recurrent:
    """Return a network in float64 and evaluation mode, with biases that are not zero."""
    settings: dict[str, Any] = {
        "cell": "lstm", "dim": DIM, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0,
        "attention": "additive", "bidirectional": True, "input_feeding": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Recurrent(Settings(**settings | changes)).double().eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return model


def all_steps(model: Recurrent, target: Tensor, memory: rnn.Memory) -> Tensor:
    state, results = model.start(memory), []
    for token in target.unbind(dim=1):
        result, state = model.step(token, state, memory)
        results.append(result)
    return torch.stack(results, dim=1)


# Cells


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_the_equations_are_those_of_pytorchs_kernel(
    cell: str, given: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    layer = Layer(cell, 4, DIM).to(dtype)
    for bias in layer.kernel.all_weights[0][2:]:
        nn.init.normal_(bias)
    sequence = drawn(BATCH, TARGET, 4, dtype=dtype).requires_grad_()
    first = [(drawn if given else torch.zeros)(BATCH, DIM, dtype=dtype).requires_grad_() for _ in range(layer.states)]
    state: rnn.CellState = tuple(first)
    readable = []
    for step in sequence.unbind(dim=1):
        state = layer.step(step, state)
        readable.append(state[0])
    fused = layer(sequence, tuple(first) if given else None)
    inputs = [sequence, *(first if given else ()), *layer.parameters()]
    goal = drawn(BATCH, TARGET, DIM, seed=2, dtype=dtype)
    results = []
    for outputs in (torch.stack(readable, dim=1), fused):
        results.append([outputs, *torch.autograd.grad((outputs * goal).sum(), inputs)])
    for mine, reference in zip(*results, strict=True):
        assert torch.allclose(mine, reference, atol=tolerance, rtol=tolerance)


def test_an_lstm_starts_by_remembering_and_its_state_matrices_are_orthogonal() -> None:
    torch.manual_seed(0)
    kernel = Layer("lstm", 4, DIM).kernel
    weights = rnn.Weights(*kernel.all_weights[0])
    bias = weights.input_bias + weights.hidden_bias
    assert torch.equal(bias[DIM : 2 * DIM], torch.ones(DIM))
    assert int(bias.count_nonzero()) == DIM
    for block in weights.hidden.chunk(4):
        assert torch.allclose(block @ block.t(), torch.eye(DIM), atol=1e-5)


# Encoder


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_the_encoder_is_pytorchs_over_packed_sequences(cell: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layers = 2
    ours = Encoder(cell, DIM, layers, 0.0, bidirectional=bidirectional).double()
    width = DIM // 2 if bidirectional else DIM
    theirs = rnn.KERNELS[cell](DIM, width, layers, batch_first=True, bidirectional=bidirectional).double()
    stacks = [("", ours.forwards), ("_reverse", ours.backwards)]
    with torch.no_grad():
        for (suffix, stack), part in itertools.product(stacks, ("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            for index, layer in enumerate(stack):
                getattr(theirs, f"{part}_l{index}{suffix}").copy_(getattr(layer.kernel, f"{part}_l0"))
    source = drawn(BATCH, SOURCE, DIM)
    packed, state = theirs(pack_padded_sequence(source, torch.tensor(LENGTHS), batch_first=True))
    reference, _ = pad_packed_sequence(packed, batch_first=True)
    last = (state[0] if cell == "lstm" else state).view(layers, -1, BATCH, width)
    values, finals = ours(source, mask())
    assert torch.allclose(values[mask()], reference[mask()], atol=1e-13, rtol=0)
    for index, final in enumerate(finals):
        assert torch.allclose(final, last[index].transpose(0, 1).flatten(1), atol=1e-13, rtol=0)


# The whole network

SHAPES: list[dict[str, Any]] = [
    *({"cell": cell, "attention": attention, "input_feeding": feeding}
      for cell in CELLS for attention in ("none", "additive") for feeding in (False, True)),
    *({"attention": attention} for attention in ("dot", "general", "scaled_dot")),
    {"bidirectional": False}, {"encoder_layers": 1, "decoder_layers": 3}, {"encoder_layers": 3, "decoder_layers": 1},
]  # fmt: skip
every_shape = pytest.mark.parametrize("changes", SHAPES, ids=lambda changes: " ".join(map(str, changes.values())))


@every_shape
def test_steps_give_what_decode_gives(changes: dict[str, Any]) -> None:
    model = network(**changes)
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    target = drawn(BATCH, TARGET, DIM, seed=1)
    assert torch.allclose(model.decode(target, memory), all_steps(model, target, memory), atol=1e-12, rtol=0)


@every_shape
def test_padding_of_the_source_changes_nothing(changes: dict[str, Any]) -> None:
    model = network(**changes)
    source, target = drawn(BATCH, SOURCE, DIM), drawn(BATCH, TARGET, DIM, seed=1)
    before = model.decode(target, model.encode(source, mask()))
    noise = torch.where(mask()[:, :, None], source, 1e3)
    assert torch.equal(model.decode(target, model.encode(noise, mask())), before)
    wider = torch.cat([source, drawn(BATCH, 2, DIM, seed=5)], dim=1)
    wider_mask = torch.cat([mask(), torch.zeros(BATCH, 2, dtype=torch.bool)], dim=1)
    assert torch.allclose(model.decode(target, model.encode(wider, wider_mask)), before, atol=1e-13, rtol=0)
    for row, length in enumerate(LENGTHS):
        alone = model.encode(source[row : row + 1, :length], mask()[row : row + 1, :length])
        assert torch.allclose(model.decode(target[row : row + 1], alone), before[row : row + 1], atol=1e-13, rtol=0)


@every_shape
def test_every_token_of_the_source_and_the_past_of_the_target_matter(changes: dict[str, Any]) -> None:
    model = network(**changes)
    source, target = drawn(1, SOURCE, DIM).requires_grad_(), drawn(1, TARGET, DIM, seed=1).requires_grad_()
    result = model.decode(target, model.encode(source, torch.ones(1, SOURCE, dtype=torch.bool)))
    from_source, from_target = torch.autograd.grad(result[0, 2].sum(), [source, target])
    assert (from_source[0].abs().sum(-1) > 0).all()
    assert (from_target[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, False]


@every_shape
def test_the_weights_of_an_alignment_are_those_of_the_real_tokens(changes: dict[str, Any]) -> None:
    model = network(**changes)
    weights = model.alignment(drawn(BATCH, TARGET, DIM, seed=1), model.encode(drawn(BATCH, SOURCE, DIM), mask()))
    if changes.get("attention") == "none":
        assert weights is None
        return
    assert weights is not None
    assert torch.allclose(weights.sum(dim=-1), torch.ones(BATCH, TARGET, dtype=torch.float64))
    assert torch.equal(weights != 0, mask()[:, None].expand(BATCH, TARGET, SOURCE))


@pytest.mark.parametrize("feeding", [True, False])
def test_an_alignment_is_what_decode_reads_with(feeding: bool) -> None:
    model = network(input_feeding=feeding)
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    target = drawn(BATCH, TARGET, DIM, seed=1)
    weights, before = model.alignment(target, memory), model.decode(target, memory)
    assert weights is not None
    unseen = weights[:, :, :1].detach()
    memory.values[:, 0] += 1.0  # a value may change without its key: the readout follows by the weight of it
    moved = model.decode(target[:, :1], memory).atanh() - before[:, :1].atanh()
    step = unseen[:, :1] * model.readout.weight[:, DIM:].sum(dim=-1)
    assert torch.allclose(moved, step, atol=1e-10, rtol=0)


@torch.no_grad()
@every_shape
def test_the_state_has_one_size_however_long_the_output(changes: dict[str, Any]) -> None:
    model = network(**changes)
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    state, sizes = model.start(memory), set()
    for _ in range(40):
        sizes.add(sum(part.numel() for layer in state.layers for part in layer) + state.feed.numel())
        _, state = model.step(drawn(BATCH, DIM), state, memory)
    states = 2 if model.layers[0].cell is rnn.lstm else 1
    assert sizes == {BATCH * DIM * (states * len(model.layers) + 1)}  # and the readout for input feeding


@every_shape
def test_selected_rows_go_on_as_if_they_had_been_alone(changes: dict[str, Any]) -> None:
    model = network(**changes)
    memory = model.encode(drawn(BATCH, SOURCE, DIM), mask())
    target, rows = drawn(BATCH, TARGET, DIM, seed=1), torch.tensor([2, 0, 0])
    state, results = model.start(memory), []
    for place, token in enumerate(target.unbind(dim=1)):
        if place == 2:
            state, memory, target = state.select(rows), memory.select(rows), target[rows]
        result, state = model.step(token if place < 2 else target[:, place], state, memory)
        results.append(result[rows] if place < 2 else result)
    whole = model.decode(target, memory)
    assert torch.allclose(torch.stack(results, dim=1), whole, atol=1e-12, rtol=0)


@every_shape
def test_hypotheses_may_share_the_memory_of_their_sentence(changes: dict[str, Any]) -> None:
    model = network(**changes)
    memory, rows = model.encode(drawn(BATCH, SOURCE, DIM), mask()), torch.arange(BATCH).repeat_interleave(2)
    shared = apart = model.start(memory).select(rows)
    for token in drawn(2 * BATCH, TARGET, DIM, seed=1).unbind(dim=1):
        ours, shared = model.step(token, shared, memory)
        theirs, apart = model.step(token, apart, memory.select(rows))
        assert torch.allclose(ours, theirs, atol=1e-13, rtol=0)


def test_without_attention_the_summary_enters_every_step() -> None:
    model = network(attention="none")
    memory = model.encode(drawn(1, SOURCE, DIM), torch.ones(1, SOURCE, dtype=torch.bool))
    summary = memory.summary.detach().requires_grad_()
    state = model.start(memory)
    state.layers = [tuple(torch.zeros_like(part) for part in layer) for layer in state.layers]
    memory.summary = summary
    _, after = model.step(drawn(1, DIM), state, memory)
    (gradient,) = torch.autograd.grad(after.layers[0][0].sum(), [summary])
    assert (gradient != 0).all()


def test_the_readout_before_enters_the_next_step_with_input_feeding() -> None:
    for feeding in (True, False):
        model = network(input_feeding=feeding)
        memory = model.encode(drawn(1, SOURCE, DIM), torch.ones(1, SOURCE, dtype=torch.bool))
        state = model.start(memory)
        before, _ = model.step(drawn(1, DIM), state, memory)
        state.feed = state.feed + 1
        after, _ = model.step(drawn(1, DIM), state, memory)
        assert torch.equal(before, after) is not feeding


def test_dropout_falls_on_embeddings_between_layers_and_on_the_output() -> None:
    model = network(dropout=0.5, encoder_layers=2, decoder_layers=2).train()
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 5
    memory = model.encode(torch.ones(BATCH, SOURCE, DIM, dtype=torch.float64), mask())
    dropped = model.decode(torch.ones(BATCH, TARGET, DIM, dtype=torch.float64), memory) == 0
    assert 0.2 < float(dropped.double().mean()) < 0.8
    for index in (0, 1):
        seen: list[Tensor] = []
        model.layers[index].kernel.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model.decode(torch.ones(BATCH, TARGET, DIM, dtype=torch.float64), memory)
        assert 0.2 < float((seen[0] == 0).double().mean()) < 0.8
