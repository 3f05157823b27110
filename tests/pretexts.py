"""Small made-up languages for the tests of pretraining: the words of one list, written in each in its own way."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

WORDS = (
    "cat", "dog", "hill", "river", "bird", "town", "road", "stone", "boat", "tree", "house", "light",
    "runs", "sees", "finds", "takes", "likes", "leaves", "old", "green", "small", "fast", "the", "a",
)  # fmt: skip
BRIEF = (  # what a run that begins with a model reads too
    "max_length=32", "train.max_tokens_per_batch=512", "train.mixed_precision=no", "train.use_cpu=true",
    "train.learning_rate=3e-3",
)  # fmt: skip
NEW_WORDS = ("vocabulary.vocab_size=240", *BRIEF)
SMALL = (
    "network.hidden_size=32", "network.num_hidden_layers=1", "network.num_attention_heads=2",
    "network.intermediate_size=64", *NEW_WORDS,
)  # fmt: skip


def spelt(word: str, language: str) -> str:
    """Write a word of the list in one of the languages."""
    return {"en": word, "it": f"{word[::-1]}o", "de": f"{word}en"}[language]


def sentence(random: np.random.Generator, words: Sequence[str] = WORDS) -> str:
    """Return an English sentence of some words."""
    return " ".join(random.choice(words, int(random.integers(4, 10))))


def translated(text: str, language: str) -> str:
    """Write an English sentence in another language, word by word."""
    return " ".join(spelt(word, language) for word in text.split())


def write_mono(folder: Path, language: str, documents: int = 60, seed: int = 1) -> Path:
    """Write mono.LANGUAGE.txt: documents of two to six lines, each of three words alone, a blank line between them."""
    random = np.random.default_rng(seed)
    path = folder / f"mono.{language}.txt"
    texts = []
    for _ in range(documents):
        words = [str(word) for word in random.choice(WORDS, 3, replace=False)]
        lines = [translated(sentence(random, words), language) for _ in range(random.integers(2, 7))]
        texts.append("\n".join(lines))
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def write_pairs(folder: Path, language: str, pairs: int = 200, seed: int = 2) -> Path:
    """Write parallel.en-LANGUAGE.jsonl.gz; the English sentences are the same for each language."""
    random = np.random.default_rng(seed)
    texts = [sentence(random) for _ in range(pairs)]
    rows = [{"en": text, language: translated(text, language)} for text in texts]
    return write_rows(folder / f"parallel.en-{language}.jsonl.gz", rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write JSON Lines, packed."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))  # without the time: the same rows are the same bytes
    return path
