"""Label budgets: which are measured, what the curves hold, where they cross, and the command that draws them."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from calling import FAST, call, done, private_cache, toy_files

from finetune import evaluation
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions
from finetune.label_budget import Contender, Plan, crossing, measure, plan
from finetune.report.budget import budget_lines, draw_budget

LABELS = [["a"]] * 30 + [["b"]] * 18
SVG = "{http://www.w3.org/2000/svg}"


def test_budgets_rise_and_those_that_train_cannot_fill_are_left_out_with_the_reason() -> None:
    found = plan([100, 10, 1, 30], LABELS)
    assert found.budgets == (10, 30)
    assert found.left_out == {1: "train has 2 labels, which need a row each", 100: "train has 48 rows"}


@pytest.mark.parametrize(
    ("budgets", "message"),
    [([10, 30, 10], "a budget is given twice"), ([1, 49], "train has 48 rows and 2 labels; give budgets from 2 to 48")],
)
def test_budgets_without_sense_are_refused(budgets: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan(budgets, LABELS)
    assert caught.value.code == Exit.USAGE


# Crossing


def compared(*found: tuple[int, float, str]) -> list[dict[str, Any]]:
    verdicts = {"+": "better", "-": "worse", "0": "no difference shown"}
    return [{"rows": rows, "difference": value, "verdict": verdicts[sign]} for rows, value, sign in found]


CROSSINGS = {
    "overtakes": (
        compared((10, -0.1, "-"), (30, -0.05, "0"), (100, 0.1, "+"), (300, 0.2, "+")), 100,
        30 * (100 / 30) ** (1 / 3), "BERT overtakes TF-IDF from 100 rows; the curves cross near 45 rows",
    ),
    "shown later than it crosses": (
        compared((10, -0.1, "-"), (100, 0.1, "0"), (1000, 0.3, "+")), 1000,
        10**1.5, "BERT overtakes TF-IDF from 1,000 rows; the curves cross near 32 rows",
    ),
    "ahead from the first": (
        compared((10, 0.1, "+"), (30, 0.2, "+")), 10,
        None, "BERT is better than TF-IDF from the first budget, 10 rows",
    ),
    "ahead, and shown later": (
        compared((10, 0.1, "0"), (30, 0.2, "+")), 30, None, "BERT overtakes TF-IDF from 30 rows",
    ),
    "never": (
        compared((10, -0.1, "-"), (1000, -0.2, "-")), None,
        None, "BERT is never shown to be better than TF-IDF within 1,000 rows",
    ),
    "crosses, and is never shown": (
        compared((10, -0.1, "-"), (1000, 0.1, "0")), None,
        100, "BERT is never shown to be better than TF-IDF within 1,000 rows; the curves cross near 100 rows",
    ),
    "ahead, then behind": (
        compared((10, 0.1, "+"), (30, -0.1, "-")), None,
        None, "BERT is never shown to be better than TF-IDF within 30 rows",
    ),
    "a gap in the row of verdicts": (
        compared((10, 0.1, "+"), (30, 0.0, "0"), (100, 0.1, "+")), 100,
        30, "BERT overtakes TF-IDF from 100 rows; the curves cross near 30 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CROSSINGS)
def test_the_crossing_is_the_last_one_and_the_verdict_holds_for_every_larger_budget(name: str) -> None:
    comparisons, better_from, point, sentence = CROSSINGS[name]
    found = crossing(comparisons, "BERT", "TF-IDF")
    assert found["better_from"] == better_from
    assert found["point"] == (point if point is None else pytest.approx(point))
    assert found["sentence"] == sentence


# Measuring


def answers(share: float, seed: int) -> Predictions:
    """Return predictions of which about `share` are right."""
    gold = np.random.default_rng(0).integers(0, 2, 400)
    right = np.random.default_rng(seed).random(400) < share
    predicted = np.where(right, gold, 1 - gold)
    probabilities = np.full((400, 2), 0.3)
    probabilities[np.arange(400), predicted] = 0.7
    return Predictions([str(i) for i in range(400)], gold, predicted, probabilities, ("a", "b"))


SHARES = {"BERT": {10: 0.5, 100: 0.7, 1000: 0.9}, "TF-IDF": {10: 0.65, 100: 0.68, 1000: 0.75}}
SEEDS = [3, 5]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    asked: list[tuple[str, int, int]] = []

    def contender(name: str) -> Contender:
        def train(rows: int, seed: int) -> Predictions:
            asked.append((name, rows, seed))
            return answers(SHARES[name][rows], seed + rows + len(name))

        return Contender(name, train)

    planned = Plan((10, 100, 1000), {3000: "train has 1,839 rows"})
    found = measure(planned, SEEDS, contender("BERT"), contender("TF-IDF"))
    assert sorted(asked) == sorted((name, rows, seed) for name in SHARES for rows in SHARES[name] for seed in SEEDS)
    return found


def test_a_point_of_a_curve_is_the_mean_of_its_seeds_with_interval_and_spread(measured: dict[str, Any]) -> None:
    for name, points in measured["curves"].items():
        assert [point["rows"] for point in points] == [10, 100, 1000]
        for point in points:
            parts = [answers(SHARES[name][point["rows"]], seed + point["rows"] + len(name)) for seed in SEEDS]
            by_seed = {str(seed): part.right.mean() for seed, part in zip(SEEDS, parts, strict=True)}
            assert point["by_seed"] == pytest.approx(by_seed)
            assert point["accuracy"]["value"] == pytest.approx(np.mean(list(by_seed.values())))
            assert point["accuracy"]["sd"] == pytest.approx(np.std(list(by_seed.values()), ddof=1))
            assert point["accuracy"]["low"] < point["accuracy"]["value"] < point["accuracy"]["high"]
            assert set(point) == {"rows", "accuracy", "macro_f1", "by_seed"}
    json.dumps(measured, allow_nan=False)


def test_budgets_are_compared_pairwise_with_intervals_widened_for_their_number(measured: dict[str, Any]) -> None:
    verdicts = [one["verdict"] for one in measured["comparisons"]]
    assert verdicts == ["worse", "no difference shown", "better"]
    first = measured["comparisons"][0]
    parts = {name: [answers(SHARES[name][10], seed + 10 + len(name)) for seed in SEEDS] for name in SHARES}
    alone = evaluation.compare(parts["BERT"], parts["TF-IDF"])
    assert first["difference"] == alone["difference"]
    assert first["low"] < alone["low"]
    assert measured["crossing"]["better_from"] == 1000
    assert 10 < measured["crossing"]["point"] < 100
    assert measured["left_out"] == {"3000": "train has 1,839 rows"}


def test_the_terminal_has_a_table_within_eighty_columns(measured: dict[str, Any]) -> None:
    lines = "\n".join(budget_lines(measured)).split("\n")
    assert lines[0] == "budget    rows          10     100   1,000"
    assert lines[1].startswith("          BERT       0.")
    assert lines[3].strip().startswith("BERT overtakes TF-IDF from 1,000 rows; the curves cross near")
    assert max(map(len, lines)) <= 80


def test_the_picture_has_both_curves_and_their_figures_in_words(measured: dict[str, Any], tmp_path: Path) -> None:
    draw_budget(measured, tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    texts = {"".join(node.itertext()) for node in root.iter(f"{SVG}text")}
    assert {"BERT", "TF-IDF", "accuracy", "10", "100", "1000"} <= texts
    assert "BERT: 10 rows 0." in root.findtext(f"{SVG}desc", "")
    assert "never" not in root.findtext(f"{SVG}title", "")


# The command


BUDGETS = "label_budget=[6,24,500]"


def train(folder: Path, model: Path, *settings: str) -> Any:
    files = [*toy_files(folder), f"model={model}", f"output_dir={folder / 'run'}", *FAST]
    return done("train", "bert_classification", *files, BUDGETS, "seeds=[1,2]", *settings, "--json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run with label budgets and two seeds."""
    folder = tmp_path_factory.mktemp("budget")
    with private_cache(folder):
        outcome = train(folder, tiny_model)
    assert "500 rows are left out: train has 48 rows" in outcome.err
    assert "6, 24 rows: 4 more trainings" in outcome.err
    return folder / "run"


