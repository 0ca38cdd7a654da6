"""Rows that lie in a store: all that are committed, as a mapping, or a selection of them, as a sequence."""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError, UncommittedError
from fostore.reading.ids import Index, index_of
from fostore.reading.request import as_row, as_rows
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges
from fostore.schema.row import Array, Schema
from fostore.schema.sides import side_of

if TYPE_CHECKING:
    from fostore.reading.store import Store

_PIECE_BYTES = 4 << 20
_FIND_ROWS = 1 << 20


class Stored:
    """Distributions that lie in a store: the `Store` itself, or a `Selection` of its rows.

    A subclass says which rows of `store` its own are (`resolve`), and where it has any (`positions`).
    """

    store: Store
    """The store in which the rows lie."""
    _index: Index | None = None

    @property
    def positions(self) -> Array:
        """Every row that can be taken, int64, in order: those of a store may have gaps."""
        raise NotImplementedError

    def resolve(self, rows: Any) -> Array:
        """The rows of the store that `rows` are: int64, each committed, a copy only where it must be.

        Raises:
            UncommittedError: names the rows that are negative, out of range or not committed.
            ArgumentError: they are no integers.
        """
        raise NotImplementedError

    @property
    def header(self) -> Header:
        """All attributes of the store."""
        return self.store.reader.header

    @property
    def schema(self) -> Schema:
        """What a row is."""
        return self.header.schema

    @property
    def meta(self) -> Mapping[str, Any]:
        """The user's metadata."""
        return self.header.meta

    @property
    def dataset_facts(self) -> Mapping[str, Any]:
        """What a generator recorded of its dataset; empty where none did."""
        facts = self.header.identity.get("dataset", {})
        return facts if isinstance(facts, Mapping) else {}

    @property
    def num_classes(self) -> int:
        """Classes of a distribution."""
        return self.schema.num_classes

    @property
    def num_members(self) -> int | None:
        """Distributions a row, or None where a row is one distribution."""
        return self.schema.num_members

    @property
    def ids(self) -> Array | None:
        """The key of each row (int64 or text), in their order; None where the store has none."""
        return self._side("id")

    @property
    def views(self) -> Array | None:
        """How each row's sample was augmented: (seed, view), int64 (len, 2); or None."""
        return self._side("view")

    @property
    def labels(self) -> Array | None:
        """The class number of each row's sample, as its dataset said, int64 (len,); None where nobody kept them."""
        return self._side("class_label")

    def _side(self, role: str) -> Array | None:
        """The column of a role at all positions, as the user gave it."""
        column = self.schema.role(role)
        return None if column is None else side_of(role).decode(self._all_of(column.name), column)

    def _all_of(self, name: str) -> Array:
        """A column at all positions, fresh."""
        return self.take_column(name, self.positions)

    def take_column(self, name: str, rows: Any) -> Array:
        """`column(name)[rows]`, gathered at once and fresh: what is stored, as it is stored.

        Raises:
            ArgumentError: there is no such column.
            UncommittedError: names the rows that are not committed.
        """
        return self.store.reader.column(self.schema.index(name)).take(self.resolve(rows))

    def take_topk(self, rows: Any) -> TopK:
        """The classes that a store of top-k rows keeps of `rows`, and what the others weigh: k numbers a row.

        Returns:
            Arrays of n rows, fresh: log-weights as they are stored (float16, float32 or float64; bfloat16 as float32),
            classes in uint16 or uint32, sums in float32 (float64 where that is stored).

        Raises:
            ArgumentError: the store keeps every class.
            UncommittedError: names the rows that are not committed.

        >>> import fostore, numpy, tempfile
        >>> path = tempfile.mkdtemp() + "/words.zarr"
        >>> options = {"num_samples": 1, "num_classes": 4, "kind": "logits", "encoding": "topk", "k": 2}
        >>> with fostore.create(path, **options) as writer:
        ...     writer.append(numpy.array([[1.0, 3.0, 1.0, 2.0]]))
        >>> topk = fostore.open(path).take_topk([0])
        >>> topk.ids.tolist(), topk.values.tolist(), topk.rule
        ([[1, 3]], [[0.0, -1.0]], 'coarse')
        """
        resolved, reader = self.resolve(rows), self.store.reader
        columns = [reader.column(i).take(resolved) for i in range(len(self.schema.content))]
        topk = encoding_of(self.schema).sparse(columns, self.schema)
        if topk is None:
            raise ArgumentError(
                f"{self.store.path} keeps every class of every row: take(rows) gives them; `fostore convert` "
                "makes a store of top-k rows of it"
            )
        return topk

    def index_of(self, ids: Any) -> Array:
        """Where the samples with these ids are: positions, int64 (n,), in the order asked for.

        An index is made at the first call, from all ids, and kept until `refresh`: 16 bytes a row, and half a
        second for a million texts. Positions of a store are its rows; those of a selection count in it.

        Args:
            ids: (n,) keys, integers or strings as the store keeps them; duplicates are allowed.

        Raises:
            UncommittedError: names the ids that no row has; a KeyError as well.
            ArgumentError: the store keeps no ids, or ids of another type.
            DamageError: two rows have one id.

        >>> import fostore, numpy, tempfile
        >>> path = tempfile.mkdtemp() + "/coin.zarr"
        >>> with fostore.create(path, num_samples=3, num_classes=2, ids=["a", "b", "c"]) as writer:
        ...     writer.append(numpy.array([[0.5, 0.5], [0.875, 0.125], [0.25, 0.75]]))
        >>> store = fostore.open(path)
        >>> store.index_of(["c", "a"]), store["b"].tolist(), "d" in store
        (array([2, 0]), [0.875, 0.125], False)
        """
        if isinstance(ids, (str, bytes)):
            raise ArgumentError(f"ids is {ids!r:.80}, expected a sequence of ids: index_of([...])")
        ids = ids if hasattr(ids, "__getitem__") and not isinstance(ids, dict) else list(ids)
        return index_of(self, self._indexed(), ids)

    def _indexed(self) -> Index:
        column = self.schema.role("id")
        if column is None:
            raise ArgumentError(
                f"{self.store.path} keeps no ids; its rows are known by their numbers"
            )
        index = self._index
        if index is None:
            index = self._index = Index(self, column)
        return index

    def find(self, name: str, value: int) -> int | None:
        """The first position at which a column of numbers holds `value`."""
        positions = self.positions
        # Piece by piece: one near the front is met soon, and no column is held as a whole.
        for start in range(0, len(positions), _FIND_ROWS):
            piece = positions[start : start + _FIND_ROWS]
            hits = np.flatnonzero(self.take_column(name, piece) == value)
            if len(hits):
                return int(piece[hits[0]])
        return None

    def announce(self, rows: Any) -> None:
        """A hint that `rows` will be taken next, so that a disk reads them while other work is done.

        Worth a call for each batch of an epoch, one batch ahead: `take` announces its own rows. It
        costs a microsecond where the data is in memory, and says nothing then.

        Raises:
            UncommittedError, ArgumentError: as `take` does; only where there is something to announce.
        """
        # Asked before rows are resolved, which would cost more than the rest where all is in memory.
        views = [self.store.reader.column(index) for index in range(len(self.schema.content))]
        if any(view.is_cold for view in views):
            resolved = self.resolve(rows)
            for view in views:
                view.announce(resolved)

    def prefetch(self, rows: Any) -> None:
        """Fetch rows, with all their columns, into the cache that the store was opened with; nothing on this machine.

        Returns when they are kept: rows asked for later come from there, also in other processes and the next time.

        Args:
            rows: as for `take`.

        Raises:
            ArgumentError: the store lies behind a url and was opened without `cache_dir`.
            UncommittedError, PlaceError, DamageError: as `take` does.
        """
        from fostore.reading.download import prefetch  # import cost: few stores lie behind urls

        prefetch(self.store, self.resolve(rows))

    def select(self, rows: Any) -> Selection:
        """A lazy view of some rows, renumbered from 0 in the order given."""
        return Selection(self.store, self.resolve(rows))


