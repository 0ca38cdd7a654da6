"""`fostore.convert`, with every option that it has, and what it does from the plan to the receipt."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fostore import disk
from fostore.conversion.conversion import Conversion
from fostore.conversion.destination import refuse_receipt, target_of
from fostore.conversion.options import Options
from fostore.conversion.part import Part
from fostore.conversion.plan import prepare, refuse_loss
from fostore.conversion.receipt import Receipt
from fostore.conversion.sources import Source
from fostore.places import spool
from fostore.places.names import destination as resolved
from fostore.places.names import storage_of
from fostore.progress import LOG


def convert(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    exists: str = "fail",
    kind: str | None = None,
    dtype: str | None = None,
    rows: slice | None = None,
    classes: Sequence[int | str] | None = None,
    member: int | None = None,
    class_names: Sequence[str] | None = None,
    ids: Any = None,
    meta: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    source_kind: str | None = None,
    source_dtype: str | None = None,
    temperature: float | None = None,
    source_tol: float | None = None,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    decimal: str | None = None,
    transpose: bool | None = None,
    layout: Mapping[str, Any] | None = None,
    config: str | os.PathLike[str] | None = None,
    allow_lossy: bool = False,
    allow_constant: bool = False,
    receipt: str | os.PathLike[str] | None = None,
    verify: str = "full",
    max_memory: int = 512 << 20,
    unit_rows: int | None = None,
    progress: bool = True,
    encoding: str | Mapping[str, Any] | None = None,
    k: int | None = None,
    rule: str | None = None,
    temperatures: Sequence[float] | None = None,
    max_kl: float | None = None,
) -> Receipt:
    """Convert `source` to `destination`; nothing appears under that name before it is whole and checked.

    Every row is held against what its source keeps of it (a digest, hashes of blocks, checksums of
    commits), also where only some are taken or the source is not finished: of a file that keeps one digest
    alone the others are read for it. `Receipt.source_checked` says what could be told.

    An interrupted conversion goes on where it stopped when it is asked for again: what is there is
    kept beside the destination under `.NAME.part`.

    Args:
        source: a path (`file.h5::group/probs` for an array inside), a folder or pattern of shards, a
            list of those, a `Store`, or "-" for JSON Lines on the standard input.
        destination: a path whose suffix says the format, or "-" for JSON Lines on the standard output.
            A link is followed: what it leads to is replaced, and the link stays. Temporary files lie
            beside it. Or the url of a `.zarr` store on S3 (`s3://`), which is written where it will lie.
        exists: "fail" refuses a destination that is there, "overwrite" replaces it when the new one
            is whole, "resume" accepts it if it holds the same rows.
        kind, dtype: what the rows become; as they are by default.
        rows, classes, member: which rows (a slice), classes (names or numbers, in that order;
            probabilities are renormalised) and member.
        class_names, ids: given to rows that have none.
        meta: added to the metadata.
        source_format, source_kind, source_dtype, temperature, source_tol: what a plain file does not say
            itself; the last is how far from 1 its rows may sum. `source_kind` is also "percent".
        id_column: the column or array beside the rows that says which sample a row is. By default one
            with a known name (`id`, `filename`, a frame's index ...) whose keys are unique becomes the
            ids; what is not taken stands in the receipt's notes.
        columns: the columns that are the classes, in that order, of a table with a column a class.
        drop: columns or arrays that are not looked at.
        delimiter, decimal: in a text file, "," and "." by default, a tabulator in `.tsv`.
        transpose: whether the axes of the array come last first, as MATLAB, Julia and R write them.
        layout: what the layout of another tool (`source_format` "distillkit", "nemo", "axolotl", "tinyvit", "fkd")
            leaves open, such as {"num_classes": 32000}; the error where something is missing says which keys.
        config: the file that says how the source was packed (DistillKit).
        allow_lossy: whether what cannot be undone bit by bit is done: narrower numbers, another kind,
            metadata left out. The receipt then states the error.
        allow_constant: whether logits that are equal for all classes, and rows at the end that are all
            the same, are taken from a source that fostore did not write: they look as if nobody had
            written them. The receipt's notes then name them.
        receipt: where the receipt goes, as JSON.
        verify: "full" reads the result back and compares its digest, "sample" some rows, "none" nothing.
        max_memory: bytes that may be used, about.
        unit_rows: see `fostore.create`.
        progress: whether a bar is shown on stderr, or a line every ten seconds where that is no terminal.
        encoding, k, temperatures: how the rows are kept, see `fostore.create`; as they are by default.
        rule: of top-k rows: that of the rows that are written; of those that are read, where they become dense.
        max_kl: nats that a row may lose at most, by a conversion that is lossy, and of a store of top-k rows by its
            rule as far as the columns say it; else RowError names one that loses more, and nothing appears.

    Returns:
        The receipt.

    Raises:
        ArgumentError: something would be lost, a hint is missing, or a value cannot be used.
        UncommittedError: the source is not finished; says which rows can be taken.
        StoreExistsError, LockedError: nothing was changed.
        SpaceError, PlaceError: the destination is as it was. What was written beside it stays, and the
            same call goes on with it.
        FormatError, RowError, DamageError: the source is not what it should be; names where. The
            destination is as it was, and nothing is left beside it.
    """
    given = dict(locals())  # before any other local: the parameters are the fields of Options
    del given["source"], given["destination"]
    return run(source, destination, Options(**given))


def run(source: Source, destination: str | os.PathLike[str], options: Options) -> Receipt:
    """What `convert` does."""
    began = time.monotonic()
    path, target = os.fspath(destination), target_of(destination)
    record = None if options.receipt is None else resolved(options.receipt)
    plan = prepare(source, path, options)
    refuse_loss(plan)
    refuse_receipt(record, target, plan.source)
    # What waits lies on the destination's disk, which has room for rows; a folder for temporary files may be memory.
    with spool.beside(target), Conversion(plan) as conversion:
        if (place := storage_of(path)) is not None:
            conversion.to_storage(place)
        elif target is None:
            conversion.stream()
        else:
            conversion.to_path(target, Part(target, plan))
        receipt = conversion.receipt(time.monotonic() - began)
    if record is not None:
        disk.write_whole(record, receipt.dumps())
    LOG.info("converted %s", receipt.line())
    return receipt
