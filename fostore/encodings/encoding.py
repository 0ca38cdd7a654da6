"""Encoding: how a batch of distributions becomes the columns of a store, and back; what every encoding implements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fostore.encodings.alike import by_row, far
from fostore.errors import ArgumentError
from fostore.schema.row import COUNTS, FLOATS, Array, Column, Schema

if TYPE_CHECKING:
    from fostore.encodings.fidelity import Errors
    from fostore.encodings.topk_rows import TopK


class Encoding(ABC):
    """Pure functions between rows as a caller gives them and columns as a store keeps them.

    A schema's `encoding` is its spec: the name, and the encoding's own parameters, which are part of
    what the rows are. The spec is handed on as it is, so that no copy of a store loses it.

    What has a body here is right for an encoding that keeps every class of every row.
    """

    name: str
    parameters: tuple[str, ...] = ()
    """The keys that a user may give beside the name."""
    kinds: tuple[str, ...] = ("probs", "log_probs", "logits")
    """What it keeps of a model's output, that first which a generator keeps where nobody says."""
    is_lossy: bool = False
    """Whether more is lost than the rounding of numbers, so that a store says how much (`Header.fidelity`)."""
    is_drawn: bool = False
    """Whether rows are drawn from what comes, so that what was kept already must not come again."""

    def spec(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as a schema keeps them: checked, plain JSON, with defaults that are part of what the rows are.

        Raises ArgumentError for one that is missing or cannot be used.
        """
        return dict(parameters)

    def dtypes(self, kind: str, num_classes: int) -> tuple[str, ...]:
        """What the first column may hold for rows of this kind."""
        return tuple(COUNTS if kind == "counts" else FLOATS)

    def usual_dtype(self, kind: str, num_classes: int) -> str:
        """What the first column holds where the user names no dtype."""
        return "uint32" if kind == "counts" else "float32"

    @abstractmethod
    def columns(
        self,
        kind: str,
        dtype: str,
        axes: tuple[str, ...],
        shape: tuple[int, ...],
        encoding: Mapping[str, Any],
    ) -> tuple[Column, ...]:
        """The content columns for rows of this kind, dtype and shape, under this spec.

        Raises ArgumentError where the encoding cannot keep the kind or the dtype, or lacks a parameter.
        """

    @abstractmethod
    def encode(self, rows: Any, schema: Schema, start: int) -> list[Array]:
        """Check rows (n, *schema.row_shape) of the schema's kind and bring them into stored form.

        An encoding of top-k rows takes `Selected` as well. Returns one C-contiguous array of the stored dtype
        a content column; may alias `rows`. Raises RowError, naming rows counted from `start`.
        """

    @abstractmethod
    def check(self, columns: Sequence[Array], schema: Schema, start: int) -> None:
        """Raise RowError where stored columns do not hold what the schema promises."""

    @abstractmethod
    def decode(
        self,
        columns: Sequence[Array],
        schema: Schema,
        as_kind: str = "probs",
        temperature: float = 1.0,
        rule: str | None = None,
    ) -> Array:
        """Distributions (n, *schema.row_shape) as "probs", "log_probs" or "logits" from stored columns.

        probs come as stored where they are stored as probs (bfloat16: float32), else as float32
        (float64 where that is stored), as they do for any `temperature` other than 1: then probs
        are softmax(log p / temperature), log_probs their logarithms, and logits those of
        temperature 1 divided by it. `rule` says what becomes of classes that are not kept, where there are
        any. Raises ArgumentError where that leaves no distribution over all classes.
        """

    @abstractmethod
    def rows(self, columns: Sequence[Array], schema: Schema, rule: str | None = None) -> Array:
        """Rows of the schema's kind as `encode` takes them, as wide as they are exact: votes, or float32 or float64."""

    def recast(
        self, columns: Sequence[Array], schema: Schema, made: Schema, start: int
    ) -> list[Array]:
        """Stored columns of the same rows in the kind, dtype and parameters of `made`, which differs in these alone.

        Raises RowError where rows do not keep what the schema promises, ArgumentError where they cannot be
        made with such parameters.
        """
        if made.kind != schema.kind:
            return self.encode(self.decode(columns, schema, made.kind), made, start)
        return self.encode(self.rows(columns, schema), made, start)

    def is_plain(self, schema: Schema, as_kind: str) -> bool:
        """Whether the first column is what `decode` gives as `as_kind`, number by number, so that it can be mapped.

        But for two things that lie in the numbers: halves may be widened, and logits lack the level of their row.
        """
        return False

    def decoded_bytes(self, schema: Schema) -> int:
        """Bytes that one row takes in memory at most while it is decoded: what sizes pieces."""
        return 8 * math.prod(schema.row_shape)

    def is_whole(self, schema: Schema) -> bool:
        """Whether every class of every row is kept."""
        return True

    def check_dense(self, schema: Schema, rule: str | None) -> None:
        """Raise ArgumentError where `take` gives no whole rows by this rule, or not without one."""
        refuse_rule(rule, self.name)

    def selects(self, schema: Schema) -> tuple[int, tuple[float, ...]] | None:
        """How many classes of a row, and at which temperatures the rest, `encode` takes as `Selected`; None of none."""
        return None

    def sparse(self, columns: Sequence[Array], schema: Schema) -> TopK | None:
        """The rows as the classes that are kept; None of an encoding that keeps all. May alias the columns."""
        return None

    def is_sparse(self, schema: Schema) -> bool:
        """Whether `sparse` gives rows: what training takes then."""
        none = [np.empty((0, *column.shape), column.numpy_dtype) for column in schema.content]
        return self.sparse(none, schema) is not None

    def fidelity(self, columns: Sequence[Array], schema: Schema) -> Errors | None:
        """What is known of each row's error from the columns alone; None where nothing is."""
        return None

    def disagrees(
        self, stored: Sequence[Array], now: Sequence[Array], schema: Schema, noise: float
    ) -> Array:
        """For each row whether it was computed again as another one: bool (n,).

        Logarithms may be apart by what keeping them costs, and by `noise` times 1 + |x| + m
        (`fostore.encodings.alike`): other kernels, batch sizes or numbers of threads.
        """
        then, again = (self.decode(side, schema, "log_probs") for side in (stored, now))
        return by_row(far(then.astype(np.float64), again.astype(np.float64), noise, 0.0))


def refuse_rule(rule: str | None, name: str) -> None:
    """Raise ArgumentError where a rule is named for rows that leave no class out."""
    if rule is not None:
        raise ArgumentError(
            f"rule is {rule!r}, and rows of the encoding {name!r} hold every class: leave it out"
        )
