"""Keys that are texts: what plain readers see of them, and stores of before whose keys lie as bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import h5py
import numpy as np
import pytest
import tensorstore
import zarr

import fostore
from fostore.errors import FormatError, RowError, UnsupportedError
from fostore.schema.columns import TEXT, Column
from fostore.schema.header import Header

GOLDEN = Path(__file__).parent / "golden"
IDS = ["img-0", "bild-ß", "12345678", "😀", *(f"k{i}" for i in range(96))]
PROBS = np.random.default_rng(5).dirichlet(np.ones(3), 100).astype("f4")
FORMATS = ["zarr", "h5"]

pytestmark = pytest.mark.usefixtures("fast_disk")


def write(path: Path, **more: Any) -> Path:
    with fostore.create(path, num_samples=100, num_classes=3, ids=IDS, **more) as writer:
        writer.append(PROBS)
    return path


def test_zarr_python_sees_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    group: Any = zarr.open_group(path, mode="r")  # warnings are errors: reading warns of nothing
    assert group["sample_id"].shape == (100,)
    assert group["sample_id"].dtype == np.dtype("S8")
    assert [key.decode() for key in group["sample_id"][:]] == IDS
    assert group["sample_id"].metadata.dimension_names == ("sample",)


def test_zarr_python_reads_a_lost_unit_as_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    (path / "sample_id" / "c" / "0").unlink()
    group: Any = zarr.open_group(path, mode="r")
    with pytest.raises(UnicodeDecodeError):
        bytes(group["sample_id"][:1][0]).decode()


def test_h5py_sees_texts(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "a.h5"), "r") as file:
        assert file["sample_id"].shape == (100,)
        assert file["sample_id"].asstr()[:].tolist() == IDS
        assert file["sample_id"].attrs["axes"].tolist() == [b"sample"]


@pytest.mark.skipif(
    shutil.which("h5dump") is None, reason="h5dump (Debian: hdf5-tools) is not installed"
)
def test_h5dump_sees_texts(tmp_path: Path) -> None:
    command = ["h5dump", "-d", "/sample_id", str(write(tmp_path / "a.h5"))]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "CSET H5T_CSET_UTF8" in shown
    assert '"img-0\\000\\000\\000"' in shown
    assert '"12345678"' in shown


def test_tensorstore_refuses_texts_by_name_and_reads_all_else(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")

    def read(name: str) -> np.ndarray:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}
        return np.asarray(tensorstore.open(spec, read=True).result().read().result())

    with pytest.raises(ValueError, match="null_terminated_bytes"):
        read("sample_id")
    assert np.array_equal(read("probs"), PROBS)


def test_duckdb_sees_texts_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    fostore.convert(write(tmp_path / "a.zarr"), path, progress=False)
    rows = duckdb.sql(f"select sample_id from '{path}'").fetchall()
    assert [key for (key,) in rows] == IDS


# ------------------------------------------------------------------ what lies on the disk


def as_before(path: Path) -> Path:
    """The same store as a release before wrote it: its keys as (N, width) bytes."""
    from fostore.writing.create import create_like

    with fostore.open(path) as store:
        header = store.header
        columns = tuple(replace(column, layout=None) for column in header.schema.columns)
        made = replace(
            header, schema=replace(header.schema, columns=columns), sealed=False, digest=None
        )
        rows = [store.take_column(column.name, range(len(store))) for column in columns]
    old = path.with_name(f"old-{path.name}")
    with create_like(old, made) as writer:
        writer.write_columns(0, rows)
    return old


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_bytes_and_the_digest_are_those_of_before(tmp_path: Path, suffix: str) -> None:
    new = write(tmp_path / f"a.{suffix}")
    old = as_before(new)
    stores = [fostore.open(path) for path in (new, old)]
    assert stores[0].schema.requires == ("text_layout",)
    assert stores[1].schema.requires == ()
    assert stores[0].digest() == stores[1].digest()
    assert stores[0].schema == stores[1].schema
    assert stores[0].ids.tolist() == stores[1].ids.tolist() == IDS
    assert [store.verify() for store in stores] == [[], []]
    if suffix == "zarr":
        shards = [(new / "sample_id/c/0"), (old / "sample_id/c/0/0")]
        assert shards[0].read_bytes() == shards[1].read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_store_of_before_grows_as_it_lies(tmp_path: Path, suffix: str) -> None:
    path = as_before(write(tmp_path / f"a.{suffix}"))
    with fostore.create(path, num_samples=102, exists="resume") as writer:
        with pytest.raises(RowError, match="'img-0'"):
            writer.append(PROBS[:1], ids=["img-0"])
        writer.append(PROBS[:2], ids=["x", "y"])
    with fostore.open(path) as store:
        assert store.schema.requires == ()
        assert store.ids.tolist() == [*IDS, "x", "y"]
        assert store.verify() == []


@pytest.mark.parametrize("before", ["probs-float32-ids.zarr", "log-probs-ids.json"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_store_of_before_is_converted_to_texts(tmp_path: Path, before: str, suffix: str) -> None:
    path = tmp_path / f"b.{suffix}"
    fostore.convert(GOLDEN / before, path, progress=False)
    expected = json.loads((GOLDEN / f"{before}.json").read_text("utf-8"))
    with fostore.open(path) as store:
        assert store.schema.requires == ("text_layout",)
        assert store.digest() == expected["digest"]
        assert store.ids.tolist() == expected["ids"]
    assert fostore.convert(GOLDEN / before, path, exists="resume", progress=False)


def test_the_unfinished_golden_store_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "u.zarr"
    shutil.copytree(GOLDEN / "texts-unfinished.zarr", path)
    with fostore.create(path, exists="resume") as writer:
        assert len(writer) == 1050
        keys = [f"bild-{i}-ß" for i in range(1050, 3000)]
        writer.append(np.full((1950, 2), 0.5, np.float32), ids=keys)
    with fostore.open(path) as store:
        assert store.ids.tolist() == [f"bild-{i}-ß" for i in range(3000)]
        assert store.verify() == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_texts_in_other_chunks_are_read(tmp_path: Path, suffix: str) -> None:
    path, copy = write(tmp_path / f"a.{suffix}"), tmp_path / f"copy.{suffix}"
    if suffix == "zarr":
        source: Any = zarr.open_group(path, mode="r")
        target: Any = zarr.open_group(copy, mode="w", attributes=dict(source.attrs))
        for name in source.array_keys():
            metadata = json.loads((path / name / "zarr.json").read_bytes())
            grid = metadata["chunk_grid"]["configuration"]
            grid["chunk_shape"] = [7, *grid["chunk_shape"][1:]]
            metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
            (copy / name).mkdir()
            (copy / name / "zarr.json").write_text(json.dumps(metadata))
            target[name][...] = source[name][...]
    else:
        with h5py.File(path) as old, h5py.File(copy, "w") as new:
            for name in old:
                packed = {"chunks": True, "compression": "gzip", "shuffle": True}
                new.create_dataset(name, data=old[name][...], **packed)
    with fostore.open(copy) as store:
        assert type(store.reader).__name__ == "ForeignReader"
        assert store.ids.tolist() == IDS
        assert store.take_column("sample_id", [3, 1]).shape == (2, 8)
        assert store.verify() == []


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": "utf32"}, UnsupportedError, "the layout 'utf32'"),
        ({"layout": 3}, UnsupportedError, "the layout 3"),
        ({"layout": ["text"]}, UnsupportedError, r"the layout \['text'\]"),
    ],
)
def test_an_unknown_layout_is_refused_by_name(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    column = Column("sample_id", "utf8", "uint8", ("byte",), (8,), "id", layout=TEXT)
    assert Column.from_json(column.to_json(), "here").layout == TEXT
    with pytest.raises(error, match=message):
        Column.from_json({**column.to_json(), **change}, "here")


def test_numbers_have_no_layout() -> None:
    value = {**Column("probs", "float32", "float32", ("class",), (2,)).to_json(), "layout": "text"}
    with pytest.raises(UnsupportedError, match="'probs' has the layout 'text'"):
        Column.from_json(value, "here")


@pytest.mark.parametrize("requires", [[], ["text_layout", "text_layout"]])
def test_a_header_that_contradicts_its_columns_is_refused(requires: list[str]) -> None:
    attributes = json.loads((GOLDEN / "texts.zarr/zarr.json").read_bytes())["attributes"]
    attributes["fostore"]["requires"] = requires
    with pytest.raises(FormatError, match="the columns need"):
        Header.from_json(attributes, "here")


def test_an_array_that_contradicts_its_layout_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    metadata = path / "sample_id" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"length_bytes": 8', '"length_bytes": 4'))
    with pytest.raises(FormatError, match="'data_type'"):
        fostore.open(path)
