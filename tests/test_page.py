"""report.html: one file that asks nobody for anything, with the verdict first, in which every text stays text."""

import base64
import copy
import dataclasses
import hashlib
import html.parser
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, missing
from calling import call, done, private_cache, toy_files, train_toy, write_csv
from conftest import toy_rows

from finetune.explain import Explanation
from finetune.report import language_model, long_rows, summaries
from finetune.report.advice import Evidence, advise
from finetune.report.blocks import Cell, Code, Image, Picture, Section, Table
from finetune.report.explanation import draw
from finetune.report.page import _first_picture, _rendered, compared, headline, read
from finetune.report.sections import Ended, _explained, _made
from finetune.report.text import again, results_lines
from finetune.report.text_results import judging_of
from finetune.run import Run

VOID = {"meta", "img", "br", "path", "use", "rect"}
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>", "{{ 7 * 7 }} & 'quoted'")
SECRET = "hf_" + "aB3" * 12


class Page(html.parser.HTMLParser):
    """Collects the elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that what was opened last is closed first."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with private_cache(folder):
        return train_toy(folder, tiny_model)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run whose labels, texts and ids would all be markup, and one text without a space."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        (f"{identity}<i>", f"{HOSTILE[number % 4]} {text} {'x' * 300 * (number % 2)}", HOSTILE[(number // 3) % 4])
        for number, (identity, text, _) in enumerate(toy_rows(48))
    ]
    train, test = write_csv(folder / "train.csv", rows), write_csv(folder / "test.csv", rows[:24])
    with private_cache(folder):
        done(
            "train", "bert_classification", f"data.train={train}", f"data.test={test}", f"model={tiny_model}",
            f"output_dir={folder / 'run'}", "max_length=32", "num_train_epochs=1",
        )  # fmt: skip
    (folder / "run" / "explain").mkdir()
    (folder / "run" / "explain" / "wide.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="20"><script>document.title = "x"</script></svg>'
    )
    done("report", folder / "run")
    return folder / "run"


@pytest.fixture
def results(trained: Path) -> dict[str, Any]:
    """Return results.json of the run, to be changed."""
    found: dict[str, Any] = json.loads((trained / "results.json").read_text())
    return found


# The data


def test_what_the_data_doctor_says_stands_on_the_page_without_the_data(hostile: Path) -> None:
    files = [hostile.parent / f"{name}.csv" for name in ("train", "test")]
    told = call("check", *(f"data.{path.stem}={path}" for path in files), "--json").json
    assert {one["check"] for one in told} > {"leakage", "near duplicates", "telling words", "duplicates"}
    assert json.loads((hostile / "results.json").read_text())["diagnostics"]["findings"] == told
    for path in files:
        path.rename(path.with_suffix(".away"))
    try:
        done("report", hostile)
    finally:
        for path in files:
            path.with_suffix(".away").rename(path)
    text = page_of(hostile).text
    for one in told:
        assert (one["message"] in text) == (one["check"] != "resolution"), one  # the run knows it better
        assert one["check"] == "resolution" or one["action"] in text


# The file


@pytest.mark.parametrize("kind", ["trained", "hostile"])
def test_a_page_is_one_file_that_asks_nobody_for_anything(kind: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    found = page_of(run)
    assert found.open == []
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href", "xlink:href", "action", "srcset", "data"} & set(attributes):
            assert re.match(r"#|data:image/svg", attributes[name] or ""), attributes
    assert len(found.named("script")) == 1
    assert found.named("link") == found.named("iframe") == []
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|(?<!')https?://", re.sub(r"<td.*?</td>|<dd.*?</dd>", "", text))
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names))
    linked = [attributes["href"] for attributes in found.named("a")]
    assert linked
    assert {str(one)[1:] for one in linked} <= set(names)


def test_only_the_script_of_the_page_may_run(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [one["content"] for one in page_of(trained).named("meta") if "http-equiv" in one]
    assert "default-src 'none'" in str(policy)
    assert f"script-src 'sha256-{digest}'" in str(policy)


def test_texts_labels_and_names_that_look_like_markup_stay_text(hostile: Path) -> None:
    found = page_of(hostile)
    assert not {"b", "i"} & {name for name, _ in found.elements}
    (picture,) = found.named("img")
    assert picture["alt"] == "Where the model looked (finetune explain, wide)"
    for text in HOSTILE:
        assert text in found.text
    assert "49" not in re.findall(r"\d+ & 'quoted'", found.text)


def test_every_picture_is_told_in_words_and_has_no_ground_of_its_own(trained: Path) -> None:
    found = page_of(trained)
    pictures = found.named("svg")
    assert len(pictures) >= 3
    for one in pictures:
        assert one["role"] == "img"
        assert re.search(r"\d\.\d", str(one["aria-label"]))
    text = (trained / "report.html").read_text(encoding="utf-8")
    assert "fill: #ffffff" not in text
    assert "currentColor" in text


def test_headings_go_down_by_one_and_each_table_names_its_rows_and_columns(trained: Path) -> None:
    found = page_of(trained)
    assert [name for name, _ in found.elements if re.fullmatch(r"h\d", name)][:1] == ["h1"]
    assert {name for name, _ in found.elements if re.fullmatch(r"h\d", name)} == {"h1", "h2"}
    heads = found.named("th")
    assert {one["scope"] for one in heads} == {"row", "col"}
    assert found.named("html")[0]["lang"] == "en"


def test_the_page_has_every_section_that_a_classifier_can_fill(trained: Path) -> None:
    names = [one["id"] for one in page_of(trained).named("section")]
    assert {"scores", "curves", "confusion", "data", "made"} <= set(names)
    text = page_of(trained).text
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["command"] in text
    for digest in environment["data_sha256"].values():
        assert digest in text


def test_a_page_is_made_anew_from_the_files_of_the_run_alone(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "old"))
    for name in ("model", "checkpoints"):
        shutil.rmtree(run / name)
    (run / "report.html").unlink()
    assert done("report", run).out == f"report    {run / 'report.html'}\n"
    first = (run / "report.html").read_bytes()
    assert done("report", run, "--json").json == {"report": str(run / "report.html")}
    assert (run / "report.html").read_bytes() == first
    done("report", run, "--output", tmp_path / "x.html")
    assert (tmp_path / "x.html").read_bytes() == first
    before = (trained / "report.html").read_bytes()
    assert first.replace(str(run).encode(), b"RUN").replace(str(trained).encode(), b"RUN") == before.replace(
        str(trained).encode(), b"RUN"
    )


def test_what_is_no_run_and_what_is_no_page_is_told(trained: Path, tmp_path: Path) -> None:
    assert call("report", tmp_path).code == 66
    assert call("report", trained, "--output", tmp_path / "x.txt").code == 2
    assert call("report", trained, "--output", tmp_path / "no" / "x.html").code == 74
    assert call("compare", trained, trained, "--report", tmp_path / "x.pdf").code == 2


def test_the_run_names_its_page_and_seeds_have_one_together(tiny_model: Path, tmp_path: Path) -> None:
    files, run = toy_files(tmp_path), tmp_path / "run"
    outcome = done(
        "train", "bert_classification", *files, f"model={tiny_model}", f"output_dir={run}", "seeds=[1,2]",
        "max_length=32", "num_train_epochs=1",
    )  # fmt: skip
    assert f"saved     {run} · report: {run}/report.html\n" in outcome.out
    text = page_of(run).text
    assert "Each seed" in text
    assert "Confusion matrix" in text
    assert not (run / "seed-1" / "report.html").exists()


@pytest.fixture
def seeds(tmp_path: Path) -> Run:
    """Return a run of two seeds, as far as a page reads one, in a folder with a space."""
    run = tmp_path / "two seeds"
    told = {"judged_on": "test", "system": "BERT", "labels": ["a", "b"], "best_seed_on_validation": 2}
    results = {"task": "classification", "model": "m", "seconds": {}, "throughput": {}, "diagnostics": told}
    for folder in (run, run / "seed-1", run / "seed-2"):
        (folder / "predictions").mkdir(parents=True)
        (folder / "config.yaml").write_text("recipe: bert_classification\n")
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "predictions" / "test.jsonl").write_text("")
    return Run.open(run)


def test_what_was_explained_of_seeds_together_and_of_the_best_stands_on_the_page(seeds: Run) -> None:
    for number, folder in enumerate((seeds.folder, seeds.folder / "seed-1", seeds.folder / "seed-2")):
        (folder / "explain").mkdir()
        (folder / "explain" / f"{number}.svg").write_text("<svg/>")
    assert read(seeds).explained == {"0": "<svg/>", "2": "<svg/>"}


def test_what_an_explained_text_looked_at_is_told_to_those_who_do_not_see_it(seeds: Run) -> None:
    (seeds.folder / "explain").mkdir()
    for name, target in (("one", ["a", "b"]), ("two", ["c", "d"])):
        found = Explanation("x <y>", "", False, -1.0, ["x", "<y>"], target, np.array([[0.95, 0.05], [0.3, 0.7]]), [])
        draw(found, seeds.folder / "explain" / f"{name}.svg")
    (seeds.folder / "explain" / "word-old.svg").write_text("<svg/>")
    told = {block.told: block.alt for block in _explained(read(seeds)) if isinstance(block, Image)}
    assert told == {
        "Where the model looked (finetune explain, one)": "a: x 95 %; b: <y> 70 %   x 30 %",
        "Where the model looked (finetune explain, two)": "c: x 95 %; d: <y> 70 %   x 30 %",
        "One word in several contexts (finetune explain, word-old)": "One word in several contexts (finetune explain, "
        "word-old)",
    }


def test_a_command_to_repeat_a_run_can_be_pasted(seeds: Run) -> None:
    told = again(str(seeds.folder))
    assert shlex.split(told) == ["finetune", "train", "--config", f"{seeds.folder}/config.yaml", "output_dir=..."]
    assert [block.text for block in _made(read(seeds)) if isinstance(block, Code)] == [told]
    ended = {"diagnostics": {"judged_on": "test"}, "scores": {"test": {}}}
    assert results_lines(ended, str(seeds.folder))[-1].endswith(f"again: {told}")


def test_no_secret_reaches_the_page(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "old"))
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"command": f"finetune train {SECRET}"}))
    done("report", run)
    assert SECRET not in (run / "report.html").read_text()
    assert "hf_***" in (run / "report.html").read_text()


# The verdict


def judged(results: dict[str, Any], difference: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    """Return the results with another comparison."""
    changed = copy.deepcopy(results)
    changed["comparison"] |= {"difference": difference, "low": low, "high": high, "p_value": 0.0123, "verdict": verdict}
    changed["baseline"]["name"] = "TF-IDF (word 1-2)"
    changed["baseline"]["seconds"]["train"], changed["seconds"]["train"] = 10.0, 700.0
    return changed


CASES = [
    (0.041, 0.023, 0.059, "better", "BERT is 4.1 points of accuracy better than TF-IDF [2.3, 5.9] and took 70 times as"
     " long to train."),
    (-0.041, -0.059, -0.023, "worse", "BERT is 4.1 points of accuracy worse than TF-IDF [2.3, 5.9] and took 70 times as"
     " long to train: keep the baseline."),
    (0.001, -0.01, 0.012, "no difference shown", "No difference between BERT and TF-IDF is shown: +0.1 points of"
     " accuracy [−1.0, 1.2]; BERT took 70 times as long to train."),
]  # fmt: skip


@pytest.mark.parametrize(("difference", "low", "high", "verdict", "sentence"), CASES)
def test_the_verdict_is_a_sentence_with_interval_and_cost(
    results: dict[str, Any], difference: float, low: float, high: float, verdict: str, sentence: str
) -> None:
    found = headline(judged(results, difference, low, high, verdict))
    assert found.replace("\N{NO-BREAK SPACE}", " ") == sentence


@pytest.mark.parametrize(
    ("seconds", "told"), [(12.0, "took as long"), (2.0, "trained 5 times as fast"), (30.0, "took 3 times as long")]
)
def test_the_cost_is_told_as_people_say_it(results: dict[str, Any], seconds: float, told: str) -> None:
    found = judged(results, 0.041, 0.023, 0.059, "better")
    found["seconds"]["train"] = seconds
    assert f" and {told}" in headline(found)


def test_several_languages_are_one_sentence(results: dict[str, Any]) -> None:
    better = {"metric": "accuracy", "difference": 0.23, "low": 0.18, "high": 0.27, "verdict": "better"}
    worse = {"metric": "accuracy", "difference": -0.038, "low": -0.056, "high": -0.021, "verdict": "worse"}
    none = {"metric": "accuracy", "difference": 0.0, "low": -0.01, "high": 0.01, "verdict": "no difference shown"}
    changed = judged(results, 0.041, 0.023, 0.059, "better")
    changed["diagnostics"]["train_languages"] = ["en"]
    changed |= {"matrix": {}, "comparisons": {"it": better, "de": better | {"difference": 0.3}, "en": worse}}
    assert headline(changed).replace("\N{NO-BREAK SPACE}", " ") == (
        "BERT, trained on en, is better than TF-IDF in 2 of 3 languages (it, de), at most by 30.0 points of accuracy "
        "[18.0, 27.0] (de); worse than TF-IDF in 1 of 3 languages (en), by 3.8 points of accuracy [2.1, 5.6]; "
        "it took 70 times as long to train."
    )
    changed["comparisons"] = {"it": none}
    assert "is not shown to differ from TF-IDF in 1 (it)" in headline(changed)


def test_a_run_without_a_baseline_says_what_it_reached(results: dict[str, Any]) -> None:
    for key in ("baseline", "baselines", "comparison"):
        del results[key]
    assert re.fullmatch(r"BERT reaches accuracy \d.* nothing was trained beside it\.", headline(results))


def test_bits_are_no_points() -> None:
    one = {"runs": ["a", "b"], "metric": "bits_per_byte", "difference": 0.5, "low": 0.4, "high": 0.7}
    told = compared(one | {"verdict": "better"}).replace("\N{NO-BREAK SPACE}", " ")
    assert told == "a is 0.500 bits per byte better than b [0.400, 0.700]."


# What to do next


@pytest.fixture
def evidence(results: dict[str, Any]) -> Evidence:
    """Return evidence that asks for nothing, to be changed: a good, sure, finished run with three seeds."""
    told = results["diagnostics"]
    calm = judged(results, 0.041, 0.035, 0.047, "better")
    calm["scores"][told["judged_on"]]["ece"]["value"] = 0.01
    calm["diagnostics"] |= {"most_confused": None, "errors": [], "unknown_rate": {}, "leaked_rows": {"test": 0}}
    for one in calm["diagnostics"]["per_class"]:
        one["f1"] = 0.9
    return Evidence(calm, [], [], judging_of(results), "runs/x", "max_steps")


def changed(evidence: Evidence, **diagnostics: Any) -> Evidence:
    return dataclasses.replace(
        evidence, results={**evidence.results, "diagnostics": {**evidence.told, **diagnostics}}
    )  # fmt: skip


def advice_of(evidence: Evidence) -> str:
    return "\n".join(f"{one.what}: {one.why} {one.command}".strip() for one in advise(evidence))


def test_nothing_is_advised_without_evidence(evidence: Evidence) -> None:
    assert advise(evidence) == []


def test_a_curve_that_still_rises_asks_for_labels(evidence: Evidence) -> None:
    def budget(*scores: float) -> dict[str, Any]:
        points = [{"rows": 10**place, "accuracy": {"value": score}} for place, score in enumerate(scores, 1)]
        return {"metric": "accuracy", "curves": {"BERT": points}}

    rising = advice_of(changed(evidence, budget=budget(0.5, 0.7, 0.8)))
    assert (
        rising == "Label more rows: the curve of BERT went from 0.700 at 100 rows to 0.800 at 1,000, and still rises."
    )
    assert advice_of(changed(evidence, budget=budget(0.5, 0.8, 0.8))).startswith("Do not label more of the same: ")


def test_the_hardest_pair_and_the_weakest_class_are_named(evidence: Evidence) -> None:
    table = {"labels": ["a", "b", "c"], "matrix": [[5, 3, 0], [2, 5, 0], [0, 1, 9]]}
    pair = advice_of(changed(evidence, most_confused={"labels": ["a", "b"], "rows": 5}, confusion=table))
    assert pair.startswith("Tell a and b apart: ")
    assert "5 of 6 mistakes (83 %)" in pair
    classes = [{"label": name, "f1": f1, "support": 9} for name, f1 in (("a", 0.9), ("b", 0.9), ("c", 0.4))]
    assert advice_of(changed(evidence, per_class=classes)).startswith("Give the model more of c: its F1 is 0.40")


def test_a_language_that_is_cut_into_pieces_loses_to_fertility(evidence: Evidence) -> None:
    languages = {"en": {"accuracy": {"value": 0.9}}, "it": {"accuracy": {"value": 0.7}}}

    def told(pieces: float) -> str:
        figures = {"en": {"subwords_per_word": 1.1}, "it": {"subwords_per_word": pieces}}
        found = changed(evidence, languages={"figures": figures})
        return advice_of(
            dataclasses.replace(found, results={**found.results, "languages": languages, "matrix": {"en": {}}})
        )

    assert (
        "it may lose to fertility: the accuracy in it is 20.0 points below en, and its words are cut into 1.7"
        in told(1.7)
    )
    assert told(1.2).startswith("Add some labelled rows of the language it")


def test_in_languages_tfidf_is_named_whichever_baseline_is_the_strongest(evidence: Evidence) -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    languages = {"en": {"accuracy": score}}
    cheap = [{"name": name, "languages": languages} for name in ("TF-IDF (word 1-2)", "majority class")]
    lost = {"en": {"metric": "accuracy", "difference": -0.2, "low": -0.3, "high": -0.1, "verdict": "worse"}}
    beside = {"matrix": {"en": {}}, "baselines": cheap, "baseline": cheap[1], "comparisons": lost}
    results = {**evidence.results, "languages": languages, **beside}
    assert "Use TF-IDF for en" in advice_of(dataclasses.replace(evidence, results=results))
    ended = Ended(results, {}, {}, {}, [], [], [], {}, evidence.judging, "runs/x")
    assert "TF-IDF 0.500" in _first_picture(ended).svg
    assert "majority" not in _first_picture(ended).svg


def test_training_that_still_helped_or_went_on_for_too_long_is_seen(evidence: Evidence) -> None:
    def records(*scores: float) -> list[dict[str, Any]]:
        return [{"step": 10 * n, "validation": {"macro_f1": score}} for n, score in enumerate(scores, 1)]

    longer = advice_of(dataclasses.replace(evidence, records=records(0.5, 0.6, 0.7)))
    assert longer.startswith("Train longer: ")
    assert longer.endswith(" max_steps=...")
    assert advice_of(dataclasses.replace(evidence, records=records(0.5, 0.7, 0.7))) == ""
    assert advice_of(dataclasses.replace(evidence, records=records(0.7, 0.6, 0.5))).startswith("Train shorter")


def test_long_rows_of_every_recipe_are_told_and_advised() -> None:
    two = {"max_source_length": 5, "max_target_length": 6}
    records = [
        long_rows.record("pair", {"train": 9, "test": 1, "test it": 3}, two, "skip"),
        long_rows.record("source", {"train": 9}, {"max_source_length": 10}, "tail", summaries.DONE),
        long_rows.record("text", {"train": 9}, {"max_length": 8}, "window"),
        long_rows.record("row", {"train": 0}, {"max_length": 8}, "truncate", language_model.LONG_ROWS),
    ]
    assert list(long_rows.findings({"long_rows": records})) == [
        ("warning", "9 train pairs above max_source_length=5 or max_target_length=6: left out"),
        ("warning", "1 test pair above max_source_length=5 or max_target_length=6: cut"),
        ("warning", "3 test it pairs above max_source_length=5 or max_target_length=6: cut"),
        ("warning", "9 train sources above max_source_length=10: cut at the beginning"),
        ("good", "9 train texts above max_length=8: read in windows"),
        ("good", "no row is above max_length=8"),
    ]
    pairs, sources = long_rows.advised({"rows": {"train": 48, "test": 24}, "long_rows": records})
    assert pairs[1].endswith("9 of 48 train pairs, 1 of 24 test pairs.")
    assert pairs[2] == "max_source_length=10 max_target_length=12"
    why = "above max_source_length=10: 9 of 48 train sources."
    assert sources == ("Read long sources whole", why, "max_source_length=20")


def test_leaks_cut_and_unknown_texts_sure_mistakes_and_probabilities_are_told(evidence: Evidence) -> None:
    leaked = advice_of(changed(evidence, leaked_rows={"test": 14}))
    assert leaked.endswith("14 of test. finetune evaluate runs/x --data TEST_FILE --drop-leaked")
    long = long_rows.record("text", {"train": 20}, {"max_length": 32}, "truncate")
    told = advice_of(changed(evidence, long_rows=[long]))
    assert told.startswith("Read long texts whole: above max_length=32: 20 of 48 train texts.")
    assert told.endswith(" max_length=64 or data.on_long=window")
    assert "unknown tokens: 5.0 % of test" in advice_of(changed(evidence, unknown_rate={"test": 0.05}))
    assert "1 mistake with" in advice_of(changed(evidence, errors=[{"id": "7", "probability": 0.95}]))
    over = copy.deepcopy(evidence)
    over.results["scores"]["test"]["ece"]["value"] = 0.2
    bins = [{"rows": 10, "confidence": 0.9, "accuracy": 0.7}]
    assert "they are too high" in advice_of(changed(over, calibration=bins))


@pytest.mark.parametrize(("verdict", "begins"), [("worse", "Keep TF-IDF"), ("no difference shown", "Take TF-IDF")])
def test_the_cheaper_system_is_advised_where_it_is_as_good(evidence: Evidence, verdict: str, begins: str) -> None:
    comparison = evidence.results["comparison"] | {"verdict": verdict}
    assert advice_of(dataclasses.replace(evidence, results={**evidence.results, "comparison": comparison})).startswith(
        begins
    )


def test_the_length_that_is_harder_is_told_where_the_intervals_are_apart(evidence: Evidence) -> None:
    def bucket(start: int, accuracy: float) -> dict[str, float]:
        return {"from": start, "to": start + 9, "rows": 50, "accuracy": accuracy,
                "low": accuracy - 0.05, "high": accuracy + 0.05}  # fmt: skip

    apart = dataclasses.replace(evidence, lengths=[bucket(1, 0.9), bucket(10, 0.7)])
    assert (
        advice_of(apart) == "Look at the long texts: accuracy 0.700 at 10 to 19 words, accuracy 0.900 at 1 to 10 words."
    )
    assert advice_of(dataclasses.replace(evidence, lengths=[bucket(1, 0.9), bucket(10, 0.85)])) == ""


def test_texts_that_repeat_are_alike_or_end_too_soon_are_told(evidence: Evidence) -> None:
    def written(**own: float) -> dict[str, Any]:
        human = {"repetition": 0.01, "distinct_2": 0.9}
        return {"own": human | own, "human": human}

    assert advice_of(changed(evidence, written=written())) == ""
    assert "Forbid repetition" in advice_of(changed(evidence, written=written(repetition=0.3)))
    assert "the texts are alike" in advice_of(changed(evidence, summaries=written(distinct_2=0.1)))
    assert "0.2 times as many words" in advice_of(changed(evidence, length_ratio=0.2))


# Several runs


def test_a_comparison_has_a_page(trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    rows = (other / "predictions" / "test.jsonl").read_text().splitlines()
    changed = json.loads(rows[0])
    labels = changed["probabilities"]
    is_right = changed["predicted"] == changed["gold"]
    changed["predicted"] = next(label for label in labels if label != changed["gold"]) if is_right else changed["gold"]
    (other / "predictions" / "test.jsonl").write_text("\n".join([json.dumps(changed), *rows[1:]]) + "\n")
    done("compare", trained, other, "--report", tmp_path / "c.html")
    found = Page((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "No difference between run and other is shown: " in found.text
    assert changed["text"] in found.text
    assert [one["id"] for one in found.named("section")][:2] == ["verdicts", "scores"]


# In a browser


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser | None]:
    """Return a window of Chromium, None where it is not installed."""
    if missing():
        yield None
        return
    with browser(tmp_path_factory.mktemp("profile") / "new") as opened:
        yield opened


@pytest.mark.parametrize("kind", ["trained", "hostile"])
def test_a_browser_shows_the_page(
    kind: str, window: Browser | None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """No complaint, no request, nothing wider than a phone, tables that sort, ink that can be read in the dark."""
    run = request.getfixturevalue(kind)
    tables = [one for one in page_of(run).named("table") if one.get("class") == "sortable"]
    assert tables
    if window is None:
        with capsys.disabled():
            sys.stderr.write(
                f"\nnot in a browser: {', '.join(missing())} not installed; the page was read, not shown\n"
            )
        return
    window.open(run / "report.html")
    assert window.console() == []
    assert window.requests() == [(run / "report.html").as_uri()]
    assert window.run("return document.querySelectorAll('table.sortable th button').length") >= len(tables)
    for width in (360, 1200):
        window.size(width)
        assert window.run("return document.documentElement.scrollWidth") == width
    sort = (
        "const table = document.querySelector('#confusion table.sortable:last-of-type'); const column = arguments[0];"
        "const button = [...document.querySelectorAll('#confusion table.sortable')].at(-1).tHead.rows[0].cells[3]"
        ".querySelector('button'); button.click();"
        "const rows = [...document.querySelectorAll('#confusion table.sortable')].at(-1).tBodies[0].rows;"
        "return [...rows].map(row => Number(row.cells[3].textContent));"
    )
    down, up = window.run(sort), window.run(sort)
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)
    shades = {}
    for scheme in ("light", "dark"):
        window.scheme(scheme)
        shades[scheme] = window.run(
            "const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);"
            "const text = document.querySelector('header svg text');"
            "return [light(getComputedStyle(document.body).backgroundColor), light(getComputedStyle(text).fill)];"
        )
    assert shades["light"][0] > 600 > 200 > shades["light"][1]
    assert shades["dark"][0] < 200 < 600 < shades["dark"][1]
    assert window.printed().startswith(b"%PDF-")
    assert window.console() == []


def test_what_is_missing_stands_last_and_leaves_a_column_of_numbers_one(window: Browser | None, tmp_path: Path) -> None:
    values = ["9.5", "-", "10.25", "", "−1"]
    cells = [Cell(value, -1.0 if value == "−1" else None) for value in values]
    rows = [[Cell(f"row {number}"), cell] for number, cell in enumerate(cells)]
    section = Section("s", "S", [Table("t", ["name", "value"], rows, sortable=True)])
    picture = Picture("<svg></svg>", "")
    page = _rendered(title="", kicker="", headline="", picture=picture, facts=[], advice=[], sections=[section])
    assert 'class="sortable"' in page
    if window is None:
        return
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    window.open(tmp_path / "page.html")
    sort = (
        "document.querySelectorAll('table.sortable button')[1].click();"
        "return [...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[1].textContent);"
    )
    down, up = window.run(sort), window.run(sort)
    assert (down[:3], up[:3]) == (["10.25", "9.5", "−1"], ["−1", "9.5", "10.25"])
    assert {*down[3:]} == {*up[3:]} == {"-", ""}
