"""Published layouts of top-k teachers: files made here as their tools write them, and what of them comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import fostore
from fostore.conversion.sources import open_table
from fostore.errors import ArgumentError, FormatError, FostoreError, RowError, UnsafeError
from fostore.files import Hints
from fostore.interop.axolotl import to_axolotl

K, TOP, LENGTH = 300, 6, 7
RNG = np.random.default_rng(5)
LOGITS = (RNG.normal(size=(3 * LENGTH, K)) * 3).astype(np.float32)
LOGS = (LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))).astype(
    np.float32
)
IDS = np.argsort(-LOGS, axis=-1, kind="stable")[:, :TOP]
VALUES = np.take_along_axis(LOGS, IDS, -1)
SURE = {"num_classes": K}


def packed_bits(numbers: Any, bits: int) -> bytes:
    """Integers most significant bit first, filled up to whole bytes."""
    text = "".join(f"{int(number):0{bits}b}" for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


# ------------------------------------------------------------------ files as their tools write them


def write_tinyvit(folder: Path) -> dict[str, Any]:
    path = folder / f"logits_top{TOP}_epoch4"
    path.mkdir()
    for rank in range(3):
        rows = range(rank * LENGTH, (rank + 1) * LENGTH)
        (path / f"rank{rank}-keys.txt").write_text("".join(f"image_{row}\n" for row in rows))
        entries = [
            np.int32(row * 11).tobytes()
            + IDS[row].astype(np.int16).tobytes()
            + np.exp(VALUES[row]).astype(np.float16).tobytes()
            for row in rows
        ]
        (path / f"rank{rank}-values.bin").write_bytes(b"".join(entries))
    return {"source": path, "layout": SURE, "values": np.exp(VALUES).astype(np.float16)}


def write_fkd(folder: Path) -> dict[str, Any]:
    path = folder / "soft"
    for image in range(3):
        crops = slice(image * LENGTH, (image + 1) * LENGTH)
        labels = np.stack([IDS[crops], np.exp(VALUES[crops])], axis=1).astype(np.float16)
        file = path / f"n0{image % 2}" / f"im{image // 2}.tar"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([np.zeros((LENGTH, 4), np.float16), np.array([True] * LENGTH), labels], file)
    order = [*range(LENGTH), *range(2 * LENGTH, 3 * LENGTH), *range(LENGTH, 2 * LENGTH)]
    return {
        "source": path,
        "layout": SURE,
        "temperature": 2.0,
        "order": order,
        "values": np.exp(VALUES).astype(np.float16),
    }


def write_nemo(folder: Path) -> dict[str, Any]:
    path = folder / "nemo.jsonl"
    top = LOGITS.max(-1, keepdims=True)
    shifted = LOGITS - top
    lines = []
    for s in range(3):
        rows = slice(s * LENGTH, (s + 1) * LENGTH)
        level = np.log(np.exp(shifted[rows].astype(np.float64)).sum(-1))
        entry = {
            "tokens": list(range(s, s + LENGTH)),
            "labels": list(range(LENGTH)),
            "loss_mask": [0, 0] + [1] * (LENGTH - 3) + [0],
            "topk_logits": np.take_along_axis(shifted[rows], IDS[rows], -1).tolist(),
            "topk_token_ids": IDS[rows].tolist(),
            "log_sum_exp_logits": level.astype(np.float32).tolist(),
            "index": 9 - s,
        }
        lines.append(json.dumps(entry))
    path.write_text("\n".join(lines) + "\n")
    order = [s * LENGTH + t for s in range(3) for t in range(2, LENGTH - 1)]
    return {
        "source": path,
        "layout": {**SURE, "rows": "labelled"},
        "order": order,
        "values": np.take_along_axis(shifted, IDS, -1),
        "tokens": [s + t for s in range(3) for t in range(2, LENGTH - 1)],
    }


def write_axolotl(folder: Path, predicts: str = "same") -> dict[str, Any]:
    path = folder / "axolotl.jsonl"
    lines, order, tokens = [], [], []
    for s in range(3):
        at = s * LENGTH
        logs = [[-float("inf")] * TOP, *VALUES[at + 1 : at + LENGTH].tolist()]
        ids = [list(range(TOP)), *IDS[at + 1 : at + LENGTH].tolist()]
        mask = [[0] * TOP, *[[1] * TOP] * (LENGTH - 1)]
        entry = {
            "input_ids": list(range(s, s + LENGTH)),
            "labels": [-100] * LENGTH,
            "target_logprobs": logs,
            "target_token_ids": ids,
            "target_mask": mask,
        }
        lines.append(json.dumps(entry))
        order += range(at + 1, at + LENGTH)
        shift = 1 if predicts == "same" else 0
        tokens += [s + t - shift for t in range(1, LENGTH)]
    path.write_text("\n".join(lines) + "\n")
    return {
        "source": path,
        "layout": {**SURE, "mass": "whole", "predicts": predicts},
        "temperature": 1.0,
        "order": order,
        "values": VALUES,
        "tokens": tokens,
    }


def write_distillkit(folder: Path, layout: str = "exact") -> dict[str, Any]:
    """All but the last token of each sequence, as vLLM gives them."""
    path, config = folder / "data_0.parquet", folder / "compression.yaml"
    bits = (K - 1).bit_length()
    packing = {
        "d": K, "k": TOP, "exact_k": TOP, "exact_dtype": "float32", "polynomial_terms": None,
        "residual_bins": [], "delta_encoding": False,
    }  # fmt: skip
    inner = pa.list_(pa.list_(pa.uint8()))
    rows = []
    for s in range(3):
        at = range(s * LENGTH, (s + 1) * LENGTH - 1)
        row: dict[str, Any] = {"input_ids": list(range(s, s + LENGTH))}
        if layout == "raw":
            row |= {"token_ids": IDS[at].tolist(), "top_values": VALUES[at].tolist()}
        else:
            row["compressed_logprobs"] = [list(VALUES[i].tobytes()) for i in at]
            row["bytepacked_indices"] = [list(packed_bits(IDS[i], bits)) for i in at]
        rows.append(row)
    fields = {"input_ids": pa.list_(pa.uint64())}
    if layout == "raw":
        fields |= {
            "token_ids": pa.list_(pa.list_(pa.int64())),
            "top_values": pa.list_(pa.list_(pa.float32())),
        }
    else:
        fields |= {"compressed_logprobs": inner, "bytepacked_indices": inner}
        config.write_text(yaml.safe_dump({"teacher": {"logprob_compressor": packing}}))
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
    return {
        "source": path,
        "layout": SURE if layout == "raw" else {},
        "config": None if layout == "raw" else config,
        "temperature": 1.0,
        "order": [s * LENGTH + t for s in range(3) for t in range(LENGTH - 1)],
        "values": VALUES,
        "tokens": [s + t for s in range(3) for t in range(LENGTH - 1)],
    }


WRITERS = {
    "tinyvit": write_tinyvit,
    "fkd": write_fkd,
    "nemo": write_nemo,
    "axolotl": write_axolotl,
    "distillkit": write_distillkit,
}


def hints(made: dict[str, Any], name: str, **others: Any) -> Hints:
    keys = ("layout", "config", "temperature")
    return Hints(format=name, **{**{k: made[k] for k in keys if k in made}, **others})


def columns(
    made: dict[str, Any], name: str, start: int = 0, rows: int = 4, **others: Any
) -> dict[str, Any]:
    table = open_table(made["source"], hints(made, name, **others))
    batches = list(table.batches(start, rows))
    assert all(len(batch[0]) <= rows for batch in batches)
    return {
        column.name: np.concatenate([batch[i] for batch in batches])
        for i, column in enumerate(table.schema.columns)
    }


# ------------------------------------------------------------------ what comes in


@pytest.mark.parametrize("name", WRITERS)
def test_the_listed_classes_and_numbers_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    made = WRITERS[name](tmp_path)
    order = made.get("order", list(range(len(LOGITS))))
    rows = columns(made, name)
    expected = made["values"][order].astype(rows["values"].dtype)
    # The order of equal numbers is ours: the smaller class first.
    for got, ids, numbers, classes in zip(
        rows["values"], rows["ids"], expected, IDS[order], strict=True
    ):
        assert sorted(zip(-got, ids, strict=True)) == sorted(zip(-numbers, classes, strict=True))
    if "tokens" in made:
        assert rows["token"].tolist() == made["tokens"]
        assert (np.diff(rows["sequence"]) >= 0).all()
        assert len(set(rows["sequence"].tolist())) == 3


@pytest.mark.parametrize("name", WRITERS)
def test_the_weight_of_the_others_is_what_is_missing(tmp_path: Path, name: str) -> None:
    made = WRITERS[name](tmp_path)
    order = made.get("order", list(range(len(LOGITS))))
    rows = columns(made, name)
    logs = LOGITS.astype(np.float64) - (LOGITS.max(-1, keepdims=True) if name == "nemo" else 0)
    if name != "nemo":
        logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    np.put_along_axis(logs, IDS, -np.inf, -1)
    true = np.log(np.exp(logs).sum(-1))[order]
    half = name in ("tinyvit", "fkd")
    assert np.abs(np.exp(rows["residual"]) - np.exp(true)).max() < (4e-3 if half else 1e-5)
    assert open_table(made["source"], hints(made, name)).schema.encoding["derived"] is True


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", [".zarr", ".jsonl"])
def test_a_conversion_ends_in_a_store_that_verifies(tmp_path: Path, name: str, suffix: str) -> None:
    made = WRITERS[name](tmp_path)
    given = {key: made[key] for key in ("layout", "config", "temperature") if key in made}
    path = tmp_path / f"out{suffix}"
    receipt = fostore.convert(made["source"], path, source_format=name, progress=False, **given)
    again = tmp_path / "again.zarr"
    if suffix != ".zarr":
        fostore.convert(path, again, progress=False)
    store = fostore.open(path if suffix == ".zarr" else again)
    assert store.verify() == []
    assert store.header.digest == receipt.destination_digest
    topk = store.take_topk([0, 1])
    assert topk.derived
    assert (topk.num_classes, topk.ids.shape) == (K, (2, TOP))
    assert store.schema.temperature == made.get("temperature", 1.0)


@pytest.mark.parametrize("name", WRITERS)
def test_rows_from_the_middle_are_those_of_the_whole(tmp_path: Path, name: str) -> None:
    made = WRITERS[name](tmp_path)
    whole, rest = columns(made, name), columns(made, name, start=9, rows=3)
    for key, column in whole.items():
        assert np.array_equal(column[9:], rest[key]), key


def test_keys_and_seeds_of_tinyvit_are_kept(tmp_path: Path) -> None:
    made = write_tinyvit(tmp_path)
    path = tmp_path / "t.zarr"
    fostore.convert(made["source"], path, source_format="tinyvit", layout=SURE, progress=False)
    store = fostore.open(path)
    ids: Any = store.ids
    views: Any = store.views
    assert ids.tolist() == [f"image_{row}" for row in range(len(LOGITS))]
    assert views.tolist() == [[row * 11, 4] for row in range(len(LOGITS))]


@pytest.mark.parametrize("predicts", ["next", "same"])
def test_a_list_belongs_to_the_token_that_it_follows(tmp_path: Path, predicts: str) -> None:
    made = write_axolotl(tmp_path, predicts)
    rows = columns(made, "axolotl")
    assert rows["token"].tolist() == made["tokens"]
    first = 0 if predicts == "same" else 1
    assert rows["position"].tolist() == 3 * list(range(first, first + LENGTH - 1))


def test_an_empty_sequence_has_its_number_and_no_row(tmp_path: Path) -> None:
    made = write_axolotl(tmp_path)
    whole = columns(made, "axolotl")
    lines = made["source"].read_text().splitlines()
    empty = {key: [] for key in json.loads(lines[0])}
    made["source"].write_text("\n".join([*lines[:2], json.dumps(empty), lines[2]]) + "\n")
    rows = columns(made, "axolotl")
    assert np.unique(rows["sequence"]).tolist() == [0, 1, 3]
    assert np.array_equal(rows["values"], whole["values"])


def test_a_place_that_axolotl_masks_has_no_weight(tmp_path: Path) -> None:
    made = write_axolotl(tmp_path)
    lines = [json.loads(line) for line in made["source"].read_text().splitlines()]
    whole = columns(made, "axolotl")
    for line in lines:
        line["target_mask"][1][0] = 0
    made["source"].write_text("\n".join(map(json.dumps, lines)) + "\n")
    row = columns(made, "axolotl")
    assert row["values"][0].tolist() == [*whole["values"][0, 1:].tolist(), -np.inf]
    assert row["ids"][0].tolist() == [*whole["ids"][0, 1:].tolist(), whole["ids"][0, 0]]


def test_raw_lists_of_distillkit_come_as_packed_ones(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    packed = columns(write_distillkit(tmp_path), "distillkit")
    raw = columns(write_distillkit(tmp_path / "raw", "raw"), "distillkit")
    for key, column in packed.items():
        assert np.array_equal(column, raw[key]), key


def test_a_curve_and_what_it_misses_are_added_up(tmp_path: Path) -> None:
    """Coefficients, scales and codes written by hand, bit by bit; the sums by hand as well."""
    from fostore.files._bits import Packing

    config = {
        "d": 9, "k": 6, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, "sqrt"],
        "term_dtype": "float32", "delta_encoding": True,
        "residual_bins": [
            {"scale_dtype": "float16", "element_bits": 3, "num_elements": 2},
            {"scale_dtype": "float32", "element_bits": 1, "num_elements": 2},
        ],
    }  # fmt: skip
    raw = (
        (np.float32(-0.5).view(np.uint32) >> 16).astype("<u2").tobytes()
        + np.array([-1.0, -0.25], "<f4").tobytes()
        + np.array([0.5], "<f2").tobytes() + packed_bits([1, 7], 3)
        + np.array([0.125], "<f4").tobytes() + packed_bits([0, 1], 1)
    )  # fmt: skip
    curve = -1.0 - 0.25 * np.sqrt(np.arange(5.0))
    curve[:2] += 0.5 * (np.array([1, 7]) - 4)
    curve[2:4] += 0.125 * np.array([-1, 1])
    expected = np.cumsum([-0.5, *curve])
    packing = Packing.of(config, "here")
    got = packing.decode(np.frombuffer(raw, np.uint8)[None], "here")
    assert np.allclose(got[0], expected, rtol=1e-6)
    assert packing.index_bits == 4
    for wrong in (raw[:-1], raw + b"\0"):
        with pytest.raises(FormatError, match="configuration"):
            packing.decode(np.frombuffer(wrong, np.uint8)[None], "here")


# ------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_layout_leaves_open_is_asked_for(tmp_path: Path, name: str) -> None:
    made = WRITERS[name](tmp_path)
    for key in made["layout"]:
        layout = {k: v for k, v in made["layout"].items() if k != key}
        with pytest.raises(ArgumentError, match=f"--layout {key}="):
            open_table(made["source"], hints(made, name, layout=layout))
    if "temperature" in made:
        with pytest.raises(ArgumentError, match="--temperature"):
            open_table(made["source"], hints(made, name, temperature=None))
    if made.get("config"):
        with pytest.raises(ArgumentError, match="--config"):
            open_table(made["source"], hints(made, name, config=None))
    with pytest.raises(ArgumentError, match="no effect"):
        open_table(made["source"], hints(made, name, layout={**made["layout"], "vocabulary": 3}))
    with pytest.raises(ArgumentError, match="expected"):
        open_table(made["source"], hints(made, name, layout={**made["layout"], "rule": "guess"}))


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"distillkit"}))
def test_a_class_beyond_the_number_that_is_given_is_refused(tmp_path: Path, name: str) -> None:
    made = WRITERS[name](tmp_path)
    layout = {**made["layout"], "num_classes": int(IDS.max())}
    with pytest.raises(RowError, match="is num_classes right"):
        columns(made, name, layout=layout)


def test_nobody_knows_the_rest_of_what_was_renormalised(tmp_path: Path) -> None:
    made = write_axolotl(tmp_path)
    rows = []
    for line in made["source"].read_text().splitlines():
        entry = json.loads(line)
        logs = np.array(entry["target_logprobs"][1:])
        logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
        entry["target_logprobs"][1:] = logs.tolist()
        rows.append(json.dumps(entry))
    made["source"].write_text("\n".join(rows) + "\n")
    layout = {**made["layout"], "mass": "renormalised"}
    with pytest.raises(ArgumentError, match="renorm"):
        open_table(made["source"], hints(made, "axolotl", layout={**layout, "rule": "coarse"}))
    table = open_table(made["source"], hints(made, "axolotl", layout=layout))
    assert table.schema.encoding["rule"] == "renorm"
    assert np.isneginf(columns(made, "axolotl", layout=layout)["residual"]).all()
    # Said to be whole, the same numbers leave nothing, or less, for the others.
    with pytest.raises(RowError, match="rule=renorm"):
        columns(made, "axolotl")


def test_more_than_the_whole_refuses_coarse_and_takes_another_rule(tmp_path: Path) -> None:
    made = write_nemo(tmp_path)
    lines = [json.loads(line) for line in made["source"].read_text().splitlines()]
    for entry in lines:
        entry["log_sum_exp_logits"] = [0.0] * LENGTH  # as bfloat16 rounds that of a sure row
    made["source"].write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(RowError, match=r"row 0 lists weigh .* of the whole"):
        columns(made, "nemo")
    rows = columns(made, "nemo", layout={**made["layout"], "rule": "uniform"})
    assert np.isneginf(rows["residual"]).all()


def test_fewer_classes_may_be_taken_and_the_rest_grows(tmp_path: Path) -> None:
    made = write_nemo(tmp_path)
    rows = columns(made, "nemo", layout={**made["layout"], "k": 2})
    whole = columns(made, "nemo")
    assert rows["values"].shape[-1] == 2
    assert np.array_equal(rows["ids"], whole["ids"][:, :2])
    assert (rows["residual"] > whole["residual"]).all()
    with pytest.raises(ArgumentError, match="lists 6 classes"):
        columns(made, "nemo", layout={**made["layout"], "k": 9})


# ------------------------------------------------------------------ what is refused


def cut_tinyvit(made: dict[str, Any]) -> None:
    file = made["source"] / "rank1-values.bin"
    file.write_bytes(file.read_bytes()[:-3])


def code_in_fkd(made: dict[str, Any]) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return print, ("run",)

    torch.save([np.zeros(2), Runs(), np.zeros((2, 2, 3))], next(made["source"].rglob("*.tar")))


def ragged_nemo(made: dict[str, Any]) -> None:
    entry = json.loads(made["source"].read_text().splitlines()[0])
    entry["topk_logits"][2] = entry["topk_logits"][2][:-1]
    made["source"].write_text(json.dumps(entry) + "\n")


def short_sums_of_nemo(made: dict[str, Any]) -> None:
    entry = json.loads(made["source"].read_text().splitlines()[0])
    entry["log_sum_exp_logits"] = entry["log_sum_exp_logits"][:-2]
    made["source"].write_text(json.dumps(entry) + "\n")


def long_axolotl(made: dict[str, Any]) -> None:
    entry = json.loads(made["source"].read_text().splitlines()[0])
    entry["input_ids"] = entry["input_ids"][:-2]
    made["source"].write_text(json.dumps(entry) + "\n")


def other_config(made: dict[str, Any]) -> None:
    config = yaml.safe_load(made["config"].read_text())
    config["teacher"]["logprob_compressor"]["exact_dtype"] = "float16"
    made["config"].write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tinyvit", cut_tinyvit),
        ("fkd", code_in_fkd),
        ("nemo", ragged_nemo),
        ("nemo", short_sums_of_nemo),
        ("axolotl", long_axolotl),
        ("distillkit", other_config),
    ],
)
def test_a_damaged_source_is_refused_by_name(tmp_path: Path, name: str, damage: Any) -> None:
    made = WRITERS[name](tmp_path)
    damage(made)
    given = {key: made[key] for key in ("layout", "config", "temperature") if key in made}
    with pytest.raises(FostoreError) as caught:
        fostore.convert(
            made["source"], tmp_path / "o.zarr", source_format=name, progress=False, **given
        )
    assert isinstance(caught.value, (FormatError, UnsafeError))
    assert tmp_path.name in str(caught.value) or "compression.yaml" in str(caught.value)
    assert not (tmp_path / "o.zarr").exists()


def test_a_class_twice_in_a_row_is_refused(tmp_path: Path) -> None:
    made = write_axolotl(tmp_path)
    entry = json.loads(made["source"].read_text().splitlines()[0])
    entry["target_token_ids"][3][1] = entry["target_token_ids"][3][0]
    made["source"].write_text(json.dumps(entry) + "\n")
    with pytest.raises(RowError, match="twice"):
        columns(made, "axolotl")


def test_a_token_outside_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    made = write_nemo(tmp_path)
    entry = json.loads(made["source"].read_text().splitlines()[0])
    entry["tokens"][2] = made["layout"]["num_classes"]
    made["source"].write_text(json.dumps(entry) + "\n")
    with pytest.raises(RowError, match="the token of row 0"):
        fostore.convert(
            made["source"],
            tmp_path / "o.zarr",
            source_format="nemo",
            layout=made["layout"],
            progress=False,
        )
    assert not (tmp_path / "o.zarr").exists()


def test_labels_in_an_archive_that_is_unsafe_are_refused_as_that(tmp_path: Path) -> None:
    made = write_fkd(tmp_path)
    file = sorted(made["source"].rglob("*.tar"))[0]  # which is read at once
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of a member that is encrypted
    file.write_bytes(content)
    with pytest.raises(UnsafeError, match="is encrypted"):
        open_table(made["source"], Hints(format="fkd", layout=made["layout"], temperature=2.0))


def test_classes_that_halves_cannot_number_are_refused(tmp_path: Path) -> None:
    labels = np.array([[[4096, 1], [0.5, 0.25]]], np.float16)
    file = tmp_path / "soft" / "n" / "a.tar"
    file.parent.mkdir(parents=True)
    torch.save([np.zeros((1, 4)), np.array([False]), labels], file)
    with pytest.raises(FormatError, match="keeps exactly"):
        open_table(
            tmp_path / "soft", Hints(format="fkd", layout={"num_classes": 9000}, temperature=1.0)
        )


# ------------------------------------------------------------------ what goes out


def captured(folder: Path) -> fostore.Store:
    """A store of token rows: what DistillKit captured."""
    made = write_distillkit(folder)
    path = folder / "t.zarr"
    given = {key: made[key] for key in ("layout", "config", "temperature")}
    fostore.convert(made["source"], path, source_format="distillkit", progress=False, **given)
    return fostore.open(path)


def test_axolotl_gets_what_the_teacher_gave(tmp_path: Path) -> None:
    store = captured(tmp_path)
    path = to_axolotl(store, tmp_path / "out.jsonl", progress=False)
    again = columns(
        {
            "source": path,
            "layout": {**SURE, "mass": "whole", "predicts": "next"},
            "temperature": 1.0,
        },
        "axolotl",
    )
    topk = store.take_topk(store.positions)
    assert np.array_equal(again["ids"], topk.ids)
    assert np.allclose(again["values"], topk.values, atol=1e-6)
    assert np.array_equal(again["token"], store.take_column("token", store.positions))
    assert np.array_equal(again["sequence"], store.take_column("sequence", store.positions))
    first = json.loads(path.read_text().splitlines()[0])
    assert first["labels"] == first["input_ids"]
    one = to_axolotl(store, tmp_path / "one.jsonl", normalised=True, progress=False)
    logs = json.loads(one.read_text().splitlines()[0])["target_logprobs"]
    assert np.allclose(np.exp(logs).sum(-1), 1)


def test_axolotl_gets_no_other_rows(tmp_path: Path) -> None:
    made = write_axolotl(tmp_path)
    given = {key: made[key] for key in ("layout", "temperature")}
    fostore.convert(
        made["source"], tmp_path / "l.zarr", source_format="axolotl", progress=False, **given
    )
    with pytest.raises(ArgumentError, match="labelled"):
        to_axolotl(tmp_path / "l.zarr", tmp_path / "o.jsonl")
    fostore.convert(write_tinyvit(tmp_path)["source"], tmp_path / "i.zarr", source_format="tinyvit",
                    layout=SURE, progress=False)  # fmt: skip
    with pytest.raises(ArgumentError, match="no sealed store of token rows"):
        to_axolotl(tmp_path / "i.zarr", tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_lists_in_parquet_are_read_by_others_and_come_back(tmp_path: Path) -> None:
    store = captured(tmp_path)
    path = tmp_path / "t.parquet"
    fostore.convert(store, path, progress=False)
    topk = store.take_topk(store.positions)
    rows = duckdb.sql(f"select \"values\", ids, token, sequence from '{path}'").fetchall()
    assert np.array_equal(np.array([row[0] for row in rows], np.float32), topk.values)
    assert np.array_equal(np.array([row[1] for row in rows]), topk.ids)
    dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(np.array(dataset["ids"]), topk.ids)
    assert dataset["token"] == [row[2] for row in rows]
    receipt = fostore.convert(path, tmp_path / "back.zarr", progress=False)
    assert receipt.destination_digest == store.header.digest
