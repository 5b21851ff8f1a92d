"""A packed forward pass for causal LMs over a flat batch (``_plan.build_layout``): nothing padded, nothing unread.

Why not the module of ``transformers``: at these sizes it spends half its time in element-wise passes, casts and
padding. Here every linear layer runs once over the flat tokens, attention runs per block of neighbouring segments
(on a GPU by a variable-length kernel, ``_cascade``), and the residual stream stays in float32, which halves the
rounding error of bf16. What a layer does is data (``_architecture``); weights, rotary tables and epsilons come from the
loaded module, with which this pass is compared when it is loaded (``_forward.matches_module``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iclkit.lm import _cascade, _fused
from iclkit.lm._architecture import Architecture, Norm, Weights
from iclkit.lm._architecture import Layer as LayerWeights
from iclkit.lm._plan import Layout

BLOCK = 128
"""Queries per attention block on CPU. Larger blocks multiply better; smaller ones compute less above the diagonal."""
STRIP = 128
"""Rows of a strip: on CPU the element-wise work between two products is done strip by strip, in a core's own cache."""
ROUND = 32
"""Flat batches are padded to a multiple of this: oneDNN keeps a compiled kernel per shape, about a megabyte each."""
TILE = 32
"""In bf16, torch's attention for CPUs is given so many queries and keys, or a multiple: others take up to twice as
long."""
HEAD_ROWS = 128
"""Rows of the LM head computed at a time: bounds the memory of the logits."""
HEAD_ROWS_GPU = 512

KV = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values (kv heads, tokens, head size)."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (T, heads, size), keys and values (kv heads, T, size)) -> what is seen (T, heads * size)."""
Angles = tuple[Tensor, Tensor]
"""cos, sin (T, 1, half of what is turned); in strips: both as one complex number, scaled for queries, and for keys."""


class _Linear:
    """x -> x W^T + b, through oneDNN with a packed weight on CPU.

    oneDNN is asked for by name in float32 too: on AMD it is more than twice as fast as the MKL that F.linear uses.
    """

    def __init__(self, weights: Weights, packed: bool, order: Tensor | None = None) -> None:
        """``order``: of the numbers that come out, where it is not that of the rows of W."""
        matrix, self.bias, self.packed = weights.matrix, weights.bias, packed
        if order is not None:
            matrix, self.bias = matrix[order], None if self.bias is None else self.bias[order]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous()) if packed else matrix

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self.weight, self.bias)

    def then(self, x: Tensor, activation: tuple[str, str]) -> Tensor:
        """The activation of x W^T + b, fused where packed."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, activation[0], [], activation[1]
            )
            return out
        y = F.linear(x, self.weight, self.bias)
        if activation[0] == "gelu":
            return F.gelu(y, approximate=activation[1])
        return F.silu(y) if activation[0] == "swish" else F.relu(y)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, fused where packed."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
            return out
        return F.linear(x, self.weight, self.bias).mul_(other)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed linear is there: CPU builds with oneDNN, and for bf16 a CPU that it has kernels for."""
    if device.type != "cpu":
        return False
    some = torch.zeros(16, 16, dtype=dtype)
    try:  # a product is tried: which instructions oneDNN asks for differs by version
        packed = torch.ops.mkldnn._reorder_linear_weight(some)
        torch.ops.mkldnn._linear_pointwise(some, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):  # no such operation in this build; none for this CPU
        return False
    return True


def flash_is_faster(dtype: torch.dtype) -> bool:
    """Whether torch's own attention beats two batched products and a softmax on this CPU.

    In float32 it does. In bf16 it multiplies by AMX tiles where there are any, and is slow elsewhere.
    """
    return dtype == torch.float32 or bool(torch.cpu._is_amx_tile_supported())


