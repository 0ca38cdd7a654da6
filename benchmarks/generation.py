"""What a store adds to generation: the torch generator against the bare loop, on the same batches.

The bare loop is what anybody would write: loader, model, softmax, rows on the host, nothing kept.
Both run in one process, in turn; the whole run counts, from making the store to its digest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _bench
import _tokens
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fostore
from fostore.torch import FirstOrderDataGenerator

GOAL_SHARE, GOAL_MICROSECONDS = 0.02, 300
_POOL = 512


class Repeated(Dataset):
    """`length` samples that repeat a pool of inputs."""

    def __init__(self, length: int, pool: torch.Tensor) -> None:
        self.length = length
        self.pool = list(pool)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pool[index % len(self.pool)], index % 10


# ---------------------------------------------------------------- models


def mlp() -> nn.Module:
    """784 numbers to 10 classes."""
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def cnn() -> nn.Module:
    """Images of 3 x 48 x 48 to 1,000 classes, about 0.2 GFLOP an image."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128, 256):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Bottleneck(nn.Module):
    """A residual block of ResNet-50 (He et al., 2016, arXiv:1512.03385, figure 5)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(channels, width, 1, 1),
            nn.ReLU(inplace=True),
            *_conv(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *_conv(width, 4 * width, 1, 1),
        )
        same = stride == 1 and channels == 4 * width
        self.skip = nn.Identity() if same else nn.Sequential(*_conv(channels, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.relu(self.body(x) + self.skip(x))
        return out


class Resnet50(nn.Module):
    """ResNet-50 in half precision on images of bytes, (n, 3, 224, 224) to (n, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            *_conv(3, 64, 7, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        channels = 64
        for stage, (blocks, width) in enumerate(
            zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)
        ):
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, 2 if stage and block == 0 else 1))
                channels = 4 * width
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
        self.layers = nn.Sequential(*layers, *head).half()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(images.half() / 255)
        return out


def _conv(channels: int, width: int, size: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(width),
    ]


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True, slots=True)
class Work:
    """A model, its batches, and the dtype in which rows are kept."""

    name: str
    model: nn.Module
    pool: torch.Tensor
    batches: int
    batch_size: int
    dtype: str
    device: str
    workers: int = 0

    def loader(self, batches: int | None = None) -> DataLoader:
        """All batches, or the first few, in order."""
        data = Repeated((batches or self.batches) * self.batch_size, self.pool)
        return DataLoader(data, batch_size=self.batch_size, num_workers=self.workers)


def bare(work: Work, batches: int | None = None, keep: list[np.ndarray] | None = None) -> float:
    """Seconds of the bare loop; `keep` takes the rows of an untimed run."""
    model = work.model.to(work.device).eval()
    half = work.dtype == "float16"
    begin = time.perf_counter()
    with torch.inference_mode():
        for inputs, _ in work.loader(batches):
            rows = torch.softmax(model(inputs.to(work.device)).float(), dim=-1)
            host = (rows.half() if half else rows).cpu().numpy()
            if keep is not None:
                keep.append(host)
    return time.perf_counter() - begin


def with_store(
    work: Work, folder: Path, check: Callable[[Any], None], batches: int | None = None
) -> float:
    """Seconds of the generator with a store, sealed and opened; the rows are checked after it."""
    path = folder / "generated.zarr"
    loader = work.loader(batches)
    begin = time.perf_counter()
    generator = FirstOrderDataGenerator(
        work.model, work.device, work.batch_size, output_mode="logits"
    )
    store = generator.generate_distributions(loader, progress=False, store=path, dtype=work.dtype)
    seconds = time.perf_counter() - begin
    check(store)
    store.close()
    _bench.discard(path)
    return seconds


