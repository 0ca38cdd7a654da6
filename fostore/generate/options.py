"""What a generation is asked for: the parameters of generators and of `fostore generate`, spelled once.

Nothing here loads NumPy: the command line takes names, types and defaults from it at every call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fostore.errors import ArgumentError

_STORED = (
    "exists store_as dtype meta class_names ids views unit_rows accept_differences recheck keep_labels "
    "encoding k rule temperatures max_kl tokenizer shard"
).split()
"""What means nothing where rows stay in memory."""
TOKEN_ROWS = ("tokens", "labelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of a generator, then of `generate_distributions`, which says what each means; in their order."""

    device: str = "cpu"
    batch_size: int = 64
    output_mode: Literal["auto", "logits", "probs"] = "auto"
    output_transform: Callable[[Any], Any] | None = None
    input_getter: Callable[[Any], Any] | None = None
    model_name: str | None = None
    members: bool = False

    progress: bool = True
    store: str | os.PathLike[str] | None = None
    exists: Literal["resume", "fail", "overwrite"] = "resume"
    store_as: Literal["auto", "probs", "log_probs", "logits"] = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] = "auto"
    meta: Mapping[str, Any] | None = None
    class_names: Sequence[str] | None = None
    ids: Any = None
    views: Any = None
    rows: tuple[int, int] | str | None = None
    unit_rows: int | None = None
    commit_seconds: float = 1.0
    tol: float | None = None
    collate_fn: Callable[[Any], Any] | None = None
    temperature: float = 1.0
    pad_last: bool = False
    model_fingerprint: str | None = None
    dataset_fingerprint: str | None = None
    accept_differences: bool = False
    num_draws: int | None = None
    seed: int = 0
    recheck: bool = True
    keep_labels: bool = False
    encoding: str | Mapping[str, Any] | None = None
    k: int | None = None
    rule: str | None = None
    temperatures: Sequence[float] | None = None
    max_kl: float | None = None
    tokenizer: Any = None
    shard: Any = None

    @classmethod
    def of(cls, *given: Mapping[str, Any]) -> Options:
        """The options among other names; later mappings win."""
        # Locals hold `self` and the dataset as well: only names of options count.
        known = {
            name: value for names in given for name, value in names.items() if name in DEFAULTS
        }
        return cls(**known)

    def check_choices(self) -> None:
        """Raise ArgumentError for a value that is none of those that its type lists."""
        for name, choices in _choices().items():
            value = getattr(self, name)
            if value not in choices:
                raise ArgumentError(f"{name} is {value!r}, expected one of {list(choices)}")

    @property
    def only_stored(self) -> list[str]:
        """Names of what was given and needs a store."""
        given = [name for name in _STORED if not _is(getattr(self, name), DEFAULTS[name])]
        # what memory keeps anyway
        in_memory = {"store_as": "probs", "dtype": "float32"}
        return [name for name in given if in_memory.get(name) != getattr(self, name)]

    @property
    def of_tokens(self) -> str | None:
        """Which positions of sequences are rows, where a row is a token: one of `TOKEN_ROWS`."""
        return self.rows if isinstance(self.rows, str) else None

    @property
    def range(self) -> tuple[int, int] | None:
        """The rows that are asked for, where only some are."""
        return None if isinstance(self.rows, str) else self.rows

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the encoding that were given."""
        given = {"k": self.k, "rule": self.rule, "temperatures": self.temperatures}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def recorded_draws(self) -> dict[str, Any]:
        """What metadata say of draws, where there are any."""
        return {} if self.num_draws is None else {"num_draws": self.num_draws, "seed": self.seed}


DEFAULTS: Mapping[str, Any] = {one.name: one.default for one in fields(Options)}


@cache
def _choices() -> dict[str, tuple[Any, ...]]:
    kinds = get_type_hints(Options)
    return {name: get_args(one) for name, one in kinds.items() if get_origin(one) is Literal}


def _is(value: Any, default: Any) -> bool:
    # `==` with None would ask an array of ids element by element
    return value is None if default is None else bool(value == default)
