"""Evaluation mode during generation, whatever hides a module, and everything as before afterwards."""

from __future__ import annotations

import collections
import collections.abc
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.data import Dataset

from fostore.errors import ArgumentError, GenerationError
from fostore.torch import FirstOrderDataGenerator, modes
from fostore.torch.modes import Modes
from sides import make_pairs, softmax
from support import collected_after, uncollected

INPUTS = make_pairs().inputs


# torch says that its old graphs are old, and its tracer that shapes were Python numbers.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 5))
    net[1].running_mean += 0.3
    return net


def expected_of(net: nn.Module) -> np.ndarray:
    net.eval()
    with torch.no_grad():
        rows = softmax(net(torch.from_numpy(INPUTS)).numpy())
    net.train()
    return rows


def generated(model: Any, **options: Any) -> np.ndarray:
    generator = FirstOrderDataGenerator(model, output_mode="logits", batch_size=32)
    rows = generator.generate_distributions(make_pairs(), False, **options)
    return np.stack([rows[i] for i in range(100)])


def assert_untouched(net: nn.Module) -> None:
    assert all(part.training for part in net.modules())
    assert int(net[1].num_batches_tracked) == 0  # type: ignore[index]
    assert not torch_module._global_forward_pre_hooks


class Kept:
    """Class attributes."""

    net: Any = None
    nets: dict[str, Any] = {}  # noqa: RUF012  # what is hidden here


class Slots:
    __slots__ = ("inner",)

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Asked:
    """Properties that nobody can look through."""

    @property
    def inner(self) -> nn.Module:
        return Kept.nets["teacher"]

    def __getattr__(self, name: str) -> nn.Module:
        if name == "whatever":
            return Kept.nets["teacher"]
        raise AttributeError(name)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)

    def by_name(self, x: torch.Tensor) -> torch.Tensor:
        return self.whatever(x)


class Listing(nn.Module):
    """A list inside a module, which eval() does not reach."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.parts = [{"net": inner}]
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[0]["net"](x) * self.scale


class Lazy(nn.Module):
    """Makes its network in its first call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.make: Callable[[], nn.Module] = iter([inner]).__next__
        self.made: list[nn.Module] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.made = self.made or [self.make()]
        return self.made[0](x)


def in_class(net: nn.Module) -> Any:
    Kept.net = net
    return lambda x: Kept.net(x)


def in_property(net: nn.Module) -> Any:
    Kept.nets["teacher"] = net
    return Asked()


def by_getattr(net: nn.Module) -> Any:
    Kept.nets["teacher"] = net
    return Asked().by_name


def in_deque(net: nn.Module) -> Any:
    queue = collections.deque([net])
    return lambda x: queue[0](x)


def in_weakref(net: nn.Module) -> Any:
    ref = weakref.ref(net)
    return lambda x: ref()(x)  # type: ignore[misc]


def in_generator(net: nn.Module) -> Any:
    nets = iter([net] * 100)
    return lambda x: next(nets)(x)


def in_partial(net: nn.Module) -> Any:
    return functools.partial(
        lambda holder, x: holder.deep["a"][0](x), SimpleNamespace(deep={"a": [net]})
    )


def called_as_forward(net: nn.Module) -> Any:
    nets = iter([net] * 100)
    return lambda x: next(nets).forward(x)


def of_a_compiled_function(net: nn.Module) -> Any:
    Kept.nets["compiled"] = net

    def call(x: torch.Tensor) -> torch.Tensor:
        return Kept.nets["compiled"](x)

    return torch.compile(call, backend="eager")


