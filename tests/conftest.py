"""What every test shares: no network, folders of its own, toy rows that can be learnt, and a tiny BERT for them."""

import csv
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.update(OFFLINE)  # huggingface_hub reads its settings once, when it is imported

TOPICS = {
    "delivery": ["parcel", "courier", "late", "shipping", "doorstep"],
    "payment": ["card", "invoice", "charged", "bank", "receipt"],
    "account": ["password", "login", "locked", "profile", "email"],
}
FILLERS = (
    "my", "the", "a", "was", "has", "is", "it", "and", "not", "since", "today",
    "yesterday", "please", "again", "still", "now", "why", "who", "can", "you",
)  # fmt: skip
TinyModel = Path
ToyCsv = Callable[..., Path]


def toy_rows(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Return (id, text, label) rows: one or two words give the label away, the others say nothing."""
    random = np.random.default_rng(seed)
    labels = list(TOPICS)
    rows = []
    for number in range(count):
        label = labels[number % len(labels)]
        words = [*random.choice(TOPICS[label], random.integers(1, 3)), *random.choice(FILLERS, random.integers(4, 9))]
        rows.append((f"{seed}-{number:03d}", " ".join(str(word) for word in random.permutation(words)), label))
    return rows


@pytest.fixture
def toy_csv(tmp_path: Path) -> ToyCsv:
    """Return a function that writes a CSV of toy rows (id, text, label) into tmp_path and returns its path."""

    def write(name: str = "train.csv", rows: int = 24, seed: int = 0) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("id", "text", "label"), *toy_rows(rows, seed)])
        return path

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return a folder that from_pretrained loads: a random BERT (32 dim, 1 layer, dropout 0.1) and its tokenizer.

    Its vocabulary has the words of the toy data and single letters, so that no ASCII word is unknown.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    words = [*(word for topic in TOPICS.values() for word in topic), *FILLERS]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*specials, *words, *letters, *(f"##{letter}" for letter in letters)]))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    BertTokenizerFast(vocab=numbers, do_lower_case=True, model_max_length=64).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return a folder that from_pretrained loads: a random GPT-2 (32 dim, 2 layers, 48 positions) and its tokenizer.

    Its weights are ten times as large as usual: greedy texts differ by prompt, and no two tokens are almost as likely.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    end = "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({entry: number for number, entry in enumerate([end, *letters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, bos_token=end, pad_token=end, model_max_length=48
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=257, n_embd=32, n_layer=2, n_head=2, n_positions=48, initializer_range=0.2,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama() -> Any:
    """Return a random Llama (32 dim, 2 layers, rotary positions, shared keys and values) of the same 257 entries."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=48, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch work in one thread, so that CPU seconds are seconds."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _cpu_without_bf16() -> Iterator[None]:
    """Let `mixed_precision=auto` be fp32 on every CPU: a run and its plain model folder then have the same figures."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _closed_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep a test on this machine and out of the person's own caches."""
    caches = tmp_path_factory.getbasetemp() / "caches"
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(caches / "huggingface"))
    monkeypatch.setenv("FINETUNE_CACHE", str(caches / "finetune"))
    monkeypatch.setattr(socket.socket, "connect", _loopback_only(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _loopback_only(socket.socket.connect_ex))


def _loopback_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        host = address[0] if isinstance(address, tuple) else "localhost"  # a Unix socket is a path
        if host not in {"localhost", "127.0.0.1", "::1"}:
            raise OSError(f"a test may not connect to {address}")
        return connect(self, address)

    return guarded
