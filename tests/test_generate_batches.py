"""Models of a fixed batch, models over several devices, and what counts as exhausted memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
import fostore.jax
import fostore.torch
from fostore.errors import ArgumentError, GenerationError
from fostore.generate.adapters import adapt, fixed_batch
from fostore.generate.memory import says_out_of_memory
from sides import SIDES, Linear, Pairs, Side, Stream, make_pairs, softmax

WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def assert_logits_of(result: Any, inputs: np.ndarray) -> None:
    assert len(result) == len(inputs)
    want = softmax(inputs @ WEIGHT)
    for i, row in enumerate(want):
        np.testing.assert_allclose(result[i], row, atol=1e-5)


# ------------------------------------------------------------------ a batch that is declared


def session(batch: Any) -> Any:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", number, [batch, 4])],
        [helper.make_tensor_value_info("y", number, [batch, 3])],
        [onnx.numpy_helper.from_array(WEIGHT, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("declared", [1, 20, "batch"])
@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("kind", ["onnx", "jax.export", "jax.export.call"])
def test_a_declared_batch_is_filled_up_and_what_fills_it_is_dropped(
    declared: Any, batch_size: int, kind: str, tmp_path: Path
) -> None:
    inputs = make_pairs(50).inputs
    made = session(declared) if kind == "onnx" else exported(declared)
    model = made.call if kind == "jax.export.call" else made
    assert fixed_batch(adapt(model)) == (declared if isinstance(declared, int) else None)
    sides = [fostore] if kind == "onnx" else [fostore, fostore.jax]
    for number, module in enumerate(sides):
        generator = module.FirstOrderDataGenerator(  # type: ignore[attr-defined]
            model, output_mode="logits", batch_size=batch_size
        )
        assert_logits_of(generator.generate_distributions(Pairs(inputs), False), inputs)
        store = tmp_path / f"{number}.zarr"
        options: dict[str, Any] = {"store": store, "model_fingerprint": "v1"}
        generator.generate_distributions(Pairs(inputs), False, rows=(0, 30), **options)
        assert_logits_of(generator.generate_distributions(Pairs(inputs), False, **options), inputs)


def exported(batch: Any) -> Any:
    import jax

    shape = (batch, 4) if isinstance(batch, int) else jax.export.symbolic_shape("b, 4")
    argument = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.export.export(jax.jit(lambda x: x @ WEIGHT))(argument)


@pytest.mark.filterwarnings("ignore:members 0 and 1 gave the same:UserWarning")
def test_models_of_different_batches_cannot_be_one_ensemble() -> None:
    models = [exported(4), exported(8)]
    generator = fostore.jax.FirstOrderDataGenerator(models, output_mode="logits")
    with pytest.raises(ArgumentError, match=r"batches of \[4, 8\] samples.*fostore\.stack"):
        generator.generate_distributions(make_pairs(), False)
    same = fostore.jax.FirstOrderDataGenerator([exported(8)] * 2, output_mode="logits")
    assert same.generate_distributions(make_pairs(), False)[99].shape == (2, 3)


# ------------------------------------------------------------------ a batch that is not declared


def fixed(size: int) -> Any:
    """A model that takes `size` samples at once, as a view of a fixed shape does."""

    def model(x: np.ndarray) -> np.ndarray:
        return x.reshape(size, 4) @ WEIGHT

    return model


@pytest.mark.parametrize("stored", [False, True])
def test_the_last_batch_is_filled_up_on_request(side: Side, stored: bool, tmp_path: Path) -> None:
    inputs = make_pairs(50).inputs
    for name, data in (
        ("map", Pairs(inputs)),
        ("stream", Stream(inputs)),
        ("loader", fostore.SimpleDataLoader(Pairs(inputs), batch_size=16)),
    ):
        size = 64 if name == "loader" else 16  # a loader brings its own
        generator = side.generator(side.model(fixed(16)), output_mode="logits", batch_size=size)
        options = {"store": tmp_path / f"{name}.zarr"} if stored else {}
        result = generator.generate_distributions(data, False, pad_last=True, **options)
        assert_logits_of(result, inputs)
        if stored and name != "stream":
            assert result.meta["batch_size"] == 16


def test_a_short_last_batch_that_fails_is_told_of_pad_last(side: Side, tmp_path: Path) -> None:
    pairs = make_pairs(50)
    generator = side.generator(side.model(fixed(16)), output_mode="logits", batch_size=16)
    with pytest.raises(GenerationError, match=r"samples 48 to 49.*batch_size=16 and pad_last=True"):
        generator.generate_distributions(pairs, False, store=tmp_path / "a.zarr")
    result = generator.generate_distributions(
        pairs, False, store=tmp_path / "a.zarr", pad_last=True
    )
    assert_logits_of(result, pairs.inputs)
    wrong = side.generator(side.model(fixed(16)), output_mode="logits", batch_size=10)
    with pytest.raises(GenerationError, match=r"batch_size= its number.*pad_last=True"):
        wrong.generate_distributions(pairs, False)


def test_a_model_that_always_gives_a_full_batch_is_told_of_pad_last(side: Side) -> None:
    pairs = make_pairs(50)

    def model(x: np.ndarray) -> np.ndarray:  # a buffer of its own, of 16 rows
        return np.concatenate([x, np.zeros((16 - len(x), 4), np.float32)]) @ WEIGHT

    generator = side.generator(side.model(model), output_mode="logits", batch_size=16)
    with pytest.raises(ArgumentError, match=r"16 rows for the 2 samples.*needs pad_last=True"):
        generator.generate_distributions(pairs, False)
    assert_logits_of(generator.generate_distributions(pairs, False, pad_last=True), pairs.inputs)


def test_an_error_that_is_not_about_shapes_is_told_nothing_of_batches(side: Side) -> None:
    linear = Linear()
    linear.fail_at = 0
    with pytest.raises(GenerationError) as info:
        side.generator(side.model(linear)).generate_distributions(make_pairs(), False)
    assert "pad_last" not in str(info.value)


def test_dicts_and_texts_are_filled_up_as_arrays_are(side: Side) -> None:
    inputs = make_pairs(5).inputs
    samples = [{"x": row, "text": str(i)} for i, row in enumerate(inputs)]
    seen: list[Any] = []

    def model(batch: Any) -> Any:
        seen.append(batch["text"])
        return side.array(np.asarray(batch["x"]).reshape(4, 4) @ WEIGHT)

    generator = side.generator(lambda batch: model(batch), output_mode="logits", batch_size=4)
    assert_logits_of(generator.generate_distributions(samples, False, pad_last=True), inputs)
    assert seen == [list("0123"), list("4444")]


# ------------------------------------------------------------------ parameters over several devices

SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import fostore.jax

devices = jax.devices()
assert len(devices) == 4
rng = np.random.default_rng(0)
x, w = rng.normal(size=(50, 8)).astype("f4"), rng.normal(size=(8, 4)).astype("f4")
e = np.exp(x @ w)
want = e / e.sum(-1, keepdims=True)
mesh = Mesh(np.array(devices), ("model",))
for parts in (("model",), (None, "model"), ()):
    params = {"w": jax.device_put(w, NamedSharding(mesh, PartitionSpec(*parts)))}
    apply = jax.jit(lambda params, batch: batch @ params["w"])
    model = jax.tree_util.Partial(apply, params)
    for one in (model, lambda batch: apply(params, batch), [lambda batch: 2 * model(batch), model]):
        generator = fostore.jax.FirstOrderDataGenerator(one, output_mode="logits", batch_size=16)
        rows = generator.generate_distributions(x, progress=False)
        row = rows[49][-1] if rows[49].ndim == 2 else rows[49]
        assert np.allclose(row, want[49], atol=1e-5)
placed = jax.device_put(w, devices[2])
generator = fostore.jax.FirstOrderDataGenerator(
    lambda batch: apply({"w": placed}, batch), "cpu:1", output_mode="logits"
)
assert np.allclose(generator.generate_distributions(x, progress=False)[3], want[3], atol=1e-5)
batches = NamedSharding(mesh, PartitionSpec("model"))
split = jax.jit(
    lambda batch: jax.lax.with_sharding_constraint(batch @ w, batches), in_shardings=batches
)
generator = fostore.jax.FirstOrderDataGenerator(split, output_mode="logits", batch_size=16)
rows = generator.generate_distributions(x, progress=False, pad_last=True)
assert np.allclose(rows[49], want[49], atol=1e-5)
seen = []
generator = fostore.jax.FirstOrderDataGenerator(
    lambda batch: seen.append(batch.devices()) or batch @ w, "cpu:3", output_mode="logits"
)
generator.generate_distributions(x, progress=False)
assert seen == [{devices[3]}], seen
print("right")
"""


