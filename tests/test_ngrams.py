"""The n-gram model equals a naive one of dictionaries, and its probabilities are a distribution."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from finetune.errors import Exit, UserError
from finetune.ngrams import BEGIN, END, FALLBACK, OUTCOMES, NgramModel

Gram = tuple[int, ...]


def texts(rows: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    words = ["".join(random.choice([*"abcdeé狗 "], random.integers(1, 5))) for _ in range(30)]
    return [" ".join(random.choice(words, random.integers(0, 9))) for _ in range(rows)]


class Naive:
    """Modified Kneser-Ney of Chen and Goodman 1998 with a dictionary for each length, one symbol at a time."""

    def __init__(self, train: list[str], order: int) -> None:
        self.order = order
        raw: dict[int, Counter[Gram]] = defaultdict(Counter)
        for text in train:
            symbols = (BEGIN, *text.encode(), END)
            for end in range(1, len(symbols)):
                for length in range(1, order + 1):
                    start = end - length + 1
                    if start >= 0:
                        raw[length][symbols[start : end + 1]] += 1
        self.counts = {order: dict(raw[order])}
        for length in range(1, order):
            before = Counter(gram[1:] for gram in raw[length + 1])
            first = {gram: count for gram, count in raw[length].items() if gram[0] == BEGIN}
            self.counts[length] = {**before, **first}
        self.discounts = {length: self.discount(counts) for length, counts in self.counts.items()}

    @staticmethod
    def discount(counts: dict[Gram, int]) -> list[float]:
        n = Counter(counts.values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
            if all(0 < d <= i for i, d in enumerate(found, start=1)):
                return [0.0, *found]
        return [0.0, *FALLBACK]

    def probability(self, history: Gram, symbol: int) -> float:
        found = 1 / OUTCOMES
        for length in range(1, min(self.order, len(history) + 1) + 1):
            before = history[len(history) - length + 1 :]
            after = {gram: c for gram, c in self.counts[length].items() if gram[:-1] == before}
            if after:
                discount = self.discounts[length]
                own = self.counts[length].get((*before, symbol), 0)
                aside = sum(discount[min(c, 3)] for c in after.values())
                found = (own - discount[min(own, 3)] + aside * found) / sum(after.values())
        return found

    def bits(self, text: str) -> float:
        symbols = (BEGIN, *text.encode(), END)
        return -sum(math.log2(self.probability(symbols[:i], symbols[i])) for i in range(1, len(symbols)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_bits_are_those_of_a_naive_model(order: int) -> None:
    train = [*texts(40, seed=1), ""]
    found, naive = NgramModel.fit(train, order), Naive(train, order)
    asked = [*train[:5], *texts(5, seed=2), "", "never seen: Ω~", "a\x00\n"]
    assert found.bits_each(asked).tolist() == pytest.approx([naive.bits(text) for text in asked], rel=1e-9)
    assert found.bits(asked[6]) == pytest.approx(naive.bits(asked[6]), rel=1e-9)


def test_counts_that_are_too_few_for_discounts_are_discounted_by_fixed_ones() -> None:
    after = NgramModel.fit(["a" * 5, "bb"], 1).distribution("")  # a 5 times, b 2, an end 2: nothing once
    lower = (1.5 + 1.0 + 1.0) / OUTCOMES
    assert [float(after[place]) for place in (ord("a"), ord("b"), -1, ord("c"))] == pytest.approx(
        [(5 - 1.5 + lower) / 9, (2 - 1.0 + lower) / 9, (2 - 1.0 + lower) / 9, lower / 9]
    )
    once = NgramModel.fit(["a"], 1).distribution("")
    assert float(once[ord("a")]) == pytest.approx((1 - 0.5 + (0.5 + 0.5) / OUTCOMES) / 2)


@pytest.mark.parametrize("train", [[""], ["a"], ["aaaa", "a"], texts(60, seed=3)])
def test_what_may_come_next_sums_to_one_and_nothing_is_impossible(train: list[str]) -> None:
    for order in (1, 2, 4):
        model = NgramModel.fit(train, order)
        for before in ["", "a", "é狗", "zzz", *(text[:4] for text in train[:20])]:
            after = model.distribution(before)
            assert after.shape == (OUTCOMES,)
            assert after.sum() == pytest.approx(1, abs=1e-12)
            assert after.min() > 0


def test_bits_add_up_the_distribution_of_each_byte_and_of_the_end() -> None:
    model = NgramModel.fit(texts(60, seed=3), 4)
    text = "ab cé"
    steps = [model.distribution(text.encode()[:i].decode("utf-8", "ignore")) for i in range(4)]
    expected = sum(-math.log2(step[byte]) for step, byte in zip(steps, b"ab c", strict=True))
    assert model.bits("ab c") == pytest.approx(expected - math.log2(model.distribution("ab c")[-1]))
    assert model.bits(text) < model.bits(text + "\ud800") < math.inf


def test_a_text_costs_the_same_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = NgramModel.fit(texts(60, seed=3), 4), texts(30, seed=4)
    together = model.bits_each(asked)
    assert together.tolist() == [model.bits(text) for text in asked]
    monkeypatch.setattr("finetune.ngrams.BLOCK", 7)
    assert model.bits_each(asked).tolist() == together.tolist()
    assert model.bits_each([]).tolist() == []


def test_what_stands_before_a_text_is_read_and_costs_nothing() -> None:
    model = NgramModel.fit(texts(60, seed=3), 4)
    prompts, asked = ["ab", "", "é狗", "\ud83d"], ["cé", "ab", "", "\ude00 d"]
    found = model.bits_each(asked, prompts)
    assert found.tolist() == [float(model.bits_each([one], [two])[0]) for one, two in zip(asked, prompts, strict=True)]
    for bits, prompt, text in zip(found, prompts, asked, strict=True):
        symbols, cost = prompt.encode("utf-8", "surrogatepass"), 0.0
        for byte in (*text.encode("utf-8", "surrogatepass"), -1):  # -1: the end
            cost -= math.log2(model._after([BEGIN, *symbols])[byte])
            symbols += bytes([byte]) if byte >= 0 else b""
        assert bits == pytest.approx(cost, rel=1e-9)
    pairs = NgramModel.fit([f"{word}\n{answer}" for word, answer in (("one", "A"), ("two", "B"))] * 20, 5)
    assert pairs.bits_each(["A"], ["one\n"])[0] < 0.5 < 5 < pairs.bits_each(["B"], ["one\n"])[0]


def test_the_order_is_the_one_that_guesses_held_out_text_best() -> None:
    pure = ["".join(np.random.default_rng(5).choice([*"abcd"], 20_000))]
    assert NgramModel.fit(pure).order == 3  # nothing to learn from longer histories
    repeated = [("abcdefghij" * 3 + "abcdefghik") * 300]
    assert NgramModel.fit(repeated).order > 3
    assert NgramModel.fit(["one"]).order == 3  # too short to hold anything out


def test_it_learns_what_is_there_to_learn() -> None:
    train, test = texts(400, seed=6), texts(400, seed=6)[:50]
    size = sum(len(text.encode()) + 1 for text in test)
    bits = [NgramModel.fit(train, order).bits_each(test).sum() / size for order in (1, 2, 4)]
    assert bits[0] > bits[1] + 0.3 > bits[2] + 0.6


def test_samples_are_of_the_seed_and_look_like_train() -> None:
    model = NgramModel.fit(["abcabcabc"] * 50, 4)
    assert model.sample(1, 100) == model.sample(1, 100)
    assert len({model.sample(seed, 100) for seed in range(20)}) > 1
    assert model.sample(2, 4) == "abca"
    assert model.sample(2, 3, before="ab").startswith("ca")
    assert model.sample(1, 0) == ""
    assert NgramModel.fit(["ab"] * 50, 4).sample(1, 100) == "ab"  # it ends
    assert NgramModel.fit(["éé"] * 50, 4).sample(1, 3) == "é"  # without half a character


def test_errors_name_the_orders_that_fit() -> None:
    with pytest.raises(UserError, match="no text") as empty:
        NgramModel.fit([])
    assert empty.value.code == Exit.BAD_DATA
    with pytest.raises(UserError, match="allow 1 to 9") as long:
        NgramModel.fit(["".join(map(chr, range(32, 120)))], 10)
    assert long.value.code == Exit.USAGE
    with pytest.raises(UserError, match="n-grams of order 0"):
        NgramModel.fit(["a"], 0)
    assert NgramModel.fit([bytes(range(128)).decode(), "é狗"], 7).name == "byte 7-grams, Kneser-Ney"


def test_no_order_is_tried_that_does_not_fit_and_short_texts_have_long_orders_too() -> None:
    varied = "".join(map(chr, [*range(32, 160)]))  # 8 bits a byte: 8 of them in a number
    assert NgramModel.fit([(varied + "x" + varied[::-1]) * 60]).order <= 8
    model = NgramModel.fit(["abc"] * 20, 8)
    assert model.bits("abc") < 1 < model.bits("a") < math.inf
