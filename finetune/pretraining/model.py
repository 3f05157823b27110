"""The model of pretraining: BERT with an output layer, its losses, where its weights begin and how they are saved."""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune import adapters, cpu, pretrained
from finetune.config import configclass, field
from finetune.data.batching import Batch
from finetune.errors import Exit, UserError
from finetune.pretraining.alignment import mixed_rows
from finetune.pretraining.vocabulary import new_embeddings
from finetune.seq2seq.loss import summed_cross_entropy

ALIGNMENT = 8  # the bias of the output layer becomes a column of its matrix; tensor cores want multiples of this
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
Count = Annotated[int, Field(gt=0)]
Chance = Annotated[float, Field(ge=0, lt=1)]


@configclass
class ShapeConfig:
    """The shape of a model with random weights, and what is trained."""

    hidden_size: Count = field(256, "width; this and the next four are for random weights alone (no model)")
    num_hidden_layers: Count = field(6, "layers")
    num_attention_heads: Count = field(4, "heads of a layer")
    intermediate_size: Count = field(1024, "width inside a layer's feed-forward part")
    max_position_embeddings: Count = field(512, "longest text that the model can ever read, in tokens")
    dropout: Chance | None = field(
        None, "of hidden states and attention while pretraining, the saved model keeps its own; null: its own, or 0.1"
    )
    trained: Literal["all", "embeddings"] = field(
        "all", "embeddings: the layers stay as they are, embeddings and output layer are trained (Artetxe et al. 2020)"
    )
    pooler: Literal["auto", "keep", "identity"] = field(
        "auto",
        "what a later classifier reads of [CLS]; identity: the vector itself, as far as tanh lets it through; auto: "
        "identity with objective=distil, which makes [CLS] the vector of the sentence, else (or with an adapter) keep",
    )
    save_dtype: Literal["float32", "float16"] = field("float32", "numbers of the saved weights; loaded as float32")


