"""What the user names on the command line: `module:attribute` or `file.py:attribute`, as an object.

This imports and runs the code that is named, like `python -m` would; nothing else in fostore does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fostore.errors import ArgumentError, GenerationError
from fostore.places.names import local_path


def load(text: str, what: str) -> Any:
    """The object that `text` names; `what` names the argument in messages.

    Modules are looked for in the current folder first, and files beside themselves.

    Raises:
        ArgumentError: no such module, file or attribute, or `text` has another form.
        GenerationError: the module failed while it was imported.
    """
    place, colon, attribute = text.rpartition(":")
    if not colon or not place or not attribute:
        raise ArgumentError(
            f"{what} is {text!r}, expected module:attribute or file.py:attribute, "
            "such as my_models:teacher"
        )
    found: Any = (
        _load_file(local_path(place), what) if place.endswith(".py") else _import(place, what)
    )
    for name in attribute.split("."):
        if not hasattr(found, name):
            names = sorted(n for n in vars(found) if not n.startswith("_"))[:12]
            raise ArgumentError(
                f"{what}: {place} has no attribute {attribute!r}; it has {', '.join(names) or 'none'}"
            )
        found = getattr(found, name)
    return found


def _import(name: str, what: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(what, name, error) from error
        raise ArgumentError(
            f"{what}: there is no module {name!r} in {Path.cwd()} or among the installed ones"
        ) from error
    except Exception as error:
        raise _failed(what, name, error) from error


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
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(what, str(path), error) from error
    return module


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _failed(what: str, name: str, error: Exception) -> GenerationError:
    return GenerationError(
        f"{what}: importing {name} failed: {type(error).__name__}: {error} (--traceback shows where)"
    )


def model_of(found: Any, text: str, factory: bool | None) -> Any:
    """The model that `text` named: `found` itself, or what it returns where it is a factory.

    Unless `factory` decides, classes and functions without required arguments are factories.
    A function with one, a jit function and an instance with `__call__` are models.
    """
    if factory is None:
        plain = inspect.isfunction(found) or inspect.ismethod(found)
        callable_part = plain or isinstance(found, functools.partial)
        factory = inspect.isclass(found) or (callable_part and _takes_nothing(found))
    return _call(found, text, "MODEL") if factory else found


def dataset_of(found: Any, text: str) -> Any:
    """The dataset that `text` named: a class or a callable that is no container is a factory."""
    is_container = hasattr(found, "__getitem__") or hasattr(found, "__iter__")
    if inspect.isclass(found) or (callable(found) and not is_container):
        return _call(found, text, "DATASET")
    return found


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
    try:
        return factory()
    except Exception as error:
        raise GenerationError(
            f"{what}: calling {text} failed: {type(error).__name__}: {error} "
            "(--traceback shows where)"
        ) from error


def framework_of(model: Any, dataset: Any) -> str:
    """Which generator a model and a dataset need: "torch", "jax" or "numpy".

    Their objects come from libraries that are loaded already, so nothing is imported to find out.
    """
    first = model[0] if isinstance(model, (list, tuple)) and model else model
    while isinstance(first, functools.partial):
        first = first.func
    torch = sys.modules.get("torch")
    if torch is not None:
        data = torch.utils.data
        if isinstance(first, torch.nn.Module):
            return "torch"
        if isinstance(dataset, (torch.Tensor, data.Dataset, data.DataLoader)):
            return "torch"
    jax = sys.modules.get("jax")
    if jax is not None:
        leaves = jax.tree_util.all_leaves
        if isinstance(first, jax.stages.Wrapped) or not leaves([first]):
            return "jax"
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree_util.tree_leaves(dataset)):
            return "jax"
    return "numpy"


def generator_of(framework: str) -> Any:
    """The `FirstOrderDataGenerator` of a framework.

    Raises:
        ArgumentError: the framework is not installed.
    """
    module = "fostore" if framework == "numpy" else f"fostore.{framework}"
    try:
        return importlib.import_module(module).FirstOrderDataGenerator
    except ModuleNotFoundError as error:
        if error.name != framework:
            raise
        raise ArgumentError(
            f"--framework {framework}: {framework} is not installed; pip install {framework}"
        ) from error
