"""Figures as JSON: numbers that JSON has not, NaN and the infinities, become null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def figures(value: Any) -> Any:
    """A figure, an array or a dataclass of them as JSON has it; one with `to_json` speaks for itself."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {field.name: figures(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: figures(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [figures(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
