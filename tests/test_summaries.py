"""Each family on the one contract: what a model reads and is asked for, what it writes, how it is saved."""

import json
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_seq2seq as tiny
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    MBart50Tokenizer,
    MBartTokenizer,
)

from finetune import config as configuration
from finetune import cpu, generation
from finetune.commands import runs
from finetune.data.columns import Split
from finetune.errors import Exit, UserError
from finetune.generation import GenerationConfig, Written
from finetune.report import summaries as report
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.search import SearchConfig
from finetune.summaries import families, writer
from finetune.summaries.encoder_decoders import EncoderDecoderWriter
from finetune.summaries.prompts import PromptWriter
from finetune.summaries.scratch import ScratchWriter
from finetune.summaries.writer import Frame, Prefix, Writer
from recipes.summarization import Config

SHORT = "generation.max_new_tokens=8"
SCRATCH = (
    "architecture=seq2seq", "vocabulary.kind=word", "vocabulary.min_frequency=1", "network.hidden_size=32",
    "network.num_encoder_layers=1", "network.num_decoder_layers=1", "network.num_attention_heads=2",
    "network.intermediate_size=64",
)  # fmt: skip
SOURCES = tiny.TEXTS[:5]
TARGETS = ["red came.", "blue came.", "x", "grey came.", "green left."]
GREEDY = GenerationConfig(max_new_tokens=8, temperature=0.0)
SEARCH = GenerationConfig(max_new_tokens=8, num_beams=3, num_return_sequences=2, no_repeat_ngram_size=2)
Begin = Callable[..., Any]


def settings(*overrides: object) -> Config:
    return configuration.load(Config, [SHORT, *map(str, overrides)])[0]


def split(sources: Sequence[str] = SOURCES, targets: Sequence[str] = TARGETS) -> Split:
    rows: dict[str, list[Any]] = {"id": [str(row) for row in range(len(sources))], "source": list(sources)}
    rows |= {"target": list(targets), "references": [None] * len(sources)}
    rows |= {"file": [0] * len(sources), "line": list(range(1, len(sources) + 1))}
    return Split("test", Dataset.from_dict(rows), ("f.jsonl",), {})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_gpt2: Path) -> dict[str, Path]:
    """Return folders of checkpoints by their kind."""
    place = tmp_path_factory.mktemp("checkpoints")
    return {"bart": tiny.bart(place / "bart"), "t5": tiny.t5(place / "t5"), "bert": tiny_model, "gpt2": tiny_gpt2}


@pytest.fixture
def begin(folders: dict[str, Path]) -> Begin:
    """Return a function from a kind and settings to a writer before its first update."""

    def make(kind: str, *overrides: object) -> Any:
        how: dict[str, tuple[object, ...]] = {
            "scratch": SCRATCH,
            "bert2gpt": ("architecture=bert2gpt", f"encoder={folders['bert']}", f"decoder={folders['gpt2']}"),
        }
        found = families.begin(settings(*how.get(kind, (f"model={folders.get(kind)}",)), *overrides), split())
        found.model.eval()
        return found

    return make


