"""The main job on real data: train a teacher, stream its distributions, die in the middle, go on, compare.

Then what the distributions are for: students that learn from them, over five seeds.

Every figure that it prints was measured in the run that prints it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fostore import disk
from fostore.errors import ArgumentError, FostoreError

if TYPE_CHECKING:
    from fostore.reading.store import Store
    from fostore.torch.digits import Scans, Teacher
    from fostore.torch.students import Figures, Outcome

BATCH_SIZE = 32
COMMIT_SECONDS = 0.2
DELAY_SECONDS = (
    0.06  # a batch, in the run that dies: without it the middle would last a millisecond
)

MARK = ".fostore-demo"
STORE, WHOLE, HDF5, JSON = "digits.zarr", "uninterrupted.zarr", "digits.h5", "digits.json"
WEIGHTS, MODULE, LOG = "teacher.pt", "teacher.py", "batches.log"
SEEDS = 5
LEARNED = tuple(f"learned-{seed}.zarr" for seed in range(SEEDS))
MADE = (STORE, WHOLE, HDF5, JSON, WEIGHTS, MODULE, LOG, *LEARNED)

MODULE_TEXT = '''\
"""The demo's teacher and scans, as `fostore generate` finds them."""

from pathlib import Path

from fostore.torch.digits import Scans, Teacher


def teacher():
    """The three networks as one model."""
    return Teacher.load(Path(__file__).with_name("teacher.pt"))


def members():
    """The three networks, each for itself: a store of them has a member axis."""
    return list(teacher().members)


def scans():
    """The 1,297 scans that the teacher has not seen."""
    return Scans("rest")
