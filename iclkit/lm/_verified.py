"""bf16-verified: answers at the speed of bf16 whose winners are those of float32.

Requests compete in groups: the labels of one context, or the requests that carry the same ``group``. All are scored in
bf16; a group whose best scores stand closer together than the error bound is scored again in float32.

The bound is ``DEVIATIONS`` standard deviations of the error of a score difference. The deviation is measured: once
per model on a built-in text, and again on every difference that a request list makes us verify; when those show a
larger deviation, the bound grows and the groups that now fall inside it are verified too, until none is left. With a
normal error, a winner outside five deviations is wrong once in some millions of groups. Which groups are verified
depends on the request list alone, so equal lists give equal answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from iclkit.lm._base import BaseLM
from iclkit.lm._protocol import LM, OnDone, numbered
from iclkit.lm._shape import ModelShape
from iclkit.lm._token_lm import best_choices, estimate_by_kind
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest, Usage

DEVIATIONS = 5.0
MIN_SAMPLES = 4
"""Fewer verified differences than this say nothing of a deviation; the closest groups, up to so many (one in sixteen),
are verified whatever the bound, so that a list tests the calibration itself."""
CALIBRATION = (
    "The market opens at seven, when the first boats are back and the gulls have already taken their share. "
    "Marta weighs two kilos of mussels for a man who asks every week whether they are fresh; every week she laughs. "
    "Question: how many kilos does he carry home in a month? Answer: eight, if he never misses a Saturday.\n"
    "Review: the acting is stiff and the jokes arrive late, yet I left the cinema in a good mood.\nSentiment: mixed\n"
    "A triangle with sides 3, 4 and 5 has an area of 6. In 1969 people walked on the moon for the first time. "
    "def total(prices):\n    return sum(p for p in prices if p > 0)\n"
    "Dear support team, my parcel was left in the rain and the label can no longer be read. Please send another one, "
    "or tell me how to get my money back. Kind regards, Ola."
)


class VerifiedLM(BaseLM):
    """``fast`` answers, ``exact`` decides where ``fast`` is too close to call. Generation is left to ``exact``."""

    def __init__(self, fast: LM, exact: LM) -> None:
        self.fast, self.exact = fast, exact
        self.name, self.context_size = exact.name, exact.context_size
        self.fingerprint = f"{exact.fingerprint}|verified{DEVIATIONS:g}|{fast.fingerprint}"
        self._deviation: float | None = None
        self._requests = 0

    @property
    def usage(self) -> Usage:
        """What both models did; ``tokens_asked`` counts each request once, for the first pass."""
        fast, exact = self.fast.usage, self.exact.usage
        return replace(
            fast + exact, requests=self._requests, tokens_asked=fast.tokens_asked, tokens_cached=fast.tokens_cached
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked and what is kept."""
        return tuple(dict.fromkeys((*self.fast.notes, *self.exact.notes)))

    @property
    def shape(self) -> ModelShape | None:
        """As either model's."""
        return self.exact.shape

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.exact.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.exact.render_chat(messages)

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the bf16 pass and the writing would cost; what must be verified is known only after the pass."""
        return estimate_by_kind(self.fast.estimate, self._estimate_generations, requests)

    def _estimate_generations(self, requests: Sequence[GenerateRequest]) -> CostEstimate:
        free = [i for i, r in enumerate(requests) if not r.choices]
        candidates = [(i, ScoreRequest(r.context, choice)) for i, r in enumerate(requests) for choice in r.choices]
        with numbered(free):
            written = self.exact.estimate([requests[i] for i in free])
        with numbered([i for i, _ in candidates]):
            scores = self.fast.estimate([r for _, r in candidates])
        return written + replace(scores, requests=len(requests) - len(free))

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A float32 continuation per request; a choice among ``choices`` is verified like any other group."""
        results: dict[int, Generation] = {}
        chosen = [i for i, r in enumerate(requests) if r.choices]
        if chosen:
            candidates = [ScoreRequest(requests[i].context, c, f"{i}") for i in chosen for c in requests[i].choices]
            with numbered([i for i in chosen for _ in requests[i].choices]):
                scores = self.score(candidates)
            results.update(zip(chosen, best_choices([requests[i] for i in chosen], scores), strict=True))
            if on_done is not None:
                on_done([*results.items()])
        free = [i for i in range(len(requests)) if i not in results]

        def done(part: Sequence[tuple[int, Generation]]) -> None:
            if on_done is not None:
                on_done([(free[i], g) for i, g in part])

        if free:
            self._requests += len(free)
            with numbered(free):
                results.update(zip(free, self.exact.generate([requests[i] for i in free], done), strict=True))
        return [results[i] for i in range(len(requests))]

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Scores whose best in each group is the best in float32; ``on_done`` is called once, at the end."""
        self._requests += len(requests)
        scores = self.fast.score(requests)
        fast = np.array([s.logprob for s in scores])
        groups = [np.array(g) for g in group_indices(requests) if len(g) > 1]
        exact = np.full(len(requests), np.nan)
        deviation = self.deviation() if groups else 0.0
        margins = [float(np.subtract(*np.sort(fast[g])[:-3:-1])) for g in groups]
        closest = {int(i) for i in np.argsort(margins, kind="stable")[: min(MIN_SAMPLES, len(groups) // 16)]}
        while True:
            bounds = [max(DEVIATIONS * deviation, m if i in closest else 0.0) for i, m in enumerate(margins)]
            wanted = [
                i
                for g, bound in zip(groups, bounds, strict=True)
                for i in close_candidates(fast[g], bound, g, requests)
                if math.isnan(exact[i])
            ]
            if not wanted:
                break
            with numbered(wanted):
                again = self.exact.score([requests[i] for i in wanted])
            for i, score in zip(wanted, again, strict=True):
                scores[i] = score
                exact[i] = score.logprob
            errors = margin_errors(fast, exact, groups)
            if len(errors) >= MIN_SAMPLES:
                deviation = max(deviation, float(np.sqrt(np.mean(errors**2))))
        if on_done is not None:
            on_done([*enumerate(scores)])
        return scores

    def deviation(self) -> float:
        """Standard deviation (nats) of bf16's error in the difference of two scores, on the built-in text."""
        if self._deviation is None:
            words = CALIBRATION.split(" ")
            rivals = (" the", " a", " and", " he", " 4", " no")
            requests = [
                ScoreRequest(" ".join(words[:n]), rival)
                for n in range(2, len(words), 3)
                for rival in (f" {words[n]}", *rivals)
                if words[n]
            ]
            requests = [r for r in requests if self.count_tokens(r.context + r.continuation) < self.context_size]
            fast = np.array([s.logprob for s in self.fast.score(requests)])
            exact = np.array([s.logprob for s in self.exact.score(requests)])
            errors = margin_errors(fast, exact, [np.array(g) for g in group_indices(requests)])
            # a context too short for the text leaves nothing to measure by: then every group is verified
            self._deviation = float(np.sqrt(np.mean(errors**2))) if len(errors) else math.inf
        return self._deviation