def budget_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())["diagnostics"]["budget"]
    return found


def cells(run: Path) -> dict[str, int]:
    """Return the trainings of a run's budgets, with the time when each was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(run.glob("budget/*/results.json"))}


def test_the_command_measures_each_budget_with_each_seed_beside_the_run_itself(run: Path) -> None:
    found = budget_of(run)
    assert [point["rows"] for point in found["curves"]["BERT"]] == [6, 24]
    assert set(found["curves"]) == {"BERT", "TF-IDF"}
    assert set(found["curves"]["TF-IDF"][0]["by_seed"]) == {"1", "2"}
    assert list(cells(run)) == ["24-rows-seed-1", "24-rows-seed-2", "6-rows-seed-1", "6-rows-seed-2"]
    assert (run / "pictures" / "label_budget.svg").is_file()
    card = (run / "README.md").read_text()
    assert "## How many labels it needs" in card
    assert found["crossing"]["sentence"] in card
    assert {"scores", "comparison", "seeds"} <= json.loads((run / "results.json").read_text()).keys()


def test_a_training_on_a_budget_uses_no_label_beyond_it_and_leaves_no_weights(run: Path) -> None:
    for folder in (run / "budget").iterdir():
        config = (folder / "config.yaml").read_text()
        rows = folder.name.split("-")[0]
        assert f"train_rows: {rows}" in config
        assert "load_best_model_at_end: false" in config
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert sum("validation" in record for record in metrics) == 1  # once, at the end
        assert json.loads((folder / "results.json").read_text())["diagnostics"]["rows"]["train"] == int(rows)
        assert not (folder / "model").exists()
        assert not (folder / "checkpoints").exists()


def test_resume_trains_only_what_had_not_ended(run: Path, tiny_model: Path) -> None:
    before, found = cells(run), budget_of(run)
    (run / "budget" / "6-rows-seed-2" / "results.json").unlink()
    (run / "results.json").unlink()
    with private_cache(run.parent):
        train(run.parent, tiny_model, "--resume")
    after = cells(run)
    assert [name for name in before if before[name] != after[name]] == ["6-rows-seed-2"]
    assert budget_of(run) == found


@pytest.mark.parametrize("setting", ["label_budget=[2,500]", "label_budget=[6,6]", "data.train_rows=2"])
def test_a_budget_that_cannot_be_is_refused_before_there_is_a_folder(
    setting: str, tiny_model: Path, tmp_path: Path
) -> None:
    outcome = call(
        "train", "bert_classification", *toy_files(tmp_path), f"model={tiny_model}", f"output_dir={tmp_path / 'run'}",
        *FAST, setting,
    )  # fmt: skip
    assert outcome.code == Exit.USAGE
    assert setting.partition("=")[0] in outcome.err
    assert not (tmp_path / "run").exists()
