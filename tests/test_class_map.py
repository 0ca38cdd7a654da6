"""A teacher's classes as the student has them; the oracle merges the distributions themselves."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fostore.jax
import fostore.torch
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
    for rule in ("coarse", "zero"):
        with pytest.raises(RowError, match="all 2 classes of the student"):
            ClassMap([-1, -1, -1, -1, 0, 1])(topk, rule)
    for wrong in ([0, 1, 9], [[0]], ["a"], [0.5]):
        with pytest.raises(ArgumentError, match="class_map"):
            ClassMap(wrong, 3)


def learned(framework: str, student: Any, topk: TopK) -> tuple[Any, Any]:
    """The loss of a student and its gradient."""
    if framework == "jax":
        with jax.enable_x64(True):
            return jax.value_and_grad(fostore.jax.topk_distillation_loss)(student, topk)
    logits = torch.tensor(student, requires_grad=True)
    loss = fostore.torch.topk_distillation_loss(logits, fostore.torch.as_topk(topk))
    loss.backward()
    return loss.item(), logits.grad


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(
    ("rule", "classes"),
    [
        ("renorm", [0, 0, 1, 1, 2, 2]),
        ("renorm", [0, 0, 0, 0, 1, 1]),
        ("zero", [0, 0, 1, 2, 3, 4]),
        ("coarse", [0, 0, 1, 2, 3, 4]),
        ("coarse", [0, 0, 1, 1, 2, 2]),
        ("coarse", [0, 1, -1, -1, 2, 3, 4]),
    ],
)
def test_a_student_learns_from_mapped_rows_what_their_distributions_say(
    framework: str, rule: str, classes: list[int]
) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(N, len(classes)))
    logits[:, :4] += 9  # both classes of a pair are kept
    topk, target = topk_of(logits, 4, rule), max(classes) + 1
    student = rng.normal(size=(N, target))
    p, kept = np.zeros((N, target)), np.zeros((N, target + 1), bool)
    for row, ids in enumerate(topk.ids.tolist()):
        for old in ids:
            p[row, classes[old]] += np.exp(logits[row, old]) if classes[old] >= 0 else 0
            kept[row, classes[old]] = True
    kept = kept[:, :target]
    whole = np.exp(logits).sum(-1, keepdims=True) if rule != "renorm" else p.sum(-1, keepdims=True)
    p /= whole

    def expected(logits: Any) -> Any:
        log_q = torch.log_softmax(logits, -1)
        given, is_kept = torch.tensor(p), torch.tensor(kept)
        rows = torch.where(is_kept, torch.xlogy(given, given) - given * log_q, 0).sum(-1)
        if rule == "coarse":
            left = 1 - given.sum(-1)
            others = log_q.masked_fill(is_kept, -torch.inf).logsumexp(-1)
            rows = rows + left * (left.log() - others)
        return rows.mean()

    mapped = ClassMap(classes)(topk)
    assert mapped.values.shape[-1] <= target
    oracle = torch.tensor(student, requires_grad=True)
    expected(oracle).backward()
    loss, slope = learned(framework, student, mapped)
    assert np.isclose(loss, expected(oracle).item())
    assert np.allclose(slope, oracle.grad)
