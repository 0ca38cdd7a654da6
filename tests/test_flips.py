"""One flipped bit, by kind of byte: refused, found by verify, or harmless; what may stay silent stands in a list.

`FOSTORE_FLIPS` says how many bytes of each kind are tried.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fostore
from fostore.conversion import convert
from fostore.errors import FostoreError
from support import probs

FLIPS = int(os.environ.get("FOSTORE_FLIPS", "10"))
N, HELD, K = 70, 50, 3

SILENT = {
    "sealed.zarr: side rows": "no hash covers input hashes and views (C-14): they say how rows came, not what they are",
    "sealed.h5: side rows": "the same",
    "sealed.json: side rows": "the same",
    "open.json: rows": "only a sealed document has a digest, and JSON keeps no checksum of rows (J-14)",
    "open.json: side rows": "the same",
    "plain.json: text": "a file that fostore did not write keeps no checksum of anything",
}
"""Kinds of bytes of which a flip may change what is read, with nobody noticing, and why.

Beside them, of all kinds: more than one byte of the last commit of a journal, and a journal that was cut, look as a
crash leaves them; a store without checksums in its header (written before they were) is covered as it was then.
"""

Span = tuple[str, Path, int, int]
"""A kind of byte: its name, and where such bytes lie: file, start, stop."""


def make(path: Path, stop: int) -> Path:
    with fostore.create(
        path,
        num_samples=N,
        num_classes=K,
        unit_rows=1024,
        ids=[f"id{i:03}" for i in range(N)],
        fingerprints=True,
        views=np.arange(N),
        class_names=["a", "b", "c"],
        meta={"note": "hello", "number": 17},
        identity={"model": {"weights": "abc123"}},
        commit_seconds=1e9,
    ) as writer:
        for start in range(0, stop, 25):
            end = min(start + 25, stop)
            given = probs(end - start, K, start=start)
            writer.append(given, fingerprints=np.arange(start, end, dtype=np.uint64) * 7919)
            writer.commit()
    return path


def made(folder: Path, name: str) -> Path:
    stop = N if name.startswith("sealed") else HELD
    path = folder / name
    if path.suffix != ".json":
        return make(path, stop)
    if name == "plain.json":
        rows = {str(i): row for i, row in enumerate(probs(N, K).tolist())}
        path.write_text(json.dumps({"meta": {"note": "hello"}, "distributions": rows}))
        return path
    source = make(folder / "source.zarr", stop)
    if name == "sealed.json":
        convert(source, path, progress=False)
    else:
        from fostore.files.json import export

        export(path, fostore.open(source).reader)
    return path


# ------------------------------------------------------------------ which byte is what


def spans_of(path: Path) -> Iterator[Span]:
    yield from {".zarr": zarr_spans, ".h5": hdf5_spans, ".json": json_spans}[path.suffix](path)


def zarr_spans(path: Path) -> Iterator[Span]:
    header = fostore.open(path).header
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        size, owner = file.stat().st_size, file.relative_to(path).parts[0]
        if file.name == "zarr.json":
            of = (
                "header"
                if file.parent == path
                else f"metadata of {'hashes' if owner == 'block_hashes' else 'columns'}"
            )
            yield of, file, 0, size
        elif ".journal." in file.name:
            yield "journal header", file, 0, 128
            yield "journal records", file, 128, size - 40
            yield "last journal record", file, size - 40, size
        elif owner == "block_hashes":
            yield "hashes", file, 0, 32 * sum(column.hashed for column in header.schema.columns)
            yield "rest of hashes", file, 32 * sum(c.hashed for c in header.schema.columns), size
        else:
            column = next(c for c in header.schema.columns if c.name == owner)
            held = (N if header.sealed else HELD) * column.row_bytes
            yield "rows" if column.hashed else "side rows", file, 0, held
            yield "padding and index", file, held, size


def hdf5_spans(path: Path) -> Iterator[Span]:
    header = fostore.open(path).header
    taken = []
    with h5py.File(path, "r", locking=False) as file:
        for name, dataset in file.items():
            taken.append((dataset.id.get_offset(), dataset.id.get_offset() + dataset.nbytes, name))
    position = 0
    for start, stop, name in sorted(taken):
        yield "structure and mirrors", path, position, start
        position = stop
        column = next((c for c in header.schema.columns if c.name == name), None)
        if column is not None:
            held = start + (N if header.sealed else HELD) * column.row_bytes
            yield "rows" if column.hashed else "side rows", path, start, held
            yield "rows that are not written", path, held, stop
        elif name in ("header", "progress"):
            half = (stop - start) // 2
            for slot in (start, start + half):
                length = int.from_bytes(path.read_bytes()[slot + 16 : slot + 24], "little")
                yield f"slots of {name}", path, slot, slot + 32 + length
                yield "room of slots", path, slot + 32 + length, slot + half
        else:
            yield "hashes", path, start, stop


def json_spans(path: Path) -> Iterator[Span]:
    text = path.read_bytes()
    if path.name == "plain.json":
        yield "text", path, 0, len(text)
        return
    tables = [match.start() for match in re.finditer(rb',\n"[a-z_]+": {', text)]
    yield "meta and header", path, 0, tables[0]
    for start, stop in zip(tables, [*tables[1:], len(text)], strict=True):
        name = text[start + 3 : text.index(b'"', start + 3)].decode()
        yield "side rows" if name in ("input_hash", "view") else "rows", path, start, stop


# ------------------------------------------------------------------ what a user gets


def all_of(path: Path) -> dict[str, Any]:
    with fostore.open(path) as store:
        ranges = store.committed.items
        columns = [
            [store.reader.column(i).read(start, stop).tobytes() for start, stop in ranges]
            for i in range(len(store.schema.columns))
        ]
        header = store.header.to_json()
        # Checksums apart, also where the flip has hit the name of their key: nothing else reads differently.
        header["fostore"] = {
            key: value
            for key, value in header["fostore"].items()
            if not str(value).startswith("crc32:")
        }
        return {"rows": ranges, "columns": columns, "header": header}


def outcome(path: Path, truth: dict[str, Any]) -> str:
    """What becomes of a flip; anything but an error of ours is an error of the test."""
    try:
        reads = all_of(path)
        findings = fostore.open(path).verify()
    except FostoreError:
        return "refused"
    if findings:
        return "found"
    return "harmless" if reads == truth else "silent"


STORES = (
    "sealed.zarr",
    "open.zarr",
    "sealed.h5",
    "open.h5",
    "sealed.json",
    "open.json",
    "plain.json",
)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("name", STORES)
def test_a_flipped_bit_is_refused_found_or_harmless(tmp_path: Path, name: str) -> None:
    path = made(tmp_path, name)
    truth = all_of(path)
    assert fostore.open(path).verify() == []
    chance = random.Random(name)
    kinds: dict[str, list[tuple[Path, int]]] = {}
    for kind, file, start, stop in spans_of(path):
        kinds.setdefault(kind, []).extend((file, at) for at in range(start, stop))
    silent = {key for key in SILENT if key.startswith(f"{name}: ")}
    assert silent <= {f"{name}: {kind}" for kind in kinds}
    told = []
    for kind, places in kinds.items():
        for file, at in chance.sample(places, min(FLIPS, len(places))):
            data = file.read_bytes()
            bit = 1 << chance.randrange(8)
            with file.open("r+b") as opened:
                opened.seek(at)
                opened.write(bytes([data[at] ^ bit]))
            found = outcome(path, truth)
            file.write_bytes(data)
            if found == "silent" and f"{name}: {kind}" not in silent:
                told.append(
                    f"{kind}, byte {at} of {file.name}: {data[max(at - 30, 0) : at + 10]!r}, bit {bit}"
                )
    assert told == []
