"""Where a bundle goes: an archive, the hub, an object store; what a second call sends, and what an interrupted one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, DamageError, LockedError, PlaceError, StoreExistsError
from fostore.publishing import verification
from fostore.publishing.manifest import Entry
from fostore.publishing.targets import hub as hub_target
from hub_server import Hub, serving
from test_publishing import make, published

# Of huggingface_hub itself, which hands bytes to its HTTP client.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("no_pictures", "fast_disk"),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3
    import requests

    requests.post(f"{moto}/moto-api/reset", timeout=30)
    for key, value in {
        "AWS_ENDPOINT_URL": moto, "AWS_ACCESS_KEY_ID": "key-of-this-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-this-test", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    client = boto3.client("s3", endpoint_url=moto, region_name="us-east-1")
    client.create_bucket(Bucket="data")
    return client


# ------------------------------------------------------------------ one archive


def test_an_archive_is_the_same_every_time_and_zarr_reads_it_in_place(tmp_path: Path) -> None:
    import zarr

    store = make(tmp_path / "rows.zarr")
    published(store, tmp_path / "a.zip")
    published(store, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert fostore.publish(store, tmp_path / "a.zip", progress=False).changed is False
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
    assert infos[0].filename == "data/rows.zarr/zarr.json"
    assert len({info.filename for info in infos}) == len(infos)
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    inside = zarr.open_group(
        zarr.storage.ZipStore(tmp_path / "a.zip"), path="data/rows.zarr", mode="r"
    )
    np.testing.assert_array_equal(inside["probs"][:], fostore.open(store).take(range(300)))
    make(store, 400)
    assert fostore.publish(store, tmp_path / "a.zip", progress=False).version == "1.1.0"
    assert not (tmp_path / ".rows.zarr.bundle").exists()


def test_a_file_that_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"holiday pictures")
    with pytest.raises(StoreExistsError, match="holds no bundle"):
        published(make(tmp_path / "rows.zarr"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == b"holiday pictures"


# ------------------------------------------------------------------ the hub

WHERE = "hf://datasets/me/digits"


def test_the_hub_gets_what_it_lacks_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    made = published(store, WHERE, private=True)
    assert (made.version, made.changed, made.where) == ("1.0.0", True, WHERE)
    assert "me/digits" in hub.private
    there = hub.repositories["me/digits"]
    for name, data in there.items():
        (tmp_path / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    assert list(verification.verify(tmp_path / "got")) == []
    hub.sent.clear()
    assert fostore.publish(store, WHERE, progress=False).changed is False
    assert hub.sent == []
    assert fostore.publish(store, WHERE, progress=False, title="Another").version == "1.0.1"
    assert not any(name.startswith("data/") for name in hub.sent)
    hub.sent.clear()
    make(store, 600)
    assert fostore.publish(store, WHERE, progress=False).version == "1.1.0"
    assert hub.sent


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_what_lies_on_the_hub_is_read_from_there(hub: Hub, tmp_path: Path, suffix: str) -> None:
    store = make(tmp_path / f"rows{suffix}", 2000)
    published(store, WHERE)
    there = fostore.open(f"{WHERE}@main/data/rows{suffix}")
    np.testing.assert_array_equal(there.take([5, 1999]), fostore.open(store).take([5, 1999]))
    assert list(there.verify()) == []
    assert pickle.loads(pickle.dumps(there)).digest() == there.digest()
    with pytest.raises(fostore.FostoreError, match="there is no store"):
        fostore.open(f"{WHERE}/data/other.zarr")


def test_an_upload_that_was_interrupted_goes_on(hub: Hub, tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    failed: list[str] = []
    for requests in range(1, 40):
        hub.fail_at = len(hub.requests) + requests
        try:
            published(store, WHERE)
            break
        except PlaceError as error:
            failed.append(str(error))
    assert len(failed) > 3
    assert all("HF_TOKEN" in error and "hf_of_this_test" not in error for error in failed)
    objects = [name for name in hub.sent if len(name) == 64]
    assert len(objects) == len(set(objects))
    hub.fail_at = None
    assert fostore.publish(store, WHERE, progress=False).changed is False
    assert not (tmp_path / ".rows.zarr.bundle").exists()


def test_what_the_hub_keeps_wrongly_is_found(hub: Hub, tmp_path: Path) -> None:
    hub.spoil = "README.md"
    with pytest.raises(DamageError, match=r"README\.md is another file"):
        published(make(tmp_path / "rows.zarr"), WHERE)


def test_a_hub_that_is_not_reached_is_not_one_that_has_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "rows.zarr")
    published(store, WHERE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PlaceError, match="was not published"):
        published(store, WHERE)


def test_the_hub_is_read_where_nothing_else_has_imported_its_library(
    hub: Hub, tmp_path: Path
) -> None:
    made = published(make(tmp_path / "rows.zarr"), WHERE)
    code = f"import fostore; print(fostore.open({WHERE!r}).digest())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == made.digest, result.stderr


@pytest.mark.parametrize("where", [WHERE, f"{WHERE}@v2"])
def test_of_two_first_publications_one_is_refused(hub: Hub, tmp_path: Path, where: str) -> None:
    """Another publisher commits before the n-th request of ours, whichever that is."""
    store = make(tmp_path / "rows.zarr")
    other = {"README.md": b"of another", "fostore-manifest.json": b"{}"}
    refused = []
    for n in range(2, 40):
        hub.__init__()  # type: ignore[misc]
        hub.url = os.environ["HF_ENDPOINT"]

        def commit(number: int, n: int = n) -> None:
            if number == n:
                hub.repositories["me/digits"] = dict(other)
                hub.commit(where.partition("@")[2] or "main")

        hub.before = commit
        try:
            published(store, where)
        except LockedError as error:
            refused.append((str(error), hub.repositories["me/digits"] == other))
        except DamageError:  # it came when ours was there already
            assert hub.commits == 3
        else:
            assert len(hub.requests) < n
            break
    assert len(refused) > 3
    assert all(is_kept and "publisher was faster" in text for text, is_kept in refused)
    assert len(hub.requests) < n


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b"null", b"{}", b"", b"\xff\xfe"])
def test_no_error_of_a_library_comes_through(hub: Hub, tmp_path: Path, answer: bytes) -> None:
    store = make(tmp_path / "rows.zarr")
    hub.answers = answer
    for call in (lambda: fostore.open(WHERE), lambda: published(store, WHERE)):
        with pytest.raises(PlaceError, match="me/digits"):
            call()


@pytest.mark.parametrize("token", ["hf_secret\x01", "hf_secrets\xe9", "hf_secret\nx"])
@pytest.mark.parametrize("endpoint", [None, "http://me:hf_secret@127.0.0.1:1", "http://[hf_secret"])
def test_tokens_are_in_no_error_whatever_they_are(
    hub: Hub, tmp_path: Path, token: str, endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr("fostore.places.remote.RETRIES", 0)
    store = make(tmp_path / "rows.zarr")
    texts = []
    for call in (lambda: fostore.open(WHERE), lambda: published(store, WHERE)):
        try:
            call()
        except fostore.FostoreError as error:
            texts.append("".join(traceback.format_exception(error)))
    assert texts
    assert not [text for text in texts if "hf_secret" in text]


def test_more_files_than_the_hub_takes_are_refused_before_the_first_byte(hub: Hub) -> None:
    many = [Entry(f"data/x.zarr/probs/c/{i}", 1, "") for i in range(hub_target.MOST_ENTRIES + 1)]
    with pytest.raises(ArgumentError, match=r"data/x\.zarr/probs/c.*HDF5"):
        hub_target.refuse_many(many)
    hub_target.refuse_many(many[:-1])
    folders = [Entry(f"d{i // 9000}/{i}", 1, "") for i in range(hub_target.MOST_FILES + 1)]
    with pytest.raises(ArgumentError, match="100,001 files"):
        hub_target.refuse_many(folders)
    assert hub.requests == []


@pytest.mark.parametrize(
    "url", ["hf://datasets/digits", "hf://models/me/x", "hf://datasets/a/b/c", "ftp://x/y"]
)
def test_urls_that_name_no_target_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        published(make(tmp_path / "rows.zarr"), url)


# ------------------------------------------------------------------ object stores


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_bundle_on_s3_is_read_from_there(bucket: Any, tmp_path: Path, suffix: str) -> None:
    store = make(tmp_path / f"rows{suffix}", 2000)
    assert published(store, "s3://data/some/digits").version == "1.0.0"
    there = fostore.open(f"s3://data/some/digits/data/rows{suffix}")
    np.testing.assert_array_equal(there.take([5, 1999, 0]), fostore.open(store).take([5, 1999, 0]))
    assert list(there.verify()) == []
    assert list(there.ids[:2]) == ["img-0", "img-1"]
    assert pickle.loads(pickle.dumps(there)).digest() == there.digest()
    assert fostore.publish(store, "s3://data/some/digits", progress=False).changed is False
    make(store, 2500)
    assert fostore.publish(store, "s3://data/some/digits", progress=False).version == "1.1.0"
    with pytest.raises((DamageError, fostore.FostoreError), match="open it again"):
        there.take([7])
    assert len(fostore.open(f"s3://data/some/digits/data/rows{suffix}")) == 2500


def test_a_prefix_that_holds_something_else_is_left_alone(bucket: Any, tmp_path: Path) -> None:
    bucket.put_object(Bucket="data", Key="thesis/main.tex", Body=b"years of work")
    with pytest.raises(StoreExistsError, match=r"main\.tex"):
        published(make(tmp_path / "rows.zarr"), "s3://data/thesis")
    assert [o["Key"] for o in bucket.list_objects_v2(Bucket="data")["Contents"]] == [
        "thesis/main.tex"
    ]


def test_a_bucket_that_is_not_there_is_named_as_what_to_make(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="make the bucket first") as refused:
        published(make(tmp_path / "rows.zarr"), "s3://nobody-made-it/digits")
    assert "tried again" not in str(refused.value)


def test_an_upload_to_s3_that_was_killed_goes_on(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fostore.places.remote import Remote

    store = make(tmp_path / "rows.zarr", 2000)
    upload, calls = Remote.upload, [0]

    def dying(self: Remote, name: str, source: Path) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise KeyboardInterrupt
        upload(self, name, source)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", dying)
        with pytest.raises(KeyboardInterrupt):
            published(store, "s3://data/x")
    keys = [o["Key"] for o in bucket.list_objects_v2(Bucket="data")["Contents"]]
    assert keys
    assert not any(key.endswith("tagmanifest-sha256.txt") for key in keys)
    assert published(store, "s3://data/x").changed
    assert fostore.open("s3://data/x/data/rows.zarr").digest() == fostore.open(store).digest()


def test_credentials_are_in_no_error(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError) as refused:
        fostore.open("https://me:hunter2@example.org/x.zarr")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ArgumentError) as refused:
        fostore.open("https://example.org/x.zarr?X-Amz-Signature=hunter2")
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(PlaceError) as told:
        fostore.open("s3://data/x.zarr")
    assert "secret-of-this-test" not in str(told.value) + repr(told.value)


def test_a_forked_child_is_told_to_be_spawned(bucket: Any, tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    published(store, "s3://data/x")
    code = (
        "import os, sys, warnings, fostore\n"
        "warnings.simplefilter('ignore')\n"
        "store = fostore.open('s3://data/x/data/rows.zarr'); store.take([1])\n"
        "if os.fork() == 0:\n"
        "    try:\n        store.take([2])\n"
        "    except fostore.FostoreError as error:\n        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert "spawn" in result.stdout, result.stderr
