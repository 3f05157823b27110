"""Packing: nothing is lost or padded, and no token learns anything from another document."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from finetune.causal.model import LanguageModel, loss
from finetune.causal.packing import (
    IGNORED,
    Completions,
    blocks,
    completion_examples,
    document_mask,
    positions,
    store,
)
from finetune.causal.tokenizer import TextEncoder
from finetune.pretraining.stores import Rows

END = 0
DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [16, 17]]


def rows_of(documents: list[list[int]]) -> Rows:
    tokens = [token for document in documents for token in [*document, END]]
    return Rows(np.array(tokens), np.cumsum([0, *(len(document) + 1 for document in documents)]))


@pytest.fixture(scope="module")
def network(tiny_gpt2: Path) -> PreTrainedModel:
    """Return the tiny model without dropout."""
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float32).eval()


@pytest.mark.parametrize("length", [1, 2, 4, 5, 17, 100])
def test_each_token_is_predicted_once_and_the_blocks_have_no_padding(length: int) -> None:
    found = blocks(rows_of(DOCUMENTS), length, END)
    batches = [found.collate(np.array([block])) for block in range(len(found.lengths))]
    labels = [token for batch in batches for token in batch.tensors["gold"].tolist()]
    for batch in batches:
        assert batch.tensors["places"].tolist() == list(range(batch.tensors["input_ids"].numel()))
    inputs = [token for batch in batches for token in batch.tensors["input_ids"][0].tolist()]
    stream = [token for document in DOCUMENTS for token in [*document, END]]
    assert labels == stream
    assert inputs == [END, *stream[:-1]]
    assert set(found.lengths[:-1].tolist()) <= {length}
    assert sum(batch.items for batch in batches) == len(stream)


def test_a_short_last_block_is_padded_with_what_no_loss_reads() -> None:
    found = blocks(rows_of(DOCUMENTS), 7, END, where=lambda document: f"d{document}")
    batch = found.collate(np.arange(len(found.lengths)))
    assert batch.tensors["input_ids"].shape == (3, 7)
    assert batch.tensors["places"].tolist() == [*range(14), 14, 15, 16]
    assert batch.tensors["gold"][14:].tolist() == [16, 17, END]
    assert batch.items == 14 + 3
    assert [found.name(block) for block in range(3)] == ["d0", "d2", "d3"]


def test_positions_begin_anew_with_each_document_and_block() -> None:
    rows = torch.tensor([[END, 5, 6, END, 8, END, 9], [9, 10, END, END, 5, 6, 7]])
    assert positions(rows, END).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 0, 1, 2, 3]]


def test_the_mask_is_that_of_each_document_by_itself() -> None:
    places = torch.tensor([[0, 1, 2, 0, 1, 0]])
    seen = document_mask(places)
    parts = torch.block_diag(*(torch.ones(size, size).tril() for size in (3, 2, 1))).bool()
    assert torch.equal(seen[0, 0], parts)
    for documents, several in (([[5, 6, 7]], False), ([[5], [6]], True)):
        tensors = blocks(rows_of(documents), 4, END).collate(np.array([0])).tensors
        assert ("position_ids" in tensors) == several  # without them attention takes its faster form


def test_a_changed_token_changes_nothing_in_other_documents(network: PreTrainedModel) -> None:
    model = LanguageModel(network)
    rows = torch.tensor([[END, 5, 6, 7, END, 8, END, 9, 10, 11]])
    places = positions(rows, END)
    with torch.no_grad():
        before = model.states(rows, places)
        for place in (1, 2, 3, 5, 7, 8, 9):
            changed = rows.clone()
            changed[0, place] += 100
            moved = (model.states(changed, places) != before).any(dim=2)[0]  # (time,)
            document = [range(4), range(4, 6), range(6, 10)][(place >= 4) + (place >= 6)]
            assert moved[place : document[-1] + 1].all()
            assert not moved[: document[0]].any()
            assert not moved[document[-1] + 1 :].any()


def test_a_document_has_the_same_states_in_a_block_and_alone(
    network: PreTrainedModel, tiny_llama: PreTrainedModel
) -> None:
    rows = torch.tensor([[END, 5, 6, 7, END, 8, END, 9, 10, 11]])
    for one in (network, tiny_llama):
        with torch.no_grad():
            packed = LanguageModel(one).states(rows, positions(rows, END))[0]
            for part in (slice(0, 4), slice(4, 6), slice(6, 10)):
                alone = one.base_model(rows[:, part]).last_hidden_state[0]
                torch.testing.assert_close(packed[part], alone, rtol=1e-5, atol=1e-5)


def test_the_mask_is_what_transformers_makes_of_positions_without_a_cache(network: PreTrainedModel) -> None:
    rows = torch.tensor([[END, 5, 6, 7, END, 8, END, 9, 10, 11]])
    places = positions(rows, END)
    with torch.no_grad():
        own = LanguageModel(network).states(rows, places)
        theirs = network.base_model(rows, position_ids=places, use_cache=False).last_hidden_state
        leaking = network.base_model(rows, position_ids=places).last_hidden_state
    assert torch.equal(own, theirs)
    assert not torch.allclose(own, leaking, atol=1e-3)  # a cache, which is their default, lets documents see each other


def test_the_loss_is_the_sum_over_predicted_tokens(network: PreTrainedModel) -> None:
    model = LanguageModel(network)
    batch = blocks(rows_of(DOCUMENTS), 7, END).collate(np.arange(3))
    expected = torch.zeros(())
    with torch.no_grad():
        for document in DOCUMENTS[:2]:  # both lie in the first block
            row = torch.tensor([[END, *document, END]])
            logits = network(row[:, :-1]).logits[0]
            expected = expected + functional.cross_entropy(logits, row[0, 1:], reduction="sum")
        first = {name: batch.tensors[name][:1, :6] for name in ("input_ids", "position_ids")}
        first |= {name: batch.tensors[name][:6] for name in ("places", "gold")}
        assert float(model(**first)) == pytest.approx(float(expected), rel=1e-5)
        alone = blocks(rows_of([[5, 6, 7]]), 4, END).collate(np.array([0])).tensors
        labels = torch.tensor([[5, IGNORED, 7, END]])
        each = model.losses(alone["input_ids"], labels)
        assert (each == 0).tolist() == (labels == IGNORED).tolist()
        kept = {"places": alone["places"][[0, 2, 3]], "gold": alone["gold"][[0, 2, 3]]}
        assert float(model(**alone | kept)) == pytest.approx(float(each.sum()), rel=1e-5)


class Waits(TorchDispatchMode):
    """Note what would make a CPU wait for the answer of a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        chosen = args[1] if name.startswith("aten.index.") else []
        if any(index is not None and index.dtype == torch.bool for index in chosen):
            self.found.append(name)
        if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal")):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_an_update_on_several_documents_never_waits_for_an_answer_of_the_device(network: PreTrainedModel) -> None:
    batch = blocks(rows_of(DOCUMENTS), 20, END).collate(np.array([0]))  # without a mask transformers itself waits
    with Waits() as waits:
        loss(LanguageModel(network), batch).backward()
    assert not waits.found


