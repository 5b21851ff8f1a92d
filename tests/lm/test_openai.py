from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import ModelError, RequestError, UnknownName, UsageError
from iclkit.lm import GenerateRequest, Generation, Score, ScoreRequest
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.lm._servers import OpenAILM, open_openai
from iclkit.lm._servers._http import Client, HttpConfig, HttpError, RequestRejected
from iclkit.lm._servers._parse import ServerPrompt, estimate_tokens, label_similarity
from iclkit.records import Message

from .openai_server import ToyServer, continued, distribution, tokenize, truth

Start = Callable[..., ToyServer]
QUICK = {"backoff": 0.01, "timeout": 5.0}
REQUESTS = [
    ScoreRequest("Good fun.\nLabel:", " positive"),
    ScoreRequest("Good fun.\nLabel:", " negative"),
    ScoreRequest("Good fun.\nLabel:", " posh"),
    ScoreRequest("Tea is in", " a cup"),
    ScoreRequest("Tea is in ", "Germany"),
    ScoreRequest("Café:\n", "1 2"),
]


def opened(server: ToyServer, **extra: object) -> OpenAILM:
    return open_openai(f"openai:toy@{server.url}", **{**QUICK, **extra})  # type: ignore[arg-type]


def true_score(request: ScoreRequest) -> Score:
    # white space at the end of a context belongs to the continuation
    kept = request.context.rstrip()
    return Score(*truth(kept, request.context[len(kept) :] + request.continuation))


@pytest.mark.parametrize(
    ("offers", "scoring", "ids"),
    [
        ({"echo", "tokenize"}, "echo", True),
        ({"echo", "logprobs", "prompt_logprobs"}, "echo", False),
        ({"prompt_logprobs", "tokenize"}, "prompt-logprobs", True),
        ({"prompt_logprobs"}, "prompt-logprobs", False),
        ({"logprobs", "tokenize"}, "next-token", True),
        ({"logprobs"}, "next-token", False),
    ],
)
def test_every_exact_way_of_scoring_gives_the_sums_of_the_model(start: Start, offers, scoring, ids):
    lm = opened(start("completions", "models", *offers))
    assert (lm.scoring, lm.codec is not None, lm.endpoint) == (scoring, ids, "completions")
    for got, request in zip(lm.score(REQUESTS), REQUESTS, strict=True):
        want = true_score(request)
        assert got.logprob == pytest.approx(want.logprob, abs=1e-9)
        assert (got.tokens, got.greedy) == (want.tokens, want.greedy)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab \npositve", max_size=12), st.text("ab positve", min_size=1, max_size=8)), max_size=4)
)
def test_echo_and_next_token_agree_on_any_text(pairs):
    requests = [ScoreRequest("x" + context, continuation.rstrip() + "e") for context, continuation in pairs]
    server = ToyServer("completions", "echo", "logprobs", "tokenize")
    try:
        by_echo = opened(server).score(requests)
        by_token = opened(server, scoring="next-token").score(requests)
    finally:
        server.close()
    for one, other, request in zip(by_echo, by_token, requests, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)
        assert one.logprob == pytest.approx(true_score(request).logprob, abs=1e-9)
        assert one.tokens == other.tokens


def test_a_server_that_ignores_echo_is_not_taken_for_one_that_echoes(start: Start):
    server = start("completions", "logprobs")
    assert opened(server).scoring == "next-token"
    with pytest.raises(ModelError, match="does not offer the scoring 'echo' that was asked for"):
        opened(server, scoring="echo")


def test_a_label_beyond_the_candidates_gets_their_bound_and_a_note(start: Start):
    lm = opened(start("completions", "logprobs", "tokenize", most=5))
    tops = sorted(distribution("Good fun.\nLabel:").values())[-5:]
    scores = lm.score([ScoreRequest("Good fun.\nLabel:", c) for c in ("~", "|")])
    missing = [s for s, c in zip(scores, "~|", strict=True) if distribution("Good fun.\nLabel:")[c] < tops[0]]
    assert missing
    assert all(s.logprob == pytest.approx(tops[0]) and not s.greedy for s in missing)
    assert any("not among the 5 candidates" in note for note in lm.notes)


