"""A store becomes a bundle: what it says to people and machines, what checks it, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import cli, disk, publishing
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    StoreExistsError,
    StoreNotFoundError,
    UnsafeError,
)
from fostore.publishing import bundle, verification
from fostore.publishing.facts import Creator, Facts, spdx
from fostore.publishing.manifest import TAGS, read_list
from support import SUFFIXES

pytestmark = pytest.mark.usefixtures("no_pictures", "fast_disk")

DATA = Path(__file__).parent / "data"
ADA = "Ada Lovelace <https://orcid.org/0000-0002-1825-0097>"
FACTS: dict[str, Any] = {
    "license": "cc-by-4.0",
    "creators": [ADA, "A & B_C: the {group}"],
    "description": 'Digits | of <b> a "test": é.',
}


def make(path: Path, rows: int = 300, seed: int = 0, names: bool = True, **options: Any) -> Path:
    values = np.random.default_rng(seed).dirichlet(np.ones(5), 3000).astype(np.float32)
    labels = [f"class {k}" for k in range(5)] if names else None
    with fostore.create(
        path, num_samples=rows, num_classes=5, class_names=labels, exists="overwrite",
        ids=[f"img-{k}" for k in range(rows)], **options,
    ) as writer:  # fmt: skip
        writer.append(values[:rows])
    return path


@pytest.fixture(params=SUFFIXES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path / f"rows{request.param}")


def published(store: Path, dest: Path, **more: Any) -> publishing.Publication:
    return fostore.publish(store, dest, progress=False, **{**FACTS, **more})


def findings(folder: Path, level: str = "full") -> list[str]:
    return [f"{finding.where}: {finding.message}" for finding in verification.verify(folder, level)]


def test_a_bundle_holds_the_store_and_is_checked_without_fostore(
    store: Path, tmp_path: Path
) -> None:
    made = published(store, tmp_path / "b")
    assert (made.version, made.changed) == ("1.0.0", True)
    copy = fostore.open(tmp_path / "b" / "data" / store.name)
    assert copy.digest() == made.digest == fostore.open(store).digest()
    if shutil.which("sha256sum"):
        lists = ["manifest-sha256.txt", "tagmanifest-sha256.txt"]
        subprocess.run(
            ["sha256sum", "--quiet", "--strict", "-c", *lists], cwd=tmp_path / "b", check=True
        )
    assert findings(tmp_path / "b") == []
    assert (tmp_path / "b" / "bagit.txt").read_text() == (  # RFC 8493, section 2.1.1
        "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
    )
    there = {path.name for path in (tmp_path / "b").iterdir()}
    assert there == {
        "bagit.txt", "data", "manifest-sha256.txt", "fostore-manifest.json", "croissant.json",
        "ro-crate-metadata.json", "datacite.json", "CITATION.cff", "README.md", "LICENSE",
        "tagmanifest-sha256.txt", "report.html",
    }  # fmt: skip


@pytest.mark.usefixtures("pictures")
def test_a_bundle_is_the_same_bit_by_bit_when_it_is_made_again(store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        published(store, tmp_path / name)
    assert read_list(tmp_path / "a", "tagmanifest-sha256.txt") == read_list(
        tmp_path / "b", "tagmanifest-sha256.txt"
    )
    stat = (tmp_path / "a" / "README.md").stat().st_ino
    again = fostore.publish(store, tmp_path / "a", progress=False)
    assert (again.version, again.changed) == ("1.0.0", False)
    assert (tmp_path / "a" / "README.md").stat().st_ino == stat


def test_versions_follow_the_digest(store: Path, tmp_path: Path) -> None:
    def version(**more: Any) -> str:
        return fostore.publish(store, tmp_path / "b", progress=False, **more).version

    published(store, tmp_path / "b")
    assert version(title="Another title") == "1.0.1"
    make(store, 2000)
    assert version() == "1.1.0"
    make(store, 2000, seed=1)
    assert version() == "2.0.0"
    make(store, 1500, seed=1)
    assert version() == "3.0.0"
    assert findings(tmp_path / "b") == []


def test_what_is_not_known_is_asked_for_and_nothing_is_written(store: Path, tmp_path: Path) -> None:
    for lacking in ("license", "creators", "description"):
        facts = {key: value for key, value in FACTS.items() if key != lacking}
        with pytest.raises(ArgumentError, match=lacking):
            fostore.publish(store, tmp_path / "b", progress=False, **facts)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.name] + [
        name for name in os.listdir(tmp_path) if "lock" in name
    ]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"license": "creative commons"}, "SPDX"),
        ({"creators": ["Ada <ada@example.org>"]}, "orcid"),
        ({"date": "yesterday"}, "YYYY-MM-DD"),
        ({"name": "../x"}, "letters"),
        ({"doi": "zenodo.1234"}, "expected one such as 10"),
        ({"url": "javascript:alert(1)"}, "expected an address"),
        ({"colour": "red"}, "unknown facts"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(
    facts: dict[str, Any], message: str, tmp_path: Path
) -> None:
    store = make(tmp_path / "rows.zarr")
    with pytest.raises(ArgumentError, match=message):
        published(store, tmp_path / "b", **facts)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("begin", ["", "doi:", "https://doi.org/", "http://dx.doi.org/"])
def test_a_doi_is_one_however_it_is_written(begin: str) -> None:
    """Else documents hold the address of an address, and a prefix that is none."""
    facts = Facts.of({"doi": f"{begin}10.5281/zenodo.1234"}, "here")
    assert facts.doi == "10.5281/zenodo.1234"
    assert Facts.of(facts.to_json(), "again") == facts


def test_facts_come_from_a_file_and_what_is_said_goes_before_it(tmp_path: Path) -> None:
    (tmp_path / "facts.toml").write_text(
        'license = "MIT"\ncreators = ["Ada", {name = "Bo", orcid = "https://orcid.org/0000-0002-1825-0097"}]\n'
        'description = "Text."\ndate = 2026-01-02\ntags = ["digits"]\n'
    )
    facts = Facts.of({"license": "CC0-1.0"}, "here").over(Facts.read(tmp_path / "facts.toml"))
    assert (facts.license, facts.date, facts.tags) == ("CC0-1.0", "2026-01-02", ("digits",))
    assert facts.creators[1] == Creator("Bo", "https://orcid.org/0000-0002-1825-0097")
    assert Facts.of(facts.to_json(), "again") == facts


def test_only_a_sealed_store_that_is_whole_is_published(store: Path, tmp_path: Path) -> None:
    half = tmp_path / f"half{store.suffix}"
    with fostore.create(half, num_samples=9, num_classes=3) as writer:
        writer.append(np.full((2, 3), 1 / 3))
    with pytest.raises(ArgumentError, match="not finished"):
        published(half, tmp_path / "b")
    rows = fostore.open(store).reader.segments(0)[0]
    with open(rows.path, "r+b") as file:
        file.seek(rows.offset)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(DamageError, match="nothing was published"):
        published(store, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_is_no_bundle_is_not_overwritten(tmp_path: Path) -> None:
    store = make(tmp_path / "rows.zarr")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreExistsError, match="no bundle"):
        published(store, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def all_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_tampering_with_any_file_is_found(store: Path, tmp_path: Path) -> None:
    """Every file is tampered with in place and put back, so that nothing is copied for it."""
    folder = tmp_path / "b"
    published(store, folder)
    names = all_files(folder)
    assert len(names) > 10
    for name in names:
        target, data = folder / name, (folder / name).read_bytes()
        middle = len(data) // 2
        for changed in (
            data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            data[:-1],
            b"something else\n",
            None,
        ):
            target.unlink() if changed is None else target.write_bytes(changed)
            # The lists alone tell it; how damaged rows are told is the store's to show.
            assert findings(folder, "structure"), name
        target.write_bytes(data)
    assert findings(folder) == []
    (folder / "data" / "more.txt").write_text("smuggled in")
    assert findings(folder) == ["data/more.txt: is listed nowhere"]


def test_lists_of_strangers_lead_nowhere(tmp_path: Path) -> None:
    published(make(tmp_path / "rows.zarr"), tmp_path / "b")
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", "/etc/passwd", "data/../../secret", "data//x", "C:/x"):
        (tmp_path / "b" / "manifest-sha256.txt").write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(UnsafeError, match="outside"):
            read_list(tmp_path / "b", "manifest-sha256.txt")
        assert findings(tmp_path / "b")
    manifest = tmp_path / "b" / bundle.MANIFEST
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**value, "store": "../rows.zarr"}))
    with pytest.raises(FormatError, match="outside"):
        bundle.read_manifest(tmp_path / "b")
    (tmp_path / "b" / "data" / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeError, match="no regular file"):
        findings(tmp_path / "b")


STEPS = "write_at sync_data rename exchange write_whole make_folders remove sync_directory".split()


class Died(BaseException):
    """No code of the package catches it, as none survives a kill."""


@contextmanager
def dying(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What `fostore.disk` does until the call `at` dies, and all after it, as clean-up does not happen either."""
    calls: list[str] = []

    def wrapped(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) > at:
                raise Died
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(disk, name, wrapped(name, getattr(disk, name)))
        yield calls


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_kill_at_any_step_leaves_a_bundle_and_the_next_call_goes_on(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, dest = make(tmp_path / "rows.zarr", 40), tmp_path / f"b{suffix}"
    published(store, dest)

    def contents() -> Any:
        return dest.read_bytes() if suffix else read_list(dest, TAGS)

    def is_whole() -> bool:
        if not suffix:
            return findings(dest, "structure") == []
        with zipfile.ZipFile(dest) as archive:
            return archive.testzip() is None

    old = contents()
    make(store, 50)
    fostore.publish(store, tmp_path / f"new{suffix}", progress=False, **FACTS)
    at, states = 0, []
    while True:
        with dying(at, monkeypatch) as calls:
            try:
                fostore.publish(store, dest, progress=False)
                break
            except Died:
                pass
        assert is_whole(), (at, calls)
        states.append(contents() == old)
        if not states[-1]:  # from here on there is nothing to send
            make(store, 50 + len(states))
            old = contents()
        at += 2 if suffix else 1  # the steps before the last are those of a folder
    assert len(states) > 25
    assert not all(states)
    assert is_whole()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".b")]