KINDS = ["bart", "t5", "bert2gpt", "gpt2", "scratch"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_gives_the_same_text_alone_and_in_a_batch(begin: Begin, kind: str) -> None:
    model = begin(kind)
    for config in (GREEDY, SEARCH, GenerationConfig(max_new_tokens=8, num_return_sequences=2)):
        together = writer.write(model, split(), "truncate", config, 1)
        for row in range(len(SOURCES)):
            alone = writer.write(model, split([SOURCES[row]], [TARGETS[row]]), "truncate", config, 1)
            assert alone.texts[0] == together.texts[row]
    assert all(len(several) == 2 for several in together.texts)


def test_sources_of_a_model_from_scratch_leave_the_batch_when_their_texts_end(begin: Begin) -> None:
    model: ScratchWriter = begin("scratch")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(3)
    config = GenerationConfig(max_new_tokens=8, num_return_sequences=6, temperature=9.0)
    together = writer.write(model, split(), "truncate", config, 1)
    assert len({len(text.split()) for several in together.texts for text in several}) > 2
    for row in range(len(SOURCES)):
        alone = writer.write(model, split([SOURCES[row]], [TARGETS[row]]), "truncate", config, 1)
        assert alone.texts[0] == together.texts[row]
        assert alone.scores[0] == pytest.approx(together.scores[row], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_a_sum_over_predicted_tokens_and_padding_adds_nothing(begin: Begin, kind: str) -> None:
    model = begin(kind)
    coded = writer.encode(model, split(), "truncate")
    every = np.arange(len(SOURCES))
    with torch.no_grad():
        whole = model.loss(model.model, coded.examples.collate(every))
        each = [model.loss(model.model, coded.examples.collate(np.array([row]))) for row in every]
        plain = model.plain_loss(model.model, coded.examples.collate(every))
    assert float(whole) == pytest.approx(float(sum(each)), rel=1e-5)
    assert float(plain) != pytest.approx(float(whole), rel=1e-4)  # smoothing
    batch = coded.examples.collate(every)
    targets = model.code_targets(TARGETS)
    assert batch.items == sum(len(row) + len(model.target.before[1:]) + len(model.target.after) for row in targets)
    train = settings("train.mixed_precision=no").train
    assert writer.mean_loss(model, coded, train) == pytest.approx(float(plain) / batch.items, rel=1e-5)


def test_bart_reads_and_predicts_what_transformers_gives_it(begin: Begin, folders: dict[str, Path]) -> None:
    model: EncoderDecoderWriter = begin("bart")
    tokenizer = model.tokenizers.source
    assert (list(model.source.before), list(model.source.after)) == ([0], [2])
    assert (list(model.target.before), list(model.target.after)) == ([2, 0], [2])
    batch = writer.encode(model, split(), "truncate").examples.collate(np.array([0]))
    assert batch.tensors["source"][0].tolist() == tokenizer(SOURCES[0])["input_ids"]
    labels = torch.tensor([tokenizer(text_target=TARGETS[0])["input_ids"]])
    assert batch.tensors["labels"].tolist() == labels.tolist()
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folders["bart"], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(input_ids=batch.tensors["source"], labels=labels).loss
        found = model.plain_loss(model.model, batch)
    assert float(found) / batch.items == pytest.approx(float(expected), rel=1e-5)


def test_t5_has_the_prefix_of_its_config_and_its_own_frame(begin: Begin) -> None:
    model: EncoderDecoderWriter = begin("t5")
    tokenizer = model.tokenizers.source
    assert model.prefix == "summarize: "
    assert model.network.config._attn_implementation != cpu.ATTENTION  # which knows no biases of position
    batch = writer.encode(model, split(), "truncate").examples.collate(np.array([0]))
    assert batch.tensors["source"][0].tolist() == tokenizer("summarize: " + SOURCES[0])["input_ids"]
    assert (list(model.target.before), list(model.target.after)) == ([0], [1])
    plain = begin("t5", "source_prefix=")
    assert plain.prefix == ""
    assert plain.source.room - model.source.room == len(model.source.before) > 0


def test_bert_with_gpt2_keeps_both_and_draws_the_attention_between_them(
    begin: Begin, folders: dict[str, Path], tmp_path: Path
) -> None:
    model: EncoderDecoderWriter = begin("bert2gpt")
    assert model.name == "BERT with GPT-2"
    state = model.network.state_dict()
    encoder = AutoModel.from_pretrained(folders["bert"]).state_dict()
    decoder = AutoModelForCausalLM.from_pretrained(folders["gpt2"]).state_dict()
    for part, weights in (("encoder", encoder), ("decoder", decoder)):
        assert all(torch.equal(state[f"{part}.{name}"], tensor) for name, tensor in weights.items())
    new = [name for name in state if "crossattention" in name or "ln_cross_attn" in name]
    assert len(new) > 4
    again, other = begin("bert2gpt").network.state_dict(), begin("bert2gpt", "seed=2").network.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert any(not torch.equal(state[name], other[name]) for name in new)
    config = model.network.config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 0)
    assert (list(model.target.before), list(model.target.after)) == ([0], [0])
    trained = {name for name, part in model.model.named_parameters() if part.requires_grad}
    assert not [name for name in trained if "pooler" in name]
    model.save(tmp_path, {}, GREEDY)
    _, found = EncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


@pytest.mark.parametrize("kind", ["bart", "t5", "bert2gpt"])
@pytest.mark.parametrize(
    "config", [GREEDY, replace(SEARCH, num_return_sequences=1, min_new_tokens=6)], ids=["greedy", "search"]
)
def test_transformers_writes_the_same_with_the_saved_folder(
    begin: Begin, tmp_path: Path, kind: str, config: GenerationConfig
) -> None:
    model: EncoderDecoderWriter = begin(kind)
    model.save(tmp_path, {}, config)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    written = writer.write(model, split(), "truncate", config, 1)
    for text, (own,) in zip(SOURCES, written.texts, strict=True):
        row = model.source.around(model.code_sources([text])[0])[:48]
        found = theirs.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long))
        assert model.tokenizers.target.decode(found[0], skip_special_tokens=True).strip() == own
    assert len({several[0] for several in written.texts}) > 1


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_new_tokens=8, num_beams=3, length_penalty=0.0, min_new_tokens=3),
        GenerationConfig(max_new_tokens=6, temperature=0.0),
    ],
    ids=["search", "greedy"],
)
def test_transformers_searches_the_same_with_the_saved_folder_of_gpt2(
    begin: Begin, tmp_path: Path, config: GenerationConfig
) -> None:
    model: PromptWriter = begin("gpt2")
    model.save(tmp_path, {}, replace(config, no_repeat_ngram_size=3))  # which transformers would look for in the source
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    sources = ["ab", "xyz", "hello", "q"]
    written = writer.write(model, split(sources, ["x"] * 4), "truncate", config, 1)
    for text, (own,) in zip(sources, written.texts, strict=True):
        row = torch.tensor([model.source.around(model.code_sources([text])[0])])
        found = theirs.generate(row, attention_mask=torch.ones_like(row))[0, row.shape[1] :]
        assert generation.decoded(model.start.tokenizer, found.tolist()).strip() == own
    assert len({several[0] for several in written.texts}) > 1


