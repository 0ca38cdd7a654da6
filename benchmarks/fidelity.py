"""What does a dtype, a kind or an encoding cost? Writes the tables of docs/dtype.md and docs/encodings.md.

The figures depend on the seed, not on the machine: everything is drawn and computed from it. Those of the language
model depend on the version of Python, whose library is its text.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _bench import table
from _language import language_logits

from fostore import create, evaluate
from fostore import open as open_store

DOCS = Path(__file__).parents[1] / "docs"
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

ENCODED: dict[str, dict[str, Any]] = {
    "dense, float16": {"dtype": "float16"},
    "dense, bfloat16": {"dtype": "bfloat16"},
    "u16_affine": {"encoding": "u16_affine"},
    "u8_log_sqrt": {"encoding": "u8_log_sqrt"},
    **{
        f"topk {k}, {rule}": {
            "encoding": {"name": "topk", "k": k, "rule": rule},
            "dtype": "float16",
        }
        for rule, ks in (
            ("coarse", (8, 20, 64, 256)),
            ("uniform", (8, 20, 64, 256)),
            ("renorm", (64,)),
        )
        for k in ks
    },
    "sampled, 50 draws": {"encoding": {"name": "sampled", "num_draws": 50}, "kind": "probs"},
}
"""Parameters of `create` by what the page calls them."""
ENCODED_ROWS = 512


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


def encoded(rows: np.ndarray, folder: Path) -> str:
    """What stores say of themselves, of each encoding a line; `rows` are logits, few enough to be compared all."""
    lines = []
    for number, (name, options) in enumerate(ENCODED.items()):
        options = {"kind": "logits", **options}
        values = rows if options["kind"] == "logits" else np.exp(log_softmax(rows))
        path = folder / f"{number}-{rows.shape[1]}.zarr"
        # A bound that nothing breaks, so that rows which are only rounded are compared as well.
        with create(
            path, num_samples=len(rows), num_classes=rows.shape[1], max_kl=np.inf, **options
        ) as writer:
            for start in range(0, len(rows), 64):
                writer.append(values[start : start + 64])
        store = open_store(path)
        lost = (store.header.fidelity or {})["compared"]
        assert lost["num_rows"] == len(rows)
        shown = [lost[key] for key in ("kl_mean", "kl_max", "tv_mean", "missing_mass_mean")]
        lines.append(
            [
                name,
                f"{sum(column.row_bytes for column in store.schema.content):,}",
                *(
                    "infinite" if value == "inf" else f"{value:.1e}" if value else "0"
                    for value in shown
                ),
                f"{lost['argmax_flips'] / len(rows):.1%}",
            ]
        )
    headers = ["stored as", "bytes a row", "mean KL", "largest KL", "mean TV", "missing mass"]
    return table([*headers, "argmax changed"], lines)


def encoded_text(num_rows: int) -> str:
    """The tables of the page on encodings."""
    with tempfile.TemporaryDirectory() as folder:
        language = encoded(language_logits(num_rows), Path(folder))
        drawn = encoded(logits_of(1_000, num_rows), Path(folder))
    return (
        f"**A language model**, 32,000 classes, {num_rows:,} tokens of Python's own library\n\n{language}\n\n"
        f"**Drawn logits**, 1,000 classes, {num_rows:,} rows\n\n{drawn}"
    )


def write(name: str, text: str) -> None:
    """Put the tables into a page, in the place of those before."""
    page = DOCS / name
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def main() -> None:
    """Measure, print, and without --quick write the pages."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few rows, writes nothing")
    quick = options.parse_args().quick
    pages = {
        "dtype.md": text_of(dict.fromkeys(ROWS, 64) if quick else ROWS),
        "encodings.md": encoded_text(16 if quick else ENCODED_ROWS),
    }
    for name, text in pages.items():
        print(f"{text}\n")
        if not quick:
            write(name, text)


if __name__ == "__main__":
    main()
