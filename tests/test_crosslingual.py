"""The matrix of training sets and languages: its rows, what a cell says, and what follows from the cells."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import write_csv

from finetune import crosslingual, evaluation
from finetune.crosslingual import Cell, Plan, Row, Trained, Wanted
from finetune.data.columns import DataConfig
from finetune.data.patterns import Corpus, join, read_languages
from finetune.errors import Exit, Interrupted, UserError
from finetune.evaluation import Predictions
from finetune.report import languages
from finetune.report.matrix import table_lines, verdict_lines
from finetune.run import Run

LABELS = ("a", "b")
GOLD = [0, 1, 0, 1, 0, 1, 0, 1]


def said(predicted: Sequence[int], gold: Sequence[int] = GOLD, ids: Sequence[str] | None = None) -> Predictions:
    """Return predictions of two labels, sure of themselves."""
    decided = np.array(predicted)
    names = [f"r{row}" for row in range(len(predicted))] if ids is None else list(ids)
    return Predictions(names, np.array(gold), decided, np.eye(2)[decided] * 0.8 + 0.1, LABELS)


RIGHT = said(GOLD)
HALF = said([0, 1, 0, 1, 1, 0, 1, 0])  # the last four are wrong
MOSTLY = said([0, 1, 0, 1, 0, 1, 1, 1])


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Return the training language en, and the test languages it and de with a training file and fr without."""
    for language in ("en", "it", "de", "fr"):
        rows = [(f"{row}", f"{language} text {row}", "ab"[row % 2]) for row in range(20)]
        for kind in ("train", "validation", "test"):
            if kind == "test" or language != "fr":
                write_csv(tmp_path / f"{language}.{kind}.csv", rows)
    files = {kind: f"{tmp_path}/{{language}}.{kind}.csv" for kind in ("train", "validation", "test")}
    config = DataConfig(train=files["train"], validation=files["validation"], test=files["test"])
    return read_languages(config, ["en"], ["en", "it", "de", "fr"], seed=1)


# Rows


def planned(corpus: Corpus, wanted: Wanted) -> dict[str, Row]:
    plan = crosslingual.plan(corpus, wanted, seed=1)
    return {row.folder: row for row in (plan.source, *plan.others)}


def test_by_default_the_training_languages_are_the_only_row(corpus: Corpus) -> None:
    rows = planned(corpus, Wanted())
    assert list(rows) == ["en"]
    assert rows["en"].columns == ("en", "it", "de", "fr")
    assert rows["en"].train.texts() == corpus.train["en"].texts()


def test_the_oracle_is_each_test_language_with_a_training_file_alone(corpus: Corpus) -> None:
    rows = planned(corpus, Wanted(oracle=True))
    assert list(rows) == ["en", "it", "de"]
    assert rows["it"].train.texts() == corpus.train["it"].texts()
    assert rows["it"].validation.texts() == corpus.validation["it"].texts()


def test_the_full_matrix_has_each_language_alone_and_all_together_each_once(corpus: Corpus) -> None:
    rows = planned(corpus, Wanted("full"))
    assert list(rows) == ["en", "it", "de", "en+it+de"]
    assert [row.name for row in crosslingual.plan(corpus, Wanted("full"), seed=1).others] == list(rows)[1:]
    assert len(rows["en+it+de"].train) == 60
    both = dataclasses.replace(corpus, sources=("en", "it"))
    assert list(planned(both, Wanted("full"))) == ["en+it", "en", "it", "de", "en+it+de"]
    whole = dataclasses.replace(corpus, sources=("en", "it", "de"))
    assert list(planned(whole, Wanted("full"))) == ["en+it+de", "en", "it", "de"]


