"""Token rows on their way: from format to format, in part, one after another, side by side, published, by command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
import fostore.evaluate
from fostore.cli import app
from fostore.errors import ArgumentError, IdentityError
from support import SUFFIXES
from test_token_rows import LENGTHS, ROWS, SEQUENCES, STARTS, TOKENS, K, N, assert_holds, made

HEADED = (".zarr", ".h5", ".json", ".jsonl", ".parquet", ".arrow", ".npz", ".safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("whole") / "a.zarr")


def convert(source: Any, destination: Path, **options: Any) -> fostore.Store:
    fostore.convert(source, destination, progress=False, **options)
    return fostore.open(destination)


@pytest.mark.parametrize("suffix", HEADED)
def test_there_and_back_the_digest_is_the_same(whole: Path, tmp_path: Path, suffix: str) -> None:
    fostore.convert(whole, tmp_path / f"there{suffix}", progress=False)
    with convert(tmp_path / f"there{suffix}", tmp_path / "back.h5") as back:
        assert back.digest() == fostore.open(whole).digest()
        assert_holds(back)
        assert back.verify() == []


@pytest.mark.parametrize("suffix", HEADED)
def test_a_stream_that_is_not_finished_is_what_it_has(tmp_path: Path, suffix: str) -> None:
    writer = fostore.create(tmp_path / "a.zarr", num_classes=K, rows="tokens")
    writer.append(ROWS[:9], sequences=SEQUENCES[:9], tokens=TOKENS[:9])
    writer.close()
    fostore.convert(tmp_path / "a.zarr", tmp_path / f"there{suffix}", progress=False)
    with convert(tmp_path / f"there{suffix}", tmp_path / "back.zarr") as back:
        assert back.offsets.tolist() == [0, 3, 3, 8, 9]
        assert back.verify() == []


def test_json_opens_as_a_store_of_sequences(whole: Path, tmp_path: Path) -> None:
    with convert(whole, tmp_path / "a.json") as store:
        assert_holds(store)
        assert store.verify() == []


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_a_plain_file_holds_rows_and_no_sequences(whole: Path, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ArgumentError, match="left out: column sequence; left out: column token"):
        fostore.convert(whole, tmp_path / f"a{suffix}", progress=False)
    fostore.convert(whole, tmp_path / f"a{suffix}", progress=False, allow_lossy=True)
    with convert(tmp_path / f"a{suffix}", tmp_path / "b.zarr") as store:
        assert store.schema.row_axis == "sample"
        assert len(store) == N


@pytest.mark.parametrize("source", [".zarr", ".jsonl"])
@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (slice(0, 8), [3, 0, 5]),
        (slice(3, 9), [5, 1]),
        (slice(709, None), [900, 2]),
        (slice(None), LENGTHS),
    ],
)
def test_a_part_is_of_whole_sequences_that_are_numbered_anew(
    whole: Path, tmp_path: Path, source: str, rows: slice, lengths: list[int]
) -> None:
    fostore.convert(whole, tmp_path / f"b{source}", progress=False)
    with convert(tmp_path / f"b{source}", tmp_path / "a.zarr", rows=rows) as store:
        assert np.diff(store.offsets).tolist() == lengths
        np.testing.assert_array_equal(store[:], ROWS[rows])
        np.testing.assert_array_equal(store.column("token"), TOKENS[rows])
        assert store.verify() == []


@pytest.mark.parametrize(
    ("rows", "sequence"),
    [(slice(0, 7), 2), (slice(4, 8), 2), (slice(0, 8, 2), 0), (slice(708, 709), 4)],
)
def test_a_part_that_cuts_a_sequence_is_refused(
    whole: Path, tmp_path: Path, rows: slice, sequence: int
) -> None:
    with pytest.raises(ArgumentError, match=rf"cut sequence {sequence}: rows= takes whole"):
        fostore.convert(whole, tmp_path / "b.zarr", rows=rows, progress=False)
    with pytest.raises(ArgumentError, match="tokens without their sequences"):
        fostore.convert(fostore.open(whole).select([0, 1, 2]), tmp_path / "b.zarr", progress=False)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sources_one_after_another_have_sequences_one_after_another(
    whole: Path, tmp_path: Path, suffix: str
) -> None:
    fostore.convert(whole, tmp_path / "b.jsonl", progress=False)
    with convert([whole, tmp_path / "b.jsonl"], tmp_path / f"c{suffix}") as store:
        assert np.diff(store.offsets).tolist() == LENGTHS + LENGTHS
        assert store.verify() == []
        np.testing.assert_array_equal(store.sequences[9 + 4].tokens, TOKENS[STARTS[4] : STARTS[5]])
    with fostore.create(tmp_path / "d.zarr", num_classes=K, rows="tokens", vocab_size=99) as writer:
        writer.append(ROWS[:1], sequences=[0], tokens=[0])
    with pytest.raises(ArgumentError, match="its vocab_size is 99, expected 7"):
        fostore.convert([whole, tmp_path / "d.zarr"], tmp_path / "e.zarr", progress=False)


def test_members_are_of_the_same_sequences(whole: Path, tmp_path: Path) -> None:
    fostore.stack([whole, whole], tmp_path / "a.zarr", progress=False)
    with fostore.open(tmp_path / "a.zarr") as store:
        assert store.offsets.tolist() == STARTS.tolist()
        assert store.sequences[2].distributions.shape == (5, 2, K)
        assert store.verify() == []
    made(tmp_path / "b.zarr", stream=True)  # whose last sequence without rows nobody knows
    with pytest.raises(IdentityError, match="it has 8 sequences"):
        fostore.stack([whole, tmp_path / "b.zarr"], tmp_path / "c.zarr", progress=False)
    with fostore.create(
        tmp_path / "d.zarr", num_samples=N, num_sequences=9, num_classes=K, rows="tokens"
    ) as writer:
        writer.append(ROWS, sequences=SEQUENCES, tokens=(TOKENS + 1) % K)
    with pytest.raises(IdentityError, match="their 'token' differ"):
        fostore.stack([whole, tmp_path / "d.zarr"], tmp_path / "c.zarr", progress=False)


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"dtype": "float16", "allow_lossy": True}, lambda s: s.schema.dtype == "float16"),
        ({"classes": [2, 0, 1]}, lambda s: (s.num_classes, s.schema.vocab_size) == (3, K)),
        (
            {"encoding": "topk", "k": 3, "allow_lossy": True},
            lambda s: (
                (s.take_topk([0]).ids.shape, s.sequences[2].distributions.num_classes)
                == ((1, 3), K)
            ),
        ),
        ({"kind": "log_probs", "allow_lossy": True}, lambda s: s.schema.kind == "log_probs"),
    ],
)
def test_numbers_change_and_sequences_stay(
    whole: Path, tmp_path: Path, options: dict[str, Any], check: Callable[[Any], bool]
) -> None:
    with convert(whole, tmp_path / "a.h5", **options) as store:
        assert check(store)
        assert store.offsets.tolist() == STARTS.tolist()
        assert store.verify() == []


def test_a_bundle_is_of_tokens(whole: Path, tmp_path: Path) -> None:
    facts = {"name": "t", "license": "CC0-1.0", "creators": ["A"], "description": "D"}
    fostore.publish(whole, tmp_path / "bundle", **facts)
    with fostore.open(tmp_path / "bundle") as store:
        assert_holds(store)
    card = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert "For each of 1,611 tokens of 9 sequences" in card


def test_sequences_that_were_added_make_a_minor_version(tmp_path: Path) -> None:
    facts = {"name": "t", "license": "CC0-1.0", "creators": ["A"], "description": "D"}
    path, bundle = tmp_path / "a.zarr", tmp_path / "bundle"
    for stop, version in ((9, "1.0.0"), (709, "1.1.0")):
        with fostore.create(path, num_classes=K, rows="tokens", exists="resume") as writer:
            rows = slice(len(writer), stop)
            writer.append(ROWS[rows], sequences=SEQUENCES[rows], tokens=TOKENS[rows])
        fostore.publish(path, bundle, **facts)
        assert json.loads((bundle / "fostore-manifest.json").read_bytes())["version"] == version


def test_the_commands_show_tokens_and_sequences(whole: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "sequences 9" in run("info", str(whole))
    facts = json.loads(run("info", "--json", str(whole)))
    assert (facts["num_sequences"], facts["axes"]) == (9, ["token", "class"])
    assert "8 (sequence 3, token 3): " in run("head", "-n", "9", str(whole))
    last = json.loads(run("head", "-n", "9", "--json", str(whole)).splitlines()[-1])
    assert (last["index"], last["sequence"], last["token"]) == (8, 3, TOKENS[8])
    assert "of the same" not in run("compare", str(whole), str(whole))
    with fostore.create(
        tmp_path / "o.zarr", num_samples=N, num_sequences=9, num_classes=K, rows="tokens"
    ) as one:
        one.append(ROWS, sequences=SEQUENCES, tokens=[*TOKENS[:5], 0, *TOKENS[6:]])
    with pytest.raises(IdentityError, match=r"row 5 is of token 1 in the one and 0 in the other"):
        fostore.evaluate.compare(whole, tmp_path / "o.zarr")
    for command in ("verify", "stats"):
        run(command, str(whole))
    run("convert", str(whole), str(tmp_path / "a.h5"), "--rows", "0:8")
    assert fostore.open(tmp_path / "a.h5").offsets.tolist() == [0, 3, 3, 8]
    run("concat", str(tmp_path / "a.h5"), str(whole), "-o", str(tmp_path / "b.zarr"))
    assert fostore.open(tmp_path / "b.zarr").num_sequences == 12
