"""Jobs in several processes: each takes the next one; this process computes too, and alone hands results on.

A worker that dies gives its job back; it is started again a few times, and this process finishes whatever is left.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from iclkit.engines._protocol import Channel, JobFailed, Result, WorkerFailed

RESTARTS = 2
"""Times that a worker which died is started again for one list of jobs."""

J = TypeVar("J")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may run on, where the system says so; else those of the machine."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerProcess:
    """One worker and the pipes to it. ``loader`` is "module:function": it makes, of settings, what computes a job."""

    def __init__(self, loader: str, settings: Mapping[str, Any]) -> None:
        # the search path of this process, and not the folder it stands in (-P), where anything may lie
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "iclkit.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._pipes = self.process.stdout, self.process.stdin
        self._channel = Channel(*self._pipes)
        self._first: tuple[str, dict[str, Any]] | None = (loader, dict(settings))

    def ask(self, job: object) -> Result | JobFailed | WorkerFailed:
        """OSError or EOFError when the process has died."""
        if self._first is not None:
            self._channel.send(self._first)
            self._first = None
        self._channel.send(job)
        answer: Result | JobFailed | WorkerFailed = self._channel.receive()
        return answer

    def close(self) -> None:
        """End the process: it holds nothing that must be kept."""
        self.process.kill()
        self.process.wait()
        for pipe in self._pipes:
            try:
                pipe.close()
            except OSError:  # what was still to be written has no reader
                continue


class ProcessEngine(Generic[J, R]):
    """Jobs shared with one worker process for each of ``settings``, with which ``loader`` is called there.

    ``compute`` does a job here. ``size`` of a job is in any unit; workers, which take seconds to load, start once jobs
    of ``min_size`` together have been asked for.
    """

    def __init__(
        self,
        compute: Callable[[J], R],
        loader: str,
        settings: Sequence[Mapping[str, Any]],
        *,
        size: Callable[[J], int],
        min_size: int,
    ) -> None:
        self._compute, self._loader, self._settings = compute, loader, settings
        self._size, self._min_size, self._asked = size, min_size, 0
        self.workers: dict[int, WorkerProcess] = {}
        self.notes: tuple[str, ...] = ()
        self._unusable: set[int] = set()
        weakref.finalize(self, _close_all, self.workers)

    def run(self, jobs: Sequence[J]) -> Generator[tuple[int, R], None, None]:
        """(job number, result) of each job as it ends."""
        self._asked += sum(map(self._size, jobs))
        if len(jobs) < 2 or (not self.workers and self._asked < self._min_size):
            for number, job in enumerate(jobs):
                yield number, self._compute(job)
            return
        waiting = deque(enumerate(jobs))
        ended: queue.Queue[tuple[int, R | Exception]] = queue.Queue()
        threads = [
            threading.Thread(target=self._feed, args=(worker, waiting, ended), daemon=True)
            for worker in range(len(self._settings))
            if worker not in self._unusable
        ]
        for thread in threads:
            thread.start()
        finished = 0
        try:
            while finished < len(jobs):
                try:
                    number, job = waiting.popleft()
                except IndexError:
                    idle = True
                else:
                    idle = False
                    ended.put((number, self._compute(job)))
                while finished < len(jobs):
                    try:  # when nothing waits, a worker may still die and give its job back: look again soon
                        number, outcome = ended.get(timeout=0.05) if idle else ended.get_nowait()
                    except queue.Empty:
                        break
                    if isinstance(outcome, Exception):
                        raise outcome
                    finished += 1
                    yield number, outcome
        finally:  # also when the caller stops early: no worker is left with an answer that nobody reads
            waiting.clear()
            for thread in threads:
                thread.join()

    def _feed(self, worker: int, waiting: deque[tuple[int, J]], ended: queue.Queue[tuple[int, R | Exception]]) -> None:
        """Hand jobs to a worker one by one; a job that it drops goes back in front."""
        for _ in range(RESTARTS + 1):
            while True:
                try:
                    number, job = waiting.popleft()
                except IndexError:
                    return
                try:
                    if worker not in self.workers:
                        self.workers[worker] = WorkerProcess(self._loader, self._settings[worker])
                    answer = self.workers[worker].ask(job)
                except (OSError, EOFError):
                    waiting.appendleft((number, job))
                    self._drop(worker)
                    break
                except Exception as error:  # this process must hear of it: it waits for the job
                    ended.put((number, error))
                    return
                match answer:
                    case Result(value):
                        ended.put((number, value))
                    case JobFailed(failure):
                        ended.put((number, failure))
                    case WorkerFailed(reason):
                        waiting.appendleft((number, job))
                        self._drop(worker)
                        self._unusable.add(worker)
                        self._note(f"worker {worker + 1} cannot be used ({reason}): fewer processes share the work")
                        return

    def _drop(self, worker: int) -> None:
        if process := self.workers.pop(worker, None):
            process.close()

    def _note(self, text: str) -> None:
        self.notes = tuple(dict.fromkeys((*self.notes, text)))

    def close(self) -> None:
        """Stop the workers; the next jobs start them again."""
        _close_all(self.workers)


def _close_all(workers: dict[int, WorkerProcess]) -> None:
    for worker in [*workers]:
        workers.pop(worker).close()