def test_more_candidates_are_asked_for_only_when_a_token_is_missing(start: Start):
    server = start("completions", "logprobs", "tokenize")
    lm = opened(server)
    told = distribution("Tea:")
    by_rank = sorted(told, key=lambda v: -told[v])
    server.bodies.clear()
    assert lm.score([ScoreRequest("Tea:", by_rank[0])])[0].logprob == pytest.approx(told[by_rank[0]])
    assert [b["logprobs"] for b in server.bodies if "logprobs" in b] == [64]
    rare = next(v for v in by_rank[64:] if tokenize("Tea:" + v) == [*tokenize("Tea:"), v] and v.strip())
    assert lm.score([ScoreRequest("Tea:", rare)])[0].logprob == pytest.approx(told[rare])
    assert [b["logprobs"] for b in server.bodies if "logprobs" in b] == [64, 64, 4096]


def test_a_chat_server_scores_labels_by_the_first_token_that_differs(start: Start):
    lm = opened(start("chat", "chat_logprobs", "models"))
    assert (lm.scoring, lm.endpoint) == ("first-token", "chat")
    assert any("first-token" in note for note in lm.notes)
    chat = lm.render_chat([Message("system", "Be brief."), Message("user", "Is it?")])
    prompt = "system:Be brief.\nuser:Is it?\n"
    told = distribution(prompt)
    tops = sorted(told.items(), key=lambda p: -p[1])[:20]
    (first, value), (second, other) = [(t, v) for t, v in tops if t.strip()][:2]
    follow = continued(prompt, 2)[1]
    got = lm.score([ScoreRequest(chat, c) for c in (first, second, tops[0][0].lstrip() + follow, "éééé")])
    assert got[0].logprob == pytest.approx(value)
    assert got[1].logprob == pytest.approx(other)
    if tops[0][0].strip() and follow.strip():
        step = distribution(prompt + tops[0][0])[follow]
        assert got[2].logprob == pytest.approx(tops[0][1] + step)
        assert (got[2].tokens, got[2].greedy) == (2, True)
    assert got[3].logprob <= tops[-1][1]


def test_a_server_without_probabilities_ranks_labels_by_its_answer_and_says_so(start: Start):
    lm = opened(start("completions"), answer_tokens=3)
    assert lm.scoring == "generate"
    assert any("ranking, not log-probabilities" in note for note in lm.notes)
    said = "".join(continued("Good fun.\nLabel:", 3))
    scores = lm.score([ScoreRequest("Good fun.\nLabel:", c) for c in (" zzz", said, " qqq")])
    assert max(scores, key=lambda s: s.logprob) == scores[1]
    assert scores[1].greedy


def test_a_rank_does_not_depend_on_the_other_labels_and_orders_as_documented():
    begins = label_similarity(" Positive, I think", "positive")
    longer = label_similarity("very good indeed", "very good")
    mentions = label_similarity("The answer is positive.", "positive")
    assert -1 < begins < 0
    assert label_similarity("very good indeed", "very") < longer
    assert -11 < mentions < -10 + 1e-9
    assert label_similarity("positively", "positive") < -50
    assert -100 <= label_similarity("xyz", "positive") < label_similarity("positve", "positive") < mentions
    assert label_similarity("", "") == pytest.approx(-100 + 50)


def test_generation_is_cut_at_the_first_of_any_number_of_stop_strings(start: Start):
    for offers in ({"completions", "tokenize"}, {"completions"}, {"chat"}):
        lm = opened(start(*offers))
        prompt = "Tell me:" if "completions" in offers else "user:Tell me:\n"
        text = "".join(continued(prompt, 30))
        stops = ("\x02\x02", "~~~~", "{{{{", "}}}}", text[9:12], text[20:22])
        cut, whole = lm.generate([GenerateRequest("Tell me:", 30, stops), GenerateRequest("Tell me:", 30)])
        ends = [text.find(s) for s in stops if s in text]
        assert (cut.text, cut.finish) == (text[: min(ends)], "stop")
        assert whole == Generation(text, 30, "length")


def test_choices_constrain_the_answer_to_the_likeliest_of_them(start: Start):
    lm = opened(start("completions", "echo", "tokenize"))
    choices = (" positive", " negative", " maybe")
    (answer,) = lm.generate([GenerateRequest("Good fun.\nLabel:", choices=choices)])
    best = max(choices, key=lambda c: truth("Good fun.\nLabel:", c)[0])
    assert answer == Generation(best, len(tokenize(best)), "choice")


