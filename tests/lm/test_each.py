"""A request that can never be answered costs its own row and no other."""

from __future__ import annotations

import pytest

from iclkit.errors import ModelError, RequestError
from iclkit.lm import ScoreRequest, ask_each, ranks_only
from iclkit.testing import FakeLM


class Refusing(FakeLM):
    """Refuses contexts that hold a word; answers one by one, so that what came before a refusal is done."""

    def __init__(self, word="bad", error=RequestError):
        super().__init__()
        self.word, self.error = word, error

    def score(self, requests, on_done=None):
        for i, r in enumerate(requests):
            if self.word in r.context:
                raise self.error(i, f"{r.context!r} is filtered") if self.error is RequestError else self.error("away")
            answer = super().score([r])
            if on_done:
                on_done([(i, answer[0])])
        return [self._score(r.context, r.continuation) for r in requests]


def asked(*contexts):
    return [ScoreRequest(c, label) for c in contexts for label in (" a", " b")]


def test_all_but_the_refused_are_answered_once():
    lm = Refusing()
    requests = asked("one", "bad two", "three", "bad four", "five")
    found, failed = ask_each(lm.score, requests, [n // 2 for n in range(10)])
    assert found == {n: FakeLM()._score(requests[n].context, requests[n].continuation) for n in (0, 1, 4, 5, 8, 9)}
    assert {n: str(e) for n, e in failed.items()} == {1: "'bad two' is filtered", 3: "'bad four' is filtered"}
    assert len(lm.scored) == 6


def test_a_call_without_refusals_is_one_call():
    lm = FakeLM()
    found, failed = ask_each(lm.score, asked("x", "y"))
    assert ([*found], failed, len(lm.scored)) == ([0, 1, 2, 3], {}, 4)
    assert ask_each(lm.score, []) == ({}, {})


def test_other_errors_stop():
    with pytest.raises(ModelError, match="away"):
        ask_each(Refusing(error=ModelError).score, asked("bad"))


def test_an_lm_that_compares_what_it_wrote_only_ranks():
    lm = FakeLM()
    assert not ranks_only(lm)
    lm.scoring = "generate"
    assert ranks_only(lm)
