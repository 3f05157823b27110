"""Search: against brute force and a plain beam, alone as in a batch, within its rules; samples as the distribution."""

import dataclasses
import itertools
import math
from typing import Self

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from finetune import config as configuration
from finetune.errors import Exit, UserError
from finetune.seq2seq import search as search_module
from finetune.seq2seq.search import (
    Hypothesis,
    SearchConfig,
    draw,
    forbid_repeated_ngrams,
    keep_likely,
    penalise_repetition,
    search,
    search_all,
)

PAD, UNK, BOS, EOS = range(4)
CONTEXTS = 997  # rows of the table


@dataclasses.dataclass
class Memory:
    key: Tensor  # (rows,)

    def select(self, rows: Tensor) -> Self:
        return type(self)(self.key[rows])


@dataclasses.dataclass
class State:
    key: Tensor  # (rows,)
    context: Tensor  # (rows,)
    model: "Table"

    def select(self, rows: Tensor) -> Self:
        self.model.selections += 1
        return type(self)(self.key[rows], self.context[rows], self.model)


class Table:
    """A model whose logits are a row of a random table, which the source and all tokens so far choose.

    It notices a state that is not of its memory's sentence, and a history that is not of its own row changes its
    logits. `rows` holds how many rows each step had.
    """

    def __init__(self, seed: int, real_tokens: int = 6, eos: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(CONTEXTS, 4 + real_tokens, generator=generator) * 1.5
        self.table[:, EOS] += eos
        self.rows: list[int] = []
        self.selections = 0

    def encode(self, source: Tensor, source_mask: Tensor) -> Memory:
        places = torch.arange(1, source.shape[1] + 1)
        return Memory(((source + 7) * places * source_mask).sum(1) % CONTEXTS)

    def start(self, memory: Memory) -> State:
        return State(memory.key, memory.key, self)

    def step(self, previous: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        key = memory.key.repeat_interleave(len(previous) // len(memory.key))
        assert torch.equal(state.key, key), "rows of state and memory are of different sentences"
        assert not torch.is_grad_enabled()
        self.rows.append(len(previous))
        context = (state.context * 31 + previous + 1) % CONTEXTS
        return self.table[context], State(key, context, self)

    def log_probabilities(self, source: list[int], tokens: tuple[int, ...]) -> Tensor:
        """Return the log-probabilities (vocab,) of what follows `tokens`."""
        context = int(self.encode(*batch_of([source])).key)
        for token in (BOS, *tokens):
            context = (context * 31 + token + 1) % CONTEXTS
        return self.table[context].log_softmax(0)


class Fixed(Table):
    """A model with the same logits at each step."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__(0, len(logits) - 4)
        self.table = torch.tensor(logits).expand(CONTEXTS, -1).clone()


class Timed(Table):
    """A model whose logits follow from the time alone: (time, vocab)."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(0, logits.shape[1] - 4)
        self.table = logits

    def start(self, memory: Memory) -> State:
        return State(memory.key, torch.zeros_like(memory.key), self)

    def step(self, previous: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        return self.table[state.context], State(state.key, state.context + 1, self)


def batch_of(sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sources))
    source = torch.tensor([row + [PAD] * (longest - len(row)) for row in sources])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in sources])
    return source, mask


def sentences(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [[*torch.randint(4, 10, (length,), generator=generator).tolist(), EOS] for length in lengths]


def run(model: Table, sources: list[list[int]], config: SearchConfig, seed: int = 0) -> list[list[Hypothesis]]:
    return search(model, *batch_of(sources), config, seed=seed)


def ranked(found: list[tuple[tuple[int, ...], float]], config: SearchConfig) -> list[Hypothesis]:
    hypotheses = [
        Hypothesis(tokens, value / (len(tokens) + 1) ** config.length_penalty, value) for tokens, value in found
    ]
    return sorted(hypotheses, key=lambda one: -one.score)[: config.num_return_sequences]


def plain_beam(model: Table, source: list[int], config: SearchConfig, longest: int) -> list[Hypothesis]:
    """Search one sentence with lists, to the end, in the way that the module describes."""
    open_: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    for time in range(longest + 1):
        candidates = []
        for tokens, value in open_:
            following = model.log_probabilities(source, tokens)
            allowed = [EOS] if time == longest else range(EOS + (time < config.min_new_tokens), len(following))
            candidates += [(value + float(following[token]), tokens, token) for token in allowed]
        candidates.sort(key=lambda one: -one[0])
        candidates = candidates[: config.beam_size - len(ended)]
        ended += [(tokens, value) for value, tokens, token in candidates if token == EOS]
        open_ = [((*tokens, token), value) for value, tokens, token in candidates if token != EOS]
    return ranked(ended, config)


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], rel=1e-5)
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in expected], rel=1e-5)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("returned", [1, 4, 39])
def test_a_beam_of_full_width_finds_what_brute_force_finds(length_penalty: float, returned: int) -> None:
    config = SearchConfig(
        beam_size=39, num_return_sequences=returned, length_penalty=length_penalty, max_new_tokens=3
    )  # 3 + 9 + 27 sequences of 3 tokens
    sources = sentences(6)
    for seed in range(4):
        model = Table(seed, real_tokens=3)
        for source, found in zip(sources, run(model, sources, config), strict=True):
            outputs = []
            for length in (1, 2, 3):
                for tokens in itertools.product((4, 5, 6), repeat=length):
                    parts = [model.log_probabilities(source, tokens[:time])[token] for time, token in enumerate(tokens)]
                    outputs.append((tokens, float(sum(parts) + model.log_probabilities(source, tokens)[EOS])))
            assert_same(found, ranked(outputs, config))


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize(("beam", "returned"), [(1, 1), (2, 1), (3, 3), (5, 2), (8, 8)])
def test_a_narrow_beam_finds_what_a_plain_one_finds(length_penalty: float, beam: int, returned: int) -> None:
    config = SearchConfig(
        beam_size=beam,
        num_return_sequences=returned,
        length_penalty=length_penalty,
        max_new_tokens=9,
        min_new_tokens=2,
    )
    sources = sentences(12)
    model = Table(beam, eos=1.0)
    for source, found in zip(sources, run(model, sources, config), strict=True):
        assert_same(found, plain_beam(model, source, config, 9))


