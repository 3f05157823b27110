"""Pretraining, fine-tuning and writing with GPT-2 through the command line, beside a cheap language model."""

import functools
import json
import math
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from calling import call, done, private_cache, read_jsonl, sections_of, train_toy
from pretexts import WORDS, sentence
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, Gemma2Config, PretrainedConfig

from finetune import config as configuration
from finetune import generation, hardware, pretrained, text_quality
from finetune.causal import routes
from finetune.causal.corpus import TextDataConfig, read_split, read_splits
from finetune.causal.model import ShapeConfig, load_trained
from finetune.causal.tokenizer import VocabularyConfig
from finetune.commands import generating, runs
from finetune.data import shipped as shipping
from finetune.errors import Exit, UserError
from finetune.generation import GenerationConfig
from finetune.ngrams import NgramModel
from finetune.report import language_model, writing
from finetune.run import Run
from recipes.gpt2_generation import Config

SMALL = (
    "network.hidden_size=32", "network.num_hidden_layers=1", "network.num_attention_heads=2", "network.dropout=0",
    "network.max_position_embeddings=64", "vocabulary.vocab_size=300", "max_length=32",
    "train.max_tokens_per_batch=256", "train.mixed_precision=no", "train.use_cpu=true", "train.learning_rate=1e-2",
    "generation.max_new_tokens=8",
)  # fmt: skip
ANSWERS = dict(zip(WORDS[:4], "ABCD", strict=True))
Ended = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train.txt and test.txt: documents of one to four lines of few words, blank lines between."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(1)
    for name, documents in (("train", 120), ("test", 30)):
        found = []
        for _ in range(documents):
            words = [str(word) for word in random.choice(WORDS, 3, replace=False)]
            found.append("\n".join(sentence(random, words) for _ in range(random.integers(1, 5))))
        (folder / f"{name}.txt").write_text("\n\n".join(found) + "\n", encoding="utf-8")
    rows = [{"ask": word, "answer": ANSWERS[word]} for word in ANSWERS for _ in range(24)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pretrained_run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    single = types.SimpleNamespace(fit=functools.partial(NgramModel.fit, order=1))  # which so short a training beats
    with private_cache(folder.parent), mock.patch.object(routes, "NgramModel", single):
        outcome = done(
            "train", "gpt2_pretraining", f"data.train={texts}/train.txt", f"data.test={texts}/test.txt", *SMALL,
            "train.num_train_epochs=4", f"output_dir={folder}", "--json",
        )  # fmt: skip
    assert "documents" in outcome.err
    assert "blocks of 32" in outcome.err
    return folder, outcome.json


@pytest.fixture(scope="module")
def completing_run(pretrained_run: Ended, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder = tmp_path_factory.mktemp("completing") / "run"
    with private_cache(folder.parent):
        outcome = done(
            "train", "gpt2_generation", f"data.train={texts}/pairs.jsonl", f"data.validation={texts}/pairs.jsonl",
            "data.prompt_column=ask", "data.completion_column=answer", f"model={pretrained_run[0]}/model",
            "max_length=48", "train.mixed_precision=no", "train.use_cpu=true", "train.learning_rate=1e-2",
            "train.num_train_epochs=10", "train.per_device_train_batch_size=8",
            "network.save_dtype=float16", "generation.temperature=0", f"output_dir={folder}", "--json",
        )  # fmt: skip
    return folder, outcome.json


def test_pretraining_beats_single_bytes_in_bits_per_byte(pretrained_run: Ended, texts: Path) -> None:
    folder, results = pretrained_run
    assert results["task"] == "language modelling"
    assert set(results["scores"]["test"]) == {"bits_per_byte", "perplexity", "loss"}
    assert set(results["baseline"]["scores"]["test"]) == {"bits_per_byte"}
    assert results["comparison"]["metric"] == "bits_per_byte"
    assert results["comparison"]["verdict"] == "better"
    own, cheap = (side["test"]["bits_per_byte"]["value"] for side in (results["scores"], results["baseline"]["scores"]))
    assert results["comparison"]["difference"] == pytest.approx(cheap - own)
    assert own < cheap
    assert results["baseline"]["name"] == "byte 1-grams, Kneser-Ney"
    train = read_splits(TextDataConfig(train=f"{texts}/train.txt"), seed=1)["train"].texts()
    rows = read_jsonl(folder / "predictions" / "baseline.test.jsonl")
    expected = NgramModel.fit(train, 1).bits_each([row["text"] for row in rows])
    assert [row["bits"] for row in rows] == pytest.approx(expected.tolist())
    assert "32 tokens, 16 tokens apart" in results["definitions"]["bits_per_byte"]
    figures = results["diagnostics"]
    assert figures["blocks"] == math.ceil(figures["tokens"] / 32)
    assert figures["documents"] == figures["rows"]["train"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["validation"]["loss"] for record in metrics if "validation" in record]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_the_scores_are_those_of_the_saved_model_by_hand(pretrained_run: Ended) -> None:
    folder, results = pretrained_run
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    rows = read_jsonl(folder / "predictions" / "test.jsonl")
    short = [row for row in rows if row["tokens"] <= 32]
    assert short
    for row in short[:5]:
        tokens = torch.tensor([[0, *tokenizer(row["text"])["input_ids"], 0]])
        with torch.no_grad():
            logs = model(tokens[:, :-1]).logits.log_softmax(-1).gather(2, tokens[:, 1:, None])
        assert row["bits"] == pytest.approx(-float(logs.sum()) / math.log(2), rel=1e-4)
        assert row["bytes"] == len(row["text"].encode())
    total = sum(row["bits"] for row in rows) / sum(row["bytes"] for row in rows)
    assert results["scores"]["test"]["bits_per_byte"]["value"] == pytest.approx(total, rel=1e-6)


def test_evaluate_scores_the_test_file_as_the_run_did(
    pretrained_run: Ended, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = pretrained_run
    # The run was in fp32 and is scored in it, whatever the CPU can; a plain folder knows its windows, but not that.
    for place, fast in ((folder, True), (folder / "model", False)):
        monkeypatch.setattr(hardware, "cpu_has_bf16", lambda fast=fast: fast)
        found = done("evaluate", place, "--data", texts / "test.txt", "--json").json
        assert found["bits_per_byte"] == pytest.approx(results["scores"]["test"]["bits_per_byte"], rel=1e-5)


def test_a_run_goes_on_from_a_checkpoint_and_compares_with_it(
    pretrained_run: Ended, texts: Path, tmp_path: Path
) -> None:
    folder, before = pretrained_run
    outcome = done(
        "train", "gpt2_pretraining", f"data.train={texts}/train.txt", f"data.test={texts}/test.txt",
        f"model={folder}/model", "baseline=none", "samples=0", *SMALL[6:], "train.num_train_epochs=2",
        f"output_dir={tmp_path}/more", "--json",
    )  # fmt: skip
    assert "comparison" not in outcome.json
    assert "written" not in outcome.json["diagnostics"]
    after = outcome.json["scores"]["test"]["bits_per_byte"]["value"]
    assert after < before["scores"]["test"]["bits_per_byte"]["value"]
    (compared,) = done("compare", tmp_path / "more", folder, "--json").json
    assert compared["metric"] == "bits_per_byte"
    assert compared["difference"] == pytest.approx(before["scores"]["test"]["bits_per_byte"]["value"] - after)


def test_completions_are_learnt_and_written(completing_run: Ended, tmp_path: Path) -> None:
    folder, results = completing_run
    assert results["scores"]["validation"]["loss"]["value"] < 0.5
    # The n-grams see the last bytes of a prompt too, so that they know which letter answers it.
    assert results["baseline"]["scores"]["validation"]["bits_per_byte"]["value"] < 0.5
    predicted = done("predict", folder, "--input", write_asks(tmp_path), "--json").json
    assert {row["source"]: row["predicted"] for row in predicted} == ANSWERS
    answer = done("generate", folder, "--prompt", "river", "--json").json
    assert answer["texts"] == [ANSWERS["river"]]
    assert set(answer) == {"prompt", "between", "seed", "texts", "seconds"}
    assert answer["prompt"] + answer["between"] == "river\n"
    assert done("generate", folder, "--prompt", "river").out == f"river\n{ANSWERS['river']}\n"
    assert done("generate", folder, "--prompt", "", "--json").json["between"] == ""  # nor is anything read there
    plain = done("generate", folder / "model", "--prompt", "river", "--temperature", 0, "--json").json
    assert plain["texts"] == [ANSWERS["river"]]


def write_asks(folder: Path) -> Path:
    path = folder / "asks.jsonl"
    path.write_text("".join(json.dumps({"ask": word}) + "\n" for word in ANSWERS), encoding="utf-8")
    return path


def test_generate_is_reproducible_and_says_what_it_took(pretrained_run: Ended) -> None:
    sampled = ("generate", pretrained_run[0], "--max-new-tokens", 12, "--num-return-sequences", 3, "--seed", 5)
    one = done(*sampled, "--prompt", "the cat", "--json")
    several = done(*sampled, "--prompt", "", "--prompt", "the cat", "--json").json
    assert one.json["texts"] == several[1]["texts"]
    assert several[0]["prompt"] == ""
    assert one.json["seed"] == 5
    assert "tokens/s" in one.err
    assert "of keys and values" in one.err
    streamed = done(
        "generate", pretrained_run[0], "--prompt", "the cat", "--seed", 5, "--stream", "--max-new-tokens", 12
    )
    assert streamed.out == one.json["texts"][0] + "\n"


def test_texts_are_written_after_training_and_described_beside_human_ones(
    pretrained_run: Ended, completing_run: Ended
) -> None:
    folder, results = pretrained_run
    told, rows = results["diagnostics"]["written"], read_jsonl(folder / "predictions" / "written.jsonl")
    originals = {row["id"]: row["text"] for row in read_jsonl(folder / "predictions" / "test.jsonl")}
    assert told["texts"] == len(rows) == 20
    for row in rows:
        assert 0 < len(row["prompt"]) <= len(originals[row["id"]]) / 4
        assert originals[row["id"]].startswith(row["prompt"] + row["human"])
    train = runs.read_rows("train", str(told_file(folder)), TextDataConfig()).texts()
    for name, column in (("own", "written"), ("human", "human")):
        expected = text_quality.quality([row[column] for row in rows], train)
        assert {key: told[name][key] for key in expected} == pytest.approx(expected)
        assert expected["copied_8"] < 1
        assert told[name]["perplexity"] > 1
    assert told["definitions"].keys() == told["own"].keys() - {"median_words", "least_words", "most_words"}
    folder, results = completing_run
    rows = read_jsonl(folder / "predictions" / "written.jsonl")
    assert {row["prompt"].strip(): row["human"] for row in rows} == ANSWERS
    assert [row["written"] for row in rows] == [row["human"] for row in rows]


def told_file(folder: Path) -> Path:
    """Return the training file that a run names."""
    return Path(str(configuration.read_yaml(folder / "config.yaml")["data.train"][0]))


def test_the_perplexity_of_a_text_is_after_its_prompt(pretrained_run: Ended) -> None:
    start = load_trained(pretrained_run[0] / "model")
    judge = routes.Judge(start, {}, routes.Reading.of(32, None, TextDataConfig(), start.context), "no")
    prompt, text = "the cat", " sees river"
    tokens = [0, *start.tokenizer(prompt)["input_ids"], *start.tokenizer(text)["input_ids"]]
    before = 1 + len(start.tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logs = start.model.network(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    nats = [-float(logs[place - 1, tokens[place]]) for place in range(before, len(tokens))]
    assert writing._perplexity(judge, [prompt, ""], [text, ""]) == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert writing._perplexity(judge, [prompt], [""]) == 0


def test_equal_prompts_get_samples_of_their_own(tiny_gpt2: Path) -> None:
    start = load_trained(tiny_gpt2)
    config = GenerationConfig(max_new_tokens=8)
    written, own = writing.one_each(start, ["a", "b", "a", "a"], config, 1, completes=False)
    assert sum(map(len, written.texts)) == 4  # no more than are asked for
    three = generation.write(start, ["a", "b"], GenerationConfig(max_new_tokens=8, num_return_sequences=3), 1)
    assert own == [three.texts[0][0], three.texts[1][0], three.texts[0][1], three.texts[0][2]]
    assert len(set(own)) == 4
    _, own = writing.one_each(start, ["a", "a"], GenerationConfig(max_new_tokens=8, temperature=0), 1, completes=False)
    assert own[0] == own[1]


def test_generate_describes_what_it_wrote(pretrained_run: Ended, tmp_path: Path) -> None:
    given = ("generate", pretrained_run[0], "--prompt", "the", "--num-return-sequences", 4, "--quality")
    found = done(*given, "--json").json
    (row,), told = found["generated"], found["quality"]
    assert told["texts"] == len(row["texts"]) == 4
    train = runs.read_rows("train", str(told_file(pretrained_run[0])), TextDataConfig()).texts()
    assert told["figures"] == pytest.approx(text_quality.quality(row["texts"], train))
    shown = done(*given).out
    assert "\nquality   different pairs" in shown
    assert "longest run of words from train" in shown
    plain = done("generate", pretrained_run[0] / "model", *given[2:], "--json").json
    assert "copied_8" not in plain["quality"]["figures"]  # a folder does not know its training text


def test_a_plain_folder_writes_as_its_run_does_and_so_does_transformers(completing_run: Ended) -> None:
    run, model = completing_run[0], completing_run[0] / "model"
    question = ("--prompt", WORDS[0], "--seed", 1, "--json")
    (answer,), (again,) = (done("generate", place, *question).json["texts"] for place in (run, model))
    assert again == answer
    stored = generation.remembered(GenerationConfig(temperature=0), GenerationConfig())
    assert stored == {"generation.temperature": 0}
    assert stored.items() <= pretrained.remembered_settings(model).items()
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = WORDS[0] + pretrained.remembered_settings(model)["data.separator"]
    asked = tokenizer(prompt, return_tensors="pt")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert network.generation_config.max_new_tokens == GenerationConfig().max_new_tokens
    told = network.generate(**asked)
    assert tokenizer.decode(told[0, asked["input_ids"].shape[1] :], skip_special_tokens=True) == answer


@pytest.mark.parametrize("code", [Exit.NO_INPUT, Exit.BAD_DATA])
def test_quality_goes_without_training_files_that_are_gone_or_damaged(
    pretrained_run: Ended, monkeypatch: pytest.MonkeyPatch, code: Exit
) -> None:
    def read(name: str, files: object, config: object) -> object:
        raise UserError(code, "train.txt:7 cannot be read\ngive another")

    monkeypatch.setattr(generating, "read_rows", read)
    asked = ("generate", pretrained_run[0], "--prompt", "the", "--seed", 1)
    outcome = done(*asked, "--quality")
    warned = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert warned == ["warning   train.txt:7 cannot be read: what is copied from train is not counted"]
    assert outcome.out.startswith(done(*asked).out)
    assert "longest run of words from train" not in outcome.out
    assert "self-BLEU" in outcome.out


def test_texts_are_printed_before_they_are_described(pretrained_run: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(texts: object, train: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "figures_of", describe)
    asked = ("generate", pretrained_run[0], "--prompt", "the", "--seed", 1)
    outcome = call(*asked, "--quality")
    assert outcome.code == Exit.INTERRUPTED
    assert outcome.out == done(*asked).out


def test_generate_cuts_a_long_prompt_with_a_notice_and_refuses_what_cannot_be(pretrained_run: Ended) -> None:
    folder = pretrained_run[0]
    assert "1 prompt cut on the left" in done("generate", folder, "--prompt", "the cat " * 60).err
    assert "no bf16 instructions" in done("generate", folder, "--prompt", "the cat", "--dtype", "bfloat16").err
    for options, message in (
        (("--temperature", -1), "temperature"),
        (("--top-p", 0), "top_p"),
        (("--dtype", "int8"), "dtype"),
        (("--max-new-tokens", 65), "max_new_tokens=65 is more than the 64 tokens"),
        (("--stream", "--num-beams", 2), "not 1 prompt, 1 text each, 2 beams"),
        (("--stream", "--num-return-sequences", 3), "give one prompt, --num-return-sequences 1 and --num-beams 1"),
        (("--stream", "--json"), "leave out --json"),
    ):
        outcome = call("generate", folder, "--prompt", "a", *options)
        assert outcome.code == Exit.USAGE, outcome.err
        assert message in outcome.err
    assert "give prompts" in call("generate", folder).err


def test_a_folder_without_a_tokenizer_is_refused(pretrained_run: Ended, texts: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((pretrained_run[0] / "model" / name).read_bytes())
    place = (f"model={tmp_path}", f"output_dir={tmp_path}/run")
    train = ("train", "gpt2_generation", f"data.train={texts}/train.txt", *place)
    for outcome in (call("generate", tmp_path, "--prompt", "a"), call(*train)):
        assert outcome.code == Exit.BAD_DATA
        assert "tokenizer files are missing" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("made_as", "recipe"),
    [
        ("GPT2LMHeadModel", "gpt2_generation"),
        ("LlamaForCausalLM", "gpt2_generation"),
        ("BertForMaskedLM", "bert_pretraining"),
        ("GPT2ForSequenceClassification", "bert_classification"),
    ],
)
def test_a_plain_folder_is_used_by_the_recipe_of_its_class(made_as: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [made_as]}), encoding="utf-8")
    assert runs.recipe_of(tmp_path) == recipe


@pytest.mark.parametrize(("asked", "longest"), [(None, 32), (64, 64)])
def test_a_new_model_has_no_position_that_training_never_reaches(asked: int | None, longest: int) -> None:
    shape = ShapeConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=asked)
    start = routes.begin(None, VocabularyConfig(vocab_size=300), shape, ["one text", "and another"] * 50, 1, 32)
    assert start.context == start.model.network.config.n_positions == longest
    assert start.tokenizer.model_max_length == longest


def test_a_shipped_name_is_looked_for_with_what_is_shipped(
    pretrained_run: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(name: str) -> Path:
        assert name == "checkpoints/mini-gpt2"
        return pretrained_run[0] / "model"

    for module in (runs, pretrained):
        monkeypatch.setattr(module, "shipped", place)
    by_name, by_folder = (
        done("generate", run, "--prompt", "the cat", "--temperature", 0, "--json").json["texts"]
        for run in ("mini-gpt2", pretrained_run[0] / "model")
    )
    assert by_name == by_folder
    assert pretrained.locate("mini-gpt2").name == "mini-gpt2"


@pytest.mark.parametrize(
    "arguments", [("generate", "mini-gpt2", "--prompt", "a"), ("train", "gpt2_generation", "model=mini-gpt2")]
)
def test_a_checkpoint_that_is_not_installed_is_told_in_one_line(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(shipping, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    more = (f"data.train={texts}/train.txt", f"output_dir={tmp_path}/run") if arguments[0] == "train" else ()
    outcome = call(*arguments, *more)
    assert outcome.code == Exit.NO_INPUT
    assert "mini-gpt2, which finetune-recipes ships, is not installed" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_told_to_predict(tiny_model: Path, tmp_path: Path) -> None:
    run = train_toy(tmp_path, tiny_model, "baseline=none", "train.num_train_epochs=1")
    outcome = call("generate", run, "--prompt", "a")
    assert outcome.code == Exit.USAGE
    assert f"finetune predict {run}" in outcome.err


def test_gpt2_classifies_through_the_recipe_of_bert_without_a_pad_token(tiny_gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "gpt2")
    for name in ("config.json", "tokenizer_config.json"):  # as OpenAI published it
        path = tmp_path / "gpt2" / name
        stored = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: stored[key] for key in stored if not key.startswith("pad_token")}))
    run = train_toy(tmp_path, tmp_path / "gpt2", "baseline=none", "max_length=48")
    assert AutoTokenizer.from_pretrained(run / "model").pad_token == "<|endoftext|>"
    rows = read_jsonl(run / "predictions" / "test.jsonl")
    assert len(rows) == 24
    assert {len(row["probabilities"]) for row in rows} == {3}


@pytest.mark.parametrize(
    ("settings", "message", "code"),
    [
        (("data.train={}/short.txt", "data.validation={}/short.txt"), "fewer than one block of max_length=32", 65),
        (("data.train={}/short.txt",), "is one document, so none can be held out", 65),
        (("data.train={}/train.txt", "max_length=65"), "more than the 64 tokens that the model can read", 2),
        (("data.train={}/train.txt", "stride=33"), "would leave gaps between windows", 2),
        (("data.train={}/train.txt", "data.prompt_column=a"), "go together", 2),
        (("data.train={}/train.txt", "data.prompt_column=a", "data.completion_column=b"), "is plain text", 2),
        (("data.train={}/train.txt", "train.metric_for_best_model=los"), "did you mean loss", 2),
        (("data.train={}/train.txt", "vocabulary.train=false"), "needs a model", 2),
        (
            ("data.train={}/train.txt", "model={}", "vocabulary.vocab_size=16000"),
            "network.hidden_size=32 is for random weights: model={} has a network of its own",
            2,
        ),
        (("data.train={}/train.txt", "model={}"), "vocabulary.vocab_size=300 is for random weights: model={}", 2),
        (("data.train={}/train.txt", "network.num_attention_heads=3"), "is no multiple of", 2),
        (("data.train={}/train.txt", "generation.max_new_tokens=999"), "max_new_tokens=999 is more than the", 2),
    ],
)
def test_what_cannot_be_is_told_before_there_is_a_folder(
    texts: Path, tmp_path: Path, settings: tuple[str, ...], message: str, code: int
) -> None:
    (texts / "short.txt").write_text("a\n", encoding="utf-8")
    given = [setting.format(texts) for setting in settings]
    small = [one for one in SMALL if one.partition("=")[0] not in {name.partition("=")[0] for name in given}]
    outcome = call("train", "gpt2_pretraining", *given, *small, f"output_dir={tmp_path}/run")
    assert outcome.code == code, outcome.err
    assert message.format(texts) in outcome.err
    assert not (tmp_path / "run").exists()


def test_an_empty_completion_is_told_with_its_line(texts: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,completion\na,b\nc,\n", encoding="utf-8")
    columns = ("data.prompt_column=prompt", "data.completion_column=completion")
    outcome = call("train", "gpt2_generation", f"data.train={path}", *columns, f"model={tiny_gpt2}")
    assert outcome.code == Exit.BAD_DATA
    assert "pairs.csv:3" in outcome.err
    path.write_text("prompt,completion\na,\nc,\n", encoding="utf-8")
    skipping = ("data.on_empty=skip", f"model={tiny_gpt2}", f"output_dir={tmp_path}/run")
    outcome = call("train", "gpt2_generation", f"data.train={path}", *columns, *skipping)
    assert outcome.code == Exit.BAD_DATA
    assert "pairs.csv" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2), "Bloom.* takes no positions"),
        (
            Gemma2Config(
                vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=8,
            ),
            "Gemma2.* scales its logits .final_logit_softcapping=30",
        ),
    ],
)  # fmt: skip
def test_a_decoder_whose_loss_would_be_wrong_is_refused(
    tiny_gpt2: Path, tmp_path: Path, shape: PretrainedConfig, told: str
) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=told) as caught:
        load_trained(tmp_path / "model")
    assert caught.value.code == Exit.BAD_DATA


