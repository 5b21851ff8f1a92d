"""A search for an ordered list whose best answer is known, in place of a language model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class OrderedSetProblem:
    """Lists of ``k`` of ``n`` items; the value of one lies in [0, 1], and the best list has exactly 1.

    Every item is a random direction in ``dim`` dimensions and every position of the list another, a little of which it
    shares with the rest; what an item is worth at a position is their inner product, bent by a tanh. With ``ordered``
    False all positions have one direction, and only the set counts. ``noise`` is the standard deviation of a value
    asked for with a generator. The optimum is an assignment problem, so it is known for any size.
    """

    n: int = 20
    k: int = 4
    dim: int = 8
    seed: int = 0
    ordered: bool = True
    noise: float = 0.0

    @cached_property
    def vectors(self) -> FloatArray:
        """(n, dim) unit rows: what an embedder would say of the items."""
        made = np.random.default_rng([self.seed, 0]).standard_normal((self.n, self.dim))
        unit: FloatArray = made / np.linalg.norm(made, axis=1, keepdims=True)
        return unit

    @cached_property
    def worth(self) -> FloatArray:
        """(n, k): what each item is worth at each position."""
        shared, own = self._directions
        directions = 0.5 * shared + own if self.ordered else np.repeat(shared, self.k, axis=1)
        return np.tanh(self.vectors @ directions)

    @cached_property
    def _directions(self) -> tuple[FloatArray, FloatArray]:
        """What all positions share (dim, 1), and what each has of its own (dim, k)."""
        rng = np.random.default_rng([self.seed, 1])
        return rng.standard_normal((self.dim, 1)), rng.standard_normal((self.dim, self.k))

    def costs(self, count: int = 20, kind: float = 1.0) -> FloatArray:
        """(n, count): one minus the cosine of each item and each of ``count`` made-up validation items.

        The latter lie about the direction that all positions share, the closer the larger ``kind`` is; with 0 they lie
        anywhere and tell nothing of what an item is worth.
        """
        shared = self._directions[0][:, 0] / np.linalg.norm(self._directions[0])
        made = kind * shared + np.random.default_rng([self.seed, 2]).standard_normal((count, self.dim)) / self.dim**0.5
        costs: FloatArray = 1 - self.vectors @ (made / np.linalg.norm(made, axis=1, keepdims=True)).T
        return costs

    @cached_property
    def best(self) -> tuple[int, ...]:
        """A list of value 1."""
        from scipy.optimize import linear_sum_assignment

        rows, places = linear_sum_assignment(self.worth, maximize=True)
        return tuple(int(r) for r in rows[np.argsort(places)])

    def value(self, rows: tuple[int, ...], rng: np.random.Generator | None = None) -> float:
        """The value of a list, first shown first, with noise where a generator is given."""
        low, high = self._ends
        value = (self._sum(rows) - low) / (high - low)
        return value if rng is None else value + self.noise * float(rng.standard_normal())

    @cached_property
    def _ends(self) -> tuple[float, float]:
        from scipy.optimize import linear_sum_assignment

        worst = linear_sum_assignment(self.worth)
        return float(self.worth[worst].sum()), self._sum(self.best)

    def _sum(self, rows: tuple[int, ...]) -> float:
        return float(self.worth[list(rows), range(self.k)].sum())
