"""What a retriever is worth: its choices against random, BM25, the untrained embedder and the best there was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iclkit.eval import Estimate, estimate
from iclkit.pool import Embedder, Retriever
from iclkit.records import Example, Json, Query
from iclkit.selectors import Kit, make_selector
from iclkit.trainers._config import Source
from iclkit.trainers._corpus import Course
from iclkit.trainers._feedback import right, value
from iclkit.trainers._method import Session, asks_of, mined

if TYPE_CHECKING:
    from iclkit.trainers._ledger import Told

FloatArray = NDArray[np.float64]
AMONG, ANYWHERE = "among the candidates", "from the whole pool"
_DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Way:
    """One way of choosing a demonstration. ``gain``: mean value over that of a random candidate, in nats, with its 95 %
    interval over queries; ``right``: share of right answers, None where answers are free."""

    name: str
    pool: str
    gain: Estimate
    right: Estimate | None


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task's ways; ``captured``: the retriever's part of the head-room between a random candidate and the best
    one (the oracle), with its 95 % bootstrap interval; nan where there is no head-room."""

    task: str
    queries: int
    ways: tuple[Way, ...]
    captured: Estimate

    def as_dict(self) -> dict[str, Json]:
        """Plain numbers, for the card."""
        return asdict(self)


def report_on(s: Session, course: Course, base: Embedder, retriever: Retriever) -> TaskReport:
    """Score the candidates of the course's report queries, and let each way choose one demonstration.

    Among the candidates, which were mined as in training, all ways but the oracle choose without the LM.
    """
    queries = list(course.report)
    candidates = mined(s, course, queries)
    told = iter(s.feedback.tell(course, asks_of(s, queries, candidates), s.bar(f"{course.name}: report")))
    every = [[(r, t) for r in rows if (t := next(told)) is not None] for rows in candidates]
    kept = [n for n, own in enumerate(every) if own]
    queries, every = [queries[n] for n in kept], [every[n] for n in kept]
    values = [np.array([value(t, s.config.value, s.config.normalise) for _, t in own]) for own in every]
    chance = np.array([v.mean() for v in values])
    lucky = _mean_right(every)
    names = {"bm25": None, "knn, untrained": base, s.config.method: retriever.for_task(course.name)}
    ways = [Way("random", AMONG, estimate(np.zeros((1, len(chance))), bounded=False), lucky)]
    captured = Estimate(float("nan"), float("nan"), float("nan"))
    best = np.array([v.max() for v in values]) - chance
    for name, embedder in names.items():
        at = _nearest_candidate(s, queries, every, embedder)
        gain = np.array([v[i] for v, i in zip(values, at, strict=True)]) - chance
        ways.append(_way(name, AMONG, gain, [own[i][1] for own, i in zip(every, at, strict=True)]))
        if name == s.config.method:
            captured = share(gain, best, s.config.seed)
    top = [int(v.argmax()) for v in values]
    ways.append(_way("oracle", AMONG, best, [own[i][1] for own, i in zip(every, top, strict=True)]))
    for name, embedder in names.items():
        source = (Source("bm25" if embedder is None else "knn", 1),)
        rows = s.miner.mine(course, queries, source, cross_task=s.config.cross_task, embedder=embedder)
        answers = s.feedback.tell(course, asks_of(s, queries, [r.tolist() for r in rows]))
        found = [(n, t) for n, t in enumerate(answers) if t is not None]
        gain = np.array([value(t, s.config.value, s.config.normalise) - chance[n] for n, t in found])
        ways.append(_way(name, ANYWHERE, gain, [t for _, t in found]))
    return TaskReport(course.name, len(queries), tuple(ways), captured)


def share(gain: FloatArray, best: FloatArray, seed: int) -> Estimate:
    """mean(gain) / mean(best) over queries (q,) with a percentile bootstrap interval; nan without head-room."""
    if not len(best) or best.mean() <= 1e-9:
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(len(best), size=(_DRAWS, len(best)))
    below = best[draws].mean(1)
    ratios = gain[draws].mean(1)[below > 1e-9] / below[below > 1e-9]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Estimate(float(gain.mean() / best.mean()), float(low), float(high))


def _nearest_candidate(
    s: Session, queries: Sequence[Example], every: Sequence[Sequence[tuple[int, Any]]], embedder: Embedder | None
) -> list[int]:
    """Position of each query's best candidate by an embedder, or by BM25."""
    rows = sorted({r for own in every for r, _ in own})
    at = {r: n for n, r in enumerate(rows)}
    view = s.corpus.view.only(np.array(rows, dtype=np.int64))
    if embedder is None:
        scores = []
        chooser = make_selector("bm25").fit(view, Kit(seed=s.config.seed))
        for query, own in zip(queries, every, strict=True):
            picks = {p.example_id: -p.rank for p in chooser.select(Query(query.input, id=query.id), len(view))}
            scores.append([picks[view.ids[at[r]]] for r, _ in own])
        return [int(np.argmax(own)) for own in scores]
    documents = view.vectors(embedder)
    vectors = embedder.encode_queries([q.text for q in queries])
    near = [documents[[at[r] for r, _ in own]] @ v for own, v in zip(every, vectors, strict=True)]
    return [int(np.argmax(np.round(n, 6))) for n in near]


def _way(name: str, pool: str, gain: FloatArray, told: Sequence[Told]) -> Way:
    hits = [right(t) for t in told]
    known = [float(h) for h in hits if h is not None]
    return Way(
        name,
        pool,
        estimate(gain[None], bounded=False),
        estimate(np.array([known])) if len(known) == len(told) else None,
    )


def _mean_right(every: Sequence[Sequence[tuple[int, Told]]]) -> Estimate | None:
    shares = [[right(t) for _, t in own] for own in every]
    if any(h is None for own in shares for h in own):
        return None
    return estimate(np.array([[np.mean([bool(h) for h in own]) for own in shares]]))
