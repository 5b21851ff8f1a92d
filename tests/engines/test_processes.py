"""Jobs in worker processes: each is answered once, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iclkit.engines import LocalEngine, ProcessEngine
from iclkit.errors import DataError

WORK = """
import os, signal, time
from pathlib import Path
from iclkit.errors import DataError

def load(folder, words="", broken=False, mortal=False, wrong=(), slow=0.0):
    print(words)
    if broken:
        raise ModuleNotFoundError("no such thing here")

    def compute(job):
        time.sleep(slow)
        if mortal and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(folder) / "answered").touch()
        if job in wrong:
            raise DataError(f"job {job} is bad")
        if job == 1300:
            raise ValueError("unlucky here")
        return job * job, os.getpid()

    return compute
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """``engine(**settings)``: two workers, and a process of its own that waits until one of them has answered."""
    (tmp_path / "work_of_tests.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(wait=True, min_size=0, **settings):
        def here(job):
            end = time.monotonic() + 120
            while wait and not (tmp_path / "answered").exists():
                assert time.monotonic() < end, "no worker has answered"
                time.sleep(0.01)
            return job * job, os.getpid()

        settings = {"folder": str(tmp_path), **settings}
        made.append(
            ProcessEngine(here, "work_of_tests:load", [settings, settings], size=lambda job: 10, min_size=min_size)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_every_job_is_answered_once_by_one_process_or_another(engine):
    results = dict(engine().run(range(40)))
    assert {n: value for n, (value, _) in results.items()} == {n: n * n for n in range(40)}
    assert len({process for _, process in results.values()}) > 1


def test_a_killed_worker_loses_nothing(engine, tmp_path):
    one = engine(mortal=True)
    assert sorted((n, value) for n, (value, _) in one.run(range(40))) == [(n, n * n) for n in range(40)]
    assert (tmp_path / "died").exists()
    assert one.notes == ()


def test_what_a_worker_prints_does_not_come_between_its_answers(engine, capfd):
    assert len(dict(engine(words="hello from the worker").run(range(8)))) == 8
    assert "hello" not in capfd.readouterr().out


def test_workers_that_cannot_load_are_noted_and_the_work_is_done_here(engine):
    one = engine(wait=False, broken=True)
    assert {process for _, (_, process) in one.run(range(200))} == {os.getpid()}
    assert len(dict(one.run(range(3)))) == 3
    assert all("cannot be used (ModuleNotFoundError: no such thing here)" in note for note in one.notes)


def test_an_error_of_a_job_ends_the_run_and_the_engine_goes_on(engine):
    one = engine(wrong=(0, 1))
    with pytest.raises(DataError, match=r"job \d is bad"):
        dict(one.run([1, 0, 1, 0, 1, 0]))
    assert len(dict(one.run(range(2, 9)))) == 7


def test_a_job_that_breaks_a_worker_is_done_here(engine):
    one = engine()
    assert sorted(value for _, (value, _) in one.run([2, 3, 1300, 4, 1300, 5])) == [4, 9, 16, 25, 1690000, 1690000]


def test_a_caller_that_stops_early_leaves_no_answer_behind(engine):
    one = engine()
    running = one.run(range(50))
    next(running)
    running.close()
    assert {n: value for n, (value, _) in one.run(range(100, 120))} == {n: (100 + n) ** 2 for n in range(20)}


def test_little_work_starts_no_worker(engine):
    one = engine(wait=False, min_size=1000)
    assert len(dict(one.run(range(50)))) == 50
    assert not one.workers


def test_a_closed_engine_starts_its_workers_again(engine):
    one = engine()
    list(one.run(range(20)))
    first = {worker.process.pid for worker in one.workers.values()}
    one.close()
    assert not one.workers
    list(one.run(range(20)))
    assert first.isdisjoint(worker.process.pid for worker in one.workers.values())


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "work_of_tests.py").write_text(WORK)
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from iclkit.engines import ProcessEngine\n"
        f"settings = {{'folder': {str(tmp_path)!r}, 'slow': 0.05}}\n"
        "engine = ProcessEngine(lambda job: time.sleep(0.2), 'work_of_tests:load', [settings],\n"
        "                       size=lambda job: 1, min_size=0)\n"
        "for number, _ in engine.run(range(1000)):\n"
        "    for worker in engine.workers.values():\n"
        "        print(worker.process.pid, flush=True)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < end, "the worker goes on without its parent"
        time.sleep(0.05)


def test_a_local_engine_keeps_the_order():
    assert list(LocalEngine(lambda job: job + 1).run([5, 3])) == [(0, 6), (1, 4)]
