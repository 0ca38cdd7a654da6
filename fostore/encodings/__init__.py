"""How a batch of distributions becomes the columns of a store, and back.

An encoding is one file in this folder and one line in `ENCODINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

from fostore.encodings.encoding import Encoding, refuse_rule
from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema.integers import integer
from fostore.schema.row import FLOATS, KINDS, SAMPLE, Column, Schema, sum_tolerance

ENCODINGS = {
    "dense": "fostore.encodings.dense",
    "counts": "fostore.encodings.counts",
    "topk": "fostore.encodings.topk",
    "u16_affine": "fostore.encodings.u16_affine",
    "u8_log_sqrt": "fostore.encodings.u8_log_sqrt",
    "sampled": "fostore.encodings.sampled",
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
    return _spec(_named(encoding, given))


def another(
    schema: Schema, encoding: Any, rule: str | None = None, **parameters: Any
) -> tuple[dict[str, Any], str | None]:
    """The spec of rows of `schema` in the encoding that a user names, and the rule by which they become whole for it.

    Where the encoding stays the same, what is not asked for stays as the rows have it. A rule is a parameter of an
    encoding that has one; for any other it says what becomes of classes that the rows do not keep.

    Raises:
        ArgumentError, UnsupportedError: as `chosen` does; a rule for rows that keep every class.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    own = schema.encoding["name"]
    asked = _named(own if encoding is None else encoding, given)
    has_rule = "rule" in _load(asked["name"]).parameters
    if has_rule and rule is not None:
        asked = {"rule": rule, **asked}
    elif asked["name"] == own:
        refuse_rule(rule, own)
    kept = schema.encoding if asked["name"] == own else {}
    return _spec(asked, kept), None if has_rule else rule


def _named(encoding: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The name of an encoding, and the parameters that were given with it or beside it."""
    named = {"name": encoding} if isinstance(encoding, str) else encoding
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise ArgumentError(
            f"encoding is {encoding!r:.80}, expected a name, one of {sorted(ENCODINGS)}, or a mapping of "
            '"name" and parameters'
        )
    twice = sorted(given.keys() & named.keys())
    if twice:
        raise ArgumentError(f"{twice} were given beside encoding and in it: give them once")
    return {**named, **given}


def _spec(
    asked: Mapping[str, Any], kept: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """A spec of what was asked for, and of what is kept where nothing was."""
    name = asked["name"]
    loaded = _load(name)
    for key in asked:
        if key not in ("name", *loaded.parameters):
            raise ArgumentError(
                f"the encoding {name!r} has no parameter {key!r}; it has {list(loaded.parameters)}"
            )
    parameters = {key: value for key, value in {**kept, **asked}.items() if key != "name"}
    return {"name": name, **loaded.spec(parameters)}


def preferred_kind(encoding: Mapping[str, Any] | None, *, gives_logits: bool) -> str:
    """What is kept of a model's output where the user does not say: what the encoding keeps best."""
    spec = default_encoding("probs") if encoding is None else encoding
    kinds = _load(str(spec.get("name"))).kinds
    return next(kind for kind in kinds if gives_logits or kind != "logits")


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
        if size is not None:
            integer(size, key, 1)
    given = dict(encoding or default_encoding(kind))
    loaded = _load(str(given.get("name")))
    # What a newer release has put into it stays.
    spec = {"name": given.pop("name"), **loaded.spec(given)}
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
    kind becomes that of the new one. So does the dtype, where the encoding has it. Rows stay as far
    from 1 as they were allowed to be, where they are not changed to something with another sum.
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
    takes = _load(arguments["encoding"]["name"]).dtypes(kind, arguments["num_classes"])
    if "dtype" not in changed and schema.dtype not in takes:
        arguments["dtype"] = None
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
    """The sum tolerance of a schema where the user names none; 0 for counts, which are exact."""
    if kind == "counts":
        return 0.0
    # What codes or draws are made of is checked as it comes.
    return sum_tolerance(dtype if dtype in FLOATS else "float32", num_classes, kind)
