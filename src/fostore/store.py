"""Reading a store: a mapping from sample to distribution, and batches of rows gathered at once."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, StoreNotFoundError, UncommittedError
from fostore.formats import Finding, Reader, format_of
from fostore.header import Header
from fostore.ranges import Range, Ranges, describe
from fostore.schema import Array, Schema

_PIECE_BYTES = 4 << 20


def open(path: str | Path) -> Store:
    """Open a store for reading: a `.zarr` folder, an `.h5`/`.hdf5` or a `.json` file.

    Reads metadata only; rows are mapped when first asked for. A store that is still being written
    opens as well and shows what is committed (`Store.refresh` shows more). What lies at `path` is
    treated as a stranger's: no code is run, no link followed, nothing allocated by its claims.

    Raises:
        StoreNotFoundError: there is nothing at `path`.
        FormatError, UnsupportedError, UnsafeError: no store, one that is too new, or a hostile one.
        DamageError: a file of the store is cut or missing.
    """
    return Store(Path(path))


class Store(Mapping[int, Array]):
    """One predictive distribution for each sample: row i belongs to sample i of the base dataset.

    A mapping of committed rows (so code written for a dict runs on it), and more: `take` gathers a
    batch in any order, `array` is the whole store as one read-only array. Safe for several threads
    and across forks; pickles as its path. Equal to another store of the same path and digest.

    >>> import fostore, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/coin.zarr"
    >>> with fostore.create(path, num_samples=3, num_classes=2) as writer:
    ...     writer.append(numpy.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    >>> store = fostore.open(path)
    >>> len(store), store.is_sealed, store.take([2, 0]).tolist()
    (3, True, [[0.20000000298023224, 0.800000011920929], [0.5, 0.5]])
    >>> store[3]
    Traceback (most recent call last):
    ...
    fostore.errors.UncommittedError: row 3 was asked for; ...coin.zarr has the rows 0 to 2
    """

    def __init__(self, path: Path) -> None:
        """`reader` is the open format below: what `fostore`'s own verbs over stores build on."""
        format = format_of(path)
        self._place = path.absolute()  # rows are mapped later, perhaps from another folder
        try:
            self.reader: Reader = format.open(self._place)
        except FileNotFoundError as error:
            if path.exists():
                raise
            raise StoreNotFoundError(f"there is no store at {str(path)!r}") from error
        self.path = path
        self._format = format.name
        self._encoding = encoding_of(self.schema)

    # What it is

    @property
    def header(self) -> Header:
        """All attributes."""
        return self.reader.header

    @property
    def schema(self) -> Schema:
        """What a row is."""
        return self.header.schema

    @property
    def meta(self) -> Mapping[str, Any]:
        """The user's metadata."""
        return self.header.meta

    @property
    def format(self) -> str:
        """The name of the format: "zarr", "hdf5" or "json"."""
        return self._format

    @property
    def num_samples(self) -> int | None:
        """Rows planned; None while a stream runs."""
        return self.header.num_samples

    @property
    def num_classes(self) -> int:
        """Classes of a distribution."""
        return self.schema.num_classes

    @property
    def num_members(self) -> int | None:
        """Distributions a row, or None where a row is one distribution."""
        return self.schema.num_members

    @property
    def shape(self) -> tuple[int, ...]:
        """(committed rows, [num_members,] num_classes)."""
        return (len(self), *self.schema.row_shape)

    @property
    def is_sealed(self) -> bool:
        """Whether the store is whole and has a digest."""
        return self.header.sealed

    @property
    def committed(self) -> Ranges:
        """The rows that can be read."""
        return self.reader.committed

    @property
    def ids(self) -> Array | None:
        """The key of each committed row (int64 or text), in row order; None where the store has none."""
        from fostore.sample_ids import decode_ids

        column = self.schema.role("id")
        if column is None:
            return None
        view = self.reader.column(self.schema.index(column.name))
        parts = [view.read(start, stop) for start, stop in self.committed]
        empty = np.empty((0, *column.shape), column.numpy_dtype)
        return decode_ids(np.concatenate([empty, *parts]), column)

    def missing(self) -> list[Range]:
        """Planned rows that are not committed, as `(start, stop)`; a stream misses none."""
        if self.num_samples is None:
            return list(
                self.committed.missing(self.committed.items[-1][1] if self.committed else 0)
            )
        return list(self.committed.missing(self.num_samples))

    def digest(self) -> str:
        """The digest of the content: the same in every format and chunking.

        Raises:
            ArgumentError: the store is not sealed, so that its content may still grow.
        """
        if self.header.digest is None:
            raise ArgumentError(f"{self.path} is not sealed and has no digest yet; finish it first")
        return self.header.digest

    # Rows out

    def take(self, rows: Any, out: Array | None = None, *, as_kind: str = "probs") -> Array:
        """The distributions of `rows`, in the order asked for; duplicates are allowed.

        Args:
            rows: (n,) integers, anything that NumPy takes; each committed, none negative.
            out: (n, [num_members,] num_classes) of the result's dtype, C-contiguous, to be filled
                instead of a new array.
            as_kind: "probs", "log_probs" or "logits", whatever is stored.

        Returns:
            A fresh, 64-byte-aligned array that the caller owns: the stored dtype for stored
            probabilities (float32 for bfloat16), else float32 (float64 where that is stored).

        Raises:
            UncommittedError: names the rows that are negative, out of range or not committed.
            ArgumentError: `rows` are no integers, or `out` does not fit.
        """
        wanted = self._checked(rows)
        columns = range(len(self.schema.content))
        if self._is_plain(as_kind):
            if out is not None:
                self._check_out(out, len(wanted), self.schema.columns[0].numpy_dtype)
            return self.reader.column(0).take(wanted, out)
        stored = [self.reader.column(i).take(wanted) for i in columns]
        decoded = self._encoding.decode(stored, self.schema, as_kind)
        if out is None:
            return decoded
        self._check_out(out, len(wanted), decoded.dtype)
        np.copyto(out, decoded)
        return out

    def _check_out(self, out: Any, count: int, dtype: np.dtype[Any]) -> None:
        shape = (count, *self.schema.row_shape)
        fits = isinstance(out, np.ndarray) and (out.shape, out.dtype) == (shape, dtype)
        if not fits or not out.flags.writeable:
            came = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
            raise ArgumentError(f"out is {came}, expected a writable array of {dtype} {shape}")

    @property
    def array(self) -> Array:
        """The whole store as one read-only array of probabilities; nothing is read by asking.

        Raises:
            ArgumentError: the store keeps something else than plain probabilities: `column(name)`
                gives what is stored, `take` gives probabilities.
            UncommittedError: there are gaps in the rows.
        """
        if not self._is_plain("probs"):
            names = [column.name for column in self.schema.content]
            raise ArgumentError(
                f"{self.path} keeps {self.schema.kind} as {self.schema.dtype}; column(name) with one "
                f"of {names} gives what is stored, take(rows) gives probabilities"
            )
        return self.column(self.schema.columns[0].name)

    def column(self, name: str) -> Array:
        """One column as stored, as one read-only array over the committed rows; nothing is read by asking."""
        index = self.schema.index(name)
        if len(self.committed) != self.committed.prefix:
            raise UncommittedError(
                f"{describe(self.missing())} of {self.path} are not committed; take(rows) reads the others"
            )
        rows: Array = self.reader.column(index).array[: len(self)]
        return rows

    def select(self, rows: Any) -> Selection:
        """A lazy view of some rows, renumbered from 0 in the order given."""
        return Selection(self, self._checked(rows))

    def __getitem__(self, row: Any) -> Array:
        if isinstance(row, slice):
            if len(self.committed) != self.committed.prefix:
                raise UncommittedError(
                    f"{self.path} has gaps: {describe(self.missing())} are missing"
                )
            return self.take(np.arange(*row.indices(len(self))))
        try:
            index = operator.index(row)
        except TypeError as error:
            raise ArgumentError(
                f"a row is an integer or a slice, {row!r} came; take() gathers"
            ) from error
        row_of: Array = self.take((index,))[0]
        return row_of

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.committed:
            yield from range(start, stop)

    def __len__(self) -> int:
        return len(self.committed)

    def __contains__(self, row: object) -> bool:
        return isinstance(row, (int, np.integer)) and int(row) in self.committed

    def items(self) -> Any:
        """(row, distribution) pairs, read piece by piece: memory does not grow with the store."""
        return _Items(self)

    def values(self) -> Any:
        """The distributions in row order, read piece by piece."""
        return (distribution for _, distribution in self.items())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            return self.array if dtype is None else self.array.astype(dtype, copy=False)
        rows = self.take(np.arange(len(self))) if not self.missing() else self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    # Checks

    def verify(self, level: str = "full") -> list[Finding]:
        """Everything wrong with the store; an empty list where all is well.

        Args:
            level: "structure" looks at files and metadata and reads no row; "checksums" also reads
                every row and recomputes hashes and the digest; "full" also checks that every row is
                what the schema promises.
        """
        from fostore.audit import audit

        return audit(self.reader, level)

    def refresh(self) -> None:
        """See what has been committed since the store was opened."""
        self.reader.refresh()

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        self.reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self._place,)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Store):
            return NotImplemented
        same_path = self._place == other._place
        return same_path and self.header.digest == other.header.digest

    def __hash__(self) -> int:
        return hash(self._place)

    def __repr__(self) -> str:
        state = (
            "sealed" if self.is_sealed else f"{len(self)} of {self.num_samples or 'unknown'} rows"
        )
        shape = "(" + ", ".join(map(str, self.shape)) + ")"
        return f"<Store {str(self.path)!r} {self.schema.kind} {self.schema.dtype} {shape}, {state}>"

    def _is_plain(self, as_kind: str) -> bool:
        """Whether what is stored is what is asked for, number by number."""
        schema = self.schema
        dense = schema.encoding.get("name") == "dense"
        return dense and schema.kind == as_kind == "probs" and schema.dtype != "bfloat16"

    def _checked(self, rows: Any) -> Array:
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
            raise ArgumentError(
                f"rows must be a sequence of integers, {wanted.dtype} of shape {wanted.shape} came"
            )
        wanted = wanted.astype(np.int64, copy=False)
        prefix = self.committed.prefix
        # One pass: as unsigned, a negative row is larger than any store.
        if wanted.size and int(wanted.view(np.uint64).max()) >= prefix:
            self._refuse_uncommitted(wanted)
        return wanted

    def _refuse_uncommitted(self, wanted: Array) -> None:
        starts = np.array([start for start, _ in self.committed], dtype=np.int64)
        stops = np.array([stop for _, stop in self.committed], dtype=np.int64)
        at = np.searchsorted(starts, wanted, side="right") - 1
        bad = (at < 0) | (wanted >= stops[at]) if len(stops) else np.ones(len(wanted), bool)
        if bad.any():
            named = ", ".join(str(row) for row in wanted[bad][:4])
            has = f"the {describe(self.committed)}" if self.committed else "no rows"
            raise UncommittedError(
                f"row {named} was asked for; {self.path} has {has}"
                + ("" if self.is_sealed else " committed so far")
            )


class Selection(Sequence[Array]):
    """Some rows of a store, renumbered from 0; nothing is read until rows are asked for."""

    def __init__(self, store: Store, rows: Array) -> None:
        self.store = store
        self.rows = rows

    def take(self, rows: Any, out: Array | None = None, *, as_kind: str = "probs") -> Array:
        """The distributions of these rows of the selection; see `Store.take`."""
        wanted = np.asarray(rows)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise UncommittedError(f"the selection has the rows 0 to {len(self) - 1}")
        return self.store.take(self.rows[wanted.astype(np.int64)], out, as_kind=as_kind)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Selection(self.store, self.rows[row])
        return self.take((operator.index(row),))[0]

    def __len__(self) -> int:
        return len(self.rows)


class _Items:
    """The items of a store as a re-iterable, sized view."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        step = max(_PIECE_BYTES // max(self._store.schema.row_bytes), 1)
        for first, last in self._store.committed:
            for start in range(first, last, step):
                stop = min(start + step, last)
                yield from zip(
                    range(start, stop), self._store.take(np.arange(start, stop)), strict=True
                )
