"""Where the files of a new store lie until it is whole: at its path, or beside the store that it replaces.

`exists` is decided here and nowhere else: "fail" refuses a path that is taken, "resume" goes on with
what is there, "overwrite" leaves it alone until the new store is sealed, and then takes its place.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fostore import disk
from fostore.errors import ArgumentError, StoreExistsError

_EXISTS = ("fail", "resume", "overwrite")


def check_exists(path: Path, exists: str) -> None:
    """Refuse a word that `exists` does not take, and with "fail" a path that is taken.

    Raises:
        ArgumentError, StoreExistsError: nothing was written.
    """
    check_word(exists)
    if exists == "fail" and path.exists():
        raise StoreExistsError(
            f"{str(path)!r} exists; exists='resume' goes on with it, exists='overwrite' replaces it"
        )


def check_word(exists: str) -> None:
    """Refuse a word that `exists` does not take."""
    if exists not in _EXISTS:
        raise ArgumentError(f"exists is {exists!r}, expected 'fail', 'resume' or 'overwrite'")


class Target:
    """The place of a writer's files; used by who holds the store's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """What the user named."""
        self.lies_at = path
        """Where the files lie now."""

    def clean(self) -> None:
        """Remove what a killed creation or overwrite left beside the path."""
        disk.mend_exchange(self.path)
        for what in ("tmp", "new"):
            disk.remove(_beside(self.path, what))
            disk.remove(_beside(_beside(self.path, what), "tmp"))

    def begin(self, exists: str) -> Path:
        """Where a new store is to be made.

        Raises:
            StoreExistsError: somebody has made one at the path since `check_exists`.
        """
        if self.path.exists():
            if exists != "overwrite":
                raise StoreExistsError(f"{str(self.path)!r} was made by another process just now")
            self.lies_at = _beside(self.path, "new")
        return self.lies_at

    @property
    def is_beside(self) -> bool:
        """Whether another store is still in the place of this one."""
        return self.lies_at != self.path

    def publish(self) -> None:
        """Put a whole new store, whose files are closed, in the place of the old one."""
        if not self.is_beside:
            return
        if self.path.exists():
            disk.exchange(self.lies_at, self.path)
            # Before the old store goes: were the exchange lost, a power cut would leave neither.
            disk.sync_directory(self.path.parent)
            disk.remove(self.lies_at)
        else:
            disk.rename(self.lies_at, self.path)
        disk.sync_directory(self.path.parent)
        self.lies_at = self.path

    def discard(self) -> None:
        """Remove an overwrite that was not whole, since nobody can go on with it."""
        if self.is_beside:
            with suppress(OSError):  # `clean` of the next writer removes it as well
                disk.remove(self.lies_at)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
