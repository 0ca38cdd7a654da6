"""What only torch has: modules and their flags, DataLoaders, workers, gradients, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    get_worker_info,
)

import fostore
from fostore.errors import ArgumentError, GenerationError
from fostore.torch import (
    FirstOrderDataGenerator,
    FirstOrderDataset,
    find_optimal_batch_size,
    modules,
    output_dataloader,
    to_device,
)
from sides import Pairs, make_pairs


class Net(nn.Module):
    """Has everything that differs between training and evaluation."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 5)
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((len(x), self.training, torch.is_grad_enabled()))
        return self.head(self.body(x))


def oracle(model: nn.Module, inputs: Any) -> np.ndarray:
    flags = [part.training for part in model.modules()]
    model.eval()
    with torch.no_grad():
        rows = torch.softmax(model(torch.as_tensor(np.asarray(inputs))), -1).numpy()
    for part, flag in zip(model.modules(), flags, strict=True):
        part.training = flag
    return rows


def assert_same(result: Any, expected: np.ndarray) -> None:
    assert list(result.keys()) == list(range(len(expected)))
    rows = np.stack([result[i] for i in range(len(expected))])
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ modules


class Held:
    """Runs a module without being one."""

    def __init__(self, model: nn.Module) -> None:
        self.parts = {"model": model}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts["model"](x)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)


def by_default(model: nn.Module) -> Any:
    def predict(x: torch.Tensor, inner: nn.Module = model) -> torch.Tensor:
        return inner(x)

    return predict


def by_function(model: nn.Module) -> Any:
    inner = lambda x: model(x)  # noqa: E731  # a function that another one calls
    return lambda x: inner(x)


@pytest.mark.parametrize(
    "hide",
    [
        Held,
        lambda model: Held(model).predict,
        by_default,
        by_function,
        lambda model: (lambda models: lambda x: torch.stack([m(x) for m in models]).mean(0))(
            [model]
        ),
    ],
    ids=["object", "method", "default", "function", "list"],
)
def test_a_module_behind_a_callable_is_in_evaluation_mode(hide: Any) -> None:
    model, pairs = Net(), make_pairs()
    model.train()
    expected = oracle(model, pairs.inputs)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    generator = FirstOrderDataGenerator(hide(model), output_mode="logits")
    assert_same(generator.generate_distributions(pairs, False), expected)
    assert model.training
    assert model.body.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fails", [False, True])
