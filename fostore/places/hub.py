"""A dataset on the Hugging Face Hub as a place: `hf://datasets/USER/NAME[@REVISION]/path/in/it`.

A revision is looked up once, and what it named then is read from then on: a commit that comes later changes no row
under a reader. Files come over the hub's web addresses, which lead on to wherever it keeps them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub as hub
from huggingface_hub import constants, errors

from fostore.errors import ArgumentError, FostoreError, PlaceError
from fostore.places.names import refuse_secrets
from fostore.places.remote import Remote

_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?\Z")
OWN = ".gitattributes"
"""The file of the hub itself, which says of what kind the others are."""


class Hub(Remote):
    """A `Place` in one commit of a dataset repository; the token is where huggingface_hub keeps it."""

    def __init__(self, url: str, commit: str | None = None) -> None:
        refuse_secrets(url)
        parts = _URL.match(url.rstrip("/"))
        if parts is None:
            raise ArgumentError(
                f"{url!r} names nothing on the hub, expected hf://datasets/USER/NAME[@REVISION]/PATH"
            )
        self.repository, self.revision, self._path = parts[1], parts[2] or "main", parts[3] or ""
        self._commit = commit
        super().__init__(url)

    def names(self, folder: str = "") -> dict[str, str]:
        """What lies in a folder, each with its kind; see `Place.names`."""
        return {
            name.rsplit("/", 1)[-1]: "folder" if size is None else "file"
            for name, size in self._listed(folder, recursive=False)
        }

    def sizes(self) -> dict[str, int]:
        """The bytes of each file, less the hub's own; see `Place.sizes`."""
        begin = f"{self._path}/".lstrip("/")
        return {
            name.removeprefix(begin): size
            for name, size in self._listed("", recursive=True)
            if size is not None and name != OWN
        }

    def _listed(self, folder: str, recursive: bool) -> list[tuple[str, int | None]]:
        """What lies in a folder, by its names in the repository: the bytes of a file, None of a folder."""
        where = self._key(folder).rstrip("/")
        with self._asking(folder):
            try:
                entries = api().list_repo_tree(
                    self.repository, where or None, recursive=recursive, repo_type="dataset",
                    revision=self.commit,
                )  # fmt: skip
                return [(entry.path, getattr(entry, "size", None)) for entry in entries]
            except errors.EntryNotFoundError as error:
                raise FileNotFoundError(where) from error

    @property
    def commit(self) -> str:
        """The commit that the revision named when it was first asked for."""
        if self._commit is None:
            with self._asking(""):
                info = api().dataset_info(self.repository, revision=self.revision)
                self._commit = str(info.sha)
        return self._commit

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """What the hub's own client says, as this package does."""
        with self._telling(name):
            try:
                yield
            except errors.HfHubHTTPError as error:
                if isinstance(error, errors.EntryNotFoundError) or not _is_hidden(error):
                    raise
                raise PlaceError(
                    errno.ENOENT,
                    f"the hub shows no dataset {self.repository!r} with a revision {self.revision!r}; if it is "
                    "private, log in with `hf auth login`, or set HF_TOKEN to a token that may read it",
                    self.url,
                ) from error
            except (OSError, FostoreError):
                raise
            except Exception as error:  # of its HTTP client, which changes from release to release
                raise OSError(f"{type(error).__name__}: {error}") from error

    def below(self, name: str) -> Hub:
        """The place that a name in this one is, in the same commit; see `Place.below`."""
        return Hub(f"{self.url}/{name}", self.commit)

    def __reduce__(self) -> tuple[Any, ...]:
        # With the commit: a worker process must not read a later one.
        return Hub, (self.url, self._commit)

    def _root(self) -> tuple[str, dict[str, Any]]:
        endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        token = hub.get_token()
        headers = {"authorization": f"Bearer {token}"} if token else {}
        root = f"{endpoint}/datasets/{self.repository}/resolve/{self.commit}"
        return root, {"default_headers": headers} if headers else {}

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self._path, name)))


def _is_hidden(error: Any) -> bool:
    """Whether the hub says that there is nothing, which it also says of what a token may not see."""
    return getattr(error.response, "status_code", None) in (401, 403, 404)


def api() -> hub.HfApi:
    """A client of the hub that HF_ENDPOINT names; the token is where huggingface_hub keeps it."""
    return hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="fostore")


place_of_url = Hub
