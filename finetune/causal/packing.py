"""Documents as blocks without padding and without loss of text, each token blind to other documents.

The stream of tokens is: end-of-text, a document, end-of-text, a document, ..., end-of-text. Every token but the first
is predicted once. The end-of-text token that closes a document is predicted by it; read, it opens the next one at
position 0, and nothing after it sees what stands before it. Position and attention begin anew at the start of a block
too.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.causal.tokenizer import TextEncoder, digest
from finetune.data.batching import Batch, Examples, pad
from finetune.pretraining.stores import Rows, Writer, cached

IGNORED = -100  # the label of a token that is read and not predicted
TEXTS_AT_ONCE = 4_096


def store(texts: Sequence[str], encoder: TextEncoder) -> Rows:
    """Return the tokens of each document, and its end, from the cache on disk or written into it."""

    def write(folder: Path) -> dict[str, Any]:
        with Writer(folder, "documents", encoder.vocab_size) as writer:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                for row in encoder.encode(texts[start : start + TEXTS_AT_ONCE]):
                    writer.add([*row, encoder.end])
        return {}

    key = {"kind": "causal documents", "texts": digest(texts), "tokens": encoder.identity(), "end": encoder.end}
    return Rows.read(cached(key, write)[0], "documents")


def blocks(documents: Rows, length: int, end: int, where: Callable[[int], str] = str) -> Examples:
    """Cut documents, one after the other, into blocks of `length` predicted tokens; the last one may be shorter.

    `where` names a document; a block is named by the first of its documents. A batch has what `_batch` says.
    """
    tokens = documents.tokens
    total = len(tokens)  # the predicted tokens: all of the documents, and their ends
    starts = np.arange(0, total, length)
    sizes = np.minimum(length, total - starts)

    def make(chosen: np.ndarray) -> Batch:
        rows, gold = [], []
        for block in chosen:
            start, size = int(starts[block]), int(sizes[block])
            before = end if start == 0 else tokens[start - 1]
            rows.append(np.concatenate([[before], tokens[start : start + size - 1]]))
            gold.append(np.asarray(tokens[start : start + size]))
        inputs = pad(rows, end)
        return _batch(inputs, pad(gold, IGNORED), positions(inputs, end), chosen)

    def name(block: int) -> str:
        return where(int(np.searchsorted(documents.offsets, starts[block], side="right")) - 1)

    return Examples(sizes, make, name)


def positions(input_ids: Tensor, end: int) -> Tensor:
    """Return the place of each token in its document, (batch, time): 0 at each end-of-text and at the block's start."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begins = torch.where(input_ids == end, places, 0)
    return places - begins.cummax(dim=1).values


def _batch(inputs: Tensor, labels: Tensor, position_ids: Tensor, chosen: np.ndarray) -> Batch:
    """Return a batch of inputs (batch, time) whose items are the labels: the label of a place is the next token.

    Tensors: input_ids; places, of the labels in the flattened batch, and gold, (places,) each; position_ids (batch,
    time) where a document begins inside a row. That is found out here, on the CPU: a GPU would be waited for.
    """
    places = (labels.flatten() != IGNORED).nonzero()[:, 0]
    tensors = {"input_ids": inputs, "places": places, "gold": labels.flatten()[places]}
    if bool((position_ids != torch.arange(inputs.shape[1])).any()):
        tensors["position_ids"] = position_ids
    return Batch(tensors, len(places), chosen)


def document_mask(position_ids: Tensor) -> Tensor:
    """Return what each token may see, (batch, 1, time, time), True = seen: as far back as its position counts.

    transformers 5.23 makes the same mask of position_ids, but only with use_cache=False and without an attention_mask:
    a document would leak where either is forgotten.
    """
    time = position_ids.shape[1]
    places = torch.arange(time, device=position_ids.device)
    first = places - position_ids  # (batch, time): where the token's document begins
    seen = (places >= first[:, :, None]) & (places <= places[:, None])  # (batch, time, time)
    return seen[:, None]


@dataclasses.dataclass(frozen=True)
class Completions:
    """Rows of prompt and completion: `rows` begin and end with end-of-text; `prompt` counts what is not predicted.

    `row` says of which row of the split each is; `long` counts the rows that were above the longest length, `alone`
    those of `rows` whose completion is so by itself: it has no prompt left, and training reads its beginning alone.
    """

    rows: list[np.ndarray]
    prompt: np.ndarray  # (rows,) tokens before the completion, the first end-of-text included
    row: np.ndarray
    long: int = 0
    alone: int = 0


def completion_examples(found: Completions, end: int, where: Callable[[int], str] = str) -> Examples:
    """Return prompts with completions for the trainer: padded on the right, a row by itself, unlike documents."""
    lengths = np.array([len(row) - 1 for row in found.rows], dtype=np.int64)

    def make(chosen: np.ndarray) -> Batch:
        inputs = pad([found.rows[index][:-1] for index in chosen], end)
        gold = [_masked(found.rows[index][1:], int(found.prompt[index]) - 1) for index in chosen]
        # Padding stands behind all that is predicted, where nothing sees it.
        return _batch(inputs, pad(gold, IGNORED), torch.arange(inputs.shape[1]).expand_as(inputs), chosen)

    return Examples(lengths, make, lambda example: where(int(found.row[example])))


def _masked(gold: np.ndarray, hidden: int) -> np.ndarray:
    masked = np.array(gold, dtype=np.int64)
    masked[:hidden] = IGNORED
    return masked
