"""The path to the Hub and back, against a Hub on this machine: real commands, real libraries, no other socket."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_seq2seq
import torch
from calling import FAST, ROOT, Outcome, sha256, write_csv
from conftest import toy_rows
from fake_hub import FakeHub, blob_id
from safetensors.torch import load_file, save

from finetune import push
from finetune.errors import Interrupted
from finetune.hub import ANSWER_SECONDS, Place, not_here

Files = dict[str, bytes]
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Answer(Outcome):
    """How a command in a worker ended."""

    seconds: float
    refused: list[str]


class Worker:
    """A process that runs one command after another: an import of transformers costs as much as twenty of them."""

    def __init__(self, home: Path, endpoint: str, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own = {
            "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "PYTHONPATH": str(ROOT),
            "FINETUNE_CACHE": str(home / "finetune"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            env=kept | own | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, *arguments: object, **environment: str) -> Answer:
        """Run `finetune ARGUMENTS`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"arguments": [str(argument) for argument in arguments], "environment": environment}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = Answer(**json.loads(self.process.stdout.readline()))
        assert answer.refused == []
        return answer

    def done(self, *arguments: object, **environment: str) -> Answer:
        """Run a command that must succeed."""
        answer = self.call(*arguments, **environment)
        assert answer.code == 0, answer.err
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    """Return the Hub of this file."""
    server = FakeHub()
    yield server
    server.close()
    assert server.unknown == []


@pytest.fixture
def hub(server: FakeHub) -> FakeHub:
    """Return the Hub in good health; each test has repositories of its own."""
    server.heal()
    return server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the caches."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(server: FakeHub, home: Path) -> Iterator[Worker]:
    """Return a process that may ask the Hub."""
    with contextlib.closing(Worker(home, server.url)) as worker:
        yield worker


@pytest.fixture(scope="module")
def offline(server: FakeHub, home: Path) -> Iterator[Worker]:
    """Return a process with the same caches that may not."""
    with contextlib.closing(Worker(home, server.url, HF_HUB_OFFLINE="1")) as worker:
        yield worker


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Files:
    """Return the files of a small checkpoint, and such as lie beside it on the Hub and are not needed."""
    beside = {
        "README.md": b"---\nlicense: mit\n---\n# tiny\n",
        "tf_model.h5": b"x",
        "evil.py": b"x",
        "onnx/config.json": b"{}",
    }
    beside |= {"pytorch_model.bin": b"x", "model.fp16.safetensors": b"x"}
    return {path.name: path.read_bytes() for path in tiny_model.iterdir()} | beside


def training(folder: Path, model: str, output: str = "run", *settings: object) -> list[object]:
    """Return a command that trains a model for an epoch on rows of its own."""
    train, test = (write_csv(folder / f"{n}.csv", toy_rows(rows, rows)) for n, rows in (("train", 24), ("test", 12)))
    files = [f"data.train={train}", f"data.validation={test}", f"model={model}", f"output_dir={folder / output}"]
    return ["train", "bert_classification", *files, "baseline=none", *FAST, "train.num_train_epochs=1", *settings]


def environment(run: Path) -> dict[str, Any]:
    """Return what a run noted of its surroundings."""
    return dict(json.loads((run / "environment.json").read_text(encoding="utf-8")))


def assert_error(answer: Answer, code: int, *mentions: str) -> str:
    """Check code and form of an error and return its text."""
    found = answer.err.splitlines()
    start = next((number for number, text in enumerate(found) if text.startswith("error: ")), None)
    assert start is not None, answer.err
    assert len(found[start:]) <= 3, answer.err
    text = "\n".join(found[start:])
    assert answer.code == code, text
    assert "Traceback" not in answer.err
    for part in mentions:
        assert part in text, text
    return text


# A checkpoint


