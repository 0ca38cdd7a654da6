"""What a user names to read: a store, or a bundle, whose manifest names one; behind a url through a cache, if asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fostore.errors import FormatError
from fostore.formats import is_store_name
from fostore.places.names import is_outside, is_url, local_path, place_of
from fostore.places.place import Place
from fostore.schema import jsontext

MANIFEST = "fostore-manifest.json"
"""What a bundle says of itself: the file that makes a folder one."""
MAX_MANIFEST = 64 << 20


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
        manifest = manifest_of(place)
        if manifest is not None:
            return place.below(manifest["store"]), manifest["digest"]
    return place, None


def manifest_of(place: Place) -> Mapping[str, Any] | None:
    """What a bundle says of itself, as far as a reader needs it; None where a place is none.

    Raises:
        FormatError: there is a manifest, and it names no store in the bundle.
    """
    text = manifest_text(place)
    if text is None:
        return None
    where = f"{place}/{MANIFEST}"
    value = jsontext.loads(text, where)
    for key in ("store", "digest"):
        if not isinstance(value, dict) or not isinstance(value.get(key), str):
            raise FormatError(f"{where}: {key!r} is missing or no text")
    if is_outside(value["store"]):
        raise FormatError(f"{where}: the store {value['store']!r} lies outside the bundle")
    manifest: Mapping[str, Any] = value
    return manifest


def manifest_text(place: Place) -> bytes | None:
    """The manifest of a bundle as it lies there; None where a place is none."""
    if is_store_name(place) and not place.is_local:
        return None  # without a request
    try:
        return place.read(MANIFEST, MAX_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
