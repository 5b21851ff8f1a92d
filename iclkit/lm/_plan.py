"""A plan before a pass: which tokens to feed, in which batches, so that each is computed as few times as possible.

Requests become *sequences* (distinct token ids with a context length). Sorted by their tokens they stand in the
order of a prefix trie, so neighbours share most. The plan cuts that order into batches of a token budget; inside a
batch the trie is laid out flat, ``[prefix][a][b]…``, each token once, every token seeing only its own path
(``build_layout``). A prefix that many batches need is computed once and its keys and values are kept for them
(``Prefix``): packing where it is enough, a kept cache where a batch cannot hold the whole subtree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from iclkit.lm._tokens import TokenIds, TokenPair

IntArray = NDArray[np.int64]

MIN_SHARED_TOKENS = 8
"""Tokens a shared node must save to become a segment of its own; below, its tokens are repeated (less bookkeeping)."""
PASS_OVERHEAD = 64
"""What a pass of its own costs beyond its tokens, in tokens: a prefix is kept when repeating it would cost more."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens ``ids[start:]``, computed once and kept; ``parent`` is the kept prefix that ends at ``start``, or -1."""

    ids: TokenIds
    start: int
    parent: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences computed in one pass, after the kept prefix number ``prefix`` (-1: none)."""

    sequences: tuple[int, ...]
    prefix: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be fed, and what it saves.

    ``tokens_asked``: a plain loop, one sequence per request. ``tokens_computed``: after sharing.
    ``requests_of[u]``: indices of the requests that sequence u answers. ``calls``: distinct sequences to compute.
    ``tokens_cached``: the part of ``tokens_asked`` whose answers are known already.
    """

    sequences: tuple[TokenPair, ...]
    requests_of: tuple[tuple[int, ...], ...]
    batches: tuple[Batch, ...]
    prefixes: tuple[Prefix, ...] = ()
    tokens_asked: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0
    packed: bool = True
    """Whether batches are laid out flat; else they are padded."""

    @property
    def calls(self) -> int:
        """Distinct sequences to compute."""
        return sum(len(b.sequences) for b in self.batches)

    def as_laid_out(self) -> Plan:
        """The plan with the tokens that the layouts of its batches really have.

        A layout repeats short shared nodes (``MIN_SHARED_TOKENS``), which the trie counts once. For printed estimates.
        """
        if not self.packed:
            return self
        batches = tuple(
            replace(
                batch,
                tokens=len(
                    build_layout(
                        [self.sequences[u] for u in batch.sequences],
                        len(self.prefixes[batch.prefix].ids) if batch.prefix >= 0 else 0,
                    ).tokens
                ),
            )
            for batch in self.batches
        )
        more = sum(b.tokens for b in batches) - sum(b.tokens for b in self.batches)
        return replace(self, batches=batches, tokens_computed=self.tokens_computed + more)

    def without(self, known: Collection[int]) -> Plan:
        """The plan with the requests ``known`` taken out of their batches.

        What is left keeps batch and order, so whole batches that are known change nothing for the others.
        """
        done = {u for u, requests in enumerate(self.requests_of) if all(i in known for i in requests)}
        batches = []
        for batch in self.batches:
            sequences = tuple(u for u in batch.sequences if u not in done)
            if len(sequences) < len(batch.sequences):
                depth = len(self.prefixes[batch.prefix].ids) if batch.prefix >= 0 else 0
                left = [self.sequences[u] for u in sequences]
                tokens = len(build_layout(left, depth).tokens) if left else 0
                batch = Batch(sequences, batch.prefix, tokens)
            if sequences:
                batches.append(batch)
        needed = {b.prefix for b in batches}
        for i in range(len(self.prefixes) - 1, -1, -1):  # a parent stands before its children
            if i in needed:
                needed.add(self.prefixes[i].parent)
        kept = sum(len(p.ids) - p.start for i, p in enumerate(self.prefixes) if i in needed)
        return replace(
            self,
            batches=tuple(batches),
            tokens_computed=kept + sum(b.tokens for b in batches),
            tokens_cached=sum(len(self.sequences[u].ids) * len(self.requests_of[u]) for u in done),
        )


