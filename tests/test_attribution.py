"""Which words a label rests on, held against linear models, naive loops and predictions of edited texts."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from calling import call, done, private_cache, read_jsonl, toy_files, train_toy, tree, write_csv
from conftest import TOPICS
from rich.cells import cell_len

from finetune import attribution, baselines, classifier, evaluation, terminal
from finetune.adapters import AdapterConfig
from finetune.attribution import Attribution, Pair, Place, Reading, Word
from finetune.attribution import Path as Road
from finetune.baselines import TfidfModel
from finetune.classifier import Classifier
from finetune.data.columns import LabelMap, from_columns
from finetune.data.encode import fit
from finetune.errors import Exit, UserError
from finetune.report import scoring
from finetune.report.attribution import attribution_lines, marks_of
from finetune.trainer import TrainConfig

TEXT = "my parcel was late, please"
READING = Reading(32, "truncate")
LABELS = LabelMap(tuple(TOPICS))
SETTINGS = TrainConfig(learning_rate=1e-3, num_train_epochs=1, mixed_precision="no", use_cpu=True)
HOSTILE = "<script>alert(1)</script> my \x1b[31m parcel"


def made(model: Path, labels: LabelMap = LABELS, adapter: AdapterConfig | None = None) -> Classifier:
    """Return a classifier with large random weights, so that words matter."""
    parts = classifier.load(str(model), labels, 1, adapter)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in parts.model.parameters():
            if weights.dim() == 2:
                weights.normal_(0, 0.3, generator=random)
    parts.model.eval()
    return parts


@pytest.fixture(scope="module")
def parts(tiny_model: Path) -> Classifier:
    return made(tiny_model)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run, too short a training to be right everywhere."""
    folder = tmp_path_factory.mktemp("attribution")
    with private_cache(folder):
        return train_toy(folder, tiny_model, "num_train_epochs=1", "baseline=none")


@pytest.fixture(scope="module")
def tfidf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    with private_cache(folder):
        done("baseline", *toy_files(folder), f"output_dir={folder / 'run'}")
    return folder / "run"


@pytest.fixture
def folder(parts: Classifier, tmp_path: Path) -> Path:
    """Return the folder of a model that is no run."""
    classifier.read_so(parts, 32, "truncate")
    parts.save(tmp_path / "model")
    return tmp_path / "model"


