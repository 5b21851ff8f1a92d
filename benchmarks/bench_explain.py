"""Does ``explain`` find wrong labels? Flip a tenth of a pool's labels, run, and rank what was shown.

Prints the AUROC of three rankings against the truth: the LM's log-probability of a demonstration's own label
(``suspects``), its mean leave-one-out effect (``influences``), and the share of its nearest neighbours with its label,
which asks no LM. 0.5 is chance.

    python benchmarks/bench_explain.py [--task support] [--pool 100] [--queries 60] [--flip 0.1] [--seeds 1] [-k 8]
        [--lm smollm2-135m]

``--task`` is a catalogue name or a folder; ``--pool`` so many of its train rows, drawn by the seed. An effect takes k
prompts a query, so the cost grows with queries * k * (tokens of a prompt): 100,000 tokens at the default size.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace

import numpy as np

from iclkit import evaluate
from iclkit.datasets import load_task
from iclkit.embed import load_embedder
from iclkit.eval import explain, influences, make_bench, predictor_of, suspects
from iclkit.lm import load_lm
from iclkit.pool import Pool
from iclkit.predictors import Tools


def auroc(badness: np.ndarray, bad: np.ndarray) -> float:
    """Chance that a flipped example has a higher badness than one that is not; ties count half."""
    order = np.argsort(badness, kind="stable")
    ranks = np.empty(len(badness))
    for value in np.unique(badness):
        at = badness[order] == value
        ranks[order[at]] = np.flatnonzero(at).mean() + 1
    count = int(bad.sum())
    return float((ranks[bad].sum() - count * (count + 1) / 2) / (count * (len(bad) - count)))


def trial(task_name: str, size: int, queries: int, flip: float, seed: int, lm_name: str, k: int) -> dict[str, float]:
    task, rng, begun = load_task(task_name), random.Random(seed), time.monotonic()
    rows = rng.sample(task.train, min(size, len(task.train)))
    flipped = set(rng.sample(range(len(rows)), round(flip * len(rows))))
    train = [
        replace(e, output=rng.choice([x for x in task.labels if x != e.output]), id="") if n in flipped else e
        for n, e in enumerate(rows)
    ]
    wrong = {train[n].id for n in flipped}
    embedder, lm = load_embedder("all-minilm-l6-v2"), load_lm(lm_name)
    bench = make_bench(task, Pool.of(train), limit=queries)
    run = evaluate(bench, "knn", lm, k=k, embedder=embedder)
    texts = {q.id: {"input": q.input} for q in bench.queries}
    texts |= {e.id: {"input": e.input, "output": e.output} for e in bench.view.examples}
    effect = {f.example.id: f.effect.value for f in influences(explain(run, texts, lm))}
    shown = [e for e in bench.view.examples if e.id in effect]
    own = {s.example.id: s.own for s in suspects(bench, predictor_of(run, Tools(lm, embedder)), shown)}
    vectors = bench.view.vectors(embedder)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -1)
    labels = np.array([e.output for e in bench.view.examples])
    near = {e.id: float(np.mean(labels[np.argsort(-row)[:k]] == e.output))
            for e, row in zip(bench.view.examples, alike, strict=True)}  # fmt: skip
    bad = np.array([e.id in wrong for e in shown])
    found = sorted(shown, key=lambda e: own[e.id])[: int(bad.sum())]
    return {
        "accuracy": float(np.mean([r.metrics["accuracy"] for r in run.rows])),
        "seconds": round(time.monotonic() - begun, 1),
        "shown": len(shown),
        "flipped": int(bad.sum()),
        "auroc own label": auroc(-np.array([own[e.id] for e in shown]), bad),
        "auroc effect": auroc(-np.array([effect[e.id] for e in shown]), bad),
        "auroc neighbours": auroc(-np.array([near[e.id] for e in shown]), bad),
        "precision of own label at that number": float(np.mean([e.id in wrong for e in found])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="support")
    parser.add_argument("--pool", type=int, default=100)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--flip", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lm", default="smollm2-135m")
    parser.add_argument("-k", type=int, default=8)
    args = parser.parse_args()
    for seed in range(args.seeds):
        print(json.dumps(trial(args.task, args.pool, args.queries, args.flip, seed, args.lm, args.k)), flush=True)


if __name__ == "__main__":
    main()
