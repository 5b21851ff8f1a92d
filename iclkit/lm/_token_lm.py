"""Language models whose requests are token ids: texts to ids, and results in the order of the requests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from iclkit.errors import RequestError
from iclkit.lm._base import BaseLM
from iclkit.lm._plan import Plan
from iclkit.lm._protocol import OnDone, numbered
from iclkit.lm._tokens import PromptTokenizer, TokenIds, TokenPair
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest


class TokenLM(BaseLM):
    """An LM whose requests are named by exact token ids, and which leaves out the answers that are known already.

    A backend writes ``plan_encoded``, ``score_encoded`` and ``generate_encoded``; one that shares the beginnings of
    prompts, or knows its own speed, says so in ``tokens_to_read``, ``seconds_for`` and ``seconds_to_write``.
    """

    codec: PromptTokenizer
    vocabulary: int | None = None
    """Rows of the model's embedding table, where the tokenizer may give ids beyond it."""
    reserved_tokens: ClassVar[int] = 0
    """Tokens that must fit behind a scored text."""

    @abstractmethod
    def plan_encoded(self, pairs: Sequence[TokenPair], known: Collection[int] = ()) -> Plan:
        """What ``score_encoded`` computes: planned for all pairs, then without the requests that are ``known``."""

    @abstractmethod
    def score_encoded(
        self, pairs: Sequence[TokenPair], on_done: OnDone[Score] | None = None, known: Collection[int] = ()
    ) -> Iterable[tuple[int, Score]]:
        """(request index, score) of every request that is not ``known``."""

    @abstractmethod
    def generate_encoded(
        self,
        prompts: Sequence[TokenIds],
        requests: Sequence[GenerateRequest],
        on_done: OnDone[Generation] | None = None,
        known: Collection[int] = (),
    ) -> Iterable[tuple[int, Generation]]:
        """(request index, generation) of every request that is not ``known``; choices are scored."""

    def tokens_to_read(self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest]) -> int:  # noqa: ARG002
        """Tokens of the prompts that ``generate_encoded`` reads, after sharing; none of the requests has choices."""
        return sum(map(len, prompts))

    def seconds_for(self, tokens: int) -> float | None:  # noqa: ARG002
        """Wall seconds that reading so many tokens takes; None where that is not known."""
        return None

    def seconds_to_write(self, tokens: int, rows: int) -> float | None:  # noqa: ARG002
        """Wall seconds that writing so many tokens for ``rows`` prompts takes; None where that is not known."""
        return None

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.codec.count(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.codec.render_chat(messages)

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats. RequestError for one beyond the context size."""
        scores = dict(self.score_encoded(self.encode_scores(requests), on_done))
        return [scores[i] for i in range(len(requests))]

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request."""
        answers = dict(self.generate_encoded(self.encode_prompts(requests), requests, on_done))
        return [answers[i] for i in range(len(requests))]

    # -- estimates ------------------------------------------------------------------------------------------------

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost now, after sharing."""
        return estimate_by_kind(self.estimate_scores, self.estimate_generations, requests)

    def estimate_scores(self, requests: Sequence[ScoreRequest]) -> CostEstimate:
        """What ``score`` would cost now."""
        pairs = self.encode_scores(requests)
        return self.estimate_encoded_scores(requests, pairs)

    def estimate_generations(self, requests: Sequence[GenerateRequest]) -> CostEstimate:
        """What ``generate`` would cost now."""
        return self.estimate_encoded_prompts(requests, self.encode_prompts(requests))

    def estimate_encoded_scores(
        self, requests: Sequence[ScoreRequest], pairs: Sequence[TokenPair], known: Collection[int] = ()
    ) -> CostEstimate:
        """What ``score_encoded`` would cost."""
        plan = self.plan_encoded(pairs, known).as_laid_out()
        return CostEstimate(
            requests=len(requests),
            prompts=len({r.context for r in requests}),
            calls=plan.calls,
            tokens_asked=plan.tokens_asked,
            tokens_computed=plan.tokens_computed,
            tokens_cached=plan.tokens_cached,
            seconds=self.seconds_for(plan.tokens_computed) if plan.tokens_computed else 0.0,
        )

    def estimate_encoded_prompts(
        self, requests: Sequence[GenerateRequest], prompts: Sequence[TokenIds], known: Collection[int] = ()
    ) -> CostEstimate:
        """What ``generate_encoded`` would cost."""
        unknown = [i for i in range(len(requests)) if i not in known]
        free = [i for i in unknown if not requests[i].choices]
        chosen = [i for i in unknown if requests[i].choices]
        tokens = self.tokens_to_read([prompts[i] for i in free], [requests[i] for i in free]) if free else 0
        written = sum(requests[i].max_tokens for i in free)
        reading = self.seconds_for(tokens) if tokens else 0.0
        writing = self.seconds_to_write(written, len(free)) if free else 0.0
        estimate = CostEstimate(
            requests=len(requests),
            prompts=len({r.context for r in requests}),
            calls=len(free),
            tokens_asked=sum(map(len, prompts)),
            tokens_computed=tokens,
            tokens_cached=sum(len(prompts[i]) for i in known),
            tokens_generated=written,
            seconds=None if reading is None or writing is None else reading + writing,
        )
        if not chosen:
            return estimate
        candidates = [(i, ScoreRequest(requests[i].context, choice)) for i in chosen for choice in requests[i].choices]
        with numbered([i for i, _ in candidates]):
            scores = self.estimate_scores([r for _, r in candidates])
        return estimate + replace(scores, requests=0, prompts=0, tokens_asked=0)

    # -- texts to token ids ---------------------------------------------------------------------------------------

    def encode_scores(self, requests: Sequence[ScoreRequest]) -> list[TokenPair]:
        """Token ids of each request. RequestError for one that the model cannot read whole."""
        pairs = self.codec.pairs([(r.context, r.continuation) for r in requests])
        self._must_fit([len(pair.ids) + self.reserved_tokens for pair in pairs])
        self._must_be_known([pair.ids for pair in pairs])
        return pairs

    def encode_prompts(self, requests: Sequence[GenerateRequest]) -> list[TokenIds]:
        """Token ids of each context. RequestError when context and answer do not fit the model together."""
        ids = [row or self.codec.start for row in self.codec.encode([r.context for r in requests])]
        self._must_fit([len(row) + (0 if r.choices else r.max_tokens) for row, r in zip(ids, requests, strict=True)])
        self._must_be_known(ids)
        return ids

    def _must_fit(self, sizes: Sequence[int]) -> None:
        for i, size in enumerate(sizes):
            if size > self.context_size:
                raise RequestError(
                    i,
                    f"a request takes {size} tokens, {self.name} reads {self.context_size}: show fewer or shorter "
                    "demonstrations",
                )

    def _must_be_known(self, rows: Sequence[TokenIds]) -> None:
        for i, row in enumerate(rows):
            if not row:
                raise RequestError(i, "an empty context needs a tokenizer with a BOS or EOS token; give some context")
            if self.vocabulary is not None and (token := max(row)) >= self.vocabulary:
                raise RequestError(
                    i,
                    f"token {self.codec.decode([token]) or token!r} is none of the {self.vocabulary} {self.name} knows",
                )

    def _choose(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """The likeliest of each request's choices (the first on a tie)."""
        candidates = [ScoreRequest(r.context, c) for r in requests for c in r.choices]
        with numbered([i for i, r in enumerate(requests) for _ in r.choices]):
            return best_choices(requests, self.score(candidates))


def best_choices(requests: Sequence[GenerateRequest], scores: Sequence[Score]) -> list[Generation]:
    """The likeliest of each request's choices (the first on a tie); ``scores``: of all choices, in order."""
    remaining = iter(scores)
    out = []
    for request in requests:
        candidates = [next(remaining) for _ in request.choices]
        best = max(range(len(candidates)), key=lambda i: candidates[i].logprob)
        out.append(Generation(request.choices[best], candidates[best].tokens, "choice"))
    return out


def estimate_by_kind(
    scores: Callable[[Sequence[ScoreRequest]], CostEstimate],
    generations: Callable[[Sequence[GenerateRequest]], CostEstimate],
    requests: Sequence[ScoreRequest | GenerateRequest],
) -> CostEstimate:
    """The estimate of a mixed list: scores by one function, texts by the other.

    RequestErrors come out with the numbers of the mixed list.
    """
    to_score = [(i, r) for i, r in enumerate(requests) if isinstance(r, ScoreRequest)]
    to_write = [(i, r) for i, r in enumerate(requests) if isinstance(r, GenerateRequest)]
    total = CostEstimate()
    if to_score:
        with numbered([i for i, _ in to_score]):
            total += scores([r for _, r in to_score])
    if to_write:
        with numbered([i for i, _ in to_write]):
            total += generations([r for _, r in to_write])
    return total
