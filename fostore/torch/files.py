"""The .pt and .pth format: what torch.save writes, loaded as weights only, so that no pickle runs code."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fostore import disk
from fostore.errors import ArgumentError, FormatError, UnsafeError, UnsupportedError
from fostore.files import DTYPES, FileFormat, Hints, Holds
from fostore.files._arrays import arrays_table, joined
from fostore.files._flat import open_source
from fostore.files._header import KEY, Sealing, text_of
from fostore.files._sink import Sink
from fostore.files._spool import keep, spools_of
from fostore.files.array import FileArray
from fostore.files.guess import plain_table
from fostore.files.npz import open_zip
from fostore.files.table import Batch, Table
from fostore.schema.header import Header
from fostore.schema.jsontext import check_json
from fostore.schema.row import Array, Column
from fostore.torch.arrays import dtype_name


class _TorchFile(FileFormat):
    """See `fostore.files.FileFormat`; a tensor a column, the header as text beside them."""

    name = "pt"
    holds = Holds(header=True, dtypes=DTYPES)

    def read(self, path: Path, hints: Hints) -> Table:
        """The rows of a tensor, or of a mapping of indices to rows; tensors are mapped, not loaded.

        Raises:
            UnsafeError: what is in it could only be restored by running code, or it claims more
                than its bytes.
        """
        where = str(path)
        size, content = _load(path)
        if isinstance(content, torch.Tensor):
            content = {"tensor": content}
        if isinstance(content, (list, tuple)):
            content = {"list": content}
        if not isinstance(content, dict):
            raise FormatError(
                f"{where} holds {type(content).__name__}, expected a tensor, a list of tensors or a dict of "
                "them"
            )
        text = content.get(KEY)
        meta, notes, rows = _distributions(content, where)
        if rows is not None:
            array = _of_rows(_in_order(rows, where), where, size)
            return plain_table(where, self.name, array, hints, meta=meta, notes=notes)
        arrays = {
            str(name): _file_array(value, f"{where}::{name}", size)
            for name, value in content.items()
            if not (name == "meta" and isinstance(value, dict))
        }
        header_text = text if isinstance(text, str) else None
        return arrays_table(
            where, self.name, arrays, hints, meta=meta, notes=notes, header_text=header_text
        )

    def write(self, path: Path, header: Header, batches: Iterator[Batch], start: int) -> None:
        """Write anew with torch.save, from tensors that lie on the pages of temporary files."""
        passing = Sealing(header, batches)
        spools = spools_of(header.schema.columns)
        for batch in passing:
            keep(spools, batch)
        content: dict[str, Any] = {
            column.name: _tensor(spool.array(), column)
            for column, spool in zip(header.schema.columns, spools, strict=True)
        }
        content[KEY] = text_of(passing.sealed()).decode()
        with Sink(path) as sink:
            _save(content, sink)


def _save(content: dict[str, Any], sink: Sink) -> None:
    try:
        torch.save(content, sink)  # type: ignore[arg-type]  # which wants no more than `write`
    except RuntimeError as error:
        # After an error torch writes the archive's end all the same and fails again: the first one counts.
        if error.__context__ is not None:
            raise error.__context__ from None
        raise


def _tensor(rows: Array, column: Column) -> torch.Tensor:
    """Rows as a tensor on the same memory."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if column.dtype == "bfloat16" else tensor


# ------------------------------------------------------------------ reading


def load_checked(path: Path, *, mmap: bool = False) -> Any:
    """What torch.load makes of a file as weights only, on the CPU.

    Raises:
        pickle.UnpicklingError: it holds more than that.
        FormatError: it was damaged, for which torch raises errors of many kinds.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        AttributeError,
        IndexError,
        OSError,  # of an archive whose end leads before its beginning
    ) as error:
        first = (str(error).splitlines() or [""])[0]
        raise FormatError(f"{path} cannot be loaded: {first:.200}") from error


def _load(path: Path) -> tuple[int, Any]:
    """The bytes of a file and what it holds, with tensors that lie on its pages."""
    fd, size = open_source(path)
    begin = disk.read_at(fd, 0, 4)
    os.close(fd)
    if begin[:2] != b"PK":
        raise UnsupportedError(
            f"{path} is no file of torch.save since torch 1.6, or was cut. If it is an older one, load "
            "and save it anew: torch.save(torch.load(path, weights_only=True), path)"
        )
    # Before torch maps it: each entry is held against the bytes that are there.
    with open_zip(path, size) as archive:
        for info in archive.infolist():
            if info.compress_type != 0:
                raise UnsafeError(f"{path}: {info.filename!r:.80} is compressed, as torch does not")
    try:
        return size, load_checked(path, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it names {named.group(1)})" if named else ""
        raise UnsafeError(
            f"{path} holds more than tensors, numbers, text, lists and dicts{what}: to load it could run "
            "any code. Load it where you trust it and save the tensor alone: "
            'torch.save({"probs": probs}, path)'
        ) from error


def _distributions(
    content: dict[Any, Any], where: str
) -> tuple[dict[str, Any], list[str], dict[Any, Any] | None]:
    """Metadata, notes and rows by index, where a dict is laid out as the guide's documents are."""
    meta: dict[str, Any] = {}
    notes: list[str] = []
    if isinstance(content.get("meta"), dict):
        try:
            meta = check_json(content["meta"])
        except ArgumentError as error:
            notes.append(f"the metadata was left out, as JSON cannot hold it: {error}")
    inner = content.get("distributions")
    rows = inner if isinstance(inner, dict) else content
    is_mapping = bool(rows) and all(
        type(key) is int or (isinstance(key, str) and key.isdecimal() and key.isascii())
        for key in rows
    )
    if not is_mapping and inner is not None and not isinstance(inner, torch.Tensor):
        raise FormatError(f"{where}: 'distributions' is no dict of indices and rows")
    return meta, notes, rows if is_mapping else None


