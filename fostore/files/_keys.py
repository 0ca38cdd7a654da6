"""Keys beside the rows: which column or array says which sample a row is; taken as ids, or named, never dropped.

One rule for all file formats: a known name whose keys are whole numbers or texts, one a row and none
twice, becomes the ids. A row's plain number, 0 to n - 1, is no key: that is where the row stands anyway.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, FormatError, RowError
from fostore.files import Hints
from fostore.files.table import Batch, Cut, Table, changed, in_turn
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array, Column
from fostore.schema.sides.ids import MAX_WIDTH, encode_ids, id_column
from fostore.schema.sides.known import KnownIds, TwiceError

IDS = tuple(
    "id ids sample_id sample_ids image_id image_ids img_id example_id item_id doc_id record_id uid uuid guid".split()
)
"""Names that mean keys whatever they hold."""
FILE_NAMES = tuple(
    "key keys filename filenames file_name file_names file files path paths filepath file_path filepaths "
    "image_path image_paths img_path image_name image_file".split()
)
"""Names that mean keys, and may be those of classes where whole numbers stand under them."""
INDEX = ("index", "indices", "idx", "", "unnamed: 0", "__index_level_0__", "rownames", "row_names")
"""Names of a frame's index, which is no key where it counts the rows: pandas and R name theirs with nothing."""
_SCANNED = 1 << 16
_HALF = re.compile("[\ud800-\udfff]")
"""What JSON can write, and no file can hold."""
_SHOWN = 12
_TAKEN = "the ids are"
Keys = Array | list[str]
"""Some consecutive keys: int64, or texts."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A column or array beside the rows: `read(start, rows)` gives its values piece by piece."""

    what: str
    """In a message's words: "int64", "text"."""
    read: Callable[[int, int], Iterator[Any]] | None
    """None where it can be no key: another length, or what is in it cannot be read."""
    is_index: bool = False
    """Whether the file says that it is the index of its rows."""


def plain_name(name: str) -> str:
    """A column's name as the rules compare it: NumPy writes "# id" over the first column."""
    return name.strip().removeprefix("#").strip().lower().replace("-", "_").replace(" ", "_")


def is_index_name(name: str) -> bool:
    """Whether a name is that of a frame's index."""
    return plain_name(name) in INDEX or name.strip().lower() in INDEX


def is_key_name(name: str) -> bool:
    """Whether a name says that keys stand under it."""
    plain = plain_name(name)
    return plain in IDS or plain in FILE_NAMES or is_index_name(name)


def keyed(table: Table, beside: Mapping[str, Beside], hints: Hints) -> Table:
    """The table with the ids that lie beside its rows, if any do; what is not taken stands in its notes.

    Raises:
        ArgumentError: `hints` name a column that is not there, or whose keys cannot be ids; says why.
    """
    table = replace(table, took=table.took | {"id_column", "drop"})
    _check_names(table, beside, hints)
    left = {name: one for name, one in beside.items() if name not in hints.drop}
    notes: list[str] = []
    if hints.id_column is not None:
        one = left.pop(hints.id_column)
        look = _profile(table, one)
        if look.why_not is not None:
            raise ArgumentError(
                f"{table.where}: {hints.id_column!r} cannot be the ids: {look.why_not}; give them "
                "with ids= (--ids @FILE), or choose another column"
            )
        table = _with_ids(table, hints.id_column, one, look.column(hints.ids))
        notes.append(f"{_TAKEN} {_shown(hints.id_column)}")
    elif not hints.is_keyed:
        for name in sorted((n for n in left if _may_be_key(n, left[n])), key=_rank):
            look = _profile(table, left[name])
            is_index = left[name].is_index or is_index_name(name)
            if is_index and look.counts_from in (0, 1):
                del left[name]
                if look.counts_from:
                    notes.append(f"{_shown(name)} count the rows from 1, and are no ids")
                continue
            if look.why_not is None:
                table = _with_ids(table, name, left.pop(name), look.column(hints.ids))
                table = replace(table, adopted=name)
                notes.append(
                    f"{_TAKEN} {_shown(name)}, which say which sample a row is; drop=[{name!r}] "
                    f"(--drop {name!r}) leaves them out"
                )
                break
            del left[name]
            notes.append(f"{_shown(name)} was left out and not taken for ids: {look.why_not}")
    if left:
        shown = [f"{name!r} ({one.what})" for name, one in list(left.items())[:_SHOWN]]
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        notes.append(
            f"left out beside the rows: {', '.join(shown)}{more}; id_column= (--id-column NAME) takes "
            "one as ids"
        )
    return replace(table, notes=(*table.notes, *notes))


