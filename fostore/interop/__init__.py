"""Ways into other libraries: probly's types, and datasets as code elsewhere expects them.

What needs no adapter has none: scikit-learn estimators, Keras models and ONNX Runtime sessions go
into `fostore.FirstOrderDataGenerator` as they are, Hugging Face models and datasets into that of
`fostore.torch`. `fostore.interop.probly` imports probly when it is called.
"""

from __future__ import annotations

from fostore.interop.pairs import as_first_order_dataset

__all__ = ["as_first_order_dataset"]
