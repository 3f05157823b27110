"""BERTScore: how near the pieces of a text lie to those of its reference, as a BERT reads both (Zhang et al. 2020).

Any BERT that is at hand will do, so a figure is worth nothing without the model's name, and is compared with figures of
the same model alone. The package `bert-score` (0.3.13) is not used: with transformers 5.23 it fails for an empty text,
and it loads checkpoints past the checks of `pretrained`. Its figures are the same within 0.001 where it works: there a
piece may also be matched with a special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from finetune import pretrained, processes, significance
from finetune.data.batching import evaluation_batches, pad_and_mask
from finetune.errors import Exit, UserError
from finetune.significance import Sample
from finetune.text_evaluation import TextPredictions

SETTING = "bertscore_model"
FIGURES = ("precision", "recall", "f1")
DEFINITION = (
    "BERTScore, 0 to 1 (Zhang et al. 2020, section 3): cosines of the last layer's vectors, without special tokens; "
    "precision is the mean over the pieces of a text of the nearest piece of its reference, recall the other way "
    "round, f1 their harmonic mean; of several references the best f1; without idf weights and without rescaling, so "
    "that unrelated texts are above 0 too; a text without a piece has 0. Means over rows."
)
ROWS_AT_ONCE = 256  # of which the vectors are kept
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Meter:
    """A BERT that reads, and where it comes from."""

    name: str
    identity: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def longest(self) -> int:
        """Return how many tokens it reads of a text, special ones included."""
        return pretrained.context_limit(self.model.config, self.tokenizer)

    @property
    def layers(self) -> int:
        """Return the number of the layer whose vectors are compared: the last."""
        return int(self.model.config.num_hidden_layers)

    def judged(self, own: TextPredictions, other: tuple[str, TextPredictions] | None) -> dict[str, Any]:
        """Score a system's texts, and beside them those of another one for the same rows, by its name.

        Returns {"model", "identity", "layer", "cut" (different texts that are longer than the model reads), "system":
        {"precision", "recall", "f1"} with 95 % intervals, "definition"}, and with another one "baseline" (with its
        "name") and "difference": that of the f1 with its paired interval, positive where the system is better.
        """
        systems = [own.predicted] if other is None else [own.predicted, other[1].predicted]
        (mine, *rest), cut = row_scores(self, systems, own.references)
        found: dict[str, Any] = {
            "model": self.name, "identity": self.identity, "layer": self.layers, "cut": cut,
            "system": _intervals(mine), "definition": DEFINITION,
        }  # fmt: skip
        if other is not None:
            (theirs,) = rest
            found["baseline"] = {"name": other[0]} | _intervals(theirs)
            interval = significance.paired_bootstrap(_sample(mine[:, 2:]), _sample(theirs[:, 2:]))[0]
            found["difference"] = interval.told()
        return found


def load(name: str | None, *, use_cpu: bool = False) -> Meter | None:
    """Load the BERT of a folder, Hub name or shipped checkpoint; no name: none.

    Raises UserError as `pretrained.locate` does, and 65 for a model that reads no text by itself, or from left to right
    alone: there a piece knows nothing of what follows it.
    """
    if name is None:
        return None
    with pretrained.called(SETTING):
        body = pretrained.load_encoder(name, use_cpu=use_cpu)
        if type(body.model.config) not in MODEL_FOR_MASKED_LM_MAPPING or body.model.config.is_decoder:
            what = f"model={name} ({type(body.model).__name__}) is no model that fills gaps"
            raise UserError(Exit.BAD_DATA, f"{what}, which reads a text from both sides; give a BERT, e.g. mini-mbert")
    return Meter(name, body.source.identity, body.model, body.tokenizer)


def row_scores(
    meter: Meter, systems: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, int]:
    """Return precision, recall and f1 of each text of each system against the nearest of its references, by f1.

    They are (systems, rows, 3); with them the number of different texts that were cut. What several systems have in
    common, the references above all, is read once.
    """
    places: dict[str, int] = {}
    for text in chain(*systems, *references):
        places.setdefault(text, len(places))
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(references), ROWS_AT_ONCE)]

    def score(part: slice) -> tuple[np.ndarray, list[int]]:
        texts = list(dict.fromkeys(chain(*(said[part] for said in systems), *references[part])))
        found, long = _vectors(meter, texts)
        vectors = dict(zip(texts, found, strict=True))

        def best(text: str, several: Sequence[str]) -> tuple[float, float, float]:
            scores = [similarity(vectors[text], vectors[reference]) for reference in several]
            return max(scores, key=lambda score: score[2])

        rows = [[best(*row) for row in zip(said[part], references[part], strict=True)] for said in systems]
        return np.array(rows), [places[texts[row]] for row in long]

    done = processes.shared(parts, score)
    nothing = np.zeros((len(systems), 0, len(FIGURES)))
    scores = np.concatenate([nothing, *(rows for rows, _ in done)], axis=1)
    return scores, len({place for _, long in done for place in long})


def similarity(text: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return precision, recall and f1 of the unit vectors of two texts, (pieces, dim) each (section 3)."""
    if not len(text) or not len(reference):
        return 0.0, 0.0, 0.0
    cosines = text @ reference.t()  # (pieces of the text, pieces of the reference)
    precision, recall = float(cosines.amax(dim=1).mean()), float(cosines.amax(dim=0).mean())
    whole = precision + recall
    return precision, recall, 2 * precision * recall / whole if whole > 0 else 0.0


@torch.inference_mode()
def _vectors(meter: Meter, texts: Sequence[str]) -> tuple[list[Tensor], list[int]]:
    """Return the unit vectors of the pieces of each text, (pieces, dim), on the CPU, and which texts were cut."""
    coded = meter.tokenizer(list(texts), truncation=True, max_length=meter.longest).encodings
    rows = [one.ids for one in coded]
    pieces = [torch.tensor(one.special_tokens_mask) == 0 for one in coded]
    lengths = np.array([len(row) for row in rows])
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    device = meter.model.device
    for chosen in evaluation_batches(lengths, ROWS_AT_ONCE, TOKENS_AT_ONCE):
        tokens, real = pad_and_mask([rows[row] for row in chosen], int(meter.tokenizer.pad_token_id or 0))
        hidden = meter.model(input_ids=tokens.to(device), attention_mask=real.to(device)).last_hidden_state
        for row, vectors in zip(chosen, functional.normalize(hidden.float(), dim=-1).cpu(), strict=True):
            found[row] = vectors[: lengths[row]][pieces[row]]
    return found, [row for row, one in enumerate(coded) if one.overflowing]


def _intervals(scores: np.ndarray) -> dict[str, dict[str, float]]:
    found = significance.bootstrap(_sample(scores))
    return {name: interval.told() for name, interval in zip(FIGURES, found, strict=True)}


def _sample(scores: np.ndarray) -> Sample:
    """Return rows whose score is the mean of each column of (rows, figures)."""
    rows = len(scores)
    sums = np.concatenate([scores, np.ones((rows, 1))], axis=1)
    return Sample(
        np.ones(rows, dtype=np.int64), sparse.csr_array(sums), lambda total: total[..., :-1] / total[..., -1:]
    )
