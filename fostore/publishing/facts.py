"""What only people know of a dataset: whose it is, under which licence, what it is about. Never invented."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fostore import disk
from fostore.errors import ArgumentError

_MAX_TOML = 1 << 20
_ORCID = re.compile(r"https://orcid\.org/\d{4}-\d{4}-\d{4}-\d{3}[\dX]\Z")
_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:)?(10\.\d{4,9}/[^\s\"<>]+)", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://[^\s\"<>]+")
_DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\Z")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")


@dataclass(frozen=True, slots=True)
class Creator:
    """A person or a group, and an ORCID if one is known.

    >>> Creator.parse("Ada Lovelace <https://orcid.org/0000-0002-1825-0097>").orcid
    'https://orcid.org/0000-0002-1825-0097'
    """

    name: str
    orcid: str | None = None

    @classmethod
    def parse(cls, text: str) -> Creator:
        """A creator as the command line takes it: `Name` or `Name <https://orcid.org/...>`."""
        name, _, rest = text.partition("<")
        orcid = rest.rstrip("> ") if rest else None
        if not name.strip() or (orcid is not None and not _ORCID.match(orcid)):
            raise ArgumentError(
                f"creator is {text!r}, expected a name, or 'Name <https://orcid.org/0000-0000-0000-0000>'"
            )
        return cls(name.strip(), orcid)


@dataclass(frozen=True, slots=True)
class Gap:
    """A fact that nobody has given: how much it matters, and how to give it."""

    fact: str
    grade: str
    """"required": without it nothing is published; "recommended": readers will ask for it."""
    how: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a publication says beside what the store knows of itself.

    `license` is that of the rows published here, `model_license` that of the model that made them, and
    `outputs_license` what the model's terms say of its outputs; SPDX expressions all three, or
    `LicenseRef-...` for terms of one's own. `date` is the day of publication (YYYY-MM-DD; by default the
    day on which the store was last written, so that a bundle can be made again, bit by bit).
    """

    license: str | None = None
    creators: tuple[Creator, ...] = ()
    description: str | None = None
    title: str | None = None
    name: str | None = None
    model_license: str | None = None
    outputs_license: str | None = None
    dataset: str | None = None
    """Where the base dataset is to be had: a url or a DOI."""
    model: str | None = None
    """Where the model is to be had."""
    url: str | None = None
    """Where this dataset will be found."""
    doi: str | None = None
    date: str | None = None
    tags: tuple[str, ...] = ()
    limits: str | None = None
    """What the rows should not be used for."""
    license_text: str | None = None

    def __post_init__(self) -> None:
        for name in ("license", "model_license", "outputs_license"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, spdx(given, name))
        if self.date is not None and not _DATE.match(self.date):
            raise ArgumentError(f"date is {self.date!r}, expected a day as YYYY-MM-DD")
        if self.doi is not None:
            doi = _DOI.fullmatch(self.doi)
            if doi is None:
                raise ArgumentError(
                    f"doi is {self.doi!r}, expected one such as 10.5281/zenodo.1234"
                )
            object.__setattr__(self, "doi", doi[1])
        if self.url is not None and not _ADDRESS.fullmatch(self.url):
            raise ArgumentError(f"url is {self.url!r}, expected an address: https://...")
        if self.name is not None and not _SLUG.match(self.name):
            raise ArgumentError(
                f"name is {self.name!r}, expected letters, digits, '.', '_' and '-', at most 96 of them"
            )

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Facts from a TOML file: the names of the fields, `creators` a list of texts or of {name, orcid}.

        Raises:
            ArgumentError: no TOML, an unknown key, or a value that cannot be used; names it.
        """
        text = disk.read_named(path, _MAX_TOML, "a TOML file of facts")
        try:
            given = tomllib.loads(text.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ArgumentError(f"{path}: no TOML: {error}") from error
        return cls.of(given, str(path))

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Facts:
        """Facts from plain values; `where` names their source in messages."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ArgumentError(f"{where}: unknown facts {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key == "creators":
                creators = (_creator(entry, where) for entry in _list(value, key, where))
                values[key] = tuple(dict.fromkeys(creators))
            elif key == "tags":
                values[key] = tuple(_text(entry, key, where) for entry in _list(value, key, where))
            else:
                values[key] = _text(value, key, where)
        return cls(**values)

    def over(self, other: Facts) -> Facts:
        """These facts, and those of `other` where nothing is said here."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        return replace(other, **given)

    def to_json(self) -> dict[str, Any]:
        """What was said, as plain values that `of` takes."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "creators":
                value = [{"name": c.name, **({"orcid": c.orcid} if c.orcid else {})} for c in value]
            if value:
                plain[field.name] = list(value) if isinstance(value, tuple) else value
        return plain

    def gaps(self) -> list[Gap]:
        """What nobody has said, the required ones first."""
        asked = (
            ("license", "required", "--license CC-BY-4.0 (an SPDX id)"),
            ("creators", "required", '--creator "Name <https://orcid.org/...>"'),
            ("description", "required", '--description "what the rows are, in a sentence or two"'),
            ("title", "recommended", '--title "..."'),
            ("model_license", "recommended", "--model-license Apache-2.0"),
            ("outputs_license", "recommended", "--outputs-license CC-BY-4.0"),
            ("dataset", "recommended", "--dataset URL of the base dataset"),
            ("model", "recommended", "--model URL of the model"),
            ("url", "recommended", "--url where this dataset will be found"),
            ("limits", "recommended", '--limits "what the rows should not be used for"'),
        )
        return [Gap(fact, grade, how) for fact, grade, how in asked if not getattr(self, fact)]


def spdx(text: str, what: str = "license") -> str:
    """An SPDX licence expression as the standard spells it.

    Raises:
        ArgumentError: the standard knows no such licence.

    >>> spdx("cc-by-4.0")
    'CC-BY-4.0'
    """
    # The list of all licences, which the command line has no use for when it starts.
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise ArgumentError(
            f"{what} is {text!r}, expected an SPDX id such as CC-BY-4.0, CC0-1.0, MIT or Apache-2.0, or "
            "LicenseRef-NAME for terms of your own"
        ) from error


def _creator(entry: Any, where: str) -> Creator:
    if isinstance(entry, Mapping) and set(entry) <= {"name", "orcid"} and "name" in entry:
        orcid = f" <{entry['orcid']}>" if entry.get("orcid") else ""
        return Creator.parse(f"{entry['name']}{orcid}")
    return Creator.parse(_text(entry, "creators", where))


def _list(value: Any, key: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArgumentError(f"{where}: {key} is {value!r}, expected a list")
    return value


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if key == "date" and hasattr(value, "isoformat"):  # TOML has dates
        return str(value.isoformat())[:10]
    raise ArgumentError(f"{where}: {key} is {value!r}, expected a text that is not empty")
