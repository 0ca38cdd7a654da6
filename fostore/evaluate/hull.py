"""How far a distribution is from the convex hull of others: one linear program, through SciPy."""

from __future__ import annotations

import numpy as np

from fostore.errors import ArgumentError
from fostore.schema.row import Array


def distance(vertices: Array, target: Array) -> float:
    """The least, over mixtures of `vertices` (M, K), of the largest difference to `target` (K,).

    min s subject to |sum_m w_m v_mk - t_k| <= s for every class k, w >= 0, sum_m w_m = 1.

    Raises:
        ArgumentError: SciPy is not installed.
    """
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ArgumentError(
            "a convex hull needs SciPy: pip install 'fostore[evaluate]' (or scipy)"
        ) from error
    members = len(vertices)
    slack = np.full((len(target), 1), -1.0)
    found = linprog(
        np.append(np.zeros(members), 1.0),
        A_ub=np.block([[vertices.T, slack], [-vertices.T, slack]]),
        b_ub=np.concatenate([target, -target]),
        A_eq=np.append(np.ones(members), 0.0)[None],
        b_eq=[1.0],
        method="highs",
    )
    if found.status != 0:
        raise ArgumentError(f"the linear program of a convex hull was not solved: {found.message}")
    return float(found.fun)
