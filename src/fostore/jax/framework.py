"""The JAX side of generation: device placement, softmax on the device, identity of pytrees."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from fostore import identity
from fostore.columns import is_frame, is_sparse, numbers_of
from fostore.errors import ArgumentError
from fostore.generate.framework import (
    Reading,
    Selection,
    device_mapper,
    refuse_torch_modules,
    says_out_of_memory,
    signature_of,
)
from fostore.generate.numpy_source import numpy_source
from fostore.generate.randomness import kept_random_states
from fostore.generate.source import Source
from fostore.schema import Array

_NAMES = {"cuda": "gpu"}


class JaxFramework:
    """See `fostore.generate.framework.Framework`."""

    name = "jax"
    tensor_name = "a jax.Array"

    def __init__(self, device: str, models: Sequence[Callable[..., Any]]) -> None:
        refuse_torch_modules(models)
        self._device = find_device(device)
        self.device = str(device)
        self.overlaps = self._device.platform != "cpu"

    def source(self, data: Any, reading: Reading) -> Source:
        return numpy_source(
            data,
            reading.batch_size,
            reading.input_getter,
            reading.collate_fn,
            numbers_only=True,
        )

    @contextmanager
    def running(self, models: Sequence[Callable[..., Any]]) -> Iterator[None]:
        with kept_random_states(), jax.default_device(self._device):
            yield

    def kept_random_states(self) -> AbstractContextManager[None]:
        return kept_random_states()

    def to_device(self, data: Any) -> Any:
        return to_device(data, self._device)

    def signature(self, model: Callable[..., Any]) -> inspect.Signature | None:
        return signature_of(model)

    def tensor(self, output: Any) -> Any | None:
        if isinstance(output, jax.Array):
            # Memory runs out when the work is done, not when it is handed over: wait for it here.
            output.block_until_ready()
            return output
        if isinstance(output, np.ndarray) and output.dtype != object:
            return output
        return None

    def is_floating(self, tensor: Any) -> bool:
        return bool(jnp.issubdtype(tensor.dtype, jnp.floating))

    def dtype_name(self, tensor: Any) -> str:
        return str(tensor.dtype.name)

    def stack(self, tensors: Sequence[Any]) -> Any:
        return jnp.stack(tuple(tensors), axis=1)

    def select(self, tensor: Any, selection: Selection) -> Any:
        wide = tensor.dtype == np.float64 or selection.dtype == "float64"
        if wide and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            return _select_wide(np.asarray(tensor), selection)
        half = selection.dtype == "float16" and selection.kind == "probs"
        stored = "float16" if half else "float64" if selection.dtype == "float64" else "float32"
        return _select(tensor, selection.temperature, selection.mode, selection.kind, wide, stored)

    def start_copy(self, tensor: Any) -> Any:
        if isinstance(tensor, jax.Array):
            tensor.copy_to_host_async()
        return tensor

    def finish_copy(self, copy: Any) -> Array:
        array = np.asarray(copy)
        return array.astype(np.float32) if array.dtype.kind != "f" else array

    def host(self, leaf: Any) -> Array | None:
        if is_frame(leaf):
            return None  # by its columns: see `fostore.columns.hashed_parts`
        if isinstance(leaf, (bool, int, float, str)) or not hasattr(leaf, "__array__"):
            return None
        array = np.asarray(leaf)
        return None if array.dtype == object else np.ascontiguousarray(array).reshape(array.shape)

    def out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError) or says_out_of_memory(error)

    def free_memory(self) -> None:
        return None

    def describe(self, model: Callable[..., Any]) -> dict[str, Any]:
        return describe(model)

    def software(self) -> dict[str, str]:
        return {"framework": "jax", "framework_version": str(jax.__version__)}


@functools.partial(jax.jit, static_argnames=("mode", "kind", "wide", "stored"))
def _select(x: Any, temperature: float, mode: str, kind: str, wide: bool, stored: str) -> Any:
    x = x.astype(jnp.float64 if wide else jnp.float32)
    if mode == "logits":
        x = x / temperature
        if kind == "probs":
            x = jax.nn.softmax(x, axis=-1)
        elif kind == "log_probs":
            x = jax.nn.log_softmax(x, axis=-1)
    elif kind == "log_probs":
        x = jnp.log(x)
    return x.astype(stored)


def _select_wide(x: Array, selection: Selection) -> Array:
    """float64 without JAX's x64 mode: on the host, where NumPy has it."""
    from fostore.generate.framework import NumpyFramework

    return np.asarray(NumpyFramework("cpu", ()).select(x, selection))


