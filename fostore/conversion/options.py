"""Options: what a user says of a conversion, as one value.

Imported when the command line starts, so nothing here loads NumPy. A new option is one field here, a parameter of
`convert` with its line in the docstring, a line of `fostore.cli.convert`, and whatever it does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fostore.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option of `fostore.convert`, which says what each means; in its order, with its defaults.

    Raises:
        ArgumentError: `exists` or `verify` is none of its words, or `rows` no slice that goes forward.
    """

    exists: Literal["fail", "overwrite", "resume"] = "fail"
    kind: Literal["probs", "log_probs", "logits", "counts"] | None = None
    dtype: str | None = None
    rows: slice | None = None
    classes: Sequence[int | str] | None = None
    member: int | None = None
    class_names: Sequence[str] | None = None
    ids: Any = None
    meta: Mapping[str, Any] | None = None
    source_format: str | None = None
    source_kind: Literal["probs", "log_probs", "logits", "counts", "percent"] | None = None
    source_dtype: str | None = None
    temperature: float | None = None
    source_tol: float | None = None
    id_column: str | None = None
    columns: Sequence[str] | None = None
    drop: Sequence[str] = ()
    delimiter: str | None = None
    decimal: str | None = None
    transpose: bool | None = None
    layout: Mapping[str, Any] | None = None
    config: str | os.PathLike[str] | None = None
    allow_lossy: bool = False
    allow_constant: bool = False
    receipt: str | os.PathLike[str] | None = None
    verify: Literal["none", "sample", "full"] = "full"
    max_memory: int = 512 << 20
    unit_rows: int | None = None
    progress: bool = True
    encoding: Any = None
    k: int | None = None
    rule: Literal["coarse", "uniform", "renorm", "zero"] | None = None
    temperatures: Sequence[float] | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.exists not in ("fail", "overwrite", "resume"):
            raise ArgumentError(
                f"exists is {self.exists!r}, expected 'fail', 'overwrite' or 'resume'"
            )
        if self.verify not in ("none", "sample", "full"):
            raise ArgumentError(
                f"verify is {self.verify!r}, expected one of {['none', 'sample', 'full']}"
            )
        forward = isinstance(self.rows, slice) and (self.rows.step is None or self.rows.step > 0)
        if self.rows is not None and not forward:
            raise ArgumentError(
                f"rows is {self.rows!r}, expected slice(start, stop) or slice(start, stop, step) with "
                "step > 0 (--rows start:stop:step)"
            )

    @property
    def selects(self) -> bool:
        """Whether anything but the numbers changes."""
        selections = (self.rows, self.classes, self.member, self.class_names, self.ids)
        return any(selection is not None for selection in selections)

    @property
    def changes(self) -> dict[str, Any]:
        """What is changed, as JSON, for the receipt and for going on."""
        changes: dict[str, Any] = {}
        if self.rows is not None:
            changes["rows"] = [self.rows.start, self.rows.stop, self.rows.step]
        for name in ("classes", "member", "kind", "dtype", "class_names"):
            value = getattr(self, name)
            if value is not None:
                changes[name] = list(value) if name in ("classes", "class_names") else value
        if self.ids is not None:
            changes["ids"] = len(self.ids)
        for name in ("encoding", "k", "rule", "temperatures"):
            value = getattr(self, name)
            if value is not None:
                changes[name] = list(value) if name == "temperatures" else value
        return changes


HINTS = {
    "format": "source_format",
    "kind": "source_kind",
    "dtype": "source_dtype",
    "class_names": "class_names",
    "temperature": "temperature",
    "tol": "source_tol",
    "id_column": "id_column",
    "columns": "columns",
    "drop": "drop",
    "delimiter": "delimiter",
    "decimal": "decimal",
    "transpose": "transpose",
    "layout": "layout",
    "config": "config",
}
"""The option by the field of `fostore.files.Hints` that it fills."""
