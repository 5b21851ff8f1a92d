"""Demonstrations that make the query itself most predictable: conditional entropy of the test input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.errors import DataError, UsageError
from iclkit.records import Prompt, Query, ScoreRequest
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, FloatArray, IntArray, Needs
from iclkit.selectors._label_scorer import LabelScorer
from iclkit.selectors._maths import top_rows


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
    """of the nearest, those after which the LM finds the query itself most likely (conditional entropy)"""

    name: ClassVar[str] = "cone"
    needs: ClassVar[Needs] = Needs(embedder=True, lm=True, lm_calls_per_query="max(candidates, k) * input fields")
    source: ClassVar[str] = "Peng et al. 2024, arXiv 2401.12087"

    candidates: int = 30  # how many of the nearest are tried, each alone; k when k is larger

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UsageError(f"cone: candidates is {self.candidates}; give 1 or more")

    def prepare(self) -> None:
        """Vectors of the pool, and the prompts' ingredients."""
        self._vectors()
        self.scorer_ = LabelScorer.of(self.pool_, self.kit_)

    def cost(self, k: int) -> tuple[int, int]:
        """Each candidate once for each field of the input, for each query."""
        fields = [f for f in self.scorer_.template.fields if f not in ("output", "letter")]
        return 0, min(max(k, self.candidates), len(self.pool_)) * len(fields)

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:
        """Scores are log p(input | demonstration), the negative conditional entropy, in nats."""
        return self.choose_many([query], k, [allowed])[0]

    def choose_many(self, queries: Sequence[Query], k: int, allowed: Sequence[BoolArray]) -> list[Choice]:
        """Encode and search together, then ask about all candidates of all queries in one call of the LM."""
        found = self._nearest(self._query_vectors(queries), max(k, self.candidates), allowed)
        asked = [(q, example) for q, (rows, _) in zip(queries, found, strict=True) for example in self._examples(rows)]
        requests = [input_requests(self.scorer_.prompt(q, [e])) if _says(q) else [] for q, e in asked]
        scores = iter(self.scorer_.lm.score([r for own in requests for r in own]))
        totals = np.array([sum(next(scores).logprob for _ in own) for own in requests])
        cuts = np.cumsum([len(rows) for rows, _ in found])[:-1]
        return [
            self._best(query, rows, own, k)
            for query, (rows, _), own in zip(queries, found, np.split(totals, cuts), strict=True)
        ]

    @staticmethod
    def _best(query: Query, rows: IntArray, likelihood: FloatArray, k: int) -> Choice:
        best = top_rows(likelihood, k)  # ties go to the nearer candidate, which comes first
        notes = () if _says(query) else ("the query is empty, so the LM was not asked: these are the nearest",)
        return Choice(rows[best], likelihood[best], notes=notes)


def _says(query: Query) -> bool:
    return bool(query.text.strip())
