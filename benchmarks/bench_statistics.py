"""How often boards are right: false alarms, coverage and power of old and new designs, on simulated boards.

    python benchmarks/bench_statistics.py power --boards 300 --queries 50
    python benchmarks/bench_statistics.py seeds --boards 2000
    python benchmarks/bench_statistics.py smallest --boards 2000
    python benchmarks/bench_statistics.py declared --queries 100 --boards 2000
    python benchmarks/bench_statistics.py mixed --boards 300      # beside statsmodels: pip install "iclkit[dev]"

Answers are right or wrong with a chance that depends on the query's difficulty (logit SD 1.5), on how the selector's
line takes to the query (SD 1.0) and on the draw (SD 0.8); with a seed effect where a selector draws once per task (SD
0.5). Baselines are right on 14, 40 or 80 % of queries. Every board has a seed of its own, made of the study and the
board's number, so ``--keep FILE`` (a line per board) lets a study that was stopped go on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.eval import (
    TaskPair,
    difference,
    estimate,
    false_discovery,
    holm,
    new_tasks,
    pooled_difference,
    variance_components,
)

Floats = NDArray[np.float64]
DIFFICULTY, INTERACTION, DRAW, SEED = 1.5, 1.0, 0.8, 0.5
BASES = (0.14, 0.40, 0.80)
SPREAD = 0.5  # of a line's gain from task to task, as a share of it
ALPHA = 0.05
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


class Study:
    """The boards of one study: each computed once, or read from the file that keeps them."""

    def __init__(self, keep: Path | None) -> None:
        self.keep, self.known = keep, dict[str, list[float]]()
        if keep and keep.exists():
            for line in keep.read_text().splitlines():
                if line.endswith("]"):  # a line that was cut off is computed anew
                    self.known.update(json.loads("{" + line + "}"))

    def boards(self, name: str, count: int, one: Callable[[np.random.Generator], Sequence[float]]) -> Floats:
        """The figures of ``count`` boards, (count, figures)."""
        found = []
        for number in range(count):
            key = f"{name}:{number}"
            if key not in self.known:
                rng = np.random.default_rng([*name.encode(), number])
                self.known[key] = [float(x) for x in one(rng)]
                if self.keep:
                    with self.keep.open("a") as file:
                        file.write(f"\n{json.dumps(key)}: {json.dumps(self.known[key])}")
            found.append(self.known[key])
        return np.array(found)


def intercept(share: float, sd: float) -> float:
    """The logit at which the mean chance is ``share`` when logits vary by ``sd``."""
    low, high = -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float((_WEIGHTS / (1 + np.exp(-(middle + sd * _NODES)))).sum() / _WEIGHTS.sum())
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
        at = intercept(self.base + gain, sd)
        own = self.rng.normal(0, INTERACTION, len(self.difficulty))
        logits = at + self.difficulty + own + self.rng.normal(0, DRAW, (seeds, len(own)))
        if by_task:
            logits = logits + self.rng.normal(0, SEED, (seeds, 1))
        return (self.rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float64)

    def possible(self, gain: float) -> float:
        """The gain, as far as there is room for it."""
        return min(0.98, max(0.02, self.base + gain)) - self.base


def rates(p: Floats, real: NDArray[np.bool_]) -> tuple[float, float, float]:
    """(power, any false, false share of the declared) of one board's corrected p-values."""
    hits = p <= ALPHA
    false = hits & ~real
    return float(hits[real].mean()), float(false.any()), float(false.sum() / max(1, hits.sum()))


def adjusted(p: Floats, how: str) -> Floats:
    flat = p.ravel().tolist()
    return np.array(holm(flat) if how == "holm" else false_discovery(flat)).reshape(p.shape)


