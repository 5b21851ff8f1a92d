"""What answers queries, whatever it is made of: the protocol, what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

from iclkit.pool import PoolView
from iclkit.prompts import Template
from iclkit.records import CostEstimate, Json, Prompt, Query, Selection, Spec
from iclkit.selectors import Needs

_MEASURED = 32  # of the longest texts are counted with a tokenizer


@dataclass(frozen=True)
class TaskContext:
    """What a predictor may know of a task: its pool and its rules, never its test rows.

    ``answers``: every text that may be scored as an answer. ``outputs``: every text that may be shown as one, where
    answers are written; both say how much room an answer takes. ``answer_tokens``: most tokens of a written answer, as
    far as the task says it.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    template: Template
    view: PoolView
    answers: frozenset[str] = frozenset()
    outputs: tuple[str, ...] = ()
    answer_tokens: int | None = None

    @property
    def writes(self) -> bool:
        """Whether answers are written, and not chosen among labels or choices."""
        return not self.labels and self.kind != "multiple_choice"

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The named fields of its inputs; () for plain texts."""
        first = self.view.examples[0].input if len(self.view) else ""
        return () if isinstance(first, str) else (*first,)

    @cached_property
    def largest_outputs(self) -> tuple[str, ...]:
        """The longest outputs, to be counted with an LM's tokenizer."""
        return largest_texts(self.outputs)

    @cached_property
    def prompt_sizes(self) -> dict[object, float]:
        """Mean tokens of prompts, by what they are made of: kept for the next predictor of the same task."""
        return {}


def largest_texts(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts with the most bytes, always the same ones: a tokenizer makes at most about a token of each byte."""
    return tuple(sorted(texts, key=lambda text: (-len(text.encode("utf-8", "replace")), text))[:_MEASURED])


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one query, and what a row keeps of how it came about.

    ``output`` is "" where there is no answer; ``raw`` is what it would be without calibration. For answers that are
    chosen: ``logprobs`` (nats, summed over the tokens of each label), ``shares`` (log-probabilities, normed over the
    labels, by which the answer was chosen), ``greedy`` (labels that greedy decoding would write; None for a written
    answer), and ``tokens`` of each label where a later step divides by them. ``failure``: why the query has no answer
    at all.
    """

    query_id: str
    output: str = ""
    raw: str = ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    greedy: tuple[str, ...] | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    selection: Selection | None = None
    prompt: Prompt | None = None
    notes: tuple[str, ...] = ()
    failure: str = ""


class Predictor(Protocol):
    """Anything that answers queries. Callers use these members alone."""

    @property
    def spec(self) -> Spec:
        """Name, settings and version; a part of a run's identity."""
        ...

    @property
    def needs(self) -> Needs:
        """What it must be given."""
        ...

    @property
    def parts(self) -> Mapping[str, Json]:
        """What decides its answers beside task, pool and ``spec``, by name; a part of a run's identity, and the axes
        along which a board compares. Known after ``fit``. A ``selector`` is what chose demonstrations; ``lm``,
        ``embedder`` and ``reranker`` are models by name and fingerprint; ``template``, ``k``, ``seed``, ``order``,
        ``budget``, ``normalize``, ``calibrate``, ``prior``, ``answer_tokens`` and ``stop`` mean what they mean in a
        prompt; other names are free."""
        ...

    @property
    def facts(self) -> Mapping[str, Json]:
        """What a reader of its answers should know, and no part of the identity. ``selector`` is its name on a
        board."""
        ...

    @property
    def usage(self) -> Mapping[str, float]:
        """What it has cost since ``fit``: seconds and LM work by name, counters that only grow."""
        ...

    def fit(self, context: TaskContext) -> Self:
        """Get to know a task. Asks no LM; what takes long waits for the first ``predict``."""
        ...

    def cost(self, queries: Sequence[Query]) -> CostEstimate:
        """What reading the answers to these queries would ask of an LM, before anything is selected or asked: sizes
        are estimated from a few prompts, and what a cache knows is not left out. Call after ``fit``. What a selector
        asks of its own is told by ``Selector.cost``."""
        ...

    def predict(self, queries: Sequence[Query]) -> list[Prediction]:
        """One prediction for each query, which depends on that query alone and not on those beside it."""
        ...

    @property
    def finishes(self) -> bool:
        """Whether ``finish`` changes anything."""
        ...

    def finish(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """All predictions of a run after the last batch, where they must be seen together (batch calibration).

        May be called on its own result. A prediction that does not change is returned as the same object.
        """
        ...