def test_a_beam_of_one_is_greedy() -> None:
    sources = sentences(20)
    model = Table(1, eos=1.0)
    found = run(model, sources, SearchConfig(beam_size=1))
    for source, (hypothesis,) in zip(sources, found, strict=True):
        tokens: tuple[int, ...] = ()
        longest = int(1.5 * len(source)) + 20
        while len(tokens) < longest:
            token = int(model.log_probabilities(source, tokens)[EOS + (not tokens) :].argmax()) + EOS + (not tokens)
            if token == EOS:
                break
            tokens = (*tokens, token)
        assert hypothesis.tokens == tokens


@pytest.mark.parametrize("length_penalty", [-2.0, -0.5, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("returned", [1, 3])
def test_stopping_early_saves_rows_and_changes_nothing(
    length_penalty: float, returned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SearchConfig(beam_size=6, num_return_sequences=returned, length_penalty=length_penalty, max_new_tokens=12)
    sources = sentences(40)
    stopping, going_on = Table(2), Table(2)
    found = run(stopping, sources, config)
    monkeypatch.setattr(search_module, "_is_settled", lambda beams, values, config: values.amax(1) == -math.inf)
    assert found == run(going_on, sources, config)
    assert sum(stopping.rows) < sum(going_on.rows)


@pytest.mark.parametrize("longest", [60, 80])
def test_a_long_output_may_still_overtake_one_that_ended(longest: int) -> None:
    logits = torch.full((81, 6), -60.0)
    logits[0, 4] = 0.0
    logits[1, [EOS, 4]] = torch.tensor([0.9, 0.1]).log()
    logits[2:60, 4] = 0.0  # what goes on costs nothing more
    logits[60:, EOS] = 0.0
    config = SearchConfig(beam_size=2, max_new_tokens=longest)
    assert [len(one.tokens) for one in run(Timed(logits), [[4, EOS]], config)[0]] == [60]  # 2.3 / 61 < 0.105 / 2
    config = SearchConfig(beam_size=2, max_new_tokens=longest, length_penalty=0.5)
    assert [len(one.tokens) for one in run(Timed(logits), [[4, EOS]], config)[0]] == [1]  # 2.3 / 61^0.5 > 0.105 / 2^0.5


SETTINGS = [
    SearchConfig(beam_size=1),
    SearchConfig(num_return_sequences=3),
    SearchConfig(beam_size=4, no_repeat_ngram_size=2, repetition_penalty=1.3, length_penalty=0.5),
    SearchConfig(do_sample=True, num_return_sequences=3),
    SearchConfig(do_sample=True, top_k=4, top_p=0.9, temperature=1.5),
]


@pytest.mark.parametrize("config", SETTINGS, ids=range(len(SETTINGS)))
def test_a_sentence_alone_a_padded_batch_and_another_order_give_the_same(config: SearchConfig) -> None:
    sources = sentences(30)
    model = Table(3, eos=0.5)
    alone = [run(model, [source], config, seed=5)[0] for source in sources]
    assert run(model, sources, config, seed=5) == alone
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)).tolist()
    assert run(model, [sources[index] for index in order], config, seed=5) == [alone[index] for index in order]


def test_hypotheses_are_distinct_and_sorted_and_carry_the_models_own_probability() -> None:
    sources = sentences(20)
    model = Table(4, eos=1.0)
    config = SearchConfig(beam_size=5, num_return_sequences=5, length_penalty=0.7)
    for source, found in zip(sources, run(model, sources, config), strict=True):
        assert len({one.tokens for one in found}) == 5
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in found:
            steps = enumerate((*one.tokens, EOS))
            value = sum(float(model.log_probabilities(source, one.tokens[:time])[token]) for time, token in steps)
            assert one.log_probability == pytest.approx(value, rel=1e-5)
            assert one.score == pytest.approx(value / (len(one.tokens) + 1) ** 0.7, rel=1e-5)


@pytest.mark.parametrize("sampling", [False, True])
def test_lengths_stay_between_the_minimum_and_the_maximum(sampling: bool) -> None:
    for eos in (-9.0, 9.0):
        config = SearchConfig(
            min_new_tokens=3, max_new_tokens=7, num_return_sequences=4, do_sample=sampling, length_penalty=0
        )
        found = run(Table(5, eos=eos), sentences(10), config)
        lengths = {len(one.tokens) for hypotheses in found for one in hypotheses}
        assert lengths <= {3, 4, 5, 6, 7}
        assert (3 if eos > 0 else 7) in lengths


def test_the_longest_output_follows_from_the_source_alone() -> None:
    never = Fixed([0.0] * EOS + [-1e9] + [0.0] * 3)
    sources = [[4] * 9 + [EOS], [4, EOS]]
    found = run(never, sources, SearchConfig(beam_size=2))
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [35, 23]
    higher = run(never, sources, SearchConfig(beam_size=2, min_new_tokens=30))
    assert [len(hypotheses[0].tokens) for hypotheses in higher] == [35, 30]


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(size: int, sampling: bool) -> None:
    def repeats(found: list[list[Hypothesis]]) -> int:
        count = 0
        for one in (one for hypotheses in found for one in hypotheses):
            ngrams = [one.tokens[start : start + size] for start in range(len(one.tokens) - size + 1)]
            count += len(ngrams) - len(set(ngrams))
        return count

    model, sources = Table(6, real_tokens=3, eos=-9.0), sentences(10)

    def settings(no_repeat: int) -> SearchConfig:
        return SearchConfig(
            no_repeat_ngram_size=no_repeat, do_sample=sampling, num_return_sequences=2, max_new_tokens=30
        )

    assert repeats(run(model, sources, settings(0))) > 0
    found = run(model, sources, settings(size))
    assert repeats(found) == 0
    assert all(len(hypotheses) == 2 for hypotheses in found)  # with all else forbidden they end


def test_an_output_ends_below_the_minimum_where_repetition_forbids_all_else() -> None:
    config = SearchConfig(no_repeat_ngram_size=1, min_new_tokens=5, max_new_tokens=9, beam_size=2)
    found = run(Table(6, real_tokens=3), sentences(4), config)
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [3, 3, 3, 3]


def test_ngrams_are_forbidden_where_they_would_repeat_and_nowhere_else() -> None:
    logits = torch.zeros(2, 8)
    forbid_repeated_ngrams(logits, torch.tensor([[4, 5, 6, 4, 5], [4, 5, 6, 7, 5]]), 3)
    assert logits.isinf().nonzero().tolist() == [[0, 6]]
    logits = torch.zeros(2, 8)
    forbid_repeated_ngrams(logits, torch.tensor([[4, 5, 6, 4, 5], [4, 5, 6, 7, 5]]), 2)
    assert logits.isinf().nonzero().tolist() == [[0, 6], [1, 6]]


def test_a_repetition_penalty_turns_to_the_next_best_token() -> None:
    model = Fixed([0.0, 0.0, 0.0, -5.0, 2.0, 1.5, 1.2])
    plain = run(model, [[4, EOS]], SearchConfig(beam_size=1, max_new_tokens=4))
    assert plain[0][0].tokens == (4, 4, 4, 4)
    held = run(model, [[4, EOS]], SearchConfig(beam_size=1, max_new_tokens=4, repetition_penalty=1.5))
    assert held[0][0].tokens == (4, 5, 4, 4)  # 2 -> 1.33 < 1.5; then 1.33 > 1.2 > 1.5 / 1.5


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    tokens = torch.tensor([[2, 4, 5, 4], [2, 7, 7, 6]])
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(tokens, logits.clone())
    torch.testing.assert_close(penalise_repetition(logits, tokens, 1.7), expected)


@pytest.mark.parametrize("sampling", [False, True])
def test_pad_and_bos_are_never_written_and_unk_only_where_it_may(sampling: bool) -> None:
    model = Fixed([9.0, 8.0, 9.0, 0.0, 1.0, 1.0])
    written = {}
    for allow in (False, True):
        config = SearchConfig(
            do_sample=sampling, num_return_sequences=5, allow_unk=allow, max_new_tokens=4, length_penalty=0
        )
        written[allow] = {token for one in run(model, [[4, EOS]], config)[0] for token in one.tokens}
    assert written[False] <= {4, 5}
    assert {UNK} <= written[True] <= {UNK, 4, 5}


@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k: int, top_p: float) -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * 2
    expected = logits.clone()
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.zeros(0), expected)
    expected = TopPLogitsWarper(top_p)(torch.zeros(0), expected)
    assert torch.equal(keep_likely(logits, top_k, top_p), expected)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (SearchConfig(do_sample=True), [4, 5, 6, 7]),
        (SearchConfig(do_sample=True, temperature=0.5), [4, 5, 6, 7]),
        (SearchConfig(do_sample=True, temperature=2.0, top_k=3), [4, 5, 6]),
        (SearchConfig(do_sample=True, top_p=0.7), [4, 5]),
    ],
)
def test_samples_come_as_often_as_they_are_probable(config: SearchConfig, kept: list[int]) -> None:
    logits = [3.0, 3.0, 3.0, 3.0, 1.0, 0.5, 0.0, -1.0]
    samples = 4_000
    many = dataclasses.replace(config, num_return_sequences=samples, max_new_tokens=1)
    drawn = [one.tokens[0] for one in run(Fixed(logits), [[4, EOS]], many)[0]]
    probability = (torch.tensor(logits)[kept] / config.temperature).softmax(0).tolist()
    assert set(drawn) == set(kept)
    for token, expected in zip(kept, probability, strict=True):
        sigma = math.sqrt(samples * expected * (1 - expected))
        assert abs(drawn.count(token) - samples * expected) < 4 * sigma


