"""What is no log-probability: refused before it is compared, handed on or stored, and never served from a cache."""

import dataclasses
import json
import math
import multiprocessing

import numpy as np
import pytest
import torch

from iclkit.errors import ModelError
from iclkit.lm import GenerateRequest, Generation, Score, ScoreRequest, load_lm
from iclkit.lm._cache import Cache, NoCache, pack_score
from iclkit.lm._cached import cached, generation_key, score_key, score_text_key
from iclkit.lm._decode import Decoder, step_all
from iclkit.lm._load import load_torch
from iclkit.lm._verified import VerifiedLM
from iclkit.lm._vllm import VLLM
from iclkit.testing import FakeLM

NO_NUMBERS = [math.nan, math.inf, -math.inf, 3.0, 0.01]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_there_is_no_score_that_is_not_finite_or_lies_above_zero(value):
    with pytest.raises(ModelError, match="as the log-probability of 2 tokens"):
        Score(value, 2, False)
    with pytest.raises(ModelError):
        dataclasses.replace(Score(-1.0, 2, False), logprob=value)


def test_rounding_errors_of_sure_tokens_are_scores():
    assert Score(1e-6, 1, True).logprob == 1e-6
    assert Score(0.02, 40, True).logprob == 0.02
    assert Score(0.0, 0, True).tokens == 0
    assert Score(-1e5, 1, False).logprob == -1e5


class SickLM(FakeLM):
    """A server whose third answer is no number."""

    def __init__(self, value):
        super().__init__(name="sick")
        self.value = value

    def score(self, requests, on_done=None):
        out = []
        for i in range(len(requests)):
            out.append(Score(self.value if i == 2 else -1.0, 1, False))
            if on_done is not None:
                on_done([(i, out[-1])])
        return out


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("keep", [False, True])
def test_an_lm_that_gives_no_number_stores_and_hands_on_nothing_of_it(tmp_path, value, keep):
    cache = Cache(tmp_path / "c.db") if keep else NoCache()
    lm, seen = cached(SickLM(value), cache), []
    with pytest.raises(ModelError):
        lm.score([ScoreRequest("a", f" {n}") for n in range(5)], seen.extend)
    assert [i for i, _ in seen] == [0, 1]
    if keep:
        assert len(cache) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_that_breaks_while_it_works_stores_nothing_wrong(tiny_folder, tmp_path, packed):
    """NaN that no weight shows: what the arithmetic gives for some texts alone."""
    inner = load_torch(str(tiny_folder()), dtype="fp32", device="cpu", batch_tokens=8, packed=packed)
    bad = inner.codec.encode([" fox"])[0][-1]
    rows = inner.model.packed.embedding if packed else inner.model.module.get_input_embeddings().weight
    with torch.no_grad():
        rows[bad] = math.nan
    cache = Cache(tmp_path / "c.db")
    lm, good = cached(inner, cache), [ScoreRequest("the quick", " brown"), ScoreRequest("a lazy", " dog")]
    stored = lm.score(good)
    with pytest.raises(ModelError, match="gave nan as the log-probability"):
        lm.score([*good, ScoreRequest("the fox", " jumps over")])
    assert len(cache) == 2
    assert lm.score(good) == stored
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        lm.generate([GenerateRequest("the fox", 3)])
    with pytest.raises(ModelError, match="gave nan"):
        lm.generate([GenerateRequest("the fox", choices=(" jumps over", " dog is"))])
    assert len(cache) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_token_is_written_from_logits_that_are_no_numbers(value, temperature):
    writer = Decoder(None, (1, 2), GenerateRequest("", 4, temperature=temperature), ())
    logits = np.zeros(9, np.float32)
    logits[5] = value
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        step_all([writer], torch.from_numpy(logits)[None])
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        step_all([writer], torch.full((1, 9), -math.inf))
    masked = np.full(9, -np.inf, np.float32)
    masked[3] = 1.0
    assert step_all([writer], torch.from_numpy(masked)[None]) == [3]


def test_vllm_that_gives_no_number_is_refused(tiny_folder):
    from types import SimpleNamespace

    from .test_vllm import Engine

    folder = tiny_folder()
    engine = Engine(load_torch(str(folder), dtype="fp32", device="cpu"))
    door = VLLM(engine, SimpleNamespace, name="tiny", folder=folder, dtype="fp32", version="0")
    told = engine.generate

    def broken(prompts, params, use_tqdm):
        answers = told(prompts, params, use_tqdm)
        for token in answers[0].prompt_logprobs[-1].values():
            token.logprob = math.nan
        return answers

    engine.generate = broken
    with pytest.raises(ModelError, match="gave nan"):
        door.score([ScoreRequest("the quick", " fox")])


