"""Sequence classification with a pretrained model: loading, collating, the loss, and scoring of whole splits."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from finetune import adapters, cpu, hardware, optim, pretrained, processes, trainer
from finetune.adapters import AdapterConfig
from finetune.data.batching import Batch, Examples, evaluation_batches, pad, pad_and_mask
from finetune.data.columns import LabelMap
from finetune.data.encode import Encoded, OnLong
from finetune.errors import Exit, UserError, did_you_mean
from finetune.first_token import read_only_first_token
from finetune.metrics import DEFINITIONS, LOWER_IS_BETTER
from finetune.run import read_json
from finetune.trainer import TrainConfig, Trainer

# A batch for scoring holds per_device_eval_batch_size texts of this length, or fewer longer ones.
TOKENS_OF_A_TEXT = 128
GPU_MULTIPLE = 8  # tensor cores want widths that are multiples of 8


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer and its label map."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: LabelMap
    source: pretrained.Source

    @property
    def context(self) -> int:
        """Return how many tokens the model can read."""
        return pretrained.context_limit(self.model.config, self.tokenizer)

    @property
    def width(self) -> int:
        """Return the hidden size."""
        return int(self.model.config.hidden_size)

    @property
    def family(self) -> str:
        """Return the architecture's name as it is written in sentences."""
        kind = str(self.model.config.model_type)
        return {"bert": "BERT", "gpt2": "GPT-2", "roberta": "RoBERTa", "distilbert": "DistilBERT"}.get(kind, kind)

    def shares(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (rows, labels): of one label among all, multi-label of each by itself."""
        return torch.sigmoid(logits) if self.labels.multi_label else torch.softmax(logits, dim=-1)

    def save(self, folder: Path) -> None:
        """Write weights, config with the label names, and tokenizer, so that from_pretrained loads them."""
        pretrained.save_model(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def described(self) -> str:
        """Return name and size in a few words."""
        return f"{self.source.name} · {adapters.described(self.model)}"

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclasses.dataclass(frozen=True)
class Fitting:
    """A classifier about to be trained: its resolved settings, its texts by split, and its loop.

    `trained` is the number of parameters that are trained; `upwards` says whether more of the validation score that
    chooses the checkpoint is better.
    """

    parts: Classifier
    settings: TrainConfig
    encoded: dict[str, Encoded]
    examples: Examples
    loop: Trainer
    trained: int
    upwards: bool


def load(model: str, labels: LabelMap, seed: int, adapter: AdapterConfig | None = None) -> Classifier:
    """Load a checkpoint for fine-tuning; a head that it lacks is drawn from `seed`, and so is an adapter.

    For BERT the head is a linear layer on the pooled [CLS] vector (Devlin et al. 2019, section 4.1); GPT-2 reads the
    last token.
    """
    source = pretrained.starting(model, adapter or AdapterConfig())
    tokenizer = pretrained.load_tokenizer(source)
    torch.manual_seed(seed)  # before the model is made: the head's first weights are part of the seed
    names = dict(enumerate(labels.names))
    network = pretrained.load_model(
        AutoModelForSequenceClassification,
        source,
        tokenizer,
        num_labels=len(names),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        problem_type="multi_label_classification" if labels.multi_label else "single_label_classification",
    )
    cpu.prepare(network)
    read_only_first_token(network)
    return Classifier(network, tokenizer, labels, source)


def load_trained(folder: Path | str) -> Classifier:
    """Load a fine-tuned classifier with the label names in its config; raises UserError (65) where it has no head."""
    source = pretrained.locate(str(folder))
    made_as = read_json(Path(folder) / "config.json").get("architectures") or [""]
    if not any(str(name).endswith("ForSequenceClassification") for name in made_as):
        raise UserError(
            Exit.BAD_DATA, f"{folder} is {made_as[0] or 'no model'}, not a classifier; train one: finetune train"
        )
    tokenizer = pretrained.load_tokenizer(source)
    network = pretrained.load_model(AutoModelForSequenceClassification, source, tokenizer)
    read_only_first_token(network)
    network.to(hardware.device_type(use_cpu=False))
    names = network.config.id2label
    multi_label = network.config.problem_type == "multi_label_classification"
    return Classifier(
        network, tokenizer, LabelMap(tuple(names[index] for index in range(len(names))), multi_label), source
    )


def read_so(classifier: Classifier, max_length: int, on_long: OnLong) -> None:
    """Note in the model's config how texts are read; raises UserError (2) for a max_length beyond its context."""
    if max_length > classifier.context:
        raise UserError(
            Exit.USAGE,
            f"max_length={max_length} is more than the {classifier.context} tokens that {classifier.source.name} "
            f"can read; give max_length={classifier.context}, and data.on_long=window for longer texts",
        )
    pretrained.remember_settings(classifier.model, {"max_length": max_length, "data.on_long": on_long})


def resolve(classifier: Classifier, config: TrainConfig, rows: int) -> TrainConfig:
    """Return the settings with every `auto` replaced, for so many training rows."""
    classes = len(classifier.labels.names)
    rate = adapters.auto_learning_rate(optim.auto_learning_rate(classifier.width, classes), classifier.model)
    config = dataclasses.replace(config, learning_rate=rate) if config.learning_rate == "auto" else config
    return trainer.resolve(config, width=classifier.width, rows=rows, classes=classes)


def greater_is_better(metric: str) -> bool:
    """Say whether more of a validation score is better; raises UserError (2) for a score that there is not."""
    if metric not in DEFINITIONS:
        known = ", ".join(DEFINITIONS)
        guess = did_you_mean(metric, DEFINITIONS)
        raise UserError(Exit.USAGE, f"train.metric_for_best_model={metric}: no such score{guess} (known: {known})")
    return metric not in LOWER_IS_BETTER


def collate(
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    targets: np.ndarray | None = None,
    where: Callable[[int], str] = str,
) -> Examples:
    """Return the examples of a split for the trainer; a batch is padded on the right to its longest text.

    `where` says where a row of the split comes from.
    """
    multiple = GPU_MULTIPLE if torch.cuda.is_available() else 1
    lengths_of_all = encoded.lengths  # worked out from all offsets: once, not for each batch

    def make(chosen: np.ndarray) -> Batch:
        ids = [encoded.example(index) for index in chosen]
        padded, real = pad_and_mask(ids, tokenizer.pad_token_id, multiple)
        tensors = {"input_ids": padded, "attention_mask": real.long()}
        if encoded.types is not None and "token_type_ids" in tokenizer.model_input_names:
            tensors["token_type_ids"] = pad([encoded.example_types(index) for index in chosen], 0, multiple)
        if targets is not None:
            tensors["labels"] = torch.from_numpy(targets[encoded.row[chosen]])
        return Batch(tensors, len(chosen), chosen)

    return Examples(lengths_of_all, make, lambda example: where(int(encoded.row[example])))


def class_weights(targets: np.ndarray, labels: LabelMap) -> Tensor:
    """Return a weight for each class, inverse to its rows; the mean over the rows of train is 1.

    Multi-label: the weight of a label's positive rows, as many as there are negative rows for each of them.
    """
    if labels.multi_label:
        positive = np.maximum(targets.sum(axis=0), 1)
        return torch.tensor((len(targets) - positive) / positive, dtype=torch.float32)
    counts = np.bincount(targets, minlength=len(labels.names))
    return torch.tensor(len(targets) / (len(labels.names) * np.maximum(counts, 1)), dtype=torch.float32)


def make_loss(labels: LabelMap, smoothing: float, weights: Tensor | None) -> Callable[[nn.Module, Batch], Tensor]:
    """Return the loss of the loop: summed cross-entropy, or for multi-label the summed mean over labels of BCE."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
        targets = inputs.pop("labels")
        logits = model(**inputs).logits.float()  # (batch, labels)
        weight = None if weights is None else weights.to(device)
        if labels.multi_label:
            smoothed = targets * (1 - smoothing) + smoothing / 2
            each = functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weight, reduction="none")
            return each.mean(dim=1).sum()
        return functional.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing, reduction="sum")

    return loss


@dataclasses.dataclass(frozen=True)
class Scored:
    """Probabilities of a split, (rows, labels), and the seconds that one pass over its tokens took."""

    probabilities: np.ndarray
    seconds: float


def predict(classifier: Classifier, encoded: Encoded, config: TrainConfig) -> Scored:
    """Score every row of a split; the probabilities of a text's windows are averaged.

    Raises UserError (70) where the weights have diverged.
    """
    model = classifier.model
    device, batch_size = next(model.parameters()).device, config.per_device_eval_batch_size
    examples = collate(encoded, classifier.tokenizer)
    totals = np.zeros((encoded.rows, len(classifier.labels.names)))
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    batches = evaluation_batches(encoded.lengths, batch_size, batch_size * TOKENS_OF_A_TEXT)

    def score(chosen: np.ndarray) -> np.ndarray:
        batch = examples.collate(chosen)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.tensors.items()}).logits.float()
        return classifier.shares(logits).double().cpu().numpy()

    # One block around all batches, so that each weight is cast to bf16 once, not once a batch.
    with torch.inference_mode(), hardware.autocast(device, config.mixed_precision):
        found = processes.shared(batches, score)
    for chosen, share in zip(batches, found, strict=True):
        np.add.at(totals, encoded.row[chosen], share)
    model.train(was_training)
    if not np.isfinite(totals).all():
        raise UserError(Exit.DIVERGED, "the model's probabilities are not finite; try a lower learning_rate")
    windows = np.bincount(encoded.row, minlength=encoded.rows)
    return Scored(totals / windows[:, None], time.perf_counter() - started)