def find_device(device: str) -> jax.Device:
    """A device by its kind, "cpu", "gpu" (or "cuda") or "tpu", and its number: "gpu:1"; else the first.

    Raises:
        ArgumentError: the kind is unknown, or this JAX has no such device; names those it has.
    """
    name, _, number = str(device).partition(":")
    kind = _NAMES.get(name, name)
    if kind not in ("cpu", "gpu", "tpu") or (":" in str(device) and not number.isdecimal()):
        raise ArgumentError(
            f"device is {device!r}, expected 'cpu', 'gpu', 'cuda' or 'tpu', or one with its number "
            "as in 'gpu:0'"
        )
    try:
        found = jax.local_devices(backend=kind)
        at = int(number or 0)
        if at < len(found):
            return found[at]
        raise ArgumentError(
            f"device is {device!r}, and this process has {len(found)} {kind} devices, from 0 on"
        )
    except RuntimeError:
        has = sorted({found.platform for found in jax.devices()} | {"cpu"})
        raise ArgumentError(
            f"device is {device!r}, and this JAX has only {', '.join(has)}; use device='cpu', or "
            "install JAX for the accelerator"
        ) from None


def to_device(data: Any, device: str | jax.Device = "cpu") -> Any:
    """Nested data (dicts, lists, tuples, named tuples) with every array on `device`.

    Integers stay integers; without JAX's x64 mode 64-bit numbers become 32-bit ones, as everywhere
    in JAX. Frames of numbers become arrays (n, columns), SciPy's sparse matrices BCOO. Strings, None and
    plain numbers stay as they are.

    >>> to_device({"ids": np.ones(2, np.int32), "text": "a"})
    {'ids': Array([1, 1], dtype=int32), 'text': 'a'}
    """
    place = find_device(device) if isinstance(device, str) else device

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, place)
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "biufcV":
            return jax.device_put(leaf, place)
        if is_frame(leaf):
            return jax.device_put(numbers_of(leaf), place)
        if is_sparse(leaf):
            return jax.device_put(BCOO.from_scipy_sparse(leaf), place)
        return leaf

    return device_mapper(put, data)


def describe(model: Callable[..., Any]) -> dict[str, Any]:
    """The identity of a model: the leaves of a callable pytree or of a partial's arguments.

    A callable that is no pytree (a function, also a jit function) is opaque (see `identity`).
    """
    if isinstance(model, functools.partial):
        return identity.describe_callable(model, _leaves)
    paths, structure = jax.tree_util.tree_flatten_with_path(model)
    if jax.tree_util.treedef_is_leaf(structure):
        return identity.describe_callable(model, _leaves)
    tensors: dict[str, str] = {}
    opaque = False
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        entries = identity.hash_leaves(leaf)
        if entries is not None:
            tensors.update({f"{name}{inner}": entry for inner, entry in entries.items()})
        elif callable(leaf):
            tensors[name] = getattr(leaf, "__qualname__", type(leaf).__qualname__)
        else:
            opaque = True
    described = {"class": type(model).__qualname__, "tensors": tensors}
    return {**described, "opaque": True} if opaque else described


def _leaves(data: Any) -> dict[str, str] | None:
    entries: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(data)[0]:
        found = identity.hash_leaves(leaf)
        if found is None:
            return None
        name = jax.tree_util.keystr(path)
        entries.update({f"{name}{inner}": entry for inner, entry in found.items()})
    return entries
