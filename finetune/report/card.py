"""The model card: README.md of a run and of its model folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from finetune import __version__, pretrained
from finetune.data.shipped import shipped
from finetune.report.matrix import markdown, table, verdict_lines
from finetune.report.summaries import bertscore_text, summaries_table
from finetune.report.text import oracle_extract_text, spoken_lines, verdict_text
from finetune.run import SECRET
from finetune.terminal import HEAD_WIDTH, count, difference, shown

PIPELINES = {"translation": "translation", "summarization": "summarization"} | dict.fromkeys(
    ("dialogue", "question_answering", "transduction"), "text2text-generation"
)
DECODERS = {"language modelling": "text-generation"}
ENCODERS = {
    "masked language modelling": "fill-mask",
    "translation language modelling": "fill-mask",
    "translation distillation": "feature-extraction",
}
UNKNOWN = "not known to this run"
NO_BASE = "none: made from the data alone"
OWN_MODEL = (
    "The model is the project's own architecture, without remote code: `finetune predict` reads the folder, and after "
    "`import finetune.seq2seq.model` so does AutoModelForSeq2SeqLM."
)
ADAPTER = (
    "The folder holds an adapter and no base model: `adapter_config.json` says which one it stands on. `finetune "
    "predict` and peft's `PeftModel.from_pretrained` put the two together; `finetune export --merge` makes one of them."
)


def model_card(results: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return the card of a run: what it is, how good, how it was made, what to mind."""
    judged = results["diagnostics"]["judged_on"]
    model = config.get("model")
    on_hub = model is not None and pretrained.is_on_hub(model)
    adapted = config.get("peft", {}).get("adapter", "none") != "none"
    front = ModelCardData(
        library_name="peft" if adapted else "transformers" if "parameters" in results["diagnostics"] else "sklearn",
        pipeline_tag=(PIPELINES | ENCODERS | DECODERS).get(results["task"], "text-classification"),
        base_model=str(model).partition("@")[0] if on_hub else None,  # a revision is no part of the name
        tags=["finetune", results["recipe"]],
        **(pretrained.licence_of(model) if model is not None and len(_bases(config)) == 1 else {}),
    )
    of_each = licences(config, environment).items()
    held = ", ".join(f"that of the {what} ({_code(named)})" for what, named in of_each)
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {results['diagnostics']['system']}: {results['task']}",
        f"Made by the recipe `{results['recipe']}` of finetune {__version__} from {_code(results['model'])}.",
        "## How good it is",
        _score_table(results, judged),
    ]
    if "comparison" in results:
        parts.append(verdict_text(_with_code(results)).replace("\n", " "))
    if "languages" in results and "matrix" not in results:
        told = spoken_lines(results["languages"], results.get("comparisons", {}))
        parts += ["## In each language", "\n".join(f"- {text[HEAD_WIDTH:]}" for text in told)]
    parts += _of_summaries(results["diagnostics"])
    if "budget" in results["diagnostics"]:
        parts += ["## How many labels it needs", _budget_table(results["diagnostics"]["budget"])]
    if "matrix" in results:
        parts += ["## Across languages", *_languages(results)]
    rows = ", ".join(f"{number:,} {name}" for name, number in results["diagnostics"]["rows"].items())
    own = results["recipe"] == "seq2seq" or config.get("architecture") == "seq2seq"
    hashes = "\n".join(f"- {_code(name)} sha256 {digest}" for name, digest in environment["data_sha256"].items())
    parts += [
        "## How it was made",
        f"Rows: {rows}.{_labels(results['diagnostics'].get('labels', []))}",
        f"Data:\n\n{hashes}",
        f"Command: {_code(environment['command'])}, seed {environment['seed']}, on {environment['device']}.",
        "Every setting is in config.yaml, every version in environment.json.",
        *([OWN_MODEL] if own else []),
        *([ADAPTER] if adapted else []),
        "## What to mind",
        f"The scores hold for texts like those of the test file. Two licences hold: {held}.",
    ]
    return SECRET.sub("hf_***", "\n\n".join(parts) + "\n")


