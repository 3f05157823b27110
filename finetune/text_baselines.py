"""The cheap baselines beside sequence-to-sequence models: copy, most frequent target, lead, extracts, and retrieval."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from finetune.data.columns import Split
from finetune.text_metrics import sentences, words

LEADS = (1, 3)  # sentences
CHARACTER_LIMIT = 20_000_000  # sources longer than this in all get no character n-grams (memory: 40 bytes a character)
FEATURES = 2**20
WORK = 300_000  # products for one question; beyond it the commonest n-grams, which tell least, are left out
BLOCK_PAIRS = 8_000_000  # pairs of sources compared at a time: about 100 MB
SUMMARIES = "summarization"
ORACLE = "greedy oracle extract"
ORACLE_DEFINITION = (
    "Sentences of the source that are chosen one by one while ROUGE-1 F1 with a reference rises. It knows the "
    "reference, so it is no baseline; it is no bound either: other sentences together may score more."
)


class TextBaseline(Protocol):
    """Something that answers sources with texts."""

    @property
    def name(self) -> str:
        """Return what the baseline is called in results."""

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return a text for each source."""


@dataclass(frozen=True)
class Copy:
    """Repeat the source."""

    name: str = "copy of the source"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the sources."""
        return list(sources)


@dataclass(frozen=True)
class Constant:
    """Say the same of every source."""

    text: str
    name: str = "most frequent target"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the text as often as there are sources."""
        return [self.text] * len(sources)


@dataclass(frozen=True)
class LeadSentences:
    """Repeat the first sentences of the source."""

    sentences: int

    @property
    def name(self) -> str:
        """Return e.g. `lead-3`."""
        return f"lead-{self.sentences}"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the first sentences of each source, joined by spaces."""
        return [" ".join(sentences(source)[: self.sentences]) for source in sources]


@dataclass(frozen=True)
class LeadCharacters:
    """Repeat the beginning of the source, whole words, up to a number of characters."""

    characters: int

    @property
    def name(self) -> str:
        """Return e.g. `lead of 90 characters`."""
        return f"lead of {self.characters} characters"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the beginning of each source; where it has no space, its first characters."""
        return [self._beginning(" ".join(source.split())) for source in sources]

    def _beginning(self, source: str) -> str:
        if len(source) <= self.characters:
            return source
        whole, space, _ = source[: self.characters + 1].rpartition(" ")
        return whole if space else source[: self.characters]


