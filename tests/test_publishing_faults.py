"""What publishing does where something is in its way: another publisher, a disk, a stranger's bundle, a kill."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fostore
from fostore import cli, disk, publishing
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    LockedError,
    PlaceError,
    SpaceError,
    UnsupportedError,
)
from fostore.places.lock import Lock
from fostore.publishing import bundle, verification
from fostore.publishing.facts import Facts
from fostore.publishing.manifest import TAGS, read_list
from fostore.publishing.targets import objects
from hub_server import Hub
from test_publishing import FACTS, findings, make, published
from test_publishing_targets import WHERE, bucket, hub, moto, pytestmark  # noqa: F401 - fixtures

# ------------------------------------------------------------------ another publisher


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_one_publisher_at_a_time(suffix: str, tmp_path: Path) -> None:
    store, dest = make(tmp_path / "rows.zarr"), tmp_path / f"b{suffix}"
    staging = ".b.zip.bundle" if suffix else ".b.tmp"
    with Lock.acquire(tmp_path / staging), pytest.raises(LockedError):
        published(store, dest)
    assert not dest.exists()
    assert published(store, dest).changed


def test_a_publisher_elsewhere_is_refused_by_an_object_store(bucket: Any, tmp_path: Path) -> None:  # noqa: F811
    store = make(tmp_path / "rows.zarr")
    published(store, "s3://data/x")
    key = f"x/{objects.CLAIM}"
    bucket.put_object(Bucket="data", Key=key, Body=b"somebody\n")
    before = {o["Key"]: o["ETag"] for o in bucket.list_objects_v2(Bucket="data")["Contents"]}
    make(store, 400)
    with pytest.raises(LockedError, match="another publisher"):
        fostore.publish(store, "s3://data/x", progress=False)
    after = {o["Key"]: o["ETag"] for o in bucket.list_objects_v2(Bucket="data")["Contents"]}
    assert after == before
    bucket.delete_object(Bucket="data", Key=key)
    assert fostore.publish(store, "s3://data/x", progress=False).version == "1.1.0"


def test_a_publisher_elsewhere_is_refused_by_the_hub(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make(tmp_path / "rows.zarr")
    published(store, WHERE)
    make(store, 400)
    write = bundle.write_documents

    def slow(*args: Any) -> Any:
        hub.commit()  # of somebody else, between the look and the commit
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "write_documents", slow)
        with pytest.raises(LockedError, match="another publisher was faster"):
            fostore.publish(store, WHERE, progress=False)
    assert fostore.publish(store, WHERE, progress=False).version == "1.1.0"


# ------------------------------------------------------------------ a kill in the middle of an upload


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9, 12, 13])
def test_after_a_kill_no_list_is_believed_of_what_was_overwritten(
    at: int,
    bucket: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upload of a second store dies, and the first one is published again: nothing of the second is left."""
    from fostore.places.remote import Remote

    first, second = tmp_path / "one" / "rows.zarr", tmp_path / "rows.zarr"
    first.parent.mkdir()
    make(first), make(second, 300, seed=1)
    published(first, "s3://data/x")
    calls = 0

    def dying(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > at:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("put", "upload", "delete"):
            patch.setattr(Remote, name, dying(getattr(Remote, name)))
        with pytest.raises(KeyboardInterrupt):
            fostore.publish(second, "s3://data/x", progress=False, license="MIT")
    shutil.rmtree(second)
    shutil.copytree(first, second)  # whose claim it is, is told by the place of the store
    fostore.publish(second, "s3://data/x", progress=False)
    for item in bucket.list_objects_v2(Bucket="data")["Contents"]:
        path = tmp_path / "got" / item["Key"].removeprefix("x/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get_object(Bucket="data", Key=item["Key"])["Body"].read())
    assert findings(tmp_path / "got") == []
    assert fostore.open(tmp_path / "got/data/rows.zarr").digest() == fostore.open(first).digest()


# ------------------------------------------------------------------ the store and the disk


def test_a_store_that_changes_meanwhile_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "rows.zarr")
    published(store, tmp_path / "b")
    before = read_list(tmp_path / "b", TAGS)
    copied, calls = bundle._copied, 0

    def changing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            make(store, 300, seed=5)
        return copied(*args)

    make(store, 400)
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "_copied", changing)
        with pytest.raises(FostoreError):
            fostore.publish(store, tmp_path / "b", progress=False)
    assert read_list(tmp_path / "b", TAGS) == before
    assert findings(tmp_path / "b") == []
    fostore.publish(store, tmp_path / "b", progress=False)
    copy = fostore.open(tmp_path / "b" / "data" / "rows.zarr")
    assert copy.digest() == fostore.open(store).digest()


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_full_disk_leaves_what_was_published(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dest = make(tmp_path / "rows.zarr"), tmp_path / f"b{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda _: 100)
        with pytest.raises(SpaceError):
            published(store, dest)
    assert not dest.exists()
    for step in range(0, 12, 3):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_at", _full_after(step))
            with pytest.raises(SpaceError):
                published(store, dest)
    assert not dest.exists()
    assert published(store, dest).changed


def _full_after(writes: int) -> Any:
    """`disk.write_at` of a disk that has room for so many writes more."""
    write, left = disk.write_at, [writes]

    def call(*args: Any) -> None:
        left[0] -= 1
        with disk.refusing("a small disk"):
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*args)

    return call


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom no mode keeps out, and the kernel's own folders do
        shared = Path("/sys")
    with pytest.raises(PlaceError, match=r"choose|read-only"):
        published(store, shared / "b")
    assert not list(shared.glob("*.bundle")) + list(shared.glob(".b.*"))


