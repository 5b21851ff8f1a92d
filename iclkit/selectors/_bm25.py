"""Examples that share rare words with the query: Okapi BM25."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from iclkit.errors import UsageError
from iclkit.pool import TOKENIZERS, Candidates
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._terms import keyed_shuffle, nearest_by_words


@dataclass
class BM25Selector(BaseSelector):
    """the inputs that share the rarest words with the query (BM25)"""

    name: ClassVar[str] = "bm25"
    needs: ClassVar[Needs] = Needs(random_fill=True)
    source: ClassVar[str] = "Robertson & Zaragoza 2009; bm25s, Lù 2024, arXiv 2407.03618"

    k1: float = 1.5  # how fast repeats of a word stop counting
    b: float = 0.75  # how much long inputs are held back: 0 not at all, 1 in full
    tokenizer: str = "words"  # words, split, trigrams, or one of a package
    stemmer: str = ""  # a Snowball language, e.g. english; none if empty

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise UsageError(f"bm25: k1 is {self.k1} and b is {self.b}; give k1 >= 0 and 0 <= b <= 1")
        if self.tokenizer not in TOKENIZERS.names():
            TOKENIZERS.get(self.tokenizer)

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
