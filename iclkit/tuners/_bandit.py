"""The bandit's arithmetic: standardised features, transport costs, confidence and choice. Arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from iclkit.tuners import _net

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_REPLICAS = 160  # an assignment of so many rows is faster than the linear programme


def standardise(seen: FloatArray, x: FloatArray) -> FloatArray:
    """x (n, d) in units of the standard deviation of ``seen`` (m, d) about its mean; a constant feature becomes 0."""
    mean, spread = seen.mean(axis=0), seen.std(axis=0)
    flat = spread < 1e-9
    return np.where(flat, 0.0, (x - mean) / np.where(flat, 1.0, spread))


def principal_components(vectors: FloatArray, most: int) -> FloatArray:
    """(n, d'): coordinates of vectors (n, d) along their main directions, d' = min(most, rank).

    The sign of a direction makes its largest coordinate positive, so the result does not depend on the solver.
    """
    centred = np.asarray(vectors, dtype=np.float64) - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(most, int((s > 1e-9 * max(1.0, float(s[0]) if len(s) else 0.0)).sum()))
    made: FloatArray = u[:, :kept] * s[:kept]
    signs = np.sign(made[np.abs(made).argmax(axis=0), np.arange(kept)]) if kept else np.ones(0)
    return made * signs


def transports(costs: FloatArray) -> FloatArray:
    """(m,) least costs of moving uniform weights over k rows to uniform weights over v columns, costs (m, k, v): exact.

    The earth mover's distance (Kantorovich). Both sides are replicated to the least common multiple of k and v, which
    makes it an assignment; where that is large, it is solved as a linear programme.

    >>> transports(np.array([[[0.0, 1.0], [1.0, 0.0]]]))
    array([0.])
    """
    from scipy.optimize import linear_sum_assignment

    _, k, v = costs.shape
    size = math.lcm(k, v)
    if min(k, v) == 1:
        mean: FloatArray = costs.mean(axis=(1, 2))
        return mean
    if size > _REPLICAS:
        return np.array([_by_programme(each) for each in costs])
    wide = np.repeat(np.repeat(costs, size // k, axis=1), size // v, axis=2)
    return np.array([each[linear_sum_assignment(each)].sum() for each in wide]) / size


def _by_programme(costs: FloatArray) -> float:
    from scipy.optimize import linprog

    k, v = costs.shape
    leave = np.kron(np.eye(k), np.ones(v))
    arrive = np.kron(np.ones(k), np.eye(v))
    sums = np.concatenate([np.full(k, 1 / k), np.full(v, 1 / v)])
    solved = linprog(costs.ravel(), A_eq=np.vstack([leave, arrive]), b_eq=sums, method="highs")
    assert solved.success, solved.message
    return float(solved.fun)


def transport_bounds(costs: FloatArray) -> FloatArray:
    """(m,) never more than ``transports(costs)``, costs (m, k, v), and quick: one side's weights are left free.

    With the rows free every column takes its cheapest row. With the columns free every row takes its cheapest ones, as
    many as its weight fills.
    """
    _, k, v = costs.shape
    free_rows = costs.min(axis=1).mean(axis=1)
    share = np.clip(v / k - np.arange(v), 0.0, 1.0)  # of each of the cheapest columns, in columns' weights
    free_columns = (np.sort(costs, axis=2) @ share).mean(axis=1) * k / v
    bounds: FloatArray = np.maximum(free_rows, free_columns)
    return bounds


def ucb_widths(
    theta: FloatArray, sizes: Sequence[int], x: FloatArray, played: FloatArray, prior: float, nu: float
) -> FloatArray:
    """(n,) standard deviations sqrt(sum_p prior * nu * g_p^2 / U_p) of the network's outputs at x (n, d).

    U = prior + ``played`` (P,), the sum of the squared gradients of the arms that were played: with none it is
    sqrt(nu) * |g|. NeuralUCB (Zhou, Li & Gu 2020, arXiv 1911.04462) with the diagonal of its matrix.
    """
    return np.sqrt(prior * nu * _net.weighted_squares(theta, sizes, x, 1 / (prior + played)))


def acquisition(
    means: FloatArray, spreads: FloatArray, style: str, rng: np.random.Generator | None = None
) -> FloatArray:
    """(n,): ``ucb`` is mean + spread, ``ts`` a draw from the normal distribution of that mean and spread."""
    if style == "ts":
        assert rng is not None
        return rng.normal(means, spreads)
    return means + spreads


def distinct_lists(n: int, k: int, count: int, rng: np.random.Generator) -> IntArray:
    """(count, k) ordered lists of different rows below n, uniform; all lists there are, once, if that is no more."""
    if k <= n and math.perm(n, k) <= count:
        return np.array([*permutations(range(n), k)], dtype=np.int64).reshape(-1, k)
    return np.argsort(rng.random((count, n)), axis=1)[:, :k].astype(np.int64)
