"""What a user names as a place: urls are no folders, writers follow links once, `::` splits what is not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.conversion import convert, stack
from fostore.conversion.options import Options
from fostore.conversion.plan import prepare
from fostore.errors import (
    ArgumentError,
    PlaceError,
    StoreExistsError,
    StoreNotFoundError,
    UnsafeError,
)
from fostore.evaluate import compare, entropy, summarize
from fostore.evaluate.labels import labels_of
from fostore.evaluate.pictures import plot_summary
from fostore.evaluate.sources import rows_of
from fostore.places.names import destination, inside, local_path
from support import SUFFIXES, probs

N, K = 40, 3
ALL = (".zarr", ".h5", ".json")
FILES = (".npy", ".npz", ".safetensors", ".parquet", ".arrow", ".csv", ".jsonl", ".pt")


def make(path: Path, seed: int = 0) -> Path:
    with fostore.create(path, num_samples=N, num_classes=K) as writer:
        writer.append(probs(N, K, seed=seed))
    return path


def quiet(source: Any, target: Any, **options: Any) -> Any:
    return convert(source, target, progress=False, **options)


def generate(path: Any, rows: np.ndarray, **options: Any) -> Any:
    generator = fostore.FirstOrderDataGenerator(lambda x: x, output_mode="probs")
    return generator.generate_distributions(rows, False, store=path, **options)


def save(path: Any, rows: np.ndarray) -> None:
    fostore.FirstOrderDataGenerator(lambda x: x).save_distributions(path, dict(enumerate(rows)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ urls

URLS: list[Any] = [
    "ftp://bucket/all.zarr",
    "S3://bucket/all.h5",
    "sftp://host/all.zarr",
    "webdav://host/all.json",
    "hdfs://datasets/me/all.zarr",
    "webdav://bucket/all.h5",
    "file:///tmp/all.zarr",
    "file://all.zarr",
    "zip://all.zarr::archive.zip",
    "simplecache::ftp://bucket/all.zarr",
    "zip::all.zarr",
    "ftp:/bucket/all.zarr",
    Path("ftp://bucket/all.zarr"),
    Path("hdfs://datasets/me/all.json"),
]

VERBS: dict[str, Callable[[Any, Path], Any]] = {
    "open": lambda url, _: fostore.open(url),
    "create": lambda url, _: fostore.create(url, num_samples=1, num_classes=2),
    "convert from": lambda url, _: quiet(url, "b.zarr"),
    "convert to": quiet,
    "the plan": lambda url, store: prepare(store, os.fspath(url), Options()),
    "overwrite": lambda url, store: quiet(store, url, exists="overwrite"),
    "receipt": lambda url, store: quiet(store, "b.zarr", receipt=url),
    "stack from": lambda url, store: stack([store, url], "b.zarr"),
    "stack to": lambda url, store: stack([store, store], url),
    "generate": lambda url, _: generate(url, probs(N, K)),
    "save": lambda url, _: save(url, probs(N, K)),
    "load": lambda url, _: fostore.FirstOrderDataGenerator(len).load_distributions(url),
    "pair": lambda url, _: fostore.FirstOrderDataset(probs(N, K), url),
    "entropy": lambda url, _: entropy(url),
    "compare": lambda url, store: compare(store, url),
    "labels": lambda url, store: summarize(store, url),
    "plot": lambda url, store: plot_summary(summarize(store), os.fspath(url) + ".png"),
}


def to(url: Any, store: Path) -> Any:
    return quiet(store, url)


VERBS["convert to"] = to


@pytest.mark.parametrize("verb", VERBS)
def test_a_url_is_refused_by_name_and_nothing_is_written(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = make(tmp_path / "a.zarr")
    for url in URLS:
        with pytest.raises(ArgumentError, match="is a url") as caught:
            VERBS[verb](url, store)
        scheme = os.fspath(url).partition(":")[0]
        assert scheme in str(caught.value)
    assert names_in(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "a.zarr", "ftp://bucket/b.zarr"],
        ["convert", "a.zarr", "ftp://bucket/b.zarr", "--dry-run"],
        ["convert", "ftp://bucket/a.zarr", "b.zarr"],
        ["convert", "a.zarr", "b.zarr", "--receipt", "ftp://bucket/r.json"],
        ["convert", "a.zarr", "b.zarr", "--ids", "@ftp://bucket/keys.txt"],
        ["stack", "a.zarr", "a.zarr", "-o", "ftp://bucket/b.zarr"],
        ["generate", "model.py:model", "model.py:data", "-o", "ftp://bucket/b.zarr"],
        ["info", "ftp://bucket/a.zarr"],
        ["verify", "ftp://bucket/a.zarr"],
        ["meta", "ftp://bucket/a.zarr"],
        ["head", "ftp://bucket/a.zarr"],
        ["stats", "ftp://bucket/a.zarr"],
        ["stats", "a.zarr", "--labels", "ftp://bucket/y.npy"],
        ["stats", "a.zarr", "--plot", "ftp://bucket/y.png"],
        ["compare", "a.zarr", "ftp://bucket/a.zarr"],
        ["demo", "--folder", "ftp://bucket/demo"],
    ],
    ids=" ".join,
)
def test_a_url_on_the_command_line_is_wrong_usage(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.zarr")
    (tmp_path / "model.py").write_text(
        "import numpy as np\ndata = np.eye(3)\ndef model(x):\n    return x\n"
    )
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert "'ftp://bucket/" in result.stderr
    assert set(names_in(tmp_path)) <= {"a.zarr", "model.py", "__pycache__"}


def test_the_cure_for_a_file_url_is_followed(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    with pytest.raises(ArgumentError, match="give the path alone") as caught:
        fostore.open(f"file://{store}")
    path = str(caught.value).rpartition("alone: ")[2].strip("'")
    assert len(fostore.open(path)) == N


def test_a_folder_that_is_called_like_a_scheme_has_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = make(tmp_path / "s3:" / "a.zarr")
    assert len(fostore.open(store)) == N
    with pytest.raises(ArgumentError, match="called 'ftp:' give the absolute path"):
        fostore.open("ftp:/a.zarr")


@pytest.mark.parametrize(
    "text", ["C:/x.zarr", "c:\\x.zarr", "a:b.zarr", "run 1: x/y.zarr", "./ftp:/x.zarr"]
)
def test_what_is_no_url_is_a_path(text: str) -> None:
    assert local_path(text) == Path(text)


@pytest.mark.parametrize("value", ["", "a\0b", None, 3, b"x.zarr"])
def test_what_can_name_no_file_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match="a path is"):
        fostore.open(value)


def test_the_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with fostore.create("~/a.zarr", num_samples=N, num_classes=K) as writer:
        writer.append(probs(N, K))
    quiet("~/a.zarr", "~/b.npy")
    assert names_in(tmp_path) == ["a.zarr", "b.npy"]
    assert len(fostore.open("~/a.zarr")) == N


# ------------------------------------------------------------------ `::`


@pytest.mark.parametrize("name", ["a::b.zarr", "a::b.h5", "run::1/a.zarr", "x::y/z::w.npy"])
def test_two_colons_in_a_path_that_exists_are_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, probs(N, K))
    else:
        make(path)
    quiet(name, "out.zarr")
    assert np.array_equal(fostore.open("out.zarr").array, probs(N, K))
    assert len(entropy(name)) == N
    with pytest.raises(ArgumentError, match="source as well"):
        quiet(name, name, exists="overwrite")


def test_the_longest_part_that_exists_is_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "run::1"
    folder.mkdir()
    with h5py.File(folder / "a.h5", "w") as file:
        file["val/probs"] = probs(N, K)
    assert inside(f"{folder}/a.h5::val/probs") == (folder / "a.h5", "val/probs")
    assert inside("a.h5::val::probs") == (Path("a.h5"), "val::probs")
    quiet(f"{folder}/a.h5::val/probs", tmp_path / "b.zarr")
    assert len(fostore.open(tmp_path / "b.zarr")) == N


def test_a_pattern_in_a_folder_with_two_colons_names_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "run::1"
    folder.mkdir()
    for i in range(2):
        np.save(folder / f"{i}.npy", probs(N, K, start=i * N))
    quiet(f"{folder}/*.npy", tmp_path / "b.zarr")
    assert np.array_equal(fostore.open(tmp_path / "b.zarr").array, probs(2 * N, K))


# ------------------------------------------------------------------ links at the destination


def elsewhere(tmp_path: Path) -> Path:
    """A folder on another file system where there is one, else just another folder."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.stat(shared).st_dev != os.stat(tmp_path).st_dev:
        return shared / f"fostore-{os.getpid()}-{tmp_path.name}"
    return tmp_path / "scratch"


