"""Part: the result of a conversion under a temporary name, until it is whole and takes its place."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.conversion.plan import Plan
from fostore.errors import DamageError, FormatError
from fostore.places.names import inside, is_url
from fostore.schema.digest import hasher
from fostore.schema.header import CHECKSUM
from fostore.schema.jsontext import dumps, loads

_MAX_RECORD = 256 << 20
# What every call has anew; all else decides the bytes.
_TIMES = ("id", "software", "created", "updated", CHECKSUM)


class Part:
    """`.NAME.part.SUFFIX` beside the destination, and a record of what it is to become.

    An interrupted conversion goes on with a part whose record says the very same. The caller holds
    the destination's lock.
    """

    def __init__(self, target: Path, plan: Plan) -> None:
        self.target = target
        # The suffix stays, since it says the format to whoever opens it.
        self.path = target.with_name(f".{target.stem}.part{target.suffix}")
        self._record = target.with_name(f".{target.name}.part.plan")
        record = _record_of(plan)
        self._is_repeatable = plan.source.digest is not None or all(record["sources"].values())
        self._text = dumps(record)

    def begin(self) -> bool:
        """Whether an earlier part goes on; else a fresh one may be written."""
        if self._is_repeatable and self.path.exists():
            with suppress(FileNotFoundError, FormatError):
                earlier = disk.read_named(self._record, _MAX_RECORD, "a record of ours")
                if loads(earlier, str(self._record)) == loads(self._text, "the record"):
                    return True
        self.remove()
        # Before the first row: a part without a record could be of any source.
        disk.write_whole(self._record, self._text)
        return False

    def publish(self) -> None:
        """Put the whole part in the destination's place, at once."""
        # First the record: after the exchange what was replaced lies under the part's name.
        disk.remove(self._record)
        disk.sync_directory(self.target.parent)
        if self.target.exists() and (self.target.is_dir() or self.path.is_dir()):
            # One system call: a rename cannot replace a folder that is not empty, and between two renames a
            # kill would leave no store under the name.
            disk.exchange(self.path, self.target)
            disk.sync_directory(self.target.parent)
            disk.remove(self.path)
        else:
            disk.rename(self.path, self.target)
        disk.sync_directory(self.target.parent)

    def remove(self) -> None:
        """Give the part up; the record first, so that no half of it is ever gone on with."""
        disk.remove(self._record)
        disk.remove(disk.unfinished(self.path))
        disk.remove(self.path)


def otherwise(part: Path | str, digest: str, expected: str) -> DamageError:
    """The refusal of what reads back otherwise than it was written."""
    return DamageError(
        f"what was written to {part} has the digest {digest}, not {expected}: the disk failed, or "
        "rows of an earlier run were of another source; nothing was published, run it again"
    )


def _record_of(plan: Plan) -> dict[str, Any]:
    """All that decides what the destination will hold, and whether a source has changed since."""
    table, ids = plan.source, plan.options.ids
    header = plan.header.to_json()
    for key in _TIMES:
        del header["fostore"][key]
    digest = None if ids is None else hasher()
    if digest is not None:
        for key in ids:
            digest.update(f"{key!r}\n".encode())
    return {
        "sources": {name: _stamp(name) for name in table.paths},
        "digest": table.digest,
        "rows": table.num_rows,
        "changes": plan.options.changes,
        "ids": None if digest is None else digest.hexdigest(),
        "format": plan.format,
        "header": header,
    }


def _stamp(name: str) -> list[int] | None:
    """What tells whether a file has changed since; None where there is none to look at."""
    if is_url(name):
        return None  # the digest of the store tells
    try:
        stat = os.stat(inside(name)[0])
    except OSError:
        return None
    # Not the time of the last look, which reading changes; the inode tells a file that was replaced by a rename
    # and got the times of the old one, as rsync -t and cp -p do.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
