"""Token rows: rows of sequences on disk, which come back sequence by sequence, flat or padded."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.encodings import make_schema
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    IdentityError,
    RowError,
    UncommittedError,
    UnsafeError,
    UnsupportedError,
)
from fostore.places.memory import Memory
from fostore.reading.sequences import FlatBatch
from fostore.schema.header import Header
from fostore.schema.ranges import Ranges
from fostore.schema.row import Column
from fostore.schema.sequences import RowOrder, check_count, offsets_of
from support import SUFFIXES, plain_rows, probs

K = 7
LENGTHS = [3, 0, 5, 1, 700, 0, 900, 2, 0]
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
N = int(STARTS[-1])
SEQUENCES = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
TOKENS = np.arange(N) * 31 % K
ROWS = probs(N, K)


def made(path: Path, **options: Any) -> Path:
    """A sealed store of all rows, written in batches that follow no sequence."""
    positions = options.pop("positions", None)
    planned = {} if options.pop("stream", False) else {"num_samples": N, "num_sequences": 9}
    with fostore.create(
        path,
        num_classes=K,
        rows="tokens",
        positions=positions is not None,
        **{"unit_rows": 2048, **planned, **options},
    ) as writer:
        for start in range(0, N, 300):
            rows = slice(start, start + 300)
            at = None if positions is None else positions[rows]
            writer.append(ROWS[rows], sequences=SEQUENCES[rows], tokens=TOKENS[rows], positions=at)
    return path


def assert_holds(store: fostore.Store, expected: np.ndarray = ROWS) -> None:
    assert store.offsets.tolist() == STARTS.tolist()
    assert len(store.sequences) == store.num_sequences == len(LENGTHS)
    for number, (start, stop) in enumerate(itertools.pairwise(STARTS)):
        batch = store.sequences[number]
        np.testing.assert_array_equal(batch.distributions, expected[start:stop])
        np.testing.assert_array_equal(batch.tokens, TOKENS[start:stop])
        assert batch.offsets.tolist() == [0, stop - start]


# ------------------------------------------------------------------ numbers alone


@given(st.lists(st.integers(0, 40)), st.integers(0, 3), st.integers(1, 9))
def test_offsets_are_those_that_a_search_finds(numbers: list[int], more: int, piece: int) -> None:
    column = np.sort(np.array(numbers, np.int64))
    count = (int(column[-1]) + 1 if numbers else 0) + more
    pieces = (column[at : at + piece] for at in range(0, len(column), piece))
    expected = np.searchsorted(column, np.arange(count + 1))
    np.testing.assert_array_equal(offsets_of(pieces, count), expected)


SCHEMA = make_schema(
    2,
    row_axis="token",
    side_columns=[
        Column("sequence", "int64", "int64", (), (), "sequence"),
        Column("position", "uint32", "uint32", (), (), "position"),
    ],
)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
    st.lists(st.integers(1, 7)),
    st.randoms(use_true_random=False),
)
def test_rows_are_taken_if_and_only_if_they_stand_in_order(
    keys: list[tuple[int, int]], cuts: list[int], chance: Any
) -> None:
    """Batches in any order: the oracle is whether all keys grow, looked at when all are there."""
    bounds = sorted({0, len(keys), *(cut for cut in cuts if cut < len(keys))})
    batches = list(itertools.pairwise(bounds))
    chance.shuffle(batches)
    content = np.zeros((len(keys), 2), np.float32)
    columns = [content, np.array([k[0] for k in keys]), np.array([k[1] for k in keys], np.uint32)]
    order = RowOrder(SCHEMA, lambda index, start, stop: columns[index][start:stop])
    written, refused = Ranges(), False
    for start, stop in batches:
        try:
            order.add(start, [column[start:stop] for column in columns], written)
        except RowError:
            refused = True
            break
        written = written.add(start, stop)
    assert refused == any(b <= a for a, b in itertools.pairwise(keys))


def test_sequences_without_rows_are_many_but_not_without_bound() -> None:
    check_count((1 << 20) + 640, 10, "here")
    with pytest.raises(UnsafeError, match="here has 1,049,217 sequences with 10 rows"):
        check_count((1 << 20) + 641, 10, "here")


# ------------------------------------------------------------------ one file of each format


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sequences_come_back_one_by_one(tmp_path: Path, suffix: str) -> None:
    with fostore.open(made(tmp_path / f"a{suffix}")) as store:
        assert store.schema.requires == ("token_rows",)
        assert store.schema.axes == ("token", "class")
        assert store.schema.vocab_size == K
        assert_holds(store)
        np.testing.assert_array_equal(store[5], ROWS[5])  # still a row
        assert store.verify() == []
        assert_holds(pickle.loads(pickle.dumps(store)))
    assert plain_rows(tmp_path / f"a{suffix}", "offsets").tolist() == STARTS.tolist()
    assert plain_rows(tmp_path / f"a{suffix}", "token").dtype == np.uint16


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sequences_come_in_any_order_and_more_than_once(tmp_path: Path, suffix: str) -> None:
    asked = [6, 1, 2, 2, 0]
    with fostore.open(made(tmp_path / f"a{suffix}")) as store:
        flat = store.sequences.take(asked)
        padded = store.sequences.padded(asked)
        some = store.sequences[2:4]
    rows = np.concatenate([np.arange(STARTS[i], STARTS[i + 1]) for i in asked])
    np.testing.assert_array_equal(flat.distributions, ROWS[rows])
    np.testing.assert_array_equal(flat.tokens, TOKENS[rows])
    assert flat.offsets.tolist() == [0, 900, 900, 905, 910, 913]
    assert flat.positions is None
    assert padded.distributions.shape == (5, 900, K)
    assert padded.mask.sum(1).tolist() == [900, 0, 5, 5, 3]
    np.testing.assert_array_equal(padded.distributions[padded.mask], ROWS[rows])
    np.testing.assert_array_equal(padded.tokens[padded.mask], TOKENS[rows])
    assert not padded.distributions[~padded.mask].any()
    assert isinstance(some, FlatBatch)
    assert some.offsets.tolist() == [0, 5, 6]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_stand_at_their_positions(tmp_path: Path, suffix: str) -> None:
    positions = (np.arange(N) - np.repeat(STARTS[:-1], LENGTHS)) * 2 + 1
    with fostore.open(made(tmp_path / f"a{suffix}", positions=positions)) as store:
        assert_holds(store)
        flat, padded = store.sequences.take([2]), store.sequences.padded([2, 0], length=12)
        with pytest.raises(ArgumentError, match=r"sequence 2 .* position 9 .*give length=10"):
            store.sequences.padded([0, 2], length=9)
        assert store.verify() == []
    assert flat.positions is not None
    assert flat.positions.tolist() == [1, 3, 5, 7, 9]
    assert np.flatnonzero(padded.mask[0]).tolist() == [1, 3, 5, 7, 9]
    np.testing.assert_array_equal(padded.distributions[0, 9], ROWS[STARTS[2] + 4])


def test_all_ways_lead_to_one_digest(tmp_path: Path) -> None:
    """Streamed, planned, half planned, and in another format."""
    paths = [
        made(tmp_path / "a.zarr"),
        made(tmp_path / "b.zarr", stream=True, num_sequences=9),
        made(tmp_path / "c.h5"),
        made(tmp_path / "d.zarr", unit_rows=4096, commit_seconds=0),
    ]
    assert len({fostore.open(path).digest() for path in paths}) == 1


def test_the_number_of_sequences_is_part_of_the_content(tmp_path: Path) -> None:
    """A stream that plans none ends with the last sequence that has rows."""
    planned, stream = made(tmp_path / "a.zarr"), made(tmp_path / "b.zarr", stream=True)
    with fostore.open(stream) as store:
        assert store.num_sequences == len(store.sequences) == 8
        assert store.digest() != fostore.open(planned).digest()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_out_of_order_are_refused_whatever_comes_first(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with fostore.create(
        path, num_samples=10, num_sequences=4, num_classes=K, rows="tokens", tokens=False
    ) as writer:

        def write(start: int, numbers: list[int]) -> None:
            writer.write(start, ROWS[: len(numbers)], sequences=numbers)

        write(4, [1, 1])
        with pytest.raises(
            RowError, match="row 6 is of sequence 0, and row 5 before it of sequence 1"
        ):
            write(6, [0])
        with pytest.raises(
            RowError, match="row 4 is of sequence 1, and row 3 before it of sequence 2"
        ):
            write(2, [0, 2])
        with pytest.raises(
            RowError, match="row 8 is of sequence 1, and row 7 before it of sequence 2"
        ):
            write(6, [1, 2, 1])
        with pytest.raises(RowError, match="the sequence of row 7 is 4, expected 0 to 3"):
            write(6, [3, 4])
        with pytest.raises(RowError, match="the sequence of row 6 is -1"):
            write(6, [-1])
        with pytest.raises(RowError, match="sequences="):
            writer.write(6, ROWS[:1])
        write(6, [1, 2, 2, 3])
        write(0, [0, 0, 0, 1])
    assert fostore.open(path).offsets.tolist() == [0, 3, 7, 9, 10]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_goes_on_where_a_sequence_ended(tmp_path: Path, suffix: str) -> None:
    whole, path = made(tmp_path / f"whole{suffix}"), tmp_path / f"a{suffix}"
    options: dict[str, Any] = {"num_samples": N, "num_sequences": 9, "num_classes": K}
    done = 0
    for stop in (STARTS[3], STARTS[5], STARTS[9]):
        with fostore.create(
            path, rows="tokens", unit_rows=2048, exists="resume", **options
        ) as writer:
            assert len(writer) == done
            if done:
                with pytest.raises(RowError, match="sequences never decrease"):
                    writer.append(ROWS[:1], sequences=[0], tokens=[0])
            rows = slice(done, int(stop))
            writer.append(ROWS[rows], sequences=SEQUENCES[rows], tokens=TOKENS[rows])
            done = int(stop)
        if stop != N:
            with fostore.open(path) as store:
                assert store.num_sequences == 9
                assert store.offsets.tolist() == STARTS[: len(store.offsets)].tolist()
                assert store.offsets[-1] == stop
    assert fostore.open(path).digest() == fostore.open(whole).digest()
    assert fostore.open(path).verify() == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sealed_store_goes_on_with_more_sequences(tmp_path: Path, suffix: str) -> None:
    path = made(tmp_path / f"a{suffix}")
    with fostore.create(path, exists="resume", num_samples=N + 2, num_sequences=20) as writer:
        writer.append(ROWS[:2], sequences=[12, 12], tokens=[0, 1])
    with fostore.open(path) as store:
        assert store.offsets.tolist() == [*STARTS.tolist(), N, N, N, *[N + 2] * 8]
        assert store.verify() == []
    with pytest.raises(IdentityError, match="num_sequences is 20 in the store and 19"):
        fostore.create(path, exists="resume", num_sequences=19)


def test_a_sealed_stream_keeps_its_sequences_without_rows(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zarr")
    with fostore.create(path, exists="resume") as writer:
        writer.append(ROWS[:1], sequences=[7], tokens=[0])
    with fostore.open(path) as store:
        assert store.num_sequences == 9
        assert store.offsets.tolist() == [*STARTS[:8].tolist(), N + 1, N + 1]
        assert store.verify() == []


def test_tokens_are_under_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    wide = {"num_classes": K, "rows": "tokens", "vocab_size": 100_000}
    with fostore.create(tmp_path / "a.zarr", **wide) as writer:  # type: ignore[arg-type]
        writer.append(ROWS[:2], sequences=[0, 1], tokens=[99_999, 0])
        with pytest.raises(RowError, match="the token of row 2 is 100000, expected 0 to 99999"):
            writer.append(ROWS[:1], sequences=[1], tokens=[100_000])
    assert plain_rows(tmp_path / "a.zarr", "token").dtype == np.uint32
    with pytest.raises(IdentityError, match="vocab_size is 100000 in the store and 7"):
        fostore.create(tmp_path / "a.zarr", exists="resume", vocab_size=7)
    with pytest.raises(ArgumentError, match="vocab_size is 0"):
        fostore.create(tmp_path / "b.zarr", num_classes=K, rows="tokens", vocab_size=0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0.5, 1.0], "tokens: float64 of shape"),
        ([[1], [2]], r"of shape \(2, 1\)"),
        ([1, 70_000], "tokens: 70000 came at row 1, expected an integer a row .* uint16"),
        ([1, -1], "tokens: -1 came at row 1"),
    ],
)
def test_tokens_that_are_none_are_refused(tmp_path: Path, tokens: Any, message: str) -> None:
    with fostore.create(tmp_path / "a.zarr", num_classes=K, rows="tokens") as writer:
        with pytest.raises(RowError, match=message):
            writer.append(ROWS[:2], sequences=[0, 0], tokens=tokens)
        writer.append(ROWS[:2], sequences=[0, 0], tokens=[1, 2])


def test_what_is_of_token_rows_alone_is_refused_elsewhere(tmp_path: Path) -> None:
    create = fostore.create
    with pytest.raises(ArgumentError, match="rows is 'token', expected one of"):
        create(tmp_path / "a.zarr", num_classes=K, rows="token")
    for option in ({"num_sequences": 3}, {"tokens": True}, {"positions": True}, {"vocab_size": 9}):
        with pytest.raises(ArgumentError, match=f"{next(iter(option))}= is of token rows alone"):
            create(tmp_path / "a.zarr", num_classes=K, rows="samples", **option)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="give num_sequences= as well"):
        create(tmp_path / "a.h5", num_samples=3, num_classes=K, rows="tokens")
    with create(tmp_path / "b.zarr", num_samples=3, num_classes=K) as writer:
        writer.append(ROWS[:3])
    with pytest.raises(IdentityError, match="row_axis is 'sample' in the store and 'token'"):
        create(tmp_path / "b.zarr", exists="resume", rows="tokens")
    with fostore.open(tmp_path / "b.zarr") as store:
        assert store.num_sequences is None
        with pytest.raises(ArgumentError, match="has rows of samples, not of tokens"):
            _ = store.sequences
    with fostore.open(made(tmp_path / "c.zarr")) as store:
        with pytest.raises(UncommittedError, match=r"sequence 9 was asked for; .* 0 to 8"):
            store.sequences.take([1, 9])
        with pytest.raises(UncommittedError, match="sequence -1"):
            _ = store.sequences[-1]
        with pytest.raises(ArgumentError):
            store.sequences.take([0.5])


def test_of_rows_with_gaps_no_sequence_is_known(tmp_path: Path) -> None:
    writer = fostore.create(
        tmp_path / "a.zarr", num_samples=9, num_classes=K, rows="tokens", tokens=False
    )
    writer.write(2, ROWS[:2], sequences=[0, 1])
    writer.close()
    with pytest.raises(UncommittedError, match=r"rows 0 to 1 .* not committed"):
        _ = fostore.open(tmp_path / "a.zarr").offsets


def test_sequences_far_apart_are_refused_when_the_store_is_sealed(tmp_path: Path) -> None:
    writer = fostore.create(tmp_path / "a.zarr", num_classes=K, rows="tokens", tokens=False)
    writer.append(ROWS[:2], sequences=[0, 1 << 40])
    with pytest.raises(RowError, match="1,099,511,627,777 sequences with 2 rows"):
        writer.seal()
    writer.close()
    with pytest.raises(UnsafeError, match="number sequences from 0 on"):
        _ = fostore.open(tmp_path / "a.zarr").sequences


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_sequences_come_from_every_place_and_go_anywhere(tmp_path: Path, suffix: str) -> None:
    """Behind a url, where nothing is mapped; and copied from there, file by file."""
    path = made(tmp_path / f"a{'.zarr' if suffix == '.json' else suffix}")
    if suffix == ".json":
        fostore.convert(path, tmp_path / "a.json", progress=False)
    place = Memory.of(f"memory://tokens{suffix}", tmp_path / f"a{suffix}")
    with fostore.open(place) as store:
        assert_holds(store)
        assert store.verify() == []
        if suffix != ".json":
            copy = store.download(tmp_path / f"copy{suffix}", progress=False)
            assert fostore.open(copy).reader.offsets().tolist() == STARTS.tolist()  # type: ignore[union-attr]
            assert fostore.open(copy).verify() == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sequences_are_read_where_other_tools_have_laid_arrays_anew(
    tmp_path: Path, suffix: str
) -> None:
    path, other = made(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}"
    if suffix == ".zarr":
        import zarr

        source, target = zarr.open_group(path, mode="r"), zarr.open_group(other, mode="w")
        target.attrs.update(dict(source.attrs))
        for name, array in source.arrays():
            chunks = tuple(max(1, min(500, size)) for size in array.shape)
            axes = array.metadata.dimension_names  # type: ignore[union-attr]
            target.create_array(name, data=array[...], chunks=chunks, dimension_names=axes)
    else:
        import h5py

        with h5py.File(path) as old, h5py.File(other, "w") as new:
            new.attrs.update(old.attrs)
            for name in old:
                new.create_dataset(name, data=old[name][...], chunks=True, compression="gzip")
    with fostore.open(other) as store:
        assert store.reader.offsets() is None
        assert_holds(store)
        assert store.verify() == []


# ------------------------------------------------------------------ damage


def flip(path: Path, name: str, entry: int, value: int) -> None:
    """Another number in a column or in the offsets, as a disk or another program would put it there."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "r+") as file:
            file[name][entry] = value
        return
    file_ = path / name / "c" / "0"
    data = np.fromfile(file_, "u1")
    size = 8 if name in ("sequence", "offsets") else 2
    data[entry * size : (entry + 1) * size] = np.array([value], f"<i{size}").view("u1")
    data.tofile(file_)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_offsets_that_changed_are_reported(tmp_path: Path, suffix: str) -> None:
    path = made(tmp_path / f"a{suffix}")
    flip(path, "offsets", 3, 7)
    findings = fostore.open(path).verify()
    assert [finding.where for finding in findings] == ["offsets"]
    assert fostore.open(path).verify("structure") == []
    flip(path, "offsets", 9, N + 1)
    with pytest.raises(DamageError, match=f"do not lead from row 0 to row {N}"):
        _ = fostore.open(path).offsets


