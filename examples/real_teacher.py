"""Pre-trained models over files that you have: stream what they say, survive a kill, distil a student, publish.

    pip install magika py3langid
    python examples/real_teacher.py

Both come with their weights, so nothing is downloaded. magika (a network in ONNX, 214 classes) says what kind of
file each piece of this project's files is; py3langid (Naive Bayes) says in which language each of its paragraphs is.
A process that kills itself in the middle shows what a crash costs; the same call again goes on. Writes `kinds.zarr`,
`languages.zarr` and `published/` into the current folder, the two stores anew each time; takes about a minute. Copy
it, and put your model and files in.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import magika
import numpy as np
import onnxruntime
import torch
from py3langid import langid
from torch import nn

import fostore
from fostore.torch import distillation_loss, output_dataloader

FILES = Path(__file__).parents[1]
PIECE = 2048
"""Bytes that magika looks at: half of them from the beginning of a file, half from its end."""
FACTS = {
    "license": "CC0-1.0",
    "creators": ["Who ran examples/real_teacher.py"],
    "limits": "The models judge whole files and texts better than these pieces.",
}


def texts() -> Iterator[tuple[str, bytes]]:
    """The project's files, by their names, in an order that does not change."""
    folders = ("fostore", "docs", "spec", "examples", "tests")
    paths = [path for folder in folders for path in (FILES / folder).rglob("*")]
    for path in sorted(path for path in paths if path.suffix in {".py", ".md", ".json", ".ipynb"}):
        yield path.relative_to(FILES).as_posix(), path.read_bytes()


