"""Demonstrations that make the query itself most predictable: conditional entropy of the test input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.errors import DataError
from iclkit.lm import ask_each
from iclkit.pool import CandidateBatch
from iclkit.records import Example, Prompt, Query, ScoreRequest
from iclkit.selectors._base import BaseSelector, Choice, FloatArray, IntArray, Needs, SelectorCost
from iclkit.selectors._label_scorer import LabelScorer
from iclkit.selectors._maths import top_rows
from iclkit.settings import setting


def input_requests(prompt: Prompt) -> list[ScoreRequest]:
    """How likely is the query's input where it stands in the prompt? One request per field, exactly its characters.

    The sum over the requests is log p(input | everything before it): the template's own words and the labels are not
    part of it. Blanks before a field go with the field. DataError when the prompt does not say where the query is.
    """
    fields = [s for s in prompt.spans if s.kind == "query"]
    if not fields:
        raise DataError("a chat template that rewrites its messages hides where the query stands; use a plain template")
    requests = []
    for span in fields:
        if not prompt.text[span.start : span.end].strip():
            continue  # an empty field has no token to score
        context = prompt.text[: span.start].rstrip(" \t")
        requests.append(ScoreRequest(context, prompt.text[len(context) : span.end]))
    return requests


@dataclass
class ConESelector(BaseSelector):
    """Of the nearest, takes those after which the LM finds the query itself most likely.

    The conditional entropy of the query given an example tells how much the example prepares for it. Each candidate is
    tried alone.
    Use it where labels are many or outputs are free text, since no label is asked about.
    Cost: one score per candidate and input field for each query.
    """

    name: ClassVar[str] = "cone"
    summary: ClassVar[str] = (
        "of the nearest, those after which the LM finds the query itself most likely (conditional entropy)"
    )
    needs: ClassVar[Needs] = Needs(
        embedder=True, lm=True, log_probs=True, lm_calls_per_query="max(candidates, k) * input fields"
    )
    source: ClassVar[str] = "Peng et al. 2024, arXiv 2401.12087"
    example: ClassVar[str] = "cone,candidates=20 --lm smollm2-135m"

    candidates: int = setting(30, "how many of the nearest are tried, each alone; k when k is larger", ge=1)

    def prepare(self) -> None:
        """Vectors of the pool, and the prompts' ingredients."""
        self._embed()
        self.scorer_ = LabelScorer.of(self.pool_, self.kit_)

    def cost(self, k: int) -> SelectorCost:
        """Each candidate once for each field of the input, for each query."""
        fields = [f for f in self.scorer_.template.fields if f not in ("output", "letter")]
        return SelectorCost(per_query=min(max(k, self.candidates), len(self.pool_)) * len(fields))

    def choose_many(self, batch: CandidateBatch, k: int) -> list[Choice]:
        """Encode and search together, then ask about all candidates of all queries in one call of the LM.

        Scores are log p(input | demonstration), the negative conditional entropy, in nats.
        """
        nearest = [near.rows for near in batch.nearest(max(k, self.candidates))]
        pairs = [
            (candidates.query, example)
            for candidates, examples in zip(batch, batch.examples(nearest), strict=True)
            if _has_text(candidates.query)
            for example in examples
        ]
        likelihood = iter(self._likelihood(pairs))
        return [
            self._best(rows, np.array([next(likelihood) for _ in rows]), k)
            if _has_text(candidates.query)
            else Choice(rows[:k], np.zeros(len(rows[:k])), notes=(_EMPTY,))
            for candidates, rows in zip(batch, nearest, strict=True)
        ]

    def _likelihood(self, pairs: Sequence[tuple[Query, Example]]) -> FloatArray:
        """(pairs,): log p(input | demonstration) in nats; NaN where the LM cannot read the two together."""
        requests, owners = list[ScoreRequest](), list[int]()
        totals = np.full(len(pairs), np.nan)
        for number, (query, example) in enumerate(pairs):
            prompt = self.scorer_.prompt_or_none(query, [example])
            if prompt is not None and not prompt.dropped:
                fields = input_requests(prompt)
                requests += fields
                owners += [number] * len(fields)
                totals[number] = 0
        scores, failed = ask_each(self.scorer_.lm.score, requests, owners)
        totals[[*failed]] = np.nan
        for position, owner in enumerate(owners):
            if owner not in failed:
                totals[owner] += scores[position].logprob
        return totals

    @staticmethod
    def _best(rows: IntArray, likelihood: FloatArray, k: int) -> Choice:
        """The k candidates of highest likelihood, ties to the nearer, which come first.

        Candidates without one are taken only where there are not enough others, nearest first, and score as the last.
        """
        known, unknown = np.flatnonzero(~np.isnan(likelihood)), np.flatnonzero(np.isnan(likelihood))
        best = known[top_rows(likelihood[known], k)]
        scores = likelihood[best]
        more = unknown[: k - len(best)]
        scores = np.r_[scores, np.full(len(more), scores.min(initial=0.0))]
        left_out = f"{len(unknown)} of {len(rows)} candidates were left out: the LM cannot read the query after them"
        notes = () if not len(unknown) else (left_out,) if len(known) else (_UNREADABLE,)
        return Choice(rows[np.r_[best, more]], scores, notes=notes)


_EMPTY = "the query is empty, so the LM was not asked: these are the nearest"
_UNREADABLE = "the LM cannot read the query after any of the candidates: these are the nearest"


def _has_text(query: Query) -> bool:
    return bool(query.text.strip())