def test_few_shot_rows_add_balanced_rows_of_one_language_and_fill_its_column_alone(corpus: Corpus) -> None:
    rows = planned(corpus, Wanted(few_shot=[4, 8]))
    assert list(rows) == ["en", "en+4.it", "en+4.de", "en+8.it", "en+8.de"]
    row = rows["en+4.it"]
    assert (row.name, row.columns, len(row.train)) == ("en+4", ("it",), 24)
    added, more = (
        [text for text in rows[name].train.texts() if text.startswith("it")] for name in ("en+4.it", "en+8.it")
    )
    assert set(added) < set(more)
    assert sorted(int(text.split()[-1]) % 2 for text in added) == [0, 0, 1, 1]
    assert row.validation.texts() == corpus.validation["en"].texts()  # no label of it is used up unseen
    other = crosslingual.plan(corpus, Wanted(few_shot=[4]), seed=2).others[0]
    assert other.train.texts() != row.train.texts()


def test_rows_that_no_language_has_a_file_for_are_missing_input(corpus: Corpus) -> None:
    alone = dataclasses.replace(corpus, train={"en": corpus.train["en"]})
    for wanted in (Wanted(oracle=True), Wanted(few_shot=[4])):
        with pytest.raises(UserError, match=r"(oracle=true|few_shot=\[4\]): no test language beside en") as caught:
            crosslingual.plan(alone, wanted, seed=1)
        assert caught.value.code == Exit.NO_INPUT
    assert list(planned(alone, Wanted("full"))) == ["en"]
    with pytest.raises(UserError, match=r"few_shot=21: .*it\.train\.csv has 20 rows") as caught:
        crosslingual.plan(corpus, Wanted(few_shot=[21]), seed=1)
    assert caught.value.code == Exit.USAGE


def test_a_line_says_which_oracles_are_left_out_and_how_to_get_them(corpus: Corpus) -> None:
    def left_out(plan: Plan) -> str | None:
        return plan.left_out

    assert left_out(crosslingual.plan(corpus, Wanted(), 1)) == (
        "left out; oracle=true trains it on it, de, matrix=full every row"
    )
    for wanted in (Wanted("full"), Wanted(oracle=True)):
        assert left_out(crosslingual.plan(corpus, wanted, 1)) == "left out for fr: no training file (data.train)"
    none = dataclasses.replace(corpus, tests=("en", "it"))
    assert left_out(crosslingual.plan(none, Wanted("full"), 1)) is None
    assert left_out(crosslingual.plan(dataclasses.replace(corpus, tests=("en",)), Wanted(), 1)) is None


def trained(part: Run, row: Row) -> Trained:
    part.start({}, {"data_sha256": {}})
    (part.checkpoints / "step-1").mkdir(parents=True)
    part.updated = True
    return Trained(RIGHT, dict.fromkeys(row.columns, HALF), {"train": 1.0, "evaluate": 0.1}, {})


def test_each_row_is_trained_in_a_folder_of_its_own_and_read_back(corpus: Corpus, tmp_path: Path) -> None:
    plan = crosslingual.plan(corpus, Wanted(oracle=True, few_shot=[4]), seed=1)
    with Run(tmp_path / "run", quiet=True) as run:
        run.start({}, {"data_sha256": {}})
        found = crosslingual.train_rows(run, plan.others, trained)
    assert run.updated
    assert list(found) == ["it", "de", "en+4.it", "en+4.de"]
    assert found["it"]["rows"] == {"train": 20, "validation": 20}
    assert not list((tmp_path / "run").rglob("step-1"))
    cells = crosslingual.stored_cells(run, found, LABELS)
    assert {row: list(columns) for row, columns in cells.items()} == {
        "it": list(corpus.tests), "de": list(corpus.tests), "en+4": ["it", "de"],
    }  # fmt: skip
    assert evaluation.values(cells["en+4"]["de"]) == pytest.approx(evaluation.values(HALF))
    stored = json.loads((tmp_path / "run/rows/it/predictions/test.fr.jsonl").read_text().splitlines()[0])
    assert set(stored) == {"id", "gold", "predicted", "probabilities"}


