"""What the benchmarks share: interleaved rounds, ratios of a round, the machine, and RESULTS.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

_Name = TypeVar("_Name")

RESULTS = Path(__file__).with_name("RESULTS.md")
_INTRODUCTION = """# Results

Written by the scripts in this folder, one section each; a run replaces its own section. Trust the
ratios: both sides of each were timed in one process or one loop, in turn. README.md says how.
"""


# ---------------------------------------------------------------- command line


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every script takes; `rounds` is the default without --quick."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="small and short, records nothing")
    options.add_argument("--rounds", type=int, help=f"rounds, default {rounds} (2 with --quick)")
    options.add_argument("--dir", type=Path, help="where to write, default: the temporary folder")
    options.set_defaults(usual_rounds=rounds)
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options, with `rounds` and `dir` filled in."""
    arguments = options.parse_args()
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else arguments.usual_rounds
    arguments.dir = arguments.dir or Path(tempfile.gettempdir())
    return arguments


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fostore-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- rounds


def interleave(
    cases: Mapping[_Name, Callable[[], float]], rounds: int, *, warmups: int = 1
) -> dict[_Name, list[float]]:
    """Run every case once a round, each second round backwards, and keep what each returned.

    A case times itself, so that it can prepare before and check after. The first `warmups` rounds
    are dropped: imports, caches, allocators.
    """
    kept: dict[_Name, list[float]] = {name: [] for name in cases}
    for turn in range(-warmups, rounds):
        names = list(cases) if turn % 2 == 0 else list(cases)[::-1]
        for name in names:
            value = cases[name]()
            if turn >= 0:
                kept[name].append(value)
    return kept


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some values, and how far they reach."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2, unit: str = "") -> str:
        """`0.95 (0.91 to 0.99)`."""
        low, middle, high = (f"{x:,.{digits}f}" for x in (self.low, self.median, self.high))
        return f"{middle}{unit} ({low} to {high})"


def ratio(top: Sequence[float], bottom: Sequence[float]) -> Spread:
    """Round by round, `top / bottom`."""
    return Spread.of([a / b for a, b in zip(top, bottom, strict=True)])


def difference(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Round by round, `one - other`."""
    return Spread.of([a - b for a, b in zip(one, other, strict=True)])


def verdict(met: bool) -> str:
    """A goal's last column."""
    return "met" if met else "**missed**"


# ---------------------------------------------------------------- results


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    text = [
        "| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def machine(folder: Path, packages: Sequence[str]) -> str:
    """One paragraph on what the figures depend on; no names and no paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    today = datetime.now(UTC).date().isoformat()
    return (
        f"{today}; {_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"{file_system(folder)}, {platform.system()} "
        f"{platform.release().split('-')[0]}; {', '.join(found)}."
    )


def file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`, such as "ext4"; "unknown" off Linux."""
    real = os.path.realpath(folder)
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, found = line.split()[:3]
            inside = real == mount or real.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, found
    return kind


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(name: str, parts: Sequence[str], *, record: bool) -> None:
    """Print a section and, where `record`, put it into RESULTS.md in the place of the one before."""
    body = "\n\n".join(parts)
    print(body)
    if not record:
        print("\n(nothing recorded)")
        return
    old = RESULTS.read_text() if RESULTS.exists() else _INTRODUCTION
    head, *sections = ("\n" + old).split("\n## ")
    kept = {section.split("\n", 1)[0]: section.rstrip() for section in sections}
    kept[name] = f"{name}\n\n{body}"
    text = "\n\n## ".join([head.strip(), *(kept[key] for key in sorted(kept))])
    RESULTS.write_text(text + "\n")
