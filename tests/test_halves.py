"""Halves as float32 and back, for every pattern of bits, against arithmetic written out plainly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import fostore
from fostore.errors import ArgumentError, UncommittedError
from fostore.schema import halves
from fostore.schema.halves import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    widen,
)
from fostore.schema.row import Array
from sides import Pairs, Side
from support import SUFFIXES

EVERY = np.arange(1 << 16, dtype=np.uint16)


def value_of(bits: int) -> float:
    """What IEEE 754 says that 16 bits of a float16 are."""
    sign = -1.0 if bits >> 15 else 1.0
    exponent, fraction = bits >> 10 & 31, bits & 1023
    if exponent == 31:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, -24)
    return sign * math.ldexp(1024 + fraction, exponent - 25)


def assert_same(found: Array, expected: Array) -> None:
    """The same numbers, signs of zero included; NaN where NaN is expected."""
    assert found.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_every_float16_is_widened_exactly() -> None:
    expected = np.float32([value_of(bits) for bits in EVERY.tolist()])
    assert_same(float16_to_float32(EVERY.view(np.float16)), expected)


@pytest.mark.parametrize("kind", ["positive", "signed", "infinite", "minus infinity", "nan"])
@pytest.mark.parametrize("shape", [(3,), (3, 10), (40, 1000), (5, 8, 1000)])
def test_batches_of_any_shape_and_sign_are_widened_as_numpy_does(
    shape: tuple[int, ...], kind: str
) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float16)
    odd = {"infinite": np.inf, "minus infinity": -np.inf, "nan": np.nan}
    if kind == "signed":
        x -= np.float16(0.5)
    elif kind in odd:
        x[-1] = odd[kind]
    before = x.copy()
    found = float16_to_float32(x)
    assert_same(found, x.astype(np.float32))
    assert not np.shares_memory(found, x)
    np.testing.assert_array_equal(x, before)


def test_views_and_foreign_byte_orders_are_widened_too() -> None:
    x = EVERY.view(np.float16).reshape(256, 256)
    for view in (x.T, x[::-1, ::2], x.astype(">f2")):
        assert_same(float16_to_float32(view), view.astype(np.float32))


def test_subnormal_halves_survive_a_thread_that_flushes_them() -> None:
    torch.set_flush_denormal(True)
    try:
        found = float16_to_float32(EVERY.view(np.float16))
    finally:
        torch.set_flush_denormal(False)
    assert_same(found, EVERY.view(np.float16).astype(np.float32))


def test_widen_changes_halves_alone() -> None:
    assert widen(np.float16([0.5]), "float16").dtype == np.float32
    assert widen(np.uint16([0x3F80]), "bfloat16").tolist() == [1.0]
    for dtype in ("float32", "float64"):
        kept = np.zeros(2, dtype)
        assert widen(kept, dtype) is kept
    assert halves.SCALE == 2.0**112


def test_bfloat16_rounds_to_nearest_even_for_every_pattern() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bfloat16_to_float32(bits)
    back = float32_to_bfloat16(values)
    nan = np.isnan(values)
    np.testing.assert_array_equal(back[~nan], bits[~nan])
    assert np.isnan(bfloat16_to_float32(back[nan])).all()

    finite = np.isfinite(values)
    for low in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        between = ((bits[finite].astype(np.uint32) << 16) | low).view(np.float32)
        up = (low > 0x8000) | ((low == 0x8000) & (bits[finite] & 1 == 1))
        expected = bits[finite] + np.asarray(up, np.uint16)
        np.testing.assert_array_equal(float32_to_bfloat16(between), expected)


def test_bfloat16_keeps_nan_whatever_its_payload() -> None:
    payloads = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000])
    result = bfloat16_to_float32(float32_to_bfloat16(payloads.view(np.float32)))
    assert np.isnan(result).all()


# ------------------------------------------------------------------ stores, datasets and loaders


N, WIDE = 20, 600  # a batch of 16 is more than NumPy widens by itself


def make_store(path: Path, dtype: str, kind: str = "probs", classes: int = WIDE) -> fostore.Store:
    """Random distributions, some of whose numbers are subnormal as float16."""
    logits = np.random.default_rng(0).normal(size=(N, classes)) * 4
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    options: dict[str, Any] = {"num_samples": N, "num_classes": classes, "kind": kind}
    with fostore.create(path, dtype=dtype, **options) as writer:
        writer.append(probs if kind == "probs" else np.log(probs))
    return fostore.open(path)


def exact(store: fostore.Store) -> Array:
    """What is stored, each number looked up by its bits."""
    column = store.schema.columns[0]
    bits = store.column(column.name).view(np.uint16)
    if column.dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return EVERY.view(np.float16).astype(np.float32)[bits]


def assert_rows(found: Any, expected: Array) -> None:
    """The same float32 numbers, bit by bit."""
    rows = np.asarray(found)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
@pytest.mark.parametrize("dtype", halves.HALVES)
@pytest.mark.parametrize("on_device", [False, True])
def test_every_side_hands_out_the_float32_numbers_that_stored_halves_are(
    side: Side,
    dtype: str,
    kind: str,
    suffix: str,
    on_device: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if on_device:  # as JAX does where there is an accelerator
        monkeypatch.setattr("fostore.jax.dataset.is_accelerator", lambda where: True)
    store = make_store(tmp_path / f"a{suffix}", dtype, kind)
    rows = exact(store)
    base = Pairs(np.arange(N, dtype=np.float32)[:, None], np.arange(N))
    options: dict[str, Any] = {"as_kind": kind, "seed": 3}
    loader = side.module.output_dataloader(base, store, 16, True, **options)
    for _, labels, distributions in loader:
        assert_rows(distributions, rows[np.asarray(labels)])
    keyed = [{"x": np.float32(i)} for i in range(N)]
    for batch in side.module.output_dataloader(keyed, store, 16, target_key="p", **options):
        assert_rows(batch["p"], rows[np.asarray(batch["x"]).astype(int)])
    alone = side.module.output_dataloader(None, store, 16, **options)
    assert_rows(np.concatenate([np.asarray(batch) for batch in alone]), rows)
    dataset = side.module.FirstOrderDataset(base, store, as_kind=kind)
    assert_rows(dataset[-1][-1], rows[-1])
    assert_rows(dataset.rows_of(np.array([7, 2, 7])), rows[[7, 2, 7]])
    assert_rows(dataset.gather(np.array([7, 2, 7])), rows[[7, 2, 7]])


@pytest.mark.parametrize("dtype", halves.HALVES)
def test_every_pattern_of_bits_passes_every_side_unchanged(
    side: Side, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "a.zarr", dtype)
    bits = EVERY.reshape(2, -1)
    stored = bits if dtype == "bfloat16" else bits.view(np.float16)
    monkeypatch.setattr(fostore.Store, "take_column", lambda *_: stored.copy())
    dataset = side.module.FirstOrderDataset(None, store)
    expected = widen(stored, dtype)
    found = [np.asarray(dataset.rows_of(np.arange(2)))]
    if side.name == "jax":
        monkeypatch.setattr("fostore.jax.dataset.is_accelerator", lambda where: True)
        found += [np.asarray(dataset.read_batches(np.arange(2), 2)[0])]
    for one in found:
        assert_same(one, expected)


@pytest.mark.parametrize("dtype", halves.HALVES)
def test_other_dtypes_that_are_asked_for_come_as_before(
    side: Side, dtype: str, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "a.zarr", dtype)
    as_stored = "float16" if dtype == "float16" else "float32"
    for asked, given in ((None, as_stored), ("float16", "float16"), ("float64", "float64")):
        if side.name == "jax" and given == "float64":
            given = "float32"  # as everywhere in JAX without x64
        (batch,) = side.module.output_dataloader(None, store, N, dtype=asked)
        assert np.asarray(batch).dtype == given
        np.testing.assert_array_equal(np.asarray(batch), exact(store).astype(given))


def test_only_float32_reaches_an_accelerator_of_several_processes() -> None:
    from fostore.jax.devices import is_accelerator

    assert not is_accelerator(None)
    assert not is_accelerator(jax.devices()[0])
    assert not is_accelerator(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    with jax.default_device("cpu"):
        assert not is_accelerator(None)


@pytest.mark.parametrize("dtype", halves.HALVES)
def test_a_selection_of_halves_is_widened_too(side: Side, dtype: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", dtype)
    (batch,) = side.module.output_dataloader(None, store.select([5, 3]), 2)
    assert_rows(batch, exact(store)[[5, 3]])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_take_column_gives_what_is_stored_and_refuses_other_rows(
    suffix: str, tmp_path: Path
) -> None:
    store = make_store(tmp_path / f"a{suffix}", "bfloat16")
    found = store.take_column("probs", [4, 1])
    np.testing.assert_array_equal(found, store.column("probs")[[4, 1]])
    assert found.dtype == np.uint16
    assert found.flags.writeable
    with pytest.raises(UncommittedError, match="row 20"):
        store.take_column("probs", [N])
    with pytest.raises(ArgumentError, match="no column 'ids'"):
        store.take_column("ids", [0])
