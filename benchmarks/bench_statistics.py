"""How often boards are right: false alarms, coverage and power of old and new designs, on simulated boards.

    python benchmarks/bench_statistics.py power --boards 500
    python benchmarks/bench_statistics.py seeds --boards 2000
    python benchmarks/bench_statistics.py declared --boards 500

Answers are right or wrong with a chance that depends on the query's difficulty (logit SD 1.5), on how the selector's
line takes to the query (SD 1.0) and on the draw (SD 0.8); with a seed effect where a selector draws once per task (SD
0.5). Baselines are right on 14, 40 or 80 % of queries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iclkit.eval import TaskPair, difference, estimate, false_discovery, holm, new_tasks, pooled_difference

Floats = NDArray[np.float64]
DIFFICULTY, INTERACTION, DRAW, SEED = 1.5, 1.0, 0.8, 0.5
BASES = (0.14, 0.40, 0.80)
ALPHA = 0.05


def intercept(share: float, sd: float) -> float:
    """The logit at which the mean chance is ``share`` when logits vary by ``sd``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((weights / (1 + np.exp(-(middle + sd * nodes)))).sum() / weights.sum())
        low, high = (middle, high) if mean < share else (low, middle)
    return (low + high) / 2


class World:
    """One task's queries; lines answer them."""

    def __init__(self, rng: np.random.Generator, queries: int, base: float) -> None:
        self.rng, self.base = rng, base
        self.difficulty = rng.normal(0, DIFFICULTY, queries)

    def line(self, gain: float, seeds: int, *, by_task: bool = False) -> Floats:
        """Values (seeds, queries) of a line that is right ``gain`` more often than the base."""
        sd = math.sqrt(DIFFICULTY**2 + INTERACTION**2 + DRAW**2 + (SEED**2 if by_task else 0))
        at = intercept(min(0.98, max(0.02, self.base + gain)), sd)
        own = self.rng.normal(0, INTERACTION, len(self.difficulty))
        logits = at + self.difficulty + own + self.rng.normal(0, DRAW, (seeds, len(own)))
        if by_task:
            logits = logits + self.rng.normal(0, SEED, (seeds, 1))
        return (self.rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float64)


def board(
    rng: np.random.Generator, queries: int, tasks: int, lines: int, ks: int, gains: Sequence[float]
) -> tuple[Floats, Floats, Floats, Floats]:
    """p-values (tasks, ks, lines) with and without a declared scope, pooled (ks, lines), of new tasks (ks, lines)."""
    old, new = np.empty((tasks, ks, lines)), np.empty((tasks, ks, lines))
    pairs: dict[tuple[int, int], list[TaskPair]] = {}
    for t in range(tasks):
        world = World(rng, queries, BASES[t % len(BASES)])
        for k in range(ks):
            base = world.line(0.0, 3)
            for j in range(lines):
                a = world.line(gains[j], 1)
                old[t, k, j] = difference(a, base, scopes=("none", "task")).p
                new[t, k, j] = difference(a, base, scopes=("none", "query")).p
                pairs.setdefault((k, j), []).append(TaskPair(a, base, ("none", "query")))
    pooled, over = np.ones((ks, lines)), np.ones((ks, lines))
    for (k, j), own in pairs.items():
        pooled[k, j] = pooled_difference(own).p
        alone = [pooled_difference([one]) for one in own]
        found = new_tasks([d.value for d in alone], [d.error for d in alone])
        over[k, j] = found.p if found else 1.0
    return old, new, pooled, over


def rates(hits: NDArray[np.bool_], real: NDArray[np.bool_]) -> tuple[float, float, float]:
    """(power, any false, false discovery proportion) of one board's declared comparisons."""
    false = hits & ~real
    return (
        float(hits[real].mean()) if real.any() else math.nan,
        float(false.any()),
        float(false.sum() / max(1, hits.sum())),
    )


def adjusted(p: Floats, how: str) -> Floats:
    flat = p.ravel().tolist()
    return np.array(holm(flat) if how == "holm" else false_discovery(flat)).reshape(p.shape)


