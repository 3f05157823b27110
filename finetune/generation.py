"""Writing: greedy, beam search and sampling, batched, each prompt as if it were alone.

Of a decoder-only model prompts are padded on the left, masked, and counted from position 0; of an encoder-decoder they
are its sources. Keys and values of what was read are kept. A row that has ended leaves the batch. A sample is a
function of seed, prompt and its number, whatever else is in the batch.
Contrastive search is left out: transformers 5.23 has moved it into a repository whose code it would download and run.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import transformers
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from finetune import cpu, hardware, processes
from finetune.causal.model import Start
from finetune.causal.tokenizer import TextEncoder
from finetune.config import configclass, field
from finetune.data.batching import pad_and_mask
from finetune.errors import Exit, UserError
from finetune.seq2seq.search import (
    UNIFORM_STEPS,
    forbid_repeated_ngrams,
    keep_likely,
    not_above_the_maximum,
    penalise_repetition,
    pick,
)

NOTHING = -1  # stands left of a history that is shorter than others; no token has this number
COLDEST = 1e-30  # a float32 is 0 not far below
TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 1 << 16}  # read and written, of all rows of a batch
ROOM = 32  # tokens whose keys and values are made room for at once
WORTH_PACKING = 64  # tokens written: packing weights takes as long as some steps save
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@configclass
class GenerationConfig:
    """Settings of writing, named as in transformers.GenerationConfig; temperature=0 is greedy, num_beams>1 a search."""

    max_new_tokens: Positive = field(50, "longest text, in tokens")
    min_new_tokens: NotNegative = field(0, "shortest text, in tokens")
    num_beams: Positive = field(1, "beams of a search for the most probable text; 1: no search")
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = field(
        1.0, "of a search: score = log-probability / tokens^length_penalty; 0: short ones win"
    )
    temperature: Annotated[float, Field(ge=0, le=1e6)] = field(
        1.0, "of sampling; below 1: likely tokens more often; 0: the most probable token, always"
    )
    top_k: NotNegative = field(0, "of sampling: draw among so many most probable tokens; 0: all")
    top_p: Share = field(1.0, "of sampling: draw among the fewest tokens with this probability (nucleus)")
    min_p: Annotated[float, Field(ge=0, le=1)] = field(
        0.0, "of sampling: draw among tokens at least this share as probable as the most probable one"
    )
    typical_p: Share = field(
        1.0, "of sampling: draw among the tokens with this probability whose surprise is nearest to the expected one"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = field(
        1.0, "above 1: a token that was written, or stands in the prompt (not in a source), costs more, but not the end"
    )
    no_repeat_ngram_size: NotNegative = field(
        0, "no so many tokens in a row come twice in a prompt with its text (a source does not count); 0: they may"
    )
    stop_strings: list[str] = field(list, "a text ends before the first of these behind its first min_new_tokens")
    num_return_sequences: Positive = field(1, "texts written for a prompt")
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "numbers that are multiplied; bfloat16: faster where the hardware has it, texts may differ a little"
    )

    @property
    def samples(self) -> bool:
        """Tell whether tokens are drawn."""
        return self.num_beams == 1 and self.temperature > 0

    _fits_the_maximum = field_validator("min_new_tokens")(not_above_the_maximum)

    @field_validator("stop_strings")
    @classmethod
    def _stops_at_something(cls, strings: list[str]) -> list[str]:
        if not all(strings):
            raise ValueError("an empty text would end every text at once")
        return strings

    @field_validator("num_return_sequences")
    @classmethod
    def _has_so_many(cls, count: int, info: ValidationInfo) -> int:
        beams, temperature = info.data.get("num_beams", count), info.data.get("temperature", 1.0)
        if beams > 1 and count > beams:
            raise ValueError(f"a search with num_beams={beams} has no more than {beams}")
        if beams == 1 and temperature == 0 and count > 1:
            raise ValueError("temperature=0 writes one text alone; give a temperature above 0, or num_beams")
        return count


def as_transformers(config: GenerationConfig) -> dict[str, Any]:
    """Return the settings as transformers.GenerationConfig has them, but those that look at what was written before.

    There they look at the prompt of a decoder-only model, too; and stop strings need the tokenizer.
    """
    told: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens, "num_beams": config.num_beams, "do_sample": config.samples,
    }  # fmt: skip
    if config.min_new_tokens:
        told["min_new_tokens"] = config.min_new_tokens
    if config.num_beams > 1:
        told |= {"length_penalty": config.length_penalty, "early_stopping": False}
    if config.samples:
        told |= {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        told |= {"min_p": config.min_p or None, "typical_p": config.typical_p}
    return told


def remembered(config: GenerationConfig, usual: GenerationConfig) -> dict[str, Any]:
    """Return what differs from the usual as the settings that a plain model folder is used with."""
    told = dataclasses.asdict(usual)
    return {f"generation.{name}": value for name, value in dataclasses.asdict(config).items() if value != told[name]}


def write_so(start: Start, config: GenerationConfig) -> None:
    """Let AutoModelForCausalLM write as `config` says, once the model is saved.

    All but for what may not come twice: transformers would not let a text repeat its prompt either.
    """
    end = start.end
    start.model.network.generation_config = transformers.GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, **as_transformers(config)
    )


@dataclasses.dataclass(frozen=True)
class Generated:
    """One text as tokens, without the end-of-text token, and its log-probability (in a search: over its length)."""

    tokens: tuple[int, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class Written:
    """The texts of each prompt, how many tokens were written, and what it took."""

    texts: list[list[str]]
    scores: list[list[float]]
    tokens: int
    seconds: float
    cut: int  # prompts that lost their beginning
    cache_bytes: int  # keys and values, at most
    left_long: int = 0  # sources that even the summaries of their windows did not make fit: they lose their end

    @classmethod
    def together(cls, parts: Sequence["Written"]) -> "Written":
        """Return what was written one part after the other."""
        return cls(
            texts=[texts for part in parts for texts in part.texts],
            scores=[scores for part in parts for scores in part.scores],
            tokens=sum(part.tokens for part in parts),
            seconds=sum(part.seconds for part in parts),
            cut=sum(part.cut for part in parts),
            cache_bytes=max((part.cache_bytes for part in parts), default=0),
            left_long=sum(part.left_long for part in parts),
        )

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of writing, reading of the prompts included."""
        return self.tokens / max(self.seconds, 1e-9)


