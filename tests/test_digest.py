"""Checksums, block hashes and the digest: what changes them and what must not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from fostore.encodings import make_schema
from fostore.errors import ArgumentError
from fostore.schema import digest, geometry
from fostore.schema.header import Header
from fostore.schema.row import Array, Column
from support import row_crc

IDS = Column("sample_id", "int64", "int64", (), (), "id")
HASHES = Column("input_hash", "uint64", "uint64", (), (), "fingerprint")


def header_of(num_samples: int | None = 5, **schema: object) -> Header:
    made = make_schema(3, **schema)  # type: ignore[arg-type]
    sizes = made.row_bytes
    return Header(made, num_samples, geometry.unit_rows(sizes, None), geometry.block_rows(sizes))


def hashes_of(header: Header, seed: int = 1) -> Array:
    shape = (digest.num_blocks(header), len(digest.hashed_columns(header)), 32)
    return np.random.default_rng(seed).integers(1, 255, shape, dtype=np.uint8)


# ------------------------------------------------------------------ checksums


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_crc_in_plain_python_is_that_of_the_library(before: bytes, data: bytes) -> None:
    value = crc32c(before)
    assert digest._small_checksum(data, value) == crc32c(data, value)


def test_the_crc_is_crc32c_of_the_bytes() -> None:
    rows = np.frombuffer(b"123456789", np.uint8)
    assert digest.crc(rows) == 0xE3069283  # the check value of the CRC catalogue


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from(["<f4", "<u2", "u1"]))
def test_a_crc_goes_on_from_the_rows_before(sizes: list[int], dtype: str) -> None:
    rows = np.arange(sum(sizes) * 6, dtype=np.uint8).astype(dtype).reshape(-1, 2, 3)
    running = start = 0
    for size in sizes:
        running = digest.crc(rows[start : start + size], running)
        start += size
    assert running == digest.crc(rows)


def test_the_crc_of_a_run_is_over_the_columns_crcs_in_order() -> None:
    one, other = np.arange(6, dtype="<f4").reshape(2, 3), np.arange(2, dtype="<i8")
    packed = struct.pack("<II", digest.crc(one), digest.crc(other))
    expected = digest.crc(np.frombuffer(packed, np.uint8))
    assert row_crc([one, other]) == expected
    assert digest.combine_crcs([digest.crc(one), digest.crc(other)]) == expected
    assert row_crc([other, one]) != expected


# ------------------------------------------------------------------ block hashes


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "u1"])
def test_a_block_hash_is_blake3_of_the_rows_bytes(dtype: str) -> None:
    rows = np.arange(24).astype(dtype).reshape(4, 2, 3)
    expected = blake3(rows.tobytes()).digest()
    assert digest.block_hash(rows).tobytes() == expected
    assert digest.block_hash(np.asfortranarray(rows)).tobytes() == expected
    hasher = digest.hasher()
    for row in rows:
        hasher.update(digest.buffer(row))
    assert hasher.digest() == expected


def test_bytes_of_contiguous_rows_are_not_copied() -> None:
    rows = np.zeros((4, 3), np.float32)
    assert np.shares_memory(digest.buffer(rows[1:]), rows)
    assert digest.buffer(rows[:0]).shape == (0,)
    assert digest.buffer(rows[:, :2]).shape == (32,)
    assert digest.buffer(np.zeros((), "<i8")).shape == (8,)


# ------------------------------------------------------------------ the digest


def test_the_digest_is_built_as_the_specification_says() -> None:
    header = header_of(3000, class_names=["a", "ü", "c"], side_columns=[IDS, HASHES])
    hashes = hashes_of(header)
    text = (
        '{"axes":["sample","class"],"class_names":["a","ü","c"],"columns":['
        '{"axes":["class"],"dtype":"float32","name":"probs","role":"content","shape":[3],'
        '"stored":"float32"},{"axes":[],"dtype":"int64","name":"sample_id","role":"id",'
        '"shape":[],"stored":"int64"}],"encoding":{"name":"dense"},"kind":"probs",'
        '"num_samples":3000,"temperature":1.0}'
    ).encode()
    assert digest.canonical(header) == text
    whole = struct.pack("<Q", len(text)) + text
    for column in range(2):
        whole += blake3(hashes[:, column].tobytes()).digest()
    assert hashes.shape == (3, 2, 32)
    assert digest.store_digest(header, hashes) == "blake3:" + blake3(whole).hexdigest()


def test_the_digest_of_known_rows_never_changes() -> None:
    rows = np.float32([[0.25, 0.5, 0.25], [1, 0, 0]])
    hashes = digest.block_hash(rows)[None, None]
    assert digest.store_digest(header_of(2), hashes) == (
        "blake3:7f3171dea50072eae5e7e4dc9a3b463f287a5709a58d7688048e4d98804a5ee2"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda h: replace(h, unit_rows=h.unit_rows * 2),
        lambda h: replace(h, id="another"),
        lambda h: replace(h, identity={"model": {"hash": "1"}}),
        lambda h: replace(h, software={"fostore": "9"}, created="", updated="", version="1.7"),
        lambda h: replace(h, meta={"a": 1}, sealed=True, digest="x", extra={"new": 1}),
        lambda h: replace(h, schema=replace(h.schema, sum_tolerance=0.5)),
        lambda h: replace(
            h,
            schema=replace(h.schema, columns=(*h.schema.columns, HASHES)),
            block_rows=h.block_rows,
        ),
    ],
)
def test_what_is_recorded_and_not_checked_is_no_part_of_the_digest(
    change: Callable[[Header], Header],
) -> None:
    header = header_of()
    hashes = hashes_of(header)
    assert digest.store_digest(change(header), hashes) == digest.store_digest(header, hashes)


@pytest.mark.parametrize(
    "other",
    [
        header_of(6),
        header_of(dtype="float64"),
        header_of(dtype="float16"),
        header_of(dtype="bfloat16"),
        header_of(kind="log_probs"),
        header_of(num_members=1),
        header_of(temperature=2.0),
        header_of(class_names=["a", "b", "c"]),
        header_of(class_names=["b", "a", "c"]),
        header_of(kind="counts", dtype="uint8"),
        header_of(kind="counts", dtype="uint16"),
    ],
)
def test_what_the_rows_are_is_part_of_the_digest(other: Header) -> None:
    hashes = hashes_of(header_of())
    assert digest.store_digest(other, hashes) != digest.store_digest(header_of(), hashes)


def test_how_logits_are_shifted_is_part_of_the_digest() -> None:
    header = header_of(kind="logits")
    logits, level = header.schema.columns
    plain = replace(header.schema, columns=(replace(logits, extra={}), level))
    hashes = hashes_of(header)
    assert digest.store_digest(header, hashes) != digest.store_digest(
        replace(header, schema=plain), hashes
    )
    newer = replace(
        header.schema, columns=(replace(logits, extra={"shift": "row_max", "x": 1}), level)
    )
    assert digest.store_digest(header, hashes) == digest.store_digest(
        replace(header, schema=newer), hashes
    )


@given(st.integers(0, 2), st.integers(0, 31))
def test_every_byte_of_every_hash_is_part_of_the_digest(block: int, byte: int) -> None:
    header = header_of(3000)
    hashes = hashes_of(header)
    changed = hashes.copy()
    changed[block, 0, byte] ^= 1
    assert digest.store_digest(header, hashes) != digest.store_digest(header, changed)


def test_columns_do_not_run_into_each_other() -> None:
    header = header_of(2048, side_columns=[IDS])
    hashes = hashes_of(header)
    assert digest.store_digest(header, hashes) != digest.store_digest(header, hashes[:, ::-1])
    swapped = hashes.transpose(1, 0, 2)
    assert digest.store_digest(header, hashes) != digest.store_digest(header, swapped)


def test_an_empty_store_has_a_digest() -> None:
    header = header_of(0)
    assert digest.store_digest(header, hashes_of(header)).startswith("blake3:")


def test_hashes_that_do_not_fit_the_rows_are_refused() -> None:
    header = header_of(3000)
    hashes = hashes_of(header)
    for wrong in (hashes[:-1], hashes[..., :16], hashes.astype(np.int64)):
        with pytest.raises(ArgumentError, match="expected uint8"):
            digest.store_digest(header, wrong)


def test_a_stream_has_no_digest_before_its_end() -> None:
    with pytest.raises(ArgumentError, match="num_samples is not known yet"):
        digest.store_digest(header_of(None), np.zeros((0, 1, 32), np.uint8))


def test_the_canonical_text_survives_a_round_trip_of_the_attributes() -> None:
    for header in (header_of(kind="logits", temperature=2), header_of(class_names=["x", "y", "z"])):
        again = Header.from_json(json.loads(json.dumps(header.to_json())), "here")
        assert digest.canonical(again) == digest.canonical(header)
