"""Rows of tokens: generated from sequences on every side, in both formats, whatever stops a run."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.errors import ArgumentError, GenerationError, IdentityError, RowError
from fostore.generate.tokens import Sequences
from sides import SIDES, Side
from test_publishing_targets import bucket, moto

__all__ = ["bucket", "moto"]  # fixtures of another file
VOCABULARY = 40
LENGTHS = (0, 5, 1, 7, 3, 0, 9, 2, 4, 0)
"""Of sequences: the first, the last and one between are empty."""


def sequences(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


class Causal:
    """Logits that are a function of the tokens so far; counts the sequences of its batches.

    A sequence alone is no batch: one is looked at in each generation, to see that padding changes no row.
    """

    def __init__(self, seed: int = 0) -> None:
        table = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY))
        self.table = table.astype(np.float32)
        self.batches: list[int] = []
        self.fail_at: int | None = None
        self.error: BaseException = ValueError("no luck")

    def __call__(self, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if self.fail_at is not None and len(self.batches) == self.fail_at:
            raise self.error
        if len(ids) > 1:
            self.batches.append(len(ids))
        weights = 1.0 if mask is None else mask[..., None].astype(np.float32)
        return np.cumsum(self.table[ids] * weights, axis=1, dtype=np.float32)

    def of(self, ids: list[int]) -> np.ndarray:
        """The oracle: one sequence alone."""
        return np.cumsum(self.table[np.array(ids, int)], axis=0, dtype=np.float32)


def keyword_model(side: Side, causal: Causal) -> Any:
    """The same as Hugging Face's models are called, and give their output."""

    def model(input_ids: Any, attention_mask: Any = None) -> Any:
        mask = None if attention_mask is None else np.asarray(attention_mask)
        return {"logits": side.array(causal(np.asarray(input_ids), mask))}

    return model


def generate(side: Side, model: Any, data: Any, path: Path, **options: Any) -> fostore.Store:
    generator = side.generator(model, batch_size=3)
    options = {"rows": "tokens", "store_as": "logits", **options}
    store: fostore.Store = generator.generate_distributions(data, False, store=path, **options)
    return store


def assert_sequences(store: fostore.Store, causal: Causal, data: list[list[int]]) -> None:
    """Every row of every sequence is what the model gives for that sequence alone."""
    assert store.is_sealed
    assert store.num_sequences == len(data)
    assert np.diff(store.offsets).tolist() == [len(ids) for ids in data]
    assert store.column("token").tolist() == [token for ids in data for token in ids]
    rows = store.take(range(len(store)), as_kind="logits")
    expected = np.concatenate([causal.of(ids) for ids in data])
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)
    assert store.verify() == []