'''


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that a model has run: its first row and how many rows it had."""

    start: int
    rows: int


def run(folder: Path, *, keep: bool = True) -> None:
    """Run the demo in `folder`, which is new or was made by an earlier demo.

    Results go to stdout, progress to stderr. Without `keep` everything is removed at the end.

    Raises:
        ArgumentError: `folder` holds something else; nothing was changed.
        FostoreError: torch or scikit-learn is missing, or a promise did not hold.
    """
    needed = {"torch": "torch", "sklearn": "scikit-learn"}
    lacking = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if lacking:
        names = " and ".join(lacking)
        raise FostoreError(
            f"the demo needs {names} beside fostore: pip install {' '.join(lacking)}"
        )
    _prepare(folder)
    try:
        _show(folder)
        if keep:
            _show_next(folder)
    finally:
        if not keep:
            _clear(folder)
            disk.remove(folder / MARK)
            if not any(folder.iterdir()):
                disk.remove(folder)


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is a file; the demo needs a folder: --folder names one")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise ArgumentError(
            f"{folder} holds files that no demo made; give it another place with --folder"
        )
    disk.make_folders(folder)
    disk.write_whole(folder / MARK, b"made by fostore demo\n")
    _clear(folder)


def _clear(folder: Path) -> None:
    for name in MADE:
        disk.remove(folder / name)
        for beside in folder.glob(f".{name}.*"):
            disk.remove(beside)


def _show(folder: Path) -> None:
    from fostore.torch import digits

    with digits.one_thread():
        scans = _train(folder)
        stores = [_kill_and_resume(folder, scans), *_write_twins(folder)]
        _print_stores(stores, scans)
        _print_outcomes(_teach(folder))


def _train(folder: Path) -> Scans:
    from fostore.torch import digits

    began = time.perf_counter()
    scans, rest = digits.Scans("train"), digits.Scans("rest")
    with _bar("training", digits.EPOCHS * digits.NUM_MEMBERS, "epoch") as bar:
        teacher = digits.train(scans, step=bar.update)
    teacher.save(folder / WEIGHTS)
    disk.write_whole(folder / MODULE, MODULE_TEXT.encode())
    parameters = sum(p.numel() for p in teacher.members[0].parameters())
    _print(
        f"Teacher: {len(teacher.members)} residual CNNs of {parameters:,} parameters, trained on "
        f"{len(scans):,} scans of digits in {time.perf_counter() - began:.1f} s."
    )
    return rest


def _kill_and_resume(folder: Path, scans: Scans) -> Store:
    """Stream, die, go on, and prove that the result is what an undisturbed run gives."""
    import fostore
    from fostore.torch.digits import Teacher

    before = _die_in_the_middle(folder, len(scans))
    with fostore.open(folder / STORE) as store:
        committed = len(store)
    finished = sum(batch.start + batch.rows <= committed for batch in before)
    _print(
        f"Killed: a process streamed its distributions over the other {len(scans):,} scans and killed "
        f"itself (SIGKILL) after {len(before)} batches; {finished} of them ({committed:,} rows) are "
        "committed."
    )
    after: list[Batch] = []
    with _listening(Teacher.load(folder / WEIGHTS), scans, after.append) as teacher:
        store = _stream(teacher, scans, folder / STORE, progress=True)
    again = [batch for batch in after if batch.start < committed]
    first = min((batch.start for batch in after[len(again) :]), default=len(scans))
    _print(
        f"Resumed: {len(after) - len(again)} batches, from row {first:,} on; "
        f"{len(again)} of the committed batches ran again, to be compared."
    )
    whole: list[Batch] = []
    with _listening(Teacher.load(folder / WEIGHTS), scans, whole.append) as teacher:
        other = _stream(teacher, scans, folder / WHOLE, progress=True)
    files, differing = _compare(folder / STORE, folder / WHOLE)
    same = store.digest() == other.digest() and not differing
    _print(
        f"Compared with an uninterrupted run ({len(whole)} batches): digests "
        f"{'equal' if store.digest() == other.digest() else 'DIFFER'}, "
        f"{files - len(differing)} of {files} data files bit-identical."
    )
    if len(again) != 1 or not same:
        raise FostoreError(
            f"the resumed store is not what it should be: ran again {again}, differing {differing}"
        )
    return store


def _stream(teacher: Teacher, scans: Scans, path: Path, *, progress: bool) -> Store:
    """The call that a user would write."""
    from fostore.torch import FirstOrderDataGenerator

    generator = FirstOrderDataGenerator(
        teacher, batch_size=BATCH_SIZE, output_mode="probs", model_name="three residual CNNs"
    )
    store: Store = generator.generate_distributions(
        scans,
        progress=progress,
        store=path,
        meta={"dataset": "scikit-learn digits", "part": "the scans that the teacher has not seen"},
        commit_seconds=COMMIT_SECONDS,
    )
    return store


def _die_in_the_middle(folder: Path, num_samples: int) -> list[Batch]:
    """Let a process of its own begin the store; returns the batches that it ran before it died."""
    import fostore

    command = [sys.executable, "-m", "fostore.demo", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    try:
        with _bar("committed by the run that will die", num_samples, "row") as bar:
            store = None
            while child.poll() is None:
                time.sleep(0.05)
                if store is None and (folder / STORE).exists():
                    store = fostore.open(folder / STORE)
                if store is not None:
                    store.refresh()
                    bar.update(len(store) - bar.n)
    finally:
        child.kill()
        words = child.stderr.read()
        child.stderr.close()
        child.wait()
    log = folder / LOG
    if child.returncode != -signal.SIGKILL or not log.exists():
        raise FostoreError(f"the run that should have been killed ended by itself: {words.strip()}")
    return [Batch(*map(int, line.split())) for line in log.read_text().splitlines()]


def stream_and_die(folder: Path) -> None:
    """What the process of `_die_in_the_middle` does: half of the batches, each noted, then SIGKILL."""
    from fostore.torch.digits import Scans, Teacher, one_thread

    scans = Scans("rest")
    batches = 0

    def note(batch: Batch) -> None:
        nonlocal batches
        batches += 1
        with (folder / LOG).open("a") as log:
            log.write(f"{batch.start} {batch.rows}\n")
        time.sleep(DELAY_SECONDS)
        if batches > len(scans) / BATCH_SIZE / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with one_thread(), _listening(Teacher.load(folder / WEIGHTS), scans, note) as teacher:
        _stream(teacher, scans, folder / STORE, progress=False)


@contextmanager
def _listening(teacher: Teacher, scans: Scans, heard: Callable[[Batch], None]) -> Iterator[Teacher]:
    """The teacher, calling `heard` after each batch that it runs; the scans tell which one it was."""
    row_of = {scan.numpy().tobytes(): row for row, scan in enumerate(scans.scans)}

    def after(_module: Any, inputs: Any, _output: Any) -> None:
        (batch,) = inputs
        heard(Batch(row_of[batch[0].numpy().tobytes()], len(batch)))

    handle = teacher.register_forward_hook(after)
    try:
        yield teacher
    finally:
        handle.remove()


def _compare(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many data files two Zarr stores have, and which of them differ in a single bit.

    The attributes of the group are left out: they hold the store's own id and the times.
    """

    def files(store: Path) -> dict[str, Path]:
        found = {str(p.relative_to(store)): p for p in store.rglob("*") if p.is_file()}
        return {name: path for name, path in found.items() if name != "zarr.json"}

    ours, theirs = files(one), files(other)
    names = sorted(ours.keys() | theirs.keys())
    differing = [
        name
        for name in names
        if name not in ours
        or name not in theirs
        or ours[name].read_bytes() != theirs[name].read_bytes()
    ]
    return len(names), differing


def _write_twins(folder: Path) -> list[Store]:
    """The same distributions as HDF5, through the writer, and as the guide's JSON."""
    import fostore
    from fostore.torch import FirstOrderDataGenerator
    from fostore.torch.digits import Teacher

    source = fostore.open(folder / STORE)
    with fostore.create(
        folder / HDF5,
        num_samples=len(source),
        num_classes=source.num_classes,
        meta=source.meta,
    ) as writer:
        for start in range(0, len(source), BATCH_SIZE):
            writer.append(source[start : start + BATCH_SIZE])
    generator = FirstOrderDataGenerator(Teacher.load(folder / WEIGHTS))
    generator.save_distributions(folder / JSON, source, meta=dict(source.meta))
    return [fostore.open(folder / HDF5), fostore.open(folder / JSON)]


def _print_stores(stores: list[Store], scans: Scans) -> None:
    from fostore.cli.info import human_bytes, size_on_disk

    _print("\nThe same distributions in three formats, opened and asked:")
    _print(
        f"  {'store':<14}{'shape':<12}{'dtype':<10}{'on disk':<11}{'accuracy':<10}digest (begins with)"
    )
    for store in stores:
        rows = store.take(range(len(store)))
        accuracy = float((rows.argmax(axis=1) == scans.labels).mean())
        size = human_bytes(size_on_disk(store.path)["bytes"])
        shape = " x ".join(f"{n:,}" for n in store.shape)
        digest = store.digest()[:23] if store.is_sealed else "none"
        _print(
            f"  {store.path.name:<14}{shape:<12}{store.schema.dtype:<10}{size:<11}"
            f"{accuracy:<10.1%}{digest}"
        )
    _print(f"  (accuracy: the teacher's, on these {len(scans):,} scans, which it has not seen)")


def _teach(folder: Path) -> list[Outcome]:
    """A teacher and two students for each seed; the first teacher is the one that is there already."""
    from fostore.torch import digits, students

    found = []
    epochs = digits.EPOCHS * digits.NUM_MEMBERS * (SEEDS - 1)
    with _bar("teachers and students", epochs, "epoch") as bar:
        for seed, name in enumerate(LEARNED):
            if seed == 0:
                teacher = digits.Teacher.load(folder / WEIGHTS)
            else:
                teacher = digits.train(digits.Scans("train", seed), seed=seed, step=bar.update)
            found.append(students.compare(teacher, seed, folder / name))
    return found


def _print_outcomes(outcomes: list[Outcome]) -> None:
    from fostore.torch import digits, students

    def mean(numbers: Iterable[float]) -> float:
        return sum(numbers) / len(outcomes)

    def row(name: str, of: Callable[[Figures], float], better: int) -> str:
        pairs = [(of(one.distilled), of(one.by_class)) for one in outcomes]
        ours, theirs = (mean(pair[i] for pair in pairs) for i in (0, 1))
        wins = sum((a - b) * better > 0 for a, b in pairs)
        words = f"distilled better in {wins} of {len(pairs)} seeds" if better else ""
        return f"  {name:<32}{ours:<11.3f}{theirs:<16.3f}{words}".rstrip()

    test = len(digits.Scans("test"))
    _print(
        f"""
What a student learns from a store: {len(outcomes)} seeds, each with a teacher of {digits.NUM_TRAIN} labelled scans,
a store of its distributions of {digits.NUM_UNLABELLED} unlabelled ones, and {test} scans to test on (means):
  teacher's accuracy              {mean(one.teacher for one in outcomes):.3f}
  student (a small perceptron)    distilled  teacher's class"""
    )
    for line in (
        row("accuracy", lambda f: f.accuracy, 1),
        row("KL(teacher || student), nats", lambda f: f.kl, -1),
        row("ECE", lambda f: f.ece, -1),
        row("NLL, nats", lambda f: f.nll, -1),
        row(f"covered by {students.CONFIDENCE:.0%} TV balls", lambda f: f.covered, 0),
        row("  of this radius", lambda f: f.radius, 0),
    ):
        _print(line)


def _show_next(folder: Path) -> None:
    command, python = _programs()
    zarr, h5 = folder / STORE, folder / HDF5
    _print(
        f"""
Try next:
  {command} info {zarr}
  {command} verify {h5}
  {command} generate {folder / MODULE}:members {folder / MODULE}:scans -o {folder / "members.zarr"}
      (the three networks as an ensemble: a member axis)
  {python} -c "import fostore; s = fostore.open('{zarr}'); print(s, s[0], s.take([5, 3, 5]).shape)"

Without fostore:
  {python} -c "import zarr; print(zarr.open('{zarr}', mode='r')['probs'][:2])"
  {python} -c "import h5py; print(h5py.File('{h5}')['probs'][:2])"
  {python} -c "import json; print(json.load(open('{folder / JSON}'))['distributions']['0'])"
""".rstrip()
    )


def _programs() -> tuple[str, str]:
    """How to call fostore and python of this environment from the current folder."""

    def called(path: Path) -> str:
        if shutil.which(path.name) == str(path):
            return path.name
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    python = Path(sys.executable)
    script = python.with_name("fostore")
    if not script.exists():  # fostore is on the path of modules, not installed
        return f"{called(python)} -m fostore.cli", called(python)
    return called(script), called(python)


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, leave=False, file=sys.stderr) as bar:
        yield bar


def _print(text: str) -> None:
    print(text, flush=True)
