"""Language models without a model: one that answers by hashing, one that answers as told."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence

from iclkit.lm import BaseLM, OnDone
from iclkit.records import GenerateRequest, Generation, Message, Score, ScoreRequest, Usage

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


class FakeLM(BaseLM):
    """Deterministic nonsense: every (context, token) has its own log-probability, additive over tokens.

    A token is a word or a sign with the white space before it. ``scored`` and ``generated`` hold every request seen, so
    a test can count calls. Generation repeats words of the context.
    """

    def __init__(self, context_size: int = 2048, name: str = "fake") -> None:
        self.name = name
        self.fingerprint = f"{name}-1"
        self.context_size = context_size
        self.scored: list[ScoreRequest] = []
        self.generated: list[GenerateRequest] = []

    def count_tokens(self, text: str) -> int:
        """Words and signs."""
        return len(_TOKEN.findall(text))

    def render_chat(self, messages: Sequence[Message]) -> str:
        """Turns between ``<|role|>`` and ``<|end|>``, then the opening of the assistant's next turn."""
        return "".join(f"<|{m.role}|>\n{m.content}<|end|>\n" for m in messages) + "<|assistant|>\n"

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities of each continuation, in nats."""
        self.scored += requests
        scores = [self._score(r.context, r.continuation) for r in requests]
        self._count([self.count_tokens(r.context) + s.tokens for r, s in zip(requests, scores, strict=True)])
        if on_done:
            on_done([*enumerate(scores)])
        return scores

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request, cut at the first stop string and at ``max_tokens``."""
        self.generated += requests
        answers = [self._finish(r, self._answer(r)) for r in requests]
        self._count([self.count_tokens(r.context) for r in requests], sum(a.tokens for a in answers))
        if on_done:
            on_done([*enumerate(answers)])
        return answers

    def _count(self, sizes: Sequence[int], written: int = 0) -> None:
        self._usage += Usage(len(sizes), len(sizes), sum(sizes), sum(sizes), tokens_generated=written)

    def _score(self, context: str, continuation: str) -> Score:
        total, tokens = 0.0, _TOKEN.findall(continuation)
        for token in tokens:
            total += math.log(_unit_hash(self.fingerprint, context, token))
            context += token
        return Score(total, len(tokens), greedy=total > -0.5 * len(tokens))

    def _answer(self, request: GenerateRequest) -> str:
        if request.choices:
            return max(request.choices, key=lambda c: self._score(request.context, c).logprob)
        words = re.findall(r"\w+", request.context) or ["nothing"]
        draw = [_unit_hash(self.fingerprint, request.context, str(request.seed), str(n)) for n in range(4)]
        return " " + " ".join(words[int(d * len(words)) % len(words)] for d in draw)

    def _finish(self, request: GenerateRequest, text: str) -> Generation:
        if request.choices:
            return Generation(text, self.count_tokens(text), "choice")
        ends = [at for s in request.stop if (at := text.find(s)) >= 0]
        tokens = _TOKEN.findall(text[: min(ends, default=len(text))])
        if len(tokens) > request.max_tokens:
            return Generation("".join(tokens[: request.max_tokens]), request.max_tokens, "length")
        return Generation(text[: min(ends, default=len(text))], len(tokens), "stop")


class ScriptedLM(FakeLM):
    """An LM that does as told.

    ``logprob(context, continuation)`` is the log-probability in nats. ``reply(context)`` is the generated text; a
    mapping gives the reply for the first key that the context ends with. What is not given stays as in ``FakeLM``.
    """

    def __init__(
        self,
        logprob: Callable[[str, str], float] | None = None,
        reply: Callable[[str], str] | Mapping[str, str] | None = None,
        *,
        context_size: int = 2048,
        name: str = "scripted",
    ) -> None:
        super().__init__(context_size, name)
        self._logprob, self._reply = logprob, reply

    def _score(self, context: str, continuation: str) -> Score:
        if self._logprob is None:
            return super()._score(context, continuation)
        value = self._logprob(context, continuation)
        return Score(value, self.count_tokens(continuation), greedy=value > math.log(0.5))

    def _answer(self, request: GenerateRequest) -> str:
        if self._reply is None or request.choices:
            return super()._answer(request)
        if callable(self._reply):
            return self._reply(request.context)
        found = [v for k, v in self._reply.items() if request.context.endswith(k)]
        if not found:
            raise KeyError(f"the script has no reply for a context that ends in {request.context[-60:]!r}")
        return found[0]


def _unit_hash(*parts: str) -> float:
    """A number in (0, 1] determined by the parts."""
    raw = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=7).digest()
    return (int.from_bytes(raw, "little") + 1) / 2**56
