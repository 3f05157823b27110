"""How good a pretrained model is: tokens at hidden places, and translations found among other sentences."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from finetune import hardware, processes, significance
from finetune.data.batching import cut_by_tokens, evaluation_batches, pad_and_mask
from finetune.pretraining.examples import Frame, Part
from finetune.pretraining.model import Pretrainer
from finetune.significance import Sample

DEFINITIONS = {
    "loss": "Mean negative log-probability, in nats, of the tokens at hidden places (15 % chosen once, 80/10/10).",
    "perplexity": "The exponential of the loss: among how many tokens the model is torn at a hidden place.",
    "accuracy": "Share of the hidden places at which the most probable token is the one that stood there.",
}
RETRIEVAL_DEFINITIONS = {
    "loss": (
        "Mean over held-out pairs of the four squared distances to the teacher's mean vector of the source sentence: "
        "of [CLS] and mean vector, of the source and of its translation."
    ),
    "accuracy": (
        "Share of held-out translations whose own source sentence is the nearest, by cosine of mean vectors, among "
        "the source sentences held out for that language."
    ),
}
TOKENS_AT_ONCE = {"cpu": 4_096, "cuda": 1 << 16}
ROWS_AT_ONCE = 1_024


@dataclass(frozen=True)
class Tally:
    """What one system does on the rows of one file: items of each row, their summed loss, and how many were right.

    A row is a block of text or a pair of sentences. `metrics` are the scores that it has.
    """

    ids: list[str]
    languages: list[str]
    items: np.ndarray
    loss: np.ndarray
    right: np.ndarray
    metrics: tuple[str, ...] = ("loss", "perplexity", "accuracy")

    def of(self, language: str) -> "Tally":
        """Return the rows of one language."""
        rows = [row for row, code in enumerate(self.languages) if code == language]
        ids, languages = [self.ids[row] for row in rows], [language] * len(rows)
        return Tally(ids, languages, self.items[rows], self.loss[rows], self.right[rows], self.metrics)

    def only(self, metrics: tuple[str, ...]) -> "Tally":
        """Return the same with these scores alone."""
        return Tally(self.ids, self.languages, self.items, self.loss, self.right, metrics)


def values(tally: Tally) -> dict[str, float]:
    """Return every score of one system without intervals."""
    return dict(zip(tally.metrics, _sample([tally], tally.metrics).point().tolist(), strict=True))


def score(tallies: Tally | Sequence[Tally]) -> dict[str, dict[str, float]]:
    """Score one system, or the mean of several seeds, with 95 % bootstrap intervals over rows."""
    seeds = [tallies] if isinstance(tallies, Tally) else list(tallies)
    names = seeds[0].metrics
    intervals = dict(zip(names, significance.bootstrap(_sample(seeds, names)), strict=True))
    return significance.told_scores(intervals, seeds, values)


def compare(a: Tally | Sequence[Tally], b: Tally, metric: str, comparisons: int = 1) -> dict[str, Any]:
    """Compare two systems on the same rows, positive is better for `a`: paired bootstrap, and a p-value beside it.

    The p-value is of the exact McNemar test where each row is one item that is right or not, else of approximate
    randomisation; for several seeds the largest.
    """
    seeds = [a] if isinstance(a, Tally) else list(a)
    for one in seeds:
        significance.check_pairs(one.ids, b.ids)
    samples = [_sample(seeds, (metric,)), _sample([b], (metric,))]
    if metric != "accuracy":
        samples.reverse()  # lower is better
    interval = significance.paired_bootstrap(samples[0], samples[1], alpha=significance.ALPHA / comparisons)[0]
    return significance.comparison(metric, interval, max(_p_value(one, b, metric) for one in seeds))


def compare_languages(a: Tally, b: Tally, metric: str) -> dict[str, dict[str, Any]]:
    """Compare two systems in each language, with intervals widened by Holm's procedure."""
    pairs = {code: (a.of(code), b.of(code)) for code in sorted(set(a.languages))}

    def test(one: Tally, two: Tally) -> float:
        return _p_value(one, two, metric)

    def together(one: Tally, two: Tally, p_value: float, comparisons: int) -> dict[str, Any]:
        return compare(one, two, metric, comparisons) | {"p_value": p_value}

    return significance.compare_together(pairs, test, together)


def to_rows(tally: Tally) -> list[dict[str, Any]]:
    """Return the lines of predictions/<name>.jsonl."""
    return [
        {"id": identity, "language": code, "items": int(items), "loss": float(loss), "right": int(right)}
        for identity, code, items, loss, right in zip(
            tally.ids, tally.languages, tally.items, tally.loss, tally.right, strict=True
        )
    ]


