"""Texts as token numbers in flat arrays; what is too long is counted, and cut, refused or split into windows."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Split
from finetune.errors import Exit, UserError

OnLong = Literal["truncate", "error", "window"]
TEXTS_AT_ONCE = 2_000
MAX_UNKNOWN_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token rows of a split. An example is a text, or one window of it; `row` says of which row of the split."""

    tokens: np.ndarray  # (all tokens,) int32
    types: np.ndarray | None  # (all tokens,) int8: 1 in the second text of a pair
    offsets: np.ndarray  # (examples + 1,) int64
    row: np.ndarray  # (examples,) int64
    rows: int
    long: int  # rows with more than max_length tokens
    full_lengths: np.ndarray  # (rows,) tokens before anything was cut
    unknown_rate: float

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each example."""
        return np.diff(self.offsets)

    def example(self, index: int) -> np.ndarray:
        """Return the token numbers of one example."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def example_types(self, index: int) -> np.ndarray:
        """Return the token types of one example of a pair."""
        assert self.types is not None
        return self.types[self.offsets[index] : self.offsets[index + 1]]


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, on_long: OnLong) -> Encoded:
    """Turn the texts of a split into token numbers.

    Windows overlap by a quarter of max_length. Raises UserError 65 for a long text under on_long=error, and where
    most of the tokens of a file are unknown (the tokenizer's files are not the model's, or it is another script).
    """
    texts, pairs = split.texts(), split.pairs()
    examples: list[list[int]] = []
    types: list[list[int]] = []
    row_of: list[int] = []
    full: list[int] = []
    unknown: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        second = None if pairs is None else pairs[part]
        coded = tokenizer(texts[part], second, return_attention_mask=False, return_token_type_ids=True)
        for offset, ids in enumerate(coded["input_ids"]):
            row = start + offset
            full.append(len(ids))
            unknown.append(ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0)
            if len(ids) <= max_length:
                pieces = [(ids, coded["token_type_ids"][offset])]
            else:
                _refuse_long(split, row, len(ids), max_length, on_long)
                if pairs is not None and on_long == "window":
                    alone = len(tokenizer(texts[row], add_special_tokens=False)["input_ids"])
                    _refuse_full(split, row, alone + tokenizer.num_special_tokens_to_add(pair=True), max_length)
                found = fit(tokenizer, texts[row], None if pairs is None else pairs[row], max_length, on_long)
                pieces = [(piece.ids, piece.type_ids) for piece in found]
            for piece, piece_types in pieces:
                examples.append(piece)
                types.append(piece_types)
                row_of.append(row)
    _refuse_unknown(split, np.array(unknown), np.array(full))
    return Encoded(
        tokens=_flat(examples, np.int32),
        types=_flat(types, np.int8) if pairs is not None else None,
        offsets=np.cumsum([0, *map(len, examples)]),
        row=np.array(row_of, dtype=np.int64),
        rows=len(texts),
        long=int(sum(length > max_length for length in full)),
        full_lengths=np.array(full, dtype=np.int64),
        unknown_rate=sum(unknown) / max(1, sum(full)),
    )


def fit(
    tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None, max_length: int, on_long: OnLong
) -> list[Encoding]:
    """Return the tokens of one text or pair as a model reads them, with their places: cut, or in windows, if long."""
    window = on_long == "window"
    found: list[Encoding] = tokenizer(
        text,
        pair,
        truncation="longest_first" if pair is None or not window else "only_second",
        max_length=max_length,
        stride=max_length // 4 if window else 0,
        return_overflowing_tokens=window,
    ).encodings
    return found


def check_read(pieces: Sequence[Encoding], text: str) -> None:
    """Raise UserError (65) where a model reads nothing of a text but special tokens."""
    if all(all(piece.special_tokens_mask) for piece in pieces):
        raise UserError(Exit.BAD_DATA, f"nothing of the text is read: {text[:60]!r} has no token; give another")


def _refuse_unknown(split: Split, unknown: np.ndarray, full: np.ndarray) -> None:
    """Refuse a split where the tokenizer knows less than half of a file: a language of several must not hide."""
    numbers = [number for block in split.blocks(["file"]) for number in block["file"].to_pylist()]
    file_of_row = np.array(numbers, dtype=np.int64)
    totals = np.bincount(file_of_row, weights=full, minlength=len(split.files))
    rates = np.bincount(file_of_row, weights=unknown, minlength=len(split.files)) / np.maximum(totals, 1)
    worst = int(rates.argmax())
    if rates[worst] > MAX_UNKNOWN_RATE:
        where = f" in {split.files[worst]}" if len(split.files) > 1 else ""
        raise UserError(
            Exit.BAD_DATA,
            f"{split.name}: {100 * rates[worst]:.0f} % of the tokens{where} are unknown to the tokenizer; "
            "its files are not the model's, or the model does not know this script",
        )


def _refuse_long(split: Split, row: int, length: int, max_length: int, on_long: OnLong) -> None:
    if on_long == "error":
        raise UserError(
            Exit.BAD_DATA,
            f"{split.where(row)} has {length:,} tokens, more than max_length={max_length}\n"
            "give data.on_long=truncate or window, or a larger max_length",
        )


def _refuse_full(split: Split, row: int, first: int, max_length: int) -> None:
    """Refuse a pair whose first text, which every window repeats, leaves no room beyond the overlap."""
    if max_length - first <= max_length // 4:
        raise UserError(
            Exit.BAD_DATA,
            f"{split.where(row)}: the first text of the pair has {first:,} tokens: no room for windows of the second\n"
            f"give data.on_long=truncate, or a max_length well above {max_length}",
        )


def _flat(rows: list[list[int]], kind: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.array(row, dtype=kind) for row in rows]) if rows else np.zeros(0, dtype=kind)
