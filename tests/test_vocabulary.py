"""Vocabularies: texts come back as they were, the same texts give the same files, bad sizes and files are refused."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import get_args

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune import config as configuration
from finetune.errors import Exit, UserError
from finetune.seq2seq.vocabulary import (
    BOS,
    EOS,
    UNK,
    Kind,
    Vocabularies,
    VocabularyConfig,
    learn,
    statistics,
)

KINDS: list[Kind] = list(get_args(Kind))
ENGLISH = [
    "Two men are standing at the stove, preparing food.",
    'A girl in a "pink" dress climbs into a wooden cabin (alone).',
    "It's 3:45 p.m.; the well-known black-and-white dog doesn't wait...",
    "Costs: $5.50, 10% off!! C++ & C# <b>bold</b> a_b </s> <unk> <pad>x<s>",
    "http://example.org/a?b=c#d – 'quoted' — e.g. this/that [1] {2}",
]
GERMAN = [
    "Zwei Männer stehen am Herd und bereiten Essen zu.",
    "Ein kleines Mädchen klettert in ein „Spielhaus“ aus Holz – übrigens: ÄÖÜ, ß!",
    "Die Straßenbahn-Haltestelle ist 3,5 km entfernt (ungefähr).",
]
OTHERS = [
    "L'été dernier, où étiez-vous ? « À Noël », dit-il… cœur, naïf.",
    "رجلان يقفان عند الموقد، ويُعِدّان الطعام؟ نعم!",
    "两个男人站在炉子旁，正在准备食物。他说：“好吃吗？”",
    "二人の男性がコンロの前に立っています。カタカナ、ひらがな!",
    "Cafe\u0301 q\u0323\u0307 A\u030a in decomposed letters, हिन्दी में भी",
    "smile 😀 family 👨‍👩‍👧 flag 🇩🇪 heart ❤️ thumbs 👍🏽!",
    "marks ▁ ￭ of \u00a0 ours \u2003 and\ttabs,\u3000wide  spaces \n lines ",
]
TEXTS = [*ENGLISH, *GERMAN, *OTHERS]


def tidy(text: str, kind: Kind) -> str:
    """Return what a text must come back as, worked out without the tokenizer."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    return text.replace("￭", "■") if kind == "word" else text if kind == "character" else text.replace("▁", "_")


def settings(kind: Kind, **others: object) -> VocabularyConfig:
    return VocabularyConfig(**{"kind": kind, "vocab_size": 600, "min_frequency": 1, **others})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_texts_come_back_as_they_were(kind: Kind, shared: bool, tmp_path: Path) -> None:
    vocabularies = learn(TEXTS, TEXTS[::-1], settings(kind, shared=shared))
    vocabularies.save(tmp_path)
    for each in (vocabularies, Vocabularies.load(tmp_path)):
        rows = each.encode_targets(TEXTS)
        assert each.decode_targets(rows) == [tidy(text, kind) for text in TEXTS]
        assert [row[1:] for row in rows] == each.encode_sources(TEXTS) or not shared
        assert all(row[0] == BOS and row[-1] == EOS and min(row[1:-1]) > EOS for row in rows)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "character"])
def test_new_texts_of_known_letters_come_back(kind: Kind) -> None:
    vocabularies = learn(TEXTS, TEXTS, settings(kind))
    letters = sorted({character for text in TEXTS for character in tidy(text, kind)} - {" "})
    letters = [letter for letter in letters if not unicodedata.combining(letter)]  # they would make new letters
    new = ["".join(letters[start::7]) for start in range(7)] + [" ".join(letters[start::11]) for start in range(11)]
    assert vocabularies.decode_targets(vocabularies.encode_targets(new)) == new


