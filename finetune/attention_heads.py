"""Where each head of each layer of a pretrained model looks, and which look most at the next token and the like."""

from dataclasses import dataclass

import numpy as np
import torch

from finetune.data.encode import check_read
from finetune.pretrained import Encoder

NEXT, PREVIOUS, ITSELF, FIRST = "next", "previous", "itself", "first"


@dataclass(frozen=True)
class Heads:
    """A text's tokens, special ones included, and how much each looks at each: weights (layers, heads, tokens, tokens).

    `special` are the places of the special tokens.
    """

    text: str
    model: str
    tokens: list[str]
    special: list[int]
    weights: np.ndarray
    cut: bool

    def habits(self) -> dict[str, np.ndarray]:
        """Return the mean weight that a token gives to the next one, the previous one, itself: (layers, heads) each.

        And to each kind of special token, or to the first token where there is none. After Clark et al. 2019, section
        3; here special tokens do not count among those that look.
        """
        looks = [place for place in range(len(self.tokens)) if place not in self.special]
        found = {}
        for name, step in ((NEXT, 1), (PREVIOUS, -1), (ITSELF, 0)):
            pairs = [(place, place + step) for place in looks if 0 <= place + step < len(self.tokens)]
            if pairs:
                rows, columns = zip(*pairs, strict=True)
                found[name] = self.weights[:, :, rows, columns].mean(axis=-1)
        targets: dict[str, list[int]] = {} if self.special else {FIRST: [0]}
        for place in self.special:
            targets.setdefault(self.tokens[place], []).append(place)
        for name, places in targets.items():
            found[name] = self.weights[:, :, looks][:, :, :, places].sum(axis=-1).mean(axis=-1)
        return found


@torch.inference_mode()
def attention(encoder: Encoder, text: str) -> Heads:
    """Read a text and return the attention of every head (Vaswani et al. 2017, section 3.2).

    Raises UserError (65) where nothing of the text is read.
    """
    (piece,) = encoder.tokenizer(text, truncation=True, max_length=encoder.longest).encodings
    check_read([piece], text)
    encoder.model.set_attn_implementation("eager")  # the others never hold the weights
    found = encoder.model(**encoder.inputs(piece), output_attentions=True).attentions
    return Heads(
        text=text,
        model=encoder.source.name,
        tokens=[text[slice(*ends)].strip() or token for token, ends in zip(piece.tokens, piece.offsets, strict=True)],
        special=[place for place, on in enumerate(piece.special_tokens_mask) if on],
        weights=torch.stack([layer[0] for layer in found]).float().cpu().numpy(),
        cut=bool(piece.overflowing),
    )