def power(study: Study, boards: int, queries: int, tasks: int, lines: int, ks: int, gain: float) -> None:
    helped, size = lines // 2, tasks * lines * ks
    names = [f"seeds as a treatment, Holm over {size} (old)", f"seeds declared, Holm over {size}",
             "seeds declared, Holm within each task (new)", f"seeds declared, false discovery rate over {size}",
             f"pooled over tasks, Holm over {lines * ks} (new)", f"new tasks, Holm over {lines * ks}",
             "one declared question, pooled (new)"]  # fmt: skip

    def one(rng: np.random.Generator) -> list[float]:
        old, new, truth = (np.zeros((tasks, ks, lines)) for _ in range(3))
        pairs: dict[tuple[int, int], list[TaskPair]] = {}
        worlds = [World(rng, queries, BASES[t % len(BASES)]) for t in range(tasks)]
        for t, world in enumerate(worlds):
            gains = [world.possible(gain * (1 + SPREAD * rng.normal())) if j < helped else 0.0 for j in range(lines)]
            truth[t] = gains
            for k in range(ks):
                base = world.line(0.0, 3)
                for j in range(lines):
                    a = world.line(gains[j], 1)
                    old[t, k, j] = difference(a, base, scopes=("none", "task")).p
                    pairs.setdefault((k, j), []).append(TaskPair(a, base, ("none", "query")))
        pooled, over = np.ones((ks, lines)), np.ones((ks, lines))
        held = []
        for (k, j), own in pairs.items():
            all_tasks, alone = pooled_difference(own), [pooled_difference([one]) for one in own]
            new[:, k, j] = [d.p for d in alone]
            pooled[k, j] = all_tasks.p
            held.append([all_tasks.low <= truth[:, k, j].mean() <= all_tasks.high,
                         np.mean([d.low <= truth[t, k, j] <= d.high for t, d in enumerate(alone)])])  # fmt: skip
            if found := new_tasks([d.value for d in alone], [d.error for d in alone]):
                over[k, j] = found.p
        designs = [adjusted(old, "holm"), adjusted(new, "holm"),
                   np.stack([adjusted(new[t], "holm") for t in range(tasks)]), adjusted(new, "fdr"),
                   adjusted(pooled, "holm"), adjusted(over, "holm")]  # fmt: skip
        real, by_line = truth != 0, (truth != 0).any(axis=0)
        figures = [x for p in designs for x in rates(p, real if p.ndim == 3 else by_line)]
        return [*figures, float(pooled[0, 0] <= ALPHA), float(pooled[0, -1] <= ALPHA), *np.mean(held, axis=0)]

    found = study.boards(f"power {queries} {tasks} {lines} {ks} {gain:g}", boards, one).mean(axis=0)
    what = f"{lines} lines ({helped} better by {100 * gain:g} points)"
    print(f"{boards} boards: {tasks} tasks, {what}, {ks} k, n = {queries}\n")
    print("| design | power | any false | false share of the declared |\n|---|---:|---:|---:|")
    for i, name in enumerate(names[:-1]):
        print(f"| {name} | {found[3 * i]:.3f} | {found[3 * i + 1]:.3f} | {found[3 * i + 2]:.3f} |")
    print(f"| {names[-1]} | {found[18]:.3f} | {found[19]:.3f} | |")
    print(f"\nIntervals hold the truth: over these tasks {found[20]:.3f}, of one task {found[21]:.3f}.")


