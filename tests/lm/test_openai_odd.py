"""Servers and gateways with habits of their own: the right figure, or one clear line, and never an answer made up."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from iclkit.errors import ModelError
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._each import ask_each
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.lm._servers._parse import speller

from .openai_server import ToyServer, truth

Start = Callable[..., Any]
Answer = dict[str, Any]
CONTEXT, LABELS = "Good fun.\nLabel:", (" positive", " posh", " po", " negative")
IDS = ("completions", "logprobs", "logprob_ids", "lists", "tokenize", "models")
ECHO = ("completions", "echo", "logprobs", "models")
CHAT = ("chat", "chat_logprobs", "models")


def changed(toy: ToyServer, change: Callable[[int, Answer], Any]) -> Callable[..., Any]:
    """A script that answers as a toy server does, but for what ``change`` makes of (status, answer)."""

    def script(path: str, body: Any, headers: Any) -> Any:
        status, answer = toy.answer(path, body)
        return change(status, json.loads(json.dumps(answer)))

    return script


def opened(server: Any, **settings: Any) -> OpenAILM:
    return open_openai(f"openai:toy@{server.url}", **{"backoff": 0.01, "timeout": 3.0, "retries": 3, **settings})


def figures(lm: OpenAILM) -> list[float]:
    return [s.logprob for s in lm.score([ScoreRequest(CONTEXT, label) for label in LABELS])]


def packed(status: int, answer: Answer) -> Any:
    return status, gzip.compress(json.dumps(answer).encode()), {"Content-Encoding": "gzip"}


def marked(status: int, answer: Answer) -> Any:
    return status, b"\xef\xbb\xbf" + json.dumps(answer).encode(), {"Content-Type": "text/html; charset=latin-1"}


def old_http(status: int, answer: Answer) -> Any:
    return iter([b"HTTP/1.0 %d OK\r\n\r\n" % status, json.dumps(answer).encode()])


def in_chunks(status: int, answer: Answer) -> Any:
    data = json.dumps(answer).encode()
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 %d OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return iter([head % status, b"%x\r\n" % 9, data[:9], b"\r\n%x\r\n" % (len(data) - 9), data[9:], b"\r\n0\r\n\r\n"])


def unnumbered(status: int, answer: Answer) -> Any:
    for choice in answer.get("choices", []):
        choice.pop("index", None)
    return status, answer, {}


def numbered_alike(status: int, answer: Answer) -> Any:
    for choice in answer.get("choices", []):
        choice["index"] = 0
    return status, answer, {}


def swapped(status: int, answer: Answer) -> Any:
    for choice in answer.get("choices", []):
        choice["index"] = len(answer["choices"]) - 1 - choice.get("index", 0)
    return status, answer, {}


def without_usage(status: int, answer: Answer) -> Any:
    return status, {**answer, "usage": None, "model": "another-name", "error": None}, {"Connection": "close"}


@pytest.mark.parametrize(
    "change", [packed, marked, old_http, in_chunks, unnumbered, numbered_alike, swapped, without_usage]
)
def test_the_right_figures_come_out_of_any_packing(start: Start, change):
    lm = opened(start(changed(start(*IDS), change)))
    assert lm.scoring == "token-ids"
    assert figures(lm) == pytest.approx([truth(CONTEXT, label)[0] for label in LABELS])


def now_and_then(trouble: Any) -> Callable[[int, Answer], Any]:
    """Every third answer to a question is this one."""
    count = itertools.count(1)

    def change(status: int, answer: Answer) -> Any:
        return trouble if "choices" in answer and next(count) % 3 == 0 else (status, answer, {})

    return change


BROKEN_OFF = {"choices": [{"index": 0, "text": "", "finish_reason": "error", "error": {"code": 502, "message": "bad"}}]}


@pytest.mark.parametrize(
    "trouble",
    [
        *((status, {"error": {"message": "later"}}, {}) for status in (425, 500, 504, 520, 524)),
        (200, {"error": {"message": "Provider overloaded", "code": 503}}, {}),
        (200, {"error": "the engine is temporarily unavailable"}, {}),
        (200, BROKEN_OFF, {}),
        (429, {"error": {"message": "slow down"}}, {"retry-after-ms": "5", "x-ratelimit-remaining-requests": "0",
                                                    "x-ratelimit-reset-requests": "5ms"}),
    ],
)  # fmt: skip
def test_trouble_that_passes_is_waited_for_in_whatever_form_it_comes(start: Start, trouble):
    lm = opened(start(changed(start(*ECHO), now_and_then(trouble))))
    assert lm.scoring == "echo"  # and no worse way, for an error that came as an answer
    assert figures(lm) == pytest.approx([truth(CONTEXT, label)[0] for label in LABELS])
    (answer,) = lm.generate([GenerateRequest(CONTEXT, 3)])
    assert answer.text


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ((200, b'data: {"choices": []}\n\ndata: [DONE]\n', {}), "a stream of events, which was not asked for"),
        ((200, gzip.compress(b"{}" * 200), {}), "bytes that are no text"),
        ((200, b'{"choices": []}\n{"choices": []}\n', {}), "not a JSON object|takes neither"),
        ((200, {"error": {"message": "model is loading", "code": 400}}, {}), "model is loading"),
        ((200, BROKEN_OFF, {}), r"answered with an error \(sent as 200\): bad"),
        ((202, {"id": "job-1", "status": "queued"}, {}), "no choices"),
        ((204, b"", {}), "not a JSON object"),
        ((301, b"", {"Location": "https://elsewhere.example/v1"}), "sends requests on to https://elsewhere.example/v1"),
        ((451, {"detail": "not in your country"}, {}), "not in your country"),
        ((421, {"error": "misdirected"}, {}), "misdirected"),
    ],
)  # fmt: skip
def test_what_stays_is_one_clear_line(start: Start, trouble, words):
    server = start(lambda path, body, headers: (404, {}, {}) if body is None else trouble)
    with pytest.raises(ModelError, match=words) as caught:
        opened(server, retries=1)
    assert "\n" not in str(caught.value)


def test_an_answer_that_breaks_off_is_no_answer(start: Start):
    half = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200\r\n{"choices": [{"text": "a'
    with pytest.raises(ModelError, match="cannot be reached"):
        opened(start(lambda path, body, headers: iter([half])), retries=1)


@pytest.mark.parametrize("offers", [ECHO, CHAT])
@pytest.mark.parametrize(
    "odd",
    [{"index": 0, "finish_reason": "content_filter"}, {"index": 0, "text": 5, "message": {"content": 5}},
     {"index": 0, "text": {}, "message": None, "logprobs": 3}],
)  # fmt: skip
def test_an_odd_answer_to_one_prompt_costs_that_prompt_alone(start: Start, offers, odd):
    toy = start(*offers)

    def script(path: str, body: Any, headers: Any) -> Any:
        if "Tea" in json.dumps(body):
            return 200, {"choices": [odd]}, {}
        return (*toy.answer(path, body), {})

    lm = opened(start(script))
    requests = [ScoreRequest(c, LABELS[0]) for c in (CONTEXT, "Tea:", "Cup:")]
    answered, failed = ask_each(lm.score, requests)
    assert (sorted(answered), sorted(failed)) == ([0, 2], [1])
    written = ask_each(lm.generate, [GenerateRequest(r.context, 3) for r in requests])[0]
    assert {0, 2} <= {*written}
    assert written[1].finish == "refused" if 1 in written else odd.get("finish_reason") != "content_filter"


def test_a_way_whose_answers_cannot_be_read_is_not_used(start: Start):
    def listed(status: int, answer: Answer) -> Any:
        for choice in answer.get("choices", []):
            logprobs = choice.get("logprobs") or {}
            logprobs["top_logprobs"] = [[*(top or {}).items()] for top in logprobs.get("top_logprobs", [])]
        return status, answer, {}

    assert opened(start(changed(start(*ECHO), listed))).scoring == "generate"


def test_tokens_are_read_as_vocabularies_write_them(start: Start):
    def raw(status: int, answer: Answer) -> Any:
        text = json.dumps(answer)
        return status, (text.replace('" ', '"Ġ') if "logprobs" in text else text).encode(), {}

    lm = opened(start(changed(start(*ECHO), raw)))
    assert lm.scoring == "echo"
    assert figures(lm) == pytest.approx([truth(CONTEXT, label)[0] for label in LABELS])
    assert speller(["Ġcaf", "Ã©"])("Ã©").decode() == "é"
    assert [speller(["▁a"])(t) for t in ("▁a", "<0x0A>", "b")] == [b" a", b"\n", b"b"]
