"""A bundle as one .zip file: stored, not compressed, so that a Zarr store is read in place; no times in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, cast

from fostore import disk
from fostore.errors import StoreExistsError, UnsafeError
from fostore.files._sink import Sink
from fostore.places.names import destination
from fostore.publishing import bundle
from fostore.publishing.manifest import Entry, hash_file
from fostore.publishing.targets import staging_beside

_PIECE = 4 << 20


class _ArchiveTarget:
    """The file appears, or changes, whole."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self._path = destination(name)
        self.staging = staging_beside(self._path)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file in the archive that is there; see `Target.read`."""
        if not self._path.exists():
            return None
        try:
            with zipfile.ZipFile(self._path) as archive:
                names = archive.namelist()
                if bundle.MANIFEST not in names:
                    raise StoreExistsError(f"{self.name!r} is there and holds no bundle")
                if name not in names:
                    return None
                with archive.open(name) as file:
                    text = file.read(limit + 1)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise StoreExistsError(f"{self.name!r} is there and holds no bundle") from error
        if len(text) > limit:
            raise UnsafeError(f"{self.name}: {name} holds more than {limit:,} bytes")
        return text

    def send(self, files: list[Entry], version: str) -> bool:
        """Write the archive under another name, and give it its own; see `Target.send`."""
        unnamed = disk.unfinished(self._path)
        disk.require_free(self._path, sum(file.size for file in files))
        try:
            with Sink(unnamed) as sink:
                self._write(sink, files)
            is_changed = not self._path.exists() or hash_file(unnamed) != hash_file(self._path)
            if is_changed:
                disk.rename(unnamed, self._path)
                disk.sync_directory(self._path.parent)
        finally:
            disk.remove(unnamed)
        return is_changed

    def _write(self, sink: Sink, files: list[Entry]) -> None:
        archive = zipfile.ZipFile(cast(IO[bytes], sink), "w", zipfile.ZIP_STORED)
        try:
            for file in sorted(files, key=_order):
                # Its time is 1980-01-01: the same every time.
                info = zipfile.ZipInfo(file.name)
                info.external_attr = 0o644 << 16
                with (
                    archive.open(info, "w", force_zip64=file.size > 1 << 31) as out,
                    open(self.staging / file.name, "rb") as source,
                ):
                    while piece := source.read(_PIECE):
                        out.write(piece)
            archive.close()
        finally:
            archive.fp = None  # zipfile writes an end after an error too, when it is collected


TARGET = _ArchiveTarget


def _order(file: Entry) -> tuple[bool, int, str]:
    """Metadata first, that of the group before those of its arrays: a reader of Zarr finds it at once."""
    return not file.name.endswith("zarr.json"), file.name.count("/"), file.name
