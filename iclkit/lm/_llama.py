"""A packed forward pass for Llama-shaped models over a flat batch (``_plan.build_layout``): nothing padded or unread.

Why not the module of ``transformers``: at these sizes it spends half its time in element-wise passes, casts and
padding. Here every linear layer runs once over the flat tokens, attention runs per block of neighbouring segments
(on a GPU by a variable-length kernel, ``_cascade``), and the residual stream stays in float32, which halves the
rounding error of bf16. Weights, rotary tables and epsilon come from the loaded module, with which this pass is compared
when it is loaded (``_forward.matches_module``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iclkit.lm import _cascade, _fused
from iclkit.lm._plan import Layout

BLOCK = 128
"""Queries per attention block on CPU. Larger blocks multiply better; smaller ones compute less above the diagonal."""
ROUND = 32
"""Flat batches are padded to a multiple of this: oneDNN keeps a compiled kernel per shape, about a megabyte each."""
HEAD_ROWS = 128
"""Rows of the LM head computed at a time: bounds the memory of the logits."""
HEAD_ROWS_GPU = 512
SUPPORTED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})

KV = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values (kv heads, tokens, head size)."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (T, heads, size), keys and values (kv heads, T, size)) -> what is seen (T, heads * size)."""


def is_supported(config: Any) -> bool:
    """Whether ``PackedLlama`` knows this architecture and every setting of it that changes the arithmetic."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    sliding = getattr(config, "use_sliding_window", getattr(config, "sliding_window", None) is not None)
    if sliding and getattr(config, "sliding_window", None) is None:
        sliding = False
    return bool(
        config.model_type in SUPPORTED
        and getattr(config, "hidden_act", "") == "silu"
        and kind in _ROPES
        and not sliding
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class _Linear:
    """x -> x W^T + b, through oneDNN with a packed weight on CPU.

    oneDNN is asked for by name in float32 too: on AMD it is more than twice as fast as the MKL that F.linear uses.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: bool) -> None:
        self.bias, self.packed = bias, packed
        ops = torch.ops.mkldnn
        self.weight = ops._reorder_linear_weight(weight.contiguous()) if packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x W^T + b), fused where packed."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")
            return out
        return F.silu(F.linear(x, self.weight, self.bias))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, fused where packed."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
            return out
        return F.linear(x, self.weight, self.bias).mul_(other)


