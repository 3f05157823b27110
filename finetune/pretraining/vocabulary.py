"""A WordPiece vocabulary for several languages, and embeddings for it in a body that had another one."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

from finetune.config import configclass, field, to_tree
from finetune.data.read import Source, is_text
from finetune.pretraining.masking import CONTINUATION
from finetune.pretraining.stores import cached

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # by number
SHARE_OF_CHARACTERS = 4  # one entry in so many may be a character: rarer characters are unknown


@configclass
class VocabularyConfig:
    """Whether a vocabulary is learnt from train, and how."""

    train: bool | None = field(None, "learn one; null: yes without a model, else that of the model")
    vocab_size: Annotated[int, Field(gt=len(SPECIALS))] = field(24_000, "entries at most, with the special ones")
    lowercase: bool = field(True, "letters are made small")
    strip_accents: bool = field(False, "accents are taken off, as in English uncased BERT")
    min_frequency: Annotated[int, Field(gt=0)] = field(2, "a pair of pieces that is joined is seen so often")
    embeddings: Literal["copied", "aligned"] = field(
        "copied",
        "of a new vocabulary in a model: copied where both have an entry, else drawn; aligned: means of those that an "
        "entry translates in data.parallel",
    )


def learn(
    texts: Mapping[str, list[Source]], reading: str, config: VocabularyConfig, exponent: float, max_length: int
) -> PreTrainedTokenizerBase:
    """Learn a WordPiece tokenizer from the texts of each language; the same texts give the same entries.

    `reading` says how the texts were taken from their files. A language with n characters counts in proportion to
    n ** exponent (Devlin's notes on multilingual BERT: 0.7): the lines of the smaller ones are given several times.
    """
    digests = {code: [source.identity for source in sources] for code, sources in texts.items()}
    settings = to_tree(config) | {"train": True}
    key = {"kind": "vocabulary", "texts": digests, "reading": reading, "settings": settings, "exponent": exponent}

    def write(folder: Path) -> dict[str, Any]:
        lines = {code: folder / f"{number}.lines" for number, code in enumerate(texts)}
        tokenizer, characters = _tokenizer(config), Counter[str]()
        sizes = {code: _spool(texts[code], path, tokenizer, characters) for code, path in lines.items()}
        entries = _train(tokenizer, _balanced(lines, repeats(sizes, exponent)), characters, config)
        (folder / "vocabulary.json").write_text(json.dumps(entries), encoding="utf-8")
        for path in lines.values():
            path.unlink()
        return {"characters": sizes}

    folder, _ = cached(key, write)
    entries = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return BertTokenizerFast(
        vocab=entries, do_lower_case=config.lowercase, strip_accents=config.strip_accents, model_max_length=max_length
    )


def repeats(sizes: Mapping[str, int], exponent: float) -> dict[str, float]:
    """Return how often each language is seen in a pass: the largest once, one of size n (largest / n) ** (1 - e) times.

    The shares are then in proportion to n ** e, and no text is left out.
    """
    most = max(sizes.values())
    return {code: (most / size) ** (1 - exponent) for code, size in sizes.items()}


def new_embeddings(
    old: Tensor, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, seed: int
) -> tuple[Tensor, Tensor]:
    """Return embeddings (entries, dim) for a new vocabulary, and the number that each row had before, -1 for a new one.

    The rows of entries that both vocabularies have are copied; the others are drawn around the mean of the old rows
    with their standard deviation, dimension by dimension (Artetxe et al. 2020 begin at random; copying is what the
    shared entries of related languages allow).
    """
    numbers = before.get_vocab()
    entries = after.convert_ids_to_tokens(range(len(after)))
    rows = torch.tensor([numbers.get(str(entry), -1) for entry in entries])
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(rows), old.shape[1], generator=random) * old.std(dim=0) + old.mean(dim=0)
    return torch.where((rows >= 0)[:, None], old[rows.clamp(min=0)], drawn), rows


def _tokenizer(config: VocabularyConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=config.strip_accents, lowercase=config.lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _train(
    tokenizer: Tokenizer, lines: Iterator[str], characters: Counter[str], config: VocabularyConfig
) -> dict[str, int]:
    """Learn entries and their numbers; the same lines give the same ones.

    The trainer numbers the characters inside words in the order of a hash table, and breaks ties by number, so two runs
    gave two vocabularies. It keeps numbers that are there before it begins: those of special tokens.
    """
    known = sorted(characters, key=lambda character: (-characters[character], character))
    alphabet = sorted(known[: config.vocab_size // SHARE_OF_CHARACTERS])
    inside = [f"{CONTINUATION}{character}" for character in alphabet if _goes_on(character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size, min_frequency=config.min_frequency, initial_alphabet=alphabet,
        limit_alphabet=len(alphabet), special_tokens=[*SPECIALS, *inside], show_progress=False,
        continuing_subword_prefix=CONTINUATION,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))


def _goes_on(character: str) -> bool:
    """Tell whether a character can stand inside a word: signs and CJK characters are words of their own."""
    if unicodedata.category(character).startswith(("P", "S", "Z", "C")):
        return False
    return not unicodedata.name(character, "").startswith("CJK ")


def _spool(sources: list[Source], path: Path, tokenizer: Tokenizer, counted: Counter[str]) -> int:
    """Write the lines of some sources into one file, sides of pairs once each, and return their characters.

    `counted` takes up how often each character occurs once a line is normalised.
    """
    characters = 0
    seen: set[int] = set()
    with path.open("w", encoding="utf-8", errors="replace") as stream:
        for source in sources:
            for _, values in source.rows:
                text = " ".join(str(values[0] or "").split())
                if not is_text(source.name):  # a sentence stands in the file of each language that it is paired with
                    if (key := _number(text)) in seen:
                        continue
                    seen.add(key)
                characters += len(text)
                counted.update(tokenizer.normalizer.normalize_str(text).replace(" ", ""))
                stream.write(text + "\n")
    return max(1, characters)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


def _balanced(lines: Mapping[str, Path], times: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of each language, each `times` as often; fractions are spread evenly."""
    for code, path in lines.items():
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream):
                copies = int(np.floor((number + 1) * times[code]) - np.floor(number * times[code]))
                for _ in range(copies):
                    yield line
