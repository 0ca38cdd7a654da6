"""One process of a run: of torchrun, SLURM or a shell, or a driver of Ray; test_engines.py kills them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import fostore

N, K, UNIT = 9000, 4, 1024


class Numbers:
    """Samples that are their own index."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return np.float32([index, 1])


class Teacher:
    """A model that takes its time, and says which process it lives in."""

    def __init__(self) -> None:
        folder = os.environ.get("FOSTORE_TEST_PIDS")
        if folder:
            (Path(folder) / str(os.getpid())).touch()

    def __call__(self, inputs: Any) -> Any:
        time.sleep(float(os.environ.get("FOSTORE_TEST_PAUSE", "0")))
        logits = np.stack([np.sin(inputs[:, 0] * (k + 1)) for k in range(K)], axis=-1)
        weights = np.exp(logits)
        return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


class Other(Teacher):
    """Another model."""

    def __call__(self, inputs: Any) -> Any:
        return super().__call__(inputs)[:, ::-1].copy()


def share(path: str, shard: Any, model: type[Teacher] = Teacher) -> None:
    """What a process does, whoever started it."""
    generator = fostore.FirstOrderDataGenerator(model(), batch_size=256)
    generator.generate_distributions(Numbers(), False, store=path, shard=shard, unit_rows=UNIT)


def drive(path: str, workers: int, model: type[Teacher] = Teacher, **options: Any) -> str:
    """One run by a pool of Ray's; gives the digest."""
    import fostore.ray

    given = {"batch_size": 256, "unit_rows": UNIT, "shares": N // UNIT + 1, **options}
    store = fostore.ray.generate(Numbers, model, path, concurrency=workers, **given)
    return str(store.header.digest)


def unmade() -> Any:
    """A model that cannot be made."""
    raise RuntimeError("no weights here")


def teach(batch: dict[str, Any]) -> dict[str, Any]:
    """The teacher as a pipeline of one's own has it, and ids."""
    inputs = np.stack([batch["row"], np.ones_like(batch["row"])], axis=-1).astype(np.float32)
    names = np.array([f"n{row}" for row in batch["row"]])
    return {"row": batch["row"], "probs": Teacher()(inputs), "name": names}


def pipe(path: str, *, whole: bool) -> None:
    """A pipeline of one's own, from the units that are missing, or from blocks of any size."""
    import ray

    from fostore.ray import Datasink, UnitSource

    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None
    with ray.data.DataContext.current(context):
        if whole:
            source = UnitSource(path)
            rows = ray.data.read_datasource(source, override_num_blocks=len(source))
        else:
            rows = ray.data.range(N, override_num_blocks=5).rename_columns({"id": "row"})
        sink = Datasink(path, beside={"ids": "name"})
        rows.map_batches(teach, batch_size=100).write_datasink(sink)


def begin(num_cpus: int) -> None:
    """A cluster on this machine, which talks to nobody; its processes see the environment of this one."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=80 << 20,
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    engine, path, *more = sys.argv[1:]
    if engine == "torchrun":
        import torch

        torch.distributed.init_process_group("gloo")
        share(path, "auto")
        torch.distributed.destroy_process_group()
    elif engine == "ray":
        begin(int(more[0]))
        drive(path, int(more[0]))
    else:
        share(path, more[0])
