"""For strategies that reorder the query's nearest examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import CandidateBatch, Candidates, Ranked
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, Needs
from iclkit.selectors._maths import SCORE_DECIMALS


@dataclass
class NearestReorderSelector(BaseSelector, ABC):
    """A subclass says how many of the nearest it looks at, and what becomes of them."""

    needs: ClassVar[Needs] = Needs(embedder=True)

    @abstractmethod
    def reorder(self, sim: FloatArray, near: FloatArray, k: int) -> tuple[Sequence[int], FloatArray]:
        """At most k positions of the candidates, best first, and their scores.

        sim (n,): cosine of each candidate with the query, falling. near (n, n): cosine between candidates.
        """

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many of the nearest are looked at, at least."""

    def prepare(self) -> None:
        """Vectors of the pool."""
        self._embed()

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Encode and search together; the rest is per query, where its matrix stays in the processor's cache.

        See ``reorder`` for what the scores are.
        """
        nearest = batch.nearest(max(k, self.depth))
        return [self._reordered(candidates, near, k) for candidates, near in zip(batch, nearest, strict=True)]

    def _reordered(self, candidates: Candidates, near: Ranked, k: int) -> Choice:
        vectors = candidates.vectors(near.rows)
        order, scores = self.reorder(near.scores, np.round(vectors @ vectors.T, SCORE_DECIMALS), k)
        return Choice(near.rows[np.asarray(order, dtype=np.int64)], scores)
