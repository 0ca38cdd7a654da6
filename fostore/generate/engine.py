"""One batch through the models: onto the device, halved where memory is short, and what is kept of it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from fostore.encodings import make_schema, preferred_kind
from fostore.errors import ArgumentError, FostoreError, GenerationError, RowError
from fostore.generate import output
from fostore.generate.framework import Framework, Kept
from fostore.generate.memory import copied
from fostore.generate.models import Models
from fostore.generate.samples import Batch, Indices, failed
from fostore.generate.tokens import LOOKED_AT
from fostore.nested import PerSample, each, is_namedtuple, is_numbers, leaves, slice_rows
from fostore.schema.row import Array, Schema

_OF_SHAPES = re.compile("shape|dimension|size", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Computed:
    """What the device has computed of a batch; `Engine.collect` brings it to the host.

    `raw` is kept only where it is checked what its numbers mean; `first` is a copy of its first row.
    """

    indices: Indices
    copies: tuple[Any, ...]
    counts: tuple[int, ...]
    """Rows of each of the copies; what comes behind them is none."""
    row_shape: tuple[int, ...]
    """The axes of one distribution, whatever is kept of it."""
    raw: tuple[Any, ...] = ()
    first: Any = None


class Engine:
    """Models, what their output means and what is kept of it: a function from inputs to rows.

    `kept.mode` is "auto" until the first batch has decided. `limit` is the number of samples
    that fit the device, once an out-of-memory error has shown it; `dtype` is that of the outputs and
    `tol` how far sums may be off in it, known from the first batch on.
    """

    def __init__(
        self,
        framework: Framework,
        models: Models,
        kept: Kept,
        *,
        again: Callable[[Indices], Any] | None = None,
        tol: float | None = None,
        trying: bool = False,
    ) -> None:
        """
        Args:
            again: reads a batch once more; given where batches are gathered freshly, so that the
                models may change them.
            trying: it is tried only whether a batch runs: it is not halved, and nobody asks what
                its numbers mean.
        """
        self.framework = framework
        self.kept = kept
        self.was_auto = kept.mode == "auto"
        self.limit: int | None = None
        self.tol: float | None = None
        self.dtype = ""
        self._models = models
        self._again = again
        self._tol = tol
        self._halve = not trying and models.fixed is None
        self._checked_meaning = trying
        self._schema: Schema | None = None  # of the encoding, known with the first output

    def compute(self, batch: Batch) -> Computed:
        """Run the models on one batch; halves it as long as the device's memory does not suffice.

        Where batches are gathered freshly (`again`) a model may change the inputs: read them anew to
        compute them once more.

        Raises:
            GenerationError: the model or the transform failed; names the samples.
            ArgumentError, RowError: the output is no batch of rows.
        """
        indices, inputs = batch.indices, batch.inputs
        rows, models = len(indices), self._models
        raw: list[Any] = []
        tensors: list[Any] = []
        counts: list[int] = []
        start = 0
        while start < rows:
            # A limit stays for the batches that follow: to find it again would cost a failed try each.
            size = min(models.fixed or self.limit or rows, rows - start)
            # A draw depends on where its batch begins: parts would be draws of other batches.
            if size < rows and models.drawing is not None:
                raise ArgumentError(
                    f"the model takes {size} samples at once, and draws are a function of their batch: "
                    f"give batch_size={size}"
                )
            part = inputs if size == rows else slice_rows(inputs, start, start + size, rows)
            tokens = None if batch.tokens is None else batch.tokens.of(start, start + size)
            count = size if tokens is None else len(tokens)
            if tokens is not None and self.framework.compiles:
                tokens = tokens.evened()
            try:
                tensor = models(part, indices[start : start + size], tokens)
                if size < rows:
                    tensor = copied(tensor)  # models may use the memory of an output again
                if self.kept.mode != "auto":
                    tensors.append(self._keep(tensor))
            except FostoreError:
                raise
            except Exception as error:
                exhausted = self.framework.out_of_memory(error)
                if exhausted and models.drawing is not None:
                    raise models.drawing.out_of_memory(size) from error
                if not exhausted or size == 1 or not self._halve:
                    raise self._failed(part, indices[start : start + size], error) from error
            else:
                is_decided = batch.tokens is not None and self.kept.mode != "auto"
                raw.append(copied(tensor[:LOOKED_AT]) if is_decided else tensor)
                counts.append(count)
                start += size
                continue
            self._halve_limit(size)  # out here, where the error and its tensors are gone
            if self._again is not None:
                inputs = self._again(indices)  # the model may have changed it before memory ran out
        for text in models.sayings:  # out here, where a warning is no error of the model's
            warnings.warn(text, stacklevel=2)
        models.sayings = []
        if self.tol is None:
            self.dtype = self.framework.dtype_name(raw[0])
            self.tol = output.tolerance(self.dtype, raw[0].shape[-1], self._tol)
        row_shape = tuple(map(int, raw[0].shape[1:]))
        if self.kept.mode == "auto":
            tensors = self._decide(raw, batch)
        copies = tuple(each(self.framework.start_copy, tensor) for tensor in tensors)
        models.usual = max(rows, models.usual or 0)
        checks = "logits" in self.kept.mode and (self.was_auto or not self._checked_meaning)
        self._checked_meaning = True
        if checks:
            # One row decides whether the whole output is fetched: of logits it hardly ever lies in [0, 1].
            looked_at = self._looked_at(raw, batch)
            first = self.framework.start_copy(looked_at[0][:1])
            return Computed(indices, copies, tuple(counts), row_shape, looked_at, first)
        return Computed(indices, copies, tuple(counts), row_shape)

    def collect(self, computed: Computed) -> Any:
        """The rows of a batch on the host, of the kind that is kept; may alias the model's output.

        An array, or what a framework's `encode` makes of them, with arrays in it.
        """
        brought = [
            each(itemgetter(slice(count)), each(self.framework.finish_copy, copy))
            for copy, count in zip(computed.copies, computed.counts, strict=True)
        ]
        rows = brought[0] if len(brought) == 1 else _joined(brought)
        if computed.raw:
            first = self.framework.finish_copy(computed.first)
            members = output.suspects(first, self.kept.mode)
            if members:
                self._check_meaning(self.framework.fetch(*computed.raw), members, computed.indices)
        return rows

    def advice(self, error: RowError) -> RowError:
        """The same error, with what to do about it."""
        if self.kept.mode == "logits":
            return error  # a softmax that is none: the message says what the row holds
        return RowError(f"{error}; {output.advice(self.was_auto)}")

    def _check_meaning(self, raw: Array, members: list[int], indices: Indices) -> None:
        assert self.tol is not None
        if self.was_auto:
            output.check_still_logits(raw, members, indices, self.tol)
        elif (text := output.twice_softmax(raw, members, self.tol)) is not None:
            warnings.warn(text, stacklevel=2)

    def _looked_at(self, raw: list[Any], batch: Batch) -> tuple[Any, ...]:
        """The outputs that show what a model gives: all of a batch, or the first rows of tokens."""
        if batch.tokens is None:
            return tuple(raw)
        return (next(rows for rows in raw if rows.shape[0])[:LOOKED_AT],)

    def _decide(self, raw: list[Any], batch: Batch) -> list[Any]:
        assert self.tol is not None
        shown = self.framework.fetch(*self._looked_at(raw, batch))
        self.resolve(output.decide(shown, batch.of_rows(len(shown)), self.tol))
        return [self._keep(tensor) for tensor in raw]

    def resolve(self, mode: output.Mode) -> None:
        """Take it that the models give this, and what is kept of it where nobody said.

        Raises:
            ArgumentError: what is to be kept cannot be made of it.
        """
        kept = self.kept
        kind = kept.kind
        if kind == "auto":
            kind = preferred_kind(kept.encoding, gives_logits=mode == "logits")
        output.check_resolved(mode, kind, kept.temperature)
        self.kept = replace(kept, mode=mode, kind=kind)

    def _keep(self, tensor: Any) -> Any:
        """What is to be kept of an output; where members differ in what they give, of each alone."""
        framework, kept = self.framework, self.kept
        if kept.encoding is not None and kept.dtype != "float64":
            kept = replace(kept, dtype="float32")  # the encoding rounds, once it has chosen
        if isinstance(kept.mode, str):
            rows = framework.keep(tensor, kept)
        else:
            rows = framework.stack(
                [
                    framework.keep(tensor[:, member], replace(kept, mode=mode))
                    for member, mode in enumerate(kept.mode)
                ]
            )
        if kept.encoding is None:
            return rows
        return framework.encode(rows, self.schema(tuple(map(int, tensor.shape[1:]))))

    def schema(self, row_shape: tuple[int, ...]) -> Schema:
        """What rows of this shape are in a store, but for what only the store knows."""
        if self._schema is None or self._schema.row_shape != row_shape:
            kept = self.kept
            self._schema = make_schema(
                row_shape[-1],
                num_members=row_shape[0] if len(row_shape) > 1 else None,
                kind=kept.kind,
                dtype=None if kept.dtype == "auto" else kept.dtype,
                encoding=kept.encoding,
            )
        return self._schema

    def _failed(self, inputs: Any, indices: Indices, error: Exception) -> GenerationError:
        """The error of a model, with what to do where its inputs or their number may be the cause."""
        plain, fixed, usual = (
            failed("model", indices, error),
            self._models.fixed,
            self._models.usual,
        )
        odd = _odd_shape(inputs, self.framework.held)
        if odd is not None:
            place, shape, common = odd
            hint = (
                f"the input of sample {int(indices[place])} has the shape {shape}, and most of the batch "
                f"{common}, so it is no array: pad or crop them in a collate_fn"
            )
        elif fixed is not None and usual is None:
            hint = f"batches are filled up to {fixed} samples: is that what the model takes?"
        elif fixed is not None or len(indices) == usual or not _OF_SHAPES.search(str(error)):
            return plain
        elif usual is None:
            hint = (
                "a model of a fixed batch needs batch_size= its number of samples, and pad_last=True for "
                "the last batch"
            )
        else:
            hint = (
                f"the batches before had {usual} samples: a model that takes no fewer needs "
                f"batch_size={usual} and pad_last=True"
            )
        return GenerationError(f"{plain} ({hint})")

    def _halve_limit(self, size: int) -> None:
        first = self.limit is None
        self.limit = max(size // 2, 1)
        self.framework.free_memory()
        if first:
            warnings.warn(
                f"out of memory with {size} samples at once; going on with {self.limit}, and fewer "
                f"if need be (batch_size={self.limit} avoids the failed try)",
                stacklevel=2,
            )


def _joined(batches: list[Any]) -> Any:
    """The rows of a batch that was computed in several."""
    if not is_namedtuple(batches[0]):
        return np.concatenate(batches)
    columns = zip(*batches, strict=True)
    return type(batches[0])(*(None if one[0] is None else np.concatenate(one) for one in columns))


def _odd_shape(data: Any, held: Callable[[Any], Any]) -> tuple[int, Any, Any] | None:
    """Where inputs are a list since their shapes differ: the first odd one, its shape and the usual one.

    >>> _odd_shape(PerSample([[1, 2], [1, 2], [3]]), lambda leaf: leaf)
    (2, (1,), (2,))
    """
    for _, leaf in leaves(data):
        entries = held(leaf)
        if isinstance(entries, PerSample) and not isinstance(entries[0], str):
            shapes = [np.shape(one) if _is_flat(one) else None for one in entries]
            (usual, _), *others = Counter(shapes).most_common()
            if others:
                place = next(at for at, shape in enumerate(shapes) if shape != usual)
                return place, shapes[place], usual
    return None


def _is_flat(entry: Any) -> bool:
    """Whether an entry has a shape: an array, or a list of numbers that is not ragged within."""
    return hasattr(entry, "shape") or (is_numbers(entry) and not any(map(is_numbers, entry)))
