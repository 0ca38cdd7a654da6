"""A generation: one call of a generator, with what runs, over which samples, and what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from fostore.errors import RowError
from fostore.generate import output
from fostore.generate.engine import Computed, Engine
from fostore.generate.framework import Framework, Model
from fostore.generate.loop import run
from fostore.generate.mixing import refuse_mixing
from fostore.generate.options import Options
from fostore.generate.samples import ENDLESS, Samples
from fostore.progress import Progress
from fostore.schema.ranges import Ranges
from fostore.schema.row import Array


@dataclass(frozen=True, slots=True)
class Generation:
    """What every part of a generation needs."""

    framework: Framework
    models: Sequence[Model]
    samples: Samples
    engine: Engine
    options: Options
    batch_size: int
    """Samples of a full batch."""
    many: bool
    """Whether a list of models was given, whose outputs are members."""
    once: bool
    """Whether the samples can be read one time only."""

    def running(self) -> AbstractContextManager[None]:
        """A block in which the models run; see `Framework.running`."""
        return self.framework.running(self.models, self.options.num_draws is not None)

    def refuse_mixing(self, wanted: Ranges) -> None:
        """Raise where inputs of the wanted rows are made of several samples each; see `mixing`."""
        if not self.once:
            refuse_mixing(self.framework, self.samples, wanted)

    def progress(self, done: int = 0) -> Progress:
        """A bar over the rows that are asked for."""
        start, stop = self.options.range or (0, self.samples.num_samples)
        total = None if stop is None else stop - start
        return Progress(self.options.progress, total, done, self.options.model_name)

    def in_memory(self) -> dict[int, Array]:
        """All rows, or those of `options.rows`, by dataset index."""
        engine, rows, total = self.engine, self.options.range, self.samples.num_samples
        wanted = Ranges.of(rows or (0, ENDLESS if total is None else total))
        self.refuse_mixing(wanted)
        result: dict[int, Array] = {}

        def deliver(computed: Computed) -> None:
            kept = np.array(engine.collect(computed), np.float32)  # a copy: models reuse buffers
            indices = computed.indices
            assert engine.tol is not None
            try:
                output.check_kept(kept, indices, engine.tol)
            except RowError as error:
                raise engine.advice(error) from error
            keys = indices.tolist() if isinstance(indices, np.ndarray) else indices
            if rows is None:  # the usual case needs no look at each key
                result.update(zip(keys, kept, strict=True))
            else:
                result.update((k, row) for k, row in zip(keys, kept, strict=True) if k in wanted)
            progress.add(len(kept))

        with self.running(), self.progress() as progress:
            batches = self.samples.steps(wanted)
            run(batches, engine.compute, deliver, overlap=self.framework.overlaps)
        if rows is None and total is not None and len(result) != total:
            warnings.warn(
                f"[FirstOrderDataGenerator] generated {len(result)} distributions, but dataset length "
                f"is {total}.",
                stacklevel=3,
            )
        return result
