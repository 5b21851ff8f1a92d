"""A stand-in for Ray, with workers in this process."""

from __future__ import annotations

from iclkit.engines import _ray


class Lost(Exception):
    """What a call of a worker gives that is gone."""


class FakeRay:
    """Ray with workers in this process: those numbered in ``mortal`` are lost with their second job."""

    class exceptions:
        RayError = Lost

    def __init__(self, mortal=()):
        self.mortal, self.actors, self.killed = mortal, [], []

    def remote(self, cls):
        return _FakeClass(self, cls)

    def cluster_resources(self):
        return {"CPU": 3.0, "GPU": 2.0}

    def is_initialized(self):
        return True

    def wait(self, refs, num_returns):
        return refs[-num_returns:], refs[:-num_returns]

    def get(self, refs):
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if isinstance(refs.value, Lost):
            raise refs.value
        return refs.value

    def kill(self, actor):
        self.killed.append(actor)


class _FakeClass:
    def __init__(self, ray, cls):
        self.ray, self.cls, self.resources = ray, cls, {}

    def options(self, **resources):
        self.resources = resources
        return self

    def remote(self, *args):
        actor = _FakeActor(self.ray, len(self.ray.actors), self.cls(*args), self.resources)
        self.ray.actors.append(actor)
        return actor


class _FakeActor:
    def __init__(self, ray, number, worker, resources):
        self.ready, self.ask, self.resources = _Call(worker.ready), _Call(self._ask), resources
        self.ray, self.number, self.worker, self.jobs, self.answered = ray, number, worker, 0, []

    def _ask(self, job):
        self.jobs += 1
        if self.number in self.ray.mortal and self.jobs > 1:
            return Lost("the actor died")
        self.answered.append(job)
        return self.worker.ask(job)


class _Call:
    def __init__(self, function):
        self.function = function

    def remote(self, *args):
        return _Ref(self.function(*args))


class _Ref:
    def __init__(self, value):
        self.value = value


def use_fake_ray(monkeypatch, mortal=()):
    """The stand-in, which engines then use in the place of Ray."""
    ray = FakeRay(mortal)
    monkeypatch.setattr(_ray, "connect", lambda address, workers: ray)
    monkeypatch.setattr(_ray, "check_reachable", lambda address: None)
    return ray
