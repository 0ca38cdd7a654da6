"""Options: what a user says of a conversion; the parameters of `convert` and the options of its command are these.

Imported when the command line starts, so nothing here loads NumPy. A new option is one field here, a parameter of
`convert` with its line in the docstring, and whatever it does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fostore.errors import ArgumentError

CHANGE, SOURCE, RUN = "What changes", "What the source does not say", "How it runs"
PANELS = (CHANGE, SOURCE, RUN)


def _option(
    default: Any,
    panel: str,
    help: str,
    *,
    hint: str | None = None,
    flag: str | None = None,
    **typer: Any,
) -> Any:
    """A field: where and how `--help` shows it, and the field of `fostore.files.Hints` that it becomes."""
    return field(
        default=default,
        metadata={"panel": panel, "help": help, "hint": hint, "flag": flag, "typer": typer},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option of `fostore.convert`, which says what each means; in its order, with its defaults.

    Raises:
        ArgumentError: `exists` or `verify` is none of its words.
    """

    exists: Literal["fail", "overwrite", "resume"] = _option(
        "fail", RUN,
        "What to do with a destination that is there: refuse, replace it when the new one is whole, or accept "
        "it if it holds the same rows.",
    )  # fmt: skip
    kind: Literal["probs", "log_probs", "logits", "counts"] | None = _option(
        None, CHANGE, "What a row becomes."
    )
    dtype: str | None = _option(None, CHANGE, "The numbers of a row: float32, float16, ...")
    rows: slice | None = _option(None, CHANGE, "Only these rows.", metavar="START:STOP[:STEP]")
    classes: Sequence[int | str] | None = _option(
        None, CHANGE,
        "Only these classes (names or numbers), in this order; probabilities are renormalised.",
        metavar="A,B,...",
    )  # fmt: skip
    member: int | None = _option(None, CHANGE, "Only this member of an ensemble.")
    class_names: Sequence[str] | None = _option(
        None, CHANGE, "Class names, in order.", hint="class_names", metavar="A,B,...|@FILE"
    )
    ids: Any = _option(None, CHANGE, "One key a row, one a line.", metavar="@FILE")
    meta: Mapping[str, Any] | None = _option(
        None, CHANGE,
        "Metadata to add; the value is JSON, or text where it is not. Repeat for more.",
        metavar="KEY=VALUE",
    )  # fmt: skip
    source_format: str | None = _option(
        None, SOURCE,
        "Its format, where the suffix does not say it: cifar10h, dcic, npy, jsonl ...",
        hint="format", flag="--from", metavar="FORMAT",
    )  # fmt: skip
    source_kind: Literal["probs", "log_probs", "logits", "counts", "percent"] | None = _option(
        None, SOURCE, "What its rows are.", hint="kind"
    )
    source_dtype: str | None = _option(None, SOURCE, "The numbers of a text file.", hint="dtype")
    temperature: float | None = _option(
        None, SOURCE, "By which its logits were divided.", hint="temperature"
    )
    source_tol: float | None = _option(None, SOURCE, "How far from 1 its rows may sum.", hint="tol")
    id_column: str | None = _option(
        None, SOURCE, "The column or array that says which sample a row is.",
        hint="id_column", metavar="NAME",
    )  # fmt: skip
    columns: Sequence[str] | None = _option(
        None, SOURCE, "The columns that are the classes, in order.",
        hint="columns", metavar="A,B,...|@FILE",
    )  # fmt: skip
    drop: Sequence[str] = _option(
        (),
        SOURCE,
        "Columns or arrays that are not looked at.",
        hint="drop",
        metavar="A,B,...|@FILE",
    )
    delimiter: str | None = _option(
        None,
        SOURCE,
        "Between the fields of a text file; a comma, in .tsv a tabulator.",
        hint="delimiter",
    )
    decimal: str | None = _option(
        None, SOURCE, "In the numbers of a text file; a point.", hint="decimal"
    )
    transpose: bool | None = _option(
        None, SOURCE, "Whether the axes of the array come last first, as MATLAB, Julia and R write them.",
        hint="transpose",
    )  # fmt: skip
    allow_lossy: bool = _option(
        False, RUN, "Do what cannot be undone bit by bit; the receipt states the error."
    )
    allow_constant: bool = _option(
        False, SOURCE,
        "Take rows that look as if nobody had written them: logits equal for all classes, one row again and "
        "again to the end.",
    )  # fmt: skip
    receipt: str | os.PathLike[str] | None = _option(
        None, RUN, "Write the receipt to this file, as JSON."
    )
    verify: Literal["none", "sample", "full"] = _option(
        "full", RUN, "How much of the result is read back and compared."
    )
    max_memory: int = _option(512 << 20, RUN, "About how much to use: 200M, 1G.", metavar="SIZE")
    unit_rows: int | None = _option(None, RUN, "Rows a unit of a store, a power of two.", min=1)
    progress: bool = _option(True, RUN, "A progress bar. Default: where stderr is a terminal.")

    def __post_init__(self) -> None:
        if self.exists not in ("fail", "overwrite", "resume"):
            raise ArgumentError(
                f"exists is {self.exists!r}, expected 'fail', 'overwrite' or 'resume'"
            )
        if self.verify not in ("none", "sample", "full"):
            raise ArgumentError(
                f"verify is {self.verify!r}, expected one of {['none', 'sample', 'full']}"
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
        return changes


def flag_of(name: str) -> str:
    """The option of the command line that says what the parameter `name` says."""
    return _FLAGS.get(name) or "--" + name.replace("_", "-")


_FLAGS = {one.name: one.metadata["flag"] for one in fields(Options)}
HINTS: dict[str, str] = {
    one.metadata["hint"]: one.name for one in fields(Options) if one.metadata["hint"]
}
"""The parameter of `convert` by the field of `fostore.files.Hints` that it fills."""