# ------------------------------------------------------------------ documents


def test_documents_fit_their_schemas(store: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    published(
        store, tmp_path / "b", doi="10.5281/zenodo.1234", url="https://example.org/x",
        dataset="https://example.org/digits", model="10.1000/model", tags=["digits: all"],
    )  # fmt: skip
    datacite = json.loads((tmp_path / "b" / "datacite.json").read_text())
    schema = json.loads((DATA / "datacite-4.5.schema.json").read_text())
    jsonschema.validate(datacite, schema)
    cff = yaml.safe_load((tmp_path / "b" / "CITATION.cff").read_text())
    jsonschema.validate(cff, json.loads((DATA / "cff-1.2.0.schema.json").read_text()))
    assert cff["authors"][0]["orcid"] == "https://orcid.org/0000-0002-1825-0097"
    front = (tmp_path / "b" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front)["size_categories"] == ["n<1K"]


def test_the_hub_reads_the_card(store: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    published(store, tmp_path / "b", tags=["digits"])
    card = hub.DatasetCard((tmp_path / "b" / "README.md").read_text())
    assert card.data.license == "cc-by-4.0"
    assert {"digits", "fostore"} <= set(card.data.tags)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".json"])
def test_the_card_says_how_to_read_rows_without_fostore(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "rows.zarr", 20)
    if suffix != ".zarr":
        fostore.convert(store, store := tmp_path / f"rows{suffix}", progress=False)
    published(store, tmp_path / "b")
    monkeypatch.chdir(tmp_path / "b")
    card = Path("README.md").read_text()
    names: dict[str, Any] = {}
    exec(card.partition("Without fostore:\n\n```python\n")[2].partition("```")[0], names)
    np.testing.assert_array_equal(np.float32(names["rows"]), fostore.open(store).take(range(3)))
    formats = {".zarr": "application/vnd+zarr", ".h5": "application/x-hdf5"}
    document = json.loads(Path("datacite.json").read_text())
    assert document["formats"] == [formats.get(suffix, "application/json")]


