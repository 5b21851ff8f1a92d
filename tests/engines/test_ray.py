"""Jobs on a Ray cluster: each is answered once, whatever happens to the workers; machines that differ are refused.

Most of it runs over a stand-in for Ray in this process; the slow tests start Ray itself with two workers.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

import pytest

from iclkit.engines import RayEngine, _ray, ray_address
from iclkit.engines._ray import Worker, connect
from iclkit.errors import DataError, NeedError, RunError, UsageError
from tests.engines.fake_ray import use_fake_ray
from tests.subprocesses import run_python

LOADER = "tests_of_ray:load"
WORK = """
import os, signal, time
from pathlib import Path
from iclkit.errors import DataError

def load(folder, mortal=False, broken=False):
    if broken:
        raise ModuleNotFoundError("no such thing there")

    def compute(job):
        with (Path(folder) / "asked").open("a") as file:
            file.write(f"{job} {os.getpid()}\\n")
        if mortal and job == 5 and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 1300:
            raise DataError("job 1300 is bad")
        return job * job

    return compute
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path / "tests_of_ray.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"folder": str(tmp_path)}
    sys.modules.pop("tests_of_ray", None)


@pytest.fixture
def fake(monkeypatch):
    """``fake(mortal)`` -> the stand-in, which engines then use."""

    return partial(use_fake_ray, monkeypatch)


def here(job):
    return -job


@pytest.mark.parametrize("mortal", [(), (0,), (0, 1, 2)])
def test_every_job_is_answered_once_though_workers_are_lost(settings, fake, mortal):
    ray = fake(mortal)
    engine = RayEngine(here, LOADER, settings, workers=2)
    assert sorted(engine.run(range(12))) == [(n, n * n) for n in range(12)]
    lost = [actor for actor in ray.actors if actor.number in mortal and actor.jobs > 1]
    assert len(ray.actors) == 2 + len(lost)
    assert bool(lost) == bool(mortal)
    assert engine.notes == ()


def test_where_no_worker_is_left_this_process_goes_on(settings, fake):
    fake(range(100))
    engine = RayEngine(here, LOADER, settings, workers=1)
    found = dict(engine.run(range(1, 9)))
    assert sorted(found) == [*range(8)]
    assert {value == -job for job, value in zip(range(1, 9), (found[n] for n in range(8)), strict=True)} == {
        True,
        False,
    }
    assert "no worker of the cluster is left" in engine.notes[0]


def test_a_job_that_cannot_be_done_ends_the_list_and_the_workers_stay(settings, fake):
    ray = fake()
    engine = RayEngine(here, LOADER, settings, workers=2)
    with pytest.raises(DataError, match="job 1300 is bad"):
        list(engine.run([1, 2, 1300, 3]))
    assert dict(engine.run([4, 5])) == {0: 16, 1: 25}
    assert len(ray.actors) == 2


def test_a_single_job_is_done_here(settings, fake):
    ray = fake()
    assert dict(RayEngine(here, LOADER, settings, workers=2).run([3])) == {0: -3}
    assert ray.actors == []


def test_workers_are_as_many_as_the_cluster_has_cores_or_gpus_for(settings, fake):
    for gpus, count, wanted in ((False, 3, {"num_cpus": 0}), (True, 2, {"num_gpus": 1})):
        ray = fake()
        engine = RayEngine(here, LOADER, settings, gpus=gpus)
        list(engine.run(range(4)))
        assert len(ray.actors) == count
        assert wanted.items() <= ray.actors[0].resources.items()
        engine.close()
        assert len(ray.killed) == count


def test_machines_with_other_versions_or_without_the_model_are_refused_in_one_line(settings, fake, monkeypatch):
    fake()
    with pytest.raises(RunError, match=r"cannot be used: ModuleNotFoundError: no such thing there.*same versions"):
        list(RayEngine(here, LOADER, settings | {"broken": True}, workers=2).run(range(4)))
    _, reason = Worker(LOADER, settings, {"torch": "0.1"}).ready()
    assert reason.startswith("torch is ")
    assert reason.endswith("there and 0.1 here")
    monkeypatch.setattr(_ray, "versions", lambda: {"iclkit": next(answers)})
    answers = iter(["1", "1", "2"])
    with pytest.raises(
        RunError, match=r"machine .* of the cluster cannot be used: iclkit is 2 there and 1 here"
    ) as found:
        list(RayEngine(here, LOADER, settings, workers=2).run(range(4)))
    assert "\n" not in str(found.value)


def test_addresses_that_cannot_be_are_refused_before_ray_is_asked():
    assert ray_address("ray") is None
    assert ray_address("ray:head:6379") == "head:6379"
    for text in ("dask", "ray:", "rays"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            ray_address(text)
    pytest.importorskip("ray")
    for address in ("nowhere", "ray://head:10001", "head:port"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            connect(address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=rf"no Ray cluster answers at 127.0.0.1:{port}"):
        RayEngine(here, LOADER, {}, address=f"127.0.0.1:{port}")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NeedError, match=r"needs Ray; install it with: pip install .*ray\]"):
        connect(None)


@pytest.mark.slow
def test_two_workers_of_ray_one_killed_lose_and_double_nothing(settings, tmp_path):
    pytest.importorskip("ray")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from iclkit.engines import RayEngine
settings = {{"folder": {str(tmp_path)!r}, "mortal": True}}
engine = RayEngine(lambda job: job * job, "tests_of_ray:load", settings, workers=2)
print(sorted(engine.run(range(40))), engine.notes)
engine.close()
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = run_python(program, timeout=300, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{[(n, n * n) for n in range(40)]} ()"
    assert done.stderr == ""
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert len({pid for _, pid in asked}) == 3  # two, and the one in the place of the lost
    assert sorted(int(job) for job, _ in asked) == sorted([*range(40), 5])  # only the lost worker's job was asked again
