"""What a model's numbers are: decided once, on evidence, and checked for every row after that.

Pure functions on NumPy arrays; the caller brings the numbers from the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from fostore.errors import ArgumentError, RowError
from fostore.generate.samples import Indices, name_samples
from fostore.schema.row import FLOATS, Array, sum_tolerance
from fostore.schema.simplex import check, softmax

Mode: TypeAlias = "str | tuple[str, ...]"
"""What a model gives: "logits" or "probs"; of an ensemble whose members differ, one for each."""

_NEARLY = 1e-2
_MANY_NUMBERS = 64
"""So many logits are not all in [0, 1] by chance."""

_WAYS = (
    "say output_mode='logits' if they are logits all the same; say output_mode='probs' with a larger "
    "tol=, or normalise in output_transform, if they are probabilities that were rounded; labels that "
    "may hold together (a sigmoid, multi-label) are a distribution over no and yes each: members=True "
    "with output_transform=lambda p: np.stack([1 - p, p], axis=-1) (torch.stack, jnp.stack)"
)


def check_resolved(mode: Mode, store_as: str, temperature: float) -> None:
    """Raise ArgumentError for what cannot be made of probabilities."""
    gives_probs = "probs" in ((mode,) if isinstance(mode, str) else mode)
    if gives_probs and store_as == "logits":
        raise ArgumentError(
            "store_as='logits' needs a model that gives logits, and this one gives probabilities; "
            "use store_as='log_probs', which loses nothing"
        )
    if gives_probs and temperature != 1.0:
        raise ArgumentError(
            f"temperature={temperature} divides logits, and this model gives probabilities; "
            "apply it in output_transform, or return logits"
        )


def tolerance(dtype: str, num_classes: int, tol: float | None = None) -> float:
    """How far the sum of a row may be from 1 for numbers of `dtype`."""
    if tol is not None:
        return tol
    return sum_tolerance(dtype if dtype in FLOATS else "bfloat16", num_classes)


def _are_distributions(rows: Array, tol: float) -> Array:
    """For each row (n, ..., K): whether every number is in [0, 1] and the sum is 1 within `tol`.

    >>> _are_distributions(np.float32([[1, 0, 0], [2, 0, 0]]), 1e-3)
    array([ True, False])
    """
    with np.errstate(invalid="ignore", over="ignore"):
        wide = rows.astype(np.float64)
        good: Array = (wide >= 0).all(-1) & (np.abs(wide.sum(-1) - 1) <= tol)
    whole: Array = np.all(good.reshape(len(rows), -1), axis=-1)
    return whole


def suspects(first: Array, mode: Mode) -> list[int]:
    """The members (0 without a member axis) that `mode` calls logits and whose first row is in [0, 1].

    Args:
        first: the first row of a batch, (1, K) or (1, M, K). Of logits it mostly is not.
    """
    rows = first.reshape(-1, first.shape[-1])
    unit = (np.minimum.reduce(rows, axis=-1) >= 0) & (np.maximum.reduce(rows, axis=-1) <= 1)
    members = np.flatnonzero(unit).tolist()
    return [m for m in members if (mode if isinstance(mode, str) else mode[m]) == "logits"]


def _in_unit(rows: Array) -> bool:
    """Whether every number lies in [0, 1].

    >>> _in_unit(np.float32([[0.2, 1]])), _in_unit(np.float32([[0.2, -1]]))
    (True, False)
    """
    return bool(np.minimum.reduce(rows, axis=None) >= 0 and np.maximum.reduce(rows, axis=None) <= 1)


def _members(rows: Array, numbers: Sequence[int] | None = None) -> Iterator[tuple[str, Array]]:
    """The rows (n, K) of each member, or of some, with its name as messages have it."""
    if rows.ndim == 2:
        yield "", rows
        return
    for member in range(rows.shape[1]) if numbers is None else numbers:
        yield f" of member {member}", rows[:, member]


def read_mode(recorded: Any) -> Mode | None:
    """The mode that an identity records, a name or a list of them; None where it records none."""
    names = recorded if isinstance(recorded, list) else [recorded]
    if not names or not all(name in ("logits", "probs") for name in names):
        return None
    return tuple(names) if isinstance(recorded, list) else str(recorded)


def named(mode: Mode) -> str | list[str]:
    """A mode as metadata and identities keep it."""
    return mode if isinstance(mode, str) else list(mode)


def decide(rows: Array, indices: Indices, tol: float) -> Mode:
    """The mode that "auto" stands for, from the outputs (n, ..., K) of the first batch.

    Every row a distribution: "probs". None: "logits". Meaning is never guessed row by row; of an
    ensemble each member is decided by itself.

    Raises:
        RowError: some rows are distributions and some are not, all numbers lie in [0, 1] and rows
            do not sum to 1, or numbers are not finite.
    """
    if np.isnan(rows).any() or (rows == np.inf).any():
        bad = np.isnan(rows) | (rows == np.inf)
        at = int(np.flatnonzero(bad.reshape(len(rows), -1).any(-1))[0])
        raise RowError(
            f"the model's output for {name_samples(_at(indices, at))} is not finite; "
            "look at this sample"
        )
    modes = tuple(_decide(part, indices, tol, name) for name, part in _members(rows))
    return modes[0] if len(set(modes)) == 1 else modes


def _decide(rows: Array, indices: Indices, tol: float, name: str) -> str:
    good = _are_distributions(rows, tol)
    if good.all():
        return "probs"
    if _in_unit(rows):
        raise _no_distribution(rows, good, indices, name)
    if not good.any():
        return "logits"
    like, unlike = int(np.flatnonzero(good)[0]), int(np.flatnonzero(~good)[0])
    raise RowError(
        f"output_mode='auto' cannot tell what the model gives: the output{name} for "
        f"{name_samples(_at(indices, like))} is a distribution, that for "
        f"{name_samples(_at(indices, unlike))} is not ({int(good.sum())} of {len(rows)} rows are); "
        "say output_mode='logits' or output_mode='probs'"
    )


def _no_distribution(rows: Array, good: Array, indices: Indices, name: str) -> RowError:
    at = int(np.flatnonzero(~good)[0])
    total = float(rows[at].astype(np.float64).sum())
    return RowError(
        f"output_mode='auto' cannot tell what the model gives: the outputs{name} for "
        f"{name_samples(indices)} all lie in [0, 1], but that for {name_samples(_at(indices, at))} "
        f"sums to {total:.6g}, not to 1. Three ways out: {_WAYS}"
    )


def check_still_logits(rows: Array, members: Sequence[int], indices: Indices, tol: float) -> None:
    """Raise where "auto" took the first batch for logits and all of these outputs are probabilities.

    Args:
        members: the numbers of those to look at.
    """
    for name, part in _members(rows, members):
        good = _are_distributions(part, tol)
        if good.all():
            raise RowError(
                f"output_mode='auto' took the first batch for logits, but every output{name} for "
                f"{name_samples(indices)} is a distribution; say output_mode='logits' if they are "
                "logits all the same, or output_mode='probs' if the model gives probabilities"
            )
        if part.size >= _MANY_NUMBERS and _in_unit(part):
            raise _no_distribution(part, good, indices, name)


def twice_softmax(rows: Array, members: Sequence[int], tol: float) -> str | None:
    """What to say where output_mode="logits" is told of rows that are distributions, if only nearly."""
    for name, part in _members(rows, members):
        if _are_distributions(part, max(tol, _NEARLY)).all():
            was, now = float(part[0].max()), float(softmax(part[:1].astype(np.float32)).max())
            return (
                f"every output{name} of the first batch is a distribution already, and "
                f"output_mode='logits' applies a softmax to it: {was:.2f} is kept as {now:.2f}. Say "
                "output_mode='probs' if the model ends with a softmax"
            )
    return None


def check_kept(rows: Array, indices: Indices, tol: float) -> None:
    """Raise RowError unless rows are probabilities; the message names the dataset index."""
    try:
        check(rows, "probs", tol, int(indices[0]) if len(indices) else 0)
    except RowError:
        if isinstance(indices, np.ndarray):  # count rows by their samples, not by their places
            for i in range(len(rows)):
                check(rows[i : i + 1], "probs", tol, int(indices[i]))
        raise


def advice(was_auto: bool) -> str:
    """What to do about outputs that were taken for distributions and are none."""
    if was_auto:
        return (
            "output_mode='auto' took the first batch for probabilities, and these are no "
            f"distributions: {_WAYS}"
        )
    return f"output_mode='probs' uses outputs as they are: {_WAYS}"


def _at(indices: Indices, position: int) -> Indices:
    return indices[position : position + 1]
