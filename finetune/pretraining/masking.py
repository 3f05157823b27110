"""Which tokens are hidden from the model, and what stands in their places (Devlin et al. 2019, section 3.1)."""

import dataclasses
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune.config import configclass, field

CONTINUATION = "##"
MASKED, REPLACED = 0.8, 0.1  # of the chosen tokens; the others stay as they are


@configclass
class MaskingConfig:
    """How many tokens are predicted, and which belong together."""

    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = field(0.15, "share of the tokens that are predicted")
    whole_word: bool = field(False, "all pieces of a word are predicted together, or none")
    next_sentence: bool = field(
        False, "a block of text is two pieces, and the model also tells whether the second goes on with the first"
    )


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """What masking has to know of a vocabulary: which tokens are words' beginnings, and which may take part."""

    mask: int
    ordinary: Tensor  # (vocab,) True where a token is not special
    ordinary_tokens: Tensor  # their numbers
    continues: Tensor  # (vocab,) True where a token goes on with a word

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Alphabet":
        """Read it off a WordPiece tokenizer."""
        size = len(tokenizer)
        ordinary = torch.ones(size, dtype=torch.bool)
        ordinary[torch.tensor(sorted({*tokenizer.all_special_ids, tokenizer.unk_token_id}))] = False
        tokens = tokenizer.convert_ids_to_tokens(range(size))
        continues = torch.tensor([str(token).startswith(CONTINUATION) for token in tokens])
        return cls(int(tokenizer.mask_token_id), ordinary, ordinary.nonzero().squeeze(1), continues)


@dataclasses.dataclass(frozen=True)
class Masked:
    """Token numbers with some hidden, (batch, time); the flat places of those to predict, and what stood there."""

    tokens: Tensor
    places: Tensor  # (places,) numbers in the flattened (batch * time)
    gold: Tensor  # (places,)


def mask(tokens: Tensor, alphabet: Alphabet, config: MaskingConfig, random: torch.Generator | None = None) -> Masked:
    """Choose tokens, each with `mlm_probability`; of these 80 % become [MASK], 10 % any other token, 10 % stay.

    `tokens` is (batch, time); special tokens are never chosen and never put in a place. Without `random`, torch's own
    generator draws, so in training the masks are a function of the update. At least one token is chosen.
    """
    free = alphabet.ordinary[tokens]  # (batch, time)
    if config.whole_word:
        words = (~(alphabet.continues[tokens] & free)).flatten().cumsum(0) - 1  # a word begins at each other token
        chance = torch.rand(int(words[-1]) + 1, generator=random)[words].view(tokens.shape)
    else:
        chance = torch.rand(tokens.shape, generator=random)
    chance = chance.masked_fill(~free, 2.0)
    chosen = chance < config.mlm_probability
    if not chosen.any():  # a loss of no token has no mean
        chosen = (chance == chance.min()) & free
    places = chosen.flatten().nonzero().squeeze(1)
    flat = tokens.flatten()
    gold = flat[places]
    kind = torch.rand(len(places), generator=random)
    others = alphabet.ordinary_tokens[torch.randint(len(alphabet.ordinary_tokens), (len(places),), generator=random)]
    inside = torch.where(kind < MASKED, alphabet.mask, torch.where(kind < MASKED + REPLACED, others, gold))
    return Masked(flat.index_put((places,), inside).view(tokens.shape), places, gold)
