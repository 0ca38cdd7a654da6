"""The Parquet format: a column of fixed-size lists a column of the store, the header in the file's metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fostore.errors import FormatError
from fostore.files import DTYPES, FileFormat, Hints, Holds
from fostore.files._arrowrows import arrow_schema, record_batch
from fostore.files._flat import open_source
from fostore.files._frames import Convert, arrow_table
from fostore.files._header import KEY, Sealing, text_of
from fostore.files._sink import Sink
from fostore.files.table import Batch, Table
from fostore.schema.header import Header

_GROUP_BYTES = 16 << 20
_BUFFER = 1 << 20
_ERRORS = (pa.ArrowException, OSError, ValueError)


class Parquet(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "parquet"
    holds = Holds(header=True, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a column of lists, fixed or all of one length."""
        where = str(path)
        file = _open(path)
        try:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
            schema = schema.with_metadata(
                {**(schema.metadata or {}), **(file.metadata.metadata or {})}
            )
        except _ERRORS as error:
            raise FormatError(f"{where} has a schema that cannot be read: {error}") from error
        finally:
            file.close()
        return arrow_table(where, self.name, schema, hints, num_rows, partial(_batches, path))

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew, a row group of about 16 MiB after another, compressed with zstd."""
        schema = arrow_schema(header, with_header=False)
        passing = Sealing(header, batches)
        with (
            Sink(path) as sink,
            pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            held: list[Any] = []
            for batch in passing:
                held.append(record_batch(header, batch, schema))
                if sum(rows.nbytes for rows in held) >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held = []
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))
            # Parquet has its metadata at the end, where the digest is known.
            writer.add_key_value_metadata({KEY: text_of(passing.sealed()).decode()})


def _open(path: Path) -> Any:
    fd, _ = open_source(path)
    os.close(fd)
    try:
        # By default whole row groups are read ahead, and a stranger's group may be the file.
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)
    except _ERRORS as error:
        raise FormatError(f"{path} is no Parquet file, or was cut: {error}") from error


def _batches(
    path: Path, names: list[str], start: int, rows: int, convert: Convert
) -> Iterator[Any]:
    file = _open(path)
    try:
        row = 0
        groups: list[int] = []
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= start and not groups:
                row += size
            else:
                groups.append(group)
        read = file.iter_batches(rows, groups, names, use_threads=False) if groups else iter(())
        for batch in _named(read, path):
            skip = max(start - row, 0)
            if skip < len(batch):
                yield convert(batch.slice(skip).select(names), row + skip)
            row += len(batch)
    finally:
        file.close()


def _named(batches: Iterator[Any], path: Path) -> Iterator[Any]:
    try:
        yield from batches
    except _ERRORS as error:
        raise FormatError(f"{path} is damaged: {error}") from error


FORMAT = Parquet()
