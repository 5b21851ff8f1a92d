"""One thing that was tried, and whether it held."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """``wrong`` is empty where it held. ``count`` is how many faults the trial held (kills of one command)."""

    kind: str
    name: str
    wrong: str = ""
    count: int = 1
