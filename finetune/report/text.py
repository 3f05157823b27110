"""Results as the sentences that a person reads in the terminal and on the model card."""

import shlex
from collections.abc import Mapping
from typing import Any

from finetune.report.budget import budget_lines
from finetune.report.diagnosis import correlation_text
from finetune.report.matrix import language_lines
from finetune.report.summaries import bertscore_text, summaries_text
from finetune.terminal import count, difference, duration, is_percentage, line, p_value, printable, shown

SHOWN_ERRORS = 3
SHOWN_DISAGREEMENTS = 5
HEADLINES = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
ALIKE = 1.5  # times as long, which is not worth a number
TESTS = {True: "exact McNemar", False: "approximate randomisation"}


def results_lines(results: Mapping[str, Any], folder: str) -> list[str]:
    """Return the end of a run: scores, verdict, the worst errors, and where everything is."""
    judged = results["diagnostics"]["judged_on"]
    scores = results["scores"][judged]
    told = HEADLINES if "macro_f1" in scores else dict(zip(scores, scores, strict=True))
    headline = "   ".join(f"{name} {shown(metric, scores[metric])}" for metric, name in told.items())
    if "matrix" in results:
        headline += f" ({'+'.join(results['diagnostics']['train_languages'])})"
    lines = [line(judged, headline)]
    if "seeds" in results:
        lines.append(line("seeds", seeds_text(results, judged)))
    if "matrix" in results:
        lines += language_lines(results)
        if "comparison" in results:
            lines += [line("", text) for text in cost_lines(results)]
        lines.append(line("gaps", correlation_text(results["diagnostics"]["languages"])))
    elif "comparison" in results:
        lines.append(line("verdict", verdict_text(results)))
    if "languages" in results and "matrix" not in results:
        lines += spoken_lines(results["languages"], results.get("comparisons", {}))
    if "bertscore" in results["diagnostics"]:
        lines.append(line("bertscore", bertscore_text(results["diagnostics"]["bertscore"])))
    if "oracle_extract" in results["diagnostics"]:
        lines.append(line("extract", oracle_extract_text(results["diagnostics"]["oracle_extract"])))
    if "summaries" in results["diagnostics"]:
        lines.append(line("summaries", summaries_text(results["diagnostics"]["summaries"])))
    if "budget" in results["diagnostics"]:
        lines += budget_lines(results["diagnostics"]["budget"])
    errors = results["diagnostics"].get("errors", [])
    for number, error in enumerate(errors[:SHOWN_ERRORS]):
        head = "errors" if number == 0 else ""
        lines.append(line(head, _error(error)))
    lines.append(line("saved", f"{folder} · report: {folder}/report.html\nagain: {again(folder)}"))
    return lines


def again(folder: str) -> str:
    """Return the command that trains a run anew, as a shell reads it."""
    return f"finetune train --config {shlex.quote(f'{folder}/config.yaml')} output_dir=..."


def verdict_text(results: Mapping[str, Any]) -> str:
    """Return the verdict: who is better, by how much, at what cost, and what the test set can show."""
    comparison, baseline = results["comparison"], results["baseline"]
    system, rows = results["diagnostics"]["system"], results["diagnostics"]["rows"]
    tested = rows[results["diagnostics"]["judged_on"]]
    test = TESTS[comparison["metric"] == "accuracy"]
    evidence = f"{difference(comparison)}, {p_value(comparison['p_value'])} ({test}, {count(tested, 'paired text')})"
    name = baseline["name"]
    opening = {
        "better": f"{system} is better than {name}",
        "worse": f"{system} is worse than {name}: keep the baseline",
        "no difference shown": f"no difference shown between {system} and {name}",
    }[comparison["verdict"]]
    return "\n".join([f"{opening}: {evidence}.", *cost_lines(results)])


def spoken_lines(scores: Mapping[str, Any], comparisons: Mapping[str, Any]) -> list[str]:
    """Return the scores of texts in each language, with the verdict there: `it  exact_match 0.100 [...] · worse`."""
    lines = []
    for number, (language, found) in enumerate(scores.items()):
        told = "   ".join(f"{metric} {shown(metric, score)}" for metric, score in found.items())
        verdict = f" · {comparisons[language]['verdict']}" if language in comparisons else ""
        lines.append(line("" if number else "languages", f"{language}  {told}{verdict}"))
    return lines


