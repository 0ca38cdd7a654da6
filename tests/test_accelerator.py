"""What an accelerator must not change: rows, order, random states. On CUDA where there is one, else on the CPU."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fostore
from fostore.encodings import make_schema
from fostore.encodings.topk_rows import Selected, TopK
from fostore.errors import GenerationError, RowError
from fostore.torch import (
    FirstOrderDataGenerator,
    FirstOrderDataset,
    distillation_loss,
    find_optimal_batch_size,
    output_dataloader,
    prefetch_to_device,
    select_topk,
    to_device,
    topk_distillation_loss,
)
from fostore.torch.framework import TorchFramework

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = 1000
CLOSE = {"rtol": 2e-3, "atol": 2e-4}  # of float32 sums in another order, TF32 not among them


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x)


def dataset(samples: int = SAMPLES) -> TensorDataset:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.normal(size=(samples, 16)).astype(np.float32))
    return TensorDataset(inputs, torch.arange(samples) % 10)


def expected(net: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    net = net.cpu().eval()
    with torch.no_grad():
        return torch.softmax(net(inputs), -1).numpy()


def generator(net: Any, **options: Any) -> FirstOrderDataGenerator:
    return FirstOrderDataGenerator(net, DEVICE, batch_size=64, output_mode="logits", **options)


def test_rows_are_those_of_the_cpu_in_their_order(path: Path) -> None:
    data = dataset()
    wanted = expected(Net(), data.tensors[0])
    generator(Net()).generate_distributions(data, False, store=path)
    store = fostore.open(path)
    np.testing.assert_allclose(store.take(range(SAMPLES)), wanted, **CLOSE)
    assert not list(store.verify())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once_and_come_back(path: Path, dtype: str) -> None:
    data = dataset()
    generator(Net()).generate_distributions(data, False, store=path, dtype=dtype)
    loader = output_dataloader(data, fostore.open(path), batch_size=100, shuffle=True)
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    for inputs, _, rows in prefetch_to_device(loader, DEVICE):
        assert rows.device.type == DEVICE
        rows = rows.float()  # widened where it lies
        near = expected(Net(), inputs.cpu())
        np.testing.assert_allclose(rows.cpu().numpy(), near, rtol=3e-3 + step, atol=2e-4)


def test_a_half_precision_model_stores_what_it_said(path: Path) -> None:
    data = dataset()
    net = Net().half() if DEVICE == "cuda" else Net().bfloat16()
    kind = next(net.parameters()).dtype
    generator(net, input_getter=lambda sample: sample[0].to(kind)).generate_distributions(
        data, False, store=path
    )
    wanted = expected(Net(), data.tensors[0])
    np.testing.assert_allclose(fostore.open(path).take(range(SAMPLES)), wanted, rtol=0.1, atol=0.01)


def test_random_states_of_the_device_are_as_before(path: Path) -> None:
    made = generator(Net())
    torch.manual_seed(7)
    before = torch.rand(5, device=DEVICE)
    torch.manual_seed(7)
    made.generate_distributions(dataset(), False, store=path, num_draws=3, seed=1)
    assert torch.equal(torch.rand(5, device=DEVICE), before)


def test_draws_are_a_function_of_seed_and_row(tmp_path: Path) -> None:
    def drawn(samples: int, seed: int, name: str) -> np.ndarray:
        data = dataset(samples)
        made = generator(Net()).generate_distributions(
            data, False, store=tmp_path / name, num_draws=4, seed=seed
        )
        return np.asarray(made.take(range(samples)))

    one = drawn(200, 1, "a.zarr")
    assert one.shape == (200, 4, 10)
    np.testing.assert_array_equal(one, drawn(200, 1, "b.zarr"))
    assert not np.array_equal(one, drawn(200, 2, "c.zarr"))
    assert len({row.tobytes() for row in one[0]}) == 4


def test_a_model_that_changes_its_input_changes_nobody_elses(path: Path) -> None:
    def rude(scale: float) -> Any:
        def model(x: torch.Tensor) -> torch.Tensor:
            logits = x[:, :10] * scale
            x.zero_()
            return logits

        return model

    data = dataset()
    generator([rude(1.0), rude(2.0)]).generate_distributions(data, False, store=path)
    assert (data.tensors[0] != 0).all()
    logits = data.tensors[0][:, :10]
    wanted = torch.stack([logits, logits * 2], 1).softmax(-1).numpy()
    np.testing.assert_allclose(fostore.open(path).take(range(SAMPLES)), wanted, **CLOSE)


def test_an_output_that_is_reused_is_not_overwritten_before_it_is_stored(path: Path) -> None:
    kept: dict[int, torch.Tensor] = {}

    def reusing(x: torch.Tensor) -> torch.Tensor:
        out = kept.setdefault(len(x), torch.empty(len(x), 10, device=x.device))
        return out.copy_(x[:, :10])

    data = dataset()
    generator(reusing).generate_distributions(data, False, store=path)
    wanted = torch.softmax(data.tensors[0][:, :10], -1).numpy()
    np.testing.assert_allclose(fostore.open(path).take(range(SAMPLES)), wanted, **CLOSE)


def test_an_error_in_the_middle_keeps_what_came_before_and_the_rest_follows(path: Path) -> None:
    data = dataset()

    class Stumbles(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 9:
                raise ValueError("no luck")
            return super().forward(x)

    with pytest.raises(GenerationError, match="no luck"):
        generator(Stumbles()).generate_distributions(data, False, store=path)
    assert len(fostore.open(path)) >= 64
    stumbled = len(fostore.open(path))
    whole = Stumbles()
    whole.calls = -(10**6)
    generator(whole).generate_distributions(data, False, store=path, exists="resume")
    assert stumbled < SAMPLES
    np.testing.assert_allclose(
        fostore.open(path).take(range(SAMPLES)), expected(Net(), data.tensors[0]), **CLOSE
    )


_KILLED = """
import os, sys, torch
import test_accelerator as here
calls = 0
class Dying(here.Net):
    def forward(self, x):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
        return super().forward(x)
