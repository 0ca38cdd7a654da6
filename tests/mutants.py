"""Deliberate breaks of lines that keep promises, each with the test that must notice: `make mutants` tries them all.

Each break is made in a copy of the tree, where its test must fail. A break that survives, or whose text is not
there exactly once any more, is an error: then a promise has lost its test, or the list its line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TOP = Path(__file__).parent.parent
SECONDS = 240


@dataclass(frozen=True)
class Mutant:
    """Text of `file` (below fostore/) that is replaced, and the test that fails then."""

    name: str
    file: str
    old: str
    new: str
    test: str


def listed(text: str) -> list[Mutant]:
    """Those of `mutants.diff`, which says at its top how it is written."""
    mutants = []
    for section in text.split("\n# ")[1:]:
        file, *lines = section.rstrip("\n").split("\n")
        starts = [at for at, line in enumerate(lines) if line[0] not in "-+ "]
        for start, stop in pairwise([*starts, len(lines)]):
            name, test = lines[start].split(": ", 1)
            hunk = lines[start + 1 : stop]
            old, new = ("\n".join(line[1:] for line in hunk if line[0] != out) for out in "+-")
            mutants.append(Mutant(name, file, old, new, test))
    return mutants


MUTANTS = listed((Path(__file__).parent / "mutants.diff").read_text(encoding="utf-8"))


def tried(mutant: Mutant) -> str | None:
    """Why a break counts as not noticed; None where its test fails as it must."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis"
        )
        shutil.copytree(TOP, copy, ignore=ignored)
        path = copy / "fostore" / mutant.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return f"its text is there {text.count(mutant.old)} times in {mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        given = {
            "PYTHONPATH": str(copy),
            "FOSTORE_POWER_CUTS": "150",
            "FOSTORE_FAULTS": "60",
            "CI": "1",
        }
        asked = ["-x", "-q", "-p", "no:cacheprovider", f"tests/{mutant.test}"]
        command = [sys.executable, "-m", "pytest", *asked]
        try:
            done = subprocess.run(
                command,
                cwd=copy,
                env={**os.environ, **given},
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{mutant.test} did not end in {SECONDS} s"
        if done.returncode == 1:
            return None
        said = (
            "passes"
            if done.returncode == 0
            else f"ends with {done.returncode}: {done.stdout[-300:]}"
        )
        return f"{mutant.test} {said}"


def main() -> None:
    """Try all, or those that are named."""
    names = set(sys.argv[1:])
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    survived = 0
    with ThreadPoolExecutor(int(os.environ.get("WORKERS", "2"))) as pool:
        for mutant, why in zip(chosen, pool.map(tried, chosen), strict=True):
            survived += why is not None
            print(f"{mutant.name:30} {'caught' if why is None else 'SURVIVED: ' + why}", flush=True)
    print(f"{len(chosen)} breaks, {survived} survived")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
