"""The guide's JSON: what was written reads back exactly, and what is ambiguous is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore import create, disk
from fostore.encodings import encoding_of, make_schema
from fostore.errors import (
    ArgumentError,
    FormatError,
    RowError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)
from fostore.files.json import FORMAT, export, load, save
from fostore.files.json.read import read_document
from fostore.files.json.rows import Section
from fostore.files.json.store import Gathered, opened
from fostore.formats import format_of
from fostore.formats.views.view import ArrayView
from fostore.schema import geometry
from fostore.schema.halves import bfloat16_to_float32
from fostore.schema.ranges import Ranges
from fostore.schema.row import COUNTS, FLOATS, Array, Column
from fostore.schema.simplex import softmax

DATA = Path(__file__).parent / "data"
INCUMBENTS = ("general", "torch", "jax")


def rows_of(n: int, num_classes: int = 4, dtype: str = "float32", seed: int = 0) -> Array:
    logits = np.random.default_rng(seed).normal(size=(n, num_classes)) * 4
    return softmax(logits).astype(dtype)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def assert_same(found: dict[int, Array], expected: dict[int, Any], dtype: str) -> None:
    assert list(found) == sorted(expected)
    for index, row in found.items():
        assert row.dtype == dtype
        np.testing.assert_array_equal(row, np.asarray(expected[index], dtype))


# ------------------------------------------------------------------ files of others


@pytest.mark.parametrize("name", INCUMBENTS)
def test_the_incumbents_files_load_as_the_standard_library_reads_them(name: str) -> None:
    path = DATA / f"incumbent_{name}.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    distributions, meta = load(path)
    assert meta == plain["meta"]
    assert "日本語 😀" in meta["note"]
    assert_same(distributions, {int(k): v for k, v in plain["distributions"].items()}, "float64")


@pytest.mark.parametrize("name", INCUMBENTS)
def test_the_incumbents_files_open_as_sealed_stores(name: str) -> None:
    path = DATA / f"incumbent_{name}.json"
    reader, again = FORMAT.open(path), FORMAT.open(path)
    header = reader.header
    assert header.sealed
    assert header.digest is not None
    assert (header.id, header.digest) == (again.header.id, again.header.digest)
    assert (header.schema.kind, header.schema.dtype) == ("probs", "float64")
    assert reader.committed == Ranges.of((0, 23))
    assert header.num_samples == 23
    distributions, meta = load(path)
    assert header.meta == meta
    view = reader.column(0)
    np.testing.assert_array_equal(view.array, np.stack(list(distributions.values())))
    assert not view.array.flags.writeable
    np.testing.assert_array_equal(view.take(np.array([5, 2, 5])), view.array[[5, 2, 5]])
    np.testing.assert_array_equal(view.read(3, 9), view.array[3:9])
    assert (list(reader.segments(0)), list(reader.runs()), list(reader.findings())) == ([], [], [])
    assert reader.block_hashes().shape == (1, 1, 32)
    assert not reader.block_hashes().any()
    reader.refresh()
    reader.close()


@pytest.mark.parametrize("name", INCUMBENTS)
def test_the_incumbents_rows_saved_again_are_the_same(name: str, tmp_path: Path) -> None:
    distributions, meta = load(DATA / f"incumbent_{name}.json")
    save(tmp_path / "again.json", distributions, meta)
    found, found_meta = load(tmp_path / "again.json")
    assert found_meta == meta
    assert_same(found, distributions, "float64")
    one = FORMAT.open(DATA / f"incumbent_{name}.json").header
    other = FORMAT.open(tmp_path / "again.json").header
    assert one.digest == other.digest


def test_layout_and_order_of_a_document_do_not_matter(tmp_path: Path) -> None:
    text = """
    { "distributions"
      : {"2" :[ 0.25 ,\t0.75],
         "0": [1, 0], "1": [5e-1,
           0.5]}  ,
      "more": {"deep": [{"}": "]\\""}]}, "meta": {"a": "{\\"distributions\\": {"}, "n": -1.5e3
    }
    """
    distributions, meta = load(write(tmp_path, text))
    assert meta == {"a": '{"distributions": {'}
    assert_same(distributions, {0: [1, 0], 1: [0.5, 0.5], 2: [0.25, 0.75]}, "float64")


def test_missing_indices_are_holes(tmp_path: Path) -> None:
    path = write(tmp_path, '{"meta": {}, "distributions": {"1": [1, 0], "4": [0, 1], "5": [0, 1]}}')
    assert_same(load(path)[0], {1: [1, 0], 4: [0, 1], 5: [0, 1]}, "float64")
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((1, 2), (4, 6))
    assert not reader.header.sealed
    assert reader.header.digest is None
    assert reader.header.num_samples == 6
    array = reader.column(0).array
    assert np.isnan(array[[0, 2, 3]]).all()
    assert array[[1, 4, 5]].tolist() == [[1, 0], [0, 1], [0, 1]]


def test_members_of_an_ensemble_are_lists_of_lists(tmp_path: Path) -> None:
    path = write(tmp_path, '{"meta": {}, "distributions": {"0": [[1, 0], [0, 1], [0.5, 0.5]]}}')
    assert load(path)[0][0].tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    assert FORMAT.open(path).header.schema.num_members == 3


def test_a_document_without_rows_loads_as_an_empty_dict(tmp_path: Path) -> None:
    path = write(tmp_path, '{"meta": {"a": 1}, "distributions": { }}')
    assert load(path) == ({}, {"a": 1})
    with pytest.raises(FormatError, match="holds no distributions"):
        FORMAT.open(path)


def table(rows: str) -> str:
    return '{"meta": {},\n"distributions": {\n' + rows + "\n}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # keys
        (table('"0": [1, 0],\n"0": [0, 1]'), r"line 4: row '0' of 'distributions' comes twice"),
        (table('"1": [1, 0],\n"01": [0, 1]'), r'line 4: .* the key "01", expected the index'),
        (table('"-1": [1, 0]'), 'the key "-1"'),
        (table('"1.0": [1, 0]'), 'the key "1.0"'),
        (table('"": [1, 0]'), 'the key ""'),
        (table('" 1": [1, 0]'), 'the key " 1"'),
        (table('"1e3": [1, 0]'), 'the key "1e3"'),
        (table('"1": [1, 0], "\\u0031": [1, 0]'), "row '1' .* comes twice"),
        (table('"\\u0030\\u0031": [1, 0]'), "the key"),
        (table('"٣": [1, 0]'), "the key"),
        (table('"9007199254740992": [1, 0]'), "below 2\\^53"),
        (table('"' + "9" * 4000 + '": [1, 0]'), "below 2\\^53"),
        # numbers
        (
            table('"0": [1, 0],\n"1": [NaN, 1]'),
            r"line 4: row '1' .* is \[NaN, 1\], expected float64",
        ),
        (table('"0": [Infinity, 1]'), "row '0'"),
        (table('"0": [-Infinity, 1]'), "row '0'"),
        (table('"0": [1e999, 1]'), "row '0'"),
        (table('"0": [null, 1]'), "row '0'"),
        (table('"0": [true, 0]'), "row '0'"),
        (table('"0": [false, 1]'), "row '0'"),
        (table('"0": ["1", 0]'), "row '0'"),
        (table('"0": [0, "1"]'), "row '0'"),
        (table('"0": [01, 0]'), "row '0'"),
        (table('"0": [1, 0,]'), "row '0'"),
        (table('"0": [1 0]'), "row '0'"),
        (table('"0": [0x1, 0]'), "row '0'"),
        (table('"0": {"a": 1}'), "row '0'"),
        (table('"0": null'), "row '0'"),
        (table('"0": 1'), "row '0'"),
        (table('"0": []'), "row '0'"),
        (table('"0": [[]]'), "row '0'"),
        (table('"0": [[[1]]]'), "row '0'"),
        (table('"0": '), "row '0'"),
        # shapes
        (
            table('"0": [1, 0],\n"1": [1, 0, 0]'),
            r"line 4: row '1' .* of shape \[3\], .* shape \[2\]",
        ),
        (table('"0": [[1, 0], [1]]'), "row '0'"),
        (table('"0": [1, 0],\n"1": [[1, 0]]'), r"row '1' .* of shape \[1, 2\]"),
        (table('"0": [1, 0],\n"1": [1, 0], [0, 1]'), "row '1'"),
        (table('"0": [1, 0],\n"1": 1, 0'), "row '1'"),
        (table('"0": [1,\n"1": 0]'), "row '0'"),
        (table('"0": [1, 0], [1, 0],\n"1": [1,\n"2": 0]'), "row '0'"),
        (table('"0": [1, 0],\n"1": [1, 0], [1, 0],\n"2": [1,\n"3": 0]'), "row '1'"),
        (table('"0": [1, 0] "1": [1, 0]'), "row '0'"),
        (table('"0": [1, 0],'), "row '0'"),
        (table(', "0": [1, 0]'), "expected a row"),
        (table('"0" [1, 0]'), "expected a row"),
        # no distributions
        (table('"0": [1, 0],\n"7": [0.5, 0.7]'), "row 7 sums to 1.2"),
        (table('"0": [2, -1]'), "row 0 holds -1 at class 1"),
        (table('"0": [40, 120]'), "row 0 sums to 160"),
        # the top level
        ("", "line 1, byte 0: expected an object: {; the text ends here: the file is empty"),
        ("[]", "expected an object"),
        ("null", "expected an object"),
        ("\ufeff{}", "has no 'distributions'"),
        ("\ufeff\ufeff{}", "expected an object"),
        ("{}", "has no 'distributions'"),
        ('{"0": [1, 0]}', r"has no 'distributions'; its keys are \['0'\]"),
        ('{"meta": {}, "logits": {"0": [1, 0]}}', "has no 'distributions'"),
        (
            '{"meta": {}, "distributions": [[1, 0]]}',
            r"'distributions' is \[\[1, 0\]\], expected an",
        ),
        ('{"meta": {}, "distributions": null}', "'distributions' is null"),
        ('{"meta": [], "distributions": {"0": [1, 0]}}', r"'meta' is \[\], expected an object"),
        ('{"meta": {}, "meta": {}, "distributions": {"0": [1]}}', "the key 'meta' comes twice"),
        ('{"meta": {"a": 1, "a": 2}, "distributions": {"0": [1]}}', "the key 'a' twice"),
        ('{"meta": {"fostore": {"a": NaN}}, "distributions": {"0": [1]}}', "holds NaN"),
        ('{"meta": {"a": 1e999}, "distributions": {"0": [1]}}', "holds 1e999"),
        ('{"meta": {"a": 01}, "distributions": {"0": [1]}}', "is not JSON"),
        ('{"meta": {}, "x": nul, "distributions": {"0": [1]}}', "'x' is not JSON"),
        ('{"meta": {} "distributions": {"0": [1]}}', "expected a comma or a closing brace"),
        ('{"meta": {}, "distributions": {"0": [1]},}', "expected a key in double quotes"),
        ('{"meta": {}, "distributions": {"0": [1]}} {}', "more text after the document's end"),
        ('{"meta": {}, "distributions": {"0": [1}]}', "row '0'"),
        ('{"meta": {}, "distributions": {"0": [1]]}', "row '0'"),
        (b'{"meta": {"a": "\xff"}, "distributions": {"0": [1]}}', "byte 16: this is not UTF-8"),
        (b'{"meta": {}, "distributions": {"\xff": [1]}}', "the key"),
        (b'{"meta": {}, "distributions": {"0": [\xff]}}', "row '0'"),
        ("{}".encode("utf-16"), "expected an object"),
        (b"\0" * 100, "expected an object"),
    ],
)
def test_what_is_ambiguous_or_broken_is_refused_with_its_place(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    for read in (load, FORMAT.open):
        with pytest.raises(FormatError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def rows_in(path: Path) -> dict[int, list[float]]:
    """The rows of a document as they stand, whether they are distributions or not."""
    plain = Section("distributions", np.dtype("f8"))
    document = read_document(opened(path), Gathered, plain)
    if not document.ranges:
        return {}
    index, rows = document.columns[0].in_order()
    return dict(zip(index.tolist(), rows.tolist(), strict=True))


@given(st.data())
def test_a_cut_file_is_refused_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = (DATA / "incumbent_torch.json").read_bytes()
    size = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(FormatError):
        rows_in(write(tmp_path_factory.mktemp("json"), whole[:size]))


@given(st.data())
def test_a_document_is_accepted_only_where_the_standard_library_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(b'{"meta": {}, "distributions": {"0": [0.5, 0.5], "12": [1.0, 0e0]}}')
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.sampled_from(b'{}[]",:0123456789.eE+- \n\\ntu\xc3'))
        whole[at : at + data.draw(st.integers(0, 2))] = bytes([new])
    try:
        found = rows_in(write(tmp_path_factory.mktemp("json"), bytes(whole)))
    except FormatError:
        return
    plain = json.loads(whole)["distributions"]
    assert found == {int(key): row for key, row in plain.items()}


def test_a_huge_index_allocates_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, table('"0": [1, 0],\n"9007199254740991": [1, 0]'))
    assert list(load(path)[0]) == [0, 2**53 - 1]
    with pytest.raises(UnsafeError, match="row 9007199254740991 lies far beyond the 2 rows"):
        FORMAT.open(path)


def test_a_missing_file_and_a_folder_are_said_to_be_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no file '.*none\.json'"):
        load(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError):
        FORMAT.open(tmp_path / "none.json")
    with pytest.raises(FormatError, match="is a folder"):
        load(tmp_path)


# ------------------------------------------------------------------ save and load


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (3000, 2)])
def test_what_was_saved_loads_exactly_with_its_dtype(
    shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    rows = softmax(np.random.default_rng(0).normal(size=shape) * 6).astype(dtype)
    path = tmp_path / "made" / "on" / "the way.json"
    meta = {"model_name": None, "n": 2**70, "ü": [1.5, {"😀": True}]}
    save(path, dict(enumerate(rows)), meta)
    found, found_meta = load(str(path))
    assert found_meta == meta
    assert_same(found, dict(enumerate(rows)), dtype)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6).filter(lambda v: sum(v) > 1e-3))
def test_every_float_survives(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    exact = np.array(values) / np.sum(values)
    for dtype in ("float32", "float64"):
        rows = exact.astype(dtype)
        save(path, {0: rows})
        np.testing.assert_array_equal(load(path)[0][0], rows)


def test_numbers_are_written_in_their_shortest_form(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save(path, {0: np.float32([0.1, 0.9])})
    assert b'"0": [0.1,0.9]' in path.read_bytes()


def test_the_file_is_the_guides_layout_and_any_json_reader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save(path, {0: [0.25, 0.75], 1: [1, 0]}, {"dataset": "digits"})
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert list(plain) == ["meta", "distributions"]
    assert plain["distributions"] == {"0": [0.25, 0.75], "1": [1.0, 0.0]}
    assert plain["meta"]["dataset"] == "digits"
    assert plain["meta"]["fostore"]["kind"] == "probs"


def test_lists_tensors_and_jax_arrays_are_rows(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax.numpy")
    path = tmp_path / "x.json"
    row = [0.5, 0.25, 0.25]
    for given_row, dtype in [
        (row, "float64"),
        (tuple(row), "float64"),
        (np.float16(row), "float16"),
        (torch.tensor(row, requires_grad=True), "float32"),
        (torch.tensor(row, dtype=torch.bfloat16), "float32"),
        (torch.tensor(row, dtype=torch.float16), "float16"),
        (jax.asarray(row, "float32"), "float32"),
        (jax.asarray(row, "bfloat16"), "float32"),
    ]:
        save(path, {0: given_row, 1: given_row})
        assert_same(load(path)[0], {0: row, 1: row}, dtype)


def test_the_widest_dtype_among_the_rows_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = {0: np.float32([0.1, 0.9]), 1: np.float64([0.1, 0.9])}
    save(path, rows)
    assert_same(load(path)[0], rows, "float64")


def test_gaps_and_order_of_the_keys_survive_sorted(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = rows_of(3)
    save(path, {np.int64(7): rows[0], 2: rows[1], 3: rows[2]})
    assert_same(load(path)[0], {2: rows[1], 3: rows[2], 7: rows[0]}, "float32")
    reader = FORMAT.open(path)
    assert reader.committed == Ranges.of((2, 4), (7, 8))
    assert (reader.header.num_samples, reader.header.sealed) == (8, False)


def test_a_store_is_saved_by_batches(tmp_path: Path) -> None:
    class Rows(dict[int, Array]):
        def take(self, rows: Array) -> Array:
            taken.append(len(rows))
            return np.stack([self[int(i)] for i in rows])

    taken: list[int] = []
    rows = Rows(enumerate(rows_of(20_000)))
    save(tmp_path / "x.json", rows)
    assert max(taken) * 4 == 1 << 16
    assert_same(load(tmp_path / "x.json")[0], rows, "float32")


@pytest.mark.parametrize(
    ("distributions", "error", "message"),
    [
        ({}, ArgumentError, "there are no distributions"),
        ({"0": [1.0]}, ArgumentError, "the key '0', expected the index"),
        ({-1: [1.0]}, ArgumentError, "the key -1"),
        ({True: [1.0]}, ArgumentError, "the key True"),
        ({2**53: [1.0]}, ArgumentError, "the key 9007199254740992"),
        ({0: [1.0, 0.0], 5: [0.5, 0.6]}, RowError, "^row 5 sums to 1.1"),
        ({0: [1.0, np.nan]}, RowError, "^row 0 holds nan"),
        ({3: [0.5, 0.5], 4: [1.0]}, RowError, r"^row 4 has shape \(1,\), expected \(2,\)"),
        ({0: [[0.5, 0.5], [1.0]]}, RowError, "^row 0 is no row of numbers"),
        ({0: ["a", "b"]}, RowError, "^row 0 has dtype <U1"),
        ({0: [True, False]}, RowError, "^row 0 has dtype bool"),
        ({0: None}, RowError, "^row 0 has dtype object"),
        ({0: 1.0}, RowError, r"^row 0 has dtype float64 and shape \(\)"),
        ({0: np.array([1, 0])}, RowError, "expected floating-point numbers"),
    ],
)
def test_what_cannot_be_saved_leaves_the_file_that_was_there(
    distributions: dict[Any, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    save(path, {0: [0.5, 0.5]})
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        save(path, distributions)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"a": float("nan")}, "NaN|nan"),
        ({1: "a"}, "the key 1"),
        ({"a": object()}, "type object"),
        ({"fostore": {}}, "keeps for its own"),
        ({"a": "\ud800"}, "cannot be written as JSON"),
    ],
)
def test_metadata_that_json_cannot_hold_is_refused(
    meta: dict[Any, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        save(tmp_path / "x.json", {0: [0.5, 0.5]}, meta)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    save(path, {0: [0.5, 0.5]})
    before = path.read_bytes()
    for name in ("write_at", "sync_data", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, _fails)
            with pytest.raises(OSError, match="broken"):
                save(path, {0: [1.0, 0.0]})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def _fails(*args: object) -> None:
    raise OSError("broken")


def test_data_is_durable_before_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(disk, name)

        def call(*args: Any, **keywords: Any) -> Any:
            if not calls or calls[-1] != name:
                calls.append(name)
            return real(*args, **keywords)

        return call

    for name in ("write_at", "sync_data", "rename", "sync_directory"):
        monkeypatch.setattr(disk, name, recorded(name))
    save(tmp_path / "x.json", {0: [0.5, 0.5]})
    assert calls == ["write_at", "sync_data", "rename", "sync_directory"]


# ------------------------------------------------------------------ other kinds and whole stores


KINDS = [(kind, dtype) for kind in ("probs", "log_probs", "logits") for dtype in FLOATS]
KINDS += [("counts", dtype) for dtype in COUNTS]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("members", [None, 2])
def test_every_kind_reads_back_bit_for_bit(
    kind: str, dtype: str, members: int | None, tmp_path: Path
) -> None:
    shape = (9, 3) if members is None else (9, members, 3)
    logits = np.random.default_rng(0).normal(size=shape) * 5
    if kind in ("log_probs", "logits"):
        logits[4, ..., 1] = -np.inf
    level = np.log(np.exp(logits).sum(-1, keepdims=True))
    rows: Array = {
        "probs": np.exp(logits - level),
        "log_probs": logits - level,
        "logits": logits,
        "counts": np.full(shape, np.iinfo(dtype).max, dtype) if kind == "counts" else logits,
    }[kind]
    schema = make_schema(3, kind=kind, dtype=dtype, num_members=members, temperature=1.5)
    path = tmp_path / "x.json"
    save(path, dict(enumerate(rows)), {}, schema)

    reader = FORMAT.open(path)
    assert reader.header.schema == schema
    assert reader.header.sealed
    columns = encoding_of(schema).encode(rows, schema, 0)
    for i, column in enumerate(columns):
        found = reader.column(i).array
        assert found.dtype == column.dtype
        np.testing.assert_array_equal(found, column)

    plain = json.loads(path.read_text(encoding="utf-8"))
    assert ("distributions" in plain) == (kind == "probs")
    found_rows, _ = load(path)
    probs = encoding_of(schema).decode(columns, schema)
    for i, row in found_rows.items():
        np.testing.assert_array_equal(row, probs[i])


def test_bfloat16_is_written_as_the_numbers_it_stands_for(tmp_path: Path) -> None:
    schema = make_schema(2, dtype="bfloat16")
    save(tmp_path / "x.json", {0: [0.1, 0.9]}, {}, schema)
    bits = FORMAT.open(tmp_path / "x.json").column(0).array
    plain = json.loads((tmp_path / "x.json").read_text())
    assert np.float32(plain["distributions"]["0"]).tolist() == bfloat16_to_float32(bits)[0].tolist()


SIDE = (
    Column("sample_id", "utf8", "uint8", ("byte",), (8,), "id"),
    Column("input_hash", "uint64", "uint64", (), (), "fingerprint"),
)


def side_columns(n: int) -> list[Array]:
    names = np.array([f"ü{i}" for i in range(n)])
    texts = np.array([name.encode().ljust(8, b"\0") for name in names.tolist()], "S8")
    hashes = np.arange(n, dtype=np.uint64) + np.uint64(2**64 - n)
    return [texts.view(np.uint8).reshape(n, 8), hashes]


class Whole:
    """As much of a reader as `export` needs."""

    def __init__(self, header: Any, columns: list[Array], committed: Ranges) -> None:
        self.header, self.committed, self._columns = header, committed, columns

    def column(self, index: int) -> Any:
        return ArrayView(self._columns[index])


def exported(path: Path, n: int = 6, committed: Ranges | None = None) -> tuple[Any, list[Array]]:
    schema = make_schema(3, kind="logits", dtype="float16", side_columns=SIDE)
    logits = np.random.default_rng(0).normal(size=(n, 3))
    columns = [*encoding_of(schema).encode(logits, schema, 0), *side_columns(n)]
    save(path, {i: [1.0, 0.0, 0.0] for i in range(n)})
    units = geometry.unit_rows(schema.row_bytes, None)
    header = replace(FORMAT.open(path).header, schema=schema, unit_rows=units)
    header = replace(
        header, sealed=False, digest=None, meta={"user": "meta"}, identity={"model": {"name": "m"}}
    )
    committed = committed or Ranges.of((0, n))
    export(path, Whole(header, columns, committed))  # type: ignore[arg-type]
    return header, columns


def test_a_whole_store_with_side_columns_survives(tmp_path: Path) -> None:
    header, columns = exported(tmp_path / "x.json")
    reader = FORMAT.open(tmp_path / "x.json")
    assert reader.header == header
    for i, column in enumerate(columns):
        found = reader.column(i).array
        assert found.dtype == column.dtype
        np.testing.assert_array_equal(found, column)


def test_only_committed_rows_are_exported(tmp_path: Path) -> None:
    committed = Ranges.of((0, 2), (3, 4))
    _, columns = exported(tmp_path / "x.json", committed=committed)
    reader = FORMAT.open(tmp_path / "x.json")
    assert reader.committed == committed
    for i, column in enumerate(columns):
        np.testing.assert_array_equal(reader.column(i).array[[0, 1, 3]], column[[0, 1, 3]])


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    if isinstance(document.get("meta", {}).get("fostore"), dict):
        document["meta"]["fostore"].pop("checksum", None)  # who means harm gets it right
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["logsumexp"].pop("2"), "do not hold the same rows"),
        (lambda d: d.pop("input_hash"), "has no 'input_hash'"),
        (
            lambda d: d["sample_id"].update({"2": 5}),
            "row '2' of 'sample_id' is 5, expected a string",
        ),
        (lambda d: d["sample_id"].update({"2": "123456789"}), "more than 8 bytes"),
        (lambda d: d["input_hash"].update({"2": 1.5}), "row '2' of 'input_hash'"),
        (lambda d: d["input_hash"].update({"2": -1}), "row '2' of 'input_hash'"),
        (lambda d: d["input_hash"].update({"2": 2**64}), "row '2' of 'input_hash'"),
        (lambda d: d["input_hash"].update({"2": [1]}), "row '2' of 'input_hash'"),
        (lambda d: d["input_hash"].update({"2": None}), "row '2' of 'input_hash'"),
        (lambda d: d["logits"].update({"2": [1, 0, 0]}), "row 2 has the largest logit"),
        (lambda d: d["logits"].update({"2": [0, 0]}), r"of shape \[2\], expected .* \[3\]"),
        (lambda d: d["logits"].update({"2": [None] * 3}), "row 2 is minus infinity for every"),
        (lambda d: d["logsumexp"].update({"2": None}), "row '2' of 'logsumexp'"),
        (lambda d: d["logsumexp"].update({"2": 1e300}), "row 2 has the logsumexp"),
        (lambda d: d["meta"]["fostore"].update(num_samples=5), "holds row 5, but its num_samples"),
        (lambda d: d["meta"]["fostore"].update(num_samples=7, sealed=True, digest="x"), "holds 6"),
        (lambda d: d["meta"]["fostore"].update(kind="votes"), "kind is 'votes'"),
        (lambda d: d["meta"].update(fostore=[]), "'fostore' is"),
    ],
)
def test_an_edited_store_is_refused_with_its_place(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    exported(path)
    edit(path, change)
    with pytest.raises(FormatError, match=message):
        FORMAT.open(path)


def test_a_store_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    exported(path)
    edit(path, lambda d: d["meta"]["fostore"].update(version="2.0"))
    with pytest.raises(UnsupportedError, match=r"version 2\.0"):
        load(path)


def test_a_header_hands_on_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save(path, {0: [0.5, 0.5]})
    header = replace(FORMAT.open(path).header, identity={"model": {"hash": "1"}}, num_samples=4)
    save(path, {0: [0.5, 0.5], 1: [0.5, 0.5]}, {"a": 1}, header)
    found = FORMAT.open(path).header
    assert (found.identity, found.id) == (header.identity, header.id)
    assert (found.num_samples, found.sealed, found.meta) == (4, False, {"a": 1})


def test_rows_alone_cannot_fill_side_columns(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="side columns"):
        save(tmp_path / "x.json", {0: [1.0]}, {}, make_schema(1, side_columns=SIDE))


def test_a_json_file_does_not_grow_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save(path, {0: [1.0]})
    for refuse in (
        lambda: format_of(path),
        lambda: create(path, num_samples=1, num_classes=1),
    ):
        with pytest.raises(ArgumentError, match=r"\.zarr or \.h5 .*fostore\.convert.*save_distri"):
            refuse()
