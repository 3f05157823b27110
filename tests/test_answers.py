"""Dialogue and question answering with pretrained models: prompts, the loss, a toy task, scores in each language."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq as tiny
import torch
from calling import call, done, private_cache, read_jsonl, sections_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from finetune import config as configuration
from finetune.data.sequences import read_split
from finetune.summaries import families, writer
from recipes import PRESETS
from recipes.summarization import Config

QUESTIONS, DIALOGUE = "question_answering_pretrained", "dialogue_pretrained"
SHORT = ("max_target_length=4", "generation.max_new_tokens=4")
FAST = ("train.mixed_precision=no", "train.use_cpu=true", "label_smoothing_factor=0")


def settings(preset: str, *overrides: object) -> Config:
    return configuration.load(Config, [*SHORT, *map(str, overrides)], PRESETS / f"{preset}.yaml")[0]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def framed(config: Config, file: Path) -> tuple[Any, writer.Coded]:
    """Return a writer before its first update, and the rows of a file as it reads them."""
    split = read_split("train", str(file), config.data)
    model = families.begin(config, split)
    return model, writer.encode(model, split, config.data.on_long)


def asked(tokenizer: Any, coded: writer.Coded, row: int = 0) -> tuple[str, str]:
    """Return what GPT-2 reads of a row, and what it is asked for."""
    batch = coded.examples.collate(np.array([row])).tensors
    return tokenizer.decode(batch["input_ids"][0]), tokenizer.decode(batch["gold"])


def test_question_and_context_become_a_prompt_and_the_loss_is_of_the_answer_alone(
    tmp_path: Path, tiny_gpt2: Path
) -> None:
    row = {"question": "Who?", "context": "It.", "answers": [{"text": "me", "answer_start": 0}, {"text": "I"}]}
    model, coded = framed(settings(QUESTIONS, f"model={tiny_gpt2}"), write(tmp_path / "q.jsonl", [row]))
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    reads, predicts = asked(tokenizer, coded)
    assert reads == "<|endoftext|>question: Who? context: It.\nanswer: me"
    assert predicts == " me<|endoftext|>"
    batch = coded.examples.collate(np.array([0]))
    assert batch.items == len(tokenizer(" me")["input_ids"]) + 1
    with torch.no_grad():
        before = float(model.plain_loss(model.model, batch))
        stream = torch.cat([batch.tensors["input_ids"][0], batch.tensors["gold"][-1:]])
        batch.tensors.update(places=torch.arange(len(stream) - 1), gold=stream[1:])
        assert float(model.plain_loss(model.model, batch)) > before  # the prompt would count


def test_a_long_context_loses_its_end_and_keeps_question_and_answer(tmp_path: Path, tiny_gpt2: Path) -> None:
    row = {"question": "Who?", "context": "abcdefghijklmnopqrstuvwxyz", "answers": [{"text": "me"}]}
    _, coded = framed(settings(QUESTIONS, f"model={tiny_gpt2}"), write(tmp_path / "q.jsonl", [row]))
    assert coded.long_sources == 1
    reads, predicts = asked(AutoTokenizer.from_pretrained(tiny_gpt2), coded)
    assert len(reads) - len("<|endoftext|>") + 1 <= 48
    assert reads.startswith("<|endoftext|>question: Who? context: abc")
    assert reads.endswith("\nanswer: me")
    assert "xyz" not in reads
    assert predicts == " me<|endoftext|>"


def test_turns_become_lines_and_long_ones_lose_the_oldest(tmp_path: Path, tiny_gpt2: Path) -> None:
    turns = ["Hello over there!", "Good morning to you, my friend!", "Tea?", "Ja", "1\t2 3\t0 0"]
    model, coded = framed(settings(DIALOGUE, f"model={tiny_gpt2}"), write(tmp_path / "d.jsonl", [{"turns": turns}]))
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert len(coded.sizes) == 3  # the line of numbers is no turn
    reads, predicts = asked(tokenizer, coded, 2)
    assert coded.long_sources == 2
    assert reads.endswith(" my friend!\nTea?\n Ja")
    assert "Hello" not in reads
    assert predicts == " Ja<|endoftext|>"
    assert model.prefix == ""


def test_t5_reads_the_same_preset_in_the_form_that_it_learnt(tmp_path: Path) -> None:
    folder = tiny.t5(tmp_path / "t5")
    row = {"question": "red one", "context": "blue came", "answers": [{"text": "blue"}]}
    _, coded = framed(settings(QUESTIONS, f"model={folder}"), write(tmp_path / "q.jsonl", [row]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = coded.examples.collate(np.array([0])).tensors
    assert batch["source"][0].tolist() == tokenizer("question: red one context: blue came")["input_ids"]
    assert batch["labels"][0].tolist() == tokenizer("blue")["input_ids"]


# A toy task


def toy(folder: Path, language: str, name: str, rows: int) -> None:
    """Write questions for a letter or for its number; the second answer of each row is never said."""
    made = []
    for number in range(rows):
        place, asks = number % 4, number // 4 % 2
        question, answer = (("ppp", "gbkz"[place]), ("mmm", "1234"[place]))[asks]
        answers = [{"text": answer, "answer_start": 0}, {"text": f"{answer} {answer}"}]
        context = "gbkz"[place] * 6  # so often that it is easy to see
        made.append({"id": f"{name}-{number}", "question": question, "context": context, "answers": answers})
    write(folder / f"{language}.{name}.jsonl", made)


def calm(gpt2: Path, folder: Path) -> Path:
    """Write a model of the same shape with weights as small as GPT-2's and without dropout, which learns better."""
    shutil.copytree(gpt2, folder)
    config = AutoConfig.from_pretrained(gpt2, initializer_range=0.02, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2: Path) -> Path:
    """Return a run of GPT-2 that has learnt the toy task from two languages."""
    folder = tmp_path_factory.mktemp("answers")
    for language in ("en", "it"):
        for name, rows in (("train", 24), ("validation", 8), ("test", 8)):
            toy(folder, language, name, rows)
    files = [f"data.{name}={folder}/{{language}}.{name}.jsonl" for name in ("train", "validation", "test")]
    loop = ("train.num_train_epochs=40", "train.learning_rate=5e-3", "train.per_device_train_batch_size=8")
    place = (f"model={calm(tiny_gpt2, folder / 'gpt2')}", f"output_dir={folder / 'run'}")
    with private_cache(folder):
        outcome = done("train", "--config", QUESTIONS, *files, *place, *SHORT, *FAST, *loop, "train.eval_steps=80")
    assert "test: en 8 · it 8" in outcome.err
    assert "\nlanguages en  exact_match" in outcome.out
    return folder / "run"


