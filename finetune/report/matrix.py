"""The matrix of a cross-lingual run as a table of 80 columns, as Markdown, and its verdicts as sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.crosslingual import language_groups
from finetune.terminal import line, p_value, points, printable

WIDTH = 80
CELL, GAP = 15, 2
NONE = "-"
LONGEST_NAME = 24
SHADES = " ░▒▓█"  # of a cell from the lowest to the highest, without a colour
Rows = Sequence[tuple[str, Mapping[str, str]]]  # label and the text of each column; a column may be missing


def table(results: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Return the columns of a cross-lingual run's table and its rows: systems, oracle, gap, consistency."""
    diagnostics, languages = results["diagnostics"], list(results["languages"])
    sources, system = diagnostics["train_languages"], diagnostics["system"]
    groups, headings = language_groups(languages, sources), _headings(sources)
    rows: list[tuple[str, Mapping[str, str]]] = []
    for row, cells in results["matrix"].items():
        means = {headings[name]: _cell(part["accuracy"]) for name, part in diagnostics["averages"][row].items()}
        rows.append((f"{system}, {row}", _cells(cells) | means))
    for baseline in results.get("baselines", []):
        if baseline["name"].startswith("TF-IDF"):  # not the majority class, which is the same in all languages
            trained_on = "own language" if "oracle" in baseline else "+".join(sources)
            means = {headings[name]: mean for name, mean in _means(baseline["languages"], groups).items()}
            rows.append((f"TF-IDF, {trained_on}", _cells(baseline["languages"]) | means))
    gaps = diagnostics["gap_to_oracle"]
    if gaps:
        oracles = {language: results["matrix"][language][language] for language in gaps}
        rows.append(("oracle, own language", _cells(oracles)))
        rows.append(("gap to oracle", {language: points(gap["difference"]) for language, gap in gaps.items()}))
    same = diagnostics["consistency"]
    if same:
        reference = next(source for source in sources if source in languages)
        rows.append((f"consistency with {reference}", {name: f"{share['value']:.2f}" for name, share in same.items()}))
    return [*languages, *(headings[name] for name in groups)], rows


def grid(matrix: Mapping[str, Mapping[str, Any]], metric: str, columns: Sequence[str]) -> list[list[float | None]]:
    """Return a score of each row in each column, None where a row has no such cell."""
    return [[row[name][metric]["value"] if name in row else None for name in columns] for row in matrix.values()]


def elsewhere_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `finetune crosslingual` prints: accuracy in each language, TF-IDF, consistency, and the verdicts."""
    told, languages = found["diagnostics"], list(found["languages"])
    rows: list[tuple[str, Mapping[str, str]]] = [
        (f"{told['system']}, {told['trained_on']}", _cells(found["languages"]))
    ]
    if "baseline" in told:
        rows.append((f"TF-IDF, {told['trained_on']}", _cells(told["baseline"])))
    if told["consistency"]:
        same = {name: f"{share['value']:.2f}" for name, share in told["consistency"].items()}
        rows.append((f"consistency with {told['reference']}", same))
    lines = table_lines("accuracy", languages, rows)
    if found["comparisons"]:
        lines += verdict_lines(found["comparisons"], told["system"], f"trained on {told['trained_on']}")
    return lines


def table_lines(title: str, columns: Sequence[str], rows: Rows) -> list[str]:
    """Return a table in lines of at most 80 columns: where it is too wide, blocks of columns below each other."""
    head = max(len(title), *(len(label) for label, _ in rows)) + 2
    fitting = max(1, (WIDTH - head + GAP) // CELL)  # the last column needs no gap after it
    lines: list[str] = []
    for start in range(0, len(columns), fitting):
        block = columns[start : start + fitting]
        lines.append("".join([title.ljust(head), *(column.ljust(CELL) for column in block)]).rstrip())
        for label, cells in rows:
            if any(column in cells for column in block):
                texts = [cells.get(column, NONE) for column in block]
                lines.append("".join([label.ljust(head), *(text.ljust(CELL) for text in texts)]).rstrip())
    return lines


def markdown(title: str, columns: Sequence[str], rows: Rows) -> str:
    """Return a table as Markdown."""
    lines = [f"| {' | '.join([title, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for label, cells in rows:
        lines.append(f"| {' | '.join([label, *(cells.get(name, NONE) for name in columns)])} |")
    return "\n".join(lines)


def language_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the end of a cross-lingual run in the terminal: heat map, table, what it leaves out, verdicts.

    One trained row is no map: its numbers stand in the table.
    """
    matrix, languages = results["matrix"], list(results["languages"])
    lines = []
    if len(matrix) > 1:
        lines += [*heat_map_lines(list(matrix), languages, grid(matrix, "accuracy", languages), "accuracy"), ""]
    lines += table_lines("accuracy", *table(results))
    diagnostics = results["diagnostics"]
    if "oracle" in diagnostics:
        lines.append(line("oracle", diagnostics["oracle"]))
    if not diagnostics["consistency"] and len(results["languages"]) > 1:
        lines.append(line("note", "no consistency: the test sets do not have the same ids and labels"))
    if "comparisons" in results:
        system, sources = diagnostics["system"], diagnostics["train_languages"]
        lines += verdict_lines(results["comparisons"], system, f"trained on {'+'.join(sources)}")
    return lines


