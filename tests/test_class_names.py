"""What models and datasets call their classes: found, compared, adopted, and refused in another order."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fostore
import fostore.torch
from fostore.errors import FostoreError, IdentityError
from fostore.schema.class_names import names_of_dataset, names_of_model, same
from support import SUFFIXES

NAMES = ("ant", "cat", "dog")
X = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
Y = np.arange(48) % 3
SAMPLES = [(row, 0) for row in X]
"""The same without names."""

pytestmark = pytest.mark.usefixtures("fast_disk")


class Pets:
    """A dataset in torchvision's shape."""

    def __init__(self, classes: Any = NAMES) -> None:
        self.classes, self.targets = list(classes), Y.tolist()

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], self.targets[index]


class Hub(torch.nn.Module):
    """A model in the shape of Hugging Face's."""

    def __init__(self, names: Any = NAMES) -> None:
        super().__init__()
        self.net = torch.nn.Linear(6, 3)
        self.config = SimpleNamespace(id2label=dict(enumerate(names)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Wrapper(torch.nn.Module):
    """A user's module around a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.teacher = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.teacher(x)  # type: ignore[no-any-return]


class Teacher:
    """A user's object around an estimator."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def __call__(self, x: Any) -> Any:
        return self.estimator.predict_proba(x)

    predict = __call__


def fitted(names: Any = NAMES) -> LogisticRegression:
    return LogisticRegression().fit(X, np.array(names)[Y])


def pipeline(names: Any = NAMES) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(X, np.array(names)[Y])


def search(names: Any = NAMES) -> Any:
    return GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(X, np.array(names)[Y])


def generator(model: Any, **options: Any) -> Any:
    first = model[0] if isinstance(model, list) else model
    module = fostore.torch if isinstance(first, torch.nn.Module) else fostore
    mode = "logits" if module is fostore.torch else "probs"
    return module.FirstOrderDataGenerator(model, output_mode=mode, **options)  # type: ignore[attr-defined]


def generate(model: Any, dataset: Any, path: Path | None = None, **options: Any) -> Any:
    return generator(model).generate_distributions(dataset, progress=False, store=path, **options)


# ------------------------------------------------------------------ what there is


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (fitted(), NAMES),
        (pipeline(), NAMES),
        (search(), NAMES),
        (fitted().predict_proba, NAMES),
        (functools.partial(fitted().predict_proba), NAMES),
        (Hub(), NAMES),
        (torch.nn.DataParallel(Hub()), NAMES),
        (torch.compile(Hub(), backend="eager"), NAMES),
        (Hub().forward, NAMES),
        (SimpleNamespace(config=SimpleNamespace(id2label={"1": "b", "0": "a"})), ("a", "b")),
        (SimpleNamespace(classes_=np.array([1, 3, 7])), ("1", "3", "7")),
        (SimpleNamespace(classes_=[2, 0, 1]), ("2", "0", "1")),
        (SimpleNamespace(classes_=np.array([1.0, 2.5])), ("1", "2.5")),
    ],
)
def test_a_models_own_names_are_found(model: Any, names: tuple[str, ...]) -> None:
    found = names_of_model(model)
    assert found is not None
    assert (found.names, found.is_own) == (names, True)


@pytest.mark.parametrize(
    "model",
    [
        SimpleNamespace(classes_=np.arange(3)),
        SimpleNamespace(classes_=np.array([0.0, 1.0])),
        SimpleNamespace(classes_=np.array([False, True])),
        SimpleNamespace(classes_=np.array(["0", "1", "2"])),
        SimpleNamespace(classes_=[np.arange(2), np.arange(3)]),  # of several outputs
        SimpleNamespace(config=SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})),
        SimpleNamespace(config=SimpleNamespace(id2label={0: "Class 0", 1: "Class 1"})),
        SimpleNamespace(config=SimpleNamespace(id2label={0: "a", 2: "b"})),
        SimpleNamespace(config={"id2label": None}),
        LogisticRegression(),
        lambda batch: fitted().predict_proba(batch),
        torch.nn.Linear(6, 3),
        np.tanh,
    ],
)
def test_numbers_in_order_and_placeholders_are_no_names(model: Any) -> None:
    assert names_of_model(model) is None


