"""What generated texts are like without a reference: diversity, repetition, copying from train, length.

And what summaries add to their sources. Words are those of `text_metrics.words`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import numpy as np

from finetune.text_metrics import tokenizer_for, words

DEFINITIONS: dict[str, str] = {
    "distinct_1": "Different words over all words of all texts, 0 to 1 (Li et al. 2016); falls as texts grow.",
    "distinct_2": "Different pairs of neighbouring words over all such pairs; otherwise as distinct_1.",
    "distinct_3": "Different runs of three words over all such runs; otherwise as distinct_1.",
    "self_bleu": (
        "Mean BLEU, 0 to 100, of each text with all others as its references (Zhu et al. 2018), by sacrebleu for "
        "sentences; high: the texts are alike; 0 for a single text; of more than 100 texts, 100 at equal distances."
    ),
    "repetition": "Share of the runs of four words that stood earlier in the same text, over all texts together.",
    "copied_8": "Share of the runs of eight words that stand in a training text, over all texts together.",
    "longest_copied": "The longest run of words, in any of the texts, that stands in a training text, in words.",
    "mean_longest_copied": "Mean over texts of the longest run of words that stands in a training text, in words.",
    "mean_words": "Mean number of words of a text; median_words, least_words and most_words likewise.",
    "empty": "Share of texts without a word.",
    "novel_1": "Share of the words of all summaries that are not in their own source.",
    "novel_2": "Share of the pairs of neighbouring words of all summaries that are not in their own source.",
    "novel_3": "Share of the runs of three words of all summaries that are not in their own source.",
    "new_numbers": (
        "Share of the numbers of all summaries, in digits of any script, that are not in their own source; grouping "
        "commas aside; what the source spells out counts as new."
    ),
    "new_names": (
        "Share of the capitalised words of all summaries that are not in their own source, case aside: a check of "
        "invention. Single letters, and words that a source or summary has in lower case, are no names; says little "
        "where nouns are capitalised (German), and nothing where a script has no case."
    ),
    "compression": "Words of all sources over words of all summaries (Grusky et al. 2018); 0 without a word.",
}
REPEATED = 4  # words
COPIED = 8  # words
COMPARED = 100  # texts
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
NAME = re.compile(r"[^\W\d_]{2,}")


def quality(texts: Sequence[str], train: Sequence[str] | None = None) -> dict[str, float]:
    """Return every figure of generated texts; those of copying where training texts are given.

    Human texts of the same kind and number show what is usual. Shares of nothing are 0.
    """
    (found,) = qualities({"own": texts}, train).values()
    return found


def qualities(sides: Mapping[str, Sequence[str]], train: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Return the same of several writers' texts, by name; the training texts, which are many, are read once."""
    said = {name: [words(text) for text in texts] for name, texts in sides.items()}
    copied: list[dict[str, float]] = [{} for _ in sides]
    if train is not None:
        copied = copying(list(said.values()), [words(text) for text in train])
    return {
        name: _figures(texts, said[name], known) for (name, texts), known in zip(sides.items(), copied, strict=True)
    }


def _figures(texts: Sequence[str], said: Sequence[Sequence[str]], copied: Mapping[str, float]) -> dict[str, float]:
    found = {f"distinct_{size}": distinct(said, size) for size in (1, 2, 3)}
    found |= {"self_bleu": self_bleu(texts), "repetition": repetition(said), **copied}
    lengths = np.array([len(one) for one in said] or [0])
    found |= {"mean_words": float(lengths.mean()), "median_words": float(np.median(lengths))}
    found |= {"least_words": float(lengths.min()), "most_words": float(lengths.max())}
    return found | {"empty": _share(sum(not one for one in said), len(said))}


def distinct(said: Sequence[Sequence[str]], size: int) -> float:
    """Return the share of different n-grams of `size` words among those of all texts, each a list of words."""
    every = list(chain.from_iterable(_ngrams(one, size) for one in said))
    return _share(len(set(every)), len(every))


def repetition(said: Sequence[Sequence[str]], size: int = REPEATED) -> float:
    """Return the share of n-grams that stood earlier in the same text, of texts as lists of words."""
    counts = [Counter(_ngrams(one, size)) for one in said]
    every = sum(count.total() for count in counts)
    return _share(every - sum(map(len, counts)), every)


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU of each text with the others as references, 0 to 100; 0 for fewer than two."""
    if len(texts) < 2:
        return 0.0
    from sacrebleu.metrics import BLEU

    chosen = np.unique(np.linspace(0, len(texts) - 1, min(COMPARED, len(texts))).round().astype(int)).tolist()
    some = [texts[i] for i in chosen]
    metric = BLEU(tokenize=tokenizer_for(None, [[text] for text in some]), effective_order=True)
    scores = [metric.sentence_score(text, [*some[:i], *some[i + 1 :]]).score for i, text in enumerate(some)]
    return float(np.mean(scores))


def copying(sides: Sequence[Sequence[Sequence[str]]], train: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Return copied_8, longest_copied and mean_longest_copied of each side's texts; a text is a list of words."""
    runs = iter(_longest_runs([one for said in sides for one in said], train))
    return [_copied(said, [next(runs) for _ in said]) for said in sides]


