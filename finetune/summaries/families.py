"""Which kind of model learns to summarise: one table from a family to what begins and what loads it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import adapters, generation, hardware, pretrained
from finetune.causal.model import WRITERS
from finetune.config import refuse_for_model, to_tree
from finetune.data.columns import Split
from finetune.errors import Exit, UserError
from finetune.generation import GenerationConfig
from finetune.run import read_json
from finetune.summaries import encoder_decoders, prompts, scratch
from finetune.summaries.long_texts import OnLong
from finetune.summaries.writer import Settings, Writer
from finetune.trainer import TrainConfig

RECIPE = "summarization"
READ_BY = {  # setting -> what reads it
    "encoder": "architecture=bert2gpt",
    "decoder": "architecture=bert2gpt",
    "model_language": "model=NAME of mBART or its kin",
}


@dataclass(frozen=True)
class Family:
    """How a writer is made before its first update, and how it is read back from its folder."""

    begin: Callable[[Settings, Split], Writer]
    load: Callable[[Settings, Path], Writer]


FAMILIES: dict[str, Family] = {
    "seq2seq": Family(scratch.begin, scratch.load),
    "bert2gpt": Family(lambda settings, train: encoder_decoders.begin_joined(settings), encoder_decoders.load),
    "encoder-decoder": Family(lambda settings, train: encoder_decoders.begin(settings), encoder_decoders.load),
    "decoder": Family(lambda settings, train: prompts.begin(settings), prompts.load),
}


def begin(settings: Settings, train: Split) -> Writer:
    """Make the writer that is asked for; raises UserError: 2 where settings exclude each other, else as its family."""
    if settings.architecture != "auto" and settings.model is not None:
        what = f"architecture={settings.architecture} begins without model={settings.model}"
        raise UserError(Exit.USAGE, f"{what}; give one of the two")
    adapters.check(settings.peft, settings.model)
    if settings.architecture == "seq2seq":
        _refuse_unread(settings, "architecture=seq2seq", READ_BY)
    else:
        reader = f"encoder={settings.encoder}" if settings.model is None else f"model={settings.model}"
        refuse_for_model(reader, "network", settings.network)
        refuse_for_model(reader, "vocabulary", settings.vocabulary)
    if settings.architecture != "auto":
        return FAMILIES[settings.architecture].begin(settings, train)
    if settings.model is None:
        what = "which model? give model=NAME (BART, T5, GPT-2 or their kin), architecture=seq2seq (from scratch)"
        raise UserError(Exit.USAGE, f"{what}\nor architecture=bert2gpt with encoder=NAME and decoder=NAME")
    _refuse_unread(settings, f"model={settings.model}", ("encoder", "decoder"))
    family = _family_of(settings.model, Path(pretrained.locate(settings.model).path))
    if family == "decoder":
        _refuse_unread(settings, f"model={settings.model}", ("model_language",))
    if family == "seq2seq":
        what = f"model={settings.model} is one of the project's own models, which begin from scratch"
        raise UserError(Exit.USAGE, f"{what}; give architecture=seq2seq without model")
    return FAMILIES[family].begin(settings, train)


def load(settings: Settings, folder: Path) -> Writer:
    """Load the writer of a finished run, or of a plain model folder."""
    return FAMILIES[_family_of(str(folder), folder)].load(settings, folder)


def resolve(config: TrainConfig, writer: Writer, decides: str) -> TrainConfig:
    """Return the settings with every `auto` replaced: rate and passes by family, the task's score, precision."""
    asked, epochs, best = config.learning_rate, config.num_train_epochs, config.metric_for_best_model
    rate = adapters.auto_learning_rate(writer.learning_rate, writer.model)
    automatic = 1.0 if config.lr_scheduler_type == "noam" else rate  # of noam a factor
    return replace(
        config,
        learning_rate=automatic if asked == "auto" else asked,
        num_train_epochs=writer.epochs if epochs == "auto" else epochs,
        metric_for_best_model=decides if best == "auto" else best,
        mixed_precision=hardware.choose_precision(config.mixed_precision, config.use_cpu).value,
    )


def loop_settings() -> TrainConfig:
    """Return the loop's settings: small updates, because a pair is long."""
    return TrainConfig(per_device_train_batch_size=16, metric_for_best_model="auto")


def writing_settings() -> GenerationConfig:
    """Return how summaries are written: a search with four beams in which no three tokens come twice (Lewis 2020)."""
    return GenerationConfig(max_new_tokens=128, num_beams=4, no_repeat_ngram_size=3, temperature=0.0)


def greedy(config: GenerationConfig) -> GenerationConfig:
    """Return the same settings without a search, for looks during training."""
    return replace(config, num_return_sequences=1, num_beams=1, temperature=0.0)


def remembered(settings: Settings, writer: Writer, on_long: OnLong) -> dict[str, Any]:
    """Return the settings that a plain model folder is used with."""
    return {
        "recipe": RECIPE, "task": settings.task, "language": settings.language, "data.on_long": on_long,
        "max_source_length": writer.lengths.source, "max_target_length": writer.lengths.target,
        "source_prefix": writer.prefix, "prompt_end": settings.prompt_end, "model_language": settings.model_language,
    } | generation.remembered(settings.generation, writing_settings())  # fmt: skip


def _refuse_unread(settings: Settings, given: str, names: Iterable[str]) -> None:
    """Refuse settings that are not as they come and that nothing would read beside `given`; raises UserError (2)."""
    asked, usual = to_tree(settings), to_tree(type(settings)())
    for name in names:
        if asked[name] != usual[name]:
            what = f"{name}={asked[name]} is not read with {given}"
            raise UserError(Exit.USAGE, f"{what}; give {READ_BY[name]}, or leave it out")


def _family_of(name: str, folder: Path) -> str:
    """Return the family of a checkpoint from its config; raises UserError (65) where it writes no text."""
    stored = read_json(folder / "config.json")
    if stored.get("model_type") == "finetune_seq2seq":
        return "seq2seq"
    made_as = pretrained.class_named(stored)
    if made_as.endswith(encoder_decoders.ANSWERING):
        return "encoder-decoder"
    if made_as.endswith(WRITERS):
        return "decoder"
    what = f"model={name} ({made_as or 'of no known class'}) writes no text; give BART, T5, GPT-2 or their kin"
    raise UserError(Exit.BAD_DATA, f"{what}\nor, to read with it, architecture=bert2gpt encoder={name}")
