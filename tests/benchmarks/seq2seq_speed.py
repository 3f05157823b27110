"""Train and decode a Transformer beside joeynmt, alternating, and print the ratios.

python tests/benchmarks/seq2seq_speed.py train  --peer PYTHON [--updates 150] [--repeats 3]
python tests/benchmarks/seq2seq_speed.py decode --peer PYTHON --run RUN [--repeats 3]

PYTHON is the interpreter of an environment with joeynmt 2.3.0:
    python -m venv joey && joey/bin/pip install torch==2.13.0 joeynmt==2.3.0 importlib_metadata "setuptools<80"
Data: Multi30k English-German from the folder in FINETUNE_BENCHMARK_DATA (default ../shared/data).

`train`: both have the same words (level: word, those seen twice), 4+4 layers 128 wide, as many sentences an update,
AdamW and a rate that rises; the loss on the validation set after the same number of updates stands beside the speed.
`decode`: the weights of RUN, a Transformer trained by `finetune train seq2seq`, are written as a joeynmt checkpoint, so
both search for translations of the 1,000 test sentences with one and the same model; of joeynmt's ways to cut
batches (64 sentences, 4,096 tokens) the faster one counts.
"""

import argparse
import gzip
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / "multi30k"
FILES = {"train": "train.jsonl.gz", "dev": "validation.jsonl", "test": "test_2016_flickr.jsonl"}
SIDES = ("en", "de")
SHAPE = {"hidden_size": 128, "num_encoder_layers": 4, "num_decoder_layers": 4, "intermediate_size": 512}
RATE, SENTENCES, DROPOUT = 1e-3, 80, 0.1
BATCHES = {"sentence": 64, "token": 4096}  # the peer decodes batches of both kinds; its best counts
PEER_ORDER = ["<unk>", "<pad>", "<s>", "</s>"]  # joeynmt's special tokens by number; ours are pad, unk, bos, eos


def rows(part: str) -> list[dict[str, str]]:
    """Return the sentence pairs of a split."""
    path = DATA / FILES[part]
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode("utf-8").splitlines()]


def words(text: str) -> str:
    """Return a text with a space between words and signs, which both systems take apart alike."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def peer_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return joeynmt's settings for files `train`, `dev`, `test` .en and .de in a folder."""
    stack = {
        "type": "transformer", "num_layers": 4, "num_heads": 4, "hidden_size": 128, "ff_size": 512, "dropout": DROPOUT,
        "embeddings": {"embedding_dim": 128, "scale": True, "dropout": DROPOUT}, "layer_norm": "pre",
    }  # fmt: skip
    side = {"level": "word", "voc_min_freq": 2, "max_length": 250}
    config: dict[str, Any] = {
        "name": "peer", "joeynmt_version": "2.3.0", "model_dir": str(folder / "model"), "use_cuda": False,
        "random_seed": 1,
        "data": {
            **{part: str(folder / part) for part in FILES}, "dataset_type": "plain",
            "src": {"lang": "en", **side}, "trg": {"lang": "de", **side},
        },
        "training": {
            "optimizer": "adamw", "adam_betas": [0.9, 0.98], "learning_rate": RATE, "learning_rate_min": 0.0,
            "clip_grad_norm": 1.0, "batch_size": SENTENCES, "batch_type": "sentence", "normalization": "tokens",
            "label_smoothing": 0.0, "epochs": 100, "logging_freq": 10, "overwrite": True, "print_valid_sents": [],
        },
        "testing": {"beam_size": 1, "batch_size": 64, "batch_type": "sentence", "eval_metrics": []},
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros", "embed_initializer": "xavier_uniform",
            "tied_embeddings": False, "tied_softmax": True, "encoder": dict(stack), "decoder": dict(stack),
        },
    }  # fmt: skip
    for name, values in changes.items():
        config[name].update(values)
    return config


