"""One batch through the model: onto the device, through model and transform, and what is kept of it.

The model always runs in the caller's thread, so that autocast and other contexts hold.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FostoreError, GenerationError, RowError
from fostore.generate import axes, output
from fostore.generate.draws import Call, Drawing, Views, repeats
from fostore.generate.framework import Framework, Selection, copied
from fostore.generate.source import Indices, failed
from fostore.nested import (
    PerSample,
    is_entries,
    is_numbers,
    leaves,
    pad_rows,
    slice_rows,
    take_rows,
)
from fostore.schema.row import Array

Model = Callable[..., Any]
_OF_SHAPES = re.compile("shape|dimension|size", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Computed:
    """What the device has computed of a batch; `Engine.collect` brings it to the host.

    `raw` is kept only where it is checked what its numbers mean; `first` is a copy of its first row.
    """

    indices: Indices
    copies: tuple[Any, ...]
    raw: tuple[Any, ...] = ()
    first: Any = None


class Engine:
    """Models, what their output means and what is kept of it: a function from inputs to rows.

    `selection.mode` is "auto" until the first batch has decided. `limit` is the number of samples
    that fit the device, once an out-of-memory error has shown it; `dtype` is that of the outputs and
    `tol` how far sums may be off in it, known from the first batch on.

    No model sees memory that anybody else holds: what it does to its input reaches neither the
    user's data nor the next model.
    """

    def __init__(
        self,
        framework: Framework,
        models: Sequence[Model],
        *,
        many: bool,
        transform: Callable[[Any], Any] | None,
        selection: Selection,
        was_auto: bool,
        members: bool = False,
        again: Callable[[Indices], Any] | None = None,
        fixed: int | None = None,
        tol: float | None = None,
        trying: bool = False,
        drawing: Drawing | None = None,
    ) -> None:
        """`many`: a list of models, whose outputs are members; `members`: one model that gives them.

        Args:
            again: reads a batch once more; given where batches are gathered freshly, so that the
                last model may have the batch itself and not a copy of it.
            fixed: samples that the models take at once, no more and no fewer.
            trying: it is tried only whether a batch runs: it is not halved, and nobody asks what
                its numbers mean.
        """
        self.framework = framework
        self.selection = selection
        self.was_auto = was_auto and not trying
        self.limit: int | None = None
        self.tol: float | None = None
        self.dtype = ""
        self._callers = [Caller(framework, model) for model in models]
        self._many = many or drawing is not None
        self._transform = None if transform is None else Guarded(framework, transform)
        self._members = members
        self._again = again
        self._fixed = fixed
        self._drawing = drawing
        self._looked = trying
        self._sayings: list[str] = []
        self._tol = tol
        self._halve = not trying and fixed is None
        self._row_shape: tuple[int, ...] | None = None
        self._name = "output"  # how a transform reaches what is stored
        self._usual: int | None = None  # rows of the largest batch that came through
        self._first_axis_counts = False  # whether it is known that axis 0 counts the samples
        self._checked_meaning = trying

    def compute(self, indices: Indices, inputs: Any) -> Computed:
        """Run the model on one batch; halves it as long as the device's memory does not suffice.

        Where batches are gathered freshly (`again`) the model may change `inputs`: read them anew to
        compute them once more.

        Raises:
            GenerationError: the model or the transform failed; names the samples.
            ArgumentError, RowError: the output is no batch of rows.
        """
        rows = len(indices)
        raw: list[Any] = []
        kept: list[Any] = []
        start = 0
        while start < rows:
            size = min(self._fixed or self.limit or rows, rows - start)
            if size < rows and self._drawing is not None:
                raise ArgumentError(
                    f"the model takes {size} samples at once, and draws are a function of their batch: "
                    f"give batch_size={size}"
                )
            part = inputs if size == rows else slice_rows(inputs, start, start + size, rows)
            try:
                tensor = self._run(part, indices[start : start + size])
                if size < rows:
                    tensor = copied(tensor)  # models may use the memory of an output again
                if self.selection.mode != "auto":
                    kept.append(self._select(tensor))
            except FostoreError:
                raise
            except Exception as error:
                exhausted = self.framework.out_of_memory(error)
                if exhausted and self._drawing is not None:
                    raise self._drawing.out_of_memory(size) from error
                if not exhausted or size == 1 or not self._halve:
                    raise self._failed(part, indices[start : start + size], error) from error
            else:
                raw.append(tensor)
                start += size
                continue
            self._halve_limit(size)  # out here, where the error and its tensors are gone
            if self._again is not None:
                inputs = self._again(indices)  # the model may have changed it before memory ran out
        for text in self._sayings:  # out here, where a warning is no error of the model's
            warnings.warn(text, stacklevel=2)
        self._sayings = []
        if self.selection.mode == "auto":
            kept = self._decide(raw, indices)
        copies = tuple(self.framework.start_copy(tensor) for tensor in kept)
        self._usual = max(rows, self._usual or 0)
        checks = "logits" in self.selection.mode and (self.was_auto or not self._checked_meaning)
        self._checked_meaning = True
        if checks:
            return Computed(indices, copies, tuple(raw), self.framework.start_copy(raw[0][:1]))
        return Computed(indices, copies)

    def collect(self, computed: Computed) -> Array:
        """The rows of a batch on the host, as the selection's kind; may alias the model's output.

        Raises:
            RowError: "auto" was decided for logits and this batch contradicts it.
        """
        parts = [self.framework.finish_copy(copy) for copy in computed.copies]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if computed.raw:
            first = self.framework.finish_copy(computed.first)
            members = output.suspects(first, self.selection.mode)
            if members:
                self._check_meaning(self._fetch(computed.raw), members, computed.indices)
        return rows

    def _check_meaning(self, raw: Array, members: list[int], indices: Indices) -> None:
        assert self.tol is not None
        if self.was_auto:
            output.check_still_logits(raw, members, indices, self.tol)
        elif (said := output.twice_softmax(raw, members, self.tol)) is not None:
            warnings.warn(said, stacklevel=2)

    def advice(self, error: RowError) -> RowError:
        """The same error, with what to do about it."""
        if self.selection.mode == "logits":
            return error  # a softmax that is none: the message says what the row holds
        return RowError(f"{error}; {output.advice(self.was_auto)}")

    def _run(self, inputs: Any, indices: Indices) -> Any:
        """One batch through the models; on the first one it is seen whether they draw."""
        if self._looked:
            return self._once(inputs, indices)
        framework, drawing = self.framework, self._drawing
        kept = inputs if drawing is not None else copied(inputs)  # the model may change it
        before = framework.random_state()
        tensor = self._once(inputs, indices)
        drew = framework.random_state() != before
        rows = self._fetch([copied(tensor)])
        with framework.kept_random_states():
            if drawing is not None:
                (first,) = drawing.outputs(self._draw_of(indices), inputs, indices, 1)
                self._sayings = drawing.check_first(rows, self._fetch([first])[: len(rows)])
            else:
                again = self._fetch([self._once(kept, indices)]) if drew else None
                self._sayings = repeats(rows, again)
        self._looked = True
        return tensor

    def _once(self, inputs: Any, indices: Indices) -> Any:
        rows, filled = len(indices), self._fixed or 0
        owned = self._again is not None and is_stacked(inputs, rows)
        if rows < filled and self._drawing is None:
            inputs, owned = pad_rows(inputs, rows, filled), True
        tensor, members = self._joined(self._outputs(inputs, indices, owned), indices)
        self._check(tensor, max(rows, filled), indices, members)
        if not self._first_axis_counts:
            count = rows if self._drawing is not None else max(rows, filled)
            tensor = self._counting_first(tensor, inputs, count, indices)
        if self.tol is None:
            self.dtype = self.framework.dtype_name(tensor)
            self.tol = output.tolerance(self.dtype, tensor.shape[-1], self._tol)
        return tensor[:rows] if rows < filled else tensor

    def _outputs(self, inputs: Any, indices: Indices, owned: bool) -> list[Any]:
        """What each model gives for a batch, each from the same input in memory of its own."""
        if self._drawing is not None:
            return self._drawing.outputs(self._draw_of(indices), inputs, indices)
        placed = self.framework.to_device(inputs, copy=not owned)
        outputs = []
        for call in self._callers[:-1]:
            given = call(self.framework.to_device(placed, copy=True))
            if self._transform is None:
                given = self._tensor(given, "Model", indices, True)
            tensor = self.framework.tensor(given)
            # The next model may use the memory of this output again: a buffer that they share.
            outputs.append(given if tensor is None else copied(tensor))
        return [*outputs, self._callers[-1](placed)]

    def _draw_of(self, indices: Indices) -> Call:
        """What makes one draw of a batch, transformed: (n, classes), in memory of its own."""
        rows, filled = len(indices), self._fixed or 0

        def draw(view: Any, keywords: dict[str, Any]) -> Any:
            padded = pad_rows(view, rows, filled) if rows < filled else view
            given = self._callers[0](self.framework.to_device(padded, copy=True), **keywords)
            if self._transform is not None:
                given = self._transform(given)
            tensor = self._tensor(given, "Model", indices, self._transform is None)
            if len(tensor.shape) != 2:
                raise ArgumentError(
                    f"one draw has the shape {tuple(tensor.shape)}, and num_draws= fills the member "
                    "axis: expected (samples, classes); bring it into that shape in output_transform"
                )
            return copied(tensor)

        return draw

    def _joined(self, outputs: Any, indices: Indices) -> tuple[Any, bool]:
        """The outputs of the models as one tensor, and whether it has an axis of members."""
        framework = self.framework
        if not self._many:
            outputs = outputs[0]
        if self._transform is not None and self._drawing is None:
            # Of several models it gets the list of their outputs, as in the guide's ensemble averaging.
            outputs = self._transform(outputs)
            if self._many and isinstance(outputs, (list, tuple)):
                tensors = [self._tensor(item, "the transform", indices) for item in outputs]
                return framework.stack(self._alike(tensors, indices)), True
            return self._tensor(outputs, "output_transform", indices), self._members
        if not self._many:
            return self._tensor(outputs, "Model", indices, True), self._members
        tensors = [self._tensor(item, "Model", indices, True) for item in outputs]
        return framework.stack(self._alike(tensors, indices)), True

    def _alike(self, tensors: list[Any], indices: Indices) -> list[Any]:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(set(shapes)) > 1:
            raise ArgumentError(f"the models give outputs of different shapes: {sorted(shapes)}")
        for number, shape in enumerate(shapes):
            axes.check_member(shape, number, len(indices), indices, self._name)
        return tensors

    def _tensor(self, value: Any, who: str, indices: Indices, may_be_logits: bool = False) -> Any:
        tensor = self.framework.tensor(value)
        if tensor is not None:
            return tensor
        if may_be_logits:
            inner, self._name = None, "output.logits"
            if isinstance(value, Mapping) and "logits" in value:
                inner, self._name = value["logits"], "output['logits']"
            inner = getattr(value, "logits", None) if inner is None else inner
            tensor = None if inner is None else self.framework.tensor(inner)
            if tensor is not None:
                return tensor
        what, cure = axes.taken_apart(value, len(indices))
        raise ArgumentError(
            f"{who} must return {self.framework.tensor_name}, not {what}; give an "
            f"output_transform such as {cure}, or wrap the model"
        )

    def _counting_first(self, tensor: Any, inputs: Any, rows: int, indices: Indices) -> Any:
        """The output, once it is known that axis 0 counts the samples.

        Where another axis is as long as the first batch, the models run once more, on one sample
        less: the axis that follows is that of the samples. Models that take no fewer get them in
        another order, and it is seen which axis takes it on. Costs nothing else, and later nothing.

        Args:
            rows: samples in `inputs`, those that fill a batch included.

        Raises:
            ArgumentError: another axis follows; says how to swap them.
        """
        shape = tuple(tensor.shape)
        self._first_axis_counts = True
        others = [axis for axis in range(1, len(shape)) if shape[axis] == rows > 1]
        if not others:
            return tensor
        tensor = copied(tensor)  # models may use the memory of an output again
        shown = inputs.first if isinstance(inputs, Views) else inputs

        def given(part: Any) -> Any:
            with self.framework.kept_random_states():
                outputs = self._outputs(part, indices, self._again is not None)
                return self._joined(outputs, indices)[0]

        try:
            found = tuple(given(slice_rows(shown, 0, rows - 1, rows)).shape)
        except Exception:  # a model that takes no other number of samples
            try:
                after = self._fetch([given(take_rows(shown, np.roll(np.arange(rows), -1), rows))])
            except Exception:  # nor in another order: it does not show it
                return tensor
            follows = axes.turned(self._fetch([tensor]), after, others)
        else:
            is_like = len(found) == len(shape) and found[0] == rows
            follows = [axis for axis in others if is_like and found[axis] == rows - 1]
        for axis in follows:
            raise axes.swapped(shape, axis, rows, indices, self._name)
        return tensor

    def _check(self, tensor: Any, rows: int, indices: Indices, members: bool) -> None:
        shape = tuple(int(n) for n in tensor.shape)
        if not self.framework.is_floating(tensor):
            raise ArgumentError(
                f"the model's output has dtype {self.framework.dtype_name(tensor)}; distributions "
                "and logits are floating point numbers (class numbers are not enough)"
            )
        axes.check_axes(shape, rows, indices, members=members, name=self._name, usual=self._usual)
        axes.check_same(shape[1:], self._row_shape or shape[1:], indices)
        self._row_shape = shape[1:]
        if shape[-1] == 1:
            raise ArgumentError(
                "the model gives one number a sample, whose softmax is always 1; for a binary model "
                "return both classes in output_transform, such as [1 - p, p]"
            )

    def _decide(self, raw: list[Any], indices: Indices) -> list[Any]:
        assert self.tol is not None
        mode = output.decide(self._fetch(raw), indices, self.tol)
        output.check_resolved(mode, self.selection.kind, self.selection.temperature)
        self.selection = replace(self.selection, mode=mode)
        return [self._select(tensor) for tensor in raw]

    def _select(self, tensor: Any) -> Any:
        """What is to be kept of an output; where members differ in what they give, of each alone."""
        framework, selection = self.framework, self.selection
        if isinstance(selection.mode, str):
            return framework.select(tensor, selection)
        return framework.stack(
            [
                framework.select(tensor[:, member], replace(selection, mode=mode))
                for member, mode in enumerate(selection.mode)
            ]
        )

    def _failed(self, inputs: Any, indices: Indices, error: Exception) -> GenerationError:
        """The error of a model, with what to do where its inputs or their number may be the cause."""
        found = failed("model", indices, error)
        odd = odd_shape(inputs, self.framework.host)
        if odd is not None:
            place, shape, usual = odd
            return GenerationError(
                f"{found} (the input of sample {int(indices[place])} has the shape {shape}, and most of the "
                f"batch {usual}, so it is no array: pad or crop them in a collate_fn)"
            )
        if self._fixed is not None and self._usual is None:
            return GenerationError(
                f"{found} (batches are filled up to {self._fixed} samples: is that what the model takes?)"
            )
        if self._fixed is not None or _OF_SHAPES.search(str(error)) is None:
            return found
        if self._usual is None:
            hint = "a model of a fixed batch needs batch_size= its number of samples, and "
            return GenerationError(f"{found} ({hint}pad_last=True for the last batch)")
        if len(indices) == self._usual:
            return found
        return GenerationError(
            f"{found} (the batches before had {self._usual} samples: a model that takes no fewer needs "
            f"batch_size={self._usual} and pad_last=True)"
        )

    def _fetch(self, tensors: Sequence[Any]) -> Array:
        framework = self.framework
        parts = [framework.finish_copy(framework.start_copy(tensor)) for tensor in tensors]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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


def is_stacked(data: Any, rows: int) -> bool:
    """Whether a batch is all arrays (or lists of strings) that collation has put together.

    >>> is_stacked({"x": np.zeros((3, 2))}, 3), is_stacked([np.zeros(2), np.zeros(4)], 2)
    (True, False)
    """
    if isinstance(data, Mapping):
        return all(is_stacked(part, rows) for part in data.values())
    if isinstance(data, (list, tuple)):
        return is_entries(data) or all(is_stacked(part, rows) for part in data)
    shape = getattr(data, "shape", None)
    return shape is not None and len(shape) > 0 and shape[0] == rows


def odd_shape(data: Any, host: Callable[[Any], Any]) -> tuple[int, Any, Any] | None:
    """Where inputs are a list since their shapes differ: the first odd one, its shape and the usual one.

    >>> odd_shape(PerSample([[1, 2], [1, 2], [3]]), lambda leaf: None)
    (2, (1,), (2,))
    """
    for _, leaf in leaves(data):
        held = host(leaf)
        entries = leaf if held is None else held
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


class Caller:
    """How a model takes a batch: `model(batch)`, or `model(**batch)` where a dict fits its parameters."""

    def __init__(self, framework: Framework, model: Model) -> None:
        self._framework = framework
        self._model = model
        self._spread: bool | None = None

    def __call__(self, inputs: Any, **keywords: Any) -> Any:
        if isinstance(inputs, Mapping) and self._spread is None:
            keys = [*inputs, *keywords]
            self._spread = takes_keywords(self._framework.signature(self._model), keys)
        with self._framework.calling():
            if self._spread:
                return self._model(**{**keywords, **inputs})
            return self._model(inputs, **keywords)


class Guarded:
    """A transform, called as a model is: a module in it is caught training as well."""

    def __init__(self, framework: Framework, transform: Callable[[Any], Any]) -> None:
        self._framework = framework
        self._transform = transform

    def __call__(self, outputs: Any) -> Any:
        with self._framework.calling():
            return self._transform(outputs)


def takes_keywords(signature: inspect.Signature | None, keys: Sequence[str]) -> bool:
    """Whether a dict batch with `keys` is meant as keyword arguments.

    Raises:
        ArgumentError: the required parameters are among the keys, but other keys are not parameters.

    >>> takes_keywords(inspect.signature(lambda input_ids, mask=None: 0), ["input_ids", "mask"])
    True
    >>> takes_keywords(inspect.signature(lambda batch: batch["x"]), ["x", "y"])
    False
    """
    if signature is None or not all(isinstance(key, str) for key in keys):
        return False
    parameters = signature.parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = {
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if not required <= set(keys) or not (required or named & set(keys) or _is_open(signature)):
        return False
    unknown = [key for key in keys if key not in named]
    if not unknown or _is_open(signature):
        return True
    raise ArgumentError(
        f"the model takes {sorted(named)}, and the batch also holds {unknown}; leave them out in an "
        "input_getter, such as lambda sample: {key: sample[key] for key in ...}"
    )


def _is_open(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
