"""What a pretraining run says and leaves: its opening lines, results.json, predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from finetune.pretraining import scoring
from finetune.pretraining.material import Material, Plan
from finetune.pretraining.model import Start
from finetune.pretraining.scoring import DEFINITIONS, RETRIEVAL_DEFINITIONS, Tally
from finetune.report.results import Judging, System, beside, judged_split
from finetune.run import Run
from finetune.terminal import count, shown

TASKS = {
    "mlm": "masked language modelling",
    "tlm": "translation language modelling",
    "distil": "translation distillation",
}
DECIDES = {"mlm": "loss", "tlm": "loss", "distil": "accuracy"}
METRICS = {
    "mlm": ("loss", "perplexity", "accuracy"),
    "tlm": ("loss", "perplexity", "accuracy"),
    "distil": ("loss", "accuracy"),
}


@dataclass(frozen=True)
class Judged:
    """What a run found out: the tallies of each split by the kind that judges it, and of the other kinds beside."""

    plan: Plan
    system: System
    baselines: list[System]
    others: Mapping[str, Any]
    seconds: Mapping[str, float]
    throughput: Mapping[str, float]
    diagnostics: Mapping[str, Any]


def say_material(run: Run, asked: Plan, found: Material) -> dict[str, Any]:
    """Tell how much there is of each language, what is held out, and what was left out; return it for the record."""
    amounts = [f"{code}: {_amounts(told)}" for code, told in found.figures["languages"].items() if told]
    run.say("data", "\n".join(amounts))
    seen = [f"{len(part):,} {_NOUNS[part.kind]}" for part in found.parts]
    run.say("", f"a pass: {' · '.join(seen)}")
    parts = _held_out(found.figures, asked.data.source_language)
    if parts:
        run.say("", f"validation: {' and '.join(parts)} held out, seed {asked.held_out_seed}")
    sought = [
        f"{code} {told['candidates']:,}" for code, told in found.figures["languages"].items() if "candidates" in told
    ]
    if sought:
        run.say("", f"retrieval: each translation's source among so many sentences: {' · '.join(sought)}")
    for setting in asked.unread:
        run.say("", f"{setting}: for the vocabulary alone; objective={'+'.join(asked.kinds)} does not read it")
    return dict(found.figures)


def _held_out(figures: Mapping[str, Any], source: str) -> list[str]:
    """Return what is held out with the share that it is, which few documents make larger than asked, a cap smaller."""
    parts = []
    texts = [told for told in figures["languages"].values() if "held_out_units" in told]
    if texts:
        units, out, kept = (
            sum(told[name] for told in texts) for name in ("held_out_units", "held_out_tokens", "tokens")
        )
        parts.append(f"{count(units, 'document')} ({100 * out / (out + kept):.1f} % of the tokens)")
    if "held_out_sentences" in figures:
        out, whole = figures["held_out_sentences"], figures["source_sentences"]
        parts.append(f"{count(out, f'{source} sentence')} ({100 * out / whole:.1f} %) with all pairs")
    return parts


_NOUNS = {"mlm": "blocks of text", "tlm": "pairs side by side", "distil": "sentences with translations"}


def _amounts(told: Mapping[str, Any]) -> str:
    parts = []
    if "tokens" in told:
        parts.append(count(told["tokens"], "token"))
    if "pairs" in told:
        parts.append(count(told["pairs"], "pair"))
    if told.get("cut_pairs"):
        parts.append(f"{told['cut_pairs']:,} of them cut at max_length")
    if told.get("words"):
        parts.append(f"{100 * told['unknown'] / told['words']:.2f} % of the words unknown")
    dropped = told.get("dropped", 0) + told.get("dropped_pairs", 0)
    if dropped:
        parts.append(f"{dropped:,} left out (data.held_out)")
    return " · ".join(parts)


def say_start(run: Run, start: Start) -> None:
    """Tell where weights and vocabulary come from."""
    told = [f"{len(start.tokenizer):,} entries"]
    if start.aligned_rows:
        told.append(f"{start.aligned_rows:,} embeddings aligned by translations")
    if start.copied_rows is not None:
        told.append(f"{start.copied_rows:,} embeddings copied, the others drawn")
    run.say("tokens", " · ".join(told))


def say_baselines(run: Run, found: Mapping[str, Mapping[str, Tally]], kind: str) -> list[System]:
    """Tell how the cheap systems score on validation, and return them."""
    systems = [System(name, splits, 0.0) for name, splits in found.items()]
    for system in systems:
        tally = system.predictions["validation"]
        metric = DECIDES[kind] if DECIDES[kind] in tally.metrics else tally.metrics[0]
        run.say("baseline", f"{system.name} · validation {metric} {shown(metric, scoring.score(tally)[metric])}")
    return systems


def conclude(run: Run, found: Judged) -> dict[str, Any]:
    """Score a run beside its baselines, write results.json and predictions/, and return the results."""
    kind = found.plan.main
    judged = judged_split(found.system.predictions)
    tally: Tally = found.system.predictions[judged]
    languages = sorted(set(tally.languages))
    definitions = RETRIEVAL_DEFINITIONS if kind == "distil" else DEFINITIONS
    results: dict[str, Any] = {
        "recipe": "bert_pretraining",
        "task": TASKS[kind],
        "model": found.diagnostics["model"],
        "scores": {name: scoring.score(part) for name, part in found.system.predictions.items()},
        "languages": {code: scoring.score(tally.of(code)) for code in languages},
    }
    if found.baselines:
        usable = [one for one in found.baselines if DECIDES[kind] in one.predictions["validation"].metrics]
        strongest = min(usable, key=lambda one: _worth(one.predictions["validation"], kind))
        other = strongest.predictions[judged]
        results |= beside(found.baselines, strongest, scoring.score)
        results["comparison"] = scoring.compare(tally, other, DECIDES[kind])
        results["comparisons"] = scoring.compare_languages(tally, other, DECIDES[kind])
        run.write_predictions(f"baseline.{judged}", scoring.to_rows(other))
    rows = {name: len(part.ids) for name, part in found.system.predictions.items()}
    results["diagnostics"] = {
        "system": found.system.name, "judged_on": judged, "rows": rows, **found.others, **found.diagnostics,
    }  # fmt: skip
    results["seconds"], results["throughput"] = dict(found.seconds), dict(found.throughput)
    results["definitions"] = {name: definitions[name] for name in METRICS[kind]}
    for name, part in found.system.predictions.items():
        run.write_predictions(name, scoring.to_rows(part))
    run.write_results(results)
    return results


def judging(task: str) -> Judging:
    """Return how the predictions of runs of a pretraining task are judged."""
    kind = next(kind for kind, name in TASKS.items() if name == task)
    return Judging(
        read=partial(scoring.from_rows, metrics=METRICS[kind]),
        score=scoring.score,
        compare=partial(scoring.compare, metric=DECIDES[kind]),
        chooses="accuracy",
    )


def _worth(tally: Tally, kind: str) -> float:
    """Return a number that is smaller for the better of two baselines."""
    value = scoring.values(tally)[DECIDES[kind]]
    return value if DECIDES[kind] == "loss" else -value
