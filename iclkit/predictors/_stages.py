"""From a query to a prompt, a stage at a time: select, shape, assemble. Functions over records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from iclkit.errors import DataError, IclkitError, PoolError, RequestError
from iclkit.lm import LM
from iclkit.pool import PoolView
from iclkit.prompts import Template, assemble
from iclkit.records import Example, Prompt, Query, Selection, Spec, clean_text, fold_text
from iclkit.selectors import Selector


def concerns_one_query(error: IclkitError) -> bool:
    """Whether an error says something of one query or its prompt, and not of the pool, the LM or the command."""
    return isinstance(error, RequestError | DataError) and not isinstance(error, PoolError)


class Failures(dict[int, str]):
    """Why queries of a batch have no answer, by position; nothing further is done with these."""

    @contextmanager
    def of(self, position: int) -> Iterator[None]:
        """Inside, an error that concerns this query alone ends the query; all others are raised."""
        try:
            yield
        except IclkitError as error:
            if not concerns_one_query(error):
                raise
            self[position] = str(error)


@dataclass(frozen=True, slots=True)
class PromptInput:
    """What one prompt is made of: a query and its demonstrations, best first."""

    query: Query
    demonstrations: tuple[Example, ...] = ()


class Shape(Protocol):
    """A stage between selecting and assembling: changes what is shown. Its spec is a part of the predictor's."""

    @property
    def spec(self) -> Spec:
        """Name and settings."""
        ...

    def __call__(self, inputs: Sequence[PromptInput]) -> list[PromptInput]:
        """One for each, in the same order; what stands beside an input must not change it."""
        ...


def select(selector: Selector, queries: Sequence[Query], k: int, failures: Failures) -> list[Selection]:
    """A selection for each query, an empty one where it fails."""
    try:
        return selector.select_many(queries, k)
    except IclkitError as error:
        if not concerns_one_query(error):
            raise
    selections = [Selection(query, (), selector.spec) for query in queries]
    for position, query in enumerate(queries):  # which of them is it?
        with failures.of(position):
            (selections[position],) = selector.select_many([query], k)
    return selections


def demonstrations_of(selection: Selection, view: PoolView) -> PromptInput:
    """The selected examples themselves. DataError for an id that is not in the view."""
    return PromptInput(selection.query, tuple(view.examples_of(selection.ids)))


def assemble_prompt(
    shown: PromptInput,
    template: Template,
    lm: LM | None,
    *,
    order: str,
    seed: int,
    budget: int | None,
    reserve: int,
) -> Prompt:
    """The prompt under the budget (the LM's context where None is given), with ``reserve`` tokens for the answer.

    Without an LM nothing counts tokens, and nothing is left out.
    """
    if lm is None:
        return assemble(template, shown.query, shown.demonstrations, order=order, seed=seed)
    return assemble(
        template,
        shown.query,
        shown.demonstrations,
        order=order,
        budget=budget or lm.context_size,
        count_tokens=lm.count_tokens,
        render_chat=lm.render_chat if template.chat else None,
        seed=seed,
        reserve=reserve,
    )


def recorded_prompt(template: Template, query: Query, shown: Sequence[Example], lm: LM | None = None) -> Prompt:
    """A row's prompt again, from the examples that it showed, in prompt order. ``lm`` renders chat templates."""
    return assemble(
        template,
        query,
        list(shown),
        order="best-first",
        count_tokens=lm.count_tokens if lm else None,
        render_chat=lm.render_chat if lm else None,
    )


def leave_one_out(view: PoolView, examples: Iterable[Example]) -> tuple[Query, ...]:
    """Examples as queries, each kept from seeing itself and its doubles in the pool."""

    def spelling(e: Example) -> str:
        return fold_text(e.text) or clean_text(e.text)  # a text of signs alone folds to nothing

    doubles: dict[str, set[str]] = {}
    for e in view.examples:
        doubles.setdefault(spelling(e), set()).add(e.id)
    return tuple(Query(e.input, e.choices, frozenset(doubles.get(spelling(e), ())) | {e.id}, e.id) for e in examples)


def content_free_inputs_of(shown: PromptInput, prompt: Prompt, content_free: Sequence[Query]) -> list[PromptInput]:
    """The demonstrations that a prompt kept, before each of the content-free queries."""
    kept = {*prompt.shown}
    demonstrations = tuple(e for e in shown.demonstrations if e.id in kept)
    return [replace(shown, query=query, demonstrations=demonstrations) for query in content_free]
