"""Any OpenAI-compatible HTTP server as an LM: ``openai:MODEL@URL``.

Opening it finds out what the server can do; afterwards a request that the server refuses while it answers others costs
that request alone (RequestError). Every number is checked before it counts, every word of the server is cleaned of
secrets before it is shown, and what a model writes around its answer (thoughts, the fence around code) is taken off
before stop strings cut it.

Such servers differ in the log-probabilities that they give. A probe finds out once, when the LM is opened, which of
these ways of scoring works, best first; the choice is in ``scoring``, in ``notes`` and in the fingerprint.

=============== ======================================================================== ==============================
scoring         how                                                                      exact
=============== ======================================================================== ==============================
echo            /completions repeats the prompt with the log-probability of every token  yes
prompt-logprobs the same as a field of its own (vLLM)                                    yes
next-token      top log-probabilities of the next token, token after token               yes where the server gives as
                                                                                         many as asked and its tokens
                                                                                         are known, else a bound
first-token     the same from /chat/completions, along the server's own answer           up to the first token that
                                                                                         differs from the answer
generate        the answer is generated and compared                                     no: a ranking, no probability
=============== ======================================================================== ==============================
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from iclkit.errors import ModelError, RequestError, UnknownName, UsageError
from iclkit.lm._adapt import NOTES, STOPS, THOUGHTS, adapted, change_for
from iclkit.lm._base import BaseLM
from iclkit.lm._http import Client, HttpConfig, HttpError, RequestRejected, said
from iclkit.lm._openai_parse import (
    NotSupported,
    Position,
    PositionScore,
    Prompt,
    Reply,
    ServerPrompt,
    TokenCandidate,
    after_thought,
    count_of,
    estimate_tokens,
    label_similarity,
    logprob_of,
    longest_prefix_token,
    only_choice,
    read_reply,
    score_along,
    token_candidates,
    unfenced,
)
from iclkit.lm._protocol import OnDone
from iclkit.lm._tokens import PromptTokenizer, TokenPair
from iclkit.records import (
    GenerateRequest,
    Generation,
    Json,
    Message,
    Score,
    ScoreRequest,
    Usage,
    canonical_json,
    digest,
)
from iclkit.registry import parse_spec
from iclkit.secrets import redact, redact_known, split_userinfo

SCORINGS = ("echo", "prompt-logprobs", "next-token", "first-token", "generate")
ENDPOINTS = ("completions", "chat")
_ADDRESS = re.compile(r"openai:(?:(?P<served>.+?)@(?P<url>https?://\S+)|(?P<model>[^@]+))")
_WIDTHS = (64, 4096, 1 << 20)
"""How many next-token candidates are asked for; more only when a needed token is not among the fewer."""
_CHAT_WIDTHS = (20, 5, 1)
_PROBE_TRIES = 1
_PROBE_TOKENS = 512
_KNOWN_TEXTS = 20_000
_AUTH_STATUSES = (401, 403)
_UNSUPPORTED_STATUSES = (200, 400, 403, 404, 405, 415, 422, 500, 501)
"""Statuses that mean "this is not offered" when a way of scoring is tried, after the same was answered without it.