def test_parameters_over_several_devices_take_batches_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        env={**_environment(), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "right", done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "JAX_PLATFORMS": "cpu"}


# ------------------------------------------------------------------ exhausted memory


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 140737488355328 bytes. Error code 12 (Cannot allocate memory)",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer",
        "Available memory of 0 is smaller than requested bytes of 4096",
        "[ONNXRuntimeError] : 1 : FAIL : bad allocation",
        "std::bad_alloc",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "OOM when allocating tensor with shape[64,512]",
        "MPS backend out of memory (MPS allocated: 8 GB)",
    ],
)
def test_libraries_say_in_many_ways_that_memory_is_exhausted(text: str) -> None:
    class Own(Exception):  # as those of ONNX Runtime, which are no RuntimeError
        pass

    assert says_out_of_memory(RuntimeError(text))
    assert says_out_of_memory(Own(text))
    assert not says_out_of_memory(RuntimeError("shape '[16, 4]' is invalid for input of size 8"))


def test_torch_itself_may_run_out_on_a_cpu() -> None:
    import torch

    def model(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 8:
            torch.empty(1 << 45)  # what no machine has
        return batch @ torch.from_numpy(WEIGHT)

    pairs = make_pairs(50)
    generator = fostore.torch.FirstOrderDataGenerator(model, output_mode="logits", batch_size=16)
    with pytest.warns(UserWarning, match="out of memory with 16 samples at once; going on with 8"):
        result = generator.generate_distributions(pairs, False)
    assert_logits_of(result, pairs.inputs)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("side", [SIDES["torch"], SIDES["jax"]], ids=["torch", "jax"])
def test_the_search_for_a_batch_size_survives_exhausted_memory(
    side: Side, error: type[Exception]
) -> None:
    tried: list[int] = []

    def model(x: np.ndarray) -> np.ndarray:
        tried.append(len(x))
        if len(x) > 20:
            raise error("DefaultCPUAllocator: can't allocate memory")
        return x @ WEIGHT

    search = side.module.find_optimal_batch_size
    found = search(side.model(model), make_pairs(100))
    assert 1 <= found <= 16
    assert max(tried) == 32

    class Large(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index >= 20:
                raise error("out of memory")
            return super().__getitem__(index)

    large = Large(make_pairs(100).inputs)
    assert 1 <= search(side.model(lambda x: x @ WEIGHT), large) <= 16
    with pytest.raises(GenerationError, match="out of memory with a single sample"):
        search(side.model(out_of_memory(error)), make_pairs())
    linear = Linear()
    linear.fail_at = 2
    with pytest.raises(GenerationError, match="no luck"):
        search(side.model(linear), make_pairs())


def out_of_memory(error: type[Exception]) -> Any:
    def model(x: np.ndarray) -> np.ndarray:
        raise error("out of memory")

    return model


@pytest.mark.parametrize("side", [SIDES["torch"], SIDES["jax"]], ids=["torch", "jax"])
def test_the_search_knows_members_and_declared_batches(side: Side) -> None:
    model = side.model(lambda x: np.stack([x @ WEIGHT, -x @ WEIGHT], axis=1))
    assert side.module.find_optimal_batch_size(model, make_pairs(8), members=True) >= 1
    for rows in (lambda x: abs(x) / 10, lambda x: softmax(x), lambda x: x):  # whatever they mean
        assert side.module.find_optimal_batch_size(side.model(rows), make_pairs(8)) >= 1
    if side.name == "jax":
        assert side.module.find_optimal_batch_size(exported(4), make_pairs(8)) >= 1
