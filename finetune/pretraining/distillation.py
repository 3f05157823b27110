"""A teacher's vectors of the source sentences, worked out once and kept on disk (Reimers and Gurevych 2020)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from transformers import AutoModel, BertModel, PreTrainedTokenizerBase

from finetune import cpu, hardware, pretrained, terminal
from finetune.baselines import cache_folder
from finetune.data.batching import cut_by_tokens
from finetune.errors import Exit, UserError
from finetune.pretraining.model import sentence_vectors
from finetune.pretraining.stores import Rows, framed
from finetune.run import disk_errors

SENTENCES_AT_ONCE = 4_096
TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 1 << 17}
KIND = np.float16  # of the vectors on disk: their rounding is a thousandth of the distances that are left in the end


class Teacher:
    """A sentence encoder that is not trained: the mean over the tokens of a sentence is its vector."""

    def __init__(self, name: str, max_length: int, *, use_cpu: bool = False) -> None:
        self.source = pretrained.locate(name)
        self.tokenizer: PreTrainedTokenizerBase = pretrained.load_tokenizer(self.source)
        self.max_length = max_length
        network = pretrained.load_model(AutoModel, self.source, self.tokenizer)
        if type(network) is not BertModel:
            raise UserError(Exit.USAGE, f"teacher={name} is {network.config.model_type}; give a BERT checkpoint")
        cpu.prepare(network)
        self.network = network.eval().to(hardware.device_type(use_cpu))

    @property
    def width(self) -> int:
        """Return the number of dimensions of a vector."""
        return int(self.network.config.hidden_size)

    def encode(self, rows: Rows, numbers: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows of tokens, (sentences, dim) in float16."""
        device = self.network.device
        marks = (int(self.tokenizer.cls_token_id), int(self.tokenizer.sep_token_id), int(self.tokenizer.pad_token_id))
        _, sizes = rows.some(numbers, self.max_length - 2)
        lengths = sizes + 2
        vectors = np.empty((len(numbers), self.width), dtype=KIND)
        with torch.inference_mode():
            for part in cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, TOKENS_AT_ONCE[device.type], 4_096):
                ids, mask = map(torch.from_numpy, framed(*rows.some(numbers[part], self.max_length - 2), marks))
                _, mean = sentence_vectors(self.network, ids.to(device), mask.to(device))
                vectors[part] = mean.cpu().numpy().astype(KIND)
        return vectors


class Vectors:
    """The teacher's vectors of some sentences, by number; worked out when asked for, until they are `remember`ed."""

    def __init__(self, teacher: Teacher, rows: Rows) -> None:
        self.teacher, self.rows = teacher, rows
        self._numbers = np.arange(len(rows))  # the sentences that are remembered, in rising order
        self._cached: np.ndarray | None = None

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """Return the vectors of some sentences, (sentences, dim) float32 on the CPU."""
        if self._cached is None:
            found = self.teacher.encode(self.rows, numbers)
        else:
            found = self._cached[np.searchsorted(self._numbers, numbers)]
        return torch.from_numpy(found.astype(np.float32))

    def remember(self, needed: np.ndarray | None = None) -> None:
        """Work out all vectors, or find them in the cache; where a run needs fewer than half of them, only those.

        They are made in a fixed order, so that their last digits depend on what is needed and not on the course of a
        run. A process that is killed goes on where it stopped: what is not there yet is NaN.
        """
        if needed is not None and 2 * len(needed) < len(self.rows):
            self._numbers = np.unique(needed)
        folder, shape = cache_folder("vectors"), (len(self._numbers), self.teacher.width)
        with disk_errors(next(path for path in [folder, *folder.parents] if path.exists())):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{self._identity()}.npy"
            if not _is_whole(path, shape):
                with FileLock(path.with_suffix(".lock")):  # two runs would fill one draft, and take it from each other
                    if not _is_whole(path, shape):
                        self._fill(path, shape)
        self._cached = np.load(path, mmap_mode="r", allow_pickle=False)

    def _identity(self) -> str:
        digest = hashlib.sha256(f"{self.teacher.source.identity} {self.teacher.max_length}".encode())
        digest.update(np.ascontiguousarray(self._numbers).tobytes())
        digest.update(np.ascontiguousarray(self.rows.offsets).tobytes())
        for start in range(0, len(self.rows.tokens), 1 << 20):
            digest.update(np.ascontiguousarray(self.rows.tokens[start : start + (1 << 20)]).tobytes())
        return digest.hexdigest()

    def _fill(self, path: Path, shape: tuple[int, int]) -> None:
        draft = path.with_name(f".tmp-{path.name}")
        if not _is_whole(draft, shape):
            empty = np.lib.format.open_memmap(draft, mode="w+", dtype=KIND, shape=shape)
            empty[:] = np.nan
            empty.flush()
        found = np.lib.format.open_memmap(draft, mode="r+")
        with terminal.progress() as bar:
            task = bar.add_task("teacher", total=shape[0], note="")
            for start in range(0, shape[0], SENTENCES_AT_ONCE):
                part = np.arange(start, min(shape[0], start + SENTENCES_AT_ONCE))
                if np.isnan(found[part]).any():
                    found[part] = self.teacher.encode(self.rows, self._numbers[part])
                    found.flush()
                bar.update(task, completed=int(part[-1]) + 1)
        draft.replace(path)


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(stored.shape == shape and stored.dtype == KIND)


def check_widths(teacher: Teacher, width: int) -> None:
    """Refuse a student whose vectors have not the dimensions of its teacher's."""
    if teacher.width != width:
        raise UserError(
            Exit.USAGE,
            f"the teacher's vectors have {teacher.width} dimensions, the model's {width}: they cannot be compared\n"
            f"give network.hidden_size={teacher.width}, or a model of that width",
        )
