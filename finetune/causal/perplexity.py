"""How well a language model predicts texts: strided windows, bits per byte, intervals over documents."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from finetune import hardware, processes, significance
from finetune.causal.model import Start
from finetune.causal.packing import IGNORED
from finetune.data.batching import evaluation_batches, pad
from finetune.significance import Sample

METRICS = ("bits_per_byte", "perplexity", "loss")
DECIDES = "bits_per_byte"
LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 28}
MOST_ROWS = 64


def definitions(window: int, stride: int) -> dict[str, str]:
    """Return what each score is, for texts that are read in these windows."""
    how = f"windows of {window} tokens, {stride} tokens apart, each document by itself, its end predicted too"
    return {
        "bits_per_byte": f"Negative log2-probability of the texts over their UTF-8 bytes ({how}): comparable across "
        "tokenizers.",
        "perplexity": "The exponential of the loss: among how many tokens the model is torn; of one tokenizer alone.",
        "loss": "Mean negative log-probability of a token, in nats.",
    }


@dataclass(frozen=True)
class Tally:
    """What one system does on the documents of one file: bytes and tokens of each, and its negative log-probability.

    `tokens` are those predicted, 0 where the system has none; then it has bits per byte alone.
    """

    ids: list[str]
    texts: list[str]
    bytes: np.ndarray  # (documents,)
    tokens: np.ndarray
    nats: np.ndarray

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the scores that it has."""
        return METRICS if self.tokens.all() else (DECIDES,)

    def in_order_of(self, ids: list[str]) -> "Tally":
        """Return the same documents in the order of these ids; raises UserError (65) where they are not the same."""
        if ids == self.ids:  # an id may then stand there twice
            return self
        rows = significance.in_order_of(ids, self.ids)
        texts = [self.texts[row] for row in rows]
        return Tally(list(ids), texts, self.bytes[rows], self.tokens[rows], self.nats[rows])


@dataclass(frozen=True)
class Windows:
    """Documents cut into windows: window w reads rows[document[w]][begin[w] : begin[w] + size[w]].

    Of the tokens that it predicts, the `skipped` first ones were predicted by the window before.
    """

    document: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    skipped: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, first: np.ndarray, window: int, stride: int) -> "Windows":
        """Cut rows of some lengths, of which the tokens before `first` are read and not predicted.

        The first window predicts `window` tokens; each further one begins `stride` tokens later and predicts the
        `stride` tokens that are new, each with at least window - stride + 1 tokens before it.
        """
        found: list[tuple[int, int, int, int]] = []
        for row, (length, start) in enumerate(zip(lengths.tolist(), first.tolist(), strict=True)):
            begin, done = 0, start  # tokens up to `done` need no prediction any more
            while True:
                end = min(begin + window, length - 1)
                if end >= done:
                    found.append((row, begin, end - begin, done - begin - 1))
                    done = end + 1
                if end == length - 1:
                    break
                begin += stride
        return cls(*np.array(found, dtype=np.int64).reshape(-1, 4).T)


