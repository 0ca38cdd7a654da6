"""Ray Data as the engine of many workers: `generate`, and `UnitSource` and `Datasink` for pipelines of one's own.

Each worker computes and writes whole units (`fostore.open_units`), so a task that fails, a node that is lost or a
driver that is killed costs at most one unit a worker, and any number of workers goes on. Extra: `fostore[ray]`.
"""

from __future__ import annotations

from fostore.ray.pipeline import Datasink, UnitSource
from fostore.ray.pool import generate

__all__ = ["Datasink", "UnitSource", "generate"]
