"""What `import fostore` costs and what a bare install, without torch and JAX, can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Printed on a line of its own, so that a module which prints at import does not disturb the answer.
MARK = "imported:"

# NumPy is imported first: it and the standard library are the allowed cost, and so is whatever the
# interpreter loads at start (the hook of an editable install, for one).
MEASURE = """\
import sys
import numpy, numpy.random
before = set(sys.modules)
{code}
after = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print({mark!r}, *sorted(after - set(sys.stdlib_module_names) - {{"numpy", "fostore"}}))
"""

# A finder at the head of the meta path makes the frameworks absent also where they are installed.
BARE = """\
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "jax", "jaxlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""

WRITE_AND_READ = """\
import numpy as np
import fostore
rows = np.array([[0.2, 0.3, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1]], np.float32)
with fostore.create(PATH, num_samples=4, num_classes=3) as w:
    w.append(rows)
store = fostore.open(PATH)
np.testing.assert_array_equal(store.take([0, 1]), rows[:2])
np.testing.assert_array_equal(store.take([3, 0, 3]), rows[[3, 0, 3]])
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


def imports_beside_numpy(code: str, folder: Path) -> set[str]:
    """Top-level modules beside NumPy and the standard library that `code` loads when run afresh."""
    result = run(MEASURE.format(code=code, mark=MARK), folder)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(MARK)]
    return set(line.removeprefix(MARK).split())


def test_importing_fostore_loads_numpy_and_the_standard_library_only(tmp_path: Path) -> None:
    loaded = imports_beside_numpy("import fostore", tmp_path)
    assert not loaded & {"torch", "jax", "zarr", "h5py", "orjson", "tqdm", "typer"}
    assert loaded == set()


@pytest.mark.parametrize("module", ["zarr", "h5py", "orjson", "tqdm", "typer"])
def test_an_import_beside_numpy_is_detected(module: str, tmp_path: Path) -> None:
    assert module in imports_beside_numpy(f"import fostore\nimport {module}", tmp_path)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_bare_install_writes_and_reads_a_store(suffix: str, tmp_path: Path) -> None:
    path = str(tmp_path / f"bare{suffix}")
    result = run(f"{BARE}PATH = {path!r}\n{WRITE_AND_READ}", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_bare_install_has_no_framework(framework: str, tmp_path: Path) -> None:
    result = run(f"{BARE}import {framework}", tmp_path)
    assert result.returncode != 0
    assert f"No module named '{framework}'" in result.stderr


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_framework_side_without_its_framework_names_what_is_missing(
    framework: str, tmp_path: Path
) -> None:
    result = run(f"{BARE}import fostore.{framework}", tmp_path)
    assert result.returncode != 0
    assert f"No module named '{framework}'" in result.stderr or f"fostore[{framework}]" in (
        result.stderr
    )
