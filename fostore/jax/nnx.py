"""Flax NNX modules during generation: evaluation mode, dropout alone for draws, all as before afterwards.

Flax is loaded where a model of it is given; nothing here imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from fostore.errors import ArgumentError
from fostore.generate.reach import reached

_FLAGS = ("deterministic", "use_running_average")
_NONE = object()


class Streams:
    """The random streams that modules hold, in a fixed order."""

    def __init__(self, streams: Sequence[Any] = ()) -> None:
        self._streams = streams

    def state(self) -> tuple[int, ...]:
        """How often each was drawn from."""
        return tuple(int(stream.count[...].sum()) for stream in self._streams)

    def seed(self, key: Any) -> None:
        """Begin each anew from a key of its own, a function of `key`."""
        for number, stream in enumerate(self._streams):
            old = stream.key[...]
            # By way of bits: keys of another implementation have another size.
            words = jax.random.bits(jax.random.fold_in(key, number), (2,))
            new = jax.random.key(int(words[0]), impl=jax.random.key_impl(old))
            new = jax.random.fold_in(new, words[1])
            stream.key[...] = jax.random.split(new, old.shape) if old.shape else new
            stream.count[...] = jax.numpy.zeros_like(stream.count[...])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block after which every stream stands where it stood."""
        before = [(stream, stream.key[...], stream.count[...]) for stream in self._streams]
        try:
            yield
        finally:
            for stream, key, count in before:
                stream.key[...], stream.count[...] = key, count


@contextmanager
def evaluating(models: Sequence[Callable[..., Any]], draws: bool) -> Iterator[Streams]:
    """NNX modules behind models in evaluation mode; with `draws`, dropout stays on. Gives their streams."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        yield Streams()
        return
    modules = []
    for item in reached(models, lambda item: isinstance(item, (nnx.Module, nnx.GraphDef))):
        if isinstance(item, nnx.Module):
            modules.append(item)
        elif isinstance(item, nnx.GraphDef):
            _refuse_training(item)
    nodes = {id(node): node for one in modules for _, node in nnx.iter_graph(one)}
    parts = [node for node in nodes.values() if isinstance(node, nnx.Module)]
    streams = Streams([node for node in nodes.values() if isinstance(node, nnx.RngStream)])
    # As they are in `vars`: eval() sets flags on parts that had none, and these go again.
    flags = [(part, name, vars(part).get(name, _NONE)) for part in parts for name in _FLAGS]
    with streams.kept():
        try:
            for module in modules:
                module.eval()
            for part in parts if draws else ():
                if hasattr(part, "deterministic") and not hasattr(part, "use_running_average"):
                    part.deterministic = False
            yield streams
        finally:
            for part, name, value in flags:
                if value is not _NONE:
                    setattr(part, name, value)
                elif name in vars(part):
                    delattr(part, name)


def _refuse_training(graph: Any) -> None:
    for attribute in getattr(graph, "attributes", ()):
        name, value = attribute[0], getattr(attribute[1], "value", None)
        if name in _FLAGS and value is False:
            raise ArgumentError(
                f"the model holds a flax GraphDef with {name}=False: it was split in training mode, "
                "and no eval() reaches it; call model.eval() before nnx.split or nnx.cached_partial "
                "(for draws of dropout give the module itself)"
            )
