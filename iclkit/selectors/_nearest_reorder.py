"""For strategies that reorder the query's nearest examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._maths import SCORE_DECIMALS


@dataclass
class NearestReorderSelector(BaseSelector):
    """A subclass has a setting ``candidates`` and says what becomes of so many of the nearest."""

    needs: ClassVar[Needs] = Needs(embedder=True)

    @abstractmethod
    def reorder(self, sim: FloatArray, near: FloatArray, k: int) -> tuple[Sequence[int], FloatArray]:
        """At most k positions of the candidates, best first, and their scores.

        sim (n,): cosine of each candidate with the query, falling. near (n, n): cosine between candidates.
        """

    def prepare(self) -> None:
        """Vectors of the pool."""
        self.vectors_ = self._vectors()

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """See ``reorder`` for what the scores are."""
        return self.choose_many([query], k, [allowed])[0]

    def choose_many(self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]) -> list[Choice]:
        """Encode and search together; the rest is per query, where its matrix stays in the processor's cache."""
        candidates: int = getattr(self, "candidates")  # noqa: B009  a field of the subclass
        found = self._nearest(self._query_vectors(queries), max(k, candidates), allowed)
        return [self._chosen(rows, sim, k) for rows, sim in found]

    def _chosen(self, rows: IntArray, sim: FloatArray, k: int) -> Choice:
        vectors = self.vectors_[rows]
        order, scores = self.reorder(sim, np.round(vectors @ vectors.T, SCORE_DECIMALS), k)
        return Choice(rows[np.asarray(order, dtype=np.int64)], scores)
