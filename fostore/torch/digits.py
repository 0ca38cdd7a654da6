"""Scikit-learn's digits, and a small teacher of them: real data for the demo and the examples.

Needs scikit-learn, which brings the scans with it; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES = 10
NUM_MEMBERS = 3
EPOCHS = 15
_CHANNELS = 12
_BATCH = 50
_RATE = 0.02
_FASTER = torch.channels_last  # a fifth, for convolutions of this size on a CPU

Part = Literal["train", "rest", "unlabelled", "test"]


class Scans(torch.utils.data.TensorDataset):
    """The 1,797 scans in two parts: 500 to train a teacher ("train"), 1,297 to ask it about ("rest").

    Of the rest 700 are "unlabelled", for a student to learn from its teacher, and 597 are for the
    "test". `seed` draws the parts; they never change for one seed. A sample is (scan, label):
    float32 (1, 8, 8) from 0 to 1, and 0 to 9 (int64). `scans` and `labels` hold them all.
    """

    def __init__(self, part: Part, seed: int = 0) -> None:
        # scikit-learn is no dependency of ours: only who asks for its scans needs it
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        train, seen = 500, 500 + 700
        rows = {
            "train": slice(train),
            "rest": slice(train, None),
            "unlabelled": slice(train, seen),
            "test": slice(seen, None),
        }[part]
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[rows])
        self.scans = torch.from_numpy(images[chosen].reshape(-1, 1, 8, 8).astype(np.float32) / 16)
        self.labels = labels[chosen].astype(np.int64)
        super().__init__(self.scans, torch.from_numpy(self.labels))


def _convolution(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, _CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(_CHANNELS)
    )


class _Residual(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(_convolution(_CHANNELS), nn.ReLU(), _convolution(_CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + super().forward(x))  # type: ignore[no-untyped-call]  # of torch


def _network() -> nn.Module:
    """A residual CNN of a few thousand parameters: (n, 1, 8, 8) to logits (n, 10)."""
    blocks = (_convolution(1), nn.ReLU(), _Residual(), _Residual())
    pooled = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(_CHANNELS * 4, NUM_CLASSES))
    return nn.Sequential(*blocks, *pooled)


class Teacher(nn.Module):
    """Three networks as one model, which gives the mean of their probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(_network() for _ in range(NUM_MEMBERS))

    def forward(self, scans: Tensor) -> Tensor:
        """Probabilities (n, 10)."""
        return torch.stack([member(scans).softmax(-1) for member in self.members]).mean(0)

    def save(self, path: str | Path) -> None:
        torch.save(self.state_dict(), path)

    @classmethod
    def load(cls, path: str | Path) -> Teacher:
        """A teacher as it was saved, in eval mode. Only tensors are read, no code is run."""
        teacher = cls()
        teacher.load_state_dict(torch.load(path, weights_only=True))
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
    inputs, labels = scans.scans.to(memory_format=_FASTER), torch.from_numpy(scans.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Teacher().to(memory_format=_FASTER)  # type: ignore[call-overload]  # torch names it for 4-d tensors alone
        for number, member in enumerate(teacher.members, start=seed * NUM_MEMBERS):
            torch.manual_seed(number)
            optimizer = torch.optim.AdamW(member.parameters(), lr=_RATE, weight_decay=0.01)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, _RATE, epochs=EPOCHS, steps_per_epoch=-(-len(scans) // _BATCH)
            )
            for _ in range(EPOCHS):
                for batch in torch.randperm(len(scans)).split(_BATCH):
                    optimizer.zero_grad()
                    functional.cross_entropy(member(inputs[batch]), labels[batch]).backward()
                    optimizer.step()
                    schedule.step()
                step()
    trained: Teacher = teacher.to(memory_format=torch.contiguous_format).eval()
    return trained
