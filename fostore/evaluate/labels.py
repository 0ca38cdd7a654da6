"""Labels: one class a sample, from an array, a list of names, a mapping or a file, checked against the rows."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError
from fostore.evaluate.rows import Rows
from fostore.files._flat import Flat
from fostore.files.npy import read_header
from fostore.places.names import local_path
from fostore.schema.row import Array

_HEAD_BYTES, _ROW_BYTES = 1 << 16, 1 << 10
"""What a file of labels may have, beside and for each row."""


def labels_of(labels: Any, rows: Rows) -> Array:
    """The class of each row, int64 (num_samples,).

    Args:
        labels: class numbers, or class names where the store has them: an array, a list, a mapping
            by index, or a file (`.npy`, or text with one label a line); None: those that the store keeps.

    Raises:
        ArgumentError: not one a row, no class of these rows, or no labels; names the first.
    """
    if labels is None:
        labels = stored_labels(rows)
        if labels is None:
            raise ArgumentError(
                f"{rows.where} keeps no labels; give labels=, or generate with keep_labels=True"
            )
    if isinstance(labels, (str, os.PathLike)):
        labels = _read(local_path(labels), rows)
    if isinstance(labels, Mapping):
        missing = next((key for key in rows.indices.tolist() if key not in labels), None)
        if missing is not None:
            raise ArgumentError(f"sample {missing} of {rows.where} has no label")
        labels = [labels[key] for key in rows.indices.tolist()]
    if hasattr(labels, "detach"):  # a torch tensor
        labels = labels.detach().cpu()
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) != rows.count:
        raise ArgumentError(
            f"labels have the shape {array.shape}, expected one label for each of the {rows.count} "
            f"rows of {rows.where}"
        )
    if array.dtype.kind == "U":
        return _numbers_of_names(array, rows)
    # Floats are refused even where they are whole: a column of probabilities begins with 0.0 as well.
    if array.dtype.kind not in "iub" and len(array):
        hint = ""
        if array.dtype.kind == "f" and np.isnan(array).any():
            hint = f" (label {int(np.argmax(np.isnan(array)))} is NaN)"
        raise ArgumentError(f"labels are {array.dtype}{hint}, expected class numbers (integers)")
    bad = (array < 0) | (array >= rows.num_classes)
    if bad.any():
        row = int(np.argmax(bad))
        raise ArgumentError(
            f"the label of row {row} is {array[row]}, expected 0 to {rows.num_classes - 1}: "
            f"{rows.where} has {rows.num_classes} classes"
        )
    return array.astype(np.int64)


def stored_labels(rows: Rows) -> Array | None:
    """The labels that a store keeps beside these rows; None where it keeps none."""
    return None if rows.stored is None else rows.stored.labels


def _numbers_of_names(array: Array, rows: Rows) -> Array:
    if rows.class_names is None:
        raise ArgumentError(
            f"labels are names such as {array[0].item()!r}, and {rows.where} has no class names; "
            "give class numbers"
        )
    numbers = {name: i for i, name in enumerate(rows.class_names)}
    try:
        return np.array([numbers[name] for name in array.tolist()], np.int64)
    except KeyError as error:
        known = ", ".join(rows.class_names[:5])
        raise ArgumentError(
            f"label {error.args[0]!r} is no class of {rows.where}, which has {known} ..."
        ) from None


def _read(path: Path, rows: Rows) -> Array:
    try:
        raw = disk.read_named(path, _HEAD_BYTES + _ROW_BYTES * rows.count, "a file of labels")
        if path.suffix.lower() == ".npy":
            return _of_npy(path, raw)
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ArgumentError(f"labels cannot be read from {str(path)!r}: {error}") from error
    # Numbers may stand several to a line, names may hold spaces.
    lines = text.split()
    if all(line.removeprefix("-").isdecimal() for line in lines):
        return _numbers_of_digits(lines, rows, path)
    return np.array(text.splitlines())


def _of_npy(path: Path, raw: bytes) -> Array:
    """The array of a file; NumPy would first take what its header claims."""
    file = io.BytesIO(raw)
    dtype, shape, fortran = read_header(file, str(path))
    Flat(path, file.tell(), dtype, shape).check(len(raw) - file.tell(), str(path))
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.ndarray(shape, dtype, raw, file.tell(), order=order)


def _numbers_of_digits(lines: list[str], rows: Rows, path: Path) -> Array:
    """Class numbers; where classes are named by digits ("1", "2", "3"), names if they can be nothing else."""
    try:
        numbers = np.array([int(line) for line in lines], np.int64)
    except (ValueError, OverflowError) as error:  # of thousands of digits; of more than 64 bits
        raise ArgumentError(
            f"{str(path)!r} has the label {max(lines, key=len):.40}, expected class numbers"
        ) from error
    by_name = {name: i for i, name in enumerate(rows.class_names or ())}
    if not all(line in by_name for line in lines):
        return numbers
    named = np.array([by_name[line] for line in lines], np.int64)
    if (numbers < rows.num_classes).all() and (numbers != named).any():
        row = int(np.argmax(numbers != named))
        raise ArgumentError(
            f"label {lines[row]!r} of {str(path)!r} may be class number {numbers[row]} or the class "
            f"named so, number {named[row]}; give an .npy of integers for numbers, of texts for names"
        )
    return named
