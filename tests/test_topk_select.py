"""Top-k rows selected on a device: the same bits as NumPy's, sums over the rest alone, and what is no row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fostore
import fostore.jax.topk
import fostore.torch.topk
from fostore.encodings.selection import selected
from fostore.encodings.topk_rows import Selected
from fostore.errors import ArgumentError, RowError
from fostore.schema.row import Array
from support import SUFFIXES

Select = Callable[..., Selected]
RNG = np.random.default_rng(0)


def arrays(chosen: Selected) -> Selected:
    return Selected(*(None if a is None else np.asarray(a) for a in chosen))


def torch_device(x: Array, k: int, temperatures: Any = (), entropy: bool = False) -> Selected:
    """What CUDA runs, on the CPU."""
    return arrays(fostore.torch.topk._on_device(torch.tensor(x), k, temperatures, entropy))


def torch_select(x: Array, k: int, temperatures: Any = (), entropy: bool = False) -> Selected:
    return arrays(fostore.torch.select_topk(torch.tensor(x), k, temperatures, tail_entropy=entropy))


def jax_device(x: Array, k: int, temperatures: Any = (), entropy: bool = False) -> Selected:
    with jax.enable_x64(True):
        return arrays(fostore.jax.topk._on_device(jnp.asarray(x), k, temperatures, entropy))


def jax_select(x: Array, k: int, temperatures: Any = (), entropy: bool = False) -> Selected:
    with jax.enable_x64(True):
        return arrays(
            fostore.jax.select_topk(jnp.asarray(x), k, temperatures, tail_entropy=entropy)
        )


@pytest.fixture(params=[torch_device, torch_select, jax_device, jax_select])
def select(request: pytest.FixtureRequest) -> Any:
    """What a side selects, as NumPy arrays."""
    return request.param


def assert_same(x: Array, k: int, chosen: Selected, temperatures: tuple[float, ...]) -> None:
    expected = selected(x, "logits", k, temperatures, tail_entropy=True)
    by_sorting = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(chosen.ids, by_sorting)
    np.testing.assert_array_equal(chosen.values, expected.values, strict=True)
    for name in ("residual", "logsumexp", "residual_t", "tail_entropy"):
        one, other = getattr(chosen, name), getattr(expected, name)
        if other is None:
            assert one is None
        else:
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_classes", [1, 2, 17, 300, 4099])
@pytest.mark.parametrize("k", [1, 3, 64])
def test_the_selection_is_that_of_a_stable_sort(
    select: Select, num_classes: int, k: int, dtype: str
) -> None:
    k = min(k, num_classes)
    numbers = np.round(RNG.normal(size=(5, num_classes)) * 3).astype(dtype)  # many are equal
    numbers[0] *= -0.0  # and 0 is equal to minus 0
    numbers[1, : num_classes - 1] = -np.inf
    assert_same(numbers, k, select(numbers, k, (2.0, 0.5), True), (2.0, 0.5))


_NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -np.inf, -3e38, 3e38]),
    st.floats(width=32, allow_nan=False, min_value=-1e4, max_value=1e4),
)


@pytest.mark.parametrize("select", [torch_device, jax_device])
@given(data=st.data(), shape=st.sampled_from([(1, 1), (7, 3), (40, 1), (40, 2), (40, 40)]))
def test_any_row_is_selected_as_by_a_stable_sort(
    select: Select, data: st.DataObject, shape: tuple[int, int]
) -> None:
    num_classes, k = shape
    row = data.draw(st.lists(_NUMBERS, min_size=num_classes, max_size=num_classes))
    numbers = np.array([row], np.float32)
    numbers[0, 0] = max(numbers[0, 0], -3e38)
    if select is jax_device:  # to XLA the smallest numbers are 0
        numbers[np.abs(numbers) < np.finfo(np.float32).tiny] = 0
    chosen = select(numbers, k)
    by_sorting = np.argsort(-numbers, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(chosen.ids, by_sorting)
    expected = selected(numbers, "logits", k)
    np.testing.assert_array_equal(chosen.values, expected.values, strict=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_selected_as_they_are(dtype: str) -> None:
    """Half of the rows of bfloat16 logits cut a tie at 32,000 classes and k = 64."""
    halves = torch.tensor(RNG.normal(size=(8, 32_000)) * 3).to(getattr(torch, dtype))
    wide = halves.float().numpy()
    for chosen in (
        fostore.torch.select_topk(halves, 64, (), tail_entropy=True),
        fostore.torch.topk._on_device(halves, 64, (), True),
        fostore.jax.topk._on_device(jnp.asarray(wide).astype(dtype), 64, (), True),
    ):
        assert_same(wide, 64, arrays(chosen)._replace(residual_t=None), ())


def test_without_float64_the_rest_of_128_000_classes_keeps_its_digits() -> None:
    """JAX adds in float32 outside its x64 mode: its error is the store's own rounding."""
    numbers = (RNG.normal(size=(4, 128_256)) * 3).astype(np.float32)
    chosen = fostore.jax.topk._on_device(jnp.asarray(numbers), 64, (2.0,), False)
    assert chosen.residual.dtype == jnp.float32
    expected = selected(numbers, "logits", 64, (2.0,))
    assert np.abs(np.expm1(chosen.residual - expected.residual)).max() < 2e-6
    assert np.abs(np.expm1(chosen.residual_t - expected.residual_t)).max() < 2e-6


