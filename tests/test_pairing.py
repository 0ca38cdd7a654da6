"""Pairing: is it the same sample, and is it the same view; refused before the first batch where it is not."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fostore
from fostore.errors import ArgumentError, IdentityError
from fostore.pairing.content import spread
from fostore.places.memory import Memory
from fostore.schema.sides.known import KnownIds
from sides import NUM_CLASSES, SIDES, Linear, Pairs, Side, make_pairs
from support import SUFFIXES, probs

N = 60
KEYS = [f"image-{i}" for i in range(N)]


@pytest.fixture(params=SUFFIXES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"teacher{request.param}"


pytestmark = pytest.mark.usefixtures("fast_disk")


class Named(Pairs):
    """A dataset with class names and ids, as torchvision and others have them."""

    def __init__(self, pairs: Pairs, classes: Any = None, ids: Any = None) -> None:
        super().__init__(pairs.inputs, pairs.labels)
        self.classes, self.ids = classes, ids


class Augmented(Pairs):
    """Reads differently each time."""

    def __getitem__(self, index: int) -> Any:
        found = super().__getitem__(index)
        noise = np.float32(np.random.normal() + random.random())
        return (found[0] + noise, found[1]) if self.labels is not None else found + noise


class Part:
    """What torch's Subset is, for every side."""

    def __init__(self, dataset: Any, indices: Any) -> None:
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def generate(side: Side, dataset: Any, path: Path, **options: Any) -> fostore.Store:
    generator = side.generator(
        side.model(Linear()), batch_size=16, output_mode="logits", **options.pop("generator", {})
    )
    store: fostore.Store = generator.generate_distributions(
        dataset, progress=False, store=path, **options
    )
    return store


def unlabelled(seed: int = 1) -> Pairs:
    return Pairs(make_pairs(N, seed).inputs)


def only(pairs: Pairs, order: Any) -> Pairs:
    labels = None if pairs.labels is None else pairs.labels[order]
    return Pairs(pairs.inputs[order], labels)


def swapped(first: int, second: int) -> np.ndarray:
    order = np.arange(N)
    order[[first, second]] = second, first
    return order


def row_of(item: Any) -> np.ndarray:
    return np.asarray(item[-1])


# ------------------------------------------------------------------ content


def test_the_dataset_of_the_generator_is_paired_and_says_what_was_compared(
    side: Side, place: Path
) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    paired = side.module.FirstOrderDataset(pairs, store)
    assert paired.pairing.checked == ("length", "labels", "content")
    assert paired.pairing.num_compared == N
    assert paired.pairing.rows is None
    assert str(paired.pairing) == (
        "checked: length, labels, content (60 samples); not checked: ids (the store keeps none), "
        "class names (the store has none)"
    )
    np.testing.assert_array_equal(row_of(paired[7]), store[7])


