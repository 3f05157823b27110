"""Texts become units and token numbers once; vocabularies are balanced; held-out texts are known by their letters."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
from pretexts import write_mono, write_pairs, write_rows
from transformers import BertTokenizerFast

from finetune.data.read import Source
from finetune.errors import UserError
from finetune.pretraining import corpus, material, vocabulary
from finetune.pretraining.corpus import CorpusConfig, HeldOut
from finetune.pretraining.distillation import Teacher
from finetune.pretraining.examples import Frame
from finetune.pretraining.masking import MaskingConfig
from finetune.pretraining.stores import Encoder
from finetune.pretraining.vocabulary import VocabularyConfig
from finetune.report import pretraining as report

NOTHING = HeldOut({}, "", "drop")


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    letters = [chr(code) for code in range(97, 123)]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={entry: number for number, entry in enumerate(entries)})


def texts_of(documents: corpus.Documents, tokenizer: BertTokenizerFast) -> list[str]:
    return [
        "".join(tokenizer.convert_ids_to_tokens(documents.rows[unit].tolist())).replace("##", "")
        for unit in range(len(documents.rows))
    ]


def test_blank_lines_part_documents_and_long_ones_are_held_out_in_pieces(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "LINES_IN_A_UNIT", 2)
    path = tmp_path / "text.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as stream:
        stream.write("\n\nab\r\ncd\n \nef\ngh\nij\n\n\nkl\nmn")
    found = corpus.read_documents("train", "it", CorpusConfig(train=str(path)), Encoder(tokenizer), NOTHING)
    assert texts_of(found, tokenizer) == ["abcd[SEP]", "efgh", "ij[SEP]", "klmn[SEP]"]
    assert [found.where(unit) for unit in range(4)] == [f"{path}:{line}" for line in (3, 6, 8, 11)]
    assert found.figures["words"] == 7
    assert found.figures["unknown"] == 0


def test_each_row_of_a_table_is_a_document(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "text.csv"
    path.write_text("text,label\nab,1\ncd,2\n", encoding="utf-8")
    found = corpus.read_documents("train", "it", CorpusConfig(train=str(path)), Encoder(tokenizer), NOTHING)
    assert texts_of(found, tokenizer) == ["ab[SEP]", "cd[SEP]"]


def test_an_edited_text_and_another_vocabulary_are_read_anew(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    config = CorpusConfig(train=str(path))
    for text in ("ab\n", "cd\n"):
        path.write_text(text, encoding="utf-8")
        found = corpus.read_documents("train", "it", config, Encoder(tokenizer), NOTHING)
        assert texts_of(found, tokenizer) == [f"{text.strip()}[SEP]"]
    other = BertTokenizerFast(vocab={**tokenizer.get_vocab(), "cd": len(tokenizer)})
    found = corpus.read_documents("train", "it", config, Encoder(other), NOTHING)
    assert found.rows[0].tolist() == [len(tokenizer), 3]


def test_the_same_bytes_in_another_kind_of_file_are_read_anew(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    for name, expected in (("text.txt", ["textabcd[SEP]"]), ("text.csv", ["ab[SEP]", "cd[SEP]"])):
        path = tmp_path / name
        path.write_text("text\nab\ncd\n", encoding="utf-8")
        found = corpus.read_documents("train", "it", CorpusConfig(train=str(path)), Encoder(tokenizer), NOTHING)
        assert texts_of(found, tokenizer) == expected


def test_a_text_in_another_encoding_is_refused_with_its_line(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("ab\ncaffè\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"text.txt:2: byte 0xE8 .* data.encoding=latin-1"):
        corpus.read_documents("train", "it", CorpusConfig(train=str(path)), Encoder(tokenizer), NOTHING)
    config = CorpusConfig(train=str(path), encoding="latin-1")
    assert len(corpus.read_documents("train", "it", config, Encoder(tokenizer), NOTHING).rows) == 1


def test_a_source_sentence_is_stored_once_for_all_languages(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    write_rows(tmp_path / "p.it.jsonl.gz", [{"en": "ab", "it": "c"}, {"en": "de", "it": "f"}, {"en": "ab", "it": "g"}])
    write_rows(tmp_path / "p.de.jsonl.gz", [{"en": "hi", "de": "j"}, {"en": "de", "de": "k"}])
    config = CorpusConfig(parallel=f"{tmp_path}/p.{{language}}.jsonl.gz")
    found = corpus.read_pairs("parallel", ["it", "de"], config, (Encoder(tokenizer), None), NOTHING)
    assert len(found.source) == 3
    assert {code: of.tolist() for code, of in found.source_of.items()} == {"it": [0, 1, 0], "de": [2, 1]}
    assert found.where("de", 1) == f"{tmp_path}/p.de.jsonl.gz:2"
    assert corpus.pair_texts(found, "it", np.array([2, 0]), config) == [("ab", "g"), ("ab", "c")]
    # Languages in another order number the sentences in another way, whatever the cache has.
    again = corpus.read_pairs("parallel", ["de", "it"], config, (Encoder(tokenizer), None), NOTHING)
    assert {code: of.tolist() for code, of in again.source_of.items()} == {"de": [0, 1], "it": [2, 1, 2]}


def test_pairs_that_lose_their_end_are_counted(tokenizer: BertTokenizerFast, tiny_model: Path, tmp_path: Path) -> None:
    sizes = [(3, 3), (6, 7), (6, 8), (14, 1), (1, 15), (2, 2)]  # letters of both sides; 16 tokens fit
    write_rows(tmp_path / "p.it.jsonl.gz", [{"en": "a" * en, "it": "b" * it} for en, it in sizes])
    write_rows(tmp_path / "v.it.jsonl.gz", [{"en": "a", "it": "b"}, {"en": "c", "it": "d"}])
    config = CorpusConfig(
        parallel=f"{tmp_path}/p.{{language}}.jsonl.gz", parallel_validation=f"{tmp_path}/v.{{language}}.jsonl.gz"
    )
    frame, teacher = Frame.of(tokenizer, 16, MaskingConfig()), Teacher(str(tiny_model), 16, use_cpu=True)
    for objective, cut in (("tlm", 3), ("distil", 1)):
        told = teacher if objective == "distil" else None
        asked = material.plan(objective, ["en", "it"], config, "teacher" if told else None, 1)
        figures = material.read(asked, tokenizer, frame, told).figures["languages"]["it"]
        assert figures["cut_pairs"] == cut
        assert f"6 pairs · {cut} of them cut at max_length" in report._amounts(figures)


@pytest.mark.parametrize("objective", ["mlm", "tlm"])
def test_what_is_held_out_has_no_say_in_the_token_frequencies(
    tokenizer: BertTokenizerFast, tmp_path: Path, objective: str
) -> None:
    letters = [chr(code) for code in range(97, 117)]  # a document and a pair of each
    (tmp_path / "text.en.txt").write_text("\n\n".join(letter * 9 for letter in letters), encoding="utf-8")
    write_rows(tmp_path / "p.it.jsonl.gz", [{"en": letter, "it": letter} for letter in letters])
    config = CorpusConfig(
        train=f"{tmp_path}/text.{{language}}.txt",
        parallel=f"{tmp_path}/p.{{language}}.jsonl.gz",
        validation_share=0.25,
    )
    languages = ["en"] if objective == "mlm" else ["en", "it"]
    asked = material.plan(objective, languages, config, None, 1)
    found = material.read(asked, tokenizer, Frame.of(tokenizer, 16, MaskingConfig()), None)
    shares = found.unigram.log_shares[tokenizer.convert_tokens_to_ids([*letters, "z"])]
    assert (shares == shares[-1]).sum() == 5 + 1  # as rare as the letter that no text has


def test_held_out_texts_are_known_whatever_their_case_spaces_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "held.csv"
    path.write_text("id,text,title\n1,Caffè n. 1!,Other\n2,...,\n", encoding="utf-8")
    held = corpus.read_held_out(CorpusConfig(held_out=str(path), on_leak="drop"))
    assert held.leaks("  caffe\u0300 N1", "x:1")
    assert not held.leaks("caffè n. 2", "x:1")
    assert not held.leaks("!!!", "x:1")  # nothing is left of it to compare
    assert not held.leaks("other", "x:1")
    more = corpus.read_held_out(CorpusConfig(held_out=str(path), held_out_columns=["title"]))
    with pytest.raises(UserError, match=r"x:7 stands in .*held.csv:2"):
        more.leaks("OTHER", "x:7")
    with pytest.raises(UserError, match="has no text in the columns body"):
        corpus.read_held_out(CorpusConfig(held_out=str(path), held_out_columns=["body"]))


def opened(folder: Path, languages: list[str]) -> dict[str, list[Source]]:
    config = CorpusConfig(
        train=f"{folder}/mono.{{language}}.txt", parallel=f"{folder}/parallel.en-{{language}}.jsonl.gz"
    )
    return corpus.texts_for_vocabulary(languages, config, NOTHING)


def test_a_vocabulary_is_the_same_each_time_and_keeps_accents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mono(tmp_path, "en")
    (tmp_path / "mono.it.txt").write_text("Perché no? Città\n" * 30, encoding="utf-8")
    write_pairs(tmp_path, "it", 50)
    entries = []
    for cache in ("one", "two"):
        monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / cache))
        config = VocabularyConfig(vocab_size=200)
        tokenizer = vocabulary.learn(opened(tmp_path, ["en", "it"]), "", config, 0.7, 64)
        entries.append(tokenizer.get_vocab())
    assert entries[0] == entries[1]
    assert len(entries[0]) <= 200
    assert sorted(entries[0], key=entries[0].__getitem__)[:5] == list(vocabulary.SPECIALS)
    assert tokenizer.tokenize("Perché CITTÀ") == ["perché", "città"]
    assert tokenizer.model_max_length == 64


def test_a_vocabulary_is_learnt_without_the_texts_that_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "mono.en.txt").write_text("a cat\nZebra!\n" * 9, encoding="utf-8")
    pairs = [{"en": "a cat", "it": "un gatto"}, {"en": "zebra", "it": "w"}] * 9
    write_rows(tmp_path / "parallel.en-it.jsonl.gz", pairs)
    (tmp_path / "held.txt").write_text("zebra\n", encoding="utf-8")
    config = CorpusConfig(
        train=f"{tmp_path}/mono.en.txt", parallel=f"{tmp_path}/parallel.en-{{language}}.jsonl.gz",
        held_out=f"{tmp_path}/held.txt", on_leak="drop",
    )  # fmt: skip
    found = corpus.texts_for_vocabulary(["en", "it"], config, corpus.read_held_out(config))
    read = {code: {str(value) for source in of for _, [value] in source.rows} for code, of in found.items()}
    assert read["en"] == {"a cat"}
    assert read["it"] == {"a cat", "un gatto"}
    refused = dataclasses.replace(config, on_leak="error")
    with pytest.raises(UserError, match=r"mono\.en\.txt:2 stands in .*held\.txt:1"):
        list(corpus.texts_for_vocabulary(["en"], refused, corpus.read_held_out(refused))["en"][0].rows)


def test_smaller_languages_count_for_more_than_their_text(tmp_path: Path) -> None:
    for code, lines in (("en", 64), ("it", 4)):
        (tmp_path / f"{code}.lines").write_text("x\n" * lines, encoding="utf-8")
    paths = {code: tmp_path / f"{code}.lines" for code in ("en", "it")}
    times = vocabulary.repeats({"en": 64, "it": 4}, 0.5)
    assert times == {"en": 1.0, "it": 4.0}
    assert len(list(vocabulary._balanced(paths, times))) == 64 + 16
    assert len(list(vocabulary._balanced(paths, {"en": 1.5, "it": 1.0}))) == 96 + 4