@dataclass(frozen=True)
class LongestSentences:
    """Repeat the sentences of the source that have most words, in the order of the source."""

    sentences: int

    @property
    def name(self) -> str:
        """Return e.g. `longest-3`."""
        return f"longest-{self.sentences}"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the longest sentences of each source, the first of equals, joined by spaces."""
        return [self._longest(sentences(source)) for source in sources]

    def _longest(self, found: list[str]) -> str:
        order = sorted(range(len(found)), key=lambda i: -len(words(found[i])))
        return " ".join(found[i] for i in sorted(order[: self.sentences]))


@dataclass(frozen=True)
class Centroid:
    """Repeat the sentences that together point most nearly where the whole source does: TF-IDF of words.

    Greedy: each sentence added is the one that brings the sum of those chosen closest to the sum of all, by cosine
    (Radev et al. 2004; the sum, so that one that says the same again gains little).
    """

    sentences: int
    idf: dict[str, float]
    unseen: float  # idf of a word that no training source has

    @classmethod
    def fit(cls, sources: Sequence[str], sentences: int) -> "Centroid":
        """Weigh words by the training sources that have them: smoothed idf, as scikit-learn's TfidfTransformer."""
        rows_with = Counter(word for source in sources for word in set(words(source)))
        idf = {word: float(np.log((1 + len(sources)) / (1 + rows))) + 1 for word, rows in rows_with.items()}
        return cls(sentences, idf, float(np.log(1 + len(sources))) + 1)

    @property
    def name(self) -> str:
        """Return e.g. `TF-IDF centroid, 3 sentences`."""
        return f"TF-IDF centroid, {self.sentences} sentence{'s' * (self.sentences != 1)}"

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the chosen sentences of each source in its order, joined by spaces."""
        return [self._chosen(sentences(source)) for source in sources]

    def _chosen(self, found: list[str]) -> str:
        table = self._vectors([words(sentence) for sentence in found])
        whole = table.sum(axis=0)  # (words,)
        towards, squares = table @ whole, table.multiply(table).sum(axis=1)  # (sentences,)
        chosen, said = list[int](), np.zeros_like(whole)
        while len(chosen) < min(self.sentences, len(found)):
            # Of each sentence and those chosen together, from its own figures: their sum would be as large as a book.
            lengths = np.sqrt(squares + 2 * (table @ said) + said @ said)
            cosine = (towards + said @ whole) / np.maximum(lengths, 1e-12)
            cosine[chosen] = -1
            chosen.append(int(np.argmax(cosine.round(12))))  # the first of equals
            said += table[chosen[-1:]].sum(axis=0)
        return " ".join(found[i] for i in sorted(chosen))

    def _vectors(self, said: list[list[str]]) -> sparse.csr_array:
        """Return tf-idf, (sentences, words of the source)."""
        column = {word: i for i, word in enumerate(dict.fromkeys(word for one in said for word in one))}
        weights = [self.idf.get(word, self.unseen) for one in said for word in one]
        places = [column[word] for one in said for word in one]
        starts = np.cumsum([0, *map(len, said)])
        table = sparse.csr_array((weights, places, starts), shape=(len(said), max(1, len(column))), dtype=np.float64)
        table.sum_duplicates()  # a word that comes twice
        return table


def oracle_extracts(sources: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """Return for each source sentences that raise ROUGE-1 F1 with a reference, chosen one by one: the greedy oracle.

    It reads the references, so it is never a baseline to beat; nor is it a bound, for other sentences together may do
    better. Of several references the one that is met best counts; a source that shares no word with any gives an empty
    text.
    """
    return [_oracle(sentences(source), several) for source, several in zip(sources, references, strict=True)]


def _oracle(found: list[str], references: Sequence[str]) -> str:
    said = [words(sentence) for sentence in found]
    best, text = 0.0, ""
    for reference in references:
        f1, chosen = _greedy(said, Counter(words(reference)))
        if f1 > best:
            best, text = f1, " ".join(found[i] for i in sorted(chosen))
    return text


def _greedy(said: list[list[str]], gold: Counter[str]) -> tuple[float, list[int]]:
    """Return the best F1 of bags of words that adding sentences one by one reaches, and the sentences."""
    column = {word: i for i, word in enumerate(gold)}
    wanted = np.array(list(gold.values()), dtype=np.int64)
    table = np.zeros((len(said), len(wanted)), dtype=np.int64)  # words of the reference in each sentence
    for row, one in enumerate(said):
        for word in one:
            if word in column:
                table[row, column[word]] += 1
    lengths = np.array([len(one) for one in said], dtype=np.int64)
    best, chosen = 0.0, list[int]()
    while len(chosen) < len(said):
        shared = np.minimum(table + table[chosen].sum(axis=0), wanted).sum(axis=1)
        f1 = 2 * shared / np.maximum(lengths + lengths[chosen].sum() + wanted.sum(), 1)
        f1[chosen] = 0
        if f1.max() <= best:
            break
        best = float(f1.max())
        chosen.append(int(np.argmax(f1)))
    return best, chosen


@dataclass(frozen=True)
class Retrieval:
    """Answer with the target of the nearest training source: cosine of TF-IDF of word and character n-grams."""

    name: str
    targets: Sequence[str]
    counters: tuple[HashingVectorizer, ...]
    idf: np.ndarray  # (features,), 0 for n-grams that are left out
    across: sparse.csr_array  # (features, train rows) tf-idf, every row's vector of length 1

    @classmethod
    def fit(cls, sources: Sequence[str], targets: Sequence[str]) -> "Retrieval":
        """Weigh the n-grams of the training sources: log counts, smoothed idf, as scikit-learn's TfidfTransformer."""
        kinds = [("word 1-2", "word", (1, 2))]
        if sum(map(len, sources)) <= CHARACTER_LIMIT:
            kinds.append(("char 3-4", "char_wb", (3, 4)))
        counters = tuple(_counter(analyzer, grams) for _, analyzer, grams in kinds)
        counts = _count(counters, sources)
        idf = _idf(counts.count_nonzero(axis=0), len(sources))
        across = sparse.csr_array(_weigh(counts, idf).T)
        name = f"target of the nearest training source (TF-IDF, {', '.join(kind for kind, *_ in kinds)})"
        return cls(name, targets, counters, idf, across)

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the target of the nearest training source for each source."""
        return [self.targets[row] for row in self.nearest(sources)]

    def nearest(self, sources: Sequence[str]) -> np.ndarray:
        """Return the row of the nearest training source, (sources,), the first of equals; blocks bound the memory."""
        found = np.zeros(len(sources), dtype=np.int64)
        size = max(1, BLOCK_PAIRS // self.across.shape[1])
        for start in range(0, len(sources), size):
            block = sources[start : start + size]
            found[start : start + size] = _largest(_weigh(_count(self.counters, block), self.idf) @ self.across)
        return found


@dataclass(frozen=True)
class Answered:
    """What a baseline says of each split, and the seconds that took, with making it."""

    name: str
    predicted: dict[str, list[str]]
    seconds: float


def answer(task: str, splits: Mapping[str, Split]) -> list[Answered]:
    """Make the baselines of a task from the split `train` and let them answer the others."""
    found = []
    for build in _builders(task, splits["train"]):
        start = time.perf_counter()
        baseline = build()
        predicted = {name: baseline.predict(split.sources()) for name, split in splits.items() if name != "train"}
        found.append(Answered(baseline.name, predicted, time.perf_counter() - start))
    return found


def most_frequent(targets: Sequence[str]) -> Constant:
    """Return the baseline that always says the most frequent target, the first of equals."""
    return Constant(Counter(targets).most_common(1)[0][0])


def _builders(task: str, train: Split) -> list[Callable[[], TextBaseline]]:
    sources, targets = train.sources(), train.targets()
    # No copying beside summaries: there are the leads, and ROUGE-L of long sources as they are takes minutes.
    builders: list[Callable[[], TextBaseline]] = [] if task == SUMMARIES else [Copy]
    builders.append(lambda: most_frequent(targets))
    if task == SUMMARIES:
        mean = round(sum(map(len, targets)) / len(targets))
        builders += [partial(LeadSentences, number) for number in LEADS]
        builders.append(lambda: LeadCharacters(mean))
        usual = max(1, round(sum(len(sentences(target)) for target in targets) / len(targets)))
        builders += [lambda: LongestSentences(usual), lambda: Centroid.fit(sources, usual)]
    return [*builders, lambda: Retrieval.fit(sources, targets)]


def _counter(analyzer: str, grams: tuple[int, int]) -> HashingVectorizer:
    return HashingVectorizer(
        analyzer=analyzer,
        ngram_range=grams,
        tokenizer=words if analyzer == "word" else None,
        token_pattern=None,
        n_features=FEATURES,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )


def _count(counters: Sequence[HashingVectorizer], sources: Sequence[str]) -> sparse.csr_array:
    return sparse.csr_array(sparse.hstack([counter.transform(sources) for counter in counters], format="csr"))


def _weigh(counts: sparse.csr_array, idf: np.ndarray) -> sparse.csr_array:
    """Turn counts (rows, features) into tf-idf rows of length 1, in place."""
    counts.data = (np.log(counts.data) + 1) * idf[counts.indices]
    counts.eliminate_zeros()
    lengths = np.sqrt(counts.multiply(counts).sum(axis=1))  # (rows,)
    counts.data /= np.repeat(lengths, np.diff(counts.indptr))
    return counts


def _idf(rows_with: np.ndarray, rows: int) -> np.ndarray:
    """Return the weight of each n-gram, (features,), by the training sources that have it; 0 for those left out."""
    rarest = np.argsort(rows_with, kind="stable")
    work = np.cumsum(np.square(rows_with[rarest].astype(np.float64)) / rows)  # as often asked for as it is found
    idf = np.log((1 + rows) / (1 + rows_with)) + 1
    idf[rarest[work > WORK]] = 0
    return np.asarray(idf, dtype=np.float32)


def _largest(table: sparse.csr_array) -> np.ndarray:
    """Return the column of the largest value of each row, the first of equals, 0 for an empty row."""
    table.sort_indices()
    found = np.zeros(table.shape[0], dtype=np.int64)
    for row in np.flatnonzero(np.diff(table.indptr)):
        own = slice(table.indptr[row], table.indptr[row + 1])
        found[row] = table.indices[own][table.data[own].argmax()]
    return found
