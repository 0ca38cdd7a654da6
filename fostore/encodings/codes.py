"""Distributions as whole numbers: how far under the largest class each class lies, counted in steps of its row.

What `u16_affine` and `u8_log_sqrt` have in common (spec/encodings.md). They differ in their width and in what they
count: the depth, or its root, which keeps more of what is likely.

Functions import `simplex` when they are called: opening a store needs none of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fostore.encodings.alike import by_row, far, far_sums, level_of
from fostore.encodings.encoding import Encoding, refuse_rule
from fostore.encodings.rows import as_floats, check_columns, converted, log, refuse_shape
from fostore.errors import ArgumentError, RowError
from fostore.schema.row import Array, Column, Schema

DEEPEST = 200.0
"""Depth at which finite numbers are cut off: e^-200 is zero in float32, and one class that was masked with the lowest
float must not widen the steps of all others."""
_PIECE_VALUES = 1 << 17
"""Numbers that are worked on at once: the copies that are made of them stay in the cache."""


class Codes(Encoding):
    """See `fostore.encodings.Encoding`; a subclass says its name, its width and what it counts."""

    name: str
    dtype: str
    """Of the codes; the largest one is minus infinity."""
    largest_step: float
    """A power of two that takes `DEEPEST`."""
    is_lossy = True
    kinds = ("logits", "probs", "log_probs")

    @abstractmethod
    def counted(self, depth: Array) -> Array:
        """What the codes count, of depths of 0 or more; may work in place."""

    @abstractmethod
    def depth(self, counted: Array) -> Array:
        """The inverse of `counted`; may work in place."""

    # The seam

    def dtypes(self, kind: str, num_classes: int) -> tuple[str, ...]:
        """Of the codes: there is nothing to choose."""
        return (self.dtype,)

    def usual_dtype(self, kind: str, num_classes: int) -> str:
        return self.dtype

    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """The codes, the step of each distribution, and of logits their `logsumexp`."""
        if kind not in ("probs", "log_probs", "logits") or dtype != self.dtype:
            raise ArgumentError(
                f"the {self.name} encoding keeps probs, log_probs and logits as {self.dtype} codes, not {kind} "
                f"as {dtype}; leave dtype out"
            )
        codes = Column("codes", dtype, dtype, axes, shape)
        beside = ("step", "logsumexp") if kind == "logits" else ("step",)
        return codes, *(Column(n, "float32", "float32", axes[:-1], shape[:-1]) for n in beside)

    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Rows of any float dtype, checked as they came; worked out in float32 (float64 where they are)."""
        from fostore.schema import simplex  # see the first lines

        if rows.shape[1:] != schema.row_shape:
            refuse_shape(rows, schema, start)
        rows = as_floats(rows, start)
        simplex.check(rows, schema.kind, schema.sum_tolerance, start)
        stored = [np.empty((len(rows), *c.shape), c.numpy_dtype) for c in schema.content]
        for piece in _pieces(len(rows), schema):
            x = np.ascontiguousarray(rows[piece], _working(rows.dtype))
            if schema.kind == "probs":
                x = log(x)
            self._encode(x, [column[piece] for column in stored])
        if schema.kind == "logits":
            _check_level(stored[2], start)
        return stored

    def _encode(self, x: Array, stored: Sequence[Array]) -> None:
        from fostore.schema import simplex  # see the first lines

        if len(stored) == 2:
            with np.errstate(over="ignore"):
                depth = x.max(axis=-1, keepdims=True) - x
        else:
            shifted, level = simplex.shift(x)
            depth = -shifted
            with np.errstate(over="ignore"):
                stored[2][...] = level
        excluded = np.isneginf(x)
        counted = self.counted(np.minimum(depth, DEEPEST, out=depth))
        last = np.iinfo(self.dtype).max
        counted[excluded] = 0
        widest = counted.max(axis=-1).astype(np.float64) / (last - 1)
        step = widest.astype(np.float32)
        # Upwards, or the widest one would lie beyond the last code.
        step = np.where(step < widest, np.nextafter(step, np.float32(np.inf)), step)
        stored[1][...] = step
        counted /= np.where(step > 0, step, np.float32(1))[..., None]
        codes = np.minimum(np.rint(counted, out=counted), last - 1)
        codes[excluded] = last
        stored[0][...] = codes

    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where codes or steps break the rules."""
        check_columns(columns, schema, start)
        codes, step = columns[:2]
        if not len(codes):
            return
        least = codes.min(axis=-1)
        if least.any():
            at = np.argwhere(least)[0]
            raise RowError(
                f"row {start + at[0]} has no code 0, expected one: codes count from the largest class"
            )
        bad = ~((step >= 0) & (step <= self.largest_step))
        if bad.any():
            at = np.argwhere(bad)[0]
            raise RowError(
                f"row {start + at[0]} has the step {step[tuple(at)]}, expected 0 to {self.largest_step}"
            )
        if schema.kind == "logits":
            _check_level(columns[2], start)

    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """The softmax of minus the depth, in float32; logits with the level of their row."""
        refuse_rule(rule, self.name)
        from fostore.schema import simplex  # see the first lines

        x = self._logits(columns)
        if as_kind == "probs":
            return simplex.softmax(x, temperature)
        if as_kind == "log_probs":
            return simplex.log_softmax(x, temperature)
        logits = simplex.log_softmax(x)
        if schema.kind == "logits":
            logits += columns[2][..., None]
        return converted(logits, "log_probs", as_kind, temperature)

    def _logits(self, columns: Sequence[Array]) -> Array:
        """Minus the depth of each class, float32: the largest is 0."""
        codes, step = columns[:2]
        depth = self.depth(codes.astype(np.float32) * step[..., None])
        x: Array = np.negative(depth, out=depth)
        x[codes == np.iinfo(self.dtype).max] = -np.inf
        return x

    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """In float64; logits with the level of their row."""
        refuse_rule(rule, self.name)
        x = self._logits(columns).astype(np.float64)
        x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
        if schema.kind == "logits":
            x += columns[2][..., None]
        return np.exp(x) if schema.kind == "probs" else x

    def disagrees(
        self, stored: Sequence[Array], now: Sequence[Array], schema: Schema, noise: float
    ) -> Array:
        """Depths may be half a step apart on either side, beside the noise."""
        then, again = (self._logits(side).astype(np.float64) for side in (stored, now))
        bad = far(then, again, noise, self._half_step(stored) + self._half_step(now))
        if schema.kind == "logits":
            level = level_of(np.minimum(-then, -again))
            bad = np.concatenate(
                [bad, far_sums(stored[2], now[2], noise, level)[..., None]], axis=-1
            )
        return by_row(bad)

    def _half_step(self, columns: Sequence[Array]) -> Array:
        """How far a depth may be from what it stands for, at each class."""
        step = columns[1].astype(np.float64)[..., None]
        counted = columns[0] * step
        return self.depth(counted + step / 2) - self.depth(counted)


def _working(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    return np.float64 if dtype.itemsize >= 8 else np.float32


def _pieces(rows: int, schema: Schema) -> Iterator[slice]:
    step = max(_PIECE_VALUES // math.prod(schema.row_shape), 1)
    return (slice(start, start + step) for start in range(0, rows, step))


def _check_level(level: Array, start: int) -> None:
    if not np.isfinite(level).all():
        at = np.argwhere(~np.isfinite(level))[0]
        raise RowError(
            f"row {start + at[0]} has the logsumexp {level[tuple(at)]}, expected a finite number in float32: "
            "look at this sample"
        )
