"""The model card: README.md of a run and of its model folder."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from finetune import __version__
from finetune.report.text import verdict_text
from finetune.terminal import count, interval


def model_card(results: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return the card of a classification run: what it is, how good, how it was made, what to mind."""
    judged = results["diagnostics"]["judged_on"]
    front = ModelCardData(
        library_name="transformers" if "parameters" in results["diagnostics"] else "sklearn",
        pipeline_tag="text-classification",
        base_model=config.get("model") if "/" in str(config.get("model")) else None,
        tags=["finetune", results["recipe"]],
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {results['diagnostics']['system']}: {results['task']}",
        f"Made by the recipe `{results['recipe']}` of finetune {__version__} from `{results['model']}`.",
        "## How good it is",
        _score_table(results, judged),
    ]
    if "comparison" in results:
        parts.append(verdict_text(results).replace("\n", " "))
    rows = ", ".join(f"{number:,} {name}" for name, number in results["diagnostics"]["rows"].items())
    hashes = "\n".join(f"- `{name}` sha256 {digest}" for name, digest in environment["data_sha256"].items())
    parts += [
        "## How it was made",
        f"Rows: {rows}. {count(len(results['diagnostics']['labels']), 'label')}: "
        f"{', '.join(f'`{label}`' for label in results['diagnostics']['labels'])}.",
        f"Data:\n\n{hashes}",
        f"Command: `{environment['command']}`, seed {environment['seed']}, on {environment['device']}.",
        "Every setting is in config.yaml, every version in environment.json.",
        "## What to mind",
        "The scores hold for texts like those of the test file. The licence is that of the base model and of the data; "
        "neither is known to this card.",
    ]
    return "\n\n".join(parts) + "\n"


def _score_table(results: Mapping[str, Any], judged: str) -> str:
    columns = {"this model": results["scores"][judged]}
    for baseline in results.get("baselines", []):
        columns[baseline["name"]] = baseline["scores"][judged]
    lines = [f"| {judged} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for metric in results["scores"][judged]:
        cells = [interval(scores[metric]) for scores in columns.values()]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    definitions = "\n".join(f"- {name}: {text}" for name, text in results["definitions"].items())
    return "\n".join(lines) + "\n\nIn brackets the 95 % bootstrap interval.\n\n" + definitions
