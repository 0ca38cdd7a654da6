"""Ranges against Python's own set of integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.schema.ranges import Range, Ranges, describe

TOP = 40
ranges = st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)), max_size=8)
span = st.tuples(st.integers(0, TOP), st.integers(0, TOP))


def members(items: list[Range] | tuple[Range, ...]) -> set[int]:
    return {i for start, stop in items for i in range(start, stop)}


def assert_canonical(found: Ranges) -> None:
    assert all(start < stop for start, stop in found.items)
    assert all(a[1] < b[0] for a, b in zip(found.items, found.items[1:], strict=False))


@given(ranges)
def test_ranges_are_the_set_of_their_integers(items: list[Range]) -> None:
    found, expected = Ranges.of(*items), members(items)
    assert_canonical(found)
    assert members(found.items) == expected == members(tuple(found))
    assert len(found) == len(expected)
    assert bool(found) == bool(expected)
    assert all((i in found) == (i in expected) for i in range(-1, TOP + 2))
    prefix = next(i for i in range(TOP + 2) if i not in expected)
    assert found.prefix == prefix


@given(ranges, span, ranges)
def test_union_and_add_are_those_of_sets(items: list[Range], new: Range, more: list[Range]) -> None:
    found = Ranges.of(*items)
    added = found.add(*new)
    assert_canonical(added)
    assert members(added.items) == members(items) | members([new])
    united = found.union(more)
    assert_canonical(united)
    assert members(united.items) == members(items) | members(more)
    assert members(found.items) == members(items)


@given(ranges, span)
def test_missing_overlap_and_covers_are_those_of_sets(items: list[Range], window: Range) -> None:
    start, stop = window
    found, expected = Ranges.of(*items), members(items)
    inside = set(range(start, stop))
    assert members(found.missing(stop, start)) == inside - expected
    assert members(found.overlap(start, stop)) == inside & expected
    assert found.covers(start, stop) == (inside <= expected)
    for part in (found.missing(stop, start), found.overlap(start, stop)):
        assert_canonical(Ranges(part))


@given(st.lists(st.integers(1, 4), max_size=10))
def test_rows_added_in_order_stay_one_range(sizes: list[int]) -> None:
    found, stop = Ranges(), 0
    for size in sizes:
        found = found.add(stop, stop + size)
        stop += size
    assert found.items == (((0, stop),) if stop else ())


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "no rows"),
        ([(3, 4)], "row 3"),
        ([(0, 2)], "rows 0 to 1"),
        ([(0, 1), (4, 9), (12, 13)], "row 0, rows 4 to 8 and row 12"),
        ([(i * 3, i * 3 + 1) for i in range(6)], "row 0, row 3, row 6, row 9 and 2 more ranges"),
    ],
)
def test_ranges_in_words_hold_the_last_row(items: list[Range], words: str) -> None:
    assert describe(items) == words


def test_rows_cost_what_their_ranges_cost_however_many_they_are() -> None:
    far = Ranges.of((1 << 50, 1 << 51), (1 << 52, 1 << 53))
    assert Ranges.of((0, 1)).union(far).items == ((0, 1), *far.items)
    assert (
        describe(far) == f"rows {1 << 50} to {(1 << 51) - 1} and rows {1 << 52} to {(1 << 53) - 1}"
    )