def test_a_toy_task_is_learnt_and_told_in_each_language(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    assert results["task"] == "question_answering"
    assert results["scores"]["test"]["exact_match"]["value"] >= 0.9
    assert results["comparison"]["metric"] == "exact_match"
    assert results["baseline"]["name"] in {part["name"] for part in results["baselines"]}
    assert any("nearest training source" in part["name"] for part in results["baselines"])
    assert list(results["languages"]) == list(results["comparisons"]) == ["en", "it"]
    assert set(results["languages"]["it"]) == {"exact_match", "token_f1"}
    rows = read_jsonl(trained / "predictions" / "test.jsonl")
    assert [row["language"] for row in rows] == ["en"] * 8 + ["it"] * 8
    assert rows[0]["gold"] == ["g", "g g"]
    assert rows[0]["id"] == "en:test-0"
    assert "## In each language" in (trained / "README.md").read_text(encoding="utf-8")


def test_files_of_languages_are_evaluated_predicted_and_compared(trained: Path, tmp_path: Path) -> None:
    pattern = f"{trained.parent}/{{language}}.test.jsonl"
    results = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    assert done("evaluate", trained, "--data", pattern, "--json").json == results["scores"]["test"]
    assert "\nlanguages en  exact_match" in done("evaluate", trained, "--data", pattern).out
    rows = done("predict", trained, "--input", pattern, "--json").json
    assert [row["predicted"] for row in rows] == [
        row["predicted"] for row in read_jsonl(trained / "predictions" / "test.jsonl")
    ]
    other = shutil.copytree(trained, tmp_path / "other")
    (found,) = done("compare", trained, other, "--json").json
    assert (found["metric"], found["difference"], found["rows"]) == ("exact_match", 0, 16)
    outcome = call("generate", trained, "--prompt", "x")
    assert (outcome.code, f"finetune predict {trained}" in outcome.err) == (2, True)


def test_the_page_shows_texts_beside_human_ones(trained: Path) -> None:
    assert {"scores", "languages", "texts", "made"} <= set(sections_of(trained))
