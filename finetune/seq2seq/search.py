"""Decoding of sequence-to-sequence models: greedy, beam search and sampling, batched, each sentence as if alone.

A sentence has `beam_size` slots. At each step the best continuations of its open hypotheses, by log-probability, fill
the slots that are left. One that ends keeps its slot and leaves the batch, so that the beam narrows (Sutskever et al.
2014, section 3.2), and the sentence leaves once nothing open can overtake what it keeps. Greedy decoding is a beam of
one; a sample is a beam of one whose next token is drawn.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Protocol, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from finetune import processes
from finetune.config import configclass, field
from finetune.data.batching import evaluation_batches, pad_and_mask
from finetune.errors import Exit, UserError
from finetune.seq2seq.vocabulary import BOS, EOS, PAD, UNK

MAX_PER_SOURCE_TOKEN = 1.5
MAX_MORE = 20
UNIFORM_STEPS = 2**32
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


def not_above_the_maximum(shortest: int, info: ValidationInfo) -> int:
    """Refuse min_new_tokens above max_new_tokens, which stands before it: raises ValueError."""
    longest = info.data.get("max_new_tokens")
    if longest is not None and shortest > longest:
        raise ValueError(f"more than max_new_tokens={longest}")
    return shortest


@configclass
class SearchConfig:
    """Settings of decoding, named as in transformers.GenerationConfig; lengths count tokens without bos and eos."""

    beam_size: Positive = field(5, "hypotheses followed for a sentence; 1: greedy; do_sample does not use it")
    do_sample: bool = field(False, "draw tokens instead of searching for the most probable ones")
    num_return_sequences: Positive = field(
        1, "hypotheses returned for a sentence, at most beam_size of them, or samples"
    )
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = field(
        1.0, "score = log-probability / (tokens + 1)^length_penalty; 0: short ones win"
    )
    max_new_tokens: Positive | None = field(None, "longest output; null: 1.5 x source tokens + 20")
    min_new_tokens: NotNegative = field(1, "shortest output")
    no_repeat_ngram_size: NotNegative = field(0, "no so many tokens in a row come twice in an output; 0: they may")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = field(1.0, "above 1: a token written before costs more")
    allow_unk: bool = field(False, "the unknown token may be written")
    temperature: Annotated[float, Field(gt=0, le=1e6)] = field(1.0, "of do_sample; below 1: likely tokens more often")
    top_k: NotNegative = field(0, "of do_sample: draw among so many most probable tokens; 0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(
        1.0, "of do_sample: draw among the fewest tokens with this probability"
    )

    def greedy(self) -> Self:
        """Return the same settings with a beam of one, for looks during training."""
        return dataclasses.replace(self, beam_size=1, num_return_sequences=1, do_sample=False)

    @field_validator("num_return_sequences")
    @classmethod
    def _fits_the_beam(cls, count: int, info: ValidationInfo) -> int:
        beam, sampling = info.data.get("beam_size", count), info.data.get("do_sample", False)
        if count > beam and not sampling:
            raise ValueError(f"a beam of {beam} has no more than {beam}; give a larger beam_size")
        return count

    _fits_the_maximum = field_validator("min_new_tokens")(not_above_the_maximum)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One output: tokens without bos and eos, log-probability with eos, and that over (tokens + 1)^length_penalty."""

    tokens: tuple[int, ...]
    score: float
    log_probability: float


class Selectable(Protocol):
    """Tensors whose first axis are rows."""

    def select(self, rows: Tensor) -> Self:
        """Return the given rows, in their order; a row may come several times."""


Memory = TypeVar("Memory", bound=Selectable)
State = TypeVar("State", bound=Selectable)


