"""What transfer_methods.py tries for languages that training does not see, and what has not helped.

Centring moves the mean vector of a language onto that of the training languages; self-training adds texts that the
model itself labelled.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.table import InMemoryTable
from torch import Tensor, nn

from finetune import classifier
from finetune.classifier import Classifier
from finetune.data.check import leaks
from finetune.data.columns import LabelMap, Split
from finetune.data.encode import Encoded
from finetune.errors import Exit, UserError
from finetune.trainer import TrainConfig

Place = Literal["cls", "pooled"]
Score = Callable[[Split], np.ndarray]  # texts -> probabilities (rows, labels)
Fit = Callable[[Sequence[Split]], Score]  # trains on these splits together


# Centring


def mean_vector(parts: Classifier, encoded: Encoded, settings: TrainConfig, place: Place) -> Tensor:
    """Return the mean over unlabelled texts of one language of what the head reads, (dim,).

    `place` is `cls`, the last layer's vector of [CLS] before the pooler, or `pooled`, after it.
    """
    layer, total, seen = _reader(parts, place), torch.zeros(parts.width, dtype=torch.float64), 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total, seen
        vectors = _first(inputs[0])  # (batch, dim)
        total, seen = total + vectors.double().sum(dim=0).cpu(), seen + len(vectors)

    hook = layer.register_forward_pre_hook(add)
    try:
        classifier.predict(parts, encoded, settings)
    finally:
        hook.remove()
    return (total / max(1, seen)).float()


def shifts(means: Mapping[str, Tensor], sources: Sequence[str]) -> dict[str, Tensor]:
    """Return for each language the vector, (dim,), that moves its mean onto the mean of the training languages.

    Libovický et al. 2020, section 3, take the mean of its language from every vector; moving it to where the training
    languages are is the same for a head that was trained there, and needs no second training.
    """
    target = torch.stack([means[language] for language in sources]).mean(dim=0)
    return {language: target - mean for language, mean in means.items()}


@contextmanager
def centred(parts: Classifier, shift: Tensor, place: Place) -> Iterator[None]:
    """Add a language's shift, (dim,), to what the head reads, inside the block.

    At `pooled` a linear head turns it into a constant for each label: how often a label is said changes, and nothing
    else. At `cls` the pooler's tanh is between.
    """

    def move(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + shift.to(inputs[0]), *inputs[1:])

    hook = _reader(parts, place).register_forward_pre_hook(move)
    try:
        yield
    finally:
        hook.remove()


# Self-training


def self_train(
    source: Split,
    unlabelled: Mapping[str, Split],
    tests: Sequence[Split],
    fit: Fit,
    labels: LabelMap,
    threshold: float,
) -> tuple[Score, dict[str, Any]]:
    """Train on labelled rows, label the texts of each language with that model, and train again on both together.

    `threshold` is the least probability of a label that is believed. Returns the second model and what was kept of each
    language. Raises UserError (2) where no text is believed.
    """
    clean = {language: without_tests(split, tests) for language, split in unlabelled.items()}
    first = fit([source])
    added, record = [], {}
    for language, (split, leaked) in clean.items():
        pseudo, told = pseudo_label(split, first(split), labels, threshold)
        record[language] = told | {"in_test": leaked}
        added += [pseudo] if pseudo is not None else []
    if not added:
        what = f"self-training: the model is sure of no unlabelled text at {threshold:g}"
        raise UserError(Exit.USAGE, f"{what}; give a lower threshold, or more texts of data.unlabelled")
    return fit([source, *added]), record


def without_tests(unlabelled: Split, tests: Sequence[Split]) -> tuple[Split, int]:
    """Leave out the texts that stand in a test split, case and spaces aside; return the rest and how many there were.

    Raises UserError (65) where nothing is left.
    """
    leaked = np.unique(np.concatenate([np.zeros(0, np.int64), *(leaks(test, [unlabelled])[0] for test in tests)]))
    if len(leaked) == len(unlabelled):
        what = f"{unlabelled.files[0]}: every unlabelled text stands in test"
        raise UserError(Exit.BAD_DATA, f"{what}; give other texts as data.unlabelled")
    kept = np.setdiff1d(np.arange(len(unlabelled)), leaked)
    return unlabelled.select(kept), len(leaked)


def pseudo_label(
    unlabelled: Split, probabilities: np.ndarray, labels: LabelMap, threshold: float
) -> tuple[Split | None, dict[str, Any]]:
    """Return the texts of which a model is sure, with its labels in place of theirs, and what was kept.

    None where there is no such text. `probabilities` is (rows, labels). Raises UserError (2) for multi-label.
    """
    if labels.multi_label:
        raise UserError(Exit.USAGE, "self-training labels texts with one label each; leave out data.unlabelled")
    rows = confident(probabilities, threshold)
    names = [labels.names[number] for number in probabilities[rows].argmax(axis=1)]
    told = {"texts": len(unlabelled), "kept": len(rows), "by_label": dict(Counter(names)), "threshold": threshold}
    return (_labelled(unlabelled.select(rows), names) if len(rows) else None), told


def confident(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return the rows, rising, whose best label has at least `threshold`: as many of each label, the surest first.

    As many as the label with the fewest such rows has; labels without one are left out. Without this balance the
    commonest label crowds out the others, training by training (Zou et al. 2018, section 3.3).
    """
    sure, said = probabilities.max(axis=1), probabilities.argmax(axis=1)
    of_label = [np.flatnonzero((said == label) & (sure >= threshold)) for label in range(probabilities.shape[1])]
    of_label = [rows for rows in of_label if len(rows)]
    most = min(map(len, of_label), default=0)
    chosen = [rows[np.argsort(-sure[rows], kind="stable")[:most]] for rows in of_label]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _reader(parts: Classifier, place: Place) -> nn.Module:
    """Return the layer that reads the vector at `place`; raises UserError (2) where the model has no such place."""
    modules = dict(parts.model.named_modules())
    pooler = modules.get(f"{parts.model.base_model_prefix}.pooler")
    head = modules.get("classifier")
    layer = pooler if place == "cls" else head if isinstance(head, nn.Linear) else None
    if layer is None:
        what = f"centring={place}: {parts.family} has no vector there that can be moved"
        raise UserError(Exit.USAGE, f"{what}; give centring=none, or a BERT")
    return layer


def _first(states: Tensor) -> Tensor:
    """Return the vector of the first token, (batch, dim), of states (batch, time, dim); pooled ones as they are."""
    return states[:, 0] if states.ndim == 3 else states


def _labelled(split: Split, names: Sequence[str]) -> Split:
    """Return the split with these labels in place of its own."""
    table = pa.concat_tables(list(split.blocks([name for name in split.rows.column_names if name != "label"])))
    table = table.add_column(table.column_names.index("file"), "label", pa.array(names, pa.string()))
    made_of = repr((split.rows._fingerprint, list(names)))
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return replace(split, rows=datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint))
