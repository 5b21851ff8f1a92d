"""Ways of scoring that depend on what a server offers, found by their effect, used with the fewest tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import ModelError, RequestError
from iclkit.lm import GenerateRequest, ScoreRequest, ranks_only
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.lm._servers import FolderRecords, OpenAILM, open_openai
from iclkit.lm._servers._parse import NextToken
from iclkit.lm._servers._trie import Trie
from iclkit.lm._tokens import TokenPair

from .openai_server import VOCABULARY, ToyServer, tokenize, truth

Start = Callable[..., ToyServer]
VLLM = ("completions", "echo", "prompt_logprobs", "logprobs", "logprob_ids", "lists", "tokenize", "models")
SGLANG = ("completions", "echo", "logprobs", "generate", "tokenize", "models")
LABELS = (" positive", " negative", " posh", " po", " is in")
CONTEXT = "Good fun, and long enough to fill a block or two of a cache.\nLabel:"


def opened(server: ToyServer, records: FolderRecords | None = None, **extra: Any) -> OpenAILM:
    return open_openai(f"openai:toy@{server.url}", records, **{"backoff": 0.01, "timeout": 5.0, **extra})


def requests_of(context: str = CONTEXT, labels: tuple[str, ...] = LABELS) -> list[ScoreRequest]:
    return [ScoreRequest(context, label) for label in labels]


ROUTED = ("completions", "echo", "logprobs", "score", "tokenize", "models")


@pytest.mark.parametrize(
    ("offers", "scoring"),
    [(VLLM, "token-ids"), (SGLANG, "native"), (ROUTED, "score"), ((*ROUTED, "old"), "score")],
)
def test_labels_are_scored_exactly_on_a_cached_prefix(start: Start, offers, scoring):
    server = start(*offers)
    lm = opened(server)
    assert lm.scoring == scoring
    for got, request in zip(lm.score(requests_of()), requests_of(), strict=True):
        want = truth(request.context, request.continuation)
        assert got.logprob == pytest.approx(want[0], abs=1e-9)
        assert got.tokens == want[1]
        assert got.greedy == want[2] or (scoring == "score" and not got.greedy)  # it tells of the labels alone


def test_a_label_costs_no_second_reading_of_its_prompt(start: Start):
    server = start(*VLLM)
    by_ids, by_echo = opened(server), opened(server, scoring="echo")
    before = server.computed
    by_ids.score(requests_of("a" + CONTEXT))
    cached_cost, before = server.computed - before, server.computed
    by_echo.score(requests_of("b" + CONTEXT))
    size = len(tokenize("a" + CONTEXT))
    assert server.computed - before > len(LABELS) * size
    assert cached_cost < 2.5 * size  # the rest of the last block is read again for each beginning that labels share


def test_labels_of_one_token_take_one_request_and_all_others_one_more(start: Start):
    server = start(*VLLM)
    lm = opened(server)
    lm.score(requests_of("warm up", (" positive", " negative", " posh")))
    for labels, most in (((" positive", " negative"), 1), (LABELS, 2)):
        server.asked.clear()
        lm.score(requests_of(CONTEXT, labels))
        assert server.asked["/v1/completions"] == most


def test_a_long_continuation_is_read_whole_where_that_is_less(start: Start):
    server = start(*VLLM)
    lm = opened(server)
    assert lm.can.long_scoring == "prompt-logprobs"
    request = ScoreRequest("Tell me:", " " + "a long story of many tokens " * 4)
    server.bodies.clear()
    (score,) = lm.score([request])
    assert score.logprob == pytest.approx(truth(request.context, request.continuation)[0])
    assert [b for b in server.bodies if "prompt_logprobs" in b]
    assert sum("prompt" in b and "model" in b and "max_tokens" in b for b in server.bodies) == 1


def test_parameters_that_a_server_ignores_without_a_word_are_not_taken_for_offered(start: Start):
    server = start("completions", "echo", "logprobs", "lists", "tokenize")
    assert opened(server).scoring == "echo"
    with pytest.raises(ModelError, match="does not offer the scoring 'token-ids'"):
        opened(server, scoring="token-ids")


def test_prompts_go_one_by_one_where_lists_are_refused(start: Start):
    lm = opened(start(*(set(VLLM) - {"lists"})))
    assert (lm.scoring, lm.can.lists) == ("token-ids", False)
    want = [truth(CONTEXT, label)[0] for label in LABELS]
    assert [s.logprob for s in lm.score(requests_of())] == pytest.approx(want)


def test_a_token_that_the_server_leaves_out_costs_its_prompt_alone(start: Start):
    server = start(*VLLM)
    lm = opened(server)
    inner, left_out = server.complete, VOCABULARY.index("~")

    def forgetful(body: Any) -> Any:
        ids = [i for i in body.get("logprob_token_ids", []) if i != left_out]
        return inner({**body, "logprob_token_ids": ids} if "logprob_token_ids" in body else body)

    server.complete = forgetful  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="no log-probability for a token that was asked about"):
        lm.score(requests_of("Tea:", (" negative", " positive", "~")))


ids = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(ids, min_size=1, max_size=6), st.permutations(range(6)), st.integers(1, 4), st.integers(1, 4))
def test_the_trie_adds_up_to_each_label_however_its_questions_are_cut(labels, order, most_ids, most_prompts):
    def logprob(prefix: tuple[int, ...], id_: int) -> float:
        return -1 - ((sum((i + 2) * x for i, x in enumerate(prefix)) + 3 * id_) % 7) / 5

    pairs = [TokenPair((9, 9, *label), 2) for label in labels]
    shuffled = [pairs[i] for i in order if i < len(pairs)]
    found = []
    for part in (pairs, shuffled):
        trie, told = Trie.of(part), dict[tuple[int, ...], dict[int, float]]()
        for prompts, wanted in trie.calls(most_ids, most_prompts):
            assert len(wanted) <= most_ids
            assert len(prompts) <= most_prompts
            for prompt in prompts:
                told.setdefault(prompt, {}).update({i: logprob(prompt, i) for i in wanted})
        scores = trie.scores({p: NextToken(t, 0.0) for p, t in told.items()})
        found.append({pair.ids: s.logprob for pair, s in zip(part, scores, strict=True)})
    assert found[0] == pytest.approx(found[1])
    for label in labels:
        want = sum(logprob((9, 9, *label[:at]), label[at]) for at in range(len(label)))
        assert found[0][9, 9, *label] == pytest.approx(want)


# -- servers without log-probabilities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["choice", "schema", "grammar"])
def test_an_answer_is_bound_to_the_labels_by_what_the_server_has(start: Start, kind):
    lm = opened(start("chat", kind))
    assert (lm.scoring, lm.can.force) == ("forced", kind)
    assert ranks_only(lm)
    scores = lm.score(requests_of("Good fun", ("positive", "negative", "posh")))
    want = [truth("user:Good fun\n", label)[0] for label in ("positive", "negative", "posh")]
    best = want.index(max(want))
    assert [s.logprob > -1 for s in scores] == [i == best for i in range(3)]


def test_a_chat_is_asked_where_completions_tell_nothing_and_it_has_more(start: Start):
    lm = opened(start("completions", "chat", "schema"))
    assert (lm.scoring, lm.endpoint) == ("forced", "chat")
    lm = opened(start("completions", "chat", "chat_logprobs"))
    assert (lm.scoring, lm.endpoint) == ("first-token", "chat")
    lm = opened(start("completions", "chat"))
    assert (lm.scoring, lm.endpoint) == ("generate", "completions")


def test_what_an_answer_is_bound_to_is_part_of_what_is_remembered(start: Start, tmp_path: Path):
    server = start("chat", "choice")
    lm = cached(opened(server), Cache(tmp_path / "c.db"))
    lm.score(requests_of("Good fun", ("negative", "posh")))
    together = lm.score(requests_of("Good fun", ("negative", "posh", "positive")))
    assert together == cached(opened(server), Cache(tmp_path / "d.db")).score(
        requests_of("Good fun", ("negative", "posh", "positive"))
    )
    assert sum(s.logprob > -1 for s in together) == 1
    before = sum(server.asked.values())
    assert lm.score(requests_of("Good fun", ("negative", "posh", "positive"))) == together
    assert sum(server.asked.values()) == before


def test_decisions_tell_how_probable_each_label_is_among_them(start: Start):
    lm = opened(start("chat", "decisions"))
    assert lm.scoring == "decisions"
    assert not ranks_only(lm)
    scores = lm.score(requests_of("Good fun", ("positive", "negative", "Germany")))
    assert math.fsum(math.exp(s.logprob) for s in scores) == pytest.approx(1)
    with pytest.raises(RequestError, match="against each other"):
        lm.score([ScoreRequest("Good fun", "positive")])


# -- what was found is remembered --------------------------------------------------------------------------------------


def test_a_server_is_probed_once_and_one_question_shows_that_it_is_still_so(start: Start, tmp_path: Path):
    server, records = start(*VLLM), FolderRecords(tmp_path / "servers")
    first = opened(server, records)
    probing = server.asked["/v1/completions"]
    server.asked.clear()
    again = opened(server, records)
    assert again.can == first.can
    assert (again.fingerprint, again.scoring, again.notes) == (first.fingerprint, first.scoring, first.notes)
    assert server.asked["/v1/completions"] == 1 < probing
    assert again.score(requests_of()) == first.score(requests_of())
    (file,) = (tmp_path / "servers").iterdir()
    assert json.loads(file.read_text())["scoring"] == "token-ids"


def test_another_model_behind_the_name_is_found_out(start: Start, tmp_path: Path):
    server, records = start(*VLLM), FolderRecords(tmp_path)
    opened(server, records)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "check": -9.5}))
    lm = opened(server, records)
    assert any("other log-probabilities for 'toy' than on" in note for note in lm.notes)
    assert json.loads(file.read_text())["check"] != -9.5


def test_a_server_that_offers_less_than_before_is_probed_anew(start: Start, tmp_path: Path):
    server, records = start(*VLLM), FolderRecords(tmp_path)
    assert opened(server, records).scoring == "token-ids"
    server.offers -= {"logprob_ids"}
    assert opened(server, records).scoring == "echo"


@pytest.mark.parametrize("damage", ["", "{oops", "[]", '{"scoring": 5}', '{"scoring": "token-ids", "found": "soon"}'])
def test_a_damaged_record_is_found_out_anew(start: Start, tmp_path: Path, damage):
    server, records = start(*VLLM), FolderRecords(tmp_path)
    opened(server, records)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert opened(server, records).scoring == "token-ids"


def test_a_server_that_disagrees_with_itself_is_reported(start: Start):
    assert opened(start(*VLLM)).can.deviation == 0
    lm = opened(start(*VLLM, "stale"))
    assert lm.can.deviation == pytest.approx(3.0)
    assert any("differ by 3 nats to the same question asked twice" in note for note in lm.notes)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/props", {"default_generation_settings": {"n_ctx": 777}}),
        ("/api/ps", {"models": [{"name": "m:latest", "context_length": 777}]}),
        ("/api/v0/models", {"data": [{"id": "m", "loaded_context_length": 777}]}),
        ("/v1/models", {"data": [{"id": "m", "context_length": 777}]}),
    ],
)
def test_the_context_is_read_where_each_server_tells_it(start: Start, path, answer):
    def script(asked: str, body: Any, headers: Any) -> Any:
        if asked == path:
            return 200, answer, {}
        if not asked.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such page"}}, {}
        return 200, {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}, {}

    lm = open_openai(f"openai:m@{start(script).url}", retries=0)
    assert (lm.context_size, lm.can.context_from) == (777, path.removeprefix("/v1"))
    assert not any("assumed" in note for note in lm.notes)


def test_a_candidate_fewer_than_asked_for_is_no_reason_to_ask_again(start: Start):
    server = start("completions", "logprobs", "tokenize", most=64)
    lm = opened(server)
    inner = server.complete

    def one_fewer(body: Any) -> Any:
        status, answer = inner(body)
        logprobs = answer.get("choices", [{}])[0].get("logprobs")
        if logprobs:
            logprobs["top_logprobs"] = [dict([*top.items()][:-1]) for top in logprobs["top_logprobs"]]
        return status, answer

    server.complete = one_fewer  # type: ignore[method-assign]
    server.asked.clear()
    lm.score(requests_of("Tea:", ("~", "|", "{", "}", "^")))
    asked = server.asked["/v1/completions"]
    lm.score(requests_of("Tee:", ("~", "|", "{", "}", "^")))
    assert asked <= 2
    assert server.asked["/v1/completions"] - asked == 1


def test_generation_on_a_server_of_token_ids_is_as_before(start: Start):
    lm = opened(start(*VLLM))
    (answer,) = lm.generate([GenerateRequest("Good fun.\nLabel:", choices=(" positive", " negative"))])
    best = max((" positive", " negative"), key=lambda c: truth("Good fun.\nLabel:", c)[0])
    assert (answer.text, answer.finish) == (best, "choice")


def test_the_width_that_was_found_is_begun_with_the_next_time(start: Start, tmp_path: Path):
    server, records = start(*VLLM), FolderRecords(tmp_path)
    lm = opened(server, records)
    lm.client.width.found = 23  # as after a long run
    lm.score(requests_of())
    assert opened(server, records).client.width.now == 23
    assert opened(server, records, concurrency=4).client.width.now == 4
