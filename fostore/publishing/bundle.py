"""A bundle: `data/` with the store, the lists of its files, and the documents that describe them.

Written in an order in which nothing hashes itself: `data/`, `manifest-sha256.txt`, `fostore-manifest.json`, the
documents, `tagmanifest-sha256.txt`. It is a bag (RFC 8493), so that tools that know nothing of fostore check it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import DamageError, FormatError, StoreNotFoundError
from fostore.places.names import absent
from fostore.progress import Progress
from fostore.publishing.described import Described
from fostore.publishing.documents import DOCUMENTS
from fostore.publishing.facts import Facts
from fostore.publishing.manifest import (
    PAYLOAD,
    TAGS,
    Entry,
    files_below,
    hash_file,
    listed,
    read_list,
    refuse_unlistable,
)
from fostore.reading.named import LAYOUT, parse_manifest
from fostore.reading.named import MANIFEST as MANIFEST
from fostore.reading.named import MAX_MANIFEST as MAX_MANIFEST
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import digest, jsontext
from fostore.schema.header import VERSION as SPEC

DATA = "data/"
SIGNATURE = "data.sig"
_BAG = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
_COPY_BYTES = 4 << 20


# ------------------------------------------------------------------ write


def write_payload(
    store: Store, folder: Path, parquet: bool, shown: bool
) -> tuple[Store, list[Entry]]:
    """Put the store's files, and its rows as Parquet where asked for, below `folder/data/`; all durable.

    What lies there from an interrupted call is kept where it has the source's bytes. The copy is checked as a whole:
    a source that is damaged, or was changed meanwhile, is not published.

    Raises:
        DamageError: the copy is no store, or not the one that was opened; it is removed.
        ArgumentError: a file has a name that no list can hold.
    """
    source = store.path
    target = folder / DATA / source.name
    plain = [("", source)] if source.is_file() else list(files_below(source))
    copies = [(path, target / name if name else target) for name, path in plain]
    refuse_unlistable(to.relative_to(folder).as_posix() for _, to in copies)
    sizes = [path.stat().st_size for path, _ in copies]
    needed = sum(
        size
        for size, (_, to) in zip(sizes, copies, strict=True)
        if not to.exists() or to.stat().st_size != size
    )
    disk.require_free(folder, needed)
    files = []
    disk.make_folders(*dict.fromkeys(to.parent for _, to in copies))
    with Progress(shown, sum(sizes), name="copying", unit="bytes") as bar:
        for path, to in copies:
            files.append(_entry(folder, to, _copied(path, to, bar)))
    _drop_others(folder, {file.name for file in files})
    copy = _checked(store, target)
    if parquet:
        from fostore.conversion import convert  # loads pyarrow, which few bundles need

        to = folder / parquet_name(copy)
        convert(target, to, exists="overwrite", progress=shown)
        files.append(_entry(folder, to, hash_file(to)))
    for parent in dict.fromkeys(to.parent for _, to in copies):
        disk.sync_directory(parent)
    return copy, sorted(files, key=lambda file: file.name.split("/"))


def parquet_name(store: Store) -> str:
    """Where in a bundle a store's rows lie as Parquet."""
    return f"{DATA}{store.path.stem}.parquet"


def _entry(folder: Path, path: Path, counted: tuple[int, str]) -> Entry:
    return Entry(path.relative_to(folder).as_posix(), *counted)


def _drop_others(folder: Path, kept: set[str]) -> None:
    """Remove what a call before this one has left, which published something else, and empty folders."""
    for name, path in list(files_below(folder / DATA)):
        if f"{DATA}{name}" not in kept:
            disk.remove(path)
            parent = path.parent
            while parent != folder and not any(parent.iterdir()):
                disk.remove(parent)
                parent = parent.parent


def _checked(store: Store, target: Path) -> Store:
    """The copy of a store, opened; damage, and another digest than the store's, are refused."""
    try:
        copy = open_store(target)
        damage = [f for f in copy.verify() if f.severity == "damage"]
        problem = f"{damage[0].where}: {damage[0].message}" if damage else ""
        if copy.header.digest != store.header.digest:
            problem = f"it has the digest {copy.header.digest} now, and {store.header.digest} when it was opened"
    except (DamageError, FormatError) as error:
        problem = str(error)
    if problem:
        disk.remove(target)
        raise DamageError(
            f"{store.path}: {problem}; nothing was published: if it was changed meanwhile call again, else "
            "restore it from a copy, or make it again"
        )
    return copy


