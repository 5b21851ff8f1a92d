"""Runs without an LM: right-or-wrong rows drawn from chances."""

from __future__ import annotations

from typing import Any

import numpy as np

from iclkit.records import Row, Run, Spec
from iclkit.registry import parse_spec

LABELS = ["no", "yes"]


def make_run(selector: str, right: Any, *, seed: int = 0, k: int = 8, task: str = "toy", **changes: Any) -> Run:
    """A finished run whose answers are right where ``right`` (Q,) is 1."""
    spec: Spec = parse_spec(selector)
    golds = [LABELS[i % 2] for i in range(len(right))]
    rows = tuple(
        Row(f"q{i}", gold, gold if ok else LABELS[1 - i % 2], {"accuracy": float(ok)}, prompt_tokens=100 + k)
        for i, (gold, ok) in enumerate(zip(golds, right, strict=True))
    )
    whole = {
        "iclkit": "0.1.0",
        "task": {"name": task, "hash": "h" + task, "kind": "classification", "metric": "accuracy", "labels": LABELS,
                 "queries": len(rows)},
        "pool": {"hash": "p", "size": 50},
        "selector": {"name": spec.name, "settings": dict(spec.settings), "version": "0.1.0"},
        "lm": {"name": "fake", "fingerprint": "fake-1"},
        "embedder": None,
        "template": {"demo": "{input} {output}"},
        "on_leak": "exclude",
        "k": k, "seed": seed, "order": "best-last", "budget": None, "normalise": "sum",
    } | changes  # fmt: skip
    return Run(whole, rows, {"calls": 10.0, "score_s": 1.0}, {"done": True, "leaks": {}})


def draw(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    return (rng.random(len(chance)) < chance).astype(float)


def make_runs(queries: int = 300, *, k: int = 8, task: str = "toy", lift: float = 0.15, key: int = 0) -> list[Run]:
    """zero, random over 3 seeds, a better ``knn`` and a ``bm25`` that equals random."""
    rng = np.random.default_rng([key, queries])
    chance = np.clip(rng.beta(2, 2, queries), 0.02, 0.98 - lift)
    runs = [make_run("random", draw(rng, chance), seed=s, k=k, task=task) for s in range(3)]
    runs += [make_run("knn", draw(rng, chance + lift), k=k, task=task)]
    runs += [make_run("bm25", draw(rng, chance), k=k, task=task)]
    return [*runs, make_run("zero", draw(rng, chance - 0.02), k=0, task=task)]
