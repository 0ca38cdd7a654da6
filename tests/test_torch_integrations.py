"""Other people's training loops over our datasets and loaders: every sample once, with its distribution."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import fostore
from fostore.errors import ArgumentError
from fostore.torch import (
    EpochSampler,
    FirstOrderDataset,
    OutputLoader,
    as_topk,
    output_dataloader,
    topk_distillation_loss,
)
from support import probs

SAMPLES = 24
pytestmark = [
    # Lightning and Accelerate reach for torch and importlib names that are on their way out.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is fetched, nothing is written beside the test, and no library logs to the console."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.zarr", "out"}


@pytest.fixture
def store(tmp_path: Path, fast_disk: None) -> fostore.Store:
    path = tmp_path / "rows.zarr"
    with fostore.create(path, num_samples=SAMPLES, num_classes=3) as writer:
        writer.append(probs(SAMPLES))
    return fostore.open(path)


@pytest.fixture
def sparse(tmp_path: Path, fast_disk: None) -> fostore.Store:
    """The two largest classes of the same rows."""
    path = tmp_path / "rows.zarr"
    options: dict[str, Any] = {"encoding": "topk", "k": 2}
    with fostore.create(path, num_samples=SAMPLES, num_classes=3, **options) as writer:
        writer.append(probs(SAMPLES))
    return fostore.open(path)


class Numbered(Dataset[Any]):
    """Sample i is (float i, i)."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), index


class Dicts(Numbered):
    def __getitem__(self, index: int) -> Any:
        return {"x": torch.tensor([float(index)]), "index": index}


def checked(inputs: torch.Tensor, distributions: Any) -> list[int]:
    """The samples of a batch, after a look at their distributions."""
    seen = [int(i) for i in inputs.flatten().tolist()]
    if isinstance(distributions, fostore.TopK):
        kept = np.take_along_axis(probs(SAMPLES)[seen], distributions.ids.numpy(), -1)
        np.testing.assert_allclose(distributions.values.exp(), kept, rtol=1e-6)
        return seen
    np.testing.assert_array_equal(distributions.cpu().numpy(), probs(SAMPLES)[seen])
    return seen


def loss_of(logits: torch.Tensor, rows: Any) -> torch.Tensor:
    if isinstance(rows, fostore.TopK):
        return topk_distillation_loss(logits, rows)
    return torch.nn.functional.cross_entropy(logits, rows)


def flat(parts: Any) -> list[int]:
    return [i for part in parts for i in part]


# ------------------------------------------------------------------ Lightning


