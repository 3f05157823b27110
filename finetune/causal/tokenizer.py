"""Byte-level BPE, as GPT-2 has it: learnt from texts, so that no text holds an unknown token and none is lost."""

import copy
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.config import configclass, field, to_tree
from finetune.pretraining.stores import cached

END_OF_TEXT = "<|endoftext|>"
SMALLEST = 257  # the bytes, and the end of a text
TEXTS_AT_ONCE = 4_096


@configclass
class VocabularyConfig:
    """Whether a vocabulary is learnt from train, and how."""

    train: bool | None = field(None, "learn one; null: yes without a model, else that of the model")
    vocab_size: Annotated[int, Field(ge=SMALLEST)] = field(
        16_000, "entries at most, with bytes and end-of-text; this and the next are refused with a model"
    )
    min_frequency: Annotated[int, Field(gt=0)] = field(2, "a pair of pieces that is joined is seen so often")


def learn(texts: Sequence[str], config: VocabularyConfig, max_length: int) -> PreTrainedTokenizerBase:
    """Learn a byte-level BPE (Radford et al. 2019, section 2.2) from texts; its only special token is the end of text.

    The same texts and settings give the same entries, learnt once and kept in the cache.
    """
    key = {"kind": "byte-level BPE", "texts": digest(texts), "settings": to_tree(config) | {"train": True}}

    def write(folder: Path) -> dict[str, Any]:
        _train(texts, config).save(str(folder / "tokenizer.json"))
        return {}

    folder, _ = cached(key, write)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")), model_max_length=max_length,
        bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def digest(texts: Iterable[str]) -> str:
    """Return what identifies some texts in their order."""
    found = hashlib.blake2b(digest_size=20)
    for text in texts:
        part = text.encode("utf-8", "surrogatepass")
        found.update(len(part).to_bytes(8) + part)
    return found.hexdigest()


class TextEncoder:
    """Turns texts into token numbers; what looks like an end-of-text token inside a text is text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.vocab_size = len(tokenizer)
        self._end = tokenizer.eos_token_id

    @property
    def end(self) -> int:
        """Return the number of the end-of-text token, which BERT's tokenizers do not have."""
        return int(self._end)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of each text, without special tokens around them."""
        found: list[list[int]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = list(texts[start : start + TEXTS_AT_ONCE])
            found += [one.ids for one in self._backend.encode_batch_fast(batch, add_special_tokens=False)]
        return found

    def identity(self) -> str:
        """Return a digest of everything that decides how a text is cut."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()


def _train(texts: Sequence[str], config: VocabularyConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, min_frequency=config.min_frequency, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=[END_OF_TEXT],
    )  # fmt: skip
    tokenizer.train_from_iterator(iter(texts), trainer, length=len(texts))
    return tokenizer
