"""The keywords of a paired dataset, as those who hand them on write them."""

from __future__ import annotations

from typing import Any, TypedDict


class PairOptions(TypedDict, total=False):
    """The keywords of a paired dataset, for those who hand them on."""

    ids: Any
    check: str
    target_key: str | None
    dtype: str | None
    as_kind: str
    temperature: float | None
    rule: str | None
    layout: str
    pad_length: int | None
    class_map: Any
    tokenizer: Any
