"""A chat API behind the proxy, asked with the OpenAI SDK: it gets the demonstrations, the application its answers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from iclkit.errors import UsageError
from iclkit.selectors import Chooser
from iclkit.serve import ServeSettings, make_app

from .conftest import on_a_socket

openai = pytest.importorskip("openai", reason="the OpenAI SDK is not installed")
SHOWN = "x-iclkit-demonstrations"


class Behind:
    """A stand-in for a chat API that remembers what it was asked, and answers with the roles of the messages."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.room = 0  # messages that it reads, 0 for any number
        self.refusal: Any = {"error": {"code": 400, "message": "too large", "type": "exceed_context_size_error"}}

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/embeddings", self.echo, methods=["POST"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        body = await request.body()
        self.headers.append(dict(request.headers))
        try:
            data = json.loads(body)
        except ValueError:
            return JSONResponse({"error": {"message": "no JSON", "type": "bad"}}, status_code=400)
        self.asked.append(data)
        if self.room and len(data["messages"]) > self.room:
            return JSONResponse(self.refusal, status_code=400)
        text = " ".join(m["role"] for m in data["messages"])
        about = {"id": "c1", "created": 1, "model": data["model"]}
        if not data.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse({**about, "object": "chat.completion", "choices": [choice]})

        async def parts() -> AsyncIterator[str]:
            for word in text.split():
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {**about, "object": "chat.completion.chunk", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": "m", "object": "model"}], "query": str(request.query_params)}
        )

    async def echo(self, request: Request) -> Response:
        return Response(await request.body(), media_type="application/json")


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def proxy(chooser: Chooser, behind: Behind) -> Iterator[str]:
    with (
        on_a_socket(behind.app) as base,
        on_a_socket(make_app(chooser, ServeSettings(proxy=f"{base}/v1", max_body=20_000))) as address,
    ):
        yield f"{address}/v1"


def client(base: str) -> Any:
    return openai.OpenAI(base_url=base, api_key="sk-users-own", max_retries=0)


ASK = {
    "model": "m",
    "messages": [{"role": "system", "content": "Name the team."}, {"role": "user", "content": "my parcel"}],
}


def test_demonstrations_are_inserted_and_named(proxy: str, behind: Behind, chooser: Chooser, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "iclkit.serve")
    answer = client(proxy).chat.completions.with_raw_response.create(**ASK, temperature=0, seed=3)
    assert answer.parse().choices[0].message.content == "system user assistant user assistant user"
    (asked,) = behind.asked
    expected = [*reversed(chooser.select("my parcel").examples)]
    turns = [
        t for e in expected for t in ({"role": "user", "content": e.input}, {"role": "assistant", "content": e.output})
    ]
    assert asked["messages"] == [ASK["messages"][0], *turns, ASK["messages"][1]]
    assert (asked["temperature"], asked["seed"]) == (0, 3)
    assert answer.headers[SHOWN] == ",".join(e.id for e in expected)
    assert f"shown {answer.headers[SHOWN]}" in caplog.text
    assert "my parcel is late" not in caplog.text
    assert behind.headers[0]["authorization"] == "Bearer sk-users-own"
    assert not [name for name in behind.headers[0] if name.startswith("x-iclkit")]


def test_answers_are_streamed(proxy: str, behind: Behind) -> None:
    chunks = [c.choices[0].delta.content for c in client(proxy).chat.completions.create(**ASK, stream=True)]
    assert chunks == ["system", "user", "assistant", "user", "assistant", "user"]
    assert behind.asked[0]["stream"] is True


def test_number_and_filter_are_headers_of_a_request(proxy: str, behind: Behind) -> None:
    headers = {"X-ICLKIT-K": "5", "X-ICLKIT-Where": "tenant=globex"}
    client(proxy).chat.completions.create(**ASK, extra_headers=headers)
    outputs = [m["content"] for m in behind.asked[0]["messages"] if m["role"] == "assistant"]
    assert sorted(outputs) == ["billing", "shipping"]
    for wrong in ({"X-ICLKIT-K": "many"}, {"X-ICLKIT-Where": "tenant"}):
        with pytest.raises(openai.BadRequestError, match="the header X-ICLKIT-"):
            client(proxy).chat.completions.create(**ASK, extra_headers=wrong)
    assert len(behind.asked) == 1


def test_a_conversation_keeps_its_turns_and_the_last_question_chooses(proxy: str, behind: Behind) -> None:
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [{"type": "text", "text": "I forgot my password"}]},
    ]
    client(proxy).chat.completions.create(model="m", messages=turns, extra_headers={"X-ICLKIT-K": "1"})
    asked = behind.asked[0]["messages"]
    assert asked[:2] == [
        {"role": "user", "content": "I forgot my password"},
        {"role": "assistant", "content": "account"},
    ]
    assert asked[2:] == turns


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it",
                   "type": "exceed_context_size_error", "n_prompt_tokens": 81, "n_ctx": 80}},
        {"error": {"message": "This model's maximum context length is 8192 tokens. However, your messages resulted in "
                   "8200 tokens.", "type": "invalid_request_error", "code": "context_length_exceeded"}},
        {"object": "error", "message": "The prompt is too long", "type": "BadRequestError", "code": 400},
    ],
)  # fmt: skip
def test_what_the_model_cannot_read_is_dropped_whole_the_worst_first(
    proxy: str, behind: Behind, chooser: Chooser, caplog: Any, refusal: Any
) -> None:
    behind.room, behind.refusal = 4, refusal  # two of the client's, and one demonstration
    best, worst = chooser.select("my parcel").ids
    with caplog.at_level("INFO", logger="iclkit.serve"):
        answer = client(proxy).chat.completions.with_raw_response.create(**ASK)
    assert answer.parse().choices[0].message.content == "system user assistant user"
    assert answer.headers[SHOWN] == best
    assert answer.headers["x-iclkit-dropped"] == worst
    assert f"shown {best} dropped {worst}" in caplog.text
    assert [len(asked["messages"]) for asked in behind.asked] == [6, 4]


