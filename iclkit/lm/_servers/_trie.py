"""The trie of a context's labels: which next-token distributions add up to the score of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from iclkit.lm._servers._parse import NextToken
from iclkit.lm._tokens import TokenIds, TokenPair
from iclkit.records import Score

BLOCK = 16
"""Tokens of a block of a prefix cache (vLLM): what stands behind the last whole block is read again."""


@dataclass(frozen=True, slots=True)
class Trie:
    """``children`` holds, for each proper beginning of a request, the ids that come next in one of the requests.

    A request's score is the sum over its beginnings of the log-probability of the id that follows: exact, and one
    prompt for each beginning serves all requests that share it.

    >>> trie = Trie.of([TokenPair((1, 2, 7), 2), TokenPair((1, 2, 8, 9), 2)])
    >>> trie.children
    {(1, 2): (7, 8), (1, 2, 8): (9,)}
    """

    pairs: tuple[TokenPair, ...]
    children: Mapping[TokenIds, tuple[int, ...]]

    @classmethod
    def of(cls, pairs: Sequence[TokenPair]) -> Trie:
        """The trie of requests, shorter beginnings first."""
        found: dict[TokenIds, dict[int, None]] = {}
        for pair in pairs:
            for at in range(pair.n_context, len(pair.ids)):
                found.setdefault(pair.ids[:at], {})[pair.ids[at]] = None
        return cls(tuple(pairs), {node: tuple(found[node]) for node in sorted(found, key=len)})

    @property
    def cost(self) -> int:
        """Tokens that a server with a prefix cache reads: the shortest beginning, then what follows it in each other.

        An upper bound: siblings may share more.
        """
        nodes = [*self.children]
        return len(nodes[0]) + sum(len(node) - len(nodes[0]) + BLOCK for node in nodes[1:])

    @property
    def plain_cost(self) -> int:
        """Tokens read where every request is read whole."""
        return sum(len(pair.ids) for pair in self.pairs)

    def calls(self, most_ids: int, most_prompts: int) -> Iterator[tuple[list[TokenIds], list[int]]]:
        """(prompts, ids) of each request to the server, the shortest beginning alone and first: it fills the cache.

        No call has more than ``most_ids`` ids or ``most_prompts`` prompts; every child is asked for in one of them.
        """
        prompts: list[TokenIds] = []
        ids: dict[int, None] = {}
        for number, (node, wanted) in enumerate(self.children.items()):
            parts = [wanted[at : at + most_ids] for at in range(0, len(wanted), most_ids)]
            for part in parts:
                full = len(ids.keys() | {*part}) > most_ids or len(prompts) >= most_prompts
                if prompts and (full or number == 1 or len(parts) > 1):
                    yield prompts, [*ids]
                    prompts, ids = [], {}
                prompts.append(node)
                ids |= dict.fromkeys(part)
        if prompts:
            yield prompts, [*ids]

    def scores(self, told: Mapping[TokenIds, NextToken]) -> list[Score]:
        """The score of each request. KeyError for an id that was not told."""
        out = []
        for pair in self.pairs:
            steps = [(told[pair.ids[:at]], pair.ids[at]) for at in range(pair.n_context, len(pair.ids))]
            values = [(next_.logprobs[id_], next_.best) for next_, id_ in steps]
            out.append(Score(float(sum(v for v, _ in values)), len(values), all(v >= best for v, best in values)))
        return out
