"""Placing nested NumPy arrays on devices, many at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from fostore.errors import ArgumentError
from fostore.jax.framework import find_device
from fostore.nested import map_leaves

Devices: TypeAlias = jax.Device | jax.sharding.Sharding
"""Where arrays go: one device, or several that share the batch axis."""


def find_devices(device: Any) -> Devices | None:
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


def is_accelerator(devices: Devices | None) -> bool:
    """Whether arrays go to devices of this process that are no CPUs.

    Several processes are no case of it: they would have to compute in the same order.
    """
    config: Any = jax.config
    each: Any = [devices or config.jax_default_device or jax.devices()[0]]
    if isinstance(devices, jax.sharding.Sharding):
        if not devices.is_fully_addressable:
            return False
        each = devices.device_set
    return all(str(getattr(one, "platform", one)).partition(":")[0] != "cpu" for one in each)


def _is_array(leaf: Any) -> bool:
    """Whether JAX has arrays of such a leaf: numbers, not text or objects."""
    if isinstance(leaf, jax.Array):
        return True
    if not isinstance(leaf, np.ndarray) or leaf.dtype.names is not None:
        return False
    # "V" is how NumPy sees the dtypes that JAX adds (bfloat16 and smaller), and raw bytes.
    return leaf.dtype.kind in "biufc" or (leaf.dtype.kind == "V" and leaf.dtype.type is not np.void)


def put(data: Any, devices: Devices | None) -> Any:
    """Nested data with every numeric array on a device, or split over several along its first axis.

    All arrays go in one call: alone, each costs about as much as gathering a small batch. On a CPU
    a float32 array that begins at a multiple of 64 bytes is taken as it lies, without a copy, and
    kept alive: nobody may write to it afterwards. Text and other objects stay as they are.
    """
    leaves: list[Any] = []

    def note(leaf: Any) -> Any:
        if _is_array(leaf):
            leaves.append(leaf)
        return leaf

    map_leaves(note, data)
    moved: Iterator[Any]
    if isinstance(devices, jax.sharding.Sharding) and not devices.is_fully_addressable:
        make: Any = jax.make_array_from_process_local_data
        moved = (make(devices, np.asarray(leaf)) for leaf in leaves)
    else:
        moved = iter(jax.device_put(leaves, devices))
    return map_leaves(lambda leaf: next(moved) if _is_array(leaf) else leaf, data)
