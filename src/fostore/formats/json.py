"""The JSON format: the guide's one-file layout, for data that people read and small sets (spec/json.md).

A file is written whole or not at all, and read whole: stores that grow or stream are Zarr or HDF5.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fostore import digest, geometry
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import round_to
from fostore.errors import ArgumentError, FormatError, RowError, StoreNotFoundError, UnsafeError
from fostore.formats import ColumnView, Finding, Reader, Run, Segment, UnitWriter
from fostore.formats.jsondoc import Document
from fostore.formats.jsonwrite import KEY, export, ranges_of, save, table_name
from fostore.formats.view import ArrayView
from fostore.header import Header
from fostore.schema import Array, Column

__all__ = ["FORMAT", "export", "load", "save"]

_LIMIT_BYTES = 64 << 20


def load(path: str | Path) -> tuple[dict[int, Array], dict[str, Any]]:
    """Distributions by sample index, and metadata: what `save` was given, or what the guide's code wrote.

    Returns:
        A dict in increasing order of rows (num_classes,) or (num_members, num_classes), as
        probabilities of the dtype that was saved (float64 where the file does not say), and the
        metadata.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: the file is not strictly of this layout, or a row is no distribution; names the
            file and the key or line. Nothing is loaded by halves.
    """
    path = Path(path)
    document = _read(path)
    if KEY not in document.meta and document.is_empty("distributions"):
        return {}, document.meta
    header, index, columns = _parts(document, path, b"")
    schema = header.schema
    rows = encoding_of(schema).decode(columns[: len(schema.content)], schema)
    return dict(zip(index.tolist(), rows, strict=True)), dict(header.meta)


class JsonReader:
    """See `fostore.formats.Reader`; all rows are in memory from the start."""

    def __init__(self, path: Path) -> None:
        data = _bytes(path)
        document = Document(data, str(path))
        self.header, index, columns = _parts(document, path, data)
        self.committed = ranges_of(index)
        self._views = [ArrayView(array) for array in self._placed(path, index, columns, len(data))]

    def _placed(
        self, path: Path, index: Array, columns: Sequence[Array], size: int
    ) -> Iterator[Array]:
        """The columns with every row at its index; rows that are not there read as NaN or zero bytes."""
        stop = self.committed.items[-1][1] if self.committed.items else 0
        needed = stop * sum(self.header.schema.row_bytes)
        if len(index) != stop and needed > max(_LIMIT_BYTES, 64 * size):
            raise UnsafeError(
                f"{path}: row {stop - 1} lies far beyond the {len(index)} rows that are there; an "
                f"array up to it would take {needed:,} bytes"
            )
        for array in columns:
            if len(index) == stop:
                yield array
                continue
            fill = np.nan if array.dtype.kind == "f" else 0
            whole = np.full((stop, *array.shape[1:]), fill, array.dtype)
            whole[index] = array
            yield whole

    def refresh(self) -> None:
        """Nothing: a file is replaced as a whole, and this reader keeps the one that it opened."""

    def column(self, index: int) -> ColumnView:
        """The view of a column; see `Reader`."""
        return self._views[index]

    def segments(self, index: int) -> Sequence[Segment]:
        """None: rows lie as text."""
        return ()

    def runs(self) -> Sequence[Run]:
        """None: a file has no run in progress."""
        return ()

    def block_hashes(self) -> Array:
        """All unknown: the file keeps the digest alone."""
        blocks = -(-(self.header.num_samples or 0) // self.header.block_rows)
        return np.zeros(
            (blocks, len(digest.hashed_columns(self.header)), digest.HASH_BYTES), np.uint8
        )

    def findings(self) -> Iterator[Finding]:
        """None: what is wrong with a file is an error when it is opened."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


class JsonFormat:
    """See `fostore.formats.Format`; for reading only, since text cannot be committed row by row."""

    name = "json"
    streams = False

    def open(self, path: Path) -> Reader:
        """Read the whole file; raises what `load` raises, and UnsafeError for a huge index."""
        return JsonReader(path)

    def create(self, path: Path, header: Header) -> UnitWriter:
        """Refused; see `save` and `export`."""
        _refuse_writing(path)

    def resume(self, path: Path) -> UnitWriter:
        """Refused; see `save` and `export`."""
        _refuse_writing(path)


FORMAT = JsonFormat()


def _refuse_writing(path: Path) -> NoReturn:
    raise ArgumentError(
        f"{str(path)!r}: a JSON file cannot grow row by row. Write to a .zarr or .h5 store and then "
        "fostore.convert(store, path), or keep the rows in a dict and call save_distributions"
    )


