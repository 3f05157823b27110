"""What a run that writes texts leaves, of summaries also what they are like and what a greedy oracle extracts."""

import types
from typing import Any

import pytest
from datasets import Dataset

from finetune import text_quality
from finetune.data.columns import Split
from finetune.report import text_results
from finetune.report.results import Conclusion, System
from finetune.report.text import oracle_extract_text
from finetune.text_evaluation import TASKS, TextPredictions
from finetune.text_metrics import words

SOURCES = ["The dog runs. A cat sleeps all day. It rains in Rome.", "Anna met Tom. They ate 3 apples. Then they left."]
REFERENCES = [["A cat sleeps all day."], ["They ate apples.", "They left."]]
PREDICTED = ["The dog sleeps in Rome.", "They ate 4 apples."]


def summaries() -> TextPredictions:
    return TextPredictions(["a", "b"], SOURCES, REFERENCES, PREDICTED)


def split(name: str) -> Split:
    columns = {"id": ["a", "b"], "source": SOURCES, "target": [several[0] for several in REFERENCES]}
    return Split(name, Dataset.from_dict(columns), ("f.jsonl",), {})


def test_summaries_are_described_beside_the_first_references_and_the_extract_of_a_greedy_oracle() -> None:
    found = text_results.of_summaries(summaries(), ["a cat sleeps in rome"], TASKS["summarization"])
    own, human = found["summaries"]["own"], found["summaries"]["human"]
    assert own["new_numbers"] == 1  # the 4
    assert own["novel_1"] == pytest.approx(1 / 9)  # the 4 again
    assert own["longest_copied"] == 3
    assert human["longest_copied"] == 3
    assert human["novel_1"] == 0
    assert human["mean_words"] == 4
    assert found["summaries"]["definitions"] == text_quality.DEFINITIONS
    score = found["oracle_extract"]["scores"]["rouge1"]["value"]
    assert score == pytest.approx((100 + 600 / 7) / 2)  # the sentence itself; 3 of 4 words and 3
    assert oracle_extract_text(found["oracle_extract"]).startswith(f"greedy oracle extract · rouge1 {score:.1f} [")
    assert "no bound" in found["oracle_extract"]["definition"]


def test_the_training_texts_are_cut_into_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def told(text: str) -> list[str]:
        read.append(text)
        return words(text)

    monkeypatch.setattr(text_quality, "words", told)
    text_results.of_summaries(summaries(), ["a cat sleeps in rome"], TASKS["summarization"])
    assert read.count("a cat sleeps in rome") == 1


@pytest.mark.parametrize(("task", "told"), [("summarization", True), ("dialogue", False)])
def test_only_summaries_have_an_oracle_extract(task: str, told: bool) -> None:
    written: dict[str, Any] = {}
    run: Any = types.SimpleNamespace(write_predictions=written.__setitem__, write_results=lambda results: None)
    splits = {name: split(name) for name in ("train", "validation")}
    system = System("Transformer", {"validation": summaries()}, 1.0)
    conclusion = Conclusion("seq2seq", "Transformer 1 x 8", system, [], splits, {"train": 1.0}, {}, {"parameters": 1})
    results = text_results.conclude(run, conclusion, TASKS[task])
    assert ("oracle_extract" in results["diagnostics"]) == ("summaries" in results["diagnostics"]) == told
    assert set(written) == {"validation", "errors"}
