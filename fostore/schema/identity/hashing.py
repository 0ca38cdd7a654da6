"""Hashes of bytes, arrays, nested data and the rows of a batch (spec/core.md, identity)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Any

import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_hexdigest

from fostore.nested import is_numbers
from fostore.schema.row import Array

UNSEEN = "unseen"
"""The entry of what cannot be hashed."""
Parts = Callable[[Any], "str | Mapping[str, Any] | None"]
_SMALL_ROW = 2048  # bytes


def hash_bytes(data: Any) -> str:
    """128 bits of xxh3 over any buffer, in hexadecimal."""
    return xxh3_128_hexdigest(data)


def array_entry(dtype: str, shape: Sequence[int], data: Any) -> str:
    """A tensor as an identity keeps it: its dtype, shape and hash.

    >>> array_entry("float32", (2, 3), bytes(24)).rsplit(" ", 1)[0]
    'float32 [2, 3]'
    """
    return f"{dtype} {list(shape)} {hash_bytes(data)}"


def hash_leaves(data: Any, parts: Parts | None = None) -> dict[str, str] | None:
    """Entries of nested NumPy-like arrays and plain values, by path; None if something has no bytes.

    `parts`: what a framework knows of an object: its entry, or what it holds by the path that is
    appended; None where it knows nothing.

    >>> sorted(hash_leaves({"w": np.zeros(2), "steps": 3}))
    ["['steps']", "['w']"]
    """
    entries: dict[str, str] = {}

    def collect(item: Any, path: str) -> bool:
        inner = None if parts is None else parts(item)
        if isinstance(inner, str):
            entries[path] = inner
            return inner != UNSEEN
        if inner is None and isinstance(item, Mapping):
            inner = {f"[{key!r}]": value for key, value in item.items()}
        elif inner is None and isinstance(item, (list, tuple)):
            inner = {f"[{i}]": value for i, value in enumerate(item)}
        if inner is not None:
            return all(collect(value, f"{path}{name}") for name, value in inner.items())
        if item is None or isinstance(item, (bool, int, float, str, bytes)):
            entries[path] = f"{type(item).__name__} {item!r}"
            return True
        if hasattr(item, "__array__") and hasattr(item, "shape"):
            try:
                array = np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)
            except (TypeError, ValueError, RuntimeError):
                return False
            if array.dtype != object:
                entries[path] = array_entry(array.dtype.name, array.shape, _bytes_of(array))
                return True
        return False

    return entries if collect(data, "") else None


def _bytes_of(array: Array) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def row_hashes(leaves: Iterable[tuple[str, Any]], rows: int) -> Array | None:
    """One 64-bit hash a row (uint64) of a collated batch; None where a leaf has no bytes.

    A row's hash covers the path, dtype, shape and bytes of its part of every leaf: it is the same
    in a batch of any size. Leaves without a row axis count into every row.

    Args:
        leaves: (path, leaf): C-contiguous NumPy arrays, or lists with an entry a row: texts, bytes, arrays,
            lists of numbers or anything that `hash_leaves` takes.
        rows: rows of the batch.
    """
    digest = xxh3_64_intdigest
    hashes: list[Any] = []
    for path, leaf in leaves:
        if isinstance(leaf, np.ndarray):
            if leaf.ndim and leaf.shape[0] == rows:
                seed = digest(f"{path} {leaf.dtype.name} {leaf.shape[1:]}".encode())
                size = leaf.nbytes // rows if rows else 0
                hashes.append(_hash_rows(leaf, rows, size, seed) if size else [seed] * rows)
            else:
                seed = digest(f"{path} {leaf.dtype.name} {leaf.shape}".encode())
                hashes.append([digest(_bytes_of(leaf).data, seed)] * rows)
        elif isinstance(leaf, (list, tuple)) and len(leaf) == rows:
            seed = digest(f"{path} str".encode())
            entries = [
                digest(entry.encode(), seed) if type(entry) is str else _entry_hash(path, entry)
                for entry in leaf
            ]
            if None in entries:
                return None
            hashes.append(entries)
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            hashes.append([digest(f"{path} {leaf!r}".encode())] * rows)
        else:
            return None
    if not hashes:
        return None
    if len(hashes) == 1:  # one leaf, as most inputs are: its hashes are the rows'
        return np.array(hashes[0], np.uint64)
    table = np.array(
        hashes, np.uint64
    ).T.copy()  # a row's hashes side by side, to be hashed as bytes
    return np.array([digest(row.data) for row in table], np.uint64)


def _entry_hash(path: str, entry: Any) -> int | None:
    """The hash of one entry of a list; an array's is that of a row of a whole array of such."""
    digest = xxh3_64_intdigest
    if isinstance(entry, str):  # of a type of its own, such as NumPy's
        return digest(entry.encode(), digest(f"{path} str".encode()))
    if isinstance(entry, bytes):
        return digest(entry, digest(f"{path} bytes".encode()))
    if is_numbers(entry):
        with suppress(ValueError):  # lists of several lengths
            entry = np.array(entry)
    if isinstance(entry, np.ndarray) and entry.dtype != object:
        seed = digest(f"{path} {entry.dtype.name} {entry.shape}".encode())
        return digest(_bytes_of(entry).data, seed) if entry.nbytes else seed
    entries = hash_leaves(entry)
    if entries is None:
        return None
    return digest(repr(sorted(entries.items())).encode(), digest(path.encode()))


def _hash_rows(leaf: Array, rows: int, size: int, seed: int) -> Array:
    """xxh3 of each row's `size` bytes, uint64 (rows,)."""
    flat = _bytes_of(leaf)
    parts: Iterable[Any]
    if size <= _SMALL_ROW:  # copied, so that no Python runs between two rows: twice as fast
        parts = flat.view(f"V{size}").tolist()
    else:
        view: Any = memoryview(flat)
        parts = (view[at : at + size] for at in range(0, rows * size, size))
    return np.frombuffer(b"".join(map(xxh3_64_digest, parts, repeat(seed))), ">u8").astype("<u8")


def hash_values(values: Any) -> str | None:
    """A hash of labels or ids: numbers or strings, whatever container; None for anything else.

    The same for a list, an array or a tensor of the same values and kind.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    # one width a kind, so that a list of ints and an int32 tensor of the same labels agree
    if array.dtype.kind in "iub":
        return hash_bytes(_bytes_of(array.astype(np.int64)))
    if array.dtype.kind == "f":
        return hash_bytes(_bytes_of(array.astype(np.float64)))
    if array.dtype.kind == "U":
        return hash_bytes("\0".join(map(str, array.ravel().tolist())).encode())
    return None