def joeynmt(python: str, mode: str, folder: Path, config: dict[str, Any], *options: str) -> str:
    """Run joeynmt in a folder and return what it logged."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command = [python, "-m", "joeynmt", mode, str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"joeynmt {mode} failed:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


# Training


def peer_training(python: str, folder: Path, updates: int) -> dict[str, float]:
    """Train with joeynmt; return target tokens per second, from its log, and the validation loss, in nats a token."""
    # Of joeynmt's schedules those that still run with this torch rise first: the whole run is the rise, in both.
    schedule = {"updates": updates, "validation_freq": updates, "scheduling": "warmupinversesquareroot",
                "learning_rate_warmup": updates}  # fmt: skip
    log = joeynmt(python, "train", folder, peer_config(folder, training=schedule), "--skip-test")
    rates = [float(rate) for rate in re.findall(r"Tokens per Sec:\s*([\d.]+)", log)]
    perplexity = float(re.findall(r"ppl:\s*([\d.]+)", log)[-1])
    # The first window warms up: for ours it is left out, too.
    return {"tokens_per_second": statistics.harmonic_mean(rates[1:]), "loss": math.log(perplexity)}


def our_training(folder: Path, updates: int) -> dict[str, float]:
    """Train with `finetune train seq2seq`; return the same figures."""
    run = folder / "run"
    settings = [f"data.{name}={folder / part}.jsonl" for name, part in
                (("train", "train"), ("validation", "dev"), ("test", "test"))]  # fmt: skip
    settings += [f"network.{name}={value}" for name, value in SHAPE.items()]
    settings += ["data.source_column=en", "data.target_column=de", "vocabulary.kind=word", "vocabulary.shared=false"]
    settings += ["vocabulary.vocab_size=100000", f"network.dropout={DROPOUT}", "label_smoothing_factor=0"]
    settings += [
        f"max_steps={updates}",
        f"learning_rate={RATE}",
        "lr_scheduler_type=inverse_sqrt",
        "warmup_ratio=0.999",
    ]
    settings += [f"per_device_train_batch_size={SENTENCES}", "weight_decay=0", "warmup_ratio=0.999"]
    settings += ["baseline=none", "search.beam_size=1"]
    command = [sys.executable, "-m", "finetune", "train", "seq2seq", *settings, f"output_dir={run}", "--overwrite"]
    subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [record for record in records if "items_per_second" in record]
    items = [record["items_per_second"] * record["seconds"] for record in timed]
    rate = (items[-1] - items[0]) / (timed[-1]["seconds"] - timed[0]["seconds"])
    losses = [record["validation"]["loss"] for record in records if "validation" in record]
    return {"tokens_per_second": rate, "loss": losses[-1]}


def train(given: Any) -> None:
    """Alternate the trainings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in FILES:
            pairs = [{side: words(row[side]) for side in SIDES} for row in rows(part)]
            write_lines(folder / f"{part}.jsonl", map(json.dumps, pairs))
            for side in SIDES:
                write_lines(folder / f"{part}.{side}", (pair[side] for pair in pairs))
        found: dict[str, list[dict[str, float]]] = {"finetune": [], "joeynmt": []}
        for _ in range(given.repeats):
            found["finetune"].append(our_training(folder, given.updates))
            found["joeynmt"].append(peer_training(given.peer, folder, given.updates))
    for system, runs in found.items():
        rate, loss = (statistics.median(run[key] for run in runs) for key in ("tokens_per_second", "loss"))
        print(f"{system:<10} {rate:8,.0f} target tokens/s   validation loss {loss:.3f} after {given.updates} updates")
    print(ratios("training", *([run["tokens_per_second"] for run in runs] for runs in found.values())))


# Decoding


def peer_names(count: int, side: str) -> dict[str, str]:
    """Return which of joeynmt's parameters are which of ours, by prefix, in the layers of a side."""
    attentions = {"encoder": {"attention": "src_src_att"}, "decoder": {"attention": "trg_trg_att",
                  "cross_attention": "src_trg_att"}}[side]  # fmt: skip
    norms = {"encoder": {"around_attention": "layer_norm"}, "decoder": {"around_attention": "x_layer_norm",
             "around_cross": "dec_layer_norm"}}[side]  # fmt: skip
    names: dict[str, str] = {}
    for index in range(count):
        ours, theirs = f"network.{side}_layers.{index}", f"{side}.layers.{index}"
        names |= {f"{ours}.{a}.": f"{theirs}.{b}." for a, b in attentions.items()}
        names |= {f"{ours}.{a}.norm.": f"{theirs}.{b}." for a, b in norms.items()}
        names[f"{ours}.around_feed_forward.norm."] = f"{theirs}.feed_forward.layer_norm."
        names[f"{ours}.feed_forward.widen."] = f"{theirs}.feed_forward.pwff_layer.0."
        names[f"{ours}.feed_forward.narrow."] = f"{theirs}.feed_forward.pwff_layer.3."
    return names | {f"network.{side}_norm.": f"{side}.layer_norm."}


def peer_weights(model: Any) -> dict[str, Any]:
    """Return the weights of our Transformer under joeynmt's names; our queries, keys and values are one matrix."""
    from finetune.seq2seq.transformer import sinusoids

    names = peer_names(model.config.num_encoder_layers, "encoder") | peer_names(
        model.config.num_decoder_layers, "decoder"
    )
    state = model.state_dict()
    order = [1, 0, *range(2, model.config.target_vocab_size)]
    table = state.pop("target_embeddings.weight")[order]
    source = table
    weights = {"src_embed.lut.weight": source, "trg_embed.lut.weight": table, "decoder.output_layer.weight": table}
    positions = sinusoids(5000, table.shape[1])[None]
    weights |= {"encoder.pe.pe": positions, "decoder.pe.pe": positions}
    for name, tensor in state.items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        theirs, rest = names[prefix], name.removeprefix(prefix)
        if "attention" not in prefix or "around" in prefix:
            weights[theirs + rest] = tensor
        elif rest.startswith("output."):
            weights[f"{theirs}output_layer.{rest.removeprefix('output.')}"] = tensor
        else:
            weights |= {
                f"{theirs}{part}_layer.{rest}": piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)
            }
    return weights


