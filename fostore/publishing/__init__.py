"""A store becomes a dataset that others find, cite and check: a bundle of files around it, and where it goes.

The command line imports `facts` from here when it starts, so the rest is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fostore.publishing.publication import Publication as Publication
    from fostore.publishing.publication import check as check
    from fostore.publishing.publication import cite as cite
    from fostore.publishing.publication import publish as publish

__all__ = ["Publication", "check", "cite", "publish"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.publication"), name)
