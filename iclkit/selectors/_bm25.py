"""Examples that share rare words with the query: Okapi BM25."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from iclkit.pool import TOKENIZERS, Candidates, tokenizer
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._terms import keyed_shuffle, nearest_by_words
from iclkit.settings import setting


@dataclass
class BM25Selector(BaseSelector):
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

    k1: float = setting(1.5, "how fast repeats of a word stop counting", ge=0)
    b: float = setting(0.75, "how much long inputs are held back: 0 not at all, 1 in full", ge=0, le=1)
    tokenizer: str = setting("words", "how texts are cut into terms", choices=TOKENIZERS.names)
    stemmer: str = setting("", "a Snowball language, e.g. english; none if empty")

    def __post_init__(self) -> None:
        super().__post_init__()
        tokenizer(self.tokenizer, self.stemmer)

    def prepare(self) -> None:
        """Index the pool's words."""
        self.index_ = self.pool_.term_index(self.tokenizer, self.stemmer, self.k1, self.b)

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """By score; where too few share a word with the query, the rest are random, keyed by the query."""
        positions, scores = self._nearest(candidates, k)
        return Choice(self.pool_.rows[positions], scores, random=int(np.count_nonzero(scores == 0)))

    def _nearest(self, candidates: Candidates, k: int) -> tuple[IntArray, FloatArray]:
        """Positions of the k best, and their scores: 0 for what was drawn."""
        query = candidates.query
        outside = self._outside(candidates.scope)
        shuffled = partial(keyed_shuffle, self.pool_, self.kit_.seed, query.id)
        return nearest_by_words(self.index_, query.text, k, outside, shuffled)
