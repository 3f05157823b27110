"""What `finetune explain` shows: whose tokens, which weights, and where the picture is."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from calling import Outcome, call, done, private_cache, tree
from rich.cells import cell_len

from finetune.explain import END, Explanation, _readable, explained
from finetune.report.explanation import draw, explanation_lines
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.model import sequence_loss
from finetune.seq2seq.vocabulary import Kind, VocabularyConfig, learn
from finetune.text_evaluation import task_named

WORDS = ["red", "blue", "green", "black", "white", "grey", "pink", "gold"]
SHAPE = {"hidden_size": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "dropout": 0.0}
LENGTHS = networks.Lengths(12, 12)
TEXT = "red blue red gold"
LINE_WIDTH = 80
SVG = "{http://www.w3.org/2000/svg}"


def made(kind: Kind = "word", **shape: Any) -> networks.EncoderDecoder:
    """Return a small model with random weights whose vocabulary has the words."""
    vocabulary = VocabularyConfig(kind=kind, min_frequency=1, vocab_size=100)
    words = learn(WORDS, [f"{word}, <script> & 'x'." for word in WORDS], vocabulary)
    network = networks.NetworkConfig(**{"num_attention_heads": 2, "intermediate_size": 64, **SHAPE, **shape})
    return networks.build(network, words, LENGTHS, 1, task_named("transduction", None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with attention."""
    path = tmp_path_factory.mktemp("explain") / "model"
    made(architecture="rnn", attention="additive").save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two updates."""
    folder = tmp_path_factory.mktemp("run")
    rows = [json.dumps({"source": f"{a} {b}", "target": f"{b} {a}"}) + "\n" for a in WORDS for b in WORDS]
    (folder / "train.jsonl").write_text("".join(rows))
    settings = [f"network.{name}={value}" for name, value in {**SHAPE, "num_attention_heads": 2}.items()]
    settings += ["vocabulary.kind=word", "vocabulary.min_frequency=1", "train.max_steps=2", "baseline=none"]
    settings += ["train.mixed_precision=no", "max_source_length=12", "max_target_length=40"]
    with private_cache(folder):
        files = (f"data.train={folder / 'train.jsonl'}", f"output_dir={folder / 'run'}")
        done("train", "seq2seq", "task=transduction", *files, *settings)
    return folder / "run"


def explain(run: Path, output: Path, *options: object) -> Outcome:
    return done("explain", run, "--text", TEXT, "--output", output / "a.svg", *options)


@pytest.fixture(scope="module")
def given(folder: Path) -> dict[str, Any]:
    """Return the JSON of a target that the model did not write; its picture lies beside the model."""
    found: dict[str, Any] = explain(folder, folder.parent, "--json", "--target", "gold, red.").json
    return found


def texts(path: Path) -> list[str]:
    """Return the texts that a reader of a picture sees."""
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text")]


# What is shown


@pytest.mark.parametrize("architecture", ["rnn", "transformer"])
def test_json_holds_tokens_weights_that_sum_to_one_text_score_and_picture(
    given: dict[str, Any], run: Path, tmp_path: Path, architecture: str
) -> None:
    found = given if architecture == "rnn" else explain(run, tmp_path, "--json").json
    assert found["source"] == TEXT
    assert found["source_tokens"] == [*TEXT.split(), END]
    assert found["target_tokens"][-1] == END
    assert np.array(found["weights"]).shape == (len(found["target_tokens"]), 5)
    assert np.array(found["weights"]).sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert found["score"] < 0
    assert found["given"] == (found is given)
    assert {*found["source_tokens"], *found["target_tokens"]} <= set(texts(Path(found["picture"])))


def test_the_text_and_its_score_are_those_of_predict(run: Path, tmp_path: Path) -> None:
    found = explain(run, tmp_path, "--json").json
    predicted = done("predict", run, "--json", stdin=f"{TEXT}\n").json[0]
    assert (found["text"], found["score"]) == (predicted["predicted"], predicted["score"])
    assert found["target_tokens"] == [*predicted["predicted"].split(), END]


def test_a_given_target_is_read_token_by_token_with_the_models_own_score(folder: Path, given: dict[str, Any]) -> None:
    assert given["text"] == "gold, red."
    assert given["target_tokens"] == ["gold", ",", "red", ".", END]
    parts = networks.load(folder)
    source = torch.tensor(parts.vocabularies.encode_sources([TEXT]))
    target = torch.tensor(parts.vocabularies.encode_targets(["gold, red."]))
    with torch.no_grad():
        loss = float(sequence_loss(parts.model, source, torch.ones_like(source).bool(), target, 0.0))
    assert given["score"] == pytest.approx(-loss / 5, abs=1e-5)


def test_the_text_that_the_model_writes_scores_the_same_when_it_is_given(run: Path, tmp_path: Path) -> None:
    own = explain(run, tmp_path, "--json").json
    given = explain(run, tmp_path, "--json", "--target", own["text"]).json
    assert given["score"] == pytest.approx(own["score"], abs=1e-4)
    assert np.array(given["weights"]) == pytest.approx(np.array(own["weights"]), abs=1e-5)


def test_the_terminal_names_source_text_score_and_what_each_token_looked_at(
    folder: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    shown = explain(folder, tmp_path, "--target", "gold, red.").out
    assert shown.startswith(f"source    {TEXT}\ngiven     gold, red.\n          score -")
    assert max(map(len, shown.splitlines()[:-1])) <= LINE_WIDTH
    first = np.argmax(given["weights"][0])
    name = given["source_tokens"][first] + (f" ({first + 1})" if first in (0, 2) else "")  # red comes twice
    assert f"looked at gold   {name} {100 * given['weights'][0][first]:.0f} %" in shown
    assert shown.splitlines()[-1] == f"picture   {tmp_path / 'a.svg'}"


def test_a_model_that_copies_looks_at_the_token_that_it_copies() -> None:
    parts = made(architecture="rnn", attention="dot", bidirectional=False)
    random = np.random.default_rng(0)
    texts = [" ".join(random.permutation(WORDS)[:5]) for _ in range(64)]
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(parts.model.parameters(), lr=1e-2)
    sources = torch.tensor(parts.vocabularies.encode_sources(texts))
    targets = torch.tensor(parts.vocabularies.encode_targets(texts))
    for _ in range(100):
        optimizer.zero_grad()
        loss = sequence_loss(parts.model, sources, torch.ones_like(sources).bool(), targets, 0.0) / targets.numel()
        loss.backward()
        optimizer.step()
    found = explained(parts, texts[0], texts[0], LENGTHS, write=lambda sources: pytest.fail("a target is given"))
    assert np.argmax(found.weights, axis=1).tolist()[:5] == [0, 1, 2, 3, 4]


# Tokens as people know them


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["▁Spiel", "platz", ".", "</s>"], ["Spiel", "…platz", ".", END]),
        (["▁don", "'", "t", "▁", "<unk>"], ["don", "'", "…t", "␣", "⟨unknown⟩"]),
        (["▁中", "文", "▁2", "0"], ["中", "文", "2", "…0"]),
        (["Herd", "￭.", "(￭", "a", "￭)", "</s>"], ["Herd", ".", "(", "a", ")", END]),
        (["a", " ", "b", "</s>"], ["a", "␣", "b", END]),
        (["▁a\x1b[2J", "\u202e"], ["a\\x1b[2J", "\\u202e"]),
    ],
)
def test_marks_of_the_vocabulary_become_what_people_read(tokens: list[str], shown: list[str]) -> None:
    assert _readable(tokens) == shown


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word", "character"])
def test_every_kind_of_vocabulary_is_shown_without_marks(kind: Kind) -> None:
    found = explained(made(kind), "red gold", "red, gold.", LENGTHS, write=lambda sources: pytest.fail("given"))
    assert not {char for token in found.target_tokens for char in token} & set("▁￭")
    spelt = "".join(found.target_tokens).replace("…", "").replace("␣", "")
    assert spelt == f"red,gold.{END}"


# The picture


def test_the_same_text_twice_is_the_same_picture(folder: Path, tmp_path: Path) -> None:
    explain(folder, tmp_path)
    first = (tmp_path / "a.svg").read_bytes()
    explain(folder, tmp_path)
    assert (tmp_path / "a.svg").read_bytes() == first


def test_markup_and_control_characters_in_a_text_stay_text(folder: Path, tmp_path: Path) -> None:
    target = "red, <script> & 'x'.\x1b]0;\u202e"
    outcome = done(
        "explain", folder, "--text", "<b>red</b> & \x1b[31m", "--target", target, "--output", tmp_path / "a.svg"
    )
    found = texts(tmp_path / "a.svg")
    assert {"<", "script", ">", "&"} <= set(found)
    assert r"<b>red</b> & \x1b[31m" in found
    assert "<script" not in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert outcome.out.isprintable() or set(outcome.out) - {char for char in outcome.out if char.isprintable()} == {
        "\n"
    }


def test_the_picture_of_a_run_lies_in_the_run_and_that_of_a_model_where_the_person_is(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, model = tree(run), tree(folder)
    found = [done("explain", run, "--text", text, "--json").json["picture"] for text in ("red", "blue", "red")]
    assert found[0] == found[2] != found[1]
    assert {Path(path) for path in found} == set((run / "explain").iterdir())
    assert set(tree(run)) - set(before) == {"explain", *(str(Path(path).relative_to(run)) for path in found)}
    monkeypatch.chdir(tmp_path)
    path = done("explain", folder, "--text", "red", "--json").json["picture"]
    assert [path] == [item.name for item in tmp_path.iterdir()]
    assert tree(folder) == model


def test_the_picture_of_a_long_pair_has_the_source_tokens_that_matter(tmp_path: Path) -> None:
    weights = np.full((90, 200), 0.001)
    weights[np.arange(90), 2 * np.arange(90)] = 0.801  # of the first 90 even places; the rest are all alike
    source, target = [f"s{place}" for place in range(200)], [f"t{place}" for place in range(90)]
    found = Explanation(" ".join(source), "", False, -1.0, source, target, weights, [])
    told = draw(found, tmp_path / "a.svg")
    assert told is not None
    assert "80 of 200 source tokens that were looked at most and the first 80 of 90 target tokens" in told
    shown = texts(tmp_path / "a.svg")
    assert [text for text in shown if text[0] == "s" and text[1:].isdigit()] == source[:160:2]
    assert [text for text in shown if text[0] == "t" and text[1:].isdigit()] == target[:80]


def test_long_and_wide_tokens_keep_the_table_within_80_columns(tmp_path: Path) -> None:
    source, target = ["x" * 90, "中" * 50, "a", "a"], ["y" * 90, "文" * 50]
    found = Explanation("word " * 40, "字" * 90, False, -1.0, source, target, np.full((2, 4), 0.25), [])
    lines = [part for line in explanation_lines(found, tmp_path / "a.svg") for part in line.split("\n")]
    assert max(map(cell_len, lines[:-1])) <= LINE_WIDTH
    assert sum("字" in line for line in lines) == 3  # 180 columns of text on lines of 70


# What is refused


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_a_model_without_attention_has_nothing_to_show(tmp_path: Path, cell: str) -> None:
    made(architecture="rnn", attention="none", cell=cell).save(tmp_path / "model")
    outcome = call("explain", tmp_path / "model", "--text", TEXT, "--output", tmp_path / "a.svg")
    assert outcome.code == 2
    assert f"({cell.upper()} without attention) reads the source as one vector" in outcome.err
    assert outcome.err.splitlines()[1] == "train one that does: attention=additive, or architecture=transformer"
    assert outcome.out == ""
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--text", " "], 65, "--text is empty; give a text"),
        (["--text", TEXT, "--target", ""], 65, "--target is empty; give a text"),
        (["--text", "a\udcff"], 65, "--text is not UTF-8"),
        (["--text", TEXT, "--output", "no/where/a.svg"], 74, "there is no folder no/where"),
        (["--text", TEXT, "--output", "a.gif"], 2, "give a name that ends in .svg"),
        (["--text", TEXT, "--output", "a.html"], 2, "a run that writes has a picture; give a name in .svg or .png"),
        (["--text", TEXT, "--text", TEXT], 2, "give one --text at a time"),
        (["--text", TEXT, "--label", "x"], 2, "--label is not for"),
        ([], 2, "missing option '--text'"),
    ],
)
def test_wrong_options_are_one_line_and_a_code(folder: Path, options: list[str], code: int, says: str) -> None:
    outcome = call("explain", folder, *options)
    assert outcome.code == code
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_run_that_is_not_there_is_answered_as_predict_does(tmp_path: Path) -> None:
    outcome = call("explain", tmp_path / "no", "--text", TEXT)
    assert outcome.code == 66
    assert outcome.err == call("predict", tmp_path / "no", stdin="red\n").err


def test_a_long_text_is_cut_and_that_is_told(run: Path, tmp_path: Path) -> None:
    long = " ".join(WORDS * 6)
    found = done(
        "explain", run, "--text", long, "--target", long, "--output", tmp_path / "a.svg", "--json"
    )  # fmt: skip
    assert len(found.json["source_tokens"]) == 12
    assert found.json["source_tokens"][-1] == found.json["target_tokens"][-1] == END
    assert len(found.json["target_tokens"]) == 39  # bos is the fortieth
    assert found.err == "note      the source is cut at 12 tokens\nnote      the target is cut at 40 tokens\n"


def test_a_folder_that_cannot_be_written_to_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.svg").mkdir()
    outcome = call("explain", run, "--text", TEXT, "--output", tmp_path / "a.svg")
    assert outcome.code == 74
    assert f"cannot write to {tmp_path}" in outcome.err
