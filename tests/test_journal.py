"""The journal as bytes: what a kill may leave is dropped, what it cannot leave is damage."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from fostore.errors import ArgumentError, DamageError, FormatError, UnsupportedError
from fostore.formats import Run
from fostore.formats.zarr.journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    JournalHeader,
    _schema_crc,
    pack_commit,
    parse,
)
from units import header_of

UNIT = 2048
HEADER = JournalHeader.of(header_of("one column", 100_000), "main")
COMMITS = [
    [Run(0, 10, 1)],
    [Run(10, 20, 2), Run(UNIT, UNIT + 5, 3), Run(5 * UNIT, 6 * UNIT, None)],
    [Run(0, 10, 1)],
    [Run(20, 30, 4), Run(UNIT, UNIT + 9, 5)],
]
BYTES = HEADER.pack() + b"".join(pack_commit(runs, i + 1) for i, runs in enumerate(COMMITS))
COUNTS = [len(runs) for runs in COMMITS]


def after(commits: int) -> int:
    """The bytes of a journal of the first `commits`."""
    return HEADER_BYTES + RECORD_BYTES * sum(COUNTS[:commits])


def record(number: int) -> slice:
    start = HEADER_BYTES + number * RECORD_BYTES
    return slice(start, start + RECORD_BYTES)


def broken(number: int, data: bytes = BYTES) -> bytes:
    """The journal with one bit of a record flipped."""
    changed = bytearray(data)
    changed[record(number).start + 9] ^= 4
    return bytes(changed)


def test_sizes_are_those_of_the_specification() -> None:
    assert len(HEADER.pack()) == HEADER_BYTES == 128
    assert len(pack_commit(COMMITS[1], 7)) == 3 * RECORD_BYTES == 120


def test_a_journal_says_what_was_committed() -> None:
    journal = parse(BYTES, "j")
    assert journal.header == HEADER
    assert journal.runs == (
        Run(0, 10, 1),
        Run(10, 20, 2),
        Run(20, 30, 4),
        Run(UNIT, UNIT + 9, 5),
        Run(5 * UNIT, 6 * UNIT, None),
    )
    assert (journal.sequence, journal.num_bytes) == (4, len(BYTES))
    assert journal.problems == ()


def test_an_empty_journal_has_no_runs() -> None:
    journal = parse(HEADER.pack(), "j")
    assert (journal.runs, journal.sequence, journal.num_bytes) == ((), 0, HEADER_BYTES)


@pytest.mark.parametrize("length", range(HEADER_BYTES, len(BYTES) + 1))
def test_a_journal_cut_anywhere_keeps_its_whole_commits(length: int) -> None:
    whole = max(n for n in range(len(COMMITS) + 1) if after(n) <= length)
    journal = parse(BYTES[:length], "j")
    assert (journal.sequence, journal.num_bytes) == (whole, after(whole))
    assert journal.runs == parse(BYTES[: after(whole)], "j").runs


@given(st.data())
def test_a_torn_last_commit_is_dropped_whole(data: st.DataObject) -> None:
    """After a power cut, any part of what was not synced yet may be there, cut where a sector ends."""
    last = bytearray(BYTES[after(3) :])
    cut = data.draw(st.integers(1, len(last) // 8)) * 8
    start, stop = data.draw(st.sampled_from([(0, cut), (len(last) - cut, len(last))]))
    garbage = data.draw(st.sampled_from([b"\0", b"\xff", b"F"]))
    last[start:stop] = garbage * (stop - start)
    if bytes(last) == BYTES[after(3) :]:
        return
    journal = parse(BYTES[: after(3)] + bytes(last), "j")
    assert (journal.sequence, journal.num_bytes) == (3, after(3))


@pytest.mark.parametrize("number", range(5))
def test_a_bad_record_before_later_commits_is_damage(number: int) -> None:
    with pytest.raises(DamageError, match=f"record {number} is damaged"):
        parse(broken(number), "j")


def test_a_bad_record_inside_a_commit_before_the_last_one_is_damage() -> None:
    for number in (2, 3):
        with pytest.raises(DamageError):
            parse(broken(number)[: after(3)], "j")


@pytest.mark.parametrize("number", [5, 6])
def test_a_record_of_the_last_commit_of_which_a_part_is_missing_is_a_torn_tail(number: int) -> None:
    torn = bytearray(BYTES)
    torn[record(number).start + 8 : record(number).start + 16] = bytes(8)
    torn[record(number).start + 32 : record(number).stop] = bytes(8)
    assert parse(bytes(torn), "j").sequence == 3


@pytest.mark.parametrize("number", [5, 6])
def test_one_changed_byte_in_the_last_commit_is_damage_and_its_rows_are_named(number: int) -> None:
    """No crash does that; taken for a torn tail, the rows of the commit would be gone without a word."""
    sound = parse(BYTES, "j")
    for at in range(record(number).start, record(number).stop):
        for bit in (1, 32, 255):
            changed = bytearray(BYTES)
            changed[at] ^= bit
            found = parse(bytes(changed), "j", strict=False)
            assert found.sequence == 3
            ((message, rows),) = found.problems
            assert "one byte" in message
            assert rows in {(run.start, run.stop) for run in sound.runs}
            with pytest.raises(DamageError, match="one byte"):
                parse(bytes(changed), "j")


def test_a_lost_commit_in_the_middle_is_damage() -> None:
    with pytest.raises(DamageError):
        parse(BYTES[: after(1)] + BYTES[after(2) :], "j")
    with pytest.raises(DamageError):
        parse(BYTES[: record(2).start] + BYTES[record(2).stop :], "j")


def test_what_is_sound_of_a_damaged_journal_can_be_had() -> None:
    journal = parse(broken(2), "j", strict=False)
    assert [run.start for run in journal.runs] == [0, 20, UNIT]
    assert len(journal.problems) == 1


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([Run(UNIT - 1, UNIT + 1, 0)], "straddles a unit"),
        ([Run(5, 5, 0)], "has no rows"),
        ([Run(0, 10, 0), Run(5, 15, 0)], "overlap rows 0 to 9"),
        ([Run(5, 15, 0), Run(0, 10, 0)], "overlap rows 5 to 14"),
        ([Run(0, 10, 0), Run(0, 9, 0)], "overlap rows 0 to 9"),
        ([Run(0, 10, 0), Run(20, 30, 0), Run(0, 25, 0)], "overlap rows 20 to 29"),
        ([Run(99_990, 100_001, 0)], "plans 100000 rows"),
    ],
)
def test_contradictory_runs_are_damage(runs: list[Run], words: str) -> None:
    data = HEADER.pack() + b"".join(pack_commit([run], i + 1) for i, run in enumerate(runs))
    with pytest.raises(DamageError, match=words) as caught:
        parse(data, "j", 100_000)
    assert caught.value.rows == ((runs[-1].start, runs[-1].stop),)
    kept = parse(data, "j", 100_000, strict=False)
    assert kept.runs == tuple(sorted(runs[:-1], key=lambda run: run.start))


def test_a_later_run_replaces_those_it_contains() -> None:
    runs = [Run(0, 5, 1), Run(10, 20, 2), Run(5, 10, 3), Run(0, 20, 4), Run(0, 30, 5)]
    data = HEADER.pack() + b"".join(pack_commit([run], i + 1) for i, run in enumerate(runs))
    assert parse(data, "j").runs == (Run(0, 30, 5),)


def test_the_header_is_checked() -> None:
    for change in (b"", BYTES[:100], b"x" + BYTES[1:]):
        with pytest.raises(DamageError):
            parse(change, "j")
    foreign = bytearray(BYTES)
    foreign[:8] = b"SOMEONES"
    foreign[124:128] = crc32c(bytes(foreign[:124])).to_bytes(4, "little")
    with pytest.raises(FormatError, match="not a journal"):
        parse(bytes(foreign), "j")
    newer = bytearray(BYTES)
    newer[8] = 2
    newer[124:128] = crc32c(bytes(newer[:124])).to_bytes(4, "little")
    with pytest.raises(UnsupportedError, match="version 2"):
        parse(bytes(newer), "j")


def test_the_schema_checksum_sees_what_decides_the_bytes() -> None:
    schema = header_of("many columns", 10).schema
    assert _schema_crc(schema) == _schema_crc(header_of("many columns", 99).schema)
    others = [replace(schema, temperature=2.0), replace(schema, columns=schema.columns[:-1])]
    assert _schema_crc(schema) not in [_schema_crc(other) for other in others]


def test_an_id_that_is_no_uuid_is_refused() -> None:
    with pytest.raises(FormatError, match="expected a UUID"):
        JournalHeader.of(replace(header_of("one column", 1), id="../../x"), "main")
    with pytest.raises(ArgumentError, match="owner"):
        JournalHeader.of(header_of("one column", 1), "")


@given(st.lists(st.integers(0, 60), min_size=2, max_size=40), st.integers(1, 9))
def test_any_disjoint_runs_come_back(cuts: list[int], size: int) -> None:
    bounds = sorted(set(cuts))
    runs = [Run(a, b, a * 7) for a, b in pairwise(bounds)]
    if not runs:
        return
    commits = [runs[i : i + size] for i in range(0, len(runs), size)]
    data = HEADER.pack() + b"".join(pack_commit(c, i + 1) for i, c in enumerate(commits))
    assert parse(data, "j").runs == tuple(runs)


@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_raise(tail: bytes) -> None:
    parse(BYTES + tail, "j", strict=False)
    journal = parse(HEADER.pack() + tail, "j", strict=False)
    assert journal.num_bytes == HEADER_BYTES


def test_random_bytes_are_no_journal() -> None:
    with pytest.raises(DamageError):
        parse(os.urandom(4096), "j")
