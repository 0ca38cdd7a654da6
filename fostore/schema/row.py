"""What a row is: its classes, members, kind, numbers and columns (spec/core.md, schema).

The schema says it, the store enforces it, the reader never guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema.columns import COUNTS, FLOATS, TEXT, Array, Column, expect, expect_all
from fostore.schema.shown import Grid, Shown
from fostore.schema.sides import SIDES, side_of

__all__ = ["COUNTS", "FLOATS", "KINDS", "Array", "Column", "Schema", "expect", "sum_tolerance"]

KINDS = ("probs", "log_probs", "logits", "counts")
SAMPLE, TOKEN = "sample", "token"
_ROW_AXES = (SAMPLE, TOKEN)
"""What a row is of: a sample, or a token of the sequence that the sample is."""
TEXT_LAYOUT = "text_layout"
"""The reader feature of a store that has columns of layout `TEXT`: others would take them for damaged."""
TOKEN_ROWS = "token_rows"
"""The reader feature of a store whose rows are those of sequences: others would take each for a sample."""
_FEATURES = frozenset({TEXT_LAYOUT, TOKEN_ROWS})
"""Reader features that this release has beyond the core; a store names those it needs in `requires`."""

_CORE_ENCODINGS = frozenset({"dense", "counts"})
_NAMED = 8
"""Classes that a schema names when it is shown."""

# Of all formats: a store can be converted to each, and its columns keep their names.
_RESERVED_NAMES = frozenset(
    "meta fostore distributions header progress block_hashes offsets".split()
)
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Half a unit in the last place of each dtype, relative."""
_SMALLEST = {
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
    "float32": 2.0**-149,
    "float64": 2.0**-1074,
}


def sum_tolerance(dtype: str, num_classes: int, kind: str = "probs") -> float:
    """How far the sum of a row may be from 1: 1e-3 + u + K s / 2, for log_probs 1e-3 + u (1 + ln K).

    u is the unit roundoff of `dtype`, s its smallest subnormal, K the number of classes: what a
    correctly computed softmax can lose by being rounded to `dtype`, and a margin of 1e-3. A rounded
    logarithm changes p by up to u p |log p|, which sums to u times the entropy, at most ln K.

    >>> round(sum_tolerance("float32", 10), 6), round(sum_tolerance("float16", 100_000), 6)
    (0.001, 0.004469)
    """
    if kind == "log_probs":
        return 1e-3 + ROUNDOFF[dtype] * (1 + math.log(num_classes))
    return 1e-3 + ROUNDOFF[dtype] + num_classes * _SMALLEST[dtype] / 2


_KINDS = {"columns": list, "num_classes": int, "kind": str, "encoding": dict, "row_axis": str}


