"""A language model that counts: n-grams of bytes with modified Kneser-Ney smoothing, the baseline of neural ones.

Interpolated, with three discounts for each order (Chen and Goodman 1998, section 5.2). A text is its UTF-8 bytes, then
an end. The first bytes of a text have as history a beginning and what follows it, no more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.errors import Exit, UserError

BYTES = 256
BEGIN, END = BYTES, BYTES + 1  # symbols of a stream beside the bytes; a beginning is never predicted
OUTCOMES = BYTES + 1  # what may come next: each byte, also one that was never seen, and the end
ORDERS = range(3, 10)  # those tried; a key may hold less
KEY_BITS = 64
PIECE = 2_000  # characters; train is cut into parts so long, and some are held out to choose the order
EVERY = 20  # one part of so many is held out
BLOCK = 2**20  # symbols looked up at a time: about 100 MB
FALLBACK = (0.5, 1.0, 1.5)  # discounts where the counts are too few, or too high, to estimate them

Counts = tuple[np.ndarray, np.ndarray]  # n-grams as numbers, sorted, and how often each was counted


@dataclass(frozen=True)
class NgramModel:
    """N-grams of `order` bytes: a byte is guessed from those before it, `order` - 1 at most.

    They are whole numbers, some bits a byte, in sorted arrays: no two share a place, as hashed ones might.
    """

    order: int
    alphabet: "_Alphabet"
    levels: tuple["_Level", ...]  # n-grams of 1, 2, ... `order` symbols

    @classmethod
    def fit(cls, texts: Iterable[str], order: int | None = None) -> "NgramModel":
        """Count the n-grams of texts; without an `order`, the one that guesses held-out parts of them best is taken.

        Raises UserError: exit 65 where there is no text, 2 for an order that is not between 1 and what fits into 64
        bits (7 bytes of any text, 9 of plain English).
        """
        texts = list(texts)
        if not texts:
            raise UserError(Exit.BAD_DATA, "there is no text to count n-grams of: train is empty")
        stream = _stream(texts)
        alphabet = _Alphabet.of(stream)
        if order is None:
            order = _choose(texts, alphabet)
        if not 1 <= order <= alphabet.longest:
            what = f"n-grams of order {order}: these texts allow 1 to {alphabet.longest}"
            raise UserError(Exit.USAGE, f"{what} ({alphabet.bits} bits a byte, {KEY_BITS} in all)")
        counts = _count(alphabet.codes[stream], order, alphabet)
        adjusted = [_continued(counts[n], counts[n + 1], n, alphabet) for n in range(1, order)]
        return cls(order, alphabet, tuple(_Level.of(each, alphabet) for each in [*adjusted, counts[order]]))

    @property
    def name(self) -> str:
        """Return e.g. `byte 6-grams, Kneser-Ney`."""
        return f"byte {self.order}-grams, Kneser-Ney"

    def bits(self, text: str) -> float:
        """Return minus log2 of the probability that a text is these UTF-8 bytes and then ends."""
        return float(self.bits_each([text])[0])

    def bits_each(self, texts: Sequence[str], before: Sequence[str] | None = None) -> np.ndarray:
        """Return the bits of each text, (texts,); many at once are faster than one by one.

        `before` has for each text what stands before it, a prompt for example: that is read, and costs nothing.
        """
        prompts = [""] * len(texts) if before is None else before
        stream = _stream([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        starts = np.flatnonzero(stream == BEGIN)
        sizes = np.diff(starts, append=len(stream))
        first = [1 + len(prompt.encode("utf-8", "surrogatepass")) for prompt in prompts]  # places before it are read
        row = np.repeat(np.arange(len(texts)), sizes)
        predicted = np.arange(len(stream)) - starts[row] >= np.array(first, dtype=np.int64)[row]
        keys = _ending_here(self.alphabet.codes[stream], self.order, self.alphabet)[predicted]
        return np.bincount(row[predicted], weights=-np.log2(self._probabilities(keys)))

    def distribution(self, before: str) -> np.ndarray:
        """Return the probability of each next byte, and last that of the end, after the beginning of a text, (257,)."""
        return self._after(_stream([before])[:-1].tolist())

    def sample(self, seed: int, most: int, before: str = "") -> str:
        """Return what may follow the beginning of a text, drawn byte by byte up to an end or to `most` bytes.

        Bytes that do not make a character, the last ones for example, are left out.
        """
        symbols, drawn = _stream([before])[:-1].tolist(), bytearray()
        for uniform in np.random.default_rng(seed).random(most):
            upto = np.cumsum(self._after(symbols))
            outcome = int(np.searchsorted(upto, uniform * upto[-1], side="right"))
            if outcome == BYTES:
                break
            drawn.append(outcome)
            symbols.append(outcome)
        return drawn.decode("utf-8", "ignore")

    def _after(self, symbols: list[int]) -> np.ndarray:
        key = 0
        for code in self.alphabet.codes[symbols[max(0, len(symbols) - self.order + 1) :]].tolist():
            key = (key << self.alphabet.bits) | code
        return self._probabilities(np.uint64(key << self.alphabet.bits) | self.alphabet.outcomes)

    def _probabilities(self, keys: np.ndarray) -> np.ndarray:
        """Return the probability of the last symbol of each key after those before it, (keys,)."""
        found = np.full(len(keys), 1 / OUTCOMES)
        for start in range(0, len(keys), BLOCK):
            block = slice(start, start + BLOCK)
            for length, level in enumerate(self.levels, start=1):
                found[block] = level.interpolate(keys[block] & self.alphabet.mask(length), found[block])
        return found


@dataclass(frozen=True)
class _Alphabet:
    """A small number for each symbol: 0 a beginning, 1 the end, then the bytes of train, then all that it lacks."""

    codes: np.ndarray  # (258,) by symbol
    bits: int

    @classmethod
    def of(cls, stream: np.ndarray) -> "_Alphabet":
        seen = np.flatnonzero(np.bincount(stream, minlength=END + 1)[:BYTES])
        codes = np.full(END + 1, len(seen) + 2, dtype=np.uint16)
        codes[BEGIN], codes[END], codes[seen] = 0, 1, np.arange(2, len(seen) + 2)
        return cls(codes, (len(seen) + 2).bit_length())

    @property
    def longest(self) -> int:
        return KEY_BITS // self.bits

    @property
    def outcomes(self) -> np.ndarray:
        return self.codes[[*range(BYTES), END]].astype(np.uint64)  # (257,)

    def mask(self, length: int) -> np.uint64:
        return np.uint64((1 << (self.bits * length)) - 1)

    def shift(self, length: int = 1) -> np.uint64:
        return np.uint64(self.bits * length)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length, and for each history that they begin with what is set aside for shorter ones.

    A history that holds a beginning anywhere but first is in no level. So the keys of shorter texts, and those that
    would reach into the text before, find nothing here and keep the probability of the level below.
    """

    keys: np.ndarray  # (n-grams,) sorted
    worth: np.ndarray  # (n-grams,) counts less their discounts
    histories: np.ndarray  # (histories,) sorted
    totals: np.ndarray  # (histories,) sum of counts
    aside: np.ndarray  # (histories,) sum of discounts
    shift: np.uint64

    @classmethod
    def of(cls, counts: Counts, alphabet: _Alphabet) -> "_Level":
        keys, number = counts
        discount = _discounts(number)[np.minimum(number, 3)]
        histories = keys >> alphabet.shift()
        starts = _starts(histories)
        totals, aside = np.add.reduceat(number, starts), np.add.reduceat(discount, starts)
        return cls(keys, number - discount, histories[starts], totals, aside, alphabet.shift())

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return the probabilities of keys by this level, (keys,), from those by the level below."""
        if not len(self.keys):  # no text of train is that long
            return lower
        distinct, back = np.unique(keys, return_inverse=True)  # searching for sorted keys is several times faster
        worth = _look_up(self.keys, self.worth, distinct)[back]
        history = np.searchsorted(self.histories, distinct >> self.shift)
        history = np.minimum(history, len(self.histories) - 1)
        known = (self.histories[history] == distinct >> self.shift)[back]
        history = history[back]
        return np.where(known, (worth + self.aside[history] * lower) / self.totals[history], lower)


def parts(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts cut into parts of PIECE characters; a text's last part may be shorter, and an empty text is one."""
    for text in texts:
        for start in range(0, max(1, len(text)), PIECE):
            yield text[start : start + PIECE]


