"""Draws on purpose: dropout and augmentation, as a function of seed, draw and row; and what is said without."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fostore
from fostore import evaluate
from fostore.errors import ArgumentError, GenerationError, IdentityError
from sides import SIDES, Pairs, Side, Stream, make_pairs, softmax
from support import data_files

PAIRS = make_pairs()
INPUTS = PAIRS.inputs


class Dropping(nn.Module):
    """Dropout as a module, and a BatchNorm that must not notice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(
            nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 5)
        )
        self.parts[1].running_mean += 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x)


def dropping_numpy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([x, x[:, :1]], 1) * (rng.random((len(x), 5)) > 0.5)


def dropping_jax(x: Any, *, key: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jnp.concatenate([x, x[:, :1]], 1) * jax.random.bernoulli(key, 0.5, (len(x), 5))


MODELS: dict[str, Any] = {
    "torch": lambda: Dropping().train(),
    "numpy": lambda: dropping_numpy,
    "jax": lambda: dropping_jax,
}


@pytest.fixture(params=MODELS)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def generate(
    side: Side, data: Any = PAIRS, model: Any = None, batch: int = 16, **options: Any
) -> Any:
    model = MODELS[side.name]() if model is None else model
    generator = side.generator(model, output_mode="logits", batch_size=batch)
    return generator.generate_distributions(data, False, **options)


def rows_of(result: Any) -> np.ndarray:
    return np.stack([result[i] for i in result])


def torch_seed(seed: int, draw: int, row: int) -> int:
    """What the documentation says."""
    return int(
        np.random.SeedSequence(seed, spawn_key=(draw, row, 0)).generate_state(1, np.uint64)[0]
    )


# ------------------------------------------------------------------ what a draw is


def test_a_draw_of_torch_is_dropout_from_the_documented_seed_and_nothing_else() -> None:
    model = Dropping().train()
    rows = rows_of(generate(SIDES["torch"], model=model, num_draws=3, seed=7))
    oracle = Dropping().eval()
    oracle.parts[2].train()
    expected = np.empty_like(rows)
    with torch.no_grad():
        for start, draw in itertools.product(range(0, 100, 16), range(3)):
            torch.manual_seed(torch_seed(7, draw, start))
            batch = torch.from_numpy(INPUTS[start : start + 16])
            expected[start : start + 16, draw] = oracle(batch).softmax(-1).numpy()
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-7)
    assert int(model.parts[1].num_batches_tracked) == 0
    assert all(part.training for part in model.modules())


def test_draws_fill_the_member_axis_and_differ(side: Side) -> None:
    rows = rows_of(generate(side, num_draws=4))
    assert rows.shape == (100, 4, 5)
    assert all(
        np.ptp(rows[:, [i, j]], axis=1).max() > 0.05 for i, j in itertools.combinations(range(4), 2)
    )
    assert evaluate.ensemble_uncertainty(rows).epistemic.mean() > 1e-3


def test_draws_do_not_depend_on_random_states_and_leave_them_alone(side: Side) -> None:
    model = MODELS[side.name]()
    first = rows_of(generate(side, model=model, num_draws=2, seed=3))
    torch.rand(3)
    np.random.rand(3)
    random.random()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    again = rows_of(generate(side, model=model, num_draws=2, seed=3))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    np.testing.assert_array_equal(first, again)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert not np.array_equal(first, rows_of(generate(side, num_draws=2, seed=4)))


def test_more_draws_begin_with_the_same_ones(side: Side) -> None:
    few, many = (rows_of(generate(side, num_draws=n)) for n in (1, 3))
    np.testing.assert_array_equal(few, many[:, :1])


@pytest.mark.parametrize("parameter", ["generator", "seed"])
def test_a_torch_callable_takes_its_randomness_by_name(parameter: str) -> None:
    def by_generator(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=generator)

    def by_seed(x: torch.Tensor, seed: int) -> torch.Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))

    model = by_generator if parameter == "generator" else by_seed
    rows = rows_of(generate(SIDES["torch"], model=model, num_draws=3))
    assert np.ptp(rows, axis=1).max() > 0.1
    np.testing.assert_array_equal(rows, rows_of(generate(SIDES["torch"], model=model, num_draws=3)))


