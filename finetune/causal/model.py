"""A decoder-only language model: made from a shape or a checkpoint, its loss summed over predicted tokens, saved."""

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from finetune import adapters, cpu, hardware, pretrained
from finetune.causal.packing import IGNORED, document_mask
from finetune.config import configclass, field
from finetune.data.batching import Batch
from finetune.errors import Exit, UserError
from finetune.run import read_json
from finetune.seq2seq.loss import summed_cross_entropy

Count = Annotated[int, Field(gt=0)]
Chance = Annotated[float, Field(ge=0, lt=1)]
LOGIT_SCALINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # Gemma 2, Cohere, Granite
WRITERS = ("LMHeadModel", "ForCausalLM")  # ends of the class names of models that go on from a text


@configclass
class DropoutConfig:
    """What is dropped in training, and how weights are saved."""

    dropout: Chance | None = field(
        None, "of embeddings, attention and layers in training; null: the model's own, 0.1 with random weights"
    )
    save_dtype: Literal["float32", "float16"] = field("float32", "numbers of the saved weights; loaded as float32")


@configclass
class ShapeConfig(DropoutConfig):
    """The shape of a model with random weights."""

    hidden_size: Count = field(256, "width; this and the next three are for random weights, and refused with a model")
    num_hidden_layers: Count = field(6, "layers")
    num_attention_heads: Count = field(4, "heads of a layer")
    max_position_embeddings: Count | None = field(
        None, "longest text that the model can ever read, in tokens; null: max_length, none that training never reaches"
    )


