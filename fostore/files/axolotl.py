"""axolotl's prepared sequences for distillation: JSON Lines, each token with its k most likely successors.

Layout: an object a sequence with `input_ids`, `target_token_ids` (T, k), `target_logprobs` (T, k) and `target_mask`
(T, k); where the mask is 0 there is no list. Whether the log-probabilities were made to sum to 1, at which temperature
they were taken, and of which token they speak depends on who prepared them: the trainer of today compares the list at a
token with what the student says after it, and its own preparation of chats puts it one token later.
Source: axolotl-ai-cloud/axolotl, `src/axolotl/integrations/kd/`: `chat_template.py` (transform_logprobs), `collator.py`
(DataCollatorForKD) and `topk_logprob/forward_kl.py` (loss).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fostore.errors import FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._ranked import (
    MASS,
    NUM_CLASSES,
    PREDICTS,
    WHOLE,
    answers,
    ranked_schema,
    temperature_of,
)
from fostore.files._ranked_tokens import Listed, token_columns, token_table
from fostore.files.json.lines import Lines
from fostore.files.nemo import array_of
from fostore.files.table import Table

_KEYS = ("input_ids", "target_logprobs", "target_token_ids", "target_mask")


class _Axolotl(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "axolotl"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The sequences of one file.

        Raises:
            ArgumentError: something that the layout leaves open is not given; says what.
            FormatError: another layout; names the line.
        """
        refuse_inside(path, hints)
        lines = Lines(path)
        where = str(lines)
        answered = answers(hints, where, (NUM_CLASSES, MASS, PREDICTS))
        is_whole = answered["mass"] == WHOLE
        schema = ranked_schema(
            where,
            answered,
            num_classes=answered["num_classes"],
            k=_sequence(lines.first(), f"{where}, line 1").values.shape[-1],
            kind="log_probs",
            dtype=hints.dtype or "float32",
            is_whole=is_whole,
            temperature=temperature_of(hints, where),
            hints=hints,
            side_columns=token_columns(answered["num_classes"], skips=True),
            row_axis="token",
        )

        def sequences() -> Iterator[Listed]:
            for number, objects in lines.batches(0, 0, 1, None):
                yield _sequence(objects[0], f"{where}, line {number}")

        return token_table(
            where,
            self.name,
            schema,
            sequences,
            is_whole=is_whole,
            predicts=answered["predicts"],
            took=frozenset({"layout", "dtype", "class_names", "temperature", "tol"}),
        )


def _sequence(value: Any, where: str) -> Listed:
    tokens, values, ids, mask = (array_of(value, key, where) for key in _KEYS)
    if not values.shape == ids.shape == mask.shape:
        raise FormatError(
            f"{where} has target_logprobs {values.shape}, target_token_ids {ids.shape} and target_mask {mask.shape}, "
            "expected one shape (tokens, k)"
        )
    values = np.where(mask != 0, values, -np.inf)  # a place of a list that holds no token
    return Listed(tokens, values, ids, None, np.any(mask != 0, axis=tuple(range(1, mask.ndim))))


FORMAT = _Axolotl()
