"""A Hub on this machine for the real huggingface_hub, transformers and datasets; it fails on demand.

It answers what huggingface_hub 2.4 and datasets 5.2 ask for: information, trees and files of a revision, and of those
who upload: who they are, new repositories, what is to become of each file, and commits. Small files come straight, with
the id of their Git blob as ETag; large ones (weights, Parquet) by a redirect to a content address under another host's
name, as from the Hub's large file storage. What it does not know is 404 and stands in `unknown`.

Large files arrive by Git LFS, or by the Hub's own way, Xet: a library in Rust that cuts files into chunks. It takes a
folder (local://) for the store that is elsewhere on the Hub; what came that way also leaves that way.
"""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

LARGE = (".safetensors", ".bin", ".parquet")
ACTIONS = {"resolve", "revision", "tree", "preupload", "commit", "xet-write-token", "xet-read-token"}
XET_ENTRY = 48  # bytes of each entry of a Xet shard
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
        self.owners: dict[str, tuple[str, ...]] = {}  # token -> who may write with it: a person, then organisations
        self.objects: dict[str, bytes] = {}  # sha256 -> what came by Git LFS
        self.xet: dict[str, str] = {}  # sha256 -> name in the Xet store
        self.xet_store = Path(tempfile.mkdtemp(prefix="xet-"))
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
        shutil.rmtree(self.xet_store)

    def writer(self, token: str, *owners: str) -> None:
        """Let a token write to the repositories of a person, and of organisations."""
        self.people.add(token)
        self.owners[token] = owners

    def large(self, digest: str) -> bytes | None:
        """Return a large file that was uploaded, by its sha256."""
        if digest not in self.objects:
            self.xet |= xet_names(self.xet_store)
            if digest not in self.xet:
                return None
            self.objects[digest] = from_xet(self.xet_store, self.xet[digest])
        return self.objects[digest]

    def _add(self, key: str, files: Mapping[str, bytes], repository: Repository) -> Repository:
        repository.commit(files)
        self.repositories[key] = repository
        self.people |= {repository.reader} - {""}
        return repository


def blob_id(data: bytes) -> str:
    """Return the id that Git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def xet_names(store: Path) -> dict[str, str]:
    """Read from the shards of a Xet store the name of each whole file there, by its sha256.

    A shard is a header, then for each file an entry with its name, flags and number of parts, an entry for each part,
    one more for each where they carry proofs (bit 31), and one with the sha256 (bit 30); a name of ones ends them.
    """
    found = {}
    for shard in store.rglob("shards/*.mdb"):
        data, place = shard.read_bytes(), XET_ENTRY
        while data[place : place + 32] != b"\xff" * 32:
            flags, parts = struct.unpack_from("<II", data, place + 32)
            sha = place + XET_ENTRY * (1 + parts * (2 if flags >> 31 else 1))
            if flags >> 30 & 1:
                found[xet_hash(data, sha)] = xet_hash(data, place)
            place = sha + XET_ENTRY * (flags >> 30 & 1)
    return found


def xet_hash(data: bytes, place: int) -> str:
    """Return a hash in a shard as it is written: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, place))


