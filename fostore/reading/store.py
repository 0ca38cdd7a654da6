"""Reading a store: a mapping from sample to distribution, and batches of rows gathered at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, FormatError, StoreNotFoundError, UncommittedError
from fostore.formats import Finding, Reader, opens
from fostore.places.local import Local
from fostore.places.names import absent, place_of
from fostore.places.place import Place
from fostore.reading.named import place_named
from fostore.reading.request import as_row, as_rows, check_out, is_softened, refuse_uncommitted
from fostore.reading.selection import Committed
from fostore.reading.sequences import Sequenced
from fostore.schema.halves import ALIGNMENT, aligned_empty
from fostore.schema.ranges import Ranges, describe
from fostore.schema.row import Array
from fostore.schema.shown import Grid, Shown

_ndarray = np.ndarray
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


def open(
    path: str | os.PathLike[str] | Place, cache_dir: str | os.PathLike[str] | None = None
) -> Store:
    """Open a store for reading: a `.zarr` folder, an `.h5`/`.hdf5` or a `.json` file, or a bundle that holds one.

    Reads metadata only; rows are mapped when first asked for. A store that is still being written
    opens as well and shows what is committed (`Store.refresh` shows more). What lies at `path` is
    treated as a stranger's: no code is run, no link followed, nothing allocated by its claims.

    Behind a url rows are fetched when they are asked for, those near each other in one request, 32 requests at a
    time. Credentials come from the environment, as the services' own tools have them.

    Args:
        path: a path; a url: `s3://`, `gs://`, `az://`, `https://`, `hf://datasets/USER/NAME[@REVISION]`; or a `Place`.
            Of a published bundle its folder, and the store is opened that its manifest names.
        cache_dir: a folder that keeps what was fetched from behind a url, for the next time and other processes; by
            default the one that FOSTORE_CACHE names, if it names one.

    Raises:
        StoreNotFoundError: there is nothing at `path`.
        FormatError, UnsupportedError, UnsafeError: no store, one that is too new, or a hostile one;
            or one whose files are links, as the caches of hubs keep them; a bundle whose store is another one than
            its manifest says; a web server that ignores ranges, or leads to a private address.
        ArgumentError: a url of another scheme, or with a user, a query or a fragment in it.
        PlaceError: the file system does not let it be read, the server failed again and again, or the process was
            forked from one that had read from the network.
        DamageError: a file of the store is cut or missing.
    """
    place, digest = place_named(path, cache_dir)
    store = Store(place)
    if digest is not None and store.header.digest != digest:
        store.close()
        raise FormatError(
            f"the bundle {str(path)!r} names a store with the digest {digest}, and {place} has "
            f"{store.header.digest}: it is being published, or was changed; open it again, or see "
            "`fostore verify`"
        )
    return store


class Store(Shown, Sequenced, Committed):
    """One predictive distribution for each sample: row i belongs to sample i of the base dataset.

    A mapping of committed rows (so code written for a dict runs on it), and more: `take` gathers a
    batch in any order, `store["img-3"]` is the row of an id, `array` the whole store as one read-only array.
    Safe for several threads and across forks; pickles as its path. Equal to another store of the same path
    and digest.

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

    def __init__(self, path: str | os.PathLike[str] | Place) -> None:
        """`reader` is the open format below: what `fostore`'s own verbs over stores build on."""
        # Absolute: rows are mapped later, perhaps from another folder.
        self.place = place = place_of(path)
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
    def store(self) -> Store:  # type: ignore[override]  # as an attribute it would be a circle, which
        """This store."""  # keeps files mapped until garbage is collected
        return self

    @property
    def format(self) -> str:
        """The name of the format: "zarr", "hdf5" or "json"."""
        return self._format

    @property
    def is_sealed(self) -> bool:
        """Whether the store is whole and has a digest."""
        return self.header.sealed

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
        rule: str | None = None,
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
            rule: of a store of top-k rows: what becomes of the classes that are not kept. "uniform" spreads their
                probability over them, "renorm" and "zero" give them none, and "zero" leaves the rows short of 1.
                None is the rule of the store; over 4,096 classes it is to be named. "coarse" makes no such
                rows: see `take_topk`.

        Returns:
            A fresh, 64-byte-aligned array that the caller owns: the stored dtype for stored
            probabilities (float32 for bfloat16), else float32 (float64 where that is stored), as
            for any temperature but 1.

        Raises:
            UncommittedError: names the rows that are negative, out of range or not committed.
            ArgumentError: `rows` are no integers, `out` does not fit, `temperature` is no
                number above 0 (in the normal range of float32), or one at which the store does not know what
                the rule needs; a rule that makes no dense rows, or where every class is kept.

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
        if seen.is_plain and not softened and as_kind == "probs" and rule is None:
            if out is not None:
                check_out(out, (len(rows), *self.schema.row_shape), seen.dtype)
            gather = seen.gather or self._open(seen)
            return gather(rows, out)
        self._encoding.check_dense(self.schema, rule)
        stored = [self.reader.column(i).take(rows) for i in range(len(self.schema.content))]
        by = float(temperature) if softened and temperature is not None else 1.0
        decoded = self._encoding.decode(stored, self.schema, as_kind, by, rule)
        if out is None:
            if decoded.ctypes.data % ALIGNMENT == 0:
                return decoded
            # JAX would copy what begins anywhere else.
            out = aligned_empty(decoded.shape, decoded.dtype)
        check_out(out, decoded.shape, decoded.dtype)
        np.copyto(out, decoded)
        return out

    def _look(self) -> _Seen:
        """Look up what `take` needs to know, as it must before it reads rows that were committed since."""
        committed = self.reader.committed
        dtype = self.schema.columns[0].numpy_dtype
        seen = self._seen = _Seen(committed, committed.prefix, self.is_plain, dtype)
        return seen

    def _open(self, seen: _Seen) -> Callable[[Array, Array | None], Array]:
        """Map the column of probabilities: what gathers from it from now on."""
        # Import cost: maps, madvise and ctypes, which a store that is only looked at does not need.
        from fostore.formats.views.view import ArrayView

        view = self.reader.column(0)  # may show more rows than `seen` by now, never fewer
        if isinstance(view, ArrayView):
            seen.array = view.array
        seen.gather = view.take
        return view.take

    @property
    def array(self) -> Array:
        """The whole store as one read-only array of probabilities; nothing is read by asking.

        Raises:
            ArgumentError: the store keeps something else than plain probabilities: `column(name)`
                gives what is stored, `take` gives probabilities.
            UncommittedError: there are gaps in the rows.
        """
        if not self.is_plain:
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

    def resolve(self, rows: Any) -> Array:
        """Rows as int64, all of them committed; see `Stored.resolve`."""
        asked = as_rows(rows)
        if len(asked) and int(asked.view(_UINT64).max()) >= self.committed.prefix:
            self._refuse(asked)
        return asked

    def _refuse(self, rows: Array) -> None:
        refuse_uncommitted(rows, self.committed, self.path, is_sealed=self.is_sealed)

    def __getitem__(self, row: Any) -> Array:
        seen = self._seen
        if (
            type(row) is int
            and seen is not None
            and seen.array is not None
            and 0 <= row < seen.limit  # rows that were committed once stay as they are
        ):
            # A copy: rows are the caller's own, as those of `take`, and no view keeps the file mapped.
            one: Array = seen.array[row].copy()
            return one
        if isinstance(row, str):  # an id; one that is a number is asked for by `index_of`
            named: Array = self.take(self.index_of([row]))[0]
            return named
        if isinstance(row, slice):
            if len(self.committed) != self.committed.prefix:
                raise UncommittedError(
                    f"{self.path} has gaps: {describe(self.missing())} are missing"
                )
            return self.take(np.arange(*row.indices(len(self))))
        row_of: Array = self.take((as_row(row),))[0]
        return row_of

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            return self.array if dtype is None else self.array.astype(dtype, copy=False)
        rows = self[:]
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
        from fostore.reading.audit import audit  # import cost: hashes and checksums

        return audit(self.reader, level)

    def refresh(self) -> None:
        """See what has been committed since the store was opened."""
        self.reader.refresh()
        self._seen = self._index = self._sequences = None

    def close(self) -> None:
        """Drop handles; arrays that were handed out stay valid."""
        self._seen = None  # first: it holds the gather of a mapping that is about to go
        self.reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # The absolute path: a worker process may stand in another folder.
        return Store, (self.place,)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Store):
            return NotImplemented
        same_path = self.place == other.place
        return same_path and self.header.digest == other.header.digest

    def __hash__(self) -> int:
        return hash(self.place)

    def grid(self) -> Grid:
        """What the store is, in some lines; reads no rows."""
        planned = "an open end" if self.num_samples is None else f"{self.num_samples:,}"
        rows = f"{len(self):,}, sealed" if self.is_sealed else f"{len(self):,} of {planned}"
        digest = [("digest", self.header.digest)] if self.header.digest else []
        return Grid(f"Store {self.path}", [("rows", rows), *self.schema.grid().rows, *digest])

    @property
    def is_plain(self) -> bool:
        """Whether probabilities are stored as NumPy has them; of bfloat16 it has only the bits."""
        return self.schema.dtype != "bfloat16" and self._encoding.is_plain(self.schema, "probs")


@dataclass(slots=True)
class _Seen:
    """What stays the same as long as the same rows are committed."""

    committed: Ranges
    limit: int
    """As many rows as are committed without a gap from the first on: one comparison says that a row is."""
    is_plain: bool
    dtype: np.dtype[Any]
    gather: Callable[[Array, Array | None], Array] | None = None
    array: Array | None = None
    """The plain probabilities where they are mapped as one."""
