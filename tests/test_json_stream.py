"""JSON of any size and any layout: read slice by slice as the standard library reads it whole, in bounded memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore import disk
from fostore.encodings import encoding_of, make_schema
from fostore.errors import FormatError, SpaceError, UnsafeError
from fostore.files.json import FORMAT, export, load, save, scan
from fostore.files.json import rows as json_rows
from fostore.files.json.store import Placed, Present
from fostore.places import spool
from fostore.schema.ranges import Ranges
from fostore.schema.row import COUNTS, FLOATS, Array
from fostore.schema.simplex import softmax

KINDS = [(kind, dtype) for kind in ("probs", "log_probs", "logits") for dtype in FLOATS]
KINDS += [("counts", dtype) for dtype in COUNTS]
DATA = Path(__file__).parent / "data"


@contextmanager
def small_slices(chunk: int = 64, memory: int = 0) -> Iterator[None]:
    """Files are read `chunk` bytes at a time, and columns beyond `memory` bytes go to a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CHUNK", chunk)
        patch.setattr(spool, "MEMORY", memory)
        yield


def normalised(rows: Array) -> list[list[float]]:
    found: list[list[float]] = (rows / rows.sum(-1, keepdims=True)).tolist()
    return found


# ------------------------------------------------------------------ documents of other writers


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A document as some JSON library might write it: any order, white space and escapes."""
    indices = draw(st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True))
    shape = draw(st.sampled_from([(1,), (3,), (12,), (2, 3)]))
    seed = draw(st.integers(0, 2**32 - 1))
    rows = np.random.default_rng(seed).random((len(indices), *shape)) ** draw(
        st.sampled_from([0, 1, 30])
    )
    table = dict(zip((f"<{i}>" for i in indices), normalised(rows), strict=True))
    parts = [("meta", draw(st.sampled_from([{}, {"a": '}"{', "ü\\": [1, {"b": None}]}])))]
    parts.insert(draw(st.integers(0, 1)), ("distributions", table))
    other = [[{"x": "]"}], {"7": [0.5, 0.5]}, "text }", -1.5e3, None, [], {}]
    parts.insert(draw(st.integers(0, 2)), ("other", draw(st.sampled_from(other))))
    text = json.dumps(
        dict(parts),
        indent=draw(st.sampled_from([None, 0, 3, "\t\r\n "])),
        separators=draw(st.sampled_from([(",", ":"), (" ,", " : "), ("\n,\t", ":\r\n ")])),
        ensure_ascii=draw(st.booleans()),
    )
    share = draw(st.integers(1, 6))

    def key(match: re.Match[str]) -> str:
        name = match.group(1)
        escaped = "".join(f"\\u{ord(c):04X}" for c in name)
        return f'"{escaped}"' if int(name) % 6 >= share else f'"{name}"'

    return re.sub(r'"<([0-9]+)>"', key, text)


@given(documents(), st.sampled_from([1, 7, 64, 1000, 1 << 17]), st.sampled_from([0, 400, 1 << 20]))
def test_a_document_reads_as_the_standard_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, text: str, chunk: int, memory: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(text.encode())
    plain = json.loads(text)
    expected = {int(key): np.array(row) for key, row in plain["distributions"].items()}
    with small_slices(chunk, memory):
        loaded, meta = load(path)
        reader = FORMAT.open(path)
    assert meta == reader.header.meta == plain["meta"]
    assert list(loaded) == sorted(expected)
    assert reader.committed == Ranges.of(*((i, i + 1) for i in expected))
    array = reader.column(0).array
    assert array.dtype == np.float64
    assert len(array) == max(expected) + 1
    for index, row in enumerate(array):
        if index in expected:
            np.testing.assert_array_equal(loaded[index], expected[index])
            np.testing.assert_array_equal(row, expected[index])
        else:
            assert np.isnan(row).all()
    some = np.array(sorted(expected)[::-2])
    np.testing.assert_array_equal(reader.column(0).take(some), [expected[int(i)] for i in some])


def test_the_same_rows_are_the_same_store_however_the_text_is_laid_out(tmp_path: Path) -> None:
    plain = json.loads((DATA / "incumbent_general.json").read_text(encoding="utf-8"))
    reversed_rows = dict(reversed(plain["distributions"].items()))
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps(plain, indent=2))
    other.write_text(json.dumps({"distributions": reversed_rows, "meta": plain["meta"]}))
    headers = [FORMAT.open(path).header for path in (one, other)]
    assert headers[0] == headers[1]
    other.write_text(json.dumps({"distributions": reversed_rows, "meta": {}}))
    assert FORMAT.open(other).header.id != headers[0].id
    assert FORMAT.open(other).header.digest == headers[0].digest


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("meta_first", [True, False])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_every_kind_and_dtype_survives_slices_files_and_any_order(
    kind: str, dtype: str, members: int | None, meta_first: bool, tmp_path: Path
) -> None:
    shape = (60, 3) if members is None else (60, members, 3)
    logits = np.random.default_rng(1).normal(size=shape) * 6
    level = np.log(np.exp(logits).sum(-1, keepdims=True))
    if kind != "counts":
        logits[7, ..., 1] = -np.inf
    if kind == "probs":
        rows = softmax(logits)
    elif kind == "counts":
        high = np.iinfo(dtype).max
        rows = np.random.default_rng(2).integers(1, high, shape, dtype, endpoint=True)
    else:
        level = np.log(np.exp(logits).sum(-1, keepdims=True))
        rows = logits - level if kind == "log_probs" else logits
    schema = make_schema(3, kind=kind, dtype=dtype, num_members=members)
    path = tmp_path / "x.json"
    save(path, dict(enumerate(rows)), {"a": 1}, schema)
    header = FORMAT.open(path).header
    if not meta_first:
        plain = json.loads(path.read_text())
        order = np.random.default_rng(3).permutation(60).tolist()
        shuffled = {
            name: {str(i): table[str(i)] for i in order}
            for name, table in plain.items()
            if name != "meta"
        }
        path.write_text(json.dumps({**shuffled, "meta": plain["meta"]}, indent=1))
    with small_slices():
        reader = FORMAT.open(path)
        loaded, _ = load(path)
    assert reader.header == header
    columns = encoding_of(schema).encode(rows, schema, 0)
    for i, column in enumerate(columns):
        found = reader.column(i).array
        assert found.dtype == column.dtype
        assert found.tobytes() == column.tobytes()
        assert not found.flags.writeable
    probs = encoding_of(schema).decode(columns, schema)
    np.testing.assert_array_equal(np.stack(list(loaded.values())), probs)
    export(tmp_path / "again.json", reader)
    assert FORMAT.open(tmp_path / "again.json").header == header
    assert (list(loaded), len(list(tmp_path.iterdir()))) == (list(range(60)), 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_are_never_longer_than_their_dtype_needs(dtype: str, tmp_path: Path) -> None:
    rows = softmax(np.random.default_rng(0).normal(size=(50, 7)) * 9).astype(dtype)
    save(tmp_path / "x.json", dict(enumerate(rows)))
    table = (tmp_path / "x.json").read_text().split('"distributions"')[1]
    texts = re.findall(r"[\[,]([0-9.eE-]+)", table)
    wide = np.float64 if dtype == "float64" else np.float32
    assert texts
    for text, number in zip(texts, rows.ravel(), strict=True):
        shortest = np.format_float_scientific(wide(number), unique=True, trim="-")
        assert len(re.sub(r"e.*|[^0-9]", "", text).strip("0")) <= len(
            re.sub(r"e.*|[^0-9]", "", shortest)
        )


@pytest.mark.parametrize("count", [1, 2, 70_000])
def test_keys_stand_with_their_own_rows_across_batches(count: int, tmp_path: Path) -> None:
    rows = np.arange(count)[:, None] / np.float64(count)
    rows = np.concatenate([rows, 1 - rows], axis=1)
    save(tmp_path / "x.json", dict(enumerate(rows, 5)))
    plain = json.loads((tmp_path / "x.json").read_text())["distributions"]
    assert list(plain) == [str(i) for i in range(5, count + 5)]
    assert list(plain.values()) == rows.tolist()
    assert (tmp_path / "x.json").read_text().count("\n") == count + 3


def test_strings_may_hold_what_looks_like_the_end_of_a_table(tmp_path: Path) -> None:
    from fostore import create
    from fostore import open as open_store

    names = ['"}', "\\", "},", "ü😀", 'a\\"b', "\n\t", "x", '": "'] * 20
    names = [f"{name}{i}" for i, name in enumerate(names)]
    with create(tmp_path / "a.zarr", num_samples=160, num_classes=2, ids=names) as writer:
        writer.append(np.full((160, 2), 0.5, np.float32))
    store = open_store(tmp_path / "a.zarr")
    export(tmp_path / "a.json", store.reader)
    with small_slices(20):
        again = open_store(tmp_path / "a.json")
    assert list(again.ids) == names
    assert again.digest() == store.digest()


# ------------------------------------------------------------------ what is refused


BAD_ROWS = [
    ("NaN", "[0.5, NaN]", "is"),
    ("Infinity", "[Infinity, 0.5]", "is"),
    ("minus infinity", "[-Infinity, 0.5]", "is"),
    ("beyond a double", "[1e999, 0.5]", "is"),
    ("null", "[null, 0.5]", "is"),
    ("no list", "null", "is null"),
    ("true", "[true, 0.0]", "is"),
    ("a string", '["0.5", 0.5]', "is"),
    ("an object", '{"0": 0.5}', "is"),
    ("ragged", "[0.5, 0.25, 0.25]", r"of shape \[3\], expected .* of shape \[2\]"),
    ("short", "[1.0]", r"of shape \[1\]"),
    ("nested", "[[0.5, 0.5]]", r"of shape \[1, 2\]"),
    ("deep", "[" * 3000 + "]" * 3000, "is"),
    ("two", "[0.5, 0.5], [0.5, 0.5]", "is"),
    ("no UTF-8", "[0.5, \udcff]", "is"),
    ("leading zero", "[00.5, 0.5]", "is"),
    ("a comma too many", "[0.5, 0.5],", "is"),
    ("no bracket", "[0.5, 0.5", "is"),
]


@pytest.mark.parametrize("chunk", [50, 1 << 17])
@pytest.mark.parametrize("at", [0, 1, 33, 59])
@pytest.mark.parametrize(("bad", "message"), [row[1:] for row in BAD_ROWS], ids=lambda x: x[:12])
def test_a_bad_row_is_named_by_key_and_line_wherever_it_stands(
    bad: str, message: str, at: int, chunk: int, tmp_path: Path
) -> None:
    lines = [f'"{i + 7}": {bad if i == at else "[0.5, 0.5]"}' for i in range(60)]
    if at == 0:  # the first row says what a row is, so it is the second that differs
        lines = [lines[1].replace('"8"', '"3"'), *lines]
    text = '{"distributions": {\n' + ",\n".join(lines) + "}}"
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    line = 2 + at + (at == 0)
    with small_slices(chunk):
        for read in (load, FORMAT.open):
            with pytest.raises(FormatError, match=f"line {line}: row '{at + 7}' .*{message}"):
                read(path)


def test_members_of_one_row_never_make_up_for_those_that_another_lacks(tmp_path: Path) -> None:
    half = "[0.5, 0.5]"
    rows = [[half] * 2, [half] * 3, [half], [half] * 2]
    lines = [f'"{i}": [{", ".join(row)}]' for i, row in enumerate(rows)]
    path = tmp_path / "x.json"
    path.write_text('{"meta": {}, "distributions": {\n' + ",\n".join(lines) + "}}")
    with pytest.raises(FormatError, match=r"line 3: row '1' .* of shape \[3, 2\]"):
        FORMAT.open(path)


@pytest.mark.parametrize("chunk", [50, 1 << 17])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ('"5"', "row '5' of 'distributions' comes twice"),
        ('"\\u0035"', "row '5' of 'distributions' comes twice"),
        ('"05"', 'the key "05", expected the index'),
        ('"-5"', 'the key "-5"'),
        ('"-0"', 'the key "-0"'),
        ('"5.0"', 'the key "5.0"'),
        ('"+70"', 'the key "\\+70"'),
        ('"7_0"', 'the key "7_0"'),
        ('" 70"', 'the key " 70"'),
        ('"٧"', "the key"),
        ('"\\u0037\\u0030 "', "the key"),
        ('"7\\"0"', "the key"),
        ('"}"', "the key|expected a row"),
        ('"9007199254740992"', "below 2\\^53"),
        ("70", "row '39' of 'distributions' is .*\n70: "),
    ],
)
def test_a_bad_key_is_named_with_its_line_wherever_it_stands(
    key: str, message: str, chunk: int, tmp_path: Path
) -> None:
    lines = [f'"{i}": [0.5, 0.5]' for i in range(60)]
    lines.insert(40, f"{key}: [0.5, 0.5]")
    path = tmp_path / "x.json"
    path.write_text('{"distributions": {\n' + ",\n".join(lines) + "}}")
    with small_slices(chunk):
        for read in (load, FORMAT.open):
            with pytest.raises(FormatError, match=message) as caught:
                read(path)
            assert re.search(r"line 4[12]\b", str(caught.value))


@given(st.data())
def test_a_stream_that_is_cut_or_changed_is_refused_or_reads_as_the_standard_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = ", ".join(f'"{i}": [0.25, 75e-2]' for i in range(12))
    whole = bytearray(
        b'{"distributions": {%b}, "x": {"a": ["}"]}, "meta": {"b": 1}}' % rows.encode()
    )
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.sampled_from(b'{}[]",:0123456789.eE+- \n\\ntu\xc3'))
        whole[at : at + data.draw(st.integers(0, 2))] = bytes([new])
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(whole)
    with small_slices(data.draw(st.sampled_from([1, 30, 1 << 17]))):
        try:
            found, meta = load(path)
        except FormatError:
            with pytest.raises(FormatError):
                FORMAT.open(path)
            return
    # What stands in an object that nobody names is not parsed.
    plain = json.loads(re.sub(rb'"x": \{.*?\}(?=, "meta")', b'"x": 0', bytes(whole)))
    assert meta == plain.get("meta", {})
    assert {i: row.tolist() for i, row in found.items()} == {
        int(key): row for key, row in plain["distributions"].items()
    }


def test_what_goes_on_without_end_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(json_rows, "MAX_ROW", 1 << 18)
    monkeypatch.setattr(scan, "MAX_VALUE", 1 << 18)
    path.write_text('{"distributions": {"0": [' + "0, " * (1 << 20) + "1]}}")
    with pytest.raises(UnsafeError, match="line 1: a row of 'distributions' goes on for more than"):
        FORMAT.open(path)
    path.write_text('{"meta": {"a": [' + "1, " * (1 << 18) + '0]}, "distributions": {"0": [1]}}')
    with pytest.raises(UnsafeError, match=r"'meta' takes 786,4.. bytes and may take 262,144"):
        FORMAT.open(path)
    path.write_text('{"meta": {"a": "' + "x" * (1 << 20) + '"}, "distributions": {"0": [1]}}')
    with pytest.raises(UnsafeError, match="line 1, byte 15: this goes on for more than 262,144"):
        FORMAT.open(path)
    path.write_text(
        '{"other": ' + "[" * (1 << 20) + "]" * (1 << 20) + ', "distributions": {"0": [1]}}'
    )
    assert load(path)[0].keys() == {0}
    path.write_text('{"meta": {"a": ' + "[" * 60_000 + "]" * 60_000 + "}}")
    with pytest.raises(FormatError, match="'meta' is not JSON"):
        FORMAT.open(path)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(FormatError, match="no regular file"):
        FORMAT.open(tmp_path / "x.json")


# ------------------------------------------------------------------ where rows lie


@given(st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True), max_size=12))
def test_indices_are_present_once_each(batches: list[list[int]]) -> None:
    present, seen = Present(), set[int]()
    for batch in batches:
        index = np.array(sorted(batch))
        twice = present.add(index)
        assert twice in seen.intersection(batch) if seen.intersection(batch) else twice is None
        if twice is None:
            seen.update(batch)
    assert present.ranges() == Ranges.of(*((i, i + 1) for i in seen))
    assert present.count == len(seen)


def test_rows_beyond_the_memory_go_to_a_file_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "MEMORY", 800)
    rows = np.random.default_rng(0).random((300, 2))
    placed = Placed("x", 10_000)
    order = np.random.default_rng(1).permutation(300)
    order = order[order != 17]
    for begin in range(0, 299, 23):
        part = order[begin : begin + 23]
        assert placed.put(part, rows[part]) is None
        assert not list(tmp_path.iterdir())
    assert placed.put(np.array([5]), rows[:1]) == 5
    np.testing.assert_array_equal(placed.read(3, 9), rows[3:9])
    array = placed.array()
    del placed
    assert np.isnan(array[17]).all()
    np.testing.assert_array_equal(np.delete(array, 17, 0), np.delete(rows, 17, 0))


def test_a_full_temporary_folder_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SpaceError("the disk is full")

    save(tmp_path / "x.json", dict(enumerate(np.full((100, 2), 0.5))))
    monkeypatch.setattr(disk, "write_at", full)
    with small_slices(), pytest.raises(SpaceError, match=r"x\.json.*temporary folder.*TMPDIR"):
        FORMAT.open(tmp_path / "x.json")


# ------------------------------------------------------------------ memory


CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
import orjson, blake3
import fostore
from fostore.files.json import export
small, large, out = map(Path, sys.argv[1:])
export(out, fostore.open(small).reader)  # what is imported on the way is here now
def data():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmData"))
    return int(line.split()[1]) << 10
budget = data() + (40 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (budget, budget))
store = fostore.open(large)
export(out, store.reader)
print(len(store), repr(float(np.add.reduce(store.take(range(0, len(store), 997)), axis=None))))
try:
    np.ones(1 << 23)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="RLIMIT_DATA counts private memory on Linux only"
)
@pytest.mark.parametrize("layout", ["meta first", "meta last"])
def test_a_document_far_larger_than_the_memory_is_read_and_written(
    layout: str, tmp_path: Path
) -> None:
    block = np.random.default_rng(0).random((1000, 100))
    block /= block.sum(1, keepdims=True)
    import orjson

    texts = [orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) for row in block]
    sizes = {"small": 2_000, "large": 50_000}
    for name, count in sizes.items():
        with (tmp_path / f"{name}.json").open("wb") as file:
            file.write(
                b'{"meta": {}, "distributions": {'
                if layout == "meta first"
                else b'{"distributions": {'
            )
            file.write(b",\n".join(b'"%d": %b' % (i, texts[i % 1000]) for i in range(count)))
            file.write(b"}}" if layout == "meta first" else b'}, "meta": {}}')
    paths = [tmp_path / f"{name}.json" for name in ("small", "large", "out")]
    assert paths[1].stat().st_size > 90 << 20
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    expected = float(np.add.reduce(block[np.arange(0, 50_000, 997) % 1000], axis=None))
    assert done.stdout.split() == ["50000", repr(expected), "limited"]
    with paths[2].open("rb") as file:
        assert json.loads(file.read())["distributions"]["49999"] == block[999].tolist()