class Decoder(Protocol):
    """What the loop needs of a model: rows that read tokens and say what may come next.

    `before` are the tokens of each row that stand before what is written; at least one.
    """

    before: Sequence[Sequence[int]]

    def start(self) -> Tensor:
        """Read the prompts; return logits (prompts, vocab)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token (rows,) of each row; return logits (rows, vocab)."""

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows, in their order; a row may come several times."""

    def cache_bytes(self) -> int:
        """Return the bytes of keys and values."""


class CausalDecoder:
    """A decoder-only model: prompts (batch) of token numbers, padded on the left, counted from 0, pads unseen."""

    def __init__(self, network: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.network = network
        self.before: Sequence[Sequence[int]] = prompts
        longest = max(map(len, prompts))
        self._tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        self._mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self._tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            self._mask[row, longest - len(prompt) :] = True
        self._tokens, self._mask = self._tokens.to(network.device), self._mask.to(network.device)
        self._position = self._mask.sum(dim=1)  # (rows,) of the next token
        self._cache = _roomy(DynamicCache(config=network.config))

    def start(self) -> Tensor:
        places = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._read(self._tokens, places)

    def step(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        logits = self._read(tokens[:, None], self._position[:, None])
        self._position = self._position + 1
        return logits

    def select(self, rows: Tensor) -> None:
        self._mask, self._position = self._mask[rows], self._position[rows]
        self._cache.batch_select_indices(rows)

    def cache_bytes(self) -> int:
        return _bytes(self._cache)

    def _read(self, tokens: Tensor, places: Tensor) -> Tensor:
        padded = not bool(self._mask.all())  # without padding attention takes its faster form
        output = self.network(
            input_ids=tokens, position_ids=places, attention_mask=self._mask if padded else None,
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


class EncoderDecoder:
    """A model of transformers that reads sources (batch) of token numbers, padded on the right, once, then writes.

    What is written begins after the config's decoder_start_token_id, and its forced_bos_token_id where there is one
    (mBART's target language).
    """

    def __init__(self, network: PreTrainedModel, sources: Sequence[Sequence[int]]) -> None:
        self.network = network
        self.before: Sequence[Sequence[int]] = [first_tokens(network)] * len(sources)
        self._source, self._mask = (part.to(network.device) for part in pad_and_mask(sources, 0))
        self._states = torch.empty(0)  # (rows, source, dim), once they are there
        self._cache = EncoderDecoderCache(_roomy(DynamicCache()), DynamicCache())

    def start(self) -> Tensor:
        encoder = self.network.get_encoder()
        self._states = encoder(input_ids=self._source, attention_mask=self._mask).last_hidden_state
        return self._read(torch.tensor(self.before, device=self._source.device))

    def step(self, tokens: Tensor) -> Tensor:
        return self._read(tokens[:, None])

    def select(self, rows: Tensor) -> None:
        self._states, self._mask = self._states[rows], self._mask[rows]
        for cache in (self._cache.self_attention_cache, self._cache.cross_attention_cache):
            cache.batch_select_indices(rows)

    def cache_bytes(self) -> int:
        return _bytes(self._cache.self_attention_cache) + _bytes(self._cache.cross_attention_cache)

    def _read(self, tokens: Tensor) -> Tensor:
        output = self.network(
            encoder_outputs=(self._states,), attention_mask=self._mask, decoder_input_ids=tokens,
            past_key_values=self._cache, use_cache=True,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


def first_tokens(network: PreTrainedModel) -> list[int]:
    """Return what an encoder-decoder begins every text with; raises UserError (65) where its config does not say."""
    config = network.generation_config
    start = config.decoder_start_token_id
    start = network.config.decoder_start_token_id if start is None else start
    if start is None:
        what = f"{network.name_or_path or 'the model'} does not say which token a text begins with"
        raise UserError(Exit.BAD_DATA, f"{what}; set decoder_start_token_id in its config.json")
    return [int(start)] if config.forced_bos_token_id is None else [int(start), int(config.forced_bos_token_id)]


def decoder_of(network: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Decoder:
    """Return what writes with a model of either kind."""
    return (EncoderDecoder if network.config.is_encoder_decoder else CausalDecoder)(network, prompts)


class _RoomyLayer(DynamicLayer):
    """Keys and values (batch, heads, time, dim) of a layer, with room for more: each step writes its own alone."""

    keys: Tensor
    values: Tensor
    room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Add those of the newest tokens; return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        known = self.get_seq_length()
        total = known + key_states.shape[-2]
        # Other rows than before, or fewer, have new tensors, without room.
        if self.room is None or self.keys.data_ptr() != self.room[0].data_ptr() or total > self.room[0].shape[-2]:
            shape = (*key_states.shape[:-2], total + ROOM, key_states.shape[-1])
            self.room = (key_states.new_empty(shape), value_states.new_empty(shape))
            if known:
                self.room[0][..., :known, :] = self.keys
                self.room[1][..., :known, :] = self.values
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[..., known:total, :] = states
        self.keys, self.values = (room[..., :total, :] for room in self.room)
        return self.keys, self.values


def _roomy(cache: DynamicCache) -> DynamicCache:
    """Give the layers that keep all tokens room to grow; those of a sliding window stay."""
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = _RoomyLayer
    return cache


def _bytes(cache: DynamicCache) -> int:
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


Listener = Callable[[Tensor], None]


def generate(
    network: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, end: int, seed: int,
    *, decode: Callable[[Sequence[int]], str], listen: Listener | None = None,
) -> list[list[Generated]]:  # fmt: skip
    """Go on from prompts (token numbers, at least one each), or write from an encoder-decoder's sources.

    Returns num_return_sequences texts of each, in order. `decode` turns tokens into text, for stop_strings. `listen` is
    told the tokens of each step, (rows,). Raises UserError 70 where the model's logits are not finite.
    """
    rules = _Rules(config, end, seed, decode, range(config.num_return_sequences))
    return _generate(decoder_of(network, prompts), prompts, rules, listen)[0]


@dataclasses.dataclass(frozen=True)
class _Rules:
    """What may come next and what ends a text, and which samples of each prompt are drawn, by their numbers."""

    config: GenerationConfig
    end: int
    seed: int
    decode: Callable[[Sequence[int]], str]
    numbers: range

    def scores(self, logits: Tensor, history: Tensor, written: int) -> Tensor:
        """Return log-probabilities (rows, vocab), -inf for what may not come; history (rows, time) has NOTHING."""
        if not bool(logits.isfinite().all()):
            raise UserError(
                Exit.DIVERGED, "the model's logits are not finite: its weights are damaged or it has diverged"
            )
        config = self.config
        logits = logits.float()
        seen = torch.where(history == NOTHING, history[:, -1:], history)
        # To end repeats nothing, though the token may stand before every prompt: what it had it keeps.
        if config.repetition_penalty != 1:
            kept = logits[:, self.end]
            logits = penalise_repetition(logits, seen, config.repetition_penalty)
            logits[:, self.end] = kept
        scores = logits.log_softmax(dim=1)
        if config.no_repeat_ngram_size:
            kept = scores[:, self.end].clone()
            # A single token is forbidden by its number, which NOTHING has not; a longer n-gram never holds it in full.
            single = config.no_repeat_ngram_size == 1
            forbid_repeated_ngrams(scores, seen if single else history, config.no_repeat_ngram_size)
            scores[:, self.end] = kept
        if written < config.min_new_tokens:
            scores[:, self.end] = -math.inf
        nothing = scores.amax(dim=1) == -math.inf  # repetition forbids all
        scores[nothing, self.end] = 0.0
        return scores

    def stops(self, tokens: Sequence[int]) -> bool:
        """Tell whether a text is over because a stop string stands in it."""
        return _before_stop(self.decode, tokens, self.config)[1]


@torch.inference_mode()
def _generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], rules: _Rules, listen: Listener | None = None
) -> tuple[list[list[Generated]], int]:
    logits = decoder.start()
    if rules.config.num_beams > 1:
        return _search(decoder, logits, rules)
    return _draw(decoder, logits, prompts, rules, listen)


def _histories(prompts: Sequence[Sequence[int]], copies: int, device: torch.device) -> Tensor:
    """Return the prompts, NOTHING to their left, each `copies` times: (rows, time)."""
    longest = max(map(len, prompts))
    rows = [[NOTHING] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device).repeat_interleave(copies, dim=0)


# One token at a time


def _draw(
    decoder: Decoder, logits: Tensor, prompts: Sequence[Sequence[int]], rules: _Rules, listen: Listener | None
) -> tuple[list[list[Generated]], int]:
    """Write token by token, the most probable one or one that is drawn."""
    config, copies = rules.config, len(rules.numbers)
    history = _histories(decoder.before, copies, logits.device)
    before = history.shape[1]
    if copies > 1:
        rows = torch.arange(len(prompts), device=logits.device).repeat_interleave(copies)
        decoder.select(rows)
        logits = logits[rows]
    uniform = _uniform(prompts, rules, logits.device) if config.samples else None
    number = torch.arange(len(history), device=logits.device)
    total = torch.zeros(len(history), dtype=torch.float64, device=logits.device)
    found: dict[int, Generated] = {}
    most = 0
    for time_ in range(config.max_new_tokens):
        scores = rules.scores(logits, history, time_)
        if uniform is None:
            token = scores.argmax(dim=1)
        else:
            token = pick(likely(_cooled(scores, config.temperature), config), uniform[number, time_])
        total = total + scores.gather(1, token[:, None])[:, 0].double()
        history = torch.cat([history, token[:, None]], dim=1)
        if listen is not None:
            listen(token)
        over = _over(history, before, time_ + 1, rules)
        for row in over.nonzero()[:, 0].tolist():
            tokens = [one for one in history[row, before:].tolist() if one != rules.end]
            found[int(number[row])] = Generated(tuple(tokens), float(total[row]))
        going = (~over).nonzero()[:, 0]
        most = max(most, decoder.cache_bytes())
        if not len(going):
            break
        if len(going) < len(over):
            history, number, total, token = (part[going] for part in (history, number, total, token))
            decoder.select(going)
        logits = decoder.step(token)
    ordered = [found[row] for row in range(len(prompts) * copies)]
    return [ordered[start : start + copies] for start in range(0, len(ordered), copies)], most


def _over(history: Tensor, before: int, written: int, rules: _Rules) -> Tensor:
    """Return which rows end with their newest token: (rows,)."""
    over = history[:, -1] == rules.end
    if written == rules.config.max_new_tokens:
        return torch.ones_like(over)
    if rules.config.stop_strings and written > rules.config.min_new_tokens:
        stopped = [rules.stops(row) for row in history[:, before:].tolist()]
        over = over | torch.tensor(stopped, device=over.device)
    return over


def _cooled(scores: Tensor, temperature: float) -> Tensor:
    """Divide by a temperature; the best token stays at 0, so that none is so cold that all are impossible."""
    return (scores - scores.amax(dim=1, keepdim=True)) / max(temperature, COLDEST)


def likely(logits: Tensor, config: GenerationConfig) -> Tensor:
    """Set all but the tokens that may be drawn to -inf: top_k, top_p, min_p, typical_p, in this order."""
    logits = keep_likely(logits, config.top_k, config.top_p)
    if config.min_p > 0:
        logits = keep_at_least(logits, config.min_p)
    return keep_typical(logits, config.typical_p) if config.typical_p < 1 else logits


def keep_at_least(logits: Tensor, share: float) -> Tensor:
    """Set to -inf what is less than `share` as probable as the most probable token (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(dim=1, keepdim=True) + math.log(share), -math.inf)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """Keep the fewest tokens with a probability of `mass` whose surprise is nearest to the entropy (Meister 2023)."""
    surprise = -logits.log_softmax(dim=1)
    probability = (-surprise).exp()
    entropy = (probability * surprise).nansum(dim=1, keepdim=True)  # 0 x inf counts as nothing
    distance, order = (surprise - entropy).abs().sort(dim=1, stable=True)
    sums = probability.gather(1, order).double().cumsum(dim=1)
    last = (sums < mass).sum(dim=1, keepdim=True).clamp(max=sums.shape[1] - 1)
    removed = distance > distance.gather(1, last)
    return logits.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)


