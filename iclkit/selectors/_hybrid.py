"""A fixed part that all prompts share, so that it is read once, and the nearest next to the query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from iclkit.pool import CandidateBatch
from iclkit.records import Query
from iclkit.selectors._base import Choice, SelectorCost
from iclkit.selectors._composite import CompositeSelector
from iclkit.settings import setting

_EVERYBODY = Query("", id="every query")


@dataclass
class HybridSelector(CompositeSelector):
    """A few examples near the query, after a fixed part that all prompts share.

    Use it for many-shot prompts: the fixed part is read once by an engine with a prefix cache, and the few near ones
    bring most of what retrieval brings.
    Cost: that of the two selectors, the fixed one once.
    """

    name: ClassVar[str] = "hybrid"
    summary: ClassVar[str] = (
        "a few near the query, after a fixed part that all prompts share (and an engine reads once)"
    )
    source: ClassVar[str] = "fixed and retrieved demonstrations together; cf. Bertsch et al. 2024, arXiv 2405.00200"
    example: ClassVar[str] = "hybrid,near=4,fixed=random-fixed"

    part_settings: ClassVar[tuple[str, ...]] = ("of", "fixed")

    near: int = setting(4, "how many of the k are the query's own; the rest is fixed", ge=0)
    of: str = setting("knn", "the selector of the query's own examples")
    fixed: str = setting("random-fixed", "the selector of the fixed part")

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
