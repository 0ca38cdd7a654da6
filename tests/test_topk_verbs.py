"""Top-k rows in every verb: converted, stacked, checked, looked at, evaluated, published; never made whole unasked."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fostore
from fostore import evaluate
from fostore.cli import app
from fostore.conversion import convert, stack
from fostore.errors import ArgumentError, FormatError, RowError
from fostore.schema.row import Array

SUFFIXES = (".zarr", ".h5")
N, K, KEPT = 60, 300, 20
T = 2.0
LOUD: dict[str, Any] = {"progress": False}

every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def logits(n: int = N, num_classes: int = K, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 3, (n, num_classes)).astype(np.float32)


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def made(path: Path, rows: Array, **options: Any) -> Path:
    """A sealed store of logits; by default with the largest classes of each row alone."""
    options = {"encoding": "topk", "k": KEPT, **options}
    given = {name: value for name, value in options.items() if value is not None}
    num_samples, num_classes = rows.shape
    with fostore.create(
        path, num_samples=num_samples, num_classes=num_classes, kind="logits", **given
    ) as writer:
        writer.append(rows)
    return path


def dense(path: Path, rows: Array, **options: Any) -> Path:
    return made(path, rows, encoding=None, k=None, **options)


def digest(path: Path) -> str:
    with fostore.open(path) as store:
        assert store.verify() == []
        return store.digest()


# ------------------------------------------------------------------ convert


@every_format
@pytest.mark.parametrize("rule", ["coarse", "zero", "uniform", "renorm"])
def test_dense_rows_become_those_that_were_written_so(
    tmp_path: Path, suffix: str, rule: str
) -> None:
    rows = logits()
    source = dense(tmp_path / "a.zarr", rows)
    asked: dict[str, Any] = {"encoding": "topk", "k": KEPT, "rule": rule, "temperatures": [T]}
    with pytest.raises(ArgumentError, match=r"encoding: dense became topk.*allow_lossy"):
        convert(source, tmp_path / f"b{suffix}", **asked, **LOUD)
    receipt = convert(source, tmp_path / f"b{suffix}", **asked, **LOUD, allow_lossy=True)
    assert receipt.lossy == ("encoding: dense became topk",)
    assert receipt.changes == asked
    with fostore.open(tmp_path / f"b{suffix}") as store:
        direct = made(tmp_path / "c.zarr", rows, rule=rule, temperatures=[T])
        with fostore.open(direct) as expected:
            one, other = (s.take_topk(range(N)) for s in (store, expected))
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_allclose(one.values, other.values, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(one.residual_t, other.residual_t, rtol=1e-6)
            assert dict(store.schema.encoding) == dict(expected.schema.encoding)
    assert receipt.measured is not None
    p, ids = softmax(rows), np.argsort(-rows, axis=-1)[:, :KEPT]
    if rule in ("coarse", "zero"):
        assert receipt.measured["max_kl"] < 1e-12  # over the outcomes that are told apart
    elif rule == "renorm":
        assert receipt.measured["mean_kl"] == "inf"
    else:
        rest = p.copy()
        np.put_along_axis(rest, ids, 0, -1)
        mean = rest.sum(-1, keepdims=True) / (K - KEPT)
        divergence = np.where(rest > 0, rest * np.log(np.maximum(rest, 1e-300) / mean), 0).sum(-1)
        assert receipt.measured["mean_kl"] == pytest.approx(divergence.mean(), rel=1e-4)


@every_format
def test_a_rule_that_loses_more_than_is_allowed_is_not_written(tmp_path: Path, suffix: str) -> None:
    source = made(tmp_path / "a.zarr", logits())
    with pytest.raises(RowError, match=r"loses inf nats .*max_kl is 0\.1: .* Nothing is written$"):
        convert(source, tmp_path / f"b{suffix}", rule="renorm", max_kl=0.1, **LOUD)
    assert not (tmp_path / f"b{suffix}").exists()
    convert(source, tmp_path / f"b{suffix}", rule="renorm", **LOUD)
    with pytest.raises(RowError, match=r"max_kl is 0\.1"):  # a copy of what says it
        convert(tmp_path / f"b{suffix}", tmp_path / "c.zarr", max_kl=0.1, **LOUD)


@every_format
def test_fewer_classes_and_another_rule_are_what_the_model_would_have_given(
    tmp_path: Path, suffix: str
) -> None:
    rows = logits()
    source = made(tmp_path / f"a{suffix}", rows, temperatures=[T])
    with pytest.raises(ArgumentError, match="k: 20 became 5"):
        convert(source, tmp_path / "b.zarr", k=5, **LOUD)
    receipt = convert(source, tmp_path / "b.zarr", k=5, **LOUD, allow_lossy=True)
    assert receipt.measured is not None
    assert receipt.measured["max_kl"] < 1e-12
    direct = made(tmp_path / "c.zarr", rows, k=5, temperatures=[T])
    with fostore.open(tmp_path / "b.zarr") as store, fostore.open(direct) as expected:
        one, other = (s.take_topk(range(N)) for s in (store, expected))
        for name in ("values", "ids", "residual", "residual_t"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5)
    receipt = convert(source, tmp_path / "d.zarr", rule="uniform", **LOUD)
    assert receipt.lossy == ()
    assert digest(tmp_path / "d.zarr") == digest(
        made(tmp_path / "e.zarr", rows, temperatures=[T], rule="uniform")
    )
    receipt = convert(source, tmp_path / "f.zarr", temperatures=[], **LOUD, allow_lossy=True)
    assert receipt.lossy == ("temperatures: [2.0] became None",)
    assert digest(tmp_path / "f.zarr") == digest(made(tmp_path / "g.zarr", rows))
    receipt = convert(source, tmp_path / "h.zarr", k=4, rule="uniform", **LOUD, allow_lossy=True)
    assert receipt.measured is not None
    assert 0 < receipt.measured["mean_kl"] < 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 30}, "keep 20 classes .*, 30 .* cannot be had again, only from the model"),
        ({"temperatures": [3.0]}, r"temperatures \[2.0\], .* \[3.0\] were asked for"),
        ({"encoding": "dense"}, "by the rule 'coarse' all others are one outcome"),
        ({"encoding": "dense", "rule": "zero"}, "which logits cannot say"),
        ({"encoding": "dense", "rule": "coarse"}, "all others are one outcome"),
        ({"classes": [1, 2]}, "keeps some of 300 classes of each row.*--encoding dense --rule"),
        ({"k": 3, "encoding": {"name": "topk", "k": 3}}, "given beside encoding and in it"),
        ({"encoding": "topq"}, "'topq' is not known"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    source = made(tmp_path / "a.zarr", logits(), temperatures=[T])
    with pytest.raises((ArgumentError, FormatError), match=message):
        convert(source, tmp_path / "b.zarr", **asked, **LOUD, allow_lossy=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]


def test_a_parameter_for_rows_that_have_none_is_refused(tmp_path: Path) -> None:
    source = dense(tmp_path / "a.zarr", logits())
    with pytest.raises(ArgumentError, match="rows of the encoding 'dense' hold every class"):
        convert(source, tmp_path / "b.zarr", rule="uniform", **LOUD)
    with pytest.raises(ArgumentError, match="'dense' has no parameter 'k'"):
        convert(source, tmp_path / "b.zarr", k=3, **LOUD)


@pytest.mark.parametrize("rule", ["uniform", "renorm"])
def test_rows_become_whole_by_the_rule_that_is_named(tmp_path: Path, rule: str) -> None:
    rows = logits()
    source = made(tmp_path / "a.zarr", rows)
    with fostore.open(source) as store:
        expected = store.take(range(N), rule=rule)
    options: dict[str, Any] = {"rule": rule, **LOUD, "allow_lossy": True}
    convert(source, tmp_path / "b.zarr", encoding="dense", **options)
    with fostore.open(tmp_path / "b.zarr") as store:
        np.testing.assert_allclose(store.take(range(N)), expected, atol=1e-6)
    convert(source, tmp_path / "c.npy", kind="probs", **options)
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), expected, atol=1e-6)
    convert(source, tmp_path / "d.csv", kind="log_probs", encoding="dense", **options)
    with pytest.raises(ArgumentError, match="all others are one outcome"):
        convert(source, tmp_path / "e.npy", kind="probs", **LOUD, allow_lossy=True)


@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_another_kind_keeps_the_same_classes(tmp_path: Path, kind: Any) -> None:
    rows = logits()
    spec = {"name": "topk", "k": KEPT, "tail_entropy": True}
    source = made(tmp_path / "a.zarr", rows, encoding=spec, k=None, temperatures=[T])
    convert(source, tmp_path / "b.zarr", kind=kind, **LOUD, allow_lossy=True)
    convert(tmp_path / "b.zarr", tmp_path / "c.zarr", kind="logits", **LOUD, allow_lossy=True)
    with fostore.open(source) as first:
        for name in "bc":
            with fostore.open(tmp_path / f"{name}.zarr") as store:
                assert store.verify() == []
                np.testing.assert_array_equal(store.column("ids"), first.column("ids"))
                for rule, temperature in (("uniform", T), ("zero", T), ("renorm", 3)):
                    asked = {"rule": rule, "temperature": temperature}
                    one, other = (s.take(range(N), **asked) for s in (store, first))
                    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
                np.testing.assert_allclose(
                    store.column("tail_entropy"), first.column("tail_entropy"), atol=1e-5
                )


@pytest.mark.parametrize(
    "suffix", [*SUFFIXES, ".json", ".npz", ".jsonl", ".parquet", ".arrow", ".safetensors", ".pt"]
)
def test_every_format_that_keeps_a_header_keeps_the_rows(tmp_path: Path, suffix: str) -> None:
    source = made(tmp_path / "a.zarr", logits(), temperatures=[T], dtype="float16", ids=range(N))
    there, back = tmp_path / f"b{suffix}", tmp_path / "c.zarr"
    assert convert(source, there, **LOUD).is_lossless
    convert(there, back, **LOUD)
    assert digest(back) == digest(source)
    for function, expected in ((evaluate.entropy, None), (evaluate.margin, None)):
        one, other = (function(evaluate.by_rule(p, "uniform")) for p in (there, source))
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=str(expected))


def test_parquet_rows_are_lists_that_duckdb_reads(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    source = made(tmp_path / "a.zarr", logits())
    convert(source, tmp_path / "b.parquet", **LOUD)
    (first,) = duckdb.sql(
        f"select ids, values, residual from '{tmp_path / 'b.parquet'}' limit 1"
    ).fetchall()
    with fostore.open(source) as store:
        topk = store.take_topk([0])
    assert list(first[0]) == topk.ids[0].tolist()
    assert list(first[1]) == topk.values[0].tolist()
    assert first[2] == topk.residual[0]


def test_members_parts_and_rows_of_several_stores(tmp_path: Path) -> None:
    rows = [logits(seed=seed) for seed in (0, 1)]
    paths = [made(tmp_path / f"{name}.zarr", r) for name, r in zip("ab", rows, strict=True)]
    stack(paths, tmp_path / "s.zarr", **LOUD)
    with fostore.open(tmp_path / "s.zarr") as store:
        assert store.verify() == []
        topk = store.take_topk([3])
        assert topk.ids.shape == (1, 2, KEPT)
        assert store.take([3], rule="uniform").shape == (1, 2, K)
    convert(tmp_path / "s.zarr", tmp_path / "m.zarr", member=1, **LOUD)
    assert digest(tmp_path / "m.zarr") == digest(paths[1])
    convert(paths, tmp_path / "c.zarr", **LOUD)
    assert digest(tmp_path / "c.zarr") == digest(made(tmp_path / "d.zarr", np.concatenate(rows)))
    convert(paths[0], tmp_path / "p.zarr", rows=slice(10, 30), **LOUD)
    assert digest(tmp_path / "p.zarr") == digest(made(tmp_path / "q.zarr", rows[0][10:30]))
    other = made(tmp_path / "o.zarr", rows[1], k=KEPT - 1)
    with pytest.raises(ArgumentError):
        stack([paths[0], other], tmp_path / "x.zarr", **LOUD)
    with pytest.raises(ArgumentError):
        convert([paths[0], other], tmp_path / "x.zarr", **LOUD)
    ruled = made(tmp_path / "r.zarr", rows[1], rule="uniform")
    with pytest.raises(ArgumentError, match="encoding"):
        stack([paths[0], ruled], tmp_path / "x.zarr", **LOUD)
    with pytest.raises(ArgumentError, match="encoding"):
        convert([paths[0], ruled], tmp_path / "x.zarr", **LOUD)


def test_a_size_is_known_before(tmp_path: Path) -> None:
    expected = {suffix: made(tmp_path / f"a{suffix}", logits(2000, 1000)) for suffix in SUFFIXES}
    convert(expected[".zarr"], tmp_path / "a.json", **LOUD)
    for suffix, path in {**expected, ".json": tmp_path / "a.json"}.items():
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
        size = sum(file.stat().st_size for file in files)
        known = fostore.estimate_size(
            2000,
            1000,
            kind="logits",
            format=suffix[1:],
            encoding="topk",
            k=KEPT,
            fingerprints=False,
        )
        assert known == pytest.approx(size, rel=0.2 if suffix == ".json" else 0.05)


# ------------------------------------------------------------------ evaluation


def test_scores_are_those_of_the_rows_that_the_rule_makes(tmp_path: Path) -> None:
    rows, labels = logits(), np.arange(N) % K
    source, whole = made(tmp_path / "a.zarr", rows), dense(tmp_path / "b.zarr", rows)
    ruled = made(tmp_path / "c.zarr", rows, rule="uniform")
    with fostore.open(source) as store:
        expected = evaluate.summarize(store.take(range(N), rule="uniform"), labels).to_json()
    for path, asked in ((source, {"rule": "uniform"}), (ruled, {})):
        summary = evaluate.summarize(path, labels, **asked)
        assert summary.to_json()["entropy"] == pytest.approx(expected["entropy"], rel=1e-5)
        assert summary.to_json()["labels"]["nll"] == pytest.approx(expected["labels"]["nll"], 1e-5)
        assert summary.where == f"{path} by the rule 'uniform'"
    far = evaluate.compare(whole, source, rule="uniform")
    assert far.kl.mean == pytest.approx(
        evaluate.kl(whole, evaluate.by_rule(source, "uniform")).mean()
    )
    assert evaluate.compare(whole, source, rule="renorm").kl.num_infinite == N


def test_scores_of_classes_that_are_not_known_are_refused(tmp_path: Path) -> None:
    source, whole = made(tmp_path / "a.zarr", logits()), dense(tmp_path / "b.zarr", logits())
    for ask in (
        lambda: evaluate.entropy(source),
        lambda: evaluate.summarize(fostore.open(source)),
        lambda: evaluate.compare(whole, source),
        lambda: evaluate.by_rule(source, "zero"),
    ):
        with pytest.raises(ArgumentError, match=r"say what they have, by rule='uniform'.*by_rule"):
            ask()
    with pytest.raises(ArgumentError, match=r"every class is kept in .*b.zarr: leave it out"):
        evaluate.summarize(whole, rule="uniform")


# ------------------------------------------------------------------ commands


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_imagenet_21k_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher of 21,841 classes: kept whole, then its largest 50, looked at, compared, published."""
    monkeypatch.chdir(tmp_path)
    names = [f"n{i:08}" for i in range(21_841)]
    dense(Path("whole.zarr"), logits(24, 21_841), class_names=names, dtype="float16")
    output = run(
        *"convert whole.zarr top.h5 --encoding topk --k 50 --rule uniform --temperatures 2,4".split(),
        "--allow-lossy",
        "--quiet",
    )
    assert output == ""
    info = run("info", "top.h5")
    assert "topk (k 50, rule uniform, temperatures 2, 4)" in " ".join(info.split())
    facts = json.loads(run("info", "top.h5", "--json"))
    assert facts["parameters"] == {"k": 50, "rule": "uniform", "temperatures": [2.0, 4.0]}
    assert "every row" in run("verify", "top.h5", "--level", "full")
    with fostore.open("top.h5") as store:
        topk = store.take_topk([0])
        with pytest.raises(ArgumentError, match="the rule is to be named"):
            _ = store[0]
    head = run("head", "top.h5", "-n", "1")
    assert head.startswith(f"0: {names[topk.ids[0, 0]]} ")
    row = json.loads(run("head", "top.h5", "-n", "1", "--json"))
    assert row["classes"] == topk.ids[0].tolist()
    assert sum(row["probs"]) + row["others"] == pytest.approx(1)
    assert "by the rule 'uniform'" in run("stats", "top.h5")
    assert json.loads(run("compare", "whole.zarr", "top.h5", "--json"))["agreement"] == 1
    plan = run(*"convert top.h5 less.zarr --k 10 --dry-run --allow-lossy".split())
    assert "lossy        k: 50 became 10" in plan
    run("report", "top.h5", "--output", "report.html")
    assert "topk (k 50" in Path("report.html").read_text("utf-8")