class _Layer:
    """A layer whose products are ready to multiply.

    ``order`` (size,): of the columns of queries and keys, where it is not that of their weights. Products of queries
    and keys do not depend on it.
    """

    def __init__(self, layer: LayerWeights, packed: bool, kv_heads: int, size: int, order: Tensor | None) -> None:
        self.says, self.q_norm, self.k_norm = layer, layer.q_norm, layer.k_norm
        of_qkv = None
        if order is not None:
            self.q_norm, self.k_norm = (_reordered(norm, order) for norm in (layer.q_norm, layer.k_norm))
            of_qkv = torch.arange(layer.qkv.rows, device=order.device).view(-1, size)
            of_qkv = torch.cat([of_qkv[:-kv_heads, order], of_qkv[-kv_heads:]]).flatten()
        self.qkv = _Linear(layer.qkv, packed, of_qkv)
        self.out, self.up, self.down = (_Linear(w, packed) for w in (layer.out, layer.up, layer.down))
        self.gate = None if layer.gate is None else _Linear(layer.gate, packed)


def _reordered(norm: Norm | None, order: Tensor) -> Norm | None:
    """The norm of heads whose columns stand in another order."""
    if norm is None:
        return None
    weight, bias = (None if t is None else t.view(-1, len(order))[:, order].flatten() for t in (norm.weight, norm.bias))
    assert weight is not None
    return Norm(weight, bias, norm.eps, norm.centered)