def agreed(tables: Sequence[Table]) -> list[Table]:
    """Shards whose ids were found beside their rows: kept where all have them and none comes twice, else named."""
    if not any(table.adopted is not None for table in tables):
        return list(tables)
    kinds = {None if (c := table.schema.role("id")) is None else c.dtype for table in tables}
    why = "not all of them have ids of one kind" if len(kinds) > 1 else None
    if why is None:
        read = in_turn([_stored_ids(table) for table in tables], [t.num_rows or 0 for t in tables])
        known = _Seen(read)
        for keys in read(0, _SCANNED):
            if known.add(keys) is not None:
                why = "some come twice among them"
                break
    if why is None:
        return list(tables)
    note = (
        f"the keys beside the rows of the shards were left out: {why}; ids= gives ids to all rows"
    )
    return [_without_ids(t, note) if t.adopted is not None else t for t in tables]


class _Seen:
    """A number for each key, the same for equal keys; says which two rows have one. `read` gives the keys again.

    Numbers that only grow take no memory, all others 8 bytes a key. That two texts of a stranger's file have one
    hash cannot be arranged, since Python hashes them otherwise in every process.
    """

    def __init__(self, read: Callable[[int, int], Iterator[Keys]]) -> None:
        self._read = read
        self._known = KnownIds(id_column("int64"), self._again)
        self._num_rows = 0

    def add(self, keys: Keys) -> tuple[int, int] | None:
        """The next keys; two rows that have one, where they bring one again."""
        try:
            self._known.add(self._num_rows, _hashed(keys), Ranges.of((0, self._num_rows)))
        except TwiceError as error:
            return error.rows
        self._num_rows += len(keys)
        return None

    def _again(self, start: int, stop: int) -> Array:
        keys: Array = Cut([_hashed(keys)] for keys in self._read(start, stop - start)).take(
            stop - start
        )[0]
        return keys


def _hashed(keys: Keys) -> Array:
    if isinstance(keys, np.ndarray):
        return keys
    return np.fromiter(map(hash, keys), np.int64, len(keys))


class _Profile:
    """What keys that pass by are: of one kind, one a row, none twice; `why_not` says why they cannot be ids."""

    def __init__(self, read: Callable[[int, int], Iterator[Any]]) -> None:
        self._read = read
        self._seen = _Seen(lambda start, rows: map(_plain_keys, read(start, rows)))
        self.num_rows = 0
        self.longest = 1
        self.why_not: str | None = None
        self.is_text: bool | None = None
        self._counting = {0, 1}

    @property
    def counts_from(self) -> int | None:
        """0 or 1 where the keys are the numbers of the rows from there on; else None."""
        return min(self._counting) if self._counting and self.is_text is False else None

    def add(self, values: Any) -> None:
        """The next keys."""
        try:
            keys = _plain_keys(values)
        except ValueError as error:
            self.why_not = str(error)
            return
        is_text = not isinstance(keys, np.ndarray)
        if self.is_text not in (None, is_text):
            self.why_not = "some are numbers and others text"
            return
        self.is_text = is_text
        if isinstance(keys, np.ndarray):
            rows = np.arange(self.num_rows, self.num_rows + len(keys))
            self._counting = {n for n in self._counting if np.array_equal(keys, rows + n)}
        else:
            self.longest = max(self.longest, *(len(key.encode()) for key in keys))
            if self.longest > MAX_WIDTH:
                self.why_not = f"one has {self.longest} bytes, and {MAX_WIDTH} are the most"
                return
        twins = self._seen.add(keys)
        if twins is not None:
            first = _plain_keys(next(self._read(twins[0], 1)))[:1]
            (key,) = first.tolist() if isinstance(first, np.ndarray) else first
            self.why_not = f"rows {twins[0]} and {twins[1]} both have {key!r:.60}"
        self.num_rows += len(keys)

    def column(self, dtype: str | None) -> Column:
        """The column that keeps such keys."""
        if dtype is not None:
            return id_column(dtype)
        return id_column(f"S{self.longest + -self.longest % 8}" if self.is_text else "int64")


