"""Nearest neighbours by input and output together: for translation, by the source and the target side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import CandidateBatch, FlatIndex
from iclkit.selectors._base import BaseSelector, Choice, Needs
from iclkit.selectors._maths import SCORE_DECIMALS
from iclkit.settings import setting


@dataclass
class MixKNNSelector(BaseSelector):
    """Ranks examples by their inputs and their outputs: share * cos(q, input) + (1 - share) * cos(q, output).

    Use it for translation with a multilingual embedder, where a source sentence can be compared with target sentences.
    Cost: as `knn`, with the outputs embedded too.
    """

    name: ClassVar[str] = "mix-knn"
    summary: ClassVar[str] = (
        "the nearest by the cosine of the query with their inputs and with their outputs, e.g. source and target text"
    )
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "views s2s, s2t and mix; Zebaze, Sagot & Bawden 2024, arXiv 2408.00397"
    example: ClassVar[str] = "mix-knn,share=0.7"

    share: float = setting(0.5, "share of the inputs (s2s) in the mixture; the rest is the outputs' (s2t)", ge=0, le=1)

    def prepare(self) -> None:
        """Vectors of inputs and outputs; the embedder must put both into one space (a multilingual one, say)."""
        assert self.kit_.embedder is not None
        outputs = self.pool_.text_vectors(self.kit_.embedder, [e.output for e in self.pool_.examples])
        mixed = (self.share * self._vectors() + (1 - self.share) * outputs).astype(np.float32)
        self.index_ = FlatIndex.of(mixed, self.pool_.rows)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Scores are share * cosine with the input + (1 - share) * cosine with the output; exact search."""
        ranked = self.index_.nearest(batch.query_vectors, k, [candidates.scope for candidates in batch])
        return [Choice(best.rows, np.round(best.scores.astype(np.float64), SCORE_DECIMALS)) for best in ranked]
