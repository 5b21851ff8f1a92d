"""How sure a figure is, and whether a difference is one. Pure functions of arrays: equal input, equal output.

Values come as x (S, Q): S seeds by Q queries of one metric. Queries are a sample of the task's queries. What a seed
stands for depends on the selector (``SeedScope``):

- ``query``: it draws anew for each query. The draws are independent given the query, so there is no seed part, and the
  noise of the draws is in the spread over queries.
- ``task``: it draws once for all queries. Seeds are a sample of the choices that could have been made, and the variance
  of a mean has two parts, from the two-way random-effects layout (Searle, Casella & McCulloch, Variance Components,
  1992):

      query part = MS_query / (S Q)
      seed part  = max(0, MS_seed - MS_residual) / (S Q)    not known from one seed

- ``none``: the seed makes no difference; one run stands for all.

The degrees of freedom are Satterthwaite's. A figure in [0, 1] has a Wilson interval with the effective sample size
p(1 - p) / variance; with one seed and right-or-wrong values that is exactly Wilson's. A difference is tested by
flipping signs of the per-query differences (with one seed each and right-or-wrong values: McNemar's exact test);
where there is a seed part, Student's test on both parts must agree as well. Its interval is Student's, adjusted as
Agresti & Min (2005) do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclkit.eval._multiple import holm
from iclkit.records import SeedScope, one_line

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
    """Mean difference of two selectors on the same queries: interval, p-value, and the smallest detectable effects.

    ``smallest_gain`` and ``smallest_drop`` are the true differences (both > 0) that would have been declared with a
    probability of 80 % at the level asked for; infinite where no possible difference would have been. ``queries`` is
    how many queries both have.
    """

    value: float
    low: float
    high: float
    p: float
    smallest_gain: float
    smallest_drop: float
    queries: int


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Mean of values (S, Q) and its variance, by queries and by seeds.

    ``variation`` is half the variance of that variance's own estimate, from which Satterthwaite's degrees of freedom
    come. ``seed_p`` is the p-value of "the seed makes no difference beyond the draws" (F test); 1 for one seed.
    """

    mean: float
    query: float
    seed: float
    variation: float
    seed_p: float = 1.0


def variance_components(x: Floats, scope: SeedScope = "task") -> VarianceComponents:
    """Variance components of the mean of x (S, Q). ValueError unless S >= 1 and Q >= 2.

    Only scope ``task`` has a seed part; the F test is made for ``query`` too, since it would show a wrong declaration.
    """
    seeds, queries = x.shape
    if seeds < 1 or queries < 2:
        raise ValueError(f"need at least 1 seed and 2 queries, got {seeds} and {queries}")
    mean, per_query = float(x.mean()), x.mean(axis=0)
    query = float(per_query.var(ddof=1)) / queries
    variation = query**2 / (queries - 1)
    if seeds == 1:
        return VarianceComponents(mean, query, 0.0, variation)
    per_seed = x.mean(axis=1)
    ms_seed = queries * float(per_seed.var(ddof=1))
    residual = x - per_query - per_seed[:, None] + mean
    ms_residual = float((residual**2).sum()) / ((seeds - 1) * (queries - 1))
    if ms_seed <= ms_residual * (1 + 1e-9):
        return VarianceComponents(mean, query, 0.0, variation)
    seed_p = _f_tail(ms_seed, ms_residual, seeds - 1, (seeds - 1) * (queries - 1))
    if scope != "task":
        return VarianceComponents(mean, query, 0.0, variation, seed_p)
    cells = seeds * queries
    variation += (ms_seed / cells) ** 2 / (seeds - 1) + (ms_residual / cells) ** 2 / ((seeds - 1) * (queries - 1))
    return VarianceComponents(mean, query, (ms_seed - ms_residual) / cells, variation, seed_p)


def _df(variance: float, variation: float) -> float:
    return variance * variance / variation if variation > 0 else math.inf


