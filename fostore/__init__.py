"""fostore: a store for first-order data, the predictive distributions p(Y|x) of a pre-trained model.

Importing this package costs NumPy and the standard library; every name below loads its module when
it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fostore.version import __version__

if TYPE_CHECKING:
    from fostore.conversion import convert as convert
    from fostore.conversion import stack as stack
    from fostore.encodings.class_map import ClassMap as ClassMap
    from fostore.encodings.topk_rows import TopK as TopK
    from fostore.errors import FostoreError as FostoreError
    from fostore.generate.numpy_generator import FirstOrderDataGenerator as FirstOrderDataGenerator
    from fostore.generate.sizes import estimate_size as estimate_size
    from fostore.loading.loader import SimpleDataLoader as SimpleDataLoader
    from fostore.pairing import FirstOrderDataset as FirstOrderDataset
    from fostore.pairing import output_dataloader as output_dataloader
    from fostore.pairing import output_fo_dataloader as output_fo_dataloader
    from fostore.publishing import cite as cite
    from fostore.publishing import publish as publish
    from fostore.reading.store import Store as Store
    from fostore.reading.store import open as open
    from fostore.writing.create import create as create
    from fostore.writing.units import finish as finish
    from fostore.writing.units import missing as missing
    from fostore.writing.units import open_units as open_units
    from fostore.writing.units import plan as plan
    from fostore.writing.writer import Writer as Writer

_HOMES = {
    "convert": "fostore.conversion",
    "stack": "fostore.conversion",
    "create": "fostore.writing.create",
    "open": "fostore.reading.store",
    "Store": "fostore.reading.store",
    "TopK": "fostore.encodings.topk_rows",
    "ClassMap": "fostore.encodings.class_map",
    "Writer": "fostore.writing.writer",
    "FostoreError": "fostore.errors",
    "FirstOrderDataGenerator": "fostore.generate.numpy_generator",
    "FirstOrderDataset": "fostore.pairing",
    "SimpleDataLoader": "fostore.loading.loader",
    "output_dataloader": "fostore.pairing",
    "output_fo_dataloader": "fostore.pairing",
    "estimate_size": "fostore.generate.sizes",
    "plan": "fostore.writing.units",
    "open_units": "fostore.writing.units",
    "missing": "fostore.writing.units",
    "finish": "fostore.writing.units",
    "publish": "fostore.publishing",
    "cite": "fostore.publishing",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fostore' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
