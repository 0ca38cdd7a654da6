"""Runs the Python blocks of README.md as one script, so that what the page promises holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def python_of(page: str) -> str:
    """The ```python blocks of `page` as one script; every line keeps its number, for tracebacks.

    Raises:
        ValueError: The page has no such block, or one that is never closed.
    """
    script, fence, blocks = [], None, 0
    for line in page.splitlines():
        mark = line.strip()
        if fence is None and mark.startswith("```"):
            fence = mark
            is_python = mark.removeprefix("```").split()[:1] == ["python"]
            blocks += is_python
            script.append("")
        elif fence is not None and mark == "```":
            fence = None
            script.append("")
        else:
            script.append(line if fence is not None and is_python else "")
    if fence is not None:
        raise ValueError(f"the page ends inside the block {fence!r}")
    if not blocks:
        raise ValueError("the page has no ```python block, so nothing of it is tested")
    return "\n".join(script) + "\n"


def run_page(page: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of `page` in `folder` as a user would, as a script of its own."""
    script = folder / "readme.py"
    script.write_text(python_of(page), encoding="utf-8")
    return subprocess.run(
        [sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=170
    )


def test_the_python_blocks_of_the_readme_run_in_order(tmp_path: Path) -> None:
    result = run_page(README.read_text(encoding="utf-8"), tmp_path)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def test_blocks_share_one_namespace_and_other_blocks_are_left_alone(tmp_path: Path) -> None:
    page = "# t\n```python\nx = 1\n```\n```bash\nexit 1\n```\ntext\n```python\nprint(x + 1)\n```\n"
    result = run_page(page, tmp_path)
    assert (result.returncode, result.stdout) == (0, "2\n")


def test_a_failing_block_fails_at_its_line_of_the_page(tmp_path: Path) -> None:
    result = run_page("# t\n\n```python\nx = 1\nraise KeyError(x)\n```\n", tmp_path)
    assert result.returncode != 0
    assert "line 5" in result.stderr


@pytest.mark.parametrize("page", ["", "# t\n```bash\nmake\n```\n", "```pythonic\nx\n```\n"])
def test_a_page_without_python_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="no ```python block"):
        python_of(page)


def test_a_block_that_is_never_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="ends inside the block"):
        python_of("```python\nx = 1\n")