def _stream(texts: Sequence[str]) -> np.ndarray:
    """Return all texts as symbols: for each a beginning, its bytes, an end."""
    each = (text.encode("utf-8", "surrogatepass").decode("latin-1") for text in texts)
    joined = "".join(f"{chr(BEGIN)}{text}{chr(END)}" for text in each)
    return np.frombuffer(joined.encode("utf-16-le"), dtype="<u2")


def _ending_here(codes: np.ndarray, length: int, alphabet: _Alphabet) -> np.ndarray:
    """Return for each place of a stream the key of the `length` symbols that end there, as if beginnings came first."""
    keys = np.zeros(len(codes), dtype=np.uint64)
    for back in reversed(range(length)):
        keys <<= alphabet.shift()
        keys[back:] |= codes[: max(0, len(codes) - back)]
    return keys


def _count(codes: np.ndarray, longest: int, alphabet: _Alphabet) -> dict[int, Counts]:
    """Return the counts of the n-grams of each length up to the longest, of those within one text.

    One sort is enough: cut off at the right, sorted n-grams remain sorted.
    """
    keys = _ending_here(np.concatenate([codes, np.zeros(longest - 1, dtype=codes.dtype)]), longest, alphabet)
    keys = keys[longest - 1 :]  # (symbols,) of those that begin at each place
    keys.sort()
    keys, number = _distinct(keys)
    found = {}
    for length in range(longest, 0, -1):
        within = np.ones(len(keys), dtype=bool)
        for place in range(max(1, length - 1)):  # from the right
            within &= (keys >> alphabet.shift(place)) & alphabet.mask(1) != alphabet.codes[BEGIN]
        found[length] = keys[within], number[within]
        keys = keys >> alphabet.shift()
        starts = _starts(keys)
        keys, number = keys[starts], np.add.reduceat(number, starts)
    return found


