"""DistillKit's captured teachers: Parquet of sequences, each token with its k most likely successors, packed in bytes.

Layout: a row a sequence, `input_ids` and, a list a token, `compressed_logprobs` and `bytepacked_indices` (bytes, which
the `logprob_compressor` of a side file explains), or `packed_indices`, `exact_values` and `coeffs`
(`legacy_logit_compression`), or `token_ids` and `top_values` as they are. The list at a token is about the one after
it; the last token may have none, as vLLM gives none.
Source: arcee-ai/DistillKit, `distillkit/sample_logits_vllm.py` (process_prompt_logprobs), `sample_common.py`
(compressed_logit_schema) and `compression/compressor.py` (decompress_to_sparse). What legacy files hold are logits
minus their mean, so that nobody knows what the other classes weigh. Numbers are worked out in float32; DistillKit
rounds them to the dtype of the exact ones once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fostore import disk
from fostore.errors import ArgumentError, FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._arrowrows import number_type, numbers, row_shape, sound
from fostore.files._bits import Packing, terms_of_legacy, unpacked, unpacked_words
from fostore.files._ranked import (
    NUM_CLASSES,
    answers,
    ranked_schema,
    temperature_of,
)
from fostore.files._ranked_tokens import Listed, token_columns, token_table
from fostore.files.parquet import _batches, _open
from fostore.files.table import Table
from fostore.places.names import local_path
from fostore.schema.row import Array

_MOST_BYTES = 1 << 20
_SEQUENCES = 8
"""Read at once: a captured sequence has thousands of tokens."""
_PACKED, _LEGACY, _RAW = (
    ("compressed_logprobs", "bytepacked_indices"),
    ("packed_indices", "exact_values", "coeffs"),
    ("top_values", "token_ids"),
)

_Decode = Callable[[list[Array]], tuple[Array, Array]]
"""Columns (t, ...) of a sequence to values and ids (t, k)."""


class _DistillKit(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "distillkit"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The sequences of one Parquet file.

        Raises:
            ArgumentError: the configuration, the temperature or the number of classes is not given.
            FormatError: another layout, or bytes that the configuration does not explain.
        """
        refuse_inside(path, hints)
        where = str(path)
        with_names = _column_names(path)
        columns = next(
            (names for names in (_PACKED, _LEGACY, _RAW) if with_names.issuperset(names)), None
        )
        if columns is None or "input_ids" not in with_names:
            raise FormatError(
                f"{where} has the columns {sorted(with_names)}, expected input_ids and one of {_PACKED}, {_LEGACY} "
                f"or {_RAW}"
            )
        config = _config(hints, where, columns)
        decode, num_classes, k = _decoder(columns, config, hints, where, path)
        is_whole = columns is not _LEGACY
        needed = () if num_classes else (NUM_CLASSES,)
        answered = answers(hints, where, needed)
        num_classes = num_classes or answered["num_classes"]
        schema = ranked_schema(
            where,
            answered,
            num_classes=num_classes,
            k=k,
            kind="log_probs" if is_whole else "logits",
            dtype=hints.dtype or "float32",
            is_whole=is_whole,
            temperature=temperature_of(hints, where),
            hints=hints,
            side_columns=token_columns(num_classes, skips=False),
            row_axis="token",
        )
        return token_table(
            where,
            self.name,
            schema,
            partial(_sequences, path, columns, decode),
            is_whole=is_whole,
            notes=(
                "a sequence is a row of the file; of packed ones all texts of the row together",
            ),
            took=frozenset({"layout", "config", "dtype", "class_names", "temperature", "tol"}),
        )


def _column_names(path: Path) -> set[str]:
    file = _open(path)
    try:
        return set(file.schema_arrow.names)
    finally:
        file.close()


