"""Scores with intervals, comparisons and diagnoses of generated texts; the lines of their predictions file."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from finetune import significance, text_metrics
from finetune.errors import Exit, UserError, did_you_mean
from finetune.significance import Interval, Sample
from finetune.text_metrics import RowStatistics

ERRORS_SHOWN = 40
DIGITS = 6  # of a score in a predictions file


@dataclass(frozen=True)
class Task:
    """How texts of one kind of work are scored: the metrics, the one that decides, the language of the references.

    `verbatim`: exact_match and token_f1 take texts to the letter, not as SQuAD does.
    """

    name: str
    metrics: tuple[str, ...]
    decides: str
    verbatim: bool = False
    language: str | None = None


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("translation", ("bleu", "chrf", "ter"), "chrf"),
        Task("summarization", ("rouge1", "rouge2", "rougeL", "rougeLsum", "chrf"), "rouge1"),
        Task("dialogue", ("bleu", "chrf", "rougeL"), "chrf"),
        Task("question_answering", ("exact_match", "token_f1"), "exact_match"),
        Task("transduction", ("exact_match", "token_f1"), "exact_match", verbatim=True),
    )
}


def task_named(name: str, language: str | None = None) -> Task:
    """Return a task by its name, for references in `language`; raises UserError (exit 2) with the nearest name."""
    if name not in TASKS:
        raise UserError(Exit.USAGE, f"unknown task {name}{did_you_mean(name, TASKS)} (known: {', '.join(TASKS)})")
    return dataclasses.replace(TASKS[name], language=language)


def greater_is_better(metric: str, task: Task) -> bool:
    """Say whether more of a validation score is better; raises UserError (2) for one that the task does not have."""
    known = (*task.metrics, "loss")
    if metric not in known:
        guess = did_you_mean(metric, known)
        what = f"train.metric_for_best_model={metric}: {task.name} has no such score{guess}"
        raise UserError(Exit.USAGE, f"{what} (known: {', '.join(known)})")
    return metric not in {*text_metrics.LOWER_IS_BETTER, "loss"}


@dataclass(frozen=True)
class TextPredictions:
    """What one system writes for the rows of one file; each row has one reference or more.

    `confidence` is what the system says of its own text, where it does, e.g. the mean log-probability of a token.
    `languages` are those of the rows, where they are known: a row's decides over its words, that of the task only where
    it has none. Raises UserError (exit 65) where lengths disagree or a row has no reference.
    """

    ids: list[str]
    sources: list[str]
    references: list[list[str]]
    predicted: list[str]
    confidence: list[float] | None = None
    languages: list[str | None] | None = None
    _known: dict[tuple[Any, ...], RowStatistics] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.ids, self.sources, self.references, self.predicted)]
        if not self.ids:
            raise UserError(Exit.BAD_DATA, "there is no row to score: the file has no rows")
        if len({*lengths, len(self.confidence or self.ids), len(self.languages or self.ids)}) > 1:
            what = "ids, sources, references and predicted texts"
            raise UserError(Exit.BAD_DATA, f"{what} have different numbers of rows: {', '.join(map(str, lengths))}")
        for identity, several in zip(self.ids, self.references, strict=True):
            if not several or not all(reference.strip() for reference in several):
                raise UserError(Exit.BAD_DATA, f"row {identity}: a reference is empty, so it cannot be scored")

    def statistics(self, names: Sequence[str], task: Task) -> list[np.ndarray]:
        """Return the statistics of each metric named, (rows, sums) each; computed once."""
        return [self._computed(name, names, task).sums for name in names]

    def signatures(self, task: Task) -> dict[str, str]:
        """Return for each metric of the task how it is computed, in one line."""
        return {name: self._computed(name, task.metrics, task).signature for name in task.metrics}

    def _computed(self, name: str, names: Sequence[str], task: Task) -> RowStatistics:
        settings = (task.language, task.verbatim)
        if (name, *settings) not in self._known:
            missing = [one for one in names if (one, *settings) not in self._known]
            found = self._by_language(missing, task)
            self._known.update({(one, *settings): statistics for one, statistics in found.items()})
        return self._known[(name, *settings)]

    def _by_language(self, names: Sequence[str], task: Task) -> dict[str, RowStatistics]:
        """Compute statistics of the rows of each language by its own rules, and put them back in order."""
        groups: dict[str | None, list[int]] = {}
        for row, language in enumerate(self.languages or [None] * len(self.ids)):
            groups.setdefault(language or task.language, []).append(row)
        parts = {
            language: text_metrics.statistics(
                names, [self.predicted[i] for i in rows], [self.references[i] for i in rows],
                language=language, verbatim=task.verbatim,
            )
            for language, rows in groups.items()
        }  # fmt: skip
        back = np.argsort(np.concatenate([*groups.values()]))
        found = {}
        for name in names:
            signatures = {language: part[name].signature for language, part in parts.items()}
            same = len(set(signatures.values())) == 1
            each = ", ".join(f"{language}: {signature}" for language, signature in signatures.items())
            sums = np.concatenate([part[name].sums for part in parts.values()])
            found[name] = RowStatistics(sums[back], next(iter(signatures.values())) if same else each)
        return found

    def of(self, language: str) -> "TextPredictions":
        """Return the rows of one language."""
        return self.select([row for row, one in enumerate(self.languages or []) if one == language])

    def select(self, rows: Sequence[int]) -> "TextPredictions":
        """Return these rows, in this order."""
        return TextPredictions(
            ids=[self.ids[i] for i in rows],
            sources=[self.sources[i] for i in rows],
            references=[self.references[i] for i in rows],
            predicted=[self.predicted[i] for i in rows],
            confidence=None if self.confidence is None else [self.confidence[i] for i in rows],
            languages=None if self.languages is None else [self.languages[i] for i in rows],
        )


Systems = TextPredictions | Sequence[TextPredictions]


def score(predictions: Systems, task: Task, seed: int = 1) -> dict[str, dict[str, float]]:
    """Score one system, or several seeds of one recipe, with 95 % intervals: {"bleu": {"value", "low", "high"}}.

    For several seeds the value is the mean over seeds, "sd" their sample standard deviation, and the interval comes
    from drawing the same rows for all of them: it speaks of the rows, "sd" of the seeds. The interval of exact_match is
    never narrower than Wilson's, because a bootstrap has no width at a perfect score.
    """
    seeds = _aligned(_as_list(predictions))
    intervals = _intervals(_sample(seeds, task.metrics, task), task.metrics, seed)
    return significance.told_scores(intervals, seeds, partial(values, task=task))


def values(predictions: TextPredictions, task: Task) -> dict[str, float]:
    """Return every metric of one system without intervals."""
    points = _sample([predictions], task.metrics, task).point().tolist()
    return dict(zip(task.metrics, points, strict=True))


def strongest(systems: Mapping[str, TextPredictions], task: Task) -> str:
    """Return the name of the system that scores best by the metric that decides; the first of equals."""
    decisive = dataclasses.replace(task, metrics=(task.decides,))
    sign = -1 if task.decides in text_metrics.LOWER_IS_BETTER else 1
    return max(systems, key=lambda name: sign * values(systems[name], decisive)[task.decides])


def compare(a: Systems, b: Systems, task: Task, *, metric: str | None = None, comparisons: int = 1) -> dict[str, Any]:
    """Compare two systems, or two lists of seeds, on the same rows; positive is better for `a`.

    Returns {"metric", "difference", "low", "high", "p_value", "verdict"}, by the metric that decides where none is
    named. The interval is that of the paired bootstrap (Koehn 2004) at level 0.05 / comparisons, of the difference of
    the means over seeds. `p_value` is of approximate randomisation (Riezler and Maxwell 2005), for several seeds the
    largest over all pairs of seeds. Where that test of one seed against one does not reject at the level, the interval
    is stretched to 0: with few rows a bootstrap is too sure. Raises UserError (exit 65) naming the first id that one
    side lacks.
    """
    of_a, of_b = _paired(_as_list(a), _as_list(b))
    name = metric or task.decides
    return _compare(of_a, of_b, _p_value(of_a, of_b, name, task), comparisons, name, task)


def _compare(
    of_a: list[TextPredictions], of_b: list[TextPredictions], p_value: float, comparisons: int, name: str, task: Task
) -> dict[str, Any]:
    alpha = significance.ALPHA / comparisons
    samples = [_sample(group, [name], task) for group in (of_a, of_b)]
    if name in text_metrics.LOWER_IS_BETTER:
        samples.reverse()
    interval = significance.paired_bootstrap(samples[0], samples[1], alpha=alpha)[0]
    if len(of_a) == len(of_b) == 1 and p_value > alpha:
        interval = interval.around(0.0, 0.0)
    return significance.comparison(name, interval, p_value)


def compare_all(
    pairs: Mapping[str, tuple[Systems, Systems]], task: Task, *, metric: str | None = None
) -> dict[str, dict[str, Any]]:
    """Make several comparisons, one for each baseline for example, with intervals widened by Holm's procedure.

    Returns {name: what `compare` returns}; the chance of any wrong verdict among all of them stays at 5 %.
    """
    name = metric or task.decides
    paired = {key: _paired(_as_list(a), _as_list(b)) for key, (a, b) in pairs.items()}
    return significance.compare_together(
        paired, partial(_p_value, metric=name, task=task), partial(_compare, name=name, task=task)
    )


def by_language(predictions: Systems, other: TextPredictions | None, task: Task) -> dict[str, Any]:
    """Score each language of the rows by itself, one system or several seeds, and compare it with another system.

    Returns {"languages": {"it": scores}, "comparisons": {"it": comparison}}, the intervals of the comparisons widened
    for their number by Holm's procedure; nothing where the rows do not tell their languages.
    """
    seeds = _aligned(_as_list(predictions))
    languages = [language for language in dict.fromkeys(seeds[0].languages or []) if language is not None]
    if not languages:
        return {}
    parts = {language: [one.of(language) for one in seeds] for language in languages}
    found: dict[str, Any] = {"languages": {language: score(part, task) for language, part in parts.items()}}
    if other is not None:
        pairs = {language: (part, other.of(language)) for language, part in parts.items()}
        found["comparisons"] = compare_all(pairs, task)
    return found


def diagnose(predictions: TextPredictions, task: Task) -> dict[str, Any]:
    """Say where a system fails.

    Returns {"by_source_length": [...], "length_ratio" (words written over words of the first references), "empty"
    (share of texts without a word), "copies" (share that repeats the source, case and punctuation aside), "signatures":
    {metric: how it was computed}, "errors": [{"id", "source", "gold", "predicted", "score"}]}: the up to 40 rows with
    the lowest chrF of their own, which is their score.
    """
    said = [text_metrics.words(text) for text in predictions.predicted]
    gold = sum(len(text_metrics.words(several[0])) for several in predictions.references)
    copied = [bool(w) and w == text_metrics.words(s) for w, s in zip(said, predictions.sources, strict=True)]
    return {
        "by_source_length": by_source_length(predictions, task),
        "length_ratio": sum(map(len, said)) / max(gold, 1),
        "empty": float(np.mean([not words for words in said])),
        "copies": float(np.mean(copied)),
        "signatures": predictions.signatures(task),
        "errors": _worst(predictions, task),
    }


def by_source_length(
    predictions: TextPredictions, task: Task, edges: Sequence[int] | None = None, seed: int = 1
) -> list[dict[str, float]]:
    """Score buckets of rows by the words of their source: {"from", "to" (both included), "rows", metric, low, high}.

    The metric is the one that decides, "low" and "high" its 95 % interval. `edges` are the highest lengths of all
    buckets but the last; without them there are up to five buckets of about as many rows each.
    """
    sums = predictions.statistics([task.decides], task)[0]
    found: list[dict[str, float]] = []
    for ends, rows in text_metrics.by_length(predictions.sources, edges):
        sample = Sample(np.ones(len(rows), dtype=np.int64), sparse.csr_array(sums[rows]), _score_of([task.decides], 1))
        interval = _intervals(sample, [task.decides], seed)[task.decides]
        found.append({**ends, task.decides: interval.value, "low": interval.low, "high": interval.high})
    return found


def to_rows(predictions: TextPredictions) -> list[dict[str, Any]]:
    """Return the lines of predictions/test.jsonl: {"id", "source", "gold", "predicted", "score"?, "language"?}.

    "gold" is a text, or a list where a row has several references; "score" is the system's own, where it gives one.
    """
    rows = []
    for i, identity in enumerate(predictions.ids):
        row: dict[str, Any] = {
            "id": identity,
            "source": predictions.sources[i],
            "gold": _gold(predictions.references[i]),
            "predicted": predictions.predicted[i],
        }
        if predictions.confidence is not None:
            row["score"] = round(float(predictions.confidence[i]), DIGITS)
        if predictions.languages is not None:
            row["language"] = predictions.languages[i]
        rows.append(row)
    return rows


def from_rows(rows: Sequence[Mapping[str, Any]]) -> TextPredictions:
    """Read back what `to_rows` wrote; raises UserError (exit 65) with the number of a line that lacks a key."""
    ids, sources, references, predicted, confidence = [], [], [], [], []
    for line, row in enumerate(rows, start=1):
        try:
            ids.append(str(row["id"]))
            sources.append(_text(row, "source"))
            references.append(list(row["gold"]) if isinstance(row["gold"], list) else [_text(row, "gold")])
            predicted.append(_text(row, "predicted"))
            if "score" in row:
                confidence.append(float(row["score"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(Exit.BAD_DATA, f"predictions line {line}: missing or unknown {error}") from None
    languages = [row.get("language") for row in rows] if any("language" in row for row in rows) else None
    sure = confidence if len(confidence) == len(ids) else None
    return TextPredictions(ids, sources, references, predicted, sure, languages)


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise TypeError(f"{key!r}: not a text")
    return str(row[key])


def _gold(references: list[str]) -> str | list[str]:
    return references[0] if len(references) == 1 else references


def _as_list(predictions: Systems) -> list[TextPredictions]:
    return [predictions] if isinstance(predictions, TextPredictions) else list(predictions)


def _aligned(systems: list[TextPredictions]) -> list[TextPredictions]:
    """Bring all prediction sets into the row order of the first."""
    return [systems[0], *(_in_order_of(systems[0], other) for other in systems[1:])]


def _paired(a: list[TextPredictions], b: list[TextPredictions]) -> tuple[list[TextPredictions], list[TextPredictions]]:
    together = _aligned([*a, *b])
    return together[: len(a)], together[len(a) :]


def _in_order_of(first: TextPredictions, other: TextPredictions) -> TextPredictions:
    if other.ids != first.ids:
        other = other.select(significance.in_order_of(first.ids, other.ids))
    for identity, one, two in zip(first.ids, first.references, other.references, strict=True):
        if one != two:
            raise UserError(Exit.BAD_DATA, f"the two systems have different references for id {identity}")
    return other


def _sample(seeds: Sequence[TextPredictions], names: Sequence[str], task: Task) -> Sample:
    """Sums: for each seed those of each metric; the scores are the means over seeds, (..., metrics)."""
    blocks = [sums for one in seeds for sums in one.statistics(names, task)]
    widths = [block.shape[1] for block in blocks]
    rows = len(seeds[0].ids)
    score = _score_of(names, len(seeds), np.cumsum(widths)[:-1])
    return Sample(np.ones(rows, dtype=np.int64), sparse.csr_array(np.concatenate(blocks, axis=1)), score)


def _intervals(sample: Sample, names: Sequence[str], seed: int) -> dict[str, Interval]:
    intervals = dict(zip(names, significance.bootstrap(sample, seed=seed), strict=True))
    if "exact_match" in intervals:
        rows, share = len(sample.counts), intervals["exact_match"].value
        intervals["exact_match"] = intervals["exact_match"].around(*significance.wilson(share * rows, rows))
    return intervals


def _score_of(names: Sequence[str], seeds: int, ends: np.ndarray | None = None) -> significance.Score:
    def scores(sums: np.ndarray) -> np.ndarray:
        parts = np.split(sums, [] if ends is None else ends, axis=-1)
        found = [text_metrics.score_sums(names[i % len(names)], part) for i, part in enumerate(parts)]
        of_seeds = np.stack(found, axis=-1).reshape(*sums.shape[:-1], seeds, len(names))
        return np.asarray(of_seeds.mean(axis=-2))

    return scores


def _p_value(a: list[TextPredictions], b: list[TextPredictions], metric: str, task: Task) -> float:
    return max(
        significance.approximate_randomisation(_sample([one], [metric], task), _sample([two], [metric], task))
        for one in a
        for two in b
    )


def _worst(predictions: TextPredictions, task: Task) -> list[dict[str, Any]]:
    scores = text_metrics.score_sums("chrf", predictions.statistics(["chrf"], task)[0])  # (rows,)
    return [
        {
            "id": predictions.ids[i],
            "source": predictions.sources[i],
            "gold": _gold(predictions.references[i]),
            "predicted": predictions.predicted[i],
            "score": round(float(scores[i]), DIGITS),
        }
        for i in np.argsort(scores, kind="stable")[:ERRORS_SHOWN].tolist()
        if predictions.predicted[i] not in predictions.references[i]
    ]