def _continued(counts: Counts, longer: Counts, length: int, alphabet: _Alphabet) -> Counts:
    """Return how many different symbols precede each n-gram; of those that begin a text, their counts."""
    inner = longer[0] & alphabet.mask(length)
    inner.sort()
    keys, number = _distinct(inner)
    first = counts[0] >> alphabet.shift(length - 1) == alphabet.codes[BEGIN]  # they have the smallest keys
    return np.concatenate([counts[0][first], keys]), np.concatenate([counts[1][first], number])


def _choose(texts: Sequence[str], alphabet: _Alphabet) -> int:
    """Return the order that needs the fewest bits for parts held out of the texts."""
    orders = [order for order in ORDERS if order <= alphabet.longest]
    pieces = list(parts(texts))
    held_out = set(range(EVERY // 2, len(pieces), EVERY)) or {len(pieces) - 1}
    kept = [piece for i, piece in enumerate(pieces) if i not in held_out]
    if not kept:
        return orders[0]
    counts = _count(alphabet.codes[_stream(kept)], orders[-1], alphabet)
    stream = _stream([pieces[i] for i in sorted(held_out)])
    keys = _ending_here(alphabet.codes[stream], orders[-1], alphabet)[stream != BEGIN]
    below, bits = np.full(len(keys), 1 / OUTCOMES), {}
    for order in range(1, orders[-1] + 1):
        own = keys & alphabet.mask(order)
        if order in orders:
            bits[order] = -np.log2(_Level.of(counts[order], alphabet).interpolate(own, below)).sum()
        if order < orders[-1]:
            adjusted = _continued(counts[order], counts[order + 1], order, alphabet)
            below = _Level.of(adjusted, alphabet).interpolate(own, below)
    return min(bits, key=lambda order: bits[order])


def _discounts(number: np.ndarray) -> np.ndarray:
    """Return what is taken off a count of 0, 1, 2, and of 3 or more, (4,): Chen and Goodman 1998, equation 26."""
    once, twice, thrice, four = (int((number == times).sum()) for times in (1, 2, 3, 4))
    found = np.array([0.0, *FALLBACK])
    if once and twice and thrice:
        share = once / (once + 2 * twice)
        estimated = [1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice]
        if all(0 < discount <= times for times, discount in enumerate(estimated, start=1)):
            found[1:] = estimated
    return found


def _distinct(ordered: np.ndarray) -> Counts:
    """Return the different values of a sorted array, and how often each is there."""
    starts = _starts(ordered)
    return ordered[starts], np.diff(starts, append=len(ordered))


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Return where each run of equal values of a sorted array begins."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the values of keys, 0 where there is no such key; `keys` are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
