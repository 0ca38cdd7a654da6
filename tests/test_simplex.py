"""Row checks and the softmax family, against float64 arithmetic written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.errors import RowError
from fostore.schema import simplex
from fostore.schema.halves import bfloat16_to_float32, float32_to_bfloat16
from fostore.schema.row import Array, sum_tolerance

DTYPES = ("float16", "bfloat16", "float32", "float64")
SHAPES = ((1, 1), (3, 2), (512, 10), (5, 3, 4), (70, 1000), (2, 70_000))


def rows_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """Distributions of `shape`, in the stored form of `dtype`."""
    logits = np.random.default_rng(seed).normal(size=shape) * 4
    return stored(simplex.softmax(logits), dtype)


def stored(x: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return float32_to_bfloat16(x.astype(np.float32))
    return x.astype(dtype)


def check_probs(rows: Array, tol: float, start: int = 0, *, bfloat16: bool = False) -> None:
    simplex.check(rows, "probs", tol, start, bfloat16=bfloat16)


def check_log_probs(rows: Array, tol: float, *, bfloat16: bool = False) -> None:
    simplex.check(rows, "log_probs", tol, bfloat16=bfloat16)


def check_logits(rows: Array, start: int = 0, *, bfloat16: bool = False) -> None:
    simplex.check(rows, "logits", start=start, bfloat16=bfloat16)


def check(rows: Array, dtype: str, tol: float | None = None, start: int = 0) -> None:
    tol = sum_tolerance(dtype, rows.shape[-1]) if tol is None else tol
    check_probs(rows, tol, start, bfloat16=dtype == "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_softmax_in_any_dtype_is_accepted(shape: tuple[int, ...], dtype: str) -> None:
    check(rows_of(shape, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, -0.25, 2.0])
def test_one_bad_number_anywhere_is_found_and_its_row_named(
    shape: tuple[int, ...], dtype: str, bad: float
) -> None:
    rows = rows_of(shape, dtype)
    row = len(rows) - 1
    rows[(row, *(-1 for _ in shape[1:]))] = stored(np.full(1, bad), dtype)[0]
    with pytest.raises(RowError, match=f"^row {512 + row}\\b"):
        check(rows, dtype, start=512)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_number_is_refused_also_where_the_sum_is_right(dtype: str) -> None:
    rows = stored(np.array([[0.25, 0.25, 0.5], [0.75, 0.5, -0.25]]), dtype)
    with pytest.raises(RowError, match=r"^row 1 holds -0\.25 at class 2"):
        check(rows, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_ordinary_rows_take_the_cheap_path(
    shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(simplex, "_exact")
    check(rows_of(shape, dtype), dtype)
    logs = stored(simplex.log_softmax(np.random.default_rng(0).normal(size=shape)), dtype)
    check_log_probs(logs, 0.1, bfloat16=dtype == "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zero_and_subnormal_numbers_are_probabilities(dtype: str) -> None:
    smallest = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149}.get(dtype, 5e-324)
    check(stored(np.array([[1.0, -0.0, smallest], [0.5, 0.5, 0.0]]), dtype), dtype)


@given(
    deviation=st.floats(-0.01, 0.01),
    tol=st.sampled_from([0.0, 1e-7, 1e-4, 1e-3, 5e-3]),
    dtype=st.sampled_from(DTYPES),
    num_classes=st.sampled_from([2, 10, 1000]),
)
def test_the_sum_decides_as_it_does_in_float64(
    deviation: float, tol: float, dtype: str, num_classes: int
) -> None:
    row = np.full(num_classes, (1 + deviation) / num_classes)
    rows = stored(np.stack([row, row]), dtype)
    exact = bfloat16_to_float32(rows) if dtype == "bfloat16" else rows
    off = abs(float(exact[0].astype(np.float64).sum()) - 1)
    if off <= tol:
        check(rows, dtype, tol)
    else:
        with pytest.raises(RowError, match=r"2 of 2 rows are bad: rows 0 and 1|rows 0 to 1"):
            check(rows, dtype, tol)


def test_a_tolerance_under_the_rounding_of_a_float32_sum_is_kept() -> None:
    rows = np.float32([[0.5, 0.5, 5e-8]])  # whose float32 sum is 1
    check_probs(rows, 6e-8)
    with pytest.raises(RowError, match=r"^row 0 sums to"):
        check_probs(rows, 4e-8)


def test_rows_that_are_no_contiguous_block_are_checked_as_they_are() -> None:
    rows = rows_of((64, 20), "float32")
    wide = np.zeros((64, 40), np.float32)
    wide[:, ::2] = rows
    check_probs(wide[:, ::2], 1e-3)
    check_probs(wide[::-1, ::2], 1e-3)
    check_probs(rows.astype(">f4"), 1e-3)
    turned_round = np.array([[0x0000807F]], ">u4").view(">f4")  # whose bytes backwards are infinity
    check_logits(turned_round)
    with pytest.raises(RowError, match="row 0 sums to"):
        check_probs(wide[:, :20], 1e-3)


def test_no_rows_are_good_rows() -> None:
    for check_kind in (check_probs, check_log_probs):
        check_kind(np.zeros((0, 3), np.float32), 1e-3)
    check_logits(np.zeros((0, 3), np.float32))


def test_the_message_counts_the_bad_rows_and_lists_the_first() -> None:
    rows = rows_of((4000, 50), "float32")
    rows[[7, 8, 9, 1500, 2000, 3999]] *= 3
    with pytest.raises(RowError) as caught:
        check_probs(rows, 1e-3, 100)
    assert "row 107 sums to 3, expected 1 within 0.001" in str(caught.value)
    assert "(6 of 4000 rows are bad: rows 107 to 109, row 1600, row 2100 and 1 more" in str(
        caught.value
    )


def test_a_bad_member_is_named() -> None:
    rows = rows_of((4, 3, 5), "float32")
    rows[2, 1, 0] = np.nan
    with pytest.raises(RowError, match=r"^row 2, member 1 holds nan at class 0"):
        check_probs(rows, 1e-3)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ([145.5, 0.17], "look like logits; pass kind='logits' or output_mode='logits'"),
        ([-2.0, 3.0], "look like logits"),
        ([np.log(0.3), np.log(0.7)], "look like log-probabilities; pass kind='log_probs'"),
        ([4.0, 1.0], "look like votes; pass kind='counts'"),
        ([0.2, 0.03], "do not cover all classes"),
        ([0.5, 0.51], "divide by the sum"),
        ([1.0001, -1e-4], "clip them at 0"),
        ([np.nan, 1.0], "look at this sample"),
    ],
)
def test_the_hint_says_what_the_numbers_look_like(row: list[float], hint: str) -> None:
    with pytest.raises(RowError) as caught:
        check_probs(np.array([row]), 1e-3)
    assert hint in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_are_accepted_within_the_tolerance_of_their_kind(
    shape: tuple[int, ...], dtype: str
) -> None:
    logits = np.random.default_rng(1).normal(size=shape)
    for rows in (simplex.log_softmax(logits), np.full(shape, -np.log(shape[-1]))):
        tol = sum_tolerance(dtype, shape[-1], "log_probs")
        check_log_probs(stored(rows, dtype), tol, bfloat16=dtype == "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_probs_may_be_minus_infinity_and_nothing_else_that_is_not_finite(dtype: str) -> None:
    halves = dtype == "bfloat16"
    good = stored(np.array([[0.0, -np.inf]]), dtype)
    check_log_probs(good, 1e-3, bfloat16=halves)
    for bad in (np.nan, -np.nan, np.inf, 0.5):
        rows = stored(np.array([[0.0, -np.inf], [0.0, bad]]), dtype)
        with pytest.raises(RowError, match=r"^row 1 "):
            check_log_probs(rows, 1e-3, bfloat16=halves)


@pytest.mark.parametrize("total", [0.5, 0.99, 1.01, 3.0])
def test_log_probs_of_another_sum_are_refused(total: float) -> None:
    rows = np.log(np.float32([[0.5, 0.5], [total / 2, total / 2]]))
    with pytest.raises(RowError, match=r"^row 1 has exponentials that sum to"):
        check_log_probs(rows, 1e-3)


def test_probabilities_given_as_log_probs_are_recognised() -> None:
    with pytest.raises(RowError, match="look like probabilities; pass kind='probs'"):
        check_log_probs(np.array([[0.4, 0.6]]), 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_may_mask_classes_but_not_all(dtype: str) -> None:
    halves = dtype == "bfloat16"
    check_logits(stored(np.array([[-np.inf, 3.0], [-9.0, 2.0]]), dtype), bfloat16=halves)
    for bad in ([-np.inf, -np.inf], [np.nan, 1.0], [-np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(RowError, match=r"^row 11 "):
            check_logits(stored(np.array([[0.0, 1.0], bad]), dtype), 10, bfloat16=halves)


def test_is_probs_says_what_check_probs_would() -> None:
    assert simplex.is_probs(rows_of((100, 1000), "float32"), 1e-3)
    assert not simplex.is_probs(np.float32([[0.5, 0.6]]), 1e-3)


@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5
    )
)
def test_the_softmax_family_agrees_with_float64(values: list[list[float]]) -> None:
    x = np.array(values)
    shifted = x - x.max(-1, keepdims=True)
    probs = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    level = np.log(np.exp(shifted).sum(-1)) + x.max(-1)
    x32 = x.astype(np.float32)
    np.testing.assert_allclose(simplex.softmax(x32), probs, atol=1e-6)
    np.testing.assert_allclose(simplex.logsumexp(x32), level, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(simplex.log_softmax(x32), x - level[:, None], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(simplex.log_softmax(x), x - level[:, None], rtol=1e-12, atol=1e-11)
    assert simplex.softmax(x32).dtype == np.float32
    assert simplex.softmax(x).dtype == np.float64
    assert simplex.softmax(x32.astype(np.float16)).dtype == np.float32


def test_a_row_has_one_logsumexp_whatever_batch_it_comes_in() -> None:
    x = np.random.default_rng(2).normal(size=(67, 37)).astype(np.float32)
    one_by_one = np.concatenate([simplex.logsumexp(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(simplex.logsumexp(x), one_by_one)
