"""Receipt: what a conversion read, what it wrote, and what was lost between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fostore.schema.jsontext import dumps
from fostore.schema.shown import Grid, Shown, tabled

_SOURCE = {
    "full": "",
    "part": ", the source in part",
    "none": "; the source keeps no checksum of its own",
}


@dataclass(frozen=True, slots=True, repr=False)
class Receipt(Shown):
    """A conversion that succeeded; `to_json` is what `--receipt` writes.

    Two receipts of the same rows have the same digests, whatever formats lay between.
    """

    source: str
    source_format: str
    source_digest: str | None
    """The digest of all rows that were read; None where a conversion went on after an interruption
    and the source has no digest of its own."""
    destination: str
    destination_format: str
    destination_digest: str
    num_rows: int
    schema: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    """What the destination cannot hold."""
    lossy: Sequence[str] = ()
    """What cannot be undone bit by bit."""
    measured: Mapping[str, Any] | None = None
    """The error of what is lossy: mean and largest TV and KL, changed argmax."""
    notes: Sequence[str] = ()
    source_checked: str = "none"
    """What of the rows was held against what the source keeps of them, its digest, block hashes and checksums: "full",
    "part" (`notes` names the rows that could not be), or "none", where it keeps nothing."""
    verified: str = "full"
    """What was read back and compared with what was written: "full", "sample" or "none"; "destination"
    where all was, and some rows could not be checked against their source."""
    seconds: float = 0.0
    created: str = ""
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_lossless(self) -> bool:
        """Whether source and destination have one digest and nothing was left out."""
        return self.source_digest == self.destination_digest and not (self.left_out or self.lossy)

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the rows with their sizes, such as {"sample": 1797, "class": 10}."""
        schema = self.schema
        sizes = {"member": schema["num_members"], "class": schema["num_classes"]}
        return {axis: int(sizes.get(axis, self.num_rows)) for axis in schema["axes"]}

    def to_json(self) -> dict[str, Any]:
        """The receipt as JSON."""
        return {**asdict(self), "axes": self.axes}

    def grid(self) -> Grid:
        """What was read, written and lost, a line each."""
        same = self.source_digest in (None, self.destination_digest)
        axes = ", ".join(f"{axis} {size}" for axis, size in self.axes.items())
        other = "" if same else ", another than the source's"
        rows = [
            ("rows", f"{self.num_rows:,}, {self.schema['kind']} ({axes})"),
            ("digest", f"{self.destination_digest}{other}"),
            *(("left out", what) for what in self.left_out),
            *(("lossy", what) for what in self.lossy),
        ]
        if self.measured is not None:
            shown = ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in self.measured.items()
            )
            rows.append(("measured", shown))
        rows += [("note", note) for note in self.notes]
        rows.append(("verified", f"{self.verified}{_SOURCE[self.source_checked]}"))
        title = f"{self.source} ({self.source_format}) -> {self.destination}"
        return Grid(f"{title} ({self.destination_format})", rows)

    def text(self) -> str:
        """The receipt as the lines that the command prints."""
        grid = self.grid()
        return tabled(grid.title, [(label, what) for label, what in grid.rows])

    def line(self) -> str:
        """The receipt on one line, as logs keep it."""
        grid = self.grid()
        return "; ".join([grid.title, *(f"{label} {what}" for label, what in grid.rows)])

    def dumps(self) -> bytes:
        """The bytes of the receipt's file."""
        return dumps(self.to_json())
