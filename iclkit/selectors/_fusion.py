"""The lists of several selectors as one: reciprocal ranks, or Borda points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import CandidateBatch
from iclkit.records import Selection
from iclkit.selectors._base import RANDOM_FILL, Choice, FloatArray, IntArray, SelectorCost
from iclkit.selectors._composite import CompositeSelector
from iclkit.selectors._maths import rounded, top_rows
from iclkit.settings import setting

Ranked = tuple[IntArray, FloatArray]
"""Numbers of rows, best first, and their scores."""

_POINT_DIGITS = 12  # sums of a few fractions of ranks differ by more or not at all


def average_ranks(scores: FloatArray) -> FloatArray:
    """(m,): ranks from 1 of a list, best first; neighbours whose scores tie (see ``rounded``) share their mean rank.

    A list that cannot tell its members apart must not do so by where they stand in the pool.
    >>> average_ranks(np.array([.9, .5, .5, .1])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    ranks = np.arange(1, len(scores) + 1, dtype=np.float64)
    group = np.cumsum(np.r_[False, np.diff(rounded(scores)) != 0])[: len(scores)]
    mean = np.bincount(group, ranks) / np.maximum(np.bincount(group), 1) if len(scores) else ranks
    shared: FloatArray = mean[group] if len(scores) else ranks
    return shared


def reciprocal_ranks(lists: Sequence[Ranked], n: int, c: float) -> FloatArray:
    """(n,): sum over the lists of 1 / (c + rank), ranks from 1 and shared by ties; -inf for rows in no list.

    Reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR 2009). lists: row numbers, best first, with their scores.
    """
    points = np.zeros(n)
    for rows, scores in lists:
        points[rows] += 1 / (c + average_ranks(scores))
    return np.where(points > 0, points, -np.inf)


def borda_points(lists: Sequence[Ranked], n: int) -> FloatArray:
    """(n,): sum over the lists of m + 1 - rank, m the length of the longest; -inf for rows in no list.

    De Borda 1781; ranks are shared by ties. (ArmelRandy/ICL-MT adds one point for rows in both of its two lists, which
    these sums contain already: being in a list is worth at least one.) lists: as for ``reciprocal_ranks``.
    """
    longest, points = max((len(rows) for rows, _ in lists), default=0), np.zeros(n)
    for rows, scores in lists:
        points[rows] += longest + 1 - average_ranks(scores)
    return np.where(points > 0, points, -np.inf)


@dataclass
class _FusionSelector(CompositeSelector):
    keeps_fill: ClassVar[bool] = True
    takes_lists: ClassVar[bool] = True

    of: str = setting("[bm25,knn]", "the selectors, e.g. [bm25,mmr,trade_off=0.3]")
    depth: int = setting(100, "how many of each list count; k when k is larger", ge=1)

    @abstractmethod
    def points(self, lists: Sequence[Ranked], n: int) -> FloatArray:
        """(n,) for rows 0 to n - 1: the more the better, -inf for rows in no list."""

    def cost(self, k: int) -> SelectorCost:
        """What the parts ask for lists of ``depth``."""
        return super().cost(max(k, self.depth))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Every list for all queries together; scores are points."""
        lists = [part.select_many(batch.queries, max(k, self.depth)) for part in self.parts_]
        return [self._fused(selections, k) for selections in zip(*lists, strict=True)]

    def _fused(self, selections: Sequence[Selection], k: int) -> Choice:
        handles = [self._rows(s) for s in selections]
        union = np.unique(np.concatenate(handles))  # ascending, so that ties still go to the lower handle
        lists, drawn = list[Ranked](), list[int]()
        for rows, selection in zip(handles, selections, strict=True):
            places, random = np.searchsorted(union, rows), np.array([p.why == RANDOM_FILL for p in selection], np.bool_)
            lists.append((places[~random], np.array([p.score for p in selection])[~random]))
            drawn += places[random].tolist()
        points = self.points(lists, len(union))
        best = top_rows(points, k, digits=_POINT_DIGITS, significant=True)
        if len(best) < k:  # what only random fill has named comes last, with no points
            best = np.array([*dict.fromkeys([*best.tolist(), *drawn])][:k], dtype=np.int64)
        scores = np.maximum(points[best], 0)
        return Choice(union[best], scores, random=int(np.count_nonzero(scores == 0)))


@dataclass
class RRFSelector(_FusionSelector):
    """Adds up 1 / (c + rank) over several selectors' lists.

    Ranks need no common scale, so that word search and embeddings can be fused without tuning.
    Use it where neither `bm25` nor `knn` wins everywhere.
    Cost: that of the parts, for lists of `depth`.
    """

    name: ClassVar[str] = "rrf"
    summary: ClassVar[str] = "several selectors' lists fused by reciprocal ranks"
    source: ClassVar[str] = "Cormack, Clarke & Büttcher 2009, SIGIR"
    example: ClassVar[str] = "rrf,of=[bm25,knn]"

    c: float = setting(60.0, "how little the first places stand out", ge=0)

    def points(self, lists: Sequence[Ranked], n: int) -> FloatArray:
        """Reciprocal ranks."""
        return reciprocal_ranks(lists, n, self.c)


@dataclass
class BordaSelector(_FusionSelector):
    """Adds up points for places in several selectors' lists: the longest list's length + 1 - rank.

    Use it as `rrf`; late places count for more here.
    Cost: that of the parts, for lists of `depth`.
    """

    name: ClassVar[str] = "borda"
    summary: ClassVar[str] = "several selectors' lists fused by Borda points"
    source: ClassVar[str] = "de Borda 1781; for demonstrations: Zebaze, Sagot & Bawden 2024, arXiv 2408.00397"
    example: ClassVar[str] = "borda,of=[bm25,knn]"

    def points(self, lists: Sequence[Ranked], n: int) -> FloatArray:
        """Borda points."""
        return borda_points(lists, n)
