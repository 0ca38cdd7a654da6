"""What models and datasets say that their classes are called, and whether it is one order.

Nothing is imported to find out: scikit-learn's estimators have `classes_`, models of Hugging Face
`config.id2label`, torchvision's datasets `classes`, and those of Hugging Face `features`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from fostore.errors import IdentityError
from fostore.nested import LABELS

Names = tuple[str, ...]

_DEPTH, _MANY = 2, 64
"""How far names are looked for behind a wrapper: steps, and attributes of each."""


_AS_GIVEN = (
    "Class names say what each column of the outputs is: leave class_names out, or, where the columns "
    "were brought into another order on purpose, give the generator a function, as "
    "lambda batch: model(batch), which has no names of its own"
)


@dataclass(frozen=True, slots=True)
class _ModelNames:
    """The class names of a model."""

    names: Names
    is_own: bool
    """Whether they are those of the outputs for sure: not where code of the user's stands between."""


# ------------------------------------------------------------------ comparing


def _key(name: str) -> str:
    """What of a name is compared: not its case, and not blanks, hyphens and underscores between words.

    >>> _key("Not Entailment") == _key("not_entailment"), _key("-1") == _key("1")
    (True, False)
    """
    folded = name.casefold().strip()
    return re.sub(r"[\s_-]+", "", folded) if any(map(str.isalpha, folded)) else folded


def _keys(one: Sequence[str], other: Sequence[str]) -> tuple[list[str], list[str]]:
    """What of two sequences is compared: names as they are where two of them have one key."""
    ours, theirs = list(map(_key, one)), list(map(_key, other))
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        ours, theirs = list(one), list(other)
    if sorted(ours) != sorted(theirs):
        for at, (a, b) in enumerate(zip(one, other, strict=False)):
            if "," in a + b and _words(a) & _words(b):
                theirs[at] = ours[at]
    return ours, theirs


def _words(name: str) -> set[str]:
    """The words for one class where a name lists several, as ImageNet's do: "tench, Tinca tinca"."""
    return set(map(_key, name.split(",")))


def same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two sequences name the same classes in the same order; one of several words will do.

    >>> same(["Cat", "big dog"], ["cat", "big_dog"]), same(["a", "A"], ["A", "a"])
    (True, False)
    >>> same(["tench, Tinca tinca", "crane"], ["tench", "crane, machine"])
    True
    """
    ours, theirs = _keys(one, other)
    return ours == theirs


def reordered(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether they name the same classes in another order."""
    ours, theirs = _keys(one, other)
    return ours != theirs and sorted(ours) == sorted(theirs)


def difference(one: Sequence[str], other: Sequence[str], whose: tuple[str, str]) -> str:
    """The first class that differs, in a user's words; `whose` says where the two stand.

    >>> difference(["a", "b"], ["b", "a"], ("for the model", "for the dataset"))
    "class 0 is 'a' for the model and 'b' for the dataset (the same names in another order)"
    """
    pairs = enumerate(zip_longest(*_keys(one, other)))
    at = next(at for at, (a, b) in pairs if a != b)
    names = [names[at] if at < len(names) else None for names in (one, other)]
    first, second = (f"{name!r} {who}" for name, who in zip(names, whose, strict=True))
    why = " (the same names in another order)" if reordered(one, other) else ""
    if len(one) != len(other):
        why = f" ({len(one)} names and {len(other)})"
    return f"class {at} is {first} and {second}{why}"


# ------------------------------------------------------------------ datasets


def names_of_dataset(dataset: Any) -> Names | None:
    """Class names as datasets of torchvision and Hugging Face have them, also of a part or several.

    >>> class Pets:
    ...     classes = ["cat", "dog"]
    >>> names_of_dataset(Pets()), names_of_dataset([1, 2])
    (('cat', 'dog'), None)
    """
    inner = getattr(dataset, "dataset", None)
    if inner is not None and hasattr(dataset, "indices"):
        return names_of_dataset(inner)
    members = getattr(dataset, "datasets", None)
    if isinstance(members, (list, tuple)) and members:
        first, *others = map(names_of_dataset, members)
        return first if all(other == first for other in others) else None
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        kinds = {name: _texts(getattr(kind, "names", None)) for name, kind in features.items()}
        named = {name: names for name, names in kinds.items() if names is not None}
        chosen = next((name for name in LABELS if name in named), None)
        if chosen is None and len(named) == 1:
            (chosen,) = named
        return None if chosen is None else named[chosen]
    for attribute in ("classes", "class_names"):
        names = _texts(getattr(dataset, attribute, None))
        if names is not None:
            return names
    return None


def _texts(names: Any) -> Names | None:
    """Names as a tuple; None where they are none."""
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if not isinstance(names, (list, tuple)) or not names:
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


# ------------------------------------------------------------------ models


def names_of_model(model: Any) -> _ModelNames | None:
    """The names that a model has of its own, or that one behind it has; a plain function has none.

    Numbers from 0 up in order are no names, nor are Hugging Face's placeholders (LABEL_0, LABEL_1, ...).

    >>> class Classifier:
    ...     classes_ = np.array([1, 3, 7])
    >>> names_of_model(Classifier()).names
    ('1', '3', '7')
    """
    inner: Any = model
    while inner is not None:
        names = _own(inner)
        if names is not None:
            return _ModelNames(names, is_own=True)
        model, inner = inner, _same_model(inner)
    behind = set(_behind(model, _DEPTH))
    return _ModelNames(behind.pop(), is_own=False) if len(behind) == 1 else None