def power(boards: int, queries: int, tasks: int, lines: int, ks: int, gain: float) -> None:
    rng = np.random.default_rng(7)
    helped = lines // 2
    gains = [gain] * helped + [0.0] * (lines - helped)
    real = np.array([g > 0 for g in gains])
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(boards):
        old, new, pooled, over = board(rng, queries, tasks, lines, ks, gains)
        per_task = np.stack([adjusted(new[t], "holm") for t in range(tasks)])
        designs = {
            f"seeds as a treatment, Holm over {old.size}": adjusted(old, "holm"),
            f"seeds declared, Holm over {new.size}": adjusted(new, "holm"),
            "seeds declared, Holm within each task": per_task,
            f"seeds declared, false discovery rate over {new.size}": adjusted(new, "fdr"),
            f"pooled over tasks, Holm over {pooled.size}": adjusted(pooled, "holm"),
            f"new tasks, Holm over {over.size}": adjusted(over, "holm"),
            "one declared question, pooled": pooled[0, :1],
        }
        for name, p in designs.items():
            truth = np.broadcast_to(real[: p.shape[-1]], p.shape)
            found.setdefault(name, []).append(rates(p <= ALPHA, truth))
    what = f"{lines} lines ({helped} better by {100 * gain:g} points)"
    print(f"{boards} boards: {tasks} tasks, {what}, {ks} k, n = {queries}")
    print("| design | power | any false | false share of the declared |\n|---|---:|---:|---:|")
    for name, values in found.items():
        mean = np.nanmean(np.array(values), axis=0)
        print(f"| {name} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} |")


def seeds(boards: int) -> None:
    rng = np.random.default_rng(8)
    print("| seeds draw | handled as | S | n | false alarms | interval of the difference holds | of the figure |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for by_task in (False, True):
        for scope in ("query", "task"):
            for count in (3, 10):
                for queries in (50, 100, 300):
                    alarms = held = own = 0
                    for _ in range(boards):
                        world = World(rng, queries, 0.40)
                        a, b = world.line(0.0, count, by_task=by_task), world.line(0.0, 1)
                        d = difference(a, b, scopes=(scope, "none"))
                        e = estimate(a, scope=scope)
                        alarms += d.p <= ALPHA
                        held += d.low <= 0 <= d.high
                        own += e.low <= 0.40 <= e.high
                    draws = "per task" if by_task else "per query"
                    print(f"| {draws} | {scope} | {count} | {queries} | {alarms / boards:.3f} | {held / boards:.3f} "
                          f"| {own / boards:.3f} |", flush=True)  # fmt: skip


def declared(boards: int, queries: int) -> None:
    """What a question of its own loses to others: declared it keeps its power, corrected with them it does not."""
    rng = np.random.default_rng(9)
    print("| other comparisons on the board | declared | Holm with them | false discovery rate with them |")
    print("|---:|---:|---:|---:|")
    for others in (0, 16, 50, 325):
        hits = np.zeros(3)
        for _ in range(boards):
            world = World(rng, queries, 0.40)
            base = world.line(0.0, 3)
            p = difference(world.line(0.13, 1), base, scopes=("none", "query")).p
            rest = rng.random(others).tolist()
            hits += [p <= ALPHA, holm([p, *rest])[0] <= ALPHA, false_discovery([p, *rest])[0] <= ALPHA]
        print(f"| {others} | {hits[0] / boards:.3f} | {hits[1] / boards:.3f} | {hits[2] / boards:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["power", "seeds", "declared"])
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--lines", type=int, default=16)
    parser.add_argument("--ks", type=int, default=3)
    parser.add_argument("--gain", type=float, default=0.15)
    args = parser.parse_args()
    if args.study == "power":
        power(args.boards, args.queries, args.tasks, args.lines, args.ks, args.gain)
    elif args.study == "seeds":
        seeds(args.boards)
    else:
        declared(args.boards, args.queries)


if __name__ == "__main__":
    main()