def padded_left(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A collate_fn as people have one; the padding stands before the tokens."""
    longest = max(len(one["input_ids"]) for one in samples)
    batch: dict[str, Any] = {}
    for key, filling in (("input_ids", 1), ("attention_mask", 0), ("labels", -100)):
        if key in samples[0]:
            rows = [[filling] * (longest - len(one[key])) + list(one[key]) for one in samples]
            batch[key] = np.array(rows, np.int64).reshape(len(samples), longest)
    return batch


def dicts(data: list[list[int]]) -> list[dict[str, Any]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in data]


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("kind", ["lists", "arrays", "dicts", "left"])
def test_every_row_is_that_of_the_model_on_the_sequence_alone(
    side: Side, path: Path, kind: str
) -> None:
    data, causal = sequences(), Causal()
    model: Any = side.model(causal)
    given_data: Any = data
    options: dict[str, Any] = {}
    if kind == "arrays":
        given_data = [np.array(ids, np.int32) for ids in [*data, *data]]
        data = [*data, *data]
    elif kind in ("dicts", "left"):
        given_data, model = dicts(data), keyword_model(side, causal)
    if kind == "left":
        options["collate_fn"] = padded_left
    store = generate(side, model, given_data, path, **options)
    assert_sequences(store, causal, data)
    assert store.meta["batch_size"] == 3


def test_rows_go_to_an_object_store_and_on_there(bucket: Any, tmp_path: Path) -> None:
    side, data, causal, url = SIDES["numpy"], sequences() * 200, Causal(), "s3://data/tokens.zarr"
    options = {"unit_rows": 2048, "model_fingerprint": "v1"}
    whole = generate(side, side.model(causal), data, tmp_path / "a.zarr", **options)
    batches = len(causal.batches)
    causal.batches.clear()
    causal.fail_at = batches // 2
    with pytest.raises(GenerationError, match="no luck"):
        generate(side, side.model(causal), data, url, **options)
    assert 0 < len(fostore.open(url)) < len(whole)
    causal.batches.clear()
    causal.fail_at = None
    assert generate(side, side.model(causal), data, url, **options).digest() == whole.digest()
    assert len(causal.batches) < 0.8 * batches


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    before=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_rows_of_a_batch_are_its_tokens_in_order(
    lengths: list[int], before: bool, seed: int
) -> None:
    data = sequences(tuple(lengths), seed)
    longest = max(lengths)
    ids, mask = np.full((2, len(data), longest), -1)
    for row, one in enumerate(data):
        places = slice(longest - len(one), longest) if before else slice(0, len(one))
        ids[row, places], mask[row] = one, 0
        mask[row, places] = 1
    tokens = Sequences("tokens").tokens_of({"input_ids": ids, "attention_mask": mask}, None)
    assert tokens.tokens.tolist() == [token for one in data for token in one]
    assert tokens.positions.tolist() == [at for one in data for at in range(len(one))]
    assert tokens.sequences.tolist() == [row for row, one in enumerate(data) for _ in one]
    assert tokens.take(ids[..., None])[:, 0].tolist() == tokens.tokens.tolist()
    evened, step = tokens.evened(), max(len(data) * longest // 8, 1)
    assert evened.of(0, len(data)).tokens[: len(tokens)].tolist() == tokens.tokens.tolist()
    assert len(evened) % step == 0
    assert len(evened) < len(tokens) + step
    for start in range(len(data)):
        some = tokens.of(start, len(data))
        assert some.tokens.tolist() == [token for one in data[start:] for token in one]
        assert some.take(ids[start:, :, None])[:, 0].tolist() == some.tokens.tolist()


def test_rows_of_labelled_tokens_are_those_whose_next_token_has_a_label(
    side: Side, path: Path
) -> None:
    causal, data = Causal(), sequences((6, 1, 4, 0))
    labels = [[-100, -100, 7, 8, -100, 9], [5], [-100] * 4, []]
    samples = [{**one, "labels": label} for one, label in zip(dicts(data), labels, strict=True)]
    store = generate(side, keyword_model(side, causal), samples, path, rows="labelled")
    assert store.offsets.tolist() == [0, 3, 3, 3, 3]
    assert store.column("position").tolist() == [1, 2, 4]
    assert store.column("token").tolist() == [data[0][at] for at in (1, 2, 4)]
    logits = store.take(range(3), as_kind="logits")
    np.testing.assert_allclose(logits, causal.of(data[0])[[1, 2, 4]], rtol=1e-4, atol=1e-4)
    left = generate(
        side,
        keyword_model(side, causal),
        samples,
        path.with_stem("left"),
        rows="labelled",
        collate_fn=padded_left,
    )
    assert left.column("position").tolist() == [1, 2, 4]


def test_a_list_of_models_fills_the_member_axis(side: Side, path: Path) -> None:
    data, causals = sequences(), [Causal(0), Causal(1)]
    store = generate(side, [side.model(one) for one in causals], data, path)
    assert store.schema.row_shape == (2, VOCABULARY)
    rows = store.take(range(len(store)), as_kind="logits")
    for member, causal in enumerate(causals):
        expected = np.concatenate([causal.of(ids) for ids in data])
        np.testing.assert_allclose(rows[:, member], expected, rtol=1e-4, atol=1e-4)


def test_a_stream_has_the_rows_of_the_list(side: Side, tmp_path: Path) -> None:
    data, model = sequences(), side.model(Causal())
    whole = generate(side, model, data, tmp_path / "a.zarr")
    store = generate(side, model, (ids for ids in data), tmp_path / "b.zarr")
    assert store.digest() == whole.digest()
    assert store.num_sequences == len(data)
    with pytest.raises(ArgumentError, match="number of tokens, and the stream has no length"):
        generate(side, model, (ids for ids in data), tmp_path / "c.h5")


def test_what_a_model_gives_is_decided_on_its_rows(side: Side, tmp_path: Path) -> None:
    data, causal = sequences(), Causal()

    def probs(ids: np.ndarray) -> np.ndarray:
        e = np.exp(causal(ids))
        return e / e.sum(-1, keepdims=True)

    store = generate(side, side.model(probs), data, tmp_path / "a.zarr", store_as="auto")
    assert store.meta["output_mode"] == "probs"
    assert store.schema.kind == "probs"
    causal.table[:] = np.nan
    with pytest.raises(RowError, match="sample 1 is not finite"):
        generate(side, side.model(causal), data, tmp_path / "b.zarr")


# ------------------------------------------------------------------ going on


def test_a_run_that_failed_goes_on_with_its_batch_and_ends_with_the_same_digest(
    side: Side, path: Path
) -> None:
    data = sequences()
    whole = generate(side, side.model(Causal()), data, path.with_stem("whole"))
    for fail_at in (1, 2):
        causal, store_path = Causal(), path.with_stem(f"failed{fail_at}")
        causal.fail_at = fail_at
        with pytest.raises(GenerationError, match=f"samples {3 * fail_at} to "):
            generate(side, side.model(causal), data, store_path, model_fingerprint="v1")
        causal = Causal()
        store = generate(side, side.model(causal), data, store_path, model_fingerprint="v1")
        # the first batch to see that it is the same model, then the batch of the last row
        assert causal.batches == [3] * (5 - fail_at)
        assert store.digest() == whole.digest()
        assert_sequences(store, causal, data)


@pytest.mark.parametrize("streams", [False, True])
def test_a_store_that_stops_anywhere_goes_on_at_its_batch(
    streams: bool, side: Side, tmp_path: Path
) -> None:
    """Commits fall within a batch, and within a sequence: what is there is put together row by row."""
    data = sequences()
    whole = generate(side, side.model(Causal()), data, tmp_path / "whole.zarr")
    columns = [whole.column(column.name) for column in whole.schema.columns]
    header = whole.header
    for cut in range(1, len(whole)):
        path = tmp_path / f"cut{cut}.zarr"
        writer = fostore.create(
            path,
            rows="tokens",
            num_classes=VOCABULARY,
            kind="logits",
            num_sequences=None if streams else len(data),
            identity=header.identity,
            meta=header.meta,
        )
        writer.write_columns(0, [np.ascontiguousarray(column[:cut]) for column in columns])
        writer.close()
        given_data: Any = iter(data) if streams else data
        if streams:
            identity = {
                **header.identity,
                "dataset": {**header.identity["dataset"], "length": None},
            }
            with fostore.create(path, exists="resume") as writer:
                writer.set_identity(identity)
                again = generate_closed(writer, side, given_data, path)
        else:
            again = generate(side, side.model(Causal()), given_data, path)
        assert again.digest() == whole.digest()


def generate_closed(writer: Any, side: Side, data: Any, path: Path) -> fostore.Store:
    writer.close()
    return generate(side, side.model(Causal()), data, path)


def test_batches_stay_those_that_a_store_was_begun_with(side: Side, path: Path) -> None:
    data, causal = sequences(), Causal()
    causal.fail_at = 2
    with pytest.raises(GenerationError):
        generate(side, side.model(causal), data, path, model_fingerprint="v1")
    causal = Causal()
    side.generator(side.model(causal), batch_size=5).generate_distributions(
        data, False, store=path, rows="tokens", store_as="logits", model_fingerprint="v1"
    )
    assert causal.batches == [3, 3, 3]


def test_a_sequence_that_differs_is_named_with_its_token(side: Side, path: Path) -> None:
    data, causal = sequences(), Causal()
    causal.fail_at = 2
    with pytest.raises(GenerationError):
        generate(side, side.model(causal), data, path, model_fingerprint="v1")
    other = [list(ids) for ids in data]
    other[8] = other[8][:]
    other[1][2] = (data[1][2] + 1) % VOCABULARY
    said = f"sample 1 of the dataset has the token {other[1][2]} at position 2, the store has {data[1][2]}"
    with pytest.raises(IdentityError, match=said):
        generate(side, side.model(Causal()), other, path, model_fingerprint="v1")
    shorter = [data[0], data[1][:-1], *data[2:]]
    with pytest.raises(IdentityError, match="sample 2 of the dataset has the sequence 2 at"):
        generate(side, side.model(Causal()), shorter, path, model_fingerprint="v1")
    longer = [*data, [1, 2]]
    with pytest.raises(IdentityError, match="the length of the dataset is 11, the store has 10"):
        generate(side, side.model(Causal()), longer, path, model_fingerprint="v1")


def test_a_dataset_that_has_grown_goes_on_where_that_is_accepted(side: Side, path: Path) -> None:
    data, model = sequences(), side.model(Causal())
    generate(side, model, data, path, model_fingerprint="v1")
    longer = [*data, [1, 2, 3], [4]]
    with pytest.warns(UserWarning, match="the length of the dataset is 12, the store has 10"):
        store = generate(side, model, longer, path, model_fingerprint="v1", accept_differences=True)
    assert_sequences(store, Causal(), longer)


def test_another_model_is_refused_by_its_rows(side: Side, path: Path) -> None:
    data = sequences()
    generate(side, side.model(Causal()), data, path, model_fingerprint="v1")
    with pytest.raises(IdentityError, match="another distribution for sample 1 than the store"):
        generate(side, side.model(Causal(1)), data, path, model_fingerprint="v1")


def test_a_finished_store_returns_after_one_batch(side: Side, path: Path) -> None:
    data, causal = sequences(), Causal()
    whole = generate(side, side.model(causal), data, path, model_fingerprint="v1")
    causal.batches.clear()
    again = generate(side, side.model(causal), data, path, model_fingerprint="v1")
    assert causal.batches == [3]
    assert again.digest() == whole.digest()


def test_out_of_memory_halves_a_batch_of_sequences(side: Side, path: Path) -> None:
    data, causal = sequences(), Causal()

    def small(ids: np.ndarray) -> np.ndarray:
        if len(ids) > 1:
            raise MemoryError
        return causal(ids)

    with pytest.warns(UserWarning, match="out of memory with 3 samples at once"):
        store = generate(side, side.model(small), data, path)
    assert_sequences(store, causal, data)


TARGET = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import fostore.writing.pipeline as pipeline
from sides import SIDES
from test_token_generation import Causal, generate, sequences
from pathlib import Path
kills = int(sys.argv[2])
begin, after = pipeline.Pipeline._commit_now, pipeline.Pipeline._commit_now
seen = 0
def commit(self, *given):
    global seen
    begin(self, *given)
    seen += 1
    if seen == kills:
        os.kill(os.getpid(), signal.SIGKILL)
pipeline.Pipeline._commit_now = commit
side = SIDES["numpy"]
generate(side, side.model(Causal()), sequences(), Path(sys.argv[1]), model_fingerprint="v1", commit_seconds=0)
"""


def test_a_kill_at_any_commit_ends_with_the_same_digest(path: Path) -> None:
    side, data = SIDES["numpy"], sequences()
    whole = generate(
        side, side.model(Causal()), data, path.with_stem("whole"), model_fingerprint="v1"
    )
    code = TARGET.format(tests=str(Path(__file__).parent))
    outcomes = []
    for kills in (1, 1, 1, 2, 9):
        run = subprocess.run(
            [sys.executable, "-c", code, str(path), str(kills)],
            capture_output=True,
            timeout=100,
            text=True,
        )
        outcomes.append(run.returncode)
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
    assert -signal.SIGKILL in outcomes
    assert outcomes[-1] == 0
    assert fostore.open(path).digest() == whole.digest()
    assert_sequences(fostore.open(path), Causal(), data)


# ------------------------------------------------------------------ texts


class Letters:
    """A tokenizer as Hugging Face's are: called with a text, it tells its name and its vocabulary."""

    def __init__(self, name: str = "letters", first: str = "a") -> None:
        self.name_or_path = name
        self.pad_token_id = 3
        self._first = first

    def get_vocab(self) -> dict[str, int]:
        return {chr(ord(self._first) + number): number for number in range(VOCABULARY)}

    def __call__(self, text: str, max_length: int | None = None) -> dict[str, list[int]]:
        ids = [(ord(letter) - ord(self._first)) % VOCABULARY for letter in text][:max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


@pytest.mark.parametrize("kind", ["texts", "dicts", "getter"])
def test_texts_are_tokenized(side: Side, path: Path, kind: str) -> None:
    texts, causal, letters = ["hello", "a", "", "words"], Causal(), Letters()
    data: Any = texts
    generator = side.generator(keyword_model(side, causal), batch_size=3)
    if kind == "dicts":
        data = [{"text": text, "source": 1} for text in texts]
    elif kind == "getter":
        data = [(0, text) for text in texts]
        generator.input_getter = lambda pair: pair[1]
    store = generator.generate_distributions(
        data, False, store=path, rows="tokens", store_as="logits", tokenizer=letters
    )
    assert_sequences(store, causal, [letters(text)["input_ids"] for text in texts])
    dataset = store.header.identity["dataset"]
    assert dataset["tokenizer"]["name"] == "letters"
    assert len(dataset["vocabulary"]) == 32
    with pytest.raises(IdentityError, match="the tokenizer is 'others', the store has 'letters'"):
        generator.generate_distributions(
            data, False, store=path, rows="tokens", tokenizer=Letters("others")
        )
    with pytest.raises(IdentityError, match="the hash of the tokenizer's vocabulary is"):
        generator.generate_distributions(
            data, False, store=path, rows="tokens", tokenizer=Letters(first="b")
        )


def test_what_a_tokenizer_is_called_with_counts(path: Path) -> None:
    side, causal = SIDES["numpy"], Causal()
    short = functools.partial(Letters(), max_length=3)
    texts = ["hello", "a"]
    store = generate(side, keyword_model(side, causal), texts, path, tokenizer=short)
    assert np.diff(store.offsets).tolist() == [3, 1]
    longer = functools.partial(Letters(), max_length=4)
    with pytest.raises(IdentityError, match="'letters' has other arguments than the store's"):
        generate(side, keyword_model(side, causal), texts, path, tokenizer=longer)
    with pytest.raises(ArgumentError, match=r"sample 0 .* is a text; give the tokenizer"):
        generate(side, keyword_model(side, causal), texts, path.with_stem("none"))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": "words"}, "rows is 'words', expected"),
        ({"store": None}, "needs a store"),
        ({"ids": list(range(10))}, "ids= is of rows a sample"),
        ({"keep_labels": True}, "keep_labels= is of rows a sample"),
        ({"num_draws": 2}, "num_draws= is of rows a sample"),
        ({"rows": None, "tokenizer": Letters()}, "say rows='tokens'"),
        ({"rows": "labelled"}, "needs 'labels'"),
    ],
)
def test_what_does_not_go_with_rows_of_tokens_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    side, causal = SIDES["numpy"], Causal()
    asked = {"rows": "tokens", "store": tmp_path / "a.zarr", **options}
    generator = side.generator(keyword_model(side, causal), batch_size=3)
    with pytest.raises(ArgumentError, match=said):
        generator.generate_distributions(dicts(sequences()), False, **asked)
    assert causal.batches == []
    with pytest.raises(ArgumentError, match="give a list of models"):
        side.generator(side.model(causal), members=True).generate_distributions(
            sequences(), False, rows="tokens", store=tmp_path / "a.zarr"
        )