def estimate(x: Floats, *, bounded: bool = True, alpha: float = ALPHA, scope: SeedScope = "task") -> Estimate:
    """Mean of x (S, Q) with its interval for new queries and new seeds; see the top of this file.

    ``bounded``: values lie in [0, 1]. One query alone has the widest interval there is.
    """
    if x.size == 0:
        return Estimate(math.nan, math.nan, math.nan)
    if x.shape[1] < 2:
        return Estimate(float(x.mean()), 0.0 if bounded else -math.inf, 1.0 if bounded else math.inf)
    p = variance_components(x, scope)
    variance = p.query + p.seed
    df = _df(variance, p.variation)
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
    a: Floats,
    b: Floats,
    *,
    bounded: bool = True,
    alpha: float = ALPHA,
    scopes: tuple[SeedScope, SeedScope] = ("task", "task"),
    shared_draw: bool = False,
    key: int = 0,
) -> Difference:
    """a - b for values a (S, Q) and b (S', Q) of the same queries: interval, p-value, smallest detectable effects.

    ``scopes``: what the seeds of a and of b stand for. ``shared_draw``: seed s of a and of b made the same draw (the
    same selector under another order, template or calibration), so that only the seed part of a - b counts.
    ``key`` seeds the random signs, which are drawn only where the exact distribution is out of reach.
    """
    queries = a.shape[1]
    d = a.mean(axis=0) - b.mean(axis=0)
    value = float(d.mean()) if queries else math.nan
    if queries < 2:
        return Difference(value, -math.inf, math.inf, 1.0, math.inf, math.inf, queries)
    differences, seed, seed_variation = difference_parts(a, b, scopes, shared_draw)
    # Agresti & Min: half an observation more in each cell, so that no discordant pair is not taken for certainty
    extra = 2 if bounded else 0
    n = queries + extra
    middle = float(d.sum()) / n
    query = (float((d**2).sum()) + extra / 2 - n * middle**2) / (n - 1) / n
    variance = query + seed
    df = _df(variance, query**2 / (n - 1) + seed_variation)
    half = _t(alpha, df) * math.sqrt(variance)
    p = sign_flip(differences, lattice=len(a) * len(b), key=key)
    if seed > 0:
        p = max(p, _two_sided(middle / math.sqrt(variance), df))
    low, high = middle - half, middle + half
    if bounded:
        low, high = max(-1.0, low), min(1.0, high)
    gain, drop = smallest_effects(a, b, alpha=alpha, bounded=bounded, scopes=scopes, shared_draw=shared_draw)
    return Difference(value, min(low, value), max(high, value), p, gain, drop, queries)


def difference_parts(
    a: Floats, b: Floats, scopes: tuple[SeedScope, SeedScope], shared_draw: bool = False
) -> tuple[Floats, float, float]:
    """Per-query differences (Q,), exactly 0 where they are but for rounding; and the part of seeds in the variance of
    their mean, with the variation of its estimate (see ``VarianceComponents``)."""
    d = a.mean(axis=0) - b.mean(axis=0)
    noise = 1e-12 * max(float(np.abs(a).max()), float(np.abs(b).max()))
    if shared_draw and a.shape == b.shape and "task" in scopes:
        components = [variance_components(a - b, "task")]
    else:
        components = [variance_components(x, scope) for x, scope in zip((a, b), scopes, strict=True)]
    seeded = [c for c in components if c.seed > 0]
    variation = sum(c.variation - c.query**2 / (a.shape[1] - 1) for c in seeded)
    return np.where(np.abs(d) > noise, d, 0.0), sum(c.seed for c in seeded), variation


def smallest_effects(
    a: Floats,
    b: Floats,
    *,
    alpha: float = ALPHA,
    bounded: bool = True,
    scopes: tuple[SeedScope, SeedScope] = ("task", "task"),
    shared_draw: bool = False,
) -> tuple[float, float]:
    """The smallest true gain and drop of a against b that a test at ``alpha`` declares in 80 % of tries; both > 0.

    For values in [0, 1] the answers of a are changed until the true difference is the one asked for: a gain turns wrong
    answers right, a drop right answers wrong, each with the same probability. So the two sides differ, and what b
    leaves no room for cannot be detected: infinite. Otherwise the spread seen is taken for that of every difference.
    """
    queries = a.shape[1]
    if queries < 2:
        return math.inf, math.inf
    d, seed, seed_variation = difference_parts(a, b, scopes, shared_draw)
    query = float(d.var(ddof=1)) / queries
    df = _df(query + seed, query**2 / (queries - 1) + seed_variation) if seed else math.inf
    to_reject, to_reach = _t(alpha, df), _t(2 * (1 - POWER), df)
    if not bounded:
        # flipping signs takes the mean itself into the spread: least = reach * sqrt(variance + least^2 / queries)
        rest = 1 - (to_reject + to_reach) ** 2 / queries
        least = (to_reject + to_reach) * math.sqrt((query + seed) / rest) if rest > 0 else math.inf
        return least, least
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)

    def first(effects: Floats) -> float:
        """The size of the first of effects (m,) that is large enough for its own spread; infinite where none is."""
        up = effects >= float(d.mean())
        room = np.where(up, 1 - mean_a.mean(), mean_a.mean())
        share = np.clip(np.abs(effects - d.mean()) / np.maximum(room, 1e-12), 0.0, 1.0)
        # mean over queries of (changed answer - b)^2, where changed is a + share * step
        square = (d**2).mean() + np.where(
            up,
            2 * share * ((1 - mean_a) * d).mean() + share**2 * ((1 - mean_a) ** 2).mean(),
            -2 * share * (mean_a * d).mean() + share**2 * (mean_a**2).mean(),
        )
        square = square + share * (1 - share) * room / len(a)  # and the noise of which answers change
        spread = np.maximum(square - effects**2, 0.0)
        needed = to_reject * np.sqrt(square + queries * seed) + to_reach * np.sqrt(spread + queries * seed)
        enough = np.abs(effects) * math.sqrt(queries) >= needed
        return float(np.abs(effects[np.argmax(enough)])) if bool(enough.any()) else math.inf

    steps, base = np.arange(1, 1001) / 1000, float(mean_b.mean())
    return first(steps * (1 - base)) if base < 1 else math.inf, first(-steps * base) if base > 0 else math.inf


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


