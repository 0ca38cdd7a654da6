"""A bundle in an object store (S3 and what speaks like it, Google's, Azure's), through obstore (extra `remote`).

Nothing there changes whole, as a folder does. So a publisher first leaves a claim, which one alone can make: it keeps
others out, and says which objects stay as they are, so that after a kill no list is believed of any other.
"""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fostore.errors import DamageError, FormatError, LockedError, StoreExistsError
from fostore.places.remote import REQUESTS, Remote
from fostore.publishing import bundle
from fostore.publishing.manifest import PAYLOAD, TAGS, Entry, listed, parse_list
from fostore.publishing.targets import staging_beside

CLAIM = ".fostore-publishing"


class _ObjectsTarget:
    """Objects under one prefix. Metadata follows what it describes, and the list of all files comes last."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self._place = Remote(name)
        self.staging = staging_beside(store)
        # The same for the next call on this machine, which holds the lock of the same folder.
        me = f"{socket.gethostname()} {uuid.getnode()} {self.staging}"
        self._me = hashlib.sha256(me.encode("utf-8", "surrogateescape")).hexdigest()

    def read(self, name: str, limit: int) -> bytes | None:
        """A file of the bundle that lies there; see `Target.read`."""
        try:
            return self._place.read(name, limit)
        except FileNotFoundError:
            pass
        try:
            names = set(self._place.names())
        except FileNotFoundError:
            return None
        # An upload that was interrupted has left rows and a claim, and no manifest.
        if not names & {bundle.MANIFEST, CLAIM}:
            raise StoreExistsError(
                f"{self.name!r} holds {sorted(names)[:5]} and is no bundle; choose another prefix"
            )
        return None

    def send(self, files: list[Entry], version: str) -> bool:
        """Put what differs, read it back and compare; see `Target.send`."""
        sizes = self._sizes()
        claim = self._claim() if CLAIM in sizes else None
        held = self._listed() if claim is None else claim
        kept = [f for f in files if held.get(f.name) == f.sha256 and sizes.get(f.name) == f.size]
        changed = [file for file in files if file not in kept]
        gone = sorted(set(sizes) - {file.name for file in files} - {CLAIM})
        if claim is None and not changed and not gone:
            return False
        # Of an interrupted call too: what stays as it is now is not what stayed then.
        text = f"{self._me}\n".encode() + listed(kept)
        before = None if claim is None else self._place.version(CLAIM)
        if self._place.put(CLAIM, text, before) is None:
            self._refuse()
        with ThreadPoolExecutor(REQUESTS, "fostore-publish") as pool:
            if claim is not None:  # what the call before has sent is compared, and not sent again
                candidates = [file for file in changed if sizes.get(file.name) == file.size]
                errors = zip(candidates, pool.map(self._check, candidates), strict=True)
                whole = {file.name for file, error in errors if error is None}
                changed = [file for file in changed if file.name not in whole]
            for file in (
                changed
            ):  # no reader opens rows of two versions: without metadata there is no store
                if _is_metadata(file) and file.name in sizes:
                    self._place.delete([file.name])
            for group in _in_order(changed):
                for _ in pool.map(self._put, group):
                    pass
            if gone:
                self._place.delete(gone)
            for error in pool.map(self._check, changed):
                if error:
                    raise DamageError(f"{self.name} does not hold what was sent: {error}")
        expected = {file.name: file.size for file in files}
        actual = self._sizes()
        actual.pop(CLAIM, None)
        if actual != expected:
            names = sorted(name for name, _ in actual.items() ^ expected.items())[:5]
            raise DamageError(f"{self.name} does not hold what was sent: {names}; publish again")
        self._place.delete([CLAIM])
        return True

    def _claim(self) -> dict[str, str]:
        """The objects that an interrupted call of ours left as they were; a claim of another is refused."""
        me, _, rest = self._place.read(CLAIM, bundle.MAX_MANIFEST).partition(b"\n")
        if me.decode("utf-8", "replace") != self._me:
            self._refuse()
        return parse_list(rest, f"{self.name}/{CLAIM}")

    def _refuse(self) -> None:
        raise LockedError(
            f"another publisher is at work on {self.name}, and nothing was sent; if it was killed, call it again "
            f"where it ran, or delete {self.name}/{CLAIM} with all that is there"
        )

    def _sizes(self) -> dict[str, int]:
        return {one.name: one.size for one in self._place.listed()}

    def _listed(self) -> dict[str, str]:
        """The SHA-256 of each file that lies there, by the lists that came with them."""
        hashes: dict[str, str] = {}
        for name in (PAYLOAD, TAGS):
            try:
                text = self._place.read(name, bundle.MAX_MANIFEST)
                hashes |= parse_list(text, f"{self.name}/{name}")
                hashes[name] = hashlib.sha256(text).hexdigest()
            except (FileNotFoundError, FormatError):
                continue
        return hashes

    def _put(self, file: Entry) -> None:
        self._place.upload(file.name, self.staging / file.name)

    def _check(self, file: Entry) -> str | None:
        total = hashlib.sha256()
        for piece in self._place.stream(file.name):
            total.update(piece)
        if total.hexdigest() == file.sha256:
            return None
        return f"{file.name} has the SHA-256 {total.hexdigest()}, {file.sha256} was sent"


TARGET = _ObjectsTarget


def _is_metadata(file: Entry) -> bool:
    return file.name.startswith(bundle.DATA) and file.name.endswith("zarr.json")


def _in_order(files: list[Entry]) -> Iterator[list[Entry]]:
    """Rows, then the metadata of arrays, then that of groups, then all that describes them, then the list of all."""

    def rank(file: Entry) -> tuple[int, int]:
        if not file.name.startswith(bundle.DATA):
            return (3 if file.name == TAGS else 2), 0
        return (1, -file.name.count("/")) if _is_metadata(file) else (0, 0)

    for one in sorted({rank(file) for file in files}):
        yield [file for file in files if rank(file) == one]
