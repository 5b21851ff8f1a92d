"""Scoring and generation on a GPU beside plain transformers (or on CPU with a tiny shape): speed, utilization, answers.

    python benchmarks/bench_gpu.py [--shape 8b|1b|135m|smol6|tiny [--family llama] | --model NAME] [--device cuda]
        [--dtype bf16] [--batch-tokens N] [--queries 512] [--repeats 2]
        [--peak-tflops 989] [--table FILE] [--reference FILE] [--profile]
    python benchmarks/bench_gpu.py --model NAME --device cpu --write-reference FILE [--data DATA]

--shape makes random weights of that shape on the device, by the architecture of --family (a model_type that the packed
pass knows); --model loads one. The prompts are token ids drawn at random:

- few-shot: prompts of 8 demonstrations (160 to 320 tokens), 4 labels of one token;
- fixed: the same 240 tokens of demonstrations before each query of 15 to 40 tokens, 4 labels;
- feedback: log p(answer | prompt) of 8 answers of 12 to 20 tokens behind each prompt of 700 to 1,000 tokens;
- generation: prompts as in few-shot, 64 new tokens, greedy.

Plain transformers reads what has to be read: rows sorted by length, padded on the left, as many as give a pass of the
same number of tokens, logits of the last position (feedback: of the answer) only, one row per prompt (feedback: per
prompt and answer). Same weights, dtype and process. Utilization: 2 FLOP per matrix parameter and token computed, over
--peak-tflops (989: the H100's and H200's dense bf16 peak by the data sheet) and over the best rate of a square product
measured here. Attention and the LM head are not counted.

--write-reference stores float32 label scores of 200 real prompts (TREC and SST-2, 8 nearest demonstrations each);
--reference compares the device's predictions with them in float32, bf16 and bf16-verified.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    LABELS,
    default_data,
    emit,
    few_shot_prompts,
    machine,
    matmul_peak,
    matrix_parameters,
    timed,
)

from iclkit.lm import GenerateRequest, ScoreRequest
from iclkit.lm._architecture import FAMILIES, describe
from iclkit.lm._forward import ForwardModel, matches_module
from iclkit.lm._load import load_torch
from iclkit.lm._packed import PackedForward
from iclkit.lm._tokens import TokenPair
from iclkit.lm._torch import TorchLM
from iclkit.lm._verified import VerifiedLM

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "smol6": (576, 1536, 6, 9, 3, 49152),  # six layers of the 135m
    "tiny": (256, 704, 4, 4, 2, 8192),
}
NEW_TOKENS = 64
TASKS = ("trec", "sst2")


def random_model(shape: str, family: str, device: str, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    hidden, wide, layers, heads, kv, vocabulary = SHAPES[shape]
    config = AutoConfig.for_model(
        family,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if family in ("gpt_neox", "gpt_neo", "gpt2") else kv,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


class NoText:
    """Stands where a tokenizer would: this benchmark speaks token ids."""

    eos = None
    start = (1,)
    notes = ()
    tokenizer = ()

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def load(a: argparse.Namespace) -> TorchLM:
    if a.model:
        return load_torch(a.model, dtype=a.dtype, device=a.device, batch_tokens=a.batch_tokens)
    module = random_model(a.shape, a.family, a.device, {"bf16": torch.bfloat16, "fp32": torch.float32}[a.dtype])
    described = describe(module)
    assert described is not None
    packed = PackedForward(described)
    if not matches_module(module, packed):
        raise SystemExit("the packed pass does not agree with the module: not timing a wrong answer")
    codec: Any = NoText()
    model = ForwardModel(module, codec, name=a.shape, packed=packed, batch_tokens=a.batch_tokens)
    return TorchLM(model, fingerprint="bench")


class Draw:
    """Random token ids."""

    def __init__(self, vocabulary: int) -> None:
        self.random, self.vocabulary = random.Random(0), vocabulary

    def __call__(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(3, self.vocabulary) for _ in range(self.random.randint(low, high)))


def workloads(queries: int, vocabulary: int) -> dict[str, list[TokenPair]]:
    draw = Draw(vocabulary)
    labels = [(i + 3,) for i in range(4)]
    prompts = [draw(160, 320) for _ in range(queries)]
    shots = draw(240, 240)
    fixed = [(*shots, *draw(15, 40)) for _ in range(2 * queries)]
    long = [draw(700, 1000) for _ in range(max(queries // 8, 1))]
    return {
        "few-shot": [TokenPair((*p, *y), len(p)) for p in prompts for y in labels],
        "fixed": [TokenPair((*p, *y), len(p)) for p in fixed for y in labels],
        "feedback": [TokenPair((*p, *draw(12, 20)), len(p)) for p in long for _ in range(8)],
    }


def plain_rows(rows: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Row numbers in batches of sorted length whose padded size stays in the budget."""
    batches: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if not batches or len(rows[batches[-1][0]]) * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def left_padded(rows: Sequence[Sequence[int]], device: str) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, width - len(row) :] = torch.tensor(row)
        mask[r, width - len(row) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


@torch.inference_mode()
def plain_scores(module: Any, pairs: list[TokenPair], device: str, budget: int) -> np.ndarray:
    """log p of each continuation. Pairs of one token behind one prompt are read from one row."""
    values = np.zeros(len(pairs))
    of_row: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(pairs):
        of_row.setdefault(p.ids[:-1], []).append(i)
    rows = list(of_row)
    for batch in plain_rows(rows, budget):
        fed = left_padded([rows[i] for i in batch], device)
        length = [len(pairs[of_row[rows[i]][0]].ids) - pairs[of_row[rows[i]][0]].n_context for i in batch]
        positions = (fed["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = module(**fed, position_ids=positions, logits_to_keep=max(length), use_cache=False).logits
        table = torch.log_softmax(logits.float(), -1)
        where = [(r, i) for r, b in enumerate(batch) for i in of_row[rows[b]]]
        wanted = torch.full((len(where), max(length)), -1, dtype=torch.long)
        for j, (_, i) in enumerate(where):
            tail = pairs[i].ids[pairs[i].n_context :]
            wanted[j, max(length) - len(tail) :] = torch.tensor(tail)
        wanted = wanted.to(device)
        picked = table[torch.tensor([r for r, _ in where], device=device)].gather(2, wanted.clamp(min=0)[..., None])
        sums = (picked[..., 0] * (wanted >= 0)).sum(-1).cpu().numpy()
        values[[i for _, i in where]] = sums
    return values


@torch.inference_mode()
def plain_generation(module: Any, prompts: list[tuple[int, ...]], device: str, rows: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        fed = left_padded([prompts[i] for i in part], device)
        made = module.generate(
            **fed, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        for i, row in zip(part, made[:, fed["input_ids"].shape[1] :].tolist(), strict=True):
            out[i] = row
    return out


def best_of(repeats: int, call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds of the best run after one that warms up, and what it gave."""
    call()
    runs = [timed(call, device=device) for _ in range(repeats)]
    return min(runs, key=lambda run: run[0])


def measure(a: argparse.Namespace, lm: TorchLM, peaks: dict[str, float]) -> list[dict[str, Any]]:
    vocabulary, parameters = lm.model.module.config.vocab_size, matrix_parameters(lm.model.module.config)
    rows = list[dict[str, Any]]()
    for name, pairs in workloads(a.queries, vocabulary).items():
        plan = lm.plan_encoded(pairs)
        seconds, scores = best_of(a.repeats, lambda pairs=pairs: dict(lm.score_encoded(pairs)), a.device)
        found = np.array([scores[i].logprob for i in range(len(pairs))])
        plain, expected = best_of(
            1, lambda pairs=pairs: plain_scores(lm.model.module, pairs, a.device, lm.model.batch_tokens), a.device
        )
        read = sum(map(len, {p.ids[:-1] for p in pairs}))  # what plain transformers computes, padding left out
        rows.append(
            {
                "workload": name,
                "prompts": len({p.ids[: p.n_context] for p in pairs}),
                "tokens": {"plain": read, "iclkit": plan.tokens_computed},
                "seconds": {"plain": round(plain, 3), "iclkit": round(seconds, 3)},
                "difference": float(np.abs(found - expected).max()),
            }
        )
    prompts = [p.ids[: p.n_context] for p in workloads(min(a.queries, 256), vocabulary)["few-shot"][::4]]
    eos, lm.model._eos = lm.model._eos, set()  # every row writes to the end, as there
    requests = [GenerateRequest("", NEW_TOKENS)] * len(prompts)
    seconds, texts = best_of(a.repeats, lambda: dict(lm.generate_encoded(prompts, requests)), a.device)
    plain, made = best_of(1, lambda: plain_generation(lm.model.module, prompts, a.device, len(prompts)), a.device)
    lm.model._eos = eos
    same = [texts[i].text == lm.codec.decode(ids) for i, ids in enumerate(made)]
    total = sum(map(len, prompts)) + len(prompts) * (NEW_TOKENS - 1)
    rows.append(
        {
            "workload": "generation",
            "prompts": len(prompts),
            "tokens": {"plain": total, "iclkit": total},
            "seconds": {"plain": round(plain, 3), "iclkit": round(seconds, 3)},
            "same_texts": round(float(np.mean(same)), 3),
        }
    )
    for row in rows:
        rate = {k: row["tokens"][k] / row["seconds"][k] for k in ("plain", "iclkit")}
        row["tokens_per_second"] = {k: round(v) for k, v in rate.items()}
        row["asked_per_second"] = {k: round(row["tokens"]["plain"] / row["seconds"][k]) for k in rate}
        for peak, value in peaks.items():
            row[peak] = {k: round(2 * parameters * v / value, 3) for k, v in rate.items()}
        row["ratio"] = round(row["seconds"]["plain"] / row["seconds"]["iclkit"], 2)
        emit(what="gpu", **row)
    return rows


def table(title: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{title}\n",
        "| workload | prompts | seconds, plain → iclkit | times plain | tokens read, plain → iclkit | tokens computed "
        "per second | of the peak | of the measured peak | plain, of the peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['workload']} | {r['prompts']} | {r['seconds']['plain']:.2f} → {r['seconds']['iclkit']:.2f} | "
            f"**{r['ratio']:.1f}** | {r['tokens']['plain']:,} → {r['tokens']['iclkit']:,} | "
            f"{r['tokens_per_second']['iclkit']:,} | {r['peak']['iclkit']:.0%} | {r['measured']['iclkit']:.0%} | "
            f"{r['peak']['plain']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def real_requests(data: Path) -> list[ScoreRequest]:
    return [
        ScoreRequest(prompt, f" {label}", f"{task}{i}")
        for task in TASKS
        for i, prompt in enumerate(few_shot_prompts(data, task, 100, 8))
        for label in LABELS[task]
    ]


def predictions(scores: Sequence[float], requests: Sequence[ScoreRequest]) -> list[int]:
    groups: dict[str, list[float]] = {}
    for score, request in zip(scores, requests, strict=True):
        groups.setdefault(request.group, []).append(score)
    return [int(np.argmax(g)) for g in groups.values()]


def compare(a: argparse.Namespace) -> None:
    """The device's predictions beside the stored ones."""
    stored = json.loads(a.reference.read_text(encoding="utf-8"))
    requests = [ScoreRequest(*r) for r in stored["requests"]]
    expected = predictions(stored["scores"], requests)
    fp32, bf16 = (load_torch(a.model, dtype=d, device=a.device, batch_tokens=a.batch_tokens) for d in ("fp32", "bf16"))
    for name, lm in {"fp32": fp32, "bf16": bf16, "bf16-verified": VerifiedLM(bf16, fp32)}.items():
        scores = [s.logprob for s in lm.score(requests)]
        got = predictions(scores, requests)
        emit(
            what="predictions",
            dtype=name,
            prompts=len(expected),
            equal_to_cpu=float(np.mean([x == y for x, y in zip(got, expected, strict=True)])),
            largest_difference=float(np.abs(np.array(scores) - np.array(stored["scores"])).max()),
            cpu=stored["machine"],
        )


def profile(lm: TorchLM, pairs: list[TokenPair]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as done:
        dict(lm.score_encoded(pairs))
        torch.cuda.synchronize()
    print(done.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=60), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--model")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--table", type=Path, help="append the table to this file")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--write-reference", type=Path)
    parser.add_argument("--profile", action="store_true")
    a = parser.parse_args()
    if a.write_reference:
        requests = real_requests(a.data)
        scores = [s.logprob for s in load_torch(a.model, dtype="fp32", device=a.device).score(requests)]
        whole = {"machine": machine(), "requests": [[r.context, r.continuation, r.group] for r in requests]}
        a.write_reference.write_text(json.dumps({**whole, "scores": scores}), encoding="utf-8")
        return
    a.shape = a.shape or ("tiny" if a.device == "cpu" else "8b")
    a.queries = a.queries or (8 if a.device == "cpu" else 512)
    if a.device == "cpu":
        torch.set_num_threads(1)
    lm = load(a)
    assert lm.model.packed is not None
    side = 8192 if a.device != "cpu" else 1024
    peaks = {"peak": a.peak_tflops * 1e12, "measured": matmul_peak(side, side, side, a.dtype, a.device)}
    facts = {
        "shape": a.model or f"{a.family} {a.shape}",
        "dtype": a.dtype,
        "batch_tokens": lm.model.batch_tokens,
        "attention": getattr(lm.model.packed.attention, "__name__", lm.model.packed.attention),
        "fused": lm.model.packed.fused,
        "measured_tflops": round(peaks["measured"] / 1e12, 1),
    }
    emit(what="machine", name=machine(), **facts)
    rows = measure(a, lm, peaks)
    text = table(f"{facts['shape']}, {a.dtype}, {lm.model.batch_tokens} tokens per pass; {machine()}", rows)
    print(text, flush=True)
    if a.table:
        with a.table.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    if a.profile:
        profile(lm, workloads(a.queries, lm.model.module.config.vocab_size)["few-shot"])
    if a.reference:
        compare(a)


if __name__ == "__main__":
    main()
