"""A web server of a folder that takes its time: so many milliseconds a request, as many at once as are asked for.

In a process of its own, over asyncio: one of threads would take more from the two cores than the network that it
stands for. `GET /~counts` gives the requests and bytes since it was asked last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import re
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RANGE = re.compile(rb"\r\nrange: *bytes=(\d*)-(\d*)\r\n", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    def __init__(self, root: Path, delay: float, counts: dict[str, int]) -> None:
        self.root, self.delay, self.counts = root, delay, counts
        self.left = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.left += data
        while (end := self.left.find(b"\r\n\r\n")) >= 0:
            request, self.left = self.left[: end + 4], self.left[end + 4 :]
            if b" /~counts " in request[:40]:
                self.answer(json.dumps(self.counts).encode(), b"200 OK", b"")
                self.counts.update(requests=0, bytes=0)
                continue
            self.counts["requests"] += 1
            asyncio.get_running_loop().call_later(self.delay, self.serve, request)

    def serve(self, request: bytes) -> None:
        method, target, _ = request.split(b" ", 2)
        path = self.root / target.decode().lstrip("/")
        if not path.is_file():
            self.answer(b"", b"404 Not Found", b"")
            return
        size, span = path.stat().st_size, _RANGE.search(request)
        first, last, status, more = 0, size - 1, b"200 OK", b""
        if span is not None:
            first = int(span[1]) if span[1] else max(size - int(span[2]), 0)
            last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
            status, more = (
                b"206 Partial Content",
                b"Content-Range: bytes %d-%d/%d\r\n" % (first, last, size),
            )
        more += b'ETag: "%x"\r\n' % zlib.crc32(target + b"%d" % path.stat().st_mtime_ns)
        if method == b"HEAD":
            self.transport.write(
                b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, more, size)
            )
            return
        with path.open("rb") as file:
            file.seek(first)
            body = file.read(last - first + 1)
        self.counts["bytes"] += len(body)
        self.answer(body, status, more)

    def answer(self, body: bytes, status: bytes, more: bytes) -> None:
        head = b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n" % (status, more, len(body))
        self.transport.write(head)
        self.transport.write(body)


def _run(root: Path, delay: float, ports: Any) -> None:
    async def serve() -> None:
        counts = {"requests": 0, "bytes": 0}
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(root, delay, counts), "127.0.0.1", 0, backlog=256
        )
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def serving(root: Path, delay: float) -> Iterator[str]:
    """The url of a server of a folder, while the block runs."""
    spawn = multiprocessing.get_context("spawn")
    ports = spawn.Queue()
    process = spawn.Process(target=_run, args=(root, delay, ports), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ports.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


def counts(url: str) -> tuple[int, int]:
    """Requests and bytes of bodies since this was asked last."""
    with urllib.request.urlopen(f"{url}/~counts") as answer:
        value = json.load(answer)
    return value["requests"], value["bytes"]
