"""Show why a run said what it said, and how its model reads."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune import pretrained
from finetune.attention_heads import attention
from finetune.causal.corpus import TextDataConfig
from finetune.commands.runs import check_text, read_rows, trained
from finetune.data.columns import DataConfig, Split, from_columns
from finetune.data.sequences import PairsConfig
from finetune.errors import Exit, UserError
from finetune.explain import Explanation
from finetune.report import attribution, explanation, page, pictures, representations
from finetune.report import scoring as reporting
from finetune.report.explanation import Shown
from finetune.run import Run, disk_errors, read_json, write_atomic
from finetune.terminal import count, line
from finetune.word_vectors import word_in_contexts


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to explain: texts with their second texts or targets, or a file; `reading` are settings of data for it.

    What is None or empty was not asked for.
    """

    texts: Sequence[str] = ()
    pairs: Sequence[str] = ()
    file: str | None = None
    reading: Sequence[str] = ()
    target: str | None = None
    label: str | None = None
    steps: int | None = None


def explain(run: str, asked: Asked, output: str | None = None) -> Shown:
    """Show which words speak for the label that a run gives, or where a run that writes looks; with a picture or page.

    A picture of a writer always goes somewhere; of a classifier it is written to `output` alone, .svg, .png or .html.
    """
    pretrained.quiet()
    options = {"--text": asked.texts, "--text-pair": asked.pairs, "--target": [asked.target]}
    for option, texts in options.items():
        for text in texts:
            check_text(option, text)
    folder, module, config = trained(run, asked.reading)
    as_page = output is not None and Path(output).suffix.lower() == ".html"
    if hasattr(module, "explain"):
        if as_page:
            what = f"--output {output}: a run that writes has a picture; give a name in .svg or .png"
            raise UserError(Exit.USAGE, what)
        _refuse(run, "writes texts", asked, ("pairs", "file", "label", "steps"))
        if len(asked.texts) != 1:
            raise UserError(Exit.USAGE, f"{run} writes texts: give one --text at a time")
        return _explain_writer(run, folder, module, config, asked, output)
    if not isinstance(config.data, DataConfig):
        does = "writes texts with another model" if isinstance(config.data, PairsConfig) else "gives no labels"
        what = f"{run} {does}; explain reads runs that label texts, or of the recipe seq2seq"
        raise UserError(Exit.USAGE, f"{what}\nof any BERT or GPT-2: --attention, or --word WORD")
    _refuse(run, "labels texts", asked, ("target",))
    inputs = _asked_rows(run, config, asked)
    if output is not None and not as_page and len(inputs) > 1:
        raise UserError(Exit.USAGE, f"--output {output}: a picture is of one text; of several give a name in .html")
    found = reporting.explain(folder, inputs, config, asked.label, asked.steps)
    if output is not None and as_page:
        write_atomic(Path(output), page.attribution_page(run, found).encode())
    elif output is not None:
        figure, told = attribution.attribution_figure(found[0])
        pictures.save(figure, Path(output), told)
    alone = len(found) == 1 and asked.file is None
    rows = [attribution.attribution_json(one) for one in found]
    written = [] if output is None else [line("written", output)]
    return Shown(
        rows[0] if alone else rows,
        lambda coloured: [text for one in found for text in attribution.attribution_lines(one, coloured)] + written,
    )


def show_attention(run: str, text: str, output: str | None = None) -> Shown:
    """Show where each head of a BERT, GPT-2 or the like looks while it reads a text, as a picture and in figures."""
    check_text("--text", text)
    body = _body(run)
    found = attention(body, text)
    path = _picture(run, "attention", text) if output is None else Path(output)
    with _picture_folder(path):
        representations.draw_heads(found, path)
    return Shown(representations.heads_json(found, path), lambda _: representations.heads_lines(found, path))