def test_identical_requests_are_sent_once_and_labels_share_their_first_token(start: Start):
    server = start("completions", "logprobs", "tokenize")
    lm = opened(server)
    server.asked.clear()
    requests = [ScoreRequest("Good fun.\nLabel:", c) for c in (" positive", " negative", " positive")] * 5
    scores = lm.score(requests)
    assert len(set(scores)) == 2
    assert server.asked["/v1/completions"] <= 2  # one look at 64 candidates, at most one at more
    server.asked.clear()
    lm.generate([GenerateRequest("Tell me:", 3)] * 7)
    assert server.asked["/v1/completions"] == 1


def test_results_stand_in_the_order_of_the_requests_whatever_finishes_first(start: Start):
    server = start("completions", "echo", "tokenize")
    requests = [ScoreRequest(f"{n} is in", " Germany") for n in range(40)]
    seen: list[int] = []
    fast = opened(server, concurrency=16).score(requests, lambda done: seen.extend(i for i, _ in done))
    assert sorted(seen) == [*range(40)]
    assert fast == opened(server, concurrency=1).score(requests)


# -- the network -------------------------------------------------------------------------------------------------------


def test_no_more_requests_than_asked_for_are_under_way_at_once(start: Start):
    server = start("completions", "echo", "tokenize", busy=0.02)
    lm = opened(server, concurrency=3)
    server.most_under_way = 0
    lm.score([ScoreRequest(f"{n} is in", " Germany") for n in range(15)])
    assert server.most_under_way == 3


def test_requests_per_minute_spaces_the_requests(start: Start):
    server = start("completions", "echo", "tokenize")
    lm = opened(server, requests_per_minute=1200.0, concurrency=4)
    server.times.clear()
    lm.generate([GenerateRequest(f"{n} is in", 1) for n in range(6)])
    # each generation asks twice: for its tokens, and for the answer
    assert server.times[-1] - server.times[0] > 0.045 * (len(server.times) - 1)


@pytest.mark.parametrize("trouble", [500, 503, "close", "garbage", (429, {"Retry-After": "0"})])
def test_trouble_in_passing_is_repeated_until_it_passes(start: Start, trouble):
    server = start("completions", "echo", "tokenize")
    lm = opened(server)
    server.trouble = [trouble, trouble]
    assert lm.score(REQUESTS[:1])[0].logprob == pytest.approx(true_score(REQUESTS[0]).logprob)
    assert server.trouble == []


def test_retry_after_is_honoured_and_holds_back_every_worker(start: Start):
    server = start("completions", "echo", "tokenize")
    lm = opened(server, concurrency=4)
    lm.score([ScoreRequest(f"{n} is in", " Germany") for n in range(8)])  # the tokens are known from here on
    server.trouble = [(429, {"Retry-After": "0.5"})]
    server.times.clear()
    lm.score([ScoreRequest(f"{n} is in", " Germany") for n in range(8)])
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    # how many requests the others had sent before the answer came is chance; then nobody sends any for half a second
    assert max(gaps) >= 0.45
    assert len(server.times) == 9


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (500, "answered 500: trouble 500"),
        ((429, {"Retry-After": "0"}), "answered 429"),
        ("garbage", "not a JSON object: '<html>busy</html>'"),
        ("close", "cannot be reached"),
        ("shape", "JSON of another shape"),
        (400, "answered 400: trouble 400"),
    ],
)
def test_trouble_that_stays_is_one_clear_line_without_the_key(start: Start, monkeypatch, trouble, words):
    monkeypatch.setenv("ICLKIT_API_KEY", "sk-secret")
    server = start("completions", "echo", "tokenize")
    lm = opened(server, retries=2)
    server.trouble = [trouble] * 50
    with pytest.raises(ModelError) as caught:
        lm.score(REQUESTS[:1])
    text = str(caught.value)
    assert words in text
    assert server.url in text
    assert "\n" not in text
    assert "sk-secret" not in text
    tried = 50 - len(server.trouble)
    assert tried == (1 if trouble in (400, "shape") else 3)


def test_a_server_that_hangs_is_given_up_after_the_timeout(start: Start):
    server = start("completions", "echo", "tokenize")
    lm = opened(server, timeout=0.7, retries=6)
    server.trouble = ["hang"] * 50
    begun = time.monotonic()
    with pytest.raises(ModelError, match=r"did not answer within 0\.7 s, 3 times"):
        lm.score(REQUESTS[:1])
    assert time.monotonic() - begun < 9


