"""An object store in the memory of a process of its own, as fast as a loopback is: what S3 says, and no more of it.

PUT under conditions, GET of ranges, HEAD, lists and the removal of many; nothing is signed, hashed or kept.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import re
import socketserver
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np

_HEADER = re.compile(rb"\r\n([^:\r]+): *([^\r]*)")
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_WHEN = b"Thu, 01 Jan 2026 00:00:00 GMT"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, mbps: float | None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.mbps = mbps
        self.objects: dict[str, tuple[Any, bytes]] = {}
        self.numbers = itertools.count()


class _Connection(socketserver.StreamRequestHandler):
    server: _Server
    rbufsize = 64 << 10
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while head := self._head():
            method, target, _ = head.split(b" ", 2)
            headers = {key.lower(): value for key, value in _HEADER.findall(head)}
            body = np.empty(int(headers.get(b"content-length", 0)), np.uint8)
            begin = time.monotonic()
            left = memoryview(body)
            while left:
                left = left[self.rfile.readinto(left) :]
            mbps = self.server.mbps
            if mbps is not None:
                time.sleep(max(0, begin + len(body) / 1e6 / mbps - time.monotonic()))
            url = urlsplit(target.decode())
            self._answer(method, unquote(url.path), parse_qs(url.query), headers, body)

    def _head(self) -> bytes:
        lines = []
        while line := self.rfile.readline():
            lines.append(line)
            if line == b"\r\n":
                break
        return b"".join(lines)

    def _answer(self, method: bytes, path: str, query: Any, headers: Any, body: Any) -> None:
        objects = self.server.objects
        held = objects.get(path)
        if method == b"PUT":
            wanted = headers.get(b"if-match")
            taken = held is not None and headers.get(b"if-none-match") == b"*"
            if taken or (wanted is not None and (held is None or held[1] != wanted)):
                return self._send(b"412 Precondition Failed")
            etag = b'"%d"' % next(self.server.numbers)
            objects[path] = body, etag
            return self._send(b"200 OK", etag=etag)
        if method == b"POST":
            keys = _KEY.findall(body.tobytes())
            for key in keys:
                objects.pop(f"{path.rstrip('/')}/{key.decode()}", None)
            gone = b"".join(b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys)
            return self._send(b"200 OK", b"<DeleteResult>%s</DeleteResult>" % gone)
        if "list-type" in query:
            return self._send(b"200 OK", _listed(objects, path, query))
        if held is None:
            return self._send(b"404 Not Found")
        data, etag = held
        if method == b"HEAD":
            return self._send(b"200 OK", etag=etag, size=len(data))
        span = headers.get(b"range")
        if span is None:
            return self._send(b"200 OK", data, etag=etag)
        first, last = (int(number) for number in span.removeprefix(b"bytes=").split(b"-"))
        more = b"Content-Range: bytes %d-%d/%d\r\n" % (first, min(last, len(data) - 1), len(data))
        return self._send(b"206 Partial Content", data[first : last + 1], etag=etag, more=more)

    def _send(
        self,
        status: bytes,
        body: Any = b"",
        *,
        etag: bytes = b"",
        size: int | None = None,
        more: bytes = b"",
    ) -> None:
        if etag:
            more += b"ETag: %s\r\nLast-Modified: %s\r\n" % (etag, _WHEN)
        length = len(body) if size is None else size
        self.wfile.write(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, more, length))
        self.wfile.write(memoryview(body))


def _listed(objects: Any, path: str, query: Any) -> bytes:
    bucket = path.rstrip("/")
    begin = f"{bucket}/{query.get('prefix', [''])[0]}"
    items = "".join(
        f"<Contents><Key>{escape(key.removeprefix(f'{bucket}/'))}</Key><Size>{len(data)}</Size>"
        f"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{escape(etag.decode())}</ETag></Contents>"
        for key, (data, etag) in sorted(objects.items())
        if key.startswith(begin)
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


def _run(ports: Any, mbps: float | None) -> None:
    server = _Server(mbps)
    ports.put(server.server_address[1])
    server.serve_forever()


@contextlib.contextmanager
def serving(mbps: float | None = None) -> Iterator[str]:
    """The url of a server without objects, and the environment that leads s3:// to it, while the block runs.

    Args:
        mbps: MB a second that it takes at most of one connection; by default as many as come.
    """
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.Queue()
    process = spawn.Process(target=_run, args=(ports, mbps), daemon=True)
    process.start()
    try:
        url = f"http://127.0.0.1:{ports.get(timeout=60)}"
        os.environ |= {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }  # fmt: skip
        yield url
    finally:
        process.terminate()
        process.join()
