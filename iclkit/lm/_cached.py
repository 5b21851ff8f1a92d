"""Any LM with the persistent cache around it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from iclkit.errors import ModelError
from iclkit.lm._cache import Store, cache_key, pack_score, unpack_score
from iclkit.lm._plan import Plan
from iclkit.lm._protocol import LM, OnDone, numbered
from iclkit.lm._tokens import TokenIds, TokenPair
from iclkit.lm._usage import Usage
from iclkit.records import GenerateRequest, Generation, Message, Score, ScoreRequest


@runtime_checkable
class TokenLM(Protocol):
    """An LM whose requests can be named by exact token ids, and which can leave out what is known."""

    spent: Usage

    def pairs(self, requests: Sequence[ScoreRequest]) -> list[TokenPair]: ...
    def encode_prompts(self, requests: Sequence[GenerateRequest]) -> list[TokenIds]: ...
    def plan_encoded(self, pairs: Sequence[TokenPair], known: Collection[int] = ()) -> Plan: ...
    def score_encoded(
        self, pairs: Sequence[TokenPair], on_done: OnDone[Score] | None = None, known: Collection[int] = ()
    ) -> Iterable[tuple[int, Score]]: ...
    def generate_encoded(
        self,
        prompts: Sequence[TokenIds],
        requests: Sequence[GenerateRequest],
        on_done: OnDone[Generation] | None = None,
        known: Collection[int] = (),
    ) -> Iterable[tuple[int, Generation]]: ...


T = TypeVar("T")

GENERATION = "generate-2"
"""Raised when the way of writing changes while scores stay as they are."""


def score_key(fingerprint: str, pair: TokenPair) -> bytes:
    """Key of a score by token ids."""
    return cache_key(fingerprint, "score", pair.n_context, pair.ids)


def score_text_key(fingerprint: str, request: ScoreRequest) -> bytes:
    """Key of a score by text, for an LM whose tokens are not ours to see."""
    return cache_key(fingerprint, "score-text", request.context, request.continuation)


def generation_key(fingerprint: str, prompt: TokenIds | str, request: GenerateRequest) -> bytes:
    """Key of a generation: the prompt (ids, or text where they are not ours to see) and every setting."""
    settings = [request.max_tokens, [*request.stop], [*request.choices], request.temperature, request.seed]
    return cache_key(fingerprint, GENERATION, prompt, json.dumps(settings))


class CachedLM:
    """An LM that remembers: what the cache knows is not computed, what is computed is stored batch by batch.

    ``spent`` counts what was asked through this object: computed and answered from the cache. What an older iclkit or a
    damaged disk left in the cache and cannot be (a score of NaN) is dropped and computed again.
    """

    def __init__(self, inner: LM, cache: Store) -> None:
        self.inner, self.cache = inner, cache
        self.name, self.fingerprint, self.context_size = inner.name, inner.fingerprint, inner.context_size
        self.spent = Usage()

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "cache"):  # not set yet: a half-built object
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked and what is kept."""
        return (*getattr(self.inner, "notes", ()), *self.cache.notes)

    def _stored(self, keys: Sequence[bytes], read: Callable[[bytes], T | None]) -> dict[bytes, T]:
        """What the cache has for these keys; what cannot be read is dropped from it."""
        found = {key: read(value) for key, value in self.cache.get(keys).items()}
        self.cache.drop([key for key, value in found.items() if value is None])
        return {key: value for key, value in found.items() if value is not None}

    def _paired(self, asked: Sequence[int], answers: Sequence[T]) -> list[tuple[int, T]]:
        if len(answers) != len(asked):
            raise ModelError(f"{self.name} gave {len(answers)} answers to {len(asked)} requests")
        return list(zip(asked, answers, strict=True))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text``, with the special tokens the model puts in front."""
        return self.inner.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the assistant's next answer begins, by the model's own template."""
        return self.inner.render_chat(messages)

    def plan(self, requests: Sequence[ScoreRequest]) -> Plan:
        """What ``score`` would compute now, after sharing and the cache."""
        if not isinstance(self.inner, TokenLM):
            keys = [score_text_key(self.fingerprint, r) for r in requests]
            found = self._stored(keys, _read_score)
            missing = len({k for k in keys if k not in found})
            return Plan((), (), (), requests=len(requests), extra_calls=missing)
        pairs = self.inner.pairs(requests)
        found = self._stored(keys := [score_key(self.fingerprint, p) for p in pairs], _read_score)
        return self.inner.plan_encoded(pairs, {i for i, k in enumerate(keys) if k in found}).as_laid_out()

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        start = time.perf_counter()
        pairs = self.inner.pairs(requests) if isinstance(self.inner, TokenLM) else None
        if pairs is None:
            keys = [score_text_key(self.fingerprint, r) for r in requests]
        else:
            keys = [score_key(self.fingerprint, p) for p in pairs]
        found = self._stored(keys, _read_score)
        results = {i: found[k] for i, k in enumerate(keys) if k in found}
        if results and on_done is not None:
            on_done([*results.items()])
        if pairs is not None:
            self.spent.tokens_asked += sum(len(p.ids) for p in pairs)
            self.spent.tokens_cached += sum(len(pairs[i].ids) for i in results)

        def store(done: Sequence[tuple[int, Score]]) -> None:
            if not done:
                return
            self.cache.put({keys[i]: pack_score(s.logprob, s.tokens, s.greedy) for i, s in done})
            results.update(done)
            if on_done is not None:
                on_done(done)

        if len(results) < len(requests):
            with _Meter(self.inner, self.spent):
                if pairs is not None:
                    assert isinstance(self.inner, TokenLM)
                    list(self.inner.score_encoded(pairs, store, frozenset(results)))
                else:
                    missing = [i for i in range(len(requests)) if i not in results]
                    with numbered(missing):
                        scores = self.inner.score(
                            [requests[i] for i in missing], lambda done: store([(missing[i], s) for i, s in done])
                        )
                    store([(i, s) for i, s in self._paired(missing, scores) if i not in results])
        self.spent.requests += len(requests)
        self.spent.seconds += time.perf_counter() - start
        return [results[i] for i in range(len(requests))]

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request. A request with ``choices`` is answered by (cached) scores."""
        start = time.perf_counter()
        token_lm = isinstance(self.inner, TokenLM)
        prompts: list[TokenIds] = self.inner.encode_prompts(requests) if isinstance(self.inner, TokenLM) else []
        keys = [
            generation_key(self.fingerprint, prompts[i] if token_lm else r.context, r) for i, r in enumerate(requests)
        ]
        found = self._stored(keys, _read_generation)
        results = {i: found[k] for i, k in enumerate(keys) if k in found}
        if results and on_done is not None:
            on_done([*results.items()])
        self.spent.tokens_asked += sum(map(len, prompts))
        self.spent.tokens_cached += sum(len(prompts[i]) for i in results) if prompts else 0

        def store(done: Sequence[tuple[int, Generation]]) -> None:
            if not done:
                return
            self.cache.put({keys[i]: json.dumps([g.text, g.tokens, g.finish]).encode() for i, g in done})
            results.update(done)
            if on_done is not None:
                on_done(done)

        if len(results) < len(requests):
            with _Meter(self.inner, self.spent):
                if isinstance(self.inner, TokenLM):
                    list(self.inner.generate_encoded(prompts, requests, store, frozenset(results)))
                else:
                    missing = [i for i in range(len(requests)) if i not in results]
                    with numbered(missing):
                        answers = self.inner.generate(
                            [requests[i] for i in missing], lambda done: store([(missing[i], g) for i, g in done])
                        )
                    store([(i, g) for i, g in self._paired(missing, answers) if i not in results])
        self.spent.requests += len(requests)
        self.spent.seconds += time.perf_counter() - start
        return [results[i] for i in range(len(requests))]


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


class _Meter:
    """Adds what the inner LM computes inside the block to ``spent``."""

    def __init__(self, inner: Any, spent: Usage) -> None:
        self._inner, self._spent = getattr(inner, "spent", None), spent

    def __enter__(self) -> None:
        if self._inner is not None:
            self._before = (self._inner.calls, self._inner.tokens_computed)

    def __exit__(self, *_: object) -> None:
        if self._inner is not None:
            self._spent.calls += self._inner.calls - self._before[0]
            self._spent.tokens_computed += self._inner.tokens_computed - self._before[1]
