"""Units, blocks and inner chunks: powers of two that divide each other, and whole pages."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fostore.errors import ArgumentError
from fostore.schema import geometry

row_bytes = st.lists(
    st.integers(1, 4096)
    | st.integers(1, 1 << 21)
    | st.sampled_from([40, 4000, 100_514, 400_012, 606_572]),
    min_size=1,
    max_size=4,
)
num_samples = st.none() | st.integers(0, 1 << 40)


def is_power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


@given(row_bytes, num_samples)
def test_units_are_powers_of_two_of_whole_blocks_and_whole_pages(
    sizes: list[int], planned: int | None
) -> None:
    unit = geometry.unit_rows(sizes, planned)
    block = geometry.block_rows(sizes)
    assert is_power_of_two(unit)
    assert is_power_of_two(block)
    assert unit % block == 0
    for size in sizes:
        assert unit * size % 4096 == 0
        inner = geometry.inner_rows(size, unit)
        assert is_power_of_two(inner)
        assert unit % inner == 0


@given(row_bytes, num_samples)
def test_units_are_about_32_mib_unless_pages_or_the_number_of_samples_say_otherwise(
    sizes: list[int], planned: int | None
) -> None:
    unit = geometry.unit_rows(sizes, planned)
    widest = unit * max(sizes)
    at_least = geometry.smallest_unit_rows(sizes)
    if planned is None:
        assert unit == at_least or (32 << 20) / 1.42 < widest < (32 << 20) * 1.42
    else:
        assert -(-planned // unit) <= geometry._MAX_UNITS
        assert unit == at_least or unit <= geometry._next_power_of_two(planned)


@given(row_bytes)
def test_a_block_is_at_most_1024_rows_and_4_mib(sizes: list[int]) -> None:
    block = geometry.block_rows(sizes)
    assert block <= 1024
    assert block == 1 or block * max(sizes) <= 4 << 20
    assert block == 1024 or 2 * block * max(sizes) > 4 << 20


@pytest.mark.parametrize(
    ("size", "rows", "mib"),
    [
        (40, 1 << 20, 40),  # 10 classes, float32
        (4000, 8192, 31.25),  # 1,000 classes, float32
        (2000, 16_384, 31.25),
        (100_514, 2048, 196.3),  # 50,257 classes, float16
        (400_012, 1024, 390.6),  # 100,003 classes, float32
        (606_572, 1024, 592.4),  # 151,643 classes, float32
    ],
)
def test_the_units_of_known_models_are_those_of_the_specification(
    size: int, rows: int, mib: float
) -> None:
    assert geometry.unit_rows([size], None) == rows
    assert rows * size / (1 << 20) == pytest.approx(mib, abs=0.1)


def test_a_small_store_has_one_unit_no_larger_than_it_needs() -> None:
    assert geometry.unit_rows([40], 1797) == 2048
    assert geometry.unit_rows([40], 5) == geometry.smallest_unit_rows([40]) == 1024
    assert geometry.unit_rows([40], 0) == 1024


@given(row_bytes, st.integers(-4, 1 << 24))
def test_a_wanted_unit_is_taken_or_refused_with_the_smallest_that_can_be(
    sizes: list[int], wanted: int
) -> None:
    smallest = geometry.smallest_unit_rows(sizes)
    if wanted >= smallest and is_power_of_two(wanted):
        assert geometry.unit_rows(sizes, 10, wanted) == wanted
    else:
        with pytest.raises(ArgumentError, match=f"power of two and at least {smallest} "):
            geometry.unit_rows(sizes, 10, wanted)
    assert geometry.unit_rows(sizes, 10, smallest) == smallest


@given(st.floats(0.01, 1e12))
def test_the_nearest_power_of_two_is_the_nearest_in_ratio(value: float) -> None:
    found = geometry._nearest_power_of_two(value)
    assert is_power_of_two(found)
    assume(value > 1)
    assert found / value <= 2**0.5 * (1 + 1e-9)
    assert value / found <= 2**0.5 * (1 + 1e-9)


@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([1, 8, 64]))
def test_split_parts_cover_the_rows_once_and_stay_inside_their_units(
    start: int, stop: int, unit_rows: int
) -> None:
    parts = geometry.split_at_units(start, stop, unit_rows)
    assert [row for _, a, b in parts for row in range(a, b)] == list(range(start, stop))
    for unit, a, b in parts:
        first, last = geometry.unit_range(unit, unit_rows, None)
        assert first <= a < b <= last


def test_the_last_unit_ends_with_the_store() -> None:
    assert geometry.unit_range(2, 8, 20) == (16, 20)
    assert geometry.unit_range(2, 8, None) == (16, 24)
