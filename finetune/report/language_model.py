"""What a run that trains a language model says and leaves: its opening lines, results.json, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune import processes
from finetune.causal import perplexity, routes
from finetune.causal.model import Start
from finetune.causal.perplexity import DECIDES
from finetune.causal.routes import Material, Reading
from finetune.data.columns import Split
from finetune.report import long_rows
from finetune.report.results import Judging, System, beside, judged_split, told
from finetune.run import Run
from finetune.terminal import count, duration, shown

TASK = "language modelling"
LONG_ROWS = {
    "truncate": "they lose the beginning of their prompt",
    "skip": "they are left out",
    "error": "they are refused",
}
ALONE_IN_TRAIN = "read without a prompt and cut at the end, end-of-text included"
ALONE_ELSEWHERE = "read without a prompt, in windows"


@dataclass(frozen=True)
class Judged:
    """What a run found out, before it is scored."""

    recipe: str
    system: System
    baselines: Sequence[System]
    splits: Mapping[str, Split]
    reading: Reading
    seconds: Mapping[str, float]
    throughput: Mapping[str, float]
    diagnostics: Mapping[str, Any]


def say_material(run: Run, start: Start, found: Material, reading: Reading) -> dict[str, Any]:
    """Tell how much text there is in tokens and bytes, and how it is read; return it for the record."""
    figures = found.figures
    per_token = figures["bytes"] / max(1, figures["predicted" if reading.data.has_prompts else "tokens"])
    run.say("tokens", f"{len(start.tokenizer):,} entries · {per_token:.2f} bytes a token")
    noun = "row" if reading.data.has_prompts else "document"
    amounts = [count(figures["documents"], noun), count(figures["tokens"], "token"), f"{figures['bytes']:,} bytes"]
    if "blocks" in figures:
        run.say("", f"train: {' · '.join(amounts)} · {count(figures['blocks'], 'block')} of {reading.window}")
    else:
        run.say("", f"train: {' · '.join(amounts)} · the loss is of {count(figures['predicted'], 'token')}")
    long = _long_rows(found, reading)
    for one in long:
        for name, number in one["rows"].items():
            if number:
                rows = f"{count(number, one['noun'])} of {name}"
                run.say("warning", f"{rows} above {long_rows.limits_text(one)}: {one['done'][name]}")
    run.say("", f"scored in windows of {reading.window} tokens, {reading.stride} apart, each {noun} by itself")
    record = figures | {"window": reading.window, "stride": reading.stride, "vocabulary": len(start.tokenizer)}
    return record | ({"long_rows": long} if long else {})


def _long_rows(found: Material, reading: Reading) -> list[dict[str, Any]]:
    """Return the records of prompts with completions that are too long, and of completions that are so alone."""
    limits, kept = {"max_length": reading.window}, []
    if found.long:
        kept.append(long_rows.record("row", found.long, limits, reading.data.on_long, LONG_ROWS))
    if any(found.alone.values()):
        done = {name: ALONE_IN_TRAIN if name == "train" else ALONE_ELSEWHERE for name in found.alone}
        kept.append(long_rows.record("completion", found.alone, limits, "truncate") | {"done": done})
    return kept


def run_baselines(run: Run, found: Material) -> list[System]:
    """Fit the cheap system, tell how it scores on validation and what it cost, and return it."""
    name, tallies, seconds = processes.by_main(lambda: routes.beside(found))
    score = perplexity.score(tallies["validation"])[DECIDES]
    cost = f" · {duration(seconds)}" if seconds > 0.05 else ""
    run.say("baseline", f"{name} · validation {DECIDES} {shown(DECIDES, score)}{cost}")
    return [System(name, tallies, seconds)]


def conclude(run: Run, found: Judged) -> dict[str, Any]:
    """Score a run beside its baselines, write results.json and predictions/, and return the results."""
    judged = judged_split(found.system.predictions)
    results: dict[str, Any] = {
        "recipe": found.recipe,
        "task": TASK,
        "model": found.diagnostics["model"],
        "scores": {name: perplexity.score(part) for name, part in found.system.predictions.items()},
    }
    if found.baselines:
        # Chosen on validation, so that the test set has no say in what it is compared with.
        strongest = min(found.baselines, key=lambda one: perplexity.values(one.predictions["validation"])[DECIDES])
        other = strongest.predictions[judged]
        results |= beside(found.baselines, strongest, perplexity.score)
        results["comparison"] = perplexity.compare(found.system.predictions[judged], other)
        run.write_predictions(f"baseline.{judged}", perplexity.to_rows(other))
    results["diagnostics"] = told(found.system, found.splits, judged) | dict(found.diagnostics)
    results["seconds"], results["throughput"] = dict(found.seconds), dict(found.throughput)
    results["definitions"] = perplexity.definitions(found.reading.window, found.reading.stride)
    for name, part in found.system.predictions.items():
        run.write_predictions(name, perplexity.to_rows(part))
    run.write_results(results)
    return results


def judging() -> Judging:
    """Return how the predictions of a language model are judged."""
    return Judging(perplexity.from_rows, perplexity.score, perplexity.compare, DECIDES, lower_is_better=True)
