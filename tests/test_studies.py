"""The arithmetic of the studies in tests/benchmarks: sizes that match, places that count, what a softmax passes on."""

from typing import Any

import pytest
import torch
from studies.learning import Pairs, closest, course, right_tokens, share_right
from studies.parallelism import first_below
from studies.scaling import entropy, gradient, unscaled, variance
from torch.nn import functional

from finetune.seq2seq.attention import MultiHead
from finetune.text_evaluation import TextPredictions


@pytest.mark.parametrize(("wanted", "width"), [(90, 10), (100, 10), (101, 10), (121, 10), (123, 12), (1, 2), (4, 2)])
def test_closest_width_is_the_nearest_on_either_side(wanted: int, width: int) -> None:
    assert closest(lambda dim: dim * dim, wanted, step=2) == width


@pytest.mark.parametrize(
    ("gold", "predicted", "right"),
    [
        ("a b c", "a b c", (3, 3)),
        ("a b c", "c b a", (1, 3)),
        ("a b c", "b c", (0, 3)),  # one word missing: all that follow stand in a wrong place
        ("a b", "a b c d", (2, 4)),  # too much costs as well
        ("a b", "", (0, 2)),
    ],
)
def test_a_token_is_right_in_its_own_place_alone(gold: str, predicted: str, right: tuple[int, int]) -> None:
    assert right_tokens(gold, predicted) == right


def test_share_right_puts_an_edge_into_the_bucket_that_it_ends() -> None:
    sources = ["a", "a a", "a a a", "a a a a"]
    found = TextPredictions(list("1234"), sources, [[s] for s in sources], ["a", "a b", "b b b", "a a a a"])
    assert [share.value for share in share_right(found, [2, 4])] == pytest.approx([2 / 3, 4 / 7])


def test_seconds_of_an_evaluation_lie_between_those_that_were_logged() -> None:
    records: list[dict[str, Any]] = [
        {"step": 10, "seconds": 4.0},
        {"step": 15, "validation": {"loss": 2.0}},
        {"step": 20, "seconds": 8.0},
        {"step": 22, "validation": {"loss": 1.0}},  # after a kill and resume nothing later need be there
    ]
    assert course(records) == [(6.0, 2.0), (8.0, 1.0)]
    assert first_below(course(records), 2.0) == 6.0
    assert first_below(course(records), 0.5) is None


def test_measures_of_attention_are_those_of_the_scores() -> None:
    scores = 2 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = scores.softmax(dim=-1)
    assert variance(weights) == pytest.approx(float(scores.var(dim=-1).mean()))
    jacobians = [torch.autograd.functional.jacobian(lambda s: s.softmax(dim=-1), row) for row in scores]
    assert gradient(weights) == pytest.approx(sum(float(one.norm()) for one in jacobians) / 5)
    even = torch.full((2, 7), 1 / 7, dtype=torch.float64)
    one_hot = torch.eye(7, dtype=torch.float64)
    assert (entropy(even), entropy(one_hot), gradient(one_hot)) == pytest.approx((1, 0, 0))


def test_unscaled_takes_the_scale_out_of_kernel_and_readable_form_and_gives_it_back() -> None:
    torch.manual_seed(1)
    heads, hidden = MultiHead(8, 2), torch.randn(1, 5, 8)
    scaled = heads(hidden)[0]
    with unscaled():
        fused, (readable, weights) = heads(hidden)[0], heads(hidden, weights=True)
    torch.testing.assert_close(fused, readable)
    assert not torch.allclose(fused, scaled)
    query, keys, _ = functional.linear(hidden, heads.weight, heads.bias).view(1, 5, 3, 2, 4).transpose(1, 3).unbind(2)
    torch.testing.assert_close(weights, (query @ keys.transpose(-1, -2)).softmax(dim=-1))
    torch.testing.assert_close(heads(hidden)[0], scaled, rtol=0, atol=0)


def test_pairs_have_all_their_lengths_and_are_the_same_each_time() -> None:
    pairs = Pairs("reverse", words=5, shortest=2, longest=4, updates=1, test_rows=1)
    drawn = pairs.draw(200, seed=3)
    assert {len(source.split()) for source, _ in drawn} == {2, 3, 4}
    assert all(source.split()[::-1] == target.split() for source, target in drawn)
    assert pairs.draw(200, seed=3) == drawn
    assert len({word for source, _ in drawn for word in source.split()}) == 5
