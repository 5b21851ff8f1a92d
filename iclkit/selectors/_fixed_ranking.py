"""Selectors that rank the pool once for the whole task: every query sees the same list, less what it excludes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from iclkit.pool import Candidates
from iclkit.selectors._base import NOTHING, BaseSelector, Choice, FloatArray, IntArray


class FixedRankingSelector(BaseSelector, ABC):
    """A strategy is its ``rank``: the first m of a list in which k is a prefix of k + 1."""

    @abstractmethod
    def rank(self, m: int) -> tuple[IntArray, FloatArray]:
        """Positions in the pool of the first m of the list, and their scores; fewer when the list ends."""

    def prepare(self) -> None:
        """Nothing is ranked before it is asked for."""
        self.ranked_ = NOTHING
        self.asked_ = 0

    def shared(self, k: int) -> int:
        """All of them."""
        return k

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """The first k that are allowed."""
        wanted = k
        while True:
            if wanted > self.asked_:
                positions, scores = self.rank(wanted)
                self.ranked_, self.asked_ = Choice(self.pool_.rows[positions], scores), wanted
            ranked = self.ranked_
            kept = np.flatnonzero(candidates.allowed(ranked.rows))[:k]
            if len(kept) == k or len(ranked.rows) < self.asked_ or self.asked_ >= len(self.pool_):
                return Choice(ranked.rows[kept], ranked.scores[kept])
            wanted = min(len(self.pool_), 2 * self.asked_)
