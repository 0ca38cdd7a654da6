"""Generation: streaming the distributions of a model over a dataset; one loop for all frameworks."""

from __future__ import annotations

from fostore.generate.generator import FirstOrderDataGenerator
from fostore.generate.sizes import estimate_size

__all__ = ["FirstOrderDataGenerator", "estimate_size"]
