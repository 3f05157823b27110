"""Texts to token numbers: nothing lost in silence, windows that cover a text, and files that belong together."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data import encode as module
from finetune.data.columns import DataConfig, Split, from_lines, read_split
from finetune.data.encode import encode
from finetune.errors import Exit, UserError

LONG = "my parcel was late and the courier is not here today please help the parcel was late again"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return found


def split_of(*texts: str) -> Split:
    return from_lines("train", texts)


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[..., Split]:
    def make(*rows: tuple[str, str]) -> Split:
        path = tmp_path / "pairs.csv"
        path.write_text("text,second\n" + "".join(f"{a},{b}\n" for a, b in rows))
        return read_split("train", str(path), DataConfig(text_pair_column="second"), labelled=False)

    return make


def test_each_text_is_what_the_tokenizer_makes_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["my parcel", LONG, "card!", "x"]
    encoded = encode(split_of(*texts), tokenizer, 64, "truncate")
    for index, text in enumerate(texts):
        assert encoded.example(index).tolist() == tokenizer(text)["input_ids"]
    assert encoded.lengths.tolist() == encoded.full_lengths.tolist() == [len(tokenizer(t)["input_ids"]) for t in texts]
    assert (encoded.row.tolist(), encoded.rows, encoded.long) == ([0, 1, 2, 3], 4, 0)
    assert encoded.types is None
    assert encoded.tokens.dtype == np.int32


def test_rows_beyond_the_first_portion_keep_their_place(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"card {number} parcel" * (number % 4 + 1) for number in range(11)]
    whole = encode(split_of(*texts), tokenizer, 8, "window")
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 3)
    parts = encode(split_of(*texts), tokenizer, 8, "window")
    assert np.array_equal(whole.tokens, parts.tokens)
    assert np.array_equal(whole.row, parts.row)


def test_a_long_text_is_cut_and_counted_with_its_full_length(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(split_of("my parcel", LONG), tokenizer, 8, "truncate")
    whole = tokenizer(LONG)["input_ids"]
    assert encoded.example(1).tolist() == [*whole[:7], tokenizer.sep_token_id]
    assert encoded.long == 1
    assert encoded.full_lengths.tolist() == [4, len(whole)]


def test_a_text_of_exactly_the_limit_is_not_long(tokenizer: PreTrainedTokenizerBase) -> None:
    length = len(tokenizer(LONG)["input_ids"])
    assert encode(split_of(LONG), tokenizer, length, "error").long == 0
    assert encode(split_of(LONG), tokenizer, length - 1, "truncate").long == 1


def test_a_long_text_is_refused_with_its_place_where_that_was_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    length = len(tokenizer(LONG)["input_ids"])
    with pytest.raises(UserError, match=f"train:2 has {length} tokens, more than max_length=8") as caught:
        encode(split_of("card", LONG), tokenizer, 8, "error")
    assert caught.value.code == Exit.BAD_DATA


def test_windows_overlap_by_a_quarter_and_cover_every_token(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(split_of("card", LONG, "bank"), tokenizer, 8, "window")
    pieces = [encoded.example(index).tolist() for index in np.flatnonzero(encoded.row == 1).tolist()]
    whole = tokenizer(LONG)["input_ids"][1:-1]
    inside = [piece[1:-1] for piece in pieces]
    assert all(piece[0] == tokenizer.cls_token_id and piece[-1] == tokenizer.sep_token_id for piece in pieces)
    assert all(len(piece) <= 8 for piece in pieces)
    joined = inside[0]
    for piece in inside[1:]:
        assert joined[-2:] == piece[:2]
        joined = joined + piece[2:]
    assert joined == whole
    assert encoded.row.tolist() == [0, *[1] * len(pieces), 2]
    assert (encoded.rows, encoded.long) == (3, 1)


def test_pairs_carry_the_type_of_each_token(tokenizer: PreTrainedTokenizerBase, pairs: Callable[..., Split]) -> None:
    encoded = encode(pairs(("my card", "late parcel"), ("bank", "login")), tokenizer, 64, "truncate")
    wanted = tokenizer("my card", "late parcel")
    assert encoded.example(0).tolist() == wanted["input_ids"]
    assert encoded.example_types(0).tolist() == wanted["token_type_ids"]
    assert encoded.example_types(1).tolist() == [0, 0, 0, 1, 1]


def test_a_long_pair_is_cut_at_its_longer_text_or_split_in_its_second(
    tokenizer: PreTrainedTokenizerBase, pairs: Callable[..., Split]
) -> None:
    cut = encode(pairs(("my card", LONG)), tokenizer, 12, "truncate")
    assert cut.lengths.tolist() == [12]
    assert cut.example(0).tolist()[:4] == tokenizer("my card")["input_ids"]
    windows = encode(pairs(("my card", LONG)), tokenizer, 12, "window")
    assert len(windows.lengths) > 2
    for index in range(len(windows.lengths)):
        assert windows.example(index).tolist()[:4] == tokenizer("my card")["input_ids"]
        assert windows.example_types(index).tolist()[:5] == [0, 0, 0, 0, 1]


def test_a_pair_whose_first_text_leaves_no_room_for_windows_is_refused_with_its_place(
    tokenizer: PreTrainedTokenizerBase, pairs: Callable[..., Split]
) -> None:
    with pytest.raises(UserError, match=r"pairs\.csv:3: the first text of the pair has .* no room") as caught:
        encode(pairs(("card", "bank"), (LONG, LONG)), tokenizer, 12, "window")
    assert caught.value.code == Exit.BAD_DATA
    first = " ".join(["card"] * 5)  # with [CLS] and two [SEP] 8 of 12 tokens: windows of 4 that overlap by 3
    windows = encode(pairs((first, LONG)), tokenizer, 12, "window")
    assert windows.lengths.tolist() == [12] * len(windows.lengths)
    with pytest.raises(UserError, match="no room"):
        encode(pairs((first + " card", LONG)), tokenizer, 12, "window")


def test_mostly_unknown_tokens_mean_that_the_tokenizers_files_are_wrong(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match=r"train: .* % of the tokens are unknown to the tokenizer") as caught:
        encode(split_of("日 本 語 の 文", "そ れ か ら も う 一 つ"), tokenizer, 64, "truncate")
    assert caught.value.code == Exit.BAD_DATA
    encoded = encode(split_of("my card 日", "the parcel was late"), tokenizer, 64, "truncate")
    assert encoded.unknown_rate == pytest.approx(1 / 11)
