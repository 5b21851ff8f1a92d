"""This scorer against the loop of OpenICL, on the same prompts, in one run: CPU seconds, one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_score.py MODEL [--data DATA] [--tasks sst2 trec] [--queries 64]
        [--shots 8] [--rivals [--labels 150] [--dtype fp32]] [--fixed | --only-fixed] [--prefix-shots 100 500]
        [--repeats 3] [--skip-naive]

The loop of OpenICL (``_common.openicl_loop``): one float32 forward per (label, prompt), batches of 8 in data order,
logits of the whole vocabulary at every position. It runs once (it is long), the others --repeats times, in turn.
--naive-queries N times it on the first N prompts and scales by its padded tokens (the result says so).
--rivals sets a batched scorer of 30 lines and lm-evaluation-harness beside this engine, all in --dtype: in turn,
--repeats times; ``times`` are medians of the ratios of neighbors. Nothing else is run then. --labels: at least so many,
others made of the words of the task's own. A CPU without bf16 arithmetic is asked in fp32, its default.
--fixed adds the same demonstrations for all queries, with and without sharing; --prefix-shots longer fixed prefixes.
"""

from __future__ import annotations

import argparse
import gc
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    FIELDS,
    batched_scorer,
    default_data,
    emit,
    few_shot_prompts,
    labels_of,
    lm_eval_scorer,
    load_module,
    machine,
    matmul_peak,
    matrix_parameters,
    more_labels,
    openicl_loop,
    timed,
)

from iclkit.lm import ScoreRequest
from iclkit.lm._load import load_torch
from iclkit.lm._verified import VerifiedLM


def requests_of(prompts: list[str], labels: list[str]) -> list[ScoreRequest]:
    return [ScoreRequest(p, f" {label}") for p in prompts for label in labels]


def table(lm: Any, requests: list[ScoreRequest], labels: int) -> np.ndarray:
    return np.array([s.logprob for s in lm.score(requests)]).reshape(-1, labels)


def padded_tokens(tokenizer: Any, prompts: list[str], rows: int = 8) -> int:
    """Tokens that a batch-of-8 loop in data order feeds per label."""
    sizes = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    parts = [sizes[at : at + rows] for at in range(0, len(sizes), rows)]
    return sum(len(p) * max(p) for p in parts)


def compare(a: argparse.Namespace, task: str, engines: dict[str, Any], naive: Any, peaks: dict[str, float]) -> None:
    labels = labels_of(a.data, task)
    prompts = few_shot_prompts(a.data, task, a.queries, a.shots)
    requests = requests_of(prompts, labels)
    plan = engines["bf16"].estimate(requests)
    best: dict[str, float] = {}
    scores: dict[str, np.ndarray] = {}
    for turn in range(a.repeats):
        for mode, lm in engines.items():
            seconds, scores[mode] = timed(lambda lm=lm: table(lm, requests, len(labels)))
            best[mode] = min(best.get(mode, seconds), seconds)
        if turn == 0 and naive is not None:
            some = prompts[: a.naive_queries or len(prompts)]
            seconds, values = timed(lambda some=some: openicl_loop(naive[0], naive[1], some, labels))
            best["naive"] = seconds * padded_tokens(naive[1], prompts) / padded_tokens(naive[1], some)
            scores["naive"] = np.concatenate([values, scores["fp32"][len(some) :]])
    reference = scores.get("naive", scores["fp32"]).argmax(1)
    exact = scores["fp32"].argmax(1)
    parameters = matrix_parameters(engines["fp32"].model.module.config)
    for mode, seconds in best.items():
        unique = 2 * parameters * plan.tokens_computed
        emit(
            what="score",
            task=task,
            mode=mode,
            cpu_seconds=round(seconds, 2),
            times_naive=round(best["naive"] / seconds, 1) if "naive" in best else None,
            naive_timed_on=(a.naive_queries or a.queries) if mode == "naive" else None,
            agree_naive=float((scores[mode].argmax(1) == reference).mean()),
            agree_fp32=float((scores[mode].argmax(1) == exact).mean()),
            tokens_asked=plan.tokens_asked,
            tokens_computed=plan.tokens_computed,
            tokens_per_second=round(plan.tokens_computed / seconds),
            times_floor=round(seconds / (unique / peaks["fp32" if mode in ("fp32", "naive") else "bf16"]), 2),
        )