def make_plan(pairs: Sequence[TokenPair], budget: int, *, share: bool = True, apart: int | None = None) -> Plan:
    """Plan the scoring of ``pairs`` in batches of about ``budget`` tokens (a longer sequence is a batch of its own).

    Without ``share`` every sequence stands alone, in length-sorted batches whose padded size stays in the budget.
    ``apart``: sequences of which more tokens than this are fed stand in other batches than the rest, and share nothing
    with them (a model that reads long sequences otherwise).
    """
    index: dict[TokenPair, int] = {}
    requests_of: list[list[int]] = []
    for i, pair in enumerate(pairs):
        u = index.setdefault(pair, len(index))
        if u == len(requests_of):
            requests_of.append([])
        requests_of[u].append(i)
    sequences = tuple(index)
    tokens_asked = sum(len(p.ids) for p in pairs)
    prefixes: list[Prefix] = []
    fits = [apart is None or len(s.ids) - 1 <= apart for s in sequences]
    batches: list[Batch] = []
    for kind in (True, False):
        members = [u for u, fit in enumerate(fits) if fit is kind]
        batches += _shared(sequences, members, budget, prefixes) if share else _padded(sequences, members, budget)
    computed = sum(b.tokens for b in batches) + sum(len(p.ids) - p.start for p in prefixes)
    return Plan(
        sequences,
        tuple(map(tuple, requests_of)),
        tuple(batches),
        tuple(prefixes),
        tokens_asked,
        computed,
        packed=share,
    )


def _padded(sequences: Sequence[TokenPair], members: Sequence[int], budget: int) -> list[Batch]:
    batches: list[Batch] = []
    current: list[int] = []
    width = 0
    for u in sorted(members, key=lambda u: (-len(sequences[u].ids), u)):
        if current and width * (len(current) + 1) > budget:
            batches.append(Batch(tuple(current), -1, width * len(current)))
            current = []
        if not current:
            width = len(sequences[u].ids) - 1
        current.append(u)
    if current:
        batches.append(Batch(tuple(current), -1, width * len(current)))
    return batches


def common_length(a: TokenIds, b: TokenIds) -> int:
    """Number of leading tokens that ``a`` and ``b`` share."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # a[:low] == b[:low], a[:high] != b[:high]; slices compare at C speed
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _shared(sequences: Sequence[TokenPair], members: Sequence[int], budget: int, prefixes: list[Prefix]) -> list[Batch]:
    """Walk the trie of the ``members`` depth first, keep prefixes that pay, and fill batches in that order."""
    order = sorted(members, key=lambda u: (sequences[u].ids[:-1], sequences[u].n_context, u))
    fed = [sequences[u].ids[:-1] for u in order]
    length = np.array([len(f) for f in fed], np.int64)
    shared = np.array([0, *(common_length(a, b) for a, b in pairwise(fed))], np.int64)
    first_read = np.array([sequences[u].n_context - 1 for u in order], np.int64)

    groups: list[tuple[int, int, int, int]] = []  # low, high, prefix, depth: rows low:high of the order stay together
    todo = [(0, len(fed), 0, -1)]
    while todo:
        low, high, depth, prefix = todo.pop()
        if low == high:
            continue
        tokens = _trie_tokens(length, shared, low, high, depth)
        # equal sequences (labels of one token after one prompt) cost what one costs: they are never cut apart
        if tokens <= budget or tokens == int(length[low]) - depth:
            groups.append((low, high, prefix, depth))
            continue
        common = int(shared[low + 1 : high].min())
        keep = min(common, int(first_read[low:high].min()))
        added = keep - depth
        again = math.ceil((tokens - added) / max(budget - added, 1)) - 1  # further batches that would repeat it
        if added > 0 and again * added > PASS_OVERHEAD:
            prefixes.append(Prefix(fed[low][:keep], depth, prefix))
            todo.append((low, high, keep, len(prefixes) - 1))
            continue
        cuts = [low, *(low + 1 + np.flatnonzero(shared[low + 1 : high] == common)).tolist(), high]
        todo.extend((a, b, depth, prefix) for a, b in reversed(list(pairwise(cuts))))

    batches: list[Batch] = []
    at = 0
    while at < len(groups):
        low, high, prefix, depth = groups[at]
        tokens = _trie_tokens(length, shared, low, high, depth)
        at += 1
        while at < len(groups) and groups[at][2] == prefix:
            more = _trie_tokens(length, shared, low, groups[at][1], depth)
            if more > budget:
                break
            tokens, high = more, groups[at][1]
            at += 1
        batches.append(Batch(tuple(order[low:high]), prefix, tokens))
    return batches


def _trie_tokens(length: IntArray, shared: IntArray, low: int, high: int, depth: int) -> int:
    """Tokens of the trie of sorted sequences low:high beyond ``depth``."""
    rest = length[low + 1 : high] - np.maximum(shared[low + 1 : high], depth)
    return int(length[low]) - depth + int(rest.sum())


@dataclass(slots=True)
class Segment:
    """A run of tokens with one path behind it: flat rows ``at : at + len(ids)``, ``parent`` a segment number or -1."""

    ids: TokenIds
    start: int
    parent: int
    at: int


@dataclass(slots=True)
class Layout:
    """A batch laid out flat: segments in depth-first order, and what to read where.

    ``tokens``, ``positions`` (T,). ``rows`` (R,): flat rows whose next-token distribution is needed, each once.
    Reads: sequence ``read_sequence[j]`` needs log p(``read_token[j]``) at row ``rows[read_row[j]]``.
    """

    segments: list[Segment]
    tokens: IntArray
    positions: IntArray
    rows: IntArray
    read_row: IntArray
    read_token: IntArray
    read_sequence: IntArray
    n_sequences: int
    leaf: list[int]
    """Per sequence: the segment that holds its last fed token."""

    def path(self, sequence: int, size: int) -> list[int]:
        """The flat rows of a sequence's first ``size`` tokens behind the kept prefix."""
        rows: list[int] = []
        s = self.leaf[sequence]
        while s >= 0:
            segment = self.segments[s]
            rows[:0] = range(segment.at, segment.at + len(segment.ids))
            s = segment.parent
        return rows[:size]