def _copied(said: Sequence[Sequence[str]], longest: Sequence[np.ndarray]) -> dict[str, float]:
    copied = sum(int((runs >= COPIED).sum()) for runs in longest)
    every = sum(max(0, len(one) - COPIED + 1) for one in said)
    most = [int(runs.max(initial=0)) for runs in longest]
    return {
        "copied_8": _share(copied, every),
        "longest_copied": float(max(most, default=0)),
        "mean_longest_copied": float(np.mean(most)) if most else 0.0,
    }


def beside_sources(sources: Sequence[str], summaries: Sequence[str]) -> dict[str, float]:
    """Return what summaries share with their own sources: novelty, invention, compression, mean_words."""
    of_sources, said = [words(text) for text in sources], [words(text) for text in summaries]
    found = {}
    for size in (1, 2, 3):
        new = every = 0
        for source, summary in zip(of_sources, said, strict=True):
            known, own = set(_ngrams(source, size)), list(_ngrams(summary, size))
            new, every = new + sum(ngram not in known for ngram in own), every + len(own)
        found[f"novel_{size}"] = _share(new, every)
    total = sum(map(len, said))
    common = {word for text in (*sources, *summaries) for word in NAME.findall(text) if word.islower()}
    pairs = list(zip(sources, summaries, strict=True))
    for name, parts in (("new_numbers", _numbers), ("new_names", partial(_names, common=common))):
        told = [(set(parts(source)), parts(summary)) for source, summary in pairs]
        missing = sum(part not in known for known, several in told for part in several)
        found[name] = _share(missing, sum(len(several) for _, several in told))
    return found | {
        "compression": _share(sum(map(len, of_sources)), total),
        "mean_words": _share(total, len(said)),
    }


def _longest_runs(said: Sequence[Sequence[str]], train: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Return for each word of each text how many words from there on stand in a row in a training text.

    Exact, a word at a time: the places that match so far, in both, are numbered by what they match; then a place stays
    where its number and its next word occur on the other side too. Few are left after some words.
    """
    numbers: dict[str, int] = {}
    flat = _numbered(said, numbers, end=0)
    theirs = _numbered(train, numbers, end=1)
    size = len(numbers) + 2
    longest = np.zeros(len(flat), dtype=np.int64)
    own, other = np.arange(len(flat)), np.arange(len(theirs))
    of_own, of_other = np.zeros_like(own), np.zeros_like(other)
    length = 0
    while len(own):
        key, other_key = of_own * size + flat[own + length], of_other * size + theirs[other + length]
        common = np.unique(key)
        place = np.minimum(np.searchsorted(common, other_key), len(common) - 1)
        stays = common[place] == other_key
        other, of_other = other[stays], place[stays]
        there = np.bincount(of_other, minlength=len(common)) > 0
        of_own = np.searchsorted(common, key)
        stays = there[of_own]
        own, of_own = own[stays], of_own[stays]
        length += 1
        longest[own] = length
    ends = np.cumsum([len(one) + 1 for one in said]).astype(int)
    return [part[:-1] for part in np.split(longest, ends[:-1])] if len(said) else []


def _numbered(texts: Sequence[Sequence[str]], numbers: dict[str, int], end: int) -> np.ndarray:
    """Return the words of all texts as numbers from 2 on, with `end` after each text: no end is on both sides."""
    flat: list[int] = []
    for text in texts:
        flat += [numbers.setdefault(word, len(numbers) + 2) for word in text]
        flat.append(end)
    return np.array(flat, dtype=np.int64)


def _numbers(text: str) -> list[str]:
    """Return the numbers of a text, `1,000` as `1000`."""
    plain = (re.sub(r",(?=\d{3}(?!\d))", "", one) for one in NUMBER.findall(unicodedata.normalize("NFKC", text)))
    return ["".join(str(unicodedata.digit(c, -1)) if c.isdigit() else c for c in one) for one in plain]


def _names(text: str, common: set[str]) -> list[str]:
    """Return the capitalised words of a text but those in `common`, case aside."""
    return [word.casefold() for word in NAME.findall(text) if word[0].isupper() and word.lower() not in common]


def _ngrams(said: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(said[start:] for start in range(size)), strict=False)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
