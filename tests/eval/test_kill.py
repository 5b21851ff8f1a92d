"""SIGKILL at random moments, with real processes: the same rows in the end, and no finished LM call made twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from .worlds import rows_file

ROOT = Path(__file__).resolve().parents[2]

# An LM whose cache is a file that also is the log of its finished calls. It is slow enough to be killed in the middle.
WORKER = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from worlds import classification
from iclkit.eval import evaluate
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
        assert process.stdout is not None
        process.stdout.readline()
        start = time.monotonic()
        assert process.wait(60) == 0
        needed = time.monotonic() - start
    rng = random.Random(time.time_ns())
    killed = 0
    for _ in range(3):
        with worker(broken) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.3) * needed)
            process.send_signal(signal.SIGKILL)
            killed += process.wait(10) == -signal.SIGKILL
    assert killed == 3
    with worker(broken) as process:
        assert process.wait(60) == 0
    assert rows_file(broken / "runs") == rows_file(whole / "runs")
    calls = [line for line in (broken / "log").read_text().splitlines(True) if line.endswith("\n")]
    assert len(calls) == len(set(calls))
    assert sorted(calls) == sorted((whole / "log").read_text().splitlines(True))
