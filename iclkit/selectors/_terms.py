"""Selectors that go by shared words: the rows that share the rarest with a text, and random ones where too few do."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iclkit.pool import TOKENIZERS, Candidates, tokenizer
from iclkit.selectors._base import BaseSelector, FloatArray, IntArray
from iclkit.selectors._maths import SortKeys, hash_keys, shuffled_keys, smallest_rows, top_rows
from iclkit.settings import setting

if TYPE_CHECKING:
    from iclkit.pool import PoolView, TermIndex


@dataclass
class TermSelector(BaseSelector, ABC):
    """What selectors over a pool's word index share: how texts are cut and words are weighted (Okapi BM25)."""

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

    def nearest(self, candidates: Candidates, k: int) -> tuple[IntArray, FloatArray]:
        """Positions of the k best, and their scores: 0 for those that share no word and were drawn."""
        query = candidates.query
        outside = self._outside(candidates.scope)
        shuffled = partial(keyed_shuffle, self.pool_, self.kit_.seed, query.id)
        return nearest_by_words(self.index_, query.text, k, outside, shuffled)


def nearest_by_words(
    index: TermIndex, text: str, k: int, outside: IntArray, shuffled: Callable[[], SortKeys]
) -> tuple[IntArray, NDArray[np.float64]]:
    """The k rows of highest BM25 score with their scores, best first, leaving the rows ``outside`` out.

    Where fewer share a word with the text, the rest come in the order of the keys ``shuffled()`` (n,) and score 0.
    """
    among, scores = index.contenders(text, k, outside)
    at = top_rows(scores, k, above=0.0, significant=True)
    rows, best = at if among is None else among[at], scores[at].astype(np.float64)
    if len(rows) < k:
        left = np.delete(np.arange(len(index)), np.r_[outside, rows])
        fill = smallest_rows(shuffled(), k - len(rows), left)
        rows, best = np.r_[rows, fill], np.r_[best, np.zeros(len(fill))]
    return rows, best


def keyed_shuffle(pool: PoolView, *salt: str | int) -> SortKeys:
    """(n,) keys in whose order a pool's rows are drawn; those of the ids are made once per view. O(pool)."""
    return shuffled_keys(pool.derived("hash keys", lambda: hash_keys(pool.ids)), *salt)
