"""What a conversion refuses or says so that no row, source or destination is lost without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.conversion import convert
from fostore.conversion.options import Options
from fostore.conversion.plan import prepare
from fostore.errors import ArgumentError, DamageError, FormatError
from support import probs


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, probs(20, 3))
    return path


@pytest.fixture
def store(rows: Path) -> Path:
    path = rows.with_name("rows.zarr")
    convert(rows, path, progress=False)
    return path


def test_a_receipt_never_takes_the_place_of_the_source(rows: Path) -> None:
    before = rows.read_bytes()
    with pytest.raises(ArgumentError, match="place of the source"):
        convert(rows, rows.with_name("a.zarr"), receipt=rows, progress=False)
    assert rows.read_bytes() == before


def test_neither_a_receipt_nor_a_destination_lies_inside_a_store(rows: Path, store: Path) -> None:
    there = sorted(store.rglob("*"))
    with pytest.raises(ArgumentError, match="inside a store"):
        convert(rows, store / "inside.npy", progress=False)
    with pytest.raises(ArgumentError, match="inside a store"):
        convert(
            rows, rows.with_name("b.zarr"), receipt=store / "probs" / "zarr.json", progress=False
        )
    assert sorted(store.rglob("*")) == there


def test_a_receipt_does_not_lie_in_a_destination_that_is_a_folder(rows: Path) -> None:
    target = rows.with_name("folder.zarr")
    target.mkdir()
    with pytest.raises(ArgumentError, match="place of the destination"):
        convert(rows, target, receipt=target / "receipt.json", exists="overwrite", progress=False)


@pytest.mark.parametrize("suffix", ["npy", "csv", "json", "jsonl"])
def test_a_name_inside_a_file_of_one_array_is_refused(store: Path, suffix: str) -> None:
    path = store.with_name(f"one.{suffix}")
    convert(store, path, progress=False)
    with pytest.raises(ArgumentError, match="give the path alone"):
        convert(f"{path}::other", store.with_name("out.zarr"), progress=False)


def test_an_error_that_removed_the_part_does_not_say_to_go_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"probs": [0.5, 0.5]}\n{"probs": [0.5, "x"]}\n')
    with pytest.raises(FormatError) as caught:
        convert(path, tmp_path / "out.zarr", source_kind="probs", progress=False)
    assert not getattr(caught.value, "__notes__", ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_the_record_of_one_conversion_is_not_the_part_of_another(tmp_path: Path) -> None:
    from fostore.conversion.part import Part

    np.save(tmp_path / "rows.npy", probs(4, 3))
    plan = prepare(tmp_path / "rows.npy", str(tmp_path / "a.zarr"), Options())
    first = Part(tmp_path / "a.zarr", plan)
    second = Part(tmp_path / "a.zarr.json", plan)
    assert not first.begin()
    second.path.write_bytes(b"{}")
    first.remove()
    assert second.path.exists()


def test_votes_of_a_table_without_names_are_not_joined_by_the_numbers_over_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("0,1,2\n5,3,2\n1,0,9\n")
    with pytest.raises(ArgumentError, match="numbers of the classes"):
        convert(path, tmp_path / "out.zarr", progress=False)
    path.write_text("0,1,2\n0.5,0.3,0.2\n0.25,0.25,0.5\n")
    assert convert(path, tmp_path / "out.zarr", progress=False).num_rows == 2


@pytest.mark.parametrize("first", ["nan,0.25,0.75", "a.png,0.5,0.25", "NA,3,4"])
def test_a_first_row_with_a_number_missing_is_not_taken_for_names(
    tmp_path: Path, first: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{first}\n1,0,0\n0,1,0\n")
    with pytest.raises(FormatError, match="line 1, class 0"):
        convert(path, tmp_path / "out.zarr", progress=False)


def test_a_key_is_not_there_twice_whatever_stands_before_its_colon(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"probs": [0.3, 0.7]}\n{"probs" \t: [0.5, 0.5], "probs": [0.1, 0.9]}\n')
    with pytest.raises(FormatError, match="line 2 holds the key 'probs' twice"):
        convert(path, tmp_path / "out.zarr", progress=False)


def test_a_first_row_of_whole_numbers_says_how_to_name_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"probs": [0, 1]}\n{"probs": [0.5, 0.5]}\n')
    with pytest.raises(FormatError, match="--source-kind probs"):
        convert(path, tmp_path / "out.zarr", progress=False)
    assert convert(path, tmp_path / "out.zarr", source_kind="probs", progress=False).num_rows == 2


def test_some_classes_of_logits_keep_what_the_model_gave(tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(3.0, 4.0, (30, 5)).astype(np.float32)
    np.save(tmp_path / "rows.npy", given)
    convert(tmp_path / "rows.npy", tmp_path / "all.zarr", source_kind="logits", progress=False)
    convert(tmp_path / "all.zarr", tmp_path / "some.zarr", classes=[3, 1], progress=False)
    found = fostore.open(tmp_path / "some.zarr").take(range(30), as_kind="logits")
    np.testing.assert_allclose(found, given[:, [3, 1]], atol=1e-5)


def test_damage_is_found_when_a_selection_is_converted(store: Path) -> None:
    chunk = next(path for path in (store / "probs" / "c").rglob("*") if path.is_file())
    raw = bytearray(chunk.read_bytes())
    raw[0] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(DamageError, match="do not have the bytes that were sealed"):
        convert(fostore.open(store).select([0, 3]), store.with_name("out.zarr"), progress=False)
    assert not store.with_name("out.zarr").exists()


def test_sums_that_a_plain_file_cannot_excuse_are_named_and_can_be_said(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", probs(200, 7))
    half, wide = tmp_path / "half.zarr", tmp_path / "wide.npy"
    convert(tmp_path / "rows.npy", half, dtype="bfloat16", allow_lossy=True, progress=False)
    with pytest.raises(ArgumentError, match="left out: sum tolerance"):
        convert(half, wide, dtype="float32", progress=False)
    convert(half, wide, dtype="float32", allow_lossy=True, progress=False)
    np.testing.assert_array_equal(np.load(wide), fostore.open(half).take(range(200)))
    with pytest.raises(ArgumentError, match="source_tol"):
        convert(wide, tmp_path / "out.zarr", progress=False)
    done = convert(wide, tmp_path / "out.zarr", source_tol=0.01, progress=False)
    assert done.num_rows == 200


def test_a_receipt_compares_no_digest_with_none(tmp_path: Path) -> None:
    writer = fostore.create(tmp_path / "some.zarr", num_samples=10, num_classes=3)
    writer.write(0, probs(4, 3))
    writer.close()
    done = convert(tmp_path / "some.zarr", tmp_path / "out.npy", rows=slice(0, 4), progress=False)
    assert done.source_digest is None
    assert "another than the source's" not in done.text()


def test_a_dry_run_says_what_the_run_will_need(store: Path) -> None:
    target = store.with_name("out.csv")
    target.write_text("kept")
    fostore.convert(store, store.with_name("noted.zarr"), meta={"a": 1}, progress=False)
    shown = CliRunner().invoke(
        app, ["convert", str(store.with_name("noted.zarr")), str(target), "--dry-run"]
    )
    assert shown.exit_code == 0
    assert "needs        --allow-lossy" in shown.stdout
    assert "needs        --exists" in shown.stdout
    assert "text takes" in shown.stdout
    assert target.read_text() == "kept"


def test_the_memory_of_a_plan_counts_the_libraries_of_its_formats(store: Path) -> None:
    plain = prepare(store, str(store.with_name("out.npy")), Options())
    heavy = prepare(store, str(store.with_name("out.parquet")), Options())
    assert heavy.peak_bytes > plain.peak_bytes + (100 << 20)


def test_the_metadata_of_json_is_not_changed_and_the_error_says_what_to_do(store: Path) -> None:
    path = store.with_name("out.json")
    convert(store, path, progress=False)
    shown = CliRunner().invoke(app, ["meta", str(path), "--set", "a=1"])
    assert shown.exit_code == 2
    assert "fostore convert" in shown.stderr


def test_stack_takes_the_option_that_its_error_names(rows: Path) -> None:
    target = rows.with_name("out.npy")
    asked = ["stack", str(rows), str(rows), "-o", str(target), "--no-progress"]
    assert "--allow-lossy" in CliRunner().invoke(app, asked).stderr
    assert CliRunner().invoke(app, [*asked, "--allow-lossy"]).exit_code == 0
    assert np.load(target).shape == (20, 2, 3)


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(ArgumentError, match="name one"):
        convert(tmp_path, tmp_path / "out.zarr", progress=False)
