"""Where a loader is: the epoch, and how many samples of it were handed out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fostore.errors import ArgumentError
from fostore.loading.order import Order

_T = TypeVar("_T")
_VERSION = 1


class Cursor:
    """The state of a loader over an order: small, the same for any number of ranks and workers.

    A position counts samples of the epoch that all ranks together were handed, never those that a
    prefetch has drawn. An iteration that was left early is over: the next begins the next epoch,
    unless `load_state_dict` says where to go on.

    >>> cursor = Cursor(Order(100, 10, seed=3))
    >>> cursor.begin()
    (0, 0)
    >>> cursor.hand_out(0, 30)
    >>> other = Cursor(Order(100, 5, seed=3, num_ranks=2))
    >>> other.load_state_dict(cursor.state_dict())
    >>> other.begin(), other.begin()
    ((0, 30), (1, 0))
    """

    def __init__(self, order: Order, *, seed_is_free: bool = False) -> None:
        """`seed_is_free`: nobody chose the order's seed, so a loaded state may bring another."""
        self.order = order
        self._seed_is_free = seed_is_free
        self.seed_was_drawn = seed_is_free and order.shuffle
        """Whether the order follows a seed that only this process knows."""
        self._now = self._next = (0, 0)
        self._loaded: tuple[int, int] | None = None

    def begin(self) -> tuple[int, int]:
        """Start an iteration; gives its (epoch, position)."""
        self._loaded = None
        # An iteration that is left early is over: the next one must not repeat what it began with.
        self._now = epoch, _ = self._next
        self._next = (epoch + 1, 0)
        return self._now

    def hand_out(self, epoch: int, position: int) -> None:
        """Batches up to this position were handed out."""
        self._now = (epoch, position)

    def end(self, epoch: int) -> None:
        """The epoch is over."""
        self._now = (epoch + 1, 0)

    def counted(
        self, batches: Iterable[_T], epoch: int, position: int
    ) -> Generator[_T, None, None]:
        """The batches of an epoch from a position on, each counted as it is handed out."""
        for batch in batches:
            position = self.order.after(position)
            self.hand_out(epoch, position)
            yield batch
        self.end(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration with this epoch; a position loaded for the same epoch stays."""
        if epoch < 0:
            raise ArgumentError(f"epoch is {epoch!r}, expected 0 or more")
        # Loops call this before each epoch, the resumed one as well: its position has to stay.
        if self._loaded is not None and epoch == self._loaded[0]:
            self._next = self._loaded  # also where nothing of that epoch is left
        elif epoch != self._next[0]:
            self._next = (int(epoch), 0)
        self._now = self._next

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain numbers: JSON and every checkpoint hold it."""
        epoch, position = self._now
        return {
            "version": _VERSION,
            "epoch": epoch,
            "position": position,
            "num_samples": self.order.num_samples,
            "shuffle": self.order.shuffle,
            "seed": self.order.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there with the next iteration; batch size, ranks and workers may differ.

        Where all batches of the epoch were handed out, that is the next epoch, unless `set_epoch`
        names the old one, of which nothing is left.

        Raises:
            ArgumentError: the state is of another order of samples, or what it leaves for the last
                batch is too short for all ranks; the cursor stays where it was.
        """
        try:
            version = state["version"]
            epoch, position = int(state["epoch"]), int(state["position"])
            seed = int(state["seed"])
        except KeyError as error:
            raise ArgumentError(f"this is no state of a loader: it has no {error}") from error
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"this is no state of a loader: {state!r:.200}") from error
        if version != _VERSION:
            raise ArgumentError(f"the state has version {version!r}, expected {_VERSION}")
        order = self.order
        own = {"num_samples": order.num_samples, "shuffle": order.shuffle}
        if order.shuffle and not self._seed_is_free:
            own["seed"] = order.seed
        for name, value in own.items():
            if state.get(name) != value:
                raise ArgumentError(
                    f"the state was saved with {name}={state.get(name)!r}, this loader has {value!r}; "
                    "going on would repeat some samples and leave others out"
                )
        if epoch < 0 or not 0 <= position <= order.num_samples:
            raise ArgumentError(
                f"the state says epoch {epoch}, position {position} of {order.num_samples} samples"
            )
        order = replace(order, seed=seed)
        order.check_last(position)  # before anything changes
        self.order = order
        self.seed_was_drawn = False
        self._now = self._next = self._loaded = (epoch, position)
        # Saved between the last batch and the end of the loop: a resumed epoch without batches would
        # count as an epoch in the user's loop.
        if not order.num_batches(position):
            self._next = (epoch + 1, 0)


class Resumable:
    """Whatever has a cursor: training goes on in the middle of an epoch from its state."""

    cursor: Cursor

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration this epoch; see `Cursor.set_epoch`."""
        self.cursor.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where it is, as plain numbers: the batches handed out, whatever was read ahead."""
        return self.cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there with the next iteration; batch size, ranks and workers may differ.

        Raises:
            ArgumentError: the state is of another order of samples; all stays where it was.
        """
        self.cursor.load_state_dict(state)
