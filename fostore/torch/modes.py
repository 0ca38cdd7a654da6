"""Evaluation mode of every torch module that runs, whatever hides it, and its flags as before afterwards.

What the search finds is settled beforehand; a global hook of torch sees the rest before it runs.
"""

from __future__ import annotations

import sys
import threading
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_pre_hooks
from torch.utils.hooks import RemovableHandle

from fostore.torch.graphs import refuse_training_graph

_DRAWING = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer")
_RECURRENT = ("RNN", "LSTM", "GRU")
_SMALL = 1_000
"""Modules of a user's class are asked once; the answers of so many classes are kept."""


class Modes:
    """The training flags of modules during one run.

    Everything is in evaluation mode. With `draws`, what drops at random stays on (`drops`), and
    nothing else: the statistics of a BatchNorm never move.
    """

    def __init__(self, draws: bool = False) -> None:
        self._draws = draws
        self._thread = threading.get_ident()
        self._wanted: dict[int, bool] = {}
        self._before: dict[int, tuple[weakref.ref[nn.Module], bool]] = {}
        self._turned_on = ""
        self._said = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker that is sent one has modules of its own, and settled none.
        return Modes, (self._draws,)

    @contextmanager
    def of(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """These modules settled, and all that were seen as before afterwards, come what may."""
        try:
            for module in modules:
                self.settle(module)
            with _compiler_says_nothing_of_hooks():
                yield
        finally:
            self._restore()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A block in which every module is settled before it runs for the first time."""
        with _turns:
            before = _watching.get(self._thread)
            _watching[self._thread] = self
            _global_forward_pre_hooks[_HOOK.id] = _look_drawing if self._draws else _look
        try:
            yield
        finally:
            with _turns:
                if before is None:
                    del _watching[self._thread]
                else:
                    _watching[self._thread] = before
                if not _watching:
                    _HOOK.remove()
        if self._turned_on and not self._draws:
            self._say(
                f"{self._turned_on} is in training mode whenever the model calls it; it is kept in "
                "evaluation mode: no dropout, no moving statistics. For draws of dropout give num_draws="
            )

    def see(self, module: nn.Module) -> None:
        """Settle a module that is about to run, unless that was done and nobody changed it since."""
        if self._wanted.get(id(module)) is getattr(module, "training", None):
            return
        if id(module) in self._wanted:
            self._turned_on = _name(module)
        self.settle(module)

    def settle(self, module: nn.Module) -> None:
        """The flags of a module and all its submodules as they are to be while it runs."""
        refuse_training_graph(module, self._draws)
        parts = [part for part in module.modules() if hasattr(part, "training")]
        for part in parts:
            self._remember(part)
        try:
            module.eval()
        except NotImplementedError:  # exported graphs have no eval(), but flags
            for part in parts:
                part.training = False
        for part in parts:
            trains = self._draws and drops(part)
            self._wanted[id(part)] = trains
            part.training = trains

    def _remember(self, part: nn.Module) -> None:
        key = id(part)
        if key in self._before:
            return

        dropout = _name(part) if part.training and _is_dropout(part) else ""

        def forget(_: Any) -> None:  # a module that the model makes in each call
            self._before.pop(key, None)
            self._wanted.pop(key, None)
            self._turned_on = self._turned_on or dropout

        self._before[key] = weakref.ref(part, forget), part.training

    def _restore(self) -> None:
        # A list first: the collector may run in the loop, and make the table forget modules within.
        before = list(self._before.values())
        known = [(part, flag) for ref, flag in before if (part := ref()) is not None]
        # Two passes: a train() of its own sets flags of its submodules, which are put right after it.
        for part, flag in known:
            if flag and type(part).train is not nn.Module.train:
                part.train(flag)  # a train() of its own may have more to undo than a flag
        for part, flag in known:
            part.training = flag

    def see_elsewhere(self, module: nn.Module) -> None:
        """A module runs in another thread: perhaps one that the user trains, so it is left alone."""
        parts = list(module.modules())
        if module.training and any(_is_dropout(p) or hasattr(p, "running_mean") for p in parts):
            self._say(
                f"{_name(module)} runs in training mode in another thread; if it belongs to the model, "
                "call its eval() before generating"
            )

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            warnings.warn(text, stacklevel=2)


@contextmanager
def _compiler_says_nothing_of_hooks() -> Iterator[None]:
    """torch.compile warns of global hooks; this one is ours, and no concern of a user's."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using .torch.compile.module.. when there are global")
        yield


_watching: dict[int, Modes] = {}
"""Who is inside `Modes.watched`, by thread."""
# Reentrant, for the collector may end a generator that is inside. Without it the last one to leave would take away the
# hook of one that enters meanwhile in another thread, whose hidden modules would then run with dropout on.
_turns = threading.RLock()

# One handle and one function for ever: torch.compile guards on both, and would compile each batch again.
_HOOK = RemovableHandle(_global_forward_pre_hooks)


def _look(module: nn.Module, _: Any) -> None:
    """Runs before each submodule of each batch; under torch.compile it is part of the graph."""
    if not torch.compiler.is_compiling():
        _see(module)
    elif module.training:  # only then is anything read that changes from run to run
        for modes in list(_watching.values()):
            modes.settle(module)


def _look_drawing(module: nn.Module, _: Any) -> None:
    """The same for draws, where dropout trains: a graph that is being compiled is left as it is."""
    if not torch.compiler.is_compiling():
        _see(module)


def _see(module: nn.Module) -> None:
    modes = _watching.get(threading.get_ident())
    if modes is not None:
        modes.see(module)
    elif getattr(module, "training", False):
        for other in list(_watching.values()):
            other.see_elsewhere(module)


def drops(module: nn.Module) -> bool:
    """Whether a module drops at random in training mode, and its flag changes nothing else to speak of.

    Dropout and its kin by their names (DropPath, StochasticDepth ...), attention and transformer layers,
    recurrent layers with a dropout, and modules whose code gives `self.training` to a dropout function.
    """
    if hasattr(module, "running_mean"):
        return False
    name = _name(module)
    if name in _RECURRENT:
        return float(getattr(module, "dropout", 0.0)) > 0
    return _is_dropout(module) or name in _DRAWING or _calls_dropout(type(module))


def _is_dropout(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    name = _name(module).lower()
    drops_by_name = "dropout" in name or name.startswith("drop") or name == "stochasticdepth"
    return drops_by_name and next(module.children(), None) is None


def _calls_dropout(cls: type) -> bool:
    known = _CLASSES.get(cls)
    if known is None:
        if len(_CLASSES) >= _SMALL:
            _CLASSES.clear()
        known = _CLASSES[cls] = any(
            "training" in names and any("drop" in name.lower() for name in names)
            for names in _names_of_methods(cls)
        )
    return known


_CLASSES: dict[type, bool] = {}


def _names_of_methods(cls: type) -> Iterable[set[str]]:
    for base in cls.__mro__:
        if base in (nn.Module, object) or base.__module__.startswith("torch."):
            continue
        for value in vars(base).values():
            if isinstance(value, types.FunctionType):
                yield set(value.__code__.co_names)


def _name(module: nn.Module) -> str:
    """The class; of a scripted module that it was made of."""
    return str(getattr(module, "original_name", type(module).__name__))
