"""A small pilot on the task's own train rows, and what it says one should do. The test rows are not looked at.

Each pilot query is a train row; the pool is all train rows but that one and its doubles. First zero-shot and random
demonstrations at growing k, then ways of choosing at the k where more shots stop helping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.datasets import Task, sample_rows
from iclkit.embed import Embedder
from iclkit.errors import NothingAnswered, UsageError
from iclkit.eval._bench import Bench, make_bench, pool_bench
from iclkit.eval._evaluate import cautions, evaluate
from iclkit.eval._metrics import METRICS
from iclkit.eval._multiple import holm
from iclkit.eval._stats import ALPHA, Difference, Estimate, difference, estimate
from iclkit.lm import LM
from iclkit.pool import Pool, PoolView
from iclkit.predictors import Settings, Tools, make_predictor
from iclkit.prompts import Template
from iclkit.records import Run

Floats = NDArray[np.float64]
Values = Mapping[tuple[str, int], Floats]
"""Values (1, queries) by selector and k; zero-shot is ("zero", 0)."""

SHOTS = (1, 4, 8, 16)
CHOSEN = ("balanced", "bm25", "knn")
MIN_QUERIES, MOST_QUERIES = 30, 400
HEADROOM = 0.10  # share of queries that some set got right and the best way wrong, from which training may pay
TRAIN_POOL = 300  # labeled examples below which a trained retriever has little to learn from


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison of the pilot, in words of figures: ``what`` against ``base``; ``p`` is Holm's over all of them."""

    what: str
    base: str
    diff: Difference
    p: float

    @property
    def verdict(self) -> str:
        """better, worse, or no difference shown."""
        if self.p > ALPHA:
            return "no difference shown"
        return "better" if self.diff.value > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Advice:
    """What the pilot says. ``choice`` is the way and ``k`` its shots (zero-shot: "zero" and 0).

    ``enough``: the k from which on more random shots were not shown to help. ``headroom``: share of queries that some
    set of demonstrations tried got right and the choice got wrong. ``reasons`` are sentences, the main one first.
    """

    choice: str
    k: int
    enough: int
    train: bool
    headroom: float
    figures: Mapping[tuple[str, int], Estimate]
    findings: tuple[Finding, ...]
    reasons: tuple[str, ...]
    queries: int


def pilot_bench(task: Task, queries: int, pool: Pool | PoolView | None = None, seed: int = 0) -> Bench:
    """Train rows as queries, drawn by seed; each is kept from seeing itself and its doubles."""
    bench = make_bench(task, pool, first=1)
    examples = [e for e in bench.view.examples if not task.labels or e.output in task.labels]
    return pool_bench(bench, sample_rows(examples, queries, seed=seed))