def can_pack(device: torch.device) -> bool:
    """Whether oneDNN's packed linear is there (CPU builds with oneDNN)."""
    return bool(device.type == "cpu" and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


@dataclass(slots=True)
class _Layer:
    norm1: Tensor
    qkv: _Linear
    o: _Linear
    norm2: Tensor
    gate: _Linear
    up: _Linear
    down: _Linear
    q_norm: Tensor | None
    k_norm: Tensor | None


class PackedLlama:
    """The forward pass. ``module`` is the loaded ``…ForCausalLM``, whose parameters are used (packed copies on CPU).

    ``attention``: "blocks", "rows", or the kernel of a cascade; None takes what suits the device. ``fused``: whether
    ``_fused`` does the element-wise work; None: where it works.
    """

    def __init__(
        self, module: Any, *, attention: str | _cascade.Kernel | None = None, fused: bool | None = None
    ) -> None:
        config = module.config
        base = module.model
        self.device: torch.device = base.embed_tokens.weight.device
        self.dtype: torch.dtype = base.embed_tokens.weight.dtype
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads or config.num_attention_heads
        self.size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps: float = config.rms_norm_eps
        self.embedding: Tensor = base.embed_tokens.weight
        self.final_norm: Tensor = base.norm.weight.float()
        self.hidden: int = config.hidden_size
        self._rotary: Any = base.rotary_emb
        self._tables: tuple[Tensor, Tensor] | None = None
        if attention is None:
            kernel = _cascade.kernel_for(self.device, self.dtype, self.size)
            attention = kernel or ("blocks" if self.device.type == "cpu" else "rows")
        self.attention = attention
        self.fused = _fused.works(self.device) if fused is None else fused
        packed = can_pack(self.device)
        self.layers = [self._layer(layer, packed) for layer in base.layers]
        head = module.get_output_embeddings()
        if self.device.type == "cpu":  # float32 logits: a packed float32 copy of the head
            self._head: _Linear | Tensor = _Linear(head.weight.float(), None, packed)
            self.head_rows = HEAD_ROWS
        else:
            self._head = head.weight
            self.head_rows = HEAD_ROWS_GPU
        self._wide = self.device.type == "cuda" and self.dtype == torch.bfloat16 and hasattr(torch.ops.aten.mm, "dtype")

    @staticmethod
    def _layer(layer: Any, packed: bool) -> _Layer:
        a, m = layer.self_attn, layer.mlp

        def linear(*parts: Any) -> _Linear:
            weight = torch.cat([p.weight for p in parts]) if len(parts) > 1 else parts[0].weight
            bias = None if parts[0].bias is None else torch.cat([p.bias for p in parts])
            return _Linear(weight.detach(), None if bias is None else bias.detach(), packed)

        def norm(module: Any) -> Tensor | None:
            return None if module is None else module.weight.detach().float()

        first, second = norm(layer.input_layernorm), norm(layer.post_attention_layernorm)
        assert first is not None
        assert second is not None
        return _Layer(
            norm1=first,
            qkv=linear(a.q_proj, a.k_proj, a.v_proj),
            o=linear(a.o_proj),
            norm2=second,
            gate=linear(m.gate_proj),
            up=linear(m.up_proj),
            down=linear(m.down_proj),
            q_norm=norm(getattr(a, "q_norm", None)),
            k_norm=norm(getattr(a, "k_norm", None)),
        )

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin (T, 1, size / 2) in float32, as the model's own rotary module gives them."""
        need = int(positions.max()) + 1
        if self._tables is None or len(self._tables[0]) < need:
            count = max(1024, 1 << (need - 1).bit_length())
            at = torch.arange(count, device=self.device)[None]
            cos, sin = self._rotary(torch.zeros(1, dtype=torch.float32, device=self.device), at)
            half = self.size // 2  # both halves of the table are equal
            self._tables = cos[0, :, None, :half].float(), sin[0, :, None, :half].float()
        return self._tables[0][positions], self._tables[1][positions]

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding of x (T, heads, size), in x's dtype; the arithmetic is float32."""
        half = self.size // 2
        a, b = x[..., :half].float(), x[..., half:].float()
        out = torch.empty_like(x)
        out[..., :half] = (a * cos).addcmul_(b, sin, value=-1)
        out[..., half:] = (b * cos).addcmul_(a, sin)
        return out

    @torch.inference_mode()
    def forward(self, layout: Layout, prefix: KV | None = None, keep: bool = False) -> tuple[Tensor, KV]:
        """Run a laid-out batch after a kept prefix.

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
            kept.append((torch.cat([old[0], keys], 1), torch.cat([old[1], values], 1)) if old else (keys, values))
            return attend(number, q, keys, values)

        hidden = self._layers(tokens, positions, attend_and_keep if keep else attend, rows)
        return hidden[: len(layout.rows)], kept

    def grow(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """One token per row (B,), with ``attend`` seeing to its past: hidden states, normalised, float32 (B, hidden).

        ``attend`` is given the rows padded; those beyond B are nobody's.
        """
        real = len(tokens)
        if self.device.type == "cpu":
            tokens, positions = F.pad(tokens, (0, -real % ROUND)), F.pad(positions, (0, -real % ROUND))
        return self._layers(tokens, positions, attend, torch.arange(len(tokens), device=self.device))[:real]

    def _layers(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor) -> Tensor:
        angles = self._angles(positions)
        x = self.embedding[tokens].float()
        more: Tensor | None = None  # what the layer before adds to x
        for number, layer in enumerate(self.layers):
            y = self._add_norm(x, more, layer.norm1)
            q, keys, values = self._heads(layer, y, angles)
            seen = attend(number, q, keys, values)
            if number == len(self.layers) - 1:  # nobody reads the other rows any more
                x, seen = x[rows], seen[rows]
            y = self._add_norm(x, layer.o(seen), layer.norm2)
            more = layer.down(self._gated(layer, y))
        if more is not None:
            x += more
        return F.rms_norm(x, (self.hidden,), self.final_norm, self.eps)

    def _add_norm(self, x: Tensor, more: Tensor | None, weight: Tensor) -> Tensor:
        """Add ``more`` to x; the RMS norm of x in the dtype of the products."""
        if self.fused:
            return _fused.add_norm(x, more, weight, self.eps, self.dtype)
        if more is not None:
            x += more
        return F.rms_norm(x, (self.hidden,), weight, self.eps).to(self.dtype)

    def _heads(self, layer: _Layer, y: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, heads, d), rotated and scaled; keys, rotated, and values (kv heads, T, d)."""
        (cos, sin), scale = angles, self.size**-0.5
        h, g, d = self.heads, self.kv_heads, self.size
        qkv = layer.qkv(y).view(len(y), h + 2 * g, d)
        if self.fused and layer.q_norm is None:
            return _fused.rotate(qkv, cos, sin, h, g, scale)
        q, k, v = qkv[:, :h], qkv[:, h : h + g], qkv[:, h + g :]
        if layer.q_norm is not None and layer.k_norm is not None:
            q = F.rms_norm(q.float(), (d,), layer.q_norm, self.eps).to(self.dtype)
            k = F.rms_norm(k.float(), (d,), layer.k_norm, self.eps).to(self.dtype)
        q, k = self._rotate(q, cos * scale, sin * scale), self._rotate(k, cos, sin)
        return q, k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()

    def _gated(self, layer: _Layer, y: Tensor) -> Tensor:
        """What the second product of the layer's MLP reads."""
        if self.fused:
            return _fused.gate(layer.gate(y), layer.up(y))
        return layer.up.times(y, layer.gate.silu(y))

    # -- attention ------------------------------------------------------------------------------------------------

    def _attend(self, layout: Layout, prefix: KV | None) -> Attend:
        if self.attention == "blocks":
            return self._blocks(layout, prefix)
        if callable(self.attention):
            return self._cascade(layout, prefix, self.attention)
        return self._rows(layout, prefix)

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

    def _blocks(self, layout: Layout, prefix: KV | None) -> Attend:
        """Attention by blocks of neighbouring segments: a block's queries see its ancestors whole and itself masked."""
        blocks = _make_blocks(layout)
        h, g, d = self.heads, self.kv_heads, self.size
        masks: dict[bytes | int, Tensor] = {}
        for block in blocks:
            if block.mask_key not in masks:
                masks[block.mask_key] = torch.zeros(block.mask.shape, dtype=self.dtype).masked_fill_(
                    ~block.mask, float("-inf")
                )

        def attend(number: int, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            n = q.shape[0]
            out = torch.zeros(n, h * d, dtype=q.dtype)  # padding rows stay zero
            grouped = q.view(n, g, h // g, d).permute(1, 2, 0, 3)  # (g, h/g, n, d)
            target = out.view(n, g, h // g, d).permute(1, 2, 0, 3)
            for block in blocks:
                low, high = block.low, block.high
                size = high - low
                if prefix is None and len(block.spans) == 1:
                    a, b = block.spans[0]
                    ks, vs = keys[:, a:b], values[:, a:b]
                else:
                    parts = [(keys[:, a:b], values[:, a:b]) for a, b in block.spans]
                    if prefix is not None:
                        parts.insert(0, prefix[number])
                    ks, vs = torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)
                scores = torch.bmm(grouped[:, :, low:high].reshape(g, -1, d), ks.transpose(1, 2))
                scores.view(g, h // g, size, -1)[..., -size:] += masks[block.mask_key]
                weights = torch.softmax(scores, -1)
                target[:, :, low:high] = torch.bmm(weights, vs).view(g, h // g, size, d)
            return out

        return attend

    def _rows(self, layout: Layout, prefix: KV | None) -> Attend:
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
        mask |= torch.eye(width, dtype=torch.bool)  # a padding query sees itself: no empty softmax
        full = torch.cat([torch.ones(len(spans), width, past, dtype=torch.bool), mask], 2)[:, None].to(self.device)
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
            o = F.scaled_dot_product_attention(q[gather].transpose(1, 2), ks, vs, attn_mask=full, scale=1.0)
            out = torch.zeros(q.shape[0], h * d, dtype=q.dtype, device=q.device)
            out[index[real]] = o.transpose(1, 2)[real].reshape(-1, h * d)
            return out

        return attend

    # -- logits ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """float32 logits (R, vocabulary) of float32 hidden states: the products and sums are float32, not bf16."""
        if isinstance(self._head, _Linear):
            return self._head(hidden)
        if self._wide:  # two bf16 terms hold 16 of the 24 bits of a float32; their products are added up in float32
            high = hidden.to(self.dtype)
            low = (hidden - high).to(self.dtype)
            total = torch.mm(high, self._head.T, out_dtype=torch.float32)
            return total.add_(torch.mm(low, self._head.T, out_dtype=torch.float32))
        out = torch.empty(len(hidden), len(self._head), dtype=torch.float32, device=hidden.device)
        for at in range(0, len(self._head), 16384):  # no float32 copy of a large head
            out[:, at : at + 16384] = hidden @ self._head[at : at + 16384].float().T
        return out


@dataclass(slots=True)
class _Block:
    low: int
    high: int
    spans: list[tuple[int, int]]  # key rows: the ancestors' and, last, the block's own
    mask: Tensor  # (high - low, high - low) bool: which of the block's own keys a query sees
    mask_key: bytes | int


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


def _make_blocks(layout: Layout) -> list[_Block]:
    """Cut the flat rows into blocks: a long segment into causal pieces, runs of short relatives into masked ones."""
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
            for low in range(s.at, end, BLOCK):
                high = min(low + BLOCK, end)
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
