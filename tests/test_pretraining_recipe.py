"""The recipe bert_pretraining from files to a saved model, and what it says to files and settings that do not fit."""

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from calling import call, done, private_cache, read_jsonl, sections_of
from pretexts import BRIEF, NEW_WORDS, SMALL, translated, write_mono, write_pairs, write_rows
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune.pretraining import corpus
from finetune.pretraining.corpus import MOST_HELD_OUT, CorpusConfig, hold_out

RECIPE = ("train", "bert_pretraining")
Ended = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with text of two languages and pairs of two with English."""
    folder = tmp_path_factory.mktemp("texts")
    write_mono(folder, "en", 120)
    write_mono(folder, "it", 60)
    for language in ("it", "de"):
        write_pairs(folder, language)
    return folder


@pytest.fixture(scope="module")
def masked_run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a run of mlm+tlm and its results."""
    folder = tmp_path_factory.mktemp("masked") / "run"
    with private_cache(folder.parent):
        outcome = done(
            *RECIPE, f"data.train={texts}/mono.{{language}}.txt", f"data.test={texts}/mono.{{language}}.txt",
            f"data.parallel={texts}/parallel.en-{{language}}.jsonl.gz", "train_languages=[en,it]", "objective=mlm+tlm",
            *SMALL, "train.num_train_epochs=10", "train.learning_rate=1e-2", "network.dropout=0",
            "data.validation_share=0.1", "network.save_dtype=float16", f"output_dir={folder}", "--json",
        )  # fmt: skip
    return folder, outcome.json


