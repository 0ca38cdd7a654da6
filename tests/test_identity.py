"""What a store was made from: what is hashed, what decides, and how differences are put."""

from __future__ import annotations

import functools
import linecache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.errors import IdentityError
from fostore.schema import identity
from fostore.torch import FirstOrderDataGenerator
from sides import SIDES, Linear, Pairs, make_pairs


def net(seed: int = 0, last: int = 5) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, last)
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store that `net()` made over `make_pairs()`."""
    path = tmp_path / "rows.zarr"
    FirstOrderDataGenerator(net()).generate_distributions(make_pairs(), False, store=path)
    return path


def refusal(path: Path, model: Any = None, dataset: Any = None, **options: Any) -> str:
    """What is said when the store is resumed with something else."""
    names = ("output_mode", "output_transform", "input_getter", "batch_size")
    parameters = {name: options.pop(name) for name in names if name in options}
    generator = FirstOrderDataGenerator(net() if model is None else model, **parameters)
    with pytest.raises(IdentityError) as info:
        generator.generate_distributions(dataset or make_pairs(), False, store=path, **options)
    assert info.value.differences
    return str(info.value)


# ------------------------------------------------------------------ the model


def test_the_first_tensor_that_differs_is_named(made: Path) -> None:
    model = net()
    with torch.no_grad():
        model[3].weight[2, 1] += 1e-3
    assert "tensor '3.weight' of the model has other values than the store's." in refusal(
        made, model
    )


def test_a_buffer_is_part_of_the_model(made: Path) -> None:
    model = net()
    model[1].running_mean += 1
    assert "tensor '1.running_mean'" in refusal(made, model)


def test_another_shape_class_or_part_is_named(made: Path) -> None:
    text = refusal(made, net(last=6))
    assert (
        "tensor '3.weight' of the model is float32 [6, 8], the store's was float32 [5, 8]" in text
    )
    other = net()
    other[2] = torch.nn.Tanh()
    assert "part '2' of the model is a Tanh, in the store's it was a ReLU" in refusal(made, other)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    assert "the class of the model is" in refusal(made, Wrapped())


def test_what_only_was_recorded_decides_nothing(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "99.0")
    before = fostore.open(made).digest()
    generator = FirstOrderDataGenerator(net(), batch_size=7, model_name="another name")
    store = generator.generate_distributions(
        make_pairs(), False, store=made, meta={"host": "other"}
    )
    assert store.digest() == before


def test_a_compiled_or_training_model_is_the_same_model(made: Path) -> None:
    model = net()
    model.train()
    model._orig_mod = None
    FirstOrderDataGenerator(model).generate_distributions(make_pairs(), False, store=made)


def test_another_number_of_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.h5"
    members = [net(0), net(1)]
    FirstOrderDataGenerator(members).generate_distributions(make_pairs(), False, store=path)
    assert "has 3 members, the store was made by 2" in refusal(path, [*members, net(2)])
    assert "tensor '0.weight' of member 1 of the model" in refusal(path, [net(0), net(2)])


def test_a_fingerprint_stands_for_the_model(tmp_path: Path) -> None:
    path = tmp_path / "rows.zarr"
    pairs, side = make_pairs(), SIDES["numpy"]
    make = functools.partial(side.generator(Linear()).generate_distributions, pairs, False)
    make(store=path, model_fingerprint="v1")
    make(store=path, model_fingerprint="v1")
    with pytest.raises(IdentityError, match="fingerprint of the model is 'v2', the store has 'v1'"):
        make(store=path, model_fingerprint="v2")
    with pytest.raises(IdentityError, match="fingerprint of the model is None"):
        make(store=path)


# ------------------------------------------------------------------ the dataset


def test_another_length_or_other_labels_are_refused(made: Path) -> None:
    pairs = make_pairs()
    text = refusal(made, dataset=make_pairs(101))
    assert "the length of the dataset is 101, the store has 100" in text
    pairs.labels[3] = (pairs.labels[3] + 1) % 5  # type: ignore[index]
    assert "the hash of the labels is" in refusal(made, dataset=pairs)


def test_other_content_is_refused_and_the_sample_is_named(made: Path) -> None:
    pairs = make_pairs()
    pairs.inputs[50:] += 1
    assert "sample 50 of the dataset has another content" in refusal(made, dataset=pairs)


def test_a_permuted_dataset_is_refused(made: Path) -> None:
    pairs = make_pairs()
    order = np.random.default_rng(3).permutation(100)
    assert refusal(made, dataset=Pairs(pairs.inputs[order], pairs.labels[order]))  # type: ignore[index]


class Augmented(Pairs):
    """Adds noise at each reading."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + np.random.normal(size=x.shape).astype(np.float32) * self.noise, y

    noise = 0.1