def licences(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of the base model, as its card names it, and of the data, where they are known."""
    told = {name: _named(pretrained.licence_of(name)) for name in _bases(config)}
    own = " · ".join(named if len(told) == 1 else f"{name}: {named}" for name, named in told.items())
    return {"base model": own or NO_BASE, "data": _data_licence(environment.get("data_sha256", {}))}


def _bases(config: Mapping[str, Any]) -> list[str]:
    """Return the checkpoints that a model was made from."""
    joined = config.get("architecture") == "bert2gpt"
    names = [config.get(name) for name in (("encoder", "decoder") if joined else ("model", "teacher"))]
    return [str(name) for name in names if name is not None]


def _named(said: Mapping[str, Any]) -> str:
    named = said.get("license_name") or said.get("license")
    link = f" ({said['license_link']})" if "license_link" in said else ""
    return UNKNOWN if named is None else f"{', '.join(named) if isinstance(named, list) else named}{link}"


def _data_licence(files: Mapping[str, str]) -> str:
    """Return the licence of the data where all of it came with the project."""
    home = shipped("tickets").parent
    own = bool(files) and all(Path(file).absolute().parent.parent == home for file in files)
    return "apache-2.0 (came with finetune)" if own else UNKNOWN


def _of_summaries(figures: Mapping[str, Any]) -> list[str]:
    """Return what is told of summaries, as far as it is there: BERTScore, the oracle extract, what they are like."""
    parts = []
    if "bertscore" in figures:
        found = figures["bertscore"]
        parts.append(f"BERTScore: {_code(bertscore_text(found))}. {found['definition']}")
    if "oracle_extract" in figures:
        extract = figures["oracle_extract"]
        parts.append(f"Extract: {oracle_extract_text(extract)}. {extract['definition']}")
    if "summaries" in figures:
        parts += ["## What its summaries are like", summaries_table(figures["summaries"])]
    return parts


def _labels(labels: list[str]) -> str:
    return f" {count(len(labels), 'label')}: {', '.join(_code(label) for label in labels)}." if labels else ""


def _languages(results: Mapping[str, Any]) -> list[str]:
    """Return the matrix of a cross-lingual run and a verdict for each language."""
    parts = [markdown("accuracy", *table(results)), "Half the width of the 95 % interval stands behind ±."]
    if "comparisons" in results:
        trained = f"trained on {'+'.join(results['diagnostics']['train_languages'])}"
        told = verdict_lines(results["comparisons"], results["diagnostics"]["system"], trained)
        first, *others = [" ".join(text.removeprefix("verdict").split()) for text in told]
        parts.append("\n".join([f"{first}:\n", *(f"- {text}" for text in others)]))
    return parts


def _code(text: str) -> str:
    """Return a text as a code span, inside which Markdown and HTML mean nothing (CommonMark 6.1)."""
    flat = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    return f"{fence} {flat} {fence}" if "`" in flat else f"`{flat}`"


def _with_code(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results with the labels of the hardest pair as code spans."""
    pair = results["diagnostics"].get("most_confused")
    if not pair:
        return dict(results)
    quoted = pair | {"labels": [_code(label) for label in pair["labels"]]}
    return dict(results) | {"diagnostics": results["diagnostics"] | {"most_confused": quoted}}


def _budget_table(found: Mapping[str, Any]) -> str:
    metric, names = found["metric"], list(found["curves"])
    lines = [f"| labelled rows | {' | '.join(names)} | difference |", "|---" * (len(names) + 2) + "|"]
    for number, compared in enumerate(found["comparisons"]):
        cells = [shown(metric, points[number][metric]) for points in found["curves"].values()]
        lines.append(f"| {compared['rows']:,} | {' | '.join(cells)} | {difference(compared)}: {compared['verdict']} |")
    return "\n".join(lines) + f"\n\n{found['crossing']['sentence']}. Trained to the end, without validation."


def _score_table(results: Mapping[str, Any], judged: str) -> str:
    columns = {"this model": results["scores"][judged]}
    for baseline in [one for one in results.get("baselines", []) if judged in one["scores"]]:
        columns[baseline["name"]] = baseline["scores"][judged]
    lines = [f"| {judged} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for metric in results["scores"][judged]:
        cells = [shown(metric, scores[metric]) if metric in scores else "" for scores in columns.values()]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    definitions = "\n".join(f"- {name}: {text}" for name, text in results["definitions"].items())
    return "\n".join(lines) + "\n\nIn brackets the 95 % bootstrap interval.\n\n" + definitions
