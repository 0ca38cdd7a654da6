"""What do rows cost that lie behind a url? Beside zarr-python, over a server that takes 20 ms a request.

Each result is compared with the rows that were written; requests and bytes are counted by the server.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import _bench
import _slow_web
import numpy as np

import fostore
from fostore.loading.loader import SimpleDataLoader

DELAY = 0.02
ROWS, BATCH = 64, 64
_GAP = 64 << 10

Take = Callable[[np.ndarray], np.ndarray]


def make(path: Path, num_rows: int, num_classes: int, unit_rows: int, dtype: str) -> np.ndarray:
    """A store, and the rows that are in it."""
    drawn = np.random.default_rng(0).random((num_rows, num_classes), np.float32) + 1e-3
    rows = (drawn / drawn.sum(axis=1, keepdims=True)).astype(dtype)
    with fostore.create(
        path, num_samples=num_rows, num_classes=num_classes, unit_rows=unit_rows, dtype=dtype
    ) as writer:
        writer.append(rows)
    return rows


def peers(url: str) -> dict[str, tuple[str, Callable[[], Take]]]:
    """What reads the same store: how to get it, or "", and how it is opened."""

    def over(store: Any) -> Take:
        import zarr

        array: Any = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)[
            "probs"
        ]
        return lambda rows: array.get_orthogonal_selection(rows)

    def over_obstore() -> Take:
        from obstore.store import from_url
        from zarr.storage import ObjectStore

        return over(ObjectStore(from_url(url, client_options={"allow_http": True}), read_only=True))

    def over_fsspec() -> (
        Take
    ):  # s3fs reads through it too, and has nothing to ask a plain web server
        from zarr.storage import FsspecStore

        return over(FsspecStore.from_url(url, read_only=True))

    def ours() -> Take:
        return fostore.open(url).take

    return {
        "fostore": ("", ours),
        "zarr-python over obstore": ("" if find_spec("zarr") else "zarr", over_obstore),
        "zarr-python over fsspec": (
            "" if find_spec("zarr") and find_spec("aiohttp") else "fsspec[http]",
            over_fsspec,
        ),
    }


def random_rows(url: str, rows: np.ndarray, rounds: int) -> str:
    """64 random rows of a store that is open, by each library in turn."""
    takes: dict[str, Take] = {}
    lines = []
    for name, (missing, open_) in peers(url).items():
        if missing:
            lines.append([name, f"not installed: {missing}", "", "", ""])
        else:
            takes[name] = open_()
    totals: dict[str, list[tuple[int, int]]] = {name: [] for name in takes}

    def case(name: str) -> Callable[[], float]:
        def measure() -> float:
            chosen = np.unique(
                np.random.default_rng(next(turns[name])).integers(0, len(rows), ROWS)
            )
            _slow_web.counts(url_root)
            begin = time.perf_counter()
            result = takes[name](chosen)
            seconds = time.perf_counter() - begin
            totals[name].append(_slow_web.counts(url_root))
            assert np.array_equal(result, rows[chosen]), name
            return seconds * 1e3

        return measure

    url_root = url.rpartition("/")[0]
    turns = {name: iter(range(100, 10_000)) for name in takes}  # the same rows for all in a round
    times = _bench.interleave({name: case(name) for name in takes}, rounds)
    best = min(
        (_bench.Spread.of(t).median for name, t in times.items() if name != "fostore"), default=0.0
    )
    row_bytes = rows[0].nbytes
    for name, spent in times.items():
        spread = _bench.Spread.of(spent)
        requests = np.median([r for r, _ in totals[name]])
        nbytes = np.median([b for _, b in totals[name]])
        goal = ""
        if name == "fostore" and best:
            goal = f"{spread.median / best:.2f} of the fastest other; 0.5: {_bench.verdict(spread.median <= best / 2)}"
        lines.append(
            [
                name,
                spread.text(0, " ms"),
                f"{requests:.0f}",
                f"{nbytes / (ROWS * row_bytes):.2f}",
                goal,
            ]
        )
    return _bench.table(["", "time", "requests", "bytes / asked for", ""], lines)


def windows(url: str, num_rows: int, row_bytes: int, unit_rows: int) -> str:
    """How many requests and bytes 64 rows take, held against what they span."""
    store, root = fostore.open(url), url.rpartition("/")[0]
    rows = np.unique(np.random.default_rng(7).integers(0, num_rows, ROWS))
    store.take(rows)
    _slow_web.counts(root)
    store.take(rows)  # files that were seen: no second look at the metadata
    requests, nbytes = _slow_web.counts(root)
    cuts = ((np.diff(rows) - 1) * row_bytes > _GAP) | (np.diff(rows // unit_rows) > 0)
    groups = np.split(rows, np.flatnonzero(cuts) + 1)
    spanned = sum(int(g[-1] - g[0] + 1) * row_bytes for g in groups)
    units = len(np.unique(rows // unit_rows))
    return (
        f"{ROWS} rows lie in {units} units: {requests} requests, {requests / units:.2f} a unit (goal 2: "
        f"{_bench.verdict(requests <= 2 * units)}), {nbytes / spanned:.3f} of the bytes of their windows (goal 1.2: "
        f"{_bench.verdict(nbytes <= 1.2 * spanned)})."
    )


def epochs(url: str, rows: np.ndarray, rounds: int) -> str:
    """A shuffled epoch in blocks beside single rows, batches of 64, in rows a second."""

    def case(shuffle: Any, limit: int | None) -> Callable[[], float]:
        def measure() -> float:
            loader = SimpleDataLoader(fostore.open(url), BATCH, shuffle, seed=3, prefetch=16)
            order = loader.cursor.order
            samples = list(islice(order.batches(0), limit))
            begin = time.perf_counter()
            batches = list(islice(loader, limit))
            seconds = time.perf_counter() - begin
            for chosen, batch in zip(samples, batches, strict=True):
                assert np.array_equal(batch, rows[chosen])
            return sum(map(len, batches)) / seconds

        return measure

    cases = {"single rows (24 batches)": case(True, 24), "blocks (all)": case("blocks", None)}
    rates = _bench.interleave(cases, rounds)
    single, blocks = (_bench.Spread.of(one) for one in rates.values())
    ratio = _bench.ratio(*list(rates.values())[::-1])
    mb = blocks.median * rows[0].nbytes / 1e6
    return _bench.table(
        ["epoch", "rows/s", ""],
        [
            ["single rows", single.text(0), ""],
            ["blocks", blocks.text(0), f"{mb:.0f} MB/s"],
            ["ratio", ratio.text(0), f"goal 50: {_bench.verdict(ratio.median >= 50)}"],
        ],
    )


def metadata(root: str, folder: Path, units: int) -> str:
    """Opening a store of many units."""
    make(folder / "units.zarr", units << 10, 10, 1 << 10, "float32")
    _slow_web.counts(root)
    begin = time.perf_counter()
    store = fostore.open(f"{root}/units.zarr")
    seconds = time.perf_counter() - begin
    requests, nbytes = _slow_web.counts(root)
    assert len(store) == units << 10
    return (
        f"Opening a store of {units:,} units: {requests} requests (goal 4: {_bench.verdict(requests <= 4)}), "
        f"{nbytes:,} bytes, {seconds * 1e3:.0f} ms."
    )


def main(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    num_rows, unit_rows, units = (16_384, 1024, 20) if arguments.quick else (131_072, 2048, 1000)
    with _bench.scratch(arguments.dir) as folder, _slow_web.serving(folder, DELAY) as root:
        rows = make(folder / "rows.zarr", num_rows, 1000, unit_rows, "float16")
        url = f"{root}/rows.zarr"
        parts = [
            _bench.machine(folder, ["numpy", "obstore", "zarr", "fsspec"]),
            f"A server in a process of its own, {DELAY * 1e3:.0f} ms a request; {num_rows:,} rows of 1,000 classes, "
            f"float16. {ROWS} random rows of a store that is open, {arguments.rounds} rounds:",
            random_rows(url, rows, arguments.rounds),
            windows(url, num_rows, rows[0].nbytes, unit_rows),
            f"Shuffled epochs of a loader, batches of {BATCH}:",
            epochs(url, rows, max(arguments.rounds // 4, 2)),
            metadata(root, folder, units),
        ]
    _bench.report("remote", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=12)))
