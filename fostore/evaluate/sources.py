"""What distributions come from: a store, a selection, a path, a mapping, an array, or one of them a member."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.conversion.sources import open_table
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, UncommittedError
from fostore.evaluate.rows import Rows
from fostore.evaluate.same import check_same
from fostore.files.table import Batch, Cut, Table
from fostore.formats import is_store, is_store_name
from fostore.places.names import is_url, local_path
from fostore.reading.selection import Selection, Stored
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.ranges import describe
from fostore.schema.row import ROUNDOFF, Array, Schema, sum_tolerance
from fostore.schema.sides.ids import decode_ids


def by_rule(source: Any, rule: str) -> Rows:
    """Top-k rows with all their classes, for any function here that takes distributions.

    Args:
        source: a store of top-k rows, a selection of one, its path, or a file of such rows.
        rule: "uniform" spreads the probability of the classes that are not kept over them; "renorm" gives them none.
            Scores of such rows are those of the rule, not of the model: the divergence of `uniform` is known from
            the store, see `fostore info`.

    Raises:
        ArgumentError: another rule, or a source that keeps every class.

    >>> import fostore, numpy, tempfile
    >>> path = tempfile.mkdtemp() + "/words.zarr"
    >>> options = {"num_samples": 1, "num_classes": 4, "kind": "logits", "encoding": "topk", "k": 2}
    >>> with fostore.create(path, **options) as writer:
    ...     writer.append(numpy.log([[0.5, 0.25, 0.125, 0.125]]))
    >>> from fostore.evaluate import entropy
    >>> entropy(by_rule(path, "uniform")).round(4).tolist()
    [1.213]
    """
    rows = rows_of(source, rule=rule)
    check_rule(rule, rows)
    return rows


def check_rule(rule: str | None, *sources: Rows) -> None:
    """Raise ArgumentError where a rule is named and no source needs one."""
    if rule is not None and not any(rows.rule for rows in sources):
        named = " and ".join(rows.where for rows in sources)
        raise ArgumentError(f"rule is {rule!r}, and every class is kept in {named}: leave it out")


def rows_of(source: Any, name: str = "store", *, rule: str | None = None) -> Rows:
    """The distributions of a store, a selection, a path, a mapping of integers or an array.

    Args:
        source: a `Store` or `Selection`; the path or url of a store or of any file that `convert` reads; a
            mapping of dataset indices, read in their order; anything with a `shape` of (N, K) or
            (N, M, K) that can be sliced (NumPy, a memory map, h5py, zarr, torch on the CPU), or
            lists of that shape.
        name: what messages call it.
        rule: what becomes of classes that top-k rows do not keep, see `by_rule`; of no consequence for other sources.

    Raises:
        ArgumentError: none of those, or top-k rows without a rule that makes all classes of them.
        UncommittedError: a store with gaps.
    """
    if isinstance(source, Rows):
        return source
    if isinstance(source, str) and is_url(source):
        return _of_store(open_store(source), rule)
    if isinstance(source, (str, os.PathLike)):
        return _of_path(local_path(source), rule)
    # Stores and selections are mappings as well, so that they come before those.
    if isinstance(source, Store):
        return _of_store(source, rule)
    if isinstance(source, Selection):
        return _of_take(source, f"{source.store.path} ({len(source)} rows)", rule)
    if isinstance(source, Mapping):
        return _of_mapping(source, name)
    if _holds_sources(source):
        raise ArgumentError(
            f"{name} is a list of stores (or paths, mappings, arrays): ensemble_uncertainty and "
            "others that say so take one a member; arrays become one by np.stack(arrays, axis=1)"
        )
    rows = numbers_of(source, name)
    # Integers, lists and long doubles have come as float64, whatever they were.
    dtype = next(dtype for dtype, u in ROUNDOFF.items() if u == rows.roundoff)
    return replace(rows, tol=sum_tolerance(dtype, rows.num_classes))


def _holds_sources(source: Any) -> bool:
    """Whether it is a list of sources, such as one store a member, and not a list of rows."""
    if not isinstance(source, (list, tuple)) or not source:
        return False
    if isinstance(source[0], (str, os.PathLike, Stored, Mapping, Rows)):
        return True
    return len(getattr(source[0], "shape", ())) > 1  # of one axis it is a row


def numbers_of(source: Any, name: str, *, classes: bool = True) -> Rows:
    """Rows of plain numbers, such as bounds: nothing is asked of them but to be finite.

    `classes`: each row has (at least) a class axis.
    """
    if not (hasattr(source, "shape") and hasattr(source, "__getitem__")):
        try:
            source = np.asarray(source)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{name} makes no array: {error}") from error
    shape = tuple(int(n) for n in source.shape)
    if len(shape) not in ((2, 3) if classes else (1, 2, 3)):
        hint = "; one row alone is row[None]" if len(shape) == 1 else ""
        raise ArgumentError(
            f"{name} has the shape {shape}, expected (num_samples, num_classes) or (num_samples, "
            f"num_members, num_classes){hint}"
        )
    dtype = str(getattr(source, "dtype", "float64")).rpartition(".")[2]  # torch.float32 as well
    return Rows(
        where=name,
        count=shape[0],
        row_shape=shape[1:],
        read=lambda start, stop: _as_numbers(source[start:stop], name),
        roundoff=ROUNDOFF.get(dtype, ROUNDOFF["float64"]),
    )


def _as_numbers(rows: Any, name: str) -> Array:
    if hasattr(rows, "detach"):  # a torch tensor
        rows = rows.detach().cpu()
        if str(rows.dtype) == "torch.bfloat16":  # which NumPy does not have
            rows = rows.float()
    array = np.asarray(rows)
    if array.dtype.kind in "iub" or array.dtype.name == "bfloat16" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise ArgumentError(f"{name} holds {array.dtype}, expected numbers")
    return array


def _of_store(store: Store, rule: str | None) -> Rows:
    # With a gap, the i-th row that is there is not row i; without one, they are the first rows.
    if store.committed.prefix != len(store):
        raise UncommittedError(
            f"{describe(store.missing())} of {store.path} are not committed; finish the store, or "
            "evaluate a part of it: store.select(rows)"
        )
    missing = store.missing()
    unfinished = f"{describe(missing)} of {store.path} are not committed" if missing else ""
    return replace(_of_take(store, str(store.path), rule), unfinished=unfinished)


def _of_take(source: Store | Selection, where: str, rule: str | None) -> Rows:
    rule = _whole_by(source.schema, where, rule)

    def read(start: int, stop: int, kind: str) -> Array:
        return source.take(np.arange(start, stop), as_kind=kind, rule=rule)

    rows = _of_schema(source.schema, where, len(source), read, rule)
    return replace(rows, stored=source)


def _whole_by(schema: Schema, where: str, rule: str | None) -> str | None:
    """The rule that gives rows all their classes: None where they have them; else what is asked for, or their own."""
    if encoding_of(schema).is_whole(schema):
        return None
    rule = rule or schema.encoding.get("rule")
    if rule in ("uniform", "renorm"):
        return rule
    raise ArgumentError(
        f"{where} keeps some of {schema.num_classes:,} classes of each row, and by the rule {rule!r} the others have "
        "no probabilities of their own: say what they have, by rule='uniform' or 'renorm' (--rule), or with "
        "fostore.evaluate.by_rule(store, 'uniform') in the place of the store"
    )


def _of_schema(
    schema: Schema,
    where: str,
    count: int,
    read: Callable[[int, int, str], Array],
    rule: str | None,
) -> Rows:
    in_logs = schema.kind in ("log_probs", "logits")
    kind = "log_probs" if in_logs else "probs"
    return Rows(
        where=where if rule is None else f"{where} by the rule {rule!r}",
        count=count,
        row_shape=schema.row_shape,
        read=lambda start, stop: read(start, stop, kind),
        in_logs=in_logs,
        tol=max(schema.sum_tolerance, 1e-3),  # of counts and of softmaxes in float32 as well
        roundoff=ROUNDOFF.get(schema.dtype, ROUNDOFF["float32"]),
        class_names=schema.class_names,
        rule=rule,
    )


def _of_mapping(mapping: Mapping[Any, Any], name: str) -> Rows:
    keys = list(mapping)
    odd = next((key for key in keys if not isinstance(key, (int, np.integer))), None)
    if odd is not None:
        raise ArgumentError(
            f"{name} has the key {odd!r}; keys are dataset indices (integers), as "
            "generate_distributions and load_distributions return them"
        )
    indices = np.sort(
        np.array(keys, np.int64)
    )  # two dicts of the same samples may be filled in turn
    shape = np.shape(mapping[keys[0]]) if keys else (0,)
    if len(shape) not in (1, 2):
        raise ArgumentError(
            f"{name}[{keys[0]}] has the shape {shape}, expected (num_classes,) or (num_members, num_classes)"
        )

    def read(start: int, stop: int) -> Array:
        rows = {key: np.asarray(mapping[key]) for key in indices[start:stop].tolist()}
        for key, row in rows.items():
            if row.shape != shape:
                raise ArgumentError(
                    f"{name}[{key}] has the shape {row.shape}, {name}[{keys[0]}] has {shape}"
                )
        return _as_numbers(np.stack(list(rows.values())), name)

    return Rows(
        where=name,
        count=len(keys),
        row_shape=shape,
        read=read,
        tol=sum_tolerance("float16", shape[-1]),  # lists do not say what they were rounded to
        roundoff=ROUNDOFF["float32"],
        keys=None if np.array_equal(indices, np.arange(len(keys))) else indices,
    )


def _of_path(path: Path, rule: str | None) -> Rows:
    # A path that is not there is a store's, whose error says more than that of a file.
    with disk.refusing(path):
        if is_store_name(path) and (not path.exists() or is_store(path)):
            return _of_store(open_store(path), rule)
    return _of_table(open_table(path), rule)


def _of_table(table: Table, rule: str | None) -> Rows:
    """A file that `convert` reads, read once, from front to back."""
    if table.num_rows is None:
        raise ArgumentError(
            f"{table.where} does not say how many rows it has; convert it to a store first"
        )
    schema = table.schema
    encoding, content, reader = encoding_of(schema), len(schema.content), _Reader(table)
    rule = _whole_by(schema, table.where, rule)

    def read(start: int, stop: int, kind: str) -> Array:
        columns = reader.read(start, stop)[:content]
        encoding.check(columns, schema, start)
        return encoding.decode(columns, schema, kind, rule=rule)

    rows = _of_schema(schema, table.where, table.num_rows, read, rule)
    column, id_reader = schema.role("id"), _Reader(table)  # of its own: ids are read first
    if column is None:
        return rows

    def ids(start: int, stop: int) -> Array:
        return decode_ids(id_reader.read(start, stop)[schema.index(column.name)], column)

    return replace(rows, ids=ids)


class _Reader:
    """Batches cut to the rows asked for; asking in order reads the file once."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._cut = Cut(iter(()))
        self._next = -1

    def read(self, start: int, stop: int) -> Batch:
        """The rows from `start` to `stop`."""
        if start != self._next:
            self._cut = Cut(self._table.batches(start, max(stop - start, 1)))
        self._next = stop
        return self._cut.take(stop - start)


