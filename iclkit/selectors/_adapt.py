"""A selector that was not written with ``BaseSelector``: completed once, so that no caller asks what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from iclkit.errors import UsageError
from iclkit.prompts import Template
from iclkit.records import Query, Selection, Spec
from iclkit.selectors._base import BaseSelector, Needs, Selector, SelectorCost

if TYPE_CHECKING:
    from iclkit.pool import PoolView
    from iclkit.selectors._base import Kit

REQUIRED = ("fit", "select")
OPTIONAL = ("spec", "needs", "select_many", "cost", "shared", "capacity", "explain", "template_for")


class ForeignSelector:
    """Any object with ``fit`` and ``select`` as a whole ``Selector``.

    Members of the protocol that the object has are used; the others get the answers that fit a selector about which
    nothing is known: it asks no LM, shares no picks, can pick as many as are wanted, and explains nothing. Whether it
    draws at random is not known either, so it is run under every seed.
    """

    def __init__(self, inner: Any, spec: Spec) -> None:
        self.inner, self._spec = inner, spec
        self._has = {name for name in OPTIONAL if name in dir(inner)}

    @property
    def spec(self) -> Spec:
        """The object's own, or what it was made from."""
        spec: Spec = self.inner.spec if "spec" in self._has else self._spec
        return spec

    @property
    def needs(self) -> Needs:
        """As declared, with a seed for the task."""
        declared: Needs = self.inner.needs if "needs" in self._has else Needs(pool=False)
        return replace(declared, seed_scope="task")

    def fit(self, pool: PoolView, kit: Kit) -> Self:
        """Fit the object."""
        self.inner.fit(pool, kit)
        return self

    def select(self, query: Query, k: int) -> Selection:
        """The object's selection."""
        selection: Selection = self.inner.select(query, k)
        return selection

    def select_many(self, queries: Sequence[Query], k: int) -> list[Selection]:
        """The object's own batch, or one query after the other."""
        if "select_many" in self._has:
            return [*self.inner.select_many(queries, k)]
        return [self.select(query, k) for query in queries]

    def cost(self, k: int) -> SelectorCost:
        """Nothing unless the object says so."""
        cost: SelectorCost = self.inner.cost(k) if "cost" in self._has else SelectorCost()
        return cost

    def shared(self, k: int) -> int:
        """Nothing unless the object says so."""
        return int(self.inner.shared(k)) if "shared" in self._has else 0

    def capacity(self, k: int) -> int:
        """k unless the object says otherwise."""
        return int(self.inner.capacity(k)) if "capacity" in self._has else k

    def explain(self, query: Query, k: int) -> tuple[str, ...]:
        """Nothing unless the object can."""
        return tuple(self.inner.explain(query, k)) if "explain" in self._has else ()

    def template_for(self, given: Template | None) -> Template:
        """The one given unless the object has its own."""
        template: Template | None = self.inner.template_for(given) if "template_for" in self._has else given
        return template or Template()


def adapt(selector: object, spec: Spec) -> Selector:
    """The object as a selector, completed where it is not one of ours. UsageError without ``fit`` or ``select``."""
    if isinstance(selector, BaseSelector | ForeignSelector):
        return selector
    missing = [name for name in REQUIRED if name not in dir(selector)]
    if missing:
        raise UsageError(
            f"selector {spec.name!r} is a {type(selector).__name__} without {' and '.join(missing)}; derive it from "
            "iclkit.selectors.BaseSelector, or give it fit(pool, kit) and select(query, k)"
        )
    return ForeignSelector(selector, spec)
