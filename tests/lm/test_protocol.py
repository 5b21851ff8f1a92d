"""Every LM has the whole protocol: usage, notes, shape, an estimate and a dry run; a foreign object is completed."""

from __future__ import annotations

import pytest

from iclkit import evaluate
from iclkit.errors import RequestError, UsageError
from iclkit.lm import LM, CostEstimate, GenerateRequest, Generation, Score, ScoreRequest, Usage, as_lm, ranks_only
from iclkit.lm._cache import Cache
from iclkit.lm._cached import CachedTextLM, CachedTokenLM, cached
from iclkit.lm._load import load_torch
from iclkit.lm._verified import VerifiedLM
from iclkit.testing import FakeLM

from ..eval.worlds import classification

SCORES = [ScoreRequest(c, w) for c in ("the quick brown", "the quick") for w in (" fox", " dog jumps")]
PROMPTS = [GenerateRequest("the quick brown fox", 6), GenerateRequest("the quick", 4)]
CHOICE = GenerateRequest("the lazy", choices=(" dog", " fox"))


class Foreign:
    """The least that somebody may bring along."""

    name, fingerprint, context_size = "foreign", "foreign-1", 4096

    def count_tokens(self, text):
        return len(text.split())

    def render_chat(self, messages):
        return "".join(m.content for m in messages)

    def score(self, requests, on_done=None):
        return [Score(-float(len(r.continuation)), 1, False) for r in requests]

    def generate(self, requests, on_done=None):
        return [Generation("words", 1, "stop") for _ in requests]


class ForeignServer(Foreign):
    scoring, notes = "generate", ("its answers are ranked",)


@pytest.fixture
def torch_lm(tiny_folder):
    return load_torch(str(tiny_folder()), dtype="fp32", device="cpu", batch_tokens=32)


@pytest.fixture(params=["fake", "foreign", "torch", "cached text", "cached tokens", "verified"])
def lm(request, torch_lm, tmp_path):
    return {
        "fake": FakeLM,
        "foreign": lambda: as_lm(Foreign()),
        "torch": lambda: torch_lm,
        "cached text": lambda: cached(FakeLM(), Cache(tmp_path / "c.db")),
        "cached tokens": lambda: cached(torch_lm, Cache(tmp_path / "c.db")),
        "verified": lambda: VerifiedLM(torch_lm, torch_lm),
    }[request.param]()


def test_every_lm_has_every_member_of_the_protocol(lm):
    assert isinstance(lm, LM)
    assert as_lm(lm) is lm
    assert isinstance(lm.usage, Usage)
    assert isinstance(lm.notes, tuple)
    assert isinstance(lm.estimate(SCORES), CostEstimate)
    assert lm.scoring == "logits"


def test_an_estimate_computes_nothing_and_counts_what_is_then_computed(lm):
    before = lm.usage
    estimate = lm.estimate(SCORES)
    assert lm.usage == before
    assert (estimate.requests, estimate.prompts, estimate.calls) == (4, 2, 4)
    lm.score(SCORES)
    done = lm.usage - before
    assert done.requests == 4
    if isinstance(lm, VerifiedLM):  # what it reads twice, it knows only then
        assert done.calls >= estimate.calls
        return
    assert done.calls == estimate.calls
    assert done.tokens_computed in (estimate.tokens_computed, 0)  # a foreign LM's tokens are not counted


def test_what_the_cache_knows_is_not_estimated_again(torch_lm, tmp_path):
    for inner, kind in ((torch_lm, CachedTokenLM), (FakeLM(), CachedTextLM)):
        lm = cached(inner, Cache(tmp_path / f"{kind.__name__}.db"))
        assert type(lm) is kind
        asked = [*SCORES, *PROMPTS, CHOICE]
        first = lm.estimate(asked)
        assert (first.requests, first.tokens_cached, first.calls > 6) == (7, 0, True)
        assert first.tokens_generated == 10
        lm.score(SCORES)
        lm.generate([*PROMPTS, CHOICE])
        again = lm.estimate(asked)
        assert (again.requests, again.calls, again.tokens_computed, again.tokens_generated) == (7, 0, 0, 0)
        assert again.tokens_cached == again.tokens_asked > 0
        assert again.seconds == 0


def test_tokens_of_prompts_are_estimated_after_sharing_as_they_are_computed(torch_lm):
    shared = "the quick brown fox jumps over the lazy dog and the film is a joy to watch"
    prompts = [GenerateRequest(f"{shared} {w}", 1) for w in ("fox", "dog", "plot", "story")]
    estimate = torch_lm.estimate(prompts)
    torch_lm.generate(prompts)
    assert estimate.tokens_computed == torch_lm.usage.tokens_computed < estimate.tokens_asked


def test_an_estimate_refuses_what_the_lm_would_by_the_number_in_the_list(torch_lm):
    with pytest.raises(RequestError) as caught:
        torch_lm.estimate([*PROMPTS, SCORES[0], GenerateRequest("the quick " * 400, 4), SCORES[1]])
    assert caught.value.index == 3


def test_a_dry_run_counts_asks_nothing_and_answers_in_order(lm):
    before, dry = lm.usage, lm.dry_run()
    seen = []
    assert len(dry.score(SCORES, seen.extend)) == len(seen) == 4
    assert [g.text for g in dry.generate([*PROMPTS, CHOICE])] == ["", "", " dog"]
    assert lm.usage == before
    assert (dry.cost.requests, dry.usage.requests) == (7, 7)
    assert dry.cost == lm.estimate(SCORES) + lm.estimate([*PROMPTS, CHOICE])
    assert (dry.name, dry.fingerprint, dry.context_size) == (lm.name, lm.fingerprint, lm.context_size)
    assert isinstance(dry, LM)
    assert dry.dry_run().cost == CostEstimate()


def test_usage_is_subtractable_and_adds_up():
    first, second = Usage(3, 2, 30, 20, 10, 5, 0.5), Usage(1, 1, 8, 8, 0, 2, 0.25)
    assert (first + second) - first == second
    assert first + Usage() == first


def test_seconds_of_a_sum_are_unknown_where_one_part_is():
    assert (CostEstimate(seconds=2.0) + CostEstimate(seconds=1.5)).seconds == 3.5
    assert (CostEstimate(seconds=2.0) + CostEstimate(seconds=None)).seconds is None


def test_a_foreign_lm_is_completed_once_and_used_as_it_is():
    lm = as_lm(Foreign())
    assert isinstance(lm, LM)
    assert [s.logprob for s in lm.score(SCORES[:2])] == [-4.0, -10.0]
    assert (lm.usage.requests, lm.notes, lm.shape, ranks_only(lm)) == (2, (), None, False)
    server = as_lm(ForeignServer())
    assert (server.notes, ranks_only(server)) == (("its answers are ranked",), True)


def test_a_foreign_lm_can_be_evaluated():
    run = evaluate(classification(test=9), "random", Foreign(), k=2)
    assert len(run.rows) == 9
    assert run.usage["requests"] == 9 * 3


def test_an_object_that_is_no_lm_is_refused_by_what_it_lacks():
    class Half:
        name, fingerprint, context_size = "half", "half-1", 100

        def score(self, requests, on_done=None):
            return []

    with pytest.raises(UsageError, match="Half is no language model: it lacks count_tokens, render_chat, generate"):
        as_lm(Half())