@pytest.fixture(scope="module")
def distilled_run(texts: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a run of distil, with a new vocabulary in the teacher's body, and its results."""
    folder = tmp_path_factory.mktemp("distilled") / "run"
    with private_cache(folder.parent):
        outcome = done(
            *RECIPE, f"data.parallel={texts}/parallel.en-{{language}}.jsonl.gz", "train_languages=[en,it,de]",
            "objective=distil", f"teacher={tiny_model}", f"model={tiny_model}", "vocabulary.train=true",
            "data.validation_share=0.2", *NEW_WORDS, "train.num_train_epochs=25", f"output_dir={folder}", "--json",
        )  # fmt: skip
    return folder, outcome.json


def test_masked_tokens_are_guessed_better_than_by_frequency(masked_run: Ended) -> None:
    _, results = masked_run
    assert results["task"] == "masked language modelling"
    assert {"loss", "perplexity", "accuracy"} == set(results["scores"]["test"])
    assert results["comparison"]["metric"] == "loss"
    assert results["comparison"]["verdict"] == "better"
    assert set(results["comparisons"]) == {"en", "it"}
    own, cheap = results["scores"]["test"], results["baseline"]["scores"]["test"]
    assert own["loss"]["high"] < cheap["loss"]["low"]
    assert own["perplexity"]["value"] == pytest.approx(np.exp(own["loss"]["value"]))
    assert set(results["languages"]) == {"en", "it"}
    assert "tlm" in results["diagnostics"]


def test_aligned_embeddings_begin_nearer_to_the_teacher_than_copied_ones(
    texts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    retrieved = {}
    with private_cache(tmp_path):
        for rows in ("copied", "aligned"):
            found = done(
                *RECIPE, f"data.parallel={texts}/parallel.en-{{language}}.jsonl.gz", "train_languages=[en,it,de]",
                "objective=distil", f"teacher={tiny_model}", f"model={tiny_model}", "vocabulary.train=true", *NEW_WORDS,
                f"vocabulary.embeddings={rows}", "data.validation_share=0.2", "train.max_steps=1",
                f"output_dir={tmp_path / rows}", "--json",
            )  # fmt: skip
            first = next(one for one in found.json["baselines"] if one["name"] == "the first weights")
            retrieved[rows] = first["scores"]["validation"]["accuracy"]["value"]
    assert "embeddings aligned by translations" in found.err
    assert re.search(r"1 update of at most \d+ examples and 512 tokens", found.err)
    assert retrieved["aligned"] > retrieved["copied"] + 0.2


def test_aligned_embeddings_need_pairs_and_a_body(texts: Path, tiny_model: Path) -> None:
    mono = (*RECIPE, f"data.train={texts}/mono.en.txt", "vocabulary.embeddings=aligned", "vocabulary.train=true")
    without_body = call(*mono)
    assert without_body.code == 2
    assert "a new vocabulary in a model's body" in without_body.err
    without_pairs = call(*mono, f"model={tiny_model}")
    assert without_pairs.code == 2
    assert "give data.parallel=FILE" in without_pairs.err


def test_the_saved_model_is_loaded_by_each_auto_class(masked_run: Ended) -> None:
    model = str(masked_run[0] / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer("the cat sees", return_tensors="pt")
    masked = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32)
    plain = AutoModel.from_pretrained(model, dtype=torch.float32)
    head = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, num_labels=3)
    assert masked(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(tokenizer))
    assert torch.equal(plain.pooler.dense.weight, head.bert.pooler.dense.weight)
    assert torch.equal(plain.embeddings.word_embeddings.weight, masked.bert.embeddings.word_embeddings.weight)
    assert masked.cls.predictions.decoder.weight.data_ptr() == masked.bert.embeddings.word_embeddings.weight.data_ptr()
    assert AutoModel.from_pretrained(model, dtype="auto").dtype == torch.float16


def test_a_pretrained_run_fills_gaps(masked_run: Ended, tmp_path: Path) -> None:
    words = ["cat", "dog", "cat", "hill", "dog", "cat", "hill"]
    hidden = [*words[:3], "[MASK]", *words[4:]]
    (tmp_path / "gaps.txt").write_text(" ".join(hidden) + "\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    done("predict", masked_run[0], "--input", tmp_path / "gaps.txt", "--output", output)
    row = read_jsonl(output)[0]
    assert row["text"] == " ".join(hidden)
    best = next(iter(row["candidates"][0]))
    assert row["predicted"] == " ".join([*words[:3], best, *words[4:]])
    assert row["score"] == pytest.approx(max(row["candidates"][0].values()))
    refused = call("predict", masked_run[0], stdin="no gap here\n")
    assert refused.code == 65
    assert "stdin:1 has no [MASK] to fill" in refused.err
    assert "[MASK]" not in done("predict", masked_run[0], stdin=" ".join(hidden)).out.split("\t")[0]


def test_evaluate_scores_another_text(masked_run: Ended, tmp_path: Path) -> None:
    scores = done("evaluate", masked_run[0], "--data", write_mono(tmp_path, "it", 40, seed=9), "--json").json
    assert set(scores) == {"loss", "perplexity", "accuracy"}
    unknown = done("evaluate", masked_run[0], "--data", write_mono(tmp_path, "de", 40, seed=9), "--json").json
    assert scores["loss"]["value"] < unknown["loss"]["value"]


def test_a_checkpoint_goes_on_with_its_own_vocabulary(masked_run: Ended, tmp_path: Path) -> None:
    before = masked_run[0] / "model"
    run = tmp_path / "run"
    done(
        *RECIPE, f"data.train={write_mono(tmp_path, 'it', 40, seed=5)}", f"model={before}", *BRIEF[:4],
        "train.max_steps=2", "network.trained=embeddings", f"output_dir={run}",
    )  # fmt: skip
    old, new = (
        AutoModelForMaskedLM.from_pretrained(str(path), dtype=torch.float32) for path in (before, run / "model")
    )
    assert AutoTokenizer.from_pretrained(run / "model").get_vocab() == AutoTokenizer.from_pretrained(before).get_vocab()
    same = {name: torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items()}
    assert all(equal for name, equal in same.items() if ".encoder." in name)
    assert not same["bert.embeddings.word_embeddings.weight"]
    assert not same["cls.predictions.transform.dense.weight"]


def test_the_pooler_learns_where_second_texts_are_told_apart(texts: Path, tmp_path: Path) -> None:
    settings = (*RECIPE, *SMALL, f"data.train={texts}/mono.en.txt", "train.max_steps=3")
    done(*settings, "masking.next_sentence=true", f"output_dir={tmp_path}/with")
    done(*settings, f"output_dir={tmp_path}/without")
    with_task, without = (
        AutoModel.from_pretrained(f"{tmp_path}/{name}/model").pooler.dense.bias for name in ("with", "without")
    )
    assert with_task.abs().max() > 0
    assert without.abs().max() == 0


def test_two_pretrainings_are_not_compared_by_their_guesses(masked_run: Ended, distilled_run: Ended) -> None:
    outcome = call("compare", masked_run[0], distilled_run[0])
    assert outcome.code == 2
    assert "fine-tune both models on one task" in outcome.err


def test_a_pretraining_is_not_scored_in_other_languages(masked_run: Ended, tmp_path: Path) -> None:
    (tmp_path / "it.csv").write_text("text,label\nun gatto,a\n", encoding="utf-8")
    for run in (masked_run[0], masked_run[0] / "model"):
        refused = call("crosslingual", run, "--data", f"{tmp_path}/{{language}}.csv")
        assert refused.code == 2, refused.err
        assert f"finetune train mbert_crosslingual model={masked_run[0] / 'model'}" in refused.err


def test_a_student_meets_its_teacher_and_finds_translations(distilled_run: Ended) -> None:
    run, results = distilled_run
    assert "sentences: it " in (run / "train.log").read_text(encoding="utf-8")
    assert results["task"] == "translation distillation"
    assert results["comparison"]["metric"] == "accuracy"
    names = [system["name"] for system in results["baselines"]]
    assert names == ["character n-grams (2-4, TF-IDF)", "the first weights"]
    first = results["baselines"][1]["scores"]["validation"]
    own = results["scores"]["validation"]
    assert own["loss"]["high"] < first["loss"]["low"] / 2
    assert own["accuracy"]["value"] > first["accuracy"]["value"]
    shares = results["diagnostics"]["retrieval"]["languages"]
    assert set(shares) == {"it", "de"} == set(results["languages"])
    assert set(shares["it"]) == {"mean", "mean_reverse", "cls", "cls_reverse"}


def test_a_distilled_model_is_a_bert_with_pooler(distilled_run: Ended) -> None:
    folder = distilled_run[0] / "model"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    head = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=3)
    plain = AutoModel.from_pretrained(str(folder))
    assert torch.equal(plain.pooler.dense.weight, head.bert.pooler.dense.weight)
    assert torch.equal(plain.pooler.dense.weight, torch.eye(32))  # [CLS] is the sentence's vector: let it through
    AutoModelForMaskedLM.from_pretrained(str(folder))
    outcome = call("predict", distilled_run[0], stdin="the [MASK] sees\n")
    assert outcome.code == 65
    assert "without an output layer for hidden tokens" in outcome.err


def mono(texts: Path) -> str:
    return f"data.train={texts}/mono.{{language}}.txt"


def parallel(texts: Path) -> str:
    return f"data.parallel={texts}/parallel.en-{{language}}.jsonl.gz"


@pytest.mark.parametrize(
    ("settings", "code", "wanted"),
    [
        (["mono", "train_languages=[en,fr]"], 66, ["mono.fr.txt: no such file"]),
        (["mono", "train_languages=[en,it,en]"], 2, ["train_languages: en is given twice"]),
        (["parallel", "train_languages=[en,../it]", "objective=tlm"], 2, ['"../it" is no language code']),
        (["data.train=one.txt", "train_languages=[en,it]"], 2, ["data.train=one.txt has no {language}"]),
        (["mono"], 2, ["which languages? give train_languages=[en,it]"]),
        (["mono", "train_languages=[en]", "objective=mml"], 2, ["there is no mml; did you mean mlm?"]),
        (["mono", "train_languages=[en]", "objective=mlm+mlm"], 2, ["names a part twice"]),
        (["train_languages=[en]"], 2, ["objective=mlm needs data.train=FILE"]),
        (["mono", "train_languages=[en,it]", "objective=mlm+tlm"], 2, ["needs data.parallel=FILE"]),
        (["parallel", "train_languages=[en,it]", "objective=distil"], 2, ["needs teacher=NAME"]),
        (["parallel", "train_languages=[en]", "objective=tlm"], 2, ["train_languages names none"]),
        (["mono", "train_languages=[en]", "teacher=minilm"], 2, ["teacher=minilm is for objective=distil"]),
        (
            ["parallel", "train_languages=[en,it]", "objective=tlm", "data.test=a.txt"],
            2,
            ["data.test=a.txt is for obj"],
        ),
        (["mono", "train_languages=[en]", "data.parallel_validation=a.csv"], 2, ["objective=tlm or distil, and this"]),
        (["mono", "train_languages=[en]", "vocabulary.train=false"], 2, ["needs a model whose vocabulary is taken"]),
        (["mono", "train_languages=[en]", "network.num_attention_heads=5"], 2, ["is no multiple of"]),
        (["mono", "train_languages=[en]", "train.metric_for_best_model=bleu"], 2, ["no such score"]),
        (["mono", "train_languages=[en]", "max_length=600"], 2, ["more than the 512 tokens"]),
        (["parallel", "train_languages=[en,fr]", "objective=tlm"], 66, ["parallel.en-fr.jsonl.gz: no such file"]),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    texts: Path, tmp_path: Path, settings: list[str], code: int, wanted: list[str]
) -> None:
    known = {"mono": mono(texts), "parallel": parallel(texts)}
    outcome = call(*RECIPE, *SMALL, *(known.get(one, one) for one in settings), f"output_dir={tmp_path / 'run'}")
    assert outcome.code == code, outcome.err
    assert all(text in outcome.err for text in wanted), outcome.err
    assert not (tmp_path / "run").exists()


def test_a_pair_without_one_side_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"en": "a cat", "it": "un gatto"}, {"en": "a dog", "it": " "}]
    write_rows(tmp_path / "parallel.en-it.jsonl.gz", rows)
    outcome = call(
        *RECIPE, *SMALL, parallel(tmp_path), "train_languages=[en,it]", "objective=tlm", f"output_dir={tmp_path}/r"
    )
    assert outcome.code == 65
    assert "parallel.en-it.jsonl.gz:2: the second side of the pair is missing or empty" in outcome.err
    write_rows(tmp_path / "parallel.en-it.jsonl.gz", [{"en": "a cat", "de": "eine Katze"}])
    outcome = call(
        *RECIPE, *SMALL, parallel(tmp_path), "train_languages=[en,it]", "objective=tlm", f"output_dir={tmp_path}/r"
    )
    assert outcome.code == 65
    assert "has no column it" in outcome.err


