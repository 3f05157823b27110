"""Which words a classifier's probability rests on: integrated gradients, and words that are hidden one by one."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from finetune import classifier
from finetune.baselines import Decision, TfidfModel
from finetune.classifier import Classifier
from finetune.data.columns import LabelMap, Split, from_columns
from finetune.data.encode import OnLong, check_read, encode, fit
from finetune.errors import Exit, UserError, did_you_mean
from finetune.trainer import TrainConfig

STEPS = 64  # points on the path; on a trained model the gap is then below a hundredth in most texts
TOKENS_AT_ONCE = 2_048
ERROR_STEPS = 8
ERROR_TOKENS = 4_000  # tokens times steps that the errors of a run may cost at its end
WORDS_OF_ERROR = 6


class Reading(NamedTuple):
    """How a run reads texts: the most tokens, and what happens to longer ones."""

    max_length: int
    on_long: OnLong


class Pair(NamedTuple):
    """A text, and the second one where rows are pairs."""

    text: str
    second: str | None

    @property
    def texts(self) -> list[str]:
        """Return the one text or both."""
        return [self.text] if self.second is None else [self.text, self.second]


class Place(NamedTuple):
    """A word that a model read, and where it stands: in the text (column 0) or the second one (1)."""

    text: str
    column: int
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """What a word did: `gradients` is its share of the probability by integrated gradients.

    `hidden` is the change of the probability when it is hidden; None where that was not tried, or leaves nothing.
    """

    place: Place
    gradients: float
    hidden: float | None = None


@dataclass(frozen=True)
class Path:
    """Words with their integrated gradients, and the probability where the path from the baseline begins and ends."""

    words: list[Word]
    start: float
    value: float

    @property
    def gap(self) -> float:
        """Return what completeness lacks: the sum of the attributions minus the change that they should sum to."""
        return sum(word.gradients for word in self.words) - (self.value - self.start)


@dataclass(frozen=True)
class Judged:
    """A text, and what a model says of it: `predicted` has one label, multi-label any number."""

    row: Pair
    probabilities: dict[str, float]
    predicted: list[str]
    multi_label: bool


@dataclass(frozen=True)
class Attribution(Judged):
    """What the words of a text did to the probability of `label`."""

    label: str
    path: Path
    steps: int
    baseline: str  # the token in place of each token where the path begins
    cut: bool  # the model read a part of the text


@dataclass(frozen=True)
class ByFeatures(Judged):
    """What the features of a text add to TF-IDF's decision value for a label."""

    decision: Decision


def explain(
    parts: Classifier,
    data: Split,
    reading: Reading,
    settings: TrainConfig,
    label: str | None = None,
    steps: int = STEPS,
) -> list[Attribution]:
    """Say for each row which words speak for a label, and which against: the predicted one, or `label`.

    Multi-label: the most probable one. All is worked out in fp32. Raises UserError: 2 for a label that there is not, 65
    for a text of which nothing is read.
    """
    chosen = None if label is None else label_number(label, parts.labels.names)
    settings = dataclasses.replace(settings, mixed_precision="no")
    names, found = parts.labels.names, []
    for row, length in zip(_rows(data), encode(data, parts.tokenizer, *reading).full_lengths, strict=True):
        pieces = fit(parts.tokenizer, *row, *reading)
        check_read(pieces, row.text)
        places = _places(row, pieces)
        share, changed = _hidden(parts, row, places.values(), reading, settings)
        number = int(share.argmax()) if chosen is None else chosen
        path = integrated(parts, row, number, reading, steps)
        words = [
            dataclasses.replace(word, hidden=None if other is None else float(other[number] - share[number]))
            for word, other in zip(path.words, changed, strict=True)
        ]
        found.append(
            Attribution(
                **_judged(row, share, parts.labels),
                label=names[number],
                path=dataclasses.replace(path, words=words),
                steps=steps,
                baseline=str(parts.tokenizer.convert_ids_to_tokens(_baseline_token(parts))),
                cut=bool(length > reading.max_length) and reading.on_long == "truncate",
            )
        )
    return found


