"""What is said on the way: progress on stderr, the logger `fostore`, receipts on stdout, `fostore concat`."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from command import run
from fostore import progress
from fostore.errors import ArgumentError
from fostore.progress import Progress
from support import probs

N, K = 100, 4

pytestmark = pytest.mark.usefixtures("fast_disk")


def make(path: Path, seed: int = 0, **more: Any) -> Path:
    more = {"class_names": list("abcd"), "ids": [f"{path.stem}-{i}" for i in range(N)], **more}
    with fostore.create(path, num_samples=N, num_classes=K, **more) as writer:
        writer.append(probs(N, K, seed=seed))
    return path


# ------------------------------------------------------------------ progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


@pytest.mark.usefixtures("often")
def test_where_stderr_is_no_terminal_progress_is_whole_lines(capsys: pytest.CaptureFixture) -> None:
    with Progress(True, 4000, 1000, "a\rname\n", unit="rows") as bar:
        bar.add(1000)
        bar.add(2000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("a name: 2,000 of 4,000 rows (50%), 0 s, ")
    assert lines[-1].startswith("a name: 4,000 of 4,000 rows (100%)")


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture) -> None:
    with Progress(True, None) as bar:
        bar.add(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("often")
def test_a_reader_of_lines_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(True, None) as bar:
        bar.add(5)
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(True, None) as bar:
        bar.add(5)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(True, 10, name="converting", unit="rows") as bar:
        bar.add(10)
    assert "\rconverting: 100%" in sys.stderr.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("often")
def test_the_library_and_the_command_line_say_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = make(tmp_path / "a.zarr")
    fostore.convert(path, tmp_path / "b.h5")
    err = capsys.readouterr().err
    assert "converting: 100 of 100 rows (100%)" in err
    assert "verifying: 100 of 100 rows (100%)" in err
    assert "\r" not in err
    assert "converting: 100" in run("convert", path, tmp_path / "c.h5")[2]
    assert run("convert", path, tmp_path / "d.h5", "--no-progress")[2] == ""


# ------------------------------------------------------------------ the log


def test_begin_and_end_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fostore")
    model = fostore.FirstOrderDataGenerator(
        lambda x: x / x.sum(1, keepdims=True), output_mode="probs"
    )
    store = tmp_path / "a.zarr"
    model.generate_distributions(np.ones((7, 2), np.float32), progress=False, store=store)
    fostore.convert(store, tmp_path / "b.h5", progress=False)
    digest = fostore.open(store).digest()
    assert [record.name for record in caplog.records] == ["fostore"] * 4
    assert [record.levelname for record in caplog.records] == ["INFO"] * 4
    begins = [
        f"generating {store}: 7",
        f"generated {store}: 7 rows",
        f"converting {store} to",
        f"converted {store} (zarr) -> {tmp_path / 'b.h5'}",
    ]
    for begin, message in zip(begins, caplog.messages, strict=True):
        assert message.startswith(begin)
    assert digest in caplog.messages[1]
    assert digest in caplog.messages[3]


def test_nothing_is_printed_where_nobody_asked_for_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fostore.convert(make(tmp_path / "a.zarr"), tmp_path / "b.h5", progress=False)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------ receipts


@pytest.mark.parametrize("arguments", [["--json"], ["--receipt", "-"], ["--json", "--quiet"]])
def test_the_receipt_is_json_on_stdout(tmp_path: Path, arguments: list[str]) -> None:
    path = make(tmp_path / "a.zarr")
    code, out, err = run("convert", path, tmp_path / "b.h5", *arguments)
    assert (code, err) == (0, "")
    assert json.loads(out)["destination_digest"] == fostore.open(path).digest()
    assert not (tmp_path / "-").exists()


def test_a_receipt_does_not_mix_with_rows(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr")
    code, out, err = run("convert", path, "-", "--receipt", "-")
    assert (code, out) == (2, "")
    assert "name a file for the receipt" in err
    code, out, err = run("convert", path, "-", "--json")
    assert code == 0
    assert json.loads(err)["num_rows"] == N
    assert "destination_digest" not in out


def test_quiet_says_nothing_and_errors_are_said(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zarr")
    assert run("convert", path, tmp_path / "b.h5", "-q") == (0, "", "")
    code, out, err = run("convert", path, tmp_path / "b.h5", "-q")
    assert (code, out) == (1, "")
    assert "exists" in err
    one, two = make(tmp_path / "1.zarr", ids=None), make(tmp_path / "2.zarr", 1, ids=None)
    code, out, _ = run("stack", one, two, "-o", tmp_path / "e.zarr", "--json")
    assert (code, json.loads(out)["num_rows"]) == (0, N)
    assert run("stack", one, two, "-o", tmp_path / "f.zarr", "--quiet") == (0, "", "")


# ------------------------------------------------------------------ concat


def test_concat_puts_stores_and_files_one_after_another(tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.zarr"), make(tmp_path / "b.h5", 1), make(tmp_path / "c.zarr", 2)]
    fostore.convert(parts[2], tmp_path / "c.parquet", progress=False)
    parts[2] = tmp_path / "c.parquet"
    code, out, err = run("concat", *parts, "-o", tmp_path / "all.zarr")
    assert (code, err) == (0, "")
    assert "joined 3 sources" in out
    with fostore.open(tmp_path / "all.zarr") as store:
        assert len(store) == 3 * N
        assert np.array_equal(store["b-7"], probs(N, K, seed=1)[7])
        assert store.verify() == []


def test_concat_takes_the_options_of_convert(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", ids=None)
    np.savetxt(
        tmp_path / "b.csv", probs(N, K, seed=1), delimiter=",", header="p0,p1,p2,p3", comments=""
    )
    code, _, err = run(
        "concat", store, tmp_path / "b.csv", "-o", tmp_path / "all.h5",
        "--source-dtype", "float32", "--class-names", "a,b,c,d", "--meta", "x=1", "--rows", "0:150",
    )  # fmt: skip
    assert code == 0, err
    joined = fostore.open(tmp_path / "all.h5")
    assert (len(joined), joined.schema.class_names, joined.meta) == (150, tuple("abcd"), {"x": 1})


def csv(path: Path, columns: int = K) -> Path:
    head = ",".join(f"p{i}" for i in range(columns))
    np.savetxt(path, probs(N, columns, seed=1), delimiter=",", header=head, comments="")
    return path


def logs(path: Path) -> Path:
    fostore.convert(
        make(path.with_name("p.zarr"), ids=None),
        path,
        kind="log_probs",
        allow_lossy=True,
        progress=False,
    )
    return path


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda p: csv(p / "b.csv"),
            r"'float64', expected 'float32'; source_dtype= \(--source-dtype\)",
        ),
        (
            lambda p: make(p / "b.zarr", dtype="float16", ids=None),
            r"first, with dtype= \(--dtype\)",
        ),
        (
            lambda p: make(p / "b.zarr", class_names=None, ids=None),
            r"class_names= \(--class-names\)",
        ),
        (
            lambda p: make(p / "b.zarr", class_names="dcba", ids=None),
            r"classes= \(--classes\), which",
        ),
        (
            lambda p: make(p / "b.zarr"),
            r"its columns are \['probs', 'sample_id'\], expected \['probs'\]",
        ),
        (lambda p: make(p / "b.zarr", temperature=2.0, ids=None), "do not belong into one store"),
        (lambda p: logs(p / "b.zarr"), r"first, with kind= \(--kind\)"),
    ],
)
def test_what_differs_is_named_with_the_option_that_cures_it(
    tmp_path: Path, other: Any, message: str
) -> None:
    first = make(tmp_path / "a.zarr", ids=None)
    second = other(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        fostore.convert([first, second], tmp_path / "c.zarr", progress=False)
    code, _, err = run("concat", first, second, "-o", tmp_path / "c.zarr")
    assert code == 2
    assert "cannot follow" in err
    assert not (tmp_path / "c.zarr").exists()


def test_one_id_in_two_sources_is_refused(tmp_path: Path) -> None:
    one, two = (
        make(tmp_path / "a.zarr"),
        make(tmp_path / "b.zarr", 1, ids=[f"a-{i}" for i in range(N)]),
    )
    code, _, err = run("concat", one, two, "-o", tmp_path / "c.zarr")
    assert code == 1
    assert "'a-0'" in err
    assert not (tmp_path / "c.zarr").exists()


def test_concat_shows_its_plan(tmp_path: Path) -> None:
    parts = [make(tmp_path / "a.zarr"), make(tmp_path / "b.zarr", 1)]
    code, out, _ = run("concat", *parts, "-o", tmp_path / "c.zarr", "--dry-run")
    assert code == 0
    assert "200" in out
    assert not (tmp_path / "c.zarr").exists()
