"""What LMs that are asked by token ids have in common: texts to ids, and results in the order of the requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar

from iclkit.errors import RequestError
from iclkit.lm._plan import Plan
from iclkit.lm._protocol import OnDone, numbered
from iclkit.lm._tokens import PromptTokenizer, TokenIds, TokenPair
from iclkit.lm._usage import Usage
from iclkit.records import GenerateRequest, Generation, Message, Score, ScoreRequest


class IdsLM(ABC):
    """The protocol in terms of ``plan_encoded``, ``score_encoded`` and ``generate_encoded``, which a backend writes."""

    name: str
    fingerprint: str
    context_size: int
    codec: PromptTokenizer
    spent: Usage
    notes: tuple[str, ...] = ()
    vocabulary: int | None = None
    """Rows of the model's table of words, where the tokenizer may give ids beyond it."""
    spare: ClassVar[int] = 0
    """Tokens that must fit behind a scored text."""

    @abstractmethod
    def plan_encoded(self, pairs: Sequence[TokenPair], known: Collection[int] = ()) -> Plan:
        """The plan of ``score_encoded``."""

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

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.codec.count(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.codec.render_chat(messages)

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats. RequestError for one beyond the context size."""
        found = dict(self.score_encoded(self.pairs(requests), on_done))
        return [found[i] for i in range(len(requests))]

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request."""
        found = dict(self.generate_encoded(self.encode_prompts(requests), requests, on_done))
        return [found[i] for i in range(len(requests))]

    def plan(self, requests: Sequence[ScoreRequest], known: Collection[int] = ()) -> Plan:
        """What ``score`` would feed, given that the answers of the requests ``known`` are at hand."""
        return self.plan_encoded(self.pairs(requests), known).as_laid_out()

    def pairs(self, requests: Sequence[ScoreRequest]) -> list[TokenPair]:
        """Token ids of each request. RequestError for one that the model cannot read whole."""
        pairs = self.codec.pairs([(r.context, r.continuation) for r in requests])
        self._must_fit([len(pair.ids) + self.spare for pair in pairs])
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
        asked = [ScoreRequest(r.context, c) for r in requests for c in r.choices]
        with numbered([i for i, r in enumerate(requests) for _ in r.choices]):
            scores = iter(self.score(asked))
        out = []
        for request in requests:
            own = [next(scores) for _ in request.choices]
            best = max(range(len(own)), key=lambda i: own[i].logprob)
            out.append(Generation(request.choices[best], own[best].tokens, "choice"))
        return out
