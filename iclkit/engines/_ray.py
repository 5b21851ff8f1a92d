"""Jobs on the machines of a Ray cluster: a worker is asked for one job at a time, and this process keeps the results.

A worker that is lost loses the job that it had, which another one is asked for; it is started again a few times. What
workers need to be alike in (versions, and what the loader checks) is looked at before the first job.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from iclkit.engines._processes import usable_cores
from iclkit.engines._protocol import JobFailed, Result, WorkerFailed, answer, in_a_line, load_compute
from iclkit.errors import NeedError, RunError, UsageError
from iclkit.extras import install_command

RESTARTS = 2
"""Times that a lost worker is started again for one list of jobs."""
PACKAGES = ("iclkit", "torch", "transformers", "tokenizers", "numpy")
"""What must have one version on all machines, for results are to be the same wherever a job is done."""
_REACH = 5.0  # seconds in which an address must answer

J = TypeVar("J")
R = TypeVar("R")


def ray_address(engine: str) -> str | None:
    """The address in ``ray:ADDRESS``; None for ``ray``, which is a cluster of this machine alone.

    UsageError for anything else.
    """
    name, colon, address = engine.partition(":")
    if name != "ray" or (colon and not address):
        raise UsageError(f"engine {engine!r} is not known; write ray, or ray:HOST:PORT with the address of the head")
    return address or None


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its folder
            found[name] = str(vars(import_module(name))["__version__"]) if name == "iclkit" else "none"
    return found


class Worker:
    """What runs on the machines of a cluster: ``loader`` is "module:function", as in ``ProcessEngine``."""

    def __init__(self, loader: str, settings: Mapping[str, Any], expected: Mapping[str, str]) -> None:
        self._compute: Callable[[Any], Any] | None = None
        self.reason = ""
        here = versions()
        if other := [name for name, version in expected.items() if here[name] != version]:
            name = other[0]
            self.reason = f"{name} is {here[name]} there and {expected[name]} here"
            return
        try:
            self._compute = load_compute(loader, settings)
        except Exception as error:  # whatever it is, the parent says it
            self.reason = in_a_line(error)

    def ready(self) -> tuple[str, str]:
        """The machine's name, and why it cannot be used, if it cannot."""
        return socket.gethostname(), self.reason

    def ask(self, job: Any) -> Result | JobFailed | WorkerFailed:
        """The answer to a job."""
        return WorkerFailed(self.reason) if self._compute is None else answer(self._compute, job)