def _uniform(prompts: Sequence[Sequence[int]], rules: _Rules, device: torch.device) -> Tensor:
    """Return uniform numbers from [0, 1) for each text and step, (texts, steps): streams of seed, prompt and number."""
    streams = []
    for prompt in prompts:
        for number in rules.numbers:
            random = np.random.default_rng([rules.seed, number, len(prompt), *prompt])
            streams.append(random.integers(0, UNIFORM_STEPS, rules.config.max_new_tokens) / UNIFORM_STEPS)
    return torch.from_numpy(np.stack(streams)).to(device)


# A search with several beams


@dataclasses.dataclass
class _Found:
    """The best texts of one prompt that have ended, at most as many as there are beams."""

    beams: int
    best: list[Generated] = dataclasses.field(default_factory=list)

    def add(self, tokens: Sequence[int], score: float) -> None:
        self.best = sorted([*self.best, Generated(tuple(tokens), score)], key=lambda one: -one.score)[: self.beams]

    def is_settled(self, reach: float) -> bool:
        """Tell whether what is open, with this score at its length so far, is taken to be beaten."""
        return len(self.best) == self.beams and reach <= self.best[-1].score


def _search(decoder: Decoder, logits: Tensor, rules: _Rules) -> tuple[list[list[Generated]], int]:
    """Search as transformers' generate does with early_stopping=False: of 2 x beams continuations, those among the
    best `beams` that end are put aside, and the best `beams` others go on."""
    config, beams = rules.config, rules.config.num_beams
    history = _histories(decoder.before, 1, logits.device)
    before, ended = history.shape[1], [_Found(beams) for _ in decoder.before]
    number = list(range(len(ended)))
    total = torch.zeros(len(ended), 1, device=logits.device)  # (prompts, open beams)
    most = 0
    for written in range(1, config.max_new_tokens + 1):
        scores = rules.scores(logits, history, written - 1).view(*total.shape, -1) + total[..., None]
        vocab = scores.shape[-1]
        best, index = scores.flatten(1).topk(min(2 * beams, total.shape[1] * vocab), dim=1)  # (prompts, 2 x beams)
        first = torch.arange(len(number), device=index.device)[:, None] * total.shape[1]
        parent, token = first + index // vocab, index % vocab
        over = _ends(history, parent, token, (before, written), rules) & (best > -math.inf)
        for place, slot in (over[:, :beams]).nonzero().tolist():
            tokens = [*history[parent[place, slot], before:].tolist(), int(token[place, slot])]
            value = float(best[place, slot]) / written**config.length_penalty
            ended[number[place]].add([one for one in tokens if one != rules.end], value)
        total, slot = best.masked_fill(over, -math.inf).topk(min(beams, best.shape[1]), dim=1)
        staying = [
            place for place, reach in enumerate((total[:, 0].double() / written**config.length_penalty).tolist())
            if reach > -math.inf and not ended[number[place]].is_settled(reach)
        ]  # fmt: skip
        most = max(most, decoder.cache_bytes())
        if written == config.max_new_tokens or not staying:
            break
        kept = torch.tensor(staying, device=index.device)
        rows, token = parent[kept].gather(1, slot[kept]).flatten(), token[kept].gather(1, slot[kept]).flatten()
        number, total = [number[place] for place in staying], total[kept]
        history = torch.cat([history[rows], token[:, None]], dim=1)
        decoder.select(rows)
        logits = decoder.step(token)
    return [one.best[: config.num_return_sequences] for one in ended], most


