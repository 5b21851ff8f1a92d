"""What selectors that ask an LM share: prompts as the task will show them, label distributions, entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iclkit.errors import NeedError
from iclkit.lm import LM, ScoreRequest
from iclkit.pool import PoolView
from iclkit.prompts import Template, assemble, open_prompt
from iclkit.records import Example, Prompt, Query
from iclkit.selectors._base import FloatArray, Kit

NORMALISE = ("sum", "mean")
_SHOWN_OFTEN = 4  # without a label set, outputs count as labels when each is there this often on average

PromptQuery = tuple[Query, Sequence[Example]]
"""A query and the demonstrations to show with it, best first."""


def log_softmax(values: FloatArray) -> FloatArray:
    """Log-probabilities (…, n) of unnormalised ones, over the last axis."""
    values = np.asarray(values, dtype=np.float64)
    total: FloatArray = np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return values - total


def entropy(logprobs: FloatArray) -> FloatArray:
    """Entropy in nats (…,) of distributions given as unnormalised log-probabilities (…, n); 0 log 0 is 0.

    >>> entropy(np.log([0.5, 0.5])).round(4).item()
    0.6931
    """
    logp = log_softmax(logprobs)
    p = np.exp(logp)
    total: FloatArray = np.sum(p * np.where(p > 0, logp, 0.0), axis=-1)
    return -total


def label_set(pool: PoolView, kit: Kit) -> tuple[str, ...]:
    """The task's labels, or the pool's outputs where each is there four times on average, or ()."""
    if kit.labels:
        return tuple(dict.fromkeys(kit.labels))
    outputs = sorted({e.output for e in pool.examples})
    return tuple(outputs) if _SHOWN_OFTEN * len(outputs) <= len(pool) else ()


@dataclass(frozen=True, slots=True)
class LabelScorer:
    """An LM with the task's template, order policy and labels: shows it what the final prompt would show."""

    lm: LM
    template: Template
    labels: tuple[str, ...]
    order: str
    seed: int
    reserve: int

    @classmethod
    def of(cls, pool: PoolView, kit: Kit) -> LabelScorer:
        """From a kit that has an LM; the template is the plain one when the task has none."""
        assert kit.lm is not None
        labels = label_set(pool, kit)
        reserve = kit.reserve or max((kit.lm.count_tokens(label) for label in labels), default=0)
        return cls(kit.lm, kit.template or Template(), labels, kit.order, kit.seed, reserve)

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
        options = tuple(dict.fromkeys(query.choices)) or self.labels
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
            prompt, options = self.prompt(query, examples), self.options(query)
            answers = (self.template.answer(o, query.choices) for o in options)
            requests += [ScoreRequest(prompt.text, prompt.answer_prefix + a) for a in answers]
            sizes.append(len(options))
        scores = self.lm.score(requests)
        values = np.array([s.logprob / max(1, s.tokens) if normalise == "mean" else s.logprob for s in scores])
        return np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
