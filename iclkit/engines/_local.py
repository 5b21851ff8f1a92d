"""Jobs one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")


class LocalEngine(Generic[J, R]):
    """Jobs in order, in this process."""

    notes: tuple[str, ...] = ()

    def __init__(self, compute: Callable[[J], R]) -> None:
        self._compute = compute

    def run(self, jobs: Sequence[J]) -> Generator[tuple[int, R], None, None]:
        """(job number, result) of each job in order."""
        for number, job in enumerate(jobs):
            yield number, self._compute(job)

    def close(self) -> None:
        """Nothing is held."""
