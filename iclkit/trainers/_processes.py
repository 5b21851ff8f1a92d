"""Several processes that train one model: each takes a batch per step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from iclkit.errors import RunError

T = TypeVar("T")


def processes() -> Any:
    """This process among those of ``accelerate launch`` or ``torchrun``; alone without them."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


_apart = False


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process does the block, then the others do; inside ``main_process_only`` whoever is there does."""
    if _apart:
        yield
    else:
        with processes().main_process_first():
            yield


@contextmanager
def main_process_only() -> Iterator[None]:
    """A block that the first process alone comes to, as to the trainer's evaluation: nobody waits for the others."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def asks_lm() -> bool:
    """Whether this process asks the LM; the others know what the first has put into the ledger."""
    return _apart or bool(processes().is_main_process)


def batches_for(steps: int) -> int:
    """How many batches ``steps`` steps take."""
    return int(steps * processes().num_processes)


def shard_batches(batches: Sequence[Sequence[T]], size: int) -> Sequence[Sequence[T]]:
    """Batches that all processes can take turns at: for several the whole ones alone, as many for each.

    RunError when there are not as many whole batches as processes.
    """
    many = processes().num_processes
    if many == 1:
        return batches
    whole = [b for b in batches if len(b) == size]
    if batches and len(whole) < many:
        raise RunError(
            f"{len(whole)} whole batches of {size} are not enough for {many} processes: start fewer, set a smaller "
            "batch size, or train on more queries"
        )
    return whole[: len(whole) // many * many]