def lightning_module() -> Any:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 3)
            self.seen: dict[int, list[int]] = {}

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, _labels, rows = batch
            self.seen.setdefault(self.current_epoch, []).extend(checked(inputs, rows))
            return loss_of(self.net(inputs), rows)

        def predict_step(self, batch: Any, _: int) -> list[int]:
            return checked(batch[0], batch[-1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    return Module()


def lightning_trainer(**options: Any) -> Any:
    import lightning

    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, num_nodes=1, **quiet | options
    )


# Lightning advises worker processes; a thread reads ahead here.
few_workers = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


@few_workers
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # it wants the saver too
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_in_the_middle_of_an_epoch(
    store: fostore.Store, tmp_path: Path, workers: int
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def loader(batch_size: int = 4) -> OutputLoader:
        return output_dataloader(Numbered(), store, batch_size, True, workers, seed=3, prefetch=3)

    order = [loader().epochs.order.samples(epoch, 0, SAMPLES).tolist() for epoch in range(2)]
    whole = lightning_module()
    saver = ModelCheckpoint(tmp_path / "out", "{step}", save_top_k=-1, every_n_train_steps=2)
    lightning_trainer(max_epochs=2, callbacks=[saver]).fit(whole, loader())
    assert list(whole.seen.values()) == order
    for step in (2, 6, 10):  # 6 batches an epoch
        model = lightning_module()
        trainer = lightning_trainer(max_epochs=2, enable_checkpointing=False)
        trainer.fit(model, loader(), ckpt_path=tmp_path / "out" / f"step={step}.ckpt")
        assert flat(model.seen.values()) == flat(order)[step * 4 :], step
        assert trainer.global_step == 12


@few_workers
def test_lightning_trains_on_top_k_rows(sparse: fostore.Store) -> None:
    model = lightning_module()
    loader = output_dataloader(Numbered(), sparse, batch_size=5, shuffle=True)
    lightning_trainer(max_epochs=1, enable_checkpointing=False).fit(model, loader)
    assert sorted(model.seen[0]) == list(range(SAMPLES))


@few_workers
def test_lightning_predicts_every_sample_in_order(store: fostore.Store) -> None:
    loader = output_dataloader(Numbered(), store, 5, seed=1)
    trainer = lightning_trainer(enable_checkpointing=False)
    assert flat(trainer.predict(lightning_module(), loader)) == list(range(SAMPLES))


@few_workers
def test_lightning_can_ask_for_the_same_few_batches(store: fostore.Store) -> None:
    model = lightning_module()
    with pytest.warns(UserWarning, match="You requested to overfit"):
        lightning_trainer(max_epochs=2, overfit_batches=2, enable_checkpointing=False).fit(
            model, output_dataloader(Numbered(), store, 5, True, seed=1)
        )
    assert list(model.seen.values()) == [list(range(10))] * 2


@pytest.mark.parametrize("in_a_hook", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_lightning_shards_a_loader_exactly(
    store: fostore.Store, in_a_hook: bool, shuffle: bool
) -> None:
    """What `use_distributed_sampler` (the default) does on each rank: it makes the loader anew."""
    from lightning.fabric.utilities.data import _replace_dunder_methods
    from lightning.pytorch.utilities.data import _update_dataloader

    def make() -> OutputLoader:
        return output_dataloader(Numbered(), store, 5, shuffle, seed=7, num_workers=0)

    parts = []
    for rank in range(2):
        if in_a_hook:
            with _replace_dunder_methods(DataLoader, "dataset"):
                loader = make()
        else:
            loader = make()
        sampler = DistributedSampler(loader.dataset, 2, rank, shuffle=shuffle)  # type: ignore[arg-type,var-annotated]
        sharded = _update_dataloader(loader, sampler)
        assert type(sharded) is OutputLoader
        assert sharded.epochs is not None
        assert (sharded.epochs.order.seed, sharded.batch_size) == (7, 5)
        assert isinstance(sharded.sampler, DistributedSampler)
        epochs = [flat(checked(x, rows) for x, _, rows in sharded) for _ in range(2)]
        state = sharded.state_dict()
        assert state["epoch"] == 2
        parts.append(epochs)
    for first, second in zip(*parts, strict=True):
        assert sorted(first + second) == list(range(SAMPLES))
    assert (parts[0][0] != parts[0][1]) == shuffle


def test_lightning_leaves_given_ranks_alone(store: fostore.Store) -> None:
    """Lightning injects a sampler unless the loader's is a DistributedSampler."""
    loader = output_dataloader(Numbered(), store, 5, True, seed=7, rank=1, num_ranks=2)
    assert isinstance(loader.sampler, DistributedSampler)
    assert not isinstance(output_dataloader(Numbered(), store, 5).sampler, DistributedSampler)


# ------------------------------------------------------------------ Accelerate


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("even", [False, True])
def test_accelerate_splits_a_loader_without_overlap(
    store: fostore.Store, shuffle: bool, even: bool
) -> None:
    from accelerate.data_loader import prepare_data_loader

    parts = []
    for rank in range(2):
        loader = output_dataloader(Numbered(), store, 4, shuffle, seed=7)
        prepared = prepare_data_loader(
            loader, num_processes=2, process_index=rank, even_batches=even
        )
        parts.append([flat(checked(x, rows) for x, _, rows in prepared) for _ in range(3)])
    epochs = [first + second for first, second in zip(*parts, strict=True)]
    assert all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == (3 if shuffle else 1)


def test_an_accelerate_loop_goes_on_in_an_epoch(store: fostore.Store) -> None:
    from accelerate import Accelerator

    def prepared() -> Any:
        loader = output_dataloader(Numbered(), store, 4, True, seed=7)
        return loader, Accelerator(cpu=True).prepare(loader)

    loader, batches = prepared()
    orders = [loader.epochs.order.samples(epoch, 0, SAMPLES).tolist() for epoch in range(3)]
    assert [flat(checked(x, rows) for x, _, rows in batches) for _ in range(2)] == orders[:2]
    _, batches = prepared()
    batches.set_epoch(2)
    rest = Accelerator(cpu=True).skip_first_batches(batches, 2)
    rest.set_epoch(2)
    assert flat(checked(x, rows) for x, _, rows in rest) == orders[2][8:]


# ------------------------------------------------------------------ torchdata


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_keeps_the_samplers_place(store: fostore.Store, workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> Any:
        dataset = FirstOrderDataset(Numbered(), store)
        sampler = EpochSampler(dataset, 4, True, seed=5)
        return sampler, StatefulDataLoader(dataset, batch_sampler=sampler, num_workers=workers)

    sampler, loader = make()
    orders = [sampler.order.samples(epoch, 0, SAMPLES).tolist() for epoch in range(3)]
    assert flat(checked(x, rows) for x, _, rows in loader) == orders[0]
    batches = iter(loader)
    seen = [checked(x, rows) for x, _, rows in (next(batches), next(batches))]
    state = loader.state_dict()
    del batches
    _, loader = make()
    loader.load_state_dict(state)
    assert flat(seen) + flat(checked(x, rows) for x, _, rows in loader) == orders[1]
    assert flat(checked(x, rows) for x, _, rows in loader) == orders[2]


# ------------------------------------------------------------------ Hugging Face


class Student(torch.nn.Module):
    """A model whose `forward` knows nothing of distributions, nor of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.net(x)}


def hf_trainer(dataset: Any, tmp_path: Path, **options: Any) -> Any:
    import transformers

    class Distiller(transformers.Trainer):
        seen: list[int] = []  # noqa: RUF012  # one trainer a test

        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:  # type: ignore[override]
            rows = inputs.pop("teacher")
            self.seen = self.seen + checked(inputs["x"], rows)
            return loss_of(model(inputs["x"])["logits"], rows)

    trainer = Distiller if options.pop("distil", True) else transformers.Trainer
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=5,
        num_train_epochs=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        **options,
    )
    assert arguments.remove_unused_columns
    return trainer(model=Student(), args=arguments, train_dataset=dataset)


def test_hugging_faces_trainer_does_not_drop_the_distributions(
    store: fostore.Store, tmp_path: Path
) -> None:
    trainer = hf_trainer(FirstOrderDataset(Dicts(), store, target_key="teacher"), tmp_path)
    trainer.train()
    assert trainer.state.global_step == 10
    assert sorted(trainer.seen) == sorted([*range(SAMPLES)] * 2)


def test_hugging_faces_trainer_trains_on_top_k_rows(sparse: fostore.Store, tmp_path: Path) -> None:
    trainer = hf_trainer(FirstOrderDataset(Dicts(), sparse, target_key="teacher"), tmp_path)
    with pytest.raises(TypeError):  # its own makes one tensor of each entry
        trainer.train()
    trainer.data_collator = torch.utils.data.default_collate
    trainer.train()
    assert sorted(trainer.seen) == sorted([*range(SAMPLES)] * 2)


def test_loops_of_others_move_top_k_rows_as_they_move_tensors(sparse: fostore.Store) -> None:
    from accelerate.utils import send_to_device
    from lightning.fabric.utilities.apply_func import move_data_to_device

    topk, place = as_topk(sparse.take_topk([0, 1])), torch.device("meta")
    for move in (send_to_device, move_data_to_device):
        for moved in (move([torch.zeros(2), topk], place)[1], move({"rows": topk}, place)["rows"]):
            arrays = (moved.values, moved.ids, moved.residual)
            assert {one.device.type for one in arrays} == {"meta"}


def test_hugging_faces_trainer_without_a_loss_for_them_fails_before_its_first_step(
    store: fostore.Store, tmp_path: Path
) -> None:
    for dataset in (
        FirstOrderDataset(Dicts(), store, target_key="teacher"),
        FirstOrderDataset(Numbered(), store),
    ):
        trainer = hf_trainer(dataset, tmp_path, distil=False)
        with pytest.raises(TypeError):
            trainer.train()
        assert trainer.state.global_step == 0


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
def test_a_hugging_face_dataset_gets_a_column(
    store: fostore.Store, tmp_path: Path, format: str | None
) -> None:
    import datasets

    rows = {"x": [[float(i)] for i in range(SAMPLES)], "name": [f"n{i}" for i in range(SAMPLES)]}
    base = datasets.Dataset.from_dict(rows).with_format(format)
    dataset = FirstOrderDataset(base, store, target_key="teacher")
    assert dataset[3]["name"] == "n3"
    kept = {"target_key": "teacher", "shuffle": True, "seed": 1}
    loaders = [
        DataLoader(dataset, 5),
        output_dataloader(base, store, 5, **kept),  # type: ignore[arg-type]
        output_dataloader(base, store, 5, num_workers=1, **kept),  # type: ignore[arg-type]
    ]
    for loader in loaders:
        seen = []
        for batch in loader:
            x = batch["x"]
            assert x.shape == (len(x), 1)  # a list of numbers is one value, in every format
            seen += checked(x, batch["teacher"])
            assert batch["name"][0] == f"n{int(x.flatten()[0])}"
        assert sorted(seen) == list(range(SAMPLES))
    trainer = hf_trainer(dataset, tmp_path)
    trainer.data_collator = lambda found: {
        "x": torch.tensor([[float(row["x"][0])] for row in found]),
        "teacher": torch.stack([row["teacher"] for row in found]),
    }
    trainer.train()
    assert sorted(trainer.seen) == sorted([*range(SAMPLES)] * 2)


# ------------------------------------------------------------------ processes


def test_processes_that_shuffle_without_a_seed_are_refused(
    store: fostore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import distributed

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    loader = output_dataloader(Numbered(), store, 4, True)
    with pytest.raises(ArgumentError, match="2 processes that shuffle need one seed"):
        next(iter(loader))
    assert loader.epochs is not None
    with pytest.raises(ArgumentError, match="give seed="):
        iter(loader.epochs)
    assert len(list(output_dataloader(Numbered(), store, 4, True, seed=1))) == 6
    assert len(list(output_dataloader(Numbered(), store, 4))) == 6
