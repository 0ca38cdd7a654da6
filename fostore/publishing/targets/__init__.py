"""Where a bundle goes. A target is one file in this folder and one line in `TARGETS`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from fostore.errors import ArgumentError
from fostore.formats import is_store_name
from fostore.places.names import clean, load, refuse_secrets
from fostore.publishing.manifest import Entry


class Target(Protocol):
    """One destination. A bundle is made in `staging`, a folder of this machine, and sent from there.

    Whoever calls `read` or `send` holds the lock of `staging`, so that one publisher of this machine is at work; a
    target that others can reach from elsewhere refuses a second one itself.
    """

    name: str
    """What was asked for, for messages."""
    staging: Path
    """Where the bundle is made; what an interrupted call left there is used."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A file of the bundle that is there; None where nothing is, or the bundle has no such file.

        Raises:
            StoreExistsError: something that is no bundle is there.
            UnsafeError: the file is larger than `limit` bytes.
            PlaceError: the service cannot be read.
        """
        ...

    def send(self, files: list[Entry], version: str) -> bool:
        """Make what is in `staging` what lies at the target, and check it there; whether anything changed.

        Args:
            files: all of the bundle.
            version: for messages that the service keeps.

        Raises:
            PlaceError: the service refused; called again it goes on.
            LockedError: another publisher is at work there.
            DamageError: other bytes lie there than were sent.
        """
        ...


TARGETS = {
    "hf": "fostore.publishing.targets.hub",
    "s3": "fostore.publishing.targets.objects",
    "gs": "fostore.publishing.targets.objects",
    "az": "fostore.publishing.targets.objects",
    ".zip": "fostore.publishing.targets.archive",
    "": "fostore.publishing.targets.folder",
}
"""By the scheme of a url, the suffix of a file, or neither: modules with a `TARGET`."""


def target_of(
    dest: str | os.PathLike[str], store: Path, *, private: bool, revision: str | None
) -> Target:
    """The target that `dest` names.

    Raises:
        ArgumentError: a url of a scheme that nothing can be sent to, or the name of a store.
    """
    text = os.fspath(dest)
    scheme, is_url, _ = text.partition("://")
    if is_url:
        refuse_secrets(text)
    if is_store_name(Path(text)):
        raise ArgumentError(
            f"{text!r} ends as the name of a store does, and readers would look for one there; a bundle holds "
            f"a store: choose a name such as {os.path.splitext(text)[0]!r}, or one that ends in .zip"
        )
    key = scheme if is_url else Path(text).suffix.lower()
    if is_url and key not in TARGETS:
        known = sorted(key for key in TARGETS if key.isalnum())
        raise ArgumentError(
            f"{clean(text)!r} has the scheme {scheme!r}; a bundle goes to {known}, or a folder"
        )
    module = load(TARGETS.get(key, TARGETS[""]), text)
    if (private or revision) and key != "hf":
        raise ArgumentError("private and revision are the hub's: give hf://datasets/USER/NAME")
    made: Target = module.TARGET(
        text, store, **({"private": private, "revision": revision} if key == "hf" else {})
    )
    return made


def staging_beside(path: Path) -> Path:
    """Where a bundle is made that goes elsewhere: kept there by an interrupted call, for the next to go on."""
    return path.with_name(f".{path.name}.bundle")
