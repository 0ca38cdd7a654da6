"""A model that holds a bit of everything, for tests/test_details.py and the processes that it starts."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import string
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

TABLE = {"a": [1, 2], "b": {"x", "y", "z"}}


def helper(x: Any) -> Any:
    return x * TABLE["a"][0]


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Setting:
    factor: float = 1.0
    names: tuple[str, ...] = ("a", "b")


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Model:
    """Holds a bit of everything."""

    shared: ClassVar = [1, 2]

    def __init__(self, **parts: Any) -> None:
        self.weight = np.arange(6.0).reshape(2, 3)
        self.words = {"b", "a", "c", "d"}
        self.setting = Setting()
        self.slotted = Slotted(3)
        self.queue = collections.deque([1, "a"])
        self.color = Color.RED
        self.path = Path("somewhere")
        self.dtype = np.dtype("float32")
        self.log = logging.getLogger("teacher")
        self.lock = threading.Lock()
        self.part = functools.partial(helper, x=1)
        self.kind = int
        self.hashed = string.Template("of a library")
        vars(self.hashed)["_original_object_hash"] = hash(
            "as transformers has one in a configuration"
        )
        self.itself = self
        vars(self).update(parts)

    @property
    def scale(self) -> float:
        return 1.0

    @staticmethod
    def double(x: Any) -> Any:
        return x * 2

    def __call__(self, x: Any) -> Any:
        return helper(self.double(x)) * self.scale
