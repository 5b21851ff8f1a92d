"""No demonstrations: the instruction and the query alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iclkit.pool import Candidates
from iclkit.selectors._base import NOTHING, BaseSelector, Choice, Needs


@dataclass
class ZeroSelector(BaseSelector):
    """Shows nothing: the prompt is the instruction and the query.

    Use it as the line that every other selector has to beat: without it nobody knows whether demonstrations help.
    Cost: nothing.
    """

    name: ClassVar[str] = "zero"
    summary: ClassVar[str] = "no demonstrations, whatever k"
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
