"""No demonstrations: the instruction and the query alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from iclkit.records import Query
from iclkit.selectors._base import BaseSelector, BoolArray, Choice, Needs


@dataclass
class ZeroSelector(BaseSelector):
    """no demonstrations, whatever k"""

    name: ClassVar[str] = "zero"
    needs: ClassVar[Needs] = Needs(pool=False)
    source: ClassVar[str] = "baseline"

    def capacity(self, k: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def choose(self, query: Query, k: int, allowed: BoolArray) -> Choice:  # noqa: ARG002
        """Nothing."""
        return Choice(np.empty(0, np.int64), np.empty(0))

    def shortfall_note(self, k: int, got: int, allowed: BoolArray) -> tuple[str, ...]:  # noqa: ARG002
        return ()