@pytest.mark.parametrize("model", [Wrapper(Hub()), Teacher(pipeline()), Teacher(Hub()).predict])
def test_names_behind_a_users_own_code_are_not_certain(model: Any) -> None:
    found = names_of_model(model)
    assert found is not None
    assert (found.names, found.is_own) == (NAMES, False)


def test_real_models_and_datasets_of_hugging_face_tell_their_names(tmp_path: Path) -> None:
    import datasets
    import transformers

    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        id2label={0: "entailment", 1: "neutral", 2: "contradiction"},
        label2id={"entailment": 0, "neutral": 1, "contradiction": 2},
    )
    model = transformers.BertForSequenceClassification(config)
    found = names_of_model(model)
    assert found is not None
    assert found.names == ("entailment", "neutral", "contradiction")
    config.id2label = {number: f"LABEL_{number}" for number in range(3)}
    assert names_of_model(model) is None
    label = datasets.ClassLabel(names=["contradiction", "entailment", "neutral"])
    features = datasets.Features({"x": datasets.Value("int32"), "label": label})
    data = datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 2]}, features=features)
    assert names_of_dataset(data) == ("contradiction", "entailment", "neutral")
    assert names_of_dataset(data.with_transform(lambda batch: batch)) == tuple(label.names)
    plain = datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 2]})
    assert names_of_dataset(plain) is None


def test_parts_and_unions_of_datasets_have_the_names_of_the_whole() -> None:
    from torch.utils.data import ConcatDataset, Subset

    part: Any = Subset(Pets(), [1, 2])  # type: ignore[arg-type]
    assert names_of_dataset(Subset(part, [0])) == NAMES
    assert names_of_dataset(ConcatDataset([part, Pets()])) == NAMES  # type: ignore[list-item]
    assert names_of_dataset(ConcatDataset([part, Pets("abc")])) is None  # type: ignore[list-item]
    assert names_of_dataset(SimpleNamespace(class_names=np.array(NAMES))) == NAMES
    assert names_of_dataset(SimpleNamespace(classes=[0, 1, 2])) is None
    assert names_of_dataset(X) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "A"], ["A", "a"]),
        (["C", "c "], ["c ", "C"]),
        (["-1", "1"], ["1", "-1"]),
        (["-1"], ["1"]),
    ],
)
def test_names_that_differ_in_little_are_no_reason_to_swap_classes(
    one: list[str], other: list[str]
) -> None:
    assert not same(one, other)
    assert same(one, one)


# ------------------------------------------------------------------ adopted


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", [fitted, pipeline, Hub])
def test_a_teachers_own_names_become_those_of_the_store(
    make: Any, suffix: str, tmp_path: Path
) -> None:
    model = make()
    store = generate(model, SAMPLES, tmp_path / f"a{suffix}")
    assert store.schema.class_names == NAMES
    paired = fostore.FirstOrderDataset(Pets(), store, check="length")
    assert paired.class_names == list(NAMES)
    again = generate(model, SAMPLES, tmp_path / f"a{suffix}")
    assert again.schema.class_names == NAMES
    named = generate(model, SAMPLES, tmp_path / f"b{suffix}", class_names=["A", "C", "D"])
    assert named.schema.class_names == ("A", "C", "D")
    assert generate(model, SAMPLES, tmp_path / f"b{suffix}").digest() == named.digest()


def test_names_that_are_not_as_many_as_the_outputs_are_not_adopted(tmp_path: Path) -> None:
    store = generate(Hub(("a", "b")), SAMPLES, tmp_path / "a.zarr")
    assert store.schema.class_names is None


def test_names_behind_a_wrapper_are_not_adopted(tmp_path: Path) -> None:
    assert generate(Wrapper(Hub()), SAMPLES, tmp_path / "a.zarr").schema.class_names is None


@pytest.mark.filterwarnings("ignore:the model or its code is not what made:UserWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_store_without_names_goes_on_under_a_model_that_has_some(
    suffix: str, tmp_path: Path
) -> None:
    model, path = Hub(), tmp_path / f"a{suffix}"
    named, model.config.id2label = model.config.id2label, {}
    generate(model, SAMPLES, path, rows=(0, 16))
    model.config.id2label = named
    store = generate(model, SAMPLES, path)
    assert store.is_sealed
    assert store.schema.class_names is None


