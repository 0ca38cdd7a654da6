"""Codes and draws: what u16_affine, u8_log_sqrt and sampled promise, on numbers alone and through every verb."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fostore
from fostore import encodings
from fostore.conversion import convert
from fostore.conversion.stacking import stack
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.codes import DEEPEST
from fostore.encodings.uniform import uniform
from fostore.errors import ArgumentError, DamageError, RowError, UnsupportedError
from fostore.schema.row import Array, Schema
from support import SUFFIXES, plain_rows

K = 7
CODES = {"u16_affine": 65535, "u8_log_sqrt": 255}
"""The code of minus infinity."""
KINDS = ("probs", "log_probs", "logits")
SPECS: list[tuple[dict[str, Any], str]] = [
    *(({"name": name}, kind) for name in CODES for kind in KINDS),
    ({"name": "sampled", "num_draws": 5, "seed": 0}, "probs"),
    ({"name": "sampled", "num_draws": 40, "seed": 3, "proposal_temperature": 1.5}, "probs"),
]

every_spec = pytest.mark.parametrize(
    ("spec", "kind"), SPECS, ids=[f"{spec['name']}-{kind}-{len(spec)}" for spec, kind in SPECS]
)
every_code = pytest.mark.parametrize("name", list(CODES))
every_shape = pytest.mark.parametrize("members", [None, 3])


def log_softmax(x: Array) -> Array:
    """In float64: the oracle."""
    shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def given_rows(kind: str, members: int | None = None, n: int = 20, num_classes: int = K) -> Array:
    """Rows of a kind, float64, around a level of 40."""
    shape = (n, num_classes) if members is None else (n, members, num_classes)
    logits = np.random.default_rng(3).normal(size=shape) * 3 + 40
    logs = log_softmax(logits)
    return {"probs": np.exp(logs), "log_probs": logs, "logits": logits}[kind]


def schema_of(spec: Any, kind: str, members: int | None = None, num_classes: int = K) -> Schema:
    spec = {"name": spec} if isinstance(spec, str) else spec
    return make_schema(num_classes, kind=kind, encoding=spec, num_members=members)


def assert_same(one: list[Array], other: list[Array]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------ the seam


@every_spec
@every_shape
def test_stored_columns_are_what_the_schema_says(
    spec: dict[str, Any], kind: str, members: int | None
) -> None:
    schema = schema_of(spec, kind, members)
    rows = given_rows(kind, members)
    columns = encoding_of(schema).encode(rows, schema, 0)
    for array, column in zip(columns, schema.content, strict=True):
        assert array.dtype == column.numpy_dtype
        assert array.shape == (len(rows), *column.shape)
        assert array.flags.c_contiguous
    encoding_of(schema).check(columns, schema, 0)
    nothing = encoding_of(schema).encode(rows[:0], schema, 5)
    assert [array.shape for array in nothing] == [(0, *c.shape) for c in schema.content]
    encoding_of(schema).check(nothing, schema, 5)
    assert encoding_of(schema).decode(nothing, schema).shape == (0, *schema.row_shape)


@every_spec
@every_shape
def test_a_batch_has_the_same_bytes_however_it_is_cut_and_lies_in_memory(
    spec: dict[str, Any], kind: str, members: int | None
) -> None:
    schema = schema_of(spec, kind, members)
    encoding, rows = encoding_of(schema), given_rows(kind, members)
    whole = encoding.encode(rows, schema, 7)
    cuts = [0, 1, 4, 11, len(rows)]
    pieces = [encoding.encode(rows[a:b], schema, 7 + a) for a, b in itertools.pairwise(cuts)]
    assert_same(whole, [np.concatenate(column) for column in zip(*pieces, strict=True)])
    strange = np.asfortranarray(rows.astype(rows.dtype.newbyteorder(">")))
    assert_same(whole, encoding.encode(strange, schema, 7))


@every_spec
def test_rows_that_are_no_distributions_are_refused_by_name(
    spec: dict[str, Any], kind: str
) -> None:
    schema = schema_of(spec, kind)
    encode = encoding_of(schema).encode
    for bad in (np.nan, np.inf):
        rows = given_rows(kind)
        rows[4, 2] = bad
        with pytest.raises(RowError, match=f"^row 104 .*{bad}.* at class 2"):
            encode(rows, schema, 100)
    if kind != "logits":
        with pytest.raises(RowError, match=r"^row 0 (sums|has exponentials)"):
            encode(given_rows("logits"), schema, 0)
    with pytest.raises(RowError, match="keeps 7 classes per sample, this batch has 8"):
        encode(given_rows(kind, num_classes=8), schema, 0)
    with pytest.raises(RowError, match="expected floating-point numbers"):
        encode(np.ones((2, K), np.int64), schema, 0)


@every_spec
def test_a_rule_is_refused_and_a_dtype_is_not_chosen(spec: dict[str, Any], kind: str) -> None:
    schema = schema_of(spec, kind)
    encoding = encoding_of(schema)
    columns = encoding.encode(given_rows(kind), schema, 0)
    for ask in (encoding.decode, encoding.rows):
        with pytest.raises(ArgumentError, match="rule is 'uniform'"):
            ask(columns, schema, rule="uniform")
    with pytest.raises(ArgumentError, match="kind is 'votes'"):
        encoding.decode(columns, schema, "votes")
    for dtype in ("float32", "uint64"):
        with pytest.raises(ArgumentError, match=f"dtype is '{dtype}'"):
            make_schema(K, kind=kind, dtype=dtype, encoding=spec)
    with pytest.raises(ArgumentError, match=r"keeps|draws from"):
        make_schema(K, kind="counts", encoding=spec)


# ------------------------------------------------------------------ codes


@every_code
@pytest.mark.parametrize("kind", KINDS)
@every_shape
def test_decoding_gives_back_the_distributions(name: str, kind: str, members: int | None) -> None:
    schema = schema_of(name, kind, members)
    encoding, rows = encoding_of(schema), given_rows(kind, members)
    logs = log_softmax(np.log(rows) if kind == "probs" else rows)
    columns = encoding.encode(rows, schema, 0)
    off = {"u16_affine": 3e-4, "u8_log_sqrt": 0.09}[name]  # of a log-probability
    for as_kind, expected in (("log_probs", logs), ("logits", rows if kind == "logits" else logs)):
        decoded = encoding.decode(columns, schema, as_kind)
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, expected, atol=off)
    np.testing.assert_allclose(encoding.decode(columns, schema), np.exp(logs), rtol=1.1 * off)
    softened = encoding.decode(columns, schema, temperature=2.0)
    np.testing.assert_allclose(softened, np.exp(log_softmax(logs / 2)), rtol=off)
    again = encoding.rows(columns, schema)
    assert again.dtype == np.float64
    np.testing.assert_allclose(again, rows, rtol=1.1 * off)


@every_code
@given(
    logits=arrays(
        np.float32, (4, 6), elements=st.floats(-300, 300, width=32) | st.just(-np.inf)
    ).filter(lambda x: np.isfinite(x).any(axis=-1).all())
)
def test_no_class_is_off_by_more_than_half_a_step(name: str, logits: Array) -> None:
    schema = schema_of(name, "logits", num_classes=6)
    codes, step, _ = encoding_of(schema).encode(logits, schema, 0)
    encoding_of(schema).check([codes, step, np.zeros(4, np.float32)], schema, 0)
    last = CODES[name]
    assert (codes.min(axis=-1) == 0).all()
    np.testing.assert_array_equal(codes == last, np.isneginf(logits))
    depth = np.float64(logits.max(axis=-1, keepdims=True) - logits)
    is_root = name == "u8_log_sqrt"
    counted = np.sqrt(np.minimum(depth, DEEPEST)) if is_root else np.minimum(depth, DEEPEST)
    off = np.abs(codes * np.float64(step)[:, None] - counted)[codes != last]
    allowed = np.broadcast_to(np.float64(step)[:, None], codes.shape)[codes != last]
    assert (off <= 0.502 * allowed + 1e-30).all()
    decoded = encoding_of(schema).decode([codes, step, np.zeros(4, np.float32)], schema)
    assert (decoded[codes == last] == 0).all()
    np.testing.assert_allclose(decoded.sum(axis=-1), 1, rtol=1e-5)


@every_code
def test_a_class_masked_with_the_lowest_float_costs_the_others_little(name: str) -> None:
    logits = given_rows("logits", n=50, num_classes=1000).astype(np.float32)
    logits[:, 5] = np.finfo(np.float32).min
    schema = schema_of(name, "logits", num_classes=1000)
    encoding = encoding_of(schema)
    columns = encoding.encode(logits, schema, 0)
    logs, stored = log_softmax(logits), log_softmax(encoding.rows(columns, schema))
    p = np.exp(logs)
    divergence = np.where(p > 0, p * (logs - stored), 0).sum(axis=-1)
    assert divergence.max() < {"u16_affine": 1e-6, "u8_log_sqrt": 2e-3}[name]
    assert (encoding.decode(columns, schema)[:, 5] == 0).all()


@every_code
def test_rows_of_one_number_and_of_one_class_are_exact(name: str) -> None:
    for rows in (np.full((2, 4), -7.5), np.array([[3.0, -np.inf, -np.inf, -np.inf]])):
        schema = schema_of(name, "logits", num_classes=4)
        encoding = encoding_of(schema)
        columns = encoding.encode(rows, schema, 0)
        np.testing.assert_array_equal(columns[1], 0)
        np.testing.assert_allclose(encoding.decode(columns, schema, "logits"), rows, rtol=1e-6)
        encoding.check(columns, schema, 0)


@every_code
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 1, "^row 3 has no code 0"),
        (1, -1e-9, "^row 3 has the step"),
        (1, np.nan, "^row 3 has the step nan, expected 0 to"),
        (1, 1.0, "^row 3 has the step 1.0"),
        (2, np.inf, "^row 3 has the logsumexp inf"),
    ],
)
def test_stored_codes_that_break_the_rules_are_named(
    name: str, at: int, value: float, message: str
) -> None:
    schema = schema_of(name, "logits", num_classes=2)
    columns = encoding_of(schema).encode(np.array([[0.0, 1.0], [2.0, 1.0]]), schema, 0)
    columns[at][1] = value
    with pytest.raises(RowError, match=message.replace("3", "4")):
        encoding_of(schema).check(columns, schema, 3)
    with pytest.raises(RowError, match="columns for a schema that has 3"):
        encoding_of(schema).check(columns[:2], schema, 3)


def test_logits_beyond_float32_are_refused() -> None:
    schema = schema_of("u16_affine", "logits", num_classes=2)
    with pytest.raises(RowError, match=r"^row 1 has the logsumexp inf"):
        encoding_of(schema).encode(np.array([[0.0, 1.0], [1e300, 0.0]]), schema, 0)


# ------------------------------------------------------------------ draws


def test_a_draw_is_a_function_of_seed_row_and_number() -> None:
    spec = {"name": "sampled", "num_draws": 50}
    probs = np.full((3, 1000), 1e-3)
    one = encoding_of(schema_of(spec, "probs", num_classes=1000))
    encoded = [
        one.encode(probs, schema_of({**spec, "seed": seed}, "probs", num_classes=1000), start)[0]
        for seed, start in ((0, 0), (0, 1), (1, 0))
    ]
    np.testing.assert_array_equal(encoded[0][1:], encoded[1][:-1])
    assert (encoded[0] != encoded[2]).any()
    assert (encoded[0][0] != encoded[0][1]).any()
    # What is in stores must stay: numbers of the generator, written down.
    assert uniform(0, 0, 2).tolist() == pytest.approx(UNIFORM[0], abs=0)
    assert uniform(7, 2**64 - 1, 2**64 + 1).tolist() == pytest.approx(UNIFORM[1], abs=0)


UNIFORM = [[0.28176129772258496, 0.6524484863740322], [0.8583639891335944, 0.4558970808054451]]


@pytest.mark.parametrize("proposal", [None, 0.7, 2.0])
def test_the_mean_of_many_rows_is_the_distribution(proposal: float | None) -> None:
    probs = np.array([0.0, 0.6, 0.25, 0.1, 0.0, 0.04, 0.01, 0.0])
    spec = {"name": "sampled", "num_draws": 10}
    if proposal is not None:
        spec["proposal_temperature"] = proposal
    schema = schema_of(spec, "probs", num_classes=8)
    encoding = encoding_of(schema)
    columns = encoding.encode(np.tile(probs, (20_000, 1)), schema, 0)
    encoding.check(columns, schema, 0)
    values = encoding.decode(columns, schema).astype(np.float64)
    # 200,000 draws: five standard errors.
    assert np.abs(values.mean(axis=0) - probs).max() < 0.006
    assert (values[:, probs == 0] == 0).all()
    if proposal is None:
        np.testing.assert_allclose(values.sum(axis=-1), 1, rtol=1e-6)


def test_draws_know_no_other_temperature() -> None:
    schema = schema_of({"name": "sampled", "num_draws": 3}, "probs")
    columns = encoding_of(schema).encode(given_rows("probs"), schema, 0)
    with pytest.raises(ArgumentError, match="temperature is 2, and draws say"):
        encoding_of(schema).decode(columns, schema, temperature=2.0)


@every_shape
@pytest.mark.parametrize("num_draws", [1, 3, 9])
def test_drawn_classes_are_read_as_top_k_rows(members: int | None, num_draws: int) -> None:
    schema = schema_of({"name": "sampled", "num_draws": num_draws}, "probs", members)
    encoding = encoding_of(schema)
    columns = encoding.encode(given_rows("probs", members), schema, 0)
    topk = encoding.sparse(columns, schema)
    assert topk is not None
    assert (np.diff(np.exp(topk.values), axis=-1) <= 0).all()
    assert np.isneginf(topk.residual).all()
    ordered = np.sort(topk.ids, axis=-1)
    assert (ordered[..., 1:] > ordered[..., :-1]).all()
    assert ordered.max() < K
    dense = np.zeros((len(columns[0]), *schema.row_shape))
    for index in np.ndindex(topk.values.shape):
        dense[(*index[:-1], topk.ids[index])] += np.exp(topk.values[index])
    np.testing.assert_allclose(dense, encoding.decode(columns, schema), atol=1e-6)
    weighted = schema_of(SPECS[-1][0], "probs", members)
    drawn = encoding_of(weighted).encode(given_rows("probs", members), weighted, 0)
    assert encoding_of(weighted).sparse(drawn, weighted) is None


def test_a_student_learns_from_draws_as_from_their_frequencies() -> None:
    torch = pytest.importorskip("torch")
    from fostore.torch import as_topk, topk_distillation_loss

    schema = schema_of({"name": "sampled", "num_draws": 9}, "probs")
    encoding = encoding_of(schema)
    columns = encoding.encode(given_rows("probs"), schema, 0)
    logits = torch.from_numpy(given_rows("logits")).requires_grad_()
    topk = encoding.sparse(columns, schema)
    assert topk is not None
    topk_distillation_loss(logits, as_topk(topk)).backward()
    gradient, logits.grad = logits.grad, None
    frequencies = torch.from_numpy(encoding.decode(columns, schema).astype(np.float64))
    logs = torch.log_softmax(logits, -1)
    (torch.xlogy(frequencies, frequencies) - frequencies * logs).sum(-1).mean().backward()
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({}, "num_draws is None"),
        ({"num_draws": 0}, "num_draws is 0"),
        ({"num_draws": 2.5}, r"num_draws is 2\.5"),
        ({"num_draws": 3, "seed": -1}, "seed is -1"),
        ({"num_draws": 3, "proposal_temperature": 0}, "proposal_temperature is 0"),
        ({"num_draws": 3, "rule": "zero"}, "no parameter 'rule'"),
    ],
)
def test_parameters_of_draws_are_checked(tmp_path: Path, spec: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        fostore.create(
            tmp_path / "a.zarr", num_samples=3, num_classes=K, encoding={"name": "sampled", **spec}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("draws", "weights", "message"),
    [
        ([2, 1], [1, 1], "^row 3 has draws that do not grow"),
        ([0, 7], [1, 1], "^row 3 has draws .*beyond class 6"),
        ([0, 1], [1, 0], "^row 3 has a weight"),
        ([0, 1], [1, np.nan], "^row 3 has a weight"),
    ],
)
def test_stored_draws_that_break_the_rules_are_named(
    draws: list[int], weights: list[float], message: str
) -> None:
    schema = schema_of({"name": "sampled", "num_draws": 2, "proposal_temperature": 2.0}, "probs")
    with pytest.raises(RowError, match=message):
        encoding_of(schema).check([np.uint16([draws]), np.float32([weights])], schema, 3)


# ------------------------------------------------------------------ computed again


@every_spec
@every_shape
def test_rows_of_other_kernels_are_the_same_and_of_another_model_are_not(
    spec: dict[str, Any], kind: str, members: int | None
) -> None:
    schema = schema_of(
        {**spec, "num_draws": 50} if "num_draws" in spec else spec, kind, members, 200
    )
    logits = given_rows("logits", members, 40, 200)
    noisy = logits * (1 + np.random.default_rng(1).normal(size=logits.shape) * 2.0**-16)

    def columns(x: Array) -> list[Array]:
        rows = {"logits": x, "log_probs": log_softmax(x), "probs": np.exp(log_softmax(x))}[kind]
        return encoding_of(schema).encode(rows, schema, 0)

    stored = columns(logits)
    again = [columns(x) for x in (logits, noisy)]
    for now in again:
        assert not encoding_of(schema).disagrees(stored, now, schema, 2.0**-10).any()
    other = logits.copy()
    other[5] = np.roll(other[5], 1, axis=-1)
    bad = encoding_of(schema).disagrees(stored, columns(other), schema, 2.0**-10)
    assert np.flatnonzero(bad).tolist() == [5]
    if "num_draws" not in spec:
        assert encoding_of(schema).disagrees(stored, columns(logits / 1.1), schema, 2.0**-10).all()


# ------------------------------------------------------------------ stores

N = 1500


def made(path: Path, spec: dict[str, Any], kind: str, members: int | None = None) -> Array:
    """A sealed store, and the rows that it was given."""
    rows = given_rows(kind, members, N)
    options: Any = {"num_samples": N, "num_classes": K, "num_members": members, "kind": kind}
    with fostore.create(path, encoding=spec, **options) as writer:
        for start in range(0, N, 400):
            writer.append(rows[start : start + 400])
    return rows


@every_spec
@every_shape
def test_both_formats_hold_the_same_and_are_sound(
    spec: dict[str, Any], kind: str, members: int | None, tmp_path: Path
) -> None:
    paths = [tmp_path / f"a{suffix}" for suffix in SUFFIXES]
    digests = set()
    for path in paths:
        rows = made(path, spec, kind, members)
        with fostore.open(path) as store:
            assert store.verify() == []
            digests.add(store.digest())
            schema = store.schema
            assert dict(schema.encoding) == spec
            stored = encoding_of(schema).encode(rows, schema, 0)
            for column, array in zip(schema.content, stored, strict=True):
                np.testing.assert_array_equal(plain_rows(path, column.name), array)
            np.testing.assert_array_equal(
                store.take([9, 3]), encoding_of(schema).decode(stored, schema)[[9, 3]]
            )
            with pytest.raises(ArgumentError, match="gives what is stored"):
                _ = store.array
            assert sum(len(batch) for batch in store.values()) == N * len(store[0])
    assert len(digests) == 1


@every_spec
@pytest.mark.parametrize("suffix", [".h5", ".json", ".npz", ".parquet", ".safetensors", ".jsonl"])
def test_a_conversion_there_and_back_is_the_same_store(
    spec: dict[str, Any], kind: str, suffix: str, tmp_path: Path
) -> None:
    made(tmp_path / "a.zarr", spec, kind)
    convert(tmp_path / "a.zarr", tmp_path / f"b{suffix}", progress=False)
    receipt = convert(tmp_path / f"b{suffix}", tmp_path / "c.zarr", progress=False)
    assert receipt.is_lossless
    assert fostore.open(tmp_path / "c.zarr").digest() == fostore.open(tmp_path / "a.zarr").digest()


@every_spec
def test_rows_members_and_statistics_are_those_of_other_stores(
    spec: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    from fostore.evaluate import summarize

    path = tmp_path / "a.zarr"
    made(path, spec, kind)
    convert(path, tmp_path / "rows.zarr", rows=slice(10, 90), progress=False)
    stack([path, path], tmp_path / "two.zarr", progress=False)
    convert(tmp_path / "two.zarr", tmp_path / "one.zarr", member=1, progress=False)
    with fostore.open(path) as store:
        rows = store.take(range(N))
        np.testing.assert_array_equal(fostore.open(tmp_path / "rows.zarr")[:], rows[10:90])
        assert fostore.open(tmp_path / "one.zarr").digest() == store.digest()
        dataset = fostore.FirstOrderDataset(None, path)
        trained_on = dataset.gather(np.arange(5))
        if isinstance(trained_on, fostore.TopK):  # of draws, those that were drawn
            trained_on = np.sort(np.exp(trained_on.values), axis=-1)
            rows_of_classes = np.sort(rows[:5], axis=-1)[:, -trained_on.shape[-1] :]
            np.testing.assert_allclose(trained_on, rows_of_classes, rtol=1e-6)
        else:
            np.testing.assert_array_equal(trained_on, rows[:5])
    if (
        "proposal_temperature" in spec
    ):  # weights sum to 1 in the mean alone; normalised they would be biased
        with pytest.raises(RowError, match="row 0 sums to"):
            summarize(path)
        return
    summary = summarize(path).to_json()
    assert summary["confidence"] == pytest.approx(summarize(rows).to_json()["confidence"], rel=1e-5)


def test_draws_are_not_drawn_from(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.zarr", {"name": "sampled", "num_draws": 9}
    made(path, spec, "probs")
    options: Any = {"progress": False, "allow_lossy": True}
    with pytest.raises(ArgumentError, match="keeps draws, and fewer classes would be drawn"):
        convert(path, tmp_path / "b.zarr", classes=[0, 1], **options)
    with pytest.raises(ArgumentError, match="only the distributions that they were drawn from"):
        convert(path, tmp_path / "b.zarr", encoding={**spec, "seed": 1}, **options)
    assert [one.name for one in tmp_path.iterdir()] == ["a.zarr"]
    convert(path, tmp_path / "b.zarr", encoding="dense", **options)
    np.testing.assert_array_equal(fostore.open(tmp_path / "b.zarr")[:], fostore.open(path)[:])


def test_a_draw_of_a_class_that_there_is_not_is_damage() -> None:
    schema = schema_of({"name": "sampled", "num_draws": 2}, "probs")
    for ask in (encoding_of(schema).decode, encoding_of(schema).sparse):
        with pytest.raises(DamageError, match="a draw is class 9, and there are 7"):
            ask([np.uint16([[1, 9]])], schema)


@every_spec
def test_a_reader_that_lacks_the_encoding_refuses_it_by_name(
    spec: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "a.zarr", spec, kind)
    assert fostore.open(tmp_path / "a.zarr").schema.requires == (spec["name"],)
    monkeypatch.delitem(encodings.ENCODINGS, spec["name"])
    with pytest.raises(UnsupportedError, match=f"'{spec['name']}' is not known"):
        fostore.open(tmp_path / "a.zarr")