def test_a_coarse_store_says_on_the_command_line_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("a.zarr"), logits())
    result = CliRunner().invoke(app, ["stats", "a.zarr"])
    assert result.exit_code != 0
    assert "--rule" in result.output
    assert "by the rule 'renorm'" in run("stats", "a.zarr", "--rule", "renorm")
    assert "and 29" in run("head", "a.zarr", "-n", "1")


def test_a_bundle_shows_what_is_kept(tmp_path: Path) -> None:
    from fostore.publishing import publish

    source = made(tmp_path / "words.zarr", logits())
    publish(
        source,
        tmp_path / "bundle",
        license="CC0-1.0",
        creators=["A. Person"],
        description="Rows of a teacher",
        title="Words",
        parquet=True,
        progress=False,
    )
    card = (tmp_path / "bundle" / "README.md").read_text("utf-8")
    assert "encoding topk (k 20, rule coarse)" in card
    assert "store.take_topk([0, 1, 2])" in card
    assert "(topk (k 20, rule coarse))" in card
    page = (tmp_path / "bundle" / "report.html").read_text("utf-8")
    assert "as the rule &#x27;uniform&#x27; has them" in page
    with fostore.open(tmp_path / "bundle") as store:
        assert store.take_topk([0]).ids.shape == (1, KEPT)


