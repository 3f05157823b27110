"""Blocks lose no text, translations stand side by side, sentences meet their translations, languages are balanced."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from finetune.pretraining import examples
from finetune.pretraining.corpus import Documents, Pairs
from finetune.pretraining.examples import Frame
from finetune.pretraining.masking import MaskingConfig
from finetune.pretraining.stores import Rows, Writer, cached
from finetune.pretraining.vocabulary import repeats

ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(295))]
ALL = 1.0  # the exponent at which nothing is repeated


@pytest.fixture(scope="module")
def frame() -> Frame:
    tokenizer = BertTokenizerFast(vocab={entry: number for number, entry in enumerate(ENTRIES)})
    return Frame.of(tokenizer, 16, MaskingConfig())


def made_rows(lengths: list[int], seed: int = 1) -> Rows:
    random = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    return Rows(random.integers(5, 300, offsets[-1]).astype(np.uint16), offsets)


def made_documents(lengths: list[int], seed: int = 1, language: str = "it") -> Documents:
    lines = np.array([[0, 10 * unit + 1] for unit in range(len(lengths))])
    return Documents(language, made_rows(lengths, seed), lines, (f"{language}.txt",), {})


def unmasked(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the tokens of a batch before any was hidden."""
    return tensors["input_ids"].flatten().index_put((tensors["places"],), tensors["gold"]).view_as(tensors["input_ids"])


def test_packing_loses_nothing_and_pads_only_the_last_block(frame: Frame) -> None:
    documents = made_documents([5, 40, 3, 1, 77, 20, 9])
    units = np.array([0, 1, 3, 4, 6])  # two are held out
    part = examples.blocks({"it": (documents, units)}, frame, ALL, 1)
    wanted = np.concatenate([documents.rows[unit] for unit in units])
    found = []
    for block in range(len(part)):
        tokens = unmasked(part.collate(np.array([block]), None).tensors)[0].numpy()
        assert tokens[0] == frame.cls
        assert tokens[-1] == frame.sep
        found.append(tokens[1:-1])
    assert np.array_equal(np.concatenate(found), wanted)
    assert part.lengths[:-1].tolist() == [16] * (len(part) - 1)
    batch = part.collate(np.arange(len(part) - 1), None)
    assert "attention_mask" not in batch.tensors
    assert batch.items == len(batch.tensors["places"])


def test_a_block_knows_the_line_that_it_begins_with(frame: Frame) -> None:
    part = examples.blocks({"it": (made_documents([14, 7, 30]), np.arange(3))}, frame, ALL, 1)
    assert [part.name(block) for block in range(4)] == ["it.txt:1", "it.txt:11", "it.txt:21", "it.txt:21"]


def test_the_largest_language_comes_once_and_smaller_ones_as_the_exponent_says(frame: Frame) -> None:
    documents = {
        code: (made_documents([14] * blocks, language=code), np.arange(blocks))
        for code, blocks in (("en", 400), ("it", 50))
    }
    part = examples.blocks(documents, frame, 0.7, 1)
    counts = {code: int((part.languages == code).sum()) for code in ("en", "it")}
    assert counts["en"] == 400
    assert counts["it"] == pytest.approx(50 * 8**0.3, abs=1)
    assert counts["it"] / counts["en"] == pytest.approx((50 / 400) ** 0.7, abs=0.01)
    firsts = {int(unmasked(part.collate(np.array([row]), None).tensors)[0, 1]) for row in range(400, len(part))}
    assert firsts == {int(documents["it"][0].rows[unit][0]) for unit in range(50)}
    assert repeats({"en": 400, "it": 50}, 1.0) == {"en": 1.0, "it": 1.0}


@pytest.fixture
def pairs() -> Pairs:
    """Return 30 source sentences; the Italian has all of them, the German a third, one of them twice."""
    source_of = {"it": np.arange(30), "de": np.array([0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 27])}
    target = {"it": made_rows([6] * 30, 2), "de": made_rows([20, *([4] * 10)], 3)}
    lines = {code: np.stack([np.zeros_like(of), np.arange(len(of)) + 1], axis=1) for code, of in source_of.items()}
    return Pairs(made_rows([4] * 30), None, target, source_of, lines, {"it": ("it.jsonl",), "de": ("de.jsonl",)}, {})


def test_translations_stand_side_by_side_with_positions_that_begin_anew(frame: Frame, pairs: Pairs) -> None:
    part = examples.translations(pairs, {"it": np.arange(30)}, frame, ALL, 1)
    sides, orders = set(), set()
    for _ in range(8):
        batch = part.collate(np.array([4]), None)
        tokens = unmasked(batch.tensors)[0]
        stops = (tokens == frame.sep).nonzero().squeeze(1).tolist()
        one, two = tokens[1 : stops[0]].tolist(), tokens[stops[0] + 1 : stops[1]].tolist()
        assert {tuple(one), tuple(two)} == {tuple(pairs.source[4].tolist()), tuple(pairs.target["it"][4].tolist())}
        orders.add(len(one))
        length, second = len(tokens), stops[0] + 1
        assert batch.tensors["position_ids"][0].tolist() == [*range(second), *range(1, length - second + 1)]
        assert batch.tensors["token_type_ids"][0].tolist() == [0] * second + [1] * (length - second)
        sides |= {place >= second for place in batch.tensors["places"].tolist()}
    assert orders == {4, 6}  # either side comes first
    assert sides == {True, False}  # tokens of both are hidden
    assert part.name(4) == "it.jsonl:5"


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_side(frame: Frame, pairs: Pairs) -> None:
    part = examples.translations(pairs, {"de": np.arange(11)}, frame, ALL, 1)
    tokens = unmasked(part.collate(np.array([0]), None).tensors)[0]
    assert len(tokens) == 16 == part.lengths[0]
    middle = int((tokens == frame.sep).nonzero()[0])
    found = {tuple(tokens[1:middle].tolist()), tuple(tokens[middle + 1 : -1].tolist())}
    assert found == {tuple(pairs.source[0].tolist()), tuple(pairs.target["de"][0][:9].tolist())}