def _config(hints: Hints, where: str, columns: tuple[str, ...]) -> Mapping[str, Any]:
    """What the side file says of the columns."""
    key = {_PACKED: "logprob_compressor", _LEGACY: "legacy_logit_compression"}.get(columns)
    if key is None:
        return {}
    if hints.config is None:
        raise ArgumentError(
            f"{where} is packed, and only its {key} says how: config= (--config compression.yaml), the file it was "
            "captured with"
        )
    import yaml  # an extra: only such a file is YAML

    source = local_path(hints.config)
    raw = disk.read_named(source, _MOST_BYTES, "a configuration")
    try:
        config = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{source} is no YAML: {str(error).splitlines()[0]}") from error
    # A training configuration holds it in a section of its own, one for capturing is it.
    for outer in ("teacher", key):
        if isinstance(config, dict) and isinstance(config.get(outer), dict):
            config = config[outer]
    if not isinstance(config, dict):
        raise FormatError(f"{source} holds {type(config).__name__}, expected the keys of a {key}")
    return config


def _decoder(
    columns: tuple[str, ...], config: Mapping[str, Any], hints: Hints, where: str, path: Path
) -> tuple[_Decode, int | None, int]:
    """What unpacks a sequence, and how many classes there are and are listed."""
    if columns is _PACKED:
        packing = Packing.of(config, str(hints.config))

        def packed(parts: list[Array]) -> tuple[Array, Array]:
            logs = packing.decode(parts[0], f"{where}::compressed_logprobs")
            ids = unpacked(parts[1], packing.index_bits, packing.k, f"{where}::bytepacked_indices")
            return logs, ids

        return packed, packing.d, packing.k
    if columns is _LEGACY:
        k, exact, bits, terms = terms_of_legacy(config, str(hints.config))

        def legacy(parts: list[Array]) -> tuple[Array, Array]:
            ids = unpacked_words(parts[0], bits, k, f"{where}::packed_indices")
            if parts[1].shape[-1] != exact or parts[2].shape[-1] not in (0, terms.shape[-1]):
                raise FormatError(
                    f"{where} has {parts[1].shape[-1]} exact values and {parts[2].shape[-1]} coefficients a row, "
                    f"and {hints.config} says {exact} and {terms.shape[-1]}"
                )
            curve = parts[2] @ terms.T if parts[2].shape[-1] else np.empty((len(ids), 0))
            return np.concatenate([parts[1], curve], axis=-1).astype(np.float32), ids

        return legacy, int(config["vocab_size"]), k
    return lambda parts: (parts[0], parts[1]), None, _listed(path, where)


def _listed(path: Path, where: str) -> int:
    """The classes that the first list has."""
    for batch in _batches(path, ["top_values"], 0, 1, lambda one, row: one):
        for lists in sound(batch.column(0), 0, where):
            if lists.values is not None and len(lists.values):
                return int(row_shape(lists.values, where)[0])
    raise FormatError(f"{where} lists no class")


def _sequences(path: Path, names: tuple[str, ...], decode: _Decode) -> Iterator[Listed]:
    where = str(path)
    for batch, row in _batches(
        path, ["input_ids", *names], 0, _SEQUENCES, lambda one, row: (one, row)
    ):
        for at in range(len(batch)):
            place = f"{where}, sequence {row + at}"
            tokens, *lists = (
                sound(batch.column(i).slice(at, 1), 0, place) for i in range(batch.num_columns)
            )
            columns = [
                _flat(one.flatten(), place, name) for one, name in zip(lists, names, strict=True)
            ]
            if len({len(column) for column in columns}) != 1:
                raise FormatError(
                    f"{place} has {[len(column) for column in columns]} lists, expected one number"
                )
            ids = tokens.flatten()
            given = numbers(ids, _dtype(ids.type, place), (), 0, place).astype(np.int64)
            yield Listed(given, *decode(columns))


def _flat(lists: Any, place: str, name: str) -> Array:
    """Lists of one length as an array (t, m)."""
    where = f"{place}::{name}"
    if not len(lists):
        return np.empty((0, 0), np.uint8)
    width = row_shape(lists, where)
    if len(width) != 1:
        raise FormatError(f"{where} holds {lists.type}, expected a list of lists of numbers")
    return numbers(lists, _dtype(lists.type.value_type, where), width, 0, where)


def _dtype(kind: Any, where: str) -> str:
    dtype = number_type(kind)
    if dtype is None:
        raise FormatError(f"{where} holds {kind}, expected numbers")
    return dtype


FORMAT = _DistillKit()