@pytest.mark.parametrize("name", ["key", "rng"])
def test_a_jax_callable_gets_the_documented_key(name: str) -> None:
    import jax

    keys: list[Any] = []

    def model(x: Any, **keyword: Any) -> Any:
        keys.append(keyword[name])
        return x + jax.random.normal(keyword[name], x.shape)

    by_name: Any = eval(f"lambda x, *, {name}: model(x, {name}={name})", {"model": model})
    generate(
        SIDES["jax"], model=jax.jit(by_name) if name == "rng" else by_name, num_draws=2, seed=5
    )
    if name == "key":
        expected = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(5), 1), 16)
        assert any((key == expected).all() for key in keys)


def test_a_dict_batch_and_a_parameter_for_randomness_go_together() -> None:
    def model(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return a + rng.normal(size=a.shape)

    samples = [{"a": row} for row in INPUTS]
    assert rows_of(generate(SIDES["numpy"], samples, model, num_draws=2)).shape == (100, 2, 4)


def test_global_numpy_and_python_randomness_is_seeded_too() -> None:
    def model(x: np.ndarray) -> np.ndarray:
        return x + np.random.normal(size=x.shape) + random.random()

    rows = rows_of(generate(SIDES["numpy"], model=model, num_draws=3))
    np.testing.assert_array_equal(rows, rows_of(generate(SIDES["numpy"], model=model, num_draws=3)))


def test_the_transform_sees_one_draw(side: Side) -> None:
    shapes: list[tuple[int, ...]] = []

    def transform(output: Any) -> Any:
        shapes.append(tuple(output.shape))
        return output * 0.5

    generator = side.generator(MODELS[side.name](), batch_size=50, output_transform=transform)
    rows = generator.generate_distributions(PAIRS, False, num_draws=2)
    assert rows[0].shape == (2, 5)
    assert set(shapes) == {(50, 5)}


# ------------------------------------------------------------------ what is on


class Attention(nn.Module):
    """Dropout as a number, as in many transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.3

    def helper(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, p=self.dropout, training=self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(x)


class DropPath(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(len(x), 1) > 0.3) if self.training else x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x[:, None])[0][:, 0]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x[:, None])[:, 0]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None] * torch.ones(3, 1)
        return self.attention(x, x, x, need_weights=False)[0][:, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Dropout(0.3),
        lambda: nn.AlphaDropout(0.3),
        lambda: nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Dropout1d(0.3), nn.Flatten()),
        Attention,
        DropPath,
        Recurrent,
        Transformer,
        Attending,
        lambda: torch.compile(nn.Sequential(nn.Dropout(0.3)), backend="eager"),
    ],
    ids=[
        "dropout",
        "alpha",
        "dropout1d",
        "functional",
        "droppath",
        "lstm",
        "layer",
        "mha",
        "compiled",
    ],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_what_drops_at_random_is_on(make: Any, hidden: bool) -> None:
    torch.manual_seed(0)
    module = make().eval()
    modules = iter([module] * 100)
    model = (lambda x: next(modules)(x)) if hidden else module
    rows = rows_of(generate(SIDES["torch"], model=model, num_draws=3))
    assert np.ptp(rows, axis=1).max() > 1e-3
    assert not any(part.training for part in module.modules())
    torch.compiler.reset()


def test_what_only_training_changes_is_off() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return x

    class Fused(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    model = nn.Sequential(Noisy(), nn.BatchNorm1d(4), nn.Dropout(0.5), Fused(4)).train()
    generate(SIDES["torch"], model=model, num_draws=2)
    assert model[0].training
    assert int(model[1].num_batches_tracked) == 0


# ------------------------------------------------------------------ resume, and what is recorded


def test_a_resumed_run_is_bit_identical(side: Side, path: Path) -> None:
    whole = path.with_stem("whole")
    generate(side, store=whole, num_draws=3, seed=1)
    generate(side, store=path, num_draws=3, seed=1, rows=(0, 41))
    generate(side, store=path, num_draws=3, seed=1, rows=(70, 75))
    store = generate(side, store=path, num_draws=3, seed=1)
    assert store.shape == (100, 3, 5)
    assert not store.verify()
    assert data_files(path) == data_files(whole)
    assert store.header.digest == fostore.open(whole).header.digest
    np.testing.assert_array_equal(store.array[:], rows_of(generate(side, num_draws=3, seed=1)))


def test_seed_and_number_of_draws_are_recorded(side: Side, path: Path) -> None:
    store = generate(side, store=path, num_draws=3, seed=9)
    assert store.meta["num_draws"] == 3
    assert store.meta["seed"] == 9
    described = store.header.identity["output"]
    assert (described["draws"], described["seed"], described["batch_size"]) == (3, 9, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 3, "seed": 2}, "the seed of the draws is 2, the store has 1"),
        ({"num_draws": 4, "seed": 1}, "num_draws is 4, the store has 3"),
        (
            {"num_draws": 3, "seed": 1, "batch": 32},
            "batch_size of the draws is 32, the store has 16",
        ),
    ],
)
def test_other_draws_are_another_store(
    side: Side, path: Path, options: dict[str, Any], message: str
) -> None:
    generate(side, store=path, num_draws=3, seed=1, rows=(0, 41))
    with pytest.raises(IdentityError, match=message):
        generate(side, store=path, **options)


def test_a_store_without_draws_is_not_gone_on_with_by_draws(tmp_path: Path) -> None:
    model = Dropping()
    generate(SIDES["torch"], model=model, store=tmp_path / "a.zarr", rows=(0, 41))
    with pytest.raises(IdentityError, match="num_draws is 3, the store has None"):
        generate(SIDES["torch"], model=model, store=tmp_path / "a.zarr", num_draws=3)


def test_a_stream_is_drawn_from_as_well(tmp_path: Path) -> None:
    rows = rows_of(generate(SIDES["torch"], Stream(INPUTS), num_draws=2))
    np.testing.assert_array_equal(rows, rows_of(generate(SIDES["torch"], num_draws=2)))


@pytest.mark.filterwarnings("ignore:.*generated 5 distributions:UserWarning")
def test_batches_that_a_sampler_lists_are_drawn_by_their_first_sample() -> None:
    picked = [5, 3, 90, 41, 7]
    loader = DataLoader(PAIRS, batch_sampler=[picked])
    model = Dropping()
    rows = generate(SIDES["torch"], loader, model, num_draws=2, seed=1)
    assert sorted(rows) == sorted(picked)
    oracle = Dropping().eval()
    oracle.parts[2].train()
    torch.manual_seed(torch_seed(1, 1, 5))
    with torch.no_grad():
        expected = oracle(torch.from_numpy(INPUTS[picked])).softmax(-1).numpy()
    np.testing.assert_allclose(np.stack([rows[i][1] for i in picked]), expected, rtol=1e-5)
    views = DataLoader(Augmented("numpy"), batch_sampler=[picked])
    assert np.ptp(generate(SIDES["torch"], views, plain, num_draws=2)[90], axis=0).max() > 0


# ------------------------------------------------------------------ views


class Augmented(Dataset[Any]):
    """Random views of its samples, from whichever global state."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.own = np.random.default_rng()

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        noise = {
            "numpy": lambda: np.random.normal(),
            "python": lambda: random.gauss(0, 1),
            "torch": lambda: float(torch.randn(())),
            "own": lambda: self.own.normal(),
        }[self.kind]()
        return INPUTS[index] + np.float32(noise), 0


def plain(x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize("kind", ["numpy", "python", "torch"])
def test_each_draw_sees_a_view_of_its_own(side: Side, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("draws.h5" if kind == "python" else "draws.zarr")
    seen: list[Any] = []

    def model(x: Any) -> Any:
        seen.append(np.asarray(x))
        return (x - x[:, :1]) ** 2 * x

    whole = path.with_stem("whole")
    store = generate(side, Augmented(kind), model, store=whole, num_draws=3)
    assert np.ptp(store.array[:], axis=1).max() > 0.1
    assert not np.array_equal(seen[0], seen[1])
    generate(side, Augmented(kind), model, store=path, num_draws=3, rows=(0, 41))
    assert not generate(side, Augmented(kind), model, store=path, num_draws=3).verify()
    assert data_files(path) == data_files(whole)
    assert store.header.identity["dataset"]["content"] == "unstable"


def test_views_are_the_same_whoever_reads_them() -> None:
    def views(data: Any) -> np.ndarray:
        return rows_of(generate(SIDES["torch"], data, model=plain, num_draws=2))

    alone = views(Augmented("numpy"))
    np.testing.assert_array_equal(alone, views(DataLoader(Augmented("numpy"), 16)))
    np.testing.assert_array_equal(alone, views(DataLoader(Augmented("numpy"), 16, num_workers=2)))


def test_a_dataset_that_reads_the_same_is_read_once() -> None:
    pairs = Pairs(INPUTS, PAIRS.labels)
    generate(SIDES["torch"], pairs, num_draws=10)
    assert len(pairs.read) < 150


def test_views_that_do_not_repeat_are_refused(side: Side) -> None:
    with pytest.raises(ArgumentError, match=r"sample 0 reads differently.*generator of its own"):
        generate(side, Augmented("own"), plain, num_draws=2)


def test_a_view_that_fails_names_the_dataset(side: Side) -> None:
    class Failing(Augmented):
        left = 60

        def __getitem__(self, index: int) -> Any:
            self.left -= 1
            if not self.left:
                raise OSError("no disk")
            return super().__getitem__(index)

    with pytest.raises(GenerationError, match=r"the dataset failed on samples .*no disk"):
        generate(side, Failing("numpy"), plain, num_draws=4)


# ------------------------------------------------------------------ what is refused


def test_what_cannot_be_drawn_is_refused(side: Side) -> None:
    for options, message in (
        ({"num_draws": 0}, "num_draws is 0"),
        ({"num_draws": True}, "num_draws is True"),
        ({"num_draws": 2.0}, "num_draws is 2.0"),
        ({"num_draws": 2, "seed": -1}, "seed is -1"),
        ({"num_draws": 2, "seed": 1 << 32}, "seed is 4294967296"),
        ({"seed": 4}, "say how many with num_draws="),
    ):
        with pytest.raises(ArgumentError, match=message):
            generate(side, **options)
    with pytest.raises(ArgumentError, match=r"a list of models .or members=True. would both fill"):
        generate(side, model=[plain, plain], num_draws=2)
    with pytest.raises(ArgumentError, match="one draw has the shape"):
        generate(
            side, model=lambda x: side.array(np.zeros((len(x), 2, 3), np.float32)), num_draws=2
        )


def test_a_model_that_draws_nothing_is_refused_with_what_makes_it_draw(side: Side) -> None:
    with pytest.raises(ArgumentError, match=r"draws no random numbers.*leave num_draws= out"):
        generate(side, model=plain, num_draws=2)
    assert generate(side, model=plain)[0].shape == (4,)


def test_draws_from_a_generator_that_no_seed_reaches_are_refused(side: Side) -> None:
    own = np.random.default_rng()

    def model(x: Any) -> Any:
        return x + side.array(own.normal(size=x.shape).astype(np.float32))

    with pytest.raises(ArgumentError, match="a draw does not repeat"):
        generate(side, model=model, num_draws=2)


def test_a_batch_of_draws_is_not_halved(side: Side, path: Path) -> None:
    inner = MODELS[side.name]()

    def model(x: Any, **keyword: Any) -> Any:
        if len(x) > 8:
            raise MemoryError("out of memory")
        return inner(x, **keyword)

    named = {"numpy": "rng", "jax": "key"}.get(side.name)
    limited: Any = model
    if named is not None:
        limited = eval(f"lambda x, {named}: model(x, {named}={named})", {"model": model})
    with pytest.raises(GenerationError, match="not halved: give a smaller batch_size"):
        generate(side, model=limited, num_draws=2, store=path)
    assert generate(side, model=limited, num_draws=2, store=path, batch=8).is_sealed


# ------------------------------------------------------------------ what is said without draws


def test_identical_members_are_said_once(side: Side) -> None:
    with pytest.warns(UserWarning, match=r"members 0 and 1 gave the same.*num_draws=3") as said:
        generate(side, model=[plain] * 3)
    assert len(said) == 1


def functional(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(x, 0.5, training=True)


def test_a_model_that_draws_by_itself_is_said_once_and_num_draws_is_the_cure() -> None:
    with pytest.warns(UserWarning, match=r"the model draws random numbers.*num_draws=10") as said:
        generate(SIDES["torch"], model=functional)
    assert len(said) == 1
    assert rows_of(generate(SIDES["torch"], model=functional, num_draws=10)).shape == (100, 10, 4)


def test_numbers_that_are_drawn_without_effect_are_not_mentioned(side: Side) -> None:
    def model(x: Any) -> Any:
        np.random.rand(1)
        torch.rand(1)
        return x * 2

    generate(side, model=model)


def test_a_dataset_that_draws_is_not_taken_for_a_model_that_does(side: Side) -> None:
    generate(side, Augmented("numpy"), plain)
    generate(side, Augmented("torch"), plain)


# ------------------------------------------------------------------ Flax NNX


def flax_net() -> Any:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.inner = nnx.Linear(4, 32, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.outer = nnx.Linear(32, 5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.outer(self.dropout(self.norm(self.inner(x))))

    return Net(nnx.Rngs(0))


def flax_state(net: Any) -> tuple[Any, ...]:
    return (
        net.dropout.deterministic,
        net.norm.use_running_average,
        net.norm.mean[...].tolist(),
        int(net.dropout.rngs.count[...]),
        str(net.dropout.rngs.key[...]),
    )


HIDDEN: dict[str, Any] = {
    "itself": lambda net: net,
    "function": lambda net: lambda x: net(x),
    "jit": lambda net: __import__("jax").jit(lambda x: net(x)),
    "nnx.jit": lambda net: __import__("functools").partial(
        __import__("flax").nnx.jit(lambda m, x: m(x)), net
    ),
    "list": lambda net: (lambda nets: lambda x: nets[0]["net"](x))([{"net": net}]),
    "method": lambda net: net.__call__,
}


@pytest.mark.parametrize("how", HIDDEN)
def test_flax_modules_run_in_evaluation_mode_and_are_as_before(how: str) -> None:
    net = flax_net()
    net.eval()
    expected = softmax(np.asarray(net(INPUTS)))
    net.train()
    net.dropout.deterministic = None if how == "function" else False
    before = flax_state(net)
    rows = rows_of(generate(SIDES["jax"], model=HIDDEN[how](net)))
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)
    assert flax_state(net) == before


@pytest.mark.parametrize("how", [name for name in HIDDEN if name != "jit"])
def test_draws_of_flax_are_dropout_alone_and_repeat(how: str, path: Path) -> None:
    net = flax_net()
    before = flax_state(net)
    model = HIDDEN[how](net)
    whole = generate(SIDES["jax"], model=model, num_draws=3, store=path.with_stem("whole"))
    assert np.ptp(whole.array[:], axis=1).max() > 0.05
    assert flax_state(net) == before
    generate(SIDES["jax"], model=model, num_draws=3, store=path, rows=(0, 41))
    generate(SIDES["jax"], model=model, num_draws=3, store=path)
    assert data_files(path) == data_files(path.with_stem("whole"))
    net.eval()
    mean = evaluate.ensemble_uncertainty(rows_of(whole)).total.mean()
    assert mean > 0


def test_a_flax_model_that_was_split_in_training_mode_is_refused_with_the_cure() -> None:
    from flax import nnx

    def split(net: Any) -> Any:
        graph, state = nnx.split(net)
        return lambda x: nnx.merge(graph, state)(x)

    net = flax_net()
    with pytest.raises(ArgumentError, match=r"GraphDef with .*=False.*before nnx.split"):
        generate(SIDES["jax"], model=split(net))
    net.eval()
    assert generate(SIDES["jax"], model=split(net))[0].shape == (5,)
