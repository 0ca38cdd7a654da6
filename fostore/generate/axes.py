"""What the axes of an output are: samples first, classes last, members between where that is said.

Pure functions on shapes. An axis is never guessed: a shape that could mean two things is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate.samples import Indices, name_samples
from fostore.schema.row import Array

_Shape = tuple[int, ...]
ALIKE = 1e-2
"""So near are outputs of the same sample at another place of its batch, in half precision too."""


def check_axes(
    shape: _Shape, rows: int, indices: Indices, *, members: bool, name: str, usual: int | None
) -> None:
    """Raise unless an output is (rows, classes), or (rows, members, classes) where members are declared.

    Args:
        rows: samples that the model was given.
        name: how an output_transform reaches the output, such as "output.logits".
        usual: the rows of the batches before, if there were any.
    """
    if len(shape) == (3 if members else 2) and shape[0] == rows and 0 not in shape:
        return  # as of nearly every batch, for which no message is put together
    who = f"the model's output for {name_samples(indices)}"
    expected = f"({rows}, members, classes)" if members else f"({rows}, classes)"
    if len(shape) not in (2, 3) or 0 in shape[1:]:
        raise ArgumentError(
            f"{who} has the shape {shape}, expected {expected}; bring it into that shape in "
            f"output_transform{_both_classes(shape, rows)}"
        )
    if shape[0] != rows:
        if rows in shape[1:]:
            raise swapped(shape, shape.index(rows, 1), rows, indices, name)
        always = usual is not None and shape[0] == usual
        raise ArgumentError(
            f"the model gave {shape[0]} rows for the {rows} samples of a batch "
            f"({name_samples(indices)}); every sample needs one row, and no collate_fn may "
            "leave samples out"
            + (f" (a model that always gives {usual} needs pad_last=True)" if always else "")
        )
    if len(shape) == 3 and not members:
        raise ArgumentError(f"{who} has three axes, {shape}; {_one_row(name)}")
    if len(shape) == 2 and members:
        raise ArgumentError(
            f"{who} has the shape {shape}, and members=True says {expected}; leave members= out "
            "for a model that gives one distribution a sample"
        )


def refuse_tokens(shape: _Shape, inputs: Any, indices: Indices) -> None:
    """Raise where what is declared to be members are the tokens of a language model's input."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if ids is not None and len(shape) == 3 and _shape(ids) == shape[:2]:
        raise ArgumentError(
            f"the model's output for {name_samples(indices)} has the shape {shape}, and axis 1 counts the "
            f"{shape[1]} tokens of 'input_ids', no members: rows='tokens' makes a row a token"
        )


def check_sequences(shape: _Shape, expected: tuple[int, int], indices: Indices, name: str) -> None:
    """Raise unless an output is (sequences, length, classes) of the sequences that the model was given."""
    if len(shape) == 3 and shape[:2] == expected:
        return
    rows, length = expected
    who = f"the model's output for {name_samples(indices)} has the shape {shape}"
    if len(shape) == 3 and shape[:2] == (length, rows):
        cure = f"; use output_transform=lambda output: {name}.swapaxes(0, 1)"
    elif len(shape) == 2:
        cure = "; leave rows= out for a model that gives one distribution a sequence"
    else:
        cure = "; bring it into that shape in output_transform: row t is what is given at token t"
    raise ArgumentError(
        f"{who}, expected ({rows}, {length}, classes): a distribution for each of the {length} tokens of "
        f"{rows} sequences{cure}"
    )


def check_member(shape: _Shape, number: int, rows: int, indices: Indices, name: str) -> None:
    """Raise unless a model of a list gives two axes: it is one member."""
    if len(shape) != 2:
        raise ArgumentError(
            f"model {number} of the list gives the shape {shape} for {name_samples(indices)}, and "
            f"each model of a list is one member, ({rows}, classes); generate it alone: there, "
            f"{_one_row(name)}"
        )


