"""Finding out what a model of a server can do, with a few requests whose effects are looked at."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from iclkit.errors import ModelError, UsageError
from iclkit.lm._servers._adapt import STOPS, THOUGHTS
from iclkit.lm._servers._by_answer import CompareWay, DecisionsWay, FirstTokenWay, ForcedWay
from iclkit.lm._servers._by_token import (
    EchoWay,
    NativeWay,
    NextTokenWay,
    PromptLogprobsWay,
    ScoreWay,
    TokenIdsWay,
    TrieWay,
)
from iclkit.lm._servers._capabilities import AGREES, Capabilities
from iclkit.lm._servers._codec import ServerTokenizer, load_tokenizer
from iclkit.lm._servers._config import SCORINGS
from iclkit.lm._servers._http import HttpError, RequestRejected, said
from iclkit.lm._servers._model import (
    AUTH_STATUSES,
    PROBE,
    UNSUPPORTED_STATUSES,
    Misshapen,
    ServedModel,
    Unanswered,
    cached_tokens,
    is_elsewhere,
    is_no,
    usage_of,
)
from iclkit.lm._servers._parse import NotSupported, count_of, read_reply
from iclkit.lm._servers._way import Way
from iclkit.lm._tokens import PromptTokenizer

_WAYS: Mapping[str, type[Way]] = {
    way.name: way
    for way in (
        TokenIdsWay,
        NativeWay,
        ScoreWay,
        EchoWay,
        PromptLogprobsWay,
        NextTokenWay,
        FirstTokenWay,
        DecisionsWay,
        ForcedWay,
        CompareWay,
    )
}
_FOR_LONG = (PromptLogprobsWay, EchoWay)
"""Ways that may read a long continuation for less than token after token."""
_PROBE_TOKENS = 512


def facts_of(server: ServedModel) -> tuple[Mapping[str, Any], list[str]]:
    """What /models says about the model, and the names of all models; ({}, []) where that is not offered."""
    try:
        listed = server.client.get("/models").get("data")
    except HttpError as error:
        if not is_no(error) or error.status in AUTH_STATUSES:
            raise
        listed = None
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    served = [said(str(e.get("id"))) for e in entries]
    named = [e for e in entries if e.get("id") == server.name]
    return (named[0] if named else entries[0] if len(entries) == 1 else {}), served


def probe(server: ServedModel, facts: Mapping[str, Any], served: Sequence[str]) -> Way:
    """Find out everything; ``server.can`` holds it afterwards. The way of scoring that is used."""
    config = server.config
    server.found(endpoint=_endpoint(server, served) if config.endpoint == "auto" else config.endpoint)
    context, source = _context(server, facts)
    server.found(context=context, context_from=source, kind=said(str(facts.get("owned_by") or "")))
    server.context_size = config.context or context or ASSUMED_CONTEXT
    if server.chats:
        _find_thoughts(server)
    server.codec = _find_codec(server)
    server.found(token_ids=server.codec is not None and not server.chats)
    way = _find_way(server)
    if way.name == CompareWay.name and config.endpoint == config.scoring == "auto" and not server.chats:
        way = _as_chat(server) or way  # Ollama, LM Studio: what completions lack, chats may have
    if isinstance(way, TrieWay) and not isinstance(way, NativeWay):
        _find_whole(server, way)
    server.found(scoring=way.name, slots=_slots(server) if way.name == NextTokenWay.name else 0)
    _check_itself(server, way)
    server.found(found=datetime.now(UTC).isoformat(timespec="seconds"))
    return way


def restored(server: ServedModel) -> Way:
    """The way of scoring of a server whose ``can`` is known."""
    can = server.can
    server.learn(can.changes)
    server.context_size = server.config.context or can.context or server.known_context or ASSUMED_CONTEXT
    if server.config.tokenizer:
        server.codec = PromptTokenizer(load_tokenizer(server.config.tokenizer))
    elif can.token_ids:
        server.codec = PromptTokenizer(ServerTokenizer(server.client, server.root, server.name))
    way = _WAYS[can.scoring](server)
    if isinstance(way, TrieWay) and can.long_scoring:
        way.whole = _WAYS[can.long_scoring](server)
    return way


ASSUMED_CONTEXT = 4096


def _context(server: ServedModel, facts: Mapping[str, Any]) -> tuple[int, str]:
    """How many tokens the model reads as the server has it loaded, and who says so; (0, "") where nobody does."""
    meta = facts.get("meta")
    if limit := count_of(facts.get("max_model_len")):
        return limit, "/models"
    if limit := count_of(meta.get("n_ctx") if isinstance(meta, dict) else None):
        return limit, "/models"
    for field in ("context_length", "context_window", "max_context_length"):  # OpenRouter, Groq, Mistral
        if limit := count_of(facts.get(field)):
            return limit, "/models"
    for path, find in (("/props", _llama_cpp), ("/api/ps", _ollama), ("/api/v0/models", _lm_studio)):
        try:
            answer = server.client.get(path, root=server.root)
        except HttpError as error:
            if not is_no(error):
                raise
            continue
        if limit := count_of(find(answer, server.name)):
            return limit, path
    return (server.known_context, "the price file") if server.known_context else (0, "")


def _slots(server: ServedModel) -> int:
    """How many prompts llama.cpp keeps the state of; 0 for others."""
    try:
        return count_of(server.client.get("/props", root=server.root).get("total_slots")) or 0
    except HttpError as error:
        if not is_no(error):
            raise
        return 0


def _llama_cpp(answer: Mapping[str, Any], _: str) -> Any:
    settings = answer.get("default_generation_settings")
    return settings.get("n_ctx") if isinstance(settings, dict) else None


def _ollama(answer: Mapping[str, Any], name: str) -> Any:
    return _entry(answer.get("models"), "name", (name, f"{name}:latest")).get("context_length")


def _lm_studio(answer: Mapping[str, Any], name: str) -> Any:
    return _entry(answer.get("data"), "id", (name,)).get("loaded_context_length")


def _entry(listed: Any, field: str, names: Sequence[str]) -> Mapping[str, Any]:
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    return next((e for e in entries if e.get(field) in names), {})


def _endpoint(server: ServedModel, served: Sequence[str]) -> str:
    try:
        answer = server.complete("Hi", max_tokens=1)
        with server.expected_shape():
            read_reply(answer)
    except HttpError as error:
        if not is_no(error) or error.status in AUTH_STATUSES or is_elsewhere(error):
            raise
        try:
            answer = server.chat("Hi", max_tokens=1)
            with server.expected_shape():
                read_reply(answer)
        except RequestRejected as second:
            names = f"; it serves: {', '.join(served[:8])}" if served else ""
            raise ModelError(
                f"{server} takes neither a completion ({error.reason}) nor a chat ({second.reason}) with model "
                f"{server.name!r}{names}"
            ) from second
        return "chat"
    return "completions"


def _find_thoughts(server: ServedModel) -> None:
    """Find out whether the model thinks first: a first answer could be cut among its thoughts and look like one."""
    try:
        reply = server.chat_reply("Answer with the one word OK.", {"max_tokens": _PROBE_TOKENS})[1]
    except HttpError:  # too slow, or too long for it: then its answers will show it
        return
    server.found(within_thought=reply.unopened)
    if reply.thought:
        server.learn((STOPS, THOUGHTS))


def _find_codec(server: ServedModel) -> PromptTokenizer | None:
    """The model's tokenizer: the one given, else the server's own; None where there is none to be had."""
    named = server.config.tokenizer
    if named:
        codec = PromptTokenizer(load_tokenizer(named))
    elif server.chats:
        return None  # what a chat becomes is the server's affair
    else:
        try:
            codec = PromptTokenizer(ServerTokenizer(server.client, server.root, server.name))
        except (HttpError, NotSupported) as error:
            if isinstance(error, HttpError) and not is_no(error):
                raise
            return None
    if server.chats:
        return codec  # for counting only
    ids = codec.encode([PROBE])[0]
    for prompt in (PROBE, ids):
        answer = server.complete(prompt, max_tokens=1)
        server.found(cached_tokens=cached_tokens(answer) is not None)
        counted = usage_of(answer, "prompt_tokens")
        if counted is None or counted == len(ids):
            continue
        if named:
            raise UsageError(
                f"tokenizer {named} makes {len(ids)} tokens of a text that {server} counts as {counted}: it is not "
                "that model's tokenizer"
            )
        return None
    return codec


def _find_way(server: ServedModel) -> Way:
    wanted, why = server.config.scoring, ""
    for scoring in SCORINGS if wanted == "auto" else (wanted,):
        way = _WAYS[scoring](server)
        try:
            way.probe()
            return way
        except HttpError as error:
            if error.status not in UNSUPPORTED_STATUSES:  # away or busy says nothing about what it offers
                raise
            why = f": {error.reason}"
        except (NotSupported, Unanswered, Misshapen) as error:
            why = f": {error}"
    raise ModelError(f"{server} does not offer the scoring {wanted!r} that was asked for{why}")


def _as_chat(server: ServedModel) -> Way | None:
    """A better way as a chat than generating; None where there is none."""
    before = server.can
    try:
        server.chat("Hi", max_tokens=1)
        server.found(endpoint="chat", token_ids=False)
        _find_thoughts(server)
        way = _find_way(server)
        if way.name != CompareWay.name:
            server.codec = _find_codec(server)
            return way
    except HttpError as error:
        if not is_no(error):
            raise
    except (NotSupported, Misshapen):
        pass
    server.can = before
    return None


def _find_whole(server: ServedModel, way: TrieWay) -> None:
    """The way for long continuations: of those that read a text whole the first that works."""
    for kind in _FOR_LONG:
        whole = kind(server)
        try:
            whole.probe()
        except (NotSupported, Unanswered, Misshapen):
            continue
        except HttpError as error:
            if error.status not in UNSUPPORTED_STATUSES:
                raise
            continue
        way.whole = whole
        server.found(long_scoring=whole.name)
        return


def _check_itself(server: ServedModel, way: Way) -> None:
    """Ask the same twice, first of a text that no cache can know: servers have answered with figures of other texts."""
    figure = way.check()
    if figure is None:
        return
    unseen = f"{uuid.uuid4()}\n\n{PROBE}"
    cold, warm = (way.check(unseen) for _ in range(2))
    assert cold is not None
    assert warm is not None
    server.found(check=figure, deviation=abs(cold - warm))


def still_so(server: ServedModel, way: Way) -> bool:
    """Whether a server answers as when its capabilities were found. HttpError where it does not answer at all."""
    known = server.can
    try:
        figure = way.check()
        if figure is None:
            way.ask()
    except (NotSupported, Unanswered, Misshapen):
        return False
    except HttpError as error:
        if not is_no(error):
            raise
        return False
    if figure is None or known.check is None or abs(figure - known.check) <= AGREES:
        return True
    server.note(
        f"{server} gives other log-probabilities for {server.name!r} than on {known.found[:10]}: if the model has "
        "changed, set revision=TEXT so that answers of then are not mixed in"
    )
    return False


def forget(server: ServedModel) -> None:
    """Nothing is known any more."""
    server.can = Capabilities()
    server.codec = None
