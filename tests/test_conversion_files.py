"""The file formats of `convert`: what goes in comes out, what others write is read, what is hostile is refused."""

from __future__ import annotations

import csv
import gc
import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fostore
from fostore import disk
from fostore.conversion import convert
from fostore.conversion.sources import open_table
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.rows import round_to
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    SpaceError,
    UnsafeError,
    UnsupportedError,
)
from fostore.files import FILES, Hints, file_format
from fostore.files.table import Table
from fostore.schema import geometry
from fostore.schema.digest import HASH_BYTES, block_hash, store_digest
from fostore.schema.header import Header
from fostore.schema.row import COUNTS, FLOATS, Column, Schema
from fostore.schema.sides.ids import encode_ids, id_column

WITH_HEADER = ("npz", "safetensors", "pt", "parquet", "arrow", "jsonl", "json")
WITHOUT = ("npy", "csv")
ALL = (*WITH_HEADER, *WITHOUT)
PRINTS = Column("input_hash", "uint64", "uint64", (), (), "fingerprint")
VIEWS = Column("view", "int64", "int64", ("seed_view",), (2,), "view")
LINES = ("csv", "jsonl")


# ------------------------------------------------------------------ rows, files and what is in them


def rows_of(schema: Schema, num_rows: int, seed: int = 0) -> list[np.ndarray]:
    """Stored columns: random, with one-hot rows among them, side columns filled."""
    random = np.random.default_rng(seed)
    shape = (num_rows, *schema.row_shape)
    logits = random.normal(0, random.choice([0.1, 3.0]), shape).astype(np.float64)
    if schema.kind == "counts":
        most = min(int(np.iinfo(COUNTS[schema.dtype]).max), 1 << 62)
        rows: Any = random.integers(0, most, shape, np.uint64, endpoint=True)
        rows[..., 0] = np.maximum(rows[..., 0], 1)
        rows = rows.astype(COUNTS[schema.dtype])
    elif schema.kind == "logits":
        rows = logits.astype(np.float32) + random.normal() * 5
    else:
        rows = np.exp(logits)
        rows /= rows.sum(axis=-1, keepdims=True)
        if num_rows > 2:  # a class that is sure, others with nothing
            rows[1] = 0
            rows[1, ..., 0] = 1
        if schema.kind == "log_probs":
            with np.errstate(divide="ignore"):
                rows = np.log(rows)
    columns = encoding_of(schema).encode(np.ascontiguousarray(rows), schema, 0)
    for column in schema.columns[len(columns) :]:
        if column.dtype == "utf8":
            texts = [f'{seed}, "ä\n{i}' for i in range(num_rows)]
            columns.append(encode_ids(texts, column, 0))
        else:
            low = -(1 << 62) if column.dtype == "int64" else 0
            numbers = random.integers(low, 1 << 62, (num_rows, *column.shape))
            columns.append(numbers.astype(column.numpy_dtype))
    return columns


def header_of(schema: Schema, num_rows: int | None, **others: Any) -> Header:
    return Header(
        schema,
        num_rows,
        geometry.unit_rows(schema.row_bytes, num_rows),
        geometry.block_rows(schema.row_bytes),
        **others,
    )


def batches_of(columns: list[np.ndarray], size: int, start: int = 0) -> Iterator[list[np.ndarray]]:
    for first in range(start, len(columns[0]), size):
        yield [column[first : first + size] for column in columns]


def write(
    path: Path,
    format: str,
    header: Header,
    columns: list[np.ndarray],
    size: int = 7,
    start: int = 0,
) -> None:
    file_format(format).write(path, header, batches_of(columns, size, start), start)


def everything(table: Table, size: int = 5, start: int = 0) -> list[np.ndarray]:
    parts = list(table.batches(start, size))
    assert all(0 < len(part[0]) <= size for part in parts)
    if not parts:
        return [np.empty((0, *c.shape), c.numpy_dtype) for c in table.schema.columns]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def digest_of(schema: Schema, columns: list[np.ndarray]) -> str:
    header = header_of(schema, len(columns[0]))
    hashed = [columns[i] for i, column in enumerate(schema.columns) if column.hashed]
    hashes = [
        [block_hash(column[start : start + header.block_rows]) for column in hashed]
        for start in range(0, len(columns[0]), header.block_rows)
    ]
    return store_digest(header, np.array(hashes, np.uint8).reshape(-1, len(hashed), HASH_BYTES))


