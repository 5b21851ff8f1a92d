"""Runs without an LM: right-or-wrong rows drawn from chances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from iclkit.records import PoolPart, Row, Run, RunSpec, Spec, TaskPart
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
    parts = {
        "selector": spec.identity(), "lm": {"name": "fake", "fingerprint": "fake-1"},
        "template": {"demo": "{input} {output}"}, "k": k, "seed": seed, "order": "best-last", "budget": None,
        "normalize": "sum", "calibrate": "none",
    }  # fmt: skip
    task_part = TaskPart(task, "h" + task, "classification", "accuracy", tuple(LABELS), len(rows))
    whole = RunSpec(task_part, PoolPart("p", 50), Spec("prompt"), parts)
    facts = {"done": True, "leaks": {}, "iclkit": "0.1.0"}
    return respec(Run(whole, rows, {"calls": 10.0, "score_s": 1.0}, facts), **changes)


def respec(run: Run, *, task: Mapping[str, Any] | None = None, **changes: Any) -> Run:
    """The run with other parts of its predictor; ``task``: other fields of its task; ``pool``, ``conditions``."""
    spec = replace(run.spec, task=replace(run.spec.task, **(task or {})))
    whole = {name: changes.pop(name) for name in ("pool", "conditions") if name in changes}
    return replace(run, spec=replace(spec, parts={**spec.parts, **changes}, **whole))


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
