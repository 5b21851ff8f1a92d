"""One model of one server: what is known of it, and single requests to it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from iclkit.errors import ModelError
from iclkit.lm._servers._adapt import NOTES, STOPS, THOUGHTS, adapted, change_for
from iclkit.lm._servers._capabilities import Capabilities
from iclkit.lm._servers._config import OpenAIConfig
from iclkit.lm._servers._http import Client, HttpError, RequestRejected, said
from iclkit.lm._servers._money import Purse, written_at_most
from iclkit.lm._servers._parse import (
    NotSupported,
    Position,
    Prompt,
    Reply,
    count_of,
    estimate_tokens,
    read_reply,
    token_candidates,
    unfenced,
)
from iclkit.lm._tokens import PromptTokenizer, TokenPair
from iclkit.records import GenerateRequest, Generation, Usage, digest
from iclkit.secrets import redact, redact_known

AUTH_STATUSES = (401, 403)
UNSUPPORTED_STATUSES = (200, 400, 403, 404, 405, 415, 422, 500, 501)
"""Statuses that mean "this is not offered" when a way of scoring is tried, after the same was answered without it.

200 is an answer that is no JSON object.
"""
_ADAPTABLE = (400, 403, 404, 422, 500, 501)
"""Statuses of refusals that may be about one parameter of the request."""
_NOT_THE_PROMPT = (None, 401, 402, 404, 405, 407, 408, 409, 425, 429, *range(502, 600))
"""Statuses that another prompt would have met as well; None: no answer at all."""
_LISTS = ("prompt", "messages", "input_ids", "input", "items")
"""Fields of a request that hold what is asked about; the others are how it is asked."""
CHAT = "\x02chat\x02"
"""Starts the text of a chat that only the server can render; the messages follow as JSON."""
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
SHORTEST_KEY = 12
PROBE = "Berlin is in Germany.\n\nIn 2024: Paris is in"


class Misshapen(ModelError):
    """JSON in which no answer stands."""


class Unanswered(Exception):
    """One prompt that has no answer; ``str`` says why. Never leaves this package."""


class ServedModel:
    """A model behind an OpenAI-compatible server. Thread-safe.

    ``can`` is what was found out about it. ``open``: it has been, so that a refusal may be about one prompt alone.
    """

    def __init__(
        self, name: str, client: Client, config: OpenAIConfig, purse: Purse | None = None, known_context: int = 0
    ) -> None:
        self.name, self.client, self.config, self.purse = name, client, config, purse
        self.known_context = known_context
        self.root = client.url.removesuffix("/v1")
        self.can = Capabilities()
        self.open = False
        self.codec: PromptTokenizer | None = None
        self.context_size = 0
        self.usage = Usage()
        self.notes: tuple[str, ...] = ()
        self.lock, self._tokenizing = threading.Lock(), threading.Lock()
        self._changes = frozenset[str]()  # what this server needs of OpenAI's requests, see _adapt
        self._readable = False  # whether an answer could be read since one could not
        self._answered: set[str] = set()  # shapes of requests that were answered since one was last refused

    def __str__(self) -> str:
        return f"the server at {self.client.url}"

    @property
    def chats(self) -> bool:
        """Whether it is asked as a chat."""
        return self.can.endpoint == "chat"

    def found(self, **facts: Any) -> None:
        """Remember what was found out."""
        with self.lock:
            self.can = replace(self.can, **facts)

    def note(self, text: str) -> None:
        """Let the user know, once."""
        text = redact(text)
        with self.lock:
            if text not in self.notes:
                self.notes = (*self.notes, text)

    def learn(self, changes: Collection[str]) -> None:
        """Make these changes to every request from now on."""
        with self.lock:
            new = [c for c in changes if c not in self._changes]
            self._changes |= {*new}
            if new:
                self.can = replace(self.can, changes=tuple(sorted(self._changes)))
        for change in new:
            if change in NOTES:
                self.note(NOTES[change].format(thought_tokens=self.config.thought_tokens))

    # -- tokens ---------------------------------------------------------------------------------------------------

    @property
    def tokenizing(self) -> AbstractContextManager[Any]:
        """Held while a tokenizer that is not thread-safe works."""
        return self._tokenizing if self.config.tokenizer else nullcontext()

    def count_tokens(self, text: str) -> int:
        """Number of tokens with the special tokens in front; without a tokenizer an upper estimate."""
        return self.codec.count(text) if self.codec else estimate_tokens(text)

    def pairs(self, context: str, continuations: Sequence[str]) -> list[TokenPair]:
        """The token ids of each request. Unanswered for one that is too long."""
        assert self.codec
        with self.tokenizing:
            pairs = self.codec.pairs([(context, c) for c in continuations])
        self.must_fit(max((len(p.ids) for p in pairs), default=0))
        return pairs

    def must_fit(self, tokens: int) -> None:
        """Unanswered where a request of so many tokens is more than the model reads."""
        if tokens > self.context_size:
            raise Unanswered(
                f"a request takes {tokens} tokens, {self.name} reads {self.context_size}: show fewer or shorter "
                "demonstrations"
            )

    # -- answers in words -----------------------------------------------------------------------------------------

    def generate(self, request: GenerateRequest, extra: Mapping[str, Any] | None = None) -> Generation:
        """A continuation, without thoughts, fence and stop strings."""
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            body |= {"seed": request.seed, "top_p": 1.0}
        if request.stop:
            body["stop"] = [*request.stop]
        body |= extra or {}
        if self.chats:
            reply = self.chat_reply(request.context, body)[1]
        else:
            prompt: Prompt = request.context
            if self.codec:
                with self.tokenizing:
                    prompt = self.codec.encode([request.context])[0]
                self.must_fit(len(prompt) + request.max_tokens)
            reply = self._until_answered(lambda: self.complete(prompt, **body), body)[1]
        text = redact_known(reply.text, SHORTEST_KEY)  # a server may write the key that it was sent into an answer
        tokens = reply.tokens if reply.tokens is not None else estimate_tokens(text)
        if reply.refused:
            return Generation("", tokens, "refused")
        if (inside := unfenced(text, request.stop)) is not None:
            self.note("answers stand in code fences: what is inside is taken")
            return Generation(inside, tokens, "length" if reply.finish == "length" else "stop")
        if self.chats:
            text = _BLANK_LINES.sub("", text)  # chats may begin with an empty line, which is not the end of the answer
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        if ends:
            return Generation(text[: min(ends)], tokens, "stop")
        return Generation(text, tokens, "length" if reply.finish == "length" else "stop")

    def chat_reply(self, context: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], Reply]:
        """The answer of a chat, asked for until it has begun, and what it says."""
        return self._until_answered(lambda: self.chat(context, **body), body)

    def _until_answered(
        self, ask: Callable[[], dict[str, Any]], body: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Reply]:
        """The answer, asked for again where limit or stop strings cut it before it began.

        That happens inside thoughts, which get more room, and at the opening of a code fence; the stop strings are
        then left to the caller.
        """
        while True:
            sent = self._changes  # at least these: another thread may learn more meanwhile
            answer = ask()
            with self.expected_shape():
                reply = read_reply(answer, self.can.within_thought)
            needed: set[str] = {STOPS, THOUGHTS} if reply.open else set()
            # cut at the opening of a fence, or at an empty line before the answer
            if body.get("stop") and (reply.only_fence or (self.chats and not reply.text.strip())):
                needed.add(STOPS)
            if reply.refused or needed <= sent:
                if reply.open and not reply.refused:
                    self.note(
                        f"an answer was still being thought about after {self.config.thought_tokens} tokens more than "
                        "it may have: it counts as none (setting: thought_tokens)"
                    )
                return answer, reply
            self.learn(needed)

    # -- single requests ------------------------------------------------------------------------------------------

    def complete(self, prompt: Prompt, *, look: bool = False, **body: Any) -> dict[str, Any]:
        """A completion of a text or of token ids."""
        listed = prompt if isinstance(prompt, str) else [*prompt]
        return self.send("/completions", {"model": self.name, "prompt": listed, "temperature": 0, **body}, look)

    def chat(self, context: str, **body: Any) -> dict[str, Any]:
        """The answer to a chat, or to a text as the only turn of one."""
        asked = {"model": self.name, "messages": turns(context), "temperature": 0}
        return self.send("/chat/completions", {**asked, **body})

    def positions(self, answer: Mapping[str, Any]) -> list[Position]:
        """The candidates of each token of an answer. ModelError for numbers that are no log-probabilities."""
        with self.expected_shape(), self.useful():
            return token_candidates(answer)

    def send(
        self,
        path: str,
        body: dict[str, Any],
        look: bool = False,
        *,
        root: str | None = None,
        answers: str = "choices",
    ) -> dict[str, Any]:
        """The answer to a request, without what the server does not take of it.

        ``look``: only the candidates for the next token are wanted, so thoughts get no room. ``answers`` is the field
        in which they come. Unanswered where the server refuses this prompt and none else.
        """
        body = {**body, **self.config.extra} if root is None else body
        shape = digest([path, {k: v for k, v in body.items() if k not in _LISTS}])
        try:
            answer = self._paid(path, body, look, root, answers)
        except (HttpError, Misshapen) as error:
            if self.open and self._is_about_the_prompt(path, body, look, shape, error, root, answers):
                raise Unanswered(str(error)) from error
            raise
        with self.lock:
            self._answered.add(shape)
            self.usage += Usage(
                calls=1,
                tokens_computed=max(0, (usage_of(answer, "total_tokens") or 0) - (cached_tokens(answer) or 0)),
                tokens_generated=usage_of(answer, "completion_tokens") or 0,
            )
        return answer

    def _paid(self, path: str, body: Mapping[str, Any], look: bool, root: str | None, answers: str) -> dict[str, Any]:
        """``_fit``, paid for where a price was given: the most it may cost is set aside before it is sent."""
        if self.purse is None:
            return self._fit(path, body, look, root, answers)
        thoughts = 0 if look or THOUGHTS not in self._changes else self.config.thought_tokens
        read, written = self.size(body), written_at_most(body) + thoughts
        reserved, cost = self.purse.reserve(read, written), 0.0
        try:
            answer = self._fit(path, body, look, root, answers)
            told = usage_of(answer, "prompt_tokens"), usage_of(answer, "completion_tokens")
            if None in told:
                self.note("the server does not report all tokens: their number, and so the cost, is an estimate")
            read = read if told[0] is None else told[0]
            written = written if told[1] is None else told[1]
            cost = self.purse.prices.of(read, written, min(read, cached_tokens(answer) or 0))
            with self.lock:
                self.usage += Usage(cost=cost)
            return answer
        finally:
            self.purse.settle(reserved, cost)

    def size(self, body: Mapping[str, Any]) -> int:
        """Tokens of a request's prompts, on the high side."""
        asked = next(body[field] for field in _LISTS if field in body)
        if isinstance(asked, str):
            return self.count_tokens(asked)
        if asked and isinstance(asked[0], int):
            return len(asked)
        if asked and isinstance(asked[0], list):
            return sum(map(len, asked))
        return sum(estimate_tokens(str(turn.get("content"))) + 8 for turn in asked)

    def _is_about_the_prompt(
        self, path: str, body: dict[str, Any], look: bool, shape: str, error: Exception, root: str | None, answers: str
    ) -> bool:
        """Whether another prompt is answered where this one was not.

        A request of the same shape that was answered since the last refusal shows it; else a harmless one is sent.
        """
        if isinstance(error, HttpError) and error.status in _NOT_THE_PROMPT:
            return False
        with self.lock:
            if shape in self._answered:
                self._answered.discard(shape)
                return True
        try:
            self._fit(path, {**body, **self._harmless(body)}, look, root, answers)
        except (HttpError, Misshapen):
            return False
        return True

    def _harmless(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked about in a request of this shape, replaced by what no server minds."""
        ids = [*self.codec.encode([PROBE])[0]] if self.codec else []
        for field in ("input_ids", "items"):
            if field in body:
                return {field: [ids] * len(body[field])}
        if "prompt" in body:
            prompt = body["prompt"]
            if prompt and isinstance(prompt, list) and isinstance(prompt[0], list):
                return {"prompt": [ids] * len(prompt)}
            return {"prompt": PROBE if isinstance(prompt, str) else ids}
        if "input" in body:
            return {"input": PROBE}
        return {"messages": [{"role": "user", "content": PROBE}]}

    def _fit(self, path: str, body: Mapping[str, Any], look: bool, root: str | None, answers: str) -> dict[str, Any]:
        """Send a body; where the server refuses a parameter that it names, send it without, and remember."""
        tried: tuple[str, ...] = ()
        refusal: HttpError | None = None
        while True:
            changes = (self._changes - {THOUGHTS} if look else self._changes).union(tried)
            try:
                fitting = adapted(body, changes, self.config.thought_tokens)
                answer = self.client.post(path, fitting, root=root, listed=answers == "items")
            except HttpError as error:
                refusal = refusal or error
                if error.status not in _ADAPTABLE:
                    raise
                change = change_for(error.reason, error.parameter, body, changes)
                if change is None:
                    raise refusal from None
                tried = (*tried, change)
                continue
            if not isinstance(answer.get(answers), list) or not answer[answers]:
                error_ = answer.get("error")
                words = error_.get("message") if isinstance(error_, dict) else error_
                why = f"no {answers}{f' ({said(str(words))})' if words else ''}"
                raise Misshapen(f"{self._shape_words()} ({why}); is it an OpenAI-compatible API?")
            self.learn(tried)
            return answer

    def _shape_words(self) -> str:
        return f"{self} answered with JSON of another shape than OpenAI's"

    @contextmanager
    def expected_shape(self) -> Iterator[None]:
        """Inside, answers are read: what is missing or of another type in them becomes one line.

        Misshapen; where other answers could be read it is the answer to one prompt: Unanswered.
        """
        try:
            yield
            self._readable = True
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            why = f"{self._shape_words()} ({type(error).__name__}: {said(str(error))})"
            alone, self._readable = self._readable and self.open, False
            if alone:
                raise Unanswered(why) from None
            raise Misshapen(f"{why}; is it an OpenAI-compatible API?") from None

    @contextmanager
    def useful(self) -> Iterator[None]:
        """Inside, log-probabilities are read: one that can be none ends the run with one line."""
        try:
            yield
        except NotSupported:
            raise
        except ModelError as error:
            raise ModelError(f"{self} is of no use for scores: {error}") from None


def turns(context: str) -> list[dict[str, str]]:
    """The turns of a chat: those of a rendered one, else the text as the only one."""
    if context.startswith(CHAT):
        found: list[dict[str, str]] = json.loads(context.removeprefix(CHAT))
        return found
    return [{"role": "user", "content": context}]


def usage_of(answer: Mapping[str, Any], field: str) -> int | None:
    """A counter of an answer, None where it has none."""
    usage = answer.get("usage")
    return count_of(usage.get(field)) if isinstance(usage, Mapping) else None


def cached_tokens(answer: Mapping[str, Any]) -> int | None:
    """How many tokens of the prompt the server's prefix cache knew, None where it does not say."""
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
    return count_of(details.get("cached_tokens")) if isinstance(details, Mapping) else None


def is_no(error: HttpError) -> bool:
    """Whether the server is there and does not offer what was asked for."""
    return isinstance(error, RequestRejected) or error.status in UNSUPPORTED_STATUSES or is_elsewhere(error)


def is_elsewhere(error: HttpError) -> bool:
    """Whether the server sends requests on to another place."""
    return (error.status or 0) // 100 == 3
