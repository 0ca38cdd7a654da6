"""What a Place promises, for every one that there is; what lies in one is a stranger's."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fostore import disk
from fostore.errors import ArgumentError, FormatError, StoreNotFoundError, UnsafeError
from fostore.places.local import Local
from fostore.places.memory import Memory
from fostore.places.names import SCHEMES, place_of
from fostore.places.place import Place, Storage
from test_publishing_targets import bucket, moto

__all__ = ["bucket", "moto"]  # fixtures of another file
FILES = {"zarr.json": b"{}", "probs/c/0/0": bytes(range(256)), "probs/zarr.json": b"[1]"}


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        pytest.importorskip("obstore")
        client = request.getfixturevalue("bucket")
        for name, data in FILES.items():
            client.put_object(Bucket="data", Key=f"s.zarr/{name}", Body=data)
        return place_of("s3://data/s.zarr")
    root = tmp_path / "s.zarr"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return Local(root) if request.param == "local" else Memory.of("memory://s.zarr", root)


def _objects() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")


def put(place: Place, name: str, data: bytes) -> None:
    """Another file under a name, as an overwrite puts it there."""
    if isinstance(place, Memory):
        place.files[name] = data
        return
    if not isinstance(place, Local):
        _objects().put_object(Bucket="data", Key=f"s.zarr/{name}", Body=data)
        return
    new = place.path / "new"
    new.write_bytes(data)
    os.replace(new, place.path / name)


def test_a_small_file_is_read_as_a_whole(place: Place) -> None:
    assert place.read("probs/zarr.json", 3) == b"[1]"
    with pytest.raises(UnsafeError, match=r"zarr\.json has 3 bytes, expected at most 2"):
        place.read("probs/zarr.json", 2)
    with pytest.raises(FileNotFoundError):
        place.read("probs/other.json", 10)


def test_ranges_come_in_the_order_asked_for_and_end_where_their_file_ends(place: Place) -> None:
    pieces = place.read_many([("probs/c/0/0", 250, 300), ("zarr.json", 0, 2), ("zarr.json", 5, 9)])
    assert [data for data, _ in pieces] == [bytes(range(250, 256)), b"{}", b""]
    assert [version for _, version in pieces] == [
        place.version(name) for name in ("probs/c/0/0", "zarr.json", "zarr.json")
    ]
    with pytest.raises(FileNotFoundError):
        place.read_many([("zarr.json", 0, 1), ("none", 0, 1)])


def test_what_is_not_there_has_no_size_no_version_and_no_names(place: Place) -> None:
    assert place.size("probs/c/0/0") == 256
    assert place.size("none") is place.size("none/at/all") is None
    assert place.version("none") is None
    with pytest.raises(FileNotFoundError):
        place.names("none")


def test_names_come_with_what_they_are(place: Place) -> None:
    assert place.names() == {"zarr.json": "file", "probs": "folder"}
    assert place.names("probs") == {"zarr.json": "file", "c": "folder"}


def test_another_file_of_the_same_name_has_another_version(place: Place) -> None:
    before, folder = place.version("zarr.json"), place.version("probs")
    assert place.version("zarr.json") == before is not None
    put(place, "zarr.json", b"[]")
    assert place.version("zarr.json") != before
    assert place.version("probs") == folder is not None


def test_what_lies_below_is_a_place(place: Place) -> None:
    below = place.below("probs")
    assert below.read("zarr.json", 9) == b"[1]"
    assert below.url == f"{place.url}/probs"
    assert place.below("probs/c/0/0").size("") == 256


def test_an_open_file_is_the_one_that_was_opened_or_refused(place: Place) -> None:
    file = place.open("probs/c/0/0")
    assert file.is_current()
    file.check()
    assert (file.size, file.read(1, 2), file.read(255, 9), file.read(300, 1)) == (
        256,
        b"\1\2",
        b"\xff",
        b"",
    )
    put(place, "probs/c/0/0", bytes(256))
    assert not file.is_current()
    with pytest.raises(FormatError, match="another store than before"):
        file.check()
    if isinstance(place, Local):  # a descriptor leads to it still
        assert file.read(1, 2) == b"\1\2"
    else:
        with pytest.raises(FormatError, match="another store than before"):
            file.read(1, 2)
    file.close()
    file.close()
    with pytest.raises(ArgumentError, match="closed"):
        file.read(0, 1)


def test_a_file_that_is_gone_is_missed(place: Place) -> None:
    with closing(place.open("zarr.json")) as file:
        if isinstance(place, Memory):
            del place.files["zarr.json"]
        elif not isinstance(place, Local):
            _objects().delete_object(Bucket="data", Key="s.zarr/zarr.json")
        else:
            os.remove(Path(place.url) / "zarr.json")
        assert not file.is_current()
        with pytest.raises(StoreNotFoundError, match="any more"):
            file.check()


def test_a_place_is_a_value_and_pickles_as_its_url(place: Place) -> None:
    again = pickle.loads(pickle.dumps(place))
    assert (again, again.url, str(again)) == (place, place.url, place.url)
    assert hash(again) == hash(place)
    assert place_of(place) is place
    assert place_of(place.url) == place
    assert isinstance(place, Place)
    assert len(pickle.dumps(place)) < 300  # not what is in it


def test_a_scheme_is_one_line() -> None:
    assert {"memory", "s3", "https", "hf"} <= set(SCHEMES)
    with pytest.raises(ArgumentError, match=r"ftp://bucket/x\.zarr' is a url"):
        place_of("ftp://bucket/x.zarr")
    with pytest.raises(ArgumentError, match="memory of another process"):
        place_of("memory://nobody.zarr")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder", "link on the way"])
def test_nothing_but_files_is_read_and_no_link_is_followed(tmp_path: Path, kind: str) -> None:
    name, place = "a/file", Local(tmp_path)
    (tmp_path / "a").mkdir()
    if kind == "pipe":
        os.mkfifo(tmp_path / "a" / "file")
    elif kind == "folder":
        (tmp_path / "a" / "file").mkdir()
    elif kind == "link on the way":
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "file").write_bytes(b"x")
        (tmp_path / "a").rmdir()
        (tmp_path / "a").symlink_to(tmp_path / "b")
    else:
        (tmp_path / "a" / "file").symlink_to("/dev/zero" if kind == "link" else "nothing")
    expected = "symbolic link" if "link" in kind else "no regular file"
    for read in (
        lambda: place.read(name, 9),
        lambda: place.read_many([(name, 0, 9)]),
        lambda: place.open(name),
        lambda: place.size(name),
    ):
        with pytest.raises(UnsafeError, match=expected):
            read()
    if kind != "folder":
        with pytest.raises(UnsafeError):
            place.names(name)


@pytest.mark.parametrize("name", ["..", "../b", "a/../../b", "a/.."])
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    for folder in ("in/a", "b"):
        (tmp_path / folder).mkdir(parents=True)
    place = Local(tmp_path / "in")
    with pytest.raises(UnsafeError, match="leads out"):
        place.names(name)
    with pytest.raises(UnsafeError, match="leads out"):
        place.size(name)


def test_the_root_may_be_a_link_for_the_user_named_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("x")
    file = Local(tmp_path / "link").open()
    assert (file.read(0, 3), str(file)) == (b"abc", os.path.realpath(tmp_path / "x"))
    file.close()


# Writing


def test_a_file_is_made_once_and_replaced_where_it_is_still_the_one_that_was_seen(
    place: Place,
) -> None:
    assert isinstance(place, Storage)
    first = place.put("probs/c/1/0", b"one")
    assert first is not None
    assert place.put("probs/c/1/0", b"two") is None
    assert place.read("probs/c/1/0", 9) == b"one"
    assert place.version("probs/c/1/0") == first
    second = place.put("probs/c/1/0", np.frombuffer(b"three", np.uint8), first)
    assert second not in (None, first)
    assert place.put("probs/c/1/0", b"four", first) is None
    assert place.put("other", b"five", first) is None
    assert place.size("other") is None
    assert place.read("probs/c/1/0", 9) == b"three"
    assert place.put("zarr.json", b"[]", place.version("zarr.json")) is not None


def test_files_are_listed_with_what_they_are_however_deep(place: Place) -> None:
    assert isinstance(place, Storage)
    version = place.put("probs/c/1/0", b"one")
    listed = {one.name: (one.size, one.version) for one in place.listed("probs")}
    assert listed == {
        "probs/c/0/0": (256, place.version("probs/c/0/0")),
        "probs/c/1/0": (3, version),
        "probs/zarr.json": (3, place.version("probs/zarr.json")),
    }
    assert len(list(place.listed())) == 4
    assert list(place.listed("none")) == []
    place.delete(["probs/c/1/0", "probs/c/0/0", "none", "none/at/all"])
    assert [one.name for one in place.listed("probs")] == ["probs/zarr.json"]
    assert place.put("probs/c/1/0", b"again") is not None


def test_of_many_who_write_one_name_at_once_one_has_it(place: Place) -> None:
    assert isinstance(place, Storage)
    for name, seen in (("new", None), ("zarr.json", place.version("zarr.json"))):
        with ThreadPoolExecutor(8) as pool:
            texts = [f"writer {i}".encode() for i in range(8)]
            done = list(pool.map(lambda text: place.put(name, text, seen), texts))  # noqa: B023
        (winner,) = [text for text, version in zip(texts, done, strict=True) if version is not None]
        assert place.read(name, 99) == winner


@pytest.mark.parametrize("step", ["write_file", "link", "rename", "sync_directory"])
@pytest.mark.parametrize("gone", ["file", "folder"])
def test_what_who_finishes_removes_under_a_writer_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, gone: str
) -> None:
    """It takes what is being written for what a kill has left."""
    place = Local(tmp_path / "s.zarr")
    place.put("zarr.json", b"{}")
    name = "zarr.json" if step == "rename" else "a/b"
    seen = place.version(name)
    call, times = getattr(disk, step), []

    def after_it_was_removed(path: Path, *arguments: Any) -> Any:
        times.append(path)
        folder = path if step == "sync_directory" else path.parent
        if len(times) == 1 and folder != tmp_path:
            for temporary in folder.glob(".*.tmp"):
                temporary.unlink()
            if gone == "folder" and name == "a/b":
                shutil.rmtree(folder, ignore_errors=True)
        return call(path, *arguments)

    monkeypatch.setattr(disk, step, after_it_was_removed)
    version = place.put(name, b"new", seen)
    assert version is not None
    if step != "sync_directory" or gone == "file":
        assert place.version(name) == version
        assert place.read(name, 9) == b"new"


def test_a_link_inside_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "s.zarr" / "probs").symlink_to(tmp_path / "else")
    place = Local(tmp_path / "s.zarr")
    with pytest.raises(UnsafeError):
        place.put("probs/a", b"1")
    (tmp_path / "else" / "a").touch()
    with pytest.raises(UnsafeError):
        place.delete(["probs/a"])
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["a"]
