"""The digits through every format and back: one digest. Prints the table of the README.

A store of 1,797 distributions over ten digits, with class names, ids and metadata, becomes a file of
each format, and that file a store again. What a format cannot hold is named, and given back by hand.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import fostore

SUFFIXES = "h5 json jsonl npz safetensors pt parquet arrow csv npy".split()


def make_store(path: Path) -> fostore.Store:
    """What a classifier says of all digits."""
    digits = load_digits()
    model = LogisticRegression(max_iter=200).fit(digits.data[:500], digits.target[:500])
    probs = model.predict_proba(digits.data).astype(np.float32)
    with fostore.create(
        path,
        num_samples=len(probs),
        num_classes=10,
        class_names=[str(name) for name in digits.target_names],
        ids=[f"digit-{i:04}" for i in range(len(probs))],
        meta={"dataset": "digits", "model": "LogisticRegression"},
    ) as writer:
        writer.append(probs)
    return fostore.open(path)


def main() -> None:
    """Print a row for each format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "digits.zarr")
        ids, class_names = store.ids, store.schema.class_names
        assert ids is not None
        print("| format | bytes | digest after the way back | left out |")
        print("|---|---|---|---|")
        for suffix in SUFFIXES:
            there, back = folder / f"digits.{suffix}", folder / f"{suffix}.zarr"
            gone = fostore.convert(store, there, allow_lossy=True, progress=False)
            lacks_ids = any("sample_id" in what for what in gone.left_out)
            lacks_names = "class_names" in gone.left_out
            returned = fostore.convert(
                there,
                back,
                source_dtype="float32" if suffix == "csv" else None,
                ids=ids.tolist() if lacks_ids else None,
                class_names=class_names if lacks_names else None,
                progress=False,
            )
            assert returned.destination_digest == store.digest(), suffix
            left_out = ", ".join(gone.left_out) or "nothing"
            digest = returned.destination_digest[:15]
            print(f"| `.{suffix}` | {there.stat().st_size:,} | `{digest}` | {left_out} |")


if __name__ == "__main__":
    main()
