"""The cheap baselines beside sequence-to-sequence models: copy, most frequent target, lead, and retrieval by TF-IDF."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from finetune.data.columns import Split
from finetune.text_metrics import sentences, words

LEADS = (1, 3)  # sentences
CHARACTER_LIMIT = 20_000_000  # sources longer than this in all get no character n-grams (memory: 20 bytes a character)
FEATURES = 2**20
COMMON = 0.02  # share of the training sources from which an n-gram is left out of the comparison ...
FEWEST_COMMON = 200  # ... unless no more sources than this have it
BLOCK_PAIRS = 8_000_000  # pairs of sources compared at a time: about 100 MB
SUMMARIES = "summarization"


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
class Retrieval:
    """Answer with the target of the nearest training source: cosine of TF-IDF of word and character n-grams."""

    name: str
    targets: Sequence[str]
    counters: tuple[HashingVectorizer, ...]
    weighting: TfidfTransformer
    kept: np.ndarray  # (features kept,) that are rare enough to tell sources apart
    features: sparse.csr_array  # (train rows, features kept)

    @classmethod
    def fit(cls, sources: Sequence[str], targets: Sequence[str]) -> "Retrieval":
        """Weigh the n-grams of the training sources."""
        kinds = [("word 1-2", "word", (1, 2))]
        if sum(map(len, sources)) <= CHARACTER_LIMIT:
            kinds.append(("char 3-4", "char_wb", (3, 4)))
        counters = tuple(_counter(analyzer, grams) for _, analyzer, grams in kinds)
        counts = _count(counters, sources)
        rows_with = counts.getnnz(axis=0)  # (features,)
        limit = max(FEWEST_COMMON, COMMON * len(sources))
        kept = np.flatnonzero((rows_with > 0) & (rows_with <= limit))
        weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])
        features = sparse.csr_array(weighting.transform(counts[:, kept], copy=False))
        name = f"target of the nearest training source (TF-IDF, {', '.join(kind for kind, *_ in kinds)})"
        return cls(name, targets, counters, weighting, kept, features)

    def predict(self, sources: Sequence[str]) -> list[str]:
        """Return the target of the nearest training source for each source."""
        return [self.targets[row] for row in self.nearest(sources)]

    def nearest(self, sources: Sequence[str]) -> np.ndarray:
        """Return the row of the nearest training source, (sources,), the first of equals; blocks bound the memory."""
        found = np.zeros(len(sources), dtype=np.int64)
        across = sparse.csr_array(self.features.T)  # (features, train rows)
        size = max(1, BLOCK_PAIRS // self.features.shape[0])
        for start in range(0, len(sources), size):
            counts = _count(self.counters, sources[start : start + size])
            cosines = sparse.csr_array(self.weighting.transform(counts[:, self.kept])) @ across  # (size, train rows)
            cosines.sort_indices()
            for row in range(cosines.shape[0]):
                own = slice(cosines.indptr[row], cosines.indptr[row + 1])
                if own.stop > own.start:
                    found[start + row] = cosines.indices[own][cosines.data[own].argmax()]
        return found


@dataclass(frozen=True)
class Answered:
    """What a baseline says of each split, and the seconds that took, with making it."""

    name: str
    predicted: dict[str, list[str]]
    seconds: float


def fit(task: str, train: Split) -> list[TextBaseline]:
    """Return the baselines of a task, a name in text_evaluation.TASKS, ready to predict."""
    return [build() for build in _builders(task, train)]


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
    builders: list[Callable[[], TextBaseline]] = [Copy, lambda: most_frequent(targets)]
    if task == SUMMARIES:
        mean = round(sum(map(len, targets)) / len(targets))
        builders += [partial(LeadSentences, number) for number in LEADS]
        builders.append(lambda: LeadCharacters(mean))
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


def _count(counters: Sequence[HashingVectorizer], sources: Sequence[str]) -> sparse.csr_matrix:
    return sparse.hstack([counter.transform(sources) for counter in counters], format="csr")