@dataclass(frozen=True, slots=True, repr=False)
class Schema(Shown):
    """What every row of a store is; part of its identity and of its digest.

    Built by `fostore.encodings.make_schema`, which knows the columns that an encoding needs.
    """

    num_classes: int
    num_members: int | None
    kind: str
    encoding: Mapping[str, Any]
    columns: tuple[Column, ...]
    sum_tolerance: float
    temperature: float = 1.0
    class_names: tuple[str, ...] | None = None
    row_axis: str = SAMPLE

    @property
    def requires(self) -> tuple[str, ...]:
        """The features that a reader must have: an encoding that is not of the core is one, by its name."""
        name = str(self.encoding.get("name"))
        features = {
            name: name not in _CORE_ENCODINGS,
            TEXT_LAYOUT: any(column.layout for column in self.columns),
            TOKEN_ROWS: self.row_axis == TOKEN,
        }
        return tuple(feature for feature, is_needed in features.items() if is_needed)

    def grid(self) -> Grid:
        """What a row is, in four lines: class names are named by their first ones."""
        names = ", ".join(self.class_names[:_NAMED]) if self.class_names else ""
        members = f"{self.num_members:,} members, " if self.num_members else ""
        classes = f"{self.num_classes:,} {'classes' if self.num_classes != 1 else 'class'}"
        softened = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        rows = [("row", f"{members}{classes}{f': {names}' if names else ''}")]
        if self.class_names and len(self.class_names) > _NAMED:
            rows[0] = ("row", f"{rows[0][1]}, ...")
        rows.append(("stored as", f"{self.kind}, {self.dtype}, {self.encoded}{softened}"))
        columns = ", ".join(f"{column.name} ({column.role})" for column in self.columns)
        rows.append(("columns", columns))
        return Grid("Schema", rows)

    @property
    def encoded(self) -> str:
        """The encoding in words, with its parameters."""
        return in_words(self.encoding)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the distributions: (sample, class) or (sample, member, class)."""
        return (self.row_axis, *self.row_axes)

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The axes of one row."""
        return ("class",) if self.num_members is None else ("member", "class")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row as a distribution: (num_classes,) or (num_members, num_classes)."""
        if self.num_members is None:
            return (self.num_classes,)
        return (self.num_members, self.num_classes)

    @property
    def content(self) -> tuple[Column, ...]:
        """The columns that the encoding makes; they come first."""
        return tuple(c for c in self.columns if c.role == "content")

    @property
    def dtype(self) -> str:
        """The dtype of the numbers, such as "float16"."""
        return self.columns[0].dtype

    @property
    def vocab_size(self) -> int | None:
        """How many tokens there are, of which `token` has some; None where the store keeps none."""
        column = self.role("token")
        return None if column is None else int(column.extra["vocab_size"])

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one row, one number a column."""
        return tuple(column.row_bytes for column in self.columns)

    def index(self, name: str) -> int:
        """The position of the column called `name`."""
        for i, column in enumerate(self.columns):
            if column.name == name:
                return i
        names = [column.name for column in self.columns]
        raise ArgumentError(f"the store has no column {name!r}; it has {names}")

    def role(self, role: str) -> Column | None:
        """The first column that plays `role`, if there is one."""
        return next((c for c in self.columns if c.role == role), None)

    @property
    def readable(self) -> Schema:
        """The same, laid out as new stores are: texts as texts, where older ones kept arrays of bytes."""
        texts = [replace(c, layout=TEXT) if c.dtype == "utf8" else c for c in self.columns]
        return replace(self, columns=tuple(texts))

    def to_json(self) -> dict[str, Any]:
        """The schema's part of the `fostore` attribute."""
        return {
            "requires": list(self.requires),
            "row_axis": self.row_axis,
            "num_classes": self.num_classes,
            "num_members": self.num_members,
            "axes": list(self.axes),
            "kind": self.kind,
            "encoding": dict(self.encoding),
            "columns": [column.to_json() for column in self.columns],
            "sum_tolerance": self.sum_tolerance,
            "temperature": self.temperature,
            "class_names": None if self.class_names is None else list(self.class_names),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Schema:
        """Parse and check what a stranger wrote; unknown features are refused by name."""
        # First: what a newer feature changed could look like damage further down.
        requires = tuple(expect(value, "requires", list, where))
        # Whether there is such an encoding is asked where one is looked up (`encoding_of`), which names them.
        named = value.get("encoding")
        known = [*_FEATURES, named.get("name") if isinstance(named, dict) else None]
        unknown = [n for n in requires if not isinstance(n, str) or n not in known]
        if unknown:
            raise UnsupportedError(
                f"{where} needs the reader features {unknown}, which this release of fostore "
                "does not have; a newer one may"
            )
        names = value.get("class_names")
        members = value.get("num_members")
        columns, num_classes, kind, encoding, row_axis = expect_all(value, _KINDS, where)
        schema = cls(
            num_classes=num_classes,
            num_members=None if members is None else expect(value, "num_members", int, where),
            kind=kind,
            encoding=encoding,
            columns=tuple(
                [Column.from_json(c, f"{where}, column {i}") for i, c in enumerate(columns)]
            ),
            sum_tolerance=float(expect(value, "sum_tolerance", (int, float), where)),
            temperature=float(expect(value, "temperature", (int, float), where)),
            class_names=None if names is None else tuple(expect(value, "class_names", list, where)),
            row_axis=row_axis,
        )
        schema.check(where, FormatError)
        if requires != schema.requires:
            raise FormatError(
                f"{where}: requires is {list(requires)}, and the columns need {list(schema.requires)}"
            )
        # Said twice, for readers of other languages: a contradiction is no store.
        if value.get("axes") != list(schema.axes):
            raise FormatError(
                f"{where}: axes are {value.get('axes')}, expected {list(schema.axes)}"
            )
        return schema

    def check(self, where: str, error: type[FormatError] | type[ArgumentError]) -> None:
        """Raise `error` where the parts of the schema contradict each other."""
        if self.row_axis not in _ROW_AXES:
            raise UnsupportedError(
                f"{where}: rows along {self.row_axis!r:.40}; this release reads {list(_ROW_AXES)}"
            )
        if self.kind not in KINDS:
            raise error(f"{where}: kind is {self.kind!r}, expected one of {list(KINDS)}")
        if self.num_classes < 1 or (self.num_members is not None and self.num_members < 1):
            raise error(
                f"{where}: num_classes is {self.num_classes} and num_members {self.num_members}; "
                "each must be at least 1"
            )
        if not 0 < self.temperature < math.inf:
            raise error(f"{where}: temperature is {self.temperature}, expected a positive number")
        if not 0 <= self.sum_tolerance < 1:
            raise error(f"{where}: the sum tolerance is {self.sum_tolerance}, expected 0 to 1")
        for column in self.columns:
            if column.role != "content" and column.role not in SIDES:
                raise UnsupportedError(
                    f"{where}: column {column.name!r} has the role {column.role!r}"
                )
        names = [column.name for column in self.columns]
        if not names or len(set(names)) != len(names) or self.columns[0].role != "content":
            raise error(
                f"{where}: the columns {names} are empty, repeated or do not start with content"
            )
        taken = _RESERVED_NAMES.intersection(names)
        if taken:
            raise error(f"{where}: {sorted(taken)} name parts of a store and cannot name columns")
        for role in SIDES:
            columns = [column for column in self.columns if column.role == role]
            if columns and (len(columns) > 1 or not side_of(role).fits(columns[0])):
                raise error(f"{where}: the columns of role {role!r} are not what that role allows")
        beside = [c for c in self.columns if c.role != "content"]
        other = [c.name for c in beside if side_of(c.role).row_axis not in (None, self.row_axis)]
        if other or (self.row_axis == TOKEN) != (self.role("sequence") is not None):
            raise error(
                f"{where}: rows along {self.row_axis!r} with the columns {names}: rows of tokens have a "
                "column of role 'sequence', and no others have one"
            )
        if self.class_names is not None:
            _check_class_names(self.class_names, self.num_classes, where, error)


def in_words(encoding: Mapping[str, Any]) -> str:
    """The spec of an encoding as people read it.

    >>> in_words({"name": "topk", "k": 64, "temperatures": [2.0, 4.0]})
    'topk (k 64, temperatures 2, 4)'
    """
    own = {key: value for key, value in encoding.items() if key != "name"}
    words = ", ".join(
        f"{key} {', '.join(f'{n:g}' for n in value) if isinstance(value, (list, tuple)) else value}"
        for key, value in own.items()
    )
    return f"{encoding['name']} ({words})" if own else str(encoding["name"])


def _check_class_names(
    names: Sequence[Any],
    num_classes: int,
    where: str,
    error: type[FormatError] | type[ArgumentError],
) -> None:
    if not all(isinstance(name, str) for name in names):
        raise error(f"{where}: class_names must be strings")
    if len(names) != num_classes:
        raise error(f"{where}: {len(names)} class_names for {num_classes} classes")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})[:3]
        raise error(f"{where}: class_names holds {twice} more than once")
