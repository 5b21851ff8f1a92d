"""One prompt that a server refuses costs its request; trouble with key, model or parameters ends the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iclkit.errors import ModelError, RequestError
from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.lm._servers._http import RequestRejected

from .openai_server import ScriptedServer

Serve = Callable[..., ScriptedServer]
QUICK = {"backoff": 0.01, "timeout": 5.0, "retries": 1}


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


def chat(text: Any, **choice: Any) -> tuple[int, Any, dict[str, str]]:
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}, {}


def refusal(status: int, message: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    return status, {"error": {"message": message, **more}}, {}


def chats(answer: Callable[[str, Any], Any]) -> Callable[..., Any]:
    """A script of a server that offers chats without log-probabilities."""

    def script(path: str, body: Any, headers: Any) -> Any:
        if not path.endswith("/chat/completions"):
            return refusal(404, "no such page")
        return answer(body["messages"][-1]["content"], body)

    return script


def picky(bad: Callable[[str], Any]) -> Callable[..., Any]:
    return chats(lambda text, body: bad(text) or chat("yes"))


@pytest.mark.parametrize(
    "no",
    [
        refusal(400, "The response was filtered", code="content_filter"),
        refusal(400, "This model's maximum context length is 10 tokens", code="context_length_exceeded"),
        refusal(413, "Payload Too Large"),
        refusal(422, "Input should be shorter"),
        refusal(403, "input was flagged by moderation"),
        refusal(400, "Etwas ist nicht in Ordnung"),
        refusal(500, "input length exceeds the context"),
        (200, {"choices": []}, {}),
        (200, b"<html>blocked</html>", {}),
    ],
    ids=lambda no: f"{no[0]}-{str(no[1])[:40]}",
)
def test_a_prompt_that_is_refused_costs_its_request_after_all_others_are_answered(serve: Serve, no):
    lm = opened(serve(picky(lambda text: no if "bad" in text else None)), concurrency=2)
    asks = [GenerateRequest(t, 5) for t in ("a", "bad 1", "b", "bad 2", "c", "a")]
    seen: dict[int, Any] = {}
    with pytest.raises(RequestError) as caught:
        lm.generate(asks, lambda done: seen.update(done))
    assert caught.value.index == 1
    assert sorted(seen) == [0, 2, 4, 5]
    assert "\n" not in str(caught.value)


def test_who_leaves_the_refused_out_is_told_of_the_next_without_asking_the_server_again(serve: Serve, tmp_path):
    server = serve(picky(lambda text: refusal(400, "filtered") if "bad" in text else None))
    lm = cached(opened(server), Cache(tmp_path / "c.db"))
    asks = [GenerateRequest(t, 5) for t in ("a", "bad 1", "b", "bad 2")]
    todo, failed = [*asks], []
    before = len(server.asked)
    while True:
        try:
            lm.generate(todo)
            break
        except RequestError as error:
            failed.append(todo.pop(error.index).context)
    assert failed == ["bad 1", "bad 2"]
    asked = [body["messages"][0]["content"] for _, body, _ in server.asked[before:]]
    assert sorted(t for t in asked if "Berlin" not in t) == ["a", "b", "bad 1", "bad 2"]
    # reported once: asked again, the server is asked again
    with pytest.raises(RequestError):
        lm.generate([asks[1]])
    assert sum("bad 1" in body["messages"][0]["content"] for _, body, _ in server.asked[before:]) == 2


def test_a_refused_prompt_takes_all_its_labels_with_it(serve: Serve):
    lm = opened(serve(picky(lambda text: refusal(400, "filtered") if "bad" in text else None)))
    asks = [ScoreRequest(t, label) for t in ("a", "bad", "b") for label in (" yes", " no")]
    seen: dict[int, Any] = {}
    with pytest.raises(RequestError) as caught:
        lm.score(asks, lambda done: seen.update(done))
    assert (caught.value.index, sorted(seen)) == (2, [0, 1, 4, 5])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "invalid key"),
        (403, "no access"),
        (404, "model not found"),
        (402, "no credit"),
        (400, "model is unloaded"),
    ],
)
def test_trouble_that_every_prompt_meets_ends_the_run_with_one_line(serve: Serve, status, words):
    state = {"on": False}
    server = serve(picky(lambda text: refusal(status, words) if state["on"] else None))
    lm = opened(server, concurrency=1)
    lm.generate([GenerateRequest("a", 5)])
    state["on"] = True
    # the first refusal may be its prompt's fault where such a request was answered just before; the second is not
    with pytest.raises(RequestRejected, match=words) as caught:
        lm.generate([GenerateRequest(f"t{n}", 5) for n in range(20)])
    assert not isinstance(caught.value, RequestError)
    assert sum("t" in str(body) for _, body, _ in server.asked) < 20


def test_a_parameter_that_no_prompt_may_have_ends_the_run(serve: Serve):
    def answer(text: str, body: Any) -> Any:
        return refusal(400, "max_tokens is too large: 9000") if body["max_tokens"] > 4096 else chat("yes")

    lm = opened(serve(chats(answer)))
    with pytest.raises(RequestRejected, match="max_tokens is too large"):
        lm.generate([GenerateRequest(f"t{n}", 9000) for n in range(3)])


def test_a_budget_that_is_used_up_is_not_waited_for(serve: Serve):
    state = {"on": False}
    server = serve(picky(lambda text: refusal(429, "pay", code="insufficient_quota") if state["on"] else None))
    lm = opened(server, retries=6)
    state["on"] = True
    before = len(server.asked)
    with pytest.raises(ModelError, match="answered 429: pay"):
        lm.generate([GenerateRequest("a", 5)])
    assert len(server.asked) == before + 1


def test_a_text_that_the_server_cannot_spell_costs_its_request_alone(serve: Serve):
    def script(path: str, body: Any, headers: Any) -> Any:
        if not path.endswith("/v1/completions"):
            return refusal(404, "no such page")
        tokens = [*body["prompt"]] if "odd" not in body["prompt"] else ["?"] * len(body["prompt"])
        told = {"tokens": [*tokens, "x"], "token_logprobs": [None, *[-0.5] * len(tokens)]}
        return 200, {"choices": [{"index": 0, "text": "", "logprobs": told}]}, {}

    lm = opened(serve(script))
    assert lm.scoring == "echo"
    with pytest.raises(RequestError, match="do not spell the prompt") as caught:
        lm.score([ScoreRequest("fine", " x"), ScoreRequest("odd", " x")])
    assert caught.value.index == 1
