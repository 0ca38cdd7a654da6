"""Placing nested NumPy arrays on devices, many at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from fostore.errors import ArgumentError
from fostore.jax.framework import find_device
from fostore.nested import map_leaves

Place: TypeAlias = jax.Device | jax.sharding.Sharding
"""Where arrays go: one device, or several that share the batch axis."""


def find_place(device: Any) -> Place | None:
    """A device or a sharding from what a user says; None stays None, JAX's default device.

    Raises:
        ArgumentError: it is none of these, or names a device that is not there.
    """
    if device is None or isinstance(device, (jax.Device, jax.sharding.Sharding)):
        return device
    if isinstance(device, str):
        return find_device(device)
    raise ArgumentError(
        f"device is {type(device).__name__}, expected a name as 'cpu' or 'gpu:0', a jax.Device, a "
        "Sharding, or None for the default device"
    )


def is_accelerator(where: Place | None) -> bool:
    """Whether arrays go to devices of this process that are no CPUs.

    Several processes are no case of it: they would have to compute in the same order.
    """
    config: Any = jax.config
    devices: Any = [where or config.jax_default_device or jax.devices()[0]]
    if isinstance(where, jax.sharding.Sharding):
        if not where.is_fully_addressable:
            return False
        devices = where.device_set
    return all(str(getattr(d, "platform", d)).partition(":")[0] != "cpu" for d in devices)


def is_placeable(leaf: Any) -> bool:
    """Whether JAX has arrays of such a leaf: numbers, not text or objects."""
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray) or leaf.dtype.names is not None:
        return False
    # "V" is how NumPy sees the dtypes that JAX adds (bfloat16 and smaller), and raw bytes.
    return leaf.dtype.kind in "biufc" or (leaf.dtype.kind == "V" and leaf.dtype.type is not np.void)


def place(data: Any, where: Place | None) -> Any:
    """Nested data with every numeric array on a device, or split over several along its first axis.

    All arrays go in one call: alone, each costs about as much as gathering a small batch. On a CPU
    a float32 array that begins at a multiple of 64 bytes is taken as it lies, without a copy, and
    kept alive: nobody may write to it afterwards. Text and other objects stay as they are.
    """
    leaves: list[Any] = []

    def note(leaf: Any) -> Any:
        if is_placeable(leaf):
            leaves.append(leaf)
        return leaf

    map_leaves(note, data)
    placed: Iterator[Any]
    if isinstance(where, jax.sharding.Sharding) and not where.is_fully_addressable:
        make: Any = jax.make_array_from_process_local_data
        placed = (make(where, np.asarray(leaf)) for leaf in leaves)
    else:
        placed = iter(jax.device_put(leaves, where))
    return map_leaves(lambda leaf: next(placed) if is_placeable(leaf) else leaf, data)
