"""The command line: what it prints where, its exit codes, and what it takes for a model."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from command import Cli
from fostore.cli import options, target
from fostore.errors import ArgumentError, GenerationError
from fostore.generate.frameworks import framework_of

MODELS = """\
import numpy as np

weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def net(inputs):
    return np.asarray(inputs) @ weights


def make():
    return net


class Net:
    def __call__(self, inputs):
        return net(inputs)


def transform(outputs):
    return outputs / 2


def heads(inputs):
    if len(inputs) != 16:
        raise ValueError(f"16 samples are expected, the shape is {np.shape(inputs)}")
    return np.stack([net(inputs), -net(inputs)], axis=1)


def broken(inputs):
    raise KeyError("no such weight")


def needs(path):
    return net


data = [(x, 0) for x in np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)]


def make_data():
    return data


def collate(samples):
    return np.stack(samples)


def take_label_away(sample):
    return sample[0]
"""

OPTIONS = ["--model-fingerprint", "1", "--output-mode", "logits"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Cli(capsys)


def spawn(*arguments: str) -> list[str]:
    """The command line as a process of its own."""
    return [sys.executable, "-m", "fostore.cli", *arguments]


def write(path: str, rows: int = 8, *, planned: int | None = None) -> fostore.Store:
    with fostore.create(path, num_samples=planned or rows, num_classes=4) as writer:
        writer.append(np.full((rows, 4), 0.25, np.float32))
    return fostore.open(path)


def flip_a_bit(path: Path, needle: bytes) -> None:
    """Change one bit of the first place in a file that holds `needle`."""
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)


def unit_file(store: str) -> Path:
    return next(p for p in Path(store).rglob("*") if p.is_file() and "probs/c" in p.as_posix())


# ------------------------------------------------------------------------------ the whole command


def test_importing_the_command_line_loads_no_framework_and_no_format(tmp_path: Path) -> None:
    code = "import sys; import fostore.cli; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "typer" in loaded, result.stderr
    assert not loaded & {"torch", "jax", "zarr", "h5py", "tqdm", "orjson", "numpy", "rich"}


def test_the_version_goes_to_stdout(run: Cli) -> None:
    assert run("--version") == (0, f"fostore {fostore.__version__}\n", "")


@pytest.mark.parametrize("command", ["generate", "info", "verify"])
def test_the_help_of_a_command_shows_examples(run: Cli, command: str) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"fostore {command} " in result.out.partition("Examples:")[2]


def test_no_color_switches_colours_off(tmp_path: Path) -> None:
    def colours(**environment: str) -> list[str]:
        result = subprocess.run(
            spawn("--help"),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "FORCE_COLOR": "1", **environment},
        )
        assert result.returncode == 0, result.stderr
        return re.findall(r"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m", result.stdout)

    assert colours()
    assert not colours(NO_COLOR="1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["what"],
        ["info"],
        ["info", "x.zarr", "--what"],
        ["verify", "x.zarr", "--level", "deep"],
        ["generate", "models.py:net", "models.py:data"],
        ["generate", "models.py:net", "models.py:data", "-o", "x.zarr", "--dtype", "int8"],
        ["generate", "models.py:net", "models.py:data", "-o", "x.tar"],
        ["generate", "models.py:net", "models.py:data", "-o", "x.zarr", "--meta", "novalue"],
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(run: Cli, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err
    assert "Traceback" not in result.err
    assert os.listdir() == ["models.py"]


# --------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize(
    "model", ["models.py:net", "models:net", "models.py:make", "models.py:Net"]
)
@pytest.mark.parametrize("data", ["models.py:data", "models:make_data"])
def test_generate_stores_what_the_model_gives(run: Cli, model: str, data: str) -> None:
    result = run("generate", model, data, "-o", "x.zarr", *OPTIONS)
    assert result.code == 0, result.err
    store = fostore.open("x.zarr")
    import models

    logits = models.net(np.stack([x for x, _ in models.data]))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(store.take(range(50)), expected, rtol=1e-5)
    assert result.out == (
        f"x.zarr: 50 rows of 3 classes, probs float32, sealed, digest {store.digest()}\n"
    )


def test_generate_passes_every_option_on(run: Cli) -> None:
    Path("names.txt").write_text("cat\ndog\nbird, small\n")
    Path("ids.txt").write_text("".join(f"scan-{i}\n" for i in range(50)))
    Path("meta.json").write_text('{"split": "train", "year": 2024}')
    result = run(
        *["generate", "models.py:net", "models.py:data", "-o", "x.zarr", "--framework", "numpy"],
        *["--no-factory", "--device", "cpu", "--batch-size", "7", "--output-mode", "logits"],
        *["--output-transform", "models.py:transform", "--model-name", "a net"],
        *["--input-getter", "models.py:take_label_away", "--exists", "fail"],
        *["--collate-fn", "models.py:collate", "--temperature", "2"],
        *["--store-as", "logits", "--dtype", "float16", "--rows", "0:50", "--unit-rows", "2048"],
        *["--commit-seconds", "0.5", "--tol", "0.01", "--class-names", "@names.txt"],
        *["--meta", "split=test", "--meta", "seeds=[1, 2]", "--meta-file", "meta.json"],
        *["--ids", "@ids.txt", "--model-fingerprint", "m", "--dataset-fingerprint", "d"],
        "--no-progress",
    )
    assert result.code == 0, result.err
    store = fostore.open("x.zarr")
    schema = store.schema
    assert (schema.kind, schema.dtype, store.header.unit_rows) == ("logits", "float16", 2048)
    assert schema.class_names == ("cat", "dog", "bird, small")
    assert schema.sum_tolerance == 0.01
    assert store.ids is not None
    assert list(store.ids[:2]) == ["scan-0", "scan-1"]
    assert store.meta["split"] == "test"
    assert store.meta["seeds"] == [1, 2]
    assert store.meta["year"] == 2024
    assert store.meta["model_name"] == "a net"
    import models

    logits = models.net(np.stack([x for x, _ in models.data])) / 2 / 2
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(store.take(range(50)), expected, atol=2e-3)


def test_generate_is_told_of_members_and_of_a_fixed_batch(run: Cli) -> None:
    command = ["generate", "models.py:heads", "models.py:data", "-o", "x.zarr", "--no-factory"]
    command += ["--batch-size", "16", *OPTIONS]
    result = run(*command)
    assert result.code == 2
    assert "members=True" in result.err
    result = run(*command, "--members")
    assert result.code == 1
    assert "pad_last=True" in result.err
    result = run(*command, "--members", "--pad-last")
    assert result.code == 0, result.err
    assert "50 rows of 2 members x 3 classes" in result.out


def test_generate_computes_again_unless_it_is_told_not_to(run: Cli) -> None:
    form = (
        "import numpy as np\nNOTE = {note}\n"
        "class Net:\n"
        "    def __init__(self):\n"
        "        self.scale = {scale}\n"
        "    def __call__(self, x):\n"
        "        return np.asarray(x)[:, :3] * self.scale\n"
        "net = Net()\n"
    )
    command = ["generate", "nets.py:net", "models.py:data", "-o", "x.zarr"]
    command += ["--output-mode", "logits", "--framework", "numpy", "--rows"]

    def go(rows: str, *options: str, note: int = 1, scale: float = 1.0) -> Any:
        Path("nets.py").write_text(form.format(note=note, scale=scale))
        sys.modules.pop("nets", None)
        return run(*command, rows, *options)

    assert go("0:20").code == 0
    refused = go("20:50", scale=4.0)
    assert refused.code != 0
    assert "another distribution for sample 0" in refused.err
    assert "'scale' is 4.0, it was 1.0" in refused.err
    refused = go("20:50", "--no-recheck", scale=4.0)
    assert refused.code != 0
    assert "recheck=False computes nothing again" in refused.err
    assert go("20:40", "--no-recheck", note=2).code == 0
    assert "recheck=False" in fostore.open("x.zarr").meta["accepted_differences"][0]
    last = go("40:50", note=3)
    assert last.code == 0
    assert last.err.strip() == ""


def test_generate_takes_torch_objects_to_the_torch_generator(run: Cli) -> None:
    Path("nets.py").write_text(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "net = torch.nn.Linear(4, 3)\n"
        "nets = [torch.nn.Linear(4, 3) for _ in range(2)]\n"
        "data = torch.utils.data.TensorDataset(torch.rand(20, 4))\n"
    )
    assert run("generate", "nets.py:net", "nets.py:data", "-o", "x.zarr").code == 0
    result = run("generate", "nets.py:nets", "nets.py:data", "-o", "y.zarr")
    assert "20 rows of 2 members x 3 classes" in result.out, result.err


def test_generate_draws_with_a_seed(run: Cli) -> None:
    Path("nets.py").write_text(
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))\n"
        "data = torch.utils.data.TensorDataset(torch.rand(20, 4))\n"
    )
    command = [
        "generate",
        "nets.py:net",
        "nets.py:data",
        "--num-draws",
        "3",
        "--output-mode",
        "logits",
    ]
    result = run(*command, "-o", "x.zarr", "--seed", "5")
    assert "20 rows of 3 members x 3 classes" in result.out, result.err
    store = fostore.open("x.zarr")
    assert np.ptp(store.array[:], axis=1).max() > 0
    assert (store.meta["num_draws"], store.meta["seed"]) == (3, 5)
    other = run(*command, "-o", "x.zarr", "--seed", "6")
    assert "the seed of the draws is 6, the store has 5" in other.err


def test_a_part_of_the_rows_leaves_a_store_that_is_not_finished(run: Cli) -> None:
    command = ["generate", "models.py:net", "models.py:data", "-o", "x.zarr", *OPTIONS]
    part = run(*command, "--rows", "0:20", "--batch-size", "10")
    assert part.out == "x.zarr: 20 of 50 rows of 3 classes, probs float32, not finished\n", part.err
    rest = run(*command, "--batch-size", "10")
    assert "x.zarr: 50 rows" in rest.out, rest.err


def test_an_existing_store_goes_on_or_is_refused_or_replaced_as_asked(run: Cli) -> None:
    command = ["generate", "models.py:net", "models.py:data", "-o", "x.zarr", *OPTIONS]
    first = run(*command)
    assert run(*command) == first
    refused = run(*command, "--exists", "fail")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: 'x.zarr' exists")
    assert len(refused.err.splitlines()) == 1
    kept = fostore.open("x.zarr").header
    other = [*command, "--output-transform", "models.py:transform"]
    mismatch = run(*other)
    assert (mismatch.code, mismatch.out) == (1, "")
    assert fostore.open("x.zarr").header == kept
    assert run(*other, "--exists", "overwrite").code == 0
    assert fostore.open("x.zarr").digest() != kept.digest


def test_a_model_that_fails_is_one_line_and_a_traceback_on_request(run: Cli) -> None:
    command = ["generate", "models.py:broken", "models.py:data", "-o", "x.zarr", *OPTIONS]
    result = run(*command)
    assert result.code == 1
    assert "no such weight" in result.err
    assert "Traceback" not in result.err
    assert "line" in run(*command, "--traceback").err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(run: Cli) -> None:
    Path("slow.py").write_text(
        "import time, models\n"
        "def net(inputs):\n    time.sleep(0.1)\n    return models.net(inputs)\n"
    )
    command = ["generate", "slow:net", "models:data", "-o", "x.zarr", *OPTIONS]
    arguments = spawn(*command, "--batch-size", "1", "--commit-seconds", "0.1")
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs this suite in the background has the signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if Path("x.zarr").exists() and len(fostore.open("x.zarr")) > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    committed = len(fostore.open("x.zarr"))
    assert (process.returncode, out) == (130, ""), err
    assert f"{committed} of 50 rows of x.zarr are committed" in err
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    assert run(*command, "--batch-size", "50").code == 0


# ------------------------------------------------------------------------------------ info, verify


@pytest.mark.parametrize("name", ["x.zarr", "x.h5"])
def test_info_says_what_a_store_is(run: Cli, name: str) -> None:
    store = write(name)
    result = run("info", name)
    assert (result.code, result.err) == (0, "")
    for fact in (
        "8 committed of 8",
        "sealed",
        store.digest(),
        "probs float32",
        "sample 8, class 4",
    ):
        assert fact in result.out
    facts = json.loads(run("info", name, "--json").out)
    assert facts["digest"] == store.digest()
    assert facts["shape"] == [8, 4]
    assert facts["rows"] == {"committed": 8, "planned": 8, "missing": []}
    files = [p for p in [Path(name), *Path(name).rglob("*")] if p.is_file()]
    assert facts["size"]["bytes"] == sum(p.stat().st_size for p in files)
    assert facts["size"]["files"] == len(files)


def test_info_names_the_rows_that_are_missing(run: Cli) -> None:
    write("x.zarr", 8, planned=20)
    result = run("info", "x.zarr")
    assert "8 committed of 20" in result.out
    assert "rows 8 to 19" in result.out
    assert "not finished" in result.out
    facts = json.loads(run("info", "x.zarr", "--json").out)
    assert facts["rows"] == {"committed": 8, "planned": 20, "missing": [[8, 20]]}
    assert (facts["sealed"], facts["digest"]) == (False, None)


@pytest.mark.parametrize("level", ["structure", "checksums", "full"])
@pytest.mark.parametrize("name", ["x.zarr", "x.h5"])
def test_a_sound_store_passes_every_level(run: Cli, name: str, level: str) -> None:
    write(name)
    result = run("verify", name, "--level", level)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{name}: 8 rows, the files are whole")


def test_an_unfinished_store_is_not_damage(run: Cli) -> None:
    write("x.zarr", 8, planned=20)
    result = run("verify", "x.zarr")
    assert result.code == 0
    assert "x.zarr is not finished: 8 of 20 rows are committed" in result.err
    assert "8 rows" in result.out


def test_a_flipped_bit_is_a_finding_that_names_its_rows(run: Cli) -> None:
    write("x.zarr")
    flip_a_bit(unit_file("x.zarr"), np.float32(0.25).tobytes())
    result = run("verify", "x.zarr")
    assert result.code == 1
    assert "rows 0 to 7" in result.out
    report = json.loads(run("verify", "x.zarr", "--json").out)
    assert [0, 8] in [finding["rows"] for finding in report["findings"]]
    assert run("verify", "x.zarr", "--level", "structure").code == 0


def test_a_cut_file_is_a_finding(run: Cli) -> None:
    write("x.zarr")
    file = unit_file("x.zarr")
    file.write_bytes(file.read_bytes()[:40])
    result = run("verify", "x.zarr", "--level", "structure")
    assert result.code == 1, result.err
    assert result.out


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_cannot_be_read_exits_with_3(run: Cli, command: str) -> None:
    Path("text.json").write_text("not json")
    Path("text.h5").write_text("not hdf5")
    Path("empty.zarr").mkdir()
    for name in ("absent.zarr", "text.json", "text.h5", "empty.zarr"):
        result = run(command, name)
        assert (result.code, result.out) == (3, ""), name
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) == 1


def test_a_path_whose_suffix_no_store_has_cannot_be_read(run: Cli) -> None:
    assert run("info", "models.py").code == 3


# ------------------------------------------------------------------------------ models and datasets


def test_what_counts_as_a_factory() -> None:
    def model(inputs: object) -> object:
        return inputs

    def variadic(*inputs: object) -> object:
        return inputs

    def build(size: int = 3) -> str:
        return f"model of size {size}"

    class Net:
        pass

    instance = Net()
    assert target.model_of(model, "m", None) is model
    assert target.model_of(variadic, "m", None) is variadic
    assert target.model_of(instance, "m", None) is instance
    assert target.model_of([model], "m", None) == [model]
    assert target.model_of(build, "m", None) == "model of size 3"
    assert target.model_of(build, "m", False) is build
    assert target.model_of(functools.partial(build, 4), "m", None) == "model of size 4"
    assert isinstance(target.model_of(Net, "m", None), Net)
    assert target.dataset_of([1, 2], "d") == [1, 2]
    assert target.dataset_of(build, "d") == "model of size 3"
    assert target.dataset_of(dict, "d") == {}


def test_a_factory_that_needs_arguments_says_so() -> None:
    with pytest.raises(ArgumentError, match=r"m:needs .*'path'.*--no-factory"):
        target.model_of(lambda path: path, "m:needs", True)
    with pytest.raises(ArgumentError, match="without required arguments"):
        target.dataset_of(lambda path: path, "m:needs")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models", "expected module:attribute"),
        (":net", "expected module:attribute"),
        ("absent.py:net", "no file"),
        ("absent_module:net", "no module 'absent_module'"),
        ("models.absent:net", "no module 'models.absent'"),
        ("models.py:absent", "has no attribute 'absent'; it has Net"),
        ("math:pi.absent", "has no attribute 'pi.absent'; it has as_integer_ratio"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_apart(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        target.load(text, "MODEL")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("text", ["faulty.py:net", "faulty:net"])
def test_a_module_that_fails_is_not_taken_for_one_that_is_missing(text: str) -> None:
    Path("faulty.py").write_text("import absent_dependency\n")
    with pytest.raises(GenerationError, match="No module named 'absent_dependency'"):
        target.load(text, "MODEL")


@pytest.mark.usefixtures("run")
def test_a_file_may_be_called_like_an_installed_module() -> None:
    Path("json.py").write_text("net = 'mine'\n")
    assert target.load("json.py:net", "MODEL") == "mine"
    assert sys.modules["json"] is json
    assert target.load("models.py:Net", "MODEL") is target.load("models.py:Net", "DATASET")
    sys.modules.pop("json_")


def test_the_framework_follows_from_the_objects() -> None:
    import jax
    import torch

    net, tensors = torch.nn.Linear(2, 2), torch.utils.data.TensorDataset(torch.rand(3, 2))
    jitted = jax.jit(lambda x: x)
    plain: Sequence[int] = [1, 2]
    assert framework_of(net, plain) == "torch"
    assert framework_of([net, net], plain) == "torch"
    assert framework_of(len, tensors) == "torch"
    assert framework_of(len, torch.utils.data.DataLoader(tensors)) == "torch"
    assert framework_of(jitted, plain) == "jax"
    assert framework_of(functools.partial(jitted), plain) == "jax"
    assert framework_of([jitted], plain) == "jax"
    assert framework_of(len, jax.numpy.ones((3, 2))) == "jax"
    assert framework_of(len, plain) == "numpy"
    assert framework_of(len, np.ones((3, 2))) == "numpy"


# ---------------------------------------------------------------------------------------- options


def test_metadata_is_json_where_it_parses_and_text_where_not(tmp_path: Path) -> None:
    pairs = ["a=1", "b=x y", "c=[1, null]", 'd="2"', "e=NaN", "f=k=v", "g="]
    assert options.parse_meta(pairs, None) == {
        "a": 1,
        "b": "x y",
        "c": [1, None],
        "d": "2",
        "e": "NaN",
        "f": "k=v",
        "g": "",
    }
    file = tmp_path / "meta.json"
    file.write_text('{"a": 0, "z": 9}')
    assert options.parse_meta(["a=1"], file) == {"a": 1, "z": 9}
    for text in ("[1]", "{", '{"a": NaN}'):
        file.write_text(text)
        with pytest.raises(ArgumentError, match="--meta-file"):
            options.parse_meta([], file)


def test_ids_are_integers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    for text, expected in (
        ("3\n-1\n", [3, -1]),
        ("007\n8\n", ["007", "8"]),
        ("a\nb\n\n", ["a", "b"]),
    ):
        file.write_text(text)
        assert options.parse_ids(f"@{file}") == expected
    with pytest.raises(ArgumentError, match="@file"):
        options.parse_ids("1,2")
    with pytest.raises(ArgumentError, match="cannot be read"):
        options.parse_ids(f"@{tmp_path / 'absent'}")


def test_class_names_are_a_list_or_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("cat\nhot dog\n", encoding="utf-8")
    assert options.parse_names("cat, hot dog") == ["cat", "hot dog"]
    assert options.parse_names(f"@{file}") == ["cat", "hot dog"]
    assert options.parse_names(None) is None


@pytest.mark.parametrize("text", ["5", "5:5", "9:2", ":4", "4:", "a:b", "-1:4", "0:4:2", ":"])
def test_rows_that_are_no_range_are_refused(text: str) -> None:
    assert options.parse_rows("2:9") == (2, 9)
    with pytest.raises(ArgumentError, match="start:stop"):
        options.parse_rows(text)
    with pytest.raises(ArgumentError, match="5,000 digits"):
        options.parse_rows(f"0:{'9' * 5000}")