class Pretrainer(nn.Module):
    """BERT with pooler and output layer; `forward` returns a loss summed over its items."""

    def __init__(self, network: BertForPreTraining) -> None:
        super().__init__()
        self.network = network

    def forward(self, **tensors: Tensor) -> Tensor:
        """Return the loss of hidden tokens, or of the distance to a teacher's vectors, by the tensors given."""
        return self.distance(tensors) if "input_ids.0" in tensors else self.hidden_tokens(tensors)

    def states(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the states of the last layer, (batch, time, dim)."""
        inputs = {name: tensor for name, tensor in tensors.items() if name in INPUTS}
        states: Tensor = self.network.bert(**inputs).last_hidden_state
        return states

    def at_places(self, states: Tensor, places: Tensor) -> Tensor:
        """Return what the output layer reads at the places of hidden tokens, (places, dim)."""
        transformed: Tensor = self.network.cls.predictions.transform(states.flatten(0, 1)[places])
        return transformed

    def hidden_tokens(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy of the tokens that are hidden, summed; only their logits are made.

        Where second texts are to be told apart, the mean of that loss is added for each hidden token.
        """
        output, states = self.network.cls.predictions.decoder, self.states(tensors)
        found = self.at_places(states, tensors["places"])
        column = functional.pad(output.bias[:, None], (0, ALIGNMENT - 1))  # (vocab, 8): the bias, and zeros
        one = functional.pad(torch.ones_like(found[:, :1]), (0, ALIGNMENT - 1))
        hidden, weight = torch.cat([found, one], dim=1), torch.cat([output.weight, column], dim=1)
        total = summed_cross_entropy(hidden, weight, tensors["gold"], 0.0)
        if "next" in tensors:
            guesses = self.network.cls.seq_relationship(self.network.bert.pooler(states)).float()
            total = total + tensors["next_weight"] * functional.cross_entropy(guesses, tensors["next"], reduction="sum")
        return total

    def logits(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return logits at the places of hidden tokens, (places, vocab)."""
        read = self.at_places(self.states(tensors), tensors["places"])
        found: Tensor = self.network.cls.predictions.decoder(read)
        return found

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector of [CLS] and the mean over all tokens of each text, (batch, dim) each, in float32."""
        return sentence_vectors(self.network.bert, input_ids, attention_mask)

    def distance(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the squared distances of [CLS] and mean vectors to the teacher's, summed over texts by weight.

        A text's weight is the number of pairs it stands in (Reimers and Gurevych 2020, section 3).
        """
        total = torch.zeros((), device=self.network.device)
        for number in range(sum(name.startswith("input_ids.") for name in tensors)):
            target, weight = tensors[f"targets.{number}"], tensors[f"weights.{number}"]
            found = self.vectors(tensors[f"input_ids.{number}"], tensors[f"attention_mask.{number}"])
            total = total + sum((((one - target) ** 2).sum(dim=1) * weight).sum() for one in found)
        return total


@dataclass(frozen=True)
class Start:
    """A model before its first update, its tokenizer, and where both come from."""

    model: Pretrainer
    tokenizer: PreTrainedTokenizerBase
    name: str
    identity: str
    fresh: bool  # weights or embeddings are new
    copied_rows: int | None = None  # embeddings taken over for a new vocabulary
    aligned_rows: int = 0  # embeddings that are means of old ones

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return f"{self.name} · {adapters.described(self.model.network, self.parameters)}"

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the saved model."""
        network = self.model.network
        spare = sum(parameter.numel() for parameter in network.cls.seq_relationship.parameters())
        return int(sum(parameter.numel() for parameter in network.parameters())) - int(spare)

    @property
    def width(self) -> int:
        """Return the hidden size."""
        return int(self.model.network.config.hidden_size)

    def learn_next_sentence(self) -> None:
        """Let the pooler and the head that reads it be trained: without their task nothing reads them."""
        for part in (self.model.network.bert.pooler, self.model.network.cls.seq_relationship):
            part.requires_grad_(True)

    def save(self, folder: Path, kinds: Collection[str], config: ShapeConfig) -> None:
        """Write weights, config and tokenizer; Auto classes for masked tokens, vectors and classification load them.

        `kinds` are the parts of the objective. With distil alone nothing trained the output layer: it is a BertModel.
        Both have a pooler.
        """
        network = self.model.network
        adapted = adapters.is_adapted(network)
        if config.pooler == "identity" or (config.pooler == "auto" and "distil" in kinds and not adapted):
            with torch.no_grad():
                network.bert.pooler.dense.weight.copy_(torch.eye(self.width))
                network.bert.pooler.dense.bias.zero_()
        if {"mlm", "tlm"} & set(kinds):
            saved: PreTrainedModel = BertForMaskedLM(network.config)
            saved.bert, saved.cls.predictions = network.bert, network.cls.predictions
        else:
            saved = network.bert
        if adapted:
            saved.peft_config = network.peft_config
        if config.save_dtype == "float16":
            saved = copy.deepcopy(saved).half()
        pretrained.save_model(saved, folder)
        self.tokenizer.save_pretrained(folder)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a batch, summed over its hidden tokens or its pairs."""
    device = next(model.parameters()).device
    total: Tensor = model(**{name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()})
    return total


def sentence_vectors(bert: BertModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vector of [CLS] and the mean over all tokens of each text, (batch, dim) each, in float32."""
    whole = bool(attention_mask.all()) if attention_mask.device.type == "cpu" else False
    states = bert(input_ids=input_ids, attention_mask=None if whole else attention_mask).last_hidden_state.float()
    weight = attention_mask[..., None].to(states.dtype)  # (batch, time, 1)
    return states[:, 0], (states * weight).sum(dim=1) / weight.sum(dim=1)


def from_random(config: ShapeConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Start:
    """Make a model with random weights; raises UserError (2) where its heads do not divide its width."""
    if config.hidden_size % config.num_attention_heads:
        what = f"network.hidden_size={config.hidden_size} is no multiple of"
        raise UserError(Exit.USAGE, f"{what} network.num_attention_heads={config.num_attention_heads}")
    torch.manual_seed(seed)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads, intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    name = f"BERT {config.num_hidden_layers} x {config.hidden_size}, random weights"
    return Start(_prepared(BertForPreTraining(shape), config), tokenizer, name, f"seed:{seed}", fresh=True)


def from_checkpoint(
    source: pretrained.Source, config: ShapeConfig, own: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase | None,
    aligned: Sequence[sparse.csr_matrix], seed: int,
) -> Start:  # fmt: skip
    """Take the weights of a checkpoint, with its own vocabulary or with new embeddings for another one.

    `aligned` says how often entries of the new one stand for old ones (`alignment.expected_counts`). Parts that the
    checkpoint lacks, output layer or pooler, are drawn from `seed`. Raises UserError (2) for what is not BERT.
    """
    torch.manual_seed(seed)
    network = pretrained.load_model(AutoModelForPreTraining, source, own)
    if type(network) is not BertForPreTraining:
        what = f"model={source.name} is {network.config.model_type}"
        raise UserError(
            Exit.USAGE, f"{what}; this recipe trains BERT: give a BERT checkpoint, or none for random weights"
        )
    start = Start(_prepared(network, config), new or own, source.name, source.identity, new is not None)
    if new is None:
        return start
    copied, mixed = _exchange(network, own, new, aligned, seed)
    return replace(start, copied_rows=copied, aligned_rows=mixed)


def _exchange(
    network: BertForPreTraining, own: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase,
    aligned: Sequence[sparse.csr_matrix], seed: int,
) -> tuple[int, int]:  # fmt: skip
    """Give a network the embeddings of another vocabulary; return how many rows are copies, and means, of old ones."""
    old_rows = network.get_input_embeddings().weight.detach().clone()
    old_bias = network.cls.predictions.bias.detach().clone()
    table, rows = new_embeddings(old_rows, own, new, seed)
    mixed, seen = mixed_rows(aligned, old_rows) if aligned else (table, torch.zeros(len(new), dtype=torch.bool))
    network.resize_token_embeddings(len(new), mean_resizing=False)
    with torch.no_grad():
        network.get_input_embeddings().weight.copy_(torch.where(seen[:, None], mixed, table))
        bias = network.cls.predictions.decoder.bias
        bias.copy_(torch.where(rows >= 0, old_bias[rows.clamp(min=0)], torch.zeros(())))
    network.config.pad_token_id = new.pad_token_id
    return int(((rows >= 0) & ~seen).sum()), int(seen.sum())


def _prepared(network: BertForPreTraining, config: ShapeConfig) -> Pretrainer:
    # What the checkpoint was and how it was used: save_pretrained writes what it becomes.
    network.config.architectures = network.config.task_specific_params = None
    if config.dropout is not None:
        # Of the modules and not of the config, which is saved: what is good for millions of pairs, which no run reads
        # twice, is not good for fine-tuning on hundreds of rows.
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    cpu.prepare(network)
    for name, parameter in network.named_parameters():
        layer = ".encoder." in name and config.trained == "embeddings"
        # nothing reads the pooler and the sentence head, and weight decay must not wear them down
        if layer or ".pooler." in name or "seq_relationship" in name:
            parameter.requires_grad_(False)
    return Pretrainer(network)


def auto_learning_rate(width: int, fresh: bool) -> float:
    """Return a peak rate: 5e-4 at a width of 384 for new weights or embeddings, less for wide models.

    A fifth of it for a checkpoint with its own vocabulary, whose knowledge is to be kept.
    """
    rate = 5e-4 * (384 / width) ** 0.5 * (1.0 if fresh else 0.2)
    return float(f"{min(1e-3, rate):.1g}")
