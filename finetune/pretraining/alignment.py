"""Which old tokens an entry of a new vocabulary stands for, learnt from translations: its embedding begins there.

A body that knows one language then reads the others almost at once, before the first update: the idea of WECHSEL
(Minixhofer et al. 2022), with pairs of sentences in place of bilingual dictionaries.
"""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from finetune.pretraining.stores import Rows

ROUNDS = 6  # of expectation and maximisation; the counts hardly move after the fourth
DIAGONAL = 4.0  # how fast a link gets less likely with its distance from the diagonal (Dyer et al. 2013, section 2)
MOST_LINKS = 20_000_000  # of a language, about 40 bytes each; pairs beyond are not needed for frequent entries
SEEN = 1.0  # occurrences from which an entry's alignment is believed


def expected_counts(
    target: Rows, source: Rows, source_of: np.ndarray, pairs: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_matrix:
    """Return how often each entry stands for each old one, (new entries, old entries), over some pairs.

    `target` are rows of new tokens, `source` of old ones; pair i is target[i] with source[source_of[i]]. IBM Model 1
    (Brown et al. 1993, section 4.1) from old to new tokens, with a prior for the diagonal (Dyer et al. 2013) and no
    empty word.
    """
    news, olds, starts, prior = _links(target, source, source_of, _few_enough(target, source, source_of, pairs))
    if not len(news):
        return sparse.csr_matrix(shape)
    kinds, kind_of = np.unique(news * shape[1] + olds, return_inverse=True)
    old_of = kinds % shape[1]
    sizes = np.diff(np.append(starts, len(news)))
    likely = np.ones(len(kinds))  # t(new | old), up to a factor
    for _ in range(ROUNDS):
        share = likely[kind_of] * prior
        share /= np.repeat(np.add.reduceat(share, starts), sizes)  # over the old tokens of each new one
        counts = np.bincount(kind_of, share, minlength=len(kinds))
        likely = counts / np.maximum(np.bincount(old_of, counts, minlength=shape[1]), np.finfo(float).tiny)[old_of]
    return sparse.csr_matrix((counts, (kinds // shape[1], old_of)), shape=shape)


def mixed_rows(counts: Iterable[sparse.csr_matrix], old: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each entry the mean of the old rows that it stands for, (entries, dim), and whether it was seen."""
    total = sparse.csr_matrix(sum(counts))
    seen = np.asarray(total.sum(axis=1)).ravel()
    mixed = (total @ old.double().numpy()) / np.maximum(seen, np.finfo(float).tiny)[:, None]
    return torch.from_numpy(mixed).to(old.dtype), torch.from_numpy(seen >= SEEN)


def _few_enough(target: Rows, source: Rows, source_of: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Leave out the last pairs where all would make too many links; they come in no order of meaning."""
    links = np.cumsum(target.lengths[pairs] * source.lengths[source_of[pairs]])
    return pairs[: max(1, int(np.searchsorted(links, MOST_LINKS, side="right")))]


def _links(
    target: Rows, source: Rows, source_of: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return every new token beside every old token of its pair: both numbers, where each new token begins, priors."""
    of_pair = source_of[pairs]
    new_sizes, old_sizes = target.lengths[pairs], source.lengths[of_pair]
    pairs, of_pair = pairs[old_sizes > 0], of_pair[old_sizes > 0]
    new_sizes, old_sizes = new_sizes[old_sizes > 0], old_sizes[old_sizes > 0]
    pair_of = np.repeat(np.arange(len(pairs)), new_sizes)  # of each new token
    place = np.arange(len(pair_of)) - np.repeat(np.cumsum(new_sizes) - new_sizes, new_sizes)  # in its sentence
    news = np.asarray(target.tokens[target.offsets[pairs][pair_of] + place], dtype=np.int64)
    width = old_sizes[pair_of]  # links of each new token
    starts = np.cumsum(width) - width
    other = np.arange(width.sum()) - np.repeat(starts, width)
    olds = np.asarray(source.tokens[np.repeat(source.offsets[of_pair][pair_of], width) + other], dtype=np.int64)
    across = (other + 0.5) / np.repeat(width, width)
    along = np.repeat((place + 0.5) / new_sizes[pair_of], width)
    return np.repeat(news, width), olds, starts, np.exp(-DIAGONAL * np.abs(across - along))
