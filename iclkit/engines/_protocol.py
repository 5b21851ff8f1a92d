"""What an engine offers, and what passes between a process and its workers."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from traceback import format_exception_only
from typing import IO, Any, Protocol, TypeVar

from iclkit.errors import IclkitError

J_contra = TypeVar("J_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Engine(Protocol[J_contra, R_co]):
    """Runs jobs of a kind that it does not look into. A job's result does not depend on where it ran."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, e.g. that a worker could not be used."""
        ...

    def run(self, jobs: Sequence[J_contra]) -> Generator[tuple[int, R_co], None, None]:
        """(job number, result) of each job as it ends, in any order; the caller stores them.

        The first IclkitError of a job ends it. A caller that stops early closes the iterator.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it may be used again."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """A worker's answer to a job."""

    value: Any


@dataclass(frozen=True, slots=True)
class JobFailed:
    """A job that cannot be done, by whichever worker."""

    error: IclkitError


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A worker that cannot go on, and why; another process may do its job."""

    reason: str


class Channel:
    """Python objects over a pair of pipes, each object behind its length in bytes.

    Both ends are iclkit on one machine, and the pipes are inherited: nobody else can write into them.
    """

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, value: object) -> None:
        """OSError when the other end is gone."""
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        self._outgoing.write(struct.pack("<Q", len(data)))
        self._outgoing.write(data)
        self._outgoing.flush()

    def receive(self) -> Any:
        """The next object. EOFError when the other end has closed or died."""
        (size,) = struct.unpack("<Q", self._read(8))
        return pickle.loads(self._read(size))  # noqa: S301  what this program wrote at the other end

    def _read(self, size: int) -> bytes:
        data = self._incoming.read(size)
        if len(data) < size:
            raise EOFError("the other end of the pipe is closed")
        return data


def load_compute(loader: str, settings: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What computes a job: ``loader``, "module:function", called with the settings."""
    module, _, name = loader.partition(":")
    made: Callable[[Any], Any] = vars(import_module(module))[name](**settings)
    return made


def answer(compute: Callable[[Any], Any], job: Any) -> Result | JobFailed | WorkerFailed:
    """A worker's answer to a job, whatever happens."""
    try:
        return Result(compute(job))
    except IclkitError as error:
        return JobFailed(error)
    except Exception as error:  # the job may be innocent: the parent does it, and meets the error where it is not
        return WorkerFailed(in_a_line(error))


def in_a_line(error: Exception) -> str:
    """An error's message, for people."""
    text = str(error) if isinstance(error, IclkitError) else "".join(format_exception_only(error))
    return " ".join(text.split())[:300]
