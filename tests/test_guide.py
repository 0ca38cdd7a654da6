"""The guide's code, run end to end: only import paths and the models and datasets are ours."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # the guide's name
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fostore
import fostore.jax
from fostore.torch import FirstOrderDataGenerator, FirstOrderDataset, output_dataloader

NUM_CLASSES = 10


class MyDataset(Dataset[Any]):
    def __init__(self, samples: int = 200, labelled: bool = True) -> None:
        rng = torch.Generator().manual_seed(0)
        self.images = torch.randn(samples, 3, 4, 4, generator=rng)
        self.numbers = torch.arange(samples) % NUM_CLASSES
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if not self.labelled:
            return self.images[index]
        return self.images[index], int(self.numbers[index])


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def oracle(model: nn.Module, dataset: MyDataset) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(model(dataset.images), -1).numpy()


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("stored", [False, True])
def test_the_four_steps_run_end_to_end(labelled: bool, stored: bool) -> None:
    torch.save(network(), "my_pretrained_model.pt")

    # Step 1
    model = torch.load("my_pretrained_model.pt", weights_only=False)
    model.eval()
    dataset = MyDataset(labelled=labelled)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = FirstOrderDataGenerator(
        model=model,
        device=device,
        batch_size=64,
        output_mode="logits",
        model_name="my_model_v1",
    )
    options: dict[str, Any] = {"store": "teacher.zarr"} if stored else {}
    distributions = generator.generate_distributions(dataset, progress=True, **options)
    expected = oracle(network(), dataset)
    assert len(distributions) == 200
    for index, row in distributions.items():
        np.testing.assert_allclose(row, expected[index], rtol=1e-4, atol=1e-6)

    # Step 2
    generator.save_distributions(
        path="output/first_order_dists.json",
        distributions=distributions,
        meta={
            "dataset": "CIFAR-10",
            "num_classes": 10,
            "accuracy": 0.92,
            "timestamp": "2025-01-11",
            "note": "Generated with ResNet-50 pre-trained on ImageNet",
        },
    )
    written = json.loads(Path("output/first_order_dists.json").read_text())
    # a store says of each row what the model saw, and with which label
    beside = ["input_hash", "label_hash"][: 1 + labelled] if stored else []
    assert list(written) == ["meta", "distributions", *beside]
    assert list(written["distributions"])[:2] == ["0", "1"]
    assert written["meta"]["model_name"] == "my_model_v1"
    assert len(written["distributions"]["0"]) == NUM_CLASSES

    # Step 3
    loaded_dists, metadata = generator.load_distributions("output/first_order_dists.json")
    assert f"Model: {metadata['model_name']}" == "Model: my_model_v1"
    assert f"Dataset: {metadata['dataset']}" == "Dataset: CIFAR-10"
    assert len(loaded_dists) == 200
    fo_dataset = FirstOrderDataset(base_dataset=dataset, distributions=loaded_dists)
    if labelled:
        input_tensor, label, distribution = fo_dataset[0]
        assert label == 0
    else:
        input_tensor, distribution = fo_dataset[0]
    assert torch.equal(input_tensor, dataset.images[0])
    assert isinstance(distribution, torch.Tensor)
    assert abs(float(distribution.sum()) - 1) < 1e-5

    # Step 4
    fo_loader = output_dataloader(
        base_dataset=dataset,
        distributions=loaded_dists,
        batch_size=32,
        shuffle=True,
        num_workers=2,
        pin_memory=True,
    )
    student_model = network(1)
    optimizer = torch.optim.Adam(student_model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        for batch in fo_loader:
            if len(batch) == 3:
                inputs, labels, target_distributions = batch
                assert len(labels) == len(inputs)
            else:
                inputs, target_distributions = batch
            inputs = inputs.to("cpu")
            target_distributions = target_distributions.to("cpu")
            logits = student_model(inputs)
            loss = F.kl_div(
                F.log_softmax(logits, dim=-1), target_distributions, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_custom_input_getters() -> None:
    images = MyDataset().images
    features = torch.randn(200, 2)
    dataset: Any = [
        {"image": images[i], "features": features[i], "metadata": {}, "label": 1, "id": str(i)}
        for i in range(200)
    ]
    model = network().eval()

    def custom_input_getter(sample: Any) -> Any:
        return sample["image"]

    def preprocess_getter(sample: Any) -> Any:
        image = sample["image"]
        mean = torch.tensor([0.485, 0.456, 0.406])
        std = torch.tensor([0.229, 0.224, 0.225])
        return (image - mean[:, None, None]) / std[:, None, None]

    def multi_input_getter(sample: Any) -> Any:
        return torch.cat([sample["image"].flatten(), sample["features"]], dim=0)

    one = FirstOrderDataGenerator(model=model, input_getter=custom_input_getter, device="cpu")
    first = one.generate_distributions(dataset, progress=False)
    np.testing.assert_allclose(first[7], oracle(model, MyDataset())[7], rtol=1e-4, atol=1e-6)
    two = FirstOrderDataGenerator(model=model, input_getter=preprocess_getter)
    assert not np.allclose(two.generate_distributions(dataset, progress=False)[7], first[7])
    wide = FirstOrderDataGenerator(nn.Linear(50, 10), input_getter=multi_input_getter)
    assert len(wide.generate_distributions(dataset, progress=False)) == 200
    triples: Any = [(image, 3, {"meta": "data"}) for image in images]

    def tuple_getter(sample: Any) -> Any:
        return sample[0]

    three = FirstOrderDataGenerator(model, input_getter=tuple_getter)
    np.testing.assert_array_equal(
        three.generate_distributions(DataLoader(triples, 16), progress=False)[7].round(5),
        first[7].round(5),
    )


def custom_transform(outputs: Any) -> Any:
    probs = torch.softmax(outputs, dim=-1)
    alpha = 0.1
    n_classes = outputs.shape[-1]
    uniform = torch.ones_like(probs) / n_classes
    return (1 - alpha) * probs + alpha * uniform


def temperature_scaling(outputs: Any, temperature: float = 2.0) -> Any:
    return torch.softmax(outputs / temperature, dim=-1)


def topk_transform(outputs: Any, k: int = 5) -> Any:
    probs = torch.softmax(outputs, dim=-1)
    topk_probs, topk_indices = torch.topk(probs, k, dim=-1)
    topk_probs = topk_probs / topk_probs.sum(dim=-1, keepdim=True)
    result = torch.zeros_like(probs)
    result.scatter_(1, topk_indices, topk_probs)
    return result


@pytest.mark.parametrize("transform", [custom_transform, temperature_scaling, topk_transform])
def test_custom_output_transforms(transform: Any) -> None:
    model, dataset = network().eval(), MyDataset()
    generator = FirstOrderDataGenerator(model=model, output_transform=transform, device="cpu")
    distributions = generator.generate_distributions(dataset, progress=False)
    with torch.no_grad():
        expected = transform(model(dataset.images)).numpy()
    np.testing.assert_allclose(list(distributions.values()), expected, rtol=1e-4, atol=1e-6)


def test_ensemble_averaging_gets_the_list_of_outputs() -> None:
    def ensemble_transform(outputs_list: Any) -> Any:
        probs_list = [torch.softmax(out, dim=-1) for out in outputs_list]
        return torch.stack(probs_list).mean(dim=0)

    members, dataset = [network(seed).eval() for seed in range(3)], MyDataset()
    expected = np.mean([oracle(m, dataset) for m in members], axis=0)
    returns_list = FirstOrderDataGenerator(
        lambda x: [m(x) for m in members], output_transform=ensemble_transform
    )
    takes_list = FirstOrderDataGenerator(members, output_transform=ensemble_transform)
    for generator in (returns_list, takes_list):
        rows = generator.generate_distributions(dataset, progress=False)
        np.testing.assert_allclose(list(rows.values()), expected, rtol=1e-4, atol=1e-6)


def test_a_data_loader_may_be_passed_directly() -> None:
    model, dataset = network().eval(), MyDataset()
    custom_loader = DataLoader(dataset, batch_size=16, shuffle=False, num_workers=2)
    generator = FirstOrderDataGenerator(model)
    distributions = generator.generate_distributions(custom_loader, progress=True)
    np.testing.assert_allclose(
        list(distributions.values()), oracle(model, dataset), rtol=1e-4, atol=1e-6
    )
    with torch.no_grad():
        assert len(generator.generate_distributions(dataset)) == 200


def test_the_framework_agnostic_generator_and_its_loader() -> None:
    weight = np.random.default_rng(0).normal(size=(6, NUM_CLASSES))
    dataset = np.random.default_rng(1).normal(size=(100, 6))

    def my_model(inputs: Any) -> Any:
        return inputs @ weight

    generator = fostore.FirstOrderDataGenerator(model=my_model, batch_size=64, output_mode="logits")
    loader = fostore.SimpleDataLoader(dataset, batch_size=32, shuffle=False)
    distributions = generator.generate_distributions(loader)
    logits = dataset @ weight
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(list(distributions.values()), expected, rtol=1e-5)
    first_dist = distributions[0]
    assert f"Sum: {sum(first_dist):.6f}" == "Sum: 1.000000"


def test_the_jax_generator_writes_what_torch_reads() -> None:
    params = {"W": jnp.ones((6, NUM_CLASSES)), "b": jnp.arange(NUM_CLASSES) / 10}

    def jax_model_fn(x: Any) -> Any:
        return jnp.dot(x, params["W"]) + params["b"]

    @jax.jit
    def optimized_model(x: Any) -> Any:
        return jax_model_fn(x)

    dataset = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32)
    for model in (jax_model_fn, optimized_model):
        generator = fostore.jax.FirstOrderDataGenerator(
            model=model, device="cpu", batch_size=64, output_mode="logits"
        )
        distributions = generator.generate_distributions(dataset, progress=True)
        generator.save_distributions("jax_dists.json", distributions)
    dists, _ = FirstOrderDataGenerator(network()).load_distributions("jax_dists.json")
    assert len(dists) == 100
    nested_data = {
        "images": jnp.array(dataset),
        "features": {"categorical": jnp.array([1, 2]), "numerical": jnp.array([0.5])},
    }
    placed = generator.to_device(nested_data)
    assert placed["features"]["categorical"].dtype == nested_data["features"]["categorical"].dtype  # type: ignore[index]


@pytest.mark.parametrize("stored", [False, True])
def test_the_uncertainty_of_several_models(stored: bool) -> None:
    dataset = MyDataset(50)
    ensemble_dists = []
    for seed in range(3):
        gen = FirstOrderDataGenerator(model=network(seed), device="cpu")
        options: dict[str, Any] = {"store": f"model{seed}.zarr"} if stored else {}
        ensemble_dists.append(gen.generate_distributions(dataset, progress=False, **options))
    n_samples = len(ensemble_dists[0])
    uncertainties = {}
    for idx in range(n_samples):
        sample_dists = [dists[idx] for dists in ensemble_dists]
        avg_dist = torch.stack([torch.tensor(d) for d in sample_dists]).mean(dim=0)
        uncertainties[idx] = (-(avg_dist * torch.log(avg_dist + 1e-10)).sum()).item()
    most = sorted(uncertainties.items(), key=lambda x: x[1], reverse=True)[:10]
    assert len(most) == 10
    entropies = {}
    for idx, dist in ensemble_dists[0].items():
        dist_tensor = torch.tensor(dist)
        entropies[idx] = (-(dist_tensor * torch.log(dist_tensor + 1e-10)).sum()).item()
    assert 0 < max(entropies.values()) <= float(np.log(NUM_CLASSES)) + 1e-6


def test_metadata_are_documented() -> None:
    dataset = MyDataset(20)
    generator = FirstOrderDataGenerator(network())
    distributions = generator.generate_distributions(dataset, progress=False)
    meta = {
        "model_architecture": "ResNet-50",
        "model_name": "resnet50_imagenet",
        "dataset_split": "train",
        "num_samples": len(dataset),
        "training_accuracy": 0.95,
        "timestamp": datetime.now().isoformat(),  # noqa: DTZ005  # as in the guide
        "framework": "pytorch",
        "torch_version": torch.__version__,
    }
    generator.save_distributions("output/dists.json", distributions, meta=meta)
    loaded, metadata = generator.load_distributions("output/dists.json")
    assert metadata["model_name"] == "resnet50_imagenet"
    assert metadata["torch_version"] == torch.__version__
    assert len(loaded) == 20
    estimated = fostore.estimate_size(len(dataset), NUM_CLASSES, format="json")
    assert 0.5 < estimated / os.path.getsize("output/dists.json") < 2
    assert estimated < shutil.disk_usage(".").free


def test_a_model_that_returns_a_dictionary() -> None:
    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Any) -> Any:
            return {"logits": self.network(x), "features": x}

    class ModelWrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(x)["logits"]

    def extract_logits(output: Any) -> Any:
        return output["logits"]

    dataset = MyDataset()
    expected = oracle(network().eval(), dataset)
    transformed = FirstOrderDataGenerator(MyModel(), output_transform=extract_logits, device="cpu")
    wrapped = FirstOrderDataGenerator(model=ModelWrapper(MyModel()), device="cpu")
    for generator in (transformed, wrapped):
        rows = generator.generate_distributions(dataset, progress=False)
        np.testing.assert_allclose(list(rows.values()), expected, rtol=1e-4, atol=1e-6)


def test_out_of_memory_is_the_runtime_error_that_the_guide_catches() -> None:
    class Greedy(nn.Module):
        def forward(self, x: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    caught = False
    with pytest.warns(UserWarning, match="out of memory"):
        try:
            FirstOrderDataGenerator(Greedy(), batch_size=16).generate_distributions(MyDataset(20))
        except RuntimeError as e:
            caught = "out of memory" in str(e)
    assert caught


def test_generating_batch_by_batch_loses_no_rows_silently() -> None:
    generator = FirstOrderDataGenerator(network())
    distributions: dict[int, Any] = {}
    for batch in DataLoader(MyDataset(), batch_size=64):
        with pytest.raises(ValueError, match="DataLoader"):
            distributions.update(generator.generate_distributions(batch, progress=False))
    assert distributions == {}


def test_the_same_dataset_later() -> None:
    dataset = MyDataset()
    generator = FirstOrderDataGenerator(model=network())
    distributions = generator.generate_distributions(dataset)
    generator.save_distributions("dists.json", distributions)
    dataset = MyDataset()
    dists, _ = generator.load_distributions("dists.json")
    fo_dataset = FirstOrderDataset(dataset, dists)
    for i in range(min(5, len(fo_dataset))):
        original_input, original_label = dataset[i]
        fo_input, fo_label, _fo_dist = fo_dataset[i]
        assert torch.equal(original_input, fo_input)
        assert original_label == fo_label


@pytest.mark.parametrize("name", ["general", "torch", "jax"])
def test_files_of_the_incumbent_load(name: str) -> None:
    data = Path(__file__).parent / "data" / f"incumbent_{name}.json"
    dists, meta = FirstOrderDataGenerator(network()).load_distributions(data)
    assert dists
    assert all(abs(float(np.sum(row)) - 1) < 1e-3 for row in dists.values())
    assert isinstance(meta, dict)
