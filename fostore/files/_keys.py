"""Keys beside the rows: which column or array says which sample a row is; taken as ids, or named, never dropped.

One rule for all file formats: a known name whose keys are whole numbers or texts, one a row and none
twice, becomes the ids. A row's plain number, 0 to n - 1, is no key: that is where the row stands anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, DamageError, FormatError, RowError
from fostore.files import Hints
from fostore.files.table import Batch, Cut, Table
from fostore.schema.row import Array, Column
from fostore.schema.sides.ids import MAX_WIDTH, encode_ids, id_column
from fostore.schema.sides.known import only_grow

IDS = tuple(
    "id ids sample_id sample_ids image_id image_ids img_id example_id item_id doc_id record_id uid uuid guid".split()
)
"""Names that mean keys whatever they hold."""
FILES = tuple(
    "key keys filename filenames file_name file_names file files path paths filepath file_path filepaths "
    "image_path image_paths img_path image_name image_file".split()
)
"""Names that mean keys, and may be those of classes where whole numbers stand under them."""
INDEX = ("index", "indices", "idx", "", "unnamed: 0", "__index_level_0__", "rownames", "row_names")
"""Names of a frame's index, which is no key where it counts the rows: pandas and R name theirs with nothing."""
_SCANNED = 1 << 14
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
    return plain in IDS or plain in FILES or is_index_name(name)


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
        found = profile(table, one)
        if found.why_not is not None:
            raise ArgumentError(
                f"{table.where}: {hints.id_column!r} cannot be the ids: {found.why_not}; give them "
                "with ids= (--ids @FILE), or choose another column"
            )
        table = _with_ids(table, hints.id_column, one, found.column(hints.ids))
        notes.append(f"{_TAKEN} {_shown(hints.id_column)}")
    elif not hints.is_keyed:
        for name in sorted((n for n in left if _may_be_key(n, left[n])), key=_rank):
            found = profile(table, left[name])
            is_index = left[name].is_index or is_index_name(name)
            if is_index and found.counts_from in (0, 1):
                del left[name]
                if found.counts_from:
                    notes.append(f"{_shown(name)} count the rows from 1, and are no ids")
                continue
            if found.why_not is None:
                table = _with_ids(table, name, left.pop(name), found.column(hints.ids))
                table = replace(table, adopted=name)
                notes.append(
                    f"{_TAKEN} {_shown(name)}, which say which sample a row is; drop=[{name!r}] "
                    f"(--drop {name!r}) leaves them out"
                )
                break
            del left[name]
            notes.append(f"{_shown(name)} was left out and not taken for ids: {found.why_not}")
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
        seen = Profile()
        for table in tables:
            at = _id_at(table)
            for batch in table.batches(0, _SCANNED):
                column = batch[at]
                seen.add(column if column.ndim == 1 else column.view(f"V{column.shape[1]}").ravel())
        if seen.has_twins():
            why = "some come twice among them"
    if why is None:
        return list(tables)
    note = (
        f"the keys beside the rows of the shards were left out: {why}; ids= gives ids to all rows"
    )
    return [_without_ids(t, note) if t.adopted is not None else t for t in tables]


class Profile:
    """What keys that pass by are: of one kind, one a row, none twice. Keeps 8 bytes a key.

    `grow`: they are taken for integers that only grow, of which nothing is kept; `has_missed` says that
    they are not, and that they must pass once more.
    """

    def __init__(self, *, grow: bool = False) -> None:
        self._last: int | None = None
        self._grow = grow
        self.has_missed = False
        self.num_rows = 0
        self.longest = 1
        self.why_not: str | None = None
        self.is_text: bool | None = None
        self._hashes: list[Array] = []
        self._counting = {0, 1}

    @property
    def counts_from(self) -> int | None:
        """0 or 1 where the keys are the numbers of the rows from there on; else None."""
        return min(self._counting) if self._counting and self.is_text is False else None

    def add(self, values: Any) -> None:
        """The next keys."""
        if self.why_not is not None:
            return
        if isinstance(values, np.ndarray) and values.dtype.kind == "V":  # stored texts, as bytes
            self._hashes.append(np.fromiter(map(hash, values.tolist()), np.int64, len(values)))
            return
        try:
            keys = plain_keys(values)
        except ValueError as error:
            self.why_not = str(error)
            return
        is_text = not isinstance(keys, np.ndarray)
        if self.is_text not in (None, is_text):
            self.why_not = "some are numbers and others text"
            return
        self.is_text = is_text
        if isinstance(keys, np.ndarray):
            self._keep(keys)
            rows = np.arange(self.num_rows, self.num_rows + len(keys))
            self._counting = {n for n in self._counting if np.array_equal(keys, rows + n)}
        else:
            self.has_missed = self._grow
            self._hashes.append(np.fromiter(map(hash, keys), np.int64, len(keys)))
            self.longest = max(self.longest, *(len(key.encode()) for key in keys))
            if self.longest > MAX_WIDTH:
                self.why_not = f"one has {self.longest} bytes, and {MAX_WIDTH} are the most"
        self.num_rows += len(keys)

    def _keep(self, keys: Array) -> None:
        if not self._grow:
            self._hashes.append(keys)
        elif len(keys):
            self.has_missed = not only_grow(keys, self._last)
            self._last = int(keys[-1])

    def has_twins(self) -> bool:
        """Whether two keys may be one; ends the taking in."""
        return self.twin() is not None

    def twin(self) -> int | None:
        """What one key that may be there twice hashes to, an integer to itself; ends the taking in."""
        values = np.concatenate(self._hashes or [np.empty(0, np.int64)])
        self._hashes.clear()
        values.sort()
        at = np.flatnonzero(values[1:] == values[:-1])
        return int(values[at[0]]) if len(at) else None

    def column(self, said: str | None) -> Column:
        """The column that keeps such keys."""
        if said is not None:
            return id_column(said)
        return id_column(f"S{self.longest + -self.longest % 8}" if self.is_text else "int64")


