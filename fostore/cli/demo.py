"""`fostore demo`: the main job on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fostore.cli.report import reporting


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where to put what it makes; new, or of an earlier demo.")
    ] = Path("fostore-demo"),
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Leave the stores there to look at.")
    ] = True,
) -> None:
    """Train a teacher on digits, stream its distributions, kill the run, resume, compare, distil students.

    Needs torch and scikit-learn; takes half a minute or so on two cores.
    """
    with reporting():
        from fostore.demo import run
        from fostore.places.names import local_path

        run(local_path(folder), keep=keep)
