"""Nearest neighbours by input and output together: for translation, by the source and the target side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.errors import UsageError
from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, Needs
from iclkit.selectors._maths import top_rows

_ROUGH = 1e-5  # more than a float32 sum of products of unit rows is off by
_BLOCK = 1 << 22  # similarities computed at a time


@dataclass
class MixKNNSelector(BaseSelector):
    """the nearest by the cosine of the query with their inputs and with their outputs, e.g. source and target text"""

    name: ClassVar[str] = "mix-knn"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "views s2s, s2t and mix; Zebaze, Sagot & Bawden 2024, arXiv 2408.00397"

    share: float = 0.5  # of the inputs (s2s) in the mixture; the rest is the outputs' (s2t)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"mix-knn: share is {self.share}; give 0 (outputs alone) to 1 (inputs alone)")

    def prepare(self) -> None:
        """Vectors of inputs and outputs; the embedder must put both into one space (a multilingual one, say)."""
        assert self.kit_.embedder is not None
        outputs = self.pool_.text_vectors(self.kit_.embedder, [e.output for e in self.pool_.examples])
        self.mixed_ = (self.share * self._vectors() + (1 - self.share) * outputs).astype(np.float32)

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """Scores are share * cosine with the input + (1 - share) * cosine with the output."""
        return self.choose_many([query], k, [allowed])[0]

    def choose_many(self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]) -> list[Choice]:
        """Encode together; what is near the k-th is compared again in float64, alone."""
        vectors, chosen, step = self._query_vectors(queries), list[Choice](), max(1, _BLOCK // len(self.pool_))
        for at in range(0, len(queries), step):
            rough = vectors[at : at + step] @ self.mixed_.T
            for vector, near, mask in zip(vectors[at:], rough, allowed[at : at + step], strict=False):
                rows = np.flatnonzero(mask)
                if k < len(rows):
                    rows = rows[near[rows] >= np.partition(near[rows], -k)[-k] - _ROUGH]
                exact = np.round(self.mixed_[rows].astype(np.float64) @ vector.astype(np.float64), 6)
                best = top_rows(exact, k)
                chosen.append(Choice(rows[best], exact[best]))
        return chosen
