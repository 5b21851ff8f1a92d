"""Any OpenAI-compatible HTTP server as an LM: ``openai:MODEL@URL``.

Such servers differ in what they tell about probabilities. A probe finds out once, when the LM is opened, which of
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
                                                                                         tells a label from the answer
generate        the answer is generated and compared                                     no: a ranking, no probability
=============== ======================================================================== ==============================
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from iclkit.errors import DataError, ModelError, UnknownName, UsageError
from iclkit.lm._http import Client, HttpConfig, HttpError, Refused
from iclkit.lm._protocol import GenerateRequest, Generation, OnDone, Score, ScoreRequest
from iclkit.lm._spent import Spent
from iclkit.lm._tokens import Pair, TextCodec
from iclkit.lm._wire import (
    Look,
    NotOffered,
    Prompt,
    Token,
    Whole,
    along,
    estimate_tokens,
    likeness,
    longest_start,
    positions_of,
)
from iclkit.records import Json, Message, canonical_json, digest
from iclkit.registry import parse_spec

SCORINGS = ("echo", "prompt-logprobs", "next-token", "first-token", "generate")
ENDPOINTS = ("completions", "chat")
_ADDRESS = re.compile(r"openai:(?:(?P<served>.+?)@(?P<url>https?://\S+)|(?P<model>[^@]+))")
_WIDTHS = (64, 4096, 1 << 20)
"""How many next-token candidates are asked for; more only when a needed token is not among the fewer."""
_CHAT_TOPS = 20
_PROBE_TRIES = 1
_KNOWN_TEXTS = 20_000
_LOCKED = (401, 403)
_CANNOT = (400, 404, 405, 415, 422, 500, 501)
"""Statuses that mean "this is not offered" when a way of scoring is tried."""
_CHAT = "\x02chat\x02"
"""Starts the text of a chat that only the server can render; the messages follow as JSON."""
_PROBE = "Berlin is in Germany.\n\nIn 2024: Paris is in"

U = TypeVar("U")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class OpenAIConfig:
    """Settings of a server's LM, beside those of ``HttpConfig``.

    scoring, endpoint: "auto" to find out, or one of SCORINGS, ENDPOINTS. tokenizer: folder or hub id of the model's
    tokenizer, for exact token counts and boundaries where the server does not tokenize. context: tokens that prompt
    and answer may take, where the server does not say. answer_tokens: length of the answers that first-token and
    generate compare. revision: any text; another one keeps the cache from mixing two models at one address.
    """

    scoring: str = "auto"
    endpoint: str = "auto"
    tokenizer: str = ""
    context: int = 0
    answer_tokens: int = 12
    revision: str = ""

    def __post_init__(self) -> None:
        for value, known in ((self.scoring, SCORINGS), (self.endpoint, ENDPOINTS)):
            if value not in ("auto", *known):
                raise UnknownName("way to use a server", value, ("auto", *known))
        if self.context < 0 or self.answer_tokens < 1:
            raise UsageError(
                f"context is {self.context}, answer_tokens {self.answer_tokens}: expected at least 0 and 1"
            )


def open_openai(spec: str, **settings: Json) -> OpenAILM:
    """The LM at ``openai:MODEL@URL``.

    Settings (those of OpenAIConfig and HttpConfig) are keywords, or ride on the name: ``openai:MODEL@URL,key=value``.
    Without @URL it is OPENAI_BASE_URL; nothing is sent to a place that was not named. The key is ICLKIT_API_KEY, else
    OPENAI_API_KEY, if set.
    UsageError for a spec or setting that cannot be; ModelError when the server cannot be used.
    """
    parsed = parse_spec(spec)
    found = _ADDRESS.fullmatch(parsed.name)
    url = ((found and found["url"]) or os.environ.get("OPENAI_BASE_URL", "")).rstrip("/")
    if not found or not url:
        raise UsageError(
            f"{spec!r} is not openai:MODEL@URL, e.g. openai:my-model@http://127.0.0.1:8000/v1 (without @URL, set "
            "OPENAI_BASE_URL)"
        )
    wanted = {**parsed.settings, **settings}
    known = {f.name: kind for kind in (OpenAIConfig, HttpConfig) for f in fields(kind)}
    for name in wanted:
        if name not in known:
            raise UnknownName("setting of openai:MODEL@URL", name, known)
    own, http = ({k: v for k, v in wanted.items() if known[k] is kind} for kind in (OpenAIConfig, HttpConfig))
    key = os.environ.get("ICLKIT_API_KEY") or os.environ.get("OPENAI_API_KEY")
    try:
        config, http_config = OpenAIConfig(**own), HttpConfig(**http)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(f"{spec!r} has a setting of the wrong type: {error}") from error
    if not re.search(r"//[^/]+/", url):  # a bare host: the API is below /v1 by custom
        url += "/v1"
    return OpenAILM(found["served"] or found["model"], Client(url, key, http_config), config)


class OpenAILM:
    """A language model behind an OpenAI-compatible server. Opening it asks the server a few short questions.

    ``scoring`` is how log-probabilities are had (see the module), ``notes`` say what the user should know about it,
    ``spent`` counts requests to the server and the tokens it reports.
    """

    def __init__(self, model: str, client: Client, config: OpenAIConfig) -> None:
        self.name, self.client, self.config = model, client, config
        self.spent, self.notes = Spent(), tuple[str, ...]()
        self._root = client.url.removesuffix("/v1")
        self._lock, self._tokenizing = threading.Lock(), threading.Lock()
        self._widths: tuple[int, ...] = _WIDTHS
        self._limit_field = "max_tokens"
        client.patience = _PROBE_TRIES
        facts = self._facts()
        told = facts.get("max_model_len") or (facts.get("meta") or {}).get("n_ctx")
        self.context_size = config.context or int(told or 4096)
        self.endpoint = self._find_endpoint() if config.endpoint == "auto" else config.endpoint
        self.codec = self._find_codec()
        self.scoring = ""  # not known yet
        self.scoring = self._find_scoring()
        client.patience = client.config.retries
        if not (config.context or told):
            self._note(f"the server does not tell its context size; {self.context_size} is assumed (setting: context)")
        self._explain()
        host = re.sub(r"//[^/@]*@", "//", client.url)
        kept = {k: facts.get(k) for k in ("id", "root", "parent", "owned_by", "max_model_len", "meta")}
        parts = [model, host, digest(kept), self.endpoint, self.scoring, config.tokenizer, str(config.revision)]
        parts += ["ids" if self.codec else "text"]
        if self.scoring in ("first-token", "generate"):
            parts.append(str(config.answer_tokens))
        self.fingerprint = "|".join(["openai", *parts])

    # -- what the server is ---------------------------------------------------------------------------------------

    def _facts(self) -> Mapping[str, Any]:
        """What /models says about the model; {} where that is not offered."""
        try:
            listed = self.client.get("/models").get("data")
        except Refused as error:
            if error.status in _LOCKED:
                raise
            listed = None
        entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
        self._served = [str(e.get("id")) for e in entries]
        named = [e for e in entries if e.get("id") == self.name]
        return named[0] if named else entries[0] if len(entries) == 1 else {}

    def _find_endpoint(self) -> str:
        try:
            self._complete("Hi", max_tokens=1)
        except Refused as error:
            if error.status in _LOCKED:
                raise
            try:
                self._chat("Hi", max_tokens=1)
            except Refused as second:
                served = f"; it serves: {', '.join(self._served[:8])}" if self._served else ""
                raise ModelError(
                    f"the server at {self.client.url} takes neither a completion ({error.reason}) nor a chat "
                    f"({second.reason}) with model {self.name!r}{served}"
                ) from second
            return "chat"
        return "completions"

    def _find_codec(self) -> TextCodec | None:
        """The model's tokenizer: the one given, else the server's own; None where there is none to be had."""
        if self.config.tokenizer:
            codec = TextCodec(_load_tokenizer(self.config.tokenizer))
        elif self.endpoint == "chat":
            return None  # what a chat becomes is the server's affair
        else:
            try:
                codec = TextCodec(_ServerTokenizer(self.client, self._root, self.name))
            except (Refused, NotOffered):
                return None
        if self.endpoint == "chat":
            return codec  # for counting only
        ids = codec.encode([_PROBE])[0]
        for prompt in (_PROBE, ids):
            usage = self._complete(prompt, max_tokens=1).get("usage") or {}
            if usage.get("prompt_tokens", len(ids)) == len(ids):
                continue
            if self.config.tokenizer:
                raise UsageError(
                    f"tokenizer {self.config.tokenizer} makes {len(ids)} tokens of a text that the server at "
                    f"{self.client.url} counts as {usage['prompt_tokens']}: it is not that model's tokenizer"
                )
            return None
        return codec

    def _find_scoring(self) -> str:
        wanted = self.config.scoring
        for scoring in SCORINGS if wanted == "auto" else (wanted,):
            try:
                if self._works(scoring):
                    return scoring
            except HttpError as error:
                if error.status not in _CANNOT:  # away or busy says nothing about what it offers
                    raise
            except NotOffered:
                pass
        raise ModelError(f"the server at {self.client.url} does not offer the scoring {wanted!r} that was asked for")

    def _works(self, scoring: str) -> bool:
        if scoring == "generate":
            return True
        if (scoring == "first-token") != (self.endpoint == "chat"):
            return False
        if scoring == "first-token":
            return any(self._positions(self._chat(_PROBE, max_tokens=1, logprobs=True, top_logprobs=_CHAT_TOPS)))
        if scoring == "next-token":
            self._widths = self._find_widths()
        return self._scores(scoring, _PROBE, [" Germany"])[0].logprob < 0

    def _find_widths(self) -> tuple[int, ...]:
        for width in (_WIDTHS[0], 20, 5, 1):  # OpenAI gives 5, vLLM 20 unless told otherwise
            try:
                if any(self._positions(self._complete("Hi", max_tokens=1, logprobs=width))):
                    return _WIDTHS if width == _WIDTHS[0] else (width,)
            except Refused:
                continue
        raise NotOffered(f"the server at {self.client.url} gives no log-probabilities")

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
                "scoring generate: this server tells no probabilities; answers are generated and compared with the "
                "labels, so scores are a ranking, not log-probabilities: do not calibrate or average them"
            )
        if not self.codec:
            self._note("token counts are estimates on the high side: the server does not tokenize (setting: tokenizer)")

    def _note(self, text: str) -> None:
        with self._lock:
            if text not in self.notes:
                self.notes = (*self.notes, text)

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
        except NotOffered:
            pass
        raise UsageError(
            f"the server at {self.client.url} does not render chats; add tokenizer=FOLDER_OR_ID or endpoint=chat to "
            "the model, or use a plain-text template"
        )

    def _if_offered(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.client.post(self._root + path, body)
        except Refused:
            return {}

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities in nats (see ``scoring``). DataError for a request beyond the context size."""
        one_by_one = self.scoring in ("echo", "prompt-logprobs")  # else one answer serves all labels of a context
        units: dict[tuple[str, str], dict[str, list[int]]] = {}
        for i, r in enumerate(requests):
            unit = units.setdefault((r.context, r.continuation if one_by_one else ""), {})
            unit.setdefault(r.continuation, []).append(i)

        def work(unit: tuple[str, dict[str, list[int]]]) -> list[tuple[int, Score]]:
            context, wanted = unit
            scores = self._scores(self.scoring, context, [*wanted])
            return [(i, s) for s, places in zip(scores, wanted.values(), strict=True) for i in places]

        return self._all(work, [(context, wanted) for (context, _), wanted in units.items()], on_done)

    def generate(
        self, requests: Sequence[GenerateRequest], on_done: OnDone[Generation] | None = None
    ) -> list[Generation]:
        """A continuation per request; a request with ``choices`` gets the one with the best score (first on a tie)."""
        units: dict[GenerateRequest, list[int]] = {}
        for i, r in enumerate(requests):
            units.setdefault(r, []).append(i)

        def work(unit: tuple[GenerateRequest, list[int]]) -> list[tuple[int, Generation]]:
            request, places = unit
            if not request.choices:
                answer = self._generate(request)
            else:
                scores = self._scores(self.scoring, request.context, request.choices)
                best = max(range(len(scores)), key=lambda i: scores[i].logprob)
                answer = Generation(request.choices[best], scores[best].tokens, "choice")
            return [(i, answer) for i in places]

        return self._all(work, [*units.items()], on_done)

    def _all(self, work: Callable[[U], list[tuple[int, R]]], units: Sequence[U], on_done: OnDone[R] | None) -> list[R]:
        start, found = time.perf_counter(), dict[int, R]()
        for _, done in self.client.map(work, units):
            found.update(done)
            if on_done is not None:
                on_done(done)
        self.spent.requests += len(found)
        self.spent.seconds += time.perf_counter() - start
        return [found[i] for i in range(len(found))]

    # -- ways of scoring: one context, its continuations ----------------------------------------------------------

    def _scores(self, scoring: str, context: str, continuations: Sequence[str]) -> list[Score]:
        if scoring == "echo":
            return [self._echo(whole) for whole in self._wholes(context, continuations)]
        if scoring == "prompt-logprobs":
            return [self._prompt_logprobs(whole) for whole in self._wholes(context, continuations)]
        if scoring == "next-token":
            return self._next_token(context, continuations)
        return (self._first_token if scoring == "first-token" else self._compare)(context, continuations)

    def _wholes(self, context: str, continuations: Sequence[str]) -> list[Whole]:
        if self.codec:
            return [Whole(pair.ids, pair.n_context, b"") for pair in self._pairs(context, continuations)]
        kept = context.rstrip()  # white space at the end of a context belongs to the continuation, as in TextCodec
        rests = [context[len(kept) :] + c for c in continuations]
        return [Whole(kept + rest, None, rest.encode()) for rest in rests]

    def _pairs(self, context: str, continuations: Sequence[str]) -> list[Pair]:
        assert self.codec
        with self._tokenizing if self.config.tokenizer else nullcontext():
            pairs = self.codec.pairs([(context, c) for c in continuations])
        self._must_fit(max((len(p.ids) for p in pairs), default=0))
        return pairs

    def _must_fit(self, tokens: int) -> None:
        if tokens > self.context_size:
            raise DataError(
                f"a request takes {tokens} tokens, {self.name} reads {self.context_size}: show fewer or shorter "
                "demonstrations"
            )

    def _echo(self, whole: Whole) -> Score:
        answer = self._complete(whole.prompt, max_tokens=1, echo=True, logprobs=1)
        with self._expected_shape():
            told = answer["choices"][0].get("logprobs") or {}
            values: list[Any] = told.get("token_logprobs") or []
            texts = [t.encode() for t in told.get("tokens") or []]
            tops = told.get("top_logprobs") or [None] * len(values)
            end = whole.tokens or (answer.get("usage") or {}).get("prompt_tokens") or len(values) - 1
            if not len(values) == len(texts) >= end > 1 or not all(isinstance(v, float | int) for v in values[1:end]):
                raise NotOffered(f"the server at {self.client.url} does not repeat prompts with log-probabilities")
            kept = [(values[i], tops[i]) for i in range(whole.start(texts[:end]), end)]
            best = all(not top or value >= max(top.values()) for value, top in kept)
        return Score(float(sum(value for value, _ in kept)), len(kept), best)

    def _prompt_logprobs(self, whole: Whole) -> Score:
        answer = self._complete(whole.prompt, max_tokens=1, prompt_logprobs=1)
        with self._expected_shape():
            listed = answer["choices"][0].get("prompt_logprobs") or []
            # per position {id: facts}: the prompt's own token first, then the likeliest where that is another one
            own = [next(iter(e.values())) if e else {} for e in listed]
            if whole.tokens and len(own) == whole.tokens:
                own = [(e or {}).get(str(i), {}) for e, i in zip(listed, whole.prompt, strict=True)]
            if len(own) < 2 or len(own) != (whole.tokens or len(own)) or not all("logprob" in o for o in own[1:]):
                raise NotOffered(f"the server at {self.client.url} does not give log-probabilities of prompts")
            kept = own[whole.start([(o.get("decoded_token") or "").encode() for o in own]) :]
            return Score(float(sum(o["logprob"] for o in kept)), len(kept), all(o.get("rank") == 1 for o in kept))

    def _next_token(self, context: str, continuations: Sequence[str]) -> list[Score]:
        asked: dict[Prompt, list[Token]] = {}  # continuations that begin alike share the answers
        if not self.codec:
            kept = context.rstrip()
            return [self._spell(kept, (context[len(kept) :] + c).encode(), asked) for c in continuations]
        scores = []
        for pair in self._pairs(context, continuations):
            found = [
                self._look(pair.ids[:at], partial(self._with_id, pair.ids[at]), asked)
                for at in range(pair.n_context, len(pair.ids))
            ]
            scores.append(Score(sum(f.logprob for f in found), len(found), all(f.best for f in found)))
        return scores

    def _spell(self, context: str, rest: bytes, asked: dict[Prompt, list[Token]]) -> Score:
        found: list[Look] = []
        while rest:
            found.append(self._look(context, partial(longest_start, rest), asked))
            if found[-1].token is None:
                break
            text = found[-1].token.text
            context, rest = context + text.decode(errors="ignore"), rest[len(text) :]
        return Score(sum(f.logprob for f in found), len(found), all(f.best for f in found))

    def _look(
        self, prompt: Prompt, pick: Callable[[Sequence[Token]], Token | None], asked: dict[Prompt, list[Token]]
    ) -> Look:
        """The token that ``pick`` wants among the candidates after ``prompt``, asking for more of them when needed."""
        tops = asked.get(prompt, [])
        for width in self._widths:
            if len(tops) < width:
                try:
                    positions = self._positions(self._complete(prompt, max_tokens=1, logprobs=width))
                except Refused:
                    if not tops:
                        raise
                    self._widths = tuple(w for w in self._widths if w < width)
                    break
                if not positions or not positions[0]:
                    raise NotOffered(f"the server at {self.client.url} gave no log-probabilities for a prompt")
                tops = asked[prompt] = positions[0]
            if token := pick(tops):
                return Look(token, token.logprob, token.logprob >= tops[0].logprob)
            if len(tops) < width:  # all there are, or all that this server gives
                break
        if self.scoring:
            self._note(
                f"scoring next-token: a label was not among the {len(tops)} candidates that the server tells; its "
                "score is the upper bound that the last of them gives"
            )
        return Look(None, tops[-1].logprob, False)

    def _with_id(self, wanted: int, tops: Sequence[Token]) -> Token | None:
        if tops[0].id is not None:
            return next((t for t in tops if t.id == wanted), None)
        assert self.codec
        with self._tokenizing if self.config.tokenizer else nullcontext():
            text = self.codec.decode([wanted]).encode()
        return next((t for t in tops if t.text == text), None)

    def _first_token(self, context: str, continuations: Sequence[str]) -> list[Score]:
        answer = self._chat(context, max_tokens=self.config.answer_tokens, logprobs=True, top_logprobs=_CHAT_TOPS)
        positions = self._positions(answer)
        if not positions:
            raise NotOffered(f"the server at {self.client.url} gave no log-probabilities for a chat")
        return [along(positions, c.strip().encode()) for c in continuations]

    def _compare(self, context: str, continuations: Sequence[str]) -> list[Score]:
        answer = self._generate(GenerateRequest(context, self.config.answer_tokens, ("\n",)))
        ranks = [likeness(answer.text, c) for c in continuations]
        return [Score(r, estimate_tokens(c), r > -1) for r, c in zip(ranks, continuations, strict=True)]

    # -- single requests ------------------------------------------------------------------------------------------

    def _generate(self, request: GenerateRequest) -> Generation:
        body: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.temperature > 0:
            body |= {"seed": request.seed, "top_p": 1.0}
        if request.stop:
            body["stop"] = [*request.stop][:4]  # OpenAI takes four; the others are cut here
        if self.endpoint == "chat":
            answer = self._chat(request.context, **body)
        else:
            prompt: Prompt = request.context
            if self.codec:
                with self._tokenizing if self.config.tokenizer else nullcontext():
                    prompt = self.codec.encode([request.context])[0]
                self._must_fit(len(prompt) + request.max_tokens)
            answer = self._complete(prompt, **body)
        with self._expected_shape():
            choice = answer["choices"][0]
            text = str((choice["message"]["content"] if self.endpoint == "chat" else choice["text"]) or "")
            tokens = int((answer.get("usage") or {}).get("completion_tokens") or estimate_tokens(text))
            finish = str(choice.get("finish_reason"))
        ends = [at for stop in request.stop if (at := text.find(stop)) >= 0]
        if ends:
            return Generation(text[: min(ends)], tokens, "stop")
        return Generation(text, tokens, "length" if finish == "length" else "stop")

    def _complete(self, prompt: Prompt, **body: Any) -> dict[str, Any]:
        listed = prompt if isinstance(prompt, str) else [*prompt]
        return self._send("/completions", {"model": self.name, "prompt": listed, "temperature": 0, **body})

    def _chat(self, context: str, **body: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": context}]
        if context.startswith(_CHAT):
            turns = json.loads(context.removeprefix(_CHAT))
        limit = body.pop("max_tokens")
        body = {"model": self.name, "messages": turns, "temperature": 0, **body}
        try:
            return self._send("/chat/completions", {**body, self._limit_field: limit})
        except Refused as error:
            if "max_completion_tokens" not in error.reason:
                raise
        self._limit_field = "max_completion_tokens"  # what OpenAI's newer models call it
        return self._send("/chat/completions", {**body, self._limit_field: limit})

    def _positions(self, answer: Mapping[str, Any]) -> list[list[Token]]:
        with self._expected_shape():
            return positions_of(answer)

    def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(path, body)
        with self._expected_shape():
            if not answer["choices"]:
                raise KeyError("choices")
            tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        with self._lock:
            self.spent.calls += 1
            self.spent.tokens_computed += tokens
        return answer

    @contextmanager
    def _expected_shape(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ModelError(
                f"the server at {self.client.url} answered with JSON of another shape than OpenAI's "
                f"({type(error).__name__}: {error}); is it an OpenAI-compatible API?"
            ) from error


class _ServerTokenizer:
    """The server's /tokenize and /detokenize (vLLM, llama.cpp) in the shape that TextCodec expects of a tokenizer."""

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
            body = {"model": self._model, "prompt": text, "content": text, "parse_special": True}
            found = self._client.post(
                f"{self._root}/tokenize", {**body, "add_special_tokens": special, "add_special": special}
            ).get("tokens")
            if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
                raise NotOffered(f"the server at {self._root} does not tokenize")
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            self._known[text, special] = found
        return self._known[text, special]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return _detokenize(self._client, self._root, self._model, ids)


def _detokenize(client: Client, root: str, model: str, ids: Sequence[int]) -> str:
    answer = client.post(f"{root}/detokenize", {"model": model, "tokens": [*ids]})
    text = answer.get("prompt", answer.get("content"))
    if not isinstance(text, str):
        raise NotOffered(f"the server at {root} does not turn tokens into text")
    return text


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from iclkit.models import catalogue, resolve

    folder = str(resolve(name, "lm", pull=False)) if name in catalogue() else name
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"tokenizer {name} does not load ({first}); give the model's folder or hub id") from error
