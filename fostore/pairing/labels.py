"""Labels compared with those that the generator met: all of them where the dataset tells them, else some."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from fostore.generate.probe import NoLabels, moved_entry, moved_label
from fostore.generate.provenance import labels_of
from fostore.pairing.content import FEWEST, Contents, Undecided, first_difference, in_time, refuse
from fostore.reading.selection import Selection, Stored
from fostore.schema import identity

_SECONDS = 0.5
_MOST = 1024


def check_labels(
    base_dataset: Any, joined: Stored, contents: Contents | Undecided, *, every: bool
) -> str | None:
    """Why labels were not compared; None where they agree. Random states are drawn from.

    Args:
        joined: the rows of the samples, in their order.

    Raises:
        IdentityError: names the first sample whose label, or whose input, is another one.
    """
    column = joined.schema.role("label")
    if column is None:
        return _check_hash(base_dataset, joined, contents)
    samples = len(base_dataset)
    labels = labels_of(base_dataset, samples)
    try:
        if labels is None:
            moved = _moved_of_some(base_dataset, joined, column.name, every=every)
        else:
            moved = moved_entry(labels, joined.take_column(column.name, np.arange(samples)))
    except NoLabels:
        return "the samples of the dataset have none of the form that was recorded, or cannot be read by themselves"
    if moved is not None:
        raise refuse(f"the label of sample {moved} is another one than the generator saw")
    return None


def _moved_of_some(base_dataset: Any, joined: Stored, column: str, *, every: bool) -> int | None:
    """The first of as many samples as half a second allows (or of all) whose label is another one."""
    # Several at once from the first on: of samples without a label none alone says anything.
    seconds = math.inf if every else _SECONDS
    for samples in in_time(len(base_dataset), seconds, _MOST, first=FEWEST):
        moved = moved_label(base_dataset, samples, joined.take_column(column, samples))
        if moved is not None:
            return moved
    return None


def _check_hash(base_dataset: Any, joined: Stored, contents: Contents | Undecided) -> str | None:
    """The same by the one hash of all labels, as stores without a label a row have it."""
    known = joined.dataset_facts.get("labels")
    labels = labels_of(base_dataset, len(base_dataset))
    if known is None or labels is None:
        return f"the {'store' if known is None else 'dataset'} does not tell them"
    labels = _in_store_order(labels, joined)
    if labels is None:
        return "the dataset is a part of what was generated"
    if identity.hash_values(labels) == known:
        return None
    first = None
    if isinstance(contents, Contents):
        with suppress(Undecided):
            first = first_difference(contents)
    what = "the labels of the dataset are not those of the generator's"
    raise refuse(f"{what}; {first}" if first else what)


def _in_store_order(labels: Any, joined: Stored) -> Any | None:
    """The labels as the generator's dataset had them; None where the dataset is a part of it."""
    if not isinstance(joined, Selection):
        return labels
    order = np.argsort(joined.rows)
    whole = np.arange(len(joined.store))
    return np.asarray(labels)[order] if np.array_equal(joined.rows[order], whole) else None
