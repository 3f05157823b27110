"""Adapters through peft: few new weights beside a checkpoint's frozen ones; saved alone, attached again, merged."""

import copy
import dataclasses
import importlib.util
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.config import configclass, field
from finetune.errors import Exit, UserError, did_you_mean
from finetune.run import read_json
from finetune.terminal import size as size_of

CONFIG = "adapter_config.json"  # peft's names of its two files
WEIGHTS = "adapter_model.safetensors"
GENERATION = "generation_config.json"
BASE = "adapter_base"  # in config.json: what the adapter stands on
NAME = "default"  # peft's name of a model's only adapter
PREFIX = "base_model.model."  # of peft's names of tensors in a file
TASKS = {  # ends of class names -> peft's tasks; a class without one is named itself
    "ForSequenceClassification": "SEQ_CLS", "LMHeadModel": "CAUSAL_LM", "ForCausalLM": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM", "MTModel": "SEQ_2_SEQ_LM", "EncoderDecoderModel": "SEQ_2_SEQ_LM",
    "Seq2SeqModel": "SEQ_2_SEQ_LM",
}  # fmt: skip
# What peft's tables lack; queries and values as in LoRA's paper (Hu et al. 2022, section 4.2).
TARGETS = {
    "distilbert": ["q_lin", "v_lin"], "mbart": ["q_proj", "v_proj"], "marian": ["q_proj", "v_proj"],
    "pegasus": ["q_proj", "v_proj"],
}  # fmt: skip
# Queries, keys and values of the project's Transformer are one parameter, and its recurrences are fused: what is left
# is what reads them. The input of `attention.output` is linear in the values.
OWN_TARGETS = {
    "transformer": ["attention.output", "cross_attention.output", "widen", "narrow"],
    "rnn": ["readout", "bridges.0", "bridges.1", "bridges.2"],
}  # fmt: skip
OWN_SCALED = {"transformer": ["attention.output", "cross_attention.output", "narrow"], "rnn": ["readout"]}
ALL_LINEAR = "all-linear"
MOST_NAMES = 6  # layers that are told one by one
# The rate of an adapter: times that for all weights, at most. 10 times is what Schulman et al. 2025 ("LoRA without
# regret") found best for LoRA over many models. IA3 is measured with minilm on the 420 English rows of data/tickets,
# macro-F1 on validation, best of three epochs (42 updates): times 30, 100 has 0.15, 0.46.
AUTO_RATES = {"LORA": (10.0, 1e-3), "IA3": (100.0, 1e-2)}
# The rate of a head that is trained whole, times that of the adapter: it begins with random weights, the adapter beside
# good ones. Measured with minilm, LoRA of rank 8, rate of the adapter / of the head. banking77, test accuracy: 3e-3 for
# both 0.915, 6e-3 for both 0.910, 1e-3 / 6e-3 0.923. umsab, macro-F1 on validation: 3e-3 for both 0.676, 2e-3 / 6e-3
# 0.727, 1e-3 / 6e-3 0.742 (on test 0.675, 0.660, 0.659). data/tickets as above: 3e-3 for both 0.44, 1e-3 / 6e-3 0.42.
HEAD_TIMES = {"LORA": 6.0, "IA3": 1.0}
TOLERANCE = 1e-4  # of a probability, between a model with its adapter and the merged one, in fp32
BYTES_OF_TRAINED = 16  # fp32 weight, gradient, and AdamW's two moments


@configclass
class AdapterConfig:
    """What is trained in place of a checkpoint's own weights."""

    adapter: Literal["none", "lora", "dora", "ia3"] = field(
        "none", "freeze the checkpoint and train few new weights beside it, saved without it; none: train its own"
    )
    rank: Annotated[int, Field(gt=0)] = field(8, "lora, dora: rank of the change of each weight matrix")
    alpha: Annotated[float, Field(gt=0)] = field(16.0, "lora, dora: the change is multiplied by alpha / rank")
    adapter_dropout: Annotated[float, Field(ge=0, lt=1)] = field(
        0.0, "lora, dora: share of their input that new weights do not see in training"
    )
    target_modules: list[str] | None = field(
        None, "ends of the names of adapted layers, e.g. [query,value] or [all-linear]; null: by architecture"
    )


@dataclasses.dataclass(frozen=True)
class Base:
    """What an adapter stands on: the name and identity by which we find it, and where transformers does."""

    name: str
    identity: str
    path: str
    revision: str | None


