"""bf16-verified: the winner of every group is the winner in float32."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.lm import BaseLM, GenerateRequest, Score, ScoreRequest, load_lm
from iclkit.lm._verified import DEVIATIONS, VerifiedLM, close_candidates, group_indices, margin_errors


class TableLM(BaseLM):
    """Scores from a function of the request; counts what it was asked."""

    name, fingerprint, context_size = "table", "table", 10_000

    def __init__(self, value):
        self.value, self.asked = value, []

    def count_tokens(self, text):
        return len(text.split())

    def render_chat(self, messages):
        return "".join(m.content for m in messages)

    def score(self, requests, on_done=None):
        self.asked += requests
        return [Score(self.value(r), 1, False) for r in requests]

    def generate(self, requests, on_done=None):
        return [r.context for r in requests]


def truth(request):
    return float(np.random.default_rng(zlib.crc32(f"{request.context}|{request.continuation}".encode())).normal()) - 20


def noisy(scale):
    def value(request):
        seed = zlib.crc32(f"{request.context}|{request.continuation}|noise".encode())
        return truth(request) + scale * float(np.random.default_rng(seed).normal())

    return value


def asks(n, labels, grouped):
    return [
        ScoreRequest(f"{q} {c}" if grouped else f"{q}", f" {c}", f"{q}" if grouped else "")
        for q in range(n)
        for c in range(labels)
    ]


@pytest.mark.parametrize("grouped", [False, True], ids=["labels", "candidates"])
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.001, 0.3), n=st.integers(1, 60), labels=st.integers(2, 6))
def test_every_winner_is_the_exact_winner(grouped, scale, n, labels):
    fast, exact = TableLM(noisy(scale)), TableLM(truth)
    lm = VerifiedLM(fast, exact)
    requests = asks(n, labels, grouped)
    got = np.array([s.logprob for s in lm.score(requests)]).reshape(n, labels)
    want = np.array([truth(r) for r in requests]).reshape(n, labels)
    assert (got.argmax(1) == want.argmax(1)).all()


def test_only_close_calls_are_scored_twice():
    fast, exact = TableLM(noisy(0.005)), TableLM(truth)
    lm = VerifiedLM(fast, exact)
    lm.deviation()
    exact.asked.clear()
    requests = asks(200, 2, grouped=False)
    lm.score(requests)
    assert 0 < len(exact.asked) < 40


def test_the_bound_grows_when_the_errors_seen_are_larger_than_calibrated():
    fast, exact = TableLM(noisy(0.2)), TableLM(truth)
    lm = VerifiedLM(fast, exact)
    lm._deviation = 0.01
    requests = asks(300, 2, grouped=False)
    got = np.array([s.logprob for s in lm.score(requests)]).reshape(-1, 2)
    want = np.array([truth(r) for r in requests]).reshape(-1, 2)
    assert (got.argmax(1) == want.argmax(1)).all()
    assert len(exact.asked) > 2 * 300 * 0.3


def test_a_single_request_competes_with_nobody():
    fast, exact = TableLM(noisy(0.1)), TableLM(truth)
    lm = VerifiedLM(fast, exact)
    seen = []
    lm.score([ScoreRequest("a", " b")], seen.extend)
    assert not exact.asked
    assert [i for i, _ in seen] == [0]


def test_labels_are_verified_together_and_candidates_only_where_close():
    labels = [ScoreRequest("same", f" {i}") for i in range(3)]
    candidates = [ScoreRequest(f"{i}", " x", "q") for i in range(3)]
    fast = np.array([0.0, -0.1, -9.0])
    assert close_candidates(fast, 0.5, np.arange(3), labels) == [0, 1, 2]
    assert close_candidates(fast, 0.5, np.arange(3), candidates) == [0, 1]
    assert close_candidates(fast, 0.05, np.arange(3), candidates) == []
    assert group_indices(labels) == group_indices(candidates) == [[0, 1, 2]]


def test_gap_errors_are_differences_of_differences():
    fast, exact = np.array([1.0, 0.5, 7.0]), np.array([2.0, 1.0, np.nan])
    assert margin_errors(fast, exact, [np.arange(3)]) == pytest.approx([0.5])


def test_the_mode_loads_by_name_and_has_its_own_fingerprint(tiny_folder, tmp_path):
    folder = str(tiny_folder(initializer_range=0.1))
    lm = load_lm(folder, dtype="bf16-verified", device="cpu", cache=tmp_path / "c.db")
    exact = load_lm(folder, dtype="fp32", device="cpu", cache=False)
    fast = load_lm(folder, dtype="bf16", device="cpu", cache=False)
    assert len({lm.fingerprint, exact.fingerprint, fast.fingerprint}) == 3
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    requests = [ScoreRequest(f"the {a} {b}", f" {c}") for a in words for b in words for c in ("and", "is", "the")]
    got, want = lm.score(requests), exact.score(requests)
    table = [np.array([s.logprob for s in t]).reshape(-1, 3).argmax(1).tolist() for t in (got, want)]
    assert table[0] == table[1]
    assert lm.score(requests) == got
    assert lm.usage.requests == 2 * len(requests)
    ask = [GenerateRequest("the quick", 6), GenerateRequest("the quick", choices=(" fox", " dog"))]
    assert lm.generate(ask) == exact.generate(ask)
    assert DEVIATIONS * lm.deviation() > 0
