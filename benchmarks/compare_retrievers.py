"""Trained retrievers beside what needs no training: accuracy of finished runs, and paired differences.

RUNS holds runs of ``iclkit eval`` with retrievers whose folders are named METHOD-TASK-SEED (of several tasks:
METHOD-TASK+TASK-SEED), and runs of random, bm25, knn with the untrained encoder, and of the predictors without an LM.
A table for each task and LM. The training seeds of a method are a sample: where there are several, the interval is over
queries and seeds. p-values are corrected (Holm) over the lines of one table.

    python benchmarks/compare_retrievers.py RUNS -k 8
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iclkit.eval import difference, estimate, holm, load_runs
from iclkit.records import SeedScope

RETRIEVER = re.compile(r"(?P<method>(epr|udr|llm-r|se2|ceil)(-[a-z-]+?)??)-(?P<tasks>[a-z0-9_+]+)-(?P<seed>\d+)")
NO_LM = ("knn-vote", "logreg", "majority")
Lines = dict[str, dict[int, dict[str, float]]]
"""What chose -> seed -> query -> metric."""


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", type=Path)
    ap.add_argument("-k", type=int, default=8)
    args = ap.parse_args()
    tables: dict[str, dict[str, Lines]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    alone: dict[str, Lines] = defaultdict(lambda: defaultdict(dict))
    scopes: dict[str, SeedScope] = {}
    for run in load_runs(args.runs):
        spec, selector, task = run.spec, run.spec.selector.name, run.spec.task.name
        predictor = spec.predictor.name if spec.predictor.name in NO_LM else ""
        if not run.facts["done"] or (not predictor and spec.k != args.k):
            continue
        name, seed, trained = predictor or selector, spec.seed, False
        folder = Path(spec.embedder.name if spec.embedder else "").name
        if not predictor and (found := RETRIEVER.fullmatch(folder)):
            name, seed, trained = f"{selector} with {found['method']}", int(found["seed"]), True
            if found["tasks"] != task:
                name += f" of {found['tasks']}"
        elif selector == "knn" and not predictor:
            name = "knn, untrained"
        lines = alone[task] if predictor else tables[task][Path(spec.lm.name if spec.lm else "").name]
        lines[name][seed] = {row.query_id: float(row.metrics[spec.task.metric]) for row in run.rows}
        scopes[name] = "task" if trained else "query"
    for task, by_lm in sorted(tables.items()):
        for lm, lines in sorted(by_lm.items()):
            print_table(f"**{task}**, {lm}", args.k, {**lines, **alone[task]}, scopes)


def print_table(
    title: str, k: int, lines: dict[str, dict[int, dict[str, float]]], scopes: dict[str, SeedScope]
) -> None:
    """The lines of one task and LM, best first."""
    queries = sorted(set.intersection(*(set(values) for seeds in lines.values() for values in seeds.values())))
    values = {
        name: np.array([[seeds[s][q] for q in queries] for s in sorted(seeds)], float) for name, seeds in lines.items()
    }
    rivals = [r for r in ("knn, untrained", "logreg") if r in values]
    print(f"{title}, k = {k}, {len(queries)} queries\n")
    print("| chosen by | seeds | accuracy, % |" + "".join(f" minus {r} |" for r in rivals))
    print("|---|---:|---:|" + "---:|" * len(rivals))
    columns = [differences(values, r, scopes) for r in rivals]
    for name in sorted(values, key=lambda n: -values[n].mean()):
        e = estimate(values[name], scope=scopes[name])
        cells = "".join(f" {column.get(name, '–')} |" for column in columns)
        print(f"| {name} | {len(values[name])} | {100 * e.value:.1f} ({100 * e.low:.1f}–{100 * e.high:.1f}) |{cells}")
    print()


def differences(values: dict[str, NDArray[np.float64]], rival: str, scopes: dict[str, SeedScope]) -> dict[str, str]:
    """Every line against one of them, p corrected over these comparisons."""
    names = [n for n in values if n != rival]
    pairs = [difference(values[n], values[rival], scopes=(scopes[n], scopes[rival])) for n in names]
    cells = {}
    for name, d, p in zip(names, pairs, holm([d.p for d in pairs]), strict=True):
        chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        cells[name] = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} … {100 * d.high:+.1f}), {chance}"
    return cells


if __name__ == "__main__":
    main()