# ------------------------------------------------------------------ memory


def test_no_piece_of_128_256_classes_takes_more_than_its_budget(tmp_path: Path) -> None:
    """1,000 rows of all classes would be 489 MiB, and 16,384, which a piece of narrow rows has, 7.8 GiB."""
    num_classes, n = 128_256, 1000
    batch = logits(20, num_classes)
    options: dict[str, Any] = {"encoding": "topk", "k": 64, "rule": "uniform", "dtype": "float16"}
    with fostore.create(
        tmp_path / "a.zarr", num_samples=n, num_classes=num_classes, kind="logits", **options
    ) as writer:
        for _ in range(n // 20):
            writer.append(batch)
    tracemalloc.start()
    try:
        convert(
            tmp_path / "a.zarr", tmp_path / "b.h5", k=32, rule="coarse", **LOUD, allow_lossy=True
        )
        convert(tmp_path / "a.zarr", tmp_path / "c.parquet", **LOUD)
        with fostore.open(tmp_path / "a.zarr") as store:
            part = store.select(range(40))
            scores = evaluate.entropy(part)
            np.testing.assert_allclose(scores[:20], scores[20:])
            assert store.verify() == []
        convert(
            tmp_path / "a.zarr",
            tmp_path / "d.zarr",
            rows=slice(0, 40),
            encoding="dense",
            rule="uniform",
            **LOUD,
            allow_lossy=True,
        )
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