def test_a_row_that_ended_is_kept_on_resume_and_a_stopped_one_is_trained_again(corpus: Corpus, tmp_path: Path) -> None:
    rows = crosslingual.plan(corpus, Wanted(oracle=True), seed=1).others
    called: list[str] = []

    def stop_at_de(part: Run, row: Row) -> Trained:
        called.append(row.folder)
        found = trained(part, row)
        if row.folder == "de" and len(called) == 2:
            raise Interrupted(Exit.INTERRUPTED, "stopped")
        return found

    with Run(tmp_path / "run", quiet=True) as run:
        run.start({}, {"data_sha256": {}})
        with pytest.raises(Interrupted):
            crosslingual.train_rows(run, rows, stop_at_de)
    with Run(tmp_path / "run", quiet=True, resume=True) as run:
        run.start({}, {"data_sha256": {}})
        (run.row_folder("de") / "checkpoints").rename(tmp_path / "seen")  # it was kept for the second try
        found = crosslingual.train_rows(run, rows, stop_at_de)
    assert called == ["it", "de", "de"]
    assert list(found) == ["it", "de"]


# Cells


def test_languages_scored_together_are_cut_apart_and_put_together_again(corpus: Corpus) -> None:
    tests = {language: corpus.test[language] for language in ("it", "fr")}
    together = join("test", tests)
    predicted = np.arange(40) % 3 % 2
    all_of_them = Predictions(together.ids(), corpus.labels.encode(together), predicted, np.eye(2)[predicted], LABELS)
    cells = crosslingual.by_language(all_of_them, tests)
    assert list(cells) == ["it", "fr"]
    assert cells["fr"].ids == corpus.test["fr"].ids()
    assert np.array_equal(cells["fr"].predicted, predicted[20:])
    again = crosslingual.put_together(cells, together)
    assert again.ids == all_of_them.ids
    assert np.array_equal(again.probabilities, all_of_them.probabilities)


def test_every_cell_is_scored_and_the_gap_is_the_oracle_minus_the_source() -> None:
    matrix: dict[str, dict[str, Cell]] = {"en": {"en": [RIGHT], "it": [HALF]}, "it": {"en": [HALF], "it": [MOSTLY]}}
    scores = crosslingual.score_matrix(matrix)
    assert scores["en"]["it"]["accuracy"]["value"] == 0.5
    assert scores["it"]["it"]["accuracy"]["value"] == 7 / 8
    gaps = crosslingual.gaps(matrix, "en")
    assert list(gaps) == ["it"]
    assert gaps["it"]["difference"] == pytest.approx(7 / 8 - 0.5)
    assert crosslingual.gaps({"en": matrix["en"], "en+4": {"it": [MOSTLY]}}, "en") == {}


def test_the_same_rows_in_two_languages_are_parallel_whatever_their_order() -> None:
    backwards = said(MOSTLY.predicted[::-1].tolist(), GOLD[::-1], MOSTLY.ids[::-1])
    cells = {"en": [RIGHT], "it": [backwards], "de": [said([0] * 8, ids=[f"x{row}" for row in range(8)])]}
    none = dict.fromkeys(cells, False)
    assert crosslingual.parallel_languages(cells, none) == [["en", "it"]]
    assert crosslingual.parallel_languages(cells, {**none, "it": True}) == []  # row numbers are no ids
    relabelled = {**cells, "it": [said([0] * 8, [1, *GOLD[1:]])]}
    assert crosslingual.parallel_languages(relabelled, none) == []
    assert crosslingual.parallel_languages({**cells, "it": [said(GOLD[:7], GOLD[:7])]}, none) == []
    two_sets = {**cells, "es": cells["de"]}
    assert crosslingual.parallel_languages(two_sets, dict.fromkeys(two_sets, False)) == [["en", "it"], ["de", "es"]]


def test_consistency_is_the_share_of_rows_with_the_same_prediction_right_or_wrong() -> None:
    both_wrong = said([1, 1, 0, 1, 1, 0, 1, 0])
    backwards = said(both_wrong.predicted[::-1].tolist(), GOLD[::-1], both_wrong.ids[::-1])
    cells = {"en": [HALF], "it": [backwards], "de": [said([0] * 4, GOLD[:4])]}
    found = crosslingual.consistency(cells, dict.fromkeys(cells, False), "en")
    assert list(found) == ["it"]
    assert found["it"]["value"] == 7 / 8
    assert found["it"]["low"] < 7 / 8 < found["it"]["high"]
    assert crosslingual.consistency(cells, dict.fromkeys(cells, False), "fr") == {}
    same = crosslingual.consistency({"en": [HALF], "it": [HALF]}, {"en": False, "it": False}, "en")["it"]
    assert same["value"] == 1
    assert same["low"] < 0.7  # eight rows do not show more (Wilson)
    seeds = {"en": [HALF, RIGHT], "it": [HALF, HALF]}
    assert crosslingual.consistency(seeds, {"en": False, "it": False}, "en")["it"]["value"] == 0.75


