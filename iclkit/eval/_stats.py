"""How sure a figure is, and whether a difference is one. Pure functions of arrays: equal input, equal output.

Values come as x (S, Q): S seeds by Q queries of one metric. Queries are a sample of the task's queries and seeds a
sample of the selector's choices, and a figure should hold for new ones of both. So the variance of a mean has two
parts, from the two-way random-effects layout (Searle, Casella & McCulloch, Variance Components, 1992):

    query part = MS_query / (S Q)                        also holds the noise of each query's own draw
    seed part  = max(0, MS_seed - MS_residual) / (S Q)   zero for one seed, and about zero where draws are per query

The degrees of freedom are Satterthwaite's. A figure in [0, 1] has a Wilson interval with the effective sample size
p(1 - p) / variance; with one seed and right-or-wrong values that is exactly Wilson's. A difference is tested by
flipping signs of the per-query differences (with one seed each and right-or-wrong values: McNemar's exact test);
where seeds differ by more than their draws explain, Student's test on both variance parts must agree as well. Its
interval is Student's, adjusted as Agresti & Min (2005) do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.records import one_line

Floats = NDArray[np.float64]

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean difference of two selectors on the same queries: interval, p-value, and the smallest effect seen for sure.

    ``least`` is the true difference that would have been declared with a probability of 80 % at level alpha; infinite
    where the queries are too few to show any. ``queries`` is how many queries both have.
    """

    value: float
    low: float
    high: float
    p: float
    least: float
    queries: int


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Mean of values (S, Q) and its variance, by queries and by seeds.

    ``wobble`` is half the variance of that variance's own estimate, from which Satterthwaite's degrees of freedom come.
    """

    mean: float
    query: float
    seed: float
    wobble: float


def parts(x: Floats) -> VarianceComponents:
    """Variance parts of the mean of x (S, Q). ValueError unless S >= 1 and Q >= 2."""
    seeds, queries = x.shape
    if seeds < 1 or queries < 2:
        raise ValueError(f"need at least 1 seed and 2 queries, got {seeds} and {queries}")
    mean, per_query = float(x.mean()), x.mean(axis=0)
    query = float(per_query.var(ddof=1)) / queries
    wobble = query**2 / (queries - 1)
    if seeds == 1:
        return VarianceComponents(mean, query, 0.0, wobble)
    per_seed = x.mean(axis=1)
    ms_seed = queries * float(per_seed.var(ddof=1))
    residual = x - per_query - per_seed[:, None] + mean
    ms_residual = float((residual**2).sum()) / ((seeds - 1) * (queries - 1))
    if ms_seed <= ms_residual * (1 + 1e-9):
        return VarianceComponents(mean, query, 0.0, wobble)
    cells = seeds * queries
    wobble += (ms_seed / cells) ** 2 / (seeds - 1) + (ms_residual / cells) ** 2 / ((seeds - 1) * (queries - 1))
    return VarianceComponents(mean, query, (ms_seed - ms_residual) / cells, wobble)


def _df(variance: float, wobble: float) -> float:
    return variance * variance / wobble if wobble > 0 else math.inf


def estimate(x: Floats, *, bounded: bool = True, alpha: float = ALPHA) -> Estimate:
    """Mean of x (S, Q) with its interval for new queries and new seeds; see the top of this file.

    ``bounded``: values lie in [0, 1]. One query alone has the widest interval there is.
    """
    if x.size == 0:
        return Estimate(math.nan, math.nan, math.nan)
    if x.shape[1] < 2:
        return Estimate(float(x.mean()), 0.0 if bounded else -math.inf, 1.0 if bounded else math.inf)
    p = parts(x)
    variance = p.query + p.seed
    df = _df(variance, p.wobble)
    if not bounded:
        half = _t(alpha, df) * math.sqrt(variance)
        return Estimate(p.mean, p.mean - half, p.mean + half)
    queries = x.shape[1]
    spread = p.mean * (1 - p.mean)
    if p.seed == 0 and bool(np.isin(x, (0.0, 1.0)).all()) and len(x) == 1:
        size, quantile = float(queries), _z(alpha)
    else:
        # all values equal: as many queries as were asked is the most that can be claimed
        size = spread / variance if variance > 1e-15 and spread > 1e-15 else float(queries)
        quantile = _t(alpha, df) if variance > 1e-15 else _z(alpha)
    return Estimate(p.mean, *wilson(p.mean, size, quantile))


def wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval (JASA 1927) of a share seen in ``size`` draws; stays in [0, 1].

    >>> [round(end, 4) for end in wilson(0.8, 100, 1.959964)]
    [0.7112, 0.8666]
    """
    share = min(max(share, 0.0), 1.0)
    q2 = quantile * quantile / size
    middle = (share + q2 / 2) / (1 + q2)
    half = quantile / (1 + q2) * math.sqrt(max(0.0, share * (1 - share) / size + q2 / (4 * size)))
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def difference(
    a: Floats, b: Floats, *, bounded: bool = True, alpha: float = ALPHA, comparisons: int = 1, key: int = 0
) -> Difference:
    """a - b for values a (S, Q) and b (S', Q) of the same queries: interval, p-value, smallest effect.

    ``comparisons`` is the number of comparisons the p-value will be corrected for; it enters ``least`` alone.
    ``key`` seeds the random signs, which are drawn only where the exact distribution is out of reach.
    """
    queries = a.shape[1]
    d = a.mean(axis=0) - b.mean(axis=0)
    value = float(d.mean()) if queries else math.nan
    if queries < 2:
        return Difference(value, -math.inf, math.inf, 1.0, math.inf, queries)
    seeded = [p for p in (parts(a), parts(b)) if p.seed > 0]
    seed = sum(p.seed for p in seeded)
    # Agresti & Min: half an observation more in each cell, so that no discordant pair is not taken for certainty
    extra = 2 if bounded else 0
    n = queries + extra
    middle = float(d.sum()) / n
    query = (float((d**2).sum()) + extra / 2 - n * middle**2) / (n - 1) / n
    variance = query + seed
    df = _df(variance, query**2 / (n - 1) + sum(p.wobble - p.query**2 / (queries - 1) for p in seeded))
    half = _t(alpha, df) * math.sqrt(variance)
    # flipping signs takes the mean itself into the spread: least = reach * sqrt(variance + least^2 / queries)
    reach = _t(alpha / comparisons, df) + _t(2 * (1 - POWER), df)
    rest = 1 - reach**2 / queries
    least = reach * math.sqrt(variance / rest) if rest > 0 else math.inf
    noise = 1e-12 * max(float(np.abs(a).max()), float(np.abs(b).max()))  # of means that are equal but for rounding
    p = sign_flip(np.where(np.abs(d) > noise, d, 0.0), lattice=len(a) * len(b), key=key)
    if seed > 0:
        p = max(p, _two_sided(middle / math.sqrt(variance), df))
    low, high = middle - half, middle + half
    if bounded:
        low, high = max(-1.0, low), min(1.0, high)
    return Difference(value, min(low, value), max(high, value), p, least, queries)


