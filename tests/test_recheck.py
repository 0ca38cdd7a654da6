"""A resume computes committed rows again: what it finds, what it lets pass, and what it says."""

from __future__ import annotations

import copy
import functools
import itertools
import linecache
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.encodings import encoding_of, make_schema
from fostore.errors import ArgumentError, IdentityError
from fostore.generate.recheck import disagrees
from fostore.schema.header import _META_CHECKSUM, CHECKSUM
from fostore.torch import FirstOrderDataGenerator
from sides import Linear, Pairs, Side, Stream, make_pairs, softmax

WEIGHT = torch.from_numpy(Linear().weight)
INPUTS = torch.from_numpy(make_pairs().inputs)


def cell(source: str, name: str, **given: Any) -> Any:
    """What a notebook cell defines: IPython keeps its source for whoever asks."""
    file = f"<cell {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space = {"torch": torch, "np": np, "WEIGHT": WEIGHT, **given}
    exec(compile(source, file, "exec"), space)
    return space[name]


def generate(model: Any, path: Path, **options: Any) -> Any:
    """Logits of a torch model over a hundred samples, sixteen a batch."""
    names = ("output_transform", "batch_size", "input_getter")
    parameters = {name: options.pop(name) for name in names if name in options}
    generator = FirstOrderDataGenerator(
        model, **{"output_mode": "logits", "batch_size": 16, **parameters}
    )
    data = options.pop("data", None) or make_pairs()
    return generator.generate_distributions(data, False, store=path, **options)


def difference(model: Any, path: Path, **options: Any) -> str:
    """What is said when a resume is refused."""
    with pytest.raises(IdentityError) as info:
        generate(model, path, **options)
    return str(info.value)


# ------------------------------------------------------------------ edited code


FORM = """
class Net(torch.nn.Module):
    {doc}
    factors = {factors}
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(WEIGHT.clone())
        self.temperature = {temperature}
    def head(self, x):
        return {head}
    def forward(self, x):
        # {comment}
        return self.head({forward}) / self.temperature * self.factors[0]
"""


def net(**parts: str) -> Any:
    whole = {
        "doc": '"""A teacher."""',
        "factors": "[1.0]",
        "temperature": "1.0",
        "head": "x",
        "comment": "why",
        "forward": "x @ self.weight",
    }
    return cell(FORM.format(**{**whole, **parts}), "Net")()


@pytest.mark.parametrize("rows", [(0, 48), None], ids=["half", "whole"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"forward": "(x @ self.weight) / 4.0"}, "the code of Net.forward has changed"),
        ({"forward": "torch.tanh(x @ self.weight)"}, "the code of Net.forward has changed"),
        ({"head": "-x"}, "the code of Net.head has changed"),
        ({"temperature": "4.0"}, "the attribute 'temperature' is 4.0, it was 1.0"),
        ({"factors": "[4.0]"}, "Net.factors has changed"),
    ],
    ids=str,
)
def test_an_edited_teacher_is_refused_and_the_edit_is_named(
    tmp_path: Path, edit: dict[str, str], said: str, rows: Any
) -> None:
    path = tmp_path / "rows.zarr"
    generate(net(), path, rows=rows)
    before = fostore.open(path)[:]
    text = difference(net(**edit), path)
    assert "another distribution for sample 0 than the store has" in text
    assert said in text
    np.testing.assert_array_equal(fostore.open(path)[:], before)


@pytest.mark.parametrize("rows", [(0, 48), None], ids=["half", "whole"])
def test_a_cell_that_is_run_again_goes_on_without_a_word(path: Path, rows: Any) -> None:
    generate(net(), path, rows=rows)
    assert generate(net(doc='"""Another."""', comment="another"), path).is_sealed


def test_an_edit_that_changes_no_row_is_said_once_and_goes_on(path: Path) -> None:
    generate(net(), path, rows=(0, 80))
    with pytest.warns(UserWarning, match="code of Net.head has changed") as said:
        store = generate(net(head="x + 0"), path)
    assert len(said) == 1
    # the first, the one in the middle and the last
    assert "the rows 0 to 15, rows 32 to 47 and rows 64 to 79 were computed again" in str(
        said[0].message
    )
    assert store.is_sealed