def training_seconds(results: Mapping[str, Any]) -> float:
    """Return the seconds of a training; of several seeds, their mean."""
    seconds: float = results["seconds"]["train"] / len(results.get("seeds", [1]))
    return seconds


def pace(results: Mapping[str, Any]) -> str:
    """Return what training took beside the baseline: `took 70 times as long to train`; nothing where that was free."""
    cheap, dear = results["baseline"]["seconds"]["train"], training_seconds(results)
    if cheap <= 0.05:
        return ""
    if max(dear / cheap, cheap / dear) < ALIKE:
        return "took as long to train"
    if dear > cheap:
        return f"took {dear / cheap:,.0f} times as long to train"
    return f"trained {cheap / dear:,.0f} times as fast"


def cost_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what the model cost beside the baseline, its hardest pair of labels, and what the test set can show."""
    cheap, dear = results["baseline"]["seconds"]["train"], training_seconds(results)
    told = []
    if took := pace(results):
        told.append(f"It {took} ({duration(dear)} against {duration(cheap)}).")
    pair = results["diagnostics"].get("most_confused")
    if pair:
        told.append(f"The hardest pair: {' / '.join(pair['labels'])}.")
    lines = [" ".join(told)] if told else []
    if "resolution" in results["diagnostics"]:
        least = 100 * results["diagnostics"]["resolution"]
        lines.append(f"This test set can show differences from {least:.1f} points up.")
    return lines


def oracle_extract_text(extract: Mapping[str, Any]) -> str:
    """Return what extracts reach that are chosen by the answers: `greedy oracle extract · rouge1 50.1 [...]`."""
    metric, score = next(iter(extract["scores"].items()))
    how = "sentences of the source, chosen one by one by the references"
    return f"{extract['name']} · {metric} {shown(metric, score)}: {how}"


def seeds_text(results: Mapping[str, Any], judged: str) -> str:
    """Return the first score of each seed and the spread."""
    metric, spread = next(iter(results["scores"][judged].items()))
    digits = 1 if is_percentage(metric) else 3
    values = {seed: part["scores"][judged][metric]["value"] for seed, part in results["seeds"].items()}
    listed = ", ".join(f"{seed}: {value:.{digits}f}" for seed, value in values.items())
    return f"{metric} by seed {listed}" + (f" (sd {spread['sd']:.{digits}f})" if "sd" in spread else "")


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Return one comparison of two runs: the verdict, then some rows where only one of them is right."""
    first, second = comparison["runs"]
    where = f" in {comparison['language']}" if "language" in comparison else ""
    opening = {
        "better": f"{first} is better than {second}{where}",
        "worse": f"{first} is worse than {second}{where}",
        "no difference shown": f"no difference shown between {first} and {second}{where}",
    }[comparison["verdict"]]
    test = TESTS[comparison["metric"] == "accuracy"]
    tests = f"{p_value(comparison['p_value'])} ({test}, {count(comparison['rows'], 'paired text')})"
    evidence = f"{difference(comparison)}, {tests}"
    lines = [line("verdict", f"{opening}: {evidence}.")]
    rows = comparison["disagreements"]
    if rows:
        lines.append(line("rows", f"{count(len(rows), 'text')} that only one of them gets right, e.g."))
    for row in rows[:SHOWN_DISAGREEMENTS]:
        said = f"gold {row['gold']} · {first}: {row['predicted'][0]} · {second}: {row['predicted'][1]}"
        lines.append(line("", f"{row['id']}: {_short(row['text'])}\n  {printable(said)}"))
    return lines


def _error(error: Mapping[str, Any]) -> str:
    if "source" in error:
        return f"{_short(error['predicted'])} (chrF {error['score']:.0f}) for: {_short(error['source'])}"
    gold, predicted = (printable(str(error[name])) for name in ("gold", "predicted"))
    return f"{gold} taken for {predicted} ({error['probability']:.2f}): {_short(error['text'])}"


def _short(text: str) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= 70 else flat[:67] + "..."