def _profile(table: Table, one: Beside) -> _Profile:
    """A look at all keys of a column."""
    look = _Profile(one.read or (lambda start, rows: iter(())))
    if one.read is None or table.num_rows is None:
        look.why_not = (
            "a stream cannot be looked through before it is read; save it to a file"
            if table.num_rows is None
            else f"it holds {one.what}, expected a whole number or a text for each of {table.num_rows} rows"
        )
        return look
    try:
        for values in one.read(0, _SCANNED):
            look.add(values)
            if look.why_not is not None:
                return look
    except (FormatError, DamageError) as error:
        look.why_not = f"it cannot be read ({error})"
        return look
    if look.num_rows != table.num_rows:
        look.why_not = f"it has {look.num_rows} keys for {table.num_rows} rows"
    return look


def _plain_keys(values: Any) -> Keys:
    """Values as keys: int64, or a list of texts.

    Raises:
        ValueError: they are something else; says what.
    """
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.dtype.kind in "iu" and values.ndim == 1:
            if values.dtype.kind == "u" and values.size and int(values.max()) >= 1 << 63:
                raise ValueError("one does not fit 64 bits")
            return np.asarray(values, np.int64)
        if values.dtype.kind not in "USO" or values.ndim != 1:
            raise ValueError(f"it holds {values.dtype}, expected whole numbers or text")
        values = values.tolist()
    kinds = {type(value) for value in values}
    if kinds == {bytes}:
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise ValueError("one is no UTF-8") from error
        kinds = {str}
    if kinds <= {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError as error:
            raise ValueError("one does not fit 64 bits") from error
    if kinds != {str}:
        names = sorted("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"it holds {' and '.join(names)}, expected whole numbers or text")
    if any(not key or "\0" in key for key in values):
        raise ValueError("one is empty, or holds NUL")
    if _HALF.search("".join(values)):
        raise ValueError("one holds half of a surrogate pair, which UTF-8 does not have")
    return list(values)


def _shown(name: str) -> str:
    return repr(name) if name else "the row names ('')"


def _rank(name: str) -> int:
    # What means keys whatever it holds comes before names of files, and a frame's index last.
    plain = plain_name(name)
    order = (*IDS, *FILE_NAMES)
    return order.index(plain) if plain in order else len(order)


def _may_be_key(name: str, one: Beside) -> bool:
    return one.is_index or is_key_name(name)


def _check_names(table: Table, beside: Mapping[str, Beside], hints: Hints) -> None:
    named = {"drop": hints.drop, "id_column": [] if hints.id_column is None else [hints.id_column]}
    for option, names in named.items():
        for name in names:
            if name not in beside:
                raise ArgumentError(
                    f"{option} names {name!r}, which is not beside the rows of {table.where}; there "
                    f"{'are ' + str(list(beside)[:_SHOWN]) if beside else 'is nothing'}"
                )
    if hints.id_column is not None and hints.id_column in hints.drop:
        raise ArgumentError(f"{hints.id_column!r} is both the id_column and dropped")


# ------------------------------------------------------------------ ids beside rows


def _with_ids(table: Table, name: str, one: Beside, column: Column) -> Table:
    read = one.read
    assert read is not None

    def batches(start: int, rows: int) -> Iterator[Batch]:
        keys, row = Cut([_plain_keys(values)] for values in read(start, rows)), start
        for batch in table.batches(start, rows):
            try:
                yield [*batch, encode_ids(keys.take(len(batch[0]))[0], column, row)]
            except (RowError, ValueError) as error:
                raise FormatError(f"{table.where}, {name!r}, from row {row} on: {error}") from error
            row += len(batch[0])

    schema = replace(table.schema, columns=(*table.schema.columns, column))
    return replace(table, schema=schema, batches=batches)


def _stored_ids(table: Table) -> Callable[[int, int], Iterator[Keys]]:
    """The keys of a table that has them, as texts or numbers."""
    at = _id_at(table)

    def keys(batch: Batch, start: int) -> Keys:
        column = batch[at]
        # As NumPy's bytes, which end where a text does: shards may keep their texts in other widths.
        return column if column.ndim == 1 else column.view(f"S{column.shape[1]}").ravel().tolist()

    return changed(table.batches, keys)


def _id_at(table: Table) -> int:
    return next(i for i, c in enumerate(table.schema.columns) if c.role == "id")


def _without_ids(table: Table, note: str) -> Table:
    at = _id_at(table)
    columns = (*table.schema.columns[:at], *table.schema.columns[at + 1 :])
    return replace(
        table,
        schema=replace(table.schema, columns=columns),
        batches=changed(table.batches, lambda batch, start: [*batch[:at], *batch[at + 1 :]]),
        adopted=None,
        notes=(*(n for n in table.notes if not n.startswith(_TAKEN)), note),
    )
