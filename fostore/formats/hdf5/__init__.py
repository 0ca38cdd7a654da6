"""The HDF5 format: one file of fixed size that plain h5py opens at any moment (spec/hdf5.md).

HDF5 itself is at work when the file is built, never while rows are written: they go to where the datasets lie, and
no metadata of HDF5 changes. Data first, then the slot that names it: a kill at any instant costs what was not
committed. Growing the file, or a header that outgrows its room, is a new file beside and one rename.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fostore import disk
from fostore.errors import StoreExistsError, UnsupportedError
from fostore.formats import OtherLayoutError, Reader, UnitsClaim, UnitsWriter
from fostore.formats.claim import WHOLE, Claim
from fostore.places.local import Local
from fostore.places.names import place_of
from fostore.places.place import Place, Storage
from fostore.schema.header import Header

if TYPE_CHECKING:
    from fostore.formats.hdf5.writer import HDF5Writer


class _HDF5:
    """HDF5 files whose datasets are contiguous; see `fostore.formats.Format`.

    Reading imports no part that writes.
    """

    name = "hdf5"
    streams = False

    def open(self, path: Path | Place) -> Reader:
        """Open for reading; takes no HDF5 lock, so that no writer is disturbed.

        A sealed store that another tool laid out anew is decoded.
        """
        from fostore.formats.hdf5.reader import HDF5Reader  # h5py costs a tenth of a second

        place = place_of(path)
        try:
            return HDF5Reader(place)
        except OtherLayoutError as other:
            from fostore.formats.chunks.hdf5 import open_sealed  # few stores need the codecs

            return open_sealed(place, other)

    def is_store(self, place: Place) -> bool:
        """Whether a file says that it is a store; see `fostore.formats.is_store`."""
        from fostore.formats.hdf5.file import holds_store  # h5py, as above

        return holds_store(place)

    def create(self, path: Path, header: Header) -> HDF5Writer:
        """Make an empty store, its room on the disk taken; it appears whole or not at all.

        Raises:
            ArgumentError: num_samples is None, or a column has a name that the format needs.
            SpaceError: the disk cannot hold all rows; nothing is left behind.
        """
        from fostore.formats.hdf5.build import make  # readers need no part that writes
        from fostore.formats.hdf5.writer import HDF5Writer, check_planned

        check_planned(header)
        if os.path.lexists(path):
            raise StoreExistsError(f"{str(path)!r} exists")
        fd = make(path, header, ())
        try:
            disk.sync_directory(path.parent)
            return HDF5Writer(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def resume(self, path: Path, claim: Claim = WHOLE) -> HDF5Writer:
        """Open for writing; brings what plain readers see up to the header, and touches no row.

        Raises:
            UnsupportedError: less than all is claimed. Both slots name the runs of all units.
        """
        if not claim.is_whole:
            raise UnsupportedError(
                f"{path} is an HDF5 store, which has one writer: {claim.owner!r} cannot hold the units "
                f"{claim.units} of it alone; several writers need a .zarr store"
            )
        from fostore.formats.hdf5.file import open_store  # nor h5py, until a store is named
        from fostore.formats.hdf5.writer import HDF5Writer

        path = Path(os.path.realpath(path))
        open_store(Local(path)).close()  # refuses a pipe: to open it for writing might wait
        fd = disk.open_file(path, write=True)
        try:
            disk.remove(disk.unfinished(path))
            # A killed writer's last slot may be in the page cache alone; what we call committed must be durable.
            disk.sync_data(fd)
            return HDF5Writer(path, fd)
        except BaseException:
            os.close(fd)
            raise

    def units(
        self, place: Storage, header: Header | None = None, claim: UnitsClaim = WHOLE
    ) -> UnitsWriter:
        """
        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{place} would be HDF5, a file that has one writer, on a disk of its machine: several writers, and "
            "object stores, need a .zarr store. Write that, and then fostore.convert(it, 'x.h5') gives the same rows"
        )


FORMAT = _HDF5()
