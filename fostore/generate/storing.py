"""Where a generation is recorded, and what is refused before its first batch."""

from __future__ import annotations

import os
from pathlib import Path

from fostore.errors import ArgumentError, StoreExistsError
from fostore.formats import FILES, format_of, is_store
from fostore.generate.options import Options
from fostore.generate.samples import Indexed, Samples, Stream
from fostore.places.names import destination, is_url, local_path, place_of, storage_of
from fostore.schema.jsontext import check_object
from fostore.schema.row import Array
from fostore.writing.shares import share_of


def where(store: str | os.PathLike[str]) -> Path | str:
    """The path, or the url, that a user names."""
    name = os.fspath(store)
    return name if is_url(name) else local_path(store)


def exists(path: Path | str) -> bool:
    """Whether something is at a path, or behind a url."""
    return path.exists() if isinstance(path, Path) else place_of(path).version() is not None


def goes_on(path: Path | str, options: Options) -> bool:
    """Whether there is a store to go on with."""
    if options.shard is not None:
        # Beside others the folder of one that is just being begun, or was killed then, is no store yet.
        return is_store(place_of(path))
    return options.exists == "resume" and exists(path)


def check_store(path: Path | str, options: Options, samples: Samples, views: Array | None) -> None:
    """Raise for what would fail only after the first batch, or leave a store that is never whole."""
    count = samples.num_samples
    if storage_of(path) is None:
        destination(path)  # a link that leads nowhere
    elif count is None:
        raise ArgumentError(
            f"{path!r} takes whole units of a planned store, and the stream has no length; use a .zarr path of this "
            "machine and fostore.convert, or a dataset with __len__"
        )
    if options.shard is not None:
        _check_shared(options, samples)
    if os.path.splitext(path)[1].lower() in FILES:
        raise ArgumentError(
            "a JSON file cannot be streamed or resumed; generate into .zarr or .h5, or without "
            "store= and then save_distributions(path, distributions)"
        )
    format = format_of(place_of(path))
    is_unknown = count is None or (options.of_tokens and isinstance(samples, Stream))
    if is_unknown and not format.streams:
        what = "tokens" if options.of_tokens else "samples"
        raise ArgumentError(
            f"{format.name} needs to know the number of {what}, and the stream has no length; "
            "use a .zarr path, or a dataset with __len__"
        )
    if options.exists == "fail" and exists(path):
        raise StoreExistsError(
            f"{str(path)!r} exists; exists='resume' goes on with it, exists='overwrite' replaces it"
        )
    check_object(options.meta)
    if count == 0:
        raise ArgumentError("the dataset is empty, so the number of classes is not known")
    for name, beside in (("ids", options.ids), ("views", views)):
        if beside is not None and count is not None and len(beside) != count:
            raise ArgumentError(f"{len(beside)} {name} for {count} samples")
    if options.range is not None and options.exists == "overwrite":
        raise ArgumentError(
            "rows= with exists='overwrite' would never replace the old store, since the new one "
            "is not whole; overwrite without rows=, or remove the old store first"
        )
    covered = samples.batches.num_rows if isinstance(samples, Indexed) else count
    if (isinstance(samples, Stream) and samples.drop_last) or covered != count:
        missing = "" if covered == count else f" ({covered} of {count} samples come)"
        raise ArgumentError(
            f"the loader leaves samples out{missing}, and a store keeps a row for every sample: use "
            "drop_last=False, and torch.utils.data.Subset(dataset, indices) for a part of a dataset"
        )


def _check_shared(options: Options, samples: Samples) -> None:
    """Refuse what several processes cannot do together."""
    share_of(options.shard)
    if options.of_tokens:
        raise ArgumentError(
            "shard= deals out rows, and which rows a sequence has is not known before it is read: make token rows in "
            "one process, or write units of planned ones (fostore.plan, fostore.open_units)"
        )
    if isinstance(samples, Stream):
        raise ArgumentError("shard= needs a dataset with __len__ and __getitem__, this one streams")
    if options.rows is not None or options.exists != "resume":
        raise ArgumentError(
            "shard= says which rows this process makes, and goes on with what is there: leave out rows= and exists="
        )
