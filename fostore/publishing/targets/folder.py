"""A bundle in a folder of this machine."""

from __future__ import annotations

from pathlib import Path

from fostore import disk
from fostore.errors import StoreExistsError
from fostore.places.names import destination
from fostore.publishing import bundle
from fostore.publishing.manifest import Entry


class _FolderTarget:
    """The folder appears, or changes, whole."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self._path = destination(name)
        self.staging = disk.unfinished(self._path)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file of the bundle that is there; see `Target.read`."""
        disk.mend_exchange(self._path)  # which a kill may have cut in two
        if bundle.is_bundle(self._path):
            if name == bundle.MANIFEST:
                bundle.read_manifest(self._path)  # what is damaged in it would go into the next one
            path = self._path / name
            return disk.read_named(path, limit, "a file of a bundle") if path.exists() else None
        if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
            raise StoreExistsError(
                f"{self.name!r} is there and is no bundle; choose a folder that is empty or not there"
            )
        return None

    def send(self, files: list[Entry], version: str) -> bool:
        """Give the bundle its name; see `Target.send`."""
        is_there = bundle.is_bundle(self._path)
        is_changed = not (is_there and bundle.holds(self._path, files))
        if is_changed:
            disk.sync_directory(self.staging)
            if is_there:
                disk.exchange(self.staging, self._path)
            else:
                disk.rename(self.staging, self._path)
            disk.sync_directory(self._path.parent)
        return is_changed


TARGET = _FolderTarget