def rank_intervals(
    values: Sequence[Floats],
    *,
    bounded: bool = True,
    alpha: float = ALPHA,
    scopes: Sequence[SeedScope] | None = None,
) -> list[tuple[int, int]]:
    """For selectors with values (S_i, Q) of the same queries: the ranks, best 1, that the data leave open.

    All pairs are compared with Holm's correction; a rank starts after those shown better and ends before those shown
    worse, so that all intervals hold together (Mohamad, van Zwet & Goeman, 2021).
    """
    count = len(values)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    seeds = scopes or ["task"] * count
    differences = [
        difference(values[i], values[j], bounded=bounded, scopes=(seeds[i], seeds[j]), key=count) for i, j in pairs
    ]
    better, worse = [0] * count, [0] * count
    for (i, j), diff, p in zip(pairs, differences, holm([f.p for f in differences]), strict=True):
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
    cells, counts, labels_seen = _label_cells(outputs, golds, labels)
    rng = np.random.default_rng([key, len(golds), seeds])
    weights = rng.multinomial(len(golds), counts / counts.sum(), size=draws).astype(np.float64)  # (draws, cells)
    scores = np.stack([_macro_f1(cells[0], row, weights, labels_seen) for row in cells[1:]], axis=1)  # (draws, S)
    picked = rng.integers(0, seeds, size=(draws, seeds))
    means = np.take_along_axis(scores, picked, axis=1).mean(axis=1)
    whole = np.mean([_macro_f1(cells[0], row, counts[None].astype(np.float64), labels_seen)[0] for row in cells[1:]])
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Estimate(float(whole), min(float(low), float(whole)), max(float(high), float(whole)))


