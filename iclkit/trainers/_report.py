"""What a retriever is worth: its choices against random, BM25, the untrained embedder and the best there was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder
from iclkit.eval import Estimate, estimate
from iclkit.records import Example, Json
from iclkit.trainers._config import Source, sources
from iclkit.trainers._data import TaskData
from iclkit.trainers._feedback import right, value
from iclkit.trainers._method import Session, mined
from iclkit.trainers._sets import DRAWS, set_prompt

if TYPE_CHECKING:
    from iclkit.trainers._ledger import LabelScores

FloatArray = NDArray[np.float64]
Rows = tuple[int, ...]
FROM_CANDIDATES, FROM_POOL = "among the candidates", "from the whole pool"
_RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class SelectorSetup:
    """A selector by its spec, and the embedder it chooses with, if any."""

    selector: str
    embedder: Embedder | None = None


@dataclass(frozen=True, slots=True)
class StrategyResult:
    """One way of choosing demonstrations. ``gain``: mean value over that of random candidates, in nats, with its 95 %
    interval over queries; ``right``: share of right answers, None where answers are free."""

    name: str
    pool: str
    gain: Estimate
    right: Estimate | None


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task's ways of choosing ``shots`` demonstrations; ``captured``: the trained retriever's part of the head-room
    between random candidates and the best ones (the oracle), with its 95 % bootstrap interval; nan where there is no
    head-room."""

    task: str
    queries: int
    shots: int
    ways: tuple[StrategyResult, ...]
    captured: Estimate

    def as_dict(self) -> dict[str, Json]:
        """Plain numbers, for the card."""
        return asdict(self)


def report_on(
    s: Session, course: TaskData, choosers: Mapping[str, SelectorSetup], method: str, size: int
) -> TaskReport:
    """Let each chooser choose ``size`` demonstrations for the course's report queries, and have the LM score them.

    Among the candidates, which were mined as in training, all ways but the oracle choose without the LM. The oracle
    adds demonstrations greedily: each time the candidate that is best behind those it has. ``method`` names the chooser
    whose share of the head-room is reported.
    """
    queries = list(course.report)
    candidates = mined(s, course, queries)
    drawn = [_random_sets(s, q, own, size) for q, own in zip(queries, candidates, strict=True)]
    lucky = _tell(s, course, queries, drawn, f"{course.name}: report")
    best = _oracle(s, course, queries, candidates, size)
    kept = [n for n, own in enumerate(lucky) if best[n] is not None and any(own)]
    queries, candidates = [queries[n] for n in kept], [candidates[n] for n in kept]
    every = [[t for t in lucky[n] if t is not None] for n in kept]
    chance = np.array([np.mean([_worth(s, t) for t in own]) for own in every])
    oracle = [best[n] for n in kept]
    ways = [
        StrategyResult(
            "random", FROM_CANDIDATES, estimate(np.zeros((1, len(chance))), bounded=False), _mean_right(every)
        )
    ]
    captured = Estimate(float("nan"), float("nan"), float("nan"))
    rows = np.unique(np.concatenate([np.array(own, np.int64) for own in candidates])) if kept else course.rows
    for name, chooser in choosers.items():
        apart = [np.setdiff1d(rows, own).tolist() for own in candidates]
        told = _chosen(s, replace(course, rows=rows), queries, chooser, size, apart)
        ways.append(_way(s, name, FROM_CANDIDATES, told, chance))
        if name == method:
            there = [n for n, t in enumerate(told) if t is not None]
            gains = [np.array([_worth(s, some[n]) for n in there]) - chance[there] for some in (told, oracle)]
            captured = share(gains[0], gains[1], s.config.seed)
    ways.append(_way(s, "oracle", FROM_CANDIDATES, oracle, chance))
    for name, chooser in choosers.items():
        ways.append(_way(s, name, FROM_POOL, _chosen(s, course, queries, chooser, size), chance))
    return TaskReport(course.name, len(queries), size, tuple(ways), captured)


