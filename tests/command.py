"""The command line in this process: its exit code, and what it printed."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from fostore import cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(*arguments: object) -> Outcome:
    """As typer's own tests run a command."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return Outcome(result.exit_code, result.stdout, result.stderr)


class Cli:
    """As a shell runs it: an error that is none of ours passes."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.app([str(a) for a in arguments], prog_name="fostore")
        captured = self._capsys.readouterr()
        return Outcome(int(exit.value.code or 0), captured.out, captured.err)