def test_a_row_of_several_labels_is_consistent_where_the_whole_set_is() -> None:
    gold = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    other = gold.copy()
    other[1, 1] = 0
    one, two = (Predictions(list("wxyz"), gold, said, said * 0.9, LABELS, True) for said in (gold, other))
    found = crosslingual.consistency({"en": [one], "it": [two]}, {"en": False, "it": False}, "en")
    assert found["it"]["value"] == 0.75


def averaged(cells: dict[str, Cell], groups: dict[str, list[str]], parallel: list[list[str]]) -> dict[str, Any]:
    scores = crosslingual.score_matrix({"en": cells})["en"]
    return crosslingual.averages(cells, scores, groups, parallel)


def test_an_average_over_languages_leaves_the_training_languages_in_and_out() -> None:
    cells: dict[str, Cell] = {"en": [RIGHT], "it": [HALF], "de": [MOSTLY]}
    groups = crosslingual.language_groups(list(cells), ["en"])
    found = averaged(cells, groups, [])
    assert found["all"]["accuracy"]["value"] == pytest.approx((1 + 0.5 + 7 / 8) / 3)
    assert found["without_training"]["accuracy"]["value"] == pytest.approx((0.5 + 7 / 8) / 2)
    f1 = [evaluation.values(cells[language][0])["macro_f1"] for language in ("it", "de")]
    assert found["without_training"]["macro_f1"]["value"] == pytest.approx(np.mean(f1))
    assert crosslingual.language_groups(["it", "de"], ["en"]) == {"all": ["it", "de"]}
    assert crosslingual.language_groups(["en"], ["en"]) == {"all": ["en"]}
    assert list(averaged({"it": [HALF], "de": [MOSTLY]}, groups, [])) == ["without_training"]


def test_parallel_rows_do_not_count_as_more_rows_and_independent_ones_do() -> None:
    random = np.random.default_rng(1)
    gold = np.arange(400) % 2
    one = said(np.where(random.random(400) < 0.7, gold, 1 - gold).tolist(), gold.tolist())
    cells: dict[str, Cell] = {language: [one] for language in ("en", "it", "de", "es")}
    groups = {"all": list(cells)}
    alone = evaluation.score(one)["accuracy"]
    widths = {
        name: found["all"]["accuracy"]["high"] - found["all"]["accuracy"]["low"]
        for name, found in (
            ("parallel", averaged(cells, groups, [list(cells)])),
            ("independent", averaged(cells, groups, [])),
            ("three of four", averaged(cells, groups, [["en", "de", "es"]])),
            ("two and two", averaged(cells, groups, [["en", "de"], ["it", "es"]])),
        )
    }
    assert widths["parallel"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)
    assert widths["independent"] == pytest.approx((alone["high"] - alone["low"]) / 2, rel=0.1)
    assert widths["two and two"] == pytest.approx((alone["high"] - alone["low"]) * 8**0.5 / 4, rel=0.1)
    assert widths["three of four"] == pytest.approx((alone["high"] - alone["low"]) * 10**0.5 / 4, rel=0.1)


def test_the_average_of_one_language_is_its_own_cell() -> None:
    cells: dict[str, Cell] = {"en": [RIGHT], "it": [RIGHT]}
    groups = crosslingual.language_groups(list(cells), ["en"])
    found = averaged(cells, groups, [["en", "it"]])["without_training"]["accuracy"]
    alone = evaluation.score(RIGHT)["accuracy"]
    assert found == pytest.approx({name: alone[name] for name in ("value", "low", "high")})
    assert found["low"] < 0.7  # not the bootstrap's, which has no width at a perfect score


