"""Ways into other libraries: probly's types, and datasets as code elsewhere expects them.

What needs no adapter has none: scikit-learn estimators, Keras models and ONNX Runtime sessions go
into `fostore.FirstOrderDataGenerator` as they are, Hugging Face models and datasets into that of
`fostore.torch`. `fostore.interop.probly` imports probly when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fostore.pairing.dataset import FirstOrderDataset, PairedDataset
from fostore.reading.selection import Selection

if TYPE_CHECKING:
    from fostore.pairing.dataset import Pairs


__all__ = ["as_first_order_dataset"]


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
        from fostore.torch.dataset import FirstOrderDataset as OfTorch  # torch is loaded already

        side = OfTorch
    return side(base, store, input_getter, **options).as_pairs()
