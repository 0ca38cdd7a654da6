"""Whether a bundle is whole, by nothing but what it holds: in a folder, or wherever it was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from fostore.errors import DamageError, FormatError, PlaceError, UnsupportedError
from fostore.formats import Finding
from fostore.places.names import place_of
from fostore.places.place import Place
from fostore.progress import Progress
from fostore.publishing import signature
from fostore.publishing.bundle import DATA, MANIFEST, MAX_MANIFEST, SIGNATURE
from fostore.publishing.manifest import (
    MAX_LIST,
    PAYLOAD,
    TAGS,
    Entry,
    hashed,
    parse_list,
    tree_digest,
)
from fostore.reading.named import parse_manifest
from fostore.reading.store import open as open_store


def verify(
    where: Path | str | Place, level: str = "full", key: Path | None = None, shown: bool = False
) -> Iterator[Finding]:
    """What is wrong with a bundle, by nothing but what it holds: every file, every list, the store and its digest.

    Files are read piece by piece, some at a time. Where a place lists nothing (a plain web server), those that the
    bundle's lists name are checked, and what else lies there is not seen.

    Args:
        where: a folder, or a place.
        level: of the check of the store, see `Store.verify`.
        key: a public key; then the rows must be signed by who holds its private half.
        shown: show a bar on stderr.

    Raises:
        UnsafeError: a link, a pipe or a device lies in it.
        PlaceError: the service cannot be read.
    """
    place = place_of(where)
    lists: dict[str, str] = {}
    for name in (PAYLOAD, TAGS):
        try:
            lists |= parse_list(place.read(name, MAX_LIST), f"{place}/{name}")
        except (FormatError, FileNotFoundError) as error:
            yield Finding(name, None, f"cannot be read: {error}")
    try:
        sizes = place.sizes()
    except UnsupportedError:
        sizes = dict.fromkeys([*lists, PAYLOAD, MANIFEST], 0)
    for name in sizes:
        if name not in lists and name != TAGS:
            yield Finding(name, None, "is listed nowhere")
    actual: dict[str, tuple[int, str]] = {}
    with Progress(shown, sum(sizes.values()) or None, name="hashing", unit="bytes") as bar:
        # What is opened was seen to be a file of the bundle, wherever a place says what it holds.
        for name, result in hashed(place, [name for name in lists if name in sizes], bar):
            if isinstance(result, FileNotFoundError):
                del sizes[name]
            elif isinstance(result, OSError):
                yield Finding(
                    name, None, f"is listed and cannot be read ({result.strerror or result})"
                )
            else:
                actual[name] = result
    for name, sha256 in lists.items():
        if name not in sizes:
            yield Finding(name, None, "is listed and missing")
        elif name in actual and actual[name][1] != sha256:
            message = f"has the SHA-256 {actual[name][1]}, and {sha256} is listed"
            yield Finding(name, None, message)
    try:
        yield from _verify_manifest(place, lists, actual, level, key)
    except DamageError as error:
        for rows in error.rows or (None,):
            yield Finding("store", rows, str(error))
    except (FormatError, OSError) as error:
        if isinstance(error, PlaceError) and not place.is_local:
            raise
        yield Finding(MANIFEST, None, str(error))


def _verify_manifest(
    place: Place,
    lists: Mapping[str, str],
    actual: Mapping[str, tuple[int, str]],
    level: str,
    key: Path | None,
) -> Iterator[Finding]:
    """What is wrong with the manifest, the signature and the store."""
    text = place.read(MANIFEST, MAX_MANIFEST)
    manifest = parse_manifest(text, f"{place}/{MANIFEST}")
    payload = {name: sha256 for name, sha256 in lists.items() if name.startswith(DATA)}
    tree = f"sha256:{tree_digest([Entry(n, 0, sha256) for n, sha256 in payload.items()], DATA)}"
    if manifest.get("tree") != tree:
        yield Finding(MANIFEST, None, "its tree digest is not that of the files that are listed")
    if {name: entry["sha256"] for name, entry in manifest["files"].items()} != payload:
        yield Finding(MANIFEST, None, f"its files are not those of {PAYLOAD}")
    for name, entry in manifest["files"].items():
        if name in actual and actual[name][0] != entry["bytes"]:
            message = (
                f"says that {name} has {entry['bytes']:,} bytes, and it has {actual[name][0]:,}"
            )
            yield Finding(MANIFEST, None, message)
    if key is not None:
        try:
            signed = place.read(SIGNATURE, signature.MAX_SIGNATURE)
        except FileNotFoundError:
            problem: str | None = "is missing: nobody has signed the rows"
        else:
            hashes = {n.removeprefix(DATA): actual[n][1] for n in actual if n.startswith(DATA)}
            stated = manifest["tree"].removeprefix("sha256:")
            problem = signature.problem_of(hashes, signed, key, stated)
        if problem:
            yield Finding(SIGNATURE, None, problem)
    store = open_store(place.below(manifest["store"]))
    if store.header.digest != manifest["digest"]:
        yield Finding(manifest["store"], None, f"has not the digest {manifest['digest']}")
    yield from store.verify(level=level)
