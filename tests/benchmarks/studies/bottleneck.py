"""One fixed vector against attention, by source length: small trainings of equal size, or finished runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune import terminal, text_evaluation
from finetune.report.pictures import Series, curves
from finetune.report.text_results import task_of
from finetune.seq2seq.encoder_decoder import NetworkConfig
from studies import learning, tables
from studies.learning import Pairs

ATTENTIONS = ("none", "additive", "dot", "scaled_dot", "general")
LARGEST = "none"  # at equal width it has the most parameters: the vector enters every step of the decoder
Buckets = list[dict[str, float]]  # {"from", "to", "rows", metric, "low", "high"}


def networks(pairs: Pairs, width: int) -> dict[str, NetworkConfig]:
    """Return a network for each attention, with as many parameters as the one without at this width."""
    words = pairs.vocabularies()

    def of(attention: Any, dim: int) -> NetworkConfig:
        return NetworkConfig(
            architecture="rnn", attention=attention, hidden_size=dim, num_encoder_layers=1, num_decoder_layers=1,
            dropout=0.0,
        )  # fmt: skip

    def size(attention: str, dim: int) -> int:
        return learning.parameters(of(attention, dim), words, pairs.lengths())

    wanted = size(LARGEST, width)
    return {name: of(name, learning.closest(partial(size, name), wanted, step=2)) for name in ATTENTIONS}


@dataclass(frozen=True)
class System:
    """What one trained model reaches."""

    width: int
    parameters: int
    seconds: float
    loss: float  # of validation, nats a token
    whole: dict[str, float]  # exact match of all test rows
    exact: Buckets
    right_tokens: list[dict[str, float]]  # {"value", "low", "high"} of each bucket


def trained(pairs: Pairs, network: NetworkConfig, edges: Sequence[int], seed: int, runs: Path) -> System:
    """Train, or find what was trained, and score it."""
    files = learning.write_pairs(pairs, runs / "data")
    run = learning.trained(learning.settings(pairs, files, network, seed), runs / f"{network.attention}-{seed}")
    results, found = run.results(), learning.predictions(run)
    return System(
        width=network.hidden_size,
        parameters=results["diagnostics"]["parameters"],
        seconds=results["seconds"]["train"],
        loss=learning.course(learning.read_metrics(run))[-1][1],
        whole=results["scores"]["test"]["exact_match"],
        exact=text_evaluation.by_source_length(found, learning.TASK, edges[:-1]),
        right_tokens=[vars(share) for share in learning.share_right(found, edges)],
    )


def tell(pairs: Pairs, width: int, edges: Sequence[int], seed: int, runs: Path, folder: Path) -> None:
    """Train what is missing, print exact match and right tokens by length, and draw both."""
    systems = {
        named(attention): trained(pairs, network, edges, seed, runs)
        for attention, network in networks(pairs, width).items()
    }
    print(f"{pairs}, {learning.BATCH} new pairs an update, seed {seed}; {tables.machine(use_cpu=True)}\n")
    head = ["LSTM", "width", "parameters", "validation loss", "exact match"]
    rows = [
        [name, str(of.width), f"{of.parameters:,}", f"{of.loss:.3f}", shown(of.whole, "value")]
        for name, of in systems.items()
    ]
    print(tables.markdown(head, rows))
    spans = [f"{bucket['from']}-{bucket['to']}" for bucket in next(iter(systems.values())).exact]
    print("\nExact match by words of the source\n")
    exact = {name: of.exact for name, of in systems.items()}
    print(tables.markdown(["LSTM", *spans], [[n, *(shown(b, "exact_match") for b in of)] for n, of in exact.items()]))
    print("\nShare of right tokens by words of the source\n")
    tokens = {name: of.right_tokens for name, of in systems.items()}
    print(tables.markdown(["LSTM", *spans], [[n, *(shown(b, "value") for b in of)] for n, of in tokens.items()]))
    places = middles(next(iter(exact.values())))
    drawn = {
        "bottleneck": picture(exact, places, "exact_match", f"Exact match by length: {pairs.task}"),
        "bottleneck_tokens": picture(tokens, places, "value", f"Share of right tokens by length: {pairs.task}"),
    }
    asked = {"task": vars(pairs), "seed": seed, "batch": learning.BATCH, "machine": tables.machine(use_cpu=True)}
    tables.save(folder, "bottleneck", {"asked": asked, "systems": {n: vars(of) for n, of in systems.items()}}, drawn)


def tell_runs(names: Sequence[str], edges: Sequence[int] | None, folder: Path) -> None:
    """Print and draw the deciding score by source length of runs that were trained for one task on the same data."""
    runs = learning.opened(names)
    tasks = {task_of(run.results()) for run in runs.values()}
    task = tasks.pop()
    assert task is not None, "the runs do not write texts"
    assert not tasks, "the runs are of different tasks"
    found = {
        name: text_evaluation.by_source_length(learning.predictions(run), task, edges) for name, run in runs.items()
    }
    metric, first = task.decides, next(iter(found.values()))
    head = ["words of the source", *(f"{b['from']}-{b['to']} ({b['rows']:,} rows)" for b in first)]
    digits = 1 if terminal.is_percentage(metric) else 3
    cells = [[name, *(shown(bucket, metric, digits) for bucket in buckets)] for name, buckets in found.items()]
    print(tables.markdown(head, cells))
    drawn = picture(found, middles(first), metric, f"{metric} by source length")
    tables.save(folder, "bottleneck_runs", {"metric": metric, "systems": found}, {"bottleneck_runs": drawn})


def named(attention: str) -> str:
    """Return an attention as sentences name it."""
    return "without attention" if attention == "none" else f"{attention.replace('_', ' ')} attention"


def shown(score: Any, key: str, digits: int = 3) -> str:
    """Return a score with its interval."""
    return f"{score[key]:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"


def middles(buckets: Buckets) -> list[float]:
    """Return the middle of each bucket's lengths."""
    return [(bucket["from"] + bucket["to"]) / 2 for bucket in buckets]


def picture(found: Mapping[str, Buckets], places: Sequence[float], metric: str, title: str) -> Any:
    """Draw a score with its interval by source length; `places` are the middles of the buckets."""
    series = [
        Series(name, places, *([bucket[key] for bucket in of] for key in (metric, "low", "high")))
        for name, of in found.items()
    ]
    return curves(series, title, "words of the source", title.partition(" by ")[0])
