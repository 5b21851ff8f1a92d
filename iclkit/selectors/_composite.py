"""Selectors made of selectors: how they are written in a spec, what they need together, how they are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from iclkit.records import Query, SeedScope, Selection
from iclkit.registry import parse_specs
from iclkit.selectors._base import RANDOM_FILL, BaseSelector, BoolArray, Choice, IntArray, Needs, Selector

if TYPE_CHECKING:
    from iclkit.pool import PoolView
    from iclkit.selectors._base import Kit


@dataclass
class CompositeSelector(BaseSelector):
    """A selector that asks others. ``inner`` builds them; they see the same pool and kit."""

    parts_: list[Selector] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from iclkit.selectors._registry import make_selector

        self.parts_ = [make_selector(spec) for text in self.inner() for spec in parse_specs(text)]
        self.needs = combined_needs([type(self).needs, *(p.needs for p in self.parts_)])  # type: ignore[misc]

    def inner(self) -> Sequence[str]:
        """The settings that hold specs of selectors."""
        return [getattr(self, "of")]  # noqa: B009

    def prepare(self) -> None:
        """Fit the parts."""
        self._fit_parts(self.pool_, self.kit_)

    def _fit_parts(self, pool: PoolView, kit: Kit) -> None:
        for part in self.parts_:
            part.fit(pool, kit)

    def cost(self, k: int) -> tuple[int, int]:
        """What the parts ask, together."""
        calls = [p.cost(k) for p in self.parts_ if isinstance(p, BaseSelector)]
        return sum(task for task, _ in calls), sum(query for _, query in calls)

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """One query as many."""
        return self.choose_many([query], k, [allowed])[0]

    def _choice(self, selection: Selection) -> Choice:
        """A part's selection as this selector's own choice, its random picks included."""
        random = sum(p.why == RANDOM_FILL for p in selection)
        return Choice(self._rows(selection), np.array([p.score for p in selection]), random)

    def _rows(self, selection: Selection) -> IntArray:
        """Rows of this selector's own pool."""
        return np.array(self.pool_.positions_of_ids(selection.ids), dtype=np.int64)


SEED_SCOPES: tuple[SeedScope, ...] = ("none", "query", "task")  # from what claims most to what claims least


def combined_needs(needs: Sequence[Needs]) -> Needs:
    def joined(costs: Sequence[str]) -> str:
        return " + ".join(c for c in costs if c != "0") or "0"

    return Needs(
        embedder=any(n.embedder for n in needs),
        lm=any(n.lm for n in needs),
        labels=any(n.labels for n in needs),
        reranker=any(n.reranker for n in needs),
        log_probs=any(n.log_probs for n in needs),
        lm_calls_per_query=joined([n.lm_calls_per_query for n in needs]),
        lm_calls_per_task=joined([n.lm_calls_per_task for n in needs]),
        seed_scope=max((n.seed_scope for n in needs), key=SEED_SCOPES.index, default="none"),
    )
