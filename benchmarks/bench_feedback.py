"""LM feedback, log p(answer | demonstration, query), against a naive float32 loop: CPU seconds, one thread, one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_feedback.py MODEL [--data DATA] [--task sst2] [--queries 50]
        [--candidates 20] [--repeats 3] [--shapes grid topk] [--naive-pairs 0]

grid: the same candidates for every query, as when a whole pool is scored against itself. topk: each query has its own
nearest rows of a pool of 1,000 (TF-IDF), so few pairs share a demonstration. The naive loop feeds batches of 8 in data
order with full logits. --naive-pairs N times it on the first N pairs only and scales by its padded tokens (said so in
the result); agreement is then against this engine in fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    default_data,
    demo,
    emit,
    load_module,
    machine,
    matmul_peak,
    matrix_parameters,
    nearest,
    padded_rows,
    question,
    rows_of,
    timed,
)

from iclkit.lm import ScoreRequest
from iclkit.lm._load import load_torch
from iclkit.lm._tokens import TokenPair
from iclkit.lm._verified import VerifiedLM


def naive_loop(module: Any, pairs: Sequence[TokenPair], rows: int = 8) -> np.ndarray:
    """Batches of 8 in the order given, right-padded, full logits and cross-entropy at every position."""
    out: list[float] = []
    for at in range(0, len(pairs), rows):
        part = pairs[at : at + rows]
        ids, mask = padded_rows(part)
        with torch.no_grad():
            logits = module(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.size(-1)), ids[:, 1:].reshape(-1), reduction="none"
        ).view(len(part), -1)
        out += [-float(loss[r, p.n_context - 1 : len(p.ids) - 1].sum()) for r, p in enumerate(part)]
    return np.array(out)


def padded_tokens(pairs: Sequence[TokenPair], rows: int = 8) -> int:
    groups = [pairs[at : at + rows] for at in range(0, len(pairs), rows)]
    return sum(len(g) * max(len(p.ids) for p in g) for g in groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--task", default="sst2", choices=["sst2", "trec", "agnews"])
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--shapes", nargs="+", default=["grid", "topk"], choices=["grid", "topk"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-pairs", type=int, default=0, help="0: all of them")
    a = parser.parse_args()
    torch.set_num_threads(1)
    fp32, bf16 = (load_torch(a.model, dtype=d, device="cpu", threads=1) for d in ("fp32", "bf16"))
    engines: dict[str, Any] = {"fp32": fp32, "bf16": bf16, "bf16-verified": VerifiedLM(bf16, fp32)}
    engines["bf16-verified"].deviation()
    naive, _ = load_module(a.model, "fp32")
    peaks = {d: matmul_peak(dtype=d) for d in ("fp32", "bf16")}
    emit(what="machine", name=machine(), peak_gflops={d: round(p / 1e9) for d, p in peaks.items()})
    pool, queries = rows_of(a.data, a.task, "train", 1000), rows_of(a.data, a.task, "test", a.queries)
    for shape in a.shapes:
        near = nearest(pool, queries, a.candidates)
        picks = np.tile(np.arange(a.candidates), (a.queries, 1)) if shape == "grid" else near
        requests = [
            ScoreRequest(demo(a.task, pool[j]) + question(a.task, q), f" {q['output']}", group=f"{i}")
            for i, (q, row) in enumerate(zip(queries, picks, strict=True))
            for j in row
        ]
        pairs = fp32.encode_scores(requests)
        some = pairs[: a.naive_pairs or len(pairs)]
        best: dict[str, float] = {}
        scores: dict[str, np.ndarray] = {}
        for turn in range(a.repeats):
            for mode, lm in engines.items():
                if turn == 0 or mode != "fp32":
                    seconds, found = timed(partial(lm.score, requests))
                    best[mode] = min(best.get(mode, seconds), seconds)
                    scores[mode] = np.array([s.logprob for s in found])
            if turn == 0:
                seconds, values = timed(partial(naive_loop, naive, some))
                best["naive"] = seconds * padded_tokens(pairs) / padded_tokens(some)
                scores["naive"] = np.concatenate([values, scores["fp32"][len(some) :]])
        plan = bf16.plan_encoded(pairs)
        winners = {m: s.reshape(a.queries, -1).argmax(1) for m, s in scores.items()}
        for mode, seconds in best.items():
            floor = 2 * matrix_parameters(fp32.model.module.config) * plan.tokens_computed
            emit(
                what="feedback",
                task=a.task,
                shape=shape,
                mode=mode,
                pairs=len(pairs),
                cpu_seconds=round(seconds, 2),
                naive_timed_on=len(some) if mode == "naive" else None,
                times_naive=round(best["naive"] / seconds, 1),
                top1_agree_naive=float((winners[mode] == winners["naive"]).mean()),
                largest_difference=float(np.abs(scores[mode] - scores["naive"]).max()),
                tokens_asked=plan.tokens_asked,
                tokens_computed=plan.tokens_computed,
                pairs_per_second=round(len(pairs) / seconds, 1),
                times_floor=round(seconds / (floor / peaks["fp32" if mode in ("fp32", "naive") else "bf16"]), 2),
            )


if __name__ == "__main__":
    main()