@pytest.fixture
def scratch(tmp_path: Path) -> Any:
    folder = elsewhere(tmp_path)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def create(path: Path, rows: np.ndarray) -> None:
    with fostore.create(path, num_samples=N, num_classes=K, exists="overwrite") as writer:
        writer.append(rows)


def converted(path: Path, rows: np.ndarray) -> None:
    quiet(saved(path, rows), path, exists="overwrite", allow_lossy=True)


def saved(beside: Path, rows: np.ndarray) -> Path:
    source = beside.parent.parent / "source.npy"
    np.save(source, rows)
    return source


def stacked(path: Path, rows: np.ndarray) -> None:
    stack([saved(path, rows)], path, exists="overwrite", progress=False)


def rows_in(path: Path) -> np.ndarray:
    if path.suffix in ALL:
        found = fostore.open(path)[:]
    else:
        found = np.concatenate(
            [b[0] for b in fostore.conversion.sources.open_table(path).batches(0, N)]
        )
    return found.reshape(N, K)


WRITERS: list[tuple[str, Callable[[Path, np.ndarray], Any]]] = [
    *((suffix, create) for suffix in SUFFIXES),
    *((suffix, converted) for suffix in (*ALL, *FILES)),
    *((suffix, stacked) for suffix in ALL),
    *((suffix, lambda path, rows: generate(path, rows, exists="overwrite")) for suffix in SUFFIXES),
    (".json", save),
]