def test_three_axes_of_a_language_model_are_no_members(side: Side, tmp_path: Path) -> None:
    samples = [
        {key: np.array(item) for key, item in one.items()} for one in dicts(sequences((4, 4, 4)))
    ]
    model = keyword_model(side, Causal())
    with pytest.raises(
        ArgumentError, match="of a language model rows='tokens' makes a row a token"
    ):
        side.generator(model).generate_distributions(samples, False, store=tmp_path / "a.zarr")
    with pytest.raises(ArgumentError, match="axis 1 counts the 4 tokens"):
        side.generator(model, members=True).generate_distributions(
            samples, False, store=tmp_path / "a.zarr"
        )


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 0]]}, "expected that of input_ids"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "in place 0 .* has a hole"),
        ({"input_ids": [[1, 2, 3]]}, "does not say what is padding"),
        ({"input_ids": [[1, 2, 3]], "lengths": [4]}, r"lengths are \[4\]"),
        ({"input_ids": [[1.5, 2]]}, "float64 of shape"),
        ({"pixels": [[1, 2]]}, "with the keys"),
        ({"input_ids": [[1, -2]], "attention_mask": [[1, 1]]}, "a token is -2"),
    ],
)
def test_a_batch_that_is_none_of_sequences_is_refused(batch: Any, said: str) -> None:
    arrays = {key: np.array(item) for key, item in batch.items()}
    with pytest.raises(ArgumentError, match=said):
        Sequences("tokens").tokens_of(arrays, None)


