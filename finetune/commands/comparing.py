"""Compare finished runs, and write the page of one anew: from their files alone."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import text_evaluation
from finetune.causal import perplexity
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions, compare_all
from finetune.report import language_model, page
from finetune.report.text_results import judging_of, task_of
from finetune.run import Run, write_atomic


def compare(runs: Sequence[str], *, report: str | None = None) -> list[dict[str, Any]]:
    """Compare runs pair by pair on the same test rows; with several pairs the intervals are widened by Holm's method.

    Each comparison carries the rows where only one of the two is right. Cross-lingual runs are compared in each
    language that all of them were scored in. `report` is a file for a page about it.
    """
    found = _compared(runs)
    if report is not None:
        results = {name: Run.open(name).results() for name in runs}
        write_atomic(Path(report), page.comparison_page(results, found).encode())
    return found


def report(run: str, *, output: str | None = None) -> Path:
    """Write the page of a finished run anew, from its files alone, into the run or a file; return where it is."""
    opened = Run.open(run)
    found = page.run_page(opened)
    if output is None:
        opened.write_report(found)
        return opened.report_file
    write_atomic(Path(output), found.encode())
    return Path(output)


def _compared(runs: Sequence[str]) -> list[dict[str, Any]]:
    if len(runs) < 2:
        raise UserError(Exit.USAGE, "give two runs or more: finetune compare RUN RUN")
    read = {name: _stored_predictions(name) for name in runs}
    if len(read) < len(runs):
        raise UserError(Exit.USAGE, "a run is given twice; give two different runs")
    pairs = [(a, b) for place, a in enumerate(runs) for b in runs[place + 1 :]]
    common = [one for one in read[runs[0]].languages if all(one in stored.languages for stored in read.values())]
    if common:
        return _compare_languages(pairs, common)
    if all(stored.languages for stored in read.values()):
        scored = "; ".join(f"{name}: {', '.join(stored.languages)}" for name, stored in read.items())
        what = f"the runs were scored in no language that all of them have ({scored})"
        raise UserError(Exit.BAD_DATA, f"{what}\ntrain them with the same test_languages, and compare those")
    together = {f"{a}\n{b}": (read[a].seeds, read[b].seeds) for a, b in pairs}
    task, kind = read[runs[0]].task, read[runs[0]].kind
    if any((stored.task, stored.kind) != (task, kind) for stored in read.values()):
        kinds = ", ".join(f"{name}: {stored.kind}" for name, stored in read.items())
        raise UserError(Exit.BAD_DATA, f"the runs are of different tasks ({kinds}); compare runs of one task")
    for a, b in pairs:
        _check_same_texts(a, read[a], b, read[b])
    if kind == language_model.TASK:
        found = perplexity.compare_all(together)
    else:
        found = compare_all(together) if task is None else text_evaluation.compare_all(together, task)
    return [
        {
            "runs": [a, b],
            **found[f"{a}\n{b}"],
            "rows": len(read[a].seeds[0].ids),
            "disagreements": _differ(read[a], read[b]) if kind == "classification" else [],
        }
        for a, b in pairs
    ]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The test predictions of a run, one for each seed, their texts, and the task where it writes texts."""

    seeds: list[Any]
    texts: list[str]
    task: text_evaluation.Task | None
    languages: list[str]
    kind: str


def _compare_languages(pairs: Sequence[tuple[str, str]], codes: Sequence[str]) -> list[dict[str, Any]]:
    """Compare runs pair by pair in each language; the intervals are widened over pairs and languages."""
    read = {(name, code): _stored_predictions(name, code) for name in sum(pairs, ()) for code in codes}
    for a, b in pairs:
        for code in codes:
            _check_same_texts(a, read[a, code], b, read[b, code])
    together = {(a, b, code): (read[a, code], read[b, code]) for a, b in pairs for code in codes}
    found = compare_all({"\n".join(key): (one.seeds, two.seeds) for key, (one, two) in together.items()})
    return [
        {
            "runs": [a, b],
            "language": code,
            **found[f"{a}\n{b}\n{code}"],
            "rows": len(one.texts),
            "disagreements": _differ(one, two),
        }
        for (a, b, code), (one, two) in together.items()
    ]


def _stored_predictions(name: str, language: str | None = None) -> _Stored:
    """Read what a run, or each of its seeds, predicted of the split that it is judged on, or of one test language."""
    folder = Run.open(name)
    parts = list(folder.seeds().values()) or [folder]
    results = [part.results() for part in parts]
    if results[0]["recipe"] == "bert_pretraining":
        what = f"{name} is a pretraining: another vocabulary would have other places to guess"
        raise UserError(Exit.USAGE, f"{what}; fine-tune both models on one task and compare those runs")
    splits = [of["diagnostics"]["judged_on"] if language is None else f"test.{language}" for of in results]
    rows = [part.read_predictions(split) for part, split in zip(parts, splits, strict=True)]
    found = [judging_of(of).read(part) for part, of in zip(rows, results, strict=True)]
    task = task_of(results[0])
    texts = [row["text" if task is None else "source"] for row in rows[0]]
    kind = str(results[0]["task"])
    kind = "classification" if task is None and kind != language_model.TASK else kind
    # Of texts the rows of all languages are compared together, each by the rules of its language.
    languages = list(results[0].get("languages", {})) if task is None else []
    return _Stored(found, texts, task, languages, kind)


def _check_same_texts(a: str, of_a: _Stored, b: str, of_b: _Stored) -> None:
    """Refuse runs whose rows share their ids and not their texts: the same sentences in two languages, for example."""
    texts = dict(zip(of_b.seeds[0].ids, of_b.texts, strict=True))
    for identity, text in zip(of_a.seeds[0].ids, of_a.texts, strict=True):
        if texts.get(identity, text) != text:
            raise UserError(
                Exit.BAD_DATA, f"{a} and {b} have different texts for id {identity}; score both on one file"
            )


def _differ(a: _Stored, b: _Stored) -> list[dict[str, Any]]:
    first, second = a.seeds[0], b.seeds[0]
    place = {identity: row for row, identity in enumerate(second.ids)}
    rows = []
    for row, identity in enumerate(first.ids):
        other = place[identity]
        if first.right[row] != second.right[other]:
            predicted = [_named(first, row), _named(second, other)]
            gold = _named(dataclasses.replace(first, predicted=first.gold), row)
            rows.append({"id": identity, "text": a.texts[row], "gold": gold, "predicted": predicted})
    return rows


def _named(predictions: Predictions, row: int) -> str:
    value = predictions.predicted[row]
    if predictions.multi_label:
        return "|".join(label for label, on in zip(predictions.labels, value, strict=True) if on)
    return predictions.labels[int(value)]
