"""What a stranger hands over is refused by every command and verb alike, quickly, and is never read without end."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.conversion import convert, stack
from fostore.errors import ArgumentError, FormatError, FostoreError
from fostore.evaluate import compare, entropy, summarize
from support import probs

N, K = 40, 3


def make(path: Path) -> Path:
    with fostore.create(path, num_samples=N, num_classes=K) as writer:
        writer.append(probs(N, K))
    return path


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _giant(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def _link(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other) if path.exists() else other.write_bytes(b"{}")
    path.symlink_to(other)


def _socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


TRAPS: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "an endless device": _endless,
    "1 TB of zeros": _giant,
    "a link": _link,
    "a folder": _folder,
    "a socket": _socket,
}

VERBS: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda path, _: fostore.open(path),
    "resume": lambda path, _: fostore.create(path, exists="resume"),
    "convert": lambda path, out: convert(path, out / "o.npz", progress=False, allow_lossy=True),
    "stack": lambda path, out: stack([path], out / "o.zarr", progress=False),
    "generate": lambda path, _: fostore.FirstOrderDataGenerator(
        lambda x: x, output_mode="probs"
    ).generate_distributions(probs(N, K), False, store=path),
    "pair": lambda path, _: fostore.FirstOrderDataset(probs(N, K), path),
    "entropy": lambda path, _: entropy(path),
    "compare": lambda path, _: compare(path, path),
    "summarize": lambda path, _: summarize(path),
}

_FILES = ("zarr.json", "probs/zarr.json")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("file", _FILES)
def test_a_trap_in_the_place_of_metadata_is_refused_by_every_verb(
    file: str, trap: str, verb: str, tmp_path: Path
) -> None:
    store = make(tmp_path / "s.zarr")
    TRAPS[trap](store / file)
    with within(), pytest.raises(FormatError) as caught:
        VERBS[verb](store, tmp_path)
    assert "zarr.json" in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"s.zarr"}


FILES = (
    ".h5",
    ".json",
    ".npy",
    ".npz",
    ".safetensors",
    ".parquet",
    ".arrow",
    ".csv",
    ".jsonl",
    ".pt",
)


@pytest.mark.parametrize("suffix", FILES)
@pytest.mark.parametrize("trap", ["a pipe", "an endless device", "a folder", "a socket"])
def test_a_trap_in_the_place_of_a_file_is_refused_by_every_verb(
    trap: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"s{suffix}"
    TRAPS[trap](path)
    for verb, call in VERBS.items():
        if suffix in (".h5", ".json") or verb in (
            "convert",
            "stack",
            "entropy",
            "compare",
            "summarize",
        ):
            with within(), pytest.raises(FostoreError):
                call(path, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if trap != "a link"])
def test_a_trap_in_the_place_of_labels_is_refused(trap: str, tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    for name in ("y.npy", "y.txt"):
        TRAPS[trap](tmp_path / name)
        with within(), pytest.raises(ArgumentError, match="labels cannot be read"):
            summarize(store, tmp_path / name)


def test_labels_that_claim_more_than_their_file_take_no_memory(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr")
    path = tmp_path / "y.npy"
    np.save(path, np.zeros(N, np.int64))
    path.write_bytes(path.read_bytes().replace(b"(40,), }            ", b"(40000000000000,), }"))
    with within(), pytest.raises(ArgumentError, match=r"labels cannot be read.*its header lies"):
        summarize(store, path)


COMMANDS = [
    ["info", "{}"],
    ["verify", "{}"],
    ["meta", "{}"],
    ["meta", "{}", "--set", "a=1"],
    ["head", "{}"],
    ["stats", "{}"],
    ["compare", "good.zarr", "{}"],
    ["convert", "{}", "o.npz", "--allow-lossy"],
    ["convert", "{}", "o.npz", "--dry-run"],
    ["stack", "good.zarr", "{}", "-o", "o.zarr"],
    ["generate", "model.py:model", "model.py:data", "-o", "{}"],
    ["convert", "good.zarr", "o.zarr", "--ids", "@{}/zarr.json"],
    ["convert", "good.zarr", "o.zarr", "--class-names", "@{}/zarr.json"],
    ["generate", "model.py:model", "model.py:data", "-o", "o.zarr", "--meta-file", "{}/zarr.json"],
    ["stats", "good.zarr", "--labels", "{}/zarr.json"],
]

_ALL = """\
import json, sys
from typer.testing import CliRunner
from fostore.cli import app
for command in json.load(sys.stdin):
    result = CliRunner().invoke(app, command)
    print(json.dumps([result.exit_code, result.stderr.splitlines(), repr(result.exception)]), flush=True)
"""


@pytest.mark.parametrize("trap", ["a pipe", "an endless device", "1 TB of zeros"])
def test_every_command_refuses_a_hostile_folder_in_one_line_and_at_once(
    trap: str, tmp_path: Path
) -> None:
    TRAPS[trap](make(tmp_path / "bad.zarr") / "zarr.json")
    make(tmp_path / "good.zarr")
    (tmp_path / "model.py").write_text(
        "import numpy as np\ndata = np.eye(3)\ndef model(x):\n    return x\n"
    )
    commands = [[part.format("bad.zarr") for part in command] for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", _ALL],
        input=json.dumps(commands),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(commands), done.stderr
    for command, (code, lines, exception) in zip(commands, results, strict=True):
        assert code in (2, 3), (command, code, lines, exception)
        assert lines[0].startswith("error: "), (command, lines)
        assert "zarr.json" in lines[0], (command, lines)
    assert {p.name for p in tmp_path.iterdir()} <= {
        "bad.zarr",
        "good.zarr",
        "model.py",
        "__pycache__",
    }


class within:
    """Ends what takes longer than ten seconds."""

    def __enter__(self) -> None:
        def late(*_: object) -> None:
            raise AssertionError("it waited for, or read, what has no end")

        self._before = signal.signal(signal.SIGALRM, late)
        signal.alarm(10)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._before)
