"""What a tokenizer is known by: its name, what it was called with, and its vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fostore.schema import identity


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """The entries of an identity, `tokenizer` and `vocabulary`; without one, nothing.

    The vocabulary is what decides: a token is a number of it. A function is known by its code.

    >>> describe_tokenizer(None)
    {}
    """
    if tokenizer is None:
        return {}
    described = identity.describe_function(tokenizer) or {}
    inner = tokenizer
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = getattr(inner, "__self__", inner)  # a method of one, such as `encode`
    name = getattr(inner, "name_or_path", None) or getattr(inner, "name", None)
    if isinstance(name, str):
        described["name"] = name
    return {"tokenizer": described, "vocabulary": _vocabulary(inner)}


def _vocabulary(tokenizer: Any) -> str | None:
    """The hash of all tokens in the order of their numbers; None where it does not tell them."""
    tell = getattr(tokenizer, "get_vocab", None)
    numbers = tell() if callable(tell) else None
    if not isinstance(numbers, Mapping):
        return None
    listed = sorted((int(number), str(token)) for token, number in numbers.items())
    return identity.hash_values([f"{number} {token}" for number, token in listed])
