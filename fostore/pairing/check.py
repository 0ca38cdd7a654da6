"""Whether a dataset and distributions belong together: is it the same sample, and is it the same view.

Two questions, apart: ids, labels and length say whether it is the same sample; the input hashes that a
generator leaves behind say whether it is the same view of it as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.framework import Framework
from fostore.generate.numpy_framework import NumpyFramework
from fostore.generate.provenance import one_a_sample
from fostore.pairing.content import Contents, Undecided, check_content, refuse
from fostore.pairing.join import join
from fostore.pairing.labels import check_labels
from fostore.reading.ids import fits
from fostore.reading.selection import Selection, Stored
from fostore.reading.store import Store
from fostore.schema.class_names import difference, names_of_dataset, same
from fostore.schema.row import Array

LEVELS = ("auto", "content", "ids", "length")


@dataclass(frozen=True, slots=True)
class Pairing:
    """What a dataset and its distributions were found to share.

    >>> print(Pairing(None, ("length",), {"content": "a dict has no input hashes"}))
    checked: length; not checked: content (a dict has no input hashes)
    """

    rows: Array | None
    """Where the distribution of each sample is, int64 (num_samples,), as ids say; None: sample i has row i."""
    checked: tuple[str, ...]
    """What was compared and agrees: of "length", "class names", "ids", "labels", "content"."""
    not_checked: Mapping[str, str] = field(default_factory=dict)
    """What could not be compared, or was not to be, and why."""
    num_compared: int = 0
    """Samples whose inputs were compared."""

    def __str__(self) -> str:
        done = [
            f"content ({self.num_compared} samples)" if what == "content" else what
            for what in self.checked
        ]
        parts = [f"checked: {', '.join(done) or 'nothing'}"]
        if self.not_checked:
            reasons = ", ".join(f"{what} ({why})" for what, why in self.not_checked.items())
            parts.append(f"not checked: {reasons}")
        return "; ".join(parts)


def check_pairing(
    base_dataset: Any,
    distributions: Mapping[int, Any] | Selection,
    *,
    ids: Any = None,
    check: str = "auto",
    framework: Framework | None = None,
    input_getter: Callable[[Any], Any] | None = None,
) -> Pairing:
    """Raise unless there is one distribution for each sample, and it is of that sample.

    Where both sides have ids, samples are joined with their distributions by id, whatever their
    order; the dataset may then be a part of what the store holds. Class names are compared on every
    level. No random state is changed; a dataset's own generators are drawn from as it is read.

    Args:
        ids: one unique key a sample; default: `base_dataset.ids`, where that is one.
        check: "auto" compares what can be compared: ids, labels, and the inputs of as many samples
            as a second allows, always the first, the last and some between. "content" compares the
            inputs of all samples (with a progress bar) and insists on it. "ids" goes by ids alone,
            "length" by the number of samples: both for a student that is meant to see another view.
        framework: reads samples as the generator of this side does.
        input_getter: takes the input out of a sample, as the generator's did.

    Raises:
        ArgumentError: a sample has no distribution or a distribution no sample; or a level that
            needs what is not there, and says how to get it.
        IdentityError: other samples, labels or class names; names the first sample that differs.

    Warns:
        UserWarning: content was to decide and cannot; says what decides instead.
    """
    if check not in LEVELS:
        raise ArgumentError(f"check is {check!r}, expected one of {list(LEVELS)}")
    if base_dataset is None:
        _check_length(len(distributions), distributions)
        return Pairing(None, ())
    if not isinstance(distributions, Stored):
        return _check_mapping(base_dataset, distributions, ids, check)
    checked: list[str] = []
    skipped: dict[str, str] = {}

    def note(what: str, reason: str | None) -> None:
        """Say that something agrees, or for what reason it was not compared."""
        if reason is None:
            checked.append(what)
        else:
            skipped[what] = reason

    rows, reason = _join(base_dataset, distributions, ids, check)
    note("ids", reason)
    by_id = reason is None
    if not by_id:
        _check_length(len(base_dataset), distributions)
        checked.append("length")
    note("class names", _check_class_names(base_dataset, distributions))
    if check in ("ids", "length"):
        left_out = dict.fromkeys(("labels", "content"), f"check={check!r} leaves it out")
        return Pairing(rows, tuple(checked), skipped | left_out)
    # From here on what is at i belongs to sample i.
    joined = distributions if rows is None else distributions.select(rows)
    side = framework or NumpyFramework("cpu", ())
    contents: Contents | Undecided
    try:
        contents = Contents(side, base_dataset, input_getter, distributions, joined)
    except Undecided as undecided:
        contents = undecided
    every = check == "content"
    with side.kept_random_states():
        note("labels", check_labels(base_dataset, joined, contents, every=every))
    compared = 0
    try:
        if isinstance(contents, Undecided):
            raise contents
        compared = check_content(contents, every=every)
        checked.append("content")
    except Undecided as undecided:
        if every:
            raise ArgumentError(
                f"check='content' compares the inputs of all samples, and {undecided.reason}; "
                "check='auto' compares what can be compared, check='ids' goes by ids"
            ) from None
        skipped["content"] = undecided.reason
        if undecided.warn and not by_id:
            _warn(undecided.reason, checked)
    return Pairing(rows, tuple(checked), skipped, compared)


def _warn(reason: str, checked: Sequence[str]) -> None:
    deciding = [what for what in checked if what != "class names"]
    decide = f"{deciding[0]} alone decides" if len(deciding) == 1 else "length and labels decide"
    warnings.warn(
        f"the content of the samples decides nothing, since {reason}; {decide} whether they are the "
        "samples of the distributions. ids= here and when generating would make it certain; "
        "check='length' says that this is meant",
        stacklevel=4,  # where the user makes a dataset
    )


def _check_mapping(base_dataset: Any, distributions: Any, ids: Any, check: str) -> Pairing:
    """A dict says nothing about its samples but how many they are."""
    needs = f"check={check!r}" if check in ("ids", "content") else "ids=" if ids is not None else ""
    if needs:
        raise ArgumentError(
            f"{needs} compares with what a generator recorded, and a {type(distributions).__name__} "
            "of distributions has no ids and no input hashes; generate with store= (and ids=)"
        )
    _check_length(len(base_dataset), distributions)
    why = f"a {type(distributions).__name__} says nothing about its samples"
    skipped = dict.fromkeys(("class names", "ids", "labels", "content"), why)
    return Pairing(None, ("length",), skipped)


# ------------------------------------------------------------------ ids


def _join(
    base_dataset: Any, stored: Stored, ids: Any, check: str
) -> tuple[Array | None, str | None]:
    """Where the distribution of each sample is, and why ids do not say so; None where they do."""
    column = stored.schema.role("id")
    samples = len(base_dataset)
    given = ids is not None
    if column is None:
        if given or check == "ids":
            raise ArgumentError(
                "ids were to be compared, and the store keeps none; give ids= to "
                "generate_distributions (or to create), or pair without ids= and with check='auto'"
            )
        return None, "the store keeps none"
    if not given:
        ids = None if check == "length" else one_a_sample(base_dataset, samples, ("ids",))
        if ids is None or (check != "ids" and not fits(ids, column)):
            if check == "ids":
                raise ArgumentError(
                    "check='ids' needs ids on both sides: the store keeps them, and the dataset has "
                    "no attribute `ids` with one key a sample; give ids="
                )
            if check == "length":
                return None, "check='length' leaves them out"
            return None, "the dataset has none; give ids="
    if len(ids) != samples:
        raise ArgumentError(f"{len(ids)} ids for the {samples} samples of the dataset")
    return join(ids, stored, column), None


# ------------------------------------------------------------------ length, class names


def _check_length(samples: int, distributions: Mapping[int, Any] | Selection) -> None:
    count = len(distributions)
    if isinstance(distributions, Selection):
        first, whole = min(count, samples), count == samples
    elif isinstance(distributions, Store):
        first = distributions.committed.prefix
        whole = first == count == samples
    else:
        # A mapping of `count` keys lacks one of any `count + 1`: no more have to be looked at.
        first = next((i for i in range(min(samples, count + 1)) if i not in distributions), samples)
        whole = count == samples and first == samples
    if whole:
        return
    keys = [] if isinstance(distributions, Selection) else list(distributions)[:1]
    if keys and not isinstance(keys[0], (int, np.integer)):
        raise ArgumentError(
            f"distributions has the key {keys[0]!r}; keys are dataset indices (integers), as "
            "generate_distributions and load_distributions return them"
        )
    if first < samples:
        raise ArgumentError(
            f"the dataset has {samples} samples and there are {count} distributions: sample {first} "
            "has none. Generate the others (with drop_last=False), or pair a Subset of the dataset "
            "with the distributions of its samples, renumbered from 0"
        )
    kept = isinstance(distributions, Store)
    how = "store.select(indices), or ids= where the store has ids," if kept else "a part of them"
    raise ArgumentError(
        f"the dataset has {samples} samples, but there are {count} distributions; they were "
        f"generated from another dataset, or from a larger one: {how} pairs a part of it"
    )


def _check_class_names(base_dataset: Any, stored: Stored) -> str | None:
    """Why class names were not compared; None where they agree."""
    ours, theirs = names_of_dataset(base_dataset), stored.schema.class_names
    if ours is None or theirs is None:
        return f"the {'store' if theirs is None else 'dataset'} has none"
    if same(ours, theirs):
        return None
    what = difference(ours, theirs, ("in the dataset", "in the store"))
    raise refuse(
        f"the class names differ: {what}",
        "The order of the classes says what each probability is of: use the classes of the store",
    )
