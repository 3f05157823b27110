"""Results as the sentences that a person reads in the terminal and on the model card."""

from collections.abc import Mapping
from typing import Any

from finetune.terminal import count, duration, interval, line, p_value, points

SHOWN_ERRORS = 3
SHOWN_DISAGREEMENTS = 5


def results_lines(results: Mapping[str, Any], folder: str) -> list[str]:
    """Return the end of a run: scores, verdict, the worst errors, and where everything is."""
    judged = results["diagnostics"]["judged_on"]
    scores = results["scores"][judged]
    lines = [line(judged, f"accuracy {interval(scores['accuracy'])}   macro-F1 {interval(scores['macro_f1'])}")]
    if "seeds" in results:
        lines.append(line("seeds", seeds_text(results, judged)))
    if "comparison" in results:
        lines.append(line("verdict", verdict_text(results)))
    errors = results["diagnostics"].get("errors", [])
    for number, error in enumerate(errors[:SHOWN_ERRORS]):
        head = "errors" if number == 0 else ""
        lines.append(
            line(
                head,
                f"{error['gold']} taken for {error['predicted']} ({error['probability']:.2f}): {_short(error['text'])}",
            )
        )
    lines.append(line("saved", f"{folder} · again: finetune train --config {folder}/config.yaml output_dir=..."))
    return lines


def verdict_text(results: Mapping[str, Any]) -> str:
    """Return the verdict: who is better, by how much, at what cost, and what the test set can show."""
    comparison, baseline = results["comparison"], results["baseline"]
    system, rows = results["diagnostics"]["system"], results["diagnostics"]["rows"]
    tested = rows[results["diagnostics"]["judged_on"]]
    spread = f"[{100 * comparison['low']:.1f}, {100 * comparison['high']:.1f}]"
    evidence = f"{points(comparison['difference'])} points of accuracy {spread}, "
    evidence += f"{p_value(comparison['p_value'])} (exact McNemar, {count(tested, 'paired text')})"
    name = baseline["name"]
    opening = {
        "better": f"{system} is better than {name}",
        "worse": f"{system} is worse than {name}: keep the baseline",
        "no difference shown": f"no difference shown between {system} and {name}",
    }[comparison["verdict"]]
    lines = [f"{opening}: {evidence}."]
    seeds = len(results["seeds"]) if "seeds" in results else 1
    cheap, dear = results["baseline"]["seconds"]["train"], results["seconds"]["train"] / seeds
    if cheap > 0.05:
        lines.append(f"It took {dear / cheap:.0f} times as long to train ({duration(dear)} against {duration(cheap)}).")
    pair = results["diagnostics"].get("most_confused")
    if pair:
        lines[-1] += f" The hardest pair: {' / '.join(pair['labels'])}."
    lines.append(f"This test set can show differences from {100 * results['diagnostics']['resolution']:.1f} points up.")
    return "\n".join(lines)


def seeds_text(results: Mapping[str, Any], judged: str) -> str:
    """Return accuracy of each seed and the spread."""
    values = {seed: part["scores"][judged]["accuracy"]["value"] for seed, part in results["seeds"].items()}
    listed = ", ".join(f"{seed}: {value:.3f}" for seed, value in values.items())
    spread = results["scores"][judged]["accuracy"]
    return f"accuracy by seed {listed}" + (f" (sd {spread['sd']:.3f})" if "sd" in spread else "")


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Return one comparison of two runs: the verdict, then some rows where only one of them is right."""
    first, second = comparison["runs"]
    spread = f"[{100 * comparison['low']:.1f}, {100 * comparison['high']:.1f}]"
    opening = {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "no difference shown": f"no difference shown between {first} and {second}",
    }[comparison["verdict"]]
    tests = f"{p_value(comparison['p_value'])} (exact McNemar, {count(comparison['rows'], 'paired text')})"
    evidence = f"{points(comparison['difference'])} points of {comparison['metric']} {spread}, {tests}"
    lines = [line("verdict", f"{opening}: {evidence}.")]
    rows = comparison["disagreements"]
    if rows:
        lines.append(line("rows", f"{count(len(rows), 'text')} that only one of them gets right, e.g."))
    for row in rows[:SHOWN_DISAGREEMENTS]:
        said = f"gold {row['gold']} · {first}: {row['predicted'][0]} · {second}: {row['predicted'][1]}"
        lines.append(line("", f"{row['id']}: {_short(row['text'])}\n  {said}"))
    return lines


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 70 else flat[:67] + "..."
