"""Stores behind urls: the same rows as on this machine, or a refusal that says what to do, whatever a server does."""

from __future__ import annotations

import http.server
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    LockedError,
    PlaceError,
    StoreExistsError,
    StoreNotFoundError,
    UnsafeError,
    UnsupportedError,
)
from fostore.evaluate import entropy, summarize
from fostore.places.remote import Remote
from fostore.reading.store import Store
from fostore.schema.row import Array
from test_publishing_targets import bucket, hub, moto
from web_server import Web, serving

remote = pytest.importorskip("fostore.places.remote")
web_place = pytest.importorskip("fostore.places.web")
__all__ = ["bucket", "hub", "moto"]  # fixtures of another file
# Of huggingface_hub itself, which hands bytes to its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
N, K = 20_000, 10


def rows_of(seed: int = 0, n: int = N) -> Array:
    drawn = np.random.default_rng(seed).random((n, K), np.float32) + 1e-3
    return drawn / drawn.sum(axis=1, keepdims=True)


def make(path: Path, rows: Array, unit_rows: int = 4096) -> Path:
    source = path.with_suffix(".zarr")
    with fostore.create(
        source, num_samples=len(rows), num_classes=K, unit_rows=unit_rows, exists="overwrite"
    ) as writer:
        writer.append(rows)
    if path != source:
        fostore.convert(
            source, path, progress=False, exists="overwrite",
            **({} if path.suffix == ".json" else {"unit_rows": unit_rows}),
        )  # fmt: skip
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(params=[".zarr", ".h5", ".json"])
def suffix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    make(tmp_path / f"s{request.param}", rows_of(n=500 if request.param == ".json" else N))
    return str(request.param)


@pytest.fixture
def url(web: Web, tmp_path: Path) -> str:
    """Of a Zarr store."""
    make(tmp_path / "s.zarr", rows_of())
    return f"{web.url}/s.zarr"


# ------------------------------------------------------------------ open


def test_a_store_on_a_web_server_is_the_one_on_this_machine(
    web: Web, suffix: str, tmp_path: Path
) -> None:
    store, oracle = fostore.open(f"{web.url}/s{suffix}"), fostore.open(tmp_path / f"s{suffix}")
    assert (store.header, store.digest()) == (oracle.header, oracle.digest())
    for rows in (np.random.default_rng(1).integers(0, len(oracle), 300), [5, 5, 0], []):
        np.testing.assert_array_equal(store.take(rows), oracle.take(rows))
    np.testing.assert_array_equal(store.array, oracle.array)
    assert np.array_equal(pickle.loads(pickle.dumps(store))[3], oracle[3])
    with pytest.raises(StoreNotFoundError, match="no store"):
        fostore.open(f"{web.url}/other{suffix}")


def test_opening_takes_four_requests_however_many_units_there_are(web: Web, tmp_path: Path) -> None:
    with fostore.create(
        tmp_path / "s.zarr", num_samples=100 << 10, num_classes=10, unit_rows=1 << 10
    ) as writer:
        for _ in range(10):
            writer.append(np.full((10 << 10, 10), 0.1, np.float32))
    store = fostore.open(f"{web.url}/s.zarr")
    assert len(list((tmp_path / "s.zarr" / "probs" / "c").iterdir())) == 100
    assert len(web.requests) <= 4
    web.requests.clear()
    store.take([0])
    assert len(web.requests) <= 2  # the row, and whether the store is still the one that was opened


