"""Top-k rows: which classes are kept, what the rest weighs, what is made of it; the oracle is float64, all classes."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fostore
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.selection import select, selected
from fostore.encodings.topk_rows import RULES, Selected, masses
from fostore.errors import ArgumentError, FormatError, IdentityError, RowError
from fostore.places.memory import Memory
from fostore.schema.row import FLOATS, Array, Schema

SUFFIXES = (".zarr", ".h5")
KINDS = ("probs", "log_probs", "logits")
K, KEPT = 300, 20
T = 2.0

every_kind = pytest.mark.parametrize("kind", KINDS)
every_shape = pytest.mark.parametrize("members", [None, 2])


def given_rows(kind: str, members: int | None = None, n: int = 12, num_classes: int = K) -> Array:
    """Rows of a kind, float64: some peaked, some flat, with classes that are excluded and numbers that are equal."""
    rng = np.random.default_rng(5)
    shape = (n, num_classes) if members is None else (n, members, num_classes)
    logits = np.round(rng.normal(size=shape) * rng.uniform(0.3, 4, shape[:-1])[..., None], 1) + 30
    logits[1, ..., ::3] = -np.inf
    logits[2] = 30
    logits[3, ..., 7] = 90
    return {"probs": softmax(logits), "log_probs": log_softmax(logits), "logits": logits}[kind]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: Array) -> Array:
    return np.exp(log_softmax(logits))


def logits_of(rows: Array, kind: str) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(rows) if kind == "probs" else rows


def schema_of(
    kind: str, dtype: str = "float64", members: int | None = None, k: int = KEPT, **spec: Any
) -> Schema:
    return make_schema(
        spec.pop("num_classes", K),
        kind=kind,
        dtype=dtype,
        num_members=members,
        encoding={"name": "topk", "k": k, **spec},
    )


def encoded(rows: Any, schema: Schema) -> dict[str, Array]:
    columns = encoding_of(schema).encode(rows, schema, 0)
    return {c.name: array for c, array in zip(schema.content, columns, strict=True)}


def in_order(rows: Array, k: int = KEPT) -> Array:
    """The oracle: a stable sort of everything."""
    return np.argsort(-rows, axis=-1, kind="stable")[..., :k]


# ------------------------------------------------------------------ which classes


@given(
    st.data(),
    st.sampled_from([3, 64, 65, 130, 1000]),
    st.sampled_from(["float32", "float64"]),
)
def test_the_k_largest_are_those_of_a_stable_sort(data: Any, num_classes: int, dtype: str) -> None:
    few = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1.0, 1.5])
    any_float = st.floats(allow_nan=False, max_value=2.0**99, width=32)
    rows = data.draw(hnp.arrays(dtype, (3, num_classes), elements=few | any_float))
    k = data.draw(st.integers(1, num_classes))
    np.testing.assert_array_equal(select(rows, k), in_order(rows, k))


@given(st.data(), st.integers(2, 90), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_any_logits_keep_their_probabilities_within_rounding(
    data: Any, num_classes: int, dtype: str
) -> None:
    number = st.sampled_from([-np.inf, 0.0, -1e5, 700.0]) | st.floats(-300, 300, width=32)
    rows = data.draw(hnp.arrays(np.float32, (2, num_classes), elements=number))
    rows[:, data.draw(st.integers(0, num_classes - 1))] = 1.5  # one class is possible at least
    k = data.draw(st.integers(1, num_classes))
    spec: dict[str, Any] = {"temperatures": [0.5, T], "tail_entropy": True}
    schema = schema_of("logits", dtype, k=k, num_classes=num_classes, **spec)
    kept = encoded(rows, schema)  # which checks what is stored
    topk = encoding_of(schema).sparse(list(kept.values()), schema)
    assert topk is not None
    true = log_softmax(rows.astype(np.float64))
    known = np.take_along_axis(true, topk.ids.astype(int), -1)
    probs = masses(topk)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-12)
    values = topk.values.astype(np.float64)
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}[dtype]
    with np.errstate(divide="ignore"):
        found = np.log(probs[:, :-1])
    seen = known > -700  # where float64 has a probability
    least = np.where(seen, values, 0).min(-1, keepdims=True)
    allowed = np.broadcast_to(unit * np.abs(least) + 4e-5, seen.shape)
    assert (np.abs(found[seen] - known[seen]) <= allowed[seen]).all()
    assert (found[~seen] < -600).all()


@pytest.mark.parametrize("num_classes", [1000, 21_841, 128_256])
@pytest.mark.parametrize("ties", [False, True])
def test_wide_rows_are_selected_as_narrow_ones(num_classes: int, ties: bool) -> None:
    rows = np.random.default_rng(num_classes).normal(size=(11, num_classes)).astype(np.float32)
    rows = np.round(rows, 1) if ties else rows
    rows[0], rows[1, :-3] = 1, -np.inf
    np.testing.assert_array_equal(select(rows, 64), in_order(rows, 64))


@every_kind
@every_shape
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_kept_are_the_largest_in_order_and_rounding_is_bounded(
    kind: str, members: int | None, dtype: str
) -> None:
    rows = given_rows(kind, members)
    schema = schema_of(kind, dtype, members)
    encoding = encoding_of(schema)
    kept = encoded(rows, schema)
    encoding.check(list(kept.values()), schema, 0)
    assert kept["ids"].dtype == np.uint16
    expected = in_order(rows)
    np.testing.assert_array_equal(np.sort(kept["ids"]), np.sort(expected))
    logs = log_softmax(logits_of(rows, kind))
    topk = encoding.sparse(list(kept.values()), schema)
    assert topk is not None
    values = topk.values.astype(np.float64)
    scale = np.logaddexp(np.log(np.exp(values).sum(-1)), topk.residual)
    found, true = values - scale[..., None], np.take_along_axis(logs, kept["ids"].astype(int), -1)
    roundoff = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 3e-6, "float64": 1e-12}[dtype]
    if kind == "probs":  # relative to the number itself, and to nothing under the smallest
        least = {"float16": 2.0**-24}.get(dtype, 0.0)
        np.testing.assert_allclose(np.exp(found), np.exp(true), rtol=roundoff, atol=least)
        return
    # Half a unit of the number itself, and no more of the others, which the scale of a row sums.
    widest = np.abs(values).max(-1, keepdims=True)
    assert (np.abs(found - true) <= roundoff * widest + 2e-7).all()


def test_rounding_makes_equal_numbers_which_are_sorted_again() -> None:
    rows = np.array([[0.0, -10.001, -10.0, -20.0]])  # both are -10 in float16
    kept = encoded(rows, schema_of("logits", "float16", k=3, num_classes=4))
    assert kept["ids"].tolist() == [[0, 1, 2]]
    assert kept["values"].tolist() == [[0, -10, -10]]


@every_kind
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_classes_that_are_excluded_fill_up_a_row(kind: str, dtype: str) -> None:
    logits = np.full((1, K), -np.inf)
    logits[0, [200, 7, 8]] = 30.0, 31.0, 31.0
    rows = {"probs": softmax, "log_probs": log_softmax}.get(kind, np.array)(logits)
    schema = schema_of(kind, dtype, temperatures=[T], tail_entropy=True)
    kept = encoded(rows, schema)
    assert kept["ids"][0].tolist() == [7, 8, 200, *range(7), *range(9, 19)]
    assert kept["residual"][0] == kept["residual_t"][0, 0] == -np.inf
    assert kept["tail_entropy"][0] == 0
    for rule in RULES[1:]:
        for temperature in (1.0, T):
            p = encoding_of(schema).decode(list(kept.values()), schema, "probs", temperature, rule)
            np.testing.assert_allclose(p, softmax(logits / temperature), rtol=0.02)


def test_many_classes_take_wide_numbers() -> None:
    rows = np.zeros((1, 65_537), np.float32)
    rows[0, 65_536] = 1
    kept = encoded(rows, schema_of("logits", "float32", k=1, num_classes=65_537))
    assert kept["ids"].tolist() == [[65_536]]
    assert kept["ids"].dtype == np.uint32


# ------------------------------------------------------------------ what the rest weighs


def rest_of(rows: Array, kind: str, temperature: float = 1.0, k: int = KEPT) -> Array:
    """Logarithms of the weights of the classes that are not kept; those that are have none."""
    logs = logits_of(rows, kind).copy()
    if kind == "logits":
        logs -= logs.max(-1, keepdims=True)
    np.put_along_axis(logs, in_order(rows, k), -np.inf, -1)
    return logs / temperature


@every_kind
@every_shape
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_rest_is_summed_from_its_own_classes(
    kind: str, members: int | None, dtype: str
) -> None:
    rows = given_rows(kind, members)
    kept = encoded(rows, schema_of(kind, dtype, members, temperatures=[4.0, T], tail_entropy=True))
    tight = {"rtol": 1e-12} if dtype == "float64" else {"rtol": 2e-6}
    for name, temperature, at in (("residual", 1, ...), ("residual_t", T, 0), ("residual_t", 4, 1)):
        found = kept[name] if name == "residual" else kept[name][..., at]
        weights = np.exp(rest_of(rows, kind, temperature)).sum(-1)
        np.testing.assert_allclose(np.exp(found.astype(np.float64)), weights, **tight)
    if kind == "logits":
        level = np.log(np.exp(rows).sum(-1))
        np.testing.assert_allclose(kept["logsumexp"], level, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rest_that_is_nearly_nothing_keeps_its_digits(dtype: Any) -> None:
    rows = np.array([[0, -200.5, -201.5, -np.inf], [0, -1, -np.inf, -np.inf]], dtype)
    chosen = selected(rows, "logits", 1, (T,))
    expected = -200.5 + np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(chosen.residual, [expected, -1], rtol=1e-7)
    np.testing.assert_allclose(chosen.residual_t[0, 0], -100.25 + np.log1p(np.exp(-0.5)), rtol=1e-7)
    assert selected(rows, "logits", 2).residual[1] == -np.inf


@every_kind
def test_the_divergence_of_the_uniform_rule_is_known_from_the_store(kind: str) -> None:
    rows = given_rows(kind)
    schema = schema_of(kind, tail_entropy=True)
    kept = encoded(rows, schema)
    p = softmax(logits_of(rows, kind))
    q = encoding_of(schema).decode(list(kept.values()), schema, rule="uniform")
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(p > 0, p * np.log(p / q), 0).sum(-1)
    mass = np.exp(rest_of(rows, kind)).sum(-1) / np.exp(rest_of(rows, kind, k=0)).sum(-1)
    known = mass * (np.log(K - KEPT) - kept["tail_entropy"])
    np.testing.assert_allclose(known, divergence, atol=1e-9)


@every_kind
@pytest.mark.parametrize("cut", [1, 5])
def test_a_row_has_the_same_bytes_whatever_batch_it_comes_in(kind: str, cut: int) -> None:
    rows = given_rows(kind, num_classes=20_000).astype(np.float32)
    schema = schema_of(kind, "float32", num_classes=20_000, temperatures=[T], tail_entropy=True)
    whole, one = encoded(rows, schema), encoded(rows[cut:], schema)
    for name, array in whole.items():
        np.testing.assert_array_equal(array[cut:], one[name])


# ------------------------------------------------------------------ what is made of it


def by_rule(rows: Array, kind: str, rule: str, temperature: float = 1.0) -> Array:
    """Dense probabilities as spec/encodings.md defines them, from the rows themselves."""
    ids = in_order(rows)
    logs = logits_of(rows, kind)
    softened = softmax(logs / temperature)
    kept = np.take_along_axis(softened, ids, -1)
    rest = 1 - kept.sum(-1, keepdims=True)
    each = np.zeros_like(rest)
    if rule == "renorm":
        kept = kept / kept.sum(-1, keepdims=True)
    if rule == "uniform":
        p = softmax(logs)
        powers = np.take_along_axis(p, ids, -1) ** (1 / temperature)
        np.put_along_axis(p, ids, 0, -1)
        mean = p.sum(-1, keepdims=True) / (K - KEPT)
        total = powers.sum(-1, keepdims=True) + (K - KEPT) * mean ** (1 / temperature)
        kept, each = powers / total, mean ** (1 / temperature) / total
    dense = np.repeat(each, K, -1)
    np.put_along_axis(dense, ids, kept, -1)
    return dense


@every_kind
@every_shape
@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("temperature", [1.0, T])
def test_the_rules_are_those_of_the_specification(
    kind: str, members: int | None, rule: str, temperature: float
) -> None:
    rows = given_rows(kind, members)
    schema = schema_of(kind, members=members, rule=rule, temperatures=[T])
    columns = list(encoded(rows, schema).values())
    encoding = encoding_of(schema)
    found = encoding.decode(columns, schema, "probs", temperature)
    np.testing.assert_allclose(found, by_rule(rows, kind, rule, temperature), atol=1e-13, rtol=1e-9)
    logs = encoding.decode(columns, schema, "log_probs", temperature)
    np.testing.assert_allclose(np.exp(logs), found, rtol=1e-12)
    if rule == "zero":
        with pytest.raises(ArgumentError, match="which logits cannot say"):
            encoding.decode(columns, schema, "logits", temperature)
        return
    logits = encoding.decode(columns, schema, "logits", temperature)
    np.testing.assert_allclose(softmax(logits * temperature), by_rule(rows, kind, rule), atol=1e-12)
    level = np.log(np.exp(logits * temperature).sum(-1))
    np.testing.assert_allclose(level, np.log(np.exp(logits_of(rows, kind)).sum(-1)), atol=1e-9)


@every_kind
def test_coarse_masses_sum_to_one_and_keep_what_each_class_had(kind: str) -> None:
    rows = given_rows(kind)
    schema = schema_of(kind, temperatures=[T])
    topk = encoding_of(schema).sparse(list(encoded(rows, schema).values()), schema)
    assert topk is not None
    for temperature, rest in ((1, topk.residual), (T, topk.residual_t[:, 0])):
        weights = np.exp(np.concatenate([topk.values / temperature, rest[:, None]], -1))
        masses = weights / weights.sum(-1, keepdims=True)
        true = softmax(logits_of(rows, kind) / temperature)
        kept = np.take_along_axis(true, topk.ids.astype(int), -1)
        np.testing.assert_allclose(masses[:, :-1], kept, rtol=1e-9)
        np.testing.assert_allclose(masses[:, -1], 1 - kept.sum(-1), atol=1e-12)


def test_rows_of_all_classes_are_whole_by_any_rule() -> None:
    rows = given_rows("logits")
    schema = schema_of("logits", k=K)
    columns = list(encoded(rows, schema).values())
    for rule in (None, *RULES):
        found = encoding_of(schema).decode(columns, schema, rule=rule)
        np.testing.assert_allclose(found, softmax(rows), rtol=1e-10)


def test_fewer_are_kept_of_those_that_are_and_the_rest_is_that_of_the_model() -> None:
    rows = given_rows("logits")
    more = schema_of("logits", temperatures=[T, 4.0], tail_entropy=True)
    less = schema_of("logits", k=5, temperatures=[4.0], tail_entropy=True, rule="uniform")
    columns = list(encoded(rows, more).values())
    found = encoding_of(more).recast(columns, more, less, 0)
    for one, (name, other) in zip(found, encoded(rows, less).items(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9, err_msg=name)
    for schema, of in (
        (schema_of("logits", k=6), less),
        (schema_of("logits", k=5, temperatures=[3.0]), less),
        (schema_of("logits", k=5, tail_entropy=True), schema_of("logits")),
    ):
        columns = list(encoded(rows, of).values())
        with pytest.raises(ArgumentError, match=r"cannot be"):
            encoding_of(of).recast(columns, of, schema, 0)


# ------------------------------------------------------------------ what is refused


@every_kind
@every_shape
def test_what_a_device_selected_has_the_bytes_of_the_whole_row(
    kind: str, members: int | None
) -> None:
    rows = given_rows(kind, members).astype(np.float32)
    schema = schema_of(kind, "float16", members, temperatures=[T], tail_entropy=True)
    flat = selected(rows.reshape(-1, K), kind, KEPT, (T,), tail_entropy=True)
    chosen = Selected(
        *(a if a is None else a.reshape(*rows.shape[:-1], *a.shape[1:]) for a in flat)
    )
    for name, array in encoded(chosen, schema).items():
        np.testing.assert_array_equal(array, encoded(rows, schema)[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual_t": None}, "selected residual_t have none, expected the shape"),
        ({"logsumexp": np.zeros(3)}, r"selected logsumexp have \(3,\), expected the shape \(12,\)"),
        ({"ids": np.zeros((12, 3), int)}, r"shape \(12, 3\), expected \(n, 20\)"),
        ({"ids": np.zeros((12, KEPT))}, "selected ids have dtype float64, expected integers"),
        ({"ids": np.full((12, KEPT), K)}, "row 4 names a class that is not among 300"),
        ({"ids": np.zeros((12, KEPT), int)}, "row 4 is out of order|row 4 names a class twice"),
        ({"values": np.ones((12, KEPT))}, "row 4 has a largest logit other than 0"),
        ({"residual": np.full(12, 9.0)}, "row 4 has a residual that 280 classes"),
    ],
)
def test_what_a_device_selected_is_checked(change: dict[str, Any], message: str) -> None:
    schema = schema_of("logits", temperatures=[T])
    chosen = selected(given_rows("logits"), "logits", KEPT, (T,))
    with pytest.raises(RowError, match=message):
        encoding_of(schema).encode(chosen._replace(**change), schema, 4)


def spoiled(name: str, at: Any, value: Any) -> Any:
    def spoil(columns: dict[str, Array]) -> None:
        columns[name][at] = value(columns[name]) if callable(value) else value

    return spoil


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        (
            "logits",
            spoiled("values", (3, 4), np.nan),
            "row 53 holds a value that is none of logits",
        ),
        ("probs", spoiled("values", (3, 19), -0.1), "row 53 holds a value that is none of probs"),
        ("logits", spoiled("values", (3, 4), 0), "row 53 is out of order"),
        ("logits", spoiled("ids", (2, 0), 5), "row 52 is out of order"),
        ("logits", spoiled("ids", (0, 3), lambda ids: ids[0, 0]), "row 50 names a class twice"),
        ("logits", spoiled("ids", (0, 3), K), "row 50 names a class that is not among 300"),
        (
            "logits",
            spoiled("values", 4, lambda v: v[4] - 1),
            "row 54 has a largest logit other than 0",
        ),
        ("logits", spoiled("residual", 4, np.nan), "row 54 has a residual that is no number"),
        ("logits", spoiled("residual", 4, np.inf), "row 54 has a residual that is no number"),
        ("logits", spoiled("residual", 3, 0.0), "row 53 has a residual that 280 classes"),
        ("probs", spoiled("residual", 4, -np.inf), "row 54 and its rest do not sum to 1"),
        ("log_probs", spoiled("values", 2, lambda v: v[2] - 1), "row 52"),
        ("logits", spoiled("logsumexp", 1, np.inf), "row 51 has a logsumexp that is not finite"),
        (
            "logits",
            spoiled("residual_t", (1, 0), 9.0),
            "row 51 has a residual_t at 2 that its rest",
        ),
        ("logits", spoiled("residual_t", (1, 0), -np.inf), "row 51 has a residual_t at 2"),
        ("logits", spoiled("tail_entropy", 1, 6.0), "row 51 has a tail_entropy that no"),
        ("logits", spoiled("tail_entropy", 1, np.nan), "row 51 has a tail_entropy that no"),
    ],
)
def test_a_row_that_is_no_row_of_the_largest_is_named(kind: str, spoil: Any, message: str) -> None:
    schema = schema_of(kind, temperatures=[T], tail_entropy=True)
    columns = encoded(given_rows(kind), schema)
    spoil(columns)
    with pytest.raises(RowError, match=f"^{message}"):
        encoding_of(schema).check(list(columns.values()), schema, 50)


def test_a_rest_where_nothing_is_left_is_refused() -> None:
    schema = schema_of("logits", k=K)
    columns = encoded(given_rows("logits"), schema)
    columns["residual"][3] = -5
    with pytest.raises(RowError, match="row 3 has a residual that 0 classes"):
        encoding_of(schema).check(list(columns.values()), schema, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"k": 0}, "k is 0, expected an integer of at least 1"),
        ({"k": 301}, "k is 301, expected at most 300"),
        ({"k": 2.5}, "k is 2.5"),
        ({"k": 2, "rule": "best"}, r"rule is 'best', expected one of \['coarse'"),
        ({"k": 2, "temperatures": [0]}, "expected numbers above 0"),
        ({"k": 2, "temperatures": "warm"}, "expected numbers above 0"),
        ({"k": 2, "tail_entropy": 1}, "tail_entropy is 1, expected True or False"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_schema(K, encoding={"name": "topk", **spec})


@pytest.mark.parametrize(
    "change",
    [
        {"k": 21},
        {"k": "20"},
        {"rule": None},
        {"rule": "best"},
        {"temperatures": [4.0, 2.0]},
        {"temperatures": [2.0, 2.0]},
        {"temperatures": [2.0]},
        {"tail_entropy": True},
        {"derived": False},
    ],
)
def test_a_schema_whose_parameters_are_not_those_of_its_columns_is_refused(
    change: dict[str, Any],
) -> None:
    schema = schema_of("logits", temperatures=[2.0, 4.0])
    encoding = {**schema.encoding, **change}
    with pytest.raises(FormatError):
        encoding_of(replace(schema, encoding={k: v for k, v in encoding.items() if v is not None}))


# ------------------------------------------------------------------ stores


def made(path: Path, rows: Array, **options: Any) -> fostore.Store:
    options = {"kind": "logits", "dtype": "float16", "encoding": "topk", "k": KEPT, **options}
    members = rows.shape[1] if rows.ndim == 3 else None
    with fostore.create(
        path, num_samples=len(rows), num_classes=rows.shape[-1], num_members=members, **options
    ) as writer:
        writer.append(rows)
    return fostore.open(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@every_shape
def test_a_store_gives_what_it_keeps_and_whole_rows_by_a_rule(
    tmp_path: Path, suffix: str, members: int | None
) -> None:
    rows = given_rows("logits", members, 40)
    with made(tmp_path / f"a{suffix}", rows, temperatures=(T,)) as store:
        assert store.verify() == []
        assert store.header.schema.requires == ("topk",)
        assert dict(store.schema.encoding) == {
            "name": "topk",
            "k": KEPT,
            "rule": "coarse",
            "temperatures": [T],
        }
        at = [7, 3, 3, 39]
        topk = store.take_topk(at)
        assert isinstance(topk, fostore.TopK)
        np.testing.assert_array_equal(topk.ids, store.take_column("ids", at))
        np.testing.assert_array_equal(topk.residual_t, store.take_column("residual_t", at))
        assert (topk.num_classes, topk.rule, topk.temperatures) == (K, "coarse", (T,))
        np.testing.assert_array_equal(store.select(at).take_topk([0, 1]).ids, topk.ids[:2])
        for rule in RULES[1:]:
            for temperature in (1.0, T):
                dense = store.take(at, rule=rule, temperature=temperature)
                assert dense.dtype == np.float32
                expected = by_rule(rows, "logits", rule, temperature)[at]
                np.testing.assert_allclose(dense, expected, rtol=0.03, atol=1e-6)
        np.testing.assert_array_equal(
            store.select(at).take([1], rule="renorm"), store.take([3], rule="renorm")
        )


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_rows_are_the_same_behind_a_url_and_in_another_process(tmp_path: Path, suffix: str) -> None:
    rows, at = given_rows("logits", n=50), [3, 49, 0, 3]
    path = tmp_path / f"b{suffix}"
    with made(tmp_path / "a.zarr", rows, temperatures=(T,)) as oracle:
        expected = oracle.take_topk(at)
        fostore.convert(oracle, path, progress=False)
    with fostore.open(Memory.of(f"memory://b{suffix}", path)) as store:
        for opened in (store, pickle.loads(pickle.dumps(store))):
            topk = opened.take_topk(at)
            for name in ("values", "ids", "residual", "residual_t"):
                np.testing.assert_array_equal(getattr(topk, name), getattr(expected, name))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_rows_never_surprise(tmp_path: Path, suffix: str) -> None:
    rows = given_rows("logits", num_classes=5000)
    with made(tmp_path / f"a{suffix}", rows) as store:
        for ask in (lambda: store.take([0], rule="coarse"), lambda: store.array):
            with pytest.raises(ArgumentError, match=r"take_topk\(rows\)|column\(name\)"):
                ask()
        with pytest.raises(ArgumentError, match=r"take\(rows, rule='uniform'\)"):
            store.take([0])
        with pytest.raises(ArgumentError, match="rule is 'best', expected one of"):
            store.take([0], rule="best")
        with pytest.raises(
            ArgumentError, match=r"temperatures \[1.0\], not at 3.*temperatures=\(3,\)"
        ):
            store.take([0], rule="zero", temperature=3)
    with made(tmp_path / f"b{suffix}", rows, rule="renorm") as store:
        with pytest.raises(ArgumentError, match="over 4,096, the rule is to be named"):
            store.take([0])
        assert store.take([0], rule="renorm").shape == (1, 5000)
    with made(tmp_path / f"c{suffix}", rows[:, :K], rule="renorm") as store:
        np.testing.assert_array_equal(store[0], store.take([0], rule="renorm")[0])
    one_outcome = r"by the rule 'coarse' all others are one outcome"
    with (
        made(tmp_path / f"d{suffix}", rows[:, :K]) as store,
        pytest.raises(ArgumentError, match=one_outcome),
    ):
        store.take([0])
    with made(tmp_path / f"e{suffix}", rows, encoding=None, k=None) as store:
        with pytest.raises(ArgumentError, match=r"keeps every class of every row: take\(rows\)"):
            store.take_topk([0])
        with pytest.raises(ArgumentError, match="rows of the encoding 'dense' hold every class"):
            store.take([0], rule="uniform")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_goes_on_with_the_same_parameters_alone(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"a{suffix}", given_rows("logits")
    options: dict[str, Any] = {"kind": "logits", "encoding": "topk", "k": KEPT}
    with fostore.create(path, num_samples=12, num_classes=K, **options) as writer:
        writer.append(rows[:5])
    for other in ({"k": 3}, {"rule": "zero"}, {"temperatures": (T,)}):
        with pytest.raises(IdentityError, match="encoding is"):
            fostore.create(path, exists="resume", **{**options, **other})
    with fostore.create(path, exists="resume", **options) as writer:
        writer.append(selected(rows[5:], "logits", KEPT))
    with fostore.open(path) as store, made(tmp_path / "b.zarr", rows, dtype="float32") as other:
        assert store.verify() == []
        assert store.digest() == other.digest()


def test_rows_that_were_selected_go_to_a_store_that_keeps_as_many(tmp_path: Path) -> None:
    chosen = selected(given_rows("logits"), "logits", KEPT)
    with (
        fostore.create(tmp_path / "a.zarr", num_classes=K, kind="logits") as writer,
        pytest.raises(RowError, match="keeps every class"),
    ):
        writer.append(chosen)


def test_k_without_an_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"\['k'\] are parameters of an encoding"):
        fostore.create(tmp_path / "a.zarr", num_classes=K, k=3)
    with pytest.raises(ArgumentError, match=r"\['k'\] were given beside encoding and in it"):
        fostore.create(tmp_path / "a.zarr", num_classes=K, encoding={"name": "topk", "k": 3}, k=3)
    with pytest.raises(ArgumentError, match="'dense' has no parameter 'k'"):
        fostore.create(tmp_path / "a.zarr", num_classes=K, encoding="dense", k=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_128_256_classes_are_written_and_read_in_little_memory(
    tmp_path: Path, suffix: str
) -> None:
    num_classes, n = 128_256, 1000
    batch = np.random.default_rng(0).normal(size=(20, num_classes)).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    tracemalloc.start()
    try:
        options: dict[str, Any] = {
            "kind": "logits",
            "dtype": "float16",
            "encoding": "topk",
            "k": 64,
        }
        with fostore.create(path, num_samples=n, num_classes=num_classes, **options) as writer:
            for _ in range(n // len(batch)):
                writer.append(batch)
        with fostore.open(path) as store:
            assert store.verify() == []
            topk = store.take_topk(np.arange(n))
            expected = np.sort(in_order(batch, 64))
            np.testing.assert_array_equal(np.sort(topk.ids[20:40]), expected)
            assert store.take([999], rule="uniform").sum() == pytest.approx(1)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # all rows would take 489 MiB
    finally:
        tracemalloc.stop()
    assert sum(store.schema.row_bytes) == 64 * (2 + 4) + 8


# ------------------------------------------------------------------ computed again


@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nearly_equal_classes_may_change_places_and_others_may_not(kind: str, dtype: str) -> None:
    logits = np.random.default_rng(0).normal(size=(30, 200)) * 3
    logits[:, 7] = np.sort(logits, axis=-1)[:, -8] + 1e-7  # beside the last one that is kept
    noisy = logits + np.random.default_rng(1).normal(size=logits.shape) * 1e-5
    schema = make_schema(
        200, kind=kind, dtype=dtype, encoding={"name": "topk", "k": 8, "rule": "coarse"}
    )
    encoding = encoding_of(schema)

    def columns(x: Array) -> list[Array]:
        logs = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
        rows = {"logits": x, "log_probs": logs, "probs": np.exp(logs)}[kind]
        return encoding.encode(rows, schema, 0)

    stored, again = columns(logits), columns(noisy)
    assert (stored[1] != again[1]).any()
    assert not encoding.disagrees(stored, again, schema, 2.0**-10).any()
    assert encoding.disagrees(stored, columns(logits / 1.1), schema, 2.0**-10).all()
    other = [column.copy() for column in stored]
    # Another class, the same numbers.
    other[1][3, 0] = next(c for c in range(200) if c not in stored[1][3])
    assert np.flatnonzero(encoding.disagrees(stored, other, schema, 2.0**-10)).tolist() == [3]


# ------------------------------------------------------------------ as text


@pytest.mark.parametrize("kind", ["probs", "logits"])
@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_minus_infinity_goes_through_text(kind: str, k: int, suffix: str, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 8))
    logits[3, 1:] = -np.inf
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    options: Any = {"num_samples": 20, "num_classes": 8, "kind": kind, "encoding": "topk", "k": k}
    with fostore.create(tmp_path / "a.zarr", **options) as writer:
        writer.append(probs if kind == "probs" else logits)
    fostore.convert(tmp_path / "a.zarr", tmp_path / f"b{suffix}", progress=False)
    fostore.convert(tmp_path / f"b{suffix}", tmp_path / "c.zarr", progress=False)
    assert fostore.open(tmp_path / "c.zarr").digest() == fostore.open(tmp_path / "a.zarr").digest()