def seeds(study: Study, boards: int) -> None:
    print("| seeds draw | handled as | S | n | false alarms | power at +15 | holds the difference 0 | +15 | figure |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for by_task in (False, True):
        for count in (3, 10):
            for queries in (50, 100, 300):
                draws = "per task" if by_task else "per query"

                def one(rng: np.random.Generator, by_task: bool = by_task, count: int = count, n: int = queries
                        ) -> list[float]:  # fmt: skip
                    world = World(rng, n, 0.40)
                    a, better = (world.line(gain, count, by_task=by_task) for gain in (0.0, 0.15))
                    base, found = world.line(0.0, 1), list[float]()
                    for scope in ("query", "task"):
                        d, up = (difference(x, base, scopes=(scope, "none")) for x in (a, better))
                        e = estimate(a, scope=scope)
                        found += [d.p <= ALPHA, up.p <= ALPHA, d.low <= 0 <= d.high, up.low <= 0.15 <= up.high,
                                  e.low <= 0.40 <= e.high]  # fmt: skip
                    return found

                found = study.boards(f"seeds {draws} {count} {queries}", boards, one).mean(axis=0).reshape(2, 5)
                for scope, row in zip(("per query", "per task"), found, strict=True):
                    print(f"| {draws} | {scope} | {count} | {queries} | {' | '.join(f'{x:.3f}' for x in row)} |",
                          flush=True)  # fmt: skip


def smallest(study: Study, boards: int) -> None:
    """Whether a true difference of the size said to be the smallest detectable one is declared in 80 % of tries."""
    print("| base | n | smallest gain | is declared | smallest drop | is declared |\n|---:|---:|---:|---:|---:|---:|")
    for base in BASES:
        for queries in (50, 100, 300):

            def said(rng: np.random.Generator, base: float = base, n: int = queries) -> list[float]:
                world = World(rng, n, base)
                d = difference(world.line(0.0, 1), world.line(0.0, 3), scopes=("none", "query"))
                return [d.smallest_gain, d.smallest_drop]

            sizes = study.boards(f"smallest {base} {queries}", 200, said)
            row = []
            for side, sign in enumerate((1, -1)):
                known = sizes[np.isfinite(sizes[:, side]), side]
                if len(known) < len(sizes) / 2:
                    row += ["none", ""]
                    continue
                effect = round(float(np.median(known)), 3)

                def declared(rng: np.random.Generator, base: float = base, n: int = queries,
                             effect: float = sign * effect) -> list[float]:  # fmt: skip
                    world = World(rng, n, base)
                    return [difference(world.line(effect, 1), world.line(0.0, 3), scopes=("none", "query")).p <= ALPHA]

                hits = study.boards(f"declared {base} {queries} {sign * effect}", boards, declared)
                row += [f"{100 * effect:.1f}", f"{hits.mean():.3f}"]
            print(f"| {100 * base:.0f} % | {queries} | {' | '.join(row)} |", flush=True)


def declared(study: Study, boards: int, queries: int, gain: float) -> None:
    """What a question of its own loses to others: declared it keeps its power, corrected with them it does not."""
    numbers = (0, 16, 50, 325)

    def one(rng: np.random.Generator) -> list[float]:
        world = World(rng, queries, 0.40)
        p = difference(world.line(gain, 1), world.line(0.0, 3), scopes=("none", "query")).p
        rest, found = rng.random(max(numbers)).tolist(), list[float]()
        for others in numbers:
            every = [p, *rest[:others]]
            found += [p <= ALPHA, holm(every)[0] <= ALPHA, false_discovery(every)[0] <= ALPHA]
        return found

    rows = study.boards(f"one question {queries} {gain:g}", boards, one).mean(axis=0).reshape(len(numbers), 3)
    print(f"{boards} boards: one line better by {100 * gain:g} points, n = {queries}, others without an effect\n")
    print("| other comparisons on the board | declared | Holm with them | false discovery rate with them |")
    print("|---:|---:|---:|---:|")
    for others, row in zip(numbers, rows, strict=True):
        print(f"| {others} | {' | '.join(f'{x:.3f}' for x in row)} |")


def mixed(study: Study, boards: int, queries: int) -> None:
    """The same data through statsmodels: mixed models fitted by REML, and conditional logistic regression."""
    import warnings

    import pandas as pd
    import statsmodels.formula.api as smf
    from statsmodels.discrete.conditional_models import ConditionalLogit

    seeds = 5

    def figure(rng: np.random.Generator) -> list[float]:
        """A per-task selector's figure: crossed random effects of queries and seeds."""
        x = World(rng, queries, 0.40).line(0.0, seeds, by_task=True)
        rows = pd.DataFrame({"y": x.ravel(), "seed": np.repeat(np.arange(seeds), queries),
                             "query": np.tile(np.arange(queries), seeds), "one": 1})  # fmt: skip
        parts = {"seed": "0 + C(seed)", "query": "0 + C(query)"}
        fit = smf.mixedlm("y ~ 1", rows, groups="one", vc_formula=parts).fit(reml=True)
        own = variance_components(x)
        return [
            fit.converged,
            fit.params["Intercept"] - own.mean,
            fit.bse["Intercept"],
            math.sqrt(own.query + own.seed),
        ]

    def pair(rng: np.random.Generator) -> list[float]:
        """Two equal lines: a random intercept per query, and conditional logistic regression."""
        world = World(rng, queries, 0.40)
        a, b = world.line(0.0, 1), world.line(0.0, 1)
        rows = pd.DataFrame({"y": np.concatenate([a[0], b[0]]), "line": np.repeat([1, 0], queries),
                             "query": np.tile(np.arange(queries), 2)})  # fmt: skip
        fit = smf.mixedlm("y ~ line", rows, groups="query").fit(reml=True)
        logit = ConditionalLogit(rows["y"], rows[["line"]], groups=rows["query"]).fit(disp=0)
        own = pooled_difference([TaskPair(a, b, ("none", "none"))])
        return [fit.converged, fit.params["line"] - own.value, fit.bse["line"], own.error,
                fit.pvalues["line"] <= ALPHA, float(logit.pvalues.iloc[0]) <= ALPHA, own.p <= ALPHA]  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = study.boards(f"mixed figure {queries}", max(1, boards // 10), figure)
        pairs = study.boards(f"mixed pair {queries}", boards, pair)
    print("| quantity | boards | converged | largest difference of estimates | of standard errors, median | 95th |")
    print("|---|---:|---:|---:|---:|---:|")
    named = [(f"figure, draws once per task, {seeds} seeds", figures), ("difference of two lines", pairs)]
    for name, found in named:
        kept = found[found[:, 0] == 1]
        off = np.abs(kept[:, 2] / kept[:, 3] - 1)
        print(f"| {name} | {len(found)} | {len(kept)} | {np.abs(kept[:, 1]).max():.1e} | {100 * np.median(off):.3f} % "
              f"| {100 * np.quantile(off, 0.95):.3f} % |")  # fmt: skip
    alarms = ", ".join(
        f"{name} {pairs[:, 4 + i].mean():.3f}"
        for i, name in enumerate(("mixed model", "conditional logistic regression", "sign flip (here)"))
    )
    print(f"\nTwo equal lines told apart, n = {queries}: {alarms}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["power", "seeds", "smallest", "declared", "mixed"])
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--lines", type=int, default=16)
    parser.add_argument("--ks", type=int, default=3)
    parser.add_argument("--gain", type=float, default=0.15)
    parser.add_argument("--keep", type=Path, help="a file that keeps every board, so that a study can go on")
    args = parser.parse_args()
    study = Study(args.keep)
    if args.study == "power":
        power(study, args.boards, args.queries, args.tasks, args.lines, args.ks, args.gain)
    elif args.study == "seeds":
        seeds(study, args.boards)
    elif args.study == "smallest":
        smallest(study, args.boards)
    elif args.study == "mixed":
        mixed(study, args.boards, args.queries)
    else:
        declared(study, args.boards, args.queries, args.gain)


if __name__ == "__main__":
    main()
