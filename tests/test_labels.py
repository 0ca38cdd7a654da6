"""Labels that stand only in the samples: recorded as they are read, and compared wherever samples meet rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch.utils.data import DataLoader

import fostore
import fostore.torch
from fostore import evaluate
from fostore.errors import IdentityError
from fostore.generate.labels import NOTHING, differ, hash_each, hash_labels, tells
from sides import SIDES, Linear, Side
from support import SUFFIXES, plain_rows

N = 40
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(N, 4)).astype(np.float32)
LABELS = [int(label) for label in RNG.integers(0, 5, N)]


@pytest.fixture(params=SUFFIXES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"rows{request.param}"


pytestmark = pytest.mark.usefixtures("fast_disk")


class Crops:
    """Samples whose inputs read differently each time, and whose labels stand in them alone."""

    def __init__(self, labels: Any = LABELS, *, noise: float = 1.0) -> None:
        self._labels, self.noise = list(labels), noise

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        noise = np.random.random(4) * self.noise  # drawn anew each time
        return INPUTS[index] + np.float32(noise), self._labels[index]


def generate(side: Side, dataset: Any, path: Path, **options: Any) -> fostore.Store:
    generator = side.generator(side.model(Linear()), batch_size=16, output_mode="logits")
    store: fostore.Store = generator.generate_distributions(
        dataset, progress=False, store=path, **options
    )
    return store


@pytest.fixture
def unstable(recwarn: pytest.WarningsRecorder) -> None:
    """Random augmentation is said, and is not what is tested here."""


def moved(at: int, labels: Any = LABELS) -> list[Any]:
    return [*labels[:at], 99, *labels[at + 1 :]]


# ------------------------------------------------------------------ hashes


def test_a_label_has_the_hash_of_the_specification_in_any_container() -> None:
    def hashed(data: bytes, seed: int, form: int) -> int:
        return xxhash.xxh3_64_intdigest(data, seed) & ((1 << 62) - 1) | form << 62

    three = hashed((3).to_bytes(8, "little", signed=True), 1, 0)
    for label in (
        3,
        np.int32(3),
        np.array(3),
        torch.tensor(3),
        3.0,
        np.float32(3),
        torch.tensor(3.0),
    ):
        found = hash_each([label])
        assert found.tolist() == [three], label
    below = hash_each([-1, True])
    assert below.tolist() == [
        hashed((-1).to_bytes(8, "little", signed=True), 1, 0),
        hashed((1).to_bytes(8, "little"), 1, 0),
    ]
    half = hashed(np.float64(0.5).tobytes(), 2, 0)
    text = hashed("käfer".encode(), 3, 1)
    several = hashed(np.array([0.0, 1.0]).tobytes(), 4, 2)
    mixed = hash_each([0.5, np.str_("käfer"), torch.tensor([0, 1]), None])
    assert mixed.tolist() == [half, text, several, 3 << 62]


def test_the_hash_of_a_label_does_not_depend_on_its_batch() -> None:
    labels: list[Any] = [1, "1", 1.5, True, np.int64(2**60 + 1), np.float32(0.5), np.str_("a")]
    labels += [torch.tensor(2), torch.tensor(True), np.array("b"), np.bool_(False), np.uint8(200)]
    alone = [hash_each([label]) for label in labels]
    together, twice = hash_each(labels), [hash_each([label] * 2) for label in labels]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    np.testing.assert_array_equal(together, [two[1] for two in twice])
    as_array = hash_each(np.array([3, 4]))
    np.testing.assert_array_equal(as_array, hash_each([3, 4]))
    np.testing.assert_array_equal(as_array, hash_each(torch.tensor([3, 4])))


@pytest.mark.parametrize(
    "sample",
    [
        "x",
        (1,),
        ("x", None),
        ("x", np.zeros(5000)),
        ("x", ["a"]),
        [0.1, 0.2],
        {"x": 1},
        ("x", 2**64),
    ],
)
def test_samples_without_a_label_that_can_be_compared_say_nothing(sample: Any) -> None:
    found = hash_labels([sample, ("x", 1)])
    assert found.tolist()[0] == NOTHING
    assert tells(found)
    assert not tells(found[:1])
    assert not differ(found, hash_labels([("x", 1), ("x", 1)])).any()


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda one: torch.tensor(one, dtype=torch.bfloat16),
        lambda one: torch.nn.Parameter(torch.tensor(one)),
        lambda one: np.array([one]),
    ],
)
def test_several_numbers_are_one_label_in_any_container(form: Any) -> None:
    one, other = ([form([1, 0, 0.5])], [form([0, 1, 0.5])])
    found = hash_each(one)
    np.testing.assert_array_equal(found, hash_each([np.array([1, 0, 0.5])]))
    assert differ(found, hash_each(other)).all()


def test_labels_of_two_forms_say_nothing_of_each_other() -> None:
    forms = [hash_each([label])[0] for label in (1, "cat", [0, 1, 0], None)]
    assert len({int(form) >> 62 for form in forms}) == 4
    for one, other in itertools.permutations(forms, 2):
        assert not differ(np.array([one]), np.array([other])).any()


def test_labels_of_dicts_and_lists_are_found() -> None:
    found = [hash_labels([one]) for one in (("x", 7), ["x", 7], {"x": 1, "label": 7}, ("x", 7, 8))]
    assert len({one.tolist()[0] for one in found}) == 1


# ------------------------------------------------------------------ kept


@pytest.mark.usefixtures("unstable")
def test_labels_of_the_samples_are_a_column_beside_the_rows(side: Side, place: Path) -> None:
    store = generate(side, Crops(), place)
    assert [column.role for column in store.schema.columns] == ["content", "label"]
    np.testing.assert_array_equal(plain_rows(place, "label_hash"), hash_each(LABELS))
    assert not store.verify()


def test_labels_of_loaders_with_workers_travel_with_their_batch(tmp_path: Path) -> None:
    loader: Any = DataLoader(Crops(noise=0), batch_size=7, num_workers=2)  # type: ignore[arg-type]
    store = generate(SIDES["torch"], loader, tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.column("label_hash"), hash_each(LABELS))
    mapped = generate(SIDES["torch"], iter(Crops(noise=0)), tmp_path / "b.zarr")  # type: ignore[call-overload]
    np.testing.assert_array_equal(mapped.column("label_hash"), hash_each(LABELS))


def test_a_collate_fn_or_getter_of_the_users_own_loses_no_label(side: Side, tmp_path: Path) -> None:
    def collate(samples: Any) -> Any:
        return side.array(np.stack([sample[0] for sample in samples]))

    store = generate(side, Crops(noise=0), tmp_path / "a.zarr", collate_fn=collate)
    np.testing.assert_array_equal(store.column("label_hash"), hash_each(LABELS))
    dicts = [{"x": x, "label": y} for x, y in zip(INPUTS, LABELS, strict=True)]
    generator = side.generator(
        side.model(Linear()), output_mode="logits", input_getter=lambda sample: sample["x"]
    )
    found = generator.generate_distributions(dicts, progress=False, store=tmp_path / "b.zarr")
    np.testing.assert_array_equal(found.column("label_hash"), hash_each(LABELS))


@pytest.mark.parametrize(
    "dataset",
    [INPUTS, [(x, np.zeros((65, 65))) for x in INPUTS], [(x,) for x in INPUTS]],
    ids=["array", "masks", "alone"],
)
def test_without_such_labels_there_is_no_column(dataset: Any, tmp_path: Path) -> None:
    store = generate(SIDES["numpy"], dataset, tmp_path / "a.zarr")
    assert store.schema.role("label") is None


def test_a_dataset_that_tells_its_labels_needs_no_column(side: Side, place: Path) -> None:
    class Told(Crops):
        targets = LABELS

    store = generate(side, Told(noise=0), place)
    assert store.schema.role("label") is None
    assert store.header.identity["dataset"]["labels"] is not None


# ------------------------------------------------------------------ pairing


@pytest.mark.usefixtures("unstable")
def test_shuffled_crops_are_refused_by_the_first_label_that_differs(
    side: Side, place: Path
) -> None:
    store = generate(side, Crops(), place)
    paired = side.module.FirstOrderDataset(Crops(), store)
    assert "labels" in paired.pairing.checked
    with pytest.raises(IdentityError, match=r"the label of sample \d+ is another one than the gen"):
        side.module.FirstOrderDataset(Crops(LABELS[::-1]), store)
    with pytest.raises(IdentityError, match="the label of sample 17 is another one"):
        side.module.FirstOrderDataset(Crops(moved(17)), store)
    assert len(side.module.FirstOrderDataset(Crops(moved(17)), store, check="length")) == N


@pytest.mark.usefixtures("unstable")
def test_labels_that_a_dataset_tells_are_all_compared_with_those_that_were_read(
    place: Path,
) -> None:
    class Told(Crops):
        @property
        def targets(self) -> list[Any]:
            return self._labels

    store = generate(SIDES["numpy"], Crops(), place)
    assert "labels" in fostore.FirstOrderDataset(Told(), store).pairing.checked
    with pytest.raises(IdentityError, match="the label of sample 23 is another one"):
        fostore.FirstOrderDataset(Told(moved(23)), store)


@pytest.mark.usefixtures("unstable")
def test_joined_rows_are_compared_by_their_own_labels(side: Side, place: Path) -> None:
    store = generate(side, Crops(), place, ids=list(range(N)))
    order = list(range(N))[::-1]

    class Permuted(Crops):
        ids = order

    reordered = [LABELS[i] for i in order]
    assert "labels" in side.module.FirstOrderDataset(Permuted(reordered), store).pairing.checked
    with pytest.raises(IdentityError, match="the label of sample 3 is another one"):
        side.module.FirstOrderDataset(Permuted(moved(3, reordered)), store)
    part = store.select([5, 2])
    chosen = Crops([LABELS[5], LABELS[2]])
    assert "labels" in side.module.FirstOrderDataset(chosen, part).pairing.checked


@pytest.mark.usefixtures("unstable")
def test_labels_that_are_drawn_anew_each_time_say_nothing(place: Path) -> None:
    class Drawn(Crops):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0], float(np.random.random())

    store = generate(SIDES["numpy"], Drawn(), place)
    assert len(fostore.FirstOrderDataset(Drawn(), store)) == N
    assert generate(SIDES["numpy"], Drawn(), place).digest() == store.digest()


def test_samples_that_cannot_be_read_leave_labels_out(place: Path) -> None:
    class Broken(Crops):
        def __getitem__(self, index: int) -> Any:
            raise OSError("a bad sector")

    store = generate(SIDES["numpy"], Crops(noise=0), place)
    paired = fostore.FirstOrderDataset(Broken(), store)
    assert "cannot be read" in paired.pairing.not_checked["labels"]


LABELS_OF_ALL_KINDS: dict[str, Any] = {
    "a vector a sample": [torch.eye(4)[i % 4] for i in range(N)],
    "a list a sample": [[i % 3, i % 5] for i in range(N)],
    "some without, later on": [None if i > N // 2 else i % 3 for i in range(N)],
    "some without, at first": [None if i < 3 else i % 3 for i in range(N)],
    "a batch without": [None if 32 <= i < 64 else i % 3 for i in range(N)],
}


@pytest.mark.usefixtures("unstable")
@pytest.mark.parametrize("kind", LABELS_OF_ALL_KINDS)
def test_targets_of_several_labels_and_samples_without_any_are_recorded_and_compared(
    kind: str, place: Path
) -> None:
    labels = LABELS_OF_ALL_KINDS[kind]
    turned = [*labels[1:], labels[0]]
    generate(SIDES["torch"], Crops(labels), place, rows=(0, 40))
    with pytest.raises(IdentityError, match="of the dataset has another label"):
        generate(SIDES["torch"], Crops(turned), place)
    store = generate(SIDES["torch"], Crops(labels), place)
    assert "labels" in fostore.FirstOrderDataset(Crops(labels), store).pairing.checked
    with pytest.raises(IdentityError, match="the label of sample"):
        fostore.FirstOrderDataset(Crops(turned), store)
    others = [f"class {label}" for label in labels]  # other words for them
    paired = fostore.FirstOrderDataset(Crops(others), store)
    assert "of the form" in paired.pairing.not_checked["labels"]


def test_text_labels_are_compared_too(place: Path) -> None:
    names = ["cat", "dog"] * (N // 2)
    store = generate(SIDES["numpy"], Crops(names, noise=0), place)
    assert len(fostore.FirstOrderDataset(Crops(names, noise=0), store)) == N
    with pytest.raises(IdentityError, match="the label of sample 0 is another one"):
        fostore.FirstOrderDataset(Crops(names[::-1], noise=0), store)


# ------------------------------------------------------------------ going on


@pytest.mark.usefixtures("unstable")
@pytest.mark.parametrize("whole", [False, True])
def test_a_resume_with_moved_labels_is_refused(side: Side, place: Path, whole: bool) -> None:
    generate(side, Crops(), place, rows=None if whole else (0, 32))
    with pytest.raises(IdentityError, match="sample 0 of the dataset has another label"):
        generate(side, Crops(moved(0)), place)
    store = generate(side, Crops(), place)
    np.testing.assert_array_equal(store.column("label_hash"), hash_each(LABELS))


def test_a_stream_with_a_moved_label_does_not_go_on(tmp_path: Path) -> None:
    class Stream:
        def __init__(self, labels: Any, end: int = N) -> None:
            self.labels, self.end = labels, end

        def __iter__(self) -> Any:
            for index in range(N):
                if index == self.end:
                    raise OSError("cut")
                yield INPUTS[index], self.labels[index]

    path = tmp_path / "a.zarr"
    with pytest.raises(fostore.FostoreError, match="cut"):
        generate(SIDES["numpy"], Stream(LABELS, 33), path)
    with pytest.raises(IdentityError, match="sample 9 of the stream has another label"):
        generate(SIDES["numpy"], Stream(moved(9)), path)
    store = generate(SIDES["numpy"], Stream(LABELS), path)
    np.testing.assert_array_equal(store.column("label_hash"), hash_each(LABELS))


# ------------------------------------------------------------------ carried and compared


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".json", ".npz", ".safetensors", ".arrow"])
def test_conversions_carry_the_labels(suffix: str, tmp_path: Path) -> None:
    store = generate(SIDES["numpy"], Crops(noise=0), tmp_path / "from.zarr")
    there, back = tmp_path / f"to{suffix}", tmp_path / "back.zarr"
    fostore.convert(tmp_path / "from.zarr", there, progress=False)
    fostore.convert(there, back, progress=False)
    np.testing.assert_array_equal(
        fostore.open(back).column("label_hash"), store.column("label_hash")
    )
    assert fostore.open(back).digest() == store.digest()


@pytest.mark.usefixtures("unstable")
def test_stores_of_other_labels_are_not_compared(tmp_path: Path) -> None:
    one = generate(SIDES["numpy"], Crops(), tmp_path / "a.zarr")
    same = generate(SIDES["numpy"], Crops(), tmp_path / "b.zarr")
    other = generate(SIDES["numpy"], Crops(moved(11)), tmp_path / "c.zarr")
    assert evaluate.compare(one, same).num_samples == N
    with pytest.raises(
        IdentityError, match="row 11 has another label in the one than in the other"
    ):
        evaluate.compare(one, other)
    with pytest.raises(IdentityError, match="label"):
        fostore.stack(
            [tmp_path / "a.zarr", tmp_path / "c.zarr"], tmp_path / "d.zarr", progress=False
        )
