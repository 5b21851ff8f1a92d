"""What runs will cost, told by going through them with an LM that only plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iclkit.eval._plan import PlannedRun
from iclkit.lm import LM, GenerateRequest, Generation, OnDone, Score, ScoreRequest
from iclkit.records import Message, Progress


@dataclass
class Rehearsed:
    """What an LM would be asked. Tokens of prompts and answers; ``seconds`` is None where the LM cannot be probed.

    ``calls``: distinct sequences to compute. ``tokens_asked``: read one by one. ``tokens_computed``: after sharing and
    the cache. ``tokens_generated``: at most so many are written, whose time ``seconds`` does not hold.
    """

    requests: int = 0
    calls: int = 0
    tokens_asked: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    seconds: float | None = 0.0


class _Rehearsal:
    """An LM in whose place nothing is computed: requests are planned and counted, every answer is blank."""

    rehearsal = True  # nobody keeps its answers

    def __init__(self, lm: Any) -> None:
        self.lm, self.seen = lm, Rehearsed()
        self.name, self.fingerprint, self.context_size = lm.name, lm.fingerprint, lm.context_size
        self.scoring = getattr(lm, "scoring", "")

    def count_tokens(self, text: str) -> int:
        """As the LM itself."""
        return int(self.lm.count_tokens(text))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """As the LM itself."""
        return str(self.lm.render_chat(messages))

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Count the plan; all scores are alike."""
        seen = self.seen
        seen.requests += len(requests)
        if not hasattr(self.lm, "plan"):
            texts = {(r.context, r.continuation): self.count_tokens(r.context + r.continuation) for r in requests}
            seen.calls += len(texts)
            seen.tokens_asked += sum(texts[r.context, r.continuation] for r in requests)
            seen.tokens_computed += sum(texts.values())
            seen.seconds = None
        else:
            plan = self.lm.plan(requests)
            seen.calls += plan.calls
            seen.tokens_asked += plan.tokens_asked
            seen.tokens_computed += plan.tokens_computed
            seen.tokens_cached += plan.tokens_cached
            probe = getattr(self.lm, "estimate_seconds", None)
            seen.seconds = None if probe is None or seen.seconds is None else seen.seconds + probe(plan)
        return self._answer([Score(-1.0, 1, False)] * len(requests), on_done)

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """Count the prompts and the most that will be written; all answers are empty."""
        tokens = sum(self.count_tokens(r.context) for r in requests)
        self.seen.requests += len(requests)
        self.seen.calls += len(set(requests))
        self.seen.tokens_asked += tokens
        self.seen.tokens_computed += tokens
        self.seen.tokens_generated += sum(0 if r.choices else r.max_tokens for r in requests)
        return self._answer([Generation(r.choices[0] if r.choices else "", 0, "length") for r in requests], on_done)

    @staticmethod
    def _answer(answers: list[Any], on_done: OnDone[Any] | None) -> list[Any]:
        if on_done is not None:
            on_done([*enumerate(answers)])
        return answers


def rehearse(jobs: Sequence[PlannedRun], progress: Progress | None = None) -> Rehearsed:
    """Select and assemble everything that the runs need, and count what an LM would be asked; nothing is kept.

    A selector that asks the LM itself is given blank answers, so what it would ask next is an estimate. Progress is in
    queries. Errors as ``evaluate``.
    """
    seen = Rehearsed()
    total, done = sum(len(job.bench.queries) for job in jobs), 0
    for job in jobs:
        stand_in: Any = _Rehearsal(job.lm)
        stand_in.seen = seen
        lm: LM = stand_in
        job.with_lm(lm).run(None)
        done += len(job.bench.queries)
        if progress is not None:
            progress(done, total)
    return seen
