"""How many bytes a store will take, before it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fostore.encodings import chosen, make_schema
from fostore.errors import ArgumentError
from fostore.formats import SUFFIXES
from fostore.schema import geometry
from fostore.schema.integers import integer
from fostore.writing.sides import side_columns

_HASH_BYTES = 32
_JSON_NUMBER = 12.6  # characters a softmax probability takes as shortest float32 text, with ", "
_JSON_ROW = 6.0  # quotes, colon, brackets and comma around a row, beside the digits of its index
_HEADER = {"zarr": 4_000, "hdf5": 40_960, "json": 1_000}
_COLUMN = 1_000  # the attributes of a Zarr array


def estimate_size(
    num_samples: int,
    num_classes: int,
    *,
    dtype: str = "float32",
    format: str = "zarr",
    kind: str = "probs",
    num_members: int | None = None,
    fingerprints: bool = True,
    encoding: str | Mapping[str, Any] | None = None,
    k: int | None = None,
    temperatures: Sequence[float] | None = None,
) -> int:
    """The bytes on disk of a store of `num_samples` distributions, right within a few percent.

    Args:
        num_samples: rows.
        num_classes: classes of a distribution.
        dtype: "float32", "float16", "bfloat16" or "float64".
        format: "zarr", "hdf5" (or "h5"), or "json", whose size depends on the numbers: an estimate
            for the softmax of a trained model, right within 15 percent.
        kind: "probs", "log_probs" or "logits".
        num_members: distributions a row, for ensembles.
        fingerprints: whether a hash of the input is kept with each row, as generators do.
        encoding, k, temperatures: how rows become columns; see `fostore.create`.

    Raises:
        ArgumentError: an unknown format, dtype or kind, or a number under 1.

    >>> round(estimate_size(50_000, 1000, dtype="float16") / 1e6)
    101
    """
    name = SUFFIXES.get(f".{format.lstrip('.')}", format)
    if name not in _HEADER:
        raise ArgumentError(f"format is {format!r}, expected 'zarr', 'hdf5' or 'json'")
    integer(num_samples, "num_samples", 0)
    schema = make_schema(
        num_classes,
        num_members=num_members,
        kind=kind,
        dtype=dtype,
        encoding=chosen(encoding, k=k, temperatures=temperatures),
        side_columns=side_columns({"fingerprints": fingerprints and name != "json"}, None),
    )
    if name == "json":
        first, *others = (math.prod(column.shape) for column in schema.content if column.shape)
        numbers = first * _JSON_NUMBER + sum(others) * (
            len(str(num_classes)) + 2
        )  # classes, mostly
        digits = len(str(max(num_samples - 1, 0)))
        return round(num_samples * (numbers + _JSON_ROW + digits)) + _HEADER[name]
    unit_rows = geometry.unit_rows(schema.row_bytes, num_samples)
    block_rows = geometry.block_rows(schema.row_bytes)
    hashed = sum(column.hashed for column in schema.columns) * _HASH_BYTES
    if name == "hdf5":
        hashes = _pages(-(-num_samples // block_rows) * hashed)
        return _HEADER[name] + hashes + sum(_pages(num_samples * n) for n in schema.row_bytes)
    units = -(-num_samples // unit_rows)
    columns = [_shards(num_samples, n, unit_rows) + _COLUMN for n in schema.row_bytes]
    return _HEADER[name] + sum(columns) + units * (unit_rows // block_rows) * hashed


def _pages(size: int) -> int:
    """What lies in an HDF5 file begins on a page of its own."""
    return -(-size // geometry.PAGE_BYTES) * geometry.PAGE_BYTES


def _shards(rows: int, row_bytes: int, unit_rows: int) -> int:
    """The shards of a Zarr column: whole inner chunks, and in each shard an index of them."""
    inner = geometry.inner_rows(row_bytes, unit_rows)
    index = 16 * (unit_rows // inner) + 4
    return -(-rows // inner) * inner * row_bytes + -(-rows // unit_rows) * index
