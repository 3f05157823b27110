"""Strided perplexity: equal to one forward pass for each token; bits, bytes and signs."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from finetune.causal import perplexity
from finetune.causal.model import Start, load_trained
from finetune.causal.perplexity import Tally, Texts, Windows, compare, compare_all, from_rows, score, to_rows, values
from finetune.errors import UserError


@pytest.fixture(scope="module")
def start(tiny_gpt2: Path) -> Start:
    return load_trained(tiny_gpt2)


def naive(start: Start, row: list[int], first: int, window: int, stride: int) -> float:
    """Predict each token by itself from what its window lets it see."""
    total = 0.0
    for place in range(first, len(row)):
        begin = 0 if place <= window else math.ceil((place - window) / stride) * stride
        context = torch.tensor([row[begin:place]], device=start.model.network.device)
        with torch.no_grad():
            logits = start.model.network(context).logits[0, -1].double()
        total -= float(logits.log_softmax(0)[row[place]])
    return total


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 1), (5, 3), (40, 20)])
def test_strided_windows_equal_a_naive_computation(start: Start, window: int, stride: int) -> None:
    random = np.random.default_rng(1)
    rows = [np.array([0, *random.integers(1, 257, size), 0]) for size in (1, 7, 8, 9, 23, 30)]
    first = np.array([1, 1, 1, 3, 1, 12])
    found = perplexity.negative_log_probability(start, rows, first, window, stride, "no")
    expected = [naive(start, row.tolist(), int(one), window, stride) for row, one in zip(rows, first, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (3, 1)])
def test_windows_predict_each_token_once(window: int, stride: int) -> None:
    lengths, first = np.array([2, 5, 9, 10, 40]), np.array([1, 1, 4, 9, 20])
    cut = Windows.of(lengths, first, window, stride)
    predicted = [
        (int(row), place)
        for row, begin, size, skipped in zip(cut.document, cut.begin, cut.size, cut.skipped, strict=True)
        for place in range(begin + 1 + skipped, begin + 1 + size)
    ]
    assert predicted == [
        (row, place) for row, (n, one) in enumerate(zip(lengths, first, strict=True)) for place in range(one, n)
    ]
    assert cut.size.max() <= window
    assert (cut.skipped >= 0).all()


def test_bits_per_byte_counts_utf8_bytes_and_perplexity_tokens(start: Start) -> None:
    tokenizer = AutoTokenizer.from_pretrained(start.name)
    texts = ["ab", "это"]
    rows = [np.array([0, *tokenizer(text)["input_ids"], 0]) for text in texts]
    coded = Texts(["a", "b"], texts, rows, np.ones(2, dtype=np.int64), ["", ""])
    found, seconds = perplexity.tally(start, coded, 40, 20, "no")
    assert seconds > 0
    assert found.bytes.tolist() == [2, 6]
    assert found.tokens.tolist() == [3, 7]
    total = float(found.nats.sum())
    assert values(found) == pytest.approx(
        {"bits_per_byte": total / math.log(2) / 8, "perplexity": math.exp(total / 10), "loss": total / 10}
    )


def made(nats: np.ndarray, tokens: int = 10) -> Tally:
    rows = len(nats)
    names = [str(row) for row in range(rows)]
    return Tally(names, names, np.full(rows, 20.0), np.full(rows, float(tokens)), nats)


def test_fewer_bits_are_better_and_the_difference_is_positive() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 60)
    good, bad = made(20 + noise), made(30 + noise, tokens=0)
    found = compare(good, bad)
    assert found["metric"] == "bits_per_byte"
    assert found["difference"] == pytest.approx(10 / math.log(2) / 20)
    assert found["verdict"] == "better"
    assert compare(bad, good)["verdict"] == "worse"
    assert set(score(bad)) == {"bits_per_byte"}  # another tokenizer's perplexity would say nothing


def test_one_document_shows_no_difference_however_large() -> None:
    found = compare(made(np.array([10.0])), made(np.array([30.0])))
    assert found["difference"] > 0
    assert found["verdict"] == "no difference shown"


def test_the_same_documents_in_another_order_are_paired_by_their_ids() -> None:
    random = np.random.default_rng(0)
    nats, order = random.normal(20, 5, 30), random.permutation(30)
    good, bad = made(nats), made(nats + 2)
    moved = Tally([bad.ids[i] for i in order], [bad.texts[i] for i in order], *(
        column[order] for column in (bad.bytes, bad.tokens, bad.nats)
    ))  # fmt: skip
    assert compare(good, moved) == compare(good, bad)
    assert compare([good, good], [moved, bad]) == compare([good, good], [bad, bad])
    assert compare_all({"one": ([good], [moved])}) == compare_all({"one": ([good], [bad])})
    with pytest.raises(UserError, match="only one of the two systems has a prediction for id 29"):
        compare(good, made(nats[:29]))
    one, two = (dataclasses.replace(found, ids=["a"] * 30) for found in (good, bad))  # paired as they stand
    assert compare(one, two) == compare(good, bad)


def test_several_seeds_are_scored_by_their_mean() -> None:
    one, two = made(np.full(8, 20.0)), made(np.full(8, 30.0))
    found = score([one, two])
    assert found["loss"]["value"] == pytest.approx(2.5)
    assert found["loss"]["sd"] == pytest.approx(np.std([2, 3], ddof=1))
    assert compare([one, two], made(np.full(8, 40.0)))["difference"] == pytest.approx(15 / math.log(2) / 20)


def test_predictions_are_read_back_as_they_were() -> None:
    found = made(np.array([3.0, 4.5]))
    again = from_rows(to_rows(found))
    assert again.ids == found.ids
    assert again.nats == pytest.approx(found.nats)
    assert again.tokens.tolist() == found.tokens.tolist()
