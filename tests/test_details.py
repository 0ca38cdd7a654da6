"""What an identity sees of code, attributes and globals: the same in every process, bounded, never guessed."""

from __future__ import annotations

import collections
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from details_target import Model, Setting, Slotted, helper
from fostore.generate.adapters import adapt
from fostore.jax.framework import describe as describe_jax
from fostore.schema import identity
from fostore.torch.modules import describe as describe_torch


def seen(item: Any) -> Any:
    return identity.Details().of(item)


def test_details_are_the_same_in_every_process() -> None:
    code = (
        "import json; from details_target import Model; from fostore.schema import identity; "
        "print(json.dumps(identity.Details().of(Model())))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**env, "PYTHONHASHSEED": hashseed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashseed in ("1", "2")
    ]
    assert found[0] == found[1]
    described = json.loads(found[0])
    assert "opaque" not in described
    named = described["details"]
    assert {"the global 'TABLE'", "the code of helper", "the code of Model.double"} <= named.keys()
    assert "the code of Model.scale" in named
    assert named["the attribute 'itself'"] == "itself"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", np.arange(6.0).reshape(3, 2)),
        ("words", {"a", "b"}),
        ("setting", Setting(2.0)),
        ("slotted", Slotted(4)),
        ("queue", collections.deque([1, "b"])),
        ("part", functools.partial(helper, x=2)),
        ("kind", float),
        ("path", Path("elsewhere")),
        ("new", [1, [2, {"k": None}]]),
        ("double", lambda x: x * 3),
    ],
)
def test_every_kind_of_attribute_is_seen(name: str, value: Any) -> None:
    one, other = ({"model": seen(model)} for model in (Model(), Model(**{name: value})))
    assert not identity.doubts(one, {"model": seen(Model())})
    assert f"the attribute {name!r}" in str(identity.doubts(one, other))


def test_secrets_are_not_written_down() -> None:
    assert "sesame" not in json.dumps(seen(Model(key="open sesame", raw=b"sesame")))


@pytest.mark.parametrize(
    "value", [(i for i in [1]), open, sys.stdout, iter([1]), object], ids=lambda v: type(v).__name__
)
def test_what_cannot_be_hashed_makes_a_model_opaque(value: Any) -> None:
    described = seen(Model(value=value))
    unseen = described["details"]["the attribute 'value'"] == identity.UNSEEN
    assert described.get("opaque", False) == unseen
    assert unseen == (type(value).__name__ in ("generator", "EncodedFile", "TextIOWrapper"))


def test_a_deep_or_huge_object_ends_the_walk() -> None:
    deep: Any = []
    for _ in range(1000):
        deep = [deep]
    assert seen(Model(deep=deep))["opaque"]
    began = time.perf_counter()
    assert seen(Model(many=[[i] for i in range(200_000)]))["opaque"]
    assert time.perf_counter() - began < 20
    many = seen(Model(**{f"a{i}": i for i in range(2000)}))["details"]
    assert len(many) < 510
    assert "everything else" in many


def test_loops_of_references_end() -> None:
    one: Any = Slotted(None)
    one.value = [one, {"self": one}]
    assert "opaque" not in seen(Model(loop=one))
    assert seen(Model(loop=one)) == seen(Model(loop=one))


def test_what_a_function_reaches_is_seen_and_the_rest_is_not() -> None:
    found = seen(helper)["details"]
    assert set(found) == {"the code of helper", "the function", "the global 'TABLE'"}
    found = seen(np.tanh)["details"]
    assert set(found) == {"the function"}


def test_a_decorator_of_ones_own_is_looked_through() -> None:
    def by(factor: float) -> Any:
        def decorate(function: Any) -> Any:
            @functools.wraps(function)
            def inner(x: Any) -> Any:
                return function(x) * factor

            return inner

        return decorate

    found = {"model": seen(by(1.0)(helper))}
    assert "'factor' in helper" in str(identity.doubts(found, {"model": seen(by(2.0)(helper))}))


def test_byte_code_of_another_python_says_nothing() -> None:
    entry = seen(eval("lambda x: x"))["details"]["the code of <lambda>"]
    assert entry.startswith("byte code 3.")
    old = {"model": {"details": {"the code of <lambda>": "byte code 3.1 0123"}}}
    assert not identity.doubts(old, {"model": {"details": {"the code of <lambda>": entry}}})
    same = entry.rpartition(" ")[0]
    new = {"model": {"details": {"the code of <lambda>": f"{same} 0123"}}}
    doubts = identity.doubts(new, {"model": {"details": {"the code of <lambda>": entry}}})
    assert not doubts.code
    assert "the code of <lambda> has changed" in str(doubts)


def test_libraries_are_known_by_name() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LeakyReLU(0.1))
    found = describe_torch(net)["details"]
    assert set(found) == {f"a setting of {n}" for n in ("Linear", "LeakyReLU", "Sequential")}
    other = describe_torch(torch.nn.Sequential(net[0], torch.nn.LeakyReLU(0.2)))
    assert "a setting of LeakyReLU has changed" in str(
        identity.doubts({"model": describe_torch(net)}, {"model": other})
    )


def test_devices_and_training_flags_are_no_detail() -> None:
    class Net(torch.nn.Module):
        def __init__(self, device: Any) -> None:
            super().__init__()
            self.device = torch.device(device)

    one, other = Net("cpu"), Net("cuda:1")
    other.train(not one.training)
    assert describe_torch(one) == describe_torch(other)


def test_a_jit_function_shows_what_it_compiled() -> None:
    def make(weight: Any, scale: float) -> Any:
        return jax.jit(lambda x: x @ weight * scale)

    weight = jnp.ones((2, 3))
    one = {"model": describe_jax(make(weight, 1.0))}
    assert "opaque" not in one["model"]
    assert not identity.doubts(one, {"model": describe_jax(make(weight + 0, 1.0))})
    for other in (make(weight * 2, 1.0), make(weight, 2.0)):
        assert identity.doubts(one, {"model": describe_jax(other)})


def test_estimators_are_known_by_what_they_learned_and_how_they_were_set() -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 4)), np.arange(60) % 3

    def forest(**options: Any) -> Any:
        fitted = ensemble.RandomForestClassifier(5, random_state=0, **options).fit(x, y)
        return {"model": adapt(fitted).describe()}

    assert "opaque" not in forest()["model"]
    assert not identity.doubts(forest(), forest())
    assert "'max_depth' is" in str(identity.doubts(forest(max_depth=9), forest(max_depth=8)))


def test_a_model_of_ordinary_size_is_described_at_once() -> None:
    layers = [torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(100)]
    began = time.perf_counter()
    described = describe_torch(torch.nn.Sequential(*layers))
    assert time.perf_counter() - began < 2
    assert len(described["details"]) == 3
