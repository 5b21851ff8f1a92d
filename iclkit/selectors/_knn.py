"""Nearest neighbours in the space of an embedder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iclkit.pool import CandidateBatch
from iclkit.selectors._base import BaseSelector, Choice, Needs


@dataclass
class KNNSelector(BaseSelector):
    """Ranks examples by the cosine of their embedding with the query's.

    The search is exact; ties go to the example that was added first.
    Use it as the first choice with an embedder: it wins or nearly wins on most tasks with labels, and the other
    selectors on embeddings are variations of it.
    Cost: the pool is embedded once and kept, then one encoding per query and one product with the pool's vectors.
    """

    name: ClassVar[str] = "knn"
    summary: ClassVar[str] = "the nearest inputs by cosine of their embeddings"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "KATE; Liu et al. 2022, arXiv 2101.06804"
    example: ClassVar[str] = "knn --embedder all-minilm-l6-v2"

    def prepare(self) -> None:
        """Embed what the pool has no vectors of yet."""
        self._embed()

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Exact search; scores are cosines."""
        return [Choice(near.rows, near.scores) for near in batch.nearest(k)]