def assert_same_columns(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.flags.c_contiguous
        assert one.tobytes() == other.tobytes()


def hints_of(schema: Schema) -> Hints:
    return Hints(kind=schema.kind, dtype=schema.dtype, class_names=schema.class_names)


def probs(num_rows: int, num_classes: int = 4, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).random((num_rows, num_classes)) + 0.01
    return (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


def read(path: Path, **hints: Any) -> Table:
    return open_table(str(path), Hints(**hints))


# ------------------------------------------------------------------ round trips


@st.composite
def schemas(draw: st.DrawFn, *, plain: bool, members: bool = True) -> Schema:
    kinds = (
        ("probs", "log_probs", "counts") if plain else ("probs", "log_probs", "counts", "logits")
    )
    kind = draw(st.sampled_from(kinds))
    dtypes = [
        d for d in (COUNTS if kind == "counts" else FLOATS) if not (plain and d == "bfloat16")
    ]
    classes = draw(st.sampled_from([1, 2, 3, 11]))
    sides: list[Column] = []
    if not plain:
        key = draw(st.sampled_from([None, "int64", "S24"]))
        sides += [id_column(key)] if key else []
        sides += draw(st.sampled_from([[], [PRINTS], [PRINTS, VIEWS]]))
    return make_schema(
        classes,
        num_members=draw(st.sampled_from([None, 1, 3])) if members else None,
        kind=kind,
        dtype=draw(st.sampled_from(dtypes)),
        class_names=None if plain or draw(st.booleans()) else [f"ä {i}" for i in range(classes)],
        temperature=1.0 if plain else draw(st.sampled_from([1.0, 2.5])),
        side_columns=sides,
    )


EXAMPLES = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", WITH_HEADER)
@EXAMPLES
@given(
    schema=schemas(plain=False), num_rows=st.sampled_from([0, 1, 2, 19]), seed=st.integers(0, 99)
)
def test_a_file_with_a_header_gives_back_all_that_went_into_it(
    format: str, schema: Schema, num_rows: int, seed: int, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{format}"
    columns = rows_of(schema, num_rows, seed)
    header = header_of(
        schema,
        num_rows,
        meta={"näme": [1, None, 2**70, 0.1]},
        identity={"model": {"class": "Net"}},
        extra={"from_a_newer_version": {"x": 1}},
    )
    path.unlink(missing_ok=True)
    write(path, format, header, columns)
    table = read(path)
    assert table.schema == schema
    assert (table.meta, table.identity, table.extra) == (header.meta, header.identity, header.extra)
    assert table.num_rows == num_rows
    assert_same_columns(everything(table), columns)
    assert digest_of(table.schema, everything(table)) == digest_of(schema, columns)
    assert table.digest == (None if format == "jsonl" else digest_of(schema, columns))
    middle = num_rows // 2
    assert_same_columns(everything(table, 3, middle), [column[middle:] for column in columns])


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", WITHOUT)
@EXAMPLES
@given(data=st.data(), num_rows=st.sampled_from([0, 1, 2, 19]), seed=st.integers(0, 99))
def test_a_file_without_a_header_gives_back_its_rows_to_those_who_say_what_they_are(
    format: str, data: st.DataObject, num_rows: int, seed: int, tmp_path: Path
) -> None:
    schema = data.draw(schemas(plain=True, members=format == "npy"))
    path = tmp_path / f"rows.{format}"
    columns = rows_of(schema, num_rows, seed)
    write(path, format, header_of(schema, num_rows), columns)
    table = open_table(str(path), hints_of(schema))
    assert table.schema == schema
    assert_same_columns(everything(table), columns)
    middle = num_rows // 2
    assert_same_columns(everything(table, 3, middle), [column[middle:] for column in columns])


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_hundred_thousand_classes_pass_through_every_format(
    format: str, dtype: str, tmp_path: Path
) -> None:
    schema = make_schema(100_000, dtype=dtype)
    random = np.random.default_rng(0).random((3, 100_000)) + 0.5
    columns = [round_to(random / random.sum(axis=1, keepdims=True), dtype)]
    path = tmp_path / f"wide.{format}"
    write(path, format, header_of(schema, 3), columns, size=2)
    table = open_table(str(path), Hints() if format in WITH_HEADER else hints_of(schema))
    assert_same_columns(everything(table, 2), columns)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", ALL)
def test_a_store_comes_back_from_every_format_with_its_digest_and_header(
    format: str, tmp_path: Path
) -> None:
    store, there, back = tmp_path / "a.zarr", tmp_path / f"b.{format}", tmp_path / "c.h5"
    lossy = format in WITHOUT
    names = None if format == "npy" else ["cat, big", "0"]
    ids = None if format == "npy" else ["x1", "x2", 'x "3"']
    with fostore.create(
        store, num_samples=3, num_classes=2, class_names=names, ids=ids, meta={"epoch": 3}
    ) as writer:
        writer.append(probs(3, 2))
    first = convert(store, there, allow_lossy=lossy, progress=False)
    second = convert(there, back, progress=False, source_dtype="float32" if lossy else None)
    assert first.source_digest == first.destination_digest == second.destination_digest
    assert second.is_lossless
    assert first.left_out == (("metadata",) if lossy else ())
    ours, theirs = fostore.open(store), fostore.open(back)
    assert theirs.schema.columns == ours.schema.columns
    assert theirs.schema.class_names == ours.schema.class_names
    assert theirs.meta == ({} if lossy else {"epoch": 3})
    assert theirs.header.identity == ({} if lossy else ours.header.identity)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", ALL)
def test_a_stream_of_unknown_length_goes_into_every_format(format: str, tmp_path: Path) -> None:
    schema = make_schema(3, kind="probs", side_columns=[PRINTS] if format in WITH_HEADER else [])
    columns = rows_of(schema, 20)
    path = tmp_path / f"stream.{format}"
    write(path, format, header_of(schema, None), columns)
    table = open_table(str(path), Hints() if format in WITH_HEADER else hints_of(schema))
    assert table.num_rows == 20
    assert_same_columns(everything(table), columns)


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("announced", [19, 21])
def test_more_or_fewer_rows_than_announced_are_refused(
    format: str, announced: int, tmp_path: Path
) -> None:
    schema = make_schema(3)
    with pytest.raises((FormatError, StopIteration, RuntimeError)):
        write(tmp_path / f"x.{format}", format, header_of(schema, announced), rows_of(schema, 20))


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", [f for f in WITH_HEADER if f not in ("json", "jsonl")])
def test_the_rows_of_a_file_with_a_header_are_those_of_the_header_by_their_name_too(
    format: str, tmp_path: Path
) -> None:
    schema = make_schema(3, kind="logits", class_names=["a", "b", "c"])
    path = tmp_path / f"x.{format}"
    write(path, format, header_of(schema, 4, meta={"a": 1}), rows_of(schema, 4))
    table = open_table(f"{path}::logits")
    assert (table.schema, table.meta, table.num_rows) == (schema, {"a": 1}, 4)


def test_an_array_beside_the_rows_of_a_file_with_a_header_can_be_read_alone(tmp_path: Path) -> None:
    schema = make_schema(3)
    write(tmp_path / "x.npz", "npz", header_of(schema, 4, meta={"a": 1}), rows_of(schema, 4))
    with np.load(tmp_path / "x.npz") as there:
        np.savez(tmp_path / "y.npz", other=there["probs"][:3], **there)
    table = open_table(f"{tmp_path / 'y.npz'}::other")
    assert (table.meta, table.num_rows) == ({}, 3)


# ------------------------------------------------------------------ going on


@pytest.mark.usefixtures("fast_disk")
@pytest.mark.parametrize("format", ["npy", "csv", "jsonl"])
@pytest.mark.parametrize("cut", [0, 1, 30, 400, 401, 700, 5000])
def test_a_cut_file_goes_on_at_its_last_whole_row(format: str, cut: int, tmp_path: Path) -> None:
    schema = make_schema(3)
    columns, header = rows_of(schema, 30), header_of(schema, 30)
    whole, part = tmp_path / f"whole.{format}", tmp_path / f"part.{format}"
    write(whole, format, header, columns)
    part.write_bytes(whole.read_bytes()[:cut])
    start = file_format(format).resume_at(part, header)
    assert 0 <= start <= 30
    if cut >= len(whole.read_bytes()):
        assert start == 30
    write(part, format, header, columns, start=start)
    assert part.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("format", ["npy", "csv", "jsonl"])
def test_a_file_of_other_rows_is_not_gone_on_with(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    write(path, format, header_of(make_schema(3), 9), rows_of(make_schema(3), 9))
    assert file_format(format).resume_at(path, header_of(make_schema(4), 9)) == 0


# ------------------------------------------------------------------ files of other writers


def others(path: Path, rows: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Writers that know nothing of fostore, by the name of the file they make."""
    import datasets

    lists = pa.array(list(rows), pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = pa.table({"label": list(range(len(rows))), "softmax": lists})

    def csv_file(file: Path, key: str | None) -> None:
        with open(file, "w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow([*([key] if key is not None else []), "a", "b", "c", "d"])
            for i, row in enumerate(rows.tolist()):
                writer.writerow([*([i] if key is not None else []), *map(repr, row)])

    def stream(file: Path) -> None:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)

    return {
        "save.npy": lambda: np.save(path / "save.npy", rows),
        "fortran.npy": lambda: np.save(path / "fortran.npy", np.asfortranarray(rows)),
        "big.npy": lambda: np.save(path / "big.npy", rows.astype(">f4")),
        "savez.npz": lambda: np.savez(path / "savez.npz", probs=rows, labels=np.arange(len(rows))),
        "packed.npz": lambda: np.savez_compressed(path / "packed.npz", rows),
        "save.safetensors": lambda: safetensors.numpy.save_file(
            {"p": rows, "labels": np.arange(len(rows))}, path / "save.safetensors"
        ),
        "tensor.pt": lambda: torch.save(torch.tensor(rows), path / "tensor.pt"),
        "dict.pth": lambda: torch.save(
            {"probs": torch.tensor(rows), "epoch": 3}, path / "dict.pth"
        ),
        "strided.pt": lambda: torch.save(
            torch.tensor(np.ascontiguousarray(rows.T)).T, path / "strided.pt"
        ),
        "lists.parquet": lambda: pq.write_table(table, path / "lists.parquet"),
        "groups.parquet": lambda: pq.write_table(
            pa.table({"x": fixed}), path / "groups.parquet", row_group_size=7
        ),
        "stream.arrow": lambda: stream(path / "stream.arrow"),
        "file.feather": lambda: pa.feather.write_feather(
            table, path / "file.feather", compression="lz4"
        ),
        "saved_dataset": lambda: datasets.Dataset.from_dict(
            {"probs": rows.tolist(), "label": list(range(len(rows)))},
            features=datasets.Features(
                probs=datasets.List(datasets.Value("float32")), label=datasets.Value("int64")
            ),
        ).save_to_disk(path / "saved_dataset", num_shards=2),
        "plain.csv": lambda: csv_file(path / "plain.csv", None),
        "indexed.csv": lambda: csv_file(path / "indexed.csv", ""),
        "savetxt.csv": lambda: np.savetxt(path / "savetxt.csv", rows, delimiter=","),
        "rows.jsonl": lambda: (path / "rows.jsonl").write_text(
            "".join(json.dumps({"text": "x", "p": row}) + "\n" for row in rows.tolist())
        ),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", list(others(Path(), np.ones((1, 1), np.float32))))
def test_what_other_libraries_write_is_read_right(name: str, tmp_path: Path) -> None:
    import pyarrow.feather  # noqa: F401

    rows = probs(23)
    others(tmp_path, rows)[name]()
    is_text = name.endswith(("csv", "jsonl"))
    table = read(tmp_path / name, dtype="float32" if is_text else None)
    assert (table.schema.kind, table.schema.dtype, table.num_rows) == ("probs", "float32", 23)
    assert_same_columns(everything(table), [rows])
    assert_same_columns(everything(table, 4, 9), [rows[9:]])
    for batch in table.batches(0, 5):
        batch[0][:] = 0  # every batch is its reader's own
    if name in ("plain.csv", "indexed.csv"):
        assert table.schema.class_names == ("a", "b", "c", "d")


def test_our_files_are_read_by_the_libraries_of_their_formats(tmp_path: Path) -> None:
    schema = make_schema(4, side_columns=[id_column("S8")])
    columns = [probs(23), encode_ids([f"s{i}" for i in range(23)], id_column("S8"), 0)]
    header = header_of(schema, 23, meta={"a": 1})
    for format in ("npz", "safetensors", "pt", "parquet", "arrow", "jsonl", "csv"):
        write(tmp_path / f"x.{format}", format, header, columns)
    write(tmp_path / "x.npy", "npy", header_of(make_schema(4), 23), columns[:1])
    expected = columns[0]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), expected)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["probs"], expected)
        assert archive["sample_id"][3] == b"s3"
        assert json.loads(archive["fostore"].tobytes())["meta"] == {"a": 1}
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert archive.testzip() is None
    loaded = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded["probs"], expected)
    for mapped in (True, False):
        tensors = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
        np.testing.assert_array_equal(tensors["probs"].numpy(), expected)
    arrow = pq.read_table(tmp_path / "x.parquet")
    assert arrow.schema.field("probs").type.list_size == 4
    np.testing.assert_array_equal(np.stack(arrow["probs"].to_numpy()), expected)
    assert arrow["sample_id"].to_pylist()[:2] == ["s0", "s1"]
    with pa.memory_map(str(tmp_path / "x.arrow")) as file:
        arrow = pa.ipc.open_file(file).read_all()
        np.testing.assert_array_equal(np.stack(arrow["probs"].to_numpy()), expected)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[4]["index"] == 3
    assert lines[4]["id"] == "s3"
    np.testing.assert_array_equal(np.float32([line["probs"] for line in lines[1:]]), expected)
    with open(tmp_path / "x.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["id", "class_0", "class_1", "class_2", "class_3"]
    assert [row[0] for row in table[1:3]] == ["s0", "s1"]
    np.testing.assert_array_equal(np.float32([row[1:] for row in table[1:]]), expected)


@pytest.mark.parametrize("large", [1, 200, 3000])
def test_archives_of_more_than_four_gigabytes_are_read_by_their_libraries(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", large)  # instead of so many bytes
    schema = make_schema(3, side_columns=[PRINTS])
    columns, header = rows_of(schema, 40), header_of(schema, 40)
    for format in ("npz", "pt"):
        write(tmp_path / f"x.{format}", format, header, columns)
        assert_same_columns(everything(read(tmp_path / f"x.{format}")), columns)
    with np.load(tmp_path / "x.npz") as archive:
        np.testing.assert_array_equal(archive["probs"], columns[0])
    tensors = torch.load(tmp_path / "x.pt", weights_only=True)
    np.testing.assert_array_equal(tensors["probs"].numpy(), columns[0])


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "bfloat16", "float16"])
def test_torch_loads_every_dtype_that_we_write(dtype: str, tmp_path: Path) -> None:
    schema = make_schema(3, kind="probs" if dtype in FLOATS else "counts", dtype=dtype)
    columns = rows_of(schema, 6)
    write(tmp_path / "x.pt", "pt", header_of(schema, 6), columns)
    tensor = torch.load(tmp_path / "x.pt", weights_only=True)[schema.columns[0].name]
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == columns[0].tobytes()


def test_safetensors_of_bfloat16_are_bfloat16(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    schema = make_schema(3, dtype="bfloat16")
    columns = rows_of(schema, 6)
    write(tmp_path / "x.safetensors", "safetensors", header_of(schema, 6), columns)
    tensor = load_file(tmp_path / "x.safetensors")["probs"]
    assert tensor.dtype == torch.bfloat16
    assert tensor.view(torch.int16).numpy().tobytes() == columns[0].tobytes()


@pytest.mark.parametrize("layout", ["plain", "distributions", "text keys", "lists"])
def test_a_dict_of_indices_and_rows_is_read_in_the_order_of_its_keys(
    layout: str, tmp_path: Path
) -> None:
    rows = probs(5)
    order = [3, 0, 4, 1, 2]
    content: Any = {i: torch.tensor(rows[i]) for i in order}
    if layout == "text keys":
        content = {str(i): row for i, row in content.items()}
    if layout == "lists":
        content = {i: row.double().tolist() for i, row in content.items()}
    if layout == "distributions":
        content = {"meta": {"model": "m"}, "distributions": content}
    torch.save(content, tmp_path / "x.pt")
    table = read(tmp_path / "x.pt")
    assert table.meta == ({"model": "m"} if layout == "distributions" else {})
    expected = rows.astype(np.float64) if layout == "lists" else rows
    assert_same_columns(everything(table, 2), [expected])


@pytest.mark.parametrize("keys", [[0, 2], [1, 2], [0, "0"], [-1, 0]])
def test_gaps_and_repetitions_in_the_keys_of_a_dict_are_refused(
    keys: list[Any], tmp_path: Path
) -> None:
    torch.save({key: torch.tensor(probs(1)[0]) for key in keys}, tmp_path / "x.pt")
    with pytest.raises((FormatError, ArgumentError)):
        read(tmp_path / "x.pt")


# ------------------------------------------------------------------ what rows are


def test_members_counts_and_other_byte_orders_are_seen(tmp_path: Path) -> None:
    members = np.stack([probs(6), probs(6, seed=1)], axis=1)
    np.save(tmp_path / "members.npy", np.asfortranarray(members))
    table = read(tmp_path / "members.npy")
    assert table.schema.num_members == 2
    assert_same_columns(everything(table, 4), [members])
    votes = np.arange(12).reshape(3, 4)
    np.save(tmp_path / "votes.npy", votes)
    table = read(tmp_path / "votes.npy")
    assert (table.schema.kind, table.schema.dtype) == ("counts", "uint64")
    assert table.notes == ("int64 votes became uint64",)
    assert_same_columns(everything(table), [votes.astype("<u8")])
    np.save(tmp_path / "bits.npy", round_to(probs(6), "bfloat16"))
    assert read(tmp_path / "bits.npy", kind="probs", dtype="bfloat16").schema.dtype == "bfloat16"
    import ml_dtypes

    named = probs(6).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "named.npy", named)
    with pytest.raises(UnsupportedError, match="source_dtype"):
        read(tmp_path / "named.npy")
    table = read(tmp_path / "named.npy", dtype="bfloat16")
    assert_same_columns(everything(table, 4), [named.view(np.uint16)])


def test_logits_are_stored_minus_their_maximum_when_the_user_says_that_they_are_logits(
    tmp_path: Path,
) -> None:
    raw = np.random.default_rng(0).normal(3, 4, (9, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", raw)
    with pytest.raises(ArgumentError, match="source-kind logits"):
        read(tmp_path / "x.npy")
    table = read(tmp_path / "x.npy", kind="logits")
    expected = encoding_of(table.schema).encode(raw, table.schema, 0)
    assert_same_columns(everything(table, 4), expected)


@pytest.mark.parametrize("format", ["npz", "safetensors", "pt"])
def test_several_candidates_are_listed_and_one_of_them_can_be_named(
    format: str, tmp_path: Path
) -> None:
    arrays = {"train": probs(4), "test": probs(3, seed=1)}
    path = tmp_path / f"x.{format}"
    if format == "npz":
        np.savez(path, **arrays)
    elif format == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        torch.save({name: torch.tensor(rows) for name, rows in arrays.items()}, path)
    with pytest.raises(ArgumentError, match=r"(train .*test|test .*train) .*::"):
        open_table(str(path))
    assert_same_columns(everything(open_table(f"{path}::test")), [arrays["test"]])
    with pytest.raises(ArgumentError, match="has no array 'valid'"):
        open_table(f"{path}::valid")


def test_a_row_that_is_no_distribution_is_named_with_its_file(tmp_path: Path) -> None:
    rows = probs(500)
    rows[321, 1] += 0.5
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(FormatError, match=r"x\.npy: row 321"):
        everything(read(tmp_path / "x.npy"), 100)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.ones(5), "shape"),
        (np.ones((2, 2, 2, 2)), "shape"),
        (np.ones((2, 0)), "shape"),
        (np.ones((2, 2), complex), "complex128"),
        (np.ones((2, 2), bool), "bool"),
        (np.array([["a", "b"]]), "str"),
        (np.zeros((2, 2), [("a", "f4")]), "records"),
        (np.zeros((0, 3)), "source-kind"),
        (np.array([[-1, 1]]), "holds -1"),
    ],
)
def test_an_array_that_cannot_be_rows_is_refused(
    array: np.ndarray, error: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises((ArgumentError, FormatError), match=error):
        everything(read(tmp_path / "x.npy"))


# ------------------------------------------------------------------ hostile and malformed files


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle ran')",))


def test_pickles_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", probs=np.array([Bomb()], object))
    torch.save({"probs": torch.ones(2, 2), "model": Bomb()}, tmp_path / "x.pt")
    for name, advice in (("x.npy", "np.save"), ("x.npz", "np.save"), ("x.pt", "torch.save")):
        with pytest.raises(UnsafeError, match=advice):
            open_table(f"{tmp_path / name}::probs" if name == "x.npz" else str(tmp_path / name))
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FormatError, match="pickle"):
        read(tmp_path / "plain.npy")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedError, match="weights_only=True"):
        read(tmp_path / "plain.pt")


@pytest.mark.parametrize("format", ALL)
def test_a_file_cut_anywhere_is_refused_or_says_that_rows_are_missing(
    format: str, tmp_path: Path
) -> None:
    schema = make_schema(3)
    path = tmp_path / f"x.{format}"
    write(path, format, header_of(schema, 40), rows_of(schema, 40))
    whole = path.read_bytes()
    for cut in sorted({0, 1, 7, 8, 60, 127, 200, len(whole) // 2, len(whole) - 20, len(whole) - 3}):
        path.write_bytes(whole[:cut])
        if format == "csv":  # has no count: a cut at a number's end cannot be seen
            cut_hints = Hints(kind="probs", dtype="float32")
            try:
                found = everything(open_table(str(path), cut_hints))
            except (FormatError, ArgumentError):
                continue
            assert len(found[0]) < 40 or cut >= len(whole) - 3
            continue
        with pytest.raises((FormatError, ArgumentError, DamageError)):
            everything(open_table(str(path), hints_of(schema) if format == "npy" else Hints()))


@pytest.mark.parametrize("format", [f for f in ALL if f != "csv"])
def test_bytes_that_were_changed_are_refused_or_change_the_digest(
    format: str, tmp_path: Path
) -> None:
    schema = make_schema(3)
    columns = rows_of(schema, 40)
    path = tmp_path / f"x.{format}"
    write(path, format, header_of(schema, 40), columns)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 60).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            table = open_table(str(path), hints_of(schema) if format == "npy" else Hints())
            found = everything(table)
        except (FormatError, ArgumentError, DamageError):
            continue
        if table.digest is not None and table.schema == schema:
            same = digest_of(schema, found) == digest_of(schema, columns)
            assert same or digest_of(table.schema, found) != table.digest


def npy_with(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624, 10), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 1125899906842624), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 10), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 7, }",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (4, 2), }",
        "{'descr': '<f4'}",
        "__import__('os').abort()",
        "[" * 90,
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(
    header: str, suffix: str, tmp_path: Path
) -> None:
    content = npy_with(header, bytes(64))
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("probs.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(FormatError):
        read(path, kind="probs")


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, probs=probs(2000))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<L", 0xFFFFFFF0)
    path.write_bytes(raw)
    with pytest.raises(UnsafeError, match="claims"):
        read(path)


def test_a_stored_member_is_held_against_the_checksum_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rows = np.tile(np.float32([0.5, 0.25, 0.25]), (5000, 1))
    np.savez(path, probs=rows)
    raw = bytearray(path.read_bytes())
    at = raw.index(rows.tobytes()) + 12 * 4000
    raw[at : at + 12] = np.float32([0.25, 0.5, 0.25]).tobytes()
    path.write_bytes(raw)
    with pytest.raises(DamageError, match="checksum"):
        everything(read(path))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 64]},
        {"dtype": "F32", "shape": [1 << 50, 2], "data_offsets": [0, 1 << 53]},
        {"dtype": "F32", "shape": [4, -2], "data_offsets": [0, 32]},
        {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 0]},
        {"dtype": "F32", "shape": [4, 2]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F8_E4M3", "shape": [4, 8], "data_offsets": [0, 32]},
        {"dtype": ["F32"], "shape": [4, 2], "data_offsets": [0, 32]},
        {"dtype": {}, "shape": [4, 2], "data_offsets": [0, 32]},
        [],
    ],
)
def test_a_tensor_that_its_file_cannot_hold_is_refused(entry: Any, tmp_path: Path) -> None:
    text = json.dumps({"probs": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    with pytest.raises((FormatError, ArgumentError)):
        read(path, inside="probs")
    path.write_bytes(struct.pack("<Q", 1 << 62) + text)
    with pytest.raises(UnsafeError, match="header"):
        read(path)


def test_a_tensor_expanded_from_one_number_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(1, 1).expand(1 << 30, 1), tmp_path / "x.pt")
    with pytest.raises(UnsafeError, match="claims the shape"):
        read(tmp_path / "x.pt")


def test_an_archive_of_tensors_whose_end_was_repeated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.eye(3), path)
    path.write_bytes(path.read_bytes() + path.read_bytes()[-15:] * 2000)
    with pytest.raises(FormatError, match="cannot be loaded"):
        read(path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([[0.5, 0.5], [1.0]], "row 1 has 1 numbers"),
        ([[0.5, 0.5], None], "row 1 holds a null"),
        ([[0.5, 0.5], [0.5, None]], "row 1 holds a null"),
        ([[0.5, 0.5], []], "row 1 has 0 numbers"),
        ([[], []], "shape"),
        ([None, [0.5, 0.5]], "first row is empty"),
    ],
)
def test_ragged_lists_and_nulls_are_refused_by_row(
    suffix: str, rows: Any, error: str, tmp_path: Path
) -> None:
    table = pa.table({"p": pa.array(rows, pa.list_(pa.float32()))})
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises((FormatError, ArgumentError), match=error):
        everything(read(path, kind="probs"))


@pytest.mark.parametrize("offset", [1 << 30, -8, 3])
def test_offsets_of_texts_that_lead_out_of_a_file_are_never_followed(
    offset: int, tmp_path: Path
) -> None:
    keys = pa.array(["aa", "bb", "cc", "dd"])
    table = pa.table({"id": keys, "p": pa.array([[0.5, 0.5]] * 4)})
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = struct.pack("<5i", 0, 2, 4, 6, 8)
    data = path.read_bytes()
    assert data.count(offsets) == 2  # of the texts, and of the lists
    path.write_bytes(data.replace(offsets, struct.pack("<5i", 0, 2, 4, offset, 8), 1))
    table_read = read(path)
    assert table_read.schema.role("id") is None
    assert "'id' was left out and not taken for ids: it cannot be read" in " ".join(
        table_read.notes
    )
    with pytest.raises(ArgumentError, match="'id' cannot be the ids: it cannot be read"):
        read(path, id_column="id")


def test_a_column_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    table = pa.table({"probs": pa.array([[0.5, 0.5]] * 4)})
    path = tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"probs", b"\xffrobs"))
    with pytest.raises(FormatError, match="the name of a column is no UTF-8"):
        read(path)


def test_a_dataset_folder_names_files_of_its_own_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(UnsafeError, match="not in its folder"):
        read(folder)


DIGITS = "9" * 5000
"""More than Python makes an integer of."""
CSV_ERRORS = [
    (f"index,a,b\n{DIGITS},0.5,0.5\n", "line 2: the index is '999"),
    (f"index,a,b\n{DIGITS[:400]}.0,0.5,0.5\n", "line 2: the index is '999"),
    (f"a,b\n{DIGITS},1\n3,4\n", "'b' holds whole numbers"),
    (f"{DIGITS},1\n3,4\n", "'column 1' holds whole numbers"),
    ("index,a,b\n0,0.5,0.5\n1,0.5\n", "line 3: 2 fields"),
    ("index,a,b\n0,0.5,0.5\n1,0.5,nan\n", "line 3, class 1: 'nan'"),
    ("index,a,b\n0,0.5,0.5\n1,0.5,half\n", "line 3, class 1: 'half'"),
    ("index,a,b\n0,0.5,0.5\n1,0.5,\n", "line 3, class 1: ''"),
    ("index,a,b\n0,0.5,0.5\n2,0.5,0.5\n", "line 3: the index is '2', expected 1"),
    ("index,a,b\n0,0.5,0.5\n0,0.5,0.5\n", "line 3: the index is '0', expected 1"),
    ("id,a,b\nx,0.5,0.5\ny,0.5,0.5\nx,0.5,0.5\n", "line 4: the id 'x' was there on line 2"),
    ("index,a,b\n0,0.5,0.5\n\n1,0.5,0.5\n", "line 3 is empty"),
    ("index,a,b\n0,0.5,inf\n", "row 0"),
    ("index,a,a\n0,0.5,0.5\n", "more than once"),
    ('index,a,b\n0,0.5,"0.5\n', "line 2"),
    ("", "is empty"),
    ("index\n0\n", "names no class"),
    ("index,a,b\n0,1,-2\n", "row 0"),
]


@pytest.mark.parametrize(("text", "error"), CSV_ERRORS)
def test_bad_csv_is_named_by_line(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises((FormatError, ArgumentError), match=error):
        everything(read(tmp_path / "x.csv", kind="probs"))


@pytest.mark.parametrize("line", [2, 90])
def test_votes_that_no_integer_holds_are_named_by_line(line: int, tmp_path: Path) -> None:
    lines = ["a,b", *["3,4"] * 99]
    lines[line - 1] = f"{DIGITS},1"
    (tmp_path / "x.csv").write_text("\n".join(lines))
    with pytest.raises(FormatError, match=f"line {line}, class 0: '999.* is no number of uint64"):
        everything(read(tmp_path / "x.csv", kind="counts"))


@pytest.mark.parametrize(
    "index",
    [
        {"kind": "range", "start": 0, "stop": 10**30, "step": 5},
        {"kind": "range", "start": 10**20, "stop": 10**20 + 2, "step": 1},
        {"kind": "range", "start": -(1 << 62), "stop": (1 << 63) - 1, "step": 1},
        {"kind": "range", "start": 0, "stop": 2, "step": 0},
    ],
)
def test_an_index_of_a_frame_that_no_frame_has_is_no_key(index: Any, tmp_path: Path) -> None:
    about = json.dumps({"index_columns": [index]}).encode()
    table = pa.table({"p": pa.array([[0.5, 0.5]] * 2)}).replace_schema_metadata({b"pandas": about})
    pq.write_table(table, tmp_path / "x.parquet")
    read_back = read(tmp_path / "x.parquet")
    assert read_back.schema.role("id") is None
    assert everything(read_back)[0].tolist() == [[0.5, 0.5]] * 2


def test_keys_that_no_file_can_hold_are_named_and_not_taken(tmp_path: Path) -> None:
    rows = '{"p": [0.5, 0.5], "id": "\\ud800"}\n{"p": [0.5, 0.5], "id": "x"}\n'
    (tmp_path / "x.jsonl").write_text(rows)
    table = read(tmp_path / "x.jsonl")
    assert table.schema.role("id") is None
    assert "half of a surrogate pair" in " ".join(table.notes)


def test_whole_numbers_in_csv_are_votes_unless_every_row_has_one(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"a,b\n3,4\n1,{2**63}\n")
    table = read(tmp_path / "x.csv")
    assert (table.schema.kind, table.schema.dtype) == ("counts", "uint64")
    assert everything(table)[0].tolist() == [[3, 4], [1, 2**63]]
    (tmp_path / "x.csv").write_text("a,b\n3,4\n1,300\n")
    with pytest.raises(FormatError, match="line 3, class 1: '300'"):
        everything(read(tmp_path / "x.csv", dtype="uint8"))


def test_class_names_that_contradict_the_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("index,a,b\n0,0.5,0.5\n")
    with pytest.raises(ArgumentError, match="class names"):
        convert(tmp_path / "x.csv", tmp_path / "x.h5", class_names=["b", "a"], progress=False)
    (tmp_path / "y.csv").write_text("index,0,1\n0,0.5,0.5\n")
    convert(tmp_path / "y.csv", tmp_path / "y.h5", class_names=["b", "a"], progress=False)
    assert fostore.open(tmp_path / "y.h5").schema.class_names == ("b", "a")


def test_ids_in_csv_are_numbers_only_where_all_of_them_are_plain_numbers(tmp_path: Path) -> None:
    texts = [["7", "007"], ["7", "x"], ["7", "9" * 200]]
    for keys, dtype in ((["7", "-3"], "int64"), *((keys, "utf8") for keys in texts)):
        body = "".join(f"{key},0.5,0.5\n" for key in keys)
        (tmp_path / "x.csv").write_text("id,a,b\n" + body)
        table = read(tmp_path / "x.csv")
        column = table.schema.role("id")
        assert column is not None
        assert column.dtype == dtype


JSONL_ERRORS = [
    ('{"p": [0.5, 0.5]}\n{"p": [0.5]}\n', "line 2: the row has the shape"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, NaN]}\n', "line 2: the row holds 'NaN'"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, Infinity]}\n', "line 2: the row holds 'Infinity'"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, "0.5"]}\n', "line 2: the row holds '0.5'"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, null]}\n', "line 2: the row holds None"),
    ('{"p": [0.5, 0.5]}\n{"p": [true, 0.5]}\n', "line 2: 'p' holds true or false"),
    ('{"p": [0.5, 0.5]}\n{"q": [0.5, 0.5]}\n', "line 2: the key 'p' is missing"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, 0.5], "p": [1, 0]}\n', "line 2 holds the key 'p' twice"),
    ('{"p": [0.5, 0.5]}\n[0.5, 0.5]\n', "line 2: expected an object"),
    ('{"p": [0.5, 0.5]}\n\n{"p": [0.5, 0.5]}\n', "line 2 is empty; remove it"),
    ('{"p": [0.5, 0.5]}\n{"p": [0.5, 0.', "line 2 is not JSON"),
    ('{"index": 0, "p": [0.5, 0.5]}\n{"index": 2, "p": [0.5, 0.5]}\n', "line 2: the index is 2"),
    ('{"index": 0, "p": [0.5, 0.5]}\n{"index": 0, "p": [0.5, 0.5]}\n', "line 2: the index is 0"),
    ('{"p": [0.5, 0.5]}\n{"p": [[0.5], [0.5, 0.5]]}\n', "line 2: the row's lists differ"),
    ('{"p": [0.5, 0.5]}\n{"fostore": 1, "p": [0.5, 0.5]}\n', "line 2: a second header"),
    ('{"fostore": 1}\n', "'fostore' is"),
    ("", "is empty"),
    ("[1]\n", "line 1: expected an object"),
    ('{"p": [0.5, 0.5], "q": [0.5, 0.5]}\n' * 2, "several arrays"),
]


@pytest.mark.parametrize(("text", "error"), JSONL_ERRORS)
def test_bad_json_lines_are_named_by_number(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises((FormatError, ArgumentError), match=error):
        everything(read(tmp_path / "x.jsonl", kind="probs"), 100)


@pytest.mark.parametrize("format", WITH_HEADER)
def test_rows_that_contradict_their_header_are_refused(format: str, tmp_path: Path) -> None:
    schema = make_schema(3, class_names=["aaa", "bbb", "ccc"])
    path = tmp_path / f"x.{format}"
    write(path, format, header_of(schema, 5), rows_of(schema, 5))
    raw = path.read_bytes()
    for old, new in (
        (b'"version": "1.0"', b'"version": "9.0"'),
        (b'"kind": "probs"', b'"kind": "prrbs"'),
    ):
        quoted = old.replace(b'"', b'\\"') if format == "safetensors" else old
        other = new.replace(b'"', b'\\"') if format == "safetensors" else new
        assert quoted in raw
        path.write_bytes(raw.replace(quoted, other))
        with pytest.raises((FormatError, DamageError)):
            everything(read(path))


def test_names_of_formats_and_their_files_agree() -> None:
    for name in ALL:
        assert file_format(name).name == name
    assert set(ALL) <= set(FILES)


# ------------------------------------------------------------------ standard streams


STREAMS = """\
import sys
from fostore.conversion import convert
convert(sys.argv[1], sys.argv[2], progress=False)
"""


def test_json_lines_go_through_the_standard_streams(tmp_path: Path) -> None:
    with fostore.create(tmp_path / "a.zarr", num_samples=9, num_classes=4, meta={"m": 1}) as writer:
        writer.append(probs(9))
    out = subprocess.run(
        [sys.executable, "-c", STREAMS, str(tmp_path / "a.zarr"), "-"],
        capture_output=True,
        check=True,
    ).stdout
    assert out.count(b"\n") == 10
    subprocess.run(
        [sys.executable, "-c", STREAMS, "-", str(tmp_path / "b.h5")], input=out, check=True
    )
    one, other = fostore.open(tmp_path / "a.zarr"), fostore.open(tmp_path / "b.h5")
    assert one.digest() == other.digest()
    assert other.meta == {"m": 1}
    cut = subprocess.run(
        [sys.executable, "-c", STREAMS, "-", str(tmp_path / "c.h5")],
        input=out[: out.rindex(b"{")],
        capture_output=True,
        check=False,
    )
    assert b"ends after 8 rows of 9" in cut.stderr
    assert not (tmp_path / "c.h5").exists()


def test_a_plain_stream_loses_no_row_to_the_guess_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = probs(70)
    text = "".join(json.dumps({"p": row}) + "\n" for row in rows.astype(np.float64).tolist())
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    table = open_table("-")
    assert (table.num_rows, table.schema.kind) == (None, "probs")
    assert_same_columns(everything(table), [rows.astype(np.float64)])
    with pytest.raises(ArgumentError, match="read once"):
        everything(table)


# ------------------------------------------------------------------ memory

PEAK = """\
import resource, sys
from pathlib import Path
import numpy as np
from fostore.schema import geometry
from fostore.files import Hints, file_format
from fostore.conversion.sources import open_table
from fostore.encodings import make_schema
from fostore.schema.header import Header

format, path, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
schema = make_schema(1000)
header = Header(schema, rows, geometry.unit_rows(schema.row_bytes, rows), geometry.block_rows(schema.row_bytes))

def batches():
    for first in range(0, rows, 500):
        x = np.random.default_rng(first).random((min(500, rows - first), 1000))
        yield [(x / x.sum(axis=1, keepdims=True)).astype("<f4")]

def measure(num_rows):
    header_now = Header(schema, num_rows, geometry.unit_rows(schema.row_bytes, num_rows), header.block_rows)
    def some():
        left = num_rows
        for (batch,) in batches():
            if left <= 0:
                return
            yield [batch[:left]]
            left -= len(batch)
    chosen = file_format(format)
    chosen.write(path, header_now, some(), 0)
    hints = Hints() if chosen.holds.header else Hints(kind="probs", dtype="float32")
    seen = sum(len(batch[0]) for batch in open_table(str(path), hints).batches(0, 500))
    assert seen == num_rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = measure(1000)  # loads what there is to load
many = measure(rows)
print((many - few) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize(
    ("format", "rows"),
    [
        ("npz", 60_000),
        ("safetensors", 60_000),
        ("parquet", 40_000),
        ("jsonl", 8_000),
        ("csv", 8_000),
        ("npy", 60_000),
    ],
)
def test_memory_does_not_grow_with_the_file(format: str, rows: int, tmp_path: Path) -> None:
    path = tmp_path / f"x.{format}"
    result = subprocess.run(
        [sys.executable, "-c", PEAK, format, str(path), str(rows)], capture_output=True, check=True
    )
    size = path.stat().st_size
    assert size > 80 << 20
    assert int(result.stdout) < 64 << 20 < size


@pytest.mark.parametrize("format", ALL)
def test_the_same_rows_make_the_same_file(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = make_schema(3)
    columns, header = rows_of(schema, 40), header_of(schema, 40)
    write(tmp_path / "a", format, header, columns)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write(tmp_path / "b", format, header, columns)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("format", ["npz", "pt"])
@pytest.mark.parametrize("failing", range(1, 12, 2))
def test_a_full_disk_is_what_it_is_through_every_library(
    format: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Zipfile and torch write an archive's end after an error as well, and fail again, or elsewhere."""
    schema, true_write, calls = (
        make_schema(3, side_columns=[PRINTS]),
        disk.write_at,
        iter(range(99)),
    )

    def write_at(fd: int, data: Any, offset: int) -> None:
        if next(calls) >= failing:
            raise SpaceError("full")
        true_write(fd, data, offset)

    monkeypatch.setattr(disk, "write_at", write_at)
    with pytest.raises(SpaceError, match="full"):
        write(tmp_path / "x", format, header_of(schema, 40), rows_of(schema, 40), size=40)
    gc.collect()
    assert capfd.readouterr().out == ""
