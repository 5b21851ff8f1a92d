"""Selectors that rank the pool once for the whole task: every query sees the same list, less what it excludes."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, Ranked


class FixedRankingSelector(BaseSelector):
    """A strategy is its ``rank``: the first m of a list in which k is a prefix of k + 1."""

    @abstractmethod
    def rank(self, m: int) -> Ranked:
        """The first m rows of the list with their scores; fewer when the list ends."""

    def prepare(self) -> None:
        """Nothing is ranked before it is asked for."""
        self.ranked_: Ranked = np.empty(0, np.int64), np.empty(0)
        self.asked_ = 0

    def shared(self, k: int) -> int:
        """All of them."""
        return k

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:  # noqa: ARG002
        """The first k that are allowed."""
        wanted = k
        while True:
            if wanted > self.asked_:
                self.ranked_, self.asked_ = self.rank(wanted), wanted
            rows, scores = self.ranked_
            kept = np.flatnonzero(allowed[rows])[:k]
            if len(kept) == k or len(rows) < self.asked_ or self.asked_ >= len(self.pool_):
                return Choice(rows[kept], scores[kept])
            wanted = min(len(self.pool_), 2 * self.asked_)
