"""Two alternating slots: a torn or damaged record never costs more than the newest commit."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from crc32c import crc32c
from hypothesis import given

from fostore.errors import FormatError
from fostore.formats import Run
from fostore.formats.hdf5 import slots
from fostore.schema.ranges import Ranges

MAGIC = b"FOtests\x01"
ROOM = 4096


def slot_pair(old: slots.Record, new: slots.Record) -> list[bytes]:
    pair = [b"", b""]
    for record in (old, new):
        pair[record.slot] = slots.pack(MAGIC, record).ljust(ROOM, b"\0")
    return pair


def test_the_higher_sequence_wins() -> None:
    old, new = slots.Record(7, b"seven"), slots.Record(8, b"eight")
    assert slots.newest(MAGIC, slot_pair(old, new)) == new
    assert slots.newest(MAGIC, slot_pair(slots.Record(9, b"nine"), new)) == slots.Record(9, b"nine")


def test_a_slot_is_laid_out_as_the_specification_says() -> None:
    head = struct.pack("<8sQQII", MAGIC, 5, 3, 0, 0)
    crc = crc32c(head + b"abc")
    packed = slots.pack(MAGIC, slots.Record(5, b"abc"))
    assert packed == struct.pack("<8sQQII", MAGIC, 5, 3, crc, 0) + b"abc"


@pytest.mark.parametrize("before", [b"\0" * ROOM, slots.pack(MAGIC, slots.Record(2, b"x" * 300))])
def test_a_record_that_is_torn_at_any_byte_falls_back_to_the_one_before(before: bytes) -> None:
    old = slots.Record(3, slots.pack_runs([Run(0, 100, 1)]))
    new = slots.Record(4, slots.pack_runs([Run(0, 100, 1), Run(100, 230, 2)]))
    packed = slots.pack(MAGIC, new)
    pair = slot_pair(old, new)
    for cut in range(len(packed)):
        # A disk may write the later sectors first.
        for mixed in (packed[:cut] + before[cut:], before[:cut] + packed[cut:]):
            pair[new.slot] = mixed
            whole = mixed.startswith(packed)
            assert slots.newest(MAGIC, pair) == (new if whole else old), cut


def test_a_flipped_bit_anywhere_falls_back_to_the_one_before() -> None:
    old, new = slots.Record(3, b"old"), slots.Record(4, b"something longer")
    packed = slots.pack(MAGIC, new)
    for bit in range(8 * len(packed)):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        pair = slot_pair(old, new)
        pair[new.slot] = bytes(flipped)
        assert slots.newest(MAGIC, pair) == old, bit


def test_two_damaged_slots_hold_nothing() -> None:
    assert slots.newest(MAGIC, [b"\0" * ROOM, b"\0" * ROOM]) is None
    assert slots.newest(MAGIC, [b"", b"\xff" * ROOM]) is None


def test_a_record_in_the_other_slot_or_of_another_kind_does_not_count() -> None:
    packed = slots.pack(MAGIC, slots.Record(4, b"x"))
    assert slots.unpack(MAGIC, 0, packed) == slots.Record(4, b"x")
    assert slots.unpack(MAGIC, 1, packed) is None
    assert slots.unpack(b"FOother\x01", 0, packed) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 10**12), st.integers(1, 9), st.integers(0, 2**32 - 1)),
        unique_by=lambda run: run[0],
    )
)
def test_runs_with_a_crc_come_back_sorted(items: list[tuple[int, int, int]]) -> None:
    runs = [Run(start * 16, start * 16 + size, crc) for start, size, crc in items]
    payload = slots.pack_runs(runs)
    assert len(payload) == 24 * len(runs)
    assert slots.unpack_runs(payload, 10**14, "x") == sorted(runs, key=lambda run: run.start)


def test_runs_without_a_crc_merge_where_they_touch() -> None:
    runs = [Run(8, 16, None), Run(0, 8, None), Run(16, 20, 0), Run(20, 24, None), Run(32, 40, None)]
    assert slots.unpack_runs(slots.pack_runs(runs), 40, "x") == [
        Run(0, 16, None),
        Run(16, 20, 0),
        Run(20, 24, None),
        Run(32, 40, None),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"\0" * 23,
        slots.ENTRY.pack(5, 5, 0, 0),
        slots.ENTRY.pack(6, 5, 0, 0),
        slots.ENTRY.pack(0, 101, 0, 0),
        slots.ENTRY.pack(0, 2**64 - 1, 0, 1),
        slots.ENTRY.pack(0, 5, 0, 2),
    ],
)
def test_runs_that_make_no_sense_are_refused(payload: bytes) -> None:
    with pytest.raises(FormatError, match="the file"):
        slots.unpack_runs(payload, 100, "the file")


def sealed_and_open(runs: list[Run], *, short_unit: bool = True) -> tuple[Ranges, list[Run]]:
    """A store of 20 rows in units of 8."""
    return slots.sealed_and_open(runs, 8, 20, short_unit=short_unit)


def test_a_unit_is_sealed_when_no_run_of_it_has_a_checksum_of_its_own() -> None:
    runs = [Run(0, 5, 1), Run(5, 8, 2), Run(8, 16, None), Run(16, 19, 4)]
    assert sealed_and_open(runs) == (Ranges.of((8, 16)), [*runs[:2], runs[3]])


def test_runs_without_a_crc_seal_the_units_that_they_cover() -> None:
    assert sealed_and_open([Run(0, 20, None)]) == (Ranges.of((0, 20)), [])
    assert sealed_and_open([Run(0, 12, None)]) == (Ranges.of((0, 8)), [Run(8, 12, None)])


def test_a_short_last_unit_is_open_for_a_writer() -> None:
    found = sealed_and_open([Run(0, 20, None)], short_unit=False)
    assert found == (Ranges.of((0, 16)), [Run(16, 20, None)])