class LanguageModel(nn.Module):
    """A decoder with output layer; `forward` returns a loss summed over predicted tokens."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: Tensor, places: Tensor, gold: Tensor, position_ids: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return the cross-entropy, in nats, of the predicted tokens, summed.

        input_ids (batch, time); places of the predicted tokens in the flattened batch, and these tokens, gold,
        (places,) each. `smoothing` is the probability that the target spreads over the vocabulary.
        """
        states = self.states(input_ids, position_ids).flatten(0, 1)[places]
        output = self.network.get_output_embeddings()
        if output.bias is None:
            return summed_cross_entropy(states, output.weight, gold, smoothing)
        return functional.cross_entropy(output(states).float(), gold, reduction="sum", label_smoothing=smoothing)

    def states(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Return the states below the output layer, (batch, time, dim); no token sees another document's.

        Without position_ids a row is one document, and attention takes its faster causal form.
        """
        mask = None if position_ids is None else document_mask(position_ids)
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        states: Tensor = self.network.base_model(**inputs, attention_mask=mask).last_hidden_state
        return states

    def losses(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, in nats, of each label, (batch, time), 0 where ignored; a row is a document."""
        logits = self.network.get_output_embeddings()(self.states(input_ids)).float()
        return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def loss(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Return the loss of a batch, summed over its predicted tokens."""
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
    total: Tensor = model(**inputs, smoothing=smoothing)
    return total


@dataclasses.dataclass(frozen=True)
class Start:
    """A language model with its tokenizer, and where both come from."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    identity: str
    fresh: bool  # weights are random

    @property
    def end(self) -> int:
        """Return the number of the end-of-text token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def context(self) -> int:
        """Return how many tokens the model can read."""
        return pretrained.context_limit(self.model.network.config, self.tokenizer)

    @property
    def width(self) -> int:
        """Return the hidden size."""
        return int(self.model.network.config.hidden_size)

    @property
    def parameters(self) -> int:
        """Return the number of parameters; output layer and embeddings are one where they are tied."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def kind(self) -> str:
        """Return the family as it is written in sentences: `GPT-2`."""
        kind = str(self.model.network.config.model_type)
        return "GPT-2" if kind == "gpt2" else kind

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return f"{self.name} · {adapters.described(self.model)}"

    def save(self, folder: Path, config: DropoutConfig, settings: dict[str, Any]) -> None:
        """Write weights, config and tokenizer, which AutoModelForCausalLM and AutoTokenizer load.

        `settings` are those of the recipe that a plain model folder is used with.
        """
        network = self.model.network
        pretrained.remember_settings(network, settings)
        saved = copy.deepcopy(network).half() if config.save_dtype == "float16" else network
        pretrained.save_model(saved, folder)
        self.tokenizer.save_pretrained(folder)


def from_random(config: ShapeConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Start:
    """Make a GPT-2 with random weights; raises UserError (2) where its heads do not divide its width."""
    if config.hidden_size % config.num_attention_heads:
        what = f"network.hidden_size={config.hidden_size} is no multiple of"
        raise UserError(Exit.USAGE, f"{what} network.num_attention_heads={config.num_attention_heads}")
    torch.manual_seed(seed)  # the first weights are part of the seed
    end = tokenizer.eos_token_id
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_embd=config.hidden_size, n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads, n_positions=config.max_position_embeddings, bos_token_id=end,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    name = f"GPT-2 {config.num_hidden_layers} x {config.hidden_size}, random weights"
    return _prepared(Start(LanguageModel(GPT2LMHeadModel(shape)), tokenizer, name, f"seed:{seed}", True), config)


def from_checkpoint(source: pretrained.Source, config: DropoutConfig) -> Start:
    """Take weights and tokenizer of a checkpoint; raises UserError (65) where it writes no text."""
    return _prepared(load(source), config)


def load(source: pretrained.Source) -> Start:
    """Load a language model with its tokenizer; raises UserError (65) where it is none, or its text has no end."""
    tokenizer = pretrained.load_tokenizer(source)
    made_as = pretrained.class_named(read_json(Path(source.path) / "config.json"))
    if not made_as.endswith(WRITERS):
        what = f"model={source.name} is {made_as or 'without an output layer'}, no decoder-only language model"
        raise UserError(Exit.BAD_DATA, f"{what}; give GPT-2 or its kin, e.g. model=openai-community/gpt2")
    if tokenizer.eos_token_id is None:
        raise UserError(
            Exit.BAD_DATA, f"model={source.name}: its tokenizer has no end-of-text token; set eos_token in its folder"
        )
    network = pretrained.load_model(AutoModelForCausalLM, source, tokenizer)
    _check_kin(network, source.name)
    return Start(LanguageModel(network), tokenizer, source.name, source.identity, fresh=False)


def _check_kin(network: PreTrainedModel, name: str) -> None:
    """Refuse a decoder whose loss would be wrong here: raises UserError (65)."""
    kind, settings = type(network).__name__, network.config.to_dict()
    fault = ""
    if "position_ids" not in inspect.signature(network.base_model.forward).parameters:
        fault = f"{kind} takes no positions: packed documents would see each other"
    for scaling in LOGIT_SCALINGS:
        if settings.get(scaling) not in (None, 1):
            fault = f"{kind} scales its logits ({scaling}={settings[scaling]}), which the loss here leaves out"
    if fault:
        raise UserError(
            Exit.BAD_DATA, f"model={name}: {fault}\ngive GPT-2 or its kin, e.g. model=openai-community/gpt2"
        )


def load_trained(folder: Path) -> Start:
    """Load the model of a run, or a plain model folder, to score and to write with."""
    start = load(pretrained.locate(str(folder)))
    cpu.prepare(start.model.network)
    start.model.eval().to(hardware.device_type(use_cpu=False))
    return start


def auto_learning_rate(width: int, fresh: bool) -> float:
    """Return a peak rate: 1e-3 at a width of 256 for random weights, less for wide models.

    A tenth of it for a checkpoint, whose knowledge is to be kept.
    """
    rate = 1e-3 * (256 / width) ** 0.5 * (1.0 if fresh else 0.1)
    return float(f"{min(1e-3, rate):.1g}")


def _prepared(start: Start, config: DropoutConfig) -> Start:
    network = start.model.network
    # What the checkpoint was used for: save_pretrained writes what it becomes.
    network.config.task_specific_params = None
    if config.dropout is not None:
        # Of the modules and not of the config, which is saved: the next recipe has its own wishes.
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    cpu.prepare(network)
    return start