class RayEngine(Generic[J, R]):
    """Jobs shared among ``workers`` of a Ray cluster, which ``loader`` makes there of ``settings``.

    ``address`` None starts a cluster of this machine's cores, which ends with this process. ``compute`` does a job
    here: a single one, and whatever is left when no worker is. ``gpus``: each worker has a GPU of its own. ``workers``
    None: one for each GPU of the cluster, or without GPUs for each ``threads`` of its cores.
    """

    def __init__(
        self,
        compute: Callable[[J], R],
        loader: str,
        settings: Mapping[str, Any],
        *,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        gpus: bool = False,
    ) -> None:
        check_reachable(address)
        self._compute, self._loader, self._settings = compute, loader, dict(settings)
        self._address, self._wanted, self._threads, self._gpus = address, workers, threads, gpus
        self.notes: tuple[str, ...] = ()
        self.workers: list[Any] = []
        self._ray: list[Any] = []
        weakref.finalize(self, _stop, self.workers, self._ray)

    def run(self, jobs: Sequence[J]) -> Generator[tuple[int, R], None, None]:
        """(job number, result) of each job as it ends. RunError for a cluster that cannot be used."""
        if len(jobs) < 2:
            for number, job in enumerate(jobs):
                yield number, self._compute(job)
            return
        ray = connect(self._address, self._wanted)
        self._ray[:] = [ray]
        if not self.workers:
            self._start(ray)
        waiting, asked = deque(enumerate(jobs)), dict[Any, tuple[Any, int, J]]()
        restarts = RESTARTS * len(self.workers)
        idle = [*self.workers]
        try:
            while waiting or asked:
                while idle and waiting:
                    worker, (number, job) = idle.pop(), waiting.popleft()
                    asked[worker.ask.remote(job)] = worker, number, job
                if not asked:  # no worker is left
                    number, job = waiting.popleft()
                    yield number, self._compute(job)
                    continue
                (ref, *_), _ = ray.wait([*asked], num_returns=1)
                worker, number, job = asked.pop(ref)
                try:
                    answered = ray.get(ref)
                except ray.exceptions.RayError as error:  # the worker or its machine is gone, and its job with it
                    waiting.appendleft((number, job))
                    self.workers.remove(worker)
                    if restarts > 0:
                        restarts -= 1
                        idle += self._add(ray, 1)
                    elif not self.workers:
                        self._note(f"no worker of the cluster is left ({in_a_line(error)}): this process goes on alone")
                    continue
                match answered:
                    case Result(value):
                        idle.append(worker)
                        yield number, value
                    case JobFailed(failure):
                        raise failure
                    case WorkerFailed(reason):
                        waiting.appendleft((number, job))
                        self.workers.remove(worker)
                        ray.kill(worker)
                        self._note(f"a worker of the cluster cannot be used ({reason}): fewer share the work")
        finally:  # also when the caller stops early: no worker is left with an answer that nobody reads
            if asked:
                ray.wait([*asked], num_returns=len(asked))

    def _start(self, ray: Any) -> None:
        count = self._wanted
        if count is None:
            there = ray.cluster_resources()
            count = max(1, int(there.get("GPU", 0) if self._gpus else there.get("CPU", 1) // self._threads))
        started = self._add(ray, count)
        try:
            found = ray.get([worker.ready.remote() for worker in started])
        except ray.exceptions.RayError as error:
            self.close()
            raise RunError(f"no worker starts on the Ray cluster {self._address or 'of this machine'}: "
                           f"{in_a_line(error)}") from error  # fmt: skip
        if bad := next(((node, reason) for node, reason in found if reason), None):
            self.close()
            raise RunError(f"machine {bad[0]} of the cluster cannot be used: {bad[1]}; all need the same versions "
                           "and models")  # fmt: skip

    def _add(self, ray: Any, count: int) -> list[Any]:
        resources = {"num_gpus": 1} if self._gpus else {"num_cpus": 0}  # cores are counted by ``workers``
        actor = ray.remote(Worker).options(**resources, scheduling_strategy="SPREAD")
        expected = versions()
        made = [actor.remote(self._loader, self._settings, expected) for _ in range(count)]
        self.workers += made
        return made

    def _note(self, text: str) -> None:
        self.notes = tuple(dict.fromkeys((*self.notes, text)))

    def close(self) -> None:
        """Stop the workers; the next jobs start them again."""
        _stop(self.workers, self._ray)


def connect(address: str | None, workers: int | None = None) -> Any:
    """The module ``ray``, connected. A cluster that this process is connected to already is used as it is.

    NeedError without Ray; UsageError for an address that cannot be, RunError for one where nobody answers.
    """
    check_reachable(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    ours = "ray" not in sys.modules  # else whoever imported it has said what it may print
    if ours:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")  # it would print into our output
    import ray

    if ours:
        logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address is None:
        quiet |= {"num_cpus": workers or usable_cores(), "include_dashboard": False, "object_store_memory": 1 << 28}
    else:
        quiet["address"] = address
    for tries_left in (0,) if address else (2, 1, 0):  # on a busy machine its start takes longer than Ray waits
        try:
            ray.init(**quiet)
            break
        except Exception as error:  # Ray raises errors of many kinds
            ray.shutdown()
            if not tries_left:
                reason = in_a_line(error)
                raise RunError(f"cannot use the Ray cluster {address or 'of this machine'}: {reason}") from error
    return ray


def check_reachable(address: str | None) -> None:
    """Whether there is Ray here and, where an address is given, somebody who answers. Errors as of ``connect``.

    Ray itself waits for a minute where nobody answers, and writes pages.
    """
    if find_spec("ray") is None:
        raise NeedError(f"the engine ray needs Ray; install it with: {install_command('ray')}")
    if address is None or address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "//" in address or not (colon and host and port.isdigit()):
        raise UsageError(
            f"{address!r} is no address of a Ray cluster; give HOST:PORT of its head, as ray start says it"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(f"no Ray cluster answers at {address} ({reason}); start one with: ray start --head") from error


def _stop(workers: list[Any], ray: list[Any]) -> None:
    while workers:
        worker = workers.pop()
        if ray[0].is_initialized():
            ray[0].kill(worker)
