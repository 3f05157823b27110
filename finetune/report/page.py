"""report.html: one file about a run, a comparison of runs or new languages, the verdict on its first screen."""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import __version__
from finetune.attribution import Judged
from finetune.config import read_yaml
from finetune.report import advice, attribution, blocks, matrix, pictures, sections
from finetune.report.advice import Advice, Evidence, short
from finetune.report.blocks import Cell, Section, Table
from finetune.report.sections import Ended, compared_rows, score_of
from finetune.report.text import pace, training_seconds
from finetune.report.text_results import judging_of
from finetune.run import SECRET, Run
from finetune.terminal import NO_SHARES, count, duration, is_percentage, measured, p_value, shown

if TYPE_CHECKING:
    import jinja2

SHOWN_DISAGREEMENTS = 200
NO_BREAK = "\N{NO-BREAK SPACE}"


def run_page(run: Run) -> str:
    """Return the page of a finished run as HTML; raises UserError where the run did not end."""
    found = read(run)
    results, told = found.results, found.told
    length = "num_train_epochs" if found.config.get("train.max_steps", -1) < 0 else "max_steps"
    records = next(iter(found.records.values()), [])
    evidence = Evidence(results, records, found.by_length, found.judging, found.folder, length)
    kicker = " · ".join([results["recipe"], str(results["model"]), found.environment.get("started", "")[:10]])
    return _rendered(
        title=f"{short(told['system'])}: {results['task']}",
        kicker=kicker.rstrip(" ·"),
        headline=headline(results),
        picture=_first_picture(found),
        facts=_first_facts(found),
        advice=advice.advise(evidence),
        sections=sections.sections(found),
    )