def test_the_least_and_the_largest_number_draw_no_forbidden_token() -> None:
    inf = math.inf
    logits = torch.tensor([[-inf, -inf, 0.3, 0.1, 0.2, -inf, -inf]] * 2)
    drawn = torch.tensor([0.0, 1 - 2.0**-32], dtype=torch.float64)
    assert draw(logits, drawn, SearchConfig()).tolist() == [2, 4]


def test_samples_are_a_function_of_seed_and_number() -> None:
    model, sources = Table(7), sentences(10)
    config = SearchConfig(do_sample=True, num_return_sequences=4)
    first = run(model, sources, config, seed=1)
    torch.manual_seed(3)
    torch.rand(5)  # the global state has no say
    assert first == run(model, sources, config, seed=1)
    assert first != run(model, sources, config, seed=2)
    assert all(len({one.tokens for one in hypotheses}) > 1 for hypotheses in first)
    single = run(model, sources, SearchConfig(do_sample=True), seed=1)
    assert all(one[0] in several for one, several in zip(single, first, strict=True))


def test_ended_hypotheses_and_sentences_leave_the_batch() -> None:
    model, sources = Table(8, eos=1.5), sentences(30)
    config = SearchConfig(beam_size=4, num_return_sequences=4)
    found = run(model, sources, config)
    longest = [max(len(one.tokens) for one in hypotheses) for hypotheses in found]
    assert sum(model.rows) <= sum(1 + 4 * length for length in longest)
    for source, hypotheses in zip(sources, found, strict=True):
        model.rows.clear()
        run(model, [source], config)
        assert sum(model.rows) <= 1 + sum(len(one.tokens) for one in hypotheses)  # a row ends with its hypothesis


