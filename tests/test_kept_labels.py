"""Labels beside the rows: `class_labels`, `keep_labels=True`, and scores without a file of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import evaluate
from fostore.cli import app
from fostore.errors import ArgumentError, IdentityError, RowError
from sides import NUM_CLASSES, Linear, Pairs, Side, make_pairs
from support import probs

N, K = 120, 4
PROBS = probs(N, K)
LABELS = np.random.default_rng(2).integers(0, K, N)

pytestmark = pytest.mark.usefixtures("fast_disk")


def write(path: Path, **more: Any) -> Path:
    more = {"class_labels": LABELS, **more}
    with fostore.create(path, num_samples=N, num_classes=K, **more) as writer:
        writer.append(PROBS)
    return path


# ------------------------------------------------------------------ written and read


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_labels_lie_beside_the_rows(tmp_path: Path, suffix: str) -> None:
    store = fostore.open(write(tmp_path / f"a.{suffix}"))
    assert store.labels is not None
    assert store.labels.dtype == np.int64
    assert np.array_equal(store.labels, LABELS)
    assert np.array_equal(store.select([5, 2]).labels, LABELS[[5, 2]])
    assert store.verify() == []
    assert fostore.open(write(tmp_path / f"b.{suffix}", class_labels=None)).labels is None


def test_labels_come_with_each_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    with fostore.create(path, num_samples=N, num_classes=K, class_labels=True) as writer:
        writer.write(60, PROBS[60:], class_labels=LABELS[60:].tolist())
        with pytest.raises(RowError, match="give class_labels="):
            writer.write(0, PROBS[:60])
        writer.write(0, PROBS[:60], class_labels=LABELS[:60])
    assert np.array_equal(fostore.open(path).labels, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, K], "the label of row 11 is 4, expected 0 to 3"),
        ([-1, 0], "the label of row 10 is -1"),
        ([0.0, 1.0], "class_labels: float64 of shape"),
        (["a", "b"], "class_labels: <U1 of shape"),
        ([[0, 1], [1, 0]], r"of shape \(2, 2\)"),
        (np.array([0, 2**63], np.uint64), f"class_labels: {2**63} came at row 11"),
    ],
)
def test_what_is_no_class_is_refused(tmp_path: Path, labels: Any, message: str) -> None:
    path = tmp_path / "a.zarr"
    writer = fostore.create(path, num_samples=N, num_classes=K, class_labels=True)
    writer.append(PROBS[:10], class_labels=LABELS[:10])
    with pytest.raises(RowError, match=message):
        writer.append(PROBS[10:12], class_labels=labels)
    writer.append(PROBS[10:], class_labels=LABELS[10:])
    writer.close()
    assert np.array_equal(fostore.open(path).labels, LABELS)


def test_labels_that_come_at_once_are_checked_at_once(tmp_path: Path) -> None:
    for wrong, error, message in (
        (LABELS[1:], ArgumentError, "119 class_labels for 120 samples"),
        (LABELS + 1, RowError, "expected 0 to 3"),
        (LABELS / 2, ArgumentError, "class_labels: float64"),
    ):
        with pytest.raises(error, match=message):
            fostore.create(tmp_path / "a.zarr", num_samples=N, num_classes=K, class_labels=wrong)


def test_labels_are_part_of_the_content(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.zarr"), write(tmp_path / "b.zarr", class_labels=LABELS[::-1])
    assert fostore.open(one).digest() != fostore.open(other).digest()
    shard = one / "label" / "c" / "0"
    data = bytearray(shard.read_bytes())
    data[8 * 7] ^= 1
    shard.write_bytes(data)
    findings = [str(finding) for finding in fostore.open(one).verify("checksums")]
    assert any("column label" in finding for finding in findings)


@pytest.mark.parametrize("suffix", ["h5", "json", "parquet", "npz", "jsonl", "safetensors"])
def test_labels_survive_every_format(tmp_path: Path, suffix: str) -> None:
    first = write(tmp_path / "a.zarr", ids=[f"i{k}" for k in range(N)])
    fostore.convert(first, tmp_path / f"b.{suffix}", progress=False)
    fostore.convert(tmp_path / f"b.{suffix}", tmp_path / "c.zarr", progress=False)
    last = fostore.open(tmp_path / "c.zarr")
    assert last.digest() == fostore.open(first).digest()
    assert np.array_equal(last.labels, LABELS)


def test_labels_follow_their_classes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.zarr")
    fostore.convert(first, tmp_path / "b.zarr", classes=[3, 1, 0, 2], progress=False)
    there = fostore.open(tmp_path / "b.zarr")
    assert np.array_equal(np.array([3, 1, 0, 2])[there.labels], LABELS)
    assert evaluate.accuracy(there) == evaluate.accuracy(first)
    row = int(np.argmax((LABELS != 3) & (LABELS != 1)))
    with pytest.raises(
        ArgumentError, match=rf"the label of row {row} is class {LABELS[row]}, which"
    ):
        fostore.convert(first, tmp_path / "c.zarr", classes=[3, 1], progress=False)
    assert not (tmp_path / "c.zarr").exists()


def test_labels_are_left_out_by_name_where_a_format_has_no_place(tmp_path: Path) -> None:
    first = write(tmp_path / "a.zarr")
    with pytest.raises(ArgumentError, match="label"):
        fostore.convert(first, tmp_path / "b.npy", progress=False)


def test_members_of_other_labels_are_not_stacked(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.zarr"), write(tmp_path / "b.zarr", class_labels=LABELS[::-1])
    same = write(tmp_path / "c.zarr")
    fostore.conversion.stack([one, same], tmp_path / "e.zarr", progress=False)
    assert np.array_equal(fostore.open(tmp_path / "e.zarr").labels, LABELS)
    with pytest.raises(IdentityError, match="their 'label' differ"):
        fostore.conversion.stack([one, other], tmp_path / "f.zarr", progress=False)


# ------------------------------------------------------------------ generated


def test_a_generator_keeps_the_labels_of_its_samples(tmp_path: Path, side: Side) -> None:
    pairs = make_pairs()
    generator = side.generator(side.model(Linear()), batch_size=16)
    options = {"progress": False, "keep_labels": True}
    store = generator.generate_distributions(pairs, store=tmp_path / "a.zarr", **options)
    assert np.array_equal(store.labels, pairs.labels)
    assert store.verify() == []


def test_a_resumed_generation_keeps_labels_also_unasked(tmp_path: Path) -> None:
    pairs, path = make_pairs(), tmp_path / "a.zarr"
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=16)
    options = {"progress": False, "store": path}
    generator.generate_distributions(pairs, rows=(0, 50), keep_labels=True, **options)
    store = generator.generate_distributions(pairs, **options)
    assert np.array_equal(store.labels, pairs.labels)


def test_a_store_without_labels_does_not_get_them_later(tmp_path: Path) -> None:
    pairs, path = make_pairs(), tmp_path / "a.zarr"
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=16)
    generator.generate_distributions(pairs, progress=False, store=path, rows=(0, 32))
    with pytest.raises(IdentityError, match="keeps no class_labels"):
        generator.generate_distributions(pairs, progress=False, store=path, keep_labels=True)


def test_labels_by_name_become_numbers(tmp_path: Path) -> None:
    pairs = make_pairs(40)
    assert pairs.labels is not None
    names = [f"n{k}" for k in range(NUM_CLASSES)]
    named = [(x, names[y]) for x, y in zip(pairs.inputs, pairs.labels, strict=True)]
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=16)
    options: dict[str, Any] = {"progress": False, "keep_labels": True, "class_names": names}
    store = generator.generate_distributions(named, store=tmp_path / "a.zarr", **options)
    assert np.array_equal(store.labels, pairs.labels)


@pytest.mark.parametrize("label", [None, "cat", NUM_CLASSES, -1, 2.5, [1, 0]])
def test_a_label_that_is_no_class_is_refused_and_names_its_sample(
    tmp_path: Path, label: Any
) -> None:
    samples = [(x, 0 if i != 5 else label) for i, x in enumerate(make_pairs(40).inputs)]
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=16)
    with pytest.raises(ArgumentError, match="sample 5 has the label"):
        generator.generate_distributions(
            samples, progress=False, store=tmp_path / "a.zarr", keep_labels=True
        )
    assert not (tmp_path / "a.zarr").exists()


def test_keep_labels_needs_labels_and_a_store(tmp_path: Path) -> None:
    generator = fostore.FirstOrderDataGenerator(Linear(), batch_size=16)
    inputs = make_pairs(40).inputs
    with pytest.raises(ArgumentError, match="keep_labels: without store="):
        generator.generate_distributions(make_pairs(), progress=False, keep_labels=True)
    for samples in (inputs, Pairs(inputs)):
        with pytest.raises(ArgumentError, match="keep_labels=True, and "):
            generator.generate_distributions(
                samples, progress=False, store=tmp_path / "a.zarr", keep_labels=True
            )


# ------------------------------------------------------------------ scores


def test_scores_take_the_labels_of_the_store(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    for score in (evaluate.accuracy, evaluate.nll, evaluate.brier, evaluate.ece):
        assert score(path) == score(path, LABELS)
    assert evaluate.summarize(path).to_json() == evaluate.summarize(path, LABELS).to_json()
    some = fostore.open(path).select([7, 3, 50])
    assert evaluate.accuracy(some) == evaluate.accuracy(PROBS[[7, 3, 50]], LABELS[[7, 3, 50]])
    other = PROBS.argmax(1)
    assert evaluate.accuracy(path, other) == 1 != evaluate.accuracy(path)


def test_without_labels_scores_say_what_to_give(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", class_labels=None)
    with pytest.raises(ArgumentError, match="keeps no labels; give labels="):
        evaluate.accuracy(path)
    assert evaluate.summarize(path).metrics is None


def test_stats_needs_no_file_of_labels(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["stats", str(write(tmp_path / "a.zarr"))])
    assert result.exit_code == 0
    assert f"{evaluate.accuracy(PROBS, LABELS):.4g}\n" in result.stdout.partition("  accuracy ")[2]