def test_lengths_stand_for_a_mask() -> None:
    batch = {"input_ids": np.array([[1, 2, 0], [3, 0, 0]]), "lengths": np.array([2, 1])}
    handed = Sequences("tokens").handed(batch)
    assert handed.tokens.tokens.tolist() == [1, 2, 3]
    assert list(handed.inputs) == ["input_ids"]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda logits: logits[:, :-1], r"expected \(3, 7, classes\)"),
        (lambda logits: logits.swapaxes(0, 1), r"use output_transform=.*swapaxes\(0, 1\)"),
        (lambda logits: logits[:, -1], "leave rows= out"),
    ],
)
def test_outputs_that_are_not_one_distribution_a_token_are_refused(
    side: Side, output: Any, said: str, tmp_path: Path
) -> None:
    causal = Causal()
    data = sequences((4, 7, 5))
    with pytest.raises(ArgumentError, match=said):
        generate(side, side.model(lambda ids: output(causal(ids))), data, tmp_path / "a.zarr")


def test_an_axis_is_known_where_sequences_are_as_many_as_tokens(side: Side, path: Path) -> None:
    data, causal = sequences((3, 2, 3)), Causal()
    with pytest.raises(ArgumentError, match=r"swapaxes\(0, 1\)"):
        generate(side, side.model(lambda ids: causal(ids).swapaxes(0, 1)), data, path)
    assert not path.exists()
    assert_sequences(generate(side, side.model(causal), data, path), causal, data)


