"""Attention of a flat batch on a GPU: a few calls of a variable-length kernel, no padding and no mask.

The batch is a trie laid out depth first (``_plan.build_layout``). Every token sees its own segment causally and all of
its ancestors whole. Both are what a variable-length kernel does: one call for all segments, then one call per level of
the trie, in which the tokens below each inner segment see that segment, and one for a kept prefix. Each call gives its
output and the log-sum-exp of its scores, by which the parts are added up as a softmax over all keys (Hydragen,
arXiv 2402.05099; cascade inference of FlashInfer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclkit.lm._plan import Layout

Kernel = Callable[[Tensor, Tensor, Tensor, "Spans"], tuple[Tensor, Tensor]]
"""(queries (T, heads, d), keys and values (K, kv heads, d), spans) -> seen (T, heads, d), log-sum-exp (heads, T)."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Which queries see which keys: sequence i of the queries, ``query_ends[i] : query_ends[i + 1]``, sees sequence i
    of the keys. ``causal``: both are the same tokens and each sees those up to itself. Int32, on the device.
    """

    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One call: ``queries`` (rows of the batch, None for all) see ``keys`` (rows of the batch, None: kept prefix)."""

    spans: Spans
    queries: Tensor | None
    keys: Tensor | None


def parts_of(layout: Layout, past: int, device: torch.device) -> tuple[Spans, list[Part]]:
    """The call in which every segment sees itself, and the calls in which tokens see what stands before their segment.

    ``past``: tokens of the kept prefix.
    """
    segments, total = layout.segments, len(layout.tokens)
    starts = np.array([*(s.at for s in segments), total], np.int64)
    own = _spans(np.diff(starts), np.diff(starts), device, causal=True)
    parts = []
    if past:
        parts.append(Part(_spans(np.array([total]), np.array([past]), device), None, None))
    depth = np.zeros(len(segments), np.int64)
    for i, s in enumerate(segments):
        depth[i] = depth[s.parent] + 1 if s.parent >= 0 else 0
    for level in range(int(depth.max())):
        at = np.flatnonzero(depth <= level)
        follows = np.append(at[1:], len(segments))  # where the subtree of each of them ends
        inner = (depth[at] == level) & (follows > at + 1)
        low, middle, high = starts[at[inner]], starts[at[inner] + 1], starts[follows[inner]]
        queries, keys = (torch.from_numpy(_ranges(a, b)).to(device) for a, b in ((middle, high), (low, middle)))
        parts.append(Part(_spans(high - middle, middle - low, device), queries, keys))
    return own, parts


def _spans(queries: NDArray[np.int64], keys: NDArray[np.int64], device: torch.device, causal: bool = False) -> Spans:
    """Spans of sequences with these lengths."""
    ends = [torch.from_numpy(np.concatenate([[0], np.cumsum(n)]).astype(np.int32)).to(device) for n in (queries, keys)]
    return Spans(ends[0], ends[1], int(queries.max()), int(keys.max()), causal)


def _ranges(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges low : high, one range after the other."""
    sizes = high - low
    first: NDArray[np.int64] = np.repeat(low - (np.cumsum(sizes) - sizes), sizes)
    return first + np.arange(len(first))


def attend(
    q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor] | None, own: Spans, parts: list[Part], kernel: Kernel
) -> Tensor:
    """What the queries (T, heads, d), already scaled, see: (T, heads, d) in their dtype.

    Keys and values (T, kv heads, d); those of the kept prefix (P, kv heads, d).
    """
    seen, weight = kernel(q, k, v, own)
    if not parts:
        return seen
    total = seen.float()
    weight = weight.T.contiguous()  # (T, heads)
    for part in parts:
        some = part.queries
        keys, values = (k[part.keys], v[part.keys]) if part.keys is not None else prefix or (k[:0], v[:0])
        more, more_weight = kernel(q if some is None else q[some], keys, values, part.spans)
        before = weight if some is None else weight[some]
        both = torch.logaddexp(before, more_weight.T)
        mixed = (total if some is None else total[some]) * (before - both).exp()[..., None]
        mixed = mixed.addcmul_(more.float(), (more_weight.T - both).exp()[..., None])
        if some is None:
            total, weight = mixed, both
        else:
            total[some], weight[some] = mixed, both
    return total.to(q.dtype)


def kernel_for(device: torch.device, dtype: torch.dtype, size: int) -> Kernel | None:
    """The kernel of torch for heads of this size on this device, or None where there is none."""
    if device.type != "cuda" or size % 8 or size > 256:
        return None
    if dtype == torch.float32:
        return memory_efficient
    recent = torch.cuda.get_device_capability(device) >= (8, 0) and torch.backends.cuda.is_flash_attention_available()
    return flash if recent else None


def flash(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """FlashAttention (bf16, fp16)."""
    seen, weight, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        spans.query_ends,
        spans.key_ends,
        max(spans.longest_query, 2),  # at 1 it lays the log-sum-exp out differently for grouped heads
        spans.longest_key,
        0.0,
        spans.causal,
        False,
        scale=1.0,
    )
    return seen, weight


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """The kernel of xFormers that torch has, which takes float32."""
    group = q.shape[1] // k.shape[1]
    seen, weight, *_ = torch.ops.aten._efficient_attention_forward(
        q[None],
        k.repeat_interleave(group, 1)[None],
        v.repeat_interleave(group, 1)[None],
        None,
        spans.query_ends,
        spans.key_ends,
        spans.longest_query,
        spans.longest_key,
        0.0,
        1 if spans.causal else 0,
        True,
        scale=1.0,
    )
    ends = spans.query_ends.long()
    sequence = torch.repeat_interleave(torch.arange(len(ends) - 1, device=q.device), ends.diff(), output_size=len(q))
    position = torch.arange(len(q), device=q.device) - ends[sequence]
    return seen[0], weight[sequence, :, position].T


def plain(q: Tensor, k: Tensor, v: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """The same by plain products, sequence by sequence, on any device: what the kernels are held against."""
    group = q.shape[1] // k.shape[1]
    seen, weight = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    queries, keys = spans.query_ends.tolist(), spans.key_ends.tolist()
    for i in range(len(queries) - 1):
        rows, others = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k[others].repeat_interleave(group, 1).float())
        if spans.causal:
            future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu_(1)
            scores.masked_fill_(future, float("-inf"))
        weight[:, rows] = scores.logsumexp(-1)
        values = v[others].repeat_interleave(group, 1).float()
        seen[rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
    return seen, weight
