"""No demonstrations: the instruction and the query alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iclkit.pool import Candidates
from iclkit.selectors._base import NOTHING, BaseSelector, Choice, Needs


@dataclass
class ZeroSelector(BaseSelector):
    """no demonstrations, whatever k"""

    name: ClassVar[str] = "zero"
    needs: ClassVar[Needs] = Needs(pool=False)
    source: ClassVar[str] = "baseline"

    def capacity(self, k: int) -> int:  # noqa: ARG002
        """None."""
        return 0

    def choose(self, candidates: Candidates, k: int) -> Choice:  # noqa: ARG002
        """Nothing."""
        return NOTHING

    def shortfall_note(self, candidates: Candidates, k: int, got: int) -> tuple[str, ...]:  # noqa: ARG002
        return ()
