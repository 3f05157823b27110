"""Writing: as transformers does it, alone as in a batch, by the seed alone, within its rules."""

import contextlib
import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.logits_process import MinPLogitsWarper, TypicalLogitsWarper

from finetune import config as configuration
from finetune import cpu, generation, hardware
from finetune.causal.model import Start, load_trained
from finetune.errors import Exit, UserError
from finetune.generation import Generated, GenerationConfig, Pen, keep_at_least, keep_typical, write

PROMPTS = [[0, 40, 41, 42], [0, 7], [0], [0, 90, 12, 13, 14, 15, 16], [0, 200, 201]]


@pytest.fixture(scope="module")
def network(tiny_gpt2: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def start(tiny_gpt2: Path) -> Start:
    return load_trained(tiny_gpt2)


@pytest.fixture(scope="module")
def tokenizer(start: Start) -> PreTrainedTokenizerBase:
    return start.tokenizer


def run(
    network: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, seed: int = 1
) -> list[list[Generated]]:
    return generation.generate(network, prompts, config, 0, seed, decode=lambda tokens: str(list(tokens)))


def theirs(network: PreTrainedModel, prompt: list[int], **settings: Any) -> list[list[int]]:
    found = network.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        pad_token_id=0, eos_token_id=0, **settings,
    )  # fmt: skip
    rows = [row[len(prompt) :].tolist() for row in found]
    return [row[: row.index(0)] if 0 in row else row for row in rows]


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}])
def test_greedy_writes_what_transformers_writes(network: PreTrainedModel, settings: dict[str, Any]) -> None:
    found = run(network, PROMPTS, GenerationConfig(max_new_tokens=12, temperature=0, **settings))
    expected = [theirs(network, prompt, max_new_tokens=12, **settings) for prompt in PROMPTS]
    assert [[list(one.tokens) for one in several] for several in found] == expected


def test_a_model_with_rotary_positions_writes_what_transformers_writes(tiny_llama: PreTrainedModel) -> None:
    found = tokens_of(run(tiny_llama, PROMPTS, GenerationConfig(max_new_tokens=12, temperature=0)))
    assert [list(map(list, several)) for several in found] == [
        theirs(tiny_llama, prompt, max_new_tokens=12) for prompt in PROMPTS
    ]


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (4, 0.0), (3, 2.0)])
def test_a_search_writes_what_transformers_writes(network: PreTrainedModel, beams: int, penalty: float) -> None:
    often = end_more_often(network)
    config = GenerationConfig(
        max_new_tokens=10, num_beams=beams, num_return_sequences=beams, length_penalty=penalty, no_repeat_ngram_size=3
    )
    settings = {
        "max_new_tokens": 10, "num_beams": beams, "num_return_sequences": beams, "length_penalty": penalty,
        "no_repeat_ngram_size": 3, "early_stopping": False,
    }  # fmt: skip
    for model in (network, often):
        found = run(model, PROMPTS, config)
        expected = [theirs(model, prompt, **settings) for prompt in PROMPTS]
        assert [[list(one.tokens) for one in several] for several in found] == expected
    lengths = {len(one.tokens) for several in run(often, PROMPTS, config) for one in several}
    assert len(lengths) > 1, "no text ended before the longest length"