def _copied(source: Path, target: Path, bar: Progress) -> tuple[int, str]:
    """Copy one file and hash it on the way; a target that is whole already is kept."""
    fd = disk.open_file(source)
    try:
        size = os.fstat(fd).st_size
        whole = None
        if target.exists() and target.stat().st_size == size:
            whole = hash_file(target)[1]
        total, at = hashlib.sha256(), 0
        out = None if whole else disk.open_file(target, write=True, create=True)
        try:
            if out is not None:
                disk.truncate(out, 0)
            while piece := disk.read_at(fd, at, _COPY_BYTES):
                total.update(piece)
                if out is not None:
                    disk.write_at(out, piece, at)
                at += len(piece)
                bar.add(len(piece))
            if out is not None:
                disk.sync_data(out)
        finally:
            if out is not None:
                os.close(out)
    finally:
        os.close(fd)
    if whole is not None and whole != total.hexdigest():
        disk.remove(target)  # of another store
        return _copied(source, target, Progress(False, None))
    return at, total.hexdigest()


def write_documents(folder: Path, described: Described, signed: bytes | None = None) -> list[Entry]:
    """Put everything beside `data/`, in the order in which nothing hashes itself; the files."""
    pieces: dict[str, bytes] = {
        "bagit.txt": _BAG,
        PAYLOAD: listed(described.files),
        MANIFEST: manifest(described),
    }
    pieces |= {name: text(described) for name, text in DOCUMENTS.items()}
    if signed is not None:
        pieces[SIGNATURE] = signed
    tags = [_file(name, text) for name, text in pieces.items()]
    pieces[TAGS] = listed(tags)
    for entry in sorted(os.listdir(folder)):
        if entry not in pieces and entry != DATA.rstrip("/"):
            disk.remove(folder / entry)
    for name, text in pieces.items():
        disk.write_whole(folder / name, text)
    return [*tags, _file(TAGS, pieces[TAGS])]


def _file(name: str, text: bytes) -> Entry:
    return Entry(name, len(text), hashlib.sha256(text).hexdigest())


def manifest(described: Described) -> bytes:
    """What a bundle says of itself: versions, digests, files, facts."""
    store = described.store
    hashes = store.reader.block_hashes()
    value = {
        "fostore": SPEC,
        "bundle": LAYOUT,
        "name": described.name,
        "version": described.version,
        "store": described.store_path,
        "parquet": described.parquet,
        "digest": store.digest(),
        "num_samples": len(store),
        "columns": {
            column.name: digest.PREFIX + _column_digest(hashes[:, i])
            for i, column in enumerate(digest.hashed_columns(store.header))
        },
        "tree": f"sha256:{described.tree}",
        "files": {
            file.name: {"bytes": file.size, "sha256": file.sha256} for file in described.files
        },
        "facts": described.facts.to_json(),
    }
    return jsontext.dumps(value, indent=2) + b"\n"


def _column_digest(hashes: Any) -> str:
    """What the digest of a store takes of a column (spec/integrity.md): BLAKE3 over the hashes of its blocks."""
    total = digest.hasher()
    total.update(np.ascontiguousarray(hashes).tobytes())
    return str(total.digest().hex())


# ------------------------------------------------------------------ read


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """What a bundle says of itself.

    Raises:
        StoreNotFoundError, FormatError: there is no manifest, or it is none.
        DamageError: it is not the one that the bundle lists, or that list is damaged.
        UnsupportedError: a bundle of a newer major version.
    """
    path = folder / MANIFEST
    if not is_bundle(folder):
        cure = (
            f"unpack it first: unzip {folder.name} -d {folder.stem}"
            if folder.suffix.lower() == ".zip" and folder.is_file()
            else "name the folder that `fostore publish` made"
        )
        if not folder.exists():
            raise StoreNotFoundError(absent(folder))
        raise FormatError(f"{str(folder)!r} is no bundle, which has a {MANIFEST}: {cure}")
    text = disk.read_named(path, MAX_MANIFEST, "the manifest of a bundle")
    manifest = parse_manifest(text, str(path))
    try:
        is_listed = read_list(folder, TAGS).get(MANIFEST) == hashlib.sha256(text).hexdigest()
        problem = "" if is_listed else f"{path} is not the file that {TAGS} lists"
    except (FormatError, FileNotFoundError) as error:
        problem = str(error)
    if problem:
        raise DamageError(
            f"{problem}; so the version and facts that stand in the manifest are not to be repeated: put back "
            "the file that was published, or publish to another folder with all facts"
        )
    return manifest


def holds(folder: Path, files: Iterable[Entry]) -> bool:
    """Whether the files of a bundle lie in a folder, byte by byte: lists may be right where what they list is not."""
    for file in files:
        path = folder / file.name
        try:
            if path.lstat().st_size != file.size or hash_file(path)[1] != file.sha256:
                return False
        except OSError:
            return False
    return True


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return path.is_dir() and (path / MANIFEST).is_file()


def described_of(folder: Path) -> Described:
    """What the documents of a bundle were made from."""
    manifest = read_manifest(folder)
    files = [
        Entry(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
    ]
    return Described(
        store=open_store(folder / manifest["store"]),
        facts=Facts.of(manifest["facts"], str(folder / MANIFEST)),
        version=manifest["version"],
        store_path=manifest["store"],
        parquet=manifest.get("parquet"),
        files=files,
        tree=manifest["tree"].removeprefix("sha256:"),
    )
