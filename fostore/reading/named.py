"""What a user names to read: a store, or a bundle, whose manifest names one; behind a url through a cache, if asked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fostore.errors import FormatError, UnsupportedError
from fostore.formats import is_store_name
from fostore.places.names import is_outside, is_url, local_path, place_of
from fostore.places.place import Place
from fostore.schema import jsontext

MANIFEST = "fostore-manifest.json"
"""What a bundle says of itself: the file that makes a folder one."""
MAX_MANIFEST = 64 << 20
LAYOUT = "1.0"
"""The version of spec/bundle.md."""
_KEYS = {
    "bundle": str,
    "version": str,
    "store": str,
    "digest": str,
    "num_samples": int,
    "tree": str,
    "files": dict,
    "facts": dict,
}
_VERSION = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){2}", re.ASCII)


def place_named(
    value: str | os.PathLike[str] | Place, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[Place, str | None]:
    """The place of the store that a user names, and the digest that it must have (None: any).

    A store is known by its suffix, without a request. What has none of those may be a bundle.

    Args:
        cache_dir: where what comes from behind a url is kept; by default the folder that FOSTORE_CACHE names, if it
            names one. A store on this machine is mapped where it lies.

    Raises:
        FormatError: the manifest of a bundle is none.
        ArgumentError: a url that cannot be read.
    """
    place = place_of(value)
    folder = cache_dir or (
        os.environ.get("FOSTORE_CACHE") if isinstance(value, str) and is_url(value) else None
    )
    if folder and not place.is_local:
        from fostore.places.cache import Cached  # import cost: hashes and threads

        place = Cached(place, local_path(folder))
    if not is_store_name(place):
        manifest = _manifest_of(place)
        if manifest is not None:
            return place.below(manifest["store"]), manifest["digest"]
    return place, None


def _manifest_of(place: Place) -> Mapping[str, Any] | None:
    """What a bundle says of itself; None where a place is none. Errors are those of `parse_manifest`."""
    text = manifest_text(place)
    if text is None:
        return None
    return parse_manifest(text, f"{place}/{MANIFEST}")


def parse_manifest(text: bytes, where: str) -> Mapping[str, Any]:
    """The manifest in a stranger's text; `where` names it in messages.

    Raises:
        FormatError: it is none, or names what lies outside the bundle.
        UnsupportedError: a bundle of a newer major version.
    """
    value = jsontext.loads(text, where)
    for key, kind in _KEYS.items():
        if not isinstance(value, dict) or not isinstance(value.get(key), kind):
            raise FormatError(f"{where}: {key!r} is missing or no {kind.__name__}")
    major = LAYOUT.partition(".")[0]
    if value["bundle"].partition(".")[0] != major:
        raise UnsupportedError(
            f"{where} is a bundle of version {value['bundle']}; this release reads {major}.x"
        )
    if not _VERSION.fullmatch(value["version"]):
        raise FormatError(f"{where}: the version is {value['version']!r}, expected such as 1.0.0")
    for name in (value["store"], value.get("parquet"), *value["files"]):
        if name is not None and (not isinstance(name, str) or is_outside(name)):
            raise FormatError(f"{where}: {name!r} lies outside the bundle")
    for name, entry in value["files"].items():
        if not (isinstance(entry, dict) and type(entry.get("bytes")) is int
                and isinstance(entry.get("sha256"), str)):  # fmt: skip
            raise FormatError(f"{where}: what it says of {name!r} is no bytes and sha256")
    parsed: Mapping[str, Any] = value
    return parsed


def manifest_text(place: Place) -> bytes | None:
    """The manifest of a bundle as it lies there; None where a place is none."""
    if is_store_name(place) and not place.is_local:
        return None  # without a request
    try:
        return place.read(MANIFEST, MAX_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