def end_more_often(network: PreTrainedModel) -> PreTrainedModel:
    """Return the model with an end-of-text token that is likely, by a bias of the output layer."""
    often = AutoModelForCausalLM.from_pretrained(network.name_or_path, dtype=torch.float32).eval()
    bias = torch.zeros(257)
    bias[0] = 2.5
    often.lm_head.bias = torch.nn.Parameter(bias)
    return often


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_new_tokens=12, temperature=0),
        GenerationConfig(max_new_tokens=12, temperature=0, repetition_penalty=1.5, no_repeat_ngram_size=2),
        GenerationConfig(max_new_tokens=12, num_beams=3, num_return_sequences=2),
        GenerationConfig(max_new_tokens=12, temperature=0.8, top_k=40, num_return_sequences=3),
        GenerationConfig(max_new_tokens=12, top_p=0.9, min_p=0.01, typical_p=0.95, repetition_penalty=1.2),
    ],
    ids=["greedy", "rules", "beam", "top-k", "all"],
)
def test_a_prompt_gives_the_same_text_alone_and_in_any_batch(
    network: PreTrainedModel, config: GenerationConfig
) -> None:
    for model in (network, end_more_often(network)):
        together = run(model, PROMPTS, config)
        alone = [run(model, [prompt], config)[0] for prompt in PROMPTS]
        backwards = run(model, PROMPTS[::-1], config)[::-1]
        for other in (alone, backwards):
            assert tokens_of(together) == tokens_of(other)
            scores = [[one.score for one in several] for several in other]
            assert [[one.score for one in several] for several in together] == [
                pytest.approx(row, rel=1e-4) for row in scores
            ]


def tokens_of(found: list[list[Generated]]) -> list[list[tuple[int, ...]]]:
    return [[one.tokens for one in several] for several in found]


def test_the_gap_beside_a_short_prompt_forbids_no_token(network: PreTrainedModel) -> None:
    last = copy.deepcopy(network)
    last.lm_head.weight = torch.nn.Parameter(torch.zeros_like(last.lm_head.weight))  # all alike but the last one
    last.lm_head.bias = torch.nn.Parameter(torch.eye(257)[256] * 9)
    config = GenerationConfig(max_new_tokens=2, temperature=0, no_repeat_ngram_size=1)
    alone, together = run(last, [[0]], config), run(last, [[0], [0, 7, 8]], config)
    assert alone[0][0].tokens[0] == 256
    assert tokens_of(together)[0] == tokens_of(alone)[0]


@pytest.mark.parametrize("beams", [1, 2])
def test_the_token_before_every_prompt_is_no_repetition_where_it_ends_a_text(
    network: PreTrainedModel, beams: int
) -> None:
    ending = copy.deepcopy(network)
    ending.lm_head.weight = torch.nn.Parameter(torch.zeros_like(ending.lm_head.weight))
    ending.lm_head.bias = torch.nn.Parameter(torch.tensor([5.0, 4.0, *[0.0] * 255]))  # to end, then a token of all
    for rule in ({"repetition_penalty": 9.0}, {"no_repeat_ngram_size": 1}):
        config = GenerationConfig(max_new_tokens=3, temperature=0, num_beams=beams, **rule)
        assert tokens_of(run(ending, [[0, 7]], config)) == [[()]], rule


@pytest.mark.parametrize("temperature", [1e-40, 1e-300])
def test_the_coldest_samples_are_greedy(network: PreTrainedModel, temperature: float) -> None:
    cold, greedy = (GenerationConfig(max_new_tokens=8, temperature=one) for one in (temperature, 0))
    assert tokens_of(run(network, PROMPTS, cold)) == tokens_of(run(network, PROMPTS, greedy))


def test_samples_are_a_function_of_seed_prompt_and_number(network: PreTrainedModel) -> None:
    config = GenerationConfig(max_new_tokens=12, num_return_sequences=4)
    four = tokens_of(run(network, PROMPTS, config))
    two = tokens_of(run(network, PROMPTS, dataclasses.replace(config, num_return_sequences=2)))
    assert [several[:2] for several in four] == two
    assert len({tokens for several in four for tokens in several}) == 4 * len(PROMPTS)
    assert tokens_of(run(network, PROMPTS, config, seed=2)) != four
    torch.manual_seed(99)
    assert tokens_of(run(network, PROMPTS, config)) == four


