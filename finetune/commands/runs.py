"""What a name on the command line stands for: a recipe, a finished run, a model folder, a file of rows."""

import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune import config as configuration
from finetune import pretrained
from finetune.causal import corpus as documents
from finetune.causal.corpus import TextDataConfig
from finetune.causal.model import WRITERS
from finetune.data import columns, sequences
from finetune.data.columns import Split
from finetune.data.sequences import PairsConfig
from finetune.data.shipped import CHECKPOINTS, shipped
from finetune.errors import Exit, UserError, did_you_mean
from finetune.pretraining import corpus
from finetune.pretraining.corpus import CorpusConfig
from finetune.run import Run, read_json
from recipes import RECIPES

AS_LONG_AS_THE_MODEL_READS = 1_000_000


def recipe_module(name: str) -> ModuleType:
    """Import a recipe by name; raises UserError with the nearest name."""
    if name not in RECIPES:
        raise UserError(Exit.USAGE, f"no recipe {name}{did_you_mean(name, RECIPES)}; finetune recipes list")
    return importlib.import_module(f"recipes.{name}")


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


def trained(run: str, reading: Sequence[str]) -> tuple[Run, ModuleType, Any]:
    """Open a run, a plain model folder or a shipped checkpoint, with its recipe and configuration."""
    is_shipped = run in CHECKPOINTS and not Path(run).is_dir()
    folder = Run.open(shipped(f"checkpoints/{run}") if is_shipped else run)
    if not folder.config_file.is_file():
        module = recipe_module(recipe_of(folder.model))
        config, _ = configuration.load(module.Config, [*_settings_of(folder.model), *reading])
        return folder, module, config
    if folder.seeds():
        best = folder.results()["diagnostics"]["best_seed_on_validation"]
        return trained(str(folder.folder / f"seed-{best}"), reading)
    if not folder.model.is_dir():
        raise UserError(Exit.NO_INPUT, f"{run} has no model/: the run did not end; repeat its command with --resume")
    module = recipe_module(configuration.yaml_value(folder.config_file, "recipe") or "")
    config, _ = configuration.load(module.Config, list(reading), folder.config_file)
    return folder, module, config


def read_rows(name: str, files: str | list[str], config: Any, *, gold: bool = True) -> Split:
    """Read a file as the recipe of its settings does, with or without what is to be predicted."""
    if isinstance(config, PairsConfig):
        return sequences.read_split(name, files, config, with_targets=gold)
    if isinstance(config, CorpusConfig):
        return corpus.read_split(name, files, config)
    if isinstance(config, TextDataConfig):
        return documents.read_split(name, files, config, completed=gold)
    return columns.read_split(name, files, config, labelled=gold)


def check_text(option: str, text: str | None) -> None:
    if text is not None and not text.strip():
        raise UserError(Exit.BAD_DATA, f"{option} is empty; give a text")
    check_encoding(option, text or "")


def check_encoding(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeError as error:
        raise UserError(Exit.BAD_DATA, f"{option} is not UTF-8 ({error})") from None


def recipe_of(model: Path) -> str:
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
    if not stored and recipe_of(model) in {"bert_classification", "gpt2_generation"}:
        return [f"max_length={AS_LONG_AS_THE_MODEL_READS}"]
    return [f"{name}={_as_given(value)}" for name, value in stored.items() if value is not None]


def _as_given(value: Any) -> str:
    """Return a setting as on the command line; what stands in a list is read as YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
