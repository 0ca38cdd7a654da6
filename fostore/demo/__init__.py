"""The main job on real data: train a teacher, stream its distributions, die in the middle, go on, compare.

Then what the distributions are for: students that learn from them, over five seeds. Last, they are published.

Every figure that it prints was measured in the run that prints it.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fostore
from fostore import disk
from fostore.errors import ArgumentError, FostoreError
from fostore.progress import Progress

if TYPE_CHECKING:
    from fostore.reading.store import Store
    from fostore.torch.digits import Scans, Teacher

BATCH_SIZE = 32
MARK = ".fostore-demo"
STORE, WHOLE, HDF5, JSON = "digits.zarr", "uninterrupted.zarr", "digits.h5", "digits.json"
LEARNED = tuple(f"learned-{seed}.zarr" for seed in range(5))
PUBLISHED = "published"
MADE = (STORE, WHOLE, HDF5, JSON, PUBLISHED, "teacher.pt", "teacher.py", *LEARNED)

_MODULE = '''\
"""The demo's teacher and scans, as `fostore generate` finds them."""

from pathlib import Path

from fostore.torch.digits import Scans, Teacher


def members():
    """The three networks of the teacher, each for itself: a store of them has a member axis."""
    return list(Teacher.load(Path(__file__).with_name("teacher.pt")).members)


def scans():
    """The 1,297 scans that the teacher has not seen."""
    return Scans("rest")