class PackedForward:
    """The forward pass of an architecture (weights are used as they are; packed copies of them on CPU).

    ``attention``: "flash", "blocks", "rows", or the kernel of a cascade; None takes what suits the device. ``fused``:
    whether ``_fused`` does the element-wise work; None: where it works. On CPU, where it does not, it is done
    ``in_strips`` of rows, and with the columns of queries and keys in the order in which complex numbers stand.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        attention: str | _cascade.Kernel | None = None,
        fused: bool | None = None,
    ) -> None:
        self.architecture = architecture
        self.embedding: Tensor = architecture.embedding
        self.device: torch.device = self.embedding.device
        self.dtype: torch.dtype = self.embedding.dtype
        self.heads, self.kv_heads, self.size = architecture.heads, architecture.kv_heads, architecture.size
        self.hidden: int = self.embedding.shape[1]
        self.long_from = architecture.long_from
        self._tables: dict[tuple[str, bool], tuple[Tensor, Tensor]] = {}
        if attention is None:
            kernel = _cascade.kernel_for(self.device, self.dtype, self.size)
            blocks = "flash" if flash_is_faster(self.dtype) else "blocks"
            attention = kernel or (blocks if self.device.type == "cpu" else "rows")
        self.attention = attention
        self.fused = _fused.works(self.device) if fused is None else fused
        packed, on_cpu = can_pack(self.device, self.dtype), self.device.type == "cpu"
        self.in_strips = on_cpu and not self.fused
        self.tile = TILE if self.dtype == torch.bfloat16 else 1
        orders = {rope: self._order(rope) if self.in_strips else None for rope in architecture.ropes}
        self.layers = [
            _Layer(layer, packed, self.kv_heads, self.size, None if layer.rope is None else orders[layer.rope])
            for layer in architecture.layers
        ]
        head = architecture.head
        if on_cpu:  # float32 logits: a packed float32 copy of the head
            wide = Weights(tuple(p.float() for p in head.parts), tuple(b.float() for b in head.biases))
            self._head: _Linear | Tensor = _Linear(wide, can_pack(self.device, torch.float32))
            self.head_rows = HEAD_ROWS
        else:
            self._head = head.matrix
            self.head_rows = HEAD_ROWS_GPU
        self._wide = self.device.type == "cuda" and self.dtype == torch.bfloat16 and hasattr(torch.ops.aten.mm, "dtype")

    def forget_angles(self) -> None:
        """Ask the rotary module again: its settings have changed."""
        self._tables = {}

    def _order(self, rope: str) -> Tensor:
        """The columns of a head so that the two which are turned together are neighbours: one complex number."""
        half = self._table(rope, 1, False)[0].shape[-1]
        columns = torch.arange(self.size)
        return torch.cat([columns[: 2 * half].view(2, half).T.flatten(), columns[2 * half :]])

    def _angles(self, positions: Tensor, long: bool) -> list[Angles | None]:
        """How each layer turns queries and keys, by what the model's own rotary module gives."""
        need = int(positions.max()) + 1
        out: dict[tuple[str, float], Angles] = {}
        for says in self.architecture.layers:
            if says.rope is None or (says.rope, says.scale) in out:
                continue
            table = self._tables.get((says.rope, long))
            if table is None or len(table[0]) < need:
                table = self._table(says.rope, max(1024, 1 << (need - 1).bit_length()), long)
                self._tables[says.rope, long] = table
            cos, sin = table[0][positions], table[1][positions]
            if self.in_strips:
                turn = torch.complex(cos, sin)
                cos, sin = turn * says.scale, turn
            out[says.rope, says.scale] = cos, sin
        return [None if says.rope is None else out[says.rope, says.scale] for says in self.architecture.layers]

    def _table(self, rope: str, count: int, long: bool) -> Angles:
        if self.long_from is not None:  # the module goes by the last position that it is given
            count = max(count, self.long_from + 1) if long else self.long_from
        at = torch.arange(count, device=self.device)[None]
        kind = (rope,) if rope else ()
        cos, sin = self.architecture.rotary(torch.zeros(1, dtype=torch.float32, device=self.device), at, *kind)
        half = cos.shape[-1] // 2  # both halves of the table are equal
        return cos[0, :, None, :half].float(), sin[0, :, None, :half].float()

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
        """Rotary embedding of the first columns of x (T, heads, size), scaled, in x's dtype; computed in float32."""
        half = cos.shape[-1]
        if scale != 1:
            cos, sin = cos * scale, sin * scale
        a, b = x[..., :half].float(), x[..., half : 2 * half].float()
        out = torch.empty_like(x)
        out[..., :half] = (a * cos).addcmul_(b, sin, value=-1)
        out[..., half : 2 * half] = (b * cos).addcmul_(a, sin)
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :].float() * scale
        return out

    @torch.inference_mode()
    def forward(
        self, layout: Layout, prefix: KV | None = None, keep: bool = False, *, long: bool = False
    ) -> tuple[Tensor, KV]:
        """Run a laid-out batch after a kept prefix. ``long``: its sequences are longer than
        ``long_from``, all of them.

        Returns the hidden states at ``layout.rows``, normalised, float32 (R, hidden); and, when ``keep``, the prefix's
        keys and values with the batch's own flat rows behind them.
        """
        real = len(layout.tokens)
        n = -(-real // ROUND) * ROUND if self.device.type == "cpu" else real
        tokens, positions = torch.zeros(2, n, dtype=torch.long)
        tokens[:real], positions[:real] = torch.from_numpy(layout.tokens), torch.from_numpy(layout.positions)
        tokens, positions = tokens.to(self.device), positions.to(self.device)
        attend = self._attend(layout, prefix)
        rows = torch.from_numpy(np.resize(layout.rows, -(-len(layout.rows) // ROUND) * ROUND)).to(self.device)
        kept: KV = []

        def attend_and_keep(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = keys[:, :real], values[:, :real]
            old = prefix[number] if prefix else None
            if old:
                kept.append((torch.cat([old[0], keys], 1), torch.cat([old[1], values], 1)))
            else:  # without the queries beside them
                kept.append((keys.contiguous(), values.contiguous()))
            return attend(number, q, keys, values)

        hidden = self._layers(tokens, positions, attend_and_keep if keep else attend, rows, long)
        return hidden[: len(layout.rows)], kept

    def grow(self, tokens: Tensor, positions: Tensor, attend: Attend, *, long: bool = False) -> Tensor:
        """One token per row (B,), with ``attend`` seeing to its past: hidden states, normalised, float32 (B, hidden).

        ``attend`` is given the rows padded; those beyond B are nobody's.
        """
        real = len(tokens)
        if self.device.type == "cpu":
            tokens, positions = F.pad(tokens, (0, -real % ROUND)), F.pad(positions, (0, -real % ROUND))
        return self._layers(tokens, positions, attend, torch.arange(len(tokens), device=self.device), long)[:real]

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor, long: bool) -> Tensor:
        angles = self._angles(positions, long)
        x = self.embedding[tokens].float()
        if self.architecture.embedding_scale != 1:
            x *= self.architecture.embedding_scale
        if self.architecture.positions is not None:
            x += self.architecture.positions[positions]
        more: Tensor | None = None  # what the layer before adds to x
        for number, layer in enumerate(self.layers):
            normed = self._add_norm(x, more, layer.says.before_attention)
            q, keys, values = self._heads(layer, normed, angles[number])
            seen = attend(number, q, keys, values)
            if number == len(self.layers) - 1:  # nobody reads the other rows any more
                x, seen = x[rows], seen[rows]
            more = self._rest(layer, x, seen)
        return self.architecture.final_norm(x if more is None else x.add_(more))

    def _rest(self, layer: _Layer, x: Tensor, seen: Tensor) -> Tensor:
        """Add to rows of x what attention has seen; what the MLP adds to them."""
        says = layer.says
        attended = _normed(layer.out(seen), says.after_attention)
        if says.parallel:
            y = self._add_norm(x, None, says.before_mlp)
            x += attended
        else:
            y = self._add_norm(x, attended, says.before_mlp)
        return _normed(layer.down(self._inner(layer, y)), says.after_mlp)

    def _add_norm(self, x: Tensor, more: Tensor | None, norm: Norm | None) -> Tensor:
        """Add ``more`` to x; the norm of x in the dtype of the products."""
        if self.fused and norm is not None and not norm.centered:
            return _fused.add_norm(x, more, norm.weight, norm.eps, self.dtype)
        if not self.in_strips:
            if more is not None:
                x += more
            return (x if norm is None else norm(x)).to(self.dtype)
        out = torch.empty(x.shape, dtype=self.dtype)
        for strip in _strips(len(x)):
            rows = x[strip] if more is None else x[strip].add_(more[strip])
            out[strip] = rows if norm is None else norm(rows)
        return out

    def _heads(self, layer: _Layer, normed: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, heads, d), rotated and scaled; keys, rotated, and values (kv heads, T, d)."""
        h, g, d, says = self.heads, self.kv_heads, self.size, layer.says
        qkv = layer.qkv(normed).view(len(normed), h + 2 * g, d)
        if self.in_strips:
            self._turn(layer, qkv, angles)
            return qkv[:, :h], qkv[:, h : h + g].transpose(0, 1), qkv[:, h + g :].transpose(0, 1)
        if self.fused and says.q_norm is None and angles is not None and 2 * angles[0].shape[-1] == d:
            return _fused.rotate(qkv, *angles, h, g, says.scale)
        q, k, v = qkv[:, :h], qkv[:, h : h + g], qkv[:, h + g :]
        q, k = self._norm_heads(q, layer.q_norm), self._norm_heads(k, layer.k_norm)
        if angles is not None:
            q, k = self._rotate(q, *angles, says.scale), self._rotate(k, *angles, 1.0)
        elif says.scale != 1:
            q = q * says.scale
        return q, k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()

    def _turn(self, layer: _Layer, qkv: Tensor, angles: Angles | None) -> None:
        """Rotate and scale the queries and rotate the keys of qkv (T, all heads, d), where they stand."""
        h, turned, scale = self.heads, self.heads + self.kv_heads, layer.says.scale
        for strip in _strips(len(qkv)):
            both = qkv[strip, :turned].float()
            q, k = both[:, :h], both[:, h:]
            if layer.q_norm is not None:
                q.copy_(self._norm_heads(q, layer.q_norm))
            if layer.k_norm is not None:
                k.copy_(self._norm_heads(k, layer.k_norm))
            if angles is not None:
                columns = 2 * angles[0].shape[-1]
                for heads, turn in zip((q, k), angles, strict=True):
                    torch.view_as_complex(heads[..., :columns].view(*heads.shape[:2], -1, 2)).mul_(turn[strip])
                if columns < self.size:
                    q[..., columns:] *= scale
            elif scale != 1:
                q *= scale
            qkv[strip, :turned] = both

    def _norm_heads(self, x: Tensor, norm: Norm | None) -> Tensor:
        """The norm of each head of x (T, heads, d), or of all together, whichever it has weights for."""
        if norm is None:
            return x
        whole = len(norm.weight) != self.size
        return norm((x.flatten(1) if whole else x).float()).to(self.dtype).view(x.shape)

    def _inner(self, layer: _Layer, y: Tensor) -> Tensor:
        """What the second product of the layer's MLP reads."""
        activation = self.architecture.activation
        if layer.gate is None:
            return layer.up.then(y, activation)
        if self.fused and activation[0] == "swish":
            return _fused.gate(layer.gate(y), layer.up(y))
        return layer.up.times(y, layer.gate.then(y, activation))

    # -- attention ------------------------------------------------------------------------------------------------

    def _attend(self, layout: Layout, prefix: KV | None) -> Attend:
        """Attention of each layer, by what its layer sees: everything before it, or a window."""
        last, softcap = int(layout.positions.max()), self.architecture.softcap

        def window_of(layer: _Layer) -> int | None:
            window = layer.says.window
            return None if window is None or last < window else window  # a window of everything is none

        ways: dict[int | None, Attend] = {}
        for window in {window_of(layer) for layer in self.layers}:
            if self.attention == "flash" and softcap is None:
                ways[window] = self._flash(layout, prefix, window)
            elif self.attention in ("flash", "blocks"):
                ways[window] = self._blocks(layout, prefix, window, softcap)
            elif callable(self.attention) and window is None and softcap is None:
                ways[window] = self._cascade(layout, prefix, self.attention)
            else:  # what the kernels do not do
                ways[window] = self._rows(layout, prefix, window, softcap)
        if len(ways) == 1:
            return next(iter(ways.values()))
        of_layer = [ways[window_of(layer)] for layer in self.layers]
        return lambda number, q, keys, values: of_layer[number](number, q, keys, values)

    def _cascade(self, layout: Layout, prefix: KV | None, kernel: _cascade.Kernel) -> Attend:
        """Attention by a variable-length kernel: a call for all segments, one per level above, one for the prefix."""
        real = len(layout.tokens)
        own, parts = _cascade.parts_of(layout, prefix[0][0].shape[1] if prefix else 0, self.device)

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            before = (prefix[number][0].transpose(0, 1), prefix[number][1].transpose(0, 1)) if prefix else None
            k, v = keys[:, :real].transpose(0, 1), values[:, :real].transpose(0, 1)
            seen = _cascade.attend(q[:real], k, v, before, own, parts, kernel).flatten(1)
            return F.pad(seen, (0, 0, 0, len(q) - real)) if len(q) > real else seen

        return attend

    def _flash(self, layout: Layout, prefix: KV | None, window: int | None) -> Attend:
        """Attention by torch's own kernel for CPUs, which holds no scores in full: a call for each block.

        A block is made up to whole tiles: by queries that nobody reads, and keys that no other query sees.
        """
        past = prefix[0][0].shape[1] if prefix else 0
        blocks = _cut_blocks(layout, past, window, whole=True)
        tile = self.tile
        masks: dict[tuple[bytes | int, int], Tensor] = {}

        def mask_of(block: _Block) -> Tensor | None:
            """Over all queries and keys of the block's tiles; None for a causal one."""
            size, columns = block.high - block.low, past - block.past_from + sum(b - a for a, b in block.spans)
            if columns == size == block.mask_key:
                return None
            key = block.mask_key, columns
            if key not in masks:
                mask = torch.zeros(_whole(size, tile), _whole(columns, tile), dtype=self.dtype)
                mask[:size, columns - block.mask.shape[1] : columns].masked_fill_(~block.mask, float("-inf"))
                mask[:size, columns:] = float("-inf")
                masks[key] = mask
            return masks[key]

        with_masks = [(block, mask_of(block)) for block in blocks]

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            n, h, d = q.shape
            out = torch.empty(n, h * d, dtype=q.dtype)
            out[blocks[-1].high :] = 0  # padding rows
            queries, before = q.transpose(0, 1), prefix[number] if prefix else None
            for block, mask in with_masks:
                low, size = block.low, block.high - block.low
                rows = _whole(size, tile)  # those of the next block, which are not read
                ks, vs = block.keys_and_values(keys, values, before, tile)
                seen = F.scaled_dot_product_attention(
                    _padded(queries[:, low : low + rows], rows)[None],
                    ks[None],
                    vs[None],
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=1.0,
                    enable_gqa=len(ks) != h,
                )
                out[low : low + size] = seen[0, :, :size].transpose(0, 1).flatten(1)
            return out

        return attend

    def _blocks(self, layout: Layout, prefix: KV | None, window: int | None, softcap: float | None) -> Attend:
        """Attention by blocks of neighbouring segments: a block's queries see its ancestors whole and itself masked."""
        past = prefix[0][0].shape[1] if prefix else 0
        blocks = _cut_blocks(layout, past, window)
        h, g, d = self.heads, self.kv_heads, self.size
        dtype = self.dtype if softcap is None else torch.float32
        masks: dict[bytes | int, Tensor] = {}
        for block in blocks:
            if block.mask_key not in masks:
                masks[block.mask_key] = torch.zeros(block.mask.shape, dtype=dtype).masked_fill_(
                    ~block.mask, float("-inf")
                )

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            n = q.shape[0]
            keys, values = keys.contiguous(), values.contiguous()
            before = prefix[number] if prefix else None
            out = torch.zeros(n, h * d, dtype=q.dtype)  # padding rows stay zero
            grouped = q.view(n, g, h // g, d).permute(1, 2, 0, 3)  # (g, h/g, n, d)
            target = out.view(n, g, h // g, d).permute(1, 2, 0, 3)
            for block in blocks:
                low, high = block.low, block.high
                size = high - low
                ks, vs = block.keys_and_values(keys, values, before)
                scores = torch.bmm(grouped[:, :, low:high].reshape(g, -1, d), ks.transpose(1, 2))
                if softcap is not None:
                    scores = scores.float().div_(softcap).tanh_().mul_(softcap)
                mask = masks[block.mask_key]
                scores.view(g, h // g, size, -1)[..., -mask.shape[1] :] += mask
                weights = torch.softmax(scores, -1).to(q.dtype)
                target[:, :, low:high] = torch.bmm(weights, vs).view(g, h // g, size, d)
            return out

        return attend

    def _rows(self, layout: Layout, prefix: KV | None, window: int | None, softcap: float | None) -> Attend:
        """Attention by padded rows (a row: a root segment with its descendants) under a mask: few, large kernels."""
        h, g, d = self.heads, self.kv_heads, self.size
        spans = _root_spans(layout)
        width = max(b - a for a, b in spans)
        past = prefix[0][0].shape[1] if prefix else 0
        index = torch.full((len(spans), width), -1, dtype=torch.long)
        for r, (a, b) in enumerate(spans):
            index[r, : b - a] = torch.arange(a, b)
        seen = _visible(layout)
        mask = torch.zeros(len(spans), width, width, dtype=torch.bool)
        for r, (a, b) in enumerate(spans):
            mask[r, : b - a, : b - a] = seen(a, b)
        full = torch.cat([torch.ones(len(spans), width, past, dtype=torch.bool), mask], 2)
        if window is not None:
            at = torch.from_numpy(layout.positions)[index.clamp(min=0)]
            keys_at = torch.cat([torch.arange(past).expand(len(spans), past), at], 1)
            full &= keys_at[:, None] > at[:, :, None] - window
        full[:, :, past:] |= torch.eye(width, dtype=torch.bool)  # a padding query sees itself: no empty softmax
        full = full[:, None].to(self.device)
        index = index.to(self.device)
        real = index >= 0
        gather = index.clamp(min=0)

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            ks, vs = keys[:, gather].transpose(0, 1), values[:, gather].transpose(0, 1)  # (rows, g, width, d)
            if prefix is not None:
                pk, pv = prefix[number]
                ks = torch.cat([pk.expand(len(spans), *pk.shape), ks], 2)
                vs = torch.cat([pv.expand(len(spans), *pv.shape), vs], 2)
            ks, vs = ks.repeat_interleave(h // g, 1), vs.repeat_interleave(h // g, 1)
            queries = q[gather].transpose(1, 2)
            if softcap is None:
                o = F.scaled_dot_product_attention(queries, ks, vs, attn_mask=full, scale=1.0)
            else:
                scores = (queries @ ks.transpose(2, 3)).float().div_(softcap).tanh_().mul_(softcap)
                o = scores.masked_fill_(~full, float("-inf")).softmax(-1).to(q.dtype) @ vs
            out = torch.zeros(q.shape[0], h * d, dtype=q.dtype, device=q.device)
            out[index[real]] = o.transpose(1, 2)[real].reshape(-1, h * d)
            return out

        return attend

    # -- logits ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (R, vocabulary) of float32 hidden states: the products and sums are float32, not bf16."""
        out, cap = self._products(hidden), self.architecture.final_softcap
        return out if cap is None else out.div_(cap).tanh_().mul_(cap)

    def _products(self, hidden: Tensor) -> Tensor:
        if isinstance(self._head, _Linear):
            return self._head(hidden)
        bias = self.architecture.head.bias
        if self._wide:  # two bf16 terms hold 16 of the 24 bits of a float32; their products are added up in float32
            high = hidden.to(self.dtype)
            low = (hidden - high).to(self.dtype)
            total = torch.mm(high, self._head.T, out_dtype=torch.float32)
            total.add_(torch.mm(low, self._head.T, out_dtype=torch.float32))
        else:
            total = torch.empty(len(hidden), len(self._head), dtype=torch.float32, device=hidden.device)
            for at in range(0, len(self._head), 16384):  # no float32 copy of a large head
                total[:, at : at + 16384] = hidden @ self._head[at : at + 16384].float().T
        return total if bias is None else total.add_(bias.float())


def _strips(rows: int) -> Iterator[slice]:
    """The rows, a strip at a time."""
    return (slice(at, min(at + STRIP, rows)) for at in range(0, rows, STRIP))


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    """The norm of x in float32; x itself without one."""
    return x if norm is None else norm(x.float())


@dataclass(slots=True)
class _Block:
    low: int
    high: int
    spans: list[tuple[int, int]]  # key rows: the ancestors' and, last, the block's own
    mask: Tensor  # (high - low, K) bool: which of the last K keys a query sees; it sees all before them
    mask_key: bytes | int  # equal for equal masks; a number for a causal mask of so many rows
    past_from: int = 0  # from which token on the kept prefix is seen

    def keys_and_values(
        self, keys: Tensor, values: Tensor, before: tuple[Tensor, Tensor] | None, tile: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Those that the block sees of (kv heads, T, d), those of the kept prefix in front.

        Behind them stand as many zeros as make their number a multiple of ``tile``. (The next rows would do, were they
        surely numbers: what a mask hides is multiplied by 0.)
        """
        from_prefix = before is not None and self.past_from < before[0].shape[1]
        if not from_prefix and len(self.spans) == 1:
            a, b = self.spans[0]
            return _padded(keys[:, a:b], _whole(b - a, tile)), _padded(values[:, a:b], _whole(b - a, tile))
        parts = [(keys[:, a:b], values[:, a:b]) for a, b in self.spans]
        if before is not None and from_prefix:
            parts.insert(0, (before[0][:, self.past_from :], before[1][:, self.past_from :]))
        if missing := -sum(k.shape[1] for k, _ in parts) % tile:
            zeros = keys.new_zeros(len(keys), missing, keys.shape[2])
            parts.append((zeros, zeros))
        return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)


def _whole(count: int, tile: int) -> int:
    """The count, rounded up to whole tiles."""
    return -(-count // tile) * tile


def _padded(x: Tensor, rows: int) -> Tensor:
    """x (heads, T, d) with rows of zeros behind it."""
    return x if x.shape[1] == rows else F.pad(x, (0, 0, 0, rows - x.shape[1]))


def _cut_blocks(layout: Layout, past: int, window: int | None, *, whole: bool = False) -> list[_Block]:
    """The blocks of a batch behind ``past`` kept tokens. ``whole``: a segment that sees only itself is one block."""
    blocks = _make_blocks(layout, whole=whole and not past and window is None)
    return blocks if window is None else [_in_window(block, layout, past, window) for block in blocks]


def _in_window(block: _Block, layout: Layout, past: int, window: int) -> _Block:
    """The block with what no query of it sees cut off, and a mask over all that is left."""
    spans = [s for s in block.spans if s[0] < block.low]  # the ancestors'
    keys = np.concatenate([np.arange(past), *(layout.positions[a:b] for a, b in block.spans)])
    queries = layout.positions[block.low : block.high]
    size = len(queries)
    seen = keys > queries[:, None] - window
    seen[:, -size:] &= block.mask.numpy()
    # an ancestor's rows stand in the order of their positions, and so do ancestors: what is too far is a beginning
    far = int((keys[: len(keys) - size] <= queries.min() - window).sum())
    past_from, left = min(far, past), []
    skip = far - past_from
    for a, b in [*_cut(spans, block.low), (block.low, block.high)]:
        start = min(a + skip, b) if b <= block.low else a
        skip -= start - a
        left.append((start, b))
    mask = torch.from_numpy(seen[:, far:])
    key = mask.numpy().tobytes() + size.to_bytes(4, "little")
    return _Block(block.low, block.high, _merge(left), mask, key, past_from)


def _cut(spans: list[tuple[int, int]], at: int) -> list[tuple[int, int]]:
    """Spans up to a row."""
    return [(a, min(b, at)) for a, b in spans]


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for a, b in spans:
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        elif b > a:
            out.append((a, b))
    return out


def _ancestor_spans(layout: Layout, segment: int) -> list[tuple[int, int]]:
    spans = []
    while segment >= 0:
        s = layout.segments[segment]
        spans.append((s.at, s.at + len(s.ids)))
        segment = s.parent
    return spans[::-1]


def _make_blocks(layout: Layout, *, whole: bool) -> list[_Block]:
    """Cut the flat rows into blocks: a long segment into causal pieces, runs of short relatives into masked ones.

    ``whole``: a long segment without ancestors is not cut.
    """
    blocks: list[_Block] = []
    causal: dict[int, Tensor] = {}
    segments = layout.segments
    seen = _visible(layout)
    i = 0
    while i < len(segments):
        s = segments[i]
        size = len(s.ids)
        ancestors = _ancestor_spans(layout, s.parent)
        j = i + 1
        if size < BLOCK:
            while (
                j < len(segments)
                and (segments[j].parent == s.parent or segments[j].parent >= i)
                and segments[j].at + len(segments[j].ids) - s.at <= BLOCK
            ):
                j += 1
        end = segments[j - 1].at + len(segments[j - 1].ids)
        if j == i + 1:
            step = BLOCK if ancestors or not whole else size
            for low in range(s.at, end, step):
                high = min(low + step, end)
                if high - low not in causal:
                    causal[high - low] = torch.ones(high - low, high - low, dtype=torch.bool).tril_()
                spans = _merge([*ancestors, (s.at, low), (low, high)])
                blocks.append(_Block(low, high, spans, causal[high - low], high - low))
        else:
            mask = seen(s.at, end)
            key = bytes(mask.numpy().tobytes()) + (end - s.at).to_bytes(4, "little")
            blocks.append(_Block(s.at, end, _merge([*ancestors, (s.at, end)]), mask, key))
        i = j
    return blocks


def _root_spans(layout: Layout) -> list[tuple[int, int]]:
    starts = [s.at for s in layout.segments if s.parent < 0]
    return list(zip(starts, [*starts[1:], len(layout.tokens)], strict=True))


def _visible(layout: Layout) -> Callable[[int, int], Tensor]:
    """(a, b) -> bool (b - a, b - a): which of the rows a:b each of them sees, by its path in the trie."""
    n = len(layout.segments)
    path = torch.zeros(n, n, dtype=torch.bool)
    for i, s in enumerate(layout.segments):
        if s.parent >= 0:
            path[i] = path[s.parent]
        path[i, i] = True
    of_row = torch.repeat_interleave(torch.arange(n), torch.tensor([len(s.ids) for s in layout.segments]))

    def seen(a: int, b: int) -> Tensor:
        rows = of_row[a:b]
        return path[rows][:, rows] & torch.ones(b - a, b - a, dtype=torch.bool).tril_()

    return seen
