"""The options of a generation: generators, `Options` and the command line say the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer.main

from fostore.cli import app
from fostore.cli.options import of_encoding
from fostore.encodings import ENCODINGS
from fostore.errors import ArgumentError
from fostore.generate.options import Options
from sides import SIDES, Linear, make_pairs

FIELDS = {one.name: one.default for one in fields(Options)}


@pytest.mark.parametrize("name", list(SIDES))
def test_a_generator_takes_the_options_in_their_order_with_their_defaults(name: str) -> None:
    generator = SIDES[name].generator(SIDES[name].model(Linear()))
    given: dict[str, Any] = {}
    for function in (type(generator), generator.generate_distributions):
        _, *parameters = inspect.signature(function).parameters.values()
        given |= {one.name: one.default for one in parameters}
    assert list(given.items()) == list(FIELDS.items())


def test_the_command_line_has_every_option_with_its_default() -> None:
    command = typer.main.get_command(app).commands["generate"]  # type: ignore[attr-defined]
    defaults = {one.name: one.default for one in command.params}
    assert set(FIELDS) - set(defaults) == {"store", "views"}  # --output; no text says views
    defaults["progress"] = True  # where stderr is a terminal
    assert {name: defaults[name] for name in FIELDS if name in defaults} == {
        name: value for name, value in FIELDS.items() if name in defaults
    }


def test_every_option_that_lists_its_values_is_checked() -> None:
    generator = SIDES["numpy"].generator(SIDES["numpy"].model(Linear()))
    for name in ("exists", "store_as", "dtype"):
        with pytest.raises(ArgumentError, match=f"{name} is 'other', expected one of"):
            generator.generate_distributions(make_pairs(), False, **{name: "other"})
    with pytest.raises(ArgumentError, match="output_mode is 'other', expected one of"):
        SIDES["numpy"].generator(SIDES["numpy"].model(Linear()), output_mode="other")


def test_reading_the_options_loads_no_numpy() -> None:
    code = "import sys, fostore.generate.options; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_help_names_every_encoding_but_the_one_of_votes() -> None:
    """The command line starts without NumPy, so it cannot ask the registry."""
    shown = of_encoding("", "")["encoding"].help
    names = shown.removeprefix("How rows are kept: ").removesuffix(", or JSON with parameters.")
    assert set(names.split(", ")) == ENCODINGS.keys() - {"counts"}
