"""MosaicML streaming: MDS shards on this machine.

Its package asks for gigabytes that local reading never touches (clouds, CUDA, old pins), so it is
installed without them; the modules that it loads at import without need are replaced here.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np

from peers.peer import INSTALL_BARE, Gather, Peer

_EXAMPLES = ("streaming.multimodal", "streaming.text", "streaming.vision")
_TYPES = {"feature_extraction_utils": "BatchFeature", "tokenization_utils_base": "BatchEncoding"}
_SHARD_BYTES = 1 << 26


def prepare() -> None:
    """Import it with stand-ins for its example datasets and for two types of transformers.

    Those of transformers are taken back at once: other libraries look whether it is loaded.
    """
    if "streaming" in sys.modules:
        return
    for name in _EXAMPLES:
        sys.modules.setdefault(name, types.ModuleType(name))
    stands_in = [] if "transformers" in sys.modules else ["transformers"]
    for name, kind in _TYPES.items() if stands_in else ():
        stands_in.append(f"transformers.{name}")
        module = types.ModuleType(stands_in[-1])
        setattr(module, kind, dict)
        sys.modules[stands_in[-1]] = module
    if stands_in:
        sys.modules["transformers"] = types.ModuleType("transformers")
    try:
        importlib.import_module("streaming")
    finally:
        for name in stands_in:
            del sys.modules[name]


def write(path: Path, rows: np.ndarray) -> None:
    """Fixed shape and dtype in the column's type, so that samples carry no header; no hashes."""
    import streaming

    columns = {"row": f"ndarray:{rows.dtype.name}:{rows.shape[1]}"}
    with streaming.MDSWriter(
        out=str(path), columns=columns, size_limit=_SHARD_BYTES, hashes=[]
    ) as writer:
        for row in rows:
            writer.write({"row": row})


def open_rows(path: Path) -> Gather:
    """LocalDataset, a sample at a time: there is no batched read, and StreamingDataset is slower."""
    import streaming

    dataset = streaming.LocalDataset(str(path))

    def gather(wanted: np.ndarray) -> np.ndarray:
        return np.stack([sample["row"] for sample in dataset[wanted]])

    return gather


LOCAL = Peer(
    "MosaicML MDS",
    "LocalDataset",
    "streaming",
    "mosaicml-streaming",
    write,
    open_rows,
    prepare=prepare,
    install=INSTALL_BARE,
)
