"""How a batch of distributions becomes the columns of a store, and back.

An encoding is one file in this folder and one line in `ENCODINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema.row import COUNTS, FLOATS, KINDS, Array, Column, Schema, sum_tolerance


class Encoding(Protocol):
    """Pure functions between rows as a caller gives them and columns as a store keeps them."""

    name: str

    def columns(
        self, kind: str, dtype: str, axes: tuple[str, ...], shape: tuple[int, ...]
    ) -> tuple[Column, ...]:
        """The content columns for rows of this kind, dtype and shape.

        Raises ArgumentError where the encoding cannot keep the kind or the dtype.
        """
        ...

    def encode(self, rows: Array, schema: Schema, start: int) -> list[Array]:
        """Check rows (n, *schema.row_shape) of the schema's kind and bring them into stored form.

        Returns one C-contiguous array of the stored dtype a content column; may alias `rows`.
        Raises RowError, naming rows counted from `start`.
        """
        ...

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where stored columns do not hold what the schema promises."""
        ...

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
    ) -> Array:
        """Distributions (n, *schema.row_shape) as "probs", "log_probs" or "logits" from stored columns.

        probs come as stored where they are stored as probs (bfloat16: float32), else as float32
        (float64 where that is stored), as they do for any `temperature` other than 1: then probs
        are softmax(log p / temperature), log_probs their logarithms, and logits those of
        temperature 1 divided by it.
        """
        ...


ENCODINGS = {"dense": "fostore.encodings.dense", "counts": "fostore.encodings.counts"}


def encoding_of(schema: Schema) -> Encoding:
    """The encoding that a schema names.

    Raises:
        UnsupportedError: an encoding that this release does not have; names it.
        FormatError: the content columns are not those that it makes of this kind, dtype and shape.
    """
    encoding = _load(str(schema.encoding.get("name")))
    try:
        made = encoding.columns(schema.kind, schema.dtype, schema.row_axes, schema.row_shape)
    except ArgumentError as error:
        raise FormatError(f"the schema contradicts itself: {error}") from error
    found = schema.columns[: len(made)]
    if len(schema.content) != len(made) or not all(map(_is_column, found, made)):
        raise FormatError(
            f"{schema.kind} as {schema.dtype} of shape {schema.row_shape} a row have the columns "
            f"{[(c.name, c.stored, c.shape) for c in made]}, the store begins with "
            f"{[(c.name, c.stored, c.shape) for c in found]}"
        )
    return encoding


def is_dense(schema: Schema) -> bool:
    """Whether rows lie in one column number by number; what any other encoding keeps is decoded."""
    return schema.encoding.get("name") == "dense"


def _is_column(found: Column, made: Column) -> bool:
    """Whether a column says all that its encoding says of it; a newer release may say more."""
    same = replace(found, extra={}) == replace(made, extra={})
    return same and all(found.extra.get(key) == value for key, value in made.extra.items())


def _load(name: str) -> Encoding:
    if name not in ENCODINGS:
        raise UnsupportedError(
            f"the encoding {name!r} is not known to this release, which has {sorted(ENCODINGS)}"
        )
    found: Encoding = import_module(ENCODINGS[name]).ENCODING
    return found


def make_schema(
    num_classes: int,
    *,
    num_members: int | None = None,
    kind: str = "probs",
    dtype: str | None = None,
    class_names: Sequence[str] | None = None,
    temperature: float = 1.0,
    tol: float | None = None,
    encoding: Mapping[str, Any] | None = None,
    side_columns: Sequence[Column] = (),
) -> Schema:
    """A schema from what a user says; see `fostore.create` for the parameters.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other.
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind is {kind!r}, expected one of {list(KINDS)}")
    dtypes = COUNTS if kind == "counts" else FLOATS
    dtype = dtype or ("uint32" if kind == "counts" else "float32")
    if dtype not in dtypes:
        raise ArgumentError(f"dtype is {dtype!r}, expected one of {list(dtypes)} for {kind}")
    for name, size in (("num_classes", num_classes), ("num_members", num_members)):
        if size is not None and (
            isinstance(size, bool) or not hasattr(size, "__index__") or size < 1
        ):
            raise ArgumentError(f"{name} is {size!r}, expected an integer of at least 1")
    chosen = dict(encoding or {"name": "counts" if kind == "counts" else "dense"})
    axes = ("class",) if num_members is None else ("member", "class")
    shape = (num_classes,) if num_members is None else (num_members, num_classes)
    content = _load(str(chosen.get("name"))).columns(
        kind, dtype, axes, tuple(int(n) for n in shape)
    )
    schema = Schema(
        num_classes=int(num_classes),
        num_members=None if num_members is None else int(num_members),
        kind=kind,
        encoding=chosen,
        columns=(*content, *side_columns),
        sum_tolerance=tol if tol is not None else default_tolerance(kind, dtype, num_classes),
        temperature=float(temperature),
        class_names=None if class_names is None else tuple(class_names),
    )
    schema.check("the arguments", ArgumentError)
    return schema


def default_tolerance(kind: str, dtype: str, num_classes: int) -> float:
    """The sum tolerance of a schema where the user names none; 0 for counts, which are exact."""
    return 0.0 if kind == "counts" else sum_tolerance(dtype, num_classes, kind)
