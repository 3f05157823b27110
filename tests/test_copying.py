"""Copying from the source: the mixture by hand, its loss at the extremes, and what it is for."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.errors import Exit, UserError
from finetune.seq2seq import copying, loss
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.copying import Pointers, mixture, summed_cross_entropy
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel, sequence_loss
from finetune.seq2seq.search import SearchConfig, search_all
from finetune.seq2seq.vocabulary import BOS, EOS, PAD, VocabularyConfig, learn
from finetune.text_evaluation import task_named

TOKENS, DIM, VOCAB, SOURCE = 6, 5, 9, 4


def parts(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return hidden, weight, gate and weights, then the sources, whose last place is padding, and gold tokens."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, DIM), (VOCAB, DIM), (TOKENS,))
    found = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    weights = torch.rand(TOKENS, SOURCE, generator=draw, dtype=torch.float64) + 0.1
    weights[:, -1] = 0
    found.append(weights / weights.sum(dim=1, keepdim=True))
    source = torch.randint(1, VOCAB, (TOKENS, SOURCE), generator=draw)
    source[:, -1] = PAD
    gold = torch.randint(1, VOCAB, (TOKENS,), generator=draw)
    gold[:3] = source[:3, 0]
    return [part.to(dtype).requires_grad_() for part in found], source, gold


def test_a_mixture_is_what_one_works_out_by_hand() -> None:
    written = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    gate = torch.tensor([math.log(0.25 / 0.75)], dtype=torch.float64)  # p_gen = 1/4
    looks = torch.tensor([[0.5, 0.2, 0.3, 0.0]], dtype=torch.float64)
    source = torch.tensor([[3, 1, 3, PAD]])
    found = mixture(written.log(), Pointers(gate, looks, source)).exp()
    expected = [0.25 * 0.1, 0.25 * 0.2 + 0.75 * 0.2, 0.25 * 0.3, 0.25 * 0.4 + 0.75 * (0.5 + 0.3)]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_a_mixture_sums_to_one_and_padding_of_the_source_gets_nothing() -> None:
    (hidden, weight, gate, looks), source, _ = parts()
    logits = functional.linear(hidden, weight)
    found = mixture(logits, Pointers(gate, looks, source)).exp()
    assert torch.allclose(found.sum(dim=1), torch.ones(TOKENS, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.allclose(found[:, PAD], gate.sigmoid() * logits.softmax(dim=1)[:, PAD], rtol=1e-12)


@pytest.mark.parametrize("name", ["transformer", "rnn"])
def test_a_model_gives_padding_no_share_of_its_copies(name: str) -> None:
    network = model(name, copy=True).double().eval()
    source = torch.tensor([[4, 5, 6, 7, EOS], [8, EOS, PAD, PAD, PAD]])
    places = network.decode(torch.tensor([[BOS, 4, 5], [BOS, 8, 9]]), network.encode(source, source != PAD))
    assert places.pointers is not None
    looks = places.pointers.weights
    assert torch.allclose(looks.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert not looks[1, :, 2:].any()
    found = network.project(places).exp()
    assert torch.allclose(found.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    alignment = network.alignment(source, source != PAD, torch.tensor([[BOS, 4, 5], [BOS, 8, 9]]))
    assert torch.equal(looks, alignment)


@pytest.mark.parametrize("at_once", [1000, 2 * VOCAB])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_mixture_with_its_gradients(
    smoothing: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", at_once)
    monkeypatch.setattr(loss, "FEWEST", 1)
    (hidden, weight, gate, looks), source, gold = parts()
    scores = looks.detach().log().requires_grad_()  # of padding -inf
    looks = scores.softmax(dim=1)
    ours = summed_cross_entropy(hidden, weight, Pointers(gate, looks, source), gold, smoothing)
    written = functional.linear(hidden, weight).softmax(dim=1) * gate.sigmoid()[:, None]
    copied = functional.one_hot(source, VOCAB).to(looks.dtype) * looks[:, :, None]  # (tokens, source, vocab)
    plain = (written + copied.sum(dim=1) * (1 - gate.sigmoid()[:, None])).log()
    theirs = -((1 - smoothing) * plain[range(TOKENS), gold].sum() + smoothing * plain.mean(dim=1).sum())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    inputs = [hidden, weight, gate, scores]
    for mine, reference in zip(
        *(torch.autograd.grad(3 * total, inputs, retain_graph=True) for total in (ours, theirs)), strict=True
    ):
        assert torch.allclose(mine, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gate", [-1e4, 1e4])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_at_the_extremes_loss_and_gradients_are_finite(gate: float, scale: float) -> None:
    given, source, gold = parts(torch.float32)
    hidden, weight, _, _ = given
    scores = (torch.randn(TOKENS, SOURCE, generator=torch.Generator().manual_seed(1)) * 200).requires_grad_()
    certain = torch.full((TOKENS,), gate, requires_grad=True)  # to copy, or to write, whatever is there
    looks = scores.softmax(dim=1)  # some are 0, or subnormal
    assert (looks == 0).any()
    total = summed_cross_entropy(hidden * scale, weight, Pointers(certain, looks, source), gold, 0.1)
    assert total.dtype == torch.float32
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, [hidden, weight, certain, scores]):
        assert gradient.isfinite().all()


def test_no_tokens_cost_nothing() -> None:
    (hidden, weight, gate, looks), source, gold = parts()
    total = summed_cross_entropy(hidden[:0], weight, Pointers(gate[:0], looks[:0], source[:0]), gold[:0], 0.1)
    assert total.item() == 0


# What it is for


def model(name: str, vocabulary: int = 60, **changes: Any) -> Seq2SeqModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "source_vocab_size": vocabulary, "target_vocab_size": vocabulary, "hidden_size": 32, "num_encoder_layers": 1,
        "num_decoder_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "dropout": 0.0,
        "tie_embeddings": "all", "architecture": name,
    }  # fmt: skip
    return Seq2SeqModel(Seq2SeqConfig(**sizes | changes))


BEFORE, AFTER, SIGNS = 4, 5, (6, 7)
FIRST_WORD, SEEN, VOCABULARY = 8, 108, 128  # words below SEEN are in train, the others in test alone


def asked_and_answered(count: int, low: int, high: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources of a word and a sign, in any order, targets `BEFORE word AFTER`, and the words, (count,)."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(low, high, (count,), generator=draw)
    signs = torch.randint(SIGNS[0], SIGNS[1] + 1, (count,), generator=draw)
    both, turned = torch.stack([words, signs], dim=1), torch.rand(count, 1, generator=draw) < 0.5
    ends = torch.full((count, 1), EOS)
    source = torch.cat([torch.where(turned, both.flip(1), both), ends], dim=1)
    frame = torch.tensor([BOS, BEFORE, 0, AFTER, EOS]).repeat(count, 1)
    frame[:, 2] = words
    return source, frame, words


def right_after_training(network: Seq2SeqModel, updates: int) -> float:
    """Return the share of words that train does not have that are right."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
    for update in range(updates):
        source, target, _ = asked_and_answered(32, FIRST_WORD, SEEN, seed=update)
        total = sequence_loss(network, source, source != PAD, target, 0.0)
        optimizer.zero_grad()
        (total / (target[:, 1:] != PAD).sum()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    source, _, words = asked_and_answered(40, SEEN, VOCABULARY, seed=10**6)
    found = search_all(network.eval(), source.tolist(), SearchConfig(beam_size=2, max_new_tokens=4), seed=0)
    written = [[*best[0].tokens, PAD, PAD][1] for best in found]
    return float((torch.tensor(written) == words).float().mean())


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["transformer", "rnn"])
def test_words_that_no_target_of_train_had_are_copied_and_without_copying_are_not(name: str) -> None:
    assert right_after_training(model(name, VOCABULARY, copy=True), updates=200) > 0.9
    assert right_after_training(model(name, VOCABULARY, copy=False), updates=200) < 0.5