def test_random_augmentation_is_said_once_and_does_not_block_a_resume(tmp_path: Path) -> None:
    pairs = make_pairs()
    noisy = Augmented(pairs.inputs, pairs.labels)
    generator = FirstOrderDataGenerator(net(), output_mode="logits")
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    with pytest.warns(UserWarning, match="sample 0 reads differently each time") as said:
        part = generator.generate_distributions(
            noisy, False, store=tmp_path / "a.zarr", rows=(0, 64)
        )
    assert len(said) == 1
    assert part.header.identity["dataset"]["content"] == "unstable"
    store = generator.generate_distributions(noisy, False, store=tmp_path / "a.zarr")
    assert store.is_sealed
    assert before == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]


def test_fingerprinting_does_not_shift_what_the_run_draws(tmp_path: Path) -> None:
    pairs = make_pairs()
    noisy = Augmented(pairs.inputs, pairs.labels)
    generator = FirstOrderDataGenerator(net(), output_mode="logits")
    in_memory = generator.generate_distributions(noisy, False)
    with pytest.warns(UserWarning, match="reads differently"):
        store = generator.generate_distributions(noisy, False, store=tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.array, list(in_memory.values()))


def test_augmentation_that_began_later_is_found_out(tmp_path: Path) -> None:
    pairs = make_pairs()
    noisy = Augmented(pairs.inputs, pairs.labels)
    noisy.noise = 0.0
    generator = FirstOrderDataGenerator(net(), output_mode="logits")
    generator.generate_distributions(noisy, False, store=tmp_path / "a.zarr", rows=(0, 64))
    noisy.noise = 0.1
    with pytest.warns(UserWarning, match="sample 0 reads differently"):
        generator.generate_distributions(noisy, False, store=tmp_path / "a.zarr")


def test_samples_padded_to_their_batch_are_recognised(tmp_path: Path) -> None:
    ragged = [np.ones(1 + i % 4, np.float32) * i for i in range(40)]

    def pad(samples: list[Any]) -> Any:
        width = max(map(len, samples))
        padded = np.stack([np.pad(s, (0, width - len(s))) for s in samples])
        return torch.from_numpy(padded)

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.stack([x.sum(1), x.mean(1) * 0], 1)

    generator = FirstOrderDataGenerator(Model(), batch_size=8)
    options: dict[str, Any] = {"store": tmp_path / "a.zarr", "collate_fn": pad}
    generator.generate_distributions(Pairs(ragged), False, rows=(0, 20), **options)  # type: ignore[arg-type]
    store = generator.generate_distributions(Pairs(ragged), False, **options)  # type: ignore[arg-type]
    assert store.is_sealed
    ragged[20] = ragged[20] + 1
    with pytest.raises(IdentityError, match="sample 20"):
        generator.generate_distributions(Pairs(ragged), False, **options)  # type: ignore[arg-type]


def test_a_fingerprint_stands_for_the_dataset(tmp_path: Path) -> None:
    path, pairs = tmp_path / "a.zarr", make_pairs()
    generator = FirstOrderDataGenerator(net())
    store = generator.generate_distributions(
        pairs, False, store=path, dataset_fingerprint="cifar-10 test"
    )
    assert store.schema.role("fingerprint") is None
    pairs.read.clear()
    generator.generate_distributions(pairs, False, store=path, dataset_fingerprint="cifar-10 test")
    assert pairs.read == [*range(64)]  # one batch, on which the model is looked at again
    assert "fingerprint of the dataset is 'other'" in refusal(path, dataset_fingerprint="other")


# ------------------------------------------------------------------ what no hash decides


