"""The persistent cache: complete keys, many processes, whole batches, and clear errors."""

import dataclasses
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import RunError
from iclkit.lm import GenerateRequest, Generation, Score, ScoreRequest, load_lm
from iclkit.lm._cache import Cache, cache_key, pack_score, unpack_score
from iclkit.lm._cached import CachedLM, generation_key, score_key, score_text_key
from iclkit.lm._tokens import Pair

ids = st.lists(st.integers(0, 2**31), min_size=2, max_size=6).map(tuple)
prints = st.sampled_from(["a", "ab", "a|b", "a|bf16", ""])
score_asks = st.tuples(prints, ids, st.integers(1, 5)).map(lambda t: (t[0], Pair(t[1], min(t[2], len(t[1]) - 1))))
short = st.text(alphabet='a"\\,[] \n', max_size=3)
generate_asks = st.tuples(
    prints,
    st.one_of(ids, short),
    st.builds(
        GenerateRequest,
        st.just(""),
        st.integers(0, 3),
        st.lists(short, max_size=3).map(tuple),
        st.lists(short, max_size=3).map(tuple),
        st.sampled_from([0.0, 0.1, 1.0]),
        st.integers(0, 3),
    ),
)
text_asks = st.tuples(prints, st.builds(ScoreRequest, short, short))


@settings(max_examples=500)
@given(a=score_asks, b=score_asks)
def test_scores_that_may_differ_have_different_keys(a, b):
    assert (score_key(*a) == score_key(*b)) == (a == b)


@settings(max_examples=500)
@given(a=generate_asks, b=generate_asks)
def test_generations_that_may_differ_have_different_keys(a, b):
    assert (generation_key(*a) == generation_key(*b)) == (a == b)


@settings(max_examples=500)
@given(a=text_asks, b=text_asks)
def test_scores_by_text_that_may_differ_have_different_keys(a, b):
    assert (score_text_key(*a) == score_text_key(*b)) == (a == b)


@given(a=score_asks, b=generate_asks, c=text_asks)
def test_no_score_shares_a_key_with_a_generation(a, b, c):
    assert len({score_key(*a), generation_key(*b), score_text_key(*c)}) == 3


def test_every_setting_of_a_generation_is_in_its_key():
    base = GenerateRequest("c")
    for field in dataclasses.fields(GenerateRequest):
        if field.name != "context":  # the prompt's ids stand for it
            other = {"max_tokens": 9, "stop": ("x",), "choices": ("x",), "temperature": 0.5, "seed": 1}[field.name]
            changed = dataclasses.replace(base, **{field.name: other})
            assert generation_key("f", (1, 2), base) != generation_key("f", (1, 2), changed)


@given(logprob=st.floats(allow_nan=False), tokens=st.integers(0, 2**32 - 1), greedy=st.booleans())
def test_a_packed_score_comes_back_exactly(logprob, tokens, greedy):
    assert unpack_score(pack_score(logprob, tokens, greedy)) == (logprob, tokens, greedy)


def test_what_is_stored_is_found_by_another_connection(tmp_path):
    one, two = Cache(tmp_path / "c.db"), Cache(tmp_path / "c.db")
    entries = {cache_key("k", i): b"%d" % i for i in range(2000)}
    one.put(entries)
    assert two.get([*entries, cache_key("other")]) == entries
    two.put(dict.fromkeys(entries, b"later"))
    assert one.get(entries) == entries, "the first value stays"
    assert len(two) == 2000


def _write(path, worker):
    cache = Cache(path)
    for batch in range(20):
        cache.put({cache_key(worker, batch, i): b"x" for i in range(50)})


def test_many_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path / "c.db", w)) for w in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0] * 4
    assert len(Cache(tmp_path / "c.db")) == 4 * 20 * 50


def test_a_cache_that_is_a_folder_or_no_database_or_newer_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="--no-cache"):
        Cache(tmp_path)
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at " * 40)
    with pytest.raises(RunError, match="cannot be used"):
        Cache(tmp_path / "text.db")
    Cache(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RunError, match="format 99"):
        Cache(tmp_path / "new.db")


def test_a_full_disk_is_one_clear_error_and_what_was_stored_stays(tmp_path):
    cache = Cache(tmp_path / "c.db")
    cache.put({b"k": b"v"})
    (pages,) = cache._db.execute("PRAGMA page_count").fetchone()
    cache._db.execute(f"PRAGMA max_page_count = {pages + 2}")  # to SQLite the same as a disk that is full
    with pytest.raises(RunError, match=r"database or disk is full\): free space"):
        cache.put({str(n).encode(): bytes(1000) for n in range(50)})
    assert Cache(tmp_path / "c.db").get([b"k", b"0"]) == {b"k": b"v"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="make it writable"):
            Cache(tmp_path / "c.db")
    finally:
        tmp_path.chmod(0o700)


