"""Scores texts with a classifier, in training or of a finished run, and says what the model did not read of them."""

from typing import Any

import numpy as np

from finetune import classifier
from finetune.classifier import Fitting
from finetune.data.columns import LabelMap, Split
from finetune.data.encode import OnLong, encode
from finetune.evaluation import Predictions
from finetune.report.opening import say_cut
from finetune.report.results import judge, predicted_rows
from finetune.run import Run
from finetune.trainer import TrainConfig


def score_split(ready: Fitting, name: str, split: Split) -> tuple[Predictions, float]:
    """Score a labelled split that was encoded under `name`; return the seconds that the model took, too."""
    labels = ready.parts.labels
    scored = classifier.predict(ready.parts, ready.encoded[name], ready.settings)
    return judge(split, labels.encode(split), scored.probabilities, labels), scored.seconds


def evaluate(run: Run, data: Split, settings: TrainConfig, *, max_length: int, on_long: OnLong) -> Predictions:
    """Score the trained classifier of a run on labelled data."""
    labels, probabilities = _classify(run, data, settings, max_length, on_long)
    return judge(data, labels.encode(data), probabilities, labels)


def predict(
    run: Run, inputs: Split, settings: TrainConfig, *, max_length: int, on_long: OnLong
) -> list[dict[str, Any]]:
    """Label texts with the trained classifier of a run: one row each, in order."""
    labels, probabilities = _classify(run, inputs, settings, max_length, on_long)
    return predicted_rows(inputs, probabilities, labels)


def _classify(
    run: Run, data: Split, settings: TrainConfig, max_length: int, on_long: OnLong
) -> tuple[LabelMap, np.ndarray]:
    """Return the labels of a run's classifier and the probabilities of each row, (rows, labels)."""
    parts = run.loaded(classifier.load_trained)
    max_length = min(max_length, parts.context)
    encoded = encode(data, parts.tokenizer, max_length, on_long)
    say_cut(run, encoded.long, len(data), max_length, on_long)
    resolved = classifier.resolve(parts, settings, len(data))
    return parts.labels, classifier.predict(parts, encoded, resolved).probabilities
