"""Sets that cover every part of the query: coverage of its token vectors, its words, or its embedding dimensions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from iclkit.embed import encode_tokens_checked
from iclkit.pool import CandidateBatch
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._maths import SCORE_DECIMALS, argmax_row, top_rows
from iclkit.selectors._terms import TermSelector
from iclkit.settings import setting

_GAIN_DIGITS = 9  # gains shrink with every pick, and float64 sums are off by less
_KEPT_TOKENS = 1 << 28  # bytes of token vectors that are kept for the next query


def coverage_order(cover: FloatArray, k: int) -> list[int]:
    """Greedy set coverage (Gupta, Gardner & Singh 2023, arXiv 2305.14907).

    cover (n, t): how well each candidate covers each part of the query. The value of a set is the sum over the parts of
    its best candidate, which is monotone and submodular. Each step takes the candidate of largest value; when none adds
    anything, a new round begins over those not yet taken. Returns at most k rows in pick order; ties go to the lower.
    >>> coverage_order(np.array([[1, 0], [.9, .2], [0, .5]]), 2)
    [1, 2]
    """
    n, best = len(cover), np.full(cover.shape[1], -np.inf)
    cover, left = np.asarray(cover, dtype=np.float64), np.ones(len(cover), dtype=np.bool_)
    size = cover.sum(axis=1).max(initial=0.0)
    cover = cover / size if 0 < size < 1 else cover  # weights of words that all texts hold are small in a large pool
    order = list[int]()
    while len(order) < min(k, n):
        value = np.where(left, np.maximum(best, cover).sum(axis=1), -np.inf)
        if order and value.max() <= best.sum() + 10.0**-_GAIN_DIGITS:
            if not np.isfinite(best).any():  # no parts at all: nothing to tell candidates apart
                return [*order, *np.flatnonzero(left)[: k - len(order)].tolist()]
            best = np.full(cover.shape[1], -np.inf)
            value = np.where(left, cover.sum(axis=1), -np.inf)
        row = argmax_row(value, _GAIN_DIGITS)
        order.append(row)
        left[row] = False
        best = np.maximum(best, cover[row])
    return order


@dataclass
class _CoverageSelector(BaseSelector, ABC):
    candidates: int = setting(200, "how many are looked at; k when k is larger", ge=1)
    sort: str = setting("picks", "best first by picks, or by relevance", choices=("relevance", "picks"))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Candidates together, covers one by one; scores are each example's own cover."""
        return [self._set(rows, cover, k) for rows, cover in self._covers(batch, max(k, self.candidates))]

    def _set(self, rows: IntArray, cover: FloatArray, k: int) -> Choice:
        scores = cover.sum(axis=1)
        order = np.array(coverage_order(cover, k), dtype=np.int64)
        if self.sort == "relevance":
            order = order[top_rows(scores[order], len(order), significant=True)]
        return Choice(rows[order], scores[order])

    @abstractmethod
    def _covers(self, batch: CandidateBatch, k: int) -> Iterator[tuple[IntArray, FloatArray]]:
        """For each query at most k candidate rows, and how they cover its parts (candidates, parts)."""


@dataclass
class CosineCoverageSelector(_CoverageSelector):
    """Takes a set that covers every dimension of the query's embedding.

    A set's value is the sum over dimensions of its best member's product with the query there; each step adds the
    example that raises it most, and a new round begins when nothing does.
    Use it as a cheap set-level alternative to `knn` for structured outputs.
    Cost: as `knn`, and k passes over a (candidates, dimensions) matrix per query.
    """

    name: ClassVar[str] = "cosine-coverage"
    summary: ClassVar[str] = "sets that cover every dimension of the query's embedding"
    needs: ClassVar[Needs] = Needs(embedder=True)
    source: ClassVar[str] = "Gupta, Gardner & Singh 2023, arXiv 2305.14907"
    example: ClassVar[str] = "cosine-coverage,candidates=100"

    def prepare(self) -> None:
        """Vectors of the pool."""
        self._embed()

    def _covers(self, batch: CandidateBatch, k: int) -> Iterator[tuple[IntArray, FloatArray]]:
        for candidates, near, target in zip(batch, batch.nearest(k), batch.query_vectors, strict=True):
            yield near.rows, candidates.vectors(near.rows) * target


def token_recall(query: FloatArray, other: FloatArray, weights: FloatArray) -> FloatArray:
    """BERTScore recall, token by token (Zhang et al. 2020): w_q times the best cosine of query token q in ``other``.

    query (t, d) and other (s, d): unit rows; cosines count to 1e-6. weights (t,) sum to 1. Returns (t,); its sum is the
    recall, 1 for a text with itself.
    """
    result: FloatArray = weights * np.round((query @ other.T).max(axis=1).astype(np.float64), SCORE_DECIMALS)
    return result


