"""Models that other libraries run by a method of theirs, made callable: the one place that knows which.

Nothing is imported for it: a scikit-learn estimator is what has `predict_proba`, a Keras model what
has `predict_on_batch`, an ONNX Runtime session what has `get_inputs`, `get_outputs` and `run`, and
what `jax.export` gives what has `call` and `in_avals`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema import identity
from fostore.schema.row import Array

_ONNX_DTYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Adapted:
    """A model of another library as a function of one batch, and what of it can be hashed."""

    def __init__(
        self,
        model: Any,
        call: Callable[[Any], Any],
        state: Callable[[], Mapping[str, Any]],
        shapes: Sequence[Any] = (),
        *,
        is_plain: bool = False,
    ) -> None:
        """`shapes`: of the inputs, where the model declares them; `is_plain`: its attributes are all there is."""
        self._model = model
        self._call = call
        self._state = state
        self._is_plain = is_plain
        self.batch = _same_first(shapes)

    # `*batch`: a dict of inputs is one batch here, never keyword arguments.
    def __call__(self, *batch: Any) -> Any:
        return self._call(*batch)

    def describe(self) -> dict[str, Any]:
        """Its identity: class, learned state by name, and the rest of what it holds as details."""
        hashed = {name: identity.hash_leaves(value) for name, value in self._state().items()}
        tensors = {
            f"{name}{inner}": entry
            for name, entries in hashed.items()
            for inner, entry in (entries or {}).items()
        }
        details = identity.Details().of(self._model) if self._is_plain else {"opaque": True}
        return {"class": type(self._model).__qualname__, "tensors": tensors, **details}


def adapt(model: Any) -> Any:
    """A model of scikit-learn, Keras, ONNX Runtime or jax.export as a callable; else `model`."""
    if callable(getattr(model, "predict_on_batch", None)):  # Keras 3 and tf.keras
        shapes = [getattr(one, "shape", None) for one in getattr(model, "inputs", None) or ()]
        return Adapted(model, model.predict_on_batch, lambda: _weights(model), shapes)
    if callable(getattr(model, "call", None)) and hasattr(model, "in_avals"):  # jax.export.Exported
        return model.call
    if callable(model):
        return model
    if callable(getattr(model, "predict_proba", None)):
        return Adapted(model, model.predict_proba, lambda: _fitted(model), is_plain=True)
    if all(callable(getattr(model, name, None)) for name in ("get_inputs", "get_outputs", "run")):
        return Adapted(model, _Session(model), dict, [one.shape for one in model.get_inputs()])
    return model


def fixed_batch(model: Any) -> int | None:
    """The number of samples that a model takes at once, no more and no fewer, where it declares one.

    ONNX Runtime and Keras models that were built for one batch size, and what `jax.export` made for one.
    """
    if isinstance(model, Adapted):
        return model.batch
    inputs = getattr(getattr(model, "__self__", None), "in_avals", ())  # the `call` of an Exported
    return _same_first([one.shape for one in inputs])


def _same_first(shapes: Sequence[Any]) -> int | None:
    """The first size of all shapes, where it is one and the same number."""
    sizes = {shape[0] if shape else None for shape in shapes}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return size if isinstance(size, int) else None


def _weights(model: Any) -> Mapping[str, Any]:
    """By the paths that a new session gives: Keras numbers the layers of one name (dense_7) as they are made."""
    numbers: dict[str, list[str]] = {}

    def counted(part: str) -> str:
        name = re.sub(r"_\d+$", "", part)
        same = numbers.setdefault(name, [])
        if part not in same:
            same.append(part)
        place = same.index(part)
        return f"{name}_{place}" if place else name

    return {
        "/".join(map(counted, getattr(v, "path", v.name).split("/"))): np.asarray(v)
        for v in model.weights
    }


def _fitted(estimator: Any) -> Mapping[str, Any]:
    """What scikit-learn's naming marks as learned from data."""
    return {name: v for name, v in vars(estimator).items() if name.endswith("_")}


class _Session:
    """An ONNX Runtime session as a function: arrays in the dtypes that it declares, probabilities out.

    Of several outputs it takes the only one that can be meant, a floating tensor with a row a
    sample; classifiers of scikit-learn give that beside the class numbers, also as a list of dicts
    (their ZipMap).
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._dtypes = {i.name: _ONNX_DTYPES.get(i.type) for i in session.get_inputs()}
        outputs = [o for o in session.get_outputs() if _may_be_rows(o)]
        if len(outputs) != 1:
            listed = ", ".join(f"{o.name} {o.type}" for o in session.get_outputs())
            raise ArgumentError(
                f"the ONNX session has {len(outputs)} outputs that may be distributions ({listed}); "
                "say which: lambda batch: session.run(['name'], {'input': batch})[0]"
            )
        self._output = outputs[0].name

    def __call__(self, batch: Any) -> Any:
        names = list(self._dtypes)
        if isinstance(batch, Mapping):
            feeds = dict(batch)
        elif isinstance(batch, (tuple, list)) and len(batch) == len(names) > 1:
            feeds = dict(zip(names, batch, strict=True))
        elif len(names) == 1:
            feeds = {names[0]: batch}
        else:
            raise ArgumentError(
                f"the ONNX session has the inputs {names}, and the batch is one "
                f"{type(batch).__name__}; let samples be dicts of them (input_getter=)"
            )
        unknown = [name for name in feeds if name not in self._dtypes]
        if unknown:
            raise ArgumentError(
                f"the ONNX session takes {names}, and the batch also holds {unknown}; leave them "
                "out in an input_getter"
            )
        feeds = {name: _fitting(array, self._dtypes[name]) for name, array in feeds.items()}
        (output,) = self._session.run([self._output], feeds)
        return _rows_of_dicts(output) if isinstance(output, list) else output


def _may_be_rows(output: Any) -> bool:
    if output.type.startswith("seq(map("):
        return True
    return output.type in ("tensor(float16)", "tensor(float)", "tensor(double)") and (
        output.shape is None or len(output.shape) in (2, 3)
    )


def _fitting(array: Any, dtype: Any) -> Array:
    """The array in the dtype that is declared, where both are floating or both are integers."""
    given = np.asarray(array)
    if dtype is not None and given.dtype != dtype:
        kinds = given.dtype.kind, np.dtype(dtype).kind
        if kinds[0] == kinds[1] or kinds == ("u", "i"):
            return given.astype(dtype)
    return given


def _rows_of_dicts(output: Sequence[Mapping[Any, float]]) -> Array:
    return np.array([list(row.values()) for row in output])


def fixed_of(models: Sequence[Any], filled: int | None) -> int | None:
    """Samples that the models take at once, no more and no fewer: what they declare, or `filled`."""
    declared = {size for model in models if (size := fixed_batch(model)) is not None}
    if len(declared) > 1:
        raise ArgumentError(
            f"the models take batches of {sorted(declared)} samples; generate a store with each, "
            "and fostore.stack makes their members one store"
        )
    return declared.pop() if declared else filled
