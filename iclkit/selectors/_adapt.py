"""A selector that was not written with ``BaseSelector``: completed once, so that no caller asks what it can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from iclkit.errors import DataError, UsageError
from iclkit.pool import as_view
from iclkit.prompts import Template
from iclkit.records import Json, Query, QueryLike, Selection, Spec
from iclkit.selectors._base import BaseSelector, Kit, Needs, PoolLike, Selector, SelectorCost, as_queries

if TYPE_CHECKING:
    from iclkit.pool import PoolView

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
        self._fitted: tuple[PoolView, Kit] | None = None
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

    def fit(self, pool: PoolLike, kit: Kit | None = None) -> Self:
        """Fit the object."""
        view, kit = as_view(pool), kit or Kit()
        self.inner.fit(view, kit)
        self._fitted = view, kit
        return self

    def select(
        self, query: QueryLike, k: int, *, where: Mapping[str, Json] | None = None, exclude: Iterable[str] = ()
    ) -> Selection:
        """The object's selection."""
        return self.select_many([Query.of(query, where=where, exclude=exclude)], k)[0]

    def select_many(self, queries: Sequence[QueryLike], k: int) -> list[Selection]:
        """The object's own batch, or one query after the other. DataError for a pick that a query's filter rules out:
        an object may not know of filters."""
        asked = as_queries(queries)
        many = "select_many" in self._has
        found = [*self.inner.select_many(asked, k)] if many else [self.inner.select(query, k) for query in asked]
        if self._fitted is None:
            return found
        view, _ = self._fitted
        return [_completed(self.spec.name, view, q, selection) for q, selection in zip(asked, found, strict=True)]

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

    def save(self, folder: str | Path, *, k: int = 8, copy_pool: bool = False, follow: bool = False) -> Path:
        """Keep it in a folder; only a selector that an installed package provides can be loaded again."""
        from iclkit.selectors._saved import Chooser

        if self._fitted is None:
            raise DataError(f"selector {self.spec.name!r} has not seen a pool yet; call fit(pool, kit) before save")
        return Chooser(self, *self._fitted, k=k, follow=follow).save(folder, copy_pool=copy_pool)


def _completed(name: str, view: PoolView, query: Query, selection: Selection) -> Selection:
    if query.where:
        allowed = {*view.matching(query.where).tolist()}
        if any(view.row_of(i) not in allowed for i in selection.ids):
            raise DataError(
                f"selector {name!r} does not keep to the filter of a query ({dict(query.where)}); fit it on the part "
                f"of the pool instead: pool.view(where=…)"
            )
    return selection if selection.examples else replace(selection, examples=tuple(view.examples_of(selection.ids)))


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
