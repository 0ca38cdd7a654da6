"""How a batch of distributions becomes the columns of a store, and back.

An encoding is one file in this folder and one line in `ENCODINGS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema.row import COUNTS, FLOATS, KINDS, SAMPLE, Array, Column, Schema, sum_tolerance

if TYPE_CHECKING:
    from fostore.encodings.topk_rows import TopK


class Encoding(ABC):
    """Pure functions between rows as a caller gives them and columns as a store keeps them.

    A schema's `encoding` is its spec: the name, and the encoding's own parameters, which are part of
    what the rows are. The spec is handed on as it is, so that no copy of a store loses it.

    What has a body here is right for an encoding that keeps every class of every row.
    """

    name: str
    parameters: tuple[str, ...] = ()
    """The keys that a user may give beside the name."""

    def spec(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as a schema keeps them: checked, plain JSON, with defaults that are part of what the rows are.

        Raises ArgumentError for one that is missing or cannot be used.
        """
        return dict(parameters)

    def dtypes(self, kind: str, num_classes: int) -> tuple[str, ...]:
        """What the first column may hold for rows of this kind."""
        return tuple(COUNTS if kind == "counts" else FLOATS)

    def usual_dtype(self, kind: str, num_classes: int) -> str:
        """What the first column holds where the user names no dtype."""
        return "uint32" if kind == "counts" else "float32"

    @abstractmethod
    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """The content columns for rows of this kind, dtype and shape, under this spec.

        Raises ArgumentError where the encoding cannot keep the kind or the dtype, or lacks a parameter.
        """

    @abstractmethod
    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Check rows (n, *schema.row_shape) of the schema's kind and bring them into stored form.

        An encoding of top-k rows takes `Selected` as well. Returns one C-contiguous array of the stored dtype
        a content column; may alias `rows`. Raises RowError, naming rows counted from `start`.
        """

    @abstractmethod
    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where stored columns do not hold what the schema promises."""

    @abstractmethod
    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Distributions (n, *schema.row_shape) as "probs", "log_probs" or "logits" from stored columns.

        probs come as stored where they are stored as probs (bfloat16: float32), else as float32
        (float64 where that is stored), as they do for any `temperature` other than 1: then probs
        are softmax(log p / temperature), log_probs their logarithms, and logits those of
        temperature 1 divided by it. `rule` says what becomes of classes that are not kept, where there are
        any. Raises ArgumentError where that leaves no distribution over all classes.
        """

    @abstractmethod
    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """Rows of the schema's kind as `encode` takes them, as wide as they are exact: votes, or float32 or float64."""

    def recast(
        self, columns: Sequence[Array], schema: Schema, made: Schema, start: int
    ) -> list[Array]:
        """Stored columns of the same rows in the dtype and with the parameters of `made`, which differs in these alone.

        Raises RowError where rows do not keep what the schema promises, ArgumentError where they cannot be
        made with such parameters.
        """
        return self.encode(self.rows(columns, schema), made, start)

    def is_plain(self, schema: Schema, as_kind: str) -> bool:
        """Whether the first column is what `decode` gives as `as_kind`, number by number, so that it can be mapped.

        But for two things that lie in the numbers: halves may be widened, and logits lack the level of their row.
        """
        return False

    def decoded_bytes(self, schema: Schema) -> int:
        """Bytes that one row takes in memory at most while it is decoded: what sizes pieces."""
        return 8 * math.prod(schema.row_shape)

    def check_dense(self, schema: Schema, rule: str | None) -> None:
        """Raise ArgumentError where `take` gives no whole rows by this rule, or not without one."""
        refuse_rule(rule, self.name)

    def selects(self, schema: Schema) -> tuple[int, tuple[float, ...]] | None:
        """How many classes of a row, and at which temperatures the rest, `encode` takes as `Selected`; None of none."""
        return None

    def sparse(self, columns: Sequence[Array], schema: Schema) -> TopK | None:
        """The rows as the classes that are kept; None of an encoding that keeps all. May alias the columns."""
        return None

    def fidelity(self, columns: Sequence[Array], schema: Schema) -> Mapping[str, Array] | None:
        """What is known of each row's error from the columns alone, float64 (n,) each; None where nothing is."""
        return None


def refuse_rule(rule: str | None, name: str) -> None:
    """Raise ArgumentError where a rule is named for rows that leave no class out."""
    if rule is not None:
        raise ArgumentError(
            f"rule is {rule!r}, and rows of the encoding {name!r} hold every class: leave it out"
        )


ENCODINGS = {
    "dense": "fostore.encodings.dense",
    "counts": "fostore.encodings.counts",
    "topk": "fostore.encodings.topk",
}


def encoding_of(schema: Schema) -> Encoding:
    """The encoding that a schema names.

    Raises:
        UnsupportedError: an encoding that this release does not have; names it.
        FormatError: the content columns are not those that it makes of this kind, dtype and shape.
    """
    encoding = _load(str(schema.encoding.get("name")))
    try:
        made = encoding.columns(
            schema.kind, schema.dtype, schema.row_axes, schema.row_shape, schema.encoding
        )
    except ArgumentError as error:
        raise FormatError(f"the schema contradicts itself: {error}") from error
    # A stranger's columns are decoded by position: they must be those that the encoding makes.
    stored = schema.columns[: len(made)]
    if len(schema.content) != len(made) or not all(map(_is_column, stored, made)):
        raise FormatError(
            f"{schema.kind} as {schema.dtype} of shape {schema.row_shape} a row have the columns "
            f"{[(c.name, c.stored, c.shape) for c in made]}, the store begins with "
            f"{[(c.name, c.stored, c.shape) for c in stored]}"
        )
    return encoding


