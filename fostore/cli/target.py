"""What the user names on the command line: `module:attribute` or `file.py:attribute`, as an object.

This imports and runs the code that is named, like `python -m` would; nothing else in fostore does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fostore.errors import ArgumentError, FostoreError, GenerationError
from fostore.places.names import local_path


def load(text: str, what: str) -> Any:
    """The object that `text` names; `what` names the argument in messages.

    Modules are looked for in the current folder first, and files beside themselves.

    Raises:
        ArgumentError: no such module, file or attribute, or `text` has another form.
        GenerationError: the module failed while it was imported.
    """
    module, colon, attribute = text.rpartition(":")
    if not colon or not module or not attribute:
        raise ArgumentError(
            f"{what} is {text!r}, expected module:attribute or file.py:attribute, "
            "such as my_models:teacher"
        )
    named: Any = (
        _load_file(local_path(module), what) if module.endswith(".py") else _import(module, what)
    )
    for name in attribute.split("."):
        if not hasattr(named, name):
            names = [n for n in dir(named) if not n.startswith("_")][:12]
            raise ArgumentError(
                f"{what}: {module} has no attribute {attribute!r}; it has {', '.join(names) or 'none'}"
            )
        named = getattr(named, name)
    return named


def _import(name: str, what: str) -> ModuleType:
    _make_importable(Path.cwd())
    with _of_user(what, f"importing {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # a module that it imports is missing
            raise ArgumentError(
                f"{what}: there is no module {name!r} in {Path.cwd()} or among the installed ones"
            ) from error


def _load_file(path: Path, what: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ArgumentError(f"{what}: there is no file {path}")
    name = path.stem
    while name in sys.modules:  # a file of the user's may be called like an installed module
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return sys.modules[name]
        name += "_"
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{what}: {path} cannot be imported")
    # Registered before it runs, as `import` does: dataclasses and pickle look a module up by its name.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _of_user(what, f"importing {path}"):
            spec.loader.exec_module(module)
    except FostoreError:
        del sys.modules[name]
        raise
    return module


def _make_importable(folder: Path) -> None:
    # As `python file.py` and `python -m` have it; a command that is installed has neither.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def _of_user(what: str, doing: str) -> Iterator[None]:
    """A block that runs code of the user's, which may raise anything."""
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:
        raise GenerationError(
            f"{what}: {doing} failed: {type(error).__name__}: {error} (--traceback shows where)"
        ) from error


def model_of(named: Any, text: str, factory: bool | None) -> Any:
    """The model that `text` named: `named` itself, or what it returns where it is a factory.

    Unless `factory` decides, classes and functions without required arguments are factories.
    A function with one, a jit function and an instance with `__call__` are models.
    """
    if factory is None:
        plain = inspect.isfunction(named) or inspect.ismethod(named)
        callable_part = plain or isinstance(named, functools.partial)
        factory = inspect.isclass(named) or (callable_part and _takes_nothing(named))
    return _call(named, text, "MODEL") if factory else named


def dataset_of(named: Any, text: str) -> Any:
    """The dataset that `text` named: a class or a callable that is no container is a factory."""
    is_container = hasattr(named, "__getitem__") or hasattr(named, "__iter__")
    if inspect.isclass(named) or (callable(named) and not is_container):
        return _call(named, text, "DATASET")
    return named


def _takes_nothing(function: Any) -> bool:
    """Whether a call without arguments is what a function is for; `*inputs` is a model's signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters)


def _call(factory: Any, text: str, what: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ArgumentError(
            f"{what}: {text} is called to get it, and that needs arguments ({error}); "
            "name a function without required arguments that returns it"
            + (", or say --no-factory if it is the model itself" if what == "MODEL" else "")
        ) from error
    except ValueError:
        pass  # a builtin without a signature
    with _of_user(what, f"calling {text}"):
        return factory()
