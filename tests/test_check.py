"""The data doctor finds each planted fault, says where and what to do, and is silent about clean data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import check as doctor
from finetune.data.check import Finding, check, fold, leaks
from finetune.data.columns import DataConfig, LabelMap, Split, read_split

STARTS = ["riv", "mark", "eng", "gard", "wint", "lett", "brid", "doct", "plan", "kitch", "silv", "mus", "for", "sign"]
ENDS = ["er", "et", "ine", "en", "ge", "or", "um", "al", "oupa", "ixy", "awn", "uth"]
WORDS = [start + end for start in STARTS for end in ENDS]


def split(folder: Path, name: str, rows: list[tuple[str, str]], **settings: Any) -> Split:
    file = folder / f"{name}.csv"
    file.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return read_split(name, str(file), DataConfig(**settings))


def clean(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """Make rows of random words with labels a, b and c that no word tells."""
    generator = np.random.default_rng(seed)
    return [(" ".join(generator.choice(WORDS, 12)), "abc"[row % 3]) for row in range(rows)]


def found(findings: list[Finding], name: str, level: str = "warning") -> str:
    """Return message and action of the one finding of a check, folder left out."""
    matching = [finding for finding in findings if finding.check == name and finding.level == level]
    assert len(matching) == 1, [f"{finding.level} {finding.check}: {finding.message}" for finding in findings]
    return f"{matching[0].message} | {matching[0].action}"


def examine(folder: Path, train: list[tuple[str, str]], test: list[tuple[str, str]], **settings: Any) -> list[Finding]:
    splits = {"train": split(folder, "train", train), "test": split(folder, "test", test)}
    findings = check(splits, None, **settings)
    return [
        Finding(f.level, f.check, f.message.replace(f"{folder}/", ""), f.action.replace(f"{folder}/", ""))
        for f in findings
    ]


def test_clean_data_gets_no_warning(tmp_path: Path) -> None:
    findings = examine(tmp_path, clean(90), clean(600, seed=1))
    assert {finding.level for finding in findings} == {"good"}
    assert found(findings, "rows", "good").startswith("90 train · 600 test rows read, UTF-8, ids all different")
    assert not any(finding.action for finding in findings)


def test_rows_left_out_are_counted(tmp_path: Path) -> None:
    rows = [*clean(30), ("", "a"), ("  ", "b")]
    findings = check({"train": split(tmp_path, "train", rows, on_empty="skip")}, None)
    assert "2 rows of" in found(findings, "empty")


@pytest.mark.parametrize("text", ["it\\u2019s", "caf\\xe9", "bread &amp; butter", "it&#39;s"])
def test_characters_that_were_written_as_escapes_are_told(tmp_path: Path, text: str) -> None:
    findings = examine(tmp_path, [*clean(90), (text, "a")], clean(600, seed=1))
    assert "train: 1 text has escapes in the place of characters (1.1 %), e.g. train.csv:92" in found(
        findings, "escapes"
    )
    ordinary = examine(tmp_path, [*clean(90), ("C:\\users\\new AT&T; R&D \\usepackage", "a")], clean(600, seed=1))
    assert not [finding for finding in ordinary if finding.check == "escapes"]


def test_repeated_texts_and_conflicting_labels_are_shown_with_both_places(tmp_path: Path) -> None:
    rows = [*clean(30), ("Give me my money back", "a"), ("give me  my money back", "b")]
    findings = examine(tmp_path, rows, clean(600, seed=1))
    assert "train: 1 row repeats an earlier text (3.1 %), e.g. train.csv:32 = train.csv:33" in found(
        findings, "duplicates"
    )
    message = found(findings, "conflicts")
    assert message.startswith('train: 1 text carries two labels or more, e.g. train.csv:32 "a", train.csv:33 "b"')


def test_the_order_of_a_multi_label_rows_labels_is_no_conflict(tmp_path: Path) -> None:
    rows = [*clean(30), ("same text", "a|b"), ("same text", "b|a")]
    train = split(tmp_path, "train", rows, multi_label=True)
    assert "conflicts" not in {finding.check for finding in check({"train": train}, LabelMap.learn(train, True))}


def test_leaked_texts_are_counted_to_the_letter_and_folded(tmp_path: Path) -> None:
    train = [*clean(30), ("The Strasse is closed", "a"), ("plain copy of a text", "b")]
    test = [*clean(6, seed=1), ("the straße  is closed", "a"), ("plain copy of a text", "b")]
    findings = examine(tmp_path, train, test)
    assert found(findings, "leakage") == (
        "2 test texts are in train (25.0 %; 1 to the letter, 1 but for case and spaces), "
        "e.g. train.csv:32 = test.csv:8 | score without them: finetune evaluate RUN --data test.csv --drop-leaked"
    )
    splits = {name: split(tmp_path, name, rows) for name, rows in (("train", train), ("test", test))}
    assert leaks(splits["train"], [splits["test"]])[0].tolist() == [6, 7]


def test_a_pair_leaks_only_where_both_texts_do(tmp_path: Path) -> None:
    pairs = {}
    for name, rows in (("train", [("a", "b"), ("c", "d")]), ("test", [("a", "d"), ("C", "d ")])):
        (tmp_path / f"{name}.csv").write_text("text,second,label\n" + "".join(f"{a},{b},x\n" for a, b in rows))
        pairs[name] = read_split(name, str(tmp_path / f"{name}.csv"), DataConfig(text_pair_column="second"))
    assert leaks(pairs["train"], [pairs["test"]])[0].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "folded"), [("A  b\tC", "a b c"), ("ﬁne\u00a0Ｘ", "fine x"), ("STRASSE", "strasse"), ("Straße", "strasse")]
)
def test_folding_sets_case_width_and_spaces_aside(text: str, folded: str) -> None:
    assert fold(text) == folded


def test_near_copies_are_found_and_their_places_shown(tmp_path: Path) -> None:
    text = "Oil prices fell on Tuesday after the ministry said that exports would resume next week"
    findings = examine(
        tmp_path, [*clean(60), (text, "a")], [*clean(12, seed=1), (text.replace("Tuesday", "Monday"), "a")]
    )
    message = found(findings, "near duplicates")
    assert message.startswith(
        "1 test text is nearly a train text (7.7 % of those compared), e.g. train.csv:62 ~ test.csv:14"
    )


def test_a_sample_says_that_it_is_one_and_depends_on_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SAMPLE_ROWS", 40)
    monkeypatch.setattr(doctor, "NEAR_COMPARISONS", 400)
    train, test = clean(60), clean(30, seed=1)
    findings = examine(tmp_path, train, test)
    assert "(sample: 10 of 30 test, 40 of 60 train)" in found(findings, "near duplicates", "good")
    assert "(sample: 40 of 60 rows)" in found(findings, "telling words", "good")
    assert findings == examine(tmp_path, train, test)
    drawn = [doctor._sample(split(tmp_path, "train", train), np.arange(60), 40, seed)[0].tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_long_texts_shrink_the_sample_instead_of_filling_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SAMPLE_CHARACTERS", 5_000)
    train = split(tmp_path, "train", [("long " * 400, "a")] * 30)
    rows, texts = doctor._sample(train, np.arange(30), 100, seed=1)
    assert len(rows) == len(texts) == 5_000 // doctor.CLIP


def test_rare_labels_and_a_dominant_label_are_told(tmp_path: Path) -> None:
    findings = examine(tmp_path, [*((text, "a") for text, _ in clean(95)), ("x", "b"), ("y", "c")], clean(600, seed=1))
    assert found(findings, "rare labels").startswith('2 labels have fewer than 10 train rows: "b" 1, "c" 1')
    assert "98% of train is" in found(findings, "balance")
    assert found(findings, "labels", "good").startswith('3 labels, smallest: 1 row ("b"), largest: 95 ("a")')


def test_labels_that_look_misspelt_are_told(tmp_path: Path) -> None:
    rows = clean(30)
    findings = examine(tmp_path, [*rows, ("some text", "a|b")], rows[:1])
    assert (
        found(findings, "label spelling")
        == '1 label holds a |, e.g. "a|b": is each several labels? | give data.multi_label=true'
    )
    findings = examine(tmp_path, [*rows, ("some text", "A ")], rows[:1])
    assert 'the labels "a" and "A " differ only in case or spaces' in found(findings, "label spelling")


def test_a_label_that_train_does_not_have_is_a_failure(tmp_path: Path) -> None:
    test = [*clean(30, seed=1), ("x", "bb"), ("y", "bb")]
    message = found(examine(tmp_path, clean(30), test), "unseen labels", "failure")
    assert message.startswith('2 test rows have a label that train does not have, e.g. test.csv:32 "bb"')
    test_split = split(tmp_path, "test", test)
    alone = check({"test": test_split}, LabelMap(("a", "b")))
    assert "12 test rows have" in found(alone, "unseen labels", "failure")


def test_a_word_that_gives_a_label_away_is_told(tmp_path: Path) -> None:
    rows = [(f"{text} ticket#" if label == "a" else text, label) for text, label in clean(90)]
    message = found(examine(tmp_path, rows, clean(600, seed=1)), "telling words")
    assert message.startswith('one word alone tells the label: "ticket#" predicts "a" (100 % of 30 rows)')


def test_a_word_of_a_label_that_nearly_all_rows_have_tells_nothing(tmp_path: Path) -> None:
    rows = [(text, "a" if row % 20 else "b") for row, (text, _) in enumerate(clean(400))]
    rows = [(f"{text} often" if row % 5 == 1 else text, label) for row, (text, label) in enumerate(rows)]
    assert found(examine(tmp_path, rows, clean(600, seed=1)), "telling words", "good")


def test_the_smallest_visible_difference_is_told_and_warned_about(tmp_path: Path) -> None:
    assert "that the 20 test rows can show" in found(examine(tmp_path, clean(30), clean(20, seed=1)), "resolution")
    found(examine(tmp_path, clean(30), clean(2_000, seed=1)), "resolution", "good")
    only = check({"validation": split(tmp_path, "validation", clean(600))}, None)
    assert "the 600 validation rows" in found(only, "resolution", "good")


def tokenizer(words: list[str]) -> Any:
    """Make a transformers tokenizer that knows `words` and adds two special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def test_lengths_are_told_in_tokens_and_cut_texts_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = split(tmp_path, "train", [*clean(97), *((f"{'river ' * 40}{row}", "a") for row in range(3))])
    known = tokenizer([*WORDS, "0", "1", "2"])
    findings = check({"train": train}, None, known, max_length=32)
    message = found(findings, "lengths")
    assert message == (
        "train: 14 tokens a text (95 %: 14, longest: 43) · 3.0 % cut at 32 | give max_length=64 or data.on_long=window"
    )
    message = found(check({"train": train}, None, known, max_length=64), "lengths", "good")
    assert "0.0 % cut at 64" in message
    monkeypatch.setattr(doctor, "TOKENIZED_ROWS", 50)
    assert "(sample: 50 of 100 rows)" in found(check({"train": train}, None, known, max_length=64), "lengths", "good")


def test_a_tokenizer_that_does_not_know_the_language_is_told(tmp_path: Path) -> None:
    splits = {"train": split(tmp_path, "train", clean(30))}
    assert "unknown to the tokenizer" in found(check(splits, None, tokenizer(WORDS[:-20])), "tokens")
    for words in ([], WORDS[:3]):
        assert "are its files missing?" in found(check(splits, None, tokenizer(words)), "tokens", "failure")
