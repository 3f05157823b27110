"""Promises of finetune.text_evaluation."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from finetune import text_evaluation, text_metrics
from finetune.errors import Exit, UserError
from finetune.text_evaluation import TASKS, Task, TextPredictions

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "ela", "ino", "u")]
TRANSLATION = TASKS["translation"]
CHRF_ONLY = replace(TRANSLATION, metrics=("chrf",))


def system(rows: int = 80, noise: float = 0.3, seed: int = 1, references: int = 1) -> TextPredictions:
    """Return a system that gets each word wrong with the probability `noise`; the gold texts are always the same."""
    gold, random = np.random.default_rng(0), np.random.default_rng(seed)
    golds, said = [], []
    for _ in range(rows):
        words = gold.choice(WORDS, gold.integers(4, 15))
        golds.append([" ".join(words)] + [" ".join(gold.permutation(words)) for _ in range(references - 1)])
        wrong = random.choice(WORDS, len(words))
        said.append(" ".join(np.where(random.random(len(words)) < noise, wrong, words)))
    return TextPredictions([f"r{i}" for i in range(rows)], [g[0].upper() for g in golds], golds, said)


def shuffled(one: TextPredictions) -> TextPredictions:
    order = np.random.default_rng(3).permutation(len(one.ids)).tolist()
    ids, sources, predicted = ([part[i] for i in order] for part in (one.ids, one.sources, one.predicted))
    return TextPredictions(ids, sources, [one.references[i] for i in order], predicted)


def refusal(call: object, code: Exit = Exit.BAD_DATA) -> str:
    with pytest.raises(UserError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
def test_scores_are_the_metrics_of_the_task_each_inside_its_interval(task: Task) -> None:
    scores = text_evaluation.score(system(noise=0.02), task)
    assert list(scores) == list(task.metrics)
    assert task.decides in task.metrics
    for interval in scores.values():
        assert set(interval) == {"value", "low", "high"}
        assert interval["low"] < interval["value"] < interval["high"]
    assert text_evaluation.values(system(noise=0.02), task) == {name: s["value"] for name, s in scores.items()}


def test_score_values_equal_those_of_sacrebleu() -> None:
    one = system(references=2)
    columns = [list(column) for column in zip(*one.references, strict=True)]
    scores = text_evaluation.score(one, TRANSLATION)
    assert scores["bleu"]["value"] == pytest.approx(BLEU().corpus_score(one.predicted, columns).score, abs=1e-9)
    assert scores["chrf"]["value"] == pytest.approx(CHRF().corpus_score(one.predicted, columns).score, abs=1e-9)


def test_intervals_are_those_of_rows_drawn_with_replacement_and_scored_by_sacrebleu() -> None:
    one = system(rows=40)
    scores = text_evaluation.score(one, CHRF_ONLY)["chrf"]
    random, drawn = np.random.default_rng(5), []
    for _ in range(300):
        rows = random.integers(0, 40, 40)
        golds = [[one.references[i][0] for i in rows]]
        drawn.append(CHRF().corpus_score([one.predicted[i] for i in rows], golds).score)
    width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert scores["high"] - scores["low"] == pytest.approx(width, rel=0.15)


def test_a_perfect_exact_match_keeps_the_uncertainty_of_its_few_rows() -> None:
    scores = text_evaluation.score(system(rows=10, noise=0), TASKS["transduction"])
    assert scores["exact_match"]["value"] == scores["exact_match"]["high"] == 1.0
    assert 0.7 < scores["exact_match"]["low"] < 0.75


def test_several_seeds_are_scored_by_their_mean_with_its_spread() -> None:
    seeds = [system(seed=seed, noise=noise) for seed, noise in ((1, 0.2), (2, 0.3), (3, 0.4))]
    together = text_evaluation.score([seeds[0], shuffled(seeds[1]), seeds[2]], TRANSLATION)
    for name in TRANSLATION.metrics:
        alone = [text_evaluation.values(one, TRANSLATION)[name] for one in seeds]
        assert together[name]["value"] == pytest.approx(np.mean(alone))
        assert together[name]["sd"] == pytest.approx(np.std(alone, ddof=1))
        assert together[name]["low"] < together[name]["value"] < together[name]["high"]


def test_a_better_system_is_better_whichever_way_the_metric_points() -> None:
    good, bad = system(noise=0.2), system(noise=0.5, seed=2)
    for metric in TRANSLATION.metrics:
        found = text_evaluation.compare(good, shuffled(bad), TRANSLATION, metric=metric)
        assert found["verdict"] == "better"
        assert 0 < found["low"] < found["difference"] < found["high"]
        assert found["p_value"] < 0.001
        back = text_evaluation.compare(bad, good, TRANSLATION, metric=metric)
        assert (back["verdict"], back["difference"]) == ("worse", pytest.approx(-found["difference"]))
    assert text_evaluation.compare(good, bad, TRANSLATION)["metric"] == "chrf"


def test_a_system_is_not_different_from_itself() -> None:
    found = text_evaluation.compare(system(), system(), TRANSLATION)
    assert (found["difference"], found["low"], found["high"], found["p_value"]) == (0, 0, 0, 1)
    assert found["verdict"] == "no difference shown"


def test_few_rows_show_no_difference_however_consistent() -> None:
    good, bad = system(rows=4, noise=0), system(rows=4, noise=1, seed=2)
    found = text_evaluation.compare(good, bad, TASKS["transduction"])
    assert found["difference"] == 1
    assert found["p_value"] == pytest.approx(1 / 8, abs=0.02)
    assert (found["low"], found["verdict"]) == (0, "no difference shown")


def test_systems_alike_are_found_different_in_few_of_many_comparisons() -> None:
    systems = [system(rows=40, seed=seed) for seed in range(40)]
    found = [text_evaluation.compare(a, b, CHRF_ONLY) for a, b in zip(systems[::2], systems[1::2], strict=True)]
    assert sum(one["verdict"] != "no difference shown" for one in found) <= 4
    assert 0.25 < np.mean([one["p_value"] for one in found]) < 0.75


def test_seeds_are_compared_by_their_means() -> None:
    several, one = [system(seed=1, noise=0.2), system(seed=2, noise=0.3)], system(seed=3, noise=0.5)
    found = text_evaluation.compare(several, one, CHRF_ONLY)
    mean = np.mean([text_evaluation.values(seed, CHRF_ONLY)["chrf"] for seed in several])
    assert found["difference"] == pytest.approx(mean - text_evaluation.values(one, CHRF_ONLY)["chrf"])
    assert found["verdict"] == "better"


def test_several_comparisons_have_wider_intervals_than_one() -> None:
    good, bad, same = system(noise=0.2), system(noise=0.3, seed=2), system(noise=0.2, seed=3)
    alone = text_evaluation.compare(good, bad, CHRF_ONLY)
    together = text_evaluation.compare_all({"bad": (good, bad), "same": (good, same)}, CHRF_ONLY)
    assert list(together) == ["bad", "same"]
    assert together["bad"]["low"] < alone["low"]
    assert together["bad"]["high"] > alone["high"]


def test_the_strongest_is_chosen_by_the_metric_that_decides() -> None:
    systems = {"a": system(noise=0.5), "b": system(noise=0.1), "c": system(noise=0.3)}
    assert text_evaluation.strongest(systems, TRANSLATION) == "b"
    assert text_evaluation.strongest(systems, replace(TRANSLATION, decides="ter")) == "b"


def test_rows_that_do_not_pair_are_refused_by_their_id() -> None:
    one, two = system(rows=5), system(rows=6)
    assert "prediction for id r5" in refusal(lambda: text_evaluation.compare(one, two, TRANSLATION))
    other = replace(one, references=[["else"], *one.references[1:]])
    assert "different references for id r0" in refusal(lambda: text_evaluation.compare(one, other, TRANSLATION))


def test_predictions_that_cannot_be_scored_are_refused() -> None:
    assert "there is no row to score" in refusal(lambda: TextPredictions([], [], [], []))
    assert "different numbers of rows: 2, 1, 1, 1" in refusal(lambda: TextPredictions(["a", "b"], [""], [["x"]], [""]))
    assert "row a: a reference is empty" in refusal(lambda: TextPredictions(["a"], [""], [["x", " "]], [""]))
    assert "did you mean translation?" in refusal(lambda: text_evaluation.task_named("translaton"), Exit.USAGE)


def test_a_task_takes_the_language_of_its_references() -> None:
    texts = TextPredictions(["1"], ["?"], [["l'acqua"]], ["Acqua!"])
    answering = text_evaluation.task_named("question_answering", "it")
    assert text_evaluation.values(texts, answering)["exact_match"] == 1
    assert text_evaluation.values(texts, text_evaluation.task_named("question_answering"))["exact_match"] == 0


def test_a_diagnosis_finds_empty_texts_copies_and_the_worst_rows() -> None:
    one = system(rows=60, noise=0.1)
    said = ["", "...", *one.predicted[2:]]
    said[5] = one.sources[5].lower() + "!"
    said[7] = one.references[7][0]
    found = text_evaluation.diagnose(replace(one, predicted=said), TRANSLATION)
    assert found["empty"] == pytest.approx(2 / 60)
    exact = sum(text == gold[0] for text, gold in zip(said, one.references, strict=True))
    assert found["copies"] == pytest.approx((exact + 1) / 60)  # here the source is the target in capitals
    assert found["length_ratio"] == pytest.approx(1 - sum(len(g[0].split()) for g in one.references[:2]) / sum(
        len(g[0].split()) for g in one.references))  # fmt: skip
    assert [row["id"] for row in found["errors"][:2]] == ["r0", "r1"]
    assert set(found["errors"][0]) == {"id", "source", "gold", "predicted", "score"}
    assert "r7" not in [row["id"] for row in found["errors"]]
    scores = [row["score"] for row in found["errors"]]
    assert scores == sorted(scores)
    assert "tok:13a" in found["signatures"]["bleu"]
    assert json.dumps(found)


def test_buckets_of_source_length_part_the_rows() -> None:
    one = system(rows=90)
    buckets = text_evaluation.by_source_length(one, TRANSLATION)
    assert sum(bucket["rows"] for bucket in buckets) == 90
    assert len(buckets) == 5
    assert all(first["to"] < second["from"] for first, second in itertools.pairwise(buckets))
    for bucket in text_evaluation.by_source_length(one, TRANSLATION, edges=[6, 10]):
        rows = [i for i, s in enumerate(one.sources) if bucket["from"] <= len(s.split()) <= bucket["to"]]
        part = [[one.references[i][0] for i in rows]]
        assert bucket["chrf"] == pytest.approx(CHRF().corpus_score([one.predicted[i] for i in rows], part).score)
        assert bucket["low"] <= bucket["chrf"] <= bucket["high"]


def test_a_bucket_without_a_hit_keeps_its_uncertainty() -> None:
    buckets = text_evaluation.by_source_length(system(rows=50, noise=1), TASKS["transduction"])
    assert all(bucket["exact_match"] == bucket["low"] == 0 for bucket in buckets)
    assert all(0.2 < bucket["high"] < 0.5 for bucket in buckets)


def test_predictions_survive_the_trip_through_their_file() -> None:
    one = replace(system(rows=6, references=2), confidence=[-0.5] * 6)
    mixed = replace(one, references=[one.references[0][:1], *one.references[1:]])
    lines = [json.loads(json.dumps(row)) for row in text_evaluation.to_rows(mixed)]
    assert isinstance(lines[0]["gold"], str)
    assert isinstance(lines[1]["gold"], list)
    assert text_evaluation.from_rows(lines) == mixed
    del lines[2]["score"]
    assert text_evaluation.from_rows(lines).confidence is None
    lines[3]["predicted"] = 5
    assert "predictions line 4" in refusal(lambda: text_evaluation.from_rows(lines))


def test_statistics_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = text_metrics.statistics

    def counted(names: list[str], *arguments: object, **settings: object) -> object:
        calls.extend(names)
        return compute(names, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("finetune.text_metrics.statistics", counted)
    one, two = system(), system(seed=2)
    text_evaluation.score(one, TRANSLATION)
    text_evaluation.compare(one, two, TRANSLATION)
    text_evaluation.diagnose(one, TRANSLATION)
    assert sorted(calls) == ["bleu", "chrf", "chrf", "ter"]


ANSWERS = TASKS["question_answering"]


def answers(said: list[str]) -> TextPredictions:
    """Return answers in two languages, in turn, one row of which does not tell its own."""
    golds = [["Roma"], ["Rome", "in Rome"], ["casa"], ["house"], ["a"]]
    languages = ["it", "en", "it", "en", None]
    ids = list("abcde")
    return TextPredictions(ids, [f"{one}?" for one in ids], golds, said, None, languages)


def test_each_row_is_scored_by_the_rules_of_its_language() -> None:
    # "la" is an article in Italian alone, "a" in English alone, which is also the rule where nothing is told.
    found = answers(["a Roma", "A Rome", "la casa", "la house", "the"])
    exact, overlap = found.statistics(["exact_match", "token_f1"], ANSWERS)
    assert exact[:, 0].tolist() == [0, 1, 1, 0, 1]
    assert overlap[:, 0].tolist() == pytest.approx([2 / 3, 1, 1, 2 / 3, 1])
    assert found.signatures(ANSWERS)["exact_match"] == (
        "it: texts:squad|articles:it, en: texts:squad|articles:en, None: texts:squad|articles:en"
    )
    whole = found.statistics(["exact_match"], replace(ANSWERS, language="it"))[0]
    assert whole[:, 0].tolist() == [0, 1, 1, 0, 0]  # the row that tells nothing is Italian now


def test_languages_are_scored_and_compared_by_themselves() -> None:
    right, wrong = (answers([text] * 5) for text in ("x", "y"))
    right = replace(right, predicted=["Roma", "Rome", "casa", "no", "a"])
    found = text_evaluation.by_language(right, wrong, ANSWERS)
    assert list(found["languages"]) == list(found["comparisons"]) == ["it", "en"]
    assert found["languages"]["it"]["exact_match"]["value"] == 1
    assert found["languages"]["en"]["exact_match"]["value"] == 0.5
    assert found["comparisons"]["it"]["difference"] == 1
    several = text_evaluation.by_language([right, wrong], None, ANSWERS)
    assert several["languages"]["it"]["exact_match"]["value"] == 0.5
    assert set(several) == {"languages"}
    assert text_evaluation.by_language(replace(right, languages=None), None, ANSWERS) == {}


def test_languages_survive_the_trip_through_their_file_and_another_order() -> None:
    one = answers(["Roma", "no", "casa", "house", "x"])
    assert text_evaluation.from_rows(text_evaluation.to_rows(one)) == one
    turned = one.select([4, 2, 0, 1, 3])
    assert text_evaluation.compare(one, turned, ANSWERS)["difference"] == 0
    assert turned.of("it").predicted == ["casa", "Roma"]
    assert "different numbers of rows" in refusal(lambda: replace(one, languages=["it"]))
