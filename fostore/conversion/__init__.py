"""Conversion: any format to any other, checked row by row, with a receipt."""

from __future__ import annotations

from fostore.conversion.receipt import Receipt
from fostore.conversion.run import convert
from fostore.conversion.stacking import stack

__all__ = ["Receipt", "convert", "stack"]