def test_an_unwritable_home_fails_with_the_cache_and_works_without(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(RunError, match="--no-cache"):
        load_lm(str(tiny_folder()), device="cpu")
    lm = load_lm(str(tiny_folder()), device="cpu", cache=False)
    assert lm.score([ScoreRequest("the dog", " jumps")])[0].tokens >= 1


class TextLM:
    """An LM served elsewhere: no token ids, no plan."""

    name, fingerprint, context_size = "text", "text-1", 1000

    def __init__(self):
        self.asked = []

    def count_tokens(self, text):
        return len(text.split())

    def render_chat(self, messages):
        return "".join(m.content for m in messages)

    def score(self, requests, on_done=None):
        self.asked += requests
        out = [Score(-float(len(r.continuation)), 1, False) for r in requests]
        for i, s in enumerate(out):
            on_done and on_done([(i, s)])
        return out

    def generate(self, requests, on_done=None):
        self.asked += requests
        out = [Generation(r.context[::-1], 3, "stop") for r in requests]
        on_done and on_done([*enumerate(out)])
        return out


def test_an_lm_without_token_ids_is_cached_by_text(tmp_path):
    inner = TextLM()
    lm = CachedLM(inner, Cache(tmp_path / "c.db"))
    asks = [ScoreRequest("a", " x"), ScoreRequest("a", " yy")]
    assert lm.plan(asks).calls == 2
    seen = []
    assert [s.logprob for s in lm.score(asks, seen.extend)] == [-2.0, -3.0]
    assert lm.plan(asks).calls == 0
    assert [s.logprob for s in lm.score([*asks, ScoreRequest("b", " x")])] == [-2.0, -3.0, -2.0]
    assert inner.asked == [*asks, ScoreRequest("b", " x")]
    assert sorted(i for i, _ in seen) == [0, 1]
    prompts = [GenerateRequest("abc"), GenerateRequest("abc", seed=1)]
    assert lm.generate(prompts) == lm.generate(prompts) == [Generation("cba", 3, "stop")] * 2
    assert inner.asked[3:] == prompts


def test_a_second_ask_computes_nothing_and_says_so(tiny_folder, tmp_path):
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", cache=tmp_path / "c.db")
    asks = [
        ScoreRequest(f"Review: {w} . Sentiment:", label) for w in ("good", "thin") for label in (" positive", " bad")
    ]
    prompts = [GenerateRequest("the quick", 5), GenerateRequest("the", choices=(" dog", " fox"))]
    first, text = lm.score(asks), lm.generate(prompts)
    computed = lm.spent.tokens_computed
    seen = []
    assert lm.score(asks, seen.extend) == first
    assert lm.generate(prompts) == text
    assert dict(seen) == dict(enumerate(first))
    assert lm.spent.tokens_computed == computed
    assert lm.plan(asks).calls == 0
    assert lm.plan(asks).tokens_cached == lm.plan(asks).tokens_asked > 0


KILLED = """
import sys, time
from iclkit.lm import ScoreRequest, load_lm
folder, path, slow = sys.argv[1:]
lm = load_lm(folder, dtype="bf16", device="cpu", threads=1, batch_tokens=64, cache=__import__("pathlib").Path(path))
words = "quick brown fox jumps over lazy dog film".split()
asks = [ScoreRequest(f"Review: {words[i % 8]} {words[i // 8]} {'the ' * (i % 5)} . Sentiment:", l)
        for i in range(60) for l in (" positive", " negative")]
for score in lm.score(asks, lambda done: (print("done", len(done), flush=True), time.sleep(float(slow)))):
    print("score", score.logprob.hex(), score.tokens, score.greedy)
print("computed", lm.spent.calls)
"""


def test_a_killed_run_started_again_gives_bit_equal_scores_and_repeats_no_batch(tiny_folder, tmp_path):
    def run(path, slow="0"):
        return [sys.executable, "-c", KILLED, str(tiny_folder()), str(path), slow]

    def parts(output, word):
        return [line.split()[1:] for line in output.splitlines() if line.startswith(word + " ")]

    whole = subprocess.run(run(tmp_path / "whole.db"), capture_output=True, text=True, check=True).stdout
    broken = tmp_path / "broken.db"
    process = subprocess.Popen(run(broken, "0.3"), stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline().startswith("done")
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    stored = len(Cache(broken))
    assert 0 < stored < 120
    again = subprocess.run(run(broken), capture_output=True, text=True, check=True).stdout
    assert parts(again, "score") == parts(whole, "score")
    assert int(parts(again, "computed")[0][0]) == 120 - stored