def test_offsets_that_are_missing_follow_from_the_column(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zarr")
    (path / "offsets" / "c" / "0").unlink()
    with fostore.open(path) as store:
        assert_holds(store)
        assert [finding.where for finding in store.verify("structure")] == ["offsets"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_of_sequences_that_was_written_wrong_is_reported(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another library would seal it: the digest is that of the rows, and they are not in order."""
    monkeypatch.setattr(RowOrder, "add", lambda *_: None)
    path, numbers = tmp_path / f"a{suffix}", [0, 2, 1, 2]
    writer = fostore.create(
        path, num_samples=4, num_sequences=3, num_classes=K, rows="tokens", tokens=False
    )
    writer.append(ROWS[:4], sequences=numbers)
    with pytest.raises(RowError, match="sequences never decrease"):
        writer.seal()
    monkeypatch.setattr("fostore.writing.sides.offsets_of", lambda *_: np.array([0, 1, 2, 4]))
    writer.seal()
    writer.close()
    assert [f.where for f in fostore.open(path).verify("checksums")] == ["offsets"]
    (finding, *_) = fostore.open(path).verify()
    assert "row 2 is of sequence 1, and row 1 before it of sequence 2" in finding.message


def test_numbers_beyond_the_sequences_are_damage(tmp_path: Path) -> None:
    path = made(tmp_path / "a.zarr")
    flip(path, "sequence", N - 1, 12)
    (path / "offsets" / "zarr.json").unlink()
    with pytest.raises(DamageError, match="no numbers from 0 to 8 in order"):
        _ = fostore.open(path).offsets
    assert any("the sequence of row" in f.message for f in fostore.open(path).verify())
    for entry, value in ((N - 1, -1), (N - 1, 0), (0, -1)):
        flip(path, "sequence", entry, value)
        with pytest.raises(DamageError, match="in order"):
            _ = fostore.open(path).offsets
        flip(path, "sequence", entry, int(SEQUENCES[entry]))
    assert fostore.open(path).offsets.tolist() == STARTS.tolist()


def test_a_reader_without_token_rows_refuses_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "a.zarr")
    monkeypatch.setattr("fostore.schema.row._FEATURES", frozenset({"text_layout"}))
    with pytest.raises(UnsupportedError, match=r"reader features \['token_rows'\]"):
        fostore.open(path)


def test_a_header_says_how_many_sequences_there_are(tmp_path: Path) -> None:
    attributes = json.loads((made(tmp_path / "a.zarr") / "zarr.json").read_bytes())["attributes"]
    header = Header.from_json(attributes, "here")
    assert header.to_json() == attributes
    assert "9" in str(header)
    for value in (None, -1, 1 << 40):
        attributes["fostore"].pop("checksum", None)
        attributes["fostore"]["num_sequences"] = value
        with pytest.raises(FormatError, match="sequences"):
            Header.from_json(attributes, "here")
