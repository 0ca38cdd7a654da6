"""`fostore missing` and `fostore finish`: what is left of a store that many write, and its end."""

from __future__ import annotations

import fostore
from fostore.cli.generate import summary
from fostore.cli.report import AsJson, StorePath, reporting, say, show, show_facts

MISSING_EXAMPLES = """
Examples:

`fostore missing t.zarr`

`fostore missing s3://bucket/t.zarr --json`
"""

FINISH_EXAMPLES = """
Examples:

`fostore generate models.py:teacher data.py:train -o t.zarr --shard 3/64`, in each of 64 jobs, and then

`fostore finish t.zarr`
"""


def missing(path: StorePath, as_json: AsJson = False) -> None:
    """Say which rows of a store are missing, as START:STOP lines; none of one that is whole."""
    with reporting():
        ranges = fostore.missing(path)
        if ranges or as_json:
            lines = [f"{start}:{stop}" for start, stop in ranges]
            show_facts([list(rows) for rows in ranges], lines, as_json)
        else:
            say(f"{path}: no row is missing")


def finish(path: StorePath) -> None:
    """Seal a store whose rows are all there. Again is no error, and mends what a kill left.

    Holds what was committed against the files first; what differs is given up, and missing from then on.
    """
    with reporting():
        show(summary(fostore.finish(path)))