@dataclass
class SetBSRSelector(_CoverageSelector):
    """Takes a set whose token vectors cover every token of the query (BERTScore recall of the set).

    A token counts as covered as well as the set's best member covers it, so that each example brings what the others
    lack.
    Use it for compositional tasks such as semantic parsing, where demonstrations should show each part of the query.
    Cost: token vectors of the `candidates` nearest are computed for each query and kept in memory.
    """

    name: ClassVar[str] = "set-bsr"
    summary: ClassVar[str] = "sets that cover every token of the query by contextual token vectors (BERTScore recall)"
    needs: ClassVar[Needs] = Needs(embedder=True, token_vectors=True)
    source: ClassVar[str] = "Gupta, Gardner & Singh 2023, arXiv 2305.14907"
    example: ClassVar[str] = "set-bsr,weights=idf"

    sort: str = setting(
        "relevance", "best first by relevance (as the source shows them), or by picks", choices=("relevance", "picks")
    )
    weights: str = setting(
        "uniform", "uniform, or idf: rare tokens of the query count more", choices=("uniform", "idf")
    )

    def prepare(self) -> None:
        """Vectors of the pool; token vectors are made when they are asked for."""
        self.kept_: dict[int, tuple[list[str], FloatArray]] = {}
        self._embed()

    def _covers(self, batch: CandidateBatch, k: int) -> Iterator[tuple[IntArray, FloatArray]]:
        encoded = self._tokens([q.text for q in batch.queries])
        for (tokens, vectors), near in zip(encoded, batch.nearest(k), strict=True):
            texts = self._pool_tokens(near.rows)
            weights = self._weights(tokens, [words for words, _ in texts])
            parts = [token_recall(vectors, other, weights) for _, other in texts]
            yield near.rows, np.array(parts, dtype=np.float64).reshape(len(near.rows), len(tokens))

    def _weights(self, tokens: Sequence[str], texts: Sequence[Sequence[str]]) -> FloatArray:
        if self.weights == "uniform":
            return np.full(len(tokens), 1 / max(1, len(tokens)))
        seen = Counter(token for words in texts for token in set(words))
        idf = np.array([np.log((len(texts) + 1) / (seen[t] + 1)) for t in tokens])
        return idf / idf.sum() if idf.sum() > 0 else np.full(len(tokens), 1 / max(1, len(tokens)))

    def _tokens(self, texts: Sequence[str]) -> list[tuple[list[str], NDArray[np.float32]]]:
        assert self.kit_.embedder is not None
        return encode_tokens_checked(self.kit_.embedder, texts)

    def _pool_tokens(self, rows: IntArray) -> list[tuple[list[str], FloatArray]]:
        if sum(v.nbytes for _, v in self.kept_.values()) > _KEPT_TOKENS:
            self.kept_.clear()
        new = np.array([r for r in rows.tolist() if r not in self.kept_], dtype=np.int64)
        texts = [e.text for e in self.pool_.examples_at(new)]
        self.kept_.update(zip(new.tolist(), self._tokens(texts), strict=True))
        return [self.kept_[int(r)] for r in rows]


@dataclass
class BM25CoverageSelector(TermSelector, _CoverageSelector):
    """Takes a set that covers every word of the query, rare words first.

    A word counts as covered by the set's largest BM25 weight of it.
    Use it as `set-bsr` where there is no embedder.
    Cost: BM25, and k passes over a (candidates, words of the query) matrix.
    """

    name: ClassVar[str] = "bm25-coverage"
    summary: ClassVar[str] = "sets that cover every word of the query, rare ones first, by BM25 weight"
    needs: ClassVar[Needs] = Needs(random_fill=True)
    source: ClassVar[str] = "Gupta, Gardner & Singh 2023, arXiv 2305.14907"
    example: ClassVar[str] = "bm25-coverage,candidates=100"

    def _set(self, rows: IntArray, cover: FloatArray, k: int) -> Choice:
        choice = super()._set(rows, cover, k)
        # what shares no word with the query has no weight, and was drawn
        return replace(choice, random=int(np.count_nonzero(choice.scores == 0)))

    def _covers(self, batch: CandidateBatch, k: int) -> Iterator[tuple[IntArray, FloatArray]]:
        for candidates in batch:
            positions, _ = self.nearest(candidates, k)
            terms = sorted(set(self.index_.known(candidates.query.text)))
            yield self.pool_.rows[positions], self.index_.weights(terms, positions)
