"""Models as one function: a batch of inputs in, one tensor (samples, [members,] classes) out.

They always run in the caller's thread, so that autocast and other contexts hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.generate import axes
from fostore.generate.draws import Call, Drawing, Views, repeats
from fostore.generate.framework import Framework, Model
from fostore.generate.memory import copied
from fostore.generate.samples import Indices, name_samples
from fostore.generate.tokens import LOOKED_AT, Tokens
from fostore.nested import is_entries, pad_rows, slice_rows, take_rows
from fostore.schema.row import Array


class Models:
    """One model or several, what a transform makes of their outputs, and what is known of these.

    No model sees memory that anybody else holds: what it does to its input reaches neither the
    user's data nor the next model.
    """

    def __init__(
        self,
        framework: Framework,
        models: Sequence[Model],
        *,
        many: bool,
        members: bool = False,
        transform: Model | None = None,
        drawing: Drawing | None = None,
        fixed: int | None = None,
        fresh: bool = False,
        looked: bool = False,
    ) -> None:
        """
        Args:
            many: a list of models, whose outputs are members; `members`: one model that gives them.
            fixed: samples that the models take at once, no more and no fewer.
            fresh: batches are gathered freshly, so that the last model may have the batch itself.
            looked: nobody asks whether outputs repeat.
        """
        self.drawing = drawing
        self.fixed = fixed
        self.sayings: list[str] = []
        """What is to be said to the user of the first batch."""
        self.usual: int | None = None
        """Samples of the largest batch that came through."""
        self._framework = framework
        self._calls = [_Caller(framework, model) for model in models]
        self._many = many or drawing is not None
        self._members = members
        self._transform = transform
        self._fresh = fresh
        self._looked = looked
        self._row_shape: tuple[int, ...] | None = None
        self._name = "output"  # how a transform reaches what is kept
        self._first_axis_counts = False  # whether it is known that axis 0 counts the samples
        self._padding_is_nothing = (
            False  # whether it is known that rows are the same without padding
        )

    def __call__(self, inputs: Any, indices: Indices, tokens: Tokens | None = None) -> Any:
        """The output for a batch; on the first one it is seen whether the models draw.

        Args:
            tokens: the positions of sequences that are rows: of these the output is made.
        """
        if self._looked:
            return self._output(inputs, indices, tokens)
        framework, drawing = self._framework, self.drawing
        unspoilt = inputs if drawing is not None else copied(inputs)  # the model may change it
        # compared, not counted: a state moves whoever draws, in the library, in NumPy or in Python
        before = framework.random_state()
        tensor = self._output(inputs, indices, tokens)
        drew = framework.random_state() != before
        some = slice(None if tokens is None else LOOKED_AT)
        rows = framework.fetch(copied(tensor[some]))
        with framework.kept_random_states():
            if drawing is not None:
                (first,) = drawing.outputs(self._draw_of(indices), inputs, indices, 1)
                self.sayings = drawing.check_first(rows, framework.fetch(first)[: len(rows)])
            else:
                again = None
                if drew:
                    again = framework.fetch(self._output(unspoilt, indices, tokens)[some])
                self.sayings = repeats(rows, again)
        self._looked = True
        return tensor

    def _output(self, inputs: Any, indices: Indices, tokens: Tokens | None) -> Any:
        rows = len(indices)
        filled = max(rows, self.fixed or 0)
        owned = self._fresh and _is_stacked(inputs, rows)
        if rows < filled and self.drawing is None:
            inputs, owned = pad_rows(inputs, rows, filled), True
        alone = None
        if tokens is not None:
            self._check_sequences_first(inputs, filled, indices, tokens)
            alone = self._alone(inputs, indices, tokens)
        outputs = self._outputs(inputs, indices, owned)
        tensor, members = self._joined(outputs, indices, filled, tokens)
        if tokens is not None:
            if alone is not None:
                self._check_padding(tensor, *alone, indices)
            if len(tokens):  # none where sequences are computed one by one, and this one is empty
                self._check(tensor, len(tokens), indices, members)
            return tensor
        if self._members:
            axes.refuse_tokens(tuple(tensor.shape), inputs, indices)
        self._check(tensor, filled, indices, members)
        if not self._first_axis_counts:
            count = rows if self.drawing is not None else filled
            tensor = self._counting_first(tensor, inputs, count, indices)
        return tensor[:rows] if rows < filled else tensor

    def _outputs(self, inputs: Any, indices: Indices, owned: bool) -> list[Any]:
        """What each model gives for a batch, each from the same input in memory of its own."""
        if self.drawing is not None:
            return self.drawing.outputs(self._draw_of(indices), inputs, indices)
        placed = self._framework.to_device(inputs, copy=not owned)
        outputs = []
        for call in self._calls[:-1]:
            given = call(self._framework.to_device(placed, copy=True))
            if self._transform is None:
                given = self._tensor(given, indices)
            tensor = self._framework.tensor(given)
            # The next model may use the memory of this output again: a buffer that they share.
            outputs.append(given if tensor is None else copied(tensor))
        return [*outputs, self._calls[-1](placed)]

    def _draw_of(self, indices: Indices) -> Call:
        """What makes one draw of a batch, transformed: (n, classes), in memory of its own."""
        rows, filled = len(indices), self.fixed or 0

        def draw(view: Any, keywords: dict[str, Any]) -> Any:
            padded = pad_rows(view, rows, filled) if rows < filled else view
            given = self._calls[0](self._framework.to_device(padded, copy=True), **keywords)
            if self._transform is None:
                tensor = self._tensor(given, indices)
            else:
                tensor = self._tensor(self._transformed(given), indices, "Model")
            if len(tensor.shape) != 2:
                raise ArgumentError(
                    f"one draw has the shape {tuple(tensor.shape)}, and num_draws= fills the member "
                    "axis: expected (samples, classes); bring it into that shape in output_transform"
                )
            return copied(tensor)

        return draw

    def _transformed(self, outputs: Any) -> Any:
        assert self._transform is not None
        with self._framework.calling():  # a module in it is caught training as well
            return self._transform(outputs)

    def _joined(
        self, outputs: Any, indices: Indices, rows: int = 0, tokens: Tokens | None = None
    ) -> tuple[Any, bool]:
        """The outputs of the models as one tensor, and whether it has an axis of members.

        Of sequences the rows that `tokens` names, of a batch that has been filled up to `rows`.
        """

        def one_tensor(value: Any, who: str | None = None) -> Any:
            tensor = self._tensor(value, indices, who)
            if tokens is None:
                return tensor
            axes.check_sequences(tuple(tensor.shape), (rows, tokens.shape[1]), indices, self._name)
            return tokens.take(tensor)

        who = None if self.drawing is None else "Model"
        if not self._many:
            outputs = outputs[0]
        if self._transform is not None and self.drawing is None:
            # Of several models it gets the list of their outputs, as in the guide's ensemble averaging.
            outputs, who = self._transformed(outputs), "output_transform"
            if not (self._many and isinstance(outputs, (list, tuple))):
                return one_tensor(outputs, who), self._members
            who = "the transform"
        elif not self._many:
            return one_tensor(outputs), self._members
        tensors = [one_tensor(one, who) for one in outputs]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(set(shapes)) > 1:
            raise ArgumentError(f"the models give outputs of different shapes: {sorted(shapes)}")
        for number, shape in enumerate(shapes):
            axes.check_member(shape, number, len(indices), indices, self._name)
        return self._framework.stack(tensors), True

    def _check_sequences_first(
        self, inputs: Any, rows: int, indices: Indices, tokens: Tokens
    ) -> None:
        """Where sequences are as many as tokens each, one of them less shows which axis counts them; once."""
        if self._first_axis_counts or rows != tokens.shape[1] or rows < 2:
            return
        self._first_axis_counts = True
        fewer = slice_rows(copied(inputs), 0, rows - 1, rows)
        try:
            with self._framework.kept_random_states():
                outputs = self._outputs(fewer, indices[: rows - 1], owned=True)
        except Exception:  # a model that takes no other number of sequences
            return
        self._joined(outputs, indices[: rows - 1], rows - 1, tokens.of(0, rows - 1))

    def _alone(self, inputs: Any, indices: Indices, tokens: Tokens) -> tuple[Array, Array] | None:
        """Rows of the first batch that has padding, and what they are without it; costs one sequence, once."""
        picked = None if self._padding_is_nothing else tokens.alone()
        if picked is None:
            return None
        self._padding_is_nothing = True
        sequence, own = picked
        given = copied(tokens.cut(inputs, sequence))
        try:
            with self._framework.kept_random_states():
                outputs = self._outputs(given, indices[sequence : sequence + 1], owned=True)
                rows, _ = self._joined(outputs, indices[sequence : sequence + 1], 1, own)
        except Exception:  # a model that takes no other number of sequences, or of tokens
            return None
        places = np.flatnonzero(tokens.sequences == sequence)[:LOOKED_AT]
        return places, self._framework.fetch(copied(rows[:LOOKED_AT]))

    def _check_padding(self, tensor: Any, places: Array, alone: Array, indices: Indices) -> None:
        """Raise where a model gives other rows to a sequence that is padded than to the same one alone."""
        padded = self._framework.fetch(copied(tensor[places]))
        scale = float(np.abs(alone[np.isfinite(alone)]).max(initial=0))
        close = np.isclose(padded, alone, rtol=axes.ALIKE, atol=axes.ALIKE * scale, equal_nan=True)
        if not close.all():
            raise ArgumentError(
                f"the model gives other distributions where sequences are padded than to one alone (in "
                f"{name_samples(indices)}): it counts positions with the padding before them, or sees the "
                "padding behind. Pad on the right, give 'attention_mask' or 'position_ids', or "
                "batch_size=1"
            )

    def _tensor(self, value: Any, indices: Indices, who: str | None = None) -> Any:
        """An output as a tensor; `who` gave it where it is no model, whose logits may lie within."""
        framework = self._framework
        tensor = framework.tensor(value)
        if tensor is not None:
            return tensor
        if who is None:
            inner, self._name = None, "output.logits"
            if isinstance(value, Mapping) and "logits" in value:
                inner, self._name = value["logits"], "output['logits']"
            inner = getattr(value, "logits", None) if inner is None else inner
            tensor = None if inner is None else framework.tensor(inner)
            if tensor is not None:
                return tensor
        what, cure = axes.taken_apart(value, len(indices))
        raise ArgumentError(
            f"{who or 'Model'} must return {framework.tensor_name}, not {what}; give an "
            f"output_transform such as {cure}, or wrap the model"
        )

    def _check(self, tensor: Any, rows: int, indices: Indices, members: bool) -> None:
        shape = tuple(map(int, tensor.shape))
        if not self._framework.is_floating(tensor):
            raise ArgumentError(
                f"the model's output has dtype {self._framework.dtype_name(tensor)}; distributions "
                "and logits are floating point numbers (class numbers are not enough)"
            )
        axes.check_axes(shape, rows, indices, members=members, name=self._name, usual=self.usual)
        axes.check_same(shape[1:], self._row_shape or shape[1:], indices)
        self._row_shape = shape[1:]  # of the first batch, for all that follow
        if shape[-1] == 1:
            raise ArgumentError(
                "the model gives one number a sample, whose softmax is always 1; for a binary model "
                "return both classes in output_transform, such as [1 - p, p]"
            )

    def _counting_first(self, tensor: Any, inputs: Any, rows: int, indices: Indices) -> Any:
        """The output, once it is known that axis 0 counts the samples.

        Where another axis is as long as the first batch, the models run once more, on one sample
        less: the axis that follows is that of the samples. Models that take no fewer get them in
        another order, and it is seen which axis takes it on. Costs nothing else, and later nothing.
        `rows`: samples in `inputs`, those that fill a batch included.
        """
        shape = tuple(tensor.shape)
        self._first_axis_counts = True
        others = [axis for axis in range(1, len(shape)) if shape[axis] == rows > 1]
        if not others:
            return tensor
        framework = self._framework
        tensor = copied(tensor)  # models may use the memory of an output again
        shown = inputs.first if isinstance(inputs, Views) else inputs

        def given(part: Any) -> Any:
            with framework.kept_random_states():
                return self._joined(self._outputs(part, indices, self._fresh), indices)[0]

        try:
            fewer = tuple(given(slice_rows(shown, 0, rows - 1, rows)).shape)
        except Exception:  # a model that takes no other number of samples
            try:
                after = framework.fetch(given(take_rows(shown, np.roll(np.arange(rows), -1), rows)))
            except Exception:  # nor in another order: it does not show it
                return tensor
            follows = axes.turned(framework.fetch(tensor), after, others)
        else:
            is_like = len(fewer) == len(shape) and fewer[0] == rows
            follows = [axis for axis in others if is_like and fewer[axis] == rows - 1]
        for axis in follows:
            raise axes.swapped(shape, axis, rows, indices, self._name)
        return tensor


def _is_stacked(data: Any, rows: int) -> bool:
    """Whether a batch is all arrays (or lists of strings) that collation has put together.

    >>> _is_stacked({"x": np.zeros((3, 2))}, 3), _is_stacked([np.zeros(2), np.zeros(4)], 2)
    (True, False)
    """
    if isinstance(data, Mapping):
        return all(_is_stacked(part, rows) for part in data.values())
    if isinstance(data, (list, tuple)):
        return is_entries(data) or all(_is_stacked(part, rows) for part in data)
    shape = getattr(data, "shape", None)
    return shape is not None and len(shape) > 0 and shape[0] == rows


class _Caller:
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
    variable = {p.kind for p in parameters} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in variable}
    is_open = inspect.Parameter.VAR_KEYWORD in variable
    if not required <= set(keys) or not (required or named & set(keys) or is_open):
        return False
    unknown = [key for key in keys if key not in named]
    if not unknown or is_open:
        return True
    raise ArgumentError(
        f"the model takes {sorted(named)}, and the batch also holds {unknown}; leave them out in an "
        "input_getter, such as lambda sample: {key: sample[key] for key in ...}"
    )
