"""A place behind a url, through obstore (extra `remote`): S3 and its kin, Google's, Azure's.

Ranges are requests of their own, many at a time (who asks has put together what lies near each other). A file that
changes between two reads is told by its ETag, or where there is none by its time and size.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from fostore.errors import ArgumentError, PlaceError, UnsafeError, UnsupportedError
from fostore.places.names import clean, refuse_secrets
from fostore.places.place import ByUrl, Listed, Version, VersionedFile

REQUESTS = 64
"""At a time: 64 random rows come in one trip there and back."""
SECONDS, RETRIES = 60, 6
"""For one request; and how often it is made again, after 0.1, 0.2, 0.4 ... seconds, where a server fails."""
_PIECE = 4 << 20
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
}
"""What names another server than the service's own."""
_CURES = (
    (
        re.compile("AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|credential"),
        "set the service's credentials in the environment (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true for public data)",
    ),
    (re.compile("NoSuchBucket"), "make the bucket first, or correct its name"),
    (
        re.compile(
            "PermanentRedirect|redirect|IllegalLocation|AuthorizationHeaderMalformed|region"
        ),
        "set AWS_REGION to the region of the bucket",
    ),
    (
        re.compile("SlowDown|TooManyRequests|429|Too Many"),
        "it was tried again for a while; let fewer processes write at once, and run this one again",
    ),
    (re.compile(""), "it was tried again for a while; call again when the server answers"),
)
"""What an error of a service says, and what to do then; the first that fits. None of it undoes what is committed."""
_users: set[int] = set()
"""Processes that have used obstore: its threads are not there in a child that is forked after that, and a call there
waits for them for ever (6 of 6 tries, also with a client made anew in the child)."""