def test_a_sentence_is_read_once_with_all_its_translations(frame: Frame, pairs: Pairs) -> None:
    def vectors(numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers.astype(np.float32))[:, None].expand(-1, 2)

    part = examples.sentences(pairs, {"it": np.arange(30), "de": np.arange(11)}, frame, ALL, 1, vectors)
    assert len(part) == 30
    batch = part.collate(np.arange(30), None)
    assert batch.items == 41
    chunks = [name for name in batch.tensors if name.startswith("input_ids.")]
    rows = sum(len(batch.tensors[name]) for name in chunks)
    assert rows == 30 + 41
    for number in range(len(chunks)):
        ids, mask = batch.tensors[f"input_ids.{number}"], batch.tensors[f"attention_mask.{number}"].bool()
        for row, kept, target, weight in zip(
            ids, mask, batch.tensors[f"targets.{number}"], batch.tensors[f"weights.{number}"], strict=True
        ):
            inner, sentence = row[kept][1:-1].numpy(), int(target[0])
            translations = [
                pairs.target[code][pair][:14]
                for code in ("it", "de")
                for pair in np.flatnonzero(pairs.source_of[code] == sentence).tolist()
            ]
            if float(weight) == len(translations) and np.array_equal(inner, pairs.source[sentence]):
                continue
            assert float(weight) == 1.0
            assert any(np.array_equal(inner, one) for one in translations)
    assert int(part.lengths.sum()) == 30 * 6 + 30 * 8 + 16 + 10 * 6


def test_repeated_pairs_become_groups_of_their_own(frame: Frame, pairs: Pairs) -> None:
    part = examples.sentences(
        pairs, {"it": np.arange(30), "de": np.arange(11)}, frame, 0.0, 1, lambda numbers: torch.zeros(len(numbers), 2)
    )
    batch = part.collate(np.arange(len(part)), None)
    assert batch.items == 60  # at exponent 0 both languages weigh alike
    assert len(part) > 30


def test_kinds_are_joined_and_each_example_is_collated_by_its_own(frame: Frame, pairs: Pairs) -> None:
    parts = [
        examples.blocks({"it": (made_documents([40]), np.arange(1))}, frame, ALL, 1),
        examples.translations(pairs, {"it": np.arange(30)}, frame, ALL, 1),
    ]
    joined = examples.join(parts)
    assert joined.groups is not None
    assert joined.groups.tolist() == [0] * len(parts[0]) + [1] * 30
    assert "position_ids" not in joined.collate(np.array([0, 1])).tensors
    batch = joined.collate(np.array([len(parts[0])]))
    assert "position_ids" in batch.tensors
    assert batch.examples.tolist() == [len(parts[0])]
    assert joined.name(len(parts[0]) + 2) == "it.jsonl:3"


def test_stored_rows_come_back_and_a_damaged_entry_is_written_again(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> dict[str, int]:
        calls.append(1)
        with Writer(folder, "text", 70_000) as writer:
            writer.add([1, 2, 69_999])
            writer.add([])
        return {"rows": 2}

    key = {"test": str(tmp_path)}
    folder, figures = cached(key, write)
    assert figures == {"rows": 2}
    found = Rows.read(folder, "text")
    assert [found[row].tolist() for row in range(len(found))] == [[1, 2, 69_999], []]
    assert cached(key, write)[1] == {"rows": 2}
    assert len(calls) == 1
    with (folder / "text.tokens").open("r+b") as stream:
        stream.truncate(4)
    cached(key, write)
    assert len(calls) == 2


def test_half_of_the_second_pieces_come_from_another_text(frame: Frame) -> None:
    masking = MaskingConfig(next_sentence=True)
    documents = made_documents([13 * 50])
    part = examples.blocks({"it": (documents, np.arange(1))}, replace(frame, masking=masking), ALL, 1)
    torch.manual_seed(1)
    going_on = 0
    for _ in range(8):
        batch = part.collate(np.arange(50), None)
        assert "position_ids" not in batch.tensors
        assert batch.tensors["next_weight"].item() == pytest.approx(0.15 * 13)
        for block, (row, other) in enumerate(zip(unmasked(batch.tensors), batch.tensors["next"].tolist(), strict=True)):
            stops = (row == frame.sep).nonzero().squeeze(1).tolist()
            text = [*row[1 : stops[0]].tolist(), *row[stops[0] + 1 : stops[-1]].tolist()]
            same = text == documents.rows.tokens[13 * block : 13 * (block + 1)].tolist()
            assert batch.tensors["token_type_ids"][block].tolist() == [0] * (stops[0] + 1) + [1] * (15 - stops[0])
            assert same or other == 1
            going_on += other == 0
    assert abs(going_on - 200) < 4 * 10  # four standard deviations of 400 tosses


def test_a_text_of_one_token_has_no_second_piece_that_another_could_be(frame: Frame) -> None:
    one, other = np.array([7]), np.array([8, 9])
    torch.manual_seed(1)
    batch = examples.next_sentence_batch([one] * 40, [other] * 40, frame, np.arange(40), None)
    assert batch.tensors["next"].tolist() == [0] * 40