def from_rows(rows: Sequence[Mapping[str, Any]], metrics: tuple[str, ...]) -> Tally:
    """Read back what `to_rows` wrote."""
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("items", "loss", "right")}
    return Tally([str(row["id"]) for row in rows], [str(row["language"]) for row in rows], **columns, metrics=metrics)


@dataclass(frozen=True)
class Unigram:
    """The cheap system at hidden places: each token as often as in train, whatever stands around it."""

    log_shares: np.ndarray  # (vocab,)
    name: str = "token frequencies"

    @classmethod
    def of(cls, counts: np.ndarray) -> "Unigram":
        """Count with one added to each token (Laplace), so that none is impossible."""
        return cls(np.log((counts + 1) / (counts.sum() + len(counts))))


@dataclass(frozen=True)
class Masked:
    """Rows with places hidden once and for all, in the batches that they are scored in."""

    batches: list[tuple[np.ndarray, dict[str, torch.Tensor]]]
    ids: list[str]
    languages: list[str]

    @classmethod
    def of(cls, part: Part, frame: Frame, seed: int) -> "Masked":
        """Hide places of all rows of a part; a function of the seed."""
        random = torch.Generator().manual_seed(seed)
        made = []
        for chosen in evaluation_batches(part.lengths, 32, 32 * frame.max_length):
            made.append((chosen, part.collate(chosen, random).tensors))
        ids = [f"{part.name(row)}#{row}" for row in range(len(part))]
        return cls(made, ids, [str(code) for code in part.languages])

    def tally(self, by_row: Sequence[tuple[np.ndarray, ...]]) -> Tally:
        """Add up (rows, row of each place, loss, right) of all batches."""
        items, losses, rights = (np.zeros(len(self.ids)) for _ in range(3))
        for chosen, row, loss, right in by_row:
            np.add.at(items, chosen[row], 1)
            np.add.at(losses, chosen[row], loss)
            np.add.at(rights, chosen[row], right)
        kept = np.flatnonzero(items)  # a row of one or two tokens may have nothing hidden
        names = [self.ids[row] for row in kept], [self.languages[row] for row in kept]
        return Tally(*names, items[kept], losses[kept], rights[kept])


def score_masked(model: Pretrainer, masked: Masked, precision: str) -> tuple[Tally, float]:
    """Let a model guess the tokens at hidden places; also return the seconds that it took."""
    device, started = model.network.device, time.perf_counter()
    was_training = model.training
    model.eval()

    def score_batch(batch: tuple[np.ndarray, dict[str, torch.Tensor]]) -> tuple[np.ndarray, ...]:
        chosen, tensors = batch
        logits = model.logits({name: tensor.to(device) for name, tensor in tensors.items()}).float()
        gold = tensors["gold"].to(device)
        loss = functional.cross_entropy(logits, gold, reduction="none")
        right = logits.argmax(dim=1) == gold
        row = tensors["places"].numpy() // tensors["input_ids"].shape[1]
        return chosen, row, loss.double().cpu().numpy(), right.cpu().numpy()

    with torch.inference_mode(), hardware.autocast(device, precision):
        found = processes.shared(masked.batches, score_batch)
    model.train(was_training)
    return masked.tally(found), time.perf_counter() - started


def score_unigram(unigram: Unigram, masked: Masked) -> Tally:
    """Let token frequencies guess the tokens at hidden places."""
    best = int(unigram.log_shares.argmax())
    found = []
    for chosen, tensors in masked.batches:
        gold = tensors["gold"].numpy()
        row = tensors["places"].numpy() // tensors["input_ids"].shape[1]
        found.append((chosen, row, -unigram.log_shares[gold], gold == best))
    return masked.tally(found)


@dataclass(frozen=True)
class Bitext:
    """Held-out pairs of one language: token rows of both sides, the texts, and the teacher's vectors (pairs, dim)."""

    language: str
    ids: list[str]
    source: list[np.ndarray]
    target: list[np.ndarray]
    texts: list[tuple[str, str]]
    teacher: np.ndarray


