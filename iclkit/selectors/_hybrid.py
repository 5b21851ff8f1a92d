"""A fixed part that all prompts share, so that it is read once, and the nearest next to the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from iclkit.errors import UsageError
from iclkit.pool import CandidateBatch
from iclkit.records import Query
from iclkit.selectors._base import Choice, SelectorCost
from iclkit.selectors._composite import CompositeSelector

_EVERYBODY = Query("", id="every query")


@dataclass
class HybridSelector(CompositeSelector):
    """a few near the query, after a fixed part that all prompts share (and an engine reads once)"""

    name: ClassVar[str] = "hybrid"
    source: ClassVar[str] = "fixed and retrieved demonstrations together; cf. Bertsch et al. 2024, arXiv 2405.00200"

    near: int = 4  # how many of the k are the query's own; the rest is fixed
    of: str = "knn"  # the selector of the query's own
    fixed: str = "random-fixed"  # the selector of the fixed part

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.near < 0:
            raise UsageError(f"hybrid: near is {self.near}; give 0 or more")
        if len(self.parts_) != 2:
            raise UsageError("hybrid: give one selector as of and one as fixed")

    def part_specs(self) -> Sequence[str]:
        """The query's own, and the fixed part."""
        return [self.of, self.fixed]

    def shared(self, k: int) -> int:
        """The fixed part."""
        return max(0, k - self.near)

    def cost(self, k: int) -> SelectorCost:
        """The fixed part is asked once."""
        nearest, fixed = (part.cost(k) for part in self.parts_)
        return SelectorCost(nearest.per_task + fixed.per_task + fixed.per_query, nearest.per_query)

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """The query's own first, so that best-last shows them last; the fixed part in one order for all, with score 0.

        What the fixed part shows is not shown again; a query that excludes some of it gets more of its own instead.
        """
        nearest, fixed = self.parts_
        shared = self._rows(fixed.select(_EVERYBODY, max(0, k - self.near)))
        fixed_ids = frozenset(self.pool_.ids_at(shared))
        kept = [shared[candidates.allowed(shared)] for candidates in batch]
        queries = [replace(q, exclude=q.exclude | fixed_ids) for q in batch.queries]
        sizes = {len(rows) for rows in kept}
        selections = {size: nearest.select_many(queries, k - size) for size in sizes}  # nearly always one size
        choices = []
        for number, rows in enumerate(kept):
            picks = selections[len(rows)][number]
            scores = np.r_[[p.score for p in picks], np.zeros(len(rows))]
            choices.append(Choice(np.r_[self._rows(picks), rows], scores))
        return choices
