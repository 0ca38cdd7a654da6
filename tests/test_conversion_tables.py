"""What stands beside rows and over them: keys are taken or named, classes have their order, every cure works."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
import zarr
from typer.testing import CliRunner

import fostore
from fostore.cli import app
from fostore.conversion import Receipt
from fostore.errors import ArgumentError, FormatError, FostoreError

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), 12)
LOGITS = RANDOM.normal(size=(12, 3)) * 3
KEYS = np.arange(12)[::-1].copy() + 40
NAMES = [f"img-{i}.jpg" for i in range(12)]
pytestmark = pytest.mark.usefixtures("fast_disk")


def brought(source: Any, tmp_path: Path, **options: Any) -> tuple[fostore.Store, Receipt]:
    """A file as a store."""
    target = tmp_path / f"out{len(list(tmp_path.glob('out*')))}.zarr"
    receipt = fostore.convert(source, target, progress=False, **options)
    return fostore.open(target), receipt


def assert_rows(store: fostore.Store, expected: Any, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(store.take(range(len(store))), expected, atol=atol)


def ids_of(store: fostore.Store) -> list[Any] | None:
    return None if store.ids is None else store.ids.tolist()


# ------------------------------------------------------------------ keys beside the rows


def _h5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            is_text = isinstance(array, np.ndarray) and array.dtype.kind == "U"
            file[f"val/{name}"] = array.astype(h5py.string_dtype()) if is_text else array


def _zarr(path: Path, arrays: dict[str, Any]) -> None:
    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group.create_array(f"val/{name}", data=array)


def _tensors(path: Path, arrays: dict[str, Any]) -> None:
    torch.save(
        {k: torch.tensor(v) if v.dtype.kind != "U" else v.tolist() for k, v in arrays.items()}, path
    )


def _frame(arrays: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({k: list(v) if v.ndim > 1 else v for k, v in arrays.items()})


def _lines(path: Path, arrays: dict[str, Any]) -> None:
    rows = [{k: v[i].tolist() for k, v in arrays.items()} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "npz": lambda path, arrays: np.savez(path, **arrays),
    "safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    "pt": _tensors,
    "h5": _h5,
    "zarr": _zarr,
    "parquet": lambda path, arrays: _frame(arrays).to_parquet(path),
    "feather": lambda path, arrays: _frame(arrays).to_feather(path),
    "jsonl": _lines,
}
TEXTS = [suffix for suffix in WRITERS if suffix not in ("safetensors", "zarr")]


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("suffix", WRITERS)
def test_keys_beside_the_rows_become_their_ids_and_the_rest_is_named(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    WRITERS[suffix](path, {"probs": P, "ids": KEYS, "extra": np.arange(12)})
    store, receipt = brought(path, tmp_path)
    assert ids_of(store) == KEYS.tolist()
    assert_rows(store, P)
    assert any("the ids are 'ids'" in note for note in receipt.notes)
    assert any("'extra'" in note for note in receipt.notes)
    store, receipt = brought(path, tmp_path, drop=["ids"])
    assert (store.ids, any("'ids'" in note for note in receipt.notes)) == (None, False)
    store, _ = brought(path, tmp_path, id_column="extra")
    assert ids_of(store) == list(range(12))
    store, receipt = brought(path, tmp_path, ids=NAMES)
    assert ids_of(store) == NAMES
    assert any("'ids'" in note for note in receipt.notes)
    with pytest.raises(ArgumentError, match="id_column names 'nope'"):
        brought(path, tmp_path, id_column="nope")


@pytest.mark.parametrize("suffix", TEXTS)
def test_keys_may_be_texts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    WRITERS[suffix](path, {"probs": P, "filename": np.array(NAMES)})
    assert ids_of(brought(path, tmp_path)[0]) == NAMES


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("keys", [np.r_[KEYS[:-1], KEYS[:1]], KEYS + 0.5], ids=["twice", "floats"])
def test_what_cannot_be_keys_is_named_with_the_reason_and_cannot_be_forced(
    suffix: str, keys: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{suffix}"
    WRITERS[suffix](path, {"probs": P, "ids": keys})
    store, receipt = brought(path, tmp_path)
    why = "rows 0 and 11 both have 51" if keys.dtype.kind == "i" else "expected"
    assert store.ids is None
    assert any("'ids'" in note and why in note for note in receipt.notes)
    with pytest.raises(ArgumentError, match="cannot be the ids"):
        brought(path, tmp_path, id_column="ids")


@pytest.mark.parametrize("suffix", ["parquet", "feather", "csv"])
def test_the_index_of_a_frame_is_a_key_where_it_does_not_count_the_rows(
    suffix: str, tmp_path: Path
) -> None:
    frame = pd.DataFrame(P, columns=["cat", "dog", "fish"])
    shuffled = frame.sample(frac=1, random_state=0)
    frames = {
        "counted": (frame, None),
        "shuffled": (shuffled, shuffled.index.tolist()),
        "from 100": (frame.set_index(pd.RangeIndex(100, 112)), list(range(100, 112))),
        "named": (frame.set_index(pd.Index(NAMES, name="filename")), NAMES),
        "from 1": (frame.set_index(pd.RangeIndex(1, 13)), None),
        "twice": (frame.set_index(pd.Index([0] * 12)), None),
    }
    for name, (one, ids) in frames.items():
        if suffix == "feather":
            one = one if name == "counted" else one.reset_index(names=one.index.name or "index")
        path = tmp_path / f"{name}.{suffix}"
        getattr(one, f"to_{suffix}")(path)
        if (suffix, name) == ("feather", "twice"):
            continue  # it has no index, and a column that is no class: below
        store, receipt = brought(path, tmp_path)
        assert ids_of(store) == ids, name
        assert_rows(store, one[["cat", "dog", "fish"]])
        assert bool(receipt.notes) == (name != "counted")


def test_shards_keep_their_keys_where_they_are_those_of_all(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"a{i}.npz", probs=P, ids=KEYS + 100 * i)
        np.savez(tmp_path / f"b{i}.npz", probs=P, ids=KEYS)
    store, _ = brought(f"{tmp_path}/a*.npz", tmp_path)
    assert ids_of(store) == [*KEYS, *KEYS + 100, *KEYS + 200]
    store, receipt = brought(f"{tmp_path}/b*.npz", tmp_path)
    assert store.ids is None
    assert any("some come twice" in note for note in receipt.notes)
    assert not any("the ids are" in note for note in receipt.notes)
    np.savez(tmp_path / "a3.npz", probs=P)
    store, receipt = brought(f"{tmp_path}/a*.npz", tmp_path)
    assert (store.ids, len(store)) == (None, 48)
    assert any("not all of them have ids" in note for note in receipt.notes)


# ------------------------------------------------------------------ class columns

FRAMES = ["csv", "tsv", "parquet", "feather"]


def save(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    else:
        getattr(frame, f"to_{path.suffix[1:]}")(path)
    return path


@pytest.mark.parametrize("suffix", FRAMES)
@pytest.mark.parametrize("pattern", ["{}", "class_{}", "prediction_{}", "p{}", "logit_{}_mean"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_in_the_names_are_the_order_of_the_classes(
    suffix: str, pattern: str, first: int, tmp_path: Path
) -> None:
    rows = RANDOM.dirichlet(np.ones(12), 9)
    frame = pd.DataFrame(rows, columns=[pattern.format(i + first) for i in range(12)])
    as_text = frame[sorted(frame.columns)]
    path = save(as_text, tmp_path / f"x.{suffix}")
    store, receipt = brought(path, tmp_path)
    assert_rows(store, rows)
    assert store.schema.class_names == tuple(frame.columns)
    assert any("order of the classes" in note for note in receipt.notes)
    store, _ = brought(path, tmp_path, class_names=[f"c{i}" for i in range(12)])
    assert_rows(store, rows)
    kept = tuple(as_text.columns)  # whoever names them as they stand means their order
    assert brought(path, tmp_path, class_names=kept)[0].schema.class_names == kept
    store, receipt = brought(save(frame, tmp_path / f"y.{suffix}"), tmp_path)
    assert_rows(store, rows)
    assert receipt.notes == ()


@pytest.mark.parametrize("suffix", FRAMES)
def test_names_without_numbers_keep_the_order_of_the_file_and_are_stripped(
    suffix: str, tmp_path: Path
) -> None:
    frame = pd.DataFrame(P, columns=["zebra", " cat", "dog "])
    frame.insert(0, "# id", KEYS)
    store, receipt = brought(save(frame, tmp_path / f"x.{suffix}"), tmp_path)
    assert store.schema.class_names == ("zebra", "cat", "dog")
    assert ids_of(store) == KEYS.tolist()
    assert any("stripped" in note for note in receipt.notes)


OTHERS = {
    "truth": np.arange(12) % 3,
    "row_id": np.arange(12),
    "predictions": LOGITS.argmax(1),
    "fold": np.zeros(12, int),
    "serial": np.arange(100, 112),
    "binary": np.arange(12) % 2,
    "split": ["train"] * 12,
}


@pytest.mark.parametrize("suffix", FRAMES)
@pytest.mark.parametrize("kind", ["logits", "probs", "counts"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_column_that_is_no_class_is_refused_and_each_cure_gives_the_rows(
    suffix: str, kind: str, name: str, tmp_path: Path
) -> None:
    if kind == "counts" and name in ("serial", "binary"):
        return  # whole numbers like the others: votes
    rows: Any = {"logits": LOGITS, "probs": P, "counts": RANDOM.integers(1, 9, (12, 3))}[kind]
    frame = pd.DataFrame(rows, columns=["cat", "dog", "fish"])
    frame[name] = OTHERS[name]
    path = save(frame, tmp_path / f"x.{suffix}")
    if (kind, name) == ("probs", "binary"):  # whose sums are not 1
        with pytest.raises(FostoreError, match="no probabilities"):
            brought(path, tmp_path)
    else:
        with pytest.raises(ArgumentError, match=rf"'{name}' .*drop=\['{name}'\].*columns=\['cat'"):
            brought(path, tmp_path, source_kind=None if kind == "probs" else kind)
    for cure in ({"drop": [name]}, {"columns": ["cat", "dog", "fish"]}):
        store, _ = brought(path, tmp_path, source_kind=kind, **cure)
        expected = rows / rows.sum(1, keepdims=True) if kind == "counts" else rows
        found = store.take(range(12), as_kind="logits" if kind == "logits" else "probs")
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert store.schema.class_names == ("cat", "dog", "fish")


def test_all_columns_that_are_no_classes_are_named_at_once(tmp_path: Path) -> None:
    frame = pd.DataFrame(LOGITS, columns=["cat", "dog", "fish"])
    frame["predictions"], frame["truth"] = LOGITS.argmax(1), np.arange(12) % 3
    path = save(frame, tmp_path / "x.csv")
    with pytest.raises(ArgumentError, match=r"drop=\['predictions', 'truth'\]"):
        brought(path, tmp_path, source_kind="logits")
    runner = CliRunner()
    asked = ["convert", str(path), f"{tmp_path}/x.zarr", "--source-kind", "logits"]
    assert runner.invoke(app, asked).exit_code == 2
    done = runner.invoke(app, [*asked, "--drop", "predictions,truth"])
    assert done.exit_code == 0
    assert "(sample 12, class 3)" in done.stdout


@pytest.mark.parametrize("suffix", FRAMES)
def test_whole_numbers_that_classes_may_have_are_no_reason_to_refuse(
    suffix: str, tmp_path: Path
) -> None:
    one_hot = pd.DataFrame(np.eye(3)[np.arange(12) % 3], columns=["cat", "dog", "fish"])
    impossible = pd.DataFrame(P, columns=["cat", "dog", "fish"]).assign(bird=0)
    masked = pd.DataFrame(LOGITS, columns=["cat", "dog", "fish"]).assign(mask=-1e4, reference=0)
    coarse = pd.DataFrame([[3, -1.5, 0], [0, 5, 1]], columns=["cat", "dog", "fish"])
    for i, (frame, kind) in enumerate(
        [(one_hot, None), (impossible, None), (masked, "logits"), (coarse, "logits")]
    ):
        path = save(frame, tmp_path / f"{i}.{suffix}")
        store, _ = brought(path, tmp_path, source_kind=kind)
        assert store.schema.class_names == tuple(frame.columns)


# ------------------------------------------------------------------ hints


@pytest.mark.parametrize("suffix", ["zarr", "h5", "json", "jsonl", "npz", "parquet", "pt"])
def test_a_hint_that_contradicts_a_header_is_refused_and_one_that_agrees_is_not(
    suffix: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", P)
    path = tmp_path / f"x.{suffix}"
    fostore.convert(tmp_path / "x.npy", path, progress=False)
    for hint, words in (
        ({"source_kind": "logits"}, r"'probs', and source_kind='logits'"),
        ({"source_tol": 0.1}, "source_tol=0.1"),
        ({"temperature": 2.0}, "temperature is 1.0, and temperature=2.0"),
        ({"source_dtype": "float32"}, "'float64', and source_dtype='float32'"),
        ({"id_column": "key"}, "no effect"),
        ({"columns": ["a"]}, "no effect"),
        ({"drop": ["a"]}, "no effect"),
        ({"delimiter": ";"}, "no effect"),
        ({"transpose": True}, "no effect"),
    ):
        with pytest.raises(ArgumentError, match=words):
            brought(path, tmp_path, **hint)
    store, _ = brought(path, tmp_path, source_kind="probs", source_dtype="float64", temperature=1.0)
    assert_rows(store, P)


@pytest.mark.parametrize("suffix", ["json", "npy", "jsonl", "csv", "parquet"])
def test_where_the_file_says_nothing_every_hint_has_its_effect(suffix: str, tmp_path: Path) -> None:
    def saved(rows: Any) -> Path:
        path, rows = tmp_path / f"x.{suffix}", np.asarray(rows)
        if suffix == "json":
            listed = {str(i): row for i, row in enumerate(rows.tolist())}
            path.write_text(json.dumps({"meta": {"note": "fostore"}, "distributions": listed}))
        elif suffix == "npy":
            np.save(path, rows)
        elif suffix == "jsonl":
            path.write_text("".join(json.dumps({"row": row}) + "\n" for row in rows.tolist()))
        else:
            save(pd.DataFrame(rows, columns=["cat", "dog", "fish"][: rows.shape[1]]), path)
        return path

    path = saved([[0.33, 0.33, 0.33], [0.0, 0.5, 0.5]])
    with pytest.raises(ArgumentError, match=r"source_tol=0.02 \(--source-tol 0.02\)"):
        brought(path, tmp_path)
    assert brought(path, tmp_path, source_tol=0.02)[0].schema.sum_tolerance == 0.02
    path = saved([[3.25, -1.5, 0.5], [0.5, 5.25, 1.5]])
    with pytest.raises(ArgumentError, match=r'source_kind="logits" .* kind= \(--kind\)'):
        brought(path, tmp_path)
    store, _ = brought(path, tmp_path, source_kind="logits", temperature=2.0)
    assert (store.schema.kind, store.schema.temperature) == ("logits", 2.0)
    np.testing.assert_allclose(store.take([1], as_kind="logits"), [[0.5, 5.25, 1.5]], atol=1e-5)
    with pytest.raises(ArgumentError, match="no effect on logits"):
        brought(path, tmp_path, source_kind="logits", source_tol=0.1)
    with pytest.raises(ArgumentError):
        brought(path, tmp_path, kind="logits")
    store, _ = brought(saved([[3, 0, 1], [0, 5, 0]]), tmp_path, source_kind="counts")
    assert store.schema.kind == "counts"
    assert_rows(store, [[0.75, 0, 0.25], [0, 1, 0]])
    path = saved([[20.5, 29.5, 50.0], [10.0, 10.0, 80.0]])
    with pytest.raises(ArgumentError, match="percent"):
        brought(path, tmp_path)
    store, receipt = brought(path, tmp_path, source_kind="percent")
    assert_rows(store, [[0.205, 0.295, 0.5], [0.1, 0.1, 0.8]])
    assert any("divided by 100" in note for note in receipt.notes)


def test_votes_that_lie_as_floats_are_votes_where_that_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[3.0, 1.0], [0.0, 2.0]]))
    with pytest.raises(ArgumentError, match='if they are votes, say source_kind="counts"'):
        brought(tmp_path / "x.npy", tmp_path)
    with pytest.raises(ArgumentError, match="source_kind"):
        brought(tmp_path / "x.npy", tmp_path, kind="counts")
    assert brought(tmp_path / "x.npy", tmp_path, source_kind="counts")[0].schema.kind == "counts"
    np.save(tmp_path / "x.npy", np.array([[3.0, 1.0], [0.0, 2.5]]))
    with pytest.raises(FormatError, match=r"row 1 holds .*2.5.* at class 1"):
        brought(tmp_path / "x.npy", tmp_path, source_kind="counts")
    np.save(tmp_path / "p.npy", P)
    with pytest.raises(ArgumentError, match="say source_kind='counts'"):
        brought(tmp_path / "p.npy", tmp_path, kind="counts")


# ------------------------------------------------------------------ text as it comes

SEMI = "cat;dog\n0,25;0,75\n0,5;0,5\n"
RESULT = [[0.25, 0.75], [0.5, 0.5]]
TEXT_CURES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("x.csv", SEMI, r"delimiter=';' .*decimal=','", {"delimiter": ";", "decimal": ","}),
    ("x.csv", SEMI.partition("\n")[2], "delimiter=';'", {"delimiter": ";", "decimal": ","}),
    ("x.csv", SEMI.replace(",", "."), r"--delimiter ';'", {"delimiter": ";"}),
    ("x.csv", SEMI.replace(",", ".").replace(";", "\t"), "tabulator", {"delimiter": "\t"}),
    ("x.csv", SEMI.replace(",", ".").replace(";", " "), "space", {"delimiter": " "}),
    ("x.csv", '"";"cat";"dog"\n"1";0,25;0,75\n"2";0,5;0,5\n', "delimiter=';'",
     {"delimiter": ";", "decimal": ","}),
    ("x.tsv", SEMI.replace(";", "\t"), "decimal=','", {"decimal": ","}),
    ("x.csv", "index,cat,dog\n4,.25,.75\n2,.5,.5\n", "--id-column index", {"id_column": "index"}),
    ("x.csv", "id,cat,dog\n4,.25,.75\n4,.5,.5\n", "--drop id", {"drop": ["id"]}),
    ("x.csv", '"cat","dog"\n"0,25","0,75"\n"0,5","0,5"\n', "decimal=','", {"decimal": ","}),
    ("x.jsonl", '{"index": 7, "p": [0.25, 0.75]}\n{"index": 2, "p": [0.5, 0.5]}\n', "--id-column index",
     {"id_column": "index"}),
    ("x.csv", "sep=;\ncat;dog\n", "line 1 is for Excel alone: remove it", {}),
    ("x.csv", "name,cat,dog\na,.25,.75\nb,.5,.5\n", "id_column='name'", {"id_column": "name"}),
    ("x.csv", "0.75,0.25,split\n", "'index' or 'id'", {}),
    ("x.csv", "index,cat,dog\n4,.25,.75\n2,.5,.5\n", "expected 0", {"drop": ["index"]}),
    ("x.jsonl", '{"index": 7, "p": [0.25, 0.75]}\n{"index": 2, "p": [0.5, 0.5]}\n', "expected 0",
     {"drop": ["index"]}),
    ("x.tsv", "cat,dog\n.25,.75\n.5,.5\n", "delimiter=','", {"delimiter": ","}),
    ("x.csv", '"cat" "dog"\n"1" .25 .75\n"2" .5 .5\n', "delimiter=' '", {}),
    ("x.csv", "# made by hand\ncat,dog\n.25,.75\n", "line 1 is a comment.*remove it", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words", "cure"), TEXT_CURES)
def test_the_cure_that_an_error_of_a_text_file_names_gives_the_right_rows(
    name: str, text: str, words: str, cure: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FostoreError, match=words):
        brought(tmp_path / name, tmp_path)
    if cure:
        assert_rows(brought(tmp_path / name, tmp_path, **cure)[0], RESULT)


# ------------------------------------------------------------------ files without names


@pytest.mark.parametrize("cure", ["drop", "columns", "id_column"])
def test_a_file_without_names_is_told_by_the_places_of_its_columns(
    cure: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    pd.DataFrame(LOGITS, index=KEYS).to_csv(path, header=False)
    with pytest.raises(ArgumentError, match=r"drop=\['column 0'\].*columns=\['column 1'"):
        brought(path, tmp_path, source_kind="logits")
    said: Any = {"drop": ["column 0"], "columns": [f"column {i}" for i in (1, 2, 3)]}
    store, _ = brought(path, tmp_path, source_kind="logits", **{cure: said.get(cure, "column 0")})
    np.testing.assert_allclose(store.take(range(12), as_kind="logits"), LOGITS, atol=1e-5)
    assert ids_of(store) == (KEYS.tolist() if cure == "id_column" else None)
    assert store.schema.class_names is None


@pytest.mark.parametrize("names", ["1990,1995", "-1,1", "7,3", "2.0,4.0"])
def test_numbers_of_classes_over_the_columns_are_no_row(names: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{names}\n.25,.75\n.5,.5\n")
    store, _ = brought(tmp_path / "x.csv", tmp_path)
    assert_rows(store, RESULT)
    assert store.schema.class_names == tuple(names.split(","))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1,0\n.25,.75\n", None),
        ("0.0,1.0\n.25,.75\n", None),
        ("0.0,1.0\n1.0,0.0\n", None),
        ("1990,1995\n.25,-.75\n", "logits"),
        ("17,1,0\n18,.25,.75\n", None),
        ("2,1,0\n3,.25,.75\n", None),
    ],
)
def test_a_first_line_that_may_be_a_row_or_names_is_refused_and_either_can_be_said(
    text: str, kind: str | None, tmp_path: Path
) -> None:
    first, _, rest = text.partition("\n")
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ArgumentError, match=f"line 1 of .* is {first}, which may be a row or the"):
        brought(tmp_path / "x.csv", tmp_path, source_kind=kind)
    names = ",".join("abc"[: first.count(",") + 1])
    for lines, count in ((f"{names}\n{text}", 2), (f"{names}\n{rest}", 1)):
        (tmp_path / "x.csv").write_text(lines)
        cure = {"id_column": "a"} if names == "a,b,c" else {}
        store, _ = brought(tmp_path / "x.csv", tmp_path, source_kind=kind or "probs", **cure)
        assert len(store) == count


def test_a_column_that_counts_the_votes_of_the_others_is_no_class(tmp_path: Path) -> None:
    votes = pd.DataFrame(RANDOM.integers(1, 9, (12, 3)), columns=["cat", "dog", "fish"])
    path = save(votes.assign(total=votes.sum(axis=1)), tmp_path / "x.csv")
    with pytest.raises(ArgumentError, match=r"'total' .*drop=\['total'\]"):
        brought(path, tmp_path)
    assert brought(path, tmp_path, drop=["total"])[0].schema.num_classes == 3


def test_an_index_that_counts_the_rows_is_no_key_by_the_name_that_pandas_reads_it_under(
    tmp_path: Path,
) -> None:
    frame = pd.DataFrame(P, columns=["cat", "dog", "fish"])
    frame.insert(0, "Unnamed: 0", np.arange(12))
    assert brought(save(frame, tmp_path / "x.csv"), tmp_path)[0].ids is None


def test_a_source_of_members_that_needs_a_hint_is_converted_first(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LOGITS)
    with pytest.raises(ArgumentError, match=r"source_kind.*convert each source to a store"):
        fostore.stack([tmp_path / "x.npy"] * 2, tmp_path / "y.zarr", progress=False)
    fostore.convert(tmp_path / "x.npy", tmp_path / "x.zarr", source_kind="logits", progress=False)
    fostore.stack([tmp_path / "x.zarr"] * 2, tmp_path / "y.zarr", progress=False)
    assert fostore.open(tmp_path / "y.zarr").shape == (12, 2, 3)


def test_probabilities_that_are_said_to_be_logits_are_taken_with_a_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", P)
    with pytest.warns(UserWarning, match=r"x.npy: the first rows are probabilities.*source_kind="):
        store, receipt = brought(tmp_path / "x.npy", tmp_path, source_kind="logits")
    assert store.schema.kind == "logits"
    assert any("evens them out" in note for note in receipt.notes)
    assert_rows(brought(tmp_path / "x.npy", tmp_path, source_kind="probs")[0], P)


def test_votes_have_no_temperature(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[3, 1], [0, 2]]))
    with pytest.raises(ArgumentError, match=r"temperature=2.0 has no effect.*leave temperature="):
        brought(tmp_path / "x.npy", tmp_path, temperature=2.0)


def test_the_hashes_of_what_a_generator_saw_pass_through_json_lines(tmp_path: Path) -> None:
    """They lie under and over 2**63, of which NumPy makes doubles together."""
    samples = [(row, i % 3) for i, row in enumerate(P)]
    generator = fostore.FirstOrderDataGenerator(np.asarray, output_mode="probs")
    store = generator.generate_distributions(
        samples, store=tmp_path / "a.zarr", model_fingerprint="one", progress=False
    )
    hashes = store.column("input_hash")[:]
    assert hashes.min() < 1 << 63 <= hashes.max()
    fostore.convert(tmp_path / "a.zarr", tmp_path / "b.jsonl", progress=False)
    assert brought(tmp_path / "b.jsonl", tmp_path)[0].digest() == store.digest()


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["U", "S"])
def test_keys_of_zarr_may_be_texts_of_one_width(version: Any, dtype: str, tmp_path: Path) -> None:
    keys = [f"{key}.jpg" for key in KEYS]
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=version)
    group.create_array("probs", data=P, chunks=(5, 3))
    group.create_array("filename", data=np.array(keys).astype(dtype), chunks=(5,))
    assert ids_of(brought(tmp_path / "x.zarr", tmp_path)[0]) == keys
    with pytest.raises(FostoreError, match="filename has the shape"):
        brought(f"{tmp_path}/x.zarr::filename", tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_keys_whose_chunks_are_not_there_cost_no_row(version: Any, tmp_path: Path) -> None:
    """zarr-python leaves out a chunk of the fill value, such as the id 0 alone."""
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=version)
    group.create_array("probs", data=P)
    group.create_array("ids", data=KEYS * (KEYS[3] != KEYS), chunks=(1,))
    store, receipt = brought(tmp_path / "x.zarr", tmp_path)
    assert store.ids is None
    assert_rows(store, P)
    assert any("'ids' was left out" in note and "missing" in note for note in receipt.notes)
    with pytest.raises(ArgumentError, match="'ids' cannot be the ids: it cannot be read"):
        brought(tmp_path / "x.zarr", tmp_path, id_column="ids")


def test_the_row_that_is_no_distribution_is_named(tmp_path: Path) -> None:
    rows = np.array(P)
    rows[7, 1] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ArgumentError, match=r"row 7 is \[[0-9.]+, nan, [0-9.]+\]"):
        brought(tmp_path / "x.npy", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "é,b\n.5,.5\n"),
        ("x.jsonl", '{"id": "é", "p": [0.5, 0.5]}\n'),
        ("x.json", '{"meta": {"a": "é"}, "distributions": {"0": [0.5, 0.5]}}'),
    ],
)
def test_text_in_another_encoding_is_refused_with_the_one_that_is_read(
    name: str, text: str, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(FormatError, match="UTF-8"):
        brought(tmp_path / name, tmp_path)


@pytest.mark.parametrize("zero", ["null", "-Infinity"])
@pytest.mark.parametrize("kind", ["logits", "log_probs"])
def test_minus_infinity_of_logarithms_is_read_as_python_writes_it(
    kind: str, zero: str, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"p": [0.0, {zero}]}}\n{{"p": [{zero}, 0]}}\n')
    store, _ = brought(tmp_path / "x.jsonl", tmp_path, source_kind=kind)
    assert store.take([0, 1]).tolist() == [[1, 0], [0, 1]]


AS_IT_COMES = {
    "bom.csv": "\ufeffcat,dog\n0.25,0.75\n.5,.5\n",
    "blank.csv": "cat,dog\n0.25,0.75\n.5,.5\n\n  \n",
    "r.csv": '"","cat","dog"\n"1",0.25,0.75\n"2",.5,.5\n',
    "tabs.tsv": "cat\tdog\n0.25\t0.75\n.5\t.5\n",
    "bom.json": '\ufeff{"distributions": {"0": [0.25, 0.75], "1": [0.5, 0.5]}}',
    "nan.json": '{"meta": {"loss": [NaN, -Infinity]}, "distributions": {"0": [0.25, 0.75], "1": [0.5, 0.5]}}',
    "after.json": '{"distributions": {"0": [0.25, 0.75], "1": [0.5, 0.5]}, "meta": {"loss": NaN}, "x": NaN}',
    "bom.jsonl": '\ufeff{"p": [0.25, 0.75], "loss": NaN}\n{"p": [0.5, 0.5], "loss": 1.0}\n\n\n',
}


@pytest.mark.parametrize("name", AS_IT_COMES)
def test_marks_blank_ends_row_names_and_strange_metadata_cost_no_row(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(AS_IT_COMES[name], encoding="utf-8")
    store, receipt = brought(tmp_path / name, tmp_path)
    assert_rows(store, RESULT)
    assert store.ids is None
    if name.endswith("json") and "NaN" in AS_IT_COMES[name]:
        assert store.meta == {"loss": ["NaN", "-Infinity"] if name == "nan.json" else "NaN"}
        assert any("NaN" in note for note in receipt.notes)
        assert fostore.open(tmp_path / name).meta == store.meta
    if name == "r.csv":
        assert any("from 1" in note for note in receipt.notes)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "a,b\n.5,.5\n\n.5,.5\n", "line 3 is empty; remove it"),
        ("x.jsonl", '{"p": [1, 0]}\n\n{"p": [1, 0]}\n', "line 2 is empty; remove it"),
        ("x.json", '{"distributions": {"0": [NaN, 1]}}', "NaN.*leave such samples out"),
        ("x.json", '{"distributions": {"0": [null, 1]}}', "null is minus infinity.*source_kind="),
        ("x.jsonl", '{"p": [0.5, 0.5]}\n{"p": [NaN, 1]}\n', "line 2.*'NaN'.*leave out the samples"),
        ("x.csv", '"a","b"\n"1",.5,.5\n"2",.5,.5\n', "col.names=NA"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_what_to_do(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FostoreError, match=words):
        brought(tmp_path / name, tmp_path, source_kind=None)


def test_a_key_that_savetxt_wrote_is_a_whole_number(tmp_path: Path) -> None:
    for name, keys in (("id", KEYS), ("index", np.arange(12))):
        np.savetxt(tmp_path / "x.csv", np.c_[keys, P], delimiter=",", header=f"{name},cat,dog,fish")
        store, _ = brought(tmp_path / "x.csv", tmp_path)
        assert ids_of(store) == (KEYS.tolist() if name == "id" else None)
        assert_rows(store, P)
    (tmp_path / "x.csv").write_text("id,cat,dog\n1.10,.25,.75\n1.2,.5,.5\n")
    assert ids_of(brought(tmp_path / "x.csv", tmp_path)[0]) == ["1.10", "1.2"]


def test_what_a_document_holds_beside_its_rows_is_named(tmp_path: Path) -> None:
    rows = {"0": [0.25, 0.75], "1": [0.5, 0.5]}
    (tmp_path / "x.json").write_text(json.dumps({"distributions": rows, "ids": ["a", "b"]}))
    assert any("'ids'" in note for note in brought(tmp_path / "x.json", tmp_path)[1].notes)
    shown = CliRunner().invoke(
        app, ["convert", f"{tmp_path}/x.json", f"{tmp_path}/y.zarr", "--dry-run"]
    )
    assert "'ids'" in shown.stdout
    (tmp_path / "x.jsonl").write_text('{"cat": 0.5, "dog": 0.5}\n')
    with pytest.raises(ArgumentError, match=r"\['cat', 'dog'\]; write the numbers of a row as one"):
        brought(tmp_path / "x.jsonl", tmp_path)


def test_tab_separated_files_are_written_and_read_back(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", P)
    options = {"ids": [f"a\t{i}" for i in range(12)], "class_names": ["a\tb", "truth", "2"]}
    fostore.convert(tmp_path / "x.npy", tmp_path / "x.tsv", progress=False, **options)
    store, _ = brought(tmp_path / "x.tsv", tmp_path, class_names=options["class_names"])
    assert_rows(store, P)
    assert ids_of(store) == options["ids"]


# ------------------------------------------------------------------ arrays in sequence


def _npz_parts(path: Path, names: list[str]) -> None:
    np.savez(path, **{name: P[3 * i : 3 * i + 3] for i, name in enumerate(names)})


def test_numbered_arrays_follow_each_other_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = RANDOM.dirichlet(np.ones(4), 12)
    one = {f"batch_{i}": rows[i : i + 1] for i in sorted(range(12), key=str)}
    np.savez(tmp_path / "x.npz", **one, ids=KEYS)
    np.savez(tmp_path / "y.npz", *(rows[i : i + 5] for i in (0, 5, 10)))
    safetensors.numpy.save_file(one, tmp_path / "x.safetensors")
    torch.save({name: torch.tensor(part) for name, part in one.items()}, tmp_path / "x.pt")
    torch.save([torch.tensor(rows[i : i + 5]) for i in (0, 5, 10)], tmp_path / "list.pt")
    torch.save([torch.tensor(row) for row in rows], tmp_path / "rows.pt")
    torch.save({"probs": [torch.tensor(rows[i : i + 5]) for i in (0, 5, 10)]}, tmp_path / "d.pt")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, part in one.items():
            file[f"{name}/probs"] = part
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    for name, part in one.items():
        group.create_array(name, data=part)
    for name in "x.npz y.npz x.safetensors x.pt list.pt rows.pt d.pt x.h5 x.zarr".split():
        store, receipt = brought(tmp_path / name, tmp_path)
        assert_rows(store, rows)
        assert name == "rows.pt" or any("follow each other" in note for note in receipt.notes)
        assert (store.ids is not None) == (name == "x.npz")


def test_arrays_that_are_no_sequence_are_refused_and_one_of_them_can_be_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.npz"
    for second in ({"arr_2": P}, {"arr_1": P[:, :2]}, {"arr_1": np.eye(3)[np.arange(12) % 3]}):
        np.savez(path, arr_0=P, **second)
        with pytest.raises(ArgumentError, match=r"x\.npz::arr_0"):
            brought(path, tmp_path)
        assert_rows(brought(f"{path}::arr_0", tmp_path)[0], P)
    torch.save([torch.tensor(P), torch.arange(12)], tmp_path / "pair.pt")
    with pytest.raises(FormatError, match=r"tensor 1 of the list is torch\.int64"):
        brought(tmp_path / "pair.pt", tmp_path)


# ------------------------------------------------------------------ swapped axes


@pytest.mark.parametrize("suffix", ["npy", "npz", "h5", "zarr", "safetensors", "pt"])
@pytest.mark.parametrize("source_kind", [None, "probs", "logits"])
def test_swapped_axes_are_named_first_and_transpose_reads_them_right(
    suffix: str, source_kind: str | None, tmp_path: Path
) -> None:
    path, swapped = tmp_path / f"x.{suffix}", np.ascontiguousarray(P.T)
    if suffix == "npy":
        np.save(path, swapped)
    else:
        WRITERS[suffix](path, {"probs": swapped})
    with pytest.raises(ArgumentError, match=r"every column does, .*transpose=True \(--transpose\)"):
        brought(path, tmp_path, source_kind=source_kind)
    store, receipt = brought(path, tmp_path, transpose=True)
    assert_rows(store, P)
    assert any("axes were swapped" in note for note in receipt.notes)
    store, _ = brought(path, tmp_path, transpose=False, source_kind="logits")
    assert store.shape == (3, 12)


def test_an_array_of_members_is_swapped_in_pieces(tmp_path: Path) -> None:
    rows = RANDOM.dirichlet(np.ones(4), (500, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows.transpose())
    store, _ = brought(tmp_path / "x.npy", tmp_path, transpose=True, max_memory=100 << 20)
    np.testing.assert_array_equal(store.array, rows)
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(FostoreError):
        brought(tmp_path / "x.npy", tmp_path, transpose=True)


def test_files_of_matlab_are_read_with_their_axes_and_their_user_block(tmp_path: Path) -> None:
    path = tmp_path / "v73.h5"
    for kind, options in itertools.product(
        (None, "logits"), ({}, {"chunks": (2, 5), "compression": "gzip", "shuffle": True})
    ):
        rows = P if kind is None else LOGITS
        with h5py.File(path, "w", userblock_size=512) as file:
            data = file.create_dataset("probs", data=rows.T, **options)
            data.attrs["MATLAB_class"] = np.bytes_("double")
        store, receipt = brought(path, tmp_path, source_kind=kind)
        assert store.shape == (12, 3)
        assert any("(12, 3)" in note for note in receipt.notes)
        with pytest.raises(FostoreError):
            brought(path, tmp_path, transpose=False)


def test_a_store_with_a_user_block_is_refused_and_the_copy_that_is_advised_opens(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "x.npy", P)
    fostore.convert(tmp_path / "x.npy", tmp_path / "a.h5", progress=False)
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(old, "w", userblock_size=512) as b:
        for name in a:
            b.create_dataset(name, data=a[name][()], chunks=True, compression="gzip")
    with pytest.raises(FormatError, match=r"a\.copy\(name, b\)"):
        fostore.open(old)
    with h5py.File(old) as a, h5py.File(new, "w") as b:
        [a.copy(name, b) for name in a]
    assert_rows(fostore.open(new), P)


def test_no_rows_are_refused_with_the_slice_of_all(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", P)
    for rows in (slice(0, 0), slice(12, None), slice(5, 2)):
        with pytest.raises(ArgumentError, match=r"none of the 12 rows .*--rows 0:12"):
            brought(tmp_path / "x.npy", tmp_path, rows=rows)
    shown = CliRunner().invoke(
        app, ["convert", f"{tmp_path}/x.npy", f"{tmp_path}/y.zarr", "--rows", "0:0"]
    )
    assert shown.exit_code == 2


def test_a_receipt_says_its_axes_with_their_sizes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.stack([P, P], axis=1))
    receipt = brought(tmp_path / "x.npy", tmp_path)[1]
    assert "(sample 12, member 2, class 3)" in receipt.text()
    assert receipt.to_json()["axes"] == {"sample": 12, "member": 2, "class": 3}


def test_every_option_has_its_place_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("n;cat;dog;fold\na;0,25;0,75;1\nb;0,5;0,5;2\n")
    command = (
        f"convert {path} {tmp_path}/x.zarr --delimiter ; --decimal , --id-column n --drop fold"
    )
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    store = fostore.open(tmp_path / "x.zarr")
    assert_rows(store, RESULT)
    assert ids_of(store) == ["a", "b"]
    path.write_text("n\tcat\tdog\na\t0.75\t0.25\nb\t0.5\t0.5\n")
    command = rf"convert {path} {tmp_path}/y.zarr --delimiter \t --columns dog,cat"
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert_rows(fostore.open(tmp_path / "y.zarr"), RESULT)
    np.save(tmp_path / "t.npy", P.T)
    command = f"convert {tmp_path}/t.npy {tmp_path}/t.zarr --transpose --source-kind probs"
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert_rows(fostore.open(tmp_path / "t.zarr"), P)