'''

_NEXT = """
Try next:
  {bin}fostore info {folder}/digits.zarr
  {bin}fostore verify {folder}/published
  {bin}fostore cite {folder}/published
  {bin}fostore generate {folder}/teacher.py:members {folder}/teacher.py:scans -o {folder}/members.zarr
      (the three networks as an ensemble: a member axis)
  {bin}python -c "import fostore; s = fostore.open('{folder}/digits.zarr'); print(s, s[0], s.take([5, 3, 5]).shape)"

Without fostore:
  {bin}python -c "import zarr; print(zarr.open('{folder}/digits.zarr', mode='r')['probs'][:2])"
  {bin}python -c "import h5py; print(h5py.File('{folder}/digits.h5')['probs'][:2])"
  {bin}python -c "import json; print(json.load(open('{folder}/digits.json'))['distributions']['0'])"\
"""


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
        raise FostoreError(
            f"the demo needs {' and '.join(lacking)} beside fostore: pip install {' '.join(lacking)}"
        )
    _prepare(folder)
    try:
        _show(folder)
        if keep:
            programs = Path(sys.executable).parent
            active = shutil.which("fostore") == str(programs / "fostore")
            if programs.is_relative_to(Path.cwd()):
                programs = programs.relative_to(Path.cwd())
            print(_NEXT.format(folder=folder, bin="" if active else f"{programs}/"))
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
        for path in (folder / name, *folder.glob(f".{name}.*")):
            disk.remove(path)


def _show(folder: Path) -> None:
    # torch takes seconds to load, and `run` says first when it is missing
    from fostore.torch import digits, students

    epochs = digits.EPOCHS * digits.NUM_MEMBERS
    with digits.one_thread():
        began = time.perf_counter()
        with Progress(True, epochs, name="training", unit="epochs") as bar:
            teacher = digits.train(digits.Scans("train"), step=lambda: bar.add(1))
        parameters = sum(p.numel() for p in teacher.members[0].parameters())
        print(
            f"Teacher: {len(teacher.members)} residual CNNs of {parameters:,} parameters, trained on "
            f"{len(digits.Scans('train')):,} scans of digits in {time.perf_counter() - began:.1f} s."
        )
        teacher.save(folder / "teacher.pt")
        disk.write_whole(folder / "teacher.py", _MODULE.encode())
        scans = digits.Scans("rest")
        _kill_and_resume(folder, teacher, scans)
        _write_twins(folder, scans)
        outcomes = [students.compare(teacher, 0, folder / LEARNED[0])]
        total = epochs * (len(LEARNED) - 1)
        with Progress(True, total, name="teachers and students", unit="epochs") as bar:
            for seed, name in list(enumerate(LEARNED))[1:]:
                train = digits.Scans("train", seed)
                teacher = digits.train(train, seed=seed, step=lambda: bar.add(1))
                outcomes.append(students.compare(teacher, seed, folder / name))
    unlabelled, test = len(digits.Scans("unlabelled")), len(digits.Scans("test"))
    print(
        f"""
What a student learns from a store: {len(outcomes)} seeds, each with a teacher of {len(train)} labelled scans,
a store of its distributions of {unlabelled} unlabelled ones, and {test} scans to test on (means):
  {"teacher's accuracy":<32}{sum(accuracy for accuracy, _, _ in outcomes) / len(outcomes):.3f}
  {"student (a small perceptron)":<32}distilled  teacher's class"""
    )
    for place, (name, better) in enumerate(students.MEASURES.items()):
        pairs = [(distilled[place], twin[place]) for _, distilled, twin in outcomes]
        ours, theirs = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
        wins = sum((one - other) * better > 0 for one, other in pairs)
        words = f"distilled better in {wins} of {len(pairs)} seeds" if better else ""
        print(f"  {name:<32}{ours:<11.3f}{theirs:<16.3f}{words}".rstrip())
    _publish(folder)


def _publish(folder: Path) -> None:
    """A dataset of the store: a folder that says whose it is, under which licence, and what checks it."""
    from fostore.publishing import (
        verification,
    )  # loads NumPy, and every call of `fostore` loads this module

    made = fostore.publish(
        folder / STORE,
        folder / PUBLISHED,
        license="CC0-1.0",
        creators=["The demo of fostore"],
        description="What three small networks say of scans of digits that they have not seen",
        progress=False,
    )
    if problems := list(verification.verify(folder / PUBLISHED)):
        raise FostoreError(f"the bundle is not what it should be: {problems[0]}")
    names = sorted(path.name for path in (folder / PUBLISHED).iterdir() if path.is_file())
    print(
        f"\nPublished: {folder / PUBLISHED}, version {made.version}, {made.num_files + len(names)} files, each "
        f"of them verified.\n  data/ holds the store; beside it {', '.join(names)}.\n"
        f"  To cite it: {fostore.cite(folder / PUBLISHED)['line']}"
    )


def _kill_and_resume(folder: Path, teacher: Teacher, scans: Scans) -> None:
    """Stream, die, go on, and prove that the result is what an undisturbed run gives."""
    child = f"import fostore.demo; fostore.demo._stream_and_die({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", child], stdout=-1, check=False)
    ran = len(done.stdout.splitlines())
    if done.returncode != -signal.SIGKILL:
        raise FostoreError("the run that should have been killed ended by itself")
    with fostore.open(folder / STORE) as store:
        committed = len(store)
    print(
        f"Killed: a process streamed its distributions over the other {len(scans):,} scans and killed "
        f"itself (SIGKILL) after {ran} batches; {committed // BATCH_SIZE} of them ({committed:,} "
        "rows) are committed."
    )
    after: list[int] = []
    store = _stream(teacher, scans, folder / STORE, after.append)
    new = [start for start in after if start >= committed]
    again = len(after) - len(new)
    print(
        f"Resumed: {len(new)} batches, from row {min(new):,} on; "
        f"{again} of the committed batches ran again, to be compared."
    )
    whole: list[int] = []
    other = _stream(teacher, scans, folder / WHOLE, whole.append)
    files, differing = _compare(folder / STORE, folder / WHOLE)
    equal = store.digest() == other.digest()
    print(
        f"Compared with an uninterrupted run ({len(whole)} batches): digests "
        f"{'equal' if equal else 'DIFFER'}, {files - len(differing)} of {files} data files "
        "bit-identical."
    )
    if again != 1 or differing or not equal:
        raise FostoreError(
            f"the resumed store is not what it should be: {again} batches ran again, differing "
            f"{differing}"
        )


def _stream(teacher: Teacher, scans: Scans, path: Path, note: Callable[[int], Any]) -> Store:
    """The call that a user would write; `note` gets the first row of each batch, once it has run."""
    from fostore.torch import FirstOrderDataGenerator  # as above

    def after(_module: Any, inputs: Any, _output: Any) -> None:
        note(int((scans.scans == inputs[0][0]).flatten(1).all(1).nonzero()[0]))

    handle = teacher.register_forward_hook(after)
    try:
        store: Store = FirstOrderDataGenerator(
            teacher, batch_size=BATCH_SIZE, output_mode="probs", model_name="three residual CNNs"
        ).generate_distributions(
            scans,
            store=path,
            meta={"dataset": "scikit-learn digits", "part": "the scans that were not trained on"},
            commit_seconds=0.2,
        )
    finally:
        handle.remove()
    return store


def _stream_and_die(folder: str) -> None:
    """The process that dies: half of the batches, each noted on stdout, then SIGKILL."""
    from fostore.torch.digits import Scans, Teacher, one_thread  # as above

    scans = Scans("rest")

    def note(start: int) -> None:
        print(start, flush=True)
        time.sleep(0.06)  # without it the middle would last a millisecond
        if start > len(scans) / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with one_thread():
        _stream(Teacher.load(f"{folder}/teacher.pt"), scans, Path(folder, STORE), note)


def _compare(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many data files two Zarr stores have, and which of them differ in a single bit.

    The attributes of the group are left out: they hold the store's own id and the times.
    """
    files = [(root, path) for root in (one, other) for path in root.rglob("*") if path.is_file()]
    names = {str(path.relative_to(root)) for root, path in files} - {"zarr.json"}
    _, differing, alone = filecmp.cmpfiles(one, other, names, shallow=False)
    return len(names), sorted(differing + alone)


def _write_twins(folder: Path, scans: Scans) -> None:
    """The same distributions as HDF5 and as JSON, and what all three answer."""
    # evaluation loads NumPy, and every call of `fostore` loads this module
    from fostore.cli.info import human_bytes, size_on_disk
    from fostore.evaluate import accuracy

    print("\nThe same distributions in three formats, opened and asked:")
    print(
        f"  {'store':<14}{'shape':<12}{'dtype':<10}{'on disk':<11}{'accuracy':<10}digest (begins with)"
    )
    for name in (STORE, HDF5, JSON):
        if name != STORE:
            fostore.convert(folder / STORE, folder / name)
        store = fostore.open(folder / name)
        shape = " x ".join(f"{n:,}" for n in store.shape)
        size = human_bytes(size_on_disk(store.path)["bytes"])
        print(
            f"  {name:<14}{shape:<12}{store.schema.dtype:<10}{size:<11}"
            f"{accuracy(store, scans.labels):<10.1%}{store.digest()[:23]}"
        )
    print(f"  (accuracy: the teacher's, on these {len(scans):,} scans, which it has not seen)")