def explain_features(model: TfidfModel, data: Split, label: str | None = None) -> list[ByFeatures]:
    """Say for each row which features speak for a label, and which against: the predicted one, or `label`.

    Multi-label: the most probable one. Raises UserError (2) for a label that there is not.
    """
    chosen = None if label is None else label_number(label, model.labels)
    shares = model.predict_proba(data.texts(), data.pairs())
    numbers = [int(share.argmax()) if chosen is None else chosen for share in shares]
    labels = LabelMap(model.labels, model.multi_label)
    return [
        ByFeatures(**_judged(row, share, labels), decision=decision)
        for row, share, decision in zip(
            _rows(data), shares, model.decisions(data.texts(), numbers, data.pairs()), strict=True
        )
    ]


def label_number(label: str, names: Sequence[str]) -> int:
    """Return the number of a label; raises UserError (2) for one that there is not, with the nearest."""
    if label not in names:
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UserError(Exit.USAGE, f"--label {label}: no such label{did_you_mean(label, names)} (known: {known})")
    return list(names).index(label)


def of_errors(parts: Classifier, data: Split, labels: Sequence[int], reading: Reading) -> list[list[Word]]:
    """Return the words that mattered most for the label given of each row, strongest first, by few steps.

    Rows come from the worst on; where they would cost too much, the later ones are left out.
    """
    found: list[list[Word]] = []
    left = ERROR_TOKENS
    for row, label in zip(_rows(data), labels, strict=True):
        left -= ERROR_STEPS * sum(len(piece.ids) for piece in fit(parts.tokenizer, *row, *reading))
        if left < 0:
            break
        words = integrated(parts, row, label, reading, ERROR_STEPS).words
        found.append(sorted(words, key=lambda word: -abs(word.gradients))[:WORDS_OF_ERROR])
    return found


def integrated(parts: Classifier, row: Pair, label: int, reading: Reading, steps: int) -> Path:
    """Return integrated gradients of a label's probability on the input embeddings, summed over each word's tokens.

    The path begins where every token but the special ones is [MASK], or padding for a model without a mask. Windows of
    a long text are averaged, as their probabilities are.
    """
    pieces = fit(parts.tokenizer, *row, *reading)
    places = _places(row, pieces)
    of_word = dict.fromkeys(places, 0.0)
    start = value = 0.0
    was_training = parts.model.training
    parts.model.eval()
    for piece in pieces:
        ids = torch.tensor(piece.ids, device=parts.model.device)
        special = torch.tensor(piece.special_tokens_mask, device=parts.model.device) > 0
        embed = parts.model.get_input_embeddings()
        with torch.no_grad():
            inputs = embed(ids)  # (tokens, dim)
            baseline = embed(torch.where(special, ids, _baseline_token(parts)))
        shares, begins, ends = integrated_gradients(_score(parts, piece, label), inputs, baseline, steps)
        start, value = start + begins / len(pieces), value + ends / len(pieces)
        for key, share in zip(_words_of(piece), shares, strict=True):
            if key is not None:
                of_word[key] += float(share) / len(pieces)
    parts.model.train(was_training)
    return Path(
        [Word(place, share) for place, share in zip(places.values(), of_word.values(), strict=True)],
        start,
        value,
    )


def integrated_gradients(
    score: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor, steps: int
) -> tuple[np.ndarray, float, float]:
    """Return the share of each token, (tokens,), and the score of baseline and inputs, (tokens, dim) each.

    Equation 1 of Sundararajan, Taly and Yan 2017 (section 3), summed over dimensions; the integral by Gauss-Legendre
    quadrature on `steps` points. `score` takes (batch, tokens, dim) and returns (batch,).
    """
    nodes, masses = np.polynomial.legendre.leggauss(steps)
    points, weights = (torch.from_numpy(part / 2).to(inputs) for part in (nodes + 1, masses))
    total = torch.zeros_like(inputs)
    at_once = max(1, TOKENS_AT_ONCE // len(inputs))
    for first in range(0, steps, at_once):
        part = slice(first, first + at_once)
        path = baseline + points[part, None, None] * (inputs - baseline)  # (batch, tokens, dim)
        path.requires_grad_()
        with torch.enable_grad():
            gradients = torch.autograd.grad(score(path).sum(), path)[0]
        total += (weights[part, None, None] * gradients).sum(dim=0)
    with torch.no_grad():
        begins, ends = score(torch.stack([baseline, inputs])).tolist()
    return ((inputs - baseline) * total).sum(dim=-1).double().cpu().numpy(), begins, ends


def _score(parts: Classifier, piece: Encoding, label: int) -> Callable[[Tensor], Tensor]:
    """Return the probability of a label as a function of the embeddings of a text's tokens."""
    types = torch.tensor([piece.type_ids], device=parts.model.device)

    def score(embedded: Tensor) -> Tensor:
        rows = len(embedded)
        inputs = {"attention_mask": torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)}
        if "token_type_ids" in parts.tokenizer.model_input_names:
            inputs["token_type_ids"] = types.expand(rows, -1)
        return parts.shares(parts.model(inputs_embeds=embedded, **inputs).logits.float())[:, label]

    return score


