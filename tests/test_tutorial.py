"""The notebook and the script of examples/ that a newcomer opens first, run from top to bottom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TUTORIAL = EXAMPLES / "first_order_tutorial.ipynb"
NUM_PICTURES = 8


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs, run by a kernel of its own whose working folder is `folder`.

    Raises:
        CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=120,  # seconds a cell
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def printed(notebook: Any) -> str:
    """Everything that the cells print, in their order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A working folder and one for temporary files; what Jupyter and torch keep goes elsewhere."""
    for name in (
        "IPYTHONDIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
    ):
        monkeypatch.setenv(name, str(tmp_path / name))
    found = [tmp_path / "work", tmp_path / "temporary"]
    for folder in found:
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(found[1]))
    return found


def test_the_tutorial_runs_from_top_to_bottom_and_leaves_no_file(folders: list[Path]) -> None:
    notebook = executed(nbformat.read(TUTORIAL, as_version=4), folders[0])

    text = printed(notebook)
    assert "exit status: -9\n" in text
    ran = re.findall(r"(\d+) of 22 batches were run", text)
    assert 10 <= int(ran[0]) < 22, text
    assert "the run that nobody disturbed: True" in text
    assert "'resumed.zarr' was made from something else" in text
    assert re.search(r"sample 0 of the dataset is sample \d+ of the store", text)
    assert "the dataset has 597 samples, but there are 700 distributions" in text

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == NUM_PICTURES
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_a_cell_that_fails_fails_the_run(folders: list[Path]) -> None:
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise KeyError(7)")])
    with pytest.raises(CellExecutionError) as caught:
        executed(notebook, folders[0])
    assert (caught.value.ename, caught.value.evalue) == ("KeyError", "7")


def test_the_tutorial_is_committed_valid_and_without_outputs() -> None:
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source.startswith("# ")


def test_the_pages_and_scripts_that_the_tutorial_links_to_exist() -> None:
    cells = nbformat.read(TUTORIAL, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 5
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


def test_simple_usage_runs_without_a_warning_and_leaves_no_file(folders: list[Path]) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "simple_usage.py"],
        cwd=folders[0],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, "")
    for line in (
        "loaded     900 distributions of 'teacher_v1'",
        "verified   0 findings",
        "the dataset was shuffled or reordered",
        "the same bit by bit: True",
    ):
        assert line in result.stdout
    found = re.findall(r"^  (teacher|student).* accuracy (0\.\d+)", result.stdout, re.MULTILINE)
    assert [name for name, _ in found] == ["teacher", "student", "student"]
    assert all(float(accuracy) > 0.9 for _, accuracy in found)
    assert [list(folder.iterdir()) for folder in folders] == [[], []]