def check(config: AdapterConfig, model: str | None) -> None:
    """Refuse settings that nothing would read, and an adapter without a checkpoint `model`; raises UserError (2)."""
    plain, kind = AdapterConfig(), config.adapter
    names = {item.name for item in dataclasses.fields(plain)} - {"adapter"}
    unread = {"none": names, "ia3": names - {"target_modules"}}.get(kind, set())
    for name in sorted(unread):
        value = getattr(config, name)
        if value != getattr(plain, name):
            what = f"{name}={value} is not read with adapter={kind}"
            raise UserError(Exit.USAGE, f"{what}; give adapter=lora, or leave it out")
    if kind != "none" and model is None:
        what = f"adapter={kind} trains few weights beside a checkpoint's; random weights would stay random"
        raise UserError(Exit.USAGE, f"{what}\ngive model=NAME, or adapter=none")


def auto_learning_rate(rate: float, model: nn.Module) -> float:
    """Return the rate that `auto` stands for: `rate`, which is for all weights, or a multiple of it for an adapter."""
    settings = _settings(model)
    return rate if settings is None else rate_of(settings.peft_type, rate)


def head_times(model: nn.Module) -> float:
    """Return how many times the rate of the adapter a head beside it learns at; 1 where there is no adapter."""
    settings = _settings(model)
    return 1.0 if settings is None else HEAD_TIMES[settings.peft_type]


def rate_of(kind: str, rate: float) -> float:
    """Return the rate of an adapter, `LORA` or `IA3`, where it would be `rate` for all weights."""
    times, most = AUTO_RATES[kind]
    return float(f"{min(most, rate * times):.1g}")


def wrap(network: PreTrainedModel, config: AdapterConfig, base: Base, new: Collection[str]) -> None:
    """Freeze a network and put an adapter into it; what it computes does not change before it is trained.

    `new` are the names of parameters that the checkpoint lacks: the modules that own them, and the head of a
    classifier, are trained and saved whole. Raises UserError: 2 for layers that cannot be adapted, 66 without peft.
    """
    peft = _peft()
    whole = _whole_modules(network, new)
    targets = _targets(network, config, whole)
    matched = _matched(network, targets)
    settings: dict[str, Any] = {
        "task_type": next((task for end, task in TASKS.items() if type(network).__name__.endswith(end)), None),
        "target_modules": targets, "modules_to_save": whole or None, "revision": base.revision,
        "fan_in_fan_out": any(isinstance(network.get_submodule(name), Conv1D) for name in matched),
    }  # fmt: skip
    if config.adapter == "ia3":
        scaled = _scaled_inputs(network)
        inputs = [name for name in targets if any(_ending([name], end) for end in scaled)]
        made = peft.IA3Config(feedforward_modules=inputs, **settings)
    else:
        made = peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.adapter_dropout,
            use_dora=config.adapter == "dora", **settings,
        )  # fmt: skip
    with _unheard():
        peft.inject_adapter_in_model(made, network, adapter_name=NAME)
    made.base_model_name_or_path = base.path
    setattr(network.config, BASE, {"name": base.name, "identity": base.identity})


def is_adapted(model: nn.Module) -> bool:
    """Say whether a model, or what it wraps, has an adapter."""
    return _settings(model) is not None


def described(model: nn.Module, total: int | None = None) -> str:
    """Return the size of a model in words, and of one with an adapter what is trained and the memory that takes.

    `total` is the number of parameters where some do not count.
    """
    total = sum(parameter.numel() for parameter in model.parameters()) if total is None else total
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    text, settings = f"{total / 1e6:.1f} M parameters", _settings(model)
    if settings is None:
        return text
    share = f"{trained:,} trained ({100 * trained / total:.2g} %)"
    memory = size_of(BYTES_OF_TRAINED * trained)
    return f"{text} · {_named(settings)} · {share}, {memory} with gradients and moments"


def save(network: PreTrainedModel, folder: Path) -> None:
    """Write an adapter as peft does, with the whole model's config.json; the base stays where it is."""
    peft = _peft()
    settings = copy.copy(network.peft_config[NAME])
    wrappers = _wrappers(network)
    settings.inference_mode = True
    settings.modules_to_save = sorted(wrappers) or None
    settings.target_modules = sorted(settings.target_modules)  # a set has another order in each process
    if getattr(settings, "feedforward_modules", None):
        settings.feedforward_modules = sorted(settings.feedforward_modules)
    if settings.task_type is None:
        kind = type(network)
        settings.auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    tensors = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    kept = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)