def test_an_empty_prompt_of_a_file_is_told_though_training_left_empty_rows_out(tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.jsonl:2") as caught:
        generating.generate(str(tiny_gpt2), str(path), ["data.on_empty=skip"])
    assert caught.value.code == Exit.BAD_DATA


def test_documents_of_one_token_are_read(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("a\n\nb\n\nc\n\nd\n\n" * 10, encoding="utf-8")
    outcome = done(
        "train", "gpt2_generation", f"data.train={tmp_path}/letters.txt", f"model={tiny_gpt2}", "max_length=8",
        "train.max_steps=2", "train.mixed_precision=no", "train.use_cpu=true", f"output_dir={tmp_path}/run",
        "generation.max_new_tokens=8",
    )  # fmt: skip
    assert "bits_per_byte" in outcome.out
    assert "byte 3-grams, Kneser-Ney" in outcome.out
    assert "text-generation" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")


def test_of_several_seeds_the_best_is_the_one_with_the_fewest_bits(
    texts: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    found = done(
        "train", "gpt2_generation", f"data.train={texts}/train.txt", f"model={tiny_gpt2}", "max_length=16",
        "train.max_steps=3", "train.mixed_precision=no", "train.use_cpu=true", "seeds=[1,2]", "network.dropout=0.5",
        "samples=2", "generation.max_new_tokens=8", f"output_dir={tmp_path}/run", "--json",
    ).json  # fmt: skip
    bits = {seed: one["scores"]["validation"]["bits_per_byte"]["value"] for seed, one in found["seeds"].items()}
    assert bits["1"] != bits["2"]
    best = int(min(bits, key=lambda seed: bits[seed]))
    assert found["diagnostics"]["best_seed_on_validation"] == best
    alone = json.loads((tmp_path / "run" / f"seed-{best}" / "results.json").read_text(encoding="utf-8"))
    assert found["diagnostics"]["written"] == alone["diagnostics"]["written"]
    assert found["scores"]["validation"]["bits_per_byte"]["value"] == pytest.approx(np.mean([*bits.values()]))


def test_a_stop_string_of_the_command_line_may_be_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def taken(run: str, prompts: list[str], reading: list[str], tell: object) -> list[dict[str, Any]]:
        given.extend(reading)
        return []

    monkeypatch.setattr(generating, "generate", taken)
    ends = ("--stop", "\\n", "--stop", "a'\"b", "--stop", "\\t|", "--stop", "\\\\n")
    done("generate", "run", "--prompt", "a", *ends, "--seed", 3)
    settings, _ = configuration.load(Config, given)
    assert settings.generation.stop_strings == ["\n", "a'\"b", "\t|", "\\n"]
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("blank_line", [("a\n b", 2), ("c", 6)]),
        ("line", [("a", 2), (" b", 3), ("c", 6)]),
        ("file", [("a\n b\n\n  \nc", 2)]),
    ],
)
def test_documents_are_parted_as_asked(tmp_path: Path, parts: Any, expected: list[tuple[str, int]]) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\na\n b\n\n  \nc\n\n", encoding="utf-8")
    split = read_split("train", str(path), TextDataConfig(documents=parts))
    assert split.texts() == [text for text, _ in expected]
    assert [split.where(row) for row in range(len(split))] == [f"{path}:{line}" for _, line in expected]


def test_held_out_documents_are_a_function_of_the_seed_and_never_train(texts: Path) -> None:
    config = TextDataConfig(train=f"{texts}/train.txt", validation_share=0.2)
    one, again, other = (read_splits(config, seed=seed) for seed in (1, 1, 2))
    assert one["validation"].texts() == again["validation"].texts() != other["validation"].texts()
    assert len(one["validation"]) == 24
    assert sorted(one["train"].texts() + one["validation"].texts()) == sorted(
        read_split("t", config.train or "", config).texts()
    )


def test_long_prompts_lose_their_beginning_and_completions_stay_whole(tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"p": "x" * 20 + "end", "c": "abc"}) + "\n", encoding="utf-8")
    encoder = routes.TextEncoder(AutoTokenizer.from_pretrained(tiny_gpt2))
    data = TextDataConfig(prompt_column="p", completion_column="c", separator=">")
    split = read_split("train", str(path), data)
    found = routes.completions(split, encoder, routes.Reading.of(8, None, data, 48))
    (row,) = found.rows
    assert found.long == 1
    text = AutoTokenizer.from_pretrained(tiny_gpt2).decode(row[1:-1].tolist())
    assert text == "end>abc"
    assert len(row) == 9  # 8 are read, 8 predicted
    assert found.prompt.tolist() == [5]
    for reads in (routes.completions, routes.coded):  # in training, and in validation, test and evaluate
        strict = TextDataConfig(prompt_column="p", completion_column="c", on_long="error")
        with pytest.raises(UserError, match=r"long\.jsonl:1 has .*\n?give data\.on_long=truncate or skip") as caught:
            reads(split, encoder, routes.Reading.of(8, None, strict, 48))
        assert caught.value.code == Exit.BAD_DATA
    skipping = replace(data, on_long="skip")
    assert len(routes.coded(split, encoder, routes.Reading.of(8, None, skipping, 48)).rows) == 1  # all are scored


