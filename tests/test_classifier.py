"""The classifier's loss and scoring, held against transformers' own loss and a pass over single texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from finetune import classifier
from finetune.data.columns import LabelMap, Split, from_lines
from finetune.data.encode import encode
from finetune.trainer import TrainConfig

NAMES = ("delivery", "payment", "account")
TEXTS = ["my parcel was late", "card charged again", "the login", "invoice and receipt from the bank please"]


@pytest.fixture
def split() -> Split:
    return from_lines("toy", TEXTS)


def settings() -> TrainConfig:
    return TrainConfig(learning_rate=1e-3, num_train_epochs=1, mixed_precision="no", use_cpu=True)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_the_sum_of_what_transformers_averages(tiny_model: Path, split: Split, multi_label: bool) -> None:
    labels = LabelMap(NAMES, multi_label)
    parts = classifier.load(str(tiny_model), labels, seed=1)
    parts.model.eval()
    one_hot = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=np.float32)
    targets = one_hot if multi_label else np.array([0, 1, 2, 1])
    encoded = encode(split, parts.tokenizer, 32, "truncate")
    batch = classifier.collate(encoded, parts.tokenizer, targets).collate(np.arange(4))
    expected = parts.model(**batch.tensors).loss * len(TEXTS)
    found = classifier.make_loss(labels, 0.0, None)(parts.model, batch)
    assert batch.items == len(TEXTS)
    assert torch.allclose(found, expected, atol=1e-6)


def test_balanced_weights_have_mean_one_over_the_rows_of_train() -> None:
    targets = np.array([0] * 6 + [1] * 3 + [2])
    weights = classifier.class_weights(targets, LabelMap(NAMES))
    assert weights[torch.from_numpy(targets)].mean().item() == pytest.approx(1.0)
    assert (weights[2] / weights[0]).item() == pytest.approx(6.0)


def test_balanced_multi_label_weights_make_both_answers_count_alike() -> None:
    targets = np.array([[1, 0, 1]] * 2 + [[0, 1, 1]] * 6, dtype=np.float32)
    weights = classifier.class_weights(targets, LabelMap(NAMES, multi_label=True))
    assert weights.tolist() == pytest.approx([3.0, 1 / 3, 0.0])
    logits = torch.zeros(8, 3)
    each = functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(targets), pos_weight=weights, reduction="none"
    )
    assert each[:2, 0].sum().item() == pytest.approx(each[2:, 0].sum().item())


def test_a_text_scores_the_same_alone_and_in_a_batch(tiny_model: Path, split: Split) -> None:
    parts = classifier.load(str(tiny_model), LabelMap(NAMES), seed=1)
    together = classifier.predict(parts, encode(split, parts.tokenizer, 32, "truncate"), settings()).probabilities
    for row, text in enumerate(TEXTS):
        alone = encode(from_lines("one", [text]), parts.tokenizer, 32, "truncate")
        assert classifier.predict(parts, alone, settings()).probabilities[0] == pytest.approx(together[row], abs=1e-6)


def test_windows_of_a_text_are_averaged(tiny_model: Path) -> None:
    parts = classifier.load(str(tiny_model), LabelMap(NAMES), seed=1)
    encoded = encode(from_lines("long", ["parcel card login " * 12]), parts.tokenizer, 16, "window")
    assert len(encoded.lengths) > 2
    of_windows = []
    for index in range(len(encoded.lengths)):
        ids = torch.from_numpy(encoded.example(index).astype(np.int64))[None]
        with torch.inference_mode():
            of_windows.append(parts.model.eval()(input_ids=ids).logits.softmax(-1)[0].numpy())
    found = classifier.predict(parts, encoded, settings()).probabilities[0]
    assert found == pytest.approx(np.mean(of_windows, axis=0), abs=1e-6)


def test_the_head_is_drawn_from_the_seed(tiny_model: Path) -> None:
    heads = [classifier.load(str(tiny_model), LabelMap(NAMES), seed).model.classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