def test_rows_cost_a_request_a_window_and_no_more_bytes_than_it_has(web: Web, url: str) -> None:
    store = fostore.open(url)
    rows = np.random.default_rng(2).integers(0, N, 64)
    web.requests.clear()
    web.sent = 0
    store.take(rows)
    ranges = [span for _, name, span in web.requests if "/c/" in name]
    units = len({int(row) // 4096 for row in rows})
    assert len(ranges) <= 2 * units
    windows = sum(int(b) - int(a) + 1 for a, b in (r[6:].split("-") for r in ranges if r))
    assert web.sent <= 1.2 * windows + 8192  # the metadata, looked at again


def test_a_bundle_opens_by_its_root_wherever_it_lies(web: Web, tmp_path: Path) -> None:
    make(tmp_path / "rows.zarr", rows_of(n=500))
    fostore.publish(
        tmp_path / "rows.zarr", tmp_path / "digits", license="CC0-1.0", creators=["Ada Lovelace"],
        description="rows of a test", progress=False,
    )  # fmt: skip
    for where in (tmp_path / "digits", str(tmp_path / "digits"), f"{web.url}/digits"):
        store = fostore.open(where)
        np.testing.assert_array_equal(store.take([7, 3]), rows_of(n=500)[[7, 3]])
        assert store.digest() == fostore.open(tmp_path / "rows.zarr").digest()
        assert str(store.path).endswith("digits/data/rows.zarr")
    manifest = tmp_path / "digits" / "fostore-manifest.json"
    value = json.loads(manifest.read_text())
    for changed, error in (
        ({"digest": "blake3:" + "0" * 64}, "names a store with the digest"),
        ({"store": "../rows.zarr"}, "outside the bundle"),
        ({"store": None}, "'store' is missing"),
    ):
        manifest.write_text(json.dumps(value | changed))
        for where in (tmp_path / "digits", f"{web.url}/digits"):
            with pytest.raises(FormatError, match=error):
                fostore.open(where)


# ------------------------------------------------------------------ what servers do


def test_a_server_that_ignores_ranges_is_refused(web: Web, url: str) -> None:
    store = fostore.open(url)
    web.knows_ranges = False
    with pytest.raises(UnsupportedError, match="does not know ranges"):
        store.take([5])


def test_a_server_that_tells_no_versions_is_refused(web: Web, url: str) -> None:
    store = fostore.open(url)
    web.sends = set()
    with pytest.raises(UnsupportedError, match="neither an ETag nor"):
        store.take([5])
    web.sends = {"Last-Modified"}
    np.testing.assert_array_equal(fostore.open(url).take([5]), rows_of()[[5]])


def test_short_bodies_and_errors_are_tried_again_and_then_said(
    web: Web, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fostore.open(url)
    web.cuts = 2
    np.testing.assert_array_equal(store.take([5, 19_000]), rows_of()[[5, 19_000]])
    web.fails["GET"] = 2
    np.testing.assert_array_equal(store.take([5, 19_000]), rows_of()[[5, 19_000]])
    monkeypatch.setattr(remote, "RETRIES", 1)
    store = fostore.open(url)
    for fault in ("cuts", "fails"):
        web.cuts = 1000 if fault == "cuts" else 0
        web.fails["GET"] = 1000 if fault == "fails" else 0
        with pytest.raises(PlaceError, match=r"s\.zarr/probs/c/0/0 cannot be read.*call again"):
            store.take([5])
    web.fails["GET"] = 0
    np.testing.assert_array_equal(store.take([5]), rows_of()[[5]])


def test_a_server_that_does_not_answer_is_given_up(
    web: Web, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SECONDS", 1)
    monkeypatch.setattr(remote, "RETRIES", 1)
    store = fostore.open(url)
    web.hangs = 3
    with pytest.raises(PlaceError, match="cannot be read"):
        store.take([5])
    web.hangs = 0


@pytest.mark.parametrize("knows_matches", [True, False])
def test_a_body_that_is_cut_is_never_ended_by_another_file(
    web: Web, url: str, tmp_path: Path, knows_matches: bool
) -> None:
    """A body that was cut is asked for again; what lies there then may be another file, and is that as a whole."""
    store = fostore.open(url)
    store.take([5])
    shard = tmp_path / "s.zarr" / "probs" / "c" / "1" / "0"
    other = rows_of(seed=9)[4096:8192].tobytes()

    calls: list[str] = []

    def change(name: str) -> None:
        calls.append(name)
        if calls.count("s.zarr/probs/c/1/0") == 2:
            shard.write_bytes(other + shard.read_bytes()[len(other) :])

    web.cuts, web.before, web.knows_matches = 1, change, knows_matches
    assert store.take(np.arange(4096, 8192)).tobytes() == other
    assert calls.count("s.zarr/probs/c/1/0") == 2


@pytest.mark.parametrize("kept", [False, True])
def test_files_that_change_under_a_reader_are_refused_never_mixed(
    web: Web, url: str, tmp_path: Path, kept: bool
) -> None:
    store = fostore.open(url, tmp_path / "cache" if kept else None)
    store.take([5])
    make(tmp_path / "s.zarr", rows_of(seed=1))
    for rows in ([6], [5, 19_000]):
        with pytest.raises((DamageError, FormatError), match="open it again"):
            store.take(rows)
    again = fostore.open(url, tmp_path / "cache" if kept else None)
    np.testing.assert_array_equal(again.take([5, 6]), rows_of(seed=1)[[5, 6]])


def test_an_hdf5_file_that_changes_under_a_reader_is_refused(web: Web, tmp_path: Path) -> None:
    make(tmp_path / "s.h5", rows_of())
    store = fostore.open(f"{web.url}/s.h5")
    store.take([5])
    make(tmp_path / "s.h5", rows_of(seed=1))
    for rows in ([6], [19_000]):
        with pytest.raises((DamageError, FormatError), match="open it again"):
            store.take(rows)


def test_redirects_lead_where_the_user_went_or_to_public_addresses(
    web: Web, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, host="127.0.0.2") as private:
        for target in (f"{private.url}/s.zarr/zarr.json", "file:///etc/passwd", "ftp://x/y"):
            web.leads = {"s.zarr/zarr.json": target}
            with pytest.raises(UnsafeError, match="leads to"):
                fostore.open(url)
        assert private.requests == []
        web.leads = {"s.zarr/zarr.json": f"{private.url}/s.zarr/zarr.json"}
        monkeypatch.setattr(web_place, "_is_private", lambda host: False)
        assert len(fostore.open(url)) == N
    web.leads = {"s.zarr/zarr.json": "/t.zarr/zarr.json", "t.zarr/zarr.json": "/s.zarr/zarr.json"}
    with pytest.raises(UnsafeError, match="on and on"):
        fostore.open(url)
    make(tmp_path / "t.zarr", rows_of())
    web.leads = {"s.zarr/zarr.json": "/t.zarr/zarr.json"}
    assert len(fostore.open(url)) == N


@pytest.mark.parametrize("late", [1, 3, 9])
@pytest.mark.parametrize("target", ["private", "file:///etc/passwd", "//[::1", "gopher://x/"])
def test_every_answer_is_looked_at_before_it_is_followed(
    web: Web, url: str, tmp_path: Path, late: int, target: str
) -> None:
    """A server that leads elsewhere from the n-th range on, as long as a reader lives."""
    with serving(tmp_path, host="127.0.0.2") as private:
        store = fostore.open(url)
        ranges = [0]

        def lead(name: str) -> None:
            ranges[0] += "/c/" in name
            if ranges[0] >= late:
                web.leads = {name: f"{private.url}/{name}" if target == "private" else target}

        web.before = lead
        with pytest.raises(UnsafeError, match="leads to"):
            for row in range(late):
                store.take([row])
        assert ranges == [late]
        assert private.requests == []


def test_a_server_that_compresses_is_refused(web: Web, url: str) -> None:
    store = fostore.open(url)
    web.adds = {"Content-Encoding": "gzip"}
    with pytest.raises(UnsupportedError, match="compressed"):
        store.take([5])


def test_a_web_server_is_not_written_to(url: str, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    place = web_place.Web(url)
    for call in (
        lambda: place.put("x", tmp_path / "new"),
        lambda: place.delete("zarr.json"),
        lambda: list(place.stream("zarr.json")),
        place.sizes,
        place.names,
    ):
        with pytest.raises(UnsupportedError, match="on a web server"):
            call()


def test_what_is_no_public_address_is_known() -> None:
    for host in ("127.0.0.1", "169.254.169.254", "10.1.2.3", "192.168.0.1", "::1", "localhost"):
        assert web_place._is_private(host), host
    assert not web_place._is_private("8.8.8.8")


@pytest.mark.parametrize("rows", ["[2]", "[2, 19000]"])
def test_a_forked_child_is_told_to_be_spawned(url: str, rows: str) -> None:
    code = (
        "import os, warnings, fostore\n"
        "warnings.simplefilter('ignore')\n"
        f"store = fostore.open({url!r}); store.take([1, 18000])\n"
        "if os.fork() == 0:\n"
        f"    try:\n        store.take({rows})\n"
        "    except fostore.FostoreError as error:\n        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "spawn" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "hidden",
    [
        "https://me:hunter2@x.org/s.zarr",
        "https://x.org/s.zarr?sig=hunter2",
        "https://x.org/s.zarr#hunter2",
        "s3://me:hunter2@bucket/s.zarr",
        "hf://datasets/ada/digits@v1?token=hunter2",
        "hf://me:hunter2@datasets/ada/digits",
    ],
)
def test_urls_with_secrets_are_refused_and_not_repeated(hidden: str) -> None:
    for call in (fostore.open, entropy, lambda url: fostore.convert(url, "x.zarr")):
        with pytest.raises(ArgumentError, match="environment") as refused:
            call(hidden)
        assert "hunter2" not in f"{refused.value} {refused.value!r}"


@pytest.mark.parametrize("begin", ["https://", "s3://", "gs://", "hf://", "ftp://", "zip::s3://"])
@pytest.mark.parametrize("rest", ["me:hunter2@bucket/x", "bucket/ada/x?sig=hunter2"])
def test_verbs_that_write_do_not_repeat_the_secrets_of_a_url(
    begin: str, rest: str, tmp_path: Path
) -> None:
    store = make(tmp_path / "rows.zarr", rows_of(n=50))
    hidden = begin + rest
    for call in (
        lambda: fostore.create(hidden, num_samples=1, num_classes=2),
        lambda: fostore.convert(store, hidden, progress=False),
        lambda: fostore.publish(store, hidden, license="MIT", creators=["A"], description="d"),
        lambda: fostore.cite(hidden),
    ):
        with pytest.raises((ArgumentError, UnsupportedError)) as refused:
            call()
        assert "hunter2" not in f"{refused.value} {refused.value!r}"


# ------------------------------------------------------------------ verbs


def test_verbs_that_read_take_urls(web: Web, url: str, tmp_path: Path) -> None:
    local = tmp_path / "s.zarr"
    assert summarize(url).entropy.mean == summarize(local).entropy.mean
    fostore.convert(url, tmp_path / "c.h5", progress=False)
    assert fostore.open(tmp_path / "c.h5").digest() == fostore.open(local).digest()

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(run("info", url, "--json"))["digest"] == fostore.open(local).digest()
    assert f"{url}\n" in run("info", url)
    assert run("head", url, "--json") == run("head", str(local), "--json")
    assert " 0 have another top class" in run("compare", url, str(local))
    assert "20,000 samples" in run("stats", url)
    run("convert", url, str(tmp_path / "d.zarr"), "--no-progress")
    assert fostore.open(tmp_path / "d.zarr").digest() == fostore.open(local).digest()
    for command in ("info", "verify", "head", "stats"):
        result = CliRunner().invoke(app, [command, f"{web.url}/none.zarr"])
        assert result.exit_code == 3, result.output
        assert f"{web.url}/none.zarr" in result.stderr
    assert isinstance(fostore.open(url), Store)


# ------------------------------------------------------------------ to this machine


def test_a_download_is_the_store_and_a_second_call_asks_for_nothing(
    web: Web, suffix: str, tmp_path: Path
) -> None:
    source, target = tmp_path / f"s{suffix}", tmp_path / "new" / f"d{suffix}"
    store = fostore.open(f"{web.url}/s{suffix}")
    assert store.download(target, progress=False) == target
    names = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    assert sorted(p.relative_to(target) for p in target.rglob("*") if p.is_file()) == names
    for name in names or [Path()]:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert fostore.open(target).verify() == []
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    web.requests.clear()
    store.download(target, progress=False)
    assert web.requests == []
    with pytest.raises(ArgumentError, match="suffix"):
        store.download(tmp_path / "d.npz")
    (tmp_path / f"mine{suffix}").write_bytes(b"x")
    with pytest.raises(StoreExistsError, match="choose another path"):
        store.download(tmp_path / f"mine{suffix}")


def test_a_download_that_was_interrupted_goes_on(web: Web, url: str, tmp_path: Path) -> None:
    store = fostore.open(url)
    total = sum(p.stat().st_size for p in (tmp_path / "s.zarr").rglob("*") if p.is_file())

    class Interrupted(Exception):
        pass

    real, calls = type(store.place).read_many, [0]

    def dying(place: Any, ranges: Any) -> Any:
        calls[0] += 1
        if calls[0] > 2:
            raise Interrupted
        return real(place, ranges)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fostore.reading.download._BATCH_BYTES", 4 << 20)
        patch.setattr(type(store.place), "read_many", dying)
        with pytest.raises(Interrupted):
            store.download(tmp_path / "d.zarr", progress=False)
    assert not (tmp_path / "d.zarr").exists()
    web.sent = 0
    store.download(tmp_path / "d.zarr", progress=False)
    assert 0 < web.sent < total
    assert fostore.open(tmp_path / "d.zarr").digest() == store.digest()


def die_after(calls: int, patch: pytest.MonkeyPatch, place: Any) -> None:
    """The n-th batch of a download does not come."""
    real, counted = type(place).read_many, [0]

    def dying(self: Any, ranges: Any) -> Any:
        counted[0] += 1
        if counted[0] > calls:
            raise KeyboardInterrupt
        return real(self, ranges)

    patch.setattr(type(place), "read_many", dying)


@pytest.mark.parametrize("between", ["nothing", "torn", "other file", "other store", "no ETag"])
@pytest.mark.parametrize("calls", [1, 5, 12])
def test_a_download_of_one_file_goes_on_in_its_middle_while_it_is_the_same(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, calls: int
) -> None:
    source, target = make(tmp_path / "s.h5", rows_of()), tmp_path / "d" / "d.h5"
    total = source.stat().st_size
    monkeypatch.setattr("fostore.reading.download._PIECE", 16 << 10)
    monkeypatch.setattr("fostore.reading.download._BATCH_BYTES", 64 << 10)
    if between == "no ETag":
        web.sends = {"Last-Modified"}
    store = fostore.open(f"{web.url}/s.h5")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(calls, patch, store.place)
        store.download(target, progress=False)
    [part] = (tmp_path / "d" / ".d.h5.tmp" / "parts").iterdir()
    came = part.stat().st_size
    assert came == calls * (64 << 10)
    if between == "torn":
        with part.open("r+b") as file:
            file.truncate(came - 1)
    elif between == "other file":  # with the same rows
        make(tmp_path / "s.h5", rows_of(), unit_rows=2048)
    elif between == "other store":
        make(tmp_path / "s.h5", rows_of(seed=1))
    store = fostore.open(f"{web.url}/s.h5")
    web.sent = 0
    store.download(target, progress=False)
    assert target.read_bytes() == source.read_bytes()
    goes_on = between in ("nothing", "torn")
    assert (web.sent < total - came + (32 << 10)) == goes_on
    assert [p.name for p in target.parent.iterdir()] == ["d.h5"]


def test_two_downloads_to_one_path_do_not_write_the_same_files(
    web: Web, url: str, tmp_path: Path
) -> None:
    store, target = fostore.open(url), tmp_path / "new" / "d.zarr"
    refused = []

    def again(name: str) -> None:
        web.before = lambda name: None
        try:
            fostore.open(url).download(target, progress=False)
        except LockedError as error:
            refused.append(str(error))

    web.before = again
    store.download(target, progress=False)
    assert len(refused) == 1
    assert str(target) in refused[0]
    assert fostore.open(target).verify() == []
    assert [p.name for p in target.parent.iterdir()] == ["d.zarr"]


def test_a_download_of_other_bytes_leaves_nothing(web: Web, url: str, tmp_path: Path) -> None:
    shard = tmp_path / "s.zarr" / "probs" / "c" / "1" / "0"
    store = fostore.open(url)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamageError, match="not the store, and was removed"):
        store.download(tmp_path / "d.zarr", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.zarr"]
    shard.unlink()
    with pytest.raises(DamageError, match="c/1/0 is missing"):
        store.download(tmp_path / "d.zarr", progress=False)


@pytest.mark.parametrize("suffix_of_open", [".zarr", ".h5"])
def test_a_store_in_progress_is_not_downloaded(
    web: Web, tmp_path: Path, suffix_of_open: str
) -> None:
    path = tmp_path / f"open{suffix_of_open}"
    with fostore.create(path, num_samples=9, num_classes=K) as writer:
        writer.append(rows_of(n=5))
        writer.commit()
        with pytest.raises(
            (ArgumentError, UnsupportedError),
            match=r"not sealed|lists no folders.*not finished.*object store",
        ):
            fostore.open(f"{web.url}/{path.name}").download(tmp_path / "e" / path.name)
        writer.append(rows_of(n=4))
    assert not (tmp_path / "e").exists()


# ------------------------------------------------------------------ object stores and the hub


@pytest.mark.parametrize("scheme", ["s3", "hf"])
def test_a_bundle_opens_by_its_root_and_hides_what_opened_it(
    request: pytest.FixtureRequest, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue("bucket" if scheme == "s3" else "hub")
    url = "s3://data/some/digits" if scheme == "s3" else "hf://datasets/me/digits"
    local = make(tmp_path / "rows.zarr", rows_of(n=500))
    facts: Any = {"license": "CC0-1.0", "creators": ["Ada Lovelace"], "description": "of a test"}
    fostore.publish(local, url, progress=False, **facts)
    store = fostore.open(url, tmp_path / "cache")
    np.testing.assert_array_equal(store.take([7, 3]), rows_of(n=500)[[7, 3]])
    np.testing.assert_array_equal(entropy(url), entropy(local))
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.take([7, 3]), rows_of(n=500)[[7, 3]])
    store.download(tmp_path / "d.zarr", progress=False)
    assert store.verify() == []
    receipt = fostore.convert(url, tmp_path / "c.h5", progress=False, receipt=tmp_path / "r.json")
    secrets = ("secret-of-this-test", "hf_of_this_test")
    texts = [
        repr(store),
        str(receipt),
        (tmp_path / "r.json").read_text(),
        repr(pickle.dumps(store)),
    ]
    for variable in ("AWS_ENDPOINT_URL", "HF_ENDPOINT"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.setattr(remote, "RETRIES", 0)
    with pytest.raises(PlaceError) as refused:
        fostore.open(url)
    texts += [str(refused.value), repr(refused.value), repr(refused.value.__cause__)]
    assert not [text for text in texts if any(secret in text for secret in secrets)]


def test_a_revision_is_read_as_it_was_when_it_was_first_asked_for(hub: Any, tmp_path: Path) -> None:
    from fostore.places.hub import Hub

    place = Hub("hf://datasets/me/digits@main", "1" * 40)
    for one in (pickle.loads(pickle.dumps(place)), place.below("data/rows.zarr")):
        assert one.commit == "1" * 40
    assert hub.requests == []  # nobody asked what `main` is now
    with pytest.raises(PlaceError, match=r"shows no dataset 'me/other'.*HF_TOKEN"):
        fostore.open("hf://datasets/me/other")


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_every_kind_of_object_store_is_read(
    web: Web, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects that nobody signs for are files by their paths, which a plain server has; it lists nothing."""
    for name, value in {
        "AWS_ENDPOINT_URL": web.url, "AWS_SKIP_SIGNATURE": "true",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "GOOGLE_BASE_URL": web.url, "GOOGLE_SKIP_SIGNATURE": "true",
        "AZURE_ENDPOINT": web.url, "AZURE_STORAGE_ACCOUNT_NAME": "ada", "AZURE_SKIP_SIGNATURE": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    local = make(tmp_path / "data" / "s.zarr", rows_of())
    store = fostore.open(f"{scheme}://data/s.zarr")
    rows = np.random.default_rng(1).integers(0, N, 300)
    np.testing.assert_array_equal(store.take(rows), fostore.open(local).take(rows))
    assert pickle.loads(pickle.dumps(store)).digest() == fostore.open(local).digest()
    store.download(tmp_path / "copy.zarr", progress=False)
    with pytest.raises(StoreNotFoundError):
        fostore.open(f"{scheme}://data/none.zarr")
    make(tmp_path / "data" / "s.zarr", rows_of(seed=1))
    with pytest.raises((DamageError, FormatError), match="open it again"):
        store.take([5])


def test_an_object_that_changes_under_a_reader_is_refused(bucket: Any, tmp_path: Path) -> None:
    local = make(tmp_path / "rows.h5", rows_of())
    bucket.upload_file(str(local), "data", "rows.h5")
    store = fostore.open("s3://data/rows.h5")
    np.testing.assert_array_equal(store.take([7, 19_000]), rows_of()[[7, 19_000]])
    bucket.upload_file(str(make(tmp_path / "rows.h5", rows_of(seed=1))), "data", "rows.h5")
    for rows in ([8], [7, 19_000]):
        with pytest.raises((DamageError, FormatError), match="open it again"):
            store.take(rows)
    bucket.delete_object(Bucket="data", Key="rows.h5")
    with pytest.raises((DamageError, StoreNotFoundError), match=r"any more|open it again"):
        store.take([9])


# What a service answers to a write


@pytest.mark.parametrize(
    ("status", "code", "cure"),
    [
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (301, "PermanentRedirect", "set AWS_REGION to the region of the bucket"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION to the region of the bucket"),
        (503, "SlowDown", "let fewer processes write at once"),
        (429, "TooManyRequests", "let fewer processes write at once"),
        (404, "NoSuchBucket", "there is no such bucket. Make it first"),
        (500, "InternalError", "call again when the server answers"),
        (409, "ConditionalRequestConflict", None),  # a lost race, and that while it lasts: no error
        (412, "PreconditionFailed", None),
    ],
)
def test_an_error_of_a_write_says_what_to_do(
    status: int, code: str, cure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = f"<Error><Code>{code}</Code></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("fostore.places.remote.RETRIES", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        place = Remote("s3://data/x.zarr")
        if cure is None:
            assert place.put("zarr.json", b"{}") is None
        else:
            with pytest.raises(PlaceError, match=cure) as refused:
                place.put("zarr.json", b"{}")
            assert "hunter2" not in str(refused.value)
        server.shutdown()
