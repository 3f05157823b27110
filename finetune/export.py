"""A run's model as a folder of its own, copied, or with its adapter merged and shown to be the same; or its weights."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from finetune import adapters, checkpoint, pretrained
from finetune.data.batching import pad, pad_and_mask
from finetune.errors import Exit, UserError
from finetune.report.card import ADAPTER
from finetune.run import disk_errors, open_as_its_folder, read_json
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.vocabulary import PAD
from finetune.summaries.encoder_decoders import OWN_TOKENIZER

ROWS_AT_ONCE = 8
LONGEST = 128  # tokens of a text that is compared; logits of a whole vocabulary take room
CARD = "README.md"
MERGED = "It was trained as an adapter, which is merged into its base here."
WRAPPED = "network."  # before every name where the loop trains a model inside one that knows its loss
Batches = Iterator[dict[str, Tensor]]


@dataclass(frozen=True)
class Texts:
    """What two models are compared on: texts, and what stands beside each, a second text or a target, if anything."""

    texts: Sequence[str]
    beside: Sequence[str] | None


def copy(model: Path, output: Path) -> None:
    """Copy a model folder as it is, card and all; raises UserError (73) where there is something already."""
    with _new_folder(output) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)


def weights(checkpoints: Path, which: str, output: Path) -> int:
    """Write the weights of a checkpoint, whole or in parts, into one safetensors file; return its update.

    `which` is the number of an update, or `last`. Names are those of the model's own file, of an
    adapter those that peft has in memory. Raises UserError: 73 where
    the file is there already, 66 where there is no such checkpoint, 74 where it is damaged.
    """
    if output.exists():
        raise UserError(Exit.OUTPUT_TAKEN, f"--output {output} is there already; give another file")
    there = checkpoint.saved(checkpoints)
    step = max(there, default=-1) if which == "last" else int(which) if which.isdecimal() else -1
    if step not in there:
        known = ", ".join(map(str, sorted(there))) or "none"
        raise UserError(Exit.NO_INPUT, f"--checkpoint {which}: no such checkpoint in {checkpoints} (there: {known})")
    if (fault := checkpoint.verify(there[step])) is not None:
        raise UserError(Exit.IO_FAILED, f"{there[step]} is damaged ({fault}); give another checkpoint")
    tensors = checkpoint.Checkpoint(there[step], step).tensors("model")
    prefix = WRAPPED if all(name.startswith(WRAPPED) for name in tensors) else ""
    temporary = output.with_name(f".tmp-{output.name}")
    with disk_errors(next(path for path in output.absolute().parents if path.exists())):
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, temporary, {"format": "pt"})
        temporary.chmod(0o666 & output.parent.stat().st_mode)
        temporary.rename(output)
    return step


def merge(model: Path, output: Path, texts: Texts) -> float:
    """Write the plain model that a folder's adapter and its base make, which needs no peft.

    It is read back and compared with the adapter on some texts, in fp32; returns the largest difference between two
    probabilities. Raises UserError: 2 where there is no adapter, 70, with nothing written, where the two differ by more
    than `adapters.TOLERANCE`.
    """
    if not adapters.is_adapter(model):
        raise UserError(Exit.USAGE, f"{model} has no adapter that could be merged; leave out --merge")
    with _new_folder(output) as folder:
        others = {adapters.CONFIG, adapters.WEIGHTS, "config.json"}
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=lambda _, names: others & {*names})
        network = _network(model)
        adapters.merge(network)
        network.save_pretrained(folder)
        _rewrite_card(folder)
        found = adapters.largest_difference(_network(model), _network(folder), _batches(model, network, texts))
        if not found <= adapters.TOLERANCE:
            what = f"the merged model differs from the adapter by {found:.1e}, more than {adapters.TOLERANCE:g}"
            raise UserError(Exit.DIVERGED, f"{what}: nothing is written\nuse the adapter as it is, without --merge")
    return found


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a folder that appears under its name whole, or not at all where the block fails."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(Exit.OUTPUT_TAKEN, f"--output {output} is there already; give another folder")
    temporary = output.with_name(f".tmp-{output.name}")
    with disk_errors(next(path for path in output.absolute().parents if path.exists())):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        with disk_errors(temporary):
            yield temporary
            open_as_its_folder(temporary)
            if output.is_dir():
                output.rmdir()
            temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rewrite_card(folder: Path) -> None:
    """Let the card of a merged model say what it is."""
    card = folder / CARD
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace("library_name: peft\n", "library_name: transformers\n", 1)
        card.write_text(text.replace(ADAPTER, MERGED), encoding="utf-8")


def _network(folder: Path) -> PreTrainedModel:
    """Load the model of a folder as the class that it was saved as."""
    made_as = pretrained.class_named(read_json(folder / "config.json"))
    if made_as == networks.Seq2SeqModel.__name__:
        return networks.load(folder).model.cpu()
    source = pretrained.locate(str(folder))
    return pretrained.load_model(getattr(transformers, made_as), source, pretrained.load_tokenizer(source))


def _batches(folder: Path, network: PreTrainedModel, texts: Texts) -> Batches:
    """Return the inputs of a model for some texts, a few at a time; targets are what its decoder reads."""
    if isinstance(network, networks.Seq2SeqModel):
        words = networks.Vocabularies.load(folder)
        targets = words.encode_targets(texts.beside or texts.texts)
        yield from _pairs(words.encode_sources(texts.texts), targets, PAD)
        return
    tokenizer = pretrained.load_tokenizer(pretrained.locate(str(folder)))
    longest = min(LONGEST, pretrained.context_limit(network.config, tokenizer))
    if network.config.is_encoder_decoder:
        coded = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts.texts]
        own = folder / OWN_TOKENIZER
        writer = pretrained.load_tokenizer(pretrained.locate(str(own))) if own.is_dir() else tokenizer
        written = [
            writer(text_target=text, truncation=True, max_length=longest - 1)["input_ids"]
            for text in texts.beside or texts.texts
        ]
        start = int(network.generation_config.decoder_start_token_id)
        yield from _pairs(coded, [[start, *row] for row in written], int(tokenizer.pad_token_id))
        return
    for first in range(0, len(texts.texts), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        beside = None if texts.beside is None else [*texts.beside[part]]
        yield dict(
            tokenizer(
                [*texts.texts[part]], beside, truncation=True, max_length=longest, padding=True, return_tensors="pt"
            )
        )


def _pairs(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], padding: int) -> Batches:
    """Return source and target rows as the inputs of an encoder-decoder."""
    for first in range(0, len(sources), ROWS_AT_ONCE):
        source, real = pad_and_mask([row[:LONGEST] for row in sources[first : first + ROWS_AT_ONCE]], padding)
        reads = pad([row[:LONGEST] for row in targets[first : first + ROWS_AT_ONCE]], padding)
        yield {"input_ids": source, "attention_mask": real.long(), "decoder_input_ids": reads}