def macro_f1_difference(
    a: Sequence[Sequence[str]],
    b: Sequence[Sequence[str]],
    golds: Sequence[str],
    labels: Sequence[str] = (),
    *,
    scopes: tuple[SeedScope, SeedScope] = ("task", "task"),
    draws: int = 10_000,
    key: int = 0,
    alpha: float = ALPHA,
) -> Difference:
    """Macro-F1 of a less that of b, each the mean over its seeds: lists of S and S' lists of Q answers.

    Tested by paired approximate randomization: the answers of a query are swapped, all its seeds together, and the
    difference is taken anew; p is (1 + draws as large) / (1 + draws). The interval is a percentile interval from
    resampled queries, and from resampled seeds where they are a sample (``scopes``); then the normal limit of that
    distribution must agree as well. The smallest effects are those of the normal limit.
    """
    cells, counts, labels_seen = _label_cells([*a, *b], golds, labels)
    gold, of_a, of_b = cells[0], cells[1 : 1 + len(a)], cells[1 + len(a) :]
    rng, queries = np.random.default_rng([key, len(golds), len(a), len(b)]), len(golds)
    whole = counts[None].astype(np.float64)

    def scores(runs: NDArray[Any], weights: Floats) -> Floats:
        """Macro-F1 (draws, seeds) of runs (seeds, cells)."""
        return np.stack([_macro_f1(gold, run, weights, labels_seen) for run in runs], axis=1)

    value = float(scores(of_a, whole).mean() - scores(of_b, whole).mean())
    swaps = rng.binomial(counts, 0.5, size=(draws, len(counts))).astype(np.float64)
    kept_and_swapped, twice = np.concatenate([whole - swaps, swaps], axis=1), np.concatenate([gold, gold])
    flipped, pairs = np.zeros(draws), math.lcm(len(a), len(b))
    for i in range(pairs):  # every seed of a and of b in equally many pairs, so that their mean is the difference
        x, y = of_a[i % len(a)], of_b[i % len(b)]
        flipped += _macro_f1(twice, np.concatenate([x, y]), kept_and_swapped, labels_seen)
        flipped -= _macro_f1(twice, np.concatenate([y, x]), kept_and_swapped, labels_seen)
    p = (1 + int((np.abs(flipped / pairs) >= abs(value) - 1e-12).sum())) / (1 + draws)
    weights = rng.multinomial(queries, counts / queries, size=draws).astype(np.float64)
    resampled, sampled_seeds = np.zeros(draws), False
    for sign, runs, scope in ((1, of_a, scopes[0]), (-1, of_b, scopes[1])):
        drawn = scores(runs, weights)
        if scope == "task" and len(runs) > 1:
            sampled_seeds = True
            drawn = np.take_along_axis(drawn, rng.integers(0, len(runs), drawn.shape), axis=1)
        resampled += sign * drawn.mean(axis=1)
    error = float(resampled.std(ddof=1))
    if sampled_seeds and error > 0:
        p = max(p, _two_sided(value / error, math.inf))
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2])
    least = (_z(alpha) + _z(2 * (1 - POWER))) * error
    return Difference(value, min(float(low), value), max(float(high), value), p, least, least, queries)


def _label_cells(
    outputs: Sequence[Sequence[str]], golds: Sequence[str], labels: Sequence[str]
) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Queries that were answered alike in every run, as one cell: cells (1 + runs, n) of label numbers, the gold first;
    how many queries each holds; and the number of labels, which also stands for an answer that is none of them."""
    said = [[one_line(o) for o in run] for run in outputs]
    true = [one_line(g) for g in golds]
    names = sorted({*true, *(map(one_line, labels) if labels else (o for run in said for o in run))})
    index = {n: i for i, n in enumerate(names)}
    table = np.array([[index[g] for g in true], *([index.get(o, len(names)) for o in run] for run in said)])
    cells, counts = np.unique(table, axis=1, return_counts=True)
    return cells, counts, len(names)


def _macro_f1(gold: NDArray[Any], said: NDArray[Any], weights: Floats, labels: int) -> Floats:
    """Macro-F1 per row of weights (draws, cells) of ``labels`` labels; those absent from a draw do not count.

    The answer ``labels`` is none of them and counts as no class.
    """
    eye = np.eye(labels + 1)[:, :labels]
    true, claimed = weights @ eye[gold], weights @ eye[said]
    hits = weights @ (eye[gold] * (gold == said)[:, None])
    seen = (true + claimed) > 0
    f1 = np.divide(2 * hits, true + claimed, out=np.zeros_like(hits), where=seen)
    return np.asarray(f1.sum(axis=1) / np.maximum(seen.sum(axis=1), 1))


def student_interval(value: float, error: float, df: float, alpha: float = ALPHA) -> tuple[float, float]:
    """``value`` with a standard error of ``df`` degrees of freedom: the ends of its two-sided interval."""
    half = _t(alpha, df) * error
    return value - half, value + half


def student_p(quantile: float, df: float) -> float:
    """Two-sided p-value of a t-distributed quantile; of a normal one where df is infinite."""
    return _two_sided(quantile, df)


def _z(alpha: float) -> float:
    from scipy.stats import norm

    return float(norm.isf(alpha / 2))


def _t(alpha: float, df: float) -> float:
    from scipy.stats import t

    return _z(alpha) if math.isinf(df) else float(t.isf(alpha / 2, max(df, 1.0)))


def _f_tail(above: float, below: float, df_above: int, df_below: int) -> float:
    """P(F > above / below); 0 where nothing is below."""
    from scipy.stats import f

    return float(f.sf(above / below, df_above, df_below)) if below > 0 else 0.0


def _two_sided(quantile: float, df: float) -> float:
    from scipy.stats import norm, t

    return float(2 * (norm.sf(abs(quantile)) if math.isinf(df) else t.sf(abs(quantile), max(df, 1.0))))