class Selection(Stored, Sequence[Array]):
    """Some rows of a store, renumbered from 0; nothing is read until rows are asked for."""

    def __init__(self, store: Store, rows: Array) -> None:
        self.store = store
        self.rows = rows

    @property
    def positions(self) -> Array:
        """Every row that can be taken: 0 to `len - 1`."""
        return np.arange(len(self))

    def resolve(self, rows: Any) -> Array:
        """The rows of the store that these rows of the selection are; see `Stored.resolve`."""
        positions = as_rows(rows)
        # NumPy would count negative ones from the end: another sample's row, and no error.
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            bad = positions[(positions < 0) | (positions >= len(self))]
            has = f"the rows 0 to {len(self) - 1}" if len(self) else "no rows"
            raise UncommittedError(f"row {int(bad[0])} was asked for; the selection has {has}")
        return self.rows[positions]

    def take(
        self,
        rows: Any,
        out: Array | None = None,
        *,
        as_kind: str = "probs",
        temperature: float | None = None,
        rule: str | None = None,
    ) -> Array:
        """The distributions of these rows of the selection; see `Store.take`."""
        resolved = self.resolve(rows)
        return self.store.take(resolved, out, as_kind=as_kind, temperature=temperature, rule=rule)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, str):
            return self.take(self.index_of([row]))[0]
        if isinstance(row, slice):
            return Selection(self.store, self.rows[row])
        return self.take((as_row(row),))[0]

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self.store, self.rows)  # the index is made again where it is asked for


