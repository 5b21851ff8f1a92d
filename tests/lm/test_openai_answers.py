"""What stands around an answer, what servers take no parameter for, and answers that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.lm._servers._adapt import CHANGES, adapted, change_for, without_system
from iclkit.lm._servers._parse import label_similarity, split_thought, unfenced
from iclkit.records import Message

from .openai_server import ScriptedServer

Serve = Callable[..., ScriptedServer]
LABELS = ("login", "late", "track")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ICLKIT_API_KEY", raising=False)
    servers: list[ScriptedServer] = []

    def begin(answer: Callable[[Any], Any]) -> ScriptedServer:
        def script(path: str, body: Any, headers: Any) -> Any:
            if not path.partition("?")[0].endswith("/chat/completions"):
                return 404, {"error": {"message": "no such page"}}, {}
            return answer(body)

        servers.append(ScriptedServer(script))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


def opened(server: ScriptedServer, **settings: Any) -> OpenAILM:
    return open_openai(f"openai:m@{server.url}", **{"backoff": 0.01, "timeout": 5.0, "retries": 1, **settings})


def no(message: str, status: int = 400, **more: Any) -> Any:
    return status, {"error": {"message": message, **more}}, {}


def wrote(body: Any, text: Any, *, logprobs: Any = None, usage: Any = None, **message: Any) -> Any:
    """The answer of a server that stops and limits (a token is a word) as it is told."""
    finish = "stop"
    if isinstance(text, str):
        for stop in body.get("stop", []):
            text = text.partition(stop)[0]
        words = text.split(" ")
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        if len(words) > limit:
            text, finish = " ".join(words[:limit]), "length"
    choice = {"index": 0, "message": {"content": text, **message}, "finish_reason": finish, "logprobs": logprobs}
    return 200, {"choices": [choice], "usage": usage or {}}, {}


def ranked(lm: OpenAILM, text: str = "where is it") -> str | None:
    scores = [s.logprob for s in lm.score([ScoreRequest(text, f" {label}") for label in LABELS])]
    return None if min(scores) == max(scores) else LABELS[scores.index(max(scores))]


# -- thoughts ----------------------------------------------------------------------------------------------------------

THOUGHT = "Could be late.\nOr login. No."


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n{THOUGHT}\n</think>\n\ntrack",
        f"{THOUGHT}\n</think>\n\ntrack",  # the template wrote the opening
        f"<thinking>{THOUGHT}</thinking> track",
        f"[THINK]{THOUGHT}[/THINK]track",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>track",
        "<think>\n\n</think>\n\ntrack",
        [{"type": "thinking", "thinking": [{"type": "text", "text": "late"}]}, {"type": "text", "text": "track"}],
        [{"type": "text", "text": "tr"}, {"type": "text", "text": "ack"}],
    ],
    ids=repr,
)
def test_the_answer_is_what_follows_the_thoughts(serve: Serve, text):
    lm = opened(serve(lambda body: wrote(body, text)))
    assert ranked(lm) == "track"
    asked = [GenerateRequest("q", 3), GenerateRequest("q", 3, ("zzz",)), GenerateRequest("q", 30, ("k",))]
    assert [g.text for g in lm.generate(asked)] == ["track", "track", "trac"]


@pytest.mark.parametrize("stops", [("\n",), ("\n\n",), ("late",), (" ",)], ids=repr)
def test_stop_strings_cut_the_answer_and_not_the_thoughts(serve: Serve, stops):
    server = serve(lambda body: wrote(body, f"<think>\n{THOUGHT}\n\n</think>\n\ntrack it\n\nlate"))
    lm = opened(server, concurrency=4)
    got = lm.generate([GenerateRequest(f"q{n}", 3, stops) for n in range(12)])
    want = {"\n": "track it", "\n\n": "track it", "late": "track it\n\n", " ": "track"}[stops[0]]
    assert {(g.text, g.finish) for g in got} == {(want, "stop")}
    assert any("thinks before it answers" in note for note in lm.notes)
    # found out once: afterwards each question is asked once
    before = len(server.asked)
    lm.generate([GenerateRequest(f"p{n}", 3, stops) for n in range(5)])
    assert len(server.asked) == before + 5


def test_a_thought_that_never_ends_is_no_answer_and_is_said(serve: Serve):
    lm = opened(serve(lambda body: wrote(body, "<think> " + "late " * 10_000)), thought_tokens=100)
    (got,) = lm.generate([GenerateRequest("q", 3)])
    assert (got.text, got.finish) == ("", "length")
    assert ranked(lm) is None
    assert any("thought_tokens" in note and "counts as none" in note for note in lm.notes)


def test_thoughts_that_are_told_apart_or_not_at_all_get_their_room(serve: Serve):
    def separate(body: Any) -> Any:
        text = "track" if body["max_tokens"] > 100 else ""
        status, value, more = wrote(body, text or None, reasoning_content="late, I think")
        value["choices"][0]["finish_reason"] = "stop" if text else "length"
        return status, value, more

    def hidden(body: Any) -> Any:
        usage = {"completion_tokens": 99, "completion_tokens_details": {"reasoning_tokens": 99}}
        status, value, more = wrote(body, "track" if body["max_tokens"] > 100 else "", usage=usage)
        value["choices"][0]["finish_reason"] = "stop" if body["max_tokens"] > 100 else "length"
        return status, value, more

    for answer in (separate, hidden):
        lm = opened(serve(answer))
        assert ranked(lm) == "track"
        assert lm.generate([GenerateRequest("q", 5, ("\n",))])[0].text == "track"


def test_log_probabilities_are_read_after_the_thoughts(serve: Serve):
    words = ["<think>", "late", "</think>", "\n\n", "track"]

    def answer(body: Any) -> Any:
        told = []
        for word in words[: body["max_tokens"]]:
            tops = [{"token": word, "logprob": -0.1}, {"token": "login", "logprob": -3.0}]
            told.append({**tops[0], "top_logprobs": tops[: body.get("top_logprobs", 0)]})
        return wrote(body, "".join(words), logprobs={"content": told} if body.get("logprobs") else None)

    lm = opened(serve(answer))
    assert lm.scoring == "first-token"
    scores = lm.score([ScoreRequest("q", f" {label}") for label in ("login", "track")])
    assert [s.logprob for s in scores] == [-3.0, -0.1]
    assert [s.greedy for s in scores] == [False, True]


def test_text_without_thoughts_is_left_as_it_is():
    for text in ("a < b", "<table>", "think", "<thin ice>", "", " x\n", "<b>think</b>"):
        assert split_thought(text) == (text, False, False)


# -- no answer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "choice"),
    [
        (None, {"finish_reason": "content_filter"}),
        ("login and th", {"finish_reason": "content_filter"}),
        (None, {"message": {"content": None, "refusal": "I cannot help with login"}}),
        (None, {"message": {"content": [{"type": "refusal", "refusal": "no login"}]}}),
        ("", {"finish_reason": "SAFETY"}),
    ],
)
def test_a_refused_answer_is_none_and_not_the_first_label(serve: Serve, content, choice):
    def answer(body: Any) -> Any:
        status, value, more = wrote(body, content)
        value["choices"][0].update(choice)
        return status, value, more

    lm = opened(serve(answer))
    (got,) = lm.generate([GenerateRequest("q", 5)])
    assert (got.text, got.finish) == ("", "refused")
    assert ranked(lm) is None
    assert lm.generate([GenerateRequest("q", choices=LABELS)])[0].text == ""


@pytest.mark.parametrize("text", [None, "", "  \n", "I do not know.", "42", "!!!", "```"], ids=repr)
def test_an_answer_that_names_no_label_is_none(serve: Serve, text):
    lm = opened(serve(lambda body: wrote(body, text, usage={"completion_tokens_details": {"reasoning_tokens": 0}})))
    assert ranked(lm) is None


@pytest.mark.parametrize(
    "text", ["track", '"Track".', "The intent is: track", "trakc", "\n\ntrack\nlate", "```\ntrack\n```"]
)
def test_an_answer_that_names_a_label_ranks_it_first(serve: Serve, text):
    assert ranked(opened(serve(lambda body: wrote(body, text)))) == "track"


def test_a_label_that_is_barely_like_the_answer_is_not_named_by_it():
    assert label_similarity("select a from t", "late") == label_similarity("", "late") == -100
    assert label_similarity("positve", "positive") > -60


# -- code fences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["```sql", "```", "~~~sql", "\n```SQL"])
def test_a_fence_is_taken_off_where_a_stop_string_would_cut_at_it(serve: Serve, mark):
    fence = mark.strip()[:3]
    lm = opened(serve(lambda body: wrote(body, f"{mark}\nselect a\nfrom t\n{fence}\nHere you are.")), concurrency=3)
    got = lm.generate([GenerateRequest(f"q{n}", 30, ("\n",)) for n in range(6)])
    assert {(g.text, g.finish) for g in got} == {("select a\nfrom t", "stop")}
    assert any("code fences" in note for note in lm.notes)


def test_a_fence_stays_where_no_stop_string_cuts_it(serve: Serve):
    text = "```python\nx = 1\n```"
    lm = opened(serve(lambda body: wrote(body, text)))
    asked = [GenerateRequest("q", 30), GenerateRequest("q", 30, ("END",))]
    assert [g.text for g in lm.generate(asked)] == [text, text]
    assert unfenced("no fence\n```", ("\n",)) is None


# -- parameters that are refused ---------------------------------------------------------------------------------------


def test_parameters_that_a_server_refuses_are_left_out_and_each_is_asked_about_once(serve: Serve):
    def answer(body: Any) -> Any:
        if "max_tokens" in body:
            return no("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens")
        if body.get("temperature", 1) != 1:
            return no("Unsupported value", param="temperature", code="unsupported_value")
        if "logprobs" in body:
            return no("You are not allowed to request logprobs from this model.", 403)
        if "stop" in body:
            return no("Unsupported parameter: 'stop' is not supported with this model.")
        return wrote(body, "track\nlate")

    server = serve(answer)
    lm = opened(server, concurrency=1)
    assert (lm.scoring, lm.endpoint) == ("generate", "chat")
    assert any("not greedy" in note for note in lm.notes)
    assert ranked(lm) == "track"
    assert [g.text for g in lm.generate([GenerateRequest(f"q{n}", 5, ("\n", "z")) for n in range(4)])] == ["track"] * 4
    before = len(server.asked)
    lm.generate([GenerateRequest(f"p{n}", 5, ("\n",)) for n in range(3)])
    assert len(server.asked) == before + 3
    assert server.asked[-1][1].keys() == {"model", "messages", "max_completion_tokens"}


def test_stop_strings_of_white_space_alone_are_left_out_where_they_are_refused(serve: Serve):
    def answer(body: Any) -> Any:
        if any(not s.strip() for s in body.get("stop", [])):
            return no("stop_sequences: each stop sequence must contain non-whitespace")
        return wrote(body, "track it\nEND late")

    server = serve(answer)
    lm = opened(server)
    assert lm.generate([GenerateRequest("q", 9, ("\n", "END"))])[0].text == "track it"
    assert server.asked[-1][1]["stop"] == ["END"]


@pytest.mark.parametrize(
    "message",
    ["System role not supported", "Conversation roles must alternate user/assistant/user/assistant/...",
     "Only user and assistant roles are supported!"],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 500])
def test_a_system_text_stands_in_the_first_user_turn_where_its_role_is_refused(serve: Serve, message, status):
    def answer(body: Any) -> Any:
        if any(m["role"] == "system" for m in body["messages"]):
            return no(message, status)
        return wrote(body, body["messages"][0]["content"].partition("\n\n")[0])

    server = serve(answer)
    lm = opened(server)
    chat = lm.render_chat([Message("system", "track"), Message("user", "one"), Message("assistant", "two")])
    assert lm.generate([GenerateRequest(chat, 5)])[0].text == "track"
    assert [m["content"] for m in server.asked[-1][1]["messages"]] == ["track\n\none", "two"]
    assert any("no system role" in note for note in lm.notes)


def test_a_refusal_of_another_kind_drops_nothing(serve: Serve):
    server = serve(lambda body: no("the seed of all evil") if "bad" in str(body) else wrote(body, "track"))
    lm = opened(server)
    lm.generate([GenerateRequest("good", 5, temperature=1.0)])
    with pytest.raises(Exception, match="the seed of all evil"):
        lm.generate([GenerateRequest("bad", 5, temperature=1.0)])
    lm.generate([GenerateRequest("fine", 5, temperature=1.0)])
    assert "seed" in server.asked[-1][1]


@pytest.mark.parametrize(("most", "asked"), [(20, [20]), (5, [20, 5]), (1, [20, 5, 1])])
def test_fewer_candidates_are_asked_for_where_so_many_are_refused(serve: Serve, most, asked):
    def answer(body: Any) -> Any:
        if body.get("top_logprobs", 0) > most:
            return no(f"top_logprobs must be between 0 and {most}")
        tops = [{"token": label, "logprob": -0.1 - 3 * i} for i, label in enumerate(("track", "late", "login"))]
        told = {"content": [{**tops[0], "top_logprobs": tops[: body.get("top_logprobs", 0)]}]}
        return wrote(body, "track", logprobs=told if body.get("logprobs") else None)

    server = serve(answer)
    lm = opened(server)
    assert lm.scoring == "first-token"
    assert [b["top_logprobs"] for _, b, _ in server.asked if b and "top_logprobs" in b] == asked
    assert ranked(lm) == "track"


def test_a_model_that_needs_room_for_its_thoughts_from_the_start_gets_it(serve: Serve):
    def answer(body: Any) -> Any:
        if body["max_tokens"] < 100:
            return no("Could not finish the message because max_tokens or model output limit was reached. "
                      "Please try again with higher max_tokens.")  # fmt: skip
        return wrote(body, "track")

    lm = opened(serve(answer))
    assert ranked(lm) == "track"


def test_every_change_of_a_request_is_made_alone_and_leaves_the_rest():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    body = {"messages": turns, "max_tokens": 3, "temperature": 0, "seed": 1, "top_p": 1.0, "stop": ["\n", "E"]}
    assert adapted(body, (), 9) == body
    for change in CHANGES:
        assert adapted(body, (change,), 9) != body
    assert adapted(body, CHANGES, 9) == {
        "messages": [{"role": "user", "content": "s\n\nu"}],
        "max_completion_tokens": 12,
    }
    assert change_for("", "stop", body, ()) == "blank stops"
    assert change_for("", "stop", body, ("blank stops",)) == "stops"
    assert change_for("something else", "", body, ()) is None
    assert without_system([turns[0]]) == [{"role": "user", "content": "s"}]


def test_an_azure_address_keeps_its_query_behind_every_path_and_takes_the_key_in_its_own_header(
    serve: Serve, monkeypatch
):
    monkeypatch.setenv("ICLKIT_API_KEY", "azure-key-0123456789")
    server = serve(lambda body: wrote(body, "track"))
    base = server.url.removesuffix("/v1")
    for end in ("", "/", "/chat/completions"):
        server.asked.clear()
        lm = open_openai(f"openai:d@{base}/openai/deployments/d{end}?api-version=2024-06-01", backoff=0.01)
        assert ranked(lm) == "track"
        assert {p for p, _, _ in server.asked if "chat" in p} == {
            "/openai/deployments/d/chat/completions?api-version=2024-06-01"
        }
        assert {h.get("api-key") for _, _, h in server.asked} == {"azure-key-0123456789"}
        assert not any("Authorization" in h for _, _, h in server.asked)
        assert "api-version=2024-06-01" in lm.fingerprint
