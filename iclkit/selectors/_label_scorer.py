"""What selectors that ask an LM share: prompts as the task will show them, label distributions, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclkit.errors import NeedError, OverBudget
from iclkit.lm import LM, ask_each
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
    """Entropy in nats (…,) of distributions given as unnormalized log-probabilities (…, n); 0 log 0 is 0.

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

    def prompt_or_none(
        self, query: Query, examples: Sequence[Example], template: Template | None = None
    ) -> Prompt | None:
        """As ``prompt``; None where instruction and query alone are more than the LM can read."""
        try:
            return self.prompt(query, examples, template)
        except OverBudget:
            return None

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

    def label_logprobs(self, prompts: Sequence[PromptQuery], normalize: str) -> list[FloatArray | None]:
        """For each prompt (labels,): log-probability in nats of each option, in one call of the LM.

        ``sum`` adds up a label's tokens, ``mean`` divides by their number. None for a prompt that the LM cannot answer.
        """
        requests, owners = list[ScoreRequest](), list[int]()
        for number, (query, examples) in enumerate(prompts):
            options, prompt = self.options(query), self.prompt_or_none(query, examples)
            if prompt is not None:
                requests += answer_requests(prompt, self.template, options, query.choices)
                owners += [number] * len(options)
        scores, failed = ask_each(self.lm.score, requests, owners)
        answered = [position for position, owner in enumerate(owners) if owner not in failed]
        values = dict(zip(answered, log_probs([scores[p] for p in answered], normalize).tolist(), strict=True))
        by_prompt = [list[float]() for _ in prompts]
        for position, value in values.items():
            by_prompt[owners[position]].append(value)
        return [np.array(scores_of) if scores_of else None for scores_of in by_prompt]
