"""A finished run asked one text at a time: what it answers, and what its files tell of how good that is."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune.causal.model import load_trained
from finetune.data.columns import from_columns
from finetune.data.sequences import PairsConfig
from finetune.errors import Exit, UserError
from finetune.explain import has_attention
from finetune.report import explanation, language_model, pictures, writing
from finetune.report.advice import short
from finetune.report.page import headline
from finetune.run import Run
from finetune.seq2seq import encoder_decoder as networks
from finetune.terminal import count, shown

EXAMPLES = 5
SCORES = 2  # of those that a run has, the ones that it is judged by come first
DIGEST = 12  # of the sha256 of a file
NOTHING_KNOWN = "This folder holds a model without results: how good its answers are, it does not tell."
Settings = tuple[float, float, int, int]  # temperature, top_p, most new tokens, seed


@dataclass(frozen=True)
class Answer:
    """What a run says of a text: a text of its own or its labels, probabilities, a picture (svg element), notes."""

    text: str
    probabilities: dict[str, float] | None = None
    picture: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Answering:
    """A run that answers texts, one for each of `columns`, with labels or with a text."""

    columns: Sequence[str]
    labels: bool
    answer: Callable[[Sequence[str]], Answer]


@dataclass(frozen=True)
class Writing:
    """A run that goes on from a prompt; `write` yields the text so far, and notes at its end."""

    settings: Settings
    write: Callable[[str, Settings], Iterator[tuple[str, list[str]]]]


@dataclass(frozen=True)
class Known:
    """What the files of a run tell: a title, how good it is, texts to try, and what is stored beside each of them."""

    title: str
    facts: Sequence[str]
    examples: list[list[str]] = dataclasses.field(default_factory=list)
    beside: dict[tuple[str, ...], list[str]] = dataclasses.field(default_factory=dict)


def known(run: Run, part: Run) -> Known:
    """Read what a run tells of its model; `part` is the run of the seed that answers, often the same."""
    if not run.config_file.is_file():
        return Known(run.model.resolve().name, [NOTHING_KNOWN])
    results, place = run.results(), run.environment()
    diagnostics = results["diagnostics"]
    judged = diagnostics["judged_on"]
    scores = [f"{metric} {shown(metric, score)}" for metric, score in results["scores"][judged].items()][:SCORES]
    made = [results["recipe"], str(results["model"]), place.get("started", "")[:10], str(run.folder)]
    files = [f"{Path(name).name} {digest[:DIGEST]}" for name, digest in place.get("data_sha256", {}).items()]
    facts = [
        headline(results),
        f"{' · '.join(scores)} on {count(diagnostics['rows'][judged], f'{judged} row')}; in brackets the 95 % interval",
        " · ".join(part for part in made if part),
        *([f"data (sha256): {' · '.join(files)}"] if files else []),
    ]
    title = f"{short(diagnostics['system'])}: {results['task']}"
    if results["task"] == language_model.TASK:
        written = part.read_predictions("written") if part.predictions_file("written").is_file() else []
        return Known(title, facts, [[row["prompt"]] for row in _spread(written)])
    rows = part.read_predictions(judged)
    told = [(_texts(row), f"in {judged}: {_answer(row['gold'])}") for row in rows]
    if "baseline" in results:
        name = short(results["baseline"]["name"])
        cheap = part.read_predictions(f"baseline.{judged}")
        told += [(_texts(row), f"{name}: {_answer(row['predicted'])}") for row in cheap]
    beside: dict[tuple[str, ...], list[str]] = {}
    for texts, line in told:
        lines = beside.setdefault(texts, [])  # of a text that stands in several rows, each label once
        if line not in lines:
            lines.append(line)
    return Known(title, facts, [list(_texts(row)) for row in _spread(rows)], beside)


def answering(run: Run, recipe: ModuleType, config: Any) -> Answering:
    """Return how a run is asked that labels texts or writes one for a source; its model is loaded once."""
    writes = isinstance(config.data, PairsConfig)
    looks = hasattr(recipe, "explain") and has_attention(run.loaded(networks.load))
    in_pairs = not writes and config.data.text_pair_column is not None
    roles = ["source"] if writes else ["text", "text_pair"] if in_pairs else ["text"]
    turn = threading.Lock()  # what is said of one text is not mixed with what is said of another

    def answer(texts: Sequence[str]) -> Answer:
        if not all(text.strip() for text in texts):
            raise UserError(Exit.BAD_DATA, "there is no text to answer")
        with turn:
            if looks:
                found = recipe.explain(config, run, texts[0])
                explanation.say_cut(run, config, found)
                figure, left_out = explanation.drawn(found)
                picture = pictures.inline(figure, explanation.in_words(found))
                return Answer(found.text, None, picture, [*run.heard(), *([left_out] if left_out else [])])
            given = from_columns("page", {role: [text] for role, text in zip(roles, texts, strict=True)})
            row = recipe.predict(config, run, given)[0]
            return Answer(_answer(row["predicted"]), row.get("probabilities"), "", run.heard())

    names = ["text", "second text"] if in_pairs else ["source" if writes else "text"]
    return Answering(names, not writes, answer)


def going_on(run: Run, config: Any, configure: Callable[[Sequence[str]], Any]) -> Writing:
    """Return how a run is asked that goes on from a prompt; `configure` reads settings over those of the run."""
    began = config.generation
    run.loaded(load_trained)

    def write(prompt: str, settings: Settings) -> Iterator[tuple[str, list[str]]]:
        names = ("generation.temperature", "generation.top_p", "generation.max_new_tokens", "seed")
        asked = [f"{name}={value}" for name, value in zip(names, settings, strict=True)]
        alone = ["generation.num_beams=1", "generation.num_return_sequences=1"]
        chosen = configure([*asked, *alone])
        text = ""
        for text in _streamed(lambda tell: writing.go_on(run, chosen, [prompt], tell)):
            yield text, []
        yield text, run.heard()

    return Writing((began.temperature, began.top_p, began.max_new_tokens, config.seed), write)


def _streamed(write: Callable[[Callable[[str], None]], object]) -> Generator[str, None, None]:
    """Yield the text so far as often as `write` tells a piece of it; it ends where nobody listens any more."""
    pieces: queue.Queue[str | Exception | None] = queue.Queue()
    left = threading.Event()

    def tell(piece: str) -> None:
        if left.is_set():
            raise InterruptedError
        pieces.put(piece)

    def work() -> None:
        try:
            write(tell)
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=work, daemon=True).start()
    text = ""
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            text += piece
            yield text
    finally:
        left.set()


def _spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    places = sorted({number * len(rows) // EXAMPLES for number in range(EXAMPLES)}) if rows else []
    return [rows[place] for place in places]


def _texts(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the texts of a stored row, in the order in which the page asks for them."""
    return tuple(row[name] for name in ("source", "text", "text_pair") if name in row)


def _answer(value: str | list[str]) -> str:
    """Return a label, a text, or several of them, as they are written in data."""
    return value if isinstance(value, str) else " | ".join(value) or "(none)"
