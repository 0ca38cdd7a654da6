"""`fostore stats` and `fostore compare`: tables, JSON, plots, exit codes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fostore
from command import Cli
from fostore import evaluate
from support import probs

N = 60
NAMES = ["setosa", "versicolor", "virginica"]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fast_disk: None,
) -> Cli:
    """In a folder with two stores, one of ensembles, and labels."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {
        "a.zarr": probs(N),
        "b.h5": probs(N, seed=1),
        "both.zarr": np.stack([probs(N), probs(N, seed=1)], axis=1),
        "wide.zarr": probs(N, 30),
    }.items():
        members = rows.shape[1] if rows.ndim == 3 else None
        names = NAMES if name == "a.zarr" else None
        with fostore.create(
            name, num_samples=N, num_classes=rows.shape[-1], num_members=members, class_names=names
        ) as writer:
            writer.append(rows)
    np.save("y.npy", np.arange(N) % 3)
    return Cli(capsys)


def numbers(line: str) -> list[float]:
    return [float(text) for text in re.findall(r"(?<![\w.])-?\d+\.?\d*(?![\w.])", line)]


def test_stats_print_a_table_of_uncertainties_and_classes(run: Cli) -> None:
    result = run("stats", "a.zarr")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "a.zarr: 60 samples, 3 classes"
    assert "at most ln 3 = 1.099 nats." in result.out
    entropy = evaluate.entropy("a.zarr")
    (line,) = [line for line in lines if line.startswith("  entropy, nats ")]
    expected = [entropy.mean(), entropy.std(), entropy.min(), entropy.max()]
    assert numbers(line) == pytest.approx(expected, rel=1e-3)
    assert [line.split()[0] for line in lines[-3:]] == NAMES
    assert "accuracy" not in result.out


def test_stats_of_labels_print_metrics_and_the_reliability_table(run: Cli) -> None:
    result = run("stats", "a.zarr", "--labels", "y.npy", "--bins", "5")
    expected = evaluate.label_metrics("a.zarr", "y.npy", bins=5)
    assert re.search(rf"^  accuracy +{expected.accuracy:.4g}$", result.out, re.M)
    assert re.search(rf"^  ECE +{expected.ece:.4g}$", result.out, re.M)
    assert result.out.endswith(f"\n{expected.reliability.grid().text()}\n")


def test_stats_of_an_ensemble_part_the_uncertainty(run: Cli) -> None:
    result = run("stats", "both.zarr")
    assert re.search(r"^  total, .*\n  aleatoric, .*\n  epistemic, ", result.out, re.M)
    assert "what they disagree about" in result.out
    assert "60 samples, 3 classes, 2 members" in result.out


def test_stats_show_the_most_predicted_of_many_classes(run: Cli) -> None:
    result = run("stats", "wide.zarr")
    assert "and 20 more, see --json" in result.out
    assert len(result.out.splitlines()) < 25


def test_stats_as_json_hold_everything(run: Cli) -> None:
    found = json.loads(run("stats", "a.zarr", "--labels", "y.npy", "--json").out)
    assert found["entropy"]["mean"] == pytest.approx(evaluate.entropy("a.zarr").mean())
    assert found["labels"]["ece"] == evaluate.ece("a.zarr", "y.npy")
    assert (found["class_names"], sum(found["predicted"])) == (NAMES, N)
    assert sum(b["count"] for b in found["labels"]["reliability"]["bins"]) == N


def test_small_differences_are_shown_with_their_digits(run: Cli) -> None:
    rows = probs(N).astype(np.float64)
    np.save("near.npy", rows * (1 + 1e-8 * np.random.default_rng(0).random(rows.shape)))
    np.save("exact.npy", rows)
    out = run("compare", "exact.npy", "near.npy").out
    (line,) = [line for line in out.splitlines() if line.startswith("  TV")]
    assert all(re.fullmatch(r"\d\.\d+e-(09|10|11)", cell) for cell in line.split()[1:5]), line
    assert re.search(r"Furthest apart, by TV: samples \d+ \(\d\.\d+e-09\)", out)
    np.save("rare.npy", np.tile([1 - 3e-7, 3e-7], (N, 1)))
    assert "3e-07" in run("stats", "rare.npy").out


def test_stats_read_any_file_that_convert_reads(run: Cli) -> None:
    np.save("plain.npy", probs(N))
    assert (
        run("stats", "plain.npy").out.splitlines()[2:5]
        == (run("stats", "a.zarr").out.splitlines()[2:5])
    )


def test_compare_prints_divergences_and_the_samples_that_differ_most(run: Cli) -> None:
    result = run("compare", "a.zarr", "b.h5")
    assert (result.code, result.err) == (0, "")
    far = evaluate.tv("a.zarr", "b.h5")
    assert f"Furthest apart, by TV: samples {int(far.argmax())} ({far.max():.4g})" in result.out
    (line,) = [line for line in result.out.splitlines() if line.startswith("  KL(A || B)")]
    assert numbers(line)[0] == pytest.approx(evaluate.kl("a.zarr", "b.h5").mean(), rel=1e-3)
    same = run("compare", "a.zarr", "a.zarr").out
    assert "Of 60 samples over 3 classes 0 have another top class." in same
    assert "Furthest" not in same


