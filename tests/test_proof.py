"""Rows that have changed since they were written are never copied into a store that looks whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore import FirstOrderDataGenerator
from fostore.conversion import convert, stack
from fostore.errors import DamageError, UncommittedError
from fostore.formats import Run
from fostore.reading.proof import Proof, RunCheck
from fostore.schema.row import Column
from support import probs, row_crc

N, K, UNIT = 2500, 3, 1024
DAMAGED = 1700
HEADED = (".npz", ".safetensors", ".arrow", ".parquet", ".pt", ".json")


def begun(path: Path, *, commits: list[int], ids: bool = True, seal: bool = False) -> Path:
    """A store whose rows were committed up to each of `commits`; planned for more unless it is sealed."""
    planned = commits[-1] + (0 if seal else 100)
    with fostore.create(
        path,
        num_samples=planned,
        num_classes=K,
        unit_rows=UNIT,
        ids=range(planned) if ids else None,
        commit_seconds=1e9,
    ) as writer:
        for start, stop in zip([0, *commits], commits, strict=False):
            writer.append(probs(stop - start, K, start=start))
            writer.commit()
        if seal:
            writer.seal()
        writer.close()
    return path


def flip(path: Path, row: int, value: bytes | None = None) -> None:
    """Another last bit of the first probability of a row, or a byte of `value`."""
    value = value or probs(1, K, start=row).tobytes()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        data = bytearray(file.read_bytes()) if file.is_file() else bytearray()
        at = data.find(value)
        if at >= 0:
            data[at] ^= 1
            file.write_bytes(data)
            return
    raise AssertionError(f"row {row} is not in {path}")


def damaged_file(folder: Path, suffix: str) -> Path:
    """A file with a header of `N` rows, of which row `DAMAGED` is not what was written."""
    path = folder / f"rows{suffix}"
    convert(begun(folder / "rows.zarr", commits=[N], seal=True), path, progress=False)
    if suffix == ".json":
        number = str(probs(1, K, start=DAMAGED)[0, 0])
        other = f"{number[:-1]}{(int(number[-1]) + 1) % 10}"
        path.write_text(path.read_text().replace(number, other))
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        rows = np.array(table.column("probs").to_pylist(), np.float32)
        rows[DAMAGED, 0] = np.nextafter(rows[DAMAGED, 0], np.float32(1))
        kind = table.schema.field("probs").type
        column = pa.FixedSizeListArray.from_arrays(rows.ravel(), type=kind)
        at = table.schema.get_field_index("probs")
        table = table.set_column(at, table.schema.field("probs"), column)
        said = pq.read_metadata(path).metadata
        pq.write_table(table.replace_schema_metadata(said), path)
    else:
        flip(path, DAMAGED)
    return path


# ------------------------------------------------------------------------------ what is copied is checked


COPIES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rows": {"rows": slice(0, 2000)},
    "every third row": {"rows": slice(1, 2000, 3)},
    "classes": {"classes": [0, 1]},
    "another kind": {"kind": "log_probs", "allow_lossy": True},
    "a sample read back": {"rows": slice(1600, 1800), "verify": "sample"},
    "nothing read back": {"rows": slice(1600, 1800), "verify": "none"},
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("target", [".zarr", ".h5", ".npz", ".json"])
@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "open"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_damaged_row_of_a_store_is_never_copied(
    tmp_path: Path, suffix: str, is_sealed: bool, target: str, how: str
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[1100, 1600, N], seal=is_sealed)
    flip(path, DAMAGED)
    options = dict(COPIES[how])
    if not is_sealed:
        options.setdefault("rows", slice(0, N))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DamageError, match="damaged") as caught:
        convert(path, tmp_path / f"b{target}", progress=False, **options)
    ((start, stop),) = caught.value.rows
    assert start <= DAMAGED < stop
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "open"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_the_rows_of_a_store_named_by_their_array_are_those_of_the_store(
    tmp_path: Path, suffix: str, is_sealed: bool
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[1100, 1600, N], seal=is_sealed)
    if not is_sealed:
        with pytest.raises(UncommittedError, match="rows 2500 to 2599"):
            convert(f"{path}::probs", tmp_path / "b.zarr", progress=False)
    rows = slice(0, N)
    receipt = convert(f"{path}::/probs", tmp_path / "b.zarr", rows=rows, progress=False)
    assert receipt.source_checked == "full"
    assert np.array_equal(fostore.open(tmp_path / "b.zarr")[:], probs(N, K))
    flip(path, DAMAGED)
    with pytest.raises(DamageError, match="damaged"):
        convert(f"{path}::probs", tmp_path / "c.zarr", rows=rows, progress=False)


@pytest.mark.parametrize("rows", [slice(0, N - 1), slice(0, 10), slice(2000, 2010)], ids=str)
@pytest.mark.parametrize("suffix", HEADED)
def test_a_damaged_row_of_a_file_is_never_copied_whichever_rows_are(
    tmp_path: Path, suffix: str, rows: slice
) -> None:
    """The file keeps one digest of all rows: which of them are right, nobody can tell."""
    path = damaged_file(tmp_path, suffix)
    for source in [path] if suffix == ".json" else [path, f"{path}::probs"]:
        with pytest.raises(DamageError, match="damaged"):
            convert(source, tmp_path / "b.zarr", rows=rows, progress=False)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("suffix", [".zarr", ".h5", *HEADED])
def test_the_rows_of_a_sound_source_are_taken_in_part(tmp_path: Path, suffix: str) -> None:
    path = begun(tmp_path / "rows.zarr", commits=[N], seal=True)
    if suffix != ".zarr":
        convert(path, tmp_path / f"rows{suffix}", progress=False)
    receipt = convert(
        tmp_path / f"rows{suffix}", tmp_path / "b.zarr", rows=slice(7, 1999, 5), progress=False
    )
    assert (receipt.source_checked, receipt.verified) == ("full", "full")
    there = fostore.open(tmp_path / "b.zarr")
    assert np.array_equal(there.array, probs(N, K)[7:1999:5])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize(
    "rows",
    [slice(0, 1600), slice(0, 1000), slice(1100, 1500)],
    ids=["all before", "a unit", "some"],
)
def test_rows_that_the_damage_does_not_touch_are_taken(
    tmp_path: Path, suffix: str, rows: slice
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[1100, 1600, 1900])
    flip(path, DAMAGED)
    receipt = convert(path, tmp_path / "b.zarr", rows=rows, progress=False)
    assert (receipt.source_checked, receipt.verified) == ("full", "full")
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, probs(N, K)[rows])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_that_was_killed_before_its_seal_is_checked_as_a_whole(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    writer = fostore.create(path, num_samples=N, num_classes=K, unit_rows=UNIT)
    writer.append(probs(N, K))
    writer.close()
    assert not fostore.open(path).is_sealed
    convert(path, tmp_path / "b.zarr", progress=False)
    flip(path, 2300)
    with pytest.raises(DamageError) as caught:
        convert(path, tmp_path / "c.zarr", progress=False)
    assert all(start <= 2300 < stop for start, stop in caught.value.rows)
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "open"])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_every_other_way_out_of_a_store_refuses_damaged_rows(
    tmp_path: Path, suffix: str, is_sealed: bool
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[1100, N], seal=is_sealed)
    flip(path, DAMAGED)
    store = fostore.open(path)
    generator = FirstOrderDataGenerator(lambda batch: batch)
    rows = slice(0, N)
    ways = {
        "selected": lambda to: convert(store.select([5, DAMAGED, 9]), to, progress=False),
        "joined": lambda to: convert([store.select(range(N)), path], to, progress=False),
        "saved": lambda to: generator.save_distributions(to, store),
        "opened": lambda to: convert(store, to, rows=rows, progress=False),
    }
    if is_sealed:
        ways["stacked"] = lambda to: stack([path, path], to, progress=False)
    for name, way in ways.items():
        to = tmp_path / f"{name}{'.json' if name == 'saved' else '.zarr'}"
        if name == "joined" and not is_sealed:
            continue  # refused: it is not finished
        with pytest.raises(DamageError) as caught:
            way(to)
        assert any(start <= DAMAGED < stop for start, stop in caught.value.rows), name
        assert not to.exists()
    convert(store.select([5, 9, 900]), tmp_path / "sound.zarr", progress=False)
    assert np.array_equal(fostore.open(tmp_path / "sound.zarr").array, probs(N, K)[[5, 9, 900]])


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_source_damaged_after_an_interruption_is_not_gone_on_with(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[1100, N])
    from fostore.conversion.conversion import Conversion

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "_verify", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(path, tmp_path / "b.zarr", rows=slice(0, N), progress=False)
    flip(path, DAMAGED)
    with pytest.raises(DamageError):
        convert(path, tmp_path / "b.zarr", rows=slice(0, N), progress=False)
    assert not (tmp_path / "b.zarr").exists()


def test_a_receipt_says_which_rows_could_not_be_checked(tmp_path: Path) -> None:
    """The file with the block hashes of a unit was lost, and the store is not sealed."""
    path = begun(tmp_path / "a.zarr", commits=[1100, N])
    (path / "block_hashes" / "c" / "0" / "0" / "0").unlink()
    receipt = convert(path, tmp_path / "b.zarr", rows=slice(0, 2000), progress=False)
    assert (receipt.source_checked, receipt.verified) == ("part", "destination")
    assert any("not checked against the source: rows 0 to 1023" in n for n in receipt.notes)
    assert "the source in part" in receipt.text()
    receipt = convert(path, tmp_path / "c.zarr", rows=slice(1024, 2000), progress=False)
    assert (receipt.source_checked, receipt.verified) == ("full", "full")


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_sealed_store_whose_block_hashes_are_lost_is_checked_by_its_digest(
    tmp_path: Path, is_damaged: bool
) -> None:
    path = begun(tmp_path / "a.zarr", commits=[N], seal=True)
    (path / "block_hashes" / "c" / "0" / "0" / "0").unlink()
    if is_damaged:
        flip(path, DAMAGED)
        with pytest.raises(DamageError, match="digest"):
            convert(path, tmp_path / "b.zarr", rows=slice(0, 10), progress=False)
        return
    receipt = convert(path, tmp_path / "b.zarr", rows=slice(0, 10), progress=False)
    assert (receipt.source_checked, receipt.verified) == ("full", "full")


def test_a_receipt_says_that_a_plain_file_keeps_no_checksum(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", probs(N, K))
    convert(tmp_path / "a.npy", tmp_path / "a.jsonl", progress=False)
    for suffix in (".npy", ".jsonl"):
        receipt = convert(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}.zarr", progress=False)
        assert (receipt.source_checked, receipt.verified) == ("none", "full")
        assert "keeps no checksum" in receipt.text()


# ------------------------------------------------------------------------------ the smallest block that can be told


def run_of(rows: list[np.ndarray], cuts: list[int]) -> Run:
    known = [(cut, row_crc([column[:cut] for column in rows])) for cut in cuts]
    return Run(0, *known[-1], tuple(known[:-1]))


@pytest.mark.parametrize("damaged", [[], [5], [450], [1150], [5, 1150], [5, 350, 950]], ids=str)
@pytest.mark.parametrize("num_columns", [1, 3])
def test_the_checksums_of_earlier_commits_say_where_a_run_is_damaged(
    num_columns: int, damaged: list[int]
) -> None:
    cuts = [300, 600, 900, 1200]
    columns = [Column(f"c{i}", "float32", "float32", (), (), "content") for i in range(num_columns)]
    rows = [probs(1200, 2, seed=i)[:, 0].copy() for i in range(num_columns)]
    run = run_of(rows, cuts)
    for row in damaged:
        rows[-1][row] += 1e-3
    check = RunCheck(run, columns, lambda start, stop: [c[start:stop] for c in rows])
    expected = {row // 300 for row in damaged}
    found = {piece for a, b in check.damage() for piece in range(a // 300, b // 300)}
    assert found == expected


@pytest.mark.parametrize(("width", "expected"), [(1, (0, 300)), (3, (0, 900))])
def test_of_rows_behind_damage_in_several_columns_nothing_is_said_to_be_right(
    width: int, expected: tuple[int, int]
) -> None:
    """With columns of one width two differences are as good as one: what follows can still be told."""
    columns = [
        Column("a", "float32", "float32", (), (), "content"),
        Column("b", "float32", "float32", ("class",), (width,), "content"),
    ]
    rows = [probs(900, 2)[:, 0].copy(), probs(900, width + 1, seed=1)[:, :width].copy()]
    run = run_of(rows, [300, 600, 900])
    rows[0][5] += 1
    rows[1][6] += 1
    check = RunCheck(run, columns, lambda start, stop: [c[start:stop] for c in rows])
    assert check.damage() == (expected,)


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_verify_and_a_resume_name_the_rows_of_the_commit_that_was_damaged(
    tmp_path: Path, suffix: str, ids: bool
) -> None:
    path = begun(tmp_path / f"a{suffix}", commits=[300, 600, 900, 1000], ids=ids)
    flip(path, 950)
    assert [finding.rows for finding in fostore.open(path).verify()] == [(900, 1000)]
    with pytest.raises(DamageError, match="rows 900 to 999") as caught:
        fostore.create(path, num_samples=1100, num_classes=K, exists="resume")
    assert caught.value.rows == ((900, 1000),)


def test_a_check_of_some_rows_reads_no_more_than_their_blocks(tmp_path: Path) -> None:
    path = begun(tmp_path / "a.zarr", commits=[1100, 1600, 1900])
    reader = fostore.open(path).reader
    seen: list[tuple[int, int]] = []
    proof = Proof(reader, "a")
    read = proof._read
    proof._runs = [
        (
            run,
            RunCheck(
                run, reader.header.schema.columns, lambda a, b: seen.append((a, b)) or read(a, b)
            ),
        )
        for run, _ in proof._runs
    ]
    proof.check(1030, 1500)
    assert seen == [(1024, 1100), (1100, 1600)]
    proof.check(1030, 1600)
    assert len(seen) == 2