class Pieces:
    """Pieces of files, 2,048 bytes each, as the integers that magika takes, by file and place."""

    def __init__(self, limit: int) -> None:
        self.pieces, self.keys = [], []
        for name, data in texts():
            for start in range(0, len(data) - PIECE + 1, PIECE):
                self.pieces.append(data[start : start + PIECE])
                self.keys.append(f"{name}:{start}")
        step = max(len(self.keys) // limit, 1)  # of every file some
        self.pieces, self.keys = self.pieces[::step][:limit], self.keys[::step][:limit]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.frombuffer(self.pieces[index], np.uint8).astype(np.int32)


class Kinds:
    """magika's network as a callable: pieces (n, 2048) to probabilities (n, 214)."""

    def __init__(self) -> None:
        instance = magika.Magika()
        folder = Path(magika.__file__).parent / "models" / instance.get_model_name()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        # What fostore cannot look into says itself which model it is.
        self.fingerprint = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        self.class_names = [str(label) for label in instance._model_config.target_labels_space]

    def __call__(self, pieces: np.ndarray) -> np.ndarray:
        return self._session.run(["target_label"], {"bytes": pieces})[0]


class Languages:
    """py3langid as a callable: texts to probabilities (n, languages)."""

    def __init__(self) -> None:
        self._model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        self.class_names = sorted(self._model.labels)

    def __call__(self, paragraphs: list[str]) -> np.ndarray:
        ranks = [dict(self._model.rank(text)) for text in paragraphs]
        return np.array([[rank[name] for name in self.class_names] for rank in ranks])


def stream(pieces: Pieces, dies_at: int | None = None) -> fostore.Store:
    """What magika says of all pieces; the same call after a kill goes on where the last commit stands."""
    teacher, calls = Kinds(), 0

    def model(batch: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return teacher(batch)

    generator = fostore.FirstOrderDataGenerator(model, batch_size=64, output_mode="probs")
    return generator.generate_distributions(
        pieces,
        store="kinds.zarr",
        ids=pieces.keys,
        class_names=teacher.class_names,
        model_fingerprint=teacher.fingerprint,
        commit_seconds=0.1,
        progress=False,
    )


class Student(nn.Module):
    """The mean of a vector for each pair of bytes, and a layer: it forgets where a pair stood."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pairs, self.layer = nn.EmbeddingBag(1 << 14, 32), nn.Linear(32, num_classes)

    def forward(self, pieces: torch.Tensor) -> torch.Tensor:
        pairs = (pieces[:, :-1].long() * 257 + pieces[:, 1:].long() * 8191) % (1 << 14)
        return self.layer(self.pairs(pairs))


def distil(pieces: Pieces, store: fostore.Store, epochs: int) -> tuple[float, float]:
    """Train a student on four pieces of five; its mean KL from the teacher on the others, before and after."""
    rows = np.random.default_rng(0).permutation(len(store))
    train, test = np.sort(rows[len(rows) // 5 :]), np.sort(rows[: len(rows) // 5])
    held = torch.tensor(np.stack([pieces[i] for i in test.tolist()]))
    targets = torch.tensor(np.asarray(store.take(test), np.float32))
    torch.manual_seed(0)
    student = Student(store.schema.num_classes)

    def distance() -> float:
        with torch.no_grad():
            return float(
                nn.functional.kl_div(student(held).log_softmax(-1), targets, reduction="batchmean")
            )

    before, optimizer = distance(), torch.optim.Adam(student.parameters(), lr=0.01)
    chosen = torch.utils.data.Subset(pieces, train.tolist())
    for _ in range(epochs):
        for batch, target in output_dataloader(
            chosen, store.select(train), batch_size=64, shuffle=True
        ):
            optimizer.zero_grad()
            distillation_loss(student(batch), target).backward()
            optimizer.step()
    return before, distance()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pieces", type=int, default=2000, help="at most so many")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--dies-at", type=int, help="kill this process at this batch")
    options = parser.parse_args()
    if not options.dies_at:
        shutil.rmtree("kinds.zarr", ignore_errors=True)  # or there would be nothing left to kill
    pieces = Pieces(options.pieces)
    if options.dies_at:
        stream(pieces, options.dies_at)

    middle = max(len(pieces) // 64 // 2, 2)
    arguments = [
        sys.executable,
        __file__,
        "--pieces",
        str(options.pieces),
        "--dies-at",
        str(middle),
    ]
    killed = subprocess.run(arguments).returncode == -signal.SIGKILL
    with fostore.open("kinds.zarr") as part:
        print(f"killed: {killed}, {len(part):,} of {len(pieces):,} rows are committed")
    store = stream(pieces)
    certain = store.take(range(len(store))).max(-1)
    print(
        f"magika: {len(store):,} pieces, {store.schema.num_classes} kinds; surest {certain.max():.2f}"
    )
    before, after = distil(pieces, store, options.epochs)
    print(f"KL(teacher || student): {before:.2f} before, {after:.2f} after {options.epochs} epochs")

    paragraphs = [
        p for name, data in texts() if name.endswith(".md") for p in data.decode().split("\n\n")
    ]
    languages = Languages()
    generator = fostore.FirstOrderDataGenerator(languages, batch_size=32, output_mode="probs")
    spoken = generator.generate_distributions(
        paragraphs[: options.pieces], store="languages.zarr", class_names=languages.class_names,
        exists="overwrite", progress=False,
    )  # fmt: skip
    english = spoken.take(range(len(spoken)))[:, languages.class_names.index("en")]
    print(f"py3langid: {len(spoken):,} paragraphs; English {english.mean():.2f} on average")

    made = {
        "kinds": (
            "What magika says of pieces of a project's files",
            "Apache-2.0",
            "https://github.com/google/magika",
        ),
        "languages": (
            "What py3langid says of the paragraphs of a project's documents",
            "BSD-3-Clause",
            "https://github.com/adbar/py3langid",
        ),
    }
    for name, (description, licence, model) in made.items():
        published = fostore.publish(
            f"{name}.zarr", f"published/{name}", description=description, model_license=licence,
            model=model, **FACTS, progress=False,
        )  # fmt: skip
        print(
            f"published: {published.where}, version {published.version}, {published.num_bytes:,} bytes"
        )


if __name__ == "__main__":
    main()
