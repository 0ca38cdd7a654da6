"""Which library a model and its dataset are of, and the generator that runs it; nothing is imported to find out."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from fostore.errors import ArgumentError


def framework_of(model: Any, dataset: Any) -> str:
    """Which generator a model and a dataset need: "torch", "jax" or "numpy".

    Their objects come from libraries that are loaded already, so nothing is imported to find out.
    """
    first = model[0] if isinstance(model, (list, tuple)) and model else model
    while isinstance(first, functools.partial):
        first = first.func
    for framework, owns in _OWNS.items():
        library = sys.modules.get(framework)
        if library is not None and owns(library, first, dataset):
            return framework
    return "numpy"


def _is_of_torch(torch: Any, model: Any, dataset: Any) -> bool:
    data = torch.utils.data
    kinds = (torch.Tensor, data.Dataset, data.DataLoader)
    return isinstance(model, torch.nn.Module) or isinstance(dataset, kinds)


def _is_of_jax(jax: Any, model: Any, dataset: Any) -> bool:
    tree = jax.tree_util
    if isinstance(model, jax.stages.Wrapped) or not tree.all_leaves([model]):
        return True
    return any(isinstance(leaf, jax.Array) for leaf in tree.tree_leaves(dataset))


_OWNS = {"torch": _is_of_torch, "jax": _is_of_jax}
"""Whether a framework is meant, asked of its library where that is loaded: a new one is a line here."""


def generator_of(framework: str) -> Any:
    """The `FirstOrderDataGenerator` of a framework.

    Raises:
        ArgumentError: it is not installed.
    """
    module = "fostore" if framework == "numpy" else f"fostore.{framework}"
    try:
        return importlib.import_module(module).FirstOrderDataGenerator
    except ModuleNotFoundError as error:
        if error.name != framework:
            raise
        raise ArgumentError(
            f"--framework {framework}: {framework} is not installed; pip install {framework}"
        ) from error