200 is an answer that is no JSON object.
"""
_ADAPTABLE = (400, 403, 404, 422, 500, 501)
"""Statuses of refusals that may be about one parameter of the request."""
_NOT_THE_PROMPT = (None, 401, 402, 404, 405, 407, 408, 409, 425, 429, 502, 503, 504, 529)
"""Statuses that another prompt would have met as well; None: no answer at all."""
_ANSWERS = "answers2"
"""Raised when other answers are read out of what a chat writes, or other ranks out of the answers."""
_CHAT = "\x02chat\x02"
"""Starts the text of a chat that only the server can render; the messages follow as JSON."""
_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")
_FENCE_LINE = re.compile(r"\s*(?:`{3,}|~{3,})")
_SHORTEST_KEY = 12
_PROBE = "Berlin is in Germany.\n\nIn 2024: Paris is in"

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """Settings of a server's LM, beside those of ``HttpConfig``.

    scoring, endpoint: "auto" to find out, or one of SCORINGS, ENDPOINTS. tokenizer: folder or hub id of the model's
    tokenizer, for exact token counts and boundaries where the server does not tokenize. context: tokens that prompt
    and answer may take, where the server does not say. answer_tokens: length of the answers that first-token and
    generate compare. thought_tokens: what a model that thinks first may write beyond its answer. revision: any text;
    another one keeps the cache from mixing two models at one address.
    """

    scoring: str = "auto"
    endpoint: str = "auto"
    tokenizer: str = ""
    context: int = 0
    answer_tokens: int = 12
    revision: str = ""
    thought_tokens: int = 4096

    def __post_init__(self) -> None:
        for value, known in ((self.scoring, SCORINGS), (self.endpoint, ENDPOINTS)):
            if value not in ("auto", *known):
                raise UnknownName("way to use a server", value, ("auto", *known))
        for name, minimum in (("context", 0), ("answer_tokens", 1), ("thought_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageError(f"{name} is {value!r}, which is of the wrong type: expected a whole number")
            if value < minimum:
                raise UsageError(f"{name} is {value}: expected at least {minimum}")


def open_openai(spec: str, **settings: Json) -> OpenAILM:
    """The LM at ``openai:MODEL@URL``.

    Settings (those of OpenAIConfig and HttpConfig) are keywords, or ride on the name: ``openai:MODEL@URL,key=value``.
    Without @URL it is OPENAI_BASE_URL; nothing is sent to a place that was not named. The key is ICLKIT_API_KEY, else
    OPENAI_API_KEY, if set.
    UsageError for a spec or setting that cannot be; ModelError when the server cannot be used.
    """
    # a password may hold commas and signs of equality, so it is taken off before the settings are split
    bare, userinfo = split_userinfo(spec)
    parsed = parse_spec(bare)
    address = _ADDRESS.fullmatch(parsed.name)
    url = (address and address["url"]) or ""
    if not url:
        url, userinfo = split_userinfo(os.environ.get("OPENAI_BASE_URL", "").strip())
    if not address or not url:
        raise UsageError(
            f"{_without_password(bare)!r} is not openai:MODEL@URL, e.g. openai:my-model@http://127.0.0.1:8000/v1 "
            "(without @URL, set OPENAI_BASE_URL)"
        )
    wanted = {**parsed.settings, **settings}
    known = {f.name: kind for kind in (OpenAIConfig, HttpConfig) for f in fields(kind)}
    for name in wanted:
        if name not in known:
            raise UnknownName("setting of openai:MODEL@URL", name, known)
    server_settings, http = (
        {k: v for k, v in wanted.items() if known[k] is kind} for kind in (OpenAIConfig, HttpConfig)
    )
    key = os.environ.get("ICLKIT_API_KEY") or os.environ.get("OPENAI_API_KEY")
    try:
        config, http_config = OpenAIConfig(**server_settings), HttpConfig(**http)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{spec!r} has a setting of the wrong type: {error}") from error
    client = Client(_with_path(url), key, http_config, userinfo)
    return OpenAILM(address["served"] or address["model"], client, config)


def _without_password(spec: str) -> str:
    """A spec that could not be read, without what stands before an @ that is not its first."""
    return redact(re.sub(r"@.*@", "@***@", spec))


def _with_path(url: str) -> str:
    """The address of the API: a bare host gets the customary /v1, the address of a single endpoint loses its end."""
    address, mark, query = url.partition("?")
    address = re.sub(r"/(?:chat/)?completions/?$", "", address).rstrip("/")
    if not re.search(r"//[^/]+/", address):
        address += "/v1"
    return address + mark + query


class _Misshapen(ModelError):
    """JSON in which no answer stands."""


class _Unanswered(Exception):
    """One prompt that has no answer; ``str`` says why. Never leaves this module."""


class OpenAILM(BaseLM):
    """A language model behind an OpenAI-compatible server. Opening it asks the server a few short questions.

    ``scoring`` is how log-probabilities are had (see the module), ``notes`` say what the user should know about it,
    ``usage`` counts requests to the server and the tokens it reports.
    """

    def __init__(self, model: str, client: Client, config: OpenAIConfig) -> None:
        self.name, self.client, self.config = model, client, config
        self._root = client.url.removesuffix("/v1")
        self._lock, self._tokenizing = threading.Lock(), threading.Lock()
        self._widths: tuple[int, ...] = _WIDTHS
        self._chat_width = _CHAT_WIDTHS[0]
        self._changes = frozenset[str]()  # what this server needs of OpenAI's requests, see _adapt
        self._answered: set[str] = set()  # shapes of requests that were answered since one was last refused
        self._unanswered: dict[Any, str] = {}  # refusals that have not been raised yet
        self._within = False  # whether the model's answers begin inside its thoughts
        self.scoring = ""  # not known yet
        client.patience = _PROBE_TRIES
        facts = self._facts()
        meta = facts.get("meta")
        limit = count_of(facts.get("max_model_len")) or count_of(meta.get("n_ctx") if isinstance(meta, dict) else None)
        self.context_size = config.context or limit or 4096
        self.endpoint = self._find_endpoint() if config.endpoint == "auto" else config.endpoint
        if self.endpoint == "chat":
            self._find_thoughts()
        self.codec = self._find_codec()
        self.scoring = self._find_scoring()
        client.patience = client.config.retries
        if not (config.context or limit):
            self._note(f"the server does not give its context size; {self.context_size} is assumed (setting: context)")
        self._explain()
        host = client.url + (f"?{client.parameters}" if client.parameters else "")
        kept = {k: facts.get(k) for k in ("id", "root", "parent", "owned_by", "max_model_len", "meta")}
        parts = [model, host, digest(kept), self.endpoint, self.scoring, config.tokenizer, str(config.revision)]
        parts += ["ids" if self.codec else "text"]
        if self.scoring in ("first-token", "generate"):
            parts += [str(config.answer_tokens), _ANSWERS]
        if config.thought_tokens != OpenAIConfig().thought_tokens:
            parts.append(f"thoughts{config.thought_tokens}")
        self.fingerprint = redact_known("|".join(["openai", *parts]), _SHORTEST_KEY)

    # -- what the server is ---------------------------------------------------------------------------------------

    def _facts(self) -> Mapping[str, Any]:
        """What /models says about the model; {} where that is not offered."""
        try:
            listed = self.client.get("/models").get("data")
        except HttpError as error:
            if not _is_no(error) or error.status in _AUTH_STATUSES:
                raise
            listed = None
        entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
        self._served = [said(str(e.get("id"))) for e in entries]
        named = [e for e in entries if e.get("id") == self.name]
        return named[0] if named else entries[0] if len(entries) == 1 else {}

    def _find_endpoint(self) -> str:
        try:
            self._must_be_reply(self._complete("Hi", max_tokens=1))
        except HttpError as error:
            if not _is_no(error) or error.status in _AUTH_STATUSES or _is_elsewhere(error):
                raise
            try:
                self._must_be_reply(self._chat("Hi", max_tokens=1))
            except RequestRejected as second:
                served = f"; it serves: {', '.join(self._served[:8])}" if self._served else ""
                raise ModelError(
                    f"the server at {self.client.url} takes neither a completion ({error.reason}) nor a chat "
                    f"({second.reason}) with model {self.name!r}{served}"
                ) from second
            return "chat"
        return "completions"

    def _find_thoughts(self) -> None:
        """Find out whether the model thinks first: a first answer could be cut among its thoughts and look like one."""
        try:
            reply = self._chat_reply("Answer with the one word OK.", {"max_tokens": _PROBE_TOKENS})[1]
        except HttpError:  # too slow, or too long for it: then its answers will show it
            return
        self._within = reply.unopened
        if reply.thought:
            self._learn((STOPS, THOUGHTS))

    def _must_be_reply(self, answer: Mapping[str, Any]) -> None:
        with self._expected_shape():
            read_reply(answer)

    def _find_codec(self) -> PromptTokenizer | None:
        """The model's tokenizer: the one given, else the server's own; None where there is none to be had."""
        if self.config.tokenizer:
            codec = PromptTokenizer(_load_tokenizer(self.config.tokenizer))
        elif self.endpoint == "chat":
            return None  # what a chat becomes is the server's affair
        else:
            try:
                codec = PromptTokenizer(_ServerTokenizer(self.client, self._root, self.name))
            except (HttpError, NotSupported) as error:
                if isinstance(error, HttpError) and not _is_no(error):
                    raise
                return None
        if self.endpoint == "chat":
            return codec  # for counting only
        ids = codec.encode([_PROBE])[0]
        for prompt in (_PROBE, ids):
            counted = _usage(self._complete(prompt, max_tokens=1), "prompt_tokens")
            if counted is None or counted == len(ids):
                continue
            if self.config.tokenizer:
                raise UsageError(
                    f"tokenizer {self.config.tokenizer} makes {len(ids)} tokens of a text that the server at "
                    f"{self.client.url} counts as {counted}: it is not that model's tokenizer"
                )
            return None
        return codec

    def _find_scoring(self) -> str:
        wanted, why = self.config.scoring, ""
        for scoring in SCORINGS if wanted == "auto" else (wanted,):
            try:
                if self._works(scoring):
                    return scoring
            except HttpError as error:
                if error.status not in _UNSUPPORTED_STATUSES:  # away or busy says nothing about what it offers
                    raise
                why = f": {error.reason}"
            except (NotSupported, _Unanswered) as error:
                why = f": {error}"
        raise ModelError(
            f"the server at {self.client.url} does not offer the scoring {wanted!r} that was asked for{why}"
        )

    def _works(self, scoring: str) -> bool:
        if scoring == "generate":
            return True
        if (scoring == "first-token") != (self.endpoint == "chat"):
            return False
        if scoring == "first-token":
            self._chat_width = self._find_chat_width()
            return True
        if scoring == "next-token":
            self._widths = self._find_widths()
        return self._scores(scoring, _PROBE, [" Germany"])[0].logprob < 0

    def _find_widths(self) -> tuple[int, ...]:
        for width in (_WIDTHS[0], 20, 5, 1):  # OpenAI gives 5, vLLM 20 unless set otherwise
            try:
                if _told(self._positions(self._complete("Hi", look=True, max_tokens=1, logprobs=width))):
                    return _WIDTHS if width == _WIDTHS[0] else (width,)
            except HttpError as error:
                if error.status not in _UNSUPPORTED_STATUSES:
                    raise
        raise NotSupported(f"the server at {self.client.url} gives no log-probabilities")

    def _find_chat_width(self) -> int:
        refused = ""
        for width in _CHAT_WIDTHS:
            try:
                answer = self._chat(_PROBE, max_tokens=1, logprobs=True, top_logprobs=width)
                if _told(self._positions(answer)):
                    return width
                break  # what it takes without a word it does not offer
            except HttpError as error:
                if error.status not in _UNSUPPORTED_STATUSES:
                    raise
                refused = f" ({error.reason})"
        raise NotSupported(f"the server at {self.client.url} gives no log-probabilities of chats{refused}")

    def _explain(self) -> None:
        if self.scoring == "next-token" and not self.codec:
            self._note(
                "scoring next-token: the server's tokens are not known, so a label is spelt by the longest matching "
                "candidates (setting: tokenizer)"
            )
        if self.scoring == "first-token":
            self._note(
                "scoring first-token: this server serves chats, so a label counts up to the first token that differs "
                "from the server's own answer"
            )
        if self.scoring == "generate":
            self._note(
                "scoring generate: this server gives no probabilities; answers are generated and compared with the "
                "labels, so scores are a ranking, not log-probabilities: do not calibrate or average them"
            )
        if not self.codec:
            self._note("token counts are estimates on the high side: the server does not tokenize (setting: tokenizer)")

    def _note(self, text: str) -> None:
        text = redact(text)
        with self._lock:
            if text not in self._notes:
                self._notes = (*self._notes, text)

    # -- the protocol ---------------------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text`` with the special tokens in front; without a tokenizer an upper estimate."""
        return self.codec.count(text) if self.codec else estimate_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to the assistant's next answer, by the model's own template.

        Where only the server can render, a stand-in that ``score`` and ``generate`` send as messages. UsageError where
        the server neither renders nor serves chats.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if self.endpoint == "chat":
            return _CHAT + canonical_json(turns)
        if self.codec and self.config.tokenizer:
            return self.codec.render_chat(messages)
        body = {"model": self.name, "messages": turns, "add_generation_prompt": True}
        try:
            if "prompt" in (rendered := self._if_offered("/apply-template", body)):  # llama.cpp
                return str(rendered["prompt"])
            if tokens := self._if_offered("/tokenize", body).get("tokens"):  # vLLM
                return _detokenize(self.client, self._root, self.name, tokens)
        except NotSupported:
            pass
        raise UsageError(
            f"the server at {self.client.url} does not render chats; add tokenizer=FOLDER_OR_ID or endpoint=chat to "
            "the model, or use a plain-text template"
        )

    def _if_offered(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.client.post(path, body, root=self._root)
        except HttpError as error:
            if not _is_no(error):
                raise
            return {}

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities in nats (see ``scoring``). RequestError for a prompt that has no answer."""
        one_by_one = self.scoring in ("echo", "prompt-logprobs")  # else one answer serves all labels of a context
        units: dict[tuple[str, str], dict[str, list[int]]] = {}
        for i, r in enumerate(requests):
            unit = units.setdefault((r.context, r.continuation if one_by_one else ""), {})
            unit.setdefault(r.continuation, []).append(i)

        def work(unit: tuple[str, tuple[str, ...]]) -> list[Score]:
            return self._scores(self.scoring, *unit)

        return self._all(work, [((c, (*wanted,)), [*wanted.values()]) for (c, _), wanted in units.items()], on_done)

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request; a request with ``choices`` gets the one with the best score (first on a tie).

        Where all of several choices score the same, the server gave no answer to them, and the text is empty.
        RequestError for a prompt that the server never answers.
        """
        units: dict[GenerateRequest, list[int]] = {}
        for i, r in enumerate(requests):
            units.setdefault(r, []).append(i)

        def work(request: GenerateRequest) -> list[Generation]:
            if not request.choices:
                return [self._generate(request)]
            scores = self._scores(self.scoring, request.context, request.choices)
            values = [s.logprob for s in scores]
            if len(set(request.choices)) > 1 and min(values) == max(values):
                return [Generation("", 0, "choice")]
            best = values.index(max(values))
            return [Generation(request.choices[best], scores[best].tokens, "choice")]

        return self._all(work, [(request, [places]) for request, places in units.items()], on_done)

    def _all(
        self,
        work: Callable[[U], list[R]],
        units: Sequence[tuple[U, Sequence[Sequence[int]]]],
        on_done: OnDone[R] | None,
    ) -> list[R]:
        """The results of all units, each with the places that its results have in the caller's list.

        Units that have no answer do not keep the others from theirs: at the end the first of them is raised as a
        RequestError. Asking again for the rest raises the next without another request to the server.
        """
        start, answered, failed = time.perf_counter(), dict[int, R](), dict[int, str]()
        keys = [(work.__qualname__, unit) for unit, _ in units]

        def attempt(numbered: tuple[Any, U]) -> list[R] | str:
            key, unit = numbered
            with self._lock:
                if key in self._unanswered:
                    return self._unanswered[key]
            try:
                return work(unit)
            except (_Unanswered, NotSupported, RequestError) as error:
                with self._lock:
                    self._unanswered[key] = str(error)
                return str(error)

        todo = [(key, unit) for key, (unit, _) in zip(keys, units, strict=True)]
        for number, results in self.client.map(attempt, todo):
            places = units[number][1]
            if isinstance(results, str):
                failed[min(min(p) for p in places)] = results
                continue
            done = [(i, result) for numbers, result in zip(places, results, strict=True) for i in numbers]
            answered.update(done)
            if on_done is not None:
                on_done(done)
        with self._lock:
            self._usage += Usage(requests=len(answered), seconds=time.perf_counter() - start)
        if failed:
            first = min(failed)
            raised = next(k for k, (_, places) in zip(keys, units, strict=True) if min(map(min, places)) == first)
            del self._unanswered[raised]
            raise RequestError(first, failed[first])
        return [answered[i] for i in range(len(answered))]

    # -- ways of scoring: one context, its continuations ----------------------------------------------------------

    def _scores(self, scoring: str, context: str, continuations: Sequence[str]) -> list[Score]:
        if scoring == "echo":
            return [self._echo(whole) for whole in self._wholes(context, continuations)]
        if scoring == "prompt-logprobs":
            return [self._prompt_logprobs(whole) for whole in self._wholes(context, continuations)]
        if scoring == "next-token":
            return self._next_token(context, continuations)
        return (self._first_token if scoring == "first-token" else self._compare)(context, continuations)

    def _wholes(self, context: str, continuations: Sequence[str]) -> list[ServerPrompt]:
        if self.codec:
            return [ServerPrompt(pair.ids, pair.n_context, b"") for pair in self._pairs(context, continuations)]
        kept = (
            context.rstrip()
        )  # white space at the end of a context belongs to the continuation, as in PromptTokenizer
        rests = [context[len(kept) :] + c for c in continuations]
        return [ServerPrompt(kept + rest, None, rest.encode()) for rest in rests]

    def _pairs(self, context: str, continuations: Sequence[str]) -> list[TokenPair]:
        assert self.codec
        with self._tokenizing if self.config.tokenizer else nullcontext():
            pairs = self.codec.pairs([(context, c) for c in continuations])
        self._must_fit(max((len(p.ids) for p in pairs), default=0))
        return pairs

    def _must_fit(self, tokens: int) -> None:
        if tokens > self.context_size:
            raise _Unanswered(
                f"a request takes {tokens} tokens, {self.name} reads {self.context_size}: show fewer or shorter "
                "demonstrations"
            )

    def _echo(self, whole: ServerPrompt) -> Score:
        answer = self._complete(whole.prompt, look=True, max_tokens=1, echo=True, logprobs=1)
        with self._expected_shape():
            logprobs = only_choice(answer).get("logprobs") or {}
            values: list[Any] = logprobs.get("token_logprobs") or []
            texts = [t.encode(errors="surrogatepass") for t in logprobs.get("tokens") or []]
            tops = logprobs.get("top_logprobs") or [None] * len(values)
            end = whole.tokens or _usage(answer, "prompt_tokens") or len(values) - 1
            if not len(values) == len(texts) == len(tops) >= end > 1 or all(v is None for v in values[1:end]):
                raise NotSupported(f"the server at {self.client.url} does not repeat prompts with log-probabilities")
            at = range(whole.start(texts[:end]), end)
            # every one, also of the tokens that are not scored: a model that is broken there is broken
            known = {i: self._logprob(values[i], f"token_logprobs[{i}]") for i in range(1, end)}
            kept = [(known[i] if i else self._logprob(values[0], "token_logprobs[0]"), tops[i]) for i in at]
            best = all(not top or value >= self._highest(top.values()) for value, top in kept)
        return Score(float(sum(value for value, _ in kept)), len(kept), best)

    def _highest(self, values: Iterable[Any]) -> float:
        return max(self._logprob(v, "top_logprobs") for v in values)

    def _logprob(self, value: object, field: str) -> float:
        try:
            return logprob_of(value, field)
        except ModelError as error:
            raise ModelError(f"the server at {self.client.url} is of no use for scores: {error}") from None

    def _prompt_logprobs(self, whole: ServerPrompt) -> Score:
        answer = self._complete(whole.prompt, look=True, max_tokens=1, prompt_logprobs=1)
        with self._expected_shape():
            listed = only_choice(answer).get("prompt_logprobs") or []
            # per position {id: facts}: the prompt's own token first, then the likeliest where that is another one
            tokens = [next(iter(e.values())) if e else {} for e in listed]
            if whole.tokens and len(tokens) == whole.tokens:
                tokens = [(e or {}).get(str(i), {}) for e, i in zip(listed, whole.prompt, strict=True)]
            if (
                len(tokens) < 2
                or len(tokens) != (whole.tokens or len(tokens))
                or not all("logprob" in o for o in tokens[1:])
            ):
                raise NotSupported(f"the server at {self.client.url} does not give log-probabilities of prompts")
            start = whole.start([(o.get("decoded_token") or "").encode(errors="surrogatepass") for o in tokens])
            values = [self._logprob(o["logprob"], "logprob of prompt_logprobs") for o in tokens[1:]]
            kept = values[start - 1 :]
            return Score(float(sum(kept)), len(kept), all(o.get("rank") == 1 for o in tokens[start:]))

    def _next_token(self, context: str, continuations: Sequence[str]) -> list[Score]:
        candidates: dict[Prompt, list[TokenCandidate]] = {}  # continuations that begin alike share the answers
        if not self.codec:
            kept = context.rstrip()
            return [self._spell(kept, (context[len(kept) :] + c).encode(), candidates) for c in continuations]
        scores = []
        for pair in self._pairs(context, continuations):
            positions = [
                self._look(pair.ids[:at], partial(self._with_id, pair.ids[at]), candidates)
                for at in range(pair.n_context, len(pair.ids))
            ]
            scores.append(Score(sum(f.logprob for f in positions), len(positions), all(f.best for f in positions)))
        return scores

    def _spell(self, context: str, rest: bytes, candidates: dict[Prompt, list[TokenCandidate]]) -> Score:
        positions: list[PositionScore] = []
        while rest:
            positions.append(self._look(context, partial(longest_prefix_token, rest), candidates))
            if positions[-1].token is None:
                break
            text = positions[-1].token.text
            context, rest = context + text.decode(errors="ignore"), rest[len(text) :]
        return Score(sum(f.logprob for f in positions), len(positions), all(f.best for f in positions))

    def _look(
        self,
        prompt: Prompt,
        pick: Callable[[Sequence[TokenCandidate]], TokenCandidate | None],
        candidates: dict[Prompt, list[TokenCandidate]],
    ) -> PositionScore:
        """The token that ``pick`` wants among the candidates after ``prompt``, asking for more of them when needed."""
        tops = candidates.get(prompt, [])
        for width in self._widths:
            if len(tops) < width:
                try:
                    positions = self._positions(self._complete(prompt, look=True, max_tokens=1, logprobs=width))
                except RequestRejected:
                    if not tops:
                        raise
                    self._widths = tuple(w for w in self._widths if w < width)
                    break
                if not _told(positions[:1]):
                    raise _Unanswered(f"the server at {self.client.url} gave no log-probabilities for a prompt")
                tops = candidates[prompt] = [*positions[0].tops]
            if token := pick(tops):
                return PositionScore(token, token.logprob, token.logprob >= tops[0].logprob)
            if len(tops) < width:  # all there are, or all that this server gives
                break
        self._tell_bound("next-token", len(tops))
        return PositionScore(None, Position(tuple(tops), b"").bound, False)

    def _tell_bound(self, scoring: str, count: int) -> None:
        if self.scoring:
            self._note(
                f"scoring {scoring}: a label was not among the {count} candidates that the server gives; its score is "
                "the upper bound that they give"
            )

    def _with_id(self, wanted: int, tops: Sequence[TokenCandidate]) -> TokenCandidate | None:
        if tops[0].id is not None:
            return next((t for t in tops if t.id == wanted), None)
        assert self.codec
        with self._tokenizing if self.config.tokenizer else nullcontext():
            text = self.codec.decode([wanted]).encode()
        return next((t for t in tops if t.text == text), None)

    def _first_token(self, context: str, continuations: Sequence[str]) -> list[Score]:
        wanted = {"max_tokens": self.config.answer_tokens, "logprobs": True, "top_logprobs": self._chat_width}
        answer, reply = self._chat_reply(context, wanted)
        positions = self._positions(answer)
        if reply.thought:
            positions = after_thought(positions, reply.text) if reply.text.strip() else []
        if reply.refused or not _told(positions[:1]):
            why = "declined to answer" if reply.refused else "gave no log-probabilities for an answer"
            raise _Unanswered(f"the server at {self.client.url} {why}, so its labels have no scores")
        scored = [score_along(positions, c.strip().encode()) for c in continuations]
        if not all(known for _, known in scored):
            self._tell_bound("first-token", len(positions[0].tops))
        return [score for score, _ in scored]

    def _compare(self, context: str, continuations: Sequence[str]) -> list[Score]:
        """Ranks by the first line of an answer. Without one all rank the same: no answer is not the first label."""
        answer = self._generate(GenerateRequest(context, self.config.answer_tokens))
        lines = [line for line in answer.text.strip().split("\n") if not _FENCE_LINE.match(line)]
        first = next((line for line in lines if line.strip()), "")
        ranks = [label_similarity(first, c) for c in continuations]
        return [Score(r, estimate_tokens(c), r > -1) for r, c in zip(ranks, continuations, strict=True)]

    # -- single requests ------------------------------------------------------------------------------------------

    def _generate(self, request: GenerateRequest) -> Generation:
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            body |= {"seed": request.seed, "top_p": 1.0}
        if request.stop:
            body["stop"] = [*request.stop]
        if self.endpoint == "chat":
            reply = self._chat_reply(request.context, body)[1]
        else:
            prompt: Prompt = request.context
            if self.codec:
                with self._tokenizing if self.config.tokenizer else nullcontext():
                    prompt = self.codec.encode([request.context])[0]
                self._must_fit(len(prompt) + request.max_tokens)
            reply = self._until_answered(lambda: self._complete(prompt, **body), body)[1]
        text = redact_known(reply.text, _SHORTEST_KEY)  # a server may write the key that it was sent into an answer
        tokens = reply.tokens if reply.tokens is not None else estimate_tokens(text)
        if reply.refused:
            return Generation("", tokens, "refused")
        if (inside := unfenced(text, request.stop)) is not None:
            self._note("answers stand in code fences: what is inside is taken")
            return Generation(inside, tokens, "length" if reply.finish == "length" else "stop")
        if self.endpoint == "chat":
            text = _BLANK_LINES.sub("", text)  # chats may begin with an empty line, which is not the end of the answer
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        if ends:
            return Generation(text[: min(ends)], tokens, "stop")
        return Generation(text, tokens, "length" if reply.finish == "length" else "stop")

    def _chat_reply(self, context: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], Reply]:
        return self._until_answered(lambda: self._chat(context, **body), body)

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
            with self._expected_shape():
                reply = read_reply(answer, self._within)
            needed: set[str] = {STOPS, THOUGHTS} if reply.open else set()
            # cut at the opening of a fence, or at an empty line before the answer
            if body.get("stop") and (reply.only_fence or (self.endpoint == "chat" and not reply.text.strip())):
                needed.add(STOPS)
            if reply.refused or needed <= sent:
                if reply.open and not reply.refused:
                    self._note(
                        f"an answer was still being thought about after {self.config.thought_tokens} tokens more than "
                        "it may have: it counts as none (setting: thought_tokens)"
                    )
                return answer, reply
            self._learn(needed)

    def _learn(self, changes: Collection[str]) -> None:
        with self._lock:
            new = [c for c in changes if c not in self._changes]
            self._changes |= {*new}
        for change in new:
            if change in NOTES:
                self._note(NOTES[change].format(thought_tokens=self.config.thought_tokens))

    def _complete(self, prompt: Prompt, *, look: bool = False, **body: Any) -> dict[str, Any]:
        listed = prompt if isinstance(prompt, str) else [*prompt]
        return self._send("/completions", {"model": self.name, "prompt": listed, "temperature": 0, **body}, look)

    def _chat(self, context: str, **body: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": context}]
        if context.startswith(_CHAT):
            turns = json.loads(context.removeprefix(_CHAT))
        return self._send("/chat/completions", {"model": self.name, "messages": turns, "temperature": 0, **body})

    def _positions(self, answer: Mapping[str, Any]) -> list[Position]:
        with self._expected_shape():
            try:
                return token_candidates(answer)
            except NotSupported:
                raise
            except ModelError as error:
                raise ModelError(f"the server at {self.client.url} is of no use for scores: {error}") from None

    def _send(self, path: str, body: dict[str, Any], look: bool = False) -> dict[str, Any]:
        """The answer to a request, without what the server does not take of it.

        ``look``: only the candidates for the next token are wanted, so thoughts get no room. _Unanswered where
        the server refuses this prompt and none else.
        """
        shape = digest([path, {k: v for k, v in body.items() if k not in ("prompt", "messages")}])
        try:
            answer = self._fit(path, body, look)
        except (HttpError, _Misshapen) as error:
            if self.scoring and self._is_about_the_prompt(path, body, look, shape, error):
                raise _Unanswered(str(error)) from error
            raise
        with self._lock:
            self._answered.add(shape)
            self._usage += Usage(
                calls=1,
                tokens_computed=_usage(answer, "total_tokens") or 0,
                tokens_generated=_usage(answer, "completion_tokens") or 0,
            )
        return answer

    def _is_about_the_prompt(self, path: str, body: dict[str, Any], look: bool, shape: str, error: Exception) -> bool:
        """Whether another prompt is answered where this one was not.

        A request of the same shape that was answered since the last refusal shows it; else a harmless one is sent.
        """
        if isinstance(error, HttpError) and error.status in _NOT_THE_PROMPT:
            return False
        with self._lock:
            if shape in self._answered:
                self._answered.discard(shape)
                return True
        harmless: dict[str, Any] = {"messages": [{"role": "user", "content": _PROBE}]}
        if "prompt" in body:
            ids = self.codec.encode([_PROBE])[0] if self.codec and not isinstance(body["prompt"], str) else ()
            harmless = {"prompt": [*ids] or _PROBE}
        try:
            self._fit(path, {**body, **harmless}, look)
        except (HttpError, _Misshapen):
            return False
        return True

    def _fit(self, path: str, body: Mapping[str, Any], look: bool) -> dict[str, Any]:
        """Send a body; where the server refuses a parameter that it names, send it without, and remember."""
        tried: tuple[str, ...] = ()
        refusal: HttpError | None = None
        while True:
            changes = (self._changes - {THOUGHTS} if look else self._changes).union(tried)
            try:
                answer = self.client.post(path, adapted(body, changes, self.config.thought_tokens))
            except HttpError as error:
                refusal = refusal or error
                if error.status not in _ADAPTABLE:
                    raise
                change = change_for(error.reason, error.parameter, body, changes)
                if change is None:
                    raise refusal from None
                tried = (*tried, change)
                continue
            if not isinstance(answer.get("choices"), list) or not answer["choices"]:
                error_ = answer.get("error")
                words = error_.get("message") if isinstance(error_, dict) else error_
                why = f"no choices{f' ({said(str(words))})' if words else ''}"
                raise _Misshapen(f"{self._shape_words()} ({why}); is it an OpenAI-compatible API?")
            self._learn(tried)
            return answer

    def _shape_words(self) -> str:
        return f"the server at {self.client.url} answered with JSON of another shape than OpenAI's"

    @contextmanager
    def _expected_shape(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"{self._shape_words()} ({type(error).__name__}: {said(str(error))}); is it an OpenAI-compatible API?"
            ) from None


def _told(positions: Sequence[Position]) -> bool:
    return any(p.tops for p in positions)


def _usage(answer: Mapping[str, Any], field: str) -> int | None:
    usage = answer.get("usage")
    return count_of(usage.get(field)) if isinstance(usage, Mapping) else None


def _is_no(error: HttpError) -> bool:
    """Whether the server is there and does not offer what was asked for."""
    return isinstance(error, RequestRejected) or error.status in _UNSUPPORTED_STATUSES or _is_elsewhere(error)


def _is_elsewhere(error: HttpError) -> bool:
    return (error.status or 0) // 100 == 3


class _ServerTokenizer:
    """The server's /tokenize and /detokenize (vLLM, llama.cpp), as a tokenizer for ``PromptTokenizer``."""

    bos_token_id = eos_token_id = chat_template = None

    def __init__(self, client: Client, root: str, model: str) -> None:
        self._client, self._root, self._model = client, root, model
        self._known: dict[tuple[str, bool], list[int]] = {}

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": self._ids(text, add_special_tokens)}
        return {"input_ids": [self._ids(t, add_special_tokens) for t in text]}

    def _ids(self, text: str, special: bool) -> list[int]:
        if (text, special) not in self._known:
            # vLLM calls them prompt and add_special_tokens, llama.cpp content and add_special; each skips the other's
            body: dict[str, Any] = {"model": self._model, "prompt": text, "content": text, "parse_special": True}
            body |= {"add_special_tokens": special, "add_special": special}
            ids = self._client.post("/tokenize", body, root=self._root).get("tokens")
            if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise NotSupported(f"the server at {self._root} does not tokenize")
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            self._known[text, special] = ids
        return self._known[text, special]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return _detokenize(self._client, self._root, self._model, ids)


def _detokenize(client: Client, root: str, model: str, ids: Sequence[int]) -> str:
    answer = client.post("/detokenize", {"model": model, "tokens": [*ids]}, root=root)
    text = answer.get("prompt", answer.get("content"))
    if not isinstance(text, str):
        raise NotSupported(f"the server at {root} does not turn tokens into text")
    return text


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from iclkit.models import catalogue, resolve

    folder = str(resolve(name, "lm", pull=False)) if name in catalogue() else name
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"tokenizer {name} does not load ({first}); give the model's folder or hub id") from error
