"""FirstOrderDataset: a dataset whose samples come with their distributions; and loaders over it."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.containers.rows import Rows, as_dataset, samples_of
from fostore.encodings import encoding_of
from fostore.errors import ArgumentError, IdentityError
from fostore.generate.framework import Framework, NumpyFramework
from fostore.loading.loader import SimpleDataLoader
from fostore.nested import bring_together, collate, split, split_all
from fostore.pairing.check import Pairing, check_pairing
from fostore.reading.request import is_softened
from fostore.reading.store import Selection, Store
from fostore.reading.store import open as open_store
from fostore.schema.class_names import names_of_dataset
from fostore.schema.halves import HALVES, widen
from fostore.schema.row import Array, Column

if TYPE_CHECKING:
    from fostore.pairing.pairs import Pairs

_GATHER_BYTES, _AHEAD_BYTES = 1 << 20, 2 << 20
"""Distributions gathered at once where nothing else has to be read: small batches share one gather.

The second is for a thread that reads ahead. More saves no time, and pushes out of the caches what the
loop computes with.
"""

_GATHER_ROWS = 8192
"""The same in rows: from a cold disk each is a page and a read, and the first batch waits for all."""


class PairedDataset:
    """A dataset and its distributions, checked against each other; what every side's dataset is.

    A side adds its own kind of dataset, of rows (`_as_rows`) and of batch (`_collate`). A sample is
    split into its input and its label (`split`); what a tuple holds after these is left out. Pickled,
    a store travels as its path, and another store in its place is refused (IdentityError).

    Args:
        base_dataset: anything with `__len__` and `__getitem__`, or what has rows (a frame, a table, a
            sparse matrix, an array on disk); None: distributions alone.
        distributions: a mapping from dataset index to a row, a `Store`, a `Selection`, or a path.
        input_getter: gets one sample, returns its input.
        ids: one key a sample of `base_dataset`. Where the store has ids too, samples are joined with
            their rows by id, so that a permuted or cut dataset is paired rightly.
        check: how the two are compared; see `fostore.pairing.check.check_pairing`.
        target_key: samples are dicts, and their distribution goes in under this key.
        dtype: of the distributions handed out: a floating one; None: as they are stored.
        as_kind, temperature: see `Store.take`; a mapping, whose rows could be anything, takes none.

    Raises:
        ArgumentError: a sample has no distribution, or there are more than samples.
        IdentityError: they belong to other samples; names the first that differs.
    """

    def __init__(
        self,
        base_dataset: Any,
        distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
        input_getter: Callable[[Any], Any] | None = None,
        *,
        ids: Any = None,
        check: str = "auto",
        target_key: str | None = None,
        dtype: str | None = "float32",
        as_kind: str = "probs",
        temperature: float | None = None,
    ) -> None:
        base = as_dataset(base_dataset)
        has_samples = hasattr(base, "__getitem__") and hasattr(base, "__len__")
        if base_dataset is not None and not has_samples:
            raise ArgumentError(
                f"base_dataset is {type(base_dataset).__name__}, expected __len__ and __getitem__"
            )
        if isinstance(distributions, (str, os.PathLike)):
            distributions = open_store(Path(distributions))
        if not isinstance(distributions, (Mapping, Selection)):
            raise ArgumentError(
                f"distributions is {type(distributions).__name__}, expected a dict from dataset "
                "index to distribution, a Store, or a path to one"
            )
        self.base_dataset = base_dataset
        self._base = base
        """The base dataset, as one whose `[i]` is sample i: a frame's would be a column."""
        whole = isinstance(base, Rows) and input_getter is None and target_key is None
        self._rows = base if whole else None
        if self._rows is not None:
            self._check_rows(self._rows)
        self.distributions = distributions
        # Asked once: these are abstract classes, for which Python looks long.
        self._stored = distributions if isinstance(distributions, (Store, Selection)) else None
        self.input_getter = input_getter
        self.target_key = target_key
        self._dtype = None if dtype is None else _as_dtype(dtype)
        self._as_kind, self._temperature = as_kind, temperature
        softened = temperature is not None and is_softened(temperature)
        if self._stored is None and (as_kind != "probs" or softened):
            raise ArgumentError(
                f"as_kind={as_kind!r} and temperature={temperature!r} are for a store, which says what "
                f"its rows are; those of a {type(distributions).__name__} are handed out as they came"
            )
        self._half = self._halves_of(softened)
        self.pairing: Pairing = check_pairing(
            base,
            distributions,
            ids=ids,
            check=check,
            framework=self._framework(),
            input_getter=input_getter,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_paired_with": self._store_keys()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        paired_with = state.pop("_paired_with")
        vars(self).update(state)
        now = self._store_keys()
        # A store travels as its path, and what lies there by now nobody has compared.
        if all(one is None or one != other for one, other in zip(paired_with, now, strict=True)):
            raise IdentityError(
                "another store has taken the place of the one that this dataset was paired with; make "
                "the dataset anew, so that the two are compared",
                ("store",),
            )

    def _store_keys(self) -> tuple[str | None, str | None]:
        """The store's id and digest: one of them stays the same as long as its rows do."""
        header = None if self._stored is None else self._stored.header
        return ("", None) if header is None else (header.id, header.digest)

    def __len__(self) -> int:
        return len(self.distributions if self.base_dataset is None else self._base)

    def __getitem__(self, index: Any) -> Any:
        at = operator.index(index)
        if at < 0:
            at += len(self)
        if not 0 <= at < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)} samples")
        row = self._as_rows(self.gather(np.array([at])))[0]
        if self.base_dataset is None:
            return row
        if self._rows is not None:
            return (self._one(self._rows, at), row)
        return self._with_row(self._base[at], row)

    def gather(self, samples: Array) -> Array:
        """The distributions of `samples` (int64, none out of range): (n, [M,] K), fresh and writable."""
        found = self._stored_rows(samples)
        if self._half is not None:
            found = widen(found, self._half.dtype)
        if self._dtype is None or found.dtype == self._dtype:
            return found
        return found.astype(self._dtype)

    def _stored_rows(self, samples: Array) -> Array:
        """The same before they are widened: with `_half` the numbers that the store keeps."""
        rows = samples if self.pairing.rows is None else self.pairing.rows[samples]
        if self._stored is None:
            return self._from_mapping(rows.tolist())
        if self._half is not None:
            return self._stored.take_column(self._half.name, rows)
        return self._stored.take(rows, as_kind=self._as_kind, temperature=self._temperature)

    def _halves_of(self, softened: bool) -> Column | None:
        """The column of halves that are handed out wider and otherwise as they are; else None."""
        if self._stored is None or softened:
            return None
        schema = self._stored.schema
        as_kind = self._as_kind  # logits lie without the level of their row
        kept = as_kind != "logits" and encoding_of(schema).is_plain(schema, as_kind)
        asked = self._dtype
        if asked is None:  # what `Store.take` gives
            is_given = (schema.kind, schema.dtype) == ("probs", "float16")
            asked = np.dtype(np.float16 if is_given else np.float32)
        wider = schema.dtype in HALVES and asked != np.float16
        return schema.columns[0] if kept and wider else None

    def _from_mapping(self, rows: list[int]) -> Array:
        found = [self.distributions[row] for row in rows]
        try:
            made = np.array(found)
        except ValueError:  # of several lengths
            made = np.empty(0)
        if found and (made.ndim < 2 or made.dtype.kind not in "fiu"):
            sizes = [len(one) if hasattr(one, "__len__") else None for one in found]
            at = next((i for i, size in enumerate(sizes) if size != sizes[0]), 0)
            raise ArgumentError(
                f"the distribution of sample {rows[at]} is {found[at]!r:.60}; expected numbers, one a "
                "class, and as many for every sample"
            )
        return made

    def announce(self, samples: Array) -> None:
        """A hint that the distributions of `samples` will be gathered next; see `Store.announce`."""
        if self._stored is not None:
            rows = samples if self.pairing.rows is None else self.pairing.rows[samples]
            self._stored.announce(rows)

    def rows_of(self, samples: Array) -> Any:
        """The distributions of `samples` as the side's array, which the side widens where they are halves."""
        if self._half is None:
            return self._as_rows(self.gather(samples))
        return self._widened(self._stored_rows(samples), self._half.dtype)

    def samples(self, samples: Array) -> list[Any]:
        """Samples of the base dataset, asked for at once where it can (`__getitems__`)."""
        return samples_of(self._base, samples.tolist())

    def read_batches(self, samples: Array, batch_size: int) -> list[Any]:
        """The batches of a stretch of samples, `batch_size` each; one gather serves all of them."""
        return self._batches(samples, batch_size, self.rows_of(samples))

    def _batches(self, samples: Array, batch_size: int, rows: Any) -> list[Any]:
        """The same, of rows that were gathered."""
        starts = range(0, len(samples), batch_size)
        parts = [rows[start : start + batch_size] for start in starts]
        if self.base_dataset is None:
            return parts
        return [
            self._batch(samples[start : start + batch_size], part)
            for start, part in zip(starts, parts, strict=True)
        ]

    def batches_at_once(self, batch_size: int, *, ahead: bool = False) -> int:
        """How many batches to ask `read_batches` for: several where nothing but rows is read.

        `ahead`: a thread asks, which hands them over: the fewer times the better.
        """
        if self.base_dataset is not None or self._stored is None:
            return 1
        wider = 1 if self._half is None else 2  # float32, once they are widened
        row_bytes = sum(self._stored.schema.row_bytes) * wider
        rows = min((_AHEAD_BYTES if ahead else _GATHER_BYTES) // row_bytes, _GATHER_ROWS)
        return max(rows // batch_size, 1)

    def _together(self, samples: Array) -> Any | None:
        """The inputs of samples at once, where the base dataset is a container of them; else None."""
        return None if self._rows is None else self._take(self._rows, samples)

    def _batch(self, samples: Array, rows: Any) -> Any:
        together = self._together(samples)
        if together is not None:
            return (together, rows)
        found = self.samples(samples)
        if self.target_key is not None:
            found = [self._mapping(one) for one in found]
            return self._with_row(bring_together(self._collate, found, samples.tolist()), rows)

        def bring(some: Sequence[Any]) -> Any:
            return self._collate(split_all(some, self.input_getter))

        return (*bring_together(bring, found, samples.tolist()), rows)

    def _with_row(self, sample: Any, row: Any) -> Any:
        if self.target_key is None:
            return (*split(sample, self.input_getter), row)
        return self._as_dict({**self._mapping(sample), self.target_key: row})

    def _mapping(self, sample: Any) -> Mapping[str, Any]:
        if isinstance(self._base, Rows) and hasattr(sample, "to_dict"):
            sample = sample.to_dict()  # a row of a pandas frame
        if not isinstance(sample, Mapping):
            raise ArgumentError(
                f"target_key={self.target_key!r} is for samples that are dicts, this one is "
                f"{type(sample).__name__}; leave it out to get (input, label, distribution)"
            )
        if self.target_key in sample:
            raise ArgumentError(
                f"the samples have {self.target_key!r} already; choose another target_key"
            )
        return sample

    def as_pairs(self) -> Pairs:
        """A plain view of (input, distribution), with `targets` and `classes` as torchvision has them.

        Raises:
            ArgumentError: there is no base dataset, and so no inputs.
        """
        from fostore.pairing.pairs import Pairs

        if self.base_dataset is None:
            raise ArgumentError("there is no base dataset, so there are no inputs to pair with")
        return Pairs(self)

    @property
    def class_names(self) -> list[str]:
        """The store's class names, or the base dataset's, or the numbers of the classes as text."""
        if isinstance(self.distributions, (Store, Selection)):
            schema = self.distributions.schema
            names, num_classes = schema.class_names, schema.num_classes
        else:
            names = None
            num_classes = np.shape(next(iter(self.distributions.values())))[-1]
        names = names or names_of_dataset(self.base_dataset)
        if names is None or len(names) != num_classes:
            return [str(number) for number in range(num_classes)]
        return list(names)

    @property
    def has_stored_rows(self) -> bool:
        """Whether what is handed out is what a store keeps, number by number."""
        distributions = self.distributions
        if not isinstance(distributions, Store) or self.pairing.rows is not None:
            return False
        schema = distributions.schema
        asked = self._as_kind == "probs" and self._temperature is None
        stored = encoding_of(schema).is_plain(schema, "probs")
        wanted = schema.columns[0].numpy_dtype if self._dtype is None else self._dtype
        same = schema.dtype != "bfloat16" and wanted == schema.columns[0].numpy_dtype
        return asked and stored and same

    # What a side adds

    def _framework(self) -> Framework:
        """How samples are read, so that their hashes are those that a generator of this side makes."""
        return NumpyFramework("cpu", ())

    def _check_rows(self, rows: Rows) -> None:
        """Refuse a container whose rows this side cannot hand out."""

    def _one(self, rows: Rows, index: int) -> Any:
        """A row of a container as the side's input."""
        return rows[index]

    def _take(self, rows: Rows, samples: Array | range) -> Any:
        """Rows of a container as the side's batch of inputs."""
        return rows.take(samples)

    def _as_rows(self, rows: Array) -> Any:
        """Fresh distributions as the side's array."""
        return rows

    def _widened(self, stored: Array, half: str) -> Any:
        """Fresh stored halves (bfloat16 as uint16 bits) as the side's array of the dtype asked for."""
        wide = widen(stored, half)
        return self._as_rows(wide if self._dtype is None else wide.astype(self._dtype, copy=False))

    def _collate(self, samples: Sequence[Any]) -> Any:
        """Samples, or their parts, as one batch."""
        return collate(samples)

    def _as_dict(self, sample: dict[str, Any]) -> Any:
        """A dict sample as the side's loops want it."""
        return sample


def _as_dtype(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any] | None
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.kind != "f":
        raise ArgumentError(
            f"dtype is {dtype!r}, expected 'float16', 'float32' or 'float64', or None for "
            "distributions as they are stored"
        )
    return found


class FirstOrderDataset(PairedDataset, Sequence[Any]):
    """A dataset whose samples come with their distributions: (input, label, distribution).

    Without labels: (input, distribution); without a base dataset the distribution alone. A
    distribution is a float32 array (num_classes,), or (num_members, num_classes). Parameters and
    errors are those of `PairedDataset`.

    >>> dataset = FirstOrderDataset([("cat", 0), ("dog", 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> dataset[1]
    ('dog', 1, array([0.2, 0.8], dtype=float32))
    """


def output_dataloader(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection | str | os.PathLike[str],
    batch_size: int = 64,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    input_getter: Callable[[Any], Any] | None = None,
    *,
    seed: int | None = None,
    drop_last: bool = False,
    pad_last: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
    prefetch: int = 2,
    **options: Any,
) -> SimpleDataLoader:
    """Batches (inputs, labels, distributions), or (inputs, distributions), as NumPy arrays.

    `num_workers` and `pin_memory` are the guide's; without a framework they have no effect.

    Args:
        seed, drop_last, pad_last, rank, num_ranks, prefetch: see `SimpleDataLoader`.
        options: `ids`, `check`, `target_key`, `dtype`, ... of `FirstOrderDataset`.

    Raises:
        ArgumentError, IdentityError: see `FirstOrderDataset`.

    >>> loader = output_dataloader([(1.0, 0), (2.0, 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> inputs, labels, distributions = next(iter(loader))
    >>> distributions.shape
    (2, 2)
    """
    dataset = FirstOrderDataset(base_dataset, distributions, input_getter, **options)
    return SimpleDataLoader(
        dataset,
        batch_size,
        shuffle,
        seed=seed,
        drop_last=drop_last,
        pad_last=pad_last,
        rank=rank,
        num_ranks=num_ranks,
        prefetch=prefetch,
    )


output_fo_dataloader = output_dataloader
