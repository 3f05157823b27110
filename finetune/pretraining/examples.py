"""What an update is made of: blocks of text without padding, translations side by side, sentences with translations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.data.batching import Batch, Examples, cut_by_tokens, pad_and_mask
from finetune.errors import Exit, UserError
from finetune.pretraining.corpus import Documents, Pairs
from finetune.pretraining.masking import Alphabet, MaskingConfig, mask
from finetune.pretraining.stores import framed, ranges
from finetune.pretraining.vocabulary import repeats

CHUNK_TOKENS = {"cpu": 2_048, "cuda": 1 << 14}  # sentences of like length are read together, so many tokens at a time
CHUNK_ROWS = 4_096
Vectors = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True)
class Frame:
    """What stands around the tokens of a text, how long an example may be, and how its tokens are hidden."""

    cls: int
    sep: int
    pad: int
    max_length: int
    alphabet: Alphabet
    masking: MaskingConfig

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int, masking: MaskingConfig) -> "Frame":
        """Read it off a tokenizer."""
        numbers = (int(tokenizer.cls_token_id), int(tokenizer.sep_token_id), int(tokenizer.pad_token_id))
        return cls(*numbers, max_length, Alphabet.of(tokenizer), masking)

    @property
    def room(self) -> int:
        """Return how many tokens of text a block holds."""
        return self.max_length - (3 if self.masking.next_sentence else 2)

    def around(self, tokens: np.ndarray) -> np.ndarray:
        """Return [CLS] tokens [SEP], cut where that is too long."""
        inner = tokens[: self.max_length - 2]
        return np.concatenate(([self.cls], inner, [self.sep])).astype(np.int64)


@dataclass(frozen=True)
class Part:
    """The examples of one kind: their tokens, collating by number, their places, and the language of each."""

    kind: str
    lengths: np.ndarray  # (examples,)
    collate: Callable[[np.ndarray, torch.Generator | None], Batch]
    name: Callable[[int], str]
    languages: np.ndarray  # (examples,) of text
    sources: np.ndarray | None = None  # (examples,) numbers of source sentences, where a teacher's vectors are needed

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Stream:
    """The text of a language as one row of tokens, from the units that belong to it."""

    tokens: np.ndarray
    pieces: np.ndarray  # (pieces, 2) where each begins and ends in `tokens`
    ends: np.ndarray  # (pieces,) where each ends in the stream

    @classmethod
    def of(cls, documents: Documents, units: np.ndarray) -> "Stream":
        """Join units, (units,) numbers in rising order."""
        offsets = documents.rows.offsets
        first = np.flatnonzero(np.diff(units, prepend=-2) != 1)
        last = np.append(first[1:], len(units)) - 1
        pieces = np.stack([offsets[units[first]], offsets[units[last] + 1]], axis=1)
        return cls(documents.rows.tokens, pieces, np.cumsum(pieces[:, 1] - pieces[:, 0]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, position: int) -> int:
        """Return where in `tokens` a position of the stream is."""
        piece = int(np.searchsorted(self.ends, position, side="right"))
        return int(self.pieces[piece, 1] - (self.ends[piece] - position))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from start to stop."""
        found = []
        while start < stop:
            piece = int(np.searchsorted(self.ends, start, side="right"))
            size = min(stop, int(self.ends[piece])) - start
            place = self.place(start)
            found.append(self.tokens[place : place + size])
            start += size
        return np.concatenate(found)


