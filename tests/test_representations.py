"""Attention of every head and a word's vectors, held against transformers itself; what is shown of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call, done
from rich.cells import cell_len
from transformers import AutoModel, AutoTokenizer

from finetune.attention_heads import Heads, attention
from finetune.pretrained import Encoder, load_encoder
from finetune.word_vectors import _groups, _span, default_layer, word_in_contexts

TEXT = "my parcel was late, please"
CONTEXTS = ["my card is late", "the card was not charged", "who can login now", "Card again!"]


@pytest.fixture(scope="module")
def bert(tiny_model: Path) -> Encoder:
    return load_encoder(str(tiny_model))


@pytest.mark.parametrize("model", ["tiny_model", "tiny_gpt2"])
def test_attention_is_that_of_transformers_and_every_row_sums_to_one(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    found = attention(load_encoder(str(folder)), TEXT)
    plain = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        layers = plain(**tokenizer(TEXT, return_tensors="pt"), output_attentions=True).attentions
    expected = torch.cat(layers).numpy()  # (layers, heads, tokens, tokens)
    assert found.weights == pytest.approx(expected, abs=1e-6)
    assert found.weights.sum(axis=-1) == pytest.approx(1, abs=1e-5)
    assert found.weights.shape[-1] == len(found.tokens)


def test_habits_are_the_mean_weights_of_the_words_alone() -> None:
    weights = np.zeros((1, 2, 4, 4))
    weights[0, 0] = np.eye(4, k=1)  # everyone looks at the next token
    weights[0, 1, :, 0] = 0.75  # everyone looks at the first, and a little at the last
    weights[0, 1, :, 3] = 0.25
    found = Heads("a b", "m", ["[CLS]", "a", "b", "[SEP]"], [0, 3], weights, False).habits()
    assert {name: of.tolist() for name, of in found.items()} == {
        "next": [[1.0, 0.125]], "previous": [[0.0, 0.375]], "itself": [[0.0, 0.0]], "[CLS]": [[0.0, 0.75]],
        "[SEP]": [[0.5, 0.25]],
    }  # fmt: skip
    alone = Heads("a b", "m", ["a", "b"], [], weights[:, :, :2, :2], False).habits()
    assert alone["first"].tolist() == [[0.0, 0.75]]


def test_a_words_vector_is_the_mean_of_its_pieces_at_the_layer(bert: Encoder, tiny_model: Path) -> None:
    contexts = ["my Zebra is late", "the zebra was not charged", "zebra, again"]
    found = word_in_contexts(bert, "zebra", contexts, layer=1)
    plain, tokenizer = AutoModel.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)
    for context, vector, start in zip(contexts, found.vectors, (2, 2, 1), strict=True):  # behind [CLS]
        with torch.no_grad():
            states = plain(**tokenizer(context, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        assert tokenizer.tokenize(context)[start - 1 : start + 4] == ["z", "##e", "##b", "##r", "##a"]
        assert vector == pytest.approx(states[start : start + 5].mean(dim=0).numpy(), abs=1e-6)
    assert np.diag(found.cosines) == pytest.approx(1)
    one, two = found.vectors[:2]
    assert found.cosines[0, 1] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    distances = np.linalg.norm(found.plane[:, None] - found.plane[None], axis=-1)  # of three points a plane shows all
    assert distances == pytest.approx(np.linalg.norm(found.vectors[:, None] - found.vectors[None], axis=-1), abs=1e-6)


@pytest.mark.parametrize(
    ("word", "context", "start"),
    [
        ("银行", "我去银行取钱", 2),
        ("card", "我的card丢了", 2),
        ("ธนาคาร", "ไปธนาคารวันนี้", 2),
        ("bank", "embanked at the Bank", 16),
        ("은행", "강은행 은행", 4),
        ("(a)", "x(a)y", 1),
    ],
)
def test_a_word_is_found_between_spaces_only_where_its_script_has_them(word: str, context: str, start: int) -> None:
    assert _span(word, context, 1) == (start, start + len(word))


def test_groups_are_those_that_lie_together() -> None:
    angles = np.array([0.0, 1.6, 0.1, 1.7, 3.1, 0.05, 3.2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert _groups(vectors @ vectors.T).tolist() == [0, 1, 0, 1, 2, 0, 2]
    assert _groups(np.ones((4, 4))).tolist() == [0, 0, 0, 0]  # nothing tells them apart


def test_two_thirds_up_is_the_layer() -> None:
    assert [default_layer(layers) for layers in (1, 2, 6, 12)] == [1, 1, 4, 8]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_attention_as_lines_json_and_picture(tiny_model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    text = "<b>my parcel</b> \x1b[31m late"
    out = done("explain", tiny_model, "--attention", "--text", text, "--output", path).out
    assert out.startswith("attention 1 layer x 2 heads of ")
    assert "\x1b" not in out
    assert max(map(cell_len, out.splitlines()[1:-1])) <= 80
    for name in ("next", "previous", "itself", "[CLS]", "[SEP]"):
        assert f" {name} " in out
    first = path.read_bytes()
    assert suffix == "png" or b"<b>" not in first
    found = done("explain", tiny_model, "--attention", "--text", text, "--output", path, "--json").json
    assert path.read_bytes() == first
    weights = np.array(found["weights"])
    assert weights.shape == (1, 2, len(found["tokens"]), len(found["tokens"]))
    assert weights.sum(axis=-1) == pytest.approx(1, abs=1e-3)


def test_a_word_in_contexts_as_lines_json_and_picture(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "contexts.txt"
    texts = [CONTEXTS[0], CONTEXTS[1], CONTEXTS[3], "<script>x</script> card \x1b[31m " + "and again " * 30]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    path = tmp_path / "a.svg"
    out = done("explain", tiny_model, "--word", "card", "--contexts", file, "--output", path).out
    assert "\x1b" not in out
    assert max(map(cell_len, out.splitlines()[1:-1])) <= 80
    svg = path.read_text(encoding="utf-8")
    assert "<script" not in svg
    assert "1 my card is late" in svg
    options = [option for text in texts for option in ("--text", text)]
    found = done("explain", tiny_model, "--word", "card", *options, "--output", path, "--json").json
    assert path.read_text(encoding="utf-8") == svg
    assert [one["text"] for one in found["contexts"]] == texts
    assert found["contexts"][0]["text"][3:7] == "card"
    cosines = np.array(found["cosines"])
    np.fill_diagonal(cosines, -1)
    assert [one["nearest"] for one in found["contexts"]] == (cosines.argmax(axis=1) + 1).tolist()
    assert json.dumps(found)


def test_pictures_go_beside_the_person_for_a_model_that_is_no_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done("explain", tiny_model, "--attention", "--text", TEXT)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("explain-attention-")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--word", "card", "--text", CONTEXTS[0], "--text", CONTEXTS[1]], 65, "2 contexts of 'card'; give 3 or more"),
        (["--word", "card", *(o for text in CONTEXTS for o in ("--text", text))], 65, "context 3 does not contain"),
        (["--word", "card", "--layer", "9", *["--text", "card"] * 3], 2, "has the layers 0 (embeddings) to 1"),
        (["--word", "card", "--attention", "--text", TEXT], 2, "stand alone"),
        (["--word", "card", "--label", "x", "--text", TEXT], 2, "stand alone"),
        (["--attention", "--text", TEXT, "--text", TEXT], 2, "--attention is of one --text"),
        (["--attention", "--text", TEXT, "--output", "a.html"], 2, "give a name that ends in .svg or .png"),
        (["--word", "card", *["--text", "a " * 70 + "card"] * 3], 65, "beyond the 64 tokens"),
        (["--word", "card", "--contexts", "no.txt"], 66, "no.txt"),
        (["--attention", "--text", "\u200b", "--json"], 65, "nothing of the text is read: '\\u200b' has no token"),
    ],
)
def test_wrong_options_are_a_line_or_two_and_a_code(tiny_model: Path, options: list[str], code: int, says: str) -> None:
    outcome = call("explain", tiny_model, *options)
    assert outcome.code == code
    assert says in outcome.err
    assert len(outcome.err.splitlines()) <= 2


def test_models_without_heads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("recipe: tfidf_baseline\n")
    outcome = call("explain", tmp_path / "run", "--attention", "--text", TEXT)
    assert outcome.code == 2
    assert "is TF-IDF, which has neither attention nor vectors" in outcome.err
