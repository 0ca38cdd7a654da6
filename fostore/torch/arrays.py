"""Lists of numbers, frames and sparse rows as tensors: what torch's own collation takes apart or refuses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from fostore.containers.collate import stack_numbers
from fostore.containers.columns import is_frame, is_sparse, numbers_of
from fostore.generate.memory import copied_leaf
from fostore.nested import PerSample, has_numbers, is_numbers, map_leaves, map_numbers, pick


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype as a schema and an identity name it."""
    return str(tensor.dtype).removeprefix("torch.")


class _Value:
    """A list of numbers of one sample, of a type that tells collation it is one value."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: list[Any]) -> None:
        self.numbers = numbers


class Held:
    """Numbers of a batch as the dataset has them, until a model takes them: `to` makes tensors of them.

    They are hashed as they are here, so that an input has the same hash on every side.
    """

    __slots__ = ("keeps", "numbers")

    def __init__(self, numbers: Any, keeps: bool = False) -> None:
        """`numbers`: an array, a frame, a sparse matrix, or a `PerSample` of lists; `keeps` their dtype."""
        self.numbers, self.keeps = numbers, keeps

    @property
    def shape(self) -> tuple[int, ...]:
        return getattr(self.numbers, "shape", None) or (len(self.numbers),)

    def __getitem__(self, rows: Any) -> Held:
        return Held(pick(self.numbers, rows), self.keeps)

    def copy(self) -> Held:
        """The same numbers in memory of their own."""
        return Held(copied_leaf(self.numbers), self.keeps)

    def to(self, device: Any, **options: Any) -> Any:
        """Tensors on a device, of the default dtype where the numbers are float64."""
        made = tensors_of(self.numbers, keeps=self.keeps)
        return map_leaves(
            lambda one: one.to(device) if isinstance(one, torch.Tensor) else one, made
        )


def tensors_of(batch: Any, *, keeps: bool = False) -> Any:
    """A frame, sparse matrix, array or `PerSample` of lists of numbers as tensors; else what came.

    float64 becomes torch's default dtype (float32), as `torch.as_tensor` makes of Python's floats,
    unless the numbers are NumPy's (`keeps`).
    """
    if isinstance(batch, PerSample):
        return PerSample(_tensor_of_list(one) if is_numbers(one) else one for one in batch)
    if is_sparse(batch):
        return _sparse(batch)
    made = numbers_of(batch) if is_frame(batch) else batch
    if not isinstance(made, np.ndarray):
        return batch
    tensor = torch.from_numpy(_own(made))
    return tensor if keeps else _default(tensor)


def tensor_of(batch: Any) -> Any:
    """Rows of an array on disk or in memory, in a tensor of the same dtype; texts and objects as a list."""
    if not isinstance(batch, np.ndarray):
        return batch
    if batch.dtype.kind not in "biufc":
        return PerSample(batch.tolist())
    return torch.from_numpy(_own(batch))


def together(samples: Sequence[Any], collate_fn_map: Any = default_collate_fn_map) -> Any:
    """Torch's default_collate, for which a list of numbers is one value, and not a list of columns.

    Lists become one tensor (n, ...), or a list of tensors where they differ in length.
    """
    if not has_numbers(samples[0]):
        return collate(samples, collate_fn_map=collate_fn_map)
    return collate([map_numbers(_Value, one) for one in samples], collate_fn_map=collate_fn_map)


def together_held(samples: Sequence[Any]) -> Any:
    """The same, with lists of numbers held back (`Held`) until a model takes them."""
    return together(samples, {**default_collate_fn_map, _Value: _hold_values})


def _stack_values(batch: Any, *, collate_fn_map: Any = None) -> Any:
    held = _hold_values(batch)
    return tensors_of(held.numbers, keeps=held.keeps)


def _hold_values(batch: Any, *, collate_fn_map: Any = None) -> Held:
    values = [one.numbers if isinstance(one, _Value) else one for one in batch]
    first = values[0]
    while isinstance(first, list) and first:
        first = first[0]
    return Held(stack_numbers(values), isinstance(first, np.generic))


default_collate_fn_map[_Value] = _stack_values


def _tensor_of_list(values: list[Any]) -> Any:
    try:
        return torch.as_tensor(values)
    except (ValueError, TypeError):  # ragged within
        return values


def _default(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _own(array: Any) -> Any:
    """The array in memory of its own, row by row, in this machine's byte order.

    The columns of a frame lie one after the other: dropout would draw along these.
    """
    native = array.dtype.newbyteorder("=")
    flags = array.flags
    is_own = flags.writeable and flags.c_contiguous and array.base is None
    return array if is_own and array.dtype == native else np.array(array, native, order="C")


def _sparse(rows: Any) -> torch.Tensor:
    triples = rows.tocoo()
    places = torch.from_numpy(np.stack([triples.row, triples.col]).astype(np.int64))
    values = _default(torch.from_numpy(_own(triples.data)))
    with (
        warnings.catch_warnings()
    ):  # torch says once that sparse tensors are checked only on demand
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_coo_tensor(places, values, triples.shape, is_coalesced=True)
