"""Near the query and spanning much space: greedy MAP inference of a determinantal point process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.selectors._base import FloatArray
from iclkit.selectors._maths import argmax_row, top_rows
from iclkit.selectors._nearest_reorder import NearestReorderSelector
from iclkit.settings import setting

_EPS = 1e-5  # share of a candidate's own volume; float32 cosines are off by 1e-7, rounded ones by 5e-7


def dpp_order(sim: FloatArray, near: FloatArray, k: int, scale: float) -> list[int]:
    """Greedy MAP of a DPP whose kernel weighs relevance (Ye et al. 2023, arXiv 2302.05698; Chen et al. 2018).

    sim (n,): cosine of each candidate with the query. near (n, n): cosine between candidates. The kernel is
    K_ij = r_i S_ij r_j with S = (1 + near) / 2 and r = exp((sim + 1) / (4 scale)); since log det K_A =
    2 sum log r + log det S_A, only S is factored (incremental Cholesky) and relevance is added in logs, so that a small
    scale cannot underflow. A candidate whose remaining volume is below 1e-5 of its own adds nothing but rounding error
    and waits; when only such are left, the rest is filled by relevance. Returns at most k rows in pick order; ties go
    to the lower row. ValueError unless scale > 0.
    >>> dpp_order(np.array([.9, .9, .8]), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), 3, .1)
    [0, 2, 1]
    """
    sim = np.asarray(sim, dtype=np.float64)
    order = [row for row, _ in dpp_steps(sim, near, k, scale)]
    left = sim.copy()
    left[order] = -np.inf
    return [*order, *top_rows(left, k - len(order)).tolist()]


def dpp_steps(sim: FloatArray, near: FloatArray, k: int, scale: float) -> Iterator[tuple[int, FloatArray]]:
    """The greedy steps of ``dpp_order``, as far as there is volume left to add.

    For each the row that is added, and what each row (n,) would add to the log-determinant, relevance counted from the
    most relevant row's; -inf for rows that are in the set or add no volume.
    """
    if scale <= 0:
        raise ValueError(f"scale is {scale}; give more than 0 (small: relevance, large: diversity)")
    n = len(sim)
    relevance = (sim - sim.max(initial=-1.0)) / (2 * scale)  # 2 log r, up to a constant
    volume = (1 + np.diagonal(near).astype(np.float64)) / 2
    alive = volume > _EPS
    factors = np.empty((min(k, n), n))
    for done in range(min(k, n)):
        if not alive.any():
            return
        gain = np.full(n, -np.inf)
        gain[alive] = relevance[alive] + np.log(volume[alive])
        row = argmax_row(gain)
        factors[done] = ((1 + near[row]) / 2 - factors[:done, row] @ factors[:done]) / np.sqrt(volume[row])
        volume = volume - factors[done] ** 2
        alive &= volume > _EPS
        alive[row] = False
        yield row, gain


@dataclass
class DPPSelector(NearestReorderSelector):
    """Takes a set that is near the query and spans much space: greedy MAP of a determinantal point process.

    Each step takes the candidate that adds most to the log-determinant of the kernel r_i S_ij r_j, where S is the
    similarity of two examples and r grows with an example's relevance; `scale` weighs the two.
    Use it as `mmr`; a determinant looks at the set as a whole and not at the nearest member alone.
    Cost: as `knn`, and k steps over `candidates` rows per query (incremental Cholesky).
    """

    name: ClassVar[str] = "dpp"
    summary: ClassVar[str] = "near the query and spanning much space: greedy MAP of a determinantal point process"
    source: ClassVar[str] = "CEIL's DPP-MAP; Ye et al. 2023, arXiv 2302.05698"
    example: ClassVar[str] = "dpp,scale=0.05"

    scale: float = setting(0.1, "small: relevance only (knn); large: diversity only", gt=0)
    candidates: int = setting(100, "how many of the nearest are looked at; k when k is larger", ge=1)
    sort: str = setting(
        "relevance", "best first by relevance (as the source shows them), or by picks", choices=("relevance", "picks")
    )

    @property
    def depth(self) -> int:
        """The setting ``candidates``."""
        return self.candidates

    def reorder(self, sim: FloatArray, near: FloatArray, k: int) -> tuple[Sequence[int], FloatArray]:
        """Greedy set of the candidates; scores are cosines with the query."""
        order = dpp_order(sim, near, k, self.scale)
        if self.sort == "relevance":
            order.sort()  # candidates come nearest first
        return order, sim[order]
