"""A web server on this machine that serves a folder, as well or as badly as a test wants it to."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class Web:
    """Files below `root` by their names; what is set here holds from the next request on."""

    def __init__(self, root: Path, delay: float = 0) -> None:
        self.root, self.delay = root, delay
        self.url = ""
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, name, range) of each."""
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        """Bytes of bodies."""
        self.knows_ranges = self.knows_matches = True
        self.sends = {"ETag", "Last-Modified"}
        self.adds: dict[str, str] = {}
        """Headers of each answer that has a body."""
        self.fails: Counter[str] = Counter()
        """How many requests of a method are answered by 500."""
        self.cuts = 0
        """How many bodies end in their middle."""
        self.hangs = 0.0
        """Seconds before an answer."""
        self.leads: dict[str, str] = {}
        """Where a name leads."""
        self.before: Callable[[str], None] = lambda name: None
        """Called with the name, before a request is answered."""
        self.etag: Callable[[str, bytes], str] = lambda name, data: f'"{hash(data):x}"'

    def count(self, method: str) -> int:
        return sum(one == method for one, _, _ in self.requests)


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: two would wait for each other
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def empty(self, code: int, **headers: str) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": "0", **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def do_GET(self) -> None:
            name = unquote(self.path).lstrip("/").partition("?")[0]
            span = self.headers.get("Range")
            with lock:
                web.requests.append((self.command, name, span))
                web.headers.append({k.lower(): v for k, v in self.headers.items()})
                fails = web.fails[self.command] > 0
                web.fails[self.command] -= fails
                cuts = self.command == "GET" and web.cuts > 0
                web.cuts -= cuts
            web.before(name)
            time.sleep(web.delay + web.hangs)
            path = web.root / name
            if fails:
                self.empty(500)
                return
            if name in web.leads:
                self.empty(302, Location=web.leads[name])
                return
            if not path.is_file():
                self.empty(404)
                return
            data = path.read_bytes()
            etag = web.etag(name, data)
            if web.knows_matches and self.headers.get("If-Match", etag) != etag:
                self.empty(412)
                return
            part = data
            matched = re.fullmatch(r"bytes=(\d+)-(\d+)", span or "") if web.knows_ranges else None
            if matched:
                start, stop = int(matched[1]), min(int(matched[2]) + 1, len(data))
                if start >= len(data):
                    self.empty(416, **{"Content-Range": f"bytes */{len(data)}"})
                    return
                part = data[start:stop]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(part)))
            for key, value in web.adds.items():
                self.send_header(key, value)
            if "ETag" in web.sends:
                self.send_header("ETag", etag)
            if "Last-Modified" in web.sends:
                self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if cuts:
                part = part[: len(part) // 2]
                self.close_connection = True
            with lock:
                web.sent += len(part)
            self.wfile.write(part)

        do_HEAD = do_GET

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@contextmanager
def serving(root: Path, delay: float = 0, host: str = "127.0.0.1") -> Iterator[Web]:
    """A server of a folder on a port of its own, while the block runs.

    Args:
        delay: seconds before each answer.
    """
    web = Web(root, delay)
    server = _Server((host, 0), _handler(web))
    web.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