def test_long_rows_are_told_of_each_split(tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"p": "x" * size, "c": "abc"}) + "\n" for size in (1, 20)), encoding="utf-8")
    data = TextDataConfig(prompt_column="p", completion_column="c", on_long="skip")
    splits = {name: read_split(name, str(path), data) for name in ("train", "validation")}
    tokenizer, run = AutoTokenizer.from_pretrained(tiny_gpt2), Run(tmp_path / "run", quiet=True)
    reading = routes.Reading.of(8, None, data, 48)
    found = routes.material(splits, routes.TextEncoder(tokenizer), reading)
    start: Any = types.SimpleNamespace(tokenizer=tokenizer)
    (long,) = language_model.say_material(run, start, found, reading)["long_rows"]
    assert long["rows"] == {"train": 1, "validation": 1}
    told = "\n".join(run.heard())
    assert "1 row of train above max_length=8: they are left out" in told
    assert "1 row of validation above max_length=8: they lose the beginning of their prompt" in told


@pytest.mark.parametrize(("on_long", "of_train"), [("truncate", 1), ("skip", 0)])
def test_completions_above_a_window_by_themselves_are_told_apart(
    tiny_gpt2: Path, tmp_path: Path, on_long: Any, of_train: int
) -> None:
    path = tmp_path / "long.jsonl"
    sizes = [(1, 3), (20, 3), (1, 7), (1, 8)]  # 7 and the end fill a window of 8
    lines = (json.dumps({"p": "x" * prompt, "c": "y" * completion}) + "\n" for prompt, completion in sizes)
    path.write_text("".join(lines), encoding="utf-8")
    data = TextDataConfig(prompt_column="p", completion_column="c", on_long=on_long)
    splits = {name: read_split(name, str(path), data) for name in ("train", "validation")}
    tokenizer, run = AutoTokenizer.from_pretrained(tiny_gpt2), Run(tmp_path / "run", quiet=True)
    reading = routes.Reading.of(8, None, data, 48)
    found = routes.material(splits, routes.TextEncoder(tokenizer), reading)
    start: Any = types.SimpleNamespace(tokenizer=tokenizer)
    told = language_model.say_material(run, start, found, reading)
    rows, completions = told["long_rows"]
    assert (rows["noun"], rows["limits"], rows["rows"]) == ("row", {"max_length": 8}, {"train": 3, "validation": 3})
    assert (completions["noun"], completions["rows"]) == ("completion", {"train": of_train, "validation": 1})
    heard = " ".join("\n".join(run.heard()).split())
    what = "1 completion of {} above max_length=8: read without a prompt{}"
    assert (what.format("train", " and cut at the end, end-of-text included") in heard) == bool(of_train)
    assert what.format("validation", ", in windows") in heard