def test_greedy_search_copies_no_state_before_a_sentence_ends() -> None:
    model = Fixed([0.0] * EOS + [-9.0, 1.0, 2.0])
    run(model, [[4, EOS], [5, EOS]], SearchConfig(beam_size=1, max_new_tokens=12))
    assert model.rows == [2] * 13
    assert model.selections == 1


@pytest.mark.parametrize("config", SETTINGS, ids=range(len(SETTINGS)))
def test_search_all_returns_in_the_order_of_its_sources_whatever_the_batches(config: SearchConfig) -> None:
    model, sources = Table(10, eos=0.5), sentences(15)
    alone = [run(model, [source], config, seed=2)[0] for source in sources]
    for tokens in (1, 40, 100_000):
        model.rows.clear()
        assert search_all(model, sources, config, seed=2, tokens_per_batch=tokens) == alone
        width = config.num_return_sequences if config.do_sample else config.beam_size
        assert max(model.rows) <= max(width, tokens // 2)  # a source has two tokens at least
    assert search_all(model, [], config, seed=2) == []


@pytest.mark.parametrize(
    "settings",
    [
        ["beam_size=0"],
        ["beam_size=-1"],
        ["num_return_sequences=0"],
        ["num_return_sequences=6"],
        ["beam_size=2", "num_return_sequences=3"],
        ["max_new_tokens=0"],
        ["min_new_tokens=-1"],
        ["max_new_tokens=4", "min_new_tokens=5"],
        ["no_repeat_ngram_size=-1"],
        ["repetition_penalty=0"],
        ["repetition_penalty=.nan"],
        ["length_penalty=.inf"],
        ["do_sample=true", "temperature=0"],
        ["top_p=0"],
        ["top_p=1.1"],
        ["top_k=-1"],
        ["beam=5"],
    ],
)
def test_wrong_settings_are_refused_by_name(settings: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        configuration.load(SearchConfig, settings)
    assert refused.value.code == Exit.USAGE
    assert settings[-1].split("=")[0] in str(refused.value)


def test_any_number_of_samples_may_be_asked_for() -> None:
    config, _ = configuration.load(SearchConfig, ["do_sample=true", "num_return_sequences=9"])
    assert len(run(Table(11), sentences(2), config)[0]) == 9


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value: float, sampling: bool) -> None:
    model = Fixed([0.0, 0.0, 0.0, 0.0, value, 0.0])
    with pytest.raises(UserError, match="not finite") as failed:
        run(model, [[4, EOS]], SearchConfig(do_sample=sampling))
    assert failed.value.code == Exit.DIVERGED
