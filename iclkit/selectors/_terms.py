"""The rows that share the rarest words with a text, and random ones where too few share any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iclkit.selectors._base import IntArray
from iclkit.selectors._maths import SortKeys, hash_keys, shuffled_keys, smallest_rows, top_rows

if TYPE_CHECKING:
    from iclkit.pool import PoolView, TermIndex


def nearest_by_words(
    index: TermIndex, text: str, k: int, outside: IntArray, shuffled: Callable[[], SortKeys]
) -> tuple[IntArray, NDArray[np.float64]]:
    """The k rows of highest BM25 score with their scores, best first, leaving the rows ``outside`` out.

    Where fewer share a word with the text, the rest come in the order of the keys ``shuffled()`` (n,) and score 0.
    """
    scores = index.scores(text)
    scores[outside] = 0
    rows = top_rows(scores, k, above=0.0, significant=True)
    best = scores[rows].astype(np.float64)
    if len(rows) < k:
        left = np.delete(np.arange(len(index)), np.r_[outside, rows])
        fill = smallest_rows(shuffled(), k - len(rows), left)
        rows, best = np.r_[rows, fill], np.r_[best, np.zeros(len(fill))]
    return rows, best


def keyed_shuffle(pool: PoolView, *salt: str | int) -> SortKeys:
    """(n,) keys in whose order a pool's rows are drawn; those of the ids are made once per view. O(pool)."""
    return shuffled_keys(pool.derived("hash keys", lambda: hash_keys(pool.ids)), *salt)
