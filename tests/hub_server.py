"""A local stand-in for the Hugging Face Hub: as much of its HTTP API as a push and a download use."""

import base64
import hashlib
import json
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

from card_rules import card_errors

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Branches, each a mapping from names to contents; a branch moves with a commit, whole."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        content = sorted(
            (name, hashlib.sha1(data).hexdigest()) for name, data in self.branches[branch].items()
        )
        return hashlib.sha1(json.dumps([branch, content]).encode()).hexdigest()

    def branch(self, revision: str) -> str | None:
        """The branch of that name, or whose newest commit has that hash."""
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that are gone, such as killed ones; what else fails is said as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class HubServer:
    """The server; `with HubServer() as hub: hub.url`.

    Attributes:
        large: pattern of the names that travel through Git LFS.
        repositories: by id.
        requests: method and path of each, in order.
        drop: the connection is closed without an answer where this matches a request's `METHOD path`.
        drops: how often, at most.
        readonly: ids that nobody may write to.
    """

    def __init__(self) -> None:
        self.reset()
        # tests/conftest.py chose it before huggingface_hub was imported, which reads it once.
        self.url = os.environ["HF_ENDPOINT"]
        self._server = _Server(("127.0.0.1", int(self.url.rpartition(":")[2])), self._handler())

    def reset(self, *, large: str = r"\.safetensors$") -> None:
        """Forget everything, but go on listening: clients keep their connections for later requests."""
        self.large = large
        self.drop, self.drops = "", 0
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.readonly: set[str] = set()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        return self.repositories[repo_id].branches[branch]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self) -> None:
                body = _body(self)
                path = unquote(urlparse(self.path).path)
                hub.requests.append(f"{self.command} {path}")
                if hub.drop and hub.drops > 0 and re.search(hub.drop, hub.requests[-1]):
                    hub.drops -= 1
                    self.close_connection = True
                    return
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                status, value, headers = hub.respond(self.command, path, body, token)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
                for name, text in {"Content-Type": kind, **headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

        return Handler

    def respond(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers for one request."""
        if token and token != TOKEN:
            return 401, {"error": "Invalid credentials"}, {}
        if method == "PUT" and path.startswith("/_blob/"):
            self.blobs[path.removeprefix("/_blob/")] = body
            return 200, {}, {}
        if path == "/api/whoami-v2":
            return (200, {"name": "me", "type": "user", "orgs": []}, {}) if token else (401, {}, {})
        if path == "/api/validate-yaml":
            errors = card_errors(json.loads(body)["content"])
            return 400 if errors else 200, {"errors": errors, "warnings": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if found := re.match(r"/api/models/([^/]+/[^/]+)(?:/(.*))?$", path):
            return self._api(found[1], found[2] or "", method, body, token)
        if found := re.match(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$", path):
            return self._lfs(json.loads(body))
        if found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", path):
            return self._resolve(found[1], found[2], found[3], token)
        return _missing("RepoNotFound")

    def _create(self, request: dict[str, Any], token: str) -> tuple[int, Any, dict[str, str]]:
        if not token:
            return 401, {"error": "Unauthorized"}, {}
        repo_id = f"{request.get('organization') or 'me'}/{request['name']}"
        if repo_id in self.readonly:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}, {}
        known = repo_id in self.repositories
        if not known:
            private = request.get("private") or request.get("visibility") == "private"
            self.repositories[repo_id] = Repository(private=bool(private))
        return 409 if known else 200, {"url": f"{self.url}/{repo_id}", "id": repo_id, "name": repo_id}, {}

    def _visible(self, repo_id: str, token: str) -> Repository | None:
        repository = self.repositories.get(repo_id)
        return None if repository is None or (repository.private and not token) else repository

    def _api(
        self, repo_id: str, rest: str, method: str, body: bytes, token: str
    ) -> tuple[int, Any, dict[str, str]]:
        repository = self._visible(repo_id, token)
        if repository is None:
            return _missing("RepoNotFound") if token else (401, {}, {"X-Error-Code": "RepoNotFound"})
        action, _, revision = rest.partition("/")
        if method == "POST" and not token:
            return 401, {"error": "Unauthorized"}, {}
        if action == "branch":
            if revision in repository.branches:
                return 409, {"error": "Reference already exists"}, {}
            repository.branches[revision] = dict(repository.branches["main"])
            return 200, {}, {}
        branch = repository.branch(revision.split("/")[0] or "main")
        if branch is None:
            return _missing("RevisionNotFound")
        files = repository.branches[branch]
        if action == "preupload":
            modes = [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if re.search(self.large, f["path"]) else "regular",
                }
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": modes}, {}
        if action == "commit":
            return self._commit(repository, branch, body, repo_id)
        if action == "tree":
            return 200, [_entry(name, data) for name, data in files.items()], {}
        siblings = [{"rfilename": name} for name in files]
        sha = repository.sha(branch)
        info = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private}
        return 200, {**info, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}, {}

    def _commit(
        self, repository: Repository, branch: str, body: bytes, repo_id: str
    ) -> tuple[int, Any, dict[str, str]]:
        files = dict(repository.branches[branch])
        summary = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                summary = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return 400, {"error": f"{value['path']} was never uploaded"}, {}
                files[value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        repository.branches[branch] = files
        repository.commits.append(summary)
        sha = repository.sha(branch)
        url = f"{self.url}/{repo_id}/commit/{sha}"
        return 200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}, {}

    def _lfs(self, request: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for item in request["objects"]:
            known = item["oid"] in self.blobs
            upload = {"upload": {"href": f"{self.url}/_blob/{item['oid']}", "header": {}}}
            objects.append({**item, **({} if known else {"actions": upload})})
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        return 200, {"transfer": "basic", "objects": objects}, kind

    def _resolve(self, repo_id: str, revision: str, name: str, token: str) -> tuple[int, Any, dict[str, str]]:
        repository = self._visible(repo_id, token)
        if repository is None:
            return _missing("RepoNotFound")
        branch = repository.branch(revision)
        if branch is None:
            return _missing("RevisionNotFound")
        commit = {"X-Repo-Commit": repository.sha(branch)}
        data = repository.branches[branch].get(name)
        if data is None:
            status, value, headers = _missing("EntryNotFound")
            return status, value, {**headers, **commit}
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes", **commit}


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    data = b""
    while size := int(request.rfile.readline().strip() or b"0", 16):
        data += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return data


def _missing(code: str) -> tuple[int, Any, dict[str, str]]:
    return 404, {"error": code}, {"X-Error-Code": code}


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
