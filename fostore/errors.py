"""Every error that fostore raises, in one tree; and which of them an error of the system is.

Each is also the builtin that a user would catch anyway, so that code which knows nothing of fostore handles it right::

    FostoreError
    ├── the caller gave something that does not fit: nothing was written
    │   ├── ArgumentError (ValueError)          a parameter, or two that contradict each other
    │   ├── RowError (ValueError)               rows: shape, dtype, not finite, not a distribution; names the rows
    │   ├── IdentityError (ValueError)          another model, dataset or output than the store was made from
    │   └── StoreExistsError (FileExistsError)  the path is taken
    ├── what lies on disk is not what we may read: nothing was followed, nothing allocated
    │   ├── StoreNotFoundError (FileNotFoundError)
    │   ├── FormatError (ValueError)            not a store, or a store that breaks the specification
    │   ├── UnsupportedError (FormatError)      a store of a newer version, or with a feature that this reader lacks
    │   ├── UnsafeError (FormatError)           links, plugins, sizes beyond the bytes that are there
    │   └── DamageError (OSError)               bytes that contradict their checksums; names the rows
    ├── not now: the last commit stands
    │   ├── LockedError (BlockingIOError)       another writer owns these units
    │   ├── SpaceError (OSError)                the disk is full, or would be before the run ends
    │   ├── PlaceError (OSError)                the file system will not: read-only, no right, no locks, a name too long
    │   └── UncommittedError (IndexError)       rows that are not committed were asked for
    └── GenerationError (RuntimeError)          the model or the dataset failed; names the samples of the batch

"""

from __future__ import annotations

import errno


class FostoreError(Exception):
    """The root of all errors of this library."""


class ArgumentError(FostoreError, ValueError):
    """A parameter has a value that cannot be used; nothing was written."""


class RowError(FostoreError, ValueError):
    """Rows do not fit the store's schema; none of the batch was written, the last commit stands."""


class IdentityError(FostoreError, ValueError):
    """The store was made from something else; `differences` lists what differs, nothing was written."""

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class StoreExistsError(FostoreError, FileExistsError):
    """The path is taken; nothing was written."""


class StoreNotFoundError(FostoreError, FileNotFoundError):
    """There is nothing at the path."""


class FormatError(FostoreError, ValueError):
    """What lies at the path is not a store that follows the specification."""


class UnsupportedError(FormatError):
    """The store needs a version, feature or encoding that this release does not have."""


class UnsafeError(FormatError):
    """The store asks for something that no store may ask for: a link, a plugin, a huge allocation."""


class DamageError(FostoreError, OSError):
    """Bytes contradict their checksums; `rows` lists the `(start, stop)` ranges that they touch."""

    def __init__(self, message: str, rows: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(errno.EIO, message)
        self.message = message
        self.rows = rows

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.rows)

    def __str__(self) -> str:
        return self.message


class LockedError(FostoreError, BlockingIOError):
    """Another writer owns the units that were asked for; nothing was changed."""


class SpaceError(FostoreError, OSError):
    """The disk has no room for what is to come; the last commit stands."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message,)

    def __str__(self) -> str:
        return self.message


class PlaceError(FostoreError, OSError):
    """The file system refuses, for good: it is read-only, not the user's, has no locks ...; `errno` says which.

    Nothing was written by the call; what was committed stands.
    """

    def __str__(self) -> str:
        return str(self.strerror)


class UncommittedError(FostoreError, IndexError, KeyError):
    """Rows or ids were asked for that are not committed, or that the store does not have."""

    __str__ = Exception.__str__  # a KeyError would show the message as a literal


class GenerationError(FostoreError, RuntimeError):
    """The model or the dataset failed on a batch; finished batches are committed."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHT = (
    "choose a folder of your own, or have its owner give you the right (chmod, chgrp, setfacl)"
)
_WHY = {
    errno.EROFS: (
        "lies on a file system that is read-only here",
        "write to another disk; reading a store needs neither a lock nor the right to write",
    ),
    errno.EACCES: ("is not yours to use", _NO_RIGHT),
    errno.EPERM: ("is not yours to use", _NO_RIGHT),
    errno.ENAMETOOLONG: (
        "has a name that is too long: most file systems take 255 bytes, and files beside a store add "
        "to its name",
        "choose a shorter one",
    ),
    errno.ELOOP: ("is a symbolic link that leads nowhere, or where none is followed", "remove it"),
    errno.ENOTDIR: ("would lie in a file", "choose a path whose parents are folders"),
    errno.EISDIR: ("is a folder", "choose the path of a file, or remove it"),
    errno.ESTALE: (
        "is no longer known to its file server: it was removed or replaced there",
        "open the store again; a writer goes on with exists='resume'",
    ),
}
"""What a file system refuses for good, and what to do."""
_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def refusal(error: OSError, place: str, needed: int | None = None) -> FostoreError | None:
    """What the file system said about `place`, in a user's words; None where it is not one of its refusals.

    `needed` is how many bytes it would not take, where that is known.
    """
    code = error.errno
    if code in _FULL:
        what = "the quota is used up" if code == errno.EDQUOT else "the disk is full"
        left = "" if needed is None else f"{needed:,} bytes were left to write"
        where = f"{left} to {place!r}" if left and place else left or f"no room for {place!r}"
        return SpaceError(
            f"{what}: {where}; free some space (bytes and files: df -h, df -i, quota) and call again, "
            "what was committed is safe"
        )
    if code in _LOCKLESS:
        return PlaceError(
            code,
            f"the file system of {place!r} lacks what a writer needs, locks among it "
            f"({error.strerror}): without them two writers could mix their rows. Write the store on a "
            "local disk, such as the node's own, and copy or convert it to here when it is sealed; "
            "reading needs no locks",
            place,
        )
    if code in _WHY:
        what, cure = _WHY[code]
        return PlaceError(code, f"{place!r} {what} ({error.strerror}): {cure}", place)
    return None