def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    published(make(tmp_path / "rows.zarr"), tmp_path / "b", license="LicenseRef-My-Terms")
    front = yaml.safe_load((tmp_path / "b" / "README.md").read_text().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "licenseref-my-terms")


def _records_of(path: Path) -> list[dict[str, Any]]:
    import mlcroissant as mlc

    with warnings.catch_warnings():  # of pandas and rdflib, for what mlcroissant does
        warnings.simplefilter("ignore")
        return list(mlc.Dataset(jsonld=str(path)).records("rows"))


def _ids_of(value: Any) -> Iterator[str]:
    """What a document defines: mappings that say more of an id than the id."""
    if isinstance(value, dict):
        if "@id" in value and len(value) > 1:
            yield value["@id"]
        for key, inner in value.items():
            if key != "@context":
                yield from _ids_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _ids_of(inner)


@pytest.mark.filterwarnings(
    "ignore:ConjunctiveGraph:DeprecationWarning"
)  # of rdflib, in mlcroissant
def test_croissant_is_loaded_and_what_is_wrong_in_it_is_refused(tmp_path: Path) -> None:
    mlc = pytest.importorskip("mlcroissant")
    pytest.importorskip("pyarrow")
    store = make(tmp_path / "rows.zarr", 50, class_labels=np.arange(50) % 5)
    published(store, tmp_path / "b", parquet=True)
    path = tmp_path / "b" / "croissant.json"
    records = _records_of(path)
    assert [r["rows/sample_id"] for r in records] == [f"img-{k}".encode() for k in range(50)]
    rows = np.array([r["rows/probs"] for r in records], np.float32)
    np.testing.assert_array_equal(rows, fostore.open(store).take(range(50)))
    assert [r["rows/label"] for r in records] == [k % 5 for k in range(50)]
    document = json.loads(path.read_text())
    [field] = [f for f in document["recordSet"][0]["field"] if f["name"] == "probs"]
    assert field["arrayShape"] == "5"
    [parquet] = [f for f in document["distribution"] if f["@id"].endswith(".parquet")]
    for wrong, key, value in (
        (parquet, "sha256", "0" * 64),
        (field["source"]["extract"], "column", "nothing"),
        (field["source"]["fileObject"], "@id", "data/nothing.parquet"),
    ):
        right, wrong[key] = wrong[key], value
        path.write_text(json.dumps(document))
        with pytest.raises((mlc.ValidationError, mlc.GenerationError)):
            _records_of(path)
        wrong[key] = right