def group_indices(requests: Sequence[ScoreRequest]) -> list[list[int]]:
    """Indices of requests that compete: equal ``group``, or without one equal context."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for i, r in enumerate(requests):
        groups.setdefault((bool(r.group), r.group or r.context), []).append(i)
    return [*groups.values()]


def close_candidates(fast: Any, bound: float, group: Any, requests: Sequence[ScoreRequest]) -> list[int]:
    """Members (as request indices) that must be verified: those within ``bound`` of the best, if any rival is.

    Labels of one context are verified together: their float32 scores cost one pass, whichever are asked.
    """
    near = fast >= fast.max() - bound
    if near.sum() < 2:
        return []
    if len({requests[i].context for i in group}) == 1:
        return [int(i) for i in group]
    return [int(i) for i in group[near]]


def margin_errors(fast: Any, exact: Any, groups: Sequence[Any]) -> Any:
    """Errors of ``fast`` in the difference between each verified member and its group's best verified one."""
    out = []
    for g in groups:
        known = g[~np.isnan(exact[g])]
        if len(known) > 1:
            best = known[np.argmax(exact[known])]
            others = known[known != best]
            out.append((fast[others] - fast[best]) - (exact[others] - exact[best]))
    return np.concatenate(out) if out else np.zeros(0)