def test_a_model_whose_classes_changed_their_order_does_not_go_on(tmp_path: Path) -> None:
    model = Hub()
    generate(model, SAMPLES, tmp_path / "a.zarr", rows=(0, 16))
    model.config.id2label = dict(enumerate(("cat", "ant", "dog")))
    with pytest.raises(
        IdentityError, match="class 0 is 'cat' for the model and 'ant' for the store"
    ):
        generate(model, SAMPLES, tmp_path / "a.zarr")


# ------------------------------------------------------------------ compared


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "make", [fitted, pipeline, Hub, lambda: Wrapper(Hub()), lambda: Teacher(fitted())]
)
def test_a_dataset_with_its_classes_in_another_order_is_refused_and_the_advice_helps(
    make: Any, stored: bool, tmp_path: Path
) -> None:
    model, dataset = make(), Pets(("dog", "ant", "cat"))
    path = tmp_path / "a.zarr" if stored else None
    with pytest.raises(IdentityError) as error:
        generate(model, dataset, path)
    assert "class 0 is 'ant' for the model and 'dog' for the dataset" in str(error.value)
    assert "lambda batch: model(batch)[:, [2, 0, 1]]" in str(error.value)
    assert not (tmp_path / "a.zarr").exists()
    call = model.predict_proba if hasattr(model, "predict_proba") else model
    module = fostore.torch if isinstance(model, torch.nn.Module) else fostore
    mode = "logits" if module is fostore.torch else "probs"
    advised = module.FirstOrderDataGenerator(  # type: ignore[attr-defined]
        lambda batch: call(batch)[:, [2, 0, 1]], output_mode=mode
    )
    options = {"store": path, "class_names": dataset.classes} if stored else {}
    found = advised.generate_distributions(dataset, progress=False, **options)
    plain = generate(model, SAMPLES)
    np.testing.assert_allclose(found[0], plain[0][[2, 0, 1]], rtol=1e-5)
    if stored:
        paired = fostore.FirstOrderDataset(dataset, found)
        assert paired.class_names == ["dog", "ant", "cat"]


def test_a_dataset_in_the_models_order_passes_whatever_the_case(tmp_path: Path) -> None:
    dataset = Pets(("Ant", "CAT", "dog "))
    store = generate(Hub(), dataset, tmp_path / "a.zarr")
    assert store.schema.class_names == NAMES
    assert "class names" in fostore.FirstOrderDataset(dataset, store).pairing.checked


def test_other_words_are_refused_unless_class_names_say_which_count(tmp_path: Path) -> None:
    dataset = Pets(("n01", "n02", "n03"))
    with pytest.raises(
        IdentityError, match="class 0 is 'ant' for the model and 'n01' for the data"
    ):
        generate(Hub(), dataset)
    store = generate(Hub(), dataset, tmp_path / "a.zarr", class_names=dataset.classes)
    assert store.schema.class_names == ("n01", "n02", "n03")
    with pytest.raises(
        IdentityError, match=r"class 2 is 'dog' for the model and None .*3 names and 2"
    ):
        generate(Hub(), Pets(("ant", "cat")))


@pytest.mark.parametrize("numbers", [[1, 2, 3], [-1, 0, 1], [0, 5, 10]])
def test_class_numbers_say_nothing_about_words(numbers: list[int], tmp_path: Path) -> None:
    model = LogisticRegression().fit(X, np.array(numbers)[Y])
    store = generate(model, Pets(), tmp_path / "a.zarr")
    assert store.schema.class_names is None
    assert len(fostore.FirstOrderDataset(Pets(), store)) == len(X)
    words = generate(model, Pets(), tmp_path / "b.zarr", class_names=NAMES)
    assert words.schema.class_names == NAMES
    alone = generate(model, SAMPLES, tmp_path / "c.zarr")
    assert alone.schema.class_names == tuple(map(str, numbers))


def test_one_word_of_several_names_a_class(tmp_path: Path) -> None:
    said = ("crane, bird", "tench, Tinca tinca", "crane, machine")
    dataset = Pets(("crane", "tench", "crane"))
    store = generate(Hub(said), dataset, tmp_path / "a.zarr")
    assert store.schema.class_names == said
    assert "class names" in fostore.FirstOrderDataset(dataset, store).pairing.checked
    for other in (("tench", "crane", "crane"), said[::-1]):
        with pytest.raises(IdentityError, match="class 0 is 'crane, bird' for the model"):
            generate(Hub(said), Pets(other))


