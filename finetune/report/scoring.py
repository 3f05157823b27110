"""Scores texts with a classifier, in training or of a finished run, and says what the model did not read of them."""

from typing import Any

import numpy as np

from finetune import attribution, baselines, classifier, evaluation, processes
from finetune.attribution import Attribution, ByFeatures, Reading
from finetune.baselines import TfidfModel
from finetune.classifier import Classifier, Fitting
from finetune.data.columns import LabelMap, Split
from finetune.data.encode import OnLong, encode
from finetune.errors import Exit, UserError
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


def explain(
    run: Run, inputs: Split, config: Any, label: str | None, steps: int | None
) -> list[Attribution] | list[ByFeatures]:
    """Say what speaks for a label in each text: words of a run's trained classifier, or features of TF-IDF.

    `config` is the run's; no label: the predicted one. Raises UserError (2) for steps where there is no path.
    """
    if (run.model / baselines.SIDE_FILE).is_file():
        if steps is not None:
            raise UserError(Exit.USAGE, f"--steps: {run.folder} is TF-IDF, whose features add up exactly")
        return attribution.explain_features(run.loaded(TfidfModel.load), inputs, label)
    parts = run.loaded(classifier.load_trained)
    reading = _reading(parts, config)
    settings = classifier.resolve(parts, config.train, len(inputs))
    return attribution.explain(parts, inputs, reading, settings, label, steps or attribution.STEPS)


def mattered(
    parts: Classifier | TfidfModel, data: Split, predictions: Predictions, config: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return for the worst errors on a split, by id, what mattered most for the wrong decision, the strongest first.

    Words by integrated gradients of few steps, or the features of TF-IDF: [{"word", "share"}]. A share above 0 spoke
    for the decision: against the label, where a label was wrongly left out. `config` is the run's.
    """
    rows, labels, _ = evaluation.worst_decisions(predictions)
    if not len(rows):
        return {}
    worst = data.select(rows)
    if isinstance(parts, TfidfModel):
        of_rows = parts.decisions(worst.texts(), labels.tolist(), worst.pairs())
        told = [[(one.name, one.added) for one in of.features[: attribution.WORDS_OF_ERROR]] for of in of_rows]
    else:
        reading = _reading(parts, config)
        found = processes.by_main(lambda: attribution.of_errors(parts, worst, labels.tolist(), reading))
        told = [[(word.place.text, word.gradients) for word in words] for words in found]
    left_out = predictions.predicted[rows, labels] == 0 if predictions.multi_label else np.zeros(len(rows), dtype=bool)
    shown = (
        [{"word": word, "share": float(f"{-share if without else share:.4g}")} for word, share in each]
        for each, without in zip(told, left_out, strict=False)
    )
    return dict(zip(worst.ids(), shown, strict=False))


def _reading(parts: Classifier, config: Any) -> Reading:
    return Reading(min(config.max_length, parts.context), config.data.on_long)


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
