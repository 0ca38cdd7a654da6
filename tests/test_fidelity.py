"""What an encoding has lost is said by the store: exactly, whoever is killed on the way, and within a bound."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fostore
from fostore.encodings import encoding_of, make_schema
from fostore.encodings.fidelity import Errors, Figures, against, compare, log_probs, of_columns
from fostore.encodings.topk_rows import RULES, Selected, TopK
from fostore.errors import ArgumentError, FormatError, RowError
from fostore.schema.row import Array
from fostore.writing.fidelity import Watch, sampled
from support import SUFFIXES

N, K = 600, 30


def logits_of(n: int = N, num_classes: int = K, *, seed: int = 0) -> Array:
    """Of standard deviation 3, float32."""
    return (np.random.default_rng(seed).normal(size=(n, num_classes)) * 3).astype(np.float32)


def divergence(p: Array, q: Array) -> Array:
    """KL of plain probabilities, by definition."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (np.log(p) - np.log(q)), 0).sum(axis=-1)


# ------------------------------------------------------------------ numbers alone


def selected_of(logits: Array, k: int) -> tuple[Selected, Array]:
    """The k largest of each row in float64, and the probabilities of all."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    ids = np.argsort(-shifted, axis=-1, kind="stable")[..., :k]
    rest = np.exp(shifted)
    np.put_along_axis(rest, ids, 0, axis=-1)
    mass = rest.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = rest / mass[..., None]
        entropy = -np.where(q > 0, q * np.log(q), 0).sum(axis=-1)
        residual = np.log(mass)
    probs = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    values = np.take_along_axis(shifted, ids, axis=-1)
    return Selected(values, ids, residual, None, None, entropy), probs


def rows_of(given: Selected, rule: str, num_classes: int) -> TopK:
    """As a store would keep them."""
    ids, residual = given.ids.astype(np.uint16), given.residual.astype(np.float32)
    return TopK(given.values.astype(np.float16), ids, residual, num_classes, rule)


def expanded(topk: TopK, probs: Array) -> tuple[Array, Array]:
    """What was given and what is stored, by definition: over all classes, or over those kept and the others as one."""
    weights, rest = (np.exp(np.float64(x)) for x in (topk.values, topk.residual))
    ids = topk.ids.astype(np.int64)
    total = weights.sum(axis=-1) + (0 if topk.rule == "renorm" else rest)
    if topk.rule == "coarse":
        kept = np.take_along_axis(probs, ids, axis=-1)
        others = probs.copy()
        np.put_along_axis(others, ids, 0, axis=-1)
        given = np.concatenate([kept, others.sum(axis=-1, keepdims=True)], axis=-1)
        return given, np.concatenate([weights, rest[..., None]], axis=-1) / total[..., None]
    others = topk.num_classes - ids.shape[-1]
    each = rest / total / max(others, 1) if topk.rule == "uniform" else np.zeros_like(rest)
    stored = np.repeat(each[..., None], topk.num_classes, axis=-1)
    np.put_along_axis(stored, ids, weights / total[..., None], axis=-1)
    return probs, stored


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 7, K])
@pytest.mark.parametrize("shape", [(40,), (20, 3)])
def test_errors_of_top_k_rows_are_those_by_definition(
    rule: str, k: int, shape: tuple[int, ...]
) -> None:
    logits = np.random.default_rng(k).normal(size=(*shape, K)) * 2
    selected, probs = selected_of(logits, k)
    topk = rows_of(selected, rule, K)
    given, stored = expanded(topk, probs)
    kl, tv = divergence(given, stored), np.abs(given - stored).sum(axis=-1) / 2
    errors = against(log_probs(logits, "logits"), topk)
    np.testing.assert_allclose(errors.kl, kl, atol=1e-12)
    np.testing.assert_allclose(errors.tv, tv, atol=1e-12)
    assert errors.missing_mass is not None
    np.testing.assert_allclose(
        errors.missing_mass,
        1 - np.take_along_axis(probs, selected.ids, axis=-1).sum(axis=-1),
        atol=1e-12,
    )
    assert errors.flips is not None
    assert not errors.flips.any()
    # Columns say the same, rounding apart.
    own = of_columns(topk, selected.tail_entropy)
    np.testing.assert_allclose(own.missing_mass, errors.missing_mass, atol=1e-3)
    if own.kl is not None:
        np.testing.assert_allclose(own.kl, kl, atol=1e-3)
    assert (own.kl is None) == (rule == "coarse")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
def test_what_a_device_selected_is_compared_as_all_of_it(rule: str, kind: str) -> None:
    logits = np.random.default_rng(1).normal(size=(30, K)) * 2
    selected, probs = selected_of(logits, 5)
    topk = rows_of(selected, rule, K)
    ids = topk.ids.copy()
    ids[:, [0, 1]] = ids[
        :, [1, 0]
    ]  # as if rounding had made these equal, and the smaller class came first
    values = topk.values.copy()
    values[:, [0, 1]] = values[:, [1, 0]]
    topk = TopK(values, ids, topk.residual, K, rule)
    kept = {"logits": selected.values}
    kept["log_probs"] = np.log(np.take_along_axis(probs, selected.ids, axis=-1))
    kept["probs"] = np.exp(kept["log_probs"])
    level = (
        0 if kind == "logits" else np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    )
    given = selected._replace(values=kept[kind], residual=selected.residual - level)
    # `compare` takes what is sparse from the encoding; here it is at hand.
    from fostore.encodings import fidelity

    found = fidelity._selected(given, topk, kind)
    expected = against(log_probs(logits, "logits"), topk)
    np.testing.assert_allclose(found.kl, expected.kl, atol=1e-12)
    np.testing.assert_allclose(found.missing_mass, expected.missing_mass, atol=1e-12)
    np.testing.assert_array_equal(found.flips, expected.flips)
    if rule != "uniform":
        np.testing.assert_allclose(found.tv, expected.tv, atol=1e-12)
    if rule == "uniform":
        assert fidelity._selected(given._replace(tail_entropy=None), topk, kind).kl is None


@pytest.mark.parametrize("name", ["u16_affine", "u8_log_sqrt"])
@pytest.mark.parametrize("kind", ["probs", "log_probs", "logits"])
def test_errors_of_codes_are_those_by_definition(name: str, kind: str) -> None:
    logs = log_probs(logits_of(), "logits")
    rows = {"probs": np.exp(logs), "log_probs": logs, "logits": logits_of()}[kind]
    schema = make_schema(K, kind=kind, encoding={"name": name})
    encoding = encoding_of(schema)
    columns = encoding.encode(rows, schema, 0)
    errors = compare(rows, columns, schema)
    p = np.exp(logs)
    q = np.exp(log_probs(encoding.rows(columns, schema), kind))
    np.testing.assert_allclose(errors.kl, divergence(p, q), atol=1e-12)
    np.testing.assert_allclose(errors.tv, np.abs(p - q).sum(axis=-1) / 2, atol=1e-12)
    np.testing.assert_array_equal(errors.missing_mass, 0)
    assert compare(rows[:0], [column[:0] for column in columns], schema) == Errors()


def test_a_class_that_was_not_drawn_makes_kl_infinite_and_is_missing() -> None:
    schema = make_schema(K, encoding={"name": "sampled", "num_draws": 4})
    probs = np.exp(log_probs(logits_of(20), "logits"))
    columns = encoding_of(schema).encode(probs, schema, 0)
    errors = compare(probs, columns, schema)
    assert errors.kl is not None
    assert np.isinf(errors.kl).all()
    drawn = encoding_of(schema).rows(columns, schema) > 0
    np.testing.assert_allclose(errors.missing_mass, np.where(drawn, 0, probs).sum(axis=-1))


def test_a_changed_argmax_is_counted_and_a_tie_is_none() -> None:
    schema = make_schema(3, kind="logits", encoding={"name": "u8_log_sqrt"})
    rows = np.float64([[1.0, 1.0001, -190], [1.0, 1.0, -190]])
    columns = encoding_of(schema).encode(rows, schema, 0)
    flips = compare(rows, columns, schema).flips
    assert flips is not None
    assert flips.tolist() == [True, False]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.booleans())
def test_figures_are_the_same_in_any_cut(sizes: list[int], infinite: bool) -> None:
    n, rng = sum(sizes), np.random.default_rng(sum(sizes))
    kl, tv, mass = rng.random((3, n, 2))
    if infinite:
        kl[n // 2, 1] = np.inf
    weights, flips = rng.integers(1, 5, n).astype(np.float64), rng.random((n, 2)) < 0.3

    def part(at: slice) -> tuple[Array, Errors, Array]:
        return np.arange(n)[at], Errors(kl[at], tv[at], mass[at], flips[at]), weights[at]

    whole, grown = Figures().add(*part(slice(None))), Figures()
    start = 0
    for size in sizes:
        grown = grown.add(*part(slice(start, start + size)))
        grown = Figures.from_json(json.loads(json.dumps(grown.to_json())), "here")
        start += size
    for name, value in whole.to_json().items():
        assert grown.to_json()[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert whole.kl_mean == pytest.approx(float((kl.mean(axis=1) @ weights) / weights.sum()))
    assert whole.argmax_flips == flips.sum()
    assert whole.worst_row == int(kl.max(axis=1).argmax())


@pytest.mark.parametrize("bad", [[], {"kl_mean": "many"}, {"num_rows": 1.5}, {"kl_max": -1}])
def test_figures_that_a_stranger_wrote_are_checked(bad: Any) -> None:
    with pytest.raises(FormatError, match=r"^here"):
        Figures.from_json(bad, "here")


@given(st.integers(1, 10**7), st.booleans())
def test_rows_are_drawn_by_their_numbers_some_thousand_in_all(n: int, planned: bool) -> None:
    plan = n if planned else None
    start = max(n - 100_000, 0)
    whole, weights = sampled(start, n, plan, (K,))
    cut = start + (n - start) // 3
    pieces = [sampled(a, b, plan, (K,))[0] for a, b in ((start, cut), (cut, n))]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    assert len(whole) <= 1024 + 6 * 128
    # Each stands for as many rows that all are stood for.
    off = 6 * math.sqrt((weights * weights).sum() + 1)
    assert abs(weights.sum() - (n - start)) <= off + weights.max(initial=n / 1000)


# ------------------------------------------------------------------ a store


def begun(path: Path, **options: Any) -> Any:
    options = {"encoding": "u8_log_sqrt", "kind": "logits", "num_samples": N, **options}
    return fostore.create(path, num_classes=K, **options)


def compared(path: Path) -> dict[str, Any]:
    with fostore.open(path) as store:
        return dict((store.header.fidelity or {}).get("compared", {}))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sealed_store_says_what_was_lost_and_its_digest_does_not(
    suffix: str, tmp_path: Path
) -> None:
    logits = logits_of()
    paths = [tmp_path / f"{name}{suffix}" for name in ("a", "b")]
    for path, cut in zip(paths, (N, 77), strict=True):
        with begun(path) as writer:
            for start in range(0, N, cut):
                writer.append(logits[start : start + cut])
    schema = fostore.open(paths[0]).schema
    columns = encoding_of(schema).encode(logits, schema, 0)
    expected = Figures().add(np.arange(N), compare(logits, columns, schema)).to_json()
    assert compared(paths[0]) == pytest.approx(expected)
    assert compared(paths[1]) == pytest.approx(expected)
    assert fostore.open(paths[0]).digest() == fostore.open(paths[1]).digest()
    assert fostore.open(paths[0]).verify() == []
    with begun(tmp_path / f"c{suffix}", encoding="dense") as writer:
        writer.append(logits)
    assert fostore.open(tmp_path / f"c{suffix}").header.fidelity is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_writer_that_dies_has_recorded_what_it_committed(suffix: str, tmp_path: Path) -> None:
    logits, path = logits_of(), tmp_path / f"a{suffix}"
    writer = begun(path)
    writer.append(logits[:200])
    writer.commit()
    assert compared(path)["num_rows"] == 200
    writer.append(logits[200:300])
    assert compared(path)["num_rows"] == 200
    writer.close()
    assert compared(path)["num_rows"] == 300
    with begun(path, exists="resume") as writer:
        writer.append(logits[300:])
    with begun(tmp_path / f"b{suffix}") as writer:
        writer.append(logits)
    assert compared(path) == pytest.approx(compared(tmp_path / f"b{suffix}"))


def test_rows_that_were_refused_are_counted_once_when_they_come_right(tmp_path: Path) -> None:
    logits = logits_of()
    with begun(tmp_path / "a.zarr", ids="int64") as writer:
        with pytest.raises(RowError, match="ids"):
            writer.append(logits)
        writer.append(logits, ids=np.arange(N))
    assert compared(tmp_path / "a.zarr")["num_rows"] == N


def test_a_stream_that_goes_on_keeps_its_figures(tmp_path: Path) -> None:
    logits, path = logits_of(), tmp_path / "a.zarr"
    for start in (0, 300):
        with begun(path, num_samples=None, exists="resume") as writer:
            writer.append(logits[start : start + 300])
    rows, weights = sampled(0, N, None, (K,))
    assert compared(path)["num_rows"] == len(rows)
    assert compared(path)["weight"] == weights.sum()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bound_that_is_not_met_is_an_error_before_the_store_is_sealed(
    suffix: str, tmp_path: Path
) -> None:
    logits, path = logits_of(), tmp_path / f"a{suffix}"
    logits[:300, 1:] = -np.inf  # which lose nothing
    message = r"^row [345]\d\d loses .* nats \(KL\) as u8_log_sqrt, and max_kl is 1e-09: .*exists='resume'"
    with pytest.raises(RowError, match=message), begun(path, max_kl=1e-9) as writer:
        writer.append(logits[:300])
        writer.commit()
        writer.append(logits[300:])
    with fostore.open(path) as store:
        assert not store.is_sealed
        assert len(store) == 300
    with begun(path, exists="resume") as writer:
        writer.append(logits[300:])
    assert fostore.open(path).is_sealed
    with begun(tmp_path / f"b{suffix}", max_kl=0.1) as writer:
        writer.append(logits)
    assert fostore.open(path).digest() == fostore.open(tmp_path / f"b{suffix}").digest()


def test_a_bound_holds_for_rows_of_an_earlier_run(tmp_path: Path) -> None:
    writer = begun(tmp_path / "a.zarr")
    writer.append(logits_of())
    writer.close()
    with pytest.raises(RowError, match="max_kl is 1e-09"):
        begun(tmp_path / "a.zarr", exists="resume", max_kl=1e-9).seal()


def test_a_bound_holds_for_rounded_numbers_too(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="as dense, and max_kl"):
        begun(tmp_path / "a.h5", encoding="dense", dtype="float16", max_kl=1e-12).append(
            logits_of()
        )
    with begun(tmp_path / "b.h5", encoding="dense", max_kl=1e-12) as writer:
        writer.append(logits_of())
    assert compared(tmp_path / "b.h5")["kl_max"] <= 1e-12


@pytest.mark.parametrize("bad", [-1, "small", math.nan])
def test_what_is_no_bound_is_refused_and_nothing_is_left(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="max_kl is"):
        begun(tmp_path / "a.zarr", max_kl=bad)
    assert not list(tmp_path.iterdir())


def test_errors_of_columns_are_read_piece_by_piece() -> None:
    """Of an encoding that says them, without holding more than some MiB of rows."""
    schema = make_schema(K, kind="logits", encoding={"name": "u8_log_sqrt"})
    asked: list[int] = []

    class Header:  # what `Watch` asks for
        fidelity, num_samples, sealed = None, 10**6, False

    Header.schema = schema  # type: ignore[attr-defined]

    def read(start: int, stop: int) -> list[Array]:
        asked.append(stop - start)
        return [np.zeros((stop - start, *c.shape), c.numpy_dtype) for c in schema.content]

    assert Watch(Header, None).of_all(10**6, read) is None  # type: ignore[arg-type]
    assert len(asked) == 1
    assert asked[0] * sum(c.row_bytes for c in schema.content) <= 8 << 20


# ------------------------------------------------------------------ top-k rows


TOPK = {"name": "topk", "k": 6}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("members", [None, 2])
def test_columns_say_of_all_rows_what_is_missing(
    suffix: str, rule: str, members: int | None, tmp_path: Path
) -> None:
    logits = logits_of(N * (members or 1)).reshape((N, K) if members is None else (N, members, K))
    spec = {**TOPK, "rule": rule, "tail_entropy": True}
    with begun(tmp_path / f"a{suffix}", encoding=spec, num_members=members) as writer:
        writer.append(logits)
    store = fostore.open(tmp_path / f"a{suffix}")
    columns = [store.column(column.name) for column in store.schema.content]
    errors = compare(logits, columns, store.schema)
    figures = Figures().add(np.arange(N), errors)
    said = (store.header.fidelity or {})["columns"]
    assert said["num_rows"] == N
    assert said["missing_mass_mean"] == pytest.approx(figures.missing_mass_mean, abs=1e-6)
    assert said["missing_mass_max"] == pytest.approx(figures.missing_mass_max, abs=1e-6)
    assert ("kl_mean" in said) is (rule != "coarse")
    if rule == "uniform":
        assert said["kl_mean"] == pytest.approx(figures.kl_mean, abs=1e-6)
        assert said["worst_row"] == figures.worst_row
    if rule in ("renorm", "zero"):
        assert said["kl_max"] == "inf"
        assert said["kl_max"] == compared(tmp_path / f"a{suffix}")["kl_max"]


def test_a_bound_holds_for_all_rows_of_which_columns_say_it(tmp_path: Path) -> None:
    """Also for those that are not among the ones compared."""
    logits = np.full((5000, K), -1000.0, np.float32)
    logits[:, 0] = 0  # nothing is missing
    out = next(i for i in range(5000) if i not in sampled(0, 5000, 5000, (K,))[0])
    logits[out] = 0
    with (
        pytest.raises(RowError, match=rf"^row {out} loses inf nats .* rule='renorm'"),
        begun(
            tmp_path / "a.zarr", num_samples=5000, encoding={**TOPK, "rule": "renorm"}, max_kl=1
        ) as writer,
    ):
        writer.append(logits)
    assert not fostore.open(tmp_path / "a.zarr").is_sealed


# ------------------------------------------------------------------ conversions, and what is shown


def test_a_conversion_compares_all_rows_and_a_copy_keeps_what_they_lost(tmp_path: Path) -> None:
    logits = logits_of(3000)
    with begun(tmp_path / "a.zarr", num_samples=3000, encoding="dense") as writer:
        writer.append(logits)
    options: Any = {"progress": False, "allow_lossy": True}
    receipt = fostore.convert(
        tmp_path / "a.zarr", tmp_path / "b.zarr", encoding={**TOPK, "rule": "uniform"}, **options
    )
    lost = compared(tmp_path / "b.zarr")
    assert lost["num_rows"] == 3000
    assert receipt.measured is not None
    assert receipt.measured["mean_kl"] == lost["kl_mean"]
    store = fostore.open(tmp_path / "b.zarr")
    columns = [store.column(column.name) for column in store.schema.content]
    exact = Figures().add(np.arange(3000), compare(logits, columns, store.schema)).to_json()
    assert lost == pytest.approx(exact, rel=1e-5)
    fostore.convert(tmp_path / "b.zarr", tmp_path / "c.h5", progress=False)
    assert fostore.open(tmp_path / "c.h5").header.fidelity == store.header.fidelity
    fostore.convert(tmp_path / "b.zarr", tmp_path / "d.zarr", rows=slice(0, 50), progress=False)
    assert set(fostore.open(tmp_path / "d.zarr").header.fidelity or {}) == {"columns"}
    fostore.convert(
        tmp_path / "b.zarr", tmp_path / "e.zarr", encoding="dense", rule="uniform", **options
    )
    assert fostore.open(tmp_path / "e.zarr").header.fidelity is None


def test_a_user_encodes_looks_and_sets_a_bound_by_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fostore.cli import app

    def run(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        return result.exit_code, " ".join((result.stdout + result.stderr).split())

    with begun(tmp_path / "a.zarr", encoding="dense") as writer:
        writer.append(logits_of())
    command = ("convert", tmp_path / "a.zarr", tmp_path / "b.h5", "--encoding", "u8_log_sqrt")
    code, shown = run(*command)
    assert code != 0
    assert "encoding: dense became u8_log_sqrt" in shown
    code, shown = run(*command, "--allow-lossy", "--max-kl", "1e-7")
    assert code != 0
    assert "nats (KL) as u8_log_sqrt, and max_kl is 1e-07" in shown
    assert shown.endswith("Nothing is written")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    code, shown = run(*command, "--allow-lossy", "--max-kl", "1e-3")
    assert code == 0
    assert "mean_kl" in shown
    code, shown = run("info", tmp_path / "b.h5")
    assert "600 rows compared with what came: KL " in shown
    assert "no missing mass; no other argmax" in shown
    assert run("verify", tmp_path / "b.h5")[0] == 0
    facts = json.loads(CliRunner().invoke(app, ["info", str(tmp_path / "b.h5"), "--json"]).stdout)
    assert facts["fidelity"]["compared"]["num_rows"] == N


def test_a_card_and_a_report_say_what_was_lost(tmp_path: Path) -> None:
    from fostore.evaluate import report
    from test_publishing import published

    with begun(
        tmp_path / "a.zarr", encoding={**TOPK, "rule": "uniform"}, dtype="float16"
    ) as writer:
        writer.append(logits_of())
    published(tmp_path / "a.zarr", tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "- 600 rows compared with what came: KL " in card
    assert "- 600 rows read from the columns: missing mass " in card
    page = report(tmp_path / "a.zarr")
    assert "compared with what came" in page
    assert "read from the columns" in page
