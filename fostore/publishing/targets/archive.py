"""A bundle as one .zip file: stored, not compressed, so that a Zarr store is read in place; no times in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import StoreExistsError
from fostore.places.names import local_path
from fostore.publishing import bundle
from fostore.publishing.manifest import Entry, hash_file
from fostore.publishing.targets import staging_beside
from fostore.schema import jsontext

_PIECE = 4 << 20


class Target:
    """The file appears, or changes, whole."""

    def __init__(self, name: str, store: Path) -> None:
        self.name = name
        self._path = local_path(name).absolute()
        self.staging = staging_beside(store)

    def before(self) -> Mapping[str, Any] | None:
        """The manifest in the archive that is there; see `Target.before`."""
        if not self._path.exists():
            return None
        try:
            with zipfile.ZipFile(self._path) as archive:
                text = archive.read(bundle.MANIFEST)
        except (zipfile.BadZipFile, KeyError) as error:
            raise StoreExistsError(f"{self.name!r} is there and holds no bundle") from error
        manifest: Mapping[str, Any] = jsontext.loads(text, self.name)
        return manifest

    def send(self, files: list[Entry], version: str) -> bool:
        """Write the archive under another name, and give it its own; see `Target.send`."""
        unnamed = disk.unfinished(self._path)
        disk.make_folders(self._path.parent)
        disk.remove(unnamed)
        with zipfile.ZipFile(unnamed, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
            for file in sorted(files, key=_order):
                info = zipfile.ZipInfo(
                    file.name
                )  # the time of which is 1980-01-01: the same every time
                info.external_attr = 0o644 << 16
                with (
                    archive.open(info, "w", force_zip64=file.size > 1 << 31) as out,
                    open(self.staging / file.name, "rb") as source,
                ):
                    while piece := source.read(_PIECE):
                        out.write(piece)
        is_changed = not self._path.exists() or hash_file(unnamed) != hash_file(self._path)
        if is_changed:
            disk.sync_file(unnamed)
            disk.rename(unnamed, self._path)
            disk.sync_directory(self._path.parent)
        disk.remove(unnamed)
        return is_changed


def _order(file: Entry) -> tuple[bool, int, str]:
    """Metadata first, that of the group before those of its arrays: a reader of Zarr finds it at once."""
    return not file.name.endswith("zarr.json"), file.name.count("/"), file.name
