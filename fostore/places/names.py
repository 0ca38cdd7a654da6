"""What a user names, as a place or a path: a url is refused by name, and a link is followed once, by who writes.

Every verb turns what it is given into a path here, before anything else looks at it: `pathlib` makes a
local folder `s3:` of a url.
"""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from fostore import disk
from fostore.errors import ArgumentError, UnsupportedError
from fostore.places.local import Local
from fostore.places.place import Place, Storage

SCHEMES = {
    "memory": "fostore.places.memory",
    **dict.fromkeys(("s3", "gs", "az"), "fostore.places.remote"),
    **dict.fromkeys(("https", "http"), "fostore.places.web"),
    "hf": "fostore.places.hub",
}
"""The places that are not local, by the scheme of their urls: modules with a `place_of_url`."""

WRITABLE = ("s3", "memory")
"""Those that stores are written to; tests have tried no others."""

STREAM = "-"
"""Names the standard input or output, as JSON Lines."""

# One slash is what `Path` leaves of two. A scheme has two letters at least: `C:/` is a drive of Windows.
_URL = re.compile(
    r"(?:[A-Za-z][\w+-]*::)*(?:[A-Za-z][A-Za-z0-9+.-]+://|([A-Za-z][A-Za-z0-9+-]+:/))"
)
_CHAIN = re.compile(r"(?:zip|tar|libarchive|simplecache|filecache|blockcache)::")
"""What fsspec puts before another name; an array inside a file is `file.suffix::name`."""