def members_of(sources: Any, *, check: str = "auto") -> Rows:
    """One source with a member axis; of a list of sources, member i is the i-th.

    Raises:
        ArgumentError: the list is empty, or one of several has members already.
        IdentityError: they are of other samples.
    """
    if isinstance(sources, (list, tuple)) and not sources:
        raise ArgumentError("no member was given, expected a list of at least one store")
    if not _holds_sources(sources):
        return rows_of(sources)
    members = [rows_of(source, f"member {i}") for i, source in enumerate(sources)]
    for one in members:
        if len(one.row_shape) != 1:
            raise ArgumentError(
                f"{one.where} has members of its own, expected one distribution a sample; pass "
                "a store of ensembles by itself, not in a list"
            )
    first = members[0]
    check_same(first, *members[1:], check=check)
    in_logs = all(one.in_logs for one in members)

    def read(start: int, stop: int) -> Array:
        group = [one.piece(start, stop) for one in members]
        return np.stack([piece.logs if in_logs else piece.probs for piece in group], axis=1)

    return replace(
        first,
        where=" + ".join(one.where for one in members),
        row_shape=(len(members), *first.row_shape),
        read=read,
        in_logs=in_logs,
        tol=1e-6,  # each was checked and renormalised as it was read
        roundoff=max(one.roundoff for one in members),
    )
