"""Writes a Llama-shaped transformers model as a GGUF file, for tests that need one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}


def rotary_halves_to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of each rotary head interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: Any,
    vocabulary: Sequence[str],
    merges: Sequence[str],
    special: Sequence[int],
    chat: str = "",
    weights: str = "F32",
) -> None:
    """A tied model's weights, with a byte-level BPE tokenizer of the kind "smollm".

    ``special`` are the ids of control tokens; the first is BOS, the last EOS. ``weights``: how the matrices are kept,
    F32, F16, Q8_0, Q5_0 or Q4_0 (blocks of 32 weights with one scale each).
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*vocabulary])
    writer.add_token_types([3 if i in set(special) else 1 for i in range(len(vocabulary))])
    writer.add_token_merges([*merges])
    writer.add_bos_token_id(special[0])
    writer.add_eos_token_id(special[-1])
    writer.add_add_bos_token(False)
    if chat:
        writer.add_chat_template(chat)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if "q_proj" in name:
            array = rotary_halves_to_pairs(array, config.num_attention_heads)
        if "k_proj" in name:
            array = rotary_halves_to_pairs(array, config.num_key_value_heads)
        if name == "lm_head.weight":
            continue  # tied
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        array = np.ascontiguousarray(array)
        if array.ndim == 1 or weights == "F32":
            writer.add_tensor(name, array)
        elif weights == "F16":
            writer.add_tensor(name, array.astype(np.float16))
        else:
            kind = GGMLQuantizationType[weights]
            writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert_to_gguf(folder: Path, path: Path, weights: str = "F32") -> Path:
    """The model of a folder, in the layout of SmolLM2, as a GGUF file that llama.cpp reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = {**core["model"]["vocab"], **{t["content"]: t["id"] for t in core["added_tokens"]}}
    merges = [m if isinstance(m, str) else " ".join(m) for m in core["model"]["merges"]]
    special = [1, *(t["id"] for t in core["added_tokens"] if t["id"] not in (1, 2)), 2]
    write_gguf(path, model, sorted(ids, key=ids.__getitem__), merges, special, tokenizer.chat_template, weights)
    return path
