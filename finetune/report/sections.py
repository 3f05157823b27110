"""The sections of a run's page, each from what the run left; one that has nothing to tell is left out."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune import evaluation, text_metrics
from finetune.report import language_model, long_rows, pictures
from finetune.report.advice import metric_of, short
from finetune.report.blocks import Cell, Code, Example, Facts, Findings, Folded, Image, Picture, Section, Table, Words
from finetune.report.budget import budget_figure
from finetune.report.card import licences
from finetune.report.diagnosis import LABELS, correlation_text
from finetune.report.matrix import NONE, grid, table, verdict_sentence
from finetune.report.pictures import Series
from finetune.report.results import Judging
from finetune.report.summaries import FIGURES, bertscore_text
from finetune.report.text import again, oracle_extract_text
from finetune.report.writing import TOLD
from finetune.terminal import count, difference, duration, is_percentage, p_value, shown
from finetune.text_evaluation import TASKS

SHOWN_LABELS = 24  # a side of the confusion table; of more labels those with the most mistakes
SHOWN_PAIRS = 10
SHOWN_EXAMPLES = 8
SHOWN_FEATURES = 10
SHOWN_ERRORS = 40
LONGEST = 1200  # characters of a text in a table
FEW_MEASURED = 2  # points of a curve
FEW_ROWS = 25  # fewer say nothing by length
TEXT_FIGURES = FIGURES | {name: (told, 2) for name, told in TOLD.items()} | {
    "self_bleu": ("self-BLEU", 1), "perplexity": ("perplexity", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """All that a page reads of a finished run.

    `results` has the diagnostics of the best of several seeds where the seeds together have none; `records` are those
    of metrics.jsonl by the name of the curve, `rows` and `beside` the predictions of model and baseline, `written` and
    `explained` what a language model wrote and where a writer looked.
    """

    results: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    rows: list[dict[str, Any]]
    beside: Sequence[Mapping[str, Any]]
    written: Sequence[Mapping[str, Any]]
    explained: Mapping[str, str]
    judging: Judging
    folder: str

    @property
    def told(self) -> dict[str, Any]:
        """Return the diagnostics."""
        return dict(self.results["diagnostics"])

    @property
    def judged(self) -> str:
        """Return the split that the verdict speaks of."""
        return str(self.told["judged_on"])

    @property
    def metric(self) -> str:
        """Return the metric of the verdict, or the first one."""
        comparison = self.results.get("comparison")
        return str(comparison["metric"]) if comparison else next(iter(self.results["scores"][self.judged]))

    @functools.cached_property
    def by_length(self) -> list[dict[str, float]]:
        """Return scores of buckets of texts by their words; none where the run has no texts."""
        if "by_source_length" in self.told:
            return list(self.told["by_source_length"])
        if "labels" in self.told:
            texts = [" ".join([row["text"], row.get("text_pair", "")]) for row in self.rows]
            return evaluation.by_length(self.judging.read(self.rows), texts)
        if self.results["task"] != language_model.TASK:
            return []
        bits, size = (np.array([row[name] for row in self.rows], dtype=float) for name in ("bits", "bytes"))
        parts = text_metrics.by_length([row["text"] for row in self.rows])
        return [{**ends, "bits_per_byte": float(bits[rows].sum() / size[rows].sum())} for ends, rows in parts]


def sections(found: Ended) -> list[Section]:
    """Return what the run has to tell below the first screen, in the order of reading."""
    made = (
        ("scores", "Scores", _scores), ("curves", "Learning curves", _curves), ("budget", "How many labels it needs",
        _budget), ("languages", "Languages", _languages), ("confusion", "Classes", _classes),
        ("length", "Score by length", _length), ("calibration", "Calibration", _calibration),
        ("texts", "What it writes", _texts), ("errors", "The worst errors", _errors),
        ("explained", "Explained", _explained), ("features", "Words that speak for a label", _features),
        ("data", "Data", _data), ("made", "How it was made", _made),
    )  # fmt: skip
    parts = [Section(name, title, list(blocks(found))) for name, title, blocks in made]
    return [part for part in parts if part.blocks]


def systems(found: Ended) -> dict[str, Mapping[str, Any]]:
    """Return the scores of the model and of each baseline that was judged on the same rows, by a short name."""
    own = {short(found.told["system"]): found.results["scores"][found.judged]}
    cheap = [one for one in found.results.get("baselines", []) if found.judged in one["scores"]]
    return own | {short(one["name"]): one["scores"][found.judged] for one in cheap}


def score_of(score: Mapping[str, float]) -> pictures.Score:
    """Return value and interval of a score as numbers."""
    return float(score["value"]), float(score["low"]), float(score["high"])


def compared_rows(head: str, comparisons: Mapping[str, Any]) -> Table:
    """Return comparisons by name as a table; `head` says what the names are."""
    rows = [
        [
            Cell(name), Cell(one["verdict"]), Cell(difference(one), one["difference"]),
            Cell(p_value(one["p_value"]), one["p_value"]),
        ]
        for name, one in comparisons.items()
    ]  # fmt: skip
    return Table("Verdicts", [head, "verdict", "difference", "p"], rows, sortable=len(rows) > 1)


def _scores(found: Ended) -> Iterator[Any]:
    scores = systems(found)
    metrics = list(found.results["scores"][found.judged])
    rows = [
        [Cell(metric), *(_score_cell(metric, of.get(metric)) for of in scores.values())] for metric in metrics
    ]  # fmt: skip
    told = f"{found.judged}, {count(found.told['rows'][found.judged], 'row')}; in brackets the 95 % bootstrap interval"
    yield Table(told, ["", *scores], rows, numbers=frozenset(range(1, len(scores) + 1)))
    if "seeds" in found.results:
        each = found.results["seeds"]
        of_seeds = [
            [Cell(seed), *(_score_cell(metric, part["scores"][found.judged].get(metric)) for metric in metrics[:3]),
             Cell(duration(part["seconds"]["train"]), part["seconds"]["train"])]
            for seed, part in each.items()
        ]  # fmt: skip
        yield Table(
            f"Each seed; what follows is of seed {found.told['best_seed_on_validation']}, the best on validation",
            ["seed", *metrics[:3], "training"], of_seeds, frozenset(range(1, 5)), sortable=True,
        )  # fmt: skip
    if "bertscore" in found.told:
        yield Words(f"BERTScore: {bertscore_text(found.told['bertscore'])}")
    if "oracle_extract" in found.told:
        yield Words(f"Above it stands the {oracle_extract_text(found.told['oracle_extract'])}.")
    definitions = found.results.get("definitions", {})
    if definitions:
        yield Folded("What the numbers mean", [Facts(list(definitions.items()))])


def _curves(found: Ended) -> Iterator[Any]:
    losses, checks = [], []
    for name, records in found.records.items():
        steps = [one for one in records if "learning_rate" in one]
        if len(steps) >= FEW_MEASURED:
            losses.append(Series(name, [one["step"] for one in steps], [float(one["loss"]) for one in steps]))
        metric = found.metric if _measured(records, found.metric) else found.judging.chooses
        points = [one for one in records if "step" in one and metric in one.get("validation", {})]
        if len(points) >= FEW_MEASURED:
            y = [float(one["validation"][metric]) for one in points]
            checks.append((metric, Series(name, [one["step"] for one in points], y)))
    if losses:
        told = f"Training loss: {pictures.curves_in_words(losses)}"
        yield Picture(
            pictures.inline(pictures.curves(losses, "", "updates", "training loss", small=True), told), "Training loss"
        )
    if checks:
        metric, series = checks[0][0], [one for _, one in checks]
        baseline = found.results.get("baseline", {"scores": {}})
        level = baseline["scores"].get("validation", {}).get(metric)
        if level is not None:
            ends = [min(series[0].x), max(series[0].x)]
            series.append(Series(short(baseline["name"]), ends, [level["value"]] * 2))
        told = f"{metric} on validation: {pictures.curves_in_words(series)}"
        figure = pictures.curves(series, "", "updates", f"{metric} on validation", small=True)
        yield Picture(pictures.inline(figure, told), f"{metric} on validation")


def _budget(found: Ended) -> Iterator[Any]:
    budget = found.told.get("budget")
    if budget is None:
        return
    figure, told = budget_figure(budget, small=True)
    yield Picture(pictures.inline(figure, told), f"{budget['crossing']['sentence']}. Bands: 95 % over test rows.")
    yield compared_rows("budget", {count(one["rows"], "row"): one for one in budget["comparisons"]})


def _languages(found: Ended) -> Iterator[Any]:
    languages = found.results.get("languages", {})
    comparisons = found.results.get("comparisons", {})
    if "matrix" in found.results:
        yield from _matrix(found)
    elif languages:
        metrics = list(next(iter(languages.values())))
        rows = [
            [Cell(code), *(_score_cell(metric, of.get(metric)) for metric in metrics),
             Cell(comparisons.get(code, {}).get("verdict", ""))]
            for code, of in languages.items()
        ]  # fmt: skip
        numbers = frozenset(range(1, len(metrics) + 1))
        yield Table("Each language", ["language", *metrics, "verdict"], rows, numbers, sortable=len(rows) > 1)


def _matrix(found: Ended) -> Iterator[Any]:
    results, told = found.results, found.told
    matrix, columns = results["matrix"], list(results["languages"])
    if len(matrix) > 1:
        values = grid(matrix, "accuracy", columns)
        figure = pictures.heat_map(list(matrix), columns, values, "", "darker is higher")
        words = pictures.heat_map_in_words(list(matrix), columns, values)
        yield Picture(
            pictures.inline(figure, f"Accuracy by training set and test language: {words}"),
            "Accuracy: a row for what the model was trained on, a column for the language that it was tested in",
        )
    names, rows = table(results)
    cells = [[Cell(label), *(Cell(of.get(name, NONE), _number(of.get(name))) for name in names)] for label, of in rows]
    right = frozenset(range(1, len(names) + 1))
    yield Table("Accuracy; behind ± half the width of the 95 % interval", ["", *names], cells, right)
    if "comparisons" in results:
        verdicts = [
            [Cell(code), Cell(verdict_sentence(one), one["difference"])] for code, one in results["comparisons"].items()
        ]
        trained = "+".join(told["train_languages"])
        caption = f"{told['system']} against TF-IDF, both trained on {trained} (intervals widened by Holm's method)"
        yield Table(caption, ["language", "verdict"], verdicts, sortable=True)
    figures = told["languages"]["figures"]
    yield Table(
        "What the tokenizer makes of each language", ["language", *(label for label, _, _ in LABELS.values())],
        [
            [Cell(code), *(Cell(form.format(scale * of[name]), of[name]) for name, (_, form, scale) in LABELS.items())]
            for code, of in figures.items()
        ],
        frozenset(range(1, len(LABELS) + 1)), sortable=True,
    )  # fmt: skip
    yield Words(f"{_sentence(correlation_text(told['languages']))}.")
    if "oracle" in told:
        yield Words(_sentence(told["oracle"]))


def _classes(found: Ended) -> Iterator[Any]:
    confusion, classes = found.told.get("confusion"), found.told.get("per_class", [])
    if confusion is not None and len(confusion["labels"]) > 1:
        yield from _confusion(confusion["labels"], np.array(confusion["matrix"]))
    if classes:
        rows = [
            [
                Cell(one["label"]),
                *(Cell(f"{one[name]:.3f}", one[name], one[name]) for name in ("precision", "recall", "f1")),
                Cell(f"{one['support']:,}", one["support"]),
            ]
            for one in classes
        ]
        yield Table(
            "Each class", ["class", "precision", "recall", "F1", "rows"], rows, frozenset(range(1, 5)), sortable=True
        )


def _confusion(labels: Sequence[str], matrix: np.ndarray) -> Iterator[Any]:
    wrong = matrix * (1 - np.eye(len(labels), dtype=matrix.dtype))
    chosen = list(range(len(labels)))
    caption = "Confusion matrix: a row for the gold label, a column for the predicted one; the diagonal is right"
    if len(labels) > SHOWN_LABELS:
        chosen = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:SHOWN_LABELS]).tolist()
        caption += f"; the {SHOWN_LABELS} of {len(labels)} labels with the most mistakes"
    of_gold = np.maximum(1, matrix.sum(axis=1, keepdims=True))
    rows = [
        [Cell(labels[i]), *(_counted(int(matrix[i, j]), float(matrix[i, j] / of_gold[i, 0]), i != j) for j in chosen)]
        for i in chosen
    ]
    names = ["gold ↓ predicted →", *(labels[i] for i in chosen)]
    yield Table(caption, names, rows, frozenset(range(1, len(names))), dense=True)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_PAIRS]
    pairs = [(*divmod(int(place), len(labels)), int(wrong.flat[place])) for place in order if wrong.flat[place]]
    if pairs:
        yield Table(
            "Most often taken for another", ["gold", "predicted", "rows", "of the gold rows"],
            [
                [Cell(labels[i]), Cell(labels[j]), Cell(f"{number:,}", number),
                 Cell(f"{100 * number / of_gold[i, 0]:.0f} %", number / of_gold[i, 0])]
                for i, j, number in pairs
            ],
            frozenset({2, 3}), sortable=True,
        )  # fmt: skip


def _length(found: Ended) -> Iterator[Any]:
    buckets = found.by_length
    if len(buckets) < FEW_MEASURED or len(found.rows) < FEW_ROWS:
        return
    metric = metric_of(buckets[0])
    digits = 1 if is_percentage(metric) else 3
    system, groups = short(found.told["system"]), {}
    for one in buckets:
        span = f"{one['from']:g}" if one["from"] == one["to"] else f"{one['from']:g}–{one['to']:g}"
        score = (one[metric], one.get("low", one[metric]), one.get("high", one[metric]))
        groups[f"{span} words ({one['rows']:g})"] = {system: score}
    told = f"{metric} by the words of the text: {pictures.intervals_in_words(groups, digits)}"
    what = "source" if "by_source_length" in found.told else "text"
    caption = f"{metric} by the length of the {what}; in brackets the rows of {found.judged}"
    yield Picture(pictures.inline(pictures.intervals(groups, metric), told), caption)


def _calibration(found: Ended) -> Iterator[Any]:
    bins = found.told.get("calibration", [])
    if len(bins) < FEW_MEASURED:
        return
    confidence, accuracy = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    series = [Series(short(found.told["system"]), confidence, accuracy), Series("perfect", [0, 1], [0, 1])]
    told = "; ".join(f"at confidence {x:.2f} accuracy {y:.2f}" for x, y in zip(confidence, accuracy, strict=True))
    figure = pictures.curves(series, "", "confidence", "accuracy", small=True)
    yield Picture(
        pictures.inline(figure, f"Reliability: {told}"),
        "Above the straight line the model is too modest, below it too sure",
    )
    rows = [
        [Cell(f"{one['from']:.2f}–{one['to']:.2f}", one["from"]), Cell(f"{one['rows']:,}", one["rows"]),
         *(Cell(f"{one[name]:.3f}", one[name]) for name in ("confidence", "accuracy"))]
        for one in bins
    ]  # fmt: skip
    bins_of = Table("", ["from–to", "rows", "confidence", "accuracy"], rows, frozenset({1, 2, 3}))
    yield Folded("Bins of confidence", [bins_of])


def _texts(found: Ended) -> Iterator[Any]:
    figures = found.told.get("summaries") or found.told.get("written")
    if figures:
        named = [(name, *of) for name, of in TEXT_FIGURES.items() if name in figures["own"]]
        rows = [
            [Cell(told), *(Cell(f"{figures[side][name]:.{digits}f}") for side in ("own", "human"))]
            for name, told, digits in named
        ]
        yield Table("What the texts are like", ["", "this model", "human"], rows, frozenset({1, 2}))
    if found.results["task"] in TASKS:
        other = short(found.results["baseline"]["name"]) if "baseline" in found.results else ""
        cheap = {row["id"]: row["predicted"] for row in found.beside}
        for place in _evenly(len(found.rows), SHOWN_EXAMPLES):
            row = found.rows[place]
            gold = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
            texts = [("source", row["source"]), *(("human", text) for text in gold), ("model", row["predicted"])]
            if cheap.get(row["id"], row["source"]) != row["source"]:
                texts.append((other, cheap[row["id"]]))
            yield Example(str(row["id"]), texts)
    for place in _evenly(len(found.written), SHOWN_EXAMPLES):
        text = found.written[place]
        yield Example(
            str(text["id"]), [("beginning", text["prompt"]), ("model", text["written"]), ("human", text["human"])]
        )


def _explained(found: Ended) -> Iterator[Any]:
    for name, svg in found.explained.items():
        told = "One word in several contexts" if name.startswith("word-") else "Where the model looked"
        caption = f"{told} (finetune explain, {name})"
        yield Image(svg, caption, pictures.description(svg) or caption)


def _errors(found: Ended) -> Iterator[Any]:
    errors = found.told.get("errors", [])
    if errors and "source" in errors[0]:
        rows = [
            [Cell(one["id"]), Cell(f"{one['score']:.0f}", one["score"]), Cell(_cut(one["source"])),
             Cell(_cut(_joined(one["gold"]))), Cell(_cut(one["predicted"]))]
            for one in errors
        ]  # fmt: skip
        caption = f"The {len(rows)} texts with the lowest chrF of their own"
        yield Table(caption, ["id", "chrF", "source", "human", "model"], rows, frozenset({1}), sortable=True)
    elif errors:
        rows = [
            [Cell(one["id"]), Cell(_cut(one["text"])), Cell(_joined(one["gold"])), Cell(_joined(one["predicted"])),
             Cell(f"{one['probability']:.3f}", one["probability"])]
            for one in errors
        ]  # fmt: skip
        caption, columns = f"The {len(rows)} mistakes that the model was surest of", ["id", "text", "gold", "predicted"]
        if any("mattered" in one for one in errors):
            caption += "; underlined is what spoke against the prediction"
            columns.insert(2, "what mattered")
            for row, one in zip(rows, errors, strict=True):
                row.insert(2, _mattered(one.get("mattered", [])))
        yield Table(caption, [*columns, "sure"], rows, frozenset({len(columns)}), sortable=True)
    elif found.results["task"] == language_model.TASK:
        worst = sorted(found.rows, key=lambda row: -row["bits"] / max(1, row["bytes"]))[:SHOWN_ERRORS]
        rows = [
            [Cell(row["id"]), Cell(f"{row['bits'] / max(1, row['bytes']):.2f}", row["bits"] / max(1, row["bytes"])),
             Cell(f"{row['tokens']:,}", row["tokens"]), Cell(_cut(row["text"]))]
            for row in worst
        ]  # fmt: skip
        caption = f"The {len(rows)} texts that surprise the model most"
        yield Table(caption, ["id", "bits a byte", "tokens", "text"], rows, frozenset({1, 2}), sortable=True)


def _mattered(words: Sequence[Mapping[str, Any]]) -> Cell:
    """Return words or features, the strongest first, each as dark as it is strong; not sorted by."""
    most = max((abs(one["share"]) for one in words), default=0.0) or 1.0
    marks = [(f"{one['word']} {one['share']:+.2f}".replace("-", "−"), one["share"] / most) for one in words]
    return Cell("", marks=[part for mark in marks for part in (mark, (" · ", 0.0))][:-1])


def _features(found: Ended) -> Iterator[Any]:
    features = found.told.get("top_features", {})
    if features:
        rows = [
            [Cell(label), Cell(" · ".join(name for name, _ in of[:SHOWN_FEATURES]))] for label, of in features.items()
        ]
        yield Table("The heaviest features of each label", ["label", "features"], rows)


def _data(found: Ended) -> Iterator[Any]:
    told = found.told
    yield Facts([(name, count(number, "row")) for name, number in told["rows"].items()])
    yield Findings(list(_doctor(found)))
    hashes = found.environment.get("data_sha256", {})
    if hashes:
        rows = [[Cell(name), Cell(digest)] for name, digest in hashes.items()]
        yield Table("Files", ["file", "sha256"], rows)


def _doctor(found: Ended) -> Iterator[tuple[str, str]]:
    """Return what the data doctor said of a run that labels, then what the run itself knows of its data."""
    told, rows = found.told, found.told["rows"]
    findings = [one for one in told.get("findings", []) if one["check"] != "resolution"]  # the run's own is told below
    for one in findings:
        yield one["level"], one["message"] + (f" → {one['action']}" if one["action"] else "")
    leaks = {name: number for name, number in told.get("leaked_rows", {}).items() if name not in rows or not findings}
    for name, number in leaks.items():
        if number:
            of = f" ({100 * number / rows[name]:.1f} %)" if rows.get(name) else ""
            yield "warning", f"{count(number, f'{name} text')} also in train{of}"
    if leaks and not any(leaks.values()):
        yield "good", "no text of validation or test stands in train"
    for name, number in told.get("skipped_rows", {}).items():
        if number and not findings:
            yield "warning", f"{count(number, 'row')} of {name} with an empty field left out"
    yield from long_rows.findings(told)
    tokens = told.get("tokens", {})
    if isinstance(tokens, Mapping):  # of a language model, the number of all
        of_sides = {"text": tokens} if "median" in tokens else tokens
        for side, lengths in of_sides.items():
            yield "good", f"{lengths['median']} tokens a {side} (95 %: {lengths['p95']}, longest {lengths['max']:,})"
    for name, rate in told.get("unknown_rate", {}).items():
        if rate:
            yield "warning" if rate > 0.01 else "good", f"{100 * rate:.1f} % of the tokens of {name} are unknown"
    smallest = min(told.get("per_class", []), key=lambda one: int(one["support"]), default=None)
    if smallest is not None:
        yield (
            "good" if smallest["support"] >= 10 else "warning",
            (f"smallest class of {found.judged}: {count(smallest['support'], 'row')} ({smallest['label']})"),
        )
    if "resolution" in told:
        yield "good", f"this test set can show differences from {100 * told['resolution']:.1f} points up"


def _made(found: Ended) -> Iterator[Any]:
    place = found.environment
    if place:
        yield Code("The command that made it", place["command"])
    yield Code("The same again", again(found.folder))
    told, seconds = found.told, found.results["seconds"]
    facts = [("model", str(found.results["model"]))]
    facts += [(f"licence of the {what}", named) for what, named in licences(found.config, place).items()]
    if "parameters" in told:
        facts.append(("parameters", f"{told['parameters']:,}"))
    facts += [(f"seconds, {name}", duration(value)) for name, value in seconds.items()]
    facts += [(name.replace("_", " "), f"{value:,.1f}") for name, value in found.results["throughput"].items()]
    for name in ("device", "platform", "seed", "started", "commit"):
        if place.get(name) is not None:
            facts.append((name, str(place[name])))
    yield Facts(facts)
    if place:
        versions = " · ".join(f"{name} {version}" for name, version in place["versions"].items())
        yield Words(f"Versions: {versions}.")
    settings = [[Cell(name), Cell("" if value is None else str(value))] for name, value in found.config.items()]
    yield Folded("Every setting", [Table("config.yaml", ["setting", "value"], settings)])


def _score_cell(metric: str, score: Mapping[str, float] | None) -> Cell:
    return Cell(NONE) if score is None else Cell(shown(metric, score), float(score["value"]))


def _counted(number: int, share: float, wrong: bool) -> Cell:
    return Cell(f"{number:,}", None, share, wrong)


def _measured(records: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return any(metric in one.get("validation", {}) for one in records)


def _number(text: str | None) -> float | None:
    head = (text or "").split(" ")[0]
    return float(head) if head.lstrip("+-").replace(".", "", 1).isdigit() else None


def _joined(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " | ".join(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _evenly(rows: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, rows - 1, min(most, rows)).round().astype(int)).tolist() if rows else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")
