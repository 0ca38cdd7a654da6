"""Token rows for axolotl's distillation: JSON Lines of prepared sequences, as its KD trainer takes them.

Layout: see `fostore.files.axolotl`, which reads it. The list at a token is about the one after it, which is what the
trainer compares with the student's numbers there (`src/axolotl/integrations/kd/topk_logprob/forward_kl.py`, loss).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from fostore import disk
from fostore.encodings.selection import log_total
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError
from fostore.places.names import destination, is_url
from fostore.progress import Progress
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema.row import Array

_NO_WEIGHT = -1e9
"""What axolotl's collator pads log-probabilities with; JSON has no infinity."""


def to_axolotl(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    normalised: bool = False,
    progress: bool = True,
) -> Path:
    """Write the sequences of a store of top-k token rows as axolotl's prepared dataset, JSON Lines.

    `input_ids`, `attention_mask`, `labels` (the input tokens), `target_token_ids`, `target_logprobs` and `target_mask`
    of each sequence. Tokenizer, temperature and everything else that the store says are left out: the trainer's
    `kd_temperature` must be the temperature of the store. Nothing half-done appears under `path`, which is replaced.

    Args:
        store: sealed, of token rows with their input tokens, none left out.
        normalised: whether the probabilities of the listed tokens are made to sum to 1; else they are the teacher's,
            whose missing mass only `kd_normalize_topk: false` leaves alone.

    Returns:
        The absolute path of the file.

    Raises:
        ArgumentError: other rows than these; says which.
        SpaceError, PlaceError: nothing is at `path` but what was there.
    """
    store = store if isinstance(store, Store) else open_store(store)
    if not store.header.sealed or store.schema.role("token") is None:
        raise ArgumentError(
            f"{store.path} is no sealed store of token rows with their tokens, which axolotl's sequences need"
        )
    if store.schema.role("position") is not None:
        raise ArgumentError(
            f"{store.path} keeps some positions of its sequences (labelled ones), and nobody knows the tokens between, "
            "which axolotl needs"
        )
    if is_url(os.fspath(path)):
        raise ArgumentError(f"{path} is a url; write to a path and copy the file")
    target = destination(path)
    temporary = disk.unfinished(target)
    disk.make_folders(target.parent)
    try:
        with (
            Progress(progress, store.num_sequences, 0, "writing", unit="sequences") as bar,
            open(temporary, "wb") as file,
        ):
            for at in range(len(store.sequences)):
                file.write(orjson.dumps(_sequence(store, at, normalised=normalised)) + b"\n")
                bar.add(1)
        disk.sync_file(temporary)
        disk.rename(temporary, target)
    except OSError as error:
        disk.refuse(error, str(target))
    finally:
        disk.remove(temporary)
    disk.sync_directory(target.parent)
    return target


def _sequence(store: Store, at: int, *, normalised: bool) -> dict[str, Any]:
    rows = store.sequences[at]
    topk = rows.distributions
    if not isinstance(topk, TopK):
        raise ArgumentError(
            f"{store.path} keeps every class of each row; convert it first: encoding='topk' (--encoding topk --k 64)"
        )
    if topk.values.ndim != 2:
        raise ArgumentError(f"{store.path} holds ensembles; choose one with member= (--member)")
    logs = _log_probs(topk, normalised=normalised)
    tokens = rows.tokens.tolist()
    mask = np.broadcast_to(np.ones(1, np.int8), logs.shape)
    return {
        "input_ids": tokens,
        "attention_mask": [1] * len(tokens),
        "labels": tokens,
        "target_token_ids": topk.ids.tolist(),
        "target_logprobs": np.where(np.isneginf(logs), _NO_WEIGHT, logs).tolist(),
        "target_mask": mask.tolist(),
    }


def _log_probs(topk: TopK, *, normalised: bool) -> Array:
    values = topk.values.astype(np.float64)
    whole = log_total(values)
    if not normalised:
        whole = np.logaddexp(whole, topk.residual.astype(np.float64))
    logs: Array = (values - whole[..., None]).astype(np.float32)
    return logs
