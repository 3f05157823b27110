"""Some updates and scores of every recipe's model, in this process or in several: what test_processes compares.

All in float64, in which a sum does not depend on how it is parted: what the losses cast to float32 is not.
"""

import json
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from finetune import adapters, classifier, processes, trainer
from finetune.adapters import AdapterConfig, Base
from finetune.causal import model as language_models
from finetune.causal import perplexity
from finetune.causal.model import LanguageModel
from finetune.causal.packing import IGNORED
from finetune.data.batching import Batch, Examples, pad
from finetune.data.columns import LabelMap
from finetune.errors import Interrupted
from finetune.first_token import read_only_first_token
from finetune.generation import GenerationConfig, Pen, decoder_of, write_rows
from finetune.pretraining import model as pretraining
from finetune.pretraining import scoring
from finetune.pretraining.model import Pretrainer
from finetune.run import Run
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.encoder_decoder import EncodedPairs
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel
from finetune.seq2seq.search import SearchConfig, search_all
from finetune.summaries.encoder_decoders import EncoderDecoderWriter, PairModel
from finetune.trainer import TrainConfig, Trainer

ENDED = "ended.safetensors"  # the weights that a run ends with
ROWS = 17  # updates of 8, 8 and 1: in the last there are fewer rows than processes
SIZES = (1, 2, 3, 9, 11, 16)
VOCABULARY = 29
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
BERT = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **SHAPE, **NO_DROPOUT)
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01, "num_train_epochs": 2.0, "mixed_precision": "no", "use_cpu": True, "logging_steps": 1,
    "per_device_eval_batch_size": 2, "weight_decay": 0.1,
}  # fmt: skip


def rows(count: int = ROWS, seed: int = 0) -> list[np.ndarray]:
    """Return rows of 3 to 9 tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(5, VOCABULARY, random.integers(3, 10)) for _ in range(count)]


def batched(chosen: np.ndarray, of: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the padded tokens of some rows and their mask."""
    sizes = torch.tensor([len(of[row]) for row in chosen])
    tokens = pad([of[row] for row in chosen], 0)
    return {"input_ids": tokens, "attention_mask": (torch.arange(tokens.shape[1]) < sizes[:, None]).long()}


def examples(of: list[np.ndarray], make: Callable[[np.ndarray], tuple[dict[str, torch.Tensor], int]]) -> Examples:
    """Return examples whose batches `make` makes."""
    return Examples(np.array([len(row) for row in of]), lambda chosen: Batch(*make(chosen), chosen))