def decoding_folder(parts: Any, sources: list[Any], folder: Path) -> dict[str, Any]:
    """Write checkpoint, vocabulary and sentences for joeynmt; return its settings. The vocabulary is shared."""
    import torch

    (folder / "model").mkdir()
    weights = peer_weights(parts.model)
    width, config = weights["src_embed.lut.weight"].shape[1], parts.model.config
    vocabulary = parts.vocabularies.target
    tokens = vocabulary.convert_ids_to_tokens(list(range(len(PEER_ORDER), len(vocabulary))))
    for name in SIDES:
        write_lines(folder / f"vocabulary.{name}", [*PEER_ORDER, *tokens])
    for part in FILES:
        write_lines(
            folder / f"{part}.en", (" ".join(vocabulary.convert_ids_to_tokens(list(row))[:-1]) for row in sources)
        )
        write_lines(folder / f"{part}.de", ("x" for _ in sources))
    stack = {
        "type": "transformer", "num_layers": config.num_encoder_layers, "num_heads": config.num_attention_heads,
        "hidden_size": width, "ff_size": config.intermediate_size, "dropout": 0.0, "layer_norm": config.norm,
        "embeddings": {"embedding_dim": width, "scale": True},
    }  # fmt: skip
    model = {"tied_embeddings": True, "encoder": stack, "decoder": {**stack, "num_layers": config.num_decoder_layers}}
    changed = peer_config(folder, model=model)
    for side, name in zip(("src", "trg"), SIDES, strict=True):
        changed["data"][side]["voc_file"] = str(folder / f"vocabulary.{name}")
    torch.save({"model_state": weights}, folder / "model" / "best.ckpt")
    return changed


def ratios(what: str, ours: list[float], theirs: list[float]) -> str:
    """Return the ratio of each repeat: median, minimum and maximum."""
    pairs = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"finetune / joeynmt   {what} {statistics.median(pairs):.2f}x [{pairs[0]:.2f}, {pairs[-1]:.2f}]"


def decode(given: Any) -> None:
    """Alternate the searches, greedy and with a beam of 5, and print speed, BLEU and the share of equal texts."""
    import numpy as np
    import sacrebleu

    from finetune.seq2seq import encoder_decoder as networks
    from finetune.seq2seq.search import SearchConfig
    from finetune.trainer import TrainConfig

    parts = networks.load(Path(given.run) / "model")
    pairs = rows("test")[: given.sentences]
    references = [pair["de"] for pair in pairs]
    sources = [np.array(row) for row in parts.vocabularies.encode_sources([pair["en"] for pair in pairs])]
    settings = networks.resolve(TrainConfig(mixed_precision="no"), parts, "loss")

    def ours(beam: int) -> tuple[float, list[str]]:
        search = SearchConfig(beam_size=beam, length_penalty=given.length_penalty, max_new_tokens=80)
        written = networks.write(parts, sources, search, settings, seed=1)
        return written.seconds, [texts[0] for texts in written.texts]

    def theirs(beam: int, kind: str) -> tuple[float, list[str]]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = decoding_folder(parts, sources, folder)
            config["data"].pop("dev")
            # alpha 1 of joeynmt: ((5 + tokens) / 6); with it as with ours the score is a mean over tokens, nearly.
            config["testing"] |= {"beam_size": beam, "beam_alpha": given.length_penalty, "max_output_length": 80}
            config["testing"] |= {"batch_type": kind, "batch_size": BATCHES[kind], "generate_unk": False}
            log = joeynmt(given.peer, "test", folder, config, "--output-path", str(folder / "out"))
            lines = (folder / "out.test").read_text(encoding="utf-8").splitlines()
        seconds = float(re.findall(r"Generation took ([\d.]+)", log)[-1])
        vocabulary = parts.vocabularies.target
        numbers = [vocabulary.convert_tokens_to_ids(line.split()) for line in lines]
        return seconds, parts.vocabularies.decode_targets(numbers)

    for beam in given.beams:
        found: dict[str, list[tuple[float, list[str]]]] = {"finetune": [], "joeynmt": []}
        for _ in range(given.repeats):
            found["finetune"].append(ours(beam))
            found["joeynmt"].append(min((theirs(beam, kind) for kind in BATCHES), key=lambda pair: pair[0]))
        for system, runs in found.items():
            seconds = statistics.median(pair[0] for pair in runs)
            bleu = sacrebleu.corpus_bleu(runs[0][1], [references]).score
            print(f"beam {beam}  {system:<10} {len(references) / seconds:7.1f} sentences/s   BLEU {bleu:.2f}")
        same = sum(a == b for a, b in zip(*(runs[0][1] for runs in found.values()), strict=True)) / len(references)
        speeds = ([1 / pair[0] for pair in runs] for runs in found.values())
        print(ratios(f"beam {beam}", *speeds) + f"   {100 * same:.1f} % of the texts are equal")


def main() -> None:
    """Read the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "decode"))
    parser.add_argument("--peer", required=True, help="python of an environment with joeynmt")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", help="run folder of a Transformer")
    parser.add_argument("--sentences", type=int, default=1000, help="of the test set, for decode")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--length-penalty", type=float, default=1.0)
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    began = time.perf_counter()
    {"train": train, "decode": decode}[given.what](given)
    print(f"{time.perf_counter() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
