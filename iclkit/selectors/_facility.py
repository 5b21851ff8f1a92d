"""One set for the task that stands for the pool: facility location, least similar to each other, cluster centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.pool import Candidates, Scope
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._fixed_ranking import FixedRankingSelector
from iclkit.selectors._maths import SCORE_DECIMALS, argmax_row, hash_keys, shuffled_keys, top_rows

_BLOCK = 1 << 25  # cosines that are held at once
_GAIN_DIGITS = 9  # gains shrink with every pick, and float64 sums of cosines are off by less


def facility_order(vectors: FloatArray, m: int) -> tuple[list[int], list[float]]:
    """Greedy facility location: the set that maximises the sum over all v of the cosine to the nearest of the set.

    vectors (n, d): unit rows. Gains only shrink as the set grows, so a candidate is looked at again only while its last
    known gain could still win (Minoux 1978). Returns at most m rows in pick order with their gains, the first one's
    counted from a cosine of -1; ties go to the lower row.
    """
    n, vectors = len(vectors), vectors.astype(np.float64)
    covered = np.full(n, -1.0)
    size = max(1, _BLOCK // max(1, n))
    gains = np.concatenate([_marginal_gains(vectors, slice(at, at + size), covered) for at in range(0, n, size)])
    order, values = list[int](), list[float]()
    fresh = np.ones(n, dtype=np.bool_)
    while len(order) < min(m, n):
        row = argmax_row(gains, _GAIN_DIGITS)
        while not fresh[row]:
            stale = np.flatnonzero(~fresh & (gains >= gains[row] - 10.0**-_GAIN_DIGITS))[:32]
            for start in stale.tolist():
                gains[start] = _marginal_gains(vectors, slice(start, start + 1), covered)[0]
            fresh[stale] = True
            row = argmax_row(gains, _GAIN_DIGITS)
        order.append(row)
        values.append(float(gains[row]))
        covered = np.maximum(covered, vectors @ vectors[row])
        fresh[:] = False
        gains[order] = -np.inf
        fresh[order] = True
    return order, values


def _marginal_gains(vectors: FloatArray, rows: slice, covered: FloatArray) -> FloatArray:
    """(rows,): what each of these rows would add."""
    gains: FloatArray = np.maximum(vectors[rows] @ vectors.T - covered, 0).sum(axis=1)
    return gains


@dataclass
class FacilitySelector(FixedRankingSelector):
    """Shows every query one set that all examples of the pool are near to (maximum facility location).

    Greedy: each step takes the example that raises the sum of every example's best cosine with the set most.
    Use it for a fixed prompt that represents the pool; unlike `kmeans`, k is a prefix of k + 1.
    Cost: O(n²) products of the pool's vectors, in blocks.
    """

    name: ClassVar[str] = "mfl"
    summary: ClassVar[str] = (
        "one set for all queries whose members are near to everything in the pool (maximum facility location)"
    )
    needs: ClassVar[Needs] = Needs(embedder=True, whole_pool=True)
    source: ClassVar[str] = "baseline of vote-k; Su et al. 2023, arXiv 2209.01975"
    example: ClassVar[str] = "mfl"

    def prepare(self) -> None:
        """Vectors of the pool."""
        super().prepare()
        self.vectors_ = self._vectors()

    def rank(self, m: int) -> tuple[IntArray, FloatArray]:
        """Greedy; a score is the gain at its step."""
        order, gains = facility_order(self.vectors_, m)
        return np.array(order, dtype=np.int64), np.array(gains)


def spread_order(vectors: FloatArray, m: int, start: int) -> tuple[list[int], list[float]]:
    """Greedy least sum of cosines to those taken, from a given start. vectors (n, d): unit rows; ties to the lower."""
    total = np.zeros(len(vectors))
    order, values = list[int](), list[float]()
    while len(order) < min(m, len(vectors)):
        row = argmax_row(-total, _GAIN_DIGITS) if order else start
        order.append(row)
        values.append(float(-total[row]))
        total = np.where(
            np.isin(np.arange(len(vectors)), order), np.inf, total + np.round(vectors @ vectors[row], SCORE_DECIMALS)
        )
    return order, values


@dataclass
class DiverseSelector(FixedRankingSelector):
    """Shows every query one set whose members are as unlike each other as can be.

    Greedy from a random first member: each step takes the example with the smallest sum of cosines with the set.
    Use it as a baseline: it favors outliers.
    Cost: k products with the pool's vectors.
    """

    name: ClassVar[str] = "diverse"
    summary: ClassVar[str] = "one set for all queries whose members are as unlike each other as can be"
    needs: ClassVar[Needs] = Needs(embedder=True, whole_pool=True, seed_scope="task")
    source: ClassVar[str] = "baseline of vote-k; Su et al. 2023, arXiv 2209.01975"

    def prepare(self) -> None:
        """Vectors of the pool, and a random first member."""
        super().prepare()
        self.vectors_ = self._vectors()
        keys = shuffled_keys(hash_keys(self.pool_.ids), "diverse", self.kit_.seed)
        self.start_ = int(np.argmin(keys))

    def rank(self, m: int) -> tuple[IntArray, FloatArray]:
        """Greedy; a score is minus the sum of cosines at its step."""
        order, values = spread_order(self.vectors_, m, self.start_)
        return np.array(order, dtype=np.int64), np.array(values)


@dataclass
class KMeansSelector(BaseSelector):
    """Shows every query the centers of k clusters of the pool, large clusters first.

    Use it for a fixed prompt that represents the pool.
    Cost: one k-means (scikit-learn) for each k.
    """

    name: ClassVar[str] = "kmeans"
    summary: ClassVar[str] = (
        "one set for all queries: the example nearest to the center of each of k clusters, large clusters first"
    )
    needs: ClassVar[Needs] = Needs(embedder=True, whole_pool=True, seed_scope="task")
    source: ClassVar[str] = "diversity baseline; Baek et al. 2024, arXiv 2412.16926"

    def prepare(self) -> None:
        """Vectors of the pool; clusters are made when k is known."""
        self.vectors_ = self._vectors()
        self.clusters_: dict[int, tuple[IntArray, FloatArray]] = {}

    def shared(self, k: int) -> int:
        """All of them."""
        return k

    def choose(self, candidates: Candidates, k: int) -> Choice:
        """Of each cluster the allowed member nearest to its center, then the nearest to any; scores are cosines."""
        if k not in self.clusters_:
            self.clusters_[k] = self._clusters(k)
        clusters, near = self.clusters_[k]
        left = np.where(self._allowed(candidates.scope), near, -np.inf)
        heads = list[int]()
        for cluster in np.argsort(-np.bincount(clusters), kind="stable"):
            heads += top_rows(left, 1, clusters == cluster).tolist()
        left[heads] = -np.inf
        chosen = np.array([*heads, *top_rows(left, k - len(heads))], dtype=np.int64)
        return Choice(self.pool_.rows[chosen], near[chosen])

    def _allowed(self, scope: Scope) -> BoolArray:
        allowed = np.ones(len(self.pool_), dtype=np.bool_)
        allowed[self._outside(scope)] = False
        return allowed

    def _clusters(self, k: int) -> tuple[IntArray, FloatArray]:
        """(n,) cluster of each row, and its cosine to the center."""
        from sklearn.cluster import KMeans

        by_id = np.argsort(self.pool_.ids, kind="stable")  # the start of the search must not depend on the row order
        vectors = self.vectors_[by_id].astype(np.float64)
        k = min(k, len(np.unique(np.round(vectors, SCORE_DECIMALS), axis=0)))
        model = KMeans(k, n_init=1, random_state=self.kit_.seed).fit(vectors)
        centers = model.cluster_centers_[model.labels_]
        norms = np.maximum(np.linalg.norm(centers, axis=1), 1e-12)
        clusters, near = np.empty(len(by_id), np.int64), np.empty(len(by_id))
        clusters[by_id] = model.labels_
        near[by_id] = np.round((vectors * centers).sum(axis=1) / norms, SCORE_DECIMALS)
        return clusters, near