def check_same(row: _Shape, before: _Shape, indices: Indices) -> None:
    """Raise where rows of a batch have another shape than those before."""
    if row == before:
        return
    length = ""
    if len(row) == len(before):
        axis = next(i for i, (now, then) in enumerate(zip(row, before, strict=True)) if now != then)
        length = (
            f". If axis {axis + 1} is the length T of sequences that are padded by batch (T is "
            f"{row[axis]} here and was {before[axis]}), pad every batch to one T in a collate_fn"
        )
        if len(row) > 1:
            length += (
                ", or choose one place in output_transform, such as lambda output: output[:, -1] "
                "(pad on the left)"
            )
    raise ArgumentError(
        f"the model gives rows of shape {row} for {name_samples(indices)}, and gave {before} "
        f"before; every sample needs the same classes{length}"
    )


def turned(before: Array, after: Array, others: Sequence[int]) -> list[int]:
    """The axes, but the first, on which an output turned by one place as its samples did.

    Empty where the first axis turned, or where nothing shows it.

    >>> rows = np.arange(9.0).reshape(3, 3)
    >>> turned(rows, np.roll(rows, -1, 1), [1]), turned(rows, np.roll(rows, -1, 0), [1])
    ([1], [])
    """

    def is_turned(axis: int) -> bool:
        expected = np.roll(before, -1, axis)
        scale = float(np.abs(before).max())
        return bool(np.allclose(after, expected, rtol=ALIKE, atol=ALIKE * scale))

    if before.shape != after.shape or is_turned(0):
        return []
    return [axis for axis in others if is_turned(axis)]


def swapped(shape: _Shape, axis: int, rows: int, indices: Indices, name: str) -> ArgumentError:
    """The error where another axis than the first counts the samples."""
    fewer = " (other samples showed it: that axis followed them)" if shape[0] == rows else ""
    cure = f"output_transform=lambda output: {name}.swapaxes(0, {axis})"
    members = " (and members=True if the other one counts members)" if len(shape) == 3 else ""
    return ArgumentError(
        f"the model's output for {name_samples(indices)} has the shape {shape}, and axis {axis} "
        f"counts the {rows} samples, not axis 0{fewer}; use {cure}{members}"
    )


def taken_apart(value: Any, rows: int) -> tuple[str, str]:
    """What a model gave that is no array, and the transform that takes the distributions out of it."""
    what = type(value).__name__
    if isinstance(value, Mapping):
        likely = [key for key, part in value.items() if _shape(part)[:1] == (rows,)]
        key = likely[0] if likely else next(iter(value), "logits")
        return f"{what} with the keys {list(value)[:6]}", f"lambda output: output[{key!r}]"
    if isinstance(value, (list, tuple)):
        listed = ", ".join(f"{type(part).__name__} {_shape(part)}" for part in value[:6])
        return f"{what} of {len(value)}: {listed}", _one_of([_shape(part) for part in value], rows)
    if value is None:
        return "None", "lambda output: ... (does the model end with a return?)"
    named = vars(value) if hasattr(value, "__dict__") else {}
    likely = [name for name, part in named.items() if _shape(part)[:1] == (rows,)]
    return what, f"lambda output: output.{likely[0] if likely else 'logits'}"


def _one_of(shapes: Sequence[_Shape], rows: int) -> str:
    if len(shapes) == rows and all(len(shape) == 1 for shape in shapes):
        return "np.stack (torch.stack), which makes one array of a list of rows"
    likely = [number for number, shape in enumerate(shapes) if shape[:1] == (rows,)]
    cure = f"lambda output: output[{likely[0] if likely else 0}]"
    if len(shapes) == len(likely) > 1 and len(set(shapes)) == 1 and len(shapes[0]) == 2:
        cure += (
            "; if all of them are members, members=True and lambda output: np.stack(output, axis=1) "
            "(torch.stack)"
        )
    return cure


def _shape(part: Any) -> _Shape:
    return tuple(getattr(part, "shape", ()))


def _one_row(name: str) -> str:
    return (
        "only members=True makes that (samples, members, classes), and of a language model rows='tokens' "
        "makes a row a token. Else a row is one distribution, "
        f"which output_transform chooses: lambda output: {name}[:, -1] is the last token of a "
        f"language model (pad on the left), {name}.mean(-1) leaves out places (time, pixels) that "
        f"come after the classes, {name}[:, 0] is the first query of a detector"
    )


def _both_classes(shape: _Shape, rows: int) -> str:
    if shape != (rows,):
        return ""
    return "; for the one number of a binary model return both classes, such as [1 - p, p]"