def rivals(a: argparse.Namespace, task: str, lm: Any, module: Any, tokenizer: Any, peak: float) -> None:
    """This engine beside what others do in the same precision, on the same prompts, in turn."""
    labels = more_labels(labels_of(a.data, task), a.labels)
    prompts = few_shot_prompts(a.data, task, a.queries, a.shots)
    requests = requests_of(prompts, labels)
    lm_eval = lm_eval_scorer(module, tokenizer)
    engines = {
        "iclkit": lambda: table(lm, requests, len(labels)),
        "30 lines": lambda: batched_scorer(module, tokenizer, prompts, labels),
        "lm-eval": lambda: lm_eval(prompts, labels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    scores: dict[str, np.ndarray] = {}
    for _ in range(a.repeats):
        for name, call in engines.items():
            spent, scores[name] = timed(call)
            seconds[name].append(spent)
    plan = lm.estimate(requests)
    floor = 2 * matrix_parameters(lm.model.module.config) * plan.tokens_computed / peak
    ours = np.array(seconds["iclkit"])
    emit(
        what="rivals",
        task=task,
        dtype=a.dtype,
        labels=len(labels),
        shots=a.shots,
        queries=len(prompts),
        cpu_seconds={name: round(float(np.median(s)), 2) for name, s in seconds.items()},
        times={name: round(float(np.median(np.array(s) / ours)), 2) for name, s in seconds.items()},
        agree={name: float((s.argmax(1) == scores["iclkit"].argmax(1)).mean()) for name, s in scores.items()},
        times_floor=round(float(np.median(ours)) / floor, 2),
        tokens_asked=plan.tokens_asked,
        tokens_computed=plan.tokens_computed,
    )


def fixed(a: argparse.Namespace, task: str, lm: Any, shots: int) -> None:
    """The same demonstrations for all queries: the engine as it is, and one prompt at a time (nothing to share)."""
    labels = labels_of(a.data, task)
    prompts = few_shot_prompts(a.data, task, a.queries, shots, fixed=True)
    if max(map(lm.count_tokens, prompts)) + 8 > lm.context_size:
        emit(what="fixed", task=task, shots=shots, skipped=f"longer than the context of {lm.context_size}")
        return
    whole = requests_of(prompts, labels)
    plan = lm.estimate(whole)
    alone = lm.estimate(whole[: len(labels)]).tokens_computed * len(prompts)
    best = {"shared": float("inf"), "apart": float("inf")}
    scores: dict[str, np.ndarray] = {}
    for _ in range(a.repeats if shots <= 16 else 1):
        seconds, scores["shared"] = timed(lambda: table(lm, whole, len(labels)))
        best["shared"] = min(best["shared"], seconds)
        seconds, scores["apart"] = timed(lambda: apart(lm, prompts, labels))
        best["apart"] = min(best["apart"], seconds)
    emit(
        what="fixed",
        task=task,
        shots=shots,
        prefix_tokens=lm.count_tokens(commonprefix(prompts)),  # noqa: RUF071 (by characters is what is meant)
        tokens_shared=plan.tokens_computed,
        tokens_apart=alone,
        cpu_seconds={k: round(v, 2) for k, v in best.items()},
        ratio=round(best["apart"] / best["shared"], 2),
        agree=float((scores["shared"].argmax(1) == scores["apart"].argmax(1)).mean()),
        largest_difference=float(np.abs(scores["shared"] - scores["apart"]).max()),
    )


def apart(lm: Any, prompts: list[str], labels: list[str]) -> np.ndarray:
    """The same engine in the same batches, with sharing between prompts defeated: a batch holds no trie above them."""
    import iclkit.lm._plan as planning

    keep = planning.common_length
    try:  # two sequences share only when they are equal: the labels of one prompt
        planning.common_length = lambda a, b: len(a) if a == b else 0
        return table(lm, requests_of(prompts, labels), len(labels))
    finally:
        planning.common_length = keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--tasks", nargs="+", default=["sst2", "trec"], choices=list(FIELDS))
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--labels", type=int, default=0)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"], help="of --rivals")
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--prefix-shots", nargs="*", type=int, default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-queries", type=int, default=0, help="time the loop on these; 0: on all")
    parser.add_argument("--skip-naive", action="store_true")
    parser.add_argument("--only-fixed", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.rivals:
        lm, peak = load_torch(a.model, dtype=a.dtype, device="cpu", threads=1), matmul_peak(dtype=a.dtype)
        emit(what="machine", name=machine(), peak_gflops={a.dtype: round(peak / 1e9)})
        module, tokenizer = load_module(a.model, a.dtype)
        for task in a.tasks:
            rivals(a, task, lm, module, tokenizer, peak)
        return
    fp32, bf16 = (load_torch(a.model, dtype=d, device="cpu", threads=1) for d in ("fp32", "bf16"))
    verified = VerifiedLM(bf16, fp32)
    engines = {"fp32": fp32, "bf16": bf16, "bf16-verified": verified}
    peaks = {d: matmul_peak(dtype=d) for d in ("fp32", "bf16")}
    emit(what="machine", name=machine(), peak_gflops={d: round(p / 1e9) for d, p in peaks.items()})
    emit(what="error", deviation=verified.deviation())
    if not a.only_fixed:
        naive = None if a.skip_naive else load_module(a.model, "fp32")
        for task in a.tasks:
            compare(a, task, engines, naive, peaks)
        del naive
        gc.collect()
    if a.fixed or a.only_fixed:
        for task in a.tasks:
            for shots in (a.shots, *a.prefix_shots):
                fixed(a, task, bf16, shots)


if __name__ == "__main__":
    main()
