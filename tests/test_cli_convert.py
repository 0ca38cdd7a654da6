"""`fostore convert`, `stack`, `head` and `meta`: what is printed, what is written, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fostore
from command import run
from support import SUFFIXES, probs

N, K = 300, 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make(tmp_path / "a.zarr")


def make(path: Path, seed: int = 0) -> Path:
    with fostore.create(
        path,
        num_samples=N,
        num_classes=K,
        class_names=list("abcd"),
        ids=[f"s{i}" for i in range(N)],
    ) as writer:
        writer.append(probs(N, K, seed=seed))
    return path


def test_convert_prints_the_receipt_and_writes_it(tmp_path: Path, store: Path) -> None:
    code, out, err = run("convert", store, tmp_path / "b.h5", "--receipt", tmp_path / "r.json")
    assert (code, err) == (0, "")
    digest = fostore.open(store).digest()
    assert digest in out.split()
    assert "another than the source's" not in out
    assert json.loads((tmp_path / "r.json").read_text())["source_digest"] == digest


@pytest.mark.parametrize("command", ["convert", "concat", "stack", "publish"])
def test_an_interruption_says_that_the_same_command_goes_on(
    tmp_path: Path, store: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("cli.convert._convert", "conversion.stack", "publishing.publish"):
        monkeypatch.setattr(f"fostore.{name}", interrupted)
    where = ["-o"] if command in ("concat", "stack") else []
    code, _, err = run(command, store, *where, tmp_path / "b.zarr")
    assert (code, err) == (130, "interrupted: run the same command to go on where it stopped\n")


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, store: Path) -> None:
    code, out, _ = run("convert", store, tmp_path / "b.h5", "--dry-run", "--dtype", "float16")
    assert code == 0
    assert "peak memory" in out
    assert "lossy        dtype: float32 became float16" in out
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    command = ["convert", store, tmp_path / "b.h5", "--dry-run", "--dtype", "float16", "--json"]
    code, out, _ = run(*command)
    plan = json.loads(out)
    assert code == 0
    assert (plan["rows"], plan["row_shape"], plan["dtype"]) == (N, [K], "float16")
    assert plan["lossy"] == ["dtype: float32 became float16"]
    assert plan["needs"] == ["--allow-lossy"]


@pytest.mark.parametrize(
    "option", [("--rows", "0:{}"), ("--classes", "{}"), ("--max-memory", "{}M")], ids=lambda o: o[0]
)
@pytest.mark.parametrize("digits", [19, 5000])
def test_a_number_of_thousands_of_digits_is_told_and_not_a_bug(
    tmp_path: Path, store: Path, option: tuple[str, str], digits: int
) -> None:
    name, form = option
    code, _, err = run("convert", store, tmp_path / "b.h5", name, form.format("9" * digits))
    assert code == 2
    assert err == f"error: {name} holds a number of {digits:,} digits, expected one of at most 18\n"


def test_every_change_has_its_option(tmp_path: Path, store: Path) -> None:
    (tmp_path / "keys").write_text("".join(f"{i}\n" for i in range(N)))
    code, out, _ = run(
        "convert", store, tmp_path / "b.zarr",
        "--rows", "10:20:2", "--classes", "d,0", "--dtype", "float16", "--kind", "log_probs",
        "--allow-lossy", "--meta", "x=1", "--max-memory", "300M", "--verify", "sample",
        "--unit-rows", "4096",
    )  # fmt: skip
    assert code == 0, out
    there = fostore.open(tmp_path / "b.zarr")
    assert (len(there), there.schema.kind, there.schema.dtype) == (5, "log_probs", "float16")
    assert there.schema.class_names == ("d", "a")
    assert list(there.ids) == ["s10", "s12", "s14", "s16", "s18"]
    assert there.meta == {"x": 1}
    assert "measured" in out
    assert "verified  sample" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dtype", "float16"], 2, "--allow-lossy"),
        (["--rows", "5"], 2, "--rows is '5'"),
        (["--rows", "1:2:0"], 2, "with step > 0"),
        (["--max-memory", "much"], 2, "--max-memory is 'much'"),
        (["--max-memory", "1M"], 2, "--max-memory"),
        (["--ids", "keys"], 2, "--ids is 'keys'"),
        (["--meta", "x"], 2, "--meta is 'x'"),
        (["--classes", "zebra"], 2, "there is no class 'zebra'"),
        (["--exists", "maybe"], 2, "maybe"),
    ],
)
def test_wrong_usage_ends_with_two_and_names_the_option(
    tmp_path: Path, store: Path, arguments: list[str], code: int, message: str
) -> None:
    ended, _, err = run("convert", store, tmp_path / "b.h5", *arguments)
    assert ended == code
    assert message in err
    assert not (tmp_path / "b.h5").exists()


def test_a_key_of_thousands_of_digits_is_a_text(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", probs(2, K))
    (tmp_path / "keys").write_text("9" * 200 + "\n1\n")
    code, out, _ = run(
        "convert", tmp_path / "p.npy", tmp_path / "b.zarr", "--ids", f"@{tmp_path}/keys"
    )
    assert code == 0, out
    assert list(fostore.open(tmp_path / "b.zarr").ids) == ["9" * 200, "1"]
    (tmp_path / "keys").write_text("9" * 5000 + "\n1\n")
    code, _, err = run(
        "convert", tmp_path / "p.npy", tmp_path / "c.zarr", "--ids", f"@{tmp_path}/keys"
    )
    assert code == 2, err


def test_failures_have_their_exit_codes(tmp_path: Path, store: Path) -> None:
    code, _, err = run("convert", tmp_path / "no.zarr", tmp_path / "b.h5")
    assert code == 3
    assert "there is nothing at" in err
    run("convert", store, tmp_path / "b.h5")
    code, _, err = run("convert", store, tmp_path / "b.h5")
    assert code == 1
    assert "--exists" in err
    assert run("convert", store, tmp_path / "b.h5", "--exists", "resume")[0] == 0
    assert run("convert", store, tmp_path / "b.h5", "--exists", "overwrite")[0] == 0
    code, _, err = run("convert", store, tmp_path / "b.what")
    assert code == 2
    assert ".what" in err


def test_stack_makes_one_store_of_members(tmp_path: Path, store: Path) -> None:
    other = make(tmp_path / "b.zarr", seed=1)
    code, out, _ = run("stack", store, other, "-o", tmp_path / "e.h5", "--meta", "name=pair")
    assert code == 0, out
    there = fostore.open(tmp_path / "e.h5")
    assert there.shape == (N, 2, K)
    assert there.meta["name"] == "pair"
    code, _, err = run("stack", store, tmp_path / "e.h5", "-o", tmp_path / "f.h5")
    assert code == 2
    assert "members already" in err


def test_head_shows_the_largest_classes_or_whole_rows(tmp_path: Path, store: Path) -> None:
    code, out, _ = run("head", store, "-n", "2")
    rows = probs(2, K)
    assert code == 0
    assert out.splitlines()[0].startswith(f"0 (s0): {'abcd'[rows[0].argmax()]} {rows[0].max():.4f}")
    assert len(out.splitlines()) == 2
    code, out, _ = run("head", store, "-n", "1", "--json")
    assert json.loads(out) == {"index": 0, "id": "s0", "probs": [float(x) for x in rows[0]]}
    assert run("head", store, "-n", "0")[1] == ""


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".parquet", ".jsonl"])
@pytest.mark.parametrize("named", [True, False])
def test_head_shows_labels_where_they_are_kept(tmp_path: Path, suffix: str, named: bool) -> None:
    names = {"class_names": ["cat", "dog", "emu", "fox"]} if named else {}
    first = tmp_path / "first.zarr"
    with fostore.create(
        first, num_samples=N, num_classes=K, class_labels=np.arange(N) % K, **names
    ) as writer:
        writer.append(probs(N, K))
    path = first.with_suffix(suffix)
    if path != first:
        fostore.convert(first, path, progress=False)
    lines = run("head", path, "-n", "3")[1].splitlines()
    shown = ["cat", "dog", "emu"] if named else ["0", "1", "2"]
    assert [line.partition(":")[0] for line in lines] == [
        f"{i}, label {name}" for i, name in enumerate(shown)
    ]
    assert json.loads(run("head", path, "-n", "1", "--json")[1])["label"] == 0


def test_head_shows_what_an_unfinished_store_has(tmp_path: Path) -> None:
    writer = fostore.create(tmp_path / "a.zarr", num_samples=N, num_classes=K)
    writer.append(probs(3, K))
    writer.close()
    assert len(run("head", tmp_path / "a.zarr")[1].splitlines()) == 3


def test_head_says_that_the_first_rows_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    writer = fostore.create(path, num_samples=N, num_classes=K)
    writer.write(3, probs(N - 3, K))
    writer.close()
    words = f"rows 0 to 2 of {path} are missing: its first rows are not there yet\n"
    assert run("head", path) == run("head", path, "--json") == (0, "", words)
    assert run("head", path, "-n", "0") == (0, "", "")
    code, _, err = run("convert", path, tmp_path / "b.h5")
    assert (code, err) == (1, f"error: rows 0 to 2 of {path} are missing; finish the store\n")


def test_head_says_that_there_are_no_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.empty((0, 3)))
    assert run("head", tmp_path / "a.npy", "--kind", "probs")[1:] == (
        "",
        f"{tmp_path / 'a.npy'} has no rows\n",
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_meta_changes_no_digest(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"m{suffix}")
    digest = fostore.open(path).digest()
    code, out, _ = run("meta", path, "--set", "license=MIT", "--set", 'authors=["Ada"]')
    assert code == 0
    assert json.loads(out) == {"license": "MIT", "authors": ["Ada"]}
    run("meta", path, "--set", "license=BSD")
    store = fostore.open(path)
    assert store.meta == {"license": "BSD", "authors": ["Ada"]}
    assert (store.digest(), store.verify()) == (digest, [])
    assert np.array_equal(store.array, probs(N, K))
    assert json.loads(run("meta", path)[1]) == store.meta


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_meta_of_an_unfinished_store_is_kept_and_finishes_nothing(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"m{suffix}"
    planned = None if suffix == ".zarr" else N
    writer = fostore.create(path, num_samples=planned, num_classes=K)
    writer.append(probs(5, K))
    writer.close()
    assert run("meta", path, "--set", "a=1")[0] == 0
    store = fostore.open(path)
    assert (store.meta, store.is_sealed, len(store)) == ({"a": 1}, False, 5)


def test_meta_of_nothing_or_of_nonsense_is_refused(tmp_path: Path, store: Path) -> None:
    assert run("meta", tmp_path / "no.zarr", "--set", "a=1")[0] == 3
    assert not (tmp_path / "no.zarr").exists()
    code, _, err = run("meta", store, "--set", "a")
    assert code == 2
    assert "--set is 'a'" in err


@pytest.mark.parametrize("command", ["convert", "stack", "head", "meta"])
def test_every_command_explains_itself(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Examples" in out


@pytest.mark.filterwarnings("always::UserWarning")  # as errors they would never be shown
def test_a_warning_is_one_line_that_names_no_code(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", probs(9, K))
    command = ["convert", tmp_path / "p.npy", tmp_path / "b.zarr", "--source-kind", "logits"]
    code, _, err = run(*command, "--no-progress")
    assert code == 0, err
    assert [line[:9] for line in err.splitlines()] == ["warning: "]
    assert "the first rows are probabilities" in err
