"""The Zarr v3 format: a folder of log-structured shards that plain Zarr readers open at any moment (spec/zarr.md).

zarr-python is not needed: its readers are the oracle of the tests.
"""

from __future__ import annotations

from pathlib import Path

from fostore.formats import OtherLayoutError, Reader, UnitsClaim, UnitsWriter, UnitWriter
from fostore.formats.claim import WHOLE, Claim
from fostore.formats.zarr.folder import MAX_METADATA, METADATA
from fostore.formats.zarr.reader import ZarrReader
from fostore.places.names import place_of
from fostore.places.place import Place, Storage
from fostore.schema.header import Header


class _Zarr:
    """A store as a Zarr group: one sharded array a column, a shard a unit."""

    name = "zarr"
    streams = True

    def open(self, path: Path | Place) -> Reader:
        """Open for reading; see `Format.open`. A sealed store that another tool laid out anew is decoded."""
        place = place_of(path)
        try:
            return ZarrReader(place)
        except OtherLayoutError as other:
            from fostore.formats.chunks.zarr import open_sealed  # few stores need the codecs

            return open_sealed(place, other)

    def is_store(self, place: Place) -> bool:
        """Whether the metadata of a group is that of a store; see `fostore.formats.is_store`."""
        try:
            return b'"fostore"' in place.read(METADATA, MAX_METADATA)
        except FileNotFoundError:
            return False
        except NotADirectoryError:  # a file, which no Zarr array is either
            return True

    def create(self, path: Path, header: Header) -> UnitWriter:
        """Make an empty store; see `Format.create`."""
        from fostore.formats.zarr.resume import create  # readers need no part that writes

        return create(path, header)

    def resume(self, path: Path, claim: Claim = WHOLE) -> UnitWriter:
        """Open a store for writing; see `Format.resume`."""
        from fostore.formats.zarr.resume import resume  # as above

        return resume(path, claim)

    def units(
        self, place: Storage, header: Header | None = None, claim: UnitsClaim = WHOLE
    ) -> UnitsWriter:
        """Write whole units beside others; see `Format.units`."""
        from fostore.formats.zarr.units import ZarrUnits, begin  # as above

        if header is not None:
            begin(place, header)
        return ZarrUnits(place, claim)


FORMAT = _Zarr()