def _same_model(model: Any) -> Any | None:
    """The model whose outputs are handed on as they are: of torch.compile, DataParallel, a partial, a method."""
    if hasattr(model, "_orig_mod"):
        return model._orig_mod
    if type(model).__module__.partition(".")[0] == "torch" and hasattr(model, "module"):
        return model.module
    if isinstance(model, functools.partial):
        return model.func
    return model.__self__ if inspect.ismethod(model) else None


def _own(model: Any) -> Names | None:
    names = _from_classes(getattr(model, "classes_", None))
    labels = getattr(getattr(model, "config", None), "id2label", None)
    return names if names is not None else _from_labels(labels)


def _from_classes(classes: Any) -> Names | None:
    if not isinstance(classes, (np.ndarray, list, tuple)):
        return None
    listed = classes.tolist() if isinstance(classes, np.ndarray) else list(classes)
    if not listed or not all(isinstance(one, (str, int, float)) for one in listed):
        return None
    numbers = [
        int(one) if not isinstance(one, str) and float(one).is_integer() else one for one in listed
    ]
    return _named([str(one) for one in numbers])


def _from_labels(labels: Any) -> Names | None:
    if not isinstance(labels, Mapping):
        return None
    try:
        by_number = {int(number): name for number, name in labels.items()}
    except (TypeError, ValueError):
        return None
    names = [by_number.get(number) for number in range(len(by_number))]
    if not all(isinstance(name, str) for name in names):
        return None
    return _named([str(name) for name in names])


def _named(names: list[str]) -> Names | None:
    """The names, unless they say nothing but a number: "0", "LABEL_0", "class 0" and so on."""
    before = names[0].removesuffix("0") if names and names[0].endswith("0") else None
    if before is not None and names == [f"{before}{number}" for number in range(len(names))]:
        return None
    return tuple(names) if names else None


def _behind(model: Any, depth: int) -> Iterator[Names]:
    """The names of models that a wrapper keeps as attributes."""
    if inspect.isroutine(model) or inspect.isclass(model) or inspect.ismodule(model):
        return
    # Not `dir`, whose properties may run code of the model.
    attributes = list(getattr(model, "__dict__", {}).values())[:_MANY]
    modules = getattr(model, "_modules", None)  # where torch keeps what was assigned as attributes
    if isinstance(modules, Mapping):
        attributes += list(modules.values())[:_MANY]
    for inner in attributes:
        names = _own(inner)
        if names is not None:
            yield names
        elif depth > 1:
            yield from _behind(inner, depth - 1)


# ------------------------------------------------------------------ one order for all


def agreed_names(
    models: Sequence[Any], dataset: Any, given: Sequence[str] | None, *, transformed: bool = False
) -> Names | None:
    """The names that the outputs of models have of their own, where everybody agrees; None without any.

    Args:
        models: one, or the members of an ensemble.
        dataset: may have names as well.
        given: the user's, which count before all others.
        transformed: code of the user's stands behind the models, and may reorder what they give.

    Raises:
        IdentityError: a member, the dataset or `given` has the classes in another order, or, where
            nothing is given, other ones; names the first class that differs.
    """
    theirs, ours = names_of_dataset(dataset), _texts(given)
    known = [names_of_model(model) for model in models]
    if any(names is not None and not _are_numbers(names) for names in (theirs, ours)):
        # Class numbers say nothing about words.
        known = [None if one is None or _are_numbers(one.names) else one for one in known]
    if transformed:
        known = [None if one is None else replace(one, is_own=False) for one in known]
    named = [(number, one) for number, one in enumerate(known) if one is not None]
    for number, one in named[1:]:
        first = named[0][1].names
        if not same(first, one.names):
            whose = (f"for member {named[0][0]}", f"for member {number}")
            raise _refused(
                difference(first, one.names, whose),
                "Members are averaged class by class: give each a function that hands its outputs out "
                f"in one order, as lambda batch: model(batch){_order(one.names, first)} for member {number}; "
                "a function has no names of its own",
            )
    own = named[0][1] if named else None
    if ours is not None and own is not None and reordered(own.names, ours):
        raise _refused(difference(own.names, ours, ("for the model", "for class_names")), _AS_GIVEN)
    if ours is not None and theirs is not None and reordered(theirs, ours):
        what = difference(theirs, ours, ("for the dataset", "for class_names"))
        raise _refused(what, "Bring the classes of both into one order")
    if own is None:
        return None
    if theirs is not None and _conflict(own, theirs, is_given=given is not None):
        instead = " (in place of the output_transform)" if transformed else ""
        raise _refused(
            difference(own.names, theirs, ("for the model", "for the dataset")),
            "Each column would count as another class. Hand the outputs out in the dataset's order, by a "
            f"function{instead} as lambda batch: model(batch){_order(own.names, theirs)}, which has no "
            "names of its own; where only the words differ, give the dataset's as class_names= (with store=)",
        )
    whole = len(named) == len(known) and all(one.is_own for _, one in named)
    return own.names if whole else None


def _are_numbers(names: Names) -> bool:
    return all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names)


def _conflict(own: _ModelNames, theirs: Names, *, is_given: bool) -> bool:
    if is_given or (not own.is_own and len(own.names) != len(theirs)):
        return reordered(own.names, theirs)
    return not same(own.names, theirs)


def _order(names: Names, target: Names) -> str:
    """The columns to take so that `names` come as `target`, as an index of an array."""
    if not reordered(names, target):
        return "[:, order]"
    ours, theirs = _keys(names, target)
    listed = [ours.index(name) for name in theirs]
    return f"[:, {listed}]" if len(listed) <= 20 else "[:, order]"


def _refused(what: str, advice: str) -> IdentityError:
    return IdentityError(f"the classes are not in one order: {what}. {advice}", (what,))