def test_words_are_put_together_again_around_their_signs() -> None:
    texts = ["Zwei Männer stehen am Herd.", 'Er sagte: "Ja (nein)!" - und ging.', "ein T-Shirt (rot) für 5,50€ ..."]
    vocabularies = learn(texts, texts, settings("word"))
    assert vocabularies.decode_targets(vocabularies.encode_targets(texts)) == texts
    rows = vocabularies.encode_targets(["stehen am Herd", "Herd."])
    assert rows[0][-2] == rows[1][1]  # a word is the same before a sign
    assert vocabularies.target.convert_ids_to_tokens(rows[1][1:-1]) == ["Herd", "￭."]
    wild = vocabularies.target.convert_tokens_to_ids(["￭.", "Herd", "￭-￭", "￭.", "(￭"])
    assert UNK not in wild
    assert vocabularies.decode_targets([wild]) == [". Herd-. ("]
    chinese = learn(["两个man吃。"], ["人"], settings("word")).source
    pieces = chinese.convert_ids_to_tokens(chinese("两个man吃。")["input_ids"])
    assert pieces == ["两", "￭个￭", "man", "￭吃", "￭。", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_special_numbers_are_0_to_3_and_no_text_holds_them(kind: Kind) -> None:
    hostile = ["<pad> <unk> <s> </s>", "a</s>b <s>", "</s>", "x <pad>"] * 5
    tokenizer = learn(hostile, hostile, settings(kind)).source
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<unk>", "<s>", "</s>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 3)
    rows = Vocabularies(tokenizer, tokenizer).encode_targets(hostile)
    assert all(min(row[1:-1]) > EOS for row in rows)
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values())) == max(tokenizer.get_vocab().values()) + 1


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_the_size_is_an_upper_bound_that_enough_text_reaches(kind: Kind) -> None:
    words = [f"{first}{middle}{last}" for first in "abcdef" for middle in "aeiou" for last in "klmnrst"]
    texts = [" ".join(words[start : start + 9]) for start in range(200)] * 2
    for size in (30, 77, 150):
        assert len(learn(texts, texts, settings(kind, vocab_size=size)).source) == size


def test_rare_words_are_unknown_and_counted() -> None:
    texts = ["a b", "a b", "a c", "d b"]
    vocabularies = learn(texts, texts, VocabularyConfig(kind="word", vocab_size=50, min_frequency=2, shared=False))
    rows = vocabularies.encode_targets(texts)
    assert [row.count(UNK) for row in rows] == [0, 0, 1, 1]
    found = statistics(vocabularies.target, texts, rows)
    assert (found.size, found.unknown_rate, found.tokens_per_word) == (6, 0.25, 1.0)
    assert found.lengths == {50: 4, 90: 4, 99: 4, 100: 4}
    assert "6 entries · 25.00 % unknown" in str(found)


def test_statistics_give_lengths_by_percentile() -> None:
    texts = [" ".join("a" * length) for length in range(1, 101)]
    vocabularies = learn(texts, texts, settings("word"))
    found = statistics(vocabularies.source, texts, vocabularies.encode_sources(texts))
    assert found.lengths == {50: 52, 90: 92, 99: 101, 100: 101}


def test_lowercase_is_learnt_and_saved(tmp_path: Path) -> None:
    texts = ["Über DIE Straße", "über die straße"]
    vocabularies = learn(texts, texts, settings("bpe", lowercase=True))
    vocabularies.save(tmp_path)
    loaded = Vocabularies.load(tmp_path)
    assert loaded.decode_targets(loaded.encode_targets(texts)) == ["über die straße"] * 2


def test_two_vocabularies_know_only_their_own_side() -> None:
    vocabularies = learn(["aaa bbb"], ["ccc ddd"], settings("character", shared=False))
    assert not vocabularies.shared
    assert UNK not in vocabularies.encode_sources(["aaa bbb"])[0]
    assert vocabularies.encode_sources(["ccc"])[0][:-1] == [UNK] * 3
    assert learn(["aaa bbb"], ["ccc ddd"], settings("character")).shared


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_vocabulary_loads_with_auto_tokenizer(kind: Kind, tmp_path: Path) -> None:
    vocabularies = learn(TEXTS, TEXTS, settings(kind))
    vocabularies.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXTS)["input_ids"] == vocabularies.encode_sources(TEXTS)
    decoded = tokenizer.batch_decode(tokenizer(TEXTS)["input_ids"], skip_special_tokens=True)
    assert decoded == [tidy(text, kind) for text in TEXTS]


