"""A small teacher for scikit-learn's digits, for the demo and for trying things out on real data.

Needs scikit-learn, which brings the scans with it; nothing is downloaded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fostore import disk
from fostore.schema.row import Array

NUM_TRAIN = 500
NUM_UNLABELLED = 700
NUM_CLASSES = 10
NUM_MEMBERS = 3
EPOCHS = 15
_CHANNELS = 12
_BATCH = 50
_RATE = 0.02
_FASTER = torch.channels_last  # a fifth, for convolutions of this size on a CPU

Part = Literal["train", "rest", "unlabelled", "test"]


@cache
def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scans = images.reshape(-1, 1, 8, 8).astype(np.float32) / 16
    return scans, labels.astype(np.int64)


class Scans(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The 1,797 scans in two parts: 500 to train a teacher ("train"), 1,297 to ask it about ("rest").

    Of the rest 700 are "unlabelled", for a student to learn from its teacher, and 597 are for the
    "test". `seed` draws the parts; they never change for one seed. A sample is (scan, label):
    float32 (1, 8, 8) from 0 to 1, and 0 to 9. `numbers` are the scans' places in scikit-learn's own
    order (int64), `labels` their digits (int64).
    """

    def __init__(self, part: Part, seed: int = 0) -> None:
        scans, labels = _digits()
        order = np.random.default_rng(seed).permutation(len(scans))
        middle = NUM_TRAIN + NUM_UNLABELLED
        start, stop = {
            "train": (0, NUM_TRAIN),
            "rest": (NUM_TRAIN, None),
            "unlabelled": (NUM_TRAIN, middle),
            "test": (middle, None),
        }[part]
        self.numbers = np.sort(order[start:stop])
        self.labels = labels[self.numbers]
        self.scans = torch.from_numpy(scans[self.numbers])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.scans[index], int(self.labels[index])


class ResidualNet(nn.Module):
    """A residual CNN of a few thousand parameters: (n, 1, 8, 8) to logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(_CHANNELS), nn.ReLU(), _convolution(_CHANNELS))
            for _ in range(2)
        )
        self.head = nn.Linear(_CHANNELS * 4, NUM_CLASSES)

    def forward(self, scans: Tensor) -> Tensor:
        """Logits (n, 10)."""
        x = functional.relu(self.stem(scans))
        for block in self.blocks:
            x = functional.relu(x + block(x))
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


def _convolution(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS)
    )


class Teacher(nn.Module):
    """Several networks as one model, which gives the mean of their probabilities."""

    def __init__(self, num_members: int = NUM_MEMBERS) -> None:
        super().__init__()
        self.members = nn.ModuleList(ResidualNet() for _ in range(num_members))

    def forward(self, scans: Tensor) -> Tensor:
        """Probabilities (n, 10)."""
        return torch.stack([member(scans).softmax(-1) for member in self.members]).mean(0)

    def save(self, path: Path) -> None:
        """Write the weights; the file is there whole or not at all."""
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)
        disk.write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Teacher:
        """A teacher as it was saved, in eval mode. Only tensors are read, no code is run."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        teacher = cls(len({name.split(".")[1] for name in state}))
        teacher.load_state_dict(state)
        return teacher.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the block: for nets this small, two only wait for each other.

    The order of every sum is then the same in each process, and so is every bit of the result.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(scans: Scans, *, seed: int = 0, step: Callable[[], object] = lambda: None) -> Teacher:
    """A teacher trained on `scans`, the same one at every call with one seed on one machine.

    `step` is called after every epoch of every member: EPOCHS * NUM_MEMBERS times.
    The random state of torch is as it was, afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Teacher()
        for number, member in enumerate(teacher.members, start=seed * NUM_MEMBERS):
            torch.manual_seed(number)
            _train_member(member, scans, step)
    return teacher.eval()


def _train_member(member: nn.Module, scans: Scans, step: Callable[[], object]) -> None:
    inputs, labels = scans.scans.to(memory_format=_FASTER), torch.from_numpy(scans.labels)
    steps = EPOCHS * -(-len(scans) // _BATCH)
    optimizer = torch.optim.AdamW(member.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps)
    member.train().to(memory_format=_FASTER)  # type: ignore[call-overload]
    for _ in range(EPOCHS):
        order = torch.randperm(len(scans))
        for start in range(0, len(scans), _BATCH):
            batch = order[start : start + _BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(member(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        step()
    member.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
