"""A server on this machine that speaks as much of the Hugging Face Hub's API as publishing needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """Repositories in memory; `fail_at` is the number of the request that is answered by an error."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.commits = 1
        self.heads = {"main": 1}
        """The number of the last commit of each branch; the files are those of all."""
        self.requests: list[str] = []
        self.sent: list[str] = []
        """SHA-256 of the objects and names of the files that clients sent."""
        self.fail_at: int | None = None
        self.before: Callable[[int], None] = lambda number: None
        """Called with the number of a request before it is answered."""
        self.answers: bytes | None = None
        """What every request is answered by, whatever it asks."""
        self.spoil: str | None = None
        """The name of a file that is kept wrongly."""
        self.url = ""

    @property
    def head(self) -> str:
        return self.head_of("main")

    def head_of(self, branch: str) -> str:
        return f"{self.heads[branch]:040x}"

    def commit(self, branch: str = "main") -> None:
        """A commit comes on top of a branch."""
        self.commits += 1
        self.heads[branch] = self.commits

    def is_large(self, size: int) -> bool:
        return size > 2000


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: two would wait for each other
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, code: int, value: Any = None, data: bytes | None = None) -> None:
            body = data if data is not None else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", hub.head)
            self.send_header("ETag", f'"{_blob(body)}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self.chunks())
            hub.requests.append(f"{self.command} {self.path}")
            hub.before(len(hub.requests))
            if hub.answers is not None:
                self.answer(200, data=hub.answers)
                return
            if hub.fail_at is not None and len(hub.requests) > hub.fail_at:
                self.answer(401, {"error": "the token is not valid"})
                return
            path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
            self.route(path, query, body)

        def chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

        def route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
            if path == "/api/repos/create":
                value = json.loads(body)
                name = f"{value.get('organization') or 'me'}/{value['name']}"
                hub.repositories.setdefault(name, {})
                if value.get("private") or value.get("visibility") == "private":
                    hub.private.add(name)
                self.answer(200, {"url": f"{hub.url}/datasets/{name}", "id": name})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif found := re.match(r"/api/datasets/([^/]+/[^/]+)/preupload/(.+)", path):
                files = hub.repositories[found[1]]
                self.answer(200, {"files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if hub.is_large(one["size"]) else "regular",
                        "shouldIgnore": False,
                        "oid": self.oid(files, one["path"]),
                    }
                    for one in json.loads(body)["files"]
                ]})  # fmt: skip
            elif found := re.match(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                objects = []
                for one in json.loads(body)["objects"]:
                    entry = {"oid": one["oid"], "size": one["size"]}
                    if one["oid"] not in hub.objects:
                        entry["actions"] = {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}
                    objects.append(entry)
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif found := re.match(r"/lfs/([0-9a-f]+)", path):
                if hashlib.sha256(body).hexdigest() != found[1]:
                    self.answer(400, {"error": "not the object that was announced"})
                    return
                hub.objects[found[1]] = body
                hub.sent.append(found[1])
                self.answer(200, {})
            elif found := re.match(r"/api/datasets/([^/]+/[^/]+)/commit/(.+)", path):
                self.commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
            elif found := re.match(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
                self.tree(hub.repositories[found[1]], found[3], query.get("recursive") == ["true"])
            elif found := re.match(r"/api/datasets/([^/]+/[^/]+)/branch/(.+)", path):
                hub.heads.setdefault(found[2], hub.heads["main"])
                self.answer(200, {})
            elif found := re.match(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?$", path):
                branch = found[2] or "main"
                if found[1] not in hub.repositories or branch not in hub.heads:
                    is_there = found[1] in hub.repositories
                    self.send_response(404)
                    self.send_header(
                        "X-Error-Code", "RevisionNotFound" if is_there else "RepoNotFound"
                    )
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if self.command == "HEAD":
                    self.answer(200, {})
                    return
                files = hub.repositories[found[1]]
                siblings = [{"rfilename": name} for name in sorted(files)]
                self.answer(200, {"id": found[1], "siblings": siblings, "sha": hub.head_of(branch)})
            elif found := re.match(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                data = hub.repositories.get(found[1], {}).get(found[3])
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_file(data)
            else:
                self.answer(404, {"error": f"no such route: {path}"})

        def tree(self, files: dict[str, bytes], folder: str, is_deep: bool) -> None:
            begin = f"{folder}/" if folder else ""
            inside = {n: d for n, d in sorted(files.items()) if n.startswith(begin)}
            if folder and not inside:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            entries = [
                self.entry(name, data)
                for name, data in inside.items()
                if is_deep or "/" not in name.removeprefix(begin)
            ]
            if not is_deep:
                folders = {
                    n.removeprefix(begin).split("/")[0]
                    for n in inside
                    if "/" in n.removeprefix(begin)
                }
                entries += [
                    {"type": "directory", "path": begin + name, "oid": "0" * 40, "size": 0}
                    for name in sorted(folders)
                ]
            self.answer(200, entries)

        def send_file(self, data: bytes) -> None:
            """All of a file, or the range that was asked for."""
            span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            part = data
            if span:
                stop = min(int(span[2]) + 1, len(data)) if span[2] else len(data)
                part = data[int(span[1]) : stop]
            self.send_response(206 if span else 200)
            if span:
                at = int(span[1])
                self.send_header("Content-Range", f"bytes {at}-{at + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("X-Repo-Commit", hub.head)
            self.send_header("ETag", f'"{_blob(data)}"')
            self.send_header("Last-Modified", "Thu, 26 Nov 2026 05:00:00 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(part)

        def oid(self, files: dict[str, bytes], name: str) -> str | None:
            if name not in files:
                return None
            data = files[name]
            return hashlib.sha256(data).hexdigest() if hub.is_large(len(data)) else _blob(data)

        def entry(self, name: str, data: bytes) -> dict[str, Any]:
            if name == hub.spoil:
                data += b"x"
            value: dict[str, Any] = {
                "type": "file", "path": name, "size": len(data), "oid": _blob(data),
            }  # fmt: skip
            if hub.is_large(len(data)):
                sha = hashlib.sha256(data).hexdigest()
                value["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
            return value

        def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
            files, head = hub.repositories[name], hub.head_of(branch)
            if lines[0]["value"].get("parentCommit", head) != head:
                self.answer(
                    412, {"error": "A commit has happened since. Please refresh and try again."}
                )
                return
            hub.commit(branch)
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    hub.sent.append(value["path"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            self.answer(200, {
                "success": True, "commitOid": hub.head_of(branch), "hookOutput": "",
                "commitUrl": f"{hub.url}/datasets/{name}/commit/{hub.head}",
            })  # fmt: skip

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a port of its own, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