class Remote(ByUrl):
    """A `Place` behind a url; nothing is connected before the first read.

    Credentials come from where the services' own tools look for them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
    AWS_REGION, ...), never from the url, so that none is in an error, a pickle or a receipt.
    """

    is_local = False

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        refuse_secrets(url)
        self.url = url.rstrip("/")
        self._parent, _, self._leaf = self.url.rpartition("/")
        if not parts.netloc or self._parent.endswith("/"):
            raise ArgumentError(
                f"{url!r} names no store, expected {parts.scheme}://where/what.zarr"
            )
        self._store: Any = None
        self._pool: ThreadPoolExecutor | None = None

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole; see `Place.read`."""
        with self._telling(name):
            answer = self._get(name)
            size = int(answer.meta["size"])
            if size > limit:
                raise UnsafeError(f"{self}/{name} has {size:,} bytes, expected at most {limit:,}")
            return bytes(answer.bytes())

    def read_many(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, Version]]:
        """Bytes of files with their versions, a request each, many at a time; see `Place.read_many`."""
        asked = list(dict.fromkeys(ranges))
        self._client()  # refuses a forked child, in which nothing would ever take from the queue of the threads
        if len(asked) == 1:
            return [self._window(asked[0])] * len(ranges)
        answers = dict(zip(asked, self._threads().map(self._window, asked), strict=True))
        return [answers[one] for one in ranges]

    def _window(self, window: tuple[str, int, int]) -> tuple[bytes, Version]:
        name, start, stop = window
        if start == stop:
            return b"", self.version(name)
        with self._telling(name):
            try:
                answer = self._get(name, (start, stop))
            except BaseError:
                # Services do not agree on how they say that a file ends before.
                meta = self._head(name)
                if meta is None or start < int(meta["size"]):
                    raise
                return b"", self._version(name, meta)
            data = bytes(answer.bytes())
            first, last = answer.range
            if first != start or len(data) != last - first:
                raise UnsupportedError(
                    f"{self}/{name}: asked for the bytes {start} to {stop - 1}, the server sent "
                    f"{len(data):,} from {first} on; it does not know ranges"
                )
            return data, self._version(name, answer.meta)

    def open(self, name: str = "") -> VersionedFile:
        """A file that will be read more than once; see `Place.open`."""
        return VersionedFile(self, name)

    def size(self, name: str) -> int | None:
        """The bytes of a file; None where there is none."""
        meta = self._head(name)
        return None if meta is None else int(meta["size"])

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies in a folder, each with its kind; see `Place.names`."""
        begin = f"{self._key(folder)}/"
        with self._telling(folder):
            listed = obstore.list_with_delimiter(self._client(), begin)
        kinds = {str(p).rsplit("/", 1)[-1]: "folder" for p in listed["common_prefixes"]}
        kinds |= {str(o["path"]).rsplit("/", 1)[-1]: "file" for o in listed["objects"]}
        if not kinds:
            raise FileNotFoundError(f"there is no {self}/{folder}".rstrip("/"))
        return kinds

    def version(self, name: str = "") -> Version:
        """The ETag of a file; of a folder that of the Zarr metadata in it. None where there is nothing."""
        meta = self._head(name) or self._head(f"{name}/zarr.json".lstrip("/"))
        return None if meta is None else self._version(name, meta)

    def below(self, name: str) -> Remote:
        """The place that a name in this one is; see `Place.below`."""
        return type(self)(f"{self.url}/{name}")

    # What is written

    def put(self, name: str, data: Any, replaces: Version = None) -> Version:
        """Make an object of bytes, by the service's own condition; see `Storage.put`."""
        mode: Any = "create"
        if replaces is not None:
            meta = self._head(name)
            if meta is None or self._version(name, meta) != replaces:
                return None
            # What a service compares differs: most the ETag, Google's a number of its own.
            mode = {key: meta[key] for key in ("e_tag", "version") if meta[key]}
        with self._telling(name, "written"):
            try:
                # One request, for a condition is of one. A lost race is told by 412, or 409 while it lasts.
                done = obstore.put(
                    self._client(), self._key(name), data, mode=mode, use_multipart=False
                )
            except (AlreadyExistsError, PreconditionError):
                return None
        return self._version(name, {**done, "last_modified": None})

    def upload(self, name: str, source: Path) -> None:
        """Make a file of this machine an object, in parts where it is large; whole or not at all."""
        with self._telling(name, "written"):
            obstore.put(self._client(), self._key(name), source)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; see `Storage.delete`."""
        with self._telling("", "written"):
            keys = map(self._key, names)
            while batch := list(islice(keys, 1000)):  # as many as S3 takes at once
                obstore.delete(self._client(), batch)

    def listed(self, folder: str = "") -> Iterator[Listed]:
        """Every object below a name; see `Storage.listed`."""
        with self._telling(folder):
            for page in obstore.list(self._client(), f"{self._key(folder)}/"):
                for item in page:
                    name = str(item["path"]).removeprefix(f"{self._leaf}/")
                    yield Listed(name, int(item["size"]), _version(item))

    def sizes(self) -> dict[str, int]:
        """The bytes of each object, from one list; see `Place.sizes`."""
        sizes = {one.name: one.size for one in self.listed()}
        if not sizes:
            raise FileNotFoundError(errno.ENOENT, "there is nothing", str(self))
        return sizes

    def stream(self, name: str) -> Iterator[bytes]:
        """A file piece by piece."""
        with self._telling(name):
            for piece in self._get(name).stream(min_chunk_size=_PIECE):
                yield bytes(piece)

    # What obstore does

    def _get(self, name: str, span: tuple[int, int] | None = None) -> Any:
        options: Any = {} if span is None else {"range": span}
        return obstore.get(self._client(), self._key(name), options=options)

    def _head(self, name: str) -> Any:
        with self._telling(name):
            try:
                return obstore.head(self._client(), self._key(name))
            except FileNotFoundError:
                return None

    def _root(self) -> tuple[str, Any]:
        """What obstore opens: names are looked up below it; and what its client needs beside."""
        return self._parent, {}

    def _key(self, name: str) -> str:
        return f"{self._leaf}/{name}" if name else self._leaf

    def _client(self) -> Any:
        if _users and os.getpid() not in _users:
            raise PlaceError(
                errno.ENOTSUP,
                f"{self} cannot be read in a process that was forked after the parent had read from the "
                "network: the threads that wait for answers are not there. Start workers with the method "
                "'spawn' (torch: multiprocessing_context='spawn')",
                self.url,
            )
        if self._store is None:
            _users.add(os.getpid())
            self._store = self._connect()
        return self._store

    def _connect(self) -> Any:
        root, options = self._root()
        client: Any = {
            "allow_http": _is_plain(root),
            "timeout": f"{SECONDS}s",
            "connect_timeout": f"{min(SECONDS, 10)}s",
            **options,
        }
        try:
            return from_url(root, client_options=client, retry_config={"max_retries": RETRIES})
        except ValueError as error:
            message = f"{self} cannot be reached by what the environment says: {clean(str(error))}"
            raise PlaceError(errno.EINVAL, message, self.url) from None

    def _version(self, name: str, meta: Any) -> Version:
        """What changes with an object: its ETag, else its time and size."""
        version = _version(meta)
        if version is None:
            raise UnsupportedError(
                f"the server of {self}/{name} sends neither an ETag nor the time of the last change, so that "
                "nobody could tell when the file is another one; download it by other means, and open that"
            )
        return version

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(REQUESTS, "fostore-remote")
        return self._pool

    @contextmanager
    def _telling(self, name: str, verb: str = "read") -> Iterator[None]:
        """What went wrong, in a user's words and without what a url may hide."""
        where = f"{self}/{name}" if name else str(self)
        try:
            yield
        except FileNotFoundError as error:
            if verb == "written":
                missing = f"{where} cannot be written: there is no such bucket. Make it first"
                raise PlaceError(errno.ENOENT, missing, where) from None
            raise FileNotFoundError(f"there is no {where}") from error
        except (ArgumentError, PlaceError, UnsafeError, UnsupportedError):
            raise
        except NotSupportedError:
            raise UnsupportedError(
                f"the server of {where} does not know ranges: it sends whole files, and never a few rows. "
                "Download the file by other means and open that, or let a server have it that knows them "
                "(an object store, nginx, Apache, Caddy)"
            ) from None
        except Exception as error:
            if not isinstance(error, (BaseError, OSError)):
                raise
            denied = isinstance(
                error, (PermissionDeniedError, UnauthenticatedError, PermissionError)
            )
            cure = next(cure for pattern, cure in _CURES if denied or pattern.search(str(error)))
            first = clean(str(error)).strip().splitlines()[0][:300]
            code = errno.EACCES if denied else errno.EIO
            raise PlaceError(code, f"{where} cannot be {verb}: {first}. {cure}", where) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)


place_of_url = Remote


def _version(meta: Any) -> Version:
    """What changes with an object: its ETag, else its time and size; None where the server says neither."""
    if meta["e_tag"]:
        return str(meta["e_tag"])
    time = meta["last_modified"]
    if time is None:
        return None
    # obstore gives the first second of 1970 for a time that a web server does not send.
    return (str(time), meta["size"]) if time.timestamp() > 0 else None


def _is_plain(root: str) -> bool:
    """Whether the user named a server without encryption: in the url, or as the endpoint of an object store."""
    scheme = root.partition("://")[0]
    endpoints = (os.environ.get(name, "") for name in _ENDPOINTS.get(scheme, ()))
    return any(url.startswith("http://") for url in (root, *endpoints))