def test_a_vocabulary_that_does_not_know_a_script_is_refused_by_language(
    texts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write_mono(tmp_path, "en")
    (tmp_path / "mono.el.txt").write_text("\n\n".join(["η γάτα βλέπει το σπίτι"] * 20), encoding="utf-8")
    outcome = call(
        *RECIPE, *BRIEF, mono(tmp_path), "train_languages=[en,el]", f"model={tiny_model}", f"output_dir={tmp_path}/run"
    )
    assert outcome.code == 65
    assert "el: 100 % of the words are unknown to the vocabulary" in outcome.err


@pytest.mark.parametrize("setting", ["network.hidden_size=32", "vocabulary.vocab_size=240"])
def test_what_a_model_has_already_is_refused(texts: Path, tiny_model: Path, tmp_path: Path, setting: str) -> None:
    outcome = call(*RECIPE, *BRIEF, mono(texts), "train_languages=[en]", f"model={tiny_model}", setting)
    assert outcome.code == 2
    assert f"{setting} is for random weights: model={tiny_model} has a {setting.partition('.')[0]} of" in outcome.err


def test_text_of_less_than_one_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a cat\n\nthe dog\n", encoding="utf-8")
    outcome = call(*RECIPE, *SMALL, f"data.train={tmp_path}/short.txt", f"output_dir={tmp_path}/run")
    assert outcome.code == 65
    assert "less than one block of 32" in outcome.err
    (tmp_path / "short.txt").write_text("a cat\nthe dog\n", encoding="utf-8")
    outcome = call(*RECIPE, *SMALL, f"data.train={tmp_path}/short.txt", f"output_dir={tmp_path}/run")
    assert "is one document, so none can be held out" in outcome.err


def test_texts_for_the_vocabulary_alone_are_said_to_be_and_those_for_nothing_refused(
    texts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    both = [*RECIPE, *SMALL, mono(texts), parallel(texts), "train_languages=[en,it]", f"output_dir={tmp_path}/run"]
    outcome = call(*both, "--dry-run")
    assert "data.parallel: for the vocabulary alone; objective=mlm does not read it" in outcome.err
    outcome = call(*both, "objective=tlm", "--dry-run")
    assert "data.train: for the vocabulary alone; objective=tlm does not read it" in outcome.err
    own = [one for one in both if one not in SMALL or one in BRIEF]
    outcome = call(*own, f"model={tiny_model}")
    assert outcome.code == 2
    assert "objective=mlm does not read data.parallel, and the vocabulary is the model's own" in outcome.err
    outcome = call(*both, "objective=mlm+tlm", "--dry-run")
    assert "vocabulary alone" not in outcome.err


def test_teacher_and_student_of_different_widths_are_refused(texts: Path, tiny_model: Path, tmp_path: Path) -> None:
    outcome = call(
        *RECIPE, *SMALL, parallel(texts), "train_languages=[en,it]", "objective=distil", f"teacher={tiny_model}",
        "network.hidden_size=48", f"output_dir={tmp_path}/run",
    )  # fmt: skip
    assert outcome.code == 2
    assert "the teacher's vectors have 32 dimensions, the model's 48" in outcome.err


def test_a_held_out_text_is_refused_with_its_line_or_left_out(texts: Path, tmp_path: Path) -> None:
    lines = (texts / "mono.it.txt").read_text(encoding="utf-8").splitlines()
    number = next(place for place, line in enumerate(lines, 1) if place > 9 and line)
    held = tmp_path / "test.csv"
    held.write_text(f'id,text\n1,"{lines[number - 1].upper()}!"\n', encoding="utf-8")
    asked = (*RECIPE, *SMALL, mono(texts), "train_languages=[en,it]", f"data.held_out={held}", "train.max_steps=1")
    first = lines.index(lines[number - 1]) + 1
    outcome = call(*asked, f"output_dir={tmp_path}/run")
    assert outcome.code == 65
    assert f"mono.it.txt:{first} stands in {held}:2" in outcome.err
    with mock.patch.object(corpus, "read_held_out", wraps=corpus.read_held_out) as reads:
        outcome = done(*asked, "data.on_leak=drop", f"output_dir={tmp_path}/run")
    assert reads.call_count == 1  # for the vocabulary, and for what is learnt
    assert f"{lines.count(lines[number - 1])} left out (data.held_out)" in outcome.err
    pair = tmp_path / "pair.txt"
    italian = translated("cat tree finds", "it")
    pair.write_text(f"{italian}\n", encoding="utf-8")
    write_rows(tmp_path / "parallel.en-it.jsonl.gz", [{"en": "cat tree finds", "it": f"{italian}."}])
    outcome = call(
        *RECIPE, *SMALL, parallel(tmp_path), "train_languages=[en,it]", "objective=tlm", f"data.held_out={pair}",
        f"output_dir={tmp_path}/other",
    )  # fmt: skip
    assert outcome.code == 65
    assert f"parallel.en-it.jsonl.gz:1 stands in {pair}:1" in outcome.err


def test_what_is_held_out_is_a_share_and_never_everything() -> None:
    config = CorpusConfig(validation_share=0.1)
    assert hold_out(200, config, 1).sum() == 20
    assert np.array_equal(hold_out(200, config, 1), hold_out(200, config, 1))
    assert not np.array_equal(hold_out(200, config, 1), hold_out(200, config, 2))
    assert hold_out(2, CorpusConfig(validation_share=0.99), 1).sum() == 1
    assert hold_out(1_000_000, config, 1).sum() == MOST_HELD_OUT


def test_the_share_that_is_held_out_is_told_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(["the cat sees a dog"] * 200), encoding="utf-8")  # two pieces
    asked = (*RECIPE, *SMALL, "train.max_steps=1")
    outcome = done(*asked, f"data.train={tmp_path}/lines.txt", f"output_dir={tmp_path}/lines")
    assert re.search(r"validation: 1 document \((49|50)\.\d % of the tokens\) held out, seed 1", outcome.err)
    write_pairs(tmp_path, "it", 20)
    outcome = done(
        *asked, parallel(tmp_path), "train_languages=[en,it]", "objective=tlm", f"output_dir={tmp_path}/pairs"
    )
    assert "validation: 1 en sentence (5.0 %) with all pairs held out, seed 1" in outcome.err


def test_several_seeds_are_joined(tmp_path: Path) -> None:
    write_mono(tmp_path, "en", 40)
    results = done(
        *RECIPE, *SMALL, f"data.train={tmp_path}/mono.en.txt", "seeds=[1,2]", "train.max_steps=2",
        f"output_dir={tmp_path}/run", "--json",
    ).json  # fmt: skip
    assert "sd" in results["scores"]["validation"]["loss"]
    assert results["diagnostics"]["seeds"] == [1, 2]


def test_the_page_has_what_such_a_run_can_tell(masked_run: Ended) -> None:
    assert {"scores", "curves", "languages", "made"} <= set(sections_of(masked_run[0]))
