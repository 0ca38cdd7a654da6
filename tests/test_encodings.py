"""What every encoding promises, over kinds, dtypes and members; the oracle is float64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.encodings import ENCODINGS, encoding_of, make_schema
from fostore.errors import ArgumentError, FormatError, RowError, UnsupportedError
from fostore.schema.row import COUNTS, FLOATS, Array, Schema

KINDS = [(kind, dtype) for kind in ("probs", "log_probs", "logits") for dtype in FLOATS]
KINDS += [("counts", dtype) for dtype in COUNTS]
# Of all classes nothing is left out, so that what holds of dense rows holds of these.
KINDS += [(f"{kind} topk", dtype) for kind, dtype in KINDS if kind != "counts"]
MEMBERS = (None, 1, 3)
LOWEST = {
    "float16": -65504.0,
    "bfloat16": -3.3895313892515355e38,
    "float32": -3.4028234663852886e38,
}
# How far a rounded number may be off, relative to its size.
ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23, "float64": 2.0**-52}

every_kind = pytest.mark.parametrize(("kind", "dtype"), KINDS)
every_shape = pytest.mark.parametrize("members", MEMBERS)


def given_rows(
    kind: str, members: int | None, num_classes: int = 7, n: int = 20
) -> tuple[Array, Array]:
    """Rows as a caller gives them, and the probabilities that they mean, both float64 or int64."""
    kind = kind.partition(" ")[0]
    shape = (n, num_classes) if members is None else (n, members, num_classes)
    rng = np.random.default_rng(3)
    if kind == "counts":
        votes = rng.integers(0, 200, shape)
        votes[..., 0] += 1
        return votes, votes / votes.sum(-1, keepdims=True)
    logits = rng.normal(size=shape) * 3 + 40
    level = np.log(np.exp(logits).sum(-1, keepdims=True))
    probs = np.exp(logits - level)
    return {"probs": probs, "log_probs": logits - level, "logits": logits}[kind], probs


def schema_of(kind: str, dtype: str, members: int | None, num_classes: int = 7) -> Schema:
    kind, _, name = kind.partition(" ")
    spec = {"name": name, "k": num_classes} if name else None
    return make_schema(num_classes, kind=kind, dtype=dtype, num_members=members, encoding=spec)


def tolerance(kind: str, dtype: str) -> dict[str, float]:
    """What rounding the kind's numbers to the dtype can do to a probability."""
    kind = kind.partition(" ")[0]
    if kind == "counts":
        return {"rtol": 1e-6, "atol": 0}
    log_span = {"probs": 1, "log_probs": 25, "logits": 25}[kind]  # the largest |log p| in the rows
    smallest = 2.0**-25 if dtype == "float16" and kind == "probs" else 0
    arithmetic = 1e-13 if dtype == "float64" else 1e-6
    return {"rtol": 2 * ROUNDOFF[dtype] * log_span + arithmetic, "atol": smallest}


@every_kind
@every_shape
def test_stored_columns_are_what_the_schema_says(
    kind: str, dtype: str, members: int | None
) -> None:
    schema = schema_of(kind, dtype, members)
    rows, _ = given_rows(kind, members)
    columns = encoding_of(schema).encode(rows, schema, 0)
    assert len(columns) == len(schema.content)
    for array, column in zip(columns, schema.content, strict=True):
        assert array.dtype == column.numpy_dtype
        assert array.shape == (len(rows), *column.shape)
        assert array.flags.c_contiguous
    encoding_of(schema).check(columns, schema, 0)


@every_kind
@every_shape
def test_decoding_gives_back_the_distributions(kind: str, dtype: str, members: int | None) -> None:
    schema = schema_of(kind, dtype, members)
    encoding = encoding_of(schema)
    rows, probs = given_rows(kind, members)
    columns = encoding.encode(rows, schema, 0)
    allowed = tolerance(kind, dtype)
    found = encoding.decode(columns, schema)
    np.testing.assert_allclose(found.astype(np.float64), probs, **allowed)
    wide = {"float64": "float64", "float16": "float16" if kind == "probs" else "float32"}
    assert found.dtype == wide.get(dtype, "float32")

    with np.errstate(divide="ignore"):
        logs = encoding.decode(columns, schema, "log_probs").astype(np.float64)
        np.testing.assert_allclose(np.exp(logs), probs, **allowed)
        logits = encoding.decode(columns, schema, "logits").astype(np.float64)
    back = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(back / back.sum(-1, keepdims=True), probs, **allowed)
    with pytest.raises(ArgumentError, match="kind is 'votes'"):
        encoding.decode(columns, schema, "votes")


