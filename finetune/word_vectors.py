"""One word's vectors in many contexts: which contexts lie near each other, and all of them on a plane."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from finetune.errors import Exit, UserError
from finetune.pretrained import Encoder
from finetune.text_metrics import WORD_START

FEWEST = 3  # contexts: two are always each other's nearest
MOST_GROUPS = 6


@dataclass(frozen=True)
class WordInContexts:
    """A word in n contexts: its vectors (n, dim), their cosines (n, n), their groups (n,), places on a plane (n, 2).

    `spans` says where the word stands in each context, `explained` which share of the variance each axis shows.
    """

    word: str
    model: str
    layer: int
    layers: int
    contexts: list[str]
    spans: list[tuple[int, int]]
    vectors: np.ndarray
    cosines: np.ndarray
    groups: np.ndarray
    plane: np.ndarray
    explained: tuple[float, float]

    def nearest(self, row: int) -> int:
        """Return the other context whose vector has the largest cosine with that of one."""
        return int(np.argmax(np.where(np.arange(len(self.contexts)) == row, -np.inf, self.cosines[row])))


def default_layer(layers: int) -> int:
    """Return the layer to compare: two thirds up, where senses part; below the vectors are those of the form alone."""
    return round(2 * layers / 3)


def word_in_contexts(encoder: Encoder, word: str, contexts: Sequence[str], layer: int | None = None) -> WordInContexts:
    """Compare a word's vectors, the mean of its tokens at a layer (0: embeddings), over contexts that contain it.

    Groups are average-linkage clusters of cosine distances, as many (2 to 6) as have the best mean silhouette
    (Rousseeuw 1987); the plane is that of the first two principal components. The first place of the word counts,
    whatever its case. Raises UserError: 2 for a layer that there is not, 65 for fewer than three contexts, a context
    without the word, or one in which it stands beyond what the model reads.
    """
    layers = int(encoder.model.config.num_hidden_layers)
    layer = default_layer(layers) if layer is None else layer
    if layer > layers:
        raise UserError(Exit.USAGE, f"--layer {layer}: {encoder.source.name} has the layers 0 (embeddings) to {layers}")
    if len(contexts) < FEWEST:
        what = f"{len(contexts)} context{'' if len(contexts) == 1 else 's'} of {word!r}"
        raise UserError(Exit.BAD_DATA, f"{what}; give {FEWEST} or more: --contexts FILE, or --text often")
    spans = [_span(word, context, number) for number, context in enumerate(contexts, 1)]
    vectors = np.stack([_vector(encoder, text, span, layer) for text, span in zip(contexts, spans, strict=True)])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    plane = PCA(n_components=2, svd_solver="full")
    places = plane.fit_transform(vectors)
    shares = tuple(np.nan_to_num(plane.explained_variance_ratio_).tolist())
    return WordInContexts(
        word=word,
        model=encoder.source.name,
        layer=layer,
        layers=layers,
        contexts=list(contexts),
        spans=spans,
        vectors=vectors,
        cosines=cosines,
        groups=_groups(cosines),
        plane=places,
        explained=(shares[0], shares[1]),
    )


def _span(word: str, context: str, number: int) -> tuple[int, int]:
    # Beside a character of a script without spaces a word needs no space, and is not a part of a longer one.
    before = f"(?<!{WORD_START.pattern})" if WORD_START.match(word[0]) else ""
    after = f"(?!{WORD_START.pattern})" if WORD_START.match(word[-1]) else ""
    found = re.search(before + re.escape(word) + after, context, re.IGNORECASE)
    if found is None:
        raise UserError(Exit.BAD_DATA, f"context {number} does not contain the word {word!r}: {context[:60]!r}")
    return found.span()


@torch.inference_mode()
def _vector(encoder: Encoder, context: str, span: tuple[int, int], layer: int) -> np.ndarray:
    """Return the mean vector of the tokens that overlap a span of characters, (dim,)."""
    (piece,) = encoder.tokenizer(context, truncation=True, max_length=encoder.longest).encodings
    inside = [place for place, (start, end) in enumerate(piece.offsets) if start < span[1] and end > span[0]]
    if not inside:
        what = f"the word stands beyond the {encoder.longest} tokens that {encoder.source.name} reads"
        raise UserError(Exit.BAD_DATA, f"{what}: {context[:60]!r}...; give a shorter context")
    states = encoder.model(**encoder.inputs(piece), output_hidden_states=True).hidden_states[layer]
    vector: np.ndarray = states[0, inside].mean(dim=0).double().cpu().numpy()
    return vector


def _groups(cosines: np.ndarray) -> np.ndarray:
    """Return the group of each row (n,), numbered in the order in which they begin."""
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    best, score = np.zeros(len(cosines), dtype=np.int64), 0.0
    for count in range(2, min(MOST_GROUPS, len(cosines) - 1) + 1):
        found = AgglomerativeClustering(count, metric="precomputed", linkage="average").fit_predict(distances)
        quality = float(silhouette_score(distances, found, metric="precomputed"))
        if quality > score:
            best, score = found, quality
    order = {group: number for number, group in enumerate(dict.fromkeys(best.tolist()))}
    return np.array([order[group] for group in best.tolist()])
