"""The Hub: which commit a name stands for and which files it has, downloads, and each refusal in words."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from finetune.deadline import answer_within
from finetune.errors import Exit, UserError, did_you_mean

ANSWER_SECONDS = 4.0
OFFLINE_VARIABLES = {
    "model": ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    "dataset": ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
}
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
MAIN = "main"


@dataclass(frozen=True)
class Place:
    """A repository as a setting names it: `setting` is what the person wrote, for messages; `kind` model or dataset.

    `others` are the names that the setting takes and that need no Hub.
    """

    setting: str
    kind: str
    name: str
    revision: str = MAIN
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What the Hub has at a place: the commit that the revision stands for now, and the names of its files."""

    commit: str
    files: tuple[str, ...]


class Unreachable(Exception):
    """No answer came, or none that says anything about the repository; the text says why."""


def quiet() -> None:
    """Silence the Hub's library: its bars and warnings are not about the person's own data."""
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()


def ask(place: Place) -> Found:
    """Ask the Hub about a repository; the answer comes within ANSWER_SECONDS.

    Raises Unreachable where the Hub is silent, out of order or switched off by an environment variable, and UserError
    (66) where it refuses: no such repository or revision, or not for this person.
    """
    try:
        validate_repo_id(place.name)
    except HFValidationError:
        raise UserError(Exit.NO_INPUT, f"{place.setting}: {_nor_here(place)}no name that the Hub could have") from None
    check_online(place.kind)

    def question() -> Found:
        # The library's own retries would go on for half a minute without a network.
        about = huggingface_hub.HfApi().model_info if place.kind == "model" else huggingface_hub.HfApi().dataset_info
        info = about(place.name, revision=place.revision, timeout=ANSWER_SECONDS)
        return Found(str(info.sha), tuple(file.rfilename for file in info.siblings or ()))

    try:
        return answer_within(ANSWER_SECONDS, question)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise Unreachable(f"the Hub answered {error.response.status_code}") from None
        raise _refusal(place, error) from None
    except Exception as error:  # each HTTP library has its own errors for an unreachable host
        raise Unreachable(f"{constants.ENDPOINT}: {first_line(error)}") from None


def check_online(kind: str) -> None:
    """Raise Unreachable where an environment variable switches the Hub off for models or data sets."""
    for variable in OFFLINE_VARIABLES[kind]:
        if os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise Unreachable(f"{variable}={os.environ[variable]}")


def download(place: Place, found: Found, files: Iterable[str], last: str) -> Path:
    """Bring files of one commit into the Hub's cache and return their folder there.

    `last` comes last, under the name of the revision: where the cache has it, it has the others too. A file that
    breaks off is never taken for whole. Raises UserError: 69 where the download breaks off, 66 where it is not allowed,
    74 where the cache cannot be written.
    """
    with download_errors(place):
        for file in files:
            huggingface_hub.hf_hub_download(place.name, file, repo_type=place.kind, revision=found.commit)
        folder = remember(place, last)
    if folder.name != found.commit:
        raise broken_off(place, "the repository has changed meanwhile")
    return folder


def remember(place: Place, file: str) -> Path:
    """Note in the Hub's cache which commit a revision stands for, by a file of it; return the folder of the commit."""
    path = huggingface_hub.hf_hub_download(place.name, file, repo_type=place.kind, revision=place.revision)
    return Path(path).parent


def cached(place: Place, file: str) -> Path | None:
    """Return the folder of a commit in the Hub's cache, where the cache knows the revision and has the file."""
    path = huggingface_hub.try_to_load_from_cache(place.name, file, repo_type=place.kind, revision=place.revision)
    return Path(path).parent if isinstance(path, str) else None


@contextmanager
def download_errors(place: Place) -> Iterator[None]:
    """Turn the many ways in which a download fails into a UserError."""
    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise _refusal(place, error) from None
        raise broken_off(place, f"the Hub answered {error.response.status_code}") from None
    except UserError:
        raise
    except Exception as error:  # of the HTTP library, of hf_xet, of the file system
        if cannot_write(error):
            raise cache_error(place.setting, error) from None
        raise broken_off(place, first_line(error)) from None


def cannot_write(error: Exception) -> TypeGuard[OSError]:
    """Tell whether an error is about this machine's disk, and not about the network."""
    return isinstance(error, OSError) and error.errno in CANNOT_WRITE


def cache_error(setting: str, error: OSError) -> UserError:
    """Return the error of a cache that cannot be written."""
    what = f"{setting}: the Hub's cache {constants.HF_HUB_CACHE} cannot be written: {error.strerror}"
    return UserError(Exit.IO_FAILED, f"{what}\nmake room, or name another folder: HF_HOME=FOLDER")


def broken_off(place: Place, reason: str) -> UserError:
    """Return the error of a download that ended before its end."""
    what = f"{place.setting}: the download broke off ({reason})"
    return UserError(Exit.NO_NETWORK, f"{what}\nrun the command again: files that came whole are kept, no half file is")


def not_here(place: Place, reason: object, instead: str) -> UserError:
    """Return the error of what is neither in the cache nor to be had; `instead` says what to give in its place."""
    what = f"{place.setting} is not on this machine and the Hub cannot be reached ({reason})"
    return UserError(Exit.NO_NETWORK, f"{what}{did_you_mean(place.name, _known(place))}\n{instead}")


def how_to_log_in() -> str:
    """Say how the Hub gets to know the person, or that it does."""
    if huggingface_hub.get_token():
        return "you are logged in, so check the spelling, and what your token (HF_TOKEN or hf auth login) may read"
    return "to log in: hf auth login, or set HF_TOKEN to a token that may read it"


def _refusal(place: Place, error: HfHubHTTPError) -> UserError:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return UserError(Exit.NO_INPUT, f"{place.setting}: {place.name} has no branch, tag or commit {place.revision}")
    if isinstance(error, EntryNotFoundError):
        return broken_off(place, "the repository has changed meanwhile")
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        what = f"{place.setting}: {_nor_here(place)}on the Hub it is gated: accept its terms on its page and log in"
    elif isinstance(error, RepositoryNotFoundError):
        guess = did_you_mean(place.name, _known(place))
        what = f"{place.setting}: {_nor_here(place)}on the Hub it does not exist or is private{guess}"
    elif status in {401, 403}:
        what = f"{place.setting}: the Hub does not accept your token (answer {status})"
        return UserError(Exit.NO_INPUT, f"{what}; log in again: hf auth login, or set HF_TOKEN to another token")
    else:
        return UserError(Exit.NO_NETWORK, f"{place.setting}: the Hub answered {status}; try again later")
    return UserError(Exit.NO_INPUT, f"{what}\n{how_to_log_in()}")


def _nor_here(place: Place) -> str:
    return "no such folder, and " if place.kind == "model" else ""


def _known(place: Place) -> list[str]:
    """Return names that may have been meant: those in the cache, and those that need no Hub."""
    prefix = f"{place.kind}s--"
    folders = Path(constants.HF_HUB_CACHE).glob(f"{prefix}*")
    return [*(folder.name.removeprefix(prefix).replace("--", "/") for folder in folders), *place.others]


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or where it only passes another one on, of that one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0][:150] if text else type(error).__name__