def _ends(history: Tensor, parent: Tensor, token: Tensor, places: tuple[int, int], rules: _Rules) -> Tensor:
    """Return which continuations end a text: (prompts, continuations)."""
    before, written = places
    over = token == rules.end
    if written == rules.config.max_new_tokens:
        return torch.ones_like(over)
    if rules.config.stop_strings and written > rules.config.min_new_tokens:
        rows = torch.cat([history[parent.flatten(), before:], token.view(-1, 1)], dim=1).tolist()
        over = over | torch.tensor([rules.stops(row) for row in rows], device=over.device).view_as(over)
    return over


# Texts


@dataclasses.dataclass(frozen=True)
class Pen:
    """What writes: a network that is put into eval mode for it, a decoder of rows, their end, and tokens as text."""

    network: nn.Module
    decoder: Callable[[Sequence[Sequence[int]]], Decoder]
    end: int
    decode: Callable[[Sequence[int]], str]


def write(
    start: Start, prompts: Sequence[str], config: GenerationConfig, seed: int,
    tell: Callable[[str], None] | None = None, *, completes: bool = False,
) -> Written:  # fmt: skip
    """Continue prompts, in batches of similar lengths; an empty one begins after the end-of-text token, as all do.

    A prompt that leaves no room for max_new_tokens in the model's context loses its beginning; `completes` says that
    the model has learnt completions (see `encode`). `tell` is given each piece of the text of a single prompt as it is
    written. Raises UserError (2) where max_new_tokens is itself too long.
    """
    started = time.perf_counter()
    network, tokenizer = start.model.network, start.tokenizer
    coded, cut = encode(start, prompts, config, completes=completes)
    pen = Pen(network, lambda rows: CausalDecoder(network, rows), start.end, lambda tokens: decoded(tokenizer, tokens))
    listen = None if tell is None else _Teller(pen, config, tell)
    written = write_rows(pen, coded, config, seed, listen)
    if listen is not None:
        listen.finish()
    return dataclasses.replace(written, seconds=time.perf_counter() - started, cut=cut)


