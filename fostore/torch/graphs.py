"""Graphs that were made in training mode: exported, traced and FX modules whose flags change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fostore.errors import ArgumentError

_SCRIPTED = {  # the positions of `p` and of the training flag
    "aten::dropout": (1, 2),
    "aten::dropout_": (1, 2),
    "aten::feature_dropout": (1, 2),
    "aten::alpha_dropout": (1, 2),
    "aten::feature_alpha_dropout": (1, 2),
    "aten::batch_norm": (None, 5),
}


def refuse_training_graph(module: nn.Module, draws: bool) -> None:
    """Raise for a graph in a module that trains whatever its flags say.

    With `draws` its dropout is welcome, a BatchNorm is not.
    """
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            # The inlined graph of the outermost module holds those of all that it calls.
            training = _scripted(part) if part is module else ()
        elif isinstance(part, torch.fx.GraphModule):
            training = _traced(part)
        else:
            continue
        for name in training:
            if not draws or "dropout" not in name:
                raise ArgumentError(
                    f"{type(part).__name__} is a graph that was made in training mode: it calls {name} "
                    "with training=True, and no eval() reaches it; call model.eval() before "
                    "torch.export.export, torch.jit.trace or symbolic_trace"
                )


def _scripted(module: Any) -> Iterator[str]:
    graph = module.inlined_graph
    for kind, (rate, flag) in _SCRIPTED.items():
        for node in graph.findAllNodes(kind):
            given = list(node.inputs())
            if _constant(given[flag]) is True and (rate is None or _constant(given[rate]) != 0.0):
                yield kind.removeprefix("aten::")


def _constant(value: Any) -> Any:
    return value.toIValue() if value.node().kind() == "prim::Constant" else None


def _traced(module: torch.fx.GraphModule) -> Iterator[str]:
    for node in module.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op != "call_function" or not ("dropout" in name or "batch_norm" in name):
            continue
        given = _arguments(node)
        trains = given.get("training", given.get("train"))
        if trains is True and given.get("p") != 0.0:
            yield name.partition(".")[0]


def _arguments(node: Any) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        names = [argument.name for argument in schema.arguments]
    else:
        names = list(inspect.signature(node.target).parameters)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