def is_adapter(folder: Path) -> bool:
    """Say whether a model folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return name and identity of what an adapter's folder stands on; of folders from elsewhere no identity is known.

    Raises UserError (65) where the folder does not say it.
    """
    try:
        told, stored = read_json(folder / "config.json").get(BASE), dict(read_json(folder / CONFIG))
    except (OSError, ValueError, TypeError, AttributeError):
        raise UserError(Exit.BAD_DATA, f"{folder}: config.json or {CONFIG} is damaged; copy the folder again") from None
    if isinstance(told, Mapping) and isinstance(told.get("name"), str):
        return told["name"], told.get("identity")
    name, revision = stored.get("base_model_name_or_path"), stored.get("revision")
    if not isinstance(name, str) or not name:
        raise UserError(Exit.BAD_DATA, f"{folder / CONFIG} does not say which model the adapter stands on")
    return (f"{name}@{revision}" if revision else name), None


def attach(network: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a folder into its base, to be used; raises UserError (65) where the two do not fit."""
    peft = _peft()
    try:
        with _unheard():
            settings = peft.PeftConfig.from_pretrained(str(folder))
            if settings.peft_type not in {"LORA", "IA3"}:
                what = f"{folder} is an adapter of the kind {settings.peft_type}"
                raise UserError(Exit.BAD_DATA, f"{what}; finetune reads LoRA, DoRA and IA3")
            stored = load_file(folder / WEIGHTS)
            tensors = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
            peft.inject_adapter_in_model(settings, network, adapter_name=NAME)
            wanted = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
            strange = sorted(wanted.keys() ^ tensors.keys())
            if strange:
                what = f"{folder}: {WEIGHTS} is of another adapter than {CONFIG} (they differ in {strange[0]})"
                raise UserError(Exit.BAD_DATA, f"{what}; copy the folder again")
            peft.set_peft_model_state_dict(network, tensors, adapter_name=NAME)
            if (folder / GENERATION).is_file():
                network.generation_config = GenerationConfig.from_pretrained(folder)
    except SafetensorError as error:
        raise UserError(Exit.BAD_DATA, f"{folder / WEIGHTS} is damaged ({error}); copy the folder again") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(Exit.BAD_DATA, f"the adapter {folder} cannot be loaded: {first[:200]}") from None
    network.requires_grad_(False)


@torch.no_grad()
def merge(network: PreTrainedModel) -> None:
    """Add an adapter to the weights beside it: a plain model is left; raises UserError (65) where one is NaN."""
    _peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in [*network.named_modules()]:
        if not isinstance(module, BaseTunerLayer):
            continue
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise UserError(Exit.BAD_DATA, f"the adapter cannot be merged into {name}: {error}") from None
        _put(network, name, module.get_base_layer())
    for name, module in _wrappers(network).items():
        _put(network, name, module.modules_to_save[NAME])
    del network.peft_config
    forget_base(network)
    network.requires_grad_(True)


def forget_base(network: PreTrainedModel) -> None:
    """Take out of a model's config what an adapter stood on."""
    if hasattr(network.config, BASE):
        delattr(network.config, BASE)


@torch.inference_mode()
def largest_difference(
    first: PreTrainedModel, second: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]
) -> float:
    """Return the largest difference between the probabilities that two models give, over all places of all batches.

    Of encoders without an output layer, between their states.
    """
    worst = 0.0
    for batch in batches:
        one, other = (_answer(model, batch) for model in (first.eval(), second.eval()))
        real = batch["attention_mask"].bool() if one.shape[:-1] == batch["attention_mask"].shape else slice(None)
        gap = float((one - other)[real].abs().max())
        worst = gap if not gap <= worst else worst  # NaN, too
    return worst