class Scaled(torch.nn.Module):
    """A linear layer whose factor no state_dict holds."""

    def __init__(self, factor: float = 1.0, *, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Identity() if plain else torch.nn.Linear(4, 5)
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.factor


class Divide:
    """A transform with a value of its own."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, out: torch.Tensor) -> torch.Tensor:
        return out / self.by


class Learned(torch.nn.Module):
    """A transform that was trained."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = torch.nn.Parameter(torch.tensor(by))

    def forward(self, out: torch.Tensor) -> torch.Tensor:
        return out / self.by


FACTOR = 1.0


def by_global(out: torch.Tensor) -> torch.Tensor:
    return out * FACTOR


def slope(negative: float) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LeakyReLU(negative))


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (lambda: (Scaled(1.0), None), lambda: (Scaled(2.0), None)),
        (lambda: (Scaled(1.0, plain=True), None), lambda: (Scaled(2.0, plain=True), None)),
        (lambda: (slope(0.1), None), lambda: (slope(0.5), None)),
        (lambda: (net(), Divide(1.0)), lambda: (net(), Divide(2.0))),
        (lambda: (net(), Learned(1.0)), lambda: (net(), Learned(2.0))),
    ],
    ids=["buffer", "no tensor", "setting", "object", "module"],
)
def test_what_a_state_dict_leaves_out_is_seen_in_what_it_gives(
    tmp_path: Path, same: Any, other: Any
) -> None:
    def run(made: tuple[Any, Any], **options: Any) -> Any:
        model, transform = made
        generator = FirstOrderDataGenerator(model, output_mode="logits", output_transform=transform)
        return generator.generate_distributions(
            make_pairs(), False, store=tmp_path / "a.zarr", **options
        )

    run(same(), rows=(0, 64))
    with pytest.raises(IdentityError, match="another distribution for sample 0"):
        run(other())
    assert run(same()).is_sealed


def test_a_global_number_of_a_transform_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    generator = FirstOrderDataGenerator(net(), output_mode="logits", output_transform=by_global)
    generator.generate_distributions(make_pairs(), False, store=path, rows=(0, 64))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    with pytest.raises(IdentityError, match="another distribution"):
        generator.generate_distributions(make_pairs(), False, store=path)


def test_details_that_change_no_output_do_not_refuse(tmp_path: Path) -> None:
    path, divide = tmp_path / "a.zarr", Divide(1.0)
    generator = FirstOrderDataGenerator(net(), output_mode="logits", output_transform=divide)
    generator.generate_distributions(make_pairs(), False, store=path, rows=(0, 64))
    divide.note = "another day"  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="'note' .output_transform. is new; the rows 0 to 63 were"):
        assert generator.generate_distributions(make_pairs(), False, store=path).is_sealed


def test_the_source_of_a_library_is_no_part_of_a_function() -> None:
    softmax = identity.describe_function(torch.nn.functional.softmax)
    assert softmax == {"name": "softmax"}  # an upgrade of torch must not block a resume
    assert identity.describe_function(torch.nn.Softmax(1)) == {"name": "Softmax"}
    assert "source" in (identity.describe_function(Learned(1.0)) or {})  # a user's own forward


# ------------------------------------------------------------------ the output


def test_another_output_is_refused(made: Path) -> None:
    assert "the output mode is 'probs', the store has 'logits'" in refusal(
        made, output_mode="probs"
    )
    text = refusal(made, output_transform=lambda out: out)
    assert "the output_transform is" in text
    assert "input_getter" in refusal(made, input_getter=lambda sample: sample[0])
    assert "dtype is 'float16', the store has 'float32'" in refusal(made, dtype="float16")
    assert "store_as is 'logits', the store has 'probs'" in refusal(made, store_as="logits")
    assert "class_names" in refusal(made, class_names=list("abcde"))
    assert "temperature" in refusal(made, temperature=2.0)


def test_auto_and_what_it_resolved_to_are_the_same(made: Path) -> None:
    generator = FirstOrderDataGenerator(net(), output_mode="logits")
    assert generator.generate_distributions(make_pairs(), False, store=made).is_sealed


def test_a_store_that_does_not_say_what_it_came_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with fostore.create(path, num_samples=100, num_classes=5) as writer:
        writer.append(np.full((3, 5), 0.2))
    assert "does not say what model" in refusal(path)