def test_flags_of_every_submodule_are_as_before(fails: bool) -> None:
    model, pairs = Net(), make_pairs()
    model.train()
    model.body[1].eval()  # a frozen batch norm in a model that trains
    flags = [part.training for part in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        pairs.inputs = np.zeros((100, 3), np.float32)
        with pytest.raises(GenerationError):
            FirstOrderDataGenerator(model).generate_distributions(pairs, False)
    else:
        FirstOrderDataGenerator(model).generate_distributions(pairs, False)
    assert [part.training for part in model.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_models_run_in_evaluation_mode_without_gradients() -> None:
    model = Net().train()
    result = FirstOrderDataGenerator(model).generate_distributions(make_pairs(), False)
    assert {call[1:] for call in model.calls} == {(False, False)}
    assert_same(result, oracle(model, make_pairs().inputs))


def test_a_module_inside_a_function_is_put_into_evaluation_mode_too() -> None:
    model = Net().train()
    expected = oracle(model, make_pairs().inputs)
    for call in (lambda x: model(x), model.forward):
        assert_same(
            FirstOrderDataGenerator(call).generate_distributions(make_pairs(), False), expected
        )
        assert model.training


def test_a_train_method_of_its_own_is_undone_by_itself() -> None:
    class Merging(Net):
        merged = False

        def train(self, mode: bool = True) -> Any:
            self.merged = not mode
            return super().train(mode)

    model = Merging().train()
    FirstOrderDataGenerator(model).generate_distributions(make_pairs(), False)
    assert model.training
    assert not model.merged


def test_training_goes_on_after_generation() -> None:
    model = Net().train()
    FirstOrderDataGenerator(model).generate_distributions(make_pairs(), False)
    model(torch.from_numpy(make_pairs().inputs)).sum().backward()
    assert model.head.weight.grad is not None


class Drawn(Sampler[int]):
    """An order of its own, drawn from the global random state."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return iter(torch.randperm(self.samples).tolist())

    def __len__(self) -> int:
        return self.samples


def test_a_sampler_that_draws_leaves_the_random_state_alone() -> None:
    model, pairs = Net(), make_pairs()
    loader = DataLoader(pairs, batch_size=7, sampler=Drawn(len(pairs)))
    before = torch.get_rng_state()
    generator = FirstOrderDataGenerator(model, output_mode="logits")
    assert_same(generator.generate_distributions(loader, False), oracle(model, pairs.inputs))
    assert torch.equal(before, torch.get_rng_state())


def test_random_states_of_torch_are_left_alone(tmp_path: Path) -> None:
    class Noisy(Pairs):
        def __getitem__(self, index: int) -> Any:
            torch.rand(1)
            return super().__getitem__(index)

    pairs = make_pairs()
    noisy = Noisy(pairs.inputs, pairs.labels)
    before = torch.get_rng_state()
    own = torch.Generator()
    own_before = own.get_state()
    loader = DataLoader(noisy, batch_size=8, generator=own)
    generator = FirstOrderDataGenerator(Net(), output_mode="logits")
    before = torch.get_rng_state()
    for data in (noisy, loader):
        generator.generate_distributions(data, False)
        generator.generate_distributions(data, False, store=tmp_path / "a.zarr")
        generator.generate_distributions(data, False, store=tmp_path / "a.zarr")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(own_before, own.get_state())


def test_a_bfloat16_model_is_softmaxed_in_float32() -> None:
    model = nn.Linear(4, 300).to(torch.bfloat16)
    inputs = torch.randn(50, 4, dtype=torch.bfloat16)
    result = FirstOrderDataGenerator(model).generate_distributions(TensorDataset(inputs), False)
    with torch.no_grad():
        assert_same(result, torch.softmax(model(inputs).float(), -1).numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_probabilities_are_accepted(dtype: torch.dtype, tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x, -1).to(dtype)

    dataset = TensorDataset(torch.randn(200, 10))
    generator = FirstOrderDataGenerator(Half())
    in_memory = generator.generate_distributions(dataset, False)
    store = generator.generate_distributions(dataset, False, store=tmp_path / "a.zarr")
    assert store.meta["output_mode"] == "probs"
    assert_same(store, np.stack(list(in_memory.values())))


def test_autocast_of_the_caller_holds_for_the_model_alone() -> None:
    model, pairs = Net(), make_pairs()
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        result = FirstOrderDataGenerator(model).generate_distributions(pairs, False)
    assert set(seen) == {torch.bfloat16}
    assert max(abs(float(row.sum()) - 1) for row in result.values()) < 1e-5


def test_a_model_output_is_understood_and_a_tensor_is_asked_for() -> None:
    class Output(dict):  # type: ignore[type-arg]
        @property
        def logits(self) -> Any:
            return self["logits"]

    model, pairs = Net(), make_pairs()
    generator = FirstOrderDataGenerator(lambda x: Output(logits=model(x)))
    assert_same(generator.generate_distributions(pairs, False), oracle(model, pairs.inputs))
    with pytest.raises(ArgumentError, match=r"Model must return a torch\.Tensor, not tuple"):
        FirstOrderDataGenerator(lambda x: (model(x), 1)).generate_distributions(pairs, False)


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("cuda:99", "tpu", "abacus"):
        with pytest.raises(ArgumentError, match="device is"):
            FirstOrderDataGenerator(Net(), device=device)
    assert FirstOrderDataGenerator(Net(), device=torch.device("cpu")).device == "cpu"  # type: ignore[arg-type]


def test_a_model_that_sits_elsewhere_is_moved_with_a_warning() -> None:
    """With a stand-in for another device, since every machine has but one: "meta" holds no numbers."""
    moved: list[torch.device] = []

    class Elsewhere(Net):
        def to(self, device: Any) -> Any:
            moved.append(device)
            return self

    model = Elsewhere()
    model._apply(lambda tensor: tensor.to("meta"))
    with pytest.warns(UserWarning, match="the model sits on meta and device is 'cpu'"):
        modules.move(model, torch.device("cpu"))
    assert moved == [torch.device("cpu")]


def test_a_torch_module_belongs_to_the_torch_side() -> None:
    import fostore.jax

    for generator in (fostore.FirstOrderDataGenerator, fostore.jax.FirstOrderDataGenerator):
        with pytest.raises(ArgumentError, match=r"use fostore\.torch\.FirstOrderDataGenerator"):
            generator(Net())


def test_to_device_takes_objects_that_move_themselves() -> None:
    class Graph:
        place: Any = None

        def to(self, device: Any) -> Any:
            self.place = device
            return self

    moved = to_device({"graph": Graph(), "ids": torch.ones(2, dtype=torch.int64)}, "cpu")
    assert moved["graph"].place == torch.device("cpu")
    assert moved["ids"].dtype == torch.int64


# ------------------------------------------------------------------ loaders


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_brings_its_batches_and_workers(workers: int, tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    loader = DataLoader(pairs, batch_size=16, shuffle=False, num_workers=workers)
    result = FirstOrderDataGenerator(model).generate_distributions(loader, False)
    assert_same(result, oracle(model, pairs.inputs))
    assert [call[0] for call in model.calls[:-1]] == [16] * 6 + [4]
    store = FirstOrderDataGenerator(model).generate_distributions(
        loader, False, store=tmp_path / "a.zarr"
    )
    assert_same(store, oracle(model, pairs.inputs))


def test_a_loader_resumes_without_reading_what_is_done(tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    loader = DataLoader(pairs, batch_size=16)
    generator = FirstOrderDataGenerator(model)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr"}
    generator.generate_distributions(loader, False, rows=(0, 50), **options)
    model.calls.clear()
    pairs.read.clear()
    store = generator.generate_distributions(loader, False, **options)
    assert [call[0] for call in model.calls] == [16, 16, 16, 16, 4]  # the first one once more
    assert sorted(set(pairs.read)) == [*range(16), 25, *range(48, 100)]
    whole = generator.generate_distributions(pairs, False, store=tmp_path / "b.zarr")
    sixteen = FirstOrderDataGenerator(model, batch_size=16)
    same = sixteen.generate_distributions(pairs, False, store=tmp_path / "c.zarr")
    assert store.digest() == same.digest()
    np.testing.assert_allclose(store.array, whole.array, rtol=1e-5)


def test_the_input_getter_gets_one_sample_of_a_loader_too() -> None:
    model, pairs = Net(), make_pairs()
    samples = [{"image": x, "id": str(i)} for i, x in enumerate(pairs.inputs)]
    generator = FirstOrderDataGenerator(model, input_getter=lambda sample: sample["image"])
    loader = DataLoader(samples, batch_size=16)  # type: ignore[arg-type]
    assert_same(generator.generate_distributions(loader, False), oracle(model, pairs.inputs))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": torch.utils.data.SubsetRandomSampler(range(10))},
        {"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 100, 100)},
        {
            "batch_sampler": BatchSampler(
                torch.utils.data.RandomSampler(range(100)),  # type: ignore[arg-type]
                8,
                False,
            )
        },
    ],
)
def test_a_loader_that_shuffles_is_refused(options: dict[str, Any]) -> None:
    model = Net()
    with pytest.raises(ArgumentError, match="shuffle=False"):
        FirstOrderDataGenerator(model).generate_distributions(
            DataLoader(make_pairs(), **options), False
        )
    assert model.calls == []


def test_a_permuting_sampler_is_indexed_by_the_dataset(tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    order = np.random.default_rng(0).permutation(100).tolist()
    loader = DataLoader(pairs, batch_size=16, sampler=order)
    generator = FirstOrderDataGenerator(model)
    assert_same(generator.generate_distributions(loader, False), oracle(model, pairs.inputs))
    store = generator.generate_distributions(loader, False, store=tmp_path / "a.h5")
    assert_same(store, oracle(model, pairs.inputs))


def test_a_partial_sampler_is_indexed_in_memory_and_refused_with_a_store(tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    expected = oracle(model, pairs.inputs)
    loader = DataLoader(pairs, batch_size=3, sampler=[7, 3, 99, 0])
    generator = FirstOrderDataGenerator(model)
    with pytest.warns(UserWarning, match="generated 4 distributions, but dataset length is 100"):
        result = generator.generate_distributions(loader, False)
    assert list(result) == [7, 3, 99, 0]
    for i in result:
        np.testing.assert_allclose(result[i], expected[i], rtol=1e-5)
    with pytest.raises(ArgumentError, match=r"4 of 100 samples come.*Subset"):
        generator.generate_distributions(loader, False, store=tmp_path / "a.zarr")


def test_batches_of_any_order_and_size_are_filed_by_index(tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    order = np.random.default_rng(0).permutation(100)
    batches = [part.tolist() for part in np.split(order, [5, 11, 40, 41, 90])]
    loader = DataLoader(pairs, batch_sampler=batches)
    generator = FirstOrderDataGenerator(model)
    expected = oracle(model, pairs.inputs)
    result = generator.generate_distributions(loader, False)
    assert list(result) == order.tolist()
    np.testing.assert_allclose([result[i] for i in range(100)], expected, rtol=1e-5, atol=1e-6)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr"}
    part = generator.generate_distributions(loader, False, rows=(0, 50), **options)
    assert part.missing() == [(50, 100)]
    model.calls.clear()
    store = generator.generate_distributions(loader, False, **options)
    assert store.is_sealed
    assert_same(store, expected)


def test_a_subset_is_numbered_from_0(tmp_path: Path) -> None:
    model, pairs = Net(), make_pairs()
    subset = Subset(pairs, [5, 50, 95])
    expected = oracle(model, pairs.inputs[[5, 50, 95]])
    for data in (subset, DataLoader(subset, batch_size=2)):
        result = FirstOrderDataGenerator(model).generate_distributions(data, False)
        assert_same(result, expected)
    store = FirstOrderDataGenerator(model).generate_distributions(
        subset, False, store=tmp_path / "a.zarr"
    )
    assert_same(store, expected)


def test_drop_last_warns_in_memory_and_is_refused_with_a_store(tmp_path: Path) -> None:
    dataset = TensorDataset(torch.randn(1000, 4))
    loader = DataLoader(dataset, batch_size=64, drop_last=True)
    generator = FirstOrderDataGenerator(Net())
    with pytest.warns(UserWarning, match="generated 960") as said:
        result = generator.generate_distributions(loader, False)
    assert str(said[0].message) == (
        "[FirstOrderDataGenerator] generated 960 distributions, but dataset length is 1000."
    )
    assert len(result) == 960
    with pytest.raises(ArgumentError, match=r"960 of 1000 samples come.*drop_last=False"):
        generator.generate_distributions(loader, False, store=tmp_path / "a.zarr")
    even = DataLoader(Subset(dataset, range(960)), batch_size=64, drop_last=True)
    assert len(generator.generate_distributions(even, False, store=tmp_path / "a.zarr")) == 960


def test_a_loader_without_batches_or_with_a_way_of_its_own_is_refused() -> None:
    class Own(DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return reversed(list(super().__iter__()))

    for loader, words in [
        (DataLoader(make_pairs(), batch_size=None), "batch_size=None"),
        (Own(make_pairs(), batch_size=8), "order of its samples is not known"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            FirstOrderDataGenerator(Net()).generate_distributions(loader, False)


def test_bare_tensors_and_arrays_are_batches() -> None:
    for data in (torch.zeros(8, 4), np.zeros((8, 4), np.float32)):
        with pytest.raises(ArgumentError, match="TensorDataset"):
            FirstOrderDataGenerator(Net()).generate_distributions(data, False)


class Numbers(IterableDataset[Any]):
    def __init__(self, inputs: np.ndarray, length: int | None = None) -> None:
        self.inputs = inputs
        self.length = length

    def __iter__(self) -> Any:
        info = get_worker_info()
        return iter(
            [(x, 0) for x in self.inputs[info.id if info else 0 :: info.num_workers if info else 1]]
        )

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("no length")
        return self.length


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterable_dataset_is_numbered_as_it_comes(workers: int, tmp_path: Path) -> None:
    model, inputs = Net(), make_pairs().inputs
    expected = oracle(model, inputs)
    loader = DataLoader(Numbers(inputs), batch_size=16, num_workers=workers)
    generator = FirstOrderDataGenerator(model)
    assert_same(generator.generate_distributions(Numbers(inputs), False), expected)
    assert_same(generator.generate_distributions(loader, False), expected)
    assert_same(
        generator.generate_distributions(loader, False, store=tmp_path / "a.zarr"), expected
    )
    with_length = Numbers(inputs, 100)
    assert_same(
        generator.generate_distributions(with_length, False, store=tmp_path / "a.h5"), expected
    )


def test_several_workers_over_a_stream_have_no_order() -> None:
    loader = DataLoader(Numbers(make_pairs().inputs), batch_size=16, num_workers=2)
    with pytest.raises(ArgumentError, match="num_workers=0 or 1"):
        FirstOrderDataGenerator(Net()).generate_distributions(loader, False)


def test_a_stream_that_ends_early_is_not_whole(tmp_path: Path) -> None:
    generator = FirstOrderDataGenerator(Net())
    short = Numbers(make_pairs().inputs, 120)
    with pytest.warns(UserWarning, match="generated 100 distributions, but dataset length is 120"):
        generator.generate_distributions(short, False)
    with pytest.raises(GenerationError, match="ended after 100 samples, but its length is 120"):
        generator.generate_distributions(short, False, store=tmp_path / "a.zarr")
    assert not fostore.open(tmp_path / "a.zarr").is_sealed


# ------------------------------------------------------------------ datasets and batch sizes


def test_loader_options_reach_torch() -> None:
    rows = {i: [0.5, 0.5] for i in range(100)}
    loader = output_dataloader(make_pairs(), rows, 16, drop_last=True, num_workers=2)
    assert len(list(loader)) == 6
    inputs, _, distributions = next(iter(loader))
    assert inputs.shape == (16, 4)
    assert distributions.dtype == torch.float32
    assert FirstOrderDataset(make_pairs(), rows)[3][2].tolist() == [0.5, 0.5]


def test_a_batch_size_is_found_and_everything_is_as_before() -> None:
    model = Net().train()
    before = torch.get_rng_state()
    found = find_optimal_batch_size(model, make_pairs(40), "cpu", max_batch=8)
    assert found in (1, 2, 4, 8)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    assert max(call[0] for call in model.calls) <= 8


def test_members_of_a_list_are_evaluated_and_stacked() -> None:
    members, pairs = [Net(0).train(), Net(1).train()], make_pairs()
    result = FirstOrderDataGenerator(members).generate_distributions(pairs, False)
    assert_same(result, np.stack([oracle(m, pairs.inputs) for m in members], axis=1))
    assert all(member.training for member in members)