def sign_flip(d: Floats, *, lattice: int = 1, key: int = 0) -> float:
    """Two-sided p-value of mean(d) = 0 against random signs of d (n,).

    Exact where d * lattice are whole numbers (right-or-wrong values averaged over seeds), not too large, and for at
    most 14 non-zero values; else 9,999 draws, and the normal limit beyond 4,000 values. With values of -1, 0, 1 it is
    McNemar's exact test.
    """
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    steps = np.abs(d * lattice)
    if _few_steps(steps):
        sums, weights = _sign_flip_distribution(np.rint(steps).astype(np.int64))
        return min(1.0, float(weights[np.abs(sums) >= round(abs(float((d * lattice).sum())))].sum()))
    d = d / np.abs(d).max()  # so that what counts as a tie does not depend on the unit
    observed = abs(float(d.sum()))
    if d.size <= 14:
        signs = 1 - 2 * ((np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1)
        values, error = signs @ d, 1e-12 * d.size
    elif d.size <= 4000:
        rng = np.random.default_rng([key, d.size])
        bits = np.unpackbits(rng.integers(0, 256, (9999, (d.size + 7) // 8), dtype=np.uint8), axis=1)[:, : d.size]
        values = np.append(2 * (bits.astype(np.float32) @ d.astype(np.float32)).astype(np.float64) - d.sum(), observed)
        error = 1e-6 * max(1.0, observed)  # of sums in single precision
    else:
        return _two_sided(observed / math.sqrt(float((d**2).sum())), math.inf)
    return min(1.0, float((np.abs(values) >= observed - error).mean()))


_MOST_STEPS = 1 << 25  # of work for the exact distribution: sums times sizes, a few seconds


def _few_steps(steps: Floats) -> bool:
    """Whether sizes (n,) are whole numbers whose random sums can be counted."""
    total = float(steps.sum())
    if not total <= _MOST_STEPS or not bool((np.abs(steps - np.rint(steps)) <= 1e-6).all()):
        return False
    sizes = np.unique(np.rint(steps))
    return bool(sizes[0] > 0) and total * len(sizes) <= _MOST_STEPS


def _sign_flip_distribution(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """The distribution of a sum of ``sizes`` (n,) with random signs: (values, probabilities)."""
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    weights = np.ones(1)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        steps = np.zeros(2 * int(size) * int(count) + 1)
        steps[:: 2 * int(size)] = binom.pmf(np.arange(count + 1), count, 0.5)
        weights = steps if len(weights) == 1 else fftconvolve(weights, steps)
    weights = np.clip(weights, 0.0, None)
    top = int(sizes.sum())
    return np.arange(-top, top + 1), weights / weights.sum()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): declaring p <= alpha keeps the chance of any false one below alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def rank_intervals(values: Sequence[Floats], *, bounded: bool = True, alpha: float = ALPHA) -> list[tuple[int, int]]:
    """For selectors with values (S_i, Q) of the same queries: the ranks, best 1, that the data leave open.

    All pairs are compared with Holm's correction; a rank starts after those shown better and ends before those shown
    worse, so that all intervals hold together (Mohamad, van Zwet & Goeman, 2021).
    """
    count = len(values)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    found = [difference(values[i], values[j], bounded=bounded, key=count) for i, j in pairs]
    better, worse = [0] * count, [0] * count
    for (i, j), diff, p in zip(pairs, found, holm([f.p for f in found]), strict=True):
        if p <= alpha:
            up, down = (i, j) if diff.value > 0 else (j, i)
            better[down] += 1
            worse[up] += 1
    return [(1 + b, count - w) for b, w in zip(better, worse, strict=True)]


def bootstrap_macro_f1(
    outputs: Sequence[Sequence[str]],
    golds: Sequence[str],
    labels: Sequence[str] = (),
    *,
    draws: int = 1000,
    key: int = 0,
    alpha: float = ALPHA,
) -> Estimate:
    """Macro-F1, the mean over seeds, with a percentile interval from resampled queries and seeds.

    outputs: S lists of Q answers. ``labels`` as for the metric: without them every text that is seen is a class.
    Queries that were answered alike under every seed are drawn together, as counts.
    """
    seeds = len(outputs)
    said = [[one_line(o) for o in run] for run in outputs]
    true = [one_line(g) for g in golds]
    names = sorted({*true, *(map(one_line, labels) if labels else (o for run in said for o in run))})
    index = {n: i for i, n in enumerate(names)}
    none = len(names)  # an answer that is no label
    table = np.array([[index[g] for g in true], *([index.get(o, none) for o in run] for run in said)])  # (1 + S, Q)
    cells, counts = np.unique(table, axis=1, return_counts=True)
    rng = np.random.default_rng([key, table.shape[1], seeds])
    weights = rng.multinomial(table.shape[1], counts / counts.sum(), size=draws).astype(np.float64)  # (draws, cells)
    scores = np.stack([_macro_f1(cells[0], row, weights, len(names)) for row in cells[1:]], axis=1)  # (draws, S)
    picked = rng.integers(0, seeds, size=(draws, seeds))
    means = np.take_along_axis(scores, picked, axis=1).mean(axis=1)
    whole = np.mean([_macro_f1(cells[0], row, counts[None].astype(np.float64), len(names))[0] for row in cells[1:]])
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Estimate(float(whole), min(float(low), float(whole)), max(float(high), float(whole)))


def _macro_f1(gold: NDArray[Any], said: NDArray[Any], weights: Floats, labels: int) -> Floats:
    """Macro-F1 per row of weights (draws, cells); labels absent from golds and answers of a draw do not count.

    The answer ``labels`` is none of them and counts as no class.
    """
    eye = np.eye(labels + 1)[:, :labels]
    true, claimed = weights @ eye[gold], weights @ eye[said]
    hits = weights @ (eye[gold] * (gold == said)[:, None])
    seen = (true + claimed) > 0
    f1 = np.divide(2 * hits, true + claimed, out=np.zeros_like(hits), where=seen)
    return np.asarray(f1.sum(axis=1) / np.maximum(seen.sum(axis=1), 1))


def _z(alpha: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(alpha / 2))


def _t(alpha: float, df: float) -> float:
    from scipy.stats import t

    return _z(alpha) if math.isinf(df) else float(t.isf(alpha / 2, max(df, 1.0)))


def _two_sided(quantile: float, df: float) -> float:
    from scipy.stats import norm, t

    return float(2 * (norm.sf(abs(quantile)) if math.isinf(df) else t.sf(abs(quantile), max(df, 1.0))))