def _in_order(rows: dict[Any, Any], where: str) -> list[Any]:
    """The rows of a mapping by their indices, none missing and none twice."""
    ordered: list[Any] = [None] * len(rows)
    for key, row in rows.items():
        index = int(key)
        if not 0 <= index < len(rows) or ordered[index] is not None:
            raise FormatError(
                f"{where} has {len(rows)} rows and the key {key!r}; the keys must be 0 to "
                f"{len(rows) - 1}, each once"
            )
        ordered[index] = row
    return ordered


def _file_array(value: Any, where: str, size: int) -> FileArray:
    """A value of a file as one of its arrays: a tensor, or a list of tensors or keys."""
    if isinstance(value, torch.Tensor):
        pieces = partial(_pieces, value, where, size)
        return FileArray(dtype_name(value), tuple(value.shape), pieces)
    if not isinstance(value, (list, tuple)) or not value:
        return FileArray(type(value).__name__, ())
    if all(isinstance(one, torch.Tensor) for one in value):
        return _of_tensors(value, where, size)
    if all(type(one) in (int, str) for one in value):

        def keys(start: int, rows: int) -> Iterator[list[Any]]:
            for first in range(start, len(value), rows):
                yield list(value[first : first + rows])

        return FileArray("text" if isinstance(value[0], str) else "keys", (len(value),), keys)
    if all(isinstance(one, list) for one in value):
        return _of_rows(value, where, size)
    return FileArray(f"a list of {type(value[0]).__name__}", ())


def _of_tensors(value: Sequence[torch.Tensor], where: str, size: int) -> FileArray:
    """Tensors one after another: batches, or rows where each is one.

    Raises:
        FormatError: they differ in their rows; names the first that does.
    """
    is_row = value[0].ndim == 1
    first = (value[0].dtype, value[0].shape[0 if is_row else 1 :])
    for i, tensor in enumerate(value):
        if (tensor.dtype, tensor.shape[0 if is_row else 1 :]) != first:
            raise FormatError(
                f"{where}: tensor {i} of the list is {tensor.dtype} {tuple(tensor.shape)}, tensor 0 "
                f"is {value[0].dtype} {tuple(value[0].shape)}; tensors that follow each other have rows of "
                "one shape and dtype. If they are other things, save a dict: torch.save({'probs': ...}, path)"
            )
    if is_row:
        return _of_rows(value, where, size)
    whole = joined(
        [_file_array(tensor, f"{where}, tensor {i}", size) for i, tensor in enumerate(value)]
    )
    note = f"{len(value)} tensors of a list follow each other: {whole.num_rows} rows"
    return replace(
        whole, note=f"{note}. If they are members of an ensemble, save torch.stack(them, 1)"
    )


def _of_rows(value: Sequence[Any], where: str, size: int) -> FileArray:
    """Rows that are a tensor or a list of numbers each."""
    first = dtype, shape = _row(value[0], 0, where, size)

    def batches(start: int, rows: int) -> Iterator[Array]:
        for begin in range(start, len(value), rows):
            some = value[begin : begin + rows]
            for i, row in enumerate(some, begin):
                if (other := _row(row, i, where, size)) != first:
                    raise FormatError(f"{where}: row {i} is {other}, row 0 is {first}")
            yield np.stack(
                [_array(r) if isinstance(r, torch.Tensor) else np.array(r, dtype) for r in some]
            )

    return FileArray(dtype, (len(value), *shape), batches)


def _pieces(tensor: torch.Tensor, where: str, size: int, start: int, rows: int) -> Iterator[Array]:
    tensor = _checked(tensor, where, size)
    for first in range(start, len(tensor), rows):
        yield _array(tensor[first : first + rows])


def _row(row: Any, index: int, where: str, size: int) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape of one row; lists of numbers are doubles, as they are in Python."""
    if isinstance(row, torch.Tensor):
        return dtype_name(_checked(row, f"{where}, row {index}", size)), tuple(row.shape)
    try:
        array = np.array(row, None)
    except ValueError:
        array = np.empty(0, object)
    if isinstance(row, list) and array.dtype.kind in "fiu":
        return "float64", array.shape
    raise FormatError(
        f"{where}: row {index} is {row!r:.60}, expected a tensor or a list of numbers"
    )


def _checked(tensor: torch.Tensor, where: str, size: int) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise UnsupportedError(f"{where} is no dense tensor: save tensor.to_dense()")
    if tensor.numel() * tensor.element_size() > size:
        raise UnsafeError(
            f"{where} claims the shape {tuple(tensor.shape)} in a file of {size:,} bytes; if it was "
            "expanded, save tensor.contiguous()"
        )
    return tensor.detach()


def _array(tensor: torch.Tensor) -> Array:
    """A copy in NumPy; bfloat16 as its bits."""
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if dense.dtype == torch.bfloat16:
        return dense.view(torch.int16).numpy().view(np.uint16).copy()
    return dense.numpy().copy()


FORMAT = _TorchFile()
