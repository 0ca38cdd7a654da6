"""`fostore info` and `fostore meta`: what a store says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import fostore
from fostore.cli import options
from fostore.cli.report import AsJson, StorePath, reporting, show_facts
from fostore.errors import ArgumentError
from fostore.schema.ranges import describe
from fostore.schema.shown import counted, flat, labelled, plain

EXAMPLES = """
Examples:

`fostore info digits.zarr`

`fostore info digits.h5 --json | jq -r .digest`

`fostore info hf://datasets/ada/digits`
"""

_SHORT = 72
_WRITERS = 8
_COMMITS = 4096
"""Records of units that are read at most, to say who writes."""


META_EXAMPLES = """
Examples:

`fostore meta digits.zarr`

`fostore meta digits.zarr --set license=MIT --set 'authors=["Ada"]'`
"""


def info(path: StorePath, as_json: AsJson = False) -> None:
    """Say what a store is, how complete, what it was made from and how large; reads no rows."""
    with reporting():
        facts = _facts_of(fostore.open(path))
        show_facts(facts, _lines(facts), as_json)


def meta(
    path: StorePath,
    values: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Add or replace; the value is JSON, or text where it is not. Repeat for more.",
        ),
    ] = None,
) -> None:
    """Print the metadata of a store as JSON; with --set change it. The digest stays as it is."""
    with reporting():
        if values:
            new = options.parse_meta(values, None, option="--set")
            with fostore.open(path) as store:  # or is refused before it is locked
                if store.format == "json":
                    raise ArgumentError(
                        f"{str(path)!r} is JSON, which is only written as a whole: `fostore convert` it "
                        "to another path with --meta KEY=VALUE"
                    )
            # Not in a `with` block, which would seal a stream that somebody means to go on with.
            writer = fostore.create(path, exists="resume", meta=new)
            try:
                writer.update_meta(new)
            finally:
                writer.close()
        show_facts(dict(fostore.open(path).meta), (), as_json=True)


def _facts_of(store: Any) -> dict[str, Any]:
    """What `fostore info --json` prints."""
    header, schema, path = store.header, store.schema, store.path
    planned = store.num_samples
    rows = len(store) if planned is None else planned
    return {
        "path": str(path),
        "format": store.format,
        "version": header.version,
        "id": header.id,
        "kind": schema.kind,
        "encoding": schema.encoding["name"],
        "parameters": {key: value for key, value in schema.encoding.items() if key != "name"},
        "dtype": schema.dtype,
        "shape": [rows, *schema.row_shape],
        "axes": list(schema.axes),
        "num_members": schema.num_members,
        "num_classes": schema.num_classes,
        "class_names": None if schema.class_names is None else list(schema.class_names),
        "temperature": schema.temperature,
        "sum_tolerance": schema.sum_tolerance,
        "columns": [column.to_json() for column in schema.columns],
        "rows": {
            "committed": len(store),
            "planned": planned,
            "missing": [list(r) for r in store.missing()],
        },
        **({"num_sequences": store.num_sequences} if "num_sequences" in header.counts else {}),
        "sealed": store.is_sealed,
        "digest": header.digest,
        "fidelity": None if header.fidelity is None else dict(header.fidelity),
        **({} if header.commits is None else {"units": _units_of(store)}),
        "unit_rows": header.unit_rows,
        "block_rows": header.block_rows,
        "identity": dict(header.identity),
        "meta": dict(store.meta),
        "size": _size_of(store),
        "created": header.created,
        "updated": header.updated,
        "software": dict(header.software),
    }


def _units_of(store: Any) -> dict[str, Any]:
    """Of a store that many write: units done, by whom, how fast, and how long the rest will take so."""
    header = store.header
    planned, done = (-(-rows // header.unit_rows) for rows in (header.num_samples, len(store)))
    commits = store.reader.commits(_COMMITS)
    times = sorted(datetime.fromisoformat(one.written) for one in commits)
    seconds = (times[-1] - times[0]).total_seconds() if times else 0.0
    rate = (done - 1) / seconds if seconds else None  # the first one marks the beginning
    by = Counter(one.by for one in commits)
    return {
        "planned": planned,
        "committed": done,
        "looked_at": len(commits),
        "by": dict(by.most_common()),
        "last": max((one.written for one in commits), default=None),
        "units_per_second": rate,
        "seconds_left": None if rate is None else (planned - done) / rate,
    }


def _unit_lines(units: Mapping[str, Any]) -> Iterator[str]:
    yield _line("written", f"{units['committed']:,} of {units['planned']:,} units")
    writers = [f"{who} {count:,}" for who, count in units["by"].items()]
    if writers:
        more = f", and {len(writers) - _WRITERS} more" if len(writers) > _WRITERS else ""
        yield _line("by", ", ".join(writers[:_WRITERS]) + more)
        yield _line("last", units["last"])
    if units["units_per_second"]:
        rate, left = units["units_per_second"] * 3600, units["seconds_left"]
        time = f"{left / 3600:,.1f} hours" if left >= 3600 else f"{left / 60:.1f} minutes"
        yield _line("rate", f"{rate:,.0f} units an hour, {time} to go at that")


def _size_of(store: Any) -> dict[str, int | None]:
    """What a store takes on disk; behind a url, where nothing is listed, what its rows do."""
    if isinstance(store.path, Path):
        return {**size_on_disk(store.path)}
    rows = len(store) * sum(column.row_bytes for column in store.schema.columns)
    return {"files": None, "bytes": rows, "allocated": None}


def size_on_disk(path: Path) -> dict[str, int]:
    """Bytes and files of a store; `allocated` is less than `bytes` where files are sparse."""
    if path.is_file():
        files = [path]
    else:
        # What a link leads to is no part of the store, which has none.
        files = [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    stats = [file.stat() for file in files]
    return {
        "files": len(files),
        "bytes": sum(s.st_size for s in stats),
        # Windows does not tell how many blocks a file has.
        "allocated": sum(getattr(s, "st_blocks", -(-s.st_size // 512)) * 512 for s in stats),
    }


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts for people, one line each."""
    from fostore.schema.row import in_words  # which loads NumPy

    rows, size = facts["rows"], facts["size"]
    axes = ", ".join(f"{axis} {n:,}" for axis, n in zip(facts["axes"], facts["shape"], strict=True))
    planned = "an open end" if rows["planned"] is None else f"{rows['planned']:,}"
    yield str(facts["path"])
    yield _line("format", f"{facts['format']}, fostore {facts['version']}")
    yield _line("rows", f"{rows['committed']:,} committed of {planned}")
    if "num_sequences" in facts:
        count = facts["num_sequences"]
        yield _line("sequences", "an open end" if count is None else f"{count:,}")
    if rows["missing"]:
        yield _line("missing", describe([(a, b) for a, b in rows["missing"]]))
    if "units" in facts:
        yield from _unit_lines(facts["units"])
    yield _line("state", "sealed" if facts["sealed"] else "not finished")
    yield _line("digest", facts["digest"] or "none until the store is sealed")
    temperature = "" if facts["temperature"] == 1 else f", temperature {facts['temperature']:g}"
    encoded = in_words({"name": facts["encoding"], **facts["parameters"]})
    yield _line("values", f"{facts['kind']} {facts['dtype']}, {encoded}{temperature}")
    yield _line("axes", axes)
    if facts["class_names"]:
        yield _line("classes", _shorten(", ".join(facts["class_names"])))
    yield _line("columns", ", ".join(f"{c['name']} ({c['role']})" for c in facts["columns"]))
    from fostore.encodings.fidelity import (
        fidelity_lines,
    )  # NumPy, which the command line loads when it must

    for line in fidelity_lines(facts["fidelity"]):
        yield _line("fidelity", line)
    yield _line("units", f"{facts['unit_rows']:,} rows, blocks of {facts['block_rows']:,}")
    if size["files"] is None:
        yield _line("rows take", human_bytes(size["bytes"]))
    else:
        taken = f"{human_bytes(size['allocated'])} in {counted(size['files'], 'file')}"
        yield _line("on disk", taken)
    for title in ("identity", "meta", "software"):
        label = title  # stands once, before the first of its lines
        for key, value in flat(facts[title]):
            if value is None and title == "identity":
                continue  # nobody said
            yield _line(label, f"{key}: {_shorten(str(value))}")
            label = ""
    for label in ("created", "updated"):
        if facts[label]:
            yield _line(label, facts[label])


def _line(label: str, value: Any) -> str:
    return "\n".join(labelled(label, plain(str(value)), 10))


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 4]} ..."


def human_bytes(count: int) -> str:
    """A size as people read it: 1,297 bytes, 50.7 KiB."""
    if count < 1024:
        return f"{count} bytes"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