def score_retrieval(
    model: Pretrainer, bitexts: Sequence[Bitext], pad_token: int, precision: str
) -> tuple[Tally, dict[str, Any], float]:
    """Look for the source of each held-out translation among those of its language.

    Returns the tally (mean vectors, from the translation to its source), the shares found in both directions with both
    kinds of vector, {language: {"mean", "mean_reverse", "cls", "cls_reverse"}}, and the seconds.
    """
    started = time.perf_counter()
    tallies, shares = [], {}
    for bitext in bitexts:
        source = encode(model, bitext.source, pad_token, precision)  # [CLS] and mean, (pairs, dim) each
        target = encode(model, bitext.target, pad_token, precision)
        loss = sum(((one - bitext.teacher) ** 2).sum(axis=1) for one in (*source, *target))
        right = nearest(target[1], source[1])
        shares[bitext.language] = {
            "mean": float(right.mean()),
            "mean_reverse": float(nearest(source[1], target[1]).mean()),
            "cls": float(nearest(target[0], source[0]).mean()),
            "cls_reverse": float(nearest(source[0], target[0]).mean()),
        }
        codes = [bitext.language] * len(right)
        tallies.append(Tally(bitext.ids, codes, np.ones(len(right)), np.asarray(loss), right.astype(float)))
    return _joined(tallies, ("loss", "accuracy")), shares, time.perf_counter() - started


def tfidf_retrieval(bitexts: Sequence[Bitext]) -> Tally:
    """Look for the source of each translation by character n-grams: names, numbers and cognates."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    tallies = []
    for bitext in bitexts:
        sources, targets = ([pair[side] for pair in bitext.texts] for side in (0, 1))
        grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit([*sources, *targets])
        likeness = (grams.transform(targets) @ grams.transform(sources).T).toarray()
        right = (likeness.argmax(axis=1) == np.arange(len(targets))) & (likeness.max(axis=1) > 0)
        codes = [bitext.language] * len(right)
        tallies.append(Tally(bitext.ids, codes, np.ones(len(right)), np.zeros(len(right)), right.astype(float)))
    return _joined(tallies, ("accuracy",))


def encode(
    model: Pretrainer, rows: Sequence[np.ndarray], pad_token: int, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return [CLS] and mean vectors of token rows, (rows, dim) each."""
    device = model.network.device
    lengths = np.array([len(row) for row in rows])
    found = np.zeros((2, len(rows), model.network.config.hidden_size), dtype=np.float32)
    was_training = model.training
    model.eval()
    parts = cut_by_tokens(np.argsort(lengths, kind="stable"), lengths, TOKENS_AT_ONCE[device.type], ROWS_AT_ONCE)

    def vectors(part: np.ndarray) -> np.ndarray:
        ids, real = pad_and_mask([rows[row] for row in part], pad_token)
        return np.stack([kind.cpu().numpy() for kind in model.vectors(ids.to(device), real.long().to(device))])

    with torch.inference_mode(), hardware.autocast(device, precision):
        of_parts = processes.shared(parts, vectors)
    for part, both in zip(parts, of_parts, strict=True):
        found[:, part] = both
    model.train(was_training)
    return found[0], found[1]


def nearest(queries: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Tell for each row of queries (rows, dim) whether the row of answers with the largest cosine is its own."""
    one, two = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (queries, answers))
    return np.asarray((one @ two.T).argmax(axis=1) == np.arange(len(queries)))


def _joined(tallies: Sequence[Tally], metrics: tuple[str, ...]) -> Tally:
    ids = [identity for one in tallies for identity in one.ids]
    languages = [code for one in tallies for code in one.languages]
    items, loss, right = (
        np.concatenate(parts) for parts in zip(*((one.items, one.loss, one.right) for one in tallies), strict=True)
    )
    return Tally(ids, languages, items, loss, right, metrics)


def _sample(seeds: Sequence[Tally], names: tuple[str, ...]) -> Sample:
    """Sums: of each seed items, loss and right; the scores are the means over seeds."""
    columns = np.concatenate([np.stack([one.items, one.loss, one.right], axis=1) for one in seeds], axis=1)
    return Sample(
        np.ones(len(columns), dtype=np.int64),
        sparse.csr_array(columns),
        partial(_scores, names=names, seeds=len(seeds)),
    )


def _scores(sums: np.ndarray, names: tuple[str, ...], seeds: int) -> np.ndarray:
    parts = sums.reshape(*sums.shape[:-1], seeds, 3)
    items, loss, right = (parts[..., column] for column in range(3))
    mean = loss / items
    known = {"loss": mean, "perplexity": np.exp(np.minimum(mean, 700)), "accuracy": right / items}
    return np.stack([known[name].mean(axis=-1) for name in names], axis=-1)


def _p_value(a: Tally, b: Tally, metric: str) -> float:
    if metric == "accuracy" and (a.items == 1).all():
        return significance.mcnemar_exact(a.right > 0, b.right > 0)
    return significance.approximate_randomisation(_sample([a], (metric,)), _sample([b], (metric,)))