# Integrated gradients


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_on_a_linear_model_a_token_has_its_weight_times_its_change_and_nothing_is_missing(steps: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs, baseline, weights = (torch.randn(5, 4, generator=random, dtype=torch.float64) for _ in range(3))
    shares, begins, ends = attribution.integrated_gradients(
        lambda rows: (rows * weights).sum(dim=(1, 2)) + 3, inputs, baseline, steps
    )
    assert shares == pytest.approx(((inputs - baseline) * weights).sum(dim=1).numpy(), abs=1e-12)
    assert shares.sum() == pytest.approx(ends - begins, abs=1e-12)


def test_few_points_integrate_what_a_naive_loop_needs_thousands_for() -> None:
    inputs, baseline = torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), torch.zeros(2, 2).double()

    def score(rows: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(3 * rows[:, 0, 0] * rows[:, 0, 1] - rows[:, 1].exp().sum(dim=1))

    naive = torch.zeros_like(inputs)
    for step in range(4_000):
        point = (baseline + (step + 0.5) / 4_000 * (inputs - baseline)).requires_grad_()
        naive += torch.autograd.grad(score(point[None])[0], point)[0] / 4_000
    shares, begins, ends = attribution.integrated_gradients(score, inputs, baseline, 32)
    assert shares == pytest.approx(((inputs - baseline) * naive).sum(dim=1).numpy(), abs=1e-6)
    assert begins == pytest.approx(float(score(baseline[None])[0]))
    assert ends == pytest.approx(float(score(inputs[None])[0]))


def test_a_classifiers_words_are_those_of_a_naive_loop_over_its_own_inputs(parts: Classifier) -> None:
    (piece,) = fit(parts.tokenizer, TEXT, None, *READING)
    ids = torch.tensor([piece.ids])
    hidden = torch.where(torch.tensor([piece.special_tokens_mask]) > 0, ids, parts.tokenizer.mask_token_id)
    inputs, baseline = (parts.model.get_input_embeddings()(rows).detach() for rows in (ids, hidden))
    total = torch.zeros_like(inputs)
    for step in range(500):
        point = (baseline + (step + 0.5) / 500 * (inputs - baseline)).requires_grad_()
        probability = parts.model(inputs_embeds=point).logits.softmax(dim=-1)[0, 1]
        total += torch.autograd.grad(probability, point)[0] / 500
    naive = ((inputs - baseline) * total).sum(dim=-1)[0].numpy()
    words = attribution.integrated(parts, Pair(TEXT, None), 1, READING, 64)
    of_words = [naive[[i for i, word in enumerate(piece.word_ids) if word == place]].sum() for place in range(6)]
    assert [word.gradients for word in words.words] == pytest.approx(of_words, abs=1e-4)
    assert abs(words.gap) < 1e-4
    assert np.abs(of_words).max() > 0.01
    assert words.start == pytest.approx(parts.model(input_ids=hidden).logits.softmax(dim=-1)[0, 1].item(), abs=1e-5)


def test_more_steps_make_the_gap_smaller(parts: Classifier) -> None:
    gaps = [abs(attribution.integrated(parts, Pair(TEXT, None), 1, READING, steps).gap) for steps in (1, 4, 32)]
    assert gaps[0] > gaps[1] > 100 * gaps[2]


def test_a_model_that_was_training_goes_on_training(parts: Classifier) -> None:
    parts.model.train()
    first = attribution.integrated(parts, Pair(TEXT, None), 1, READING, 4)
    assert parts.model.training
    parts.model.eval()
    assert attribution.integrated(parts, Pair(TEXT, None), 1, READING, 4) == first
    assert not any(weights.grad is not None for weights in parts.model.parameters())


# Words


def test_pieces_of_a_word_are_put_together_and_every_word_lies_where_it_stands(parts: Classifier) -> None:
    text, second = "zebra parcel!", "my  card"
    words = attribution.integrated(parts, Pair(text, second), 0, READING, 4).words
    assert [word.place for word in words] == [
        Place("zebra", 0, 0, 5), Place("parcel", 0, 6, 12), Place("!", 0, 12, 13),
        Place("my", 1, 0, 2), Place("card", 1, 4, 8),
    ]  # fmt: skip
    for word in words:
        assert (text, second)[word.place.column][word.place.start : word.place.end] == word.place.text


def test_windows_of_a_long_text_sum_to_the_mean_of_their_probabilities(parts: Classifier) -> None:
    text = " ".join(word for topic in TOPICS.values() for word in topic)
    (found,) = explained(parts, text, Reading(8, "window"))
    assert [word.place.text for word in found.path.words] == text.split()
    assert abs(found.path.gap) < 1e-5
    assert found.path.value == pytest.approx(found.probabilities[found.label], abs=1e-5)
    assert not found.cut
    (cut,) = explained(parts, text, Reading(8, "truncate"))
    assert [word.place.text for word in cut.path.words] == text.split()[:6]
    assert cut.cut


def explained(parts: Classifier, text: str, reading: Reading = READING, **options: Any) -> list[Attribution]:
    return attribution.explain(parts, from_columns("text", {"text": [text]}), reading, SETTINGS, **options)


# Hidden words


def test_a_hidden_word_changes_the_probability_as_predict_says_of_the_edited_text(folder: Path) -> None:
    found = done("explain", folder, "--text", TEXT, "--json").json
    texts = [TEXT, *(TEXT[: word["start"]] + "[MASK]" + TEXT[word["end"] :] for word in found["words"])]
    first, *rows = done("predict", folder, "--json", stdin="\n".join(texts)).json
    assert found["probabilities"] == pytest.approx(first["probabilities"], abs=1e-5)
    assert found["predicted"] == found["label"] == first["predicted"]
    before = first["probabilities"][found["label"]]
    changes = [row["probabilities"][found["label"]] - before for row in rows]
    assert [word["hidden"] for word in found["words"]] == pytest.approx(changes, abs=1e-5)
    assert np.abs(changes).max() > 0.01


def test_gpt2_has_no_mask_and_loses_the_word(tiny_gpt2: Path) -> None:
    parts = made(tiny_gpt2)
    text = "parcel late"
    (found,) = explained(parts, text, Reading(48, "truncate"))
    assert [word.place.text for word in found.path.words] == ["parcel", "late"]
    assert abs(found.path.gap) < 1e-3
    alone = [explained(parts, one, Reading(48, "truncate"))[0] for one in ("late", "parcel")]
    expected = [one.probabilities[found.label] - found.probabilities[found.label] for one in alone]
    assert [word.hidden for word in found.path.words] == pytest.approx(expected, abs=1e-6)
    assert [word.hidden for word in alone[0].path.words] == [None]  # nothing would be left


# Kinds of runs


def test_pairs_of_texts_have_words_in_both(folder: Path) -> None:
    found = done("explain", folder, "--text", "my parcel", "--text-pair", "the card", "--json").json
    assert [(word["word"], word["column"]) for word in found["words"]] == [
        ("my", "text"), ("parcel", "text"), ("the", "text_pair"), ("card", "text_pair"),
    ]  # fmt: skip
    assert abs(found["gap"]) < 1e-4


def test_each_label_of_several_can_be_asked_for(tiny_model: Path) -> None:
    parts = made(tiny_model, LabelMap(tuple(TOPICS), multi_label=True))
    (found,) = explained(parts, TEXT, label="account")
    assert found.label == "account"
    assert found.path.value == pytest.approx(found.probabilities["account"], abs=1e-6)
    assert set(found.predicted) == {name for name, share in found.probabilities.items() if share >= 0.5}
    assert explained(parts, TEXT)[0].label == max(found.probabilities, key=lambda name: found.probabilities[name])


def test_an_adapter_is_explained_as_its_merged_model(tiny_model: Path, tmp_path: Path) -> None:
    parts = made(tiny_model, adapter=AdapterConfig(adapter="lora"))
    (tmp_path / "adapter").mkdir()
    parts.save(tmp_path / "adapter")
    done("export", tmp_path / "adapter", "--merge", "--output", tmp_path / "merged", "--data", texts_file(tmp_path))
    found, merged = (done("explain", tmp_path / name, "--text", TEXT, "--json").json for name in ("adapter", "merged"))
    assert [word["gradients"] for word in found["words"]] == pytest.approx(
        [word["gradients"] for word in merged["words"]], abs=1e-5
    )


def texts_file(folder: Path) -> Path:
    return write_csv(folder / "texts.csv", [("1", TEXT, "account"), ("2", "the card", "payment")])


def test_features_add_up_to_the_decision_value(tfidf: Path) -> None:
    model = TfidfModel.load(tfidf / "model")
    text = "my parcel was late and the courier rude"
    found = done("explain", tfidf, "--text", text, "--json").json
    matrix = model.features.matrix(baselines.Texts([text]))
    number = model.labels.index(found["label"])
    assert found["decision"] == pytest.approx(float(model.linear.decide(matrix)[0, number]), abs=1e-6)
    assert found["bias"] + sum(one["adds"] for one in found["features"]) == pytest.approx(found["decision"], abs=1e-9)
    assert len(found["features"]) == matrix.nnz
    strength = [abs(one["adds"]) for one in found["features"]]
    assert strength == sorted(strength, reverse=True)
    assert found["label"] == found["predicted"] == "delivery"
    assert "parcel" in done("explain", tfidf, "--text", text).out
    other = done("explain", tfidf, "--text", text, "--label", "payment", "--json").json
    assert other["decision"] < found["decision"]


# What is shown


def test_the_terminal_has_prediction_words_sum_and_gap_in_80_columns(folder: Path) -> None:
    found = done("explain", folder, "--text", f"{TEXT} {'again ' * 12}", "--json").json
    out = done("explain", folder, "--text", f"{TEXT} {'again ' * 12}").out
    assert max(map(cell_len, out.splitlines())) <= 80
    strongest = max(found["words"], key=lambda word: abs(word["gradients"]))
    sign = "+" if strongest["gradients"] > 0 else "-"
    assert f"[{sign}{strongest['word']}]" in out
    assert f"{found['predicted']} {found['probabilities'][found['predicted']]:.3f}" in out
    assert f"{strongest['gradients']:+.3f}".replace("-", "−") in out
    assert f"{found['probability']:.3f} − {found['baseline']['probability']:.3f} (every token as [MASK])" in out
    assert re.search(r"completeness gap [+−]\d\.\de−?\+?\d\d, 64 steps", out)
    assert "6 other words" in out


def attributed(text: str, *shares: float) -> Attribution:
    """Return an attribution of the words of a text that are parted by spaces."""
    places = [Place(found.group(), 0, *found.span()) for found in re.finditer(r"\S+", text)]
    words = [Word(place, share, None) for place, share in zip(places, shares, strict=True)]
    path = Road(words, 0.1, 0.1 + sum(shares))
    return Attribution(Pair(text, None), {"yes": 0.9, "no": 0.1}, ["yes"], False, "yes", path, 64, "[MASK]", False)


def test_signs_are_marked_with_colour_and_without() -> None:
    found = attributed("good bad  meh", 0.5, -0.3, 0.01)
    assert attribution_lines(found, coloured=False)[0] == "text      [+good] [-bad] meh"
    coloured = attribution_lines(found, coloured=True)[0]
    assert coloured.count("\x1b[") == 4
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == "text      good bad meh"
    assert marks_of(found, 0) == [("good", 1.0), (" ", 0.0), ("bad", -0.6), ("  ", 0.0), ("meh", 0.0)]


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_and_not_for_who_does_not_want_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not terminal.is_coloured()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with mock.patch("sys.stdout") as stdout:
        stdout.isatty.return_value = True
        assert terminal.is_coloured() == coloured


@pytest.mark.parametrize("suffix", ["html", "svg", "png"])
def test_what_is_written_shows_texts_as_texts(folder: Path, tmp_path: Path, suffix: str) -> None:
    path, before = tmp_path / f"why.{suffix}", tree(folder)
    out = done("explain", folder, "--text", HOSTILE, "--output", path).out
    assert "\x1b" not in out
    assert out.splitlines()[-1] == f"written   {path}"
    assert tree(folder) == before
    written = path.read_bytes()
    if suffix == "png":
        assert written.startswith(b"\x89PNG")
        return
    assert b"<script>alert" not in written
    assert b"script" in written
    if suffix == "html":
        page = written.decode()
        assert page.count("<script>") == 1  # the page's own
        assert '<mark class="' in page
        assert "&lt;" in page
    first = written
    done("explain", folder, "--text", HOSTILE, "--output", path)
    assert path.read_bytes() == first


def test_several_texts_and_files_are_explained_one_by_one(folder: Path, tmp_path: Path) -> None:
    by_option = done("explain", folder, "--text", TEXT, "--text", "the card", "--json").json
    by_file = done("explain", folder, "--input", texts_file(tmp_path), "--json").json
    assert by_option == by_file
    assert [one["text"] for one in by_file] == [TEXT, "the card"]
    done("explain", folder, "--input", texts_file(tmp_path), "--output", tmp_path / "all.html")
    assert (tmp_path / "all.html").read_text(encoding="utf-8").count("<section id=") == 2


# Errors of a run


def test_the_worst_errors_of_a_run_carry_the_words_that_mattered(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    errors = results["diagnostics"]["errors"]
    assert errors
    assert errors == read_jsonl(run / "predictions" / "errors.jsonl")
    parts = classifier.load_trained(str(run / "model"))
    for error in errors:
        label = parts.labels.names.index(error["predicted"])
        words = attribution.integrated(parts, Pair(error["text"], None), label, READING, attribution.ERROR_STEPS).words
        words = sorted(words, key=lambda word: -abs(word.gradients))[: attribution.WORDS_OF_ERROR]
        assert [one["word"] for one in error["mattered"]] == [word.place.text for word in words]
        assert [one["share"] for one in error["mattered"]] == pytest.approx([w.gradients for w in words], rel=1e-3)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "what mattered" in page
    assert page.count('<mark class="') >= len(errors)


def test_the_worst_errors_of_tfidf_carry_its_features(tfidf: Path) -> None:
    errors = json.loads((tfidf / "results.json").read_text())["diagnostics"]["errors"]
    model = TfidfModel.load(tfidf / "model")
    for error in errors:
        (decision,) = model.decisions([error["text"]], [model.labels.index(error["predicted"])])
        assert error["mattered"] == [
            {"word": one.name, "share": float(f"{one.added:.4g}")}
            for one in decision.features[: attribution.WORDS_OF_ERROR]
        ]


def test_the_words_of_the_errors_cost_no_more_than_they_may(parts: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = from_columns("text", {"text": [TEXT] * 5})
    tokens = len(fit(parts.tokenizer, TEXT, None, *READING)[0].ids)
    monkeypatch.setattr(attribution, "ERROR_TOKENS", 2.5 * attribution.ERROR_STEPS * tokens)
    assert len(attribution.of_errors(parts, rows, [0] * 5, READING)) == 2


def test_of_a_wrong_label_set_the_surest_wrong_decision_is_explained() -> None:
    gold, said = np.array([[1, 0, 1], [1, 1, 0]]), np.array([[0, 1, 1], [1, 1, 0]])
    shares = np.array([[0.2, 0.7, 0.9], [0.9, 0.9, 0.1]])
    predictions = evaluation.Predictions(["a", "b"], gold, said, shares, ("x", "y", "z"), multi_label=True)
    rows, labels, sure = evaluation.worst_decisions(predictions)
    assert (rows.tolist(), labels.tolist()) == ([0], [0])  # x was left out, with 0.8
    assert sure == pytest.approx([0.8])


@pytest.mark.parametrize("kind", ["words", "features"])
def test_what_spoke_against_a_label_spoke_for_leaving_it_out(kind: str, parts: Classifier, tfidf: Path) -> None:
    model = parts if kind == "words" else TfidfModel.load(tfidf / "model")
    config = SimpleNamespace(max_length=32, data=SimpleNamespace(on_long="truncate"))
    data, names = from_columns("text", {"text": [TEXT]}), LABELS.names
    gave, left_out, shares = np.array([[1, 0, 0]]), np.array([[0, 0, 0]]), np.full((1, 3), 0.4)
    added, missed = (
        scoring.mattered(model, data, evaluation.Predictions(data.ids(), gold, said, shares, names, True), config)
        for gold, said in ((left_out, gave), (gave, left_out))
    )
    ((of_added,), (of_missed,)) = added.values(), missed.values()
    assert [(one["word"], -one["share"]) for one in of_missed] == [(one["word"], one["share"]) for one in of_added]
    assert any(one["share"] for one in of_missed)


# What is refused


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--text", TEXT, "--label", "acount"], 2, "no such label; did you mean account?"),
        (["--text", TEXT, "--target", "x"], 2, "--target is not for"),
        (["--text", TEXT, "--text", TEXT, "--output", "a.svg"], 2, "a picture is of one text"),
        (["--text", TEXT, "--output", "a.gif"], 2, "give a name that ends in .svg or .png or .html"),
        (["--text", TEXT, "--input", "a.csv"], 2, "not both"),
        (["--text", TEXT, "--text", TEXT, "--text-pair", TEXT], 2, "2 --texts and 1 --text-pair"),
        (["--text", TEXT, "--layer", "2"], 2, "--contexts and --layer are of --word"),
        (["--text", TEXT, "--text-column", "x"], 2, "of --input FILE, which is missing"),
        (["--text", " "], 65, "--text is empty"),
        (["--input", "no.csv"], 66, "no.csv"),
    ],
)
def test_wrong_options_are_a_line_or_two_and_a_code(folder: Path, options: list[str], code: int, says: str) -> None:
    outcome = call("explain", folder, *options)
    assert outcome.code == code
    assert says in outcome.err
    assert len(outcome.err.splitlines()) <= 2
    assert outcome.out == ""


def test_a_run_of_single_texts_reads_no_second_ones(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("recipe: tfidf_baseline\n")
    (tmp_path / "model").mkdir()
    outcome = call("explain", tmp_path, "--text", TEXT, "--text-pair", TEXT)
    assert outcome.code == 2
    assert outcome.err == f"error: --text-pair: {tmp_path} was trained on single texts; leave it out\n"


def test_a_text_of_which_nothing_is_read_is_told(parts: Classifier) -> None:
    with pytest.raises(UserError, match=r"nothing of the text is read: '\\u200b'") as caught:
        attribution.explain(parts, from_columns("text", {"text": ["\u200b"]}), READING, SETTINGS, steps=1)
    assert caught.value.code == Exit.BAD_DATA


def test_steps_are_of_paths_and_tfidf_has_none(tfidf: Path) -> None:
    outcome = call("explain", tfidf, "--text", TEXT, "--steps", 8)
    assert outcome.code == 2
    assert outcome.err == f"error: --steps: {tfidf} is TF-IDF, whose features add up exactly\n"


def test_a_run_that_gives_no_labels_is_refused(tiny_gpt2: Path) -> None:
    outcome = call("explain", tiny_gpt2, "--text", TEXT)
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        f"error: {tiny_gpt2} gives no labels; explain reads runs that label texts, or of the recipe seq2seq",
        "of any BERT or GPT-2: --attention, or --word WORD",
    ]