def test_samples_come_as_often_as_they_are_likely(network: PreTrainedModel) -> None:
    config = GenerationConfig(max_new_tokens=1, num_return_sequences=4_000, temperature=0.7)
    found = run(network, [[0, 40]], config)[0]
    with torch.no_grad():
        expected = (network(torch.tensor([[0, 40]])).logits[0, -1] / 0.7).softmax(0)
    counts = torch.bincount(torch.tensor([(one.tokens or (0,))[0] for one in found]), minlength=257) / len(found)
    assert float((counts - expected).abs().max()) < 0.03
    assert float((counts - expected).abs().sum()) < 0.25


def test_a_row_that_has_ended_leaves_the_batch(network: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = generation.CausalDecoder.step

    def counted(self: generation.CausalDecoder, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(generation.CausalDecoder, "step", counted)
    found = run(end_more_often(network), PROMPTS, GenerationConfig(max_new_tokens=20, num_return_sequences=4))
    lengths = [len(one.tokens) for several in found for one in several]
    assert min(lengths) < max(lengths)
    assert sizes == [sum(length >= time for length in lengths) for time in range(1, len(sizes) + 1)]
    assert sum(sizes) < 19 * len(lengths)


def test_shortest_length_and_ngrams_are_kept_to(network: PreTrainedModel) -> None:
    often = end_more_often(network)
    config = GenerationConfig(max_new_tokens=15, min_new_tokens=9, no_repeat_ngram_size=2, num_return_sequences=5)
    for prompt, several in zip(PROMPTS, run(often, PROMPTS, config), strict=True):
        for one in several:
            assert 9 <= len(one.tokens) <= 15
            text = [*prompt, *one.tokens]
            pairs = list(itertools.pairwise(text))
            assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_text_ends_before_a_stop_string(start: Start, beams: int) -> None:
    config = GenerationConfig(max_new_tokens=20, temperature=0, num_beams=beams)
    (whole,) = write(start, ["a b"], config, 1).texts[0]
    stop = whole[4:6]
    written = write(start, ["a b"], dataclasses.replace(config, stop_strings=["\0\0\0", stop]), 1)
    (short,) = written.texts[0]
    assert stop not in short
    if beams == 1:
        assert short == whole[: whole.index(stop)]
        assert written.tokens < 20


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stop_string_in_the_shortest_text_ends_nothing(start: Start, beams: int) -> None:
    # No token comes twice, so that a letter stands where it stands alone.
    config = GenerationConfig(max_new_tokens=20, temperature=0, num_beams=beams, no_repeat_ngram_size=1)
    (whole,) = write(start, ["a b"], config, 1).texts[0]
    assert whole.startswith("XR")
    assert whole.index("!") > 8
    asked = dataclasses.replace(config, min_new_tokens=6, stop_strings=["R", "!"])
    pieces: list[str] = []
    (short,) = write(start, ["a b"], asked, 1, pieces.append if beams == 1 else None).texts[0]
    assert short.startswith("XR")
    assert "!" not in short
    if beams == 1:
        assert short == "".join(pieces) == whole[: whole.index("!")]
    for shortest in (2, 20):  # R is the second token
        asked = dataclasses.replace(config, min_new_tokens=shortest, stop_strings=["R"])
        assert write(start, ["a b"], asked, 1).texts == [[whole]]
    asked = dataclasses.replace(config, min_new_tokens=1, stop_strings=["R"])
    assert "R" not in write(start, ["a b"], asked, 1).texts[0][0]


def test_a_stream_is_the_text_in_pieces(start: Start) -> None:
    for stops in ([], ["e", "\ufffd\ufffd"]):
        config = GenerationConfig(max_new_tokens=30, stop_strings=stops)
        pieces: list[str] = []
        (text,) = write(start, ["hello"], config, 3, pieces.append).texts[0]
        assert "".join(pieces) == text
    assert len(pieces) >= 1


def test_a_stream_holds_back_half_a_character(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces: list[str] = []
    pen = Pen(torch.nn.Identity(), lambda rows: None, 0, lambda tokens: generation.decoded(tokenizer, tokens))  # type: ignore[arg-type, return-value]
    teller = generation._Teller(pen, GenerationConfig(), pieces.append)
    for token in tokenizer("aé🙂")["input_ids"]:
        teller(torch.tensor([token]))
    teller.finish()
    assert pieces == ["a", "é", "🙂"]


def test_an_empty_prompt_begins_a_text_and_a_long_one_loses_its_beginning(
    start: Start, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = GenerationConfig(max_new_tokens=9, temperature=0)
    first = write(start, [""], config, 1)
    assert first.cut == 0
    assert first.texts[0][0] == tokenizer.decode(theirs(network, [0], max_new_tokens=9)[0])
    long = "abcdefghij" * 6
    rows, cut = generation.encode(start, [long, long[:39], long[:40]], config, completes=False)
    assert cut == 2
    assert [len(row) for row in rows] == [40, 40, 40]  # 40 read, 8 of 9 read again: 48
    assert tokenizer.decode(rows[0]) == long[-40:]  # as the middle of a document in training
    rows, cut = generation.encode(start, [long, long[:39], long[:40]], config, completes=True)
    assert cut == 2
    assert [(len(row), row[0], row.count(0)) for row in rows] == [(40, 0, 1)] * 3  # as a cut prompt in training
    assert tokenizer.decode(rows[0][1:]) == long[-39:]
    assert write(start, [long], config, 1).cut == 1


def test_more_new_tokens_than_the_model_reads_are_refused(start: Start) -> None:
    assert len(write(start, [""], GenerationConfig(max_new_tokens=48, min_new_tokens=48), 1).texts) == 1
    with pytest.raises(UserError, match="max_new_tokens=49 is more than the 48 tokens") as caught:
        write(start, [""], GenerationConfig(max_new_tokens=49), 1)
    assert caught.value.code == Exit.USAGE


def test_several_batches_give_texts_in_order(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["a", "hello there", "", "xyz", "hello"]
    config = GenerationConfig(max_new_tokens=6, num_return_sequences=2)
    once = write(start, prompts, config, 1)
    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", {"cpu": 30, "cuda": 30})
    assert write(start, prompts, config, 1).texts == once.texts
    assert once.cache_bytes > 0
    assert once.tokens > 0


def test_the_samples_of_a_prompt_are_no_more_at_once_than_fit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = generation.CausalDecoder.step

    def counted(self: generation.CausalDecoder, tokens: torch.Tensor) -> torch.Tensor:
        rows.append(len(tokens))
        return step(self, tokens)

    config = GenerationConfig(max_new_tokens=6, num_return_sequences=11)
    once = write(start, ["ab", "", "c"], config, 1)
    monkeypatch.setattr(generation.CausalDecoder, "step", counted)
    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", {"cpu": 40, "cuda": 40})
    several = write(start, ["ab", "", "c"], config, 1)
    assert several.texts == once.texts
    assert len({text for texts in once.texts for text in texts}) == 33
    assert max(rows) <= 40 // 7  # an empty prompt has one token
    assert several.tokens == once.tokens


def test_nothing_is_dropped_while_a_model_in_training_writes(start: Start) -> None:
    network = start.model.network
    assert network.config.resid_pdrop > 0
    config = GenerationConfig(max_new_tokens=12, temperature=0)
    expected = write(start, ["ab", "c"], config, 1)
    network.train()
    try:
        found = write(start, ["ab", "c"], config, 1)
        assert network.training
    finally:
        network.eval()
    assert (found.texts, found.scores) == (expected.texts, expected.scores)


def test_keys_and_values_with_room_are_those_that_are_put_together() -> None:
    plain, roomy = DynamicLayer(), generation._RoomyLayer()
    draw = torch.Generator().manual_seed(0)
    for length, rows in ((5, [0, 1, 2]), (1, [2, 0, 1]), (generation.ROOM, [1, 1]), (3, [0]), (1, [0]), (1, [0])):
        states = torch.randn(2, plain.keys.shape[0] if plain.is_initialized else 3, 2, length, 4, generator=draw)
        expected, found = (layer.update(states[0], states[1]) for layer in (plain, roomy))
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
        assert plain.get_seq_length() == roomy.get_seq_length()
        if len(rows) != len(found[0]) or rows != sorted(rows):
            for layer in (plain, roomy):
                layer.batch_select_indices(torch.tensor(rows))
    assert roomy.room is not None
    assert found[0].data_ptr() == roomy.room[0].data_ptr()  # a step writes its own alone


def test_texts_with_numbers_of_bfloat16_are_nearly_as_likely(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[torch.dtype] = []

    def packed(network: torch.nn.Module, dtype: torch.dtype) -> Any:
        kinds.append(dtype)
        return contextlib.nullcontext()

    monkeypatch.setattr(cpu, "packed", packed)
    monkeypatch.setattr(generation, "WORTH_PACKING", 1)
    exact = write(start, ["ab", "c"], GenerationConfig(max_new_tokens=40, temperature=0), 1)
    half = GenerationConfig(max_new_tokens=40, temperature=0, dtype="bfloat16")
    rounded = write(start, ["ab", "c"], half, 1)  # by a CPU that has no such products
    assert rounded.scores != exact.scores
    assert rounded.scores[0][0] == pytest.approx(exact.scores[0][0], rel=0.05)
    assert kinds == [torch.float32]
    write(start, ["ab"], GenerationConfig(max_new_tokens=40, temperature=0), 1)  # a single row gains nothing
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: True)
    write(start, ["ab"], half, 1)
    assert kinds == [torch.float32, torch.bfloat16]


def test_weights_that_are_not_finite_are_an_error(network: PreTrainedModel) -> None:
    broken = end_more_often(network)
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(UserError, match="not finite") as caught:
        run(broken, [[0]], GenerationConfig())
    assert caught.value.code == Exit.DIVERGED


def test_min_p_and_typical_keep_what_those_of_transformers_keep() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)) * 2
    for share in (0.02, 0.3, 1.0):
        expected = MinPLogitsWarper(share)(torch.empty(0), logits)
        assert torch.equal(keep_at_least(logits, share).isinf(), expected.isinf())
    for mass in (0.2, 0.9):
        expected = TypicalLogitsWarper(mass)(torch.empty(0), logits.clone())
        assert torch.equal(keep_typical(logits, mass).isinf(), expected.isinf())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("temperature=-1", "temperature"),
        ("top_p=0", "top_p"),
        ("typical_p=0", "typical_p"),
        ("max_new_tokens=0", "max_new_tokens"),
        ("min_new_tokens=51", "more than max_new_tokens=50"),
        ("stop_strings=['']", "an empty text"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        configuration.load(GenerationConfig, [override])
    assert caught.value.code == Exit.USAGE


def test_greedy_and_a_search_do_not_write_more_texts_than_they_have() -> None:
    with pytest.raises(UserError, match="temperature=0 writes one text"):
        configuration.load(GenerationConfig, ["temperature=0", "num_return_sequences=2"])
    with pytest.raises(UserError, match="no more than 2"):
        configuration.load(GenerationConfig, ["num_beams=2", "num_return_sequences=3"])


# Encoder-decoders

SOURCES = [[5, 40, 41, 2], [7, 2], [9, 90, 12, 13, 14, 15, 16, 2], [30, 31, 2]]
END = 2
BEAMS: dict[str, Any] = {
    "num_beams": 3, "num_return_sequences": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 2
}  # fmt: skip


@pytest.fixture(scope="module", params=["bart", "t5", "bert2gpt"])
def reader(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Return a random encoder-decoder (32 dim, 1 layer, 100 entries) whose texts end after some tokens."""
    ends: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END, "decoder_start_token_id": 1}
    made: PreTrainedModel
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if request.param == "bart":
            made = BartForConditionalGeneration(BartConfig(
                vocab_size=100, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=48,
                init_std=0.3, forced_eos_token_id=None, **ends,
            ))  # fmt: skip
        elif request.param == "t5":
            made = T5ForConditionalGeneration(T5Config(
                vocab_size=100, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, initializer_factor=3.0, **ends
            ))  # fmt: skip
        else:
            one = BertConfig(
                vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                max_position_embeddings=48, initializer_range=0.3, pad_token_id=0,
            )  # fmt: skip
            other = GPT2Config(
                vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=48, initializer_range=0.3,
                add_cross_attention=True, is_decoder=True, bos_token_id=1, eos_token_id=END,
            )  # fmt: skip
            shape = EncoderDecoderConfig.from_encoder_decoder_configs(one, other, **ends)
            made = EncoderDecoderModel(config=shape)
            for name, value in ends.items():
                setattr(made.generation_config, name, value)
    return made.eval()


def of_transformers(network: PreTrainedModel, source: list[int], **settings: Any) -> list[list[int]]:
    found = network.generate(
        torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long), do_sample=False,
        max_new_tokens=9, **settings,
    )  # fmt: skip
    rows = [row[1:].tolist() for row in found]
    return [row[: row.index(END)] if END in row else row for row in rows]


def answers(network: PreTrainedModel, sources: Sequence[Sequence[int]], **settings: Any) -> list[list[Generated]]:
    config = GenerationConfig(max_new_tokens=9, **settings)
    return generation.generate(network, sources, config, END, 1, decode=lambda tokens: str(list(tokens)))


def test_an_encoder_decoder_writes_what_transformers_writes(reader: PreTrainedModel) -> None:
    found = tokens_of(answers(reader, SOURCES, temperature=0))
    assert [list(map(list, several)) for several in found] == [of_transformers(reader, one) for one in SOURCES]
    assert len(set(itertools.chain(*found))) > 1, "the source says nothing"
    found = tokens_of(answers(reader, SOURCES, **BEAMS))
    expected = [of_transformers(reader, one, early_stopping=False, **BEAMS) for one in SOURCES]
    assert [list(map(list, several)) for several in found] == expected


@pytest.mark.parametrize("settings", [{"temperature": 0}, BEAMS, {"num_return_sequences": 3}])
def test_a_source_gives_the_same_text_alone_and_in_any_batch(reader: PreTrainedModel, settings: dict[str, Any]) -> None:
    together = tokens_of(answers(reader, SOURCES, **settings))
    assert together == [tokens_of(answers(reader, [one], **settings))[0] for one in SOURCES]
    assert together == tokens_of(answers(reader, SOURCES[::-1], **settings))[::-1]


def test_rows_of_an_encoder_decoder_leave_the_batch_when_they_end(reader: PreTrainedModel) -> None:
    hot = {"num_return_sequences": 20, "temperature": 20.0}
    together = tokens_of(answers(reader, SOURCES, **hot))
    assert len({len(tokens) for several in together for tokens in several}) > 2
    assert together == [tokens_of(answers(reader, [one], **hot))[0] for one in SOURCES]


def test_a_text_begins_with_the_language_that_is_forced(reader: PreTrainedModel) -> None:
    assert generation.first_tokens(reader) == [1]
    plain = tokens_of(answers(reader, SOURCES, temperature=0))
    reader.generation_config.forced_bos_token_id = 50
    try:
        assert generation.first_tokens(reader) == [1, 50]
        assert tokens_of(answers(reader, SOURCES, temperature=0)) != plain
    finally:
        reader.generation_config.forced_bos_token_id = None
    start, reader.generation_config.decoder_start_token_id = reader.generation_config.decoder_start_token_id, None
    of_config, reader.config.decoder_start_token_id = reader.config.decoder_start_token_id, None
    try:
        with pytest.raises(UserError, match="set decoder_start_token_id in its config"):
            answers(reader, SOURCES)
    finally:
        reader.generation_config.decoder_start_token_id, reader.config.decoder_start_token_id = start, of_config
