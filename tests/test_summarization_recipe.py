"""The recipe summarization from data to run folder, with each family, and the commands that use such a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_seq2seq as tiny
from calling import call, done, private_cache, read_jsonl, sections_of, sha256, tree
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetune.errors import Exit, Interrupted
from finetune.trainer import Trainer

FAST = (
    "train.mixed_precision=no", "train.use_cpu=true", "train.per_device_train_batch_size=8",
    "generation.max_new_tokens=8", "label_smoothing_factor=0",
)  # fmt: skip
BRIEF = ("baseline=none", "train.max_steps=2", "train.learning_rate=1e-3", "generation.num_beams=1")
SCRATCH = (
    "architecture=seq2seq", "vocabulary.kind=word", "vocabulary.min_frequency=1", "network.hidden_size=32",
    "network.num_encoder_layers=1", "network.num_decoder_layers=1", "network.num_attention_heads=2",
    "network.intermediate_size=64",
)  # fmt: skip
COLUMN = ("--source-column", "text")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bart(tmp_path_factory.mktemp("bart") / "bart")


def train(folder: Path, *settings: object, output: str = "run", rows: int = 64) -> Path:
    folder.mkdir(exist_ok=True)
    done("train", "summarization", *tiny.pair_files(folder, rows), f"output_dir={folder / output}", *FAST, *settings)
    return folder / output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run of BART that has learnt to say which colour came."""
    folder = tmp_path_factory.mktemp("summarization")
    model = tiny.bart(folder / "bart", spread=0.1)
    loop = ("train.num_train_epochs=12", "train.learning_rate=5e-3", "train.eval_steps=60")
    with private_cache(folder):
        return train(folder, f"model={model}", *loop, f"bertscore_model={tiny_model}", rows=120)


