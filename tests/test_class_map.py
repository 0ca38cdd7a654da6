"""A teacher's classes as the student has them; the oracle merges the distributions themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fostore.encodings.class_map import ClassMap
from fostore.encodings.topk_rows import TopK
from fostore.errors import ArgumentError, RowError

K, N = 12, 5


def topk_of(logits: Any, k: int, rule: str) -> TopK:
    logits = np.asarray(logits, np.float64)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    values = np.take_along_axis(logits, ids, -1)
    rest = logits.copy()
    np.put_along_axis(rest, ids, -np.inf, -1)
    with np.errstate(divide="ignore"):
        residual = np.log(np.exp(rest).sum(-1))
    return TopK(values, ids.astype(np.uint16), residual, logits.shape[-1], rule)


def outcomes(topk: TopK, num_classes: int) -> Any:
    """Probabilities of all classes and of the rest, each class by what is listed for it."""
    weights = np.zeros((len(topk.values), num_classes + 1))
    for row, (values, ids) in enumerate(zip(topk.values, topk.ids, strict=True)):
        np.add.at(weights[row], ids.astype(int), np.exp(values.astype(float)))
    if topk.rule == "coarse":
        weights[:, -1] = np.exp(topk.residual.astype(float))
    return weights / weights.sum(-1, keepdims=True)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, K),
    st.integers(1, K),
    st.sampled_from(["renorm", "coarse"]),
)
def test_a_map_of_rows_is_the_map_of_their_distributions(
    seed: int, k: int, target: int, rule: str
) -> None:
    rng = np.random.default_rng(seed)
    topk = topk_of(rng.normal(size=(N, K)) * 3, k, rule)
    classes = rng.integers(0, target, K)
    before = outcomes(topk, K)
    expected = np.zeros((N, target + 1))
    for old, new in enumerate(classes):
        expected[:, new] += before[:, old]
    expected[:, -1] = before[:, -1]
    mapping = ClassMap(classes, target)
    kept = [set(ids.tolist()) for ids in topk.ids]
    open_ends = [
        any(classes[old] == classes[one] and one not in row for old in row for one in range(K))
        for row in kept
    ]
    if rule == "coarse" and any(open_ends):
        with pytest.raises(RowError, match=f"row {open_ends.index(True)} "):
            mapping(topk)
        return
    mapped = mapping(topk)
    assert np.allclose(outcomes(mapped, target), expected)
    assert (mapped.values[:, 1:] <= mapped.values[:, :-1]).all()
    assert mapped.num_classes == target


@pytest.mark.parametrize("rule", ["coarse", "uniform", "renorm", "zero"])
def test_a_permutation_is_exact_under_any_rule(rule: str) -> None:
    rng = np.random.default_rng(2)
    order = rng.permutation(K)
    topk = topk_of(rng.normal(size=(N, K)), 4, rule)
    mapped = ClassMap(order)(topk)
    assert np.array_equal(mapped.values, topk.values)
    assert np.array_equal(mapped.ids, order[topk.ids])
    assert mapped.rule == rule


def test_what_would_need_the_classes_of_the_rest_is_refused() -> None:
    topk = topk_of(np.arange(6.0)[None], 2, "uniform")
    merge = [0, 0, 1, 1, 2, 3]
    with pytest.raises(ArgumentError, match="uniform"):
        ClassMap(merge)(topk)
    with pytest.raises(RowError, match="rule='coarse'"):
        ClassMap([0, 1, 2, 3, -1, 4])(topk, "renorm")
    joined = ClassMap([0, 1, 2, 3, -1, 4])(topk, "coarse")
    assert np.isclose(np.exp(joined.residual[0]), np.exp(np.arange(5.0)).sum())
    with pytest.raises(ArgumentError, match="7 classes"):
        ClassMap(range(7))(topk)
    for wrong in ([0, 1, 9], [[0]], ["a"], [0.5]):
        with pytest.raises(ArgumentError, match="class_map"):
            ClassMap(wrong, 3)