def test_a_dataset_is_paired_with_a_store_behind_its_url(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    url = f"memory://pairing{place.suffix}"
    held = Memory.of(url, place)  # found by its url while somebody holds it
    paired = side.module.FirstOrderDataset(pairs, url)
    assert paired.distributions.path == held.url
    assert "content" in paired.pairing.checked
    again = pickle.loads(pickle.dumps(paired))
    np.testing.assert_array_equal(again.gather(np.arange(N)), store.take(range(N)))
    (rows,) = side.module.output_dataloader(None, url, N)
    np.testing.assert_array_equal(np.asarray(rows), store.take(range(N)))


@pytest.mark.parametrize("check", ["auto", "content"])
def test_a_shuffled_dataset_is_refused_with_the_first_sample_that_differs(
    side: Side, place: Path, check: str
) -> None:
    pairs = unlabelled()
    store = generate(side, pairs, place)
    order = np.r_[0:5, np.random.default_rng(0).permutation(np.arange(5, N))]
    assert order[5] != 5
    with pytest.raises(IdentityError, match=f"sample 5 of the dataset is sample {order[5]} of the"):
        side.module.FirstOrderDataset(only(pairs, order), store, check=check)


@pytest.mark.parametrize("check", ["auto", "content"])
def test_two_swapped_samples_are_seen(side: Side, place: Path, check: str) -> None:
    pairs = unlabelled()
    store = generate(side, pairs, place)
    with pytest.raises(IdentityError, match="sample 20 of the dataset is sample 41 of the store"):
        side.module.FirstOrderDataset(only(pairs, swapped(20, 41)), store, check=check)


def test_another_dataset_of_the_same_length_is_refused(side: Side, place: Path) -> None:
    store = generate(side, unlabelled(), place)
    with pytest.raises(IdentityError, match="sample 0 of the dataset has another content"):
        side.module.FirstOrderDataset(unlabelled(2), store)


@pytest.mark.parametrize("count", [N - 1, N + 1])
def test_a_cut_or_longer_dataset_is_refused_by_its_length(
    side: Side, place: Path, count: int
) -> None:
    store = generate(side, unlabelled(), place)
    with pytest.raises(ArgumentError, match=f"the dataset has {count} samples"):
        side.module.FirstOrderDataset(Pairs(make_pairs(count).inputs), store, check="length")


def test_another_view_is_refused_unless_it_is_meant(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    flipped = Pairs(pairs.inputs[:, ::-1].copy(), pairs.labels)
    with pytest.raises(IdentityError, match=r"sample 0 .*check='length' without ids"):
        side.module.FirstOrderDataset(flipped, store)
    paired = side.module.FirstOrderDataset(flipped, store, check="length")
    assert paired.pairing.checked == ("length",)
    assert set(paired.pairing.not_checked) == {"ids", "class names", "labels", "content"}


def test_a_students_random_augmentation_over_a_plain_teacher_works_and_is_said(
    side: Side, place: Path
) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    student = Augmented(pairs.inputs, pairs.labels)
    with pytest.warns(UserWarning, match=r"reads differently each.*length and labels decide") as w:
        paired = side.module.FirstOrderDataset(student, store)
    assert len(w) == 1
    assert w[0].filename == __file__
    assert paired.pairing.checked == ("length", "labels")
    assert "differently" in paired.pairing.not_checked["content"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        side.module.FirstOrderDataset(student, store, check="length")
    with pytest.raises(ArgumentError, match="check='content' compares the inputs"):
        side.module.FirstOrderDataset(student, store, check="content")


def test_shuffled_labels_are_seen_under_random_augmentation(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    shuffled = only(pairs, np.arange(N)[::-1].copy())
    with pytest.raises(IdentityError, match="the labels of the dataset are not those"):
        side.module.FirstOrderDataset(Augmented(shuffled.inputs, shuffled.labels), store)


def test_where_the_teacher_was_augmented_length_alone_decides(side: Side, place: Path) -> None:
    with pytest.warns(UserWarning, match="reads differently each time"):
        store = generate(side, Augmented(unlabelled().inputs), place)
    assert store.header.identity["dataset"]["content"] == "unstable"
    with pytest.warns(UserWarning, match="generator's dataset read.*length alone decides"):
        paired = side.module.FirstOrderDataset(unlabelled(2), store)
    assert paired.pairing.checked == ("length",)


def test_an_opaque_dataset_is_said_once(side: Side, place: Path) -> None:
    store = generate(side, unlabelled(), place, dataset_fingerprint="mine")
    with pytest.warns(UserWarning, match="could not hash its inputs; length alone decides") as w:
        side.module.FirstOrderDataset(unlabelled(), store)
    assert len(w) == 1


def test_a_collate_fn_of_the_generators_own_is_no_reason_to_refuse(side: Side, place: Path) -> None:
    pairs = unlabelled()

    def padded(samples: Any) -> Any:
        return side.array(np.stack([np.asarray(s) for s in samples]) * 2)

    store = generate(side, pairs, place, collate_fn=padded)
    assert store.header.identity["dataset"]["collate"]["name"].endswith("padded")
    with pytest.warns(UserWarning, match="collate_fn of its own; length alone decides"):
        paired = side.module.FirstOrderDataset(pairs, store)
    assert paired.pairing.checked == ("length",)
    assert "collate_fn of its own" in paired.pairing.not_checked["content"]
    generate(side, pairs, place, collate_fn=lambda samples: padded(samples))  # goes on


def test_the_collate_fn_of_a_loader_is_recorded(tmp_path: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    def stacked(samples: Any) -> Any:
        return torch.stack([torch.from_numpy(sample) for sample in samples])

    pairs = unlabelled()
    plain = generate(SIDES["torch"], DataLoader(pairs, batch_size=8), tmp_path / "a.zarr")
    assert plain.header.identity["dataset"]["collate"] is None
    loader = DataLoader(pairs, batch_size=8, collate_fn=stacked)
    store = generate(SIDES["torch"], loader, tmp_path / "b.zarr")
    assert store.header.identity["dataset"]["collate"]["name"].endswith("stacked")
    # It changes nothing that the model saw, so that content can be compared all the same.
    paired = SIDES["torch"].module.FirstOrderDataset(pairs, store)
    assert "content" in paired.pairing.checked


def test_another_input_getter_is_no_reason_to_refuse(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, generator={"input_getter": lambda s: s[0][::-1].copy()})
    with pytest.warns(UserWarning, match="another input_getter"):
        paired = side.module.FirstOrderDataset(pairs, store)
    assert paired.pairing.checked == ("length", "labels")
    assert "another input_getter" in paired.pairing.not_checked["content"]


def test_another_input_getter_of_the_same_input_still_compares(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, generator={"input_getter": lambda sample: sample[0]})
    assert "content" in side.module.FirstOrderDataset(pairs, store).pairing.checked


def test_another_input_getter_hides_no_shuffled_dataset(side: Side, place: Path) -> None:
    pairs = unlabelled()
    store = generate(side, pairs, place, generator={"input_getter": lambda sample: sample})
    with pytest.raises(IdentityError, match=r"sample 0 .*shuffled or reordered"):
        side.module.FirstOrderDataset(only(pairs, np.roll(np.arange(N), 7)), store)


def test_a_pickled_dataset_knows_its_store_again(side: Side, place: Path) -> None:
    pairs = unlabelled()
    pickled = pickle.dumps(side.module.FirstOrderDataset(pairs, generate(side, pairs, place)))
    assert len(pickle.loads(pickled)) == N
    with fostore.create(place, num_samples=N, num_classes=NUM_CLASSES, exists="overwrite") as w:
        w.append(probs(N, NUM_CLASSES))
    with pytest.raises(IdentityError, match="another store has taken the place"):
        pickle.loads(pickled)


def test_rows_of_a_dict_are_not_softened_and_are_of_one_width(side: Side) -> None:
    make, rows = side.module.FirstOrderDataset, {0: [0.5, 0.5], 1: [0.2, 0.3, 0.5]}
    for options in ({"temperature": 2.0}, {"as_kind": "log_probs"}):
        with pytest.raises(ArgumentError, match="are for a store"):
            make([1, 2], {0: [0.5, 0.5], 1: [0.2, 0.8]}, **options)
    with pytest.raises(ArgumentError, match=r"sample 1 is .* as many for every sample"):
        make([1, 2], rows).gather(np.arange(2))
    for row in (None, 0.5, ["0.5", "0.5"]):
        with pytest.raises(ArgumentError, match=r"sample 0 is .* expected numbers"):
            make([1], {0: row}).gather(np.arange(1))
    with pytest.raises(ArgumentError, match="sample 0 has none"):
        make(None, {5: [0.5, 0.5], 7: [0.2, 0.8]})


@pytest.mark.parametrize("dtype", ["int32", "bfloat16", object()])
def test_distributions_are_handed_out_as_floats_or_not_at_all(side: Side, dtype: Any) -> None:
    with pytest.raises(ArgumentError, match="expected 'float16', 'float32' or 'float64'"):
        side.module.FirstOrderDataset([1], {0: [0.5, 0.5]}, dtype=dtype)


class Choosy(Pairs):
    """Leaves samples out of what it is asked for at once."""

    def __getitems__(self, indices: Any) -> Any:
        return [self[i] for i in indices if i % 7]


def test_samples_left_out_of_a_batch_move_no_distribution(side: Side, place: Path) -> None:
    pairs = unlabelled()
    rows = dict(generate(side, pairs, place))
    paired = side.module.FirstOrderDataset(Choosy(pairs.inputs), rows)
    with pytest.raises(ArgumentError, match="asked for 16 samples and gave a list of 13"):
        paired.read_batches(np.arange(16), 16)


@pytest.mark.parametrize("student", list(SIDES))
def test_every_side_reads_arrays_to_the_same_hashes(
    side: Side, student: str, tmp_path: Path
) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, tmp_path / "teacher.zarr")
    assert "content" in SIDES[student].module.FirstOrderDataset(pairs, store).pairing.checked
    shuffled = only(unlabelled(), swapped(3, 4))
    with pytest.raises(IdentityError, match="sample 3 of the dataset is sample 4"):
        SIDES[student].module.FirstOrderDataset(shuffled, store)


def test_another_framework_that_reads_every_input_differently_is_no_reason_to_refuse(
    tmp_path: Path,
) -> None:
    store = generate(SIDES["numpy"], unlabelled(), tmp_path / "teacher.zarr")
    import torch
    from torch.utils.data import TensorDataset

    halves = TensorDataset(torch.from_numpy(unlabelled().inputs).double())
    with pytest.warns(UserWarning, match="generated with numpy, and no input reads the same"):
        paired = SIDES["torch"].module.FirstOrderDataset(halves, store)
    assert paired.pairing.checked == ("length",)


def test_pairing_leaves_every_random_state_as_it_was(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    np.random.seed(3)
    random.seed(3)
    states = [np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index,union-attr]
    if side.name == "torch":
        import torch

        states.append(torch.get_rng_state().tolist())
    with pytest.warns(UserWarning, match="reads differently"):
        side.module.FirstOrderDataset(Augmented(pairs.inputs, pairs.labels), store)
    side.module.FirstOrderDataset(pairs, store, check="content")
    after = [np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index,union-attr]
    if side.name == "torch":
        after.append(torch.get_rng_state().tolist())
    assert after == states


def test_a_slow_dataset_is_compared_in_part(side: Side, place: Path, monkeypatch: Any) -> None:
    from fostore.pairing import content

    pairs = unlabelled()
    store = generate(side, pairs, place)
    monkeypatch.setattr(content, "SECONDS", 0.0)
    pairs.read.clear()
    paired = side.module.FirstOrderDataset(pairs, store)
    assert paired.pairing.num_compared == content.FEWEST
    assert {0, N - 1} <= set(pairs.read)
    assert max(np.diff(sorted(set(pairs.read)))) <= N // 3
    monkeypatch.setattr(content, "WALK_SECONDS", 0.0)
    with pytest.raises(IdentityError, match=r"sample 59 .* \(samples 0 to 58 were not all read\)"):
        side.module.FirstOrderDataset(only(pairs, swapped(59, 58)), store)


def test_a_dataset_that_cannot_be_read_by_itself_is_paired_by_what_remains(
    side: Side, place: Path
) -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise OSError("no such file")

    store = generate(side, unlabelled(), place)
    paired = side.module.FirstOrderDataset(Broken(unlabelled().inputs), store)
    assert "no such file" in paired.pairing.not_checked["content"]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 100, 1024])
def test_samples_are_spread_over_the_dataset_and_each_comes_once(count: int) -> None:
    order = list(spread(count))
    assert sorted(order) == list(range(count))
    assert order[:2] == [0, count - 1][:count]


# ------------------------------------------------------------------ labels and class names


def test_other_labels_of_the_same_inputs_are_refused(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    assert pairs.labels is not None
    other = Pairs(pairs.inputs, (pairs.labels + 1) % NUM_CLASSES)
    for check in ("auto", "content"):
        with pytest.raises(
            IdentityError, match=r"labels .*; the inputs of all samples are the same"
        ):
            side.module.FirstOrderDataset(other, store, check=check)
    side.module.FirstOrderDataset(other, store, check="length")


def test_where_labels_differ_the_first_sample_is_named(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    assert pairs.labels is not None
    pairs.labels[20:22] = 0, 1
    store = generate(side, pairs, place)
    with pytest.raises(IdentityError, match=r"labels .*; sample 20 of the dataset is sample 21 of"):
        side.module.FirstOrderDataset(only(pairs, swapped(20, 21)), store)


@pytest.mark.parametrize("check", ["auto", "content", "ids", "length"])
def test_class_names_in_another_order_are_refused_on_every_level(
    side: Side, place: Path, check: str
) -> None:
    names = list("abcde")
    pairs = make_pairs(N)
    store = generate(side, pairs, place, class_names=names, ids=KEYS)
    good = side.module.FirstOrderDataset(Named(pairs, names), store, ids=KEYS, check=check)
    assert "class names" in good.pairing.checked
    for other, message in (
        (["b", "a", *"cde"], "another order"),
        (list("abcdx"), "class 4 is 'x'"),
    ):
        for dataset in (Named(pairs, other), Part(Named(pairs, other), range(N))):
            with pytest.raises(IdentityError, match=message):
                side.module.FirstOrderDataset(dataset, store, ids=KEYS, check=check)


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize("kind", [str, int])
@pytest.mark.parametrize("check", ["auto", "ids", "content"])
def test_a_permuted_dataset_is_joined_by_id(
    side: Side, place: Path, kind: type, check: str
) -> None:
    keys = KEYS if kind is str else [1000 - 7 * i for i in range(N)]
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=keys)
    order = np.random.default_rng(0).permutation(N)
    ids = [keys[i] for i in order]
    paired = side.module.FirstOrderDataset(only(pairs, order), store, ids=ids, check=check)
    assert paired.pairing.checked[0] == "ids"
    assert ("labels" in paired.pairing.checked) == (check != "ids")
    assert ("content" in paired.pairing.checked) == (check != "ids")
    for i in (0, 17, N - 1):
        np.testing.assert_array_equal(row_of(paired[i]), store[int(order[i])])
    batches = list(side.module.output_dataloader(only(pairs, order), store, 16, ids=ids))
    found = np.concatenate([row_of(batch) for batch in batches])
    np.testing.assert_array_equal(found, store.take(order))


def test_a_part_is_joined_by_the_ids_of_the_dataset_and_its_content_is_compared(
    side: Side, place: Path
) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=KEYS)
    part = Part(Named(pairs, ids=KEYS), [40, 3, 12])
    paired = side.module.FirstOrderDataset(part, store)
    assert paired.pairing.checked == ("ids", "content")
    assert "part of what was generated" in paired.pairing.not_checked["labels"]
    np.testing.assert_array_equal(row_of(paired[0]), store[40])
    wrong = Part(Pairs(pairs.inputs, pairs.labels), [40, 3, 13])
    with pytest.raises(IdentityError, match="sample 2 of the dataset is sample 13 of the store"):
        side.module.FirstOrderDataset(wrong, store, ids=[KEYS[i] for i in (40, 3, 12)])


def test_ids_decide_in_silence_under_random_augmentation(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=KEYS)
    order = np.arange(N)[::-1].copy()
    student = Augmented(pairs.inputs[order], pairs.labels[order])  # type: ignore[index]
    for check in ("auto", "ids"):
        paired = side.module.FirstOrderDataset(student, store, ids=KEYS[::-1], check=check)
        np.testing.assert_array_equal(row_of(paired[0]), store[N - 1])


@pytest.mark.parametrize("check", ["auto", "ids", "length"])
def test_an_unknown_id_and_one_that_comes_twice_are_refused_by_name(
    side: Side, place: Path, check: str
) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=KEYS)
    unknown = [*KEYS[:30], "other", "another", *KEYS[32:]]
    with pytest.raises(IdentityError, match=r"sample 30 has the id 'other'.*\(2 of 60 ids"):
        side.module.FirstOrderDataset(pairs, store, ids=unknown, check=check)
    longer = [*KEYS[:30], KEYS[30] + "x" * 40, *KEYS[31:]]  # wider than the store's column
    with pytest.raises(IdentityError, match="sample 30 has the id 'image-30x"):
        side.module.FirstOrderDataset(pairs, store, ids=longer, check=check)
    twice = [*KEYS[:30], KEYS[7], KEYS[8], *KEYS[32:]]
    with pytest.raises(IdentityError, match="samples 7 and 30 have one id, 'image-7'"):
        side.module.FirstOrderDataset(pairs, store, ids=twice, check=check)


def test_ids_that_cannot_be_compared_are_said(side: Side, place: Path, tmp_path: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=KEYS)
    dataset = side.module.FirstOrderDataset
    with pytest.raises(ArgumentError, match="the store keeps text as ids, 0 came for sample 0"):
        dataset(pairs, store, ids=range(N))
    with pytest.raises(ArgumentError, match="59 ids for the 60 samples"):
        dataset(pairs, store, ids=KEYS[:-1])
    with pytest.raises(ArgumentError, match=r"needs ids on both sides.*give ids="):
        dataset(pairs, store, check="ids")
    assert "ids" in dataset(Named(pairs, ids=range(N)), store).pairing.not_checked
    assert "ids" in dataset(pairs, store).pairing.not_checked
    without = generate(side, pairs, tmp_path / "without.zarr")
    for options in ({"ids": KEYS}, {"check": "ids"}):
        with pytest.raises(ArgumentError, match="the store keeps none; give ids= to generate"):
            dataset(pairs, without, **options)
    with pytest.raises(ArgumentError, match="check is 'none', expected one of"):
        dataset(pairs, store, check="none")


def test_an_unfinished_store_pairs_what_it_has_by_id(tmp_path: Path) -> None:
    pairs = make_pairs(N)
    generate(SIDES["numpy"], pairs, tmp_path / "a.zarr", ids=KEYS, rows=(32, 48))
    store = fostore.open(tmp_path / "a.zarr")
    part = Part(pairs, [47, 32])
    paired = fostore.FirstOrderDataset(part, store, ids=[KEYS[47], KEYS[32]])
    np.testing.assert_array_equal(paired[0][-1], store[47])
    in_order = fostore.FirstOrderDataset(Part(pairs, range(32, 48)), store, ids=KEYS[32:48])
    np.testing.assert_array_equal(in_order[0][-1], store[32])
    with pytest.raises(IdentityError, match="sample 0 has the id 'image-0'"):
        fostore.FirstOrderDataset(pairs, store, ids=KEYS)


def test_a_store_in_progress_with_one_id_twice_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KnownIds, "add", lambda *_: None)  # as version 0.1 wrote it
    with fostore.create(tmp_path / "a.zarr", num_classes=3, num_samples=4, ids="int64") as writer:
        writer.append(probs(3), ids=[5, 6, 5])
        writer.commit()
        with pytest.raises(IdentityError, match="rows 0 and 2 of the unfinished store have one id"):
            fostore.FirstOrderDataset([0, 1], fostore.open(tmp_path / "a.zarr"), ids=[6, 5])


# ------------------------------------------------------------------ other distributions


def test_a_selection_is_checked_through_its_rows(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, ids=KEYS)
    rows = [50, 4, 31]
    chosen = store.select(rows)
    assert chosen.ids is not None
    assert chosen.ids.tolist() == [KEYS[i] for i in rows]
    paired = side.module.FirstOrderDataset(Part(pairs, rows), chosen)
    assert paired.pairing.checked == ("length", "content")
    np.testing.assert_array_equal(row_of(paired[1]), store[4])
    with pytest.raises(IdentityError, match="sample 1 of the dataset has another content"):
        side.module.FirstOrderDataset(Part(pairs, [50, 5, 31]), chosen)
    with pytest.raises(IdentityError, match="sample 0 of the dataset is sample 1 of"):
        side.module.FirstOrderDataset(Part(pairs, [4, 50, 31]), chosen)
    by_id = [KEYS[i] for i in (31, 50)]
    paired = side.module.FirstOrderDataset(Part(pairs, [31, 50]), chosen, ids=by_id)
    np.testing.assert_array_equal(row_of(paired[0]), store[31])
    backwards = store.select(np.arange(N)[::-1])
    paired = side.module.FirstOrderDataset(only(pairs, np.arange(N)[::-1]), backwards)
    assert paired.pairing.checked == ("length", "labels", "content")


def test_a_dict_has_nothing_but_its_length(side: Side) -> None:
    rows = dict(enumerate(probs(N, NUM_CLASSES)))
    dataset = side.module.FirstOrderDataset
    paired = dataset(unlabelled(), rows)
    assert paired.pairing.checked == ("length",)
    assert str(paired.pairing).startswith("checked: length; not checked: class names (a dict says")
    for options in ({"ids": KEYS}, {"check": "ids"}, {"check": "content"}):
        with pytest.raises(ArgumentError, match="generate with store="):
            dataset(unlabelled(), rows, **options)


def test_a_guides_json_has_nothing_but_its_length(side: Side, tmp_path: Path) -> None:
    generator = side.generator(side.model(Linear()), output_mode="logits")
    rows = generator.generate_distributions(unlabelled(), progress=False)
    generator.save_distributions(tmp_path / "rows.json", rows, {})
    paired = side.module.FirstOrderDataset(unlabelled(2), tmp_path / "rows.json")
    assert paired.pairing.checked == ("length",)
    assert paired.pairing.not_checked["content"] == "the distributions come without input hashes"


def test_a_json_of_a_store_is_checked_as_the_store(side: Side, place: Path, tmp_path: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place)
    generator = side.generator(side.model(Linear()))
    generator.save_distributions(tmp_path / "rows.json", store)
    paired = side.module.FirstOrderDataset(pairs, tmp_path / "rows.json")
    assert paired.pairing.checked == ("length", "labels", "content")


def test_distributions_alone_have_nothing_to_check(side: Side, place: Path) -> None:
    store = generate(side, unlabelled(), place)
    assert side.module.FirstOrderDataset(None, store).pairing.checked == ()


# ------------------------------------------------------------------ dict samples, and the plain view


class Dicts(Pairs):
    """Samples as Hugging Face's datasets have them."""

    def __getitem__(self, index: int) -> Any:
        found = super().__getitem__(index)
        return {"image": found[0], "label": found[1]}


def test_a_distribution_goes_into_dict_samples_under_its_key(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    dicts = Dicts(pairs.inputs, pairs.labels)
    getter = lambda sample: sample["image"]  # noqa: E731
    store = generate(side, dicts, place, generator={"input_getter": getter})
    dataset = side.module.FirstOrderDataset
    paired = dataset(dicts, store, input_getter=getter, target_key="teacher")
    assert "content" in paired.pairing.checked
    sample = paired[3]
    assert set(sample) == {"image", "label", "teacher"}
    np.testing.assert_array_equal(np.asarray(sample["teacher"]), store[3])
    options = {"input_getter": getter, "target_key": "teacher"}
    batch = next(iter(side.module.output_dataloader(dicts, store, 8, **options)))
    np.testing.assert_array_equal(np.asarray(batch["teacher"]), store[:8])
    assert np.asarray(batch["image"]).shape == (8, 4)
    with pytest.raises(ArgumentError, match="the samples have 'label' already"):
        dataset(dicts, store, getter, target_key="label")[0]
    with pytest.raises(ArgumentError, match="target_key='teacher' is for samples that are dicts"):
        dataset(pairs, store, check="length", target_key="teacher")[0]


def test_a_plain_view_has_inputs_distributions_targets_and_classes(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    store = generate(side, pairs, place, class_names=list("abcde"), ids=KEYS)
    view = side.module.FirstOrderDataset(pairs, store).as_pairs()
    assert len(view) == N
    image, distribution = view[5]
    np.testing.assert_array_equal(image, pairs.inputs[5])
    np.testing.assert_array_equal(np.asarray(distribution), store[5])
    assert type(distribution) is type(side.array([1.0]))
    np.testing.assert_array_equal(view.targets, store[:])
    assert np.shares_memory(view.targets, store.array)
    assert not view.targets.flags.writeable
    assert view.classes == list("abcde")
    np.testing.assert_array_equal(np.asarray(view[-1][1]), store[N - 1])
    with pytest.raises(IndexError):
        view[N]
    joined = side.module.FirstOrderDataset(Part(pairs, [9, 2]), store, ids=[KEYS[9], KEYS[2]])
    np.testing.assert_array_equal(joined.as_pairs().targets, store.take([9, 2]))
    assert not joined.as_pairs().targets.flags.writeable


def test_a_plain_view_of_a_dict_numbers_its_classes(side: Side) -> None:
    rows = dict(enumerate(probs(N, 3)))
    view = side.module.FirstOrderDataset(unlabelled(), rows).as_pairs()
    assert view.classes == ["0", "1", "2"]
    assert view.targets.shape == (N, 3)
    named = Named(make_pairs(N), list("xyz"))
    assert side.module.FirstOrderDataset(named, rows).as_pairs().classes == list("xyz")
    with pytest.raises(ArgumentError, match="no base dataset"):
        side.module.FirstOrderDataset(None, rows).as_pairs()


def test_torch_loads_a_plain_view_in_batches(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader, Subset

    pairs = make_pairs(N)
    store = generate(SIDES["torch"], pairs, tmp_path / "a.zarr")
    view = SIDES["torch"].module.FirstOrderDataset(pairs, store).as_pairs()
    images, rows = next(iter(DataLoader(Subset(view, range(8, 40)), batch_size=16)))
    np.testing.assert_array_equal(images.numpy(), pairs.inputs[8:24])
    np.testing.assert_array_equal(rows.numpy(), store[8:24])


# ------------------------------------------------------------------ views


class Replayed(Pairs):
    """Adds noise that follows from a seed and the number of a view."""

    def __init__(self, pairs: Pairs, views: Any) -> None:
        super().__init__(pairs.inputs, pairs.labels)
        self.views = np.asarray(views)

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + np.random.default_rng(self.views[index]).normal(size=4).astype("f4"), label


def test_a_view_that_is_replayed_passes_the_content_check_and_no_other_does(
    side: Side, place: Path
) -> None:
    pairs = make_pairs(N)
    views = np.stack([np.arange(N) + 100, np.arange(N) % 2], axis=1)
    store = generate(side, Replayed(pairs, views), place, views=views)
    assert store.views is not None
    assert store.views.dtype == np.int64
    np.testing.assert_array_equal(store.views, views)
    np.testing.assert_array_equal(store.select([4, 2]).views, views[[4, 2]])
    student = Replayed(pairs, store.views)
    paired = side.module.FirstOrderDataset(student, store, check="content")
    assert paired.pairing.checked == ("length", "labels", "content")
    with pytest.raises(IdentityError, match="sample 0 of the dataset has another content"):
        side.module.FirstOrderDataset(Replayed(pairs, views + 1), store)


def test_views_are_resumed_with_the_rows_and_others_are_refused(side: Side, place: Path) -> None:
    pairs = make_pairs(N)
    seeds = np.arange(N) + 7
    generate(side, pairs, place, views=seeds, rows=(0, 32))
    for other in (None, seeds + 1):
        with pytest.raises(IdentityError, match="the hash of the views"):
            generate(side, pairs, place, views=other)
    store = generate(side, pairs, place, views=seeds)
    assert store.is_sealed
    assert store.views is not None
    assert store.views.tolist() == [[seed, 0] for seed in seeds.tolist()]
    assert generate(side, pairs, place, views=seeds).digest() == store.digest()


def test_a_writer_takes_views_at_once_or_with_each_batch(place: Path) -> None:
    with fostore.create(place, num_samples=4, num_classes=3, views=[5, 6, 7, 8]) as writer:
        writer.append(probs(2))
        with pytest.raises(fostore.errors.RowError, match="views for rows 2 to 3 differ"):
            writer.append(probs(2), views=[7, 9])
    with pytest.raises(IdentityError, match="the views given differ from the store's from row 1"):
        fostore.create(place, num_samples=4, views=[5, 0, 7, 8], exists="resume")
    with fostore.create(place, num_samples=4, views=True, exists="resume") as writer:
        with pytest.raises(fostore.errors.RowError, match="2 values of 'view' were expected, none"):
            writer.append(probs(2))
        for wrong in ([0.5, 1.0], [[1, 2, 3], [4, 5, 6]]):
            with pytest.raises(fostore.errors.RowError, match=r"views: .* came, expected a seed"):
                writer.append(probs(2), views=wrong)
        writer.append(probs(2), views=[[7, 1], [8, 2]])
    store = fostore.open(place)
    assert store.views is not None
    assert store.views.tolist() == [[5, 0], [6, 0], [7, 1], [8, 2]]
    assert store.verify() == []


def test_views_that_do_not_fit_are_refused_before_anything_is_written(place: Path) -> None:
    for views, message in (([1, 2], "2 views for 3 samples"), (["a"] * 3, "views: <U1")):
        with pytest.raises(ArgumentError, match=message):
            fostore.create(place, num_samples=3, num_classes=2, views=views)
    model = Linear()
    with pytest.raises(ArgumentError, match="2 views for 60 samples"):
        fostore.FirstOrderDataGenerator(model).generate_distributions(
            unlabelled(), progress=False, store=place, views=[1, 2]
        )
    assert model.batches == []
    with pytest.raises(ArgumentError, match="views: without store="):
        fostore.FirstOrderDataGenerator(Linear()).generate_distributions(unlabelled(), views=[1])
    assert not place.exists()
    fostore.create(place, num_samples=3, num_classes=2).close()
    with pytest.raises(IdentityError, match="the store keeps no views"):
        fostore.create(place, num_samples=3, views=[1, 2, 3], exists="resume")