def test_an_empty_store_is_filled_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fostore.create(path, num_samples=100, num_classes=5, meta={"by": "hand"}).close()
    generator = FirstOrderDataGenerator(net())
    store = generator.generate_distributions(make_pairs(), False, store=path)
    assert store.is_sealed
    assert store.meta["by"] == "hand"
    assert store.header.identity["output"]["mode"] == "logits"


def test_a_model_with_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    fostore.create(path, num_samples=100, num_classes=7).close()
    assert "rows of shape (5,), the store has (7,)" in refusal(path)


# ------------------------------------------------------------------ pure parts


@given(
    rows=st.integers(1, 9),
    width=st.integers(0, 5),
    dtype=st.sampled_from(["float32", "int64", "uint8", "bool", "float16"]),
)
def test_a_row_hashes_the_same_in_a_batch_of_any_size(rows: int, width: int, dtype: str) -> None:
    data = np.random.default_rng(rows).integers(0, 3, (rows, width, 2)).astype(dtype)
    whole = identity.row_hashes([("", data)], rows)
    alone = [identity.row_hashes([("", data[i : i + 1])], 1) for i in range(rows)]
    assert whole is not None
    assert whole.tolist() == [int(one[0]) for one in alone if one is not None]


def test_a_hash_depends_on_every_part() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)

    def one(*leaves: Any) -> int:
        hashes = identity.row_hashes(list(leaves), 2)
        assert hashes is not None
        return int(hashes[0])

    flipped = data.copy()
    flipped.view(np.uint8)[0, 3] ^= 1
    variants = [
        one(("", data)),
        one(("['x']", data)),
        one(("", flipped)),
        one(("", data.view(np.int32))),
        one(("", data.reshape(2, 3, 1))),
        one(("", data), ("b", data)),
        one(("", data), ("b", ["a", "b"])),
        one(("", data), ("b", ["c", "b"])),
    ]
    assert len(set(variants)) == len(variants)
    assert identity.row_hashes([("", object())], 2) is None


def test_labels_hash_the_same_in_any_container() -> None:
    values = [3, 1, 2]
    hashes = {identity.hash_values(v) for v in (values, np.int32(values), torch.tensor(values))}
    assert len(hashes) == 1
    assert identity.hash_values([3, 1, 3]) not in hashes
    assert identity.hash_values(["a", "b"]) is not None
    assert identity.hash_values([object()]) is None


def cell(source: str) -> dict[str, Any]:
    """What a notebook cell defines: IPython keeps its source for whoever asks."""
    name = f"<cell {identity.hash_bytes(source.encode())}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space: dict[str, Any] = {"torch": torch, "np": np}
    exec(compile(source, name, "exec"), space)
    return space


def scaled(x: Any, factor: float = 2.0) -> Any:
    # a comment
    return x * factor


def test_a_function_is_known_by_its_source_and_what_it_captured() -> None:
    def one(alpha: float) -> Any:
        return lambda out: out * alpha

    assert identity.describe_function(None) is None
    assert identity.describe_function(one(1.0)) == identity.describe_function(one(1.0))
    assert identity.describe_function(one(1.0)) != identity.describe_function(one(2.0))
    described = identity.describe_function(scaled)
    assert described is not None
    assert described["name"] == "scaled"
    assert identity.describe_function(functools.partial(scaled, factor=3.0)) != described
    assert identity.describe_function(len) == {"name": "len"}


def test_layout_and_comments_do_not_count() -> None:
    def one(source: str, name: str = "f") -> Any:
        return identity.describe_function(cell(source)[name])

    assert one("def f(x):\n    return x+1  # why\n") == one(
        'def f(x):\n    """What."""\n\n    return x + 1\n'
    )
    assert one("f, n = lambda out: out['a'], 8\n") == one("n, f = 9, lambda out: out['a']\n")
    assert one("f, g = lambda x: x, lambda x: -x\n") != one(
        "f, g = lambda x: x, lambda x: -x\n", "g"
    )


def test_an_identity_equals_itself() -> None:
    made_from = {
        "model": identity.describe_callable(Linear(), identity.hash_leaves),
        "dataset": {"length": 3, "content": "hashed"},
        "output": {"mode": "logits", "transform": identity.describe_function(scaled)},
    }
    assert identity.differences(made_from, made_from) == []
    unstable = {**made_from, "dataset": {"length": 3, "content": "unstable"}}
    assert identity.differences(made_from, unstable) == []
