"""What a store is asked to be: the parameters of `create` and `plan`, checked, as a header or held against one."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from fostore.encodings import chosen, make_schema
from fostore.errors import ArgumentError, UnsupportedError
from fostore.schema import geometry
from fostore.schema.header import VERSION, Header
from fostore.schema.identity import ANEW, refuse
from fostore.schema.integers import integer
from fostore.schema.jsontext import check_object
from fostore.schema.row import Column
from fostore.version import __version__
from fostore.writing.sides import ROWS, Sides, check_kept, side_columns, token_sides


@dataclass(frozen=True, slots=True)
class Request:
    """Parameters of `fostore.create`, which says what each means."""

    num_samples: int | None = None
    num_classes: int | None = None
    num_members: int | None = None
    dtype: str | None = None
    kind: str | None = None
    class_names: Sequence[str] | None = None
    temperature: float | None = None
    ids: Any = None
    fingerprints: bool = False
    labels: bool = False
    views: Any = None
    meta: Mapping[str, Any] | None = None
    identity: Mapping[str, Any] | None = None
    unit_rows: int | None = None
    tol: float | None = None
    encoding: str | Mapping[str, Any] | None = None
    class_labels: Any = None
    rows: str | None = None
    num_sequences: int | None = None
    tokens: bool | None = None
    positions: bool = False
    vocab_size: int | None = None
    k: int | None = None
    rule: str | None = None
    temperatures: Sequence[float] | None = None
    beside: tuple[Column, ...] = field(init=False, default=())
    """The side columns; made once, since every key of a large dataset is looked at for it."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """The parameters among other names, checked one by one.

        Raises:
            ArgumentError: a value that no store can have.
        """
        request = cls(**{one.name: given[one.name] for one in fields(cls) if one.name in given})
        for name in ("num_samples", "num_sequences"):
            count = getattr(request, name)
            if count is not None:
                integer(count, name, 0)
        for name in ("commit_seconds", "temperature", "tol"):
            value = given.get(name)
            if value is not None and not hasattr(value, "__float__"):
                raise ArgumentError(f"{name} is {value!r}, expected a number")
        beside = tuple(side_columns(request.sides, request.num_samples))
        object.__setattr__(request, "beside", beside)
        request.chosen()
        check_object(request.meta)
        check_object(request.identity, "identity")
        return request

    @property
    def sides(self) -> Sides:
        """The values of side columns, or promises of them."""
        return {
            "ids": self.ids,
            "fingerprints": bool(self.fingerprints),
            "labels": bool(self.labels),
            "views": self.views,
            "class_labels": self.class_labels,
            **token_sides(
                self.rows,
                self.num_classes,
                {
                    "num_sequences": self.num_sequences,
                    "tokens": self.tokens,
                    "positions": self.positions,
                    "vocab_size": self.vocab_size,
                },
            ),
        }

    def chosen(self) -> Any:
        """The encoding that was asked for, with its parameters; None where none was."""
        return chosen(self.encoding, k=self.k, rule=self.rule, temperatures=self.temperatures)

    def header(self, path: object, *, is_capped: bool = True) -> Header:
        """The header of a new store.

        Args:
            path: names it in messages.
            is_capped: see `geometry.unit_rows`.
        """
        if self.num_classes is None:
            raise ArgumentError(f"{str(path)!r} is a new store and needs num_classes")
        sides, planned = self.sides, self.num_samples
        schema = make_schema(
            self.num_classes,
            num_members=self.num_members,
            kind=self.kind or "probs",
            dtype=self.dtype,
            class_names=self.class_names,
            temperature=1.0 if self.temperature is None else self.temperature,
            tol=self.tol,
            encoding=self.chosen(),
            side_columns=self.beside,
            row_axis=ROWS[self.rows or "samples"],
        )
        sequences = self.num_sequences
        header = Header(
            schema=schema,
            num_samples=None if planned is None else int(planned),
            unit_rows=geometry.unit_rows(
                schema.row_bytes, planned, self.unit_rows, is_capped=is_capped
            ),
            block_rows=geometry.block_rows(schema.row_bytes),
            identity=check_object(self.identity, "identity"),
            software=software(),
            meta=check_object(self.meta),
            num_sequences=None if sequences is None else int(sequences),
        )
        check_kept(header, sides)
        return header

    def check_same(self, path: str | Path, header: Header, *, cure: str = ANEW) -> None:
        """Refuse a store that is there and is not what is asked for; what is not asked for is as it has it.

        Raises:
            IdentityError: names what differs.
            UnsupportedError: it was written by another version of the format.
        """
        if header.version != VERSION:
            raise UnsupportedError(
                f"{str(path)!r} was written by version {header.version} of the format; this release "
                f"writes {VERSION} and could break what is new there: go on with a newer fostore"
            )
        asked = {
            "num_classes": self.num_classes,
            "num_members": self.num_members,
            "dtype": self.dtype,
            "kind": self.kind,
            "class_names": None if self.class_names is None else tuple(self.class_names),
            "temperature": self.temperature,
            "sum_tolerance": self.tol,
            "encoding": self.chosen(),
            "unit_rows": self.unit_rows,
            "row_axis": None if self.rows is None else ROWS[self.rows],
            "vocab_size": self.vocab_size,
        }
        differences = []
        for name, value in asked.items():
            stored = header.unit_rows if name == "unit_rows" else getattr(header.schema, name)
            if value is not None and value != stored:
                differences.append(f"{name} is {stored!r} in the store and {value!r} was asked for")
        refuse(path, differences, cure)
        check_kept(header, self.sides)


def software() -> dict[str, str]:
    """The versions that a store records and nobody checks."""
    return {
        "fostore": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