def comparison_page(runs: Mapping[str, Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of what `finetune compare` found; `runs` are the results of each run by its name."""
    names = _told_apart(list(runs))
    runs = {names[name]: results for name, results in runs.items()}
    found = [{**one, "runs": [names[name] for name in one["runs"]]} for one in found]
    sentences = [compared(one) for one in found]
    scores = {name: results["scores"][results["diagnostics"]["judged_on"]] for name, results in runs.items()}
    metrics = list(dict.fromkeys(name for of in scores.values() for name in of))
    rows = [
        [Cell(metric), *(Cell(shown(metric, of[metric]) if metric in of else matrix.NONE) for of in scores.values())]
        for metric in metrics
    ]
    parts = [
        Section(
            "verdicts", "Verdicts", [_differences(found), compared_rows("runs", {_pair(one): one for one in found})]
        ),
        Section("scores", "Scores", [Table("In brackets the 95 % interval", ["", *scores], rows)]),
    ]
    parts += [_disagreements(one) for one in found if one["disagreements"]]
    costs = [(name, duration(of["seconds"]["train"])) for name, of in runs.items()]
    return _rendered(
        title=" against ".join(runs),
        kicker=f"finetune compare · {count(found[0]['rows'], 'paired text')}",
        headline=sentences[0] if len(sentences) == 1 else f"{sentences[0]} {_others(sentences[1:])}",
        picture=_side_by_side(runs, found),
        facts=[("trained in", ", ".join(f"{name} {seconds}" for name, seconds in costs))],
        advice=[],
        sections=parts,
    )


def elsewhere_page(name: str, found: Mapping[str, Any]) -> str:
    """Return the page of what `finetune crosslingual` found of the run `name`."""
    told, languages = found["diagnostics"], found["languages"]
    system = f"{short(told['system'])}, trained on {told['trained_on']}"
    groups = {code: {short(told["system"]): score_of(of["accuracy"])} for code, of in languages.items()}
    for code, of in told.get("baseline", {}).items():
        groups[code]["TF-IDF"] = score_of(of["accuracy"])
    rows = [
        [Cell(code), *(Cell(shown(metric, of[metric]), of[metric]["value"]) for metric in of)]
        for code, of in languages.items()
    ]
    metrics = list(next(iter(languages.values())))
    right = frozenset(range(1, len(metrics) + 1))
    parts = [Section("scores", "Scores", [Table("Each language", ["language", *metrics], rows, right, sortable=True)])]
    if found["comparisons"]:
        parts.append(Section("verdicts", "Verdicts", [compared_rows("language", found["comparisons"])]))
        sentence = _in_languages(system, found["comparisons"])
    else:
        sentence = f"{system}: {_listed(languages)}; nothing was fitted beside it."
    return _rendered(
        title=f"{name} in other languages",
        kicker=f"finetune crosslingual · {name}",
        headline=sentence,
        picture=_drawn(groups, "accuracy", "accuracy in each language, with 95 % intervals"),
        facts=[("test rows", ", ".join(f"{code} {rows:,}" for code, rows in told["rows"].items()))],
        advice=[],
        sections=parts,
    )


def attribution_page(name: str, found: Sequence[Judged]) -> str:
    """Return the page of what `finetune explain` found of texts that the run `name` labels."""
    first = found[0]
    said = " | ".join(first.predicted) or "no label"
    figure, told = attribution.attribution_figure(first)
    more = f" and {count(len(found) - 1, 'more text')}" if len(found) > 1 else ""
    caption = "What each word did; blue speaks for the label, underlined orange against it"
    return _rendered(
        title=f"{name}: why {said}",
        kicker=f"finetune explain · {name}",
        headline=f"What speaks for {said}{more}",
        picture=blocks.Picture(pictures.inline(figure, told), caption),
        facts=[("texts", f"{len(found):,}")],
        advice=[],
        sections=[attribution.attribution_section(number, one) for number, one in enumerate(found, 1)],
    )


def read(run: Run) -> Ended:
    """Read what a finished run left; of several seeds, what only one of them has is that of the best."""
    results = run.results()
    seeds = run.seeds()
    chosen = seeds[results["diagnostics"]["best_seed_on_validation"]] if seeds else run
    results["diagnostics"] = chosen.results()["diagnostics"] | results["diagnostics"]
    judged = results["diagnostics"]["judged_on"]
    records = {f"seed {seed}": part.metrics() for seed, part in seeds.items()}
    baseline, written = f"baseline.{judged}", "written"

    def stored(name: str) -> list[dict[str, Any]]:
        return chosen.read_predictions(name) if chosen.predictions_file(name).is_file() else []

    return Ended(
        results=results,
        config={path: value for path, (value, _) in read_yaml(run.config_file).items()},
        environment=run.environment(),
        records=records or {short(results["diagnostics"]["system"]): run.metrics()},
        rows=chosen.read_predictions(judged),
        beside=stored(baseline),
        written=stored(written),
        explained=run.explanations() | chosen.explanations(),
        judging=judging_of(results),
        folder=str(run.folder),
    )


def headline(results: Mapping[str, Any]) -> str:
    """Return the verdict of a run in a sentence, with its interval and its cost."""
    told = results["diagnostics"]
    system = short(told["system"])
    if "comparison" not in results:
        metric, score = next(iter(results["scores"][told["judged_on"]].items()))
        return f"{system} reaches {metric} {shown(metric, score)}; nothing was trained beside it."
    took = pace(results)
    if "matrix" in results:
        trained = f"{system}, trained on {'+'.join(told['train_languages'])}"
        sentence = _in_languages(trained, results["comparisons"])
        return f"{sentence.rstrip('.')}; it {took}." if took else sentence
    comparison, other = results["comparison"], short(results["baseline"]["name"])
    by, span = _by(comparison)
    if comparison["verdict"] == "no difference shown":
        extra = f"; {system} {took}" if took else ""
        return f"No difference between {system} and {other} is shown: {by} {span}{extra}."
    way = f"{by} {comparison['verdict']} than {other} {span}"
    keep = ": keep the baseline" if comparison["verdict"] == "worse" else ""
    return f"{system} is {way}" + (f" and {took}" if took else "") + f"{keep}."


def compared(one: Mapping[str, Any]) -> str:
    """Return one comparison of `finetune compare` as a sentence."""
    first, second = one["runs"]
    where = f" in {one['language']}" if "language" in one else ""
    by, span = _by(one)
    if one["verdict"] == "no difference shown":
        return f"No difference between {first} and {second} is shown{where}: {by} {span}."
    return f"{first} is {by} {one['verdict']} than {second}{where} {span}."


def _by(one: Mapping[str, Any]) -> tuple[str, str]:
    """Return a difference and its interval, as sizes where the verdict says which side is better."""
    (value, low, high), unit, digits = measured(one)
    if one["verdict"] == "worse":
        value, low, high = -value, -high, -low
    sign = "+" if one["verdict"] == "no difference shown" else ""
    told = f"{value:{sign}.{digits}f} {unit.replace('_', ' ')}", f"[{low:.{digits}f},{NO_BREAK}{high:.{digits}f}]"
    return told[0].replace("-", "−"), told[1].replace("-", "−")


def _in_languages(system: str, comparisons: Mapping[str, Any]) -> str:
    """Return the verdicts of several languages in a sentence; the largest difference stands for those on one side."""
    told = []
    for verdict in ("better", "worse"):
        codes = [code for code, one in comparisons.items() if one["verdict"] == verdict]
        if codes:
            most = max(codes, key=lambda code: abs(comparisons[code]["difference"]))
            by = " ".join(_by(comparisons[most]))
            of = f"in {len(codes)} of {len(comparisons)} languages ({', '.join(codes)})"
            most_of = f", at most by {by} ({most})" if len(codes) > 1 else f", by {by}"
            told.append(f"{verdict} than TF-IDF {of}{most_of}")
    none = [code for code, one in comparisons.items() if one["verdict"] == "no difference shown"]
    if none:
        told.append(f"not shown to differ from {'it' if told else 'TF-IDF'} in {len(none)} ({', '.join(none)})")
    return f"{system}, is {'; '.join(told)}."


def _side_by_side(runs: Mapping[str, Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> blocks.Picture:
    """Draw the scores of runs by the metric of their comparison, in each language where that was compared."""
    metric = found[0]["metric"]
    codes = list(dict.fromkeys(one["language"] for one in found if "language" in one))
    groups = {code: {name: score_of(of["languages"][code][metric]) for name, of in runs.items()} for code in codes}
    if not codes:
        judged = {name: of["scores"][of["diagnostics"]["judged_on"]] for name, of in runs.items()}
        groups = {"": {name: score_of(of[metric]) for name, of in judged.items()}}
    return _drawn(groups, metric, f"{metric.replace('_', ' ')} of each run, with 95 % intervals")


def _differences(found: Sequence[Mapping[str, Any]]) -> blocks.Picture:
    """Draw the differences of comparisons beside no difference."""
    differences = {_pair(one): {"difference": measured(one)[0]} for one in found}
    _, unit, digits = measured(found[0])
    figure = pictures.intervals(differences, f"{unit}, better for the first to the right", at=0.0, digits=digits)
    widened = "; intervals widened by Holm's method" if len(found) > 1 else ""
    told = f"Differences: {pictures.intervals_in_words(differences, digits)}"
    caption = f"Differences with their 95 % intervals{widened}; the broken line is no difference"
    return blocks.Picture(pictures.inline(figure, told), caption)


def _drawn(groups: Mapping[str, Mapping[str, pictures.Score]], metric: str, caption: str) -> blocks.Picture:
    digits = 1 if is_percentage(metric) else 3
    figure = pictures.intervals(groups, metric.replace("_", " "), digits=digits)
    return blocks.Picture(pictures.inline(figure, f"{caption}: {pictures.intervals_in_words(groups, digits)}"), caption)


def _told_apart(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of each path, where these are different."""
    last = {name: Path(name).name for name in names}
    return last if len(set(last.values())) == len(names) else {name: name for name in names}


def _others(sentences: Sequence[str]) -> str:
    return f"And {count(len(sentences), 'more comparison')} below."


def _listed(languages: Mapping[str, Any]) -> str:
    return ", ".join(f"{code} accuracy {shown('accuracy', of['accuracy'])}" for code, of in languages.items())


def _pair(one: Mapping[str, Any]) -> str:
    where = f", {one['language']}" if "language" in one else ""
    return f"{' − '.join(one['runs'])}{where}"


def _first_picture(found: Ended) -> blocks.Picture:
    """Draw the score of the verdict of the model and of what stands beside it, on one axis; by language where known."""
    metric = found.metric
    if "matrix" in found.results:
        system = short(found.told["system"])
        groups = {code: {system: score_of(of[metric])} for code, of in found.results["languages"].items()}
        for cheap in found.results.get("baselines", [])[:1]:  # TF-IDF, of which the verdict in each language speaks
            for code, of in cheap["languages"].items():
                groups[code][short(cheap["name"])] = score_of(of[metric])
        caption = f"{metric} in each test language, with 95 % intervals"
    else:
        scores = {name: score_of(of[metric]) for name, of in sections.systems(found).items() if metric in of}
        # The others stand in the table: far below the two they would make the difference small.
        both = short(found.told["system"]), short(found.results.get("baseline", {"name": ""})["name"])
        groups = {"": {name: scores[name] for name in both if name in scores}}
        lower = ", lower is better" if metric in NO_SHARES else ""
        caption = f"{metric.replace('_', ' ')} on {found.judged}{lower}, with 95 % intervals"
    return _drawn(groups, metric, caption)


def _first_facts(found: Ended) -> list[tuple[str, str]]:
    """Return what stands in a line below the picture: rows, evidence, time, size."""
    results, told = found.results, found.told
    facts = [("judged on", count(told["rows"][found.judged], f"{found.judged} row"))]
    if "matrix" in results:
        rows = sum(of["rows"] for of in told["languages"]["figures"].values())
        facts = [("judged on", f"{count(rows, 'test row')} in {count(len(results['languages']), 'language')}")]
    if "comparison" in results and "matrix" not in results:
        facts.append(("evidence", p_value(results["comparison"]["p_value"])))
    seeds = len(results.get("seeds", [1]))
    trained = duration(training_seconds(results))
    if "baseline" in results and results["baseline"]["seconds"]["train"] > 0.05:
        trained += f" against {duration(results['baseline']['seconds']['train'])}"
    facts.append(("training", trained + (f" a seed, {seeds} seeds" if seeds > 1 else "")))
    if "parameters" in told:
        facts.append(("size", f"{told['parameters'] / 1e6:.1f} M parameters"))
    if "resolution" in told and found.metric == "accuracy" and "matrix" not in results:
        facts.append(("can show", f"differences from {100 * told['resolution']:.1f} points"))
    return facts


def _disagreements(one: Mapping[str, Any]) -> Section:
    rows = one["disagreements"][:SHOWN_DISAGREEMENTS]
    told = f"{count(len(one['disagreements']), 'text')} that only one of them gets right"
    if len(rows) < len(one["disagreements"]):
        told += f"; the first {len(rows)}"
    cells = [[Cell(str(row[key])) for key in ("id", "text", "gold")] + [Cell(name) for name in row["predicted"]]
             for row in rows]  # fmt: skip
    name = "rows-" + hashlib.sha256(_pair(one).encode()).hexdigest()[:8]
    return Section(name, _pair(one), [Table(told, ["id", "text", "gold", *one["runs"]], cells, sortable=True)])


def _rendered(
    *, title: str, kicker: str, headline: str, picture: blocks.Picture, facts: Sequence[tuple[str, str]],
    advice: Sequence[Advice], sections: Sequence[Section],
) -> str:  # fmt: skip
    script = _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _template().render(
        title=title, kicker=kicker, headline=headline, picture=picture, facts=facts, advice=advice, sections=sections,
        style=_own("page.css"), script=script, digest=digest, version=__version__,
    )  # fmt: skip
    return SECRET.sub("hf_***", page)


def _own(name: str) -> str:
    return resources.files("finetune.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    surroundings = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    surroundings.lstrip_blocks = True
    surroundings.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    return surroundings.from_string(_own("page.html.j2"))
