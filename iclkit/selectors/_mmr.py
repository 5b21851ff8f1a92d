"""Near the query and unlike each other: maximal marginal relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.selectors._base import FloatArray
from iclkit.selectors._maths import argmax_row
from iclkit.selectors._nearest_reorder import NearestReorderSelector
from iclkit.settings import setting


def mmr_order(sim: FloatArray, near: FloatArray, k: int, trade_off: float) -> tuple[list[int], list[float]]:
    """Greedy maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998).

    sim (n,): cosine of each candidate with the query. near (n, n): cosine between candidates. Each step takes the
    candidate of largest ``trade_off * sim - (1 - trade_off) * max near to those taken``, where the maximum over none
    is 0. Returns at most k row numbers, best first, with the value each had when taken; ties go to the lower row.
    ValueError unless 0 <= trade_off <= 1.
    >>> mmr_order(np.array([.9, .8, .1]), np.array([[1, .9, 0], [.9, 1, 0], [0, 0, 1]]), 2, .5)[0]
    [0, 2]
    """
    if not 0 <= trade_off <= 1:
        raise ValueError(f"trade_off is {trade_off}; give 0 (diversity only) to 1 (relevance only)")
    relevance = trade_off * np.asarray(sim, dtype=np.float64)
    value, closest = relevance.copy(), np.full(len(sim), -np.inf)
    taken = np.zeros(len(sim), dtype=np.bool_)
    order, values = list[int](), list[float]()
    while len(order) < min(k, len(sim)):
        row = argmax_row(np.where(taken, -np.inf, value))
        order.append(row)
        values.append(float(value[row]))
        taken[row] = True
        closest = np.maximum(closest, near[row])
        value = relevance - (1 - trade_off) * closest
    return order, values


@dataclass
class MMRSelector(NearestReorderSelector):
    """Takes one example at a time: near the query, and unlike those already taken.

    Each step takes the largest trade_off * cos(query, example) - (1 - trade_off) * max cos(example, taken).
    Use it where the pool holds many near-copies, so that the nearest k say one thing k times.
    Cost: as `knn`, and k passes over a (candidates, candidates) matrix per query.
    """

    name: ClassVar[str] = "mmr"
    summary: ClassVar[str] = "near the query and unlike each other, greedily, among the nearest candidates"
    source: ClassVar[str] = "Carbonell & Goldstein 1998, SIGIR"
    example: ClassVar[str] = "mmr,trade_off=0.3"

    trade_off: float = setting(0.5, "1: relevance only (knn), 0: diversity only", ge=0, le=1)
    candidates: int = setting(100, "how many of the nearest are looked at; k when k is larger", ge=1)

    @property
    def depth(self) -> int:
        """The setting ``candidates``."""
        return self.candidates

    def reorder(self, sim: FloatArray, near: FloatArray, k: int) -> tuple[Sequence[int], FloatArray]:
        """Greedy order of the candidates; a score is the marginal relevance at its step."""
        order, values = mmr_order(sim, near, k, self.trade_off)
        return order, np.array(values)
