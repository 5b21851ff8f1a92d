"""Several processes on one plan give what one gives, and survive the death of a worker."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from iclkit.errors import UsageError
from iclkit.lm import GenerateRequest, _load
from iclkit.lm._load import load_torch

from .test_score import branching_pairs, scores_of


@pytest.fixture
def pair_of_lms(tiny_folder, monkeypatch):
    monkeypatch.setattr(_load, "MIN_TOKENS_FOR_WORKERS", 0)
    settings = {"dtype": "bf16", "threads": 1, "batch_tokens": 64}
    alone = load_torch(str(tiny_folder()), device="cpu", **settings)
    many = load_torch(str(tiny_folder()), device="cpu,cpu", workers=None, **settings)
    yield alone, many
    many.close()


def test_a_process_on_each_device_gives_bit_equal_scores_and_generations(pair_of_lms):
    alone, many = pair_of_lms
    pairs = branching_pairs(n=60, vocabulary=alone.model.module.config.vocab_size)
    seen = []
    scores = dict(many.score_encoded(pairs, seen.extend))
    assert [scores[i].logprob for i in range(len(pairs))] == scores_of(alone, pairs)
    assert dict(seen) == scores
    assert many.engine.workers, "the case must start a worker"
    assert (many.usage.calls, many.usage.requests) == (alone.usage.calls, alone.usage.requests)
    asks = [GenerateRequest("the quick " * (i % 9 + 1), 5 + i % 4) for i in range(40)]
    assert many.generate(asks) == alone.generate(asks)


def test_the_death_of_a_worker_loses_nothing(pair_of_lms):
    alone, many = pair_of_lms
    pairs = branching_pairs(n=60, vocabulary=alone.model.module.config.vocab_size)
    stop = threading.Event()

    def killer():
        killed = 0
        while not stop.is_set() and not killed:
            for worker in list(many.engine.workers.values()):
                if worker.process.poll() is None:
                    os.kill(worker.process.pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        assert scores_of(many, pairs) == scores_of(alone, pairs)
    finally:
        stop.set()
        thread.join()


def test_counts_of_workers_and_threads_must_be_positive(tiny_folder):
    with pytest.raises(UsageError, match="workers 0"):
        load_torch(str(tiny_folder()), workers=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "cpu,cuda:99"}, "'cuda:99' is not here"),
        ({"device": "cpu,meta"}, "must be of one kind"),
        ({"device": "cpu,gpu1"}, "device is 'gpu1'"),
        ({"device": "cpu", "gpus": 1}, "give one of the two"),
        ({"gpus": 99}, r"gpus is 99: torch sees \d+ GPUs here"),
    ],
)
def test_devices_that_cannot_be_are_one_clear_line(settings, says, tiny_folder):
    with pytest.raises(UsageError, match=says):
        load_torch(str(tiny_folder()), **settings)


def test_each_device_has_a_worker_and_more_workers_go_round(tiny_folder):
    lm = load_torch(str(tiny_folder()), device="cpu,cpu", workers=3, threads=1)
    assert [s["device"] for s in lm.engine._settings] == ["cpu", "cpu"]
    assert load_torch(str(tiny_folder()), device="cpu, cpu", workers=1, threads=1).engine.notes == ()


def test_a_script_without_a_main_guard_is_not_run_again_by_its_workers(tiny_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from iclkit.lm import ScoreRequest, _load, load_lm\n"
        "_load.MIN_TOKENS_FOR_WORKERS = 0\n"
        "print('started')\n"
        f"lm = load_lm({str(tiny_folder())!r}, device='cpu', workers=2, threads=1, batch_tokens=8, cache=False)\n"
        "scores = lm.score([ScoreRequest('the quick ' * n + 'the', ' quick') for n in range(9)])\n"
        "assert lm.inner.engine.workers\n"
        "print(len(scores))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["started", "9"]), done.stderr