def test_a_bundle_does_not_go_into_its_store(tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    with pytest.raises(ArgumentError, match="lies in the store"):
        published(store, store / "published")
    assert fostore.open(store).verify() == []


@pytest.mark.parametrize("name", ["50%.zarr", "a\\b.zarr", "two\nlines.zarr"])
def test_a_name_that_no_list_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="rename"):
        published(make(tmp_path / name), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_bundle_that_was_moved_is_the_same(tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    published(store, tmp_path / "b")
    cited = fostore.cite(tmp_path / "b")
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "b", tmp_path / "far" / "away")
    assert findings(tmp_path / "far" / "away") == []
    assert fostore.cite(tmp_path / "far" / "away") == cited
    assert fostore.publish(store, tmp_path / "far" / "away", progress=False).changed is False


# ------------------------------------------------------------------ strangers

HOSTILE = {
    "store": "../rows.zarr",
    "parquet": "/etc/passwd",
    "files": {"../../x": {"bytes": 1, "sha256": "0" * 64}},
    "version": "1.0",
    "num_samples": "many",
    "facts": [],
    "tree": None,
}


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_strangers_manifest_is_refused(key: str, suffix: str, tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr", 20)
    published(store, tmp_path / "b")
    path = tmp_path / "b" / bundle.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), key: HOSTILE[key]}))
    dest = tmp_path / "b"
    if suffix:
        dest = tmp_path / "b.zip"
        with zipfile.ZipFile(dest, "w") as archive:
            archive.write(path, bundle.MANIFEST)
    with pytest.raises(FormatError):
        fostore.publish(store, dest, progress=False)
    if not suffix:
        assert findings(dest)
        with pytest.raises(FormatError):
            fostore.cite(dest)


def test_a_bundle_of_a_later_layout_is_refused(tmp_path: Path) -> None:
    published(make(tmp_path / "rows.zarr", 20), tmp_path / "b")
    path = tmp_path / "b" / bundle.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "bundle": "2.0"}))
    with pytest.raises(UnsupportedError, match=r"2\.0"):
        bundle.read_manifest(tmp_path / "b")


def test_a_manifest_that_is_huge_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "rows.zarr", 20)
    published(store, tmp_path / "b")
    published(store, tmp_path / "b.zip")
    monkeypatch.setattr(bundle, "MAX_MANIFEST", 100)
    for dest in (tmp_path / "b", tmp_path / "b.zip"):
        with pytest.raises(FostoreError, match="100"):
            fostore.publish(store, dest, progress=False)