def test_the_run_learns_and_stands_beside_baselines_and_an_oracle_extract(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["task"] == "summarization"
    assert results["scores"]["test"]["rouge1"]["value"] > 90
    assert {"rouge1", "rouge2", "rougeL", "rougeLsum"} <= set(results["scores"]["test"])
    assert {part["name"] for part in results["baselines"]} >= {"lead-1", "lead-3", "most frequent target"}
    assert results["comparison"]["metric"] == "rouge1"
    figures = results["diagnostics"]
    assert figures["system"] == "BART"
    assert figures["oracle_extract"]["scores"]["rouge1"]["value"] > 50
    assert set(figures["summaries"]["own"]) == set(figures["summaries"]["human"])
    assert [one["noun"] for one in figures["long_rows"]] == ["source", "target"]
    assert figures["long_rows"][0]["rows"] == {"train": 0, "validation": 0, "test": 0}
    assert figures["tokens"]["source"]["max"] >= figures["tokens"]["source"]["median"] > 0
    assert any(isinstance(row["gold"], list) for row in read_jsonl(trained / "predictions" / "test.jsonl"))
    card = (trained / "README.md").read_text()
    assert "What its summaries are like" in card
    assert "Extract: greedy oracle extract" in card
    assert "import finetune.seq2seq.model" not in card
    stored = (trained / "config.yaml").read_text()
    assert "max_source_length: 48" in stored
    assert json.loads((trained / "environment.json").read_text())["model"].startswith("sha256:")


def test_bertscore_stands_beside_rouge_with_its_model(trained: Path, tiny_model: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    found, other = results["diagnostics"]["bertscore"], results["baseline"]["name"]
    assert (found["model"], found["layer"], found["baseline"]["name"]) == (str(tiny_model), 1, other)
    assert found["system"]["f1"]["value"] > found["baseline"]["f1"]["value"]
    mine, other_f1 = (found[side]["f1"]["value"] for side in ("system", "baseline"))
    assert found["difference"]["value"] == pytest.approx(mine - other_f1)
    assert "bertscore" not in results["scores"]["test"]
    told = " ".join((trained / "README.md").read_text().split())
    assert f"BERTScore: `f1 {found['system']['f1']['value']:.3f}" in told
    assert f"by {tiny_model}, layer 1 · {other}" in told


def test_predict_and_evaluate_repeat_the_run_with_the_folder_alone(trained: Path) -> None:
    test, before = trained.parent / "test.jsonl", read_jsonl(trained / "predictions" / "test.jsonl")
    for place in (trained, trained / "model"):
        rows = done("predict", place, "--input", test, *COLUMN, "--json").json
        assert [row["predicted"] for row in rows] == [row["predicted"] for row in before]
        scores = done("evaluate", place, "--data", test, *COLUMN, "--target-column", "summary", "--json").json
        assert scores == json.loads((trained / "results.json").read_text())["scores"]["test"]
    several = done("predict", trained, "--input", test, "--beam-size", 3, "--n-best", 2, "--json").json
    assert all(len(row["hypotheses"]) == 2 for row in several)
    lines = done("predict", trained, stdin="the red one came. then blue and grey left.\n").out.splitlines()
    assert len(lines) == 1


def test_transformers_alone_writes_the_same_texts(trained: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(trained / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    for row in read_jsonl(trained / "predictions" / "test.jsonl")[:4]:
        found = model.generate(**tokenizer(row["source"], return_tensors="pt"))
        assert tokenizer.decode(found[0], skip_special_tokens=True).strip() == row["predicted"]


def test_what_is_not_for_such_a_run_says_so(trained: Path) -> None:
    assert "finetune predict" in call("generate", trained, "--prompt", "x").err
    outcome = call("explain", trained, "--text", "x")
    assert (outcome.code, "writes texts with another model" in outcome.err) == (2, True)
    assert "writes texts" in call("crosslingual", trained, "--data", "x.{language}.csv", "--languages", "en").err


def test_the_terminal_tells_the_summaries_beside_human_ones(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    assert "tokens a source" in log
    outcome = done("train", "--config", trained / "config.yaml", f"output_dir={trained}", "--resume")
    assert "summaries " in outcome.out
    assert "in brackets: human summaries" in " ".join(outcome.out.split())
    assert "oracle extract" in outcome.out
    assert "bertscore f1 " in " ".join(outcome.out.split())


@pytest.mark.parametrize("kind", ["t5", "mbart", "gpt2", "bert2gpt", "scratch"])
def test_every_family_trains_writes_and_is_read_back(
    trained: Path, tmp_path: Path, tiny_model: Path, tiny_gpt2: Path, kind: str
) -> None:
    how: dict[str, tuple[object, ...]] = {
        "t5": (f"model={tiny.t5(tmp_path / 't5')}",),
        "mbart": (f"model={tiny.mbart(tmp_path / 'mbart')}", "model_language=de_DE"),
        "gpt2": (f"model={tiny_gpt2}", "prompt_end= =", "max_target_length=12"),
        "bert2gpt": ("architecture=bert2gpt", f"encoder={tiny_model}", f"decoder={tiny_gpt2}"),
        "scratch": (*SCRATCH, "copy=true", f"bertscore_model={tiny_model}"),
    }
    run = train(tmp_path, *how[kind], *BRIEF)
    results = json.loads((run / "results.json").read_text())
    names = {"t5": "T5", "mbart": "mBART", "gpt2": "GPT-2", "bert2gpt": "BERT with GPT-2"}
    name = names.get(kind, "Transformer with copying")
    assert results["diagnostics"]["system"] == name
    before = [row["predicted"] for row in read_jsonl(run / "predictions" / "test.jsonl")]
    rows = done("predict", run / "model", "--input", tmp_path / "test.jsonl", *COLUMN, "--beam-size", 1, "--json").json
    assert [row["predicted"] for row in rows] == before
    (found,) = done("compare", trained, run, "--json").json
    assert (found["metric"], found["verdict"], found["rows"]) == ("rouge1", "better", 12)
    assert ("import finetune.seq2seq.model" in (run / "README.md").read_text()) == (kind == "scratch")


@pytest.mark.parametrize("kind", ["bart", "bert2gpt"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bart: Path, tiny_model: Path, tiny_gpt2: Path, kind: str
) -> None:
    joined = ("architecture=bert2gpt", f"encoder={tiny_model}", f"decoder={tiny_gpt2}")
    settings = [*(joined if kind == "bert2gpt" else (f"model={bart}",)), *BRIEF, "train.max_steps=4"]
    straight = train(tmp_path / "straight", *settings)
    folder = tmp_path / "stopped"
    folder.mkdir()
    arguments = ["train", "summarization", *tiny.pair_files(folder), f"output_dir={folder / 'run'}", *FAST, *settings]
    arguments.append("save_steps=1")
    save = Trainer._save

    def once(trainer: Trainer) -> None:
        save(trainer)
        if trainer.progress.step == 2:
            raise Interrupted(Exit.INTERRUPTED, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", once)
        assert call(*arguments).code == 130
    done(*arguments, "--resume")
    weights = "model/model.safetensors"
    assert sha256(folder / "run" / weights) == sha256(straight / weights)


def test_long_sources_are_counted_and_windows_are_merged(tmp_path: Path, bart: Path) -> None:
    settings = (f"model={bart}", *BRIEF, "max_source_length=10", "data.on_long=window")
    run = train(tmp_path, *settings)
    figures = json.loads((run / "results.json").read_text())["diagnostics"]
    long, log = figures["long_rows"][0], " ".join((run / "train.log").read_text().split())
    assert "64 of train, 12 of validation, 12 of test: summarised in windows and merged" in log
    rows = read_jsonl(tmp_path / "train.jsonl")
    sizes = [len(AutoTokenizer.from_pretrained(bart)(row["text"])["input_ids"]) - 2 for row in rows]
    share = round(100 * 10 * len(sizes) / sum(sizes))
    assert f"training reads 64 long sources up to token 10: {share} % of all tokens" in log
    assert long["rows"] == {"train": 64, "validation": 12, "test": 12}
    assert (long["on_long"], long["limits"]) == ("window", {"max_source_length": 10})
    page = (run / "report.html").read_text()
    assert "64 train sources above max_source_length=10: summarised in windows and merged" in page
    outcome = done("predict", run / "model", "--input", tmp_path / "test.jsonl", *COLUMN, "--json")
    assert "12 sources of 12 above 10 tokens: summarised in windows" in outcome.err
    assert [row["predicted"] for row in outcome.json] == [
        row["predicted"] for row in read_jsonl(run / "predictions" / "test.jsonl")
    ]


def test_dry_run_writes_nothing_and_seeds_are_combined(tmp_path: Path, bart: Path) -> None:
    files = tiny.pair_files(tmp_path)
    place = (f"model={bart}", f"output_dir={tmp_path / 'run'}", *FAST)
    outcome = done("train", "summarization", *files, *place, "--dry-run", "--json")
    assert outcome.json["updates"] == 24
    assert not (tmp_path / "run").exists()
    brief = [setting for setting in BRIEF if not setting.startswith("baseline")]
    done("train", "summarization", *files, *place, *brief, "seeds=[1,2]")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "sd" in results["scores"]["test"]["rouge1"]
    assert "oracle_extract" in results["diagnostics"]
    assert results["diagnostics"]["summaries"]["own"]["mean_words"] >= 0


@pytest.mark.parametrize(
    ("change", "code", "mentions"),
    [
        ((), 2, "which model? give model=NAME"),
        (("model=./nowhere",), 66, "model=./nowhere: no such folder"),
        (("model={bart}", "data.source_column=txt"), 65, "has no column txt; did you mean text?"),
        (("model={bart}", "data.on_long=error", "max_source_length=8"), 65, "train.jsonl:1: the source has"),
        (("model={bart}", "data.on_long=skip"), 2, "data.on_long cannot be 'skip'"),
        (("model={bart}", "metric_for_best_model=bleu"), 2, "summarization has no such score"),
        (("model={bart}", "generation.temperature=-1"), 2, "generation.temperature cannot be -1"),
        (("model={bart}", "task=sumarization"), 2, "unknown task sumarization; did you mean summarization?"),
        (("architecture=bert2gpt", "encoder={bart}", "decoder={bart}"), 65, "encoder={bart} (BartForConditional"),
        (("model={bart}", "bertscore_model={bart}"), 65, "bertscore_model={bart} (BartModel) is an encoder-decoder"),
        (("model={empty}",), 65, "tokenizer files are missing"),
    ],
    ids=str,
)
def test_wrong_input_is_named_and_nothing_is_written(
    tmp_path: Path, bart: Path, change: tuple[str, ...], code: int, mentions: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((bart / "config.json").read_text())
    names: dict[str, Any] = {"bart": bart, "empty": empty}
    settings = [text.format(**names) for text in change]
    files = tiny.pair_files(tmp_path)
    before = tree(tmp_path)
    outcome = call("train", "summarization", *files, f"output_dir={tmp_path / 'run'}", *FAST, *settings)
    assert outcome.code == code, outcome.err
    assert mentions.format(**names) in outcome.err
    assert "Traceback" not in outcome.err
    assert tree(tmp_path) == before


def test_an_empty_summary_is_named(tmp_path: Path, bart: Path) -> None:
    files = tiny.pair_files(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "the red one came.", "summary": " "}) + "\n")
    outcome = call("train", "summarization", *files, f"output_dir={tmp_path / 'run'}", f"model={bart}", *FAST)
    assert outcome.code == 65
    assert "train.jsonl:65" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "mentions"),
    [("error", "2 rows are empty (2 without target)"), ("skip", "no row is left once empty ones are skipped")],
)
def test_a_column_of_empty_summaries_is_named(tmp_path: Path, bart: Path, setting: str, mentions: str) -> None:
    file = tmp_path / "blank.csv"
    file.write_text("text,summary\nthe red one came.,\nthe blue one left.,\n", encoding="utf-8")
    columns = ("data.source_column=text", "data.target_column=summary", f"data.on_empty={setting}")
    place = (f"model={bart}", f"output_dir={tmp_path / 'run'}")
    outcome = call("train", "summarization", f"data.train={file}", *columns, *place, *FAST)
    assert outcome.code == 65, outcome.err
    assert "blank.csv" in outcome.err
    assert mentions in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_page_shows_texts_beside_human_ones(trained: Path) -> None:
    assert {"scores", "texts", "made"} <= set(sections_of(trained))