def test_an_edit_that_only_later_rows_show_is_found(path: Path) -> None:
    data = make_pairs()
    data.inputs[79, 0] = 50.0
    generate(net(), path, rows=(0, 80), data=data)
    text = difference(net(forward="x.clamp(max=40) @ self.weight"), path, data=data)
    assert "another distribution for sample 79" in text


def test_without_a_recheck_what_is_seen_differently_is_refused(path: Path) -> None:
    generate(net(), path, rows=(0, 48))
    assert "recheck=False computes nothing" in difference(net(head="x + 0"), path, recheck=False)
    store = generate(net(), path, rows=(48, 64), recheck=False)
    recorded = store.meta["accepted_differences"]
    assert recorded == ["no committed batch was computed again (recheck=False)"]
    store = generate(net(), path, recheck=False)
    assert store.is_sealed
    assert store.meta["accepted_differences"] == recorded


def test_recheck_needs_a_store() -> None:
    with pytest.raises(ArgumentError, match="recheck: without store="):
        FirstOrderDataGenerator(net()).generate_distributions(make_pairs(), False, recheck=False)


# ------------------------------------------------------------------ what a function reaches


class Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor


REACHING = {
    "global list": ("def f(out): return out[:, ORDER]", {"ORDER": [0, 1, 2, 3, 4]}),
    "global dict": ("def f(out): return out / SCALE['t']", {"SCALE": {"t": 1.0}}),
    "helper": ("def f(out): return help(out)", {"help": lambda out: out}),
    "object": ("def f(out): return out * by.factor", {"by": Scale(1.0)}),
    "no source": (None, {"f": eval("lambda out: out * 1.0")}),
}
CHANGED = {
    "global list": {"ORDER": [4, 3, 2, 1, 0]},
    "global dict": {"SCALE": {"t": 4.0}},
    "helper": {"help": lambda out: out * 4},
    "object": {"by": Scale(4.0)},
    "no source": {"f": eval("lambda out: out * 4.0")},
}


@pytest.mark.parametrize("reach", REACHING)
def test_a_transform_that_reaches_outside_is_found_out(path: Path, reach: str) -> None:
    source, given = REACHING[reach]

    def transform(given: dict[str, Any]) -> Any:
        return given["f"] if source is None else cell(source, "f", **given)

    model = net()
    generate(model, path, output_transform=transform(given), rows=(0, 48))
    text = difference(model, path, output_transform=transform(CHANGED[reach]))
    assert "another distribution for sample 0" in text
    assert "(output_transform) has changed" in text
    assert generate(model, path, output_transform=transform(given)).is_sealed


# ------------------------------------------------------------------ what a state_dict does not hold


