"""Several processes that train one model: each takes a batch per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def processes() -> Any:
    """This process among those of ``accelerate launch`` or ``torchrun``; alone without them."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def batches_for(steps: int) -> int:
    """How many batches ``steps`` steps take."""
    return int(steps * processes().num_processes)


def shared_out(batches: Sequence[Sequence[T]], size: int) -> Sequence[Sequence[T]]:
    """Batches that all processes can take turns at: for several the whole ones alone, as many for each."""
    many = processes().num_processes
    if many == 1:
        return batches
    whole = [b for b in batches if len(b) == size]
    return whole[: len(whole) // many * many]
