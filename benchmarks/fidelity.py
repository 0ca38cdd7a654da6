"""What does a narrower dtype or another kind cost? Measured on stores, against float64; writes docs/dtype.md.

The figures depend on the seed, not on the machine: everything is drawn and computed from it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _bench import table

from fostore import create, evaluate
from fostore import open as open_store

PAGE = Path(__file__).parents[1] / "docs" / "dtype.md"
BEGIN, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"

ROWS = {10: 20_000, 1_000: 5_000, 50_257: 200}
"""Rows measured, by number of classes."""
STORED = (
    ("logits", "float32"),
    ("logits", "float16"),
    ("logits", "bfloat16"),
    ("log_probs", "float16"),
    ("probs", "float32"),
    ("probs", "float16"),
    ("probs", "bfloat16"),
)
TEMPERATURE = 4.0


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far stored distributions are from those that came in; KL(exact || stored) in nats."""

    kl: float
    """The mean over the rows where it is finite."""
    infinite: int
    """Rows of which a class lost all its probability, so that KL is infinite."""
    tv: float
    largest_tv: float
    softened_tv: float
    """The mean after both were softened by `TEMPERATURE`, as distillation does."""
    argmax: int
    """Rows whose most probable class is another one."""


def logits_of(num_classes: int, num_rows: int, seed: int = 0) -> np.ndarray:
    """Logits (num_rows, num_classes) float32, of standard deviation 3; one class a row is raised by 0 to 12."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(num_rows, num_classes))
    logits[np.arange(num_rows), rng.integers(num_classes, size=num_rows)] += rng.uniform(
        0, 12, num_rows
    )
    return logits.astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure(logits: np.ndarray, kind: str, dtype: str, folder: Path) -> Fidelity:
    """Store the distributions of `logits` and compare what comes back with them."""
    exact = log_softmax(logits)
    rows = {"logits": logits, "log_probs": exact, "probs": np.exp(exact)}[kind]
    path = folder / f"{kind}-{dtype}-{logits.shape[1]}.zarr"
    with create(
        path, num_samples=len(rows), num_classes=rows.shape[1], kind=kind, dtype=dtype
    ) as writer:
        for start in range(0, len(rows), 64):
            writer.append(rows[start : start + 64])
    store, probs = open_store(path), np.exp(exact)
    kl, tv = evaluate.kl(probs, store), evaluate.tv(probs, store)
    softened = store.take(np.arange(len(rows)), temperature=TEMPERATURE)
    expected = np.exp(log_softmax(exact / TEMPERATURE))
    found = store.take(np.arange(len(rows)), as_kind="log_probs").argmax(axis=-1)
    finite = np.isfinite(kl)
    return Fidelity(
        kl=float(kl[finite].mean()) if finite.any() else float("nan"),
        infinite=int((~finite).sum()),
        tv=float(tv.mean()),
        largest_tv=float(tv.max()),
        softened_tv=float(evaluate.tv(expected, softened).mean()),
        argmax=int((found != exact.argmax(axis=-1)).sum()),
    )


def text_of(rows: dict[int, int]) -> str:
    """The tables, one for each number of classes."""
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for num_classes, num_rows in rows.items():
            logits = logits_of(num_classes, num_rows)
            lines = []
            for kind, dtype in STORED:
                one = measure(logits, kind, dtype, Path(folder))
                lines.append(
                    [
                        f"{kind} {dtype}",
                        "none is finite" if np.isnan(one.kl) else f"{one.kl:.1e}",
                        f"{one.infinite / num_rows:.1%}",
                        f"{one.tv:.1e}",
                        f"{one.largest_tv:.1e}",
                        f"{one.softened_tv:.1e}",
                        f"{one.argmax / num_rows:.2%}",
                    ]
                )
            headers = ["stored as", "mean KL", "KL infinite", "mean TV", "largest TV"]
            headers += [f"mean TV at T = {TEMPERATURE:g}", "argmax changed"]
            parts.append(
                f"**{num_classes:,} classes**, {num_rows:,} rows\n\n{table(headers, lines)}"
            )
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and without --quick write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few rows, writes nothing")
    quick = options.parse_args().quick
    text = text_of(dict.fromkeys(ROWS, 64) if quick else ROWS)
    print(text)
    if not quick:
        head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        _, tail = rest.split(END)
        PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
