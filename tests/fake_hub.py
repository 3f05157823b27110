"""A Hub on this machine for the real huggingface_hub, transformers and datasets; it fails on demand.

It answers what huggingface_hub 2.4 and datasets 5.2 ask for: information, trees and files of a revision. Small files
come straight, with the id of their Git blob as ETag; large ones (weights, Parquet) by a redirect to a content address
under another host's name, as from the Hub's large file storage. What it does not know is 404 and stands in `unknown`.
The Hub's own way to large files, Xet, is a library in Rust with a protocol of its own, and not here.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet")
ACTIONS = {"resolve", "revision", "tree"}
GIVES_UP = 30.0  # seconds that a stalled answer waits, at most


@dataclasses.dataclass
class Repository:
    """Files of each commit, and the commit of each branch or tag.

    `access` is public, gated (anybody sees that it is there, only `reader` gets its files) or private (for anybody but
    `reader`, a token, it does not exist).
    """

    access: str = "public"
    reader: str = ""
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch as a new commit and return its id."""
        number = f"{branch} {len(self.commits)} {sorted(files)}"
        sha = hashlib.sha1(number.encode() + b"".join(files.values())).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha


class FakeHub:
    """A server with its repositories, what was asked of it, and what goes wrong next."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.people: set[str] = set()  # tokens that the Hub knows
        self.asked: list[str] = []  # METHOD PATH, and the range of bytes if one is asked for
        self.tokens: list[tuple[str, str]] = []  # (question, token) where one came along
        self.unknown: list[str] = []  # paths
        self.release = threading.Event()  # ends what stalls
        self.heal()
        answers = type("Answers", (_Answers,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.store = self.url.replace("127.0.0.1", "localhost")  # a client takes it for another host
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def heal(self) -> None:
        """Let everything go well from now on, and forget what was asked."""
        self.down = False  # ends each connection without an answer
        self.cuts: dict[str, int] = {}  # file -> how many of the next answers break off
        self.after: dict[str, Callable[[], object]] = {}  # part of a path -> what happens once, when it was answered
        self.stalls: set[str] = set()  # parts of paths whose answer never comes
        self.status: dict[str, int] = {}  # part of a path -> status of the answer
        self.asked.clear()
        self.tokens.clear()

    def model(self, name: str, files: Mapping[str, bytes], access: str = "public", reader: str = "") -> Repository:
        """Add a model repository with one commit on main."""
        return self._add(f"models/{name}", files, Repository(access, reader))

    def dataset(self, name: str, files: Mapping[str, bytes], access: str = "public", reader: str = "") -> Repository:
        """Add a data set repository with one commit on main."""
        return self._add(f"datasets/{name}", files, Repository(access, reader))

    def asked_for(self, part: str) -> list[str]:
        """Return the questions that hold `part`, in order."""
        return [line for line in self.asked if part in line]

    def note(self, question: str, token: str) -> None:
        """Keep in mind what was asked, and with which token."""
        self.asked.append(question)
        self.tokens += [(question, token)] if token else []

    def breaks_off(self, file: str) -> bool:
        """Tell whether the next answer with this file ends before its end, and count it."""
        left = self.cuts.get(file, 0)
        self.cuts[file] = max(0, left - 1)
        return left > 0

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _add(self, key: str, files: Mapping[str, bytes], repository: Repository) -> Repository:
        repository.commit(files)
        self.repositories[key] = repository
        self.people |= {repository.reader} - {""}
        return repository


def blob_id(data: bytes) -> str:
    """Return the id that Git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.note(f"{self.command} {path} {self.headers.get('Range') or ''}".rstrip(), self.token)
        status = next((status for part, status in self.hub.status.items() if part in path), None)
        if self.hub.down or any(part in path for part in self.hub.stalls):
            self.hub.release.wait(0 if self.hub.down else GIVES_UP)
            self.close_connection = True
        elif status is not None:
            self._send(status, b"out of order")
        else:  # a revision with a slash is escaped, so the path is taken apart first
            self._route([unquote(part) for part in address.path.strip("/").split("/")], address.query)
            for part in [part for part in self.hub.after if part in path]:
                self.hub.after.pop(part)()

    def _route(self, parts: list[str], query: str) -> None:
        action = next((number for number, part in enumerate(parts) if part in ACTIONS), len(parts))
        match parts[:action], parts[action:]:  # a name has an owner or none: bert-base-uncased
            case ["cdn", digest, file], _:
                self._large(digest, file)
            case ["api", "models" | "datasets" as kind, *name], action_and_rest:
                what, revision, *folder = action_and_rest or ["revision", "main"]
                self._information("/".join([kind, *name]), what, revision, "/".join(folder), query)
            case ["datasets", *name], ["resolve", revision, *file]:
                self._file("/".join(["datasets", *name]), revision, "/".join(file))
            case name, ["resolve", revision, *file]:
                self._file("/".join(["models", *name]), revision, "/".join(file))
            case _:
                self.hub.unknown.append("/".join(parts))
                self._send(404, b"not known here")

    # Answers

    def _information(self, key: str, what: str, revision: str, folder: str, query: str) -> None:
        found = self._commit(key, revision)
        if found is None:
            return
        repository, sha = found
        files = repository.commits[sha]
        if what == "tree":
            self._json(tree(files, folder, "recursive=True" in query), sha)
        else:
            facts = {"id": key.partition("/")[2], "sha": sha, "siblings": [{"rfilename": name} for name in files]}
            self._json(facts, sha)

    def _file(self, key: str, revision: str, file: str) -> None:
        found = self._commit(key, revision)
        if found is None:
            return
        repository, sha = found
        data = repository.commits[sha].get(file)
        if repository.access == "gated" and self.token != repository.reader:
            self._send(403 if self.token else 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        elif file.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": sha}
            self._send(302, b"", linked | {"Location": f"{self.hub.store}/cdn/{digest}/{Path(file).name}"})
        else:
            self._content(file, data, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": sha})

    def _large(self, digest: str, file: str) -> None:
        commits = [files for repository in self.hub.repositories.values() for files in repository.commits.values()]
        data = next(d for files in commits for d in files.values() if hashlib.sha256(d).hexdigest() == digest)
        self._content(file, data, {"ETag": f'"{digest}"'})

    def _commit(self, key: str, revision: str) -> tuple[Repository, str] | None:
        """Find repository and commit, or send what the Hub answers to a stranger and return nothing."""
        repository = self.hub.repositories.get(key)
        if self.token and self.token not in self.hub.people:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._send(401, b"", message)
        elif repository is None or (repository.access == "private" and self.token != repository.reader):
            # It does not tell whether a repository is private or not there.
            self._send(404 if self.token else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif (sha := repository.refs.get(revision, revision)) in repository.commits:
            return repository, sha
        else:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    # Bytes

    def _content(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        breaks = self.command == "GET" and self.hub.breaks_off(file)
        # The first answer ends half-way, one that goes on from there before it brings a byte.
        self._send(
            206 if start else 200, data[start:], headers, sent=(0 if start else len(data) // 2) if breaks else None
        )

    def _json(self, value: object, sha: str) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", "X-Repo-Commit": sha})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None


def tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    """List a folder as the Hub does: files with size and ids, and folders."""
    entries: dict[str, dict[str, object]] = {}
    prefix = f"{folder}/" if folder else ""
    for name, data in files.items():
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        above = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        for path in above if recursive else above[:1]:
            entries[path] = {"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0}
        if recursive or len(parts) == 1:
            entry = {"type": "file", "path": name, "oid": blob_id(data), "size": len(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries[name] = entry
    return list(entries.values())
