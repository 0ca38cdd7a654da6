"""Memory of a model's input and output: copied where somebody else may hold it, and what says that it is used up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fostore.nested import map_leaves


def copied(data: Any) -> Any:
    """Nested data in memory that nobody else holds; strings and plain numbers stay as they are.

    >>> rows = np.zeros(2)
    >>> np.shares_memory(copied({"x": rows})["x"], rows)
    False
    """
    return map_leaves(copied_leaf, data)


def copied_leaf(leaf: Any) -> Any:
    """One array, or anything else that can copy itself, in memory of its own."""
    if isinstance(leaf, np.ndarray):  # strides stay, since they may decide how sums are rounded
        is_objects = leaf.dtype == object
        return copy.deepcopy(leaf) if is_objects else np.array(leaf, order="K", subok=True)
    # Tensors, graph batches and polars frames clone; JAX, sparse and pandas, images copy.
    clone = getattr(leaf, "clone", None) or getattr(leaf, "copy", None)
    return clone() if callable(clone) and not isinstance(leaf, type) else leaf


_EXHAUSTED = (
    "out of memory",  # CUDA, HIP, MPS, XPU
    "resource_exhausted",  # XLA
    "oom when allocating",  # TensorFlow
    "can't allocate memory",  # torch on a CPU, and on Windows:
    "not enough memory",
    "failed to allocate memory",  # ONNX Runtime, also as "smaller than requested bytes"
    "smaller than requested bytes",
    "bad_alloc",
    "bad allocation",
    "status_alloc_failed",  # cuBLAS, cuDNN
)


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error's text speaks of exhausted memory, as the libraries put it.

    >>> says_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    """
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _EXHAUSTED)
