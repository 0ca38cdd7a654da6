"""Starting a DataLoader's workers: what cannot be sent to them is said in words that help."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fostore.errors import ArgumentError


@contextmanager
def starting_workers() -> Iterator[None]:
    """A block that begins to iterate over a loader.

    Raises:
        ArgumentError: the workers are new processes, and something they need cannot be pickled.
    """
    try:
        with warnings.catch_warnings():  # torch warns of what is raised below
            warnings.filterwarnings("ignore", "Got pickle error", UserWarning)
            yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        # Python raises each of the three, by what it meets: a lambda, an inner function, an open file.
        text = str(error)
        if "pickle" not in text.lower() and "local object" not in text:
            raise
        raise ArgumentError(
            f"the loader's workers cannot be started, since what they need cannot be sent to them: {text}. "
            "Use num_workers=0; or give functions that stand at the top of a module instead of lambdas "
            "and inner functions (collate_fn=, input_getter=, in the dataset), and open files in the worker"
        ) from error
