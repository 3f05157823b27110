"""Go on from prompts with a language model, and describe what it wrote."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from finetune import pretrained
from finetune.causal import routes
from finetune.causal.corpus import TextDataConfig
from finetune.commands.runs import check_encoding, read_rows, trained
from finetune.errors import Exit, UserError
from finetune.report import writing
from finetune.terminal import count


def generate(
    run: str, prompts: Sequence[str] | str, reading: Sequence[str] = (), tell: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Go on from prompts, or from the texts of a file: {"prompt", "between", "seed", "texts", "seconds"} of each.

    `between` stands between a prompt and its completion, in a run that learnt completions. `reading` are settings that
    differ from the run's, e.g. `generation.temperature=0.8`. `tell` is given the pieces of the only text as they are
    written.
    """
    pretrained.quiet()
    folder, _, config = trained(run, ())
    if not isinstance(config.data, TextDataConfig):
        what = f"{run} does not go on from a prompt; generate reads runs of gpt2_generation and gpt2_pretraining"
        raise UserError(Exit.USAGE, f"{what}\nthis one answers: finetune predict {run}")
    _, _, config = trained(run, reading)
    settings = config.generation
    if isinstance(prompts, str):
        split = read_rows("input", prompts, dataclasses.replace(config.data, on_empty="error"), gold=False)
        prompts = routes.asked_of(split, config.data)
    for prompt in prompts:
        check_encoding("--prompt", prompt)
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
    folder, _, config = trained(run, ())
    train = None
    if config.data.train is None and config.data.name is not None:
        folder.say("note", f"train came from the Hub ({config.data.name}): what is copied from it is not counted")
    if config.data.train is not None:
        try:
            split = read_rows("train", config.data.train, config.data)
        except UserError as error:  # which must not cost the texts
            why = str(error).partition("\n")[0]
            folder.say("warning", f"{why}: what is copied from train is not counted")
        else:
            train, share = routes.affordable(split.targets() if config.data.has_prompts else split.texts())
            if share < 1:
                folder.say("note", f"what is copied is looked for in {100 * share:.3g} % of train, parts of all of it")
    return writing.figures_of(texts, train)