@pytest.mark.parametrize(
    ("network", "shared", "mentions"),
    [
        ({"copy": True}, False, "give vocabulary.shared=true"),
        ({"copy": True, "architecture": "rnn", "attention": "none"}, True, "give another attention"),
    ],
)
def test_what_cannot_copy_is_refused(network: dict[str, Any], shared: bool, mentions: str) -> None:
    texts = ["one two", "three four"]
    words = learn(texts, texts[::-1], VocabularyConfig(kind="character", shared=shared))
    shape = networks.NetworkConfig(hidden_size=16, num_attention_heads=2, **network)
    with pytest.raises(UserError, match=mentions) as caught:
        networks.build(shape, words, networks.Lengths(9, 9), 1, task_named("transduction"))
    assert caught.value.code == Exit.USAGE


@pytest.mark.parametrize(
    ("network", "name"),
    [({}, "Transformer with copying"), ({"architecture": "rnn"}, "LSTM with additive attention and copying")],
)
def test_a_model_that_copies_says_so(network: dict[str, Any], name: str) -> None:
    texts = ["one two", "three four"]
    words = learn(texts, texts, VocabularyConfig(kind="character"))
    shape = networks.NetworkConfig(hidden_size=16, num_attention_heads=2, copy=True, **network)
    assert networks.build(shape, words, networks.Lengths(9, 9), 1, task_named("transduction")).name == name


def test_a_memory_keeps_the_tokens_of_its_rows() -> None:
    network = model("rnn", copy=True)
    source = torch.tensor([[4, 5, EOS], [6, EOS, PAD]])
    memory = network.encode(source, source != PAD).select(torch.tensor([1, 1, 0]))
    assert isinstance(memory, copying.Memory)
    assert memory.source.tolist() == [[6, EOS, PAD], [6, EOS, PAD], [4, 5, EOS]]
