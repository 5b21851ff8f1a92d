"""The search space: ordered lists of candidate rows, perhaps an instruction each, and what the bandit sees of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from iclkit.embed import Embedder, encode_checked
from iclkit.errors import DataError
from iclkit.prompts import Template
from iclkit.records import Example
from iclkit.tuners._bandit import FloatArray, IntArray, principal_components, transport_bounds, transports


class Arm(NamedTuple):
    """An ordered list of candidate rows, first shown first, and the number of its instruction."""

    rows: tuple[int, ...]
    instruction: int = 0


class ArmFeatures(Protocol):
    """What the bandit sees of arms: (m, d) for lists (m, k) and instruction numbers (m,). Two orders must differ."""

    def __call__(self, lists: IntArray, instructions: IntArray) -> FloatArray: ...


_DECIMALS = 9  # of transport costs: what differs less is equal, whatever solved it
_ROUGH = 10.0**-_DECIMALS
_BLOCK = 1 << 16  # rows of lists whose costs are looked at together


@dataclass(frozen=True)
class SearchSpace:
    """``rows`` candidates, lists of ``k``, ``instructions`` to choose from (1: nothing to choose).

    ``costs`` (rows, v): cost of moving a candidate to each validation item, for the optimal-transport filter; None
    leaves the filter out. ``features`` may be left out where no sampler needs them.
    """

    rows: int
    k: int
    instructions: int = 1
    features: ArmFeatures | None = None
    costs: FloatArray | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.rows:
            raise DataError(f"k is {self.k} with {self.rows} candidates; give a smaller -k or more --candidates")

    def nearest(self, lists: IntArray, keep: int) -> IntArray:
        """The ``keep`` of lists (m, k) of lowest transport cost, cheapest first; of equal ones the earlier.

        Exact: lists are solved in the order of a lower bound of their costs, until no bound left is below the worst
        kept. Permutations of one set are solved once.
        """
        assert self.costs is not None
        if len(lists) <= keep:
            return lists
        sets, of = np.unique(np.sort(lists, axis=1), axis=0, return_inverse=True)
        of = of.reshape(-1)
        blocks = np.array_split(sets, max(1, sets.size // _BLOCK))
        bounds = np.concatenate([transport_bounds(self.costs[block]) for block in blocks])
        sizes, costs = np.bincount(of), np.full(len(sets), np.inf)
        order, at, worst = np.argsort(bounds, kind="stable"), 0, np.inf
        while at < len(order) and bounds[order[at]] <= worst + _ROUGH:
            some = order[at : at + keep]
            costs[some] = np.round(transports(self.costs[sets[some]]), _DECIMALS)
            at += keep
            ranked = np.argsort(costs, kind="stable")
            filled = np.flatnonzero(np.cumsum(sizes[ranked]) >= keep)
            worst = costs[ranked[filled[0]]] if len(filled) else np.inf
        kept: IntArray = lists[np.argsort(costs[of], kind="stable")[:keep]]
        return kept


@dataclass(frozen=True)
class PositionFeatures:
    """One vector per candidate, those of a list side by side: (k * d'), which costs nothing and knows the order.

    ``vectors`` (rows, d) are reduced to ``size // k`` main directions each; for lists drawn at random that is the
    principal component analysis of the whole concatenation. ``words`` (instructions, d) likewise, if there are any.
    """

    vectors: FloatArray
    k: int
    words: FloatArray | None = None
    size: int = 64

    @cached_property
    def _parts(self) -> tuple[FloatArray, FloatArray]:
        words = np.zeros((1, 0)) if self.words is None else principal_components(self.words, max(1, self.size // 4))
        return principal_components(self.vectors, max(1, self.size // self.k)), words

    def __call__(self, lists: IntArray, instructions: IntArray) -> FloatArray:
        """(m, d) features."""
        rows, words = self._parts
        return np.concatenate([rows[lists].reshape(len(lists), -1), words[instructions % len(words)]], axis=1)


class BlockFeatures:
    """The embedding of the whole rendered block: instruction, blank line, demonstrations in order. As in the paper.

    ``render`` gives the text of an arm. Every text is embedded once. An embedder that ignores word order or cuts long
    texts does not see the order; ``is_order_sensitive`` tries.
    """

    def __init__(self, embedder: Embedder, render: Callable[[Arm], str]) -> None:
        self.embedder, self.render = embedder, render
        self._known: dict[Arm, Any] = {}

    def __call__(self, lists: IntArray, instructions: IntArray) -> FloatArray:
        """(m, d) features."""
        arms = [Arm(tuple(r), int(i)) for r, i in zip(lists.tolist(), instructions, strict=True)]
        new = [a for a in dict.fromkeys(arms) if a not in self._known]
        if new:
            vectors = encode_checked(self.embedder, [self.render(a) for a in new], "document")
            self._known.update(zip(new, vectors, strict=True))
        return np.array([self._known[a] for a in arms], dtype=np.float64)


def is_order_sensitive(features: ArmFeatures, rows: int, k: int, tries: int = 4) -> bool:
    """Whether turning the last demonstrations of a list round changes its features, for each of a few lists.

    The end of a list is what a cut-off would hide. True for lists of one, which have no order.
    """
    if k < 2:
        return True
    rng = np.random.default_rng(0)
    lists = np.array([rng.permutation(rows)[:k] for _ in range(tries)])
    turned = lists.copy()
    turned[:, [-2, -1]] = turned[:, [-1, -2]]
    none = np.zeros(tries, dtype=np.int64)
    change = np.abs(features(lists, none) - features(turned, none)).max(axis=1)
    return bool((change > 1e-5).all())


def render_block(template: Template, examples: Sequence[Example], instruction: str) -> str:
    """The part of a prompt that is the same for every query: instruction and demonstrations, as text."""
    parts = [*([instruction] if instruction else []), *(template.render_demo(e) for e in examples)]
    return template.separator.join(parts)
