"""Lance: a fixed-size list column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.peer import Gather, Peer


def write(path: Path, rows: np.ndarray) -> None:
    """One fragment, the stable file format's default encoding of vectors."""
    import lance
    import pyarrow

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])
    lance.write_dataset(pyarrow.table({"row": values}), str(path))


def open_rows(path: Path) -> Gather:
    """`take` of one column; the values are one NumPy array without a copy."""
    import lance

    dataset = lance.dataset(str(path))

    def gather(wanted: np.ndarray) -> np.ndarray:
        lists = dataset.take(wanted.tolist(), columns=["row"])["row"].combine_chunks()
        values: np.ndarray = lists.flatten().to_numpy()
        return values.reshape(len(lists), -1)

    return gather


TAKE = Peer("Lance", "take of one column", "lance", "pylance", write, open_rows)
