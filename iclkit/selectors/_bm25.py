"""Examples that share rare words with the query: Okapi BM25."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates
from iclkit.selectors._base import Choice, Needs
from iclkit.selectors._terms import TermSelector


@dataclass
class BM25Selector(TermSelector):
    """Ranks examples by the words they share with the query, rare words first (Okapi BM25).

    Word counts saturate (`k1`) and long inputs are held back (`b`). Where fewer than k examples share a word with the
    query, the rest are drawn at random, and a note says so.
    Use it first where words decide (entities, code, error messages, database questions), and where no embedder speaks
    the language: it needs no model.
    Cost: one word index of the pool, then one look at the examples that hold a word of the query.
    """

    name: ClassVar[str] = "bm25"
    summary: ClassVar[str] = "the inputs that share the rarest words with the query (BM25)"
    needs: ClassVar[Needs] = Needs(random_fill=True)
    source: ClassVar[str] = "Robertson & Zaragoza 2009; bm25s, Lù 2024, arXiv 2407.03618"
    example: ClassVar[str] = "bm25,stemmer=english"

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """By score; where too few share a word with the query, the rest are random, keyed by the query."""
        positions, scores = self.nearest(candidates, k)
        return Choice(self.pool_.rows[positions], scores, random=int(np.count_nonzero(scores == 0)))