def write_rows(
    pen: Pen, coded: Sequence[Sequence[int]], config: GenerationConfig, seed: int, listen: Listener | None = None
) -> Written:
    """Write after rows of tokens, prompts or sources, in batches of similar lengths; texts come in the rows' order."""
    started = time.perf_counter()
    was_training = pen.network.training
    pen.network.eval()  # a training leaves dropout on
    device = next(pen.network.parameters()).device
    batches = list(_batches(coded, config, device.type))

    def write_batch(batch: tuple[list[int], range]) -> tuple[list[list[Generated]], int]:
        rows = [coded[place] for place in batch[0]]
        return _generate(pen.decoder(rows), rows, _Rules(config, pen.end, seed, pen.decode, batch[1]), listen)

    with _arithmetic(pen.network, device, config, len(coded)):
        written = processes.shared(batches, write_batch)
    found: list[list[Generated]] = [[] for _ in coded]
    for (places, _), (texts, _) in zip(batches, written, strict=True):
        for place, several in zip(places, texts, strict=True):
            found[place] += several
    pen.network.train(was_training)
    return Written(
        texts=[[_before_stop(pen.decode, one.tokens, config)[0] for one in several] for several in found],
        scores=[[one.score for one in several] for several in found],
        tokens=sum(len(one.tokens) for several in found for one in several),
        seconds=time.perf_counter() - started, cut=0, cache_bytes=max((most for _, most in written), default=0),
    )  # fmt: skip


