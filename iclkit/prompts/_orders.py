"""Order policies: from rank order (best first) to prompt order (what is read first, first).

A policy is a function ``(examples_best_first, *, seed, query_id) -> list`` that returns a permutation; packages add
theirs in the entry point group ``iclkit.orders``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from iclkit.records import Example, digest
from iclkit.registry import Registry

ORDERS = Registry(
    "order policy",
    "iclkit.orders",
    {
        "best-last": "iclkit.prompts._orders:best_last",
        "best-first": "iclkit.prompts._orders:best_first",
        "random": "iclkit.prompts._orders:random_order",
        "label-interleaved": "iclkit.prompts._orders:label_interleaved",
        "edges": "iclkit.prompts._orders:edges",
    },
)


def order_picks(examples_best_first: Sequence[Example], policy: str, *, seed: int, query_id: str) -> list[Example]:
    """The examples in prompt order under the named policy. UnknownName offers the nearest policy."""
    ordered: list[Example] = ORDERS.get(policy)(examples_best_first, seed=seed, query_id=query_id)
    assert sorted(e.id for e in ordered) == sorted(e.id for e in examples_best_first), f"{policy} is no permutation"
    return ordered


def best_last(examples: Sequence[Example], *, seed: int, query_id: str) -> list[Example]:  # noqa: ARG001
    """The best next to the query."""
    return list(reversed(examples))


def best_first(examples: Sequence[Example], *, seed: int, query_id: str) -> list[Example]:  # noqa: ARG001
    """The best at the beginning of the prompt."""
    return list(examples)


def random_order(examples: Sequence[Example], *, seed: int, query_id: str) -> list[Example]:
    """A shuffle keyed by seed, query and example: dropping one example leaves the order of the others."""
    return sorted(examples, key=lambda e: digest(["order", seed, query_id, e.id]))


def edges(examples: Sequence[Example], *, seed: int, query_id: str) -> list[Example]:  # noqa: ARG001
    """Ranks 1, 3, 5 … from the end, ranks 2, 4, 6 … from the beginning, the worst in the middle.

    For models that lose what stands in the middle of a long context (Liu et al. 2023, "Lost in the Middle").
    """
    return [*examples[1::2], *reversed(examples[0::2])]


def label_interleaved(examples: Sequence[Example], *, seed: int, query_id: str) -> list[Example]:  # noqa: ARG001
    """The best last, but never two of one label side by side where that can be avoided.

    Filled from the query backwards: the best example whose label differs from the one just placed, unless a label
    holds more than half of what is left and has to be placed now.
    """
    left, placed = list(examples), list[Example]()
    count = Counter(e.output for e in left)
    last: str | None = None
    while left:
        label, most = count.most_common(1)[0]
        must = label if 2 * most > len(left) and label != last else None
        fits = (e for e in left if (e.output == must if must is not None else e.output != last))
        chosen = next(fits, left[0])
        left.remove(chosen)
        count[chosen.output] -= 1
        last = chosen.output
        placed.append(chosen)
    return placed[::-1]