OTHER_PROCESS = """
import os, sys
from pathlib import Path
from finetune.seq2seq.vocabulary import VocabularyConfig, learn
folder = Path(sys.argv[1])
texts = (folder / "texts.txt").read_text(encoding="utf-8").splitlines()
for kind in ("bpe", "unigram", "word", "character"):
    learn(texts, texts, VocabularyConfig(kind=kind, vocab_size=200)).save(folder / kind)
child = os.fork()
if child:
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train each kind in a process with threads, which then forks; return its folder and what it said."""
    folder = tmp_path_factory.mktemp("vocabularies")
    words = [word for text in [*ENGLISH, *GERMAN] for word in text.split()]
    texts = [" ".join(words[start % 60 : start % 60 + 1 + start % 13]) for start in range(3_000)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder)]
    finished = subprocess.run(
        command, env=environment | {"PYTHONHASHSEED": "5"}, check=True, capture_output=True, text=True
    )
    return folder, finished.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_learns_the_same_files(kind: Kind, other_process: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = other_process  # with threads, this one without
    texts = (folder / "texts.txt").read_text(encoding="utf-8").splitlines()
    learn(texts, texts, VocabularyConfig(kind=kind, vocab_size=200)).save(tmp_path)
    assert files(tmp_path) == files(folder / kind)


def test_a_fork_after_training_is_not_warned_of(other_process: tuple[Path, str]) -> None:
    _, said = other_process
    assert said == ""


@pytest.mark.parametrize("kind", ["bpe", "unigram", "character"])
def test_a_size_below_the_alphabet_is_refused_with_the_smallest_possible(kind: Kind) -> None:
    characters = {character for text in TEXTS for character in tidy(text, kind)} | {"▁"}
    smallest = 4 + len(characters - {" "} if kind != "character" else characters)
    with pytest.raises(UserError, match=f"give at least {smallest}") as refused:
        learn(TEXTS, TEXTS, settings(kind, vocab_size=smallest - 1))
    assert refused.value.code == Exit.USAGE
    vocabularies = learn(TEXTS, TEXTS, settings(kind, vocab_size=smallest))
    assert len(vocabularies.source) == smallest
    assert vocabularies.decode_targets(vocabularies.encode_targets(TEXTS)) == [tidy(text, kind) for text in TEXTS]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_mark_of_a_word_counts_in_the_alphabet(kind: Kind) -> None:
    with pytest.raises(UserError, match="give at least 7"):
        learn(["ab", "ba"], ["a"], settings(kind, vocab_size=6))
    assert len(learn(["ab", "ba"], ["a"], settings(kind, vocab_size=7)).source) == 7


def test_a_side_without_text_is_refused() -> None:
    for sources, targets in (([], ["a"]), ([" ", "\n"], ["a"]), (["a"], [""])):
        with pytest.raises(UserError, match="empty") as refused:
            learn(sources, targets, settings("bpe", shared=False))
        assert refused.value.code == Exit.BAD_DATA


@pytest.mark.parametrize("setting", ["vocab_size=4", "vocab_size=-1", "min_frequency=0", "kind=bytes", "size=100"])
def test_wrong_settings_are_refused_by_name(setting: str) -> None:
    with pytest.raises(UserError) as refused:
        configuration.load(VocabularyConfig, [setting])
    assert refused.value.code == Exit.USAGE
    assert setting.split("=")[0] in str(refused.value)


def test_a_folder_without_its_files_or_with_damaged_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer.json") as refused:
        Vocabularies.load(tmp_path)
    assert refused.value.code == Exit.NO_INPUT
    learn(TEXTS, TEXTS, settings("bpe", shared=False)).save(tmp_path)
    (tmp_path / "target" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read") as refused:
        Vocabularies.load(tmp_path)
    assert refused.value.code == Exit.BAD_DATA


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "[UNK]"))).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="special tokens differ") as refused:
        Vocabularies.load(tmp_path)
    assert refused.value.code == Exit.BAD_DATA