def test_a_checkpoint_is_downloaded_trained_and_found_again_without_the_hub(
    hub: FakeHub, online: Worker, offline: Worker, checkpoint: Files, tmp_path: Path, home: Path
) -> None:
    commit = hub.model("org/tiny", checkpoint).refs["main"]
    online.done(*training(tmp_path, "org/tiny"))
    assert environment(tmp_path / "run")["model"] == f"revision:{commit}"
    asked = hub.asked_for("/org/tiny/")
    for name in checkpoint:
        needed = name in {WEIGHTS, "README.md", "config.json", "tokenizer.json", "tokenizer_config.json"}
        assert any(line.endswith(f"/{name}") for line in asked) == needed, name
    for path in (tmp_path / "run").rglob("*.json*"):
        assert str(home) not in path.read_text(encoding="utf-8"), path

    hub.asked.clear()
    online.done(*training(tmp_path, "org/tiny", "again"))
    assert not [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    hub.asked.clear()
    offline.done(*training(tmp_path, "org/tiny", "offline"))
    assert hub.asked == []
    hub.down = True
    online.done(*training(tmp_path, "org/tiny", "down"))
    card = (tmp_path / "offline" / "README.md").read_text(encoding="utf-8")
    assert "\nlicense: mit\n" in card
    for name in ("again", "offline", "down"):
        assert environment(tmp_path / name)["model"] == f"revision:{commit}"
        assert sha256(tmp_path / name / "model" / WEIGHTS) == sha256(tmp_path / "run" / "model" / WEIGHTS)


def test_an_adapter_stands_on_the_commit_that_it_was_trained_on(
    hub: FakeHub, online: Worker, offline: Worker, checkpoint: Files, tmp_path: Path, home: Path
) -> None:
    repository = hub.model("org/base", checkpoint)
    commit = repository.refs["main"]
    online.done(*training(tmp_path, "org/base", "run", "adapter=lora"))
    told = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (told["base_model_name_or_path"], told["revision"]) == ("org/base", commit)
    question = ("predict", tmp_path / "run", "--input", tmp_path / "test.csv")
    before = offline.done(*question).out
    repository.commit(checkpoint | {"config.json": b"{}"})  # main moves on
    assert online.done(*question).out == before
    # The adapter itself may lie on the Hub.
    files = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    hub.model("org/adapter", files)
    online.done(*training(tmp_path, "org/adapter", "further"))
    assert not (tmp_path / "further" / "model" / "adapter_config.json").exists()


def test_an_encoder_decoder_of_the_hub_learns_to_summarise(hub: FakeHub, online: Worker, tmp_path: Path) -> None:
    stored = tiny_seq2seq.t5(tmp_path / "t5")
    commit = hub.model("org/t5", {path.name: path.read_bytes() for path in stored.iterdir()}).refs["main"]
    run = tmp_path / "run"
    settings = ["baseline=none", "train.max_steps=2", "train.mixed_precision=no", "generation.max_new_tokens=6"]
    files = tiny_seq2seq.pair_files(tmp_path, train=16)
    online.done("train", "summarization", *files, "model=org/t5", f"output_dir={run}", *settings)
    assert environment(run)["model"] == f"revision:{commit}"
    assert "source_prefix: 'summarize: '" in (run / "config.yaml").read_text(encoding="utf-8")
    rows = online.done("predict", run / "model", "--input", tmp_path / "test.jsonl", "--source-column", "text").out
    assert len(rows.splitlines()) == 12


def other_weights(checkpoint: Files, folder: Path) -> Files:
    """Return the checkpoint with all weights doubled."""
    (folder / WEIGHTS).write_bytes(checkpoint[WEIGHTS])
    tensors = {name: tensor * 2 for name, tensor in load_file(folder / WEIGHTS).items()}
    return checkpoint | {WEIGHTS: save(tensors, {"format": "pt"})}


def test_a_revision_is_trained_recorded_and_kept_apart_from_main(
    hub: FakeHub, online: Worker, offline: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    repository = hub.model("org/pinned", checkpoint)
    old = repository.refs["feature/old"] = repository.refs["main"]
    new = repository.commit(other_weights(checkpoint, tmp_path))
    frozen = ["train.learning_rate=1e-12", "train.warmup_ratio=0"]  # what is saved is what was loaded
    wanted = {"org/pinned@feature/old": old, "org/pinned": new, f"org/pinned@{old}": old}
    sizes = []
    for number, (model, commit) in enumerate(wanted.items()):
        for worker, where in ((online, f"{number}-online"), (offline, f"{number}-offline")):
            worker.done(*training(tmp_path, model, where, *frozen))
            assert environment(tmp_path / where)["model"] == f"revision:{commit}"
            saved = load_file(tmp_path / where / "model" / WEIGHTS)
            sizes.append(saved["bert.encoder.layer.0.output.dense.weight"].norm().item())
    assert [size / sizes[0] for size in sizes] == pytest.approx([1, 1, 2, 2, 1, 1])
    assert "base_model: org/pinned\n" in (tmp_path / "0-online" / "README.md").read_text(encoding="utf-8")
    assert_error(online.call(*training(tmp_path, "org/pinned@v9", "x")), 66, "no branch, tag or commit v9")
    assert_error(offline.call(*training(tmp_path, "org/pinned@v9", "x")), 69, "org/pinned@v9 is not on this machine")
    assert_error(online.call(*training(tmp_path, "org/pinned@", "x")), 2, "a branch, tag or commit after @")


def test_a_branch_that_moves_during_the_download_is_no_mixture(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    repository = hub.model("org/moving", checkpoint)
    changed = other_weights(checkpoint, tmp_path)
    hub.after["/cdn/"] = lambda: repository.commit(changed)
    assert_error(online.call(*training(tmp_path, "org/moving")), 69, "has changed meanwhile", "run the command again")
    assert not (tmp_path / "run").exists()
    online.done(*training(tmp_path, "org/moving"))
    assert environment(tmp_path / "run")["model"] == f"revision:{repository.refs['main']}"


def test_a_download_that_breaks_off_once_goes_on_where_it_was(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path, home: Path
) -> None:
    hub.model("org/shaky", other_weights(checkpoint, tmp_path))
    hub.cuts[WEIGHTS] = 1
    online.done(*training(tmp_path, "org/shaky"))
    assert "bytes=" in hub.asked_for("/cdn/")[-1]
    blobs = home / "hub" / "models--org--shaky" / "blobs"
    assert {path.name for path in blobs.iterdir()} == {
        blob_id(path.read_bytes()) if len(path.name) == 40 else sha256(path) for path in blobs.iterdir()
    }


def test_a_download_that_breaks_off_leaves_no_half_file_and_the_next_try_ends_well(
    hub: FakeHub, online: Worker, offline: Worker, checkpoint: Files, tmp_path: Path, home: Path
) -> None:
    hub.model("org/broken", checkpoint)
    hub.cuts[WEIGHTS] = 100
    assert_error(online.call(*training(tmp_path, "org/broken")), 69, "the download broke off", "run the command again")
    assert not (tmp_path / "run").exists()
    cache = home / "hub" / "models--org--broken"
    assert not list(cache.rglob(WEIGHTS))
    assert not list(cache.rglob("*.incomplete"))
    assert_error(offline.call(*training(tmp_path, "org/broken")), 69, "not on this machine")
    hub.cuts[WEIGHTS] = 0
    online.done(*training(tmp_path, "org/broken"))
    offline.done(*training(tmp_path, "org/broken", "offline"))


# Who may not


def test_what_is_not_on_the_hub_is_told_with_the_nearest_name_and_how_to_log_in(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    hub.model("org/known-small", checkpoint)
    online.done(*training(tmp_path, "org/known-small"))
    answer = online.call(*training(tmp_path, "org/known-smal", "x"))
    assert_error(answer, 66, "does not exist or is private; did you mean org/known-small?", "hf auth login", "HF_TOKEN")
    assert_error(online.call(*training(tmp_path, "minlim", "x")), 66, "did you mean minilm?")
    assert not (tmp_path / "x").exists()


def holding(folder: Path, secret: str) -> list[Path]:
    """Return the files below a folder that hold a secret."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(("access", "words"), [("private", "does not exist or is private"), ("gated", "it is gated")])
def test_a_closed_repository_opens_with_the_right_token_which_nobody_gets_to_see(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path, home: Path, access: str, words: str
) -> None:
    token, stranger = f"hf_right{access}secret", "hf_strangersecret"
    hub.people.add(stranger)
    commit = hub.model(f"org/{access}", checkpoint, access, reader=token).refs["main"]
    answers = [online.call(*training(tmp_path, f"org/{access}"), **given) for given in ({}, {"HF_TOKEN": stranger})]
    assert_error(answers[0], 66, words, "to log in: hf auth login, or set HF_TOKEN")
    assert_error(answers[1], 66, words, "you are logged in, so check the spelling, and what your token")
    answers.append(online.call(*training(tmp_path, f"org/{access}"), HF_TOKEN="hf_outdatedsecret"))
    assert_error(answers[2], 66, "does not accept your token (answer 401); log in again: hf auth login")
    assert not (tmp_path / "run").exists()
    answers.append(online.done(*training(tmp_path, f"org/{access}"), HF_TOKEN=token))
    assert environment(tmp_path / "run")["model"] == f"revision:{commit}"
    for secret in (token, stranger, "hf_outdatedsecret"):
        assert not [answer for answer in answers if secret in answer.out + answer.err]
        assert holding(tmp_path, secret) + holding(home, secret) == []
    assert [question for question, sent in hub.tokens if sent == token and f"/org/{access}/" in question]
    assert not [question for question, _ in hub.tokens if "/cdn/" in question]


# A Hub that is ill


def test_a_name_that_is_nearly_a_known_one_is_asked_about_without_a_network() -> None:
    place = Place("model=mini-lm", "model", "mini-lm", others=("mini-mbert", "minilm"))
    message = str(not_here(place, "no answer", "give a local folder: model=PATH"))
    assert message.startswith("model=mini-lm is not on this machine and the Hub cannot be reached (no answer)")
    assert "; did you mean minilm?\n" in message


def test_a_hub_out_of_order_is_told_and_the_cache_helps(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    hub.model("org/ill", checkpoint)
    hub.status["/org/ill"] = 500
    assert_error(
        online.call(*training(tmp_path, "org/ill")), 69, "cannot be reached (the Hub answered 500)", "model=PATH"
    )
    hub.status["/org/ill"] = 429
    assert_error(online.call(*training(tmp_path, "org/ill")), 69, "the Hub answered 429; try again later")
    del hub.status["/org/ill"]
    hub.status["/cdn/"] = 503
    assert_error(online.call(*training(tmp_path, "org/ill")), 69, "the download broke off (the Hub answered 503)")
    assert not (tmp_path / "run").exists()
    del hub.status["/cdn/"]
    online.done(*training(tmp_path, "org/ill"))
    hub.status["/org/ill"] = 503
    online.done(*training(tmp_path, "org/ill", "cached"))


def test_a_hub_that_does_not_answer_is_left_within_seconds(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    hub.model("org/slow", checkpoint)
    hub.stalls.add("/api/models/org/slow")
    answer = online.call(*training(tmp_path, "org/slow"))
    assert_error(answer, 69, f"no answer within {ANSWER_SECONDS:g} seconds", "model=PATH")
    assert answer.seconds < ANSWER_SECONDS + 2
    hub.stalls.clear()
    hub.stalls.add("/cdn/")
    assert_error(online.call(*training(tmp_path, "org/slow")), 69, "the download broke off (", "timed out")
    hub.stalls.clear()
    online.done(*training(tmp_path, "org/slow"))


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_network(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path, home: Path
) -> None:
    hub.model("org/full", checkpoint)
    (home / "hub").mkdir(exist_ok=True)
    (home / "hub" / "models--org--full").write_text("a file in the place of a folder")
    answer = online.call(*training(tmp_path, "org/full"))
    assert_error(answer, 74, f"the Hub's cache {home / 'hub'} cannot be written", "HF_HOME=FOLDER")


# Code


@pytest.mark.parametrize("kind", ["evil", "bert"])
def test_code_of_a_checkpoint_is_not_run(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path, kind: str
) -> None:
    marker = tmp_path / "marker"
    classes = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    config = json.loads(checkpoint["config.json"]) | {"model_type": kind, "auto_map": classes}
    code = f"open({str(marker)!r}, 'w')\n".encode()
    hub.model(f"org/own-{kind}", checkpoint | {"config.json": json.dumps(config).encode(), "evil.py": code})
    answer = online.call(*training(tmp_path, f"org/own-{kind}"))
    if kind == "evil":
        assert_error(answer, 77, "its files ask to run their own code")
        assert not (tmp_path / "run").exists()
    else:  # transformers has this architecture, so it does without
        assert answer.code == 0, answer.err
    assert not marker.exists()
    assert not hub.asked_for("evil.py")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_payload_in_bin_weights_is_refused_and_not_run(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    torch.save({"pooler.dense.bias": Payload(marker)}, tmp_path / "x.bin")
    files = {name: data for name, data in checkpoint.items() if not name.endswith("safetensors")}
    hub.model("org/pickle", files | {"pytorch_model.bin": (tmp_path / "x.bin").read_bytes()})
    assert_error(online.call(*training(tmp_path, "org/pickle")), 77, "refusing a .bin file that contains code")
    assert not marker.exists()
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert marker.exists()  # it would have fired


@pytest.mark.parametrize(
    ("absent", "code", "words"),
    [
        ("config.json", 66, "the repository has no config.json"),
        ("tokenizer.json", 65, "the repository: tokenizer files are missing"),
        ("safetensors", 65, "the repository has no weights for PyTorch"),
    ],
)
def test_a_repository_that_lacks_a_part_is_refused_before_a_byte_is_downloaded(
    hub: FakeHub, online: Worker, checkpoint: Files, tmp_path: Path, absent: str, code: int, words: str
) -> None:
    files = {name: data for name, data in checkpoint.items() if not name.endswith((absent, ".bin"))}
    hub.model(f"org/no-{absent}-here", files)
    assert_error(online.call(*training(tmp_path, f"org/no-{absent}-here")), code, words)
    assert len(hub.asked_for(f"/org/no-{absent}-here")) == 1


# A data set


def data_set(kind: str = "csv") -> Files:
    """Return a data set of two configurations, CSV or Parquet, with a card that names their files."""
    configs = ""
    files: Files = {}
    for number, config in enumerate(("en", "it")):
        configs += f"- config_name: {config}\n  data_files:\n"
        for split, rows in {"train": 60, "test": 12}.items():
            configs += f"  - split: {split}\n    path: {config}/{split}.{kind}\n"
            table = toy_rows(rows, rows + number)
            files[f"{config}/{split}.{kind}"] = as_csv(table) if kind == "csv" else as_parquet(table)
    return files | {"README.md": f"---\nconfigs:\n{configs}---\n# A set\n".encode()}


def as_csv(rows: list[tuple[str, str, str]]) -> bytes:
    """Return rows under a header."""
    return "".join(",".join(row) + "\n" for row in [("id", "text", "label"), *rows]).encode()


def as_parquet(rows: list[tuple[str, str, str]]) -> bytes:
    """Return rows as a Parquet file."""
    columns = dict(zip(("id", "text", "label"), map(list, zip(*rows, strict=True)), strict=True))
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def scoring(folder: Path, name: str, output: str, *settings: object) -> list[object]:
    """Return a command that trains the cheap baseline on a data set of the Hub."""
    return ["baseline", f"data.name={name}", f"output_dir={folder / output}", *settings]


def test_a_data_set_is_read_at_its_revision_and_again_without_the_hub(
    hub: FakeHub, online: Worker, offline: Worker, tmp_path: Path
) -> None:
    repository = hub.dataset("org/set", data_set())
    old = repository.refs["v1"] = repository.refs["main"]
    pinned = ["data.config=en", "data.revision=v1"]
    online.done(*scoring(tmp_path, "org/set", "online", *pinned))
    noted = environment(tmp_path / "online")["data_sha256"]
    assert set(noted) == {"org/set/en[train]", "org/set/en[test]"}
    assert {digest.partition(":")[0] for digest in noted.values()} == {old}

    hub.asked.clear()
    offline.done(*scoring(tmp_path, "org/set", "offline", *pinned))
    offline.done(*scoring(tmp_path, "org/set", "by-commit", "data.config=en", f"data.revision={old}"))
    assert hub.asked == []
    for name in ("offline", "by-commit"):
        assert environment(tmp_path / name)["data_sha256"] == noted
        assert sha256(tmp_path / name / "predictions" / "test.jsonl") == sha256(
            tmp_path / "online" / "predictions" / "test.jsonl"
        )
    answer = offline.call(*scoring(tmp_path, "org/set", "x", "data.config=en", "data.revision=v2"))
    assert_error(answer, 69, "HF_HUB_OFFLINE=1", f"the cache holds revision {old[:12]}, which may not be v2")

    new = repository.commit(data_set() | {"en/train.csv": as_csv(toy_rows(48, 7))})
    online.done(*scoring(tmp_path, "org/set", "new", "data.config=en"))
    assert environment(tmp_path / "new")["data_sha256"]["org/set/en[train]"].startswith(f"{new}:")
    answer = offline.call(*scoring(tmp_path, "org/set", "x", *pinned))
    assert_error(answer, 69, f"the cache holds revision {new[:12]}, which may not be v1")


def test_a_data_set_that_cannot_be_had_is_told_in_the_words_of_a_model(
    hub: FakeHub, online: Worker, tmp_path: Path
) -> None:
    files = data_set("parquet")
    hub.dataset("org/closed", files, "gated", reader="hf_datasetreader")
    repository = hub.dataset("org/lame", files)
    hub.status["datasets/org/lame"] = 500
    hub.stalls.add("datasets/org/mute")
    for name, code, words in (
        ("org/nothing", 66, ["on the Hub it does not exist or is private", "hf auth login"]),
        ("org/closed", 66, ["gated", "hf auth login, or set HF_TOKEN"]),
        ("org/lame", 69, ["cannot be reached (the Hub answered 500)", "data.train=FILE.csv"]),
        ("org/mute", 69, ["no answer within 4 seconds", "data.train=FILE.csv"]),
    ):
        assert_error(online.call(*scoring(tmp_path, name, "x", "data.config=en")), code, f"data.name={name}", *words)
    hub.stalls.clear()
    hub.status.clear()
    online.done(*scoring(tmp_path, "org/closed", "open", "data.config=en"), HF_TOKEN="hf_datasetreader")
    answer = online.call(*scoring(tmp_path, "org/lame", "x", "data.config=xx"))
    assert_error(answer, 2, "data.name=org/lame", "'xx' not found", "data.config=NAME")
    assert_error(
        online.call(*scoring(tmp_path, "org/lame", "x", "data.revision=v7")), 66, "no branch, tag or commit v7"
    )
    hub.cuts["train.parquet"] = 100
    answer = online.call(*scoring(tmp_path, "org/lame", "x", "data.config=it"))
    assert_error(answer, 69, "data.name=org/lame: the download broke off", "run the command again")
    hub.cuts.clear()
    assert not (tmp_path / "x").exists()
    online.done(*scoring(tmp_path, "org/lame", "x", "data.config=it"))
    repository.commit(files | {"it/train.parquet": b"not Parquet"})
    answer = online.call(*scoring(tmp_path, "org/lame", "y", "data.config=it"))
    assert_error(answer, 65, "data.name=org/lame cannot be read: ", "Parquet magic bytes not found")


# Uploads

WRITER = "hf_writersecret"


@pytest.fixture(scope="module")
def trained(online: Worker, checkpoint: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a classifier."""
    return trained_on(online, checkpoint, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def adapted(online: Worker, checkpoint: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that trained an adapter."""
    return trained_on(online, checkpoint, tmp_path_factory.mktemp("adapted"), "adapter=lora", "target_modules=[query]")


def trained_on(online: Worker, checkpoint: Files, folder: Path, *settings: str) -> Path:
    base = folder / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS):
        (base / name).write_bytes(checkpoint[name])
    online.done(*training(folder, str(base), "run", *settings))
    return folder / "run"


def predicted(worker: Worker, model: Path, folder: Path) -> list[dict[str, Any]]:
    """Return what a model says of the rows that it was tested on."""
    texts = write_csv(folder / "texts.csv", toy_rows(12, 12))
    return list(worker.done("predict", model, "--input", texts, "--json").json)


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_a_pushed_model_comes_back_as_it_was(
    hub: FakeHub, online: Worker, trained: Path, tmp_path: Path, home: Path, way: str
) -> None:
    hub.writer(WRITER, "ada")
    as_ada = {"HF_TOKEN": WRITER} | ({"HF_HUB_DISABLE_XET": "1"} if way == "lfs" else {})
    answer = online.done("export", trained, "--push", f"ada/{way}", **as_ada)
    assert f"pushed    {hub.url}/ada/{way} · private" in answer.out
    repository = hub.repositories[f"models/ada/{way}"]
    files = {path.name: path.read_bytes() for path in (trained / "model").iterdir()}
    assert repository.commits[repository.refs["main"]] == files | {".gitattributes": b""}
    assert repository.access == "private"
    assert bool(hub.asked_for("xet-write-token")) == (way == "xet")
    assert bool(hub.asked_for("/lfs/objects/batch")) == (way == "lfs")
    commits = len(repository.commits)
    again = online.done("export", trained, "--push", f"ada/{way}", "--json", **as_ada).json
    assert again["commit"] == repository.refs["main"]
    assert len(repository.commits) == commits  # nothing new, no commit

    online.done(*training(tmp_path, f"ada/{way}"), **as_ada)
    assert bool(hub.asked_for("xet-read-token")) == (way == "xet")
    (snapshot,) = (home / "hub" / f"models--ada--{way}" / "snapshots").iterdir()
    assert predicted(online, snapshot, tmp_path) == predicted(online, trained / "model", tmp_path)


def test_weights_that_were_there_make_room_and_other_files_stay(
    hub: FakeHub, online: Worker, adapted: Path, tmp_path: Path
) -> None:
    hub.writer(WRITER, "ada", "lab")
    told = online.done("export", adapted, "--push", "lab/tickets", "--public", HF_TOKEN=WRITER)
    assert "the adapter stands on" in told.err
    assert "--merge takes it along" in told.err
    assert told.out.rstrip().endswith("lab/tickets · public")
    repository = hub.repositories["models/lab/tickets"]
    files = repository.commits[repository.refs["main"]]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    repository.commit(files | {"notes.txt": b"mine", "picture.bin": b"mine"})
    told = online.done("export", adapted, "--merge", "--push", "lab/tickets", HF_TOKEN=WRITER)
    assert "stands on" not in told.err
    assert told.out.startswith("merged ")
    assert told.out.rstrip().endswith("lab/tickets · public")  # as it was
    now = set(repository.commits[repository.refs["main"]])
    assert {WEIGHTS, "notes.txt", "picture.bin"} <= now
    assert not {"adapter_config.json", "adapter_model.safetensors"} & now


def test_a_model_is_not_shown_to_more_people_than_was_asked(hub: FakeHub, online: Worker, trained: Path) -> None:
    hub.writer(WRITER, "ada")
    repository = hub.model("ada/open", {"README.md": b"mine"})
    before = dict(repository.refs)
    answer = online.call("export", trained, "--push", "ada/open", "--private", HF_TOKEN=WRITER)
    assert_error(answer, 2, "ada/open is there already and public: nothing was uploaded", "/ada/open/settings")
    repository.access, repository.reader = "private", WRITER
    answer = online.call("export", trained, "--push", "ada/open", "--public", HF_TOKEN=WRITER)
    assert_error(answer, 2, "is there already and private", "leave --public out")
    assert repository.refs == before


def test_who_may_not_push_is_told_why_and_what_to_do(
    hub: FakeHub, online: Worker, trained: Path, tmp_path: Path, home: Path
) -> None:
    hub.writer(WRITER, "ada", "lab")
    hub.people.add("hf_readersecret")
    push = ["export", trained, "--push"]
    answers = [online.call(*push, "ada/x"), online.call(*push, "ada/x", HF_TOKEN="hf_outdatedsecret")]
    assert_error(answers[0], 66, "--push ada/x: the Hub does not know you", "hf auth login, or set HF_TOKEN")
    assert_error(answers[1], 66, "the Hub does not accept your token (answer 401)", "log in again")
    answers.append(online.call(*push, "reader/x", HF_TOKEN="hf_readersecret"))
    assert_error(answers[2], 66, "your token may not write there (answer 403: You don't have the rights", "HF_TOKEN")
    answers.append(online.call(*push, "labs/x", HF_TOKEN=WRITER))
    assert_error(answers[3], 66, "labs is none of yours on the Hub (answer 403", "did you mean lab?", "ada, lab")
    assert_error(online.call(*push, "a/b/c", HF_TOKEN=WRITER), 2, "--push a/b/c", "give OWNER/NAME")
    assert_error(online.call("export", trained, "--public"), 2, "--push OWNER/NAME")
    assert_error(online.call("export", trained), 2, "--output FOLDER, --push OWNER/NAME")
    hub.model("lab/theirs", {"README.md": b""})
    hub.owners[WRITER] = ("ada",)
    answers.append(online.call(*push, "lab/theirs", HF_TOKEN=WRITER))
    assert_error(answers[4], 66, "lab is none of yours", "this token may only read")
    for secret in (WRITER, "hf_readersecret", "hf_outdatedsecret"):
        assert not [answer for answer in answers if secret in answer.out + answer.err]
        assert holding(trained, secret) + holding(home, secret) == []


def test_a_push_that_breaks_off_leaves_no_half_model_and_goes_on(
    hub: FakeHub, online: Worker, trained: Path, tmp_path: Path
) -> None:
    hub.writer(WRITER, "ada")
    hub.objects.clear()
    push = ["export", trained, "--push", "ada/shaky"]
    answer = online.call(*push, HF_TOKEN=WRITER, HF_HUB_OFFLINE="1")
    assert_error(answer, 69, "--push ada/shaky: the Hub cannot be reached (HF_HUB_OFFLINE=1)", "run the command again")
    hub.down = True
    assert_error(online.call(*push, HF_TOKEN=WRITER), 69, "the Hub cannot be reached (Server disconnected")
    hub.heal()
    hub.status["/whoami-v2"] = 403
    assert_error(online.call(*push, HF_TOKEN=WRITER), 66, "your token may not write there (answer 403", "HF_TOKEN")
    hub.heal()
    hub.status["/xet-write-token/"] = 404
    answer = online.call(*push, HF_TOKEN=WRITER)
    assert_error(answer, 69, "the upload broke off", "a Hub without Xet is written to with HF_HUB_DISABLE_XET=1")
    hub.heal()
    hub.cuts["lfs"] = 100
    by_lfs = {"HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1"}
    answer = online.call(*push, **by_lfs)
    assert_error(answer, 69, "the upload broke off (Server disconnected", "run the command again")
    repository = hub.repositories["models/ada/shaky"]
    assert repository.commits[repository.refs["main"]] == {".gitattributes": b""}
    hub.heal()
    hub.status["/commit/"] = 503
    answer = online.call(*push, "--output", tmp_path / "model", **by_lfs)
    again = f"finetune export {tmp_path / 'model'} --push ada/shaky"
    assert_error(
        answer, 69, "the upload broke off (the Hub answered 503)", f"the folder is written; go on with: {again}"
    )
    assert repository.commits[repository.refs["main"]] == {".gitattributes": b""}
    hub.heal()
    online.done(*again.split()[1:], **by_lfs)
    assert not [line for line in hub.asked if line.startswith("PUT")]  # the weights had come whole
    assert WEIGHTS in repository.commits[repository.refs["main"]]


def test_a_push_that_is_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(push, "_create", interrupted)
    monkeypatch.setattr(push, "answer_within", lambda _, ask: ask())
    with pytest.raises(Interrupted, match="the upload was interrupted; run the command again") as left:
        push.push(tmp_path, push.Target("ada/x", None))
    assert left.value.code == 130
