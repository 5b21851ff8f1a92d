"""Several tasks, one answer: differences and ranks over all tasks. Pure functions of arrays.

Two questions that must not be mixed (both are asked of the same data):

- *these tasks*: the tasks are fixed, queries are sampled within each. Stratified: the difference is a weighted mean of
  the tasks' differences, tested by flipping signs of all queries' weighted differences.
- *new tasks*: the tasks are a sample too. The mean over tasks with Student's interval on T - 1 degrees of freedom,
  which keeps its coverage for few tasks where DerSimonian-Laird's does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iclkit.eval._stats import ALPHA, Estimate, difference_parts, sign_flip, student_interval, student_p
from iclkit.records import SeedScope

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Values a (S, Q) and b (S', Q) of one task's queries; the rest as for ``difference``."""

    a: Floats
    b: Floats
    scopes: tuple[SeedScope, SeedScope] = ("task", "task")
    shared_draw: bool = False


@dataclass(frozen=True, slots=True)
class PooledDifference:
    """The difference over these tasks: interval, p-value; ``error`` is its standard error."""

    value: float
    low: float
    high: float
    p: float
    error: float
    queries: int
    tasks: int


@dataclass(frozen=True, slots=True)
class NewTasks:
    """The mean difference over tasks as a sample of tasks: its interval and p-value, and the interval of one new task.

    ``tau`` is the standard deviation of true differences between tasks (DerSimonian & Laird, 1986).
    """

    value: float
    low: float
    high: float
    p: float
    next_low: float
    next_high: float
    tau: float
    tasks: int


def pooled_difference(
    pairs: Sequence[TaskPair], *, by: str = "query", alpha: float = ALPHA, key: int = 0
) -> PooledDifference:
    """The stratified difference over tasks. ValueError without tasks or for tasks of fewer than 2 queries.

    ``by``: ``query`` weighs each query alike (large tasks count for more), ``task`` each task.
    """
    if not pairs:
        raise ValueError("no task to pool")
    sizes = [p.a.shape[1] for p in pairs]
    weights = [n / sum(sizes) if by == "query" else 1 / len(pairs) for n in sizes]
    value, variance, variation, seeded, flips = 0.0, 0.0, 0.0, False, []
    for pair, n, weight in zip(pairs, sizes, weights, strict=True):
        d, seed, seed_variation = difference_parts(pair.a, pair.b, pair.scopes, pair.shared_draw)
        query = float(d.var(ddof=1)) / n
        value += weight * float(d.mean())
        variance += weight**2 * (query + seed)
        variation += weight**4 * (query**2 / (n - 1) + seed_variation)
        seeded |= seed > 0
        flips.append(d * (1 if by == "query" else math.lcm(*sizes) // n))
    lattice = math.lcm(*(len(p.a) * len(p.b) for p in pairs))
    p = sign_flip(np.concatenate(flips), lattice=lattice, key=key)
    df = variance**2 / variation if variation > 0 else math.inf
    error = math.sqrt(variance)
    if seeded:
        p = max(p, student_p(value / error, df))
    low, high = student_interval(value, error, df, alpha)
    return PooledDifference(value, low, high, p, error, sum(sizes), len(pairs))


def new_tasks(differences: Sequence[float], errors: Sequence[float], *, alpha: float = ALPHA) -> NewTasks | None:
    """What the differences (T,) of tasks with standard errors (T,) say of new tasks; None for fewer than three.

    The prediction interval takes tau from DerSimonian & Laird and its own variance from the modified Hartung-Knapp
    estimate (Roever, Knapp & Friede, 2015).
    """
    d, count = np.asarray(differences, dtype=np.float64), len(differences)
    if count < 3:
        return None
    mean, spread = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(count)
    low, high = student_interval(mean, spread, count - 1, alpha)
    p = student_p(mean / spread, count - 1) if spread > 0 else float(mean == 0)
    squares = np.maximum(np.asarray(errors, dtype=np.float64) ** 2, 1e-12)
    w = 1 / squares
    centre = float((w * d).sum() / w.sum())
    q = float((w * (d - centre) ** 2).sum())
    tau2 = max(0.0, (q - count + 1) / float(w.sum() - (w**2).sum() / w.sum()))
    w = 1 / (squares + tau2)
    centre = float((w * d).sum() / w.sum())
    inflation = max(1.0, float((w * (d - centre) ** 2).sum()) / (count - 1))
    next_low, next_high = student_interval(centre, math.sqrt(tau2 + inflation / float(w.sum())), count - 1, alpha)
    return NewTasks(mean, low, high, p, next_low, next_high, math.sqrt(tau2), count)


def average_ranks(figures: Floats) -> Floats:
    """Mean rank (lines,) over tasks of figures (lines, tasks), 1 for the highest; equal figures share their ranks."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-figures, axis=0).mean(axis=1), dtype=np.float64)


def rank_estimates(
    values: Sequence[Sequence[Floats]], *, draws: int = 10_000, alpha: float = ALPHA, key: int = 0
) -> list[Estimate]:
    """The average rank of each line with its interval, queries drawn anew within each task.

    values: per task a list of (S, Q) arrays, one per line in the same order. A description: which lines differ is for
    pairwise tests to say.
    """
    means = [np.array([x.mean(axis=0) for x in task]) for task in values]  # (lines, Q) each
    whole = average_ranks(np.array([m.mean(axis=1) for m in means]).T)
    drawn = np.empty((draws, len(whole), len(means)))
    for t, m in enumerate(means):
        rng = np.random.default_rng([key, t, m.shape[1]])
        for start in range(0, draws, 500):
            some = min(500, draws - start)
            weights = rng.multinomial(m.shape[1], np.full(m.shape[1], 1 / m.shape[1]), size=some) / m.shape[1]
            drawn[start : start + some, :, t] = weights @ m.T
    from scipy.stats import rankdata

    ranks = rankdata(-drawn, axis=1).mean(axis=2)  # (draws, lines)
    low, high = np.quantile(ranks, [alpha / 2, 1 - alpha / 2], axis=0)
    return [
        Estimate(float(r), min(float(r), float(a)), max(float(r), float(b)))
        for r, a, b in zip(whole, low, high, strict=True)
    ]