class Extra(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(WEIGHT.clone())
        self._factor = factor

    def get_extra_state(self) -> Any:
        return {"factor": self._factor}

    def forward(self, x: Any) -> Any:
        return x @ self.weight * self._factor


class Hidden(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.nets = [Extra(factor)]
        self.by_name = {"net": self.nets[0]}

    def forward(self, x: Any) -> Any:
        return self.by_name["net"](x)


def quantised(factor: float) -> Any:
    module = torch.nn.Sequential(torch.nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(WEIGHT.T * factor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says where quantising moves to
        return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear})


def hooked(factor: float) -> Any:
    module = torch.nn.Linear(4, 5)
    with torch.no_grad():
        module.weight.copy_(WEIGHT.T)
        module.bias.zero_()
    module.register_forward_hook(lambda _, inputs, out: out * factor)
    return module


@pytest.mark.filterwarnings("ignore:.*quant.*")
@pytest.mark.parametrize("make", [Extra, Hidden, quantised, hooked])
def test_another_model_with_the_same_tensors_is_found_out(path: Path, make: Any) -> None:
    generate(make(1.0), path, rows=(0, 48))
    assert "another distribution for sample 0" in difference(make(4.0), path)
    assert generate(make(1.0), path).is_sealed


@pytest.mark.filterwarnings("ignore:members 0 and 1 gave the same:UserWarning")
def test_a_member_of_an_ensemble_that_changed_is_named(path: Path) -> None:
    generate([Extra(1.0), Hidden(1.0)], path, rows=(0, 48))
    text = difference([Extra(1.0), Hidden(4.0)], path)
    assert "'nets' (member 1) has changed" in text


def test_parts_under_other_names_are_the_same_model(path: Path) -> None:
    form = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.NAME = torch.nn.Linear(4, 5)
    def forward(self, x):
        return self.NAME(x)
"""
    one, other = (cell(form.replace("NAME", name), "Net")() for name in ("fc", "head"))
    other.head.load_state_dict(one.fc.state_dict())
    generate(one, path, rows=(0, 48))
    with pytest.warns(UserWarning, match="the tensors have other names"):
        assert generate(other, path).is_sealed


# ------------------------------------------------------------------ every side


class Teacher:
    """A NumPy model with a setting, which counts."""

    def __init__(self, factor: float = 1.0) -> None:
        self.weight, self.factor, self.batches = Linear().weight, factor, list[int]()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.batches.append(len(x))
        return np.stack([row @ self.weight for row in np.asarray(x)]) * self.factor


@pytest.mark.parametrize("named", [None, "teacher"])
@pytest.mark.parametrize("rows", [(0, 48), None], ids=["half", "whole"])
def test_a_callable_with_another_setting_is_refused(
    side: Side, path: Path, rows: Any, named: str | None
) -> None:
    def run(factor: float, **options: Any) -> Any:
        generator = side.generator(side.model(Teacher(factor)), batch_size=16, output_mode="logits")
        return generator.generate_distributions(
            make_pairs(), False, store=path, model_fingerprint=named, **options
        )

    run(1.0, rows=rows)
    with pytest.raises(IdentityError, match="another distribution for sample 0"):
        run(1.1)
    assert run(1.0).is_sealed


def test_what_running_a_model_changes_is_not_said(side: Side, path: Path) -> None:
    model = side.model(Teacher())
    generator = side.generator(model, batch_size=16, output_mode="logits")
    generator.generate_distributions(make_pairs(), False, store=path, rows=(0, 48))
    assert generator.generate_distributions(make_pairs(), False, store=path).is_sealed


class Lasting(torch.nn.Module):
    """A teacher that keeps something of its calls, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.mask, self.last = how, None, None
        self.register_buffer("seen", torch.zeros(()))

    @functools.cached_property
    def computed(self) -> torch.Tensor:
        return torch.ones(WEIGHT.shape[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.ones(WEIGHT.shape[1])
        if self.how == "made by the first call":
            scale = self.mask = scale if self.mask is None else self.mask
        elif self.how == "a cached property":
            scale = self.computed
        elif self.how == "the last outputs":
            self.last = x @ WEIGHT
        elif self.how == "a buffer that counts":
            self.seen += 1
        elif self.how == "a global":
            MADE.setdefault("scale", scale)
        return x @ WEIGHT * scale


MADE: dict[str, Any] = {}
KEPT = ["made by the first call", "a cached property", "the last outputs", "a buffer that counts"]


@pytest.mark.parametrize("batch_size", [16, 100])
@pytest.mark.parametrize("how", [*KEPT, "a global"])
def test_what_a_model_keeps_of_its_calls_is_no_difference(
    how: str, path: Path, batch_size: int
) -> None:
    MADE.clear()
    model = Lasting(how)
    generate(model, path, batch_size=batch_size)  # warnings are errors
    generate(model, path, batch_size=batch_size)
    generate(Lasting(how), path, batch_size=batch_size)
    assert generate(model, path, batch_size=batch_size, recheck=False).is_sealed


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_function_that_has_run_is_the_same_function(path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x @ WEIGHT

    model = torch.compile(function, backend="eager")
    model(INPUTS[:2])
    generate(model, path, rows=(0, 40))
    torch.compiler.reset()
    again = torch.compile(function, backend="eager")
    generate(again, path, rows=(0, 60))
    assert generate(again, path, recheck=False).is_sealed


@pytest.fixture
def _fresh_compiler() -> Any:
    yield
    torch.compiler.reset()


def test_a_batch_is_read_as_it_was(path: Path) -> None:
    seen: list[int] = []

    class Neighbours(torch.nn.Module):
        """What it gives depends on the batch, as padding and some kernels do."""

        def forward(self, x: Any) -> Any:
            seen.append(len(x))
            return x @ WEIGHT + x.mean()

    generate(Neighbours(), path, rows=(20, 60), batch_size=8)
    seen.clear()
    assert generate(Neighbours(), path, batch_size=32).is_sealed
    assert seen[0] == 8  # the rest in batches of today


@pytest.mark.parametrize("size", [None, True, 0, -3, "8", [8]])
def test_a_batch_size_that_is_none_is_not_followed(path: Path, size: Any) -> None:
    generate(net(), path, rows=(0, 48))
    assert generate(net(), path, meta={"batch_size": size}).is_sealed


def test_a_store_without_rows_is_not_rechecked(tmp_path: Path) -> None:
    path, model = tmp_path / "rows.zarr", Teacher()
    fostore.create(path, num_samples=100, num_classes=5).close()
    generator = fostore.FirstOrderDataGenerator(model, batch_size=50)
    generator.generate_distributions(make_pairs(), False, store=path)
    assert model.batches == [50, 50]


def test_memory_that_is_short_halves_the_recheck_as_well(path: Path) -> None:
    generate(net(), path, rows=(0, 48))
    model = net()
    forward = type(model).forward

    def short(self: Any, x: Any) -> Any:
        if len(x) > 8:
            raise MemoryError
        return forward(self, x)

    short.__qualname__ = "Net.forward"
    type(model).forward = short
    with pytest.warns(UserWarning, match="out of|the model") as said:
        assert generate(model, path).is_sealed
    assert [str(w.message)[:13] for w in said] == ["out of memory", "the model or "]


def test_a_model_that_gives_no_distributions_any_more_is_refused(path: Path) -> None:
    def run(transform: Any, **options: Any) -> Any:
        generator = FirstOrderDataGenerator(
            net(), output_mode="probs", output_transform=transform, batch_size=16
        )
        return generator.generate_distributions(make_pairs(), False, store=path, **options)

    by = {"factor": 1.0}

    def transform(out: Any) -> Any:
        return out.softmax(-1) * by["factor"]

    run(transform, rows=(0, 48))
    by["factor"] = 2.0
    with pytest.raises(IdentityError, match="gives no rows of the kind that is kept: row 0"):
        run(transform)


# ------------------------------------------------------------------ models that draw


class Drawing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(WEIGHT.clone())

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.dropout(x @ self.weight, 0.5, training=True)


@pytest.mark.filterwarnings("ignore:the model draws random numbers:UserWarning")
@pytest.mark.parametrize("rows", [(0, 48), None], ids=["half", "whole"])
def test_a_model_that_draws_is_told_apart(path: Path, rows: Any) -> None:
    generate(Drawing(), path, rows=rows)
    text = difference(Drawing(), path)
    assert "each time it is asked (it draws random numbers)" in text
    assert "recheck=False" in text
    state = torch.get_rng_state()
    assert generate(Drawing(), path, recheck=False).is_sealed  # the cure that is named
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:the model draws random numbers:UserWarning")
def test_a_fingerprint_stands_for_a_model_that_draws(path: Path) -> None:
    generate(Drawing(), path, rows=(0, 48), model_fingerprint="dropout")
    with pytest.warns(UserWarning, match="goes on by model_fingerprint alone") as said:
        assert generate(Drawing(), path, model_fingerprint="dropout").is_sealed
    assert sum("goes on by" in str(warning.message) for warning in said) == 1


def test_a_recheck_shifts_no_draw_of_the_run(tmp_path: Path) -> None:
    class Late(torch.nn.Module):
        """Draws where an input is large, which none of the first rows is."""

        def forward(self, x: Any) -> Any:
            return x @ WEIGHT + (torch.rand(len(x), 5) if float(x.max()) > 40 else 0)

    data = make_pairs()
    data.inputs[90:, 0] = 50.0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = generate(Late(), tmp_path / "a.zarr", data=data)
        torch.manual_seed(3)
        generate(Late(), tmp_path / "b.zarr", data=data, rows=(0, 48))
        parts = generate(Late(), tmp_path / "b.zarr", data=data)
    assert parts.digest() == whole.digest()


# ------------------------------------------------------------------ inputs that differ


class Noisy(Pairs):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + np.random.normal(size=x.shape).astype(np.float32), y


def test_augmented_inputs_cannot_be_compared_so_the_identity_decides(path: Path) -> None:
    data = Noisy(make_pairs().inputs, make_pairs().labels)
    with pytest.warns(UserWarning, match="reads differently each time"):
        generate(net(), path, rows=(0, 48), data=data)
    text = difference(net(head="x + 0"), path, data=data)
    assert "code of Net.head has changed, and its inputs read differently each time" in text
    assert generate(net(), path, data=data).is_sealed


def test_what_can_be_neither_hashed_nor_compared_is_refused(path: Path) -> None:
    data = Noisy(make_pairs().inputs, make_pairs().labels)
    model = net()
    model.steps = (step for step in [1])  # a generator has no bytes
    with pytest.warns(UserWarning, match="reads differently each time"):
        store = generate(model, path, rows=(0, 48), data=data)
    assert store.header.identity["model"]["opaque"] is True
    assert "the model cannot be hashed, and its inputs read" in difference(model, path, data=data)
    assert generate(model, path, data=data, recheck=False).is_sealed


def test_a_sample_beside_the_three_that_are_read_is_seen_in_the_batch(path: Path) -> None:
    data = make_pairs()
    generate(net(), path, rows=(0, 48), data=data)
    data.inputs[5] += 1
    assert "sample 5 of the dataset has another content" in difference(net(), path, data=data)


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize("rows", [48, 100], ids=["half", "whole"])
def test_a_stream_is_compared_as_it_passes(side: Side, tmp_path: Path, rows: int) -> None:
    path, inputs = tmp_path / "rows.zarr", make_pairs().inputs

    class Broken(Stream):
        def __iter__(self) -> Any:
            yield from itertools.islice(super().__iter__(), rows)
            if rows < 100:
                raise ValueError("no luck")

    def run(factor: float, data: Any) -> Any:
        generator = side.generator(side.model(Teacher(factor)), batch_size=16, output_mode="logits")
        return generator.generate_distributions(data, False, store=path, commit_seconds=0)

    if rows < 100:
        with pytest.raises(fostore.errors.GenerationError):
            run(1.0, Broken(inputs))
    else:
        run(1.0, Stream(inputs))
    with pytest.raises(IdentityError, match="another distribution for sample 0"):
        run(4.0, Stream(inputs))
    with pytest.raises(IdentityError, match="sample 3 of the stream has another content"):
        changed = inputs.copy()
        changed[3] += 1
        run(1.0, Stream(changed))
    store = run(1.0, Stream(inputs))
    assert store.is_sealed
    np.testing.assert_allclose(store[:], softmax(inputs @ Linear().weight), rtol=1e-4)


def test_an_iterator_that_was_read_cannot_be_compared(tmp_path: Path) -> None:
    model = net()
    stream = iter(Stream(make_pairs().inputs))
    store = generate(model, tmp_path / "rows.zarr", data=stream)
    assert generate(model, tmp_path / "rows.zarr", data=stream).digest() == store.digest()
    text = difference(net(head="x + 0"), tmp_path / "rows.zarr", data=stream)
    assert "and the stream is empty now" in text


# ------------------------------------------------------------------ stores of release 0.1


@pytest.mark.parametrize("rows", [(0, 48), None], ids=["half", "whole"])
def test_a_store_that_0_1_began_goes_on(tmp_path: Path, rows: Any) -> None:
    path = tmp_path / "rows.zarr"
    generate(net(), path, rows=rows, output_transform=lambda out: out)

    def as_0_1(made_from: dict[str, Any]) -> None:
        made_from["model"]["details"] = "0" * 32  # one hash of everything
        made_from["output"].pop("details")

    rewrite(path, as_0_1)
    assert "another distribution" in difference(
        net(temperature="4.0"), path, output_transform=lambda out: out
    )
    assert generate(net(), path, output_transform=lambda out: out).is_sealed


def rewrite(path: Path, change: Any) -> None:
    import orjson

    file = path / "zarr.json"
    attributes = orjson.loads(file.read_bytes())
    header = attributes["attributes"]["fostore"]
    for key in (CHECKSUM, _META_CHECKSUM):  # which 0.1 did not write
        header.pop(key)
    change(header["identity"])
    file.write_bytes(orjson.dumps(attributes))


# ------------------------------------------------------------------ the tolerance


DTYPES = ["float32", "float16", "bfloat16", "float64"]


def columns(logits: np.ndarray, kind: str, dtype: str) -> tuple[Any, Any]:
    schema = make_schema(logits.shape[-1], kind=kind, dtype=dtype)
    rows = logits - logits.max(-1, keepdims=True)
    rows = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    rows = {"probs": np.exp(rows), "log_probs": rows, "logits": logits}[kind]
    return schema, encoding_of(schema).encode(rows.astype(np.float64), schema, 0)


@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(["probs", "log_probs", "logits"]),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.5, 4.0, 12.0]),
    classes=st.sampled_from([2, 10, 1000]),
)
def test_rounding_and_other_kernels_agree_and_another_temperature_does_not(
    seed: int, kind: str, dtype: str, spread: float, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, classes)) * spread
    noise = rng.uniform(-1, 1, logits.shape) * np.abs(logits).max(-1, keepdims=True) * 2.0**-15
    schema, stored = columns(logits, kind, dtype)
    assert not disagrees(schema, stored, stored, "float32").any()
    assert not disagrees(schema, stored, columns(logits + noise, kind, dtype)[1], "float32").any()
    other = columns(logits / 1.1, kind, dtype)[1]
    if spread > 1:
        assert disagrees(schema, stored, other, "float32").any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_that_a_mask_excludes_hide_no_other(dtype: str) -> None:
    logits = np.array([[1.0, 2.0, -np.inf, -3e38, -1e30, 0.5]])
    schema, stored = columns(logits, "logits", dtype)
    assert not disagrees(schema, stored, stored, "float32").any()
    for place, value in ((0, 1.3), (2, -50.0), (1, 2.3)):
        other = logits.copy()
        other[0, place] = value
        assert disagrees(schema, stored, columns(other, "logits", dtype)[1], "float32").all()


def test_a_level_of_all_logits_is_part_of_them() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 10))
    schema, stored = columns(logits, "logits", "float32")
    assert disagrees(schema, stored, columns(logits + 1, "logits", "float32")[1], "float32").all()


def test_bfloat16_outputs_may_differ_by_more() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 10)) * 8
    schema, stored = columns(logits, "probs", "float32")
    other = columns(logits * (1 + 2.0**-8), "probs", "float32")[1]
    assert not disagrees(schema, stored, other, "bfloat16").any()


def test_a_partial_with_another_function_is_found_out(path: Path) -> None:
    def run(function: Any, **options: Any) -> Any:
        return generate(functools.partial(function, copy.deepcopy(WEIGHT)), path, **options)

    one = cell("def apply(w, x): return x @ w", "apply")
    run(one, rows=(0, 48))
    text = None
    with pytest.raises(IdentityError) as info:
        run(cell("def apply(w, x): return -x @ w", "apply"))
    text = str(info.value)
    assert "the code of apply has changed" in text
    assert run(cell("def apply(w, x): return x @ w  # again", "apply")).is_sealed
