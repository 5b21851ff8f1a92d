"""SIGKILL at random moments, with real processes: the same rows in the end, and no finished LM call made twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .worlds import rows_file

ROOT = Path(__file__).resolve().parents[2]

# An LM whose cache is a file that also is the log of its finished calls. It is slow enough to be killed in the middle.
WORKER = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from worlds import classification
from iclkit import evaluate
from iclkit.lm import Score
from iclkit.testing import FakeLM, HashEmbedder

class LoggedLM(FakeLM):
    def score(self, requests, on_done=None):
        log = open({log!r}, "a+", encoding="utf-8")
        log.seek(0)
        known = dict(line.rstrip("\\n").split("\\t") for line in log.read().splitlines(True) if line.endswith("\\n"))
        keys = [repr((r.context, r.continuation)) for r in requests]
        missing = [n for n, key in enumerate(keys) if key not in known]
        for at in range(0, len(missing), 12):
            time.sleep(0.004)
            for n in missing[at : at + 12]:
                known[keys[n]] = repr(self._score(requests[n].context, requests[n].continuation).logprob)
            log.write("".join(f"{{keys[n]}}\\t{{known[keys[n]]}}\\n" for n in missing[at : at + 12]))
            log.flush()
        return [Score(float(known[key]), 1, False) for key in keys]

task = classification(test=600)
print("ready", flush=True)
for selector in ("random", "knn"):
    evaluate(task, selector, LoggedLM(), k=3, embedder=HashEmbedder(), out={out!r})
"""


def worker(folder: Path) -> subprocess.Popen[str]:
    tests, log, out = str(Path(__file__).parent), str(folder / "log"), str(folder / "runs")
    code = WORKER.format(root=str(ROOT), tests=tests, log=log, out=out)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_runs_end_in_the_same_rows_and_repeat_no_finished_call(tmp_path, home):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with worker(whole) as process:
        assert process.wait(60) == 0
    size = (whole / "log").stat().st_size
    rng = random.Random(time.time_ns())
    for moment in sorted(rng.uniform(0.02, 0.95) * size for _ in range(3)):
        with worker(broken) as process:
            while not (broken / "log").exists() or (broken / "log").stat().st_size < moment:
                assert process.poll() is None
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            assert process.wait(10) == -signal.SIGKILL
    with worker(broken) as process:
        assert process.wait(60) == 0
    assert rows_file(broken / "runs") == rows_file(whole / "runs")
    calls = [line for line in (broken / "log").read_text().splitlines(True) if line.endswith("\n")]
    assert len(calls) == len(set(calls))
    assert sorted(calls) == sorted((whole / "log").read_text().splitlines(True))


REAL = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from iclkit.datasets import load_task
from iclkit import evaluate
from iclkit.eval import make_bench
from iclkit.lm import load_lm
lm = load_lm("smollm2-135m", cache=Path({cache!r}))
bench = make_bench(load_task("support"), limit=130)
print("ready", flush=True)
for seed in (0, 1):
    evaluate(bench, "random", lm, k=2, seed=seed, out={out!r})
"""


@pytest.mark.models
@pytest.mark.slow
def test_a_real_model_killed_three_times_gives_the_same_rows_from_a_cache_written_once(tmp_path, smollm2_path):
    def start(name: str) -> subprocess.Popen[str]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        code = REAL.format(root=str(ROOT), cache=str(folder / "cache.db"), out=str(folder / "runs"))
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def ready(process: subprocess.Popen[str]) -> float:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return time.monotonic()

    with start("whole") as process:
        begun = ready(process)
        assert process.wait(600) == 0
        needed = time.monotonic() - begun
    rng = random.Random(time.time_ns())
    for _ in range(3):
        with start("broken") as process:
            ready(process)
            time.sleep(rng.uniform(0.1, 0.35) * needed)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    with start("broken") as process:
        assert process.wait(600) == 0
    assert rows_file(tmp_path / "broken" / "runs") == rows_file(tmp_path / "whole" / "runs")
    # every call of the unbroken run is in the cache once, and no other
    keys = [read_keys(tmp_path / name / "cache.db") for name in ("whole", "broken")]
    assert keys[0] == keys[1]


def read_keys(file: Path) -> list[bytes]:
    import sqlite3

    with sqlite3.connect(file) as cache:
        return sorted(key for (key,) in cache.execute("SELECT key FROM entry"))