def _words_of(piece: Encoding) -> list[tuple[int, int] | None]:
    """Return for each token which word it is a part of: column and number; None for a special token."""
    return [
        None if column is None or word is None else (column, word)
        for column, word in zip(piece.sequence_ids, piece.word_ids, strict=True)
    ]


def _places(row: Pair, pieces: Sequence[Encoding]) -> dict[tuple[int, int], Place]:
    """Return the words that a model reads, in the order of the texts, without the spaces that a tokenizer counts in."""
    ends: dict[tuple[int, int], tuple[int, int]] = {}
    for piece in pieces:
        for key, (left, right) in zip(_words_of(piece), piece.offsets, strict=True):
            if key is not None:
                known = ends.get(key, (left, right))
                ends[key] = min(known[0], left), max(known[1], right)
    places = {}
    for key, (left, right) in sorted(ends.items()):
        whole = row.texts[key[0]][left:right]
        start = left + len(whole) - len(whole.lstrip())
        places[key] = Place(whole.strip(), key[0], start, start + len(whole.strip()))
    return places


def _hidden(
    parts: Classifier, row: Pair, places: Iterable[Place], reading: Reading, settings: TrainConfig
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Return the probabilities, (labels,), of a row, and of the row without each of its words; None: nothing is left.

    A word is replaced by [MASK]; for a model that has no mask it is taken out, with the space before it.
    """
    rows = [row.texts] + [_without(row.texts, place, parts.tokenizer.mask_token) for place in places]
    kept = [place for place, texts in enumerate(rows) if all(text.strip() for text in texts)]
    columns = dict(zip(("text", "text_pair"), zip(*(rows[place] for place in kept), strict=True), strict=False))
    encoded = encode(from_columns("text", columns), parts.tokenizer, *reading)
    shares = classifier.predict(parts, encoded, settings).probabilities
    found: list[np.ndarray | None] = [None] * len(rows)
    for place, share in zip(kept, shares, strict=True):
        found[place] = share
    assert found[0] is not None
    return found[0], found[1:]


def _without(texts: Sequence[str], place: Place, mask: str | None) -> list[str]:
    """Return the texts of a row without one of their words."""
    text = texts[place.column]
    before, after = text[: place.start], text[place.end :]
    changed = f"{before}{mask}{after}" if mask is not None else (before.rstrip() + after).lstrip()
    return [*texts[: place.column], changed, *texts[place.column + 1 :]]


def _judged(row: Pair, share: np.ndarray, labels: LabelMap) -> dict[str, Any]:
    """Return the fields of Judged."""
    decided = share >= 0.5 if labels.multi_label else np.arange(len(share)) == share.argmax()
    return {
        "row": row,
        "probabilities": dict(zip(labels.names, share.tolist(), strict=True)),
        "predicted": [name for name, on in zip(labels.names, decided, strict=True) if on],
        "multi_label": labels.multi_label,
    }


def _rows(data: Split) -> list[Pair]:
    pairs: Sequence[str | None] = data.pairs() or [None] * len(data)
    return [Pair(*both) for both in zip(data.texts(), pairs, strict=True)]


def _baseline_token(parts: Classifier) -> int:
    mask = parts.tokenizer.mask_token_id
    return int(parts.tokenizer.pad_token_id if mask is None else mask)
