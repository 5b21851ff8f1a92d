"""One prompt for all, on real data: searches at equal budgets beside selectors that cost nothing to find, by noise.

For each set, share of wrong demonstrations and seed, every sampler searches with the same questions, the same 100
candidates and the same number of trials. A share of the candidates has another label than its own (of tasks without
labels: another row's answer), as in the noise grids of EASE's released data; questions and test rows are as they are.
The lists found are judged on test rows beside ``random`` and ``knn`` over the same candidates. What is finished is not
done again; ``--table`` only prints.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import default_data

from iclkit import evaluate
from iclkit.datasets import Task, load_task
from iclkit.embed import load_embedder
from iclkit.eval import Bench, difference, estimate, holm, make_bench
from iclkit.lm import load_lm
from iclkit.pool import Pool, PoolView
from iclkit.records import Example
from iclkit.tuners import TuneProblem, TuneSettings, make_problem, tune

SEARCHES = {"ease": "ease", "best-of-n": "best-of-n", "evolution": "evolution", "tpe": "tpe,startup=8"}


def spoiled(view: PoolView, task: Task, share: float, seed: int) -> PoolView:
    """The examples with a share of their outputs, drawn by seed, replaced by wrong ones."""
    rng = np.random.default_rng([seed, 11])
    rows = [*view.examples]
    for at in rng.permutation(len(rows))[: round(share * len(rows))].tolist():
        others = sorted({*(task.labels or (e.output for e in rows))} - {rows[at].output})
        e, wrong = rows[at], others[int(rng.integers(len(others)))]
        rows[at] = Example(e.input, wrong, e.task, e.choices, e.meta)
    return Pool.of(rows).view()


def problem_of(task: Task, lm: Any, args: argparse.Namespace, share: float, seed: int) -> TuneProblem:
    settings = TuneSettings(args.k, 1, "best-of-n", seed, args.validation, args.confirm)
    clean = make_problem(task, lm, settings, report=lambda _: None)
    return replace(clean, view=spoiled(clean.view, task, share, seed))


def search(problem: TuneProblem, label: str, embedder: Any, args: argparse.Namespace, file: Path, seed: int) -> None:
    start = time.process_time()
    sampler = SEARCHES[label]
    settings = TuneSettings(args.k, args.trials, sampler, seed, args.validation, args.confirm, args.top)
    eyes = embedder if sampler.startswith("ease") else None
    found = tune(problem, settings, embedder=eyes, storage=f"journal:{file.with_suffix('.journal')}")
    found.file.write(file)
    file.with_suffix(".cost").write_text(
        json.dumps({"cpu": time.process_time() - start, "asked": found.usage.get("tokens_asked", 0),
                    "computed": found.usage.get("tokens_computed", 0),
                    "prompts": len(found.trials) * args.validation + len(found.finalists) * args.confirm})
    )  # fmt: skip


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--out", type=Path, default=Path("runs-tune"))
    ap.add_argument("--data", type=Path, default=default_data())
    ap.add_argument("--sets", nargs="*", default=["sst2", "trec"])
    ap.add_argument("--noise", nargs="*", type=float, default=[0.0], help="shares of wrong demonstrations")
    ap.add_argument("--samplers", nargs="*", default=["ease", "best-of-n"])
    ap.add_argument("--plain", nargs="*", default=["random", "knn"], help="selectors that cost nothing to find")
    ap.add_argument("--lm", default="smollm2-135m")
    ap.add_argument("-k", type=int, default=4)
    ap.add_argument("--trials", type=int, default=60)
    ap.add_argument("--validation", type=int, default=20)
    ap.add_argument("--confirm", type=int, default=60)
    ap.add_argument("--top", type=int, default=3, help="how many of the best lists are confirmed")
    ap.add_argument("--seeds", type=int, default=3)
    ap.add_argument("--test", type=int, default=200)
    ap.add_argument("--table", action="store_true", help="only print what is there")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        lm = load_lm(args.lm, workers=1, threads=1, cache=args.out / "lm-cache.db")
        embedder = load_embedder("all-minilm-l6-v2")
        for seed in range(args.seeds):
            for name in args.sets:
                for share in args.noise:
                    one(name, share, seed, lm, embedder, args)
    table(args)


def one(name: str, share: float, seed: int, lm: Any, embedder: Any, args: argparse.Namespace) -> None:
    task = load_task(args.data / name)
    problem = problem_of(task, lm, args, share, seed)
    tested = make_bench(task, limit=args.test)
    bench = Bench(task, problem.view, tested.queries, tested.golds, "ignore")
    for label in (*args.samplers, *args.plain):
        file = args.out / f"{name}-{share:g}-{label}-{seed}.json"
        done = file.with_suffix(".rows")
        if done.exists():
            continue
        if label in SEARCHES:
            search(problem, label, embedder, args, file, seed)
        chooser = str(file) if label in SEARCHES else label
        run = evaluate(bench, chooser, lm, k=args.k, seed=seed, embedder=embedder)
        done.write_text(json.dumps([row.metrics[problem.metric] for row in run.rows]))
        print(f"{name} {share:g} {label} {seed}: {np.mean(json.loads(done.read_text())):.3f}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Accuracy of every way, and what the first one is ahead of each other by, over the seeds that all have."""
    labels = (*args.samplers, *args.plain)
    first, *others = labels
    rows = dict[tuple[str, float], tuple[list[str], list[Any]]]()
    for name, share in ((n, s) for n in args.sets for s in args.noise):
        files = {x: [args.out / f"{name}-{share:g}-{x}-{seed}.rows" for seed in range(args.seeds)] for x in labels}
        seeds = [s for s in range(args.seeds) if all(of[s].exists() for of in files.values())]
        if seeds:
            got = {x: np.array([json.loads(of[s].read_text()) for s in seeds]) for x, of in files.items()}
            means = [estimate(values) for values in got.values()]
            figures = [f"{100 * e.value:.1f} ({100 * e.low:.0f}–{100 * e.high:.0f})" for e in means]
            gaps = [difference(got[first], got[x]) for x in others]
            rows[name, share] = ([name, f"{100 * share:.0f}", str(len(seeds)), *figures], gaps)
    corrected = iter(holm([gap.p for _, gaps in rows.values() for gap in gaps]))
    print(f"| set | wrong, % | seeds | {' | '.join(labels)} | {' | '.join(f'{first} − {x}, p' for x in others)} |")
    print("|---|---:|---:|" + "---:|" * (2 * len(labels) - 1))
    for cells, gaps in rows.values():
        apart = [f"{100 * d.value:+.1f} ({100 * d.low:+.1f} … {100 * d.high:+.1f}), {p:.3f}"
                 for d, p in zip(gaps, corrected, strict=False)]  # fmt: skip
        print(f"| {' | '.join((*cells, *apart))} |")
    for name, label in ((n, x) for n in args.sets for x in args.samplers):
        files_of = [args.out / f"{name}-{share:g}-{label}-{s}.cost" for share in args.noise for s in range(args.seeds)]
        costs = [json.loads(file.read_text()) for file in files_of if file.exists()]
        if costs:
            mean = {key: np.mean([c[key] for c in costs]) for key in costs[0]}
            print(
                f"- {name}, a search of {label}: {mean['prompts']:,.0f} prompts of {mean['asked']:,.0f} tokens in all, "
                f"of which {mean['computed']:,.0f} were computed, {mean['cpu']:.0f} CPU seconds; {len(costs)} searches"
            )


if __name__ == "__main__":
    main()