def test_a_verified_lm_takes_no_number_of_either_model_for_a_winner():
    from .test_verified import TableLM, truth

    asks = [ScoreRequest("q", f" {n}") for n in range(4)]
    for fast, exact in ((math.nan, -1.0), (-1.0, math.nan)):
        lm = VerifiedLM(TableLM(lambda _, v=fast: v), TableLM(lambda _, v=exact: v))
        with pytest.raises(ModelError):
            lm.score(asks)
    assert VerifiedLM(TableLM(truth), TableLM(truth)).score(asks)


def test_a_context_too_short_to_calibrate_on_has_every_group_verified():
    from .test_verified import TableLM, noisy, truth

    fast, exact = TableLM(noisy(0.5)), TableLM(truth)
    fast.context_size = exact.context_size = 2
    lm = VerifiedLM(fast, exact)
    asks = [ScoreRequest(f"{q}", f" {n}") for q in range(30) for n in range(2)]
    assert [s.logprob for s in lm.score(asks)] == [truth(a) for a in asks]


# -- what older versions left in a cache -------------------------------------------------------------------------------

OLD = [pack_score(v, 1, False) for v in NO_NUMBERS] + [b"", b"short", bytes(99)]


@pytest.mark.parametrize("value", OLD)
def test_an_old_entry_that_is_no_score_is_computed_again_and_replaced(tiny_folder, tmp_path, value):
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", workers=1, cache=tmp_path / "c.db")
    asks = [ScoreRequest("the quick", " brown"), ScoreRequest("the quick", " fox")]
    key = score_key(lm.fingerprint, lm.inner.encode_scores(asks)[0])
    cache = Cache(tmp_path / "c.db")
    cache.put({key: value})
    assert lm.estimate(asks).calls == 2
    first = lm.score(asks)
    assert math.isfinite(first[0].logprob)
    assert cache.get([key]) == {key: pack_score(first[0].logprob, first[0].tokens, first[0].greedy)}
    calls = lm.usage.calls
    assert lm.score(asks) == first
    assert lm.usage.calls == calls


@pytest.mark.parametrize("value", OLD)
def test_an_old_entry_of_a_server_that_is_no_score_is_asked_again(tmp_path, value):
    from .test_cache import TextLM

    inner = TextLM()
    lm = cached(inner, Cache(tmp_path / "c.db"))
    ask = ScoreRequest("a", " x")
    lm.cache.put({score_text_key(lm.fingerprint, ask): value})
    assert lm.estimate([ask]).calls == 1
    assert lm.score([ask])[0].logprob == -2.0
    assert lm.score([ask])[0].logprob == -2.0
    assert inner.asked == [ask]


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"5", b'["a"]', b'["a", "b", "c"]', b'[1, 2, "stop"]', b"\xff"])
def test_an_old_entry_that_is_no_generation_is_written_again(tmp_path, value):
    from .test_cache import TextLM

    lm = cached(TextLM(), Cache(tmp_path / "c.db"))
    ask = GenerateRequest("abc")
    lm.cache.put({generation_key(lm.fingerprint, ask.context, ask): value})
    assert lm.generate([ask]) == lm.generate([ask]) == [Generation("cba", 3, "stop")]
    assert json.loads(lm.cache.get([generation_key(lm.fingerprint, "abc", ask)]).popitem()[1]) == ["cba", 3, "stop"]


def test_an_lm_that_answers_too_few_requests_is_one_clear_error(tmp_path):
    class Lazy(SickLM):
        def score(self, requests, on_done=None):
            return [Score(-1.0, 1, False)]

    lm = cached(Lazy(0.0), Cache(tmp_path / "c.db"))
    with pytest.raises(ModelError, match="sick gave 1 answers to 2 requests"):
        lm.score([ScoreRequest("a", " x"), ScoreRequest("a", " y")])


def test_an_lm_that_reports_only_at_the_end_is_cached_all_the_same(tmp_path):
    class Quiet(SickLM):
        def score(self, requests, on_done=None):
            return super().score(requests)

    lm, seen = cached(Quiet(-1.0), Cache(tmp_path / "c.db")), []
    asks = [ScoreRequest("a", f" {n}") for n in range(4)]
    assert len(lm.score(asks, seen.extend)) == len(seen) == len(lm.cache) == 4


def _ask(folder, path, value):
    lm = load_lm(folder, dtype="fp32", device="cpu", workers=1, threads=1, cache=path)
    asks = [ScoreRequest("the quick", f" {w}") for w in ("brown", "fox", "dog")]
    for pair in lm.inner.encode_scores(asks):
        lm.cache.put({score_key(lm.fingerprint, pair): value})
    assert all(math.isfinite(s.logprob) for s in lm.score(asks))


def test_two_processes_that_find_the_same_bad_entries_both_get_scores(tiny_folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_ask, args=(str(tiny_folder()), tmp_path / "c.db", OLD[0])) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
