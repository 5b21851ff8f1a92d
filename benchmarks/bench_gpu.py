"""The three scoring workloads on a GPU (or on CPU with a tiny shape), random weights, no download.

    python benchmarks/bench_gpu.py [--shape 8b|1b|tiny] [--device cuda] [--dtype bf16] [--batch-tokens 16384]
        [--queries 64] [--shots 8] [--candidates 20] [--repeats 3] [--peak-tflops 0]

Workloads, as token ids drawn at random with the lengths of short classification prompts: few-shot prompts with a label
set; the same demonstrations for all queries; a feedback grid. Each against the plain transformers loop (one padded row
per request, batches of 8, full logits, same dtype). Reported: wall seconds, tokens, model FLOP utilisation (2 FLOP per
matrix parameter and computed token, over the measured matmul peak, or --peak-tflops), and the ratio to the loop.
Default: shape 8b on a GPU, tiny on CPU.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np
import torch
from _common import emit, machine, matmul_peak, matrix_parameters, padded_rows, timed

from iclkit.lm._forward import ForwardModel, matches_module
from iclkit.lm._llama import PackedLlama
from iclkit.lm._tokens import TokenPair
from iclkit.lm._torch import TorchLM

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "tiny": (256, 704, 4, 4, 2, 8192),
}


def random_model(shape: str, device: str, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, wide, layers, heads, kv, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


class NoText:
    """Stands where a tokenizer would: this benchmark speaks token ids."""

    eos = None
    start = (1,)


def workloads(a: argparse.Namespace, vocabulary: int) -> dict[str, list[TokenPair]]:
    r = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(r.randrange(3, vocabulary) for _ in range(r.randint(low, high)))

    labels = [(i + 3,) for i in range(4)]
    prompts = [ids(20 * a.shots, 40 * a.shots) for _ in range(a.queries)]
    shots = ids(30 * a.shots, 30 * a.shots)
    queries = [ids(15, 40) for _ in range(a.queries)]
    demos = [ids(20, 45) for _ in range(a.candidates)]
    return {
        "few-shot": [TokenPair((*p, *y), len(p)) for p in prompts for y in labels],
        "fixed": [TokenPair((*shots, *q, *y), len(shots) + len(q)) for q in queries for y in labels],
        "grid": [TokenPair((*d, *q, 5), len(d) + len(q)) for q in queries for d in demos],
    }


def plain_loop(module: Any, pairs: list[TokenPair], device: str, rows: int = 8) -> np.ndarray:
    out: list[float] = []
    for at in range(0, len(pairs), rows):
        part = pairs[at : at + rows]
        ids, mask = padded_rows(part)
        with torch.inference_mode():
            logits = module(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            table = torch.log_softmax(logits[:, :-1].float(), -1)
            values = table.gather(2, ids[:, 1:, None].to(device))[..., 0].cpu()
        out += [float(values[row, p.n_context - 1 : len(p.ids) - 1].sum()) for row, p in enumerate(part)]
    return np.array(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="0: measure it")
    a = parser.parse_args()
    a.shape = a.shape or ("tiny" if a.device == "cpu" else "8b")
    budget = a.batch_tokens or (2048 if a.device == "cpu" else 16384)
    if a.device == "cpu":
        torch.set_num_threads(1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[a.dtype]
    module = random_model(a.shape, a.device, dtype)
    packed = PackedLlama(module)
    if not matches_module(module, packed):
        raise SystemExit("the packed forward does not agree with the module: not timing a wrong answer")
    codec: Any = NoText()
    model = ForwardModel(module, codec, name=a.shape, packed=packed, batch_tokens=budget)
    lm = TorchLM(model, fingerprint="bench")
    hidden, wide = SHAPES[a.shape][:2]
    peak = a.peak_tflops * 1e12 or matmul_peak(4 * 2048, hidden, wide, a.dtype, a.device)
    emit(what="machine", name=machine(), shape=a.shape, dtype=a.dtype, peak_tflops=round(peak / 1e12, 2))
    for name, pairs in workloads(a, module.config.vocab_size).items():
        plan = lm.plan_encoded(pairs)
        best = {"engine": float("inf"), "loop": float("inf")}
        found: dict[str, np.ndarray] = {}
        for _ in range(a.repeats):
            seconds, scores = timed(lambda pairs=pairs: dict(lm.score_encoded(pairs)), device=a.device)
            best["engine"] = min(best["engine"], seconds)
            found["engine"] = np.array([scores[i].logprob for i in range(len(pairs))])
            seconds, found["loop"] = timed(lambda pairs=pairs: plain_loop(module, pairs, a.device), device=a.device)
            best["loop"] = min(best["loop"], seconds)
        flops = 2 * matrix_parameters(module.config) * plan.tokens_computed
        emit(
            what="gpu",
            workload=name,
            seconds={k: round(v, 3) for k, v in best.items()},
            ratio=round(best["loop"] / best["engine"], 1),
            utilisation=round(flops / best["engine"] / peak, 3),
            tokens_asked=plan.tokens_asked,
            tokens_computed=plan.tokens_computed,
            tokens_per_second=round(plan.tokens_computed / best["engine"]),
            largest_difference=float(np.abs(found["engine"] - found["loop"]).max()),
        )


if __name__ == "__main__":
    main()
