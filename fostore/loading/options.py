"""What every loader is told of the order of its samples: names, defaults and contradictions, once for all."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

from fostore.errors import ArgumentError
from fostore.loading.cursor import Cursor
from fostore.loading.order import NAMED, Order, Shuffle

_F = TypeVar("_F", bound=Callable[..., Any])


class OrderOptions(TypedDict, total=False):
    """The keywords that every loader takes beside `batch_size` and `shuffle`, for type checkers."""

    seed: int | None
    drop_last: bool
    pad_last: bool
    rank: int
    num_ranks: int


@dataclass(frozen=True, slots=True)
class Options:
    """In which order a loader's user wants the samples.

    Args:
        batch_size: samples a batch of one rank, at least 1.
        shuffle: another order in every epoch; "blocks" for rows behind a url, "lengths" for sequences, see `Order`.
        seed: makes the orders repeatable; None draws a fresh one.
        drop_last: leave out a last batch that is shorter.
        pad_last: fill it up with samples from the epoch's beginning.
        rank, num_ranks: this process's part of every global batch.
    """

    batch_size: int = 64
    shuffle: Shuffle = False
    seed: int | None = None
    drop_last: bool = False
    pad_last: bool = False
    rank: int = 0
    num_ranks: int = 1

    def cursor(
        self, num_samples: int, fresh_seed: Callable[[], int] | None = None, lengths: Any = None
    ) -> Cursor:
        """A cursor at the beginning of the order that is asked for.

        Args:
            fresh_seed: draws a seed where none is given; by default the system's random numbers.
            lengths: of samples that are sequences.

        Raises:
            ArgumentError: values that contradict each other; several ranks that shuffle without a seed.
        """
        if self.drop_last and self.pad_last:
            raise ArgumentError(
                "drop_last leaves the last batch out, pad_last fills it; choose one"
            )
        seed = self.seed
        if seed is None and self.shuffle:
            if self.num_ranks > 1:
                raise ArgumentError(
                    f"{self.num_ranks} ranks that shuffle need one seed, else each takes samples of its "
                    "own order; give seed="
                )
            # Not from the global random states, which belong to the user's own draws.
            seed = (fresh_seed or (lambda: secrets.randbits(63)))()
        order = Order(
            num_samples,
            self.batch_size,
            shuffle=self.shuffle if self.shuffle in NAMED else bool(self.shuffle),
            seed=0 if seed is None else seed,
            last="drop" if self.drop_last else "pad" if self.pad_last else "short",
            rank=self.rank,
            num_ranks=self.num_ranks,
            lengths=lengths,
        )
        return Cursor(order, seed_is_free=self.seed is None)


def take_order(options: Mapping[str, Any]) -> tuple[OrderOptions, dict[str, Any]]:
    """What of the keywords that a loader was given says the order, and the others."""
    rest = dict(options)
    order: Any = {name: rest.pop(name) for name in OrderOptions.__annotations__ if name in rest}
    return order, rest


def named(function: _F) -> _F:
    """`function`, whose `**order` or `**options` hold fields of `Options`, with each in its signature.

    Help shows them so, and Lightning, which makes loaders anew, looks there for the names of arguments.
    """
    signature = inspect.signature(function)
    known = dict(signature.parameters)
    last = next(reversed(known))
    rest = known.pop(last)
    for field in fields(Options):
        known.setdefault(
            field.name,
            inspect.Parameter(
                field.name, rest.KEYWORD_ONLY, default=field.default, annotation=field.type
            ),
        )
    if rest.annotation != "Unpack[OrderOptions]":  # it may hold more, which another callable takes
        known[last] = rest
    function.__signature__ = signature.replace(parameters=list(known.values()))  # type: ignore[attr-defined]  # what `inspect` reads
    return function
