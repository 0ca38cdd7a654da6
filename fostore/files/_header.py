"""The header inside a file: how it travels with the rows, and what a file that has one must hold (spec/core.md)."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fostore import disk
from fostore.encodings import encoding_of
from fostore.errors import FormatError, RowError, UnsafeError
from fostore.files.hashing import Digester
from fostore.files.table import Batch, Batches, Table, check_count
from fostore.schema.digest import PREFIX
from fostore.schema.header import CHECKSUM, MAX_TEXT, Header
from fostore.schema.jsontext import dumps, loads
from fostore.schema.row import Schema

KEY = "fostore"
"""The name under which the header lies: an entry, a member, a key of the metadata."""


def text_of(header: Header) -> bytes:
    """The header as JSON: {"fostore": {...}, "meta": {...}}."""
    return dumps(header.to_json())


def parse(text: bytes | str, where: str) -> Header:
    """The header in a file.

    Raises:
        UnsafeError: it takes more bytes than one may.
        FormatError, UnsupportedError: as `Header.from_json`.
    """
    if len(text) > MAX_TEXT:
        raise UnsafeError(
            f"{where} has a header of {len(text):,} bytes, expected at most {MAX_TEXT:,}"
        )
    header = Header.from_json(loads(text, f"{where}: the header"), where)
    encoding_of(header.schema)  # the columns are those of the kind
    return header


def header_of(text: bytes | str, where: str, inside: str | None) -> Header | None:
    """The header in a file, if it speaks of what is wanted: of the rows, which may be named by their array.

    None where something beside the rows is named.
    """
    header = parse(text, where)
    is_rows = inside is None or inside in [column.name for column in header.schema.content]
    return header if is_rows else None


def headed_table(
    where: str, format: str, header: Header, num_rows: int | None, batches: Batches
) -> Table:
    """The rows of a file that has a header; their values are checked as they pass.

    Raises:
        FormatError: the file has another number of rows than its header says.
    """
    planned = header.num_samples
    if planned is not None and num_rows is not None and planned != num_rows:
        raise FormatError(
            f"{where} holds {num_rows} rows, and its header says {planned}: the file was cut or edited"
        )
    return Table(
        where=where,
        format=format,
        schema=header.schema,
        num_rows=num_rows,
        batches=lambda start, rows: checked(batches(start, rows), header.schema, start, where),
        num_sequences=header.num_sequences,
        meta=header.meta,
        identity=header.identity,
        extra=header.extra,
        digest=header.digest if header.sealed else None,
        header=header,
        trusted=True,
    )


def checked(batches: Iterator[Batch], schema: Schema, start: int, where: str) -> Iterator[Batch]:
    """The batches, each checked; errors name the file as well as the row."""
    encoding, content = encoding_of(schema), len(schema.content)
    try:
        for batch in batches:
            encoding.check(batch[:content], schema, start)
            yield batch
            start += len(batch[0])
    except RowError as error:
        raise FormatError(f"{where}: {error}") from error


class Sealing:
    """Rows on their way into a file whose header will say their digest.

    `header` holds `mark` in the digest's place: as many bytes, to be replaced when all rows are there.
    """

    def __init__(self, header: Header, batches: Iterator[Batch]) -> None:
        self.mark = PREFIX + secrets.token_hex(32)
        self.header = header
        if header.num_samples is not None:
            self.header = replace(header, sealed=True, digest=self.mark)
        self._batches = batches
        self._digester = Digester(header.schema, *header.counts.values())
        self._digest = ""  # known when all rows have passed

    def __iter__(self) -> Iterator[Batch]:
        planned = self.header.num_samples
        with self._digester as digester:
            for batch in self._batches:
                digester.update(batch)
                if planned is not None and digester.num_rows > planned:
                    raise FormatError(f"more rows came than the {planned} that were announced")
                yield batch
            check_count(digester.num_rows, planned)
            self._digest = digester.digest()

    def sealed(self) -> Header:
        """The header of all rows that passed."""
        return replace(
            self.header,
            **self._digester.counts,
            sealed=True,
            digest=self._digest,
        )

    def fill_file(self, path: Path) -> None:
        """Put the digest in the places that hold the mark, at the front and at the end of a file; durable."""
        if self.header.digest != self.mark:
            return
        (mark, digest), *checksums = self._changes()
        fd = disk.open_file(path, write=True)
        try:
            with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
                # Of a large file only the end is looked through, since a mark may stand at the front alone.
                marks = {mapped.find(mark), mapped.rfind(mark, max(len(mapped) - 2 * MAX_TEXT, 0))}
                writes = [(at, digest) for at in marks if at >= 0]
                for old, new in checksums:  # which stands behind the digest in the same text
                    writes += [(mapped.find(old, at), new) for at in marks if at >= 0]
            for at, text in writes:
                disk.write_at(fd, text, at)
            disk.sync_data(fd)
        finally:
            os.close(fd)

    def _changes(self) -> list[tuple[bytes, bytes]]:
        """What stands in the header, and what is to stand there: the digest, and the checksum where there is one."""
        checksums = [
            header.to_json()[KEY].get(CHECKSUM, "").encode()
            for header in (self.header, self.sealed())
        ]
        changes = [(self.mark.encode(), self._digest.encode())]
        return changes + ([(checksums[0], checksums[1])] if checksums[0] else [])
