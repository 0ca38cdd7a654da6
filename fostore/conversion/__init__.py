"""Conversion: any format to any other, checked row by row, with a receipt.

The command line imports `options` from here when it starts, so the rest is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fostore.conversion.converting import convert as convert
    from fostore.conversion.receipt import Receipt as Receipt
    from fostore.conversion.stacking import stack as stack

_HOMES = {"Receipt": "receipt", "convert": "converting", "stack": "stacking"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