HIDING = {
    "class attribute": in_class,
    "slots": Slots,
    "property": in_property,
    "getattr": by_getattr,
    "deque": in_deque,
    "weak reference": in_weakref,
    "iterator": in_generator,
    "list in a module": Listing,
    "made in the call": Lazy,
    "partial": in_partial,
    "forward alone": called_as_forward,
    "script": lambda net: iter([torch.jit.script(net)] * 100).__next__,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled function": of_a_compiled_function,
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    Kept.net, Kept.nets = None, {}
    torch.compiler.reset()


@pytest.mark.parametrize("how", HIDING)
def test_whatever_hides_a_module_it_runs_in_evaluation_mode(how: str) -> None:
    net = make_net()
    expected = expected_of(net)
    model = HIDING[how](net)
    if how == "script":
        scripted = model
        model = lambda x: scripted()(x)  # noqa: E731
    np.testing.assert_allclose(generated(model), expected, rtol=1e-5, atol=1e-6)
    assert_untouched(net)


def test_a_compiled_model_is_compiled_once_for_all_batches_and_runs() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(Listing(make_net()), backend=backend, dynamic=True)
    generated(compiled)
    once = len(graphs)
    generated(compiled)
    assert len(graphs) == once <= 3


def test_a_hidden_module_that_fails_is_restored_and_the_hook_removed() -> None:
    net = make_net()
    nets = iter([net] * 100)

    def fails(x: torch.Tensor) -> torch.Tensor:
        return next(nets)(x)[:, :, None, None].squeeze(9)

    with pytest.raises(GenerationError, match="the model failed"):
        generated(fails)
    assert_untouched(net)


def test_a_module_in_the_transform_is_in_evaluation_mode_too() -> None:
    net = make_net()
    expected = expected_of(net)
    nets = iter([net] * 100)
    generator = FirstOrderDataGenerator(
        lambda x: x, output_mode="logits", output_transform=lambda x: next(nets)(x)
    )
    rows = generator.generate_distributions(make_pairs(), False)
    np.testing.assert_allclose(np.stack(list(rows.values())), expected, rtol=1e-5, atol=1e-6)
    assert_untouched(net)


def test_modules_of_the_dataset_are_the_datasets_own_business() -> None:
    flags: list[bool] = []

    class Augment(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flags.append(self.training)
            return x

    augment = Augment()

    class Augmented(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return augment(torch.from_numpy(INPUTS[index])), 0

    FirstOrderDataGenerator(make_net()).generate_distributions(Augmented(), False)
    assert set(flags) == {True}


def test_a_module_that_turns_itself_to_training_is_kept_in_evaluation_mode_and_that_is_said() -> (
    None
):
    class Stubborn(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.train()
            return self.net(x)

    net = make_net()
    expected = expected_of(net)
    with pytest.warns(
        UserWarning, match=r"in training mode whenever the model calls it.*num_draws="
    ):
        rows = generated(Stubborn(net))
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    assert_untouched(net)


def test_a_dropout_that_is_made_in_each_call_is_off_and_that_is_said_and_none_is_kept() -> None:
    made: list[weakref.ref[nn.Module]] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        dropout = nn.Dropout(0.5)
        made.append(weakref.ref(dropout))
        return dropout(x)

    with pytest.warns(UserWarning, match=r"Dropout is in training mode.*num_draws="):
        rows = generated(model)
    np.testing.assert_allclose(rows, softmax(INPUTS), rtol=1e-5)
    assert len(made) == 4
    assert all(ref() is None for ref in made)


def test_a_module_of_another_thread_is_left_alone_and_that_is_said() -> None:
    others, done = make_net(), threading.Event()
    started = threading.Event()

    def train() -> None:
        started.wait()
        others(torch.from_numpy(INPUTS))
        done.set()

    thread = threading.Thread(target=train)
    thread.start()

    def model(x: torch.Tensor) -> torch.Tensor:
        started.set()
        assert done.wait(20)
        return x

    with pytest.warns(UserWarning, match="training mode in another thread"):
        generated(model)
    thread.join()
    assert int(others[1].num_batches_tracked) == 1
    assert others.training


def exported(net: nn.Module) -> Any:
    shapes = ({0: torch.export.Dim("samples", min=2)},)
    given = (torch.from_numpy(INPUTS[:32]),)
    return torch.export.export(net, given, dynamic_shapes=shapes).module()


def traced(net: nn.Module) -> Any:
    return torch.jit.trace(net, torch.from_numpy(INPUTS[:32]), check_trace=False)


class Functional(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.net(x), 0.5, self.training)


def of_fx(net: nn.Module) -> Any:
    return torch.fx.symbolic_trace(Functional(net).train(net.training))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "make",
    [exported, traced, of_fx],
    ids=["exported", "traced", "fx"],
)
def test_a_graph_that_was_made_in_training_mode_is_refused(make: Any, hidden: bool) -> None:
    net = make_net()
    graph = make(net)
    graphs = iter([graph] * 100)
    model = (lambda x: next(graphs)(x)) if hidden else graph
    with pytest.raises(ArgumentError, match=r"graph that was made in training mode.*model.eval"):
        generated(model)
    assert generated(make(net.eval())).shape == (100, 5)  # what the message says to do


def test_a_frozen_script_without_flags_runs() -> None:
    net = make_net()
    expected = expected_of(net)
    frozen = torch.jit.freeze(torch.jit.script(net.eval()))
    np.testing.assert_allclose(generated(frozen), expected, rtol=1e-5, atol=1e-6)


def test_flags_inside_a_scripted_module_are_seen() -> None:
    net = make_net()
    expected = expected_of(net)
    net.eval()
    net[1].train()
    scripted = torch.jit.script(net)
    hidden = iter([scripted] * 100)
    np.testing.assert_allclose(generated(lambda x: next(hidden)(x)), expected, rtol=1e-5, atol=1e-6)
    assert [part.training for part in scripted.modules()] == [
        part.training for part in net.modules()
    ]


def test_the_search_reads_no_values_and_asks_no_code_of_the_users() -> None:
    asked: list[Any] = []

    class Rows(collections.abc.Mapping[int, Any]):
        def __getitem__(self, row: int) -> Any:
            asked.append(row)
            return row

        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

        def __len__(self) -> int:
            return 10

    class Odd:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise RuntimeError(name)

        @property
        def disk(self) -> Any:
            asked.append("disk")
            return None

    held = [Rows(), Odd()]
    generated(lambda x: x * len(held))
    assert not asked


def test_modules_may_be_collected_while_flags_are_restored() -> None:
    """A model that makes modules in each call leaves them in cycles, and the collector takes them at the end too."""
    net = make_net()
    for allocations in range(30):
        with uncollected():
            modes = Modes()
            modes.settle(net)
            for _ in range(20):
                made = nn.Dropout()
                made.me = [made]
                modes.settle(made)
            del made
            with collected_after(allocations):
                modes._restore()
        assert_untouched(net)


def test_the_hook_stays_for_who_enters_while_the_last_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, done, seen = threading.Event(), threading.Event(), []

    def generate() -> None:
        with Modes().watched():
            begun.set()
            done.wait(10)
            seen.append(modes._HOOK.id in torch_module._global_forward_pre_hooks)

    other = threading.Thread(target=generate)

    class Leaving:
        id = modes._HOOK.id
        remove_now = modes._HOOK.remove

        def remove(self) -> None:
            if not other.is_alive() and not seen:
                other.start()
                begun.wait(0.3)  # in vain: it enters when this one has left
            type(self).remove_now()

    monkeypatch.setattr(modes, "_HOOK", Leaving())
    with Modes().watched():
        pass
    done.set()
    other.join()
    assert seen == [True]
    assert modes._HOOK.id not in torch_module._global_forward_pre_hooks
