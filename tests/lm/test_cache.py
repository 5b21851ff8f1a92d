"""The persistent cache: complete keys, many processes, whole batches, and clear errors."""

import dataclasses
import errno
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclkit.errors import RunError
from iclkit.lm import GenerateRequest, Generation, Score, ScoreRequest, load_lm
from iclkit.lm._cache import Cache, cache_key, pack_score, unpack_score
from iclkit.lm._cached import cached, generation_key, score_key, score_text_key
from iclkit.lm._tokens import TokenPair

ids = st.lists(st.integers(0, 2**31), min_size=2, max_size=6).map(tuple)
prints = st.sampled_from(["a", "ab", "a|b", "a|bf16", ""])
score_asks = st.tuples(prints, ids, st.integers(1, 5)).map(lambda t: (t[0], TokenPair(t[1], min(t[2], len(t[1]) - 1))))
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
    (pages,) = cache._db.read("PRAGMA page_count")[0]
    cache._db.read(f"PRAGMA max_page_count = {pages + 2}")  # to SQLite the same as a disk that is full
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


def modes(folder):
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}


def test_the_cache_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        cache = Cache(tmp_path / "c.db")
        cache.put({b"k": b"v"})
        assert {m & 0o077 for m in modes(tmp_path).values()} == {0}
        assert "c.db-wal" in modes(tmp_path)
    finally:
        os.umask(before)


