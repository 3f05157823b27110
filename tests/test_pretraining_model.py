"""The losses of pretraining beside transformers' own, new embeddings in an old body, and teachers' vectors."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertForPreTraining, BertTokenizerFast

from finetune import pretrained
from finetune.errors import UserError
from finetune.pretraining import distillation
from finetune.pretraining.distillation import Teacher, Vectors
from finetune.pretraining.examples import Frame, chunked
from finetune.pretraining.masking import MaskingConfig
from finetune.pretraining.model import Pretrainer, ShapeConfig, auto_learning_rate, from_checkpoint, from_random
from finetune.pretraining.scoring import nearest
from finetune.pretraining.stores import Encoder, Rows
from finetune.pretraining.vocabulary import new_embeddings


@pytest.fixture
def model() -> Pretrainer:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    network = BertForPreTraining(config)
    torch.nn.init.normal_(network.cls.predictions.bias)  # zero in a new model: its gradient would be right by chance
    return Pretrainer(network)


def batch(rows: int = 5, length: int = 12) -> dict[str, torch.Tensor]:
    tokens = torch.randint(5, 90, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([[12], [9], [4], [12], [7]])
    places = torch.tensor([1, 3, 14, 25, 26, 40, 48])
    return {"input_ids": tokens, "attention_mask": mask.long(), "places": places, "gold": torch.arange(7) * 3 + 5}


def test_the_loss_and_gradients_of_hidden_tokens_are_those_of_transformers(model: Pretrainer) -> None:
    tensors = batch()
    found = model(**tensors)
    found.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    labels = torch.full(tensors["input_ids"].shape, -100)
    labels.view(-1)[tensors["places"]] = tensors["gold"]
    logits = model.network(
        input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]
    ).prediction_logits.flatten(0, 1)
    wanted = functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    wanted.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    theirs = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    assert ours.keys() == {name for name, grad in theirs.items() if grad.abs().max() > 0}
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], rtol=1e-4, atol=1e-5), name
    assert torch.allclose(model.logits(tensors), logits[tensors["places"]], atol=1e-5)


def test_the_loss_of_second_texts_is_a_mean_that_stands_beside_that_of_hidden_tokens(model: Pretrainer) -> None:
    tensors = batch()
    more = {"next": torch.tensor([0, 1, 1, 0, 1]), "next_weight": torch.tensor(1.4)}
    with torch.no_grad():
        found = model(**tensors, **more) - model(**tensors)
        inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")}
        wanted = functional.cross_entropy(model.network(**inputs).seq_relationship_logits, more["next"])
    assert found.item() / 7 == pytest.approx(wanted.item(), rel=1e-3)  # 7 hidden tokens = 5 rows x 1.4


def test_the_distance_is_summed_over_both_vectors_of_each_text_by_weight(model: Pretrainer) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(85))]
    tokenizer = BertTokenizerFast(vocab={name: number for number, name in enumerate(names)})
    frame, sizes = Frame.of(tokenizer, 16, MaskingConfig()), np.array([4, 9, 6, 9])
    tokens = np.arange(5, 5 + sizes.sum()) % 30 + 5
    targets = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    weights = torch.tensor([2.0, 1.0, 4.0, 3.0])
    found = model(**chunked(tokens, sizes, frame, targets, weights))
    wanted = 0.0
    for text, target, weight in zip(np.split(tokens, np.cumsum(sizes)[:-1]), targets, weights, strict=True):
        row = torch.from_numpy(frame.around(text))[None]
        states = model.network.bert(input_ids=row).last_hidden_state[0]
        for vector in (states[0], states.mean(dim=0)):
            wanted += float(weight) * float(((vector - target) ** 2).sum().detach())
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_new_embeddings_keep_the_rows_of_shared_entries_and_draw_the_others_alike() -> None:
    def vocabulary(*entries: str) -> BertTokenizerFast:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *entries]
        return BertTokenizerFast(vocab={name: number for number, name in enumerate(names)})

    before = vocabulary("cat", "dog", *(f"x{number}" for number in range(200)))
    after = vocabulary("gatto", "dog", *(f"y{number}" for number in range(3_000)), "cat")
    old = torch.randn(207, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9) + torch.arange(8)
    table, rows = new_embeddings(old, before, after, 1)
    assert torch.equal(table[:5], old[:5])
    assert torch.equal(table[6], old[6])
    assert torch.equal(table[-1], old[5])
    assert int((rows >= 0).sum()) == 7
    drawn = table[7:-1]
    assert torch.allclose(drawn.mean(dim=0), old.mean(dim=0), atol=4 * float(old.std(dim=0).max()) / 3_000**0.5)
    assert torch.allclose(drawn.std(dim=0), old.std(dim=0), rtol=0.1)


def test_a_body_with_new_embeddings_keeps_its_layers_and_its_pooler(tiny_model: Path) -> None:
    source = pretrained.locate(str(tiny_model))
    own = pretrained.load_tokenizer(source)
    new = BertTokenizerFast(vocab={name: number for number, name in enumerate([*own.get_vocab(), "gatto", "##ti"])})
    start = from_checkpoint(source, ShapeConfig(dropout=0.0), own, new, [], 1)
    old = AutoModel.from_pretrained(tiny_model)
    bert = start.model.network.bert
    for name, tensor in old.state_dict().items():
        if "word_embeddings" not in name:
            assert torch.equal(bert.state_dict()[name], tensor), name
    assert len(bert.embeddings.word_embeddings.weight) == len(new)
    assert start.copied_rows == len(own)
    assert start.model.network.cls.predictions.decoder.weight is bert.embeddings.word_embeddings.weight
    assert len(start.model.network.cls.predictions.decoder.bias) == len(new)


def test_dropout_is_that_of_pretraining_and_the_saved_model_keeps_its_own(tiny_model: Path, tmp_path: Path) -> None:
    source = pretrained.locate(str(tiny_model))
    own = pretrained.load_tokenizer(source)
    made = [
        from_checkpoint(source, ShapeConfig(dropout=0.0), own, None, [], 1),
        from_random(ShapeConfig(hidden_size=32, num_attention_heads=2, dropout=0.0), own, 1),
    ]
    texts = own(["my card was charged", "login"], padding=True, return_tensors="pt")
    for number, start in enumerate(made):
        start.model.train()
        one, two = (start.model.vectors(texts["input_ids"], texts["attention_mask"])[1] for _ in range(2))
        assert torch.equal(one, two)
        start.save(tmp_path / str(number), ("mlm",), ShapeConfig())
        config = AutoModel.from_pretrained(tmp_path / str(number)).config
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1
    kept = from_checkpoint(source, ShapeConfig(), own, None, [], 1)
    kept.model.train()
    one, two = (kept.model.vectors(texts["input_ids"], texts["attention_mask"])[1] for _ in range(2))
    assert not torch.equal(one, two)


def test_only_embeddings_and_output_layer_are_trained_where_that_is_asked(tiny_model: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(tiny_model)
    shape = ShapeConfig(hidden_size=32, num_attention_heads=2, intermediate_size=48, trained="embeddings")
    start = from_random(shape, tokenizer, 1)
    trained = {name for name, parameter in start.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not {name for name in trained if "encoder" in name or "pooler" in name}
    with pytest.raises(UserError, match="is no multiple of"):
        from_random(ShapeConfig(hidden_size=33, num_attention_heads=2), tokenizer, 1)


def test_a_teachers_vectors_are_means_over_tokens_and_come_back_from_the_cache(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(str(tiny_model), 16, use_cpu=True)
    texts = ["my card was charged", "the parcel is late again today", "login"] * 3
    coded = Encoder(teacher.tokenizer).encode(texts)
    rows = Rows(np.concatenate(coded), np.cumsum([0, *map(len, coded)]))
    vectors = Vectors(teacher, rows)
    network = AutoModel.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        wanted = torch.stack(
            [network(**teacher.tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
        )
    assert torch.allclose(vectors(np.arange(9)), wanted, atol=2e-3)
    monkeypatch.setattr(distillation, "SENTENCES_AT_ONCE", 4)
    vectors.remember()
    assert torch.allclose(vectors(np.array([8, 2, 2])), wanted[[8, 2, 2]], atol=2e-3)
    some = Vectors(teacher, rows)
    some.remember(np.array([1, 5, 7]))  # fewer than half: the others are not worked out
    assert torch.allclose(some(np.array([7, 1, 7])), wanted[[7, 1, 7]], atol=2e-3)
    again = Vectors(teacher, rows)
    monkeypatch.setattr(teacher, "encode", None)  # everything comes from the cache
    again.remember()
    assert torch.equal(again(np.arange(9)), vectors(np.arange(9)))


def test_a_cache_of_vectors_that_was_cut_off_goes_on_where_it_stopped(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(str(tiny_model), 16, use_cpu=True)
    rows = Rows(np.arange(5, 53), np.arange(0, 49, 4))  # 12 sentences
    monkeypatch.setattr(distillation, "SENTENCES_AT_ONCE", 4)
    encode, asked = teacher.encode, []

    def failing(rows: Rows, numbers: np.ndarray) -> np.ndarray:
        asked.append(numbers.tolist())
        if len(asked) == 2:
            raise KeyboardInterrupt
        return encode(rows, numbers)

    monkeypatch.setattr(teacher, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        Vectors(teacher, rows).remember()
    Vectors(teacher, rows).remember()
    assert [numbers[0] for numbers in asked] == [0, 4, 4, 8]


def test_two_runs_that_need_the_same_vectors_wait_for_each_other(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(str(tiny_model), 16, use_cpu=True)
    rows = Rows(np.arange(52, 4, -1), np.arange(0, 49, 4))  # others than those of the tests above
    encode, other = teacher.encode, Vectors(teacher, rows)
    waiting = threading.Thread(target=other.remember)

    def slow(rows: Rows, numbers: np.ndarray) -> np.ndarray:
        if not waiting.ident:
            waiting.start()
            waiting.join(0.5)  # long enough to fill the same draft, were it allowed to
        return encode(rows, numbers)

    monkeypatch.setattr(teacher, "encode", slow)
    vectors = Vectors(teacher, rows)
    vectors.remember()
    waiting.join(30)
    monkeypatch.setattr(teacher, "encode", None)
    assert torch.equal(vectors(np.arange(12)), other(np.arange(12)))


def test_rates_fall_with_width_and_are_gentle_for_a_vocabulary_that_stays() -> None:
    assert auto_learning_rate(384, True) == 5e-4
    assert auto_learning_rate(384, False) == 1e-4
    assert auto_learning_rate(768, True) < auto_learning_rate(256, True) <= 1e-3


def test_the_nearest_by_cosine_is_told_whatever_the_lengths() -> None:
    answers = np.eye(3, 5) * np.array([[1.0], [50.0], [0.1]])
    assert nearest(np.eye(3, 5) * 7.0 + 0.1, answers).tolist() == [True, True, True]
    assert nearest(np.eye(3, 5)[[1, 0, 2]], answers).tolist() == [False, False, True]