@pytest.mark.parametrize(("suffix", "write"), WRITERS)
def test_an_overwrite_through_a_link_replaces_what_it_leads_to(
    suffix: str, write: Callable[..., Any], home: Path, scratch: Path
) -> None:
    real, link = scratch / f"a{suffix}", home / f"t{suffix}"
    link.symlink_to(real)
    for seed in (0, 1):  # the first time the link leads to what is not there yet
        write(link, probs(N, K, seed=seed))
        assert os.path.islink(link)
        assert not os.path.islink(real)
        np.testing.assert_allclose(rows_in(real), probs(N, K, seed=seed), rtol=1e-6)
    assert names_in(home) == [link.name]
    assert names_in(scratch) == [real.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_resume_through_links_goes_on_with_what_they_lead_to(
    suffix: str, home: Path, scratch: Path
) -> None:
    real = scratch / f"a{suffix}"
    (home / f"first{suffix}").symlink_to(real)
    link = home / f"second{suffix}"
    link.symlink_to(f"first{suffix}")
    for start in (0, N // 2):
        writer = fostore.create(link, num_samples=N, num_classes=K, exists="resume")
        assert len(writer) == start
        writer.append(probs(N // 2, K, start=start))
        writer.commit()
        if not writer.missing():
            writer.seal()
        writer.close()
    assert np.array_equal(fostore.open(real).array, probs(N, K))
    with pytest.raises(StoreExistsError):
        fostore.create(link, num_samples=N, num_classes=K)
    assert names_in(scratch) == [real.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_names_of_one_store_have_one_writer(suffix: str, home: Path, scratch: Path) -> None:
    real, link = scratch / f"a{suffix}", home / f"t{suffix}"
    link.symlink_to(real)
    with (
        fostore.create(real, num_samples=N, num_classes=K) as writer,
        pytest.raises(fostore.errors.LockedError),
    ):
        writer.append(probs(N, K))
        fostore.create(link, exists="resume")


@pytest.mark.parametrize("suffix", ALL)
def test_a_folder_on_the_way_may_be_a_link(suffix: str, home: Path, scratch: Path) -> None:
    (home / "runs").symlink_to(scratch)
    converted(home / "runs" / f"a{suffix}", probs(N, K))
    converted(home / "runs" / f"a{suffix}", probs(N, K, seed=1))
    assert names_in(scratch) == [f"a{suffix}"]
    np.testing.assert_allclose(rows_in(scratch / f"a{suffix}"), probs(N, K, seed=1), rtol=1e-6)


BROKEN = {
    "into no folder": (
        "gone/a",
        "is no folder; mount its disk, make the folder, or remove the link",
    ),
    "to itself": ("loop", "leads to itself"),
}


@pytest.mark.parametrize(
    ("suffix", "write", "broken", "on_the_way"),
    [
        *((suffix, write, "into no folder", False) for suffix, write in WRITERS),
        *(
            (".h5", write, broken, on_the_way)
            for write in (create, converted)
            for broken in BROKEN
            for on_the_way in (False, True)
        ),
    ],
)
def test_a_link_that_leads_nowhere_is_refused_before_the_work(
    suffix: str, write: Callable[..., Any], broken: str, on_the_way: bool, home: Path
) -> None:
    to, words = BROKEN[broken]
    link = home / ("loop" if on_the_way or to == "loop" else "t")
    link = link if on_the_way else link.with_suffix(suffix)
    link.symlink_to(link.name if to == "loop" else f"{to}{'' if on_the_way else suffix}")
    path = link / f"x{suffix}" if on_the_way else link
    with pytest.raises(ArgumentError, match=words):
        write(path, probs(N, K))
    assert set(names_in(home)) <= {link.name, "source.npy"}
    if to != "loop":  # the cure
        (home / "gone").mkdir()
        write(path, probs(N, K))
        np.testing.assert_allclose(rows_in(path), probs(N, K), rtol=1e-6)


def test_a_generator_meets_a_bad_link_before_its_model_runs(home: Path) -> None:
    calls = 0

    def model(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return x

    (home / "t.zarr").symlink_to("gone/a.zarr")
    generator = fostore.FirstOrderDataGenerator(model, output_mode="probs")
    with pytest.raises(ArgumentError, match="is no folder"):
        generator.generate_distributions(probs(N, K), False, store=home / "t.zarr")
    assert calls == 0


@pytest.mark.parametrize("name", ["0a1b2c", "a.h5"])
def test_a_link_to_another_suffix_is_no_destination(name: str, home: Path, scratch: Path) -> None:
    """A blob of a cache, which others share, would be overwritten under a name that says no format."""
    (scratch / name).write_bytes(b"a blob")
    (home / "t.zarr").symlink_to(scratch / name)
    for write in (create, converted):
        with pytest.raises(ArgumentError, match="let both end alike"):
            write(home / "t.zarr", probs(N, K))
    assert (scratch / name).read_bytes() == b"a blob"


def test_receipts_and_plots_are_written_through_links(home: Path, scratch: Path) -> None:
    pytest.importorskip("matplotlib")
    store = make(home / "a.zarr")
    (home / "r.json").symlink_to(scratch / "r.json")
    (home / "p.png").symlink_to(scratch / "p.png")
    for _ in range(2):
        quiet(store, home / "b.npy", exists="overwrite", receipt=home / "r.json")
        plot_summary(summarize(store), home / "p.png")
    assert names_in(scratch) == ["p.png", "r.json"]
    assert os.path.islink(home / "r.json")
    assert os.path.islink(home / "p.png")


@pytest.mark.parametrize("suffix", ALL)
def test_what_a_link_leads_to_is_seen_as_the_source(suffix: str, home: Path, scratch: Path) -> None:
    real = scratch / f"a{suffix}"
    quiet(make(home / "s.zarr"), real)
    (home / f"t{suffix}").symlink_to(real)
    for source, target in [(real, home / f"t{suffix}"), (home / f"t{suffix}", real)]:
        with pytest.raises(ArgumentError, match="source as well"):
            quiet(source, target, exists="overwrite")
    assert np.array_equal(rows_in(real), probs(N, K))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_a_link_is_written_through_keeps_the_old_store_or_has_the_new(
    suffix: str, after: bool, home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each step that changes a name, one after the other: the link always leads to a whole store."""

    def cut(call: Callable[..., Any], step: int) -> Callable[..., Any]:
        def one(*arguments: Any) -> Any:
            taken.append(1)
            if len(taken) > step and not after:
                raise Killed
            result = call(*arguments)
            if len(taken) > step:
                raise Killed
            return result

        return one

    real, link = scratch / f"a{suffix}", home / f"t{suffix}"
    link.symlink_to(real)
    create(link, probs(N, K, seed=9))
    step, ended = 0, False
    while not ended:
        taken: list[int] = []
        with monkeypatch.context() as patch:
            for name in ("rename", "exchange", "write_whole"):
                patch.setattr(fostore.disk, name, cut(getattr(fostore.disk, name), step))
            try:
                create(link, probs(N, K, seed=step % 2))
                ended = True
            except Killed:
                pass
        store = fostore.open(link)
        assert store.verify() == []
        assert any(np.array_equal(store.array, probs(N, K, seed=seed)) for seed in (0, 1, 9))
        assert os.path.islink(link)
        step += 1
    assert step > 2
    assert names_in(scratch) == [real.name]
    assert names_in(home) == [link.name]


# ------------------------------------------------------------------ links inside a source


def hub_cache(folder: Path, store: Path) -> Path:
    """A store as the cache of a hub keeps it: files that are links to blobs."""
    snapshot, blobs = folder / "snapshots" / "1" / store.name, folder / "blobs"
    blobs.mkdir(parents=True)
    files = [store] if store.is_file() else [f for f in store.rglob("*") if f.is_file()]
    for number, file in enumerate(files):
        blob = blobs / f"{number:040x}"
        shutil.copy(file, blob)
        link = snapshot if store.is_file() else snapshot / file.relative_to(store)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda path, _: fostore.open(path).take([1]),
    "convert": lambda path, out: quiet(path, out / "o.npy", allow_lossy=True),
    "stack": lambda path, out: stack([path], out / "o.zarr", progress=False),
    "entropy": lambda path, _: entropy(path),
    "pair": lambda path, _: fostore.FirstOrderDataset(probs(N, K), path)[0],
    "resume": lambda path, _: fostore.create(path, num_samples=N, exists="resume"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_zarr_store_whose_files_are_links_is_refused_with_a_cure_that_works(
    reader: str, tmp_path: Path
) -> None:
    cached = hub_cache(tmp_path / "cache", make(tmp_path / "a.zarr"))
    with pytest.raises(UnsafeError, match=r"cp -rL STORE COPY.*local_dir") as caught:
        READERS[reader](cached, tmp_path)
    assert "is a symbolic link" in str(caught.value)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(cached, copy)  # as cp -rL does
    READERS[reader](copy, tmp_path)


@pytest.mark.parametrize("file", ["probs/c/0/0", "probs/zarr.json", "block_hashes/c/0/0/0"])
def test_a_store_of_which_one_file_is_a_link_is_refused(file: str, tmp_path: Path) -> None:
    """git-annex and DVC make links of large files alone."""
    store = make(tmp_path / "a.zarr")
    os.rename(store / file, tmp_path / "annexed")
    (store / file).symlink_to(tmp_path / "annexed")
    with pytest.raises(UnsafeError, match="cp -rL"):
        fostore.open(store).reader.block_hashes()
        quiet(store, tmp_path / "o.npy")


@pytest.mark.parametrize(
    ("suffix", "reader"),
    [
        *(
            (suffix, reader)
            for suffix in (".h5", ".json")
            for reader in READERS
            if reader != "resume"
        ),
        *((suffix, reader) for suffix in (".npy", ".npz") for reader in ("convert", "entropy")),
    ],
)
def test_one_file_may_itself_be_a_link(suffix: str, reader: str, tmp_path: Path) -> None:
    real = tmp_path / f"a{suffix}"
    quiet(make(tmp_path / "s.zarr"), real, allow_lossy=True)
    READERS[reader](hub_cache(tmp_path / "cache", real), tmp_path)


def test_a_plain_zarr_array_whose_chunks_are_links_is_refused_with_the_cure(tmp_path: Path) -> None:
    import zarr

    zarr.save_array(tmp_path / "a.zarr", probs(N, K), zarr_format=3)
    cached = hub_cache(tmp_path / "cache", tmp_path / "a.zarr")
    with pytest.raises(UnsafeError, match="cp -rL"):
        quiet(cached, tmp_path / "o.npy")
    shutil.copytree(cached, tmp_path / "copy.zarr")
    quiet(tmp_path / "copy.zarr", tmp_path / "o.npy")


@pytest.mark.parametrize("suffix", ALL)
def test_a_source_that_is_a_broken_link_says_where_it_leads(suffix: str, tmp_path: Path) -> None:
    link = tmp_path / f"t{suffix}"
    link.symlink_to("/mnt/gone/a")
    for reader in ("convert", "entropy"):
        with pytest.raises(StoreNotFoundError, match="a link to '/mnt/gone/a'"):
            READERS[reader](link, tmp_path)


def test_a_path_through_a_file_or_a_name_that_is_too_long_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="would lie in a file"):
        destination(tmp_path / "file" / "a.zarr")
    with pytest.raises(PlaceError, match="name that is too long"):
        destination(tmp_path / ("x" * 300 + ".zarr"))
    with pytest.raises(PlaceError, match="name that is too long"):
        quiet(tmp_path / ("x" * 300 + ".npy"), tmp_path / "o.zarr")


def test_labels_may_be_anything_that_is_there(tmp_path: Path) -> None:
    rows = rows_of(probs(N, K), "rows")
    real = tmp_path / "y.npy"
    np.save(real, np.arange(N) % K)
    (tmp_path / "link.npy").symlink_to(real)
    assert labels_of(tmp_path / "link.npy", rows).tolist() == (np.arange(N) % K).tolist()
