"""What comes next enters through one file and one line: an encoding, a side column, a second writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore import encodings
from fostore.conversion import convert
from fostore.conversion.stacking import stack
from fostore.errors import (
    ArgumentError,
    DamageError,
    IdentityError,
    LockedError,
    RowError,
    UnsupportedError,
)
from fostore.formats import UnitWriter, format_of
from fostore.formats.claim import MAIN, WHOLE, Claim
from fostore.schema import sides
from fostore.writing.create import begin
from fostore.writing.writer import Writer
from support import probs

N, K, UNIT = 5000, 4, 1024
SUFFIXES = (".zarr", ".h5")


# An encoding


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(encodings.ENCODINGS, "scaled", "toy_encoding")
    return {"name": "scaled", "factor": 4}


def made(path: Path, spec: Any, *, rows: int = 300, **options: Any) -> np.ndarray:
    """A sealed store of some rows, which are given."""
    values = probs(rows, K)
    with fostore.create(path, num_samples=rows, num_classes=K, encoding=spec, **options) as writer:
        writer.append(values)
    return values


def assert_is_scaled(path: Path, rows: np.ndarray, spec: dict[str, Any]) -> None:
    with fostore.open(path) as store:
        assert dict(store.schema.encoding) == spec
        assert [column.name for column in store.schema.content] == ["scaled"]
        np.testing.assert_allclose(store.take(np.arange(len(rows))), rows, atol=2e-3)
        np.testing.assert_allclose(store.column("scaled"), store.take(range(len(rows))) * 4)
        assert dict(store.items()).keys() == set(range(len(rows)))
        assert store.verify() == []
        with pytest.raises(ArgumentError, match="gives what is stored"):
            _ = store.array


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_encoding_and_its_parameters_are_kept_by_create_and_resume(
    scaled: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    rows = made(path, scaled)
    assert_is_scaled(path, rows, scaled)
    fostore.create(path, encoding=scaled, exists="resume").close()
    with pytest.raises(IdentityError, match=r"encoding is .*'factor': 4.* and .*'factor': 2"):
        fostore.create(path, encoding={**scaled, "factor": 2}, exists="resume")
    with pytest.raises(IdentityError, match="encoding is"):
        fostore.create(path, encoding="dense", exists="resume")


def test_a_generator_goes_on_with_an_empty_store_in_its_encoding(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    inputs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(3, K)).astype(np.float32)

    def model(x: np.ndarray) -> np.ndarray:
        e = np.exp(np.stack([row @ weight for row in x]))
        return e / e.sum(-1, keepdims=True)

    path = tmp_path / "a.zarr"
    fostore.create(path, num_samples=64, num_classes=K, encoding=scaled, fingerprints=True).close()
    generator = fostore.FirstOrderDataGenerator(model, output_mode="probs")
    options: Any = {"store": path, "progress": False, "store_as": "probs"}
    generator.generate_distributions(inputs, **options).close()
    assert_is_scaled(path, model(inputs), scaled)
    generator.generate_distributions(inputs, **options).close()  # looks at committed rows again


@pytest.mark.parametrize(
    "suffix", [*SUFFIXES, ".json", ".npz", ".jsonl", ".parquet", ".safetensors"]
)
def test_a_conversion_keeps_the_encoding_where_the_format_keeps_a_header(
    scaled: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    path, there, back = tmp_path / "a.zarr", tmp_path / f"b{suffix}", tmp_path / "c.zarr"
    rows = made(path, scaled)
    convert(path, there, progress=False)
    convert(there, back, progress=False)
    assert_is_scaled(back, rows, scaled)
    assert fostore.open(back).digest() == fostore.open(path).digest()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": slice(10, 90)}, lambda p: p[10:90]),
        ({"classes": [2, 0]}, lambda p: p[:, [2, 0]] / p[:, [2, 0]].sum(-1, keepdims=True)),
        ({"dtype": "float64"}, lambda p: p),
        ({"dtype": "float16", "allow_lossy": True}, lambda p: p),
        ({"class_names": list("abcd")}, lambda p: p),
    ],
    ids=["rows", "classes", "wider", "narrower", "names"],
)
def test_a_conversion_that_changes_rows_keeps_the_encoding(
    scaled: dict[str, Any], tmp_path: Path, changes: dict[str, Any], expected: Any
) -> None:
    rows = made(tmp_path / "a.zarr", scaled)
    convert(tmp_path / "a.zarr", tmp_path / "b.zarr", progress=False, **changes)
    assert_is_scaled(tmp_path / "b.zarr", expected(rows), scaled)


def test_an_encoding_that_cannot_keep_a_kind_refuses_it_and_is_not_left(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    made(tmp_path / "a.zarr", scaled)
    with pytest.raises(ArgumentError, match="scaled keeps probs"):
        convert(tmp_path / "a.zarr", tmp_path / "b.zarr", kind="log_probs", progress=False)


def test_a_plain_file_gets_distributions_and_not_what_encodes_them(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    rows = made(tmp_path / "a.zarr", scaled)
    with pytest.raises(ArgumentError, match="left out: encoding"):
        convert(tmp_path / "a.zarr", tmp_path / "a.npy", progress=False)
    convert(tmp_path / "a.zarr", tmp_path / "a.npy", progress=False, allow_lossy=True)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), rows, atol=1e-6)
    convert(tmp_path / "a.zarr", tmp_path / "a.csv", progress=False, allow_lossy=True)
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1)[:, -K:], rows, atol=1e-6
    )


def test_members_are_stacked_in_their_encoding(scaled: dict[str, Any], tmp_path: Path) -> None:
    rows = [made(tmp_path / f"{name}.zarr", scaled) for name in "ab"]
    stack([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "c.zarr", progress=False)
    assert_is_scaled(tmp_path / "c.zarr", np.stack(rows, axis=1), scaled)
    convert(tmp_path / "c.zarr", tmp_path / "d.zarr", member=1, progress=False)
    assert_is_scaled(tmp_path / "d.zarr", rows[1], scaled)


def test_rows_of_another_encoding_are_evaluated_and_trained_on(
    scaled: dict[str, Any], tmp_path: Path
) -> None:
    from fostore.evaluate import summarize

    rows = made(tmp_path / "a.zarr", scaled)
    one, other = (summarize(source).to_json() for source in (tmp_path / "a.zarr", rows))
    assert one["confidence"] == pytest.approx(other["confidence"])
    dataset = fostore.FirstOrderDataset(None, tmp_path / "a.zarr")
    np.testing.assert_allclose(dataset.gather(np.arange(5)), rows[:5], atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("topq", UnsupportedError, r"'topq' is not known .* \['counts', 'dense', .*'topk'"),
        ("topk", ArgumentError, "k is None, expected an integer of at least 1"),
        ({"name": "dense", "k": 3}, ArgumentError, "'dense' has no parameter 'k'"),
        ({"k": 3}, ArgumentError, "expected a name, one of"),
        (3, ArgumentError, "expected a name, one of"),
        ("counts", ArgumentError, "keeps counts"),
    ],
)
def test_an_encoding_that_cannot_be_had_is_refused_by_name(
    tmp_path: Path, spec: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        fostore.create(tmp_path / "a.zarr", num_samples=3, num_classes=K, encoding=spec)
    assert not list(tmp_path.iterdir())


def test_a_size_is_that_of_the_encoding(scaled: dict[str, Any]) -> None:
    from fostore.generate.sizes import estimate_size

    assert estimate_size(100, 10, encoding=scaled) == estimate_size(100, 10)
    with pytest.raises(ArgumentError, match="factor above 0"):
        estimate_size(100, 10, encoding="scaled")


# A side column


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sides.SIDES, "weight", "toy_side")
    yield
    sides.side_of.cache_clear()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.usefixtures("weights")
def test_a_side_column_goes_through_create_write_resume_convert_and_open(
    tmp_path: Path, suffix: str, planned: bool
) -> None:
    path, values = tmp_path / f"a{suffix}", np.arange(40, dtype="<f4")

    def writer() -> Writer:
        return begun(path, sides={"weights": values if planned else True, "ids": "int64"})

    with writer() as first:
        assert [column.role for column in first.schema.columns] == ["content", "id", "weight"]
        given = {"ids": range(20), "weights": None if planned else values[:20]}
        first._write(0, probs(20, K), given)
        again = {"ids": range(20, 40), "weights": values[:20]}
        with pytest.raises(RowError, match=r"there already|differ from those of create"):
            first._write(20, probs(20, K, start=20), again)
        if not planned:
            with pytest.raises(RowError, match="20 values of 'weight' were expected, none came"):
                first._write(20, probs(20, K, start=20), {"ids": range(20, 40)})
    if planned:
        with pytest.raises(IdentityError, match=r"the weights given differ .* from row 0 on"):
            begun(path, sides={"weights": values + 1})
    with writer() as second:
        second._write(20, probs(20, K, start=20), {"ids": range(20, 40), "weights": values[20:]})
    convert(path, tmp_path / "b.zarr", progress=False)
    store = fostore.open(tmp_path / "b.zarr")
    assert store.column("weight").tolist() == values.tolist()
    assert store.verify() == []
    with pytest.raises(IdentityError, match="the store keeps no labels, and labels= were given"):
        fostore.create(path, labels=True, exists="resume")


def begun(path: Path, *, sides: Any = None, claim: Claim = WHOLE, rows: int = 40) -> Writer:
    """A writer as `create` begins it, with what it does not hand on."""
    from fostore.encodings import make_schema
    from fostore.schema import geometry
    from fostore.schema.header import Header
    from fostore.writing.sides import side_columns

    def header() -> Header:
        schema = make_schema(K, side_columns=side_columns(sides or {}, rows))
        units, blocks = (f(schema.row_bytes) for f in (smallest, geometry.block_rows))
        return Header(schema, rows, units, blocks)

    def smallest(row_bytes: Any) -> int:
        return geometry.unit_rows(row_bytes, rows, UNIT)

    return begin(
        path,
        header,
        lambda units: None,
        exists="resume",
        sides=sides,
        claim=claim,
        commit_seconds=0,
    )


# Several writers


def two(path: Path) -> tuple[Writer, Writer]:
    begun(path, rows=N).close()
    first = begun(path, claim=Claim("one", (0, 2)), rows=N)
    return first, begun(path, claim=Claim("two", (2, 5)), rows=N)


@pytest.mark.parametrize("kill", [False, True], ids=["closed", "killed"])
def test_two_writers_and_a_third_make_the_store_of_one(tmp_path: Path, kill: bool) -> None:
    rows = probs(N, K)
    made(tmp_path / "alone.zarr", None, rows=N, unit_rows=UNIT)
    path = tmp_path / "a.zarr"
    first, second = two(path)
    assert first.missing() == [(0, 2 * UNIT)]
    assert second.missing() == [(2 * UNIT, N)]
    for start in range(0, 1500, 100):  # in turns, each into units of its own
        first.write(start, rows[start : start + 100])
        at = 2 * UNIT + start
        second.write(at, rows[at : at + 100])
        first.commit()
        second.commit()
    with fostore.open(path) as store:
        assert len(store) == 3000
        np.testing.assert_array_equal(store.take([7, 3000]), rows[[7, 3000]])
        assert [f for f in store.verify() if f.severity == "damage"] == []
    if kill:
        for writer in (first, second):
            writer._units.close()
            writer._lock.release()
    else:
        first.close()
        second.close()
    assert len(fostore.open(path)) == 3000
    with begun(path, rows=N) as third:
        for start, stop in third.missing():
            third.write(start, rows[start:stop])
    with fostore.open(path) as store, fostore.open(tmp_path / "alone.zarr") as alone:
        assert store.digest() == alone.digest()
        assert store.verify() == []
    assert files_of(path) == files_of(tmp_path / "alone.zarr")


def files_of(path: Path) -> dict[str, int]:
    """Sizes by name, of what is no metadata."""
    return {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "zarr.json"
    }


def test_a_run_of_another_journal_is_never_grown(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.zarr", probs(N, K)
    first, second = two(path)
    first.write(0, rows[:300])
    first.close()
    second.close()
    # Somebody else takes the units over, and goes on in the middle of a unit.
    other = begun(path, claim=Claim("three", (0, 2)), rows=N)
    other.write(300, rows[300:700])
    other.commit()
    starts = [(run.start, run.stop) for _, kept in journals(path) for run in kept]
    assert sorted(starts) == [(0, 300), (300, 700)]
    other.close()
    again = begun(path, claim=Claim("one", (0, 2)), rows=N)
    again.write(700, rows[700:900])
    again.close()
    with begun(path, rows=N) as last:
        last.write(900, rows[900:])
    assert fostore.open(path).verify() == []
    np.testing.assert_array_equal(fostore.open(path).array, rows)


def journals(path: Path) -> list[Any]:
    from fostore.formats.zarr import journal

    found = sorted(path.rglob(".fostore.journal.*"))
    return [(file.name, journal.parse(file.read_bytes(), file.name).runs) for file in found]


def test_a_writer_touches_nothing_that_it_does_not_claim(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.zarr", probs(N, K)
    first, second = two(path)
    first.write(0, rows[:300])
    second.write(2048, rows[2048:2300])
    first.commit()
    second.commit()
    headers = {file: file.read_bytes() for file in path.rglob("zarr.json")}
    second.close()
    first._units.write(0, UNIT, rows[UNIT : UNIT + 9])  # not committed: no journal names this unit
    again = begun(path, claim=Claim("two", (2, 5)), rows=N)  # cleans while the first is at work
    assert (path / "probs" / ".tail.1").exists()
    again.write(2300, rows[2300:N])
    again.commit()
    first.write(300, rows[300:2048])
    first.commit()
    assert {file: file.read_bytes() for file in path.rglob("zarr.json")} == headers
    with pytest.raises(RowError, match="rows 2040 to 2099 lie in units that 'one' does not hold"):
        first.write(2040, rows[2040:2100])
    for refused in (
        first.seal,
        lambda: first.update_meta({"a": 1}),
        lambda: first.set_identity({"a": 1}),
        lambda: first._units.write(0, 2048, rows[2048:2100]),
        lambda: first._units.finish(first.header),
    ):
        with pytest.raises(ArgumentError, match="'one'"):
            refused()
    with first:
        pass  # nothing is missing, and it is not for this writer to seal
    again.close()
    with begun(path, rows=N) as last:
        assert last.missing() == []
    assert fostore.open(path).is_sealed
    np.testing.assert_array_equal(fostore.open(path).array, rows)


def test_units_that_somebody_holds_are_refused(tmp_path: Path) -> None:
    first, second = two(tmp_path / "a.zarr")
    for claim in (Claim("three", (1, 3)), Claim("one", (0, 2)), WHOLE):
        with pytest.raises(LockedError):
            begun(tmp_path / "a.zarr", claim=claim, rows=N)
    first.close()
    begun(tmp_path / "a.zarr", claim=Claim("three", (0, 2)), rows=N).close()
    second.close()


def test_a_part_of_a_store_is_claimed_where_it_can_be(tmp_path: Path) -> None:
    part = Claim("one", (0, 1))
    with pytest.raises(ArgumentError, match="a new store is for who holds all units"):
        begun(tmp_path / "a.zarr", claim=part)
    assert not [name for name in os.listdir(tmp_path) if name == "a.zarr"]
    made(tmp_path / "a.zarr", None, rows=40)
    with pytest.raises(ArgumentError, match="which is sealed"):
        begun(tmp_path / "a.zarr", claim=part)
    begun(tmp_path / "b.h5").close()
    with pytest.raises(UnsupportedError, match="HDF5 store, which has one writer: 'one' cannot"):
        begun(tmp_path / "b.h5", claim=part)
    for owner, units in ((MAIN, (0, 1)), ("one", None)):
        with pytest.raises(ArgumentError, match="belong to 'main'"):
            Claim(owner, units)
    begun(tmp_path / "c.zarr").close()
    begun(tmp_path / "c.zarr", claim=part).close()
    (tmp_path / "c.zarr" / "probs" / ".fostore.journal.main").unlink()
    with pytest.raises(DamageError, match="has no journal"):
        begun(tmp_path / "c.zarr", claim=part)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_who_holds_all_goes_on_as_before(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    begun(path).close()
    writer: UnitWriter = format_of(path).resume(path, WHOLE)
    assert writer.runs == ()
    writer.close()
