"""Score, label and translate new rows with a finished run."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune import pretrained, text_evaluation
from finetune.causal import perplexity
from finetune.causal.corpus import TextDataConfig
from finetune.commands.runs import read_rows, trained
from finetune.data import patterns
from finetune.data.check import leaks
from finetune.data.columns import from_lines
from finetune.data.sequences import PairsConfig
from finetune.errors import Exit, UserError
from finetune.evaluation import Predictions, score
from finetune.pretraining import scoring
from finetune.pretraining.corpus import CorpusConfig
from finetune.pretraining.scoring import Tally
from finetune.report import languages, page
from finetune.run import write_atomic


def evaluate(run: str, data: str, *, drop_leaked: bool = False, reading: Sequence[str] = ()) -> dict[str, Any]:
    """Score a run on a labelled file that training never saw: {"rows", "left_out", "skipped", "scores", "languages"}.

    A run that writes texts takes a pattern with {language}, too; "languages" has the scores of each. `reading` are
    settings of data that differ from the run's, e.g. `data.text_column=body`.
    """
    pretrained.quiet()
    folder, module, config = trained(run, reading)
    if patterns.is_pattern(data) and not isinstance(config.data, PairsConfig):
        what = f"--data {data} is a pattern of several languages, and evaluate scores one file"
        raise UserError(Exit.USAGE, f"{what}; give one, or: finetune crosslingual {run} --data '{data}'")
    split = read_rows("test", data, config.data)
    left_out = 0
    if drop_leaked:
        before = trained(run, ())[2].data
        if isinstance(before, CorpusConfig):
            raise UserError(Exit.USAGE, "--drop-leaked: of a pretraining run, keep texts out of train by data.held_out")
        if before.train is None:
            raise UserError(Exit.USAGE, f"--drop-leaked: {run} does not name a training file to look for texts in")
        files = before.train
        if patterns.is_pattern(files) and not isinstance(before, PairsConfig):
            sources = folder.results()["diagnostics"]["train_languages"]
            files = [file for source in sources for file in patterns.expand("data.train", files, source)]
        leaked = set(leaks(read_rows("train", files, before), [split])[0].tolist())
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
    folder, module, config = trained(run, reading)
    if isinstance(config.data, PairsConfig):
        raise UserError(Exit.USAGE, f"{run} writes texts; crosslingual scores runs that label them")
    if isinstance(config.data, CorpusConfig):
        what = f"{run} is a pretraining; crosslingual scores runs that label texts"
        raise UserError(Exit.USAGE, f"{what}\nmake one: finetune train mbert_crosslingual model={folder.model} ...")
    asked = patterns.languages_of("--data", data) if codes is None else patterns.check_codes("--languages", codes)
    if not asked:
        raise UserError(Exit.NO_INPUT, f"--data {data}: no language has such a file")
    files = {language: patterns.files_of("--data", data, language, "--languages") for language in asked}
    tests = {language: read_rows(language, files[language], config.data) for language in asked}
    predictions = module.evaluate(config, folder, patterns.join("test", tests))
    # What the run was trained on is read as the run read it, whatever `reading` says of the new files.
    as_trained = trained(run, ())[2]
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
        reading = [*reading, *_search_settings(trained(run, ())[2], beams, texts)]
    folder, module, config = trained(run, reading)
    if isinstance(config.data, CorpusConfig):
        split = read_rows("input", input, config.data) if isinstance(input, str) else from_lines("stdin", input)
    elif isinstance(config.data, TextDataConfig) and not isinstance(input, str):
        split = from_lines("stdin", input, "source" if config.data.has_prompts else "text")
    elif isinstance(input, str):
        split = read_rows("input", input, dataclasses.replace(config.data, on_empty="error"), gold=False)
    elif isinstance(config.data, PairsConfig):
        split = from_lines("stdin", input, "source")
    elif config.data.text_pair_column is not None:
        raise UserError(Exit.USAGE, f"{run} was trained on pairs of texts; give a file: --input FILE")
    else:
        split = from_lines("stdin", input)
    rows: list[dict[str, Any]] = module.predict(config, folder, split)
    return rows


def _search_settings(config: Any, beams: int | None, texts: int | None) -> list[str]:
    """Return the settings of a search in the words of a recipe; raises UserError (2) for runs that label."""
    if not hasattr(config, "search") and not hasattr(config, "generation"):
        raise UserError(Exit.USAGE, "--beam-size and --n-best are for runs that write texts; this one labels them")
    of_beams = "search.beam_size" if hasattr(config, "search") else "generation.num_beams"
    given = {of_beams: beams, f"{of_beams.partition('.')[0]}.num_return_sequences": texts}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


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