def _answer(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the probabilities of a batch, or the states, (..., dim)."""
    output = model(**batch)
    if "logits" not in output:
        states: Tensor = output.last_hidden_state
        return states
    logits: Tensor = output.logits
    several = model.config.problem_type == "multi_label_classification"
    return logits.sigmoid() if several else logits.softmax(dim=-1)


# Which layers


def _whole_modules(network: PreTrainedModel, new: Collection[str]) -> list[str]:
    """Return the names of modules that are trained and saved whole: what the checkpoint lacks, a classifier's head.

    What is tied to other weights is left alone, for a copy of it would no longer be.
    """
    holders: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name)
    tied = {name for names in holders.values() if len(names) > 1 for name in names}
    owners = {name.rpartition(".")[0] for name in new if name not in tied}
    if type(network).__name__.endswith("ForSequenceClassification"):
        heads = (name for name, module in network.named_children() if any(True for _ in module.parameters()))
        owners |= {name for name in heads if name != network.base_model_prefix}
    owners.discard("")
    return sorted(name for name in owners if not any(name.startswith(f"{other}.") for other in owners))


def _targets(network: PreTrainedModel, config: AdapterConfig, whole: Collection[str]) -> list[str]:
    """Return the ends of names of the layers that are adapted; raises UserError (2) for none, or for wrong ones."""
    asked = config.target_modules
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    output = network.get_output_embeddings()
    closed = {name for name in linear if network.get_submodule(name) is output}
    closed |= {name for name in linear if any(f"{name}.".startswith(f"{other}.") for other in whole)}
    open_ = [name for name in linear if name not in closed]
    ends = sorted({name.rpartition(".")[2] for name in open_})
    if asked == [ALL_LINEAR]:
        return open_
    wanted = _usual(network, config.adapter) if asked is None else asked
    found = [end for end in wanted if _ending(open_, end)]
    missing = [] if asked is None else [end for end in wanted if end not in found]
    if missing or not found:
        kind = network.config.model_type
        what = f"target_modules={missing}: no" if missing else f"adapter={config.adapter}: no usual"
        hint = did_you_mean(missing[0], ends) if missing else ""
        raise UserError(
            Exit.USAGE, f"{what} layers of {kind} that can be adapted{hint} (known: {', '.join(ends)}, {ALL_LINEAR})"
        )
    names = [name for name, _ in network.named_modules()]
    # An end that also fits what is closed is spelt out.
    spelt = ([end] if {*_ending(names, end)} <= {*open_} else _ending(open_, end) for end in found)
    return [name for several in spelt for name in several]


def _usual(network: PreTrainedModel, kind: str) -> list[str]:
    """Return the layers that are adapted by default, by architecture: those of peft's tables, and what they lack."""
    from peft.utils import constants

    table = (
        constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if kind == "ia3"
        else TARGETS | constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    )
    found: list[str] = []
    for config in _ends(network):
        own = (OWN_SCALED if kind == "ia3" else OWN_TARGETS).get(getattr(config, "architecture", ""), [])
        found += own or table.get(config.model_type, [])
    return list(dict.fromkeys(found))


def _scaled_inputs(network: PreTrainedModel) -> list[str]:
    """Return the layers whose input IA3 scales, not their output."""
    from peft.utils import constants

    table = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    found: list[str] = []
    for config in _ends(network):
        found += OWN_SCALED.get(getattr(config, "architecture", ""), []) or table.get(config.model_type, [])
    return found


def _ends(network: PreTrainedModel) -> list[Any]:
    """Return the configs of an encoder joined to a decoder, else the one there is."""
    config = network.config
    return [config.encoder, config.decoder] if config.model_type == "encoder-decoder" else [config]


def _ending(names: Iterable[str], end: str) -> list[str]:
    return [name for name in names if name == end or name.endswith(f".{end}")]


def _matched(network: PreTrainedModel, targets: Iterable[str]) -> list[str]:
    names = [name for name, _ in network.named_modules()]
    return [name for end in targets for name in _ending(names, end)]


# peft


def _peft() -> Any:
    """Import peft, which takes seconds; raises UserError (66) where it is not installed."""
    if importlib.util.find_spec("peft") is None:
        what = "adapters need peft, which is not installed"
        raise UserError(Exit.NO_INPUT, f"{what}: pip install 'finetune-recipes[adapters]', or give adapter=none")
    with _unheard():
        import peft

    return peft


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep peft's warnings, which are for programmers, from the person."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _settings(model: nn.Module) -> Any:
    """Return peft's settings of a model's adapter, or None."""
    found = (vars(module).get("peft_config") for module in model.modules())
    return next((settings[NAME] for settings in found if settings), None)


def _named(settings: Any) -> str:
    """Return an adapter in words: `LoRA of rank 8 on query, value`, and the rate of a head beside it."""
    names, times = sorted(settings.target_modules), HEAD_TIMES[settings.peft_type]
    where = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} layers"
    if settings.modules_to_save and times != 1:
        where += f", a head at {times:g} times its rate"
    if settings.peft_type == "IA3":
        return f"IA3 on {where}"
    return f"{'DoRA' if settings.use_dora else 'LoRA'} of rank {settings.r} on {where}"


def _wrappers(network: nn.Module) -> dict[str, Any]:
    """Return the modules that are trained whole, each beside the one that it began as."""
    from peft.utils.other import ModulesToSaveWrapper

    return {name: module for name, module in network.named_modules() if isinstance(module, ModulesToSaveWrapper)}


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