def test_padding_that_changes_rows_is_refused(side: Side, path: Path) -> None:
    data = sequences((3, 6, 4))
    places = np.random.default_rng(2).normal(size=(9, VOCABULARY)).astype(np.float32)

    def counts_padding(input_ids: Any, attention_mask: Any) -> Any:
        logits = Causal()(np.asarray(input_ids), np.asarray(attention_mask))
        return {"logits": side.array(logits + places[: logits.shape[1]])}

    with pytest.raises(ArgumentError, match="counts positions with the padding before them"):
        generate(side, counts_padding, dicts(data), path, collate_fn=padded_left)
    assert not path.exists()
    generate(side, counts_padding, dicts(data), path)

    def sees_all(ids: np.ndarray) -> np.ndarray:
        logits = Causal()(ids)
        return np.broadcast_to(logits[:, -1:], logits.shape).copy()

    with pytest.raises(ArgumentError, match="sees the padding behind"):
        generate(side, side.model(sees_all), data, path.with_stem("behind"))


def test_a_collate_fn_that_sorts_sequences_is_refused(side: Side, path: Path) -> None:
    def by_length(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return padded_left(sorted(samples, key=lambda one: -len(one["input_ids"])))

    with pytest.raises(ArgumentError, match="not in its place"):
        generate(
            side,
            keyword_model(side, Causal()),
            dicts(sequences()),
            path,
            collate_fn=by_length,
        )
    assert not path.exists()


def test_sequences_that_read_differently_each_time_are_told_of(side: Side, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    class Cropped:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> list[int]:
            if index >= 4:
                raise IndexError(index)
            return rng.integers(0, VOCABULARY, 6).tolist()

    with pytest.warns(UserWarning, match="reads differently each time"):
        store = generate(side, side.model(Causal()), Cropped(), tmp_path / "a.zarr")
    assert store.header.identity["dataset"]["content"] == "unstable"


def test_nothing_warns(side: Side, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(side, side.model(Causal()), sequences(), path)
