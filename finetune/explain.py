"""Why a model writes what it writes: which tokens of the source each token of its text looked at."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from finetune.errors import Exit, UserError
from finetune.seq2seq.encoder_decoder import EncoderDecoder, Lengths, Written, cut
from finetune.seq2seq.model import sequence_loss
from finetune.seq2seq.vocabulary import BOS, EOS, JOINT, SPECIALS, WORD_MARK
from finetune.terminal import printable
from finetune.text_metrics import WORD_START

END, UNKNOWN, SPACE, GOES_ON = "⟨end⟩", "⟨unknown⟩", "␣", "…"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A source, the text written for it or given, and how much each token of the text looked at each source token."""

    source: str
    text: str
    given: bool  # as the target, and not written by the model
    score: float  # mean log-probability of a token, eos included
    source_tokens: list[str]  # as people read them, the end included
    target_tokens: list[str]
    weights: np.ndarray  # (target, source); the weights of a target token sum to 1
    cut: list[str]  # what was longer than the model takes: source, target


def has_attention(parts: EncoderDecoder) -> bool:
    """Tell whether the model looks at single tokens of the source, and not at one vector."""
    config = parts.model.config
    return bool(config.architecture != "rnn" or config.attention != "none")


def explained(
    parts: EncoderDecoder,
    source: str,
    target: str | None,
    longest: Lengths,
    write: Callable[[list[np.ndarray]], Written],
) -> Explanation:
    """Explain the text that `write` makes of a source, or `target`; raises UserError (2) for a model without attention.

    Several layers and heads: their share is that of `Seq2SeqModel.alignment`.
    """
    if not has_attention(parts):
        what = f"nothing to show: the model ({parts.name}) reads the source as one vector and looks at no single token"
        raise UserError(Exit.USAGE, f"{what}\ntrain one that does: attention=additive, or architecture=transformer")
    full = parts.vocabularies.encode_sources([source])[0]
    row, too_long = cut(full, longest.source), ["source"] * (len(full) > longest.source)
    if target is None:
        written = write([row])
        text, score, tokens = written.texts[0][0], written.scores[0], [BOS, *written.tokens[0], EOS]
    else:
        full = parts.vocabularies.encode_targets([target])[0]
        text, tokens, score = target, cut(full, longest.target).tolist(), None
        too_long += ["target"] * (len(full) > longest.target)
    loss, weights = _read(parts, row, tokens)
    return Explanation(
        source=source,
        text=text,
        given=target is not None,
        score=-loss if score is None else score,
        source_tokens=_readable(parts.vocabularies.source.convert_ids_to_tokens(row.tolist())),
        target_tokens=_readable(parts.vocabularies.target.convert_ids_to_tokens(tokens[1:])),
        weights=weights,
        cut=too_long,
    )


@torch.inference_mode()
def _read(parts: EncoderDecoder, source: np.ndarray, target: Sequence[int]) -> tuple[float, np.ndarray]:
    """Return the loss of a token of the target, from bos to eos, and what each looks at, (target - 1, source)."""
    model = parts.model.eval()
    device = model.device
    rows = torch.from_numpy(source.astype(np.int64))[None].to(device)  # (1, source)
    written = torch.tensor([list(target)], device=device)  # (1, target)
    mask = torch.ones_like(rows, dtype=torch.bool)
    loss = sequence_loss(model, rows, mask, written, label_smoothing=0.0)
    weights = model.alignment(rows, mask, written[:, :-1])
    assert weights is not None
    return float(loss) / (len(target) - 1), weights[0].float().cpu().numpy()


def _readable(tokens: Sequence[str]) -> list[str]:
    """Return tokens without the marks of the vocabulary; one that goes on with a word begins with an ellipsis."""
    specials = {SPECIALS["eos_token"]: END, SPECIALS["unk_token"]: UNKNOWN}
    in_pieces = any(token.startswith(WORD_MARK) for token in tokens)
    shown = []
    for place, token in enumerate(tokens):
        bare = token.removeprefix(WORD_MARK) if in_pieces else token.strip(JOINT) or token
        goes_on = in_pieces and place > 0 and bare == token and WORD_START.match(bare)
        text = GOES_ON + bare if goes_on else bare
        shown.append(specials.get(token) or (printable(text) if text.strip() else SPACE))
    return shown