def test_members_and_tokens_keep_their_axes(select: Select) -> None:
    numbers = RNG.normal(size=(3, 2, 50)).astype(np.float32)
    if "device" in select.__name__:
        pytest.skip("takes rows alone")
    chosen, flat = select(numbers, 4, (2.0,)), select(numbers.reshape(6, 50), 4, (2.0,))
    assert chosen.residual_t is not None
    assert (chosen.ids.shape, chosen.residual_t.shape) == ((3, 2, 4), (3, 2, 1))
    np.testing.assert_array_equal(chosen.values.reshape(6, 4), flat.values)


def test_jax_selects_under_jit() -> None:
    numbers = RNG.normal(size=(3, 200)).astype(np.float32)
    chosen = jax.jit(lambda x: fostore.jax.select_topk(x, 5))(numbers)
    np.testing.assert_array_equal(chosen.ids, torch_device(numbers, 5).ids)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_no_row_is_refused_by_its_number(
    select: Select, tmp_path: Path, bad: float
) -> None:
    """On a device nobody waits to look; the writer does."""
    numbers = RNG.normal(size=(6, 300)).astype(np.float32)
    numbers[4, 250 if bad != -np.inf else slice(None)] = bad
    with (
        pytest.raises(RowError, match=r"row 4\b"),
        fostore.create(
            tmp_path / "rows.zarr",
            num_samples=6,
            num_classes=300,
            kind="logits",
            encoding="topk",
            k=8,
        ) as writer,
    ):
        writer.append(select(numbers, 8))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_of_what_was_selected_is_one_of_the_logits(
    select: Select, tmp_path: Path, suffix: str
) -> None:
    numbers = (RNG.normal(size=(20, 500)) * 4).astype(np.float32)
    options: dict[str, Any] = {"num_samples": 20, "num_classes": 500, "kind": "logits"}
    options |= {"dtype": "float16", "encoding": "topk", "k": 16, "temperatures": (2.0,)}
    with fostore.create(tmp_path / f"one{suffix}", **options) as writer:
        writer.append(numbers)
    with fostore.create(tmp_path / f"other{suffix}", **options) as writer:
        writer.append(select(numbers, 16, (2.0,)))
    one, other = (
        fostore.open(tmp_path / f"{name}{suffix}").take_topk(range(20)) for name in ("one", "other")
    )
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(one.residual, other.residual, atol=2e-6)
    np.testing.assert_allclose(one.residual_t, other.residual_t, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "k", "temperatures", "message"),
    [
        ((6,), 2, (), r"logits have the shape \(6,\), expected \(n, num_classes\)"),
        ((2, 6), 7, (), "k is 7, expected 1 to 6"),
        ((2, 6), 0, (), "k is 0"),
        ((2, 6), True, (), "k is True"),
        ((2, 6), 2, (-1.0,), "temperature is -1.0, expected a number above 0"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    shape: Any, k: Any, temperatures: Any, message: str
) -> None:
    numbers = np.zeros(shape, np.float32)
    for select in (torch_select, jax_select):
        with pytest.raises(ArgumentError, match=message):
            select(numbers, k, temperatures)
    with pytest.raises(ArgumentError, match=r"logits has the dtype torch\.int64"):
        fostore.torch.select_topk(torch.zeros(2, 3, dtype=torch.int64), 2)