def test_a_transform_may_reorder_so_names_before_it_are_not_adopted(tmp_path: Path) -> None:
    backwards = NAMES[::-1]

    def run(data: Any, model: Any, transform: Any, name: str, **options: Any) -> Any:
        made = fostore.torch.FirstOrderDataGenerator(
            model, output_mode="logits", output_transform=transform
        )
        return made.generate_distributions(data, False, store=tmp_path / name, **options)

    model = Hub()
    store = run(SAMPLES, model, lambda rows: rows[:, [2, 1, 0]], "a.zarr")
    assert store.schema.class_names is None
    half = run(Pets(NAMES[:2]), model, lambda rows: rows[:, :2], "b.zarr")
    assert half.schema.class_names is None
    with pytest.raises(IdentityError, match=r"in place of the output_transform\) as lambda"):
        run(Pets(backwards), model, lambda rows: rows[:, [2, 1, 0]], "c.zarr")
    advised = run(Pets(backwards), lambda batch: model(batch)[:, [2, 1, 0]], None, "c.zarr")
    assert advised.is_sealed


def test_names_behind_a_wrapper_with_another_number_of_classes_say_nothing() -> None:
    class Coarse(Wrapper):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.teacher(x)
            return torch.stack([rows[:, 0], rows[:, 1:].sum(1)], dim=1)

    assert len(generate(Coarse(Hub()), Pets(("insect", "pet")))) == len(X)


@pytest.mark.parametrize("whose", ["model", "dataset"])
def test_class_names_in_another_order_are_refused_and_the_advice_helps(
    whose: str, tmp_path: Path
) -> None:
    given, hub = ["dog", "cat", "ant"], Hub()
    model, dataset = (hub, SAMPLES) if whose == "model" else (torch.nn.Linear(6, 3), Pets())
    with pytest.raises(IdentityError, match=f"'ant' for the {whose} and 'dog' for class_names"):
        generate(model, dataset, tmp_path / "a.zarr", class_names=given)
    if whose == "model":
        module: Any = fostore.torch
        advised = module.FirstOrderDataGenerator(lambda batch: hub(batch), output_mode="logits")
        store = advised.generate_distributions(
            SAMPLES, progress=False, store=tmp_path / "a.zarr", class_names=given
        )
        assert store.schema.class_names == tuple(given)


def test_words_of_the_users_hide_no_conflict_of_model_and_dataset(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="'ant' for the model and 'dog' for the dataset"):
        generate(Hub(), Pets(NAMES[::-1]), tmp_path / "a.zarr", class_names=["A", "B", "C"])


@pytest.mark.filterwarnings("ignore:members 0 and 1 gave the same:UserWarning")
@pytest.mark.parametrize("make", [fitted, Hub])
def test_members_of_an_ensemble_that_disagree_are_refused(make: Any, tmp_path: Path) -> None:
    other = make(("dog", "cat", "ant")) if make is Hub else LogisticRegression().fit(X, Y)
    if make is fitted:
        other.classes_ = np.array(["dog", "cat", "ant"])
    with pytest.raises(IdentityError, match="'ant' for member 0 and 'dog' for member 1") as error:
        generate([make(), other], SAMPLES)
    assert "[:, [2, 1, 0]] for member 1" in str(error.value)
    store = generate([make(), make()], SAMPLES, tmp_path / "a.zarr")
    assert store.schema.class_names == NAMES


def test_members_without_names_adopt_none(tmp_path: Path) -> None:
    store = generate([Hub(), torch.nn.Linear(6, 3)], SAMPLES, tmp_path / "a.zarr")
    assert store.schema.class_names is None
    with pytest.raises(FostoreError, match="'ant' for the model and 'dog'"):
        generate([Hub(), torch.nn.Linear(6, 3)], Pets(NAMES[::-1]))


def test_jax_models_with_names_are_compared_too() -> None:
    import fostore.jax

    class Flax:
        config = SimpleNamespace(id2label=dict(enumerate(NAMES)))

        def __call__(self, x: Any) -> Any:
            return x[:, :3]

    made = fostore.jax.FirstOrderDataGenerator(Flax(), output_mode="logits")
    with pytest.raises(IdentityError, match="class 0 is 'ant' for the model and 'dog'"):
        made.generate_distributions(Pets(NAMES[::-1]), progress=False)
    assert len(made.generate_distributions(Pets(), progress=False)) == len(X)