# ------------------------------------------------------------------ the same every time, and signed


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_bundle_with_parquet_depends_on_the_store_alone(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    store = make(tmp_path / f"rows{suffix}")
    published(store, tmp_path / "a", parquet=True)
    monkeypatch.setattr("fostore.schema.header.now", lambda: "2030-01-01T00:00:00Z")
    published(store, tmp_path / "b", parquet=True)
    assert read_list(tmp_path / "a", TAGS) == read_list(tmp_path / "b", TAGS)
    assert fostore.publish(store, tmp_path / "a", parquet=True, progress=False).changed is False


def test_the_hubs_builder_finds_one_format(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    published(make(tmp_path / "rows.zarr", 20), tmp_path / "b", parquet=True)
    builder = datasets.load_dataset_builder(str(tmp_path / "b"), cache_dir=str(tmp_path / "cache"))
    assert type(builder).__name__.startswith("Parquet")
    [file] = builder.config.data_files["train"]
    assert file.endswith("data/rows.parquet")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path / "keys"
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir()))
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    key, public = folder / f"{number}.key", folder / f"{number}.pub"
    key.write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return key, public


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_signature_is_of_the_key_and_of_these_rows(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key, public = keys
    store = make(tmp_path / "rows.zarr")
    published(store, tmp_path / "b", sign=key)
    assert list(verification.verify(tmp_path / "b", "full", public)) == []
    assert findings(tmp_path / "b") == []
    # No two signatures are the same: what is signed already is not signed again.
    assert fostore.publish(store, tmp_path / "b", sign=key, progress=False).changed is False
    other = tmp_path / "other.pub"
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    [problem] = verification.verify(tmp_path / "b", "full", other)
    assert problem.where == bundle.SIGNATURE
    # A whole bundle of other rows, with the signature of these.
    make(store, 300, seed=3)
    published(store, tmp_path / "c")
    shutil.copy(tmp_path / "b" / bundle.SIGNATURE, tmp_path / "c")
    messages = [f.message for f in verification.verify(tmp_path / "c", "full", public)]
    assert any("is not a signature" in message for message in messages), messages
    (tmp_path / "c" / bundle.SIGNATURE).unlink()
    [problem] = verification.verify(tmp_path / "c", "full", public)
    assert "nobody has signed" in problem.message
    with pytest.raises(ArgumentError, match="no key to sign with"):
        published(store, tmp_path / "d", sign=public)
    rsa_key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        rsa_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(ArgumentError, match="private half of an elliptic curve key"):
        published(store, tmp_path / "d", sign=tmp_path / "rsa.pem")
    (tmp_path / "rsa.pub").write_bytes(
        rsa_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(ArgumentError, match="no public key of an elliptic curve"):
        list(verification.verify(tmp_path / "b", "full", tmp_path / "rsa.pub"))


def test_the_command_line_signs_and_checks(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "rows.zarr")
    key, public = keys
    facts = ["--license", "MIT", "--creator", FACTS["creators"][0], "--description", "x"]
    for arguments, code in (
        (["publish", "rows.zarr", "b", "-q", "--sign", str(key), *facts], 0),
        (["verify", "b", "--key", str(public)], 0),
        (["verify", "rows.zarr", "--key", str(public)], 2),
    ):
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == code, result.stderr


def test_damage_that_came_before_is_named(tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    rows = fostore.open(store).reader.segments(0)[0]
    with open(rows.path, "r+b") as file:
        file.seek(rows.offset)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(DamageError, match="restore it"):
        published(store, tmp_path / "b")
    assert not (tmp_path / ".b.tmp" / "data" / "rows.zarr").exists()


def test_a_damaged_bundle_is_whole_after_it_is_published_again(tmp_path: Path) -> None:
    store, folder = make(tmp_path / "rows.zarr"), tmp_path / "b"
    published(store, folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name not in (bundle.MANIFEST, TAGS):  # by which all else is known
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            again = fostore.publish(store, folder, progress=False)
            assert (again.version, again.changed) == ("1.0.0", True), path
            assert findings(folder) == [], path


def test_what_a_damaged_manifest_says_is_not_repeated(tmp_path: Path) -> None:
    store, folder = make(tmp_path / "rows.zarr"), tmp_path / "b"
    published(store, folder)
    for name in (bundle.MANIFEST, TAGS):
        text = (folder / name).read_bytes()
        damaged = text.replace(b"Lovelace", b"Lovelade") if name == bundle.MANIFEST else text[:-1]
        (folder / name).write_bytes(damaged)
        for call in (
            lambda: fostore.publish(store, folder, progress=False),
            lambda: fostore.cite(folder),
            lambda: publishing.check(store, Facts(), folder),
        ):
            with pytest.raises(DamageError, match="put back the file"):
                call()
        assert (folder / name).read_bytes() == damaged  # nothing was touched
        (folder / name).write_bytes(text)


@pytest.mark.parametrize(
    "dest", ["b.zarr", "b.h5", "hf://datasets/ada/b.zarr", "s3://bucket/b.zarr"]
)
def test_a_bundle_is_not_called_as_a_store_is(dest: str, tmp_path: Path) -> None:
    """It would not open by its root: what is called so is opened as a store."""
    store = make(tmp_path / "rows.zarr")
    where = dest if "://" in dest else tmp_path / dest
    with pytest.raises(ArgumentError, match="choose a name such as"):
        published(store, where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.zarr"]


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_bundle_lies_where_a_link_leads(suffix: str, tmp_path: Path) -> None:
    """On the disk that was meant for it, and the link stays; so does what else the link's folder holds."""
    for folder in ("home", "scratch"):
        (tmp_path / folder).mkdir()
    link = tmp_path / "home" / f"b{suffix}"
    link.symlink_to(f"../scratch/c{suffix}")
    for rows, version in ((100, "1.0.0"), (200, "1.1.0")):
        made = published(make(tmp_path / "rows.zarr", rows), link)
        assert (made.version, made.changed) == (version, True)
        assert [path.name for path in (tmp_path / "home").iterdir()] == [link.name]
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == [f"c{suffix}"]
        assert link.is_symlink()
    (tmp_path / "home" / "lost").symlink_to("../unmounted/b")
    with pytest.raises(ArgumentError, match="mount its disk"):
        published(make(tmp_path / "rows.zarr"), tmp_path / "home" / "lost")
