"""The schema and the header: they survive their JSON, and refuse what a stranger's JSON makes up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.encodings import make_schema
from fostore.errors import ArgumentError, FormatError, UnsupportedError
from fostore.schema import geometry
from fostore.schema.header import Header
from fostore.schema.row import COUNTS, FLOATS, Column, Schema, sum_tolerance
from fostore.schema.sides.views import VIEW

IDS = Column("sample_id", "utf8", "uint8", ("byte",), (32,), "id")
HASHES = Column("input_hash", "uint64", "uint64", (), (), "fingerprint")


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    kind = draw(st.sampled_from(["probs", "log_probs", "logits", "counts"]))
    num_classes = draw(st.integers(1, 50))
    names = [f"class {i}" for i in range(num_classes)]
    return make_schema(
        num_classes,
        num_members=draw(st.none() | st.integers(1, 5)),
        kind=kind,
        dtype=draw(st.sampled_from(sorted(COUNTS if kind == "counts" else FLOATS))),
        class_names=draw(st.none() | st.just(names)),
        temperature=draw(st.floats(0.01, 100)),
        tol=draw(st.none() | st.floats(0, 0.5)),
        side_columns=draw(st.sampled_from([(), (IDS,), (IDS, HASHES)])),
    )


def header_of(schema: Schema, **more: Any) -> Header:
    sizes = schema.row_bytes
    return Header(schema, 100, geometry.unit_rows(sizes, 100), geometry.block_rows(sizes), **more)


def attributes_of(**schema: Any) -> dict[str, Any]:
    """A header's JSON, to be edited: without the checksums, which would tell (tests/test_integrity.py)."""
    header = replace(header_of(make_schema(3, **schema)), checked=False)
    found: dict[str, Any] = json.loads(json.dumps(header.to_json()))
    return found


@given(schemas())
def test_a_header_survives_its_json(schema: Schema) -> None:
    header = header_of(
        schema,
        identity={"model": {"hash": "1"}},
        software={"fostore": "0"},
        meta={"a": [1]},
        sealed=True,
        digest="blake3:1",
    )
    assert Header.from_json(json.loads(json.dumps(header.to_json())), "here") == header


@given(schemas())
def test_a_row_has_the_bytes_of_its_columns(schema: Schema) -> None:
    numbers = schema.columns[0]
    assert numbers.shape == schema.row_shape
    members = schema.num_members or 1
    assert numbers.row_bytes == members * schema.num_classes * numbers.numpy_dtype.itemsize
    assert schema.row_bytes == tuple(c.row_bytes for c in schema.columns)
    assert schema.axes == ("sample", *schema.row_axes)
    assert [c.name for c in schema.content] == (
        ["logits", "logsumexp"] if schema.kind == "logits" else [schema.kind]
    )
    assert schema.dtype == numbers.dtype
    assert all(schema.columns[schema.index(c.name)] is c for c in schema.columns)


def test_keys_of_a_newer_minor_version_are_kept() -> None:
    attributes = attributes_of()
    attributes["fostore"].update(version="1.9", novelty={"a": 1})
    attributes["fostore"]["columns"][0]["novelty"] = 2
    header = Header.from_json(attributes, "here")
    assert header.extra == {"novelty": {"a": 1}}
    assert header.to_json() == attributes


@pytest.mark.parametrize("key", sorted(set(attributes_of()["fostore"]) - {"num_samples", "digest"}))
def test_a_header_without_one_of_its_keys_is_refused(key: str) -> None:
    if key in ("class_names", "num_members"):
        return  # null is what their absence means
    attributes = attributes_of()
    del attributes["fostore"][key]
    with pytest.raises(FormatError, match="axes" if key == "axes" else f"lacks the key '{key}'"):
        Header.from_json(attributes, "here")


@pytest.mark.parametrize("key", sorted(set(attributes_of()["fostore"])))
@pytest.mark.parametrize("wrong", [True, 1.5, "x", [1], {"x": 1}, -1, None])
def test_a_key_of_another_type_is_refused_or_means_what_it_says(key: str, wrong: Any) -> None:
    attributes = attributes_of()
    attributes["fostore"][key] = wrong
    try:
        header = Header.from_json(attributes, "here")
    except FormatError as error:
        assert "here" in str(error)  # noqa: PT017  # either outcome is right, a third one is not
    else:
        assert header.to_json()["fostore"][key] == wrong