_SECRET = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]+@|(\?|(?<=\S)#)[^\s\"')]*")


def place_of(value: str | os.PathLike[str] | Place) -> Place:
    """The place that `value` names: itself, that of a url, or a local path. Nothing is looked at.

    Raises:
        ArgumentError: a url of a scheme that this version does not read, or what can name no file.
    """
    if isinstance(value, str) and (module := SCHEMES.get(value.partition("://")[0])):
        place: Place = load(module, value).place_of_url(value)
        return place
    if not isinstance(value, (str, Path, Local)) and isinstance(value, Place):
        return value
    return value if isinstance(value, Local) else Local(local_path(value))


def storage_of(value: str | os.PathLike[str] | Place) -> Storage | None:
    """Where units are written as a whole, if `value` names a place that is not a path of this machine; else None.

    Raises:
        UnsupportedError: it can be read only, or a library is missing.
    """
    if isinstance(value, str) and is_url(value):
        if value.partition("://")[0] not in WRITABLE:
            raise UnsupportedError(
                f"{clean(value)!r} cannot be written to: stores are written to paths of this machine and to s3:// (and "
                "what speaks like it: AWS_ENDPOINT_URL). Write it here, and fostore.publish it there"
            )
        value = place_of(value)
    if isinstance(value, (str, os.PathLike, Local)):
        return None
    if not isinstance(value, Storage):
        raise UnsupportedError(f"{value} can be read, and not be written to")
    return value


def is_url(name: str) -> bool:
    """Whether a name is that of a place which is not local."""
    return name.partition("://")[0] in SCHEMES


def clean(text: str) -> str:
    """A text without users, queries and fragments of urls, where secrets are.

    >>> clean("s3://me:secret@bucket/x.zarr?sig=secret")
    's3://bucket/x.zarr?...'
    """
    return _SECRET.sub(lambda match: match[1] or f"{match[2]}...", text)


def refuse_secrets(url: str) -> None:
    """Refuse a url in which a secret may be: urls are kept in errors, pickles and receipts.

    Raises:
        ArgumentError: names the url without it, and where credentials are looked for.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ArgumentError(
            f"{clean(url)!r} holds a user, a query or a fragment: urls are kept in errors, pickles and "
            "receipts; give credentials by the environment instead (AWS_ACCESS_KEY_ID ...)"
        )


def is_outside(name: str) -> bool:
    """Whether a name from a stranger's list leads out of the folder that it is looked up in."""
    parts = name.split("/")
    return "\\" in name or "\0" in name or ":" in parts[0] or bool({"", ".", ".."} & set(parts))


def load(module: str, url: str) -> ModuleType:
    """The module that deals with a url.

    Raises:
        UnsupportedError: a library is missing that it needs.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{clean(url)!r} lies behind a url, which needs {error.name}: pip install 'fostore[remote]'"
        ) from error


def local_path(value: str | os.PathLike[str]) -> Path:
    """The path that `value` names, `~` being the home; the disk is not looked at.

    Raises:
        ArgumentError: a url, or what can name no file.

    >>> local_path("results/x.zarr").name
    'x.zarr'
    >>> local_path("s3://bucket/x.zarr")
    Traceback (most recent call last):
    ...
    fostore.errors.ArgumentError: 's3://bucket/x.zarr' is a url, and a path of this machine is wanted here: ...
    """
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentError(f"a path is {value!r:.80}, expected a str or a pathlib.Path")
    text = os.fsdecode(value)
    if not text or "\0" in text:
        raise ArgumentError(f"a path is {text!r:.80}, which can name no file")
    matched = _URL.match(text)
    if matched is not None or _CHAIN.match(text):
        collapsed = matched[1] if matched is not None else None
        url = text if collapsed is None else text.replace(collapsed, f"{collapsed}/", 1)
        scheme = url.partition(":")[0]
        if url[:8].lower() == "file:///":
            cure = f"give the path alone: {url[7:]!r}"
        elif scheme in SCHEMES:
            cure = (
                "fostore.open, fostore.convert and fostore.evaluate read stores from urls, which they are given "
                "as text (pathlib makes one slash of two); fostore.create, fostore.convert and generators write .zarr "
                "stores to s3://, and fostore.publish writes bundles"
            )
        else:
            known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
            cure = f"stores are read from {known}; copy it to this machine first, or mount it"
        if collapsed is not None:
            cure += f"; of a folder that is called {collapsed[:-1]!r} give the absolute path"
        raise ArgumentError(
            f"{clean(url)!r} is a url, and a path of this machine is wanted here: {cure}"
        )
    return Path(text).expanduser() if text[0] == "~" else Path(text)


def destination(value: str | os.PathLike[str]) -> Path:
    """Where a writer puts what `value` names: absolute, every link on the way followed.

    So what is replaced is what a link leads to, on its own disk, and the link stays. A link to what is
    not there yet is followed where the folder that is to hold it exists; where it does not, a disk
    may not be mounted.

    Raises:
        ArgumentError: a url; a link that leads to itself, into no folder, or to a name of another suffix.
        PlaceError: no file can lie there.
    """
    path = local_path(value).absolute()
    real = Path(os.path.realpath(path))
    for link in filter(os.path.islink, (path, *path.parents)):
        target = Path(os.path.realpath(link))
        if os.path.islink(target):
            raise ArgumentError(f"{str(link)!r} is a link that leads to itself; remove it")
        if not os.path.isdir(target.parent):
            raise ArgumentError(
                f"{str(link)!r} is a link to {str(target)!r}, and {str(target.parent)!r} is no folder; "
                "mount its disk, make the folder, or remove the link"
            )
    if path.suffix.lower() != real.suffix.lower():
        raise ArgumentError(
            f"{str(path)!r} is a link to {str(real)!r}, and a suffix says the format: let both end "
            "alike, or name the target itself"
        )
    with disk.refusing(real), suppress(FileNotFoundError):
        os.stat(
            real
        )  # a name that is too long, or a folder that cannot be entered, before any work
    return real


def inside(value: str | os.PathLike[str]) -> tuple[Path, str]:
    """A file, or a pattern of files, and the array inside it, from `file::array`; "" where no array is named.

    What exists under the whole name is a path, whatever is in its name; else the longest part before
    a `::` that exists is the file.
    """
    whole, text = local_path(value), os.fsdecode(value)
    if "::" not in text or _is_there(whole):
        return whole, ""
    cuts = [match.start() for match in re.finditer("::", text)]
    cut = next((cut for cut in reversed(cuts) if _is_there(local_path(text[:cut]))), cuts[0])
    return local_path(text[:cut]), text[cut + 2 :]


def _is_there(path: Path) -> bool:
    return os.path.lexists(path) or next(glob.iglob(str(path)), None) is not None


def absent(path: str | Path, what: str = "nothing") -> str:
    """Says that there is `what` at `path`, and where its link leads if it is one."""
    led = f", a link to {os.readlink(path)!r}" if os.path.islink(path) else ""
    return f"there is {what} at {str(path)!r}{led}"
