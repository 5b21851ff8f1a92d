"""Search for an ordered list whose best answer is known: trials until near the best, by sampler, over many seeds.

Lists of 4 of 100 items; the optimum has the value 1 and the worst list 0 (``iclkit.testing.OrderedSetProblem``). The
order-sensitive and the order-free case are measured apart. Every figure is a mean over seeds with a 95 % interval.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import optuna
from _common import emit
from scipy.stats import t as student

from iclkit.testing import OrderedSetProblem
from iclkit.tuners import PositionFeatures, SearchSpace, arm_of, distributions, make_sampler, search_plot

SAMPLERS = ("ease", "random", "best-of-n", "evolution", "tpe")


def search(problem: OrderedSetProblem, sampler: str, trials: int, seed: int) -> list[float]:
    """The true values of the lists tried; with noise the sampler sees others."""
    space = SearchSpace(problem.n, problem.k, features=PositionFeatures(problem.vectors, problem.k))
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, space, seed))
    rng = np.random.default_rng([seed, 99]) if problem.noise else None
    values = []
    for _ in range(trials):
        trial = study.ask(distributions(space))
        arm = arm_of(study._storage.get_trial(trial._trial_id), space)
        assert arm is not None
        values.append(problem.value(arm.rows))
        study.tell(trial, problem.value(arm.rows, rng))
    return values


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95 % interval."""
    half = (
        student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    )
    return float(values.mean()), float(half)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--seeds", type=int, default=2)
    ap.add_argument("--trials", type=int, default=30)
    ap.add_argument("--items", type=int, default=100)
    ap.add_argument("-k", type=int, default=4)
    ap.add_argument("--dim", type=int, default=4)
    ap.add_argument("--noise", type=float, default=0.0, help="standard deviation of what the sampler is told")
    ap.add_argument("--near", type=float, nargs="*", default=[0.9, 0.95, 0.99], help="what counts as near the best")
    ap.add_argument("--samplers", nargs="*", default=SAMPLERS)
    ap.add_argument("--plot", type=Path, help="folder for the drawings")
    args = ap.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for ordered in (True, False):
        case = "order-sensitive" if ordered else "order-free"
        print(f"{case}: lists of {args.k} of {args.items}, {args.seeds} seeds, noise {args.noise}")
        runs: dict[str, list[list[float]]] = {}
        first: dict[tuple[str, float], np.ndarray] = {}
        for sampler in args.samplers:
            start = time.process_time()
            problems = [
                OrderedSetProblem(args.items, args.k, args.dim, seed, ordered, args.noise) for seed in range(args.seeds)
            ]
            runs[sampler] = [search(p, sampler, args.trials, seed) for seed, p in enumerate(problems)]
            seconds = (time.process_time() - start) / (args.seeds * args.trials)
            best = np.maximum.accumulate(np.array(runs[sampler]), axis=1)
            regret, wide = interval(1 - best[:, -1])
            print(f"  {sampler}: regret after {args.trials} {regret:.3f} ± {wide:.3f}, {1000 * seconds:.0f} ms each")
            for near in args.near:
                hit = best >= near
                # a search that never gets there counts as one trial more than it had: differences are at least so large
                count = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, args.trials + 1).astype(float)
                first[sampler, near] = count
                mean, half = interval(count)
                more, plus = interval(count - first.get((args.samplers[0], near), count))
                never = int((~hit.any(axis=1)).sum())
                print(
                    f"    to {near}: {mean:5.1f} ± {half:4.1f} trials, {more:+5.1f} ± {plus:4.1f} against "
                    f"{args.samplers[0]}, {never} of {args.seeds} never"
                )
                emit(bench="tune", case=case, sampler=sampler, near=near, trials=mean, half=half, more=more, plus=plus,
                     never=never, regret=regret, seeds=args.seeds, noise=args.noise)  # fmt: skip
        if args.plot:
            args.plot.mkdir(parents=True, exist_ok=True)
            drawn = search_plot(runs, title=f"{case}: lists of {args.k} of {args.items}, {args.seeds} seeds")
            (args.plot / f"tune-{case}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
