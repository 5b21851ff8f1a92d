"""Several processes on one plan: each takes the next batch; the parent computes too and is the only one that stores.

Batches are planned by the parent, so who computes one changes nothing. A worker that dies gives its batch back; it is
started again a few times, and the parent finishes whatever is left. On several GPUs each process has its own.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from iclkit.errors import IclkitError
from iclkit.lm._torch import ForwardJob, TorchLM
from iclkit.models import first_words
from iclkit.records import Usage

MIN_TOKENS_FOR_WORKERS = 20_000
"""Tokens asked for since loading below which no worker is started: loading costs a process several seconds."""
RESTARTS = 2


@dataclass(frozen=True, slots=True)
class NotStarted:
    """Why a worker has no model."""

    reason: str


def serve(connection: Connection, load: Callable[..., TorchLM], settings: dict[str, Any]) -> None:
    """A worker: load the model, then answer (tag, what) messages until the other side hangs up."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    lm: TorchLM | NotStarted
    try:
        lm = load(**settings)
    except Exception as error:  # told with the first job; the parent has the model and does the work alone
        lm = NotStarted(first_words(error))
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        if isinstance(lm, NotStarted):
            connection.send((lm, 0))
            return
        before = lm.usage.tokens_computed
        try:
            answer: Any = lm.work(job)
        except IclkitError as error:
            answer = error
        connection.send((answer, lm.usage.tokens_computed - before))


_STARTING = threading.Lock()


@contextmanager
def _script_hidden() -> Iterator[None]:
    """Keep the new process from running the user's script again, as ``spawn`` would: a worker needs nothing of it.

    A script without ``if __name__ == "__main__"`` would else start workers in its workers.
    """
    with _STARTING:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script


class Worker:
    """One process and the pipe to it."""

    def __init__(self, load: Callable[..., TorchLM], settings: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(far, load, settings), daemon=True)
        with _script_hidden():
            self.process.start()
        far.close()

    def ask(self, job: ForwardJob) -> tuple[Any, int]:
        """(results or an IclkitError, tokens computed). OSError or EOFError when the process has died."""
        self.connection.send(job)
        answer: tuple[Any, int] = self.connection.recv()
        return answer

    def close(self) -> None:
        """Hang up and wait for the process to end."""
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()


class ParallelLM(TorchLM):
    """A TorchLM that shares its batches with workers. ``settings``: how each worker loads the same model."""

    load: Callable[..., TorchLM]
    settings: Sequence[dict[str, Any]]
    workers: dict[int, Worker]
    asked: int

    @classmethod
    def of(cls, lm: TorchLM, load: Callable[..., TorchLM], settings: Sequence[dict[str, Any]]) -> ParallelLM:
        """Turn ``lm`` into the parent of ``len(settings)`` workers; they start once enough has been asked."""
        lm.__class__ = cls
        assert isinstance(lm, cls)
        lm.load, lm.settings, lm.workers, lm.asked = load, settings, {}, 0
        return lm

    def _run(self, jobs: Sequence[ForwardJob]) -> Iterator[tuple[int, list[Any]]]:
        self.asked += sum(map(work_of, jobs))
        if len(jobs) < 2 or (not self.workers and self.asked < MIN_TOKENS_FOR_WORKERS):
            yield from super()._run(jobs)
            return
        start = time.perf_counter()
        left = deque(enumerate(jobs))
        done: queue.Queue[tuple[int, Any, int]] = queue.Queue()
        threads = [
            threading.Thread(target=self._feed, args=(number, left, done), daemon=True)
            for number in range(len(self.settings))
        ]
        for thread in threads:
            thread.start()
        finished = 0
        try:
            while finished < len(jobs):
                try:
                    at, job = left.popleft()
                except IndexError:
                    at, job = -1, None
                if job is not None:
                    before = self._usage
                    results = self.work(job)
                    done.put((at, results, self._usage.tokens_computed - before.tokens_computed))
                    self._usage = before
                while finished < len(jobs):
                    try:
                        number, answer, tokens = done.get(timeout=0.05) if job is None else done.get_nowait()
                    except queue.Empty:
                        break
                    if isinstance(answer, Exception):
                        raise answer
                    self._usage += Usage(calls=len(answer), tokens_computed=tokens)
                    finished += 1
                    yield number, answer
        finally:  # also when the caller stops early: no worker is left with an answer that nobody reads
            left.clear()
            for thread in threads:
                thread.join()
            self._usage += Usage(seconds=time.perf_counter() - start)

    def _feed(self, number: int, left: deque[tuple[int, ForwardJob]], done: queue.Queue[tuple[int, Any, int]]) -> None:
        """Hand jobs to worker ``number`` one by one; a job that a dying worker drops goes back in front."""
        for _ in range(RESTARTS + 1):
            if number not in self.workers:
                self.workers[number] = Worker(self.load, self.settings[number])
            while True:
                try:
                    at, job = left.popleft()
                except IndexError:
                    return
                try:
                    answer, tokens = self.workers[number].ask(job)
                except (OSError, EOFError):
                    left.appendleft((at, job))
                    self.workers.pop(number).close()
                    break
                except Exception as error:  # the parent must hear of it: it waits for this job
                    done.put((at, error, 0))
                    return
                if isinstance(answer, NotStarted):  # the model may well fit once and not twice
                    left.appendleft((at, job))
                    self.workers.pop(number).close()
                    note = (
                        f"worker {number + 1} does not load the model ({answer.reason}): fewer processes share the work"
                    )
                    self._notes = tuple(dict.fromkeys((*self._notes, note)))
                    return
                done.put((at, answer, tokens))

    def close(self) -> None:
        """Stop the workers."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


def work_of(job: ForwardJob) -> int:
    """Tokens of a job, roughly: what decides whether workers are worth starting."""
    if job.requests:
        return sum(len(p) + 4 * r.max_tokens for p, r in zip(job.prompts, job.requests, strict=True))
    depth = len(job.chain[-1].ids) if job.chain else 0
    return len({p.ids[: p.n_context] for p in job.pairs}) * max(len(p.ids) - depth for p in job.pairs)