def test_each_two_parallel_languages_are_compared_on_their_common_rows() -> None:
    cells = {"en": [RIGHT], "it": [HALF], "de": [MOSTLY]}
    found = crosslingual.between_languages(cells, [["en", "it", "de"]])
    assert [one["languages"] for one in found] == [["en", "it"], ["en", "de"], ["it", "de"]]
    assert [one["difference"] for one in found] == pytest.approx([0.5, 1 / 8, -3 / 8])
    assert found[0]["p_value"] == pytest.approx(2 * 0.5**4)
    assert crosslingual.between_languages(cells, []) == []
    apart = crosslingual.between_languages({**cells, "es": [HALF]}, [["en", "it"], ["de", "es"]])
    assert [one["languages"] for one in apart] == [["en", "it"], ["de", "es"]]


def test_each_language_is_compared_with_the_baseline_in_the_same_language() -> None:
    told = {"numbered_ids": {"en": False, "it": False}, "languages": {"figures": {"en": {}, "it": {}}}}
    found: dict[str, Any] = {"diagnostics": told}
    matrix: dict[str, dict[str, Cell]] = {"en": {"en": [RIGHT], "it": [HALF]}}
    languages._by_language(found, matrix, ["en"], {"en": HALF, "it": MOSTLY})
    assert [one["difference"] for one in found["comparisons"].values()] == pytest.approx([0.5, 0.5 - 7 / 8])
    assert list(found["diagnostics"]["consistency"]) == ["it"]


def test_verdicts_of_many_languages_are_more_careful_than_one() -> None:
    gold = [0] * 60
    better, worse = said([0] * 60, gold), said([1] * 7 + [0] * 53, gold)
    alone = crosslingual.verdicts({"it": [better]}, {"it": worse})
    names = [f"l{number}" for number in range(8)]
    many = crosslingual.verdicts({name: [better] for name in names}, dict.fromkeys(names, worse))
    assert alone["it"]["verdict"] == "better"
    assert {one["verdict"] for one in many.values()} == {"no difference shown"}
    assert {one["p_value"] for one in many.values()} == {alone["it"]["p_value"]}


# Tables


def test_a_table_is_cut_into_blocks_of_eighty_columns_and_leaves_out_what_a_block_does_not_have() -> None:
    columns = ["en", "it", "de", "es", "fr", "mean"]
    rows = [
        ("BERT, en", dict.fromkeys(columns, "0.952 ± 0.018")),
        ("gap to oracle", {"it": "+15.5"}),
    ]
    lines = table_lines("accuracy", columns, rows)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["accuracy", "en", "it", "de", "es"]
    assert lines[2].split() == ["gap", "to", "oracle", "-", "+15.5", "-", "-"]
    assert [line.split()[0] for line in lines] == ["accuracy", "BERT,", "gap", "accuracy", "BERT,"]


def test_each_language_has_its_verdict_in_a_sentence() -> None:
    found = crosslingual.verdicts({"it": [RIGHT], "de": [HALF]}, {"it": HALF, "de": RIGHT})
    found["it"] |= {"low": 0.1, "verdict": "better", "p_value": 0.0001}
    found["de"] |= {"high": -0.1, "verdict": "worse"}
    lines = verdict_lines(found, "BERT", "trained on en")
    assert lines[0].startswith("verdict   BERT against TF-IDF, both trained on en (accuracy, exact McNemar)\n")
    assert "for 2 verdicts (Holm)" in lines[0]
    assert (
        lines[1].strip() == f"it: better than TF-IDF, +50.0 points [10.0, {100 * found['it']['high']:.1f}], p < 0.001"
    )
    assert lines[2].strip().startswith("de: worse than TF-IDF, -50.0 points [")
    found["de"]["verdict"] = "no difference shown"
    assert "de: no difference from TF-IDF shown, -50.0 points" in verdict_lines(found, "BERT", "trained on en")[2]
    assert max(len(part) for text in lines for part in text.split("\n")) <= 80
