"""BERT without padding: texts of different lengths share every product but the attention, which is done per length.

For the models of type ``bert`` (MiniLM, BGE, E5, GTE …); others run as transformers has them, one length at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from iclkit.embed._torch import BLOCK, row_products

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
PROBE = (3, 3, 9, 17)  # lengths in tokens with which a model is compared with transformers' own forward


class PackedBert:
    """The encoder of a ``transformers`` BertModel, over the tokens of many texts in one row.

    The result of a token does not depend on which texts are packed together: all steps but the attention work on
    tokens one by one, and the attention on texts of one length.
    """

    def __init__(self, model: Any) -> None:
        import torch

        config = model.config
        self.heads, self.eps = int(config.num_attention_heads), float(config.layer_norm_eps)
        words = model.embeddings
        self.words, self.norm = words.word_embeddings.weight, (words.LayerNorm.weight, words.LayerNorm.bias)
        # kept apart: transformers adds word and type first, then position, and sums of bf16 depend on the order
        self.kind, self.places = words.token_type_embeddings.weight[0], words.position_embeddings.weight
        self.sizes = 3 * int(config.hidden_size), int(config.intermediate_size)
        self.layers = []
        for layer in model.encoder.layer:
            own, out = layer.attention.self, layer.attention.output
            parts = (own.query, own.key, own.value)
            self.layers.append(
                (
                    torch.cat([p.weight for p in parts]),
                    torch.cat([p.bias for p in parts]),
                    (out.dense.weight, out.dense.bias),
                    (out.LayerNorm.weight, out.LayerNorm.bias),
                    (layer.intermediate.dense.weight, layer.intermediate.dense.bias),
                    (layer.output.dense.weight, layer.output.dense.bias),
                    (layer.output.LayerNorm.weight, layer.output.LayerNorm.bias),
                )
            )

    @classmethod
    def of(cls, model: Any) -> PackedBert | None:
        """None for a model of another kind, and for one on which this does not compute what transformers computes."""
        import torch

        config = model.config
        plain = (
            config.model_type == "bert"
            and config.hidden_act == "gelu"
            and not getattr(config, "is_decoder", False)
            and getattr(config, "position_embedding_type", "absolute") == "absolute"
            and config.max_position_embeddings >= max(PROBE)
        )
        if not plain:
            return None
        with torch.inference_mode():
            packed = cls(model)
            make = torch.Generator().manual_seed(0)
            ids = [torch.randint(config.vocab_size, (1, n), generator=make).to(packed.words.device) for n in PROBE]
            ours = packed([torch.cat(ids[:2]), *ids[2:]])
            theirs = [model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state for x in ids]
            pairs = zip((t for o in ours for t in o.flatten(0, 1)), (t for x in theirs for t in x[0]), strict=True)
            near = min(float(torch.cosine_similarity(a.float(), b.float(), dim=0)) for a, b in pairs)
        if near > (0.99999 if packed.words.dtype == torch.float32 else 0.99):
            return packed
        log.warning("this BERT differs from the usual one (cosine %.4f); it is run as transformers has it", near)
        return None

    def __call__(self, texts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """texts: token ids (n, t), one tensor per length -> last hidden states (n, t, d), one tensor per length."""
        import torch
        from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention

        sizes = [x.numel() for x in texts]
        ids = torch.cat([x.flatten() for x in texts])
        where = torch.cat([torch.arange(x.shape[1], device=ids.device).repeat(len(x)) for x in texts])
        h = self.words[ids] + self.kind + self.places[where]
        width = h.shape[1:]
        h = layer_norm(h, width, *self.norm, self.eps)
        h = pad(h, (0, 0, 0, -len(h) % BLOCK))  # so that no product has to
        mixed, added, three, wide = (h.new_zeros(len(h), size) for size in (h.shape[1], h.shape[1], *self.sizes))

        def by_length(of: torch.Tensor) -> list[torch.Tensor]:
            """Of each length the rows of its texts: (n, t, …, heads, d)."""
            parts = torch.split(of[: len(ids)], sizes)
            return [part.view(*x.shape, -1, self.heads, d) for x, part in zip(texts, parts, strict=True)]

        d = h.shape[1] // self.heads
        attended = [  # all layers work in the same places
            (part.permute(2, 0, 3, 1, 4).unbind(), place[:, :, 0].transpose(1, 2))
            for part, place in zip(by_length(three), by_length(mixed), strict=True)
        ]
        for weight, bias, out, norm, up, down, last in self.layers:
            row_products(h, weight, bias, room=three)
            for (q, k, v), place in attended:
                place.copy_(scaled_dot_product_attention(q, k, v))
            h = layer_norm(row_products(mixed, *out, room=added).add_(h), width, *norm, self.eps)
            torch.ops.aten.gelu_(row_products(h, *up, room=wide))  # in its place, which nn.functional does not offer
            h = layer_norm(row_products(wide, *down, room=added).add_(h), width, *last, self.eps)
        found = torch.split(h[: len(ids)], sizes)
        return [states.view(*x.shape, -1) for states, x in zip(found, texts, strict=True)]