def test_rows_that_are_left_out_teach_nothing(tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    rows = [("x" * 20, "xyz"), ("x", "abc"), ("y" * 20, "wide"), ("y", "cab")]
    path.write_text("".join(json.dumps({"p": p, "c": c}) + "\n" for p, c in rows), encoding="utf-8")
    data = TextDataConfig(prompt_column="p", completion_column="c", separator=">", on_long="skip")
    splits = {name: read_split(name, str(path), data) for name in ("train", "validation")}
    encoder = routes.TextEncoder(AutoTokenizer.from_pretrained(tiny_gpt2))
    found = routes.material(splits, encoder, routes.Reading.of(8, None, data, 48))
    assert (found.learnt, found.before) == (["abc", "cab"], ["x>", "y>"])
    assert found.figures["bytes"] == 6
    assert found.train.name(1) == f"{path}:4"
    assert len(found.texts["validation"].texts) == 4  # all are scored


def test_a_train_of_long_rows_alone_is_refused_with_a_way_out(tiny_gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"p": "x" * 20, "c": "abc"}) + "\n", encoding="utf-8")
    data = TextDataConfig(prompt_column="p", completion_column="c", on_long="skip")
    encoder = routes.TextEncoder(AutoTokenizer.from_pretrained(tiny_gpt2))
    wanted = r"long\.jsonl: every row is .* max_length=8.*\ngive a larger max_length, .*, or data\.on_long=truncate"
    with pytest.raises(UserError, match=wanted) as caught:
        routes.completions(read_split("train", str(path), data), encoder, routes.Reading.of(8, None, data, 48))
    assert caught.value.code == Exit.BAD_DATA