@pytest.mark.parametrize("document", ["croissant.json", "ro-crate-metadata.json"])
def test_no_id_of_a_document_stands_for_two_things(document: str, tmp_path: Path) -> None:
    """Validators pass documents in which one does, and load the last."""
    pytest.importorskip("pyarrow")
    where = "https://example.org/x"  # of the dataset, the model and the base dataset at once
    published(
        make(tmp_path / "rows.zarr", 50), tmp_path / "b", parquet=True, model=where, dataset=where,
        url=where, creators=[ADA, ADA],
    )  # fmt: skip
    ids = list(_ids_of(json.loads((tmp_path / "b" / document).read_text())))
    assert len(ids) > 5
    assert sorted(ids) == sorted(set(ids))


def test_an_archive_and_a_store_are_told_to_be_no_bundle(store: Path, tmp_path: Path) -> None:
    published(store, tmp_path / "b.zip")
    with pytest.raises(FormatError, match="unzip"):
        fostore.cite(tmp_path / "b.zip")
    with pytest.raises(FormatError, match="fostore publish"):
        fostore.cite(store)
    with pytest.raises(StoreNotFoundError, match="there is nothing at"):
        fostore.cite(tmp_path / "nothing.zip")


def test_the_tree_digest_is_that_of_the_model_signature(store: Path, tmp_path: Path) -> None:
    hashing = pytest.importorskip("model_signing.hashing")
    import hashlib

    published(store, tmp_path / "b")
    total = hashlib.sha256()
    for item in hashing.hash(tmp_path / "b" / "data").resource_descriptors():
        total.update(item.digest.digest_value)
    assert bundle.read_manifest(tmp_path / "b")["tree"] == f"sha256:{total.hexdigest()}"


def test_column_digests_make_the_digest(store: Path, tmp_path: Path) -> None:
    published(store, tmp_path / "b")
    manifest = bundle.read_manifest(tmp_path / "b")
    opened = fostore.open(store)
    from blake3 import blake3

    from fostore.schema import digest

    text = digest.canonical(opened.header)
    total = blake3(len(text).to_bytes(8, "little") + text)
    for column in manifest["columns"].values():
        total.update(bytes.fromhex(column.removeprefix("blake3:")))
    assert f"blake3:{total.hexdigest()}" == manifest["digest"]


def test_licences_are_spelled_as_the_standard_does() -> None:
    assert spdx("apache-2.0") == "Apache-2.0"
    assert spdx("mit or CC0-1.0") == "MIT OR CC0-1.0"
    with pytest.raises(ArgumentError, match="SPDX"):
        spdx("my licence")


# ------------------------------------------------------------------ the command line


def test_the_whole_story_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "digits.zarr")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == code, result.stderr
        return result.stdout, result.stderr

    out, _ = call("publish", "digits.zarr", "--check", code=1)
    assert out.startswith("required     license")
    gaps = json.loads(call("publish", "digits.zarr", "--dry-run", "--json", code=1)[0])
    assert gaps[0]["fact"] == "license"
    _, said = call("publish", "digits.zarr", "b", code=2)
    assert "--license" in said
    facts = ["--license", "CC-BY-4.0", "--creator", ADA, "--description", "Digits."]
    out, said = call("publish", "digits.zarr", "b", "-q", *facts)
    assert "version 1.0.0" in out
    assert "nobody said: model_license (--model-license" in said
    assert "nothing has changed" in call("publish", "digits.zarr", "b", "-q")[0]
    assert "required" not in call("publish", "digits.zarr", "b", "--check")[0]
    assert json.loads(call("publish", "digits.zarr", "b", "-q", "--json")[0])["changed"] is False
    assert call("cite", "b", "--as", "line")[0].startswith("Ada Lovelace (20")
    assert "@misc{Lovelace" in call("cite", "b")[0]
    assert "300 rows" in call("verify", "b")[0]
    (tmp_path / "b" / "LICENSE").write_text("mine")
    assert "LICENSE: has the SHA-256" in call("verify", "b", code=1)[0]