def test_gpt2_is_asked_for_the_target_alone_and_may_repeat_the_source(begin: Begin) -> None:
    model: PromptWriter = begin("gpt2", "prompt_end= =", "max_target_length=8", "max_source_length=30")
    code = model.code_sources
    assert list(model.source.before) == [0]
    assert list(model.source.after) == code([" ="])[0]
    batch = writer.encode(model, split(["ab"], ["c"]), "truncate").examples.collate(np.array([0]))
    assert batch.tensors["input_ids"].tolist() == [[0, *code(["ab = c"])[0]]]
    assert batch.tensors["gold"].tolist() == [*code([" c"])[0], 0]
    assert batch.tensors["places"].tolist() == [4, 5, 6]
    (row,) = [model.source.around(code([SOURCES[0]])[0][: model.source.room])]
    decoder = model.pen.decoder([row])
    assert [list(part) for part in decoder.before] == [row[-1:]]
    written = writer.write(model, split(), "truncate", GREEDY, 1)
    theirs = model.start.model.network.generate(
        torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=False,
        max_new_tokens=8, pad_token_id=0,
    )  # fmt: skip
    end = generation.decoded(model.start.tokenizer, theirs[0, len(row) :].tolist())
    assert written.texts[0] == [end.strip()]


@pytest.mark.parametrize(("kind", "lead"), [("bart", " "), ("t5", ""), ("gpt2", " ")])
def test_a_prefix_that_ends_with_a_space_gives_it_to_the_word_that_follows(begin: Begin, kind: str, lead: str) -> None:
    model = begin(kind, "source_prefix=came then: ")
    assert model.lead == lead  # T5 has the space before every text
    tokenizer = model.start.tokenizer if kind == "gpt2" else model.tokenizers.source
    framed = model.source.around(model.code_sources(["red came"])[0])
    whole = tokenizer("came then: red came")["input_ids"]
    assert framed[kind == "gpt2" :][: len(whole)] == whole
    bare = begin(kind, "source_prefix=came then:\n")
    assert bare.code_sources(["red"]) == begin(kind).code_sources(["red"])


def test_a_prefix_that_ends_inside_a_word_keeps_its_last_token() -> None:
    known: dict[str, int] = {}

    def code(texts: Sequence[str]) -> list[list[int]]:  # words between spaces, so that one more letter is another word
        return [[known.setdefault(word, len(known)) for word in text.split()] for text in texts]

    assert Prefix.of("tell short", code) == Prefix(code(["tell short"])[0], "")
    assert Prefix.of("tell short: ", code) == Prefix(code(["tell short:"])[0], "")