def test_what_is_counted_has_a_limit_even_of_one_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_BASELINE_BYTES", 10_000)
    long = "".join(f"{number:04d} да " for number in range(3_000))  # 30,000 bytes, 12 parts
    for texts in ([long], ["x" * 100, long, "y" * 100], [f"{number:05d}" for number in range(6_000)], ["a" * 11_000]):
        kept, share = routes.affordable(texts)
        size, total = (sum(len(text.encode()) for text in some) for some in (kept, texts))
        assert 0.7 * 10_000 <= size <= 10_000
        assert share == size / total
        places = ["\n".join(texts).index(part) for part in kept]
        assert places == sorted(places)
    kept, _ = routes.affordable([long])
    assert long.index(kept[-1]) > len(long) / 2  # of all of it
    whole = ["a" * 6_000, "b" * 4_000]
    assert routes.affordable(whole) == (whole, 1.0)


def test_the_name_of_the_n_grams_says_how_much_they_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST_BASELINE_BYTES", 10_000)
    texts = [sentence(np.random.default_rng(row)) for row in range(20)] * 40
    name, _, _ = routes.beside(routes.Material(mock.Mock(), {}, texts, [""] * len(texts), {}))
    assert name.endswith(f" (of {100 * routes.affordable(texts)[1]:.3g} % of train)")


def test_the_page_has_what_such_a_run_can_tell(pretrained_run: Ended) -> None:
    assert {"scores", "curves", "errors", "made"} <= set(sections_of(pretrained_run[0]))
