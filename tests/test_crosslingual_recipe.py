"""The recipe mbert_crosslingual from files to run folder, and the commands that use such a run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calling import FAST, call, done, private_cache, read_jsonl, sections_of, sha256, tree, write_csv
from conftest import TOPICS, toy_rows
from safetensors.torch import load_file

from finetune import crosslingual
from finetune.errors import Exit, Interrupted
from finetune.trainer import Trainer
from recipes import mbert_crosslingual as recipe

SIZES = {"train": (48, 0), "validation": (24, 1), "test": (24, 2)}
LANGUAGES = "test_languages=[en,it,de]"
COMPARISON = {"metric", "difference", "low", "high", "p_value", "verdict"}


def in_language(language: str, text: str) -> str:
    """Return a text as a made-up language has it: some words keep their letters in another order."""
    words = text.split()
    turned = {"en": words, "it": [w[::-1] if len(w) > 5 else w for w in words], "de": [w[::-1] for w in words]}
    return " ".join(turned[language])


def files_in(folder: Path, *kinds: str) -> list[str]:
    """Write toy rows in three languages, their training files as `kinds` say, and return the patterns as settings."""
    folder.mkdir(exist_ok=True)
    for language in ("en", "it", "de"):
        for kind, (count, seed) in SIZES.items():
            if language == "en" or kind == "test" or f"{language}.{kind}" in kinds:
                rows = [(name, in_language(language, text), label) for name, text, label in toy_rows(count, seed)]
                write_csv(folder / f"{language}.{kind}.csv", rows)
    return [f"data.{kind}={folder}/{{language}}.{kind}.csv" for kind in SIZES]


def train(folder: Path, model: Path, *settings: object, files: list[str] | None = None) -> Path:
    files = files_in(folder) if files is None else files
    arguments = [*files, LANGUAGES, f"model={model}", f"output_dir={folder / 'run'}", *FAST, *settings]
    done("train", "mbert_crosslingual", *arguments)
    return folder / "run"


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run of the training language alone; its data stand beside it."""
    folder = tmp_path_factory.mktemp("crosslingual")
    with private_cache(folder):
        return train(folder, tiny_model)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run with every row: en, it alone, both, and en with six Italian rows."""
    folder = tmp_path_factory.mktemp("full")
    with private_cache(folder):
        return train(folder, tiny_model, "matrix=full", "few_shot=[6]", files=files_in(folder, "it.train"))


# The run folder


def test_a_run_has_scores_comparisons_and_predictions_of_each_language(trained: Path) -> None:
    results = results_of(trained)
    assert results["recipe"] == "mbert_crosslingual"
    assert results["task"] == "classification"
    assert list(results["languages"]) == ["en", "it", "de"]
    assert results["matrix"] == {"en": results["languages"]}
    assert results["scores"]["test"] == results["languages"]["en"]
    assert list(results["comparisons"]) == ["en", "it", "de"]
    beside = {one["name"]: one for one in results["baselines"]}
    assert results["baseline"]["name"] in beside
    assert list(beside)[1] == "majority class"
    for language, comparison in results["comparisons"].items():
        assert set(comparison) == COMPARISON
        rows = read_jsonl(trained / "predictions" / f"test.{language}.jsonl")
        assert [row["text"] for row in rows] == [in_language(language, text) for _, text, _ in toy_rows(24, 2)]
        right = np.mean([row["gold"] == row["predicted"] for row in rows])
        cheap = read_jsonl(trained / "predictions" / f"baseline.test.{language}.jsonl")
        cheap_right = np.mean([row["gold"] == row["predicted"] for row in cheap])
        assert results["languages"][language]["accuracy"]["value"] == pytest.approx(right)
        assert next(iter(beside.values()))["languages"][language]["accuracy"]["value"] == pytest.approx(cheap_right)
        assert comparison["difference"] == pytest.approx(right - cheap_right)
    assert (trained / "predictions" / "test.jsonl").read_bytes() == (
        trained / "predictions" / "test.en.jsonl"
    ).read_bytes()
    assert not (trained / "rows").exists()


def test_parallel_test_sets_give_consistency_averages_and_tests_between_languages(trained: Path) -> None:
    told = results_of(trained)["diagnostics"]
    rows = {code: read_jsonl(trained / "predictions" / f"test.{code}.jsonl") for code in ("en", "it", "de")}
    same = np.mean([a["predicted"] == b["predicted"] for a, b in zip(rows["en"], rows["de"], strict=True)])
    assert told["parallel_languages"] == [["en", "it", "de"]]
    assert list(told["consistency"]) == ["it", "de"]
    assert told["consistency"]["de"]["value"] == pytest.approx(same)
    assert [one["languages"] for one in told["between_languages"]] == [["en", "it"], ["en", "de"], ["it", "de"]]
    right = {code: np.mean([row["gold"] == row["predicted"] for row in of]) for code, of in rows.items()}
    average = told["averages"]["en"]["without_training"]["accuracy"]
    assert average["value"] == pytest.approx((right["it"] + right["de"]) / 2)
    assert average["low"] < average["value"] < average["high"]


def test_the_full_matrix_has_a_row_for_each_training_set_and_the_gap_to_the_oracle(full: Path) -> None:
    results = results_of(full)
    assert {row: list(cells) for row, cells in results["matrix"].items()} == {
        "en": ["en", "it", "de"], "it": ["en", "it", "de"], "en+it": ["en", "it", "de"], "en+6": ["it"],
    }  # fmt: skip
    gap = results["diagnostics"]["gap_to_oracle"]
    assert list(gap) == ["it"]
    cells = {row: results["matrix"][row]["it"]["accuracy"]["value"] for row in ("en", "it")}
    assert gap["it"]["difference"] == pytest.approx(cells["it"] - cells["en"])
    assert results["diagnostics"]["oracle"] == "left out for de: no training file (data.train)"
    assert results["diagnostics"]["matrix_rows"]["en+6.it"]["rows"]["train"] == 54
    own = results["baselines"][-1]
    assert own["oracle"]
    assert list(own["languages"]) == ["en", "it"]
    assert sorted(path.name for path in (full / "rows").iterdir()) == ["en+6.it", "en+it", "it"]
    assert not list((full / "rows").rglob("checkpoints"))
    seen = json.loads((full / "environment.json").read_text())["data_sha256"]
    assert f"{full.parent}/it.train.csv" in seen
    assert "num_train_epochs: 2" in (full / "rows/it/config.yaml").read_text()


def test_every_row_is_its_own_training_and_the_first_is_the_model(full: Path, trained: Path) -> None:
    assert sha256(full / "model/model.safetensors") == sha256(trained / "model/model.safetensors")
    matrix = results_of(full)["matrix"]
    losses = {row: round(cells["it"]["loss"]["value"], 6) for row, cells in matrix.items()}
    assert len(set(losses.values())) == len(losses)


def test_the_terminal_and_the_card_show_the_matrix_and_a_verdict_for_each_language(full: Path) -> None:
    outcome = done("train", "--config", full / "config.yaml", f"output_dir={full}", "--resume")
    lines = outcome.out.splitlines()
    table = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("oracle    "))]
    assert max(map(len, table)) <= 80
    heads = [line[:22].rstrip().rsplit("  ", 1)[0].rstrip() for line in table]
    for head in ("accuracy", "BERT, en", "BERT, it", "BERT, en+it", "BERT, en+6", "TF-IDF, en", "TF-IDF, own language"):
        assert head in heads, heads
    for head in ("oracle, own language", "gap to oracle", "consistency with en"):
        assert head in heads, heads
    assert "(en)" in lines[0]
    assert table[0].split() == ["accuracy", "en", "it", "de"]
    drawn = table[1 : table.index("")]  # the heat map, before the table
    assert len(drawn) == len(json.loads((full / "results.json").read_text())["matrix"])
    assert any("█" in row for row in drawn)
    assert "oracle    left out for de: no training file (data.train)" in lines
    for language in ("en", "it", "de"):
        assert any(line.strip().startswith(f"{language}: ") and "TF-IDF" in line for line in lines)
    card = (full / "README.md").read_text()
    assert "## Across languages" in card
    assert "| accuracy | en | it | de | mean | without en |" in card
    assert "| oracle, own language | - |" in card
    assert "- it: " in card
    assert (full / "model" / "README.md").read_text() == card


# Reading and using a run


def test_evaluate_and_predict_read_any_language(trained: Path, tmp_path: Path) -> None:
    stored = results_of(trained)["languages"]["it"]
    found = done("evaluate", trained, "--data", trained.parent / "it.test.csv", "--json").json
    for name, score in stored.items():  # padded beside other texts: the last digits differ
        assert found[name]["value"] == pytest.approx(score["value"], abs=1e-5)
    rows = done("predict", trained, "--input", trained.parent / "de.test.csv", "--json").json
    assert [row["predicted"] for row in rows] == [
        row["predicted"] for row in read_jsonl(trained / "predictions/test.de.jsonl")
    ]
    leaky = write_csv(tmp_path / "leaky.csv", [*toy_rows(5, 0), *toy_rows(24, 2)])
    outcome = done("evaluate", trained, "--data", leaky, "--drop-leaked")
    assert "24 rows, 5 left out (in train)" in outcome.out


def test_the_page_shows_the_matrix_and_a_verdict_for_each_language(full: Path, tmp_path: Path) -> None:
    assert {"scores", "curves", "languages", "confusion", "errors", "made"} <= set(sections_of(full))
    text = (full / "report.html").read_text(encoding="utf-8")
    (told,) = re.findall(r'aria-label="Accuracy by training set and test language: ([^"]+)"', text)
    for row, cells in results_of(full)["matrix"].items():
        for language, scores in cells.items():
            assert f"{language} {scores['accuracy']['value']:.3f}" in told.partition(f"{row}: ")[2].partition(";")[0]
    page = tmp_path / "elsewhere.html"
    done("crosslingual", full, "--data", f"{full.parent}/{{language}}.test.csv", "--languages", "it", "--report", page)
    assert "finetune crosslingual" in page.read_text(encoding="utf-8")


def test_new_languages_are_scored_without_training_beside_the_same_tfidf(trained: Path) -> None:
    results, pattern = results_of(trained), f"{trained.parent}/{{language}}.test.csv"
    before = tree(trained)
    found = done("crosslingual", trained, "--data", pattern, "--languages", "it, de", "--json").json
    assert set(found) == {"languages", "comparisons"}
    assert list(found["languages"]) == ["it", "de"]
    for language, scores in found["languages"].items():
        assert scores["accuracy"] == results["languages"][language]["accuracy"]
        comparison = results["comparisons"][language]
        assert found["comparisons"][language]["difference"] == pytest.approx(comparison["difference"])
    outcome = done("crosslingual", trained, "--data", pattern, "--languages", "it,de")
    same = results["diagnostics"]["consistency"]
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("consistency with en")]
    assert line.split()[-2:] == [f"{same[language]['value']:.2f}" for language in ("it", "de")]
    assert "both trained on en" in outcome.out
    assert list(done("crosslingual", trained, "--data", pattern, "--json").json["languages"]) == ["de", "en", "it"]
    assert tree(trained) == before


def test_a_run_of_another_recipe_and_a_plain_model_folder_are_scored_too(trained: Path, tmp_path: Path) -> None:
    files = [f"data.{kind}={trained.parent}/en.{kind}.csv" for kind in SIZES]
    done("baseline", *files, f"output_dir={tmp_path / 'tfidf'}")
    pattern = f"{trained.parent}/{{language}}.test.csv"
    found = done("crosslingual", tmp_path / "tfidf", "--data", pattern, "--languages", "it", "--json").json
    assert found["comparisons"]["it"]["difference"] == 0
    assert "its training file" in done("crosslingual", tmp_path / "tfidf", "--data", pattern, "--languages", "it").out
    outcome = done("crosslingual", trained / "model", "--data", pattern, "--languages", "it", "--json")
    assert outcome.json["languages"]["it"]["accuracy"] == results_of(trained)["languages"]["it"]["accuracy"]
    assert outcome.json["comparisons"] == {}
    assert "no TF-IDF beside it: the training file is not known" in outcome.err


def test_without_the_training_rows_of_the_run_there_is_no_tfidf_and_a_line_says_why(
    trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.parent, tmp_path / "copy"))
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.parent), str(folder)))
    environment = folder / "run" / "environment.json"
    environment.write_text(environment.read_text().replace(str(trained.parent), str(folder)))
    arguments = ("crosslingual", folder / "run", "--data", f"{folder}/{{language}}.test.csv", "--languages", "it")
    assert "TF-IDF, en" in done(*arguments).out
    write_csv(folder / "en.train.csv", toy_rows(47, 0))
    outcome = done(*arguments, "--json")
    assert "en.train.csv changed since the run" in outcome.err
    assert outcome.json["comparisons"] == {}
    (folder / "en.train.csv").unlink()
    outcome = done(*arguments)
    assert "no TF-IDF beside it: " in outcome.err
    assert "en.train.csv: no such file" in outcome.err
    assert "TF-IDF" not in outcome.out


def test_two_runs_are_compared_in_each_language(trained: Path, full: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = train(
        tmp_path, tiny_model, "train.num_train_epochs=8", "train.learning_rate=1e-2", "seed=2", "baseline=none"
    )
    found = done("compare", other, trained, "--json").json
    assert [(one["runs"], one["language"], one["rows"]) for one in found] == [
        ([str(other), str(trained)], language, 24) for language in ("en", "it", "de")
    ]
    for one in found:
        values = [results_of(run)["languages"][one["language"]]["accuracy"]["value"] for run in (other, trained)]
        assert one["difference"] == pytest.approx(values[0] - values[1])
    shown = done("compare", other, trained).out
    assert " in it: " in shown
    three = done("compare", other, trained, full, "--json").json
    assert len(three) == 9
    alone = done("train", "bert_classification", *en_files(tmp_path), f"model={tiny_model}", *FAST,
                 f"output_dir={tmp_path / 'alone'}")  # fmt: skip
    assert alone.code == 0
    (one,) = done("compare", trained, tmp_path / "alone", "--json").json  # only the training language is common
    assert "language" not in one


def test_runs_without_a_language_in_common_are_not_compared(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = train(tmp_path, tiny_model, "test_languages=[de]", files=files_in(tmp_path, "de.test"))
    copy = shutil.copytree(trained, tmp_path / "copy")
    results = results_of(copy)
    results["languages"] = {"it": results["languages"]["it"]}
    (copy / "results.json").write_text(json.dumps(results))
    outcome = call("compare", copy, other)
    assert outcome.code == Exit.BAD_DATA
    assert "scored in no language that all of them have" in outcome.err
    assert "copy: it;" in outcome.err


def en_files(folder: Path) -> list[str]:
    return [f"data.{kind}={folder}/en.{kind}.csv" for kind in SIZES]


# Seeds, resume, settings


def test_seeds_are_combined_in_languages_matrix_and_comparisons(tiny_model: Path, tmp_path: Path) -> None:
    settings = ["oracle=true", "seeds=[1,2]", "test_languages=[en,it]", "train.learning_rate=1e-2"]
    run = train(tmp_path, tiny_model, *settings, files=files_in(tmp_path, "it.train"))
    results, parts = results_of(run), [results_of(run / f"seed-{seed}") for seed in (1, 2)]
    assert list(results["matrix"]) == ["en", "it"]
    for row, cells in results["matrix"].items():
        for language, scores in cells.items():
            values = [part["matrix"][row][language]["accuracy"]["value"] for part in parts]
            assert scores["accuracy"]["value"] == pytest.approx(np.mean(values))
            assert scores["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert results["languages"] == results["matrix"]["en"]
    cheap = results["baselines"][0]["languages"]  # of the first seed
    for language, comparison in results["comparisons"].items():
        values = [scores[language]["accuracy"]["value"] for scores in (results["languages"], cheap)]
        assert comparison["difference"] == pytest.approx(values[0] - values[1])
    told = results["diagnostics"]
    same = [part["diagnostics"]["consistency"]["it"]["value"] for part in parts]
    assert told["consistency"]["it"]["value"] == pytest.approx(np.mean(same))
    gaps = [part["diagnostics"]["gap_to_oracle"]["it"]["difference"] for part in parts]
    assert told["gap_to_oracle"]["it"]["difference"] == pytest.approx(np.mean(gaps))
    assert "## Across languages" in (run / "README.md").read_text()
    found = done("crosslingual", run, "--data", f"{tmp_path}/{{language}}.test.csv", "--languages", "it", "--json").json
    best = parts[told["best_seed_on_validation"] - 1]
    assert found["languages"]["it"]["accuracy"] == best["languages"]["it"]["accuracy"]


def test_a_stop_in_a_later_row_goes_on_with_resume_and_gives_the_results_of_a_straight_run(
    full: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_in(tmp_path, "it.train")
    saved = Trainer._save

    def stop(trainer: Trainer) -> None:
        saved(trainer)
        if trainer.run.folder.name == "en+it" and trainer.progress.step > 6:
            raise Interrupted(Exit.TERMINATED, "stopped")

    arguments = [
        "train", "mbert_crosslingual", *files, LANGUAGES, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}",
        *FAST, "matrix=full", "few_shot=[6]",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        assert call(*arguments).code == Exit.TERMINATED
    assert (tmp_path / "run/rows/en+it/checkpoints").is_dir()
    outcome = done(*arguments, "--resume")
    assert "it: ended before, kept" in outcome.err
    assert results_of(tmp_path / "run")["matrix"] == results_of(full)["matrix"]
    assert results_of(tmp_path / "run")["comparisons"] == results_of(full)["comparisons"]


def test_frozen_embeddings_keep_the_words_and_train_the_rest(tiny_model: Path, tmp_path: Path) -> None:
    run = train(tmp_path, tiny_model, "freeze_embeddings=true", "baseline=none")
    before, after = load_file(tiny_model / "model.safetensors"), load_file(run / "model/model.safetensors")
    kept = [name for name in before if torch.equal(before[name], after[f"bert.{name}"])]
    assert kept == ["embeddings.word_embeddings.weight"]
    told = results_of(run)["diagnostics"]
    assert told["parameters"] - told["trained_parameters"] == before[kept[0]].numel()


@pytest.mark.parametrize("setting", ["label_smoothing_factor=0.3", "layerwise_lr_decay=0.5", "frozen_layers=1"])
def test_a_setting_changes_the_trained_weights(trained: Path, tiny_model: Path, tmp_path: Path, setting: str) -> None:
    run = train(tmp_path, tiny_model, setting, "baseline=none", "test_languages=[en]")
    assert sha256(run / "model/model.safetensors") != sha256(trained / "model/model.safetensors")
    assert not {"baseline", "baselines", "comparison", "comparisons"} & results_of(run).keys()


def test_several_training_languages_share_one_test_score_and_a_run_without_theirs_is_judged_on_validation(
    tiny_model: Path, tmp_path: Path
) -> None:
    files = files_in(tmp_path, "it.train", "it.validation")
    run = train(tmp_path, tiny_model, "train_languages=[en,it]", files=files)
    results = results_of(run)
    assert list(results["matrix"]) == ["en+it"]
    rows = read_jsonl(run / "predictions/test.jsonl")
    assert [row["id"].split(":")[0] for row in rows] == ["en"] * 24 + ["it"] * 24
    assert results["diagnostics"]["rows"] == {"train": 96, "validation": 48, "test": 48}
    values = [results["languages"][code]["accuracy"]["value"] for code in ("en", "it")]
    assert results["scores"]["test"]["accuracy"]["value"] == pytest.approx(np.mean(values))
    shutil.rmtree(run)
    run = train(tmp_path, tiny_model, "test_languages=[de]", "baseline=none", files=files)
    results = results_of(run)
    assert (list(results["scores"]), results["diagnostics"]["judged_on"]) == (["validation"], "validation")
    assert list(results["languages"]) == ["de"]
    assert results["diagnostics"]["consistency"] == {}


def test_dry_run_measures_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    arguments = [*files, LANGUAGES, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST]
    outcome = done("train", "mbert_crosslingual", *arguments, "--dry-run", "--json")
    assert outcome.json["updates"] == 12
    assert not (tmp_path / "run").exists()
    assert "train en · test en 24 · it 24 · de 24" in outcome.err


def test_languages_scored_in_one_pass_get_the_scores_that_each_gets_alone(trained: Path) -> None:
    from finetune.config import load
    from finetune.data import patterns
    from finetune.data.columns import read_split
    from finetune.run import Run

    config, _ = load(recipe.Config, [], trained / "config.yaml")
    tests = {
        language: read_split(language, f"{trained.parent}/{language}.test.csv", config.data)
        for language in ("de", "en", "it")
    }
    run = Run.open(trained)
    cells = crosslingual.by_language(recipe.evaluate(config, run, patterns.join("test", tests)), tests)
    for language, split in tests.items():
        alone = recipe.evaluate(config, run, split)
        assert cells[language].ids == alone.ids
        assert cells[language].probabilities == pytest.approx(alone.probabilities, abs=1e-5)


# Bad input


WRONG = [
    (["test_languages=[en,pt]"], 66, "pt.test.csv: no such file, but test_languages asks for pt"),
    (["train_languages=[pt]"], 66, "pt.train.csv: no such file, but train_languages asks for pt"),
    (["test_languages=[en,it,en]"], 2, "test_languages: en is given twice"),
    (["train_languages=[]"], 2, "train_languages names no language"),
    (["test_languages=[../en]"], 2, "is no language code"),
    (["oracle=true"], 66, "oracle=true: no test language beside en has a training file"),
    (["few_shot=[3]"], 66, "few_shot=[3]: no test language beside en has a training file"),
    (["few_shot=[0]"], 2, "must be above 0"),
    (["matrix=half"], 2, "expected source|full"),
    (["max_length=65"], 2, "give max_length=64"),
    (["frozen_layers=2"], 2, "frozen_layers=2: the model has 1 layers"),
    (["train.metric_for_best_model=f1"], 2, "no such score"),
]


@pytest.mark.parametrize(("settings", "code", "message"), WRONG)
def test_wrong_input_is_answered_before_a_folder_is_made(
    trained: Path, tiny_model: Path, tmp_path: Path, settings: list[str], code: int, message: str
) -> None:
    files = [f"data.{kind}={trained.parent}/{{language}}.{kind}.csv" for kind in SIZES]
    arguments = [*files, LANGUAGES, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST, *settings]
    outcome = call("train", "mbert_crosslingual", *arguments)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    error = outcome.err[outcome.err.index("error:") :]
    assert len(error.splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_labels_that_differ_between_languages_are_listed(tiny_model: Path, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    rows = [(name, text, {"payment": "pagamento"}.get(label, label)) for name, text, label in toy_rows(24, 2)]
    write_csv(tmp_path / "it.test.csv", rows)
    outcome = call("train", "mbert_crosslingual", *files, LANGUAGES, f"model={tiny_model}", *FAST)
    assert outcome.code == Exit.BAD_DATA
    assert f'it test ({tmp_path}/it.test.csv): "pagamento"' in outcome.err
    assert ", ".join(f'"{label}"' for label in sorted(TOPICS)) in outcome.err


def test_texts_of_a_test_language_that_stand_in_its_training_file_are_told_and_can_be_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    files = files_in(tmp_path, "it.train")
    write_csv(tmp_path / "it.test.csv", [*toy_rows(21, 2), *toy_rows(48, 0)[:3]])
    write_csv(tmp_path / "it.train.csv", toy_rows(48, 0))
    arguments = [*files, "test_languages=[it]", f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST]
    outcome = call("train", "mbert_crosslingual", *arguments, "data.on_leak=error")
    assert outcome.code == Exit.BAD_DATA
    write_csv(tmp_path / "en.train.csv", toy_rows(48, 5))  # the same texts are no longer in the training language
    outcome = call("train", "mbert_crosslingual", *arguments, "data.on_leak=error")
    assert outcome.code == Exit.BAD_DATA
    assert "3 it test texts also in train (12.5 %)" in outcome.err
    assert "warning   3 it test texts" in done("train", "mbert_crosslingual", *arguments, "--dry-run").err
    write_csv(tmp_path / "it.validation.csv", [*toy_rows(8, 1), *toy_rows(48, 0)[:2]])
    outcome = done("train", "mbert_crosslingual", *arguments, "--dry-run")
    assert "2 it validation texts also in train (20.0 %)" in outcome.err


def test_a_pattern_without_the_language_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    files_in(tmp_path)
    files = [f"data.{kind}={tmp_path}/en.{kind}.csv" for kind in SIZES]
    outcome = call("train", "mbert_crosslingual", *files, LANGUAGES, f"model={tiny_model}", *FAST)
    assert outcome.code == Exit.USAGE
    assert "the pattern has no {language}" in outcome.err


def test_a_language_that_the_vocabulary_does_not_know_is_named(tiny_model: Path, tmp_path: Path) -> None:
    files = files_in(tmp_path)
    rows = [(name, "日本語 の 文章 です", label) for name, _, label in toy_rows(24, 2)]
    write_csv(tmp_path / "it.test.csv", rows)
    outcome = call("train", "mbert_crosslingual", *files, LANGUAGES, f"model={tiny_model}", *FAST)
    assert outcome.code == Exit.BAD_DATA
    assert f"of the tokens in {tmp_path}/it.test.csv are unknown" in outcome.err


WRONG_ELSEWHERE = [
    (["--languages", "pt"], 66, "but --languages asks for pt"),
    (["--languages", "it,it"], 2, "--languages: it is given twice"),
    (["--languages", ""], 2, "--languages names no language"),
    (["--languages", "it", "--label-column", "topic"], 65, "topic"),
]


@pytest.mark.parametrize(("options", "code", "message"), WRONG_ELSEWHERE)
def test_crosslingual_answers_wrong_input(trained: Path, options: list[str], code: int, message: str) -> None:
    outcome = call("crosslingual", trained, "--data", f"{trained.parent}/{{language}}.test.csv", *options)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    without = call("crosslingual", trained, "--data", f"{trained.parent}/it.test.csv", "--languages", "it")
    assert without.code == Exit.USAGE
    assert "the pattern has no {language}" in without.err
    nothing = call("crosslingual", trained, "--data", f"{trained.parent}/{{language}}.none.csv")
    assert nothing.code == Exit.NO_INPUT
    one = call("evaluate", trained, "--data", f"{trained.parent}/{{language}}.test.csv")
    assert one.code == Exit.USAGE
    assert f"finetune crosslingual {trained} --data" in one.err
