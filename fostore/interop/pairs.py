"""A base dataset and a store as first-order data: (input, distribution), `targets` and `classes`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fostore.pairing.dataset import FirstOrderDataset, PairedDataset, Pairs
from fostore.reading.selection import Selection


def as_first_order_dataset(
    base: Any,
    store: Mapping[int, Any] | Selection | str | os.PathLike[str],
    *,
    input_getter: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Pairs:
    """Exactly (input, distribution) for each sample, whatever labels the base dataset has.

    The shape in which torchvision and probly have datasets of human uncertainty (CIFAR-10H):
    `targets` holds all distributions (read-only, mapped where the store has them so), `classes`
    the name of each class.

    Args:
        base: a dataset. Of a torch dataset the distributions are float32 tensors, else float32 arrays.
        store: a `Store`, a `Selection`, a path, or a mapping of dataset indices.
        input_getter: gets one sample, returns its input.
        options: `ids`, `check`, `dtype`, ... of `FirstOrderDataset`.

    Raises:
        ArgumentError, IdentityError: as `FirstOrderDataset`, which checks the pairing.

    >>> pairs = as_first_order_dataset([("cat", 0), ("dog", 1)], {0: [0.9, 0.1], 1: [0.2, 0.8]})
    >>> pairs[1], pairs.classes
    (('dog', array([0.2, 0.8], dtype=float32)), ['0', '1'])
    """
    side: type[PairedDataset] = FirstOrderDataset
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(base, torch.utils.data.Dataset):
        from fostore.torch.dataset import FirstOrderDataset as OfTorch

        side = OfTorch
    return side(base, store, input_getter, **options).as_pairs()
