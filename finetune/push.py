"""A model folder goes to the Hub: who may, what is replaced there, and each way to fail in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from finetune import __version__, adapters, hub
from finetune.deadline import answer_within
from finetune.errors import Exit, Interrupted, UserError, did_you_mean
from finetune.run import SECRET

# An adapter left beside merged weights, or a shard beside whole ones, would be loaded with them.
REPLACED = [
    adapters.CONFIG, adapters.WEIGHTS, "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
]  # fmt: skip
CREATE_SECONDS = 30.0


@dataclass(frozen=True)
class Target:
    """Where a model is to go: a name as the person gave it, its visibility if any was asked for, and how to try again.

    `owners` are the names under which the person may own models; none before the Hub told them.
    """

    name: str
    private: bool | None
    again: str = "run the command again"
    owners: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """Where a model is now: the repository's full name, its page, who sees it, and the commit."""

    repository: str
    address: str
    private: bool
    commit: str


def greet(name: str, private: bool | None) -> Target:
    """Learn from the Hub, within seconds, that it knows the person; raises UserError as `push` does, before any work.

    The token is that of HF_TOKEN or of `hf auth login`, and it goes to the Hub alone.
    """
    target = Target(name, private)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(Exit.USAGE, f"--push {name}: {hub.first_line(error)}; give OWNER/NAME") from None
    with _errors(target):
        hub.check_online("model")
        if huggingface_hub.get_token() is None:
            how = f"log in: hf auth login, or set HF_TOKEN to one that may write ({constants.ENDPOINT}/settings/tokens)"
            raise UserError(Exit.NO_INPUT, f"--push {name}: the Hub does not know you\n{how}")
        found = answer_within(hub.ANSWER_SECONDS, lambda: _api().whoami())
    owners = [str(found["name"]), *(str(one["name"]) for one in found.get("orgs", []))]
    return Target(name, private, owners=tuple(owners))


def push(folder: Path, target: Target) -> Pushed:
    """Upload a model folder as one commit on main, in a repository that is made where it is missing: private, unless
    public was asked for.

    Weights that were there before go; other files stay. Raises UserError: 2 where the repository is public and private
    was asked for, or the reverse; 66 where the Hub refuses, 69 where it cannot be reached or the upload breaks off.
    """
    with _errors(target):
        address = answer_within(CREATE_SECONDS, lambda: _create(target))
        private = bool(_api().repo_info(address.repo_id).private)
        if target.private not in {None, private}:
            now, asked = ("private", "--public") if private else ("public", "--private")
            what = f"{asked}: {address} is there already and {now}: nothing was uploaded"
            raise UserError(Exit.USAGE, f"{what}\nchange it in its settings ({address}/settings), or leave {asked} out")
        done = _api().upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            commit_message=f"Upload by finetune {__version__}",
            delete_patterns=REPLACED,
        )
    return Pushed(address.repo_id, str(address), private, done.oid)


def _api() -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(token=True)


def _create(target: Target) -> huggingface_hub.RepoUrl:
    return _api().create_repo(target.name, private=target.private is not False, exist_ok=True)


@contextmanager
def _errors(target: Target) -> Iterator[None]:
    """Turn the many ways in which an upload fails into a UserError."""
    try:
        yield
    except UserError:
        raise
    except hub.Unreachable as error:
        raise _unreachable(target, str(error)) from None
    except KeyboardInterrupt:
        text = f"--push {target.name}: the upload was interrupted; {_rerun(target)}"
        raise Interrupted(Exit.INTERRUPTED, text) from None
    except Exception as error:  # of the HTTP library, of hf_xet, of the file system
        answered = _answer_in(error)
        if answered is not None and answered.response.status_code < 500:
            raise _refusal(target, answered) from None
        if hub.cannot_write(error):
            raise hub.cache_error(f"--push {target.name}", error) from None
        reason = hub.first_line(error) if answered is None else f"the Hub answered {answered.response.status_code}"
        raise _unreachable(target, SECRET.sub("hf_***", reason)) from None


def _answer_in(error: BaseException | None) -> HfHubHTTPError | None:
    """Return the Hub's own answer that an error is, or passes on."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _refusal(target: Target, error: HfHubHTTPError) -> UserError:
    status, said = error.response.status_code, _said(error)
    owner, _, _ = target.name.rpartition("/")
    what = f"--push {target.name}: "
    if status == 401:
        what += "the Hub does not accept your token (answer 401)"
        return UserError(Exit.NO_INPUT, f"{what}; log in again: hf auth login, or set HF_TOKEN to another token")
    if status in {403, 404} and owner and target.owners and owner not in target.owners:
        guess = did_you_mean(owner, target.owners)
        what += f"{owner} is none of yours on the Hub (answer {status}{said}){guess}"
        return UserError(Exit.NO_INPUT, f"{what}\nyou may write to: {', '.join(target.owners)}")
    if status in {403, 404}:
        what += f"your token may not write there (answer {status}{said})"
        return UserError(Exit.NO_INPUT, f"{what}\nset HF_TOKEN to one with the right to write, or: hf auth login")
    if status == 429:
        return UserError(Exit.NO_NETWORK, f"{what}the Hub answered 429; try again later\n{_rerun(target)}")
    return UserError(Exit.NO_INPUT, f"{what}the Hub refuses it (answer {status}{said})")


def _said(error: HfHubHTTPError) -> str:
    text = " ".join((error.server_message or "").split())
    return f": {SECRET.sub('hf_***', text)[:150]}" if text else ""


def _unreachable(target: Target, reason: str) -> UserError:
    if not target.owners:
        return UserError(Exit.NO_NETWORK, f"--push {target.name}: the Hub cannot be reached ({reason})\n{target.again}")
    what = f"--push {target.name}: the upload broke off ({reason})\n{_rerun(target)}"
    if "/xet-write-token/" in reason:  # the library does not try another way by itself
        what += "\na Hub without Xet is written to with HF_HUB_DISABLE_XET=1"
    return UserError(Exit.NO_NETWORK, what)


def _rerun(target: Target) -> str:
    return f"{target.again}: the Hub shows the model whole or not at all, and what it has is not sent twice"
