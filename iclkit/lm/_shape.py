"""What prompts cost to read: a long one shared by all queries against a short one for each."""

from __future__ import annotations

from dataclasses import dataclass

from iclkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What reading costs depend on: ``parameters`` (embeddings left out), ``layers``, ``width`` (heads x head size)."""

    parameters: float
    layers: int
    width: int

    def read(self, new: int, known: int = 0) -> float:
        """Floating-point operations to read ``new`` tokens after ``known`` that are cached.

        2 P n for the weights and 4 L d (n m + n^2 / 2) for the attention.
        """
        return 2 * self.parameters * new + 4 * self.layers * self.width * (new * known + new * new / 2)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """``queries``: from how many on the fixed prompt costs less; None when it never does.

    ``once`` and ``fixed``: operations to read the fixed demonstrations, and a query after them. ``selected``: to read a
    prompt of a query's own demonstrations.
    """

    once: float
    fixed: float
    selected: float
    queries: float | None

    def __str__(self) -> str:
        if self.queries is None:
            return (
                "a prompt of each query's own demonstrations costs less than a fixed, cached one, however many queries"
            )
        start = f"{round(self.queries):,} queries" if self.queries >= 1.5 else "the first query"
        return f"a fixed, cached prompt costs less than each query's own from {start} on"


def break_even(
    shape: ModelShape, *, fixed_tokens: int, selected_tokens: int, query_tokens: int, near_tokens: int = 0
) -> BreakEven:
    """How many queries make a fixed prompt of ``fixed_tokens``, read once and cached, cheaper than one per query.

    ``selected_tokens`` are a query's own demonstrations, read anew each time; ``query_tokens`` the query itself;
    ``near_tokens`` what a query shows of its own after the fixed part. UsageError for negative numbers.
    """
    sizes = fixed_tokens, selected_tokens, query_tokens, near_tokens
    if min(sizes) < 0:
        raise UsageError(f"token counts are {', '.join(map(str, sizes))}; give 0 or more")
    once, fixed = shape.read(fixed_tokens), shape.read(near_tokens + query_tokens, known=fixed_tokens)
    selected = shape.read(selected_tokens + query_tokens)
    return BreakEven(once, fixed, selected, once / (selected - fixed) if selected > fixed else None)
