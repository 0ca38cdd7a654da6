"""A bundle in an object store (S3 and what speaks like it, Google's, Azure's), through obstore (extra `remote`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fostore.errors import DamageError, FormatError, StoreExistsError
from fostore.places.remote import REQUESTS, Remote
from fostore.publishing import bundle
from fostore.publishing.manifest import TAGS, Entry, parse_list
from fostore.publishing.targets import staging_beside
from fostore.schema import jsontext


class Target:
    """Objects under one prefix. Metadata follows what it describes, and the list of all files comes last."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self._place = Remote(name)
        self.staging = staging_beside(store)

    def before(self) -> Mapping[str, Any] | None:
        """The manifest that lies there; see `Target.before`."""
        try:
            text = self._place.read(bundle.MANIFEST, bundle.MAX_MANIFEST)
        except FileNotFoundError:
            self._refuse_others()
            return None
        manifest: Mapping[str, Any] = jsontext.loads(text, self.name)
        return manifest

    def _refuse_others(self) -> None:
        try:
            names = self._place.names()
        except FileNotFoundError:
            return
        # An upload that was interrupted has left rows, and no manifest.
        if set(names) != {bundle.DATA.rstrip("/")} and not {"bagit.txt", "data"} <= set(names):
            raise StoreExistsError(
                f"{self.name!r} holds {sorted(names)[:5]} and is no bundle; choose another prefix"
            )

    def send(self, files: list[Entry], version: str) -> bool:
        """Put what differs, read it back and compare; see `Target.send`."""
        held = self._held()
        changed = [file for file in files if held.get(file.name) != file.sha256]
        gone = sorted(set(held) - {file.name for file in files})
        if not changed and not gone:
            return False
        with ThreadPoolExecutor(REQUESTS, "fostore-publish") as pool:
            for group in _in_order(changed):
                for _ in pool.map(self._put, group):
                    pass
            for name in gone:
                self._place.delete(name)
            for error in pool.map(self._check, changed):
                if error:
                    raise DamageError(f"{self.name} does not hold what was sent: {error}")
        return True

    def _held(self) -> dict[str, str]:
        """The SHA-256 of each file that lies there whole, by the lists that came with them."""
        hashes: dict[str, str] = {}
        for name in ("manifest-sha256.txt", TAGS):
            try:
                text = self._place.read(name, bundle.MAX_MANIFEST)
                hashes |= parse_list(text, f"{self.name}/{name}")
                hashes[name] = hashlib.sha256(text).hexdigest()
            except (FileNotFoundError, FormatError):
                continue
        return {n: sha for n, sha in hashes.items() if self._place.size(n) is not None}

    def _put(self, file: Entry) -> None:
        self._place.put(file.name, self.staging / file.name)

    def _check(self, file: Entry) -> str | None:
        total = hashlib.sha256()
        for piece in self._place.stream(file.name):
            total.update(piece)
        if total.hexdigest() == file.sha256:
            return None
        return f"{file.name} has the SHA-256 {total.hexdigest()}, {file.sha256} was sent"


def _in_order(files: list[Entry]) -> Iterator[list[Entry]]:
    """Rows, then the metadata of arrays, then that of groups, then all that describes them, then the list of all."""

    def rank(file: Entry) -> tuple[int, int]:
        if not file.name.startswith(bundle.DATA):
            return (3 if file.name == TAGS else 2), 0
        return (1, -file.name.count("/")) if file.name.endswith("zarr.json") else (0, 0)

    for one in sorted({rank(file) for file in files}):
        yield [file for file in files if rank(file) == one]
