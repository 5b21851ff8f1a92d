"""What selectors that ask an LM share: prompts as the task will show them, label distributions, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclkit.errors import NeedError
from iclkit.lm import LM
from iclkit.pool import PoolView
from iclkit.prompts import (
    Template,
    answer_options,
    answer_requests,
    assemble,
    infer_labels,
    log_probs,
    log_softmax,
    open_prompt,
)
from iclkit.records import Example, Prompt, Query, ScoreRequest
from iclkit.selectors._base import FloatArray, Kit

PromptQuery = tuple[Query, Sequence[Example]]
"""A query and the demonstrations to show with it, best first."""


def entropy(logprobs: FloatArray) -> FloatArray:
    """Entropy in nats (…,) of distributions given as unnormalised log-probabilities (…, n); 0 log 0 is 0.

    >>> entropy(np.log([0.5, 0.5])).round(4).item()
    0.6931
    """
    logp = log_softmax(logprobs)
    p = np.exp(logp)
    total: FloatArray = np.sum(p * np.where(p > 0, logp, 0.0), axis=-1)
    return -total


@dataclass(frozen=True, slots=True)
class LabelScorer:
    """An LM with the task's template, order policy and labels: shows it what the final prompt would show."""

    lm: LM
    template: Template
    labels: tuple[str, ...]
    order: str
    seed: int
    reserve: int
    task_labels: tuple[str, ...] = ()
    """The label set that the task says it has; ``labels`` may be inferred."""

    @classmethod
    def of(cls, pool: PoolView, kit: Kit) -> LabelScorer:
        """From a kit that has an LM; the template is the plain one when the task has none."""
        assert kit.lm is not None
        labels = kit.labels or infer_labels(e.output for e in pool.examples)
        reserve = kit.reserve or max((kit.lm.count_tokens(label) for label in labels), default=0)
        return cls(kit.lm, kit.template or Template(), labels, kit.order, kit.seed, reserve, kit.labels)

    def prompt(self, query: Query, examples: Sequence[Example], template: Template | None = None) -> Prompt:
        """The prompt under the LM's context size, in the task's order policy; by another template if one is given."""
        template = template or self.template
        render = self.lm.render_chat if template.chat else None
        return assemble(template, query, examples, render_chat=render, **self._settings(self.reserve))

    def open_prompt(self, examples: Sequence[Example], reserve: int) -> str:
        """A text to be continued by ``reserve`` tokens of further demonstrations."""
        return open_prompt(self.template, examples, **self._settings(reserve))

    def _settings(self, reserve: int) -> dict[str, Any]:
        budget = {"budget": self.lm.context_size, "count_tokens": self.lm.count_tokens, "reserve": reserve}
        return {"order": self.order, "seed": self.seed, **budget}

    def options(self, query: Query) -> tuple[str, ...]:
        """The answers to weigh for a query: its own choices, or the label set. NeedError when there are none."""
        options = answer_options(query, self.task_labels, self.labels)
        if not options:
            raise NeedError(
                f"query {query.id} has neither a label set nor choices to weigh; this selector needs a task with labels"
            )
        return options

    def label_logprobs(self, asked: Sequence[PromptQuery], normalise: str) -> list[FloatArray]:
        """For each prompt (labels,): log-probability in nats of each option, in one call of the LM.

        ``sum`` adds up a label's tokens, ``mean`` divides by their number.
        """
        requests, sizes = list[ScoreRequest](), list[int]()
        for query, examples in asked:
            options = self.options(query)
            requests += answer_requests(self.prompt(query, examples), self.template, options, query.choices)
            sizes.append(len(options))
        values = log_probs(self.lm.score(requests), normalise)
        return np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
