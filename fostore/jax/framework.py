"""The JAX side of generation: device placement, softmax on the device, identity of pytrees."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from fostore.containers.columns import is_frame, is_sparse, numbers_of
from fostore.errors import ArgumentError
from fostore.generate.datasets import numpy_samples
from fostore.generate.framework import Framework, Kept, Model, refuse_torch_modules
from fostore.generate.memory import copied_leaf
from fostore.generate.numpy_framework import NumpyFramework
from fostore.generate.randomness import Draw
from fostore.generate.samples import Reading, Samples
from fostore.jax import nnx
from fostore.jax.topk import select_topk
from fostore.nested import map_leaves
from fostore.schema import identity

_NAMES = {"cuda": "gpu"}


def _key(draw: Draw) -> jax.Array:
    """The PRNG key of a draw."""
    key = jax.random.fold_in(jax.random.PRNGKey(draw.seed), draw.number)
    return jax.random.fold_in(key, draw.row)


class JaxFramework(Framework):
    """See `fostore.generate.framework.Framework`."""

    name = "jax"
    version = str(jax.__version__)
    compiles = True
    tensor_name = "a jax.Array"
    how_to_draw = (
        "let the model take a parameter key, which gets a PRNG key, as in lambda x, key: "
        "model.apply(variables, x, rngs={'dropout': key}); give a Flax NNX module with dropout as it is"
    )

    def __init__(self, device: str, models: Sequence[Model]) -> None:
        refuse_torch_modules(models)
        self._device = find_device(device)
        self.device = str(device)
        self.overlaps = self._device.platform != "cpu"
        self._streams = nnx.Streams()

    def samples(self, data: Any, reading: Reading) -> Samples:
        return numpy_samples(data, reading, numbers_only=True)

    @contextmanager
    def running(self, models: Sequence[Model], draws: bool = False) -> Iterator[None]:
        evaluating = nnx.evaluating(models, draws)
        with super().kept_random_states(), jax.default_device(self._device), evaluating as streams:
            self._streams = streams
            yield

    def describe(self, model: Model) -> dict[str, Any]:
        return describe(model)

    def see(self, item: Any) -> Any:
        return see(item)

    def random_state(self) -> Any:
        return super().random_state(), self._streams.state()

    random_parameters = {  # noqa: RUF012
        "key": _key,
        "rng": _key,
        "generator": Draw.generator,
        "seed": Draw.seed32,
    }

    def begin_draw(self, draw: Draw) -> None:
        super().begin_draw(draw)
        self._streams.seed(_key(draw))

    @contextmanager
    def kept_random_states(self) -> Iterator[None]:
        with super().kept_random_states(), self._streams.kept():
            yield

    def to_device(self, data: Any, *, copy: bool = False) -> Any:
        return to_device(data, self._device, copy=copy)

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

    def stack(self, tensors: Sequence[Any]) -> Any:
        return jnp.stack(tuple(tensors), axis=1)

    def keep(self, tensor: Any, kept: Kept) -> Any:
        wide = tensor.dtype == np.float64 or kept.dtype == "float64"
        if wide and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            # without JAX's x64 mode: on the host, where NumPy has float64
            return NumpyFramework("cpu", ()).keep(np.asarray(tensor), kept)
        # rounded on the device: half of the bytes to the host
        half = kept.dtype == "float16" and kept.kind == "probs"
        stored = "float16" if half else "float64" if kept.dtype == "float64" else "float32"
        return _keep(tensor, kept.temperature, kept.mode, kept.kind, wide, stored)

    def select(self, logits: Any, k: int, temperatures: Sequence[float], entropy: bool) -> Any:
        return select_topk(logits, k, temperatures, tail_entropy=entropy)

    def start_copy(self, tensor: Any) -> Any:
        if isinstance(tensor, jax.Array):
            tensor.copy_to_host_async()
        return tensor


@functools.partial(jax.jit, static_argnames=("mode", "kind", "wide", "stored"))
def _keep(x: Any, temperature: float, mode: str, kind: str, wide: bool, stored: str) -> Any:
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


def find_device(device: str) -> jax.Device:
    """A device by its kind, "cpu", "gpu" (or "cuda") or "tpu", and its number: "gpu:1"; else the first."""
    name, _, number = str(device).partition(":")
    kind = _NAMES.get(name, name)
    if kind not in ("cpu", "gpu", "tpu") or (":" in str(device) and not number.isdecimal()):
        raise ArgumentError(
            f"device is {device!r}, expected 'cpu', 'gpu', 'cuda' or 'tpu', or one with its number "
            "as in 'gpu:0'"
        )
    try:
        devices = jax.local_devices(backend=kind)
        at = int(number or 0)
        if at < len(devices):
            return devices[at]
        raise ArgumentError(
            f"device is {device!r}, and this process has {len(devices)} {kind} devices, from 0 on"
        )
    except RuntimeError:
        has = sorted({one.platform for one in jax.devices()} | {"cpu"})
        raise ArgumentError(
            f"device is {device!r}, and this JAX has only {', '.join(has)}; use device='cpu', or "
            "install JAX for the accelerator"
        ) from None


def to_device(data: Any, device: str | jax.Device = "cpu", *, copy: bool = False) -> Any:
    """Nested data (dicts, lists, tuples, named tuples) with every array on `device`.

    Integers stay integers; without JAX's x64 mode 64-bit numbers become 32-bit ones, as everywhere
    in JAX. Frames of numbers become arrays (n, columns), SciPy's sparse matrices BCOO. Strings, None and
    plain numbers stay as they are. Arrays are not committed to the device: a model whose parameters lie
    elsewhere, or over several devices, takes them there; an array that is spread over several devices
    stays so. With `copy`, JAX arrays are copied, so that a model may donate them.

    >>> to_device({"ids": np.ones(2, np.int32), "text": "a"})
    {'ids': Array([1, 1], dtype=int32), 'text': 'a'}
    """
    place = find_device(device) if isinstance(device, str) else device

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            if len(leaf.devices()) > 1 or leaf.devices() == {place}:
                return leaf.copy() if copy else leaf
            return jax.device_put(leaf, place)
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "biufcV":
            return jnp.asarray(leaf)
        if is_frame(leaf):
            return jnp.asarray(numbers_of(leaf))
        if is_sparse(leaf):
            return BCOO.from_scipy_sparse(leaf)
        return copied_leaf(leaf) if copy else leaf

    with jax.default_device(place):
        return map_leaves(put, data)


def describe(model: Callable[..., Any]) -> dict[str, Any]:
    """The identity of a model: the leaves of a callable pytree or of a partial's arguments, and details.

    A callable that is no pytree (a function, also a jit function) is known by its details alone: its
    code and what it captured (see `identity.Details`).
    """
    if isinstance(model, functools.partial):
        return identity.describe_callable(model, _leaves, see)
    paths, structure = jax.tree_util.tree_flatten_with_path(model)
    if jax.tree_util.treedef_is_leaf(structure):
        return identity.describe_callable(model, _leaves, see)
    tensors: dict[str, str] = {}
    known: list[Any] = []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        entries = identity.hash_leaves(leaf)
        if entries is not None:
            tensors.update({f"{name}{inner}": entry for inner, entry in entries.items()})
            known.append(leaf)
        elif callable(leaf):
            tensors[name] = getattr(leaf, "__qualname__", type(leaf).__qualname__)
    arrays = [leaf for leaf in known if isinstance(leaf, (jax.Array, np.ndarray))]
    details = identity.Details(see, known=arrays).of(model)
    return {"class": type(model).__qualname__, "tensors": tensors, **details}


def see(item: Any) -> Any:
    """See `identity.See`: arrays, keys, and what libraries keep as pytrees (variables of Flax)."""
    if isinstance(item, jax.Array):
        if jnp.issubdtype(item.dtype, jax.dtypes.prng_key):
            return f"key {identity.hash_leaves(jax.random.key_data(item))}"
        return (identity.hash_leaves(item) or {"": identity.UNSEEN})[""]
    if isinstance(item, jax.Device):
        return "a device"  # recorded elsewhere, and never compared
    if isinstance(item, (dict, list, tuple, type, types.FunctionType)) or callable(item):
        is_flax = hasattr(item, "_pytree__nodes") or _is_linen(item)
        return _settings(item) if is_flax and not isinstance(item, type) else None
    leaves, structure = jax.tree_util.tree_flatten_with_path(item)
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    # Settings too: a pytree's static fields are no leaves.
    return {**_settings(item), **{jax.tree_util.keystr(path): leaf for path, leaf in leaves}}


def _settings(item: Any) -> dict[str, Any]:
    """What an object holds, without what Flax notes about it."""
    notes = "_" if _is_linen(item) else "_pytree__"
    held = identity.attributes_of(item)
    return {name: value for name, value in held.items() if not name.startswith(notes)}


def _is_linen(item: Any) -> bool:
    return any(base.__module__.startswith("flax.linen.") for base in type(item).__mro__)


def _leaves(data: Any) -> dict[str, str] | None:
    entries: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(data)[0]:
        inner_entries = identity.hash_leaves(leaf)
        if inner_entries is None:
            return None
        name = jax.tree_util.keystr(path)
        entries.update({f"{name}{inner}": entry for inner, entry in inner_entries.items()})
    return entries
