"""A bundle: `data/` with the store, the lists of its files, and the documents that describe them.

Written in an order in which nothing hashes itself: `data/`, `manifest-sha256.txt`, `fostore-manifest.json`, the
documents, `tagmanifest-sha256.txt`. It is a bag (RFC 8493), so that tools that know nothing of fostore check it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import DamageError, FormatError
from fostore.formats import Finding
from fostore.places.names import is_outside
from fostore.progress import Progress
from fostore.publishing.described import Described
from fostore.publishing.documents import DOCUMENTS
from fostore.publishing.facts import Facts
from fostore.publishing.manifest import (
    PAYLOAD,
    TAGS,
    Entry,
    compare,
    files_below,
    hash_file,
    listed,
    read_list,
    tree_digest,
)
from fostore.reading.named import MANIFEST as MANIFEST
from fostore.reading.named import MAX_MANIFEST as MAX_MANIFEST
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import digest, jsontext
from fostore.schema.header import VERSION as SPEC

DATA = "data/"
_BAG = b"BagIt-Version: 1.0\nTag-Entry-Character-Encoding: UTF-8\n"
_COPY_BYTES = 4 << 20


# ------------------------------------------------------------------ write


def write_payload(store: Store, folder: Path, parquet: bool, shown: bool) -> list[Entry]:
    """Put the store's files, and its rows as Parquet where asked for, below `folder/data/`; all durable.

    What lies there from an interrupted call is kept where it has the source's bytes.
    """
    source = store.path
    target = folder / DATA / source.name
    plain = [("", source)] if source.is_file() else [(n, p) for n, p in files_below(source)]
    files = []
    total = sum(path.stat().st_size for _, path in plain)
    with Progress(shown, total, name="copying", unit="bytes") as bar:
        for name, path in plain:
            to = target / name if name else target
            disk.make_folders(to.parent)
            size, sha256 = _copied(path, to, bar)
            files.append(Entry(to.relative_to(folder).as_posix(), size, sha256))
    if parquet:
        from fostore.conversion import convert  # loads pyarrow, which few bundles need

        to = folder / DATA / f"{source.stem}.parquet"
        convert(source, to, exists="overwrite", progress=shown)
        size, sha256 = hash_file(to)
        files.append(Entry(to.relative_to(folder).as_posix(), size, sha256))
    kept = {file.name for file in files}
    for name, path in files_below(folder / DATA):
        if f"{DATA}{name}" not in kept:
            disk.remove(path)  # of a call before this one, which published more
    return sorted(files, key=lambda file: file.name.split("/"))


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


def write_documents(folder: Path, described: Described) -> list[Entry]:
    """Put everything beside `data/`, in the order in which nothing hashes itself; the files."""
    pieces: dict[str, bytes] = {
        "bagit.txt": _BAG,
        PAYLOAD: listed(described.files),
        MANIFEST: manifest(described),
    }
    pieces |= {name: text(described) for name, text in DOCUMENTS.items()}
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
        "bundle": "1.0",
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
    """
    path = folder / MANIFEST
    text = disk.read_named(path, MAX_MANIFEST, "the manifest of a bundle")
    value = jsontext.loads(text, str(path))
    expected = {"version": str, "store": str, "digest": str, "num_samples": int, "facts": dict}
    for key, kind in expected.items():
        if not isinstance(value, dict) or not isinstance(value.get(key), kind):
            raise FormatError(f"{path}: {key!r} is missing or no {kind.__name__}")
    if is_outside(value["store"]):
        raise FormatError(f"{path}: the store {value['store']!r} lies outside the bundle")
    manifest_: Mapping[str, Any] = value
    return manifest_


def is_same(one: Path, other: Path) -> bool:
    """Whether two bundles list the same files with the same hashes."""
    return all((folder / TAGS).is_file() for folder in (one, other)) and read_list(
        one, TAGS
    ) == read_list(other, TAGS)


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle."""
    return path.is_dir() and (path / MANIFEST).is_file()


def verify(folder: Path, level: str = "full") -> Iterator[Finding]:
    """What is wrong with a bundle, by nothing but what it holds: every file, every list, the store and its digest.

    Args:
        level: of the check of the store, see `Store.verify`.
    """
    lists: dict[str, str] = {}
    for name in (PAYLOAD, TAGS):
        try:
            hashes = read_list(folder, name)
        except (FormatError, OSError) as error:
            yield Finding(name, None, f"cannot be read: {error}")
            continue
        lists |= hashes
        for file, what in compare(folder, hashes):
            yield Finding(file, None, what)
    for name, _ in files_below(folder):
        if name not in lists and name != TAGS:
            yield Finding(name, None, "is listed nowhere")
    try:
        manifest = read_manifest(folder)
        files = [Entry(n, 0, sha) for n, sha in lists.items() if n.startswith(DATA)]
        if manifest.get("tree") != f"sha256:{tree_digest(files, DATA)}":
            yield Finding(
                MANIFEST, None, "its tree digest is not that of the files that are listed"
            )
        stated = {name: entry.get("sha256") for name, entry in manifest.get("files", {}).items()}
        if stated != {file.name: file.sha256 for file in files}:
            yield Finding(MANIFEST, None, f"its files are not those of {PAYLOAD}")
        store = open_store(folder / manifest["store"])
        if store.header.digest != manifest["digest"]:
            yield Finding(manifest["store"], None, f"has not the digest {manifest['digest']}")
        yield from store.verify(level=level)
    except DamageError as error:
        for rows in error.rows or (None,):
            yield Finding("store", rows, str(error))
    except (FormatError, OSError) as error:
        yield Finding(MANIFEST, None, str(error))


def described_of(folder: Path) -> Described:
    """What the documents of a bundle were made from."""
    manifest = read_manifest(folder)
    files = [
        Entry(name, int(entry["bytes"]), str(entry["sha256"]))
        for name, entry in manifest["files"].items()
    ]
    return Described(
        store=open_store(folder / manifest["store"]),
        facts=Facts.of(manifest["facts"], str(folder / MANIFEST)),
        version=manifest["version"],
        store_path=manifest["store"],
        parquet=manifest.get("parquet"),
        files=files,
        tree=str(manifest["tree"]).removeprefix("sha256:"),
    )