def prompts_of_report(s: Session, meant: Source) -> int:
    """At most how many prompts the report asks; ``meant``: the selector that is judged, with its demonstrations."""
    candidates, size = sum(source.count for source in sources(s.config.candidates)), meant.count
    choosers = 3 if meant.spec == "knn" else 4
    # one demonstration among the candidates is asked about once, whoever chooses it
    each = candidates + choosers if size == 1 else DRAWS + size * candidates + 2 * choosers
    return each * sum(len(course.report) for course in s.corpus.courses)


def share(gain: FloatArray, best: FloatArray, seed: int) -> Estimate:
    """mean(gain) / mean(best) over queries (q,) with a percentile bootstrap interval; nan without head-room."""
    if not len(best) or best.mean() <= 1e-9:
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(len(best), size=(_RESAMPLES, len(best)))
    below = best[draws].mean(1)
    ratios = gain[draws].mean(1)[below > 1e-9] / below[below > 1e-9]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(gain.mean() / best.mean()), float(low), float(high))


def _random_sets(s: Session, query: Example, candidates: Sequence[int], size: int) -> list[Rows]:
    """What chance would choose: each candidate once, or some sets of them."""
    if size == 1:
        return [(c,) for c in candidates]
    rng = s.rng("report", query.id, size)
    return [tuple(rng.choice(candidates, min(size, len(candidates)), replace=False).tolist()) for _ in range(DRAWS)]


def _oracle(
    s: Session, course: TaskData, queries: Sequence[Example], candidates: Sequence[Sequence[int]], size: int
) -> list[LabelScores | None]:
    """What the LM says of the best set that greedy search finds for each query; None where no prompt fits."""
    chosen: list[Rows] = [() for _ in queries]
    best: list[LabelScores | None] = [None for _ in queries]
    for step in range(1, size + 1):
        longer = [[(*some, c) for c in own if c not in some] for some, own in zip(chosen, candidates, strict=True)]
        title = f"{course.name}: report, oracle {step} of {size}"
        for n, answers in enumerate(_tell(s, course, queries, longer, title)):
            fit = [(rows, t) for rows, t in zip(longer[n], answers, strict=True) if t is not None]
            if fit:
                chosen[n], best[n] = max(fit, key=lambda rt: _worth(s, rt[1]))
    return best


def _chosen(
    s: Session,
    course: TaskData,
    queries: Sequence[Example],
    chooser: SelectorSetup,
    size: int,
    apart: Sequence[Sequence[int]] | None = None,
) -> list[LabelScores | None]:
    """What the LM says of a chooser's demonstrations for each query."""
    rows = s.miner.mine(
        course, queries, (Source(chooser.selector, size),), cross_task=s.config.cross_task and apart is None,
        embedder=chooser.embedder, apart=apart,
    )  # fmt: skip
    return [told for (told,) in _tell(s, course, queries, [[own.tolist()] for own in rows])]


def _tell(
    s: Session, course: TaskData, queries: Sequence[Example], sets: Sequence[Sequence[Sequence[int]]], title: str = ""
) -> list[list[LabelScores | None]]:
    """What the LM says of each query behind each of its sets."""
    asks = [set_prompt(s, q, rows) for q, own in zip(queries, sets, strict=True) for rows in own]
    told = iter(s.feedback.tell(course, asks, s.bar(title) if title else None))
    return [[next(told) for _ in own] for own in sets]


def _worth(s: Session, told: LabelScores | None) -> float:
    return value(told, s.config.value, s.config.normalise) if told else float("nan")


def _way(s: Session, name: str, pool: str, told: Sequence[LabelScores | None], chance: FloatArray) -> StrategyResult:
    """A way by what the LM said; queries whose prompt does not fit are left out."""
    found = [(n, t) for n, t in enumerate(told) if t is not None]
    gain = np.array([_worth(s, t) - chance[n] for n, t in found])
    hits = [right(t) for _, t in found]
    known = [float(h) for h in hits if h is not None]
    return StrategyResult(
        name,
        pool,
        estimate(gain[None], bounded=False),
        estimate(np.array([known])) if len(known) == len(hits) else None,
    )


def _mean_right(every: Sequence[Sequence[LabelScores]]) -> Estimate | None:
    shares = [[right(t) for t in own] for own in every]
    if any(h is None for own in shares for h in own):
        return None
    return estimate(np.array([[np.mean([bool(h) for h in own]) for own in shares]]))
