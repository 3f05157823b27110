"""Dot products against dot products over sqrt(d), by head size d: at the start, and after the same updates."""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from finetune.report.pictures import Series, curves
from finetune.seq2seq import attention, encoder_decoder
from finetune.seq2seq.encoder_decoder import EncoderDecoder, NetworkConfig
from finetune.seq2seq.transformer import Transformer
from finetune.seq2seq.vocabulary import BOS
from studies import learning, tables
from studies.learning import Pairs

DOT, SCALED = "dot", "scaled dot"
RECURRENT, TRANSFORMER = "LSTM", "Transformer"
LEAST_WIDTH = 128  # of a Transformer, whose heads share its width
ROWS = 64  # sentences on which weights are looked at
MEASURES = ("variance", "entropy", "gradient")


@dataclass(frozen=True)
class Case:
    """One model: its architecture, head size and scoring."""

    architecture: str
    head: int
    scoring: str

    @property
    def name(self) -> str:
        """Return the case without its head size."""
        return f"{self.architecture}, {self.scoring}"

    def network(self) -> NetworkConfig:
        """Return the network: in a recurrent one the head is as wide as the model."""
        depth: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 1, "dropout": 0.0}
        if self.architecture == RECURRENT:
            kind: Any = self.scoring.replace(" ", "_")
            return NetworkConfig(architecture="rnn", attention=kind, hidden_size=self.head, **depth)
        width = max(LEAST_WIDTH, self.head)
        heads = width // self.head
        return NetworkConfig(hidden_size=width, intermediate_size=2 * width, num_attention_heads=heads, **depth)

    def scored(self) -> contextlib.AbstractContextManager[None]:
        """Return the block in which the model scores as the case says."""
        plain = self.architecture == TRANSFORMER and self.scoring == DOT
        return unscaled() if plain else contextlib.nullcontext()


@contextlib.contextmanager
def unscaled() -> Iterator[None]:
    """Take the division by sqrt(d) out of every attention of a Transformer, the readable form and the fused kernel."""
    plain = partial(functional.scaled_dot_product_attention, scale=1.0)
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", plain),
        mock.patch.object(attention, "scaled_dot", attention.dot),
    ):
        yield


# What attention does with some sentences


def look(parts: EncoderDecoder, pairs: Pairs, case: Case) -> dict[str, float]:
    """Return variance of the scores, entropy and gradient of the softmax, on sentences of the longest length.

    Of a recurrent network these are of the decoder's attention, of a Transformer of the encoder's self-attention.
    """
    model = parts.model.double().cpu().eval()  # in single precision the smallest of the weights would be 0
    torch.manual_seed(0)
    tokens = torch.randint(BOS + 2, len(parts.vocabularies.source), (ROWS, pairs.longest))
    seen = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(), case.scored():
        if case.architecture == RECURRENT:
            target = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens], dim=1)
            weights = model.alignment(tokens, seen, target)
        else:
            weights = self_attention(model.network, lambda: model.encode(tokens, seen))
    assert weights is not None
    return {"variance": variance(weights), "entropy": entropy(weights), "gradient": gradient(weights)}


def self_attention(network: Any, encode: Any) -> Tensor:
    """Return the weights of the first encoder layer, (batch, heads, source, source), while `encode` runs."""
    assert isinstance(network, Transformer)
    layer, asked = network.encoder_layers[0].attention, []
    handle = layer.register_forward_pre_hook(lambda _, given: asked.append(given))
    try:
        encode()
    finally:
        handle.remove()
    weights = layer(*asked[0], weights=True)[1]
    assert isinstance(weights, Tensor)
    return weights


def variance(weights: Tensor) -> float:
    """Return the variance of the scores over the keys, mean over queries: log p is a score but for a constant."""
    return float(weights.clamp_min(1e-300).log().var(dim=-1).mean())


def entropy(weights: Tensor) -> float:
    """Return the entropy of the weights, mean over queries, as a share of what even weights have."""
    return float(torch.special.entr(weights).sum(dim=-1).mean() / torch.tensor(weights.shape[-1]).log())


def gradient(weights: Tensor) -> float:
    """Return the Frobenius norm of the softmax's derivative diag(p) - pp', mean over queries; 0: nothing passes.

    Its square is sum(p²) - 2 sum(p³) + sum(p²)².
    """
    squares, cubes = weights.square().sum(dim=-1), weights.pow(3).sum(dim=-1)
    return float((squares - 2 * cubes + squares.square()).clamp_min(0).sqrt().mean())


# The study