def verdict_lines(comparisons: Mapping[str, Any], system: str, trained: str) -> list[str]:
    """Return the verdict of each language in a sentence, under a line that says what is compared."""
    many = f"\nintervals widened for {len(comparisons)} verdicts (Holm)" if len(comparisons) > 1 else ""
    lines = [line("verdict", f"{system} against TF-IDF, both {trained} (accuracy, exact McNemar){many}")]
    return lines + [line("", f"{name}: {verdict_sentence(found)}") for name, found in comparisons.items()]


def verdict_sentence(found: Mapping[str, Any]) -> str:
    """Return one comparison with TF-IDF in a few words: `better than TF-IDF, +23.0 points [18.6, 27.5], p < 0.001`."""
    opening = {
        "better": "better than TF-IDF",
        "worse": "worse than TF-IDF",
        "no difference shown": "no difference from TF-IDF shown",
    }[found["verdict"]]
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{opening}, {points(found['difference'])} points [{low:.1f}, {high:.1f}], {p_value(found['p_value'])}"


def heat_map_lines(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], head: str = ""
) -> list[str]:
    """Return a table of fractions for the terminal, each number with a block that is darker where it is higher.

    None stays empty. Where the columns do not fit into 80 characters the table goes on below, rows named again.
    """
    names = [_clipped(row) for row in rows]
    first = max(len(name) for name in [_clipped(head), *names])
    titles = [_clipped(column) for column in columns]
    wide = max([len("0.000") + 1, *map(len, titles)]) + 2
    at_once = max(1, (WIDTH - first) // wide)
    seen = [value for of_row in values for value in of_row if value is not None]
    lines: list[str] = []
    for start in range(0, len(columns), at_once):
        part = slice(start, start + at_once)
        lines.append(
            (_clipped(head).ljust(first) + "".join(f"{title:>{wide - 1}} " for title in titles[part])).rstrip()
        )
        for name, of_row in zip(names, values, strict=True):
            cells = (_shaded(value, min(seen), max(seen)) if value is not None else "" for value in of_row[part])
            lines.append((name.ljust(first) + "".join(cell.rjust(wide) for cell in cells)).rstrip())
    return lines


def _headings(sources: Sequence[str]) -> dict[str, str]:
    """Return the headings of the groups of `crosslingual.language_groups`."""
    named = f"without {'+'.join(sources)}"
    return {"all": "mean", "without_training": named if len(named) < CELL else "without these"}


def _means(scores: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the mean accuracy of each group whose languages are all there."""
    values = {
        name: [scores[language]["accuracy"]["value"] for language in languages]
        for name, languages in groups.items()
        if set(languages) <= set(scores)
    }
    return {name: f"{sum(each) / len(each):.3f}" for name, each in values.items()}


def _cell(score: Mapping[str, float]) -> str:
    half = (score["high"] - score["low"]) / 2
    return f"{score['value']:.3f} ± {half:.3f}"


def _cells(languages: Mapping[str, Any]) -> dict[str, str]:
    return {language: _cell(scores["accuracy"]) for language, scores in languages.items()}


def _shaded(value: float, least: float, most: float) -> str:
    share = (value - least) / (most - least) if most > least else 1.0
    return f"{value:.3f}{SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))]}"


def _clipped(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
