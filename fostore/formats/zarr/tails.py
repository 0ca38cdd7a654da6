"""The files of units in progress, one a column and unit: kept open, written in place, made durable together."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fostore import disk
from fostore.errors import DamageError
from fostore.formats.claim import Claim
from fostore.formats.zarr.folder import JOURNAL, Folder, is_temporary, names_in, unit_of
from fostore.formats.zarr.layout import TAIL
from fostore.schema.row import Array

_MAX_OPEN = 64  # descriptors, one a column and open unit: a process has 1,024 by default
_COPY_BYTES = 4 << 20
_Key = tuple[int, int]


@dataclass(slots=True)
class _Tail:
    fd: int
    dirty: bool = False
    users: int = 0
    forgotten: bool = False


class Tails:
    """The open tails of one writer; a bounded number of descriptors.

    All but `write` may run in one thread while `write` runs in another, for other units.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._open: OrderedDict[_Key, _Tail] = OrderedDict()
        self._new_names: set[int] = set()
        self._guard = threading.Lock()
        self._error: OSError | None = None

    def write(self, index: int, unit: int, data: Array, offset: int) -> None:
        """Write bytes (uint8) of a unit's tail; the first write makes the tail."""
        with self._used(index, unit) as tail:
            disk.write_at(tail.fd, data, offset)
            tail.dirty = True  # after the write: a sync that ran meanwhile did not cover it all

    def sync(self) -> None:
        """Make what was written durable.

        A sync that failed cannot be repeated: the system may have dropped the bytes and would not
        say so again. From then on every sync raises the same error.
        """
        if self._error is not None:
            raise self._error
        with self._guard:
            dirty = [(tail, key[0]) for key, tail in self._open.items() if tail.dirty]
            names, self._new_names = self._new_names, set()
            for tail, _ in dirty:
                tail.dirty = False
                tail.users += 1
        try:
            for tail, _ in dirty:
                disk.sync_data(tail.fd)
            for index in sorted(names):
                disk.sync_directory(self._folder.array(index))
        except OSError as error:
            self._error = error
            raise
        finally:
            with self._guard:
                for tail, _ in dirty:
                    self._let_go(tail)

    def complete(self, index: int, unit: int, num_rows: int) -> bool:
        """Append the index to the tail of a whole unit, not durable yet; False where there is no tail."""
        layout = self._folder.shards[index]
        if self._folder.place.size(layout.tail(unit)) is None:
            return False
        size = num_rows * layout.column.row_bytes
        with self._used(index, unit) as tail:
            disk.truncate(tail.fd, size)
            padding = layout.padding(num_rows)
            if padding.size:
                disk.write_at(tail.fd, padding.reshape(-1).view("u1"), size)
            at = layout.data_bytes(num_rows)
            for piece in layout.index_pieces(num_rows):
                disk.write_at(tail.fd, piece, at)
                at += len(piece)
            tail.dirty = True
        return True

    def place(self, index: int, unit: int) -> None:
        """Give a tail that is complete and durable the name of its shard, whose folder is there."""
        self._forget(index, unit)
        # Within one file system: the rows keep their file, and whoever has it mapped keeps them.
        layout, path = self._folder.shards[index], self._folder.path
        disk.rename(path / layout.tail(unit), path / layout.key(unit))

    def close(self) -> None:
        with self._guard:
            for tail in self._open.values():
                tail.forgotten = True
                tail.users += 1
                self._let_go(tail)
            self._open.clear()

    @contextmanager
    def _used(self, index: int, unit: int) -> Iterator[_Tail]:
        """An open tail that no other thread closes meanwhile."""
        key = (index, unit)
        with self._guard:
            tail = self._open.get(key)
            if tail is None:
                tail = self._open[key] = _Tail(self._open_file(index, unit))
            self._open.move_to_end(key)
            tail.users += 1
            if len(self._open) > _MAX_OPEN:
                self._evict()
        try:
            yield tail
        finally:
            with self._guard:
                self._let_go(tail)

    def _evict(self) -> None:
        for key, tail in list(self._open.items()):
            if len(self._open) <= _MAX_OPEN:
                return
            if tail.users == 0:
                try:
                    if tail.dirty:
                        disk.sync_data(tail.fd)
                except OSError as error:
                    self._error = error
                    raise
                del self._open[key]
                os.close(tail.fd)

    def _forget(self, index: int, unit: int) -> None:
        with self._guard:
            tail = self._open.pop((index, unit), None)
            if tail is not None:
                tail.forgotten = True
                tail.users += 1
                self._let_go(tail)

    @staticmethod
    def _let_go(tail: _Tail) -> None:
        tail.users -= 1
        if tail.forgotten and tail.users == 0:  # not while another thread writes through it
            os.close(tail.fd)

    def _open_file(self, index: int, unit: int) -> int:
        layout = self._folder.shards[index]
        if self._folder.place.size(layout.tail(unit)) is None:
            self._new_names.add(index)
            if self._folder.place.size(layout.key(unit)) is not None:
                self._copy_back(index, unit)
        return disk.open_file(self._folder.path / layout.tail(unit), write=True, create=True)

    def _copy_back(self, index: int, unit: int) -> None:
        """Make a tail of a sealed, partial unit that goes on; the shard stays until it is replaced."""
        layout, path = self._folder.shards[index], self._folder.path
        shard, tail = path / layout.key(unit), path / layout.tail(unit)
        temporary = tail.with_name(f"{tail.name}.tmp")
        source = disk.open_file(shard)
        try:
            size = os.fstat(source).st_size - layout.index_bytes
            inner = layout.inner_rows * layout.column.row_bytes
            if size <= 0 or size % inner:
                raise DamageError(f"{shard} has {size + layout.index_bytes:,} bytes and was cut")
            disk.remove(temporary)
            target = disk.open_file(temporary, write=True, create=True)
            try:
                for at in range(0, size, _COPY_BYTES):
                    data = disk.read_at(source, at, min(_COPY_BYTES, size - at))
                    disk.write_at(target, data, at)
                disk.sync_data(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        disk.rename(temporary, tail)


def clean(folder: Folder, claim: Claim, *, keep_units: set[int] | None) -> None:
    """Remove temporary files, and tails of other units, as far as they are claimed.

    `keep_units` None: all tails, and where all is claimed the journals as well.
    """
    for layout in folder.layouts:
        array, names = folder.path / layout.name, names_in(folder.place, layout.name)
        stale = [name for name in names if _is_stale(name, claim, keep_units)]
        for name in stale:
            disk.remove(array / name)
        if stale:
            disk.sync_directory(array)
    for name in names_in(folder.place) if claim.is_whole else ():
        if is_temporary(name):
            disk.remove(folder.path / name)


def _is_stale(name: str, claim: Claim, keep_units: set[int] | None) -> bool:
    is_tail, unfinished = name.startswith(TAIL), is_temporary(name)
    unit = unit_of(name.removesuffix(".tmp").removeprefix(TAIL if is_tail else "."))
    if unit is None:  # of no unit: another writer's journal, or what the header belongs to
        is_journal = keep_units is None and name.startswith(JOURNAL)
        return claim.is_whole and (unfinished or is_journal)
    is_kept = keep_units is not None and unit in keep_units
    return claim.holds(unit) and (unfinished or (is_tail and not is_kept))
