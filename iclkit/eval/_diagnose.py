"""Looks at what a selector picks, without asking an LM: seconds instead of hours, and no claim about the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import Embedder, encode_checked
from iclkit.eval._bench import Bench
from iclkit.predictors import Tools
from iclkit.prompts import Template
from iclkit.records import Query, Spec
from iclkit.selectors import Selector, make_selector


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a selector picks for the queries of a bench; shares lie in [0, 1], nan where they make no sense.

    ``label_recall``: share of queries with at least one pick that has the query's own label. ``label_match``: mean
    share of picks that have it. ``majority``: share of queries whose most frequent picked label (the first pick's on a
    tie) is right: what copying labels would score. ``labels``: mean number of different labels among the picks.
    ``relevance``: mean cosine of picks and query; ``redundancy``: mean cosine between the picks of one query; both by
    the embedder given. ``words``: share of the query's words that the picks have. ``coverage``: share of the pool
    shown to anyone. ``exposure``: Gini coefficient of how often each example is shown, 0 all alike, near 1 a few for
    all. ``top``: the examples shown most, with their counts. ``short``: queries that got fewer than k.
    """

    selector: str
    k: int
    queries: int
    label_recall: float
    label_match: float
    majority: float
    labels: float
    relevance: float
    redundancy: float
    words: float
    coverage: float
    exposure: float
    top: tuple[tuple[str, int], ...]
    short: int


def diagnose(
    bench: Bench,
    selector: str | Spec | Selector,
    tools: Tools,
    *,
    k: int = 8,
    seed: int = 0,
    template: Template | None = None,
) -> Diagnosis:
    """Select for every query of a bench and describe the picks. NeedError for what the selector lacks.

    ``relevance`` and ``redundancy`` are by the embedder of ``tools``, whether the selector needs one or not.
    """
    chooser = make_selector(selector) if isinstance(selector, str | Spec) else selector
    task, view, embedder = bench.task, bench.view, tools.embedder
    chooser.fit(view, tools.kit(bench.context, template=template, seed=seed))
    number = {i: n for n, i in enumerate(view.ids)}
    picks = [[number[i] for i in s.ids] for s in chooser.select_many(bench.queries, k)]
    golds = bench.golds if task.labels else None
    outputs = [e.output for e in view.examples]
    matches = [[outputs[r] == gold for r in rows] for rows, gold in zip(picks, golds or (), strict=False) if rows]
    shown = np.bincount([r for rows in picks for r in rows], minlength=len(view)).astype(np.int64)
    near, alike = _cosines(bench, picks, embedder) if embedder is not None else (np.nan, np.nan)
    order = np.argsort(-shown, kind="stable")[:5]
    return Diagnosis(
        selector=str(chooser.spec) if not isinstance(selector, str) else selector,
        k=k,
        queries=len(picks),
        label_recall=_mean([float(any(m)) for m in matches]),
        label_match=_mean([sum(m) / len(m) for m in matches]),
        majority=_mean(
            [
                float(_majority([outputs[r] for r in rows]) == gold)
                for rows, gold in zip(picks, golds or (), strict=False)
                if rows
            ]
        ),
        labels=_mean([float(len({outputs[r] for r in rows})) for rows in picks if rows]) if golds else np.nan,
        relevance=near,
        redundancy=alike,
        words=_mean(
            [_words(q, [view.examples[r].text for r in rows]) for q, rows in zip(bench.queries, picks, strict=True)]
        ),
        coverage=float((shown > 0).mean()),
        exposure=gini(shown),
        top=tuple((view.ids[r], int(shown[r])) for r in order if shown[r]),
        short=sum(len(rows) < min(k, len(view)) for rows in picks),
    )


def gini(counts: NDArray[np.int64]) -> float:
    """Gini coefficient of counts (n,): 0 when all are equal, 1 - 1/n when one has everything; 0 for no counts.

    >>> round(gini(np.array([1, 1, 1, 1])), 6), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    total, n = int(counts.sum()), len(counts)
    if not total:
        return 0.0
    ranked = np.sort(counts).astype(np.float64)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ranked / (n * total))


def _cosines(bench: Bench, picks: Sequence[Sequence[int]], embedder: Embedder) -> tuple[float, float]:
    vectors = bench.view.vectors(embedder)
    queries = encode_checked(embedder, [q.text for q in bench.queries], "query")
    near, alike = [], []
    for query, rows in zip(queries, picks, strict=True):
        if rows:
            shown = vectors[list(rows)]
            near.append(float((shown @ query).mean()))
            if len(rows) > 1:
                pairs = shown @ shown.T
                alike.append(float((pairs.sum() - np.trace(pairs)) / (len(rows) * (len(rows) - 1))))
    return _mean(near), _mean(alike)


def _majority(labels: Sequence[str]) -> str:
    """The most frequent label; on a tie the one whose first pick ranks best."""
    return Counter(labels).most_common(1)[0][0]


def _words(query: Query, texts: Sequence[str]) -> float:
    words = {*query.text.casefold().split()}
    have = {w for t in texts for w in t.casefold().split()}
    return len(words & have) / len(words) if words else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
