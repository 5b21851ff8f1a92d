"""Servers that lie, drip, flood or send the caller elsewhere: the right figure or one clear line, in bounded time."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import iclkit.lm._servers._http as http
from iclkit.errors import IclkitError, ModelError, RequestError, UsageError
from iclkit.lm import GenerateRequest, Generation, ScoreRequest
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached, score_text_key
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.lm._servers._http import Client, HttpConfig, HttpError
from iclkit.lm._servers._pace import seconds_of

from .openai_server import ScriptedServer

Serve = Callable[..., ScriptedServer]
QUICK = {"backoff": 0.01, "timeout": 5.0, "retries": 1}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ICLKIT_API_KEY", raising=False)
    servers: list[ScriptedServer] = []

    def begin(script: Any) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def opened(server: ScriptedServer, **settings: Any) -> OpenAILM:
    return open_openai(f"openai:m@{server.url}", **{**QUICK, **settings})


def client(server: ScriptedServer, **settings: Any) -> Client:
    return Client(server.url, None, HttpConfig(**{**QUICK, **settings}))


def always(answer: Any) -> Callable[..., Any]:
    return lambda path, body, headers: answer() if callable(answer) else answer


# -- numbers that are no log-probabilities -----------------------------------------------------------------------------

BAD = [math.nan, -math.inf, math.inf, 3.0, -9999.0, -1e38, "-0.5", True, None, [-0.5], {"logprob": -0.5}]


def completions(answer: Callable[[list[str], Any], Any]) -> Callable[..., Any]:
    """A script of a server whose tokens are the characters of the prompt."""

    def script(path: str, body: Any, headers: Any) -> Any:
        if not path.endswith("/v1/completions"):
            return 404, {"error": {"message": "no such page"}}, {}
        choice = {"index": 0, "text": "z", "finish_reason": "length", **answer([*body["prompt"]], body)}
        return 200, {"choices": [choice]}, {}

    return script


def echo_with(value: Any, when: str = "wrong") -> Callable[..., Any]:
    def answer(tokens: list[str], body: Any) -> Any:
        if not body.get("echo"):
            return {}
        values: list[Any] = [None, *[-0.5] * len(tokens)]
        if when in body["prompt"]:
            values[len(tokens) - 1] = value
        return {"logprobs": {"tokens": [*tokens, "z"], "token_logprobs": values}}

    return completions(answer)


def prompt_logprobs_with(value: Any) -> Callable[..., Any]:
    def answer(tokens: list[str], body: Any) -> Any:
        if "prompt_logprobs" not in body:
            return {}
        told: list[Any] = [{"1": {"logprob": -0.5, "rank": 1, "decoded_token": t}} for t in tokens]
        told[0] = None
        if "wrong" in body["prompt"]:
            told[-1]["1"]["logprob"] = value
        return {"prompt_logprobs": told}

    return completions(answer)


def next_token_with(value: Any) -> Callable[..., Any]:
    def answer(tokens: list[str], body: Any) -> Any:
        if not body.get("logprobs") or body.get("echo"):
            return {}
        tops = {" Germany": -0.5, " yes": -1.5, " no": value if "wrong" in body["prompt"] else -2.0}
        return {"logprobs": {"tokens": ["z"], "token_logprobs": [-0.5], "top_logprobs": [tops]}}

    return completions(answer)


@pytest.mark.parametrize("value", BAD, ids=repr)
@pytest.mark.parametrize("script", [echo_with, prompt_logprobs_with], ids=["echo", "prompt-logprobs"])
def test_what_is_no_log_probability_is_refused_and_named_and_never_stored(serve: Serve, tmp_path, script, value):
    inner = opened(serve(script(value)))
    assert inner.scoring in ("echo", "prompt-logprobs")
    cache = Cache(tmp_path / "c.db")
    lm = cached(inner, cache)
    good = ScoreRequest("good", " yes")
    assert lm.score([good])[0].logprob == pytest.approx(-2.0)
    bad = ScoreRequest("wrong", " yes")
    with pytest.raises(ModelError, match="is not a log-probability") as caught:
        lm.score([bad])
    assert "logprob" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cache.get([score_text_key(lm.fingerprint, bad)]) == {}
    assert len(cache.get([score_text_key(lm.fingerprint, good)])) == 1


@pytest.mark.parametrize("value", [v for v in BAD if not (isinstance(v, float) and v < -5000)], ids=repr)
def test_candidates_that_are_no_log_probabilities_are_refused(serve: Serve, value):
    lm = opened(serve(next_token_with(value)))
    assert lm.scoring == "next-token"
    assert lm.score([ScoreRequest("good", " yes")])[0].logprob == -1.5
    with pytest.raises(ModelError, match="is not a log-probability"):
        lm.score([ScoreRequest("wrong", " yes")])


@pytest.mark.parametrize("value", [-9999.0, -math.inf, -1e38])
def test_a_candidate_with_a_placeholder_is_one_that_was_not_told(serve: Serve, value):
    lm = opened(serve(next_token_with(value)))
    yes, no = lm.score([ScoreRequest("wrong", " yes"), ScoreRequest("wrong", " no")])
    assert yes.logprob == -1.5
    assert math.log(1 - math.exp(-0.5) - math.exp(-1.5)) == pytest.approx(no.logprob, abs=1e-3)
    assert any("not among the 2 candidates" in note for note in lm.notes)


def test_a_model_that_gives_nan_from_the_start_does_not_open(serve: Serve):
    with pytest.raises(ModelError, match=r"token_logprobs\[\d+\] is nan, which is not a log-probability"):
        opened(serve(echo_with(math.nan, when="")))


def test_candidates_likelier_than_one_together_are_no_log_probabilities(serve: Serve):
    def answer(tokens: list[str], body: Any) -> Any:
        tops = {" Germany": 0.0, " yes": 0.0, " no": 0.0}
        return {"logprobs": {"tokens": ["z"], "top_logprobs": [tops]}} if body.get("logprobs") else {}

    with pytest.raises(ModelError, match="have a probability of 3 together"):
        opened(serve(completions(answer)))


def chat_with(tops: list[tuple[str, float]], content: str | None = None) -> Callable[..., Any]:
    def script(path: str, body: Any, headers: Any) -> Any:
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such page"}}, {}
        told = [{"token": t, "logprob": v} for t, v in tops]
        entry = {**told[0], "top_logprobs": told[: body.get("top_logprobs", 0)]}
        message = {"content": tops[0][0] if content is None else content}
        return 200, {"choices": [{"message": message, "logprobs": {"content": [entry]}, "finish_reason": "stop"}]}, {}

    return script


def test_a_label_that_was_not_told_does_not_tie_with_the_one_that_was_answered(serve: Serve):
    lm = opened(serve(chat_with([("late", -1.2)])))
    scores = lm.score([ScoreRequest("t", f" {label}") for label in ("login", "late", "track")])
    assert scores[1].logprob == -1.2
    assert scores[0].logprob == scores[2].logprob < -1.2
    assert any("not among the 1 candidates" in note for note in lm.notes)
    sure = opened(serve(chat_with([("late", 0.0)]))).score([ScoreRequest("t", " late"), ScoreRequest("t", " login")])
    assert math.isfinite(sure[1].logprob)
    assert sure[1].logprob < -9 < sure[0].logprob


def test_choices_of_which_none_was_named_are_no_answer(serve: Serve):
    lm = opened(serve(chat_with([("I", -0.1), ("It", -3.0)])))
    assert lm.generate([GenerateRequest("t", choices=(" login", " late"))]) == [Generation("", 0, "choice")]


# -- answers of another shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>busy</html>",
        b"",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b'{"choices": []}',
        b'{"choices": {"text": "x"}}',
        b'{"choices": [5]}',
        b'{"choices": [{"index": 1, "message": {"content": "x"}}]}',
        b'{"choices": [{"index": 0, "message": {"content": "x"}}, {"index": 0, "message": {"content": "y"}}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{}]}',
        b'{"error": {"message": "overloaded"}}',
        b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
        b'{"a":' * 20_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda a: a[:60].decode(errors="replace"),
)
def test_an_answer_of_another_shape_is_one_line(serve: Serve, answer):
    state = {"bad": False}

    def script(path: str, body: Any, headers: Any) -> Any:
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such page"}}, {}
        return (200, answer, {}) if state["bad"] else chat_with([("late", -0.1)])(path, {}, headers)

    lm = opened(serve(script), scoring="generate")
    state["bad"] = True
    with pytest.raises(ModelError) as caught:
        lm.generate([GenerateRequest("x", 5)])
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    with pytest.raises(ModelError):
        opened(serve(always((200, answer, {}))))


@pytest.mark.parametrize(
    "usage", [5, [], "many", {"prompt_tokens": math.nan, "total_tokens": -math.inf}, {"total_tokens": "x"}]
)
def test_nonsense_in_usage_is_not_counted_and_does_no_harm(serve: Serve, usage):
    def script(path: str, body: Any, headers: Any) -> Any:
        status, value, more = chat_with([("late", -0.1)])(path, body or {}, headers)
        return status, {**value, "usage": usage}, more

    lm = opened(serve(script))
    assert lm.generate([GenerateRequest("x", 5)])[0].text == "late"
    assert lm.usage.tokens_computed == 0


@pytest.mark.parametrize(
    "facts",
    [{"max_model_len": v} for v in (math.nan, -5, "x", [], True)]
    + [{"meta": [5]}, {"meta": {"n_ctx": "y"}}, {"id": 5}],
    ids=repr,
)
def test_nonsense_in_models_is_not_believed(serve: Serve, facts):
    def script(path: str, body: Any, headers: Any) -> Any:
        if path.endswith("/models"):
            return 200, {"data": [{"id": "m", **facts}, 5, None]}, {}
        return chat_with([("late", -0.1)])(path, body or {}, headers)

    assert opened(serve(script)).context_size == 4096


def test_half_of_a_surrogate_pair_does_no_harm(serve: Serve, tmp_path):
    script = chat_with([("la\ud83d", -0.1), ("late", -3.0)], content="la\ud83dte")
    lm = cached(opened(serve(script)), Cache(tmp_path / "c.db"))
    assert lm.generate([GenerateRequest("x \ud83d", 5)])[0].text == "la\ufffdte"
    assert lm.score([ScoreRequest("x", " late")])[0].logprob == -3.0


# -- time and size -----------------------------------------------------------------------------------------------------


def drip(start: bytes, every: float = 0.05) -> Callable[[], Iterator[bytes]]:
    def write() -> Iterator[bytes]:
        yield start
        for _ in range(2000):
            time.sleep(every)
            yield b" "

    return write


def test_answers_that_are_slow_and_then_none_are_not_waited_for_again_and_again(serve: Serve):
    def write() -> Iterator[bytes]:
        time.sleep(0.8)
        yield HEAD + b"Content-Length: 2\r\n\r\n[]"

    with pytest.raises(HttpError, match=r"not a JSON object.*3 times"):
        client(serve(always(write)), timeout=1.5, retries=9).get("/x")


@pytest.mark.parametrize(
    "start",
    [HEAD + b"Content-Length: 100000\r\n\r\n{", b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"Transfer-Encoding: chunked\r\n"],
    ids=["body", "header", "half of the headers"],
)
def test_an_answer_that_comes_drop_by_drop_is_given_up_when_the_time_is_over(serve: Serve, start):
    begun = time.monotonic()
    with pytest.raises(HttpError, match=r"did not answer within 0\.4 s, 2 times"):
        client(serve(always(drip(start))), timeout=0.4).get("/x")
    assert time.monotonic() - begun < 30


def test_interim_answers_without_end_are_given_up_too(serve: Serve):
    def write() -> Iterator[bytes]:
        for _ in range(2000):
            yield b"HTTP/1.1 103 Early Hints\r\n\r\n"
            time.sleep(0.02)

    with pytest.raises(HttpError, match=r"did not answer within 0\.4 s"):
        client(serve(always(write)), timeout=0.4).get("/x")


def test_who_asks_while_the_connections_are_closed_is_told_and_nobody_waits_for_ever(serve: Serve):
    server = serve(always(drip(HEAD + b"Content-Length: 100000\r\n\r\n{")))
    asked = client(server, timeout=60.0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asked.get, "/x")
        while not server.asked:
            time.sleep(0.01)
        asked.close()
        with pytest.raises(HttpError, match="closed while it was asked"):
            waiting.result(20)
    with pytest.raises(HttpError, match="are closed; load the LM again"):
        asked.get("/x")


def test_a_map_that_another_thread_collects_does_not_wait_there(serve: Serve):
    asked = client(serve(always(drip(HEAD + b"Content-Length: 100000\r\n\r\n{"))), timeout=60.0)
    answers = asked.map(lambda path: asked.get(path) if path == "/x" else {}, ["", "/x"])
    assert next(answers) == (0, {})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(answers.close).result(20)  # as a collector of garbage does


def endless(start: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.chain([start], itertools.repeat(piece))


def test_an_endless_body_is_not_read_to_the_end(serve: Serve, monkeypatch):
    monkeypatch.setattr(http, "_MOST_BYTES", 1 << 20)
    server = serve(always(endless(HEAD + b"\r\n", b" " * 65536)))
    with pytest.raises(HttpError, match="sent more than 1 MB as one answer"):
        client(server).get("/x")
    assert len(server.asked) == 1  # not asked for again


def test_the_endless_body_of_an_error_is_cut(serve: Serve):
    start = b"HTTP/1.1 404 Not Found\r\n\r\n"
    with pytest.raises(HttpError, match="answered 404: aaaa") as caught:
        client(serve(always(endless(start, b"a" * 65536)))).get("/x")
    assert len(str(caught.value)) < 500


def test_endless_headers_are_not_read_to_the_end(serve: Serve):
    with pytest.raises(HttpError, match="cannot be reached"):
        client(serve(always(endless(HEAD, b"X-More: " + b"a" * 5000 + b"\r\n")))).get("/x")


def test_a_small_answer_that_unpacks_to_a_huge_one_is_refused(serve: Serve):
    bomb = gzip.compress(b" " * (200 << 20))
    with pytest.raises(HttpError, match="sent more than 64 MB as one answer"):
        client(serve(always((200, bomb, {"Content-Encoding": "gzip"})))).get("/x")


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "x-own"])
def test_an_answer_packed_in_a_way_that_was_not_asked_for_is_refused(serve: Serve, coding):
    with pytest.raises(HttpError, match="was not asked for"):
        client(serve(always((200, b"{}", {"Content-Encoding": coding})))).get("/x")


def test_packed_answers_are_read(serve: Serve):
    assert client(serve(always((200, gzip.compress(b'{"a": 1}'), {"Content-Encoding": "gzip"})))).get("/x") == {"a": 1}


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"], "do not unpack"),
        ([HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n'], "cannot be reached"),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], "cannot be reached"),
        ([HEAD + b"Content-Length: 50\r\n\r\n{"], "cannot be reached"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], "cannot be reached"),
        ([b"HTTP/1.1 999 \xff\xfe\r\nContent-Length: 0\r\n\r\n"], "answered 999"),
    ],
)
def test_broken_http_is_one_line(serve: Serve, written, words):
    with pytest.raises(HttpError, match=words) as caught:
        client(serve(always(lambda: iter(written)))).get("/x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["nan", "-nan", "-5", "inf", "1e400", "9" * 400, "soon", "", "Mon, 01 Jan 99999 00:00:00 GMT", "0x10", "1_0"],
)
def test_any_retry_after_waits_no_longer_than_it_may(serve: Serve, value):
    seconds = seconds_of(value)
    assert seconds is None or seconds >= 0
    server = serve(always((429, {"error": {"message": "slow down"}}, {"Retry-After": value})))
    begun = time.monotonic()
    with pytest.raises(HttpError, match="answered 429: slow down, 3 times"):
        client(server, retries=2, longest_wait=0.05).get("/x")
    assert time.monotonic() - begun < 20


# -- redirections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_key_and_prompts_are_not_carried_to_another_place(serve: Serve, monkeypatch, status):
    monkeypatch.setenv("ICLKIT_API_KEY", "sk-secret-0123456789")
    thief = serve(always((200, {"choices": []}, {})))
    server = serve(always((status, b"", {"Location": f"{thief.url}/x?key=sk-secret-0123456789"})))
    with pytest.raises(HttpError, match="sends requests on to") as caught:
        opened(server)
    assert thief.asked == []
    assert thief.url in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_redirection_to_itself_ends(serve: Serve):
    def script(path: str, body: Any, headers: Any) -> Any:
        return 307, b"", {"Location": path}

    server = serve(script)
    with pytest.raises(IclkitError, match="sends requests on to"):
        opened(server)
    assert len(server.asked) <= 2


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: math.nan} for name in ("timeout", "requests_per_minute")),
        *({name: math.inf} for name in ("timeout", "backoff", "longest_wait")),
        *({"concurrency": value} for value in (True, 2.5, "3")),
        {"retries": "3"},
        {"answer_tokens": 2.5},
        {"context": "big"},
    ],
    ids=repr,
)
def test_settings_that_are_no_such_number_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        open_openai("openai:m@http://127.0.0.1:9", **wrong)


def test_an_answer_that_is_refused_in_log_probabilities_costs_its_row(serve: Serve):
    def script(path: str, body: Any, headers: Any) -> Any:
        status, value, more = chat_with([("late", -0.1)])(path, body, headers)
        if status == 200 and "wrong" in json.dumps(body):
            value["choices"][0] = {"message": {"content": None, "refusal": "no"}, "logprobs": None}
        return status, value, more

    lm = opened(serve(script))
    with pytest.raises(RequestError, match="declined to answer") as caught:
        lm.score([ScoreRequest("good", " late"), ScoreRequest("wrong", " late")])
    assert caught.value.index == 1
