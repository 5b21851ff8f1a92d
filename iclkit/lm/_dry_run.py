"""A language model that is never asked: what work would cost is found by doing it with this one."""

from __future__ import annotations

from collections.abc import Sequence

from iclkit.lm._protocol import LM, OnDone
from iclkit.lm._shape import ModelShape
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest, Usage


class DryRunLM:
    """Stands for another LM: every request is estimated and gets a blank answer. ``cost`` is the sum of the estimates.

    Work that goes by the answers (a selector that asks the LM) goes on with blank ones, so what it would ask next is
    an estimate too. Who stores answers must not store these: see ``PoolView.overlay``.
    """

    def __init__(self, lm: LM) -> None:
        self.lm, self.cost = lm, CostEstimate()

    @property
    def name(self) -> str:
        """As the LM itself."""
        return self.lm.name

    @property
    def fingerprint(self) -> str:
        """As the LM itself, so that what the real run would find stored is found."""
        return self.lm.fingerprint

    @property
    def context_size(self) -> int:
        """As the LM itself."""
        return self.lm.context_size

    @property
    def scoring(self) -> str:
        """As the LM itself."""
        return self.lm.scoring

    @property
    def notes(self) -> tuple[str, ...]:
        """As the LM itself."""
        return self.lm.notes

    @property
    def shape(self) -> ModelShape | None:
        """As the LM itself."""
        return self.lm.shape

    @property
    def usage(self) -> Usage:
        """``cost``, as what was asked; no time has passed."""
        cost = self.cost
        return Usage(
            cost.requests,
            cost.calls,
            cost.tokens_asked,
            cost.tokens_computed,
            cost.tokens_cached,
            cost.tokens_generated,
        )

    def count_tokens(self, text: str) -> int:
        """As the LM itself."""
        return self.lm.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """As the LM itself."""
        return self.lm.render_chat(messages)

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Equal scores for all. RequestError as the LM itself."""
        self.cost += self.lm.estimate(requests)
        scores = [Score(-1.0, 1, False)] * len(requests)
        if on_done is not None:
            on_done([*enumerate(scores)])
        return scores

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """Empty texts, or the first of the choices. RequestError as the LM itself."""
        self.cost += self.lm.estimate(requests)
        answers = [Generation(r.choices[0] if r.choices else "", 0, "length") for r in requests]
        if on_done is not None:
            on_done([*enumerate(answers)])
        return answers

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """As the LM itself."""
        return self.lm.estimate(requests)

    def dry_run(self) -> DryRunLM:
        """Another dry run of the same LM, that starts to count anew."""
        return DryRunLM(self.lm)
