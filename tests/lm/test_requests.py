"""One request that can never be answered: it is named by its place in the caller's list, whatever stands between."""

import multiprocessing

import pytest

from iclkit.errors import RequestError, UnknownName
from iclkit.lm import BaseLM, GenerateRequest, Generation, Score, ScoreRequest, load_lm
from iclkit.lm._cache import Cache
from iclkit.lm._cached import cached
from iclkit.lm._verified import VerifiedLM

SHORT, LONG = "the dog", "quick " * 600


@pytest.fixture(params=[False, True], ids=["no cache", "cache"])
def lm(request, tiny_folder, tmp_path):
    cache = tmp_path / "c.db" if request.param else False
    return load_lm(str(tiny_folder()), dtype="fp32", device="cpu", cache=cache)


def test_a_score_that_does_not_fit_is_named_by_its_place(lm):
    asks = [ScoreRequest(SHORT, " jumps"), ScoreRequest(SHORT, " over"), ScoreRequest(LONG, " fox")]
    lm.score(asks[:1])
    with pytest.raises(RequestError, match="reads 512") as caught:
        lm.score(asks)
    assert caught.value.index == 2
    assert len(lm.score(asks[:2])) == 2


def test_a_generation_that_does_not_fit_is_named_by_its_place(lm):
    asks = [GenerateRequest(SHORT, 2), GenerateRequest(SHORT, choices=(" fox", " dog")), GenerateRequest(SHORT, 600)]
    with pytest.raises(RequestError, match="reads 512") as caught:
        lm.generate(asks)
    assert caught.value.index == 2
    assert len(lm.generate(asks[:2])) == 2


def test_choices_that_do_not_fit_name_the_request_and_not_the_choice(lm):
    fits = GenerateRequest(SHORT, choices=(" fox", " dog"))
    with pytest.raises(RequestError) as caught:
        lm.generate([GenerateRequest(SHORT, 2), fits, fits, GenerateRequest(SHORT, choices=(" fox", LONG))])
    assert caught.value.index == 3


def test_an_empty_continuation_costs_its_request_alone(lm):
    with pytest.raises(RequestError, match="has no token of its own") as caught:
        lm.score([ScoreRequest(SHORT, " jumps"), ScoreRequest(SHORT, "")])
    assert caught.value.index == 1


class PickyLM(BaseLM):
    """Answers texts one by one and never those that hold "bad"."""

    name, fingerprint, context_size = "picky", "picky-1", 1000

    def count_tokens(self, text):
        return len(text)

    def render_chat(self, messages):
        return "".join(m.content for m in messages)

    def _each(self, requests, answer, on_done):
        for i, request in enumerate(requests):
            if "bad" in request.context:
                raise RequestError(i, "filtered")
            on_done([(i, answer)])
        return [answer] * len(requests)

    def score(self, requests, on_done=None):
        return self._each(requests, Score(-1.0, 1, False), on_done or (lambda done: None))

    def generate(self, requests, on_done=None):
        return self._each(requests, Generation("x", 1, "stop"), on_done or (lambda done: None))


def test_the_cache_keeps_what_came_before_the_bad_request_and_numbers_it_as_it_was_asked(tmp_path):
    lm = cached(PickyLM(), Cache(tmp_path / "c.db"))
    texts = ["a", "b", "c", "bad", "d"]
    lm.score([ScoreRequest("a", " x")])
    for method, make in ((lm.score, lambda t: ScoreRequest(t, " x")), (lm.generate, GenerateRequest)):
        seen = []
        with pytest.raises(RequestError, match="filtered") as caught:
            method([make(t) for t in texts], seen.extend)
        assert caught.value.index == 3
        assert sorted(i for i, _ in seen) == [0, 1, 2]
        assert len(method([make(t) for t in texts if t != "bad"])) == 4


def test_a_verified_lm_numbers_requests_as_they_were_asked():
    lm = VerifiedLM(PickyLM(), PickyLM())
    with pytest.raises(RequestError) as caught:
        lm.generate([GenerateRequest("a", choices=("x", "y")), GenerateRequest("b"), GenerateRequest("bad")])
    assert caught.value.index == 2
    with pytest.raises(RequestError) as caught:
        lm.generate([GenerateRequest("a"), GenerateRequest("bad", choices=("x", "y"))])
    assert caught.value.index == 1


@pytest.mark.parametrize("error", [RequestError(3, "too long"), UnknownName("order", "rnd", ["random"])])
def test_an_error_crosses_process_borders_whole(error):
    here, there = multiprocessing.Pipe()
    here.send(error)
    again = there.recv()
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