def test_compare_as_json_has_null_for_infinity(run: Cli) -> None:
    np.save("one.npy", np.float32([[1.0, 0.0], [0.5, 0.5]]))
    np.save("two.npy", np.float32([[0.0, 1.0], [0.5, 0.5]]))
    assert "KL(A || B) is infinite for 1 of them." in run("compare", "one.npy", "two.npy").out
    found = json.loads(run("compare", "one.npy", "two.npy", "--json").out)
    assert (found["kl"]["mean"], found["kl"]["num_infinite"]) == (None, 1)
    assert found["tv"]["mean"] == 0.5
    assert found["furthest"][0] == {"index": 0, "tv": 1.0}


def test_stores_that_cannot_be_compared_are_refused_in_one_line(run: Cli) -> None:
    with fostore.create("c.zarr", num_samples=N, num_classes=3, class_names=NAMES[::-1]) as writer:
        writer.append(probs(N))
    result = run("compare", "a.zarr", "c.zarr")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert "class 0 is 'setosa' in the one and 'virginica' in the other" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["stats", "nowhere.zarr"], 3, "no store at"),
        (["stats", "a.zarr", "--labels", "nowhere.npy"], 2, "labels cannot be read"),
        (["stats", "a.zarr", "--plot", "a.gif"], 2, "ends in one of"),
        (["stats", "a.zarr", "--bins", "9" * 50], 2, "expected an integer from 1 to 100,000"),
        (["compare", "a.zarr", "wide.zarr"], 2, "3 classes and wide.zarr has 30"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    run: Cli, arguments: list[str], code: int, message: str
) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1


# ------------------------------------------------------------------ plots


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_plot_is_drawn_to_a_file_and_the_same_again(run: Cli, suffix: str) -> None:
    command = ["stats", "a.zarr", "--labels", "y.npy", "--plot", f"a{suffix}"]
    result = run(*command)
    assert (result.code, result.err) == (0, f"drew a{suffix}\n")
    drawn = Path(f"a{suffix}").read_bytes()
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert drawn.startswith(start)
    run(*command)
    assert Path(f"a{suffix}").read_bytes() == drawn


def texts(path: str) -> str:
    """What is written on an SVG plot, from the comments that matplotlib leaves beside its glyphs."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", Path(path).read_text()))


def test_a_plot_of_three_classes_and_labels_has_all_three_panels(run: Cli) -> None:
    run("stats", "a.zarr", "--labels", "y.npy", "--plot", "a.svg")
    for text in ("Uncertainty", "Reliability", "Distributions", *NAMES, "coloured by label"):
        assert text in texts("a.svg")
    run("stats", "wide.zarr", "--plot", "wide.svg")
    assert "Reliability" not in texts("wide.svg")
    assert "Distributions" not in texts("wide.svg")


def test_a_comparison_is_drawn(run: Cli) -> None:
    assert run("compare", "a.zarr", "b.h5", "--plot", "c.svg").code == 0
    assert "total variation of each sample" in texts("c.svg")


def test_dollar_signs_and_underscores_in_names_are_drawn_as_they_are(run: Cli) -> None:
    for name in ("_money.zarr", "$_\\foo$.zarr"):
        with fostore.create(
            name, num_samples=N, num_classes=3, class_names=["$\\foo$", "_b", "$"]
        ) as writer:
            writer.append(probs(N))
        assert run("stats", name, "--plot", "a.svg").code == 0
    assert run("compare", "_money.zarr", "$_\\foo$.zarr", "--plot", "b.svg").code == 0
    assert "A: _money.zarr, mean" in Path("b.svg").read_text(encoding="utf-8")


def test_a_plot_into_no_folder_is_refused_before_any_row_is_read(run: Cli) -> None:
    result = run("stats", "a.zarr", "--plot", "nowhere/a.png")
    assert (result.code, result.out) == (2, "")
    assert "no such folder" in result.err


def test_of_classes_predicted_as_often_the_first_comes_first(run: Cli) -> None:
    np.save("uniform.npy", np.full((3, 12), 1 / 12))
    lines = run("stats", "uniform.npy").out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  class "))
    assert [line.split()[0] for line in lines[at + 1 : at + 11]] == [str(k) for k in range(10)]


def test_drawing_touches_no_setting_and_no_screen(run: Cli) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    run("stats", "a.zarr", "--plot", "a.png")
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or mpl.get_backend().lower() == "agg"


def test_a_plot_without_matplotlib_says_what_to_install_before_any_row_is_read(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("stats", "nowhere.zarr", "--plot", "a.png")
    assert (result.code, result.out) == (2, "")
    assert "pip install 'fostore[plot]'" in result.err
    assert not Path("a.png").exists()


@pytest.mark.parametrize("command", ["stats", "compare"])
def test_the_help_shows_examples(run: Cli, command: str) -> None:
    result = run(command, "--help")
    assert f"fostore {command} " in result.out.partition("Examples:")[2]
    assert "fostore[plot]" in result.out.replace("\n", "")
