"""Reading a store: a mapping from sample to distribution, and batches of rows gathered at once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FormatError, StoreNotFoundError, UncommittedError
from fostore.formats import Finding, Reader, opens
from fostore.places.local import Local
from fostore.places.names import absent, place_of
from fostore.places.place import Place
from fostore.reading.request import as_rows, is_softened, refuse_uncommitted
from fostore.schema.aligned import ALIGNMENT, aligned_empty
from fostore.schema.header import Header
from fostore.schema.ranges import Range, Ranges, describe
from fostore.schema.row import Array, Schema
from fostore.schema.sides import side_of

_PIECE_BYTES = 4 << 20
_ndarray = np.ndarray
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


def open(path: str | Path | Place) -> Store:
    """Open a store for reading: a `.zarr` folder, an `.h5`/`.hdf5` or a `.json` file.

    Reads metadata only; rows are mapped when first asked for. A store that is still being written
    opens as well and shows what is committed (`Store.refresh` shows more). What lies at `path` is
    treated as a stranger's: no code is run, no link followed, nothing allocated by its claims.

    Raises:
        StoreNotFoundError: there is nothing at `path`.
        FormatError, UnsupportedError, UnsafeError: no store, one that is too new, or a hostile one;
            or one whose files are links, as the caches of hubs keep them.
        ArgumentError: a url.
        PlaceError: the file system does not let it be read.
        DamageError: a file of the store is cut or missing.
    """
    return Store(place_of(path))


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

    def __init__(self, path: Path | Place) -> None:
        """`reader` is the open format below: what `fostore`'s own verbs over stores build on."""
        self._place = place = place_of(
            path
        )  # absolute: rows are mapped later, perhaps from elsewhere
        self.path: Any = place.path if isinstance(place, Local) else place.url
        with disk.refusing(self.path):
            try:
                format = opens(place)
            except ArgumentError as error:
                if place.version() is not None:
                    raise FormatError(f"{str(self.path)!r} is not a store: {error}") from error
                raise StoreNotFoundError(f"{absent(self.path, 'no store')}: {error}") from error
            try:
                self.reader: Reader = format.open(place)
            except FileNotFoundError as error:
                if place.version() is not None:
                    raise
                raise StoreNotFoundError(absent(self.path, "no store")) from error
        self._format = format.name
        self._encoding = encoding_of(self.schema)
        self._seen: _Seen | None = None

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
        return self._side("id")

    @property
    def views(self) -> Array | None:
        """How each committed row's sample was augmented: (seed, view), int64 (len, 2); or None."""
        return self._side("view")

    def _side(self, role: str, rows: Array | None = None) -> Array | None:
        """The column of a role at `rows`, or at all committed rows; ids as the user gave them."""
        column = self.schema.role(role)
        if column is None:
            return None
        view = self.reader.column(self.schema.index(column.name))
        if rows is None:
            parts = [view.read(start, stop) for start, stop in self.committed]
            found = np.concatenate([np.empty((0, *column.shape), column.numpy_dtype), *parts])
        else:
            found = view.take(rows)
        return side_of(role).decode(found, column)

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

    def take(
        self,
        rows: Any,
        out: Array | None = None,
        *,
        as_kind: str = "probs",
        temperature: float | None = None,
    ) -> Array:
        """The distributions of `rows`, in the order asked for; duplicates are allowed.

        Args:
            rows: (n,) integers, anything that NumPy takes; each committed, none negative.
            out: (n, [num_members,] num_classes) of the result's dtype, C-contiguous, to be filled
                instead of a new array. Undefined after an error on the way.
            as_kind: "probs", "log_probs" or "logits", whatever is stored.
            temperature: softens (above 1) or sharpens (below 1) each distribution p, each member's
                by itself: probs are softmax(log p / temperature), log_probs their logarithms, and
                logits are those without it, divided by it. In float32 (float64 where that is
                stored), from log-probabilities or logits as they are stored. Classes of
                probability zero stay at zero. It comes on top of `schema.temperature`, which says
                what the rows were made with. None and 1 change no bit.

        Returns:
            A fresh, 64-byte-aligned array that the caller owns: the stored dtype for stored
            probabilities (float32 for bfloat16), else float32 (float64 where that is stored), as
            for any temperature but 1.

        Raises:
            UncommittedError: names the rows that are negative, out of range or not committed.
            ArgumentError: `rows` are no integers, `out` does not fit, or `temperature` is no
                number above 0 (in the normal range of float32).

        Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
        """
        seen = self._seen
        if seen is None:
            seen = self._look()
        # The checks are written out here: a call would cost 2 % of a batch of narrow rows.
        if type(rows) is not _ndarray or rows.dtype is not _INT64 or rows.ndim != 1:
            rows = as_rows(rows)
        if len(rows):
            # One pass: as unsigned, a negative row is larger than any store. argmax finds the
            # largest in a third of the time that max takes.
            bits = rows.view(_UINT64)
            if bits.item(bits.argmax()) >= seen.limit:
                self._refuse(rows)
                if seen.committed is not self.reader.committed:  # more rows since a refresh
                    seen = self._look()
        softened = temperature is not None and is_softened(temperature)
        if seen.is_plain and not softened and as_kind == "probs":
            if out is not None:
                self._check_out(out, len(rows), seen.dtype)
            gather = seen.gather or self._open(seen)
            return gather(rows, out)
        stored = [self.reader.column(i).take(rows) for i in range(len(self.schema.content))]
        by = float(temperature) if softened and temperature is not None else 1.0
        decoded = self._encoding.decode(stored, self.schema, as_kind, by)
        if out is None:
            if decoded.ctypes.data % ALIGNMENT == 0:
                return decoded
            out = aligned_empty(decoded.shape, decoded.dtype)
        self._check_out(out, len(rows), decoded.dtype)
        np.copyto(out, decoded)
        return out

    def _look(self) -> _Seen:
        """Look up what `take` needs to know, as it must before it reads rows that were committed since."""
        committed = self.reader.committed
        dtype = self.schema.columns[0].numpy_dtype
        seen = self._seen = _Seen(committed, self._is_plain, dtype)
        return seen

    def _open(self, seen: _Seen) -> Callable[[Array, Array | None], Array]:
        """Map the column of probabilities: what gathers from it from now on."""
        from fostore.formats.views.view import ArrayView

        view = self.reader.column(0)  # may show more rows than `seen` by now, never fewer
        if isinstance(view, ArrayView):
            seen.array = view.array
        seen.gather = view.take
        return view.take

    def announce(self, rows: Any) -> None:
        """A hint that `rows` will be taken next, so that a disk reads them while other work is done.

        Worth a call for each batch of an epoch, one batch ahead: `take` announces its own rows. It
        costs a microsecond where the data is in memory, and says nothing then.

        Raises:
            UncommittedError, ArgumentError: as `take` does; only where there is something to announce.
        """
        views = [self.reader.column(index) for index in range(len(self.schema.content))]
        if any(view.is_cold for view in views):
            wanted = self._checked(rows)
            for view in views:
                view.announce(wanted)

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
        if not self._is_plain:
            names = [column.name for column in self.schema.content]
            raise ArgumentError(
                f"{self.path} keeps {self.schema.kind} as {self.schema.dtype}; column(name) with one "
                f"of {names} gives what is stored, take(rows) gives probabilities"
            )
        return self.column(self.schema.columns[0].name)

    def column(self, name: str) -> Array:
        """One column as stored, as one read-only array over the committed rows; nothing is read by asking.

        Where nothing can be mapped as one (compressed or rechunked by other tools, a system without
        such maps), all rows are read into a temporary file first, which is mapped.
        """
        index = self.schema.index(name)
        if len(self.committed) != self.committed.prefix:
            raise UncommittedError(
                f"{describe(self.missing())} of {self.path} are not committed; take(rows) reads the others"
            )
        rows: Array = self.reader.column(index).array[: len(self)]
        return rows

    def take_column(self, name: str, rows: Any) -> Array:
        """`column(name)[rows]`, gathered at once and fresh: what is stored, as it is stored.

        Raises:
            ArgumentError: there is no such column.
            UncommittedError: names the rows that are not committed.
        """
        return self.reader.column(self.schema.index(name)).take(self._checked(rows))

    def select(self, rows: Any) -> Selection:
        """A lazy view of some rows, renumbered from 0 in the order given."""
        return Selection(self, self._checked(rows))

    def __getitem__(self, row: Any) -> Array:
        seen = self._seen
        if (
            type(row) is int
            and seen is not None
            and seen.array is not None
            and 0 <= row < seen.limit  # rows that were committed once stay as they are
        ):
            one: Array = seen.array[row].copy()
            return one
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

    def get(self, row: Any, default: Any = None) -> Any:
        """The distribution of a row, or `default` where the row is not committed, as a dict has it."""
        return self[row] if row in self else default  # noqa: SIM401

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

        A finding has a `severity`: "damage", or "warning" where every row is right and something lies
        about that harms nothing, such as files of an operating system.

        Args:
            level: "structure" looks at files and metadata and reads no row; "checksums" also reads
                every row and recomputes hashes and the digest; "full" also checks that every row is
                what the schema promises.
        """
        from fostore.reading.audit import audit

        return audit(self.reader, level)

    def refresh(self) -> None:
        """See what has been committed since the store was opened."""
        self.reader.refresh()
        self._seen = None

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        self._seen = None
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

    @property
    def _is_plain(self) -> bool:
        """Whether probabilities are stored as NumPy has them; of bfloat16 it has only the bits."""
        return self.schema.dtype != "bfloat16" and self._encoding.is_plain(self.schema, "probs")

    def _checked(self, rows: Any) -> Array:
        """Rows as int64, all of them committed."""
        wanted = as_rows(rows)
        if len(wanted) and int(wanted.view(_UINT64).max()) >= self.committed.prefix:
            self._refuse(wanted)
        return wanted

    def _refuse(self, wanted: Array) -> None:
        refuse_uncommitted(wanted, self.committed, self.path, is_sealed=self.is_sealed)


class _Seen:
    """What stays the same as long as the same rows are committed."""

    __slots__ = ("array", "committed", "dtype", "gather", "is_plain", "limit")

    def __init__(self, committed: Ranges, is_plain: bool, dtype: np.dtype[Any]) -> None:
        self.committed = committed
        self.limit = committed.prefix
        self.is_plain = is_plain
        self.dtype = dtype
        self.gather: Callable[[Array, Array | None], Array] | None = None
        self.array: Array | None = None


class Selection(Sequence[Array]):
    """Some rows of a store, renumbered from 0; nothing is read until rows are asked for."""

    def __init__(self, store: Store, rows: Array) -> None:
        self.store = store
        self.rows = rows

    @property
    def schema(self) -> Schema:
        """What a row is; see `Store.schema`."""
        return self.store.schema

    @property
    def header(self) -> Header:
        """All attributes of the store."""
        return self.store.header

    @property
    def ids(self) -> Array | None:
        """The keys of these rows, in their order; None where the store has none."""
        return self.store._side("id", self.rows)

    @property
    def views(self) -> Array | None:
        """How these rows' samples were augmented; see `Store.views`."""
        return self.store._side("view", self.rows)

    def take(
        self,
        rows: Any,
        out: Array | None = None,
        *,
        as_kind: str = "probs",
        temperature: float | None = None,
    ) -> Array:
        """The distributions of these rows of the selection; see `Store.take`."""
        chosen = self._chosen(rows)
        return self.store.take(chosen, out, as_kind=as_kind, temperature=temperature)

    def take_column(self, name: str, rows: Any) -> Array:
        """What is stored of these rows of the selection; see `Store.take_column`."""
        return self.store.take_column(name, self._chosen(rows))

    def _chosen(self, rows: Any) -> Array:
        """The store's rows that these rows of the selection are."""
        wanted = as_rows(rows)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise UncommittedError(f"the selection has the rows 0 to {len(self) - 1}")
        return self.rows[wanted]

    def announce(self, rows: Any) -> None:
        """A hint that these rows of the selection will be taken next; see `Store.announce`."""
        self.store.announce(self._chosen(rows))

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
        step = max(_PIECE_BYTES // self._store._encoding.decoded_bytes(self._store.schema), 1)
        for first, last in self._store.committed:
            for start in range(first, last, step):
                stop = min(start + step, last)
                yield from zip(
                    range(start, stop), self._store.take(np.arange(start, stop)), strict=True
                )
