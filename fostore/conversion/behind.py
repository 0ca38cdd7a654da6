"""A conversion to an object store: written in whole units where it will lie, since nothing can be exchanged there."""

from __future__ import annotations

from fostore.conversion.passage import Passage
from fostore.conversion.plan import Plan
from fostore.errors import ArgumentError, StoreExistsError, UnsupportedError
from fostore.formats import is_store
from fostore.places.place import Storage
from fostore.progress import Progress
from fostore.reading.store import open as open_store
from fostore.writing.joining import join_like
from fostore.writing.writer import Writer


def begin_behind(place: Storage, plan: Plan) -> Writer | None:
    """The writer of a new store, or of one that an interrupted conversion began; None where a whole one is accepted.

    Raises:
        UnsupportedError: a file, which only this machine takes.
        ArgumentError, StoreExistsError: a whole store is there, and is to be replaced, or left alone.
        IdentityError: what was begun there is of other rows.
    """
    if plan.file_format is not None:
        raise UnsupportedError(
            f"'{place}' would be {plan.format}: to urls only .zarr stores are written; write the file to this "
            "machine, and copy it"
        )
    exists = plan.options.exists
    if is_store(place):
        with open_store(place) as store:
            is_whole = store.is_sealed
        if is_whole and exists == "resume":
            return None
        if is_whole or exists == "overwrite":
            raise (ArgumentError if exists == "overwrite" else StoreExistsError)(
                f"'{place}' exists, and nothing is replaced behind a url: choose another name, or remove it first; "
                "exists='resume' (--exists resume) accepts it if it holds the same rows"
            )
    return join_like(place, plan.header, commit_seconds=0)


def write_behind(writer: Writer, plan: Plan, passage: Passage, bar: Progress) -> None:
    """Write the rows that are missing, and hold the others against those of the source.

    Raises:
        StoreExistsError: other rows were committed by what was interrupted.
    """
    row, columns = 0, plan.header.schema.columns
    for batch in passage.rows(0, bar):
        stop = row + len(batch[0])
        for start, end in writer.committed.overlap(row, stop):
            for column, rows in zip(columns, batch, strict=True):
                came = rows[start - row : end - row]
                if writer.read_side(column.name, start, end).tobytes() != came.tobytes():
                    raise StoreExistsError(
                        f"'{writer.path}' was begun with other rows (they differ between row {start} and {end - 1}): "
                        "choose another name, or remove it first"
                    )
        for start, end in writer.committed.missing(stop, row):
            writer.write_columns(
                start, [rows[start - row : end - row] for rows in batch], checked=True
            )
        row = stop
