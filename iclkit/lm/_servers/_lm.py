"""Any OpenAI-compatible HTTP server as an LM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from iclkit.errors import RequestError, UsageError
from iclkit.lm._base import BaseLM
from iclkit.lm._protocol import OnDone
from iclkit.lm._servers._adapt import THOUGHTS
from iclkit.lm._servers._batch import ROUNDS, BatchFolder, Offline, Pending
from iclkit.lm._servers._capabilities import Capabilities, NoRecords, Records
from iclkit.lm._servers._codec import detokenize
from iclkit.lm._servers._config import OpenAIConfig
from iclkit.lm._servers._http import Client, HttpError
from iclkit.lm._servers._model import CHAT, SHORTEST_KEY, ServedModel, Unanswered, is_no
from iclkit.lm._servers._money import Purse, written_at_most
from iclkit.lm._servers._parse import NotSupported
from iclkit.lm._servers._probe import ASSUMED_CONTEXT, facts_of, forget, probe, restored, still_so
from iclkit.lm._servers._way import Way
from iclkit.lm._tokens import PromptTokenizer
from iclkit.records import (
    CostEstimate,
    GenerateRequest,
    Generation,
    Message,
    Score,
    ScoreRequest,
    Usage,
    canonical_json,
    digest,
)
from iclkit.secrets import redact_known

_PROBE_TRIES = 1
_ANSWERS = "answers2"
"""Raised when other answers are read out of what a chat writes, or other ranks out of the answers."""
_DIFFERS = 0.1
"""Nats between the same asked twice above which a server is reported."""

U = TypeVar("U")
R = TypeVar("R")


class OpenAILM(BaseLM):
    """A language model behind an OpenAI-compatible server.

    Opening it finds out with a few short questions what the server can do (``can``), or takes it from ``records`` where
    one question shows that it still holds. ``scoring`` is how log-probabilities are had (see the package), ``notes``
    say what the user should know about it, ``usage`` counts requests to the server and the tokens it reports.
    ``identity``: what answers, where that is known better than by address and name. ``context``: tokens that the model
    reads, for a server that does not tell.
    """

    def __init__(
        self,
        model: str,
        client: Client,
        config: OpenAIConfig,
        records: Records | None = None,
        *,
        reprobe: bool = False,
        purse: Purse | None = None,
        identity: str = "",
        context: int = 0,
    ) -> None:
        self.name, self.client, self.config = model, client, config
        self._server = server = ServedModel(model, client, config, purse, context)
        self._records: Records = records or NoRecords()
        self._unanswered: dict[Any, str] = {}  # refusals that have not been raised yet
        self.wanted: list[ScoreRequest | GenerateRequest] | None = None
        """Where it is a list, what is estimated is added to it: a dry run lists so what the cache lacks."""
        client.patience = _PROBE_TRIES
        facts, served = facts_of(server)
        host = client.url + (f"?{client.parameters}" if client.parameters else "")
        kept = {k: facts.get(k) for k in ("id", "root", "parent", "owned_by", "max_model_len", "meta")}
        # a server that we start ourselves is known by what it serves, not by where
        served_by = [identity] if identity else [model, host, digest(kept)]
        self._key = digest([host, model, digest(kept), config.scoring, config.endpoint, config.tokenizer, config.extra])
        self._way = self._open(facts, served, reprobe)
        client.patience = client.config.retries
        server.open = True
        self._kept = server.can
        client.width.at_most(server.can.slots)
        client.width.begin(server.can.connections)
        self.scoring, self.endpoint, self.context_size = server.can.scoring, server.can.endpoint, server.context_size
        self._explain()
        parts = [*served_by, self.endpoint, self.scoring, config.tokenizer, str(config.revision)]
        parts += ["ids" if self.codec else "text"]
        if self.scoring in ("first-token", "generate", "forced"):
            parts += [str(config.answer_tokens), _ANSWERS]
        if self.scoring == "forced":
            parts.append(server.can.force)
        if config.thought_tokens != OpenAIConfig().thought_tokens:
            parts.append(f"thoughts{config.thought_tokens}")
        if config.extra:
            parts.append(canonical_json(config.extra))
        self.fingerprint = redact_known("|".join(["openai", *parts]), SHORTEST_KEY)

    def _open(self, facts: Mapping[str, Any], served: Sequence[str], reprobe: bool) -> Way:
        server = self._server
        known = None if reprobe else self._records.get(self._key)
        if known is not None:
            server.can = known
            way = restored(server)
            if still_so(server, way):
                return way
            forget(server)
        way = probe(server, facts, served)
        self._records.put(self._key, server.can)
        return way

    def _explain(self) -> None:
        server, can = self._server, self._server.can
        if not (self.config.context or can.context or server.known_context):
            server.note(
                f"the server does not give its context size; {ASSUMED_CONTEXT} is assumed (setting: context, or "
                "--price with litellm's price file)"
            )
        if self._way.note:
            server.note(self._way.note)
        if self.scoring == "next-token" and not self.codec:
            server.note(
                "scoring next-token: the server's tokens are not known, so a label is spelt by the longest matching "
                "candidates (setting: tokenizer)"
            )
        if not self.codec:
            server.note(
                "token counts are estimates on the high side: the server does not tokenize (setting: tokenizer)"
            )
        if can.deviation is not None and can.deviation > _DIFFERS:
            server.note(
                f"{server} gave log-probabilities that differ by {can.deviation:.2g} nats to the same question asked "
                "twice: small differences between labels mean nothing there"
            )

    @property
    def can(self) -> Capabilities:
        """What was found out about the server."""
        return self._server.can

    @property
    def codec(self) -> PromptTokenizer | None:
        """The model's tokenizer, where there is one to be had."""
        return self._server.codec

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how this LM is asked."""
        return self._server.notes

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        return self._usage + self._server.usage

    # -- the protocol ---------------------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Number of tokens of ``text`` with the special tokens in front; without a tokenizer an upper estimate."""
        return self._server.count_tokens(text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to the assistant's next answer, by the model's own template.

        Where only the server can render, a stand-in that ``score`` and ``generate`` send as messages. UsageError where
        the server neither renders nor serves chats.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if self.endpoint == "chat":
            return CHAT + canonical_json(turns)
        if self.codec and self.config.tokenizer:
            return self.codec.render_chat(messages)
        body = {"model": self.name, "messages": turns, "add_generation_prompt": True}
        try:
            if "prompt" in (rendered := self._if_offered("/apply-template", body)):  # llama.cpp
                return str(rendered["prompt"])
            if tokens := self._if_offered("/tokenize", body).get("tokens"):  # vLLM
                return detokenize(self.client, self._server.root, self.name, tokens)
        except NotSupported:
            pass
        raise UsageError(
            f"the server at {self.client.url} does not render chats; add tokenizer=FOLDER_OR_ID or endpoint=chat to "
            "the model, or use a plain-text template"
        )

    def _if_offered(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.client.post(path, body, root=self._server.root)
        except HttpError as error:
            if not is_no(error):
                raise
            return {}

    def score(self, requests: Sequence[ScoreRequest], on_done: OnDone[Score] | None = None) -> list[Score]:
        """Sum of log-probabilities in nats (see ``scoring``). RequestError for a prompt that has no answer."""
        units: dict[tuple[str, str], dict[str, list[int]]] = {}
        for i, r in enumerate(requests):
            unit = units.setdefault((r.context, r.continuation if self._way.one_by_one else ""), {})
            unit.setdefault(r.continuation, []).append(i)

        def work(unit: tuple[str, tuple[str, ...]]) -> list[Score]:
            return self._way.scores(*unit)

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
                return [self._server.generate(request)]
            scores = self._way.scores(request.context, request.choices)
            values = [s.logprob for s in scores]
            if len(set(request.choices)) > 1 and min(values) == max(values):
                return [Generation("", 0, "choice")]
            best = values.index(max(values))
            return [Generation(request.choices[best], scores[best].tokens, "choice")]

        return self._all(work, [(request, [places]) for request, places in units.items()], on_done)

    def estimate(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> CostEstimate:
        """What the requests would cost: one question for all labels of a prompt where the server can be asked so."""
        contexts = {r.context for r in requests}
        scored = {r for r in requests if isinstance(r, ScoreRequest)}
        written = {r for r in requests if isinstance(r, GenerateRequest)}
        counts = {t: self.count_tokens(t) for t in contexts | {r.continuation for r in scored}}
        per_label = self._way.one_by_one
        of_labels = {r.context for r in scored} | {r.context for r in written if r.choices}
        free = [r for r in written if not r.choices]
        read = sum(counts[r.context] for r in free)
        read += sum(counts[r.context] + counts[r.continuation] for r in scored) if per_label else 0
        asks = dict.fromkeys(of_labels, 1)
        if self._way.per_token:  # at most: labels may share their beginnings, and a server what it has read
            empty = self.count_tokens("")
            for r in scored:
                asks[r.context] += max(0, counts[r.continuation] - empty - 1)
        if self.scoring == "next-token":  # a token that is not among few candidates is looked for among more
            asks = {c: n * len(self.can.widths) for c, n in asks.items()}
        read += 0 if per_label else sum(counts[c] * n + n * n // 2 for c, n in asks.items())
        answers = 1 if self.endpoint == "completions" and self._way.name != "generate" else self.config.answer_tokens
        generated = sum(r.max_tokens for r in free) + (len(scored) if per_label else answers * sum(asks.values()))
        if THOUGHTS in self.can.changes:
            generated += self.config.thought_tokens * (len(free) + len(of_labels))
        purse = self._server.purse
        if self.wanted is not None:
            self.wanted.extend(requests)
        return CostEstimate(
            cost=None if purse is None else purse.prices.of(read, generated),
            requests=len(requests),
            prompts=len(contexts),
            calls=len(free) + (len(scored) if per_label else len(of_labels)),
            tokens_asked=sum(
                counts[r.context] + (counts[r.continuation] if isinstance(r, ScoreRequest) else 0) for r in requests
            ),
            tokens_computed=read,
            tokens_generated=generated,
            seconds=None if requests else 0.0,
        )

    @contextmanager
    def _offline(self, offline: Offline) -> Iterator[None]:
        """Inside, ``offline`` is asked in the server's place, and its answers cost what a batch costs."""
        purse = self._server.purse
        self.client.offline = offline
        try:
            with nullcontext() if purse is None else purse.by_batch():
                yield
        finally:
            self.client.offline = None
            with self._server.lock:
                self._unanswered.clear()  # the real run asks again

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
        pending = False
        keys = [(work.__qualname__, unit) for unit, _ in units]
        lock = self._server.lock

        def attempt(numbered: tuple[Any, U]) -> list[R] | str | None:
            key, unit = numbered
            with lock:
                if key in self._unanswered:
                    return self._unanswered[key]
            try:
                return work(unit)
            except Pending:
                return None
            except (Unanswered, NotSupported, RequestError) as error:
                with lock:
                    self._unanswered[key] = str(error)
                return str(error)

        todo = [(key, unit) for key, (unit, _) in zip(keys, units, strict=True)]
        for number, results in self.client.map(attempt, todo):
            places = units[number][1]
            if results is None:
                pending = True
                continue
            if isinstance(results, str):
                failed[min(min(p) for p in places)] = results
                continue
            done = [(i, result) for numbers, result in zip(places, results, strict=True) for i in numbers]
            answered.update(done)
            if on_done is not None:
                on_done(done)
        with lock:
            self._usage += Usage(requests=len(answered), seconds=time.perf_counter() - start)
        if width := self.client.width.found:
            self._server.found(connections=width)
        if self._server.can != self._kept:  # what was found out on the way
            self._kept = self._server.can
            self._records.put(self._key, self._kept)
        if pending:
            raise Pending
        if failed:
            first = min(failed)
            raised = next(k for k, (_, places) in zip(keys, units, strict=True) if min(map(min, places)) == first)
            del self._unanswered[raised]
            raise RequestError(first, failed[first])
        return [answered[i] for i in range(len(answered))]


def by_batch(
    lm: OpenAILM,
    ask_all: Callable[[Sequence[ScoreRequest | GenerateRequest]], None],
    wanted: Sequence[ScoreRequest | GenerateRequest],
    batches: BatchFolder,
) -> None:
    """Have requests answered by batches. ``ask_all`` asks the LM, and stores what it answers."""
    offline, purse, sent = Offline(), lm._server.purse, list[Mapping[str, Any]]()
    for _ in range(ROUNDS):
        with lm._offline(offline):
            ask_all(wanted)
        asked = offline.take()
        if not asked:
            break
        if purse is not None:
            bodies = [body for _, body in asked.values()]
            purse.check_batch(sum(map(lm._server.size, bodies)), sum(map(written_at_most, bodies)))
        offline.bring(batches.ask(asked), [*asked])
        sent.append(asked)
    with lm._offline(offline):
        ask_all(wanted)
    for part in sent:
        batches.done(part)
