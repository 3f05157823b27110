"""The cheap baselines that every neural run is measured against: majority class and TF-IDF with a linear model."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from finetune.errors import Exit, UserError

CACHE_VERSION = 1  # raise it with every change that alters a prediction
FOLDS = 3
CHOICE_ROWS = 5_000  # rows on which the linear model is chosen
CHARACTER_LIMIT = 20_000_000  # texts longer than this in all get no character n-grams (memory: 100 bytes a character)
VOCABULARY_ROWS = 200_000  # rows that the vocabulary is read from
WEIGHT_LIMIT = 40_000_000  # features x labels: 160 MB of float32
MOST_FEATURES = 500_000
MOST_LOGISTIC_LABELS = 20  # one fit a label: beyond it too slow, and on banking77 (77 labels) not better
NEVER = -20.0  # decision value of a label without a training row
STATE_FILE, SIDE_FILE = "tfidf.skops", "tfidf.json"


@dataclass(frozen=True)
class Texts:
    """Texts of one file, with their second texts where the rows are pairs."""

    texts: Sequence[str]
    pairs: Sequence[str] | None = None


@dataclass(frozen=True)
class MajorityModel:
    """Say the same of every text: the shares of the labels in train, so that the most frequent label is predicted."""

    name: str
    labels: tuple[str, ...]
    shares: np.ndarray

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Return (rows, labels), every row alike."""
        return np.tile(self.shares, (len(texts), 1))


@dataclass(frozen=True)
class Block:
    """One kind of n-grams of one text column (0: text, 1: second text, 2: words that both share)."""

    name: str
    column: int
    analyzer: str
    shortest: int
    longest: int


@dataclass(frozen=True)
class Features:
    """Turn texts into tf-idf features: for each block counts of n-grams, weighted and scaled to length 1."""

    blocks: tuple[Block, ...]
    counters: list[CountVectorizer]
    weightings: list[TfidfTransformer]

    def matrix(self, texts: Texts) -> sparse.csr_matrix:
        """Return (rows, features), the blocks side by side."""
        columns = _columns(texts)
        counts = [
            counter.transform(columns[block.column]) for block, counter in zip(self.blocks, self.counters, strict=True)
        ]
        return _weigh(self.weightings, counts)

    def names(self) -> list[str]:
        """Return the name of each feature, e.g. `word: late fee`."""
        return [
            f"{block.name}: {term}"
            for block, counter in zip(self.blocks, self.counters, strict=True)
            for term in counter.get_feature_names_out()
        ]


@dataclass(frozen=True)
class Linear:
    """A linear model: decision values = features @ weights + bias."""

    weights: np.ndarray  # (features, labels)
    bias: np.ndarray  # (labels,)

    def decide(self, features: sparse.csr_matrix) -> np.ndarray:
        """Return decision values, (rows, labels)."""
        return np.asarray(features @ self.weights + self.bias, dtype=np.float64)


@dataclass(frozen=True)
class Feature:
    """A feature that a text has: its tf-idf value times its weight for a label is what it adds to the decision."""

    name: str
    value: float
    weight: float

    @property
    def added(self) -> float:
        """Return what the feature adds to the decision value of the label."""
        return self.value * self.weight


@dataclass(frozen=True)
class Decision:
    """Why a text has its decision value for a label: bias, and every feature, the strongest first."""

    label: str
    bias: float
    features: list[Feature]

    @property
    def value(self) -> float:
        """Return the decision value: the sum of all."""
        return self.bias + sum(feature.added for feature in self.features)


@dataclass(frozen=True)
class Candidate:
    """A linear model that the folds may choose."""

    kind: str
    c: float


# First the one that wins ties. Liblinear's own losses; C in steps of three around its default, and for the logistic
# loss, whose gradient is weaker, one large C (measured on banking77, sib200, umsab and ag_news: 10 to 100 alike).
CANDIDATES = (
    Candidate("LinearSVC", 1.0),
    Candidate("LinearSVC", 0.3),
    Candidate("LinearSVC", 3.0),
    Candidate("LogisticRegression", 30.0),
)


