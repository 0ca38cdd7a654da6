"""One conversion on its way: written under a temporary name, checked, published, and told in a receipt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fostore import disk
from fostore.conversion.behind import begin_behind, write_behind
from fostore.conversion.destination import refuse_inside, refuse_target
from fostore.conversion.part import Part, otherwise
from fostore.conversion.passage import Passage
from fostore.conversion.plan import Plan
from fostore.conversion.receipt import Receipt
from fostore.conversion.sources import open_table
from fostore.errors import (
    ArgumentError,
    DamageError,
    FormatError,
    FostoreError,
    LockedError,
    PlaceError,
    SpaceError,
    StoreExistsError,
)
from fostore.files.hashing import digest_of
from fostore.files.stores import guarded
from fostore.files.table import Batch
from fostore.places.lock import Lock
from fostore.places.names import STREAM
from fostore.places.place import Storage
from fostore.progress import Progress
from fostore.schema.digest import store_digest
from fostore.schema.header import now
from fostore.schema.row import Array
from fostore.writing.create import create_like
from fostore.writing.request import software

# Written and summed while they are in the cache: measured faster than 4 MiB.
_COPIED_BYTES = 1 << 20
_COMMIT_SECONDS = 3.0  # what a kill may cost; each commit waits for the disk


class Conversion:
    """One conversion on its way: from its plan, over a part beside the destination, to the receipt."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._verify_level: str = plan.options.verify
        self._passage = Passage(plan)
        self._digest = ""

    def __enter__(self) -> Conversion:
        return self

    def __exit__(self, *_: object) -> None:
        self._passage.close()
        if self._plan.passing is not None:
            self._plan.passing.close()

    # ---------------------------------------------------------------- where it goes

    def stream(self) -> None:
        """To the standard output: what came through cannot be taken back."""
        file_format = self._plan.file_format
        assert file_format is not None
        with self._progress("converting", 0) as bar:
            file_format.write(Path(STREAM), self._plan.header, self._passage.rows(0, bar), 0)
        self._end(self._passage.digest())
        self._verify_level = "none"  # there is nothing to read back

    def to_path(self, path: Path, part: Part) -> None:
        """To a path, by way of a part beside it."""
        refuse_inside(path)
        disk.make_folders(path.parent)
        with Lock.acquire(path):
            # Where the kernel exchanges no names, a kill may have left what was here under another one.
            disk.mend_exchange(path)
            if path.exists() and self._plan.options.exists == "fail":
                raise StoreExistsError(
                    f"{str(path)!r} exists; exists='overwrite' replaces it, exists='resume' accepts "
                    "it if it holds the same rows (--exists)"
                )
            if path.exists() and self._plan.options.exists == "resume":
                self._accept(path)
                part.remove()  # of an earlier call, which nobody goes on with now
                return
            refuse_target(path, self._plan.source)
            goes_on = part.begin()
            try:
                self._write(part.path, goes_on)
                self._verify(part.path)
            except (SpaceError, LockedError, PlaceError):
                raise  # what was written is right, and the same call goes on with it
            except FostoreError as error:
                part.remove()  # going on with it would only fail again
                error.__dict__.pop("__notes__", None)  # which say how to go on with the part
                raise
            part.publish()

    def to_storage(self, place: Storage) -> None:
        """To an object store, where nothing can be exchanged: unit by unit into its place, and sealed at the end."""
        writer = begin_behind(place, self._plan)
        if writer is None:
            self._accept(place.url)
            return
        with closing(writer), self._progress("converting", len(writer)) as bar:
            write_behind(writer, self._plan, self._passage, bar)
            self._end(self._passage.digest())  # before anybody can take it for whole
            writer.seal()
        self._verify(place.url)

    # ---------------------------------------------------------------- writing

    def _write(self, part: Path, goes_on: bool) -> None:
        file_format = self._plan.file_format
        if file_format is None:
            self._end(self._write_store(part))
            return
        start = file_format.resume_at(part, self._plan.header) if goes_on else 0
        self._distrust(start)
        with self._progress("converting", start) as bar:
            file_format.write(part, self._plan.header, self._passage.rows(start, bar), start)
        self._end(self._passage.digest())

    def _write_store(self, part: Path) -> str:
        plan = self._plan
        with create_like(part, plan.header, commit_seconds=_COMMIT_SECONDS) as writer:
            row = start = len(writer)
            self._distrust(start)
            promised = self._promised()
            # Rows that all go through the writer are hashed there.
            self._passage.is_hashed = start > 0 and promised is None
            if promised is not None:
                # Reading it back will take the one hash of every row that shows both: that the source
                # has the rows that were sealed, and that the destination has them now.
                writer.promise_hashes(promised)
            read = self._passage.rows if promised is None else self._raw
            with self._progress("converting", start) as bar:
                for batch in read(start, bar):
                    writer.write_columns(row, batch, checked=True)
                    row += len(batch[0])
            writer.watch.measured(self._passage.figures, plan.options.max_kl)
            writer.seal()
            digest = writer.header.digest
        assert digest is not None
        if self._passage.is_hashed:
            return self._passage.digest()
        if promised is not None and digest != plan.source.digest:
            raise otherwise(part, digest, str(plan.source.digest))
        return digest

    def _raw(self, start: int, bar: Progress) -> Iterator[Batch]:
        """The rows from `start` on as they lie, checked by nobody yet."""
        rows = max(_COPIED_BYTES // sum(self._plan.header.schema.row_bytes), 1)
        for batch in self._plan.source.batches(start, min(rows, self._plan.rows_at_once)):
            yield batch
            bar.add(len(batch[0]))

    def _promised(self) -> Array | None:
        """The hashes of a sealed source that is copied as it is and read back in full; else None."""
        proof = self._plan.source.proof
        if not self._plan.is_plain or self._verify_level != "full" or proof is None:
            return None
        hashes = proof.hashes
        known = hashes is not None and store_digest(self._plan.header, hashes)
        return hashes if known == self._plan.source.digest else None

    def _distrust(self, start: int) -> None:
        """Rows of an earlier run are held against the source, whatever was asked for."""
        if start:
            self._verify_level = "full"

    def _end(self, digest: str) -> None:
        """All rows are written: does the source hold what it says?"""
        self._digest = digest
        table = self._plan.source
        read = self._source_digest()
        if table.digest is not None and read is not None and read != table.digest:
            self._read_guarded()
            raise DamageError(
                f"{table.where} says that its digest is {table.digest}, and its rows have {read}: "
                "they are damaged; restore it from a copy"
            )

    def _read_guarded(self) -> None:
        """Read the source once more; raises, and names the rows, where it is the source that is damaged."""
        # The one digest says that something is wrong, the hashes of blocks say where.
        for _ in guarded(self._plan.source).batches(0, self._plan.rows_at_once):
            pass

    def _source_digest(self) -> str | None:
        if self._plan.is_plain:
            return self._digest
        return None if self._plan.passing is None else self._plan.passing.digest()

    # ---------------------------------------------------------------- verification

    def _accept(self, path: Path | str) -> None:
        """The destination is there already: hold it against the source."""
        with self._progress("comparing", 0) as bar:
            for _ in self._passage.rows(0, bar):
                pass
        self._end(self._passage.digest())
        try:
            digest = digest_of(
                open_table(str(path), self._plan.hints_back), self._plan.rows_at_once
            )
        except (FormatError, ArgumentError) as error:
            raise StoreExistsError(f"{str(path)!r} exists and cannot be read: {error}") from error
        if digest != self._digest:
            raise StoreExistsError(
                f"{str(path)!r} exists and holds other rows: its digest is {digest}, these rows have "
                f"{self._digest}; choose another path, or exists='overwrite' (--exists overwrite)"
            )
        self._verify_level = "full"

    def _verify(self, part: Path | str) -> None:
        if self._verify_level == "none":
            return
        table = open_table(str(part), self._plan.hints_back)
        # In a text the rows before one are read for it, so all of them cost the same.
        if self._verify_level == "sample" and self._passage.sampled and not self._plan.is_text:
            self._passage.compare(table)
            return
        with self._progress("verifying", 0) as bar:
            digest = digest_of(table, self._plan.rows_at_once, bar)
        self._verify_level = "full"
        if digest != self._digest or table.digest not in (None, digest):
            self._read_guarded()  # it may be the source whose rows changed, and then that is what to say
            raise otherwise(part, digest, self._digest)

    # ---------------------------------------------------------------- what is told

    def _progress(self, name: str, done: int) -> Progress:
        return Progress(
            self._plan.options.progress, self._plan.header.num_samples, done, name, unit="rows"
        )

    def receipt(self, seconds: float) -> Receipt:
        """What was done."""
        plan, table, level = self._plan, self._plan.source, self._verify_level
        checked = "none" if table.digest is None else "full"
        checked = checked if table.checked == "none" else table.checked
        return Receipt(
            source=table.where,
            source_format=table.format,
            source_digest=table.digest or self._source_digest(),
            destination=plan.destination,
            destination_format=plan.format,
            destination_digest=self._digest,
            num_rows=self._passage.num_rows,
            schema=plan.header.schema.to_json(),
            changes=plan.options.changes,
            left_out=plan.left_out,
            lossy=plan.lossy,
            measured=self._passage.measured,
            notes=(*table.notes, *(plan.watch.notes if plan.watch is not None else ())),
            source_checked=checked,
            verified="destination" if checked == "part" and level == "full" else level,
            seconds=round(seconds, 3),
            created=now(),
            software=software(),
        )