def test_noam_has_a_factor_for_its_rate_and_other_schedules_a_peak(begin: Begin) -> None:
    asked, model = families.loop_settings(), begin("scratch")
    assert families.resolve(replace(asked, lr_scheduler_type="noam"), model, "rouge1").learning_rate == 1.0
    assert families.resolve(asked, model, "rouge1").learning_rate == model.learning_rate


def test_stop_strings_of_a_plain_folder_are_those_of_its_run(begin: Begin, tmp_path: Path) -> None:
    model, stops = begin("scratch"), ["\n", "a'\"b", "ünd"]
    asked = settings(f"generation.stop_strings={json.dumps(stops, ensure_ascii=False)}")
    model.save(tmp_path, families.remembered(asked, model, "truncate"), asked.generation)
    assert runs.trained(str(tmp_path), ())[2].generation.stop_strings == stops


def test_gpt2_shares_its_context_between_source_and_target(begin: Begin) -> None:
    model: PromptWriter = begin("gpt2")
    assert model.lengths.source + max(model.lengths.target, 8) == 49  # the last token is never read
    for taken in ("max_target_length=9", "generation.max_new_tokens=9"):
        with pytest.raises(UserError, match=rf"max_source_length=41 and {taken} are more than the 49 tokens") as caught:
            begin("gpt2", "max_target_length=8", taken, "max_source_length=41")
        assert caught.value.code == Exit.USAGE
        assert f"of 40 or less, or a smaller {taken.partition('=')[0]}" in str(caught.value)
    with pytest.raises(UserError, match=r"max_new_tokens=41 leaves 8 tokens .* which 8 stand; give .*=40 or less"):
        begin("gpt2", "generation.max_new_tokens=41")  # the start, and 7 letters of prompt_end
    longest = writer.write(begin("gpt2", "max_target_length=8"), split(["x" * 90], ["y"]), "truncate", GREEDY, 1)
    assert longest.cut == 1


