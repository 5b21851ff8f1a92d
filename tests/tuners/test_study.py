"""Many workers, one storage: nothing lost, nothing done twice, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from iclkit.errors import DataError, UsageError
from iclkit.tuners import Space, arm_of, distributions, make_sampler
from iclkit.tuners import _study as study_of

SPACE = Space(30, 3)

WORKER = """
import json, sys, time
from pathlib import Path
from iclkit.testing import OrderedSetProblem
from iclkit.tuners import PositionFeatures, Space, make_sampler
from iclkit.tuners._study import open_study, work
import optuna

storage, log, sampler, trials, batch, hang = sys.argv[1:]
problem = OrderedSetProblem(30, 3, dim=4)
space = Space(30, 3, features=PositionFeatures(problem.vectors, 3))
study = open_study(storage, "shared", make_sampler(sampler, space, 0), optuna.pruners.NopPruner(), {"about": "test"})

def judge(got):
    for trial, arm in got:
        if Path(log).exists() and len(Path(log).read_text().splitlines()) == int(hang):
            time.sleep(3600)  # until it is killed, with this trial and the rest of the batch under way
        trial.set_user_attr("values", [problem.value(arm.rows)])
        study.tell(trial, problem.value(arm.rows), skip_if_finished=True)
        with Path(log).open("a") as file:
            file.write(json.dumps([trial.number, arm.rows]) + chr(10))

print("ready", flush=True)
work(study, space, int(trials), judge, batch=int(batch))
"""


def start(storage, log, *, sampler="ease,warmup=5,steps=20,domain=300", trials=14, batch=3, hang=-1):
    words = [storage, str(log), sampler, str(trials), str(batch), str(hang)]
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *words], stdout=subprocess.PIPE, text=True, env=env)


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def load(storage):
    return optuna.load_study(study_name="shared", storage=study_of._storage(storage))


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path):
    return f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else f"journal:{tmp_path}/s.journal"


def test_two_workers_one_of_them_killed_lose_and_double_nothing(storage, tmp_path):
    one, other = tmp_path / "a.log", tmp_path / "b.log"
    first = start(storage, one, hang=4)
    until(lambda: len(lines(one)) == 4)
    second = start(storage, other)
    until(lambda: lines(other))
    hanging = [t for t in load(storage).trials if t.state == TrialState.RUNNING and t.number < 6]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=120) == 0
    study = load(storage)
    arms = [arm_of(t, SPACE) for t in study_of.finished(study)]
    assert len(arms) == len({*arms}) == 14
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert hanging  # the killed worker had trials under way, and the other has done their lists
    assert all(study.trials[t.number].state == TrialState.FAIL for t in hanging)
    assert {arm_of(t, SPACE) for t in hanging} <= {*arms}
    done = [tuple(rows) for _, rows in (*lines(one), *lines(other))]
    assert len(done) == len({*done}) == 14
    assert max(t.value for t in study_of.finished(study)) > 0.7


def test_three_workers_do_no_more_than_was_asked_for(storage, tmp_path):
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    workers = [start(storage, log, sampler="evolution", trials=12, batch=2) for log in logs]
    assert [w.wait(timeout=120) for w in workers] == [0, 0, 0]
    assert sum(len(lines(log)) for log in logs) == 12 == len(study_of.finished(load(storage)))


def memory(sampler="best-of-n"):
    return study_of.open_study(None, "s", make_sampler(sampler, SPACE), optuna.pruners.NopPruner(), {})


def test_a_worker_that_is_gone_or_silent_is_found_dead_and_a_living_one_is_not():
    study = memory()
    living, gone, silent, unknown = (study.ask(distributions(SPACE)) for _ in range(4))
    here = study_of.here()
    child = subprocess.Popen(["true"])
    child.wait()
    for trial, worker, beat in (
        (living, f"{here}:{os.getpid()}", time.time()),
        (gone, f"{here}:{child.pid}", time.time()),
        (silent, "elsewhere:1", time.time() - 1000),
        (unknown, "elsewhere:1", time.time() - 1),
    ):
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("beat", beat)
    assert study_of.revive(study, SPACE) == 2
    assert study_of.revive(study, SPACE) == 0
    states = [t.state.name for t in study.trials]
    assert states == ["RUNNING", "FAIL", "FAIL", "RUNNING", "WAITING", "WAITING"]
    again = study.trials[4]
    assert arm_of(again, SPACE) == arm_of(study.trials[1], SPACE)
    assert again.user_attrs["again"] == 1


def test_a_list_that_another_worker_took_meanwhile_is_not_done_twice():
    study = memory()
    other = study.ask(distributions(SPACE))
    rows = dict(other.params)
    study.enqueue_trial(rows)
    assert study_of._claim(study, SPACE, 10) is None
    assert study.trials[1].user_attrs["why"] == "another worker has this list"
    claimed = study_of._claim(study, SPACE, 10)
    assert claimed is not None
    assert study_of._claim(study, SPACE, 2) is None
    assert study.trials[-1].user_attrs["why"] == "enough trials are under way"


def test_an_error_gives_the_trials_back_and_the_next_call_does_them():
    study, seen = memory(), []

    def broken(got):
        seen.extend(arm for _, arm in got)
        raise RuntimeError("the LM is gone")

    with pytest.raises(RuntimeError, match="gone"):
        study_of.work(study, SPACE, 6, broken, batch=3)
    assert [t.state.name for t in study.trials] == ["FAIL"] * 3 + ["WAITING"] * 3

    def fine(got):
        for trial, _ in got:
            study.tell(trial, 0.5)

    study_of.work(study, SPACE, 6, fine, batch=4)
    arms = [arm_of(t, SPACE) for t in study_of.finished(study)]
    assert len(arms) == 6
    assert {*seen} <= {*arms}


def test_signs_of_life_are_written_while_a_trial_runs(monkeypatch):
    monkeypatch.setattr(study_of, "BEAT", 0.02)
    study = memory()
    trial = study.ask(distributions(SPACE))
    with study_of._alive([trial]):
        time.sleep(0.2)
    first = study.trials[0].user_attrs["beat"]
    assert time.time() - first < 1
    time.sleep(0.1)
    assert study.trials[0].user_attrs["beat"] == first


def test_a_study_about_something_else_and_a_storage_that_cannot_be_opened_are_one_line(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    make = make_sampler("random", SPACE)
    none = optuna.pruners.NopPruner()
    study_of.open_study(url, "s", make, none, {"lm": "a"})
    study_of.open_study(url, "s", make, none, {"lm": "a"})
    with pytest.raises(DataError, match=r"its lm is 'a', not 'b'; give another --study"):
        study_of.open_study(url, "s", make, none, {"lm": "b"})
    for bad in ("nonsense", f"sqlite:///{tmp_path}/none/s.db", f"journal:{tmp_path}/none/s"):
        with pytest.raises(UsageError, match="cannot open the study storage") as caught:
            study_of.open_study(bad, "s", make, none, {})
        assert "\n" not in str(caught.value)
