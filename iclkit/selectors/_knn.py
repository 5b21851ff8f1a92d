"""Nearest neighbours in the space of an embedder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iclkit.pool import CandidateBatch
from iclkit.selectors._base import BaseSelector, Choice, Needs


@dataclass
class KNNSelector(BaseSelector):
    """the nearest inputs by cosine of their embeddings"""

    name: ClassVar[str] = "knn"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "KATE; Liu et al. 2022, arXiv 2101.06804"

    def prepare(self) -> None:
        """Embed what the pool has no vectors of yet."""
        self._vectors()

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Exact search; scores are cosines."""
        return [Choice(near.rows, near.scores) for near in batch.nearest(k)]
