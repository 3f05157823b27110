"""What a demo shows behind its results: some texts beside those that people wrote, and whether the first lines win."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune import text_evaluation
from finetune.report import language_model
from finetune.report.text_results import task_of
from finetune.run import Run
from finetune.terminal import difference, line, printable, shown
from finetune.text_baselines import LEADS, LeadSentences
from finetune.text_evaluation import Task, TextPredictions

LONGEST = 240  # characters of a text
GOES_ON = {"model": "written", "human": "human"}
WINS = {"better": "the model wins", "worse": "the first lines win", "no difference shown": "no difference shown"}


def example_lines(run: Run, results: Mapping[str, Any]) -> list[str]:
    """Return three texts of a run, evenly spaced over its rows; of sources with targets also a match with the leads."""
    if results["task"] == language_model.TASK:
        return written_lines(run.read_predictions("written"))
    task = task_of(results)
    assert task is not None
    found = text_evaluation.from_rows(run.read_predictions(results["diagnostics"]["judged_on"]))
    leads = {
        lead.name: replace(found, predicted=lead.predict(found.sources), confidence=None)
        for lead in map(LeadSentences, LEADS)
    }
    return [*lead_lines(found, leads, task), *answered_lines({"model": found, **leads})]


def lead_lines(found: TextPredictions, leads: Mapping[str, TextPredictions], task: Task) -> list[str]:
    """Return who wins, the model or the first sentences of the source, by the interval of the difference."""
    compared = text_evaluation.compare_all({name: (found, lead) for name, lead in leads.items()}, task)
    own = text_evaluation.score(found, task)[task.decides]
    lines = [line("in short", f"{task.decides} of the model {shown(task.decides, own)}")]
    for name, lead in leads.items():
        score = text_evaluation.score(lead, task)[task.decides]
        verdict = f"{WINS[compared[name]['verdict']]} ({difference(compared[name])})"
        lines.append(line("", f"{name} {shown(task.decides, score)}: {verdict}"))
    return lines


def answered_lines(named: Mapping[str, TextPredictions]) -> list[str]:
    """Return sources, each with the human text and with what each system wrote."""
    first = next(iter(named.values()))
    lines = []
    for row in spread(len(first.ids)):
        lines.append(line("example", _short(first.sources[row])))
        lines.append(line("", f"human: {_short(first.references[row][0])}"))
        lines += [line("", f"{name}: {_short(of.predicted[row])}") for name, of in named.items()]
    return lines


def written_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return beginnings of texts, each with how the model and how its author went on."""
    lines = []
    for place in spread(len(rows)):
        lines.append(line("example", f"{_short(rows[place]['prompt'])} ..."))
        lines += [line("", f"{who}: ... {_short(rows[place][key])}") for who, key in GOES_ON.items()]
    return lines


def spread(rows: int) -> list[int]:
    """Return the numbers of up to three rows: first, middle, last."""
    return sorted({0, rows // 2, rows - 1}) if rows else []


def _short(text: str) -> str:
    return printable(textwrap.shorten(text, LONGEST, placeholder=" ..."))
