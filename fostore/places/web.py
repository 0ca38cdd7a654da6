"""Files on a plain web server as a place, through urllib3 (extra `remote`): every redirect is looked at, then followed.

obstore, through which everything else behind a url is read, follows redirects by itself and does not say where to.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError

from fostore.errors import UnsafeError, UnsupportedError
from fostore.places import remote
from fostore.places.names import clean
from fostore.places.place import Version
from fostore.places.remote import Remote

_HOPS = 5
_LEADS = (301, 302, 303, 307, 308)
_AGAIN = (429, 500, 502, 503, 504)
_Answer = tuple[int, Any, bytes]  # status, headers, body


class Web(Remote):
    """A `Place` behind http or https. It lists nothing: of a folder those files are read whose names are known.

    No answer leads to a private address, unless it is the server that the user named, nor from https to less.
    """

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole; see `Place.read`."""
        with self._telling(name):
            _, _, data = self._ask("GET", name, limit + 1)
            if len(data) > limit:
                raise UnsafeError(f"{self}/{name} has more than {limit:,} bytes, the most expected")
            return data

    def _window(self, window: tuple[str, int, int]) -> tuple[bytes, Version]:
        name, start, stop = window
        if start == stop:
            return b"", self.version(name)
        with self._telling(name):
            status, headers, data = self._ask("GET", name, stop - start + 1, (start, stop))
            if status == 416:  # the file ends before
                return b"", self.version(name)
            sent = headers.get("Content-Range", "")
            expected = f"bytes {start}-{start + len(data) - 1}"
            if status != 206 or sent.partition("/")[0] != expected or len(data) > stop - start:
                raise UnsupportedError(
                    f"the server of {self}/{name} does not know ranges: asked for the bytes {start} to "
                    f"{stop - 1}, it sends {sent or 'the whole file'}. Download the file by other means and open "
                    "that, or let a server have it that knows them (an object store, nginx, Apache, Caddy)"
                )
            return data, self._version(name, _meta(headers))

    def names(self, folder: str = "") -> dict[str, str]:
        """Nothing, always; see `Place.names`."""
        raise UnsupportedError(f"{self} is on a web server, which lists no folders")

    def sizes(self) -> dict[str, int]:
        """Nothing, always; see `Place.sizes`."""
        self.names()
        return {}

    def _key(self, name: str) -> str:
        # What obstore would be asked for: everything that is not said here.
        raise UnsupportedError(f"{self} is on a web server, which is read and not written to")

    def _head(self, name: str) -> Any:
        with self._telling(name):
            try:
                return _meta(self._ask("HEAD", name, 0)[1])
            except FileNotFoundError:
                return None

    def _connect(self) -> Any:
        scheme = urlsplit(self.url).scheme
        proxy = (
            None if proxy_bypass(urlsplit(self.url).hostname or "") else getproxies().get(scheme)
        )
        options: Any = {
            "maxsize": remote.REQUESTS,
            "timeout": urllib3.Timeout(min(remote.SECONDS, 10), remote.SECONDS),
            "headers": {"Accept-Encoding": "identity", "User-Agent": "fostore"},
        }
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def _ask(
        self, method: str, name: str, limit: int, span: tuple[int, int] | None = None
    ) -> _Answer:
        """An answer with at most `limit` bytes of its body; asked again where a server fails.

        Raises:
            FileNotFoundError, PermissionError, OSError: what the server says.
        """
        for attempt in range(remote.RETRIES + 1):
            is_last = attempt == remote.RETRIES
            try:
                status, headers, data = self._asked(method, name, limit, span)
            except HTTPError as error:
                if is_last:
                    raise OSError(f"{type(error).__name__}: {error}") from error
            else:
                if status in (404, 410):
                    raise FileNotFoundError(name)
                if status in (401, 403):
                    raise PermissionError(errno.EACCES, f"the server answers {status}")
                if status < 400 or status == 416:
                    return status, headers, data
                if is_last or status not in _AGAIN:
                    raise OSError(f"the server answers {status}")
            time.sleep(0.1 * 2**attempt)
        raise AssertionError

    def _asked(self, method: str, name: str, limit: int, span: tuple[int, int] | None) -> _Answer:
        url = f"{self.url}/{quote(name)}" if name else self.url
        more = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
        for _ in range(_HOPS):
            answer = self._client().request(
                method, url, headers=more, redirect=False, retries=False, preload_content=False
            )
            with answer:
                if answer.status not in _LEADS:
                    return answer.status, answer.headers, _body(answer, method, limit, span)
                url = _followed(self.url, url, answer.headers.get("Location", ""))
        raise UnsafeError(f"{self} leads on and on, {_HOPS} times and more")


def _body(
    answer: urllib3.BaseHTTPResponse, method: str, limit: int, span: tuple[int, int] | None
) -> bytes:
    """At most `limit` bytes; none of a whole file where a range was asked for."""
    if span is not None and answer.status == 200:
        return b""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedError(
            "the server sends it compressed, in which no row has a place of its own; let it send files as they are"
        )
    pieces = []
    while limit and method == "GET" and (piece := answer.read(limit)):
        pieces.append(piece)
        limit -= len(piece)
    if not pieces:
        answer.read(1)  # an answer that has ended gives its connection back
    return b"".join(pieces)


def _followed(begin: str, now: str, target: str) -> str:
    """Where an answer leads to, from the url `now`, to which `begin` has led.

    Raises:
        UnsafeError: to a private address that is not the user's, or to another scheme; names both ends.
    """
    try:
        url = urljoin(now, target)
        following, asked = urlsplit(url), urlsplit(begin)
        host = following.hostname or ""
    except ValueError:
        raise UnsafeError(f"{clean(now)} leads to {clean(target)!r}, which is no url") from None
    shown = clean(following._replace(query="", fragment="").geturl())
    if following.scheme != "https" and following.scheme != asked.scheme:
        raise UnsafeError(
            f"{begin} leads to {shown}, which is not behind https; give the url that you mean"
        )
    if following.netloc != asked.netloc and _is_private(host):
        raise UnsafeError(
            f"{begin} leads to {shown}, an address of a private network; if you mean that, give it"
        )
    return url


def _is_private(host: str) -> bool:
    """Whether a name is that of an address which is not public. What this machine cannot look up, a proxy may."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return not all(ipaddress.ip_address(address).is_global for address in map(str, addresses))


def _meta(headers: Any) -> Any:
    """What obstore says of a file, from the headers of an answer."""
    try:
        changed = parsedate_to_datetime(headers.get("Last-Modified", ""))
    except ValueError:
        changed = datetime.fromtimestamp(0, UTC)
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "0")
    return {"e_tag": headers.get("ETag"), "last_modified": changed, "size": size}


place_of_url = Web
