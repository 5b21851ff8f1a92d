"""What LM work has cost so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Usage:
    """Counters that only grow.

    ``requests`` asked; ``calls`` are the distinct ones that were computed; ``tokens_asked`` is what a plain loop would
    feed (context and continuation of every request); ``tokens_computed`` went through the model; ``tokens_cached`` is
    the part of ``tokens_asked`` that the cache answered; ``seconds`` is wall time inside the LM.
    """

    requests: int = 0
    calls: int = 0
    tokens_asked: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The counters by name, for a Run's ``spent``."""
        return asdict(self)
