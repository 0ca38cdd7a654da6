"""The k largest classes of distributions and what the rest weighs: as a device selects, and as a store gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fostore.nested import Arrays

RULES = ("coarse", "uniform", "renorm", "zero")
"""What a reader makes of the classes that are not kept (spec/encodings.md)."""


class Selected(NamedTuple):
    """What was selected of n rows before anything is rounded, as `Writer.append` takes it for a store of top-k rows.

    So k numbers a row leave a device, not all of them. Arrays of one framework; `...` is (n,) or (n, num_members).
    The weight of a class is its number for probs, and exp of its number for log_probs and logits.
    """

    values: Any
    """(..., k), floats: the k largest numbers of the store's kind, largest first, of equal ones the smaller class
    first; logits minus the row's maximum, so that the first is 0."""
    ids: Any
    """(..., k), integers: the class of each value."""
    residual: Any
    """(...), floats: the log of what the classes that were not selected weigh together; minus infinity is nothing."""
    logsumexp: Any = None
    """(...), floats: of the logits as the model gave them; None for probs and log_probs."""
    residual_t: Any = None
    """(..., len(temperatures)): as `residual`, of the weights to the power of 1 / temperature."""
    tail_entropy: Any = None
    """(...): the entropy in nats of the distribution over the classes that were not selected; 0 of none."""


def masses(topk: TopK) -> np.ndarray[Any, Any]:
    """The probabilities of the kept classes and, as the last, of all others together: NumPy, float64, (..., k + 1)."""
    logs = np.concatenate([topk.values, topk.residual[..., None]], axis=-1, dtype=np.float64)
    weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
    probs: np.ndarray[Any, Any] = weights / weights.sum(axis=-1, keepdims=True)
    return probs


@dataclass(frozen=True, slots=True)
class TopK(Arrays):
    """The k largest classes of n distributions; arrays of NumPy, torch or JAX. `topk[rows]` are some of them.

    Weights are logarithms on one scale a row: p of a kept class is exp(values) / Z, where Z is the sum of all
    weights that `rule` counts. `...` is (n,) or (n, num_members); of padded sequences (sequences, length).
    """

    values: Any
    """(..., k), floats: log-weights of the kept classes, largest first; minus infinity is no weight."""
    ids: Any
    """(..., k), unsigned integers (int64 in torch): the class of each value. One without weight only fills its row
    up: losses count its class, which may be there twice, among the others."""
    residual: Any
    """(...), floats: the log-weight of all classes that are not kept, together; minus infinity is none."""
    num_classes: int
    rule: str = "coarse"
    """What the store asks for where nobody asks for another; one of `RULES`."""
    temperatures: tuple[float, ...] = ()
    residual_t: Any = None
    """(..., len(temperatures)), floats: the log-weight of the others of the row softened by each temperature;
    kept weights at T are exp(values / T). None where `temperatures` is empty."""
    derived: bool = False
    """Whether the residual was worked out from the kept classes by an importer, so that rounding is in it."""

    def map(self, function: Callable[[Any], Any]) -> TopK:
        """The same with `function` of each array, such as `torch.from_numpy` or a move to a device."""
        softened = None if self.residual_t is None else function(self.residual_t)
        return replace(
            self,
            values=function(self.values),
            ids=function(self.ids),
            residual=function(self.residual),
            residual_t=softened,
        )

    def __len__(self) -> int:
        return len(self.residual)

    def __getitem__(self, rows: Any) -> TopK:
        return self.map(lambda array: array[rows])

    # No sequence of rows to those who look into batches: training loops of others would take each row for a batch.
    __iter__ = None