@torch.inference_mode()
def negative_log_probability(
    start: Start, rows: Sequence[np.ndarray], first: np.ndarray, window: int, stride: int, precision: str
) -> np.ndarray:
    """Return the negative log-probability, in nats, of each row's tokens from `first` on, (rows,) float64.

    A row begins with end-of-text, which is read and never predicted: first >= 1.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    cut = Windows.of(lengths, first, window, stride)
    network, found = start.model.network, np.zeros(len(rows))
    device, was_training = network.device, start.model.training
    start.model.eval()
    budget = max(1, LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"]) // len(start.tokenizer))
    batches = evaluation_batches(cut.size, MOST_ROWS, max(budget, window))

    def score(chosen: np.ndarray) -> np.ndarray:
        pieces = [rows[cut.document[w]][cut.begin[w] : cut.begin[w] + cut.size[w] + 1] for w in chosen]
        inputs = pad([piece[:-1] for piece in pieces], start.end).to(device)
        gold = pad([_labels(piece, int(cut.skipped[w])) for piece, w in zip(pieces, chosen, strict=True)], IGNORED)
        losses = start.model.losses(inputs, gold.to(device)).double().sum(dim=1)
        return losses.cpu().numpy()

    with hardware.autocast(device, precision):
        scored = processes.shared(batches, score)
    for chosen, nats in zip(batches, scored, strict=True):
        np.add.at(found, cut.document[chosen], nats)
    start.model.train(was_training)
    return found


def _labels(piece: np.ndarray, skipped: int) -> np.ndarray:
    gold = np.array(piece[1:], dtype=np.int64)
    gold[:skipped] = IGNORED
    return gold


@dataclass(frozen=True)
class Texts:
    """Texts to be predicted, coded: `rows` begin and end with end-of-text, tokens before `first` are only read.

    `texts` are what is predicted: documents, or completions; `before` is what each stands behind, a prompt or nothing.
    Of `long` of them the prompt was cut; `alone` of these are completions that fill more than a window by themselves.
    """

    ids: list[str]
    texts: list[str]
    rows: list[np.ndarray]
    first: np.ndarray
    before: list[str]
    long: int = 0
    alone: int = 0

    @property
    def bytes(self) -> np.ndarray:
        """Return the UTF-8 bytes of each text, (texts,)."""
        return np.array([len(text.encode("utf-8", "surrogatepass")) for text in self.texts], dtype=np.float64)


def tally(start: Start, found: Texts, window: int, stride: int, precision: str) -> tuple[Tally, float]:
    """Let a model predict some texts; also return the seconds that it took."""
    began = time.perf_counter()
    nats = negative_log_probability(start, found.rows, found.first, window, stride, precision)
    tokens = np.array([len(row) for row in found.rows], dtype=np.float64) - found.first
    return Tally(found.ids, found.texts, found.bytes, tokens, nats), time.perf_counter() - began


def values(found: Tally) -> dict[str, float]:
    """Return every score of one system without intervals."""
    return dict(zip(found.metrics, _sample([found], found.metrics).point().tolist(), strict=True))


def score(tallies: Tally | Sequence[Tally]) -> dict[str, dict[str, float]]:
    """Score one system, or the mean of several seeds, with 95 % bootstrap intervals over documents."""
    seeds = _listed(tallies)
    names = seeds[0].metrics
    intervals = dict(zip(names, significance.bootstrap(_sample(seeds, names)), strict=True))
    return significance.told_scores(intervals, seeds, values)


def compare(a: Tally | Sequence[Tally], b: Tally | Sequence[Tally], comparisons: int = 1) -> dict[str, Any]:
    """Compare two systems, or seeds of them, in bits per byte of the same documents; positive is better for `a`.

    The interval is that of the paired bootstrap at level 0.05 / comparisons; the p-value is of approximate
    randomisation, for several seeds the largest. Where that does not reject, the interval is stretched to 0: with few
    documents a bootstrap is too sure, and with one it has no width at all.
    """
    one, two = _paired(_listed(a), _listed(b))
    return _compare(one, two, _p_value(one, two), comparisons)


def compare_all(pairs: Mapping[str, tuple[list[Tally], list[Tally]]]) -> dict[str, dict[str, Any]]:
    """Make several comparisons, with intervals widened by Holm's procedure."""
    return significance.compare_together({key: _paired(*pair) for key, pair in pairs.items()}, _p_value, _compare)


def to_rows(found: Tally) -> list[dict[str, Any]]:
    """Return the lines of predictions/<name>.jsonl; `bits` are the negative log2-probability of the text."""
    return [
        {"id": identity, "text": text, "bytes": int(size), "tokens": int(tokens), "bits": float(nats / np.log(2))}
        for identity, text, size, tokens, nats in zip(
            found.ids, found.texts, found.bytes, found.tokens, found.nats, strict=True
        )
    ]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Tally:
    """Read back what `to_rows` wrote."""
    columns = {name: np.array([float(row[name]) for row in rows]) for name in ("bytes", "tokens", "bits")}
    ids, texts = [str(row["id"]) for row in rows], [str(row["text"]) for row in rows]
    return Tally(ids, texts, columns["bytes"], columns["tokens"], columns["bits"] * np.log(2))


def _listed(tallies: Tally | Sequence[Tally]) -> list[Tally]:
    return [tallies] if isinstance(tallies, Tally) else list(tallies)


def _paired(a: list[Tally], b: list[Tally]) -> tuple[list[Tally], list[Tally]]:
    """Bring all tallies into the order of the first: runs may have read the same rows from files in other orders."""
    ids = a[0].ids
    return [one.in_order_of(ids) for one in a], [one.in_order_of(ids) for one in b]


def _compare(a: list[Tally], b: list[Tally], p_value: float, comparisons: int) -> dict[str, Any]:
    alpha = significance.ALPHA / comparisons
    lower_is_better = [_sample(group, (DECIDES,)) for group in (b, a)]
    interval = significance.paired_bootstrap(lower_is_better[0], lower_is_better[1], alpha=alpha)[0]
    if p_value > alpha and len(a) == len(b) == 1:
        interval = interval.around(0.0, 0.0)
    return significance.comparison(DECIDES, interval, p_value)


def _p_value(a: list[Tally], b: list[Tally]) -> float:
    return max(
        significance.approximate_randomisation(_sample([one], (DECIDES,)), _sample([two], (DECIDES,)))
        for one in a
        for two in b
    )


def _sample(seeds: Sequence[Tally], names: Sequence[str]) -> Sample:
    """Return the sums of all seeds over documents, and how the mean scores over seeds follow from them."""
    rows = np.stack([column for one in seeds for column in (one.bytes, one.tokens, one.nats)], axis=1)

    def scores(sums: np.ndarray) -> np.ndarray:
        by_seed = sums.reshape(*sums.shape[:-1], len(seeds), 3)
        size, tokens, nats = (by_seed[..., column] for column in range(3))
        found = []
        for name in names:
            if name == "bits_per_byte":
                found.append(nats / np.log(2) / size)
            else:
                loss = nats / tokens
                found.append(np.exp(loss) if name == "perplexity" else loss)
        return np.stack([one.mean(axis=-1) for one in found], axis=-1)

    return Sample(np.ones(len(rows), dtype=np.int64), sparse.csr_array(rows), scores)
