"""The sentences of the terminal and the model card."""

import copy
import html.parser
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from calling import ROOT, call, done, private_cache, train_toy, write_csv
from conftest import toy_rows
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from finetune import processes
from finetune.report.card import model_card
from finetune.report.matrix import heat_map_lines
from finetune.report.opening import say_model
from finetune.report.text import comparison_lines, results_lines, verdict_text
from finetune.terminal import HEAD_WIDTH, count, difference, duration, interval, line, p_value, points, size
from finetune.trainer import TrainConfig

SECRET = "hf_" + "aB3" * 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with private_cache(folder):
        return train_toy(folder, tiny_model)


@pytest.fixture
def results(trained: Path) -> dict[str, Any]:
    """Return results.json of the run, to be changed."""
    found: dict[str, Any] = json.loads((trained / "results.json").read_text())
    return found


def judged(results: dict[str, Any], difference: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    """Return the results with another comparison."""
    changed = copy.deepcopy(results)
    changed["comparison"] |= {"difference": difference, "low": low, "high": high, "p_value": 0.0123, "verdict": verdict}
    changed["baseline"]["name"] = "TF-IDF"
    changed["baseline"]["seconds"]["train"], changed["seconds"]["train"] = 14.0, 644.0
    changed["diagnostics"]["resolution"] = 0.009
    return changed


# The verdict


CASES = [
    (0.023, 0.013, 0.034, "better", "BERT is better than TF-IDF: +2.3 points of accuracy [1.3, 3.4], "),
    (
        -0.023, -0.034, -0.013, "worse",
        "BERT is worse than TF-IDF: keep the baseline: -2.3 points of accuracy [-3.4, -1.3], ",
    ),
    (
        0.001, -0.01, 0.012, "no difference shown",
        "no difference shown between BERT and TF-IDF: +0.1 points of accuracy [-1.0, 1.2], ",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("difference", "low", "high", "verdict", "opening"), CASES)
def test_each_verdict_has_the_same_form_place_and_size(
    results: dict[str, Any], difference: float, low: float, high: float, verdict: str, opening: str
) -> None:
    changed = judged(results, difference, low, high, verdict)
    lines = verdict_text(changed).split("\n")
    assert lines[0] == f"{opening}p = 0.012 (exact McNemar, 24 paired texts)."
    assert lines[1].startswith("It took 46 times as long to train (10 min 44 s against 14 s). The hardest pair: ")
    assert lines[2:] == ["This test set can show differences from 0.9 points up."]
    shown = results_lines(changed, "runs/x")
    assert shown[0].startswith("test      accuracy 0.")
    assert shown[1].startswith(f"verdict   {opening}")


def test_a_loss_is_said_to_be_lower_or_higher() -> None:
    better = {"metric": "loss", "difference": 0.5, "low": 0.4, "high": 0.7}
    assert difference(better) == "loss lower by 0.500 [0.400, 0.700]"
    worse = {"metric": "loss", "difference": -0.5, "low": -0.7, "high": 0.1}
    assert difference(worse) == "loss higher by 0.500 [-0.100, 0.700]"


def test_a_thousandfold_cost_is_told_with_its_comma(results: dict[str, Any]) -> None:
    results["baseline"]["seconds"]["train"], results["seconds"]["train"] = 0.6, 1000.2
    assert "It took 1,667 times as long to train" in verdict_text(results)


@pytest.mark.parametrize(
    ("settings", "several", "length"),
    [
        ({}, "2 processes, each on ", "num_train_epochs=3"),
        ({"sharding": "fsdp"}, "2 processes, the model parted among them (fsdp), each on ", "num_train_epochs=3"),
        ({"max_steps": 4}, "2 processes, each on ", "max_steps=4"),
    ],
)
def test_the_model_line_says_what_processes_share_and_when_training_ends(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], several: str, length: str
) -> None:
    monkeypatch.setattr(processes, "world", lambda: 2)
    said: list[str] = []
    run = SimpleNamespace(say=lambda head, text: said.append(text))
    config = TrainConfig(learning_rate=1e-3, num_train_epochs=3, mixed_precision="no", use_cpu=True, **settings)
    say_model(run, "tiny", config, config, 4)  # type: ignore[arg-type]
    assert said[0].startswith(f"tiny · fp32 on {several}")
    assert said[-1].startswith(f"learning_rate=0.001 · {length} · 4 updates of ")


def test_a_baseline_that_cost_nothing_is_no_divisor(results: dict[str, Any]) -> None:
    results["baseline"]["seconds"]["train"] = 0.0
    assert "times as long" not in verdict_text(results)


def test_a_model_that_was_faster_than_the_baseline_is_said_to_be(results: dict[str, Any]) -> None:
    results["baseline"]["seconds"]["train"] = 3 * results["seconds"]["train"]
    assert "It trained 3 times as fast (" in verdict_text(results)


def test_the_verdict_names_what_it_was_judged_on(results: dict[str, Any]) -> None:
    results["diagnostics"]["judged_on"] = "validation"
    assert results_lines(results, "runs/x")[0].startswith("validation accuracy 0.")


def test_a_comparison_of_two_runs_has_the_same_forms() -> None:
    found = {
        "runs": ["a", "b"], "metric": "accuracy", "difference": 0.1, "low": 0.05, "high": 0.15, "p_value": 0.0001,
        "rows": 100, "disagreements": [], "verdict": "better",
    }  # fmt: skip
    assert comparison_lines(found) == [
        "verdict   a is better than b: +10.0 points of accuracy [5.0, 15.0], "
        "p < 0.001 (exact McNemar, 100 paired texts)."
    ]
    assert comparison_lines(found | {"verdict": "worse"})[0].startswith("verdict   a is worse than b: ")
    none = comparison_lines(found | {"verdict": "no difference shown"})[0]
    assert none.startswith("verdict   no difference shown between a and b: ")
    row = {"id": "7", "text": "a\n" * 60, "gold": "x", "predicted": ["x", "y"]}
    shown = comparison_lines(found | {"disagreements": [row] * 9})
    assert shown[1] == "rows      9 texts that only one of them gets right, e.g."
    assert len(shown) == 2 + 5
    assert shown[2].split("\n")[1].strip() == "gold x · a: x · b: y"
    assert max(map(len, "\n".join(shown[2:]).split("\n"))) <= 100


# Numbers in words


def test_numbers_are_written_as_people_read_them() -> None:
    assert [duration(s) for s in (0.04, 9.94, 59.4, 190, 7500)] == ["0.0 s", "9.9 s", "59 s", "3 min 10 s", "2 h 5 min"]
    assert [size(n) for n in (91e6, 1.4e9)] == ["91 MB", "1.4 GB"]
    assert [count(n, "text") for n in (0, 1, 9038)] == ["0 texts", "1 text", "9,038 texts"]
    assert [p_value(p) for p in (0.0004, 0.001, 1.0)] == ["p < 0.001", "p = 0.001", "p = 1.000"]
    assert [points(d) for d in (0.0234, -0.01)] == ["+2.3", "-1.0"]
    assert interval({"value": 0.9341, "low": 0.925, "high": 0.9429}) == "0.934 [0.925, 0.943]"


def test_a_table_of_the_terminal_is_shaded_without_colours() -> None:
    rows, columns = ["BERT, English", "oracle"], ["en", "it", "de"]
    assert heat_map_lines(rows, columns, [[0.99, 0.6, 0.486], [None, 0.871, None]], "accuracy") == [
        "accuracy          en      it      de",
        "BERT, English  0.990█  0.600░  0.486",
        "oracle                 0.871▓",
    ]
    assert heat_map_lines(["a"], ["x"], [[0.5]]) == ["       x", "a  0.500█"]
    assert heat_map_lines(["a"], ["x"], [[None]]) == ["       x", "a"]


def test_a_wide_table_goes_on_below_within_eighty_columns() -> None:
    columns = [f"l{number}" for number in range(12)]
    lines = heat_map_lines(["a" * 30, "b\x1b"], columns, [[0.5] * 12, [0.25] * 12], "accuracy")
    assert max(map(len, lines)) <= 80
    assert len(lines) == 6
    assert lines[1].split()[0] == lines[4].split()[0] == "a" * 23 + "…"
    assert lines[2].startswith("b\\x1b ")
    assert sum(line.count("0.500█") for line in lines) == 12


def test_a_long_head_keeps_its_space_and_lines_stay_in_their_column() -> None:
    assert line("test", "x") == "test      x"
    assert line("validation", "x") == "validation x"
    assert line("a", "x\ny").split("\n")[1] == " " * HEAD_WIDTH + "y"


# The card


def card_of(run: Path) -> tuple[dict[str, Any], str]:
    """Return front matter and body of a run's card."""
    text = (run / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return dict(YAML(typ="safe", pure=True).load(front)), body


def test_the_card_tells_scores_data_command_and_definitions(trained: Path, results: dict[str, Any]) -> None:
    front, body = card_of(trained)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert {"finetune", "bert_classification"} <= set(front["tags"])
    for name, score in results["scores"]["test"].items():
        assert f"| {name} | {interval(score)} |" in body
        assert f"- {name}: {results['definitions'][name]}" in body
    environment = json.loads((trained / "environment.json").read_text())
    assert len(environment["data_sha256"]) == 3
    for digest in environment["data_sha256"].values():
        assert digest in body
    assert f"Command: `{environment['command']}`, seed 1, on " in body
    assert verdict_text(results).split("\n")[0] in body
    assert results["baseline"]["name"] in body
    assert (trained / "README.md").read_text() == (trained / "model" / "README.md").read_text()


class Tags(html.parser.HTMLParser):
    """Collects the tags of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.found.append(tag)


ODD = [
    "a|b",
    "one ` tick <b>",
    "<script>alert(1)</script>",
    "`code`",
    "*bold* _it_",
    "[x](http://evil)",
    "# head",
    "---",
    "tab\tand \\",
]


def test_odd_labels_texts_and_names_do_not_break_card_or_terminal(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a|b <i>`c`"
    folder.mkdir()
    texts = [(identity, f"\x1b[31m{text}") for identity, text, _ in toy_rows(48)]
    rows = [(*row, ODD[number % len(ODD)]) for number, row in enumerate(texts)]
    train, test = write_csv(folder / "train.csv", rows), write_csv(folder / "test.csv", rows[:24])
    output = f"output_dir={tmp_path / 'run'}"
    outcome = done(
        "train", "bert_classification", f"data.train={train}", f"data.test={test}", f"model={tiny_model}", output,
        "max_length=32", "num_train_epochs=1",
    )  # fmt: skip
    assert "verdict" in outcome.out
    assert "\x1b" not in outcome.out
    _, body = card_of(tmp_path / "run")
    tables = [row for row in body.splitlines() if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in tables} == {5}
    assert [row for row in body.splitlines() if row.startswith("# ")] == ["# BERT: classification"]
    assert body.count("\n---") == 0
    tags = Tags()
    tags.feed(outside_code(body))
    assert tags.found == []
    assert "](http" not in outside_code(body)
    for label in ODD:
        assert " ".join(label.split()) in body


def outside_code(markdown: str) -> str:
    """Return Markdown without its code spans: a run of backticks closes only with an equal run (CommonMark 6.1)."""
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", markdown, flags=re.DOTALL)


def test_the_hardest_pair_stands_as_code_on_the_card(results: dict[str, Any], trained: Path) -> None:
    results["diagnostics"]["most_confused"] = {"labels": ["<img src=x>", "a`b"], "rows": 3}
    environment = json.loads((trained / "environment.json").read_text())
    card = model_card(results, {}, environment)
    assert "The hardest pair: `<img src=x>` / `` a`b ``." in card
    assert "<img" not in outside_code(card)


def test_no_secret_reaches_a_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder = tmp_path / SECRET  # whoever puts a token into a command
    folder.mkdir()
    run = train_toy(folder, tiny_model, output="run")
    for name in ("train.log", "README.md", "model/README.md", "metrics.jsonl", "results.json"):
        assert SECRET not in (run / name).read_text(encoding="utf-8"), name
    environment = json.loads((run / "environment.json").read_text())
    assert "hf_***" in environment["command"]
    assert SECRET not in environment["command"]
    assert call("doctor", "--json").out.count(SECRET) == 0


def test_a_card_without_a_baseline_has_no_verdict(results: dict[str, Any], trained: Path) -> None:
    for key in ("baseline", "baselines", "comparison"):
        del results[key]
    environment = json.loads((trained / "environment.json").read_text())
    card = model_card(results, {"model": "google-bert/bert-base-uncased"}, environment)
    assert "base_model: google-bert/bert-base-uncased" in card
    assert "better than" not in card
    assert f"| accuracy | {interval(results['scores']['test']['accuracy'])} |" in card


# Licences


FRONTS = [
    ("license: mit", {"license": "mit"}, "`mit`"),
    ("license: [mit, apache-2.0]", {"license": ["mit", "apache-2.0"]}, "`mit, apache-2.0`"),
    (
        "license: other\nlicense_name: house\nlicense_link: https://example.org/house",
        {"license": "other", "license_name": "house", "license_link": "https://example.org/house"},
        "`house (https://example.org/house)`",
    ),
    ("language: en", {}, "`not known to this run`"),
    ("license: [mit", {}, "`not known to this run`"),
]


@pytest.mark.parametrize(("front", "metadata", "told"), FRONTS)
def test_the_licence_of_the_base_model_is_what_its_card_says(
    results: dict[str, Any], trained: Path, tmp_path: Path, front: str, metadata: dict[str, Any], told: str
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    text = model_card(results, {"model": str(tmp_path)}, place_of(trained))
    found = ModelCard(text).data.to_dict()
    assert {name: value for name, value in found.items() if name.startswith("license")} == metadata
    assert f"Two licences hold: that of the base model ({told}), that of the data (`not known to this run`)." in text
    assert "base_model" not in found  # a folder of this machine is none that the Hub accepts


def test_what_comes_with_the_project_and_what_has_no_base_have_their_licences(
    results: dict[str, Any], trained: Path
) -> None:
    for name in ("mini-mbert", "mini-gpt2", "minilm"):
        assert ModelCard(model_card(results, {"model": name}, place_of(trained))).data.get("license") == "apache-2.0"
    own = place_of(trained) | {"data_sha256": {str(ROOT / "data" / "tickets" / "en.train.csv"): "0"}}
    text = model_card(results, {"model": None}, own)
    assert "(`none: made from the data alone`), that of the data (`apache-2.0 (came with finetune)`)" in text
    assert ModelCard(text).data.get("license") is None
    two = {"architecture": "bert2gpt", "encoder": "mini-mbert", "decoder": "org/unknown", "model": None}
    text = model_card(results, two, own)
    assert "(`mini-mbert: apache-2.0 · org/unknown: not known to this run`)" in text
    assert ModelCard(text).data.get("license") is None
    assert ModelCard(model_card(results, {"model": "org/base@v1"}, own)).data.get("base_model") == "org/base"


def place_of(run: Path) -> dict[str, Any]:
    """Return environment.json of a run."""
    return dict(json.loads((run / "environment.json").read_text(encoding="utf-8")))
