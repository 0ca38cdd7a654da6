"""NeMo-Aligner's cached teachers: JSON Lines of sequences, each token with its k largest logits and their log-sum-exp.

Layout: an object a sequence with `tokens`, `labels`, `loss_mask`, `topk_logits` (T, k), `topk_token_ids` (T, k) and
`log_sum_exp_logits` (T); logits minus the row's maximum, and the list at a token is about the one after it. Sequences
are padded to the longest of their batch, and nothing says where the padding begins but that `loss_mask` is 0 there, as
it is in prompts. The log-sum-exp is worked out in the precision of the model, bfloat16 mostly, so what it leaves for
the other classes may be less than nothing.
Source: NVIDIA/NeMo-Aligner, `examples/nlp/synthetic_data_gen/compute_topk_logits.py` (write_generations) and
`nemo_aligner/utils/distributed.py` (compute_topk_logits_in_batched_sequence).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._ranked import NUM_CLASSES, answers, ranked_schema
from fostore.files._ranked_tokens import LABELLED, ROWS, Listed, token_columns, token_table
from fostore.files.json.lines import Lines
from fostore.files.table import Table
from fostore.schema.row import Array

_KEYS = ("tokens", "topk_logits", "topk_token_ids", "log_sum_exp_logits")


class _Nemo(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "nemo"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The sequences of one file.

        Raises:
            ArgumentError: the number of classes, or which rows to take, is not given.
            FormatError: another layout; names the line.
        """
        refuse_inside(path, hints)
        lines = Lines(path)
        lines.counts = False  # the index is that of a dataset, in the order in which batches came
        where = str(lines)
        answered = answers(hints, where, (NUM_CLASSES, ROWS))
        is_labelled = answered["rows"] == LABELLED
        first = _sequence(lines.first(), f"{where}, line 1", is_labelled=is_labelled)
        schema = ranked_schema(
            where,
            answered,
            num_classes=answered["num_classes"],
            k=first.values.shape[-1],
            kind="logits",
            dtype=hints.dtype or "float32",
            is_whole=True,
            temperature=1.0,
            hints=hints,
            side_columns=token_columns(answered["num_classes"], skips=is_labelled),
            row_axis="token",
        )

        def sequences() -> Iterator[Listed]:
            for number, objects in lines.batches(0, 0, 1, None):
                yield _sequence(objects[0], f"{where}, line {number}", is_labelled=is_labelled)

        return token_table(
            where,
            self.name,
            schema,
            sequences,
            is_whole=True,
            took=frozenset({"layout", "dtype", "class_names"}),
        )


def _sequence(value: Any, where: str, *, is_labelled: bool) -> Listed:
    keys = (*_KEYS, "loss_mask") if is_labelled else _KEYS
    tokens, values, ids, level, *mask = (array_of(value, key, where) for key in keys)
    return Listed(tokens, values, ids, level, mask[0] != 0 if mask else None)


_AXES = {
    "topk_logits": 2,
    "topk_token_ids": 2,
    "target_logprobs": 2,
    "target_token_ids": 2,
    "target_mask": 2,
}
_FLOATS = ("topk_logits", "log_sum_exp_logits", "target_logprobs")


def array_of(value: Any, key: str, where: str) -> Array:
    """The numbers under a key of an object: int64, or float64 where they are such.

    Raises:
        FormatError: they are missing, ragged, or something else.
    """
    if not isinstance(value, dict) or key not in value:
        raise FormatError(f"{where} lacks {key!r}")
    try:
        array = np.array(value[key], np.float64 if key in _FLOATS else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{where}: {key!r} makes no array: {error}") from error
    axes = _AXES.get(key, 1)
    if array.ndim != axes and array.size:
        raise FormatError(f"{where}: {key!r} has {array.ndim} axes, expected {axes}")
    if key not in _FLOATS and array.size and array.dtype.kind not in "iu":
        raise FormatError(f"{where}: {key!r} holds {array.dtype}, expected whole numbers")
    return array.reshape(len(array), -1)[:, 0] if axes == 1 and array.size else array


FORMAT = _Nemo()
