"""Metadata as JSON text: equal when read back, refused where it would not be."""

from __future__ import annotations

import enum
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.errors import ArgumentError, FormatError
from fostore.schema.jsontext import check_json, dumps, loads

text = st.text(st.characters(exclude_categories=["Cs"]))
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | text
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
)


class Colour(enum.IntEnum):
    RED = 3


@given(json_values)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    checked = check_json(value)
    assert checked == value
    assert loads(dumps(checked), "x") == value
    assert loads(dumps(checked, indent=1), "x") == value
    assert json.loads(dumps(checked)) == value


def test_tuples_scalars_of_numpy_and_enums_become_plain() -> None:
    given_value = {
        "a": (1, np.float32(0.5)),
        "b": np.bool_(True),
        "c": Colour.RED,
        "d": np.array(7),
    }
    found = check_json(given_value)
    assert found == {"a": [1, 0.5], "b": True, "c": 3, "d": 7}
    assert [type(v) for v in (found["a"][1], found["b"], found["c"])] == [float, bool, int]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": float("nan")}]}, r"^meta\['a'\]\[1\]\['b'\] is nan"),
        ({"a": -float("inf")}, r"^meta\['a'\] is -inf"),
        ({"a": np.float32("inf")}, r"^meta\['a'\] is inf"),
        ({"a": {1: 2}}, r"^meta\['a'\] has the key 1 of type int.*str\(key\)"),
        ({"a": {1, 2}}, r"^meta\['a'\] is of type set"),
        ({"a": b"x"}, "is of type bytes"),
        ({"a": np.zeros(2)}, "is of type ndarray"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_json(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["me"] = value
    with pytest.raises(ArgumentError, match="holds itself"):
        check_json(value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b'{"a": NaN}', "x holds NaN"),
        (b'{"a": [-Infinity]}', "x holds -Infinity"),
        (b'{"a": 1e400}', "x holds 1e400"),
        (b'{"a": -1e400}', "x holds -1e400"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "x holds the key 'b' twice"),
        (b'{"a": 1', "x is not JSON"),
        (b'{"a": 1} 2', "x is not JSON"),
        (b"{'a': 1}", "x is not JSON"),
        (b"", "x is not JSON"),
        (b'"\xff"', "x is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "x is not JSON"),
        (b'{"a": 1}'.decode().encode("utf-32-le"), "x is not JSON"),
        (b"[" * 200_000, "x is not JSON"),
        (b"1" * 10_000, "x is not JSON"),
    ],
)
def test_text_that_is_not_strict_json_is_refused(document: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        loads(document, "x")


def test_a_surrogate_alone_cannot_be_written() -> None:
    with pytest.raises(ArgumentError, match="cannot be written as JSON"):
        dumps("\ud800")


def test_non_finite_numbers_cannot_be_written() -> None:
    with pytest.raises(ArgumentError, match="cannot be written as JSON"):
        dumps([float("nan")])