def _is_column(stored: Column, made: Column) -> bool:
    """Whether a column says all that its encoding says of it; a newer release may say more."""
    one, other = [(c.name, c.dtype, c.stored, c.axes, c.shape, c.role) for c in (stored, made)]
    return one == other and made.extra.items() <= stored.extra.items()


def _load(name: str) -> Encoding:
    if name not in ENCODINGS:
        raise UnsupportedError(
            f"the encoding {name!r} is not known to this release, which has {sorted(ENCODINGS)}"
        )
    encoding: Encoding = import_module(ENCODINGS[name]).ENCODING
    return encoding


def chosen(encoding: Any, **parameters: Any) -> dict[str, Any] | None:
    """The spec that a user names, by its name alone, as a mapping with parameters, or with them beside it.

    Args:
        encoding: a name, a mapping of "name" and parameters, or None.
        parameters: those that have keywords of their own; None is not given.

    Returns:
        None where nothing was named.

    Raises:
        ArgumentError: no text and no mapping with a name, a parameter that the encoding does not take or lacks,
            or one without an encoding.
        UnsupportedError: an encoding that this release does not have; names those that it has.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    if encoding is None:
        if given:
            raise ArgumentError(
                f"{sorted(given)} are parameters of an encoding, and none was named: encoding='topk'"
            )
        return None
    named = {"name": encoding} if isinstance(encoding, str) else encoding
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise ArgumentError(
            f"encoding is {encoding!r:.80}, expected a name, one of {sorted(ENCODINGS)}, or a mapping of "
            '"name" and parameters'
        )
    twice = sorted(given.keys() & named.keys())
    if twice:
        raise ArgumentError(f"{twice} were given beside encoding and in it: give them once")
    name = named["name"]
    loaded, own = _load(name), {**named, **given}
    del own["name"]
    for key in own:
        if key not in loaded.parameters:
            raise ArgumentError(
                f"the encoding {name!r} has no parameter {key!r}; it has {list(loaded.parameters)}"
            )
    return {"name": name, **loaded.spec(own)}


def default_encoding(kind: str) -> dict[str, Any]:
    """The spec of rows of this kind where the user names none."""
    return {"name": "counts" if kind == "counts" else "dense"}


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
    row_axis: str = SAMPLE,
) -> Schema:
    """A schema from what a user says; see `fostore.create` for the parameters.

    Raises:
        ArgumentError: a value cannot be used, or two contradict each other.
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind is {kind!r}, expected one of {list(KINDS)}")
    for key, size in (("num_classes", num_classes), ("num_members", num_members)):
        if size is not None and (
            isinstance(size, bool) or not hasattr(size, "__index__") or size < 1
        ):
            raise ArgumentError(f"{key} is {size!r}, expected an integer of at least 1")
    given = dict(encoding or default_encoding(kind))
    name = str(given.pop("name", None))
    loaded = _load(name)
    spec = {"name": name, **loaded.spec(given)}
    dtypes = loaded.dtypes(kind, num_classes)
    dtype = dtype or loaded.usual_dtype(kind, num_classes)
    if dtype not in dtypes:
        raise ArgumentError(f"dtype is {dtype!r}, expected one of {list(dtypes)} for {kind}")
    axes = ("class",) if num_members is None else ("member", "class")
    sizes = (num_classes,) if num_members is None else (num_members, num_classes)
    shape = tuple(map(int, sizes))
    content = loaded.columns(kind, dtype, axes, shape, spec)
    schema = Schema(
        num_classes=int(num_classes),
        num_members=None if num_members is None else int(num_members),
        kind=kind,
        encoding=spec,
        columns=(*content, *side_columns),
        sum_tolerance=tol if tol is not None else default_tolerance(kind, dtype, num_classes),
        temperature=float(temperature),
        class_names=None if class_names is None else tuple(class_names),
        row_axis=row_axis,
    )
    schema.check("the arguments", ArgumentError)
    return schema


def remade(schema: Schema, **changed: Any) -> Schema:
    """The schema with some arguments of `make_schema` changed; everything else is carried over.

    The encoding stays, and refuses what it cannot keep; only one that was the default of the old
    kind becomes that of the new one. Rows stay as far from 1 as they were allowed to be, where they
    are not changed to something with another sum.
    """
    kind = changed.get("kind", schema.kind)
    is_default = dict(schema.encoding) == default_encoding(schema.kind)
    arguments: dict[str, Any] = {
        "num_classes": schema.num_classes,
        "num_members": schema.num_members,
        "kind": schema.kind,
        "dtype": schema.dtype,
        "class_names": schema.class_names,
        "temperature": schema.temperature,
        "encoding": default_encoding(kind) if is_default else schema.encoding,
        "side_columns": schema.columns[len(schema.content) :],
        "row_axis": schema.row_axis,
        **changed,
    }
    made = make_schema(**arguments)
    content = made.content
    if len(content) == len(schema.content) and all(
        map(_is_column, schema.content, content)
    ):  # a newer release may have said more of them
        content = schema.content
    tolerance = made.sum_tolerance
    if "tol" not in changed and kind in (schema.kind, "probs"):
        # Rows that were taken at the old tolerance are checked again at this one.
        tolerance = max(tolerance, schema.sum_tolerance)
    return replace(
        made,
        columns=(*content, *made.columns[len(content) :]),
        sum_tolerance=tolerance,
    )


def default_tolerance(kind: str, dtype: str, num_classes: int) -> float:
    """The sum tolerance of a schema where the user names none; 0 for integers, which are exact."""
    return sum_tolerance(dtype, num_classes, kind) if dtype in FLOATS else 0.0
