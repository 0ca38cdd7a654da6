"""The guide's basic usage on real data, end to end: first in memory and JSON, then with a store.

    python examples/simple_usage.py

A small network is trained on scikit-learn's digits; a smaller one learns from its distributions.
Takes some seconds, downloads nothing, and what it writes goes into a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

import fostore
from fostore import evaluate
from fostore.torch import (
    FirstOrderDataGenerator,
    FirstOrderDataset,
    distillation_loss,
    output_dataloader,
)

CLASS_NAMES = [str(digit) for digit in range(10)]


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Scans of digits (64 pixels, 0 to 1) with labels: 900 to train on, 897 to test on."""
    pixels, digits = load_digits(return_X_y=True)
    scans, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
    order = torch.randperm(len(scans))
    train, test = order[:900], order[900:]
    return TensorDataset(scans[train], labels[train]), TensorDataset(scans[test], labels[test])


def perceptron(hidden: int) -> nn.Module:
    """A network with one hidden layer: 64 pixels to the logits of ten digits."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def fit(
    model: nn.Module, loader: Iterable[list[Tensor]], loss_of: Callable[..., Tensor], epochs: int
) -> nn.Module:
    """Train a model; the last tensor of a batch is what it learns, labels or distributions."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(epochs):
        for inputs, *_, target in loader:
            optimizer.zero_grad()
            loss_of(model(inputs), target).backward()
            optimizer.step()
    return model.eval()


def in_memory(teacher: nn.Module, data: Dataset, folder: Path, epochs: int) -> nn.Module:
    """The four steps of the guide: generate, save, load, train."""
    generator = FirstOrderDataGenerator(
        model=teacher, device="cpu", batch_size=64, output_mode="logits", model_name="teacher_v1"
    )
    distributions = generator.generate_distributions(data, progress=False)
    print(f"  generated  a dict of {len(distributions)} distributions, {distributions[0].dtype}")

    path = folder / "first_order_dists.json"
    generator.save_distributions(path, distributions, meta={"dataset": "digits", "num_classes": 10})
    print(f"  saved      {path.name}, {path.stat().st_size:,} bytes")

    loaded, metadata = generator.load_distributions(path)
    print(f"  loaded     {len(loaded)} distributions of {metadata['model_name']!r}")

    inputs, label, distribution = FirstOrderDataset(data, loaded)[0]
    print(f"  dataset    sample 0 has {len(inputs)} pixels and the label {label}")
    print(f"             the teacher gives it p = {distribution[label]:.3f}")

    loader = output_dataloader(data, loaded, batch_size=32, shuffle=True)
    inputs, labels, targets = next(iter(loader))
    shapes = [tuple(tensor.shape) for tensor in (inputs, labels, targets)]
    print(f"  loader     {len(loader)} batches of {shapes}")
    return fit(perceptron(16), loader, distillation_loss, epochs)


def with_a_store(teacher: nn.Module, data: Dataset, folder: Path, epochs: int) -> nn.Module:
    """The same on disk: rows are streamed, a killed run goes on, and the pairing is checked."""
    generator = FirstOrderDataGenerator(teacher, output_mode="logits", model_name="teacher_v1")
    path = folder / "train.zarr"
    meta = {"dataset": "digits"}
    store = generator.generate_distributions(
        data, progress=False, store=path, meta=meta, class_names=CLASS_NAMES
    )
    print(f"  streamed   {store.shape} into {path.name}, digest {store.digest()[:20]}...")

    store = fostore.open(path)  # in another process, on another day
    print(f"  opened     sample 0 is most likely a {CLASS_NAMES[store[0].argmax()]}")
    print(f"  verified   {len(store.verify())} findings")

    shuffled = Subset(data, torch.randperm(len(store)).tolist())
    try:
        FirstOrderDataset(shuffled, store)
    except fostore.errors.IdentityError as error:
        print(f"  refused    {str(error).partition('. ')[0]}")

    receipt = fostore.convert(path, folder / "train.h5", progress=False)
    print(f"  converted  to HDF5, the same bit by bit: {receipt.is_lossless}")

    loader = output_dataloader(data, store, batch_size=32, shuffle=True, seed=0)
    return fit(perceptron(16), loader, distillation_loss, epochs)


def report(name: str, model: nn.Module, test: TensorDataset) -> None:
    """Print how a model does on scans that no model has seen."""
    generator = FirstOrderDataGenerator(model, output_mode="logits")
    said = generator.generate_distributions(test, progress=False)
    found = evaluate.label_metrics(said, test.tensors[1].numpy())
    print(f"  {name:<32} accuracy {found.accuracy:.3f}, NLL {found.nll:.3f}, ECE {found.ece:.3f}")


def main(epochs: int) -> None:
    """Run everything and say what was done."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small are faster so
    train, test = load_data()
    labelled = torch.utils.data.DataLoader(train, batch_size=32, shuffle=True)
    teacher = fit(perceptron(128), labelled, nn.functional.cross_entropy, epochs)

    with tempfile.TemporaryDirectory() as name:
        print("In memory, and one JSON file:")
        student = in_memory(teacher, train, Path(name), epochs)
        print("\nThe same with a store:")
        other = with_a_store(teacher, train, Path(name), epochs)

    print(f"\nOn {len(test)} scans that none of them has seen:")
    report("teacher, 128 hidden units", teacher, test)
    report("student, 16, from the JSON file", student, test)
    report("student, 16, from the store", other, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=15, help="of every training")
    main(parser.parse_args().epochs)