def compare(work: Work, folder: Path, rounds: int) -> list[str]:
    """One line of the table."""
    kept: list[np.ndarray] = []
    bare(work, keep=kept)
    expected = np.concatenate(kept)
    del kept

    def check(store: fostore.Store) -> None:
        assert store.is_sealed
        assert len(store) in (len(expected), few * work.batch_size)
        rows = store.array
        # On a GPU the choice of algorithm may differ from run to run, in the last digits.
        close = 1e-6 if work.dtype == "float32" and work.device == "cpu" else 2e-3
        for start in range(0, len(rows), 4096):
            there = rows[start : start + 4096]
            wanted = expected[start : start + len(there)]
            assert np.allclose(there, wanted, rtol=close, atol=close), f"other rows from {start} on"

    few = min(2, work.batches)
    times = _bench.interleave(
        {
            "bare": partial(bare, work),
            "store": partial(with_store, work, folder, check),
            "bare, few": partial(bare, work, few),
            "store, few": partial(with_store, work, folder, check, few),
        },
        rounds,
    )
    batch_us = _bench.Spread.of(times["bare"]).median / work.batches * 1e6
    more = _bench.difference(times["store"], times["bare"])
    ends = _bench.difference(times["store, few"], times["bare, few"])
    more_us = _bench.Spread(*(x / work.batches * 1e6 for x in (more.median, more.low, more.high)))
    share = _bench.ratio(times["store"], times["bare"])
    percent = _bench.Spread(*(100 * (x - 1) for x in (share.median, share.low, share.high)))
    allowed = max(GOAL_SHARE * batch_us, GOAL_MICROSECONDS)
    return [
        work.name,
        str(work.batches),
        f"{batch_us / 1e3:.2f}",
        more_us.text(0),
        percent.text(1, " %"),
        f"{ends.median * 1e3:.0f}",
        f"{allowed:,.0f} us",
        _bench.verdict(more_us.median <= allowed),
    ]


def works(device: str, *, quick: bool, workers: int) -> list[Work]:
    """What is run on a device."""
    torch.manual_seed(0)
    if device == "cpu":
        vectors, images = torch.rand(_POOL, 784), torch.rand(_POOL, 3, 48, 48)
        return [
            Work(
                "MLP, 10 classes, float32, batches of 256",
                mlp(), vectors, 60 if quick else 2000, 256, "float32", device,
            ),
            Work(
                "CNN, 1,000 classes, float16, batches of 64",
                cnn(), images, 4 if quick else 100, 64, "float16", device,
            ),
        ]  # fmt: skip
    size = 32 if quick else 256
    images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)
    return [
        Work(
            f"ResNet-50, 1,000 classes, half precision, batches of {size}",
            Resnet50(), images, 8 if quick else 200, size, "float16", device, workers,
        )
    ]  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    device = arguments.device
    todo = works(device, quick=arguments.quick, workers=arguments.workers)
    with _bench.scratch(arguments.dir) as folder:
        where = _bench.machine(folder, ["numpy", "torch", "zarr"])
        if device != "cpu":
            where += f" {torch.cuda.get_device_name(device)}, {arguments.workers} loader workers."
        else:
            where += f" {torch.get_num_threads()} torch threads."
        if arguments.part != "tokens":
            _samples(todo, folder, where, arguments)
        if arguments.part != "samples":
            _of_tokens(folder, where, arguments)


def _of_tokens(folder: Path, where: str, arguments: argparse.Namespace) -> None:
    line = _tokens.compare(
        arguments.device, folder, min(arguments.rounds, 3), quick=arguments.quick
    )
    intro = (
        "The whole run counts, from making the store to its digest; the bare pass keeps nothing."
    )
    name = "generation of tokens" + ("" if arguments.device == "cpu" else f", {arguments.device}")
    table = _bench.table(_tokens.HEADERS, [line])
    _bench.report(name, [where, intro, table], record=not arguments.quick)


def _samples(todo: list[Work], folder: Path, where: str, arguments: argparse.Namespace) -> None:
    lines = [compare(work, folder, arguments.rounds) for work in todo]
    headers = [
        "what", "batches", "bare loop, ms a batch", "more, us a batch", "more",
        "of it start and end, ms a run", "goal", "",
    ]  # fmt: skip
    intro = (
        f"{arguments.rounds} rounds; the whole run counts, from making the store to its digest. "
        f"Goal: {GOAL_SHARE:.0%} or {GOAL_MICROSECONDS} us a batch, whichever is larger."
    )
    device = arguments.device
    name = "generation" if device == "cpu" else f"generation, {device}"
    _bench.report(name, [where, intro, _bench.table(headers, lines)], record=not arguments.quick)


if __name__ == "__main__":
    options = _bench.parser(__doc__, rounds=7)
    options.add_argument(
        "--device", default="cpu", help="cpu (default) or cuda: ResNet-50, half precision"
    )
    options.add_argument(
        "--part",
        choices=["all", "samples", "tokens"],
        default="all",
        help="of images, of language models",
    )
    options.add_argument(
        "--workers", type=int, default=8, help="loader workers beside a GPU, default 8"
    )
    main(_bench.parse(options))