def from_xet(store: Path, name: str) -> bytes:
    """Return a file of a Xet store; the one that uploads may hold it open, so a copy is read."""
    import hf_xet  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as temporary:
        copy, file = Path(temporary) / "store", Path(temporary) / "file"
        shutil.copytree(store, copy)
        session = hf_xet.XetSession()
        with session.new_file_download_group(
            endpoint=f"local://{copy}", token="x", token_expiry_unix_secs=2**40
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(name, None), str(file))
        return file.read_bytes()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
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
            case ["api", "whoami-v2"], _:
                self._who()
            case ["api", "validate-yaml"], _:
                self._json({"errors": [], "warnings": []})
            case ["api", "repos", "create"], _:
                self._create(**json.loads(self.body))
            case ["lfs", digest], _:
                self._take(digest)
            case [*_, "info", "lfs", "objects", "batch"], _:
                self._batch(json.loads(self.body)["objects"])
            case ["api", "models", *name], ["preupload" | "commit" | "xet-write-token" as what, revision]:
                self._write("/".join(["models", *name]), what, revision)
            case ["api", "models", *_], ["xet-read-token", _]:
                self._xet_token()
            case ["api", "models" | "datasets" as kind, *name], action_and_rest:
                asked, revision, *folder = action_and_rest or ["revision", "main"]
                self._information("/".join([kind, *name]), asked, revision, "/".join(folder), query)
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
            facts = {"id": key.partition("/")[2], "sha": sha, "private": repository.access == "private"}
            self._json(facts | {"siblings": [{"rfilename": name} for name in files]}, sha)

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
            if digest in self.hub.xet:
                route = f"{self.hub.url}/api/{key}/xet-read-token/{sha}"
                linked |= {"X-Xet-Hash": self.hub.xet[digest], "X-Xet-Refresh-Route": route}
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

    # Uploads

    def _who(self) -> None:
        if self.token not in self.hub.people:
            self._send(401, b'{"error": "Invalid username or password."}')
            return
        person, *others = self.hub.owners.get(self.token, ("reader",))
        self._json({"name": person, "orgs": [{"name": name} for name in others]})

    def _create(self, name: str, organization: str | None, visibility: str = "public", type: str = "model") -> None:
        owner = organization or self.hub.owners.get(self.token, ("reader",))[0]
        key, url = f"{type}s/{owner}/{name}", f"{self.hub.url}/{owner}/{name}"
        if owner not in self.hub.owners.get(self.token, ()):
            self._refuse(f"You don't have the rights to create a model under the namespace {owner}")
        elif key in self.hub.repositories:
            self._json({"url": url, "error": "You already created this model repo"}, status=409)
        else:
            self.hub._add(key, {".gitattributes": b""}, Repository(visibility, self.token))
            self._json({"url": url})

    def _write(self, key: str, what: str, revision: str) -> None:
        found = self._commit(key, revision)
        if found is None:
            return
        repository, sha = found
        if key.split("/")[1] not in self.hub.owners.get(self.token, ()):
            self._refuse("this token may only read")
        elif what == "xet-write-token":
            self._xet_token()
        elif what == "preupload":
            there = {entry["path"]: entry for entry in tree(repository.commits[sha], "", recursive=True)}
            asked = [file["path"] for file in json.loads(self.body)["files"]]
            self._json({"files": [planned(path, there.get(path)) for path in asked]})
        else:
            files = dict(repository.commits[sha])
            for one in map(json.loads, self.body.splitlines()):
                match one["key"], one["value"]:
                    case "file", value:
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile", value:
                        data = self.hub.large(value["oid"])
                        if data is None:
                            self._json({"error": f"{value['path']} was not uploaded"}, status=400)
                            return
                        files[value["path"]] = data
                    case "deletedFile", value:
                        del files[value["path"]]
            base = ModelCard(files.get("README.md", b"").decode(), ignore_metadata_errors=True).data.get("base_model")
            if base is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
                self._json({"error": "Invalid metadata in README.md"}, status=400)
                return
            new = repository.commit(files, revision)
            url = f"{self.hub.url}/{key.partition('/')[2]}/commit/{new}"
            self._json({"commitUrl": url, "commitOid": new})

    def _batch(self, objects: list[dict[str, object]]) -> None:
        """Say where the large files go that are not here yet, as Git LFS does."""
        for one in objects:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.store}/lfs/{one['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def _take(self, digest: str) -> None:
        if self.hub.breaks_off("lfs"):
            self.close_connection = True
            return
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.objects[digest] = self.body
        self._send(200, b"")

    def _xet_token(self) -> None:
        store, ends = f"local://{self.hub.xet_store}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(ends)}
        self._send(200, json.dumps({"casUrl": store, "accessToken": "xet", "exp": ends}).encode(), headers)

    def _refuse(self, why: str) -> None:
        self._send(403, json.dumps({"error": why}).encode(), {"Content-Type": "application/json"})

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

    def _json(self, value: object, sha: str | None = None, status: int = 200) -> None:
        at = {} if sha is None else {"X-Repo-Commit": sha}
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | at)

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


def planned(path: str, there: dict[str, object] | None) -> dict[str, object]:
    """Tell one who uploads how a file is to come, and the id of what is in its place now."""
    large = path.endswith(LARGE)
    now = None if there is None else there["lfs"]["oid"] if large else there["oid"]  # type: ignore[index]
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": now}


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
