"""Order policies: from rank order (best first) to prompt order (what is read first, first).

A policy is a function ``(examples_best_first, *, seed, query_id) -> list`` that returns a permutation; packages add
theirs in the entry point group ``iclkit.orders``.
"""

from __future__ import annotations

from collections import deque
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
    waiting: dict[str, deque[int]] = {}  # of each label, the ranks that are not placed yet
    for rank, example in enumerate(examples):
        waiting.setdefault(example.output, deque()).append(rank)
    placed = list[Example]()
    last: str | None = None
    for left in range(len(examples), 0, -1):
        label = max(waiting, key=lambda name: len(waiting[name]))
        if 2 * len(waiting[label]) <= left or label == last:
            others = [name for name in waiting if name != last] or [*waiting]
            label = min(others, key=lambda name: waiting[name][0])
        placed.append(examples[waiting[label].popleft()])
        if not waiting[label]:
            del waiting[label]
        last = label
    return placed[::-1]
