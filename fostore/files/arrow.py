"""The Arrow format: IPC files and streams, and the folders of Hugging Face datasets, which hold such streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from fostore import disk
from fostore.errors import FormatError, FostoreError, UnsafeError
from fostore.files import DTYPES, FileFormat, Hints, Holds
from fostore.files._arrowrows import arrow_schema, record_batch
from fostore.files._flat import open_source
from fostore.files._frames import Convert, arrow_table
from fostore.files._header import Sealing
from fostore.files._sink import Sink
from fostore.files.table import Batch, Table
from fostore.schema import jsontext
from fostore.schema.header import MAX_TEXT, Header

_MAGIC = b"ARROW1"
_ERRORS = (pa.ArrowException, OSError, ValueError)


class Arrow(FileFormat):
    """See `fostore.files.FileFormat`; written as an IPC file, which pandas calls feather."""

    name = "arrow"
    holds = Holds(header=True, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a column of lists, fixed or all of one length; files are mapped."""
        where = str(path)
        shards = _shards(path)
        schema, counts = None, []
        for shard in shards:
            with _opened(shard) as (own, batches):
                if schema is not None and own.types != schema.types:
                    raise FormatError(
                        f"{shard} has the columns {own}, the first shard has {schema}"
                    )
                schema = own if schema is None else schema
                counts.append(sum(len(batch) for batch in batches))
        if schema is None:
            raise FormatError(f"{where} names no file of rows")

        def batches_of(names: list[str], start: int, rows: int, convert: Convert) -> Iterator[Any]:
            row = 0
            for shard, count in zip(shards, counts, strict=True):
                if row + count > start:
                    yield from _batches(shard, names, max(start - row, 0), rows, row, convert)
                row += count

        return arrow_table(where, self.name, schema, hints, sum(counts), batches_of)

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew, uncompressed, a record batch after another, so that it can be mapped."""
        passing = Sealing(header, batches)
        schema = arrow_schema(passing.header)
        with Sink(path) as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in passing:
                writer.write_batch(record_batch(header, batch, schema))
        passing.fill_file(path)


def _shards(path: Path) -> list[Path]:
    """The files of rows: the path itself, or those that a folder's state.json names."""
    if not path.is_dir():
        return [path]
    state = path / "state.json"
    fd, size = open_source(state)
    with os.fdopen(fd, "rb") as file:
        if size > MAX_TEXT:
            raise UnsafeError(f"{state} has {size:,} bytes")
        value = jsontext.loads(file.read(), str(state))
    try:
        names = [entry["filename"] for entry in value["_data_files"]]
    except (KeyError, TypeError) as error:
        raise FormatError(f"{state} does not list its _data_files") from error
    # A shuffled or filtered dataset: its files hold the rows as they were before.
    if value.get("_indices_data_files"):
        raise FormatError(
            f"{path} keeps its rows in another order; save it after flatten_indices()"
        )
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or {"/", "\\"} & set(name):
            raise UnsafeError(f"{state} names the file {name!r:.80}, which is not in its folder")
    return [path / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the record batches of a file or stream, mapped."""
    fd, size = open_source(path)
    begin = disk.read_at(fd, 0, len(_MAGIC))
    os.close(fd)
    if not size:
        raise FormatError(f"{path} is empty")
    try:
        # Mapped, so that the columns that nobody wants are never read.
        with pa.memory_map(str(path)) as mapped:
            is_file = begin == _MAGIC
            reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
            if is_file:
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(reader)
            yield reader.schema, batches
    except _ERRORS as error:
        if isinstance(error, FostoreError):
            raise
        raise FormatError(f"{path} is no Arrow file or stream, or is damaged: {error}") from error


def _batches(
    path: Path, names: list[str], start: int, rows: int, before: int, convert: Convert
) -> Iterator[Any]:
    row = 0
    with _opened(path) as (_, batches):
        for batch in batches:
            for begin in range(max(start - row, 0), len(batch), rows):
                yield convert(batch.select(names).slice(begin, rows), before + row + begin)
            row += len(batch)


FORMAT = Arrow()
