"""Makes the golden stores that are missing beside it, each with what it holds in a .json of its name.

Stores that are there are never touched: they are what an old release wrote, and every release must read them.
The expected values come from the arrays that went in, not from reading a store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fostore
from fostore.files.json import export

HERE = Path(__file__).parent
META = {"model_name": "ĥ(x) ≈ p(·|x) 😀", "nested": {"list": [1, 2.5, None, True]}, "big": 2**70}


def softmax(x: Any) -> Any:
    """Probabilities in float64: the oracle."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(*shape: int) -> Any:
    """Fixed numbers without a random generator, whose stream might change."""
    return (np.sin(np.arange(np.prod(shape)) * 1.7) * 4).reshape(shape).astype(np.float32)


def expected(path: Path, probs: Any, rows: Any, tol: float, **more: Any) -> None:
    """Write what the store at `path` holds: some rows of `probs` (all rows), and how exact they are."""
    chosen = sorted({0, 1, len(rows) // 2, len(rows) - 1})
    with fostore.open(path) as store:
        known = {"num_samples": store.num_samples, "digest": store.header.digest}
    value = {
        **known,
        "committed": more.pop("committed", [[0, len(probs)]]),
        "rows": [int(rows[i]) for i in chosen],
        "probs": [probs[rows[i]].tolist() for i in chosen],
        "tol": tol,
        **more,
    }
    text = json.dumps(value, indent=1, ensure_ascii=False)
    (HERE / f"{path.name}.json").write_text(text + "\n", encoding="utf-8")


def sha(array: Any) -> str:
    """The SHA-256 of an array's bytes, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def probs_float32_ids(path: Path) -> None:
    """Two units, text keys, class names, metadata."""
    probs = softmax(logits(1100, 2)).astype(np.float32)
    ids = [f"s{i:03}" if i < 1000 else f"é{i - 1000}" for i in range(1100)]
    names = ["kopf", 'Zahl "1"\n€']
    with fostore.create(
        path, num_samples=1100, num_classes=2, ids=ids, class_names=names, meta=META, unit_rows=1024
    ) as writer:
        for start in range(0, 1100, 300):
            writer.append(probs[start : start + 300])
    expected(path, probs, range(1100), 0.0, ids=ids, meta=META, sha256={"probs": sha(probs)})


def logits_float16_members(path: Path) -> None:
    """Two members, half precision, a masked class."""
    raw = logits(40, 2, 4) + np.float32(60)
    raw[7, 1, 3] = -np.inf
    with fostore.create(
        path,
        num_samples=40,
        num_classes=4,
        num_members=2,
        kind="logits",
        dtype="float16",
        temperature=0.1,
    ) as writer:
        writer.append(raw)
    lse = np.log(np.exp(raw.astype(np.float64) - 60).sum(-1)) + 60
    expected(path, softmax(raw.astype(np.float64)), range(40), 2e-3, logsumexp=lse[:3].tolist())


def counts_uint16(path: Path) -> None:
    """Votes, in HDF5."""
    votes = (np.arange(20 * 4).reshape(20, 4) * 7919 % 13 + (np.arange(4) == 0)).astype(np.uint16)
    with fostore.create(
        path, num_samples=20, num_classes=4, kind="counts", dtype="uint16"
    ) as writer:
        writer.append(votes)
    expected(
        path, votes / votes.sum(-1, keepdims=True), range(20), 1e-7, sha256={"counts": sha(votes)}
    )


def unfinished_zarr(path: Path) -> None:
    """A killed run: one unit sealed, two runs in the tail of the next, rows and half a record uncommitted."""
    probs = softmax(logits(3000, 2)).astype(np.float32)

    def work() -> None:
        writer = fostore.create(
            path, num_samples=3000, num_classes=2, ids="int64", unit_rows=1024, commit_seconds=1e9
        )
        for start, stop in ((0, 600), (600, 1034), (1040, 1045), (1045, 1050)):
            writer.write(start, probs[start:stop], ids=range(start, stop))
            writer.commit()
        writer._units.write(0, 1050, probs[1050:1060])

    killed(work, path)
    with (path / "probs" / ".fostore.journal.main").open("ab") as journal:
        journal.write(b"FORC" + bytes(17))
    rows = [*range(1034), *range(1040, 1050)]
    expected(
        path,
        probs,
        rows,
        0.0,
        committed=[[0, 1034], [1040, 1050]],
        ids=rows,
        sha256={"probs": sha(probs[rows])},
    )


def unfinished_hdf5(path: Path) -> None:
    """A killed run in HDF5, bfloat16 log-probabilities: one unit sealed, one begun, one not."""
    log_probs = np.log(softmax(logits(3000, 4))).astype(np.float32)

    def work() -> None:
        writer = fostore.create(
            path,
            num_samples=3000,
            num_classes=4,
            kind="log_probs",
            dtype="bfloat16",
            unit_rows=1024,
            commit_seconds=1e9,
            meta=META,
        )
        for start, stop in ((0, 1024), (1024, 1100), (1200, 1210), (1210, 1300)):
            writer.write(start, log_probs[start:stop])
            writer.commit()
        writer._units.write(0, 1300, np.zeros((10, 4), np.uint16))

    killed(work, path)
    rows = [*range(1100), *range(1200, 1300)]
    probs = np.exp(log_probs.astype(np.float64))
    expected(path, probs, rows, 2e-2, committed=[[0, 1100], [1200, 1300]], meta=META)


def labels_and_texts(path: Path) -> None:
    """Keys that are texts, and the class of each sample."""
    probs = softmax(logits(30, 3)).astype(np.float32)
    ids, labels = [f"bild-{i}" for i in range(30)], np.arange(30) * 7 % 3
    with fostore.create(
        path, num_samples=30, num_classes=3, ids=ids, class_labels=labels
    ) as writer:
        writer.append(probs)
    sums = {"probs": sha(probs), "label": sha(labels.astype("<i8"))}
    expected(path, probs, range(30), 0.0, ids=ids, sha256=sums)


def texts_unfinished(path: Path) -> None:
    """A killed run whose keys are texts: one unit sealed, one begun."""
    probs, keys = softmax(logits(3000, 2)).astype(np.float32), [f"bild-{i}-ß" for i in range(3000)]

    def work() -> None:
        writer = fostore.create(
            path, num_samples=3000, num_classes=2, ids="S16", unit_rows=1024, commit_seconds=1e9
        )
        for start, stop in ((0, 1024), (1024, 1050)):
            writer.write(start, probs[start:stop], ids=keys[start:stop])
            writer.commit()

    killed(work, path)
    expected(path, probs, range(1050), 0.0, committed=[[0, 1050]], ids=keys[:1050])


def sequences(path: Path) -> None:
    """Sequences of tokens, some without rows, of logits in half precision."""
    lengths = np.arange(60) * 7 % 11
    numbers = np.repeat(np.arange(60), lengths)
    raw = logits(len(numbers), 5)
    tokens = np.arange(len(numbers)) * 7919 % 5
    with fostore.create(
        path,
        num_samples=len(numbers),
        num_sequences=60,
        num_classes=5,
        kind="logits",
        dtype="float16",
        rows="tokens",
        unit_rows=2048,
    ) as writer:
        writer.append(raw, sequences=numbers, tokens=tokens)
    probs = softmax(raw.astype(np.float64))
    sums = {"sequence": sha(numbers.astype("<i8")), "token": sha(tokens.astype("<u2"))}
    offsets = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    expected(path, probs, range(len(numbers)), 2e-3, sha256=sums, offsets=offsets)


def sequences_unfinished(path: Path) -> None:
    """A killed stream of sequences of which rows are left out, and a vocabulary that is larger than the classes."""
    probs = softmax(logits(2100, 2)).astype(np.float32)
    numbers, places = np.arange(2100) // 30, np.arange(2100) % 30 * 3 + 1

    def work() -> None:
        writer = fostore.create(
            path,
            num_classes=2,
            rows="tokens",
            positions=True,
            vocab_size=100_000,
            unit_rows=2048,
            commit_seconds=1e9,
        )
        for start, stop in ((0, 900), (900, 2050), (2050, 2070)):
            rows = slice(start, stop)
            tokens = np.arange(start, stop) * 47
            writer.append(
                probs[rows], sequences=numbers[rows], tokens=tokens, positions=places[rows]
            )
            writer.commit()

    killed(work, path)
    offsets = np.arange(0, 2071, 30).tolist()
    expected(path, probs, range(2070), 0.0, committed=[[0, 2070]], offsets=offsets)


def kept(rows: Any, k: int, rule: str) -> Any:
    """Probabilities of all classes from the k largest of each row (spec/encodings.md, topk)."""
    ids = np.argsort(-rows, axis=-1, kind="stable")[..., :k]
    dense = rows.astype(np.float64)
    top = np.take_along_axis(dense, ids, -1)
    np.put_along_axis(dense, ids, 0, -1)
    rest = dense.sum(-1, keepdims=True)
    others = rest / (rows.shape[-1] - k) if rule == "uniform" else 0 * rest
    dense[:] = others
    np.put_along_axis(
        dense, ids, top if rule == "uniform" else top / top.sum(-1, keepdims=True), -1
    )
    return dense


def topk_members(path: Path) -> None:
    """Half-precision logits of two members, all that the encoding can keep."""
    rows = logits(70, 2, 40)
    rows[3, 1, 9:] = -np.inf
    with fostore.create(
        path,
        num_samples=len(rows),
        num_classes=40,
        num_members=2,
        kind="logits",
        dtype="float16",
        encoding={"name": "topk", "k": 12, "rule": "uniform", "tail_entropy": True},
        temperatures=[2.0, 4.0],
    ) as writer:
        writer.append(rows)
    with fostore.open(path) as store:
        columns = {c.name: store.column(c.name) for c in store.schema.content}
    hashes = {name: sha(columns[name]) for name in ("values", "ids")}
    expected(path, kept(softmax(rows), 12, "uniform"), range(70), 2e-3, sha256=hashes)


def topk_ids(path: Path) -> None:
    """Probabilities, of which the largest are made to sum to 1, with keys."""
    rows = softmax(logits(60, 30)).astype(np.float32)
    with fostore.create(
        path, num_samples=60, num_classes=30, ids=range(60), encoding="topk", k=3, rule="renorm"
    ) as writer:
        writer.append(rows)
    expected(path, kept(rows, 3, "renorm"), range(60), 1e-6, ids=list(range(60)))


def codes_of(path: Path, name: str, kind: str, rows: Any, tol: float) -> None:
    """Rows as codes, of two members, with a class that the model excluded; the header says what they have lost."""
    members, num_classes = rows.shape[1:]
    with fostore.create(
        path,
        num_samples=len(rows),
        num_classes=num_classes,
        num_members=members,
        kind=kind,
        encoding=name,
    ) as writer:
        writer.append(rows)
    with fostore.open(path) as store:
        columns = {c.name: store.column(c.name) for c in store.schema.content}
    more = {}
    if kind == "logits":
        raw = rows.astype(np.float64)
        more["logsumexp"] = (np.log(np.exp(raw - 4).sum(-1)) + 4)[:3].tolist()
    probs = rows if kind == "probs" else softmax(rows.astype(np.float64))
    expected(path, probs, range(len(rows)), tol, sha256={"codes": sha(columns["codes"])}, **more)


def u16_logits(path: Path) -> None:
    """16-bit codes of logits."""
    raw = logits(70, 2, 40)
    raw[7, 1, 3:] = -np.inf
    raw[8, 0, 3] = np.finfo(np.float32).min
    codes_of(path, "u16_affine", "logits", raw, 2e-3)


def u8_probs(path: Path) -> None:
    """8-bit codes of probabilities."""
    probs = softmax(logits(70, 2, 40)).astype(np.float32)
    probs[7, 1] = np.eye(40, dtype=np.float32)[5]
    codes_of(path, "u8_log_sqrt", "probs", probs, 2e-2)


def sampled(path: Path) -> None:
    """Draws from softened distributions, with weights; what is expected is counted here."""
    probs = softmax(logits(60, 30))
    spec = {"name": "sampled", "num_draws": 16, "seed": 7, "proposal_temperature": 1.5}
    with fostore.create(path, num_samples=60, num_classes=30, encoding=spec) as writer:
        writer.append(probs)
    with fostore.open(path) as store:
        draws, weights = store.column("draws"), store.column("weights")
    counted = np.zeros((60, 30))
    for row, (classes, weighed) in enumerate(zip(draws, weights, strict=True)):
        for one, weight in zip(classes, weighed, strict=True):
            counted[row, one] += float(weight) / 16
    hashes = {"draws": sha(draws), "weights": sha(weights)}
    expected(path, counted, range(60), 1e-7, sha256=hashes)


def log_probs_ids(path: Path) -> None:
    """One JSON document with a header, keys, a minus infinity and a member axis."""
    log_probs = np.log(softmax(logits(5, 2, 3).astype(np.float64)))
    log_probs[2, 0] = [0, -np.inf, -np.inf]
    beside = path.with_suffix(".zarr")
    with fostore.create(
        beside,
        num_samples=5,
        num_classes=3,
        num_members=2,
        kind="log_probs",
        ids=["a", "bb", "é", "d", "e"],
        meta=META,
    ) as writer:
        writer.append(log_probs.astype(np.float32))
    with fostore.open(beside) as store:
        export(path, store.reader)
    from fostore import disk

    disk.remove(beside)
    expected(path, np.exp(log_probs), range(5), 1e-6, ids=["a", "bb", "é", "d", "e"], meta=META)


def plain(path: Path) -> None:
    """What the guide's code writes: no header, out of order, a gap."""
    text = '{"distributions": {"3": [0.25, 0.75], "0": [1, 0.0], "1": [5e-1, 0.5]}, "meta": {"m": null}}\n'
    path.write_text(text, encoding="utf-8")
    probs = np.array([[1, 0], [0.5, 0.5], [0, 0], [0.25, 0.75]])
    expected(path, probs, [0, 1, 3], 0.0, committed=[[0, 2], [3, 4]], meta={"m": None})


def killed(work: Callable[[], None], path: Path) -> None:
    """Do `work` in a process that ends without closing anything."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (path.parent / f".{path.name}.lock").unlink(missing_ok=True)


STORES = {
    "probs-float32-ids.zarr": probs_float32_ids,
    "logits-float16-members.zarr": logits_float16_members,
    "counts-uint16.h5": counts_uint16,
    "unfinished.zarr": unfinished_zarr,
    "unfinished.h5": unfinished_hdf5,
    "log-probs-ids.json": log_probs_ids,
    "plain.json": plain,
    "checksums.zarr": unfinished_zarr,
    "checksums.h5": counts_uint16,
    "checksums-ids.json": log_probs_ids,
    "texts.zarr": probs_float32_ids,
    "texts.h5": probs_float32_ids,
    "texts-unfinished.zarr": texts_unfinished,
    "texts-ids.json": log_probs_ids,
    "labels.h5": labels_and_texts,
    "sequences.zarr": sequences,
    "sequences.h5": sequences,
    "sequences-unfinished.zarr": sequences_unfinished,
    "topk-members.zarr": topk_members,
    "topk-ids.h5": topk_ids,
    "u16-logits-members.zarr": u16_logits,
    "u8-probs-members.h5": u8_probs,
    "sampled-weights.zarr": sampled,
}

if __name__ == "__main__":
    for name, make in STORES.items():
        if not (HERE / name).exists():
            make(HERE / name)
            print(f"made {name}")