def test_the_loss_of_a_prompt_with_its_completion_is_of_the_completion_alone(network: PreTrainedModel) -> None:
    rows = [np.array([END, 5, 6, 7, 20, 21, END]), np.array([END, 8, 22, END])]
    found = Completions(rows, np.array([4, 2]), np.arange(2), 0)
    batch = completion_examples(found, END).collate(np.arange(2))
    assert batch.items == 3 + 2
    assert batch.tensors["places"].tolist() == [3, 4, 5, 7, 8]
    assert batch.tensors["gold"].tolist() == [20, 21, END, 22, END]
    assert "position_ids" not in batch.tensors
    expected = torch.zeros(())
    with torch.no_grad():
        for row, first in zip(rows, found.prompt, strict=True):
            tokens = torch.from_numpy(row)
            logits = network(tokens[None, :-1]).logits[0]
            expected = expected + functional.cross_entropy(logits[first - 1 :], tokens[first:], reduction="sum")
        assert float(LanguageModel(network)(**batch.tensors)) == pytest.approx(float(expected), rel=1e-5)


def test_stored_documents_hold_every_byte_and_an_end_each(tiny_gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    texts = ["a  b \n", "z", "это <|endoftext|> 你好 🙂", " "]
    for _ in range(2):  # written, then read from the cache
        found = store(texts, TextEncoder(tokenizer))
        assert [tokenizer.decode(found[row][:-1].tolist()) for row in range(4)] == texts
        assert [(found[row] == END).sum() for row in range(4)] == [1, 1, 1, 1]  # what looks like an end is text
        assert [found[row][-1] for row in range(4)] == [END] * 4


def test_documents_end_as_the_tokenizer_of_now_ends_them(tiny_gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    store(["ab", "c"], TextEncoder(tokenizer))
    tokenizer.eos_token = "!"  # the same entries and another end, as of a chat model beside its base
    found = store(["ab", "c"], TextEncoder(tokenizer))
    assert [int(found[row][-1]) for row in range(2)] == [tokenizer.eos_token_id] * 2
