"""What is hidden, and what stands in its place: shares to four standard deviations, and never a special token."""

import math

import pytest
import torch
from transformers import BertTokenizerFast

from finetune.pretraining.masking import Alphabet, MaskingConfig, mask

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ENTRIES = [*SPECIALS, *(f"w{number}" for number in range(60)), *(f"##p{number}" for number in range(40))]


@pytest.fixture(scope="module")
def alphabet() -> Alphabet:
    return Alphabet.of(BertTokenizerFast(vocab={entry: number for number, entry in enumerate(ENTRIES)}))


def rows(count: int = 400, length: int = 128) -> torch.Tensor:
    """Return blocks with [CLS] and [SEP] at their ends, a [SEP], an [UNK] and padding inside."""
    tokens = torch.randint(5, len(ENTRIES), (count, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0], tokens[:, -6], tokens[:, 40], tokens[:, 41] = 2, 3, 3, 1
    tokens[:, -5:] = 0
    return tokens


def within_four_sigma(found: int, trials: int, share: float) -> bool:
    return abs(found - trials * share) < 4 * math.sqrt(trials * share * (1 - share))


def test_fifteen_percent_are_chosen_and_these_divide_80_10_10(alphabet: Alphabet) -> None:
    tokens = rows()
    masked = mask(tokens, alphabet, MaskingConfig(), torch.Generator().manual_seed(7))
    free = int((tokens > 4).sum())
    assert within_four_sigma(len(masked.places), free, 0.15)
    inside = masked.tokens.flatten()[masked.places]
    chosen = len(inside)
    assert within_four_sigma(int((inside == 4).sum()), chosen, 0.8)
    kept = int((inside == masked.gold).sum())
    assert within_four_sigma(kept, chosen, 0.1 + 0.1 / 100)  # a random token is the same by chance
    assert within_four_sigma(int(((inside != masked.gold) & (inside != 4)).sum()), chosen, 0.1 - 0.1 / 100)


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_special_token_is_ever_chosen_or_put_in_a_place(alphabet: Alphabet, whole_word: bool) -> None:
    tokens = rows()
    masked = mask(tokens, alphabet, MaskingConfig(mlm_probability=0.9, whole_word=whole_word))
    assert int(masked.gold.min()) > 4
    assert torch.equal(masked.gold, tokens.flatten()[masked.places])
    assert int(masked.tokens.flatten()[masked.places].min()) >= 4  # [MASK] itself, or an ordinary token
    untouched = torch.ones(tokens.numel(), dtype=torch.bool)
    untouched[masked.places] = False
    assert torch.equal(masked.tokens.flatten()[untouched], tokens.flatten()[untouched])


def test_whole_words_are_chosen_with_all_their_pieces_in_the_same_share(alphabet: Alphabet) -> None:
    tokens = rows()
    masked = mask(tokens, alphabet, MaskingConfig(whole_word=True), torch.Generator().manual_seed(3))
    chosen = torch.zeros(tokens.numel(), dtype=torch.bool)
    chosen[masked.places] = True
    chosen = chosen.view(tokens.shape)
    piece = alphabet.continues[tokens]
    joined = piece[:, 1:] & (tokens[:, :-1] > 4)  # goes on with an ordinary token before it
    assert torch.equal(chosen[:, 1:][joined], chosen[:, :-1][joined])
    words = int(((tokens > 4) & ~piece).sum())
    assert within_four_sigma(int((chosen & ~piece).sum()), words, 0.15)


def test_masks_differ_from_update_to_update_and_are_a_function_of_the_seed(alphabet: Alphabet) -> None:
    tokens = rows(8)
    torch.manual_seed(5)
    first, second = (mask(tokens, alphabet, MaskingConfig()) for _ in range(2))
    torch.manual_seed(5)
    again = mask(tokens, alphabet, MaskingConfig())
    assert not torch.equal(first.places, second.places) or not torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.places, again.places)
    assert torch.equal(first.tokens, again.tokens)


def test_a_batch_always_has_something_to_predict(alphabet: Alphabet) -> None:
    for seed in range(20):
        masked = mask(torch.tensor([[2, 9, 3]]), alphabet, MaskingConfig(), torch.Generator().manual_seed(seed))
        assert masked.places.tolist() == [1]