@every_kind
@every_shape
def test_what_was_decoded_encodes_to_the_same_bytes(
    kind: str, dtype: str, members: int | None
) -> None:
    schema = schema_of(kind, dtype, members)
    encoding = encoding_of(schema)
    rows, _ = given_rows(kind, members)
    columns = encoding.encode(rows, schema, 0)
    if kind not in ("probs", "log_probs"):  # others decode to something else than what came
        again = encoding.encode(rows[:], schema, 0)
    else:
        again = encoding.encode(encoding.decode(columns, schema, kind), schema, 0)
    for one, other in zip(columns, again, strict=True):
        np.testing.assert_array_equal(one, other)


@every_kind
@every_shape
def test_a_batch_has_the_same_bytes_however_it_is_cut(
    kind: str, dtype: str, members: int | None
) -> None:
    schema = schema_of(kind, dtype, members)
    encoding = encoding_of(schema)
    rows, _ = given_rows(kind, members)
    whole = encoding.encode(rows, schema, 0)
    cuts = [0, 1, 4, 11, len(rows)]
    parts = [encoding.encode(rows[a:b], schema, a) for a, b in itertools.pairwise(cuts) if a < b]
    for i, column in enumerate(whole):
        np.testing.assert_array_equal(column, np.concatenate([part[i] for part in parts]))


@every_kind
@every_shape
def test_rows_in_any_order_of_memory_have_the_same_bytes(
    kind: str, dtype: str, members: int | None
) -> None:
    schema = schema_of(kind, dtype, members)
    rows, _ = given_rows(kind, members)
    for one, other in zip(
        encoding_of(schema).encode(rows, schema, 0),
        encoding_of(schema).encode(
            np.asfortranarray(rows.astype(rows.dtype.newbyteorder(">"))), schema, 0
        ),
        strict=True,
    ):
        assert other.flags.c_contiguous
        assert other.tobytes() == one.tobytes()


@every_kind
@every_shape
def test_no_rows_encode_to_no_rows(kind: str, dtype: str, members: int | None) -> None:
    schema = schema_of(kind, dtype, members)
    rows, _ = given_rows(kind, members)
    columns = encoding_of(schema).encode(rows[:0], schema, 5)
    assert [array.shape for array in columns] == [(0, *c.shape) for c in schema.content]
    encoding_of(schema).check(columns, schema, 5)


@every_kind
def test_another_number_of_classes_is_refused_in_the_users_words(kind: str, dtype: str) -> None:
    schema = schema_of(kind, dtype, None, 10)
    rows, _ = given_rows(kind, None, 12, 256)
    with pytest.raises(RowError) as caught:
        encoding_of(schema).encode(rows, schema, 512)
    assert str(caught.value) == (
        "store keeps 10 classes per sample, this batch has 12 (rows 512 to 767)"
    )


@every_kind
def test_other_shapes_are_refused_with_what_was_expected(kind: str, dtype: str) -> None:
    rows, _ = given_rows(kind, 3)
    schema = schema_of(kind, dtype, 4)
    with pytest.raises(RowError, match=r"keeps 4 members per sample, this batch has 3 \(rows 0 to"):
        encoding_of(schema).encode(rows, schema, 0)
    with pytest.raises(RowError, match="members go along the second axis"):
        encoding_of(schema).encode(rows[:, 0], schema, 0)
    schema = schema_of(kind, dtype, None)
    with pytest.raises(RowError, match=r"shape \(n, 7\).*shape \(7,\).*row\[None\]"):
        encoding_of(schema).encode(rows[0, 0], schema, 0)
    with pytest.raises(RowError, match=r"shape \(n, 7\)"):
        encoding_of(schema).encode(rows, schema, 0)


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint16, np.complex64, object, "U3"])
def test_numbers_that_are_no_floats_are_refused(kind: str, dtype: Any) -> None:
    schema = schema_of(kind, "bfloat16", None, 2)
    with pytest.raises(RowError, match="expected floating-point numbers"):
        encoding_of(schema).encode(np.zeros((4, 2)).astype(dtype), schema, 0)


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("stored", list(FLOATS))
@pytest.mark.parametrize("came", ["float16", "float32", ">f4", "float64", "longdouble"])
def test_floats_of_any_width_are_rounded_to_the_schemas_dtype(
    kind: str, stored: str, came: str
) -> None:
    schema = schema_of(kind, stored, None)
    rows, probs = given_rows(kind, None)
    columns = encoding_of(schema).encode(rows.astype(came), schema, 0)
    found = encoding_of(schema).decode(columns, schema)
    # The rows stand at 40, where float16 has steps of 1/32.
    allowed = 0.04 if came == "float16" else 0
    one, other = tolerance(kind, stored), tolerance(kind, "float32")
    np.testing.assert_allclose(
        found.astype(np.float64),
        probs,
        rtol=one["rtol"] + other["rtol"] + allowed,
        atol=one["atol"] + (2.0**-24 if came == "float16" else 0),
    )


