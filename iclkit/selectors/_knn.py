"""Nearest neighbours in the space of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, Needs


@dataclass
class KNNSelector(BaseSelector):
    """the nearest inputs by cosine of their embeddings"""

    name: ClassVar[str] = "knn"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "KATE; Liu et al. 2022, arXiv 2101.06804"

    def prepare(self) -> None:
        """Embed what the pool has no vectors of yet."""
        self._vectors()

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """Exact search; scores are cosines."""
        return self.choose_many([query], k, [allowed])[0]

    def choose_many(self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]) -> list[Choice]:
        """Encode and search all queries together."""
        return [Choice(*near) for near in self._nearest(self._query_vectors(queries), k, allowed)]