def test_a_refused_connection_is_one_clear_line_at_once():
    begun = time.monotonic()
    with pytest.raises(
        ModelError, match=r"the server at http://127\.0\.0\.1:9/v1 cannot be reached \(.*refused"
    ) as caught:
        open_openai("openai:toy@http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 9


def test_one_failure_wakes_waiting_workers_and_keeps_what_was_finished(start: Start):
    server = start("completions", "echo", "tokenize")
    lm = opened(server, concurrency=2, backoff=20.0)
    requests = [ScoreRequest(f"{n} is in", " Germany") for n in range(6)]
    lm.score(requests)  # so that no tokens are asked for below
    finished: list[int] = []
    server.trouble = [None, None, 500, 401]  # one worker waits 10 s or more before its next try, the other is refused
    begun = time.monotonic()
    with pytest.raises(RequestRejected):
        lm.score(requests, lambda done: finished.extend(i for i, _ in done))
    assert time.monotonic() - begun < 9
    # Which came first is chance, and a third or fourth may have been sent before the failure was seen.
    assert 2 <= len(finished) == len({*finished}) <= 4


def test_a_run_that_died_repeats_no_finished_request(start: Start, tmp_path):
    server = start("completions", "echo", "tokenize", "models")
    requests = [ScoreRequest(f"{n} is in", " Germany") for n in range(10)]
    cache = Cache(tmp_path / "cache.db")
    server.trouble = []
    lm = cached(opened(server, concurrency=1), cache)
    server.trouble = [None] * 6 + [401]
    with pytest.raises(RequestRejected):
        lm.score(requests)
    again = cached(opened(server, concurrency=1), cache)
    server.asked.clear()
    scores = again.score(requests)
    assert server.asked["/v1/completions"] == 4
    assert [s.logprob for s in scores] == pytest.approx([true_score(r).logprob for r in requests])


def test_the_key_comes_from_the_environment_and_goes_only_into_its_header(start: Start, monkeypatch):
    server = start("completions", "echo", "models")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    opened(server)
    assert {h.get("Authorization") for h in server.headers} == {"Bearer sk-other"}
    monkeypatch.setenv("ICLKIT_API_KEY", "sk-own")
    server.headers.clear()
    lm = opened(server)
    assert {h.get("Authorization") for h in server.headers} == {"Bearer sk-own"}
    assert "sk-own" not in lm.fingerprint + repr(lm.config) + repr(lm.client.config)


def test_a_locked_server_is_not_asked_again_and_again(start: Start):
    server = start("completions")
    server.trouble = [401] * 20
    with pytest.raises(ModelError, match="answered 401"):
        opened(server)
    assert len(server.trouble) == 19


def test_a_busy_server_is_not_taken_for_one_that_offers_less(start: Start):
    server = start("completions", "echo", "tokenize")
    server.trouble = [None, None, None, 503, 503, 503, 503]  # the questions about endpoint and tokens pass
    with pytest.raises(HttpError, match="answered 503"):
        opened(server)


def test_a_server_that_breaks_on_echo_is_scored_another_way(start: Start):
    server = start("completions", "logprobs", "tokenize")
    server.trouble = [None, None, None, 500, 500]
    assert opened(server).scoring == "next-token"


# -- what is said about the server -------------------------------------------------------------------------------------


def test_whatever_can_change_an_answer_changes_the_fingerprint(start: Start):
    server = start("completions", "echo", "logprobs", "tokenize", "models")
    other = start("completions", "echo", "logprobs", "tokenize", "models")
    lms = [
        opened(server),
        opened(server, scoring="next-token"),
        opened(server, scoring="generate"),
        opened(server, scoring="generate", answer_tokens=3),
        opened(server, revision="2"),
        opened(other),
        open_openai(f"openai:other@{server.url}", **QUICK),
    ]
    assert len({lm.fingerprint for lm in lms}) == len(lms)
    assert opened(server, concurrency=2, timeout=9.0).fingerprint == lms[0].fingerprint


def test_the_password_of_an_address_is_not_in_the_fingerprint(start: Start):
    server = start("completions", "echo")
    lm = open_openai(f"openai:toy@{server.url.replace('//', '//user:pass@')}", **QUICK)
    assert "pass" not in lm.fingerprint


def test_the_context_size_is_the_servers_or_the_setting_or_an_assumption_that_is_said(start: Start):
    telling, silent = start("completions", "echo", "tokenize", "models"), start("completions", "echo")
    assert opened(telling).context_size == 500
    assert opened(telling, context=77).context_size == 77
    lm = opened(silent)
    assert lm.context_size == 4096
    assert any("4096 is assumed" in note for note in lm.notes)
    with pytest.raises(RequestError, match="reads 500: show fewer"):
        opened(telling).score([ScoreRequest("~" * 600, " x")])
    with pytest.raises(RequestError, match="reads 500: show fewer"):
        opened(telling).generate([GenerateRequest("~" * 490, 20)])


def test_an_unknown_model_is_answered_with_what_is_served(start: Start):
    server = start("models")
    with pytest.raises(ModelError, match="with model 'toy'; it serves: toy, other"):
        opened(server)


def test_newer_chats_take_their_limit_by_its_new_name(start: Start):
    lm = opened(start("chat", "new"))
    assert lm.generate([GenerateRequest("Hi", 3)])[0].tokens == 3


def test_settings_ride_on_the_name_and_a_wrong_one_is_named(start: Start, monkeypatch):
    server = start("completions", "echo")
    lm = open_openai(f"openai:toy@{server.url},concurrency=3,scoring=generate,backoff=0.01")
    assert (lm.client.config.concurrency, lm.scoring, lm.name) == (3, "generate", "toy")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert open_openai("openai:toy").client.url == server.url
    with pytest.raises(UnknownName, match="Did you mean 'concurrency'"):
        open_openai("openai:toy@http://127.0.0.1:9,concurency=3")
    with pytest.raises(UnknownName, match="Did you mean 'echo'"):
        open_openai("openai:toy@http://127.0.0.1:9,scoring=ecko")
    with pytest.raises(UsageError, match="wrong type"):
        open_openai("openai:toy@http://127.0.0.1:9,concurrency=many")
    with pytest.raises(UsageError, match="others not negative"):
        open_openai("openai:toy@http://127.0.0.1:9,concurrency=-1")


@pytest.mark.parametrize("spec", ["openai:", "openai:toy", "openai:toy@", "openai:toy@localhost:8000", "openai:@x"])
def test_nothing_is_sent_to_a_server_that_was_not_named(monkeypatch, spec):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UsageError, match="is not openai:MODEL@URL"):
        open_openai(spec)
    if "@" in spec:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
        with pytest.raises(UsageError, match="is not openai:MODEL@URL"):
            open_openai(spec)


