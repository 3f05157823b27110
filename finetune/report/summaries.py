"""What is told of summaries: how long the pairs are, what the texts are like beside those that people wrote."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.generation import Written
from finetune.report.long_rows import MANY_CUT, record
from finetune.run import Run
from finetune.seq2seq.encoder_decoder import Lengths
from finetune.summaries.long_texts import OnLong
from finetune.summaries.writer import Coded
from finetune.terminal import count, interval

SIDES = ("source", "target")
DONE = {
    "truncate": "cut at the end",
    "error": "refused",
    "window": "summarised in windows and merged",
    "lead_tail": "cut in the middle",
    "tail": "cut at the beginning",
}
FIGURES = {  # name -> what a person reads, digits
    "mean_words": ("words", 1),
    "compression": ("times shorter than the source", 1),
    "novel_1": ("new words", 2),
    "novel_2": ("new pairs of words", 2),
    "repetition": ("repeated", 2),
    "new_numbers": ("numbers not in the source", 2),
    "new_names": ("names not in the source", 2),
}


def say_coded(run: Run, coded: Mapping[str, Coded], lengths: Lengths, on_long: OnLong) -> dict[str, Any]:
    """Tell how long sources and targets are, and how many are too long; return it for the record."""
    sizes = coded["train"].sizes
    middle, high = np.percentile(sizes, (50, 95), axis=0).astype(int).tolist()  # (source, target) each
    sides = [f"{median} tokens a {side} (95 %: {most})" for side, median, most in zip(SIDES, middle, high, strict=True)]
    run.say("tokens", " · ".join(sides))
    sources = {name: part.long_sources for name, part in coded.items()}
    targets = {name: part.long_targets for name, part in coded.items()}
    rows = sum(len(part.sizes) for part in coded.values())
    for side, found, longest, done in (
        ("source", sources, lengths.source, DONE[on_long]), ("target", targets, lengths.target, DONE["truncate"]),
    ):  # fmt: skip
        if sum(found.values()):
            places = ", ".join(f"{number:,} of {name}" for name, number in found.items() if number)
            head = "warning" if sum(found.values()) > MANY_CUT * rows else ""
            run.say(head, f"{side}s above max_{side}_length={longest}: {places}: {done}")
    if on_long == "window" and sources["train"]:
        share = np.minimum(sizes[:, 0], lengths.source).sum() / sizes[:, 0].sum()
        told = (
            f"{count(sources['train'], 'long source')} up to token {lengths.source}: {100 * share:.0f} % of all tokens"
        )
        run.say("", f"training reads {told}; windows are for writing alone")
    return {
        "tokens": {
            side: {"median": middle[place], "p95": high[place], "max": int(sizes[:, place].max())}
            for place, side in enumerate(SIDES)
        },
        "long_rows": [
            record("source", sources, {"max_source_length": lengths.source}, on_long, DONE),
            record("target", targets, {"max_target_length": lengths.target}, "truncate", DONE),
        ],
    }


def summaries_text(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return what summaries are like in one or two lines, those of people in brackets."""
    own, human = figures["own"], figures["human"]
    told = [
        f"{own[name]:.{digits}f} ({human[name]:.{digits}f}) {text}" for name, (text, digits) in FIGURES.items()
    ]  # fmt: skip
    return f"{' · '.join(told[:5])}\n{' · '.join(told[5:])} (in brackets: human summaries)"


def summaries_table(figures: Mapping[str, Any]) -> str:
    """Return the same as a table of Markdown, with the definition of each figure."""
    lines = ["| figure | this model | human |", "|---|---|---|"]
    definitions = []
    for name, (_, digits) in FIGURES.items():
        own, human = (figures[side][name] for side in ("own", "human"))
        lines.append(f"| {name} | {own:.{digits}f} | {human:.{digits}f} |")
        if name in figures["definitions"]:
            definitions.append(f"- {name}: {figures['definitions'][name]}")
    return "\n".join(lines) + "\n\n" + "\n".join(definitions)


def bertscore_text(found: Mapping[str, Any]) -> str:
    """Return the F1 by BERTScore, by which model, and that of the baseline: `f1 0.843 [...] by mini-mbert ...`."""
    told = [f"f1 {interval(found['system']['f1'])} by {found['model']}, layer {found['layer']}"]
    if "baseline" in found:
        told.append(f"{found['baseline']['name']} {interval(found['baseline']['f1'])}")
        value, low, high = (100 * found["difference"][name] for name in ("value", "low", "high"))
        told.append(f"{value:+.1f} points [{low:.1f}, {high:.1f}]")
    cut = f"\n{count(found['cut'], 'text')} longer than the model reads: cut" if found["cut"] else ""
    return " · ".join(told) + cut


def say_written(run: Run, written: Written, rows: int, longest: int, on_long: OnLong) -> None:
    """Tell how many sources of a file were too long, and how many of them no windows made fit."""
    if written.cut:
        left = f"; {written.left_long:,} got no shorter: {DONE['truncate']}" if written.left_long else ""
        run.say("note", f"{count(written.cut, 'source')} of {rows:,} above {longest} tokens: {DONE[on_long]}{left}")


def say_left_long(run: Run, written: Mapping[str, Written]) -> None:
    """Tell how many sources of each split were cut after all, because no windows made them fit."""
    places = ", ".join(f"{found.left_long:,} of {name}" for name, found in written.items() if found.left_long)
    if places:
        run.say("warning", f"sources whose summaries of windows got no shorter: {places}: {DONE['truncate']}")