@dataclass(frozen=True)
class Study:
    """The task, the head sizes that are looked at, those that are also trained, and the seeds."""

    pairs: Pairs
    heads: Sequence[int]
    trained: Sequence[int]
    seeds: Sequence[int]

    def cases(self) -> list[list[Case]]:
        """Return for each architecture and scoring its cases by head size."""
        kinds = [(kind, scoring) for kind in (RECURRENT, TRANSFORMER) for scoring in (DOT, SCALED)]
        return [[Case(kind, head, scoring) for head in self.heads] for kind, scoring in kinds]


def at_start(case: Case, study: Study) -> dict[str, float]:
    """Return what attention does before the first update, mean over seeds."""
    words, lengths = study.pairs.vocabularies(), study.pairs.lengths()
    network = case.network()
    looks = [
        look(encoder_decoder.build(network, words, lengths, seed, learning.TASK), study.pairs, case)
        for seed in study.seeds
    ]
    return means(looks)


def at_end(case: Case, study: Study, files: dict[str, str], runs: Path) -> dict[str, Any]:
    """Train with each seed; return losses and exact matches of each, and what attention then does."""
    losses, matches, looks = [], [], []
    for seed in study.seeds:
        folder = runs / f"{case.name}-{case.head}-{seed}".replace(", ", "-").replace(" ", "_").lower()
        with case.scored():
            run = learning.trained(learning.settings(study.pairs, files, case.network(), seed), folder)
        losses.append(learning.course(learning.read_metrics(run))[-1][1])
        matches.append(run.results()["scores"]["test"]["exact_match"]["value"])
        looks.append(look(encoder_decoder.load(run.model), study.pairs, case))
    return {"loss": losses, "exact_match": matches, **means(looks)}


def means(looks: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each measure."""
    return {name: statistics.mean(one[name] for one in looks) for name in MEASURES}


def tell(study: Study, runs: Path, folder: Path) -> None:
    """Look at every head size, train some, print the tables and draw them."""
    files = learning.write_pairs(study.pairs, runs / "data")
    lines = {cases[0].name: cases for cases in study.cases()}
    start = {name: {case.head: at_start(case, study) for case in cases} for name, cases in lines.items()}
    kept = {name: [case for case in cases if case.head in study.trained] for name, cases in lines.items()}
    end = {name: {case.head: at_end(case, study, files, runs) for case in cases} for name, cases in kept.items()}
    print(f"{study.pairs}, {learning.BATCH} pairs an update, seeds {[*study.seeds]}; {tables.machine(use_cpu=True)}")
    print("\nBefore the first update: variance of the scores · entropy, 1 = even · gradient of the softmax\n")
    print(
        tables.markdown(
            ["head size", *map(str, study.heads)], [[n, *map(looked, of.values())] for n, of in start.items()]
        )
    )
    print("\nAfter the same updates: validation loss, nats a token · exact match, mean (least to most) · entropy\n")
    print(
        tables.markdown(
            ["head size", *map(str, study.trained)], [[n, *map(learnt, of.values())] for n, of in end.items()]
        )
    )
    drawn = {
        "scaling_start": start_picture(start),
        "scaling": end_picture(end),
    }
    tables.save(folder, "scaling", {"asked": vars(study.pairs), "start": start, "end": end}, drawn)


def looked(of: dict[str, float]) -> str:
    """Return the three measures in a cell."""
    return f"{of['variance']:.3g} · {of['entropy']:.2f} · {of['gradient']:.2f}"


def learnt(of: dict[str, Any]) -> str:
    """Return what was learnt in a cell."""
    loss, match = of["loss"], of["exact_match"]
    spread = f"{statistics.mean(loss):.3f} ({min(loss):.3f} to {max(loss):.3f})"
    return f"{spread} · {statistics.mean(match):.2f} ({min(match):.2f} to {max(match):.2f}) · {of['entropy']:.2f}"


def start_picture(start: dict[str, dict[int, dict[str, float]]]) -> Any:
    """Draw the variance of the scores by head size."""
    series = [Series(name, [*of], [one["variance"] for one in of.values()]) for name, of in start.items()]
    title = "Variance of the scores before the first update"
    return curves(series, title, "head size d", "variance over the keys", logarithmic="xy")


def end_picture(end: dict[str, dict[int, dict[str, Any]]]) -> Any:
    """Draw the validation loss by head size, mean over seeds with the least and the most as a band."""
    series = []
    for name, of in end.items():
        losses = [one["loss"] for one in of.values()]
        middle = [statistics.mean(several) for several in losses]
        series.append(Series(name, [*of], middle, [*map(min, losses)], [*map(max, losses)]))
    return curves(series, "Validation loss after the same updates", "head size d", "nats a token", logarithmic="x")