def test_bfloat16_arrays_are_taken_for_what_they_are() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    schema = schema_of("probs", "bfloat16", None)
    rows, _ = given_rows("probs", None)
    halves = rows.astype(ml_dtypes.bfloat16)
    columns = encoding_of(schema).encode(halves, schema, 0)
    np.testing.assert_array_equal(columns[0], halves.view(np.uint16))


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused_by_name(kind: str, dtype: str, bad: float) -> None:
    schema = schema_of(kind, dtype, None)
    rows, _ = given_rows(kind, None)
    rows[4, 2] = bad
    with pytest.raises(RowError, match=f"^row 104 .*{bad}.* at class 2"):
        encoding_of(schema).encode(rows, schema, 100)


@pytest.mark.parametrize("dtype", list(FLOATS))
def test_the_error_shows_the_numbers_that_the_caller_knows(dtype: str) -> None:
    schema = schema_of("probs", dtype, None, 2)
    with pytest.raises(RowError, match=r"^row 0 sums to 145.67, expected 1 within"):
        encoding_of(schema).encode(np.array([[145.5, 0.17]]), schema, 0)
    with pytest.raises(RowError, match=r"^row 0 sums to 1e\+10"):
        encoding_of(schema).encode(np.array([[1e10, 0.0]]), schema, 0)
    with pytest.raises(RowError, match="holds -1e-12 at class 1"):  # which float16 rounds to -0
        encoding_of(schema).encode(np.array([[1.0, -1e-12]]), schema, 0)


def test_rows_that_only_rounding_spoils_are_refused_with_the_reason() -> None:
    schema = replace(schema_of("probs", "float16", None, 3000), sum_tolerance=1e-5)
    rows = np.full((2, 3000), 1 / 3000)
    with pytest.raises(RowError, match=r"^rounded to float16, row 0 sums to.*use a wider dtype"):
        encoding_of(schema).encode(rows, schema, 0)


@pytest.mark.parametrize("dtype", list(FLOATS))
@pytest.mark.parametrize("num_classes", [2, 10, 1000, 50_000])
def test_uniform_rows_pass_in_every_dtype_under_the_default_tolerance(
    dtype: str, num_classes: int
) -> None:
    for kind, row in (("probs", 1 / num_classes), ("log_probs", -np.log(num_classes))):
        schema = schema_of(kind, dtype, None, num_classes)
        rows = np.full((1, num_classes), row)
        encoding_of(schema).encode(rows, schema, 0)


def test_log_zero_is_a_log_probability() -> None:
    for dtype in FLOATS:
        schema = schema_of("log_probs", dtype, None, 2)
        columns = encoding_of(schema).encode(np.array([[0.0, -np.inf]]), schema, 0)
        assert encoding_of(schema).decode(columns, schema).tolist() == [[1.0, 0.0]]
        assert encoding_of(schema).decode(columns, schema, "log_probs")[0, 1] == -np.inf


def test_log_of_a_probability_zero_is_minus_infinity_without_a_warning() -> None:
    schema = schema_of("probs", "float32", None, 2)
    logs = encoding_of(schema).decode([np.float32([[1, 0]])], schema, "log_probs")
    assert logs.tolist() == [[0.0, -np.inf]]


# ------------------------------------------------------------------ logits


@every_shape
def test_logits_lie_minus_their_maximum_with_their_level_beside_them(members: int | None) -> None:
    rows, _ = given_rows("logits", members)
    schema = schema_of("logits", "float64", members)
    stored, level = encoding_of(schema).encode(rows, schema, 0)
    np.testing.assert_array_equal(stored, rows - rows.max(-1, keepdims=True))
    np.testing.assert_allclose(level, np.log(np.exp(rows).sum(-1)), rtol=1e-14)
    logits = encoding_of(schema).decode([stored, level], schema, "logits")
    np.testing.assert_allclose(logits, rows, rtol=1e-14)
    assert schema.columns[0].extra == {"shift": "row_max"}


