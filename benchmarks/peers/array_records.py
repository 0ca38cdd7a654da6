"""ArrayRecord, and Grain's pipeline over it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from peers.peer import Gather, Peer

GROUP_SIZE = 64  # reads cost O(groups): with one record a group a batch takes several times as long


def write(path: Path, rows: np.ndarray) -> None:
    """Uncompressed groups of 64, and what a record does not say of itself beside them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), f"group_size:{GROUP_SIZE},uncompressed")
    for row in rows:
        writer.write(row.tobytes())
    writer.close()
    path.with_suffix(".dtype").write_text(rows.dtype.name)


def open_rows(path: Path) -> Gather:
    """The reader's batched read, its records joined and viewed once."""
    from array_record.python.array_record_module import ArrayRecordReader

    # The fastest of threads or none and of buffers from 4 KiB to 1 MiB.
    options = "readahead_buffer_size:0,max_parallelism:0"
    reader = ArrayRecordReader(str(path), options=options, file_reader_buffer_size=4096)
    dtype = np.dtype(path.with_suffix(".dtype").read_text())

    def gather(wanted: np.ndarray) -> np.ndarray:
        records = reader.read(wanted.tolist())
        return np.frombuffer(b"".join(records), dtype).reshape(len(wanted), -1)

    return gather


class Read:
    """Row numbers as rows; a class that opens its reader late, since Grain copies what it maps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gather: Gather | None = None

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        if self.gather is None:
            self.gather = open_rows(self.path)
        return self.gather(wanted)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "gather": None}


def stream(path: Path, batch_size: int) -> Iterable[Any]:
    """Grain shuffles and batches row numbers; one read a batch. A record at a time takes six times as long."""
    import grain
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    num_rows = reader.num_records()
    reader.close()
    numbers = grain.MapDataset.range(num_rows).seed(0).shuffle().batch(batch_size)
    return numbers.map(Read(path)).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    )


READER = Peer(
    "ArrayRecord",
    f"groups of {GROUP_SIZE}, batched read",
    "array_record",
    "array_record",
    write,
    open_rows,
    stream=stream,
    stream_name="Grain over ArrayRecord, batched read",
)