def test_a_model_from_scratch_writes_what_its_own_search_writes(begin: Begin) -> None:
    model: ScratchWriter = begin("scratch")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(3)
    written = writer.write(model, split(), "truncate", GREEDY, 1)
    rows = [np.array(row) for row in model.parts.vocabularies.encode_sources(SOURCES)]
    search = SearchConfig(beam_size=1, max_new_tokens=8, min_new_tokens=0)
    found = networks.write(model.parts, rows, search, settings("train.mixed_precision=no").train, 1)
    assert written.texts == found.texts
    assert len({text for (text,) in written.texts}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_writer_writes_the_same(begin: Begin, tmp_path: Path, kind: str) -> None:
    model: Writer = begin(kind)
    own = writer.write(model, split(), "truncate", SEARCH, 1).texts
    asked = settings("prompt_end=\\nTL;DR:")
    model.save(tmp_path, families.remembered(asked, model, "lead_tail"), asked.generation)
    stored = json.loads((tmp_path / "config.json").read_text())["task_specific_params"]["finetune"]
    assert stored["recipe"] == "summarization"
    assert stored["data.on_long"] == "lead_tail"
    assert stored["generation.max_new_tokens"] == 8
    assert "generation.num_beams" not in stored  # as they come
    names = ("max_source_length", "max_target_length", "source_prefix")
    if kind == "t5":  # a run that goes on from this one has its prefix
        assert families.begin(settings(f"model={tmp_path}"), split()).prefix == "summarize: "
    again = families.load(settings(*(f"{name}={stored[name]}" for name in names)), tmp_path)
    assert writer.write(again, split(), "truncate", SEARCH, 1).texts == own


def test_long_pairs_are_cut_and_counted_or_refused(begin: Begin) -> None:
    model = begin("bart", "max_source_length=8", "max_target_length=4")
    assert (model.source.room, model.target.room) == (6, 2)  # <s> and </s> stand around both
    coded = writer.encode(model, split(), "truncate")
    assert (coded.long_sources, coded.long_targets) == (5, sum(len(row) > 2 for row in model.code_targets(TARGETS)))
    assert coded.examples.lengths.max(axis=0).tolist() == [8, 4]
    ends = writer.encode(model, split(), "lead_tail").examples.collate(np.array([0])).tensors["source"][0].tolist()
    row = model.code_sources(SOURCES)[0]
    assert ends == [0, *row[:3], *row[-3:], 2]
    last = writer.encode(model, split(), "tail").examples.collate(np.array([0])).tensors["source"][0].tolist()
    assert last == [0, *row[-6:], 2]
    with pytest.raises(UserError, match=r"f\.jsonl:1: the source has \d+ tokens, too many for max_source_length=8"):
        writer.encode(model, split(), "error")
    with pytest.raises(UserError, match=r"f\.jsonl:1: the target .*\n?give data.on_long=truncate, or a longer max_t"):
        writer.encode(begin("bart", "max_target_length=4"), split(), "error")
    with pytest.raises(UserError, match="too many for max_source_length=8"):
        writer.write(model, split(), "error", GREEDY, 1)


def fake(room: int, summary: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[list[str]]]:
    """Return a writer of characters that answers with `summary`, and the list of what it will have been asked."""
    asked: list[list[str]] = []

    def write_rows(pen: Any, rows: Any, config: GenerationConfig, seed: int) -> Written:
        texts = ["".join(map(chr, row)) for row in rows]
        asked.append(texts)
        return Written([[summary(text)] for text in texts], [[0.0]] * len(texts), 0, 0.0, 0, 0)

    monkeypatch.setattr(generation, "write_rows", write_rows)
    coded = types.SimpleNamespace(
        source=Frame([], [], room), pen=None, code_sources=lambda texts: [[ord(c) for c in text] for text in texts]
    )
    return coded, asked


def test_windows_are_summarised_and_what_they_give_is_summarised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = fake(10, lambda text: text[:4], monkeypatch)
    sources = ["aaaa. bbb. cccc. dddd. eeee.", "short", "ffff. ggg. hhhh."]
    written = writer.write(model, split(sources, ["x"] * 3), "window", GREEDY, 1)
    assert asked[0] == ["aaaa. bbb.", "cccc.", "dddd.", "eeee.", "ffff. ggg.", "hhhh."]
    assert asked[1] == ["aaaa cccc", "dddd eeee"]
    assert asked[-1] == ["aaaa dddd", "short", "ffff hhhh"]
    assert written.texts == [["aaaa"], ["shor"], ["ffff"]]
    assert (written.cut, written.left_long) == (2, 0)


@pytest.mark.parametrize("summary", [lambda text: text + "!", lambda text: ""], ids=["longer", "nothing"])
def test_a_source_whose_summaries_are_no_shorter_is_cut(
    monkeypatch: pytest.MonkeyPatch, summary: Callable[[str], str]
) -> None:
    model, asked = fake(10, summary, monkeypatch)
    written = writer.write(model, split(["aaaa. bbbb. cccc.", "short"], ["x"] * 2), "window", GREEDY, 1)
    assert len(asked) == 2
    assert asked[-1] == ["aaaa. bbbb", "short"]
    assert (written.cut, written.left_long) == (1, 1)
    assert writer.write(model, split(["aaaa. bbbb. cccc."], ["x"]), "truncate", GREEDY, 1).left_long == 0


def test_sources_that_are_cut_after_all_are_told() -> None:
    said: list[tuple[str, str]] = []
    run: Any = types.SimpleNamespace(say=lambda *told: said.append(told))
    written = Written([], [], 0, 0.0, cut=3, cache_bytes=0)
    report.say_written(run, written, 9, 10, "window")
    report.say_written(run, replace(written, left_long=1), 9, 10, "window")
    report.say_written(run, replace(written, cut=0), 9, 10, "window")
    report.say_left_long(run, {"validation": written, "test": written})
    report.say_left_long(run, {name: replace(written, left_long=n) for n, name in enumerate(("train", "a", "b"))})
    assert [text for _, text in said] == [
        "3 sources of 9 above 10 tokens: summarised in windows and merged",
        "3 sources of 9 above 10 tokens: summarised in windows and merged; 1 got no shorter: cut at the end",
        "sources whose summaries of windows got no shorter: 1 of a, 2 of b: cut at the end",
    ]


def test_a_language_that_is_forced_stands_before_targets(
    begin: Begin, tmp_path: Path, folders: dict[str, Path]
) -> None:
    model: EncoderDecoderWriter = begin("bart")
    model.network.generation_config.forced_bos_token_id = 77
    model.network.save_pretrained(tmp_path)
    model.tokenizers.source.save_pretrained(tmp_path)
    forced = families.begin(settings(f"model={tmp_path}"), split())
    assert list(forced.target.before) == [2, 77]
    longest = GenerationConfig(max_new_tokens=47, min_new_tokens=47, temperature=0.0)
    writer.write(families.begin(settings(f"model={tmp_path}", "generation.max_new_tokens=47"), split()), split(),
                 "truncate", longest, 1)  # fmt: skip
    with pytest.raises(UserError, match="max_new_tokens=48 is more than the 47"):  # the language is read, too
        families.begin(settings(f"model={tmp_path}", "generation.max_new_tokens=48"), split())


@pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
def test_a_multilingual_model_begins_with_the_language_as_in_its_pretraining(kind: Any, tmp_path: Path) -> None:
    tiny.mbart(tmp_path, kind, 2 if kind is MBart50Tokenizer else None)
    model = families.begin(settings(f"model={tmp_path}", "model_language=de_DE"), split())
    assert model.name == "mBART"
    german = AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("de_DE")
    if kind is MBart50Tokenizer:  # before a text, behind the start
        assert (list(model.source.before), list(model.source.after)) == ([german], [2])
        assert (list(model.target.before), list(model.target.after)) == ([2, german], [2])
    else:  # after a source, and in place of the start
        assert (list(model.source.before), list(model.source.after)) == ([], [2, german])
        assert (list(model.target.before), list(model.target.after)) == ([german], [2])
    writer.write(model, split(), "truncate", GREEDY, 1)
    with pytest.raises(UserError, match=r"model_language=de_DEE: .* no such language; did you mean de_DE"):
        families.begin(settings(f"model={tmp_path}", "model_language=de_DEE"), split())
    with pytest.raises(UserError, match=r"languages: say in which by model_language=CODE\nknown: .*, de_DE") as told:
        families.begin(settings(f"model={tmp_path}"), split())
    assert told.value.code == Exit.USAGE


@pytest.mark.parametrize(
    ("overrides", "code", "mentions"),
    [
        ([], 2, "which model?"),
        (["architecture=seq2seq", "model={bart}"], 2, "give one of the two"),
        (["model={bart}", "network.hidden_size=32"], 2, "network.hidden_size=32 is for random weights: model={bart}"),
        (["architecture=bert2gpt", "encoder={bert}", "vocabulary.kind=word"], 2, "random weights: encoder={bert}"),
        (["model={bert}"], 65, "(BertModel) writes no text"),
        (["model={bart}", "max_source_length=49"], 2, "max_source_length=49 is more than the 48 tokens"),
        (["model={bart}", "max_target_length=49"], 2, "max_target_length=49 is more than the 48 tokens"),
        (["model={bart}", "generation.max_new_tokens=49"], 2, "max_new_tokens=49 is more than the 48"),
        (["model={t5}", "source_prefix=red red red red", "max_source_length=4"], 2, "max_source_length=4 has no room"),
        (["model={bart}", "model_language=de_DE"], 2, "has one language, no codes; leave it out"),
        (["model={gpt2}", "model_language=de_DE"], 2, "model_language=de_DE is not read with model={gpt2}"),
        (["architecture=seq2seq", "model_language=de_DE"], 2, "is not read with architecture=seq2seq; give model=NAME"),
        (["architecture=seq2seq", "encoder={bert}"], 2, "encoder={bert} is not read with architecture=seq2seq"),
        (["model={bart}", "decoder={gpt2}"], 2, "decoder={gpt2} is not read with model={bart}; give architecture="),
        (["architecture=bert2gpt", "encoder={gpt2}", "decoder={gpt2}"], 65, "encoder={gpt2} (GPT2LMHeadModel) reads"),
        (["architecture=bert2gpt", "encoder={bert}", "decoder={bert}"], 65, "decoder={bert} (BertModel) writes no"),
        (["architecture=bert2gpt", "encoder=./nowhere"], 66, "encoder=./nowhere: no such folder"),
        ([*SCRATCH, "network.num_attention_heads=5"], 2, "num_attention_heads=5"),
        ([*SCRATCH, "generation.max_new_tokens=5000", "max_source_length=9"], 0, ""),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(folders: dict[str, Path], overrides: list[str], code: int, mentions: str) -> None:
    asked = settings(*(text.format(**folders) for text in overrides))
    if code == 0:
        families.begin(asked, split())
        return
    with pytest.raises(UserError) as caught:
        families.begin(asked, split())
    assert caught.value.code == code
    assert mentions.format(**folders) in str(caught.value)
