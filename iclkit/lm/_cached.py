"""Any LM with the persistent cache around it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from iclkit.errors import ModelError
from iclkit.lm._base import BaseLM, as_lm
from iclkit.lm._cache import Store, cache_key, pack_score, unpack_score
from iclkit.lm._protocol import LM, OnDone, numbered, scores_together
from iclkit.lm._shape import ModelShape
from iclkit.lm._token_lm import TokenLM, estimate_by_kind
from iclkit.lm._tokens import TokenIds, TokenPair
from iclkit.records import CostEstimate, GenerateRequest, Generation, Message, Score, ScoreRequest, Usage

GENERATION = "generate-2"
"""Raised when the way of writing changes while scores stay as they are."""


def score_key(fingerprint: str, pair: TokenPair) -> bytes:
    """Key of a score by token ids."""
    return cache_key(fingerprint, "score", pair.n_context, pair.ids)


def score_text_key(fingerprint: str, request: ScoreRequest) -> bytes:
    """Key of a score by text, for an LM whose tokens are not ours to see."""
    return cache_key(fingerprint, "score-text", request.context, request.continuation)


def score_set_key(fingerprint: str, request: ScoreRequest, others: Sequence[str]) -> bytes:
    """Key of a score that depends on which ``others`` the context was asked about with."""
    texts = [part for other in sorted({*others}) for part in ("with", other)]
    return cache_key(fingerprint, "score-set", request.context, request.continuation, *texts)


def generation_key(fingerprint: str, prompt: TokenIds | str, request: GenerateRequest) -> bytes:
    """Key of a generation: the prompt (ids, or text where they are not ours to see) and every setting."""
    settings = [request.max_tokens, [*request.stop], [*request.choices], request.temperature, request.seed]
    return cache_key(fingerprint, GENERATION, prompt, json.dumps(settings))


def cached(lm: object, cache: Store) -> LM:
    """The LM, remembering: what the cache knows is not computed, what is computed is stored batch by batch.

    Its ``usage`` counts what was asked through it: computed, and answered from the cache. What an older iclkit or a
    damaged disk left in the cache and cannot be (a score of NaN) is dropped and computed again.
    """
    return CachedTokenLM(lm, cache) if isinstance(lm, TokenLM) else CachedTextLM(as_lm(lm), cache)


A = TypeVar("A")
R = TypeVar("R", bound=ScoreRequest | GenerateRequest)


@dataclass(frozen=True, slots=True)
class Codec(Generic[A]):
    """How answers are stored: ``read`` gives None for a value that is none."""

    read: Callable[[bytes], A | None]
    write: Callable[[A], bytes]


class CachedAnswers(Generic[A]):
    """The answers to a list of requests: those that the cache has at once, the others as they are computed."""

    def __init__(self, cache: Store, codec: Codec[A], keys: Sequence[bytes], on_done: OnDone[A] | None) -> None:
        self._cache, self._codec, self._keys, self._on_done = cache, codec, keys, on_done
        values = stored_values(cache, codec, keys)
        self._answers = {i: values[key] for i, key in enumerate(keys) if key in values}
        self.known = frozenset(self._answers)
        """Numbers of the requests that the cache answered."""
        if self._answers and on_done is not None:
            on_done([*self._answers.items()])

    @property
    def missing(self) -> list[int]:
        """Numbers of the requests without an answer so far."""
        return [i for i in range(len(self._keys)) if i not in self._answers]

    def add(self, done: Sequence[tuple[int, A]]) -> None:
        """Store answers, and hand them on."""
        if not done:
            return
        self._cache.put({self._keys[i]: self._codec.write(answer) for i, answer in done})
        self._answers.update(done)
        if self._on_done is not None:
            self._on_done(done)

    def in_order(self) -> list[A]:
        """The answer to each request."""
        return [self._answers[i] for i in range(len(self._keys))]


def stored_values(cache: Store, codec: Codec[A], keys: Sequence[bytes]) -> dict[bytes, A]:
    """What the cache has for these keys; what cannot be read is dropped from it."""
    values = {key: codec.read(value) for key, value in cache.get(keys).items()}
    cache.drop([key for key, value in values.items() if value is None])
    return {key: value for key, value in values.items() if value is not None}


def _read_score(value: bytes) -> Score | None:
    try:
        return Score(*unpack_score(value))
    except (ModelError, struct.error):
        return None


def _read_generation(value: bytes) -> Generation | None:
    try:
        text, tokens, finish = json.loads(value)
    except (ValueError, TypeError):
        return None
    whole = isinstance(text, str) and isinstance(tokens, int) and isinstance(finish, str)
    return Generation(text, tokens, finish) if whole else None


SCORES: Codec[Score] = Codec(_read_score, lambda s: pack_score(s.logprob, s.tokens, s.greedy))
GENERATIONS: Codec[Generation] = Codec(_read_generation, lambda g: json.dumps([g.text, g.tokens, g.finish]).encode())


class _CachedLM(BaseLM):
    """What both kinds share: they are the LM inside by name, tokens and notes, and count for themselves."""

    def __init__(self, inner: LM, cache: Store) -> None:
        self.inner, self.cache = inner, cache
        self.name, self.fingerprint, self.context_size = inner.name, inner.fingerprint, inner.context_size
        self.scoring = inner.scoring
        self._usage = Usage(cost=inner.usage.cost)  # opening a server's LM is paid for, too

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked and what is kept."""
        return (*self.inner.notes, *self.cache.notes)

    @property
    def shape(self) -> ModelShape | None:
        """As the LM inside."""
        return self.inner.shape

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.inner.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.inner.render_chat(messages)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Adds what the LM inside computes meanwhile to the usage."""
        before = self.inner.usage
        try:
            yield
        finally:
            done = self.inner.usage - before
            self._usage += Usage(
                calls=done.calls,
                tokens_computed=done.tokens_computed,
                tokens_generated=done.tokens_generated,
                cost=done.cost,
            )

    def _count(self, requests: int, start: float) -> None:
        self._usage += Usage(requests=requests, seconds=time.perf_counter() - start)


class CachedTokenLM(_CachedLM):
    """An LM whose requests are token ids, and a cache in front of it."""

    inner: TokenLM

    def __init__(self, inner: TokenLM, cache: Store) -> None:
        super().__init__(inner, cache)

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        start = time.perf_counter()
        pairs = self.inner.encode_scores(requests)
        answers = CachedAnswers(self.cache, SCORES, self._score_keys(pairs), on_done)
        self._count_tokens([len(pair.ids) for pair in pairs], answers.known)
        if answers.missing:
            # all pairs go in, for the plan is that of an unbroken run: a resumed run computes the same batches
            with self._computing():
                list(self.inner.score_encoded(pairs, answers.add, answers.known))
        self._count(len(requests), start)
        return answers.in_order()

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request. A request with ``choices`` is answered by scores."""
        start = time.perf_counter()
        prompts = self.inner.encode_prompts(requests)
        answers = CachedAnswers(self.cache, GENERATIONS, self._generation_keys(prompts, requests), on_done)
        self._count_tokens([len(ids) for ids in prompts], answers.known)
        if answers.missing:
            with self._computing():
                list(self.inner.generate_encoded(prompts, requests, answers.add, answers.known))
        self._count(len(requests), start)
        return answers.in_order()

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost now, after sharing and the cache."""
        return estimate_by_kind(self._estimate_scores, self._estimate_generations, requests)

    def _estimate_scores(self, requests: Sequence[ScoreRequest]) -> CostEstimate:
        pairs = self.inner.encode_scores(requests)
        known = self._known(SCORES, self._score_keys(pairs))
        return self.inner.estimate_encoded_scores(requests, pairs, known)

    def _estimate_generations(self, requests: Sequence[GenerateRequest]) -> CostEstimate:
        prompts = self.inner.encode_prompts(requests)
        known = self._known(GENERATIONS, self._generation_keys(prompts, requests))
        return self.inner.estimate_encoded_prompts(requests, prompts, known)

    def _known(self, codec: Codec[A], keys: Sequence[bytes]) -> frozenset[int]:
        values = stored_values(self.cache, codec, keys)
        return frozenset(i for i, key in enumerate(keys) if key in values)

    def _score_keys(self, pairs: Sequence[TokenPair]) -> list[bytes]:
        return [score_key(self.fingerprint, pair) for pair in pairs]

    def _generation_keys(self, prompts: Sequence[TokenIds], requests: Sequence[GenerateRequest]) -> list[bytes]:
        return [generation_key(self.fingerprint, ids, r) for ids, r in zip(prompts, requests, strict=True)]

    def _count_tokens(self, sizes: Sequence[int], known: frozenset[int]) -> None:
        self._usage += Usage(tokens_asked=sum(sizes), tokens_cached=sum(sizes[i] for i in known))


class CachedTextLM(_CachedLM):
    """An LM whose tokens are not ours to see, and a cache in front of it."""

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        return self._ask(self.inner.score, SCORES, requests, self._score_keys(requests), on_done)

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request. A request with ``choices`` is answered by scores."""
        return self._ask(self.inner.generate, GENERATIONS, requests, self._generation_keys(requests), on_done)

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost now: those in the cache nothing."""
        scores = [r for r in requests if isinstance(r, ScoreRequest)]
        prompts = [r for r in requests if isinstance(r, GenerateRequest)]
        known: set[ScoreRequest | GenerateRequest] = set()
        values = stored_values(self.cache, SCORES, keys := self._score_keys(scores))
        known.update(r for r, key in zip(scores, keys, strict=True) if key in values)
        texts = stored_values(self.cache, GENERATIONS, keys := self._generation_keys(prompts))
        known.update(r for r, key in zip(prompts, keys, strict=True) if key in texts)
        unknown = self.inner.estimate([r for r in requests if r not in known])
        stored = self.inner.estimate([r for r in requests if r in known])
        return unknown + CostEstimate(
            requests=stored.requests,
            prompts=len({r.context for r in requests}) - unknown.prompts,
            tokens_asked=stored.tokens_asked,
            tokens_cached=stored.tokens_asked,
        )

    def _ask(
        self,
        ask: Callable[[Sequence[R], OnDone[A]], list[A]],
        codec: Codec[A],
        requests: Sequence[R],
        keys: Sequence[bytes],
        on_done: OnDone[A] | None,
    ) -> list[A]:
        start = time.perf_counter()
        answers = CachedAnswers(self.cache, codec, keys, on_done)
        missing = answers.missing
        if missing and scores_together(self.inner):  # what is asked about one context is asked as a whole
            contexts = {requests[i].context for i in missing}
            missing = [i for i, r in enumerate(requests) if r.context in contexts]
        if missing:
            with self._computing(), numbered(missing):
                results = ask(
                    [requests[i] for i in missing], lambda done: answers.add([(missing[i], a) for i, a in done])
                )
            if len(results) != len(missing):
                raise ModelError(f"{self.name} gave {len(results)} answers to {len(missing)} requests")
            left = {*answers.missing}  # what an LM did not hand over on the way
            answers.add([(i, a) for i, a in zip(missing, results, strict=True) if i in left])
        self._count(len(requests), start)
        return answers.in_order()

    def _score_keys(self, requests: Sequence[ScoreRequest]) -> list[bytes]:
        if not scores_together(self.inner):
            return [score_text_key(self.fingerprint, r) for r in requests]
        asked: dict[str, list[str]] = {}
        for r in requests:
            asked.setdefault(r.context, []).append(r.continuation)
        return [score_set_key(self.fingerprint, r, asked[r.context]) for r in requests]

    def _generation_keys(self, requests: Sequence[GenerateRequest]) -> list[bytes]:
        return [generation_key(self.fingerprint, r.context, r) for r in requests]