def show_word(
    run: str, word: str, contexts: Sequence[str] | str, *, layer: int | None = None, output: str | None = None
) -> Shown:
    """Show how near the vectors of a word lie in several contexts, given or from a file of one a line."""
    check_text("--word", word)
    if isinstance(contexts, str):
        contexts = read_rows("contexts", contexts, TextDataConfig(documents="line")).texts()
    for text in contexts:
        check_text("--text", text)
    body = _body(run)
    found = word_in_contexts(body, word, contexts, layer)
    path = _picture(run, "word", "\0".join([word, str(found.layer), *contexts])) if output is None else Path(output)
    with _picture_folder(path):
        representations.draw_contexts(found, path)
    return Shown(representations.contexts_json(found, path), lambda _: representations.contexts_lines(found, path))


def _explain_writer(run: str, folder: Run, module: ModuleType, config: Any, asked: Asked, output: str | None) -> Shown:
    found: Explanation = module.explain(config, folder, asked.texts[0], asked.target)
    explanation.say_cut(folder, config, found)
    picture = _picture(run, "", f"{found.source}\0{found.text}") if output is None else Path(output)
    with _picture_folder(picture):
        left_out = explanation.draw(found, picture)
    if left_out is not None:
        folder.say("note", left_out)
    return Shown(explanation.explanation_json(found, picture), lambda _: explanation.explanation_lines(found, picture))


def _refuse(run: str, does: str, asked: Asked, fields: Sequence[str]) -> None:
    """Raise UserError (2) for what was asked for and is not for a run that does something else."""
    names = {"pairs": "--text-pair", "file": "--input"}
    for name in fields:
        if getattr(asked, name) not in (None, (), []):
            raise UserError(Exit.USAGE, f"{names.get(name, f'--{name}')} is not for {run}, which {does}")


def _asked_rows(run: str, config: Any, asked: Asked) -> Split:
    """Return the texts or pairs to explain as rows, from the options or from a file."""
    if asked.file is not None:
        return read_rows("input", asked.file, dataclasses.replace(config.data, on_empty="error"), gold=False)
    if asked.pairs and config.data.text_pair_column is None and (Path(run) / "config.yaml").is_file():
        raise UserError(Exit.USAGE, f"--text-pair: {run} was trained on single texts; leave it out")
    paired = config.data.text_pair_column is not None or bool(asked.pairs)
    if paired and len(asked.pairs) != len(asked.texts):
        what = f"{count(len(asked.texts), '--text')} and {count(len(asked.pairs), '--text-pair')}"
        raise UserError(Exit.USAGE, f"{run} reads pairs of texts; give a --text-pair for each --text ({what})")
    columns = {"text": asked.texts} | ({"text_pair": asked.pairs} if paired else {})
    return from_columns("--text", columns)


def _body(run: str) -> pretrained.Encoder:
    """Load the body of a run's model, or of a folder or name; raises UserError (2) where there is none."""
    pretrained.quiet()
    if not (Path(run) / "config.yaml").is_file():
        return pretrained.load_encoder(run)
    folder = trained(run, ())[0]
    stored = folder.model / "config.json"
    kind = read_json(stored) if stored.is_file() else {}
    if not kind or kind.get("is_encoder_decoder") or kind.get("model_type") == "finetune_seq2seq":
        what = "TF-IDF, which has neither attention nor vectors" if not kind else "an encoder-decoder"
        raise UserError(Exit.USAGE, f"{run} is {what}; --attention and --word are for a BERT or GPT-2")
    return pretrained.load_encoder(str(folder.model))


def _picture(run: str, kind: str, content: str) -> Path:
    """Return where the picture of an explanation goes: into the run; beside the person for a model that is no run."""
    name = hashlib.sha256(content.encode()).hexdigest()[:8]
    name = f"{kind}-{name}" if kind else name
    is_run = (Path(run) / "config.yaml").is_file()
    return (Path(run) / "explain" / f"{name}.svg") if is_run else Path(f"explain-{name}.svg")


@contextlib.contextmanager
def _picture_folder(path: Path) -> Iterator[None]:
    with disk_errors(path.parent):
        path.parent.mkdir(exist_ok=True)
        yield
