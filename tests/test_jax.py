"""What only JAX has: jit functions, pytrees as models, its devices and its arrays."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fostore.errors import ArgumentError, IdentityError
from fostore.jax import FirstOrderDataGenerator, output_dataloader, to_device
from sides import Linear, Pairs, make_pairs, softmax


@jax.tree_util.register_pytree_node_class
class Module:
    """A callable pytree, as equinox makes them."""

    def __init__(self, weight: Any, act: Any = jnp.tanh, scale: float = 1.0) -> None:
        self.weight = weight
        self.act = act
        self.scale = scale

    def __call__(self, x: Any) -> Any:
        return self.act(x @ self.weight) * self.scale

    def tree_flatten(self) -> Any:
        return (self.weight, self.scale), self.act

    @classmethod
    def tree_unflatten(cls, act: Any, leaves: Any) -> Any:
        return cls(leaves[0], act, leaves[1])


def rows_of(result: Any) -> np.ndarray:
    return np.stack([result[i] for i in range(len(result))])


def test_jit_functions_closures_and_partials_run() -> None:
    pairs, weight = make_pairs(), jnp.asarray(Linear().weight)
    expected = softmax(pairs.inputs @ Linear().weight)

    def apply(params: Any, x: Any) -> Any:
        return x @ params["w"]

    models = [
        jax.jit(lambda x: x @ weight),
        lambda x: jnp.dot(x, weight),
        functools.partial(jax.jit(apply), {"w": weight}),
        jax.tree_util.Partial(apply, {"w": weight}),
    ]
    for model in models:
        result = FirstOrderDataGenerator(model, output_mode="logits").generate_distributions(
            pairs, False
        )
        np.testing.assert_allclose(rows_of(result), expected, rtol=1e-5, atol=1e-6)


def test_a_bare_array_of_jax_is_a_dataset_of_rows() -> None:
    inputs = make_pairs().inputs
    weight = Linear().weight
    generator = FirstOrderDataGenerator(lambda x: x @ weight, "cpu", 16)
    result = generator.generate_distributions(jnp.asarray(inputs), False)
    np.testing.assert_allclose(rows_of(result), softmax(inputs @ weight), rtol=1e-5, atol=1e-6)


def test_the_model_gets_arrays_of_the_device_with_their_dtypes() -> None:
    seen: list[Any] = []

    def model(batch: Any) -> Any:
        seen.append({key: (type(leaf).__name__, str(leaf.dtype)) for key, leaf in batch.items()})
        return batch["x"].astype(jnp.float32)

    samples = [{"x": np.float16([i, 1]), "ids": np.int32([i])} for i in range(8)]
    FirstOrderDataGenerator(model, output_mode="logits").generate_distributions(samples, False)
    assert seen == [{"x": ("ArrayImpl", "float16"), "ids": ("ArrayImpl", "int32")}]


def test_bfloat16_outputs_are_softmaxed_in_float32() -> None:
    inputs = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32)
    generator = FirstOrderDataGenerator(lambda x: x.astype(jnp.bfloat16))
    result = generator.generate_distributions(inputs, False)
    expected = softmax(np.asarray(jnp.asarray(inputs).astype(jnp.bfloat16), np.float32))
    np.testing.assert_allclose(rows_of(result), expected, rtol=1e-5, atol=1e-7)


def test_float64_is_kept_without_the_x64_mode(tmp_path: Path) -> None:
    inputs = make_pairs().inputs
    generator = FirstOrderDataGenerator(lambda x: x, output_mode="logits")
    store = generator.generate_distributions(
        inputs, False, store=tmp_path / "a.zarr", dtype="float64"
    )
    np.testing.assert_allclose(store.array, softmax(inputs.astype(np.float64)), rtol=1e-12)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    absent = next(k for k in ("tpu", "gpu") if k not in {d.platform for d in jax.devices()})
    with pytest.raises(ArgumentError, match=rf"device is '{absent}', and this JAX has only .*cpu"):
        FirstOrderDataGenerator(lambda x: x, device=absent)


def test_nested_data_is_placed() -> None:
    nested = {
        "images": np.ones((2, 3), np.float32),
        "features": {"categorical": np.int32([1, 2]), "numerical": jnp.ones(2)},
        1: "mixed keys are no matter",
    }
    placed = to_device(nested, "cpu")
    assert isinstance(placed["images"], jax.Array)
    assert placed["features"]["categorical"].dtype == jnp.int32
    assert placed[1] == nested[1]


def test_a_callable_pytree_is_identified_by_its_leaves(tmp_path: Path) -> None:
    pairs, weight = make_pairs(), jnp.asarray(Linear().weight)
    path = tmp_path / "a.zarr"
    calls = []

    class Counted(Module):
        def __call__(self, x: Any) -> Any:
            calls.append(len(x))
            return super().__call__(x)

    jax.tree_util.register_pytree_node_class(Counted)

    def store(**parts: Any) -> Any:
        model = Counted(**{"weight": weight, **parts})
        return FirstOrderDataGenerator(model).generate_distributions(pairs, False, store=path)

    made = store()
    assert "opaque" not in made.header.identity["model"]
    calls.clear()
    store()
    assert calls == [64]
    with pytest.raises(IdentityError, match=r"tensor .* has other values"):
        store(weight=weight + 1)
    with pytest.raises(IdentityError, match="flat index 1"):
        store(scale=2.0)


def test_a_resource_error_of_xla_halves_the_batch() -> None:
    sizes: list[int] = []

    def model(x: Any) -> Any:
        if len(x) > 4:
            raise RuntimeError("RESOURCE_EXHAUSTED: failed to allocate request")
        sizes.append(len(x))
        return x

    with pytest.warns(UserWarning, match="out of memory"):
        result = FirstOrderDataGenerator(model, batch_size=8).generate_distributions(
            Pairs(make_pairs(20).inputs), False
        )
    assert len(result) == 20
    assert max(sizes) == 4


def test_loaders_give_jax_arrays() -> None:
    rows = {i: [0.25, 0.75] for i in range(10)}
    batches = list(output_dataloader(make_pairs(10), rows, batch_size=4, shuffle=True, seed=3))
    assert [len(inputs) for inputs, _, _ in batches] == [4, 4, 2]
    assert all(isinstance(part, jax.Array) for batch in batches for part in batch)
