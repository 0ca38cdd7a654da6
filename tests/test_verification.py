"""A published bundle is checked wherever it lies: every file of it, and nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.errors import PlaceError, UnsafeError
from fostore.places.names import place_of
from fostore.publishing import verification
from fostore.publishing.manifest import TAGS
from hub_server import Hub
from test_publishing import FACTS, make
from test_publishing_faults import keys
from test_publishing_targets import bucket, hub, moto
from web_server import serving

pytest.importorskip("fostore.places.remote")
__all__ = ["bucket", "hub", "keys", "moto"]  # fixtures of other files
# Of huggingface_hub itself, which hands bytes to its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PLACES = ["folder", "s3", "hub", "http"]
EXTRA = "data/rows.zarr/probs/c/7/0"


class Folder(MutableMapping[str, bytes]):
    """Files below a folder as a mapping, as a repository of the hub's server is one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __iter__(self) -> Iterator[str]:
        return (p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def __setitem__(self, name: str, data: bytes) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def __delitem__(self, name: str) -> None:
        (self.root / name).unlink()


class Objects(MutableMapping[str, bytes]):
    """Objects below a prefix of a bucket."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    def __iter__(self) -> Iterator[str]:
        listed = self.client.list_objects_v2(Bucket="data", Prefix=self.prefix)["Contents"]
        return (one["Key"].removeprefix(self.prefix) for one in listed)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> bytes:
        answer = self.client.get_object(Bucket="data", Key=self.prefix + name)
        return bytes(answer["Body"].read())

    def __setitem__(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="data", Key=self.prefix + name, Body=data)

    def __delitem__(self, name: str) -> None:
        self.client.delete_object(Bucket="data", Key=self.prefix + name)


@pytest.fixture(params=PLACES)
def lying(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, MutableMapping[str, bytes]]]:
    """Where a bundle lies, and its files, which may be changed."""
    store = make(tmp_path / "rows.zarr", 40)
    kind = request.param
    where: Any = {
        "s3": "s3://data/some/digits", "hub": "hf://datasets/me/digits",
    }.get(kind, tmp_path / "digits")  # fmt: skip
    server: Any = {"s3": "bucket", "hub": "hub"}.get(kind)
    server = request.getfixturevalue(server) if server else None
    fostore.publish(store, where, progress=False, **FACTS)
    if kind == "http":
        with serving(tmp_path) as web:
            yield f"{web.url}/digits", Folder(tmp_path / "digits")
    elif kind == "folder":
        yield str(where), Folder(where)
    elif kind == "s3":
        yield where, Objects(server, "some/digits/")
    else:
        yield where, server.repositories["me/digits"]


def findings(where: str) -> list[str]:
    """Of a web server a warning says that it lists nothing."""
    damage = [one for one in verification.verify(where) if one.severity == "damage"]
    return [f"{one.where}: {one.message}" for one in damage]


def test_a_change_of_any_file_is_seen_wherever_the_bundle_lies(
    lying: tuple[str, MutableMapping[str, bytes]],
) -> None:
    where, files = lying
    assert findings(where) == []
    assert len(files) > 12
    for name in sorted(files):
        before = files[name]
        for changed in (bytes([before[0] ^ 1]) + before[1:], before + b"\0", b""):
            files[name] = changed
            named = [one for one in findings(where) if name in one or name == TAGS]
            assert named, name  # of the list of all others, they differ
        del files[name]
        assert any(one.startswith(f"{name}: ") for one in findings(where)), name
        files[name] = before
    assert findings(where) == []


def test_what_no_list_names_is_seen_where_the_place_lists_its_files(
    lying: tuple[str, MutableMapping[str, bytes]],
) -> None:
    where, files = lying
    for name in (EXTRA, "cat.jpg"):
        files[name] = b"x"
    seen = {one for one in findings(where) if "listed nowhere" in one}
    expected = {f"{name}: is listed nowhere" for name in (EXTRA, "cat.jpg")}
    assert seen == (set() if where.startswith("http") else expected)


def test_the_command_checks_a_bundle_behind_a_url(
    lying: tuple[str, MutableMapping[str, bytes]],
) -> None:
    where, files = lying
    for name in (None, "README.md", "data/rows.zarr/probs/c/0/0"):
        if name is not None:
            files[name] += b"x"
        result = CliRunner().invoke(app, ["verify", where, "--json"])
        assert result.exit_code == (name is not None), result.output
        value = json.loads(result.stdout)
        assert (value["rows"], value["sealed"]) == (40, True)
        assert name is None or name in {one["where"] for one in value["findings"]}


def test_sizes_that_the_manifest_states_are_held_against_the_files(tmp_path: Path) -> None:
    fostore.publish(make(tmp_path / "rows.zarr", 40), tmp_path / "b", progress=False, **FACTS)
    manifest = tmp_path / "b" / "fostore-manifest.json"
    value = json.loads(manifest.read_text())
    value["files"]["data/rows.zarr/zarr.json"]["bytes"] += 1
    manifest.write_text(json.dumps(value))
    assert any(
        "says that data/rows.zarr/zarr.json has" in one for one in findings(str(tmp_path / "b"))
    )


def test_a_signature_is_checked_behind_a_url(
    bucket: Any, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    key, public = keys
    store = make(tmp_path / "rows.zarr", 40)
    fostore.publish(store, "s3://data/b", progress=False, sign=key, **FACTS)
    assert CliRunner().invoke(app, ["verify", "s3://data/b", "--key", str(public)]).exit_code == 0
    files = Objects(bucket, "b/")
    rows = "data/rows.zarr/probs/c/0/0"
    files[rows] = bytes(len(files[rows]))
    problems = verification.verify("s3://data/b", key=public)
    assert "data.sig" in [one.where for one in problems]
    del files["data.sig"]
    problems = verification.verify("s3://data/b", key=public)
    assert any("nobody has signed" in one.message for one in problems)


def test_a_service_that_is_not_reached_is_no_damage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "hf://datasets/me/digits"
    fostore.publish(make(tmp_path / "rows.zarr", 40), where, progress=False, **FACTS)
    place = place_of(where)
    assert list(verification.verify(place)) == []
    for requests in range(1, 12, 3):
        hub.fail_at = len(hub.requests) + requests
        with pytest.raises(PlaceError):
            list(verification.verify(place))
        hub.fail_at = None


def test_files_are_hashed_piece_by_piece(
    lying: tuple[str, MutableMapping[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more of a file is in memory than a piece, whatever its size; a file that ends with one is seen to end."""
    where, _ = lying
    place, sizes = place_of(where), []
    real = type(place).read_many

    def noting(self: Any, ranges: Any) -> Any:
        sizes.extend(stop - start for _, start, stop in ranges)
        return real(self, ranges)

    monkeypatch.setattr(type(place), "read_many", noting)
    monkeypatch.setattr("fostore.publishing.manifest._READ_BYTES", 64)
    assert findings(where) == []
    assert sizes.count(64) > 100


@pytest.mark.parametrize("link", ["data/rows.zarr/probs/c/0/0", "cat.jpg"])
def test_a_link_in_a_folder_is_refused(link: str, tmp_path: Path) -> None:
    fostore.publish(make(tmp_path / "rows.zarr", 40), tmp_path / "b", progress=False, **FACTS)
    (tmp_path / "b" / link).unlink(missing_ok=True)
    (tmp_path / "b" / link).symlink_to("/etc/passwd")
    with pytest.raises(UnsafeError):
        findings(str(tmp_path / "b"))


def test_a_file_that_changes_while_it_is_read_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fostore.publish(make(tmp_path / "rows.zarr", 40), tmp_path / "b", progress=False, **FACTS)
    monkeypatch.setattr("fostore.publishing.manifest._READ_BYTES", 64)
    asked = []

    def change(name: str) -> None:
        asked.append(name)
        if asked.count("b/README.md") == 3:
            (tmp_path / "b" / "README.md").write_text("other words" * 100)

    with serving(tmp_path) as web:
        web.before = change
        assert any("was changed meanwhile" in one for one in findings(f"{web.url}/b"))