def _arithmetic(
    network: nn.Module, device: torch.device, config: GenerationConfig, prompts: int
) -> contextlib.AbstractContextManager[object]:
    """Return the block in which a model writes: on a CPU with packed weights where several rows are read at once."""
    rows = prompts * max(config.num_beams, config.num_return_sequences)
    wanted, own = getattr(torch, config.dtype), next(network.parameters()).dtype
    if device.type == "cpu" and own == torch.float32 and (wanted == own or hardware.cpu_has_bf16()):
        pays = rows > 1 and rows * config.max_new_tokens >= WORTH_PACKING
        return cpu.packed(network, wanted) if pays or wanted != own else contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted == torch.bfloat16)


def predicted_rows(ids: Sequence[str], prompts: Sequence[str], written: Written) -> list[dict[str, Any]]:
    """Return a line for each prompt: id, source, predicted text, its score, and all texts where there are several."""
    rows = []
    for identity, prompt, texts, scores in zip(ids, prompts, written.texts, written.scores, strict=True):
        row: dict[str, Any] = {"id": identity, "source": prompt, "predicted": texts[0], "score": round(scores[0], 6)}
        rows.append(row | ({"hypotheses": texts} if len(texts) > 1 else {}))
    return rows


def encode(
    start: Start, prompts: Sequence[str], config: GenerationConfig, *, completes: bool
) -> tuple[list[list[int]], int]:
    """Return the tokens of prompts behind an end-of-text token, cut on the left where they are too long, and count
    those; raises UserError (2) where max_new_tokens is beyond the context.

    What has lost its beginning is read as in training: of a model that `completes` prompts a cut one stands behind the
    end-of-text token too; one of documents has read their middle parts at the start of its blocks, without it.
    """
    check_longest(config, start.context)
    room = start.context - config.max_new_tokens + 1  # the last token that is written is never read
    rows = [[start.end, *row] for row in TextEncoder(start.tokenizer).encode(prompts)]
    kept = 1 if completes else 0
    cut = [row if len(row) <= room else [*row[:kept], *row[len(row) - room + kept :]] for row in rows]
    return cut, sum(len(row) > room for row in rows)


