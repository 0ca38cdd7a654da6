"""A bundle on the Hugging Face Hub, as a dataset repository (extra `hub`)."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import huggingface_hub as hub
from huggingface_hub import errors

from fostore import disk
from fostore.errors import ArgumentError, DamageError, FostoreError, LockedError, PlaceError
from fostore.places.hub import OWN, api
from fostore.places.names import clean
from fostore.publishing.manifest import Entry
from fostore.publishing.targets import staging_beside

SCHEME = "hf://datasets/"
MOST_ENTRIES, MOST_FILES = 10_000, 100_000
"""What the hub takes in a folder, and in a repository (its documentation, "Storage limits")."""


class _HubTarget:
    """A dataset repository at one revision."""

    def __init__(
        self, name: str, store: Path, *, private: bool = False, revision: str | None = None
    ) -> None:
        self.name = name
        self._repository, named = parse(name)
        if revision and named and revision != named:
            raise ArgumentError(
                f"{name!r} names the revision {named!r}, and revision is {revision!r}"
            )
        self._revision = revision or named or "main"
        self._private = private
        self._base: str | None = (
            None  # the commit that was looked at, which the next one must follow
        )
        self.staging = staging_beside(store)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file of the bundle that lies there; see `Target.read`."""
        folder = disk.unfinished(self.staging)
        with self._telling():
            try:
                self._base = self._base or self._head(self._revision)
                path = api().hf_hub_download(
                    self._repository,
                    name,
                    repo_type="dataset",
                    revision=self._base,
                    local_dir=folder,
                )
                return disk.read_named(path, limit, "a file of a bundle")
            except errors.LocalEntryNotFoundError:
                raise  # the hub was not reached, and nobody said that nothing is there
            except _ABSENT:
                return None
            finally:
                disk.remove(folder)

    def send(self, files: list[Entry], version: str) -> bool:
        """Send a bundle in one commit, and compare what lies there then; see `Target.send`.

        The hub takes from a file only what it lacks: what is there already is not sent again, and an upload
        that was interrupted goes on. What the bundle no longer holds is deleted by the same commit.
        """
        refuse_many(files)
        with self._telling():
            api().create_repo(
                self._repository, repo_type="dataset", private=self._private, exist_ok=True
            )
            if self._revision != "main":
                api().create_branch(
                    self._repository, branch=self._revision, repo_type="dataset", exist_ok=True
                )
            self._base = self._base or self._begun()
            if not self._differences(files, self._base):
                return False
            api().upload_folder(
                repo_id=self._repository,
                repo_type="dataset",
                folder_path=self.staging,
                revision=self._revision,
                commit_message=f"version {version}",
                delete_patterns="*",
                parent_commit=self._base,
            )
            different = self._differences(files, self._revision)
        if different:
            raise DamageError(
                f"{self.name} does not hold what was sent: {'; '.join(different[:5])}; publish again"
            )
        return True

    def _head(self, revision: str) -> str:
        return str(api().dataset_info(self._repository, revision=revision).sha)

    def _begun(self) -> str:
        """The first commit of what was not there when this call looked, and that nobody else has filled since.

        Raises:
            LockedError: somebody has.
        """
        base = self._head(self._revision)
        if self._revision != "main":  # begins as what main is
            is_filled = base != self._head("main")
        else:
            is_filled = bool(self._tree(base).keys() - {OWN})
        if is_filled:
            self._refuse()
        return base

    def _refuse(self) -> NoReturn:
        raise LockedError(
            f"{self.name} has changed since this call looked at it: another publisher was faster, and "
            "nothing was published; call again"
        )

    def _tree(self, revision: str) -> dict[str, Any]:
        tree = api().list_repo_tree(
            self._repository, repo_type="dataset", revision=revision, recursive=True
        )
        return {entry.path: entry for entry in tree if isinstance(entry, hub.hf_api.RepoFile)}

    def _differences(self, files: list[Entry], revision: str) -> list[str]:
        held = self._tree(revision)
        different = []
        for file in files:
            entry = held.pop(file.name, None)
            if entry is None:
                different.append(f"{file.name} is missing")
            elif entry.lfs is not None:
                if entry.lfs.sha256 != file.sha256:
                    different.append(f"{file.name} is another file")
            elif entry.blob_id != _blob_id(self.staging / file.name, file.size):
                different.append(f"{file.name} is another file")
        return different + [
            f"{name} is not of the bundle" for name in held if name != ".gitattributes"
        ]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the hub refused, and what to do."""
        try:
            yield
        except FostoreError:
            raise
        # Of its client, and of the HTTP library below that, which change from release to release.
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) == 412:
                self._refuse()
            answer = (clean(str(error)).strip().splitlines() or [""])[0][:300]
            raise PlaceError(
                errno.EIO,
                f"{self.name} was not published: {type(error).__name__}: {answer}. Log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may write; call again, and only what is missing is sent",
                self.name,
            ) from None


TARGET = _HubTarget


_ABSENT = (
    errors.EntryNotFoundError,
    errors.RepositoryNotFoundError,
    errors.RevisionNotFoundError,
)
"""What says that there is no such file, repository or revision."""


def parse(url: str) -> tuple[str, str | None]:
    """The repository and revision of `hf://datasets/USER/NAME[@REVISION]`.

    >>> parse("hf://datasets/ada/digits@v1")
    ('ada/digits', 'v1')
    """
    name, _, revision = url.removeprefix(SCHEME).partition("@")
    parts = name.split("/")
    if not url.startswith(SCHEME) or len(parts) != 2 or not all(parts):
        raise ArgumentError(f"{url!r} names no dataset, expected {SCHEME}USER/NAME[@REVISION]")
    return name, revision or None


def refuse_many(files: list[Entry]) -> None:
    """Refuse more files than the hub takes, before the first byte.

    Raises:
        ArgumentError: names the folder, and what to do.
    """
    entries = Counter(
        str(parent)
        for name in {str(p) for f in files for p in _with_parents(f.name)}
        for parent in [PurePosixPath(name).parent]
    )
    folder, most = max(entries.items(), key=lambda item: item[1], default=("", 0))
    if most > MOST_ENTRIES or len(files) > MOST_FILES:
        raise ArgumentError(
            f"the bundle has {len(files):,} files, {most:,} of them in {folder!r}; the hub takes "
            f"{MOST_FILES:,}, and {MOST_ENTRIES:,} in a folder: convert the store to HDF5, which is one "
            "file, or write it with larger units (unit_rows=), and publish that"
        )


def _with_parents(name: str) -> Iterator[PurePosixPath]:
    path = PurePosixPath(name)
    yield path
    yield from list(path.parents)[:-1]


def _blob_id(path: Path, size: int) -> str:
    """What git calls a file: SHA-1 over its kind, its size and its bytes."""
    total = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    total.update(disk.read_named(path, size, "a file of the bundle"))
    return total.hexdigest()
