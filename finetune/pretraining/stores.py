"""Token numbers on disk: written once for each file and tokenizer, read as views, so that a corpus needs no memory."""

import copy
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from finetune.baselines import cache_folder
from finetune.pretraining.masking import CONTINUATION
from finetune.run import disk_errors, read_json

CACHE_VERSION = 1  # raise it with every change that alters what is stored
TEXTS_AT_ONCE = 4_096
SMALL_VOCABULARY = 1 << 16


@dataclass(frozen=True)
class Rows:
    """Rows of token numbers, one after the other in a file; row i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the tokens of a row, a view."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def some(self, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `most` tokens of each of some rows, one after the other, and how many of each, (rows,)."""
        sizes = np.minimum(self.offsets[rows + 1] - self.offsets[rows], most)
        return self.tokens[ranges(self.offsets[rows], sizes)], sizes

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, (rows,)."""
        return np.diff(self.offsets)

    @classmethod
    def read(cls, folder: Path, name: str) -> "Rows":
        """Open rows that `Writer` wrote."""
        offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
        kind = read_json(folder / f"{name}.json")["kind"]
        path = folder / f"{name}.tokens"
        empty = path.stat().st_size == 0  # which cannot be mapped
        return cls(np.zeros(0, dtype=kind) if empty else np.memmap(path, dtype=kind, mode="r"), offsets)


def ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the numbers from each start on, as many as its size, one range after the other, (sum of sizes,)."""
    ends = np.cumsum(sizes)
    numbers: np.ndarray = np.arange(int(sizes.sum())) + np.repeat(starts - (ends - sizes), sizes)
    return numbers


def framed(tokens: np.ndarray, sizes: np.ndarray, marks: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Stack texts of some sizes, whose tokens stand one after the other, between [CLS] and [SEP], and [PAD] behind.

    `marks` are the numbers of those three. Returns the tokens and 1 where they are real, (texts, time) int64 each.
    """
    cls, sep, pad = marks
    size = sizes[:, None]
    steps = np.arange(size.max() + 2)
    ids = np.full((len(sizes), len(steps)), pad, dtype=np.int64)
    ids[:, 0] = cls
    ids[(steps > 0) & (steps <= size)] = tokens
    ids[steps == size + 1] = sep
    return ids, (steps <= size + 1).astype(np.int64)


class Writer:
    """Writes rows of token numbers into a folder, as two bytes each where the vocabulary allows it."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self.folder, self.name = folder, name
        self.kind = "uint16" if vocab_size <= SMALL_VOCABULARY else "uint32"
        self.offsets = array("q", [0])
        self._stream: IO[bytes] = (folder / f"{name}.tokens").open("wb")

    def add(self, row: Sequence[int]) -> None:
        """Append one row."""
        self._stream.write(np.asarray(row, dtype=self.kind).tobytes())
        self.offsets.append(self.offsets[-1] + len(row))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        np.save(self.folder / f"{self.name}.offsets.npy", np.frombuffer(self.offsets, dtype=np.int64))
        (self.folder / f"{self.name}.json").write_text(json.dumps({"kind": self.kind}), encoding="utf-8")


class Encoder:
    """Turns texts into token numbers, many at a time, and counts words and unknown tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)  # that of minilm cuts texts at 128 tokens and pads
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = len(tokenizer)
        self._continues = np.array(
            [str(token).startswith(CONTINUATION) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
        )
        self.words = self.unknown = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of each text, without special tokens around them."""
        if not texts:
            return []
        coded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows: list[list[int]] = [one.ids for one in coded]
        flat = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)
        self.words += int((~self._continues[flat]).sum())
        self.unknown += int((flat == self.tokenizer.unk_token_id).sum())
        return rows

    def identity(self) -> str:
        """Return a digest of everything that decides how a text is cut."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()


def in_batches(rows: Iterator[Any], size: int = TEXTS_AT_ONCE) -> Iterator[list[Any]]:
    """Yield the rows as lists of at most `size`."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def cached(key: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return a folder that holds what `write` puts there, with the figures that it returns, made once for each key.

    The key names content (digests of files and tokenizer), so an edited file cannot meet old tokens. A folder appears
    whole or not at all; one that lost a file is made anew.
    """
    text = json.dumps({**key, "version": CACHE_VERSION}, sort_keys=True)
    folder = cache_folder("corpora") / hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    figures = _figures(folder)
    if figures is not None:
        return folder, figures
    with disk_errors(_existing(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # two processes would take an entry from each other
            figures = _figures(folder)
            return folder, _write(folder, write) if figures is None else figures


def _write(folder: Path, write: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    draft = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        figures = dict(write(draft))
        sizes = {path.name: path.stat().st_size for path in draft.iterdir()}
        (draft / "figures.json").write_text(json.dumps({"figures": figures, "sizes": sizes}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return figures


def _figures(folder: Path) -> dict[str, Any] | None:
    try:
        stored = read_json(folder / "figures.json")
        whole = all((folder / name).stat().st_size == size for name, size in stored["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(stored["figures"]) if whole else None


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.parents] if path.exists())