@dataclass(frozen=True)
class TfidfModel:
    """TF-IDF n-grams under a linear model, with probabilities from decision values at a fitted temperature."""

    name: str
    labels: tuple[str, ...]
    multi_label: bool
    features: Features
    linear: Linear
    scale: float  # 1 / temperature

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Return (rows, labels): rows sum to 1, or multi-label one probability for each label."""
        if self.takes_pairs != (pairs is not None):
            needed = "pairs of texts" if self.takes_pairs else "single texts"
            raise UserError(Exit.BAD_DATA, f"this baseline was trained on {needed}: set data.text_pair_column to match")
        return _probabilities(
            self.linear.decide(self.features.matrix(Texts(texts, pairs))), self.scale, self.multi_label
        )

    @property
    def takes_pairs(self) -> bool:
        """Return whether the model reads a second text."""
        return any(block.column for block in self.features.blocks)

    def top_features(self, k: int) -> dict[str, list[tuple[str, float]]]:
        """Return for each label the k features that speak most for it, with their weights, heaviest first."""
        names = self.features.names()
        order = np.argsort(-self.linear.weights, axis=0, kind="stable")[:k]  # (k, labels)
        return {
            label: [(names[i], float(self.linear.weights[i, column])) for i in order[:, column]]
            for column, label in enumerate(self.labels)
        }

    def decisions(
        self, texts: Sequence[str], labels: Sequence[int], pairs: Sequence[str] | None = None
    ) -> list[Decision]:
        """Return for each text what its features add to the decision value of a label, given by number."""
        names, matrix = self.features.names(), self.features.matrix(Texts(texts, pairs)).astype(np.float64)
        found = []
        for row, label in enumerate(labels):
            ends = matrix.indptr[row : row + 2]
            held = zip(matrix.indices[slice(*ends)], matrix.data[slice(*ends)], strict=True)
            features = [Feature(names[i], float(value), float(self.linear.weights[i, label])) for i, value in held]
            strongest = sorted(features, key=lambda feature: -abs(feature.added))
            found.append(Decision(self.labels[label], float(self.linear.bias[label]), strongest))
        return found

    def save(self, folder: Path) -> None:
        """Write the model into a folder: arrays and vocabularies with skops (no pickle), the rest as JSON."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "counters": self.features.counters,
            "weightings": self.features.weightings,
            "weights": self.linear.weights,
            "bias": self.linear.bias,
        }
        side = {
            "name": self.name,
            "labels": list(self.labels),
            "multi_label": self.multi_label,
            "scale": self.scale,
            "blocks": [[b.name, b.column, b.analyzer, b.shortest, b.longest] for b in self.features.blocks],
            "scikit_learn": sklearn.__version__,
        }
        skops.io.dump(state, folder / STATE_FILE)
        (folder / SIDE_FILE).write_text(json.dumps(side, ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TfidfModel":
        """Read back what `save` wrote.

        Raises UserError: exit 66 where a file is missing, 77 where the file holds any type that skops does not trust
        (nothing is built then), 65 where it is damaged.
        """
        state, side = _read_state(folder / STATE_FILE), _read_side(folder / SIDE_FILE)
        try:
            blocks = tuple(Block(*values) for values in side["blocks"])
            model = cls(
                name=str(side["name"]),
                labels=tuple(side["labels"]),
                multi_label=bool(side["multi_label"]),
                features=Features(blocks, state["counters"], state["weightings"]),
                linear=Linear(state["weights"], state["bias"]),
                scale=float(side["scale"]),
            )
            wanted = (sum(len(counter.vocabulary_) for counter in state["counters"]), len(model.labels))
            fits = model.linear.weights.shape == wanted and len(blocks) == len(state["counters"])
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise UserError(Exit.BAD_DATA, f"{folder}: {STATE_FILE} and {SIDE_FILE} do not fit together; train again")
        return model


@dataclass(frozen=True)
class BaselinePredictions:
    """What a baseline said of each test file, and how long it took to train and predict when it was computed."""

    name: str
    seconds: float
    probabilities: dict[str, np.ndarray]  # name of the file -> (rows, labels) float32
    cached: bool


def majority(targets: np.ndarray, labels: Sequence[str], *, multi_label: bool = False) -> MajorityModel:
    """Fit the baseline that does not read the text.

    `targets` is (rows,) label numbers, or multi-label 0/1 (rows, labels).
    """
    if multi_label:
        return MajorityModel("label frequencies", tuple(labels), np.asarray(targets, dtype=np.float64).mean(axis=0))
    shares = np.bincount(targets, minlength=len(labels)) / len(targets)
    return MajorityModel("majority class", tuple(labels), shares)


def fit_tfidf(
    texts: Sequence[str],
    targets: np.ndarray,
    labels: Sequence[str],
    *,
    pairs: Sequence[str] | None = None,
    multi_label: bool = False,
    seed: int = 1,
) -> TfidfModel:
    """Fit tf-idf (Salton and Buckley 1988; sublinear tf) and the linear model that three folds of train choose.

    `targets` is (rows,) label numbers, or multi-label 0/1 (rows, labels). Words 1-2 and characters 2-5 within words;
    beyond 20 million characters of text words alone. The model and the temperature of its probabilities are chosen on
    at most 5,000 rows, then it is fitted once on all. Pairs get separate features for each text and for shared words.
    Raises UserError (exit 65) where no text has a letter.
    """
    targets, data = np.asarray(targets), Texts(texts, pairs)
    if not len(texts):
        raise UserError(Exit.BAD_DATA, "there is no row to train the baseline on")
    task = _Task(len(labels), multi_label, seed)
    by_class = _order(targets, task)
    sample = np.sort(by_class[np.linspace(0, len(by_class) - 1, min(len(by_class), CHOICE_ROWS)).astype(int)])
    candidate, scale = _choose(_rows(data, sample), targets[sample], task, _blocks(data))
    features, matrix = _fit_features(data, _blocks(data), task)
    grams = ", ".join(f"{b.name} {b.shortest}-{b.longest}" for b in features.blocks if not b.column)
    return TfidfModel(
        name=f"TF-IDF ({grams}) + {candidate.kind}",
        labels=tuple(labels),
        multi_label=multi_label,
        features=features,
        linear=_fit_linear(matrix, targets, candidate, task),
        scale=scale,
    )


def cached_predictions(
    train: Texts,
    targets: np.ndarray,
    tests: Mapping[str, Texts],
    labels: Sequence[str],
    *,
    multi_label: bool = False,
    seed: int = 1,
) -> BaselinePredictions:
    """Return the TF-IDF baseline's probabilities for each test file, from the cache where nothing has changed.

    The key is the sha256 of every text, target and label, the settings, scikit-learn's version and CACHE_VERSION, so
    an edited file or another column cannot meet an old answer. An entry that cannot be read is computed again; a cache
    that cannot be written is done without. The cache holds probabilities, never texts.
    """
    folder = cache_folder() / _cache_key(train, targets, tests, labels, f"{multi_label} {seed}")
    found = _read_cache(folder, {name: (len(test.texts), len(labels)) for name, test in tests.items()})
    if found is not None:
        return found
    start = time.perf_counter()
    model = fit_tfidf(train.texts, targets, labels, pairs=train.pairs, multi_label=multi_label, seed=seed)
    probabilities = {
        name: model.predict_proba(test.texts, test.pairs).astype(np.float32) for name, test in tests.items()
    }
    computed = BaselinePredictions(model.name, time.perf_counter() - start, probabilities, cached=False)
    with contextlib.suppress(OSError):  # a full or read-only disk costs only the next run's time
        _write_cache(folder, computed)
    return computed


def cache_folder(of: str = "baselines") -> Path:
    """Return where one kind of intermediate result is kept: `$FINETUNE_CACHE`, or ~/.cache/finetune, + its name."""
    root = os.environ.get("FINETUNE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "finetune") / of


@dataclass(frozen=True)
class _Task:
    labels: int
    multi_label: bool
    seed: int


def _columns(data: Texts) -> list[list[str]]:
    """Return the text columns: the texts, and for pairs the second texts and the words that both share.

    A linear model over two separate texts cannot see whether they agree; the shared words, with the tenth of all words
    that they make up, can be weighed.
    """
    if data.pairs is None:
        return [list(data.texts)]
    shared = [_shared_words(one, two) for one, two in zip(data.texts, data.pairs, strict=True)]
    return [list(data.texts), list(data.pairs), shared]


def _shared_words(one: str, two: str) -> str:
    words = [set(re.findall(r"\w+", text.lower())) for text in (one, two)]
    both, either = words[0] & words[1], words[0] | words[1]
    tenth = 10 * len(both) // max(len(either), 1)
    return " ".join([*sorted(both), f"overlap_{tenth}"])


def _blocks(data: Texts) -> list[Block]:
    characters = sum(map(len, data.texts)) + sum(map(len, data.pairs or ()))
    kinds = [("word", "word", 1, 2)] + [("char", "char_wb", 2, 5)] * (characters <= CHARACTER_LIMIT)
    blocks = [Block(name, 0, analyzer, low, high) for name, analyzer, low, high in kinds]
    if data.pairs is not None:
        blocks += [Block(f"second {name}", 1, analyzer, low, high) for name, analyzer, low, high in kinds]
        blocks.append(Block("shared word", 2, "word", 1, 1))
    return blocks


def _fit_features(data: Texts, blocks: list[Block], task: _Task) -> tuple[Features, sparse.csr_matrix]:
    """Fit vocabularies and weights; returns them with the feature matrix of the data, (rows, features)."""
    blocks, counters, counts = _fit_counters(data, blocks, task)
    weightings = [TfidfTransformer(sublinear_tf=True).fit(block) for block in counts]
    return Features(tuple(blocks), counters, weightings), _weigh(weightings, counts)


def _fit_counters(
    data: Texts, blocks: list[Block], task: _Task
) -> tuple[list[Block], list[CountVectorizer], list[sparse.csr_matrix]]:
    """Read the vocabulary of each block and count it; blocks in which the texts have no n-gram are left out."""
    columns, kept, counters, counts = _columns(data), [], [], []
    rows = len(data.texts)
    some = np.sort(np.random.default_rng(task.seed).permutation(rows)[:VOCABULARY_ROWS])
    for block in blocks:
        column = columns[block.column]
        counter = CountVectorizer(
            analyzer=block.analyzer,
            ngram_range=(block.shortest, block.longest),
            min_df=1 if rows <= 20_000 else 2 if rows <= 100_000 else 3,
            max_features=max(1_000, min(MOST_FEATURES, WEIGHT_LIMIT // task.labels) // len(blocks)),
            dtype=np.float32,
        )
        try:
            if len(some) == rows:
                count = counter.fit_transform(column)
            else:
                count = counter.fit([column[i] for i in some]).transform(column)
        except ValueError:  # "empty vocabulary": texts of single letters, say, have no words of two
            continue
        # Plain numbers: skops would write each of scikit-learn's numpy ones as a file of its own (minutes for 40,000).
        counter.vocabulary_ = {term: int(place) for term, place in counter.vocabulary_.items()}
        kept.append(block)
        counters.append(counter)
        counts.append(count)
    if not kept:
        raise UserError(Exit.BAD_DATA, "no text of train has a letter: there is nothing to learn from")
    return kept, counters, counts


def _weigh(weightings: list[TfidfTransformer], counts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    weighed = [weighting.transform(block) for weighting, block in zip(weightings, counts, strict=True)]
    return sparse.hstack(weighed, format="csr")


def _rows(data: Texts, rows: np.ndarray) -> Texts:
    texts = [data.texts[i] for i in rows]
    return Texts(texts, None if data.pairs is None else [data.pairs[i] for i in rows])


def _order(targets: np.ndarray, task: _Task) -> np.ndarray:
    """Return the rows class by class, at random within each: every k-th of them is a stratified sample."""
    shuffled = np.random.default_rng(task.seed).permutation(len(targets))
    if task.multi_label:
        return shuffled
    return shuffled[np.argsort(targets[shuffled], kind="stable")]


def _choose(data: Texts, targets: np.ndarray, task: _Task, blocks: list[Block]) -> tuple[Candidate, float]:
    """Return the candidate that scores best over three stratified folds, and the scale for its decision values.

    Folds deal out the rows of each class in turn, so a class with one or two rows is merely missing from some folds.
    """
    fold = np.empty(len(targets), dtype=np.int64)
    fold[_order(targets, task)] = np.arange(len(targets)) % FOLDS
    candidates = [c for c in CANDIDATES if c.kind == "LinearSVC" or task.labels <= MOST_LOGISTIC_LABELS]
    if len(targets) < 2 * FOLDS:
        return candidates[0], 1.0
    _, _, counts = _fit_counters(data, blocks, task)
    decisions = np.zeros((len(candidates), len(targets), task.labels))
    for number in range(FOLDS):
        held_out = fold == number
        train, test = _fold_features(counts, held_out)
        for i, candidate in enumerate(candidates):
            decisions[i, held_out] = _fit_linear(train, targets[~held_out], candidate, task).decide(test)
    best = int(np.argmax([_share_right(of_one, targets, task) for of_one in decisions]))
    return candidates[best], _fit_scale(decisions[best], targets, task)


def _fold_features(
    counts: list[sparse.csr_matrix], held_out: np.ndarray
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return the features of the other folds and of one fold, weighted by and limited to what the others hold."""
    train, test = [], []
    for block in counts:
        known = np.flatnonzero(block[~held_out].getnnz(axis=0))
        train.append(block[~held_out][:, known])
        test.append(block[held_out][:, known])
    weightings = [TfidfTransformer(sublinear_tf=True).fit(block) for block in train]
    return _weigh(weightings, train), _weigh(weightings, test)


def _fit_linear(features: sparse.csr_matrix, targets: np.ndarray, candidate: Candidate, task: _Task) -> Linear:
    """Fit one linear decision for each label against the rest; a label without a row is never decided for."""
    features = features.astype(np.float64)  # liblinear's own kind, sorted: once, not in each fit
    features.sum_duplicates()
    weights = np.zeros((features.shape[1], task.labels), dtype=np.float32)
    bias = np.full(task.labels, NEVER)
    if task.multi_label:
        of_label = np.asarray(targets) > 0  # (rows, labels)
    else:
        of_label = targets[:, None] == np.arange(task.labels)
    for label in range(task.labels):
        hits = of_label[:, label]
        if hits.all():
            bias[label] = -NEVER
        elif hits.any():
            weights[:, label], bias[label] = _fit_binary(features, hits, candidate, task.seed)
    return Linear(weights, bias)


def _fit_binary(
    features: sparse.csr_matrix, hits: np.ndarray, candidate: Candidate, seed: int
) -> tuple[np.ndarray, float]:
    """Return weights (features,) and bias of a fit that tells `hits` (rows,) from the other rows."""
    if candidate.kind == "LinearSVC":
        model = LinearSVC(C=candidate.c, random_state=seed)
    else:
        model = LogisticRegression(C=candidate.c, solver="liblinear", dual=True, random_state=seed, max_iter=100)
    with warnings.catch_warnings():
        # Large C on separable texts never meets liblinear's tolerance; the folds score what it has by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, hits)
    return model.coef_[0], float(model.intercept_[0])


def _share_right(decisions: np.ndarray, targets: np.ndarray, task: _Task) -> float:
    """Return accuracy, or multi-label the F1 of all decisions pooled (exact matches are too few to choose by)."""
    if not task.multi_label:
        return float((decisions.argmax(axis=1) == targets).mean())
    said, gold = decisions > 0, targets > 0
    return float(2 * (said & gold).sum() / max((said.sum() + gold.sum()), 1))


def _fit_scale(decisions: np.ndarray, targets: np.ndarray, task: _Task) -> float:
    """Return the factor on held-out decision values that makes their probabilities likeliest (Guo et al. 2017, 4.2)."""
    if task.multi_label:
        sign, known = np.where(targets > 0, 1.0, -1.0), np.abs(decisions) < -NEVER

        def cost(log_scale: float) -> float:
            return float(np.logaddexp(0.0, -np.exp(log_scale) * (sign * decisions)[known]).mean())
    else:
        gold = (np.arange(len(targets)), targets)
        known = decisions[gold] > NEVER  # a class that its fold had never seen says nothing about confidence

        def cost(log_scale: float) -> float:
            return -float(log_softmax(np.exp(log_scale) * decisions, axis=1)[gold][known].mean())

    if not known.any():
        return 1.0
    return float(np.exp(minimize_scalar(cost, bounds=(-3.0, 4.0), method="bounded").x))


def _probabilities(decisions: np.ndarray, scale: float, multi_label: bool) -> np.ndarray:
    return np.asarray(expit(scale * decisions) if multi_label else softmax(scale * decisions, axis=1))


def _read_side(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(Exit.NO_INPUT, f"{file}: no such file; is this the folder of a TF-IDF baseline?") from None
    except (ValueError, TypeError) as error:
        raise UserError(Exit.BAD_DATA, f"{file}: damaged ({error}); train the baseline again") from None


def _read_state(file: Path) -> dict[str, Any]:
    import skops.io

    if not file.is_file():
        raise UserError(Exit.NO_INPUT, f"{file}: no such file; is this the folder of a TF-IDF baseline?")
    try:
        untrusted = skops.io.get_untrusted_types(file=file)
        if not untrusted:
            return dict(skops.io.load(file, trusted=[]))
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise UserError(Exit.BAD_DATA, f"{file}: damaged ({error}); train the baseline again") from None
    raise UserError(Exit.UNSAFE, f"{file}: refused: it would build {', '.join(untrusted)}, which no baseline needs")


def _cache_key(
    train: Texts, targets: np.ndarray, tests: Mapping[str, Texts], labels: Sequence[str], settings: str
) -> str:
    digest = hashlib.sha256()
    parts = [str(CACHE_VERSION), sklearn.__version__, np.__version__, settings, *labels, *tests]
    parts.append(hashlib.sha256(np.ascontiguousarray(targets, dtype=np.int64).tobytes()).hexdigest())
    for data in (train, *tests.values()):
        parts += [f"{len(data.texts)} {data.pairs is None}", *data.texts, *(data.pairs or ())]
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))  # so that ["ab", "c"] and ["a", "bc"] differ
        digest.update(raw)
    return digest.hexdigest()


def _read_cache(folder: Path, shapes: Mapping[str, tuple[int, int]]) -> BaselinePredictions | None:
    try:
        side = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
        # opened here, because numpy leaves a truncated file open that it opened itself
        with open(folder / "probabilities.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
            probabilities = {name: arrays[f"file_{i}"] for i, name in enumerate(shapes)}
        found = BaselinePredictions(str(side["name"]), float(side["seconds"]), probabilities, cached=True)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if any(probabilities[name].shape != shape for name, shape in shapes.items()):
        return None
    return found


def _write_cache(folder: Path, computed: BaselinePredictions) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        arrays = {f"file_{i}": values for i, values in enumerate(computed.probabilities.values())}
        with open(draft / "probabilities.npz", "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        side = json.dumps({"name": computed.name, "seconds": computed.seconds}, ensure_ascii=False)
        (draft / "baseline.json").write_text(side, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry; another process may have replaced it meanwhile
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