def advise(
    task: Task,
    lm: LM,
    *,
    embedder: Embedder | None = None,
    pool: Pool | PoolView | None = None,
    prompts: int = 1200,
    shots: Sequence[int] = SHOTS,
    template: Template | None = None,
    out: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Advice:
    """Run the pilot with at most ``prompts`` prompts and say what to do, with the evidence.

    A query that fails in one of the runs is left out of all. UsageError when ``prompts`` does not buy 30 queries, or
    for a metric of whole runs; NothingAnswered when no query is left.
    """
    metric = METRICS.get(task.metric)
    if metric.judge is None:
        raise UsageError(f"the pilot judges query by query, and {task.metric} does not")
    ways = [way for way in CHOSEN if (way != "balanced" or task.labels) and (way != "knn" or embedder is not None)]
    ladder = sorted({k for k in shots if k > 0})
    if not ladder:
        raise UsageError("give at least one number of shots above 0")
    per_query = 1 + len(ladder) + len(ways)
    queries = min(MOST_QUERIES, prompts // per_query)
    if queries < MIN_QUERIES:
        raise UsageError(
            f"{prompts} prompts are {queries} queries each asked {per_query} times, too few to tell anything; "
            f"give at least {MIN_QUERIES * per_query}"
        )
    bench = pilot_bench(task, queries, pool)
    ladder = [k for k in ladder if k < len(bench.view)] or [len(bench.view) - 1]
    runs: dict[tuple[str, int], Run] = {}
    tools = Tools(lm, embedder)

    def measure(selector: str, k: int) -> None:
        if say:
            say(f"{selector}, k = {k}")
        runs[selector, k] = evaluate(bench, make_predictor(selector, tools, Settings(k=k), template), out=out)

    def values() -> dict[tuple[str, int], Floats]:
        failed = {row.query_id: row.failure for run in runs.values() for row in run.rows if row.failure}
        if len(failed) == len(bench.queries):
            raise NothingAnswered(f"each of the pilot's {len(failed)} queries failed: {next(iter(failed.values()))}")
        return {
            key: np.array([[r.metrics[metric.name] for r in run.rows if r.query_id not in failed]])
            for key, run in runs.items()
        }

    # one seed each: random draws anew for every query, so that a second query tells more than a second seed
    measure("zero", 0)
    for k in ladder:
        measure("random", k)
    k = pilot_k(values(), bounded=metric.bounded)
    for way in ways:
        measure(way, k)
    found = decide(values(), pool_size=len(bench.view), bounded=metric.bounded)
    cautioned = [f"{_name(*key)}: {text}." for key, run in runs.items() for text in cautions([run])]
    return replace(found, reasons=(*found.reasons, *cautioned))


def pilot_k(values: Values, *, bounded: bool = True) -> int:
    """The k at which ways of choosing are tried: where random shots stop helping; 4 or so if they do not help."""
    ladder = sorted(k for way, k in values if way == "random")
    enough = _enough(values, _ladder_findings(values, bounded))
    return enough if enough else min((k for k in ladder if k >= 4), default=ladder[-1])


def decide(values: Values, *, pool_size: int, bounded: bool = True) -> Advice:
    """The advice that the pilot's values give; a pure function of them."""
    findings = _ladder_findings(values, bounded)
    chosen = [(way, k) for way, k in values if way not in ("zero", "random")]
    findings += [
        (_name(way, k), _name("random", k), difference(values[way, k], values["random", k], bounded=bounded))
        for way, k in chosen
    ]
    adjusted = holm([d.p for *_, d in findings])
    found = tuple(Finding(what, base, d, p) for (what, base, d), p in zip(findings, adjusted, strict=True))
    figures = {key: estimate(v, bounded=bounded) for key, v in values.items()}
    enough = _enough(values, findings, found)
    better = [
        (way, k) for way, k in chosen for f in found
        if (f.what, f.base) == (_name(way, k), _name("random", k)) and f.verdict == "better"
    ]  # fmt: skip
    plain = ("zero", 0) if enough == 0 else ("random", enough)
    choice = max(better, key=lambda key: figures[key].value, default=plain)
    if choice != plain and figures[choice].value < figures[plain].value:
        choice = plain
    right = np.mean(values[choice], axis=0)
    any_right = np.max([v.max(axis=0) for v in values.values()], axis=0)
    headroom = float(np.mean(any_right - right))
    learns = any(way in ("bm25", "knn") for way, _ in better)
    train = learns and headroom >= HEADROOM and pool_size >= TRAIN_POOL
    queries = next(iter(values.values())).shape[1]
    reasons = _reasons(choice, enough, train, learns, headroom, pool_size, values, figures, found)
    return Advice(*choice, enough, train, headroom, figures, found, tuple(reasons), queries)


def _name(way: str, k: int) -> str:
    return "zero-shot" if way == "zero" else f"{way} k = {k}"


def _shot_counts(values: Values) -> list[tuple[str, int]]:
    return sorted((key for key in values if key[0] in ("zero", "random")), key=lambda key: key[1])


def _ladder_findings(values: Values, bounded: bool) -> list[tuple[str, str, Difference]]:
    """Every step of the ladder against every lower one."""
    steps = _shot_counts(values)
    return [
        (_name(*high), _name(*low), difference(values[high], values[low], bounded=bounded))
        for i, low in enumerate(steps)
        for high in steps[i + 1 :]
    ]


def _enough(
    values: Values, findings: Sequence[tuple[str, str, Difference]], adjusted: Sequence[Finding] | None = None
) -> int:
    """The smallest k of the ladder that no larger one was shown to beat."""
    if adjusted is None:
        adjusted = [
            Finding(what, base, d, p)
            for (what, base, d), p in zip(findings, holm([d.p for *_, d in findings]), strict=True)
        ]
    steps = _shot_counts(values)
    for key in steps:
        higher = {_name(*other) for other in steps if other[1] > key[1]}
        if not any(f.base == _name(*key) and f.what in higher and f.verdict == "better" for f in adjusted):
            return key[1]
    return steps[-1][1]


def _reasons(
    choice: tuple[str, int],
    enough: int,
    train: bool,
    learns: bool,
    headroom: float,
    pool_size: int,
    values: Values,
    figures: Mapping[tuple[str, int], Estimate],
    found: Sequence[Finding],
) -> list[str]:
    def share(key: tuple[str, int]) -> str:
        e = figures[key]
        return f"{100 * e.value:.1f} % ({100 * e.low:.1f} … {100 * e.high:.1f})"

    def gain(d: Difference) -> str:
        return f"{100 * d.value:+.1f} points ({100 * d.low:+.1f} … {100 * d.high:+.1f})".replace("-", "−")

    way, k = choice
    by_pair = {(f.what, f.base): f for f in found}
    said = []
    if way == "zero":
        said.append(f"Zero-shot: {share(choice)}. No demonstrations tried were shown to do better.")
    elif way == "random":
        said.append(f"Random demonstrations, k = {k}: {share(choice)}; no way of choosing was shown to beat them.")
    else:
        f = by_pair[_name(way, k), _name("random", k)]
        kind = {"balanced": "Balance the labels", "bm25": "Similar demonstrations (bm25)"}.get(
            way, "Similar demonstrations (knn)"
        )
        said.append(f"{kind}, k = {k}: {share(choice)}, against random ones {gain(f.diff)}.")
    ladder = _shot_counts(values)
    top = ladder[-1]
    if enough == top[1] and len(ladder) > 1:
        f = by_pair[_name(*top), _name(*ladder[-2])]
        said.append(
            f"More random shots still helped up to k = {top[1]}, the most that was tried: {gain(f.diff)} over "
            f"{f.base}. Try more, if the context holds them."
        )
    elif enough < top[1]:
        own = ("zero", 0) if enough == 0 else ("random", enough)
        f = by_pair[_name(*top), _name(*own)]
        said.append(
            f"More random shots stop helping at k = {enough}: {f.what} differs from {f.base} by {gain(f.diff)}; a gain "
            f"of less than about {100 * f.diff.smallest_gain:.0f} points could have been missed."
        )
    for f in found:
        if f.verdict == "no difference shown" and not f.what.startswith(("random", "zero")):
            said.append(f"{f.what}: no difference to random shown, {gain(f.diff)}.")
        elif f.verdict == "worse" and not f.what.startswith("zero"):
            said.append(f"{f.what} did worse than {f.base}: {gain(f.diff)}.")
    rest = f"for {100 * headroom:.0f} % of the queries some set tried was right where this way was wrong"
    if train:
        said.append(
            f"Training a retriever may pay: likeness helps, the pool has {pool_size:,} examples, and {rest} (luck has "
            "its part in that)."
        )
    elif learns and headroom >= HEADROOM:
        said.append(f"Training a retriever needs more than the {pool_size:,} examples there are, although {rest}.")
    elif learns:
        said.append(f"Training a retriever has little to gain: only {rest}.")
    else:
        said.append(f"Training a retriever is not called for: likeness was not shown to help ({rest}).")
    return said