def profile(table: Table, one: Beside) -> Profile:
    """A look at all keys of a column; `why_not` says why they cannot be ids, or is None."""
    found = Profile(grow=True)
    if one.read is None or table.num_rows is None:
        found.why_not = (
            "a stream cannot be looked through before it is read; save it to a file"
            if table.num_rows is None
            else f"it holds {one.what}, expected a whole number or a text for each of {table.num_rows} rows"
        )
        return found
    try:
        _pass(found, one.read)
        if found.has_missed:
            found = Profile()
            _pass(found, one.read)
    except (FormatError, DamageError) as error:
        found.why_not = f"it cannot be read ({error})"
        return found
    if found.why_not is not None:
        return found
    if found.num_rows != table.num_rows:
        found.why_not = f"it has {found.num_rows} keys for {table.num_rows} rows"
    elif (twin := found.twin()) is not None and (rows := _rows_of(one.read, twin)) is not None:
        found.why_not = f"rows {rows[0]} and {rows[1]} both have {rows[2]!r:.60}"
    return found


def _pass(found: Profile, read: Callable[[int, int], Iterator[Any]]) -> None:
    for values in read(0, _SCANNED):
        found.add(values)
        if found.why_not is not None or found.has_missed:
            return


def plain_keys(values: Any) -> Keys:
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
    return list(values)


def _shown(name: str) -> str:
    return repr(name) if name else "the row names ('')"


def _rank(name: str) -> int:
    plain = plain_name(name)
    order = (*IDS, *FILES)
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


def _rows_of(read: Callable[[int, int], Iterator[Any]], twin: int) -> tuple[int, int, Any] | None:
    """Two rows whose keys are one, which hashes to `twin`."""
    seen: dict[Any, int] = {}
    row = 0
    for values in read(0, _SCANNED):
        keys = plain_keys(values)
        is_number = isinstance(keys, np.ndarray)
        for key in keys.tolist() if isinstance(keys, np.ndarray) else keys:
            if (key if is_number else hash(key)) == twin:
                if key in seen:
                    return seen[key], row, key
                seen[key] = row
            row += 1
    return None


# ------------------------------------------------------------------ ids beside rows


def _with_ids(table: Table, name: str, one: Beside, column: Column) -> Table:
    read = one.read
    assert read is not None

    def batches(start: int, rows: int) -> Iterator[Batch]:
        keys, row = Cut([plain_keys(values)] for values in read(start, rows)), start
        for batch in table.batches(start, rows):
            try:
                yield [*batch, encode_ids(keys.take(len(batch[0]))[0], column, row)]
            except (RowError, ValueError) as error:
                raise FormatError(f"{table.where}, {name!r}, from row {row} on: {error}") from error
            row += len(batch[0])

    schema = replace(table.schema, columns=(*table.schema.columns, column))
    return replace(table, schema=schema, batches=batches)


def _id_at(table: Table) -> int:
    return next(i for i, c in enumerate(table.schema.columns) if c.role == "id")


def _without_ids(table: Table, note: str) -> Table:
    at = _id_at(table)

    def batches(start: int, rows: int) -> Iterator[Batch]:
        for batch in table.batches(start, rows):
            yield [*batch[:at], *batch[at + 1 :]]

    columns = (*table.schema.columns[:at], *table.schema.columns[at + 1 :])
    return replace(
        table,
        schema=replace(table.schema, columns=columns),
        batches=batches,
        adopted=None,
        notes=(*(n for n in table.notes if not n.startswith(_TAKEN)), note),
    )
