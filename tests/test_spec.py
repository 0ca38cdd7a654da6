"""The specification against the code: schemas, the worked digest, and golden stores read by two readers."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import jsonschema
import numpy as np
import pytest
from referencing import Registry, Resource

import fostore
import spec_reader
from fostore.encodings import encoding_of, make_schema
from fostore.errors import FormatError
from fostore.files.json import export
from fostore.schema.header import Header

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
STORES = sorted(p.name[:-5] for p in GOLDEN.glob("*.json") if (GOLDEN / p.name[:-5]).exists())
READERS = {".zarr": spec_reader.read_zarr, ".h5": spec_reader.read_hdf5}
BINARY = [name for name in STORES if Path(name).suffix in READERS]

# ------------------------------------------------------------------ the pages


def test_every_requirement_has_a_number_of_its_own_and_every_reference_leads_somewhere() -> None:
    pages = [page.read_text("utf-8") for page in (ROOT / "spec").glob("*.md")]
    numbers = [
        n for page in pages for n in re.findall(r"^- \*\*([CZHJIVRE]-[0-9]+)\*\*", page, re.M)
    ]
    assert len(numbers) > 100
    assert len(set(numbers)) == len(numbers)
    named = {n for page in pages for n in re.findall(r"\b[CZHJIVRE]-[0-9]+\b", page)}
    assert named <= set(numbers)


def test_every_decision_is_in_the_index_and_fits_a_page() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    for number, path in enumerate(records, 1):
        text = path.read_text("utf-8")
        assert path.name.startswith(f"{number:04}-")
        assert f"| [{number:04}]({path.name}) | {text.splitlines()[0].split(': ', 1)[1]} |" in index
        assert "Status: " in text.splitlines()[1]
        assert len(text.splitlines()) <= 50


# ------------------------------------------------------------------ JSON Schemas


def validator(name: str) -> jsonschema.Draft202012Validator:
    paths = (ROOT / "spec" / "schemas").glob("*.schema.json")
    known = {path.name: json.loads(path.read_bytes()) for path in paths}
    jsonschema.Draft202012Validator.check_schema(known[name])
    resources = [(key, Resource.from_contents(value)) for key, value in known.items()]
    return jsonschema.Draft202012Validator(
        known[name], registry=Registry().with_resources(resources)
    )


ATTRIBUTES = validator("attributes.schema.json")
DOCUMENT = validator("json-document.schema.json")

FILLED: list[dict[str, Any]] = [
    {
        "kind": kind,
        "dtype": dtype,
        "num_members": members,
        "ids": ids,
        "fingerprints": ids is None,
        "views": ids == "int64",
        "class_labels": ids == "S16",
        "encoding": encoding,
    }
    for kind, dtype, encoding in [
        ("probs", "float16", None),
        ("probs", "bfloat16", None),
        ("log_probs", "float32", None),
        ("logits", "float16", None),
        ("logits", "float64", None),
        ("counts", "uint8", None),
        ("logits", None, {"name": "topk", "k": 2}),
        ("logits", None, "u16_affine"),
        ("log_probs", None, "u8_log_sqrt"),
        ("probs", None, {"name": "sampled", "num_draws": 2, "proposal_temperature": 2.0}),
    ]
    for members, ids in [(None, None), (2, "int64"), (2, "S16")]
]


def fill(path: Path, options: dict[str, Any]) -> None:
    """A store of five rows, not sealed where the path says so."""
    shape = (5, 3) if options["num_members"] is None else (5, options["num_members"], 3)
    rows: Any = np.full(shape, 1 / 3, np.float64)
    rows = np.log(rows) if options["kind"] in ("log_probs", "logits") else rows
    rows = np.ones(shape, np.uint8) if options["kind"] == "counts" else rows
    keys = {"int64": range(5), "S16": list("abcdé")}.get(options["ids"] or "")
    hashes = np.arange(5, dtype=np.uint64) if options["fingerprints"] else None
    writer = fostore.create(path, num_samples=5, num_classes=3, meta={"ü": [1, {}]}, **options)
    stop = 3 if "open" in path.name else 5
    given = None if keys is None else keys[:stop]
    seen = None if hashes is None else hashes[:stop]
    views = np.arange(stop) if options["views"] else None
    classes = np.arange(stop) % 3 if options["class_labels"] else None
    writer.append(rows[:stop], ids=given, fingerprints=seen, views=views, class_labels=classes)
    if stop == 5:
        writer.seal()
    writer.close()


def attributes_of(path: Path) -> dict[str, Any]:
    """The attributes as plain readers find them."""
    if path.suffix == ".zarr":
        group = json.loads((path / "zarr.json").read_bytes())
        found: dict[str, Any] = group["attributes"]
        return found
    import h5py

    with h5py.File(path, "r") as file:
        return {name: json.loads(file.attrs[name]) for name in ("fostore", "meta")}


@pytest.mark.parametrize("name", ["a.zarr", "open.zarr", "a.h5", "open.h5"])
@pytest.mark.parametrize("options", FILLED, ids=lambda o: f"{o['kind']}-{o['dtype']}-{o['ids']}")
def test_the_schema_accepts_the_attributes_of_every_kind_of_store(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    fill(tmp_path / name, options)
    ATTRIBUTES.validate(attributes_of(tmp_path / name))


@pytest.mark.parametrize("options", FILLED, ids=lambda o: f"{o['kind']}-{o['dtype']}-{o['ids']}")
def test_the_schema_accepts_the_json_document_of_every_kind_of_store(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    fill(tmp_path / "a.zarr", options)
    with fostore.open(tmp_path / "a.zarr") as store:
        export(tmp_path / "a.json", store.reader)
    document = json.loads((tmp_path / "a.json").read_bytes())
    DOCUMENT.validate(document)
    first = next(key for key in document if key != "meta")
    del document[first]
    assert not DOCUMENT.is_valid(document)


@pytest.mark.parametrize("name", [n for n in STORES if n.endswith(".json")])
def test_the_schema_accepts_the_golden_json(name: str) -> None:
    DOCUMENT.validate(json.loads((GOLDEN / name).read_bytes()))


def good() -> dict[str, Any]:
    """Attributes that are right, of a store with members, keys and logits."""
    return copy.deepcopy(attributes_of(GOLDEN / "logits-float16-members.zarr"))


_SCALAR: dict[str, Any] = {"axes": [], "shape": []}


def tokens(fostore: dict[str, Any]) -> dict[str, Any]:
    """The same attributes as if its 40 rows were tokens of sequences."""
    fostore.update(row_axis="token", axes=["token", "member", "class"], requires=["token_rows"])
    sequence = {"name": "sequence", "dtype": "int64", "stored": "int64", "role": "sequence"}
    token = {"name": "token", "dtype": "uint16", "stored": "uint16", "role": "token"}
    fostore["columns"] += [sequence | _SCALAR, token | _SCALAR | {"vocab_size": 100}]
    fostore["num_sequences"] = 5
    return fostore


_AXIS_OF_THREE = {"axes": ["seed_view"], "shape": [3]}

BREAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a newer major version": lambda f: f.update(version="2.0"),
    "an unknown feature": lambda f: f.update(requires=["topq"]),
    "a feature that nothing needs": lambda f: f.update(requires=["topk"]),
    "a feature that is no name": lambda f: f.update(requires=[{}]),
    "a feature twice": lambda f: f.update(requires=["text_layout"] * 2),
    "numbers as texts": lambda f: f["columns"][0].update(layout="text"),
    "an unknown row axis": lambda f: f.update(row_axis="pixel"),
    "rows of tokens without sequences": lambda f: f.update(
        row_axis="token", requires=["token_rows"]
    ),
    "a sequence of samples": lambda f: f["columns"].append(
        {"name": "sequence", "dtype": "int64", "stored": "int64", "role": "sequence"} | _SCALAR
    ),
    "token rows that need no reader": lambda f: tokens(f).update(requires=[]),
    "tokens without a size": lambda f: tokens(f)["columns"][-1].pop("vocab_size"),
    "sealed without a number of sequences": lambda f: tokens(f).update(num_sequences=None),
    "an unknown encoding": lambda f: f["encoding"].update(name="topq"),
    "top-k rows in columns of all classes": lambda f: f.update(
        requires=["topk"], encoding={"name": "topk", "k": 2, "rule": "coarse"}
    ),
    "an unknown kind": lambda f: f.update(kind="votes"),
    "another kind than its columns": lambda f: f.update(kind="probs"),
    "a kind of another encoding": lambda f: f["encoding"].update(name="counts"),
    "an unknown role": lambda f: f["columns"][1].update(role="extra"),
    "an unknown dtype": lambda f: f["columns"][0].update(dtype="float8", stored="uint8"),
    "another stored dtype": lambda f: f["columns"][0].update(stored="float32"),
    "a path as a column name": lambda f: f["columns"][0].update(name="../x"),
    "logits that are not shifted": lambda f: f["columns"][0].pop("shift"),
    "no logsumexp": lambda f: f["columns"].pop(),
    "a view of another shape": lambda f: f["columns"].append(
        {"name": "view", "dtype": "int64", "stored": "int64", "role": "view", **_AXIS_OF_THREE}
    ),
    "columns that are not there": lambda f: f.update(columns=[]),
    "axes without its members": lambda f: f.update(axes=["sample", "class"]),
    "an empty axis": lambda f: f["columns"][0].update(shape=[0, 4]),
    "sealed without a digest": lambda f: f.update(digest=None),
    "sealed without a length": lambda f: f.update(num_samples=None),
    "a digest of another hash": lambda f: f.update(digest="sha256:" + "0" * 64),
    "negative rows": lambda f: f.update(num_samples=-1),
    "units that are no power of two": lambda f: f.update(unit_rows=1000),
    "no temperature": lambda f: f.pop("temperature"),
    "a temperature of zero": lambda f: f.update(temperature=0),
    "a tolerance of one": lambda f: f.update(sum_tolerance=1),
    "class names that repeat": lambda f: f.update(class_names=["a", "a", "b", "c"]),
    "numbers as text": lambda f: f.update(num_classes="4"),
    "no identity": lambda f: f.pop("identity"),
}


SEEN_BY_VERIFY = "a digest of another hash"  # opening a store computes no digest


@pytest.mark.parametrize("what", BREAKS)
def test_schema_and_reader_refuse_broken_attributes(what: str, tmp_path: Path) -> None:
    attributes = good()
    ATTRIBUTES.validate(attributes)
    BREAKS[what](attributes["fostore"])
    assert not ATTRIBUTES.is_valid(attributes)
    path = with_attributes(tmp_path, attributes)
    if what == SEEN_BY_VERIFY:
        assert [finding.where for finding in fostore.open(path).verify()] == ["digest"]
    else:
        with pytest.raises(FormatError):
            fostore.open(path)


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "other classes than its columns": lambda f: f.update(num_classes=5),
    "other members than its columns": lambda f: f.update(num_members=3),
    "class names that do not fit": lambda f: f.update(class_names=["a"]),
    "blocks of another size": lambda f: f.update(block_rows=512),
    "units smaller than pages": lambda f: f.update(unit_rows=256),
    "fewer rows than its arrays show": lambda f: f.update(num_samples=39),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_the_reader_refuses_what_no_schema_can_see(what: str, tmp_path: Path) -> None:
    attributes = good()
    CONTRADICTIONS[what](attributes["fostore"])
    with pytest.raises(FormatError):
        fostore.open(with_attributes(tmp_path, attributes))


def test_content_that_the_encoding_does_not_make_is_refused() -> None:
    attributes = good()
    columns = attributes["fostore"]["columns"]
    columns.append({**columns[1], "name": "more"})
    with pytest.raises(FormatError, match="have the columns"):
        encoding_of(Header.from_json(attributes, "here").schema)


def with_attributes(folder: Path, attributes: dict[str, Any]) -> Path:
    """A copy of a golden store whose attributes are these."""
    path = Path(shutil.copytree(GOLDEN / "logits-float16-members.zarr", folder / "a.zarr"))
    group = json.loads((path / "zarr.json").read_bytes())
    (path / "zarr.json").write_text(json.dumps({**group, "attributes": attributes}))
    return path


def test_unknown_keys_are_allowed_and_kept() -> None:
    attributes = good()
    attributes["fostore"]["newer"] = {"a": 1}
    attributes["fostore"]["columns"][0]["newer"] = [2]
    ATTRIBUTES.validate(attributes)
    kept = Header.from_json(attributes, "here").to_json()["fostore"]
    assert kept["newer"] == {"a": 1}
    assert kept["columns"][0]["newer"] == [2]


def test_the_schema_refuses_documents_that_no_reader_takes() -> None:
    for document in (
        {},
        {"meta": {}},
        {"distributions": {"01": [1]}},
        {"distributions": {"0": [True]}},
        {"distributions": {"0": [None]}},
        {"distributions": {"0": []}},
        {"distributions": {"0": [-0.5, 1.5]}},
        {"distributions": [[1.0]]},
        {"meta": [], "distributions": {"0": [1]}},
    ):
        assert not DOCUMENT.is_valid(document), document


# ------------------------------------------------------------------ the worked digest


def test_the_worked_digest_of_the_specification_recomputes() -> None:
    page = (ROOT / "spec" / "integrity.md").read_text(encoding="utf-8")
    block = page.split("recomputes every value of this block -->")[1].split("\n\n")[0]
    lines = [line.split(maxsplit=1) for line in block.strip().splitlines()]
    said: dict[str, list[str]] = {}
    for key, value in lines:
        said.setdefault(key, []).append(value)

    probs = struct.pack("<6f", 0.5, 0.5, 0.875, 0.125, 0.25, 0.75)
    keys = struct.pack("<3q", 7, 11, 13)
    assert [probs.hex(), keys.hex()] == said["probs"] + said["sample_id"]
    text = said["canonical"][0].encode()
    assert [str(len(text))] == said["length"]
    blocks = [blake3.blake3(data).digest() for data in (probs, keys)]
    assert [b.hex() for b in blocks] == said["block"]
    columns = [blake3.blake3(b).digest() for b in blocks]
    assert [c.hex() for c in columns] == said["column"]
    digest = blake3.blake3(struct.pack("<Q", len(text)) + text + b"".join(columns)).hexdigest()
    assert ["blake3:" + digest] == said["digest"]
    crcs = [spec_reader.crc32c(probs), spec_reader.crc32c(keys)]
    assert " ".join(f"{crc:08x}" for crc in crcs) == said["crc32c"][0]
    assert f"{spec_reader.crc32c(struct.pack('<2I', *crcs)):08x}" == said["run"][0]
    assert f"{spec_reader.crc32c(b'123456789'):08x}" in page


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_of_the_worked_example_has_its_digest(tmp_path: Path, suffix: str) -> None:
    rows = np.float32([[0.5, 0.5], [0.875, 0.125], [0.25, 0.75]])
    path = tmp_path / f"a{suffix}"
    with fostore.create(
        path, num_samples=3, num_classes=2, ids=[7, 11, 13], class_names=["heads", "tails"]
    ) as writer:
        writer.append(rows)
    assert fostore.open(path).digest() in (ROOT / "spec" / "integrity.md").read_text("utf-8")


@pytest.mark.parametrize("temperature", [1, 0.1, 1e-5, 1e16, 123456.75, 2.5e-7])
def test_floats_are_written_as_the_specification_says(temperature: float) -> None:
    from fostore.schema import digest

    schema = make_schema(2, temperature=temperature)
    text = digest.canonical(Header(schema, 0, 1024, 1024)).decode()
    written = json.loads(text.replace('"temperature":', '"temperature":"')[:-1] + '"}')[
        "temperature"
    ]
    exponent = int(f"{temperature:e}".split("e")[1])
    plain, scientific = r"[0-9]+\.[0-9]+", r"[0-9](\.[0-9]*[1-9])?e[+-][0-9]{2,}"
    assert re.fullmatch(plain if -4 <= exponent <= 15 else scientific, written)
    assert float(written) == temperature


# ------------------------------------------------------------------ golden stores


def told(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return found


def assert_rows(probs: Any, committed: list[int], expected: dict[str, Any]) -> None:
    at = [committed.index(row) for row in expected["rows"]]
    np.testing.assert_allclose(probs[at], expected["probs"], rtol=0, atol=expected["tol"])


def test_there_are_golden_stores_of_every_format() -> None:
    assert {Path(name).suffix for name in STORES} == {".zarr", ".h5", ".json"}
    assert len(STORES) == 23


@pytest.mark.parametrize("name", STORES)
def test_fostore_reads_golden_stores(name: str) -> None:
    expected = told(name)
    with fostore.open(GOLDEN / name) as store:
        assert [list(r) for r in store.committed] == expected["committed"]
        assert store.num_samples == expected["num_samples"]
        rows = list(store)
        assert_rows(store.take(rows), rows, expected)
        assert store.header.digest == expected["digest"]
        if "ids" in expected:
            assert store.ids is not None
            assert store.ids.tolist() == expected["ids"]
        if "meta" in expected:
            assert store.meta == expected["meta"]
        if "offsets" in expected:
            assert store.offsets.tolist() == expected["offsets"]
        assert store.verify() == []


@pytest.mark.parametrize("name", BINARY)
def test_a_reader_written_from_the_specification_alone_reads_golden_stores(name: str) -> None:
    expected = told(name)
    stored = READERS[Path(name).suffix](GOLDEN / name)
    ATTRIBUTES.validate(stored.attributes)
    ranges = [range(*r) for r in expected["committed"]]
    assert stored.committed == [row for rows in ranges for row in rows]
    assert_rows(stored.probabilities(), stored.committed, expected)
    stored.check_runs()
    stored.check_sequences()
    assert bool(stored.runs) is not stored.schema["sealed"]
    assert stored.check_hashes() > 0
    if stored.schema["sealed"]:
        assert stored.digest() == expected["digest"] == stored.schema["digest"]
    if "ids" in expected:
        assert stored.ids() == expected["ids"]
    if "meta" in expected:
        assert stored.attributes["meta"] == expected["meta"]
    for column, digest in expected.get("sha256", {}).items():
        data = stored.columns[column][stored.committed].tobytes()
        assert hashlib.sha256(data).hexdigest() == digest


@pytest.mark.parametrize("name", ["logits-float16-members.zarr", "u16-logits-members.zarr"])
def test_logits_come_back_with_their_level(name: str) -> None:
    stored = spec_reader.read_zarr(GOLDEN / name)
    expected = told(name)["logsumexp"]
    np.testing.assert_allclose(stored.columns["logsumexp"][:3], expected, rtol=1e-6)
    with fostore.open(GOLDEN / name) as store:
        ours = store.take(range(len(store)), as_kind="logits")
    np.testing.assert_allclose(stored.raw_logits(), ours, rtol=0, atol=1e-5)
    assert np.isneginf(ours[7, 1, 3])


@pytest.mark.parametrize("name", BINARY)
def test_both_readers_agree_on_every_row(name: str) -> None:
    stored = READERS[Path(name).suffix](GOLDEN / name)
    with fostore.open(GOLDEN / name) as store:
        ours = store.take(stored.committed)
    np.testing.assert_allclose(stored.probabilities(), ours, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["unfinished.zarr", "unfinished.h5"])
def test_a_golden_store_in_progress_can_be_finished(name: str, tmp_path: Path) -> None:
    copied = tmp_path / name
    (shutil.copytree if name.endswith(".zarr") else shutil.copy)(GOLDEN / name, copied)
    before = READERS[copied.suffix](copied)
    with fostore.create(copied, exists="resume") as writer:
        shape = writer.schema.row_shape
        fill_value = 1 / shape[-1] if writer.schema.kind == "probs" else -np.log(shape[-1])
        for start, stop in writer.missing():
            ids = range(start, stop) if writer.schema.role("id") else None
            writer.write(start, np.full((stop - start, *shape), fill_value), ids=ids)
    after = READERS[copied.suffix](copied)
    assert after.digest() == after.schema["digest"]
    first = before.schema["columns"][0]["name"]
    rows = before.committed
    np.testing.assert_array_equal(after.columns[first][rows], before.columns[first][rows])
