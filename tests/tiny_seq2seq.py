"""Tiny encoder-decoders of the real classes with tokenizers of their own kind, and toy texts with summaries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

COLOURS = ["red", "blue", "green", "black", "white", "grey"]
TEXTS = [f"the {colour} one came. then {other} left." for colour in COLOURS for other in COLOURS]
PIECES = ["the", "one", "came", "then", "and", "left", "summarize", *COLOURS]
CONTEXT = 48  # tokens that BART reads


def bart(folder: Path, spread: float = 0.3) -> Path:
    """Write a random BART (32 dim, 1+1 layers) whose byte-level BPE knows the toy words; <s> and </s> around a text.

    Weights that spread widely make texts that differ by source; narrow ones learn better.
    """
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), specials, strict=True))
    _tokenizer(tokenizer, names, model_max_length=CONTEXT).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BartConfig(
            vocab_size=320, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=CONTEXT,
            init_std=spread, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
        )  # fmt: skip
        BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def t5(folder: Path, prefix: str = "summarize: ") -> Path:
    """Write a random T5 (32 dim, 2+2 layers) whose unigram tokenizer knows the toy words; its config names a prefix."""
    specials = ["<pad>", "</s>", "<unk>"]
    # Learning unigram pieces gives other ones from time to time.
    pieces = ["▁", *(f"▁{word}" for word in PIECES), *"abcdefghijklmnopqrstuvwxyz.:"]
    entries = [*((special, 0.0) for special in specials), *((piece, -float(len(PIECES))) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=2))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(zip(("pad_token", "eos_token", "unk_token"), specials, strict=True))
    _tokenizer(tokenizer, names).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=tokenizer.get_vocab_size(), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
            initializer_factor=3.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )  # fmt: skip
        T5ForConditionalGeneration(config).save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["task_specific_params"] = {"summarization": {"prefix": prefix}}
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


def mbart(folder: Path, kind: Any = MBartTokenizer, start: int | None = None) -> Path:
    """Write a random mBART (32 dim, 1+1 layers) of two languages; `start`: decoder_start_token_id (mBART-50: 2)."""
    letters = [*"abcdefghilmnoprtuwy.", *(f"▁{word}" for word in ("the", *COLOURS))]
    tokenizer = kind(
        vocab=[("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0),
               *((piece, -3.0) for piece in letters), ("en_XX", 0.0), ("de_DE", 0.0), ("<mask>", 0.0)],
        model_max_length=CONTEXT,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MBartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=CONTEXT,
            decoder_start_token_id=start,
        )  # fmt: skip
        MBartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_pairs(path: Path, rows: int, seed: int) -> Path:
    """Write rows of two sentences about colours, and the first of them in two words; every third row has two."""
    random = np.random.default_rng(seed)
    lines = []
    for number in range(rows):
        first, second, third = random.choice(COLOURS, 3, replace=False)
        row: dict[str, Any] = {"text": f"the {first} one came. then {second} and {third} left."}
        row["summary"] = [f"{first} came.", f"came: {first}."] if number % 3 == 0 else f"{first} came."
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pair_files(folder: Path, train: int = 64) -> list[str]:
    """Write train, validation and test rows into a folder and return them, with their columns, as settings."""
    sizes = {"train": (train, 0), "validation": (12, 1), "test": (12, 2)}
    files = [f"data.{n}={write_pairs(folder / f'{n}.jsonl', rows, seed)}" for n, (rows, seed) in sizes.items()]
    return [*files, "data.source_column=text", "data.target_column=summary"]


def _tokenizer(backend: Tokenizer, names: dict[str, str], **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names, **settings)
