"""Promises of finetune.baselines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion

from finetune import baselines
from finetune.baselines import Block, Candidate, Texts
from finetune.errors import Exit, UserError

LABELS = ("billing", "outage", "praise")
WORDS = {
    "billing": "invoice charge refund payment fee receipt amount",
    "outage": "down broken offline error crash slow failing",
    "praise": "great thanks lovely helpful wonderful friendly perfect",
}
FILLER = ["the", "my", "is", "was", "it", "today", "please", "again", "very", "about", "your", "really", "app"]


def _tickets(rows: int, seed: int = 1) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, rows)
    texts = [" ".join([*random.choice(FILLER, 5), *random.choice(WORDS[LABELS[t]].split(), 2)]) for t in targets]
    return texts, targets


@pytest.fixture(scope="module")
def model() -> baselines.TfidfModel:
    texts, targets = _tickets(240)
    return baselines.fit_tfidf(texts, targets, LABELS)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "baselines"


def test_majority_says_the_shares_of_train_of_every_text() -> None:
    model = baselines.majority(np.array([0, 2, 2, 2]), LABELS)
    assert model.predict_proba(["x", "y"]).tolist() == [[0.25, 0, 0.75]] * 2
    several = baselines.majority(np.array([[1, 0, 1], [1, 0, 0]]), LABELS, multi_label=True)
    assert several.predict_proba(["x"]).tolist() == [[1.0, 0.0, 0.5]]


def test_tf_idf_equals_a_table_worked_by_hand() -> None:
    task = baselines._Task(labels=2, multi_label=False, seed=1)
    features, matrix = baselines._fit_features(
        Texts(["red red blue", "blue green"]), [Block("word", 0, "word", 1, 1)], task
    )
    # idf = ln(3 / (1 + df)) + 1: blue 1, green and red ln 1.5 + 1; tf = 1 + ln count; then length 1
    rare = np.log(1.5) + 1
    first = np.array([1, 0, (1 + np.log(2)) * rare])
    second = np.array([1, rare, 0])
    assert features.names() == ["word: blue", "word: green", "word: red"]
    expected = [first / np.linalg.norm(first), second / np.linalg.norm(second)]
    assert np.allclose(matrix.toarray(), expected, atol=1e-6)


def test_features_equal_a_union_of_scikit_learns_vectorizers() -> None:
    texts, _ = _tickets(50)
    task = baselines._Task(labels=3, multi_label=False, seed=1)
    features, matrix = baselines._fit_features(Texts(texts), baselines._blocks(Texts(texts)), task)
    union = FeatureUnion(
        [
            ("word", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("char", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)),
        ]
    )
    assert abs(matrix - union.fit_transform(texts)).max() < 1e-6
    new, _ = _tickets(20, seed=2)
    assert abs(features.matrix(Texts(new)) - union.transform(new)).max() < 1e-6


def test_folds_see_nothing_of_their_held_out_rows() -> None:
    counts = [sparse.csr_matrix(np.array([[1.0, 0, 2], [0, 0, 1], [0, 5, 1]]))]
    train, test = baselines._fold_features(counts, np.array([False, False, True]))
    assert train.shape == (2, 2)  # the second feature occurs in the held-out row alone
    assert test.toarray().tolist() == [[0.0, 1.0]]


def test_folds_share_out_each_class() -> None:
    targets = np.random.default_rng(1).permutation(np.repeat(np.arange(20), 3))
    order = baselines._order(targets, baselines._Task(labels=20, multi_label=False, seed=1))
    for fold in range(3):
        assert sorted(targets[order[fold::3]]) == list(range(20))


def test_a_class_that_its_fold_never_saw_does_not_change_the_temperature() -> None:
    task = baselines._Task(labels=3, multi_label=False, seed=1)
    targets = np.array([0, 1, 0, 1])
    decisions = np.array([[0.5, -0.4, -1], [-0.3, 0.4, -1], [-0.1, 0.1, -1], [-0.8, 0.7, -1]])
    unseen = np.array([[0.2, -0.1, baselines.NEVER]])
    expected = baselines._fit_scale(decisions, targets, task)
    assert baselines._fit_scale(np.concatenate([decisions, unseen]), np.append(targets, 2), task) == expected


def test_a_fit_that_does_not_converge_gives_no_warning() -> None:
    random = np.random.default_rng(1)
    features = sparse.csr_matrix(random.random((300, 20)))
    weights, _ = baselines._fit_binary(features, random.random(300) < 0.5, Candidate("LogisticRegression", 1e7), 1)
    assert np.isfinite(weights).all()


def test_the_baseline_learns_separable_classes(model: baselines.TfidfModel) -> None:
    texts, targets = _tickets(120, seed=2)
    probabilities = model.predict_proba(texts)
    assert (probabilities.argmax(axis=1) == targets).mean() > 0.97
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert model.name in {f"TF-IDF (word 1-2, char 2-5) + {kind}" for kind in ("LinearSVC", "LogisticRegression")}


def test_the_same_seed_gives_the_same_model(model: baselines.TfidfModel) -> None:
    texts, targets = _tickets(240)
    again = baselines.fit_tfidf(texts, targets, LABELS)
    assert np.array_equal(again.predict_proba(texts), model.predict_proba(texts))


def test_top_features_are_the_words_of_their_label(model: baselines.TfidfModel) -> None:
    top = model.top_features(8)
    for label in LABELS:
        weights = [weight for _, weight in top[label]]
        assert weights == sorted(weights, reverse=True)
        words = [name.removeprefix("word: ") for name, _ in top[label] if name.startswith("word: ")]
        assert any(word in WORDS[label].split() for word in words)


def test_probabilities_are_as_sure_as_the_baseline_is_right() -> None:
    texts, targets = _tickets(600, seed=4)
    noisy = np.where(np.random.default_rng(5).random(600) < 0.3, (targets + 1) % 3, targets)
    model = baselines.fit_tfidf(texts[:400], noisy[:400], LABELS)
    probabilities = model.predict_proba(texts[400:])
    right = (probabilities.argmax(axis=1) == noisy[400:]).mean()
    assert probabilities.max(axis=1).mean() == pytest.approx(right, abs=0.12)


def test_a_binary_baseline_gives_two_probabilities() -> None:
    texts, targets = _tickets(120)
    kept = [i for i, target in enumerate(targets) if target < 2]
    model = baselines.fit_tfidf([texts[i] for i in kept], targets[kept], LABELS[:2])
    probabilities = model.predict_proba(["refund of a fee", "it is offline"])
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_classes_with_one_two_or_no_rows_do_not_break_the_folds() -> None:
    texts, targets = _tickets(60)
    texts += ["zebra lion", "violin cello", "violin oboe"]
    targets = np.concatenate([targets, [3, 4, 4]])
    model = baselines.fit_tfidf(texts, targets, (*LABELS, "animal", "music", "unseen"))
    probabilities = model.predict_proba(["zebra lion", "violin cello", "refund of a fee", "", "qqq"])
    assert probabilities[:3].argmax(axis=1).tolist() == [3, 4, 0]
    assert probabilities[:, 5].max() < 1e-6
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_a_handful_of_rows_can_be_fitted(rows: int) -> None:
    texts, targets = _tickets(rows)
    probabilities = baselines.fit_tfidf(texts, targets, LABELS).predict_proba(["refund", ""])
    assert np.isfinite(probabilities).all()
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_a_single_class_in_train_is_what_is_predicted() -> None:
    texts, _ = _tickets(30)
    model = baselines.fit_tfidf(texts, np.ones(30, dtype=int), LABELS)
    assert model.predict_proba(["refund"]).argmax(axis=1).tolist() == [1]


def test_multi_label_texts_get_each_of_their_labels() -> None:
    first, one = _tickets(300, seed=1)
    second, two = _tickets(300, seed=2)
    targets = np.zeros((300, 4), dtype=int)  # the fourth label never occurs
    targets[np.arange(300), one] = targets[np.arange(300), two] = 1
    texts = [f"{a} {b}" for a, b in zip(first, second, strict=True)]
    model = baselines.fit_tfidf(texts, targets, (*LABELS, "unseen"), multi_label=True)
    found = model.predict_proba(["refund fee invoice and offline error crash", "great lovely thanks"]) > 0.5
    assert found.tolist() == [[True, True, False, False], [False, False, True, False]]


def test_pairs_are_judged_by_what_their_texts_share() -> None:
    random = np.random.default_rng(3)
    words = [w for group in WORDS.values() for w in group.split()]
    pairs = [(" ".join(random.choice(words, 4)), " ".join(random.choice(words, 4))) for _ in range(300)]
    targets = np.arange(300) % 2
    pairs = [
        (a, " ".join(random.permutation(a.split()))) if t else (a, b) for (a, b), t in zip(pairs, targets, strict=True)
    ]
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    model = baselines.fit_tfidf(one[:200], targets[:200], ("other", "same"), pairs=two[:200])
    assert (model.predict_proba(one[200:], two[200:]).argmax(axis=1) == targets[200:]).mean() > 0.9


def test_the_second_text_of_a_pair_has_features_of_its_own() -> None:
    random = np.random.default_rng(3)
    targets = random.integers(0, 2, 100)
    pairs = [("cat", "dog") if target else ("dog", "cat") for target in targets]
    one, two = [a for a, _ in pairs], [b for _, b in pairs]
    model = baselines.fit_tfidf(one, targets, ("dog first", "cat first"), pairs=two)
    assert model.predict_proba(["cat", "dog"], ["dog", "cat"]).argmax(axis=1).tolist() == [1, 0]
    assert "second word: dog" in [name for name, _ in model.top_features(5)["cat first"]]
    with pytest.raises(UserError, match="pairs of texts"):
        model.predict_proba(["cat"])


def test_texts_without_any_word_are_read_by_their_characters_and_empty_ones_refused() -> None:
    targets = np.array([0, 1] * 6)
    model = baselines.fit_tfidf(["好", "坏"] * 6, targets, ("good", "bad"))
    assert model.name.startswith("TF-IDF (char 2-5)")
    assert model.predict_proba(["好", "坏"]).argmax(axis=1).tolist() == [0, 1]
    with pytest.raises(UserError, match="no text of train has a letter") as caught:
        baselines.fit_tfidf([""] * 12, targets, ("good", "bad"))
    assert caught.value.code == Exit.BAD_DATA


def test_very_long_data_gets_words_only_and_its_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "CHARACTER_LIMIT", 1_000)
    monkeypatch.setattr(baselines, "VOCABULARY_ROWS", 60)
    texts, targets = _tickets(120)
    model = baselines.fit_tfidf(texts, targets, LABELS)
    assert model.name == "TF-IDF (word 1-2) + LinearSVC"
    assert (model.predict_proba(texts).argmax(axis=1) == targets).mean() > 0.95


def test_a_saved_baseline_predicts_as_before(model: baselines.TfidfModel, tmp_path: Path) -> None:
    texts, _ = _tickets(20, seed=6)
    model.save(tmp_path / "baseline")
    back = baselines.TfidfModel.load(tmp_path / "baseline")
    assert np.array_equal(back.predict_proba(texts), model.predict_proba(texts))
    assert back.name == model.name
    assert back.labels == LABELS
    assert back.top_features(3) == model.top_features(3)
    assert sorted(file.suffix for file in (tmp_path / "baseline").iterdir()) == [".json", ".skops"]


class Payload:
    """A type that no baseline needs."""

    def __init__(self) -> None:
        self.value = 1


def test_a_file_with_a_foreign_type_is_refused_unbuilt(model: baselines.TfidfModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    skops.io.dump({"counters": [Payload()]}, tmp_path / baselines.STATE_FILE)
    with pytest.raises(UserError, match="Payload") as caught:
        baselines.TfidfModel.load(tmp_path)
    assert caught.value.code == Exit.UNSAFE


def test_a_damaged_or_missing_baseline_is_an_error_a_person_can_mend(
    model: baselines.TfidfModel, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        baselines.TfidfModel.load(tmp_path)
    assert caught.value.code == Exit.NO_INPUT
    model.save(tmp_path)
    state, side = (tmp_path / baselines.STATE_FILE).read_bytes(), (tmp_path / baselines.SIDE_FILE).read_text()
    (tmp_path / baselines.STATE_FILE).write_bytes(state[: len(state) // 2])
    with pytest.raises(UserError, match="damaged"):
        baselines.TfidfModel.load(tmp_path)
    (tmp_path / baselines.STATE_FILE).write_bytes(state)
    (tmp_path / baselines.SIDE_FILE).write_text(json.dumps(json.loads(side) | {"labels": ["one"]}))
    with pytest.raises(UserError, match="do not fit together"):
        baselines.TfidfModel.load(tmp_path)


def _cached(rows: int = 60, shift: int = 0, **changed: Any) -> baselines.BaselinePredictions:
    texts, targets = _tickets(rows)
    targets = (targets + shift) % 3
    tests = {"test": Texts(_tickets(15, seed=2)[0]), "it/../x": Texts(_tickets(5, seed=3)[0])}
    return baselines.cached_predictions(Texts(texts), targets, **({"tests": tests, "labels": LABELS} | changed))


def _forbid_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(baselines, "fit_tfidf", refuse)


def test_a_second_run_takes_the_predictions_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _cached()
    _forbid_fitting(monkeypatch)
    second = _cached()
    assert (first.cached, second.cached) == (False, True)
    assert (second.name, second.seconds) == (first.name, first.seconds)
    assert list(second.probabilities) == ["test", "it/../x"]
    for name, values in first.probabilities.items():
        assert np.array_equal(second.probabilities[name], values)


def test_cached_predictions_are_those_of_a_direct_fit(cache: Path) -> None:
    texts, targets = _tickets(60)
    direct = baselines.fit_tfidf(texts, targets, LABELS).predict_proba(_tickets(15, seed=2)[0])
    assert np.allclose(_cached().probabilities["test"], direct, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": 61},
        {"shift": 1},
        {"labels": ("a", "b", "c")},
        {"seed": 2},
        {"tests": {"test": Texts(_tickets(15, seed=7)[0])}},
    ],
    ids=["train", "targets", "labels", "seed", "test"],
)
def test_any_changed_input_misses_the_cache(cache: Path, changed: dict[str, Any]) -> None:
    _cached()
    assert not _cached(**changed).cached
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no json", "other shape"])
def test_a_damaged_cache_entry_is_built_again(cache: Path, damage: str) -> None:
    first = _cached()
    arrays = next(cache.glob("*/probabilities.npz"))
    raw = bytearray(arrays.read_bytes())
    if damage == "truncated":
        arrays.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        raw[len(raw) // 4] ^= 0xFF
        arrays.write_bytes(raw)
    elif damage == "missing":
        arrays.unlink()
    elif damage == "no json":
        (arrays.parent / "baseline.json").write_text("[")
    else:
        with open(arrays, "wb") as file:
            np.savez(file, file_0=np.zeros((1, 3)), file_1=np.zeros((1, 3)))
    again = _cached()
    assert not again.cached
    assert np.array_equal(again.probabilities["test"], first.probabilities["test"])
    assert _cached().cached


def test_a_cache_that_cannot_be_written_costs_no_result(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert not _cached().cached
    assert not _cached().cached


def test_a_cache_write_that_fails_half_way_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baselines.os, "fsync", full)
    assert not _cached().cached
    assert list(cache.iterdir()) == []


def test_the_cache_holds_no_text_and_leaves_no_draft(cache: Path) -> None:
    _cached()
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert sorted(file.name for file in files) == ["baseline.json", "probabilities.npz"]
    assert not list(cache.glob(".tmp-*"))
    assert not any(b"refund" in file.read_bytes() for file in files)