class Model(Protocol[Memory, State]):
    """What search needs of a model; it is in eval mode. Masks: True = a real token."""

    def encode(self, source: Tensor, source_mask: Tensor) -> Memory:
        """Read sources (batch, source)."""

    def start(self, memory: Memory) -> State:
        """Return the state before the first step."""

    def step(self, previous: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Read the previous token (rows,) of each row; return logits (rows, vocab).

        The memory has one row for each block of equally many rows, the hypotheses of one sentence.
        """


@dataclasses.dataclass
class _Beams:
    """The open hypotheses of the sentences that are still at work, in a grid that is as wide as the widest sentence.

    The model's rows are the places of the grid, sentence by sentence; a place without a hypothesis is carried along.
    """

    sentence: Tensor  # (sentences,) number in the batch
    maximum: Tensor  # (sentences,) longest output
    ended: Tensor  # (sentences,) slots whose hypothesis has ended
    best: Tensor  # (sentences, returned) float64, best scores of ended hypotheses; -inf where there are fewer
    log_probability: Tensor  # (sentences, width), -inf where there is no hypothesis
    tokens: Tensor  # (sentences * width, 1 + time), from bos on

    @property
    def time(self) -> int:
        """Return how many tokens each open hypothesis has."""
        return self.tokens.shape[1] - 1


@dataclasses.dataclass(frozen=True)
class _Continuations:
    """The best continuations of each sentence, best first: each (sentences, slots)."""

    log_probability: Tensor  # -inf where the sentence has no such slot or no such continuation
    parent: Tensor  # the row that is continued
    token: Tensor

    def only(self, which: Tensor) -> Self:
        """Return the same with -inf but for some: (sentences, slots) bool."""
        return dataclasses.replace(self, log_probability=self.log_probability.masked_fill(~which, -math.inf))


@dataclasses.dataclass(frozen=True)
class _Ended:
    """Hypotheses that ended in one step."""

    sentence: Tensor  # (hypotheses,)
    log_probability: Tensor  # (hypotheses,)
    tokens: Tensor  # (hypotheses, time)


@torch.no_grad()
def search(
    model: Model[Memory, State], source: Tensor, source_mask: Tensor, config: SearchConfig, *, seed: int
) -> list[list[Hypothesis]]:
    """Decode a batch of sources (batch, source); return the hypotheses of each sentence, best score first.

    A beam search returns the num_return_sequences best of what it ended. Every hypothesis ends with eos; one that
    reaches its longest length ends there at the price of eos. Samples are a function of seed, source and number.
    Raises UserError 70 where the model's logits are not finite.
    """
    copies = config.num_return_sequences if config.do_sample else 1
    memory = model.encode(source, source_mask)
    if copies > 1:
        memory = memory.select(torch.arange(len(source), device=source.device).repeat_interleave(copies))
    beams = _first(source_mask, config, copies)
    uniform = _uniform(source, source_mask, beams.maximum, copies, seed) if config.do_sample else None
    state = model.start(memory)
    ended: list[_Ended] = []
    while len(beams.sentence):
        logits, state = model.step(beams.tokens[:, -1], state, memory)
        drawn = None if uniform is None else uniform[beams.sentence, beams.time]
        found = _continue(beams, logits, config, drawn)
        beams, staying, rows = _advance(beams, found, ended, config)
        if not _is_identity(rows, len(logits)):
            state = state.select(rows)
        if len(staying) < len(found.token):
            memory = memory.select(staying)
    return _ranked(ended, len(source), copies, config)


def search_all(
    model: Model[Memory, State],
    sources: Sequence[Sequence[int] | np.ndarray],
    config: SearchConfig,
    *,
    seed: int,
    tokens_per_batch: int = 4096,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """Decode any number of sources (token numbers that end with eos), in batches of similar lengths, in their order.

    `tokens_per_batch` bounds the padded source tokens of a batch times the hypotheses of a sentence.
    """
    width = config.num_return_sequences if config.do_sample else config.beam_size
    lengths = np.array([len(source) for source in sources], dtype=np.int64)
    outputs: list[list[Hypothesis]] = [[] for _ in sources]
    batches = evaluation_batches(lengths, len(sources), max(1, tokens_per_batch // width))

    def decode(numbers: np.ndarray) -> list[list[Hypothesis]]:
        source, mask = (part.to(device) for part in pad_and_mask([sources[number] for number in numbers], PAD))
        return search(model, source, mask, config, seed=seed)

    for numbers, found in zip(batches, processes.shared(batches, decode), strict=True):
        for number, one in zip(numbers, found, strict=True):
            outputs[number] = one
    return outputs


# One step


def _first(source_mask: Tensor, config: SearchConfig, copies: int) -> _Beams:
    """Return one open hypothesis, bos, for each sentence, or for each of its samples."""
    lengths = source_mask.sum(1).repeat_interleave(copies)
    sentences, device = len(lengths), lengths.device
    if config.max_new_tokens is not None:
        maximum = torch.full_like(lengths, config.max_new_tokens)
    else:
        maximum = (lengths * MAX_PER_SOURCE_TOKEN).long() + MAX_MORE
    returned = 1 if config.do_sample else config.num_return_sequences
    return _Beams(
        sentence=torch.arange(sentences, device=device),
        maximum=maximum.clamp(min=config.min_new_tokens),
        ended=torch.zeros(sentences, dtype=torch.long, device=device),
        best=torch.full((sentences, returned), -math.inf, dtype=torch.float64, device=device),
        log_probability=torch.zeros(sentences, 1, device=device),
        tokens=torch.full((sentences, 1), BOS, device=device),
    )


def _continue(beams: _Beams, logits: Tensor, config: SearchConfig, drawn: Tensor | None) -> _Continuations:
    """Choose the continuations of each sentence from logits (rows, vocab).

    The best of a sentence are among the best of its rows, so the vocabulary is searched once, row by row.
    """
    if config.repetition_penalty != 1:
        logits = penalise_repetition(logits, beams.tokens, config.repetition_penalty)
    scores = logits.log_softmax(dim=1, dtype=torch.float32)  # (rows, vocab), before anything is forbidden
    if scores[:, EOS].isnan().any():  # one bad logit makes its whole row NaN
        raise UserError(Exit.DIVERGED, "the model's logits are not finite: its weights are damaged or it has diverged")
    _forbid(scores, beams, config)
    slots = 1 if config.do_sample else config.beam_size
    if drawn is not None:
        tokens = draw(scores, drawn, config)[:, None]  # (rows, 1)
        values = scores.gather(1, tokens)
    else:
        values, tokens = scores.topk(min(slots, scores.shape[1]), dim=1, sorted=False)  # (rows, candidates)
    sentences, width = beams.log_probability.shape
    values = values + beams.log_probability.view(-1, 1)
    values, tokens = values.view(sentences, -1), tokens.view(sentences, -1)  # (sentences, width * candidates)
    best, index = values.topk(min(slots, values.shape[1]), dim=1)  # (sentences, slots)
    place = index // (values.shape[1] // width)
    first = torch.arange(0, sentences * width, width, device=logits.device)
    free = torch.arange(best.shape[1], device=logits.device) < slots - beams.ended[:, None]
    return _Continuations(best, first[:, None] + place, tokens.gather(1, index)).only(free)


def _advance(
    beams: _Beams, found: _Continuations, ended: list[_Ended], config: SearchConfig
) -> tuple[_Beams, Tensor, Tensor]:
    """Put hypotheses that end into `ended`; return the beams of the next step, which of the sentences stay in it, and
    the row that each of its rows continues."""
    ends = (found.token == EOS) & (found.log_probability > -math.inf)
    if ends.any():
        beams = _end(beams, found.only(ends), ended, config)
        found = found.only(~ends)
    staying = (~_is_settled(beams, found.log_probability, config)).nonzero()[:, 0]
    log_probability = found.log_probability[staying]
    width = int((log_probability > -math.inf).sum(1).amax()) if len(staying) else 0
    log_probability, slot = log_probability.topk(width, dim=1)  # what is open moves to the left
    rows = found.parent[staying].gather(1, slot).flatten()
    token = found.token[staying].gather(1, slot).view(-1, 1)
    following = _Beams(
        sentence=beams.sentence[staying],
        maximum=beams.maximum[staying],
        ended=beams.ended[staying],
        best=beams.best[staying],
        log_probability=log_probability,
        tokens=torch.cat([beams.tokens[rows], token], dim=1),
    )
    return following, staying, rows


def _end(beams: _Beams, ends: _Continuations, ended: list[_Ended], config: SearchConfig) -> _Beams:
    """Record hypotheses that end, close their slots and update the best scores of their sentences."""
    which = ends.log_probability > -math.inf
    place, slot = which.nonzero(as_tuple=True)
    tokens = beams.tokens[ends.parent[place, slot], 1:]
    ended.append(_Ended(beams.sentence[place], ends.log_probability[place, slot], tokens))
    scores = ends.log_probability.double() / (beams.time + 1) ** config.length_penalty
    best = torch.cat([beams.best, scores], dim=1).topk(beams.best.shape[1], dim=1).values
    return dataclasses.replace(beams, best=best, ended=beams.ended + which.sum(1))


def _is_settled(beams: _Beams, log_probability: Tensor, config: SearchConfig) -> Tensor:
    """Return for which sentences no open hypothesis can still beat the worst that would be returned: (sentences,).

    log_probability: (sentences, slots) of the hypotheses one token on, -inf where none is open. It can only fall, so
    the best score within reach divides it by the longest length where the penalty is positive, else by the shortest.
    """
    if config.length_penalty > 0:
        length = beams.maximum + 1
    else:
        length = torch.full_like(beams.maximum, max(beams.time + 1, config.min_new_tokens) + 1)
    reach = log_probability.amax(1).double() / length.double() ** config.length_penalty
    return beams.best[:, -1] >= reach


def _ranked(ended: list[_Ended], sentences: int, copies: int, config: SearchConfig) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each sentence; of equal ones, the one that ended first."""
    found: list[list[Hypothesis]] = [[] for _ in range(sentences)]
    for step in ended:
        length = step.tokens.shape[1] + 1
        numbers, values, rows = step.sentence.tolist(), step.log_probability.tolist(), step.tokens.tolist()
        for number, value, tokens in zip(numbers, values, rows, strict=True):
            found[number // copies].append(Hypothesis(tuple(tokens), value / length**config.length_penalty, value))
    return [sorted(all_, key=lambda one: -one.score)[: config.num_return_sequences] for all_ in found]


# What may come next


def _forbid(scores: Tensor, beams: _Beams, config: SearchConfig) -> None:
    """Set the scores (rows, vocab) of tokens that may not come next to -inf, in place.

    Where the longest length is reached, or repetition forbids all else, only eos may come.
    """
    eos = scores[:, EOS].clone()
    scores[:, [PAD, BOS] if config.allow_unk else [PAD, BOS, UNK]] = -math.inf
    if beams.time < config.min_new_tokens:
        scores[:, EOS] = -math.inf
    width = beams.log_probability.shape[1]
    must_end = (beams.maximum == beams.time).repeat_interleave(width)  # (rows,)
    if config.no_repeat_ngram_size:
        forbid_repeated_ngrams(scores, beams.tokens[:, 1:], config.no_repeat_ngram_size)
        must_end = must_end | (scores.amax(1) == -math.inf)
    if must_end.any():
        scores[must_end] = -math.inf
        scores[must_end, EOS] = eos[must_end]


def forbid_repeated_ngrams(scores: Tensor, tokens: Tensor, size: int) -> None:
    """Set to -inf, in place, each token that would complete an n-gram of `tokens` (rows, time) a second time."""
    if tokens.shape[1] < size:
        return
    ngrams = tokens.unfold(1, size, 1)  # (rows, places, size)
    begun = tokens[:, tokens.shape[1] - size + 1 :]  # (rows, size - 1)
    rows, places = (ngrams[:, :, :-1] == begun[:, None]).all(2).nonzero(as_tuple=True)
    scores[rows, ngrams[rows, places, -1]] = -math.inf


def penalise_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of `tokens` (rows, time) (Keskar et al. 2019)."""
    values = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(values > 0, values / penalty, values * penalty))


# Sampling


def draw(logits: Tensor, drawn: Tensor, config: SearchConfig) -> Tensor:
    """Return a token (rows,) of the likely ones, by a uniform number (rows,) from [0, 1)."""
    logits = (logits - logits.amax(1, keepdim=True)) / config.temperature
    return pick(keep_likely(logits, config.top_k, config.top_p), drawn)


def pick(logits: Tensor, drawn: Tensor) -> Tensor:
    """Return the token (rows,) at which the cumulative probability passes a uniform number (rows,) from [0, 1)."""
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    return torch.searchsorted(cumulative, drawn[:, None] * cumulative[:, -1:], right=True)[:, 0]


def keep_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the likely tokens to -inf: the top_k best (Fan et al. 2018; 0: all), and of their probability the
    fewest best with a sum of at least top_p (Holtzman et al. 2020). logits: (rows, vocab)."""
    if 0 < top_k < logits.shape[1]:
        worst = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < worst, -math.inf)
    if top_p < 1:
        descending, order = logits.sort(dim=1, descending=True, stable=True)
        probability = descending.double().softmax(dim=1)
        before = probability.cumsum(dim=1) - probability  # what the better tokens have already
        logits = torch.full_like(logits, -math.inf).scatter(
            1, order, descending.masked_fill(before >= top_p, -math.inf)
        )
    return logits


def _uniform(source: Tensor, source_mask: Tensor, maximum: Tensor, copies: int, seed: int) -> Tensor:
    """Return uniform numbers from [0, 1) for each sample and step: (samples, steps).

    A sample's stream is a function of seed, source tokens and the sample's number, so its batch has no say.
    32 bits of a float64: their product with a sum of probabilities stays below that sum.
    """
    streams = np.zeros((len(maximum), int(maximum.max()) + 1 if len(maximum) else 0))
    for number, (row, mask) in enumerate(zip(source.cpu(), source_mask.cpu(), strict=True)):
        tokens = row[mask].tolist()
        for copy in range(copies):
            random = np.random.default_rng([seed, copy, len(tokens), *tokens])
            streams[number * copies + copy] = random.integers(0, UNIFORM_STEPS, streams.shape[1]) / UNIFORM_STEPS
    return torch.from_numpy(streams).to(source.device)


def _is_identity(rows: Tensor, count: int) -> bool:
    return len(rows) == count and torch.equal(rows, torch.arange(count, device=rows.device))