def test_a_question_that_is_too_long_by_itself_is_refused_by_the_server_behind(proxy: str, behind: Behind) -> None:
    behind.room = 1
    with pytest.raises(openai.BadRequestError, match="too large") as refused:
        client(proxy).chat.completions.create(**ASK)
    assert refused.value.response.headers[SHOWN] == ""
    assert len(refused.value.response.headers["x-iclkit-dropped"].split(",")) == 2
    assert behind.asked[-1]["messages"] == ASK["messages"]


def test_another_refusal_is_passed_on_at_once(proxy: str, behind: Behind) -> None:
    behind.room, behind.refusal = 1, {"error": {"message": "no such model", "type": "invalid_request_error"}}
    with pytest.raises(openai.BadRequestError, match="no such model"):
        client(proxy).chat.completions.create(**ASK)
    assert len(behind.asked) == 1


def test_everything_else_is_passed_on_as_it_is(proxy: str, behind: Behind) -> None:
    assert [m.id for m in client(proxy).models.list()] == ["m"]
    assert httpx.get(f"{proxy}/models?limit=3").json()["query"] == "limit=3"
    odd = b'{"input": "caf\xc3\xa9",  "x": 1}'
    assert httpx.post(f"{proxy}/embeddings", content=odd).content == odd
    assert httpx.post(f"{proxy}/chat/completions", content=b"{").json()["error"]["message"] == "no JSON"
    without = {"model": "m", "messages": [{"role": "system", "content": "Go."}]}
    answer = httpx.post(f"{proxy}/chat/completions", json=without)
    assert behind.asked == [without]
    assert answer.headers[SHOWN] == ""
    assert httpx.get(f"{proxy}/nothing").status_code == 404


def test_what_cannot_be_passed_on_is_one_line(chooser: Chooser, proxy: str) -> None:
    assert httpx.post(f"{proxy}/chat/completions", content=b"x" * 30_000).status_code == 413
    with on_a_socket(make_app(chooser, ServeSettings(proxy="http://127.0.0.1:9/v1"))) as address:
        with pytest.raises(openai.InternalServerError, match="does not answer") as refused:
            client(f"{address}/v1").chat.completions.create(**ASK)
        assert refused.value.status_code == 502
    with pytest.raises(UsageError, match="--proxy is the base URL of a chat API"):
        make_app(chooser, ServeSettings(proxy="localhost:8080"))


def test_a_key_of_the_proxy_is_not_passed_on(chooser: Chooser, behind: Behind) -> None:
    with (
        on_a_socket(behind.app) as base,
        on_a_socket(make_app(chooser, ServeSettings(key="door-key", proxy=f"{base}/v1"))) as address,
    ):
        with pytest.raises(openai.AuthenticationError, match="X-API-Key"):
            client(f"{address}/v1").chat.completions.create(**ASK)
        client(f"{address}/v1").chat.completions.create(**ASK, extra_headers={"X-API-Key": "door-key"})
    assert "door-key" not in str(behind.headers)


REAL = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 256, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(120)
"""


@pytest.mark.models
def test_a_real_llama_server_answers_through_the_proxy_streamed_and_whole(
    chooser: Chooser, smollm2_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from ..gguf_files import convert_to_gguf

    weights = convert_to_gguf(smollm2_path, tmp_path / "smollm2.gguf")
    started = subprocess.Popen([sys.executable, "-c", REAL, str(weights)], stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        base = next(line.strip() for line in started.stdout if line.startswith("http"))
        with on_a_socket(make_app(chooser, ServeSettings(proxy=f"{base}/v1"))) as address:
            given = {**ASK, "temperature": 0, "max_tokens": 8}
            ask = client(f"{address}/v1").chat.completions
            whole = ask.with_raw_response.create(**given)
            assert len(whole.headers[SHOWN].split(",")) == 2
            text = whole.parse().choices[0].message.content
            parts = [c.choices[0].delta.content or "" for c in ask.create(**given, stream=True) if c.choices]
            assert text
            assert "".join(parts) == text
            assert len(parts) > 1
            plain = client(f"{base}/v1").chat.completions.create(**given)
            assert whole.parse().usage.prompt_tokens > plain.usage.prompt_tokens
            long = {**given, "messages": [{"role": "user", "content": "my parcel" + " parcel" * 170}]}
            used = client(f"{base}/v1").chat.completions.create(**long).usage.prompt_tokens
            long["messages"][0]["content"] += " parcel" * (240 - used)  # no room for two demonstrations
            trimmed = ask.with_raw_response.create(**long)
            assert trimmed.headers["x-iclkit-dropped"]
            assert 240 <= trimmed.parse().usage.prompt_tokens <= 256
    finally:
        started.kill()
        started.wait()