@pytest.mark.parametrize("offset", [15.0, 60.0, 5000.0])
def test_float16_logits_keep_their_probabilities_at_any_level(offset: float) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 1000)) * 3
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    schema = schema_of("logits", "float16", None, 1000)
    columns = encoding_of(schema).encode((logits + offset), schema, 0)
    found = encoding_of(schema).decode(columns, schema).astype(np.float64)
    divergence = (probs * (np.log(probs) - np.log(found))).sum(-1).mean()
    assert divergence < 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_finite_logit_stays_finite_and_a_masked_one_stays_masked(dtype: str) -> None:
    schema = schema_of("logits", dtype, None, 4)
    rows = np.array([[3.0, -1e300, -np.inf, 3.0], [1e30, -3.4e38, 0.0, -np.inf]])
    columns = encoding_of(schema).encode(rows, schema, 0)
    stored = columns[0]
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    assert stored[0].tolist() == [0.0, LOWEST[dtype], -np.inf, 0.0]
    assert stored[1, 0] == 0
    assert LOWEST[dtype] <= stored[1, 1] < 0
    assert stored[1, 3] == -np.inf
    assert encoding_of(schema).decode(columns, schema)[0].tolist() == [0.5, 0, 0, 0.5]
    encoding_of(schema).check(columns, schema, 0)


def test_float32_logits_at_the_ends_of_their_range_do_not_overflow_the_shift() -> None:
    schema = schema_of("logits", "float32", None, 2)
    most = np.finfo(np.float32).max
    stored, _ = encoding_of(schema).encode(np.float32([[most, -most]]), schema, 0)
    assert stored.tolist() == [[0.0, -most]]


def test_logits_without_any_finite_class_are_refused() -> None:
    schema = schema_of("logits", "float32", None, 2)
    with pytest.raises(RowError, match=r"^row 8 is minus infinity for every class"):
        encoding_of(schema).encode(np.float32([[0, 1], [-np.inf, -np.inf]]), schema, 7)


def test_a_level_beyond_float32_is_refused_and_float64_takes_it() -> None:
    rows = np.array([[0.0, 1.0], [1e300, 0.0]])
    schema = schema_of("logits", "float32", None, 2)
    with pytest.raises(RowError, match=r"^row 1 has logits beyond the range.*float64"):
        encoding_of(schema).encode(rows, schema, 0)
    schema = schema_of("logits", "float64", None, 2)
    _, level = encoding_of(schema).encode(rows, schema, 0)
    assert level[1] == 1e300


def test_temperature_is_recorded_and_not_applied() -> None:
    rows, _ = given_rows("logits", None)
    plain = schema_of("logits", "float32", None)
    warm = make_schema(7, kind="logits", temperature=2.0)
    one, other = (encoding_of(s).encode(rows, s, 0) for s in (plain, warm))
    np.testing.assert_array_equal(
        encoding_of(plain).decode(one, plain), encoding_of(warm).decode(other, warm)
    )


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize("dtype", list(COUNTS))
def test_counts_take_any_integer_that_fits_and_refuse_the_next(dtype: str) -> None:
    schema = schema_of("counts", dtype, None, 2)
    most = int(np.iinfo(dtype).max)
    rows = np.array([[0, most]], np.uint64)
    assert encoding_of(schema).encode(rows, schema, 0)[0].tolist() == [[0, most]]
    if most < 2**63:
        with pytest.raises(RowError, match=f"^row 9 holds {most + 1} at class 1.*wider dtype"):
            encoding_of(schema).encode(np.array([[1, most + 1]]), schema, 9)
    with pytest.raises(RowError, match=r"^row 9 holds -1 at class 0.*votes are 0 or more"):
        encoding_of(schema).encode(np.array([[-1, 3]]), schema, 9)


def test_a_row_without_votes_is_refused() -> None:
    schema = schema_of("counts", "uint8", None, 3)
    rows = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(RowError, match=r"^row 1 has no votes \(2 of 3 rows\)"):
        encoding_of(schema).encode(rows, schema, 0)
    with pytest.raises(RowError, match=r"^row 1 has no votes"):
        encoding_of(schema).check([rows.astype(np.uint8)], schema, 0)
    schema = schema_of("counts", "uint8", 2, 2)
    with pytest.raises(RowError, match=r"^row 0, member 1 has no votes"):
        encoding_of(schema).encode(np.array([[[1, 0], [0, 0]]]), schema, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, object])
def test_counts_that_are_no_integers_are_refused(dtype: Any) -> None:
    schema = schema_of("counts", "uint32", None, 2)
    with pytest.raises(RowError, match="expected integers"):
        encoding_of(schema).encode(np.ones((2, 2), dtype), schema, 0)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=6).filter(any))