def classification(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a classifier."""
    model = BertForSequenceClassification(BERT)
    read_only_first_token(model)
    loss = classifier.make_loss(LabelMap(("0", "1"), False), 0.1, None)
    labels = torch.tensor([int(row[0]) % 2 for row in of])
    return model, loss, examples(of, lambda chosen: (batched(chosen, of) | {"labels": labels[chosen]}, len(chosen)))


def translation(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a sequence-to-sequence model of the project."""
    config = Seq2SeqConfig(
        source_vocab_size=VOCABULARY, target_vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=2,
        intermediate_size=16, num_encoder_layers=1, num_decoder_layers=1, max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip
    targets = [np.array([2, *row[::-1], 3]) for row in of]
    pairs = EncodedPairs([np.array([*row, 3]) for row in of], targets, np.arange(len(of)), 0)
    return Seq2SeqModel(config), networks.make_loss(0.1, 0.0), networks.collate(pairs)


def pretrained(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a pretraining whose updates hide tokens or compare vectors, in turn."""

    def make(chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        tensors = batched(chosen, of)
        if chosen[0] % 2:
            targets = torch.stack([torch.full((16,), float(row) / ROWS) for row in chosen])
            named = {f"{name}.0": tensor for name, tensor in tensors.items()}
            return named | {"targets.0": targets, "weights.0": torch.ones(len(chosen))}, len(chosen)
        places = torch.arange(len(chosen)) * tensors["input_ids"].shape[1] + 1
        return tensors | {"places": places, "gold": torch.tensor([int(of[row][1]) for row in chosen])}, len(chosen)

    kinds = np.arange(len(of)) % 2
    return Pretrainer(BertForPreTraining(BERT)), pretraining.loss, replace(examples(of, make), groups=kinds)


def language_model(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a GPT-2."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip

    def make(chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], int]:
        read = pad([of[row][:-1] for row in chosen], 0)
        places = (pad([of[row][1:] for row in chosen], IGNORED).flatten() != IGNORED).nonzero()[:, 0]
        gold = torch.tensor(np.concatenate([of[row][1:] for row in chosen]))
        return {"input_ids": read, "places": places, "gold": gold}, len(gold)

    return LanguageModel(GPT2LMHeadModel(config)), language_models.loss, examples(of, make)


def summary(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a T5."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    settings: Any = types.SimpleNamespace(smoothing=0.1)
    pairs = [row.tolist() for row in of], [[0, *row[:3], 1] for row in of]
    made = EncoderDecoderWriter.examples(settings, *pairs, str)
    return (
        PairModel(T5ForConditionalGeneration(config)),
        lambda *given: EncoderDecoderWriter.loss(settings, *given),
        made,
    )


def adapted(of: list[np.ndarray]) -> Any:
    """Return model, loss and examples of a classifier with an adapter."""
    model, *others = classification(of)
    adapters.wrap(model, AdapterConfig(adapter="lora", rank=2), Base("bert", "", "bert", None), ())
    return model, *others


KINDS: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "classification": classification, "translation": translation, "pretraining": pretrained,
    "language_model": language_model, "summary": summary, "adapted": adapted,
}  # fmt: skip


@contextmanager
def in_float64() -> Iterator[None]:
    """Make new tensors of floats float64, and casts to float32 too."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def begun(kind: str, count: int = ROWS, seed: int = 0) -> Any:
    """Return model, loss and examples of a kind."""
    torch.manual_seed(7)
    model, loss, found = KINDS[kind](rows(count, seed))
    return model.double(), loss, found


def train(kind: str, folder: Path, *, stop_in: int | None = None, resume: bool = False, **settings: Any) -> None:
    """Make the updates of two epochs in a run folder, or go on with them; a signal may stop them in one of them."""
    model, loss, found = begun(kind)
    config = TrainConfig(**(SETTINGS | settings))

    def stopping(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if loop.progress.step + 1 == stop_in:
            signal.raise_signal(signal.SIGTERM)
        total: torch.Tensor = loss(network, batch)
        return total

    with Run(folder, resume=resume, quiet=True, crew=processes.crew()) as run, suppress(Interrupted):
        run.start({}, {"data_sha256": {}})
        loop = Trainer(model, config, run, loss=stopping, seed=1)
        loop.fit(
            found, lambda: {"loss": 0.0 if kind == "pretraining" else trainer.mean_loss(model, loss, found, config)}
        )
        if processes.is_main():
            save_file({name: part.detach() for name, part in model.named_parameters()}, folder / ENDED)


def scores() -> dict[str, Any]:
    """Return what the scoring of each recipe says of different numbers of rows, as numbers."""
    config = TrainConfig(**SETTINGS)
    found: dict[str, Any] = {}
    for count in SIZES:
        found[f"order.{count}"] = processes.shared(range(count), lambda number: number * number)
        for kind in ("classification", "translation", "language_model", "summary"):
            model, loss, held_out = begun(kind, count, seed=count)
            found[f"{kind}.{count}"] = trainer.mean_loss(model, loss, held_out, config)
        model, _, _ = begun("translation")
        texts = search_all(model.eval(), rows(count), SearchConfig(beam_size=2), seed=1, tokens_per_batch=16)
        found[f"search.{count}"] = [one.log_probability for several in texts for one in several]
        model, _, _ = begun("language_model")
        start: Any = types.SimpleNamespace(model=model, tokenizer=range(1 << 23), end=0)  # two tokens at once
        first = np.ones(count, dtype=np.int64)
        found[f"nats.{count}"] = perplexity.negative_log_probability(start, rows(count), first, 4, 2, "no").tolist()
        pen = Pen(model.network, partial(decoder_of, model.network), 0, str)
        written = write_rows(pen, [row.tolist() for row in rows(count)], GenerationConfig(max_new_tokens=4), 1)
        found[f"written.{count}"] = written.texts
        model, _, _ = begun("pretraining")
        with mock.patch.object(scoring, "ROWS_AT_ONCE", 2):
            vectors = scoring.encode(model, rows(count), 0, "no")
        found[f"vectors.{count}"] = np.stack(vectors).tolist()
    return found


def held() -> list[int]:
    """Return the bytes that a process holds of a sharded model, those that it would hold, and its parameters."""
    model, loss, found = begun("classification")
    loop = Trainer(model, TrainConfig(**SETTINGS, sharding="fsdp"), Run("unused", quiet=True), loss=loss, seed=1)
    part, whole = loop.estimate(found).held or (0, 0)
    return [part, whole, sum(parameter.numel() for parameter in model.parameters())]


def main(folder: Path) -> None:
    """Train every kind in these processes, and write what each of them scored."""
    processes.join()
    sharded: dict[str, Any] = {"per_device_train_batch_size": 4, "sharding": "fsdp"}
    with in_float64():
        for kind in KINDS:
            train(kind, folder / kind, per_device_train_batch_size=4)
            train(kind, folder / "sharded" / kind, **sharded)
        # Updates of 14 and 3 rows: of the last the first process has two micro-batches, the second one.
        few: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 7, "sharding": "fsdp"}
        train("language_model", folder / "recomputed", gradient_checkpointing=True, **few)
        train("classification", folder / "stopped", stop_in=4, **sharded)
        processes.by_main(lambda: shutil.copytree(folder / "stopped", folder / "resumed"))
        for begun_before in ("resumed", "whole"):
            train("classification", folder / begun_before, resume=True, **sharded)
        found = scores()
        found["held"] = held()
    found["said"] = processes.by_main(lambda: processes.rank())
    (folder / f"scores-{processes.rank()}.json").write_text(json.dumps(found))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
