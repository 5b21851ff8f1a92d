"""Selectors made of selectors: how they are written in a spec, what they need together, how they are fitted."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from iclkit.errors import UsageError
from iclkit.prompts import Template
from iclkit.records import SeedScope, Selection, Spec, digest
from iclkit.registry import parse_specs
from iclkit.selectors._base import (
    RANDOM_FILL,
    BaseSelector,
    Choice,
    IntArray,
    Needs,
    Selector,
    SelectorCost,
    strongest,
)

if TYPE_CHECKING:
    from iclkit.pool import PoolView
    from iclkit.selectors._base import Kit


@dataclass
class CompositeSelector(BaseSelector, ABC):
    """A selector that asks others, which see the same pool and kit."""

    part_settings: ClassVar[tuple[str, ...]] = ("of",)
    """The settings that name the others."""
    takes_lists: ClassVar[bool] = False
    """Whether such a setting names two or more, and not exactly one."""

    own_needs: ClassVar[Needs] = Needs()
    """What it needs besides the needs of its parts."""
    keeps_fill: ClassVar[bool] = False
    """Whether the random picks of its parts stay marked as random in its own choices."""

    parts_: list[Selector] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from iclkit.selectors._registry import make_selector

        super().__post_init__()
        self.parts_ = []
        for setting in self.part_settings:
            text = getattr(self, setting)
            specs = parse_specs(text)
            if self.takes_lists != (len(specs) > 1):
                wanted = "two or more selectors, e.g. [bm25,knn]" if self.takes_lists else "one selector, e.g. knn"
                raise UsageError(f"selector {self.name!r}: {setting} is {text}; give {wanted}")
            self.parts_ += map(make_selector, specs)

    @property
    def needs(self) -> Needs:
        """Its own needs and those of its parts, together."""
        return combined_needs([self.own_needs, *(part.needs for part in self.parts_)], keeps_fill=self.keeps_fill)

    @property
    def spec(self) -> Spec:
        """Name and settings; version and content change with those of its parts."""
        own, parts = super().spec, [part.spec for part in self.parts_]
        contents = [part.content for part in parts]
        return replace(
            own,
            version=own.version + sum(part.version - 1 for part in parts),
            content=digest(contents, 8) if any(contents) else "",
        )

    def prepare(self) -> None:
        """Fit the parts."""
        self._fit_parts(self.pool_, self.kit_)

    def _fit_parts(self, pool: PoolView, kit: Kit) -> None:
        for part in self.parts_:
            part.fit(pool, kit)

    def cost(self, k: int) -> SelectorCost:
        """What the parts ask, together."""
        costs = [part.cost(k) for part in self.parts_]
        return SelectorCost(sum(c.per_task for c in costs), sum(c.per_query for c in costs))

    def template_for(self, given: Template | None) -> Template:
        """As the parts want it, one after the other."""
        for part in self.parts_:
            given = part.template_for(given)
        return given or Template()

    def _choice(self, selection: Selection) -> Choice:
        """A part's selection as this selector's own choice, its random picks included."""
        random = sum(p.why == RANDOM_FILL for p in selection)
        return Choice(self._rows(selection), np.array([p.score for p in selection]), random)

    def _rows(self, selection: Selection) -> IntArray:
        """Row handles of a part's picks."""
        rows = (self.pool_.row_of(i) for i in selection.ids)
        return np.array([row for row in rows if row is not None], dtype=np.int64)


def combined_needs(needs: Sequence[Needs], *, keeps_fill: bool) -> Needs:
    """The needs of a selector that has parts with these; random picks that lose their mark make seeds differ."""
    fill = any(n.random_fill for n in needs)
    scopes: list[SeedScope] = [n.seed_scope for n in needs] + (["query"] if fill and not keeps_fill else [])

    def joined(costs: Sequence[str]) -> str:
        return " + ".join(c for c in costs if c != "0") or "0"

    return Needs(
        embedder=any(n.embedder for n in needs),
        lm=any(n.lm for n in needs),
        labels=any(n.labels for n in needs),
        reranker=any(n.reranker for n in needs),
        log_probs=any(n.log_probs for n in needs),
        token_vectors=any(n.token_vectors for n in needs),
        seed_scope=strongest(scopes),
        random_fill=fill and keeps_fill,
        lm_calls_per_query=joined([n.lm_calls_per_query for n in needs]),
        lm_calls_per_task=joined([n.lm_calls_per_task for n in needs]),
    )
