"""A small stand-in for the Hub's API: what an upload asks of it, for tests of `spa push`."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import unquote

from tests.kit.local_server import LocalServer

TOKEN = "hf_of_the_tests"
OWNER = "me"
NEWEST = "0" * 40
LARGE = (".safetensors",)
"""Suffixes of the files that go to the large file storage."""


class Refusal(Exception):  # noqa: N818
    """An answer that is no success."""

    def __init__(self, status: int, words: str, code: str = "", **more: str) -> None:
        super().__init__(words)
        self.status, self.words, self.code, self.more = status, words, code, more


class Request(NamedTuple):
    """A request as a handler reads it."""

    method: str
    path: str
    body: bytes
    token: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class HubServer(LocalServer):
    """Keeps repositories in memory while it is entered.

    Attributes:
        address: for HF_ENDPOINT.
        repos: branches of every repository, each with the files of its newest commit.
        heads: commits of branches and tags other than main, by repository; that of main is NEWEST unless it is here.
        sizes: of the files of repositories, as far as they are only asked for.
        gated: repositories that their users have to ask for.
        private: repositories that only their owner sees.
        stored: content of the large file storage by sha256.
        received: sha256 of every file that was sent there, as often as it was.
        commits: first lines of the messages of all commits.
        asked: method and path of every request.
        fail: pairs of a pattern for `METHOD /path` and the status that these requests are answered with.
    """

    def __init__(self) -> None:
        super().__init__(self._handler())
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.sizes: dict[str, dict[str, int]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.received: list[str] = []
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.fail: list[tuple[str, int]] = []

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """What a user of the repository would get."""
        return self.repos[repo][branch]

    # --- what it answers ---

    def _answer(self, request: Request) -> Any:
        line = f"{request.method} {request.path}"
        self.asked.append(line)
        for pattern, status in self.fail:
            if re.search(pattern, line):
                raise Refusal(status, "not now" if status >= 500 else "not allowed")
        if request.method == "PUT":  # of the storage, which is no part of the Hub and sees no token
            return self._store(request)
        if request.token != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid credentials in Authorization header")
        for pattern, answer in self._routes():
            found = re.fullmatch(pattern, line)
            if found:
                return answer(request, *found.groups())
        raise Refusal(404, f"the stand-in has no answer to {line}")

    def _routes(self) -> list[tuple[str, Callable[..., Any]]]:
        repo = r"([^/]+/[^/]+)"
        return [
            (r"GET /api/whoami-v2", lambda request: {"name": OWNER, "type": "user"}),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (rf"GET /api/(?:models|datasets)/{repo}(?:/revision/([^?]+))?(?:\?blobs=true)?", self._info),
            (rf"GET /api/datasets/{repo}/auth-check", lambda request, repo: self._known(repo) and {}),
            (rf"POST /api/models/{repo}/branch/(.+)", self._branch),
            (rf"GET /api/models/{repo}/tree/([^?]+)\?.*", self._tree),
            (rf"POST /api/models/{repo}/preupload/(.+)", self._modes),
            (rf"POST /{repo}\.git/info/lfs/objects/batch", self._batch),
            (rf"POST /{repo}\.git/verify", self._verify),
            (rf"POST /api/models/{repo}/commit/(.+)", self._commit),
        ]

    def _create(self, request: Request) -> Any:
        wanted = request.json()
        owner = wanted.get("organization") or OWNER
        name = f"{owner}/{wanted['name']}"
        if owner != OWNER:
            raise Refusal(403, "You don't have the rights to create a model under this namespace")
        if name in self.repos:
            raise Refusal(409, "You already created this model repo", url=f"{self.address}/{name}")
        self.repos[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs"}}
        if wanted.get("visibility") == "private":
            self.private.add(name)
        return {"url": f"{self.address}/{name}", "name": name}

    def _known(self, repo: str) -> dict[str, dict[str, bytes]]:
        if repo not in self.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.repos[repo]

    def _info(self, request: Request, repo: str, revision: str | None) -> Any:
        self._known(repo)
        if repo in self.gated:
            raise Refusal(403, "Access to it is restricted", "GatedRepo")
        heads = {"main": NEWEST, **self.heads.get(repo, {})}
        name = unquote(revision or "main")
        if name not in heads and name not in heads.values():
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        return {
            "id": repo,
            "sha": heads.get(name, name),
            "tags": [],
            **dict.fromkeys(("gated", "disabled"), False),
            "private": repo in self.private,
            **dict.fromkeys(("downloads", "likes"), 0),
            "siblings": [{"rfilename": name, "size": size} for name, size in self.sizes.get(repo, {}).items()],
        }

    def _branch(self, request: Request, repo: str, branch: str) -> Any:
        branches = self._known(repo)
        if branch in branches:
            raise Refusal(409, "Reference already exists")
        branches[branch] = dict(branches["main"])
        return {}

    def _tree(self, request: Request, repo: str, branch: str) -> Any:
        files = self._known(repo)[branch]
        return [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]

    def _validate(self, request: Request) -> Any:
        import yaml

        text = request.json()["content"]
        metadata = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        if not isinstance(metadata.get("tags", []), list):
            raise Refusal(400, "tags must be an array")
        return {"errors": [], "warnings": []}

    def _modes(self, request: Request, repo: str, branch: str) -> Any:
        self._known(repo)
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in request.json()["files"]
            ]
        }

    def _batch(self, request: Request, repo: str) -> Any:
        objects = []
        for item in request.json()["objects"]:
            actions = {
                "upload": {"href": f"{self.address}/storage/{item['oid']}"},
                "verify": {"href": f"{self.address}/{repo}.git/verify"},
            }
            known = item["oid"] in self.stored
            objects.append({**item, **({} if known else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def _store(self, request: Request) -> Any:
        oid = request.path.rpartition("/")[2]
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "other bytes than announced")
        self.stored[oid] = request.body
        self.received.append(oid)
        return {}

    def _verify(self, request: Request, repo: str) -> Any:
        item = request.json()
        if len(self.stored[item["oid"]]) != item["size"]:
            raise Refusal(400, "another size than announced")
        return {}

    def _commit(self, request: Request, repo: str, branch: str) -> Any:
        files = self._known(repo)[branch]
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    self.commits.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        return {"commitUrl": f"{self.address}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}

    # --- HTTP ---

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._do()

            do_POST = do_PUT = do_GET  # noqa: N815

            def _do(self) -> None:
                token = self.headers.get("Authorization", "")
                request = Request(str(self.command), self.path, self._body(), token)
                try:
                    status, answer, headers = 200, server._answer(request), {}
                except Refusal as refusal:
                    status, answer = refusal.status, {"error": refusal.words, **refusal.more}
                    headers = {"X-Error-Message": refusal.words, "X-Error-Code": refusal.code}
                    if request.path.endswith("validate-yaml"):
                        answer = {"errors": [{"message": refusal.words}]}
                body = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
