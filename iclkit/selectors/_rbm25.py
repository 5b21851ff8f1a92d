"""BM25's list in the order in which it covers the n-grams of the query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates, tokenizer
from iclkit.selectors._base import Choice, FloatArray
from iclkit.selectors._bm25 import BM25Selector
from iclkit.selectors._maths import SCORE_DECIMALS, argmax_row
from iclkit.settings import setting

ORDERS = 4
"""N-grams of one to so many words are compared."""


def word_ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each run of one to four words occurs."""
    return Counter(tuple(words[at : at + n]) for n in range(1, ORDERS + 1) for at in range(len(words) - n + 1))


def ngram_recall(held: FloatArray, weights: FloatArray, sizes: FloatArray) -> FloatArray:
    """(c,): 0 to 100, the geometric mean over n of the share of the query's weighted n-grams that a candidate holds.

    held (c, g): how often each candidate holds each n-gram of the query; weights (g,): what each counts, at first how
    often the query has it; sizes (g,): its n. Orders longer than the query are left out. An order of which nothing is
    held counts 1 / 2, the next 1 / 4 …, of its total, as in BLEU; a candidate that holds nothing at all scores 0.
    """
    matched = np.minimum(held, weights)
    total = np.array([weights[sizes == n].sum() for n in range(1, ORDERS + 1)])
    shared = np.stack([matched[:, sizes == n].sum(axis=1) for n in range(1, ORDERS + 1)], axis=1)[:, total > 0]
    misses = np.cumsum(shared == 0, axis=1)
    with np.errstate(divide="ignore"):
        logs = np.where(shared > 0, np.log(shared), -misses * np.log(2)) - np.log(total[total > 0])
    mean = 100 * np.exp(logs.mean(axis=1)) if (total > 0).any() else np.zeros(len(held))
    result: FloatArray = np.where((shared > 0).any(axis=1), mean, 0.0)
    return result


def recall_order(
    held: FloatArray, weights: FloatArray, sizes: FloatArray, k: int, fade: float, least: float
) -> list[int]:
    """Greedy: the candidate of highest recall, whose n-grams then count ``fade`` of what they did, and so on.

    Arrays as for ``ngram_recall``. When no candidate reaches ``least``, the rest come in the order given. Returns at
    most k positions; ties go to the earlier.
    """
    order, left = list[int](), np.ones(len(held), np.bool_)
    recall = ngram_recall(held, weights, sizes)
    while len(order) < min(k, len(held)) and (recall[left] >= least).any():
        order.append(argmax_row(np.where(left, recall, -np.inf)))
        left[order[-1]] = False
        weights = np.where(held[order[-1]] > 0, fade * weights, weights)
        recall = ngram_recall(held, weights, sizes)
    rest = np.flatnonzero(left)[: max(0, k - len(order))]
    return [*order, *rest.tolist()]


@dataclass
class RBM25Selector(BM25Selector):
    """Takes BM25's list anew until the query's word n-grams are covered.

    Each step takes the candidate that holds the most 1- to 4-grams of the query, weighted, and then lets what was shown
    count only `fade` as much, so that the next one brings other parts.
    Use it for translation and other generation, where demonstrations should between them hold the query's phrases.
    Cost: BM25, and n-gram counts of `candidates` inputs per query.
    """

    name: ClassVar[str] = "r-bm25"
    summary: ClassVar[str] = (
        "BM25's list anew, each time the input that holds most of the query's word n-grams not yet shown"
    )
    source: ClassVar[str] = "R-BM25; Agrawal et al. 2023, arXiv 2212.02437"
    example: ClassVar[str] = "r-bm25,candidates=50"

    candidates: int = setting(100, "how many of BM25's best are looked at; k when k is larger", ge=1)
    fade: float = setting(0.1, "what an n-gram of the query still counts once it is shown", ge=0, le=1)
    least: float = setting(
        1.0, "recall in percent below which the rest stay in BM25's order (the source stops there)", ge=0, le=100
    )

    def prepare(self) -> None:
        """Index the pool's words, and keep how to cut them."""
        super().prepare()
        self.cut_ = tokenizer(self.tokenizer, self.stemmer)
        self.held_: dict[int, Counter[tuple[str, ...]]] = {}

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """Scores are each example's own recall, 0 to 100; 0 for what shares no word with the query."""
        positions, _ = self.nearest(candidates, max(k, self.candidates))
        wanted = word_ngrams(self.cut_(candidates.query.text))
        held = np.array([[self._ngrams(int(p))[g] for g in wanted] for p in positions], dtype=np.float64)
        held = held.reshape(len(positions), len(wanted))
        weights, sizes = np.array([*wanted.values()], np.float64), np.array([len(g) for g in wanted])
        order = np.array(recall_order(held, weights, sizes, k, self.fade, self.least), dtype=np.int64)
        scores = np.round(ngram_recall(held, weights, sizes)[order], SCORE_DECIMALS)
        return Choice(self.pool_.rows[positions[order]], scores, random=int(np.count_nonzero(scores == 0)))

    def _ngrams(self, position: int) -> Counter[tuple[str, ...]]:
        if position not in self.held_:
            self.held_[position] = word_ngrams(self.cut_(self.pool_.examples[position].text))
        return self.held_[position]
