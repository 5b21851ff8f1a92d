"""The element-wise work of the packed pass on a GPU, in three Triton kernels instead of some twenty passes over memory.

Between two matrix products a layer adds to the residual stream, normalizes, rotates queries and keys, and gates. Done
one operation at a time in float32, that moves half a megabyte per token and layer of an 8B model and costs a third of
what the products do. Each kernel reads its inputs once, computes in float32 and writes its outputs once.

Triton comes with torch for CUDA on Linux. Where it is missing or finds no C compiler, torch's own operations are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    jit: Callable[[Any], Any]
    tl: Any
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = tl = None

    def jit(function: Any) -> Any:
        """The Triton kernel of a function, where there is Triton."""
        return triton.jit(function) if triton else function


@jit
def _add_norm(x, added, weight, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(x + row + column, mask=inside, other=0.0)
    if ADD:
        value += tl.load(added + row + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row + column, value, mask=inside)
    scale = tl.rsqrt(tl.sum(value * value) / WIDTH + epsilon)
    value = value * scale * tl.load(weight + column, mask=inside, other=0.0)
    tl.store(out + row + column, value.to(out.dtype.element_ty), mask=inside)


@jit
def _rotate(  # type: ignore[no-untyped-def]
    qkv,
    cos,
    sin,
    q,
    k,
    v,
    rows,
    scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, BLOCK_HALF)[None, :]
    size = 2 * HALF
    inside = (head < HEADS + 2 * GROUPS) & (column < HALF)
    here = row * (HEADS + 2 * GROUPS) * size + head * size + column
    first = tl.load(qkv + here, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(qkv + here + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * HALF + column, mask=column < HALF, other=0.0)
    s = tl.load(sin + row * HALF + column, mask=column < HALF, other=0.0)
    is_query, is_value = head < HEADS, head >= HEADS + GROUPS
    turn = tl.where(is_query, scale, 1.0)
    low = tl.where(is_value, first, (first * c - second * s) * turn).to(q.dtype.element_ty)
    high = tl.where(is_value, second, (second * c + first * s) * turn).to(q.dtype.element_ty)
    at = (row * HEADS + head) * size + column
    mask = inside & is_query
    tl.store(q + at, low, mask=mask)
    tl.store(q + at + HALF, high, mask=mask)
    at = ((head - HEADS).to(tl.int64) * rows + row) * size + column
    mask = inside & (head >= HEADS) & (head < HEADS + GROUPS)
    tl.store(k + at, low, mask=mask)
    tl.store(k + at + HALF, high, mask=mask)
    at = ((head - HEADS - GROUPS).to(tl.int64) * rows + row) * size + column
    mask = inside & is_value
    tl.store(v + at, low, mask=mask)
    tl.store(v + at + HALF, high, mask=mask)


@jit
def _gate(gate, up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    value = value * tl.sigmoid(value) * tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(up + at, value.to(up.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, added: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """RMS norm, in ``dtype``, of the float32 residual stream x (T, width), to which ``added`` is added first."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = _power_of_two(x.shape[1])
    there = x if added is None else added
    _add_norm[(len(x),)](x, there, weight, out, epsilon, x.shape[1], block, added is not None, num_warps=_warps(block))
    return out


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, groups: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated and scaled queries (T, heads, d), rotated keys and bare values (groups, T, d) of qkv (T, all heads, d).

    ``cos``, ``sin``: float32 (T, 1, d / 2).
    """
    n, _, size = qkv.shape
    q = torch.empty(n, heads, size, dtype=qkv.dtype, device=qkv.device)
    k, v = torch.empty(2, groups, n, size, dtype=qkv.dtype, device=qkv.device)
    blocks = _power_of_two(heads + 2 * groups), _power_of_two(size // 2)
    _rotate[(n,)](qkv, cos, sin, q, k, v, n, scale, heads, groups, size // 2, *blocks, num_warps=4)
    return q, k, v


def gate(gated: Tensor, up: Tensor) -> Tensor:
    """silu(gated) * up, written over ``up``."""
    block = 4096
    _gate[(-(-up.numel() // block),)](gated, up, up.numel(), block, num_warps=8)
    return up


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def works(device: torch.device) -> bool:
    """Whether there is Triton here and it can compile for this device."""
    if tl is None or device.type != "cuda":
        return False
    try:
        gate(torch.ones(8, device=device), torch.ones(8, device=device))
    except Exception:  # no C compiler, an old GPU, a broken installation: torch's own operations do the same
        return False
    return True