Dying.__qualname__ = Dying.__name__ = "Net"
here.generator(Dying()).generate_distributions(
    here.dataset(), False, store=sys.argv[1], exists="resume"
)
"""


def test_a_killed_run_resumes_to_the_rows_of_one_that_was_not(path: Path, tmp_path: Path) -> None:
    def run(store: Path, at: int) -> int:
        command = [sys.executable, "-c", _KILLED, str(store), str(at)]
        return subprocess.run(command, cwd=Path(__file__).parent, timeout=150).returncode

    assert run(path, 9) == -signal.SIGKILL
    assert run(path, 0) == 0
    np.testing.assert_allclose(
        fostore.open(path).take(range(SAMPLES)),
        expected(Net(), dataset().tensors[0]),
        **CLOSE,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_to_the_device_in_their_order(path: Path, workers: int) -> None:
    data = dataset()
    generator(Net()).generate_distributions(data, False, store=path)
    store = fostore.open(path)
    pairs = FirstOrderDataset(data, store)
    loader = DataLoader(
        pairs, batch_size=37, num_workers=workers, pin_memory=DEVICE == "cuda",
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    start = 0
    for inputs, labels, rows in prefetch_to_device(loader, DEVICE, depth=3):
        busy = torch.randn(256, 256, device=DEVICE)
        for _ in range(20):  # the copy of the next batch runs beside this
            busy = busy @ busy
        stop = start + len(inputs)
        assert torch.equal(inputs.cpu(), data.tensors[0][start:stop])
        assert torch.equal(labels.cpu(), data.tensors[1][start:stop])
        np.testing.assert_array_equal(rows.cpu().numpy(), store.take(range(start, stop)))
        start = stop
    assert start == SAMPLES


def test_the_loss_and_its_gradient_are_those_of_float64_on_the_cpu() -> None:
    rng = np.random.default_rng(3)
    logits, teacher = rng.normal(size=(2, 512, 1000)) * 3

    def outcome(device: str, dtype: torch.dtype) -> tuple[float, np.ndarray]:
        student = torch.tensor(logits, device=device, dtype=dtype, requires_grad=True)
        known = torch.softmax(torch.tensor(teacher), -1).to(device, dtype)
        loss = distillation_loss(student, known, temperature=2.0)
        loss.backward()
        assert student.grad is not None
        return loss.item(), student.grad.double().cpu().numpy()

    near, far = outcome(DEVICE, torch.float32), outcome("cpu", torch.float64)
    assert near[0] == pytest.approx(far[0], rel=1e-5)
    np.testing.assert_allclose(near[1], far[1], rtol=1e-3, atol=1e-8)


def test_a_batch_size_is_found_on_the_device() -> None:
    assert 1 <= find_optimal_batch_size(Net(), dataset(256), DEVICE, max_batch=128) <= 128


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a device whose memory can run out: CUDA")
def test_a_batch_that_does_not_fit_is_halved_and_its_rows_are_right(path: Path) -> None:
    limit = 40

    class Hungry(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > limit:
                torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
            return super().forward(x)

    data = dataset()
    with pytest.warns(UserWarning, match="out of memory with 64 samples at once"):
        generator(Hungry()).generate_distributions(data, False, store=path)
    np.testing.assert_allclose(
        fostore.open(path).take(range(SAMPLES)), expected(Net(), data.tensors[0]), **CLOSE
    )
    assert find_optimal_batch_size(Hungry(), data, DEVICE, max_batch=512) <= limit


# Top-k rows


def ties(num_rows: int, num_classes: int) -> torch.Tensor:
    """Logits with many equal ones, minus infinity and both zeros among them."""
    rng = np.random.default_rng(5)
    logits = np.round(rng.normal(size=(num_rows, num_classes)) * 4)
    logits[0, 3:] = -np.inf
    logits[1] = np.where(rng.random(num_classes) < 0.5, 0.0, -0.0)
    return torch.tensor(logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("num_classes", [1000, 32_000, 128_256])
def test_the_device_selects_the_classes_that_the_host_selects(dtype: str, num_classes: int) -> None:
    for logits in (ties(16, num_classes), torch.randn(16, num_classes, dtype=torch.float64) * 3):
        rows = logits.to(getattr(torch, dtype))
        near = select_topk(rows.to(DEVICE), 64, (2.0,), tail_entropy=True)
        far = select_topk(rows, 64, (2.0,), tail_entropy=True)
        assert near.ids.device.type == DEVICE
        assert torch.equal(near.ids.cpu(), far.ids)
        assert torch.equal(near.values.cpu(), far.values)
        for name in ("residual", "logsumexp", "residual_t", "tail_entropy"):
            one, other = getattr(near, name).cpu(), getattr(far, name)
            torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


def test_what_an_encoding_needs_of_logits_leaves_the_device() -> None:
    schema = make_schema(1000, kind="logits", encoding={"name": "topk", "k": 8, "rule": "coarse"})
    logits = torch.randn(4, 1000, device=DEVICE)
    kept = TorchFramework(DEVICE).encode(logits, schema)
    if DEVICE == "cpu":
        assert kept is logits  # NumPy selects, where it is stored
        return
    assert isinstance(kept, Selected)
    assert {tuple(a.shape) for a in kept if a is not None} == {(4, 8), (4,)}
    dense = make_schema(1000, kind="logits")
    assert TorchFramework(DEVICE).encode(logits, dense) is logits


def test_what_is_no_row_on_a_device_is_refused_by_the_writer(path: Path) -> None:
    for bad in (float("nan"), float("inf")):
        logits = torch.randn(6, 1000, device=DEVICE)
        logits[4, 700] = bad
        with (
            pytest.raises(RowError, match=r"row 4\b"),
            fostore.create(
                path, num_samples=6, num_classes=1000, kind="logits", encoding="topk", k=8,
                exists="overwrite",
            ) as writer,
        ):  # fmt: skip
            chosen = select_topk(logits, 8)
            writer.append(Selected(*(None if a is None else a.cpu().numpy() for a in chosen)))


@pytest.mark.parametrize("rule", ["coarse", "uniform", "renorm", "zero"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_loss_of_top_k_rows_is_that_of_float64_on_the_cpu(rule: str, reverse: bool) -> None:
    if reverse and rule in ("renorm", "zero"):
        pytest.skip("infinite")
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 4, 24, 8000, dtype=torch.float64) * 3
    chosen = select_topk(teacher, 64, (2.0,))
    mask = torch.rand(4, 24) < 0.8

    def outcome(device: str, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        student = logits.to(device, dtype).requires_grad_()
        topk = TopK(
            chosen.values.to(dtype), chosen.ids, chosen.residual.to(dtype), 8000,
            temperatures=(2.0,), residual_t=chosen.residual_t.to(dtype),
        )  # fmt: skip
        loss = topk_distillation_loss(
            student, to_device(topk, device), 2.0, rule=rule, reverse=reverse, mask=mask.to(device)
        )
        loss.backward()
        assert student.grad is not None
        return loss.item(), student.grad.double().cpu()

    near, far = outcome(DEVICE, torch.float32), outcome("cpu", torch.float64)
    assert near[0] == pytest.approx(far[0], rel=1e-5)
    torch.testing.assert_close(near[1], far[1], rtol=1e-3, atol=1e-8)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a device whose memory is counted: CUDA")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_needs_little_more_memory_than_the_gradient(dtype: str) -> None:
    logits = torch.randn(2048, 128_256, device=DEVICE, dtype=getattr(torch, dtype))
    chosen = select_topk(logits, 64)
    topk = TopK(chosen.values, chosen.ids, chosen.residual, 128_256)
    del chosen
    logits.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    topk_distillation_loss(logits, topk).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 2.2 * logits.nbytes


@pytest.mark.parametrize("workers", [0, 2])
def test_top_k_rows_come_to_the_device_with_their_batch(path: Path, workers: int) -> None:
    data = dataset()
    generator(Net()).generate_distributions(
        data, False, store=path, encoding="topk", k=4, dtype="float16"
    )
    store = fostore.open(path)
    loader = output_dataloader(
        data, store, batch_size=100, num_workers=workers, pin_memory=DEVICE == "cuda",
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    start, student = 0, Net().to(DEVICE).eval()
    for inputs, _, topk in prefetch_to_device(loader, DEVICE):
        stop = start + len(inputs)
        expected = store.take_topk(range(start, stop))
        assert {one.device.type for one in (topk.values, topk.ids, topk.residual)} == {DEVICE}
        np.testing.assert_array_equal(topk.ids.cpu(), expected.ids)
        np.testing.assert_array_equal(topk.values.cpu(), expected.values)
        assert topk_distillation_loss(student(inputs), topk).detach() < 1e-4  # its own teacher
        start = stop
    assert start == SAMPLES