class Committed(Stored, Mapping[int, Array]):
    """The committed rows of a store by their numbers, as a dict would have them; read piece by piece."""

    @property
    def committed(self) -> Ranges:
        """The rows that can be read."""
        return self.store.reader.committed

    @property
    def num_samples(self) -> int | None:
        """Rows planned; None while a stream runs."""
        return self.header.num_samples

    @property
    def shape(self) -> tuple[int, ...]:
        """(committed rows, [num_members,] num_classes)."""
        return (len(self), *self.schema.row_shape)

    def missing(self) -> list[Range]:
        """Planned rows that are not committed, as `(start, stop)`; a stream misses none."""
        end = self.committed.items[-1][1] if self.committed else 0
        return list(self.committed.missing(end if self.num_samples is None else self.num_samples))

    @property
    def positions(self) -> Array:
        """The rows that can be read, int64, in order."""
        pieces = [np.arange(start, stop) for start, stop in self.committed]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def _all_of(self, name: str) -> Array:
        index = self.schema.index(name)
        column, view = self.schema.columns[index], self.store.reader.column(index)
        # Not gathered: a range is copied as it lies, and costs no eight bytes a row for its number.
        pieces = [view.read(start, stop) for start, stop in self.committed]
        return np.concatenate([np.empty((0, *column.shape), column.numpy_dtype), *pieces])

    def download(self, path: str | os.PathLike[str], *, progress: bool = True) -> Path:
        """Fetch all files of the store, as they are.

        What appears at `path` is whole, durable, and has the digest of the store: every row was hashed. A call that was
        interrupted goes on where it stopped, within a file too. Where the same store is there already, nothing is done.

        Args:
            path: of the store's suffix; its folder is made.
            progress: show a bar on stderr.

        Returns:
            The absolute path of the copy.

        Raises:
            ArgumentError: the store is not sealed, so that a copy may be none of its states; or another suffix.
            StoreExistsError: something else is there.
            LockedError: another call is at work on `path`.
            SpaceError: it does not fit.
            DamageError: the rows that came are not those that were written, or the store changed meanwhile. What came
                is gone.
            PlaceError: the server failed; called again it goes on.
        """
        from fostore.reading.download import download  # import cost: few stores lie behind urls

        return download(self.store, path, progress)

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.committed:
            yield from range(start, stop)

    def __len__(self) -> int:
        return len(self.committed)

    def __contains__(self, row: object) -> bool:
        if isinstance(row, str):
            column = self.schema.role("id")
            is_text = column is not None and column.dtype == "utf8" and "\0" not in row
            return is_text and bool(self._indexed().find([row])[1][0])
        # Of `Mapping` it would read the row to find out.
        return isinstance(row, (int, np.integer)) and int(row) in self.committed

    def get(self, row: Any, default: Any = None) -> Any:
        """The distribution of a row, or `default` where the row is not committed, as a dict has it."""
        return self[row] if row in self else default  # noqa: SIM401

    def items(self) -> Any:
        """(row, distribution) pairs, read piece by piece: memory does not grow with the store."""
        return _Items(self)

    def values(self) -> Any:
        """The distributions in row order, read piece by piece."""
        return (distribution for _, distribution in self.items())


class _Items(ItemsView[int, Array]):
    """The items of a store; those of `Mapping` would gather each row by itself."""

    _mapping: Committed

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        store = self._mapping.store
        step = max(_PIECE_BYTES // encoding_of(store.schema).decoded_bytes(store.schema), 1)
        for first, last in store.committed:
            for start in range(first, last, step):
                rows = range(start, min(start + step, last))
                yield from zip(rows, store.take(np.arange(rows.start, rows.stop)), strict=True)