# ------------------------------------------------------------------ reading


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"there is no file {str(path)!r}") from error
    except (IsADirectoryError, PermissionError) as error:
        if path.is_dir():
            raise FormatError(f"{str(path)!r} is a folder, expected a JSON file") from error
        raise


def _read(path: Path) -> Document:
    return Document(_bytes(path), str(path))


def _parts(document: Document, path: Path, data: bytes) -> tuple[Header, Array, list[Array]]:
    """The header, the indices in increasing order, and the stored columns of those rows, checked."""
    where = str(path)
    meta = dict(document.meta)
    described = meta.pop(KEY, None)
    if described is not None:
        header = Header.from_json({KEY: described, "meta": meta}, where)
        index, columns = _described(document, header, where)
        _check_plan(header, index, where)
    else:
        index, rows = document.rows("distributions", np.dtype("f8"), None)
        if not len(index):
            raise FormatError(
                f"{where} holds no distributions, so its number of classes is unknown"
            )
        columns = [rows]
        header = _guess_header(rows, int(index[-1]) + 1, meta, data)
    schema = header.schema
    try:
        encoding, begin = encoding_of(schema), 0
        for start, stop in ranges_of(index):
            end = begin + stop - start
            encoding.check([c[begin:end] for c in columns[: len(schema.content)]], schema, start)
            begin = end
    except RowError as error:
        raise FormatError(f"{where}: {error}") from error
    except FormatError as error:
        raise type(error)(f"{where}: {error}") from error
    if described is None and len(index) == header.num_samples:
        header = replace(header, sealed=True, digest=_digest(header, columns))
    return header, index, columns


def _guess_header(rows: Array, num_samples: int, meta: Mapping[str, Any], data: bytes) -> Header:
    """What a file without a header is: probabilities; its numbers are doubles, as Python wrote them."""
    from blake3 import blake3

    members = rows.shape[1] if rows.ndim == 3 else None
    schema = make_schema(rows.shape[-1], num_members=members, dtype="float64")
    return Header(
        schema,
        num_samples,
        geometry.unit_rows(schema.row_bytes, num_samples),
        geometry.block_rows(schema.row_bytes),
        id=str(uuid.UUID(bytes=blake3(data).digest(16))),
        created="",
        updated="",
        meta=meta,
    )


def _described(document: Document, header: Header, where: str) -> tuple[Array, list[Array]]:
    index: Array | None = None
    columns = []
    for i, column in enumerate(header.schema.columns):
        name = table_name(header.schema, i)
        found, values = _column(document, name, column)
        if index is not None and not np.array_equal(index, found):
            first = table_name(header.schema, 0)
            raise FormatError(f"{where}: {name!r} and {first!r} do not hold the same rows")
        index = found
        columns.append(values)
    assert index is not None, "a schema has a column"
    return index, columns


def _column(document: Document, name: str, column: Column) -> tuple[Array, Array]:
    """The indices and the stored rows of one column."""
    if column.dtype == "utf8":
        index, strings = document.strings(name)
        texts = [text.encode("utf-8") for text in strings]
        width = column.shape[0]
        if any(len(text) > width for text in texts):
            raise FormatError(f"{name!r} holds strings of more than {width} bytes")
        padded = np.array([text.ljust(width, b"\0") for text in texts], f"S{width}")
        return index, padded.view(np.uint8).reshape(-1, width)
    if column.numpy_dtype.kind in "iu" and column.dtype != "bfloat16":
        return document.rows(name, column.numpy_dtype, column.shape)
    nulls = column.name in ("log_probs", "logits")
    index, values = document.rows(name, np.dtype("f8"), column.shape, nulls=nulls)
    return index, round_to(values, column.dtype)


def _check_plan(header: Header, index: Array, where: str) -> None:
    planned = header.num_samples
    if planned is not None and len(index) and index[-1] >= planned:
        raise FormatError(f"{where} holds row {index[-1]}, but its num_samples is {planned}")
    if header.sealed and len(index) != planned:
        raise FormatError(
            f"{where} says that it is whole, with {planned} rows, and holds {len(index)}: "
            "the file was cut or edited"
        )


def _digest(header: Header, columns: Sequence[Array]) -> str:
    size = header.block_rows
    starts = range(0, len(columns[0]), size)
    hashes = [[digest.block_hash(column[a : a + size]) for column in columns] for a in starts]
    return digest.store_digest(header, np.array(hashes, np.uint8))
