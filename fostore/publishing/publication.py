"""`fostore.publish` and `fostore.cite`: from a store to a bundle with a name, a version and a licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError
from fostore.places.lock import Lock
from fostore.places.names import local_path
from fostore.progress import LOG
from fostore.publishing import bundle, signature
from fostore.publishing.described import Described
from fostore.publishing.documents import citation
from fostore.publishing.facts import Facts, Gap
from fostore.publishing.manifest import tree_digest
from fostore.publishing.targets import Target, target_of
from fostore.publishing.version import FIRST, next_version
from fostore.reading.named import parse_manifest
from fostore.reading.store import Store
from fostore.reading.store import open as open_store
from fostore.schema import jsontext


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published: where, which version, and what nobody said of it."""

    where: str
    version: str
    digest: str
    num_files: int
    num_bytes: int
    changed: bool
    """Whether anything differs from what was there before."""
    gaps: tuple[Gap, ...]


def publish(
    store: Any,
    dest: Any,
    *,
    license: str | None = None,
    creators: Sequence[str] = (),
    description: str | None = None,
    title: str | None = None,
    model_license: str | None = None,
    outputs_license: str | None = None,
    facts: Any = None,
    parquet: bool = False,
    private: bool = False,
    revision: str | None = None,
    sign: Any = None,
    progress: bool = True,
    **more: str,
) -> Publication:
    """Make a dataset of a sealed store that others find, cite and check: a bundle at `dest`.

    A bundle holds the store under `data/`, lists of its files that `sha256sum -c` takes, and documents for
    people and machines (README.md, LICENSE, CITATION.cff, croissant.json, datacite.json,
    ro-crate-metadata.json). It depends on the store and the facts alone: made again, it is the same, bit by bit.
    Publishing into a bundle that is there makes its next version: the same digest a patch, rows appended a
    minor, anything else a major version; with the same store and facts it changes nothing.

    Args:
        store: a path, or an open store; sealed.
        dest: a folder, a `.zip` file, `hf://datasets/USER/NAME[@REVISION]`, or `s3://bucket/prefix` (also gs,
            az). A folder or file appears, or changes, whole: a kill leaves what was there before. The next call
            goes on with what the first had copied or sent, and sends only what has changed.
        license: of the rows, as an SPDX id such as "CC-BY-4.0". Required.
        creators: texts such as "Ada Lovelace <https://orcid.org/...>". Required.
        description: what the rows are, in a sentence or two. Required.
        title: what readers call it.
        model_license, outputs_license: of the model, and of what its terms say about outputs.
        facts: `Facts`, or a TOML file with any of these and of `Facts`; what is said here goes before it.
        parquet: also write the rows as Parquet, which hubs, duckdb and polars read (needs pyarrow).
        private, revision: of a repository on the hub.
        sign: a private key (elliptic curve, PEM), with which `data/` is signed (OpenSSF model-signing, extra `sign`).
        progress: show a bar on stderr.
        **more: any other field of `Facts`, such as `doi`, `dataset`, `limits`.

    Raises:
        ArgumentError: the store is not sealed, or a required fact is missing; names what to give.
        StoreExistsError: `dest` holds something that is no bundle.
        LockedError: another publisher is at work there.
        SpaceError, PlaceError: the disk or the service refuses; what was published before stands.
        StoreNotFoundError, FormatError, DamageError: see `fostore.open`.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    if not isinstance(opened.path, Path):
        raise ArgumentError(
            f"{opened.path} lies behind a url; fetch it with Store.download, and publish that"
        )
    _refuse_unfinished(opened)
    target = target_of(dest, opened.path, private=private, revision=revision)
    given = Facts.of(
        {
            key: value
            for key, value in {
                "license": license,
                "creators": list(creators),
                "description": description,
                "title": title,
                "model_license": model_license,
                "outputs_license": outputs_license,
                **more,
            }.items()
            if value
        },
        "publish",
    )
    if facts is not None:
        given = given.over(facts if isinstance(facts, Facts) else Facts.read(local_path(facts)))
    key = None if sign is None else local_path(sign)
    folder = target.staging.parent
    if folder.absolute().is_relative_to(opened.path.absolute()):
        raise ArgumentError(f"{target.name!r} lies in the store; choose a place beside it")
    if not folder.is_dir():
        _refuse_gaps(given)  # no bundle is there that has said more, and no folder is made in vain
        disk.make_folders(folder)
    with Lock.acquire(target.staging):
        return _publish(opened, target, given, parquet=parquet, key=key, progress=progress)


def _refuse_unfinished(store: Store) -> None:
    if not store.is_sealed:
        raise ArgumentError(
            f"{store.path} is not finished ({len(store):,} rows of {store.num_samples or 'a stream'}): "
            "only a sealed store has a digest to cite"
        )


def _refuse_gaps(facts: Facts) -> None:
    if lacking := [gap for gap in facts.gaps() if gap.grade == "required"]:
        asked = "; ".join(f"{gap.fact}: {gap.how}" for gap in lacking)
        raise ArgumentError(
            f"nothing was published, for facts are missing that only you know: {asked}"
        )


def _publish(
    store: Store,
    target: Target,
    facts: Facts,
    *,
    parquet: bool,
    key: Path | None,
    progress: bool,
) -> Publication:
    before, facts = _known(target, facts)
    _refuse_gaps(facts)
    LOG.info("publishing %s to %s", store.path, target.name)
    staging = target.staging
    disk.make_folders(staging)
    copy, files = bundle.write_payload(store, staging, parquet, progress)
    described = Described(
        store=copy,
        facts=facts,
        version=FIRST,
        store_path=f"{bundle.DATA}{store.path.name}",
        parquet=bundle.parquet_name(copy) if parquet else None,
        files=files,
        tree=tree_digest(files, bundle.DATA),
    )
    if before is not None:
        described = replace(described, version=str(before["version"]))
        if jsontext.loads(bundle.manifest(described), "the manifest") != before:
            version = next_version(
                str(before["version"]), copy, str(before["digest"]), int(before["num_samples"])
            )
            described = replace(described, version=version)
    signed = None if key is None else _signature(target, described, key)
    documents = bundle.write_documents(staging, described, signed)
    is_changed = target.send([*files, *documents], described.version)
    disk.remove(staging)  # the bundle of before, or one more of the same
    LOG.info("published %s: version %s, %s", target.name, described.version, copy.digest())
    return Publication(
        where=target.name,
        version=described.version,
        digest=copy.digest(),
        num_files=len(files),
        num_bytes=described.num_bytes,
        changed=is_changed,
        gaps=tuple(check(store, facts)),
    )


def _known(target: Target, facts: Facts) -> tuple[Mapping[str, Any] | None, Facts]:
    """The manifest of the bundle that is there, and all facts: what was said once need not be said again."""
    text = target.read(bundle.MANIFEST, bundle.MAX_MANIFEST)
    if text is None:
        return None, facts
    before = parse_manifest(text, f"{target.name}/{bundle.MANIFEST}")
    return before, facts.over(Facts.of(before["facts"], target.name))


def _signature(target: Target, described: Described, key: Path) -> bytes:
    return signature.sign(
        target.staging / bundle.DATA,
        target.staging / bundle.SIGNATURE,
        key,
        {file.name.removeprefix(bundle.DATA): file.sha256 for file in described.files},
        described.tree,
        target.read(bundle.SIGNATURE, signature.MAX_SIGNATURE),
    )


def check(store: Any, facts: Facts, dest: Any = None) -> list[Gap]:
    """What is missing before `store` can be published with `facts`, graded; the required ones first.

    Facts of the bundle at `dest`, if one is there, count as given.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    if dest is not None:
        facts = _known(target_of(dest, opened.path, private=False, revision=None), facts)[1]
    gaps = facts.gaps()
    if not opened.is_sealed:
        gaps.insert(
            0, Gap("digest", "required", "finish the store: only a sealed one can be cited")
        )
    if opened.schema.class_names is None:
        gaps.append(Gap("class_names", "recommended", "fostore convert --class-names"))
    for made_from in ("model", "dataset"):
        if not opened.header.identity.get(made_from):
            gaps.append(
                Gap(
                    f"identity of the {made_from}",
                    "recommended",
                    "generate the store with fostore, which records it",
                )
            )
    return gaps


def cite(path: Any) -> dict[str, str]:
    """How to cite a bundle: `bibtex`, `cff` (the text of CITATION.cff) and `line`, a line for a paper.

    Raises:
        StoreNotFoundError, FormatError: there is no bundle at `path`.
    """
    described = bundle.described_of(local_path(path))
    return {
        "bibtex": citation.bibtex(described),
        "cff": citation.cff(described).decode(),
        "line": citation.line(described),
    }
