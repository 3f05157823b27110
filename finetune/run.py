"""The run folder: the only place that knows its files, holds its lock and writes into it."""

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from finetune import __version__, terminal
from finetune.config import to_yaml
from finetune.errors import Exit, UserError

RECORDED_PACKAGES = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "scikit-learn", "numpy", "skops",
)  # fmt: skip
OWN_NAMES = (
    "config.yaml", "environment.json", "train.log", "metrics.jsonl", "results.json", "README.md", "report.html",
    "checkpoints", "model", "predictions", "explain", "budget", "pictures", "rows",
)  # fmt: skip
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}")
Model = TypeVar("Model")


@dataclasses.dataclass(frozen=True)
class Crew:
    """The processes that a run has: whether this is the one that speaks and writes, and how it waits for the others."""

    is_main: bool = True
    wait: Callable[[], None] = lambda: None


ALONE = Crew()


class Run:
    """One run folder, locked while it is written; nothing appears on disk before `start`.

    A run that fails before its first update takes its new folder away again. Of several processes the main one alone
    speaks and writes; the others wait where they would read what it has not written yet.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        quiet: bool = False,
        dry_run: bool = False,
        crew: Crew = ALONE,
    ) -> None:
        self.folder = Path(folder)
        self.crew = crew
        self.resume = resume
        self.dry_run = dry_run
        self.updated = False
        self._overwrite = overwrite
        self._quiet = quiet or not crew.is_main
        self._created: list[Path] = []
        self._lock: FileLock | None = None
        self._log: list[str] | None = []  # lines said before the folder exists
        self._model = self.folder / "model"
        self._loaded: Any = None
        if crew.is_main:
            self._check_free()

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """Return a finished run, or a plain model folder, for reading; raises UserError (66) where it is neither."""
        path = Path(folder)
        run = cls.__new__(cls)
        run.folder, run._model, run._quiet, run.crew = path, path / "model", False, ALONE
        run._log, run._loaded = [], None  # what is said of a finished run is not written into it
        if not (path / "config.yaml").is_file():
            if not (path / "config.json").is_file():
                what = "is neither a run nor a model folder" if path.is_dir() else "no such folder"
                raise UserError(Exit.NO_INPUT, f"{folder}: {what}; give the output_dir of a finetune train")
            run._model = path
        return run

    @contextlib.contextmanager
    def part(self, folder: Path) -> Iterator["Run"]:
        """Write a run inside this run, resumed where this one is; what it leaves on disk must outlive a stop."""
        with Run(folder, resume=self.resume, crew=self.crew) as part:
            try:
                yield part
            finally:
                self.updated |= part.updated

    # Paths

    @property
    def checkpoints(self) -> Path:
        """Return the folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Return the folder that `from_pretrained` loads."""
        return self._model

    @property
    def config_file(self) -> Path:
        """Return the resolved configuration file."""
        return self.folder / "config.yaml"

    def budget_folder(self, rows: int, seed: int) -> Path:
        """Return the folder of a training on a label budget, a run inside the run."""
        return self.folder / "budget" / f"{rows}-rows-seed-{seed}"

    def picture_file(self, name: str) -> Path:
        """Return the file of a picture named `name`; its folder is made where it is missing."""
        path = self.folder / "pictures" / f"{name}.svg"
        with disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True)
        return path

    @property
    def report_file(self) -> Path:
        """Return the page for people."""
        return self.folder / "report.html"

    def row_folder(self, name: str) -> Path:
        """Return the folder of another row of a cross-lingual matrix, a run inside the run."""
        return self.folder / "rows" / name

    def predictions_file(self, name: str) -> Path:
        """Return the file that holds the predictions named `name` (test, validation, baseline.test)."""
        return self.folder / "predictions" / f"{name}.jsonl"

    # Life

    def start(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Make and lock the folder, write config.yaml and environment.json, and begin train.log.

        Raises UserError: 73 where another program holds the folder, 2 where a resumed run has another model or data.
        """
        if self.crew.is_main:
            self._begin(config, environment)
        self.crew.wait()

    def _begin(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self._make_folder()
        self._take_lock()
        if self._overwrite and not self.resume:
            self._clear()
        if self.resume:
            self._check_same(environment)
        write_atomic(self.config_file, to_yaml(dict(config)).encode())
        write_atomic(self.folder / "environment.json", _json(environment, indent=2))
        lines, self._log = self._log or [], None
        for text in lines:
            self._append("train.log", text)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.crew.wait()
        if self._lock is not None:
            (self.folder / ".holder.json").unlink(missing_ok=True)
            self._lock.release()
        if kind is not None and not self.updated:
            for folder in reversed(self._created):
                if folder == self.folder:
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        if self._lock is not None:
            (self.folder / ".lock").unlink(missing_ok=True)

    # Writing

    def say(self, head: str, text: str) -> None:
        """Tell the person one thing on stderr and keep it in train.log."""
        written = terminal.line(head, text)
        if not self._quiet:
            terminal.say(written)
        stamped = f"{datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')} {written}"
        if self._log is None:
            self._append("train.log", stamped)
        else:
            self._log.append(stamped)

    def metric(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl; a number that is not finite is written as text."""
        if self._log is not None:  # not started, as in a dry run: there is no folder
            return
        self._append("metrics.jsonl", _json(record).decode())

    def rewind_metrics(self, step: int) -> None:
        """Drop the records of metrics.jsonl that belong to updates after `step`."""
        path = self.folder / "metrics.jsonl"
        if not self.crew.is_main or not path.exists():
            return
        kept = [line for line in path.read_bytes().split(b"\n") if _step_of(line) <= step]
        write_atomic(path, b"".join(line + b"\n" for line in kept))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        self._write(self.folder / "results.json", _json(results, indent=2))

    def write_predictions(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write predictions/<name>.jsonl, one row a line."""
        self._write(self.predictions_file(name), b"".join(_json(row) + b"\n" for row in rows))

    def write_card(self, text: str) -> None:
        """Write the model card, README.md of the run and of its model folder."""
        self._write(self.folder / "README.md", text.encode())
        if self.model.is_dir():
            self._write(self.model / "README.md", text.encode())

    def write_report(self, page: str) -> None:
        """Write report.html."""
        self._write(self.report_file, page.encode())

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` fill a new folder, then put it in the place of model/ in one step."""
        if not self.crew.is_main:
            return
        temporary = self.folder / ".tmp-model"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with disk_errors(temporary):
            save(temporary)
            open_as_its_folder(temporary)
            if self.model.exists():
                shutil.rmtree(self.model)
            temporary.rename(self.model)

    def drop_weights(self) -> None:
        """Remove model/ and checkpoints/ of a run that had only to be scored."""
        if self.crew.is_main:
            for folder in (self.checkpoints, self.model):
                shutil.rmtree(folder, ignore_errors=True)

    # Reading

    def loaded(self, load: Callable[[Path], Model]) -> Model:
        """Return what `load` makes of model/: made once for this object, to be asked, never trained."""
        if self._loaded is None:
            self._loaded = load(self.model)
        found: Model = self._loaded
        return found

    def heard(self) -> list[str]:
        """Return what was said of a finished run since the last question, without the time, and forget it."""
        lines, self._log = self._log or [], []
        return [text.partition(" ")[2] for text in lines]

    def results(self) -> dict[str, Any]:
        """Return results.json; raises UserError where the run did not end, or there was none."""
        path = self.folder / "results.json"
        if not self.config_file.is_file():
            raise UserError(Exit.NO_INPUT, f"{self.folder} is a model folder, not a run: it has no results")
        if not path.is_file():
            raise UserError(
                Exit.NO_INPUT,
                f"{self.folder} has no results.json: the run did not end; repeat its command with --resume",
            )
        return dict(read_json(path))

    def read_predictions(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of predictions/<name>.jsonl; raises UserError where there are none."""
        path = self.predictions_file(name)
        if not path.is_file():
            raise UserError(Exit.NO_INPUT, f"{path}: no such file; {self.folder} has no predictions for {name}")
        rows = []
        for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
            try:
                rows.append(json.loads(text))
            except ValueError:
                raise UserError(Exit.BAD_DATA, f"{path}:{number} is not JSON") from None
        return rows

    def environment(self) -> dict[str, Any]:
        """Return environment.json; of several seeds that of the first, which names the data."""
        place = next(iter(self.seeds().values()), self).folder / "environment.json"
        return dict(read_json(place)) if place.is_file() else {}

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of metrics.jsonl; none where there is no such file."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def seeds(self) -> dict[int, "Run"]:
        """Return the runs of several seeds inside this one."""
        found = {int(path.name.removeprefix("seed-")): Run.open(path) for path in self.folder.glob("seed-*")}
        return dict(sorted(found.items()))

    def explanations(self) -> dict[str, str]:
        """Return the pictures that `finetune explain` left, SVG by name."""
        paths = sorted((self.folder / "explain").glob("*.svg"))
        return {path.stem: path.read_text(encoding="utf-8") for path in paths}

    # Inside

    def _check_free(self) -> None:
        try:
            os.lstat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
            raise self._cannot_make(error) from None
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(Exit.OUTPUT_TAKEN, f"output_dir={self.folder} is a file; give another folder")
        if self.folder.is_dir():
            self._check_holder()
            taken = any(path.name not in {".lock", ".holder.json"} for path in self.folder.iterdir())
            if taken and not self.resume and not self._overwrite:
                raise UserError(
                    Exit.OUTPUT_TAKEN,
                    f"output_dir={self.folder} is not empty; "
                    "give another folder, --resume to go on, or --overwrite to replace the run",
                )
        parent = next(path for path in [self.folder, *self.folder.absolute().parents] if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            what = "cannot be written to" if parent.is_dir() else "is not a folder"
            raise UserError(Exit.IO_FAILED, f"output_dir={self.folder}: {parent} {what}; give another folder")

    def _cannot_make(self, error: OSError | ValueError) -> UserError:
        reason = error.strerror if isinstance(error, OSError) else error
        return UserError(Exit.IO_FAILED, f"output_dir={str(self.folder)!r:.200}: {reason}; give another folder")

    def _check_holder(self) -> None:
        lock = self.folder / ".lock"
        if lock.exists():
            probe = FileLock(lock)
            try:
                probe.acquire(timeout=0)
                probe.release()
            except Timeout:
                raise self._held() from None

    def _held(self) -> UserError:
        try:
            holder = read_json(self.folder / ".holder.json")
            who = f"pid {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        return UserError(
            Exit.OUTPUT_TAKEN,
            f"output_dir={self.folder} is in use: locked by {who}; wait or give another folder",
        )

    def _make_folder(self) -> None:
        missing = [path for path in [self.folder.absolute(), *self.folder.absolute().parents] if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_make(error) from None
        self.folder = self.folder.absolute() if missing else self.folder
        self._created = list(reversed(missing))

    def _take_lock(self) -> None:
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            self._created = []
            raise self._held() from None
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomic(self.folder / ".holder.json", _json(holder))

    def _check_same(self, environment: Mapping[str, Any]) -> None:
        path, hashes = self.folder / "environment.json", environment["data_sha256"]
        stored = read_json(path) if path.is_file() else environment
        if stored.get("model") != environment.get("model"):  # a checkpoint may hold no more than an adapter
            what = f"--resume: model={environment.get('model')} is not the checkpoint that the run began with"
            raise UserError(Exit.USAGE, f"{what} ({stored.get('model')}); put it back, or train into a new output_dir")
        before = stored["data_sha256"]
        changed = sorted(name for name in {*before, *hashes} if before.get(name) != hashes.get(name))
        if changed:
            raise UserError(
                Exit.USAGE,
                f"--resume: the data has changed since the run began: {', '.join(changed)}; "
                "put the old files back, or train into a new output_dir",
            )

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name in OWN_NAMES or path.name.startswith(("seed-", ".tmp-")):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _write(self, path: Path, content: bytes) -> None:
        if self.crew.is_main:
            with disk_errors(self.folder):
                path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)

    def _append(self, name: str, text: str) -> None:
        with disk_errors(self.folder), (self.folder / name).open("a", encoding="utf-8") as stream:
            stream.write(SECRET.sub("hf_***", text) + "\n")


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden write inside the block into a UserError (exit 74)."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        full = number in {errno.ENOSPC, errno.EFBIG, errno.EDQUOT} or re.search(r"os error 2[78]\b", str(error))
        if full:
            free = terminal.size(shutil.disk_usage(folder).free)
            message = f"disk full while writing to {folder}: {free} free; make room, then repeat with --resume"
            raise UserError(Exit.IO_FAILED, message) from error
        if isinstance(error, OSError):
            raise UserError(Exit.IO_FAILED, f"cannot write to {folder}: {error.strerror or error}") from error
        raise


def open_as_its_folder(folder: Path) -> None:
    """Let those read all that is in a folder who may read it: safetensors lets nobody else, whatever the umask."""
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        path.chmod(mode & (0o777 if path.is_dir() else 0o666))


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    A link stays, and what it points to is written; into a device or a pipe the content goes straight.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        with disk_errors(path):
            path.write_bytes(content)
        return
    temporary = path.with_name(f".tmp-{path.name}")
    with disk_errors(path.parent):
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def environment(seed: int, device: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Describe where a run takes place: versions, commit, command (secrets masked), device, seed, data hashes."""
    versions = {"python": platform.python_version(), "finetune": __version__}
    for package in RECORDED_PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "platform": platform.platform(),
        "commit": _commit(),
        "command": SECRET.sub("hf_***", shlex.join(["finetune", *sys.argv[1:]])),
        "device": device,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
        "seed": seed,
        "data_sha256": dict(data),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent).encode()


def _finite(value: Any) -> Any:
    """JSON has no NaN: write such a number as text, so that it is seen and the file stays readable."""
    if isinstance(value, float) and (value != value or value in {float("inf"), float("-inf")}):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _step_of(text: bytes) -> int:
    try:
        return int(json.loads(text)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # half a line, written when the process was killed: drop it
