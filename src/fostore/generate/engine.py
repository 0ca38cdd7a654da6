"""One batch through the model: onto the device, through model and transform, and what is kept of it.

The model always runs in the caller's thread, so that autocast and other contexts hold.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fostore.errors import ArgumentError, FostoreError, RowError
from fostore.generate import output
from fostore.generate.framework import Framework, Selection
from fostore.generate.source import Indices, failed, name_samples
from fostore.nested import slice_rows
from fostore.schema import Array

Model = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Computed:
    """What the device has computed of a batch; `Engine.collect` brings it to the host.

    `raw` is kept only while "auto" has to be checked; `first` is the copy of its first row.
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
        tol: float | None = None,
        halve: bool = True,
    ) -> None:
        self.framework = framework
        self.selection = selection
        self.was_auto = was_auto
        self.limit: int | None = None
        self.tol: float | None = None
        self.dtype = ""
        self._callers = [Caller(framework, model) for model in models]
        self._many = many
        self._transform = transform
        self._tol = tol
        self._halve = halve
        self._row_shape: tuple[int, ...] | None = None

    def compute(self, indices: Indices, inputs: Any) -> Computed:
        """Run the model on one batch; halves it as long as the device's memory does not suffice.

        Raises:
            GenerationError: the model or the transform failed; names the samples.
            ArgumentError, RowError: the output is no batch of rows.
        """
        rows = len(indices)
        raw: list[Any] = []
        kept: list[Any] = []
        start = 0
        while start < rows:
            size = min(self.limit or rows, rows - start)
            try:
                part = inputs if size == rows else slice_rows(inputs, start, start + size, rows)
                tensor = self._run(part, indices[start : start + size])
                known = self.selection.mode != "auto"
                if known:
                    kept.append(self.framework.select(tensor, self.selection))
            except FostoreError:
                raise
            except Exception as error:
                exhausted = self.framework.out_of_memory(error)
                if not exhausted or size == 1 or not self._halve:
                    raise failed("model", indices[start : start + size], error) from error
            else:
                raw.append(tensor)
                start += size
                continue
            self._halve_limit(size)  # out here, where the error and its tensors are gone
        if self.selection.mode == "auto":
            kept = self._decide(raw, indices)
        copies = tuple(self.framework.start_copy(tensor) for tensor in kept)
        if self.was_auto and self.selection.mode == "logits":
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
            assert self.tol is not None
            first = self.framework.finish_copy(computed.first)
            if output.may_be_distribution(first, self.tol):
                output.check_still_logits(self._fetch(computed.raw), computed.indices, self.tol)
        return rows

    def advice(self, error: RowError) -> RowError:
        """The same error, with what to do about it."""
        if self.selection.mode == "logits":
            return error  # a softmax that is none: the message says what the row holds
        return RowError(f"{error}; {output.advice(self.was_auto)}")

    def _run(self, inputs: Any, indices: Indices) -> Any:
        framework = self.framework
        placed = framework.to_device(inputs)
        outputs: Any = [call(placed) for call in self._callers]
        if not self._many:
            outputs = outputs[0]
        if self._transform is not None:
            # Of several models it gets the list of their outputs, as in the guide's ensemble averaging.
            outputs = self._transform(outputs)
            if self._many and isinstance(outputs, (list, tuple)):
                outputs = framework.stack([self._tensor(item, "the transform") for item in outputs])
            tensor = self._tensor(outputs, "output_transform")
        elif self._many:
            tensors = [self._tensor(item, "Model", True) for item in outputs]
            shapes = {tuple(tensor.shape) for tensor in tensors}
            if len(shapes) > 1:
                raise ArgumentError(
                    f"the models give outputs of different shapes: {sorted(shapes)}"
                )
            tensor = framework.stack(tensors)
        else:
            tensor = self._tensor(outputs, "Model", True)
        self._check(tensor, indices)
        if self.tol is None:
            self.dtype = self.framework.dtype_name(tensor)
            self.tol = output.tolerance(self.dtype, tensor.shape[-1], self._tol)
        return tensor

    def _tensor(self, value: Any, who: str, may_be_logits: bool = False) -> Any:
        tensor = self.framework.tensor(value)
        if tensor is not None:
            return tensor
        if may_be_logits:
            inner = value.get("logits") if isinstance(value, Mapping) else None
            inner = getattr(value, "logits", None) if inner is None else inner
            tensor = None if inner is None else self.framework.tensor(inner)
            if tensor is not None:
                return tensor
        what = type(value).__name__
        if isinstance(value, Mapping):
            what += f" with the keys {list(value)[:6]}"
        raise ArgumentError(
            f"{who} must return {self.framework.tensor_name}, not {what}; give an "
            "output_transform such as lambda output: output['logits'], or wrap the model"
        )

    def _check(self, tensor: Any, indices: Indices) -> None:
        shape = tuple(int(n) for n in tensor.shape)
        rows = len(indices)
        if not self.framework.is_floating(tensor):
            raise ArgumentError(
                f"the model's output has dtype {self.framework.dtype_name(tensor)}; distributions "
                "and logits are floating point numbers (class numbers are not enough)"
            )
        if len(shape) not in (2, 3) or 0 in shape[1:]:
            raise ArgumentError(
                f"the model's output for {name_samples(indices)} has the shape {shape}, expected "
                f"({rows}, classes) or ({rows}, members, classes); "
                "bring it into that shape in output_transform"
            )
        if shape[0] != rows:
            raise ArgumentError(
                f"the model gave {shape[0]} rows for the {rows} samples of a batch "
                f"({name_samples(indices)}); every sample needs one row, and no collate_fn may "
                "leave samples out"
            )
        if self._row_shape not in (None, shape[1:]):
            raise ArgumentError(
                f"the model gives rows of shape {shape[1:]} for {name_samples(indices)}, and gave "
                f"{self._row_shape} before; every sample needs the same classes"
            )
        self._row_shape = shape[1:]
        if shape[-1] == 1 and self.selection.mode != "probs":
            raise ArgumentError(
                "the model gives one number a sample, whose softmax is always 1; for a binary model "
                "return both classes in output_transform, such as [1 - p, p]"
            )

    def _decide(self, raw: list[Any], indices: Indices) -> list[Any]:
        assert self.tol is not None
        mode = output.decide(self._fetch(raw), indices, self.tol)
        output.check_resolved(mode, self.selection.kind, self.selection.temperature)
        self.selection = replace(self.selection, mode=mode)
        return [self.framework.select(tensor, self.selection) for tensor in raw]

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


class Caller:
    """How a model takes a batch: `model(batch)`, or `model(**batch)` where a dict fits its parameters."""

    def __init__(self, framework: Framework, model: Model) -> None:
        self._framework = framework
        self._model = model
        self._spread: bool | None = None

    def __call__(self, inputs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return self._model(inputs)
        if self._spread is None:
            self._spread = takes_keywords(self._framework.signature(self._model), list(inputs))
        return self._model(**inputs) if self._spread else self._model(inputs)


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
