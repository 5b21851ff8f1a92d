"""What is trained on: rows by numbers of the pool, and a batch as the loss sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A query behind the ``chosen`` demonstrations (first chosen first), documents with the positive first, and the
    numbers that the method's loss needs. All are rows of the pool."""

    query: int
    documents: tuple[int, ...]
    values: tuple[float, ...] = ()
    chosen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RetrieverBatch:
    """The numbers of a batch of b training rows with m documents each.

    ``columns`` (b, m) int64: each row's documents among the batch's distinct ones. ``values`` (b, v) float32: the
    numbers of the rows. ``mask`` (b, b m) bool: documents that are no negatives for the row. ``rows`` (b, 1 + m) int64:
    the rows of the pool that each query and its documents are.
    """

    columns: Tensor
    values: Tensor
    mask: Tensor
    rows: Tensor
