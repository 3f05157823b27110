"""A run asked one text at a time: the answers of `predict` and `generate`, and what is known beside them."""

import itertools
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_seq2seq as tiny
from calling import done, private_cache, read_jsonl, train_toy, write_csv
from conftest import toy_rows

from finetune import classifier, trial
from finetune.commands import runs
from finetune.errors import Exit, UserError
from finetune.run import Run
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.vocabulary import VocabularyConfig, learn
from finetune.text_evaluation import task_named

SETTINGS = (1.0, 1.0, 12, 3)
SMALL = (
    "network.hidden_size=32", "network.num_encoder_layers=1", "network.num_decoder_layers=1", "baseline=none",
    "vocabulary.kind=word", "vocabulary.min_frequency=1", "train.max_steps=2", "train.mixed_precision=no",
)  # fmt: skip
WORDS = ["red", "blue", "green", "gold"]
BLIND = {"architecture": "rnn", "attention": "none"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a run that labels texts."""
    folder = tmp_path_factory.mktemp("labelled")
    with private_cache(folder):
        return train_toy(folder, tiny_model)


def asked(run: Path) -> trial.Answering:
    folder, recipe, config = runs.trained(str(run), ())
    return trial.answering(folder, recipe, config)


def known(run: Path) -> trial.Known:
    return trial.known(Run.open(run), Run.open(run))


def predicted(run: Path, text: str) -> dict[str, Any]:
    row: dict[str, Any] = done("predict", run, "--json", stdin=text).json[0]
    return row


def test_a_text_is_labelled_as_predict_labels_it_and_cuts_are_told(labelled: Path) -> None:
    page, text = asked(labelled), "my parcel is late"
    answer, row = page.answer([text]), predicted(labelled, text)
    assert (page.columns, page.labels) == (["text"], True)
    assert (answer.text, answer.probabilities, answer.notes) == (row["predicted"], row["probabilities"], [])
    (note,) = page.answer(["parcel " * 90]).notes
    assert "cut at 32" in note
    assert page.answer([text]).notes == []


def test_the_model_is_loaded_once(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, real = [], classifier.load_trained

    def counted(folder: Path) -> classifier.Classifier:
        loads.append(folder)
        return real(folder)

    monkeypatch.setattr(classifier, "load_trained", counted)
    page = asked(labelled)
    assert page.answer(["a card"]).text == page.answer(["a card"]).text
    assert len(loads) == 1


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_is_told(labelled: Path, text: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(labelled).answer([text])
    assert caught.value.code == Exit.BAD_DATA


def test_score_interval_and_data_of_the_run_stand_on_the_page(labelled: Path) -> None:
    found = known(labelled)
    results = json.loads((labelled / "results.json").read_text())
    accuracy = results["scores"]["test"]["accuracy"]
    assert found.title == "BERT: classification"
    facts = "\n".join(found.facts)
    assert f"accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]" in facts
    assert "on 24 test rows" in facts
    assert "TF-IDF" in found.facts[0]
    for name, digest in json.loads((labelled / "environment.json").read_text())["data_sha256"].items():
        assert f"{Path(name).name} {digest[:12]}" in facts


def test_of_a_data_set_without_files_no_digest_is_told(labelled: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(labelled, tmp_path / "run"))
    told = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps(told | {"data_sha256": {}}))
    assert not [fact for fact in known(copied).facts if "sha256" in fact]


def test_examples_are_test_rows_with_their_label_and_what_the_baseline_said(labelled: Path) -> None:
    found = known(labelled)
    rows = read_jsonl(labelled / "predictions" / "test.jsonl")
    cheap = {row["text"]: row["predicted"] for row in read_jsonl(labelled / "predictions" / "baseline.test.jsonl")}
    assert len(found.examples) == trial.EXAMPLES
    gold = {row["text"]: row["gold"] for row in rows}
    for (text,) in found.examples:
        mine, other = found.beside[text,]
        assert mine == f"in test: {gold[text]}"
        assert other == f"TF-IDF: {cheap[text]}"


def test_of_a_text_in_several_rows_every_label_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "config.yaml").write_text("recipe: bert_classification\n")
    results = {
        "recipe": "bert_classification", "model": "m", "task": "classification", "baseline": {"name": "TF-IDF (word)"},
        "scores": {"test": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}}},
        "diagnostics": {"judged_on": "test", "system": "BERT", "rows": {"test": 3}},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    for name, key, labels in (("test", "gold", ["one", "two", "one"]), ("baseline.test", "predicted", ["one"] * 3)):
        rows = [json.dumps({"text": "my card", key: label}) + "\n" for label in labels]
        (tmp_path / "predictions" / f"{name}.jsonl").write_text("".join(rows))
    assert known(tmp_path).beside == {("my card",): ["in test: one", "in test: two", "TF-IDF: one"]}


def test_a_model_folder_says_that_nothing_is_known(labelled: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(labelled / "model", tmp_path / "alone"))
    assert known(alone) == trial.Known("alone", [trial.NOTHING_KNOWN])
    assert asked(alone).answer(["my card"]).text == asked(labelled).answer(["my card"]).text


def test_pairs_are_asked_for_two_texts_and_several_labels_are_all_named(tmp_path: Path) -> None:
    rows = [(identity, text, label) for identity, text, label in toy_rows(24)]
    pairs = write_csv(tmp_path / "p.csv", [(*row, row[2]) for row in rows], ("id", "text", "label", "second"))
    done("baseline", f"data.train={pairs}", "data.text_pair_column=second", f"output_dir={tmp_path / 'pairs'}")
    page = asked(tmp_path / "pairs")
    assert page.columns == ["text", "second text"]
    assert page.answer(["my", "delivery"]).text == "delivery"
    assert page.answer(["my", "payment"]).text == "payment"
    assert all(
        len(texts) == 2 and tuple(texts) in known(tmp_path / "pairs").beside
        for texts in known(tmp_path / "pairs").examples
    )
    several = write_csv(tmp_path / "m.csv", [(i, f"{text} {text}", f"{label}|all") for i, text, label in rows])
    done("baseline", f"data.train={several}", "data.multi_label=true", f"output_dir={tmp_path / 'several'}")
    assert "all" in asked(tmp_path / "several").answer(["my parcel"]).text.split(" | ")


def turner(folder: Path, **shape: Any) -> Path:
    """Write a sequence-to-sequence model with random weights into a folder."""
    words = learn(WORDS, WORDS, VocabularyConfig(kind="word", min_frequency=1))
    size: dict[str, Any] = {"hidden_size": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "dropout": 0.0}
    network = networks.NetworkConfig(**size, num_attention_heads=2, **shape)
    networks.build(network, words, networks.Lengths(8, 8), 1, task_named("transduction", None)).save(folder)
    return folder


@pytest.mark.parametrize(("shape", "looks"), [({"architecture": "transformer"}, True), (BLIND, False)])
def test_a_text_is_written_as_predict_writes_it_with_a_picture_where_there_is_attention(
    shape: dict[str, Any], looks: bool, tmp_path: Path
) -> None:
    model = turner(tmp_path / "model", **shape)
    page = asked(model)
    answer = page.answer(["red gold"])
    assert (page.columns, page.labels) == (["source"], False)
    assert answer.text == predicted(model, "red gold")["predicted"]
    assert answer.probabilities is None
    assert ("<svg" in answer.picture) is looks
    assert bool(re.search(r'aria-label="[^"]+: \S+ \d+ %', answer.picture)) is looks
    assert "cut at 8" in page.answer(["red " * 9]).notes[0]


def test_summaries_are_written_as_predict_writes_them(tmp_path: Path) -> None:
    files = (*tiny.pair_files(tmp_path, 16), f"output_dir={tmp_path / 'run'}", "generation.max_new_tokens=6")
    done("train", "summarization", *files, "architecture=seq2seq", "network.num_attention_heads=2", *SMALL)
    answer = asked(tmp_path / "run").answer([tiny.TEXTS[0]])
    assert answer.text == predicted(tmp_path / "run", tiny.TEXTS[0])["predicted"]
    assert answer.picture == ""


@pytest.fixture
def writer(tiny_gpt2: Path) -> trial.Writing:
    folder, _, config = runs.trained(str(tiny_gpt2), ())
    return trial.going_on(folder, config, lambda reading: runs.trained(str(tiny_gpt2), reading)[2])


def test_a_prompt_is_gone_on_from_piece_by_piece_as_generate_does(writer: trial.Writing, tiny_gpt2: Path) -> None:
    *parts, (text, notes) = list(writer.write("a cat", SETTINGS))
    given = ("--temperature", 1, "--top-p", 1, "--max-new-tokens", 12, "--seed", 3)
    assert text == done("generate", tiny_gpt2, "--prompt", "a cat", *given, "--json").json["texts"][0]
    assert len({part for part, _ in parts}) > 3
    assert all(longer.startswith(part) for (part, _), (longer, _) in itertools.pairwise(parts))
    assert "12 tokens" in notes[0]
    assert list(writer.write("a cat", (1.0, 1.0, 12, 4)))[-1][0] != text


def test_settings_that_make_no_sense_are_told(writer: trial.Writing) -> None:
    with pytest.raises(UserError, match="top_p"):
        list(writer.write("a cat", (1.0, 7.0, 12, 3)))
    with pytest.raises(UserError, match="max_new_tokens"):
        list(writer.write("a cat", (1.0, 1.0, 4000, 3)))


def test_writing_ends_where_nobody_listens_any_more() -> None:
    told = []

    def write(tell: Any) -> None:
        for number in range(1_000_000):
            tell("x")
            told.append(number)

    texts = trial._streamed(write)
    assert [next(texts), next(texts)] == ["x", "xx"]
    texts.close()
    count = -1
    while count < len(told):
        count = len(told)
        time.sleep(0.2)
    assert count < 1_000_000