def test_a_bare_host_gets_the_customary_path(start: Start):
    server = start("completions", "echo")
    assert open_openai(f"openai:toy@{server.url.removesuffix('/v1')}", **QUICK).client.url == server.url


def test_a_tokenizer_that_is_not_the_models_is_found_out(start: Start, minilm_path):
    with pytest.raises(UsageError, match="it is not that model's tokenizer"):
        opened(start("completions", "echo"), tokenizer=str(minilm_path))


def test_chats_that_nobody_can_render_say_what_to_change(start: Start):
    with pytest.raises(UsageError, match=r"does not render chats; add tokenizer=FOLDER_OR_ID or endpoint=chat"):
        opened(start("completions", "echo")).render_chat([Message("user", "Hi")])


def test_tokens_that_do_not_spell_the_prompt_are_not_guessed_at():
    assert ServerPrompt("a bc", None, b" bc").start([b"a", b" b", b"c"]) == 1
    assert ServerPrompt("a bc", None, b" bc").start([b"<s>", b"a b", b"c"]) == 1
    with pytest.raises(ModelError, match="do not spell the prompt"):
        ServerPrompt("a bc", None, b" bc").start([b"a", b"_b", b"c"])


def test_the_client_refuses_settings_that_cannot_be():
    for wrong in ({"timeout": 0.0}, {"retries": -1}, {"requests_per_minute": -1.0}, {"backoff": -0.1}):
        with pytest.raises(UsageError):
            HttpConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not an address"):
        Client("http://[::bad", None, HttpConfig(retries=0)).get("/x")


def test_importing_the_room_does_not_load_the_http_client():
    code = "import sys, iclkit.lm; print({'httpx', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.models
def test_the_estimate_of_tokens_is_on_the_high_side_of_a_real_tokenizer(smollm2_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    texts = [
        "Review: it's a good film, isn't it?\nLabel: positive\n\n" * 5,
        "def f(x):\n    return {'a': [1, 2.50, 0xff]}  # ok\n",
        "Der Donaudampfschifffahrtskapitän trank 1 234,56 € Kaffee. 今天天气很好。 Привет, мир! 🙂",
        "IBAN DE89 3704 0044 0532 0130 00; https://example.org/a?b=c&d=%20",
    ]
    for text in texts:
        real = len(tokenizer(text).input_ids)
        assert real <= estimate_tokens(text) <= 2 * real + 4
    assert math.isclose(estimate_tokens(""), 4)