def test_frequencies_of_any_counts_sum_to_one(votes: list[int]) -> None:
    schema = schema_of("counts", "uint64", None, len(votes))
    columns = encoding_of(schema).encode(np.array([votes], np.uint64), schema, 0)
    found = encoding_of(schema).decode(columns, schema)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], [v / sum(votes) for v in votes], rtol=1e-6)


# ------------------------------------------------------------------ what a reader checks


@every_kind
@every_shape
def test_columns_of_another_dtype_or_shape_are_refused(
    kind: str, dtype: str, members: int | None
) -> None:
    schema = schema_of(kind, dtype, members)
    encoding = encoding_of(schema)
    columns = encoding.encode(given_rows(kind, members)[0], schema, 0)
    with pytest.raises(RowError, match="columns for a schema"):
        encoding.check([*columns, columns[0]], schema, 0)
    with pytest.raises(RowError, match="has dtype int32"):
        encoding.check([columns[0].astype("i4"), *columns[1:]], schema, 0)
    with pytest.raises(RowError, match="expected"):
        encoding.check([columns[0][..., :-1], *columns[1:]], schema, 0)


@pytest.mark.parametrize(
    ("kind", "stored", "message"),
    [
        ("probs", [np.float32([[0.5, 0.6]])], "^row 3 sums to 1.1"),
        ("log_probs", [np.float32([[0.0, 0.0]])], "^row 3 has exponentials that sum to 2"),
        ("logits", [np.float32([[-1.0, -2.0]]), np.float32([0.0])], "^row 3 has the largest logit"),
        ("logits", [np.float32([[0.0, 1.0]]), np.float32([0.0])], "^row 3 has the largest logit"),
        ("logits", [np.float32([[0.0, np.nan]]), np.float32([0.0])], "^row 3 holds nan"),
        ("logits", [np.float32([[0.0, 0.0]]), np.float32([np.inf])], "^row 3 has the logsumexp"),
    ],
)
def test_stored_numbers_that_break_the_promise_are_named(
    kind: str, stored: list[Array], message: str
) -> None:
    schema = schema_of(kind, "float32", None, 2)
    with pytest.raises(RowError, match=message):
        encoding_of(schema).check(stored, schema, 3)


def test_encodings_refuse_kinds_and_dtypes_that_they_cannot_keep() -> None:
    for kind, encoding in (("counts", "dense"), ("probs", "counts")):
        with pytest.raises(ArgumentError, match="encoding keeps"):
            make_schema(3, kind=kind, encoding={"name": encoding})
    with pytest.raises(ArgumentError, match="dtype is 'int8'"):
        make_schema(3, dtype="int8")
    with pytest.raises(ArgumentError, match="kind is 'votes'"):
        make_schema(3, kind="votes")


def test_an_unknown_encoding_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'topq' is not known"):
        make_schema(3, encoding={"name": "topq"})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("probs", {"num_classes": 8}),
        ("probs", {"num_members": 2}),
        ("probs", {"kind": "log_probs"}),
        ("probs", {"kind": "logits"}),
        ("probs", {"kind": "counts"}),
        ("logits", {"kind": "probs"}),
        ("logits", {"columns": schema_of("logits", "float32", None).columns[:1]}),
        ("logits", {"columns": schema_of("logits", "float32", None).columns[::-1]}),
        ("probs", {"encoding": {"name": "counts"}}),
        ("counts", {"encoding": {"name": "dense"}}),
    ],
)
def test_a_schema_whose_columns_are_not_its_encodings_is_refused(
    kind: str, change: dict[str, Any]
) -> None:
    schema = replace(make_schema(7, kind=kind), **change)
    with pytest.raises(FormatError, match=r"the store begins with|contradicts itself"):
        encoding_of(schema)


def test_logits_of_another_shift_are_refused_and_newer_keys_are_not() -> None:
    schema = schema_of("logits", "float32", None)
    logits, level = schema.columns
    other = replace(schema, columns=(replace(logits, extra={"shift": "mean"}), level))
    with pytest.raises(FormatError, match="the store begins with"):
        encoding_of(other)
    newer = replace(logits, extra={"shift": "row_max", "more": 1})
    assert encoding_of(replace(schema, columns=(newer, level))).name == "dense"


def test_every_encoding_says_its_own_name() -> None:
    for name in ENCODINGS:
        kind = "counts" if name == "counts" else "probs"
        needed = {"topk": {"k": 2}, "sampled": {"num_draws": 5}}.get(name, {})
        schema = make_schema(3, kind=kind, encoding={"name": name, **needed})
        assert encoding_of(schema).name == name
        assert schema.requires == (() if name in ("dense", "counts") else (name,))