def column(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda f: f["columns"][0].update(change)


def key(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda f: f.update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (key(version="2.0"), "version 2.0; this release reads 1"),
        (key(requires=["topk"]), r"needs the reader features \['topk'\]"),
        (key(row_axis="token"), "rows along 'token'"),
        (key(kind="votes"), "kind is 'votes'"),
        (key(num_classes=0), "num_classes is 0"),
        (key(num_members=0), "num_members 0"),
        (key(temperature=0), "temperature is 0"),
        (key(temperature=float("nan")), "temperature is nan"),
        (key(sum_tolerance=1.0), "sum tolerance is 1.0"),
        (key(class_names=["a", "b"]), "2 class_names for 3 classes"),
        (key(class_names=["a", "b", "a"]), r"\['a'\] more than once"),
        (key(class_names=["a", "b", 3]), "must be strings"),
        (key(columns=[]), "empty"),
        (key(axes=["class", "sample"]), "axes are"),
        (key(num_samples=-1), "num_samples is -1"),
        (key(num_samples=2**53 + 1), "num_samples is"),
        (key(unit_rows=1000), "unit_rows is 1000"),
        (key(unit_rows=512), "too few for whole pages"),
        (key(unit_rows=2**60), "unit_rows is"),
        (key(block_rows=512), "block_rows is 512"),
        (key(sealed=True, num_samples=None), "sealed and has no num_samples"),
        (column(name="../up"), "not a plain lower-case name"),
        (column(name="a\n"), "not a plain lower-case name"),
        (column(name="zarr.json"), "not a plain lower-case name"),
        (column(dtype="object"), "dtype 'object'"),
        (column(stored="float64"), "stored as 'float64'"),
        (column(role="key"), "the role 'key'"),
        (column(role="id"), "do not start with content"),
        (column(shape=[3, 1]), "axes and shape that disagree"),
        (column(shape=[-3]), "axes and shape that disagree"),
        (column(shape=[0]), "axes and shape that disagree"),
        (column(shape=[True]), "axes and shape that disagree"),
        (column(shape=[1.5]), "axes and shape that disagree"),
        (column(shape=[2**40]), "over 1 GiB"),
        (column(axes=[1]), "axes"),
        (lambda f: f["columns"].append(f["columns"][0]), "repeated"),
        (lambda f: f["columns"].append(replace(VIEW, shape=(3,)).to_json()), "role 'view'"),
        (lambda f: f["columns"].append(replace(VIEW, axes=("view",)).to_json()), "role 'view'"),
    ],
)
def test_what_a_strangers_header_makes_up_is_refused(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    attributes = attributes_of()
    change(attributes["fostore"])
    with pytest.raises(FormatError, match=message) as caught:
        Header.from_json(attributes, "here")
    assert "here" in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", {"meta": {}}, {"fostore": []}])
def test_attributes_that_are_no_header_are_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        Header.from_json(value, "here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": True}, "num_classes is True"),
        ({"num_classes": 2.0}, r"num_classes is 2\.0"),
        ({"num_classes": 2, "num_members": 0}, "num_members is 0"),
        ({"num_classes": 2, "temperature": -1}, r"temperature is -1\.0"),
        ({"num_classes": 2, "tol": 1.5}, r"sum tolerance is 1\.5"),
        ({"num_classes": 2, "class_names": ["a"]}, "1 class_names for 2 classes"),
        ({"num_classes": 2, "class_names": ["a", "a"]}, "more than once"),
        ({"num_classes": 2, "side_columns": [IDS, IDS]}, "repeated"),
        ({"num_classes": 2, "kind": "counts", "dtype": "float32"}, "dtype is 'float32'"),
    ],
)
def test_arguments_that_make_no_schema_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_schema(**arguments)


def test_only_what_rows_are_and_whose_is_hashed() -> None:
    schema = make_schema(3, kind="logits", side_columns=(IDS, HASHES))
    assert [c.name for c in schema.columns if c.hashed] == ["logits", "logsumexp", "sample_id"]
    assert schema.role("id") == IDS
    assert schema.role("view") is None
    with pytest.raises(ArgumentError, match=r"no column 'probs'; it has \['logits'"):
        schema.index("probs")


def test_the_tolerance_covers_what_rounding_can_do() -> None:
    assert sum_tolerance("bfloat16", 10) == pytest.approx(1e-3 + 2**-8)
    assert sum_tolerance("float16", 100_000) == pytest.approx(1e-3 + 2**-11 + 0.0029802, rel=1e-3)
    assert sum_tolerance("float16", 1000, "log_probs") == pytest.approx(
        1e-3 + 2**-11 * 7.9078, rel=1e-3
    )


def test_dtypes_default_to_float32_and_uint32() -> None:
    assert make_schema(3).dtype == "float32"
    assert make_schema(3, kind="counts").dtype == "uint32"
    assert make_schema(3, kind="counts").sum_tolerance == 0


def test_an_unsupported_feature_is_its_own_error() -> None:
    attributes = attributes_of()
    attributes["fostore"]["requires"] = ["topk"]
    with pytest.raises(UnsupportedError):
        Header.from_json(attributes, "here")


def test_a_schema_is_a_value() -> None:
    assert make_schema(3) == make_schema(3)
    assert make_schema(3) != make_schema(3, temperature=2.0)
    assert replace(make_schema(3), temperature=2.0) == make_schema(3, temperature=2.0)