def check_longest(config: GenerationConfig, context: int) -> None:
    """Raise UserError (2) where texts may become longer than a model reads."""
    if config.max_new_tokens > context:
        what = f"max_new_tokens={config.max_new_tokens} is more than the {context} tokens that the model can read"
        raise UserError(Exit.USAGE, f"{what}; give {context} at most")


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens, as it is."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _before_stop(
    decode: Callable[[Sequence[int]], str], tokens: Sequence[int], config: GenerationConfig
) -> tuple[str, bool]:
    """Return the text of tokens up to the first stop string, and whether there is one.

    One that begins in the first min_new_tokens tokens ends nothing, as the end-of-text token cannot come there.
    """
    text = decode(tokens)
    if not config.stop_strings:
        return text, False
    shortest = len(decode(tokens[: config.min_new_tokens]))
    ends = [place for stop in config.stop_strings if (place := text.find(stop, shortest)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def _batches(
    coded: Sequence[Sequence[int]], config: GenerationConfig, device: str
) -> Iterator[tuple[list[int], range]]:
    """Yield which prompts are continued together, and which of their texts: similar lengths, as many as fit.

    The samples of a prompt that are too many for one batch have several.
    """
    width = max(config.num_beams, config.num_return_sequences)
    most, every = TOKENS_AT_ONCE.get(device, TOKENS_AT_ONCE["cuda"]), range(config.num_return_sequences)
    batch: list[int] = []
    for place in sorted(range(len(coded)), key=lambda place: -len(coded[place])):
        fit = max(1, most // (len(coded[batch[0] if batch else place]) + config.max_new_tokens))  # texts
        if config.samples and width > fit:  # the longest prompts come first: no batch has begun
            yield from (([place], every[first : first + fit]) for first in every[::fit])
            continue
        if batch and (len(batch) + 1) * width > fit:
            yield batch, every
            batch = []
        batch.append(place)
    if batch:
        yield batch, every


class _Teller:
    """Gives the text of one prompt away piece by piece, holding back what may be half a character or a stop string."""

    def __init__(self, pen: Pen, config: GenerationConfig, tell: Callable[[str], Any]) -> None:
        self.pen, self.config, self.tell = pen, config, tell
        self.tokens: list[int] = []
        self.told = 0

    def __call__(self, token: Tensor) -> None:
        """Take the newest token."""
        self.tokens += [one for one in token.tolist() if one != self.pen.end]
        text, _ = _before_stop(self.pen.decode, self.tokens, self.config)
        held = max((self._begun(text, stop) for stop in self.config.stop_strings), default=0)
        self._give(text[: len(text) - held].rstrip("\ufffd"))

    def finish(self) -> None:
        """Give what was held back."""
        self._give(_before_stop(self.pen.decode, self.tokens, self.config)[0])

    def _give(self, text: str) -> None:
        if len(text) > self.told:
            self.tell(text[self.told :])
            self.told = len(text)

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """Return how many characters at the end of a text may be the beginning of a stop string."""
        return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
