"""TinyViT's saved teacher: for each image of one epoch the seed of its augmentation and the k largest probabilities.

Layout: a folder `logits_top<k>_epoch<e>` with a pair of files a rank, `rank<r>-keys.txt`, a key a line, and
`rank<r>-values.bin`, an entry a key: the seed (int32), k classes (int16) and k probabilities (float16), largest first.
Source: microsoft/Cream, TinyViT: `save_logits.py` (save_logits_one_epoch), `data/augmentation/manager.py` (_Writer) and
`data/augmentation/dataset_wrapper.py` (_get_saved_logits); Wu et al., "TinyViT" (ECCV 2022), section 3.1.
Probabilities are a softmax at temperature 1 over all classes; how many there are stands nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fostore.errors import FormatError
from fostore.files import FileFormat, Hints, Holds, refuse_inside
from fostore.files._flat import Flat, open_source
from fostore.files._ranked import NUM_CLASSES, Ranked, answers, ranked_schema, skipping
from fostore.files.table import Table
from fostore.schema.row import Array
from fostore.schema.sides.ids import MAX_WIDTH, encode_ids, id_column
from fostore.schema.sides.views import VIEW

_KEYS = re.compile(r"rank(\d+)-keys\.txt")
_EPOCH = re.compile(r"epoch(\d+)\Z")
_SEED_BYTES, _ENTRY_BYTES = 4, 4
_ROWS = 4096


@dataclass(frozen=True, slots=True)
class _Rank:
    """The files of one process that wrote, and how many keys there are."""

    keys: Path
    values: Path
    num_rows: int
    longest: int
    """Bytes of the longest key."""


class _TinyVit(FileFormat):
    """See `fostore.files.FileFormat`."""

    name = "tinyvit"
    holds = Holds(header=False, dtypes=())

    def read(self, path: Path, hints: Hints) -> Table:
        """The folder of one epoch: rows in the order of ranks, keys as ids, and (seed, epoch) as views.

        Raises:
            ArgumentError: nobody says how many classes there are.
            FormatError: files are missing, or keys and values do not go together.
        """
        refuse_inside(path, hints)
        where = str(path)
        answered = answers(hints, where, (NUM_CLASSES,))
        ranks = _ranks(path)
        k = _size_of(ranks, where)
        epoch = _EPOCH.search(path.name)
        column = id_column(f"S{-(-max(rank.longest for rank in ranks) // 8) * 8}")
        schema = ranked_schema(
            where,
            answered,
            num_classes=answered["num_classes"],
            k=k,
            kind="probs",
            dtype=hints.dtype or "float16",
            is_whole=True,
            temperature=1.0,
            hints=hints,
            side_columns=(column, VIEW),
        )
        view = int(epoch.group(1)) if epoch else 0

        def pieces() -> Iterator[Ranked]:
            for rank in ranks:
                yield from _pieces(rank, k, view, column)

        return Table(
            where=where,
            format=self.name,
            schema=schema,
            num_rows=sum(rank.num_rows for rank in ranks),
            batches=skipping(pieces, schema, where, is_whole=True),
            notes=(
                f"{len(ranks)} ranks, top {k} of an epoch; what other classes weigh is what is missing from 1",
            ),
            took=frozenset({"layout", "dtype", "class_names", "tol"}),
        )


def _ranks(path: Path) -> list[_Rank]:
    if not path.is_dir():
        raise FormatError(
            f"{path} is no folder; TinyViT saves one an epoch, logits_top<k>_epoch<e>"
        )
    numbered = {int(m.group(1)): name for name in os.listdir(path) if (m := _KEYS.fullmatch(name))}
    if not numbered:
        raise FormatError(
            f"{path} holds no rank<r>-keys.txt, as TinyViT's save_logits.py writes them"
        )
    ranks = []
    for number in sorted(numbered):
        keys = path / numbered[number]
        values = path / f"rank{number}-values.bin"
        num_rows, longest = 0, 1
        for key in _lines(keys):
            num_rows, longest = num_rows + 1, max(longest, len(key.encode()))
        ranks.append(_Rank(keys, values, num_rows, longest))
    return ranks


def _lines(path: Path) -> Iterator[str]:
    fd, _ = open_source(path)
    with os.fdopen(fd, "r", encoding="utf-8", newline="\n") as file:
        try:
            while line := file.readline(MAX_WIDTH + 2):
                key = line.removesuffix("\n")
                if not key or len(key) > MAX_WIDTH:
                    raise FormatError(f"{path} has a key that is empty or over {MAX_WIDTH} letters")
                yield key
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} is no UTF-8 text: {error}") from error


def _size_of(ranks: list[_Rank], where: str) -> int:
    """k, from how many bytes there are for each key."""
    sizes = set()
    for rank in ranks:
        fd, size = open_source(rank.values)
        os.close(fd)
        if not rank.num_rows and not size:
            continue
        entry, rest = divmod(size, max(rank.num_rows, 1))
        k, odd = divmod(entry - _SEED_BYTES, _ENTRY_BYTES)
        if rest or odd or k < 1:
            raise FormatError(
                f"{rank.values} has {size:,} bytes for {rank.num_rows} keys, expected 4 + 4 k for each: one of the two "
                "files was cut"
            )
        sizes.add(k)
    if len(sizes) != 1:
        raise FormatError(
            f"{where} lists {sorted(sizes) or 'no'} classes a row, expected one number"
        )
    return sizes.pop()


def _pieces(rank: _Rank, k: int, view: int, column: object) -> Iterator[Ranked]:
    entry = np.dtype([("seed", "<i4"), ("ids", "<u2", (k,)), ("values", "<f2", (k,))])
    keys = _lines(rank.keys)
    row = 0
    for raw in Flat(rank.values, 0, entry, (rank.num_rows,)).batches(0, _ROWS):
        names = [name for name, _ in zip(keys, raw, strict=False)]
        if len(names) != len(raw):
            raise FormatError(f"{rank.keys} has become shorter while it was read")
        seeds = raw["seed"].astype("<i8")
        sides: tuple[Array, ...] = (
            encode_ids(names, column, row),  # type: ignore[arg-type]  # the column of ids
            np.stack([seeds, np.full_like(seeds, view)], axis=1),
        )
        yield Ranked(raw["values"], raw["ids"], None, sides)
        row += len(raw)


FORMAT = _TinyVit()
