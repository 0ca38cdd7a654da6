"""What do rows cost that lie behind a url? Beside zarr-python, over a server that takes 20 ms a request.

The server has files by their paths, which is also how an object store answers who signs nothing: s3fs reads from it.

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

    def over_fsspec() -> Take:
        from zarr.storage import FsspecStore

        return over(FsspecStore.from_url(url, read_only=True))

    def over_s3fs() -> Take:
        from zarr.storage import FsspecStore

        root, bucket, name = url.rsplit("/", 2)
        options = {"anon": True, "endpoint_url": root, "skip_instance_cache": True}
        where = f"s3://{bucket}/{name}"
        return over(FsspecStore.from_url(where, storage_options=options, read_only=True))

    def ours() -> Take:
        return fostore.open(url).take

    return {
        "fostore": ("", ours),
        "zarr-python over obstore": ("" if find_spec("zarr") else "zarr", over_obstore),
        "zarr-python over fsspec": (
            "" if find_spec("zarr") and find_spec("aiohttp") else "fsspec[http]",
            over_fsspec,
        ),
        "zarr-python over s3fs": ("" if find_spec("s3fs") else "s3fs", over_s3fs),
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

    url_root = url.rsplit("/", 2)[0]
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


def _windows(
    rows: np.ndarray, row_bytes: int, unit_rows: int, most: int | None
) -> list[np.ndarray]:
    """Rows that come in one request: near to each other in one unit; at most `most` windows a unit, if that is said."""
    near = (np.diff(rows) - 1) * row_bytes
    cuts = (near > _GAP) | (np.diff(rows // unit_rows) > 0)
    if most is not None:
        for unit in np.unique(rows // unit_rows):
            inside = np.flatnonzero(
                (rows[1:] // unit_rows == unit) & (rows[:-1] // unit_rows == unit)
            )
            widest = inside[np.argsort(near[inside])[::-1]]
            cuts[widest[most - 1 :]] = False
    return np.split(rows, np.flatnonzero(cuts) + 1)


def windows(url: str, num_rows: int, row_bytes: int, unit_rows: int, rounds: int) -> str:
    """Requests and bytes of 64 rows in fewer and fewer units: as they come, and as at most 2 windows a unit."""
    store, root = fostore.open(url), url.rsplit("/", 2)[0]
    all_units = num_rows // unit_rows
    lines = []
    for units in dict.fromkeys((all_units, all_units // 4, all_units // 16, 1)):
        chosen = np.sort(np.random.default_rng(7).permutation(all_units)[:units])
        places = np.random.default_rng(8).permutation(units * unit_rows)[:ROWS]
        rows = np.sort(chosen[places // unit_rows] * unit_rows + places % unit_rows)
        num_units = len(np.unique(rows // unit_rows))
        groups = _windows(rows, row_bytes, unit_rows, None)
        spanned = sum(int(group[-1] - group[0] + 1) * row_bytes for group in groups)
        merged = _windows(rows, row_bytes, unit_rows, 2)
        cases = {
            "within 64 KiB": rows,
            "at most 2 a unit": np.concatenate([np.arange(g[0], g[-1] + 1) for g in merged]),
        }

        def case(asked: np.ndarray) -> Callable[[], float]:
            def measure() -> float:
                begin = time.perf_counter()
                store.take(asked)
                return (time.perf_counter() - begin) * 1e3

            return measure

        for asked in cases.values():
            store.take(asked)  # files that were seen: no second look at the metadata
        times = _bench.interleave({name: case(asked) for name, asked in cases.items()}, rounds)
        for name, asked in cases.items():
            _slow_web.counts(root)
            store.take(asked)
            requests, nbytes = _slow_web.counts(root)
            is_met = requests <= 2 * num_units, nbytes <= 1.2 * spanned
            lines.append(
                [
                    f"{num_units}",
                    name,
                    f"{requests / num_units:.2f} ({_bench.verdict(is_met[0])})",
                    f"{nbytes / spanned:.2f} ({_bench.verdict(is_met[1])})",
                    f"{nbytes / 1e6:.1f}",
                    _bench.Spread.of(times[name]).text(0, " ms"),
                ]
            )
    head = ["units", "windows", "requests a unit, goal 2", "bytes of windows, goal 1.2"]
    return _bench.table([*head, "MB", "time"], lines)


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
    make(folder / "data" / "units.zarr", units << 10, 10, 1 << 10, "float32")
    _slow_web.counts(root)
    begin = time.perf_counter()
    store = fostore.open(f"{root}/data/units.zarr")
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
        (folder / "data").mkdir()
        rows = make(folder / "data" / "rows.zarr", num_rows, 1000, unit_rows, "float16")
        url = f"{root}/data/rows.zarr"
        parts = [
            _bench.machine(folder, ["numpy", "obstore", "urllib3", "zarr", "fsspec", "s3fs"]),
            f"A server in a process of its own, {DELAY * 1e3:.0f} ms a request; {num_rows:,} rows of 1,000 classes, "
            f"float16. {ROWS} random rows of a store that is open, {arguments.rounds} rounds:",
            random_rows(url, rows, arguments.rounds),
            f"{ROWS} rows in so many units of {unit_rows:,} rows: a request for what lies within 64 KiB, and what "
            "at most two requests a unit would cost:",
            windows(url, num_rows, rows[0].nbytes, unit_rows, arguments.rounds),
            f"Shuffled epochs of a loader, batches of {BATCH}:",
            epochs(url, rows, max(arguments.rounds // 4, 2)),
            metadata(root, folder, units),
        ]
    _bench.report("remote", parts, record=not arguments.quick)


if __name__ == "__main__":
    main(_bench.parse(_bench.parser(__doc__, rounds=12)))