@dataclass(slots=True)
class _Node:
    owner: TokenIds
    start: int
    end: int
    children: list[_Node] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)


def build_layout(pairs: Sequence[TokenPair], depth: int = 0) -> Layout:
    """Lay the trie of ``pairs`` out flat; the first ``depth`` tokens, equal for all, stand in a kept prefix."""
    roots = _trie([p.ids[:-1] for p in pairs], depth)
    segments: list[Segment] = []
    leaf = [0] * len(pairs)
    stack = [(node, -1) for node in reversed(roots)]
    at = 0
    while stack:
        node, parent = stack.pop()
        size = node.end - node.start
        while node.children and size * (len(node.children) - 1) < MIN_SHARED_TOKENS:
            node = _merge_small(node, parent, stack)
            size = node.end - node.start
        segments.append(Segment(node.owner[node.start : node.end], node.start, parent, at))
        at += size
        for u in node.sequences:
            leaf[u] = len(segments) - 1
        stack.extend((child, len(segments) - 1) for child in reversed(node.children))

    row_number: dict[int, int] = {}
    reads: list[tuple[int, int, int]] = []
    for u, pair in enumerate(pairs):
        s = leaf[u]
        for position in range(len(pair.ids) - 2, pair.n_context - 2, -1):
            while segments[s].start > position:
                s = segments[s].parent
            row = segments[s].at + position - segments[s].start
            reads.append((row_number.setdefault(row, len(row_number)), pair.ids[position + 1], u))
    read_row, read_token, read_sequence = np.array(reads, np.int64).reshape(-1, 3).T
    tokens = np.array([t for s in segments for t in s.ids], np.int64)
    positions = np.concatenate([np.arange(s.start, s.start + len(s.ids)) for s in segments]).astype(np.int64)
    rows = np.array([*row_number], np.int64)
    return Layout(segments, tokens, positions, rows, read_row, read_token, read_sequence, len(pairs), leaf)


def _merge_small(node: _Node, parent: int, stack: list[tuple[_Node, int]]) -> _Node:
    """Repeat a node's tokens in each child: returns the first child, where its sequences end, and pushes the others."""
    for child in node.children:
        child.start = node.start
    first, *others = node.children
    first.sequences.extend(node.sequences)
    stack.extend((child, parent) for child in reversed(others))
    return first


def _trie(sequences: Sequence[TokenIds], depth: int) -> list[_Node]:
    """The compressed trie of the sequences from ``depth`` on: its root nodes, in sorted order."""
    root = _Node((), depth, depth)
    path = [root]
    previous: TokenIds = ()
    for u in sorted(range(len(sequences)), key=lambda u: (sequences[u], u)):
        ids = sequences[u]
        same = max(depth, common_length(previous, ids)) if previous else depth
        while path[-1].start >= same and path[-1] is not root:
            path.pop()
        top = path[-1]
        if top.end > same:  # the branch leaves this node in its middle: cut it in two
            lower = _Node(top.owner, same, top.end, top.children, top.sequences)
            top.end, top.children, top.sequences = same, [lower], []
        if len(ids) > same:
            node = _Node(ids, same, len(ids))
            path[-1].children.append(node)
            path.append(node)
        path[-1].sequences.append(u)
        previous = ids
    return root.children
