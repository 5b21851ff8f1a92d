"""What all tools ask for: a selector as the user has it, named values as a query, demonstrations in prompt order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from iclkit.embed import Embedder, load_embedder
from iclkit.errors import DataError, UsageError
from iclkit.pool import Pool
from iclkit.prompts import order_picks
from iclkit.records import Example, Json, Query, Selection
from iclkit.selectors import BaseSelector, Chooser, Kit, load_selector, make_selector

SelectorLike: TypeAlias = "Chooser | BaseSelector | str | Path"
"""A chooser, a fitted selector, or the folder of a saved one."""


def as_chooser(selector: SelectorLike, k: int | None = None) -> Chooser:
    """The chooser of whatever a user hands to a tool. UsageError for what is none, DataError for one not fitted."""
    if isinstance(selector, str | Path):
        return load_selector(selector)
    if isinstance(selector, BaseSelector):
        if not selector.fitted_:
            raise DataError(f"selector {selector.name!r} has not seen a pool yet; call fit(pool, kit) first")
        return Chooser(selector, selector.pool_, selector.kit_, k=8 if k is None else k)
    if not isinstance(selector, Chooser):
        raise UsageError(
            "a selector is a Chooser, a fitted selector or the folder of a saved one, not "
            f"{type(selector).__name__} ({selector!r:.60})"
        )
    return selector


def choose_from(examples: Iterable[Example], selector: str, kit: Kit, k: int) -> Chooser:
    """A selector by name, fitted on examples that are kept in memory."""
    pool = Pool.of(examples)
    view = pool.view()
    return Chooser(make_selector(selector).fit(view, kit), view, kit, k=k, pool=pool)


def settings_of(
    selector: str, embedder: str | Embedder | None, *, seed: int = 0, order: str = "best-last"
) -> tuple[str, Kit]:
    """A selector's spec and what to fit it with, for a tool that brings the examples.

    ``selector``: a name with settings, or the folder of a saved one, whose settings and models are used.
    """
    if Path(selector).is_dir():
        kept = load_selector(selector)
        return str(kept.spec), replace(kept.kit, labels=())  # those of its own pool
    needs = make_selector(selector).needs
    model = load_embedder(embedder) if isinstance(embedder, str) and needs.embedder else embedder
    return selector, Kit(
        embedder=model if needs.embedder and not isinstance(model, str) else None, seed=seed, order=order
    )


def in_prompt_order(chooser: Chooser, selection: Selection) -> list[Example]:
    """The examples of a selection as the prompt shows them: what is read first, first."""
    return order_picks(selection.examples, chooser.order, seed=chooser.kit.seed, query_id=selection.query.id)


@dataclass(frozen=True)
class Columns:
    """How a tool's named values stand for an example: some are its input, one is its output.

    ``inputs``: one name for a pool whose inputs are texts; for a pool of named fields, the fields, under their own
    names. ``where``: names of metadata that demonstrations must share with the query.
    """

    inputs: tuple[str, ...]
    output: str
    fields: bool
    where: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        chooser: Chooser,
        inputs: Sequence[str] | None = None,
        output: str | None = None,
        where: Sequence[str] = (),
    ) -> Columns:
        """The columns for a pool; names that are not given are the pool's own. UsageError where the pool has none."""
        first = chooser.view.examples[0].input if len(chooser.view) else ""
        fields = not isinstance(first, str)
        own = ("input",) if isinstance(first, str) else tuple(first)
        names = own if inputs is None else tuple([inputs] if isinstance(inputs, str) else inputs)
        if fields and set(names) != set(own):
            raise UsageError(
                f"the inputs of the pool have the fields {', '.join(own)}, and the input keys are {', '.join(names)}"
            )
        if not fields and len(names) != 1:
            raise UsageError(
                f"the inputs of the pool are texts, and there are {len(names)} input keys ({', '.join(names)}); name "
                "the one that holds the text"
            )
        return cls(names, "output" if output is None else output, fields, tuple(where))

    def query(self, values: Mapping[str, Any]) -> Query:
        """The query of some named values, of which there may be more. UsageError for one that is missing."""
        for name in (*self.inputs, *self.where):
            if name not in values:
                raise UsageError(f"no value for {name!r}; given are {', '.join(map(str, values)) or 'none'}")
        where: dict[str, Json] = {name: values[name] for name in self.where}
        if self.fields:
            return Query({name: str(values[name]) for name in self.inputs}, where=where)
        return Query(str(values[self.inputs[0]]), where=where)

    def example(self, values: Mapping[str, Any]) -> Example:
        """The example of some named values; those that are neither input nor output are its metadata."""
        if self.output not in values:
            raise UsageError(f"no value for {self.output!r}; given are {', '.join(map(str, values)) or 'none'}")
        query = self.query({**dict.fromkeys(self.where, ""), **values})
        meta = {k: v for k, v in values.items() if k not in self.inputs and k != self.output}
        return Example(query.input, str(values[self.output]), meta=meta)

    def values(self, example: Example) -> dict[str, Any]:
        """The named values of an example: its metadata, its input, its output."""
        inputs = {self.inputs[0]: example.input} if isinstance(example.input, str) else dict(example.input)
        return {**example.meta, **inputs, self.output: example.output}
