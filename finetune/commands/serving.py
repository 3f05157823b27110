"""Make a page to try a run."""

import importlib
from pathlib import Path

from finetune import pretrained, trial
from finetune.causal.corpus import TextDataConfig
from finetune.commands.machine import EXTRAS
from finetune.commands.runs import trained
from finetune.errors import Exit, UserError
from finetune.playground import Served, serve
from finetune.pretraining.corpus import CorpusConfig
from finetune.run import Run


def playground(run: str, host: str = "127.0.0.1", port: int | None = None) -> Served:
    """Make a page to try a run, or a plain model folder; port None: 7860, or the next that is free.

    The model is asked once before, so that a damaged one is told here. Raises UserError: 66 without gradio, 2 for a
    pretraining, 74 where the port cannot be had.
    """
    if importlib.util.find_spec(EXTRAS["playground"]) is None:
        what = "the playground needs gradio, which is not installed"
        raise UserError(Exit.NO_INPUT, f"{what}: pip install 'finetune-recipes[playground]'")
    pretrained.quiet()
    folder, module, config = trained(run, ())
    if isinstance(config.data, CorpusConfig):
        what = f"{run} is a pretraining; the playground is for runs that label texts or write them"
        raise UserError(Exit.USAGE, f"{what}\nthis one fills gaps: finetune predict {run}")
    known = trial.known(Run.open(run) if Path(run).is_dir() else folder, folder)
    if isinstance(config.data, TextDataConfig):
        return serve(known, trial.going_on(folder, config, lambda settings: trained(run, settings)[2]), host, port)
    asked = trial.answering(folder, module, config)
    asked.answer(known.examples[0] if known.examples else ["text"] * len(asked.columns))
    return serve(known, asked, host, port)