def blocks(documents: Mapping[str, tuple[Documents, np.ndarray]], frame: Frame, exponent: float, seed: int) -> Part:
    """Cut the text of each language into blocks of max_length tokens, [CLS] and [SEP] included; nothing is lost.

    `documents` are with the units that are wanted. The last block of a language is shorter.
    """
    streams = {code: Stream.of(found, units) for code, (found, units) in documents.items()}
    room = frame.room
    counts = {code: -(-len(stream) // room) for code, stream in streams.items()}
    codes, table = list(streams), _repeated(counts, exponent, seed)  # (examples, 2) language and block
    sizes = [np.minimum(room, len(streams[code]) - room * np.arange(counts[code])) for code in codes]
    lengths = np.array([sizes[language][block] for language, block in table]) + frame.max_length - room

    def read(language: int, block: int) -> np.ndarray:
        stream = streams[codes[language]]
        return stream.read(block * room, min(len(stream), (block + 1) * room))

    def collate(chosen: np.ndarray, random: torch.Generator | None) -> Batch:
        texts = [read(language, block) for language, block in table[chosen]]
        if not frame.masking.next_sentence:
            return masked_batch([frame.around(text) for text in texts], frame, chosen, random)
        others = [
            read(language, int(torch.randint(counts[codes[language]], (), generator=random)))
            for language in table[chosen, 0]
        ]
        return next_sentence_batch(texts, others, frame, chosen, random)

    def name(example: int) -> str:
        language, block = table[example]
        found, _ = documents[codes[language]]
        unit = np.searchsorted(found.rows.offsets, streams[codes[language]].place(block * room), side="right") - 1
        return found.where(int(unit))

    return Part("mlm", lengths, collate, name, np.array(codes)[table[:, 0]])


def check_size(documents: Documents, units: np.ndarray, max_length: int) -> None:
    """Refuse text of less than one block to learn from: raises UserError (65)."""
    tokens = int(documents.rows.lengths[units].sum())
    if tokens < max_length - 2:
        what = f"{documents.files[0]}: only {tokens:,} tokens of {documents.language} to learn from"
        raise UserError(Exit.BAD_DATA, f"{what}, less than one block of {max_length}; give more text, or max_length=N")


def translations(pairs: Pairs, chosen: Mapping[str, np.ndarray], frame: Frame, exponent: float, seed: int) -> Part:
    """Put sentences beside their translations: [CLS] a [SEP] b [SEP] (Conneau and Lample 2019, section 3.3).

    `chosen` are numbers of pairs by language. In training either side comes first by chance. The positions of b begin
    where those of a do, so that words and their translations have like positions; a pair that is too long loses the
    end of its longer side.
    """
    codes = list(chosen)
    table = _repeated({code: len(numbers) for code, numbers in chosen.items()}, exponent, seed)
    numbers = np.array([chosen[codes[language]][row] for language, row in table], dtype=np.int64)
    of_source = np.concatenate(
        [pairs.source.lengths[pairs.source_of[code]][chosen[code]] for code in codes] or [np.zeros(0, dtype=np.int64)]
    )
    of_target = np.concatenate([pairs.target[code].lengths[chosen[code]] for code in codes])
    begin = np.cumsum([0, *(len(chosen[code]) for code in codes)])
    flat = begin[table[:, 0]] + table[:, 1]
    lengths = np.minimum(of_source[flat] + of_target[flat] + 3, frame.max_length)

    def collate(examples: np.ndarray, random: torch.Generator | None) -> Batch:
        swaps = torch.rand(len(examples), generator=random) < 0.5
        rows, seconds = [], []
        for (language, _), number, swap in zip(table[examples], numbers[examples], swaps.tolist(), strict=True):
            code = codes[language]
            sides = [pairs.source[pairs.source_of[code][number]], pairs.target[code][number]]
            one, two = _fit(sides[swap], sides[not swap], frame.max_length - 3)
            rows.append(np.concatenate(([frame.cls], one, [frame.sep], two, [frame.sep])).astype(np.int64))
            seconds.append(len(one) + 2)
        return masked_batch(rows, frame, examples, random, np.array(seconds))

    def name(example: int) -> str:
        return pairs.where(codes[table[example, 0]], int(numbers[example]))

    return Part("tlm", lengths, collate, name, np.array(codes)[table[:, 0]])


def masked_batch(
    rows: Sequence[np.ndarray],
    frame: Frame,
    examples: np.ndarray,
    random: torch.Generator | None,
    seconds: np.ndarray | None = None,
) -> Batch:
    """Hide tokens of some rows; `seconds` are where the second text of each begins.

    Tensors: input_ids (batch, time), places and gold (places,); attention_mask where rows are of different lengths;
    token_type_ids and position_ids where there are second texts.
    """
    tokens, real = pad_and_mask(rows, frame.pad)
    hidden = mask(tokens, frame.alphabet, frame.masking, random)
    tensors = {"input_ids": hidden.tokens, "places": hidden.places, "gold": hidden.gold}
    if not bool(real.all()):
        tensors["attention_mask"] = real.long()
    if seconds is not None:
        steps, begin = torch.arange(tokens.shape[1]), torch.from_numpy(seconds)[:, None]  # (time,), (batch, 1)
        later = (steps >= begin) & real
        tensors["token_type_ids"] = later.long()
        tensors["position_ids"] = torch.where(later, steps - begin + 1, steps)  # 0 is that of [CLS]
    return Batch(tensors, len(hidden.places), examples)


def next_sentence_batch(
    texts: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    frame: Frame,
    examples: np.ndarray,
    random: torch.Generator | None,
) -> Batch:
    """Cut each text in two anywhere; half of the second pieces make way for the end of another text.

    Adds to the tensors of `masked_batch` next, (batch,): 0 where the second piece goes on with the first, 1 where it
    does not (Devlin et al. 2019, section 3.1, task 2), and next_weight, the tokens that are hidden in a block on
    average: the mean loss of the task then stands beside the mean loss of hidden tokens, as in the paper.
    """
    random_texts = torch.rand(len(texts), generator=random) < 0.5
    random_texts &= torch.tensor([len(text) > 1 for text in texts])  # one token has no second piece to take away
    cuts = torch.rand(len(texts), generator=random).tolist()
    rows, seconds = [], []
    for text, other, swap, share in zip(texts, others, random_texts.tolist(), cuts, strict=True):
        cut = 1 + int(share * (len(text) - 1))
        second = text[cut:]
        if swap:
            second = other[-len(second) :]
        rows.append(np.concatenate(([frame.cls], text[:cut], [frame.sep], second, [frame.sep])).astype(np.int64))
        seconds.append(cut + 2)
    batch = masked_batch(rows, frame, examples, random, np.array(seconds))
    del batch.tensors["position_ids"]  # one text to the eye: positions run on
    batch.tensors["next"] = random_texts.long()
    batch.tensors["next_weight"] = torch.tensor(frame.masking.mlm_probability * frame.room)
    return batch


def sentences(
    pairs: Pairs, chosen: Mapping[str, np.ndarray], frame: Frame, exponent: float, seed: int, vectors: Vectors
) -> Part:
    """Group translations by their source sentence, so that an update reads it once, however many there are.

    `vectors` gives the teacher's vectors (sentences, dim) of some source sentences. An item of the loss is a pair.
    """
    codes = list(chosen)
    table = _by_sentence(pairs, chosen, exponent, seed)  # (pairs, 4): copy, source sentence, language, pair
    first = np.flatnonzero(np.any(np.diff(table[:, :2], axis=0, prepend=-1) != 0, axis=1))
    last = np.append(first[1:], len(table))
    room = frame.max_length
    of_target = [np.minimum(pairs.target[code].lengths + 2, room) for code in codes]
    widths = np.zeros(len(table), dtype=np.int64)
    for language in range(len(codes)):
        mine = table[:, 2] == language
        widths[mine] = of_target[language][table[mine, 3]]
    lengths = np.minimum(pairs.source.lengths[table[first, 1]] + 2, room) + np.add.reduceat(widths, first)

    def collate(examples: np.ndarray, random: torch.Generator | None) -> Batch:
        counts = last[examples] - first[examples]
        group, of_pair = table[ranges(first[examples], counts)], np.repeat(np.arange(len(examples)), counts)
        sources = table[first[examples], 1]
        texts, of_text, weights = [pairs.source.some(sources, room - 2)], [np.arange(len(examples))], [counts]
        for language, code in enumerate(codes):
            mine = group[:, 2] == language
            texts.append(pairs.target[code].some(group[mine, 3], room - 2))
            of_text.append(of_pair[mine])
            weights.append(np.ones(len(of_text[-1]), dtype=np.int64))
        tokens, sizes = (np.concatenate(side) for side in zip(*texts, strict=True))
        targets = vectors(sources)[np.concatenate(of_text)]  # (texts, dim)
        tensors = chunked(tokens, sizes, frame, targets, torch.from_numpy(np.concatenate(weights)).float())
        return Batch(tensors, int(counts.sum()), examples)

    def name(example: int) -> str:
        _, _, language, number = table[first[example]]
        return pairs.where(codes[language], int(number))

    return Part("distil", lengths, collate, name, np.array(codes)[table[first, 2]], table[first, 1])


def chunked(tokens: np.ndarray, sizes: np.ndarray, frame: Frame, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Cut texts, by length, into chunks of little padding: input_ids.N, attention_mask.N, targets.N and weights.N.

    `tokens` are those of all texts, one after the other, `sizes`, (texts,), how many each has; a text stands between
    [CLS] and [SEP].
    """
    starts, order = np.cumsum(sizes) - sizes, np.argsort(sizes, kind="stable")
    budget = CHUNK_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
    tensors = {}
    for number, part in enumerate(cut_by_tokens(order, sizes + 2, budget, CHUNK_ROWS)):
        text = tokens[ranges(starts[part], sizes[part])]
        ids, mask = framed(text, sizes[part], (frame.cls, frame.sep, frame.pad))
        tensors[f"input_ids.{number}"], tensors[f"attention_mask.{number}"] = (
            torch.from_numpy(ids),
            torch.from_numpy(mask),
        )
        tensors[f"targets.{number}"], tensors[f"weights.{number}"] = targets[part], weights[part]
    return tensors


def join(parts: Sequence[Part]) -> Examples:
    """Return the examples of all kinds as the trainer takes them; an update is of one kind."""
    starts = np.cumsum([0, *map(len, parts)])

    def part_of(example: int) -> int:
        return int(np.searchsorted(starts, example, side="right")) - 1

    def collate(chosen: np.ndarray) -> Batch:
        number = part_of(int(chosen[0]))
        batch = parts[number].collate(chosen - starts[number], None)
        return Batch(batch.tensors, batch.items, chosen)

    def name(example: int) -> str:
        number = part_of(example)
        return parts[number].name(example - int(starts[number]))

    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Examples(np.concatenate([part.lengths for part in parts]), collate, name, groups)


def _repeated(counts: Mapping[str, int], exponent: float, seed: int, most: int | None = None) -> np.ndarray:
    """Return (examples, 2): language and number of each example of a pass, those of smaller languages several times."""
    sizes = dict(counts) if most is None else {**counts, "": most}
    times = repeats(sizes, exponent)
    tables = []
    for language, (code, count) in enumerate(counts.items()):
        whole = int(times[code] + 1e-9)
        more = np.random.default_rng([seed, count]).permutation(count)[: round((times[code] - whole) * count)]
        numbers = np.concatenate([np.tile(np.arange(count), whole), np.sort(more)])
        tables.append(np.stack([np.full(len(numbers), language), numbers], axis=1))
    return np.concatenate(tables)


def _by_sentence(pairs: Pairs, chosen: Mapping[str, np.ndarray], exponent: float, seed: int) -> np.ndarray:
    """Return (pairs, 4): copy, source sentence, language, pair; sorted, the repeats of small languages in copies."""
    most = max(len(numbers) for numbers in chosen.values())
    pieces = []
    for language, (code, numbers) in enumerate(chosen.items()):
        rows = _repeated({code: len(numbers)}, exponent, seed, most)[:, 1]
        pair = numbers[rows]
        columns = [_copies(rows), pairs.source_of[code][pair], np.full(len(rows), language), pair]
        pieces.append(np.stack(columns, axis=1))
    table = np.concatenate(pieces)
    return np.asarray(table[np.lexsort(table.T[::-1])])


def _copies(rows: np.ndarray) -> np.ndarray:
    """Return for each number how often it came before."""
    order = np.argsort(rows, kind="stable")
    ranked = rows[order]
    start = np.searchsorted(ranked, ranked)
    copies = np.empty(len(rows), dtype=np.int64)
    copies[order] = np.arange(len(rows)) - start
    return copies


def _fit(one: np.ndarray, two: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut two texts at their ends, the longer one first, until both fit."""
    over = len(one) + len(two) - room
    if over <= 0:
        return one, two
    longer, shorter = max(len(one), len(two)), min(len(one), len(two))
    longer = max(longer - over, -(-room // 2) if shorter > room // 2 else room - shorter)
    shorter = min(shorter, room - longer)
    return (one[:longer], two[:shorter]) if len(one) >= len(two) else (one[:shorter], two[:longer])