def test_an_older_cache_that_strangers_may_read_is_taken_from_them_and_a_group_keeps_it(tmp_path):
    Cache(tmp_path / "c.db").close()
    (tmp_path / "c.db").chmod(0o664)
    Cache(tmp_path / "c.db").put({b"k": b"v"})
    assert modes(tmp_path)["c.db"] == 0o660


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A file system that nothing can be written to, as the kernel would tell it; the folder of the cache."""
    opened, made = os.open, Path.mkdir

    def refuse(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *rest, **more)

    def refuse_folder(self, *args, **more):
        if not self.exists():
            raise OSError(errno.EROFS, "Read-only file system")
        made(self, *args, **more)

    def start():
        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse_folder)
        return tmp_path

    return start


def test_on_a_read_only_disk_what_is_cached_is_served_and_the_rest_computed_with_a_note(
    tiny_folder, tmp_path, monkeypatch, read_only
):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path))
    asks = [ScoreRequest("the quick", " brown"), ScoreRequest("the quick", " fox")]
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", workers=1)
    assert lm.notes == ()
    first = lm.score(asks[:1])
    lm.cache.close()
    read_only()
    lm = load_lm(str(tiny_folder()), dtype="fp32", device="cpu", workers=1)
    (note,) = lm.notes
    assert "lm-cache.db cannot be written: what is computed now is not kept" in note
    assert lm.score(asks)[:1] == first
    assert (lm.usage.calls, lm.usage.tokens_cached > 0) == (1, True)
    assert len(lm.cache) == 1


@pytest.mark.parametrize("home", ["", "not/yet/made"])
def test_on_a_read_only_disk_without_a_cache_lms_work_with_a_note(tiny_folder, tmp_path, monkeypatch, read_only, home):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path / home))
    folder = str(tiny_folder())
    read_only()
    lm = load_lm(folder, dtype="fp32", device="cpu", workers=1)
    assert "cannot be written" in lm.notes[0]
    asks = [ScoreRequest("the quick", " brown")]
    assert lm.score(asks) == lm.score(asks)
    assert lm.usage.calls == 2


def test_a_cache_asked_for_by_name_must_be_writable(tiny_folder, tmp_path, read_only):
    with pytest.raises(RunError, match=r"Read-only file system\): free space or make it writable"):
        load_lm(str(tiny_folder()), device="cpu", cache=read_only() / "c.db")


def test_a_cache_on_a_medium_where_no_lock_file_can_be_made_is_read(tmp_path, monkeypatch):
    written = Cache(tmp_path / "c.db")
    written.put({b"k": b"v"})
    written.close()  # what stands in the log goes into the file
    connect = sqlite3.connect

    class NoLocks(sqlite3.Connection):
        def execute(self, *args):
            if not self.immutable:
                raise sqlite3.OperationalError("unable to open database file")
            return super().execute(*args)

    def open_there(address, **settings):
        db = connect(address, factory=NoLocks, **settings)
        db.immutable = "immutable=1" in address
        return db

    for log in tmp_path.glob("c.db-*"):
        log.unlink()
    monkeypatch.setattr(sqlite3, "connect", open_there)
    assert Cache(tmp_path / "c.db", read_only=True).get([b"k"]) == {b"k": b"v"}
    (tmp_path / "c.db-wal").write_bytes(b"what another process is writing")
    with pytest.raises(RunError, match="unable to open"):
        Cache(tmp_path / "c.db", read_only=True)


@pytest.mark.parametrize("at", [0, 100, 4096, 9000])
def test_a_damaged_cache_is_one_line_that_says_to_move_it_away(tmp_path, at):
    cache = Cache(tmp_path / "c.db")
    keys = [cache_key(n) for n in range(500)]
    cache.put(dict.fromkeys(keys, bytes(100)))
    cache.close()
    data = bytearray((tmp_path / "c.db").read_bytes())
    data[at : at + 3000] = b"\xa5" * 3000
    (tmp_path / "c.db").write_bytes(data)
    with pytest.raises(RunError, match="move the file away to begin a new one, or pass --no-cache") as caught:
        Cache(tmp_path / "c.db").get(keys)
    assert "\n" not in str(caught.value)


def test_a_cache_cut_short_is_one_line(tmp_path):
    cache = Cache(tmp_path / "c.db")
    keys = [cache_key(n) for n in range(500)]
    cache.put(dict.fromkeys(keys, bytes(100)))
    cache.close()
    data = (tmp_path / "c.db").read_bytes()
    (tmp_path / "c.db").write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError, match="move the file away"):
        Cache(tmp_path / "c.db").get(keys)


class FailingRollBack(sqlite3.Connection):
    """A disk so full that SQLite has rolled back by itself, or cannot."""

    def execute(self, statement, *rest):
        if statement in ("COMMIT", "ROLLBACK"):
            text = "database or disk is full" if statement == "COMMIT" else "cannot rollback - no transaction is active"
            raise sqlite3.OperationalError(text)
        return super().execute(statement, *rest)


def test_a_full_disk_is_named_and_not_the_roll_back_that_fails_after_it(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=FailingRollBack, **k))
    with pytest.raises(RunError, match=r"database or disk is full\): free space"):
        Cache(tmp_path / "c.db")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_from_the_start_is_one_line(tmp_path):
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code = limit + (
        "from pathlib import Path; from iclkit.lm._cache import Cache; from iclkit.errors import RunError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: Cache(Path(sys.argv[1])).put({bytes([n]): bytes(3000) for n in range(40)})\n"
        "except RunError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "c.db"], capture_output=True, text=True)
    assert done.stderr == ""
    assert "rollback" not in done.stdout
    assert "free space" in done.stdout


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
    lm = cached(inner, Cache(tmp_path / "c.db"))
    asks = [ScoreRequest("a", " x"), ScoreRequest("a", " yy")]
    assert lm.estimate(asks).calls == 2
    seen = []
    assert [s.logprob for s in lm.score(asks, seen.extend)] == [-2.0, -3.0]
    assert lm.estimate(asks).calls == 0
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
    computed = lm.usage.tokens_computed
    seen = []
    assert lm.score(asks, seen.extend) == first
    assert lm.generate(prompts) == text
    assert dict(seen) == dict(enumerate(first))
    assert lm.usage.tokens_computed == computed
    assert lm.estimate(asks).calls == 0
    assert lm.estimate(asks).tokens_cached == lm.estimate(asks).tokens_asked > 0


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
print("computed", lm.usage.calls)
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
