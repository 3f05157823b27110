"""What a run says of its languages before it trains, and how that goes with the gaps that it finds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Split
from finetune.language_diagnosis import (
    FIGURES,
    LANGID_HINT,
    check_known,
    correlations,
    diagnose,
    language_mix,
    wrong_files,
)
from finetune.report.matrix import WIDTH, grid
from finetune.report.pictures import heat_map, heat_map_in_words, save_svg
from finetune.run import Run
from finetune.terminal import HEAD_WIDTH

LABELS = {
    "subwords_per_word": ("subwords a word", "{:.2f}", 1),
    "unknown_rate": ("unknown, %", "{:.1f}", 100),
    "cut_share": ("texts cut, %", "{:.1f}", 100),
    "token_overlap": ("known in train, %", "{:.0f}", 100),
    "mean_tokens": ("tokens a text", "{:.0f}", 1),
}
CELL = 8  # characters of a figure in the table
STRONG = 0.5  # of a rank correlation, from which it is told


def say_languages(
    run: Run,
    tests: Mapping[str, Split],
    training: Mapping[str, Split],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, Any]:
    """Tell how the tokenizer reads each language and which files seem to be in another; return it for the record.

    The record, {"figures", "definitions", "language_of_files"?}, is diagnostics.languages of results.json. Raises
    UserError (65) where the vocabulary does not know a language.
    """
    figures = diagnose(tests, list(training.values()), tokenizer, max_length)
    check_known(figures)
    run.say("languages", "\n".join(figure_lines(figures)))
    found: dict[str, Any] = {"figures": figures, "definitions": FIGURES}
    of_language = {
        name: [split for of in (training, tests) if (split := of.get(name))] for name in {**tests, **training}
    }
    mix = language_mix(of_language)
    if mix is None:
        run.say("note", LANGID_HINT)
        return found
    for sentence in wrong_files(mix):
        run.say("warning", sentence)
    return found | {"language_of_files": mix}


def figure_lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the figures as a table, a column for each language, in blocks where it would be wider than a terminal."""
    languages = list(figures)
    first = max(len(label) for label, _, _ in LABELS.values())
    at_once = max(1, (WIDTH - HEAD_WIDTH - first) // CELL)
    lines = []
    for start in range(0, len(languages), at_once):
        block = languages[start : start + at_once]
        lines.append(" " * first + "".join(name[: CELL - 1].rjust(CELL) for name in block))
        for name, (label, form, scale) in LABELS.items():
            cells = (form.format(scale * figures[language][name]) for language in block)
            lines.append(label.ljust(first) + "".join(cell.rjust(CELL) for cell in cells))
    characters = [language for language in languages if figures[language]["counted"] == "characters"]
    if characters:
        lines.append(f"in {', '.join(characters)} each character counts as a word: the script has no spaces")
    return lines


def with_gaps(found: Mapping[str, Any], gaps: Mapping[str, float], to: str) -> dict[str, Any]:
    """Return a record of `say_languages` with how its figures go with the gaps; `to` says to what the gaps are."""
    return {**found, "correlations": correlations(found["figures"], gaps) | {"gap_to": to}}


def correlation_text(found: Mapping[str, Any]) -> str:
    """Return the strong correlations of a record with gaps in a sentence, the strongest first."""
    told = found["correlations"]
    by_strength = sorted(told["spearman_with_gap"].items(), key=lambda item: -abs(item[1]))
    strong = [
        f"{LABELS[name][0].removesuffix(', %') if name in LABELS else name} {rho:+.1f}"
        for name, rho in by_strength
        if abs(rho) >= STRONG
    ]
    listed = f"rank correlation with the gap to {told['gap_to']}: {', '.join(strong)}; " if strong else ""
    return f"{listed}{told['note']}"


def draw_matrix(matrix: Mapping[str, Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draw a matrix of scores, row -> language -> metric -> {"value"}, as a heat map and write it as SVG."""
    rows, names = list(matrix), list(dict.fromkeys(name for row in matrix.values() for name in row))
    values = grid(matrix, metric, names)
    title = f"{metric} by training set and test language"
    save_svg(heat_map(rows, names, values, title, "darker is higher"), path, heat_map_in_words(rows, names, values))
