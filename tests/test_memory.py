"""Less memory: activations worked out again give the same gradients, and what cannot is refused in words."""

import gc
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from calling import call, toy_files
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification

from finetune import cpu, memory, processes
from finetune.errors import Exit, UserError
from finetune.run import Run
from finetune.seq2seq.model import Seq2SeqConfig, Seq2SeqModel
from finetune.trainer import TrainConfig, Trainer

SHAPE = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}


class Allocated(TorchDispatchMode):
    """Knows the storages that were made inside it and are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, call: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        result = call(*arguments, **(settings or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.found.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return result

    def held(self) -> int:
        """Return the bytes that are still held."""
        gc.collect()
        return sum(size for reference, size in self.found.values() if not reference.expired())


def bert(layers: int) -> BertForSequenceClassification:
    """Return a BERT with dropout as the trainer prepares it for a CPU."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **SHAPE))
    cpu.prepare(model)
    return model.train()


def transformer(layers: int) -> Seq2SeqModel:
    """Return the project's Transformer with dropout."""
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        source_vocab_size=50, target_vocab_size=50, hidden_size=32, num_attention_heads=2, intermediate_size=128,
        num_encoder_layers=layers, num_decoder_layers=layers, max_position_embeddings=32, dropout=0.2,
    )  # fmt: skip
    model = Seq2SeqModel(config)
    model.train()
    return model


def backward(model: nn.Module) -> tuple[int, float, list[Tensor]]:
    """Return the bytes that a model keeps for backward, its loss, and its gradients."""
    tokens = torch.arange(8 * 16).view(8, 16) % 40 + 5
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens[:, 0] % 2}
    if isinstance(model, Seq2SeqModel):
        inputs |= {"decoder_input_ids": tokens, "labels": tokens}
    torch.manual_seed(3)
    with Allocated() as allocated:
        loss = model(**inputs).loss
    held = allocated.held()
    loss.backward()
    return held, float(loss.detach()), [part.grad for part in model.parameters() if part.grad is not None]


@pytest.mark.parametrize("make", [bert, transformer])
def test_activations_that_are_worked_out_again_give_the_same_gradients_and_are_not_kept(make: Any) -> None:
    plain, again = make(4), make(4)
    memory.recompute_activations(again)
    (held, loss, gradients), (kept, same, others) = backward(plain), backward(again)
    assert loss == same
    assert len(gradients) == len(others)
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)  # dropout too drew the same masks
    assert kept < held / 3


def test_without_layers_there_is_nothing_to_work_out_again() -> None:
    recurrent = Seq2SeqConfig(
        source_vocab_size=50, target_vocab_size=50, hidden_size=32, architecture="rnn", cell="lstm"
    )
    with pytest.raises(UserError, match="gradient_checkpointing=true: this model has no layers") as caught:
        memory.recompute_activations(Seq2SeqModel(recurrent))
    assert caught.value.code == Exit.USAGE


def test_one_process_has_nobody_to_share_a_model_with(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("train", "bert_classification", f"model={tiny_model}", *toy_files(tmp_path), f"output_dir={run}")
    found = call(*asked, "sharding=fsdp", "max_length=32", "train.use_cpu=true")
    assert found.code == Exit.USAGE
    assert "sharding=fsdp parts a model among processes, and there is one" in found.err
    assert "--processes 2" in found.err
    assert not run.exists()


def shard(precision: Any) -> None:
    """Begin a training of a model in parts, as every recipe does."""
    config = TrainConfig(learning_rate=1e-3, sharding="fsdp", mixed_precision=precision, use_cpu=True)
    Trainer(nn.Linear(2, 2), config, Run("unused", quiet=True), loss=lambda model, batch: torch.zeros(()), seed=1)


def test_no_recipe_shares_a_model_in_one_process() -> None:
    with pytest.raises(UserError, match="parts a model among processes, and there is one"):
        shard("no")


def test_scaled_gradients_are_not_parted() -> None:
    with mock.patch.object(processes, "world", return_value=2):
        memory.check_sharding("bf16")
        with pytest.raises(UserError, match="works in bf16 and fp32"):
            shard("fp16")
